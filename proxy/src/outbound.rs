//! The path of a connection that the own application opens: where does it go, what does it speak, then HTTP or opaque
//! bytes. Composes the steps; each of them is a module of its own.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use weft_api::Reason;

use crate::detect::{self, First};
use crate::error::Error;
use crate::forward::Abort;
use crate::http::exchange::Exchange;
use crate::http::guard::{Ends, Phase};
use crate::http::outbound::Outbound;
use crate::http::{Wire, server};
use crate::original_dst::{OriginalDst, canonical};
use crate::prefixed::Prefixed;
use crate::record::{Direction, Party};
use crate::silence::{self, Spoke};
use crate::snapshot::{Protocol, Service, Target};
use crate::tcp::{self, Opaque};
use crate::worker::{Rest, Worker};

mod outside;

/// A client that has not spoken by then may be waiting for the server to speak first.
const SILENCE: Duration = Duration::from_millis(10);
/// A client that is to be told why it goes nowhere has this long to say what it speaks.
const EXPLAIN: Duration = Duration::from_secs(1);

/// Where the connection goes, and what it speaks.
pub(crate) async fn begin<'a>(
    worker: &'a Rc<Worker>,
    client: TcpStream,
    peer: SocketAddr,
    original_dst: &OriginalDst,
) -> Option<Rest<'a>> {
    let peer = canonical(peer);
    let original = match original_dst.of(&client, Direction::Outbound) {
        Ok(original) => original,
        Err(e) => {
            let detail = e.to_string();
            worker.proxy.refuse(Direction::Outbound, Reason::BadRequest, peer, Some(&detail));
            return None;
        }
    };
    if worker.proxy.interception.is_check(original) {
        worker.proxy.interception.arrived(client).await;
        return None;
    }
    // Where the client called, if nothing was redirected.
    let accepted_at = client.local_addr().map_or(original, canonical);
    let lease = worker.proxy.store.lease(original);
    let connection = Connection { worker, peer, original, accepted: Instant::now() };
    let target = worker.proxy.store.resolve(original).await;
    let outside = matches!(target, Ok(Target::External));
    let spoken = match target {
        Ok(Target::External) => connection.outside(client, &worker.proxy.store.load()).await,
        Ok(target) => connection.by_service(client, &target).await,
        Err(reason) => connection.explain(client, reason).await,
    };
    let (wire, client) = match spoken? {
        Spoken::Http(wire, client) => (wire, client),
        Spoken::Opaque(copying) => {
            return Some(Box::pin(async move {
                let _lease = lease;
                copying.await;
            }));
        }
    };
    worker.proxy.metrics.detected(connection.accepted.elapsed());
    let phase = Phase::of(Ends { client: peer, called: original, accepted: accepted_at });
    let unregistered = outside.then(OnceCell::new);
    let handler =
        Outbound { worker: Rc::clone(worker), client: peer, original, phase, unregistered, _lease: lease };
    let leave = worker.leaving(Direction::Outbound);
    Some(Box::pin(async move {
        if let Err(e) = server::serve(client, wire, Rc::new(handler), leave).await {
            let own = worker.proxy.party(&worker.proxy.store.load());
            Exchange::unread(&worker.proxy, Direction::Outbound, peer, [own, Party::default()], &e);
        }
    }))
}

struct Connection<'a> {
    worker: &'a Rc<Worker>,
    peer: SocketAddr,
    original: SocketAddr,
    accepted: Instant,
}

/// What is left to do.
enum Spoken {
    Http(Wire, Prefixed<TcpStream>),
    Opaque(Rest<'static>),
}

impl Connection<'_> {
    /// Opens the way for what is opaque.
    async fn by_service(&self, client: TcpStream, target: &Target) -> Option<Spoken> {
        let (Target::Service(service) | Target::Pinned(service, _)) = target else { return None };
        match service.protocol {
            Protocol::Tcp => self.dial(service, client, target).await,
            // In these the client speaks first, whatever it says in the end.
            Protocol::Http1 | Protocol::Http2 | Protocol::Tls => {
                let mut client = client;
                let mut head = BytesMut::new();
                let first = match service.protocol {
                    Protocol::Tls => detect::first(&mut client, &mut head).await,
                    _ => detect::first_of_http(&mut client, &mut head).await,
                };
                let first = first.ok()?;
                self.by_first(first, Prefixed::new(head.freeze(), client), service, target).await
            }
            Protocol::Detect => self.detect(client, service, target).await,
        }
    }

    async fn detect(&self, mut client: TcpStream, service: &Arc<Service>, target: &Target) -> Option<Spoken> {
        let mut head = BytesMut::new();
        let dial = || tcp::dial(self.worker, self.peer, target);
        // Where the server is known to speak first, it is not kept waiting.
        let server_first = service.live.learned() == Protocol::Tcp;
        let patience = if server_first { Duration::ZERO } else { SILENCE };
        let spoke = silence::end(&mut client, &mut head, patience, dial).await.ok()?;
        let client = Prefixed::new(head.freeze(), client);
        match spoke {
            Spoke::Client(first) => {
                if server_first && matches!(first, First::Http1 | First::Http2) {
                    // Another application has come to live there.
                    service.live.learn(Protocol::Detect);
                }
                self.by_first(first, client, service, target).await
            }
            Spoke::ClientOpaque(first, upstream) => {
                let mut opaque = self.opaque(Some(service));
                if let First::Tls(hello) = first {
                    opaque.record.sni = hello.sni;
                }
                Some(Spoken::Opaque(opaque.run(client, upstream)))
            }
            Spoke::Server { upstream, proven } => {
                if proven {
                    // The next connection does not wait.
                    service.live.learn(Protocol::Tcp);
                }
                Some(Spoken::Opaque(self.opaque(Some(service)).run(client, upstream)))
            }
            Spoke::Nobody(error) => {
                self.opaque(Some(service)).refuse(&error);
                None
            }
        }
    }

    async fn by_first(
        &self,
        first: First,
        client: Prefixed<TcpStream>,
        service: &Arc<Service>,
        target: &Target,
    ) -> Option<Spoken> {
        match first {
            First::Http1 => Some(Spoken::Http(Wire::Http1, client)),
            First::Http2 => Some(Spoken::Http(Wire::Http2, client)),
            First::Nothing => None,
            First::Opaque => self.dial(service, client, target).await,
            First::Tls(hello) => {
                let mut opaque = self.opaque(Some(service));
                opaque.record.sni = hello.sni;
                let dial = tcp::dial(self.worker, self.peer, target);
                opaque.dial(client, dial).await.map(Spoken::Opaque)
            }
        }
    }

    async fn dial<C>(&self, service: &Arc<Service>, client: C, target: &Target) -> Option<Spoken>
    where
        C: AsyncRead + AsyncWrite + Abort + Unpin + 'static,
    {
        let dial = tcp::dial(self.worker, self.peer, target);
        self.opaque(Some(service)).dial(client, dial).await.map(Spoken::Opaque)
    }

    /// There is nowhere to go. HTTP is asked about once more with each request, and told.
    async fn explain(&self, mut client: TcpStream, reason: Reason) -> Option<Spoken> {
        let mut head = BytesMut::new();
        let first = timeout(EXPLAIN, detect::first(&mut client, &mut head)).await;
        let client = Prefixed::new(head.freeze(), client);
        match first {
            Ok(Ok(First::Http1)) => Some(Spoken::Http(Wire::Http1, client)),
            Ok(Ok(First::Http2)) => Some(Spoken::Http(Wire::Http2, client)),
            first => {
                let mut opaque = self.opaque(None);
                if let Ok(Ok(First::Tls(hello))) = first {
                    opaque.record.sni = hello.sni;
                }
                opaque.refuse(&Error::from(reason));
                None
            }
        }
    }

    fn opaque(&self, service: Option<&Arc<Service>>) -> Opaque {
        let mut opaque = Opaque::begin(self.worker, Direction::Outbound, self.peer, self.original);
        let proxy = &self.worker.proxy;
        proxy.metrics.detected(self.accepted.elapsed());
        opaque.record.source = proxy.party(&proxy.store.load());
        if let Some(service) = service {
            opaque.record.service = Arc::clone(&service.key);
            opaque.record.destination.namespace = Arc::clone(&service.namespace);
        }
        opaque
    }
}
