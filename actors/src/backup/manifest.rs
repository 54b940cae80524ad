//! The manifest of a backup: JSON for people, with a checksum. Without it there is no backup.

use serde::{Deserialize, Serialize};
use shoal_catalog::Table;
use shoal_kernel::{Error, ErrorCode, KeyRange, PartitionId, Result};
use xxhash_rust::xxh3::xxh3_128;

/// The version of the format that this build writes, and the only one it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Bytes of a manifest.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// Stands before the body.
const BODY: &str = ",\"backup\":";

/// A backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Its name; greater ones are newer.
    pub(crate) id: String,
    /// When it was begun, in microseconds since 1970. It holds all that was acknowledged before; of what came while it was made,
    /// each partition has what it had when its turn came.
    pub(crate) begun_micros: u64,
    /// Which cluster made it.
    pub(crate) cluster_id: u64,
    pub(crate) tables: Vec<StoredTable>,
}

/// A table of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredTable {
    /// As the catalog had it.
    pub(crate) definition: Table,
    pub(crate) partitions: Vec<StoredPartition>,
}

/// A partition of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredPartition {
    pub(crate) id: PartitionId,
    /// Its keys, if the table's are spread by ranges.
    pub(crate) range: Option<KeyRange>,
    pub(crate) rows: u64,
    /// Of all objects that it needs.
    pub(crate) bytes: u64,
    /// The object that says which rows of which files it has.
    pub(crate) outline: String,
}

impl Manifest {
    /// As it is stored.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let body = serde_json::to_string(self).map_err(|error| Error::internal(error.to_string()))?;
        let checksum = xxh3_128(body.as_bytes());
        Ok(format!("{{\"format\":{FORMAT_VERSION},\"checksum\":\"{checksum:032x}\"{BODY}{body}}}\n").into_bytes())
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if it is not what was stored; [`ErrorCode::IncompatibleVersion`] if another build made it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let corrupt = |why: &str| Error::new(ErrorCode::Corruption, format!("the manifest of the backup {why}"));
        let text = std::str::from_utf8(bytes).map_err(|_| corrupt("is no text"))?;
        let (head, rest) = text.split_once(BODY).ok_or_else(|| corrupt("is cut short or is none"))?;
        let head: Head = serde_json::from_str(&format!("{head}}}")).map_err(|_| corrupt("has no head"))?;
        if head.format != FORMAT_VERSION {
            let message =
                format!("the manifest of the backup has format {}, this build reads {FORMAT_VERSION}", head.format);
            return Err(Error::new(ErrorCode::IncompatibleVersion, message));
        }
        let body = rest.trim_end().strip_suffix('}').ok_or_else(|| corrupt("is cut short"))?;
        if format!("{:032x}", xxh3_128(body.as_bytes())) != head.checksum {
            return Err(corrupt("has not the checksum that it names"));
        }
        serde_json::from_str(body).map_err(|error| corrupt(&format!("makes no sense: {error}")))
    }
}

#[derive(Deserialize)]
struct Head {
    format: u32,
    checksum: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen() {
        let manifest = Manifest { id: "7".into(), begun_micros: 5, cluster_id: u64::MAX, tables: Vec::new() };
        let bytes = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
        for bit in 0..(bytes.len() - 1) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // White space in the head is nothing that the checksum covers, and changes nothing.
            let read = Manifest::parse(&damaged);
            assert!(read.as_ref().map_or(true, |read| *read == manifest), "bit {bit}: {read:?}");
        }
        for length in 0..bytes.len() - 2 {
            assert_eq!(Manifest::parse(&bytes[..length]).unwrap_err().code(), ErrorCode::Corruption, "{length}");
        }
        let newer = String::from_utf8(bytes).unwrap().replace("\"format\":1", "\"format\":2");
        assert_eq!(Manifest::parse(newer.as_bytes()).unwrap_err().code(), ErrorCode::IncompatibleVersion);
    }
}
