//! The first words on a connection: who is there, of which cluster, and proof that both know its secret.
//!
//! ```text
//! dialler  -> hello   magic, version u16 | lane u8, node u32, expected node u32, cluster u64, nonce [32]
//! acceptor -> answer  magic, version u16, verdict u8 | node u32, cluster u64, nonce [32], mac [32]
//! dialler  -> proof   mac [32]
//! ```
//! All little endian. What stands before the bar never changes, so that any two versions can refuse each other by name. Who
//! is refused is told the newest version of the other side, and dials again in that one if it speaks it: so builds of
//! which the windows of versions overlap talk in the newest that both know, whoever dials. A mac is HMAC-SHA256 with the secret over a label of the role and everything said before: neither side can be made to
//! answer for the other, and an old answer fits no new nonce. Frames afterwards are not signed; privacy and integrity
//! against an attacker on the path are TLS's part, below this one.

use bytes::{Buf, BufMut};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shoal_kernel::env::BoxStream;
use shoal_kernel::{Error, ErrorCode, NodeId, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The versions of the protocol between nodes that a build speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) oldest: u16,
    pub(super) newest: u16,
}

/// Those of this build. A change that an older build would misread makes a newer one, which stands beside the older one for a
/// release at least: nodes of both are in one cluster while it is upgraded.
pub(super) const VERSIONS: Versions = Versions { oldest: 11, newest: 13 };

/// From here on, tasks may read a whole fragment each (`planner::Edge::Broadcast`).
pub(super) const BROADCASTS: u16 = 12;

/// From here on, segments of format 5 can be read.
pub(super) const SEGMENTS_5: u16 = 13;

impl Versions {
    fn contains(self, version: u16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    fn lacks(self, theirs: u16) -> Error {
        let Self { oldest, newest } = self;
        let ours =
            if oldest == newest { format!("version {newest}") } else { format!("versions {oldest} to {newest}") };
        Error::new(
            ErrorCode::IncompatibleVersion,
            format!("the peer speaks version {theirs} of the protocol between nodes, this build speaks {ours}"),
        )
    }
}

pub(super) const MAGIC: [u8; 8] = *b"SHOAL\0n2";
const PREFIX_BYTES: usize = 10;
const HELLO_BYTES: usize = 1 + 4 + 4 + 8 + 32;
const ANSWER_BYTES: usize = 4 + 8 + 32;
const MAC_BYTES: usize = 32;

const VERDICT_WELCOME: u8 = 0;
const VERDICT_VERSION: u8 = 1;
const VERDICT_BUSY: u8 = 2;

/// What a connection is for. Bulk has its own, so that it never delays control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Lane {
    /// Casts and calls.
    Control = 1,
    /// Streams.
    Bulk = 2,
}

/// What a node says of itself.
#[derive(Clone, Copy)]
pub(super) struct Identity<'a> {
    pub(super) node: NodeId,
    /// 0: not known yet.
    pub(super) cluster: u64,
    pub(super) secret: &'a str,
    /// Fresh and random for every handshake.
    pub(super) nonce: [u8; 32],
    pub(super) versions: Versions,
}

/// What came of a dialled connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dialled {
    /// This node answered.
    Welcome(NodeId),
    /// The peer does not speak the version that it was dialled in, but this one, which this build speaks, too.
    Speaks(u16),
}

/// What a dialler says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) lane: Lane,
    pub(super) node: NodeId,
    /// Whom the dialler wants to reach; 0 for whoever is there.
    pub(super) expected: NodeId,
    /// The version that it has dialled in.
    pub(super) version: u16,
    cluster: u64,
}

fn mac(secret: &str, label: &[u8], said: &[u8]) -> Result<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
        .map_err(|_| Error::internal("the cluster secret cannot be used as a key"))?;
    mac.update(label);
    mac.update(said);
    Ok(mac)
}

fn wrong_secret() -> Error {
    Error::new(ErrorCode::Forbidden, "the peer does not know this cluster's secret")
        .with_help("give every node of a cluster the same secret")
}

fn same_cluster(ours: u64, theirs: u64) -> Result<()> {
    if ours != 0 && theirs != 0 && ours != theirs {
        return Err(Error::new(
            ErrorCode::Forbidden,
            format!("the peer belongs to another cluster ({theirs:016x}, this one is {ours:016x})"),
        ));
    }
    Ok(())
}

fn check_prefix(mut prefix: &[u8]) -> Result<u16> {
    if prefix[..MAGIC.len()] != MAGIC {
        return Err(Error::new(
            ErrorCode::InvalidRequest,
            "whoever is there does not speak the protocol between nodes",
        ));
    }
    prefix.advance(MAGIC.len());
    Ok(prefix.get_u16_le())
}

fn broken(error: std::io::Error) -> Error {
    Error::new(ErrorCode::NodeLost, format!("the connection broke during the handshake: {error}"))
}

/// The dialler's part, in one of the versions that it speaks.
///
/// # Errors
/// `Forbidden` (secret, cluster), `IncompatibleVersion`, `Overloaded`, `InvalidRequest` (not a node), `NodeLost` (the
/// connection broke, or another node lives there now).
pub(super) async fn dial(
    stream: &mut BoxStream,
    me: Identity<'_>,
    spoken: u16,
    lane: Lane,
    expected: NodeId,
) -> Result<Dialled> {
    let mut said = Vec::with_capacity(256);
    said.put_slice(&MAGIC);
    said.put_u16_le(spoken);
    said.put_u8(lane as u8);
    said.put_u32_le(me.node.0);
    said.put_u32_le(expected.0);
    said.put_u64_le(me.cluster);
    said.put_slice(&me.nonce);
    stream.write_all(&said).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;

    let mut prefix = [0; PREFIX_BYTES + 1];
    stream.read_exact(&mut prefix).await.map_err(broken)?;
    let version = check_prefix(&prefix)?;
    match prefix[PREFIX_BYTES] {
        VERDICT_WELCOME if version == spoken => {}
        VERDICT_BUSY => return Err(Error::new(ErrorCode::Overloaded, "the peer accepts no more connections")),
        VERDICT_VERSION if version < spoken && me.versions.contains(version) => return Ok(Dialled::Speaks(version)),
        _ => return Err(me.versions.lacks(version)),
    }
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer).await.map_err(broken)?;
    said.put_slice(&prefix);
    said.put_slice(&answer);
    let mut theirs = [0; MAC_BYTES];
    stream.read_exact(&mut theirs).await.map_err(broken)?;
    mac(me.secret, b"acceptor", &said)?.verify_slice(&theirs).map_err(|_| wrong_secret())?;

    let mut answer = &answer[..];
    let (node, cluster) = (NodeId(answer.get_u32_le()), answer.get_u64_le());
    same_cluster(me.cluster, cluster)?;
    if node == me.node {
        return Err(Error::new(
            ErrorCode::InvalidRequest,
            format!("that address is this node's own, or that of a second {node}"),
        ));
    }
    if expected != NodeId::default() && node != expected {
        return Err(Error::new(ErrorCode::NodeLost, format!("{node} answers at the address of {expected}")));
    }
    said.put_slice(&theirs);
    let proof = mac(me.secret, b"dialler", &said)?.finalize().into_bytes();
    stream.write_all(&proof).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    Ok(Dialled::Welcome(node))
}

/// The acceptor's part.
///
/// # Errors
/// As [`dial`]; the dialler has been told where it can do something about it.
pub(super) async fn accept(stream: &mut BoxStream, me: Identity<'_>, busy: bool) -> Result<Hello> {
    let mut said = vec![0; PREFIX_BYTES];
    stream.read_exact(&mut said).await.map_err(broken)?;
    let version = check_prefix(&said)?;
    let mut answer = Vec::with_capacity(128);
    answer.put_slice(&MAGIC);
    let is_spoken = me.versions.contains(version);
    answer.put_u16_le(if is_spoken { version } else { me.versions.newest });
    let refusal = if !is_spoken {
        Some((VERDICT_VERSION, me.versions.lacks(version)))
    } else if busy {
        Some((VERDICT_BUSY, Error::new(ErrorCode::Overloaded, "accepted_max connections are open")))
    } else {
        None
    };
    if let Some((verdict, error)) = refusal {
        answer.put_u8(verdict);
        stream.write_all(&answer).await.map_err(broken)?;
        stream.shutdown().await.map_err(broken)?;
        return Err(error);
    }
    let mut rest = [0; HELLO_BYTES];
    stream.read_exact(&mut rest).await.map_err(broken)?;
    said.put_slice(&rest);
    let mut rest = &rest[..];
    let lane = match rest.get_u8() {
        1 => Lane::Control,
        2 => Lane::Bulk,
        other => return Err(Error::new(ErrorCode::InvalidRequest, format!("unknown lane {other}"))),
    };
    let (node, expected, cluster) = (NodeId(rest.get_u32_le()), NodeId(rest.get_u32_le()), rest.get_u64_le());

    answer.put_u8(VERDICT_WELCOME);
    answer.put_u32_le(me.node.0);
    answer.put_u64_le(me.cluster);
    answer.put_slice(&me.nonce);
    said.put_slice(&answer);
    let ours = mac(me.secret, b"acceptor", &said)?.finalize().into_bytes();
    answer.put_slice(&ours);
    said.put_slice(&ours);
    stream.write_all(&answer).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;

    let mut proof = [0; MAC_BYTES];
    stream.read_exact(&mut proof).await.map_err(broken)?;
    mac(me.secret, b"dialler", &said)?.verify_slice(&proof).map_err(|_| wrong_secret())?;
    same_cluster(me.cluster, cluster)?;
    if node == NodeId::default() || node == me.node {
        return Err(Error::new(ErrorCode::InvalidRequest, format!("the peer calls itself {node}")));
    }
    Ok(Hello { lane, node, expected, version, cluster })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(node: u32, cluster: u64, secret: &str) -> Identity<'_> {
        Identity { node: NodeId(node), cluster, secret, nonce: [node as u8; 32], versions: VERSIONS }
    }

    async fn meet(
        dialler: Identity<'_>,
        expected: u32,
        acceptor: Identity<'_>,
        busy: bool,
    ) -> (Result<Dialled>, Result<Hello>) {
        let (left, right) = tokio::io::duplex(1024);
        let (mut left, mut right): (BoxStream, BoxStream) = (Box::new(left), Box::new(right));
        let newest = dialler.versions.newest;
        tokio::join!(async move { dial(&mut left, dialler, newest, Lane::Bulk, NodeId(expected)).await }, async move {
            accept(&mut right, acceptor, busy).await
        })
    }

    #[tokio::test]
    async fn friends_meet() {
        let (node, hello) = meet(me(1, 0, "s"), 2, me(2, 7, "s"), false).await;
        assert_eq!(node, Ok(Dialled::Welcome(NodeId(2))));
        assert_eq!(
            hello,
            Ok(Hello { lane: Lane::Bulk, node: NodeId(1), expected: NodeId(2), version: VERSIONS.newest, cluster: 0 })
        );
    }

    #[tokio::test]
    async fn strangers_part_with_a_reason() {
        for (dialler, expected, acceptor, busy, code) in [
            (me(1, 7, "s"), 2, me(2, 7, "other"), false, ErrorCode::Forbidden),
            (me(1, 7, "s"), 2, me(2, 8, "s"), false, ErrorCode::Forbidden),
            (me(1, 7, "s"), 3, me(2, 7, "s"), false, ErrorCode::NodeLost),
            (me(1, 7, "s"), 0, me(1, 7, "s"), false, ErrorCode::InvalidRequest),
            (me(1, 7, "s"), 0, me(2, 7, "s"), true, ErrorCode::Overloaded),
        ] {
            let (node, hello) = meet(dialler, expected, acceptor, busy).await;
            assert_eq!(node.unwrap_err().code(), code);
            assert!(hello.is_err());
        }
    }

    #[tokio::test]
    async fn builds_with_a_version_in_common_meet_in_the_newest_of_them() {
        let speaks = |node, oldest, newest| Identity { versions: Versions { oldest, newest }, ..me(node, 7, "s") };
        for (dialler, acceptor, first) in [
            ((3, 5), (4, 6), Ok(Dialled::Welcome(NodeId(2)))),
            ((4, 6), (3, 5), Ok(Dialled::Speaks(5))),
            ((3, 3), (3, 6), Ok(Dialled::Welcome(NodeId(2)))),
            ((3, 6), (3, 3), Ok(Dialled::Speaks(3))),
            ((3, 4), (5, 6), Err(ErrorCode::IncompatibleVersion)),
            ((5, 6), (3, 4), Err(ErrorCode::IncompatibleVersion)),
        ] {
            let (one, two) = (speaks(1, dialler.0, dialler.1), speaks(2, acceptor.0, acceptor.1));
            let (node, hello) = meet(one, 2, two, false).await;
            assert_eq!(node.as_ref().map_err(Error::code), first.as_ref().map_err(|code| *code));
            match node {
                Ok(Dialled::Speaks(common)) => {
                    assert_eq!(hello.unwrap_err().code(), ErrorCode::IncompatibleVersion);
                    let again = speaks(1, common, common);
                    assert_eq!(meet(again, 2, two, false).await.0, Ok(Dialled::Welcome(NodeId(2))));
                }
                Ok(Dialled::Welcome(_)) => assert!(hello.is_ok()),
                Err(error) => assert!(error.message().contains(&acceptor.1.to_string()), "{error}"),
            }
        }
    }

    #[tokio::test]
    async fn the_acceptor_does_not_take_a_proof_without_the_secret() {
        let (left, right) = tokio::io::duplex(1024);
        let (mut left, mut right): (BoxStream, BoxStream) = (Box::new(left), Box::new(right));
        let stranger = async move {
            let mut hello = Vec::from(MAGIC);
            hello.put_u16_le(VERSIONS.newest);
            hello.put_u8(1);
            hello.put_bytes(9, HELLO_BYTES - 1);
            left.write_all(&hello).await.unwrap();
            let mut answer = [0; PREFIX_BYTES + 1 + ANSWER_BYTES + MAC_BYTES];
            left.read_exact(&mut answer).await.unwrap();
            // The acceptor's own mac, sent back to it, must not do.
            left.write_all(&answer[answer.len() - MAC_BYTES..]).await.unwrap();
        };
        let (hello, ()) = tokio::join!(accept(&mut right, me(2, 0, "s"), false), stranger);
        assert_eq!(hello.unwrap_err().code(), ErrorCode::Forbidden);
    }
}
