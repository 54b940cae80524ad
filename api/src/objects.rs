//! Stores of objects for backups: a directory, or a server that speaks S3's protocol.

#![allow(
    clippy::disallowed_methods,
    reason = "stores of objects are the real world's; the simulator has none of these"
)]

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    ClientOptions, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RetryConfig, UploadPart,
};
use shoal_actors::{ObjectOptions, ObjectStores};
use shoal_kernel::{Error, ErrorCode, Result};

/// How often a request is sent again, and how long altogether.
const RETRIES_MAX: usize = 5;
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one request may take: a part of 8 MiB over a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The stores of the real world.
#[derive(Debug, Default)]
pub struct RealObjectStores;

impl ObjectStores for RealObjectStores {
    fn open(&self, url: &str, options: &ObjectOptions) -> Result<(Arc<dyn ObjectStore>, Path)> {
        let invalid = |message: String| Error::new(ErrorCode::InvalidRequest, message);
        match url.split_once("://") {
            Some(("file", path)) if path.len() > 1 && path.starts_with('/') => {
                if let Some(name) = options.0.keys().next() {
                    return Err(invalid(format!("{name} is an option of s3://, not of file://")));
                }
                let prefix = Path::parse(path.trim_matches('/')).map_err(|error| invalid(error.to_string()))?;
                Ok((Arc::new(Directory { files: Arc::default(), root: PathBuf::from(path) }), prefix))
            }
            Some(("s3", rest)) if !rest.is_empty() && !rest.starts_with('/') => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let store = s3(bucket, options)?;
                let prefix = Path::parse(prefix.trim_matches('/')).map_err(|error| invalid(error.to_string()))?;
                Ok((store, prefix))
            }
            _ => {
                Err(invalid(format!("'{url}' is no place for backups"))
                    .with_help("give s3://bucket/path or file:///path"))
            }
        }
    }
}

/// What is not given comes from the environment of this process (`AWS_…`), as other tools read it.
fn s3(bucket: &str, options: &ObjectOptions) -> Result<Arc<dyn ObjectStore>> {
    let get = |name: &str| options.0.get(name).cloned();
    let flag = |name: &str| match get(name).as_deref() {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(Error::new(ErrorCode::InvalidRequest, format!("{name} is 'true' or 'false'"))),
    };
    let client = ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT);
    let retry = RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    // Before the other options: it replaces all of them.
    let mut builder =
        AmazonS3Builder::from_env().with_client_options(client).with_retry(retry).with_bucket_name(bucket);
    if let Some(endpoint) = get("endpoint") {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = get("region") {
        builder = builder.with_region(region);
    }
    if let Some(key) = get("access_key_id") {
        builder = builder.with_access_key_id(key);
    }
    if let Some(secret) = get("secret_access_key") {
        builder = builder.with_secret_access_key(secret);
    }
    if let Some(token) = get("session_token") {
        builder = builder.with_token(token);
    }
    if let Some(allow) = flag("allow_http")? {
        builder = builder.with_allow_http(allow);
    }
    if let Some(style) = flag("virtual_hosted_style")? {
        builder = builder.with_virtual_hosted_style_request(style);
    }
    // What the library says of a wrong option may quote it.
    let built = builder.build().map_err(|_| {
        Error::new(ErrorCode::InvalidRequest, format!("bucket '{bucket}' cannot be reached with these options"))
            .with_help("look at endpoint, region, access_key_id, secret_access_key and allow_http")
    })?;
    Ok(Arc::new(built))
}

/// A directory. What has been put is on the disk: the library leaves that to the operating system.
#[derive(Debug, Clone)]
struct Directory {
    files: Arc<LocalFileSystem>,
    root: PathBuf,
}

impl Directory {
    /// Makes a file durable, and the names on the way to it.
    async fn sync(&self, location: &Path) -> object_store::Result<()> {
        let (path, root) = (self.files.path_to_filesystem(location)?, self.root.clone());
        let synced = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            std::fs::File::open(&path)?.sync_all()?;
            for directory in path.ancestors().skip(1) {
                std::fs::File::open(directory)?.sync_all()?;
                if directory == root {
                    break;
                }
            }
            Ok(())
        });
        let synced = synced.await.map_err(|source| object_store::Error::JoinError { source })?;
        synced.map_err(|source| object_store::Error::Generic { store: "file", source: Box::new(source) })
    }
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for Directory {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let put = self.files.put_opts(location, payload, opts).await?;
        self.sync(location).await?;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let upload = self.files.put_multipart_opts(location, opts).await?;
        Ok(Box::new(Durable { upload, directory: self.clone(), location: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.files.copy_opts(from, to, options).await
    }
}

/// A file that comes in parts.
#[derive(Debug)]
struct Durable {
    upload: Box<dyn MultipartUpload>,
    directory: Directory,
    location: Path,
}

#[async_trait]
impl MultipartUpload for Durable {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let put = self.upload.complete().await?;
        self.directory.sync(&self.location).await?;
        Ok(put)
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.upload.abort().await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    #[test]
    fn options_are_checked_and_secrets_kept() {
        let open = |url: &str, options: &[(&str, &str)]| {
            let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            RealObjectStores.open(url, &ObjectOptions(options)).map(|(_, prefix)| prefix.to_string())
        };
        let keys = [("access_key_id", "a"), ("secret_access_key", "hush"), ("region", "r")];
        assert_eq!(open("s3://bucket/a/b", &keys).unwrap(), "a/b");
        assert_eq!(open("s3://bucket", &keys).unwrap(), "");
        for (url, options) in [
            ("s3://bucket", &[("allow_http", "hush")][..]),
            ("s3://", &keys),
            ("s3:///a", &keys),
            ("gs://bucket", &[]),
            ("file:///tmp", &[("secret_access_key", "hush")]),
            ("file://host", &[]),
            ("file:///", &[]),
        ] {
            let error = open(url, options).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidRequest, "{url}");
            assert!(!format!("{error} {:?}", error.help()).contains("hush"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_directory_keeps_parts_and_wholes() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/new/place", dir.path().display());
        let (store, prefix) = RealObjectStores.open(&url, &ObjectOptions::default()).unwrap();
        assert!(!dir.path().join("new").exists(), "to look for something makes nothing");
        let (whole, parts) = (prefix.clone().join("a").join("b"), prefix.clone().join("c"));
        store.put(&whole, "one".into()).await.unwrap();
        let mut upload = store.put_multipart(&parts).await.unwrap();
        upload.put_part("two".into()).await.unwrap();
        upload.put_part("three".into()).await.unwrap();
        assert!(store.head(&parts).await.is_err(), "it is not there before it is whole");
        upload.complete().await.unwrap();
        assert_eq!(store.get(&parts).await.unwrap().bytes().await.unwrap(), "twothree");
        assert_eq!(std::fs::read(dir.path().join("new/place/a/b")).unwrap(), b"one");
    }
}
