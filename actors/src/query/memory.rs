//! The query memory of a node whose tasks may put on disk what they do not get.
//!
//! First come, first served would let one sort take all of it and have the others fail before they hold a row to put on disk. Fair shares
//! alone would have each of hundreds of them work on disk while most of the memory lies idle. So one half is for whoever comes, and of the
//! other half everybody who can go on without is promised a share.

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
        let for_all = (bytes_max / 2).saturating_sub(self.used);
        let share = (bytes_max / 2) / self.spilling.max(1);
        share.saturating_sub(held).max(for_all).min(free)
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
    fn one_half_is_for_whoever_comes_and_of_the_other_everybody_has_a_share() {
        let pool: Arc<dyn MemoryPool> = Arc::new(SharedMemory::new(1000));
        let consumer = |name: &str, spills| MemoryConsumer::new(name).with_can_spill(spills).register(&pool);
        let (first, second, fixed) = (consumer("first", true), consumer("second", true), consumer("join", false));
        assert!(first.try_grow(500).is_ok());
        // What is beyond is the others'.
        assert!(first.try_grow(1).is_err());
        assert!(second.try_grow(250).is_ok() && second.try_grow(1).is_err());
        assert!(fixed.try_grow(250).is_ok() && fixed.try_grow(1).is_err());
        first.free();
        assert!(second.try_grow(0).is_ok() && second.try_grow(1).is_err());
        fixed.free();
        assert!(second.try_grow(250).is_ok());
        // Whoever goes leaves its share to the others.
        assert!(second.try_grow(1).is_err());
        drop(first);
        second.free();
        assert!(second.try_grow(500).is_ok());
        drop((second, fixed));
        assert_eq!(pool.reserved(), 0);
    }
}
