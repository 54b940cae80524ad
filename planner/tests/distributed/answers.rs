//! Distributed answers are those of DataFusion alone over the same rows.

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use shoal_planner::{PlanOptions, Slicing};

use crate::runner::query;
use crate::world::World;

/// Queries; those with an ORDER BY at their end are compared in order.
const QUERIES: &str = include_str!("queries.sql");

/// Rows as text.
pub fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let values: Vec<_> = columns.iter().map(|column| column.value(row).to_string()).collect();
            lines.push(values.join("|"));
        }
    }
    lines
}

/// Whether the whole query has an ORDER BY: its last one is not inside of parentheses.
fn is_ordered(sql: &str) -> bool {
    let Some((_, tail)) = sql.rsplit_once("ORDER BY") else { return false };
    let mut depth = 0;
    tail.chars().all(|letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        depth >= 0
    })
}

async fn same_answers(tasks: usize, slicing: Slicing, broadcast: bool) {
    let world = World::new().await;
    let reference = world.reference();
    let row_counts = world.row_counts();
    let options = PlanOptions { target_partitions: tasks, slicing, row_counts, broadcast, ..PlanOptions::default() };
    let mut wrong = Vec::new();
    for sql in shoal_planner::split_statements(QUERIES).unwrap() {
        let expected = reference.sql(&sql).await.unwrap().collect().await.unwrap();
        let (mut expected, found) = (lines(&expected), query(&world, &sql, &options).await);
        let (graph, mut found) = match found {
            Ok((graph, rows)) => (graph, lines(&rows)),
            Err(error) => {
                wrong.push(format!("{sql}\n{error:?}"));
                continue;
            }
        };
        if !is_ordered(&sql) {
            expected.sort_unstable();
            found.sort_unstable();
        }
        if expected != found {
            let plan = shoal_planner::describe(&graph);
            wrong.push(format!(
                "{sql}\nexpected {} rows: {expected:#?}\nfound {}: {found:#?}\n{plan}",
                expected.len(),
                found.len()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n\n"));
}

#[tokio::test]
async fn answers_are_the_same_with_one_merge_task() {
    same_answers(1, Slicing::NONE, true).await;
}

#[tokio::test]
async fn answers_are_the_same_with_three_merge_tasks() {
    same_answers(3, Slicing::NONE, true).await;
}

#[tokio::test]
async fn answers_are_the_same_without_broadcasts() {
    same_answers(3, Slicing { slices_max: 2, slice_rows_min: 30 }, false).await;
}

#[tokio::test]
async fn answers_are_the_same_when_partitions_are_read_in_slices() {
    same_answers(1, Slicing { slices_max: 3, slice_rows_min: 1 }, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_same_on_several_threads() {
    same_answers(4, Slicing { slices_max: 2, slice_rows_min: 10 }, true).await;
}
