//! Rows for a schemaless table: what they hold decides what columns it has.
//!
//! A body is read whole. If the table's columns take it as they are, that is all. Else it is looked through first: what is
//! no row is refused with its line, and if columns are missing or too narrow, the change is named and nothing is read any further:
//! it must be agreed on, and somebody else may have been faster, so the caller comes back with the table as it is then.

mod columns;
mod shape;
mod text;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use bytes::Bytes;
use shoal_catalog::{NewTable, Table};
use shoal_kernel::{Error, ErrorCode, Result, SchemaChange};

use self::columns::{Columns, blank};
use self::shape::Shape;
use super::adapt::array_takes;
use super::{
    Bounds, Decoded, ERRORS_REPORTED_MAX, InputFormat, OnError, RowError, Target, arrow as stream, decoder, parquet,
};

/// A body that has come whole.
#[derive(Debug, Clone)]
pub struct Body {
    /// Its format.
    pub format: InputFormat,
    /// Its bytes.
    pub bytes: Bytes,
    /// What becomes of it if a row is bad.
    pub on_error: OnError,
    /// Its bounds.
    pub bounds: Bounds,
}

/// What is to be done next with a body.
#[derive(Debug)]
pub enum Step {
    /// Write the rows, under this definition: the table's, with columns in the forms that the rows are in.
    Write(Arc<Table>, Decoded),
    /// There is no row, and no table either.
    Nothing,
    /// Have the table made, and come back.
    Create(NewTable),
    /// Have the table changed, and come back.
    Alter(Vec<SchemaChange>),
    /// Some rows are no rows.
    Refuse(Decoded),
}

/// Looks at a body and at the table as it is now, if it is there.
///
/// # Errors
/// The body as a whole is no good, or a column cannot take a value.
pub fn step(body: &Body, name: &str, table: Option<&Arc<Table>>) -> Result<Step> {
    if let Some(table) = table
        && table.schema.retired.iter().all(|old| old.into.is_none())
    {
        match decode(body, Target::taking_all(table, std::iter::empty())) {
            Ok(decoded) if decoded.rejected == 0 => return Ok(Step::Write(table.clone(), decoded)),
            // No change of the table makes it shorter.
            Err(error) if error.code() == ErrorCode::LimitExceeded => return Err(error),
            _ => {}
        }
    }
    let columnar = matches!(body.format, InputFormat::Arrow | InputFormat::Parquet);
    let blank = table.is_none().then(|| blank(name));
    let Some(known) = table.map(AsRef::as_ref).or(blank.as_ref()) else { return Ok(Step::Nothing) };
    let mut look = Look { columns: Columns::of(&known.schema, columnar), rows: 0, refused: Decoded::default() };
    match body.format {
        InputFormat::Ndjson => text::ndjson(body, &mut look)?,
        InputFormat::Csv => text::csv(body, &mut look)?,
        InputFormat::Arrow => stream::batches(&body.bytes)?.iter().try_for_each(|batch| look.batch(batch))?,
        InputFormat::Parquet => parquet::batches(&body.bytes)?.iter().try_for_each(|batch| look.batch(batch))?,
    }
    let Look { columns, rows, refused } = look;
    if refused.rejected > 0 && body.on_error == OnError::Fail {
        return Ok(Step::Refuse(refused));
    }
    let Some(table) = table else {
        if rows == 0 {
            return Ok(Step::Nothing);
        }
        return Ok(Step::Create(NewTable {
            name: name.to_owned(),
            schema: columns.new_schema(&known.schema)?,
            partitioning: known.partitioning.clone(),
            split_points: Vec::new(),
            options: known.options.clone(),
            if_not_exists: true,
        }));
    };
    let changes = columns.changes(&table.schema)?;
    if !changes.is_empty() {
        return Ok(Step::Alter(changes));
    }
    let written_as = columns.written_as(table);
    let decoded = decode(body, columns.target(&written_as))?;
    match decoded.rejected > 0 && body.on_error == OnError::Fail {
        true => Ok(Step::Refuse(decoded)),
        false => Ok(Step::Write(Arc::new(written_as), decoded)),
    }
}

fn decode(body: &Body, target: Target) -> Result<Decoded> {
    let mut decoder = decoder(body.format, target, body.on_error, body.bounds);
    decoder.push(body.bytes.clone())?;
    let mut decoded = decoder.finish()?;
    for batch in &mut decoded.batches {
        let schema = batch.schema();
        let kept: Vec<usize> =
            (0..batch.num_columns()).filter(|place| *schema.field(*place).data_type() != DataType::Null).collect();
        *batch = batch.project(&kept).map_err(|error| Error::internal(format!("rows lost their columns: {error}")))?;
    }
    Ok(decoded)
}

/// What has been seen of a body.
struct Look {
    columns: Columns,
    rows: u64,
    refused: Decoded,
}

impl Look {
    fn refuse(&mut self, error: RowError) {
        self.refused.rejected += 1;
        if self.refused.errors.len() < ERRORS_REPORTED_MAX {
            self.refused.errors.push(error);
        }
    }

    /// Columns of a columnar body: their types say most, and the values whether the table's columns take them.
    fn batch(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        let mut given = BTreeSet::new();
        for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
            let place =
                self.columns.place(field.name()).map_err(|(_, message)| Error::new(ErrorCode::InvalidRows, message))?;
            if !given.insert(place) {
                let message = format!("column '{}' is given twice", field.name());
                return Err(Error::new(ErrorCode::InvalidRequest, message));
            }
            self.array(place, array);
        }
        Ok(())
    }

    fn array(&mut self, place: usize, array: &ArrayRef) {
        let seen = self.columns.seen(place);
        if seen.is_fixed || array.logical_null_count() == array.len() {
            return;
        }
        for form in seen.forms.iter_mut().filter(|form| form.takes) {
            form.takes = array_takes(array, &form.data_type);
        }
        let known = std::mem::replace(&mut seen.shape, Shape::Nothing);
        seen.shape = known.join(Shape::of_type(array.data_type()));
    }
}

#[cfg(test)]
mod tests;
