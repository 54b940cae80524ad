//! The table's schema as the store uses it inside.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};
use shoal_kernel::key::value_end;
use shoal_kernel::{ColumnId, Error, ErrorCode, Result, TableSchema};

use crate::hash::content_hashes;
use crate::key::{encoded_width, is_ordered};

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
    /// As users see it.
    pub(crate) visible: SchemaRef,
    /// The same columns, all nullable: tombstones hold only their key.
    pub(crate) relaxed: SchemaRef,
    /// Places of the key's columns, in key order.
    pub(crate) key: Vec<usize>,
}

impl Layout {
    pub(crate) fn new(schema: Arc<TableSchema>) -> Result<Self> {
        let visible = schema.arrow();
        let relaxed = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        let relaxed = Arc::new(Schema::new(visible.fields().iter().map(relaxed).collect::<Vec<_>>()));
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
        let layout = Self { schema, visible, relaxed, key };
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
        let schema = Arc::new(TableSchema { columns: Vec::new(), kind, version: 0 });
        let visible = schema.arrow();
        Self { schema, relaxed: visible.clone(), visible, key: Vec::new() }
    }

    pub(crate) fn stored_columns(&self) -> Vec<StoredColumn> {
        let stored =
            |column: &shoal_kernel::Column| StoredColumn { id: column.id, data_type: column.data_type.clone() };
        self.schema.columns.iter().map(stored).collect()
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

    /// Pairs columns in schema order with their ids.
    pub(crate) fn with_ids(&self, columns: &[ArrayRef]) -> Vec<(ColumnId, ArrayRef)> {
        self.schema.columns.iter().map(|column| column.id).zip(columns.iter().cloned()).collect()
    }

    /// A batch of all columns in schema order.
    pub(crate) fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.relaxed.clone(), columns, &options)
            .map_err(|error| Error::internal(format!("columns do not fit the table: {error}")))
    }

    /// Brings columns that were stored under another schema version into the present one: a column that was not there is
    /// NULL, a widened one is converted.
    pub(crate) fn adapt(&self, stored: &[(ColumnId, ArrayRef)], rows: usize) -> Result<RecordBatch> {
        let column = |column: &shoal_kernel::Column| match stored.iter().find(|(id, _)| *id == column.id) {
            Some((_, array)) => convert(array, &column.data_type),
            None => Ok(new_null_array(&column.data_type, rows)),
        };
        self.batch(self.schema.columns.iter().map(column).collect::<Result<_>>()?, rows)
    }
}

/// Converts a column to the type that the schema has now.
pub(crate) fn convert(array: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    if array.data_type() == wanted {
        return Ok(array.clone());
    }
    cast(array, wanted).map_err(|error| {
        let message = format!("a stored column of type {} cannot be read as {wanted}: {error}", array.data_type());
        Error::new(ErrorCode::Unsupported, message)
    })
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
