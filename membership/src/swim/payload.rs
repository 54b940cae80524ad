//! What nodes tell about themselves, carried by the gossip.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foca::{BroadcastHandler, Invalidates};
use serde::{Deserialize, Serialize};
use shoal_kernel::NodeId;
use shoal_kernel::wire::{self, WireError};

use super::identity::Identity;

/// Bytes that a node can tell about itself: several such and some news fit into one datagram.
pub const PAYLOAD_BYTES_MAX: usize = 200;

/// What a node said, with its place among everything that it ever said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Notice {
    node: NodeId,
    generation: u64,
    ordinal: u64,
    payload: Vec<u8>,
}

impl Notice {
    pub(super) fn new(identity: &Identity, ordinal: u64, payload: &[u8]) -> Self {
        Self { node: identity.node, generation: identity.generation, ordinal, payload: payload.to_vec() }
    }
}

/// A notice's place.
pub(super) struct Place {
    node: NodeId,
    order: (u64, u64),
}

impl Invalidates for Place {
    fn invalidates(&self, other: &Self) -> bool {
        self.node == other.node && self.order > other.order
    }
}

/// The newest notice of everybody. Clones share it: foca keeps one, the core reads the other.
#[derive(Clone, Default)]
pub(super) struct Notices(Arc<Mutex<Board>>);

#[derive(Default)]
struct Board {
    said: BTreeMap<NodeId, Said>,
    /// Changes so far.
    changes: u64,
}

struct Said {
    order: (u64, u64),
    payload: Arc<[u8]>,
}

impl Notices {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node has said in this life.
    pub(super) fn of(&self, identity: &Identity) -> Arc<[u8]> {
        let board = self.board();
        let said = board.said.get(&identity.node).filter(|said| said.order.0 == identity.generation);
        said.map_or_else(|| Arc::from([]), |said| said.payload.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.board().said.is_empty()
    }

    /// Goes up whenever somebody has said something new.
    pub(super) fn changes(&self) -> u64 {
        self.board().changes
    }

    /// Forgets nodes that are not members any more.
    pub(super) fn retain(&self, keep: impl Fn(NodeId) -> bool) {
        self.board().said.retain(|node, _| keep(*node));
    }
}

impl BroadcastHandler<Identity> for Notices {
    type Key = Place;
    type Error = WireError;

    fn receive_item(&mut self, data: &[u8], _sender: Option<&Identity>) -> Result<Option<Place>, WireError> {
        let notice: Notice = wire::decode(data)?;
        if notice.payload.len() > PAYLOAD_BYTES_MAX {
            // Nobody may tell so much: it would fit into no datagram of ours, and wait for ever.
            return Ok(None);
        }
        let order = (notice.generation, notice.ordinal);
        let mut board = self.board();
        if board.said.get(&notice.node).is_some_and(|said| said.order >= order) {
            return Ok(None);
        }
        board.changes += 1;
        board.said.insert(notice.node, Said { order, payload: Arc::from(notice.payload) });
        Ok(Some(Place { node: notice.node, order }))
    }
}
