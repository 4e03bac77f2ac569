//! weft-proxy: `run` (the data plane in a pod), `--config` (by itself), `check` (a file for it), `init` (redirection rules),
//! and `cni-install` (a plugin that writes them, on a node). Called as `weft-cni` it is that plugin.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_proxy::settings::{EXIT_BAD_CONFIG, Problems, Settings};
use weft_proxy::{cni, init, run, standalone};

#[derive(Parser)]
#[command(name = "weft-proxy", version, about = "The data plane of Weft")]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Serve by itself, without Kubernetes, as this file says.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take the listeners of the process that listens at this unix socket, and then its place. In place of the file's
    /// `restartSocket`.
    #[arg(long, value_name = "SOCKET", requires = "config")]
    takeover: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the pod's traffic. The webhook sets the environment that configures it.
    #[command(after_help = Settings::HELP)]
    Run,
    /// Judge a configuration file without doing anything.
    Check {
        /// The file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Write the rules that redirect the pod's traffic to the proxy, then end.
    Init(init::Args),
    /// Keep the CNI plugin, which writes these rules in place of an init container, on this node.
    CniInstall(cni::install::Args),
}

fn main() -> ExitCode {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if program.file_name().is_some_and(|name| name == cni::PLUGIN) {
        return cni::run();
    }
    let cli = Cli::parse();
    if let Err(unfit) = weft_api::crypto::begin() {
        eprintln!("weft-proxy: {unfit}");
        return ExitCode::FAILURE;
    }
    let result = match cli.command {
        Some(Command::Run) => match Settings::from_env() {
            Ok(settings) => run::run(settings),
            Err(problems) => return bad_config(&problems),
        },
        Some(Command::Check { config }) => return check(&config),
        Some(Command::Init(args)) => init::run(&args),
        Some(Command::CniInstall(args)) => cni::install::run(&args),
        None => standalone::run(&cli.config.unwrap_or_default(), cli.takeover.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Problems>() {
            Some(problems) => bad_config(problems),
            None => {
                eprintln!("weft-proxy: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn check(config: &Path) -> ExitCode {
    match standalone::check(config) {
        Ok(()) => {
            println!("{} is good", config.display());
            ExitCode::SUCCESS
        }
        Err(problems) => bad_config(&problems),
    }
}

fn bad_config(problems: &Problems) -> ExitCode {
    for problem in &problems.0 {
        eprintln!("weft-proxy: {problem}");
    }
    ExitCode::from(EXIT_BAD_CONFIG)
}
