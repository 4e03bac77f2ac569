//! Why the data path gave up on something: one closed [`Reason`] for everybody to see, and the cause for the log.
//! It answers who is to blame and whether trying again elsewhere is safe; it never decides to.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use weft_api::Reason;

/// Who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Whoever connected to the proxy.
    Client,
    /// Whomever the proxy connected to.
    Upstream,
    /// A limit or the configuration of the proxy itself.
    Proxy,
}

/// A failure of the data path. Cheap to clone: those who wait for one dial share its failure.
#[derive(Clone, Debug)]
pub struct Error {
    reason: Reason,
    // Whatever the reason says, the proxy itself is to blame.
    own: bool,
    cause: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// With its cause.
    pub fn new(reason: Reason, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { reason, own: false, cause: Some(Arc::from(cause.into())) }
    }

    /// With its cause, which lies in the proxy itself: no peer is to be blamed for it.
    pub fn own(reason: Reason, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { own: true, ..Self::new(reason, cause) }
    }

    /// The word for header, log and metrics.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Who is to blame.
    #[must_use]
    pub const fn side(&self) -> Side {
        if self.own {
            return Side::Proxy;
        }
        match self.reason {
            Reason::MtlsRequired
            | Reason::ClientCertificate
            | Reason::BadRequest
            | Reason::HeadersTooLarge
            | Reason::ClientTimeout
            | Reason::CorsRefused
            | Reason::PolicyDenied
            | Reason::TokenInvalid
            | Reason::TokenExpired
            | Reason::GrpcDeadline => Side::Client,
            Reason::ConnectTimeout
            | Reason::ConnectFailed
            | Reason::PeerIdentityMismatch
            | Reason::TlsHandshake
            | Reason::UpstreamReset
            | Reason::UpstreamProtocol
            | Reason::RequestTimeout
            | Reason::PerTryTimeout
            | Reason::IdleTimeout => Side::Upstream,
            Reason::NoHealthyEndpoint
            | Reason::BreakerConnections
            | Reason::BreakerPending
            | Reason::BreakerOpen
            | Reason::ConfigUnavailable
            | Reason::Draining
            | Reason::Overloaded
            | Reason::RateLimited
            | Reason::NotRegistered
            | Reason::AdaptiveLimit
            | Reason::FaultInjected => Side::Proxy,
        }
    }

    /// True when nothing can have reached an application: another endpoint may be tried whatever was asked.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(
            self.reason,
            Reason::ConnectTimeout
                | Reason::ConnectFailed
                | Reason::PeerIdentityMismatch
                | Reason::TlsHandshake
        )
    }

    /// The chain of causes, for the log. `None` when the reason says it all.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        let mut at: &dyn StdError = &**self.cause.as_ref()?;
        let mut text = at.to_string();
        while let Some(next) = at.source() {
            let more = next.to_string();
            // Many libraries repeat the cause in their own message.
            if !text.contains(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            at = next;
        }
        Some(text)
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self { reason, own: false, cause: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Finds an error of a type among the causes of another.
pub(crate) fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // `io::Error::source` skips the error that it wraps.
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            at = Some(inner);
            continue;
        }
        at = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn the_detail_names_every_cause_once() {
        let error = Error::new(Reason::ConnectFailed, io::Error::other("no route to host"));
        assert_eq!(error.detail().as_deref(), Some("no route to host"));
        assert_eq!(Error::from(Reason::Draining).detail(), None);
    }

    #[test]
    fn only_failures_before_the_first_byte_are_retryable_whatever_was_asked() {
        for reason in Reason::ALL {
            let error = Error::from(*reason);
            if error.retryable() {
                assert_eq!(error.side(), Side::Upstream, "{reason}");
            }
        }
        assert!(!Error::from(Reason::UpstreamReset).retryable());
    }

    #[test]
    fn a_cause_inside_an_io_error_is_found() {
        let inner = rustls::Error::DecryptError;
        let outer = Error::new(Reason::UpstreamReset, io::Error::other(inner));
        assert!(find::<rustls::Error>(&outer).is_some());
        assert!(find::<hyper::Error>(&outer).is_none());
    }
}
