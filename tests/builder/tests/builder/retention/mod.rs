//! Builds run while retention deletes as hard as a policy lets it, out of a registry that drops a blob the moment that no
//! manifest names it: none fails. Where retention does not know of running builds, one does.

mod life;
mod server;

use std::path::Path;
use std::time::Instant;

use anyhow::{bail, ensure};

use crate::engine::Engine;
use life::{Figures, Repositories, live};

/// Rounds in all.
pub(crate) const ROUNDS: usize = 50;
/// So many rounds without leases take a cache from a build, or the test proves nothing.
const BLIND_ROUNDS: usize = 15;

/// Every rule that deletes.
const RULES: [&str; 8] = [
    "idle-branch",
    "gone",
    "expired-history",
    "old-commit",
    "abandoned-export",
    "orphan",
    "scope-budget",
    "repository-budget",
];

/// Lives one life with one repository and one with two, and the beginning of one without leases.
pub(crate) fn tell(seed: u64, rounds: usize, engine: &Engine, dir: &Path) -> anyhow::Result<()> {
    let mut all = Figures::default();
    let first = rounds.div_ceil(2);
    for (repositories, rounds) in [(Repositories::One, first), (Repositories::Apart, rounds - first)] {
        let begun = Instant::now();
        let figures = live(seed, rounds, (repositories, true), engine, &dir.join("rounds"))?;
        println!("  {repositories:?}: {figures} ({:.1} s)", begun.elapsed().as_secs_f32());
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
    match live(seed, BLIND_ROUNDS, (Repositories::One, false), engine, &dir.join("blind")) {
        Ok(figures) => bail!("no build failed where retention knew of none: {figures}"),
        Err(error) => println!("  without leases: {error:#}"),
    }
    Ok(())
}
