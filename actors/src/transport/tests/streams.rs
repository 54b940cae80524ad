//! Streams.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Produces what its header says: number of items, bytes of each, and how to end.
#[derive(Default)]
struct Producer {
    sent_bytes: Arc<AtomicU64>,
    stopped: Arc<std::sync::Mutex<Vec<ErrorCode>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Finish,
    Fail,
    Drop,
    Panic,
    WaitForCancel,
}

fn order(items: u32, item_bytes: u32, ending: Ending) -> Bytes {
    let mut header = Vec::new();
    header.extend_from_slice(&items.to_le_bytes());
    header.extend_from_slice(&item_bytes.to_le_bytes());
    header.push(ending as u8);
    header.into()
}

impl Handler for Producer {
    fn open(&self, _from: NodeId, header: Bytes, out: StreamSender) -> BoxFuture<'static, ()> {
        let (sent_bytes, stopped) = (self.sent_bytes.clone(), self.stopped.clone());
        async move {
            let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let (items, item_bytes, ending) = (number(0), number(4), header[8]);
            for n in 0..items {
                let mut item = vec![n as u8; item_bytes as usize];
                item[..4].copy_from_slice(&n.to_le_bytes());
                if let Err(StreamClosed(error)) = out.send(item.into()).await {
                    lock(&stopped).push(error.code());
                    return;
                }
                sent_bytes.fetch_add(u64::from(item_bytes), Ordering::SeqCst);
            }
            match ending {
                ending if ending == Ending::Finish as u8 => out.finish().await,
                ending if ending == Ending::Fail as u8 => {
                    out.fail(Error::new(ErrorCode::OutOfMemory, "as asked")).await
                }
                ending if ending == Ending::Panic as u8 => panic!("as asked"),
                ending if ending == Ending::WaitForCancel as u8 => {
                    out.closed().await;
                    let StreamClosed(error) = out.send(Bytes::new()).await.unwrap_err();
                    lock(&stopped).push(error.code());
                }
                _ => {}
            }
        }
        .boxed()
    }
}

async fn pair(env: &Env, tune: impl Fn(&mut TransportConfig)) -> ([Transport; 2], [Arc<Producer>; 2]) {
    let nodes: [Transport; 2] = cluster(env, tune).await;
    let producers = [Arc::new(Producer::default()), Arc::new(Producer::default())];
    for (node, producer) in nodes.iter().zip(&producers) {
        node.register(Route::Edge, producer.clone());
    }
    (nodes, producers)
}

#[tokio::test]
async fn streams_arrive_whole_and_their_end_is_told() {
    let env = real();
    let ([one, two], _) = pair(&env, |_| {}).await;
    for to in [NodeId(2), NodeId(1)] {
        // Windows smaller than an item, about an item, many items; of none at all.
        for (window, items, item_bytes) in [
            (0, 5, 100),
            (64, 20, 100),
            (1000, 50, 999),
            (1 << 20, 64, 1 << 15),
            (1 << 20, 2, 1 << 20),
            (1 << 16, 1, 2 << 20),
        ] {
            for (ending, code) in [
                (Ending::Finish, None),
                (Ending::Fail, Some(ErrorCode::OutOfMemory)),
                (Ending::Drop, Some(ErrorCode::NodeLost)),
                (Ending::Panic, Some(ErrorCode::NodeLost)),
            ] {
                let mut stream =
                    one.open(to, Route::Edge, order(items, item_bytes, ending), window, SOON).await.unwrap();
                for n in 0..items {
                    let item = stream.next().await.unwrap().unwrap();
                    assert_eq!((item.len(), &item[..4]), (item_bytes as usize, &n.to_le_bytes()[..]));
                }
                let end = stream.next().await.map(|end| end.unwrap_err().code());
                assert_eq!(end, code, "window {window}, {items} items of {item_bytes} from {to}");
                assert!(stream.next().await.is_none());
            }
        }
        let mut nobody = one.open(to, Route::Echo, Bytes::new(), 1, SOON).await.unwrap();
        assert_eq!(nobody.next().await.unwrap().unwrap_err().code(), ErrorCode::Unsupported);
    }
    stop([one, two]).await;
}

async fn slow_consumer(to: NodeId) {
    const WINDOW: u32 = 256 << 10;
    const ITEMS: u32 = 100_000;
    const ITEM_BYTES: u32 = 1 << 10;
    let env = real();
    let ([one, two], producers) = pair(&env, |_| {}).await;
    let sent_bytes = &producers[to.0 as usize - 1].sent_bytes;
    let mut stream = one.open(to, Route::Edge, order(ITEMS, ITEM_BYTES, Ending::Finish), WINDOW, SOON).await.unwrap();
    let (mut taken_bytes, mut most_ahead) = (0, 0);
    for n in 0..ITEMS {
        if n % 5000 == 0 {
            env.sleep(Duration::from_millis(20)).await;
        }
        let ahead = sent_bytes.load(Ordering::SeqCst) - taken_bytes;
        most_ahead = most_ahead.max(ahead);
        let item = stream.next().await.unwrap().unwrap();
        assert_eq!(item[..4], n.to_le_bytes());
        taken_bytes += item.len() as u64;
    }
    assert!(stream.next().await.is_none());
    assert!(most_ahead <= u64::from(WINDOW + ITEM_BYTES), "{most_ahead} bytes ahead");
    assert!(most_ahead > u64::from(WINDOW / 2), "the window was never used: {most_ahead}");
    drop(stream);
    stop([one, two]).await;
}

#[tokio::test]
async fn a_slow_consumer_bounds_its_producer() {
    slow_consumer(NodeId(2)).await;
}

#[tokio::test]
async fn a_slow_consumer_bounds_its_producer_on_the_same_node() {
    slow_consumer(NodeId(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_on_many_threads() {
    let env = real();
    let ([one, two], _) = pair(&env, |_| {}).await;
    let streams = (0..40u32).map(|n| {
        let (one, two) = (&one, &two);
        async move {
            let (from, to) = if n % 2 == 0 { (one, NodeId(2)) } else { (two, NodeId(n % 4 / 2 + 1)) };
            let header = order(200, 100 + 97 * n, Ending::Finish);
            let mut stream = from.open(to, Route::Edge, header, 1000 * n, SOON).await.unwrap();
            for expected in 0..200u32 {
                assert_eq!(stream.next().await.unwrap().unwrap()[..4], expected.to_le_bytes());
            }
            assert!(stream.next().await.is_none());
        }
    });
    env.timeout(SOON * 6, futures::future::join_all(streams)).await.unwrap();
    stop([one, two]).await;
}

#[tokio::test]
async fn a_stream_nobody_reads_holds_up_nothing_else() {
    let env = real();
    let ([one, two], producers) = pair(&env, |config| config.outbound_bytes_max = 64 << 10).await;
    two.register(Route::Echo, Arc::new(Echo::default()));
    let window = 1 << 20;
    let unread = one.open(NodeId(2), Route::Edge, order(100_000, 1000, Ending::Finish), window, SOON).await.unwrap();
    eventually(&env, "its window is spent", || producers[1].sent_bytes.load(Ordering::SeqCst) > 1_000_000).await;
    let mut read = one.open(NodeId(2), Route::Edge, order(3000, 1000, Ending::Finish), window, SOON).await.unwrap();
    let all = async {
        let mut items = 0;
        while let Some(item) = read.next().await {
            item.unwrap();
            items += 1;
        }
        items
    };
    assert_eq!(env.timeout(SOON, all).await, Ok(3000));
    assert_eq!(one.call(NodeId(2), Route::Echo, Bytes::from_static(b"hi"), SOON).await.unwrap(), "hi");
    drop((unread, read));
    eventually(&env, "the producer stops", || two.stats().streams_sending == 0).await;
    assert_eq!(*lock(&producers[1].stopped), [ErrorCode::Cancelled]);
    stop([one, two]).await;
}

#[tokio::test]
async fn dropping_the_receiver_stops_the_producer() {
    let env = real();
    let ([one, two], producers) = pair(&env, |_| {}).await;
    for to in [1, 2] {
        for header in [order(1_000_000, 1000, Ending::Finish), order(3, 1000, Ending::WaitForCancel)] {
            let mut stream = one.open(NodeId(to), Route::Edge, header, 1 << 16, SOON).await.unwrap();
            stream.next().await.unwrap().unwrap();
            drop(stream);
            let stopped = &producers[to as usize - 1].stopped;
            eventually(&env, "the producer is told", || lock(stopped).pop() == Some(ErrorCode::Cancelled)).await;
        }
    }
    let stats = one.stats();
    assert!(stats.items_late > 0, "items on their way are thrown away and counted: {stats:?}");
    stop([one, two]).await;
}

#[tokio::test]
async fn a_lost_peer_is_an_error_at_both_ends() {
    let env = real();
    let ([one, two], producers) = pair(&env, |_| {}).await;
    let header = order(1_000_000, 1000, Ending::Finish);
    // The producer's node goes.
    let mut stream = one.open(NodeId(2), Route::Edge, header.clone(), 1 << 16, SOON).await.unwrap();
    stream.next().await.unwrap().unwrap();
    two.shutdown().await;
    let end = loop {
        match env.timeout(SOON, stream.next()).await.unwrap() {
            Some(Ok(_)) => {}
            end => break end,
        }
    };
    assert_eq!(end.unwrap().unwrap_err().code(), ErrorCode::NodeLost);
    assert!(stream.next().await.is_none());
    drop(stream);

    // The consumer's node goes.
    let three = start(&env, config(3)).await;
    three.set_address(NodeId(1), one.local_address());
    let mut stream = three.open(NodeId(1), Route::Edge, header, 1 << 16, SOON).await.unwrap();
    stream.next().await.unwrap().unwrap();
    three.shutdown().await;
    eventually(&env, "the producer stops", || one.stats().streams_sending == 0).await;
    assert_eq!(*lock(&producers[0].stopped), [ErrorCode::NodeLost]);
    drop(stream);
    stop([one, two, three]).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let env = real();
    let ([one, two], _) = pair(&env, |config| config.streams_max = 2).await;
    let header = order(1, 10, Ending::WaitForCancel);
    let open = || one.open(NodeId(2), Route::Edge, header.clone(), 1000, SOON);
    let (first, _second) = (open().await.unwrap(), open().await.unwrap());
    assert_eq!(open().await.unwrap_err().code(), ErrorCode::Overloaded);
    drop(first);
    eventually(&env, "a place is free", || two.stats().streams_sending == 1).await;
    let mut third = open().await.unwrap();
    third.next().await.unwrap().unwrap();
    drop((third, _second));
    stop([one, two]).await;
}

#[tokio::test]
async fn an_item_too_large_for_a_frame_is_refused_where_it_is_sent() {
    let env = real();
    let ([one, two], producers) = pair(&env, |config| config.frame_bytes_max = 10_000).await;
    for to in [1, 2] {
        let header = order(1, 10_000, Ending::Finish);
        let mut stream = one.open(NodeId(to), Route::Edge, header, 1 << 16, SOON).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), ErrorCode::NodeLost);
        assert_eq!(*lock(&producers[to as usize - 1].stopped), [ErrorCode::LimitExceeded]);
    }
    stop([one, two]).await;
}

/// Hands its senders to whoever holds it.
#[derive(Default)]
struct Keeper(Arc<std::sync::Mutex<Vec<StreamSender>>>);

impl Handler for Keeper {
    fn open(&self, _from: NodeId, _header: Bytes, out: StreamSender) -> BoxFuture<'static, ()> {
        lock(&self.0).push(out);
        async {}.boxed()
    }
}

#[tokio::test]
async fn shutdown_ends_streams_whose_ends_are_held_elsewhere() {
    let env = real();
    let [one, two] = cluster(&env, |_| {}).await;
    let keeper = Keeper::default();
    let senders = keeper.0.clone();
    two.register(Route::Edge, Arc::new(keeper));
    let mut local = two.open(NodeId(2), Route::Edge, Bytes::new(), 1000, SOON).await.unwrap();
    let mut remote = one.open(NodeId(2), Route::Edge, Bytes::new(), 1000, SOON).await.unwrap();
    eventually(&env, "both are open", || lock(&senders).len() == 2).await;
    two.shutdown().await;
    let ends = [env.timeout(SOON, local.next()).await, env.timeout(SOON, remote.next()).await];
    let codes = ends.map(|end| end.unwrap().unwrap().unwrap_err().code());
    assert_eq!(codes, [ErrorCode::NotReady, ErrorCode::NodeLost]);
    let senders = std::mem::take(&mut *lock(&senders));
    for sender in &senders {
        env.timeout(SOON, sender.closed()).await.unwrap();
        assert!(sender.send(Bytes::new()).await.is_err());
    }
    drop((senders, local, remote));
    stop([one, two]).await;
}
