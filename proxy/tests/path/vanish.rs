//! A request that the kernel of a node has acknowledged, and the node dies before it answers: nothing is left to be
//! acknowledged, so the silence of a dead node is that of a slow application until something is sent. Two pods in network
//! namespaces; needs root.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use weft_api::v1;
use weft_proxy::init::{self, Args};

use crate::apps;
use crate::clients::{Http1, Http2, get};
use crate::netns::{ip, pod_and_peer};
use crate::world::{Ca, Mesh, Node, SERVICE, service};

/// Its addresses are 10.77.0.2 and .3; it answers with the one that was called, at .3 to `/held` not before five seconds.
fn application() {
    let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(&stream));
        }
    });
}

fn answer(stream: &TcpStream) {
    let mut stream = stream;
    let here = stream.local_addr().unwrap().ip().to_string();
    loop {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        if head.starts_with(b"GET /held ") && here.ends_with(".3") {
            std::thread::sleep(Duration::from_secs(5));
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{here}", here.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn call(path: &str) -> String {
    let mut stream = TcpStream::connect("10.77.0.99:80").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: back\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut got = String::new();
    let _ = stream.read_to_string(&mut got);
    got
}

/// Both requests were under way when .3 vanished: what came of them, and how long after that.
fn held_while_its_node_dies(mesh: bool) -> Option<Vec<(String, Duration)>> {
    let (pod, peer) = pod_and_peer()?;
    let root = Ca::new();
    let front_ca = root.clone();
    let (ready, wait) = channel();
    let done = ready.clone();
    peer.run(move || {
        ip("addr add 10.77.0.3/24 dev eth0");
        application();
        let back = mesh.then(|| {
            init::run(&Args::default()).unwrap();
            let ips = ["10.77.0.2", "10.77.0.3"].map(|ip| ip.parse().unwrap());
            Node::in_pod(&root, "back", ips.into())
        });
        done.send(back).unwrap();
    });
    pod.run(move || {
        init::run(&Args::default()).unwrap();
        let front = Node::in_pod(&front_ca, "front", vec!["10.77.0.1".parse().unwrap()]);
        let endpoints: Vec<SocketAddr> =
            vec!["10.77.0.2:8080".parse().unwrap(), "10.77.0.3:8080".parse().unwrap()];
        let mut back = service(&endpoints, mesh.then_some("back"));
        back.protocol = v1::Protocol::Http1.into();
        back.clusters[0].outlier =
            Some(v1::Outlier { consecutive_failures: 5, max_ejected_percent: 50, ..Default::default() });
        let target = Some(v1::address::Target::Service(SERVICE.into()));
        front.configure(v1::ToProxy {
            services: vec![back],
            addresses: vec![v1::Address { address: "10.77.0.99:80".into(), target }],
            ..Default::default()
        });
        ready.send(Some(front)).unwrap();
    });
    let nodes = [wait.recv().unwrap(), wait.recv().unwrap()];
    let (report, results) = channel();
    pod.run(move || {
        for _ in 0..4 {
            assert!(call("/").starts_with("HTTP/1.1 200"));
        }
        let calls: Vec<_> = (0..2).map(|_| std::thread::spawn(|| (call("/held"), Instant::now()))).collect();
        std::thread::sleep(Duration::from_millis(150));
        // Nobody has this address: nothing arrives there any more, and nothing says so.
        ip("neigh replace 10.77.0.3 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
        let vanished = Instant::now();
        for call in calls {
            let (got, at) = call.join().unwrap();
            report.send((got, at.saturating_duration_since(vanished))).unwrap();
        }
    });
    drop(nodes);
    Some(results.iter().collect())
}

/// Within the bound at one of three attempts: a busy machine may be late.
fn noticed_within(mesh: bool, bound: Duration) {
    let mut late = Vec::new();
    for _ in 0..3 {
        let Some(results) = held_while_its_node_dies(mesh) else { return };
        for (got, _) in &results {
            assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("10.77.0.2"), "{got}");
        }
        let took = results.iter().map(|(_, took)| *took).max().unwrap();
        assert!(took > Duration::from_millis(100), "nothing was held: {results:?}");
        println!("mesh {mesh}: answered by the other {took:?} after the node had died");
        if took < bound {
            return;
        }
        late.push(took);
    }
    panic!("mesh {mesh}: {late:?}");
}

#[test]
fn an_acknowledged_request_is_elsewhere_within_a_second_of_its_nodes_death() {
    noticed_within(true, Duration::from_secs(1));
}

#[test]
fn outside_of_the_mesh_it_takes_the_kernels_probes() {
    noticed_within(false, Duration::from_secs(2));
}

/// An application that takes as many milliseconds as the path says.
async fn slow() -> (SocketAddr, apps::Seen) {
    apps::http(|request| async move {
        let millis = request.uri().path()[1..].parse().unwrap();
        sleep(Duration::from_millis(millis)).await;
        apps::text("ok")
    })
    .await
}

fn judged(service: &mut v1::Service) {
    service.clusters[0].outlier =
        Some(v1::Outlier { consecutive_failures: 1, max_ejected_percent: 100, ..Default::default() });
}

/// How many connections were made to the other proxy.
fn opened(node: &Node) -> u64 {
    let metrics = node.metrics.encode();
    let line = metrics.lines().find_map(|line| line.strip_prefix("weft_upstream_connects_total "));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_slow_application_is_left_in_peace_however_often_its_proxy_is_asked_for_a_sign() {
    let (app, seen) = slow().await;
    let mesh = Mesh::with(app, judged);
    let mut client = Http1::connect(mesh.front.outbound).await;
    // A proxy takes 32 nudges without a request between. These are 8 with none, and then one with each.
    assert_eq!(client.send(get("/6000")).await.unwrap().status, 200);
    for _ in 0..34 {
        assert_eq!(client.send(get("/420")).await.unwrap().status, 200);
    }
    assert_eq!((seen.requests(), opened(&mesh.front)), (35, 1));
    assert!(mesh.front.store.load().ejections().is_empty());
}

#[tokio::test]
async fn many_slow_streams_of_one_connection_are_left_in_peace() {
    let (app, seen) = slow().await;
    let mesh = Mesh::with(app, judged);
    let client = Http2::connect(mesh.front.outbound).await;
    let calls = (0..40_u64).map(|n| {
        let mut client = client.clone();
        async move {
            sleep(Duration::from_millis(n * 50)).await;
            client.send(get("/5000")).await.unwrap().status
        }
    });
    let got = futures::future::join_all(calls).await;
    assert!(got.iter().all(|status| *status == 200), "{got:?}");
    assert_eq!((seen.requests(), opened(&mesh.front)), (40, 1));
    assert!(mesh.front.store.load().ejections().is_empty());
}
