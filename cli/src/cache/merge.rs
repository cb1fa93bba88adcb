//! `stoker cache merge`: one cache that serves whatever any of several serves.

use std::collections::{BTreeMap, BTreeSet};

use buildkit_cache::{Cache, IMPORT_LIMIT, SAFE_SIZE, Serialised};
use stoker_core::names::Digest;

use crate::CommandOutcome;
use crate::cache::prune::to_budget;
use crate::cache::{Amount, ROWS};
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{self, Held, Remotes, read_all};
use crate::text::{count, parse_size, percent, size};
use crate::transfer::{self, Moved, Plan};

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

/// A cache is written under a tag, and under no tag by mistake.
pub(crate) fn must_be_tag(into: &Reference) -> Result<(), Problem> {
    if into.tag().is_some() {
        return Ok(());
    }
    let why = format!("cannot write {into}: a digest names what is there already");
    Err(Problem::usage(why, "give --into a tag, such as registry.example/app/cache:main"))
}

/// Writes a cache that was made from `sources`, or says what that would do.
pub(crate) async fn store(
    remotes: &Remotes,
    into: &Reference,
    cache: &Cache,
    sources: &[Held],
    is_dry: bool,
) -> Result<String, Problem> {
    let serialised = cache.serialise(BTreeMap::new());
    must_be_importable(&serialised)?;
    let replaced = replaced(remotes, into, cache, &serialised.manifest_digest).await?;
    if replaced == Replaced::Same {
        let digest = &serialised.manifest_digest;
        return Ok(format!("{into} is this cache already ({digest}): nothing to write\n"));
    }
    let plan = transfer::plan(remotes, into, cache, sources).await?;
    let mut text = if is_dry {
        format!("would write {into}\n{}", moves_to_come(&plan))
    } else {
        let moved = transfer::carry_out(remotes, into, &plan).await?;
        remote::write(remotes, into, &serialised).await?;
        format!("wrote {into}\n{}", moves_done(&plan, &moved))
    };
    text += &what_was_written(cache, &serialised);
    text += &replaced.told(is_dry);
    Ok(text)
}

fn must_be_importable(serialised: &Serialised) -> Result<(), Problem> {
    if serialised.size() <= IMPORT_LIMIT {
        return Ok(());
    }
    let bytes = size(serialised.size() as u64);
    let limit = size(IMPORT_LIMIT as u64);
    Err(Problem::no(
        format!("the cache would have a config or manifest of {bytes}, and BuildKit imports at most {limit}"),
        "merge fewer caches, or let the least recently used steps go with --budget SIZE",
    ))
}

/// What the tag holds before it is written.
#[derive(Debug, PartialEq, Eq)]
enum Replaced {
    Nothing,
    Same,
    Unreadable,
    /// A cache of this digest, of whose steps the new one lacks some.
    Cache {
        digest: Digest,
        lost: Amount,
    },
}

impl Replaced {
    fn told(&self, is_dry: bool) -> String {
        let verb = if is_dry { "would replace" } else { "replaced" };
        match self {
            Self::Nothing | Self::Same => String::new(),
            Self::Unreadable => format!("  {verb} a cache that BuildKit could not import\n"),
            Self::Cache { digest, lost: Amount { steps: 0, .. } } => {
                format!("  {verb} {digest}, every step of which it has\n")
            }
            Self::Cache { digest, lost: Amount { steps, bytes } } => {
                format!("  {verb} {digest}, and lacks {} of it ({})\n", count(*steps, "step"), size(*bytes))
            }
        }
    }
}

async fn replaced(
    remotes: &Remotes,
    into: &Reference,
    cache: &Cache,
    digest: &Digest,
) -> Result<Replaced, Problem> {
    let Some(found) = remote::find(remotes, into).await? else { return Ok(Replaced::Nothing) };
    if found.digest == *digest {
        return Ok(Replaced::Same);
    }
    let old_digest = found.digest.clone();
    if remote::manifest_of(&found).is_err() {
        return Err(Problem::no(
            format!("{into} holds something that is not a cache, perhaps an image that somebody runs"),
            "choose another tag, or delete that one first",
        ));
    }
    match remote::open(remotes, found).await {
        Ok(held) => {
            let lost = Amount::of(&held.cache.diff(cache).ours.steps);
            Ok(Replaced::Cache { digest: old_digest, lost })
        }
        Err(problem) if problem.is_no() => Ok(Replaced::Unreadable),
        Err(problem) => Err(problem),
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

fn what_was_written(cache: &Cache, serialised: &Serialised) -> String {
    let limit = IMPORT_LIMIT as u64;
    let warning = if serialised.size() > SAFE_SIZE { ": near, keep it smaller with --budget" } else { "" };
    format!(
        "  digest {}\n  {}, {} in {}\n  config {}, manifest {}: {} of BuildKit's import limit{warning}\n",
        serialised.manifest_digest,
        count(cache.steps().len(), "step"),
        size(cache.blob_bytes()),
        count(cache.blobs().len(), "blob"),
        size(serialised.config.len() as u64),
        size(serialised.manifest.len() as u64),
        percent(serialised.size() as u64, limit),
    )
}

fn moves_to_come(plan: &Plan) -> String {
    let mut text = format!("  {} in place\n", count(plan.present, "blob"));
    if !plan.mount.is_empty() {
        let bytes = size(transfer::bytes_of(&plan.mount));
        text += &format!(
            "  {} to mount ({bytes}; to copy, if the registry does not mount)\n",
            count(plan.mount.len(), "blob")
        );
    }
    if !plan.copy.is_empty() {
        text += &format!(
            "  {} to copy ({})\n",
            count(plan.copy.len(), "blob"),
            size(transfer::bytes_of(&plan.copy))
        );
    }
    text
}

fn moves_done(plan: &Plan, moved: &Moved) -> String {
    let mut text = format!("  {} in place", count(plan.present, "blob"));
    if moved.mounted > 0 {
        text += &format!(", {} mounted", moved.mounted);
    }
    if moved.copied > 0 {
        text += &format!(", {} copied ({})", moved.copied, size(moved.copied_bytes));
    }
    text.push('\n');
    if moved.refused > 0 {
        text += &format!(
            "  the registry did not mount {}, so their bytes were copied\n",
            count(moved.refused, "blob")
        );
    }
    text
}
