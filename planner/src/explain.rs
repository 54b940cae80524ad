//! EXPLAIN: a query's plan as rows.

use std::fmt::Write;

use datafusion::physical_plan::display::DisplayableExecutionPlan;
use shoal_kernel::{ReadLevel, Result};

use crate::constant::text_query;
use crate::error::error_from_datafusion;
use crate::graph::{Edge, Fragment, FragmentGraph, Place};
use crate::planner::Planned;

/// A query whose answer explains another: columns `plan_type` and `plan`. The level is told unless it is the lowest. Of what is done by
/// key, in these words, the plan is what is carried out if that fails.
pub(crate) fn rows(planned: &Planned, by_key: Option<String>, level: ReadLevel) -> Result<FragmentGraph> {
    let physical = DisplayableExecutionPlan::new(planned.physical.as_ref()).indent(false).to_string();
    let by_key = by_key.map(|words| ("by_key", words));
    let plans = [
        ("logical_plan", planned.logical.display_indent().to_string()),
        ("physical_plan", physical.trim_end().to_owned()),
        ("fragments", describe(&planned.graph)),
    ];
    let level = (level > ReadLevel::default()).then(|| ("read_level", level.to_string()));
    let (kinds, plans) =
        by_key.into_iter().chain(plans).chain(level).map(|(kind, plan)| (Some(kind.to_owned()), Some(plan))).unzip();
    text_query(&["plan_type", "plan"], vec![kinds, plans]).map_err(error_from_datafusion)
}

/// A graph for people: the root first, as plans are read.
pub fn describe(graph: &FragmentGraph) -> String {
    let mut text = String::new();
    for fragment in graph.fragments.iter().rev() {
        let _ = writeln!(text, "{} on {} -> {}", fragment.id, places(fragment), edge(fragment));
        for line in fragment.label.lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn places(fragment: &Fragment) -> String {
    let place = |place: &Place| match place {
        Place::Replica(partition) => partition.to_string(),
        Place::Anywhere => "anywhere".into(),
        Place::Coordinator => "coordinator".into(),
    };
    match fragment.tasks.first() {
        Some(first) if fragment.tasks.len() > 1 && fragment.tasks.iter().all(|task| task == first) => {
            format!("{} x {}", fragment.tasks.len(), place(&first.place))
        }
        _ => {
            let places: Vec<_> = fragment.tasks.iter().map(|task| place(&task.place)).collect();
            format!("[{}]", places.join(", "))
        }
    }
}

fn edge(fragment: &Fragment) -> String {
    match &fragment.output {
        Edge::Gather => "gather".into(),
        Edge::Hash { slots, .. } => format!("hash into {slots}"),
        Edge::Broadcast { slots } => format!("broadcast to {slots}"),
    }
}
