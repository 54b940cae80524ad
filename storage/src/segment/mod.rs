//! Segments: immutable columnar files, sorted by what identifies a row.

mod bloom;
mod cache;
mod find;
mod format;
mod writer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::cast::AsArray;
use arrow::array::types::UInt64Type;
use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::DataType;
use roaring::RoaringBitmap;
use shoal_kernel::env::{DiskFile, OpenMode};
use shoal_kernel::{Column, ColumnId, Error, ErrorCode, Planted, Result, SegmentId, Version};

pub(crate) use cache::SegmentContext;
pub(crate) use format::PAGE_ROWS;
pub(crate) use writer::{SegmentRows, SegmentWriter};

use bloom::Bloom;
use format::{Extent, Footer, GROUP_PAGES, HEADER_BYTES, TRAILER_BYTES, check_header, parse_footer, parse_trailer};

use crate::encoding::decode_page;
use crate::layout::convert;
use crate::predicate::Zone;
use crate::state::{Problem, SegmentView};
use crate::store::Digest;
use crate::wal::join_versions;

/// Name of a segment's file.
pub(crate) fn segment_file(id: SegmentId) -> String {
    format!("seg-{:016x}.seg", id.0)
}

/// The segment whose file has that name.
pub(crate) fn segment_of_file(name: &str) -> Option<SegmentId> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".seg")?;
    u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16).map(SegmentId)
}

/// An open segment.
pub(crate) struct Segment {
    id: SegmentId,
    bytes: u64,
    file: Arc<dyn DiskFile>,
    footer: Footer,
    blooms: Vec<Bloom>,
    tombstones: RoaringBitmap,
    /// Of each stored column: its place in the footer, and what is in it.
    columns: BTreeMap<ColumnId, (usize, Zone)>,
    context: Arc<SegmentContext>,
    /// Pages that could not be read, and why.
    damage: Mutex<BTreeMap<(Place, u32), String>>,
    /// Digest of each page, with the number of dead rows that it was computed for: rows never come back to life.
    digests: Mutex<BTreeMap<u32, (u64, Digest)>>,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("id", &self.id).field("rows", &self.footer.rows).finish_non_exhaustive()
    }
}

/// What a segment stores by pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A column, by its number in the file.
    Column(usize),
    VersionsHigh,
    VersionsLow,
    Positions,
}

/// A page's rows, whole.
pub(crate) struct PageRows {
    /// All columns in the order of the table's schema.
    pub(crate) batch: RecordBatch,
    pub(crate) versions: Vec<Version>,
    pub(crate) positions: Vec<u64>,
}

impl Segment {
    /// Opens a file and reads its footer and filters.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if these are damaged or the file has not the length that the manifest says, or is gone;
    /// [`ErrorCode::IncompatibleVersion`] if a newer build wrote it; else as the disk reports.
    pub(crate) fn open(context: &Arc<SegmentContext>, dir: &Path, id: SegmentId, bytes: u64) -> Result<Self> {
        Self::read(context, dir, id, bytes).map_err(|error| error.context(segment_file(id)))
    }

    fn read(context: &Arc<SegmentContext>, dir: &Path, id: SegmentId, bytes: u64) -> Result<Self> {
        let corrupt = |what: &str| Error::new(ErrorCode::Corruption, what);
        let path = dir.join(segment_file(id));
        if !context.disk.exists(&path)? {
            return Err(corrupt("the file is gone"));
        }
        let file = context.disk.open(&path, OpenMode::Read)?;
        if file.len()? != bytes || bytes < HEADER_BYTES + TRAILER_BYTES {
            return Err(corrupt("the file has not the length that it had"));
        }
        let mut header = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut header, 0)?;
        check_header(&header)?;
        let mut trailer = [0; TRAILER_BYTES as usize];
        file.read_exact_at(&mut trailer, bytes - TRAILER_BYTES)?;
        let (length, crc) = parse_trailer(&trailer)?;
        let start = (bytes - TRAILER_BYTES).checked_sub(u64::from(length)).filter(|&start| start >= HEADER_BYTES);
        let mut footer = vec![0; length as usize];
        file.read_exact_at(&mut footer, start.ok_or_else(|| corrupt("the footer is longer than the file"))?)?;
        let footer = parse_footer(&footer, crc)?;
        let bloom = |extent: &Extent| {
            let bytes = read_extent(&*file, *extent)?;
            Bloom::from_bytes(&bytes).ok_or_else(|| corrupt("a key filter has an impossible length"))
        };
        let blooms = footer.blooms.iter().map(bloom).collect::<Result<_>>()?;
        let tombstones = RoaringBitmap::deserialize_from(footer.tombstones.as_slice())
            .map_err(|_| corrupt("the bitmap of tombstones is damaged"))?;
        let zone = |place: usize| {
            let mut zones = footer.columns[place].zones.iter();
            let first = zones.next().cloned().unwrap_or(Zone { rows: 0, nulls: 0, min: None, max: None });
            zones.fold(first, Zone::union)
        };
        let columns = (0..footer.columns.len()).map(|place| (footer.columns[place].column.id, (place, zone(place))));
        Ok(Self {
            id,
            bytes,
            file,
            blooms,
            tombstones,
            columns: columns.collect(),
            footer,
            context: context.clone(),
            damage: Mutex::default(),
            digests: Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> SegmentId {
        self.id
    }

    pub(crate) fn rows(&self) -> u32 {
        self.footer.rows
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn pages(&self) -> u32 {
        self.footer.pages() as u32
    }

    pub(crate) fn page_rows(&self, page: u32) -> Range<u32> {
        let start = page * PAGE_ROWS as u32;
        start..(start + PAGE_ROWS as u32).min(self.footer.rows)
    }

    pub(crate) fn tombstones(&self) -> &RoaringBitmap {
        &self.tombstones
    }

    /// Damage that was met, and that was still there when last looked at.
    pub(crate) fn damage(&self) -> Option<Problem> {
        let damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        damage.values().next().map(|message| Problem { file: segment_file(self.id), message: message.clone() })
    }

    /// Looks again at what could not be read: a disk's error may pass, and then there is no damage.
    pub(crate) fn recheck(&self) {
        let damage = || self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        let noted: Vec<(Place, u32)> = damage().keys().copied().collect();
        for (place, page) in noted {
            if self.read_page(place, page).is_ok() {
                damage().remove(&(place, page));
            }
        }
    }

    /// Whether every stored column is still one of the table, of the same type: then identities are what they were.
    pub(crate) fn is_current(&self) -> bool {
        let schema = &self.context.layout.schema;
        self.footer.columns.iter().all(|index| {
            let place = schema.index_of(index.column.id);
            place.is_some_and(|place| schema.columns[place].data_type == index.column.data_type)
        })
    }

    /// Smallest and greatest accept position in a page.
    pub(crate) fn position_range(&self, page: u32) -> (u64, u64) {
        self.footer.position_ranges[page as usize]
    }

    /// The first page that may hold a key above that one.
    pub(crate) fn first_page_above(&self, key: &[u8]) -> u32 {
        self.footer.first_keys.partition_point(|first| first.as_slice() <= key).saturating_sub(1) as u32
    }

    /// What is in a column of the table.
    pub(crate) fn zone(&self, column: &Column) -> Zone {
        self.zone_of(column, self.footer.rows, |_, total| total.clone())
    }

    /// What is in a page of a column of the table.
    pub(crate) fn page_zone(&self, column: &Column, page: u32) -> Zone {
        let rows = self.page_rows(page).len() as u32;
        self.zone_of(column, rows, |place, _| self.footer.columns[place].zones[page as usize].clone())
    }

    fn zone_of(&self, column: &Column, rows: u32, stored: impl Fn(usize, &Zone) -> Zone) -> Zone {
        match self.columns.get(&column.id) {
            // The column came later.
            None => Zone { rows, nulls: rows, min: None, max: None },
            Some((place, total)) => {
                let zone = stored(*place, total);
                let same_type = self.footer.columns[*place].column.data_type == column.data_type;
                if same_type { zone } else { Zone { min: None, max: None, ..zone } }
            }
        }
    }

    /// Reads a page of a column of the table: NULLs if it came later, converted if it was widened.
    pub(crate) fn read_column(&self, column: &Column, page: u32) -> Result<ArrayRef> {
        match self.columns.get(&column.id) {
            Some((place, _)) => convert(&self.read_noting(Place::Column(*place), page)?, &column.data_type),
            None => Ok(new_null_array(&column.data_type, self.page_rows(page).len())),
        }
    }

    /// Reads all of a page.
    pub(crate) fn read_rows(&self, page: u32) -> Result<PageRows> {
        let layout = &self.context.layout;
        let columns = layout.schema.columns.iter().map(|column| self.read_column(column, page));
        let batch = layout.batch(columns.collect::<Result<_>>()?, self.page_rows(page).len())?;
        let positions = self.read_noting(Place::Positions, page)?;
        let positions = positions.as_primitive::<UInt64Type>().values().to_vec();
        Ok(PageRows { batch, versions: self.read_versions(page)?, positions })
    }

    fn read_versions(&self, page: u32) -> Result<Vec<Version>> {
        let high = self.read_noting(Place::VersionsHigh, page)?;
        let low = self.read_noting(Place::VersionsLow, page)?;
        Ok(join_versions(&high, &low))
    }

    fn read_page(&self, place: Place, page: u32) -> Result<ArrayRef> {
        let (extents, data_type) = match place {
            Place::Column(number) => {
                let index = &self.footer.columns[number];
                (&index.pages, &index.column.data_type)
            }
            Place::VersionsHigh => (&self.footer.version_high, &DataType::UInt64),
            Place::VersionsLow => (&self.footer.version_low, &DataType::UInt64),
            Place::Positions => (&self.footer.positions, &DataType::UInt64),
        };
        let extent = extents[page as usize];
        let bytes = if self.context.planted == Some(Planted::NoPageChecksum) {
            read_unchecked(&*self.file, extent)?
        } else {
            read_extent(&*self.file, extent)?
        };
        decode_page(&bytes, data_type, self.page_rows(page).len())
    }

    /// Reads; if that fails, says where the damage is, and remembers it.
    fn read_noting(&self, place: Place, page: u32) -> Result<ArrayRef> {
        self.read_page(place, page).map_err(|error| {
            let error = error.context(match place {
                Place::Column(number) => format!("page {page} of column {}", self.footer.columns[number].column.id.0),
                Place::VersionsHigh | Place::VersionsLow => format!("page {page} of versions"),
                Place::Positions => format!("page {page} of positions"),
            });
            if matches!(error.code(), ErrorCode::Corruption | ErrorCode::Io) {
                let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
                damage.insert((place, page), error.message().to_owned());
            }
            error.context(segment_file(self.id))
        })
    }

    /// Reads everything and checks it.
    pub(crate) fn verify(&self, dir: &Path) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |result: Result<()>| {
            if let Err(error) = result {
                problems.push(Problem { file: segment_file(self.id), message: error.message().to_owned() });
            }
        };
        check(Self::open(&self.context, dir, self.id, self.bytes).map(drop));
        for page in 0..self.pages() {
            (0..self.footer.columns.len())
                .for_each(|place| check(self.read_noting(Place::Column(place), page).map(drop)));
            check(self.read_versions(page).map(drop));
            check(self.read_noting(Place::Positions, page).map(drop));
        }
        problems
    }
}

impl SegmentView {
    /// Digest of the rows of a page that are not dead.
    pub(crate) fn page_digest(&self, page: u32) -> Result<Digest> {
        let rows = self.segment.page_rows(page);
        let dead = self.dead.range_cardinality(rows.clone());
        let known = self.segment.digests.lock().unwrap_or_else(PoisonError::into_inner).get(&page).copied();
        if let Some((_, digest)) = known.filter(|(count, _)| *count == dead) {
            return Ok(digest);
        }
        let content = self.segment.read_rows(page)?;
        let digest = Digest::of_rows(
            &self.segment.context.layout,
            &content.batch,
            &content.versions,
            |row| self.dead.contains(rows.start + row as u32),
            |row| self.segment.tombstones.contains(rows.start + row as u32),
        )?;
        self.segment.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(page, (dead, digest));
        Ok(digest)
    }
}

fn read_unchecked(file: &dyn DiskFile, extent: Extent) -> Result<Vec<u8>> {
    let mut bytes = vec![0; extent.bytes as usize];
    file.read_exact_at(&mut bytes, extent.offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::new(ErrorCode::Corruption, "the file is cut short"),
        _ => Error::from(error),
    })?;
    Ok(bytes)
}

fn read_extent(file: &dyn DiskFile, extent: Extent) -> Result<Vec<u8>> {
    let bytes = read_unchecked(file, extent)?;
    match crc32fast::hash(&bytes) == extent.crc {
        true => Ok(bytes),
        false => Err(Error::new(ErrorCode::Corruption, "the checksum is wrong")),
    }
}
