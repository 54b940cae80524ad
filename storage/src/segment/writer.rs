//! Writing a segment, row group by row group.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use roaring::RoaringBitmap;
use shoal_kernel::env::{DiskFile, OpenMode};
use shoal_kernel::{Error, Planted, Result, SegmentId, Version};

use super::filter::FilterBuilder;
use super::format::{
    ColumnIndex, Extent, Footer, GROUP_PAGES, HEADER_BYTES, HIDDEN_COLUMNS, PAGE_ROWS, footer_bytes, header,
};
use super::sketch::Sketch;
use super::{Segment, SegmentContext, segment_file};
use crate::encoding::{Effort, EncodedChunk, encode_chunk, encode_page, repeats};
use crate::key::{EncodedKeys, sum_of};
use crate::layout::Layout;
use crate::predicate::Zone;
use crate::size::array_bytes;
use crate::wal::split_versions;

/// Rows in the order of their identities.
pub(crate) struct SegmentRows {
    /// All stored columns.
    pub(crate) batch: RecordBatch,
    pub(crate) keys: EncodedKeys,
    pub(crate) versions: Vec<Version>,
    pub(crate) positions: Vec<u64>,
    pub(crate) tombstones: Vec<bool>,
}

/// Bytes of the pages of one column in a row group that wait to be encoded together. The pages of a wider column do not wait
/// unless they repeat themselves, and then within the second bound.
const WAITING_BYTES_MAX: usize = 32 << 20;
const REPEATING_BYTES_MAX: usize = 256 << 20;

/// A column of the row group that is being collected.
#[derive(Clone, Default)]
struct Collected {
    /// Pages that came first and were too large to wait.
    encoded: Vec<Vec<u8>>,
    waiting: Vec<ArrayRef>,
    waiting_bytes: usize,
    /// The pages that wait have been found to repeat themselves.
    repeats: bool,
}

impl Collected {
    fn push(&mut self, page: ArrayRef) -> Result<()> {
        self.waiting_bytes += array_bytes(page.as_ref());
        self.waiting.push(page);
        if self.waiting_bytes <= WAITING_BYTES_MAX {
            return Ok(());
        }
        let may_wait = self.waiting_bytes <= REPEATING_BYTES_MAX && self.encoded.is_empty();
        // Asked once: it takes as long as encoding them.
        if may_wait && !self.repeats {
            self.repeats = repeats(&self.waiting)?;
        }
        if may_wait && self.repeats { Ok(()) } else { self.encode_waiting() }
    }

    fn encode_waiting(&mut self) -> Result<()> {
        self.waiting_bytes = 0;
        for page in self.waiting.drain(..) {
            self.encoded.push(encode_page(&page, Effort::Full)?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<EncodedChunk> {
        if self.encoded.is_empty() {
            return encode_chunk(&self.waiting);
        }
        self.encode_waiting()?;
        Ok(EncodedChunk { dictionary: None, pages: self.encoded })
    }
}

/// A segment in the making. If it is dropped unfinished, its file is removed.
pub(crate) struct SegmentWriter {
    context: Arc<SegmentContext>,
    layout: Arc<Layout>,
    dir: PathBuf,
    id: SegmentId,
    file: Arc<dyn DiskFile>,
    offset: u64,
    footer: Footer,
    tombstones: RoaringBitmap,
    /// The row group that is being collected, per column, hidden ones last.
    group: Vec<Collected>,
    filter: FilterBuilder,
    /// Different values, per column.
    sketches: Vec<Sketch>,
    finished: bool,
}

impl SegmentWriter {
    pub(crate) fn create(
        context: &Arc<SegmentContext>,
        layout: Arc<Layout>,
        dir: &Path,
        id: SegmentId,
    ) -> Result<Self> {
        let columns = layout.stored.clone();
        let path = dir.join(segment_file(id));
        let named = |error: std::io::Error| Error::from(error).context(format_args!("creating {}", path.display()));
        let file = context.disk.open(&path, OpenMode::CreateNew).map_err(named)?;
        let group = vec![Collected::default(); columns.len() + HIDDEN_COLUMNS];
        let sketches = vec![Sketch::default(); columns.len()];
        let column = |column| ColumnIndex {
            column,
            dictionaries: Vec::new(),
            pages: Vec::new(),
            zones: Vec::new(),
            sums: Vec::new(),
            distinct: Vec::new(),
        };
        let writer = Self {
            context: context.clone(),
            layout,
            dir: dir.to_owned(),
            id,
            file,
            offset: HEADER_BYTES,
            footer: Footer {
                rows: 0,
                columns: columns.into_iter().map(column).collect(),
                hidden: Default::default(),
                position_ranges: Vec::new(),
                first_keys: Vec::new(),
                last_key: Vec::new(),
                filters: Vec::new(),
                tombstones: Vec::new(),
                version_range: (Version(u128::MAX), Version(0)),
            },
            tombstones: RoaringBitmap::new(),
            group,
            filter: FilterBuilder::default(),
            sketches,
            finished: false,
        };
        writer.file.write_all_at(&header(), 0).map_err(named)?;
        Ok(writer)
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> u32 {
        self.footer.rows
    }

    /// Bytes written so far: of whole row groups.
    pub(crate) fn bytes(&self) -> u64 {
        self.offset
    }

    /// Adds a page; only the last one may have less than [`PAGE_ROWS`] rows.
    pub(crate) fn push(&mut self, rows: &SegmentRows) -> Result<()> {
        let count = rows.batch.num_rows();
        if count == 0 || count > PAGE_ROWS || !(self.footer.rows as usize).is_multiple_of(PAGE_ROWS) {
            return Err(Error::internal("a segment is written in full pages"));
        }
        let (high, low) = split_versions(&rows.versions);
        let positions: ArrayRef = Arc::new(UInt64Array::from(rows.positions.clone()));
        let hidden = [high, low, positions];
        for (column, array) in self.group.iter_mut().zip(rows.batch.columns().iter().cloned().chain(hidden)) {
            column.push(array)?;
        }
        let columns = self.footer.columns.iter_mut().zip(&mut self.sketches);
        for ((index, sketch), array) in columns.zip(rows.batch.columns()) {
            index.zones.push(Zone::of(array));
            index.sums.extend(sum_of(array));
            sketch.add(array);
        }
        let first_row = self.footer.rows;
        let tombstones = rows.tombstones.iter().enumerate().filter(|(_, tombstone)| **tombstone);
        self.tombstones.extend(tombstones.map(|(row, _)| first_row + row as u32));
        let span =
            |values: &[u64]| (values.iter().copied().min().unwrap_or(0), values.iter().copied().max().unwrap_or(0));
        self.footer.position_ranges.push(span(&rows.positions));
        let range = &mut self.footer.version_range;
        for version in &rows.versions {
            *range = (range.0.min(*version), range.1.max(*version));
        }
        self.footer.first_keys.push(rows.keys.get(0).to_vec());
        self.footer.last_key = rows.keys.get(count - 1).to_vec();
        self.filter.push(&self.layout, rows)?;
        self.footer.rows += count as u32;
        if self.footer.pages().is_multiple_of(GROUP_PAGES) {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<()> {
        if self.filter.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let start = self.offset;
        let mut put = |content: &[u8]| -> Result<Extent> {
            let length = u32::try_from(content.len()).map_err(|_| Error::internal("a page of more than 4 GiB"))?;
            let extent = Extent { offset: start + bytes.len() as u64, bytes: length, crc: crc32fast::hash(content) };
            bytes.extend_from_slice(content);
            Ok(extent)
        };
        let footer = &mut self.footer;
        let mut columns = self.group.iter_mut().map(std::mem::take);
        for (index, collected) in footer.columns.iter_mut().zip(&mut columns) {
            let chunk = collected.finish()?;
            index.dictionaries.push(chunk.dictionary.as_deref().map(&mut put).transpose()?);
            for page in &chunk.pages {
                index.pages.push(put(page)?);
            }
        }
        for (extents, collected) in footer.hidden.iter_mut().zip(columns) {
            for page in &collected.waiting {
                extents.push(put(&encode_page(page, Effort::Full)?)?);
            }
        }
        footer.filters.push(put(&std::mem::take(&mut self.filter).finish()?)?);
        self.file.write_all_at(&bytes, self.offset).map_err(|error| self.named(error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Completes the file, makes it durable and opens it.
    pub(crate) fn finish(mut self) -> Result<Segment> {
        self.write_group()?;
        self.tombstones.serialize_into(&mut self.footer.tombstones)?;
        for (index, sketch) in self.footer.columns.iter_mut().zip(&self.sketches) {
            index.distinct = sketch.to_bytes();
        }
        let end = footer_bytes(&self.footer)?;
        let write = || {
            self.file.write_all_at(&end, self.offset)?;
            if self.context.planted != Some(Planted::SkipSegmentSync) {
                self.file.sync()?;
            }
            self.context.disk.sync_dir(&self.dir)
        };
        write().map_err(|error| self.named(error))?;
        let segment = Segment::open(&self.context, &self.dir, self.id, self.offset + end.len() as u64)?;
        self.finished = true;
        Ok(segment)
    }

    fn named(&self, error: std::io::Error) -> Error {
        Error::from(error).context(format_args!("writing {}", segment_file(self.id)))
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        if !self.finished {
            // If this fails too, the next start removes what no manifest names.
            let _ = self.context.disk.remove_file(&self.dir.join(segment_file(self.id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use arrow::datatypes::DataType;

    use super::*;
    use crate::encoding::decode_page;

    fn collected(pages: &[ArrayRef]) -> Collected {
        let mut collected = Collected::default();
        pages.iter().for_each(|page| collected.push(page.clone()).unwrap());
        collected
    }

    fn page(text: impl Fn(usize) -> String) -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..15).map(text)))
    }

    #[test]
    fn wide_pages_do_not_wait() {
        let wide = "x".repeat(1 << 20);
        let pages: Vec<ArrayRef> = (0..5).map(|number| page(|row| format!("{number}.{row} {wide}"))).collect();
        let collected = collected(&pages);
        assert_eq!((collected.encoded.len(), collected.waiting.len()), (3, 2));
        let chunk = collected.finish().unwrap();
        assert!(chunk.dictionary.is_none());
        assert_eq!(chunk.pages.len(), pages.len());
        for (bytes, page) in chunk.pages.iter().zip(&pages) {
            assert_eq!(decode_page(bytes, &DataType::Utf8, page.len(), None, None).unwrap().as_ref(), page.as_ref());
        }
    }

    #[test]
    fn wide_pages_that_repeat_themselves_have_a_dictionary() {
        let wide = "x".repeat(1 << 20);
        let pages = vec![page(|row| format!("{} {wide}", row % 2)); 4];
        assert!(collected(&pages).finish().unwrap().dictionary.is_some());
    }
}
