//! More than there is room for: connections, files, memory. The process lives, says why, and serves on.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::apps;
use crate::clients::{Http1, fetch, get, post, raw};
use crate::process::{Config, PATIENCE, Proxy, address, ask, until};

fn file(listener: SocketAddr, admin: SocketAddr, app: SocketAddr, more: &str) -> Config {
    Config::new(&format!(
        "
admin: {admin}
{more}
listeners:
  outbound: [{{address: '{listener}', service: 'shop/back:80'}}]
services:
  - namespace: shop
    name: back
    port: 80
    protocol: Http1
    clusters: [{{name: all, endpoints: [{{address: '{app}'}}]}}]
"
    ))
}

async fn refused(admin: SocketAddr) -> u64 {
    let text = ask(admin, "/metrics").await;
    let line = "weft_refusals_total{direction=\"outbound\",reason=\"overloaded\"} ";
    text.lines().find_map(|l| l.strip_prefix(line)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_are_told_at_once_and_those_within_go_on() {
    let (app, _) = apps::echo().await;
    let (listener, admin) = (address(), address());
    let config = file(listener, admin, app, "maxConnections: 3");
    let _proxy = Proxy::start(&config.path(), &[]);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = Http1::connect(listener).await;
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
        held.push(client);
    }
    let got = fetch(listener, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (503, "overloaded"));
    // HTTP/2: SETTINGS, then GOAWAY with ENHANCE_YOUR_CALM, before any stream was taken.
    let mut stream = TcpStream::connect(listener).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = [0; 26];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!((answer[3], answer[12], answer[25]), (4, 7, 0xb), "{answer:?}");
    // Opaque bytes: nothing could be said.
    assert_eq!(raw(listener, b"\x01\x02\x03\x04", false).await, "");
    assert_eq!(refused(admin).await, 3);
    for client in &mut held {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    drop(held.pop());
    until("there is room", async || fetch(listener, get("/")).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_connections_starves_nobody_who_is_being_served() {
    let (app, _) = apps::echo().await;
    let (listener, admin) = (address(), address());
    let config = file(listener, admin, app, "maxConnections: 20\naccessLog: false");
    let mut proxy = Proxy::start(&config.path(), &[]);
    let mut client = Http1::connect(listener).await;
    assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    let mut storm = JoinSet::new();
    for _ in 0..400 {
        storm.spawn(async move {
            let Ok(mut stream) = TcpStream::connect(listener).await else { return };
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let _ = timeout(PATIENCE, stream.read(&mut [0; 64])).await;
        });
    }
    let mut served = 0;
    while storm.try_join_next().is_some() || !storm.is_empty() {
        let got = timeout(PATIENCE, client.send(get("/"))).await.expect("an answer in the storm").unwrap();
        assert_eq!(got.status, 200);
        served += 1;
        sleep(Duration::from_millis(1)).await;
    }
    assert!(served > 1 && proxy.is_running());
    until("the storm is over", async || fetch(listener, get("/")).await.status == 200).await;
}

fn limit_files(pid: u32, files: u64) {
    let limit = libc::rlimit { rlim_cur: files, rlim_max: 4096 };
    // SAFETY: reads a value that outlives the call, and writes nothing.
    let done = unsafe {
        libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_files_it_refuses_with_the_reason_and_recovers() {
    let (app, _) = apps::echo().await;
    let (listener, admin) = (address(), address());
    let config = file(listener, admin, app, "maxConnections: 1000");
    let mut proxy = Proxy::start(&config.path(), &[]);
    let mut client = Http1::connect(listener).await;
    assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    // For some more clients, but neither for all nor for their connections to the application.
    let open = std::fs::read_dir(format!("/proc/{}/fd", proxy.id())).unwrap().count() as u64;
    limit_files(proxy.id(), open + 10);
    let mut crowd = Vec::new();
    for _ in 0..60 {
        // One that is reset at once may not even know that it was connected.
        crowd.extend(TcpStream::connect(listener).await);
    }
    proxy.find("it says so", |line| line["message"] == "connections refused" && line["detail"] == "files");
    // One who is served already has no connection to the application any more, or still has.
    let got = timeout(PATIENCE, client.send(get("/"))).await.expect("an answer").unwrap();
    assert!(got.status == 200 || got.reason() == "overloaded", "{got:?}");
    drop(crowd);
    until("there are files again", async || {
        let Ok(mut stream) = TcpStream::connect(listener).await else { return false };
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let mut answer = String::new();
        let _ = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        answer.starts_with("HTTP/1.1 200")
    })
    .await;
    assert!(refused(admin).await > 0);
    assert!(proxy.is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_its_limit_of_memory_it_refuses_new_work_and_recovers() {
    // Never answers, so that requests stay, each with its body kept for another try.
    let app = apps::tcp(|mut stream| async move {
        let mut sink = vec![0; 64 << 10];
        while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let (listener, admin) = (address(), address());
    let probe = Proxy::start(&file(listener, admin, app, "").path(), &[]);
    let resident = probe.resident();
    drop(probe);
    // Room for some hundred requests.
    let config =
        file(listener, admin, app, &format!("memoryLimit: {}", resident + resident / 2 + (16 << 20)));
    let mut proxy = Proxy::start(&config.path(), &[]);
    let mut crowd = JoinSet::new();
    let mut told = false;
    for _ in 0..3000 {
        crowd.spawn(async move {
            let mut client = Http1::connect(listener).await;
            client.send(post("/", Bytes::from(vec![b'x'; 60_000]))).await.map(|got| got.reason().to_owned())
        });
        sleep(Duration::from_millis(2)).await;
        while let Some(ended) = crowd.try_join_next() {
            told |= ended.unwrap().is_ok_and(|reason| reason == "overloaded");
        }
        if told {
            break;
        }
    }
    assert!(told, "it was never short of memory: {} of {resident}", proxy.resident());
    proxy.find("it says so", |line| line["short"] == true);
    assert!(ask(admin, "/metrics").await.contains("weft_memory_short 1"));
    crowd.shutdown().await;
    proxy.find("and when it is over", |line| line["short"] == false);
    assert!(proxy.is_running());
    assert!(ask(admin, "/metrics").await.contains("weft_memory_short 0"));
}
