//! Kubernetes objects for tests, written as briefly as they are read, and an index fed with them by hand.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use weft_crds::{
    AuthorizationPolicySpec, MeshServiceSpec, PeerAuthenticationSpec, RequestAuthenticationSpec,
    TrafficPolicySpec, TrustDomainSpec,
};

use super::policy::Resource;
use super::{Change, Dirty, Entry, Index, Key, Namespace, Node, Pod, Service, Slice};

/// An object of any kind.
#[derive(Clone, Debug)]
pub enum Object {
    Namespace(Namespace),
    Service(Service),
    Slice(Slice),
    Pod(Pod),
    Node(Node),
    MeshService(Resource<MeshServiceSpec>),
    Policy(Resource<TrafficPolicySpec>),
    Authentication(Resource<PeerAuthenticationSpec>),
    Authorization(Resource<AuthorizationPolicySpec>),
    Requests(Resource<RequestAuthenticationSpec>),
    TrustDomain(Resource<TrustDomainSpec>),
}

impl Object {
    pub fn apply(self, index: &mut Index) -> Dirty {
        match self {
            Self::Namespace(o) => index.apply(Change::Apply(o)),
            Self::Service(o) => index.apply(Change::Apply(o)),
            Self::Slice(o) => index.apply(Change::Apply(o)),
            Self::Pod(o) => index.apply(Change::Apply(o)),
            Self::Node(o) => index.apply(Change::Apply(o)),
            Self::MeshService(o) => index.apply(Change::Apply(o)),
            Self::Policy(o) => index.apply(Change::Apply(o)),
            Self::Authentication(o) => index.apply(Change::Apply(o)),
            Self::Authorization(o) => index.apply(Change::Apply(o)),
            Self::Requests(o) => index.apply(Change::Apply(o)),
            Self::TrustDomain(o) => index.apply(Change::Apply(o)),
        }
    }

    pub fn delete(&self, index: &mut Index) -> Dirty {
        fn gone<E: Entry>(index: &mut Index, entry: &E) -> Dirty {
            index.apply(Change::<E>::Delete(entry.key()))
        }
        match self {
            Self::Namespace(o) => gone(index, o),
            Self::Service(o) => gone(index, o),
            Self::Slice(o) => gone(index, o),
            Self::Pod(o) => gone(index, o),
            Self::Node(o) => gone(index, o),
            Self::MeshService(o) => gone(index, o),
            Self::Policy(o) => gone(index, o),
            Self::Authentication(o) => gone(index, o),
            Self::Authorization(o) => gone(index, o),
            Self::Requests(o) => gone(index, o),
            Self::TrustDomain(o) => gone(index, o),
        }
    }
}

pub const OWN: &str = "weft-system";

pub fn index() -> Index {
    Index::new(OWN, "cluster.local".parse().unwrap())
}

/// An index with these objects.
pub fn index_of(objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = index();
    for object in objects {
        object.apply(&mut index);
    }
    index
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub fn namespace(name: &str, labels: Value, annotations: Value) -> Object {
    let object: core::Namespace =
        parse(json!({ "metadata": { "name": name, "labels": labels, "annotations": annotations } }));
    Object::Namespace(Namespace::read(object).unwrap())
}

/// Ports as (name, port, targetPort).
pub fn service(key: &str, ip: &str, ports: &[(&str, u16, u16)]) -> Object {
    let ports: Vec<Value> =
        ports.iter().map(|(n, p, t)| json!({ "name": n, "port": p, "targetPort": t })).collect();
    service_of(
        key,
        json!({ "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": name_of(key) }, "ports": ports }),
    )
}

pub fn service_of(key: &str, spec: Value) -> Object {
    let object: core::Service = parse(json!({ "metadata": meta(key), "spec": spec }));
    Object::Service(Service::read(object).unwrap())
}

/// A slice of a Service, named like it, with endpoints as (ip, pod, ready).
pub fn slice(key: &str, ports: &[(&str, u16)], endpoints: &[(&str, &str, bool)]) -> Object {
    slice_named(key, key, ports, endpoints)
}

pub fn slice_named(
    key: &str,
    service: &str,
    ports: &[(&str, u16)],
    endpoints: &[(&str, &str, bool)],
) -> Object {
    let ports: Vec<Value> =
        ports.iter().map(|(n, p)| json!({ "name": n, "port": p, "protocol": "TCP" })).collect();
    let all: Vec<Value> = endpoints
        .iter()
        .map(|(ip, pod, ready)| {
            let mut endpoint =
                json!({ "addresses": [ip], "conditions": { "ready": ready, "serving": true, "terminating": !ready } });
            if !pod.is_empty() {
                endpoint["targetRef"] = json!({ "kind": "Pod", "name": pod });
            }
            endpoint
        })
        .collect();
    let family = if endpoints.first().is_some_and(|(ip, ..)| ip.contains(':')) { "IPv6" } else { "IPv4" };
    let mut meta = meta(key);
    meta["labels"] = json!({ "kubernetes.io/service-name": name_of(service) });
    let object: EndpointSlice =
        parse(json!({ "metadata": meta, "addressType": family, "ports": ports, "endpoints": all }));
    Object::Slice(Slice::read(object).unwrap())
}

/// A ready pod in the mesh, of ServiceAccount `app`, with label `app`.
pub fn pod(key: &str, app: &str, ip: &str) -> Object {
    pod_of(key, json!({ "app": app }), ip, true, json!({}))
}

/// A ready pod outside of the mesh.
pub fn plain_pod(key: &str, app: &str, ip: &str) -> Object {
    pod_of(key, json!({ "app": app }), ip, false, json!({}))
}

/// `more` is merged into the spec.
pub fn pod_of(key: &str, labels: Value, ip: &str, mesh: bool, more: Value) -> Object {
    let mut meta = meta(key);
    meta["labels"] = labels.clone();
    let mut spec = json!({ "serviceAccountName": labels["app"], "containers": [{ "name": "app" }] });
    if mesh {
        meta["labels"]["weft.dev/injected"] = json!("enabled");
        spec["initContainers"] = json!([{ "name": "weft-proxy", "restartPolicy": "Always" }]);
    }
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    let ips: Vec<Value> = ip.split(',').filter(|ip| !ip.is_empty()).map(|ip| json!({ "ip": ip })).collect();
    let status = json!({
        "phase": "Running",
        "podIPs": ips,
        "conditions": [{ "type": "Ready", "status": "True" }],
    });
    let object: core::Pod = parse(json!({ "metadata": meta, "spec": spec, "status": status }));
    Object::Pod(Pod::read(object).unwrap())
}

/// A pod in the mesh with annotations.
pub fn annotated_pod(key: &str, ip: &str, annotations: Value) -> Object {
    let object: core::Pod = parse(json!({
        "metadata": { "namespace": key_of(key).namespace, "name": key_of(key).name, "labels": { "weft.dev/injected": "enabled" },
            "annotations": annotations },
        "spec": { "containers": [], "initContainers": [{ "name": "weft-proxy", "restartPolicy": "Always" }] },
        "status": { "phase": "Running", "podIPs": [{ "ip": ip }] },
    }));
    Object::Pod(Pod::read(object).unwrap())
}

/// A node with these labels of place; empty: none.
pub fn node(name: &str, zone: &str, region: &str) -> Object {
    let mut labels = json!({ "kubernetes.io/hostname": name });
    for (label, value) in [("zone", zone), ("region", region)] {
        if !value.is_empty() {
            labels[format!("topology.kubernetes.io/{label}")] = json!(value);
        }
    }
    let object = json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": { "name": name, "labels": labels },
    });
    Object::Node(Node::read(parse(object)).unwrap())
}

pub fn mesh_service(key: &str, generation: i64, created: i64, spec: Value) -> Object {
    Object::MeshService(resource(key, generation, created, spec))
}

pub fn policy(key: &str, generation: i64, created: i64, spec: Value) -> Object {
    Object::Policy(resource(key, generation, created, spec))
}

pub fn authentication(key: &str, created: i64, spec: Value) -> Object {
    Object::Authentication(resource(key, 1, created, spec))
}

pub fn authorization(key: &str, generation: i64, spec: Value) -> Object {
    Object::Authorization(resource(key, generation, 1, spec))
}

pub fn requests(key: &str, created: i64, spec: Value) -> Object {
    Object::Requests(resource(key, 1, created, spec))
}

pub fn trust_domain(key: &str, created: i64, spec: Value, bundle: Value) -> Object {
    let mut domain = resource(key, 1, created, spec);
    domain.status = json!({ "bundle": bundle });
    Object::TrustDomain(domain)
}

fn resource<S: super::policy::Spec>(key: &str, generation: i64, created: i64, spec: Value) -> Resource<S> {
    let mut meta = meta(key);
    meta["generation"] = json!(generation);
    meta["creationTimestamp"] = json!(format!("2026-01-01T00:00:{created:02}Z"));
    let object =
        json!({ "apiVersion": "weft.dev/v1alpha1", "kind": S::KIND, "metadata": meta, "spec": spec });
    Resource::read(parse(object)).unwrap()
}

fn meta(key: &str) -> Value {
    let key = key_of(key);
    json!({ "namespace": key.namespace, "name": key.name, "uid": format!("uid-{}", key.name) })
}

pub fn key_of(text: &str) -> Key {
    let (namespace, name) = text.split_once('/').unwrap();
    Key::new(namespace, name)
}

fn name_of(key: &str) -> &str {
    key.split_once('/').unwrap().1
}
