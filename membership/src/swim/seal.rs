//! Datagrams that only members can make: `version (1) | cluster (8, LE) | body | HMAC-SHA256 of all before (32)`.
//!
//! Source: RFC 2104. A datagram that is recorded and sent again later says nothing new: generations and incarnations only go up.

use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The version of the format that this build speaks.
const VERSION: u8 = 2;
const TAG_BYTES: usize = 32;

/// Bytes that every datagram has around what [`super::protocol::Core`] makes.
pub const SEAL_BYTES: usize = 1 + 8 + TAG_BYTES;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Not made with the secret, or damaged on the way.
    Unauthentic,
    /// Of another cluster.
    Stranger,
}

/// Closes and opens datagrams.
pub(super) struct Seal {
    key: [u8; 32],
    cluster: AtomicU64,
}

impl Seal {
    pub(super) fn new(secret: &str, cluster_id: u64) -> Self {
        // Hashed under a name of its own, so that the secret can serve other protocols, too.
        let mut hash = Sha256::new();
        hash.update(b"shoal swim datagram key");
        hash.update(secret.as_bytes());
        Self { key: hash.finalize().into(), cluster: AtomicU64::new(cluster_id) }
    }

    pub(super) fn belong_to(&self, cluster_id: u64) {
        self.cluster.store(cluster_id, Ordering::Relaxed);
    }

    fn mac(&self, bytes: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(bytes);
        Some(mac)
    }

    pub(super) fn close(&self, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEAL_BYTES + body.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.cluster.load(Ordering::Relaxed).to_le_bytes());
        bytes.extend_from_slice(body);
        // HMAC takes keys of any length; if it ever did not, an unsigned datagram is dropped by its receiver.
        if let Some(mac) = self.mac(&bytes) {
            bytes.extend_from_slice(&mac.finalize().into_bytes());
        }
        bytes
    }

    pub(super) fn open<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], Broken> {
        let (signed, tag) = bytes.split_last_chunk::<TAG_BYTES>().ok_or(Broken::Unauthentic)?;
        let mac = self.mac(signed).ok_or(Broken::Unauthentic)?;
        // Compares in constant time.
        mac.verify_slice(tag).map_err(|_| Broken::Unauthentic)?;
        let (version, rest) = signed.split_first_chunk::<1>().ok_or(Broken::Unauthentic)?;
        let (cluster, body) = rest.split_first_chunk::<8>().ok_or(Broken::Unauthentic)?;
        let (theirs, ours) = (u64::from_le_bytes(*cluster), self.cluster.load(Ordering::Relaxed));
        // Zero is a node that has not joined yet: it must be able to ask.
        if version != &[VERSION] || (theirs != 0 && ours != 0 && theirs != ours) {
            return Err(Broken::Stranger);
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_are_heard() {
        let (ours, same, other_secret, other_cluster) =
            (Seal::new("a", 7), Seal::new("a", 0), Seal::new("b", 7), Seal::new("a", 8));
        let datagram = ours.close(b"ping");
        assert_eq!(datagram.len(), 4 + SEAL_BYTES);
        assert_eq!(ours.open(&datagram), Ok(&b"ping"[..]));
        assert_eq!(same.open(&datagram), Ok(&b"ping"[..]));
        assert_eq!(ours.open(&same.close(b"announce")), Ok(&b"announce"[..]));
        assert_eq!(other_secret.open(&datagram), Err(Broken::Unauthentic));
        assert_eq!(other_cluster.open(&datagram), Err(Broken::Stranger));
        for at in 0..datagram.len() {
            let mut damaged = datagram.clone();
            damaged[at] ^= 1;
            assert_eq!(ours.open(&damaged), Err(Broken::Unauthentic), "byte {at}");
            assert_eq!(ours.open(&datagram[..at]), Err(Broken::Unauthentic), "cut at {at}");
        }
    }
}
