//! `stoker cache merge`: one cache that serves whatever any of several serves.

use std::collections::BTreeSet;

use buildkit_cache::Cache;
use stoker_core::names::Digest;

use crate::cache::ROWS;
use crate::cache::prune::to_budget;
use crate::cache::store::{must_be_tag, store};
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{Held, Remotes, read_all};
use crate::text::{count, parse_size, size};

/// Merges caches into one that serves every build that any of them serves
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  C=registry.example/app/cache
  stoker cache merge $C:main $C:feature-a --into $C:main
  stoker cache merge $C:a $C:b --into $C:both --dry-run
  stoker cache merge $C:a $C:b --into $C:both --budget 5GB

  # Make one cache whole for BuildKit 0.25 and newer: `stoker cache verify` says whether it is
  stoker cache merge $C:main --into $C:main

  # Into Amazon ECR, from another registry
  E=123456789012.dkr.ecr.eu-west-1.amazonaws.com/app/cache
  stoker cache merge $C:main $E:main --into $E:main

Within one repository nothing moves but a config and a manifest of some kilobytes. From other repositories of the \
same registry layers are mounted; where it does not mount, and from other registries, they are copied.

The same caches make the same digest, in whatever order. A tag that holds an image is never overwritten.")]
pub(crate) struct Args {
    /// The caches to merge
    #[arg(required = true, num_args = 1.., value_name = "REF")]
    references: Vec<Reference>,
    /// The tag to write; it may be one of those that are merged
    #[arg(long, value_name = "REF")]
    into: Reference,
    /// Prune what was merged to this size, such as 5GB: see `stoker cache prune --help`
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    budget: Option<u64>,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let remotes = Remotes::default();
    must_be_tag(&args.into)?;
    let sources = read_all(&remotes, &args.references).await?;
    let noted: Vec<Cache> = sources.iter().map(|held| with_use_noted(&held.cache)).collect();
    let mut cache = Cache::merge(&noted);
    let mut text = what_was_read(&sources, &cache);
    if args.budget.is_some() {
        let (pruned, what_goes) = to_budget(&cache, args.budget, ROWS)?;
        cache = pruned;
        text += &what_goes;
    }
    text += &store(&remotes, &args.into, &cache, &sources, args.dry_run).await?;
    Ok(CommandOutcome::yes(text))
}

/// BuildKit notes in no export when its steps were used: the build that exported it used them all, and when its newest
/// step was made it ran. So pruning knows later what is still of use.
fn with_use_noted(cache: &Cache) -> Cache {
    let is_noted = cache.steps().values().any(|step| step.used_at.is_some());
    match cache.newest().filter(|_| !is_noted) {
        Some(newest) => cache.used_at(newest),
        None => cache.clone(),
    }
}

fn what_was_read(sources: &[Held], cache: &Cache) -> String {
    let all: Vec<_> = sources.iter().map(|held| held.cache.steps()).collect();
    let mut text = String::new();
    for (place, (held, steps)) in sources.iter().zip(&all).enumerate() {
        let others = all.iter().enumerate().filter(|(other, _)| *other != place);
        let elsewhere: BTreeSet<&Digest> = others.flat_map(|(_, other)| other.keys()).collect();
        let own = steps.keys().filter(|step| !elsewhere.contains(step)).count();
        let steps = count(steps.len(), "step");
        text += &format!("read {}: {steps}, {own} of them only here\n", held.reference);
    }
    text + &format!("together {}, {}\n", count(cache.steps().len(), "step"), size(cache.blob_bytes()))
}
