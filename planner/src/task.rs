//! A fragment's task, ready to run.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{MemoryLimit, MemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::spill_file::TempFileFactory;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_proto::bytes::physical_plan_from_bytes_with_extension_codec;
use shoal_kernel::{Error, ErrorCode, Result};

use crate::error::error_from_datafusion;
use crate::graph::{Fragment, TaskInputs, TaskInputsExtension};
use crate::node::ShoalCodec;
use crate::order::follow_sorts;
use crate::session::running;
use crate::stop::heed_stop;

/// Sorts that may run on a node and still find memory for their rows: each keeps a part of it back from the start, for the merge of what it
/// puts on disk.
const SORTS_AT_ONCE: usize = 32;
const MERGE_BYTES_MIN: usize = 4 << 10;
const MERGE_BYTES_MAX: usize = 512 << 10;
/// Files that a merge reads at once: it would take all memory that it gets for more of them.
const MERGE_FILES_MAX: usize = 8;

/// What a task may use.
#[derive(Clone, Default)]
pub struct TaskMemory {
    /// Where its memory is counted; unbounded if absent.
    pub pool: Option<Arc<dyn MemoryPool>>,
    /// Where it puts what memory does not hold; without it, it fails with [`ErrorCode::OutOfMemory`] instead.
    pub spill: Option<Arc<dyn TempFileFactory>>,
    /// Rows per batch; DataFusion's default if 0.
    pub batch_rows: usize,
}

impl fmt::Debug for TaskMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, spill, batch_rows } = self;
        write!(f, "TaskMemory({pool:?}, spills: {}, {batch_rows} rows)", spill.is_some())
    }
}

/// One task of a fragment.
#[derive(Debug)]
pub struct RunnableTask {
    /// The fragment's plan; shared by nobody, so its metrics are this task's.
    pub plan: Arc<dyn ExecutionPlan>,
    /// What it runs with.
    pub context: Arc<TaskContext>,
    /// Columns of its output.
    pub schema: SchemaRef,
    /// The output partition that this task computes.
    pub partition: usize,
}

impl RunnableTask {
    /// Starts it. Nothing runs before the stream is polled, and dropping the stream stops it.
    ///
    /// # Errors
    /// The plan cannot start: an input is unknown to [`TaskInputs`], or memory is short at once.
    pub fn execute(&self) -> Result<SendableRecordBatchStream> {
        self.plan.execute(self.partition, Arc::clone(&self.context)).map_err(error_from_datafusion)
    }
}

pub(crate) fn decode(
    registry: &TaskContext,
    fragment: &Fragment,
    task: u32,
    inputs: Arc<dyn TaskInputs>,
    memory: TaskMemory,
) -> Result<RunnableTask> {
    let mode = memory.spill.map_or(DiskManagerMode::Disabled, DiskManagerMode::Custom);
    let disk = DiskManagerBuilder::default().with_mode(mode).with_max_spill_merge_fan_in(MERGE_FILES_MAX);
    let mut runtime = RuntimeEnvBuilder::new().with_disk_manager_builder(disk);
    let mut config = registry.session_config().clone();
    if let Some(pool) = memory.pool {
        if let MemoryLimit::Finite(bytes) = pool.memory_limit() {
            let kept_back = (bytes / SORTS_AT_ONCE).clamp(MERGE_BYTES_MIN, MERGE_BYTES_MAX);
            config.options_mut().execution.sort_spill_reservation_bytes = kept_back;
        }
        runtime = runtime.with_memory_pool(pool);
    }
    let runtime = runtime.build_arc().map_err(error_from_datafusion)?;
    if memory.batch_rows > 0 {
        config
            .options_mut()
            .set("datafusion.execution.batch_size", &memory.batch_rows.to_string())
            .map_err(error_from_datafusion)?;
    }
    let config = config.with_extension(Arc::new(TaskInputsExtension(Arc::clone(&inputs))));
    let context = running(Some(format!("{}.{task}", fragment.id)), config, runtime);
    let plan = physical_plan_from_bytes_with_extension_codec(&fragment.plan, registry, &ShoalCodec)
        .and_then(follow_sorts)
        .and_then(|plan| heed_stop(plan, &inputs))
        .map_err(error_from_datafusion)
        .map_err(|error| error.context(format_args!("fragment {}", fragment.id)))?;
    let partition = task as usize;
    if partition >= plan.output_partitioning().partition_count() {
        let message = format!("fragment {} has no task {task}", fragment.id);
        return Err(Error::new(ErrorCode::Internal, message));
    }
    Ok(RunnableTask { schema: plan.schema(), plan, context: Arc::new(context), partition })
}
