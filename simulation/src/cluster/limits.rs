//! What a node may have in hand.

use shoal_actors::Node;
use shoal_actors::service::NodeConfig;

/// Bytes of a client's write at most. One is let in alone, however large.
const WRITE_BYTES: u64 = 4 << 10;
/// Bytes that are committed as a whole at most.
const GROUP_BYTES: u64 = 16 << 10;

/// The bounds of a node, as it is set up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Queries, running and waiting.
    queries: u64,
    /// Memory that they use together.
    query_memory_bytes: u64,
    /// What they have on disk because memory does not hold it.
    spill_bytes: u64,
    /// Rows under way to replicas.
    write_bytes: u64,
    /// Writes that wait for one replica.
    queued_bytes: u64,
    /// Rows of one replica that are not flushed.
    memtables_bytes: u64,
}

impl Limits {
    pub(super) fn of(config: &NodeConfig) -> Self {
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Self {
            queries: wide(config.queries_max + config.queries_queued_max),
            query_memory_bytes: wide(config.query_memory_bytes_max),
            spill_bytes: config.spill_bytes_max,
            write_bytes: config.inflight_bytes_max.max(WRITE_BYTES),
            queued_bytes: config.replica_queue_bytes_max.max(WRITE_BYTES),
            // Below its bound a replica takes one group more, and one answer of a peer that it catches up with.
            memtables_bytes: config.memtables_bytes_max + config.memtables_bytes_max / 2 + GROUP_BYTES,
        }
    }

    /// What a node has beyond them.
    pub(super) fn broken_by(self, node: &Node) -> impl Iterator<Item = String> {
        let in_hand = node.in_hand();
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let looked_at = [
            ("queries", wide(in_hand.queries.queries), self.queries),
            ("bytes of queries", wide(in_hand.queries.memory_bytes), self.query_memory_bytes),
            ("bytes of queries on disk", in_hand.queries.spill_bytes, self.spill_bytes),
            ("bytes of rows under way", in_hand.write_bytes, self.write_bytes),
            ("bytes that wait for one replica", in_hand.queued_bytes_most, self.queued_bytes),
            ("bytes of one replica that are not flushed", node.memtables_bytes_most(), self.memtables_bytes),
        ];
        let broken = looked_at.into_iter().filter(|(_, have, most)| have > most);
        broken.map(|(what, have, most)| format!("{have} {what}, and {most} are its limit"))
    }
}
