//! Which connections a pod takes: the narrowest PeerAuthentication counts, and it counts alone.

use std::collections::BTreeMap;

use weft_api::v1::{MtlsMode, Source};
use weft_crds::PeerAuthenticationSpec;
use weft_crds::peer_authentication as crd;

use crate::index::policy::InForce;
use crate::index::{Index, Pod, selects};

/// The modes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Authentication {
    /// For every port that is not named.
    pub mode: MtlsMode,
    /// By container port.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// The resource that says so.
    pub source: Option<Source>,
}

impl Authentication {
    /// The mode of a port.
    #[must_use]
    pub fn at(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// The modes of a pod.
#[must_use]
pub fn authentication(index: &Index, pod: &Pod) -> Authentication {
    let own = || in_namespace(index, &pod.key.namespace);
    let chosen = oldest(own().filter(|(_, p)| {
        p.spec.selector.as_ref().is_some_and(|selector| selects(&selector.match_labels, &pod.labels))
    }))
    .or_else(|| oldest(own().filter(|(_, p)| p.spec.selector.is_none())))
    .or_else(|| oldest(in_namespace(index, &index.own_namespace).filter(|(_, p)| p.spec.selector.is_none())));
    let Some(chosen) = chosen else {
        return Authentication { mode: MtlsMode::Permissive, ports: BTreeMap::new(), source: None };
    };
    let ports = chosen.spec.port_level_mtls.iter().filter_map(|(port, mtls)| {
        let port: u16 = port.parse().ok()?;
        Some((port, mode(mtls.mode)))
    });
    Authentication {
        mode: mode(chosen.spec.mtls.mode),
        ports: ports.collect(),
        source: Some(Source {
            kind: "PeerAuthentication".into(),
            namespace: chosen.key.namespace.clone(),
            name: chosen.key.name.clone(),
            generation: chosen.generation,
        }),
    }
}

/// A policy with the time of its creation.
type Candidate<'a> = (i64, &'a InForce<PeerAuthenticationSpec>);

fn in_namespace<'a>(index: &'a Index, namespace: &str) -> impl Iterator<Item = Candidate<'a>> {
    let all = index.space(namespace).into_iter().flat_map(|s| s.peer_authentications.values());
    all.filter_map(|t| Some((t.now.created, t.good.as_ref()?)))
}

fn oldest<'a>(
    candidates: impl Iterator<Item = Candidate<'a>>,
) -> Option<&'a InForce<PeerAuthenticationSpec>> {
    candidates.min_by_key(|(created, p)| (*created, p.key.name.as_str())).map(|(_, p)| p)
}

const fn mode(mode: crd::MtlsMode) -> MtlsMode {
    match mode {
        crd::MtlsMode::Strict => MtlsMode::Strict,
        crd::MtlsMode::Permissive => MtlsMode::Permissive,
        crd::MtlsMode::Disable => MtlsMode::Disable,
    }
}
