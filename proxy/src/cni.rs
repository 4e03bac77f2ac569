//! Redirection without NET_ADMIN in the pod: `weft-cni`, a chained CNI plugin that writes the very rules of [`crate::init`] from
//! outside, and what puts it on a node and takes it away again ([`install`]). The plugin asks nobody anything: the container
//! runtime tells it the pod's annotations, so no credential lies on the node. It never touches an interface or an address.

mod ask;
mod chain;
pub mod install;
mod plugin;
mod protocol;

pub use plugin::run;

/// The plugin's type, which is the name of its program.
pub const PLUGIN: &str = "weft-cni";
/// The capability by which containerd and CRI-O tell a plugin the pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
