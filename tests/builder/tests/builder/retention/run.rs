//! A project in rounds: people push and merge, real builds run, and retention takes what it may all
//! the while.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use axum::body::Bytes;
use builder::Random;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use scenarios::account::Account;
use scenarios::environment::TestEnvironment;
use stoker_core::error::CallError;
use stoker_core::names::{Branch, CacheRepository, Commit, Digest, Line, ProjectName, Tag, TagKind};
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::{Build, BuildStatus, Catalogue, ListedImage, ReadBuilds, ReadManifests};
use stoker_core::retain::{Action, DeletedLine, by_repository, enforce};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::server::{self, Asked, Seen};
use crate::engine::{Built, Engine, Options};
use crate::versions::{Versions, are_in, dockerfile};

/// As many builds as the machine has processors to spare; the others wait, and hold what they were given.
const AT_ONCE: usize = 2;
const BRANCHES: [&str; 5] = ["one", "two", "three", "four", "five"];
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// Every blob that a builder reads takes so long.
const READING: SignedDuration = SignedDuration::from_mins(10);

/// What retention may be told, with every other limit at its least: no patience with lines; a budget; no history; and
/// none of these, so that there is much to go in the next round.
const POLICIES: [&str; 5] = [
    "idle-branch: 1m, history: 1m",
    "idle-branch: 3650d, history: 3650d, scope-budget: 1MB",
    "idle-branch: 3650d, history: 3650d, repository-budget: 1MB",
    "idle-branch: 3650d, history: 1m",
    "idle-branch: 3650d, history: 3650d",
];

/// Which repositories there are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Repositories {
    /// One for all.
    One,
    /// One that builds write to, and one of the lines.
    Apart,
}

fn projects(repositories: Repositories, retention: &str) -> Vec<Project> {
    Policy::parse("the run's policy", &policy(repositories, retention)).unwrap().named_projects()
}

fn policy(repositories: Repositories, retention: &str) -> String {
    let apart = match repositories {
        Repositories::One => "",
        Repositories::Apart => "\n    builds-repository: stoker-builds/app",
    };
    format!(
        "version: 1\nprojects:\n  - name: app\n    repository: github.com/example/app{apart}\n    retention: \
         {{ mode: apply, lease: 1m, orphans: 1m, keep-at-least: 0, max-deletions: 1000000, {retention} }}\n"
    )
}

/// What a run adds up to.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) rounds: usize,
    pub(crate) builds: usize,
    pub(crate) steps: usize,
    pub(crate) reused: usize,
    /// Manifests and blobs that a builder wanted to read, and that were not there.
    pub(crate) missing: usize,
    /// Blobs that builders read.
    pub(crate) read: usize,
    /// Manifests of exports that were not taken.
    pub(crate) refused: usize,
    /// Times that retention looked.
    pub(crate) passes: usize,
    /// Images that it deleted, by the rule.
    pub(crate) deleted: BTreeMap<&'static str, usize>,
    /// Bytes that it freed.
    pub(crate) freed: u64,
    /// Images that it would have deleted, had no running build been given them.
    pub(crate) waited: BTreeSet<Digest>,
    /// Images that were not as planned when their turn came.
    pub(crate) changed: usize,
    pub(crate) merges: usize,
    pub(crate) rollbacks: usize,
}

impl Figures {
    pub(crate) fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.builds += other.builds;
        self.steps += other.steps;
        self.reused += other.reused;
        self.missing += other.missing;
        self.read += other.read;
        self.refused += other.refused;
        self.passes += other.passes;
        for (rule, count) in other.deleted {
            *self.deleted.entry(rule).or_default() += count;
        }
        self.freed += other.freed;
        self.waited.extend(other.waited);
        self.changed += other.changed;
        self.merges += other.merges;
        self.rollbacks += other.rollbacks;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, builds, steps, reused, missing, read, refused, passes, .. } = self;
        let (deleted, freed) = (self.deleted.values().sum::<usize>(), self.freed / 1_000_000);
        let (waited, changed) = (self.waited.len(), self.changed);
        write!(
            f,
            "{rounds} rounds, {builds} builds, {reused} of {steps} steps reused, {read} blobs read and \
             {missing} missing, {refused} exports refused; {} merges, {} rollbacks; retention looked \
             {passes} times, deleted {deleted} images and {freed} MB, {waited} waited for a build, {changed} had \
             changed; {:?}",
            self.merges, self.rollbacks, self.deleted
        )
    }
}

/// The account as retention sees it.
struct Eyes<'a> {
    account: &'a Account,
    /// Whether it knows of running builds.
    sees_builds: bool,
}

impl Catalogue for Eyes<'_> {
    async fn list(&self, repository: &CacheRepository) -> Result<Vec<ListedImage>, CallError> {
        self.account.list(repository).await
    }

    async fn describe(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<ListedImage>, CallError> {
        self.account.describe(repository, digests).await
    }

    async fn delete(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<(Digest, String)>, CallError> {
        self.account.delete(repository, digests).await
    }
}

impl ReadManifests for Eyes<'_> {
    async fn manifests(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
        longest: usize,
    ) -> Result<Option<Vec<(Digest, Bytes)>>, CallError> {
        self.account.manifests(repository, digests, longest).await
    }
}

impl ReadBuilds for Eyes<'_> {
    async fn recent(
        &self,
        project: &ProjectName,
        since: Option<Timestamp>,
    ) -> Result<Vec<Arc<Build>>, CallError> {
        let mut builds = self.account.recent(project, since).await?;
        builds.retain(|build| self.sees_builds || build.status != BuildStatus::InProgress);
        Ok(builds)
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Build>, CallError> {
        self.account.get(ids).await
    }
}

/// What everybody in a run shares.
struct Shared {
    account: Account,
    sees_builds: bool,
    projects: RefCell<Vec<Project>>,
    deleted_lines: RefCell<Vec<DeletedLine>>,
    seen: RefCell<Seen>,
    figures: RefCell<Figures>,
    /// Whether a day goes by, and retention looks, before a builder reads the next layer: it knows its caches, and has
    /// nothing of them.
    day_ahead: Cell<bool>,
    /// Something happened: retention looks again.
    happened: Notify,
    has_ended: Cell<bool>,
}

impl Shared {
    /// Answers builders. Time goes by as they read.
    async fn serve(&self, mut asked: mpsc::UnboundedReceiver<Asked>) {
        while let Some(asked) = asked.recv().await {
            if asked.reads_blob() {
                self.account.set_now(self.account.now() + READING);
            }
            if self.day_ahead.get() && asked.reads_layer(&self.account) {
                self.day_ahead.set(false);
                self.account.set_now(self.account.now() + DAY);
                self.look().await;
            }
            let mut seen = self.seen.take();
            asked.answer(&self.account, &mut seen).await;
            self.seen.replace(seen);
            self.happened.notify_one();
        }
    }

    /// Retention, as often as anything happens.
    async fn retain(&self) {
        while !self.has_ended.get() {
            self.happened.notified().await;
            self.look().await;
        }
    }

    async fn look(&self) {
        let eyes = Eyes { account: &self.account, sees_builds: self.sees_builds };
        let (projects, gone) = (self.projects.borrow().clone(), self.deleted_lines.borrow().clone());
        for (repository, projects) in by_repository(projects) {
            let now = self.account.now();
            let applied = enforce(&eyes, &repository, &projects, gone.clone(), now);
            let applied = self.account.invoke("enforce-retention", None, applied).await.unwrap().unwrap();
            let mut figures = self.figures.borrow_mut();
            figures.passes += 1;
            figures.changed += applied.changed.len();
            figures.waited.extend(applied.plan.of(Action::Wait).map(|verdict| verdict.image.digest.clone()));
            for verdict in applied.plan.deletions() {
                if !applied.changed.contains(&verdict.image.digest) {
                    *figures.deleted.entry(verdict.rule.name()).or_default() += 1;
                    figures.freed += verdict.frees;
                }
            }
        }
    }
}

/// A build that ran, or why it did not.
struct Ran {
    /// None for what another CI builds.
    build: Option<Build>,
    versions: Versions,
    built: anyhow::Result<Built>,
}

struct Run<'a> {
    env: TestEnvironment,
    shared: Rc<Shared>,
    random: Random,
    repositories: Repositories,
    base_image: &'a str,
    dir: &'a Path,
    token: String,
    main: Versions,
    branches: BTreeMap<&'static str, (Versions, Commit)>,
    /// The branch whose build ended last.
    last: Option<&'static str>,
    sources: HashMap<Commit, Versions>,
    next: u32,
}

/// What happens in a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Script {
    /// Anything, for so many rounds.
    Rounds(usize),
    /// A branch is built twice. Before the second build reads a layer of the first one's cache, a day goes by.
    Held,
}

/// Plays a run; fails with the first build that does. What is left in the builder is removed.
pub(crate) fn live(
    seed: u64,
    script: Script,
    (repositories, sees_builds): (Repositories, bool),
    engine: &Engine,
    dir: &Path,
) -> anyhow::Result<Figures> {
    let (address, asked) = server::listen()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut random = Random::new(seed);
    let token = format!("r{:012x}", random.number() >> 16);
    let mut env = TestEnvironment::with_policy(&policy(repositories, POLICIES[0]));
    env.registry = address.to_string();
    env.account.yields.set(true);
    env.account.reconciles_at_once.set(true);
    let shared = Rc::new(Shared {
        account: env.account.clone(),
        sees_builds,
        projects: RefCell::default(),
        deleted_lines: RefCell::default(),
        seen: RefCell::default(),
        figures: RefCell::default(),
        day_ahead: Cell::new(false),
        happened: Notify::new(),
        has_ended: Cell::new(false),
    });
    let mut run = Run {
        env,
        shared: Rc::clone(&shared),
        random,
        repositories,
        base_image: &engine.base_image,
        dir,
        token,
        main: [1; 4],
        branches: BTreeMap::new(),
        last: None,
        sources: HashMap::new(),
        next: 1,
    };
    let tasks = tokio::task::LocalSet::new();
    let lived = tasks.block_on(&runtime, async {
        let server = Rc::clone(&shared);
        tokio::task::spawn_local(async move { server.serve(asked).await });
        let retention = Rc::clone(&shared);
        let retention = tokio::task::spawn_local(async move { retention.retain().await });
        let lived = match script {
            Script::Rounds(rounds) => run.rounds(rounds).await,
            Script::Held => run.held().await,
        };
        shared.has_ended.set(true);
        shared.happened.notify_one();
        retention.await.context("retention ended badly")?;
        lived
    });
    let freed = Engine::free(&[&run.token], &shared.seen.borrow().written);
    let mut figures = shared.figures.take();
    let seen = shared.seen.take();
    (figures.read, figures.missing, figures.refused) = (seen.read, seen.missing, seen.refused);
    lived.with_context(|| format!("{figures}"))?;
    freed?;
    Ok(figures)
}

impl Run<'_> {
    fn commit(&mut self, versions: Versions) -> Commit {
        let commit = self.env.commit(versions);
        self.sources.insert(commit.clone(), versions);
        commit
    }

    /// Something of a source changes.
    fn changed(&mut self, mut versions: Versions) -> Versions {
        self.next += 1;
        versions[self.random.below(versions.len())] = self.next;
        versions
    }

    async fn rounds(&mut self, rounds: usize) -> anyhow::Result<()> {
        for round in 0..rounds {
            self.round(round).await.with_context(|| format!("round {round}"))?;
            self.shared.figures.borrow_mut().rounds += 1;
        }
        Ok(())
    }

    async fn held(&mut self) -> anyhow::Result<()> {
        self.shared.projects.replace(projects(self.repositories, POLICIES[0]));
        for (round, versions) in [[1, 1, 1, 1], [1, 2, 1, 1]].into_iter().enumerate() {
            let commit = self.commit(versions);
            self.env.push(BRANCHES[0], &[&commit]).await;
            self.env.settle_starts().await;
            self.shared.day_ahead.set(true);
            self.build(round, false).await?;
            self.free().await?;
        }
        Ok(())
    }

    async fn free(&self) -> anyhow::Result<()> {
        let (token, blobs) = (self.token.clone(), self.shared.seen.borrow().written.clone());
        tokio::task::spawn_blocking(move || Engine::free(&[&token], &blobs)).await?
    }

    /// People do something, builds start, people do more, a day goes by, the builds run.
    async fn round(&mut self, number: usize) -> anyhow::Result<()> {
        let retention = POLICIES[self.random.below(POLICIES.len())];
        self.shared.projects.replace(projects(self.repositories, retention));
        self.env.wait(SignedDuration::from_secs(10));
        if number == 0 || self.random.chance(30) {
            self.push_to_main().await;
        }
        self.push_to_branch().await;
        if self.random.chance(50) {
            self.stack().await;
        }
        if self.random.chance(40) {
            self.merge().await;
        }
        if self.random.chance(50) {
            self.env.settle_promotions().await;
        }
        if self.random.chance(30) {
            // What was of use becomes idle, and retention looks at it while it is given out.
            self.env.wait(DAY);
            self.shared.happened.notify_one();
        }
        // Nobody builds yet, and a start that waits for a cache may wait no real time.
        tokio::time::pause();
        self.env.settle_starts().await;
        tokio::time::resume();
        self.env.settle_promotions().await;
        if self.random.chance(40) {
            self.delete_branch().await;
        }
        if self.random.chance(40) {
            self.roll_back().await;
        }
        if self.random.chance(50) {
            self.env.wait(DAY);
        } else {
            self.shared.day_ahead.set(true);
        }
        self.shared.happened.notify_one();
        let elsewhere = self.random.chance(20);
        self.build(number, elsewhere).await?;
        ensure!(self.env.running().is_empty(), "a build was not run");
        ensure!(self.env.dead.is_empty(), "given up: {:?}", self.env.dead);
        self.free().await
    }

    async fn push_to_main(&mut self) {
        self.main = self.changed(self.main);
        let commit = self.commit(self.main);
        self.env.push("main", &[&commit]).await;
    }

    async fn push_to_branch(&mut self) {
        let branch = match self.any_branch() {
            Some((branch, ..)) if self.random.chance(70) => branch,
            _ => BRANCHES[self.random.below(BRANCHES.len())],
        };
        let before = self.branches.get(branch).map_or(self.main, |(versions, _)| *versions);
        let versions = self.changed(before);
        let commit = self.commit(versions);
        self.env.push(branch, &[&commit]).await;
        self.branches.insert(branch, (versions, commit));
    }

    /// Mostly the one whose build ended last: its line is the youngest, and most is lost when it goes.
    fn any_branch(&mut self) -> Option<(&'static str, Versions, Commit)> {
        let branches: Vec<&'static str> = self.branches.keys().copied().collect();
        let branch = match self.last.filter(|last| branches.contains(last)) {
            Some(last) if self.random.chance(70) => last,
            _ => *self.random.pick(&branches)?,
        };
        let (versions, commit) = self.branches[branch].clone();
        Some((branch, versions, commit))
    }

    /// A pull request to another branch: its build is given that branch's line.
    async fn stack(&mut self) {
        let Some((base, versions, _)) = self.any_branch() else { return };
        let versions = self.changed(versions);
        let commit = self.commit(versions);
        self.env.pull_request_to(base, "example/app", "opened", "stacked", &commit, None).await;
    }

    async fn merge(&mut self) {
        let Some((branch, versions, head)) = self.any_branch() else { return };
        for (own, merged) in self.main.iter_mut().zip(versions) {
            *own = merged.max(*own);
        }
        let merge = self.commit(self.main);
        self.env.pull_request("merged", branch, &head, Some(&merge)).await;
        self.env.push("main", &[&head, &merge]).await;
        self.shared.figures.borrow_mut().merges += 1;
    }

    /// What `enforce-retention` makes of it when the queue brings it, it makes of it from now on.
    async fn delete_branch(&mut self) {
        let Some((branch, ..)) = self.any_branch() else { return };
        self.branches.remove(branch);
        self.env.delete_branch(branch).await;
        let line = Line::Branch(Branch::new(branch).unwrap()).key();
        let at = self.shared.account.now();
        let gone = self
            .env
            .project()
            .scopes()
            .map(|scope| DeletedLine { scope: scope.clone(), line: line.clone(), at })
            .collect::<Vec<_>>();
        self.shared.deleted_lines.borrow_mut().extend(gone);
    }

    async fn roll_back(&self) {
        let (account, repository) = (&self.shared.account, self.env.repository());
        let tags = account.tags(&repository);
        let is_past = |tag: &String| {
            let kind = Tag::parse(tag).map(|(_, kind)| kind);
            matches!(kind, Some(TagKind::History { line, .. }) if line.is_main())
        };
        let past = tags.keys().rfind(|tag| is_past(tag)).and_then(|tag| account.image(&repository, tag));
        if let Some(past) = past
            && self.env.roll_back(&past).await
        {
            self.shared.figures.borrow_mut().rollbacks += 1;
        }
    }

    /// Runs what was started, and at times what another CI builds; promotes each as it ends.
    async fn build(&mut self, round: usize, elsewhere: bool) -> anyhow::Result<()> {
        let turns = Semaphore::new(AT_ONCE);
        let mut builds = FuturesUnordered::new();
        for (number, build) in self.env.running().into_iter().enumerate() {
            let head = build.resolved_commit.as_deref().context("a build of no commit")?;
            let versions = self.sources[&Commit::new(head)?];
            let flags = self.env.reported(&build, "STOKER_CACHE_FLAGS");
            builds.push(self.run(Some(build), versions, flags, format!("{round}-{number}"), &turns));
        }
        if elsewhere {
            // To one tag again and again, as builds did before: what held it is left without any.
            let to = format!("{}/{}:elsewhere", self.env.registry, self.env.repository());
            let flags = format!(
                "--cache-to type=registry,ref={to},mode=max,image-manifest=true,oci-mediatypes=true,\
                 ignore-error=true"
            );
            let versions = self.changed(self.main);
            builds.push(self.run(None, versions, flags, format!("{round}-elsewhere"), &turns));
        }
        while let Some(Ran { build, versions, built }) = builds.next().await {
            let built = built?;
            ensure!(are_in(&self.token, versions, &built), "the build made other files:\n{}", built.log);
            {
                let mut figures = self.shared.figures.borrow_mut();
                figures.builds += 1;
                figures.steps += built.steps.total;
                figures.reused += built.steps.reused;
            }
            let Some(build) = build else { continue };
            let inputs = build.inputs.clone().context("a build of nobody's")?;
            let of_build = |branch: &&&str| inputs.line.to_string() == format!("branch/{branch}");
            self.last = BRANCHES.iter().find(of_build).copied().or(self.last);
            let head = inputs.commit.context("a build of no commit")?;
            self.env.end(&build.id, BuildStatus::Succeeded, &head);
            self.env.settle_promotions().await;
            self.shared.happened.notify_one();
        }
        Ok(())
    }

    /// Waits for its turn, and builds.
    fn run<'t>(
        &self,
        build: Option<Build>,
        versions: Versions,
        flags: String,
        name: String,
        turns: &'t Semaphore,
    ) -> impl Future<Output = Ran> + use<'t> {
        let context = self.dir.join(name);
        let dockerfile = dockerfile(self.base_image, &self.token, versions);
        async move {
            let _turn = turns.acquire().await.expect("turns never end");
            let built = tokio::task::spawn_blocking(move || {
                std::fs::create_dir_all(&context)?;
                std::fs::write(context.join("Dockerfile"), dockerfile)?;
                let built = Engine::build(&context, &Options { flags: &flags, ..Options::default() });
                std::fs::remove_dir_all(&context)?;
                built
            });
            let built = built.await.expect("a build never panics");
            Ran { build, versions, built }
        }
    }
}
