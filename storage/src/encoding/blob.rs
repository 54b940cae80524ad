//! Opaque bytes: as they are, or compressed with LZ4 (block format) or Zstandard (one frame), whichever measures better.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;

use shoal_kernel::{Error, ErrorCode, Result};
use zstd::bulk::Decompressor;

use super::{Effort, Input, malformed};

const RAW: u8 = 0;
const LZ4: u8 = 1;
const ZSTD: u8 = 2;

/// Below this, a compressed form saves nothing worth its decoding.
const COMPRESS_BYTES_MIN: usize = 512;
/// Beyond it the gain of Zstandard flattens and its cost does not.
const ZSTD_LEVEL: i32 = 3;
/// What one byte of LZ4 can at most stand for; a greater claim is a lie that would cost memory.
const LZ4_RATIO_MAX: usize = 255;
/// The same of Zstandard: a block of four bytes repeats one byte 128 KiB times.
const ZSTD_RATIO_MAX: usize = 32 << 10;
/// The most that a page's bytes may come to.
const RAW_BYTES_MAX: usize = 1 << 31;

pub(super) fn write(bytes: &[u8], effort: Effort, out: &mut Vec<u8>) -> Result<()> {
    let length = |bytes: &[u8]| match u32::try_from(bytes.len()) {
        Ok(length) if bytes.len() <= RAW_BYTES_MAX => Ok(length),
        _ => Err(Error::new(ErrorCode::LimitExceeded, "a page of more than 2 GiB")),
    };
    let raw_len = length(bytes)?;
    let best = match effort == Effort::Full && bytes.len() >= COMPRESS_BYTES_MIN {
        true => compress(bytes)?,
        false => None,
    };
    match best {
        Some((tag, compressed)) => {
            out.push(tag);
            out.extend_from_slice(&raw_len.to_le_bytes());
            out.extend_from_slice(&length(&compressed)?.to_le_bytes());
            out.extend_from_slice(&compressed);
        }
        None => {
            out.push(RAW);
            out.extend_from_slice(&raw_len.to_le_bytes());
            out.extend_from_slice(bytes);
        }
    }
    Ok(())
}

/// The form that is worth its decoding: LZ4 saves an eighth, Zstandard an eighth more than that.
fn compress(bytes: &[u8]) -> Result<Option<(u8, Vec<u8>)>> {
    let mut best = None;
    let mut bound = bytes.len() / 8 * 7;
    let lz4 = lz4_flex::block::compress(bytes);
    if lz4.len() < bound {
        bound = lz4.len() / 8 * 7;
        best = Some((LZ4, lz4));
    }
    let zstd = zstd::bulk::compress(bytes, ZSTD_LEVEL)?;
    if zstd.len() < bound {
        best = Some((ZSTD, zstd));
    }
    Ok(best)
}

pub(super) fn read<'a>(input: &mut Input<'a>) -> Result<Cow<'a, [u8]>> {
    let tag = input.u8()?;
    let raw_len = input.u32()? as usize;
    if raw_len > RAW_BYTES_MAX {
        return Err(malformed("impossible length"));
    }
    let bytes = match tag {
        RAW => return Ok(Cow::Borrowed(input.take(raw_len)?)),
        LZ4 => {
            let len = input.u32()? as usize;
            let compressed = input.take(len)?;
            if raw_len > (len + 1).saturating_mul(LZ4_RATIO_MAX) {
                return Err(malformed("impossible compression"));
            }
            lz4_flex::block::decompress(compressed, raw_len).map_err(malformed)?
        }
        ZSTD => {
            let len = input.u32()? as usize;
            let compressed = input.take(len)?;
            // The frame says its length itself: memory is taken only for what both agree on.
            if zstd::zstd_safe::get_frame_content_size(compressed).ok().flatten() != Some(raw_len as u64) {
                return Err(malformed("lengths before and in the compressed bytes differ"));
            }
            if raw_len > len.saturating_mul(ZSTD_RATIO_MAX) {
                return Err(malformed("impossible compression"));
            }
            decompress_zstd(compressed, raw_len).map_err(malformed)?
        }
        other => return Err(malformed(format_args!("unknown compression {other}"))),
    };
    match bytes.len() == raw_len {
        true => Ok(Cow::Owned(bytes)),
        false => Err(malformed("wrong length after decompression")),
    }
}

fn decompress_zstd(compressed: &[u8], raw_len: usize) -> io::Result<Vec<u8>> {
    thread_local! {
        // To make one costs as much as to decompress a small page.
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new()?),
        };
        decompressor.decompress(compressed, raw_len)
    })
}

/// How it is compressed.
pub(super) fn describe(input: &mut Input<'_>) -> Result<&'static str> {
    match input.u8()? {
        RAW => Ok("raw"),
        LZ4 => Ok("lz4"),
        ZSTD => Ok("zstd"),
        other => Err(malformed(format_args!("unknown compression {other}"))),
    }
}
