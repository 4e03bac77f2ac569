//! Keys of issuers, and which algorithm each may be used with: that is the key's to say, never the token's (RFC 8725 section
//! 3.1). Signatures are verified by aws-lc; nothing is computed here.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    VerificationAlgorithm,
};

/// Those that are taken (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSA, PKCS#1 v1.5.
    Rs256,
    /// RSA-PSS, with a salt as long as the hash.
    Ps256,
    /// ECDSA on P-256; the signature is r and s, 32 bytes each.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// By the header's word. `none`, HMAC and whatever else there is are no algorithms here.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Some(match word {
            "RS256" => Self::Rs256,
            "PS256" => Self::Ps256,
            "ES256" => Self::Es256,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Es256 => &ECDSA_P256_SHA256_FIXED,
            Self::EdDsa => &ED25519,
        }
    }
}

/// A public key, for one algorithm.
pub struct Key {
    /// Its name; empty: none.
    pub kid: Box<str>,
    /// The only one that it verifies.
    pub algorithm: Algorithm,
    key: ParsedPublicKey,
}

impl Key {
    /// Parsed once. `None`: the bytes are no key for that algorithm.
    #[must_use]
    pub fn new(kid: &str, algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        let fits = match algorithm {
            Algorithm::Rs256 | Algorithm::Ps256 => (256..=2048).contains(&bytes.len()),
            Algorithm::Es256 => bytes.len() == 65 && bytes.first() == Some(&4),
            Algorithm::EdDsa => bytes.len() == 32,
        };
        if !fits {
            return None;
        }
        let key = ParsedPublicKey::new(algorithm.verification(), bytes).ok()?;
        Some(Self { kid: kid.into(), algorithm, key })
    }

    /// Whether it has signed just this.
    #[must_use]
    pub fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("algorithm", &self.algorithm).finish()
    }
}
