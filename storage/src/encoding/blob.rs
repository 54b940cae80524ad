//! Opaque bytes, compressed with LZ4 (block format) where that pays.

use std::borrow::Cow;

use shoal_kernel::{Error, ErrorCode, Result};

use super::{Effort, Input, malformed};

const RAW: u8 = 0;
const LZ4: u8 = 1;

/// Below this, a compressed form saves nothing worth its decoding.
const COMPRESS_BYTES_MIN: usize = 512;
/// What one byte of LZ4 can at most stand for; a greater claim is a lie that would cost memory.
const LZ4_RATIO_MAX: usize = 255;

pub(super) fn write(bytes: &[u8], effort: Effort, out: &mut Vec<u8>) -> Result<()> {
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len()).map_err(|_| Error::new(ErrorCode::LimitExceeded, "a page of more than 4 GiB"))
    };
    let raw_len = length(bytes)?;
    if effort == Effort::Full && bytes.len() >= COMPRESS_BYTES_MIN {
        let compressed = lz4_flex::block::compress(bytes);
        if compressed.len() < bytes.len() / 8 * 7 {
            out.push(LZ4);
            out.extend_from_slice(&raw_len.to_le_bytes());
            out.extend_from_slice(&length(&compressed)?.to_le_bytes());
            out.extend_from_slice(&compressed);
            return Ok(());
        }
    }
    out.push(RAW);
    out.extend_from_slice(&raw_len.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

pub(super) fn read<'a>(input: &mut Input<'a>) -> Result<Cow<'a, [u8]>> {
    match input.u8()? {
        RAW => {
            let len = input.u32()? as usize;
            Ok(Cow::Borrowed(input.take(len)?))
        }
        LZ4 => {
            let (raw_len, len) = (input.u32()? as usize, input.u32()? as usize);
            let compressed = input.take(len)?;
            if raw_len > (len + 1).saturating_mul(LZ4_RATIO_MAX) {
                return Err(malformed("impossible compression"));
            }
            let bytes = lz4_flex::block::decompress(compressed, raw_len).map_err(malformed)?;
            if bytes.len() != raw_len {
                return Err(malformed("wrong length after decompression"));
            }
            Ok(Cow::Owned(bytes))
        }
        other => Err(malformed(format_args!("unknown compression {other}"))),
    }
}
