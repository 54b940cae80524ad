//! Which rows go to which partition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, new_null_array};
use arrow::compute::{concat_batches, take_record_batch};
use shoal_catalog::{Catalog, Partitioning, Table};
use shoal_kernel::limits::{KEY_BYTES_MAX, PARTITIONS_PER_TABLE_MAX, WRITE_BYTES_MAX};
use shoal_kernel::schema::{DEDUP_COLUMN, TS_COLUMN};
use shoal_kernel::{ColumnId, Cutoff, Error, ErrorCode, KeyRange, PartitionId, Result};
use shoal_storage::{
    EncodedKeys, batch_bytes, check_not_expired, check_values, contents_of, encode_keys, fingerprint_of, held_columns,
    rows_within, with_rows_before,
};

use super::{dropped, expired};

/// Windows that one request may have made. Each is a partition with all that belongs to it.
const WINDOWS_PER_REQUEST_MAX: usize = 64;

/// Rows that have a version and a token in common. They are cut as if no partition had ever been split, so that a resend is cut
/// in the same places.
#[derive(Debug)]
pub(super) struct Piece {
    /// Counts the pieces of one partition, as it was before any split, so that each has a token of its own.
    pub(super) number: usize,
    pub(super) rows: RecordBatch,
    /// By partition.
    pub(super) parts: Vec<Part>,
}

/// Rows of a piece that go to one partition.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) partition: PartitionId,
    pub(super) rows: RecordBatch,
    /// Their places in the piece, unless these are all of its rows.
    pub(super) ordinals: Option<Vec<u32>>,
}

/// What an event table's rows are given where the client gave nothing.
pub(super) struct Stamp {
    /// Microseconds for `_ts`.
    pub(super) micros: i64,
    /// Together with the row's number: its `_dedup`.
    pub(super) dedup: String,
}

/// Whether some row needs a [`Stamp`] for its time.
pub(super) fn needs_time(table: &Table, batches: &[RecordBatch]) -> bool {
    !table.schema.is_upsert()
        && batches.iter().any(|batch| batch.column_by_name(TS_COLUMN).is_none_or(|column| column.null_count() > 0))
}

/// Checks events as [`shape`] does, before they have a time; gives the fingerprint of what the client sent.
pub(super) fn check(table: &Table, batches: &[RecordBatch]) -> Result<u128> {
    let blank = Stamp { micros: 0, dedup: String::new() };
    let shaped = with_rows_before(batches).map(|(first_row, batch)| shape(table, batch, &blank, first_row));
    fingerprint(table, &shaped.collect::<Result<Vec<_>>>()?)
}

/// The fingerprint of rows that are in the table's shape.
pub(super) fn fingerprint(table: &Table, shaped: &[RecordBatch]) -> Result<u128> {
    let rows = concat_batches(&table.schema.numbered(), shaped).map_err(internal)?;
    fingerprint_of(&table.schema, &rows)
}

/// Brings a batch into the table's shape: its columns in its order, each with its number, for replicas may have gone over to
/// another schema meanwhile; a missing nullable column is NULL. `first_row` counts
/// the rows of the request before this batch.
pub(super) fn shape(table: &Table, batch: &RecordBatch, stamp: &Stamp, first_row: usize) -> Result<RecordBatch> {
    let schema = table.schema.numbered();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => column.clone(),
            Some(column) => {
                return Err(Error::new(
                    ErrorCode::InvalidRows,
                    format!("column '{}' is {}, the rows have {}", field.name(), field.data_type(), column.data_type()),
                ));
            }
            None => new_null_array(field.data_type(), batch.num_rows()),
        };
        let column = match field.name().as_str() {
            _ if table.schema.is_upsert() || column.null_count() == 0 => column,
            TS_COLUMN => fill_time(&column, stamp.micros)?,
            DEDUP_COLUMN => fill_dedup(&column, &stamp.dedup, first_row)?,
            _ => column,
        };
        if !field.is_nullable() && column.null_count() > 0 {
            let row = (0..column.len()).find(|row| column.is_null(*row)).unwrap_or_default();
            return Err(Error::new(
                ErrorCode::InvalidRows,
                format!("column '{}' may not be NULL, and is in row {}", field.name(), first_row + row + 1),
            ));
        }
        columns.push(column);
    }
    if let Some(stranger) = batch.schema().fields().iter().find(|field| schema.column_with_name(field.name()).is_none())
    {
        return Err(Error::new(
            ErrorCode::UnknownColumn,
            format!("table '{}' has no column '{}'", table.name, stranger.name()),
        ));
    }
    let shaped = RecordBatch::try_new(schema, columns);
    let shaped = shaped.map_err(|error| Error::new(ErrorCode::InvalidRows, error.to_string()))?;
    check_values(&shaped, first_row)?;
    Ok(shaped)
}

/// Checks that no row has had its time; the table's columns are those of the rows. `first_row` counts the rows of the request
/// before this batch.
///
/// # Errors
/// [`ErrorCode::RowsExpired`] names the first one that has.
pub(super) fn check_kept(table: &Table, cutoff: Option<Cutoff>, shaped: &RecordBatch, first_row: usize) -> Result<()> {
    let Some(cutoff) = cutoff else { return Ok(()) };
    let place = table.schema.index_of(cutoff.column);
    let place = place.ok_or_else(|| Error::internal("a cut-off of a column that the table does not have"))?;
    check_not_expired(shaped.column(place), cutoff, first_row + 1)
}

/// The key's columns of a batch of keys.
pub(super) fn keys(table: &Table, batch: &RecordBatch) -> Result<RecordBatch> {
    let schema = table.schema.numbered();
    let places = table.schema.key_indices();
    let key = Arc::new(schema.project(&places).map_err(internal)?);
    let columns = key.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() && column.null_count() == 0 => Ok(column.clone()),
        _ => Err(Error::new(ErrorCode::InvalidRows, format!("the keys have no column '{}' of its type", field.name()))),
    });
    let columns = columns.collect::<Result<_>>()?;
    RecordBatch::try_new(key, columns).map_err(internal)
}

fn fill_time(column: &ArrayRef, micros: i64) -> Result<ArrayRef> {
    let times = column
        .as_any()
        .downcast_ref::<TimestampMicrosecondArray>()
        .ok_or_else(|| Error::internal(format!("{TS_COLUMN} is {}", column.data_type())))?;
    let filled: TimestampMicrosecondArray = times.iter().map(|time| Some(time.unwrap_or(micros))).collect();
    Ok(Arc::new(filled.with_data_type(column.data_type().clone())))
}

fn fill_dedup(column: &ArrayRef, dedup: &str, first_row: usize) -> Result<ArrayRef> {
    let given = column
        .as_any()
        .downcast_ref::<StringArray>()
        .ok_or_else(|| Error::internal(format!("{DEDUP_COLUMN} is {}", column.data_type())))?;
    let filled: StringArray = given
        .iter()
        .enumerate()
        .map(|(row, given)| Some(given.map_or_else(|| format!("{dedup}#{}", first_row + row), str::to_owned)))
        .collect();
    Ok(Arc::new(filled))
}

/// Rows by partition, unless there is none yet for some.
pub(super) enum Split {
    Pieces(Vec<Piece>),
    /// Windows that are missing, and were they made, there would be partitions for all rows.
    Missing(BTreeSet<KeyRange>),
}

/// Cuts rows by partition, and into pieces that one write may hold. The order of rows with one key is kept.
///
/// Keys that are to be deleted (`deletes`) and that no partition holds have gone with their window: they are left out.
pub(super) fn split(catalog: &Catalog, table: &Table, batches: &[RecordBatch], deletes: bool) -> Result<Split> {
    // Its columns are those of the rows, its partitions those of today.
    let now = catalog.tables.get(&table.id).ok_or_else(|| dropped(table))?;
    let mut pieces_of: BTreeMap<PartitionId, Gathered> = BTreeMap::new();
    let mut missing: BTreeSet<KeyRange> = BTreeSet::new();
    for (first_row, batch) in with_rows_before(batches) {
        let keys = partition_keys(table, batch)?;
        let mut rows: BTreeMap<PartitionId, (Vec<u32>, Vec<PartitionId>)> = BTreeMap::new();
        for row in 0..batch.num_rows() {
            let key = keys.get(row);
            if key.len() > KEY_BYTES_MAX {
                return Err(Error::new(
                    ErrorCode::LimitExceeded,
                    format!(
                        "the key of row {} has {} bytes, more than the {KEY_BYTES_MAX} allowed",
                        first_row + row + 1,
                        key.len()
                    ),
                ));
            }
            let Some(partition) = catalog.partition_for(now, key) else {
                if deletes && now.has_windows() || missing.iter().any(|window| window.contains(key)) {
                    continue;
                }
                missing.insert(now.window_of(key).ok_or_else(|| {
                    let row = first_row + row + 1;
                    Error::internal(format!("no partition of '{}' holds the key of row {row}", table.name))
                })?);
                if missing.len() > windows_max(now) {
                    return Err(too_many_windows(now));
                }
                continue;
            };
            let (rows, owners) = rows.entry(partition.root).or_default();
            rows.push(row as u32);
            owners.push(partition.id);
        }
        for (root, (rows, owners)) in rows {
            let part = if rows.len() == batch.num_rows() {
                batch.clone()
            } else {
                take_record_batch(batch, &UInt32Array::from(rows)).map_err(internal)?
            };
            let gathered = pieces_of.entry(root).or_default();
            gathered.batches.push(part);
            gathered.owners.extend(owners);
        }
    }
    if !missing.is_empty() {
        return Ok(Split::Missing(missing));
    }
    let mut pieces = Vec::new();
    for Gathered { batches, mut owners } in pieces_of.into_values() {
        let Some(first) = batches.first() else { continue };
        let rows = if batches.len() == 1 {
            first.clone()
        } else {
            concat_batches(&first.schema(), &batches).map_err(internal)?
        };
        for (number, rows) in chunks(table, &rows)?.into_iter().enumerate() {
            let rest = owners.split_off(rows.num_rows().min(owners.len()));
            let parts = parts_of(&rows, None, &owners)?;
            owners = rest;
            pieces.push(Piece { number, rows, parts });
        }
    }
    Ok(Split::Pieces(pieces))
}

/// Rows of one partition, as it was before any split, and where each of them belongs now.
#[derive(Default)]
struct Gathered {
    batches: Vec<RecordBatch>,
    owners: Vec<PartitionId>,
}

/// The encoded partition keys of rows.
fn partition_keys(table: &Table, rows: &RecordBatch) -> Result<EncodedKeys> {
    let place = |column: &ColumnId| -> Result<usize> {
        let place = table.schema.index_of(*column);
        let place = place.ok_or_else(|| Error::internal("a partition key without one of its columns"))?;
        rows.schema().index_of(&table.schema.columns[place].name).map_err(internal)
    };
    let columns: Vec<usize> = table.partitioning.columns().iter().map(place).collect::<Result<_>>()?;
    encode_keys(rows, &columns)
}

/// The smallest partition key of the rows: whoever holds it, over all splits, came of one partition.
pub(super) fn least_key(table: &Table, rows: &RecordBatch) -> Result<Vec<u8>> {
    let keys = partition_keys(table, rows)?;
    keys.iter().min().map(<[u8]>::to_vec).ok_or_else(|| Error::internal("a piece without rows"))
}

/// Cuts a part of a piece whose partition has been split meanwhile. Its rows keep their places in the piece.
pub(super) fn recut(catalog: &Catalog, table: &Table, part: &Part) -> Result<Vec<Part>> {
    let now = catalog.tables.get(&table.id).ok_or_else(|| dropped(table))?;
    let keys = partition_keys(table, &part.rows)?;
    let owner = |key: &[u8]| catalog.partition_for(now, key).map(|partition| partition.id).ok_or_else(expired);
    let owners = keys.iter().map(owner).collect::<Result<Vec<_>>>()?;
    parts_of(&part.rows, part.ordinals.as_deref(), &owners)
}

/// Rows by the partition that each belongs to, in the order of its number.
fn parts_of(rows: &RecordBatch, ordinals: Option<&[u32]>, owners: &[PartitionId]) -> Result<Vec<Part>> {
    if let Some(first) = owners.first()
        && owners.iter().all(|owner| owner == first)
    {
        return Ok(vec![Part { partition: *first, rows: rows.clone(), ordinals: ordinals.map(<[u32]>::to_vec) }]);
    }
    let mut places: BTreeMap<PartitionId, Vec<u32>> = BTreeMap::new();
    for (row, owner) in (0u32..).zip(owners) {
        places.entry(*owner).or_default().push(row);
    }
    let part = |(partition, places): (PartitionId, Vec<u32>)| {
        let ordinal = |place: &u32| ordinals.and_then(|all| all.get(*place as usize).copied()).unwrap_or(*place);
        let ordinals = Some(places.iter().map(ordinal).collect());
        let rows = take_record_batch(rows, &UInt32Array::from(places)).map_err(internal)?;
        Ok(Part { partition, rows, ordinals })
    };
    places.into_iter().map(part).collect()
}

/// Windows that one request may have made. Times in a wrong unit make many; of values there are as many as there are.
fn windows_max(table: &Table) -> usize {
    match table.partitioning {
        Partitioning::Value { .. } => PARTITIONS_PER_TABLE_MAX as usize,
        _ => WINDOWS_PER_REQUEST_MAX,
    }
}

fn too_many_windows(table: &Table) -> Error {
    let most = windows_max(table);
    let (message, help) = match table.partitioning {
        Partitioning::Value { .. } => (
            format!(
                "the rows have more than {most} values of the partition key, and '{}' has a partition for each",
                table.name
            ),
            "make a table with PARTITION BY HASH or RANGE: its partitions hold many values",
        ),
        _ => (
            format!("the rows lie in more than {most} windows of '{}' that do not exist yet", table.name),
            "send rows that lie closer together, or give the table wider windows: ALTER TABLE … SET (partition_size_hint = …)",
        ),
    };
    Error::new(ErrorCode::LimitExceeded, message).with_help(help)
}

/// Cuts rows so that no piece has more bytes than one write may have, and leaves out columns that hold nothing.
///
/// A resend is cut in the same places, through whichever door it comes: rows are weighed by what their fingerprint is made of.
fn chunks(table: &Table, rows: &RecordBatch) -> Result<Vec<RecordBatch>> {
    let weighed = contents_of(&table.schema, rows)?;
    let wanted = batch_bytes(&weighed).div_ceil(WRITE_BYTES_MAX / 2).max(1);
    let length = rows.num_rows().div_ceil(wanted).max(1);
    let (mut pieces, mut start) = (Vec::with_capacity(wanted), 0);
    while start < rows.num_rows() {
        let next = weighed.slice(start, length.min(rows.num_rows() - start));
        let piece = rows.slice(start, rows_within(&next, WRITE_BYTES_MAX));
        start += piece.num_rows();
        pieces.push(held_columns(&piece)?);
    }
    Ok(pieces)
}

fn internal(error: arrow::error::ArrowError) -> Error {
    Error::internal(error.to_string())
}
