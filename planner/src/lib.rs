//! SQL in, [`FragmentGraph`] out.
//!
//! DataFusion parses, plans and optimises; this crate gives it the cluster's tables and cuts the physical plan at its
//! exchanges. It opens nothing and talks to nobody: the leaves are [`ScanSpec`](shoal_kernel::ScanSpec)s, and where data
//! comes from when a fragment runs is the business of whoever implements [`TaskInputs`].

mod graph;

pub use graph::{Edge, Fragment, FragmentGraph, Place, TaskInputs, TaskSpec};
