//! One request of the own application: route, admit, balance, send, retry, respond. The straight line of the data path;
//! each decision is a pure function elsewhere.

use std::cell::OnceCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::header::SET_COOKIE;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use rand::Rng;
use tokio::time::{Instant, sleep};
use weft_api::Reason;

use super::body::Source;
use super::client::{self, Elsewhere, Failure, Template, Wire};
use super::clock::{Clock, Deadline};
use super::exchange::{Answer, Exchange, Served};
use super::guard::Phase;
use super::hedge::{self, Race};
use super::incoming::Incoming;
use super::pool::Destination;
use super::server::Handler;
use super::{filters, grpc_timeout, headers, hold, judge, mirror, pushback, upgrade};
use crate::balance::{self, Outcome, hash};
use crate::breaker::Permit;
use crate::error::{Error, Side};
use crate::metrics::Retried;
use crate::record::{Direction, Party};
use crate::retry::{self, Attempt, Failed, Pushback};
use crate::route::{self, Route};
use crate::snapshot::{Cluster, Endpoint, HashOn, Service, Snapshot, Target};
use crate::store::Lease;
use crate::worker::Worker;

/// A connection of the own application to a destination of the mesh.
pub(crate) struct Outbound {
    pub(crate) worker: Rc<Worker>,
    pub(crate) client: SocketAddr,
    pub(crate) original: SocketAddr,
    /// Where the connection stands.
    pub(crate) phase: Phase,
    /// Its address was nothing of the cluster when it was opened; then, made when needed, what stands for that address.
    pub(crate) unregistered: Option<OnceCell<Arc<Service>>>,
    /// Keeps the destination in the configuration.
    pub(crate) _lease: Lease,
}

impl Handler for Outbound {
    fn phase(&self) -> Phase {
        self.phase.clone()
    }

    async fn handle(self: Rc<Self>, mut request: Request<Incoming>, wire: Wire) -> Response<Served> {
        let snapshot = self.worker.proxy.store.load();
        let mut exchange =
            Exchange::begin(&self.worker, Direction::Outbound, &mut request, wire, self.client);
        exchange.record.source = self.worker.proxy.party(&snapshot);
        if let Err(malformed) = headers::check(&request) {
            return exchange.refuse(&Error::new(Reason::BadRequest, malformed));
        }
        if let Err(overloaded) = self.worker.shed.admit() {
            return exchange.refuse(&overloaded);
        }
        let target = match snapshot.addresses.get(&self.original).cloned() {
            Some(target) => Ok(target),
            None => Box::pin(self.worker.proxy.store.resolve(self.original)).await,
        };
        let (service, pinned) = match target {
            Ok(Target::Service(service)) => (service, None),
            Ok(Target::Pinned(service, endpoint)) => (service, Some(endpoint)),
            Ok(Target::External) => match self.outside(&snapshot, &request) {
                Ok(service) => (service, None),
                Err(reason) => return exchange.refuse(&reason.into()),
            },
            Err(reason) => return exchange.refuse(&reason.into()),
        };
        self.forward(exchange, request, wire, &service, pinned.as_ref()).await
    }
}

/// What the client gets if there is no further try.
enum Stands {
    Answer(Answer),
    Error(Error),
}

impl Stands {
    /// What the server asks of those who would try again.
    fn pushback(&self) -> Option<Pushback> {
        let Self::Answer(answer) = self else { return None };
        let now = SystemTime::now();
        let trailers = answer.first.as_ref().and_then(|first| first.trailers_ref());
        let in_trailers = trailers.and_then(|trailers| pushback::asked(trailers, now));
        in_trailers.or_else(|| pushback::asked(answer.response.headers(), now))
    }
}

impl Outbound {
    /// The external service that a request means; without any, the address itself, where that is allowed.
    fn outside(&self, snapshot: &Snapshot, request: &Request<Incoming>) -> Result<Arc<Service>, Reason> {
        let port = snapshot.egress.port(self.original.port());
        if let Some(service) = port.and_then(|port| port.by_authority(headers::authority(request)?)) {
            return Ok(Arc::clone(service));
        }
        if snapshot.registered_only() {
            return Err(Reason::NotRegistered);
        }
        // Otherwise its service was deleted while the connection was open.
        let unregistered = self.unregistered.as_ref().ok_or(Reason::NoHealthyEndpoint)?;
        match unregistered.get() {
            Some(service) => Ok(Arc::clone(service)),
            None => {
                let made = Snapshot::unregistered(self.original).ok_or(Reason::NoHealthyEndpoint)?;
                Ok(Arc::clone(unregistered.get_or_init(|| made)))
            }
        }
    }

    async fn forward(
        &self,
        mut exchange: Box<Exchange>,
        mut request: Request<Incoming>,
        wire: Wire,
        service: &Arc<Service>,
        pinned: Option<&Arc<Endpoint>>,
    ) -> Response<Served> {
        let hit = route::route(service, request.method(), request.uri(), request.headers());
        let route = hit.route;
        let cluster = match pinned {
            Some(_) => &service.default_cluster,
            None => self.worker.with_rng(|rng| route::backend(route, rng)),
        };
        exchange.record.service = Arc::clone(&service.key);
        exchange.record.route = Arc::clone(&route.name);
        exchange.record.destination.namespace = Arc::clone(&service.namespace);
        if let Some(filters) = &route.filters {
            match filters::begin(exchange, &mut request, filters, hit.prefix()) {
                ControlFlow::Continue(same) => exchange = same,
                ControlFlow::Break(response) => return response,
            }
        }
        match route.admit(cluster) {
            Ok(permit) => exchange.admit(permit),
            Err(reason) => return exchange.refuse(&reason.into()),
        }
        let deadline = deadline(&exchange, route, request.headers());
        if let Some(fault) = route.filters.as_ref().and_then(|filters| filters.fault.as_ref()) {
            let drawn = self.worker.with_rng(|rng| fault.draw(request.headers(), exchange.is_grpc(), rng));
            match Box::pin(filters::inject(exchange, drawn, deadline)).await {
                ControlFlow::Continue(same) => exchange = same,
                ControlFlow::Break(response) => return response,
            }
        }
        service.live.budget.deposit(&route.retry, exchange.started());

        let key = match &cluster.hash {
            Some(on) if pinned.is_none() => self.key(&mut exchange, on, &request),
            _ => None,
        };
        let mut clock = Clock::new(deadline, route.idle_timeout);
        let deadline = deadline.map(|deadline| deadline.at);
        let (mut template, upgrade) =
            self.template(&mut exchange, request, wire, route, cluster.tls.is_some());
        template.grpc_deadline = deadline.filter(|_| exchange.is_grpc());
        if let Some(activity) = clock.as_ref().and_then(|clock| clock.activity()) {
            exchange.body.touch(activity);
        }
        if let Some(mirror) = route.mirror.as_ref().filter(|_| upgrade.is_none()) {
            mirror::begin(&self.worker, mirror, &template, deadline);
        }
        let hedge =
            route.hedge.filter(|_| pinned.is_none() && upgrade.is_none() && hedge::is_safe(&template));
        let mut tried = Vec::new();
        let mut retry_permit = None;
        loop {
            let load = match pinned {
                Some(endpoint) => Ok(balance::pinned(cluster, endpoint, Instant::now())),
                None => self.worker.with_rng(|rng| balance::pick(cluster, key, &tried, Instant::now(), rng)),
            };
            let load = match load {
                Ok(load) => load,
                Err(reason) => return exchange.refuse(&reason.into()),
            };
            let mut to = self.towards(&mut exchange, service, cluster, &load.endpoint);
            let mut began = cluster.adaptive.as_ref().map(|_| Instant::now());
            let mut sent = if let Some(hedge) = hedge {
                exchange.record.upstream = Some(to.addr());
                let (worker, permit) = (&self.worker, retry_permit.take());
                let race = Race { worker, service, cluster, key, route, template: &template, hedge };
                let running = race.run(load, to.clone(), permit, &mut tried, clock.as_deref_mut());
                match Box::pin(running).await {
                    Ok(ended) => {
                        began = began.map(|_| ended.load.started());
                        to = self.towards(&mut exchange, service, cluster, &ended.load.endpoint);
                        exchange.attempt(ended.load, ended.permit);
                        ended.sent
                    }
                    Err(late) => Err(late),
                }
            } else {
                exchange.attempt(load, retry_permit.take());
                let number = exchange.record.retries + 1;
                let elsewhere = |failed| {
                    let places = (tried.as_slice(), to.addr());
                    pinned.is_none() && elsewhere(service, route, cluster, places, number, failed)
                };
                try_once(&self.worker, &to, &template, route, clock.as_deref_mut(), &elsewhere).await
            };
            let came = Instant::now();
            if let Some(began) = began {
                observe(&self.worker, cluster, (began, came), &sent);
            }
            if exchange.is_grpc() && judge::may_fail_late(&sent, &route.retry, &template) {
                sent = match sent {
                    Ok(answer) => Box::pin(hold::until_begun(answer, deadline)).await,
                    failed => failed,
                };
            }
            let (failed, stands) = match sent {
                Ok(answer) => match judge::judge(&answer, exchange.record.mtls, &route.retry) {
                    None => {
                        exchange.answered(judge::refuses(&answer), came);
                        return self.respond(exchange, answer, upgrade, clock);
                    }
                    Some((failed, Some(failure))) => {
                        exchange.report(Outcome::Failure(failure));
                        (Some(failed), Stands::Answer(answer))
                    }
                    Some((failed, None)) => {
                        exchange.answered(judge::refuses(&answer), came);
                        (Some(failed), Stands::Answer(answer))
                    }
                },
                Err(Failure { failed, error }) => {
                    self.worker.make_room_after(&error);
                    if error.reason() == Reason::GrpcDeadline {
                        exchange.outlasted();
                    }
                    exchange.report(judge::outcome_of(failed, &error, &template));
                    let ours = error.side() != Side::Upstream || judge::is_final(error.reason());
                    ((!ours).then_some(failed), Stands::Error(error))
                }
            };
            let attempt = |failed| Attempt {
                number: exchange.record.retries + 1,
                method: &template.method,
                failed,
                replayable: template.body.replayable(),
                pushback: stands.pushback(),
                left: deadline.map(|at| at.saturating_duration_since(Instant::now())),
            };
            let again = failed.and_then(|failed| {
                let again = self.again(service, route, cluster, &attempt(failed))?;
                Some((failed, again))
            });
            let Some((failed, (wait, permit))) = again else {
                return match stands {
                    Stands::Answer(answer) => self.respond(exchange, answer, upgrade, clock),
                    Stands::Error(error) => exchange.refuse(&error),
                };
            };
            if let Stands::Answer(answer) = stands {
                client::discard(&self.worker, answer.response, answer.held);
            }
            retry_permit = Some(permit);
            exchange.retries(failed);
            tried.push(to.addr());
            sleep(wait).await;
        }
    }

    /// What the request is hashed by. A client without the cookie gets one with the response.
    fn key(&self, exchange: &mut Exchange, on: &HashOn, request: &Request<Incoming>) -> Option<u64> {
        let found = hash::key(on, request.uri(), request.headers(), self.client.ip());
        match (on, found) {
            (HashOn::Cookie { name, ttl }, None) => {
                let (key, cookie) = hash::issue(name, *ttl, self.worker.with_rng(Rng::random));
                exchange.cookie = cookie;
                Some(key)
            }
            _ => found,
        }
    }

    /// Takes the request apart into what can be sent more than once.
    fn template(
        &self,
        exchange: &mut Exchange,
        mut request: Request<Incoming>,
        wire: Wire,
        route: &Route,
        to_https: bool,
    ) -> (Template, Option<OnUpgrade>) {
        let protocol = headers::wanted_upgrade(&request);
        let upgrade = protocol.as_ref().map(|_| hyper::upgrade::on(&mut request));
        let version = request.version();
        let (mut head, body) = request.into_parts();
        headers::forward_request(&mut head.headers, version);
        if let Some(protocol) = protocol {
            headers::restore_upgrade(&mut head.headers, protocol);
        }
        if wire == Wire::Http1 {
            headers::to_origin_form(&mut head.uri, &mut head.headers);
            headers::ensure_host(&mut head.headers, self.original);
        } else if to_https {
            headers::to_https(&mut head.uri);
        }
        if let Some(changes) = route.filters.as_ref().and_then(|filters| filters.request.as_ref()) {
            changes.apply(&mut head.headers);
        }
        exchange.body = Source::new(body, route.retry.max_body);
        exchange.body.tell(&self.phase);
        let template = Template {
            repeatable: head.method.is_idempotent() || route.retry.non_idempotent,
            method: head.method,
            uri: head.uri,
            headers: head.headers,
            body: exchange.body.clone(),
            version: wire,
            grpc_deadline: None,
            rule: route.bound_on_waiting(),
        };
        (template, upgrade)
    }

    /// Notes where the next try goes.
    fn towards(
        &self,
        exchange: &mut Exchange,
        service: &Arc<Service>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
    ) -> Destination {
        let to = Destination::of(&self.worker.proxy, cluster, endpoint);
        exchange.record.mtls = to.identity().is_some();
        exchange.record.destination = Party {
            namespace: Arc::clone(&service.namespace),
            workload: Arc::clone(&endpoint.workload),
            identity: endpoint.identity.clone(),
        };
        to
    }

    /// Whether there is another try, after what wait: the policy first, then the budget, then the breaker.
    fn again(
        &self,
        service: &Service,
        route: &Route,
        cluster: &Cluster,
        attempt: &Attempt<'_>,
    ) -> Option<(Duration, Permit)> {
        let wait = self.worker.with_rng(|rng| retry::decide(&route.retry, attempt, rng))?;
        let metrics = &self.worker.proxy.metrics;
        if !service.live.budget.withdraw(&route.retry, Instant::now()) {
            metrics.retry(&service.key, Retried::BudgetSpent);
            return None;
        }
        let Some(permit) = route.admit_retry(cluster) else {
            metrics.retry(&service.key, Retried::BreakerOpen);
            return None;
        };
        metrics.retry(&service.key, Retried::Sent);
        Some((wait, permit))
    }

    fn respond(
        &self,
        mut exchange: Box<Exchange>,
        mut answer: Answer,
        upgrade: Option<OnUpgrade>,
        clock: Option<Box<Clock>>,
    ) -> Response<Served> {
        if let Some(cookie) = exchange.cookie.take() {
            answer.response.headers_mut().append(SET_COOKIE, cookie);
        }
        if answer.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return match upgrade {
                Some(client) => {
                    // The callee's proxy judges it.
                    let until = std::future::pending();
                    upgrade::switch(&self.worker, exchange, client, answer.response, clock, until)
                }
                None => exchange.refuse(&Reason::UpstreamProtocol.into()),
            };
        }
        if !exchange.record.mtls {
            // Only another proxy may say this.
            headers::remove_reason(answer.response.headers_mut());
        }
        exchange.respond(answer, clock)
    }
}

/// Whether a try that is given up now could be followed by one at another endpoint, which has not failed this request yet.
fn elsewhere(
    service: &Service,
    route: &Route,
    cluster: &Cluster,
    (tried, here): (&[SocketAddr], SocketAddr),
    number: u32,
    failed: Failed,
) -> bool {
    let now = Instant::now();
    number <= route.retry.attempts
        && retry::wanted(&route.retry, failed)
        && balance::another(cluster, tried, here, now)
        && service.live.budget.would_allow(&route.retry, now)
}

/// By when a request must have ended: what the rule gives, or the client of a gRPC call, whichever is earlier.
fn deadline(exchange: &Exchange, route: &Route, headers: &HeaderMap) -> Option<Deadline> {
    let of = |left, reason| Deadline { at: exchange.started() + left, reason };
    let rule = route.timeout.map(|timeout| of(timeout, Reason::RequestTimeout));
    if !exchange.is_grpc() {
        return rule;
    }
    Deadline::first(rule, grpc_timeout::read(headers).map(|left| of(left, Reason::GrpcDeadline)))
}

/// Sends the request once, for as long as a try and the whole may take.
pub(super) async fn try_once(
    worker: &Rc<Worker>,
    to: &Destination,
    template: &Template,
    route: &Route,
    mut clock: Option<&mut Clock>,
    elsewhere: Elsewhere<'_>,
) -> Result<Answer, Failure> {
    if let Some(clock) = &clock {
        clock.touch();
    }
    let mut sending = pin!(client::send(worker, to, template, elsewhere));
    let mut try_ends = route.retry.per_try_timeout.map(|limit| Box::pin(sleep(limit)));
    poll_fn(|cx| {
        if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            return Poll::Ready(sent.map(|(response, held)| Answer::new(response, held)));
        }
        let mut late = clock.as_mut().map_or(Poll::Pending, |clock| clock.poll(cx));
        if late.is_pending()
            && let Some(try_ends) = &mut try_ends
        {
            late = try_ends.as_mut().poll(cx).map(|()| Reason::PerTryTimeout);
        }
        late.map(|reason| Err(Failure { failed: Failed::PerTryTimeout, error: reason.into() }))
    })
    .await
}

/// Tells the cluster's adaptive limit how long a try took, where that says something of its load: a refusal or a failure is
/// fast for other reasons.
fn observe(
    worker: &Worker,
    cluster: &Cluster,
    (began, came): (Instant, Instant),
    sent: &Result<Answer, Failure>,
) {
    let Some(adaptive) = &cluster.adaptive else { return };
    let telling = match sent {
        Ok(answer) => !answer.response.status().is_server_error() && !judge::refuses(answer),
        Err(failed) => matches!(failed.error.reason(), Reason::PerTryTimeout | Reason::RequestTimeout),
    };
    if telling {
        worker.with_rng(|rng| adaptive.sample(began, came, cluster.breaker.requests(), rng));
    }
}
