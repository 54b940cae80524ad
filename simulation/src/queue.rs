//! What is to happen, by time.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Something planned. Ordered by its time, then by when it was planned: no two are equal.
struct Planned<T> {
    at_micros: u64,
    ordinal: u64,
    what: T,
}

impl<T> Planned<T> {
    fn order(&self) -> (u64, u64) {
        (self.at_micros, self.ordinal)
    }
}

impl<T> PartialEq for Planned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl<T> Eq for Planned<T> {}

impl<T> PartialOrd for Planned<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Planned<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

/// Events in virtual time; those of one microsecond come in the order in which they were planned.
pub(crate) struct EventQueue<T> {
    heap: BinaryHeap<Reverse<Planned<T>>>,
    ordinal: u64,
}

impl<T> Default for EventQueue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), ordinal: 0 }
    }
}

impl<T> EventQueue<T> {
    /// Plans something.
    pub(crate) fn plan(&mut self, at_micros: u64, what: T) {
        self.ordinal += 1;
        self.heap.push(Reverse(Planned { at_micros, ordinal: self.ordinal, what }));
    }

    /// When the next event happens.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(next)| next.at_micros)
    }

    /// The next event with its time, if it happens until then.
    pub(crate) fn pop_until(&mut self, until_micros: u64) -> Option<(u64, T)> {
        if self.next_at()? > until_micros {
            return None;
        }
        self.heap.pop().map(|Reverse(next)| (next.at_micros, next.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_the_order_of_planning() {
        let mut queue = EventQueue::default();
        for (at, what) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b'), (9, 'e')] {
            queue.plan(at, what);
        }
        let until_five: String = std::iter::from_fn(|| queue.pop_until(5)).map(|(_, what)| what).collect();
        assert_eq!((until_five.as_str(), queue.next_at()), ("abcd", Some(9)));
    }
}
