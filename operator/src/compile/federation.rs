//! Other trust domains, as every proxy is told. Pure.

use weft_api::v1::{self, Source};

use super::cluster::source;
use crate::index::Index;

/// All of them with a bundle, by name, and what says so.
pub fn federation(index: &Index) -> (v1::Federation, Vec<Source>) {
    let mut bundles = Vec::new();
    let mut sources = Vec::new();
    for federated in index.federated() {
        sources.push(source("TrustDomain", &federated.in_force));
        if !federated.roots.is_empty() {
            bundles.push(v1::ForeignBundle {
                trust_domain: federated.in_force.spec.trust_domain.clone(),
                roots_der: federated.roots.iter().map(|der| der.clone().into()).collect(),
            });
        }
    }
    bundles.sort_by(|a, b| a.trust_domain.cmp(&b.trust_domain));
    (v1::Federation { bundles }, sources)
}
