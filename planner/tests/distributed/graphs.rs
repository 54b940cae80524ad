//! Fragment graphs as snapshots: what runs where, and what travels.

use std::sync::Arc;

use datafusion_proto::protobuf::PhysicalPlanNode;
use expect_test::{Expect, expect};
use prost::Message;
use shoal_planner::{PlanOptions, Slicing, Statement, describe};

use crate::world::World;

async fn check(world: &World, sql: &str, expected: Expect) {
    let options = PlanOptions { target_partitions: 2, ..PlanOptions::default() };
    expected.assert_eq(&graph_of(world, sql, &options).await);
}

/// The fragments of a query, in words.
async fn graph_of(world: &World, sql: &str, options: &PlanOptions) -> String {
    let Statement::Query(planned) = world.planner.plan(sql, &world.catalog, options).await.unwrap() else {
        panic!("not a query")
    };
    describe(&planned.graph)
}

#[tokio::test]
async fn scans_filters_and_pruning() {
    let world = World::new().await;
    check(
        &world,
        "SELECT count(*) FROM flights",
        expect![[r#"
        f1 on [coordinator] -> gather
          ProjectionExec: expr=[count(Int64(1))@0 as count(*)]
            AggregateExec: mode=Final, gby=[], aggr=[count(Int64(1))]
              CoalescePartitionsExec
                ExchangeExec: gather f0 from 4 tasks
        f0 on [p2, p3, p4, p5] -> gather
          AggregateExec: mode=Partial, gby=[], aggr=[count(Int64(1))]
            LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[]"#]],
    )
    .await;
    check(&world, "SELECT id, origin FROM flights WHERE delay > 40 AND origin = 'SEA'", expect![[r#"
        f1 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f0 from 4 tasks
        f0 on [p2, p3, p4, p5] -> gather
          LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin], where=[delay > 40, origin = 'SEA']"#]]).await;
    check(
        &world,
        "SELECT origin FROM flights WHERE id = 205",
        expect![[r#"
            f1 on [coordinator] -> gather
              ExchangeExec: gather f0 from 1 tasks
            f0 on [p4] -> gather
              LeafScanExec: table=flights, partitions=[p4], columns=[origin], where=[id = 205]"#]],
    )
    .await;
    check(
        &world,
        "SELECT origin FROM flights WHERE id IN (5, 399)",
        expect![[r#"
            f1 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f0 from 2 tasks
            f0 on [p2, p5] -> gather
              LeafScanExec: table=flights, partitions=[p2, p5], columns=[origin], where=[id IN (5, 399)]"#]],
    )
    .await;
    check(
        &world,
        "SELECT origin FROM flights WHERE id >= 100 AND id < 200",
        expect![[r#"
            f1 on [coordinator] -> gather
              ExchangeExec: gather f0 from 1 tasks
            f0 on [p3] -> gather
              LeafScanExec: table=flights, partitions=[p3], columns=[origin], where=[id >= 100, id < 200]"#]],
    )
    .await;
    check(
        &world,
        "SELECT origin FROM flights WHERE id < 0 AND id > 500",
        expect![[r#"
            f0 on [coordinator] -> gather
              EmptyExec"#]],
    )
    .await;
    check(
        &world,
        "SELECT c FROM pairs WHERE a = 3 AND b = 'b12'",
        expect![[r#"
            f1 on [coordinator] -> gather
              ExchangeExec: gather f0 from 1 tasks
            f0 on [p17] -> gather
              LeafScanExec: table=pairs, partitions=[p17], columns=[c], where=[a = 3, b = 'b12']"#]],
    )
    .await;
    check(
        &world,
        "SELECT c FROM pairs WHERE a = 3",
        expect![[r#"
            f1 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f0 from 4 tasks
            f0 on [p14, p15, p16, p17] -> gather
              LeafScanExec: table=pairs, partitions=[p14, p15, p16, p17], columns=[c], where=[a = 3]"#]],
    )
    .await;
    check(&world, "SELECT * FROM flights LIMIT 5", expect![[r#"
        f1 on [coordinator] -> gather
          CoalescePartitionsExec: fetch=5
            ExchangeExec: gather f0 from 4 tasks
        f0 on [p2, p3, p4, p5] -> gather
          LocalLimitExec: fetch=5
            LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, ts, origin, destination, delay, distance], limit=5"#]]).await;
    check(
        &world,
        "SELECT id FROM flights WHERE delay > 0 LIMIT 5 OFFSET 2",
        expect![[r#"
            f1 on [coordinator] -> gather
              GlobalLimitExec: skip=2, fetch=5
                CoalescePartitionsExec: fetch=7
                  ExchangeExec: gather f0 from 4 tasks
            f0 on [p2, p3, p4, p5] -> gather
              LocalLimitExec: fetch=7
                LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id], where=[delay > 0]"#]],
    )
    .await;
}

#[tokio::test]
async fn aggregates_and_order() {
    let world = World::new().await;
    check(
        &world,
        "SELECT origin, avg(delay) FROM flights GROUP BY origin",
        expect![[r#"
            f2 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f1 from 2 tasks
            f1 on 2 x anywhere -> gather
              AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[avg(flights.delay)]
                ExchangeExec: hash f0 from 4 tasks into 2
            f0 on [p2, p3, p4, p5] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[avg(flights.delay)]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin, delay]"#]],
    )
    .await;
    check(
        &world,
        "SELECT DISTINCT origin FROM flights",
        expect![[r#"
            f2 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f1 from 2 tasks
            f1 on 2 x anywhere -> gather
              AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[]
                ExchangeExec: hash f0 from 4 tasks into 2
            f0 on [p2, p3, p4, p5] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin]"#]],
    )
    .await;
    check(
        &world,
        "SELECT id, delay FROM flights ORDER BY delay DESC LIMIT 10",
        expect![[r#"
            f1 on [coordinator] -> gather
              SortPreservingMergeExec: [delay@1 DESC], fetch=10
                ExchangeExec: gather f0 from 4 tasks, ordered by [delay@1 DESC]
            f0 on [p2, p3, p4, p5] -> gather
              SortExec: TopK(fetch=10), expr=[delay@1 DESC], preserve_partitioning=[true]
                LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, delay], order=[delay DESC NULLS FIRST]"#]],
    )
    .await;
    check(
        &world,
        "SELECT origin, count(*) AS n FROM flights GROUP BY origin ORDER BY n DESC LIMIT 3",
        expect![[r#"
            f2 on [coordinator] -> gather
              SortPreservingMergeExec: [n@1 DESC], fetch=3
                ExchangeExec: gather f1 from 2 tasks, ordered by [n@1 DESC]
            f1 on 2 x anywhere -> gather
              ProjectionExec: expr=[origin@0 as origin, count(Int64(1))@1 as n]
                SortExec: TopK(fetch=3), expr=[count(Int64(1))@1 DESC], preserve_partitioning=[true]
                  AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[count(Int64(1))]
                    ExchangeExec: hash f0 from 4 tasks into 2
            f0 on [p2, p3, p4, p5] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[count(Int64(1))]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin]"#]],
    )
    .await;
    check(&world, "SELECT id, rank() OVER (PARTITION BY origin ORDER BY delay) FROM flights", expect![[r#"
        f2 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f1 from 2 tasks
        f1 on 2 x anywhere -> gather
          ProjectionExec: expr=[id@0 as id, rank() PARTITION BY [flights.origin] ORDER BY [flights.delay ASC NULLS LAST] RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW@3 as rank() PARTITION BY [flights.origin] ORDER BY [flights.delay ASC NULLS LAST] RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW]
            BoundedWindowAggExec: wdw=[rank() PARTITION BY [flights.origin] ORDER BY [flights.delay ASC NULLS LAST] RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW: Field { "rank() PARTITION BY [flights.origin] ORDER BY [flights.delay ASC NULLS LAST] RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW": UInt64 }, frame: RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW], mode=[Sorted]
              SortExec: expr=[origin@1 ASC NULLS LAST, delay@2 ASC NULLS LAST], preserve_partitioning=[true]
                ExchangeExec: hash f0 from 4 tasks into 2
        f0 on [p2, p3, p4, p5] -> hash into 2
          LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin, delay]"#]]).await;
    check(
        &world,
        "SELECT origin, count(*) FROM flights WHERE id < 100 GROUP BY origin",
        expect![[r#"
            f2 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f1 from 2 tasks
            f1 on 2 x anywhere -> gather
              ProjectionExec: expr=[origin@0 as origin, count(Int64(1))@1 as count(*)]
                AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[count(Int64(1))]
                  ExchangeExec: hash f0 from 1 tasks into 2
            f0 on [p2] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[count(Int64(1))]
                  LeafScanExec: table=flights, partitions=[p2], columns=[origin], where=[id < 100]"#]],
    )
    .await;
}

#[tokio::test]
async fn a_small_side_of_a_join_goes_to_the_tasks_of_the_large_one() {
    let world = World::new().await;
    let options = PlanOptions { target_partitions: 2, row_counts: world.row_counts(), ..PlanOptions::default() };
    let check = async |sql: &str, expected: Expect| expected.assert_eq(&graph_of(&world, sql, &options).await);
    // The aggregation begins where the flights are.
    check(
        "SELECT a.state, count(*) FROM flights f JOIN airports a ON f.origin = a.iata GROUP BY a.state",
        expect![[r#"
            f3 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f2 from 2 tasks
            f2 on 2 x anywhere -> gather
              ProjectionExec: expr=[state@0 as state, count(Int64(1))@1 as count(*)]
                AggregateExec: mode=FinalPartitioned, gby=[state@0 as state], aggr=[count(Int64(1))]
                  ExchangeExec: hash f1 from 4 tasks into 2
            f1 on [p2, p3, p4, p5] -> hash into 2
              AggregateExec: mode=Partial, gby=[state@0 as state], aggr=[count(Int64(1))]
                HashJoinExec: mode=CollectLeft, join_type=Inner, on=[(iata@0, origin@0)], projection=[state@1]
                  ExchangeExec: all of f0 from 3 tasks
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin]
            f0 on [p7, p8, p9] -> broadcast to 4
              LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata, state]"#]],
    )
    .await;
    // The sides change places; a flight without an airport is given where it is.
    check(
        "SELECT f.id, a.city FROM flights f LEFT JOIN airports a ON f.origin = a.iata",
        expect![[r#"
        f2 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f1 from 4 tasks
        f1 on [p2, p3, p4, p5] -> gather
          HashJoinExec: mode=CollectLeft, join_type=Right, on=[(iata@0, origin@1)], projection=[id@2, city@1]
            ExchangeExec: all of f0 from 3 tasks
            LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin]
        f0 on [p7, p8, p9] -> broadcast to 4
          LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata, city]"#]],
    )
    .await;
    // An airport without a flight is one of which no task has a flight.
    check(
        "SELECT f.id, a.city FROM flights f RIGHT JOIN airports a ON f.origin = a.iata",
        expect![[r#"
        f3 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f2 from 2 tasks
        f2 on 2 x anywhere -> gather
          HashJoinExec: mode=Partitioned, join_type=Left, on=[(iata@0, origin@1)], projection=[id@2, city@1]
            ExchangeExec: hash f0 from 3 tasks into 2
            ExchangeExec: hash f1 from 4 tasks into 2
        f1 on [p2, p3, p4, p5] -> hash into 2
          LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin]
        f0 on [p7, p8, p9] -> hash into 2
          LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata, city]"#]],
    )
    .await;
    // What is computed in one task goes out again.
    check(
        "SELECT f.id FROM flights f JOIN (SELECT origin, max(delay) AS most FROM flights GROUP BY origin ORDER BY most LIMIT 3) w \
         ON f.origin = w.origin",
        expect![[r#"
            f4 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f3 from 4 tasks
            f3 on [p2, p3, p4, p5] -> gather
              HashJoinExec: mode=CollectLeft, join_type=RightSemi, on=[(origin@0, origin@1)], projection=[id@0]
                ExchangeExec: all of f2 from 1 tasks
                LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin]
            f2 on [coordinator] -> broadcast to 4
              ProjectionExec: expr=[origin@0 as origin]
                SortPreservingMergeExec: [most@1 ASC NULLS LAST], fetch=3
                  ExchangeExec: gather f1 from 2 tasks, ordered by [most@1 ASC NULLS LAST]
            f1 on 2 x anywhere -> gather
              ProjectionExec: expr=[origin@0 as origin, max(flights.delay)@1 as most]
                SortExec: TopK(fetch=3), expr=[max(flights.delay)@1 ASC NULLS LAST], preserve_partitioning=[true]
                  AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[max(flights.delay)]
                    ExchangeExec: hash f0 from 4 tasks into 2
            f0 on [p2, p3, p4, p5] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[max(flights.delay)]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin, delay]"#]],
    )
    .await;
    check(
        "SELECT f.id, a.city FROM flights f JOIN airports a ON f.distance > a.latitude",
        expect![[r#"
        f2 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f1 from 4 tasks
        f1 on [p2, p3, p4, p5] -> gather
          NestedLoopJoinExec: join_type=Inner, filter=distance@0 > latitude@1, projection=[id@2, city@0]
            ExchangeExec: all of f0 from 3 tasks
            LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, distance]
        f0 on [p7, p8, p9] -> broadcast to 4
          LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[city, latitude]"#]],
    )
    .await;
    // Nodes of another build could not read it.
    let former = PlanOptions { broadcast: false, ..options.clone() };
    let sql = "SELECT f.id, a.city FROM flights f JOIN airports a ON f.origin = a.iata";
    assert!(graph_of(&world, sql, &options).await.contains("broadcast"));
    for sql in [sql, "SELECT f.id, a.city FROM flights f JOIN airports a ON f.distance > a.latitude"] {
        assert!(!graph_of(&world, sql, &former).await.contains("broadcast"));
    }
    // Nor is it worth while if nobody knows how many rows there are.
    let unknown = PlanOptions { row_counts: PlanOptions::default().row_counts, ..options.clone() };
    assert!(!graph_of(&world, sql, &unknown).await.contains("broadcast"));
}

#[tokio::test]
async fn joins_sets_and_subqueries() {
    let world = World::new().await;
    check(
        &world,
        "SELECT f.id, a.city FROM flights f JOIN airports a ON f.origin = a.iata",
        expect![[r#"
        f3 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f2 from 2 tasks
        f2 on 2 x anywhere -> gather
          HashJoinExec: mode=Partitioned, join_type=Inner, on=[(origin@1, iata@0)], projection=[id@0, city@3]
            ExchangeExec: hash f0 from 4 tasks into 2
            ExchangeExec: hash f1 from 3 tasks into 2
        f1 on [p7, p8, p9] -> hash into 2
          LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata, city]
        f0 on [p2, p3, p4, p5] -> hash into 2
          LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin]"#]],
    )
    .await;
    check(
        &world,
        "SELECT f.id, a.city FROM flights f LEFT JOIN airports a ON f.origin = a.iata",
        expect![[r#"
        f3 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f2 from 2 tasks
        f2 on 2 x anywhere -> gather
          HashJoinExec: mode=Partitioned, join_type=Left, on=[(origin@1, iata@0)], projection=[id@0, city@3]
            ExchangeExec: hash f0 from 4 tasks into 2
            ExchangeExec: hash f1 from 3 tasks into 2
        f1 on [p7, p8, p9] -> hash into 2
          LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata, city]
        f0 on [p2, p3, p4, p5] -> hash into 2
          LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin]"#]],
    )
    .await;
    check(
        &world,
        "SELECT x.id FROM flights x JOIN flights y ON x.id = y.delay",
        expect![[r#"
        f3 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f2 from 2 tasks
        f2 on 2 x anywhere -> gather
          HashJoinExec: mode=Partitioned, join_type=Inner, on=[(id@0, CAST(y.delay AS Int64)@1)], projection=[id@0]
            ExchangeExec: hash f0 from 4 tasks into 2
            ExchangeExec: hash f1 from 4 tasks into 2
        f1 on [p2, p3, p4, p5] -> hash into 2
          ProjectionExec: expr=[delay@0 as delay, CAST(delay@0 AS Int64) as CAST(y.delay AS Int64)]
            LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[delay]
        f0 on [p2, p3, p4, p5] -> hash into 2
          LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id]"#]],
    )
    .await;
    check(
        &world,
        "WITH n AS (SELECT origin, count(*) AS n FROM flights GROUP BY origin) SELECT n.n FROM n JOIN airports a ON a.iata = n.origin",
        expect![[r#"
            f3 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f2 from 2 tasks
            f2 on 2 x anywhere -> gather
              HashJoinExec: mode=Partitioned, join_type=Inner, on=[(origin@0, iata@0)], projection=[n@1]
                ProjectionExec: expr=[origin@0 as origin, count(Int64(1))@1 as n]
                  AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[count(Int64(1))]
                    ExchangeExec: hash f0 from 4 tasks into 2
                ExchangeExec: hash f1 from 3 tasks into 2
            f1 on [p7, p8, p9] -> hash into 2
              LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata]
            f0 on [p2, p3, p4, p5] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[count(Int64(1))]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin]"#]],
    )
    .await;
    check(
        &world,
        "SELECT origin FROM flights UNION ALL SELECT iata FROM airports",
        expect![[r#"
        f1 on [coordinator] -> gather
          CoalescePartitionsExec
            ExchangeExec: gather f0 from 7 tasks
        f0 on [p2, p3, p4, p5, p7, p8, p9] -> gather
          UnionExec
            LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin]
            ProjectionExec: expr=[CAST(iata@0 AS Utf8) as origin]
              LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata]"#]],
    )
    .await;
    check(
        &world,
        "SELECT origin FROM flights INTERSECT SELECT iata FROM airports",
        expect![[r#"
            f3 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f2 from 2 tasks
            f2 on 2 x anywhere -> gather
              HashJoinExec: mode=Partitioned, join_type=LeftSemi, on=[(origin@0, iata@0)], NullsEqual: true
                AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[]
                  ExchangeExec: hash f0 from 4 tasks into 2
                ExchangeExec: hash f1 from 3 tasks into 2
            f1 on [p7, p8, p9] -> hash into 2
              LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata]
            f0 on [p2, p3, p4, p5] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin]"#]],
    )
    .await;
    check(
        &world,
        "SELECT id FROM flights WHERE delay > (SELECT avg(delay) FROM flights)",
        expect![[r#"
        f2 on [coordinator] -> gather
          CoalescePartitionsExec
            ScalarSubqueryExec: subqueries=1
              FilterExec: CAST(delay@1 AS Float64) > scalar_subquery(<pending>), projection=[id@0]
                ExchangeExec: gather f0 from 4 tasks
              AggregateExec: mode=Final, gby=[], aggr=[avg(flights.delay)]
                CoalescePartitionsExec
                  ExchangeExec: gather f1 from 4 tasks
        f1 on [p2, p3, p4, p5] -> gather
          AggregateExec: mode=Partial, gby=[], aggr=[avg(flights.delay)]
            LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[delay]
        f0 on [p2, p3, p4, p5] -> gather
          LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, delay]"#]],
    )
    .await;
    check(
        &world,
        "SELECT id FROM flights f WHERE delay > (SELECT avg(g.delay) FROM flights g WHERE g.origin = f.origin)",
        expect![[r#"
            f3 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f2 from 2 tasks
            f2 on 2 x anywhere -> gather
              HashJoinExec: mode=Partitioned, join_type=LeftSemi, on=[(origin@1, origin@1)], filter=CAST(delay@0 AS Float64) > avg(g.delay)@1, projection=[id@0]
                ExchangeExec: hash f0 from 4 tasks into 2
                ProjectionExec: expr=[avg(g.delay)@1 as avg(g.delay), origin@0 as origin]
                  AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[avg(g.delay)]
                    ExchangeExec: hash f1 from 4 tasks into 2
            f1 on [p2, p3, p4, p5] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[avg(g.delay)]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[origin, delay]
            f0 on [p2, p3, p4, p5] -> hash into 2
              LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin, delay]"#]],
    )
    .await;
    check(
        &world,
        "SELECT id FROM flights WHERE origin NOT IN (SELECT iata FROM airports)",
        expect![[r#"
        f2 on [coordinator] -> gather
          CoalescePartitionsExec
            HashJoinExec: mode=CollectLeft, join_type=LeftAnti, on=[(origin@1, iata@0)], projection=[id@0], null_aware
              CoalescePartitionsExec
                ExchangeExec: gather f0 from 4 tasks
              ExchangeExec: gather f1 from 3 tasks
        f1 on [p7, p8, p9] -> gather
          LeafScanExec: table=airports, partitions=[p7, p8, p9], columns=[iata]
        f0 on [p2, p3, p4, p5] -> gather
          LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, origin]"#]],
    )
    .await;
    check(
        &world,
        "SELECT 1 + 1",
        expect![[r#"
        f0 on [coordinator] -> gather
          ProjectionExec: expr=[2 as Int64(1) + Int64(1)]
            PlaceholderRowExec"#]],
    )
    .await;
}

#[tokio::test]
async fn the_same_statement_gives_the_same_bytes() {
    let world = World::new().await;
    let sql = "SELECT a.state, count(*), sum(f.distance), now() FROM flights f JOIN airports a ON f.origin = a.iata \
               WHERE f.ts < now() GROUP BY a.state ORDER BY 2 LIMIT 5";
    let options = PlanOptions { target_partitions: 3, now_micros: 1_700_000_000_000_000, ..PlanOptions::default() };
    let bytes = async || {
        let Statement::Query(planned) = world.planner.plan(sql, &world.catalog, &options).await.unwrap() else {
            panic!("not a query")
        };
        let plan = |bytes: Vec<u8>| PhysicalPlanNode::decode(bytes.as_slice()).map(|node| format!("{node:#?}"));
        planned.graph.fragments.into_iter().map(|fragment| plan(fragment.plan).unwrap()).collect::<Vec<_>>()
    };
    let first = bytes().await;
    for _ in 0..5 {
        for (first, again) in first.iter().zip(bytes().await) {
            let other = first.lines().zip(again.lines()).find(|(first, again)| first != again);
            assert_eq!(other, None);
        }
    }
}

/// What decides is read first; what is wide is fetched for the rows that are left. Large partitions are read by several tasks.
#[tokio::test]
async fn wide_rows_and_large_partitions() {
    let world = World::new().await;
    check(
        &world,
        "SELECT * FROM flights WHERE delay > 5 AND origin LIKE 'J%' ORDER BY distance DESC LIMIT 3",
        expect![[r#"
            f1 on [coordinator] -> gather
              SortPreservingMergeExec: [distance@5 DESC], fetch=3
                ExchangeExec: gather f0 from 4 tasks, ordered by [distance@5 DESC]
            f0 on [p2, p3, p4, p5] -> gather
              LateFetchExec: columns=[id, ts, origin, destination, delay]
                SortExec: TopK(fetch=3), expr=[distance@0 DESC], preserve_partitioning=[true]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[distance, _address], where=[delay > 5, origin LIKE 'J%']"#]],
    )
    .await;
    let options = PlanOptions {
        target_partitions: 1,
        slicing: Slicing { slices_max: 2, slice_rows_min: 1_000 },
        row_counts: Arc::new(|scan| Some(if scan.predicates.is_empty() { 5_000 } else { 500 })),
        ..PlanOptions::default()
    };
    for (sql, expected) in [
        (
            "SELECT origin, avg(delay) FROM flights WHERE id < 100 GROUP BY origin",
            expect![[r#"
                f1 on [coordinator] -> gather
                  ExchangeExec: gather f0 from 1 tasks
                f0 on [p2] -> gather
                  AggregateExec: mode=Single, gby=[origin@0 as origin], aggr=[avg(flights.delay)]
                    LeafScanExec: table=flights, partitions=[p2], columns=[origin, delay], where=[id < 100]"#]],
        ),
        (
            "SELECT origin, avg(delay) FROM flights GROUP BY origin",
            expect![[r#"
            f2 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f1 from 2 tasks
            f1 on 2 x anywhere -> gather
              AggregateExec: mode=FinalPartitioned, gby=[origin@0 as origin], aggr=[avg(flights.delay)]
                ExchangeExec: hash f0 from 8 tasks into 2
            f0 on [p2, p2, p3, p3, p4, p4, p5, p5] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[origin@0 as origin], aggr=[avg(flights.delay)]
                  LeafScanExec: table=flights, partitions=[p2, p2, p3, p3, p4, p4, p5, p5], columns=[origin, delay]"#]],
        ),
    ] {
        expected.assert_eq(&graph_of(&world, sql, &options).await);
    }
}

/// A limit from before the sort is not to be lost, nor are more key columns taken than there are bits to tell NULLs.
#[tokio::test]
async fn what_is_not_rewritten() {
    let world = World::new().await;
    let options = PlanOptions { target_partitions: 2, ..PlanOptions::default() };
    let keys: Vec<String> = (0..64).map(|number| format!("id + {number}")).collect();
    let wide = format!("SELECT origin, count(*) FROM flights GROUP BY origin, {}", keys.join(", "));
    for (sql, absent) in [
        (
            "SELECT * FROM (SELECT * FROM flights WHERE delay % 7 = 1 AND id < 50 LIMIT 2) ORDER BY distance LIMIT 3",
            "LateFetch",
        ),
        ("SELECT id, distance FROM flights ORDER BY distance LIMIT 3", "LateFetch"),
        (wide.as_str(), "CodedAggregate"),
        (
            "SELECT origin, count(*) FROM flights WHERE delay > (SELECT 3) GROUP BY origin, origin || 'x'",
            "CodedAggregate",
        ),
        ("SELECT origin, max(origin) FROM flights GROUP BY origin", "CodedAggregate"),
    ] {
        let graph = graph_of(&world, sql, &options).await;
        assert!(!graph.contains(absent), "{sql}\n{graph}");
    }
}

/// Which rows of a scan are enough, and where more are needed.
#[tokio::test]
async fn scans_of_the_ends_of_the_key() {
    let world = World::new().await;
    check(
        &world,
        "SELECT e.* FROM edges e JOIN (SELECT src AS s, max(dst) AS d FROM edges GROUP BY src) l \
         ON e.src = l.s AND e.dst = l.d",
        expect![[r#"
            f4 on [coordinator] -> gather
              CoalescePartitionsExec
                ExchangeExec: gather f3 from 2 tasks
            f3 on 2 x anywhere -> gather
              HashJoinExec: mode=Partitioned, join_type=LeftSemi, on=[(src@0, s@0), (dst@1, d@1)]
                ExchangeExec: hash f0 from 3 tasks into 2
                ExchangeExec: hash f2 from 2 tasks into 2
            f2 on 2 x anywhere -> hash into 2
              ProjectionExec: expr=[src@0 as s, max(edges.dst)@1 as d]
                AggregateExec: mode=FinalPartitioned, gby=[src@0 as src], aggr=[max(edges.dst)]
                  ExchangeExec: hash f1 from 3 tasks into 2
            f1 on [p19, p20, p21] -> hash into 2
              CodedAggregateExec
                AggregateExec: mode=Partial, gby=[src@0 as src], aggr=[max(edges.dst)]
                  LeafScanExec: table=edges, partitions=[p19, p20, p21], columns=[src, dst], ends=[last by 1 of the key's columns]
            f0 on [p19, p20, p21] -> hash into 2
              LeafScanExec: table=edges, partitions=[p19, p20, p21], columns=[src, dst], ends=[last by 1 of the key's columns]"#]],
    )
    .await;
    let options = PlanOptions { target_partitions: 2, ..PlanOptions::default() };
    let last = "ends=[last by 1 of the key's columns]";
    let first = "ends=[first by 1 of the key's columns]";
    let both = "ends=[first and last by 1 of the key's columns]";
    let joined = |points: &str, kind: &str, ends: &str| {
        format!(
            "SELECT p.* FROM (SELECT * FROM edges {points}) p JOIN (SELECT src AS s, {kind}(dst) AS d FROM edges {ends} \
             GROUP BY src) l ON p.src = l.s AND p.dst = l.d"
        )
    };
    for (sql, wanted) in [
        ("SELECT src, max(dst) FROM edges GROUP BY src", [last].as_slice()),
        ("SELECT src, min(dst) FROM edges WHERE dst > 3 AND src < 9 GROUP BY src", &[first]),
        ("SELECT src, min(dst), max(dst) FROM edges GROUP BY src", &[both]),
        ("SELECT max(src) FROM edges", &["ends=[last]"]),
        ("SELECT DISTINCT src FROM edges", &[last]),
        ("SELECT DISTINCT ON (src) src, dst FROM edges ORDER BY src, dst DESC", &[both]),
        ("SELECT a, max(b) FROM pairs GROUP BY a", &[last]),
        // More than the ends is asked for.
        ("SELECT src, count(*) FROM edges GROUP BY src", &[]),
        ("SELECT src, max(dst), count(*) FROM edges GROUP BY src", &[]),
        ("SELECT src, max(dst) FILTER (WHERE dst % 2 = 0) FROM edges GROUP BY src", &[]),
        ("SELECT src, max(dst) FROM edges WHERE dst % 2 = 0 GROUP BY src", &[]),
        ("SELECT src, max(dst + 1) FROM edges GROUP BY src", &[]),
        ("SELECT max(dst) FROM edges", &[]),
        ("SELECT dst, max(src) FROM edges GROUP BY dst", &[]),
        ("SELECT a, max(c) FROM pairs GROUP BY a", &[]),
        (&joined("", "max", ""), &[last, last]),
        (&joined("WHERE dst > 2", "min", "WHERE dst > 2"), &[first, first]),
        (&joined("WHERE dst > 2", "max", ""), &[last, last]),
        // The newest of some need not be the newest of all.
        (&joined("", "max", "WHERE dst < 2"), &[last]),
        (&joined("WHERE dst < 3", "max", "WHERE dst < 2"), &[last]),
    ] {
        let graph = graph_of(&world, sql, &options).await;
        let found: Vec<&str> = graph.matches("ends=[").collect();
        assert_eq!(found.len(), wanted.len(), "{sql}\n{graph}");
        assert!(wanted.iter().all(|wanted| graph.contains(wanted)), "{sql}\n{graph}");
    }
}

#[tokio::test]
async fn answers_from_statistics() {
    let world = World::new().await;
    for (sql, expected) in [
        (
            "SELECT count(*), count(origin), sum(delay), min(ts), max(origin) FROM flights WHERE id >= 150",
            expect![[r#"
            f1 on [coordinator] -> gather
              ProjectionExec: expr=[count(Int64(1))@0 as count(*), count(flights.origin)@1 as count(flights.origin), sum(flights.delay)@2 as sum(flights.delay), min(flights.ts)@3 as min(flights.ts), max(flights.origin)@4 as max(flights.origin)]
                AggregateExec: mode=Final, gby=[], aggr=[count(Int64(1)), count(flights.origin), sum(flights.delay), min(flights.ts), max(flights.origin)]
                  CoalescePartitionsExec
                    ExchangeExec: gather f0 from 3 tasks
            f0 on [p3, p4, p5] -> gather
              SummaryExec: statistics=[rows, values of origin, sum of delay, least ts, greatest origin]
                AggregateExec: mode=Partial, gby=[], aggr=[count(Int64(1)), count(flights.origin), sum(flights.delay), min(flights.ts), max(flights.origin)]
                  LeafScanExec: table=flights, partitions=[p3, p4, p5], columns=[ts, origin, delay], where=[id >= 150], rest"#]],
        ),
        (
            "SELECT max(ts) FROM flights WHERE id < 50",
            expect![[r#"
            f1 on [coordinator] -> gather
              ExchangeExec: gather f0 from 1 tasks
            f0 on [p2] -> gather
              AggregateExec: mode=Final, gby=[], aggr=[max(flights.ts)]
                SummaryExec: statistics=[greatest ts]
                  AggregateExec: mode=Partial, gby=[], aggr=[max(flights.ts)]
                    LeafScanExec: table=flights, partitions=[p2], columns=[ts], where=[id < 50], rest"#]],
        ),
        // What statistics do not know exactly, they are not asked for.
        (
            "SELECT max(ts), avg(delay) FROM flights",
            expect![[r#"
            f1 on [coordinator] -> gather
              AggregateExec: mode=Final, gby=[], aggr=[max(flights.ts), avg(flights.delay)]
                CoalescePartitionsExec
                  ExchangeExec: gather f0 from 4 tasks
            f0 on [p2, p3, p4, p5] -> gather
              AggregateExec: mode=Partial, gby=[], aggr=[max(flights.ts), avg(flights.delay)]
                LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[ts, delay]"#]],
        ),
        (
            "SELECT sum(c), min(a) FROM pairs",
            expect![[r#"
            f1 on [coordinator] -> gather
              AggregateExec: mode=Final, gby=[], aggr=[sum(pairs.c), min(pairs.a)]
                CoalescePartitionsExec
                  ExchangeExec: gather f0 from 4 tasks
            f0 on [p14, p15, p16, p17] -> gather
              AggregateExec: mode=Partial, gby=[], aggr=[sum(pairs.c), min(pairs.a)]
                LeafScanExec: table=pairs, partitions=[p14, p15, p16, p17], columns=[a, c]"#]],
        ),
        (
            "SELECT sum(delay + 1) FROM flights",
            expect![[r#"
            f1 on [coordinator] -> gather
              AggregateExec: mode=Final, gby=[], aggr=[sum(flights.delay + Int64(1))]
                CoalescePartitionsExec
                  ExchangeExec: gather f0 from 4 tasks
            f0 on [p2, p3, p4, p5] -> gather
              AggregateExec: mode=Partial, gby=[], aggr=[sum(flights.delay + Int64(1))]
                LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[delay]"#]],
        ),
        (
            "SELECT min(delay) FROM flights WHERE distance > 3",
            expect![[r#"
            f1 on [coordinator] -> gather
              AggregateExec: mode=Final, gby=[], aggr=[min(flights.delay)]
                CoalescePartitionsExec
                  ExchangeExec: gather f0 from 4 tasks
            f0 on [p2, p3, p4, p5] -> gather
              AggregateExec: mode=Partial, gby=[], aggr=[min(flights.delay)]
                FilterExec: distance@1 > 3, projection=[delay@0]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[delay, distance], where=[distance > 3]"#]],
        ),
    ] {
        check(&world, sql, expected).await;
    }
}

#[tokio::test]
async fn order_goes_down_to_scans() {
    let world = World::new().await;
    for (sql, expected) in [
        (
            "SELECT id, ts FROM flights ORDER BY ts DESC LIMIT 3",
            expect![[r#"
            f1 on [coordinator] -> gather
              SortPreservingMergeExec: [ts@1 DESC], fetch=3
                ExchangeExec: gather f0 from 4 tasks, ordered by [ts@1 DESC]
            f0 on [p2, p3, p4, p5] -> gather
              SortExec: TopK(fetch=3), expr=[ts@1 DESC], preserve_partitioning=[true]
                LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, ts], order=[ts DESC]"#]],
        ),
        (
            "SELECT id, delay FROM flights WHERE distance > 3 ORDER BY delay DESC, id LIMIT 3",
            expect![[r#"
            f1 on [coordinator] -> gather
              SortPreservingMergeExec: [delay@1 DESC, id@0 ASC NULLS LAST], fetch=3
                ExchangeExec: gather f0 from 4 tasks, ordered by [delay@1 DESC, id@0 ASC NULLS LAST]
            f0 on [p2, p3, p4, p5] -> gather
              SortExec: TopK(fetch=3), expr=[delay@1 DESC, id@0 ASC NULLS LAST], preserve_partitioning=[true]
                FilterExec: distance@2 > 3, projection=[id@0, delay@1]
                  LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, delay, distance], where=[distance > 3], order=[delay DESC NULLS FIRST]"#]],
        ),
        // Floats have another order in SQL, and without a limit all rows are wanted.
        (
            "SELECT id, distance FROM flights ORDER BY distance LIMIT 3",
            expect![[r#"
            f1 on [coordinator] -> gather
              SortPreservingMergeExec: [distance@1 ASC NULLS LAST], fetch=3
                ExchangeExec: gather f0 from 4 tasks, ordered by [distance@1 ASC NULLS LAST]
            f0 on [p2, p3, p4, p5] -> gather
              SortExec: TopK(fetch=3), expr=[distance@1 ASC NULLS LAST], preserve_partitioning=[true]
                LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, distance]"#]],
        ),
        (
            "SELECT id, delay FROM flights ORDER BY delay",
            expect![[r#"
            f1 on [coordinator] -> gather
              SortPreservingMergeExec: [delay@1 ASC NULLS LAST]
                ExchangeExec: gather f0 from 4 tasks, ordered by [delay@1 ASC NULLS LAST]
            f0 on [p2, p3, p4, p5] -> gather
              SortExec: expr=[delay@1 ASC NULLS LAST], preserve_partitioning=[true]
                LeafScanExec: table=flights, partitions=[p2, p3, p4, p5], columns=[id, delay]"#]],
        ),
    ] {
        check(&world, sql, expected).await;
    }
}
