//! Segments: immutable columnar files, sorted by what identifies a row.

mod bloom;
mod context;
mod copy;
mod dump;
mod ends;
mod filter;
mod find;
mod format;
mod inspect;
mod sketch;
mod writer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::cast::AsArray;
use arrow::array::types::UInt64Type;
use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use bytes::Bytes;
use roaring::RoaringBitmap;
use shoal_kernel::env::{DiskFile, OpenMode};
use shoal_kernel::{ColumnId, Error, ErrorCode, Planted, Result, SegmentId, Version};

#[cfg(test)]
pub(crate) use context::Identities;
pub(crate) use context::{PageKeys, Reads, SegmentContext};
pub use copy::SegmentReader;
pub use dump::{ColumnDump, DictionaryDump, FilterDump, PageDump, SegmentDump};
pub(crate) use format::PAGE_ROWS;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use format::reseal_footer;
pub(crate) use writer::{SegmentRows, SegmentWriter};

use ends::{Ends, read_ends};
use filter::KeyFilter;
use format::{Extent, Footer, GROUP_PAGES, HIDDEN_COLUMNS};

use crate::bounds::with_older;
use crate::damage::{Problem, corrupt, damaged};
use crate::encoding::{Dictionary, decode_codes, decode_page};
use crate::layout::{Layout, fill};
use crate::pool::Part;
use crate::predicate::Zone;
use crate::state::SegmentView;
use crate::store::Digest;
use crate::wal::join_versions;

/// Name of a segment's file.
pub(crate) fn segment_file(id: SegmentId) -> String {
    format!("seg-{:016x}.seg", id.0)
}

/// The segment whose file has that name.
pub(crate) fn segment_of_file(name: &str) -> Option<SegmentId> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".seg")?;
    u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16).map(SegmentId)
}

/// An open segment.
pub(crate) struct Segment {
    id: SegmentId,
    bytes: u64,
    /// Version of the file's format.
    format: u32,
    file: Arc<dyn DiskFile>,
    footer: Footer,
    /// Where the footer begins.
    footer_start: u64,
    filters: Vec<KeyFilter>,
    tombstones: RoaringBitmap,
    /// Of each stored column: its place in the footer, and what is in it.
    columns: BTreeMap<ColumnId, (usize, Zone)>,
    context: Arc<SegmentContext>,
    /// Pages that could not be read, and why.
    damage: Mutex<BTreeMap<(Place, u32), Problem>>,
    /// Digest of each page, with the number of dead rows and the version of the schema that it was computed for: rows never
    /// come back to life.
    digests: Mutex<BTreeMap<u32, (u64, u32, Digest)>>,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("id", &self.id).field("rows", &self.footer.rows).finish_non_exhaustive()
    }
}

/// What a segment stores by pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A column, by its number in the file.
    Column(usize),
    /// The dictionary of a column, by its number in the file; its pages are row groups.
    Dictionary(usize),
    /// What every row has beside the table's columns.
    Hidden(usize),
}

const VERSIONS_HIGH: Place = Place::Hidden(0);
const VERSIONS_LOW: Place = Place::Hidden(1);
const POSITIONS: Place = Place::Hidden(HIDDEN_COLUMNS - 1);

/// The codes of a page's rows, what they stand for, and which rows are not NULL.
pub(crate) struct PageCodes {
    pub(crate) dictionary: Arc<Dictionary>,
    pub(crate) codes: Vec<u32>,
    pub(crate) nulls: Option<NullBuffer>,
}

/// A page's rows, whole.
pub(crate) struct PageRows {
    /// All stored columns.
    pub(crate) batch: RecordBatch,
    pub(crate) versions: Vec<Version>,
    pub(crate) positions: Vec<u64>,
}

impl Segment {
    /// Opens a file and reads its footer and filters.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if these are damaged or the file has not the length that the manifest says, or is gone;
    /// [`ErrorCode::IncompatibleVersion`] if a newer build wrote it; else as the disk reports.
    pub(crate) fn open(context: &Arc<SegmentContext>, dir: &Path, id: SegmentId, bytes: u64) -> Result<Self> {
        let path = dir.join(segment_file(id));
        Self::read(context, &path, id, Some(bytes)).map_err(|error| damaged(error, segment_file(id), None))
    }

    /// Opens a file of which no manifest says how long it is.
    ///
    /// # Errors
    /// As [`Segment::open`], and [`ErrorCode::InvalidRequest`] if the name is not that of a segment.
    pub(crate) fn open_file(context: &Arc<SegmentContext>, path: &Path) -> Result<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let id = segment_of_file(&name).ok_or_else(|| {
            Error::new(ErrorCode::InvalidRequest, format!("'{name}' is not the name of a segment"))
                .with_help("segments are the files seg-<16 hexadecimal digits>.seg in a replica's directory")
        })?;
        Self::read(context, path, id, None).map_err(|error| damaged(error, &name, None))
    }

    fn read(context: &Arc<SegmentContext>, path: &Path, id: SegmentId, expected: Option<u64>) -> Result<Self> {
        let at = |offset: u64| move |error| damaged(error, segment_file(id), Some(offset));
        if !context.disk.exists(path)? {
            return Err(corrupt("the file is gone"));
        }
        let file = context.disk.open(path, OpenMode::Read)?;
        let Ends { bytes, format, footer, start, .. } = read_ends(&*file, id, expected)?;
        let filter = |extent: &Extent| {
            let bytes = read_extent(&*file, *extent).and_then(|bytes| KeyFilter::from_bytes(&bytes));
            bytes.map_err(|error| at(extent.offset)(error.context("a key filter")))
        };
        let filters = footer.filters.iter().map(filter).collect::<Result<_>>()?;
        let tombstones = RoaringBitmap::deserialize_from(footer.tombstones.as_slice());
        let tombstones = tombstones.ok().filter(|rows| rows.max().is_none_or(|row| row < footer.rows));
        let tombstones = tombstones.ok_or_else(|| at(start)(corrupt("the bitmap of tombstones is damaged")))?;
        let zone = |place: usize| {
            let mut zones = footer.columns[place].zones.iter();
            let first = zones.next().cloned().unwrap_or(Zone { rows: 0, nulls: 0, min: None, max: None });
            zones.fold(first, Zone::union)
        };
        let columns = (0..footer.columns.len()).map(|place| (footer.columns[place].column.id, (place, zone(place))));
        Ok(Self {
            id,
            bytes,
            format,
            file,
            filters,
            tombstones,
            columns: columns.collect(),
            footer,
            footer_start: start,
            context: context.clone(),
            damage: Mutex::default(),
            digests: Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> SegmentId {
        self.id
    }

    pub(crate) fn rows(&self) -> u32 {
        self.footer.rows
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn pages(&self) -> u32 {
        self.footer.pages() as u32
    }

    pub(crate) fn page_rows(&self, page: u32) -> Range<u32> {
        let start = page * PAGE_ROWS as u32;
        start..(start + PAGE_ROWS as u32).min(self.footer.rows)
    }

    pub(crate) fn tombstones(&self) -> &RoaringBitmap {
        &self.tombstones
    }

    /// Damage that was met, and that was still there when last looked at.
    pub(crate) fn damage(&self) -> Option<Problem> {
        let damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        damage.values().next().cloned()
    }

    /// Looks again at what could not be read: a disk's error may pass, and then there is no damage.
    pub(crate) fn recheck(&self) {
        let damage = || self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        let noted: Vec<(Place, u32)> = damage().keys().copied().collect();
        for (place, page) in noted {
            if self.read_page(place, page, None, Reads::Disk).is_ok() {
                damage().remove(&(place, page));
            }
        }
    }

    /// Smallest and greatest accept position in a page.
    pub(crate) fn position_range(&self, page: u32) -> (u64, u64) {
        self.footer.position_ranges[page as usize]
    }

    /// The first page that may hold a key above that one.
    pub(crate) fn first_page_above(&self, key: &[u8]) -> u32 {
        self.footer.first_keys.partition_point(|first| first.as_slice() <= key).saturating_sub(1) as u32
    }

    /// The first key of a page, and one that none of its keys is above.
    pub(crate) fn key_bounds(&self, page: u32) -> (&[u8], &[u8]) {
        let keys = &self.footer.first_keys;
        (&keys[page as usize], keys.get(page as usize + 1).unwrap_or(&self.footer.last_key))
    }

    /// What is in a column of the table.
    pub(crate) fn zone(&self, layout: &Layout, column: usize) -> Zone {
        self.zone_of(layout, column, self.footer.rows, |_, total| total)
    }

    /// What is in a page of a column of the table.
    pub(crate) fn page_zone(&self, layout: &Layout, column: usize, page: u32) -> Zone {
        let rows = self.page_rows(page).len() as u32;
        self.zone_of(layout, column, rows, |number, _| &self.footer.columns[number].zones[page as usize])
    }

    /// The sum of a page of an integer column of the table; `None` if it is not known of one of the column's forms.
    pub(crate) fn page_sum(&self, layout: &Layout, column: usize, page: u32) -> Option<i128> {
        // A row has a value in one form at most, and what integers are widened to has the same worth.
        let forms = std::iter::once(&column).chain(layout.older(column)).filter_map(|place| self.form(layout, *place));
        forms.map(|(number, _)| self.footer.columns[number].sums.get(page as usize).copied()).sum()
    }

    fn zone_of<'a>(
        &'a self,
        layout: &Layout,
        column: usize,
        rows: u32,
        stored: impl Fn(usize, &'a Zone) -> &'a Zone,
    ) -> Zone {
        let form = |place: &usize| self.form(layout, *place).map(|(number, total)| stored(number, total));
        // A column that came later, and none of whose older forms is here, is NULL.
        let newest = form(&column).cloned();
        let newest = match self.has_type_of(layout, column) {
            true => newest,
            false => newest.map(|zone| Zone { min: None, max: None, ..zone }),
        };
        let newest = newest.unwrap_or(Zone { rows, nulls: rows, min: None, max: None });
        let data_type = &layout.stored[column].data_type;
        layout.older(column).iter().fold(newest, |zone, older| match form(older) {
            Some(found) if self.has_type_of(layout, *older) => {
                with_older(zone, data_type, found, &layout.stored[*older].data_type)
            }
            Some(found) => with_older(zone, data_type, &Zone { min: None, max: None, ..found.clone() }, data_type),
            None => zone,
        })
    }

    /// Where a stored column is in this file, if it is: its number, and what is in it.
    fn form(&self, layout: &Layout, place: usize) -> Option<(usize, &Zone)> {
        self.columns.get(&layout.stored[place].id).map(|(number, zone)| (*number, zone))
    }

    /// Whether a stored column has the type here that it always had. What has not is damage, whatever its checksum says.
    pub(crate) fn has_type_of(&self, layout: &Layout, place: usize) -> bool {
        let stored = &layout.stored[place];
        self.form(layout, place)
            .is_none_or(|(number, _)| self.footer.columns[number].column.data_type == stored.data_type)
    }

    /// Whether rows lie in the order of the table's key: all of its columns are here.
    pub(crate) fn is_in_key_order(&self, layout: &Layout) -> bool {
        layout.key.iter().all(|&place| self.form(layout, place).is_some() && self.has_type_of(layout, place))
    }

    /// Reads a page of a column of the table: NULLs if it came later, converted if it was widened. All rows, or the wanted
    /// ones (ascending, counted from the page's first).
    pub(crate) fn read_column(
        &self,
        layout: &Layout,
        column: usize,
        page: u32,
        wanted: Option<&[u32]>,
        reads: Reads,
    ) -> Result<ArrayRef> {
        let newest = self.read_stored(layout, column, page, wanted, reads)?;
        layout.older(column).iter().try_fold(newest, |newer, older| match self.form(layout, *older) {
            Some(_) if newer.null_count() > 0 => fill(newer, &self.read_stored(layout, *older, page, wanted, reads)?),
            _ => Ok(newer),
        })
    }

    /// Reads a page of a stored column.
    fn read_stored(
        &self,
        layout: &Layout,
        place: usize,
        page: u32,
        wanted: Option<&[u32]>,
        reads: Reads,
    ) -> Result<ArrayRef> {
        match self.form(layout, place) {
            Some((number, _)) if !self.has_type_of(layout, place) => {
                let wanted = &layout.stored[place].data_type;
                self.noting(Place::Column(number), page, |_| Err(corrupt(format!("it is not stored as {wanted}"))))
            }
            Some((number, _)) => self.read_noting(Place::Column(number), page, wanted, reads),
            None => {
                let rows = wanted.map_or_else(|| self.page_rows(page).len(), <[u32]>::len);
                Ok(new_null_array(&layout.stored[place].data_type, rows))
            }
        }
    }

    /// The codes of a page of a column of the table, of all rows or the wanted ones, if it is stored as such and none of its
    /// values is in an older form.
    pub(crate) fn read_codes(
        &self,
        layout: &Layout,
        column: usize,
        page: u32,
        wanted: Option<&[u32]>,
    ) -> Result<Option<PageCodes>> {
        let Some((number, _)) = self.form(layout, column) else { return Ok(None) };
        let mut older = layout.older(column).iter().filter_map(|older| self.form(layout, *older));
        if older.any(|(_, zone)| zone.nulls < zone.rows) || !self.has_type_of(layout, column) {
            return Ok(None);
        }
        let Some(dictionary) =
            self.noting(Place::Dictionary(number), page, |segment| segment.dictionary(number, page, Reads::Pooled))?
        else {
            return Ok(None);
        };
        let place = Place::Column(number);
        let codes = self.noting(place, page, |segment| {
            let bytes = segment.page_bytes(place, page, Reads::Pooled)?;
            decode_codes(&bytes, segment.page_rows(page).len(), &dictionary, wanted)
        })?;
        Ok(codes.map(|(codes, nulls)| PageCodes { dictionary, codes, nulls }))
    }

    /// Reads all of a page, for a walk.
    pub(crate) fn read_rows(&self, layout: &Layout, page: u32) -> Result<PageRows> {
        let batch = self.read_batch(layout, page)?;
        Ok(PageRows { batch, versions: self.read_versions(page)?, positions: self.read_positions(page)? })
    }

    /// The accept positions of a page's rows.
    pub(crate) fn read_positions(&self, page: u32) -> Result<Vec<u64>> {
        let positions = self.read_noting(POSITIONS, page, None, Reads::Walk)?;
        Ok(positions.as_primitive::<UInt64Type>().values().to_vec())
    }

    /// Reads all stored columns of a page.
    fn read_batch(&self, layout: &Layout, page: u32) -> Result<RecordBatch> {
        let columns = (0..layout.stored.len()).map(|place| self.read_stored(layout, place, page, None, Reads::Walk));
        layout.batch(columns.collect::<Result<_>>()?, self.page_rows(page).len())
    }

    fn read_versions(&self, page: u32) -> Result<Vec<Version>> {
        let high = self.read_noting(VERSIONS_HIGH, page, None, Reads::Walk)?;
        let low = self.read_noting(VERSIONS_LOW, page, None, Reads::Walk)?;
        Ok(join_versions(&high, &low))
    }

    /// Where a page lies, or the dictionary of its row group if there is one.
    fn extent(&self, place: Place, page: u32) -> Option<Extent> {
        let page = page as usize;
        match place {
            Place::Column(number) => self.footer.columns[number].pages.get(page).copied(),
            Place::Hidden(number) => self.footer.hidden[number].get(page).copied(),
            Place::Dictionary(number) => {
                self.footer.columns[number].dictionaries.get(page / GROUP_PAGES).copied().flatten()
            }
        }
    }

    /// The bytes of a page, whose checksum holds. The pool has those of columns only: what every row has beside them is read by
    /// walks, or kept decoded.
    fn page_bytes(&self, place: Place, page: u32, reads: Reads) -> Result<Bytes> {
        let extent = self.extent(place, page).ok_or_else(|| Error::internal("there is no such page"))?;
        let read = || match self.context.planted == Some(Planted::NoPageChecksum) {
            true => read_unchecked(&*self.file, extent),
            false => read_extent(&*self.file, extent),
        };
        match (place, reads) {
            (Place::Column(number), Reads::Pooled) => {
                let key = self.context.key(self.id, Part::Page { column: number as u32, page });
                self.context.pool.page(key, || read().map(Bytes::from))
            }
            _ => read().map(Bytes::from),
        }
    }

    /// The dictionary that the codes of a page refer to, if its column chunk has one.
    fn dictionary(&self, number: usize, page: u32, reads: Reads) -> Result<Option<Arc<Dictionary>>> {
        let column = &self.footer.columns[number];
        let group = page as usize / GROUP_PAGES;
        let Some(extent) = column.dictionaries[group] else { return Ok(None) };
        let read = || Dictionary::decode(&read_extent(&*self.file, extent)?, &column.column.data_type).map(Arc::new);
        let part = Part::Dictionary { column: number as u32, group: group as u32 };
        match reads {
            Reads::Pooled | Reads::Walk => self.context.pool.dictionary(self.context.key(self.id, part), read),
            Reads::Disk => read(),
        }
        .map(Some)
    }

    fn read_page(&self, place: Place, page: u32, wanted: Option<&[u32]>, reads: Reads) -> Result<ArrayRef> {
        match place {
            Place::Column(number) => {
                self.decode(place, page, self.dictionary(number, page, reads)?.as_deref(), wanted, reads)
            }
            Place::Dictionary(number) => Ok(match self.dictionary(number, page, reads)? {
                Some(dictionary) => dictionary.values().clone(),
                None => new_null_array(&DataType::Null, 0),
            }),
            Place::Hidden(_) => self.decode(place, page, None, wanted, reads),
        }
    }

    /// Reads a page whose dictionary is at hand.
    fn decode(
        &self,
        place: Place,
        page: u32,
        dictionary: Option<&Dictionary>,
        wanted: Option<&[u32]>,
        reads: Reads,
    ) -> Result<ArrayRef> {
        let data_type = match place {
            Place::Column(number) | Place::Dictionary(number) => &self.footer.columns[number].column.data_type,
            Place::Hidden(_) => &DataType::UInt64,
        };
        decode_page(&self.page_bytes(place, page, reads)?, data_type, self.page_rows(page).len(), dictionary, wanted)
    }

    fn read_noting(&self, place: Place, page: u32, wanted: Option<&[u32]>, reads: Reads) -> Result<ArrayRef> {
        let dictionary = match place {
            // A bad dictionary is damage of its own.
            Place::Column(number) => {
                self.noting(Place::Dictionary(number), page, |segment| segment.dictionary(number, page, reads))?
            }
            _ => None,
        };
        self.noting(place, page, |segment| segment.decode(place, page, dictionary.as_deref(), wanted, reads))
    }

    /// Reads; if that fails, says where the damage is, and remembers it.
    fn noting<T>(&self, place: Place, page: u32, read: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        read(self).map_err(|error| {
            let column = |number: usize| self.footer.columns[number].column.id.0;
            let error = error.context(match place {
                Place::Column(number) => format!("page {page} of column {}", column(number)),
                Place::Dictionary(number) => format!("dictionary before page {page} of column {}", column(number)),
                POSITIONS => format!("page {page} of positions"),
                Place::Hidden(_) => format!("page {page} of versions"),
            });
            let file = segment_file(self.id);
            let offset = self.extent(place, page).map(|extent| extent.offset);
            let error = damaged(error, &file, offset);
            if matches!(error.code(), ErrorCode::Corruption | ErrorCode::Io) {
                let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
                damage.insert((place, page), Problem::of(&error, &file));
            }
            if error.code() == ErrorCode::Corruption {
                // What is still sound of it is not to be trusted for being in memory.
                self.forget();
            }
            error
        })
    }

    /// Takes all that is its out of the pool.
    fn forget(&self) {
        let forget = |part| self.context.pool.forget(&self.context.key(self.id, part));
        for (number, index) in self.footer.columns.iter().enumerate() {
            let column = number as u32;
            let groups = (0..).zip(&index.dictionaries).filter(|(_, dictionary)| dictionary.is_some());
            groups.for_each(|(group, _)| forget(Part::Dictionary { column, group }));
            (0..self.pages()).for_each(|page| forget(Part::Page { column, page }));
        }
        (0..self.pages()).for_each(|page| forget(Part::Keys { page }));
    }

    /// Reads everything anew from the disk, and checks it.
    pub(crate) fn verify(&self, dir: &Path) -> Vec<Problem> {
        let opened = Self::open(&self.context.apart(), dir, self.id, self.bytes).err();
        let mut problems: Vec<Problem> =
            opened.map(|error| Problem::of(&error, &segment_file(self.id))).into_iter().collect();
        problems.extend(self.read_everything());
        problems
    }
}

impl Drop for Segment {
    /// Nobody reads it any more, so nobody can put anything of it into the pool behind this.
    fn drop(&mut self) {
        self.forget();
    }
}

impl SegmentView {
    /// Digest of the rows of a page that are not dead.
    pub(crate) fn page_digest(&self, layout: &Layout, page: u32) -> Result<Digest> {
        let rows = self.segment.page_rows(page);
        let (dead, schema) = (self.dead.range_cardinality(rows.clone()), layout.schema.version);
        let known = self.segment.digests.lock().unwrap_or_else(PoisonError::into_inner).get(&page).copied();
        if let Some((.., digest)) = known.filter(|(count, version, _)| (*count, *version) == (dead, schema)) {
            return Ok(digest);
        }
        let content = self.segment.read_rows(layout, page)?;
        let digest = Digest::of_rows(
            layout,
            &content.batch,
            &content.versions,
            |row| self.dead.contains(rows.start + row as u32),
            |row| self.segment.tombstones.contains(rows.start + row as u32),
        )?;
        self.segment.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(page, (dead, schema, digest));
        Ok(digest)
    }
}

fn read_unchecked(file: &dyn DiskFile, extent: Extent) -> Result<Vec<u8>> {
    let mut bytes = vec![0; extent.bytes as usize];
    file.read_exact_at(&mut bytes, extent.offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::new(ErrorCode::Corruption, "the file is cut short"),
        _ => Error::from(error),
    })?;
    Ok(bytes)
}

fn read_extent(file: &dyn DiskFile, extent: Extent) -> Result<Vec<u8>> {
    let bytes = read_unchecked(file, extent)?;
    match crc32fast::hash(&bytes) == extent.crc {
        true => Ok(bytes),
        false => Err(Error::new(ErrorCode::Corruption, "the checksum is wrong")),
    }
}
