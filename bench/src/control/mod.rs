//! The control plane under load: the shipped `weft-operator`, an API server with a large cluster for it to watch, and many
//! proxies, each with its own certificate, TLS connection and stream. It measures from outside: of Weft only the protocol is
//! linked in. Nothing of the operator is replaced but the machine behind the API.

pub mod api_server;
pub mod cluster;
pub mod measure;
pub mod objects;
pub mod operator;
pub mod proxies;
pub mod store;
