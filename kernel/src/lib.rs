//! The ground every other crate stands on.
//!
//! Here live the words that all rooms share: identifiers, hybrid logical time, keys and their order, table schemas,
//! typed errors, limits, the wire codec, and [`Env`], the only door to clock, randomness, files, network and threads.
//!
//! The kernel knows nothing of SQL, partitions on disk, actors or HTTP.

pub mod alter;
pub mod durability;
pub mod env;
pub mod error;
pub mod ids;
pub mod key;
pub mod level;
pub mod limits;
pub mod planted;
pub mod rare;
pub mod scan;
pub mod schema;
pub mod suggest;
pub mod time;
pub mod ttl;
pub mod widen;
pub mod wire;

pub use alter::{ChangeRefused, SchemaChange};
pub use durability::Fsync;
pub use env::Env;
pub use error::{Applied, Error, ErrorCode, FilePlace, Result, Span};
pub use ids::{Epoch, FragmentId, FragmentKey, LogId, NodeId, PartitionId, QueryId, SegmentId, TableId};
pub use key::{Datum, KeyRange};
pub use level::{ReadLevel, WriteLevel};
pub use planted::Planted;
pub use rare::Rare;
pub use scan::{
    ADDRESS_COLUMN, ColumnPredicate, CompareOp, FetchSpec, Frontier, FrontierSource, KeyEnds, Measure, ScanOrder,
    ScanSpec, Slice, Summary, SummaryPart,
};
pub use schema::{Column, ColumnId, RetiredColumn, TableKind, TableSchema};
pub use time::{Hlc, HlcClock, Version};
pub use ttl::{Cutoff, Ttl};
