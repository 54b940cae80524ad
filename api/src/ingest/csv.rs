//! RFC 4180 with a header line that names columns in any order. An empty field is NULL, or the empty string in a text column
//! that may not be null.

use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use csv_core::{ReadRecordResult, Reader};
use shoal_kernel::{Error, ErrorCode, Result};

use super::cell::Cell;
use super::rows::Rows;
use super::{Bounds, Decoded, Decoder, OnError, RowError, RowErrorCode, Target, line_too_long};

pub(super) struct CsvDecoder {
    rows: Rows,
    reader: Reader,
    /// The record being read, across pushes.
    text: Vec<u8>,
    text_length: usize,
    ends: Vec<usize>,
    ends_length: usize,
    /// Line on which the record being read begins.
    line: u64,
    /// Whether it has an odd number of quotes so far.
    odd_quotes: bool,
    /// The body has ended.
    ended: bool,
    header: Option<Vec<usize>>,
    seen_bytes: bool,
}

impl CsvDecoder {
    pub(super) fn new(target: Target, on_error: OnError, bounds: Bounds) -> Self {
        Self {
            rows: Rows::new(target, on_error, bounds),
            reader: Reader::new(),
            text: vec![0; 4096],
            text_length: 0,
            ends: vec![0; 64],
            ends_length: 0,
            line: 1,
            odd_quotes: false,
            ended: false,
            header: None,
            seen_bytes: false,
        }
    }

    fn read(&mut self, mut input: &[u8]) -> Result<bool> {
        loop {
            let (result, read, written, ended) =
                self.reader.read_record(input, &mut self.text[self.text_length..], &mut self.ends[self.ends_length..]);
            let quotes = input[..read].iter().filter(|byte| **byte == b'"').count();
            self.odd_quotes ^= quotes % 2 == 1;
            input = &input[read..];
            self.text_length += written;
            self.ends_length += ended;
            match result {
                ReadRecordResult::InputEmpty => return Ok(false),
                ReadRecordResult::OutputFull => {
                    if self.text.len() >= self.rows.bounds().line_bytes_max {
                        return Err(line_too_long(self.line, self.rows.bounds()));
                    }
                    self.text.resize(self.text.len() * 2, 0);
                }
                ReadRecordResult::OutputEndsFull => {
                    if self.ends.len() > 4 * shoal_kernel::limits::COLUMNS_PER_TABLE_MAX {
                        return Err(Error::new(
                            ErrorCode::InvalidRequest,
                            format!("line {} has more fields than a table may have columns", self.line),
                        ));
                    }
                    self.ends.resize(self.ends.len() * 2, 0);
                }
                ReadRecordResult::Record => {
                    self.record()?;
                    self.text_length = 0;
                    self.ends_length = 0;
                    self.odd_quotes = false;
                    // The reader stops before the line feed of a record's end has been counted.
                    self.line = self.reader.line();
                }
                ReadRecordResult::End => return Ok(true),
            }
        }
    }

    fn record(&mut self) -> Result<()> {
        // The reader takes the end of the body for the end of a quoted field too, whatever rows that has swallowed.
        if self.ended && self.odd_quotes {
            let message = "a quote is not closed before the body ends".to_owned();
            self.rows.reject(RowError { line: self.line, column: None, code: RowErrorCode::Malformed, message });
            return Ok(());
        }
        let ends = &self.ends[..self.ends_length];
        let Ok(text) = std::str::from_utf8(&self.text[..self.text_length]) else {
            let message = "the record is not UTF-8".to_owned();
            self.rows.reject(RowError { line: self.line, column: None, code: RowErrorCode::Malformed, message });
            return Ok(());
        };
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let Some(fields) = starts.zip(ends.iter().copied()).map(|(start, end)| text.get(start..end)).collect() else {
            let message = "a field begins in the middle of a character".to_owned();
            self.rows.reject(RowError { line: self.line, column: None, code: RowErrorCode::Malformed, message });
            return Ok(());
        };
        let fields: Vec<&str> = fields;
        let Some(header) = &self.header else {
            self.header = Some(header(&fields, self.rows.target())?);
            return Ok(());
        };
        if fields.len() != header.len() {
            let message = format!("the record has {} fields; the header has {}", fields.len(), header.len());
            self.rows.reject(RowError { line: self.line, column: None, code: RowErrorCode::FieldCount, message });
            return Ok(());
        }
        let (bytes, fields) = (self.text_length, fields.iter().zip(header));
        let told = fields.clone();
        let taken = self.rows.push_good(bytes, |target, row| {
            told.into_iter().try_for_each(|(field, place)| row.put(*place, cell(target, *place, field)))
        });
        if taken? {
            return Ok(());
        }
        let target = self.rows.target();
        let mut cells = vec![None; target.columns().len()];
        for (field, place) in fields {
            cells[*place] = Some(cell(target, *place, field));
        }
        self.rows.push(self.line, bytes, &mut cells)
    }
}

/// A field of a column.
fn cell<'a>(target: &Target, place: usize, field: &'a str) -> Cell<'a> {
    let column = &target.columns()[place];
    let is_text = column.data_type == DataType::Utf8 && !column.nullable;
    if field.is_empty() && !is_text { Cell::Null } else { Cell::Field(field) }
}

fn header(fields: &[&str], target: &Target) -> Result<Vec<usize>> {
    let mut places = Vec::with_capacity(fields.len());
    for name in fields {
        let name = name.trim();
        let Some(place) = target.place(name) else {
            return Err(Error::new(ErrorCode::UnknownColumn, format!("line 1: {}", target.unknown(name))));
        };
        if places.contains(&place) {
            return Err(Error::new(ErrorCode::InvalidRequest, format!("line 1: column '{name}' is given twice")));
        }
        places.push(place);
    }
    let missing = target
        .columns()
        .iter()
        .enumerate()
        .find(|(place, column)| !places.contains(place) && !column.nullable && !column.filled);
    match missing {
        None => Ok(places),
        Some((_, column)) => Err(Error::new(
            ErrorCode::InvalidRequest,
            format!("line 1: the header lacks column '{}', which may not be null", column.name),
        )
        .with_help("the first line must name the columns")),
    }
}

impl Decoder for CsvDecoder {
    fn push(&mut self, bytes: Bytes) -> Result<()> {
        // No bytes would mean the end to the reader.
        if bytes.is_empty() {
            return Ok(());
        }
        self.seen_bytes = true;
        self.read(&bytes).map(|_| ())
    }

    fn take_batches(&mut self) -> Vec<RecordBatch> {
        self.rows.take_batches()
    }

    fn finish(mut self: Box<Self>) -> Result<Decoded> {
        self.ended = true;
        if self.seen_bytes {
            while !self.read(&[])? {}
        }
        self.rows.finish()
    }
}
