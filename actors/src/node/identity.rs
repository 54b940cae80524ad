//! Who this node is: its number and its lock on the data directory.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_kernel::env::{Disk, DiskLock};
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Result, wire};

/// Version of the layout of a data directory; another one is refused by name.
const LAYOUT_VERSION: u32 = 1;

pub(crate) const LOCK_FILE: &str = "LOCK";
pub(crate) const NODE_FILE: &str = "NODE";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    layout: u32,
    node: NodeId,
}

/// The node's claim on its data directory, for as long as it runs.
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    _lock: Box<dyn DiskLock>,
}

impl Identity {
    /// Locks the directory, and reads the node's number or draws one.
    pub(crate) async fn claim(env: &Env, data_dir: &Path) -> Result<Self> {
        let (disk, dir, drawn) = (env.disk(), data_dir.to_owned(), draw(env));
        env.blocking(move || Self::open(disk, &dir, drawn)).await?
    }

    fn open(disk: Arc<dyn Disk>, dir: &Path, drawn: NodeId) -> Result<Self> {
        let at = |error: io::Error| Error::from(error).context(format_args!("data directory {}", dir.display()));
        disk.create_dir_all(dir).map_err(at)?;
        let lock = lock(&*disk, dir)?;
        let node = match read(&disk, dir)? {
            Some(node) => node,
            None => {
                let record = Record { layout: LAYOUT_VERSION, node: drawn };
                disk.replace(&dir.join(NODE_FILE), &wire::seal(&record)?).map_err(at)?;
                drawn
            }
        };
        Ok(Self { node, _lock: lock })
    }
}

/// Makes sure that no other process works in a data directory until the lock is dropped.
///
/// # Errors
/// [`ErrorCode::Forbidden`] if one does; else as the disk reports.
pub(crate) fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DiskLock>> {
    disk.lock(&dir.join(LOCK_FILE)).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Error::new(
            ErrorCode::Forbidden,
            format!("the data directory {} is in use by another process", dir.display()),
        )
        .with_help("stop that process, or give this one a data directory of its own (--data-dir)"),
        _ => Error::from(error).context(format_args!("data directory {}", dir.display())),
    })
}

/// The node's number, if it has been drawn.
///
/// # Errors
/// [`ErrorCode::Corruption`] if the file is damaged; [`ErrorCode::IncompatibleVersion`] if another build laid the directory
/// out; else as the disk reports.
pub(crate) fn read(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<NodeId>> {
    let path = dir.join(NODE_FILE);
    let at = |error: io::Error| Error::from(error).context(path.display());
    if !disk.exists(&path).map_err(at)? {
        return Ok(None);
    }
    let record: Record = wire::unseal(&disk.read(&path).map_err(at)?).map_err(|error| {
        Error::from(error).in_file(NODE_FILE, Some(0)).with_help(
            "nobody knows which node this is: remove the node from the cluster and start it with an empty data directory",
        )
    })?;
    match record.layout {
        LAYOUT_VERSION => Ok(Some(record.node)),
        other => Err(Error::new(
            ErrorCode::IncompatibleVersion,
            format!("{} has layout {other}, this build knows {LAYOUT_VERSION}", dir.display()),
        )),
    }
}

/// Zero is left out: it means "no node" in logs.
fn draw(env: &Env) -> NodeId {
    NodeId((env.random("node id") as u32).max(1))
}
