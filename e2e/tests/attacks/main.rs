//! Attacks on the running mesh, from pods of the same cluster: each is refused with its reason, and counted where it was refused.
//! The table in docs/security.md lists them (`threats.rs` sees that it is complete). What a test needs of Weft's own secrets,
//! such as the key of the root, it takes as an administrator could; nothing here is part of the mesh.

mod certificates;
mod ground;
mod issuing;
mod paths;
mod plaintext;
mod requests;
mod streams;
mod tokens;
mod webhook;
