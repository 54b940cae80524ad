//! Calls and casts.

use super::*;

#[tokio::test]
async fn calls_reach_peers_addresses_and_oneself() {
    let env = real();
    let [one, two] = cluster(&env, |_| {}).await;
    one.register(Route::Echo, Arc::new(Echo::default()));
    two.register(Route::Echo, Arc::new(Echo::default()));
    for (size, to) in [(0, 2), (10, 2), (100_000, 2), (20 << 20, 2), (10, 1), (20 << 20, 1)] {
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
