//! The operator's configuration, read once from flags and environment.

use std::time::Duration;

use clap::Args;
use weft_api::{TrustDomain, names};

use crate::index::OutboundPolicy;

/// Settings of `weft-operator run`.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Weft's own namespace.
    #[arg(long, env = "WEFT_NAMESPACE", default_value = "weft-system")]
    pub namespace: String,
    /// Name of this pod: who holds the Lease.
    #[arg(long, env = "WEFT_POD_NAME", default_value = "weft-operator")]
    pub pod_name: String,
    /// Address of this pod: where the other replicas are not.
    #[arg(long, env = "WEFT_POD_IP")]
    pub pod_ip: Option<std::net::IpAddr>,
    /// Trust domain of all identities.
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = names::TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// Lifetime of workload certificates, such as 24h or 90m.
    #[arg(long, env = "WEFT_LEAF_LIFETIME", default_value = "24h", value_parser = lifetime)]
    pub leaf_lifetime: Duration,
    /// Lifetime of the roots that Weft makes, such as 8760h. The next one follows at two thirds of it.
    #[arg(long, env = "WEFT_ROOT_LIFETIME", default_value = "8760h", value_parser = lifetime)]
    pub root_lifetime: Duration,
    /// A Secret of Weft's namespace (`tls.crt`, `tls.key`) with a certificate authority that somebody else keeps, such as
    /// cert-manager: its root, or intermediate, signs in place of one that Weft makes, and is followed when it is renewed.
    #[arg(long, env = "WEFT_ROOT_SECRET", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub root_secret: Option<String>,
    /// What becomes of connections to what is neither of the cluster nor a registered external service: AllowAny or
    /// RegisteredOnly.
    #[arg(long, env = "WEFT_OUTBOUND_POLICY", default_value = names::ALLOW_ANY)]
    pub outbound_policy: OutboundPolicy,
    /// Whether auditors are told of certificates, rotations and changes of configuration, on stdout: on or off.
    #[arg(long, env = "WEFT_AUDIT", default_value = "on", value_parser = switch, action = clap::ArgAction::Set)]
    pub audit: bool,
    /// Whether they are told by Kubernetes Events too: on or off.
    #[arg(long, env = "WEFT_AUDIT_EVENTS", default_value = "on", value_parser = switch, action = clap::ArgAction::Set)]
    pub audit_events: bool,
    /// Port at which the own bundle is served to other meshes (SPIFFE bundle endpoint, profile https_spiffe). Not given: nowhere.
    #[arg(long, env = "WEFT_BUNDLE_PORT")]
    pub bundle_port: Option<u16>,
    /// Port of the gRPC server.
    #[arg(long, default_value_t = names::OPERATOR_PORT)]
    pub grpc_port: u16,
    /// Port of metrics and health.
    #[arg(long, default_value_t = names::METRICS_PORT)]
    pub metrics_port: u16,
}

impl Settings {
    /// What is wrong with the settings taken together.
    ///
    /// # Errors
    /// A sentence that says so.
    pub fn check(&self) -> Result<(), String> {
        if self.root_secret.as_deref() == Some(names::CA_SECRET) {
            return Err(format!(
                "rootSecret cannot be {}, which is Weft's own: give another Secret",
                names::CA_SECRET
            ));
        }
        // One third is left for a rotation, which takes two lives of a leaf where a proxy cannot be reached.
        if self.root_lifetime < self.leaf_lifetime * 8 {
            return Err(format!(
                "rootLifetime ({} s) must be at least eight times leafLifetime ({} s), so that a rotation ends before the old root does",
                self.root_lifetime.as_secs(),
                self.leaf_lifetime.as_secs()
            ));
        }
        Ok(())
    }
}

/// Proxies renew at two thirds: less than a minute would be renewal without end.
const SHORTEST: Duration = Duration::from_secs(60);

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{text}` is neither on nor off")),
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<weft_crds::Duration>().map_err(|e| e.to_string())?.0;
    if duration < SHORTEST {
        return Err(format!("{text} is shorter than one minute"));
    }
    Ok(duration)
}
