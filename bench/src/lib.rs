//! What the measurements share: running proxies as processes of their own, certificates for them, and the servers behind
//! them. It measures from outside: no code of the proxy is linked in.

pub mod certificates;
pub mod control;
pub mod look;
pub mod origin;
pub mod process;
