//! Columnar rows: columns are matched by name and cast where nothing can be lost; what does not fit is found row by row.

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, SchemaRef};
use shoal_kernel::{Error, ErrorCode, Result};

use super::{
    Bounds, Decoded, ERRORS_REPORTED_MAX, OnError, RowError, RowErrorCode, Target, TargetColumn, too_large_decoded,
};

/// Where columnar rows go.
pub(super) struct Adapter {
    target: Target,
    on_error: OnError,
    bounds: Bounds,
    decoded_bytes: usize,
    seen: u64,
    decoded: Decoded,
}

impl Adapter {
    pub(super) fn new(target: Target, on_error: OnError, bounds: Bounds) -> Self {
        Self { target, on_error, bounds, decoded_bytes: 0, seen: 0, decoded: Decoded::default() }
    }

    /// Whether a body with these columns can be taken at all.
    pub(super) fn check(&self, schema: &SchemaRef) -> Result<()> {
        let mut given = std::collections::BTreeSet::new();
        for field in schema.fields() {
            let Some(place) = self.target.place(field.name()) else {
                return Err(Error::new(ErrorCode::UnknownColumn, self.target.unknown(field.name())));
            };
            let column = &self.target.columns()[place];
            if !given.insert(place) {
                let message = format!("column '{}' is given twice", column.name);
                return Err(Error::new(ErrorCode::InvalidRequest, message));
            }
            if !takes_type(field.data_type(), column) {
                let (from, to) =
                    (crate::format::type_name(field.data_type()), crate::format::type_name(&column.data_type));
                return Err(Error::new(
                    ErrorCode::InvalidRows,
                    format!(
                        "column '{}' is {to}; the body has {from}, which does not turn into it without loss",
                        column.name
                    ),
                ));
            }
        }
        let missing = self
            .target
            .columns()
            .iter()
            .enumerate()
            .find(|(place, column)| !given.contains(place) && !column.nullable && !column.filled);
        missing.map_or(Ok(()), |(_, column)| {
            let message = format!("the body lacks column '{}', which may not be null", column.name);
            Err(Error::new(ErrorCode::InvalidRows, message))
        })
    }

    pub(super) fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let rows = batch.num_rows();
        let mut bad: Vec<Option<RowError>> = (0..rows).map(|_| None).collect();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.target.columns().len());
        let mut fields = Vec::with_capacity(columns.capacity());
        let schema = self.target.schema();
        let given = batch.schema();
        for (place, column) in self.target.columns().iter().enumerate() {
            let source = given.fields().iter().position(|field| self.target.place(field.name()) == Some(place));
            let Some(source) = source else {
                if !column.filled {
                    columns.push(new_null_array(&column.data_type, rows));
                    fields.push(schema.field(place).clone());
                }
                continue;
            };
            let array = batch.column(source);
            if column.data_type == DataType::Null {
                // Nothing but nulls, as was seen before.
                columns.push(new_null_array(&DataType::Null, rows));
                fields.push(schema.field(place).clone());
                continue;
            }
            let options = CastOptions { safe: true, ..CastOptions::default() };
            let cast = cast_with_options(array, &column.data_type, &options)
                .map_err(|error| Error::new(ErrorCode::InvalidRows, format!("column '{}': {error}", column.name)))?;
            let before = array.logical_nulls();
            let after = cast.logical_nulls();
            if after.as_ref().map_or(0, |nulls| nulls.null_count()) > 0 {
                for (row, slot) in bad.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
                    let was_null = before.as_ref().is_some_and(|nulls| nulls.is_null(row));
                    let is_null = after.as_ref().is_some_and(|nulls| nulls.is_null(row));
                    let (code, what) = match (was_null, is_null) {
                        (true, true) if !column.nullable && !column.filled => {
                            (RowErrorCode::NullValue, "may not be null")
                        }
                        (false, true) => (RowErrorCode::OutOfRange, "does not fit the column's type"),
                        _ => continue,
                    };
                    let line = self.seen + row as u64 + 1;
                    let message = format!("column '{}' {what}", column.name);
                    *slot = Some(RowError { line, column: Some(column.name.clone()), code, message });
                }
            }
            columns.push(cast);
            fields.push(schema.field(place).clone());
        }
        self.seen += rows as u64;
        let good: BooleanArray = bad.iter().map(|error| Some(error.is_none())).collect();
        let rejected = bad.iter().flatten().count() as u64;
        self.decoded.rejected += rejected;
        let room = ERRORS_REPORTED_MAX - self.decoded.errors.len();
        self.decoded.errors.extend(bad.into_iter().flatten().take(room));
        if self.decoded.rejected > 0 && self.on_error == OnError::Fail {
            return Ok(());
        }
        let internal = |error| Error::internal(format!("checked rows did not make a batch: {error}"));
        let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(fields));
        let kept = if rejected == 0 {
            RecordBatch::try_new(schema, columns).map_err(internal)?
        } else {
            // Rows that are left out may hold nulls that the schema forbids: filter column by column first.
            let filtered = columns
                .iter()
                .map(|column| arrow::compute::filter(column, &good))
                .collect::<std::result::Result<Vec<_>, _>>()
                .map_err(internal)?;
            RecordBatch::try_new(schema, filtered).map_err(internal)?
        };
        if kept.num_rows() == 0 {
            return Ok(());
        }
        self.decoded_bytes += kept.get_array_memory_size();
        if self.decoded_bytes > self.bounds.decoded_bytes_max {
            return Err(too_large_decoded(&self.bounds));
        }
        self.decoded.rows += kept.num_rows() as u64;
        self.decoded.batches.push(kept);
        Ok(())
    }

    pub(super) fn take_batches(&mut self) -> Vec<RecordBatch> {
        self.decoded_bytes = 0;
        std::mem::take(&mut self.decoded.batches)
    }

    pub(super) fn finish(self) -> Decoded {
        self.decoded
    }
}

fn takes_type(from: &DataType, column: &TargetColumn) -> bool {
    column.data_type == DataType::Null
        || castable(from, &column.data_type)
        || column.takes_all && becomes_text(from, &column.data_type)
}

/// Whether a column of text takes such values although they are none.
fn becomes_text(from: &DataType, to: &DataType) -> bool {
    *to == DataType::Utf8
        && (from.is_numeric()
            || from.is_temporal() && !matches!(from, DataType::Duration(_))
            || *from == DataType::Boolean)
}

/// Whether a column of a schemaless table takes all of these values as they are.
pub(super) fn array_takes(array: &ArrayRef, to: &DataType) -> bool {
    let from = array.data_type();
    if !castable(from, to) && !becomes_text(from, to) {
        return false;
    }
    let options = CastOptions { safe: true, ..CastOptions::default() };
    cast_with_options(array, to, &options).is_ok_and(|cast| cast.logical_null_count() == array.logical_null_count())
}

/// Whether every value of one type that fits the other means the same there. Finer time stamps lose what is below their
/// unit, as the table has it coarser; nothing else is rounded.
fn castable(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Date32, Date64, Decimal128, Dictionary, FixedSizeBinary, Float32, Float64, LargeBinary,
        LargeList, LargeUtf8, List, Null, Struct, Timestamp, Utf8, Utf8View,
    };
    if from == to {
        return true;
    }
    match (from, to) {
        (Null, _) => true,
        (Dictionary(_, values), to) => castable(values, to),
        (LargeUtf8 | Utf8View, Utf8) | (LargeBinary | BinaryView | FixedSizeBinary(_), Binary) => true,
        (from, to) if from.is_integer() && to.is_integer() => true,
        (from, Float32 | Float64 | Decimal128(..)) if from.is_integer() => true,
        (Float32 | Float64 | DataType::Float16, Float32 | Float64) => true,
        (Decimal128(_, from), Decimal128(_, to)) => from <= to,
        (
            DataType::Decimal32(_, from) | DataType::Decimal64(_, from) | DataType::Decimal256(_, from),
            Decimal128(_, to),
        ) => from <= to,
        (Timestamp(..) | Date32 | Date64, Timestamp(..)) | (Date64, Date32) => true,
        (DataType::Time32(_) | DataType::Time64(_), DataType::Time64(_)) => true,
        (List(from) | LargeList(from) | DataType::FixedSizeList(from, _), List(to)) => {
            castable(from.data_type(), to.data_type())
        }
        (Struct(from), Struct(to)) => {
            from.len() == to.len()
                && from
                    .iter()
                    .zip(to)
                    .all(|(from, to)| from.name() == to.name() && castable(from.data_type(), to.data_type()))
        }
        _ => false,
    }
}
