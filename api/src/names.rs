//! Names, ports and paths that two or more parts of Weft have to agree on. Nothing but constants.

/// The proxy's outbound listener: the init step redirects the pod's outgoing TCP here.
pub const OUTBOUND_PORT: u16 = 15001;
/// The proxy's inbound listener: the init step redirects TCP that enters the pod here.
pub const INBOUND_PORT: u16 = 15006;
/// The proxy's admin API, loopback only.
pub const ADMIN_PORT: u16 = 15000;
/// Metrics, `/ready` and `/live` of proxy, operator and webhook; never redirected.
pub const METRICS_PORT: u16 = 15020;
/// Reserved for finding out whether the pod's traffic is redirected: the rules send what comes in for it to [`METRICS_PORT`], and
/// what the pod itself, the proxy too, sends to its own loopback to [`OUTBOUND_PORT`]. Who arrives here was not redirected.
pub const CHECK_PORT: u16 = 15029;
/// Ports of the pod that are the proxy's. Nothing that comes in is passed on to one of them.
pub const PROXY_PORTS: [u16; 5] = [ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT, METRICS_PORT, CHECK_PORT];
/// The operator's gRPC port (Identity, Config, Peers).
pub const OPERATOR_PORT: u16 = 15010;
/// Where the operator serves the mesh's own bundle to other meshes, if it shall (SPIFFE bundle endpoint).
pub const BUNDLE_PORT: u16 = 15011;
/// The webhook's HTTPS port.
pub const WEBHOOK_PORT: u16 = 9443;
/// The proxy's uid and gid: its own connections are not redirected.
pub const PROXY_UID: u32 = 2102;

/// Capabilities that redirection does not hold against: of the network's rules, of raw packets, of the node, of others' processes,
/// and of others' user ids. Without `CAP_`.
pub const CAPABILITIES_AROUND: [&str; 8] =
    ["ALL", "BPF", "NET_ADMIN", "NET_RAW", "SETUID", "SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE"];

/// On a Namespace or Pod, as a label or annotation: [`ENABLED`] or [`DISABLED`].
pub const INJECT: &str = "weft.dev/inject";
/// Value that switches injection on.
pub const ENABLED: &str = "enabled";
/// Value that switches injection off.
pub const DISABLED: &str = "disabled";
/// Label that the operator keeps on namespaces that are annotated but not labelled with [`INJECT`]:
/// admission webhooks can select namespaces by label only.
pub const INJECT_MIRROR: &str = "weft.dev/inject-by-annotation";
/// Label set by the webhook on injected pods, value [`ENABLED`].
pub const INJECTED: &str = "weft.dev/injected";
/// Pod annotation (webhook): JSON with the injected version and image; with it a pod counts as injected.
pub const INJECTION_STATUS: &str = "weft.dev/injection-status";
/// Pod annotation (webhook, where a CNI plugin redirects): JSON with what the rules leave out.
pub const REDIRECTION: &str = "weft.dev/redirection";
/// Name of the injected proxy container.
pub const PROXY_CONTAINER: &str = "weft-proxy";
/// Name of the injected init container that writes the redirection rules.
pub const INIT_CONTAINER: &str = "weft-init";
/// Projected token audience.
pub const TOKEN_AUDIENCE: &str = "weft";
/// ConfigMap in injected namespaces (and in Weft's own) with the trust bundle.
pub const BUNDLE_CONFIGMAP: &str = "weft-trust-bundle";
/// Key of the PEM bundle in [`BUNDLE_CONFIGMAP`].
pub const BUNDLE_KEY: &str = "roots.pem";
/// Kubernetes' name for Weft as a signer of workloads' certificates: in PodCertificateRequests, and of [`CLUSTER_BUNDLE`].
pub const SIGNER: &str = "weft.dev/workload";
/// The ClusterTrustBundle; the API server wants its signer's name at the beginning.
pub const CLUSTER_BUNDLE: &str = "weft.dev:workload:bundle";
/// Secret with the root certificate (`tls.crt`) and key (`tls.key`), in Weft's own namespace.
pub const CA_SECRET: &str = "weft-ca";
/// On [`CA_SECRET`], as an annotation of any value: the user wants the root to be rotated now.
pub const ROTATE_ROOT: &str = "weft.dev/rotate-root";
/// As [`ROTATE_ROOT`]'s value: to a root of Weft's making, whoever made the present one.
pub const ROTATE_TO_WEFT: &str = "weft";
/// On [`CA_SECRET`], as an annotation: when its present standing began, in ms since 1970.
pub const ROOTS_EPOCH: &str = "weft.dev/roots-epoch";
/// On [`CA_SECRET`], as an annotation: which phase of a rotation it is in.
pub const ROOTS_PHASE: &str = "weft.dev/roots-phase";
/// ConfigMap in Weft's own namespace that says where the rotation of the root stands.
pub const CA_STATUS: &str = "weft-ca-status";
/// ServiceAccount, Service and Deployment of the operator.
pub const OPERATOR: &str = "weft-operator";
/// ServiceAccount, Service and Deployment of the webhook.
pub const WEBHOOK: &str = "weft-webhook";
/// DaemonSet of the CNI plugin.
pub const CNI: &str = "weft-cni";
/// MutatingWebhookConfiguration that injects.
pub const INJECTOR_CONFIGURATION: &str = "weft-injector";
/// ValidatingWebhookConfiguration for Weft's own resources.
pub const VALIDATOR_CONFIGURATION: &str = "weft-validator";
/// Label on every object that Weft creates at run time, value `weft-operator`.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Default trust domain.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// On a Namespace or Pod, as an annotation: [`ALLOW_ANY`] or [`REGISTERED_ONLY`], in place of the mesh's own policy.
pub const OUTBOUND_POLICY: &str = "weft.dev/outbound-policy";
/// Connections to what is not registered are passed on.
pub const ALLOW_ANY: &str = "AllowAny";
/// Connections to what is not registered are refused.
pub const REGISTERED_ONLY: &str = "RegisteredOnly";

/// Where the proxy finds its token inside the pod.
pub const TOKEN_PATH: &str = "/var/run/secrets/weft/token";
/// Where the proxy finds the trust bundle inside the pod.
pub const BUNDLE_PATH: &str = "/var/run/weft/roots.pem";

/// ALPN between proxies, HTTP/1.1 inside. Inside an mTLS connection the ALPN says what the bytes are, so that
/// the inbound side never has to guess.
pub const ALPN_HTTP1: &[u8] = b"weft/http1";
/// ALPN between proxies, HTTP/2 inside.
pub const ALPN_HTTP2: &[u8] = b"weft/http2";
/// ALPN between proxies, opaque bytes inside.
pub const ALPN_TCP: &[u8] = b"weft/tcp";

/// Response header with the [`crate::Reason`] of a response that a proxy made itself.
pub const REASON_HEADER: &str = "weft-reason";
/// Request header set by the inbound proxy to the caller's verified identity; removed from what clients send.
pub const IDENTITY_HEADER: &str = "weft-client-identity";
/// Request header on a copy of a request, whose answer nobody gets ([`MIRRORED`]).
pub const MIRROR_HEADER: &str = "weft-mirror";
/// Value of [`MIRROR_HEADER`].
pub const MIRRORED: &str = "true";
/// Why a proxy holds an endpoint for unhealthy that it does not check itself.
pub const HEARSAY: &str = "failed the checks of other proxies";
/// Request id header, made by the first proxy when absent.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

/// Tells a rate limit apart from all others of the mesh. `service`: "namespace/name:port"; `rule`: "policy/rule".
#[must_use]
pub fn limit_id(service: &str, rule: &str) -> String {
    format!("{service}#{rule}")
}
