//! Two meshes on two clusters, joined by the commands and manifests of docs/federation.md themselves: `make federation` starts
//! both clusters. One test at a time, each of which leaves them joined.

mod calls;
mod endpoint;
mod joining;
mod meshes;
mod page;
mod rotation;
mod servers;
