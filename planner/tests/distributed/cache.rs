//! Plans that are kept are those that would be made again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shoal_kernel::ErrorCode;
use shoal_planner::{FragmentGraph, PlanOptions, Slicing, Statement};

use crate::answers::lines;
use crate::runner::query;
use crate::world::World;

async fn plan(world: &World, sql: &str, options: &PlanOptions) -> FragmentGraph {
    match world.planner.plan(sql, &world.catalog, options).await.unwrap() {
        Statement::Query(query) => query.graph,
        other => panic!("{} is no query", other.tag()),
    }
}

fn shape(graph: &FragmentGraph) -> Vec<(Vec<u8>, usize)> {
    graph.fragments.iter().map(|fragment| (fragment.plan.clone(), fragment.tasks.len())).collect()
}

#[tokio::test]
async fn the_same_statement_has_the_same_plan() {
    let world = World::new().await;
    let options = PlanOptions::default();
    let sql = "SELECT origin, count(*) FROM flights GROUP BY origin ORDER BY origin";
    let first = plan(&world, sql, &options).await;
    assert_eq!(shape(&plan(&world, sql, &options).await), shape(&first));
    let (_, rows) = query(&world, sql, &options).await.unwrap();
    let (_, again) = query(&world, sql, &options).await.unwrap();
    assert_eq!(lines(&rows), lines(&again));
    let more_tasks = PlanOptions { target_partitions: 3, ..PlanOptions::default() };
    assert_ne!(shape(&plan(&world, sql, &more_tasks).await), shape(&first));
}

#[tokio::test]
async fn a_table_that_has_grown_is_planned_anew() {
    let world = World::new().await;
    let rows = Arc::new(AtomicU64::new(10));
    let counted = rows.clone();
    let options = PlanOptions {
        slicing: Slicing { slices_max: 4, slice_rows_min: 100 },
        row_counts: Arc::new(move |_| Some(counted.load(Ordering::Relaxed))),
        ..PlanOptions::default()
    };
    let sql = "SELECT count(*) FROM flights WHERE delay > 3";
    let small = plan(&world, sql, &options).await;
    rows.store(99, Ordering::Relaxed);
    assert_eq!(shape(&plan(&world, sql, &options).await), shape(&small));
    rows.store(300, Ordering::Relaxed);
    let tasks = |graph: &FragmentGraph| graph.fragments[0].tasks.len();
    assert_eq!(tasks(&plan(&world, sql, &options).await), 3 * tasks(&small));
    rows.store(10, Ordering::Relaxed);
    assert_eq!(shape(&plan(&world, sql, &options).await), shape(&small));
}

#[tokio::test]
async fn the_moment_is_never_kept() {
    let world = World::new().await;
    let at = |now_micros| PlanOptions { now_micros, ..PlanOptions::default() };
    for sql in [
        "SELECT now()",
        "SELECT * FROM generate_series(now()::bigint / 1000000000, now()::bigint / 1000000000 + 1)",
        "SELECT id FROM flights WHERE now() > TIMESTAMP '2026-01-01 00:00:00' LIMIT 1",
    ] {
        let early = query(&world, sql, &at(1_000_000)).await.unwrap().1;
        let late = query(&world, sql, &at(1_900_000_000_000_000)).await.unwrap().1;
        assert_ne!(lines(&early), lines(&late), "{sql}");
    }
}

#[tokio::test]
async fn another_catalog_is_another_plan() {
    let mut world = World::new().await;
    let options = PlanOptions::default();
    let sql = "SELECT count(*) FROM flights";
    plan(&world, sql, &options).await;
    let mut without = world.catalog.as_ref().clone();
    without.tables.retain(|_, table| table.name != "flights");
    without.version += 1;
    world.catalog = Arc::new(without);
    let error = world.planner.plan(sql, &world.catalog, &options).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::UnknownTable);
}
