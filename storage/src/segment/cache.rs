//! What the segments of one store share: the disk, the schema, and a cache of decoded keys.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_kernel::env::Disk;
use shoal_kernel::{Planted, Result, SegmentId, Version};

use crate::key::EncodedKeys;
use crate::layout::Layout;
use crate::options::StoreOptions;

/// The identities and versions of a page's rows.
#[derive(Debug)]
pub(crate) struct PageKeys {
    pub(crate) keys: EncodedKeys,
    pub(crate) versions: Vec<Version>,
}

impl PageKeys {
    fn memory_bytes(&self) -> usize {
        self.keys.memory_bytes() + self.versions.len() * size_of::<Version>()
    }
}

/// Shared by the segments of one store.
pub(crate) struct SegmentContext {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) planted: Option<Planted>,
    keys: Mutex<KeyCache>,
}

impl SegmentContext {
    pub(crate) fn new(disk: Arc<dyn Disk>, layout: Arc<Layout>, options: &StoreOptions) -> Arc<Self> {
        let keys = Mutex::new(KeyCache::new(options.key_cache_bytes_max));
        Arc::new(Self { disk, layout, planted: options.planted, keys })
    }

    /// The keys of a page, from the cache or by reading them.
    pub(crate) fn page_keys(
        &self,
        segment: SegmentId,
        page: u32,
        read: impl FnOnce() -> Result<PageKeys>,
    ) -> Result<Arc<PageKeys>> {
        let cache = || self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = cache().get((segment, page)) {
            return Ok(keys);
        }
        let keys = Arc::new(read()?);
        cache().put((segment, page), keys.clone());
        Ok(keys)
    }
}

type Place = (SegmentId, u32);

/// Least recently used goes first. Segment numbers are never used twice while a store is open.
struct KeyCache {
    bytes_max: usize,
    bytes: usize,
    clock: u64,
    pages: BTreeMap<Place, (u64, Arc<PageKeys>)>,
    by_use: BTreeMap<u64, Place>,
}

impl KeyCache {
    fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, clock: 0, pages: BTreeMap::new(), by_use: BTreeMap::new() }
    }

    fn get(&mut self, place: Place) -> Option<Arc<PageKeys>> {
        let (used, keys) = self.pages.get_mut(&place)?;
        self.by_use.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.by_use.insert(self.clock, place);
        Some(keys.clone())
    }

    fn put(&mut self, place: Place, keys: Arc<PageKeys>) {
        self.clock += 1;
        self.bytes += keys.memory_bytes();
        self.by_use.insert(self.clock, place);
        if let Some((used, old)) = self.pages.insert(place, (self.clock, keys)) {
            self.by_use.remove(&used);
            self.bytes -= old.memory_bytes();
        }
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            if let Some((_, old)) = self.pages.remove(&oldest) {
                self.bytes -= old.memory_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_used_within_its_bytes() {
        let page = || Arc::new(PageKeys { keys: EncodedKeys::default(), versions: vec![Version(1); 10] });
        let mut cache = KeyCache::new(3 * 160);
        (0..3).for_each(|number| cache.put((SegmentId(1), number), page()));
        assert!(cache.get((SegmentId(1), 0)).is_some());
        cache.put((SegmentId(2), 0), page());
        assert!(cache.get((SegmentId(1), 1)).is_none());
        assert!(cache.get((SegmentId(1), 0)).is_some());
        cache.put((SegmentId(2), 0), page());
        assert_eq!((cache.bytes, cache.pages.len(), cache.by_use.len()), (480, 3, 3));
    }
}
