//! Certificates with which somebody tries to be somebody, shown by openssl to the proxy of a pod. The signatures are of the mesh's
//! own root wherever the attack is not about that.

use anyhow::ensure;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, SanType};
use serde_json::json;
use std::time::{Duration, SystemTime};
use weft_api::Reason;
use weft_e2e::{App, Injection, eventually, scenario};

use super::ground::{Attacker, SOON, Signer, address, authority, get, id, leaf, served};

const REFUSALS: &str = "weft_refusals_total";

fn within(mut params: CertificateParams, from: i64, to: i64) -> CertificateParams {
    let at = |hours: i64| {
        let distance = Duration::from_secs(hours.unsigned_abs() * 3600);
        let now = SystemTime::now();
        if hours < 0 { now - distance } else { now + distance }
    };
    (params.not_before, params.not_after) = (at(from).into(), at(to).into());
    params
}

#[test]
fn a_certificate_that_is_not_a_good_one_of_the_mesh_gets_no_byte_to_the_application() {
    scenario("bad-certificates", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let attacker = Attacker::deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        let (mesh, foreign) = (Signer::of_the_mesh(ns.cluster)?, Signer::foreign()?);
        let me = id(&ns.name, "front");
        let plain = || leaf(&me);
        let with = |change: &dyn Fn(&mut CertificateParams)| -> anyhow::Result<CertificateParams> {
            let mut params = plain()?;
            change(&mut params);
            Ok(params)
        };
        let elsewhere = {
            let mut params = authority();
            params.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("elsewhere.example".into())],
                excluded_subtrees: Vec::new(),
            });
            params
        };
        let dns = SanType::DnsName("server".try_into()?);
        let named = with(&|p| p.subject_alt_names.push(dns.clone()))?;
        let second = SanType::URI(id(&ns.name, "admin").as_str().try_into()?);
        let attacks = [
            ("no certificate", None),
            ("of a foreign root", Some(foreign.sign(&plain()?)?)),
            ("expired", Some(mesh.sign(&within(plain()?, -2, -1))?)),
            ("not yet valid", Some(mesh.sign(&within(plain()?, 1, 2))?)),
            ("without an identity", Some(mesh.sign(&with(&|p| p.subject_alt_names.clear())?)?)),
            ("with two identities", Some(mesh.sign(&with(&|p| p.subject_alt_names.push(second.clone()))?)?)),
            ("with an id that is no workload's", Some(mesh.sign(&leaf("spiffe://cluster.local/admin")?)?)),
            ("with more behind the id", Some(mesh.sign(&leaf(&format!("{me}/admin"))?)?)),
            ("with an id of another scheme", Some(mesh.sign(&leaf(&me.replace("spiffe:", "https:"))?)?)),
            (
                "for servers only",
                Some(mesh.sign(&with(&|p| {
                    p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                })?)?),
            ),
            (
                "of an authority in place of a workload",
                Some(mesh.sign(&with(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))?)?),
            ),
            ("signed by another workload", Some(mesh.sign_below(&plain()?, &leaf(&id(&ns.name, "admin"))?)?)),
            ("below an authority for other names", Some(mesh.sign_below(&elsewhere, &named)?)),
            ("at the end of a huge chain", Some(mesh.sign_deep(60, &plain()?)?)),
        ];
        let labels = ["direction=\"inbound\"", "reason=\"client-certificate\""];
        for (n, (what, shown)) in (1..).zip(&attacks) {
            let said = attacker.mtls((ip, 8080), shown.as_ref(), get("/"))?;
            ensure!(!said.contains("HTTP/1.1"), "{what}: {said}");
            ensure!(said.contains("alert") || said.contains("error"), "{what}: nobody refused it: {said}");
            attacker.counted(ip, REFUSALS, &labels, n)?;
        }
        let all = attackers_count(&attacker, ip)?;
        ensure!(all == attacks.len() as u64, "{all} refusals of {} attacks", attacks.len());
        // The same client with a good one: what was refused was the certificate.
        let answer = attacker.mtls((ip, 8080), Some(&mesh.sign(&plain()?)?), get("/"))?;
        ensure!(answer.contains("HTTP/1.1 200") && answer.contains(&me), "{answer}");
        ensure!(served(&answer)? == 1, "something else reached the application: {answer}");
        Ok(())
    });
}

fn attackers_count(attacker: &Attacker<'_>, ip: &str) -> anyhow::Result<u64> {
    attacker.count(ip, REFUSALS, &["reason=\"client-certificate\""])
}

#[test]
fn an_outsider_that_shows_no_certificate_gets_no_answer_from_the_mesh_port() {
    scenario("no-certificate", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let attacker = Attacker::deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        let said = attacker.mtls((ip, 8080), None, get("/"))?;
        ensure!(!said.contains("200 OK"), "an anonymous TLS client was served: {said}");
        let shown = attacker.run(&format!(
            "openssl s_client -connect {ip}:8080 -alpn weft/http1 -showcerts </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName"
        ))?;
        let expected = id(&ns.name, "server");
        ensure!(shown.contains(&expected), "the certificate at the callee's port is not {expected}: {shown}");
        Ok(())
    });
}

#[test]
fn a_good_certificate_of_another_namespace_or_account_is_refused_by_the_policy() {
    scenario("wrong-identity", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let attacker = Attacker::deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        let mesh = Signer::of_the_mesh(ns.cluster)?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "front" },
            "spec": { "action": "Allow", "rules": [{ "from": [{ "identities": [id(&ns.name, "front")] }] }] } }))?;
        let ask = |uri: &str| attacker.mtls((ip, 8080), Some(&mesh.sign(&leaf(uri)?)?), get("/"));
        eventually("the policy is in force", SOON, || {
            let answer = ask(&id(&ns.name, "other"))?;
            ensure!(answer.contains("HTTP/1.1 403"), "{answer}");
            Ok(())
        })?;
        let decisions = "weft_policy_decisions_total";
        let before = attacker.count(ip, decisions, &["decision=\"refused\""])?;
        let others = [
            id("elsewhere", "front"),
            id(&ns.name, "back"),
            id(&format!("{}-evil", ns.name), "front"),
            id(&ns.name, "front-evil"),
            id("front", &ns.name),
        ];
        for uri in &others {
            let answer = ask(uri)?;
            let reason = format!("weft-reason: {}", Reason::PolicyDenied);
            ensure!(answer.contains("HTTP/1.1 403") && answer.contains(&reason), "{uri}: {answer}");
        }
        attacker.counted(ip, decisions, &["decision=\"refused\""], before + others.len() as u64)?;
        let answer = ask(&id(&ns.name, "front"))?;
        ensure!(answer.contains("HTTP/1.1 200"), "{answer}");
        Ok(())
    });
}
