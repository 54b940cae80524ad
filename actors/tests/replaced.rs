//! A node whose disk is gone, and another one at its address.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use shoal_actors::service::{SqlRequest, SwimState};
use shoal_kernel::Error;

use common::{eventually, node, nodes, numbers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_replaced_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = nodes(dir.path()).await;
    nodes[0].sql(SqlRequest::new("CREATE TABLE t (k BIGINT PRIMARY KEY)")).await.unwrap().collect().await.unwrap();
    nodes[0].sql(SqlRequest::new("INSERT INTO t VALUES (1), (2)")).await.unwrap().collect().await.unwrap();

    let gone = nodes.pop().unwrap();
    let (old, address) = (gone.id(), gone.cluster_address());
    gone.shutdown().await;
    drop(gone);
    std::fs::remove_dir_all(dir.path().join("n2")).unwrap();
    let join = nodes.iter().map(|node| node.cluster_address()).collect();
    nodes.push(node(dir.path().join("n2"), address, join).await);
    assert_ne!(nodes[2].id(), old);

    for (number, node) in nodes.iter().enumerate() {
        eventually("the old one is down, the new one alive", || async {
            let status = node.cluster().await;
            let seen = |id| status.nodes.iter().find(|node| node.id == id).map(|node| node.swim);
            match (seen(old), seen(nodes[2].id())) {
                (Some(SwimState::Down), Some(SwimState::Alive)) => Ok(()),
                other => Err(Error::internal(format!("{other:?}"))),
            }
        })
        .await;
        let insert = SqlRequest::new(format!("INSERT INTO t VALUES ({})", 10 + number));
        node.sql(insert).await.unwrap().collect().await.unwrap();
        assert_eq!(numbers(node, "SELECT count(*) FROM t").await.unwrap(), [3 + number as i64]);
    }
    for node in nodes {
        node.shutdown().await;
    }
}
