//! Looking through text: every value of every row.

use std::collections::BTreeSet;
use std::fmt;

use arrow::array::AsArray;
use arrow::datatypes::DataType;
use csv_core::{ReadRecordResult, Reader};
use serde::de::{Deserializer, MapAccess, Visitor};
use shoal_kernel::limits::COLUMNS_PER_TABLE_MAX;
use shoal_kernel::{Error, ErrorCode, Result};

use super::shape::Shape;
use super::{Body, Look};
use crate::ingest::cell::{Cell, convert, takes};
use crate::ingest::ndjson::{CellSeed, not_an_object};
use crate::ingest::{InputFormat, OnError, RowError, RowErrorCode, Target, TargetColumn, decoder, line_too_long};

pub(super) fn ndjson(body: &Body, look: &mut Look) -> Result<()> {
    let bytes = body.bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body.bytes);
    for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if text.len() > body.bounds.line_bytes_max {
            return Err(line_too_long(line, &body.bounds));
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let refused = |column, code, message| RowError { line, column, code, message };
        let row = match std::str::from_utf8(text) {
            Ok(text) => fields(text),
            Err(_) => Err("the line is not UTF-8".to_owned()),
        };
        match row {
            Ok(row) => look.row(line, &row),
            Err(message) => look.refuse(refused(None, RowErrorCode::Malformed, message)),
        }
    }
    Ok(())
}

/// The members of an object, in order.
fn fields(text: &str) -> std::result::Result<Vec<(String, Cell<'_>)>, String> {
    struct Fields;

    impl<'a> Visitor<'a> for Fields {
        type Value = Vec<(String, Cell<'a>)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> std::result::Result<Self::Value, M::Error> {
            let mut fields = Vec::new();
            while let Some(name) = map.next_key::<String>()? {
                fields.push((name, map.next_value_seed(CellSeed)?));
            }
            Ok(fields)
        }
    }

    let mut parser = serde_json::Deserializer::from_str(text);
    let row = parser.deserialize_map(Fields).and_then(|row| parser.end().map(|()| row));
    row.map_err(|error| not_an_object(&error))
}

impl Look {
    /// Takes in a row, or refuses it.
    fn row(&mut self, line: u64, row: &[(String, Cell<'_>)]) {
        let mut places = Vec::with_capacity(row.len());
        let mut given = BTreeSet::new();
        let refused = |name: &str, code, message| RowError { line, column: Some(name.to_owned()), code, message };
        for (name, cell) in row {
            let place = match self.columns.place(name) {
                Ok(place) => place,
                Err((code, message)) => return self.refuse(refused(name, code, message)),
            };
            if !given.insert(place) {
                let message = format!("column '{name}' is given twice");
                return self.refuse(refused(name, RowErrorCode::DuplicateColumn, message));
            }
            let seen = self.columns.seen(place);
            if let Some(form) = seen.forms.last().filter(|_| seen.is_fixed)
                && let Err((code, message)) = convert(cell.clone(), &form.data_type)
            {
                return self.refuse(refused(name, code, format!("column '{name}': {message}")));
            }
            places.push(place);
        }
        self.rows += 1;
        places.into_iter().zip(row).for_each(|(place, (_, cell))| self.cell(place, cell));
    }

    fn cell(&mut self, place: usize, cell: &Cell<'_>) {
        let seen = self.columns.seen(place);
        if seen.is_fixed || *cell == Cell::Null {
            return;
        }
        for form in seen.forms.iter_mut().filter(|form| form.takes) {
            form.takes = takes(cell, &form.data_type);
        }
        let known = std::mem::replace(&mut seen.shape, Shape::Nothing);
        seen.shape = known.join(Shape::of_cell(cell));
    }
}

/// Every field is read as text first.
pub(super) fn csv(body: &Body, look: &mut Look) -> Result<()> {
    let mut places = Vec::new();
    for name in header(&body.bytes)? {
        let place = look
            .columns
            .place(&name)
            .map_err(|(_, message)| Error::new(ErrorCode::InvalidRequest, format!("line 1: {message}")))?;
        if places.contains(&place) {
            return Err(Error::new(ErrorCode::InvalidRequest, format!("line 1: column '{name}' is given twice")));
        }
        places.push(place);
    }
    let text = |place: &usize| TargetColumn {
        name: look.columns.seen(*place).name.clone(),
        data_type: DataType::Utf8,
        nullable: true,
        filled: false,
        takes_all: false,
    };
    let target = Target::of_columns(places.iter().map(text).collect());
    let mut decoder = decoder(InputFormat::Csv, target, OnError::Skip, body.bounds);
    decoder.push(body.bytes.clone())?;
    let decoded = decoder.finish()?;
    look.rows = decoded.rows;
    for batch in &decoded.batches {
        for (place, column) in places.iter().zip(batch.columns()) {
            let fields = column.as_string::<i32>();
            fields.iter().flatten().for_each(|field| look.cell(*place, &Cell::Field(field)));
        }
    }
    look.refused.rejected = decoded.rejected;
    look.refused.errors = decoded.errors;
    Ok(())
}

/// The names in the first record; none of a body without bytes.
fn header(bytes: &[u8]) -> Result<Vec<String>> {
    let malformed = |why: &str| Error::new(ErrorCode::InvalidRequest, format!("line 1: {why}"));
    let (mut reader, mut input) = (Reader::new(), bytes);
    let (mut text, mut ends) = (vec![0; 4096], vec![0; 64]);
    let (mut written, mut ended) = (0, 0);
    loop {
        let (result, read, more_text, more_ends) = reader.read_record(input, &mut text[written..], &mut ends[ended..]);
        (input, written, ended) = (&input[read..], written + more_text, ended + more_ends);
        match result {
            // No more input is the end of it.
            ReadRecordResult::InputEmpty => input = &[],
            ReadRecordResult::OutputFull => text.resize(text.len() * 2, 0),
            ReadRecordResult::OutputEndsFull if ended > 2 * COLUMNS_PER_TABLE_MAX => {
                return Err(malformed("the header has more fields than a table may have columns"));
            }
            ReadRecordResult::OutputEndsFull => ends.resize(ends.len() * 2, 0),
            ReadRecordResult::Record | ReadRecordResult::End => break,
        }
    }
    let text = std::str::from_utf8(&text[..written]).map_err(|_| malformed("the header is not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').map_or((text, 0), |rest| (rest, text.len() - rest.len()));
    let (text, skipped) = text;
    let ends: Vec<usize> = ends[..ended].iter().map(|end| end.saturating_sub(skipped)).collect();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let names: Option<Vec<String>> =
        starts.zip(&ends).map(|(start, end)| Some(text.get(start..*end)?.trim().to_owned())).collect();
    names.ok_or_else(|| malformed("a field begins in the middle of a character"))
}
