//! Backups: segments of replicas as objects of a store elsewhere, and tables made of them again.
//!
//! ```text
//! <url>/segments/<hash>-<bytes>.seg    files of replicas, as they are; the name says what is in them
//! <url>/outlines/<hash>-<bytes>.chk    which rows of which files a partition has
//! <url>/backups/<time>-<number>.json   which tables and partitions there are: written last, so that a backup is whole or not seen
//! ```
//!
//! Nothing is ever changed that is there, so a later backup uploads what is new and names the rest; backups do not depend on each
//! other. `upload` and `fetch` run where the replica, or the work, is; `node/backup.rs` and `node/restore.rs` say who does what.

pub(crate) mod fetch;
pub(crate) mod manifest;
pub(crate) mod message;
mod object;
pub(crate) mod upload;

use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;
use shoal_kernel::{Error, ErrorCode, Result};
use shoal_planner::{BackupPlace, ObjectOptions};

pub(crate) use object::Objects;

/// Who opens stores of objects. Not part of [`shoal_kernel::Env`], whose crates know no HTTP; but as there, one that the
/// simulator makes up can stand in for it.
pub trait ObjectStores: fmt::Debug + Send + Sync {
    /// Opens the store that a URL names, with nothing asked of it yet; `Path` is where in it the URL points.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`]: no such kind of store, or the options make no sense.
    fn open(&self, url: &str, options: &ObjectOptions) -> Result<(Arc<dyn ObjectStore>, Path)>;
}

/// The setting that says which URLs may be used.
const ALLOWED: &str = "backup_urls";

/// Checks that a place may be used for backups, and opens it.
pub(crate) fn open(stores: Option<&dyn ObjectStores>, allowed: &[String], place: &BackupPlace) -> Result<Objects> {
    let url = place.url.trim_end_matches('/');
    let invalid = |why: &str| {
        let message = format!("'{url}' {why}");
        Err(Error::new(ErrorCode::InvalidRequest, message).with_help("give s3://bucket/path or file:///path"))
    };
    let Some((scheme, path)) = url.split_once("://") else { return invalid("is no URL") };
    // As they stand in the setting, and nothing that an operating system or server would read as something else.
    if path.split('/').any(|part| part == ".." || part == ".") || path.contains(['%', '?', '#', '\\', '@']) {
        return invalid("has parts that a URL of backups may not have: . .. % ? # @");
    }
    let covers = |prefix: &String| {
        let prefix = prefix.trim();
        let rest = url.strip_prefix(prefix.trim_end_matches('/'));
        let whole = prefix.strip_suffix("://").is_some_and(|allowed| allowed == scheme);
        whole || rest.is_some_and(|rest| !prefix.ends_with("://") && (rest.is_empty() || rest.starts_with('/')))
    };
    if !allowed.iter().any(covers) {
        let message = format!("the setting {ALLOWED} does not allow backups at '{url}'");
        return Err(Error::new(ErrorCode::Forbidden, message).with_help(format!("it allows {}", allowed.join(", "))));
    }
    let Some(stores) = stores else {
        return Err(Error::new(ErrorCode::Unsupported, "this node can open no stores of objects"));
    };
    let (store, prefix) = stores.open(url, &place.options)?;
    Ok(Objects { store, prefix, url: url.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Memory;

    impl ObjectStores for Memory {
        fn open(&self, _: &str, _: &ObjectOptions) -> Result<(Arc<dyn ObjectStore>, Path)> {
            Ok((Arc::new(object_store::memory::InMemory::new()), Path::default()))
        }
    }

    #[test]
    fn only_urls_that_are_allowed_are_opened() {
        let check = |allowed: &[&str], url: &str| {
            let allowed: Vec<String> = allowed.iter().map(|prefix| (*prefix).to_owned()).collect();
            let place = BackupPlace { url: url.into(), options: ObjectOptions::default(), backup: None };
            open(Some(&Memory), &allowed, &place).map(drop).map_err(|error| error.code())
        };
        let any = ["s3://", "file://"];
        for url in ["s3://bucket", "s3://bucket/a/b/", "file:///var/backups"] {
            assert_eq!(check(&any, url), Ok(()), "{url}");
            assert_eq!(check(&[], url), Err(ErrorCode::Forbidden), "{url}");
        }
        for url in ["/var/backups", "file:///a/../b", "s3://b/%2e%2e", "s3://b?x=1", "s3://key:hush@b", "file:///./a"] {
            assert_eq!(check(&any, url), Err(ErrorCode::InvalidRequest), "{url}");
        }
        let one = ["file:///var/backups", "s3://bucket/"];
        assert_eq!(check(&one, "file:///var/backups/x"), Ok(()));
        assert_eq!(check(&one, "file:///var/backups"), Ok(()));
        assert_eq!(check(&one, "s3://bucket"), Ok(()));
        for url in ["file:///var/backups2", "file:///var", "s3://bucket2", "gs://bucket"] {
            assert_eq!(check(&one, url), Err(ErrorCode::Forbidden), "{url}");
        }
    }
}
