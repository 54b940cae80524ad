//! Finding rows by key: page bounds, then the filter, then the sorted keys of one page.

use std::sync::Arc;

use arrow::array::ArrayRef;
use shoal_kernel::{ColumnId, Result};

use super::bloom::Bloom;
use super::cache::PageKeys;
use super::{GROUP_PAGES, Place, Segment};
use crate::hash::content_hashes;
use crate::key::EncodedKeys;
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
        self.blooms[page / GROUP_PAGES].may_hold(Bloom::hash(key)).then_some(page as u32)
    }

    /// Identities and versions of a page's rows.
    pub(crate) fn page_keys(&self, page: u32) -> Result<Arc<PageKeys>> {
        self.context.page_keys(self.id, page, || {
            Ok(PageKeys { keys: self.read_identities(page)?, versions: self.read_versions(page)? })
        })
    }

    fn read_identities(&self, page: u32) -> Result<EncodedKeys> {
        let layout = &self.context.layout;
        if layout.schema.is_upsert() || self.is_current() {
            let rows = self.page_rows(page).len();
            let column = |(place, column): (usize, &shoal_kernel::Column)| {
                // The content of an upsert table's row has no part in its identity.
                if layout.schema.is_upsert() && !layout.key.contains(&place) {
                    return Ok(arrow::array::new_null_array(&column.data_type, rows));
                }
                self.read_column(column, page)
            };
            let columns = layout.schema.columns.iter().enumerate().map(column).collect::<Result<_>>()?;
            return identities(layout, &layout.batch(columns, rows)?);
        }
        // Sorted by the content as it was when the file was written, so it is searched by that.
        let rows = self.page_rows(page).len();
        let stored = (0..self.footer.columns.len())
            .map(|place| Ok((self.footer.columns[place].column.id, self.read_noting(Place::Column(place), page)?)))
            .collect::<Result<Vec<(ColumnId, ArrayRef)>>>()?;
        let keys = crate::key::encode_keys(&layout.adapt(&stored, rows)?, &layout.key)?;
        let contents = content_hashes(&stored, rows)?;
        let mut identities = EncodedKeys::default();
        for (key, content) in keys.iter().zip(contents) {
            identities.push_with(|out| {
                out.extend_from_slice(key);
                out.extend_from_slice(&content.to_be_bytes());
            })?;
        }
        Ok(identities)
    }
}

impl SegmentView {
    /// Finds the living rows of the keys that nothing was met for yet.
    pub(crate) fn find(&self, keys: &EncodedKeys, met: &mut [Option<Location>]) -> Result<()> {
        let candidate = |row: usize| Some((self.segment.candidate(keys.get(row))?, row));
        let mut wanted: Vec<(u32, usize)> =
            (0..keys.len()).filter(|&row| met[row].is_none()).filter_map(candidate).collect();
        wanted.sort_unstable();
        for same_page in wanted.chunk_by(|one, other| one.0 == other.0) {
            let page = same_page[0].0;
            let first_row = self.segment.page_rows(page).start;
            let content = self.segment.page_keys(page)?;
            for &(_, row) in same_page {
                let Some(at) = search(&content.keys, keys.get(row)) else { continue };
                let found = first_row + at as u32;
                if !self.dead.contains(found) {
                    let source = SourceId::Segment(self.segment.id());
                    met[row] = Some(Location { source, row: found, version: content.versions[at] });
                }
            }
        }
        Ok(())
    }
}

fn search(keys: &EncodedKeys, key: &[u8]) -> Option<usize> {
    let (mut low, mut high) = (0, keys.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match keys.get(middle).cmp(key) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Equal => return Some(middle),
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}
