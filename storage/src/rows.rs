//! Rows on their way in: checked, and brought into the one form that the log and the memtable take.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{Array, ArrayRef, BooleanArray, FixedSizeBinaryArray, RecordBatch, new_null_array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use shoal_kernel::limits::{KEY_BYTES_MAX, TOKEN_BYTES_MAX};
use shoal_kernel::schema::{TOMBSTONE_COLUMN, VERSION_COLUMN, column_of};
use shoal_kernel::{ColumnId, Error, ErrorCode, KeyRange, Result, Version};

use crate::hash::content_hashes;
use crate::key::{EncodedKeys, encode_keys};
use crate::layout::{Layout, StoredColumn};
use crate::narrow::forms_of;
use crate::size::check_values;
use crate::token::TokenRecord;

/// One write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Base version; row `i` has `version.with_ordinal(i)`, unless it is a [`Rows::Part`]. Without meaning for [`Rows::Replicated`].
    pub version: Version,
    /// Makes the write harmless to send again.
    pub token: Option<String>,
    /// The rows.
    pub rows: Rows,
}

/// The rows of a write.
#[derive(Debug, Clone)]
pub enum Rows {
    /// Rows to insert or replace: columns of the table with their types, by number where the field says it
    /// ([`shoal_kernel::schema::COLUMN_ID_KEY`]), else by name. Numbers may be those of an older version of the schema. A
    /// missing nullable column is NULL.
    Put(RecordBatch),
    /// Keys to delete: the key's columns, by name. Upsert tables only.
    Delete(RecordBatch),
    /// Rows of a write of which others lie in other stores: what came of a partition that was split.
    Part {
        /// They are keys to delete.
        deletes: bool,
        /// The rows, as of the other two.
        rows: RecordBatch,
        /// Row `i` is that one of the write.
        ordinals: Vec<u32>,
        /// The fingerprint of the whole write: one that came before the split is known by it.
        fingerprint: u128,
    },
    /// No rows: the write's version is kept for its token. What ballots mean is the caller's business.
    Reserve {
        /// Of two reservations of one token, the one with the higher ballot stays.
        ballot: Version,
        /// Kept with it, for the caller.
        fingerprint: u128,
    },
    /// Rows and tombstones as [`crate::Store::pull`] of a peer gave them, and the tokens that came with them.
    Replicated(RecordBatch, Vec<TokenRecord>),
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Put(batch) | Self::Delete(batch) | Self::Replicated(batch, _) | Self::Part { rows: batch, .. } => {
                batch.num_rows()
            }
            Self::Reserve { .. } => 0,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An accepted write: durable, applied, visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its place in the accept log. For a duplicate: the place of the first time.
    pub position: u64,
    /// Its base version; a reservation's ballot. For a duplicate: the version of the first time.
    pub version: Version,
    /// Its rows. For replicated rows: those that were news.
    pub rows: u64,
    /// Nothing was written: the token was known, or the replicated rows held no news.
    pub duplicate: bool,
    /// What it is a duplicate of came from a peer alone, in this life of the store: to a writer it may be the first time.
    pub pulled: bool,
}

/// Rows in the store's own form.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    /// All stored columns; a tombstone has only its key.
    pub(crate) batch: RecordBatch,
    /// What identifies each row: the key, for event tables followed by the hash of the content.
    pub(crate) keys: EncodedKeys,
    pub(crate) versions: Vec<Version>,
    /// Which rows are tombstones; `None` if none is.
    pub(crate) tombstones: Option<BooleanBuffer>,
    /// The write's own token, and those that came from a peer.
    pub(crate) tokens: Vec<TokenRecord>,
}

impl Incoming {
    pub(crate) fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    pub(crate) fn is_tombstone(&self, row: usize) -> bool {
        self.tombstones.as_ref().is_some_and(|tombstones| tombstones.value(row))
    }

    /// Puts rows together whose columns are in order already.
    pub(crate) fn assemble(
        layout: &Layout,
        batch: RecordBatch,
        versions: Vec<Version>,
        tombstones: Option<BooleanBuffer>,
        tokens: Vec<TokenRecord>,
    ) -> Result<Self> {
        let keys = identities(layout, &batch)?;
        let tombstones = tombstones.filter(|tombstones| tombstones.has_true());
        Ok(Self { batch, keys, versions, tombstones, tokens })
    }

    /// Which rows have keys in the range; `None` if all have.
    pub(crate) fn admitted_by(&self, range: &KeyRange) -> Option<BooleanArray> {
        if *range == KeyRange::all() || self.keys.iter().all(|key| range.contains(key)) {
            return None;
        }
        Some(self.keys.iter().map(|key| Some(range.contains(key))).collect())
    }

    /// Keeps the rows that `keep` says.
    pub(crate) fn filter(self, layout: &Layout, keep: &BooleanArray) -> Result<Self> {
        let batch = filter_record_batch(&self.batch, keep).map_err(|error| Error::internal(error.to_string()))?;
        let kept = || keep.values().set_indices();
        let versions = kept().map(|row| self.versions[row]).collect();
        let tombstones = self.tombstones.as_ref().map(|all| kept().map(|row| all.value(row)).collect());
        Self::assemble(layout, batch, versions, tombstones, self.tokens)
    }
}

/// What identifies each row of a batch in schema order.
pub(crate) fn identities(layout: &Layout, batch: &RecordBatch) -> Result<EncodedKeys> {
    let keys = encode_keys(batch, &layout.key)?;
    if layout.schema.is_upsert() {
        return Ok(keys);
    }
    let contents = content_hashes(&layout.with_ids(batch.columns()), batch.num_rows())?;
    let mut identities = EncodedKeys::default();
    for (key, content) in keys.iter().zip(contents) {
        identities.push_with(|out| {
            out.extend_from_slice(key);
            out.extend_from_slice(&content.to_be_bytes());
        })?;
    }
    Ok(identities)
}

/// The schema of rows on their way between replicas: the table's columns, all but the key nullable, then version and
/// tombstone.
pub(crate) fn replicated_schema(layout: &Layout) -> SchemaRef {
    // Each field says which column it is: the other replica may know it by another name.
    let mut fields: Vec<Field> = layout.relaxed.fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new(VERSION_COLUMN, DataType::FixedSizeBinary(16), false));
    fields.push(Field::new(TOMBSTONE_COLUMN, DataType::Boolean, false));
    Arc::new(Schema::new(fields))
}

/// Builds a batch of [`replicated_schema`], without columns that hold nothing: there may be many that the rows never had.
pub(crate) fn replicated_batch(
    layout: &Layout,
    columns: &[ArrayRef],
    versions: &[Version],
    tombstones: BooleanBuffer,
) -> Result<RecordBatch> {
    let failed = |error| Error::internal(format!("cannot build a batch for a peer: {error}"));
    let version_bytes: Vec<u8> = versions.iter().flat_map(|version| version.0.to_be_bytes()).collect();
    let mut all = columns.to_vec();
    all.push(Arc::new(FixedSizeBinaryArray::try_new(16, version_bytes.into(), None).map_err(failed)?));
    all.push(Arc::new(BooleanArray::new(tombstones, None)));
    held_columns(&RecordBatch::try_new(replicated_schema(layout), all).map_err(failed)?)
}

/// Rows without the columns that hold nothing: whoever takes rows takes a missing column for NULL.
pub fn held_columns(batch: &RecordBatch) -> Result<RecordBatch> {
    let is_held = |place: &usize| batch.num_rows() == 0 || batch.column(*place).null_count() < batch.num_rows();
    let places: Vec<usize> = (0..batch.num_columns()).filter(is_held).collect();
    batch.project(&places).map_err(|error| Error::internal(error.to_string()))
}

/// Checks a write. Nothing has happened yet when it fails.
pub(crate) fn normalise(layout: &Layout, write: Write) -> Result<Incoming> {
    if write.token.as_ref().is_some_and(|token| token.len() > TOKEN_BYTES_MAX) {
        return Err(Error::new(ErrorCode::LimitExceeded, format!("a token has more than {TOKEN_BYTES_MAX} bytes")));
    }
    let rows = write.rows.len();
    let base_versions = || -> Result<Vec<Version>> {
        let rows =
            u32::try_from(rows).map_err(|_| Error::new(ErrorCode::LimitExceeded, "too many rows in one write"))?;
        Ok((0..rows).map(|ordinal| write.version.with_ordinal(ordinal)).collect())
    };
    let put = |batch: &RecordBatch, versions| {
        check_values(batch, 0)?;
        Incoming::assemble(layout, put_columns(layout, batch)?, versions, None, Vec::new())
    };
    let delete = |keys: &RecordBatch, versions| {
        if !layout.schema.is_upsert() {
            return Err(Error::new(ErrorCode::Unsupported, "rows of an event table cannot be deleted by key"));
        }
        let deleted = Some(BooleanBuffer::new_set(keys.num_rows()));
        Incoming::assemble(layout, delete_columns(layout, keys)?, versions, deleted, Vec::new())
    };
    let incoming = match &write.rows {
        Rows::Put(batch) => put(batch, base_versions()?)?,
        Rows::Delete(keys) => delete(keys, base_versions()?)?,
        Rows::Part { ordinals, rows, .. } if ordinals.len() != rows.num_rows() => {
            let message = format!("{} rows of a write, and the places of {}", rows.num_rows(), ordinals.len());
            return Err(Error::new(ErrorCode::InvalidRequest, message));
        }
        Rows::Part { deletes, rows, ordinals, .. } => {
            let versions = ordinals.iter().map(|ordinal| write.version.with_ordinal(*ordinal)).collect();
            if *deletes { delete(rows, versions)? } else { put(rows, versions)? }
        }
        Rows::Reserve { .. } => {
            let empty = RecordBatch::new_empty(layout.relaxed.clone());
            Incoming::assemble(layout, empty, Vec::new(), None, Vec::new())?
        }
        Rows::Replicated(batch, tokens) => replicated_rows(layout, batch, tokens.clone())?,
    };
    let too_long = incoming.keys.iter().position(|key| key.len() > KEY_BYTES_MAX);
    match too_long {
        Some(row) => Err(invalid(format!("the key of row {row} takes more than {KEY_BYTES_MAX} bytes"))),
        None => Ok(incoming),
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidRows, message)
}

/// The columns of a batch in the order in which they are stored; `None` where the batch has none.
fn placed<'a>(layout: &Layout, batch: &'a RecordBatch) -> Result<Vec<Option<&'a ArrayRef>>> {
    let mut columns = vec![None; layout.stored.len()];
    let schema = batch.schema();
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let place = match column_of(field) {
            // Values of a column that has been dropped are not wanted any more.
            Some(id) => match layout.place(id)? {
                Some(place) => place,
                None => continue,
            },
            None if [VERSION_COLUMN, TOMBSTONE_COLUMN].contains(&field.name().as_str()) => continue,
            None => {
                let place = layout.schema.columns.iter().position(|column| column.name == *field.name());
                place.ok_or_else(|| invalid(format!("the table has no column '{}'", field.name())))?
            }
        };
        let wanted = &layout.stored[place].data_type;
        if array.data_type() != wanted {
            let (name, found) = (field.name(), array.data_type());
            return Err(invalid(format!("column '{name}' is of type {wanted}, the rows have {found}")));
        }
        columns[place] = Some(array);
    }
    Ok(columns)
}

/// Checks that a column of the table has a value, in one of its forms, in all rows of the batch, or in those of `only`.
fn not_null(
    layout: &Layout,
    batch: &RecordBatch,
    columns: &[Option<&ArrayRef>],
    place: usize,
    only: Option<&BooleanBuffer>,
) -> Result<()> {
    let rows = batch.num_rows();
    let forms = || std::iter::once(&place).chain(layout.older(place)).filter_map(|form| columns[*form]);
    if forms().any(|form| form.null_count() == 0) {
        return Ok(());
    }
    let is_wrong = |row: &usize| only.is_none_or(|only| only.value(*row)) && forms().all(|form| form.is_null(*row));
    let Some(row) = (0..rows).find(is_wrong) else { return Ok(()) };
    let name = &layout.schema.columns[place].name;
    // Whoever numbers columns sends all that there are: a newer schema has dropped this one.
    if forms().next().is_none() && batch.schema().fields().iter().any(|field| column_of(field).is_some()) {
        let version = layout.schema.version;
        let message =
            format!("the rows lack column '{name}', which version {version} of the schema, the newest known here, has");
        return Err(Error::new(ErrorCode::Moved, message));
    }
    Err(invalid(format!("column '{name}' may not be NULL, row {row} is")))
}

/// What a batch holds of columns of which nothing is stored any more, by number, each value in its form.
pub(crate) fn forgotten_columns(layout: &Layout, batch: &RecordBatch) -> Result<Vec<(ColumnId, ArrayRef)>> {
    let mut forgotten = Vec::new();
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        if let Some(id) = column_of(field)
            && layout.place(id)?.is_none()
        {
            forgotten.extend(forms_of(&layout.schema, id, array.clone())?);
        }
    }
    Ok(forgotten)
}

/// A batch of all stored columns.
fn filled(layout: &Layout, columns: Vec<Option<&ArrayRef>>, rows: usize) -> Result<RecordBatch> {
    let column = |(stored, array): (&StoredColumn, Option<&ArrayRef>)| {
        array.cloned().unwrap_or_else(|| new_null_array(&stored.data_type, rows))
    };
    layout.batch(layout.stored.iter().zip(columns).map(column).collect(), rows)
}

fn put_columns(layout: &Layout, batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = placed(layout, batch)?;
    for (place, _) in layout.schema.columns.iter().enumerate().filter(|(_, column)| !column.nullable) {
        not_null(layout, batch, &columns, place, None)?;
    }
    layout.settled(filled(layout, columns, batch.num_rows())?)
}

fn delete_columns(layout: &Layout, batch: &RecordBatch) -> Result<RecordBatch> {
    let (mut columns, rows) = (placed(layout, batch)?, batch.num_rows());
    for place in &layout.key {
        if columns[*place].is_none() {
            return Err(invalid(format!("the key column '{}' is missing", layout.schema.columns[*place].name)));
        }
        not_null(layout, batch, &columns, *place, None)?;
    }
    let others = columns.iter_mut().enumerate().filter(|(place, _)| !layout.key.contains(place));
    others.for_each(|(_, column)| *column = None);
    filled(layout, columns, rows)
}

fn replicated_rows(layout: &Layout, batch: &RecordBatch, tokens: Vec<TokenRecord>) -> Result<Incoming> {
    let missing = |name| invalid(format!("replicated rows need the column '{name}'"));
    let rows = batch.num_rows();
    let versions = batch.column_by_name(VERSION_COLUMN).ok_or_else(|| missing(VERSION_COLUMN))?;
    let versions =
        versions.as_fixed_size_binary_opt().filter(|array| array.value_length() == 16 && array.null_count() == 0);
    let versions: Vec<Version> = versions
        .ok_or_else(|| missing(VERSION_COLUMN))?
        .iter()
        .flatten()
        .filter_map(|bytes| Some(Version(u128::from_be_bytes(bytes.try_into().ok()?))))
        .collect();
    let tombstones = batch.column_by_name(TOMBSTONE_COLUMN).ok_or_else(|| missing(TOMBSTONE_COLUMN))?;
    let tombstones = tombstones.as_boolean_opt().filter(|array| array.null_count() == 0);
    let tombstones = tombstones.ok_or_else(|| missing(TOMBSTONE_COLUMN))?.values().clone();
    if !layout.schema.is_upsert() && tombstones.has_true() {
        return Err(invalid("an event table has no tombstones".into()));
    }
    let live = !&tombstones;
    let columns = placed(layout, batch)?;
    for (place, _) in layout.schema.columns.iter().enumerate().filter(|(_, column)| !column.nullable) {
        let only = if layout.key.contains(&place) { None } else { Some(&live) };
        not_null(layout, batch, &columns, place, only)?;
    }
    Incoming::assemble(layout, filled(layout, columns, rows)?, versions, Some(tombstones), tokens)
}
