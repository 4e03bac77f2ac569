//! Connections to addresses that are nothing of the cluster: to the external service that they mean, if one is registered;
//! otherwise they are passed on, or refused, as the outbound policy says. Part of the outbound path.

use bytes::BytesMut;
use tokio::net::TcpStream;
use weft_api::Reason;

use super::{Connection, Http, SILENCE};
use crate::detect::{self, First};
use crate::egress::Port;
use crate::error::Error;
use crate::hello::ClientHello;
use crate::http::Wire;
use crate::prefixed::Prefixed;
use crate::silence::{self, Spoke};
use crate::snapshot::{Snapshot, Target};
use crate::tcp;

impl Connection<'_> {
    /// Serves what is opaque; gives back what is HTTP.
    pub(super) async fn outside(&self, client: TcpStream, snapshot: &Snapshot) -> Option<Http> {
        let registered_only = snapshot.registered_only();
        let port = snapshot.egress.port(self.original.port());
        if let Some(service) = port.and_then(|port| port.by_address(self.original.ip())) {
            let target = Target::Service(service.clone());
            self.dial_and_copy(service, client, &target).await;
            return None;
        }
        match port.filter(|port| port.by_name()) {
            Some(port) if registered_only => self.only_registered(client, port).await,
            Some(port) => self.registered_or_any(client, port).await,
            None if registered_only => self.explain(client, Reason::NotRegistered).await,
            None => {
                self.pass_on(client).await;
                None
            }
        }
    }

    /// Nothing is opened before the client has said whom it means: it has to speak first.
    async fn only_registered(&self, mut client: TcpStream, port: &Port) -> Option<Http> {
        let mut head = BytesMut::new();
        let first = detect::first(&mut client, &mut head).await.ok()?;
        let client = Prefixed::new(head.freeze(), client);
        match first {
            // Each request says for itself whom it means.
            First::Http1 => Some((Wire::Http1, client)),
            First::Http2 => Some((Wire::Http2, client)),
            First::Tls(hello) if meant(port, &hello) => self.by_server_name(client, port, hello).await,
            First::Nothing => None,
            First::Tls(ClientHello { sni, .. }) => {
                self.refuse_unregistered(sni);
                None
            }
            First::Opaque => {
                self.refuse_unregistered(None);
                None
            }
        }
    }

    /// A server that speaks first is not kept waiting, wherever it is.
    async fn registered_or_any(&self, mut client: TcpStream, port: &Port) -> Option<Http> {
        let mut head = BytesMut::new();
        let dial = || tcp::dial_plain(self.worker, self.original);
        let spoke = Box::pin(silence::end(&mut client, &mut head, SILENCE, dial)).await.ok()?;
        let client = Prefixed::new(head.freeze(), client);
        match spoke {
            Spoke::Client(First::Http1) if port.speaks_http() => return Some((Wire::Http1, client)),
            Spoke::Client(First::Http2) if port.speaks_http() => return Some((Wire::Http2, client)),
            Spoke::Client(First::Tls(hello)) | Spoke::ClientOpaque(First::Tls(hello), _)
                if meant(port, &hello) =>
            {
                return self.by_server_name(client, port, hello).await;
            }
            Spoke::Client(First::Nothing) => {}
            Spoke::Client(first) => {
                let mut opaque = self.opaque(None);
                if let First::Tls(hello) = first {
                    opaque.record.sni = hello.sni;
                }
                opaque.dial_and_run(client, tcp::dial_plain(self.worker, self.original)).await;
            }
            Spoke::ClientOpaque(first, upstream) => {
                let mut opaque = self.opaque(None);
                if let First::Tls(hello) = first {
                    opaque.record.sni = hello.sni;
                }
                opaque.run(client, upstream).await;
            }
            Spoke::Server { upstream, .. } => self.opaque(None).run(client, upstream).await,
            Spoke::Nobody(error) => self.opaque(None).refuse(&error),
        }
        None
    }

    async fn by_server_name(
        &self,
        client: Prefixed<TcpStream>,
        port: &Port,
        hello: ClientHello,
    ) -> Option<Http> {
        let service = hello.sni.as_deref().and_then(|name| port.by_server_name(name))?;
        let mut opaque = self.opaque(Some(service));
        opaque.record.sni = hello.sni;
        let target = Target::Service(service.clone());
        opaque.dial_and_run(client, tcp::dial(self.worker, self.peer, &target)).await;
        None
    }

    async fn pass_on(&self, client: TcpStream) {
        let dial = tcp::dial_plain(self.worker, self.original);
        self.opaque(None).dial_and_run(client, dial).await;
    }

    fn refuse_unregistered(&self, sni: Option<String>) {
        let mut opaque = self.opaque(None);
        opaque.record.sni = sni;
        opaque.refuse(&Error::from(Reason::NotRegistered));
    }
}

fn meant(port: &Port, hello: &ClientHello) -> bool {
    hello.sni.as_deref().is_some_and(|name| port.by_server_name(name).is_some())
}
