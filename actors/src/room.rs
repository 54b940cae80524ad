//! Room for bytes that wait or are on their way.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit stands for.
const PERMIT_BYTES: u64 = 1024;

/// So many bytes may be held at once, counted in KiB. Whoever finds no room does not wait.
#[derive(Clone)]
pub(crate) struct Room {
    free: Arc<Semaphore>,
    /// All permits.
    permits: u32,
}

impl Room {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let permits = permits(bytes_max).min(most);
        Self { free: Arc::new(Semaphore::new(permits as usize)), permits }
    }

    /// Takes room until what is returned is dropped. Whatever is larger than all of it is let in alone.
    pub(crate) fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_many_owned(permits(bytes).min(self.permits)).ok()
    }

    /// Bytes that are taken.
    pub(crate) fn taken_bytes(&self) -> u64 {
        let free = u64::try_from(self.free.available_permits()).unwrap_or(u64::MAX);
        u64::from(self.permits).saturating_sub(free) * PERMIT_BYTES
    }
}

fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_than_all_room_is_let_in_alone() {
        let room = Room::new(10_000);
        let few = room.take(1).unwrap();
        assert_eq!(room.taken_bytes(), 1_024);
        assert!(room.take(1_000_000).is_none());
        drop(few);
        let many = room.take(1_000_000).unwrap();
        assert!(room.take(1).is_none());
        assert_eq!(room.taken_bytes(), 10_240);
        drop(many);
        assert_eq!(room.taken_bytes(), 0);
    }

    #[test]
    fn any_number_of_bytes_is_a_limit() {
        assert!(Room::new(0).take(u64::MAX).is_some());
        let room = Room::new(u64::MAX);
        let _all = room.take(u64::MAX).unwrap();
        assert!(room.take(0).is_none());
    }
}
