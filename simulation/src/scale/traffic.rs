//! Datagrams and bytes, by node.

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

/// Traffic of one node in one second, with the seal of the datagrams and without headers of UDP and IP (28 bytes each).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    /// Bytes that a node sends, on average; it receives as many, but for those that are lost.
    pub sent_bytes: f64,
    /// Datagrams that a node sends, on average.
    pub sent_datagrams: f64,
    /// Bytes that the busiest node sends and receives.
    pub busiest_bytes: f64,
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
        self.nodes.get(node).map_or(0, |load| load.sent_bytes + load.received_bytes)
    }

    /// Over so many nodes that were up for so many microseconds.
    pub(super) fn rates(&self, nodes: usize, micros: u64) -> Rates {
        let seconds = (micros as f64 / 1e6).max(1e-6);
        let per_node = seconds * nodes.max(1) as f64;
        let busiest = self.nodes.iter().map(|load| load.sent_bytes + load.received_bytes).max().unwrap_or_default();
        Rates {
            sent_bytes: self.sent_bytes as f64 / per_node,
            sent_datagrams: self.sent as f64 / per_node,
            busiest_bytes: busiest as f64 / seconds,
        }
    }
}
