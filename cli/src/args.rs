//! The command line.

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::cache::{diff, inspect, merge, prune, verify};
use crate::lines::{history, list, rollback};
use crate::report;
use crate::retain::{apply, check, explain, plan_command};
use crate::{doctor, forecast, onboard, redrive, simulate, trace, why};

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or the answer is yes
  1  the answer is no: not sound, not the same, not a cache, it does not fit, there is nothing to roll back to, not
     everything was deleted or sent back, nobody knows the commit, or something is wrong with the account
  2  the command line is wrong, names something that is not there, or an event or policy cannot be read
  3  a registry or a network call failed

A REF is written as Docker writes it: registry.example/app/cache:main, or ...@sha256:...
A REPOSITORY is the same without tag and digest: registry.example/app/cache
Credentials: Docker's (`docker login`, credential helpers), the AWS SDK's for Amazon ECR, none on loopback.";

/// Tools for the layer caches that BuildKit keeps in registries.
#[derive(Debug, Parser)]
#[command(name = "stoker", version, propagate_version = false, disable_help_subcommand = true)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Looks at, merges, prunes, compares and checks registry caches
    #[command(subcommand, after_help = EXIT_CODES)]
    Cache(CacheCommand),
    Lines(list::Args),
    History(history::Args),
    Rollback(rollback::Args),
    Simulate(simulate::Args),
    /// Looks at the policy
    #[command(subcommand, after_help = EXIT_CODES)]
    Policy(PolicyCommand),
    Plan(plan_command::Args),
    Apply(apply::Args),
    Explain(explain::Args),
    Report(report::Args),
    Forecast(forecast::Args),
    /// Takes projects of CodeBuild into service, and out of it
    #[command(subcommand, after_help = EXIT_CODES)]
    Onboard(onboard::Command),
    Doctor(doctor::Args),
    Trace(trace::Args),
    Why(Box<why::Args>),
    Redrive(redrive::Args),
    /// Prints a script that completes stoker's command lines
    #[command(
        after_help = "Example:\n  stoker completions bash > ~/.local/share/bash-completion/completions/stoker"
    )]
    Completions {
        /// The shell to complete in
        shell: Shell,
    },
}

/// `docker buildx build --cache-to type=registry,ref=REF,mode=max` writes a cache; these read it, without Docker.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    Inspect(inspect::Args),
    Merge(merge::Args),
    Prune(prune::Args),
    Diff(diff::Args),
    Verify(verify::Args),
}

/// The document that says which projects Stoker serves.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    Check(check::Args),
}
