//! foca's datagrams, read before foca reads them, and made without it: `header | count (2, BE) | members | notices`.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, PostcardCodec};

use super::core::PACKET_BYTES_MAX;
use super::identity::Identity;

/// What a datagram says.
pub(super) struct Heard<'a> {
    pub(super) header: Header<Identity>,
    pub(super) updates: Vec<Member<Identity>>,
    /// The header's bytes.
    head: &'a [u8],
    /// What follows the members.
    tail: &'a [u8],
}

impl<'a> Heard<'a> {
    /// None of what foca would refuse.
    pub(super) fn read(body: &'a [u8]) -> Option<Self> {
        if body.len() > PACKET_BYTES_MAX.get() {
            return None;
        }
        let mut rest = body;
        let header = PostcardCodec.decode_header(&mut rest).ok()?;
        let head = &body[..body.len() - rest.len()];
        if rest.len() == 1 || (header.message == Message::Announce && !rest.is_empty()) {
            return None;
        }
        let mut updates = Vec::new();
        if !rest.is_empty() && header.message != Message::Broadcast {
            for _ in 0..rest.get_u16() {
                updates.push(PostcardCodec.decode_member(&mut rest).ok()?);
            }
        }
        Some(Self { header, updates, head, tail: rest })
    }

    /// Whether foca takes it as addressed to this node, and from another.
    pub(super) fn is_for(&self, me: &Identity) -> bool {
        let Header { src, dst, message, .. } = &self.header;
        let addressed = dst == me || (*message == Message::Announce && dst.address == me.address);
        addressed && src.address != me.address
    }

    /// The same with other updates; there were some.
    pub(super) fn with(&self, updates: &[Member<Identity>]) -> Option<Vec<u8>> {
        let mut body = Vec::with_capacity(self.head.len() + 2 + self.tail.len());
        body.extend_from_slice(self.head);
        body.put_u16(u16::try_from(updates.len()).ok()?);
        for update in updates {
            PostcardCodec.encode_member(update, &mut body).ok()?;
        }
        body.extend_from_slice(self.tail);
        Some(body)
    }
}

/// A datagram that says something about members, and nothing else.
pub(super) struct Parcel {
    body: Vec<u8>,
    count_at: usize,
    count: u16,
}

impl Parcel {
    /// An empty one. What it is comes before what foca reads.
    pub(super) fn new(kind: &[u8], src: Identity, dst: Identity) -> Option<Self> {
        // foca keeps a node's own incarnation to itself; too low a one is ignored.
        let header = Header { src, src_incarnation: 0, dst, message: Message::<Identity>::Gossip };
        let mut body = Vec::with_capacity(1 + PACKET_BYTES_MAX.get());
        body.extend_from_slice(kind);
        PostcardCodec.encode_header(&header, &mut body).ok()?;
        let count_at = body.len();
        body.put_u16(0);
        Some(Self { body, count_at, count: 0 })
    }

    /// Adds a member, if there is room.
    pub(super) fn add(&mut self, member: &Member<Identity>) -> bool {
        let length = self.body.len();
        let fits = PostcardCodec.encode_member(member, &mut self.body).is_ok()
            && self.body.len() <= 1 + PACKET_BYTES_MAX.get();
        if fits {
            self.count += 1;
        } else {
            self.body.truncate(length);
        }
        fits
    }

    /// The datagram.
    pub(super) fn close(mut self) -> Vec<u8> {
        self.body[self.count_at..self.count_at + 2].copy_from_slice(&self.count.to_be_bytes());
        self.body
    }
}
