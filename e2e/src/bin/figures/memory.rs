//! Resident memory of the proxy process.

use crate::Figures;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::Duration;
use weft_e2e::{App, Client, Cluster, Injection, Namespace, machine};

const CONNECTIONS: u64 = 1000;

pub fn of_proxies(cluster: &'static Cluster, figures: &mut Figures) -> Result<()> {
    let ns = Namespace::create(cluster, "figures-memory", Injection::Label)?;
    App::new("back").deploy(&ns)?;
    let client = Client::deploy(&ns, "client")?;
    let proxy = |selector: &str| -> Result<u32> { machine::process(&ns.pod(selector)?, "/weft-proxy") };
    let (caller, callee) = (proxy("app=client")?, proxy("app=back")?);
    let mib = |pid: u32| -> Result<f64> { Ok(machine::resident_memory(pid)? as f64 / f64::from(1 << 20)) };
    std::thread::sleep(Duration::from_secs(5));
    figures.add(
        "proxy_rss_idle",
        mib(caller)?,
        "MiB",
        "VmRSS of a proxy 5 s after the start of its pod, no traffic yet",
    );
    client.get("http://back/")?.expect(200)?;
    let count = CONNECTIONS.to_string();
    let holding = client.start(&["/testapp", "conns", "back:7000", &count, "--hold", "12s", "--json"])?;
    std::thread::sleep(Duration::from_secs(8));
    let (at_caller, at_callee) = (mib(caller)?, mib(callee)?);
    let held: Value = serde_json::from_str(holding.wait(Duration::from_secs(60))?.success()?.trim())?;
    ensure!(held["open"] == CONNECTIONS, "not all connections were open: {held}");
    let what = "VmRSS while 1,000 TCP connections through both proxies (mTLS) are open";
    figures.add("proxy_rss_1000_connections_caller", at_caller, "MiB", what);
    figures.add("proxy_rss_1000_connections_callee", at_callee, "MiB", what);
    Ok(())
}
