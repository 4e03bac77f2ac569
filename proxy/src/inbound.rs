//! The path of a connection to the own application: from another proxy, by mTLS and with a verified identity, or from
//! outside of the mesh, as far as PeerAuthentication and policies allow it. Composes the steps. Where in doubt, it refuses.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weft_api::{Identity, Reason};

use crate::authorize::{Refusal, Verdict};
use crate::detect::{self, First};
use crate::error::{Error, find};
use crate::forward::Abort;
use crate::hello::ClientHello;
use crate::http::exchange::Exchange;
use crate::http::inbound::{Disowned, Inbound, Peer};
use crate::http::{Wire, headers, server};
use crate::original_dst::{OriginalDst, canonical};
use crate::prefixed::Prefixed;
use crate::proxy::peer_party;
use crate::record::{Direction, Party};
use crate::silence::{self, Spoke};
use crate::snapshot::{MtlsMode, Protocol, Snapshot};
use crate::tcp::{self, End, Opaque};
use crate::tls::{Abroad, Ahead, Alpn, peer_identity};
use crate::worker::{Rest, Worker};

/// A client that has not spoken by then may be waiting for the application to speak first. Longer than for outgoing
/// connections: if it is a proxy after all, whose ClientHello is late, it must not get the application's plain words.
const SILENCE: Duration = Duration::from_millis(50);
/// A client that must speak first has this long to begin.
const BEGIN: Duration = Duration::from_secs(10);
/// A client whose opaque bytes are refused can still turn out to speak HTTP for so long.
const LATE: Duration = Duration::from_secs(1);
/// From the ClientHello to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the first connections of all wait for the configuration.
const CONFIGURED: Duration = Duration::from_secs(2);

/// Why a connection to a port with rate limits is refused.
const ONLY_HTTP: &str =
    "this port has a rate limit, and the client does not speak HTTP that could be counted";

/// What the connection is, and whether it is allowed.
pub(crate) async fn begin<'a>(
    worker: &'a Rc<Worker>,
    mut client: TcpStream,
    peer: SocketAddr,
    original_dst: &OriginalDst,
) -> Option<Rest<'a>> {
    let (accepted, peer) = (Instant::now(), canonical(peer));
    let original = match original_dst.of(&client, Direction::Inbound) {
        Ok(original) => original,
        Err(e) => {
            let detail = e.to_string();
            worker.proxy.refuse(Direction::Inbound, Reason::BadRequest, peer, Some(&detail));
            return None;
        }
    };
    let snapshot = configured(worker).await;
    let port = original.port();
    // Without configuration nobody can say that plaintext is allowed.
    let (mode, protocol) = snapshot
        .workload
        .as_ref()
        .map_or((MtlsMode::Strict, Protocol::Detect), |own| (own.mtls_for(port), own.protocol_for(port)));
    let connection = Connection { worker, peer, original, snapshot, mode, protocol, accepted };

    let mut head = BytesMut::new();
    let spoke =
        if mode == MtlsMode::Strict || connection.speaks_http() || connection.closed_to(&Peer::Outside) {
            // In each of these the client speaks first, or nothing that the application says may reach it.
            Spoke::Client(connection.first(&mut client, &mut head).await?)
        } else {
            let dial = || tcp::dial_plain(worker, original);
            silence::end(&mut client, &mut head, SILENCE, dial).await.ok()?
        };
    connection.spoken(spoke, Prefixed::new(head.freeze(), client)).await
}

struct Connection<'a> {
    worker: &'a Rc<Worker>,
    peer: SocketAddr,
    original: SocketAddr,
    snapshot: Arc<Snapshot>,
    mode: MtlsMode,
    protocol: Protocol,
    accepted: Instant,
}

impl<'a> Connection<'a> {
    async fn first(&self, client: &mut TcpStream, head: &mut BytesMut) -> Option<First> {
        match timeout(BEGIN, self.first_by_protocol(client, head)).await {
            Ok(first) => first.ok(),
            Err(_) if self.mode == MtlsMode::Strict => {
                self.refuse(Reason::MtlsRequired, Some("the client said nothing"));
                None
            }
            // Kept open ahead of need.
            Err(_) => self.first_by_protocol(client, head).await.ok(),
        }
    }

    async fn first_by_protocol<IO>(&self, client: &mut IO, head: &mut BytesMut) -> io::Result<First>
    where
        IO: AsyncRead + Unpin,
    {
        if self.speaks_http() {
            detect::first_of_http(client, head).await
        } else {
            detect::first(client, head).await
        }
    }

    const fn speaks_http(&self) -> bool {
        matches!(self.protocol, Protocol::Http1 | Protocol::Http2)
    }

    async fn spoken(self, spoke: Spoke, client: Prefixed<TcpStream>) -> Option<Rest<'a>> {
        let (first, upstream) = match spoke {
            Spoke::Client(first) => (first, None),
            Spoke::ClientOpaque(first, upstream) => (first, Some(upstream)),
            Spoke::Server { upstream, .. } => return self.copy(None, client, Some(upstream)).await,
            Spoke::Nobody(error) => {
                self.opaque().refuse(&error);
                return None;
            }
        };
        match first {
            First::Nothing => None,
            First::Tls(hello) if hello.weft => self.by_mtls(client).await,
            _ if self.mode == MtlsMode::Strict => self.refuse_plaintext(first, client),
            First::Http1 if self.takes_http() => Some(self.http(Wire::Http1, client, Peer::Outside)),
            First::Http2 if self.takes_http() => Some(self.http(Wire::Http2, client, Peer::Outside)),
            First::Http1 | First::Http2 | First::Opaque => self.copy(None, client, upstream).await,
            First::Tls(hello) => self.copy(Some(hello), client, upstream).await,
        }
    }

    const fn takes_http(&self) -> bool {
        !matches!(self.protocol, Protocol::Tcp | Protocol::Tls)
    }

    /// mTLS from another proxy: the ALPN says what is inside.
    async fn by_mtls(self, client: Prefixed<TcpStream>) -> Option<Rest<'a>> {
        if self.mode == MtlsMode::Disable {
            self.refuse(Reason::ClientCertificate, Some("mTLS is disabled for this port"));
            return None;
        }
        let acceptor = TlsAcceptor::from(self.worker.proxy.tls.server());
        let tls = match timeout(HANDSHAKE, acceptor.accept(Ahead::new(client))).await {
            Ok(Ok(tls)) => Box::new(tls),
            Ok(Err(e)) => {
                let of_client = matches!(
                    find::<rustls::Error>(&e),
                    Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
                );
                let reason = if of_client { Reason::ClientCertificate } else { Reason::TlsHandshake };
                self.refuse(reason, Error::new(reason, e).detail().as_deref());
                return None;
            }
            Err(_) => {
                self.refuse(Reason::TlsHandshake, Some("the handshake took too long"));
                return None;
            }
        };
        let (peer, alpn) = match verified(&tls, &self.worker.proxy.identity) {
            Ok(verified) => verified,
            Err(error) => {
                self.refuse(error.reason(), error.detail().as_deref());
                return None;
            }
        };
        match alpn {
            Alpn::Http1 => Some(self.http(Wire::Http1, tls, peer)),
            Alpn::Http2 => Some(self.http(Wire::Http2, tls, peer)),
            Alpn::Tcp if self.limited() || self.speaks_http() || self.closed_to(&peer) => {
                self.tunnelled(tls, peer).await
            }
            Alpn::Tcp => self.copy_of(peer, tls).await,
        }
    }

    async fn copy_of<IO>(self, peer: Peer, client: IO) -> Option<Rest<'a>>
    where
        IO: AsyncRead + AsyncWrite + Abort + Unpin + 'a,
    {
        let mut opaque = self.opaque();
        if let Peer::Mesh { party, .. } = &peer {
            opaque.record.source = party.clone();
            opaque.record.mtls = true;
        }
        self.copying(opaque, client, None, peer).await
    }

    /// Whether opaque bytes of a caller are refused. An HTTP request may pass all the same; and where they are not refused, none
    /// would be.
    fn closed_to(&self, peer: &Peer) -> bool {
        ask(&self.snapshot, peer, self.peer.ip(), self.original.port())
            .is_some_and(|verdict| verdict.refused.is_some())
    }

    /// Whether requests to this port are limited. Then nothing passes that is not read as a request: an HTTP request in opaque
    /// bytes would not be counted.
    fn limited(&self) -> bool {
        self.snapshot.workload.as_ref().is_some_and(|own| own.limits_on(self.original.port()).is_some())
    }

    /// Opaque bytes by mTLS to a port that has limits, is declared to speak HTTP, or takes none from this caller. They may be
    /// HTTP all the same, of a client that spoke late, or that the other proxy was made to take for something else: past the
    /// HTTP server it could state any identity.
    async fn tunnelled(
        self,
        mut tls: Box<TlsStream<Ahead<Prefixed<TcpStream>>>>,
        peer: Peer,
    ) -> Option<Rest<'a>> {
        let mut head = BytesMut::new();
        let first = self.first_by_protocol(&mut tls, &mut head);
        let first = if self.limited() || self.speaks_http() {
            first.await
        } else {
            // Who waits for the application to speak first shall not wait for ever to be refused.
            timeout(LATE, first).await.unwrap_or(Ok(First::Opaque))
        };
        let client = Prefixed::new(head.freeze(), tls);
        match first {
            Ok(First::Http1) => Some(self.http(Wire::Http1, client, peer)),
            Ok(First::Http2) => Some(self.http(Wire::Http2, client, peer)),
            Ok(First::Nothing) | Err(_) => None,
            Ok(First::Tls(_) | First::Opaque) if self.limited() => {
                self.refuse(Reason::BadRequest, Some(ONLY_HTTP));
                None
            }
            Ok(First::Tls(_) | First::Opaque) => self.copy_of(peer, client).await,
        }
    }

    /// Strict: HTTP gets an answer, and the pod's probes pass; the rest is closed.
    fn refuse_plaintext(self, first: First, client: Prefixed<TcpStream>) -> Option<Rest<'a>> {
        match first {
            First::Http1 => Some(self.http(Wire::Http1, client, Peer::Outside)),
            First::Http2 => Some(self.http(Wire::Http2, client, Peer::Outside)),
            _ => {
                self.opaque().refuse(&Reason::MtlsRequired.into());
                None
            }
        }
    }

    fn http<IO>(self, wire: Wire, client: IO, peer: Peer) -> Rest<'a>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { worker, peer: address, original, accepted, .. } = self;
        worker.proxy.metrics.detected(accepted.elapsed());
        let handler = Rc::new(Inbound {
            worker: Rc::clone(worker),
            client: address,
            original,
            peer,
            admitted: RefCell::default(),
            noted: Cell::default(),
        });
        let leave = worker.leaving(Direction::Inbound);
        Box::pin(async move {
            let served = server::serve(client, wire, Rc::clone(&handler), leave).await;
            if let Err(e) = served {
                let source = match &handler.peer {
                    Peer::Mesh { party, .. } => party.clone(),
                    Peer::Outside => Party::default(),
                };
                let own = worker.proxy.party(&worker.proxy.store.load());
                Exchange::unread(&worker.proxy, Direction::Inbound, handler.client, [source, own], &e);
            }
        })
    }

    async fn copy(
        self,
        hello: Option<ClientHello>,
        client: Prefixed<TcpStream>,
        upstream: Option<tcp::Opened>,
    ) -> Option<Rest<'a>> {
        if self.limited() {
            self.refuse(Reason::BadRequest, Some(ONLY_HTTP));
            return None;
        }
        let mut opaque = self.opaque();
        opaque.record.sni = hello.and_then(|hello| hello.sni);
        self.copying(opaque, client, upstream, Peer::Outside).await
    }

    /// Opens the way to the application, if it is not open yet and the policies let these bytes pass; what is left is to copy.
    async fn copying<IO>(
        self,
        mut opaque: Opaque,
        client: IO,
        upstream: Option<tcp::Opened>,
        peer: Peer,
    ) -> Option<Rest<'a>>
    where
        IO: AsyncRead + AsyncWrite + Abort + Unpin + 'a,
    {
        let Self { worker, peer: from, original, .. } = self;
        if let Some(verdict) = ask(&self.snapshot, &peer, from.ip(), original.port()) {
            let refused = verdict.refused.as_ref().map(Refusal::error);
            opaque.note(verdict);
            if let Some(error) = refused {
                opaque.refuse(&error);
                return None;
            }
        }
        if matches!(peer, Peer::Outside) {
            // For whoever is about to switch Strict on.
            worker.proxy.metrics.plaintext.note(from.ip(), original.port());
        }
        let upstream = match upstream {
            Some(upstream) => Ok(upstream),
            None => tcp::dial_plain(worker, original).await,
        };
        match upstream {
            Ok(upstream) => {
                let flow = Flow { worker, peer, from: from.ip(), port: original.port() };
                // Boxed by itself: what is moved into a future has its room there twice.
                Some(Box::pin(opaque.run_until(client, upstream, Box::pin(flow.forbidden()))))
            }
            Err(error) => {
                opaque.refuse(&error);
                None
            }
        }
    }

    fn opaque(&self) -> Opaque {
        let mut opaque = Opaque::begin(self.worker, Direction::Inbound, self.peer, self.original);
        opaque.record.destination = self.worker.proxy.party(&self.snapshot);
        self.worker.proxy.metrics.detected(self.accepted.elapsed());
        let own = self.snapshot.workload.as_ref();
        if let Some(service) = own.and_then(|own| own.service_for(self.original.port())) {
            opaque.record.service = Arc::clone(service);
        }
        opaque
    }

    fn refuse(&self, reason: Reason, detail: Option<&str>) {
        self.worker.proxy.refuse(Direction::Inbound, reason, self.peer, detail);
    }
}

/// Opaque bytes of a peer to a port: what is asked about them for as long as they flow.
struct Flow<'a> {
    worker: &'a Rc<Worker>,
    peer: Peer,
    from: IpAddr,
    port: u16,
}

impl Flow<'_> {
    /// Waits until the bytes are not allowed here any more.
    async fn forbidden(self) -> End {
        let proxy = &self.worker.proxy;
        let (mut changed, mut bundles) = (proxy.store.changed(), proxy.tls.changed());
        loop {
            if let Some(end) = self.end() {
                return end;
            }
            let told = tokio::select! {
                told = changed.changed() => told,
                told = bundles.changed(), if self.peer.is_abroad() => told,
            };
            if told.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn end(&self) -> Option<End> {
        let proxy = &self.worker.proxy;
        if !self.peer.is_trusted(&proxy.tls) {
            let error = Error::new(Reason::ClientCertificate, Disowned);
            return Some(End { error, authorization: None });
        }
        let snapshot = proxy.store.load();
        let mode = snapshot.workload.as_ref().map_or(MtlsMode::Strict, |own| own.mtls_for(self.port));
        if matches!(self.peer, Peer::Outside) && mode == MtlsMode::Strict {
            return Some(End { error: Reason::MtlsRequired.into(), authorization: None });
        }
        let verdict = ask(&snapshot, &self.peer, self.from, self.port)?;
        let error = verdict.refused.as_ref()?.error();
        Some(End { error, authorization: verdict.noted() })
    }
}

/// What the policies say of opaque bytes. Where there are none: nothing.
fn ask(snapshot: &Snapshot, peer: &Peer, from: IpAddr, port: u16) -> Option<Verdict> {
    let policies = peer.policies(snapshot.workload.as_deref())?;
    Some(policies.admit(peer.caller(), from, port).opaque())
}

/// The configuration; at the very start, waits a little for it.
async fn configured(worker: &Rc<Worker>) -> Arc<Snapshot> {
    let store = &worker.proxy.store;
    let snapshot = store.load();
    if snapshot.workload.is_some() {
        return snapshot;
    }
    let mut changed = store.changed();
    let arrives = async {
        while store.load().workload.is_none() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = timeout(CONFIGURED, arrives).await;
    store.load()
}

/// Who the client is, and what is inside.
fn verified<IO>(tls: &TlsStream<IO>, own: &Identity) -> Result<(Peer, Alpn), Error> {
    let session = tls.get_ref().1;
    let identity = peer_identity(session.peer_certificates().unwrap_or_default())
        .map_err(|e| Error::new(Reason::ClientCertificate, e))?;
    let alpn =
        session.alpn_protocol().and_then(Alpn::of_wire).ok_or_else(|| Error::from(Reason::TlsHandshake))?;
    let value = headers::identity_value(&identity);
    let mut party = peer_party(&identity, own);
    let abroad = Abroad::of(own, &identity, session, true).map(Rc::new);
    party.identity = Some(Arc::new(identity));
    Ok((Peer::Mesh { party, identity: value, abroad }, alpn))
}
