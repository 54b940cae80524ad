//! What nodes ask of each other for a backup. Each is a stream: dropping it stops the work.

use serde::{Deserialize, Serialize};
use shoal_catalog::Table;
use shoal_kernel::{PartitionId, TableId};
use shoal_planner::ObjectOptions;

/// A task for one node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum BackupCall {
    /// Store what your replica of a partition holds, and everything that was acknowledged at quorum before.
    Upload { partition: PartitionId, url: String, options: ObjectOptions },
    /// Read what is stored of a partition, and write its rows to a table.
    Fetch(Box<FetchCall>),
}

/// See [`BackupCall::Fetch`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FetchCall {
    pub(crate) url: String,
    pub(crate) options: ObjectOptions,
    /// The table as it was.
    pub(crate) source: Table,
    /// The partition as it was.
    pub(crate) partition: PartitionId,
    /// The object with its outline.
    pub(crate) outline: String,
    /// Where the rows go.
    pub(crate) into: TableId,
}

/// What a node says of its task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum BackupNews {
    /// So much more has been done.
    Progress(Done),
    /// That was all.
    Uploaded(Uploaded),
    /// So many rows were written, and that was all.
    Fetched { rows: u64 },
}

/// Work that has been done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// A partition is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uploaded {
    pub(crate) rows: u64,
    pub(crate) files: u64,
    /// Of all objects that it needs.
    pub(crate) bytes: u64,
    /// Of those that were not there.
    pub(crate) bytes_copied: u64,
    /// The object with its outline.
    pub(crate) outline: String,
    /// The newest version of the schema that the rows were written under.
    pub(crate) schema_version: u32,
}
