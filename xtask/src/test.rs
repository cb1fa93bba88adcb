//! Every test: those that need only cargo, then what is deployed, then the story on the real builder.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

use crate::{demo, deployed, stack};

/// What the tests can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only what needs neither a deployed stack nor a builder
    #[arg(long)]
    fast: bool,
}

/// Runs the tests.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    println!("== units, properties, stories");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status =
        Command::new(cargo).current_dir(crate::root()).args(["test", "--workspace", "--quiet"]).status();
    ensure!(status.context("cannot run cargo")?.success(), "cargo test failed");
    println!("   {} s", begun.elapsed().as_secs());
    if args.fast {
        println!("SKIPPED, as --fast asks: the deployed stack, and the story on a builder");
        return Ok(());
    }

    println!("== the built functions");
    stack::build()?;
    deployed::check_binaries()?;

    println!("== the demo's story");
    let (stage, report, builder) = demo::stage_and_tell(None)?;
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
        if std::env::var_os("CI").is_some() {
            failed.push("CI has no Docker engine".to_owned());
        }
    }
    println!("all tests took {} s", begun.elapsed().as_secs());
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}
