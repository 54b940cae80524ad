//! The schema `system`, asked of real nodes.

use serde_json::{Value, json};
use shoal::client::Client;

use crate::cluster::{nodes, one_more, rows};
use crate::support::until;

fn only(client: &Client, sql: &str) -> Value {
    let all = rows(client, sql).unwrap();
    assert_eq!((all.len(), all[0].len()), (1, 1), "{all:?}");
    all[0][0].clone()
}

#[test]
fn the_cluster_is_there_as_tables() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = nodes(directory.path(), 2);
    one_more(&mut cluster, directory.path(), &["--zone", "attic", "--set", "cluster_secret=shoal"]);
    let [first, second, third] = [&cluster[0].client, &cluster[1].client, &cluster[2].client];
    first
        .sql_json("CREATE TABLE t (id BIGINT, v BIGINT, PRIMARY KEY (id)) WITH (replication_factor = 3)", None)
        .unwrap();
    first.sql_json("INSERT INTO t VALUES (1, 10), (2, 20), (3, 30)", None).unwrap();
    first.sql_json("DELETE FROM t WHERE id = 3", None).unwrap();
    let behind = "SELECT count(*) FROM system.replicas WHERE NOT answers OR lag IS NULL OR lag > 0 OR rows <> 2";
    until("all replicas hold it", || only(first, behind) == json!(0));
    first.sql_json("FLUSH TABLE t", None).unwrap();

    assert_eq!(only(second, "SELECT count(*) FROM system.nodes WHERE seen = 'alive' AND votes"), json!(3));
    assert_eq!(only(second, "SELECT count(*) FROM system.nodes WHERE leads"), json!(1));
    assert_eq!(only(first, "SELECT zone FROM system.nodes WHERE zone IS NOT NULL"), json!("attic"));
    assert_eq!(
        rows(third, "SELECT table_name, replicas, replicas_that_vote, rows FROM system.partitions").unwrap(),
        [[json!("t"), json!(3), json!(3), json!(2)]]
    );
    // Ordinary tables: filtered, grouped, joined with each other and with those of the catalog.
    let digests = "SELECT count(*), count(DISTINCT r.digest), sum(r.rows) FROM system.replicas r \
                   JOIN system.nodes n ON n.node = r.node WHERE r.table_name = 't' AND r.answers";
    assert_eq!(rows(second, digests).unwrap(), [[json!(3), json!(1), json!(6)]]);
    let segments = "SELECT node, sum(visible_rows), sum(tombstones) FROM system.segments GROUP BY node ORDER BY node";
    let segments = rows(third, segments).unwrap();
    assert_eq!(segments.len(), 3, "{segments:?}");
    assert!(segments.iter().all(|row| row[1..] == [json!(2), json!(1)]), "{segments:?}");
    let joined = "SELECT v FROM t JOIN system.partitions p ON p.rows = t.id";
    assert_eq!(only(first, joined), json!(20));
    // Each node tells its own settings, and no secret.
    assert_eq!(only(third, "SELECT value FROM system.settings WHERE name = 'zone'"), json!("attic"));
    assert_eq!(only(third, "SELECT value FROM system.settings WHERE name = 'cluster_secret'"), json!("(not shown)"));
    assert_eq!(only(first, "SELECT value FROM system.settings WHERE name = 'cluster_secret'"), Value::Null);
    let actors = "SELECT count(*) FROM system.actors WHERE kind = 'replica' AND state = 'running' AND restarts = 0";
    assert_eq!(only(first, actors), json!(3));

    let missing = rows(first, "SELECT * FROM system.nodse").unwrap_err().to_string();
    assert!(missing.contains("there is no table 'system.nodse'") && missing.contains("segments"), "{missing}");
}

#[test]
fn what_runs_is_seen_at_every_node_and_who_is_gone_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = nodes(directory.path(), 3);
    cluster[0].client.sql_json("CREATE TABLE t (id BIGINT, PRIMARY KEY (id))", None).unwrap();
    cluster[0].client.sql_json("INSERT INTO t SELECT value FROM generate_series(1, 100000)", None).unwrap();
    let slow = "SELECT count(*) FROM t a JOIN t b ON (a.id * b.id) % 1000003 = 7";
    let asked = cluster[0].client.clone();
    let running = std::thread::spawn(move || asked.sql_json(slow, None));

    let seen = format!("SELECT query, elapsed_ms FROM system.queries WHERE sql = '{slow}'");
    let mut found = Vec::new();
    until("another node sees it", || {
        found = rows(&cluster[1].client, &seen).unwrap();
        !found.is_empty()
    });
    let id = found[0][0].as_str().unwrap().to_owned();
    let of_it = format!("SELECT sum(tasks) FROM system.fragments WHERE query = '{id}'");
    until("its tasks are seen", || only(&cluster[2].client, &of_it).as_u64().is_some_and(|tasks| tasks > 0));
    let actors = format!("SELECT count(*) FROM system.actors WHERE name = '{id}' OR parent = '{id}'");
    assert!(only(&cluster[1].client, &actors).as_u64().is_some_and(|actors| actors >= 2));
    cluster[2].client.cancel(&id).unwrap();
    assert!(running.join().unwrap().unwrap_err().to_string().contains("cancelled"));
    until("nothing of it is left", || {
        rows(&cluster[1].client, &seen).unwrap().is_empty() && only(&cluster[1].client, &of_it) == Value::Null
    });

    drop(cluster.remove(2));
    let gone = "SELECT count(*) FROM system.segments WHERE problem IS NOT NULL AND file IS NULL";
    until("a node that is gone has a row that says so", || only(&cluster[0].client, gone) == json!(1));
}
