//! A compiled service as it goes out: encoded once, however many streams it is sent on. What the streams have to know of it
//! stands beside the bytes; nobody reads those.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use weft_api::v1::{self, Source};

use crate::checks;

/// See above. Equal ones have equal bytes: the message holds no map.
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded {
    /// "namespace/name:port".
    pub key: String,
    /// What shaped it. Shared with what each stream remembers of it.
    pub sources: Arc<[Source]>,
    /// Services with active checks whose endpoints it has.
    pub checking: Vec<String>,
    /// The `weft.v1.Service`.
    pub bytes: Bytes,
}

impl From<v1::Service> for Encoded {
    fn from(service: v1::Service) -> Self {
        Self {
            checking: checks::checked(&service).map(str::to_owned).collect(),
            bytes: service.encode_to_vec().into(),
            key: service.key,
            sources: service.sources.into(),
        }
    }
}
