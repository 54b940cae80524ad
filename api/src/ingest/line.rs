//! Lines as programs write them: a flat JSON object, its columns mostly in the order of the last line, strings without escapes.
//! They are told apart in one pass. Whatever else there is, also every mistake, is left to the full parser and its messages.

use std::borrow::Cow;

use super::Target;
use super::cell::Cell;

/// Whole numbers of so many digits fit 64 bits.
const DIGITS_MAX: usize = 18;
/// A double holds whole numbers of so many digits, and the powers of ten up to as many: their quotient is rounded once, as a
/// decimal number is to be.
const EXACT_DIGITS_MAX: usize = 15;
const POWERS_OF_TEN: [f64; EXACT_DIGITS_MAX + 1] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

/// Tells the cells of the line with the places of their columns, if it is such a line and they are taken. If not, some may have
/// been told.
pub(super) fn read<'a>(
    line: &'a str,
    target: &Target,
    mut put: impl FnMut(usize, Cell<'a>) -> Option<()>,
) -> Option<()> {
    let mut line = Line { text: line, at: 0 };
    line.expect(b'{')?;
    let mut expected = 0;
    loop {
        let place = line.key(target, expected)?;
        line.expect(b':')?;
        put(place, line.value()?)?;
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
        // Read first, and then compared: a name may have quotes and backslashes, which stand otherwise in the text.
        let name = self.string()?;
        if target.columns().get(expected).is_some_and(|column| column.name == name) {
            return Some(expected);
        }
        target.place(name)
    }

    /// A string whose opening quote has been read.
    fn string(&mut self) -> Option<&'a str> {
        let length = plain(self.rest());
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

    /// Reads digits on to a number, and says how many they were. With more than [`DIGITS_MAX`] in all the number is not one.
    fn digits(&mut self, number: &mut u64) -> usize {
        let start = self.at;
        while let Some(digit @ b'0'..=b'9') = self.rest().first() {
            *number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Option<Cell<'a>> {
        let start = self.at;
        let negative = self.rest().first() == Some(&b'-');
        self.at += usize::from(negative);
        let (first, mut number) = (self.at, 0);
        let digits = self.digits(&mut number);
        if digits == 0 || digits > 1 && self.text.as_bytes()[first] == b'0' {
            return None;
        }
        match self.rest().first() {
            Some(b'.') => {
                self.at += 1;
                let decimals = self.digits(&mut number);
                // What has an exponent is left to the full parser.
                if decimals == 0 || matches!(self.rest().first(), Some(b'e' | b'E')) {
                    return None;
                }
                let value = if digits + decimals <= EXACT_DIGITS_MAX {
                    let value = number as f64 / POWERS_OF_TEN[decimals];
                    if negative { -value } else { value }
                } else {
                    self.text[start..self.at].parse().ok()?
                };
                value.is_finite().then_some(Cell::Float(value))
            }
            Some(b'e' | b'E') => None,
            _ if digits > DIGITS_MAX => None,
            // There is a negative zero, but not among whole numbers.
            _ if negative && number == 0 => None,
            _ => i64::try_from(number).ok().map(|number| Cell::Integer(if negative { -number } else { number })),
        }
    }
}

/// How many bytes come before the first quote, backslash or control character.
fn plain(text: &[u8]) -> usize {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * LOW;
    // The lowest bit that is set belongs to the first byte that is less than `limit`; higher ones may come from its borrow.
    let less = |word: u64, limit: u64| word.wrapping_sub(limit * LOW) & !word & HIGH;
    let (words, rest) = text.as_chunks::<8>();
    for (place, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let ends = |byte: u8| less(word ^ (u64::from(byte) * LOW), 1);
        let found = less(word, 0x20) | ends(b'"') | ends(b'\\');
        if found != 0 {
            return place * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let ends = |byte: &u8| matches!(byte, b'"' | b'\\' | ..0x20);
    text.len() - rest.len() + rest.iter().position(ends).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::ingest::ndjson::parse;

    fn target() -> Target {
        let field = |name: &str| Field::new(name, DataType::Utf8, true);
        Target::of_schema(&Schema::new(vec![field("id"), field("name"), field("größe"), field("n")]))
    }

    fn read_cells<'a>(line: &'a str, target: &Target) -> Option<Vec<Option<Cell<'a>>>> {
        let mut cells = vec![None; target.columns().len()];
        let put = |place: usize, cell| {
            let taken: &mut Option<_> = cells.get_mut(place)?;
            taken.is_none().then(|| *taken = Some(cell))
        };
        read(line, target, put)?;
        Some(cells)
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
            assert_eq!(read_cells(line, &target()), Some(expected.to_vec()), "{line}");
        }
    }

    #[test]
    fn strings_end_at_the_first_byte_that_is_not_plain() {
        let plain_bytes = "plain, größer: {1}\u{7f}€𝄞!".as_bytes();
        for length in 0..plain_bytes.len() {
            assert_eq!(plain(&plain_bytes[..length]), length);
            for end in [0, 0x1f, b'"', b'\\'] {
                let mut text = plain_bytes.to_vec();
                text[length] = end;
                text.extend([0x1f, b'"', b'\\']);
                assert_eq!(plain(&text), length, "{end}");
            }
        }
    }

    #[test]
    fn decimals_are_the_nearest_doubles() {
        for text in ["0.1", "-0.0", "12345678.9012345", "99999999999999.9", "0.000000000000001", "123456789.123456789"]
        {
            let line = format!("{{\"id\":{text}}}");
            let expected: f64 = text.parse().unwrap();
            let cells = read_cells(&line, &target()).unwrap();
            assert!(matches!(cells[0], Some(Cell::Float(value)) if value.to_bits() == expected.to_bits()), "{text}");
        }
    }

    /// Names that have to be escaped: what looks like one of them is the name of another column, or none.
    #[test]
    fn names_with_quotes_and_backslashes_are_read_as_json() {
        let field = |name: &str| Field::new(name, DataType::Utf8, true);
        let target = Target::of_schema(&Schema::new(vec![field("\\u0061"), field("a"), field("q\""), field("end\\")]));
        for line in [r#"{"\u0061":1}"#, r#"{"\\u0061":1}"#, r#"{"a":1,"q"":2}"#, r#"{"a":1,"q":2,"end\":3}"#] {
            assert_eq!(read_cells(line, &target), None, "{line}");
        }
        let mut cells = Vec::new();
        assert_eq!(parse(r#"{"\u0061":1}"#, &target, &mut cells), Ok(()));
        assert_eq!(cells, [None, Some(Cell::Integer(1)), None, None]);
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
                    if let Some(cells) = read_cells(&text, &target) {
                        taken += 1;
                        let mut full = Vec::new();
                        assert_eq!(parse(&text, &target, &mut full), Ok(()), "{text}");
                        assert_eq!(cells, full, "{text}");
                    }
                }
            }
        }
        assert!(taken > 100, "{taken} lines");
    }
}
