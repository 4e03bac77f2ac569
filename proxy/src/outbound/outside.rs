//! Connections to addresses that are nothing of the cluster: to the external service that they mean, if one is registered;
//! otherwise they are passed on, or refused, as the outbound policy says. Part of the outbound path.

use bytes::BytesMut;
use tokio::net::TcpStream;
use weft_api::Reason;

use super::{Connection, SILENCE, Spoken};
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
    /// Opens the way for what is opaque.
    pub(super) async fn outside(&self, client: TcpStream, snapshot: &Snapshot) -> Option<Spoken> {
        let registered_only = snapshot.registered_only();
        let port = snapshot.egress.port(self.original.port());
        if let Some(service) = port.and_then(|port| port.by_address(self.original.ip())) {
            let target = Target::Service(service.clone());
            return self.dial(service, client, &target).await;
        }
        match port.filter(|port| port.by_name()) {
            Some(port) if registered_only => self.only_registered(client, port).await,
            Some(port) => self.registered_or_any(client, port).await,
            None if registered_only => self.explain(client, Reason::NotRegistered).await,
            None => self.pass_on(client).await,
        }
    }

    /// Nothing is opened before the client has said whom it means: it has to speak first.
    async fn only_registered(&self, mut client: TcpStream, port: &Port) -> Option<Spoken> {
        let mut head = BytesMut::new();
        let first = detect::first(&mut client, &mut head).await.ok()?;
        let client = Prefixed::new(head.freeze(), client);
        match first {
            // Each request says for itself whom it means.
            First::Http1 => Some(Spoken::Http(Wire::Http1, client)),
            First::Http2 => Some(Spoken::Http(Wire::Http2, client)),
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
    async fn registered_or_any(&self, mut client: TcpStream, port: &Port) -> Option<Spoken> {
        let mut head = BytesMut::new();
        let dial = || tcp::dial_plain(self.worker, self.original);
        let spoke = silence::end(&mut client, &mut head, SILENCE, dial).await.ok()?;
        let client = Prefixed::new(head.freeze(), client);
        match spoke {
            Spoke::Client(First::Http1) if port.speaks_http() => Some(Spoken::Http(Wire::Http1, client)),
            Spoke::Client(First::Http2) if port.speaks_http() => Some(Spoken::Http(Wire::Http2, client)),
            Spoke::Client(First::Tls(hello)) | Spoke::ClientOpaque(First::Tls(hello), _)
                if meant(port, &hello) =>
            {
                self.by_server_name(client, port, hello).await
            }
            Spoke::Client(First::Nothing) => None,
            Spoke::Client(first) => {
                let mut opaque = self.opaque(None);
                if let First::Tls(hello) = first {
                    opaque.record.sni = hello.sni;
                }
                let dial = tcp::dial_plain(self.worker, self.original);
                opaque.dial(client, dial).await.map(Spoken::Opaque)
            }
            Spoke::ClientOpaque(first, upstream) => {
                let mut opaque = self.opaque(None);
                if let First::Tls(hello) = first {
                    opaque.record.sni = hello.sni;
                }
                Some(Spoken::Opaque(opaque.run(client, upstream)))
            }
            Spoke::Server { upstream, .. } => Some(Spoken::Opaque(self.opaque(None).run(client, upstream))),
            Spoke::Nobody(error) => {
                self.opaque(None).refuse(&error);
                None
            }
        }
    }

    async fn by_server_name(
        &self,
        client: Prefixed<TcpStream>,
        port: &Port,
        hello: ClientHello,
    ) -> Option<Spoken> {
        let service = hello.sni.as_deref().and_then(|name| port.by_server_name(name))?;
        let mut opaque = self.opaque(Some(service));
        opaque.record.sni = hello.sni;
        let target = Target::Service(service.clone());
        opaque.dial(client, tcp::dial(self.worker, self.peer, &target)).await.map(Spoken::Opaque)
    }

    async fn pass_on(&self, client: TcpStream) -> Option<Spoken> {
        let dial = tcp::dial_plain(self.worker, self.original);
        self.opaque(None).dial(client, dial).await.map(Spoken::Opaque)
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
