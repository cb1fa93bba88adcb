//! What can be checked without a running stack.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::{guard, process, tools};

/// What cargo-deny and cargo-audit say when the network keeps them from their database.
const NO_DATABASE: &str = "fetch advisory database";

/// What `check` can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail when the database of security advisories is out of reach, rather than skip it
    #[arg(long)]
    require_advisories: bool,
}

/// What has been checked.
struct Checks {
    failed: Vec<&'static str>,
}

impl Checks {
    fn note(&mut self, what: &'static str, outcome: anyhow::Result<()>) {
        match outcome {
            Ok(()) => println!("ok      {what}"),
            Err(error) => {
                println!("FAILED  {what}: {error:#}");
                self.failed.push(what);
            }
        }
    }

    fn end(self) -> anyhow::Result<()> {
        ensure!(self.failed.is_empty(), "{} did not pass", self.failed.join(", "));
        Ok(())
    }
}

/// Makes all checks, also after one has failed.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut checks = Checks { failed: Vec::new() };
    let clippy = cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    checks.note("lints", step(clippy, "clippy"));
    all_but_lints(&mut checks, args.require_advisories)?;
    checks.end()
}

/// Makes the checks that do not compile the project, also after one has failed.
pub(crate) fn without_compiling() -> anyhow::Result<()> {
    let mut checks = Checks { failed: Vec::new() };
    all_but_lints(&mut checks, false)?;
    checks.end()
}

fn all_but_lints(checks: &mut Checks, require_advisories: bool) -> anyhow::Result<()> {
    tools::install()?;
    let bin = tools::install_for_check()?;
    checks.note("formatting", step(cargo(&["fmt", "--all", "--check"]), "format"));

    let mut validate = tools::sam()?;
    validate.args(["validate", "--template-file", "template.yaml"]);
    checks.note("template.yaml: SAM", step(validate, "template"));
    let mut lint = tools::cfn_lint()?;
    lint.args(["--non-zero-exit-code", "informational"]);
    checks.note("template.yaml: cfn-lint", step(lint, "cfn-lint"));
    checks.note("template.yaml: the rules in guard/", guard::check());
    let mut checkov = Command::new(bin.join("checkov"));
    checkov.args(["--config-file", ".checkov.yaml", "--quiet"]);
    checks.note("template.yaml: checkov", step(checkov, "checkov"));
    let policy = crate::paths::root().join("policy/stoker.yaml");
    checks.note(
        "policy/stoker.yaml",
        stoker_core::policy::Policy::load(&policy).map(drop).map_err(anyhow::Error::from),
    );
    let mut zizmor = Command::new(bin.join("zizmor"));
    zizmor.args(["--offline", "--no-progress", "--strict-collection", ".github"]);
    checks.note("workflows: zizmor", step(zizmor, "zizmor"));

    let mut deny = in_root(&bin, "cargo-deny");
    deny.args(["check", "bans", "licenses", "sources"]);
    checks.note("licences, bans and sources", step(deny, "deny"));
    let mut deny = in_root(&bin, "cargo-deny");
    deny.args(["check", "advisories"]);
    let mut audit = in_root(&bin, "cargo-audit");
    audit.arg("audit");
    for (what, command) in
        [("security advisories: cargo-deny", deny), ("security advisories: cargo-audit", audit)]
    {
        match advisories(command, require_advisories) {
            Ok(true) => checks.note(what, Ok(())),
            Ok(false) => {
                println!("SKIPPED {what}: its database is out of reach, and NOTHING is known of holes.");
                println!("        Check again where the network reaches github.com.");
            }
            Err(error) => checks.note(what, Err(error)),
        }
    }
    Ok(())
}

fn step(mut command: Command, name: &str) -> anyhow::Result<()> {
    let log = crate::paths::home().join("logs").join(format!("check-{name}.log"));
    process::run(command.current_dir(crate::paths::root()), &format!("checking ({name})"), &log, |_| None)
}

/// Whether the advisories could be asked, where that is not required.
fn advisories(mut command: Command, required: bool) -> anyhow::Result<bool> {
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(true);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains(NO_DATABASE) && !required {
        return Ok(false);
    }
    bail!("{}{}", String::from_utf8_lossy(&output.stdout), text.trim_end())
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

fn in_root(bin: &Path, program: &str) -> Command {
    let mut command = Command::new(bin.join(program));
    command.current_dir(crate::paths::root());
    command
}
