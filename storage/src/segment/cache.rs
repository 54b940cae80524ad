//! What the segments of one store share: the disk, and a cache of what is decoded again and again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::ArrayRef;
use shoal_kernel::env::Disk;
use shoal_kernel::{Planted, Result, SegmentId, Version};

use crate::encoding::Dictionary;
use crate::key::EncodedKeys;
use crate::options::StoreOptions;

/// What identifies the rows of a page, in their order.
#[derive(Debug)]
pub(crate) enum Identities {
    /// The columns of the key, in key order: encoded only where a search looks.
    Columns(Vec<ArrayRef>),
    Encoded(EncodedKeys),
}

/// The identities of a page's rows, and their versions once somebody has asked for them.
#[derive(Debug)]
pub(crate) struct PageKeys {
    pub(crate) identities: Identities,
    pub(crate) versions: OnceLock<Vec<Version>>,
}

impl PageKeys {
    fn memory_bytes(&self, rows: usize) -> usize {
        let identities = match &self.identities {
            Identities::Columns(columns) => columns.iter().map(|column| column.get_array_memory_size()).sum(),
            Identities::Encoded(keys) => keys.memory_bytes(),
        };
        identities + rows * size_of::<Version>()
    }
}

/// Shared by the segments of one store.
pub(crate) struct SegmentContext {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) planted: Option<Planted>,
    cache: Mutex<Cache>,
}

impl SegmentContext {
    pub(crate) fn new(disk: Arc<dyn Disk>, options: &StoreOptions) -> Arc<Self> {
        let cache = Mutex::new(Cache::new(options.cache_bytes_max));
        Arc::new(Self { disk, planted: options.planted, cache })
    }

    /// The keys of a page of so many rows, from the cache or by reading them.
    pub(crate) fn page_keys(
        &self,
        segment: SegmentId,
        page: u32,
        rows: usize,
        read: impl FnOnce() -> Result<PageKeys>,
    ) -> Result<Arc<PageKeys>> {
        let place = Place { segment, column: None, run: page as usize };
        if let Some(Decoded::Keys(keys)) = self.cache().get(place) {
            return Ok(keys);
        }
        let keys = Arc::new(read()?);
        self.cache().put(place, Decoded::Keys(keys.clone()), keys.memory_bytes(rows));
        Ok(keys)
    }

    /// The dictionary of a column in a row group, from the cache or by reading it.
    pub(crate) fn dictionary(
        &self,
        segment: SegmentId,
        column: usize,
        group: usize,
        read: impl FnOnce() -> Result<Dictionary>,
    ) -> Result<Arc<Dictionary>> {
        let place = Place { segment, column: Some(column), run: group };
        if let Some(Decoded::Dictionary(dictionary)) = self.cache().get(place) {
            return Ok(dictionary);
        }
        let dictionary = Arc::new(read()?);
        self.cache().put(place, Decoded::Dictionary(dictionary.clone()), dictionary.memory_bytes());
        Ok(dictionary)
    }

    /// Lets go of what was decoded of a segment.
    pub(crate) fn forget(&self, segment: SegmentId) {
        self.cache().forget(segment);
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys of a page, or the dictionary of a column in a row group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    segment: SegmentId,
    column: Option<usize>,
    run: usize,
}

#[derive(Debug, Clone)]
enum Decoded {
    Keys(Arc<PageKeys>),
    Dictionary(Arc<Dictionary>),
}

struct Entry {
    used: u64,
    bytes: usize,
    decoded: Decoded,
}

/// Least recently used goes first. Segment numbers are never used twice while a store is open.
struct Cache {
    bytes_max: usize,
    bytes: usize,
    clock: u64,
    entries: BTreeMap<Place, Entry>,
    by_use: BTreeMap<u64, Place>,
}

impl Cache {
    fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, clock: 0, entries: BTreeMap::new(), by_use: BTreeMap::new() }
    }

    fn get(&mut self, place: Place) -> Option<Decoded> {
        let entry = self.entries.get_mut(&place)?;
        self.by_use.remove(&entry.used);
        self.clock += 1;
        entry.used = self.clock;
        self.by_use.insert(self.clock, place);
        Some(entry.decoded.clone())
    }

    fn put(&mut self, place: Place, decoded: Decoded, bytes: usize) {
        self.remove(place);
        self.clock += 1;
        self.bytes += bytes;
        self.by_use.insert(self.clock, place);
        self.entries.insert(place, Entry { used: self.clock, bytes, decoded });
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.by_use.first_key_value()
        {
            self.remove(*oldest);
        }
    }

    fn remove(&mut self, place: Place) {
        if let Some(entry) = self.entries.remove(&place) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    fn forget(&mut self, segment: SegmentId) {
        let from = Place { segment, column: None, run: 0 };
        let places = self.entries.range(from..).map(|(place, _)| *place);
        let places: Vec<Place> = places.take_while(|place| place.segment == segment).collect();
        places.into_iter().for_each(|place| self.remove(place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_used_within_its_bytes() {
        let keys = || {
            let identities = Identities::Encoded(EncodedKeys::default());
            Decoded::Keys(Arc::new(PageKeys { identities, versions: OnceLock::new() }))
        };
        let place = |segment, run| Place { segment: SegmentId(segment), column: None, run };
        let mut cache = Cache::new(3 * 160);
        (0..3).for_each(|run| cache.put(place(1, run), keys(), 160));
        assert!(cache.get(place(1, 0)).is_some());
        cache.put(place(2, 0), keys(), 160);
        assert!(cache.get(place(1, 1)).is_none());
        assert!(cache.get(place(1, 0)).is_some());
        cache.put(place(2, 0), keys(), 160);
        assert_eq!((cache.bytes, cache.entries.len(), cache.by_use.len()), (480, 3, 3));
        cache.forget(SegmentId(1));
        assert_eq!((cache.bytes, cache.entries.len(), cache.by_use.len()), (160, 1, 1));
    }
}
