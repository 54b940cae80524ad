//! Datagrams and bytes, by node.

use std::cmp::Reverse;

use serde::Serialize;

/// What went over the network since the last reset.
pub(super) struct Traffic {
    nodes: Vec<Load>,
    sent_bytes: u64,
    sent: u64,
}

#[derive(Clone, Copy, Default)]
struct Load {
    sent_bytes: u64,
    received_bytes: u64,
}

impl Load {
    fn total_bytes(&self) -> u64 {
        self.sent_bytes + self.received_bytes
    }
}

/// Traffic of one node in one second, with the seal of the datagrams and without headers of UDP and IP (28 bytes each).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    /// Bytes that a node sends, on average; it receives as many, but for those that are lost.
    pub sent_bytes: f64,
    /// Datagrams that a node sends, on average.
    pub sent_datagrams: f64,
    /// The busiest node, counted from zero.
    pub busiest: usize,
    /// Bytes that it sends and receives.
    pub busiest_bytes: f64,
    /// Those of them that it sends.
    pub busiest_sent_bytes: f64,
    /// Bytes that all nodes but one in a hundred send and receive, at most. Among less than a hundred it is the busiest.
    pub busy_bytes: f64,
}

impl Traffic {
    pub(super) fn new(nodes: usize) -> Self {
        Self { nodes: vec![Load::default(); nodes], sent_bytes: 0, sent: 0 }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.nodes.len());
    }

    pub(super) fn sent(&mut self, node: usize, bytes: usize) {
        self.sent += 1;
        self.sent_bytes += bytes as u64;
        if let Some(load) = self.nodes.get_mut(node) {
            load.sent_bytes += bytes as u64;
        }
    }

    pub(super) fn received(&mut self, node: usize, bytes: usize) {
        if let Some(load) = self.nodes.get_mut(node) {
            load.received_bytes += bytes as u64;
        }
    }

    /// Bytes that a node has sent and received.
    pub(super) fn of(&self, node: usize) -> u64 {
        self.nodes.get(node).map_or(0, Load::total_bytes)
    }

    /// Over so many nodes that were up for so many microseconds.
    pub(super) fn rates(&self, nodes: usize, micros: u64) -> Rates {
        let seconds = (micros as f64 / 1e6).max(1e-6);
        let per_node = seconds * nodes.max(1) as f64;
        let mut busiest: Vec<(usize, &Load)> = self.nodes.iter().enumerate().collect();
        busiest.sort_unstable_by_key(|(_, load)| Reverse(load.total_bytes()));
        let (first, busy) = (busiest.first(), busiest.get(nodes / 100));
        let rate = |bytes: Option<u64>| bytes.unwrap_or_default() as f64 / seconds;
        Rates {
            sent_bytes: self.sent_bytes as f64 / per_node,
            sent_datagrams: self.sent as f64 / per_node,
            busiest: first.map_or(0, |(node, _)| *node),
            busiest_bytes: rate(first.map(|(_, load)| load.total_bytes())),
            busiest_sent_bytes: rate(first.map(|(_, load)| load.sent_bytes)),
            busy_bytes: rate(busy.map(|(_, load)| load.total_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_busy_node_among_hundreds_does_not_stand_for_the_others() {
        let mut traffic = Traffic::new(300);
        for node in 0..200 {
            traffic.sent(node, 100);
            traffic.received(node, 50);
        }
        traffic.sent(7, 10_000);
        traffic.sent(8, 1_000);
        let rates = traffic.rates(200, 2_000_000);
        assert_eq!(rates.busiest, 7);
        assert_eq!((rates.busiest_bytes, rates.busiest_sent_bytes, rates.busy_bytes), (5_075.0, 5_050.0, 75.0));
        // Among few every node counts.
        assert_eq!(traffic.rates(99, 2_000_000).busy_bytes, 5_075.0);
    }
}
