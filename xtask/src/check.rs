//! What can be checked without a running stack.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{process, tools};

/// What cargo-deny says when the network keeps it from its database.
const NO_DATABASE: &str = "failed to fetch advisory database";

/// What `check` can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail when the database of security advisories is out of reach, rather than skip it
    #[arg(long)]
    require_advisories: bool,
}

/// Makes all checks, also after one has failed.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    tools::install()?;
    let bin = tools::install_for_check()?;

    let mut failed = Vec::new();
    let mut check = |what: &'static str, outcome: anyhow::Result<()>| {
        match &outcome {
            Ok(()) => println!("ok      {what}"),
            Err(error) => println!("FAILED  {what}: {error:#}"),
        }
        failed.extend(outcome.err().map(|_| what));
    };
    check("formatting", step(cargo(&["fmt", "--all", "--check"]), "format"));
    check(
        "lints",
        step(
            cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
            "clippy",
        ),
    );
    let mut validate = tools::sam()?;
    validate.args(["validate", "--lint", "--template-file", "template.yaml"]);
    check("template.yaml", step(validate, "template"));
    let policy = crate::root().join("policy/stoker.yaml");
    check("policy/stoker.yaml", stoker::policy::Policy::load(&policy).map(drop).map_err(anyhow::Error::from));
    check("licences, bans and sources", step(deny(&bin, &["bans", "licenses", "sources"]), "deny"));
    match advisories(&bin, args.require_advisories) {
        Ok(true) => check("security advisories", Ok(())),
        Ok(false) => {
            println!(
                "SKIPPED security advisories: their database is out of reach, so NOTHING is known of holes in"
            );
            println!("        dependencies. Check again where the network reaches github.com.");
        }
        Err(error) => check("security advisories", Err(error)),
    }
    if !failed.is_empty() {
        bail!("{} did not pass", failed.join(", "));
    }
    Ok(())
}

fn step(mut command: Command, name: &str) -> anyhow::Result<()> {
    let log = crate::home().join("logs").join(format!("check-{name}.log"));
    process::run(command.current_dir(crate::root()), &format!("checking ({name})"), &log, |_| None)
}

/// Whether the advisories could be asked, where that is not required.
fn advisories(bin: &Path, required: bool) -> anyhow::Result<bool> {
    let output = deny(bin, &["advisories"]).output().context("cannot run cargo-deny")?;
    if output.status.success() {
        return Ok(true);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains(NO_DATABASE) && !required {
        return Ok(false);
    }
    bail!("{}", text.trim_end())
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

fn deny(bin: &Path, checks: &[&str]) -> Command {
    let mut command = Command::new(bin.join("cargo-deny"));
    command.current_dir(crate::root()).arg("check").args(checks);
    command
}
