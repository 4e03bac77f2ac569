//! What a rule does to a request besides choosing where it goes. Everything is compiled when the snapshot is built; a route
//! without any of it has none. Pure: `http/filters` applies it.

pub mod cors;
pub mod direct;
pub mod fault;
pub mod headers;
pub mod redirect;
pub mod rewrite;

use cors::Cors;
use direct::Direct;
use fault::Fault;
use headers::HeaderChanges;
use redirect::Redirect;
use rewrite::Rewrite;

/// Of one rule.
#[derive(Debug, Default)]
pub struct Filters {
    /// On requests.
    pub request: Option<HeaderChanges>,
    /// On responses.
    pub response: Option<HeaderChanges>,
    /// Another host or path.
    pub rewrite: Option<Rewrite>,
    /// In place of sending the request.
    pub answer: Option<Answer>,
    /// Made-up failures.
    pub fault: Option<Fault>,
    /// Which origins may call.
    pub cors: Option<Cors>,
}

/// In place of sending a request.
#[derive(Debug)]
pub enum Answer {
    /// The client shall go elsewhere.
    Redirect(Redirect),
    /// A fixed response.
    Direct(Direct),
}

impl Filters {
    /// What there is of it, for a reader.
    #[must_use]
    pub fn words(&self) -> Vec<&'static str> {
        let answer = self.answer.as_ref().map(|answer| match answer {
            Answer::Redirect(_) => "redirect",
            Answer::Direct(_) => "response",
        });
        [
            self.request.as_ref().map(|_| "request-headers"),
            self.response.as_ref().map(|_| "response-headers"),
            self.rewrite.as_ref().map(|_| "rewrite"),
            answer,
            self.fault.as_ref().map(|_| "fault"),
            self.cors.as_ref().map(|_| "cors"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
