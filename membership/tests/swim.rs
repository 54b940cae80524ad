//! Gossip over real datagrams on the loopback.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{Env, NodeId};
use shoal_membership::swim::{MemberState, Swim, SwimConfig};

/// Ports that are free now. The sockets that held them are closed again, so the numbers differ between tests.
#[allow(clippy::disallowed_methods, reason = "the test plays the operator")]
fn ports<const N: usize>() -> [SocketAddr; N] {
    let sockets = std::array::from_fn::<_, N, _>(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap())
}

async fn start(env: &Env, id: u32, at: SocketAddr, seeds: &[SocketAddr], dir: &Path) -> Swim {
    start_as(env, id, at, seeds, dir, "secret", 0).await
}

async fn start_as(
    env: &Env,
    id: u32,
    at: SocketAddr,
    seeds: &[SocketAddr],
    dir: &Path,
    secret: &str,
    cluster_id: u64,
) -> Swim {
    let mut config = SwimConfig::new(NodeId(id), at, secret, dir.join(id.to_string()));
    config.seeds = seeds.to_vec();
    config.cluster_id = cluster_id;
    Swim::start(env, config).await.unwrap()
}

async fn until(env: &Env, swim: &Swim, id: u32, state: MemberState) -> u64 {
    let mut members = swim.members();
    let seen = members.wait_for(|members| members.get(&NodeId(id)).is_some_and(|member| member.state == state));
    match env.timeout(Duration::from_secs(20), seen).await {
        Ok(seen) => seen.unwrap()[&NodeId(id)].generation,
        Err(_) => panic!("node {id} is not {state:?}: {:?}", swim.members().borrow()),
    }
}

#[tokio::test]
async fn nodes_meet_die_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(&RealOptions { blocking_threads: 1, blocking_jobs_max: 16, compute_threads: 1 }).unwrap();
    let [one, two, three] = ports();
    let first = start(&env, 1, one, &[], dir.path()).await;
    let second = start(&env, 2, two, &[one], dir.path()).await;
    let third = start(&env, 3, three, &[], dir.path()).await;
    third.announce(one);
    for swim in [&first, &second, &third] {
        for id in 1..=3 {
            until(&env, swim, id, MemberState::Alive).await;
        }
    }
    second.publish(b"hello").unwrap();
    assert!(second.publish(&[0; 1_000]).is_err());

    let before = until(&env, &first, 3, MemberState::Alive).await;
    third.shutdown().await;
    until(&env, &first, 3, MemberState::Down).await;
    let third = start(&env, 3, three, &[one], dir.path()).await;
    assert!(until(&env, &first, 3, MemberState::Alive).await > before);
    let mut told = third.members();
    let told = told.wait_for(|members| members.get(&NodeId(2)).is_some_and(|two| two.payload.as_ref() == b"hello"));
    env.timeout(Duration::from_secs(20), told).await.unwrap().unwrap();

    second.leave().await;
    until(&env, &first, 2, MemberState::Down).await;
    first.shutdown().await;
    third.shutdown().await;
}

#[tokio::test]
async fn strangers_are_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(&RealOptions { blocking_threads: 1, blocking_jobs_max: 16, compute_threads: 1 }).unwrap();
    let [one, two, three] = ports();
    let first = start(&env, 1, one, &[], dir.path()).await;
    first.belong_to(7);
    let thief = start_as(&env, 2, two, &[one], dir.path(), "guess", 7).await;
    let neighbour = start_as(&env, 3, three, &[one], dir.path(), "secret", 8).await;
    for _ in 0..200 {
        let stats = first.stats();
        if stats.unauthentic > 1 && stats.strangers > 1 {
            break;
        }
        env.sleep(Duration::from_millis(50)).await;
    }
    let stats = first.stats();
    assert!(stats.unauthentic > 1 && stats.strangers > 1, "{stats:?}");
    for swim in [first, thief, neighbour] {
        let others = swim.members().borrow().values().filter(|member| member.state == MemberState::Alive).count();
        assert_eq!(others, 1, "{:?}", swim.members().borrow());
        swim.shutdown().await;
    }
}
