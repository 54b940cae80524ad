//! Reads by key give what the query gives.

use shoal_planner::{PlanOptions, Statement};

use crate::answers::lines;
use crate::runner::{query, run, scan};
use crate::world::World;

/// What is read by key.
const READS: &[&str] = &[
    "SELECT * FROM flights WHERE id = 17",
    "SELECT id, origin FROM flights WHERE id = 17",
    "select ORIGIN, \"id\" from Flights where 17 = ID",
    "SELECT flights.origin AS o, id AS \"Key\", delay FROM public.flights WHERE (flights.id = 10)",
    "SELECT origin AS Änderung FROM flights WHERE id = 17",
    "SELECT * FROM flights WHERE id = -4",
    "SELECT delay FROM flights WHERE id = 13 LIMIT 1",
    "SELECT delay FROM flights WHERE id = 13 LIMIT 0",
    "SELECT id, delay FROM flights WHERE id BETWEEN 120 AND 160 ORDER BY id",
    "SELECT delay, origin FROM flights WHERE id BETWEEN 120 AND 160 ORDER BY id DESC",
    "SELECT id, delay FROM flights WHERE id > 120 AND 160 >= id ORDER BY id DESC LIMIT 7",
    "SELECT id FROM flights WHERE id >= 201 AND id < 205",
    "SELECT id FROM flights WHERE id >= 101 AND id <= 1100 AND id = 103",
    "SELECT city FROM airports WHERE iata = 'ANC'",
    "SELECT * FROM airports WHERE iata = 'PDX' ORDER BY iata",
    "SELECT * FROM nothing WHERE k = 3",
    "SELECT c FROM pairs WHERE a = 4 AND b = 'b4'",
    "SELECT b, c FROM pairs WHERE b = 'b13' AND a = 4",
    "SELECT * FROM edges WHERE src = 3 AND dst BETWEEN 0 AND 100 ORDER BY dst",
    "SELECT dst FROM edges WHERE src = 5 AND dst BETWEEN 0 AND 100 ORDER BY src DESC, dst LIMIT 1",
    "SELECT * FROM edges WHERE src = 3 AND dst BETWEEN 9 AND 2",
];

/// What is planned: by the rules of SQL it is something else, or nobody knows how much it reads.
const QUERIES: &[&str] = &[
    "SELECT id FROM flights WHERE id = 17 AND delay > 3",
    "SELECT id FROM flights WHERE id = 17 OR id = 18",
    "SELECT id FROM flights WHERE id IN (17, 18)",
    "SELECT id FROM flights WHERE id = 17.0",
    "SELECT id FROM flights WHERE id = '17'",
    "SELECT id FROM flights WHERE id = 16 + 1",
    "SELECT id FROM flights WHERE id <> 17",
    "SELECT id FROM flights WHERE id > 17",
    "SELECT id FROM flights WHERE id BETWEEN 90 AND 110",
    "SELECT id FROM flights WHERE id NOT BETWEEN 101 AND 400",
    "SELECT id FROM flights WHERE id BETWEEN 101 AND 1101",
    "SELECT id + 1 FROM flights WHERE id = 17",
    "SELECT id, 1 FROM flights WHERE id = 17",
    "SELECT count(*) FROM flights WHERE id = 17",
    "SELECT DISTINCT id FROM flights WHERE id = 17",
    "SELECT id FROM flights WHERE id = 17 GROUP BY id",
    "SELECT id FROM flights f WHERE id = 17",
    "SELECT f.id FROM flights f WHERE f.id = 17",
    "SELECT id AS delay FROM flights WHERE id BETWEEN 120 AND 130 ORDER BY id",
    "SELECT id FROM flights WHERE id BETWEEN 120 AND 130 ORDER BY delay, id",
    "SELECT id FROM flights WHERE id BETWEEN 120 AND 130 ORDER BY id + 1",
    "SELECT id FROM flights WHERE id BETWEEN 120 AND 130 ORDER BY id NULLS FIRST",
    "SELECT id FROM flights WHERE id BETWEEN 120 AND 130 ORDER BY id LIMIT 3 OFFSET 1",
    "SELECT id FROM flights WHERE id = 17 UNION ALL SELECT id FROM flights WHERE id = 18",
    "WITH x AS (SELECT 1) SELECT id FROM flights WHERE id = 17",
    "SELECT x.id FROM flights x, flights y WHERE x.id = 17 AND y.id = 17",
    "SELECT * FROM nothing WHERE k = 3000000000",
    "SELECT city FROM airports WHERE iata > 'A' AND iata < 'C'",
    "SELECT dst FROM edges WHERE src BETWEEN 1 AND 3 AND dst BETWEEN 0 AND 100",
    "SELECT dst FROM edges WHERE src BETWEEN 3 AND 1 AND dst = 4",
    "SELECT id FROM flights WHERE id BETWEEN -9223372036854775808 AND 9223372036854775807",
    "SELECT c FROM pairs WHERE a = 4",
    "SELECT sensor FROM readings WHERE _dedup = 'd3'",
];

/// What is changed by key.
const CHANGES: &[&str] = &[
    "DELETE FROM flights WHERE id = 17",
    "DELETE FROM flights WHERE (id BETWEEN 120 AND 130)",
    "DELETE FROM public.flights WHERE flights.id > 120 AND id <= 123",
    "DELETE FROM airports WHERE iata = 'ANC'",
    "DELETE FROM pairs WHERE a = 4 AND b = 'b4'",
    "DELETE FROM flights WHERE id = -4",
    "UPDATE flights SET delay = 7 WHERE id = 17",
    "update Flights set \"delay\" = NULL, ORIGIN = 'XXX' where id BETWEEN 120 AND 130",
    "UPDATE pairs SET c = -3 WHERE a = 7 AND b = 'b7'",
    "UPDATE flights SET delay = '12' WHERE 17 = id",
    "UPDATE flights SET delay = 12 WHERE id = -4",
];

/// What is planned.
const PLANNED_CHANGES: &[&str] = &[
    "DELETE FROM flights",
    "DELETE FROM flights WHERE delay = 3",
    "DELETE FROM flights WHERE id = 17 AND delay = 3",
    "DELETE FROM flights WHERE id IN (SELECT id FROM flights)",
    "DELETE FROM flights f WHERE f.id = 17",
    "UPDATE flights SET delay = 7",
    "UPDATE flights SET delay = delay + 1 WHERE id = 17",
    "UPDATE flights SET delay = 7 WHERE id > 17",
    "UPDATE flights SET origin = upper('x') WHERE id = 17",
    "UPDATE flights f SET delay = 7 WHERE f.id = 17",
];

fn by_key() -> PlanOptions {
    PlanOptions { by_key: true, ..PlanOptions::default() }
}

/// What is wrong is told by the same error, whether it may be done by key or not.
async fn is_refused_as_ever(world: &World, sql: &str) {
    let error = world.planner.plan(sql, &world.catalog, &by_key()).await.unwrap_err();
    let as_ever = world.planner.plan(sql, &world.catalog, &PlanOptions::default()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (as_ever.code(), as_ever.message()), "{sql}");
}

#[tokio::test]
async fn a_read_by_key_is_the_query() {
    let world = World::new().await;
    for sql in READS {
        let planned = world.planner.plan(sql, &world.catalog, &by_key()).await.unwrap();
        let Statement::KeyRead(read) = planned else { panic!("{sql} is no read by key") };
        let (graph, rows) = query(&world, sql, &PlanOptions::default()).await.unwrap();
        assert_eq!(read.schema, graph.schema, "{sql}");
        let found = scan(&world, &read.scan).await;
        let answer: Vec<_> = read.answer(&found).unwrap().into_iter().collect();
        let (mut found, mut expected) = (lines(&answer), lines(&rows));
        if !sql.contains("ORDER BY") {
            found.sort_unstable();
            expected.sort_unstable();
        }
        assert_eq!(found, expected, "{sql}");
    }
}

#[tokio::test]
async fn everything_else_is_planned() {
    let world = World::new().await;
    for sql in QUERIES {
        let planned = world.planner.plan(sql, &world.catalog, &by_key()).await;
        assert!(matches!(planned, Ok(Statement::Query(_))), "{sql}: {planned:?}");
    }
    // What is wrong is told as ever.
    for sql in [
        "SELECT id, id FROM flights WHERE id = 1",
        "SELECT x FROM flights WHERE id = 1",
        "SELECT * FROM no WHERE id = 1",
    ] {
        is_refused_as_ever(&world, sql).await;
    }
}

#[tokio::test]
async fn explain_tells_of_it() {
    let world = World::new().await;
    let sql = "EXPLAIN SELECT origin FROM flights WHERE id BETWEEN 120 AND 130 ORDER BY id";
    let (_, rows) = query(&world, sql, &by_key()).await.unwrap();
    let text = lines(&rows);
    let first = text.first().unwrap();
    assert_eq!(first, "by_key|KeyRead: flights, partition=p3, columns=[origin, id], where=[id >= 120, id <= 130]");
    assert!(text.iter().any(|line| line.starts_with("fragments|")), "{text:?}");
}

#[tokio::test]
async fn a_change_by_key_writes_what_the_query_would() {
    let world = World::new().await;
    for sql in CHANGES {
        let planned = world.planner.plan(sql, &world.catalog, &by_key()).await.unwrap();
        assert_eq!(planned.tag(), &sql[..6].to_uppercase(), "{sql}");
        let Statement::KeyChange(change) = planned else { panic!("{sql} is no change by key") };
        let (table, graph, deletes) =
            match world.planner.plan(sql, &world.catalog, &PlanOptions::default()).await.unwrap() {
                Statement::Delete { table, keys } => (table, keys, true),
                Statement::Update { table, rows } => (table, rows, false),
                other => panic!("{sql}: {other:?}"),
            };
        assert_eq!((&change.table, change.deletes), (&table, deletes), "{sql}");
        assert_eq!(change.read.scan.schema_exact, !deletes, "{sql}");
        let found = scan(&world, &change.read.scan).await;
        let written: Vec<_> = change.rows(&found).unwrap().into_iter().collect();
        let expected = run(&world, &graph).await.unwrap();
        let types = |schema: &datafusion::arrow::datatypes::Schema| -> Vec<_> {
            schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
        };
        assert_eq!(types(&change.read.schema), types(&graph.schema), "{sql}");
        let (mut written, mut expected) = (lines(&written), lines(&expected));
        written.sort_unstable();
        expected.sort_unstable();
        assert_eq!(written, expected, "{sql}");
    }
    for sql in PLANNED_CHANGES {
        let planned = world.planner.plan(sql, &world.catalog, &by_key()).await;
        assert!(matches!(planned, Ok(Statement::Delete { .. } | Statement::Update { .. })), "{sql}: {planned:?}");
    }
    // What is wrong is told as ever.
    for sql in [
        "UPDATE flights SET id = 3 WHERE id = 1",
        "UPDATE flights SET delay = 3, delay = 4 WHERE id = 1",
        "UPDATE flights SET delay = 'x' WHERE id = 1",
        "UPDATE flights SET ts = NULL WHERE id = 1",
        "UPDATE flights SET x = 3 WHERE id = 1",
        "UPDATE readings SET sensor = 3 WHERE _dedup = 'd3'",
        "DELETE FROM flights WHERE id = 1 RETURNING id",
        "DELETE FROM readings WHERE _dedup = 'd3'",
        "DELETE FROM no WHERE id = 1",
    ] {
        is_refused_as_ever(&world, sql).await;
    }
    // More than such a change is for.
    let long = format!("UPDATE flights SET origin = '{}' WHERE id BETWEEN 101 AND 199", "x".repeat(20_000));
    let planned = world.planner.plan(&long, &world.catalog, &by_key()).await.unwrap();
    let Statement::KeyChange(change) = planned else { panic!("it is found by key") };
    let error = change.rows(&scan(&world, &change.read.scan).await).unwrap_err();
    assert_eq!(error.code(), shoal_kernel::ErrorCode::LimitExceeded);
    let (_, rows) = query(&world, "EXPLAIN UPDATE flights SET delay = 7 WHERE id = 120", &by_key()).await.unwrap();
    let first = lines(&rows).into_iter().next().unwrap();
    assert!(first.starts_with("by_key|KeyUpdate: flights, partition=p3, columns=[id, "), "{first}");
}
