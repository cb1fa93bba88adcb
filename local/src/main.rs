//! `stoker-local`: the local stand-ins, and the simulated `docker` of its builds.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stoker_local::serve::{Local, Options, ServeError};
use stoker_local::{chain, simulated};
use tokio::signal::unix::{SignalKind, signal};

/// What Stoker needs of AWS and no emulator has: builds that run, and events about them.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the CodeBuild API, run builds, and emit AWS's own events
    Serve(Options),
    /// The simulated docker
    #[command(disable_help_flag = true)]
    Docker {
        /// The arguments of docker
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    match Cli::parse().command {
        Command::Docker { arguments } => simulated::docker(&arguments).await,
        Command::Serve(options) => match serve(options).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = chain(&error), "the local setup cannot start");
                ExitCode::FAILURE
            }
        },
    }
}

async fn serve(options: Options) -> Result<(), ServeError> {
    let local = Local::start(options).await?;
    tracing::info!(address = %local.address(), "ready");
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("ending");
    local.stop().await;
    Ok(())
}
