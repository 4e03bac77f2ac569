//! The operator's command line. Reads flags and environment, starts logging and one runtime; everything else is in the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weft_operator::cleanup::Cleanup;
use weft_operator::settings::Settings;

/// Weft's control plane.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// What to log, as an env-filter: info, debug, weft_operator=trace.
    #[arg(long, env = "WEFT_LOG", default_value = "info", global = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watches the cluster, configures the proxies, signs certificates.
    Run(Box<Settings>),
    /// Asks operator and webhook whether they are ready, until both are. For `helm test`.
    Check(weft_operator::check::Check),
    /// Removes what the operator made at run time; for the clean-up after an uninstall.
    Cleanup(Cleanup),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What kube's watcher warns of is said by ours, in our words.
    let filter = match EnvFilter::try_new(format!("kube_runtime=error,{}", cli.log)) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("WEFT_LOG `{}` cannot be understood: {error}", cli.log);
            return ExitCode::from(64);
        }
    };
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if let Err(unfit) = weft_api::crypto::begin() {
        tracing::error!(error = %unfit, "not started");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = %error, "the runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    let ended = match cli.command {
        Command::Check(check) => runtime.block_on(weft_operator::check::run(&check)),
        Command::Run(settings) => runtime.block_on(weft_operator::run::run(*settings)),
        Command::Cleanup(settings) => runtime.block_on(weft_operator::cleanup::run(settings)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ended by an error");
            ExitCode::FAILURE
        }
    }
}
