//! The codec of everything that is not Arrow: postcard, with a checksum where the bytes leave memory.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes do not decode as the expected type.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The checksum does not match the bytes.
    #[error("checksum mismatch: expected {expected:08x}, found {found:08x}")]
    Checksum {
        /// As written beside the bytes.
        expected: u32,
        /// As computed from them.
        found: u32,
    },
    /// Fewer bytes than even the checksum takes.
    #[error("message of {0} bytes is cut short")]
    Short(usize),
}

/// Encodes a value with postcard.
///
/// # Errors
/// The type cannot be encoded, such as a map of unknown length: a programming error, reported and not fatal.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, WireError> {
    postcard::to_stdvec(value).map_err(|error| WireError::Malformed(error.to_string()))
}

/// Decodes what [`encode`] made.
///
/// # Errors
/// The bytes are malformed.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    postcard::from_bytes(bytes).map_err(|error| WireError::Malformed(error.to_string()))
}

/// Encodes a value, followed by the CRC-32 of its bytes (4 bytes, little endian).
///
/// # Errors
/// As [`encode`].
pub fn seal<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = encode(value)?;
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    Ok(bytes)
}

/// Checks and decodes what [`seal`] made.
///
/// # Errors
/// The bytes are short, malformed, or not those that were sealed.
pub fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let Some((body, checksum)) = bytes.split_last_chunk::<4>() else {
        return Err(WireError::Short(bytes.len()));
    };
    let (expected, found) = (u32::from_le_bytes(*checksum), crc32fast::hash(body));
    if expected != found {
        return Err(WireError::Checksum { expected, found });
    }
    decode(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_seen() {
        let mut bytes = seal(&("replica", 7u64)).unwrap();
        assert_eq!(unseal::<(String, u64)>(&bytes).unwrap(), ("replica".to_owned(), 7));
        bytes[2] ^= 1;
        assert!(matches!(unseal::<(String, u64)>(&bytes), Err(WireError::Checksum { .. })));
        assert_eq!(unseal::<(String, u64)>(&bytes[..2]), Err(WireError::Short(2)));
    }
}
