//! A cluster as Kubernetes objects, as large as they are in reality: what the operator has no use for is there too.

use serde_json::{Value, json};
use weft_api::names;

use super::cluster::{Cluster, Pod, Service};
use super::store::Store;

/// Collections of the store.
pub const SERVICES: &str = "v1/services";
/// See [`SERVICES`].
pub const PODS: &str = "v1/pods";
/// See [`SERVICES`].
pub const SLICES: &str = "discovery.k8s.io/v1/endpointslices";
/// See [`SERVICES`].
pub const POLICIES: &str = "weft.dev/v1alpha1/trafficpolicies";
const NAMESPACES: &str = "v1/namespaces";
const NODES: &str = "v1/nodes";
const MESH_SERVICES: &str = "weft.dev/v1alpha1/meshservices";
const AUTHENTICATIONS: &str = "weft.dev/v1alpha1/peerauthentications";

const CREATED: &str = "2026-01-01T00:00:00Z";

/// Writes all of it.
pub fn fill(store: &Store, cluster: &Cluster) {
    let mut namespaces = cluster.namespaces();
    namespaces.insert("weft-system");
    for namespace in namespaces {
        let labels = json!({ names::INJECT: names::ENABLED, "kubernetes.io/metadata.name": namespace });
        let mut object = json!({ "metadata": meta("", namespace, &labels) });
        object["status"] = json!({ "phase": "Active" });
        store.put(NAMESPACES, (String::new(), namespace.to_owned()), object);
        let spec = json!({ "mtls": { "mode": "Strict" } });
        put(
            store,
            AUTHENTICATIONS,
            namespace,
            "default",
            custom("PeerAuthentication", namespace, "default", 1, spec),
        );
    }
    for node in 0..cluster.nodes() {
        let name = format!("node-{node:04}");
        let labels = json!({
            "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": format!("zone-{}", node % 3),
            "topology.kubernetes.io/region": "region",
        });
        store.put(NODES, (String::new(), name.clone()), json!({ "metadata": meta("", &name, &labels) }));
    }
    for service in &cluster.services {
        let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
        put(store, SERVICES, namespace, name, of_service(service));
        for of in &service.pods {
            put(store, PODS, namespace, &of.name, pod(service, of));
        }
        put_slice(store, service, &service.pods, None);
        if service.described {
            let spec = json!({
                "target": { "service": name },
                "circuitBreaker": { "maxConcurrentRequests": 1000 },
                "health": { "outlier": { "consecutiveFailures": 7 } },
            });
            put(store, MESH_SERVICES, namespace, name, custom("MeshService", namespace, name, 1, spec));
        }
        if service.governed {
            put_policy(store, service, 1, "first");
        }
    }
}

fn put(store: &Store, collection: &str, namespace: &str, name: &str, object: Value) {
    store.put(collection, (namespace.to_owned(), name.to_owned()), object);
}

/// Adds a pod, ready.
pub fn put_pod(store: &Store, service: &Service, of: &Pod) {
    put(store, PODS, &service.namespace, &of.name, pod(service, of));
}

/// Takes a pod away.
pub fn delete_pod(store: &Store, service: &Service, of: &Pod) {
    store.delete(PODS, &(service.namespace.clone(), of.name.clone()));
}

/// Writes the slice of a service with these endpoints, of which one is not ready.
pub fn put_slice(store: &Store, service: &Service, pods: &[Pod], unready: Option<usize>) {
    let endpoints: Vec<Value> = pods
        .iter()
        .enumerate()
        .map(|(position, pod)| {
            let ready = unready != Some(position);
            json!({
                "addresses": [pod.ip],
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
                "nodeName": format!("node-{:04}", pod.node),
                "targetRef": { "kind": "Pod", "namespace": service.namespace, "name": pod.name, "uid": uid(&pod.name) },
                "zone": format!("zone-{}", pod.node % 3),
            })
        })
        .collect();
    let name = format!("{}-x7k2p", service.name);
    let labels = json!({
        "app": service.name,
        "kubernetes.io/service-name": service.name,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    });
    let object = json!({
        "metadata": meta(&service.namespace, &name, &labels),
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    });
    put(store, SLICES, &service.namespace, &name, object);
}

/// Writes the TrafficPolicy of a service; `rule` is the name of its first rule.
pub fn put_policy(store: &Store, service: &Service, generation: u64, rule: &str) {
    let (namespace, name) = (&service.namespace, &service.name);
    let spec = json!({
        "targetRefs": [{ "kind": "Service", "name": name }],
        "rules": [
            { "name": rule, "match": [{ "path": { "prefix": "/api" }, "method": "GET" }],
              "timeout": "2s", "retry": { "attempts": 3, "retryOn": ["GatewayError"] } },
            { "name": "rest", "timeout": "15s" },
        ],
    });
    let mut object = custom("TrafficPolicy", namespace, name, generation, spec);
    // As a client leaves it that writes the specification only.
    if let Some(before) = store.object(POLICIES, &(namespace.clone(), name.clone())) {
        object["status"] = before["status"].clone();
    }
    put(store, POLICIES, namespace, name, object);
}

fn custom(kind: &str, namespace: &str, name: &str, generation: u64, spec: Value) -> Value {
    let mut metadata = meta(namespace, name, &json!({ "app.kubernetes.io/managed-by": "gitops" }));
    metadata["generation"] = json!(generation);
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
}

fn of_service(service: &Service) -> Value {
    json!({
        "metadata": meta(&service.namespace, &service.name, &json!({ "app": service.name })),
        "spec": {
            "clusterIP": service.ip, "clusterIPs": [service.ip], "type": "ClusterIP", "sessionAffinity": "None",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "selector": { "app": service.name },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
        "status": { "loadBalancer": {} },
    })
}

/// Of about 6 KiB, like a pod of a Deployment with one container beside the proxy.
fn pod(service: &Service, pod: &Pod) -> Value {
    let labels = json!({
        "app": service.name, "version": "v1", "pod-template-hash": "7d4b9c6f5d",
        "team": service.namespace, names::INJECTED: names::ENABLED,
    });
    let mut metadata = meta(&service.namespace, &pod.name, &labels);
    metadata["annotations"] = json!({
        "checksum/config": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "prometheus.io/scrape": "true", "prometheus.io/port": "9090",
    });
    metadata["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{}-7d4b9c6f5d", service.name),
        "uid": uid(&service.name), "controller": true, "blockOwnerDeletion": true,
    }]);
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": CREATED }));
    let containers = ["app", names::PROXY_CONTAINER].map(|name| {
        json!({
            "name": name, "ready": true, "restartCount": 0, "image": format!("registry.example/{name}:1.0"),
            "imageID": format!("registry.example/{name}@sha256:{}", "ab".repeat(32)),
            "containerID": format!("containerd://{}", "cd".repeat(32)),
            "state": { "running": { "startedAt": CREATED } },
        })
    });
    json!({
        "metadata": metadata,
        "spec": {
            "serviceAccountName": service.name, "nodeName": format!("node-{:04}", pod.node),
            "restartPolicy": "Always", "schedulerName": "default-scheduler", "dnsPolicy": "ClusterFirst",
            "initContainers": [init_container(), proxy_container()],
            "containers": [app_container(service)],
            "volumes": [
                { "name": "config", "configMap": { "name": service.name, "defaultMode": 420 } },
                { "name": "weft-token", "projected": { "sources": [{ "serviceAccountToken": { "audience": "weft", "path": "token" } }] } },
            ],
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            ],
        },
        "status": {
            "phase": "Running", "podIP": pod.ip, "podIPs": [{ "ip": pod.ip }], "hostIP": format!("192.168.0.{}", pod.node % 250),
            "startTime": CREATED, "qosClass": "Burstable",
            "conditions": conditions,
            "containerStatuses": containers,
        },
    })
}

fn app_container(service: &Service) -> Value {
    let env: Vec<Value> = (0..12)
        .map(|i| json!({ "name": format!("SETTING_{i}"), "value": format!("https://service-{i}.example/path") }))
        .collect();
    json!({
        "name": "app", "image": "registry.example/app:1.0", "imagePullPolicy": "IfNotPresent",
        "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }], "env": env,
        "envFrom": [{ "configMapRef": { "name": service.name } }],
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
        "readinessProbe": { "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 10 },
        "livenessProbe": { "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 20 },
        "volumeMounts": [{ "name": "config", "mountPath": "/etc/app", "readOnly": true }],
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
    })
}

fn init_container() -> Value {
    json!({ "name": names::INIT_CONTAINER, "image": "weft/proxy:1.0", "args": ["init"] })
}

fn proxy_container() -> Value {
    let from = |field: &str| json!({ "fieldRef": { "fieldPath": field, "apiVersion": "v1" } });
    json!({
        "name": names::PROXY_CONTAINER, "image": "weft/proxy:1.0", "args": ["run"], "restartPolicy": "Always",
        "env": [
            { "name": "WEFT_POD_NAME", "valueFrom": from("metadata.name") },
            { "name": "WEFT_POD_NAMESPACE", "valueFrom": from("metadata.namespace") },
            { "name": "WEFT_POD_UID", "valueFrom": from("metadata.uid") },
            { "name": "WEFT_POD_IPS", "valueFrom": from("status.podIPs") },
        ],
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
        "startupProbe": { "httpGet": { "path": "/ready", "port": names::METRICS_PORT } },
        "securityContext": { "runAsUser": names::PROXY_UID, "readOnlyRootFilesystem": true },
    })
}

/// With the bookkeeping of server-side apply, which is a large part of most objects.
fn meta(namespace: &str, name: &str, labels: &Value) -> Value {
    let managed = |manager: &str, field: &str| {
        json!({
            "manager": manager, "operation": "Update", "apiVersion": "v1", "time": CREATED, "fieldsType": "FieldsV1",
            "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app": {} } }, field: {
                "f:a": {}, "f:b": { ".": {}, "f:c": {} }, "f:d": { "k:{\"type\":\"Ready\"}": { ".": {}, "f:status": {}, "f:type": {} } },
            } },
        })
    };
    let mut meta = json!({
        "name": name, "uid": uid(name), "creationTimestamp": CREATED, "labels": labels, "generation": 1,
        "managedFields": [managed("kube-controller-manager", "f:spec"), managed("kubelet", "f:status")],
    });
    if !namespace.is_empty() {
        meta["namespace"] = json!(namespace);
    }
    meta
}

/// The uid of whatever has that name.
#[must_use]
pub fn uid(name: &str) -> String {
    format!("{name}-1b671a64-40d5-491e-99b0")
}
