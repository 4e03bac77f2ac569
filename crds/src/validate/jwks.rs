//! JSON Web Key Sets (RFC 7517), read strictly: public keys by which tokens can be verified, and why there are none. Shared by the
//! webhook, which refuses, and the operator, which tells proxies. It fetches nothing and verifies nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

/// Longest set, in bytes.
pub const MAX_SIZE: usize = 256 * 1024;
/// Keys of a set.
pub const MAX_KEYS: usize = 64;
/// Longest name of a key, in bytes.
const MAX_KID: usize = 256;
/// Bits of an RSA key: fewer can be broken (NIST SP 800-131A), and more only take the proxies' time.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// What a key may be used with (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// RSA, PKCS#1 v1.5.
    Rs256,
    /// RSA-PSS.
    Ps256,
    /// ECDSA on P-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// A public key, for one algorithm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its name; empty: none.
    pub kid: String,
    /// What it may be used with.
    pub algorithm: Algorithm,
    /// RSA: RSAPublicKey, DER (RFC 8017 A.1.1); P-256: the point, uncompressed (SEC 1, 2.3.3); Ed25519: 32 bytes.
    pub bytes: Vec<u8>,
}

/// The keys of a set that can be used; those of kinds that are not known are left out (RFC 7517 section 5). A key that may be
/// used with two algorithms is there twice. In order, so that the same set in another order is the same.
///
/// # Errors
/// A sentence: it is no set, has a secret in it, or no key that can be used.
pub fn read(text: &str) -> Result<Vec<Key>, String> {
    if text.len() > MAX_SIZE {
        return Err(format!(
            "the key set is longer than {MAX_SIZE} bytes: leave keys out that are not used any more"
        ));
    }
    let set: Value = serde_json::from_str(text)
        .map_err(|_| "the key set is not JSON: write {\"keys\": [...]}, as RFC 7517 has it")?;
    let Some(listed) = set.get("keys").and_then(Value::as_array) else {
        return Err("the key set has no list `keys`: write {\"keys\": [...]}, as RFC 7517 has it".into());
    };
    if listed.len() > MAX_KEYS {
        return Err(format!(
            "the key set has more than {MAX_KEYS} keys: leave those out that are not used any more"
        ));
    }
    let mut keys = Vec::new();
    for key in listed.iter().filter_map(Value::as_object) {
        if key.contains_key("d") || key.contains_key("k") {
            return Err("the key set has a private or symmetric key in it, which is no longer a secret now: make a new one, and write the public part only".into());
        }
        keys.extend(usable(key));
    }
    keys.sort();
    keys.dedup();
    if keys.is_empty() {
        return Err("the key set has no key that can verify tokens: give one of RSA (2048 to 4096 bits), P-256 or Ed25519, for signatures".into());
    }
    Ok(keys)
}

fn usable(key: &Map<String, Value>) -> Vec<Key> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let verifies = match (key.get("use"), key.get("key_ops")) {
        (Some(usage), _) if usage.as_str() != Some("sig") => false,
        (_, Some(Value::Array(operations))) => operations.iter().any(|operation| operation == "verify"),
        (_, Some(_)) => false,
        _ => true,
    };
    let kid = text("kid").unwrap_or_default();
    if !verifies || kid.len() > MAX_KID || key.get("kid").is_some_and(|kid| !kid.is_string()) {
        return Vec::new();
    }
    let found = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => {
            rsa(text("n"), text("e")).map(|bytes| (&[Algorithm::Rs256, Algorithm::Ps256][..], bytes))
        }
        (Some("EC"), Some("P-256")) => {
            point(text("x"), text("y")).map(|bytes| (&[Algorithm::Es256][..], bytes))
        }
        (Some("OKP"), Some("Ed25519")) => {
            fixed(text("x")).map(|bytes| (&[Algorithm::EdDsa][..], bytes.to_vec()))
        }
        _ => None,
    };
    let Some((algorithms, bytes)) = found else { return Vec::new() };
    // RFC 7517 section 4.4: the key is for that one only.
    let only = key.get("alg").map(|word| word.as_str().and_then(named));
    let allowed = algorithms.iter().filter(|a| only.is_none_or(|only| only == Some(**a)));
    allowed
        .map(|algorithm| Key { kid: kid.to_owned(), algorithm: *algorithm, bytes: bytes.clone() })
        .collect()
}

fn named(word: &str) -> Option<Algorithm> {
    Some(match word {
        "RS256" => Algorithm::Rs256,
        "PS256" => Algorithm::Ps256,
        "ES256" => Algorithm::Es256,
        // RFC 9864 names the curve.
        "EdDSA" | "Ed25519" => Algorithm::EdDsa,
        _ => return None,
    })
}

fn decoded(text: Option<&str>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text?).ok()
}

fn fixed(text: Option<&str>) -> Option<[u8; 32]> {
    decoded(text)?.try_into().ok()
}

fn point(x: Option<&str>, y: Option<&str>) -> Option<Vec<u8>> {
    Some([&[4][..], &fixed(x)?, &fixed(y)?].concat())
}

/// RFC 8017 A.1.1: a sequence of modulus and exponent.
fn rsa(n: Option<&str>, e: Option<&str>) -> Option<Vec<u8>> {
    let (n, e) = (number(&decoded(n)?)?, number(&decoded(e)?)?);
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
    // An exponent of 1 makes every message its own signature.
    if !RSA_BITS.contains(&bits) || !odd(&n) || !odd(&e) || e.len() > 4 || e == [1] {
        return None;
    }
    let both = [integer(&n), integer(&e)].concat();
    Some([vec![0x30], length(both.len()), both].concat())
}

/// Without zeros in front; `None`: zero.
fn number(bytes: &[u8]) -> Option<Vec<u8>> {
    let first = bytes.iter().position(|byte| *byte != 0)?;
    Some(bytes[first..].to_vec())
}

/// X.690, 8.3: with a zero in front where the first bit would mean that it is negative.
fn integer(number: &[u8]) -> Vec<u8> {
    let zero = if number.first().is_some_and(|byte| byte & 0x80 != 0) { &[0][..] } else { &[] };
    [&[2][..], &length(number.len() + zero.len()), zero, number].concat()
}

/// X.690, 8.1.3.
fn length(length: usize) -> Vec<u8> {
    if length < 128 {
        return vec![u8::try_from(length).unwrap_or_default()];
    }
    let bytes = number(&length.to_be_bytes()).unwrap_or_default();
    [vec![0x80 | u8::try_from(bytes.len()).unwrap_or_default()], bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Of RFC 7517 A.1 and RFC 8037 A.2.
    fn ec() -> Value {
        json!({"kty": "EC", "crv": "P-256", "kid": "ec", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"})
    }

    fn ed() -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    fn rsa_of(n: &[u8], e: &[u8]) -> Value {
        json!({"kty": "RSA", "kid": "rsa", "n": URL_SAFE_NO_PAD.encode(n), "e": URL_SAFE_NO_PAD.encode(e)})
    }

    fn of(keys: &[Value]) -> Result<Vec<Key>, String> {
        read(&json!({"keys": keys}).to_string())
    }

    fn with(mut key: Value, name: &str, value: Value) -> Value {
        key[name] = value;
        key
    }

    #[test]
    fn keys_of_each_kind_are_read_and_the_rest_is_left_out() {
        let mut n = vec![0xc5; 256];
        n[255] = 1;
        let keys = of(&[
            ed(),
            ec(),
            rsa_of(&n, &[1, 0, 1]),
            json!({"kty": "new"}),
            with(ec(), "crv", json!("P-384")),
            json!(1),
        ])
        .unwrap();
        let found: Vec<_> =
            keys.iter().map(|key| (key.kid.as_str(), key.algorithm, key.bytes.len())).collect();
        let rsa = 4 + 4 + 257 + 5;
        assert_eq!(
            found,
            [
                ("ec", Algorithm::Es256, 65),
                ("ed", Algorithm::EdDsa, 32),
                ("rsa", Algorithm::Rs256, rsa),
                ("rsa", Algorithm::Ps256, rsa)
            ]
        );
        assert_eq!(keys[2].bytes[..9], [0x30, 0x82, 1, 10, 2, 0x82, 1, 1, 0]);
        assert_eq!(keys[2].bytes[rsa - 5..], [2, 3, 1, 0, 1]);
        // The same in another order, and twice.
        assert_eq!(of(&[rsa_of(&n, &[1, 0, 1]), ec(), ed(), ec()]).unwrap(), keys);
        // Zeros in front mean nothing.
        assert_eq!(of(&[rsa_of(&[vec![0], n.clone()].concat(), &[0, 1, 0, 1]), ec(), ed()]).unwrap(), keys);
        let only = of(&[with(rsa_of(&n, &[3]), "alg", json!("PS256"))]).unwrap();
        assert_eq!(only.iter().map(|key| key.algorithm).collect::<Vec<_>>(), [Algorithm::Ps256]);
    }

    #[test]
    fn what_cannot_verify_is_no_key() {
        let (good, even) = ([vec![0x81; 256], vec![]].concat(), [vec![0x81; 255], vec![2]].concat());
        for bad in [
            with(ec(), "alg", json!("RS256")),
            with(ec(), "alg", json!(7)),
            with(ec(), "alg", json!("HS256")),
            with(ec(), "use", json!("enc")),
            with(ec(), "key_ops", json!(["sign"])),
            with(ec(), "key_ops", json!("verify")),
            with(ec(), "kid", json!(7)),
            with(ec(), "kid", json!("k".repeat(300))),
            with(ec(), "x", json!("AQAB")),
            with(ec(), "x", json!("!")),
            with(ed(), "crv", json!("X25519")),
            with(ed(), "x", json!(null)),
            rsa_of(&good[..128], &[1, 0, 1]),
            rsa_of(&[0x81; 1024], &[1, 0, 1]),
            rsa_of(&even, &[1, 0, 1]),
            rsa_of(&good, &[1]),
            rsa_of(&good, &[2]),
            rsa_of(&good, &[0]),
            rsa_of(&good, &[1; 5]),
        ] {
            assert!(of(std::slice::from_ref(&bad)).unwrap_err().contains("no key that can verify"), "{bad}");
        }
        assert!(of(&[rsa_of(&good, &[3])]).is_ok() && of(&[with(ec(), "use", json!("sig"))]).is_ok());
    }

    #[test]
    fn a_set_is_bounded_and_has_no_secrets() {
        assert!(of(&[with(ec(), "d", json!("AQAB"))]).unwrap_err().contains("private"));
        assert!(of(&[ec(), json!({"kty": "oct", "k": "AQAB"})]).unwrap_err().contains("symmetric"));
        assert!(of(&vec![ec(); MAX_KEYS + 1]).unwrap_err().contains("more than 64"));
        assert!(read(&" ".repeat(MAX_SIZE + 1)).unwrap_err().contains("longer than"));
        for bad in ["", "[]", "{}", "{\"keys\": {}}", "no"] {
            assert!(read(bad).unwrap_err().contains("RFC 7517"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([{}\\[\\]\":,a-z0-9]|\\PC){0,60}", n in "[A-Za-z0-9_-]{0,600}", e in "[A-Za-z0-9_-]{0,8}") {
            let _ = read(&text);
            let _ = of(&[json!({"kty": "RSA", "n": n, "e": e}), json!({"kty": "EC", "crv": "P-256", "x": n, "y": e})]);
        }
    }
}
