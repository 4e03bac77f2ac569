//! The form of a signed token: three parts in base64url with dots between them (RFC 7515 section 7.1), and a header that says
//! by which key and algorithm. It believes the header nothing but these two words, and verifies nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::key::Algorithm;
use super::{Flaw, MAX_TOKEN, json};

/// A token as written.
#[derive(Debug)]
pub struct Jose<'a> {
    /// As the header names it; whether the key is for it is asked later.
    pub algorithm: Algorithm,
    /// The key's name.
    pub kid: Option<String>,
    /// What the signature is of: the first two parts, as they came.
    pub signed: &'a [u8],
    /// Decoded, not believed.
    pub payload: Vec<u8>,
    /// Decoded.
    pub signature: Vec<u8>,
}

/// What brings a key along, or says where one is: whoever believes it believes anybody (RFC 8725 section 3.10).
const KEYS_OF_ITS_OWN: [&str; 4] = ["jwk", "jku", "x5c", "x5u"];
/// Longest name of a key.
const MAX_KID: usize = 256;

/// Reads a token's form.
///
/// # Errors
/// What is wrong.
pub fn read(token: &str) -> Result<Jose<'_>, Flaw> {
    if token.len() > MAX_TOKEN {
        return Err(Flaw::TooLarge);
    }
    // Exactly three: RFC 7516's five are of encryption.
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Flaw::Malformed);
    };
    let header = json::object(&decoded(header)?).ok_or(Flaw::Malformed)?;
    // RFC 7515 section 4.1.11: what is critical and not understood must be refused, and no extension is understood here.
    if header.contains_key("crit") || KEYS_OF_ITS_OWN.iter().any(|name| header.contains_key(*name)) {
        return Err(Flaw::Header);
    }
    let word = header.get("alg").and_then(Value::as_str).ok_or(Flaw::Algorithm)?;
    let algorithm = Algorithm::named(word).ok_or(Flaw::Algorithm)?;
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) if kid.len() <= MAX_KID => Some(kid.clone()),
        Some(_) => return Err(Flaw::Header),
    };
    let end = token.len() - signature.len() - 1;
    Ok(Jose {
        algorithm,
        kid,
        signed: &token.as_bytes()[..end],
        payload: decoded(payload)?,
        signature: decoded(signature)?,
    })
}

/// RFC 7515 section 2: without padding; and no bits that mean nothing, so that a token can be written in one way only.
fn decoded(part: &str) -> Result<Vec<u8>, Flaw> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Flaw::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(header: &str) -> String {
        let of = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", of(header), of("{}"), of("s"))
    }

    #[test]
    fn the_header_is_believed_only_what_it_may_say() {
        for (header, flaw) in [
            (r#"{"alg":"none"}"#, Flaw::Algorithm),
            (r#"{"alg":"None"}"#, Flaw::Algorithm),
            (r#"{"alg":""}"#, Flaw::Algorithm),
            (r#"{"alg":"HS256"}"#, Flaw::Algorithm),
            (r#"{"alg":"RS512"}"#, Flaw::Algorithm),
            (r#"{"alg":"es256"}"#, Flaw::Algorithm),
            (r#"{"alg":["ES256"]}"#, Flaw::Algorithm),
            (r#"{"kid":"a"}"#, Flaw::Algorithm),
            (r#"{"alg":"ES256","crit":["b64"],"b64":false}"#, Flaw::Header),
            (r#"{"alg":"ES256","crit":[]}"#, Flaw::Header),
            (r#"{"alg":"ES256","jwk":{}}"#, Flaw::Header),
            (r#"{"alg":"ES256","jku":"https://a.example"}"#, Flaw::Header),
            (r#"{"alg":"ES256","x5u":"https://a.example"}"#, Flaw::Header),
            (r#"{"alg":"ES256","x5c":[]}"#, Flaw::Header),
            (r#"{"alg":"ES256","kid":7}"#, Flaw::Header),
            (r#"{"alg":"ES256","alg":"none"}"#, Flaw::Malformed),
            ("[]", Flaw::Malformed),
            ("", Flaw::Malformed),
        ] {
            assert_eq!(read(&token(header)).unwrap_err(), flaw, "{header}");
        }
        let good = token(r#"{"alg":"EdDSA","typ":"JWT","kid":"a","x5t":"abc"}"#);
        let jose = read(&good).unwrap();
        assert_eq!((jose.algorithm, jose.kid.as_deref()), (Algorithm::EdDsa, Some("a")));
        assert_eq!((jose.payload.as_slice(), jose.signature.as_slice()), (&b"{}"[..], &b"s"[..]));
        assert_eq!(jose.signed, good.rsplit_once('.').unwrap().0.as_bytes());
        for bad in
            ["", ".", "..", "...", &format!("{good}."), &format!("{good}="), &format!(" {good}"), "a.b"]
        {
            assert_eq!(read(bad).unwrap_err(), Flaw::Malformed, "{bad}");
        }
        assert_eq!(read(&"a".repeat(MAX_TOKEN + 1)).unwrap_err(), Flaw::TooLarge);
        // The last character's bits that no byte has.
        let (head, _) = good.rsplit_once('.').unwrap();
        assert_eq!(read(&format!("{head}.cx")).unwrap_err(), Flaw::Malformed);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([a-zA-Z0-9_.=-]|\\PC){0,80}") {
            let _ = read(&text);
        }
    }
}
