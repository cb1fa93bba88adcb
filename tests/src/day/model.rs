//! The account of ten thousand projects: a call takes the same time however many builds there have been. It keeps of a
//! build what the planners ask of it again.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use buildkit_cache::{CONFIG_MEDIA_TYPE, MANIFEST_MEDIA_TYPE};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use stoker_core::build_inputs::{GivenInputs, variable};
use stoker_core::error::{CallError, Failure};
use stoker_core::event::{Event, Turn};
use stoker_core::names::{CacheRepository, Commit, Digest, Line, ProjectName, Tag};
use stoker_core::ports::{
    Build, BuildOrder, BuildStatus, FindDigests, Image, ListProjects, MAX_BUILDS, Ordered, Publish,
    ReadBlobs, ReadBuilds, ReadImages, StartBuilds, StopBuilds, WriteImages,
};
use stoker_core::provenance::{Built, Provenance};

use super::traffic::{NONE, Push, Traffic};
use super::{Kind, at, number_of};
use crate::rng::Rng;

/// CodeBuild's own: orders with one token are one build for so long.
const TOKEN_HOLDS: u64 = 5 * 60 * 1000;
/// Lists of builds lag behind by so much.
const LISTED_AFTER: u64 = 1500;
/// How many of a project's builds are asked for every time.
const LISTED: usize = 100;
/// From a build's end until its cache has been promoted.
const PROMOTED_AFTER: u64 = 15 * 1000;
/// A project with a limit of its own may have at once this many builds, and one more for so many pushes in its day: it is
/// a little less than it wants at its busiest.
const PROJECT_LIMIT: u32 = 2;
const PUSHES_FOR_ONE: u32 = 250;
/// A client tries a call that a rate throttles so often, in all.
const ATTEMPTS: u32 = 4;

/// What can be asked of the account. AWS publishes none of these rates and none of these latencies: they are assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `codebuild:StartBuild`
    StartBuild,
    /// `codebuild:StopBuild`
    StopBuild,
    /// `codebuild:ListBuildsForProject`
    ListBuilds,
    /// `codebuild:BatchGetBuilds`
    GetBuilds,
    /// `ecr:BatchGetImage`
    GetImages,
    /// `ecr:GetDownloadUrlForLayer`, and the download
    GetBlob,
    /// `ecr:InitiateLayerUpload` and what it takes to fill the upload
    PutBlob,
    /// `ecr:PutImage`
    PutImage,
    /// `events:PutEvents`
    PutEvents,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::StartBuild,
        Self::StopBuild,
        Self::ListBuilds,
        Self::GetBuilds,
        Self::GetImages,
        Self::GetBlob,
        Self::PutBlob,
        Self::PutImage,
        Self::PutEvents,
    ];

    /// As IAM calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::StartBuild => "codebuild:StartBuild",
            Self::StopBuild => "codebuild:StopBuild",
            Self::ListBuilds => "codebuild:ListBuildsForProject",
            Self::GetBuilds => "codebuild:BatchGetBuilds",
            Self::GetImages => "ecr:BatchGetImage",
            Self::GetBlob => "ecr:GetDownloadUrlForLayer",
            Self::PutBlob => "ecr:InitiateLayerUpload",
            Self::PutImage => "ecr:PutImage",
            Self::PutEvents => "events:PutEvents",
        }
    }

    /// Calls in a second, and in a burst.
    #[must_use]
    pub fn rate(self) -> (u32, u32) {
        match self {
            Self::StartBuild => (40, 100),
            Self::StopBuild => (20, 50),
            Self::ListBuilds | Self::GetBuilds => (60, 150),
            Self::GetImages => (1000, 2000),
            Self::GetBlob => (3000, 6000),
            Self::PutBlob => (100, 200),
            Self::PutImage => (10, 20),
            Self::PutEvents => (400, 800),
        }
    }

    /// How long it takes, in milliseconds.
    fn latency(self) -> u64 {
        match self {
            Self::StartBuild => 200,
            Self::StopBuild => 100,
            Self::ListBuilds | Self::GetBlob | Self::PutImage => 60,
            Self::GetBuilds | Self::PutBlob => 120,
            Self::GetImages => 40,
            Self::PutEvents => 20,
        }
    }
}

/// How one operation was used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// Calls, each try of the client counted.
    pub calls: u64,
    /// Those that the rate throttled.
    pub throttled: u64,
}

/// A bucket of calls, in thousandths.
struct Bucket {
    left: u64,
    filled_at: u64,
    used: Used,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Running,
    Succeeded,
    Failed,
}

/// A build, in few bytes.
struct Entry {
    project: u32,
    line: u32,
    /// The push that it is for; [`NONE`] for one of main's head.
    push: u32,
    started_at: u64,
    state: State,
    exports: bool,
    /// Its place among its project's.
    place: u32,
}

/// A build in the list of its project.
struct Listed {
    number: u32,
    started_at: u64,
    /// What CodeBuild says of it as it stands, once it was asked, while it is among the newest.
    told: OnceCell<Arc<Build>>,
}

/// What is to happen later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Later {
    /// A build ends.
    Ends(u32),
    /// Its cache is promoted.
    Promoted(u32),
}

/// A project's main.
#[derive(Clone, Default)]
pub(super) struct Main {
    /// When the build started that filled its cache last, in milliseconds since the day began.
    pub(super) built_at: Option<i64>,
    merged_at: Option<u64>,
    image: Option<Image>,
    /// Its head is this push, and has no build yet.
    pub(super) waiting: Option<(u32, u64)>,
    /// The longest that a head waited.
    pub(super) waited: u64,
    /// When its newest build started.
    pub(super) last_build: Option<u64>,
    warming: u32,
}

/// What the account has seen.
#[derive(Default)]
pub(super) struct Seen {
    /// Builds that were started.
    pub(super) started: usize,
    /// Those of main's head, to warm it.
    pub(super) warm: usize,
    /// More than one that took effect for one push.
    pub(super) twice: usize,
    /// Builds that were stopped.
    pub(super) stopped: usize,
    /// Most builds that ran at once.
    pub(super) most_running: usize,
    /// Orders that an account's or a project's limit refused.
    pub(super) refused: usize,
    /// The times of the first and of the last of them.
    pub(super) refused_from: Option<u64>,
    pub(super) refused_until: u64,
    /// Most builds that warm one project's main at once.
    pub(super) most_warming: u32,
}

/// The account.
pub(super) struct Model {
    names: Vec<ProjectName>,
    pushes: Vec<Push>,
    seed: u64,
    capacity: usize,
    limits: Vec<u32>,
    builds: RefCell<Vec<Entry>>,
    /// Builds by project, the oldest first.
    of_project: RefCell<Vec<Vec<Listed>>>,
    /// Builds that have not ended, by project.
    open: RefCell<Vec<u32>>,
    running: Cell<usize>,
    queued: Cell<usize>,
    queue: RefCell<VecDeque<u32>>,
    tokens: RefCell<HashMap<String, (u64, u64, u32)>>,
    tokens_by_age: RefCell<VecDeque<(u64, String)>>,
    buckets: RefCell<Vec<Bucket>>,
    pub(super) mains: RefCell<Vec<Main>>,
    /// Which branches and which commits have caches.
    line_caches: RefCell<Vec<bool>>,
    commit_caches: RefCell<Vec<bool>>,
    /// When each push got its build.
    pub(super) built_at: RefCell<Vec<Option<u64>>>,
    /// When that build ran.
    pub(super) ran_at: RefCell<Vec<Option<u64>>>,
    /// The cache of every branch, and that of every commit.
    images: [Image; 2],
    /// Hashes of the tags under which there are joins.
    joins: RefCell<HashSet<u64>>,
    pub(super) later: RefCell<Vec<(u64, Later)>>,
    pub(super) published: RefCell<Vec<u32>>,
    pub(super) told: Cell<usize>,
    pub(super) seen: RefCell<Seen>,
}

/// What the caches of main, of branches and of commits hold: one step each.
const STEPS: [&str; 3] = ["of main", "of a branch", "of a commit"];

/// A cache of one step.
fn config(step: &str) -> Bytes {
    let digest = Digest::of(step.as_bytes());
    let result = json!({ "layer": 0, "createdAt": "2026-11-01T00:00:00Z" });
    let config = json!({
        "layers": [{ "blob": digest, "parent": -1 }],
        "records": [{ "digest": digest, "layers": [result] }],
    });
    Bytes::from(config.to_string())
}

fn image(line: &Line, provenance: &Provenance, step: &str) -> Image {
    let config = config(step);
    let layer = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::of(step.as_bytes()), "size": 32,
    });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "layers": [layer],
        "config": { "mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&config), "size": config.len() },
        "annotations": provenance.annotations(line),
    });
    let manifest = Bytes::from(manifest.to_string());
    Image { digest: Digest::of(&manifest), media_type: MANIFEST_MEDIA_TYPE.to_owned(), manifest }
}

fn built(time: Timestamp, push: u32) -> Provenance {
    let built = Built { at: time, commit: commit_of(push), build: "p00000:0".to_owned() };
    Provenance { built: Some(built), ..Provenance::default() }
}

impl Model {
    pub(super) fn new(traffic: &Traffic, names: Vec<ProjectName>, seed: u64, capacity: usize) -> Self {
        let (projects, pushes) = (names.len(), traffic.pushes.len());
        let mut rng = Rng(seed ^ 0x5eed);
        let day = 24 * 60 * 60 * 1000;
        let aged = |_| {
            // One in a hundred has no cache yet; the others' are up to ten days old.
            let age = i64::try_from(rng.below(10 * day)).unwrap_or_default();
            Main { built_at: (rng.below(100) > 0).then_some(-age), ..Main::default() }
        };
        let mains = (0..projects).map(aged).collect();
        let branch = Line::parse("branch/b").expect("a line");
        let bucket = |operation: &Operation| {
            let left = u64::from(operation.rate().1) * 1000;
            Bucket { left, filled_at: 0, used: Used::default() }
        };
        Self {
            names,
            pushes: traffic.pushes.clone(),
            seed,
            capacity,
            limits: traffic.sizes.iter().map(|size| PROJECT_LIMIT + size / PUSHES_FOR_ONE).collect(),
            builds: RefCell::new(Vec::with_capacity(pushes)),
            of_project: RefCell::new((0..projects).map(|_| Vec::new()).collect()),
            open: RefCell::new(vec![0; projects]),
            running: Cell::new(0),
            queued: Cell::new(0),
            queue: RefCell::default(),
            tokens: RefCell::default(),
            tokens_by_age: RefCell::default(),
            buckets: RefCell::new(Operation::ALL.iter().map(bucket).collect()),
            mains: RefCell::new(mains),
            line_caches: RefCell::new(vec![false; traffic.lines as usize]),
            commit_caches: RefCell::new(vec![false; pushes]),
            built_at: RefCell::new(vec![None; pushes]),
            ran_at: RefCell::new(vec![None; pushes]),
            images: [image(&branch, &built(at(0), 0), STEPS[1]), image(&branch, &built(at(0), 1), STEPS[2])],
            joins: RefCell::default(),
            later: RefCell::default(),
            published: RefCell::default(),
            told: Cell::new(0),
            seen: RefCell::default(),
        }
    }

    /// Main's head is this push now.
    pub(super) fn main_moved(&self, number: u32, push: &Push, now: u64) {
        let main = &mut self.mains.borrow_mut()[push.project as usize];
        main.waiting = Some((number, push.at));
        if push.merged != NONE && self.commit_caches.borrow()[push.merged as usize] {
            main.merged_at = Some(now);
            main.image = None;
        }
    }

    pub(super) fn happens(&self, later: Later, now: u64) {
        match later {
            Later::Ends(build) => self.ends(build, now),
            Later::Promoted(build) => self.promoted(build),
        }
    }

    fn ends(&self, build: u32, now: u64) {
        let mut builds = self.builds.borrow_mut();
        let entry = &mut builds[build as usize];
        // It was stopped before.
        if entry.state != State::Running {
            return;
        }
        let mut rng = Rng(self.seed ^ u64::from(build) << 20);
        let fails = rng.below(100) < if entry.line == NONE { 2 } else { 8 };
        self.becomes(entry, if fails { State::Failed } else { State::Succeeded });
        if !fails && entry.exports {
            self.later.borrow_mut().push((now + PROMOTED_AFTER, Later::Promoted(build)));
        }
        self.leaves(entry);
        self.running.set(self.running.get() - 1);
        drop(builds);
        self.run_next(now);
    }

    /// CodeBuild tells something else of a build from now on.
    fn becomes(&self, entry: &mut Entry, state: State) {
        entry.state = state;
        self.of_project.borrow_mut()[entry.project as usize][entry.place as usize].told.take();
    }

    /// A build is no more among those that have not ended.
    fn leaves(&self, entry: &Entry) {
        self.open.borrow_mut()[entry.project as usize] -= 1;
        if entry.push == NONE {
            self.mains.borrow_mut()[entry.project as usize].warming -= 1;
        }
    }

    fn run_next(&self, now: u64) {
        while self.running.get() < self.capacity {
            let Some(next) = self.queue.borrow_mut().pop_front() else { return };
            if self.builds.borrow()[next as usize].state == State::Queued {
                self.queued.set(self.queued.get() - 1);
                self.run(next, now);
            }
        }
    }

    fn run(&self, build: u32, now: u64) {
        let entry = &mut self.builds.borrow_mut()[build as usize];
        self.becomes(entry, State::Running);
        self.running.set(self.running.get() + 1);
        let mut seen = self.seen.borrow_mut();
        seen.most_running = seen.most_running.max(self.running.get());
        if let Some(ran_at) = self.ran_at.borrow_mut().get_mut(entry.push as usize) {
            *ran_at = Some(now);
        }
        self.later.borrow_mut().push((now + super::takes(self.seed, build), Later::Ends(build)));
    }

    fn promoted(&self, build: u32) {
        let builds = self.builds.borrow();
        let entry = &builds[build as usize];
        if entry.line == NONE {
            let main = &mut self.mains.borrow_mut()[entry.project as usize];
            main.built_at = main.built_at.max(i64::try_from(entry.started_at).ok());
            main.image = None;
        } else {
            self.line_caches.borrow_mut()[entry.line as usize] = true;
            self.commit_caches.borrow_mut()[entry.push as usize] = true;
        }
    }

    /// The cache under a tag.
    fn image(&self, project: u32, tag: &str) -> Option<Image> {
        let (_, rest) = tag.split_once('.')?;
        if rest == "main" {
            let main = &mut self.mains.borrow_mut()[project as usize];
            let time = at(0) + SignedDuration::from_millis(main.built_at?);
            let image = main.image.get_or_insert_with(|| {
                let merged_at = main.merged_at.map(at);
                image(&Line::Main, &Provenance { merged_at, ..built(time, project) }, STEPS[0])
            });
            return Some(image.clone());
        }
        let [of_branches, of_commits] = &self.images;
        let (is_there, image) = match rest.split_once('.')? {
            ("branch", branch) => {
                (self.line_caches.borrow()[branch.strip_prefix('b')?.parse::<usize>().ok()?], of_branches)
            }
            ("commit", commit) => (self.commit_caches.borrow()[push_of(commit)? as usize], of_commits),
            ("given", _) => (self.joins.borrow().contains(&place_of(tag)), of_branches),
            _ => return None,
        };
        is_there.then(|| image.clone())
    }

    /// What CodeBuild would say of a build.
    fn build(&self, builds: &[Entry], listed: &Listed) -> Arc<Build> {
        let tell = || Arc::new(self.report(listed.number, &builds[listed.number as usize]));
        listed.told.get_or_init(tell).clone()
    }

    fn report(&self, number: u32, entry: &Entry) -> Build {
        let project = self.names[entry.project as usize].clone();
        let id = &[project.as_str(), ":"].concat();
        Build {
            id: numbered(id, number),
            status: match entry.state {
                State::Queued | State::Running => BuildStatus::InProgress,
                State::Succeeded => BuildStatus::Succeeded,
                State::Failed => BuildStatus::Failed,
            },
            started_at: at(entry.started_at),
            ended_at: None,
            source_version: None,
            resolved_commit: None,
            inputs: Some(self.inputs(entry)),
            claims: false,
            project,
        }
    }

    /// What a build was started with, as far as anybody asks.
    fn inputs(&self, entry: &Entry) -> GivenInputs {
        let branch = || Line::parse(&numbered("branch/b", entry.line)).expect("a line");
        let mut inputs = GivenInputs::of_line(if entry.line == NONE { Line::Main } else { branch() });
        if let Some(push) = self.pushes.get(entry.push as usize) {
            inputs.commit = Some(commit_of(entry.push));
            // Forges tell it to the second.
            inputs.pushed_at = Some(at(push.at / 1000 * 1000));
        }
        if entry.exports {
            inputs.exports.push("export".to_owned());
        }
        inputs
    }

    /// Of the answers to [`BuildOrder`]s.
    fn order(&self, order: &BuildOrder, now: u64, asked_at: u64) -> Result<Ordered, CallError> {
        let project = number_of(order.project.as_str());
        let mut hasher = DefaultHasher::new();
        order.environment.hash(&mut hasher);
        let hash = hasher.finish();
        self.forget_tokens(now);
        if let Some((_, known, build)) = self.tokens.borrow().get(&order.token) {
            let id = format!("{}:{build}", order.project);
            return Ok(if *known == hash { Ordered::Started(id) } else { Ordered::AlreadyOrdered });
        }
        let is_free = self.running.get() < self.capacity;
        let has_limit = Kind::of(project) == Kind::Limited;
        let is_full = has_limit && self.open.borrow()[project as usize] >= self.limits[project as usize];
        let mut seen = self.seen.borrow_mut();
        if is_full || (!is_free && self.queued.get() >= 5 * self.capacity) {
            seen.refused += 1;
            if !is_full {
                seen.refused_from.get_or_insert(now);
                seen.refused_until = now;
            }
            return Err(CallError::new(
                "codebuild:StartBuild",
                &order.project,
                Failure::Throttled,
                "a limit",
            ));
        }
        let value = |name: &str| {
            order.environment.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
        };
        let branch = value(variable::LINE).and_then(|line| line.strip_prefix("branch/b"));
        let line = branch.map_or(NONE, |number| number.parse().expect("a branch of the day"));
        let push = value(variable::COMMIT).and_then(push_of).unwrap_or(NONE);
        let commit = value(variable::COMMIT);
        let says = order.source_version.as_deref().filter(|version| commit.is_some() || *version != "main");
        assert_eq!(says, commit, "it builds what it says, or main's head");
        let number = u32::try_from(self.builds.borrow().len()).expect("fewer builds");
        let exports = value(variable::EXPORT).is_some();
        let state = State::Queued;
        {
            let of_project = &mut self.of_project.borrow_mut()[project as usize];
            let place = u32::try_from(of_project.len()).expect("fewer builds");
            of_project.push(Listed { number, started_at: now, told: OnceCell::new() });
            if let Some(old) = of_project.len().checked_sub(1 + LISTED) {
                of_project[old].told.take();
            }
            let entry = Entry { project, line, push, started_at: now, state, exports, place };
            self.builds.borrow_mut().push(entry);
        }
        self.open.borrow_mut()[project as usize] += 1;
        self.tokens.borrow_mut().insert(order.token.clone(), (now, hash, number));
        self.tokens_by_age.borrow_mut().push_back((now, order.token.clone()));
        seen.started += 1;
        if push == NONE {
            seen.warm += 1;
        } else if self.built_at.borrow_mut()[push as usize].replace(asked_at).is_some() {
            seen.twice += 1;
        }
        if line == NONE {
            let main = &mut self.mains.borrow_mut()[project as usize];
            main.last_build = Some(now);
            main.warming += u32::from(push == NONE);
            seen.most_warming = seen.most_warming.max(main.warming);
            if let Some((head, since)) = main.waiting
                && (push == NONE || push == head)
            {
                main.waited = main.waited.max(asked_at.saturating_sub(since));
                main.waiting = None;
            }
        }
        drop(seen);
        if is_free {
            self.run(number, now);
        } else {
            self.queued.set(self.queued.get() + 1);
            self.queue.borrow_mut().push_back(number);
        }
        Ok(Ordered::Started(format!("{}:{number}", order.project)))
    }

    fn forget_tokens(&self, now: u64) {
        let mut by_age = self.tokens_by_age.borrow_mut();
        while let Some((_, token)) = by_age.pop_front_if(|(at, _)| *at + TOKEN_HOLDS <= now) {
            self.tokens.borrow_mut().remove(&token);
        }
    }

    /// How many builds may run at once.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn used(&self) -> BTreeMap<Operation, Used> {
        Operation::ALL.into_iter().zip(self.buckets.borrow().iter().map(|bucket| bucket.used)).collect()
    }
}

/// The push whose commit this is.
fn push_of(commit: &str) -> Option<u32> {
    u32::from_str_radix(commit.get(16..)?, 16).ok()
}

/// When the forge says that something was pushed: to the second.
pub(super) fn pushed_at(push: &Push) -> Timestamp {
    at(push.at / 1000 * 1000)
}

/// One invocation of a function: it counts the time that its calls take.
pub(super) struct Invocation<'m> {
    pub(super) model: &'m Model,
    pub(super) began: u64,
    pub(super) spent: Cell<u64>,
    /// Whether others go first at every call, so that what runs at once meets.
    pub(super) yields: Option<RefCell<Rng>>,
}

impl Invocation<'_> {
    /// A call that takes its time, and that the operation's rate may throttle, also when it is tried again.
    async fn call(&self, operation: Operation) -> Result<(), CallError> {
        if let Some(rng) = &self.yields {
            let times = rng.borrow_mut().below(4);
            for _ in 0..times {
                tokio::task::yield_now().await;
            }
        }
        let mut pause = 500;
        for _ in 0..ATTEMPTS {
            self.spent.set(self.spent.get() + operation.latency());
            if self.model.buckets.borrow_mut()[operation as usize]
                .admits(operation, self.began + self.spent.get())
            {
                return Ok(());
            }
            self.spent.set(self.spent.get() + pause);
            pause *= 2;
        }
        Err(CallError::new(operation.name(), "the account", Failure::Throttled, "a rate"))
    }
}

impl Bucket {
    fn admits(&mut self, operation: Operation, now: u64) -> bool {
        let (rate, burst) = operation.rate();
        let grown = now.saturating_sub(self.filled_at) * u64::from(rate);
        self.left = (self.left + grown).min(u64::from(burst) * 1000);
        self.filled_at = self.filled_at.max(now);
        self.used.calls += 1;
        let admits = self.left >= 1000;
        self.used.throttled += u64::from(!admits);
        self.left -= if admits { 1000 } else { 0 };
        admits
    }
}

impl ReadImages for Invocation<'_> {
    async fn images(
        &self,
        repository: &CacheRepository,
        tags: &[Tag],
    ) -> Result<Vec<Option<Image>>, CallError> {
        assert!(tags.len() <= 100, "one request names at most 100 images");
        self.call(Operation::GetImages).await?;
        let project = repository.as_str().strip_prefix("stoker/").map(number_of).expect("a project's");
        Ok(tags.iter().map(|tag| self.model.image(project, tag.as_str())).collect())
    }
}

fn place_of(tag: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    tag.hash(&mut hasher);
    hasher.finish()
}

impl ReadBlobs for Invocation<'_> {
    async fn blob(&self, _: &CacheRepository, digest: &Digest, _: usize) -> Result<Bytes, CallError> {
        self.call(Operation::GetBlob).await?;
        let found = STEPS.map(config).into_iter().find(|config| Digest::of(config) == *digest);
        Ok(found.expect("a config of a cache"))
    }
}

impl WriteImages for Invocation<'_> {
    async fn put_blob(&self, _: &CacheRepository, _: &Digest, _: Bytes) -> Result<(), CallError> {
        self.call(Operation::PutBlob).await
    }

    async fn put_image(&self, _: &CacheRepository, tag: &Tag, _: &str, _: Bytes) -> Result<(), CallError> {
        self.call(Operation::PutImage).await?;
        self.model.joins.borrow_mut().insert(place_of(tag.as_str()));
        Ok(())
    }
}

impl ReadBuilds for Invocation<'_> {
    async fn recent(
        &self,
        project: &ProjectName,
        since: Option<Timestamp>,
    ) -> Result<Vec<Arc<Build>>, CallError> {
        self.call(Operation::ListBuilds).await?;
        let project = number_of(project.as_str()) as usize;
        let wanted = {
            let of_project = &self.model.of_project.borrow()[project];
            let from = |time: u64| of_project.partition_point(|listed| listed.started_at < time);
            let end = from((self.began + 1).saturating_sub(LISTED_AFTER));
            let since = since.map_or(end, |since| {
                from(u64::try_from(since.duration_since(at(0)).as_millis()).unwrap_or_default())
            });
            since.min(end.saturating_sub(LISTED)).max(end.saturating_sub(MAX_BUILDS))..end
        };
        for page in 0..wanted.len().div_ceil(LISTED) {
            if page > 0 {
                self.call(Operation::ListBuilds).await?;
            }
            self.call(Operation::GetBuilds).await?;
        }
        let (of_project, builds) = (self.model.of_project.borrow(), self.model.builds.borrow());
        let listed = of_project[project][wanted].iter().rev();
        Ok(listed.map(|listed| self.model.build(&builds, listed)).collect())
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Build>, CallError> {
        self.call(Operation::GetBuilds).await?;
        let builds = self.model.builds.borrow();
        let told = ids.iter().map(|id| {
            let number = build_of(id);
            self.model.report(number, &builds[number as usize])
        });
        Ok(told.collect())
    }
}

fn build_of(id: &str) -> u32 {
    id.rsplit_once(':').and_then(|(_, number)| number.parse().ok()).expect("the id of a build")
}

impl StartBuilds for Invocation<'_> {
    async fn start(&self, order: &BuildOrder) -> Result<Ordered, CallError> {
        self.call(Operation::StartBuild).await?;
        self.model.order(order, self.began, self.began + self.spent.get())
    }
}

impl StopBuilds for Invocation<'_> {
    async fn stop(&self, id: &str) -> Result<(), CallError> {
        self.call(Operation::StopBuild).await?;
        let model = self.model;
        let mut builds = model.builds.borrow_mut();
        let entry = &mut builds[build_of(id) as usize];
        match entry.state {
            State::Queued => model.queued.set(model.queued.get() - 1),
            State::Running => model.running.set(model.running.get() - 1),
            State::Succeeded | State::Failed => return Ok(()),
        }
        model.becomes(entry, State::Failed);
        model.leaves(entry);
        model.seen.borrow_mut().stopped += 1;
        drop(builds);
        model.run_next(self.began);
        Ok(())
    }
}

impl FindDigests for Invocation<'_> {
    async fn digest_of(&self, _: &CacheRepository, _: &str) -> Result<Option<Digest>, CallError> {
        self.call(Operation::GetImages).await.map(|()| None)
    }
}

impl ListProjects for Invocation<'_> {
    async fn projects(&self) -> Result<Vec<ProjectName>, CallError> {
        Ok(self.model.names.clone())
    }
}

impl Publish for Invocation<'_> {
    async fn publish(&self, events: &[Event]) -> Result<(), CallError> {
        // Ten to a request.
        for _ in 0..events.len().div_ceil(10) {
            self.call(Operation::PutEvents).await?;
        }
        for event in events {
            match event {
                Event::WarmRequested(Turn { project }) => {
                    self.model.published.borrow_mut().push(number_of(project.as_str()));
                }
                _ => self.model.told.set(self.model.told.get() + 1),
            }
        }
        Ok(())
    }
}

/// The last digits of a number.
fn digits(text: &mut String, number: u64, base: u64, places: u32) {
    for place in (0..places).rev() {
        let digit = number / base.pow(place) % base;
        text.push(char::from(b"0123456789abcdef"[digit as usize]));
    }
}

fn numbered(start: &str, number: u32) -> String {
    let mut text = String::with_capacity(24);
    text.push_str(start);
    digits(&mut text, u64::from(number), 10, number.checked_ilog10().unwrap_or_default() + 1);
    text
}

/// A moment of the day or of the next, to the second, as RFC 3339 has it.
pub(super) fn time_of(millis: u64) -> String {
    let seconds = millis / 1000;
    let mut text = String::with_capacity(20);
    text.push_str("2026-11-");
    for (number, after) in [
        (23 + seconds / 86_400, 'T'),
        (seconds / 3600 % 24, ':'),
        (seconds / 60 % 60, ':'),
        (seconds % 60, 'Z'),
    ] {
        digits(&mut text, number, 10, 2);
        text.push(after);
    }
    text
}

/// The hash of a push's commit.
pub(super) fn hash_of(push: u32) -> String {
    let mut text = String::with_capacity(40);
    for half in (0..16).rev() {
        let digit = Rng(u64::from(push)).next() >> (half * 4) & 15;
        text.push(char::from(b"0123456789abcdef"[digit as usize]));
    }
    text.push_str("0000000000000000");
    for half in (0..8).rev() {
        let digit = push >> (half * 4) & 15;
        text.push(char::from(b"0123456789abcdef"[digit as usize]));
    }
    text
}

/// The commit of a push.
pub(super) fn commit_of(push: u32) -> Commit {
    Commit::new(hash_of(push)).expect("a commit")
}
