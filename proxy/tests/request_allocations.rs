//! How often a whole request takes something from the heap, on its way through one proxy and through two with mTLS between them,
//! over sockets. The figures are printed (`-- --nocapture`); the ceilings are generous, and there so that growth is noticed.
//! What client and application take is not counted: they live on the test's own thread.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

#[allow(dead_code, unused_imports, reason = "shared with the tests of the path")]
#[path = "path/clients.rs"]
mod clients;
#[allow(dead_code, reason = "shared with the tests of the path")]
#[path = "path/world.rs"]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use clients::{Http1, Http2, get};
use world::{Ca, Mesh, Node, plain};

/// Before counting: pools, tables and buffers come to their working size.
const WARM_UP: usize = 300;
const REQUESTS: usize = 500;

/// Counts what the proxies' threads take.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// A thread of the test's, not of a proxy.
    static OWN: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !OWN.try_with(Cell::get).unwrap_or(true) {
        TAKEN.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: hands everything on to the system's allocator; the cell is constant-initialised and the counter static, and neither
// takes anything.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Answers everything with a short body, in HTTP/1 and HTTP/2.
async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
            });
            tokio::spawn(async move {
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

fn request() -> Request<Full<Bytes>> {
    let mut request = get("/some/path?q=1");
    for (name, value) in
        [("user-agent", "bench"), ("accept", "*/*"), ("x-request-id", "1"), ("cookie", "a=b")]
    {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    request
}

async fn http1(to: SocketAddr) -> f64 {
    let mut client = Http1::connect(to).await;
    for _ in 0..WARM_UP {
        assert_eq!(client.send(request()).await.unwrap().status, 200);
    }
    let before = TAKEN.load(Ordering::SeqCst);
    for _ in 0..REQUESTS {
        assert_eq!(client.send(request()).await.unwrap().text(), "hello");
    }
    each(before)
}

async fn http2(to: SocketAddr) -> f64 {
    let mut client = Http2::connect(to).await;
    for _ in 0..WARM_UP {
        assert_eq!(client.send(request()).await.unwrap().status, 200);
    }
    let before = TAKEN.load(Ordering::SeqCst);
    for _ in 0..REQUESTS {
        assert_eq!(client.send(request()).await.unwrap().text(), "hello");
    }
    each(before)
}

fn each(before: usize) -> f64 {
    (TAKEN.load(Ordering::SeqCst) - before) as f64 / REQUESTS as f64
}

#[tokio::test(flavor = "current_thread")]
async fn a_request_takes_no_more_from_the_heap_than_it_did() {
    OWN.set(true);
    let app = app().await;
    let (one, two) = (plain(&[app], |_| {}), Mesh::to(app));
    // Nobody is told: the sampling says so, or the caller.
    let untold = Node::traced(&Ca::new(), "front", app, "0");
    untold.serve(world::service(&[app], None));
    let mut table = Vec::new();
    for (hops, to) in [("one hop", one.outbound), ("two hops, mTLS", two.front.outbound)] {
        table.push(("HTTP/1", hops, http1(to).await));
        table.push(("HTTP/2", hops, http2(to).await));
    }
    table.push(("HTTP/1", "one hop, a trace nobody is told of", http1(untold.outbound).await));
    for (version, hops, each) in &table {
        println!("{version} {hops}: {each:.1} allocations a request");
    }
    for ((version, hops, each), most) in table.iter().zip(CEILINGS) {
        assert!(*each < most, "{version} {hops}: {each:.1} allocations a request, more than {most}");
        assert!(*each > 0.0, "{version} {hops}: nothing was counted");
    }
}

/// About one and a half times what was counted when this was written.
const CEILINGS: [f64; 5] = [24.0, 36.0, 56.0, 78.0, 26.0];
