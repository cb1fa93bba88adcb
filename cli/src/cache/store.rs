//! Writing a cache that was made from others.

use std::collections::BTreeMap;

use buildkit_cache::{Cache, IMPORT_LIMIT, SAFE_SIZE, Serialised};
use stoker_core::names::Digest;

use crate::cache::Amount;
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{self, Held, Remotes};
use crate::text::{count, percent, size};
use crate::transfer::{self, Moved, Plan};

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
    text += &replaced.reported(is_dry);
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
    fn reported(&self, is_dry: bool) -> String {
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
