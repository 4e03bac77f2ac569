//! Who asks the operator for certificates that are not his: by tokens that are none, of another audience or of a deleted pod, by one
//! token again and again, and by requests for somebody else's identity. Asked by curl, as anybody in the cluster could.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use std::time::Duration;
use weft_api::v1::{SignRequest, SignResponse};
use weft_api::{Reason, names};
use weft_e2e::{App, Client, Injection, Namespace, chart, eventually, scenario};

use super::ground::{Attacker, SOON, Shown, Signer, address, get, id, leaf, served, statuses};

const REFUSED: &str = "weft_operator_certificates_refused_total";

/// In place of a status: the server has answered before it had read the request, and has reset the stream, which this curl reads first.
pub const RESET: u32 = 92;

/// What a gRPC server answered: the status of the call, its sentence, and the message if there is one.
pub struct Answer {
    pub status: u32,
    pub sentence: String,
    pub message: Option<Vec<u8>>,
}

/// Calls a method of the operator, with a certificate or without, as curl says gRPC: one frame there, the first one back.
pub fn call(
    attacker: &Attacker<'_>,
    show: Option<&Shown>,
    method: &str,
    message: &impl Message,
) -> Result<Answer> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.encoded_len())?.to_be_bytes());
    frame.extend(message.encode_to_vec());
    attacker.put("/tmp/frame", frame)?;
    let mut shows = String::new();
    if let Some(shown) = show {
        attacker.put("/tmp/own.pem", shown.chain.concat())?;
        attacker.put("/tmp/own.key", &shown.key)?;
        shows = "--cert /tmp/own.pem --key /tmp/own.key".into();
    }
    let url = format!("https://weft-operator.{}.svc:{}/{method}", chart::NAMESPACE, names::OPERATOR_PORT);
    // An attacker does not mind who the operator is.
    let said = attacker.run(&format!(
        "rm -f /tmp/body; curl -s -k -m 15 --http2 {shows} -H 'content-type: application/grpc' -H 'te: trailers' --data-binary @/tmp/frame -D - -o /tmp/body {url}; ended=$?; echo; echo curl ended with $ended; echo body $(base64 /tmp/body | tr -d '\\n')"
    ))?;
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let status = match field("grpc-status:") {
        Some(status) => status.parse()?,
        None if field("curl ended with") == Some("92") => RESET,
        None => bail!("{method}: no status: {said}"),
    };
    let body = STANDARD.decode(field("body ").unwrap_or_default())?;
    let message = (body.len() >= 5).then(|| {
        let length = u32::from_be_bytes([body[1], body[2], body[3], body[4]]) as usize;
        body[5..].iter().copied().take(length).collect()
    });
    let sentence = field("grpc-message:").unwrap_or_default().replace("%20", " ");
    Ok(Answer { status, sentence, message })
}

fn sign(attacker: &Attacker<'_>, token: &str, csr: &[u8]) -> Result<Result<SignResponse, String>> {
    let request = SignRequest { csr_der: csr.to_vec().into(), token: token.to_owned() };
    let answer = call(attacker, None, "weft.v1.Identity/Sign", &request)?;
    match (answer.status, answer.message) {
        (0, Some(message)) => Ok(Ok(SignResponse::decode(message.as_slice())?)),
        (0, None) => bail!("good, and nothing in it"),
        (status, _) => Ok(Err(format!("{status}: {}", answer.sentence))),
    }
}

fn request(params: &CertificateParams) -> Result<Vec<u8>> {
    Ok(params.serialize_request(&KeyPair::generate()?)?.der().to_vec())
}

/// A token as the kubelet gets it for the pod, or another one.
fn token(ns: &Namespace, account: &str, audience: &str, pod: Option<&str>) -> Result<String> {
    let audience = format!("--audience={audience}");
    let mut args = vec!["create", "token", account, "-n", &ns.name, &audience];
    args.extend(pod.iter().flat_map(|pod| ["--bound-object-kind", "Pod", "--bound-object-name", *pod]));
    Ok(ns.cluster.kubectl(&args)?.trim().to_owned())
}

#[test]
fn tokens_that_are_not_a_living_pods_for_weft_buy_no_certificate() {
    scenario("bad-tokens", Injection::Label, |ns| {
        let attacker = Attacker::deploy(ns)?;
        let victim = Client::deploy(ns, "victim")?;
        let csr = request(&CertificateParams::default())?;
        let good = token(ns, "victim", names::TOKEN_AUDIENCE, Some(&victim.pod))?;
        let of_nobody = {
            let (head, signature) = good.rsplit_once('.').context("no token")?;
            let first = if signature.starts_with('A') { "B" } else { "A" };
            format!("{head}.{first}{}", &signature[1..])
        };
        // Its review would be remembered by the API server for some seconds, so it is not tried while its pod lives.
        let late = token(ns, "victim", names::TOKEN_AUDIENCE, Some(&victim.pod))?;
        let count =
            |reason: &str| attacker.count_of("weft-operator", REFUSED, &[&format!("reason=\"{reason}\"")]);
        let attacks = [
            ("no token", String::new()),
            ("rubbish", "e30.e30.e30".into()),
            ("with another signature", of_nobody),
            ("for the API server", token(ns, "victim", "https://kubernetes.default.svc", Some(&victim.pod))?),
            ("for somebody else", token(ns, "victim", "bank", Some(&victim.pod))?),
            ("of no pod", token(ns, "victim", names::TOKEN_AUDIENCE, None)?),
        ];
        for (what, token) in &attacks {
            let before = count("Token")?;
            match sign(&attacker, token, &csr)? {
                Ok(signed) => bail!("{what}: a certificate for {}", signed.identity),
                // Unauthenticated.
                Err(refusal) => ensure!(refusal.starts_with("16: "), "{what}: {refusal}"),
            }
            ensure!(count("Token")? > before, "{what} is not counted");
        }
        // What was refused was the token.
        let Ok(signed) = sign(&attacker, &good, &csr)? else { bail!("the pod's own token is refused") };
        ensure!(signed.identity == id(&ns.name, "victim"), "{}", signed.identity);

        ns.delete("pod", &victim.pod)?;
        let before = count("Token")? + count("Pod")?;
        match sign(&attacker, &late, &csr)? {
            Ok(signed) => bail!("a deleted pod's token: a certificate for {}", signed.identity),
            Err(refusal) => ensure!(refusal.starts_with("16: ") || refusal.starts_with("7: "), "{refusal}"),
        }
        // The one that was good a moment ago, too; as soon as the API server has forgotten it.
        eventually("a deleted pod's token that was good before is refused", SOON, || {
            match sign(&attacker, &good, &csr)? {
                Ok(signed) => bail!("a certificate for {}", signed.identity),
                Err(_) => Ok(()),
            }
        })?;
        ensure!(count("Token")? + count("Pod")? >= before + 2, "it is not counted");
        Ok(())
    });
}

#[test]
fn a_token_that_is_replayed_has_the_pace_of_its_pod_and_no_more() {
    scenario("replayed", Injection::Label, |ns| {
        let attacker = Attacker::deploy(ns)?;
        let (victim, other) = (Client::deploy(ns, "victim")?, Client::deploy(ns, "other")?);
        let csr = request(&CertificateParams::default())?;
        let stolen = token(ns, "victim", names::TOKEN_AUDIENCE, Some(&victim.pod))?;
        let before = attacker.count_of("weft-operator", REFUSED, &["reason=\"Rate\""])?;
        // Each replica of the operator counts by itself.
        let mut refusal = None;
        for _ in 0..40 {
            match sign(&attacker, &stolen, &csr)? {
                Ok(signed) => ensure!(signed.identity == id(&ns.name, "victim"), "{}", signed.identity),
                Err(sentence) => {
                    refusal = Some(sentence);
                    break;
                }
            }
        }
        let refusal = refusal.context("forty certificates in a row for one token")?;
        // Resource exhausted.
        ensure!(refusal.starts_with("8: "), "{refusal}");
        let after = attacker.count_of("weft-operator", REFUSED, &["reason=\"Rate\""])?;
        ensure!(after > before, "it is not counted");
        let own = token(ns, "other", names::TOKEN_AUDIENCE, Some(&other.pod))?;
        ensure!(sign(&attacker, &own, &csr)?.is_ok(), "another pod has to suffer for it");
        Ok(())
    });
}

#[test]
fn a_request_for_somebody_elses_identity_gets_ones_own() {
    scenario("others-identity", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let attacker = Attacker::deploy(ns)?;
        let mallory = Client::deploy(ns, "mallory")?;
        let own = token(ns, "mallory", names::TOKEN_AUDIENCE, Some(&mallory.pod))?;
        let key = KeyPair::generate()?;
        let mut params = leaf(&id(chart::NAMESPACE, "weft-operator"))?;
        params.subject_alt_names.push(SanType::DnsName("kubernetes.default.svc".try_into()?));
        params.subject_alt_names.push(SanType::URI(id(&ns.name, "server").as_str().try_into()?));
        params.distinguished_name.push(DnType::CommonName, "system:masters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let csr = params.serialize_request(&key)?.der().to_vec();
        let signed = match sign(&attacker, &own, &csr)? {
            Ok(signed) => signed,
            Err(refusal) => bail!("{refusal}"),
        };
        let me = id(&ns.name, "mallory");
        ensure!(signed.identity == me, "{}", signed.identity);
        let certificate = signed.chain_der.first().context("no certificate")?;
        attacker.put("/tmp/got.der", certificate)?;
        let text = attacker.run("openssl x509 -inform der -in /tmp/got.der -noout -text; openssl x509 -inform der -in /tmp/got.der -out /tmp/got.pem; cat /tmp/got.pem")?;
        ensure!(text.contains(&format!("URI:{me}")) && text.contains("CA:FALSE"), "{text}");
        for word in ["weft-operator", "kubernetes.default", "system:masters", "sa/server", "Certificate Sign"]
        {
            ensure!(!text.contains(word), "{word} is in {text}");
        }
        // It is good for what it says, and signs nobody else.
        let pem = text[text.find("-----BEGIN").context("no PEM")?..].to_owned();
        let shown = Shown { chain: vec![pem.clone()], key: key.serialize_pem() };
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        let answer = attacker.mtls((ip, 8080), Some(&shown), get("/"))?;
        ensure!(statuses(&answer) == ["200"] && answer.contains(&me), "{answer}");
        let refusals = || attacker.count(ip, "weft_refusals_total", &["reason=\"client-certificate\""]);
        let before = refusals()?;
        let mut forged = Signer::by(&pem, &key)?.sign(&leaf(&id(&ns.name, "admin"))?)?;
        forged.chain.push(pem);
        let answer = attacker.mtls((ip, 8080), Some(&forged), get("/"))?;
        ensure!(!answer.contains("HTTP/1.1"), "{answer}");
        eventually(
            &format!("the {} is counted", Reason::ClientCertificate),
            Duration::from_secs(10),
            || {
                ensure!(refusals()? == before + 1, "{}", refusals()?);
                Ok(())
            },
        )?;
        let count = served(&attacker.mtls((ip, 8080), Some(&shown), get("/"))?)?;
        ensure!(count == 2, "{count} requests reached the application");
        Ok(())
    });
}
