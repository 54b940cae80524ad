//! Credit of one stream, in bytes. Pure. Producer and consumer keep the same ledger: the producer to know when it may send,
//! the consumer to catch a producer that does not ask its own.
//!
//! The rule: an item may be sent when the credit covers it, or when no more than a quarter of the window is in flight. The
//! second half lets an item pass that is larger than the window, and lets the consumer hand credit back in quarters instead
//! of item by item without ever locking the two up. What is in flight never exceeds the window and one item.

/// The least that an item costs, so that a stream of empty items has a bound too.
const ITEM_COST_MIN: usize = 64;

/// What an item of so many bytes costs.
pub(super) fn cost(item_bytes: usize) -> u64 {
    item_bytes.max(ITEM_COST_MIN) as u64
}

/// Spent and granted credit.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    window: u64,
    in_flight: u64,
}

/// More was granted than was spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverGranted;

impl Ledger {
    pub(super) fn new(window_bytes: u32) -> Self {
        Self { window: u64::from(window_bytes), in_flight: 0 }
    }

    /// Credit that may be kept back before it must be granted.
    pub(super) fn slack(&self) -> u64 {
        self.window / 4
    }

    /// Takes an item's cost, if the rule allows the item now.
    pub(super) fn spend(&mut self, cost: u64) -> bool {
        let allowed = self.in_flight + cost <= self.window || self.in_flight <= self.slack();
        if allowed {
            self.in_flight += cost;
        }
        allowed
    }

    /// Gives credit back.
    pub(super) fn grant(&mut self, cost: u64) -> Result<(), OverGranted> {
        self.in_flight = self.in_flight.checked_sub(cost).ok_or(OverGranted)?;
        Ok(())
    }
}

/// Credit that the consumer owes the producer: handed back when it has grown beyond the slack.
#[derive(Debug, Default)]
pub(super) struct Owed(u64);

impl Owed {
    /// Notes a consumed item; returns what to grant now, which may be nothing.
    pub(super) fn consumed(&mut self, cost: u64, slack: u64) -> Option<u32> {
        self.0 += cost;
        (self.0 > slack).then(|| {
            // A cost is bounded by the frame, and what is owed by a quarter of a 32-bit window and one cost.
            let due = u32::try_from(self.0).unwrap_or(u32::MAX);
            self.0 -= u64::from(due);
            due
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Every interleaving of sending, consuming and granting: the producer always gets through once the consumer has
        // caught up, and its lead keeps its bound.
        #[test]
        fn never_locks_up_and_keeps_its_bound(window in 0u32..5000, items in prop::collection::vec(0usize..9000, 1..60), choices in prop::collection::vec(any::<bool>(), 200)) {
            let (mut producer, mut consumer) = (Ledger::new(window), Ledger::new(window));
            let (mut queue, mut owed, mut choices) = (VecDeque::new(), Owed::default(), choices.into_iter().cycle());
            let largest = items.iter().map(|&item| cost(item)).max().unwrap();
            let mut items: VecDeque<_> = items.into();
            while let Some(&item) = items.front() {
                if choices.next().unwrap() && producer.spend(cost(item)) {
                    prop_assert!(consumer.spend(cost(item)), "the consumer's ledger is never stricter");
                    queue.push_back(item);
                    items.pop_front();
                    let lead: u64 = queue.iter().map(|&item| cost(item)).sum();
                    prop_assert!(lead <= u64::from(window) + largest);
                } else if let Some(item) = queue.pop_front() {
                    if let Some(due) = owed.consumed(cost(item), consumer.slack()) {
                        consumer.grant(u64::from(due)).unwrap();
                        producer.grant(u64::from(due)).unwrap();
                    }
                } else {
                    prop_assert!(producer.clone().spend(cost(item)), "locked up");
                }
            }
        }
    }

    #[test]
    fn what_was_not_spent_cannot_be_granted() {
        let mut ledger = Ledger::new(100);
        assert!(ledger.spend(70));
        assert_eq!(ledger.grant(71), Err(OverGranted));
        assert!(ledger.grant(70).is_ok());
    }

    #[test]
    fn a_giant_passes_when_the_window_is_almost_free() {
        let mut ledger = Ledger::new(1000);
        assert!(ledger.spend(1_000_000));
        assert!(!ledger.spend(64));
        assert!(ledger.grant(1_000_000).is_ok());
        assert!(ledger.spend(1000));
        assert!(!ledger.spend(1));
    }
}
