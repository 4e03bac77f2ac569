//! Puts servers behind proxies of this build on loopback, so that programs that others wrote can be run against them: no
//! cluster, no redirection, no configuration. For tests only (`e2e/suites`); it measures nothing and checks nothing.
//!
//! `through mesh:web=127.0.0.1:80 ...` prints a line `web 127.0.0.1:PORT` for each, then `ready`, and serves until its
//! standard input ends. After the name may stand the protocol that the configuration names: `mesh:web/http2=...`. What stands
//! before the name is the way to the server:
//!
//! - `mesh`: client, a proxy, mTLS, a proxy, server.
//! - `outbound`: client, the proxy of the client, server.
//! - `inbound`: client, the proxy of the server, server.
//! - `traced`: as `mesh`, and both proxies tell the collector at `WEFT_COLLECTOR` of every trace that begins.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

#[allow(dead_code, reason = "shared with the in-process tests")]
#[path = "../tests/path/world.rs"]
mod world;

use std::io::Read;
use std::net::SocketAddr;

use weft_api::v1;
use weft_proxy::record::Direction;

use world::{Ca, Mesh, Node, plain};

/// One way to one server.
struct Way {
    kind: String,
    name: String,
    protocol: v1::Protocol,
    server: SocketAddr,
}

impl Way {
    fn parse(text: &str) -> Option<Self> {
        let (way, server) = text.split_once('=')?;
        let (kind, name) = way.split_once(':')?;
        let (name, protocol) = name.rsplit_once('/').unwrap_or((name, "detect"));
        let protocol = match protocol {
            "detect" => v1::Protocol::Detect,
            "http1" => v1::Protocol::Http1,
            "http2" => v1::Protocol::Http2,
            "tcp" => v1::Protocol::Tcp,
            "tls" => v1::Protocol::Tls,
            _ => return None,
        };
        let server = server.parse().ok()?;
        Some(Self { kind: kind.to_owned(), name: name.to_owned(), protocol, server })
    }

    /// Starts its proxies; where to connect to.
    fn open(&self) -> Option<(Vec<Node>, SocketAddr)> {
        let change = |service: &mut v1::Service| {
            service.protocol = self.protocol.into();
            // Suites open as many as they like.
            service.clusters[0].breaker = None;
        };
        match self.kind.as_str() {
            "mesh" => {
                let mesh = Mesh::with(self.server, change);
                self.declare(&mesh.back);
                let at = mesh.front.outbound;
                Some((vec![mesh.front, mesh.back], at))
            }
            "traced" => {
                let collector = std::env::var("WEFT_COLLECTOR").ok()?.parse().ok()?;
                let mesh = Mesh::traced(self.server, collector, "100", change);
                self.declare(&mesh.back);
                let at = mesh.front.outbound;
                Some((vec![mesh.front, mesh.back], at))
            }
            "outbound" => {
                let node = plain(&[self.server], change);
                let at = node.outbound;
                Some((vec![node], at))
            }
            "inbound" => {
                let node = Node::start(&Ca::new(), "back");
                node.redirect(Direction::Inbound, self.server);
                self.declare(&node);
                let at = node.inbound;
                Some((vec![node], at))
            }
            _ => None,
        }
    }

    /// The server's side knows the protocol too.
    fn declare(&self, node: &Node) {
        let port = u32::from(self.server.port());
        node.workload("back", |own| own.port_protocol = [(port, self.protocol.into())].into());
    }
}

fn main() {
    let mut nodes = Vec::new();
    for argument in std::env::args().skip(1) {
        let opened = Way::parse(&argument).and_then(|way| way.open().map(|opened| (way, opened)));
        let Some((way, (started, at))) = opened else {
            eprintln!(
                "not understood: {argument} (wanted: mesh|traced|outbound|inbound:NAME[/PROTOCOL]=ADDRESS:PORT)"
            );
            std::process::exit(64);
        };
        nodes.extend(started);
        println!("{} {at}", way.name);
    }
    println!("ready");
    // Whoever started this holds the other end.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
