//! What a node does for its doors: typed requests, streamed answers. The framing of results (schema, batches,
//! one end or error) lives here, below every door, so that REST, WebSocket and the simulator see the same thing.

mod observer;
mod request;
mod status;

pub use observer::{Moment, Observer};
pub use request::{
    CommandDone, Evolution, NodeConfig, Progress, QueryEvent, QueryStream, QuerySummary, SqlRequest, WriteReport,
    WriteRequest,
};
pub use shoal_membership::CatalogObserver;
pub use status::{
    BalanceStatus, ClusterStatus, NodeChange, NodeEnd, NodeStatus, PartitionStatus, ReplicaStatus, SettingStatus,
    SwimState, WantedMove,
};
