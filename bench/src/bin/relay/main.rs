//! `weft-bench-relay`: the floor that `weft-bench` shows beside real proxies. It passes bytes on with as few system calls as a
//! program can, seals and opens them between two of its kind as TLS 1.3 does (records of 16 KiB, AES-128-GCM), and does
//! nothing else: no handshake, no protocol is read, nobody is looked up, counted, limited or verified. Its key is no secret. For
//! measurements on loopback only.
#![allow(clippy::print_stderr, reason = "its only words are those it dies with")]

mod records;

use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use records::{Opener, Scratch, Sealer};

/// Passes bytes on.
#[derive(Parser)]
struct Options {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// Where it connects to, once for each connection.
    #[arg(long)]
    next: SocketAddr,
    /// Whether what it accepts is sealed.
    #[arg(long)]
    accepts_sealed: bool,
    /// Whether it seals what it sends on.
    #[arg(long)]
    calls_sealed: bool,
}

/// Events of one `epoll_wait`.
const EVENTS: usize = 128;
/// Instead of a connection's number.
const LISTENER: u64 = u64::MAX;

fn main() -> Result<()> {
    let options = Options::parse();
    let listener = TcpListener::bind(options.listen).context("cannot listen")?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut scratch = Scratch::default();
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                accept(&listener, &epoll, &mut pairs, &options)?;
                continue;
            }
            let (number, side) = ((event.data() / 2) as usize, (event.data() % 2) as usize);
            let Some(Some(pair)) = pairs.get_mut(number) else { continue };
            // A number may be another pair's by now: then this turn finds nothing to do.
            match pair.turn(side, event.events(), &mut scratch) {
                Ok(true) => {}
                Ok(false) | Err(_) => pairs[number] = None,
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    epoll: &Epoll,
    pairs: &mut Vec<Option<Pair>>,
    options: &Options,
) -> Result<()> {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // A connection on loopback is there at once.
        let Ok(server) = TcpStream::connect(options.next) else { continue };
        let number = pairs.iter().position(Option::is_none).unwrap_or(pairs.len());
        if number == pairs.len() {
            pairs.push(None);
        }
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        for (side, stream) in [&client, &server].into_iter().enumerate() {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll.add(stream.as_fd(), EpollEvent::new(both, (number * 2 + side) as u64))?;
        }
        pairs[number] = Some(Pair {
            sides: [Side::new(client, options.accepts_sealed), Side::new(server, options.calls_sealed)],
        });
    }
}

/// Two connections, each of which gets what the other one sends.
struct Pair {
    sides: [Side; 2],
}

/// One of them.
struct Side {
    stream: TcpStream,
    seals: Option<(Sealer, Opener)>,
    /// What it did not take yet; while there is some, the other side is not read.
    pending: Vec<u8>,
    /// Whether there may be something to read.
    readable: bool,
    ended: bool,
}

impl Side {
    fn new(stream: TcpStream, sealed: bool) -> Self {
        let seals = sealed.then(|| (Sealer::new(), Opener::new()));
        Self { stream, seals, pending: Vec::new(), readable: true, ended: false }
    }

    /// Writes what it takes, keeps the rest.
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        if pieces.is_empty() {
            return Ok(()); // of a record that is not whole yet
        }
        let mut sent = match self.stream.write_vectored(pieces) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        for piece in pieces {
            let skipped = sent.min(piece.len());
            sent -= skipped;
            self.pending.extend_from_slice(&piece[skipped..]);
        }
        Ok(())
    }

    /// Writes what was kept.
    fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(sent) => drop(self.pending.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Pair {
    /// What an event of one side makes possible; false: both have ended.
    fn turn(&mut self, side: usize, events: EpollFlags, scratch: &mut Scratch) -> io::Result<bool> {
        if events.contains(EpollFlags::EPOLLOUT) && !self.sides[side].pending.is_empty() {
            self.sides[side].flush()?;
            self.pass(1 - side, scratch)?;
        }
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP) {
            self.sides[side].readable = true;
            self.pass(side, scratch)?;
        }
        Ok(!self.sides.iter().all(|side| side.ended))
    }

    /// Reads from a side, as long as the other one takes it.
    fn pass(&mut self, from: usize, scratch: &mut Scratch) -> io::Result<()> {
        let [a, b] = &mut self.sides;
        let (from, to) = if from == 0 { (a, b) } else { (b, a) };
        while from.readable && !from.ended && to.pending.is_empty() {
            let read = match (&mut from.seals, &mut to.seals) {
                (Some((_, opener)), None) => opener.read(&mut from.stream, scratch),
                (None, Some((sealer, _))) => sealer.read(&mut from.stream, scratch),
                _ => scratch.read(&mut from.stream),
            };
            let read = match read {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    from.readable = false;
                    break;
                }
                Err(error) => return Err(error),
            };
            if read.length == 0 {
                from.ended = true;
                to.stream.shutdown(Shutdown::Write)?;
                break;
            }
            // What is left is told by another event.
            from.readable = read.full;
            to.send(&scratch.pieces(&read))?;
        }
        Ok(())
    }
}
