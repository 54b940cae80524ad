//! Checking all of a segment against what it says of itself.

use std::cmp::Ordering;

use arrow::array::ArrayRef;
use shoal_kernel::{Datum, Error, Result};

use super::format::{ColumnIndex, GROUP_PAGES, HEADER_BYTES, HIDDEN_COLUMNS};
use super::sketch::Sketch;
use super::{POSITIONS, Place, Reads, Segment, VERSIONS_HIGH, segment_file};
use crate::damage::{Problem, corrupt, damaged};
use crate::key::{EncodedKeys, sum_of};
use crate::layout::Layout;
use crate::predicate::Zone;

impl Segment {
    /// Reads every dictionary and page, from the disk.
    pub(super) fn read_everything(&self) -> Vec<Problem> {
        let (file, mut problems) = (segment_file(self.id), Vec::new());
        for number in 0..self.footer.columns.len() {
            for first in (0..self.pages()).step_by(GROUP_PAGES) {
                let read = |segment: &Self| segment.dictionary(number, first, Reads::Disk);
                let dictionary = match self.noting(Place::Dictionary(number), first, read) {
                    Ok(dictionary) => dictionary,
                    // The pages of its row group mean nothing without it.
                    Err(error) => {
                        problems.push(Problem::of(&error, &file));
                        continue;
                    }
                };
                for page in first..self.pages().min(first + GROUP_PAGES as u32) {
                    let place = Place::Column(number);
                    let read = |segment: &Self| {
                        segment.decode(place, page, dictionary.as_deref(), None, Reads::Disk).map(drop)
                    };
                    problems.extend(self.noting(place, page, read).err().map(|error| Problem::of(&error, &file)));
                }
            }
        }
        for place in (0..HIDDEN_COLUMNS).map(Place::Hidden) {
            for page in 0..self.pages() {
                let read = self.read_noting(place, page, None, Reads::Disk);
                problems.extend(read.err().map(|error| Problem::of(&error, &file)));
            }
        }
        problems
    }

    /// Everything that is wrong, `deep` also what the footer says of rows and they do not bear out. Keys may repeat in what is
    /// kept for readers of changes.
    pub(crate) fn inspect(&self, layout: &Layout, deep: bool, repeats: bool) -> Vec<Problem> {
        let file = segment_file(self.id);
        let mut problems = self.read_everything();
        let readable = problems.is_empty();
        problems.extend(self.gaps().iter().map(|error| Problem::of(error, &file)));
        problems.extend(self.outline(repeats).err().iter().map(|error| Problem::of(error, &file)));
        // Statistics of what cannot be read prove nothing.
        if deep && readable {
            let (mut last, mut sketches) = (Vec::new(), vec![Sketch::default(); self.footer.columns.len()]);
            for page in 0..self.pages() {
                let compared = self.compare(layout, page, repeats, &mut last, &mut sketches);
                problems.extend(compared.err().iter().map(|error| Problem::of(error, &file)));
            }
            if problems.is_empty() {
                problems.extend(self.compare_sketches(&sketches).iter().map(|error| Problem::of(error, &file)));
            }
        }
        problems
    }

    fn at(&self, offset: u64, what: String) -> Error {
        damaged(corrupt(what), segment_file(self.id), Some(offset))
    }

    /// Bytes between header and footer that belong to nothing, or to two things: no checksum, or two, cover them.
    fn gaps(&self) -> Vec<Error> {
        let mut extents: Vec<(u64, u64)> =
            self.footer.extents().map(|extent| (extent.offset, u64::from(extent.bytes))).collect();
        extents.sort_unstable();
        extents.push((self.footer_start, 0));
        let mut end = HEADER_BYTES;
        let mut gaps = Vec::new();
        for (offset, bytes) in extents {
            match offset.cmp(&end) {
                Ordering::Equal => {}
                Ordering::Greater => gaps.push(self.at(end, format!("{} bytes belong to no page", offset - end))),
                Ordering::Less => gaps.push(self.at(offset, format!("{} bytes belong to two pages", end - offset))),
            }
            end = end.max(offset + bytes);
        }
        gaps
    }

    /// What the footer says of keys and positions must fit together.
    fn outline(&self, repeats: bool) -> Result<()> {
        let footer = &self.footer;
        let ascending = footer.first_keys.windows(2).all(|pair| pair[0] < pair[1] || repeats && pair[0] == pair[1]);
        if !ascending || footer.first_keys.last().is_some_and(|first| *first > footer.last_key) {
            return Err(self.at(self.footer_start, "the first keys of its pages do not ascend".into()));
        }
        if footer.position_ranges.iter().any(|(low, high)| low > high) {
            return Err(self.at(self.footer_start, "a page's least position is above its greatest".into()));
        }
        Ok(())
    }

    /// Compares the rows of a page with what the footer says of them. `last` is the key of the row before; `sketches` take up
    /// the values of each column.
    fn compare(
        &self,
        layout: &Layout,
        page: u32,
        repeats: bool,
        last: &mut Vec<u8>,
        sketches: &mut [Sketch],
    ) -> Result<()> {
        let number = page as usize;
        let wrong = |place: Place, what: String| {
            let offset = self.extent(place, page).map_or(self.footer_start, |extent| extent.offset);
            self.at(offset, what)
        };
        for (place, index) in self.footer.columns.iter().enumerate() {
            let array = self.read_noting(Place::Column(place), page, None, Reads::Walk)?;
            if let Some(what) = broken_zone(&index.zones[number], &array) {
                let what = format!("page {page} of column {}: {what}", index.column.id.0);
                return Err(wrong(Place::Column(place), what));
            }
            if let (Some(said), found) = (index.sums.get(number), sum_of(&array))
                && found != Some(*said)
            {
                let found = found.map_or_else(|| "no sum".to_owned(), |sum| format!("a sum of {sum}"));
                let what = format!("page {page} of column {}: {found}, and the footer says {said}", index.column.id.0);
                return Err(wrong(Place::Column(place), what));
            }
            sketches[place].add(&array);
        }
        let (low, high) = self.footer.position_ranges[number];
        let positions = self.read_positions(page)?;
        if positions.iter().any(|position| !(low..=high).contains(position)) {
            return Err(wrong(POSITIONS, format!("page {page} of positions: outside of its range, {low} to {high}")));
        }
        let versions = self.read_versions(page)?;
        let (low, high) = self.footer.version_range;
        if versions.iter().any(|version| !(low..=high).contains(version)) {
            return Err(wrong(
                VERSIONS_HIGH,
                format!("page {page} of versions: outside of the range, {low} to {high}"),
            ));
        }
        if layout.key.is_empty() {
            return Ok(());
        }
        self.compare_keys(page, repeats, &self.read_keys(layout, page)?.0, last)
    }

    /// Compares how many different values each column has, as sketched, with what the footer says.
    fn compare_sketches(&self, sketches: &[Sketch]) -> Vec<Error> {
        let columns = self.footer.columns.iter().zip(sketches);
        let wrong = columns.filter(|(index, sketch)| sketch.to_bytes() != index.distinct);
        let error = |(index, _): (&ColumnIndex, &Sketch)| {
            self.at(self.footer_start, format!("the sketch of column {} is not that of its values", index.column.id.0))
        };
        wrong.map(error).collect()
    }

    fn compare_keys(&self, page: u32, repeats: bool, keys: &EncodedKeys, last: &mut Vec<u8>) -> Result<()> {
        let number = page as usize;
        let offset = self.extent(VERSIONS_HIGH, page).map_or(self.footer_start, |extent| extent.offset);
        let filter = &self.filters[number / GROUP_PAGES];
        for (row, key) in keys.iter().enumerate() {
            let order = key.cmp(last.as_slice());
            if (page > 0 || row > 0) && (order == Ordering::Less || order == Ordering::Equal && !repeats) {
                return Err(self.at(offset, format!("row {row} of page {page} is not above the row before it")));
            }
            if !filter.may_hold(key) {
                let filter = self.footer.filters[number / GROUP_PAGES].offset;
                return Err(self.at(filter, format!("the key filter does not know row {row} of page {page}")));
            }
            last.clear();
            last.extend_from_slice(key);
        }
        let is_last = page + 1 == self.pages();
        if keys.get(0) != self.footer.first_keys[number].as_slice() || is_last && *last != self.footer.last_key {
            return Err(self.at(self.footer_start, format!("the footer has other bounds than page {page}")));
        }
        Ok(())
    }
}

/// What is wrong with the statistics of these values.
fn broken_zone(zone: &Zone, array: &ArrayRef) -> Option<String> {
    let found = Zone::of(array);
    if found.nulls != zone.nulls {
        return Some(format!("{} NULLs, and its zone map says {}", found.nulls, zone.nulls));
    }
    let outside = |bound: &Option<Datum>, value: &Option<Datum>, wrong: Ordering| match (bound, value) {
        (Some(bound), Some(value)) => bound.partial_cmp(value).is_none_or(|order| order == wrong),
        // A bound where the values have none.
        (Some(_), None) => found.nulls < found.rows && found.min.is_none(),
        _ => false,
    };
    let below = outside(&zone.min, &found.min, Ordering::Greater);
    let above = outside(&zone.max, &found.max, Ordering::Less);
    if below || above {
        return Some("values outside of the bounds of its zone map".to_owned());
    }
    // Queries are answered from bounds, so these have to be the very ones that a writer would note.
    (found.min != zone.min || found.max != zone.max).then(|| "its zone map has wider bounds than its values".to_owned())
}

#[cfg(test)]
mod tests {
    use shoal_kernel::wire;

    use super::*;
    use crate::fuzzing::small_segment;
    use crate::options::StoreOptions;
    use crate::segment::SegmentContext;
    use crate::segment::format::{Footer, TRAILER_BYTES, footer_bytes};

    /// What is found in a segment whose footer says something else, under the right checksum.
    fn found(change: impl FnOnce(&mut Footer)) -> Vec<String> {
        let (disk, path, schema) = small_segment(|bytes| {
            let trailer = bytes.len() - TRAILER_BYTES as usize;
            let length = u32::from_le_bytes(bytes[trailer..trailer + 4].try_into().unwrap()) as usize;
            let mut footer: Footer = wire::decode(&bytes[trailer - length..trailer]).unwrap();
            change(&mut footer);
            [&bytes[..trailer - length], &footer_bytes(&footer).unwrap()].concat()
        });
        let layout = Layout::new(schema).unwrap();
        let context = SegmentContext::new(disk, &StoreOptions::default());
        let segment = Segment::open_file(&context, &path).unwrap();
        segment.inspect(&layout, true, false).into_iter().map(|problem| problem.message).collect()
    }

    #[track_caller]
    fn finds(words: &str, change: impl FnOnce(&mut Footer)) {
        let found = found(change);
        assert!(found.iter().any(|message| message.contains(words)), "'{words}' is not in {found:?}");
    }

    #[test]
    fn what_rows_do_not_bear_out_is_found() {
        assert_eq!(found(|_| {}), [""; 0]);
        finds("outside of the bounds of its zone map", |footer| footer.columns[0].zones[0].min = Some(Datum::Int(4)));
        finds("outside of the bounds of its zone map", |footer| {
            footer.columns[1].zones[0].max = Some(Datum::Text("a".into()))
        });
        finds("wider bounds than its values", |footer| footer.columns[0].zones[0].min = Some(Datum::Int(i64::MIN)));
        finds("wider bounds than its values", |footer| footer.columns[1].zones[0].max = None);
        finds("NULLs, and its zone map says", |footer| footer.columns[2].zones[0].nulls += 1);
        finds("and the footer says", |footer| footer.columns[0].sums[0] += 1);
        finds("is not that of its values", |footer| footer.columns[1].distinct = Vec::new());
        finds("of positions: outside of its range", |footer| footer.position_ranges[0] = (2, 2));
        finds("least position is above its greatest", |footer| footer.position_ranges[0] = (2, 1));
        finds("of versions: outside of the range", |footer| footer.version_range.1 = footer.version_range.0);
        finds("other bounds than page 0", |footer| footer.last_key.push(0));
        finds("first keys of its pages do not ascend", |footer| footer.first_keys[0] = vec![0xff; 20]);
        finds("bytes belong to no page", |footer| footer.columns[3].pages[0].offset += 1);
        finds("bytes belong to two pages", |footer| footer.columns[3].pages[0] = footer.columns[2].pages[0]);
        // Rows sorted by another column than the key.
        finds("not above the row before it", |footer| {
            let key = footer.columns[0].column.clone();
            footer.columns[0].column = std::mem::replace(&mut footer.columns[2].column, key);
        });
    }
}
