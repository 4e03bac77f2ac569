//! The envelope: AdmissionReview in, AdmissionReview out (admission.k8s.io/v1). Objects stay raw JSON, so that a patch is made
//! against exactly what the API server sent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The one version that is spoken.
pub const API_VERSION: &str = "admission.k8s.io/v1";
/// Longest warning that the API server passes on whole.
const WARNING_LENGTH: usize = 256;
/// The API server drops warnings beyond 4 KiB in all.
const WARNINGS: usize = 12;

/// What is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Comes back in the answer.
    pub uid: String,
    /// Kind of `object`.
    pub kind: Kind,
    /// Set when a part of the object is asked for, such as `status`.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// Empty while the name is not made yet.
    #[serde(default)]
    pub name: String,
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Who asks the API server.
    #[serde(default)]
    pub user_info: UserInfo,
    /// CREATE, UPDATE, DELETE or CONNECT.
    pub operation: String,
    /// Nothing is going to be stored.
    #[serde(default)]
    pub dry_run: Option<bool>,
    /// As it is to be; null for DELETE.
    #[serde(default)]
    pub object: Value,
    /// As it is; null for CREATE.
    #[serde(default)]
    pub old_object: Value,
}

/// A user of the API server. Their groups, uid and what authenticators add are not read.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct UserInfo {
    /// The name.
    #[serde(default)]
    pub username: String,
}

/// Group, version, kind.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Kind {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// The kind.
    pub kind: String,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Set: it is refused, with this HTTP code and sentence.
    pub refusal: Option<(u16, String)>,
    /// Sentences that kubectl shows.
    pub warnings: Vec<String>,
    /// What to change.
    pub patch: Option<json_patch::Patch>,
}

impl Answer {
    /// Allowed as it is.
    #[must_use]
    pub fn allow(warnings: Vec<String>) -> Self {
        Self { warnings, ..Self::default() }
    }

    /// Refused, because it cannot be right.
    #[must_use]
    pub fn refuse(sentence: String, warnings: Vec<String>) -> Self {
        Self { refusal: Some((422, sentence)), warnings, patch: None }
    }

    /// Refused, because it cannot be judged now.
    #[must_use]
    pub fn later(sentence: &str) -> Self {
        Self { refusal: Some((503, sentence.into())), ..Self::default() }
    }
}

/// Why a body is no review.
#[derive(Debug, thiserror::Error)]
pub enum BadReview {
    /// Not JSON, or a field is missing.
    #[error("the body is not an AdmissionReview: {0}")]
    Form(#[from] serde_json::Error),
    /// Another version.
    #[error(
        "the body is {kind} of {api_version}, not AdmissionReview of {API_VERSION}: set admissionReviewVersions to [v1]"
    )]
    Version {
        /// What it says.
        kind: String,
        /// What it says.
        api_version: String,
    },
    /// No request in it.
    #[error("the AdmissionReview has no request")]
    Empty,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incoming {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

/// Reads a review.
///
/// # Errors
/// A sentence for the caller.
pub fn read(body: &[u8]) -> Result<Request, BadReview> {
    let incoming: Incoming = serde_json::from_slice(body)?;
    if incoming.api_version != API_VERSION || incoming.kind != "AdmissionReview" {
        let short = |text: String| text.chars().take(60).collect();
        return Err(BadReview::Version {
            kind: short(incoming.kind),
            api_version: short(incoming.api_version),
        });
    }
    incoming.request.ok_or(BadReview::Empty)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outgoing<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Status<'a> {
    code: u16,
    reason: &'static str,
    message: &'a str,
}

/// Writes the answer to the review with this uid.
///
/// # Errors
/// Only if a patch had no JSON form.
pub fn write(uid: &str, answer: &Answer) -> Result<Vec<u8>, serde_json::Error> {
    let status = answer.refusal.as_ref().map(|(code, message)| Status {
        code: *code,
        reason: if *code == 503 { "ServiceUnavailable" } else { "Invalid" },
        message,
    });
    let patch = answer.patch.as_ref().map(serde_json::to_vec).transpose()?.map(|json| STANDARD.encode(json));
    let response = Response {
        uid,
        allowed: status.is_none(),
        status,
        patch_type: patch.as_ref().map(|_| "JSONPatch"),
        patch,
        warnings: answer.warnings.iter().take(WARNINGS).map(|text| bounded(text)).collect(),
    };
    serde_json::to_vec(&Outgoing { api_version: API_VERSION, kind: "AdmissionReview", response })
}

fn bounded(text: &str) -> String {
    if text.len() <= WARNING_LENGTH {
        return text.to_owned();
    }
    let mut end = WARNING_LENGTH - 3;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn an_answer_carries_the_uid_and_a_decodable_patch() {
        let patch = json_patch::diff(&json!({"a": 1}), &json!({"a": 2}));
        let answer = Answer { patch: Some(patch), warnings: vec!["w".repeat(300)], refusal: None };
        let out: Value = serde_json::from_slice(&write("u1", &answer).unwrap()).unwrap();
        assert_eq!((&out["apiVersion"], &out["kind"]), (&json!(API_VERSION), &json!("AdmissionReview")));
        let response = &out["response"];
        assert_eq!(
            (&response["uid"], &response["allowed"], &response["patchType"]),
            (&json!("u1"), &json!(true), &json!("JSONPatch"))
        );
        let patch: Value =
            serde_json::from_slice(&STANDARD.decode(response["patch"].as_str().unwrap()).unwrap()).unwrap();
        assert_eq!(patch, json!([{"op": "replace", "path": "/a", "value": 2}]));
        assert_eq!(response["warnings"][0].as_str().unwrap().len(), 256);
    }

    #[test]
    fn a_refusal_carries_code_and_sentence() {
        let out: Value =
            serde_json::from_slice(&write("u", &Answer::refuse("no".into(), vec![])).unwrap()).unwrap();
        assert_eq!(out["response"]["allowed"], false);
        assert_eq!(out["response"]["status"], json!({"code": 422, "reason": "Invalid", "message": "no"}));
    }

    #[test]
    fn what_is_no_review_is_refused_by_a_sentence() {
        for (body, word) in [
            ("", "not an AdmissionReview"),
            ("[]", "not an AdmissionReview"),
            (
                r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#,
                "admissionReviewVersions",
            ),
            (r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#, "no request"),
            (
                r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":1}}"#,
                "not an AdmissionReview",
            ),
        ] {
            let sentence = read(body.as_bytes()).unwrap_err().to_string();
            assert!(sentence.contains(word), "{sentence}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
        }

        #[test]
        fn a_warning_is_cut_at_a_character(text in "\\PC{0,400}") {
            prop_assert!(bounded(&text).len() <= WARNING_LENGTH);
        }
    }
}
