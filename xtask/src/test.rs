//! Every test: those that need only cargo, the fuzz targets, the cache algebra and retention on the real builder, then what is deployed,
//! then the story on the real builder.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

use crate::{demo, deployed, fuzz, process, stack, tools};

/// What the tests can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only what needs no tools but cargo: units, properties, stories
    #[arg(long)]
    fast: bool,
}

/// Runs the tests.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    println!("== units, properties, stories");
    let status = cargo_test().args(["--workspace", "--quiet"]).status();
    ensure!(status.context("cannot run cargo")?.success(), "cargo test failed");
    println!("   {} s", begun.elapsed().as_secs());
    if args.fast {
        println!("SKIPPED, as --fast asks: fuzzing, the deployed stack, and all that needs a builder");
        return Ok(());
    }

    println!("== the parsers, fuzzed for a minute each");
    fuzz::run(&fuzz::Args::a_minute())?;

    println!("== the cache algebra and retention on a real builder");
    on_a_builder()?;

    println!("== the built functions");
    stack::build()?;
    deployed::check_binaries()?;

    println!("== the demo's story");
    let (stage, report, builder) = demo::stage_and_tell(None, false)?;
    let deployed = deployed::check(&stage);
    stage.world.stop()?;
    report.print(builder);
    let mut failed = report.failed();
    failed.extend(deployed?);
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
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
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

/// The registry that Debian packages: the one on the `PATH`, or one that is unpacked beside the other tools.
fn docker_registry() -> Option<PathBuf> {
    const PROGRAM: &str = "docker-registry";
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|program| program.is_file());
    installed.or_else(|| match unpack_docker_registry() {
        Ok(program) => Some(program),
        Err(error) => {
            println!("  no docker-registry: {error:#}");
            None
        }
    })
}

fn unpack_docker_registry() -> anyhow::Result<PathBuf> {
    let dir = crate::home().join("docker-registry");
    let program = dir.join("usr/bin/docker-registry");
    if program.is_file() {
        return Ok(program);
    }
    let lists = dir.join("lists");
    std::fs::create_dir_all(lists.join("partial"))?;
    let log = crate::home().join("logs/docker-registry.log");
    let apt = |arguments: &[&str], own_lists: bool| {
        let mut command = Command::new("apt-get");
        command.current_dir(&dir).args(["-q", "-o"]).arg(format!("Dir::Cache={}", dir.display()));
        if own_lists {
            command.arg("-o").arg(format!("Dir::State::Lists={}", lists.display()));
        }
        process::run(command.args(arguments), "downloading docker-registry", &log, |_| None)
    };
    // Where the machine's own lists are missing or old, others are fetched, which needs no rights.
    if apt(&["download", "docker-registry"], false).is_err() {
        apt(&["update"], true)?;
        apt(&["download", "docker-registry"], true)?;
    }
    let package = std::fs::read_dir(&dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    let mut dpkg = Command::new("dpkg");
    process::run(dpkg.arg("-x").arg(package).arg(&dir), "unpacking docker-registry", &log, |_| None)?;
    ensure!(program.is_file(), "the package has no {}", program.display());
    Ok(program)
}
