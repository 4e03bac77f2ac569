//! Asks the kernel about another socket of the own network namespace (sock_diag(7)): is it still held by a process? A client
//! that has closed and one that has only ended its side (shutdown(2)) send the same segment; the kernel knows which it was.
//! It looks at one socket, and changes nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// linux/sock_diag.h, linux/netlink.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const HEADER: usize = 16;
/// linux/inet_diag.h: where `idiag_inode` is in the answer.
const INODE: usize = HEADER + 68;

/// Whether the socket that is bound to `local` and connected to `remote` belongs to a process. One that the kernel does not
/// know is not held.
pub(crate) fn held(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    // Without an address it goes to the kernel, which has answered when this returns.
    socket.send(&question(local, remote))?;
    let mut answer = [0; 512];
    let n = io::Read::read(&mut &socket, &mut answer)?;
    let answer = answer.get(..n).unwrap_or_default();
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let inode = answer.get(INODE..INODE + 4).filter(|_| kind == Some(SOCK_DIAG_BY_FAMILY));
    // Otherwise it is an error: no such socket.
    Ok(inode.is_some_and(|inode| inode != [0; 4]))
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2`.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut out = Vec::with_capacity(72);
    out.extend(72u32.to_ne_bytes());
    out.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port: one question on each socket.
    out.extend([0; 8]);
    out.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    // In any state.
    out.extend(u32::MAX.to_ne_bytes());
    out.extend(local.port().to_be_bytes());
    out.extend(remote.port().to_be_bytes());
    for address in [local.ip(), remote.ip()] {
        let mut place = [0; 16];
        match address {
            IpAddr::V4(v4) => place[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => place = v6.octets(),
        }
        out.extend(place);
    }
    // Any interface, and INET_DIAG_NOCOOKIE.
    out.extend([0; 4]);
    out.extend([0xff; 8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Shutdown, TcpListener, TcpStream};

    #[test]
    fn a_socket_that_has_ended_its_side_is_held_and_a_closed_one_is_not() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, client_at) = listener.accept().unwrap();
            let server_at = server.local_addr().unwrap();
            assert!(held(client_at, server_at).unwrap(), "{address}");
            client.shutdown(Shutdown::Write).unwrap();
            assert!(held(client_at, server_at).unwrap(), "{address}");
            drop(client);
            assert!(!held(client_at, server_at).unwrap(), "{address}");
        }
        assert!(!held("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()).unwrap());
    }
}
