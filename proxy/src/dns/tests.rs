//! With paused time; and over a real socket, with a server that answers what it is told to.

use super::*;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UdpSocket;
use tokio::time::advance;

#[derive(Clone, Default)]
struct Zone {
    answers: Arc<Mutex<HashMap<String, Result<Answer, String>>>>,
    asked: Arc<AtomicUsize>,
}

impl Zone {
    fn set(&self, name: &str, addresses: &[&str], ttl: u64) {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let answer = Ok(Answer { addresses, ttl: Duration::from_secs(ttl) });
        self.answers.lock().unwrap().insert(name.to_owned(), answer);
    }

    fn fail(&self, name: &str) {
        self.answers.lock().unwrap().insert(name.to_owned(), Err("server failure".to_owned()));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Lookup for Zone {
    async fn lookup(&self, name: String) -> Result<Answer, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.answers.lock().unwrap().get(&name).cloned().unwrap_or_else(|| Err("no such name".to_owned()))
    }
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

async fn pass(seconds: u64) {
    // Step by step, so that each lookup gets its turn.
    for _ in 0..seconds * 4 {
        advance(Duration::from_millis(250)).await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
}

async fn start(zone: &Zone, list: &[&str]) -> Names {
    let (mut found, run) = Names::new(zone.clone());
    tokio::spawn(run);
    found.want(names(list));
    found.settled().await;
    found
}

#[tokio::test(start_paused = true)]
async fn a_name_is_asked_for_again_when_its_time_is_over_and_not_before() {
    let zone = Zone::default();
    zone.set("back", &["10.0.0.2", "10.0.0.1"], 10);
    let found = start(&zone, &["back"]).await;
    assert_eq!(found.found()["back"], ["10.0.0.1".parse::<IpAddr>().unwrap(), "10.0.0.2".parse().unwrap()]);
    pass(9).await;
    assert_eq!(zone.asked(), 1);
    zone.set("back", &["10.0.0.3"], 10);
    let mut changes = found.changes();
    changes.mark_unchanged();
    pass(2).await;
    assert!(changes.has_changed().unwrap());
    assert_eq!((zone.asked(), found.found()["back"].len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn the_time_to_live_is_bounded_on_both_sides() {
    let zone = Zone::default();
    zone.set("hasty", &["10.0.0.1"], 0);
    zone.set("eternal", &["10.0.0.1"], 1_000_000);
    let _found = start(&zone, &["hasty"]).await;
    pass(10).await;
    assert!((8..=12).contains(&zone.asked()), "{}", zone.asked());
    let before = zone.asked();
    let _other = start(&zone, &["eternal"]).await;
    drop(_found);
    pass(MAX_TTL.as_secs() + 2).await;
    assert!((2..=4).contains(&(zone.asked() - before)), "{}", zone.asked() - before);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_fails_keeps_its_addresses_and_is_tried_again_ever_more_seldom() {
    let zone = Zone::default();
    zone.set("back", &["10.0.0.1"], 1);
    let found = start(&zone, &["back"]).await;
    zone.fail("back");
    let before = zone.asked();
    pass(60).await;
    assert_eq!(found.found()["back"].len(), 1);
    assert!((5..=8).contains(&(zone.asked() - before)), "{}", zone.asked() - before);
    zone.set("back", &["10.0.0.9"], 1);
    pass(31).await;
    assert_eq!(found.found()["back"], ["10.0.0.9".parse::<IpAddr>().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_name_is_settled_without_addresses_and_one_not_wanted_is_forgotten() {
    let zone = Zone::default();
    zone.set("back", &["10.0.0.1"], 60);
    let mut found = start(&zone, &["back", "nobody"]).await;
    assert_eq!(found.found().keys().collect::<Vec<_>>(), ["back"]);
    found.want(names(&["nobody"]));
    found.settled().await;
    pass(1).await;
    assert!(found.found().is_empty());
}

/// Answers every A question with this address and time to live, and says that there is no AAAA.
async fn server(answer: Arc<Mutex<([u8; 4], u32)>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            // RFC 1035 section 4.1: the header's 12 bytes, then the name's labels, type and class.
            let mut at = 12;
            while packet[at] != 0 {
                at += usize::from(packet[at]) + 1;
            }
            let is_a = packet[at + 1..at + 3] == [0, 1];
            let question = packet[12..at + 5].to_vec();
            assert!(at + 5 <= length);
            let mut reply = packet[..2].to_vec();
            reply.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            reply.extend_from_slice(&question);
            if is_a {
                let (address, ttl) = *answer.lock().unwrap();
                reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
                reply.extend_from_slice(&ttl.to_be_bytes());
                reply.extend_from_slice(&[0, 4]);
                reply.extend_from_slice(&address);
            }
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_real_server_is_asked_again_after_its_ttl() {
    let answer = Arc::new(Mutex::new(([10, 0, 0, 1], 1)));
    let resolver = Resolver::new(&[server(Arc::clone(&answer)).await]).unwrap();
    let (mut found, run) = Names::new(resolver);
    tokio::spawn(run);
    found.want(names(&["back.shop.example."]));
    found.settled().await;
    assert_eq!(found.found()["back.shop.example."], ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    answer.lock().unwrap().0 = [10, 0, 0, 2];
    let mut changes = found.changes();
    let second = vec!["10.0.0.2".parse::<IpAddr>().unwrap()];
    let changed = changes.wait_for(|found| found.get("back.shop.example.") == Some(&second));
    timeout(Duration::from_secs(20), changed).await.expect("asked again").unwrap();
}
