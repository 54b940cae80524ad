//! An Arrow IPC stream: schema, batches, end-of-stream marker.

use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::StreamEncoder;
use arrow::record_batch::RecordBatch;
use shoal_actors::service::CommandDone;
use shoal_kernel::Result;

use super::single::SingleTable;
use super::{Encoder, Told, Totals, encoding};
use crate::http::problem::Problem;

#[derive(Default)]
pub(super) struct ArrowEncoder {
    answer: SingleTable,
    stream: Option<StreamEncoder>,
}

impl ArrowEncoder {
    fn begin(&mut self, schema: &SchemaRef, out: &mut Vec<u8>) -> Result<()> {
        let mut stream = StreamEncoder::try_new(schema).map_err(encoding)?;
        // An empty batch makes the encoder write the schema now, so that readers learn the columns before the first row.
        append(stream.encode(&RecordBatch::new_empty(schema.clone())).map_err(encoding)?, out);
        self.stream = Some(stream);
        Ok(())
    }

    fn write(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        if let Some(stream) = &mut self.stream {
            append(stream.encode(batch).map_err(encoding)?, out);
        }
        Ok(())
    }
}

fn append(buffers: Vec<arrow::buffer::Buffer>, out: &mut Vec<u8>) {
    for buffer in buffers {
        out.extend_from_slice(&buffer);
    }
}

impl Encoder for ArrowEncoder {
    fn schema(&mut self, schema: &SchemaRef, out: &mut Vec<u8>) -> Result<()> {
        self.answer.begin_table("arrow")?;
        self.begin(schema, out)
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        self.write(batch, out)
    }

    fn table_end(&mut self, _out: &mut Vec<u8>) {}

    fn command(&mut self, done: &CommandDone, _out: &mut Vec<u8>) -> Result<()> {
        self.answer.command(done);
        Ok(())
    }

    fn end(&mut self, _totals: &Totals, out: &mut Vec<u8>) -> Result<()> {
        if let Some(row) = self.answer.command_row()? {
            self.begin(&row.schema(), out)?;
            self.write(&row, out)?;
        }
        if let Some(stream) = self.stream.take() {
            append(stream.finish().map_err(encoding)?, out);
        }
        Ok(())
    }

    fn error(&mut self, _problem: &Problem, _out: &mut Vec<u8>) -> Told {
        Told::ByCutting
    }
}
