//! The frame: the unit that crosses a connection. Pure.
//!
//! ```text
//! length u32 | kind u8 | tag u8 | id u64 | crc u32 | crc u32 | payload        (little endian)
//!    `- of the payload                        |         `- of the 18 bytes before
//!                                             `- of the payload
//! ```
//! The header has a checksum of its own: a wrong length must be noticed before so many bytes are waited for.
//!
//! The tag is the route of a `Cast`, `Call` or `Open`, and the outcome of a `Reply` or `End`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use shoal_kernel::{Error, ErrorCode};

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 22;
/// Bytes of the header that its checksum covers.
const COVERED_BYTES: usize = 18;
/// Payloads up to this size are copied out of the receive buffer, so that a small message that somebody keeps does not keep
/// the whole buffer with it.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// Tag of a `Reply` or `End` whose payload is the result.
pub(super) const OUTCOME_OK: u8 = 0;
/// Tag of a `Reply` or `End` whose payload is an encoded [`Error`].
pub(super) const OUTCOME_ERROR: u8 = 1;

/// What a frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A message without an answer.
    Cast = 1,
    /// A message that wants one `Reply` with its id.
    Call = 2,
    /// The answer to a call.
    Reply = 3,
    /// Asks for a stream: credit in bytes (u32), then the header.
    Open = 4,
    /// One item of a stream.
    Item = 5,
    /// The consumer lets the producer send so many more bytes (u32).
    Credit = 6,
    /// The producer has finished or failed.
    End = 7,
    /// The consumer wants no more.
    Cancel = 8,
    /// Are you there?
    Ping = 9,
    /// Yes.
    Pong = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Cast,
            2 => Self::Call,
            3 => Self::Reply,
            4 => Self::Open,
            5 => Self::Item,
            6 => Self::Credit,
            7 => Self::End,
            8 => Self::Cancel,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) tag: u8,
    pub(super) id: u64,
    pub(super) payload: Bytes,
}

impl Frame {
    pub(super) fn new(kind: Kind, tag: u8, id: u64, payload: Bytes) -> Self {
        Self { kind, tag, id, payload }
    }

    /// A frame whose payload is one number.
    pub(super) fn number(kind: Kind, id: u64, number: u32) -> Self {
        Self::new(kind, 0, id, Bytes::copy_from_slice(&number.to_le_bytes()))
    }

    /// A frame without payload.
    pub(super) fn bare(kind: Kind, id: u64) -> Self {
        Self::new(kind, 0, id, Bytes::new())
    }

    /// Bytes on the wire.
    pub(super) fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// Appends everything but the payload.
    pub(super) fn put_header(&self, out: &mut BytesMut) {
        // Senders check their payload against the frame limit, which fits in 32 bits (`TransportConfig::checked`).
        let length = self.payload.len() as u32;
        let start = out.len();
        out.put_u32_le(length);
        out.put_u8(self.kind as u8);
        out.put_u8(self.tag);
        out.put_u64_le(self.id);
        out.put_u32_le(crc32fast::hash(&self.payload));
        let header = crc32fast::hash(&out[start..]);
        out.put_u32_le(header);
    }

    /// The number that [`Frame::number`] put in.
    pub(super) fn as_number(&self) -> Result<u32, FrameError> {
        let mut payload = &self.payload[..];
        if payload.len() == 4 { Ok(payload.get_u32_le()) } else { Err(FrameError::Payload(self.kind)) }
    }
}

/// Why bytes are not a frame. Nothing after them can be trusted: the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {bytes} bytes is longer than frame_bytes_max ({max})")]
    TooLong { bytes: usize, max: usize },
    #[error("checksum mismatch: expected {expected:08x}, found {found:08x}")]
    Checksum { expected: u32, found: u32 },
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    #[error("malformed payload of a {0:?} frame")]
    Payload(Kind),
}

/// What stands at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// A frame; its bytes have been taken out.
    Frame(Frame),
    /// An incomplete frame that needs so many more bytes.
    Missing(usize),
}

/// Takes one frame off the buffer. A length beyond `frame_bytes_max` is refused before anything is allocated for it. The
/// checksum is looked at if `checks`.
pub(super) fn decode(buffer: &mut BytesMut, frame_bytes_max: usize, checks: bool) -> Result<Decoded, FrameError> {
    if buffer.len() < HEADER_BYTES {
        return Ok(Decoded::Missing(HEADER_BYTES - buffer.len()));
    }
    let mut header = &buffer[..HEADER_BYTES];
    let length = header.get_u32_le() as usize;
    let (kind, tag, id) = (header.get_u8(), header.get_u8(), header.get_u64_le());
    let (of_payload, of_header) = (header.get_u32_le(), header.get_u32_le());
    let check = |bytes: &[u8], expected: u32| {
        let found = crc32fast::hash(bytes);
        if checks && expected != found { Err(FrameError::Checksum { expected, found }) } else { Ok(()) }
    };
    check(&buffer[..COVERED_BYTES], of_header)?;
    let wire_bytes = HEADER_BYTES + length;
    if wire_bytes > frame_bytes_max {
        return Err(FrameError::TooLong { bytes: wire_bytes, max: frame_bytes_max });
    }
    if buffer.len() < wire_bytes {
        return Ok(Decoded::Missing(wire_bytes - buffer.len()));
    }
    check(&buffer[HEADER_BYTES..wire_bytes], of_payload)?;
    let kind = Kind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
    let payload = if length <= COPIED_BYTES_MAX {
        let payload = Bytes::copy_from_slice(&buffer[HEADER_BYTES..wire_bytes]);
        buffer.advance(wire_bytes);
        payload
    } else {
        let mut whole = buffer.split_to(wire_bytes);
        whole.advance(HEADER_BYTES);
        whole.freeze()
    };
    Ok(Decoded::Frame(Frame { kind, tag, id, payload }))
}

/// The largest payload that fits into a frame.
pub(super) fn payload_bytes_max(frame_bytes_max: usize) -> usize {
    frame_bytes_max.saturating_sub(HEADER_BYTES)
}

/// A payload is larger than a frame may be; nothing was sent.
pub(super) fn too_large(what: &str, bytes: usize, frame_bytes_max: usize) -> Error {
    Error::new(
        ErrorCode::LimitExceeded,
        format!("{what} of {bytes} bytes does not fit into one frame (frame_bytes_max = {frame_bytes_max})"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 20;

    fn wire(frame: &Frame) -> BytesMut {
        let mut out = BytesMut::new();
        frame.put_header(&mut out);
        out.put_slice(&frame.payload);
        assert_eq!(out.len(), frame.wire_bytes());
        out
    }

    proptest! {
        #[test]
        fn comes_back_however_it_is_cut(kind in 1u8..=10, tag: u8, id: u64, payload in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..320) {
            let frame = Frame::new(Kind::from_byte(kind).unwrap(), tag, id, payload.into());
            let bytes = wire(&frame);
            let cut = cut.min(bytes.len() - 1);
            let mut buffer = BytesMut::from(&bytes[..cut]);
            let Decoded::Missing(missing) = decode(&mut buffer, MAX, true).unwrap() else { panic!("decoded {cut} bytes") };
            prop_assert!(missing > 0 && cut + missing <= bytes.len());
            buffer.extend_from_slice(&bytes[cut..]);
            prop_assert_eq!(decode(&mut buffer, MAX, true), Ok(Decoded::Frame(frame)));
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_flipped_bit_is_seen(payload in prop::collection::vec(any::<u8>(), 0..64), place: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = wire(&Frame::new(Kind::Item, 0, 7, payload.into()));
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            // Nor does the decoder wait for what a wrong length promises.
            prop_assert!(decode(&mut bytes, MAX, true).is_err());
        }
    }

    #[test]
    fn large_payloads_come_back_too() {
        let frame = Frame::new(Kind::Reply, OUTCOME_OK, 3, Bytes::from(vec![9; 3 * COPIED_BYTES_MAX]));
        let mut bytes = wire(&frame);
        bytes.extend_from_slice(&wire(&Frame::bare(Kind::Ping, 1)));
        assert_eq!(decode(&mut bytes, MAX, true), Ok(Decoded::Frame(frame)));
        assert_eq!(decode(&mut bytes, MAX, true), Ok(Decoded::Frame(Frame::bare(Kind::Ping, 1))));
    }

    #[test]
    fn lengths_are_judged_by_the_header_alone() {
        let long = wire(&Frame::new(Kind::Item, 0, 1, Bytes::from(vec![0; 100])));
        let mut header = BytesMut::from(&long[..HEADER_BYTES]);
        assert_eq!(decode(&mut header, 64, true), Err(FrameError::TooLong { bytes: HEADER_BYTES + 100, max: 64 }));
    }
}
