//! The tests: those that need only cargo, the checks that compile nothing, the cache algebra and retention on the real
//! builder, then the demo's scenario and what is deployed. `--full` adds what is costly: fuzzing, the functions as they
//! are released, one of them on arm64, the documentation's commands, and more of each random test.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::commands::IsTask;
use crate::{arm64, check, commands, demo, deployed, fuzz, requests, stack, tools};

/// How often the random tests on a builder are done in a run that is not `--full`; otherwise they say themselves.
const FEWER: [(&str, &str); 3] = [("STOKER_AGAIN", "3"), ("STOKER_CASES", "10"), ("STOKER_ROUNDS", "20")];

/// What the tests can be asked.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Args {
    /// Only what needs no tools but cargo: units, properties, scenarios
    #[arg(long)]
    fast: bool,
    /// The costly tests, too: fuzzing, the released functions, arm64, the documentation's commands
    #[arg(long, conflicts_with = "fast")]
    full: bool,
    /// Only the functions for arm64: all of them are built, and run under emulation
    #[arg(long, conflicts_with_all = ["fast", "full"])]
    arm64: bool,
    /// Only what needs a builder: caches, retention and the demo's scenario, with the engine that `docker` reaches
    #[arg(long, conflicts_with_all = ["fast", "arm64"])]
    builder: bool,
}

/// Runs the tests. `is_task` says whether a documented command is one of `cargo xtask`.
pub(crate) fn run(args: &Args, is_task: IsTask) -> anyhow::Result<()> {
    let mut run = Run { started: Instant::now(), stage: None, failed: Vec::new() };
    if args.arm64 {
        run.stage("the functions for arm64");
        arm64::add_target()?;
        return arm64::check(true);
    }
    if !args.builder {
        run.stage("units, properties, scenarios");
        let asked = requests::of_tests()?;
        let status = cargo_test().args(["--workspace", "--quiet"]).env(requests::VARIABLE, &asked).status();
        ensure!(status.context("cannot run cargo")?.success(), "cargo test failed");
        if args.fast {
            println!("LEFT OUT, as --fast asks: all that needs more than cargo");
            return run.end();
        }
        run.stage("what AWS would refuse of what was asked");
        tools::install()?;
        requests::check_validator()?;
        requests::check(&[asked])?;
        run.stage("what Stoker takes for granted of AWS, asked of what stands in for it");
        contracts()?;
        run.stage("what is checked without compiling");
        check::without_compiling()?;
        if args.full {
            run.stage("the parsers, fuzzed for a minute each");
            fuzz::run(&fuzz::Args::a_minute())?;
        }
    }

    run.stage("the cache algebra and retention on a real builder");
    on_a_builder(args.full)?;

    if args.full && !args.builder {
        run.stage("the functions as they are released");
        stack::build_for_release()?;
        deployed::check_binaries()?;
        run.stage("a function for arm64");
        match arm64::add_target() {
            Ok(()) => arm64::check(false)?,
            Err(error) => println!("SKIPPED: a function for arm64 ({error:#})"),
        }
    }

    run.stage("the demo's scenario");
    let wanted = args.builder.then_some(demo::Builder::Docker);
    let (mut stage, report, builder) = demo::stage_and_run(wanted, false)?;
    let deployed =
        if args.builder { Ok(Vec::new()) } else { deployed(&mut stage, args.full, is_task, &mut run) };
    stage.site.setup.stop()?;
    report.print(builder);
    run.failed.extend(report.failed());
    run.failed.extend(deployed?);

    if builder == demo::Builder::Simulated {
        println!(
            "SKIPPED: the scenario on a real builder, as no Docker engine answers that can export a registry cache"
        );
        // Elsewhere that may be so; CI has an engine, and a CI that skips the heart of the matter is broken.
        if env::var_os("CI").is_some() {
            run.failed.push("CI has no Docker engine".to_owned());
        }
    }
    if !args.full && !args.builder {
        println!(
            "LEFT to --full: fuzzing, the functions as they are released, arm64, the documentation's commands"
        );
    }
    run.end()
}

/// The deployed stack after the scenario; answers what did not hold.
fn deployed(
    stage: &mut demo::Stage,
    full: bool,
    is_task: IsTask,
    run: &mut Run,
) -> anyhow::Result<Vec<String>> {
    run.stage("the deployed stack");
    let mut failed = deployed::check(stage)?;
    if full {
        run.stage("the documentation's commands");
        failed.extend(commands::check(stage, is_task)?);
    }
    run.stage("what AWS would refuse of what was asked");
    requests::check(&stage.setup.recorded())?;
    Ok(failed)
}

/// A run: how long it and its stages take, and what did not hold.
struct Run {
    started: Instant,
    stage: Option<Instant>,
    failed: Vec<String>,
}

impl Run {
    fn stage(&mut self, what: &str) {
        if let Some(started) = self.stage.replace(Instant::now()) {
            println!("   {} s", started.elapsed().as_secs());
        }
        println!("== {what}");
    }

    fn end(self) -> anyhow::Result<()> {
        println!("the tests took {} s", self.started.elapsed().as_secs());
        ensure!(self.failed.is_empty(), "{}", self.failed.join("; "));
        Ok(())
    }
}

fn cargo_test() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::paths::root()).arg("test");
    command
}

/// The adapters' contracts, on ministack and on moto, and projects taken into service and out of it.
fn contracts() -> anyhow::Result<()> {
    let mut command = cargo_test();
    tools::without_aws_settings(&mut command)
        // With all packages, as before: what they share is then compiled already.
        .args(["--workspace", "--quiet", "--test", "contract"])
        .env("STOKER_TEST_MINISTACK", tools::world_bin().join("hypercorn"))
        .env("STOKER_TEST_MOTO", tools::world_bin().join("moto_server"));
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "a stand-in for AWS does not keep a contract");
    Ok(())
}

/// Merged and pruned caches against `BuildKit` and registries that others wrote, then builds beside retention.
fn on_a_builder(full: bool) -> anyhow::Result<()> {
    tools::install()?;
    let mut command = cargo_test();
    if !full {
        command.envs(FEWER.into_iter().filter(|(name, _)| env::var_os(name).is_none()));
    }
    tools::without_aws_settings(&mut command)
        // With all packages, as before: what they share is then compiled already.
        .args(["--workspace", "--quiet", "--test", "builder"])
        .env("STOKER_TEST_MINISTACK", tools::world_bin().join("hypercorn"));
    if let Some(program) = docker_registry() {
        command.env("STOKER_TEST_DOCKER_REGISTRY", program);
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "the cache algebra or retention does not hold on a real builder");
    Ok(())
}

/// The registry that Debian packages.
fn docker_registry() -> Option<PathBuf> {
    match tools::debian_program("docker-registry", "docker-registry") {
        Ok(program) => Some(program),
        Err(error) => {
            println!("  no docker-registry: {error:#}");
            None
        }
    }
}
