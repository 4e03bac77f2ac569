//! Two pods in network namespaces, with real redirection: nothing is stated, the kernel tells. Needs root.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

use weft_api::v1;
use weft_proxy::init::{self, Args};

use crate::netns::pod_and_peer;
use crate::world::{Ca, Node, SERVICE, identity, service};

/// A server of HTTP/1, one request on each connection, that answers with what it got.
fn echo(port: u16) {
    let listener = TcpListener::bind(("::", port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && (&stream).read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                if head.starts_with(b"GET /slow ") {
                    std::thread::sleep(Duration::from_millis(800));
                }
                let answer =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", head.len());
                let _ = (&stream).write_all(&[answer.as_bytes(), &head].concat());
            });
        }
    });
}

fn banner(port: u16) {
    let listener = TcpListener::bind(("::", port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(b"220 ready\r\n");
        }
    });
}

fn call(to: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(3)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut got = String::new();
    let _ = stream.read_to_string(&mut got);
    got
}

/// The same, by a client that ends its side at once.
fn call_and_end(to: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(3)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = String::new();
    let _ = stream.read_to_string(&mut got);
    got
}

const GET: &[u8] = b"GET /pod HTTP/1.1\r\nhost: back\r\nconnection: close\r\n\r\n";

#[test]
fn pods_reach_each_other_through_the_kernels_redirection_on_both_families() {
    let Some((pod, peer)) = pod_and_peer() else { return };
    let root = Ca::new();
    let (ready, wait) = channel();
    let done = ready.clone();
    let front_ca = root.clone();
    pod.run(move || {
        init::run(&Args::default()).unwrap();
        let node = Node::in_pod(&front_ca, "front", vec!["10.77.0.1".parse().unwrap()]);
        let endpoints: Vec<SocketAddr> =
            vec!["10.77.0.2:8080".parse().unwrap(), "[fd77::2]:8080".parse().unwrap()];
        let mut mail = service(&["10.77.0.2:2525".parse().unwrap()], Some("back"));
        mail.key = "shop/mail:25".into();
        let address = |address: &str, key: &str| v1::Address {
            address: address.into(),
            target: Some(v1::address::Target::Service(key.into())),
        };
        node.configure(v1::ToProxy {
            services: vec![service(&endpoints, Some("back")), mail],
            addresses: vec![
                address("10.77.0.99:80", SERVICE),
                address("[fd77::99]:80", SERVICE),
                address("10.77.0.99:25", "shop/mail:25"),
            ],
            ..Default::default()
        });
        ready.send(node).unwrap();
    });
    peer.run(move || {
        init::run(&Args::default()).unwrap();
        echo(8080);
        banner(2525);
        let node = Node::in_pod(&root, "back", vec!["10.77.0.2".parse().unwrap()]);
        node.workload("back", |own| own.mtls = v1::MtlsMode::Strict.into());
        done.send(node).unwrap();
    });
    let nodes = [wait.recv().unwrap(), wait.recv().unwrap()];
    pod.run(|| {
        for _ in 0..10 {
            for vip in ["10.77.0.99:80", "[fd77::99]:80"] {
                let got = call(vip, GET);
                assert!(got.starts_with("HTTP/1.1 200"), "{vip}: {got}");
                assert!(
                    got.contains(&format!("weft-client-identity: {}", identity("front"))),
                    "{vip}: {got}"
                );
            }
        }
        assert_eq!(call("10.77.0.99:25", b""), "220 ready\r\n");
        // Behind redirection too the kernel tells a client that has ended its side from one that is gone.
        for vip in ["10.77.0.99:80", "[fd77::99]:80"] {
            let got = call_and_end(vip, b"GET /slow HTTP/1.1\r\nhost: back\r\n\r\n");
            assert!(got.starts_with("HTTP/1.1 200 OK"), "{vip}: {got}");
        }
        // The proxy's own ports are not for direct calls.
        assert_eq!(call("127.0.0.1:15001", GET), "");
    });
    pod.run(|| {
        // As the proxy's user nothing is redirected: plaintext, which the other pod refuses.
        let got = std::thread::spawn(|| {
            // SAFETY: changes this thread's credentials only, and the thread ends right after.
            unsafe { libc::syscall(libc::SYS_setresuid, 2102, 2102, 2102) };
            call("10.77.0.2:8080", GET)
        })
        .join()
        .unwrap();
        assert!(got.contains("weft-reason: mtls-required"), "{got}");
    });
    drop(nodes);
}
