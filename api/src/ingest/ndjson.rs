//! A JSON object per line. Empty lines are skipped but counted.

use std::borrow::Cow;
use std::fmt;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor, value};
use serde_json::Value;
use shoal_kernel::Result;

use super::cell::Cell;
use super::rows::{Part, Rows};
use super::{Bounds, Decoded, Decoder, OnError, RowError, RowErrorCode, Target, line, line_too_long};

pub(super) struct NdjsonDecoder {
    rows: Rows,
    line: u64,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl NdjsonDecoder {
    pub(super) fn new(target: Target, on_error: OnError, bounds: Bounds) -> Self {
        Self::behind(0, target, on_error, bounds)
    }

    /// Of a body's lines from there on.
    pub(super) fn behind(lines: u64, target: Target, on_error: OnError, bounds: Bounds) -> Self {
        Self { rows: Rows::new(target, on_error, bounds), line: lines, partial: Vec::new() }
    }

    /// All lines have come.
    pub(super) fn finish_part(mut self) -> Result<Part> {
        let last = std::mem::take(&mut self.partial);
        if !last.is_empty() {
            self.take_line(&last, &mut Vec::new())?;
        }
        self.rows.finish_part()
    }

    /// Takes a line. The cells are its columns' once it is read, and are only lent so that not every line needs new ones.
    fn take_line<'a>(&mut self, text: &'a [u8], cells: &mut Vec<Option<Cell<'a>>>) -> Result<()> {
        self.line += 1;
        if text.len() > self.rows.bounds().line_bytes_max {
            return Err(line_too_long(self.line, self.rows.bounds()));
        }
        let text = if self.line == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        // JSON is UTF-8; checked once here, so that strings can be borrowed.
        let parsed = match std::str::from_utf8(text) {
            Ok(text) if self.take_usual(text)? => return Ok(()),
            Ok(text) => parse(text, self.rows.target(), cells),
            Err(_) => Err((RowErrorCode::Malformed, None, "the line is not UTF-8".into())),
        };
        match parsed {
            Ok(()) => self.rows.push(self.line, text.len(), cells),
            Err((code, column, message)) => {
                self.rows.reject(RowError { line: self.line, column, code, message });
                Ok(())
            }
        }
    }

    /// Takes a line if it is good and in the usual form.
    fn take_usual(&mut self, text: &str) -> Result<bool> {
        self.rows.push_good(text.len(), |target, row| line::read(text, target, |place, cell| row.put(place, cell)))
    }
}

impl Decoder for NdjsonDecoder {
    fn push(&mut self, bytes: Bytes) -> Result<()> {
        let mut cells = Vec::new();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &bytes) {
            let line = &bytes[std::mem::replace(&mut start, end + 1)..end];
            if self.partial.is_empty() {
                self.take_line(line, &mut cells)?;
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.take_line(&whole, &mut Vec::new())?;
            }
        }
        self.partial.extend_from_slice(&bytes[start..]);
        if self.partial.len() > self.rows.bounds().line_bytes_max {
            return Err(line_too_long(self.line + 1, self.rows.bounds()));
        }
        Ok(())
    }

    fn take_batches(&mut self) -> Vec<RecordBatch> {
        self.rows.take_batches()
    }

    fn finish(self: Box<Self>) -> Result<Decoded> {
        self.finish_part()?.finish()
    }
}

pub(super) type Refused = (RowErrorCode, Option<String>, String);

/// Fills the cells, one for each column.
pub(super) fn parse<'a>(
    text: &'a str,
    target: &Target,
    cells: &mut Vec<Option<Cell<'a>>>,
) -> std::result::Result<(), Refused> {
    cells.clear();
    cells.resize(target.columns().len(), None);
    let mut fault = None;
    let mut parser = serde_json::Deserializer::from_str(text);
    let row = RowSeed { target, cells, fault: &mut fault };
    let parsed = row.deserialize(&mut parser).and_then(|()| parser.end());
    match (fault, parsed) {
        (Some(fault), _) => Err(fault),
        (None, Err(error)) => Err((RowErrorCode::Malformed, None, not_an_object(&error))),
        (None, Ok(())) => Ok(()),
    }
}

/// What is wrong with a line's syntax.
pub(super) fn not_an_object(error: &serde_json::Error) -> String {
    let message = error.to_string();
    // The parser saw one line; which one of the body is said beside.
    match message.split_once(" at line 1 column ") {
        Some((what, column)) => format!("not a JSON object: {what} at column {column}"),
        None => format!("not a JSON object: {message}"),
    }
}

/// Fills the cells of one object; what is wrong beyond the syntax goes to `fault`.
struct RowSeed<'r, 'a> {
    target: &'r Target,
    cells: &'r mut [Option<Cell<'a>>],
    fault: &'r mut Option<Refused>,
}

impl<'r, 'a> DeserializeSeed<'a> for RowSeed<'r, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'r, 'a> Visitor<'a> for RowSeed<'r, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> std::result::Result<(), M::Error> {
        let mut expected = 0;
        while let Some(found) = map.next_key_seed(KeySeed { target: self.target, expected })? {
            let place = match found {
                Ok(place) => place,
                Err(name) => {
                    let message = self.target.unknown(&name);
                    *self.fault = Some((RowErrorCode::UnknownColumn, Some(name), message));
                    return Err(M::Error::custom("unknown column"));
                }
            };
            if self.cells[place].is_some() {
                let name = self.target.columns()[place].name.clone();
                let message = format!("column '{name}' is given twice");
                *self.fault = Some((RowErrorCode::DuplicateColumn, Some(name), message));
                return Err(M::Error::custom("duplicate column"));
            }
            self.cells[place] = Some(map.next_value_seed(CellSeed)?);
            expected = place + 1;
        }
        Ok(())
    }
}

/// Finds a key's column. Objects mostly name their columns in the same order, so the next one is tried first.
struct KeySeed<'r> {
    target: &'r Target,
    expected: usize,
}

impl<'a> DeserializeSeed<'a> for KeySeed<'_> {
    type Value = std::result::Result<usize, String>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = std::result::Result<usize, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a column's name")
    }

    fn visit_str<E>(self, name: &str) -> std::result::Result<Self::Value, E> {
        let expected = self.target.columns().get(self.expected).filter(|column| column.name == name);
        let place = if expected.is_some() { Some(self.expected) } else { self.target.place(name) };
        Ok(place.ok_or_else(|| name.to_owned()))
    }
}

/// Reads one value.
pub(super) struct CellSeed;

impl<'a> DeserializeSeed<'a> for CellSeed {
    type Value = Cell<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> std::result::Result<Cell<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for CellSeed {
    type Value = Cell<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Cell<'a>, E> {
        Ok(Cell::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Cell<'a>, E> {
        Ok(Cell::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Cell<'a>, E> {
        Ok(Cell::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Cell<'a>, E> {
        Ok(i64::try_from(value).map_or(Cell::Unsigned(value), Cell::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Cell<'a>, E> {
        Ok(Cell::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'a str) -> std::result::Result<Cell<'a>, E> {
        Ok(Cell::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Cell<'a>, E> {
        Ok(Cell::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_map<M: MapAccess<'a>>(self, map: M) -> std::result::Result<Cell<'a>, M::Error> {
        Value::deserialize(value::MapAccessDeserializer::new(map)).map(Cell::Nested)
    }

    fn visit_seq<S: SeqAccess<'a>>(self, seq: S) -> std::result::Result<Cell<'a>, S::Error> {
        Value::deserialize(value::SeqAccessDeserializer::new(seq)).map(Cell::Nested)
    }
}
