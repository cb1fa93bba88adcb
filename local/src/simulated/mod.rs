//! A builder for machines without Docker. It understands a small part of the `docker` command line, runs
//! nothing but the `sleep`s of a Dockerfile, and imports and exports valid `BuildKit` caches, so that
//! everything around it works as with the real one. Which steps a build needs, and which it finds,
//! `dockerfile-keys` says.

mod cache;
mod command;
mod graph;
mod log;
mod mount;
mod registry;
mod solve;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use crate::chain;
use command::Command;
pub use log::Output;

/// Bytes of the longest file for bake that is read.
const MAX_BAKE: u64 = 1 << 20;

/// Runs a `docker` command line in the working directory. Its progress goes to standard error, as `docker`'s does.
pub async fn docker(arguments: &[String]) -> ExitCode {
    let directory = std::env::current_dir().unwrap_or_else(|_| ".".into());
    if docker_in(arguments, &directory, Output::new(std::io::stderr())).await {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a `docker` command line in a directory; whether it succeeded.
pub async fn docker_in(arguments: &[String], directory: &Path, output: Output) -> bool {
    let command = match Command::parse(arguments) {
        Ok(command) => command,
        Err(error) => {
            output.say(&format!("ERROR: simulated docker: {}", chain(&error)));
            return false;
        }
    };
    match command {
        Command::Say(text) => writeln!(std::io::stdout(), "{text}").is_ok(),
        Command::Login => {
            // A password that nobody reads would break the pipe of the one who writes it.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            writeln!(std::io::stdout(), "Login Succeeded (simulated)").is_ok()
        }
        Command::Bake => {
            let mut file = Vec::new();
            let read = std::io::stdin().take(MAX_BAKE).read_to_end(&mut file);
            let baked = match read {
                Ok(_) => mount::bake(&file, &output).await.map_err(|error| chain(&error)),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = &baked {
                output.say(&format!("------\nERROR: failed to solve: {why}"));
            }
            baked.is_ok()
        }
        Command::Build(build) => match solve::build(&build, directory, &output).await {
            Ok(()) => true,
            Err(error) => {
                output.say(&format!("------\nERROR: failed to solve: {}", chain(&error)));
                false
            }
        },
    }
}
