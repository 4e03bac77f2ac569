//! The certificate authority: roots kept in a Secret and followed by others in time, leaves signed by one of them. Who may
//! have which leaf is decided in `serve`.

mod csr;
pub mod given;
mod issue;
mod root;
pub mod roots;
pub mod rotation;
pub mod secret;
pub mod serving;
#[cfg(test)]
mod tests;

pub use csr::{BadRequest, bare_public_key, public_key};
pub use issue::{Authority, Certified, IssueError, Issued};
pub use root::{BadRoot, Root};
pub use roots::{Phase, Roots};
