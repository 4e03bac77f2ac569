//! Hands listening sockets from a running process to the one that takes its place, over a unix socket (`SCM_RIGHTS`,
//! unix(7)). Connections that wait in a listener's queue go with it, so that none is lost, as one would be with a second
//! socket on the same port. Blocking, on a thread of its own. It neither accepts on the sockets nor drains.
//!
//! One packet for each socket, then an empty list's end; the successor says `serving` once it accepts on them, and the
//! predecessor `draining`. A successor that fails before that changes nothing.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

/// For each packet.
const PATIENCE: Duration = Duration::from_secs(10);
/// From the last socket until the successor serves.
const STARTING: Duration = Duration::from_secs(30);
/// A packet's text.
const MAX_PACKET: usize = 4096;
/// Listeners times workers; more is a mistake.
const MAX_SOCKETS: usize = 65_536;
const SERVING: &[u8] = b"serving";
const DRAINING: &[u8] = b"draining";

/// Why a hand-over did not take place.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Nobody is there, or it cannot be talked to.
    #[error("cannot talk to the running proxy at {0}")]
    Socket(PathBuf, #[source] io::Error),
    /// It said something else than a proxy of this protocol.
    #[error("the process at {0} does not speak the hand-over protocol of this version")]
    Protocol(PathBuf),
}

/// What a socket is for, as both processes know it: `outbound`, `inbound`, `admin` or `metrics`, and its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Label {
    /// What it is for.
    pub kind: String,
    /// The configured address.
    pub address: std::net::SocketAddr,
}

/// A socket that was, or can be, handed over.
#[derive(Debug)]
pub struct Labelled {
    /// What it is for.
    pub label: Label,
    /// Listens.
    pub socket: TcpListener,
}

/// The predecessor, which waits to hear that this process serves.
#[derive(Debug)]
pub struct Predecessor {
    stream: Socket,
    path: PathBuf,
}

/// Takes the sockets of the process at `path`. `None`: nobody is there.
///
/// # Errors
/// Somebody is there, but the hand-over failed.
pub fn take(path: &Path) -> Result<Option<(Predecessor, Vec<Labelled>)>, HandoverError> {
    let failed = |e| HandoverError::Socket(path.to_owned(), e);
    let stream = Socket::new(Domain::UNIX, Type::SEQPACKET, None).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    match stream.connect(&SockAddr::unix(path).map_err(failed)?) {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(e) => return Err(failed(e)),
    }
    let mut sockets = Vec::new();
    while sockets.len() < MAX_SOCKETS {
        match receive(&stream).map_err(failed)? {
            (text, None) if text == b"end" => {
                return Ok(Some((Predecessor { stream, path: path.to_owned() }, sockets)));
            }
            (text, Some(fd)) => {
                let label = serde_json::from_slice(&text);
                let label = label.map_err(|_| HandoverError::Protocol(path.to_owned()))?;
                sockets.push(Labelled { label, socket: TcpListener::from(fd) });
            }
            (_, None) => break,
        }
    }
    Err(HandoverError::Protocol(path.to_owned()))
}

impl Predecessor {
    /// This process accepts connections: the other one stops to, and drains.
    ///
    /// # Errors
    /// It did not say so. It may still serve, beside this one.
    pub fn relieve(self) -> Result<(), HandoverError> {
        let failed = |e| HandoverError::Socket(self.path.clone(), e);
        send(&self.stream, SERVING, None).map_err(failed)?;
        match receive(&self.stream).map_err(failed)? {
            (text, _) if text == DRAINING => Ok(()),
            _ => Err(HandoverError::Protocol(self.path.clone())),
        }
    }
}

/// Where successors come to.
#[derive(Debug)]
pub struct Station {
    listener: Socket,
}

impl Station {
    /// Listens at `path`, in place of whoever did before. Only this user may connect.
    ///
    /// # Errors
    /// The path cannot be bound.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Under another name first: whoever connects finds either process, never none.
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{}", std::process::id()));
        let aside = PathBuf::from(aside);
        let _ = std::fs::remove_file(&aside);
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        listener.bind(&SockAddr::unix(&aside)?)?;
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&aside, owner_only)?;
        listener.listen(4)?;
        std::fs::rename(&aside, path)?;
        Ok(Self { listener })
    }

    /// Waits for a successor that serves with copies of `sockets`.
    ///
    /// # Errors
    /// The listener itself has failed; what goes wrong with one successor is logged.
    pub fn hand_over(&self, sockets: impl Fn() -> Vec<Labelled>) -> io::Result<Successor> {
        loop {
            let (stream, _) = self.listener.accept()?;
            match offer(&stream, &sockets()) {
                Ok(()) => return Ok(Successor { stream }),
                Err(error) => tracing::warn!(%error, "a hand-over has failed, serving on"),
            }
        }
    }
}

/// Who has taken the sockets, and serves.
#[derive(Debug)]
pub struct Successor {
    stream: Socket,
}

impl Successor {
    /// This process has stopped to accept.
    pub fn leave_to(self) {
        // It has all that it needs; not hearing this only makes it say so.
        let _ = send(&self.stream, DRAINING, None);
    }
}

fn offer(stream: &Socket, sockets: &[Labelled]) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() != nix::unistd::geteuid().as_raw() && peer.uid() != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "asked for by another user"));
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(STARTING))?;
    for Labelled { label, socket } in sockets {
        let text = serde_json::to_vec(label)?;
        send(stream, &text, Some(socket.as_fd()))?;
    }
    send(stream, b"end", None)?;
    match receive(stream)? {
        (text, _) if text == SERVING => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the successor has ended before it served")),
    }
}

fn send(stream: &Socket, text: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    // A packet is sent whole or not at all.
    sendmsg(stream, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: &Socket) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut text = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    text.truncate(received);
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((text, fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn listening() -> Labelled {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let label = Label { kind: "outbound".to_owned(), address: socket.local_addr().unwrap() };
        Labelled { label, socket }
    }

    fn copy(of: &Labelled) -> Labelled {
        Labelled { label: of.label.clone(), socket: of.socket.try_clone().unwrap() }
    }

    #[test]
    fn a_socket_goes_over_with_the_connections_that_wait_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft.sock");
        assert!(take(&path).unwrap().is_none());
        let station = Station::open(&path).unwrap();
        let held = listening();
        let address = held.label.address;
        let waiting = std::net::TcpStream::connect(address).unwrap();
        let (handed, told) = mpsc::channel();
        let old = std::thread::spawn(move || {
            let successor = station.hand_over(|| vec![copy(&held)]).unwrap();
            drop(held);
            handed.send(()).unwrap();
            successor.leave_to();
        });
        // One that ends before it serves changes nothing.
        drop(take(&path).unwrap().unwrap());
        let (predecessor, sockets) = take(&path).unwrap().unwrap();
        assert_eq!((sockets.len(), sockets[0].label.address), (1, address));
        assert!(told.try_recv().is_err());
        predecessor.relieve().unwrap();
        told.recv_timeout(Duration::from_secs(5)).unwrap();
        old.join().unwrap();
        let (accepted, _) = sockets[0].socket.accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), waiting.local_addr().unwrap());
        // A dead process's path is taken over.
        assert!(take(&path).unwrap().is_none());
        Station::open(&path).unwrap();
    }

    #[test]
    fn whoever_says_something_else_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft.sock");
        let station = Station::open(&path).unwrap();
        let other = std::thread::spawn(move || {
            let (stream, _) = station.listener.accept().unwrap();
            send(&stream, b"hello", None).unwrap();
        });
        assert!(matches!(take(&path), Err(HandoverError::Protocol(_))));
        other.join().unwrap();
    }
}
