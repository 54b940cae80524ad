//! Statements other than SELECT.

use arrow::datatypes::DataType;
use expect_test::{Expect, expect};
use shoal_catalog::{Partitioning, TtlChange};
use shoal_kernel::{Column, ColumnId, Cutoff, Datum, ErrorCode, Fsync, SchemaChange, TableKind, Ttl, WriteLevel};
use shoal_planner::{ExplainKind, InsertSource, PlanOptions, Statement, describe};

use crate::answers::lines;
use crate::runner::{query, run};
use crate::world::World;

async fn plan(world: &World, sql: &str) -> Statement {
    world.planner.plan(sql, &world.catalog, &PlanOptions::default()).await.unwrap()
}

#[tokio::test]
async fn create_table_says_everything() {
    let world = World::new().await;
    let sql = "CREATE TABLE IF NOT EXISTS \"Orders\" (id BIGINT, Region TEXT NOT NULL, at TIMESTAMP WITH TIME ZONE, \
               tags VARCHAR[], place STRUCT<x DOUBLE, y DOUBLE>, raw BYTEA, PRIMARY KEY (region, id)) \
               PARTITION BY RANGE(region) SPLIT AT ('g', 'p') WITH (replication_factor = 2, write_level = 'all')";
    let Statement::CreateTable(table) = plan(&world, sql).await else { panic!("not a table") };
    assert_eq!((table.name.as_str(), table.if_not_exists), ("Orders", true));
    let columns: Vec<_> = table
        .schema
        .columns
        .iter()
        .map(|column| format!("{} {}{}", column.name, column.data_type, if column.nullable { "" } else { " NOT NULL" }))
        .collect();
    expect![[r#"
        id Int64 NOT NULL
        region Utf8 NOT NULL
        at Timestamp(µs, "+00:00")
        tags List(Utf8)
        place Struct("x": Float64, "y": Float64)
        raw Binary"#]]
    .assert_eq(&columns.join("\n"));
    let region = table.schema.column("region").unwrap().id;
    let id = table.schema.column("id").unwrap().id;
    assert_eq!(table.schema.kind, TableKind::Upsert { primary_key: vec![region, id] });
    assert_eq!(table.partitioning, Partitioning::Range { columns: vec![region] });
    assert_eq!(table.split_points, ["g", "p"].map(|text| Datum::Text(text.into()).encode()));
    assert_eq!((table.options.replication_factor, table.options.write_level), (2, WriteLevel::All));
    assert_eq!(table.options.fsync, Fsync::Always);
}

#[tokio::test]
async fn a_table_says_when_it_is_synced() {
    let world = World::new().await;
    for (with, fsync) in [
        ("fsync = 'ALWAYS'", Fsync::Always),
        ("fsync = 'interval'", Fsync::Interval { ms: Fsync::INTERVAL_MS_DEFAULT }),
        ("fsync_interval_ms = 250, fsync = 'interval'", Fsync::Interval { ms: 250 }),
        ("fsync = never", Fsync::Never),
    ] {
        let sql = format!("CREATE TABLE t (a INT PRIMARY KEY) WITH ({with})");
        let Statement::CreateTable(table) = plan(&world, &sql).await else { panic!("not a table") };
        assert_eq!(table.options.fsync, fsync, "{with}");
    }
}

#[tokio::test]
async fn a_table_says_how_long_it_keeps_its_rows() {
    let world = World::new().await;
    let week = 7 * 86_400_000_000;
    for (columns, with, kept) in [
        ("line VARCHAR", "ttl = '7d'", Some((1, week))),
        ("line VARCHAR", "ttl = '1W', ttl_column = '_ts'", Some((1, week))),
        ("line VARCHAR", "ttl = none", None),
        ("a INT, at TIMESTAMP, PRIMARY KEY (a, at)", "ttl = '7d'", Some((1, week))),
        ("a TIMESTAMP, b TIMESTAMP, PRIMARY KEY (a, b)", "ttl_column = b, ttl = '7d'", Some((1, week))),
    ] {
        let sql = format!("CREATE TABLE t ({columns}) WITH ({with})");
        let Statement::CreateTable(table) = plan(&world, &sql).await else { panic!("not a table") };
        assert_eq!(table.options.ttl, kept.map(|(column, micros)| Ttl { column: ColumnId(column), micros }), "{sql}");
    }
    let readings = world.catalog.table("readings").unwrap();
    let column = readings.schema.column("_ts").unwrap().id;
    let Statement::AlterTable(Some(altered)) = plan(&world, "ALTER TABLE readings SET (ttl = '7d')").await else {
        panic!("no change")
    };
    assert_eq!((altered.ttl, altered.write_level), (Some(TtlChange::Keep(Ttl { column, micros: week })), None));
    assert!(matches!(plan(&world, "ALTER TABLE readings SET (ttl = 'none')").await, Statement::AlterTable(None)));

    // What has been agreed to be gone is not asked for, wherever it may still be.
    let mut catalog = world.catalog.as_ref().clone();
    let id = readings.id;
    catalog.tables.get_mut(&id).unwrap().cutoff = Some(Cutoff { column, micros: 1_000_000 });
    let planned = world.planner.plan("SELECT _dedup FROM readings", &catalog.into(), &PlanOptions::default()).await;
    let Ok(Statement::Query(query)) = planned else { panic!("no query") };
    let text = describe(&query.graph);
    assert!(text.contains("where=[_ts >= 1000000]"), "{text}");
}

#[tokio::test]
async fn a_table_without_a_key_is_for_events() {
    let world = World::new().await;
    let Statement::CreateTable(table) = plan(&world, "CREATE TABLE log (line VARCHAR)").await else {
        panic!("not a table")
    };
    let names: Vec<_> = table.schema.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!((table.schema.kind.clone(), names), (TableKind::Event, vec!["line", "_ts", "_dedup"]));
    assert_eq!(table.partitioning, Partitioning::Range { columns: vec![table.schema.column("_ts").unwrap().id] });
}

#[tokio::test]
async fn split_points_have_the_type_of_their_column() {
    let world = World::new().await;
    let sql = "CREATE TABLE t (d DATE, n DECIMAL(8, 2), PRIMARY KEY (d, n)) \
               PARTITION BY RANGE(d, n) SPLIT AT (DATE '2020-01-01', ('2020-01-01', -1.5), '2021-01-01')";
    // The second point lies behind the first: it has the first as its prefix.
    let Statement::CreateTable(table) = plan(&world, sql).await else { panic!("not a table") };
    let mut second = Datum::Int(18262).encode();
    Datum::Decimal(-150).encode_into(&mut second);
    assert_eq!(table.split_points, [Datum::Int(18262).encode(), second, Datum::Int(18628).encode()]);
}

#[tokio::test]
async fn alter_table_names_columns_by_number() {
    let world = World::new().await;
    let sql = "ALTER TABLE flights ADD COLUMN Gate VARCHAR, ADD COLUMN IF NOT EXISTS delay INT, RENAME gate TO \"Gate\", \
               DROP COLUMN IF EXISTS nothing, ALTER COLUMN delay TYPE BIGINT, SET (write_level = 'one')";
    let Statement::AlterTable(Some(altered)) = plan(&world, sql).await else { panic!("no change") };
    let table = world.catalog.table("flights").unwrap();
    let (next, delay) = (table.schema.next_column, table.schema.column("delay").unwrap().id);
    let gate = Column { id: next, name: "gate".into(), data_type: DataType::Utf8, nullable: true };
    let into = ColumnId(next.0 + 1);
    assert_eq!(altered.table, table.id);
    assert_eq!(
        altered.changes,
        [
            SchemaChange::Add(gate),
            SchemaChange::Rename { column: next, to: "Gate".into() },
            SchemaChange::Widen { column: delay, into, data_type: DataType::Int64 },
        ]
    );
    assert_eq!(altered.write_level, Some(WriteLevel::One));
    for idle in [
        "ALTER TABLE IF EXISTS absent ADD COLUMN x INT",
        "ALTER TABLE flights ADD COLUMN IF NOT EXISTS delay INT",
        "ALTER TABLE flights DROP COLUMN IF EXISTS x",
        "ALTER TABLE flights ALTER COLUMN delay TYPE INT",
    ] {
        assert!(matches!(plan(&world, idle).await, Statement::AlterTable(None)), "{idle}");
    }
}

#[tokio::test]
async fn drop_table() {
    let world = World::new().await;
    let Statement::DropTable { name, if_exists } = plan(&world, "DROP TABLE IF EXISTS Flights").await else {
        panic!("not a drop")
    };
    assert_eq!((name.as_str(), if_exists), ("flights", true));
}

#[tokio::test]
async fn inserted_rows_have_the_tables_columns() {
    let world = World::new().await;
    let sql = "INSERT INTO pairs (c, b, a) VALUES (1.25, 'x', 1), (NULL, upper('y'), 1 + 1)";
    let Statement::Insert { table, source: InsertSource::Rows(rows) } = plan(&world, sql).await else {
        panic!("not rows")
    };
    assert_eq!(table, "pairs");
    assert_eq!(rows[0].schema(), world.catalog.table("pairs").unwrap().schema.arrow());
    assert_eq!(lines(&rows), ["1|x|1.25", "2|Y|NULL"]);
}

#[tokio::test]
async fn events_leave_their_own_columns_to_the_writer() {
    let world = World::new().await;
    let sql = "INSERT INTO readings (sensor, value) VALUES ('s1', 2)";
    let Statement::Insert { source: InsertSource::Rows(rows), .. } = plan(&world, sql).await else {
        panic!("not rows")
    };
    let names: Vec<_> = rows[0].schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["sensor", "value", "day"]);
    assert_eq!(lines(&rows), ["s1|2.0|NULL"]);
}

#[tokio::test]
async fn insert_from_a_query_is_distributed() {
    let world = World::new().await;
    let sql = "INSERT INTO pairs (a, b) SELECT id, origin FROM flights WHERE id < 3";
    let Statement::Insert { source: InsertSource::Query(graph), .. } = plan(&world, sql).await else {
        panic!("not a query")
    };
    let mut rows = lines(&run(&world, &graph).await.unwrap());
    rows.sort_unstable();
    assert_eq!(rows, ["0|SEA|NULL", "1|SFO|NULL", "2|JFK|NULL"].map(String::from).to_vec());
    assert_eq!(graph.schema.field(2).data_type(), &world.catalog.table("pairs").unwrap().schema.columns[2].data_type);
}

#[tokio::test]
async fn deleted_rows_are_read_by_their_keys() {
    let world = World::new().await;
    let sql = "DELETE FROM Flights f WHERE f.id < 3 AND origin IN (SELECT iata FROM airports)";
    let Statement::Delete { table, keys } = plan(&world, sql).await else { panic!("not a delete") };
    assert_eq!(table, "flights");
    let mut rows = lines(&run(&world, &keys).await.unwrap());
    rows.sort_unstable();
    assert_eq!(rows, ["0", "1", "2"].map(String::from).to_vec());
    let Statement::Delete { keys, .. } = plan(&world, "DELETE FROM public.pairs").await else { panic!("not a delete") };
    let names: Vec<_> =
        keys.schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    assert_eq!(names, ["a Int32", "b Utf8"]);
    assert_eq!(run(&world, &keys).await.unwrap().iter().map(|batch| batch.num_rows()).sum::<usize>(), 60);
}

#[tokio::test]
async fn updated_rows_are_whole_and_of_the_tables_types() {
    let world = World::new().await;
    let sql = "UPDATE pairs AS p SET C = p.a * 2 + (SELECT count(*) FROM airports) WHERE b = 'b7'";
    let Statement::Update { table, rows } = plan(&world, sql).await else { panic!("not an update") };
    assert_eq!(table, "pairs");
    let columns = |schema: &datafusion::arrow::datatypes::Schema| -> Vec<String> {
        schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect()
    };
    assert_eq!(columns(&rows.schema), columns(&world.catalog.table("pairs").unwrap().schema.arrow()));
    assert_eq!(lines(&run(&world, &rows).await.unwrap()), ["7|b7|21.00"]);
    let Statement::Update { rows, .. } = plan(&world, "UPDATE pairs SET c = NULL WHERE a = 7 AND b = 'b7'").await
    else {
        panic!("not an update")
    };
    assert_eq!(lines(&run(&world, &rows).await.unwrap()), ["7|b7|NULL"]);
}

#[tokio::test]
async fn how_changed_rows_are_read_can_be_explained() {
    let world = World::new().await;
    for sql in ["EXPLAIN DELETE FROM flights WHERE id = 7", "EXPLAIN UPDATE flights SET delay = 0 WHERE id = 7"] {
        let Statement::Query(planned) = plan(&world, sql).await else { panic!("not a query") };
        assert_eq!(planned.explain, Some(ExplainKind::Plan));
        let text = lines(&run(&world, &planned.graph).await.unwrap()).join("\n");
        assert!(text.contains("where=[id = 7]"), "{text}");
    }
}

#[tokio::test]
async fn upkeep() {
    let world = World::new().await;
    assert!(matches!(plan(&world, "flush").await, Statement::Flush { table: None }));
    let Statement::Flush { table } = plan(&world, "FLUSH TABLE Flights").await else { panic!("not a flush") };
    assert_eq!(table.as_deref(), Some("flights"));
    let Statement::Optimize { table } = plan(&world, "OPTIMIZE TABLE public.flights").await else { panic!("another") };
    assert_eq!(table, "flights");
    let Statement::Repair { table } = plan(&world, "repair table FLIGHTS").await else { panic!("another") };
    assert_eq!(table, "flights");
    let Statement::Backup { table, to } = plan(&world, "backup table FLIGHTS to 's3://b'").await else {
        panic!("another")
    };
    assert_eq!((table.as_deref(), to.url.as_str()), (Some("flights"), "s3://b"));
    let restore = "RESTORE TABLE gone FROM 's3://b' AS Back WITH (backup = '7')";
    let Statement::Restore { table, named, from } = plan(&world, restore).await else { panic!("another") };
    assert_eq!((table.as_deref(), named.as_deref(), from.backup.as_deref()), (Some("gone"), Some("back"), Some("7")));
    let tags = ["DELETE FROM pairs", "UPDATE pairs SET c = 1", "FLUSH", "OPTIMIZE TABLE pairs", "REPAIR TABLE pairs"];
    for (sql, tag) in tags.iter().zip(["DELETE", "UPDATE", "FLUSH", "OPTIMIZE TABLE", "REPAIR TABLE"]) {
        assert_eq!(plan(&world, sql).await.tag(), tag);
    }
}

async fn shows(world: &World, sql: &str, expected: Expect) {
    let (_, rows) = query(world, sql, &PlanOptions::default()).await.unwrap();
    expected.assert_eq(&lines(&rows).join("\n"));
}

#[tokio::test]
async fn the_catalog_as_rows() {
    let world = World::new().await;
    shows(
        &world,
        "SHOW TABLES",
        expect![[r#"
            airports|upsert|HASH(iata)|3|3|quorum|one|always|NULL|NULL
            edges|upsert|RANGE(src)|3|3|quorum|one|always|NULL|NULL
            flights|upsert|RANGE(id)|4|3|quorum|one|always|NULL|NULL
            nothing|upsert|RANGE(k)|2|3|quorum|one|always|NULL|NULL
            pairs|upsert|HASH(a, b)|4|3|quorum|one|always|NULL|NULL
            readings|event|HASH(_dedup)|2|3|quorum|one|always|NULL|NULL"#]],
    )
    .await;
    shows(
        &world,
        "DESCRIBE pairs",
        expect![[r#"
        a|Int32|NO|1
        b|Utf8|NO|2
        c|Decimal128(10, 2)|YES|NULL"#]],
    )
    .await;
    shows(
        &world,
        "SHOW COLUMNS FROM pairs",
        expect![[r#"
        a|Int32|NO|1
        b|Utf8|NO|2
        c|Decimal128(10, 2)|YES|NULL"#]],
    )
    .await;
    shows(
        &world,
        "SHOW PARTITIONS flights",
        expect![[r#"
        p2|[, 028000000000000064)|e1|n1, n2, n3
        p3|[028000000000000064, 0280000000000000c8)|e1|n1, n2, n3
        p4|[0280000000000000c8, 02800000000000012c)|e1|n1, n2, n3
        p5|[02800000000000012c, ∞)|e1|n1, n2, n3"#]],
    )
    .await;
    shows(
        &world,
        "SELECT table_name, column_name, data_type FROM information_schema.columns \
         WHERE table_name = 'airports' ORDER BY ordinal_position",
        expect![[r#"
            airports|iata|Utf8
            airports|city|Utf8
            airports|state|Utf8
            airports|latitude|Float64"#]],
    )
    .await;
    shows(&world, "SELECT t.table_name FROM information_schema.tables t JOIN airports a ON true WHERE a.iata = 'SEA' AND t.table_schema = 'public' ORDER BY 1", expect![[r#"
        airports
        edges
        flights
        nothing
        pairs
        readings"#]]).await;
}

#[tokio::test]
async fn explain_shows_three_plans() {
    let world = World::new().await;
    let Statement::Query(planned) = plan(&world, "EXPLAIN SELECT count(*) FROM flights").await else {
        panic!("not a query")
    };
    assert_eq!(planned.explain, Some(ExplainKind::Plan));
    let rows = lines(&run(&world, &planned.graph).await.unwrap());
    let kinds: Vec<_> = rows.iter().filter_map(|row| row.split_once('|')).map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["logical_plan", "physical_plan", "fragments"]);
    let Statement::Query(planned) = plan(&world, "EXPLAIN ANALYZE SELECT count(*) FROM flights").await else {
        panic!("not a query")
    };
    assert_eq!(planned.explain, Some(ExplainKind::Analyze));
    assert_eq!(lines(&run(&world, &planned.graph).await.unwrap()), ["400"]);
}

#[tokio::test]
async fn the_clock_is_the_one_given() {
    let world = World::new().await;
    let options = PlanOptions { now_micros: 1_000_000_000_000_000, ..PlanOptions::default() };
    let sql = "SELECT DISTINCT date_trunc('day', now()) AS n, current_date AS d FROM flights";
    let (_, rows) = query(&world, sql, &options).await.unwrap();
    assert_eq!(lines(&rows).len(), 1);
    assert!(lines(&rows)[0].starts_with("2001-09-09T00:00:00"), "{:?}", lines(&rows));
    assert!(lines(&rows)[0].ends_with("|2001-09-09"), "{:?}", lines(&rows));
}

#[tokio::test]
async fn failures_while_running_keep_their_type() {
    let world = World::new().await;
    let code = async |sql: &str| query(&world, sql, &PlanOptions::default()).await.unwrap_err().code();
    assert_eq!(code("SELECT 1 / (id - id) FROM flights").await, ErrorCode::Evaluation);
    assert_eq!(code("SELECT CAST(origin AS INT) FROM flights").await, ErrorCode::Evaluation);
    assert_eq!(code("SELECT (SELECT iata FROM airports) FROM flights").await, ErrorCode::Evaluation);
}

/// Constants of an INSERT are read without a plan; in parentheses they are not.
#[tokio::test]
async fn constants_are_what_planning_finds() {
    let mut world = World::new().await;
    let types = [
        "BOOLEAN",
        "SMALLINT",
        "INT",
        "BIGINT",
        "REAL",
        "DOUBLE",
        "DECIMAL(10, 2)",
        "VARCHAR",
        "BYTEA",
        "DATE",
        "TIMESTAMP",
        "TIMESTAMP WITH TIME ZONE",
    ];
    let constants = [
        "NULL",
        "true",
        "0",
        "-7",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "70000",
        "1.5",
        "-1e3",
        "''",
        "'x'",
        "'42'",
        "' 42'",
        "'1.25'",
        "'true'",
        "'2026-01-02'",
        "'2026-01-02 03:04:05.678901234'",
        "'2026-01-02T03:04:05+02:00'",
        "X'00ff'",
    ];
    let columns: Vec<String> = types.iter().enumerate().map(|(place, name)| format!("c{place} {name}")).collect();
    let Statement::CreateTable(table) =
        plan(&world, &format!("CREATE TABLE kinds (k INT PRIMARY KEY, {})", columns.join(", "))).await
    else {
        panic!("not a table")
    };
    let mut catalog = (*world.catalog).clone();
    catalog.apply(shoal_catalog::Command::CreateTable(table)).unwrap();
    world.catalog = std::sync::Arc::new(catalog);
    let rows = async |sql: String| match world.planner.plan(&sql, &world.catalog, &PlanOptions::default()).await {
        Ok(Statement::Insert { source: InsertSource::Rows(rows), .. }) => Ok(rows),
        Ok(other) => panic!("{sql}: {other:?}"),
        Err(error) => Err(error.code()),
    };
    let mut read = 0;
    for place in 0..types.len() {
        for one in constants {
            for other in [one, "NULL", "1"] {
                let sql = |open: &str, close: &str| {
                    format!(
                        "INSERT INTO kinds (c{place}, k) VALUES ({open}{one}{close}, 1), ({open}{other}{close}, -2)"
                    )
                };
                let (plain, planned) = (rows(sql("", "")).await, rows(sql("(", ")")).await);
                assert_eq!(plain, planned, "{}", sql("", ""));
                read += usize::from(plain.is_ok());
            }
        }
    }
    assert!(read > 300, "{read}");
    let short = rows("INSERT INTO kinds VALUES (1, true)".to_owned()).await;
    assert_eq!(short, Err(ErrorCode::InvalidRows));
    // What else such a statement can say is not passed over.
    for refused in [
        "INSERT IGNORE INTO kinds (k) VALUES (1)",
        "INSERT LOW_PRIORITY INTO kinds (k) VALUES (1)",
        "INSERT INTO kinds (k) VALUES (1) AS new",
        "INSERT INTO kinds (other.k) VALUES (1)",
    ] {
        assert!(rows(refused.to_owned()).await.is_err(), "{refused}");
    }
}
