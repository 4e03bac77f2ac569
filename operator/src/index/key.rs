//! Names of things in the index: a namespaced key, and the id of a compiled service.
//! Text forms and parsing only.

use std::fmt;
use std::str::FromStr;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace; empty for objects of the cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key of the two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which compiled service: a port of a Kubernetes Service, or a pod's own port when it belongs to no Service.
///
/// As text `namespace/name:port`; that of a pod is `namespace/name.pod:port`. Names of Services have no dots, so
/// the two can never be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceId {
    /// A port of a Service.
    Service(Key, u16),
    /// A port of a pod.
    Pod(Key, u16),
}

impl ServiceId {
    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Service(_, port) | Self::Pod(_, port) => *port,
        }
    }
}

const POD_SUFFIX: &str = ".pod";

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key, port) => write!(f, "{key}:{port}"),
            Self::Pod(key, port) => write!(f, "{key}{POD_SUFFIX}:{port}"),
        }
    }
}

/// A text that is not the id of a service.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a service of the form namespace/name:port")]
pub struct BadServiceId;

impl FromStr for ServiceId {
    type Err = BadServiceId;
    fn from_str(s: &str) -> Result<Self, BadServiceId> {
        let (rest, port) = s.rsplit_once(':').ok_or(BadServiceId)?;
        let (namespace, name) = rest.split_once('/').ok_or(BadServiceId)?;
        let port = port.parse().map_err(|_| BadServiceId)?;
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(BadServiceId);
        }
        Ok(match name.strip_suffix(POD_SUFFIX) {
            Some(pod) => Self::Pod(Key::new(namespace, pod), port),
            None => Self::Service(Key::new(namespace, name), port),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_a_round_trip_and_pods_never_look_like_services() {
        for id in [
            ServiceId::Service(Key::new("shop", "back"), 80),
            ServiceId::Pod(Key::new("shop", "back"), 80),
            ServiceId::Pod(Key::new("shop", "back.pod"), 8080),
        ] {
            assert_eq!(id.to_string().parse::<ServiceId>().unwrap(), id);
        }
        assert_ne!(
            ServiceId::Service(Key::new("shop", "back"), 80).to_string(),
            ServiceId::Pod(Key::new("shop", "back"), 80).to_string()
        );
        for bad in ["", "a", "a/b", "a/b:", "a/b:x", "/b:1", "a/:1", "a/b:70000", "a/b/c:1"] {
            assert!(bad.parse::<ServiceId>().is_err(), "{bad} was taken");
        }
    }
}
