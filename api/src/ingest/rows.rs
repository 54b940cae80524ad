//! Rows of a text becoming batches: each is checked whole, then appended whole.

use arrow::array::{ArrayRef, RecordBatch};
use shoal_kernel::limits::VALUE_BYTES_MAX;
use shoal_kernel::{Error, Result};

use super::cell::{Cell, Scalar, convert, convert_any};
use super::column::{ColumnBuilder, nested};
use super::{
    BATCH_BYTES_MAX, BATCH_ROWS, Bounds, Decoded, ERRORS_REPORTED_MAX, OnError, RowError, RowErrorCode, Target,
    too_large_decoded,
};

/// Where checked rows go.
pub(super) struct Rows {
    target: Target,
    on_error: OnError,
    bounds: Bounds,
    builders: Vec<ColumnBuilder>,
    /// Rows of the batch being made, and bytes that they had as text.
    pending: usize,
    pending_bytes: usize,
    decoded_bytes: usize,
    decoded: Decoded,
}

impl Rows {
    pub(super) fn new(target: Target, on_error: OnError, bounds: Bounds) -> Self {
        let builders = target.columns().iter().map(ColumnBuilder::new).collect();
        let decoded = Decoded::default();
        Self { target, on_error, bounds, builders, pending: 0, pending_bytes: 0, decoded_bytes: 0, decoded }
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

    /// Takes a good row of so many bytes of text without looking at its values twice: `tell` puts its cells, and returns `None`
    /// as [`NewRow::put`] does if the row cannot be taken so. Then `false` comes back, nothing of the row is there, and
    /// [`Rows::push`] finds out what is wrong, if anything.
    pub(super) fn push_good(
        &mut self,
        bytes: usize,
        tell: impl FnOnce(&Target, &mut NewRow<'_>) -> Option<()>,
    ) -> Result<bool> {
        if self.only_checks() {
            return Ok(false);
        }
        let mut row = NewRow { builders: &mut self.builders, before: self.pending };
        if tell(&self.target, &mut row).and_then(|()| row.leave_out_others()).is_none() {
            row.take_back();
            return Ok(false);
        }
        self.taken(bytes).map(|()| true)
    }

    /// Takes a row of so many bytes of text: for each column in the table's order its cell, if it has one. The cells are empty
    /// afterwards.
    pub(super) fn push(&mut self, line: u64, bytes: usize, cells: &mut [Option<Cell<'_>>]) -> Result<()> {
        let scalars = match self.check(line, cells) {
            Ok(scalars) => scalars,
            Err(error) => {
                self.reject(error);
                return Ok(());
            }
        };
        if self.only_checks() {
            return Ok(());
        }
        for (builder, scalar) in self.builders.iter_mut().zip(scalars) {
            match scalar {
                Some(scalar) => builder.append(scalar),
                None => builder.append_null(),
            }
        }
        self.taken(bytes)
    }

    /// Nothing of a request with a bad row is written, so its other rows are only checked.
    fn only_checks(&self) -> bool {
        self.decoded.rejected > 0 && self.on_error == OnError::Fail
    }

    fn taken(&mut self, bytes: usize) -> Result<()> {
        self.pending += 1;
        self.pending_bytes += bytes;
        self.decoded.rows += 1;
        if self.pending >= BATCH_ROWS || self.pending_bytes >= BATCH_BYTES_MAX { self.flush() } else { Ok(()) }
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
            let converted = match column.takes_all {
                true => convert_any(cell, &column.data_type),
                false => convert(cell, &column.data_type),
            };
            let scalar =
                converted.map_err(|(code, message)| refuse(code, format!("column '{}': {message}", column.name)))?;
            match &scalar {
                long if long.bytes() > VALUE_BYTES_MAX => {
                    let (name, bytes) = (&column.name, long.bytes());
                    let message = format!("column '{name}': {bytes} bytes, more than the {VALUE_BYTES_MAX} allowed");
                    return Err(refuse(RowErrorCode::OutOfRange, message));
                }
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
        self.pending_bytes = 0;
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

    pub(super) fn finish(self) -> Result<Decoded> {
        self.finish_part()?.finish()
    }

    pub(super) fn finish_part(mut self) -> Result<Part> {
        self.flush()?;
        let columns = self.target.columns().iter().zip(&self.builders);
        let given = columns.map(|(column, builder)| builder.present() || !column.filled).collect();
        Ok(Part { decoded: self.decoded, given, decoded_bytes: self.decoded_bytes })
    }
}

/// Rows of a body, or of a piece of it.
pub struct Part {
    decoded: Decoded,
    /// Which columns the rows have; the others are to be left to the node.
    given: Vec<bool>,
    decoded_bytes: usize,
}

impl Part {
    pub(super) fn finish(mut self) -> Result<Decoded> {
        if self.given.contains(&false) {
            let kept: Vec<usize> = (0..self.given.len()).filter(|place| self.given[*place]).collect();
            for batch in &mut self.decoded.batches {
                *batch = batch.project(&kept).map_err(internal)?;
            }
        }
        Ok(self.decoded)
    }
}

/// Pieces of a body, put together in their order.
pub struct Joined {
    bounds: Bounds,
    whole: Option<Part>,
}

impl Joined {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, whole: None }
    }

    /// Puts the next piece behind the others.
    ///
    /// # Errors
    /// All together are more than a body may have.
    pub fn add(&mut self, part: Part) -> Result<()> {
        let Some(whole) = &mut self.whole else {
            self.whole = Some(part);
            return Ok(());
        };
        whole.decoded_bytes += part.decoded_bytes;
        if whole.decoded_bytes > self.bounds.decoded_bytes_max {
            return Err(too_large_decoded(&self.bounds));
        }
        whole.given.iter_mut().zip(part.given).for_each(|(given, here)| *given |= here);
        let (decoded, more) = (&mut whole.decoded, part.decoded);
        decoded.batches.extend(more.batches);
        decoded.rows += more.rows;
        decoded.rejected += more.rejected;
        let room = ERRORS_REPORTED_MAX - decoded.errors.len();
        decoded.errors.extend(more.errors.into_iter().take(room));
        Ok(())
    }

    /// The whole body.
    ///
    /// # Errors
    /// Only if there is a fault in here.
    pub fn finish(self) -> Result<Decoded> {
        self.whole.map_or_else(|| Ok(Decoded::default()), Part::finish)
    }
}

/// A row that is being told.
pub(super) struct NewRow<'r> {
    builders: &'r mut [ColumnBuilder],
    /// Rows before it.
    before: usize,
}

impl NewRow<'_> {
    /// Puts the cell of a column, which must not stand twice.
    pub(super) fn put(&mut self, place: usize, cell: Cell<'_>) -> Option<()> {
        self.builders.get_mut(place).filter(|builder| builder.len() == self.before)?.append_good(cell)
    }

    fn leave_out_others(&mut self) -> Option<()> {
        let mut others = self.builders.iter_mut().filter(|builder| builder.len() == self.before);
        others.try_for_each(ColumnBuilder::leave_out)
    }

    fn take_back(&mut self) {
        self.builders.iter_mut().for_each(|builder| builder.truncate(self.before));
    }
}

fn internal(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("checked rows did not make a batch: {error}"))
}
