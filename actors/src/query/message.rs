//! What nodes say to each other about queries, over `Route::Query`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_kernel::{Error, ErrorCode, FragmentId, Hlc, NodeId, PartitionId, QueryId, ReadLevel};
use shoal_planner::Fragment;

use super::by_key::{ReadRows, RowsRead};
use super::service::RunningQuery;
use crate::service::Moment;

/// A call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Start tasks of one attempt of a query. Answered with [`Reply::Started`].
    Start(StartTasks),
    /// Stop and forget everything of an attempt. Answered with [`Reply::Released`], also when nothing was there.
    Release {
        /// The query.
        query: QueryId,
        /// The attempt.
        attempt: u32,
    },
    /// To the coordinator: does this attempt still run? Answered with [`Reply::Current`].
    IsCurrent {
        /// The query.
        query: QueryId,
        /// The attempt.
        attempt: u32,
    },
    /// To the coordinator: a client wants the query stopped. Answered with [`Reply::Cancelled`].
    Cancel {
        /// The query.
        query: QueryId,
    },
    /// Read a few rows. Answered with [`Reply::Read`].
    Read(ReadRows),
    /// What runs on you? Answered with [`Reply::Running`].
    Running,
}

/// The answer to a call. Errors of the callee travel inside, so that an error of the call itself always means the way there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The tasks run, or could not be started.
    Started(Result<(), Failure>),
    /// Nothing of the attempt is left; what became of it.
    Released(Report),
    /// Whether the attempt runs.
    Current(bool),
    /// The query is being cancelled, or there is none.
    Cancelled(Result<(), Error>),
    /// The rows.
    Read(Result<RowsRead, Error>),
    /// It.
    Running(RunningOn),
}

/// A message without answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Notice {
    /// To the coordinator: how the tasks of an attempt on a node are doing. May be lost: failures also travel along the edges.
    Status(Status),
}

/// Tasks to be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StartTasks {
    /// The query.
    pub(crate) query: QueryId,
    /// The attempt.
    pub(crate) attempt: u32,
    /// The node that supervises the query.
    pub(crate) coordinator: NodeId,
    /// Time left until the query's deadline, in milliseconds.
    pub(crate) timeout_ms: u64,
    /// The level at which replicas are read.
    pub(crate) read_level: ReadLevel,
    /// The fragments with tasks on the callee.
    pub(crate) fragments: Vec<FragmentTasks>,
}

/// Tasks of one fragment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FragmentTasks {
    /// The fragment.
    pub(crate) fragment: Fragment,
    /// Which of its tasks to run.
    pub(crate) tasks: Vec<u32>,
    /// Where the tasks of its inputs run, by input fragment, then by task.
    pub(crate) producers: BTreeMap<FragmentId, Vec<NodeId>>,
}

/// A failure and whom it makes suspect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What happened.
    pub(crate) error: Error,
    /// A node that could not be reached.
    pub(crate) lost: Option<NodeId>,
    /// A replica that could not be read.
    pub(crate) replica: Option<(PartitionId, NodeId)>,
}

impl Failure {
    /// A failure that nobody in particular is to blame for.
    pub(crate) fn plain(error: Error) -> Self {
        Self { error, lost: None, replica: None }
    }

    /// A node could not be reached.
    pub(crate) fn lost(node: NodeId, error: &Error) -> Self {
        let error = Error::new(ErrorCode::NodeLost, format!("node {node} was lost: {}", error.message()));
        Self { error, lost: Some(node), replica: None }
    }
}

/// How the tasks of an attempt on one node are doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The query.
    pub(crate) query: QueryId,
    /// The attempt.
    pub(crate) attempt: u32,
    /// What is known.
    pub(crate) report: Report,
}

/// What a node knows of its tasks of an attempt. Each report holds everything of the one before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Tasks that have ended well.
    pub(crate) tasks_done: u32,
    /// Rows read from replicas.
    pub(crate) rows_scanned: u64,
    /// Bytes of Arrow memory read from replicas.
    pub(crate) bytes_scanned: u64,
    /// No row of the replicas that are read there is newer.
    pub(crate) newest: Option<Hlc>,
    /// What was pinned, if somebody observes the node.
    pub(crate) seen: Option<Vec<Moment>>,
    /// What failed, first things first.
    pub(crate) failures: Vec<Failure>,
    /// The tasks, for EXPLAIN ANALYZE; complete only in the last report.
    pub(crate) tasks: Vec<TaskReport>,
}

/// What runs on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct RunningOn {
    /// Queries that it coordinates, by id.
    pub(crate) queries: Vec<RunningQuery>,
    /// Fragments of which it has tasks, by query, attempt and fragment.
    pub(crate) fragments: Vec<RunningFragment>,
}

/// The tasks of one fragment on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningFragment {
    pub(crate) query: QueryId,
    pub(crate) attempt: u32,
    pub(crate) coordinator: NodeId,
    pub(crate) fragment: FragmentId,
    /// Tasks of it there.
    pub(crate) tasks: u32,
    /// How many of them have ended.
    pub(crate) tasks_done: u32,
    /// Rows that these put out.
    pub(crate) rows: u64,
    /// Bytes that these put out.
    pub(crate) bytes: u64,
    /// The longest time that one of these took, in microseconds.
    pub(crate) slowest_micros: u64,
    /// Bytes that all fragments of the attempt there put on disk because memory did not hold them.
    pub(crate) spilled: u64,
}

/// What became of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskReport {
    /// Its fragment.
    pub(crate) fragment: FragmentId,
    /// Its number.
    pub(crate) task: u32,
    /// Rows it put out.
    pub(crate) rows: u64,
    /// Bytes it put out.
    pub(crate) bytes: u64,
    /// Time it ran, in microseconds.
    pub(crate) elapsed_micros: u64,
    /// Time of that it waited for room in its output, in microseconds.
    pub(crate) waited_micros: u64,
}
