//! Against an operator over real sockets.

use super::*;
use crate::testing::operator::Operator;
use crate::testing::{Ca, identity};
use std::sync::atomic::Ordering;
use tempfile::TempDir;

struct Proxy {
    tls: Arc<Tls>,
    status: Arc<Status>,
    task: tokio::task::JoinHandle<()>,
    dir: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start(settings: Settings, dir: TempDir) -> Proxy {
    let (tls, status) =
        (Arc::new(Tls::new()), Arc::new(Status::new(Arc::new(crate::metrics::Metrics::new()))));
    let task = tokio::spawn(run(Arc::new(settings), Arc::clone(&tls), Arc::clone(&status)));
    Proxy { tls, status, task, dir }
}

impl Proxy {
    async fn error_with(&self, text: &str) -> String {
        for _ in 0..500 {
            match self.status.identity_error() {
                Some(error) if error.contains(text) => return error,
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
        panic!("no error with `{text}`, but {:?}", self.status.identity_error());
    }

    async fn certified(&self) -> Leaf {
        let mut changed = self.tls.changed();
        timeout(Duration::from_secs(20), async {
            loop {
                if let Some(own) = self.tls.own() {
                    return own.leaf.clone();
                }
                changed.changed().await.unwrap();
            }
        })
        .await
        .expect("a certificate in time")
    }
}

#[tokio::test]
async fn a_certificate_is_signed_and_renewed_at_two_thirds_of_its_life() {
    let operator = Operator::start();
    *operator.shared.life.lock().unwrap() = Duration::from_secs(4);
    let dir = TempDir::new().unwrap();
    let proxy = start(operator.settings(&dir), dir);
    let first = proxy.certified().await;
    assert_eq!(first.identity, identity("shop", "front"));
    assert!(proxy.status.missing(true, true).iter().all(|m| m.part != "certificate"));
    let mut changed = proxy.tls.changed();
    changed.mark_unchanged();
    let start = tokio::time::Instant::now();
    timeout(Duration::from_secs(5), changed.changed()).await.unwrap().unwrap();
    assert!(start.elapsed() > Duration::from_secs(1), "renewed after {:?}", start.elapsed());
    let second = proxy.tls.own().unwrap().leaf.clone();
    assert_ne!(first.serial, second.serial);
    assert!(proxy.tls.own_is_trusted());
}

#[tokio::test]
async fn a_refused_token_is_reported_and_tried_again_until_it_is_good() {
    let operator = Operator::start();
    let dir = TempDir::new().unwrap();
    let settings = operator.settings(&dir);
    std::fs::write(&settings.token_file, "stale").unwrap();
    let proxy = start(settings.clone(), dir);
    let error = proxy.error_with("refused the token").await;
    assert!(error.contains("the token is not for audience weft"), "{error}");
    while operator.shared.asked.load(Ordering::Relaxed) < 3 {
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(proxy.status.missing(false, true)[0].detail, error);
    std::fs::write(&settings.token_file, crate::testing::operator::TOKEN).unwrap();
    proxy.certified().await;
    while proxy.status.identity_error().is_some() {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_missing_token_bundle_or_operator_is_named_and_waited_for() {
    let operator = Operator::start();
    let dir = TempDir::new().unwrap();
    let settings = operator.settings(&dir);
    let bundle = std::fs::read(&settings.bundle_file).unwrap();
    std::fs::remove_file(&settings.token_file).unwrap();
    std::fs::remove_file(&settings.bundle_file).unwrap();
    let proxy = start(settings.clone(), dir);
    proxy.error_with("the token").await;
    std::fs::write(&settings.token_file, crate::testing::operator::TOKEN).unwrap();
    let error = proxy.error_with("trust bundle").await;
    assert!(error.contains("No such file"), "{error}");
    std::fs::write(&settings.bundle_file, "nothing").unwrap();
    proxy.error_with("holds no usable certificate").await;
    let dead = operator.kill();
    std::fs::write(&settings.bundle_file, bundle).unwrap();
    proxy.error_with("could not be connected").await;
    let _operator = Operator::restart(dead);
    proxy.certified().await;
}

#[tokio::test]
async fn an_operator_that_is_somebody_else_gets_no_token() {
    let ours = Arc::new(Ca::new("ours"));
    let right = identity("weft-system", "weft-operator").to_string();
    let impostors = [
        // Of another root, of another workload, for another name.
        (Operator::start_as(Arc::new(Ca::new("theirs")), &right, "localhost", 0), "UnknownIssuer"),
        (
            Operator::start_as(Arc::clone(&ours), "spiffe://cluster.local/ns/shop/sa/back", "localhost", 0),
            "not spiffe",
        ),
        (Operator::start_as(Arc::clone(&ours), &right, "elsewhere", 0), "not valid for name"),
    ];
    for (impostor, text) in impostors {
        let dir = TempDir::new().unwrap();
        let settings = impostor.settings(&dir);
        std::fs::write(&settings.bundle_file, ours.root_pem()).unwrap();
        let proxy = start(settings, dir);
        proxy.error_with(text).await;
        assert_eq!(impostor.shared.asked.load(Ordering::Relaxed), 0);
        assert!(proxy.tls.own().is_none());
        assert!(proxy.dir.path().exists());
    }
}

#[tokio::test]
async fn a_certificate_for_another_workload_is_not_taken() {
    let operator = Operator::start();
    *operator.shared.signs_for.lock().unwrap() = identity("shop", "back").to_string();
    let dir = TempDir::new().unwrap();
    let proxy = start(operator.settings(&dir), dir);
    proxy.error_with("but this workload is spiffe://cluster.local/ns/shop/sa/front").await;
    assert!(proxy.tls.own().is_none());
}

#[tokio::test]
async fn a_root_that_leaves_the_bundle_leads_to_renewal_at_once() {
    let operator = Operator::start();
    let dir = TempDir::new().unwrap();
    let proxy = start(operator.settings(&dir), dir);
    let first = proxy.certified().await;
    proxy.tls.set_roots(vec![Ca::new("next").root()]).unwrap();
    // The operator of this test still signs with the first root, and says so in its answer.
    for _ in 0..500 {
        if proxy.tls.own_is_trusted() {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(proxy.tls.own().unwrap().leaf.serial, first.serial);
}

#[test]
fn renewal_is_at_two_thirds_with_jitter_towards_earlier() {
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    assert_eq!(renewal(now, now + day, 0.0), now + Duration::from_secs(57_600));
    let early = renewal(now, now + day, 0.1);
    assert!(early > now + day / 2 && early < now + Duration::from_secs(57_600));
    assert_eq!(renewal(now, now - day, 0.0), now);
}
