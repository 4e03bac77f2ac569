//! What the authority promises, checked with another implementation's verifier (rustls-webpki).

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use weft_api::{Identity, TrustDomain};

use super::root::BACKDATE;
use super::*;
use crate::serve::peer;

pub mod authority;
mod skew;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn authority() -> Authority {
    Authority::new(Root::generate(&domain(), DAY * 365).unwrap(), DAY)
}

fn identity() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/back".parse().unwrap()
}

fn csr_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn csr() -> Vec<u8> {
    let key = csr_key();
    // Names that nobody may ask for.
    let params = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()]).unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

fn issue(authority: &Authority, dns: &[String]) -> CertificateDer<'static> {
    authority.issue(&public_key(&csr()).unwrap(), &identity(), dns).unwrap().chain.remove(0)
}

fn verify(
    leaf: &CertificateDer<'_>,
    root: &CertificateDer<'_>,
    usage: KeyUsage,
    at: SystemTime,
) -> Result<(), webpki::Error> {
    let anchors = [anchor_from_trusted_cert(root).unwrap()];
    let now = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    EndEntityCert::try_from(leaf)?
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &[], now, usage, None, None)
        .map(|_| ())
}

#[test]
fn a_leaf_is_good_for_client_and_server_and_names_only_the_identity() {
    let authority = authority();
    let leaf = issue(&authority, &[]);
    let now = SystemTime::now();
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        verify(&leaf, &authority.root().der, usage, now).unwrap();
    }
    let peer = peer::read(&leaf).unwrap();
    assert_eq!(peer.identity, identity());
    let left = peer.not_after.duration_since(now).unwrap();
    assert!(left > DAY - Duration::from_secs(60) && left <= DAY, "{left:?}");
    let text = String::from_utf8_lossy(&leaf).into_owned();
    assert!(!text.contains("kubernetes.default"), "names of the request are ignored");
}

#[test]
fn dns_names_are_added_only_when_they_are_given() {
    let authority = authority();
    let leaf = issue(&authority, &serving::dns_names("weft-webhook", "weft-system"));
    let entity = EndEntityCert::try_from(&leaf).unwrap();
    for name in ["weft-webhook", "weft-webhook.weft-system.svc", "weft-webhook.weft-system.svc.cluster.local"]
    {
        entity.verify_is_valid_for_subject_name(&name.try_into().unwrap()).unwrap();
    }
    assert!(entity.verify_is_valid_for_subject_name(&"weft-operator".try_into().unwrap()).is_err());
}

#[test]
fn a_leaf_is_refused_before_its_time_after_its_time_and_under_another_root() {
    let authority = authority();
    let leaf = issue(&authority, &[]);
    let root = &authority.root().der;
    let now = SystemTime::now();
    let check = |at| verify(&leaf, root, KeyUsage::client_auth(), at);
    check(now - Duration::from_secs(240)).unwrap();
    assert!(matches!(
        check(now - BACKDATE - Duration::from_secs(60)),
        Err(webpki::Error::CertNotValidYet { .. })
    ));
    assert!(matches!(check(now + DAY + Duration::from_secs(2)), Err(webpki::Error::CertExpired { .. })));
    let foreign = Root::generate(&domain(), DAY * 365).unwrap();
    assert!(verify(&leaf, &foreign.der, KeyUsage::client_auth(), now).is_err());
}

#[test]
fn a_leaf_cannot_sign_and_never_outlives_the_root() {
    let authority = authority();
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(authority.root().not_after.unsigned_abs());
    let key = public_key(&csr()).unwrap();
    let late = authority.sign(&key, &identity(), &[], far - Duration::from_secs(60)).unwrap();
    assert_eq!(late.not_after, far);
    assert!(matches!(authority.sign(&key, &identity(), &[], far), Err(IssueError::RootExpired)));
    let leaf = issue(&authority, &[]);
    assert!(matches!(anchor_from_trusted_cert(&leaf), Ok(_) | Err(_)));
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert!(!parsed.is_ca());
    assert!(!parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
}

#[test]
fn the_root_signs_leaves_only_and_for_as_long_as_was_asked() {
    let root = Root::generate(&domain(), DAY * 365).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&root.der).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca);
    assert_eq!(constraints.path_len_constraint, Some(0));
    assert!(parsed.subject().to_string().contains("cluster.local"));
    let days = (parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp()) / 86_400;
    assert_eq!(days, 365);
}

#[test]
fn a_root_survives_its_secret_and_a_wrong_one_is_refused() {
    let root = Root::generate(&domain(), DAY * 365).unwrap();
    let again = Root::from_pem(&root.certificate_pem, &root.key_pem).unwrap();
    assert_eq!(again.der, root.der);
    let leaf = issue(&Authority::new(again, DAY), &[]);
    verify(&leaf, &root.der, KeyUsage::server_auth(), SystemTime::now()).unwrap();

    let other = Root::generate(&domain(), DAY * 365).unwrap();
    assert!(matches!(Root::from_pem(&root.certificate_pem, &other.key_pem), Err(BadRoot::Mismatch)));
    assert!(matches!(Root::from_pem("", &root.key_pem), Err(BadRoot::Certificate(_))));
    assert!(matches!(Root::from_pem(&root.certificate_pem, "x"), Err(BadRoot::Key(_))));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let plain = CertificateParams::default().self_signed(&key).unwrap();
    assert!(matches!(Root::from_pem(&plain.pem(), &key.serialize_pem()), Err(BadRoot::NotAuthority)));
}

#[test]
fn of_an_authority_of_the_users_only_what_it_signs_itself_is_trusted() {
    let (company, own, sibling) = (csr_key(), csr_key(), csr_key());
    let given = authority::intermediate_of(&company, &own);
    let authority = Authority::new(Root::from_pem(&given.chain_pem, &given.key_pem).unwrap(), DAY);
    let roots = authority.roots();
    assert_eq!(roots.bundle().len(), 1);
    assert_eq!(roots.bundle_pem().matches("BEGIN").count(), 1, "the company's root is not in the bundle");
    assert_eq!(roots.signing.chain_pem.matches("BEGIN").count(), 2, "but kept");
    let now = SystemTime::now();
    verify(&issue(&authority, &[]), &given.der, KeyUsage::client_auth(), now).unwrap();
    let other = Authority::new(authority::intermediate_of(&company, &sibling), DAY);
    assert!(verify(&issue(&other, &[]), &given.der, KeyUsage::client_auth(), now).is_err());
}

#[test]
fn keys_of_every_form_that_cert_manager_writes_can_sign() {
    // RFC 5915.
    let ec = "-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIEYewgz03cn52KuxpZWdOaly5rIBm1UslXaxigRtH/2EoAoGCCqGSM49
AwEHoUQDQgAEY5LSvNcUZaorE/gxDIuLbPbWICxWwA/S94GLu4x/SosjjKpQTl0z
KU/ar1akxqw6W9GgHPt0kYfl4cGKKTC1EQ==
-----END EC PRIVATE KEY-----";
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    // RFC 8017's form lies in that of RFC 5208, after 26 bytes (of 2048 bits).
    let pkcs1 = base64::engine::general_purpose::STANDARD.encode(&rsa.serialize_der()[26..]);
    let pkcs1 = format!("-----BEGIN RSA PRIVATE KEY-----\n{pkcs1}\n-----END RSA PRIVATE KEY-----");
    for pem in [ec.to_owned(), pkcs1, rsa.serialize_pem()] {
        let key = KeyPair::from_pem(&pem).unwrap();
        let chain = authority::intermediate_of(&csr_key(), &key).chain_pem;
        let root = Root::from_pem(&chain, &pem).unwrap();
        let der = root.der.clone();
        let leaf = issue(&Authority::new(root, DAY), &[]);
        verify(&leaf, &der, KeyUsage::server_auth(), SystemTime::now()).unwrap();
    }
}

#[test]
fn a_request_with_a_wrong_signature_a_weak_key_or_rubbish_is_refused() {
    let mut der = csr();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert!(matches!(public_key(&der), Err(BadRequest::Signature | BadRequest::Unreadable)));
    assert!(matches!(public_key(b"rubbish"), Err(BadRequest::Unreadable)));
    assert!(matches!(public_key(&[0x30; 100_000]), Err(BadRequest::Unreadable)));
    let mut long = csr();
    long.push(0);
    assert!(matches!(public_key(&long), Err(BadRequest::Unreadable)));
    let request = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
    assert!(public_key(&request(&KeyPair::generate_for(&PKCS_ED25519).unwrap())).is_ok());
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    assert!(matches!(public_key(&request(&rsa)), Err(BadRequest::Key)));
}

proptest::proptest! {
    #[test]
    fn no_request_makes_it_panic(mut der in proptest::strategy::Just(csr()), at in 0usize..200, with: u8) {
        let place = at % der.len();
        der[place] = with;
        let _ = public_key(&der);
    }
}
