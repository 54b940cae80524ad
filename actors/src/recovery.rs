//! Bringing a catalog back that has lost most of its voters, on the disk of a node that is stopped.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use shoal_kernel::env::Disk;
use shoal_kernel::{Error, ErrorCode, NodeId, Result};
use shoal_membership::agreement;

pub use shoal_membership::agreement::Recovery;

use crate::node::identity;

/// Makes the node of a data directory the only voter on the catalog, and says which node that is. The lost ones must never start
/// again with what their disks hold.
///
/// # Errors
/// [`ErrorCode::Forbidden`] if the node runs; [`ErrorCode::InvalidRequest`] if there is none, or nothing to recover; else as the
/// disk reports.
pub fn recover_catalog(disk: &Arc<dyn Disk>, data_dir: &Path, lost: &BTreeSet<NodeId>) -> Result<(NodeId, Recovery)> {
    let nobody = || {
        let message = format!("{} is not the data directory of a node", data_dir.display());
        Error::new(ErrorCode::InvalidRequest, message).with_help("give what the node was started with as --data-dir")
    };
    let node = identity::read(disk, data_dir)?.ok_or_else(nobody)?;
    let _held = identity::lock(&**disk, data_dir)?;
    Ok((node, agreement::recover(disk, data_dir, node, lost)?))
}
