//! Binds the redirected ports and runs the workers: one thread each, with listeners of its own on the same ports
//! (`SO_REUSEPORT`), so that the kernel spreads connections over them. It serves nothing itself.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::original_dst::OriginalDst;
use crate::proxy::Proxy;
use crate::record::Direction;
use crate::worker::Worker;

/// listen(2); the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Where to listen, and with how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// For redirected outgoing connections; 0: any port.
    pub outbound: u16,
    /// For redirected incoming connections; 0: any port.
    pub inbound: u16,
    /// Threads; at least one.
    pub workers: usize,
    /// On loopback only, for tests without redirection.
    pub loopback: bool,
}

/// Where it listens.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// For redirected outgoing connections.
    pub outbound: SocketAddr,
    /// For redirected incoming connections.
    pub inbound: SocketAddr,
}

/// What tells listeners apart: which way, and the configured address.
pub type Key = (Direction, SocketAddr);

/// One socket of a listener; each worker has one of its own.
#[derive(Debug)]
pub struct Listening {
    /// Which listener.
    pub key: Key,
    /// Where its connections are going.
    pub original_dst: OriginalDst,
    /// Listens already.
    pub socket: std::net::TcpListener,
}

/// What a worker is told while it runs.
#[derive(Debug)]
pub enum Change {
    /// Accepts on one more socket.
    Open(Listening),
    /// Accepts no more on a listener; its connections go on.
    Close(Key),
}

/// Changes that wait for a worker at most.
const CHANGES: usize = 256;

/// Serves until drained. `bound` is called once all listeners accept connections. After `drain` no incoming connection
/// is accepted any more and what is open is brought to its end; outgoing ones are served until nothing is open, or until
/// `exit`, which closes whatever is left.
///
/// # Errors
/// A port could not be bound, or a thread not be started.
pub fn serve(
    proxy: &Arc<Proxy>,
    listen: Listen,
    bound: impl FnOnce(Bound),
    drain: &CancellationToken,
    exit: &CancellationToken,
) -> io::Result<()> {
    let mut outbound = vec![bind(listen.outbound, listen.loopback)?];
    let mut inbound = vec![bind(listen.inbound, listen.loopback)?];
    let at = Bound { outbound: local(&outbound)?, inbound: local(&inbound)? };
    for _ in 1..listen.workers {
        outbound.push(bind(at.outbound.port(), listen.loopback)?);
        inbound.push(bind(at.inbound.port(), listen.loopback)?);
    }
    let listening = |key: Key, socket: Socket| Listening {
        key,
        original_dst: proxy.original_dst.clone(),
        socket: socket.into(),
    };
    let of_worker = |(outbound, inbound)| {
        vec![
            listening((Direction::Outbound, at.outbound), outbound),
            listening((Direction::Inbound, at.inbound), inbound),
        ]
    };
    let workers = outbound.into_iter().zip(inbound).map(of_worker).collect();
    run(proxy, workers, |_| bound(at), drain, exit)
}

/// The same with sockets that are there already, a list for each worker. `started` gets the means to change them.
///
/// # Errors
/// A thread could not be started.
pub fn run(
    proxy: &Arc<Proxy>,
    workers: Vec<Vec<Listening>>,
    started: impl FnOnce(Vec<mpsc::Sender<Change>>),
    drain: &CancellationToken,
    exit: &CancellationToken,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(proxy.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let (mut threads, mut controls) = (Vec::new(), Vec::new());
    for (n, listeners) in workers.into_iter().enumerate() {
        let (control, changes) = mpsc::channel(CHANGES);
        controls.push(control);
        let (proxy, places) = (Arc::clone(proxy), Arc::clone(&places));
        let (drain, exit) = (drain.clone(), exit.clone());
        let run = move || -> io::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
            runtime.block_on(async move {
                Worker::new(proxy, drain).run(listeners, changes, places, exit).await;
                Ok(())
            })
        };
        threads.push(thread::Builder::new().name(format!("worker-{n}")).spawn(run)?);
    }
    started(controls);
    let mut result = Ok(());
    for thread in threads {
        let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")));
        result = result.and(ended);
    }
    result
}

fn local(sockets: &[Socket]) -> io::Result<SocketAddr> {
    let addr = sockets.first().map(Socket::local_addr).transpose()?;
    addr.and_then(|a| a.as_socket()).ok_or_else(|| io::Error::other("no local address"))
}

/// On both families by one socket; on IPv4 alone where there is no IPv6.
fn bind(port: u16, loopback: bool) -> io::Result<Socket> {
    if loopback {
        return bind_to(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    bind_to(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).or_else(|e| {
        if e.kind() == io::ErrorKind::AddrInUse {
            return Err(e);
        }
        bind_to(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
    })
}

/// Listens at an address, together with whoever of the same user does so too.
pub(crate) fn bind_to(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
