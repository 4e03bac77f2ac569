//! Over real sockets.

use super::*;
use crate::logging;
use crate::settings::Settings;
use crate::testing::{Ca, identity};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing_subscriber::layer::SubscriberExt;
use weft_api::v1;

struct Served {
    admin: Arc<Admin>,
    private: SocketAddr,
    public: SocketAddr,
}

async fn start(log: LogLevel) -> Served {
    let vars = |name: &str| {
        Some(match name {
            "WEFT_POD_NAME" => "front-1".to_owned(),
            "WEFT_POD_NAMESPACE" => "shop".to_owned(),
            // The first does not listen; the probe goes on to the second.
            "WEFT_POD_IPS" => "::1,127.0.0.1".to_owned(),
            "WEFT_SERVICE_ACCOUNT" => "front".to_owned(),
            "WEFT_OPERATOR_ADDRESS" => "weft-operator.weft-system.svc:15010".to_owned(),
            _ => return None,
        })
    };
    let settings = Settings::parse(vars).unwrap();
    let admin = Arc::new(Admin {
        pod: settings.pod,
        identity: settings.identity,
        certified: true,
        store: Arc::new(SnapshotStore::new()),
        tls: Arc::new(Tls::new()),
        status: Arc::new(Status::new(Arc::new(crate::metrics::Metrics::new()))),
        log,
        metrics: Arc::new(Metrics::new()),
        probes: Admin::probes(),
    });
    let private = bind_private(0).await.unwrap().remove(0);
    let public = bind_public(0).await.unwrap();
    let port = public.local_addr().unwrap().port();
    let served = Served {
        private: private.local_addr().unwrap(),
        public: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        admin: Arc::clone(&admin),
    };
    tokio::spawn(serve(private, super::private(Arc::clone(&admin))));
    tokio::spawn(serve(public, super::public(admin)));
    served
}

async fn quiet() -> Served {
    start(logging::reloadable("info").unwrap().1).await
}

async fn call(at: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let all = match request.split_once('\n') {
        Some((line, body)) => {
            format!(
                "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        }
        None => head,
    };
    stream.write_all(all.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn json(at: SocketAddr, request: &str) -> Value {
    let (status, body) = call(at, request).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn update() -> v1::ToProxy {
    let key = "shop/back:80";
    let service = v1::Service {
        key: key.to_owned(),
        namespace: "shop".to_owned(),
        name: "back".to_owned(),
        port: 80,
        protocol: v1::Protocol::Http1.into(),
        clusters: vec![v1::Cluster {
            name: key.to_owned(),
            endpoints: vec![v1::Endpoint {
                address: "10.1.0.1:8080".to_owned(),
                weight: 1,
                identity: identity("shop", "back").to_string(),
                pod: "back-1".to_owned(),
                workload: "back".to_owned(),
                ..Default::default()
            }],
            breaker: Some(v1::Breaker { max_connections: 7, ..Default::default() }),
            connect_timeout_ms: 1000,
            idle_timeout_ms: 1000,
            ..Default::default()
        }],
        routes: vec![
            v1::Route {
                name: "policy/0".to_owned(),
                matches: vec![v1::Match {
                    path: Some(v1::r#match::Path::PathPrefix("/a".to_owned())),
                    ..Default::default()
                }],
                backends: vec![v1::Backend { cluster: key.to_owned(), weight: 1 }],
                timeout_ms: 250,
                ..Default::default()
            },
            v1::Route {
                name: "default".to_owned(),
                backends: vec![v1::Backend { cluster: key.to_owned(), weight: 1 }],
                ..Default::default()
            },
        ],
        default_cluster: key.to_owned(),
        ..Default::default()
    };
    v1::ToProxy {
        version: 4,
        workload: Some(v1::Workload {
            namespace: "shop".to_owned(),
            pod: "front-1".to_owned(),
            name: "front".to_owned(),
            identity: identity("shop", "front").to_string(),
            mtls: v1::MtlsMode::Strict.into(),
            ..Default::default()
        }),
        addresses: vec![
            v1::Address {
                address: "10.96.0.5:80".to_owned(),
                target: Some(v1::address::Target::Service(key.to_owned())),
            },
            v1::Address {
                address: "1.1.1.1:443".to_owned(),
                target: Some(v1::address::Target::External(v1::External {})),
            },
        ],
        services: vec![service],
        ..Default::default()
    }
}

#[tokio::test]
async fn it_is_ready_with_certificate_config_and_listeners_and_says_what_is_missing_until_then() {
    let served = quiet().await;
    let (status, body) = call(served.public, "GET /ready").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 503);
    let parts: Vec<_> =
        body["missing"].as_array().unwrap().iter().map(|m| m["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["certificate", "config", "listeners"]);
    assert_eq!(call(served.public, "GET /live").await.0, 200);

    let ca = Ca::new("root");
    let (chain, key) = ca.workload(&identity("shop", "front"));
    served.admin.tls.set_identity(chain, key, vec![ca.root()]).unwrap();
    let (next, rejections) = served.admin.store.load().apply(&update());
    assert!(rejections.is_empty(), "{rejections:?}");
    served.admin.store.publish(next);
    assert_eq!(call(served.private, "GET /ready").await.0, 503);
    served.admin.status.listening.store(true, Ordering::Relaxed);
    assert_eq!(call(served.public, "GET /ready").await.0, 200);
    served.admin.status.draining.store(true, Ordering::Relaxed);
    assert_eq!(call(served.public, "GET /ready").await.0, 503);
}

#[tokio::test]
async fn it_shows_the_configuration_endpoints_and_certificate_but_no_key() {
    let served = quiet().await;
    let ca = Ca::new("root");
    let (chain, key) = ca.workload(&identity("shop", "front"));
    let secret = key.secret_der()[..].to_vec();
    served.admin.tls.set_identity(chain, key, vec![ca.root(), CertificateDer::from(vec![1])]).unwrap();
    served.admin.store.publish(served.admin.store.load().apply(&update()).0);

    let config = json(served.private, "GET /config").await;
    assert_eq!(config["workload"]["mtls"], "Strict");
    assert_eq!(config["addresses"]["10.96.0.5:80"]["service"], "shop/back:80");
    assert_eq!(config["addresses"]["1.1.1.1:443"], "external");
    assert_eq!(config["services"][0]["routes"][0]["matches"][0]["path"]["prefix"], "/a");
    assert_eq!(config["services"][0]["routes"][0]["timeout_ms"], 250);
    assert_eq!(config["connected"], false);

    let clusters = json(served.private, "GET /clusters").await;
    assert_eq!(clusters[0]["endpoints"][0]["identity"], "spiffe://cluster.local/ns/shop/sa/back");
    assert_eq!(clusters[0]["endpoints"][0]["in_flight"], 0);
    assert_eq!(clusters[0]["endpoints"][0]["ejected"], Value::Null);
    assert_eq!(clusters[0]["breaker"]["connections"]["max"], 7);

    let certs = json(served.private, "GET /certs").await;
    assert_eq!(certs["identity"], "spiffe://cluster.local/ns/shop/sa/front");
    assert_eq!(certs["roots"], 2);
    assert!(certs["root_certificates"][0]["subject"].as_str().unwrap().contains("root"));
    let hex: String = secret[secret.len() - 16..].iter().map(|b| format!("{b:02x}")).collect();
    assert!(!certs.to_string().contains(&hex));

    let reasons = json(served.private, "GET /reasons").await;
    assert_eq!(reasons.as_array().unwrap().len(), Reason::ALL.len());
}

#[tokio::test]
async fn the_log_level_changes_while_it_runs_and_a_bad_one_changes_nothing() {
    let (layer, level) = logging::reloadable("info").unwrap();
    let probe = tracing::Dispatch::new(tracing_subscriber::registry().with(layer));
    let served = start(level).await;
    let debug_is_on =
        || tracing::dispatcher::with_default(&probe, || tracing::enabled!(tracing::Level::DEBUG));
    assert!(!debug_is_on());
    assert_eq!(call(served.private, "PUT /log\ndebug").await, (200, "debug\n".to_owned()));
    assert!(debug_is_on());
    assert_eq!(call(served.private, "POST /log?level=weft_proxy=trace,warn").await.0, 200);
    let (status, body) = call(served.private, "PUT /log\nloud").await;
    assert_eq!(status, 400);
    assert!(body.contains("`loud` is no level"), "{body}");
    assert_eq!(call(served.private, "GET /log").await.1, "weft_proxy=trace,warn\n");
    assert_eq!(call(served.private, &format!("PUT /log\n{}", "x".repeat(5000))).await.0, 400);
    assert_eq!(call(served.public, "PUT /log\ndebug").await.0, 404, "the public port changes nothing");
}

#[tokio::test]
async fn a_tcp_probe_says_whether_the_application_accepts() {
    let served = quiet().await;
    let app = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = app.local_addr().unwrap().port();
    assert_eq!(call(served.public, &format!("GET /probe/tcp/{port}")).await.0, 200);
    drop(app);
    let (status, body) = call(served.public, &format!("GET /probe/tcp/{port}")).await;
    assert_eq!(status, 503);
    assert!(body.contains("refused"), "{body}");
    for bad in ["0", "65536", "-1", "http", "80%2f"] {
        assert_eq!(call(served.public, &format!("GET /probe/tcp/{bad}")).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn the_public_port_does_not_show_the_configuration() {
    let served = quiet().await;
    for path in ["/config", "/clusters", "/certs", "/log", "/reasons"] {
        assert_eq!(call(served.public, &format!("GET {path}")).await.0, 404, "{path}");
    }
    let (status, text) = call(served.public, "GET /metrics").await;
    assert!(
        status == 200
            && text.contains("weft_build_info")
            && text.ends_with(
                "# EOF
"
            ),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_cut_off() {
    let served = quiet().await;
    let mut stream = TcpStream::connect(served.public).await.unwrap();
    stream.write_all(b"GET /rea").await.unwrap();
    let mut rest = Vec::new();
    timeout(HEAD_TIMEOUT * 2, stream.read_to_end(&mut rest)).await.expect("closed in time").unwrap();
}

#[tokio::test]
async fn who_calls_in_plaintext_is_listed_on_the_private_port_only() {
    let served = quiet().await;
    served.admin.metrics.plaintext.note("10.0.0.9".parse().unwrap(), 8080);
    let answer = json(served.private, "GET /plaintext").await;
    assert_eq!(answer["forgotten"], 0);
    let caller = &answer["callers"][0];
    assert_eq!(
        (&caller["address"], &caller["port"], &caller["connections"]),
        (&"10.0.0.9".into(), &8080.into(), &1.into())
    );
    assert!(answer["since_unix_s"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(call(served.public, "GET /plaintext").await.0, 404);
}
