//! The page pool: what the replicas of a node keep of their segments in memory, all of it within one bound.
//!
//! Pages are kept as they lie in the file, once their checksum held: whoever finds one neither reads nor checks. Dictionaries
//! and the keys of pages are kept decoded. What goes is decided by `quick_cache`: CLOCK-PRO with a list of what went lately, in
//! the manner of S3-FIFO, so that pages which are read once go before those that were read twice. Its hash function has no
//! random part and the number of its shards follows from the pool's size, so that equal requests in equal order leave the
//! same pages, on any machine.
//!
//! Sources: Jiang, Chen, Zhang, "CLOCK-Pro" (USENIX 2005); Yang et al., "FIFO queues are all you need for cache eviction"
//! (SOSP 2023).

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use shoal_kernel::{Result, SegmentId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::encoding::Dictionary;
use crate::segment::PageKeys;

/// Bytes of a shard at least, unless the pool is smaller; each has a lock of its own.
const SHARD_BYTES_MIN: usize = 32 << 20;
const SHARDS_MAX: usize = 64;

/// An entry may take this share of its shard: no dictionary of a usual pool is too large, and a tiny one keeps some pages.
const ENTRY_ONE_IN: usize = 2;

/// What an entry is taken for where it matters how many there are.
const ENTRY_BYTES_USUAL: usize = 4 << 10;

/// As many of the entries that went are remembered as there are entries. A page that comes back meanwhile is worth more than one
/// that nobody has asked for lately: with less memory than that, a pool full of what was read often is not given up when its
/// readers move on to something that does not fit beside it.
const REMEMBERED_SHARE: f64 = 1.0;

/// What an entry takes beside its content: tables that grow by doubling and also remember what went, and an allocation.
const OVERHEAD_BYTES: usize = 2 * (size_of::<PoolKey>() + size_of::<Entry>()) + 64;

/// A bounded buffer pool for parts of segments, shared by all stores of a node. Safe to use from any thread.
pub struct PagePool {
    bytes_max: usize,
    entry_bytes_max: usize,
    entries: Cache<PoolKey, Entry, EntryBytes, BuildHasherDefault<KeyHasher>>,
    stores: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// A pool at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolStatus {
    /// Requests that found what they looked for, since the pool was made.
    pub hits: u64,
    /// Requests that had to read. Walks through all pages of a segment do not ask the pool for pages, and do not count.
    pub misses: u64,
    /// Bytes that it holds, with what it takes to hold them.
    pub bytes: u64,
    /// Bytes that it may hold.
    pub bytes_max: u64,
}

/// What an entry is of. A segment's number means something within its store alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    /// Given by [`PagePool::next_store`].
    pub(crate) store: u64,
    pub(crate) segment: SegmentId,
    pub(crate) part: Part,
}

/// A part of a segment; columns by their number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// A page of a column, as it lies in the file.
    Page { column: u32, page: u32 },
    /// The dictionary of a column in a row group.
    Dictionary { column: u32, group: u32 },
    /// What identifies the rows of a page.
    Keys { page: u32 },
}

#[derive(Clone)]
struct Entry {
    content: Content,
    /// Fixed when the entry comes: the pool's sums must not move under it.
    bytes: usize,
}

#[derive(Clone)]
enum Content {
    Page(Bytes),
    Dictionary(Arc<Dictionary>),
    Keys(Arc<PageKeys>),
}

#[derive(Clone)]
struct EntryBytes;

impl Weighter<PoolKey, Entry> for EntryBytes {
    fn weight(&self, _: &PoolKey, entry: &Entry) -> u64 {
        entry.bytes as u64
    }
}

/// XXH3 without a secret, so that the order of eviction is the same in every run.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl PagePool {
    /// An empty pool for that many bytes. One for 0 bytes keeps nothing.
    pub fn new(bytes_max: usize) -> Self {
        let shards = 1 << (bytes_max / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX).ilog2();
        let shard_bytes = bytes_max / shards;
        #[allow(clippy::expect_used, reason = "both capacities are given, and nothing else is asked for")]
        let options = OptionsBuilder::new()
            .shards(shards)
            .weight_capacity((shard_bytes * shards) as u64)
            .estimated_items_capacity(bytes_max / ENTRY_BYTES_USUAL)
            .ghost_allocation(REMEMBERED_SHARE)
            .build()
            .expect("a cache with both capacities");
        let entries =
            Cache::with_options(options, EntryBytes, BuildHasherDefault::default(), DefaultLifecycle::default());
        let entry_bytes_max = shard_bytes / ENTRY_ONE_IN;
        let (stores, hits, misses) = Default::default();
        Self { bytes_max, entry_bytes_max, entries, stores, hits, misses }
    }

    /// How it is doing.
    pub fn status(&self) -> PoolStatus {
        PoolStatus {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            bytes: self.entries.weight(),
            bytes_max: self.bytes_max as u64,
        }
    }

    /// A number that no store had before: what one life of a store left here is never met by another.
    pub(crate) fn next_store(&self) -> u64 {
        self.stores.fetch_add(1, Ordering::Relaxed)
    }

    /// A page's bytes, from the pool or by reading and checking them.
    pub(crate) fn page(&self, key: PoolKey, read: impl FnOnce() -> Result<Bytes>) -> Result<Bytes> {
        if let Some(Content::Page(bytes)) = self.get(&key) {
            return Ok(bytes);
        }
        let bytes = read()?;
        self.put(key, Content::Page(bytes.clone()), bytes.len());
        Ok(bytes)
    }

    /// A dictionary, from the pool or by reading it.
    pub(crate) fn dictionary(
        &self,
        key: PoolKey,
        read: impl FnOnce() -> Result<Arc<Dictionary>>,
    ) -> Result<Arc<Dictionary>> {
        if let Some(Content::Dictionary(dictionary)) = self.get(&key) {
            return Ok(dictionary);
        }
        let dictionary = read()?;
        self.put(key, Content::Dictionary(dictionary.clone()), dictionary.memory_bytes());
        Ok(dictionary)
    }

    /// The keys of a page of so many rows, from the pool or by reading them.
    pub(crate) fn keys(
        &self,
        key: PoolKey,
        rows: usize,
        read: impl FnOnce() -> Result<PageKeys>,
    ) -> Result<Arc<PageKeys>> {
        if let Some(Content::Keys(keys)) = self.get(&key) {
            return Ok(keys);
        }
        let keys = Arc::new(read()?);
        self.put(key, Content::Keys(keys.clone()), keys.memory_bytes(rows));
        Ok(keys)
    }

    /// Lets go of that part.
    pub(crate) fn forget(&self, key: &PoolKey) {
        self.entries.remove(key);
    }

    fn get(&self, key: &PoolKey) -> Option<Content> {
        let found = self.entries.get(key);
        let count = if found.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
        found.map(|entry| entry.content)
    }

    fn put(&self, key: PoolKey, content: Content, content_bytes: usize) {
        let bytes = content_bytes.saturating_add(OVERHEAD_BYTES);
        if bytes <= self.entry_bytes_max {
            self.entries.insert(key, Entry { content, bytes });
        }
    }
}

impl fmt::Debug for PagePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PagePool").field("status", &self.status()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use shoal_kernel::Version;

    use super::*;
    use crate::key::EncodedKeys;
    use crate::segment::Identities;

    fn key(store: u64, page: u32) -> PoolKey {
        PoolKey { store, segment: SegmentId(1), part: Part::Page { column: 0, page } }
    }

    /// Asks for a page of so many bytes; says whether it had to be read.
    fn misses(pool: &PagePool, key: PoolKey, bytes: usize) -> bool {
        let mut read = false;
        let page = pool.page(key, || {
            read = true;
            Ok(vec![key.store as u8; bytes].into())
        });
        assert_eq!(page.unwrap(), vec![key.store as u8; bytes]);
        read
    }

    #[test]
    fn keeps_what_is_read_twice_and_passes_over_what_is_read_once() {
        let pool = PagePool::new(100 * (1000 + OVERHEAD_BYTES));
        for _ in 0..3 {
            (0..50).for_each(|page| _ = misses(&pool, key(0, page), 1000));
        }
        // A walk through ten times what the pool holds.
        assert!((1000..2000).all(|page| misses(&pool, key(0, page), 1000)));
        let kept = (0..50).filter(|page| !misses(&pool, key(0, *page), 1000)).count();
        assert_eq!(kept, 50);
        let status = pool.status();
        assert_eq!((status.hits, status.misses), (150, 1050));
        assert!(status.bytes <= status.bytes_max && status.bytes > status.bytes_max * 9 / 10, "{status:?}");
        pool.forget(&key(0, 3));
        assert!(misses(&pool, key(0, 3), 1000));
    }

    #[test]
    fn follows_its_readers_when_they_move_on() {
        let bytes = ENTRY_BYTES_USUAL - OVERHEAD_BYTES;
        let pool = PagePool::new(500 * ENTRY_BYTES_USUAL);
        let round = |first: u32| (first..first + 400).filter(|page| !misses(&pool, key(0, *page), bytes)).count();
        for first in [0, 1_000, 2_000, 3_000] {
            let found: Vec<usize> = (0..10).map(|_| round(first)).collect();
            assert!(found[0] == 0 && found[9] > 350, "{found:?}");
        }
    }

    #[test]
    fn what_is_too_heavy_is_not_kept() {
        let pool = PagePool::new(100_000);
        assert!(
            !misses(&pool, key(0, 0), 50_000 - OVERHEAD_BYTES) || !misses(&pool, key(0, 0), 50_000 - OVERHEAD_BYTES)
        );
        assert!((0..2).all(|_| misses(&pool, key(0, 1), 50_001 - OVERHEAD_BYTES)));
        assert!(!misses(&pool, key(0, 0), 50_000 - OVERHEAD_BYTES));
        let none = PagePool::new(0);
        assert!((0..2).all(|_| misses(&none, key(0, 0), 0)));
        assert_eq!(none.status(), PoolStatus { hits: 0, misses: 2, bytes: 0, bytes_max: 0 });
    }

    /// Versions come when somebody asks for them, and the pool's sums must not move then.
    #[test]
    fn keys_weigh_with_their_versions() {
        let pool = PagePool::new(1 << 20);
        let key = PoolKey { part: Part::Keys { page: 0 }, ..key(0, 0) };
        let keys = || pool.keys(key, 1000, || Ok(PageKeys::new(Identities::Encoded(EncodedKeys::default()))));
        let kept = keys().unwrap();
        let bytes = pool.status().bytes;
        assert!(bytes >= 1000 * size_of::<Version>() as u64, "{bytes}");
        kept.versions.get_or_init(|| vec![Version(1); 1000]);
        assert_eq!(keys().unwrap().versions.get().map(Vec::len), Some(1000));
        assert_eq!(pool.status().bytes, bytes);
        pool.forget(&key);
        assert_eq!(pool.status().bytes, 0);
    }

    #[test]
    fn equal_requests_leave_equal_pages() {
        let run = || {
            let pool = PagePool::new(20_000);
            let wanted = |n: u32| n.wrapping_mul(2_654_435_761) >> 26;
            (0..2_000).map(|n| misses(&pool, key(0, wanted(n)), 100 + wanted(n) as usize)).collect::<Vec<_>>()
        };
        let first = run();
        assert!(first.contains(&true) && first.contains(&false));
        assert_eq!(first, run());
    }

    /// Many threads ask for more than there is room for, some for pages of one number in stores of their own.
    #[test]
    fn stays_within_its_bytes_under_many_threads() {
        let pool = PagePool::new(3 * SHARD_BYTES_MIN);
        assert_eq!(pool.entries.num_shards(), 2);
        std::thread::scope(|scope| {
            for store in 0..8 {
                let pool = &pool;
                scope.spawn(move || {
                    for n in 0..2_000_u32 {
                        let page = n.wrapping_mul(2_654_435_761) >> 22;
                        misses(pool, key(store, page), 20_000 + page as usize);
                        if n % 16 == 0 {
                            let status = pool.status();
                            assert!(status.bytes <= status.bytes_max, "{status:?}");
                        }
                    }
                });
            }
        });
        let status = pool.status();
        assert_eq!(status.hits + status.misses, 8 * 2_000);
        assert!(status.hits > 0 && status.misses > 8 * 500, "{status:?}");
        assert!(status.bytes > status.bytes_max / 2, "{status:?}");
    }
}
