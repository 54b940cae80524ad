//! What tells a log's own bytes from those of a client.
//!
//! After a loss of power the reader looks for records behind a bad one, among bytes that may be rows. Checksums alone would let
//! anybody write rows that read like records. Those of a log file begin with a number that was drawn for it, and that stands
//! nowhere but in its header.

use std::fmt;
use std::path::Path;

use crc32fast::Hasher;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// What all salts of one life of a log are made from.
#[derive(Clone, Copy)]
pub(crate) struct Secret(pub(crate) u128);

impl Secret {
    /// The salt of the file of that name. No life writes two files of one name that hold records.
    pub(super) fn salt(self, path: &Path) -> Salt {
        let mut bytes = self.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(path.as_os_str().as_encoded_bytes());
        Salt(xxh3_128(&bytes).to_le_bytes())
    }
}

/// The salt of a log file. Half of it goes into the checksum of a frame's header, half into that of the payload: who guesses must
/// guess both.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Salt([u8; 16]);

impl Salt {
    /// The checksum of a frame's header.
    pub(crate) fn header_crc(&self, header: &[u8]) -> u32 {
        crc(&self.0[..8], header)
    }

    /// The checksum of a frame's payload.
    pub(crate) fn payload_crc(&self, payload: &[u8]) -> u32 {
        crc(&self.0[8..], payload)
    }
}

/// Says nothing: what is printed may be shown.
impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt")
    }
}

fn crc(salt: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(salt);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_every_life_has_its_own() {
        let salt = |secret, path: &str| Secret(secret).salt(Path::new(path));
        assert_eq!(salt(1, "p/wal-1"), salt(1, "p/wal-1"));
        for other in [salt(2, "p/wal-1"), salt(1, "p/wal-2"), salt(1, "q/wal-1")] {
            assert_ne!(salt(1, "p/wal-1"), other);
        }
        assert_eq!(format!("{:?}", salt(1, "p/wal-1")), "Salt");
    }

    #[test]
    fn both_halves_count() {
        let salt = Secret(7).salt(Path::new("wal"));
        assert_ne!(salt.header_crc(b"bytes"), salt.payload_crc(b"bytes"));
        assert_ne!(salt.header_crc(b"bytes"), crc32fast::hash(b"bytes"));
        assert_ne!(salt.payload_crc(b""), crc32fast::hash(b""));
    }
}
