//! Identifiers. Each is a newtype, so that a partition can never be passed where a table is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A node, for the life of its data directory. Random, non-zero; the catalog refuses a second node with the same number.
    NodeId(u32),
    "n"
);
id!(
    /// A table. Never reused, not even after `DROP TABLE`.
    TableId(u64),
    "t"
);
id!(
    /// A partition of a table. Unique over the cluster, never reused.
    PartitionId(u64),
    "p"
);
id!(
    /// A segment file within one replica.
    SegmentId(u64),
    "s"
);
id!(
    /// The generation of a partition's replica set. Acknowledgements count only within one epoch.
    Epoch(u64),
    "e"
);
id!(
    /// A fragment of one query's plan.
    FragmentId(u32),
    "f"
);

/// One life of a replica's accept log. A replica that was emptied or truncated starts a new one, so that positions of the
/// old life are never mistaken for positions of the new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct LogId(pub u64);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log-{:016x}", self.0)
    }
}

/// A query, unique over the cluster: the node that was asked (high 32 bits), then random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct QueryId(pub u128);

impl QueryId {
    /// Builds an id for a query asked at `node`.
    pub fn new(node: NodeId, random: u64) -> Self {
        Self((u128::from(node.0) << 96) | u128::from(random))
    }

    /// The node that coordinates the query.
    pub fn coordinator(self) -> NodeId {
        NodeId((self.0 >> 96) as u32)
    }
}

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:016x}", (self.0 >> 96) as u32, self.0 as u64)
    }
}

impl std::str::FromStr for QueryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (node, random) = text.split_once('-').ok_or(())?;
        if node.len() != 8 || random.len() != 16 {
            return Err(());
        }
        let node = u32::from_str_radix(node, 16).map_err(|_| ())?;
        let random = u64::from_str_radix(random, 16).map_err(|_| ())?;
        Ok(Self::new(NodeId(node), random))
    }
}

/// One run of one task of one fragment. Late messages of an earlier attempt are recognised by it and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FragmentKey {
    /// The query the task belongs to.
    pub query: QueryId,
    /// The fragment of its plan.
    pub fragment: FragmentId,
    /// The task within the fragment, from 0.
    pub task: u32,
    /// The attempt, from 0; a restarted query or task counts up.
    pub attempt: u32,
}

impl fmt::Display for FragmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}#{}", self.query, self.fragment, self.task, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_id_survives_its_text_form() {
        let id = QueryId::new(NodeId(0xdead_beef), 0x0123_4567_89ab_cdef);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.coordinator(), NodeId(0xdead_beef));
        assert!("nonsense".parse::<QueryId>().is_err());
    }
}
