//! The query memory of a node whose tasks may put on disk what they do not get.
//!
//! First come, first served would let one sort take all of it and have the others fail before they hold a row to put on disk. Fair shares
//! alone would have each of hundreds of them work on disk while most of the memory lies idle. So a quarter is for whoever comes; of one half
//! everybody who can go on with files is promised a share; and the last quarter is left to those who cannot, such as the merge of what has been
//! sorted. Who holds nothing yet has nothing to put on disk, and may take what the last quarter leaves.

use std::fmt;
use std::sync::Mutex;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

use super::locked;

/// The pool.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// Operators that can go on with files.
    spilling: usize,
}

impl State {
    /// Bytes that somebody who holds `held` may still get.
    fn left(&self, bytes_max: usize, held: Option<usize>) -> usize {
        let free = bytes_max.saturating_sub(self.used);
        let Some(held) = held else { return free };
        let quarter = bytes_max / 4;
        let for_all = if held == 0 { bytes_max - quarter } else { quarter };
        let share = (2 * quarter) / self.spilling.max(1);
        share.saturating_sub(held).max(for_all.saturating_sub(self.used)).min(free)
    }
}

impl SharedMemory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default() }
    }
}

impl fmt::Display for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query memory of {} bytes", self.bytes_max)
    }
}

impl MemoryPool for SharedMemory {
    fn name(&self) -> &'static str {
        "query memory"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        locked(&self.state).spilling += usize::from(consumer.can_spill());
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        let mut state = locked(&self.state);
        state.spilling = state.spilling.saturating_sub(usize::from(consumer.can_spill()));
    }

    fn grow(&self, _: &MemoryReservation, additional: usize) {
        let mut state = locked(&self.state);
        state.used = state.used.saturating_add(additional);
    }

    fn shrink(&self, _: &MemoryReservation, shrink: usize) {
        let mut state = locked(&self.state);
        state.used = state.used.saturating_sub(shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let mut state = locked(&self.state);
        let held = reservation.consumer().can_spill().then(|| reservation.size());
        let left = state.left(self.bytes_max, held);
        if additional <= left {
            state.used += additional;
            return Ok(());
        }
        Err(DataFusionError::ResourcesExhausted(format!(
            "{} holds {} bytes and needs {additional} more; it may have {left} of the {} bytes of query memory",
            reservation.consumer().name(),
            reservation.size(),
            self.bytes_max
        )))
    }

    fn reserved(&self) -> usize {
        locked(&self.state).used
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn who_can_go_on_with_files_has_a_share_and_leaves_something_to_who_cannot() {
        let pool: Arc<dyn MemoryPool> = Arc::new(SharedMemory::new(1000));
        let consumer = |name: &str, spills| MemoryConsumer::new(name).with_can_spill(spills).register(&pool);
        let (first, second, fixed) = (consumer("first", true), consumer("second", true), consumer("join", false));
        // A batch that is larger than the share, and nothing more.
        assert!(first.try_grow(500).is_ok() && first.try_grow(1).is_err());
        assert!(second.try_grow(250).is_ok() && second.try_grow(1).is_err());
        assert!(fixed.try_grow(250).is_ok() && fixed.try_grow(1).is_err());
        first.free();
        fixed.free();
        assert!(second.try_grow(1).is_err());
        // Whoever goes leaves its share to the others.
        drop(first);
        assert!(second.try_grow(250).is_ok() && second.try_grow(1).is_err());
        second.free();
        assert!(fixed.try_grow(600).is_ok());
        assert!(second.try_grow(400).is_ok() && second.try_grow(1).is_err());
        second.free();
        fixed.free();
        // Of little that is used everybody may take.
        let third = consumer("third", true);
        assert!(second.try_grow(1).is_ok() && second.try_grow(249).is_ok() && third.try_grow(500).is_ok());
        assert!(third.try_grow(1).is_err() && second.try_grow(1).is_err());
        drop(third);
        second.free();
        drop((second, fixed));
        assert_eq!(pool.reserved(), 0);
    }
}
