//! What the operator, the webhook and the proxy say to each other: the protocol (`v1`), workload identities
//! (`spiffe`), reasons for refusals (`reason`), the names and ports they agree on (`names`), and what they tell auditors
//! (`audit`). It opens no file and no socket, and depends on no Kubernetes crate.

pub mod audit;
pub mod crypto;
pub mod lines;
pub mod names;
pub mod reason;
pub mod rendezvous;
pub mod spiffe;
pub mod text;
pub mod tracing;

/// The generated protocol, see `proto/weft.proto`.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("weft.v1");
    include!(concat!(env!("OUT_DIR"), "/names.rs"));
}

pub use reason::Reason;
pub use spiffe::{Identity, TrustDomain};
