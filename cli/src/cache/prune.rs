//! `stoker cache prune`: a cache lets go of what no build has used for longest.

use std::collections::BTreeMap;

use buildkit_cache::{Cache, Limits, Pruned};
use jiff::Timestamp;

use crate::cache::store::{must_be_tag, store};
use crate::cache::{Amount, ROWS};
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{Remotes, read_all};
use crate::text::{Align, ago, count, parse_size, size, table};

/// Shrinks a cache to a budget: the steps that no build has used for longest go first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker cache prune registry.example/app/cache:main --budget 5GB --dry-run
  stoker cache prune registry.example/app/cache:main --budget 5GB
  stoker cache prune registry.example/app/cache:main --into registry.example/app/cache:small --budget 500MB

Without --budget a cache is pruned to what BuildKit imports, and no further. When a build last used a step \
is noted by `stoker cache merge` and by Stoker; where it is not, the time counts at which the step was made.

Pruning writes a smaller cache and deletes no layer: the registry's garbage collection or lifecycle policy does, once \
nothing else needs it.")]
pub(crate) struct Args {
    /// The cache
    #[arg(value_name = "REF")]
    reference: Reference,
    /// The size to keep to, layers below steps included, such as 5GB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    budget: Option<u64>,
    /// The tag to write, where it is not the one that was read
    #[arg(long, value_name = "REF")]
    into: Option<Reference>,
    /// Say what would go, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// List every step that goes, not only the largest
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let remotes = Remotes::default();
    let into = args.into.as_ref().unwrap_or(&args.reference);
    must_be_tag(into)?;
    let sources = read_all(&remotes, std::slice::from_ref(&args.reference)).await?;
    let whole = Cache::merge(sources.iter().map(|held| &held.cache));
    let rows = if args.all { usize::MAX } else { ROWS };
    let (cache, mut text) = to_budget(&whole, args.budget, rows)?;
    if cache == whole && *into == args.reference {
        return Ok(CommandOutcome::yes(text + "nothing to write\n"));
    }
    text += &store(&remotes, into, &cache, &sources, args.dry_run).await?;
    Ok(CommandOutcome::yes(text))
}

/// What is left of a cache within a budget and BuildKit's limits, and what is to be said of that.
pub(crate) fn to_budget(cache: &Cache, budget: Option<u64>, rows: usize) -> Result<(Cache, String), Problem> {
    let pruned = cache.prune(&Limits { bytes: budget, ..Limits::default() });
    if pruned.cache.steps().is_empty() && !cache.steps().is_empty() {
        let limit = budget.map_or_else(|| "BuildKit's import limit".to_owned(), size);
        let smallest = format!("not one step fits into {limit}");
        return Err(Problem::no(
            smallest,
            "give a larger --budget; layers of base images below a step count too",
        ));
    }
    let text = render(cache, &pruned, Timestamp::now(), rows);
    Ok((pruned.cache, text))
}

fn render(whole: &Cache, pruned: &Pruned, now: Timestamp, rows: usize) -> String {
    let steps = count(whole.steps().len(), "step");
    if pruned.dropped.is_empty() {
        return format!("{steps}, {}: all of it fits\n", size(pruned.bytes_before));
    }
    let gone = whole.diff(&pruned.cache).ours.steps;
    let mut causes: BTreeMap<String, usize> = BTreeMap::new();
    for dropped in &pruned.dropped {
        *causes.entry(dropped.why.to_string()).or_default() += 1;
    }
    let causes: Vec<String> =
        causes.into_iter().map(|(why, keys)| format!("{} for the {why}", count(keys, "key"))).collect();
    let mut text = format!(
        "of {steps}, {}: {} and {} go, and {} stay\n  over the limit: {}\n",
        size(pruned.bytes_before),
        count(gone.len(), "step"),
        size(Amount::of(&gone).bytes),
        size(pruned.bytes_after),
        causes.join(", "),
    );
    let mut lines = vec![["GOES", "SIZE", "MADE", "LAST USE"].map(str::to_owned).to_vec()];
    for step in gone.iter().take(rows) {
        let (made, used) = (ago(now, step.made_at, "unknown"), ago(now, step.used_at, "not noted"));
        lines.push(vec![step.blob.short(), size(step.bytes), made, used]);
    }
    text += &table("  ", &[Align::Left, Align::Right, Align::Right, Align::Right], &lines);
    let more = gone.len().saturating_sub(rows);
    if more > 0 {
        text += &format!("  and {}: see them with --all\n", count(more, "smaller step"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::cache;

    #[test]
    fn what_goes_is_reported() {
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let long_ago = cache(&["b", "d"]).used_at("2026-11-01T10:00:00Z".parse().unwrap());
        let whole = Cache::merge([&long_ago, &cache(&["c"]).used_at(now)]);
        let pruned = whole.prune(&Limits { bytes: Some(2_500_000), ..Limits::default() });
        let text = render(&whole, &pruned, now, 1);
        assert_eq!(
            text,
            "of 3 steps, 6.0 MB: 2 steps and 4.0 MB go, and 2.0 MB stay\n  over the limit: 4 keys for the bytes \
             of layers\n  \
             GOES            SIZE        MADE     LAST USE\n  18ac3e7343f0  3.0 MB  60 min ago  20 days \
             ago\n  and 1 smaller step: see them with --all\n"
        );
        assert_eq!(
            to_budget(&whole, None, 9).unwrap(),
            (whole.clone(), "3 steps, 6.0 MB: all of it fits\n".to_owned())
        );
        assert!(to_budget(&whole, Some(1), 9).is_err());
    }
}
