//! A body of lines, cut into pieces as it comes, so that several threads can read one body.

use bytes::Bytes;
use memchr::{memchr_iter, memrchr};
use shoal_kernel::Result;

use super::ndjson::NdjsonDecoder;
use super::rows::Part;
use super::{Bounds, Decoder, OnError, Target, line_too_long};

/// A piece ends with the line that brings it to so many bytes. With less a body would become many small batches, with more
/// bodies of usual size would not be cut.
const PIECE_BYTES: usize = 256 << 10;

/// The share that a piece may have of the bytes that the rows of a body may take once decoded, and what it may have in any case.
const PIECES_PER_BOUND: usize = 4;
const PIECE_DECODED_BYTES_MIN: usize = 16 << 20;

/// Cuts a body of NDJSON at ends of lines.
pub struct Cutter {
    target: Target,
    on_error: OnError,
    bounds: Bounds,
    /// What has come of the next piece.
    chunks: Vec<Bytes>,
    bytes: usize,
    /// Bytes of it behind the last end of a line.
    unended: usize,
    /// Lines before it.
    lines: u64,
}

impl Cutter {
    /// For rows of `target`.
    pub fn new(target: Target, on_error: OnError, bounds: Bounds) -> Self {
        // Several pieces are read at once, and are only then counted together. A piece is small: it comes to its share of the bound
        // only if its rows leave thousands of columns out.
        let share = (bounds.decoded_bytes_max / PIECES_PER_BOUND).max(PIECE_DECODED_BYTES_MIN);
        let bounds = Bounds { decoded_bytes_max: share.min(bounds.decoded_bytes_max), ..bounds };
        Self { target, on_error, bounds, chunks: Vec::new(), bytes: 0, unended: 0, lines: 0 }
    }

    /// Takes in the next bytes of the body; they may complete a piece.
    ///
    /// # Errors
    /// A line is too long.
    pub fn push(&mut self, mut bytes: Bytes) -> Result<Option<Piece>> {
        self.bytes += bytes.len();
        let Some(end) = memrchr(b'\n', &bytes) else {
            self.unended += bytes.len();
            self.chunks.push(bytes);
            return self.check_line().map(|()| None);
        };
        self.unended = bytes.len() - (end + 1);
        if self.bytes < PIECE_BYTES {
            self.chunks.push(bytes);
            return self.check_line().map(|()| None);
        }
        let rest = bytes.split_off(end + 1);
        self.chunks.push(bytes);
        self.bytes = rest.len();
        let piece = self.cut(vec![rest]);
        self.check_line().map(|()| Some(piece))
    }

    /// The last piece: the body has ended.
    pub fn finish(mut self) -> Piece {
        self.cut(Vec::new())
    }

    fn cut(&mut self, rest: Vec<Bytes>) -> Piece {
        let chunks = std::mem::replace(&mut self.chunks, rest);
        let lines_before = self.lines;
        self.lines += ends(&chunks);
        Piece { target: self.target.clone(), on_error: self.on_error, bounds: self.bounds, lines_before, chunks }
    }

    /// What has no end yet is refused before all of it has come.
    fn check_line(&self) -> Result<()> {
        match self.unended > self.bounds.line_bytes_max {
            true => Err(line_too_long(self.lines + ends(&self.chunks) + 1, &self.bounds)),
            false => Ok(()),
        }
    }
}

fn ends(chunks: &[Bytes]) -> u64 {
    chunks.iter().map(|chunk| memchr_iter(b'\n', chunk).count() as u64).sum()
}

/// Whole lines, which can be read by themselves.
pub struct Piece {
    target: Target,
    on_error: OnError,
    bounds: Bounds,
    lines_before: u64,
    chunks: Vec<Bytes>,
}

impl Piece {
    /// Bytes of its lines.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// Reads the rows.
    ///
    /// # Errors
    /// As a [`Decoder`] refuses a body.
    pub fn read(self) -> Result<Part> {
        let mut decoder = NdjsonDecoder::behind(self.lines_before, self.target, self.on_error, self.bounds);
        self.chunks.into_iter().try_for_each(|chunk| decoder.push(chunk))?;
        decoder.finish_part()
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use shoal_kernel::limits::VALUE_BYTES_MAX;

    use super::*;
    use crate::ingest::rows::Joined;
    use crate::ingest::{Decoded, InputFormat, decoder};

    const BOUNDS: Bounds = Bounds { line_bytes_max: 4096, decoded_bytes_max: 64 << 20 };

    fn target() -> Target {
        let field = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
        Target::of_schema(&Schema::new(vec![
            field("_ts", DataType::Int64, false),
            field("n", DataType::Int64, true),
            field("text", DataType::Utf8, true),
        ]))
    }

    fn in_pieces(body: &[u8], chunk: usize, on_error: OnError) -> Result<(Decoded, usize)> {
        let mut cutter = Cutter::new(target(), on_error, BOUNDS);
        let mut pieces = Vec::new();
        for chunk in body.chunks(chunk) {
            pieces.extend(cutter.push(Bytes::copy_from_slice(chunk))?);
        }
        pieces.push(cutter.finish());
        let count = pieces.len();
        let mut joined = Joined::new(BOUNDS);
        pieces.into_iter().try_for_each(|piece| joined.add(piece.read()?))?;
        Ok((joined.finish()?, count))
    }

    fn whole(body: &[u8], on_error: OnError) -> Result<Decoded> {
        let mut decoder = decoder(InputFormat::Ndjson, target(), on_error, BOUNDS);
        decoder.push(Bytes::copy_from_slice(body))?;
        decoder.finish()
    }

    fn rows(decoded: &Decoded) -> arrow::array::RecordBatch {
        arrow::compute::concat_batches(&decoded.batches[0].schema(), &decoded.batches).unwrap()
    }

    #[test]
    fn pieces_say_what_the_whole_body_says() {
        let filler = "größer ".repeat(30);
        let mut body = "\u{feff}{\"n\":0}\n\n".to_owned();
        for n in 1..12_000 {
            match n % 997 {
                0 => body.push_str("{\"n\":\"none\"}\r\n"),
                // From the second piece on, a column that the first one lacked.
                _ if n > 9_000 => body.push_str(&format!("{{\"n\":{n},\"text\":\"{filler}\",\"_ts\":{n}}}\n")),
                _ => body.push_str(&format!("{{\"n\":{n},\"text\":\"{filler}\"}}\n")),
            }
        }
        for end in ["", "{\"n\":12000}", "{\"n\":"] {
            let body = format!("{body}{end}");
            for chunk in [1 << 10, 1 << 15, 300_001, 3 << 20] {
                for on_error in [OnError::Skip, OnError::Fail] {
                    let (pieces, count) = in_pieces(body.as_bytes(), chunk, on_error).unwrap();
                    let whole = whole(body.as_bytes(), on_error).unwrap();
                    assert!(count > 1);
                    assert_eq!((pieces.rejected, &pieces.errors), (whole.rejected, &whole.errors));
                    if on_error == OnError::Skip {
                        assert_eq!(pieces.rows, whole.rows);
                        assert_eq!(rows(&pieces), rows(&whole), "{chunk}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_value_that_is_too_long_is_a_row_that_does_not_fit() {
        let line = |bytes: usize| format!("{{\"_ts\":1,\"text\":\"{}\"}}\n", "x".repeat(bytes));
        let body = [line(VALUE_BYTES_MAX), line(VALUE_BYTES_MAX + 1), line(1)].concat();
        let bounds = Bounds { line_bytes_max: 1 << 20, ..BOUNDS };
        let mut decoder = decoder(InputFormat::Ndjson, target(), OnError::Skip, bounds);
        decoder.push(body.into()).unwrap();
        let decoded = decoder.finish().unwrap();
        assert_eq!((decoded.rows, decoded.rejected), (2, 1));
        let error = &decoded.errors[0];
        assert_eq!(
            (error.line, error.message.as_str()),
            (2, "column 'text': 250001 bytes, more than the 250000 allowed")
        );
    }

    #[test]
    fn bounds_hold_over_all_pieces() {
        let line = format!("{{\"text\":\"{}\"}}\n", "x".repeat(4000));
        let error = in_pieces(line.repeat(20_000).as_bytes(), 1 << 16, OnError::Fail).unwrap_err();
        assert!(error.to_string().contains("ingest_decoded_bytes_max"), "{error}");
        let long = format!("{}{{\"text\":\"{}", line.repeat(400), "x".repeat(5000));
        for chunk in [1000, 1 << 20, 4 << 20] {
            let error = in_pieces(long.as_bytes(), chunk, OnError::Fail).err().map(|error| error.to_string());
            let error = error.unwrap();
            assert!(error.contains("line 401 is longer than 4096 bytes"), "{error}");
        }
    }
}
