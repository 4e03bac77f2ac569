//! docs/howto/compose.md: its files, with processes in place of containers. Only addresses and paths are replaced.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::apps::{self, Seen};
use crate::clients::{Got, fetch, get};
use crate::process::{Config, Proxy, address, ask, until};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/compose");

/// The example, running.
struct Compose {
    front: Proxy,
    front_file: Config,
    front_admin: SocketAddr,
    /// What `front` calls.
    entrance: SocketAddr,
    v1: Back,
    v2: Back,
    certificates: tempfile::TempDir,
}

struct Back {
    _proxy: Proxy,
    file: Config,
    admin: SocketAddr,
    inbound: SocketAddr,
    seen: Seen,
}

fn example(name: &str) -> String {
    std::fs::read_to_string(Path::new(EXAMPLE).join(name)).unwrap()
}

/// Each of these stands in the text, and is replaced.
fn replaced(text: &str, by: &[(&str, String)]) -> String {
    by.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in the example");
        text.replace(from, to)
    })
}

fn make_certificates(dir: &Path) {
    std::fs::copy(Path::new(EXAMPLE).join("certificates.sh"), dir.join("certificates.sh")).unwrap();
    let made = Command::new("sh").arg(dir.join("certificates.sh")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Last the certificate, as the example's script does.
fn hand_out(from: &Path, name: &str, to: &Path) {
    std::fs::create_dir_all(to.join("certificates")).unwrap();
    for file in ["roots.pem", "tls.key", "tls.crt"] {
        let at = from.join("certificates").join(name).join(file);
        std::fs::copy(at, to.join("certificates").join(file)).unwrap();
    }
}

async fn version(text: &'static str) -> (SocketAddr, Seen) {
    apps::http(move |request| async move {
        let caller =
            request.headers().get("weft-client-identity").map_or("nobody", |id| id.to_str().unwrap());
        apps::text(format!("{text} called by {caller}"))
    })
    .await
}

impl Back {
    async fn start(text: &'static str, certificates: &Path) -> Self {
        let (app, seen) = version(text).await;
        let (admin, inbound) = (address(), address());
        let file = Config::new(&replaced(
            &example("back.yaml"),
            &[
                ("127.0.0.1:15000", admin.to_string()),
                ("0.0.0.0:15020", address().to_string()),
                ("0.0.0.0:8443", inbound.to_string()),
                ("127.0.0.1:8080", app.to_string()),
            ],
        ));
        hand_out(certificates, "back", file.dir());
        Self { _proxy: Proxy::start(&file.path(), &[]), file, admin, inbound, seen }
    }
}

impl Compose {
    async fn up() -> Self {
        let certificates = tempfile::tempdir().unwrap();
        make_certificates(certificates.path());
        let v1 = Back::start("v1", certificates.path()).await;
        let v2 = Back::start("v2", certificates.path()).await;
        let (front_admin, entrance) = (address(), address());
        let front_file = Config::new(&replaced(
            &example("front.yaml"),
            &[
                ("127.0.0.1:15000", front_admin.to_string()),
                ("0.0.0.0:15020", address().to_string()),
                ("127.0.0.1:9001", entrance.to_string()),
                ("back-v1:8443", v1.inbound.to_string()),
                ("back-v2:8443", v2.inbound.to_string()),
            ],
        ));
        hand_out(certificates.path(), "front", front_file.dir());
        let front = Proxy::start(&front_file.path(), &[]);
        Self { front, front_file, front_admin, entrance, v1, v2, certificates }
    }

    async fn call(&self) -> Got {
        fetch(self.entrance, get("/")).await
    }

    async fn share_of_v2(&self, requests: usize) -> usize {
        let before = self.v2.seen.requests();
        for _ in 0..requests {
            let got = self.call().await;
            assert_eq!(got.status, 200, "{got:?}");
        }
        self.v2.seen.requests() - before
    }

    async fn metric(&self, name: &str) -> u64 {
        let text = ask(self.front_admin, "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect(name);
        line.parse().unwrap()
    }

    fn front_text(&self) -> String {
        std::fs::read_to_string(self.front_file.path()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_works_as_its_page_says() {
    let compose = Compose::up().await;

    // mTLS between the two, and the application knows who called.
    let got = compose.call().await;
    assert!(got.text().ends_with("called by spiffe://cluster.local/ns/shop/sa/front"), "{got:?}");
    let plain = fetch(compose.v1.inbound, get("/")).await;
    assert_eq!((plain.status.as_u16(), plain.reason()), (403, "mtls-required"));

    // One in ten goes to the canary; 300 trials are off by more than 20 once in ten thousand.
    let canary = compose.share_of_v2(300).await;
    assert!((10..=50).contains(&canary), "{canary} of 300");
    let tester: Request<Full<Bytes>> =
        Request::get("/").header("host", "back").header("x-tester", "1").body(Full::default()).unwrap();
    for _ in 0..5 {
        assert!(fetch(compose.entrance, tester.clone()).await.text().starts_with("v2"));
    }

    // A change is in force without a restart.
    let good = compose.front_text();
    let all =
        replaced(&good, &[("weight: 90", "weight: 0".to_owned()), ("weight: 10", "weight: 100".to_owned())]);
    compose.front_file.write(&all);
    until("everything goes to v2", async || compose.share_of_v2(5).await == 5).await;

    // A bad file is told, and the last good one stays.
    compose.front_file.write(&replaced(
        &all,
        &[("weight: 0", "weigth: 0".to_owned()), ("protocol: Http1", "protocol: Spdy".to_owned())],
    ));
    compose
        .front
        .find("both mistakes", |line| line["problem"].as_str().is_some_and(|p| p.contains("`weigth`")));
    compose.front.find("both mistakes", |line| {
        line["problem"].as_str().is_some_and(|p| p.contains("`Spdy` is none of"))
    });
    until("the metric", async || compose.metric("weft_config_files_refused_total").await == 1).await;
    let shown = ask(compose.front_admin, "/config").await;
    assert!(shown.contains("weigth") && shown.contains("Spdy"), "{shown}");
    assert_eq!(compose.share_of_v2(20).await, 20);
    let (code, said) = compose.front_file.check();
    assert_eq!(code, Some(64));
    assert!(said.contains("`weigth`") && said.contains("`Spdy`"), "{said}");

    // And the next good one is taken.
    compose.front_file.write(&good);
    assert_eq!(compose.front_file.check().0, Some(0));
    until("v1 is back", async || compose.share_of_v2(20).await < 20).await;
    assert!(ask(compose.front_admin, "/config").await.contains("\"error\":null"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_rotated_without_a_failure_and_those_that_do_not_fit_are_refused() {
    let compose = Compose::up().await;
    let serial = async || {
        let shown: serde_json::Value = serde_json::from_str(&ask(compose.v1.admin, "/certs").await).unwrap();
        shown["serial"].as_str().unwrap().to_owned()
    };
    let first = serial().await;
    assert_eq!(compose.call().await.status, 200);

    make_certificates(compose.certificates.path());
    for (name, dir) in [
        ("front", compose.front_file.dir()),
        ("back", compose.v1.file.dir()),
        ("back", compose.v2.file.dir()),
    ] {
        hand_out(compose.certificates.path(), name, dir);
    }
    until("the new certificate", async || {
        assert_eq!(compose.call().await.status, 200);
        serial().await != first
    })
    .await;
    let second = serial().await;

    // A key that is not the certificate's.
    let key = compose.certificates.path().join("certificates/front/tls.key");
    std::fs::copy(key, compose.v1.file.dir().join("certificates/tls.key")).unwrap();
    until("it is refused", async || ask(compose.v1.admin, "/config").await.contains("identity: ")).await;
    assert_eq!((serial().await, compose.call().await.status.as_u16()), (second, 200));

    // Somebody else's certificate: who a proxy is does not change under its feet.
    hand_out(compose.certificates.path(), "front", compose.v1.file.dir());
    until("it is told why", async || {
        ask(compose.v1.admin, "/config").await.contains("but this proxy runs as")
    })
    .await;
    assert_eq!(compose.call().await.status, 200);
}
