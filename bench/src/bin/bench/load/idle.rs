//! Connections that do nothing: what each costs a proxy while it is open, and what is given back when all are closed.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::{Client, Target};

/// Connected at the same time, as a burst of clients would.
const TOGETHER: usize = 64;
/// How long all of them may take to connect.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until what is only there for a handshake is gone.
const SETTLE: Duration = Duration::from_secs(1);
/// Until memory that is to be given back is.
const REST: Duration = Duration::from_secs(4);

/// A gauge's values.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Before the first connection.
    pub before: u64,
    /// With all of them open, each after one exchange.
    pub open: u64,
    /// After the last one has closed.
    pub after: u64,
}

/// Opens so many, waits, closes them.
pub async fn idle(target: &Target, count: usize, gauge: impl Fn() -> Result<u64>) -> Result<Idle> {
    let before = gauge()?;
    let clients = timeout(PATIENCE, connected(target, count))
        .await
        .with_context(|| format!("{count} connections are not open after {PATIENCE:?}"))??;
    tokio::time::sleep(SETTLE).await;
    let open = gauge()?;
    drop(clients);
    tokio::time::sleep(REST).await;
    Ok(Idle { before, open, after: gauge()? })
}

async fn connected(target: &Target, count: usize) -> Result<Vec<Client>> {
    let mut connecting = JoinSet::new();
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        if connecting.len() >= TOGETHER
            && let Some(client) = connecting.join_next().await
        {
            clients.push(client??);
        }
        let target = target.clone();
        connecting.spawn(async move { target.used().await });
    }
    while let Some(client) = connecting.join_next().await {
        clients.push(client??);
    }
    Ok(clients)
}
