//! Plan nodes of our own: plain data that finds its rows, when it runs, through [`TaskInputs`](crate::TaskInputs).

mod codec;
mod coded;
mod exchange;
mod fetch;
mod leaf;
mod replay;
mod stable;
mod summary;

pub(crate) use codec::ShoalCodec;
pub(crate) use coded::CodedAggregateExec;
pub(crate) use exchange::{ExchangeExec, ExchangeSource};
pub(crate) use fetch::{LateFetchExec, Output};
pub(crate) use leaf::{Known, LeafScanExec};
pub(crate) use replay::ReplayExec;
pub(crate) use stable::plan_to_bytes;
pub(crate) use summary::SummaryExec;

use std::sync::Arc;

use datafusion::error::Result;
use datafusion::execution::TaskContext;
use shoal_kernel::Error;

use crate::error::error_to_datafusion;
use crate::graph::{TaskInputs, TaskInputsExtension};

/// The running task's access to its data.
fn inputs(context: &TaskContext) -> Result<Arc<dyn TaskInputs>> {
    context
        .session_config()
        .get_extension::<TaskInputsExtension>()
        .map(|extension| Arc::clone(&extension.0))
        .ok_or_else(|| error_to_datafusion(Error::internal("a distributed plan was run outside of a task")))
}
