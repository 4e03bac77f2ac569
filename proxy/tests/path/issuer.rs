//! An issuer of tokens for tests: keys of each kind, and whatever it is asked to sign. Part of the unit tests too.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use weft_api::v1::{self, TokenAlgorithm};

/// What its tokens are meant for.
pub const AUDIENCE: &str = "shop";

/// See the module.
pub struct Issuer {
    pub name: String,
    pub rsa: RsaKeyPair,
    pub ec: EcdsaKeyPair,
    pub ed: Ed25519KeyPair,
}

/// The algorithms that are taken, with the names of the keys.
pub const ALGORITHMS: [(&str, &str); 4] =
    [("RS256", "rs"), ("PS256", "ps"), ("ES256", "es"), ("EdDSA", "ed")];

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn now() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

impl Issuer {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
        }
    }

    /// Its public keys, as the operator tells them.
    pub fn keys(&self) -> Vec<v1::TokenKey> {
        let rsa = self.rsa.public_key().as_ref().to_vec();
        let ec = self.ec.public_key().as_ref().to_vec();
        let all = [
            (TokenAlgorithm::Rs256, "rs", rsa.clone()),
            (TokenAlgorithm::Ps256, "ps", rsa),
            (TokenAlgorithm::Es256, "es", ec),
            (TokenAlgorithm::Eddsa, "ed", self.ed.public_key().as_ref().to_vec()),
        ];
        let key = |(algorithm, kid, key): (TokenAlgorithm, &str, Vec<u8>)| v1::TokenKey {
            kid: kid.into(),
            algorithm: algorithm.into(),
            key: key.into(),
        };
        all.map(key).into()
    }

    /// As a proxy is told of it, with the usual place.
    pub fn message(&self) -> v1::TokenIssuer {
        v1::TokenIssuer {
            issuer: self.name.clone(),
            audiences: vec![AUDIENCE.into()],
            leeway_ms: 60_000,
            keys: self.keys(),
            locations: vec![bearer()],
            claim_headers: Vec::new(),
            forward: true,
            policy: "shop/users".into(),
            key_source: String::new(),
            keys_pending: false,
        }
    }

    /// A good token of somebody, by the key of that name.
    pub fn token(&self, kid: &str, subject: &str) -> String {
        self.sign(kid, self.claims(subject))
    }

    pub fn claims(&self, subject: &str) -> Value {
        json!({"iss": self.name, "sub": subject, "aud": AUDIENCE, "exp": now() + 600, "iat": now()})
    }

    /// These claims, by the key of that name.
    pub fn sign(&self, kid: &str, claims: Value) -> String {
        let algorithm = ALGORITHMS.iter().find(|(_, key)| *key == kid).unwrap().0;
        self.sign_as(algorithm, &json!({"alg": algorithm, "kid": kid, "typ": "JWT"}), &claims)
    }

    /// Under any header.
    pub fn sign_as(&self, algorithm: &str, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let random = SystemRandom::new();
        let mut rsa = vec![0; self.rsa.public_modulus_len()];
        let signature = match algorithm {
            "RS256" => {
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut rsa).unwrap();
                rsa
            }
            "PS256" => {
                self.rsa.sign(&RSA_PSS_SHA256, &random, signed.as_bytes(), &mut rsa).unwrap();
                rsa
            }
            "ES256" => self.ec.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed.sign(signed.as_bytes()).as_ref().to_vec(),
            other => panic!("{other} is no algorithm"),
        };
        format!("{signed}.{}", base64url(signature))
    }
}

/// `Authorization: Bearer`.
pub fn bearer() -> v1::TokenLocation {
    in_header("authorization", "Bearer ")
}

pub fn in_header(name: &str, prefix: &str) -> v1::TokenLocation {
    let header = v1::TokenHeader { name: name.into(), prefix: prefix.into() };
    v1::TokenLocation { at: Some(v1::token_location::At::Header(header)) }
}
