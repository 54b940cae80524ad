//! The exchange: what producer tasks put into slots and consumer tasks take out, on one node or between two.
//!
//! - [`slots`] decides, pure: who may put, who must wait, what a consumer gets.
//! - [`output`] is a running task's output over it, with wakers and memory accounting.
//! - [`table`] finds the output of a task, also before that task has started.
//! - [`codec`] is the form of a batch between nodes, [`remote`] the consumer's end of such an edge.
//!
//! Every slot has a window of its own (`edge_window_bytes`); no budget is shared between slots, so that a slow consumer
//! holds up its own slot only. That alone would deadlock where consumers wait for each other across producers: a
//! sort-preserving merge waits for one producer while the window of another is full. The rule that rules it out:
//! **a producer whose slot is full goes on while any other of its slots starves** (is empty and asked for), and what then
//! lies above the window is charged to the node's query memory; if that runs out the query fails with `out_of_memory`
//! instead of hanging. It is sound because fragments form a tree towards the root: a task that waits for input has polled
//! an empty slot, whose producer by this rule does not wait for room, so it waits for input itself, and so on up to a scan,
//! which always goes on.

pub(super) mod codec;
pub(super) mod output;
pub(super) mod remote;
mod slots;
pub(super) mod table;

pub(super) use output::TaskOutput;
pub(super) use table::EdgeTable;
