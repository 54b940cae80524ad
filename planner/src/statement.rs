//! What a statement asks for, once it has been understood.

use std::collections::BTreeMap;

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use shoal_catalog::{AlteredTable, NewTable};
use shoal_kernel::PartitionId;

use crate::by_key::{KeyChange, KeyRead};
use crate::graph::FragmentGraph;

/// A planned statement.
#[derive(Debug, Clone)]
pub enum Statement {
    /// Rows are wanted. SHOW, DESCRIBE and EXPLAIN are queries whose answer the planner knows already.
    Query(PlannedQuery),
    /// A few rows are wanted by key; only if [`PlanOptions::by_key`](crate::PlanOptions::by_key).
    KeyRead(KeyRead),
    /// A table is to be made.
    CreateTable(NewTable),
    /// A table is to go.
    DropTable {
        /// Its name.
        name: String,
        /// An unknown name is no error.
        if_exists: bool,
    },
    /// A table is to be changed; `None` if it is as it is wanted.
    AlterTable(Option<AlteredTable>),
    /// A partition of a table is to become two.
    Split {
        /// The table's name.
        table: String,
        /// Which partition, and where.
        how: SplitWish,
    },
    /// Rows are to be written.
    Insert {
        /// The table's name.
        table: String,
        /// Where they come from.
        source: InsertSource,
    },
    /// Rows of a table with a primary key are to go.
    Delete {
        /// The table's name.
        table: String,
        /// Their keys: the key's columns, with the table's names and types.
        keys: FragmentGraph,
    },
    /// Rows of a table with a primary key are to be replaced.
    Update {
        /// The table's name.
        table: String,
        /// The rows as they are to be: the table's columns, with its types. Columns that are NOT NULL may hold NULLs yet.
        rows: FragmentGraph,
    },
    /// A few rows of such a table are to go or be replaced by key; only if
    /// [`PlanOptions::by_key`](crate::PlanOptions::by_key).
    KeyChange(KeyChange),
    /// What has been written is to go into segments.
    Flush {
        /// The table; all if absent.
        table: Option<String>,
    },
    /// A table is to have as few segments as can be.
    Optimize {
        /// Its name.
        table: String,
    },
    /// The replicas of a table are to be compared, and given what they lack.
    Repair {
        /// Its name.
        table: String,
    },
    /// What tables hold is to be copied elsewhere.
    Backup {
        /// The table; all if absent.
        table: Option<String>,
        /// Where to.
        to: BackupPlace,
    },
    /// Tables are to be made from such a copy.
    Restore {
        /// The table, by the name that it had; all of the backup if absent.
        table: Option<String>,
        /// What it is to be called; as it was if absent.
        named: Option<String>,
        /// Where from.
        from: BackupPlace,
    },
}

/// Where backups are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupPlace {
    /// `file:///…` or `s3://…`.
    pub url: String,
    /// How it is reached.
    pub options: ObjectOptions,
    /// Which of the backups there is meant; the newest if absent.
    pub backup: Option<String>,
}

/// Names of all [`ObjectOptions`].
pub const OBJECT_OPTIONS: [&str; 7] =
    ["endpoint", "region", "access_key_id", "secret_access_key", "session_token", "allow_http", "virtual_hosted_style"];

/// How a store of objects is reached, by name. Some of it is secret: it is not shown.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectOptions(pub BTreeMap<String, String>);

impl std::fmt::Debug for ObjectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Statement {
    /// The words by which clients know the statement: `SELECT`, `CREATE TABLE`, …
    pub fn tag(&self) -> &'static str {
        match self {
            Self::Query(PlannedQuery { explain: Some(_), .. }) => "EXPLAIN",
            Self::Query(_) | Self::KeyRead(_) => "SELECT",
            Self::CreateTable(_) => "CREATE TABLE",
            Self::DropTable { .. } => "DROP TABLE",
            Self::AlterTable(_) | Self::Split { .. } => "ALTER TABLE",
            Self::Insert { .. } => "INSERT",
            Self::Delete { .. } | Self::KeyChange(KeyChange { deletes: true, .. }) => "DELETE",
            Self::Update { .. } | Self::KeyChange(_) => "UPDATE",
            Self::Flush { .. } => "FLUSH",
            Self::Optimize { .. } => "OPTIMIZE TABLE",
            Self::Repair { .. } => "REPAIR TABLE",
            Self::Backup { .. } => "BACKUP",
            Self::Restore { .. } => "RESTORE",
        }
    }
}

/// Which partition is to be split, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitWish {
    /// The one with most rows, at its median key.
    Largest,
    /// This one, at its median key.
    Partition(PartitionId),
    /// The one that holds this encoded partition key, which becomes the first of the second half.
    At(Vec<u8>),
}

/// A query.
#[derive(Debug, Clone)]
pub struct PlannedQuery {
    /// What to run.
    pub graph: FragmentGraph,
    /// Whether the plan is wanted instead of the rows.
    pub explain: Option<ExplainKind>,
}

/// Which explanation of a query is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExplainKind {
    /// The plan. The query's graph yields it: columns `plan_type` and `plan`.
    Plan,
    /// The plan with what happened while it ran. The graph is the query itself: run it, discard its rows, report.
    Analyze,
}

/// Where an INSERT's rows come from. Columns carry the table's names and types, in the table's order. Of an event table the
/// columns `_ts` and `_dedup` are absent if the statement does not give them: whoever writes the rows fills them in.
#[derive(Debug, Clone)]
pub enum InsertSource {
    /// From the statement.
    Rows(Vec<RecordBatch>),
    /// From a query.
    Query(FragmentGraph),
}
