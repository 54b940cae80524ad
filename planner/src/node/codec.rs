//! The bytes of our own plan nodes, and of those of DataFusion's that its protocol leaves out.

use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::Literal;
use datafusion::physical_expr::{
    AcrossPartitions, ConstExpr, EquivalenceProperties, Partitioning, PhysicalExpr, PhysicalSortExpr,
};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::work_table::WorkTableExec;
use datafusion::physical_plan::{ExecutionPlan, PlanProperties};
use datafusion_proto::physical_plan::from_proto::parse_physical_expr;
use datafusion_proto::physical_plan::to_proto::serialize_physical_expr;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use datafusion_proto::protobuf::PhysicalExprNode;
use prost::Message;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Error, FragmentId};

use super::{CodedAggregateExec, ExchangeExec, ExchangeSource, LateFetchExec, LeafScanExec, ReplayExec, SummaryExec};
use crate::error::error_to_datafusion;

/// Encodes what datafusion-proto hands to its extension codec.
#[derive(Debug)]
pub(crate) struct ShoalCodec;

#[derive(Serialize, Deserialize)]
enum Node {
    Leaf(Vec<u8>),
    Fetch(Vec<u8>),
    Coded(SchemaRef),
    Summary,
    Exchange(Exchange),
    Replay,
    Recursive { name: String, schema: SchemaRef, is_distinct: bool },
    WorkTable { name: String, schema: SchemaRef },
}

/// An expression as datafusion-proto writes it.
type ExprBytes = Vec<u8>;

#[derive(Serialize, Deserialize)]
struct Exchange {
    fragment: FragmentId,
    source: ExchangeSource,
    schema: SchemaRef,
    /// Expressions of a hash partitioning; empty for an unknown one.
    hash: Vec<ExprBytes>,
    orderings: Vec<Vec<(ExprBytes, bool, bool)>>,
    equal: Vec<Vec<ExprBytes>>,
    constants: Vec<(ExprBytes, Across)>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Across {
    Heterogeneous,
    Uniform(Option<ExprBytes>),
}

impl ShoalCodec {
    /// An expression's bytes.
    pub(crate) fn encode_expr(&self, expr: &Arc<dyn PhysicalExpr>) -> Result<ExprBytes> {
        Ok(serialize_physical_expr(expr, self)?.encode_to_vec())
    }

    /// The expression of these bytes, over `schema`.
    pub(crate) fn decode_expr(
        &self,
        bytes: &[u8],
        schema: &Schema,
        context: &TaskContext,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let node = PhysicalExprNode::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
        parse_physical_expr(&node, context, schema, self)
    }

    fn encode_exchange(&self, exec: &ExchangeExec) -> Result<Exchange> {
        let properties = exec.properties();
        let equivalences = &properties.eq_properties;
        let orderings = equivalences.oeq_class().iter().map(|ordering| {
            ordering
                .iter()
                .map(|sort| Ok((self.encode_expr(&sort.expr)?, sort.options.descending, sort.options.nulls_first)))
                .collect()
        });
        let constants = equivalences.constants().into_iter().map(|constant| {
            let across = match constant.across_partitions {
                AcrossPartitions::Heterogeneous => Across::Heterogeneous,
                AcrossPartitions::Uniform(None) => Across::Uniform(None),
                AcrossPartitions::Uniform(Some(value)) => {
                    let value: Arc<dyn PhysicalExpr> = Arc::new(Literal::new(value));
                    Across::Uniform(Some(self.encode_expr(&value)?))
                }
            };
            Ok((self.encode_expr(&constant.expr)?, across))
        });
        Ok(Exchange {
            fragment: exec.fragment(),
            source: exec.source(),
            schema: exec.schema(),
            hash: match &properties.partitioning {
                Partitioning::Hash(keys, _) => keys.iter().map(|key| self.encode_expr(key)).collect::<Result<_>>()?,
                _ => Vec::new(),
            },
            orderings: sorted(orderings)?,
            equal: sorted(equivalences.eq_group().iter().map(|class| {
                let exprs = class.iter().map(|expr| self.encode_expr(expr));
                sorted(exprs)
            }))?,
            constants: sorted(constants)?,
        })
    }

    fn decode_exchange(&self, exchange: &Exchange, context: &TaskContext) -> Result<ExchangeExec> {
        let schema = &exchange.schema;
        let expr = |bytes: &ExprBytes| self.decode_expr(bytes, schema, context);
        let mut equivalences = EquivalenceProperties::new(Arc::clone(schema));
        for class in &exchange.equal {
            let exprs = class.iter().map(expr).collect::<Result<Vec<_>>>()?;
            for pair in exprs.windows(2) {
                if let [left, right] = pair {
                    equivalences.add_equal_conditions(Arc::clone(left), Arc::clone(right))?;
                }
            }
        }
        let mut constants = Vec::new();
        for (constant, across) in &exchange.constants {
            let across = match across {
                Across::Heterogeneous => AcrossPartitions::Heterogeneous,
                Across::Uniform(value) => AcrossPartitions::Uniform(match value {
                    Some(value) => literal(&expr(value)?),
                    None => None,
                }),
            };
            constants.push(ConstExpr::new(expr(constant)?, across));
        }
        equivalences.add_constants(constants)?;
        for ordering in &exchange.orderings {
            let sorts = ordering.iter().map(|(bytes, descending, nulls_first)| {
                let options = SortOptions { descending: *descending, nulls_first: *nulls_first };
                Ok(PhysicalSortExpr::new(expr(bytes)?, options))
            });
            equivalences.add_ordering(sorts.collect::<Result<Vec<_>>>()?);
        }
        let count = exchange.source.partitions();
        let partitioning = match exchange.hash.as_slice() {
            [] => Partitioning::UnknownPartitioning(count),
            keys => Partitioning::Hash(keys.iter().map(expr).collect::<Result<_>>()?, count),
        };
        let properties =
            PlanProperties::new(equivalences, partitioning, EmissionType::Incremental, Boundedness::Bounded);
        Ok(ExchangeExec::new(exchange.fragment, exchange.source, &properties))
    }
}

impl PhysicalExtensionCodec for ShoalCodec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let node: Node = shoal_kernel::wire::decode(buf).map_err(|error| error_to_datafusion(error.into()))?;
        Ok(match (node, inputs) {
            (Node::Leaf(bytes), []) => Arc::new(LeafScanExec::decode(&bytes).map_err(error_to_datafusion)?),
            (Node::Fetch(bytes), [input]) => {
                Arc::new(LateFetchExec::decode(&bytes, Arc::clone(input)).map_err(error_to_datafusion)?)
            }
            (Node::Coded(schema), [aggregate]) => Arc::new(CodedAggregateExec::decode(schema, Arc::clone(aggregate))),
            (Node::Summary, [aggregate]) => Arc::new(SummaryExec::new(Arc::clone(aggregate))),
            (Node::Exchange(exchange), []) => Arc::new(self.decode_exchange(&exchange, ctx)?),
            (Node::Replay, [input]) => Arc::new(ReplayExec::new(Arc::clone(input))),
            (Node::Recursive { name, schema, is_distinct }, [first, next]) => {
                let (first, next) = (Arc::clone(first), Arc::clone(next));
                Arc::new(RecursiveQueryExec::try_new(name, schema, first, next, is_distinct)?)
            }
            (Node::WorkTable { name, schema }, []) => Arc::new(WorkTableExec::new(name, schema, None)?),
            _ => return Err(corrupt("a plan node has the wrong number of inputs".into())),
        })
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let message = if let Some(leaf) = node.downcast_ref::<LeafScanExec>() {
            Node::Leaf(leaf.encode().map_err(error_to_datafusion)?)
        } else if let Some(fetch) = node.downcast_ref::<LateFetchExec>() {
            Node::Fetch(fetch.encode().map_err(error_to_datafusion)?)
        } else if node.is::<CodedAggregateExec>() {
            Node::Coded(node.schema())
        } else if node.is::<SummaryExec>() {
            Node::Summary
        } else if let Some(exchange) = node.downcast_ref::<ExchangeExec>() {
            Node::Exchange(self.encode_exchange(exchange)?)
        } else if node.is::<ReplayExec>() {
            Node::Replay
        } else if let Some(query) = node.downcast_ref::<RecursiveQueryExec>() {
            Node::Recursive { name: query.name().into(), schema: node.schema(), is_distinct: query.is_distinct() }
        } else if let Some(table) = node.downcast_ref::<WorkTableExec>() {
            Node::WorkTable { name: table.name().into(), schema: node.schema() }
        } else {
            let message = format!("{} cannot be part of a distributed query yet", node.name());
            return Err(error_to_datafusion(Error::new(shoal_kernel::ErrorCode::Unsupported, message)));
        };
        *buf = shoal_kernel::wire::encode(&message).map_err(|error| error_to_datafusion(error.into()))?;
        Ok(())
    }
}

/// In an order of their own: these come out of hash maps, and the same plan shall have the same bytes.
fn sorted<T: Ord>(items: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let mut items = items.collect::<Result<Vec<_>>>()?;
    items.sort_unstable();
    Ok(items)
}

fn literal(expr: &Arc<dyn PhysicalExpr>) -> Option<ScalarValue> {
    expr.downcast_ref::<Literal>().map(|literal| literal.value().clone())
}

fn corrupt(message: String) -> datafusion::error::DataFusionError {
    error_to_datafusion(Error::new(shoal_kernel::ErrorCode::Corruption, message))
}
