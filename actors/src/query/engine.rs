//! The planner as the engine of fragments.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use shoal_kernel::Result;
use shoal_planner::{Edge, EdgeRouter, Fragment, Planner, TaskInputs, TaskMemory};

use super::ports::{Engine, Router};

impl Engine for Planner {
    fn start(
        &self,
        fragment: &Fragment,
        task: u32,
        inputs: Arc<dyn TaskInputs>,
        memory: Arc<dyn MemoryPool>,
    ) -> Result<SendableRecordBatchStream> {
        // No spill directory: DataFusion would write to it past `Env`.
        let memory = TaskMemory { pool: Some(memory), ..TaskMemory::default() };
        self.decode(fragment, task, inputs, memory)?.execute()
    }

    fn router(&self, edge: &Edge, schema: SchemaRef) -> Result<Box<dyn Router>> {
        Ok(Box::new(Planner::router(self, edge, schema)?))
    }
}

impl Router for EdgeRouter {
    fn route(&mut self, batch: RecordBatch) -> Result<Vec<(u32, RecordBatch)>> {
        EdgeRouter::route(self, batch)
    }
}
