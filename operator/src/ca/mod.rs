//! The certificate authority: a root kept in a Secret, leaves signed from it. Who may have which leaf is decided in `serve`.

mod csr;
mod issue;
mod root;
pub mod secret;
pub mod serving;
#[cfg(test)]
mod tests;

pub use csr::{BadRequest, public_key};
pub use issue::{Authority, IssueError, Issued};
pub use root::{BadRoot, Root};
