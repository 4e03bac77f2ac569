//! weft-proxy: `run` (the data plane) and `init` (redirection rules).

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_proxy::settings::{EXIT_BAD_CONFIG, Settings};
use weft_proxy::{init, run};

#[derive(Parser)]
#[command(name = "weft-proxy", version, about = "The data plane of Weft")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the pod's traffic. The webhook sets the environment that configures it.
    #[command(after_help = Settings::HELP)]
    Run,
    /// Write the rules that redirect the pod's traffic to the proxy, then end.
    Init(init::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run => match Settings::from_env() {
            Ok(settings) => run::run(settings),
            Err(problems) => {
                for problem in &problems.0 {
                    eprintln!("weft-proxy: {problem}");
                }
                return ExitCode::from(EXIT_BAD_CONFIG);
            }
        },
        Command::Init(args) => init::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
