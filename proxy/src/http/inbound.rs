//! One request to the own application, from another proxy (mTLS) or from outside of the mesh. Says who the caller has
//! proved to be, looks at its token, asks the policies, counts it under the limits of its port, and passes it on. It balances nothing and
//! retries nothing but what provably did not happen.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, timeout};
use weft_api::{Identity, Reason};

use super::body::Source;
use super::client::{self, Template, Wire};
use super::exchange::{Answer, Exchange, Served};
use super::http1::LINGER;
use super::incoming::Incoming;
use super::pool::Destination;
use super::recheck::Recheck;
use super::server::Handler;
use super::{headers, probe, upgrade};
use crate::authorize::{self, Admitted, Authorization};
use crate::error::Error;
use crate::limit::key::Asked;
use crate::limit::{Limits, Verdict};
use crate::record::{Direction, Party};
use crate::retry::MAX_BODY;
use crate::route;
use crate::snapshot::{MtlsMode, Snapshot, Workload};
use crate::tls::{Abroad, Tls};
use crate::token::claims::Claims;
use crate::token::{self, Flaw, Seen, Tokens, Verified};
use crate::worker::Worker;

/// Who is at the other end of a connection to the own pod.
pub(crate) enum Peer {
    /// Another proxy, by its verified certificate.
    Mesh {
        /// As one end of a request.
        party: Party,
        /// For the header.
        identity: HeaderValue,
        /// Of another trust domain: what it has shown.
        abroad: Option<Rc<Abroad>>,
    },
    /// Anybody, by plaintext.
    Outside,
}

impl Peer {
    /// As proved by mTLS.
    pub(crate) fn caller(&self) -> Option<&Identity> {
        match self {
            Self::Mesh { party, .. } => party.identity.as_deref(),
            Self::Outside => None,
        }
    }

    /// Of another trust domain.
    pub(crate) fn is_abroad(&self) -> bool {
        matches!(self, Self::Mesh { abroad: Some(_), .. })
    }

    /// Whether its trust domain still vouches for it. For the own one that was found out when it connected.
    pub(crate) fn is_trusted(&self, tls: &Tls) -> bool {
        match self {
            Self::Mesh { abroad: Some(abroad), .. } => abroad.is_trusted(tls),
            Self::Mesh { .. } | Self::Outside => true,
        }
    }

    /// What has to be asked about it. `None`: nothing.
    pub(crate) fn policies<'a>(&self, own: Option<&'a Workload>) -> Option<&'a Arc<Authorization>> {
        let given = own.and_then(|own| own.authorization.as_ref());
        given.or_else(|| self.is_abroad().then(Authorization::of_strangers))
    }
}

/// Bundles have changed.
#[derive(Debug, thiserror::Error)]
#[error("nobody vouches any more for the caller, which is of another trust domain")]
pub(crate) struct Disowned;

/// A connection to the own application.
pub(crate) struct Inbound {
    pub(crate) worker: Rc<Worker>,
    pub(crate) client: SocketAddr,
    /// Where the application listens.
    pub(crate) original: SocketAddr,
    pub(crate) peer: Peer,
    /// What is left of the policies for this caller and port, since its last request.
    pub(crate) admitted: RefCell<Option<Rc<Admitted>>>,
    /// Whether it was noted that this connection is served in plaintext.
    pub(crate) noted: Cell<bool>,
}

/// What PeerAuthentication makes of a request, asked for each: it may have changed while the connection was open.
enum Admission {
    Any,
    /// Only the pod's own declared probes pass.
    ProbesOnly,
    /// mTLS, where it is disabled.
    Nothing,
    /// Nobody vouches for the caller any more.
    Disowned,
}

impl Handler for Inbound {
    async fn handle(self: Rc<Self>, mut request: Request<Incoming>, wire: Wire) -> Response<Served> {
        let snapshot = self.worker.proxy.store.load();
        let mut exchange = self.begin(&mut request, wire, &snapshot);
        if let Err(malformed) = headers::check(&request) {
            return exchange.refuse(&Error::new(Reason::BadRequest, malformed));
        }
        if let Err(overloaded) = self.worker.shed.admit() {
            return exchange.refuse(&overloaded);
        }
        let workload = snapshot.workload.clone();
        drop(snapshot);
        let limits = workload.as_deref().and_then(|own| own.limits_on(self.original.port()));
        match self.admission(workload.as_deref()) {
            Admission::Any => self.note_plaintext(workload.as_deref(), &request),
            Admission::Nothing => return exchange.refuse(&Reason::ClientCertificate.into()),
            Admission::Disowned => {
                return exchange.refuse(&Error::new(Reason::ClientCertificate, Disowned));
            }
            Admission::ProbesOnly => {
                let probed = Box::pin(self.probe(exchange, workload.as_deref(), request, wire));
                return match probed.await {
                    Ok(response) => response,
                    Err(exchange) => exchange.refuse(&Reason::MtlsRequired.into()),
                };
            }
        }
        if let Some(tokens) = workload.as_deref().and_then(|own| own.tokens.as_ref())
            && let Some(flaw) = self.look_at_token(tokens, &mut request, &mut exchange)
        {
            if wire == Wire::Http1 {
                self.let_finish(request.into_body());
            }
            return exchange.refuse(&flaw.error());
        }
        if let Some(policies) = self.peer.policies(workload.as_deref()) {
            let claims = exchange.record.token.as_ref().and_then(Seen::good).map(|token| &token.claims);
            let verdict = self.ask(policies, &mut request, claims);
            let by_probe = matches!(self.peer, Peer::Outside)
                && workload
                    .as_deref()
                    .is_some_and(|own| probe::declared(own, self.original.port(), &request));
            if let Some(refusal) = &verdict.refused {
                let error = refusal.error();
                if !by_probe {
                    self.note(&mut exchange, verdict);
                    if wire == Wire::Http1 {
                        self.let_finish(request.into_body());
                    }
                    return exchange.refuse(&error);
                }
                // The kubelet's own probes pass whatever policies say, and nothing near them.
                let probed = Box::pin(self.probe(exchange, workload.as_deref(), request, wire));
                return match probed.await {
                    Ok(response) => response,
                    Err(mut exchange) => {
                        self.note(&mut exchange, verdict);
                        exchange.refuse(&error)
                    }
                };
            }
            if !by_probe {
                self.note(&mut exchange, verdict);
            }
        }
        let counted = limits.and_then(|limits| self.count(workload.as_deref(), limits, &request));
        if let Some((limit, _)) = counted.as_ref().and_then(|counted| counted.refused.as_ref()) {
            exchange.record.route = Arc::clone(limit);
            if wire == Wire::Http1 {
                self.let_finish(request.into_body());
            }
            return told(exchange.refuse(&Reason::RateLimited.into()), counted);
        }
        let upgrade = headers::wanted_upgrade(&request).map(|protocol| Upgrade {
            protocol,
            recheck: self.recheck(&request, exchange.record.token.as_ref().and_then(Seen::good)),
            client: hyper::upgrade::on(&mut request),
        });
        let (head, body) = request.into_parts();
        let response = self
            .forward(exchange, Request::from_parts(head, ()), Source::new(body, MAX_BODY), wire, upgrade)
            .await;
        told(response, counted)
    }
}

/// With what the client shall know of the limits that it is under.
fn told(mut response: Response<Served>, counted: Option<Box<Verdict>>) -> Response<Served> {
    if let Some(counted) = counted {
        counted.write(response.headers_mut());
    }
    response
}

/// The same target with another path. `None`: no path at all.
fn with_path(uri: &Uri, mut path: String) -> Option<Uri> {
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.try_into().ok()?);
    Uri::from_parts(parts).ok()
}

struct Upgrade {
    protocol: HeaderValue,
    recheck: Recheck,
    client: OnUpgrade,
}

impl Inbound {
    /// Passes the request on if it is a probe that the pod declares. Its future is boxed: most requests are none.
    async fn probe(
        &self,
        exchange: Box<Exchange>,
        workload: Option<&Workload>,
        request: Request<Incoming>,
        wire: Wire,
    ) -> Result<Response<Served>, Box<Exchange>> {
        match probe::admit(workload, self.original.port(), request).await {
            Some((request, body)) => Ok(self.forward(exchange, request, body, wire, None).await),
            None => Err(exchange),
        }
    }

    fn admission(&self, workload: Option<&Workload>) -> Admission {
        // Without configuration nobody can say that plaintext is allowed.
        let mode = workload.map_or(MtlsMode::Strict, |own| own.mtls_for(self.original.port()));
        match (&self.peer, mode) {
            (Peer::Outside, MtlsMode::Strict) => Admission::ProbesOnly,
            (Peer::Mesh { .. }, MtlsMode::Disable) => Admission::Nothing,
            _ if !self.peer.is_trusted(&self.worker.proxy.tls) => Admission::Disowned,
            _ => Admission::Any,
        }
    }

    /// For whoever is about to switch Strict on: that would refuse this caller. Probes that the pod declares would pass.
    fn note_plaintext(&self, workload: Option<&Workload>, request: &Request<Incoming>) {
        let (outside, port) = (matches!(self.peer, Peer::Outside), self.original.port());
        if outside && !self.noted.get() && !workload.is_some_and(|own| probe::declared(own, port, request)) {
            self.noted.set(true);
            self.worker.proxy.metrics.plaintext.note(self.client.ip(), port);
        }
    }

    /// What the policies say of a request. One whose path an application might read differently from them goes on with the
    /// path that was judged.
    fn ask(
        &self,
        policies: &Arc<Authorization>,
        request: &mut Request<Incoming>,
        claims: Option<&Claims>,
    ) -> authorize::Verdict {
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        let asked = authorize::Asked { method, uri, headers, claims };
        let authorize::Judged { verdict, path } = self.admitted(policies).request(&asked);
        if let Some(path) = path
            && let Some(uri) = with_path(request.uri(), path)
        {
            *request.uri_mut() = uri;
        }
        verdict
    }

    fn note(&self, exchange: &mut Exchange, verdict: authorize::Verdict) {
        exchange.record.authorization = verdict.noted();
        self.worker.proxy.decided(&exchange.record);
    }

    /// Looks for a token, and says who it proves the request to be of. `Some`: it is not good.
    fn look_at_token(
        &self,
        tokens: &Arc<Tokens>,
        request: &mut Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Option<Flaw> {
        let mut uri = std::mem::take(request.uri_mut());
        let mut memory = self.worker.tokens.borrow_mut();
        let now = token::now();
        // A log is no place for what proves who somebody is.
        let redact = |clean| exchange.record.uri = clean;
        let seen = tokens.of_request(request.headers_mut(), &mut uri, now, &mut memory, redact);
        *request.uri_mut() = uri;
        exchange.record.token = seen;
        match exchange.record.token {
            Some(Seen::Bad(flaw)) => {
                if flaw == Flaw::UnknownKey {
                    self.worker.proxy.store.miss_keys();
                }
                Some(flaw)
            }
            _ => None,
        }
    }

    fn recheck(&self, request: &Request<Incoming>, token: Option<&Arc<Verified>>) -> Recheck {
        let token = token.map(Arc::clone);
        Recheck::new(&self.worker, &self.peer, self.client.ip(), self.original.port(), request, token)
    }

    /// Looked up once for as long as the policies are the same.
    fn admitted(&self, policies: &Arc<Authorization>) -> Rc<Admitted> {
        let mut known = self.admitted.borrow_mut();
        match &*known {
            Some(admitted) if admitted.is_of(policies) => Rc::clone(admitted),
            _ => {
                let admitted = policies.admit(self.peer.caller(), self.client.ip(), self.original.port());
                Rc::clone(known.insert(Rc::new(admitted)))
            }
        }
    }

    /// Reads what is still to come of a refused request, for a while: an HTTP/1 connection that is closed on it is reset, and
    /// the other side loses the answer (RFC 9112 section 9.6).
    fn let_finish(&self, mut body: Incoming) {
        if body.is_end_stream() {
            return;
        }
        self.worker.spawn(async move {
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            // After that it is closed on.
            let _ = timeout(LINGER, rest).await;
        });
    }

    /// Counts it under the limits of its port. The kubelet's probes are not counted: a pod under load must not be taken
    /// for a sick one.
    fn count(
        &self,
        workload: Option<&Workload>,
        limits: &Limits,
        request: &Request<Incoming>,
    ) -> Option<Box<Verdict>> {
        let port = self.original.port();
        let (identity, caller) = match &self.peer {
            Peer::Mesh { identity, party, .. } => (Some(identity), party.identity.as_deref()),
            Peer::Outside if workload.is_some_and(|own| probe::declared(own, port, request)) => return None,
            Peer::Outside => (None, None),
        };
        let (headers, client) = (request.headers(), self.client.ip());
        let mut matched = route::Asked::new(request.method(), request.uri(), headers, caller);
        matched.abroad = self.peer.is_abroad();
        let asked = Asked { path: &matched.path, headers, identity, client };
        limits.count(port, &matched, &asked, Instant::now())
    }

    fn begin(&self, request: &mut Request<Incoming>, wire: Wire, snapshot: &Snapshot) -> Box<Exchange> {
        let mut exchange = Exchange::begin(&self.worker, Direction::Inbound, request, wire, self.client);
        let record = &mut exchange.record;
        record.destination = self.worker.proxy.party(snapshot);
        record.upstream = Some(self.original);
        if let Some(workload) = &snapshot.workload
            && let Some(service) = workload.service_for(self.original.port())
        {
            record.service = Arc::clone(service);
        }
        if let Peer::Mesh { party, .. } = &self.peer {
            record.source = party.clone();
            record.mtls = true;
        }
        exchange
    }

    async fn forward(
        &self,
        mut exchange: Box<Exchange>,
        request: Request<()>,
        body: Source,
        wire: Wire,
        upgrade: Option<Upgrade>,
    ) -> Response<Served> {
        let token = exchange.record.token.as_ref().and_then(Seen::good);
        let template = self.template(request, body.clone(), wire, upgrade.as_ref(), token);
        exchange.body = body;
        let to = Destination::App(self.original);
        match client::send(&self.worker, &to, &template, &|_| false).await {
            Err(failure) => exchange.refuse(&failure.error),
            Ok((mut response, held)) => {
                // An application cannot speak for the mesh.
                headers::remove_reason(response.headers_mut());
                match upgrade {
                    Some(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                        let until = upgrade.recheck.forbidden();
                        upgrade::switch(&self.worker, exchange, upgrade.client, response, None, until)
                    }
                    None if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                        exchange.refuse(&Reason::UpstreamProtocol.into())
                    }
                    _ => exchange.respond(Answer::new(response, held), None),
                }
            }
        }
    }

    fn template(
        &self,
        request: Request<()>,
        body: Source,
        wire: Wire,
        upgrade: Option<&Upgrade>,
        token: Option<&Arc<Verified>>,
    ) -> Template {
        let version = request.version();
        let (mut head, ()) = request.into_parts();
        headers::forward_request(&mut head.headers, version);
        let identity = match &self.peer {
            Peer::Mesh { identity, .. } => Some(identity),
            Peer::Outside => None,
        };
        headers::state_identity(&mut head.headers, identity);
        if let Some(token) = token {
            // Again: a client that lists them in its `Connection` has had them removed.
            token.state(&mut head.headers);
        }
        if let Some(upgrade) = upgrade {
            headers::restore_upgrade(&mut head.headers, upgrade.protocol.clone());
        }
        if wire == Wire::Http1 {
            headers::to_origin_form(&mut head.uri, &mut head.headers);
            headers::ensure_host(&mut head.headers, self.original);
        }
        Template {
            repeatable: head.method.is_idempotent(),
            method: head.method,
            uri: head.uri,
            headers: head.headers,
            body,
            version: wire,
            // The caller's proxy has seen to that.
            grpc_deadline: None,
            rule: None,
        }
    }
}
