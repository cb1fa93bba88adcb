//! Every test: those that need only cargo, the checks that compile nothing, the fuzz targets, the cache algebra and retention on the real
//! builder, then what is deployed, then the story on the real builder, and lives in a storm.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::{arm64, check, commands, demo, deployed, fuzz, stack, storm, tools};

/// What the tests can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only what needs no tools but cargo: units, properties, stories
    #[arg(long)]
    fast: bool,
    /// Only the functions for arm64: all of them are built, and run under emulation
    #[arg(long, conflicts_with = "fast")]
    arm64: bool,
    /// Only what needs a builder: caches, retention and the demo's story, with the engine that `docker` reaches
    #[arg(long, conflicts_with_all = ["fast", "arm64"])]
    builder: bool,
}

/// Runs the tests.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    if args.arm64 {
        println!("== the functions for arm64");
        arm64::add_target()?;
        return arm64::check(true);
    }
    if args.builder {
        println!("== the cache algebra and retention on a real builder");
        on_a_builder()?;
        println!("== the demo's story");
        let (stage, report, builder) = demo::stage_and_tell(Some(demo::Builder::Docker), false)?;
        stage.site.world.stop()?;
        report.print(builder);
        println!("the tests with a builder took {} s", begun.elapsed().as_secs());
        return ended(&report.failed());
    }
    println!("== units, properties, stories");
    let status = cargo_test().args(["--workspace", "--quiet"]).status();
    ensure!(status.context("cannot run cargo")?.success(), "cargo test failed");
    println!("   {} s", begun.elapsed().as_secs());
    if args.fast {
        println!(
            "SKIPPED, as --fast asks: checks, fuzzing, the deployed stack, arm64, and what needs a builder"
        );
        return Ok(());
    }

    println!("== what is checked without compiling");
    check::without_compiling()?;

    println!("== the parsers, fuzzed for a minute each");
    fuzz::run(&fuzz::Args::a_minute())?;

    println!("== the cache algebra and retention on a real builder");
    on_a_builder()?;

    println!("== the built functions");
    stack::build()?;
    deployed::check_binaries()?;

    println!("== a function for arm64");
    match arm64::add_target() {
        Ok(()) => arm64::check(false)?,
        Err(error) => println!("SKIPPED: a function for arm64 ({error:#})"),
    }

    println!("== the demo's story");
    let (mut stage, report, builder) = demo::stage_and_tell(None, false)?;
    let deployed = deployed::check(&stage).and_then(|mut failed| {
        failed.extend(commands::check(&mut stage)?);
        Ok(failed)
    });
    stage.site.world.stop()?;
    report.print(builder);
    let mut failed = report.failed();
    failed.extend(deployed?);

    println!("== a few lives in a storm");
    failed.extend(storm::check()?);
    if builder == demo::Builder::Simulated {
        println!(
            "SKIPPED: the story on a real builder, as no Docker engine answers that can export a registry cache"
        );
        // Elsewhere that may be so; CI has an engine, and a CI that skips the heart of the matter is broken.
        if env::var_os("CI").is_some() {
            failed.push("CI has no Docker engine".to_owned());
        }
    }
    println!("all tests took {} s", begun.elapsed().as_secs());
    ended(&failed)
}

fn ended(failed: &[String]) -> anyhow::Result<()> {
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn cargo_test() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root()).arg("test");
    command
}

/// Merged and pruned caches against `BuildKit` and registries that others wrote, then builds beside retention.
fn on_a_builder() -> anyhow::Result<()> {
    tools::install()?;
    let mut command = cargo_test();
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
