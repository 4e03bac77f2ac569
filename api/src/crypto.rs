//! Which cryptography the programs stand on: AWS-LC, by aws-lc-rs; in a build with the feature `fips` its module that is validated
//! by FIPS 140-3, and nothing else. Looked at once, at the start; it encrypts nothing itself.

use rustls::crypto::aws_lc_rs::default_provider;

/// The module, as the programs name it in their first log line.
pub const MODULE: &str = if cfg!(feature = "fips") { "aws-lc-fips" } else { "aws-lc" };

/// A program that must not begin.
#[derive(Debug, thiserror::Error)]
#[error(
    "this is a FIPS build, and its cryptography is not in FIPS mode: the module has not passed its own tests on this machine; use \
     the images without FIPS, or another machine"
)]
pub struct Unfit;

/// To be called before anything else. Libraries that ask rustls for the process's provider get this one.
///
/// # Errors
/// When a FIPS build would not use the validated module.
pub fn begin() -> Result<(), Unfit> {
    let provider = default_provider();
    if cfg!(feature = "fips") && !provider.fips() {
        return Err(Unfit);
    }
    // Somebody was here before: a test, which is not what ships.
    let _ = provider.install_default();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CipherSuite, NamedGroup};

    #[test]
    fn a_fips_build_has_what_is_approved_and_no_more() {
        assert!(begin().is_ok());
        let provider = default_provider();
        assert_eq!(provider.fips(), cfg!(feature = "fips"));
        let chacha = |suite: &rustls::SupportedCipherSuite| {
            suite.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        };
        assert_eq!(provider.cipher_suites.iter().any(chacha), !cfg!(feature = "fips"));
        let x25519 = |group: &&dyn rustls::crypto::SupportedKxGroup| group.name() == NamedGroup::X25519;
        assert_eq!(provider.kx_groups.iter().any(x25519), !cfg!(feature = "fips"));
    }
}
