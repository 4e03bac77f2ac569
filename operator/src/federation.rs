//! Bundles as SPIFFE has them: the own one, as other meshes fetch it, and those of others, as they are fetched here. Which of them
//! are in force the index decides, and when they are fetched the leader.

pub mod document;
pub mod fetch;
pub mod serve;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// How often others shall fetch the own bundle: `spiffe_refresh_hint`.
pub const REFRESH_HINT: Duration = Duration::from_secs(60);
/// Where the own bundle is served, others get so long to learn of a root before it signs: some fetches may fail.
pub const SPREAD: Duration = Duration::from_secs(300);

/// A certificate as PEM (RFC 7468).
#[must_use]
pub fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for at in (0..text.len()).step_by(64) {
        pem.push_str(&text[at..text.len().min(at + 64)]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
