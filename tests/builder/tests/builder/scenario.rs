//! What is done with one case.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use builder::{Case, Source};
use buildkit_cache::{Cache, Limits};
use jiff::Timestamp;

use crate::again::{Again, Group, ran};
use crate::engine::{Built, Engine, Options};
use crate::graph::{self, Graph};
use crate::registry::Registry;

/// What the cases add up to.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) cases: usize,
    pub(crate) time: Duration,
    builds: usize,
    steps: usize,
    all: usize,
    merged: usize,
    pruned: usize,
    /// Steps that a pruned cache could have served all the same, because the merged one did.
    missed: usize,
}

impl Figures {
    pub(crate) fn add(&mut self, other: &Self) {
        self.cases += other.cases;
        self.time += other.time;
        self.builds += other.builds;
        self.steps += other.steps;
        self.all += other.all;
        self.merged += other.merged;
        self.pruned += other.pruned;
        self.missed += other.missed;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} builds; of {} steps reused {} with all caches, {} with the merged; {} with pruned ones, {} were \
             dropped",
            self.builds, self.steps, self.all, self.merged, self.pruned, self.missed
        )
    }
}

/// A case, and where it is told.
pub(crate) struct Stage<'s, 'a> {
    case: &'s Case,
    base_image: String,
    pub(crate) registry: &'a Registry,
    dir: &'s Path,
    /// The blobs that belong to the case alone, each with its step's mark.
    marks: BTreeMap<String, String>,
    builds: usize,
}

impl<'s, 'a> Stage<'s, 'a> {
    pub(crate) fn new(
        case: &'s Case,
        engine: &Engine,
        registry: &'a Registry,
        dir: &'s Path,
    ) -> anyhow::Result<Self> {
        let base_image = engine.own_base_image(&case.token, dir)?;
        Ok(Self { case, base_image, registry, dir, marks: BTreeMap::new(), builds: 0 })
    }

    pub(crate) fn tag(&self, name: impl fmt::Display) -> String {
        format!("{}-{name}", self.case.token)
    }

    /// Makes the builder forget the case.
    pub(crate) fn free(&self) -> anyhow::Result<()> {
        let blobs: BTreeSet<String> = self.marks.keys().cloned().collect();
        Engine::free(&[&self.case.token], &blobs)
    }

    /// Builds with caches that all have to be imported.
    pub(crate) fn build(
        &mut self,
        source: &Source,
        imports: &[String],
        export: Option<&str>,
    ) -> anyhow::Result<Built> {
        let built = self.attempt(source, imports, export)?;
        ensure!(built.imported_all(), "a cache was not imported:\n{}", built.log);
        Ok(built)
    }

    /// Builds; only the build has to succeed.
    pub(crate) fn attempt(
        &mut self,
        source: &Source,
        imports: &[String],
        export: Option<&str>,
    ) -> anyhow::Result<Built> {
        let context = self.dir.join(format!("build-{}", self.builds));
        self.builds += 1;
        source.write(&context, &self.base_image)?;
        let imports: Vec<String> = imports.iter().map(|tag| self.registry.reference(tag)).collect();
        let export = export.map(|tag| self.registry.reference(tag));
        Engine::build(&context, &Options { imports: &imports, export, ..Options::default() })
    }

    /// Reads what a build exported, and learns which blobs are the case's.
    pub(crate) fn exported(&mut self, tag: &str) -> anyhow::Result<Cache> {
        let cache = self.registry.read(tag)?;
        self.marks.extend(graph::marks(self.case, &cache, self.registry)?);
        Ok(cache)
    }
}

/// Builds the branches of a case, then its target with all of their caches, with the merged one, and with a
/// pruned one. The last two are to be built again.
pub(crate) fn run<'a>(
    seed: u64,
    engine: &Engine,
    registry: &'a Registry,
    dir: &Path,
) -> anyhow::Result<(Figures, Group<'a>)> {
    let case = Case::new(seed);
    let mut stage = Stage::new(&case, engine, registry, dir)?;
    stage.free()?;
    let reported = report_on(&mut stage);
    let freed = stage.free();
    let reported = reported.with_context(|| describe(&case))?;
    freed?;
    std::fs::remove_dir_all(dir)?;
    Ok(reported)
}

fn describe(case: &Case) -> String {
    let mut text = String::new();
    for (number, branch) in case.branches.iter().enumerate() {
        let (fresh, imports) = (branch.fresh, branch.imports);
        let _ = writeln!(text, "branch {number}: fresh {fresh}, imports {imports}");
    }
    format!("{text}target: branches {:?}\n{}", case.target.merged, case.target.source.dockerfile("base"))
}

/// Whether a log says that anything but a base image was cached. The number of steps that ran does not tell: BuildKit
/// never mentions a linked copy onto nothing.
pub(crate) fn reused_anything(log: &str) -> bool {
    let bases: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("] FROM "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let mut cached = log.lines().filter_map(|line| line.strip_suffix(" CACHED"));
    cached.any(|vertex| !bases.contains(&vertex))
}

fn report_on<'a>(stage: &mut Stage<'_, 'a>) -> anyhow::Result<(Figures, Group<'a>)> {
    let case = stage.case;
    let mut random = case.random.clone();
    let mut tags: Vec<String> = Vec::new();
    let mut caches = Vec::new();
    let mut files = Vec::new();
    for (number, branch) in case.branches.iter().enumerate() {
        if branch.fresh {
            stage.free()?;
        }
        let tag = stage.tag(format!("branch-{number}"));
        files.push(stage.build(&branch.source, &tags[..branch.imports], Some(&tag))?.files);
        // Later than they were made, or that would be their last use.
        let used = Timestamp::from_second(2_000_000_000 + i64::try_from(random.below(5))? * 1000)?;
        caches.push(stage.exported(&tag)?.used_at(used));
        tags.push(tag);
    }
    let source = &case.target.source;
    let files = if let [branch] = case.target.merged[..] {
        files.swap_remove(branch)
    } else {
        stage.free()?;
        let cold = stage.build(source, &[], None)?;
        ensure!(!reused_anything(&cold.log), "the builder was not free of the case's records:\n{}", cold.log);
        cold.files
    };

    stage.free()?;
    let all = stage.build(source, &tags, None)?;
    ensure!(all.files == files, "other files with all caches than without any");

    stage.free()?;
    let whole = Cache::merge(&caches);
    let merged_tag = stage.tag("merged");
    stage.registry.write(&merged_tag, &whole)?;
    let target_tag = stage.tag("target");
    let merged = stage.build(source, std::slice::from_ref(&merged_tag), Some(&target_tag))?;
    ensure!(merged.files == files, "other files with the merged cache than without any");
    // What the target is made of. The merged cache serves it whole on every builder; several caches beside
    // each other do not on all.
    let target = stage.exported(&target_tag)?;
    if case.target.merged.len() == 1 {
        ensure!(
            merged.steps.ran.is_empty(),
            "what one branch had exported ran again: {:#?}\n{}",
            merged.steps.ran,
            merged.log
        );
    }
    let less = beyond(&merged, &all);
    ensure!(
        less.is_empty(),
        "with the merged cache these ran, which all caches served: {less:#?}\nwith all caches:\n{}\nmerged:\n{}",
        all.log,
        merged.log
    );

    // BuildKit's log does not mention all that it reuses.
    let steps = source.layers();
    let mut figures = Figures {
        cases: 1,
        steps,
        all: steps - all.steps.ran.len(),
        merged: steps - merged.steps.ran.len(),
        ..Figures::default()
    };
    // In parts of a thousand.
    let part = random.between(0, 1000);
    let limits = if random.chance(50) {
        // The base image is far larger than the steps.
        let own = whole.blobs().filter(|blob| stage.marks.contains_key(&blob.digest.to_string()));
        let cut = own.map(|blob| blob.size).sum::<u64>() * part as u64 / 1000;
        Limits { bytes: Some(whole.blob_bytes() - cut), ..Limits::default() }
    } else {
        // What BuildKit reads first.
        let size = whole.serialise(BTreeMap::new()).size();
        Limits { bytes: None, size: size * (300 + part * 7 / 10) / 1000 }
    };
    let pruned = whole.prune(&limits).cache;
    stage.free()?;
    let pruned_tag = stage.tag("pruned");
    stage.registry.write(&pruned_tag, &pruned)?;
    let built = stage.build(source, std::slice::from_ref(&pruned_tag), None)?;
    ensure!(built.files == files, "other files with a pruned cache than without any");
    let missed = beyond(&built, &merged);
    let explained = Explained { stage, whole: &whole, pruned: &pruned, target: &target };
    explained
        .check(&missed)
        .with_context(|| format!("pruned to {limits:?}\nmerged:\n{}\npruned:\n{}", merged.log, built.log))?;
    figures.pruned = steps - built.steps.ran.len();
    figures.missed = missed.len();
    figures.builds = stage.builds;
    let context = stage.dir.with_extension("again");
    source.write(&context, &stage.base_image)?;
    let again = |what: &str, tag, built: &Built| Again {
        what: what.to_owned(),
        context: context.clone(),
        platforms: None,
        tag,
        ran: ran(built),
        files: files.clone(),
    };
    let builds = vec![again("merged", merged_tag, &merged), again("pruned", pruned_tag, &built)];
    let blobs = stage.marks.keys().cloned().collect();
    Ok((figures, Group { token: case.token.clone(), blobs, registry: stage.registry, builds }))
}

/// The steps that ran in one build and not in the other.
pub(crate) fn beyond(one: &Built, other: &Built) -> Vec<String> {
    one.steps.ran.iter().filter(|step| !other.steps.ran.contains(step)).cloned().collect()
}

struct Explained<'a> {
    stage: &'a Stage<'a, 'a>,
    whole: &'a Cache,
    pruned: &'a Cache,
    target: &'a Cache,
}

impl Explained<'_> {
    /// Each of these steps has to have a result that was dropped. Or the whole cache had none either, and the
    /// step was not asked for because of one that needs it; then a record of that one was dropped, even if
    /// its result was still found by its content. (Such a cache is nothing strange: a build exports no result
    /// of what it never had to look at.)
    fn check(&self, missed: &[String]) -> anyhow::Result<()> {
        let (whole, pruned) = (Graph::of(self.whole)?, Graph::of(self.pruned)?);
        let target: BTreeSet<String> = self.target.blobs().map(|blob| blob.digest.to_string()).collect();
        let dockerfile = self.stage.case.target.source.dockerfile("base");
        let is_dropped = |id: &String, results: &BTreeSet<String>| {
            pruned.records.get(id).is_none_or(|left| !results.is_subset(left))
        };
        let dropped = whole.records.iter().filter(|(id, results)| is_dropped(id, results));
        let blobs = dropped.flat_map(|(_, results)| results).filter(|blob| target.contains(*blob));
        let marks: BTreeSet<&str> =
            blobs.filter_map(|blob| self.stage.marks.get(blob)).map(String::as_str).collect();
        // What a step needs stands before it.
        let is_of_dropped =
            |line: &str| self.stage.case.marks(line).next_back().is_some_and(|mark| marks.contains(mark));
        let lines: Vec<&str> = dockerfile.lines().collect();
        let last_dropped = lines.iter().rposition(|line| is_of_dropped(line));
        let mut without_result = Vec::new();
        for step in missed {
            let mark = self.stage.case.marks(step).next_back().context("a step without a mark")?;
            let instruction = step.split_once("] ").map_or(step.as_str(), |(_, instruction)| instruction);
            let line = lines.iter().position(|line| *line == instruction).context("no such step")?;
            let is_of_step = |blob: &String| {
                self.stage.marks.get(blob).is_some_and(|m| m == mark) && target.contains(blob.as_str())
            };
            let results = whole.records.iter().filter(|(_, results)| results.iter().any(is_of_step));
            let mut results = results.peekable();
            if results.peek().is_none() {
                without_result.push((line, step));
            } else if !results.any(|(id, results)| is_dropped(id, results)) {
                bail!("{step} ran, although no record of it was dropped");
            }
        }
        for (line, step) in without_result {
            ensure!(Some(line) < last_dropped, "{step} ran, and nothing was dropped that needs it");
        }
        Ok(())
    }
}
