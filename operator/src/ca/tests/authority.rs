//! A company's own certificate authority: a root, and an intermediate one that it has signed, as cert-manager writes it.

use rcgen::{BasicConstraints, CertificateParams, DnType, DnValue, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::ca::Root;

/// An intermediate, after which its root stands in the PEM.
pub fn intermediate() -> Root {
    intermediate_of(&KeyPair::generate().unwrap(), &KeyPair::generate().unwrap())
}

/// With these keys: of the root, and its own.
pub fn intermediate_of(above: &KeyPair, own: &KeyPair) -> Root {
    let params = |name: &str, constraints| {
        let mut params = CertificateParams::default();
        // As Go writes names of plain letters.
        let company = DnValue::PrintableString("Company".try_into().unwrap());
        params.distinguished_name.push(DnType::OrganizationName, company);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(constraints);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2046, 1, 1);
        params
    };
    let root = params("root", BasicConstraints::Unconstrained);
    let top = root.self_signed(above).unwrap();
    let issuer = Issuer::from_params(&root, above);
    let between = params("mesh", BasicConstraints::Constrained(0)).signed_by(own, &issuer).unwrap();
    Root::from_pem(&format!("{}{}", between.pem(), top.pem()), &own.serialize_pem()).unwrap()
}
