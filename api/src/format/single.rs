//! What formats with room for one table share: earlier statements may be commands; the table, or failing that the last
//! command as a table of one row, is the answer.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use shoal_actors::service::CommandDone;
use shoal_kernel::{Error, ErrorCode, Result};

#[derive(Default)]
pub(super) struct SingleTable {
    has_table: bool,
    command: Option<CommandDone>,
}

impl SingleTable {
    pub(super) fn begin_table(&mut self, format: &str) -> Result<()> {
        if std::mem::replace(&mut self.has_table, true) {
            return Err(Error::new(ErrorCode::Unsupported, format!("an answer in {format} has room for one table"))
                .with_help("send one SELECT at a time, or ask for json or ndjson"));
        }
        Ok(())
    }

    pub(super) fn command(&mut self, done: &CommandDone) {
        self.command = Some(done.clone());
    }

    /// The last command as a row, if there was no table.
    pub(super) fn command_row(&self) -> Result<Option<RecordBatch>> {
        let (false, Some(done)) = (self.has_table, &self.command) else {
            return Ok(None);
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![done.tag.as_str()])),
            Arc::new(UInt64Array::from(vec![done.rows])),
            Arc::new(StringArray::from(vec![done.level.map(|level| level.to_string())])),
            Arc::new(StringArray::from(vec![done.version.map(|version| version.to_string())])),
        ];
        let fields = vec![
            Field::new("tag", DataType::Utf8, false),
            Field::new("rows", DataType::UInt64, true),
            Field::new("level", DataType::Utf8, true),
            Field::new("version", DataType::Utf8, true),
        ];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map(Some).map_err(super::encoding)
    }
}
