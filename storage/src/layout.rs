//! The table's schema as the store uses it inside.
//!
//! A stored column never changes its type. A column that was widened is a new one that shows the values of its older forms,
//! converted when they are read, and a value that comes later is stored in the oldest form that holds it exactly ([`crate::narrow`]); of a dropped column of an event table the values stay, for they are part of what identifies a
//! row. So rows mean the same under every version of the schema, wherever they lie.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::{Date32Type, TimestampMicrosecondType};
use arrow::array::{
    Array, ArrayRef, ListArray, RecordBatch, RecordBatchOptions, StringBuilder, StructArray, new_null_array,
};
use arrow::compute::{cast, is_not_null};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, make_encoder};
use serde::{Deserialize, Serialize};
use shoal_kernel::key::value_end;
use shoal_kernel::schema::numbered_field;
use shoal_kernel::{ColumnId, Error, ErrorCode, Result, TableSchema};

use crate::hash::content_hashes;
use crate::key::{encoded_width, is_ordered};
use crate::narrow::split_off;

/// Microseconds of a day.
pub(crate) const DAY_MICROS: i64 = 86_400_000_000;

/// A column as it stood when a file was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredColumn {
    pub(crate) id: ColumnId,
    pub(crate) data_type: DataType,
}

/// The schema, with what is derived from it.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) schema: Arc<TableSchema>,
    /// What rows are stored as: the table's columns in its order, then the retired ones.
    pub(crate) stored: Vec<StoredColumn>,
    /// Places of stored columns that have older forms, with the places of these. Both oldest first: what has been moved is not
    /// looked at again.
    widened: Vec<(usize, Vec<usize>)>,
    /// Of each column of the table, places of its older forms among the stored columns, latest first.
    older: Vec<Vec<usize>>,
    /// As users see it.
    pub(crate) visible: SchemaRef,
    /// The stored columns, all nullable: tombstones hold only their key.
    pub(crate) relaxed: SchemaRef,
    /// Places of the key's columns, in key order.
    pub(crate) key: Vec<usize>,
}

impl Layout {
    pub(crate) fn new(schema: Arc<TableSchema>) -> Result<Self> {
        let visible = schema.arrow();
        let named = schema.columns.iter().map(|column| (column.name.as_str(), column.id, &column.data_type));
        let unnamed = schema.stored_retired().map(|retired| ("", retired.id, &retired.data_type));
        let all: Vec<_> = named.chain(unnamed).collect();
        let field = |(name, id, data_type): &(&str, ColumnId, &DataType)| numbered_field(name, data_type, true, *id);
        let relaxed = Arc::new(Schema::new(all.iter().map(field).collect::<Vec<_>>()));
        let stored: Vec<StoredColumn> =
            all.iter().map(|(_, id, data_type)| StoredColumn { id: *id, data_type: (*data_type).clone() }).collect();
        let place = |id: ColumnId| stored.iter().position(|column| column.id == id);
        let older = |column: &shoal_kernel::Column| schema.older(column.id).filter_map(|old| place(old.id)).collect();
        let older = schema.columns.iter().map(older).collect();
        let forms_before =
            |column: &StoredColumn| schema.forms_before(column.id).filter_map(|old| place(old.id)).collect();
        let forms: Vec<Vec<usize>> = stored.iter().map(forms_before).collect();
        let mut widened: Vec<_> = forms.into_iter().enumerate().filter(|(_, forms)| !forms.is_empty()).collect();
        widened.sort_by_key(|(place, _)| stored[*place].id);
        let key = schema.key_indices();
        let wanted = match &schema.kind {
            shoal_kernel::TableKind::Upsert { primary_key } => primary_key.len(),
            shoal_kernel::TableKind::Event => 2,
        };
        if key.is_empty() || key.len() != wanted {
            return Err(Error::new(ErrorCode::InvalidStatement, "the table's key names columns that it does not have"));
        }
        if let Some(column) = key.iter().map(|&at| &schema.columns[at]).find(|column| !is_ordered(&column.data_type)) {
            let message = format!("column '{}' of type {} cannot be part of a key", column.name, column.data_type);
            return Err(Error::new(ErrorCode::Unsupported, message));
        }
        let layout = Self { schema, stored, widened, older, visible, relaxed, key };
        // Fails for a column whose values have no hash, before the first row is taken.
        content_hashes(&layout.with_ids(RecordBatch::new_empty(layout.relaxed.clone()).columns()), 0)?;
        Ok(layout)
    }

    /// The place of the column of time that rows are sorted by first, if they are.
    pub(crate) fn time_order(&self) -> Option<usize> {
        let first = *self.key.first()?;
        let is_time = matches!(self.schema.columns[first].data_type, DataType::Timestamp(TimeUnit::Microsecond, _));
        is_time.then_some(first)
    }

    /// Of a table of which nothing is known, to read files by what they say of themselves.
    pub(crate) fn unknown() -> Self {
        let kind = shoal_kernel::TableKind::Upsert { primary_key: Vec::new() };
        let schema = Arc::new(TableSchema::new(Vec::new(), kind));
        let visible = schema.arrow();
        Self {
            schema,
            stored: Vec::new(),
            widened: Vec::new(),
            older: Vec::new(),
            relaxed: visible.clone(),
            visible,
            key: Vec::new(),
        }
    }

    /// The place of a column among the stored ones. `None` if it was dropped without a trace.
    ///
    /// # Errors
    /// [`ErrorCode::Moved`] if the column came with a schema that this store has not heard of.
    pub(crate) fn place(&self, id: ColumnId) -> Result<Option<usize>> {
        if id >= self.schema.next_column {
            let version = self.schema.version;
            let message = format!("column {} came after version {version} of the schema, the newest known here", id.0);
            return Err(Error::new(ErrorCode::Moved, message));
        }
        Ok(self.stored.iter().position(|column| column.id == id))
    }

    /// The place of a column of the table, for a reader that knows it by its number.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownColumn`]; [`ErrorCode::SchemaChanged`] if it was dropped or widened.
    pub(crate) fn visible_place(&self, id: ColumnId) -> Result<usize> {
        if let Some(place) = self.schema.index_of(id) {
            return Ok(place);
        }
        if id < self.schema.next_column {
            let message = "a column that this request reads has been dropped or widened meanwhile";
            return Err(Error::new(ErrorCode::SchemaChanged, message).with_help("send it again"));
        }
        Err(Error::new(ErrorCode::UnknownColumn, format!("the table has no column with id {}", id.0)))
    }

    /// Places of the older forms of a column of the table among the stored columns, latest first.
    pub(crate) fn older(&self, place: usize) -> &[usize] {
        &self.older[place]
    }

    /// The encoded key columns at the beginning of what identifies a row: the content hash of events is cut off.
    pub(crate) fn key_of_identity<'a>(&self, identity: &'a [u8]) -> &'a [u8] {
        if self.schema.is_upsert() {
            return identity;
        }
        &identity[..identity.len().saturating_sub(size_of::<u128>())]
    }

    /// The first so many columns of an encoded key; `None` if it has fewer.
    pub(crate) fn key_prefix<'a>(&self, identity: &'a [u8], columns: usize) -> Option<&'a [u8]> {
        let mut end = 0;
        for &place in self.key.get(..columns)? {
            end += value_end(&identity[end..], encoded_width(&self.schema.columns[place].data_type))?;
        }
        Some(&identity[..end])
    }

    /// Pairs stored columns with their numbers.
    pub(crate) fn with_ids(&self, columns: &[ArrayRef]) -> Vec<(ColumnId, ArrayRef)> {
        self.stored.iter().map(|column| column.id).zip(columns.iter().cloned()).collect()
    }

    /// The same rows, each value in the oldest form of its column that holds it exactly.
    pub(crate) fn settled(&self, batch: RecordBatch) -> Result<RecordBatch> {
        if self.widened.is_empty() {
            return Ok(batch);
        }
        let rows = batch.num_rows();
        let mut columns = batch.columns().to_vec();
        for (place, older) in &self.widened {
            for form in older {
                if let Some((moved, left)) = split_off(&columns[*place], &self.stored[*form].data_type)? {
                    // A row has a value in one form at most.
                    columns[*form] = fill(columns[*form].clone(), &moved)?;
                    columns[*place] = left;
                }
            }
        }
        self.batch(columns, rows)
    }

    /// A batch of all stored columns.
    pub(crate) fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.relaxed.clone(), columns, &options)
            .map_err(|error| Error::internal(format!("columns do not fit the table: {error}")))
    }

    /// Brings columns that were stored under another version of the schema into the order of this one. What was not there is
    /// NULL.
    pub(crate) fn adapt(&self, stored: &[(ColumnId, ArrayRef)], rows: usize) -> Result<RecordBatch> {
        let column = |column: &StoredColumn| match stored.iter().find(|(id, _)| *id == column.id) {
            Some((_, array)) if *array.data_type() == column.data_type => Ok(array.clone()),
            Some((_, array)) => {
                let (id, wanted, found) = (column.id.0, &column.data_type, array.data_type());
                let message = format!("column {id} is of type {wanted}, and was stored as {found}");
                Err(Error::new(ErrorCode::Corruption, message))
            }
            None => Ok(new_null_array(&column.data_type, rows)),
        };
        self.batch(self.stored.iter().map(column).collect::<Result<_>>()?, rows)
    }

    /// A column of the table as its readers see it, out of a batch of all stored columns.
    pub(crate) fn column_of(&self, batch: &RecordBatch, place: usize) -> Result<ArrayRef> {
        let mut older = self.older[place].iter().map(|place| batch.column(*place));
        older.try_fold(batch.column(place).clone(), fill)
    }
}

/// Puts the values of an older form of a column, converted, where the newer one has none.
pub(crate) fn fill(newer: ArrayRef, older: &ArrayRef) -> Result<ArrayRef> {
    if newer.null_count() == 0 || older.null_count() == older.len() {
        return Ok(newer);
    }
    let converted = convert(older, newer.data_type())?;
    if newer.null_count() == newer.len() {
        return Ok(converted);
    }
    let given = is_not_null(&newer).map_err(|error| unreadable(older, newer.data_type(), &error))?;
    let filled = arrow::compute::kernels::zip::zip(&given, &newer, &converted);
    filled.map_err(|error| unreadable(older, newer.data_type(), &error))
}

fn unreadable(older: &ArrayRef, wanted: &DataType, error: &ArrowError) -> Error {
    let from = older.data_type();
    Error::new(ErrorCode::Unsupported, format!("a stored column of type {from} cannot be read as {wanted}: {error}"))
}

/// Every value has one there, also one that no calendar has a word for: whoever wrote it must not take the column from its
/// readers.
pub(crate) fn convert(older: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    if older.data_type() == wanted {
        return Ok(older.clone());
    }
    if older.data_type().is_nested() {
        return convert_nested(older, wanted);
    }
    match cast(older, wanted) {
        Ok(converted) if converted.null_count() == older.null_count() => Ok(converted),
        _ => convert_extremes(older, wanted).map_err(|error| unreadable(older, wanted, &error)),
    }
}

/// Values that have no counterpart become the nearest one; as text, the number that they are stored as.
fn convert_extremes(older: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, ArrowError> {
    match (older.data_type(), wanted) {
        (DataType::Date32, DataType::Timestamp(TimeUnit::Microsecond, None)) => {
            let days = older.as_primitive::<Date32Type>();
            let micros = |days: i32| i64::from(days).saturating_mul(DAY_MICROS);
            Ok(Arc::new(days.unary::<_, TimestampMicrosecondType>(micros)))
        }
        (from, DataType::Utf8) if from.is_temporal() => {
            let stored = match from.primitive_width() {
                Some(4) => cast(&cast(older, &DataType::Int32)?, wanted)?,
                _ => cast(&cast(older, &DataType::Int64)?, wanted)?,
            };
            let stored = stored.as_string::<i32>();
            let mut texts = StringBuilder::with_capacity(older.len(), 0);
            for row in 0..older.len() {
                match cast(&older.slice(row, 1), wanted) {
                    Ok(text) => texts.append_option(text.as_string::<i32>().iter().next().flatten()),
                    Err(_) => texts.append_value(stored.value(row)),
                }
            }
            Ok(Arc::new(texts.finish()))
        }
        _ => cast(older, wanted),
    }
}

/// Lists and structs: what lies in them is converted, fields are found by name, and as text they are JSON.
fn convert_nested(older: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    let failed = |error: ArrowError| unreadable(older, wanted, &error);
    match (older.data_type(), wanted) {
        (DataType::List(_), DataType::List(item)) => {
            let list = older.as_list::<i32>();
            let values = convert(list.values(), item.data_type())?;
            let converted = ListArray::try_new(item.clone(), list.offsets().clone(), values, list.nulls().cloned());
            Ok(Arc::new(converted.map_err(failed)?))
        }
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let parts = older.as_struct();
            let column = |field: &FieldRef| match parts.column_by_name(field.name()) {
                Some(column) => convert(column, field.data_type()),
                None => Ok(new_null_array(field.data_type(), parts.len())),
            };
            let columns = fields.iter().map(column).collect::<Result<Vec<_>>>()?;
            let nulls = parts.nulls().cloned();
            let converted = StructArray::try_new_with_length(fields.clone(), columns, nulls, parts.len());
            Ok(Arc::new(converted.map_err(failed)?))
        }
        (_, DataType::Utf8) => json_text(older).map_err(failed),
        _ => cast(older, wanted).map_err(failed),
    }
}

/// Lists and structs as JSON. Fields that are NULL are left out.
fn json_text(values: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let field = Arc::new(Field::new("value", values.data_type().clone(), true));
    let options = EncoderOptions::default();
    let mut encoder = make_encoder(&field, values, &options)?;
    let mut texts = StringBuilder::new();
    let mut text = Vec::new();
    for row in 0..values.len() {
        if values.is_null(row) {
            texts.append_null();
            continue;
        }
        text.clear();
        encoder.encode(row, &mut text);
        if texts.values_slice().len() + text.len() > i32::MAX as usize {
            return Err(ArrowError::OffsetOverflowError(texts.values_slice().len() + text.len()));
        }
        texts.append_value(String::from_utf8_lossy(&text));
    }
    Ok(Arc::new(texts.finish()))
}

/// Bytes of a fixed-size value, and values of a fixed-size list.
const FIXED_WIDTH_MAX: i32 = 1 << 20;

/// Whether a column of that type can have been stored: what a file says of its columns is believed no further.
pub(crate) fn is_storable(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null => true,
        DataType::List(field) | DataType::LargeList(field) => is_storable(field.data_type()),
        DataType::FixedSizeList(field, width) => {
            (0..=FIXED_WIDTH_MAX).contains(width) && is_storable(field.data_type())
        }
        DataType::Map(field, _) => match field.data_type() {
            DataType::Struct(pair) => pair.len() == 2 && is_storable(field.data_type()),
            _ => false,
        },
        DataType::Struct(fields) => fields.iter().all(|field| is_storable(field.data_type())),
        DataType::FixedSizeBinary(width) => (0..=FIXED_WIDTH_MAX).contains(width),
        DataType::Time32(unit) => matches!(unit, TimeUnit::Second | TimeUnit::Millisecond),
        DataType::Time64(unit) => matches!(unit, TimeUnit::Microsecond | TimeUnit::Nanosecond),
        other => is_ordered(other),
    }
}
