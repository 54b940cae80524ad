//! SQL in, [`FragmentGraph`] out.
//!
//! DataFusion parses, plans and optimises; this crate gives it the cluster's tables and cuts the physical plan at its
//! exchanges. It opens nothing and talks to nobody: the leaves are [`ScanSpec`](shoal_kernel::ScanSpec)s, and where data
//! comes from when a fragment runs is the business of whoever implements [`TaskInputs`].
//!
//! [`Planner::plan`] turns a text into a [`Statement`]; [`Planner::decode`] turns a fragment that has travelled into a
//! [`RunnableTask`]; [`Planner::router`] splits a task's output over the slots of its edge.

mod broadcast;
mod by_key;
mod cache;
mod change;
mod coded;
mod constant;
mod cut;
mod datum;
mod ends;
mod error;
mod explain;
mod graph;
mod groups;
mod insert;
mod late;
mod literals;
mod node;
mod order;
mod planner;
mod predicate;
mod prune;
mod router;
mod runs;
mod series;
mod session;
mod show;
mod sql;
mod statement;
mod stop;
mod summary;
mod system;
mod table;
mod task;
mod unknown;
mod window;

pub use by_key::{KeyChange, KeyRead};
pub use error::{error_from_datafusion, error_to_datafusion};
pub use explain::describe;
pub use graph::{Edge, Fragment, FragmentGraph, Place, TaskInputs, TaskInputsExtension, TaskSpec};
pub use planner::{PlanOptions, Planner, RowCounts, Slicing};
pub use router::EdgeRouter;
pub use sql::{split_statements, without_secrets};
pub use statement::{BackupPlace, ExplainKind, InsertSource, ObjectOptions, PlannedQuery, SplitWish, Statement};
pub use system::SystemTables;
pub use task::{RunnableTask, TaskMemory};
