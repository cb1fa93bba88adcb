//! Builds that were done before, done again and again on a builder that knows nothing: none may run a step more. What
//! a builder loses of a cache at random shows here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;

use crate::engine::{Built, Engine, Options, could_not_start};
use crate::registry::Registry;

/// How often the builder is made anew, and each group builds once.
pub(crate) const ROUNDS: usize = 10;

/// Builds of which each could serve the other steps, so only one is done on a builder.
pub(crate) struct Group<'a> {
    /// In every step of these builds, and in no other.
    pub(crate) token: String,
    /// The blobs that are theirs alone.
    pub(crate) blobs: BTreeSet<String>,
    pub(crate) registry: &'a Registry,
    pub(crate) builds: Vec<Again>,
}

/// A build from one cache, and what has to come of it.
pub(crate) struct Again {
    pub(crate) what: String,
    pub(crate) context: PathBuf,
    pub(crate) platforms: Option<&'static str>,
    /// The cache.
    pub(crate) tag: String,
    /// The instructions that run; all others are in the cache.
    pub(crate) ran: BTreeSet<String>,
    /// What it makes, where that is not plain from the instructions.
    pub(crate) files: BTreeMap<String, String>,
}

/// The instructions that a build ran.
pub(crate) fn ran(built: &Built) -> BTreeSet<String> {
    let instruction =
        |step: &String| step.split_once("] ").map_or(step.as_str(), |(_, rest)| rest).to_owned();
    built.steps.ran.iter().map(instruction).collect()
}

impl Again {
    fn build(&self, registry: &Registry) -> anyhow::Result<()> {
        let imports = [registry.reference(&self.tag)];
        let options = Options { imports: &imports, platforms: self.platforms, ..Options::default() };
        let built = Engine::build(&self.context, &options)?;
        ensure!(built.imported_all(), "the cache was not imported:\n{}", built.log);
        let ran = ran(&built);
        ensure!(ran == self.ran, "{ran:#?} ran instead of {:#?}:\n{}", self.ran, built.log);
        ensure!(built.files == self.files, "it made other files:\n{}", built.log);
        Ok(())
    }
}

/// Does the builds of each group one after the other, each on a builder that has nothing of the group; true if all came
/// out as before.
pub(crate) fn build_again(engine: &Engine, groups: &[Group<'_>], rounds: usize) -> anyhow::Result<bool> {
    if !engine.renews() {
        println!(
            "  the builder keeps the keys of what is removed from it: nobody said how to have a new one"
        );
    }
    let tokens: Vec<&str> = groups.iter().map(|group| group.token.as_str()).collect();
    let blobs: BTreeSet<String> = groups.iter().flat_map(|group| &group.blobs).cloned().collect();
    let (started, mut failed) = (Instant::now(), 0_usize);
    for round in 0..rounds {
        engine.renew(&tokens, &blobs)?;
        // One after the other: builds that run at a time share what they know of steps that both have, and
        // BuildKit 0.25 then loses the cache of one of them at times.
        for group in groups {
            let Some(again) = group.builds.get(round % group.builds.len().max(1)) else { continue };
            let build = || again.build(group.registry);
            let built = build().or_else(|error| {
                if !could_not_start(&error) {
                    return Err(error);
                }
                println!("  {}: AGAIN, as the engine could not start a container", again.what);
                build()
            });
            if let Err(error) = built {
                failed += 1;
                println!("  round {round}, {} {}: FAILED: {error:#}", group.token, again.what);
            }
        }
    }
    engine.renew(&tokens, &blobs)?;
    println!(
        "  {} builds from one cache each, on {rounds} builders: {failed} were not as before ({:.0} s)",
        groups.len() * rounds,
        started.elapsed().as_secs_f32()
    );
    Ok(failed == 0)
}
