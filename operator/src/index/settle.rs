//! Works out what the policies of a namespace come to: who describes a Service, who governs which of its ports, what is
//! refused and why, and what of the past stays in force. Called after every change of a policy or Service of the
//! namespace; the result depends on the contents and on what was last good, never on the order of events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_crds::mesh_service::Target;
use weft_crds::traffic_policy::{Destination, Rule, TargetKind, TargetRef};
use weft_crds::{
    AuthorizationPolicySpec, MeshServiceSpec, PeerAuthenticationSpec, RequestAuthenticationSpec,
    TrafficPolicy, TrafficPolicySpec, validate,
};

use super::federation::{self, Home};
use super::key_set::KeySets;
use super::policy::{InForce, Resource, Spec, Tracked};
use super::space::{Governing, Labels, Refusal, Settled, Space, Verdict};

/// Replaces `space.settled`, and notes what is good now. Returns what was settled before.
pub fn settle(space: &mut Space, key_sets: &KeySets, home: &Home<'_>) -> Settled {
    let before = std::mem::take(&mut space.settled);
    let mut settled = Settled::default();

    describe(&mut space.mesh_services, &mut settled);
    for mesh_service in &space.mesh_services {
        say_missing_service(space, mesh_service, &mut settled);
    }
    authenticate(&mut space.peer_authentications, &mut settled);
    authorize(&mut space.authorization_policies, &mut settled);
    trust(&mut space.request_authentications, key_sets, &mut settled);
    federation::federate(&mut space.trust_domains, home, &mut settled);
    govern(space, &mut settled);
    remember(space, &before, &mut settled);

    space.settled = settled;
    before
}

/// Names in the order in which conflicts are decided: the older first.
pub(super) fn by_age<S: Spec>(resources: &BTreeMap<String, Tracked<S>>) -> Vec<String> {
    let mut names: Vec<&Resource<S>> = resources.values().map(|t| &t.now).collect();
    names.sort_by_key(|r| r.age());
    names.into_iter().map(|r| r.key.name.clone()).collect()
}

/// By itself, without regard to others: what makes sense counts from now on, and what does not is refused.
pub(super) fn judge<S: Spec>(tracked: &mut Tracked<S>) -> Verdict {
    if let Some(now) = tracked.now.in_force() {
        tracked.good = Some(now);
    }
    Verdict { refused: invalid(tracked), ..Verdict::default() }
}

fn invalid<S: Spec>(tracked: &Tracked<S>) -> Option<Refusal> {
    tracked.now.spec.as_ref().err().map(|why| Refusal::Invalid(why.clone()))
}

fn describe(resources: &mut BTreeMap<String, Tracked<MeshServiceSpec>>, settled: &mut Settled) {
    for name in by_age(resources) {
        let Some(tracked) = resources.get_mut(&name) else { continue };
        let mut verdict = judge(tracked);
        if let Some(good) = &tracked.good {
            let key = good.spec.target.key(&name);
            let conflict = match settled.described.get(&*key) {
                Some(older) => Some(format!(
                    "MeshService {} is older and describes Service {key} already; keep one of the two",
                    older.key.name
                )),
                None => registered_twice(&good.spec.target, settled),
            };
            match conflict {
                Some(why) => {
                    verdict.refused.get_or_insert(Refusal::Conflicted(why));
                }
                None => {
                    verdict.in_force = Some(good.generation);
                    settled.described.insert(key.into_owned(), good.clone());
                }
            }
        }
        settled.mesh_services.insert(name, verdict);
    }
}

/// Of two external services that are found by the same the older counts.
fn registered_twice(target: &Target, settled: &Settled) -> Option<String> {
    target.external.as_ref()?;
    settled.described.values().find_map(|older| {
        let (port, what) = validate::same_external(target, &older.spec.target)?;
        Some(format!(
            "MeshService {} is older and registers {what} at port {port} already; keep one of the two",
            older.key.name
        ))
    })
}

fn say_missing_service(
    space: &Space,
    (name, tracked): (&String, &Tracked<MeshServiceSpec>),
    settled: &mut Settled,
) {
    let service = tracked.now.spec.as_ref().map(|spec| spec.target.service.as_ref());
    if let Ok(Some(service)) = service
        && !space.services.contains_key(service)
        && let Some(verdict) = settled.mesh_services.get_mut(name)
    {
        verdict.missing.push(format!(
            "Service {service} does not exist in namespace {}: create it, or correct target.service",
            tracked.now.key.namespace
        ));
    }
}

/// Of two that govern exactly the same workloads the older counts.
fn authenticate(resources: &mut BTreeMap<String, Tracked<PeerAuthenticationSpec>>, settled: &mut Settled) {
    let mut claims: Vec<(InForce<PeerAuthenticationSpec>, String)> = Vec::new();
    for name in by_age(resources) {
        let Some(tracked) = resources.get_mut(&name) else { continue };
        let mut verdict = judge(tracked);
        if let Some(good) = &tracked.good {
            match claims.iter().find(|(older, _)| older.spec.selector == good.spec.selector) {
                Some((_, older)) => {
                    verdict.refused.get_or_insert(Refusal::Conflicted(format!(
                        "PeerAuthentication {older} is older and governs the same workloads; keep one of the two"
                    )));
                }
                None => {
                    verdict.in_force = Some(good.generation);
                    claims.push((good.clone(), name.clone()));
                }
            }
        }
        settled.peer_authentications.insert(name, verdict);
    }
}

/// All count together, so that none is in another one's way.
fn authorize(resources: &mut BTreeMap<String, Tracked<AuthorizationPolicySpec>>, settled: &mut Settled) {
    for (name, tracked) in resources {
        let mut verdict = judge(tracked);
        verdict.in_force = tracked.good.as_ref().map(|good| good.generation);
        settled.authorization_policies.insert(name.clone(), verdict);
    }
}

/// Of two that say something of one issuer for exactly the same workloads the older counts.
fn trust(
    resources: &mut BTreeMap<String, Tracked<RequestAuthenticationSpec>>,
    key_sets: &KeySets,
    settled: &mut Settled,
) {
    let mut claims: Vec<(InForce<RequestAuthenticationSpec>, String)> = Vec::new();
    for name in by_age(resources) {
        let Some(tracked) = resources.get_mut(&name) else { continue };
        let mut verdict = judge(tracked);
        if let Some(good) = &tracked.good {
            let shared = claims
                .iter()
                .filter(|(older, _)| older.spec.selector == good.spec.selector)
                .find_map(|(older, by)| {
                    let issuer = good
                        .spec
                        .issuers
                        .iter()
                        .find(|a| older.spec.issuers.iter().any(|b| a.issuer == b.issuer))?;
                    Some((by, &issuer.issuer))
                });
            match shared {
                Some((older, issuer)) => {
                    verdict.refused.get_or_insert(Refusal::Conflicted(format!(
                        "RequestAuthentication {older} is older and says what is taken of {issuer} for the same workloads already; say it in one of the two"
                    )));
                }
                None => {
                    verdict.in_force = Some(good.generation);
                    verdict.missing =
                        good.spec.issuers.iter().filter_map(|issuer| key_sets.missing(issuer)).collect();
                    claims.push((good.clone(), name.clone()));
                }
            }
        }
        settled.request_authentications.insert(name, verdict);
    }
}

fn govern(space: &mut Space, settled: &mut Settled) {
    let mut claims: Vec<(String, Option<u16>, String)> = Vec::new();
    for name in by_age(&space.policies) {
        let Some(tracked) = space.policies.get(&name) else { continue };
        let mut verdict = Verdict { refused: invalid(tracked), ..Verdict::default() };
        let now = tracked.now.in_force();
        if let Some(now) = &now {
            verdict.missing = missing(space, settled, &now.spec, &now.key.namespace);
        }
        let resolved = now.is_some() && verdict.missing.is_empty();
        let counts = if resolved { now.clone() } else { tracked.good.clone().or_else(|| now.clone()) };
        let Some(counts) = counts else {
            settled.policies.insert(name, verdict);
            continue;
        };

        let mine: Vec<(String, Option<u16>)> =
            counts.spec.target_refs.iter().filter_map(|t| Some((target(space, t)?, t.port))).collect();
        let overlap = mine.iter().find_map(|(service, port)| {
            claims
                .iter()
                .find(|(s, p, _)| s == service && (p.is_none() || port.is_none() || p == port))
                .map(|(s, p, older)| (s.clone(), p.or(*port), older.clone()))
        });
        if let Some((service, port, older)) = overlap {
            let place = port.map_or_else(
                || format!("Service {service}"),
                |port| format!("port {port} of Service {service}"),
            );
            verdict.refused.get_or_insert(Refusal::Conflicted(format!(
                "TrafficPolicy {older} is older and governs {place} already; put all rules for it into one of the two"
            )));
        } else {
            verdict.in_force = Some(counts.generation);
            for (service, port) in mine {
                settled
                    .governed
                    .entry(service.clone())
                    .or_default()
                    .push(Governing { port, policy: counts.clone() });
                claims.push((service, port, name.clone()));
            }
        }
        settled.policies.insert(name.clone(), verdict);
        if resolved && let Some(tracked) = space.policies.get_mut(&name) {
            tracked.good = now;
        }
    }
}

/// The Service that a targetRef means.
fn target(space: &Space, target: &TargetRef) -> Option<String> {
    match target.kind {
        TargetKind::Service => Some(target.name.clone()),
        TargetKind::MeshService => {
            let good = space.mesh_services.get(&target.name)?.good.as_ref()?;
            Some(good.spec.target.key(&target.name).into_owned())
        }
    }
}

/// What a policy names that does not exist.
fn missing(space: &Space, settled: &Settled, spec: &TrafficPolicySpec, namespace: &str) -> Vec<String> {
    let mut sentences = BTreeSet::new();
    for reference in &spec.target_refs {
        let Some(name) = target(space, reference) else {
            sentences.insert(format!(
                "targetRefs names MeshService {}, which does not exist in namespace {namespace}",
                reference.name
            ));
            continue;
        };
        if let Some(mesh_service) = Target::external_of(&name) {
            sentences.extend(missing_outside(settled, spec, &name, mesh_service, reference.port));
            continue;
        }
        let Some(service) = space.services.get(&name) else {
            sentences.insert(format!(
                "targetRefs means Service {name}, which does not exist in namespace {namespace}"
            ));
            continue;
        };
        if let Some(port) = reference.port
            && service.port(port).is_none()
        {
            sentences.insert(format!("Service {name} has no TCP port {port}, which targetRefs names"));
            continue;
        }
        for destination in spec.rules.iter().flat_map(Rule::destinations) {
            let part = destination.part;
            if let Some(other) = destination.service {
                let Some(other_service) = space.services.get(other) else {
                    sentences.insert(format!(
                        "{part} names Service {other}, which does not exist in namespace {namespace}"
                    ));
                    continue;
                };
                let ports = service.ports.iter().filter(|p| reference.port.is_none_or(|n| n == p.port));
                if !ports.into_iter().any(|p| other_service.port(p.port).is_some()) {
                    sentences.insert(format!(
                        "{part} names Service {other}, which has no port in common with Service {name}"
                    ));
                }
            }
            let of = destination.service.unwrap_or(&name);
            if let Some(subset) = destination.subset
                && !settled
                    .described
                    .get(of)
                    .is_some_and(|m| m.spec.subsets.iter().any(|s| &s.name == subset))
            {
                sentences.insert(format!(
                    "{part} names subset {subset}, which no MeshService of Service {of} defines in namespace {namespace}"
                ));
            }
        }
    }
    sentences.into_iter().collect()
}

/// What a policy says of an external service that has no meaning there.
fn missing_outside(
    settled: &Settled,
    spec: &TrafficPolicySpec,
    key: &str,
    mesh_service: &str,
    port: Option<u16>,
) -> Vec<String> {
    let external = settled.described.get(key).and_then(|d| d.spec.target.external.as_ref());
    let ports = external.map(|e| e.ports.as_slice()).unwrap_or_default();
    let mut sentences: Vec<String> =
        validate::within_cluster_only(&TrafficPolicy::new("", spec.clone()), mesh_service)
            .iter()
            .map(ToString::to_string)
            .collect();
    if let Some(port) = port
        && !ports.iter().any(|p| p.port == port)
    {
        sentences.push(format!("MeshService {mesh_service} has no port {port}, which targetRefs names"));
    }
    sentences
}

/// Notes, for every Service and subset that a policy in force sends to, what it is now or was last.
fn remember(space: &Space, before: &Settled, settled: &mut Settled) {
    let mut backends: Vec<(String, InForce<TrafficPolicySpec>)> = Vec::new();
    for (service, governing) in &settled.governed {
        backends.extend(governing.iter().map(|g| (service.clone(), g.policy.clone())));
    }
    for (target, policy) in backends {
        for Destination { subset, service, .. } in policy.spec.rules.iter().flat_map(Rule::destinations) {
            let of = service.unwrap_or(&target);
            if of != &target {
                settled.splitters.entry(of.clone()).or_default().insert(target.clone());
                let state = space.services.get(of).or_else(|| before.remembered_services.get(of));
                if let Some(state) = state {
                    settled.remembered_services.insert(of.clone(), Arc::clone(state));
                }
            }
            if let Some(subset) = subset {
                let place = (of.clone(), subset.clone());
                let live: Option<&Labels> = settled
                    .described
                    .get(of)
                    .and_then(|m| m.spec.subsets.iter().find(|s| &s.name == subset))
                    .map(|s| &s.labels);
                if let Some(labels) = live.or_else(|| before.remembered_subsets.get(&place)) {
                    let labels = labels.clone();
                    settled.remembered_subsets.insert(place, labels);
                }
            }
        }
    }
}
