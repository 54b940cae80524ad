//! Who a member is, and which of its lives.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_kernel::env::Disk;
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Result, wire};

/// Name of the file that holds the last generation.
pub const GENERATION_FILE: &str = "generation";

/// Set in the port of an address of version 6, so that none is taken for one of version 4.
const V6: u32 = 1 << 16;

/// A life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub node: NodeId,
    /// Where it receives datagrams.
    pub address: SocketAddr,
    /// Which of its lives; goes up with every start and every return.
    pub generation: u64,
}

impl Identity {
    /// Whoever is at that address.
    pub(super) fn somebody_at(address: SocketAddr) -> Self {
        Self { node: NodeId(0), address, generation: 0 }
    }
}

impl foca::Identity for Identity {
    // foca compares it with that of every member, one after the other: two numbers do it in a third of the time.
    type Addr = (u128, u32);

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> (u128, u32) {
        match self.address {
            SocketAddr::V4(address) => (u128::from(address.ip().to_bits()), u32::from(address.port())),
            SocketAddr::V6(address) => (address.ip().to_bits(), u32::from(address.port()) | V6),
        }
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.generation, self.node) > (adversary.generation, adversary.node)
    }
}

/// The last generation, if there was one.
///
/// # Errors
/// [`ErrorCode::Corruption`] if the file is damaged; else as the disk reports.
pub fn read_generation(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<u64>> {
    let path = dir.join(GENERATION_FILE);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let read = wire::unseal(&disk.read(&path)?);
    read.map(Some).map_err(|error| Error::from(error).in_file(GENERATION_FILE, Some(0)))
}

/// Takes a generation above all that this node had before, and stores it.
///
/// It starts from the wall clock, so that a new node also beats a former one at the same address. The clock alone would not
/// do: it may have been set back.
///
/// # Errors
/// The file cannot be read or written.
pub(super) async fn next_generation(env: &Env, dir: &Path) -> Result<u64> {
    let (disk, made) = (env.disk(), dir.to_path_buf());
    let read = env
        .blocking(move || {
            disk.create_dir_all(&made)?;
            read_generation(&disk, &made)
        })
        .await?;
    let last = match read {
        Ok(last) => last.unwrap_or(0),
        Err(error) if error.code() != ErrorCode::Corruption => return Err(error),
        Err(error) => {
            // Not worth refusing to start: peers that remember a greater one make this node renew until it wins.
            tracing::warn!(%error, "the stored generation is damaged; starting from the clock");
            0
        }
    };
    let generation = last.saturating_add(1).max(env.wall_micros() / 1_000_000);
    store_generation(env, dir, generation).await?;
    Ok(generation)
}

/// Stores a generation before anybody hears of it.
///
/// # Errors
/// The file cannot be written.
pub(super) async fn store_generation(env: &Env, dir: &Path, generation: u64) -> Result<()> {
    let (disk, path, bytes) = (env.disk(), dir.join(GENERATION_FILE), wire::seal(&generation)?);
    env.blocking(move || disk.replace(&path, &bytes)).await??;
    Ok(())
}
