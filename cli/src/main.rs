//! `weft`, also a kubectl plugin when linked as `kubectl-weft`: looks at a mesh and explains it. Every command only reads, except for
//! `log` with a filter, which changes the log level of one running proxy. Policies are applied with kubectl.

mod admin;
mod check;
mod cluster;
mod config;
mod explain;
mod inspect;
mod mesh_pod;
mod output;
mod plaintext;
mod status;
mod top;

use clap::{Args, Parser, Subcommand};
use output::Format;
use std::process::ExitCode;

/// Looks at a Weft mesh and explains it.
#[derive(Parser)]
#[command(name = "weft", version, propagate_version = true, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args)]
pub struct Global {
    /// Context of the kubeconfig to use.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Path of the kubeconfig; otherwise $KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true)]
    kubeconfig: Option<std::path::PathBuf>,
    /// Namespace in which Weft itself is installed.
    #[arg(long, global = true, env = "WEFT_NAMESPACE", default_value = "weft-system")]
    weft_namespace: String,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Which namespaces a command looks at.
#[derive(Args, Clone)]
pub struct Scope {
    /// Namespace; otherwise that of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Is the mesh healthy? One line for each thing looked at, with a remedy where there is one. Exits 1 when something fails.
    Check(check::Options),
    /// The proxies: ready, version, identity, configuration, certificate.
    Status(status::Options),
    /// What one pod's proxy has as its configuration (JSON).
    Config(config::PodOptions),
    /// The destinations of one pod's proxy: endpoints, their load, latency and ejections.
    Clusters(config::PodOptions),
    /// Shows the log filter of one pod's proxy, or changes it until the proxy restarts.
    Log(config::LogOptions),
    /// Who calls whom: requests per second, success, mTLS, latency, refusals, counted over a few seconds.
    Top(top::Options),
    /// Follows one request through the access logs and says who refused it, and why.
    Explain(explain::Options),
    /// Who calls in plaintext, and would be refused once Strict is switched on. Exits 1 when there is anybody.
    Plaintext(plaintext::Options),
    /// Which policies touch a pod or service; which pods and services a policy touches.
    Inspect(inspect::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weft: cannot start: {error}");
            return ExitCode::from(70);
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let client = cluster::connect(&cli.global).await?;
    match cli.command {
        Command::Check(options) => check::run(client, &cli.global, options).await,
        Command::Status(options) => status::run(client, &cli.global, options).await,
        Command::Config(options) => config::config(client, options).await,
        Command::Clusters(options) => config::clusters(client, &cli.global, options).await,
        Command::Log(options) => config::log(client, options).await,
        Command::Top(options) => top::run(client, &cli.global, options).await,
        Command::Explain(options) => explain::run(client, &cli.global, options).await,
        Command::Plaintext(options) => plaintext::run(client, &cli.global, options).await,
        Command::Inspect(options) => inspect::run(client, &cli.global, options).await,
    }
}
