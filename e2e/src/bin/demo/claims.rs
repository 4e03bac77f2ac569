//! The promises, each with its measurement. Every one puts back what it changed.

use crate::report::Report;
use crate::shop::{SHOP, STREET, Shop};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use weft_api::{Reason, names};
use weft_e2e::machine::Capture;
use weft_e2e::statistics::expect_share;
use weft_e2e::traffic::Reply;
use weft_e2e::{cluster, eventually};

const SOON: Duration = Duration::from_secs(15);

fn by<'a>(replies: &'a [Reply], key: impl Fn(&'a Reply) -> &'a str) -> BTreeMap<&'a str, u64> {
    let mut counts = BTreeMap::new();
    for reply in replies {
        *counts.entry(key(reply)).or_default() += 1;
    }
    counts
}

fn listed(counts: &BTreeMap<&str, u64>) -> String {
    counts.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}

fn account(identity: Option<&str>) -> Result<String> {
    identity.map(str::to_owned).context("the callee was told no identity")
}

pub fn identities(shop: &Shop, report: &mut Report) {
    report.claim("each callee knows its caller's identity", |_| {
        let reply = shop.visitor().get("http://front/call?url=http://back/")?.expect(200)?;
        let to_front = account(reply.seen_identity())?;
        let upstream = &reply.body["upstream"]["body"]["headers"][names::IDENTITY_HEADER];
        let to_back = account(upstream.as_str().or_else(|| upstream[0].as_str()))?;
        ensure!(
            to_front.ends_with("/ns/shop/sa/visitor") && to_back.ends_with("/ns/shop/sa/front"),
            "{to_front}, {to_back}"
        );
        Ok(vec![
            format!("visitor -> front, told by front: {to_front}"),
            format!("front -> back, told by back: {to_back}"),
        ])
    });
    report.claim("the proxies count who called whom, all by mTLS", |_| {
        let mut calls = BTreeMap::new();
        for pod in shop.inside.cluster.ready_pods(SHOP, "app in (front, back)")? {
            count_calls(shop, &pod, &mut calls)?;
        }
        let count =
            |source: &str, to: &str| calls.get(&(source.to_owned(), to.to_owned())).copied().unwrap_or(0);
        ensure!(count("visitors", "front") > 0 && count("front", "back") > 0, "{calls:?}");
        Ok(calls.iter().map(|((source, to), n)| format!("{source} -> {to}: {n} requests")).collect())
    });
}

/// Adds what a pod's proxy has counted of requests that came in by mTLS: by caller and service.
fn count_calls(shop: &Shop, pod: &str, calls: &mut BTreeMap<(String, String), u64>) -> Result<()> {
    let url = format!("http://127.0.0.1:{}/metrics", names::METRICS_PORT);
    let metrics = shop.inside.cluster.exec(SHOP, pod, "app", &["/testapp", "get", &url])?;
    for line in metrics.lines().filter(|l| l.starts_with("weft_requests_total{direction=\"inbound\"")) {
        let label = |name: &str| {
            let start = format!("{name}=\"");
            line.split_once(&start).and_then(|(_, rest)| rest.split_once('"')).map_or("", |(value, _)| value)
        };
        let n: u64 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        // Without mTLS: the kubelet's probes.
        if label("mtls") == "true" {
            *calls
                .entry((label("source_workload").to_owned(), label("destination_service").to_owned()))
                .or_default() += n;
        }
    }
    Ok(())
}

pub fn encryption(shop: &Shop, report: &mut Report) {
    report.claim("no plaintext crosses between pods", |_| {
        let front = shop.inside.pod("app=front")?;
        let url = format!("http://front.{SHOP}/");
        let capture = Capture::start(&front)?;
        shop.outsider().get_with(&url, &["-H", "x-card: 4111-1111-from-outside"])?.expect(200)?;
        let control = capture.finish()?;
        let capture = Capture::start(&front)?;
        for reply in shop.visitor().get_many(
            "http://front/",
            50,
            2,
            &["-H", "x-card: 4222-2222-from-inside", "--new-connections"],
        )? {
            ensure!(
                reply.expect(200)?.seen_header("x-card") == Some("4222-2222-from-inside"),
                "the header was lost"
            );
        }
        let frames = capture.finish()?;
        let (seen, hidden) =
            (control.containing("4111-1111-from-outside"), frames.containing("4222-2222-from-inside"));
        ensure!(seen > 0, "the control failed: the capture did not see a plaintext request");
        ensure!(
            hidden == 0 && frames.count() > 50,
            "{hidden} of {} frames hold the visitor's header",
            frames.count()
        );
        Ok(vec![
            format!(
                "capture at front's interface: {} frames, {} bytes; a visitor's header readable in {hidden}",
                frames.count(),
                frames.bytes()
            ),
            format!("control, a client outside of the mesh: readable in {seen} of {}", control.count()),
        ])
    });
}

pub fn balance(shop: &Shop, report: &mut Report) {
    report.claim("all replicas share the work", |_| {
        // The default goes by latency: a replica that was slow once gets little for some seconds.
        eventually("all get a share", SOON, || {
            let replies = shop.visitor().get_many("http://back/", 800, 2, &[])?;
            let counts = by(&replies, Reply::pod);
            ensure!(replies.iter().all(|r| r.status == 200) && counts.len() == 4, "{}", listed(&counts));
            ensure!(counts.values().all(|n| *n >= 40), "a replica is starved: {}", listed(&counts));
            let shares: Vec<_> = counts.values().map(u64::to_string).collect();
            Ok(vec![format!("800 requests over 2 connections, by replica: {}", shares.join(", "))])
        })
    });
}

pub fn canary(shop: &Shop, report: &mut Report) {
    report.claim("a canary gets its 10 %", |report| {
        shop.apply("20-canary.yaml", report)?;
        let applied = Instant::now();
        eventually("the canary holds", SOON, || {
            let replies = shop.visitor().get_many("http://back/", 1000, 4, &[])?;
            let counts = by(&replies, Reply::version);
            expect_share("requests to v2", counts.get("v2").copied().unwrap_or(0), 1000, 0.1)?;
            let status = shop.inside.object("trafficpolicy", "back")?["status"]["applied"].clone();
            Ok(vec![format!(
                "1000 requests, {:.1} s after apply: {}; status: applied {}",
                applied.elapsed().as_secs_f64(),
                listed(&counts),
                status.as_str().unwrap_or("not told yet")
            )])
        })
    });
    drop(shop.inside.delete("trafficpolicy", "back"));
}

pub fn ejection(shop: &Shop, report: &mut Report) {
    report.claim("a failing replica is ejected and comes back", |report| {
        shop.apply("30-ejection.yaml", report)?;
        let visitor = shop.visitor();
        eventually("in turn", SOON, || {
            let replies = visitor.get_many("http://back/", 100, 1, &[])?;
            ensure!(by(&replies, Reply::pod).values().all(|n| (24..=26).contains(n)), "{}", listed(&by(&replies, Reply::pod)));
            Ok(())
        })?;
        let sick = shop.inside.cluster.ready_pods(SHOP, "app=back,version=v1")?.swap_remove(0);
        let toggle = |fail: bool| {
            let url = format!("http://127.0.0.1:8080/toggle?fail={fail}");
            shop.inside.cluster.exec(SHOP, &sick, "app", &["/testapp", "get", &url]).map(drop)
        };
        toggle(true)?;
        let began = Instant::now();
        let replies = visitor.get_many("http://back/", 200, 1, &[])?;
        toggle(false)?;
        let failed = replies.iter().filter(|r| r.status != 200).count();
        let last = replies.iter().rposition(|r| r.status != 200).unwrap_or(0);
        ensure!((1..=6).contains(&failed) && last < 60, "{failed} failures, the last one at request {last}");
        let took = eventually("the replica is back", Duration::from_secs(30), || {
            let replies = visitor.get_many("http://back/", 100, 1, &[])?;
            ensure!(by(&replies, Reply::pod).get(sick.as_str()).is_some_and(|n| *n >= 24), "still ejected");
            Ok(began.elapsed())
        })?;
        Ok(vec![
            format!("{sick} answers 503 to everything: {failed} of 200 requests failed, the last one was number {}", last + 1),
            format!("well again, it gets its share after {:.1} s", took.as_secs_f64()),
        ])
    });
}

pub fn breaker(shop: &Shop, report: &mut Report) {
    report.claim("a breaker opens, and says so", |report| {
        shop.apply("40-breaker.yaml", report)?;
        let visitor = shop.visitor();
        let evidence = eventually("the breaker opens", SOON, || {
            let replies = visitor.get_many("http://back/delay/500ms", 10, 10, &[])?;
            let served = replies.iter().filter(|r| r.status == 200).count();
            let refused = replies
                .iter()
                .filter(|r| r.status == 503 && r.reason() == Reason::BreakerOpen.as_str())
                .count();
            ensure!(served == 2 && refused == 8, "{served} served, {refused} refused");
            Ok(format!(
                "10 requests at once, 2 allowed: {served} served, {refused} refused with weft-reason: {}",
                Reason::BreakerOpen
            ))
        })?;
        visitor.get("http://back/")?.expect(200)?;
        Ok(vec![evidence])
    });
    drop(shop.inside.delete("meshservice", "back"));
}

pub fn strict(shop: &Shop, report: &mut Report) {
    report.claim("Strict refuses a client outside of the mesh", |report| {
        let url = format!("http://front.{SHOP}/");
        let before = shop.outsider().get(&url)?.expect(200)?;
        shop.apply("50-strict.yaml", report)?;
        let applied = Instant::now();
        let refused = eventually("strict is enforced", SOON, || {
            shop.outsider().get(&url)?.expect_reason(403, Reason::MtlsRequired)
        })?;
        let took = applied.elapsed();
        let inside = shop.visitor().get("http://front/")?.expect(200)?;
        ensure!(
            shop.inside.cluster.ready_pods(SHOP, "app=front")?.len() == 1,
            "the kubelet's probes fail under Strict"
        );
        Ok(vec![
            format!(
                "{STREET}/outsider -> front: {} before, {} with weft-reason: {} within {:.1} s",
                before.status,
                refused.status,
                refused.reason(),
                took.as_secs_f64()
            ),
            format!("{SHOP}/visitor -> front: {}; the kubelet's probes still pass", inside.status),
        ])
    });
}

pub fn bad_policy(shop: &Shop, report: &mut Report) {
    report.claim("a policy that cannot work is refused at apply", |_| {
        let said = shop.inside.apply_refused(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: wrong}\nspec:\n  targetRefs: [{kind: Service, name: back}]\n  rules: [{timeout: 1s, retry: {perTryTimeout: 2s}}]\n",
        )?;
        ensure!(said.contains("perTryTimeout"), "{said}");
        Ok(vec![said.rsplit_once("\": ").map_or(said.as_str(), |(_, sentence)| sentence).trim().to_owned()])
    });
}

pub fn health(shop: &Shop, report: &mut Report) {
    report.claim("nobody restarted on the way", |_| {
        let mut proxies = 0;
        for pod in shop.inside.cluster.objects(SHOP, "pods", "")? {
            let statuses = ["initContainerStatuses", "containerStatuses"]
                .map(|list| pod["status"][list].as_array().cloned().unwrap_or_default());
            for container in statuses.concat() {
                if container["restartCount"] != 0 {
                    bail!(
                        "{} of {} restarted {} times",
                        container["name"],
                        cluster::name(&pod),
                        container["restartCount"]
                    );
                }
                proxies += usize::from(container["name"] == names::PROXY_CONTAINER);
            }
        }
        Ok(vec![format!("{proxies} proxies, 0 restarts")])
    });
}
