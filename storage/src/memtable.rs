//! The newest rows, in memory until they are flushed: batches in the order of acceptance, and an index of their keys.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use roaring::RoaringBitmap;
use shoal_kernel::{ColumnPredicate, Error, Result, Version};

use crate::layout::Layout;
use crate::predicate::{Zone, may_match};
use crate::state::{Location, SourceId};
use crate::store::{Digest, DigestBuckets};

/// Small neighbouring chunks grow together up to this many rows.
pub(crate) const CHUNK_ROWS_MAX: usize = 8192;

/// Rows that were accepted one after another. Never changes.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Number of its first row within the memtable.
    pub(crate) first_row: u32,
    /// All stored columns.
    pub(crate) batch: RecordBatch,
    pub(crate) versions: Vec<Version>,
    /// Accept position of each row, ascending.
    pub(crate) positions: Vec<u64>,
    /// What is in a column, by its place in the schema: looked at when a scan first asks.
    pub(crate) zones: Mutex<BTreeMap<usize, Zone>>,
    /// Its digest, with the number of dead rows that it was computed for: rows never come back to life.
    pub(crate) digest: Mutex<Option<(u64, Digest)>>,
}

impl Chunk {
    pub(crate) fn rows(&self) -> usize {
        self.versions.len()
    }

    pub(crate) fn end_row(&self) -> u32 {
        self.first_row + self.versions.len() as u32
    }

    /// Whether a row may satisfy a condition on that column of the table.
    pub(crate) fn may_match(&self, layout: &Layout, column: usize, predicate: &ColumnPredicate) -> bool {
        let array = self.batch.column(column);
        // Text is looked at row by row anyway, and its bounds cost as much as that; so is what has older forms.
        if !array.data_type().is_primitive() || !layout.older(column).is_empty() {
            return true;
        }
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        may_match(predicate, zones.entry(column).or_insert_with(|| Zone::of(array)))
    }
}

/// A memtable as readers see it: a consistent state, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct MemView {
    /// Counts memtables of one store.
    pub(crate) number: u64,
    pub(crate) chunks: Vec<Arc<Chunk>>,
    /// Rows that lost against another one, here or elsewhere.
    pub(crate) dead: Arc<RoaringBitmap>,
    pub(crate) tombstones: Arc<RoaringBitmap>,
    /// Rough bytes of memory, index included.
    pub(crate) bytes: u64,
    /// Position of the last record in it.
    pub(crate) last_position: u64,
    /// The running digest before its first record.
    pub(crate) digest_before: Arc<DigestBuckets>,
}

impl MemView {
    /// An empty one that takes the records after `position`, where the running digest is that.
    pub(crate) fn new(number: u64, position: u64, digest_before: Arc<DigestBuckets>) -> Self {
        Self {
            number,
            chunks: Vec::new(),
            dead: Arc::default(),
            tombstones: Arc::default(),
            bytes: 0,
            last_position: position,
            digest_before,
        }
    }

    /// The same rows in another layout.
    pub(crate) fn adopted(&self, old: &Layout, new: &Layout) -> Result<Self> {
        let adopted = |chunk: &Arc<Chunk>| -> Result<Arc<Chunk>> {
            let ids = old.stored.iter().map(|column| column.id);
            let stored: Vec<_> = ids.zip(chunk.batch.columns().iter().cloned()).collect();
            Ok(Arc::new(Chunk {
                first_row: chunk.first_row,
                batch: new.adapt(&stored, chunk.rows())?,
                versions: chunk.versions.clone(),
                positions: chunk.positions.clone(),
                zones: Mutex::default(),
                digest: Mutex::default(),
            }))
        };
        Ok(Self { chunks: self.chunks.iter().map(adopted).collect::<Result<_>>()?, ..self.clone() })
    }

    pub(crate) fn rows(&self) -> u32 {
        self.chunks.last().map_or(0, |chunk| chunk.end_row())
    }

    /// Rows that a scan shows.
    pub(crate) fn visible_rows(&self) -> u64 {
        u64::from(self.rows()) - self.dead.union_len(&self.tombstones)
    }

    /// Digest of the rows of a chunk that are not dead.
    pub(crate) fn chunk_digest(&self, layout: &Layout, chunk: &Chunk) -> Result<Digest> {
        let dead = self.dead.range_cardinality(chunk.first_row..chunk.end_row());
        let known = *chunk.digest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, digest)) = known.filter(|(count, _)| *count == dead) {
            return Ok(digest);
        }
        let at = |row: usize| chunk.first_row + row as u32;
        let is_dead = |row: usize| self.dead.contains(at(row));
        let is_tombstone = |row: usize| self.tombstones.contains(at(row));
        let digest = Digest::of_rows(layout, &chunk.batch, &chunk.versions, is_dead, is_tombstone)?;
        *chunk.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some((dead, digest));
        Ok(digest)
    }

    /// Appends a chunk and merges it with small ones before it: each row is copied a logarithmic number of times.
    pub(crate) fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.chunks.push(Arc::new(chunk));
        while let [.., before, last] = self.chunks.as_slice() {
            if last.rows() < before.rows() || before.rows() + last.rows() > CHUNK_ROWS_MAX {
                break;
            }
            let merged = merge(before, last)?;
            self.chunks.truncate(self.chunks.len() - 2);
            self.chunks.push(Arc::new(merged));
        }
        Ok(())
    }
}

fn merge(before: &Chunk, after: &Chunk) -> Result<Chunk> {
    let batch = concat_batches(&before.batch.schema(), [&before.batch, &after.batch])
        .map_err(|error| Error::internal(format!("rows of one memtable do not fit together: {error}")))?;
    Ok(Chunk {
        first_row: before.first_row,
        batch,
        versions: [before.versions.as_slice(), &after.versions].concat(),
        positions: [before.positions.as_slice(), &after.positions].concat(),
        zones: Mutex::default(),
        digest: Mutex::default(),
    })
}

/// Where the winner of a key lies within its memtable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) row: u32,
    pub(crate) version: Version,
    pub(crate) tombstone: bool,
}

impl Entry {
    /// The same, seen from outside.
    pub(crate) fn at(&self, source: SourceId) -> Location {
        Location { source, row: self.row, version: self.version, tombstone: self.tombstone }
    }
}

/// The keys of a memtable that won when they came, tombstones included, in key order.
pub(crate) type KeyIndex = BTreeMap<Box<[u8]>, Entry>;

/// Rough bytes that one row costs beside its columns.
pub(crate) const ROW_OVERHEAD_BYTES: u64 = 96;
