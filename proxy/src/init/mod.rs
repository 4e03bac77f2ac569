//! `weft-proxy init`, and what the CNI plugin does in its place: redirects the pod's TCP to the proxy by one nftables table, before anything else of the pod runs.
//! Written over netlink, so that the image holds no nft or iptables. It runs once, with NET_ADMIN, and exits; it never
//! touches another table.

mod netlink;
mod rules;

use std::str::FromStr;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use weft_api::names;

pub use rules::Network;

/// The name of the table, in family inet.
pub const TABLE: &str = "weft";

/// What not to redirect.
#[derive(ClapArgs, Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// TCP ports of the pod that are reached without the proxy.
    #[arg(long, value_delimiter = ',', value_parser = port)]
    pub skip_inbound_ports: Vec<u16>,
    /// TCP ports of destinations that are reached without the proxy.
    #[arg(long, value_delimiter = ',', value_parser = port)]
    pub skip_outbound_ports: Vec<u16>,
    /// Destinations that are reached without the proxy, for example 10.1.0.0/16 or fd00::/8.
    #[arg(long, value_delimiter = ',')]
    pub skip_outbound_cidrs: Vec<Network>,
    /// User of the proxy: what it sends itself is not redirected.
    #[arg(long, default_value_t = names::PROXY_UID)]
    pub uid: u32,
    /// Print the rules instead of installing them.
    #[arg(long)]
    pub dry_run: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            skip_inbound_ports: Vec::new(),
            skip_outbound_ports: Vec::new(),
            skip_outbound_cidrs: Vec::new(),
            uid: names::PROXY_UID,
            dry_run: false,
        }
    }
}

/// An empty text (a list with nothing in it) is not an error of the user's, but no port either.
fn port(text: &str) -> Result<u16, String> {
    match u16::from_str(text.trim()) {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port: use 1 to 65535, separated by commas")),
        Ok(port) => Ok(port),
    }
}

/// Installs the rules in the network namespace of the caller, in one transaction, in place of those of an earlier run.
///
/// # Errors
/// When the kernel refuses: without NET_ADMIN, or without nf_tables and its nat support.
pub fn run(args: &Args) -> Result<()> {
    let chains = rules::chains(args);
    if args.dry_run {
        for chain in &chains {
            println!("{chain}");
        }
        return Ok(());
    }
    netlink::replace_table(TABLE, &chains).context("cannot write the redirection rules")?;
    verify(args)?;
    tracing::info!(uid = args.uid, "traffic of this pod is redirected to the proxy");
    Ok(())
}

/// Whether the rules are in the network namespace of the caller, as many as there should be.
///
/// # Errors
/// They are not, or the kernel does not tell.
pub fn verify(args: &Args) -> Result<()> {
    let found = netlink::count_rules(TABLE).context("cannot read the redirection rules back")?;
    let wanted: usize = rules::chains(args).iter().map(|chain| chain.rules.len()).sum();
    anyhow::ensure!(found == wanted, "the kernel holds {found} redirection rules in place of {wanted}");
    Ok(())
}
