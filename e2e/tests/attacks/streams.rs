//! Who asks the operator for what is another workload's: its configuration, or what only operators tell each other.

use anyhow::{Context, Result, ensure};
use prost::Message;
use weft_api::names;
use weft_api::v1::{AppliedRequest, FromProxy, Hello, ToProxy, from_proxy};
use weft_e2e::cluster::name;
use weft_e2e::{App, Client, Injection, chart, scenario};

use super::ground::{Attacker, Signer, id, leaf};
use super::issuing::{RESET, call};

const STREAM: &str = "weft.v1.Config/Stream";

fn hello(namespace: &str, pod: &str) -> FromProxy {
    let hello = Hello { namespace: namespace.into(), pod: pod.into(), version: "attack".into() };
    FromProxy { message: Some(from_proxy::Message::Hello(hello)) }
}

#[test]
fn the_configuration_of_a_pod_is_told_to_nobody_but_its_own_workload() {
    scenario("others-stream", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        Client::deploy(ns, "mallory")?;
        let attacker = Attacker::deploy(ns)?;
        let mesh = Signer::of_the_mesh(ns.cluster)?;
        let (server, mallory) = (name(&ns.pod("app=server")?), name(&ns.pod("app=mallory")?));
        let operator = chart::pods(ns.cluster, "weft-operator")?.pop().context("no operator")?;
        let refused = || attacker.count_of("weft-operator", "weft_operator_streams_refused_total", &[]);
        let me = mesh.sign(&leaf(&id(&ns.name, "mallory"))?)?;
        let elsewhere = mesh.sign(&leaf(&id("elsewhere", "server"))?)?;
        let attacks = [
            ("without a certificate", None, hello(&ns.name, &server), 16),
            ("as another workload of the namespace", Some(&me), hello(&ns.name, &server), 7),
            ("as the same account of another namespace", Some(&elsewhere), hello(&ns.name, &server), 7),
            ("for the operator's own pod", Some(&me), hello(chart::NAMESPACE, &operator), 7),
            ("without a word who", Some(&me), FromProxy::default(), 3),
        ];
        for (what, show, message, status) in attacks {
            let before = refused()?;
            let answer = call(&attacker, show, STREAM, &message)?;
            ensure!(
                [status, RESET].contains(&answer.status),
                "{what}: {} {}",
                answer.status,
                answer.sentence
            );
            ensure!(answer.message.is_none(), "{what}: something was told");
            ensure!(refused()? > before, "{what} is not counted");
        }
        // What replicas of the operator ask each other.
        let answer = call(&attacker, Some(&me), "weft.v1.Peers/Applied", &AppliedRequest {})?;
        ensure!(
            [7, RESET].contains(&answer.status) && answer.message.is_none(),
            "{} {}",
            answer.status,
            answer.sentence
        );

        // The same way for its own pod leads somewhere: what was refused was the identity.
        let answer = call(&attacker, Some(&me), STREAM, &hello(&ns.name, &mallory))?;
        let told = answer.message.context("its own pod's configuration is refused")?;
        ensure!(
            !ToProxy::decode(told.as_slice())?.roots_der.is_empty(),
            "{} {}",
            answer.status,
            answer.sentence
        );
        Ok(())
    });
}

#[test]
fn a_certificate_that_the_operator_does_not_trust_ends_in_the_handshake() {
    scenario("foreign-stream", Injection::Label, |ns| {
        let attacker = Attacker::deploy(ns)?;
        let counted = || attacker.count_of("weft-operator", "weft_operator_failed_handshakes_total", &[]);
        let foreign = Signer::foreign()?.sign(&leaf(&id(&ns.name, "mallory"))?)?;
        let before = counted()?;
        let to = (&*format!("weft-operator.{}.svc", chart::NAMESPACE), names::OPERATOR_PORT);
        let said =
            attacker.tls(to, Some(&foreign), "-tls1_3 -alpn h2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        ensure!(said.contains("alert"), "nobody refused it: {said}");
        let older: Result<String> =
            attacker.tls(to, None, "-tls1_2 -alpn h2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        ensure!(older?.contains("alert"), "TLS 1.2 is spoken");
        weft_e2e::eventually("both are counted", super::ground::SOON, || {
            ensure!(counted()? >= before + 2, "{} after {before}", counted()?);
            Ok(())
        })
    });
}
