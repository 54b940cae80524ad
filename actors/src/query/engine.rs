//! The planner as the engine of fragments.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use shoal_kernel::Result;
use shoal_planner::{Edge, EdgeRouter, Fragment, Planner, TaskInputs, TaskMemory};

use super::ports::{Engine, Router};

impl Engine for Planner {
    fn start(
        &self,
        fragment: &Fragment,
        task: u32,
        inputs: Arc<dyn TaskInputs>,
        memory: TaskMemory,
    ) -> Result<SendableRecordBatchStream> {
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
