//! RFC 4180 with a header line. NULL is an empty field and the empty string is `""`; nested values are JSON.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use shoal_actors::service::CommandDone;
use shoal_kernel::Result;

use super::single::SingleTable;
use super::{Encoder, RowForm, Told, Totals, encoding, write_rows};
use crate::http::problem::Problem;

#[derive(Default)]
pub(super) struct CsvEncoder {
    answer: SingleTable,
}

fn field(value: &str, out: &mut Vec<u8>) {
    let quote = value.is_empty() || value.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r'));
    if !quote {
        out.extend_from_slice(value.as_bytes());
        return;
    }
    out.push(b'"');
    for byte in value.bytes() {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn header(schema: &SchemaRef, out: &mut Vec<u8>) {
    for (place, column) in schema.fields().iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        field(column.name(), out);
    }
    out.extend_from_slice(b"\r\n");
}

/// A column with the way its values are written.
enum Column<'a> {
    Text(&'a arrow::array::StringArray),
    Plain(ArrayFormatter<'a>),
    Nested(RecordBatch),
}

fn column<'a>(batch: &'a RecordBatch, place: usize, options: &'a FormatOptions<'a>) -> Result<Column<'a>> {
    let array: &dyn Array = batch.column(place);
    Ok(match array.data_type() {
        DataType::Utf8 => Column::Text(array.as_string()),
        data_type if data_type.is_nested() => Column::Nested(batch.project(&[place]).map_err(encoding)?),
        _ => Column::Plain(ArrayFormatter::try_new(array, options).map_err(encoding)?),
    })
}

fn rows(batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
    let options = FormatOptions::new();
    let columns = (0..batch.num_columns()).map(|place| column(batch, place, &options)).collect::<Result<Vec<_>>>()?;
    let mut scratch = Vec::new();
    for row in 0..batch.num_rows() {
        for (place, column) in columns.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            // A column of the type NULL has no bits that say so.
            if batch.column(place).is_null(row) || batch.column(place).data_type() == &DataType::Null {
                continue;
            }
            match column {
                Column::Text(array) => field(array.value(row), out),
                Column::Plain(values) => field(&values.value(row).to_string(), out),
                Column::Nested(single) => {
                    scratch.clear();
                    write_rows(single, row..row + 1, RowForm::Array, b',', &mut scratch)?;
                    // The row is an array of one value; its brackets are not part of the value.
                    let value = &scratch[1..scratch.len() - 1];
                    field(&String::from_utf8_lossy(value), out);
                }
            }
        }
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

impl Encoder for CsvEncoder {
    fn schema(&mut self, schema: &SchemaRef, out: &mut Vec<u8>) -> Result<()> {
        self.answer.begin_table("csv")?;
        header(schema, out);
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        rows(batch, out)
    }

    fn table_end(&mut self, _out: &mut Vec<u8>) {}

    fn command(&mut self, done: &CommandDone, _out: &mut Vec<u8>) -> Result<()> {
        self.answer.command(done);
        Ok(())
    }

    fn end(&mut self, _totals: &Totals, out: &mut Vec<u8>) -> Result<()> {
        if let Some(row) = self.answer.command_row()? {
            header(&row.schema(), out);
            rows(&row, out)?;
        }
        Ok(())
    }

    fn error(&mut self, _problem: &Problem, _out: &mut Vec<u8>) -> Told {
        Told::ByCutting
    }
}
