//! A proxy by itself tells a collector of traces, to the last one.

use nix::sys::signal::Signal;

use crate::apps;
use crate::clients::{fetch, get};
use crate::collector::collector;
use crate::process::{Config, Proxy, address};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_before_the_end_is_told() {
    let ((app, _), (told, collected)) = (apps::echo().await, collector().await);
    let listener = address();
    let config = Config::new(&format!(
        "
tracing: {{endpoint: 'http://{told}', sampling: 100}}
workload: {{name: edge}}
listeners:
  outbound: [{{address: '{listener}', service: 'shop/back:80'}}]
services:
  - namespace: shop
    name: back
    port: 80
    protocol: Http1
    clusters: [{{name: all, endpoints: [{{address: '{app}'}}]}}]
"
    ));
    let mut proxy = Proxy::start(&config.path(), &[]);
    assert_eq!(fetch(listener, get("/cart")).await.status, 200);
    // Sooner than spans are told of by themselves.
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit(), Some(0));
    let spans = collected.all();
    assert_eq!(spans.len(), 1, "{spans:#?}");
    assert_eq!(
        (spans[0].service.as_str(), spans[0].attributes["weft.service"].as_str()),
        ("edge", "shop/back:80")
    );
    assert_eq!(spans[0].resource.get("k8s.pod.name"), None);
}
