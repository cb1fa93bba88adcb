//! Lines as promotion makes them, build by build, and what is joined of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::ensure;
use builder::Random;
use buildkit_cache::{Cache, Limits};
use jiff::Timestamp;

use crate::again::{Again, Group, ran};
use crate::engine::{Built, Engine, Options};
use crate::registry::Registry;
use crate::versions::{Versions, after_change, are_in, dockerfile, last_step};

/// Commits of the long line. A cache has as many leaves as commits.
const COMMITS: usize = 50;
/// The first of them are promoted to one line, which the next build reads.
const PROMOTED: usize = 30;
const LEAVES: [usize; 4] = [2, 10, 20, COMMITS];

const LARGEST_STEP: u64 = 256 << 10;

/// Where a line is built.
pub(crate) struct Stage<'a> {
    base_image: String,
    registry: &'a Registry,
    dir: PathBuf,
    token: String,
    group: Group<'a>,
    builds: usize,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(
        seed: u64,
        engine: &Engine,
        registry: &'a Registry,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let token = format!("l{:012x}", Random::new(seed).number() >> 16);
        let group = Group { token: token.clone(), blobs: BTreeSet::new(), registry, builds: Vec::new() };
        let base_image = engine.own_base_image(&token, dir)?;
        Ok(Self { base_image, registry, dir: dir.to_owned(), token, group, builds: 0 })
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn tag(&self, name: &str) -> String {
        format!("{}-{name}", self.token)
    }

    /// Builds on a builder that has nothing of the line.
    pub(crate) fn build(
        &mut self,
        versions: Versions,
        imports: &[&str],
        export: Option<&str>,
    ) -> anyhow::Result<Built> {
        let built = self.run(versions, imports, export)?;
        ensure!(built.imported_all(), "a cache was not imported:\n{}", built.log);
        ensure!(are_in(&self.token, versions, &built), "it made other files:\n{}", built.log);
        Ok(built)
    }

    /// The same, whatever it makes.
    pub(crate) fn attempt(&mut self, versions: Versions, imports: &[&str]) -> anyhow::Result<Built> {
        self.run(versions, imports, None)
    }

    /// Removes what builds left in the builder.
    pub(crate) fn free(&self) -> anyhow::Result<()> {
        Engine::free(&[&self.token], &self.group.blobs)
    }

    fn run(&mut self, versions: Versions, imports: &[&str], export: Option<&str>) -> anyhow::Result<Built> {
        Engine::free(&[&self.token], &self.group.blobs)?;
        let context = self.dir.join(format!("build-{}", self.builds));
        self.builds += 1;
        self.write(&context, versions)?;
        let imports: Vec<String> =
            imports.iter().map(|name| self.registry.reference(&self.tag(name))).collect();
        let export = export.map(|name| self.registry.reference(&self.tag(name)));
        Engine::build(&context, &Options { imports: &imports, export, ..Options::default() })
    }

    fn write(&self, context: &Path, versions: Versions) -> anyhow::Result<()> {
        std::fs::create_dir_all(context)?;
        let dockerfile = dockerfile(&self.base_image, &self.token, versions);
        Ok(std::fs::write(context.join("Dockerfile"), dockerfile)?)
    }

    /// Builds one commit that changes one version, reads `line`, and is promoted to it.
    fn advance(
        &mut self,
        versions: &mut Versions,
        place: usize,
        (line, cache): (&str, &mut Cache),
    ) -> anyhow::Result<Cache> {
        let is_first = *cache == Cache::default();
        if !is_first {
            versions[place] = self.next_version();
        }
        let imports: &[&str] = if is_first { &[] } else { &[line] };
        let export = format!("{line}-{}", self.builds);
        let built = self.build(*versions, imports, Some(&export))?;
        let expected = after_change(&self.token, *versions, place);
        let ran = ran(&built);
        ensure!(
            is_first || ran == expected,
            "{ran:#?} ran instead of {expected:#?} with {line}:\n{}",
            built.log
        );
        let export = self.exported(&export)?;
        *cache = Cache::merge([&*cache, &export]).prune(&Limits::default()).cache;
        self.put(line, cache)?;
        Ok(export)
    }

    /// One that no build had.
    fn next_version(&self) -> u32 {
        u32::try_from(self.builds).unwrap_or_default() + 1
    }

    pub(crate) fn exported(&mut self, name: &str) -> anyhow::Result<Cache> {
        // Uses at different times, as builds have them.
        let used = Timestamp::from_second(2_000_000_000 + i64::try_from(self.builds)? * 1000)?;
        let cache = self.registry.read(&self.tag(name))?.used_at(used);
        // The base image's layer, which other tests use too, is far larger than what the steps make.
        let own = cache.blobs().filter(|blob| blob.size < LARGEST_STEP);
        self.group.blobs.extend(own.map(|blob| blob.digest.to_string()));
        Ok(cache)
    }

    pub(crate) fn put(&self, name: &str, cache: &Cache) -> anyhow::Result<()> {
        self.registry.write(&self.tag(name), cache)?;
        Ok(())
    }

    /// To be built again and again, with the cache of this name.
    fn again(&mut self, cache: &str, versions: Versions, ran: BTreeSet<String>) -> anyhow::Result<()> {
        let context = self.dir.join(format!("again-{}", self.group.builds.len()));
        self.write(&context, versions)?;
        let what = format!("{versions:?} with {cache}");
        let (tag, files) = (self.tag(cache), BTreeMap::new());
        self.group.builds.push(Again { what, context, platforms: None, tag, ran, files });
        Ok(())
    }

    /// Ends the scenario: what the builds to come have to make is what is made from scratch.
    fn end(mut self) -> anyhow::Result<Group<'a>> {
        let mut known: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for again in &mut self.group.builds {
            let dockerfile = std::fs::read_to_string(again.context.join("Dockerfile"))?;
            let files = match known.get(&dockerfile) {
                Some(files) => files.clone(),
                // What the builder has of the line may serve it: the files are the same.
                None => Engine::build(&again.context, &Options::default())?.files,
            };
            again.files.clone_from(&files);
            known.insert(dockerfile, files);
        }
        Engine::free(&[&self.token], &self.group.blobs)?;
        Ok(self.group)
    }
}

/// Builds fifty commits. The first thirty are promoted one after the other to the line that the next one
/// reads; then caches of two to fifty commits serve builds of them.
pub(crate) fn long<'a>(
    seed: u64,
    engine: &'a Engine,
    registry: &'a Registry,
    dir: &Path,
) -> anyhow::Result<(String, Option<Group<'a>>)> {
    let mut stage = Stage::new(seed ^ 0x11, engine, registry, dir)?;
    let mut random = Random::new(seed);
    let (mut versions, mut line) = ([1; 4], Cache::default());
    let (mut commits, mut exports) = (Vec::new(), Vec::new());
    for number in 0..COMMITS {
        let place = random.below(4);
        if number < PROMOTED {
            exports.push(stage.advance(&mut versions, place, ("main", &mut line))?);
        } else {
            versions[place] = stage.next_version();
            let name = format!("commit-{number}");
            stage.build(versions, &["main"], Some(&name))?;
            exports.push(stage.exported(&name)?);
        }
        commits.push(versions);
    }
    for number in [0, PROMOTED / 2, PROMOTED - 1] {
        stage.again("main", commits[number], BTreeSet::new())?;
    }
    for leaves in LEAVES {
        let name = format!("leaves-{leaves}");
        stage.put(&name, &Cache::merge(&exports[..leaves]))?;
        for number in [0, leaves - 1] {
            stage.again(&name, commits[number], BTreeSet::new())?;
        }
    }
    let records = line.records();
    Ok((format!("{records} records of {PROMOTED} promotions; {COMMITS} commits built"), Some(stage.end()?)))
}

/// Builds main, a branch, and what would be the merge of both, with three caches beside each other and with their join.
pub(crate) fn joined<'a>(
    seed: u64,
    engine: &'a Engine,
    registry: &'a Registry,
    dir: &Path,
) -> anyhow::Result<(String, Option<Group<'a>>)> {
    let mut stage = Stage::new(seed ^ 0x22, engine, registry, dir)?;
    let (mut main, mut line) = ([1; 4], Cache::default());
    for place in [0, 1, 2] {
        stage.advance(&mut main, place, ("main", &mut line))?;
    }
    // The branch changes stage a, main stage b.
    let (mut branch, mut of_branch, mut commit) = (main, line.clone(), Cache::default());
    stage.put("branch", &of_branch)?;
    for place in [0, 1, 1] {
        commit = stage.advance(&mut branch, place, ("branch", &mut of_branch))?;
        stage.put("commit", &commit)?;
    }
    for place in [2, 3, 3] {
        stage.advance(&mut main, place, ("main", &mut line))?;
    }
    let merge = [branch[0], branch[1], main[2], main[3]];
    stage.put("joined", &Cache::merge([&line, &of_branch, &commit]))?;
    let all = stage.build(merge, &["main", "branch", "commit"], None)?;
    let one = stage.build(merge, &["joined"], None)?;
    let expected = BTreeSet::from([last_step(&stage.token, merge)]);
    ensure!(ran(&one) == expected, "{:#?} ran with one cache:\n{}", one.steps.ran, one.log);

    stage.again("joined", merge, expected)?;
    stage.again("joined", branch, BTreeSet::new())?;
    stage.again("joined", main, BTreeSet::new())?;
    let mut next = branch;
    next[1] = stage.next_version();
    let ran = after_change(&stage.token, next, 1);
    stage.again("joined", next, ran)?;
    let reported = format!(
        "{} steps ran with one cache, {} with three beside each other",
        one.steps.ran.len(),
        all.steps.ran.len()
    );
    Ok((reported, Some(stage.end()?)))
}
