//! Peers that are strangers, damaged, mute or malicious.

use bytes::{BufMut, BytesMut};
use shoal_kernel::env::{BoxListener, BoxStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::frame::{self, Decoded};
use super::super::handshake::{self, Identity, MAGIC, VERSIONS};
use super::*;

fn identity(node: u32) -> Identity<'static> {
    Identity { node: NodeId(node), cluster: 0, secret: "secret", nonce: [5; 32], versions: VERSIONS }
}

/// A connection made by hand that has passed the handshake as node 66.
async fn dial(env: &Env, to: &Transport, lane: Lane) -> BoxStream {
    let mut stream = env.network().connect(to.local_address()).await.unwrap();
    handshake::dial(&mut stream, identity(66), VERSIONS.newest, lane, to.node()).await.unwrap();
    stream
}

/// A listener that node `to` takes for node 66.
async fn listen(env: &Env, to: &Transport) -> BoxListener {
    let listener = env.network().listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    to.set_address(NodeId(66), listener.local_address().unwrap());
    listener
}

async fn accept(listener: &mut BoxListener) -> BoxStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    handshake::accept(&mut stream, identity(66), false).await.unwrap();
    stream
}

fn wire(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.put_header(&mut out);
    out.put_slice(&frame.payload);
    out
}

/// Reads frames until one is not part of the pulse; none when the connection is closed.
async fn read_frame(stream: &mut BoxStream, buffer: &mut BytesMut) -> Option<Frame> {
    loop {
        match frame::decode(buffer, 1 << 20, true).unwrap() {
            Decoded::Frame(frame) if matches!(frame.kind, Kind::Ping | Kind::Pong) => {}
            Decoded::Frame(frame) => return Some(frame),
            Decoded::Missing(_) => {
                stream.read_buf(buffer).await.ok().filter(|bytes| *bytes > 0)?;
            }
        }
    }
}

async fn is_closed(env: &Env, stream: &mut BoxStream) -> bool {
    let mut rest = Vec::new();
    // A reset is a close too.
    env.timeout(SOON, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn strangers_are_refused_by_name() {
    let env = real();
    let [one, two] = cluster(&env, |config| config.reconnect_max_ms = config.reconnect_min_ms).await;
    two.register(Route::Echo, Arc::new(Echo::default()));
    let mut other_secret = config(3);
    other_secret.secret = "another".to_owned();
    let three = start(&env, other_secret).await;
    three.set_address(NodeId(2), two.local_address());
    let hello = || Bytes::from_static(b"hello");

    let error = three.call(NodeId(2), Route::Echo, hello(), SOON).await.unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::Forbidden, Applied::False), "{error}");
    assert!(error.message().contains("secret"));
    let error = three.call_address(two.local_address(), Route::Echo, hello(), SOON).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Forbidden, "{error}");

    two.set_cluster(7);
    assert_eq!(one.call(NodeId(2), Route::Echo, hello(), SOON).await.unwrap(), "hello");
    one.set_cluster(8);
    let error = one.call_address(two.local_address(), Route::Echo, hello(), SOON).await.unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::Forbidden, Applied::False), "{error}");
    assert!(error.message().contains("cluster"), "{error}");
    one.set_cluster(7);
    eventually(&env, "the refused connection is gone", || one.stats().connections == 1).await;
    assert_eq!(one.call_address(two.local_address(), Route::Echo, hello(), SOON).await.unwrap(), "hello");
    stop([one, two, three]).await;
}

#[tokio::test]
async fn other_versions_are_refused_by_name_in_both_directions() {
    let env = real();
    let [one] = cluster(&env, |_| {}).await;
    // A dialler of version 99 is told ours.
    let mut stream = env.network().connect(one.local_address()).await.unwrap();
    let mut hello = MAGIC.to_vec();
    hello.put_u16_le(99);
    stream.write_all(&hello).await.unwrap();
    let mut answer = [0; MAGIC.len() + 3];
    stream.read_exact(&mut answer).await.unwrap();
    let mut expected = MAGIC.to_vec();
    expected.put_u16_le(VERSIONS.newest);
    expected.put_u8(1);
    assert_eq!(answer[..], expected);
    assert!(is_closed(&env, &mut stream).await);

    // An acceptor of version 99 refuses us.
    let mut listener = listen(&env, &one).await;
    let refuse = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 10]).await.unwrap();
        let mut answer = MAGIC.to_vec();
        answer.put_u16_le(99);
        answer.put_u8(1);
        stream.write_all(&answer).await.unwrap();
        stream
    };
    let (error, _stream) = tokio::join!(one.call(NodeId(66), Route::Echo, Bytes::new(), SOON), refuse);
    let error = error.unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::IncompatibleVersion, Applied::False));
    assert!(error.message().contains("99"), "{error}");
    assert_eq!(one.stats().handshakes_failed, 2);
    stop([one]).await;
}

#[tokio::test]
async fn garbage_and_silence_in_the_handshake_cost_only_their_connection() {
    let env = real();
    let [one, two] = cluster(&env, |config| {
        config.connect_timeout_ms = 300;
        config.half_open_max = 3;
    })
    .await;
    one.register(Route::Echo, Arc::new(Echo::default()));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 5000]] {
        let mut stream = env.network().connect(one.local_address()).await.unwrap();
        // May be reset while it is written.
        let _ = stream.write_all(garbage).await;
        assert!(is_closed(&env, &mut stream).await);
    }
    assert_eq!(one.stats().handshakes_failed, 3);
    let mut mute = Vec::new();
    for _ in 0..6 {
        mute.push(env.network().connect(one.local_address()).await.unwrap());
    }
    // Three take the places, three are dropped at once; the three run into the deadline.
    eventually(&env, "three are dropped", || one.stats().handshakes_failed == 6).await;
    eventually(&env, "all are dropped", || one.stats().handshakes_failed == 9).await;
    for stream in &mut mute {
        assert!(is_closed(&env, stream).await);
    }
    assert_eq!(two.call(NodeId(1), Route::Echo, Bytes::from_static(b"hi"), SOON).await.unwrap(), "hi");
    stop([one, two]).await;
}

#[tokio::test]
async fn broken_rules_and_damaged_bytes_close_the_connection() {
    let env = real();
    let [one] = cluster(&env, |config| config.frame_bytes_max = 1 << 16).await;
    one.register(Route::Echo, Arc::new(Echo::default()));
    let call = Frame::new(Kind::Call, Route::Echo as u8, 1, Bytes::from_static(b"hello"));
    let mut flipped = wire(&call);
    flipped[20] ^= 1;
    // A header that is whole, and wrong.
    let header = |change: fn(&mut [u8])| {
        let mut bytes = BytesMut::new();
        Frame::bare(Kind::Ping, 1).put_header(&mut bytes);
        change(&mut bytes);
        let crc = crc32fast::hash(&bytes[..18]);
        bytes[18..22].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let oversized = header(|bytes| bytes[..4].fill(0xff));
    let unknown_kind = header(|bytes| bytes[4] = 77);

    for (what, lane, bytes) in [
        ("flipped byte", Lane::Control, flipped),
        ("oversized frame", Lane::Control, oversized),
        ("unknown kind", Lane::Control, unknown_kind),
        ("call on the bulk lane", Lane::Bulk, wire(&call)),
        ("reply from the dialler", Lane::Control, wire(&Frame::bare(Kind::Reply, 1))),
        ("open without credit", Lane::Bulk, wire(&Frame::new(Kind::Open, Route::Echo as u8, 1, Bytes::new()))),
    ] {
        let before = one.stats().protocol_errors;
        let mut stream = dial(&env, &one, lane).await;
        stream.write_all(&bytes).await.unwrap();
        assert!(is_closed(&env, &mut stream).await, "{what}");
        assert_eq!(one.stats().protocol_errors, before + 1, "{what}");
    }
    // The same call, undamaged, is answered; a route from the future is refused without closing.
    let mut stream = dial(&env, &one, Lane::Control).await;
    let mut buffer = BytesMut::new();
    stream.write_all(&wire(&Frame::new(Kind::Call, 200, 5, Bytes::new()))).await.unwrap();
    let refused = read_frame(&mut stream, &mut buffer).await.unwrap();
    assert_eq!((refused.id, refused.tag), (5, frame::OUTCOME_ERROR));
    stream.write_all(&wire(&call)).await.unwrap();
    let answer = read_frame(&mut stream, &mut buffer).await.unwrap();
    assert_eq!((answer.id, answer.tag, &answer.payload[..]), (1, frame::OUTCOME_OK, &b"hello"[..]));
    stop([one]).await;
}

/// Two items, then waits.
struct Two;

impl Handler for Two {
    fn open(&self, _from: NodeId, _header: Bytes, out: StreamSender) -> BoxFuture<'static, ()> {
        async move {
            for _ in 0..2 {
                out.send(Bytes::from_static(&[0; 100])).await.unwrap();
            }
            out.closed().await;
        }
        .boxed()
    }
}

#[tokio::test]
async fn credit_is_checked_on_both_sides() {
    let env = real();
    let [one] = cluster(&env, |_| {}).await;
    one.register(Route::Edge, Arc::new(Two));
    // A consumer that grants more than was spent.
    let mut stream = dial(&env, &one, Lane::Bulk).await;
    let mut header = BytesMut::new();
    header.put_u32_le(1000);
    let open = Frame::new(Kind::Open, Route::Edge as u8, 1, header.freeze());
    stream.write_all(&wire(&open)).await.unwrap();
    let mut buffer = BytesMut::new();
    for _ in 0..2 {
        assert_eq!(read_frame(&mut stream, &mut buffer).await.unwrap().kind, Kind::Item);
    }
    stream.write_all(&wire(&Frame::number(Kind::Credit, 1, 200))).await.unwrap();
    stream.write_all(&wire(&Frame::number(Kind::Credit, 1, 1))).await.unwrap();
    assert!(is_closed(&env, &mut stream).await);
    // One that opens a stream twice.
    let mut stream = dial(&env, &one, Lane::Bulk).await;
    stream.write_all(&wire(&open)).await.unwrap();
    stream.write_all(&wire(&open)).await.unwrap();
    assert!(is_closed(&env, &mut stream).await);
    eventually(&env, "both producers stop", || one.stats().streams_sending == 0).await;

    // A producer that sends more than its credit.
    let mut listener = listen(&env, &one).await;
    let flood = async {
        let mut stream = accept(&mut listener).await;
        let open = read_frame(&mut stream, &mut BytesMut::new()).await.unwrap();
        let item = wire(&Frame::new(Kind::Item, 0, open.id, Bytes::from_static(&[0; 400])));
        for _ in 0..4 {
            stream.write_all(&item).await.unwrap();
        }
        is_closed(&env, &mut stream).await
    };
    let consume = async {
        let mut stream = one.open(NodeId(66), Route::Edge, Bytes::new(), 1000, SOON).await.unwrap();
        eventually(&env, "the flood is noticed", || one.stats().protocol_errors == 3).await;
        let mut items = 0;
        loop {
            match stream.next().await.unwrap() {
                Ok(_) => items += 1,
                Err(error) => return (items, error.code()),
            }
        }
    };
    let ((items, code), closed) = tokio::join!(consume, flood);
    assert_eq!((items, code, closed), (2, ErrorCode::NodeLost, true));
    stop([one]).await;
}

#[tokio::test]
async fn damage_in_mid_call_is_a_lost_node_with_unknown_effect() {
    let env = real();
    let [one] = cluster(&env, |_| {}).await;
    let mut listener = listen(&env, &one).await;
    let answer = async {
        let mut stream = accept(&mut listener).await;
        let call = read_frame(&mut stream, &mut BytesMut::new()).await.unwrap();
        let mut reply = wire(&Frame::new(Kind::Reply, frame::OUTCOME_OK, call.id, Bytes::from_static(b"yes")));
        let last = reply.len() - 1;
        reply[last] ^= 0x10;
        stream.write_all(&reply).await.unwrap();
        is_closed(&env, &mut stream).await
    };
    let (error, closed) = tokio::join!(one.call(NodeId(66), Route::Echo, Bytes::new(), SOON), answer);
    let error = error.unwrap_err();
    assert_eq!((error.code(), error.applied(), closed), (ErrorCode::NodeLost, Applied::Unknown, true));
    assert!(error.message().contains("checksum"), "{error}");
    stop([one]).await;
}

#[tokio::test]
async fn a_mute_peer_and_one_that_does_not_read_are_closed() {
    let env = real();
    let [one] = cluster(&env, |config| {
        config.ping_every_ms = 20;
        config.ping_timeout_ms = 100;
        config.reconnect_max_ms = config.reconnect_min_ms;
    })
    .await;
    let mut listener = listen(&env, &one).await;
    // Mute after the handshake, while a call waits.
    let mute = async {
        let mut stream = accept(&mut listener).await;
        is_closed(&env, &mut stream).await
    };
    let call = one.call(NodeId(66), Route::Echo, Bytes::new(), Duration::from_secs(3600));
    let (error, closed) = tokio::join!(call, mute);
    let error = error.unwrap_err();
    assert_eq!((error.code(), error.applied(), closed), (ErrorCode::NodeLost, Applied::Unknown, true));
    assert!(error.message().contains("silent"), "{error}");

    // Talks on, but takes no bytes.
    one.set_address(NodeId(66), SocketAddr::from(([127, 0, 0, 1], 1)));
    one.set_address(NodeId(66), listener.local_address().unwrap());
    let deaf = async {
        let mut stream = accept(&mut listener).await;
        let ping = wire(&Frame::bare(Kind::Ping, 1));
        while stream.write_all(&ping).await.is_ok() {
            env.sleep(Duration::from_millis(10)).await;
        }
    };
    let call = one.call(NodeId(66), Route::Echo, Bytes::from(vec![0; 60 << 20]), Duration::from_secs(3600));
    let (error, ()) = env.timeout(SOON, async { tokio::join!(call, deaf) }).await.unwrap();
    let error = error.unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::NodeLost, Applied::Unknown));
    assert!(error.message().contains("takes no more bytes"), "{error}");
    stop([one]).await;
}

#[tokio::test]
async fn a_connection_made_to_join_goes_when_it_is_idle() {
    let env = real();
    let [one, two] = cluster(&env, |config| {
        config.ping_every_ms = 10;
        config.ping_timeout_ms = 200;
    })
    .await;
    two.register(Route::Echo, Arc::new(Echo::default()));
    one.call_address(two.local_address(), Route::Echo, Bytes::new(), SOON).await.unwrap();
    assert_eq!((one.stats().connections, two.stats().connections), (1, 1));
    eventually(&env, "it is closed", || one.stats().connections + two.stats().connections == 0).await;
    // One by node id stays, kept up by its pulse.
    one.call(NodeId(2), Route::Echo, Bytes::new(), SOON).await.unwrap();
    env.sleep(Duration::from_millis(1000)).await;
    assert_eq!((one.stats().connections, two.stats().connections), (1, 1));
    stop([one, two]).await;
}
