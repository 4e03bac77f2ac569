//! `weft-proxy --config weft.yaml`: the proxy without Kubernetes. A file says what the operator would (the same schema),
//! and where to listen. `file` and `read` make values of its text, `plan` makes of them what the data path is told, `apply`
//! puts that in force and `run` starts it all. The data path is the same; it does not know which of the two told it.

mod apply;
mod certificate;
mod file;
mod plan;
mod read;
mod run;
mod sockets;
mod watch;

pub use run::{check, run};
