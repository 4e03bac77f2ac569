//! The redirection rules in a real kernel: each test makes network namespaces of its own (a "pod" and a "peer", joined by a
//! veth), runs `init` in the pod, and connects. Needs root; says so and passes where it is not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use weft_proxy::init::{self, Args};

mod netns;

use netns::pod_and_peer;

/// Answers every connection with the original destination as the kernel tells it.
fn tell_original_destination(port: u16) {
    let listener = TcpListener::bind((IpAddr::from([0u16; 8]), port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(original_destination(&stream).to_string().as_bytes());
        }
    });
}

fn original_destination(stream: &TcpStream) -> SocketAddr {
    let local = stream.local_addr().unwrap();
    let v4 = local.ip().to_canonical().is_ipv4();
    // SAFETY: the buffer is as long as its length says, and large enough for both families.
    unsafe {
        let mut raw: libc::sockaddr_in6 = std::mem::zeroed();
        let mut length = u32::try_from(size_of_val(&raw)).unwrap();
        let (level, name) = if v4 { (libc::SOL_IP, 80) } else { (libc::SOL_IPV6, 80) };
        let got = libc::getsockopt(stream.as_raw_fd(), level, name, (&raw mut raw).cast(), &raw mut length);
        assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
        if v4 {
            let four = *(&raw const raw).cast::<libc::sockaddr_in>();
            let octets = u32::from_be(four.sin_addr.s_addr).to_be_bytes();
            SocketAddr::from((octets, u16::from_be(four.sin_port)))
        } else {
            SocketAddr::from((raw.sin6_addr.s6_addr, u16::from_be(raw.sin6_port)))
        }
    }
}

fn connect(to: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Connects as the user of the proxy.
fn connect_as_proxy(to: &str) -> std::io::Result<String> {
    let to = to.to_owned();
    std::thread::spawn(move || {
        // SAFETY: the raw system call changes this thread's credentials only, and the thread ends right after.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 2102, 2102, 2102) };
        assert_eq!(changed, 0);
        connect(&to)
    })
    .join()
    .unwrap()
}

fn serve_text(address: &'static str, text: &'static str) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(text.as_bytes());
        }
    });
}

fn serve_datagrams(port: u16, text: &'static str) {
    let socket = UdpSocket::bind((IpAddr::from([0u16; 8]), port)).unwrap();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 100]) {
            let _ = socket.send_to(text.as_bytes(), from);
        }
    });
}

/// What answers from exactly this address.
fn ask(to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"?").unwrap();
    let mut answer = [0; 100];
    let n = socket.recv(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

#[test]
fn udp_is_left_alone_both_ways() {
    let Some((pod, peer)) = pod_and_peer() else { return };
    peer.run(|| serve_datagrams(53, "peer"));
    pod.run(|| {
        init::run(&Args::default()).unwrap();
        for (port, text) in [(8125, "pod"), (15001, "outbound"), (15006, "inbound")] {
            serve_datagrams(port, text);
        }
        assert_eq!((ask("10.77.0.2:53"), ask("[fd77::2]:53")), ("peer".into(), "peer".into()));
    });
    peer.run(|| {
        assert_eq!((ask("10.77.0.1:8125"), ask("[fd77::1]:8125")), ("pod".into(), "pod".into()));
    });
}

#[test]
fn what_the_pod_sends_goes_to_the_proxy_which_learns_where_it_was_meant_for() {
    let Some((pod, _peer)) = pod_and_peer() else { return };
    pod.run(|| {
        init::run(&Args::default()).unwrap();
        tell_original_destination(15001);
        assert_eq!(connect("10.77.0.2:80").unwrap(), "10.77.0.2:80");
        assert_eq!(connect("[fd77::2]:443").unwrap(), "[fd77::2]:443");
    });
}

#[test]
fn what_comes_in_goes_to_the_proxy_except_metrics_and_skipped_ports() {
    let Some((pod, peer)) = pod_and_peer() else { return };
    pod.run(|| {
        init::run(&Args { skip_inbound_ports: vec![9100], ..Args::default() }).unwrap();
        tell_original_destination(15006);
        serve_text("[::]:15020", "metrics");
        serve_text("[::]:9100", "skipped");
    });
    peer.run(|| {
        assert_eq!(connect("10.77.0.1:8080").unwrap(), "10.77.0.1:8080");
        assert_eq!(connect("[fd77::1]:8080").unwrap(), "[fd77::1]:8080");
        assert_eq!(connect("10.77.0.1:15020").unwrap(), "metrics");
        assert_eq!(connect("10.77.0.1:9100").unwrap(), "skipped");
    });
}

#[test]
fn the_proxy_itself_loopback_own_addresses_and_skipped_destinations_are_left_alone() {
    let Some((pod, peer)) = pod_and_peer() else { return };
    peer.run(|| {
        serve_text("[::]:80", "peer");
        serve_text("[::]:3306", "database");
    });
    pod.run(|| {
        let args = Args {
            skip_outbound_ports: vec![3306],
            skip_outbound_cidrs: vec!["fd77::2/128".parse().unwrap(), "10.99.0.0/16".parse().unwrap()],
            ..Args::default()
        };
        init::run(&args).unwrap();
        tell_original_destination(15001);
        serve_text("[::]:8080", "app");
        assert_eq!(connect("10.77.0.2:80").unwrap(), "10.77.0.2:80", "others are redirected");
        assert_eq!(connect_as_proxy("10.77.0.2:80").unwrap(), "peer");
        assert_eq!(connect("10.77.0.2:3306").unwrap(), "database");
        assert_eq!(connect("[fd77::2]:80").unwrap(), "peer");
        assert_eq!(connect("127.0.0.1:8080").unwrap(), "app");
        assert_eq!(connect("[::1]:8080").unwrap(), "app");
        assert_eq!(connect("10.77.0.1:8080").unwrap(), "app");
    });
}

#[test]
fn a_second_run_replaces_the_first_and_other_tables_stay() {
    let Some((pod, _peer)) = pod_and_peer() else { return };
    pod.run(|| {
        let nft = |arguments: &str| {
            let out = Command::new("nft").args(arguments.split_whitespace()).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        nft("add table inet users");
        init::run(&Args { skip_inbound_ports: vec![1, 2, 3], ..Args::default() }).unwrap();
        init::run(&Args::default()).unwrap();
        let rules = nft("list ruleset");
        assert_eq!(rules.matches("redirect to").count(), 2, "{rules}");
        assert!(rules.contains("table inet users"), "{rules}");
        assert!(rules.contains("redirect to :15001") && rules.contains("redirect to :15006"), "{rules}");
        assert!(rules.contains("meta skuid 2102") && !rules.contains("dport 3 "), "{rules}");
    });
}

#[test]
fn without_net_admin_the_error_says_so() {
    let Some((pod, _peer)) = pod_and_peer() else { return };
    pod.run(|| {
        let error = std::thread::spawn(|| {
            // SAFETY: changes this thread's credentials only, and the thread ends right after.
            unsafe { libc::syscall(libc::SYS_setresuid, 2102, 2102, 2102) };
            init::run(&Args::default()).unwrap_err()
        })
        .join()
        .unwrap();
        assert!(format!("{error:#}").contains("NET_ADMIN"), "{error:#}");
    });
}
