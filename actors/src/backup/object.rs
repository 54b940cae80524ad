//! Objects of one place, and what can go wrong with them.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use shoal_kernel::{Error, ErrorCode, Result};
use xxhash_rust::xxh3::xxh3_128;

/// Characters of what a store says of itself that an error repeats.
const WORDS_MAX: usize = 300;

/// What servers call it when somebody may not do something.
const DENIED: [&str; 4] = ["403 Forbidden", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId"];

/// A place for objects.
#[derive(Clone)]
pub(crate) struct Objects {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    pub(super) url: String,
}

/// The name of an object that is named by what is in it.
pub(crate) fn named_by_content(bytes: &[u8]) -> String {
    format!("{:032x}-{}", xxh3_128(bytes), bytes.len())
}

impl Objects {
    pub(crate) fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    /// Where an object is in its store.
    pub(crate) fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// What it is called by people.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// Whether there is an object, and how long it is.
    pub(crate) async fn length(&self, name: &str) -> Result<Option<u64>> {
        match self.store.head(&self.path(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failure(&self.name(name), &error)),
        }
    }

    /// Makes a small object, whole or not at all. Not on the condition that there is none: not every server knows that, and a request
    /// that was sent again because its answer was lost would find its own. Names are those of the content, or drawn at random.
    pub(crate) async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        let put = self.store.put(&self.path(name), bytes.into()).await;
        put.map(drop).map_err(|error| not_put(&self.name(name), &error))
    }

    /// Reads an object that is small enough for memory.
    ///
    /// # Errors
    /// There is none, it is longer than that, or the store fails.
    pub(crate) async fn read(&self, name: &str, bytes_max: u64) -> Result<Bytes> {
        let got = self.store.get(&self.path(name)).await.map_err(|error| failure(&self.name(name), &error))?;
        if got.meta.size > bytes_max {
            let message =
                format!("{} has {} bytes, more than the {bytes_max} it may have", self.name(name), got.meta.size);
            return Err(Error::new(ErrorCode::Corruption, message));
        }
        got.bytes().await.map_err(|error| failure(&self.name(name), &error))
    }

    /// Names of the objects in a folder, in order.
    pub(crate) async fn list(&self, folder: &str, names_max: usize) -> Result<Vec<String>> {
        let path = self.path(folder);
        let mut listed = self.store.list(Some(&path)).take(names_max + 1);
        let mut names = Vec::new();
        while let Some(found) = listed.next().await {
            let ObjectMeta { location, .. } = found.map_err(|error| failure(&self.name(folder), &error))?;
            names.extend(location.filename().map(str::to_owned));
        }
        if names.len() > names_max {
            let message = format!("there are more than {names_max} objects in {}", self.name(folder));
            return Err(Error::new(ErrorCode::LimitExceeded, message).with_help("remove old ones"));
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// The same of an object that was to be made: if something is not there, it is not the object.
pub(crate) fn not_put(what: &str, error: &object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => no_bucket(what),
        error => failure(what, error),
    }
}

fn no_bucket(what: &str) -> Error {
    Error::new(ErrorCode::NotFound, format!("{what}: there is no such bucket")).with_help("make the bucket first")
}

/// What a store says, as an error of ours. A request that failed has left nothing of an object; what was put before stays and does no
/// harm.
pub(crate) fn failure(what: &str, error: &object_store::Error) -> Error {
    use object_store::Error as E;
    let words = |error: &dyn std::error::Error| {
        let mut words = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let more = error.to_string();
            if !words.contains(&more) {
                words = format!("{words}: {more}");
            }
            source = error.source();
        }
        words
    };
    let text = words(error);
    let (code, why, help) = match error {
        _ if text.contains("NoSuchBucket") => return no_bucket(what),
        E::NotFound { .. } => {
            let help = "look at the path; for file:// the directory must be one that all nodes share, such as a mount";
            (ErrorCode::NotFound, "it is not there".to_owned(), help)
        }
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            (ErrorCode::Forbidden, "access is denied".to_owned(), "look at the keys, and what they may do")
        }
        E::Generic { .. } if DENIED.iter().any(|word| text.contains(word)) => {
            (ErrorCode::Forbidden, "access is denied".to_owned(), "look at the keys, and what they may do")
        }
        E::Generic { .. } if text.contains("No space left") || text.contains("os error 28") => {
            (ErrorCode::DiskFull, "there is no room left".to_owned(), "make room, and send it again")
        }
        _ => (
            ErrorCode::Io,
            text.chars().take(WORDS_MAX).collect::<String>().replace('\n', " "),
            "send it again: what has been stored already is not sent twice",
        ),
    };
    Error::new(code, format!("{what}: {why}")).with_help(help)
}

#[cfg(test)]
mod tests {
    use object_store::Error as E;

    use super::*;

    #[test]
    fn what_a_store_says_has_a_type() {
        let generic = |text: &str| E::Generic { store: "S3", source: text.into() };
        let missing = || E::NotFound { path: "p".into(), source: "gone".into() };
        let long = format!("{}: 403 Forbidden", "x".repeat(2 * WORDS_MAX));
        for (error, code) in [
            (generic("<Code>NoSuchBucket</Code>"), ErrorCode::NotFound),
            (generic(&long), ErrorCode::Forbidden),
            // A number is not a status.
            (generic("GET http://h:4033/segments/403.seg: connection refused"), ErrorCode::Io),
            (generic("No space left on device (os error 28)"), ErrorCode::DiskFull),
            (E::PermissionDenied { path: "p".into(), source: "no".into() }, ErrorCode::Forbidden),
            (missing(), ErrorCode::NotFound),
        ] {
            let told = failure("s3://b/x", &error);
            assert_eq!(told.code(), code, "{told}");
            assert!(told.message().starts_with("s3://b/x: ") && told.help().is_some(), "{told}");
            assert!(told.message().len() < 2 * WORDS_MAX, "{told}");
        }
        assert!(not_put("s3://b/x", &missing()).message().contains("bucket"));
    }
}
