//! Promotion: merging exports into the line of their build, and merged commits' caches into the line they were merged
//! to. It is a join, so a hint that comes twice, late or out of order changes nothing that matters.

mod byte_budget;
mod line;
mod mounts;
mod probation;
pub mod reconcile;
mod share;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;

use tokio::time::{Instant, timeout_at};

use self::byte_budget::ByteBudget;
pub use self::share::Shares;
use crate::error::{CallError, Disposition};
use crate::event::MAX_COMMITS;
use crate::event::{BuildFailed, Event};
use crate::names::{
    CacheRepository, Commit, Digest, Line, MountId, ProjectName, Repository, Revision, Scope, Tag, TagKind,
};
use crate::policy::{Policy, Project};
use crate::ports::{
    Build, BuildStatus, MountBlobs, ReadBlobs, ReadBuilds, ReadImages, WriteImages, read_images,
};
use crate::provenance::{self, Built, Provenance};
use buildkit_cache::{Cache, CacheHitRate, MANIFEST_MEDIA_TYPE, Mark};

/// How many lines are moved at once, where there is [room](byte_budget::ByteBudget).
const LINES_AT_ONCE: usize = 16;
/// How long main's line may take: its first build may bring thousands of layers, of which ECR mounts a hundred in a second.
const LINE_DEADLINE: Duration = Duration::from_secs(40);
/// When the lines of branches have to be done, from the batch's start. A batch takes a second; what takes longer keeps everybody waiting.
const BRANCHES_DEADLINE: Duration = Duration::from_secs(15);
/// After so long no other line is begun: the function has two minutes, and what it has done counts only if it ends well.
const BATCH_DEADLINE: Duration = Duration::from_secs(75);

/// The ports that promotion needs.
pub trait Ports: ReadBuilds + ReadImages + ReadBlobs + WriteImages + MountBlobs {}
impl<P: ReadBuilds + ReadImages + ReadBlobs + WriteImages + MountBlobs> Ports for P {}

/// A reason to look whether a line should move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromotionTrigger {
    /// A build may have ended well.
    Built {
        /// Its id.
        build: String,
    },
    /// A build has failed.
    Failed {
        /// Its id.
        build: String,
        /// How, in `CodeBuild`'s words.
        status: String,
    },
    /// An export arrived; its build may have ended long ago, and its event been lost.
    Exported {
        /// Where.
        repository: CacheRepository,
        /// Its tag.
        tag: String,
    },
    /// Commits came to a branch by a merge.
    Merged {
        /// The git repository.
        repository: Repository,
        /// The line of the branch that they came to.
        line: Line,
        /// The commits, of no branch that is known. The cache of the newest counts that any line has built, if a single one has,
        /// and if none of them is the head of a fork's pull request.
        commits: Vec<Commit>,
        /// The line of the branch that was merged and its head, or the start of its hash: that line's cache of it counts.
        head: Option<(Line, Revision)>,
        /// When they came, by the forge's clock or the bus's; `None` where neither says.
        at: Option<Timestamp>,
    },
    /// A commit is the head of a fork's pull request: what a push brings to main is not what a branch made of it.
    Fork {
        /// The git repository that the pull request is for.
        repository: Repository,
        /// The pull request's line.
        line: Line,
        /// The head, or the start of its hash.
        head: Revision,
    },
    /// Something may have been on probation for too long in a project's main lines.
    Overdue {
        /// The project.
        project: ProjectName,
    },
}

impl fmt::Display for PromotionTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Built { build } | Self::Failed { build, .. } => f.write_str(build),
            Self::Exported { repository, tag } => write!(f, "{repository}:{tag}"),
            Self::Merged { repository, line, .. } => write!(f, "what was merged into {line} of {repository}"),
            Self::Fork { repository, line, head } => {
                write!(f, "the head {} of {line} of {repository}, a fork's", head.short())
            }
            Self::Overdue { project } => write!(f, "what is on probation in main of {project}"),
        }
    }
}

impl PromotionTrigger {
    /// What an event hints at, if anything.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        match event {
            Event::BuildStateChange(change) if change.build_status == "SUCCEEDED" => {
                Some(Self::Built { build: change.id().to_owned() })
            }
            Event::BuildStateChange(change) if change.has_failed() => {
                Some(Self::Failed { build: change.id().to_owned(), status: change.build_status.clone() })
            }
            Event::ImageAction(action) if action.action_type == "PUSH" && action.result == "SUCCESS" => {
                // Lines, commits and history are Stoker's own writes: the story ends here.
                let tag = action.image_tag.clone()?;
                let (_, kind) = Tag::parse(&tag)?;
                matches!(kind, TagKind::Export(_))
                    .then(|| Self::Exported { repository: action.repository_name.clone(), tag })
            }
            // A fork's head was built by nobody that main could believe.
            Event::PullRequestUpdated(pull) | Event::PullRequestMerged(pull) if pull.from_fork => {
                let line = Line::PullRequest(pull.number);
                Some(Self::Fork { repository: pull.repository.clone(), line, head: pull.commit.clone() })
            }
            Event::PullRequestMerged(pull) => {
                let branch = Line::of_branch(&pull.branch, &pull.default_branch);
                Some(Self::Merged {
                    repository: pull.repository.clone(),
                    line: Line::of_branch(&pull.base, &pull.default_branch),
                    head: Some((branch, pull.commit.clone())),
                    commits: Vec::new(),
                    at: event.signed_at(),
                })
            }
            Event::BranchPushed(push) if push.to_default_branch => Some(Self::Merged {
                repository: push.repository.clone(),
                line: Line::Main,
                commits: push.commits.clone(),
                head: None,
                at: event.signed_at(),
            }),
            _ => None,
        }
    }

    /// The same hint, where it is of a merge: one that was known at this time.
    #[must_use]
    pub fn known_at(mut self, time: Option<Timestamp>) -> Self {
        if let Self::Merged { at, .. } = &mut self {
            *at = time;
        }
        self
    }
}

/// What came of one hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The line moved.
    Updated {
        /// The line.
        line: Line,
        /// Where it points now.
        to: Digest,
        /// The project that the line is of.
        project: ProjectName,
        /// Records of the cache.
        records: usize,
        /// Bytes of what BuildKit has to import of it, to hold against [`SAFE_SIZE`](buildkit_cache::SAFE_SIZE).
        size: usize,
        /// The commits that a merge brought.
        merged: Vec<Commit>,
        /// Records that are on probation in it.
        on_probation: usize,
        /// The builds that moved it. Where several hints moved a line at once, the first tells of all.
        builds: Vec<MeasuredBuild>,
    },
    /// The line of a cache mount moved.
    MountSaved {
        /// The project.
        project: ProjectName,
        /// The mount.
        mount: MountId,
        /// Where its line points now.
        to: Digest,
        /// Bytes of its layers, compressed.
        bytes: u64,
        /// How many there are.
        layers: usize,
        /// The build that saved it.
        build: String,
    },
    /// The line had lost layers, and keeps what rests on none of them.
    Repaired {
        /// The line's tag.
        tag: Tag,
    },
    /// The line already holds all of it.
    Unchanged {
        /// The line.
        line: Line,
    },
    /// A build that Stoker started has failed: people want to know.
    Failed(BuildFailed),
    /// There is nothing to promote, and why.
    Nothing {
        /// Why.
        why: String,
    },
}

/// A build that ended well, and how much of it came out of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredBuild {
    /// Its id.
    pub build: String,
    /// What it built.
    pub commit: Commit,
    /// How warm it was.
    pub hit_rate: CacheHitRate,
    /// How many of a hundred steps of its line's build before came out of the cache, where that is known.
    pub before_percent: Option<u8>,
    /// By how many seconds it was shorter than the newest build of its line or of main that found nothing in the cache; of a
    /// build of several targets only the first one's line says it.
    pub saved_seconds: Option<u64>,
}

/// Promotion failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call failed.
    #[error("promotion stopped half way, and starts again from what it finds")]
    Call(#[from] CallError),
    /// The line's tag holds something that is not Stoker's to replace.
    #[error("{tag} of {repository} is left alone: {why}")]
    ForeignLine {
        /// The tag.
        tag: Tag,
        /// Its repository.
        repository: CacheRepository,
        /// What it holds.
        why: String,
    },
    /// The registry has not made a blob of one repository one of another: it never does, or no manifest refers to the blob.
    #[error(
        "the registry did not mount a layer in {to}, although {from} has it. ECR mounts where `aws ecr get-account-setting \
         --name BLOB_MOUNTING` says ENABLED (`aws ecr put-account-setting --name BLOB_MOUNTING --value ENABLED` makes it \
         so), both repositories are encrypted with the same key, and an image of {from} still refers to the blob (where none \
         does, the next build's export will do). For a registry that mounts nothing leave `builds-repository` out of the policy"
    )]
    NotMounted {
        /// The builds repository.
        from: CacheRepository,
        /// The trusted one.
        to: CacheRepository,
    },
    /// The line took too long.
    #[error("moving {line} was given up half way, as it took too long")]
    TooSlow {
        /// The line.
        line: Line,
    },
    /// It was not begun, as others of its batch took the time.
    #[error("there was no time left for {of}")]
    NoTime {
        /// The line, or what was to move it.
        of: String,
    },
    /// There is more besides records than BuildKit imports, such as a branch's name.
    #[error("the cache for {line} would have {bytes} bytes, more than BuildKit imports")]
    TooLarge {
        /// The line.
        line: Line,
        /// Size of the config or the manifest.
        bytes: usize,
    },
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Call(error) => error.disposition(),
            Self::TooSlow { .. } | Self::NoTime { .. } => Disposition::Retry,
            Self::ForeignLine { .. } | Self::NotMounted { .. } | Self::TooLarge { .. } => Disposition::Alarm,
        }
    }
}

/// The answer to one hint: what came of it for each line that it touches.
pub type Answer = Result<Vec<Outcome>, Arc<Error>>;

/// One move that a hint asks for.
#[derive(Debug, Clone)]
struct UpdateRequest {
    /// The hint's place in the batch.
    trigger: usize,
    project: Project,
    scope: Scope,
    /// `None` where nothing is to be merged, and only what has been on probation for too long is to leave.
    source: Option<UpdateSource>,
}

/// Why a line is to move: what is to be merged into it.
#[derive(Debug, Clone)]
enum UpdateSource {
    /// A build's export, under this tag of the repository that builds write to.
    Built(Tag, Built, BuildFacts),
    /// A commit's cache, and when it was merged: as this line built it, or as the only one that has.
    Merged(Mark, Option<Line>),
}

/// What else is known of a build.
#[derive(Debug, Clone, Default)]
struct BuildFacts {
    /// It was to build from scratch.
    refresh: bool,
    /// A digest over the base images that it was started with.
    bases: Option<String>,
    /// How long it took.
    seconds: Option<u64>,
    /// The commits that came to its line with what it built.
    merged: Vec<Commit>,
    /// A build of the commit by another line is promoted at the same time.
    is_shared: bool,
}

/// The moves of one line, which are one read and one write of it.
type UpdateRequests = BTreeMap<(ProjectName, Scope, Line), Vec<UpdateRequest>>;

/// Handles a batch of hints; answers each in its place. Lines are handled at the same time and fail apart; an error
/// of a line is the answer to every hint for it.
pub async fn promote(
    ports: &impl Ports,
    policy: &Policy,
    triggers: &[PromotionTrigger],
    now: Timestamp,
) -> Vec<Answer> {
    promote_in_turn(ports, policy, triggers, (&Shares::default(), false), now).await
}

/// [`promote`], where others may wait. The branches of a project that has taken more than its share are let go while anybody else waits, in
/// this batch or, as `is_late` says, behind it: the nightly reconciliation promotes them.
pub async fn promote_in_turn(
    ports: &impl Ports,
    policy: &Policy,
    triggers: &[PromotionTrigger],
    (shares, is_late): (&Shares, bool),
    now: Timestamp,
) -> Vec<Answer> {
    let mut answers: Vec<Answer> = triggers.iter().map(|_| Ok(Vec::new())).collect();
    let started = Instant::now();
    let (mut moves, mounts) = gather(ports, policy, triggers, &mut answers, now).await;
    note_shared(&mut moves);
    let budget = ByteBudget::new();
    let lines = in_turn(moves);
    let others_wait =
        is_late || lines.iter().any(|(project, ..)| Some(project) != lines.first().map(|line| &line.0));
    let (taken, budget) = (RefCell::new(BTreeMap::new()), &budget);
    let moved = stream::iter(lines).map(|(project, line, moves)| {
        let taken = &taken;
        async move {
            let triggers: BTreeSet<usize> = moves.iter().map(|one| one.trigger).collect();
            if started.elapsed() > BATCH_DEADLINE {
                return (triggers, Err(Arc::new(Error::NoTime { of: line.to_string() })));
            }
            let deadline = if line == Line::Main {
                Instant::now() + LINE_DEADLINE
            } else if others_wait && shares.is_exceeded(&project, now) {
                tracing::warn!(project.name = %project, %line, "left to the night, as the project has taken more than its share");
                let why = "others wait, and the project has taken more than its share".to_owned();
                return (triggers, Ok(Outcome::Nothing { why }));
            } else {
                started + BRANCHES_DEADLINE
            };
            let update = line::update(ports, budget, line.clone(), moves, now);
            let updated = timeout_at(deadline, update).await;
            if line != Line::Main {
                taken.borrow_mut().insert(project, started.elapsed());
            }
            (triggers, updated.unwrap_or(Err(Error::TooSlow { line })).map_err(Arc::new))
        }
    });
    let mut moved: Vec<_> = moved.buffered(LINES_AT_ONCE).collect().await;
    for requests in mounts.into_values() {
        let triggers = requests.iter().map(|one| one.trigger).collect();
        let update = mounts::update(ports, requests, now);
        let updated = timeout_at(Instant::now() + LINE_DEADLINE, update).await;
        let updated = updated.unwrap_or(Err(Error::TooSlow { line: Line::Main }));
        moved.push((triggers, updated.map_err(Arc::new)));
    }
    for (project, took) in taken.take() {
        shares.add(&project, took, now);
    }
    for (triggers, result) in moved {
        let mut result = result;
        for trigger in triggers {
            match (&mut answers[trigger], &mut result) {
                (Ok(outcomes), Ok(outcome)) => {
                    outcomes.push(outcome.clone());
                    if let Outcome::Updated { builds, .. } = outcome {
                        builds.clear();
                    }
                }
                (answer, Err(error)) => *answer = Err(Arc::clone(error)),
                (Err(_), Ok(_)) => {}
            }
        }
    }
    answers
}

/// The lines in the order in which they are begun: main's before branches, and the projects with the fewest lines first.
fn in_turn(moves: UpdateRequests) -> Vec<(ProjectName, Line, Vec<UpdateRequest>)> {
    let mut counts: BTreeMap<ProjectName, usize> = BTreeMap::new();
    for (project, ..) in moves.keys() {
        *counts.entry(project.clone()).or_default() += 1;
    }
    let lines = moves.into_iter().map(|((project, _, line), moves)| (project, line, moves));
    let mut lines: Vec<_> = lines.collect();
    lines.sort_by_key(|(project, line, _)| (*line != Line::Main, counts.get(project).copied()));
    lines
}

/// Says in the moves by builds which commits several lines have built: lines move at the same time, and do not see each
/// other's writes.
fn note_shared(moves: &mut UpdateRequests) {
    let mut lines: BTreeMap<(Scope, Commit), BTreeSet<Line>> = BTreeMap::new();
    for ((_, scope, line), moves) in &*moves {
        for one in moves {
            if let Some(UpdateSource::Built(_, built, _)) = &one.source {
                lines.entry((scope.clone(), built.commit.clone())).or_default().insert(line.clone());
            }
        }
    }
    for ((_, scope, _), moves) in moves {
        for one in moves {
            if let Some(UpdateSource::Built(_, built, facts)) = &mut one.source {
                let lines = lines.get(&(scope.clone(), built.commit.clone()));
                facts.is_shared = lines.is_some_and(|lines| lines.len() > 1);
            }
        }
    }
}

/// Turns hints into moves: finds the projects, and asks CodeBuild what the builds really were.
async fn gather(
    ports: &impl Ports,
    policy: &Policy,
    triggers: &[PromotionTrigger],
    answers: &mut [Answer],
    now: Timestamp,
) -> (UpdateRequests, mounts::Requests) {
    let (mut moves, mut mounts) = (UpdateRequests::new(), mounts::Requests::new());
    // Every build of the account comes by here; Stoker may, and need, ask only about the policy's.
    let is_served = |build: &str| {
        let name = build.split_once(':').and_then(|(project, _)| ProjectName::new(project).ok());
        name.is_some_and(|name| policy.project(&name).is_some() || policy.builds_forks(&name))
    };
    let built = triggers.iter().filter_map(|trigger| match trigger {
        PromotionTrigger::Built { build } | PromotionTrigger::Failed { build, .. } if is_served(build) => {
            Some(build.clone())
        }
        _ => None,
    });
    let ids: Vec<String> = built.collect::<BTreeSet<_>>().into_iter().collect();
    let builds =
        if ids.is_empty() { Ok(Vec::new()) } else { ports.get(&ids).await.map_err(|e| Arc::new(e.into())) };

    let exported = exported(ports, policy, triggers).await;
    for (index, trigger) in triggers.iter().enumerate() {
        let gathered = match (trigger, &builds) {
            (PromotionTrigger::Built { build } | PromotionTrigger::Failed { build, .. }, _)
                if !is_served(build) =>
            {
                Ok(Err("the policy does not name the project".to_owned()))
            }
            (PromotionTrigger::Built { .. } | PromotionTrigger::Failed { .. }, Err(error)) => {
                Err(Arc::clone(error))
            }
            (PromotionTrigger::Failed { build, status }, Ok(builds)) => {
                let build = builds.iter().find(|known| known.id == *build);
                answers[index] = Ok(vec![failed(build, status)]);
                continue;
            }
            (PromotionTrigger::Built { build }, Ok(builds)) => {
                Ok(match builds.iter().find(|known| known.id == *build) {
                    None => Err("CodeBuild does not know the build".to_owned()),
                    Some(build) => built_moves(policy, build),
                })
            }
            (PromotionTrigger::Exported { repository, tag }, _) => {
                exported_moves(policy, repository, tag, &exported)
            }
            (PromotionTrigger::Merged { repository, line, commits, head, at }, _) => {
                // A forge's clock may be ahead.
                let at = at.map_or(now, |at| at.min(now));
                let moves = merged_moves(ports, policy, repository, line, commits, head.as_ref(), at).await;
                moves.map(Ok).map_err(|error| Arc::new(error.into()))
            }
            (PromotionTrigger::Fork { repository, line, head }, _) => {
                answers[index] = note_fork(ports, policy, repository, line, head).await.map_err(Arc::new);
                continue;
            }
            (PromotionTrigger::Overdue { project }, _) => Ok(overdue_moves(policy, project)),
        };
        match gathered {
            Err(error) => answers[index] = Err(error),
            Ok(Err(why)) => answers[index] = Ok(vec![Outcome::Nothing { why }]),
            Ok(Ok(found)) => {
                for Found { project, scope, line, source, saved } in found {
                    if let Some(saved) = saved {
                        let request = mounts::Request { trigger: index, project, scope, saved };
                        let key = (request.project.name.clone(), request.scope.clone());
                        mounts.entry(key).or_default().push(request);
                        continue;
                    }
                    let key = (project.name.clone(), scope.clone(), line);
                    moves.entry(key).or_default().push(UpdateRequest {
                        trigger: index,
                        project,
                        scope,
                        source,
                    });
                }
            }
        }
    }
    (moves, mounts)
}

/// A move, and of what.
struct Found {
    project: Project,
    scope: Scope,
    line: Line,
    source: Option<UpdateSource>,
    /// Of a mount's line: what a build did with the mount.
    saved: Option<mounts::Saved>,
}

/// The moves that a build's end asks for, one for each target that it exported, if it is a build that Stoker gave
/// export tags and that ended well.
fn built_moves(policy: &Policy, build: &Build) -> Result<Vec<Found>, String> {
    let project = policy.project(&build.project).ok_or("the policy does not name the project")?;
    if build.status != BuildStatus::Succeeded {
        return Err("the build has not succeeded".to_owned());
    }
    let inputs = build.inputs.as_ref().ok_or("the build was given nothing by Stoker")?;
    if build.claims && inputs.line == Line::Main {
        return Err(
            "main is filled only by builds that Stoker started; this one says itself that it is main's"
                .to_owned(),
        );
    }
    if build.claims && !is_of_branch(build.source_version.as_deref(), &inputs.line) {
        return Err(format!(
            "the build says itself that it is of {}, and CodeBuild does not say that it built that branch",
            inputs.line
        ));
    }
    if inputs.line == Line::Main
        && inputs.commit.is_none()
        && let Some(other) = other_branch(&project, build.source_version.as_deref())
    {
        return Err(format!(
            "CodeBuild says that the build was of `{other}`, which is not the default branch"
        ));
    }
    if inputs.exports.is_empty() {
        return Err("the build was not to write a cache".to_owned());
    }
    let resolved = build.resolved_commit.as_deref().and_then(|commit| Commit::new(commit).ok());
    let commit = resolved.or_else(|| inputs.commit.clone()).ok_or("the build's commit is not known")?;
    if inputs.commit.as_ref().is_some_and(|told| *told != commit) {
        return Err("the build built another commit than it was told to".to_owned());
    }
    let built = Built { at: build.started_at, commit, build: build.id.clone() };
    // What a build says of itself must not push out what its line holds.
    let seconds =
        build.ended_at.and_then(|ended| ended.duration_since(build.started_at).as_secs().try_into().ok());
    let told = if build.claims {
        BuildFacts { seconds, ..BuildFacts::default() }
    } else {
        let (bases, merged) = (inputs.bases.clone(), inputs.merged.clone());
        BuildFacts { refresh: inputs.refresh, bases, seconds, merged, is_shared: false }
    };
    // Each target of a build has one; more would only cost what reading them costs.
    let scopes: BTreeSet<_> =
        inputs.exports.iter().map(|export| Tag::parse(export).map(|(scope, _)| scope)).collect();
    if scopes.len() < inputs.exports.len() {
        return Err("the build names several exports for one target".to_owned());
    }
    let moves = inputs.exports.iter().map(|export| match Tag::parse(export) {
        Some((scope, TagKind::Export(key))) if project.scopes().any(|own| *own == scope) => {
            let source = UpdateSource::Built(Tag::export(&scope, &key), built.clone(), told.clone());
            let (project, line) = (project.clone(), inputs.line.clone());
            Ok(Found { project, scope, line, source: Some(source), saved: None })
        }
        _ => Err("the build's export tag is not one of its project's".to_owned()),
    });
    let saved = mounts::saved(&project, inputs, &built, seconds).into_iter().map(|(scope, saved)| {
        let (project, line) = (project.clone(), inputs.line.clone());
        Ok(Found { project, scope, line, source: None, saved: Some(saved) })
    });
    moves.chain(saved).collect()
}

/// Whether CodeBuild's own word for what a build was started with is the branch of this line: `refs/heads/<branch>`, with or
/// without the commit that its webhook pins. A bare name may also be a pull request, a tag or a commit: a fork's seventh pull
/// request is `pr/7`, and so may a branch be called.
fn is_of_branch(source_version: Option<&str>, line: &Line) -> bool {
    let (Some(version), Line::Branch(branch)) = (source_version, line) else { return false };
    let version = version.split_once("^{").map_or(version, |(reference, _)| reference);
    version.strip_prefix("refs/heads/") == Some(branch.as_str())
}

/// The branch that CodeBuild says was built instead of the project's default branch, where the policy names that: a build of
/// main's head may have found another one in its project. One that was given a commit of main has built that commit.
fn other_branch<'a>(project: &Project, source_version: Option<&'a str>) -> Option<&'a str> {
    let default = project.named_default_branch.as_ref()?;
    let version = source_version.filter(|version| !version.is_empty())?;
    let branch = version.strip_prefix("refs/heads/").unwrap_or(version);
    (branch != default.as_str()).then_some(branch)
}

/// A failure that concerns Stoker's users: of a build that Stoker started.
fn failed(build: Option<&Build>, status: &str) -> Outcome {
    let started = build.filter(|build| !build.claims);
    let Some((build, inputs)) = started.and_then(|build| Some((build, build.inputs.as_ref()?))) else {
        return Outcome::Nothing { why: "the build that failed was not started by Stoker".to_owned() };
    };
    Outcome::Failed(BuildFailed {
        project: build.project.clone(),
        build: build.id.clone(),
        line: inputs.line.to_string(),
        commit: inputs.commit.clone(),
        reason: inputs.reason.clone(),
        status: status.to_owned(),
    })
}

/// The newest builds of the projects whose exports have arrived: read once for each, all at once. Anybody whose build may
/// push can have any number of exports arrive.
type Exported = BTreeMap<ProjectName, Result<Vec<Arc<Build>>, Arc<Error>>>;

async fn exported(ports: &impl ReadBuilds, policy: &Policy, triggers: &[PromotionTrigger]) -> Exported {
    let projects = triggers.iter().filter_map(|trigger| match trigger {
        PromotionTrigger::Exported { repository, tag } => {
            Some(project_of_export(policy, repository, tag)?.name)
        }
        _ => None,
    });
    let projects: BTreeSet<ProjectName> = projects.collect();
    let read = projects.into_iter().map(|project| async {
        let builds = ports.recent(&project, None).await.map_err(|error| Arc::new(Error::from(error)));
        (project, builds)
    });
    join_all(read).await.into_iter().collect()
}

fn project_of_export(policy: &Policy, repository: &CacheRepository, tag: &str) -> Option<Project> {
    let (scope, TagKind::Export(_)) = Tag::parse(tag)? else { return None };
    policy.project_of_export(repository, &scope)
}

/// Finds the build of an export that arrived: usually that is still running, and its end is the next hint. What no build was
/// given is not even looked at.
fn exported_moves(
    policy: &Policy,
    repository: &CacheRepository,
    tag: &str,
    exported: &Exported,
) -> Result<Result<Vec<Found>, String>, Arc<Error>> {
    let Some(project) = project_of_export(policy, repository, tag) else {
        return Ok(Err("the tag is no export's, or the policy names no project for it".to_owned()));
    };
    let builds = match exported.get(&project.name) {
        Some(Ok(builds)) => builds,
        Some(Err(error)) => return Err(Arc::clone(error)),
        None => return Ok(Err("nobody has looked for its build".to_owned())),
    };
    let writes = |build: &&Arc<Build>| {
        build
            .inputs
            .as_ref()
            .is_some_and(|inputs| inputs.exports.iter().chain(&inputs.saves).any(|own| own == tag))
    };
    Ok(match builds.iter().find(writes) {
        None => Err("no build of Stoker's was told to write the export".to_owned()),
        Some(build) => built_moves(policy, build),
    })
}

async fn merged_moves(
    ports: &impl ReadImages,
    policy: &Policy,
    repository: &Repository,
    line: &Line,
    commits: &[Commit],
    head: Option<&(Line, Revision)>,
    at: Timestamp,
) -> Result<Vec<Found>, CallError> {
    let mut moves = Vec::new();
    for project in policy.projects_of(repository) {
        if !project.promotion.into_line(line) {
            continue;
        }
        let named = match head {
            Some((branch, head)) => {
                let commit = match head.commit() {
                    Some(commit) => Some(commit),
                    None => whole(ports, &project, branch, head).await?,
                };
                commit.map(|commit| UpdateSource::Merged(Mark::new(commit, at), Some(branch.clone())))
            }
            None => None,
        };
        let unnamed =
            commits.iter().rev().map(|commit| UpdateSource::Merged(Mark::new(commit.clone(), at), None));
        for source in named.into_iter().chain(unnamed).take(MAX_COMMITS) {
            moves.extend(project.scopes().map(|scope| Found {
                project: project.clone(),
                scope: scope.clone(),
                line: line.clone(),
                source: Some(source.clone()),
                saved: None,
            }));
        }
    }
    Ok(moves)
}

/// Notes that a commit is the head of a fork's pull request, before any line of the batch moves. Whoever may push a branch may
/// have that very commit built from a cache of their own, and nothing about the merge would tell it from the fork's.
async fn note_fork(
    ports: &impl Ports,
    policy: &Policy,
    repository: &Repository,
    line: &Line,
    head: &Revision,
) -> Result<Vec<Outcome>, Error> {
    let projects = policy.projects_of(repository);
    let brings = projects.iter().filter(|project| project.promotion.into_line(&Line::Main));
    let notes = brings.flat_map(|project| {
        let tags = project.scopes().filter_map(|scope| Tag::fork(scope, head));
        tags.map(move |tag| async move {
            let note = Cache::default().serialise(provenance::of_fork(&project.name, line, head));
            let to = &project.cache_repository;
            ports.put_blob(to, &note.config_digest, Bytes::from(note.config)).await?;
            ports.put_image(to, &tag, MANIFEST_MEDIA_TYPE, Bytes::from(note.manifest)).await
        })
    });
    let noted = try_join_all(notes).await?.len();
    let why = format!("no push brings what was built of a fork's head: noted under {noted} tags");
    Ok(vec![Outcome::Nothing { why }])
}

fn overdue_moves(policy: &Policy, project: &ProjectName) -> Result<Vec<Found>, String> {
    let project = policy.project(project).ok_or("the policy does not name the project")?;
    let found = |scope: &Scope| Found {
        project: project.clone(),
        scope: scope.clone(),
        line: Line::Main,
        source: None,
        saved: None,
    };
    Ok(project.scopes().map(found).collect())
}

/// The commit whose hash begins like this, if it is the newest that the branch's line holds a build of.
async fn whole(
    ports: &impl ReadImages,
    project: &Project,
    branch: &Line,
    head: &Revision,
) -> Result<Option<Commit>, CallError> {
    let lines: Vec<Tag> = project.scopes().map(|scope| Tag::line(scope, branch)).collect();
    let images = read_images(ports, &project.cache_repository, &lines).await?;
    let built = images.iter().flatten().filter_map(|image| Provenance::of_manifest(&image.manifest)?.built);
    Ok(built.map(|built| built.commit).find(|commit| head.names(commit)))
}
