//! Calls and casts.

use super::*;

#[tokio::test]
async fn calls_reach_peers_addresses_and_oneself() {
    let env = real();
    let [one, two] = cluster(&env, |_| {}).await;
    one.register(Route::Echo, Arc::new(Echo::default()));
    two.register(Route::Echo, Arc::new(Echo::default()));
    for (size, to) in [(0, 2), (10, 2), (100_000, 2), (10 << 20, 2), (10, 1), (10 << 20, 1)] {
        let message = Bytes::from(vec![7; size]);
        let answer = one.call(NodeId(to), Route::Echo, message.clone(), SOON).await.unwrap();
        assert!(answer == message, "{size} bytes to n{to}");
    }
    for address in [one.local_address(), two.local_address()] {
        let answer = one.call_address(address, Route::Echo, Bytes::from_static(b"hello"), SOON).await.unwrap();
        assert_eq!(answer, "hello");
    }
    let calls = (0..500u32).map(|n| one.call(NodeId(2), Route::Echo, n.to_string().into(), SOON));
    for (n, answer) in futures::future::join_all(calls).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), n.to_string());
    }
    stop([one, two]).await;
}

#[tokio::test]
async fn errors_come_back_as_they_were_made() {
    let env = real();
    let [one, two] = cluster(&env, |_| {}).await;
    for to in [1, 2] {
        let ask = |route, word: &'static str| one.call(NodeId(to), route, Bytes::from_static(word.as_bytes()), SOON);
        let nobody = ask(Route::Echo, "hello").await.unwrap_err();
        assert_eq!((nobody.code(), nobody.applied()), (ErrorCode::Unsupported, Applied::False));
        let asked = if to == 1 { &one } else { &two };
        asked.register(Route::Query, Arc::new(Silent));
        asked.register(Route::Echo, Arc::new(Echo::default()));
        assert_eq!(ask(Route::Query, "hello").await.unwrap_err().code(), ErrorCode::Unsupported);
        let failed = ask(Route::Echo, "fail").await.unwrap_err();
        assert_eq!(
            (failed.code(), failed.applied(), failed.message(), failed.help()),
            (ErrorCode::DiskFull, Applied::Unknown, "as asked", Some("ask for something else"))
        );
        let panicked = ask(Route::Echo, "panic").await.unwrap_err();
        assert_eq!((panicked.code(), panicked.applied()), (ErrorCode::Internal, Applied::Unknown));
        assert_eq!(ask(Route::Echo, "still there?").await.unwrap(), "still there?");
        let late = one
            .call(NodeId(to), Route::Echo, Bytes::from_static(b"hang"), Duration::from_millis(50))
            .await
            .unwrap_err();
        assert_eq!((late.code(), late.applied()), (ErrorCode::Timeout, Applied::Unknown));
        let large = one.call(NodeId(to), Route::Echo, Bytes::from(vec![0; 64 << 20]), SOON).await.unwrap_err();
        assert_eq!((large.code(), large.applied()), (ErrorCode::LimitExceeded, Applied::False));
    }
    stop([one, two]).await;
}

struct Silent;

impl Handler for Silent {}

#[tokio::test]
async fn unknown_nodes_and_dead_addresses_are_lost_without_effect() {
    let env = real();
    let [one] = cluster(&env, |config| config.reconnect_min_ms = 200).await;
    let unknown = one.call(NodeId(9), Route::Echo, Bytes::new(), SOON).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.applied()), (ErrorCode::NodeLost, Applied::False));

    let vacant = start(&env, config(8)).await;
    one.set_address(NodeId(8), vacant.local_address());
    vacant.shutdown().await;
    let refused = one.call(NodeId(8), Route::Echo, Bytes::new(), SOON).await.unwrap_err();
    assert_eq!((refused.code(), refused.applied()), (ErrorCode::NodeLost, Applied::False));
    eventually(&env, "the attempt ends", || one.stats().connections == 0).await;
    let pausing = one.call(NodeId(8), Route::Echo, Bytes::new(), SOON).await.unwrap_err();
    assert!(pausing.retry_after_ms().is_some(), "{pausing:?}");
    let opened = one.open(NodeId(8), Route::Echo, Bytes::new(), 1000, SOON).await.unwrap_err();
    assert_eq!((opened.code(), opened.applied()), (ErrorCode::NodeLost, Applied::False));

    let mut moved = config(8);
    moved.listen = vacant.local_address();
    let back = start(&env, moved).await;
    back.register(Route::Echo, Arc::new(Echo::default()));
    let mut answer = Err(Error::internal("never tried"));
    for _ in 0..200 {
        answer = one.call(NodeId(8), Route::Echo, Bytes::from_static(b"back"), SOON).await;
        if answer.is_ok() {
            break;
        }
        env.sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(answer.unwrap(), "back");
    stop([one, vacant, back]).await;
}

#[tokio::test]
async fn another_node_at_the_address_is_noticed() {
    let env = real();
    let [one, two] = cluster(&env, |_| {}).await;
    one.set_address(NodeId(7), two.local_address());
    let error = one.call(NodeId(7), Route::Echo, Bytes::new(), SOON).await.unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::NodeLost, Applied::False));
    assert!(error.message().contains("n2 answers at the address of n7"), "{error}");
    stop([one, two]).await;
}

#[tokio::test]
async fn casts_arrive_in_order_and_a_panic_costs_only_itself() {
    let env = real();
    let [one, two] = cluster(&env, |_| {}).await;
    let echo = Echo::default();
    let casts = echo.casts.clone();
    two.register(Route::Echo, Arc::new(echo));
    for n in 0..100u32 {
        one.cast(NodeId(2), Route::Echo, n.to_string().into()).unwrap();
        if n == 50 {
            one.cast(NodeId(2), Route::Echo, Bytes::from_static(b"panic")).unwrap();
        }
    }
    eventually(&env, "100 casts", || lock(&casts).len() == 100).await;
    assert!(lock(&casts).iter().enumerate().all(|(n, cast)| *cast == n.to_string()));
    assert_eq!(two.stats().casts_dropped, 1);
    stop([one, two]).await;
}

#[tokio::test]
async fn full_queues_refuse_instead_of_growing() {
    let env = real();
    let [one, two] = cluster(&env, |config| {
        config.outbound_bytes_max = 64 << 10;
        config.serving_max = 3;
        config.calls_max = 4;
    })
    .await;
    let echo = Echo::default();
    let entered = echo.entered.clone();
    two.register(Route::Echo, Arc::new(echo));
    let cast = || one.cast(NodeId(2), Route::Echo, Bytes::from(vec![0; 8 << 10]));
    // Nothing is written before this task awaits.
    let sent = (0..100).take_while(|_| cast().is_ok()).count();
    assert!((5..=8).contains(&sent), "{sent}");
    assert_eq!(cast().unwrap_err().code(), ErrorCode::Overloaded);

    let hang = || one.call(NodeId(2), Route::Echo, Bytes::from_static(b"hang"), SOON);
    let mut hanging: Vec<_> = (0..3).map(|_| Box::pin(hang())).collect();
    for call in &mut hanging {
        assert!(call.as_mut().now_or_never().is_none());
        entered.notified().await;
    }
    eventually(&env, "three served", || two.stats().calls_serving == 3).await;
    let served = hang().await.unwrap_err();
    assert_eq!((served.code(), served.applied()), (ErrorCode::Overloaded, Applied::False));
    assert!(served.message().contains("serving_max"), "{served}");
    let mut fourth = Box::pin(one.call(NodeId(2), Route::Query, Bytes::new(), SOON));
    assert!(fourth.as_mut().now_or_never().is_none());
    let fifth = hang().await.unwrap_err();
    assert!(fifth.message().contains("calls_max"), "{fifth}");
    drop((hanging, fourth));
    stop([one, two]).await;
}

#[tokio::test]
async fn a_peer_that_stops_or_is_reported_down_fails_its_calls_at_once() {
    let env = real();
    for reported in [false, true] {
        let [one, two] = cluster(&env, |_| {}).await;
        let echo = Echo::default();
        let entered = echo.entered.clone();
        two.register(Route::Echo, Arc::new(echo));
        let call = one.call(NodeId(2), Route::Echo, Bytes::from_static(b"hang"), Duration::from_secs(3600));
        let fault = async {
            entered.notified().await;
            if reported {
                one.node_down(NodeId(2));
            } else {
                two.shutdown().await;
            }
        };
        let (error, ()) = env.timeout(SOON, async { tokio::join!(call, fault) }).await.unwrap();
        let error = error.unwrap_err();
        assert_eq!((error.code(), error.applied()), (ErrorCode::NodeLost, Applied::Unknown));
        stop([one, two]).await;
    }
}

#[tokio::test]
async fn a_call_that_was_never_written_had_no_effect() {
    let env = real();
    let [one] = cluster(&env, |config| config.connect_timeout_ms = 60_000).await;
    // Accepts and never says a word.
    let mute = env.network().listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    one.set_address(NodeId(2), mute.local_address().unwrap());
    let late = one.call(NodeId(2), Route::Echo, Bytes::new(), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!((late.code(), late.applied()), (ErrorCode::Timeout, Applied::False));
    let call = one.call(NodeId(2), Route::Echo, Bytes::new(), SOON);
    let (lost, ()) = tokio::join!(call, async { one.node_down(NodeId(2)) });
    let lost = lost.unwrap_err();
    assert_eq!((lost.code(), lost.applied()), (ErrorCode::NodeLost, Applied::False));
    stop([one]).await;
}
