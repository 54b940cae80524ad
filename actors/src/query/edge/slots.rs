//! The slots of one producer task, pure: bytes, order, and who waits for whom.

use std::collections::VecDeque;

use shoal_kernel::Error;

/// What the producer may do with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Put it in.
    Put,
    /// Put it in although the window is full, if there is memory: somebody else starves.
    PutAbove,
    /// Wait for room.
    Wait,
    /// Nobody wants it.
    Discard,
}

/// What the consumer gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<T> {
    /// An item and its bytes.
    Item(T, usize),
    /// Nothing yet; the slot now starves.
    Nothing,
    /// All has been taken, and the producer said that it was all.
    End,
    /// The producer failed.
    Failed(Error),
}

#[derive(Debug)]
struct Slot<T> {
    queue: VecDeque<(T, usize)>,
    bytes: usize,
    starving: bool,
    open: bool,
    claimed: bool,
}

/// The slots.
#[derive(Debug)]
pub(super) struct Slots<T> {
    window_bytes: usize,
    slots: Vec<Slot<T>>,
    end: Option<Result<(), Error>>,
}

impl<T> Slots<T> {
    pub(super) fn new(count: u32, window_bytes: usize) -> Self {
        let slot = || Slot { queue: VecDeque::new(), bytes: 0, starving: false, open: true, claimed: false };
        Self { window_bytes, slots: (0..count).map(|_| slot()).collect(), end: None }
    }

    /// Whether `bytes` more may go into the slot.
    pub(super) fn verdict(&self, slot: usize, bytes: usize) -> Verdict {
        let Some(wanted) = self.slots.get(slot).filter(|slot| slot.open) else {
            return Verdict::Discard;
        };
        if wanted.queue.is_empty() || wanted.bytes.saturating_add(bytes) <= self.window_bytes {
            // An item larger than the window passes when nothing else is in it.
            Verdict::Put
        } else if self.slots.iter().any(|other| other.open && other.starving) {
            Verdict::PutAbove
        } else {
            Verdict::Wait
        }
    }

    /// Puts an item in, after [`Self::verdict`].
    pub(super) fn put(&mut self, slot: usize, item: T, bytes: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.queue.push_back((item, bytes));
            slot.bytes += bytes;
            slot.starving = false;
        }
    }

    /// Takes the next item out.
    pub(super) fn take(&mut self, slot: usize) -> Taken<T> {
        let Some(slot) = self.slots.get_mut(slot) else {
            return Taken::Failed(Error::internal("the slot does not exist"));
        };
        if let Some((item, bytes)) = slot.queue.pop_front() {
            slot.bytes -= bytes;
            return Taken::Item(item, bytes);
        }
        match &self.end {
            None => {
                slot.starving = true;
                Taken::Nothing
            }
            Some(Ok(())) => Taken::End,
            Some(Err(error)) => Taken::Failed(error.clone()),
        }
    }

    /// Whether the slot exists and nobody has claimed it before: a slot is read once.
    pub(super) fn claim(&mut self, slot: usize) -> bool {
        self.slots.get_mut(slot).is_some_and(|slot| slot.open && !std::mem::replace(&mut slot.claimed, true))
    }

    /// The consumer is gone or will never come: drops what is in the slot and all that will be. Returns the bytes dropped.
    pub(super) fn discard(&mut self, slot: usize) -> usize {
        let Some(slot) = self.slots.get_mut(slot) else { return 0 };
        slot.open = false;
        slot.starving = false;
        slot.queue.clear();
        std::mem::take(&mut slot.bytes)
    }

    /// The producer has ended. A failure overtakes what is in the slots, so that it spreads at once. Returns the bytes
    /// dropped. Only the first end counts.
    pub(super) fn end(&mut self, end: Result<(), Error>) -> usize {
        if self.end.is_some() {
            return 0;
        }
        let failed = end.is_err();
        self.end = Some(end);
        let mut dropped = 0;
        for slot in &mut self.slots {
            slot.starving = false;
            if failed {
                slot.queue.clear();
                dropped += std::mem::take(&mut slot.bytes);
            }
        }
        dropped
    }

    /// The query is over for this task, also for a consumer that has not taken everything: it must not take what it has got for all
    /// there was, even if the producer had said that it was all. Returns the bytes dropped.
    pub(super) fn abort(&mut self, error: Error) -> usize {
        self.end = Some(Err(error));
        (0..self.slots.len()).map(|slot| self.discard(slot)).sum()
    }

    /// Whether nobody has asked for the slot yet.
    pub(super) fn is_unclaimed(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| !slot.claimed)
    }

    /// Whether any consumer is left.
    pub(super) fn wanted(&self) -> bool {
        self.slots.iter().any(|slot| slot.open)
    }

    /// Bytes in all slots.
    pub(super) fn bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_back_and_an_oversized_item_passes_alone() {
        let mut slots = Slots::new(1, 10);
        assert_eq!(slots.verdict(0, 25), Verdict::Put);
        slots.put(0, 'a', 25);
        assert_eq!(slots.verdict(0, 1), Verdict::Wait);
        assert_eq!(slots.take(0), Taken::Item('a', 25));
        slots.put(0, 'b', 6);
        assert_eq!(slots.verdict(0, 4), Verdict::Put);
        assert_eq!(slots.verdict(0, 5), Verdict::Wait);
    }

    #[test]
    fn a_full_slot_gives_way_only_while_another_starves() {
        let mut slots = Slots::new(2, 10);
        slots.put(0, 'a', 10);
        // Slot 1 is empty, but nobody has asked: its consumer may be busy with something else.
        assert_eq!(slots.verdict(0, 1), Verdict::Wait);
        assert_eq!(slots.take(1), Taken::Nothing);
        assert_eq!(slots.verdict(0, 1), Verdict::PutAbove);
        slots.put(0, 'b', 1);
        slots.put(1, 'c', 1);
        assert_eq!(slots.verdict(0, 1), Verdict::Wait);
        assert_eq!(slots.bytes(), 12);
    }

    #[test]
    fn a_dropped_consumer_holds_up_nobody() {
        let mut slots = Slots::new(2, 10);
        slots.put(0, 'a', 10);
        assert_eq!(slots.take(1), Taken::Nothing);
        assert_eq!(slots.discard(1), 0);
        // The starving consumer has gone, so nothing justifies going above the window.
        assert_eq!(slots.verdict(0, 1), Verdict::Wait);
        assert_eq!(slots.verdict(1, 99), Verdict::Discard);
        assert_eq!(slots.discard(0), 10);
        assert!(!slots.wanted());
        assert_eq!(slots.bytes(), 0);
    }

    #[test]
    fn ends_once_and_a_failure_overtakes_the_rows() {
        let mut slots = Slots::new(2, 10);
        slots.put(0, 'a', 3);
        slots.end(Ok(()));
        assert_eq!(slots.end(Err(Error::internal("late"))), 0);
        assert_eq!(slots.take(0), Taken::Item('a', 3));
        assert_eq!(slots.take(0), Taken::End);
        assert_eq!(slots.take(1), Taken::End);

        let mut slots = Slots::new(1, 10);
        slots.put(0, 'a', 3);
        assert_eq!(slots.end(Err(Error::internal("broken"))), 3);
        assert_eq!(slots.take(0), Taken::Failed(Error::internal("broken")));
        assert_eq!(slots.take(0), Taken::Failed(Error::internal("broken")));
    }

    #[test]
    fn what_was_not_taken_before_the_query_was_over_is_missed() {
        let mut slots = Slots::new(2, 10);
        slots.put(0, 'a', 3);
        slots.put(1, 'b', 4);
        slots.end(Ok(()));
        assert_eq!(slots.take(1), Taken::Item('b', 4));
        assert_eq!(slots.abort(Error::internal("over")), 3);
        assert_eq!(slots.take(0), Taken::Failed(Error::internal("over")));
        assert_eq!(slots.take(1), Taken::Failed(Error::internal("over")), "its consumer cannot know either");
        assert!(!slots.wanted());
    }

    #[test]
    fn a_slot_is_claimed_once() {
        let mut slots = Slots::<char>::new(1, 10);
        assert!(slots.claim(0));
        assert!(!slots.claim(0));
        assert!(!slots.claim(1));
    }

    /// Two producers, two merging consumers with crossed appetites: the smallest exchange that deadlocks under plain windows.
    #[test]
    fn crossed_merges_do_not_deadlock() {
        const ROWS: usize = 50;
        // Producer p has ROWS items for each slot; its items for slot p come first, so that each consumer waits for the
        // producer that serves the other one first.
        let mut producers: Vec<Slots<usize>> = (0..2).map(|_| Slots::new(2, 4)).collect();
        let mut next = [0usize; 2];
        let (mut taken, mut heads) = ([[0usize; 2]; 2], [[false; 2]; 2]);
        for _ in 0..100_000 {
            let mut moved = false;
            for producer in 0..2 {
                if next[producer] < 2 * ROWS {
                    let slot = if next[producer] < ROWS { producer } else { 1 - producer };
                    if matches!(producers[producer].verdict(slot, 1), Verdict::Put | Verdict::PutAbove) {
                        producers[producer].put(slot, next[producer], 1);
                        next[producer] += 1;
                        moved = true;
                    }
                } else {
                    producers[producer].end(Ok(()));
                }
            }
            for consumer in 0..2 {
                // A merge needs a head of every input before it gives a row.
                for producer in 0..2 {
                    if !heads[consumer][producer]
                        && taken[consumer][producer] < ROWS
                        && let Taken::Item(..) = producers[producer].take(consumer)
                    {
                        heads[consumer][producer] = true;
                        moved = true;
                    }
                }
                if (0..2).all(|p| heads[consumer][p] || taken[consumer][p] == ROWS) {
                    for producer in 0..2 {
                        if std::mem::take(&mut heads[consumer][producer]) {
                            taken[consumer][producer] += 1;
                        }
                    }
                }
            }
            if taken == [[ROWS; 2]; 2] {
                return;
            }
            assert!(moved || next == [2 * ROWS; 2], "deadlock: produced {next:?}, consumed {taken:?}");
        }
        panic!("no end: {taken:?}");
    }
}
