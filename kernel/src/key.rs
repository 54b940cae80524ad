//! Keys: single values, their order-preserving byte form, and ranges over it.
//!
//! The byte form is written to disk (partition bounds) and compared by every node, so it is part of the protocol. Each value
//! is a tag byte and a body that compare by `memcmp` as the values compare; a key of several columns is their concatenation.
//! NULL sorts first, as in the segments.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of the partition hash; part of the protocol.
const PARTITION_HASH_SEED: u64 = 0x5_40a1;

const TAG_NULL: u8 = 0x01;
const TAG_VALUE: u8 = 0x02;

/// One value of a key column. Dates, times and decimals travel as the integers that Arrow stores for them, so that two
/// values of one column always have the same variant.
#[derive(Debug, Clone, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum Datum {
    /// SQL NULL.
    Null,
    /// BOOLEAN.
    Bool(bool),
    /// Every signed integer, DATE, TIME, TIMESTAMP (in the column's unit).
    Int(i64),
    /// Every unsigned integer.
    UInt(u64),
    /// REAL and DOUBLE.
    Float(f64),
    /// DECIMAL, as the unscaled integer of the column's scale.
    Decimal(i128),
    /// VARCHAR.
    Text(String),
    /// BYTEA.
    Bytes(Vec<u8>),
}

impl Datum {
    /// Appends the order-preserving form.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => encode_null(out),
            Self::Bool(value) => out.extend_from_slice(&[TAG_VALUE, u8::from(*value)]),
            Self::Int(value) => encode_int(*value, out),
            Self::UInt(value) => encode_uint(*value, out),
            Self::Float(value) => encode_float(*value, out),
            Self::Decimal(value) => encode_decimal(*value, out),
            Self::Text(value) => encode_bytes(value.as_bytes(), out),
            Self::Bytes(value) => encode_bytes(value, out),
        }
    }

    /// The order-preserving form of one value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        self.encode_into(&mut out);
        out
    }
}

/// Appends the form of NULL.
pub fn encode_null(out: &mut Vec<u8>) {
    out.push(TAG_NULL);
}

/// Appends the form of a signed integer: sign bit flipped, big endian.
pub fn encode_int(value: i64, out: &mut Vec<u8>) {
    out.push(TAG_VALUE);
    out.extend_from_slice(&((value as u64) ^ (1 << 63)).to_be_bytes());
}

/// Appends the form of an unsigned integer: big endian.
pub fn encode_uint(value: u64, out: &mut Vec<u8>) {
    out.push(TAG_VALUE);
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends the form of a float in IEEE total order, with -0 made equal to 0 and every NaN made one that sorts last.
pub fn encode_float(value: f64, out: &mut Vec<u8>) {
    let canonical = if value.is_nan() { f64::NAN.abs() } else { value + 0.0 };
    let bits = canonical.to_bits();
    let ordered = if bits >> 63 == 1 { !bits } else { bits ^ (1 << 63) };
    out.push(TAG_VALUE);
    out.extend_from_slice(&ordered.to_be_bytes());
}

/// Appends the form of a decimal's unscaled integer: sign bit flipped, big endian, 16 bytes.
pub fn encode_decimal(value: i128, out: &mut Vec<u8>) {
    out.push(TAG_VALUE);
    out.extend_from_slice(&((value as u128) ^ (1 << 127)).to_be_bytes());
}

/// Appends the form of bytes or text: 0x00 becomes 0x00 0xFF, the end is 0x00 0x01, so that a prefix sorts first.
pub fn encode_bytes(value: &[u8], out: &mut Vec<u8>) {
    out.push(TAG_VALUE);
    for &byte in value {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0x00, 0x01]);
}

/// Where the first value of an encoded key ends: `width` is the number of bytes that a value of the column's type takes, or
/// `None` for text and bytes. `None` if the key is shorter than that.
pub fn value_end(encoded: &[u8], width: Option<usize>) -> Option<usize> {
    let end = match (encoded.first()?, width) {
        (&TAG_NULL, _) => 1,
        (_, Some(width)) => 1 + width,
        (_, None) => encoded.windows(2).skip(1).position(|pair| pair == [0x00, 0x01])? + 3,
    };
    (end <= encoded.len()).then_some(end)
}

/// The hash that assigns encoded keys to the partitions of a `HASH` table. Never changes.
pub fn partition_hash(encoded: &[u8]) -> u64 {
    xxh3_64_with_seed(encoded, PARTITION_HASH_SEED)
}

/// A half-open range of encoded keys: `start <= key < end`; no `end` means up to the greatest key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct KeyRange {
    /// First key inside; empty for "from the smallest".
    pub start: Vec<u8>,
    /// First key outside.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// The range of all keys.
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether the key lies inside.
    pub fn contains(&self, encoded: &[u8]) -> bool {
        self.begins_by(encoded) && self.end.as_deref().is_none_or(|end| encoded < end)
    }

    /// Whether the key does not lie before the range.
    pub fn begins_by(&self, encoded: &[u8]) -> bool {
        // An empty start points nowhere. To compare nothing there may take as long as a hundred other comparisons: processors
        // find out slowly that a masked load from a page that does not exist loads nothing.
        self.start.is_empty() || self.start.as_slice() <= encoded
    }

    /// Whether every key of the other lies in this one.
    pub fn covers(&self, other: &Self) -> bool {
        let ends_by = match (&self.end, &other.end) {
            (None, _) => true,
            (Some(end), Some(other)) => other <= end,
            (Some(_), None) => false,
        };
        self.start <= other.start && ends_by
    }

    /// Whether no key lies inside.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether any key lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let before = |range: &Self, start: &[u8]| range.end.as_deref().is_some_and(|end| end <= start);
        !before(self, &other.start) && !before(other, &self.start)
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        write!(f, "[{}, {})", hex(&self.start), self.end.as_deref().map_or("∞".to_owned(), hex))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_values_of_a_key_are_found_again() {
        let values = [
            (Datum::Text("a\0\u{1}b".into()), None),
            (Datum::Null, None),
            (Datum::Int(-1), Some(8)),
            (Datum::Bytes(vec![0, 1, 0]), None),
            (Datum::Bool(true), Some(1)),
            (Datum::Null, Some(8)),
            (Datum::Decimal(7), Some(16)),
            (Datum::Text(String::new()), None),
        ];
        let key: Vec<u8> = values.iter().flat_map(|(value, _)| value.encode()).collect();
        let mut rest = key.as_slice();
        for (value, width) in &values {
            let end = value_end(rest, *width).unwrap();
            assert_eq!(rest[..end], value.encode(), "{value:?}");
            assert_eq!(value_end(&rest[..end - 1], *width), None);
            rest = &rest[end..];
        }
        assert_eq!(value_end(rest, Some(8)), None);
    }

    fn same_order(a: Datum, b: Datum) {
        assert_eq!(a.partial_cmp(&b), Some(a.encode().cmp(&b.encode())), "{a:?} {b:?}");
    }

    proptest! {
        #[test]
        fn integers_keep_their_order(a: i64, b: i64) { same_order(Datum::Int(a), Datum::Int(b)); }

        #[test]
        fn decimals_keep_their_order(a: i128, b: i128) { same_order(Datum::Decimal(a), Datum::Decimal(b)); }

        #[test]
        fn floats_keep_their_order(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            same_order(Datum::Float(a), Datum::Float(b));
        }

        #[test]
        fn bytes_keep_their_order(a: Vec<u8>, b: Vec<u8>, c: u64, d: u64) {
            same_order(Datum::Bytes(a.clone()), Datum::Bytes(b.clone()));
            let key = |x: &[u8], y: u64| { let mut out = Vec::new(); encode_bytes(x, &mut out); encode_uint(y, &mut out); out };
            prop_assert_eq!((a.clone(), c).cmp(&(b.clone(), d)), key(&a, c).cmp(&key(&b, d)));
        }
    }

    #[test]
    fn null_is_first_and_zero_has_one_form() {
        assert!(Datum::Null.encode() < Datum::Int(i64::MIN).encode());
        assert_eq!(Datum::Float(-0.0).encode(), Datum::Float(0.0).encode());
        assert!(Datum::Float(f64::NAN).encode() > Datum::Float(f64::INFINITY).encode());
    }

    #[test]
    fn the_partition_hash_is_what_it_always_was() {
        // Agreed between nodes of different builds: a change here sends rows to the wrong partition.
        assert_eq!(partition_hash(b""), 0xe3e2f192623b80e1);
    }

    #[test]
    fn ranges_meet_where_they_should() {
        let range = |start: &[u8], end: Option<&[u8]>| KeyRange { start: start.to_vec(), end: end.map(<[u8]>::to_vec) };
        assert!(range(b"a", Some(b"c")).overlaps(&range(b"b", None)));
        assert!(!range(b"a", Some(b"b")).overlaps(&range(b"b", None)));
        assert!(KeyRange::all().contains(b"") && KeyRange::all().contains(b"\xff\xff"));
        assert!(!range(b"a", Some(b"b")).contains(b"b"));
    }
}
