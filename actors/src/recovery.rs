//! Bringing a catalog back that has lost most of its voters, on the disk of a node that is stopped.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use shoal_kernel::env::Disk;
use shoal_kernel::{Error, ErrorCode, NodeId, Result};
use shoal_membership::agreement;

pub use shoal_membership::agreement::{Forgotten, LogEnd, Recovery};

use crate::node::identity;

/// Makes the node of a data directory the only voter on the catalog, and says which node that is. The lost ones must never start
/// again with what their disks hold. A dry run only says what would be done.
///
/// # Errors
/// [`ErrorCode::Forbidden`] if the node runs; [`ErrorCode::InvalidRequest`] if there is none, or nothing to recover; else as the
/// disk reports.
pub fn recover_catalog(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    lost: &BTreeSet<NodeId>,
    dry_run: bool,
) -> Result<(NodeId, Recovery)> {
    stopped(disk, data_dir, |node| agreement::recover(disk, data_dir, node, lost, dry_run))
}

/// Has the node of a data directory forget its catalog, to follow one that was recovered without it, and says which node that is.
///
/// # Errors
/// As [`recover_catalog`].
pub fn follow_catalog(disk: &Arc<dyn Disk>, data_dir: &Path) -> Result<(NodeId, Forgotten)> {
    stopped(disk, data_dir, |node| agreement::follow(disk, data_dir, node))
}

/// Works on the files of a node that does not run, and will not until the work is done.
fn stopped<T>(disk: &Arc<dyn Disk>, data_dir: &Path, work: impl FnOnce(NodeId) -> Result<T>) -> Result<(NodeId, T)> {
    let nobody = || {
        let message = format!("{} is not the data directory of a node", data_dir.display());
        Error::new(ErrorCode::InvalidRequest, message).with_help("give what the node was started with as --data-dir")
    };
    let node = identity::read(disk, data_dir)?.ok_or_else(nobody)?;
    let _held = identity::lock(&**disk, data_dir)?;
    Ok((node, work(node)?))
}
