//! The closed list of reasons for which a proxy refuses or breaks off a request or connection by itself.
//! One word in the `weft-reason` header, the access log, the metric label and `weft explain`.

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal, $status:literal, $help:literal;)+) => {
        /// Why a proxy answered by itself. See [`Reason::help`] for what to do about each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The word used in headers, logs and labels.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Reason::$name => $word,)+ } }

            /// The HTTP status of a response with this reason.
            #[must_use]
            pub const fn status(self) -> u16 { match self { $(Reason::$name => $status,)+ } }

            /// One sentence for the operator of the mesh: what happened and what to do.
            #[must_use]
            pub const fn help(self) -> &'static str { match self { $(Reason::$name => $help,)+ } }
        }
    };
}

reasons! {
    /// No endpoint of the destination is left to try.
    NoHealthyEndpoint = "no-healthy-endpoint", 503, "The destination has no ready endpoint, or all are ejected: look at `kubectl get endpointslices` and `weft top`.";
    /// `maxConnections` of the destination is reached.
    BreakerConnections = "breaker-connections", 503, "maxConnections of the MeshService is reached; raise it or add replicas.";
    /// `maxPendingRequests` of the destination is reached.
    BreakerPending = "breaker-pending", 503, "maxPendingRequests of the MeshService is reached; raise it or add replicas.";
    /// `maxConcurrentRequests` of the destination is reached.
    BreakerOpen = "breaker-open", 503, "maxConcurrentRequests of the MeshService is reached; raise it or add replicas.";
    /// Connecting took longer than the connect timeout.
    ConnectTimeout = "connect-timeout", 503, "The endpoint did not accept a connection in time: is it overloaded, or is a network policy dropping packets?";
    /// Connecting failed.
    ConnectFailed = "connect-failed", 503, "The endpoint refused the connection: does the application listen on that port?";
    /// The peer's certificate is not of the identity that the endpoint should have.
    PeerIdentityMismatch = "peer-identity-mismatch", 503, "Whoever answered at the endpoint's address is not the expected workload; its address was probably reused.";
    /// The TLS handshake with the peer proxy failed.
    TlsHandshake = "tls-handshake", 503, "mTLS with the peer failed: look at both proxies' logs; has a certificate expired?";
    /// The upstream closed or reset before a response, and no retry was allowed.
    UpstreamReset = "upstream-reset", 502, "The application closed the connection without an answer; a retry policy for such requests may help.";
    /// The upstream sent something that is not HTTP.
    UpstreamProtocol = "upstream-protocol", 502, "The application's answer is not valid HTTP; set appProtocol to tcp if the port does not speak HTTP.";
    /// The route's timeout passed.
    RequestTimeout = "request-timeout", 504, "The route's timeout passed before the response was complete.";
    /// The last try's timeout passed.
    PerTryTimeout = "per-try-timeout", 504, "Each attempt took longer than retry.perTryTimeout.";
    /// Plaintext, where PeerAuthentication is Strict.
    MtlsRequired = "mtls-required", 403, "PeerAuthentication is Strict here and the client is outside of the mesh: inject it, or use Permissive for this port.";
    /// The client's certificate is missing, expired or not of the trust bundle.
    ClientCertificate = "client-certificate", 403, "The client's certificate was refused: see the detail in the log.";
    /// Malformed or unsafe HTTP from the client.
    BadRequest = "bad-request", 400, "The request is not valid HTTP.";
    /// The request's head is larger than the proxy takes.
    HeadersTooLarge = "headers-too-large", 431, "The request's headers are larger than 64 KiB.";
    /// The client did not send a complete request head in time.
    ClientTimeout = "client-timeout", 408, "The client took too long to send the request's head.";
    /// The operator has not told yet what this destination is.
    ConfigUnavailable = "config-unavailable", 503, "The operator could not be asked about a destination that this workload had never called: is the operator running?";
    /// The proxy is stopping.
    Draining = "draining", 503, "The pod is shutting down.";
    /// The proxy is out of connections, files or memory.
    Overloaded = "overloaded", 503, "The proxy itself has no room: its log says whether for connections, files or memory. Raise that limit, or add replicas.";
    /// A rate limit of the destination is used up.
    RateLimited = "rate-limited", 429, "The rateLimit of a TrafficPolicy rule of the destination is used up: wait as retry-after says, or raise it.";
    /// The destination is neither of the cluster nor registered, and the outbound policy is RegisteredOnly.
    NotRegistered = "not-registered", 502, "The outbound policy is RegisteredOnly and the destination is neither a Service or pod of the cluster nor a registered external one: describe it in a MeshService with target.external, or use AllowAny.";
    /// `adaptiveConcurrency` of the destination allows no more.
    AdaptiveLimit = "adaptive-limit", 503, "Requests to the destination begin to wait for each other, so that adaptiveConcurrency of its MeshService lets no more through: add replicas, or raise tolerancePercent or minLimit.";
    /// A rule's fault injection.
    FaultInjected = "fault-injected", 503, "The rule's `fault` made this failure up: remove it from the TrafficPolicy when the experiment is over.";
    /// A preflight of an origin that the rule does not allow.
    CorsRefused = "cors-refused", 403, "The preflight's Origin is not among cors.allowOrigins of the rule: add it if pages of that origin may call this service.";
    /// No byte went by, either way, for the route's idle timeout.
    IdleTimeout = "idle-timeout", 504, "For the rule's idleTimeout neither side sent a byte: look why the application is silent, or raise idleTimeout.";
    /// The deadline that the client of a gRPC call gave passed.
    GrpcDeadline = "grpc-deadline", 504, "The deadline that the gRPC client gave (grpc-timeout) passed before the call was complete: the server is too slow for it, or it should give more time.";
    /// An AuthorizationPolicy of the destination.
    PolicyDenied = "policy-denied", 403, "An AuthorizationPolicy of the destination forbids this, or none of those that allow something allows it: the callee's access log and `weft explain` name the policy and its rule.";
    /// The token that a request bears is not good.
    TokenInvalid = "token-invalid", 401, "The request bears a token (JWT) that a RequestAuthentication of the destination does not take: the callee's access log says why (issuer, audience, key, signature, form). Ask its issuer for another, or add the issuer.";
    /// The token that a request bears is good at another time.
    TokenExpired = "token-expired", 401, "The token (JWT) that the request bears has expired, or is not valid yet: get a new one, or look at the clocks of issuer and cluster.";
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_kebab_case_and_equal_to_the_serialized_form() {
        let mut seen = std::collections::HashSet::new();
        for reason in Reason::ALL {
            assert!(seen.insert(reason.as_str()), "{reason} stands twice");
            assert!(
                reason.as_str().chars().all(|c| c.is_ascii_lowercase() || c == '-' || c.is_ascii_digit())
            );
            assert!((400..600).contains(&reason.status()));
        }
    }
}
