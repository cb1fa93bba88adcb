//! `stoker cache inspect`: what is in caches, and what they share.

use std::collections::BTreeMap;

use buildkit_cache::{IMPORT_LIMIT, SAFE_SIZE, Step};
use jiff::Timestamp;
use serde::Serialize;
use stoker_core::names::{Commit, Digest};
use stoker_core::provenance::Provenance;

use crate::cache::mount::SavedMount;
use crate::cache::{Amount, ROWS};
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{self, Held, Remotes, read_all};
use crate::text::{Align, ago, count, percent, plain, size, table};

/// Shows what is in caches: steps, sizes, ages, what they share, and how near BuildKit's import limit they are
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker cache inspect registry.example/app/cache:main
  stoker cache inspect registry.example/app/cache:main registry.example/app/cache:feature-a
  stoker cache inspect --json registry.example/app/cache:main | jq '.caches[0].bytes'

A step is a layer that some instruction resulted in. A cache stores no command lines, so steps have digests for names.

What a merge brought to main is on probation until a build of main has used it: PROBATION lists the merged commits, \
and when what is left of each leaves at the latest.

Of one REF it also shows a saved cache mount: what it holds, how long builds took with it and without, and \
whether it is \
carried.

BuildKit imports no cache whose config or manifest is over 1 MiB: it then builds cold, and says so only in its log.")]
pub(crate) struct Args {
    /// The caches
    #[arg(required = true, value_name = "REF")]
    references: Vec<Reference>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// List every step, not only the largest
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let remotes = Remotes::default();
    if let [reference] = args.references.as_slice()
        && let Some(found) = remote::find(&remotes, reference).await?
        && let Some(mount) = SavedMount::of(&found, Timestamp::now())
    {
        let text = if args.json { super::to_json(&mount) } else { mount.render(Timestamp::now()) };
        return Ok(CommandOutcome::yes(text));
    }
    let held = read_all(&remotes, &args.references).await?;
    let report = Report::of(&held);
    let text = if args.json {
        super::to_json(&report)
    } else {
        let rows = if args.all { usize::MAX } else { ROWS };
        render(&report, Timestamp::now(), rows)
    };
    Ok(CommandOutcome::yes(text))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    caches: Vec<One>,
    /// For several caches: what each two of them share.
    shared: Vec<Shared>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct One {
    reference: String,
    digest: Digest,
    /// Compressed bytes of all blobs, those of base images below the steps included.
    bytes: u64,
    blobs: usize,
    keys: usize,
    config: Part,
    manifest: Part,
    /// An index, the form in which BuildKit exports when it is told nothing; otherwise an image manifest.
    is_index: bool,
    annotations: BTreeMap<String, String>,
    /// What merges brought that no build of main has used yet, the oldest first.
    probation: Vec<OneMerge>,
    steps: Vec<OneStep>,
}

/// A merge whose cache is on probation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OneMerge {
    commit: Commit,
    /// Number of its records.
    keys: usize,
    since: Timestamp,
    /// When the last of it leaves, where the cache says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    bytes: u64,
    import_limit: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OneStep {
    #[serde(flatten)]
    step: Step,
    /// The places, among the references, of the other caches that have it.
    also_in: Vec<usize>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shared {
    a: usize,
    b: usize,
    #[serde(flatten)]
    amount: Amount,
}

impl Report {
    fn of(held: &[Held]) -> Self {
        let all: Vec<_> = held.iter().map(|held| held.cache.steps()).collect();
        let caches = held.iter().enumerate().map(|(place, held)| One::of(place, held, &all)).collect();
        let mut shared = Vec::new();
        for (a, ours) in all.iter().enumerate() {
            for (b, theirs) in all.iter().enumerate().skip(a + 1) {
                shared.push(Shared { a, b, amount: Amount::in_both(ours, theirs) });
            }
        }
        Self { caches, shared }
    }
}

impl One {
    fn of(place: usize, held: &Held, all: &[BTreeMap<Digest, Step>]) -> Self {
        let others =
            |id| (0..all.len()).filter(|&other| other != place && all[other].contains_key(id)).collect();
        let steps = all[place].iter();
        let mut steps: Vec<OneStep> =
            steps.map(|(id, step)| OneStep { step: step.clone(), also_in: others(id) }).collect();
        steps.sort_by_key(|OneStep { step, .. }| std::cmp::Reverse((step.bytes, step.made_at)));
        let part = |bytes| Part { bytes, import_limit: IMPORT_LIMIT };
        let longest = Provenance::read(&held.annotations).probation;
        let longest = longest.map(|probation| probation.until.duration_since(probation.since));
        let probation = held.cache.probations().into_iter().map(|(mark, keys)| OneMerge {
            commit: mark.commit().clone(),
            keys,
            since: mark.at(),
            until: longest.and_then(|longest| mark.at().checked_add(longest).ok()),
        });
        Self {
            reference: held.reference.to_string(),
            digest: held.digest.clone(),
            bytes: held.cache.blob_bytes(),
            blobs: held.cache.blobs().len(),
            keys: held.cache.records(),
            config: part(held.config_size),
            manifest: part(held.manifest_size),
            is_index: held.is_index,
            annotations: held.annotations.clone(),
            probation: probation.collect(),
            steps,
        }
    }
}

/// The letter by which a table names one of several caches.
fn letter(place: usize) -> String {
    let letter = u8::try_from(place).ok().filter(|&place| place < 26).map(|place| char::from(b'A' + place));
    letter.map_or_else(|| format!("#{}", place + 1), String::from)
}

fn render(report: &Report, now: Timestamp, rows: usize) -> String {
    let is_one = report.caches.len() == 1;
    let mut text = String::new();
    for (place, cache) in report.caches.iter().enumerate() {
        if is_one {
            text += &format!("{}\n", cache.reference);
        } else {
            text += &format!("{}  {}\n", letter(place), cache.reference);
        }
        text += &summary(cache, now);
        text.push('\n');
        if !cache.probation.is_empty() {
            text += &probation(&cache.probation, now);
            text.push('\n');
        }
        text += &steps(cache, now, rows, is_one);
        text.push('\n');
    }
    if is_one {
        text.pop();
    } else {
        text += &sharing(report);
    }
    text
}

fn summary(cache: &One, now: Timestamp) -> String {
    let mut rows = vec![
        ("digest", cache.digest.to_string()),
        (
            "holds",
            format!(
                "{}, {} in {}; {}",
                count(cache.steps.len(), "step"),
                size(cache.bytes),
                count(cache.blobs, "blob"),
                count(cache.keys, "cache key")
            ),
        ),
    ];
    let made = cache.steps.iter().filter_map(|step| step.step.made_at);
    if let oldest @ Some(_) = made.clone().min() {
        let [newest, oldest] = [made.max(), oldest].map(|made| ago(now, made, "unknown"));
        rows.push(("made", format!("newest step {newest}, oldest {oldest}")));
    }
    let limit = |part: &Part| percent(part.bytes, part.import_limit as u64);
    let near = cache.config.bytes.max(cache.manifest.bytes) > SAFE_SIZE as u64;
    let warning = if near { ": too near, prune it" } else { "" };
    rows.push((
        "import",
        format!(
            "config at {} of BuildKit's limit, manifest at {}{warning}",
            limit(&cache.config),
            limit(&cache.manifest)
        ),
    ));
    if cache.is_index {
        rows.push(("form", "an index, which ECR does not take; a merge writes an image manifest".to_owned()));
    }
    let provenance = cache.annotations.iter().filter(|(name, _)| name.starts_with("stoker."));
    let mut rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    rows.extend(provenance.map(|(name, value)| vec![plain(name), plain(value)]));
    table("  ", &[Align::Left, Align::Left], &rows)
}

fn probation(merges: &[OneMerge], now: Timestamp) -> String {
    let head = ["PROBATION", "KEYS", "SINCE", "UNTIL"].map(str::to_owned).to_vec();
    let line = |merge: &OneMerge| {
        let until = merge.until.map_or_else(|| "unknown".to_owned(), |until| until.to_string());
        let since = ago(now, Some(merge.since), "unknown");
        vec![merge.commit.short().to_owned(), merge.keys.to_string(), since, until]
    };
    let lines: Vec<_> = std::iter::once(head).chain(merges.iter().map(line)).collect();
    table("  ", &[Align::Left, Align::Right, Align::Right, Align::Left], &lines)
}

fn steps(cache: &One, now: Timestamp, rows: usize, is_one: bool) -> String {
    let is_used = cache.steps.iter().any(|step| step.step.used_at.is_some());
    let mut head = vec!["STEP", "SIZE", "MADE"];
    let mut align = vec![Align::Left, Align::Right, Align::Right];
    if is_used {
        head.push("LAST USE");
        align.push(Align::Right);
    }
    if !is_one {
        head.push("ALSO IN");
        align.push(Align::Left);
    }
    let mut lines = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for OneStep { step, also_in } in cache.steps.iter().take(rows) {
        let made = ago(now, step.made_at, "unknown");
        let mut line = vec![step.blob.short(), size(step.bytes), made];
        if is_used {
            line.push(ago(now, step.used_at, "-"));
        }
        if !is_one {
            line.push(also_in.iter().map(|&place| letter(place)).collect::<Vec<_>>().join(" "));
        }
        lines.push(line);
    }
    let mut text = table("  ", &align, &lines);
    let left = cache.steps.len().saturating_sub(rows);
    if left > 0 {
        let bytes =
            cache.steps.iter().skip(rows).fold(0, |sum: u64, step| sum.saturating_add(step.step.bytes));
        text += &format!(
            "  and {} of {} together: see them with --all\n",
            count(left, "smaller step"),
            size(bytes)
        );
    }
    text
}

fn sharing(report: &Report) -> String {
    let head = ["SHARED", "STEPS", "SIZE"].map(str::to_owned).to_vec();
    let line = |shared: &Shared| {
        let pair = format!("{} and {}", letter(shared.a), letter(shared.b));
        vec![pair, shared.amount.steps.to_string(), size(shared.amount.bytes)]
    };
    let lines: Vec<_> = std::iter::once(head).chain(report.shared.iter().map(line)).collect();
    table("", &[Align::Left, Align::Right, Align::Right], &lines)
}

#[cfg(test)]
mod tests {
    use buildkit_cache::{Cache, Mark};

    use super::*;
    use crate::cache::tests::cache;

    fn held(tag: &str, steps: &[&str]) -> Held {
        Held {
            reference: format!("registry.example/app:{tag}").parse().unwrap(),
            digest: Digest::of(tag.as_bytes()),
            manifest_size: 1000,
            config_size: 950_000,
            is_index: false,
            loses_links: false,
            annotations: BTreeMap::from([
                ("stoker.line".to_owned(), "main".to_owned()),
                ("other".to_owned(), "hidden".to_owned()),
            ]),
            cache: cache(steps),
        }
    }

    #[test]
    fn one_cache_is_shown() {
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let text = render(&Report::of(&[held("main", &["a", "b", "ac"])]), now, 2);
        assert_eq!(
            text,
            "\
registry.example/app:main
  digest       sha256:0d6e4079e36703ebd37c00722f5891d28b0e2811dc114b129215123adcce3605
  holds        3 steps, 3.0 MB in 3 blobs; 6 cache keys
  made         newest step 60 min ago, oldest 60 min ago
  import       config at 91 % of BuildKit's limit, manifest at 0.1 %: too near, prune it
  stoker.line  main

  STEP            SIZE        MADE
  f45de51cdef3  2.0 MB  60 min ago
  3e23e8160039  1.0 MB  60 min ago
  and 1 smaller step of 0 B together: see them with --all
"
        );
    }

    #[test]
    fn what_is_on_probation_is_shown_by_its_merge() {
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mark = |digit: &str, time: &str| Mark::new(Commit::new(digit.repeat(40)).unwrap(), at(time));
        let merges = [
            cache(&["c"]).on_probation(&mark("d", "2026-11-21T09:30:00Z")),
            cache(&["b", "bc"]).on_probation(&mark("e", "2026-11-21T08:00:00Z")),
        ];
        let mut held = held("main", &["a"]);
        held.cache = Cache::merge([&held.cache].into_iter().chain(&merges));
        let known = Report::of(std::slice::from_ref(&held));
        assert!(
            render(&known, now, 2).contains("2 h ago  unknown\n"),
            "who wrote it does not say until when"
        );
        held.annotations.insert("stoker.probation-since".to_owned(), "2026-11-21T08:00:00Z".to_owned());
        held.annotations.insert("stoker.probation-until".to_owned(), "2026-11-28T08:00:00Z".to_owned());
        let report = Report::of(&[held]);
        let text = render(&report, now, 2);
        assert!(
            text.contains(
                "
  PROBATION  KEYS       SINCE  UNTIL
  eeeeeeee      4     2 h ago  2026-11-28T08:00:00Z
  dddddddd      2  30 min ago  2026-11-28T09:30:00Z

  STEP"
            ),
            "{text}"
        );
        let json = serde_json::to_value(&report).unwrap();
        let first = serde_json::json!({
            "commit": "e".repeat(40), "keys": 4, "since": "2026-11-21T08:00:00Z", "until": "2026-11-28T08:00:00Z",
        });
        assert_eq!(json["caches"][0]["probation"][0], first);
    }

    #[test]
    fn several_caches_show_what_they_share() {
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let report = Report::of(&[held("main", &["a", "b"]), held("dev", &["b", "c"])]);
        let text = render(&report, now, 9);
        assert!(text.contains("A  registry.example/app:main\n"), "{text}");
        assert!(text.contains("60 min ago  B\n"), "{text}");
        assert!(text.ends_with("SHARED   STEPS    SIZE\nA and B      1  1.0 MB\n"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["caches"][0]["config"],
            serde_json::json!({"bytes": 950_000, "importLimit": IMPORT_LIMIT})
        );
        assert_eq!(json["caches"][0]["steps"][0]["madeAt"], "2026-11-21T09:00:00Z");
    }
}
