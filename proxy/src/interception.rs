//! Whether the pod's TCP really comes to this proxy. Without the redirection rules (an init step or a CNI plugin that did not
//! run) the application would talk past the mesh unnoticed, so the proxy is not ready before it has seen for itself.
//!
//! Out: a call of its own to [`names::CHECK_PORT`] on loopback, which the rules redirect even for the proxy's user, must arrive
//! at its outbound listener with what was written into it. In: the kubelet's probes of that port are redirected to the port of
//! metrics; those that arrive where they were sent to were not. Rules are written in one transaction, so both chains are there
//! or neither. It changes no rule: that takes a capability which the proxy does not have.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;

/// What the check carries: random, and new each time.
type Nonce = [u8; 16];

/// For each step of a check.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two checks until one has succeeded, and afterwards.
const PAUSE: Duration = Duration::from_millis(500);
const CALM_PAUSE: Duration = Duration::from_secs(30);
/// What to do, wherever it is said that rules are missing.
const REMEDY: &str = "the redirection rules are missing, so the application would talk past the mesh: neither the init container weft-init nor the CNI plugin of this node has written them; delete the pod so that it is made anew";

/// See the module.
#[derive(Debug)]
pub struct Interception {
    port: u16,
    expected: Mutex<Option<(Nonce, oneshot::Sender<()>)>>,
    /// Why it is not known to work; `None`: it works.
    missing: Mutex<Option<String>>,
}

impl Interception {
    /// By this port; 0: where nothing is redirected, and nothing has to be.
    #[must_use]
    pub fn new(port: u16) -> Self {
        let missing = (port != 0).then(|| "it is being found out whether traffic is redirected".to_owned());
        Self { port, expected: Mutex::default(), missing: Mutex::new(missing) }
    }

    /// What stands against readiness.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a connection that came to the outbound listener is a check. Another pod's port of that number is not.
    #[must_use]
    pub fn is_check(&self, original: SocketAddr) -> bool {
        self.port != 0 && original.port() == self.port && original.ip().is_loopback()
    }

    /// The outbound listener's end of a check. The application can open one too; it does not know what to write.
    pub async fn arrived(&self, mut stream: TcpStream) {
        let mut said: Nonce = [0; 16];
        if !matches!(timeout(PATIENCE, stream.read_exact(&mut said)).await, Ok(Ok(_))) {
            return;
        }
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.as_ref().is_some_and(|(nonce, _)| *nonce == said)
            && let Some((_, seen)) = expected.take()
        {
            let _ = seen.send(());
        }
    }

    /// Checks for ever: first until it works, then to notice when it does so no more. That is counted and logged, but unready the
    /// pod becomes by the kubelet's probes alone, which have to pass the rules each time: a check of ours can also fail because
    /// the proxy is busy.
    pub async fn run(self: Arc<Self>, own: Vec<IpAddr>, metrics: Arc<Metrics>) {
        if self.port == 0 {
            return std::future::pending().await;
        }
        let (mut before, mut worked): (Option<Result<(), String>>, bool) = (None, false);
        loop {
            let outcome = self.check(&own, &metrics).await;
            if before.as_ref() != Some(&outcome) {
                match &outcome {
                    Ok(()) => tracing::info!("traffic of this pod is redirected to the proxy"),
                    Err(why) if worked => {
                        tracing::warn!(%why, "traffic of this pod does not come to the proxy any more")
                    }
                    Err(why) => {
                        tracing::error!(%why, "traffic of this pod does not come to the proxy: not ready")
                    }
                }
            }
            worked |= outcome.is_ok();
            if outcome.is_ok() || !worked {
                *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = outcome.clone().err();
            }
            before = Some(outcome);
            sleep(if worked { CALM_PAUSE } else { PAUSE }).await;
        }
    }

    /// In each family that the pod has an address of.
    async fn check(&self, own: &[IpAddr], metrics: &Metrics) -> Result<(), String> {
        let mut failed = String::new();
        for to in loopbacks(own) {
            let outcome = self.check_by(SocketAddr::new(to, self.port)).await;
            metrics.intercepted(if to.is_ipv4() { "ipv4" } else { "ipv6" }, outcome.is_ok());
            if let Err(why) = outcome {
                let _ = write!(failed, "a call to [{to}]:{} {why}; ", self.port);
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed + REMEDY) }
    }

    async fn check_by(&self, to: SocketAddr) -> Result<(), &'static str> {
        let nonce: Nonce = rand::random();
        let (seen, arrived) = oneshot::channel();
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some((nonce, seen));
        let call = async {
            let mut stream = TcpStream::connect(to).await.map_err(|_| "found nobody")?;
            stream.write_all(&nonce).await.map_err(|_| "was closed")?;
            // Open until it has arrived.
            arrived.await.map_err(|_| "was replaced by another")
        };
        timeout(PATIENCE, call).await.unwrap_or(Err("did not arrive at the proxy's outbound listener"))
    }

    /// What is served on the port itself: only who was not redirected arrives there.
    pub fn unredirected(self: Arc<Self>) -> Router {
        Router::new().fallback(not_redirected).with_state(self)
    }
}

impl Default for Interception {
    fn default() -> Self {
        Self::new(0)
    }
}

fn loopbacks(own: &[IpAddr]) -> Vec<IpAddr> {
    let mut to = Vec::new();
    if own.iter().any(IpAddr::is_ipv4) {
        to.push(Ipv4Addr::LOCALHOST.into());
    }
    if own.iter().any(IpAddr::is_ipv6) {
        to.push(Ipv6Addr::LOCALHOST.into());
    }
    to
}

async fn not_redirected(State(interception): State<Arc<Interception>>) -> Response {
    let detail = format!("this call to port {} was not redirected; {REMEDY}", interception.port);
    tracing::warn!(%detail, "an incoming connection did not come to the proxy");
    let missing = [serde_json::json!({ "part": "interception", "detail": detail })];
    let body = serde_json::json!({ "ready": false, "missing": missing });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A check by a port that somebody listens on, who does this with each connection.
    async fn checked<F: Future<Output = ()> + Send>(
        serve: impl Fn(Arc<Interception>, TcpStream) -> F + Send + 'static,
    ) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let interception = Arc::new(Interception::new(listener.local_addr().unwrap().port()));
        let other = Arc::clone(&interception);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(Arc::clone(&other), stream).await;
            }
        });
        interception.check(&["10.0.0.1".parse().unwrap()], &Metrics::new()).await
    }

    #[tokio::test]
    async fn what_arrives_at_the_proxy_is_redirected() {
        assert_eq!(checked(|to, stream| async move { to.arrived(stream).await }).await, Ok(()));
    }

    #[tokio::test]
    async fn what_arrives_elsewhere_or_with_other_words_is_not() {
        let elsewhere = checked(|_, stream| async move {
            tokio::spawn(async move {
                sleep(PATIENCE * 2).await;
                drop(stream)
            });
        });
        let why = elsewhere.await.unwrap_err();
        assert!(why.contains("did not arrive") && why.contains("redirection rules are missing"), "{why}");

        let forged = checked(|to, stream| async move {
            let port = stream.local_addr().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut forger = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            forger.write_all(&[7; 16]).await.unwrap();
            to.arrived(listener.accept().await.unwrap().0).await;
            assert!(to.is_check(port));
        });
        assert!(forged.await.is_err());
    }

    #[tokio::test]
    async fn nobody_at_the_port_is_no_redirection_and_each_family_counts() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let interception = Interception::new(free);
        assert!(interception.missing().is_some(), "not ready before it is known");
        let both = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let why = interception.check(&both, &Metrics::new()).await.unwrap_err();
        assert!(why.contains("[127.0.0.1]") && why.contains("[::1]"), "{why}");
    }

    #[test]
    fn only_the_port_on_loopback_is_a_check_and_none_where_none_is_made() {
        let check = |port, to: &str| Interception::new(port).is_check(to.parse().unwrap());
        assert!(check(15029, "127.0.0.1:15029") && check(15029, "[::1]:15029"));
        assert!(!check(15029, "10.0.0.1:15029") && !check(15029, "127.0.0.1:80") && !check(0, "127.0.0.1:0"));
        assert_eq!(Interception::new(0).missing(), None);
    }
}
