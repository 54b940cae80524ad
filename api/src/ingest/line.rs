//! Lines as programs write them: a flat JSON object, its columns mostly in the order of the last line, strings without escapes.
//! They are told apart in one pass. Whatever else there is, also every mistake, is left to the full parser and its messages.

use std::borrow::Cow;

use super::Target;
use super::cell::Cell;

/// Whole numbers of so many digits fit 64 bits.
const DIGITS_MAX: usize = 18;

/// Fills the cells of the line's columns, which are all empty, if it is such a line. If not, some may be filled.
pub(super) fn read<'a>(line: &'a str, target: &Target, cells: &mut [Option<Cell<'a>>]) -> Option<()> {
    let mut line = Line { text: line, at: 0 };
    line.expect(b'{')?;
    let mut expected = 0;
    loop {
        let place = line.key(target, expected)?;
        line.expect(b':')?;
        let value = line.value()?;
        // A column that stands twice is a mistake.
        let cell = cells.get_mut(place).filter(|cell| cell.is_none())?;
        *cell = Some(value);
        expected = place + 1;
        match line.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    line.skip_space();
    (line.at == line.text.len()).then_some(())
}

struct Line<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Line<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn skip_space(&mut self) {
        self.at += self.rest().iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
    }

    /// The next byte that is no white space.
    fn next(&mut self) -> Option<u8> {
        self.skip_space();
        let next = self.rest().first().copied();
        self.at += usize::from(next.is_some());
        next
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// The column that a key names. Objects mostly name them in the same order, so one is tried first.
    fn key(&mut self, target: &Target, expected: usize) -> Option<usize> {
        self.expect(b'"')?;
        if let Some(column) = target.columns().get(expected) {
            let name = column.name.as_bytes();
            if self.rest().starts_with(name) && self.rest().get(name.len()) == Some(&b'"') {
                self.at += name.len() + 1;
                return Some(expected);
            }
        }
        target.place(self.string()?)
    }

    /// A string whose opening quote has been read.
    fn string(&mut self) -> Option<&'a str> {
        let length = self.rest().iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20))?;
        let start = self.at;
        self.at += length;
        (self.next_raw()? == b'"').then(|| &self.text[start..start + length])
    }

    fn next_raw(&mut self) -> Option<u8> {
        let next = self.rest().first().copied()?;
        self.at += 1;
        Some(next)
    }

    fn value(&mut self) -> Option<Cell<'a>> {
        self.skip_space();
        let word = |line: &mut Self, word: &str, cell| {
            line.rest().starts_with(word.as_bytes()).then(|| {
                line.at += word.len();
                cell
            })
        };
        match self.rest().first()? {
            b'"' => {
                self.at += 1;
                self.string().map(|text| Cell::Text(Cow::Borrowed(text)))
            }
            b'-' | b'0'..=b'9' => self.number(),
            b't' => word(self, "true", Cell::Bool(true)),
            b'f' => word(self, "false", Cell::Bool(false)),
            b'n' => word(self, "null", Cell::Null),
            _ => None,
        }
    }

    fn digits(&mut self) -> usize {
        let digits = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        digits
    }

    fn number(&mut self) -> Option<Cell<'a>> {
        let start = self.at;
        let negative = self.rest().first() == Some(&b'-');
        self.at += usize::from(negative);
        let first = self.at;
        let digits = self.digits();
        let bytes = self.text.as_bytes();
        if digits == 0 || digits > 1 && bytes[first] == b'0' {
            return None;
        }
        match self.rest().first() {
            Some(b'.') => {
                self.at += 1;
                // What has an exponent is left to the full parser.
                if self.digits() == 0 || matches!(self.rest().first(), Some(b'e' | b'E')) {
                    return None;
                }
                let value: f64 = self.text[start..self.at].parse().ok()?;
                value.is_finite().then_some(Cell::Float(value))
            }
            Some(b'e' | b'E') => None,
            _ if digits > DIGITS_MAX => None,
            _ => {
                let value = bytes[first..self.at].iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
                match (negative, value) {
                    // There is a negative zero, but not among whole numbers.
                    (true, 0) => None,
                    (true, value) => Some(Cell::Integer(-value)),
                    (false, value) => Some(Cell::Integer(value)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::ingest::ndjson::parse_any;

    fn target() -> Target {
        let field = |name: &str| Field::new(name, DataType::Utf8, true);
        Target::of_schema(&Schema::new(vec![field("id"), field("name"), field("größe"), field("n")]))
    }

    fn empty<'a>() -> Vec<Option<Cell<'a>>> {
        vec![None; 4]
    }

    #[test]
    fn usual_lines_are_read() {
        for (line, expected) in [
            (
                r#"{"id":1,"name":"x","größe":-2.5,"n":null}"#,
                [Some(Cell::Integer(1)), Some(Cell::Text("x".into())), Some(Cell::Float(-2.5)), Some(Cell::Null)],
            ),
            (
                " { \"n\" : true ,\t\"id\": 123456789012345678 } \r",
                [Some(Cell::Integer(123_456_789_012_345_678)), None, None, Some(Cell::Bool(true))],
            ),
            (r#"{"NAME":"größer {,}"}"#, [None, Some(Cell::Text("größer {,}".into())), None, None]),
        ] {
            let mut cells = empty();
            assert!(read(line, &target(), &mut cells).is_some(), "{line}");
            assert_eq!(cells, expected, "{line}");
        }
    }

    /// Whatever is read here, the full parser reads alike: each line is tried with every character replaced, left out, or put
    /// in once more.
    #[test]
    fn it_takes_nothing_that_the_full_parser_does_not() {
        let target = target();
        let mut taken = 0;
        for line in [
            r#"{"id":1,"name":"x","größe":-2.5,"n":null}"#,
            r#"{"n":-0,"name":"","id":00.10}"#,
            r#"{"id":1e5,"name":"a\\n\u00e9","größe":12345678901234567890,"n":[1]}"#,
            r#" {"id": 0.1 , "name": "a word or two", "n": 1234} "#,
            r#"{"id": 0.1 , "id": false}"#,
            "{}",
        ] {
            let characters: Vec<char> = line.chars().collect();
            for at in 0..characters.len() {
                let (before, after) = (&characters[..at], &characters[at + 1..]);
                for instead in
                    ["", "0", "9", ".", "-", "e", "\"", "\\", ",", ":", "{", "}", " ", "t", "\u{1}", "ß", "++"]
                {
                    let replaced =
                        if instead == "++" { characters[at].to_string().repeat(2) } else { instead.to_owned() };
                    let text: String =
                        before.iter().collect::<String>() + &replaced + &after.iter().collect::<String>();
                    let (mut fast, mut full) = (empty(), empty());
                    if read(&text, &target, &mut fast).is_some() {
                        taken += 1;
                        assert_eq!(parse_any(&text, &target, &mut full), Ok(()), "{text}");
                        assert_eq!(fast, full, "{text}");
                    }
                }
            }
        }
        assert!(taken > 100, "{taken} lines");
    }
}
