//! The catalog's consensus over the transport.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{NodeId, Result};
use shoal_membership::{Agreement, PeerRpc};

use crate::transport::{Handler, Route, Transport};

/// Sends what the consensus has to say.
pub(super) struct AgreementOut(pub(super) Transport);

#[async_trait]
impl PeerRpc for AgreementOut {
    async fn call(&self, to: SocketAddr, message: Vec<u8>, timeout: Duration) -> Result<Vec<u8>> {
        let answer = self.0.call_address(to, Route::Agreement, message.into(), timeout).await?;
        Ok(answer.into())
    }
}

/// Hears what other nodes' consensus says.
pub(super) struct AgreementIn(pub(super) Agreement);

impl Handler for AgreementIn {
    fn call(&self, _from: NodeId, message: Bytes) -> BoxFuture<'static, Result<Bytes>> {
        let agreement = self.0.clone();
        Box::pin(async move { Ok(agreement.handle(&message).await?.into()) })
    }
}
