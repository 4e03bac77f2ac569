//! The redirection rules in a real kernel: each test makes network namespaces of its own (a "pod" and a "peer", joined by a
//! veth), runs `init` in the pod, and connects. Needs root; says so and passes where it is not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
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
        assert_eq!(rules.matches("redirect to").count(), 4, "{rules}");
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

/// The program in the pod, with the rules or without, and nobody else there that it could ask for anything.
struct Proxy {
    child: std::process::Child,
    log: tempfile::NamedTempFile,
}

impl Proxy {
    fn start(pod: &netns::Namespace, rules: bool) -> Self {
        let (started, child) = std::sync::mpsc::channel();
        let log = tempfile::NamedTempFile::new().unwrap();
        let stdout = log.reopen().unwrap();
        // Opened here: what was built can be in a folder that only root may enter.
        let program = std::fs::File::open(env!("CARGO_BIN_EXE_weft-proxy")).unwrap();
        pod.run(move || {
            if rules {
                init::run(&Args::default()).unwrap();
            }
            let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
                .arg("run")
                .env_clear()
                .envs([
                    ("WEFT_POD_NAME", "front-1"),
                    ("WEFT_POD_NAMESPACE", "shop"),
                    ("WEFT_POD_IPS", "10.77.0.1,fd77::1"),
                    ("WEFT_SERVICE_ACCOUNT", "front"),
                    ("WEFT_OPERATOR_ADDRESS", "127.0.0.1:1"),
                    ("WEFT_OPERATOR_NAMESPACE", "weft-system"),
                    ("WEFT_TOKEN_FILE", "/nonexistent/token"),
                ])
                .stdout(stdout)
                .uid(2102)
                .gid(2102)
                .spawn()
                .unwrap();
            started.send(child).unwrap();
        });
        Self { child: child.recv().unwrap(), log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(to: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Asks until the answer is as wanted; the last one otherwise.
fn until(to: &str, path: &str, wanted: impl Fn(&str) -> bool) -> String {
    let begun = std::time::Instant::now();
    loop {
        let said = get(to, path).unwrap_or_else(|error| error.to_string());
        if wanted(&said) || begun.elapsed() > Duration::from_secs(20) {
            return said;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_proxy_whose_rules_are_missing_is_not_ready_and_says_why() {
    let Some((pod, peer)) = pod_and_peer() else { return };
    let _proxy = Proxy::start(&pod, false);
    peer.run(|| {
        let ready = until("10.77.0.1:15020", "/ready", |said| said.contains("did not arrive"));
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("\"interception\""), "{ready}");
        assert!(ready.contains("redirection rules are missing"), "{ready}");
        for probe in ["10.77.0.1:15029", "[fd77::1]:15029"] {
            let ready = until(probe, "/ready", |said| said.contains("not redirected"));
            assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
        }
        let metrics = get("10.77.0.1:15020", "/metrics").unwrap();
        assert!(metrics.contains("weft_interception{family=\"ipv4\"} 0"), "{metrics}");
    });
    // Whoever writes them late has a pod that works.
    pod.run(|| init::run(&Args::default()).unwrap());
    peer.run(|| {
        let ready = until("10.77.0.1:15029", "/ready", |said| !said.contains("\"interception\""));
        assert!(ready.contains("\"certificate\"") && !ready.contains("\"interception\""), "{ready}");
        assert!(get("10.77.0.1:15020", "/metrics").unwrap().contains("weft_interception{family=\"ipv6\"} 1"));
    });
}

#[test]
fn a_proxy_with_its_rules_finds_that_out_in_both_families_as_the_user_whom_they_exempt() {
    let Some((pod, peer)) = pod_and_peer() else { return };
    let proxy = Proxy::start(&pod, true);
    peer.run(|| {
        for probe in ["10.77.0.1:15029", "[fd77::1]:15029"] {
            let ready = until(probe, "/ready", |said| {
                said.contains("\"certificate\"") && !said.contains("\"interception\"")
            });
            assert!(!ready.contains("\"interception\"") && ready.contains("\"certificate\""), "{ready}");
        }
        assert!(get("10.77.0.1:15020", "/metrics").unwrap().contains("weft_interception{family=\"ipv6\"} 1"));
    });
    let log = proxy.log();
    assert!(log.contains("is redirected to the proxy") && !log.contains("does not come"), "{log}");
    // Somebody takes the rules away later: the kubelet's next probe says so.
    pod.run(|| {
        let done = Command::new("nft").args(["delete", "table", "inet", "weft"]).status().unwrap();
        assert!(done.success());
    });
    peer.run(|| {
        let ready = until("10.77.0.1:15029", "/ready", |said| said.contains("not redirected"));
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("\"interception\""), "{ready}");
    });
}

/// What of the proxy another pod reaches by calling it directly, and the pod's own application.
#[test]
fn nobody_gets_through_or_around_the_proxy_by_its_own_ports() {
    let Some((pod, peer)) = pod_and_peer() else { return };
    let _proxy = Proxy::start(&pod, true);
    peer.run(|| {
        until("10.77.0.1:15029", "/ready", |said| said.contains("\"certificate\""));
        for port in [15000, 15001, 15006] {
            for ip in ["10.77.0.1", "[fd77::1]"] {
                for path in ["/", "/config", "/log", "/metrics"] {
                    let said = get(&format!("{ip}:{port}"), path).unwrap_or_default();
                    assert_eq!(said, "", "{ip}:{port}{path} is not closed without a word");
                }
            }
        }
        // What is for everybody, and nothing more.
        for (path, status) in
            [("/metrics", "200"), ("/live", "200"), ("/config", "404"), ("/certs", "404"), ("/log", "404")]
        {
            for port in [15020, 15029] {
                let said = get(&format!("10.77.0.1:{port}"), path).unwrap();
                assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{port}{path}: {said}");
            }
        }
        let metrics = get("10.77.0.1:15020", "/metrics").unwrap();
        let refused = metrics.lines().find(|l| l.starts_with("weft_refusals_total") && l.contains("inbound"));
        assert!(refused.is_some_and(|l| l.ends_with(" 24")), "each is counted: {refused:?}\n{metrics}");
    });
    pod.run(|| {
        // The application itself, straight to the listeners: no loop, no way around.
        for to in ["127.0.0.1:15001", "127.0.0.1:15006", "10.77.0.1:15001", "10.77.0.1:15006"] {
            assert_eq!(get(to, "/").unwrap_or_default(), "", "{to}");
        }
        // A check that is not the proxy's own tells it nothing.
        let mut forged = TcpStream::connect("127.0.0.1:15029").unwrap();
        forged.write_all(&[0; 16]).unwrap();
        assert_eq!(forged.read(&mut [0; 16]).unwrap_or(0), 0);
    });
}
