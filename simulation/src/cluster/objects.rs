//! The store of objects that backups go to: beside the cluster, reached by every node, never gone. What is asked of it takes its time,
//! and now and then it fails, before it has been done or after.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use shoal_actors::{ObjectOptions, ObjectStores};
use shoal_kernel::{Env, Result};

/// Where backups go.
pub(super) const PLACE: &str = "objects://backups";

/// How long a request takes, in milliseconds.
const REQUEST_MS: Range<u64> = 1..20;

/// A node's way to it.
pub(super) struct Stores {
    pub(super) env: Env,
    pub(super) objects: Arc<InMemory>,
    /// Requests that fail, in a thousand.
    pub(super) failing_permille: u64,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stores(failing {}/1000)", self.failing_permille)
    }
}

impl ObjectStores for Stores {
    fn open(&self, _: &str, _: &ObjectOptions) -> Result<(Arc<dyn ObjectStore>, Path)> {
        let store =
            Store { env: self.env.clone(), objects: self.objects.clone(), failing_permille: self.failing_permille };
        Ok((Arc::new(store), Path::default()))
    }
}

#[derive(Clone)]
struct Store {
    env: Env,
    objects: Arc<InMemory>,
    failing_permille: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated store of objects")
    }
}

impl Store {
    /// Takes its time, and may fail.
    async fn request(&self) -> object_store::Result<()> {
        let ms = REQUEST_MS.start + self.env.random("time of objects") % (REQUEST_MS.end - REQUEST_MS.start);
        self.env.sleep(Duration::from_millis(ms)).await;
        if self.env.random("failure of objects") % 1_000 < self.failing_permille {
            let source = "it has been told to fail".into();
            return Err(object_store::Error::Generic { store: "simulated", source });
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.request().await?;
        let put = self.objects.put_opts(location, payload, opts).await?;
        // It may be there although this node is told that it is not.
        self.request().await?;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.request().await?;
        self.objects.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.request().await?;
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (store, listed) = (self.clone(), self.objects.list(prefix));
        let request = futures::stream::once(async move { store.request().await });
        request
            .flat_map(move |asked| match asked {
                Ok(()) => futures::stream::empty().boxed(),
                Err(error) => futures::stream::once(async move { Err(error) }).boxed(),
            })
            .chain(listed)
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.request().await?;
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.request().await?;
        self.objects.copy_opts(from, to, options).await
    }
}
