//! Fuzzing of everything that reads what Stoker did not write.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, ensure};

use crate::{process, tools};

/// The parsers, one target each in `fuzz/fuzz_targets/`.
const TARGETS: [&str; 8] =
    ["config", "manifest", "policy", "tag", "webhook", "event", "dockerfile", "misses"];

/// What fuzzing can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long to run each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// The targets to run; all of them if none is named
    #[arg(value_parser = TARGETS, value_name = "TARGET")]
    targets: Vec<String>,
}

impl Args {
    /// All targets, a minute each.
    pub(crate) fn a_minute() -> Self {
        Self { seconds: 60, targets: Vec::new() }
    }
}

/// Runs the targets, as many at a time as there are processors. What they learn stays under `.stoker/fuzz`.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cargo_fuzz = tools::cargo_fuzz()?;
    let mut build = fuzz(&cargo_fuzz, "build");
    process::run(&mut build, "building the fuzz targets", &log("build"), |_| None)?;

    let targets: Vec<&str> = if args.targets.is_empty() {
        TARGETS.to_vec()
    } else {
        args.targets.iter().map(String::as_str).collect()
    };
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failed = Vec::new();
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = run_target(&cargo_fuzz, target, args.seconds) {
                println!("FAILED  {target}: {error:#}");
                failed.push(*target);
            }
        }
        failed
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<&str> = thread::scope(|scope| {
        let workers: Vec<_> = (0..processors.min(targets.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|_| vec!["a worker"])).collect()
    });
    ensure!(failed.is_empty(), "fuzzing found something in: {}", failed.join(", "));
    Ok(())
}

fn run_target(cargo_fuzz: &Path, target: &str, seconds: u32) -> anyhow::Result<()> {
    let corpus = crate::paths::home().join("fuzz/corpus").join(target);
    let found = crate::paths::home().join("fuzz/found").join(target);
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&found)?;
    let mut command = fuzz(cargo_fuzz, "run");
    command.arg(target).arg(corpus).arg(crate::paths::root().join("fuzz/seeds").join(target)).arg("--").args(
        [
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/", found.display()),
            "-print_final_stats=1".to_owned(),
        ],
    );
    let log = log(target);
    process::run(&mut command, &format!("fuzzing {target}"), &log, |_| None)
        .with_context(|| format!("what it found is in {}", found.display()))?;
    let text = std::fs::read_to_string(&log)?;
    let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    println!("ok      {target}: {} runs in {seconds} s", runs.context("it does not say what it ran")?.trim());
    Ok(())
}

/// `cargo fuzz` without a sanitizer: there is no unsafe code to watch, and so the pinned toolchain will do.
fn fuzz(cargo_fuzz: &Path, verb: &str) -> Command {
    let mut command = Command::new(cargo_fuzz);
    command.current_dir(crate::paths::root()).args([
        "fuzz",
        verb,
        "--fuzz-dir",
        "fuzz",
        "--sanitizer",
        "none",
    ]);
    // This process is run by another cargo, whose settings are not for that one.
    command
        .env("CARGO_TARGET_DIR", crate::paths::root().join("target/fuzz"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

fn log(name: &str) -> PathBuf {
    crate::paths::home().join("logs").join(format!("fuzz-{name}.log"))
}
