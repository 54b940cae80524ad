//! A segment as people want to see it: what lies where, in which form, and how well it packs.

use arrow::array::Array;
use serde::Serialize;
use shoal_kernel::{Datum, Result};

use super::format::{Extent, GROUP_PAGES, HIDDEN_COLUMNS};
use super::sketch::Sketch;
use super::{Place, Reads, Segment, segment_file};
use crate::damage::Problem;
use crate::encoding::describe;
use crate::layout::Layout;
use crate::size::array_bytes;

/// Characters of a bound that are shown.
const BOUND_CHARS_MAX: usize = 40;
const HIDDEN_NAMES: [&str; HIDDEN_COLUMNS] = ["(version, high)", "(version, low)", "(position)"];

/// A segment file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SegmentDump {
    /// Its name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Version of the format.
    pub format: u32,
    /// Rows and tombstones.
    pub rows: u32,
    /// Of them, tombstones.
    pub tombstones: u64,
    /// Pages of a column.
    pub pages: u32,
    /// Row groups.
    pub groups: usize,
    /// Least and greatest version.
    pub versions: (String, String),
    /// Least and greatest accept position.
    pub positions: (u64, u64),
    /// First and last key, encoded, in hexadecimal digits.
    pub keys: (String, String),
    /// Where the footer begins.
    pub footer_offset: u64,
    /// Length of the footer, trailer included.
    pub footer_bytes: u64,
    /// Columns of the table in their order, then those that every row has.
    pub columns: Vec<ColumnDump>,
    /// Key filters, by row group.
    pub filters: Vec<FilterDump>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// A column of a segment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ColumnDump {
    /// Its number in the table; none for what every row has.
    pub id: Option<u32>,
    /// Its name, if it is known.
    pub name: Option<String>,
    /// Its Arrow type.
    pub data_type: String,
    /// About how many different values it has; unknown for what every row has.
    pub distinct: Option<u64>,
    /// Its dictionaries, of the row groups that have one.
    pub dictionaries: Vec<DictionaryDump>,
    /// Its pages.
    pub pages: Vec<PageDump>,
}

/// A dictionary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DictionaryDump {
    /// Its row group.
    pub group: usize,
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u32,
    /// Its values, if it can be read.
    pub values: Option<usize>,
    /// Whether its checksum holds and it makes sense.
    pub sound: bool,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PageDump {
    /// Its number.
    pub page: u32,
    /// Its row group.
    pub group: usize,
    /// Where it begins.
    pub offset: u64,
    /// Its rows.
    pub rows: u32,
    /// Of them, NULLs; unknown for what every row has.
    pub nulls: Option<u32>,
    /// Its form.
    pub encoding: String,
    /// Its length.
    pub stored_bytes: u32,
    /// What its values take in memory, if it can be read.
    pub plain_bytes: Option<usize>,
    /// Bits of the file for one value, without the dictionary.
    pub bits_per_value: f64,
    /// Bounds of its values, if the footer has some.
    pub min: Option<String>,
    /// The upper one.
    pub max: Option<String>,
    /// Sum of its values, if they are integers.
    pub sum: Option<String>,
    /// Whether its checksum holds and it makes sense.
    pub sound: bool,
}

/// A key filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilterDump {
    /// Its row group.
    pub group: usize,
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u32,
    /// Its form.
    pub form: &'static str,
    /// Of how many parts.
    pub parts: usize,
}

impl Segment {
    /// All of it but the values.
    pub(crate) fn dump(&self) -> SegmentDump {
        let footer = &self.footer;
        let span = |ranges: &[(u64, u64)]| {
            let low = ranges.iter().map(|(low, _)| *low).min().unwrap_or(0);
            (low, ranges.iter().map(|(_, high)| *high).max().unwrap_or(0))
        };
        let filter = |(group, (extent, filter)): (usize, (&Extent, &super::KeyFilter))| {
            let (form, parts) = filter.describe();
            FilterDump { group, offset: extent.offset, bytes: extent.bytes, form, parts }
        };
        let columns = (0..footer.columns.len()).map(|number| self.dump_column(number));
        SegmentDump {
            file: segment_file(self.id),
            bytes: self.bytes,
            format: self.format,
            rows: footer.rows,
            tombstones: self.tombstones.len(),
            pages: self.pages(),
            groups: footer.filters.len(),
            versions: (footer.version_range.0.to_string(), footer.version_range.1.to_string()),
            positions: span(&footer.position_ranges),
            keys: (footer.first_keys.first().map(|key| hex(key)).unwrap_or_default(), hex(&footer.last_key)),
            footer_offset: self.footer_start,
            footer_bytes: self.bytes - self.footer_start,
            columns: columns.chain((0..HIDDEN_COLUMNS).map(|number| self.dump_hidden(number))).collect(),
            filters: footer.filters.iter().zip(&self.filters).enumerate().map(filter).collect(),
            problems: self.inspect(&Layout::unknown(), false, true),
        }
    }

    fn dump_column(&self, number: usize) -> ColumnDump {
        let index = &self.footer.columns[number];
        let dictionary = |(group, extent): (usize, &Option<Extent>)| {
            let extent = extent.as_ref()?;
            let decoded = self.dictionary(number, (group * GROUP_PAGES) as u32, Reads::Walk).ok().flatten();
            let values = decoded.as_ref().map(|dictionary| dictionary.len());
            Some(DictionaryDump { group, offset: extent.offset, bytes: extent.bytes, sound: values.is_some(), values })
        };
        ColumnDump {
            id: Some(index.column.id.0),
            name: None,
            data_type: index.column.data_type.to_string(),
            distinct: Sketch::from_bytes(&index.distinct).map(|sketch| sketch.estimate()),
            dictionaries: index.dictionaries.iter().enumerate().filter_map(dictionary).collect(),
            pages: (0..self.pages()).filter_map(|page| self.dump_page(Place::Column(number), page)).collect(),
        }
    }

    fn dump_hidden(&self, number: usize) -> ColumnDump {
        ColumnDump {
            id: None,
            name: HIDDEN_NAMES.get(number).map(|name| (*name).to_owned()),
            data_type: "UInt64".to_owned(),
            distinct: None,
            dictionaries: Vec::new(),
            pages: (0..self.pages()).filter_map(|page| self.dump_page(Place::Hidden(number), page)).collect(),
        }
    }

    fn dump_page(&self, place: Place, page: u32) -> Option<PageDump> {
        let extent = self.extent(place, page)?;
        let rows = self.page_rows(page).len() as u32;
        let index = match place {
            Place::Column(number) => self.footer.columns.get(number),
            _ => None,
        };
        let zone = index.and_then(|index| index.zones.get(page as usize));
        let encoding: Result<String> =
            self.page_bytes(place, page, Reads::Walk).and_then(|bytes| describe(&bytes, rows as usize));
        let array = self.read_page(place, page, None, Reads::Walk).ok();
        Some(PageDump {
            page,
            group: page as usize / GROUP_PAGES,
            offset: extent.offset,
            rows,
            nulls: zone.map(|zone| zone.nulls),
            encoding: encoding.unwrap_or_else(|error| error.message().to_owned()),
            stored_bytes: extent.bytes,
            plain_bytes: array.as_ref().map(|array| array_bytes(array as &dyn Array)),
            bits_per_value: f64::from(extent.bytes) * 8.0 / f64::from(rows.max(1)),
            min: zone.and_then(|zone| zone.min.as_ref()).map(text),
            max: zone.and_then(|zone| zone.max.as_ref()).map(text),
            sum: index.and_then(|index| index.sums.get(page as usize)).map(i128::to_string),
            sound: array.is_some(),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: &Datum) -> String {
    let text = match value {
        Datum::Null => "NULL".to_owned(),
        Datum::Bool(value) => value.to_string(),
        Datum::Int(value) => value.to_string(),
        Datum::UInt(value) => value.to_string(),
        Datum::Float(value) => value.to_string(),
        Datum::Decimal(value) => value.to_string(),
        Datum::Text(value) => format!("'{}'", value.escape_debug()),
        Datum::Bytes(value) => format!("0x{}", hex(value)),
    };
    match text.char_indices().nth(BOUND_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
