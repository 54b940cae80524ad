//! Finding rows by key: page bounds, then the filter, then the sorted keys of one page.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::ArrayRef;
use shoal_kernel::{Result, Version};

use super::context::{Identities, PageKeys};
use super::{GROUP_PAGES, Reads, Segment};
use crate::key::{EncodedKeys, Values, encode_columns};
use crate::layout::Layout;
use crate::pool::Part;
use crate::rows::identities;
use crate::state::{Location, SegmentView, SourceId};

impl Segment {
    /// Whether the page may hold a row of that identity.
    pub(crate) fn may_hold_key(&self, key: &[u8], page: u32) -> bool {
        self.candidate(key) == Some(page)
    }

    /// The only page that may hold a row of that identity, if one does.
    fn candidate(&self, key: &[u8]) -> Option<u32> {
        if key > self.footer.last_key.as_slice() {
            return None;
        }
        let page = self.footer.first_keys.partition_point(|first| first.as_slice() <= key).checked_sub(1)?;
        self.filters[page / GROUP_PAGES].may_hold(key).then_some(page as u32)
    }

    /// Identities of a page's rows. The pool has them decoded, so what they are made of is not kept as well.
    fn page_keys(&self, layout: &Layout, page: u32) -> Result<Arc<PageKeys>> {
        let key = self.context.key(self.id, Part::Keys { page });
        self.context.pool.keys(key, self.page_rows(page).len(), || {
            let identities = match layout.schema.is_upsert() {
                true => {
                    let column = |&place: &usize| self.read_stored(layout, place, page, None, Reads::Walk);
                    Identities::Columns(layout.key.iter().map(column).collect::<Result<_>>()?)
                }
                false => Identities::Encoded(identities(layout, &self.read_batch(layout, page)?)?),
            };
            Ok(PageKeys::new(identities))
        })
    }

    fn version_at(&self, keys: &PageKeys, page: u32, row: usize) -> Result<Version> {
        if let Some(versions) = keys.versions.get() {
            return Ok(versions[row]);
        }
        let versions = self.read_versions(page)?;
        Ok(keys.versions.get_or_init(|| versions)[row])
    }

    /// Identities and versions of a page's rows, for a walk.
    pub(crate) fn read_keys(&self, layout: &Layout, page: u32) -> Result<(EncodedKeys, Vec<Version>)> {
        let keys = match layout.schema.is_upsert() {
            true => {
                let column = |&place: &usize| self.read_stored(layout, place, page, None, Reads::Walk);
                let columns: Vec<ArrayRef> = layout.key.iter().map(column).collect::<Result<_>>()?;
                encode_columns(&columns, self.page_rows(page).len())?
            }
            false => identities(layout, &self.read_batch(layout, page)?)?,
        };
        Ok((keys, self.read_versions(page)?))
    }

    /// The encoded key columns and versions of a page's rows. For a walk. Of events that is less than their identities.
    pub(crate) fn read_key_columns(&self, layout: &Layout, page: u32) -> Result<(EncodedKeys, Vec<Version>)> {
        let column = |&place: &usize| self.read_stored(layout, place, page, None, Reads::Walk);
        let columns: Vec<ArrayRef> = layout.key.iter().map(column).collect::<Result<_>>()?;
        Ok((encode_columns(&columns, self.page_rows(page).len())?, self.read_versions(page)?))
    }

    /// The first row whose identity is not below that one.
    pub(crate) fn lower_bound(&self, layout: &Layout, identity: &[u8]) -> Result<u32> {
        let page = self.footer.first_keys.partition_point(|first| first.as_slice() < identity);
        // Those before it begin below; how far the last of them goes, its rows know.
        let Some(page) = page.checked_sub(1) else { return Ok(0) };
        let rows = self.page_rows(page as u32);
        let content = self.page_keys(layout, page as u32)?;
        let at = Search::of(&content.identities, rows.len())?.lower_bound(identity);
        Ok(rows.start + at as u32)
    }

    /// The identity of the first row of each page.
    pub(crate) fn first_keys(&self) -> &[Vec<u8>] {
        &self.footer.first_keys
    }

    /// The identity of the last row.
    pub(crate) fn last_key(&self) -> &[u8] {
        &self.footer.last_key
    }
}

impl SegmentView {
    /// Finds the living rows of the keys that nothing was met for yet.
    pub(crate) fn find(&self, layout: &Layout, keys: &EncodedKeys, met: &mut [Option<Location>]) -> Result<()> {
        let candidate = |row: usize| Some((self.segment.candidate(keys.get(row))?, row));
        let mut wanted: Vec<(u32, usize)> =
            (0..keys.len()).filter(|&row| met[row].is_none()).filter_map(candidate).collect();
        wanted.sort_unstable();
        for same_page in wanted.chunk_by(|one, other| one.0 == other.0) {
            let page = same_page[0].0;
            let first_row = self.segment.page_rows(page).start;
            let content = self.segment.page_keys(layout, page)?;
            let mut search = Search::of(&content.identities, self.segment.page_rows(page).len())?;
            for &(_, row) in same_page {
                let Some(at) = search.find(keys.get(row)) else { continue };
                let found = first_row + at as u32;
                if !self.dead.contains(found) {
                    let source = SourceId::Segment(self.segment.id());
                    let version = self.segment.version_at(&content, page, at)?;
                    let tombstone = self.segment.tombstones().contains(found);
                    met[row] = Some(Location { source, row: found, version, tombstone });
                }
            }
        }
        Ok(())
    }
}

/// A search among the sorted identities of a page.
struct Search<'a> {
    rows: usize,
    identities: Sorted<'a>,
    scratch: Vec<u8>,
}

enum Sorted<'a> {
    Columns(Vec<Values<'a>>),
    Encoded(&'a EncodedKeys),
}

impl<'a> Search<'a> {
    fn of(identities: &'a Identities, rows: usize) -> Result<Self> {
        let identities = match identities {
            Identities::Columns(columns) => {
                Sorted::Columns(columns.iter().map(|column| Values::of(column)).collect::<Result<_>>()?)
            }
            Identities::Encoded(keys) => Sorted::Encoded(keys),
        };
        Ok(Self { rows, identities, scratch: Vec::new() })
    }

    /// The row of that identity.
    fn find(&mut self, key: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.order(middle, key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The first row of that identity or a greater one.
    fn lower_bound(&mut self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.order(middle, key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        low
    }

    fn order(&mut self, row: usize, key: &[u8]) -> Ordering {
        match &self.identities {
            Sorted::Columns(columns) => {
                self.scratch.clear();
                columns.iter().for_each(|column| column.encode(row, &mut self.scratch));
                self.scratch.as_slice().cmp(key)
            }
            Sorted::Encoded(keys) => keys.get(row).cmp(key),
        }
    }
}
