//! Reads a trust bundle: which roots, and until when. Verifies nothing.

use x509_parser::pem::Pem;

/// One root of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The certificate, as in the PEM.
    pub der: Vec<u8>,
    /// End of its validity, seconds since 1970.
    pub not_after_unix_s: i64,
}

/// The roots of a PEM text; the error says which entry is bad.
pub fn parse(pem: &[u8]) -> Result<Vec<Root>, String> {
    let mut roots = Vec::new();
    for (position, entry) in Pem::iter_from_buffer(pem).enumerate() {
        let entry = entry.map_err(|error| format!("entry {} is not PEM: {error}", position + 1))?;
        let certificate = entry
            .parse_x509()
            .map_err(|error| format!("entry {} is not a certificate: {error}", position + 1))?;
        let not_after_unix_s = certificate.validity().not_after.timestamp();
        roots.push(Root { der: entry.contents, not_after_unix_s });
    }
    Ok(roots)
}
