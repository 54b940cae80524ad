//! Which consumer task gets which row.

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::Time;
use datafusion::physical_plan::repartition::BatchPartitioner;
use shoal_kernel::Result;

use crate::error::error_from_datafusion;
use crate::graph::Edge;
use crate::node::ShoalCodec;

/// Splits a producer task's output into its slots. The same row goes to the same slot on every node: the hash is the one
/// that DataFusion's own repartitioning uses, with its fixed seed.
pub struct EdgeRouter {
    kind: Kind,
}

enum Kind {
    One,
    Hash(Box<BatchPartitioner>),
    All(u32),
}

impl EdgeRouter {
    pub(crate) fn new(registry: &TaskContext, edge: &Edge, schema: &SchemaRef) -> Result<Self> {
        let kind = match edge {
            Edge::Gather => Kind::One,
            Edge::Broadcast { slots } => Kind::All(*slots),
            Edge::Hash { expressions, slots } => {
                let expressions = expressions
                    .iter()
                    .map(|bytes| ShoalCodec.decode_expr(bytes, schema, registry))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(error_from_datafusion)?;
                let partitioner = BatchPartitioner::new_hash_partitioner(expressions, *slots as usize, Time::new())
                    .map_err(error_from_datafusion)?;
                Kind::Hash(Box::new(partitioner))
            }
        };
        Ok(Self { kind })
    }

    /// The batch's rows by slot, in order of slots; slots without rows are left out.
    ///
    /// # Errors
    /// An expression of the edge fails on a row.
    pub fn route(&mut self, batch: RecordBatch) -> Result<Vec<(u32, RecordBatch)>> {
        match &mut self.kind {
            Kind::One => Ok(vec![(0, batch)]),
            Kind::All(slots) => Ok((0..*slots).map(|slot| (slot, batch.clone())).collect()),
            Kind::Hash(partitioner) => {
                let mut routed = Vec::new();
                partitioner
                    .partition(batch, |slot, rows| {
                        // Fits: the number of slots came from a u32.
                        routed.push((slot as u32, rows));
                        Ok(())
                    })
                    .map_err(error_from_datafusion)?;
                Ok(routed)
            }
        }
    }
}

impl std::fmt::Debug for EdgeRouter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.kind {
            Kind::One => "EdgeRouter(gather)",
            Kind::Hash(_) => "EdgeRouter(hash)",
            Kind::All(_) => "EdgeRouter(broadcast)",
        })
    }
}
