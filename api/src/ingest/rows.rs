//! Rows of a text becoming batches: each is checked whole, then appended whole.

use arrow::array::{ArrayRef, RecordBatch};
use shoal_kernel::{Error, Result};

use super::cell::{Cell, Scalar, convert};
use super::column::{ColumnBuilder, nested};
use super::{
    BATCH_ROWS, Bounds, Decoded, ERRORS_REPORTED_MAX, OnError, RowError, RowErrorCode, Target, too_large_decoded,
};

/// Where checked rows go.
pub(super) struct Rows {
    target: Target,
    on_error: OnError,
    bounds: Bounds,
    builders: Vec<ColumnBuilder>,
    /// Columns that some row has given a value or null for.
    present: Vec<bool>,
    pending: usize,
    decoded_bytes: usize,
    decoded: Decoded,
}

impl Rows {
    pub(super) fn new(target: Target, on_error: OnError, bounds: Bounds) -> Self {
        let builders = target.columns().iter().map(|column| ColumnBuilder::new(&column.data_type)).collect();
        let present = vec![false; target.columns().len()];
        Self { target, on_error, bounds, builders, present, pending: 0, decoded_bytes: 0, decoded: Decoded::default() }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Notes a row that was not even a row.
    pub(super) fn reject(&mut self, error: RowError) {
        self.decoded.rejected += 1;
        if self.decoded.errors.len() < ERRORS_REPORTED_MAX {
            self.decoded.errors.push(error);
        }
    }

    /// Takes a row: for each column in the table's order its cell, if it has one. The cells are empty afterwards.
    pub(super) fn push(&mut self, line: u64, cells: &mut [Option<Cell<'_>>]) -> Result<()> {
        let scalars = match self.check(line, cells) {
            Ok(scalars) => scalars,
            Err(error) => {
                self.reject(error);
                return Ok(());
            }
        };
        // Nothing of a request with a bad row is written, so its other rows are only checked.
        if self.decoded.rejected > 0 && self.on_error == OnError::Fail {
            return Ok(());
        }
        for ((builder, present), scalar) in self.builders.iter_mut().zip(&mut self.present).zip(scalars) {
            *present |= scalar.is_some();
            builder.append(scalar.unwrap_or(Scalar::Null));
        }
        self.pending += 1;
        self.decoded.rows += 1;
        if self.pending >= BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn check<'a>(
        &self,
        line: u64,
        cells: &mut [Option<Cell<'a>>],
    ) -> std::result::Result<Vec<Option<Scalar<'a>>>, RowError> {
        let mut scalars = Vec::with_capacity(cells.len());
        for (column, cell) in self.target.columns().iter().zip(cells) {
            let refuse = |code, message| RowError { line, column: Some(column.name.clone()), code, message };
            let Some(cell) = cell.take() else {
                if !column.nullable && !column.filled {
                    let message = format!("column '{}' is missing and may not be null", column.name);
                    return Err(refuse(RowErrorCode::MissingColumn, message));
                }
                scalars.push(None);
                continue;
            };
            let scalar = convert(cell, &column.data_type)
                .map_err(|(code, message)| refuse(code, format!("column '{}': {message}", column.name)))?;
            match &scalar {
                Scalar::Null if !column.nullable && !column.filled => {
                    let message = format!("column '{}' may not be null", column.name);
                    return Err(refuse(RowErrorCode::NullValue, message));
                }
                Scalar::Nested(value) => {
                    nested(&column.data_type, std::slice::from_ref(value)).map_err(|error| {
                        let message = format!("column '{}': {error}", column.name);
                        refuse(RowErrorCode::WrongType, message)
                    })?;
                }
                _ => {}
            }
            scalars.push(Some(scalar));
        }
        Ok(scalars)
    }

    fn flush(&mut self) -> Result<()> {
        if std::mem::take(&mut self.pending) == 0 {
            return Ok(());
        }
        let columns: Vec<ArrayRef> = self
            .builders
            .iter_mut()
            .map(ColumnBuilder::finish)
            .collect::<std::result::Result<_, _>>()
            .map_err(internal)?;
        let batch = RecordBatch::try_new(self.target.schema(), columns).map_err(internal)?;
        self.decoded_bytes += batch.get_array_memory_size();
        if self.decoded_bytes > self.bounds.decoded_bytes_max {
            return Err(too_large_decoded(&self.bounds));
        }
        self.decoded.batches.push(batch);
        Ok(())
    }

    pub(super) fn take_batches(&mut self) -> Vec<RecordBatch> {
        let batches = std::mem::take(&mut self.decoded.batches);
        // Those who take batches as they come hold what they take; the bound is about what is held here.
        self.decoded_bytes = 0;
        batches
    }

    pub(super) fn finish(mut self) -> Result<Decoded> {
        self.flush()?;
        let absent = |(column, present): (&super::TargetColumn, &bool)| column.filled && !present;
        if self.target.columns().iter().zip(&self.present).any(absent) {
            // A column that no row names is left to the node altogether.
            let kept: Vec<usize> = self
                .target
                .columns()
                .iter()
                .zip(&self.present)
                .enumerate()
                .filter_map(|(place, pair)| (!absent(pair)).then_some(place))
                .collect();
            for batch in &mut self.decoded.batches {
                *batch = batch.project(&kept).map_err(internal)?;
            }
        }
        Ok(self.decoded)
    }
}

fn internal(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("checked rows did not make a batch: {error}"))
}
