//! Who is alive and what is agreed.
//!
//! [`swim`] tells which nodes answer, by gossip over datagrams; its opinions are fast, cheap and sometimes wrong. [`agreement`]
//! keeps the catalog by consensus; what it says is final. An opinion moves nothing by itself: whoever acts on it proposes a
//! [`shoal_catalog::Command`], and epochs fence what was decided late.
//!
//! This crate knows nothing of rows, queries, actors or HTTP, and opens no connection: datagrams go through
//! [`shoal_kernel::Env`], calls between nodes through [`agreement::PeerRpc`].

pub mod agreement;
pub mod swim;

pub use agreement::{Agreement, AgreementConfig, AgreementStatus, CatalogObserver, JoinError, PeerRpc};
pub use swim::{Member, MemberState, Members, PAYLOAD_BYTES_MAX, Swim, SwimConfig, SwimStats};
