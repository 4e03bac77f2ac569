//! A SPIFFE bundle (SPIFFE Trust Domain and Bundle, sections 4 and 5): a set of JSON web keys, of which those for X.509 SVIDs
//! each bear one certificate. Pure. Keys for tokens are of no use here, and are passed over.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::{Value, json};
use weft_crds::validate;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// Bytes that a document may have.
pub const MAX_SIZE: usize = 128 << 10;
/// As `use` of a key.
const X509_SVID: &str = "x509-svid";

/// What a document says.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// Roots (DER), each of which can vouch for the trust domain.
    pub roots: Vec<Vec<u8>>,
    /// Grows with each change, if the other side counts.
    pub sequence: Option<u64>,
    /// How often it wants to be asked.
    pub refresh_hint: Option<Duration>,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Key>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "use", default)]
    purpose: Option<String>,
    #[serde(default)]
    x5c: Vec<String>,
}

/// Reads the bundle of a trust domain.
///
/// # Errors
/// A sentence without what the document says.
pub fn read(trust_domain: &str, text: &str) -> Result<Document, String> {
    let keys: Keys = serde_json::from_str(text).map_err(|e| {
        format!(
            "what it answers is no SPIFFE bundle (a JSON object with keys): line {}, column {}",
            e.line(),
            e.column()
        )
    })?;
    let mut roots: Vec<Vec<u8>> = Vec::new();
    for key in keys.keys.iter().filter(|key| key.purpose.as_deref() == Some(X509_SVID)) {
        let [certificate] = key.x5c.as_slice() else {
            return Err("the bundle has an x509-svid key without exactly one certificate (x5c)".into());
        };
        let der = STANDARD.decode(certificate).map_err(|_| "the bundle has an x5c that is not base64")?;
        if !roots.contains(&der) {
            roots.push(der);
        }
    }
    validate::bundle(trust_domain, &roots).map_err(|e| format!("the bundle {e}"))?;
    Ok(Document {
        roots,
        sequence: keys.spiffe_sequence,
        refresh_hint: keys.spiffe_refresh_hint.map(Duration::from_secs),
    })
}

/// Writes a bundle. A root whose kind of key JSON web keys have no name for is left out; there is none that signs here.
#[must_use]
pub fn write(roots: &[CertificateDer<'_>], sequence: i64, refresh_hint: Duration) -> String {
    let keys: Vec<Value> = roots.iter().filter_map(|root| key(root)).collect();
    let document = json!({
        "keys": keys,
        "spiffe_sequence": sequence.max(0),
        "spiffe_refresh_hint": refresh_hint.as_secs(),
    });
    document.to_string()
}

fn key(der: &[u8]) -> Option<Value> {
    let (_, root) = X509Certificate::from_der(der).ok()?;
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut key = match root.public_key().parsed().ok()? {
        PublicKey::EC(point) => {
            // SEC 1 section 2.3.3: 4, then both coordinates.
            let (crv, size) = match point.data().len() {
                65 => ("P-256", 32),
                97 => ("P-384", 48),
                133 => ("P-521", 66),
                _ => return None,
            };
            let (x, y) = point.data().get(1..)?.split_at_checked(size)?;
            json!({ "kty": "EC", "crv": crv, "x": text(x), "y": text(y) })
        }
        PublicKey::RSA(rsa) => {
            let trimmed = |bytes: &[u8]| text(&bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]);
            json!({ "kty": "RSA", "n": trimmed(rsa.modulus), "e": trimmed(rsa.exponent) })
        }
        PublicKey::Unknown(bytes) if bytes.len() == 32 => {
            json!({ "kty": "OKP", "crv": "Ed25519", "x": text(bytes) })
        }
        _ => return None,
    };
    key["use"] = X509_SVID.into();
    key["x5c"] = json!([STANDARD.encode(der)]);
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Root;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    fn root() -> CertificateDer<'static> {
        Root::generate(&"partner.example".parse().unwrap(), Duration::from_secs(86_400)).unwrap().der
    }

    fn with(key: &KeyPair) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(key).unwrap().der().clone()
    }

    #[test]
    fn what_is_written_is_read_whatever_the_key() {
        let (p384, ed) = (&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519);
        let others = [p384, ed].map(|kind| with(&KeyPair::generate_for(kind).unwrap()));
        let roots: Vec<_> = [root(), root()].into_iter().chain(others).collect();
        let text = write(&roots, 1_700_000_000_123, Duration::from_secs(60));
        let read = read("partner.example", &text).unwrap();
        assert_eq!(read.roots, roots.iter().map(|root| root.to_vec()).collect::<Vec<_>>());
        assert_eq!(read.sequence, Some(1_700_000_000_123));
        assert_eq!(read.refresh_hint, Some(Duration::from_secs(60)));
        let value: Value = serde_json::from_str(&text).unwrap();
        let kinds: Vec<_> = value["keys"].as_array().unwrap().iter().map(|key| key["crv"].clone()).collect();
        assert_eq!(kinds, ["P-256", "P-256", "P-384", "Ed25519"]);
    }

    #[test]
    fn keys_for_tokens_and_unknown_ones_are_passed_over_and_a_bundle_is_never_empty() {
        let x5c = STANDARD.encode(root());
        let of = |keys: Value| read("partner.example", &json!({ "keys": keys }).to_string());
        let key = json!({ "kty": "EC", "use": "x509-svid", "x5c": [x5c] });
        let others = json!([{ "kty": "EC", "use": "jwt-svid", "kid": "a" }, { "kty": "EC" }, { "use": "new" }, key, key]);
        assert_eq!(of(others).unwrap().roots.len(), 1);
        for (keys, sentence) in [
            (json!([]), "holds no root certificate"),
            (json!([{ "use": "jwt-svid", "x5c": [x5c] }]), "holds no root certificate"),
            (json!([{ "use": "x509-svid" }]), "exactly one certificate"),
            (json!([{ "use": "x509-svid", "x5c": [x5c, x5c] }]), "exactly one certificate"),
            (json!([{ "use": "x509-svid", "x5c": ["!"] }]), "not base64"),
            (json!([{ "use": "x509-svid", "x5c": ["AAAA"] }]), "cannot be read"),
            (json!({}), "no SPIFFE bundle"),
        ] {
            let error = of(keys.clone()).unwrap_err();
            assert!(error.contains(sentence), "{keys}: {error}");
        }
        let many: Vec<_> =
            (0..33).map(|_| json!({ "use": "x509-svid", "x5c": [STANDARD.encode(root())] })).collect();
        assert!(of(many.into()).unwrap_err().contains("more than 32"));
        assert!(!read("a", "secret that a server said").unwrap_err().contains("secret"));
    }

    proptest! {
        #[test]
        fn nothing_that_a_server_says_panics(text in "\\PC{0,200}", keys in prop::collection::vec("[A-Za-z0-9+/=]{0,40}", 0..4)) {
            let _ = read("a", &text);
            let keys: Vec<_> = keys.iter().map(|x5c| json!({ "use": "x509-svid", "x5c": [x5c] })).collect();
            let _ = read("a", &json!({ "keys": keys, "spiffe_sequence": 1 }).to_string());
        }
    }
}
