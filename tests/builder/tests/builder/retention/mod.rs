//! Builds run while retention deletes as hard as a policy lets it, out of a registry that drops a blob the moment that
//! no manifest names it: none fails. Where retention does not know of running builds, one does.

mod run;
mod server;

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

use crate::engine::{Engine, FAILED, could_not_start};
use run::{Figures, Repositories, Script, live};

/// Set for the process that tells.
pub(crate) const INSIDE: &str = "STOKER_TEST_INSIDE";

/// Rounds in all.
pub(crate) const ROUNDS: usize = 50;
/// Every rule that deletes.
const RULES: [&str; 8] = [
    "idle-branch",
    "deleted-line",
    "expired-history",
    "old-commit",
    "abandoned-export",
    "orphan",
    "scope-budget",
    "repository-budget",
];

/// Has another process tell, and prints all that it says but the metrics, which functions print by the hundred.
pub(crate) fn report_outside() -> anyhow::Result<()> {
    let mut command = Command::new(env::current_exe()?);
    let mut process = command.env(INSIDE, "").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    for line in BufReader::new(process.stdout.take().context("no output")?).lines() {
        let line = line?;
        if !line.starts_with("{\"") {
            println!("{line}");
        }
    }
    ensure!(process.wait()?.success(), "a build failed beside retention, or nothing was proven");
    Ok(())
}

/// Which round it was, and what the builder says last: the rest is a log.
fn in_short(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let ends = causes.iter().map(|cause| cause.lines().next_back().unwrap_or_default());
    ends.collect::<Vec<_>>().join(": ")
}

/// Plays one run with one repository and one with two; then shows what leases are for.
pub(crate) fn report(seed: u64, rounds: usize, engine: &Engine, dir: &Path) -> anyhow::Result<()> {
    let mut all = Figures::default();
    let first = rounds.div_ceil(2);
    let runs =
        [(seed, Repositories::One, first), (seed.wrapping_add(1), Repositories::Apart, rounds - first)];
    for (seed, repositories, rounds) in runs {
        let started = Instant::now();
        let live = |seed: u64, name: &str| {
            live(seed, Script::Rounds(rounds), (repositories, true), engine, &dir.join(name))
        };
        let figures = live(seed, "rounds").or_else(|error| {
            if !could_not_start(&error) {
                return Err(error);
            }
            println!("  {repositories:?}: AGAIN, as the engine could not start a container");
            live(seed.wrapping_add(2), "again")
        })?;
        println!("  {repositories:?}: {figures} ({:.1} s)", started.elapsed().as_secs_f32());
        all.add(figures);
    }
    println!("  {all}");
    if rounds >= ROUNDS {
        for rule in RULES {
            ensure!(all.deleted.contains_key(rule), "nothing was deleted by the rule {rule}");
        }
        ensure!(!all.waited.is_empty(), "nothing waited for a build");
        ensure!(all.reused * 4 > all.steps, "hardly a step was reused");
        ensure!(all.merges > 0 && all.rollbacks > 0, "nobody merged, or nobody rolled back");
    }
    let held =
        |sees_builds| live(seed, Script::Held, (Repositories::One, sees_builds), engine, &dir.join("held"));
    let figures = held(true)?;
    ensure!(figures.reused > 0 && figures.read > 0, "nothing was to be lost: {figures}");
    match held(false) {
        Ok(figures) => bail!("no build failed where retention knew of none: {figures}"),
        Err(error) if error.root_cause().to_string().starts_with(FAILED) => {
            println!("  without leases: {}", in_short(&error));
            Ok(())
        }
        Err(error) => Err(error),
    }
}
