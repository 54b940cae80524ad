use crate::key::EncodedKeys;
use crate::layout::Layout;
use crate::predicate::Zone;
use crate::state::{Location, Problem, SegmentView};
use arrow::array::ArrayRef;
use roaring::RoaringBitmap;
use shoal_kernel::env::Disk;
use shoal_kernel::{Column, ColumnId, Error, Result, SegmentId};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
pub(crate) const PAGE_ROWS: usize = 8192;
pub(crate) struct SegmentContext;
impl SegmentContext {
    pub(crate) fn new(_: Arc<dyn Disk>, _: Arc<Layout>, _: usize) -> Arc<Self> {
        Arc::new(Self)
    }
}
#[derive(Debug)]
pub(crate) struct Segment {
    tombstones: RoaringBitmap,
}
pub(crate) fn segment_file(id: SegmentId) -> String {
    format!("seg-{:016x}.seg", id.0)
}
pub(crate) fn segment_of_file(name: &str) -> Option<SegmentId> {
    u64::from_str_radix(name.strip_prefix("seg-")?.strip_suffix(".seg")?, 16).ok().map(SegmentId)
}
impl Segment {
    pub(crate) fn open(_: &Arc<SegmentContext>, _: &Path, _: SegmentId, _: u64) -> Result<Self> {
        Err(Error::internal("x"))
    }
    pub(crate) fn rows(&self) -> u32 {
        0
    }
    pub(crate) fn bytes(&self) -> u64 {
        0
    }
    pub(crate) fn pages(&self) -> u32 {
        0
    }
    pub(crate) fn damage(&self) -> Option<Problem> {
        None
    }
    pub(crate) fn tombstones(&self) -> &RoaringBitmap {
        &self.tombstones
    }
    pub(crate) fn zone(&self, _: ColumnId) -> Zone {
        Zone { rows: 0, nulls: 0, min: None, max: None }
    }
    pub(crate) fn page_zone(&self, _: ColumnId, _: u32) -> Zone {
        Zone { rows: 0, nulls: 0, min: None, max: None }
    }
    pub(crate) fn page_rows(&self, _: u32) -> Range<u32> {
        0..0
    }
    pub(crate) fn may_hold_key(&self, _: &[u8], _: u32) -> bool {
        true
    }
    pub(crate) fn read_column(&self, _: &Column, _: u32) -> Result<ArrayRef> {
        Err(Error::internal("x"))
    }
}
impl SegmentView {
    pub(crate) fn find(&self, _: &EncodedKeys, _: &mut [Option<Location>]) -> Result<()> {
        Ok(())
    }
    pub(crate) fn page_digest(&self, _: u32) -> Result<crate::store::Digest> {
        Ok(Default::default())
    }
}
