//! The own bundle for other meshes: HTTPS with the operator's own SVID (profile `https_spiffe`), GET of `/`, and nothing else. It is
//! public, so that whoever asks gets it; connections are bounded in number and in time. It reads nothing of what clients
//! send but the line that asks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::{REFRESH_HINT, document};
use crate::ca::Roots;
use crate::serve::Shared;

/// Connections at the same time; more wait in the listener's backlog.
const CONNECTIONS: usize = 64;
/// For all of a connection.
const LONGEST: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until told to stop.
pub async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(open) = Arc::clone(&connections).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(error = %error, "cannot accept a connection to the bundle endpoint");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let of = Arc::clone(&shared);
        shared.tasks.spawn(async move {
            let _open = open;
            if timeout(LONGEST, connection(&of, tcp)).await.is_err() {
                tracing::debug!("a connection to the bundle endpoint took too long");
            }
        });
    }
}

async fn connection(shared: &Arc<Shared>, tcp: TcpStream) {
    let acceptor = TlsAcceptor::from(Arc::clone(&shared.serving.current().bundle));
    let Ok(tls) = acceptor.accept(tcp).await else { return };
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &shared.authority.roots());
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(16 << 10).keep_alive(false);
    if let Err(error) = server.serve_connection(TokioIo::new(tls), service).await {
        tracing::debug!(error = %error, "a connection to the bundle endpoint broke off");
    }
}

fn answer(method: &Method, path: &str, roots: &Roots) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if path != "/" {
        *response.status_mut() = StatusCode::NOT_FOUND;
    } else if !matches!(*method, Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    } else {
        let document = document::write(&roots.bundle(), roots.epoch, REFRESH_HINT);
        *response.body_mut() = Full::new(document.into());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Root;
    use crate::federation::fetch::fetch;
    use crate::keys::fetch::Fetcher;
    use crate::serve::tests::Operator;
    use http_body_util::BodyExt as _;
    use serde_json::json;
    use std::time::SystemTime;
    use weft_crds::trust_domain::TrustDomainSpec;

    fn root() -> Root {
        Root::generate(&"cluster.local".parse().unwrap(), Duration::from_secs(86_400)).unwrap()
    }

    #[tokio::test]
    async fn the_bundle_follows_a_rotation_and_nothing_else_is_there() {
        let text = async |answer: Response<Full<Bytes>>| {
            String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
        };
        let one = Roots::from(root()).stamp(SystemTime::now());
        let two = one.begin(root(), SystemTime::now());
        let mut sequences = Vec::new();
        for roots in [&one, &two] {
            let answer = answer(&Method::GET, "/", roots);
            assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
            let read = document::read("cluster.local", &text(answer).await).unwrap();
            let wanted: Vec<_> = roots.bundle().iter().map(|der| der.to_vec()).collect();
            assert_eq!((read.roots, read.refresh_hint), (wanted, Some(REFRESH_HINT)));
            sequences.push(read.sequence);
        }
        assert!(sequences[0] < sequences[1], "{sequences:?}");
        assert_eq!(answer(&Method::GET, "/metrics", &one).status(), StatusCode::NOT_FOUND);
        assert_eq!(answer(&Method::POST, "/", &one).status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    /// As another mesh asks: by this operator's SPIFFE id and root, and by nobody else's.
    #[tokio::test]
    async fn another_mesh_gets_it_by_our_root_and_identity_only() {
        let operator = Operator::start(Vec::new()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serving = tokio::spawn(run(Arc::clone(&operator.shared), listener));
        let fetcher = Fetcher::with(|_| true, Duration::from_secs(5));
        let roots: Vec<_> = operator.shared.authority.roots().bundle().iter().map(|d| d.to_vec()).collect();
        let spec = |id: &str| -> TrustDomainSpec {
            let url = format!("https://{at}/");
            let endpoint = json!({ "url": url, "profile": "HttpsSpiffe", "spiffeId": id });
            serde_json::from_value(json!({ "trustDomain": "cluster.local", "endpoint": endpoint })).unwrap()
        };
        let own = operator.shared.serving.identity().to_string();
        let (document, age) = fetch(&fetcher, &spec(&own), &roots).await.unwrap();
        assert_eq!((document.roots, age), (roots.clone(), Some(REFRESH_HINT)));
        let others = vec![root().der.to_vec()];
        for (id, known) in [
            (own.as_str(), &others),
            ("spiffe://cluster.local/ns/shop/sa/weft-operator", &roots),
            (own.as_str(), &Vec::new()),
        ] {
            let error = fetch(&fetcher, &spec(id), known).await.unwrap_err();
            assert!(error.contains("TLS failed") || error.contains("no root"), "{id}: {error}");
        }
        let web = json!({ "trustDomain": "cluster.local", "endpoint": {
            "url": format!("https://{at}/"), "profile": "HttpsWeb" } });
        let error = fetch(&fetcher, &serde_json::from_value(web).unwrap(), &roots).await.unwrap_err();
        assert!(error.contains("TLS failed"), "{error}");
        serving.abort();
    }
}
