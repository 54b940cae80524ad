//! Frames that announce more bytes than a session takes, refused at their header: the parser behind would first collect
//! what was announced.

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_ws::ProtocolError;
use bytes::Bytes;
use futures::{Stream, StreamExt};

/// Bytes of a client's frame header, at most: two, a length of eight, a mask of four.
const HEADER_BYTES_MAX: usize = 14;

/// Follows a client's bytes from frame to frame.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes of the frame's payload that are still to come.
    left: u64,
}

impl Frames {
    /// Whether all frames that begin in these bytes announce at most `bytes_max`.
    fn fit(&mut self, mut bytes: &[u8], bytes_max: u64) -> bool {
        while !bytes.is_empty() {
            let inside = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.left -= inside as u64;
            bytes = &bytes[inside..];
            let Some((byte, rest)) = bytes.split_first() else { break };
            self.header.push(*byte);
            bytes = rest;
            if let Some(length) = payload_length(&self.header) {
                if length > bytes_max {
                    return false;
                }
                self.left = length;
                self.header.clear();
            }
            debug_assert!(self.header.len() < HEADER_BYTES_MAX);
        }
        true
    }
}

/// The length that a header gives for its payload, once it is whole. RFC 6455, section 5.2.
fn payload_length(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let mask = if second & 0x80 != 0 { 4 } else { 0 };
    let (length_bytes, short) = match second & 0x7f {
        126 => (2, 0),
        127 => (8, 0),
        short => (0, u64::from(short)),
    };
    if header.len() < 2 + length_bytes + mask {
        return None;
    }
    let long = header.get(2..2 + length_bytes)?.iter().fold(0, |length, byte| (length << 8) | u64::from(*byte));
    Some(short + long)
}

/// A client's bytes, up to the first frame that announces more than `bytes_max`; then the error that says so.
pub(super) fn limited(mut payload: Payload, bytes_max: usize) -> Payload {
    let mut frames = Frames::default();
    let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let mut over = false;
    let checked = futures::stream::poll_fn(move |context| {
        if over {
            return std::task::Poll::Ready(None);
        }
        payload.poll_next_unpin(context).map(|next| {
            next.map(|chunk| {
                let chunk: Bytes = chunk?;
                over = !frames.fit(&chunk, bytes_max);
                if over { Err(PayloadError::Overflow) } else { Ok(chunk) }
            })
        })
    });
    let checked: std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, PayloadError>>>> = Box::pin(checked);
    Payload::Stream { payload: checked }
}

/// Whether a session's messages ended because one was too large, at its header or later.
pub(super) fn is_too_large(error: &ProtocolError) -> bool {
    match error {
        ProtocolError::Overflow => true,
        ProtocolError::Io(error) => {
            let source = error.get_ref().and_then(|source| source.downcast_ref::<PayloadError>());
            matches!(source, Some(PayloadError::Overflow))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u64) -> Vec<u8> {
        let mut bytes = vec![0x82];
        match length {
            0..126 => bytes.push(0x80 | length as u8),
            126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&length.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&[1, 2, 3, 4]);
        bytes
    }

    #[test]
    fn lengths_are_known_from_the_header_however_the_bytes_arrive() {
        let mut bytes = Vec::new();
        for length in [0, 5, 125, 126, 1_000, 65_536, 70_000] {
            bytes.extend(frame(length));
            bytes.extend(vec![0xff; length as usize]);
        }
        for step in [1, 3, 1_000, bytes.len()] {
            let mut frames = Frames::default();
            assert!(bytes.chunks(step).all(|chunk| frames.fit(chunk, 70_000)));
            assert!(!frames.fit(&frame(70_001), 70_000));
        }
        assert!(!Frames::default().fit(&frame(1 << 62), 1 << 21));
    }
}
