//! Starting a build: once for a commit of a line, with the caches that are best for it.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::build_inputs::{BuildInputs, GivenInputs, Part, Reads, Source, Trust, Wanted, exports};
use crate::error::{CallError, chain};
use crate::mounts;
use crate::names::{Branch, Commit, Line, ProjectName, Scope, Tag};
use crate::policy::{Project, Superseded};
use crate::ports::{Build, BuildOrder, BuildStatus, Ordered, ReadImages, StartBuilds, read_images};
use crate::sources::{self, give};

/// How often a build's start looks for a cache that is about to come, and how long it waits between.
const PATIENCE: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);
/// A cache is about to come only of a build that started this long before the project's newest.
const RECENT: SignedDuration = SignedDuration::from_hours(1);

/// A build that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it reads.
    pub wanted: Wanted,
    /// What it builds.
    pub subject: Subject,
    /// Whose code that is.
    pub trust: Trust,
    /// Why, for people.
    pub reason: String,
    /// The `CodeBuild` project that runs it: another than the caches' own for a fork's code.
    pub built_by: ProjectName,
    /// The git reference to fetch: one that holds the commit, where CodeBuild takes one beside it, or that of a head.
    pub reference: Option<String>,
    /// When the forge got the push, where it says so.
    pub pushed_at: Option<Timestamp>,
    /// The line's head before.
    pub overtakes: Option<Commit>,
}

/// What a build builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// One commit, which is built once.
    Commit(Commit),
    /// Whatever the default branch's head is; at most once per `key`.
    Head {
        /// Names the occasion, such as a night.
        key: String,
        /// From scratch: what it exports takes the place of its line's cache.
        refresh: bool,
        /// A digest over the base images, where the policy names some.
        bases: Option<String>,
    },
}

/// What came of a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A build started.
    Started {
        /// Its id.
        id: String,
        /// What it may read, over all its targets.
        sources: Vec<Source>,
    },
    /// This commit of this line has been built, or is being built.
    AlreadyBuilt {
        /// The id of that build.
        id: String,
    },
    /// A newer push of this line has been built, and the policy wants no build of what it has overtaken.
    Overtaken {
        /// The id of the newer build.
        id: String,
    },
    /// Another delivery ordered the same build a moment ago.
    AlreadyOrdered,
    /// CodeBuild has no project of that name.
    NoSuchProject,
}

/// Starts a build unless it has been started before. `recent` are the newest builds of the project that runs it.
///
/// Two guards make it once: CodeBuild's own idempotency token holds for five minutes and covers deliveries that race
/// each other; the project's build history covers those that come later.
pub async fn start(
    ports: &(impl sources::Ports + StartBuilds),
    registry: &str,
    project: &Project,
    request: &Request,
    recent: &[Arc<Build>],
    now: Timestamp,
) -> Result<Outcome, CallError> {
    let line = &request.wanted.line;
    let mut stopped = None;
    if let Subject::Commit(commit) = &request.subject
        && let Some(build) = build_of(recent, line, commit)
    {
        // A build that was stopped, as a newer push overtook it, is no build of a push that comes back to its commit.
        if build.status != BuildStatus::Stopped || !is_newer(request, build) {
            return Ok(Outcome::AlreadyBuilt { id: build.id.clone() });
        }
        stopped = Some(build.id.as_str());
    }
    let newer = |inputs: &GivenInputs| inputs.pushed_at > request.pushed_at && request.pushed_at.is_some();
    if stops(project, line)
        && let Some((build, _)) = of_line(recent, line).find(|(_, inputs)| newer(inputs))
    {
        return Ok(Outcome::Overtaken { id: build.id.clone() });
    }
    let build_inputs = build_inputs(ports, project, request, recent, now).await;
    let order = BuildOrder {
        project: request.built_by.clone(),
        source_version: match (&build_inputs.commit, &request.reference) {
            (Some(commit), Some(reference)) => Some(format!("{reference}^{{{commit}}}")),
            (Some(commit), None) => Some(commit.to_string()),
            (None, Some(reference)) => Some(reference.clone()),
            // A project may name a version of its own, which need not be main's. But to guess a branch that is not there
            // would make every night's build fail.
            (None, None) => project.named_default_branch.as_ref().map(Branch::to_string),
        },
        environment: build_inputs.environment(registry, project),
        token: token(&request.built_by, line, &request.subject, stopped),
    };
    Ok(match ports.start(&order).await? {
        Ordered::Started(id) => {
            let sources = build_inputs.parts.into_iter().flat_map(|part| part.reads.sources).collect();
            Outcome::Started { id, sources }
        }
        Ordered::AlreadyOrdered => Outcome::AlreadyOrdered,
        Ordered::NoSuchProject => Outcome::NoSuchProject,
    })
}

/// Whether a request is of a push that came after the one that this build was started for.
fn is_newer(request: &Request, build: &Build) -> bool {
    let pushed_at = build.inputs.as_ref().and_then(|inputs| inputs.pushed_at);
    request.pushed_at > pushed_at && pushed_at.is_some()
}

/// A build that was started a moment ago, as far as the next start of its project has to know of it.
#[must_use]
pub fn started(request: &Request, id: &str, now: Timestamp) -> Build {
    let commit = match &request.subject {
        Subject::Commit(commit) => Some(commit.clone()),
        Subject::Head { .. } => None,
    };
    Build {
        id: id.to_owned(),
        project: request.built_by.clone(),
        status: BuildStatus::InProgress,
        started_at: now,
        ended_at: None,
        source_version: commit.as_ref().map(Commit::to_string),
        resolved_commit: commit.as_ref().map(Commit::to_string),
        inputs: Some(GivenInputs {
            commit,
            pushed_at: request.pushed_at,
            ..GivenInputs::of_line(request.wanted.line.clone())
        }),
        claims: false,
    }
}

/// Whether a newer push of a line stops the builds that it overtakes.
fn stops(project: &Project, line: &Line) -> bool {
    project.builds.superseded == Superseded::Stop && !matches!(line, Line::Main | Line::GitTag(_))
}

/// The running builds that a request overtakes, where the policy wants them stopped: those of older pushes of its line.
#[must_use]
pub fn overtaken<'a>(project: &Project, request: &Request, recent: &'a [Arc<Build>]) -> Vec<&'a Build> {
    let line = &request.wanted.line;
    if !stops(project, line) {
        return Vec::new();
    }
    let older = |inputs: &GivenInputs| {
        let by_time = inputs.pushed_at < request.pushed_at && inputs.pushed_at.is_some();
        by_time || (inputs.commit.is_some() && inputs.commit == request.overtakes)
    };
    let running = of_line(recent, line).filter(|(build, _)| build.status == BuildStatus::InProgress);
    running.filter(|(_, inputs)| older(inputs)).map(|(build, _)| build).collect()
}

/// What the build is given. A build without caches is cold; a build that is not started is worse.
async fn build_inputs(
    ports: &impl sources::Ports,
    project: &Project,
    request: &Request,
    recent: &[Arc<Build>],
    now: Timestamp,
) -> BuildInputs {
    if matches!(request.subject, Subject::Head { refresh: true, .. }) {
        return build_inputs_of(project, request, Vec::new());
    }
    let wanted = wanted(project, request);
    await_commits(ports, project, &wanted, recent).await;
    let mut reads = give(ports, project, &wanted, now).await.unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), project = %project.name, "the build starts without caches");
        Vec::new()
    });
    mounts::give(ports, project, &wanted.line, &mut reads, recent, now).await;
    build_inputs_of(project, request, reads)
}

/// What a request may read.
#[must_use]
pub fn wanted(project: &Project, request: &Request) -> Wanted {
    let mut wanted = request.wanted.clone();
    if !project.promotion.into_line(&wanted.line) {
        wanted.merged.clear();
    }
    wanted
}

/// What a build is given, with what it reads for each target.
#[must_use]
pub fn build_inputs_of(project: &Project, request: &Request, reads: Vec<Reads>) -> BuildInputs {
    let (commit, refresh, bases) = match &request.subject {
        Subject::Commit(commit) => (Some(commit.clone()), false, None),
        Subject::Head { refresh, bases, .. } => (None, *refresh, bases.clone()),
    };
    let writes = exports(project, &request.wanted.line, request.trust);
    let reads = reads.into_iter().chain(std::iter::repeat_with(Reads::default));
    let parts = project.targets.iter().zip(reads).map(|(target, mut reads)| {
        if writes && request.wanted.line == Line::Main {
            mounts::save(&target.mounts, &mut reads.mounts, |scope| export_tag(scope, &request.subject));
        }
        Part {
            export: writes.then(|| export_tag(&target.scope, &request.subject)).flatten(),
            target: target.clone(),
            reads,
        }
    });
    BuildInputs {
        line: request.wanted.line.clone(),
        reason: request.reason.clone(),
        parts: parts.collect(),
        merged: request.wanted.merged.clone(),
        pushed_at: request.pushed_at,
        commit,
        refresh,
        bases,
    }
}

/// Waits a moment for the cache of a merged commit whose build has just ended: that is about to be promoted, and a build
/// that starts now would be cold.
async fn await_commits(images: &impl ReadImages, project: &Project, wanted: &Wanted, recent: &[Arc<Build>]) {
    // What has not come by now, of a build that ended long ago, will not come.
    let newest = recent.iter().map(|build| build.started_at).max();
    let is_built = |commit: &&Commit| {
        recent.iter().any(|build| {
            build.status == BuildStatus::Succeeded
                && newest.is_some_and(|newest| newest.duration_since(build.started_at) < RECENT)
                && build.inputs.as_ref().is_some_and(|inputs| {
                    inputs.commit.as_ref() == Some(commit) && !inputs.exports.is_empty()
                })
        })
    };
    // Main's own builds leave no commit's cache.
    let awaited: Vec<Tag> = wanted
        .merged
        .iter()
        .filter(|commit| build_of(recent, &wanted.line, commit).is_none())
        .filter(is_built)
        .flat_map(|commit| project.scopes().map(move |scope| Tag::commit(scope, commit)))
        .collect();
    for _ in 0..PATIENCE {
        match read_images(images, &project.cache_repository, &awaited).await {
            Ok(found) if found.iter().any(Option::is_none) => tokio::time::sleep(PAUSE).await,
            // What cannot be looked up is told of by who needs it.
            _ => break,
        }
    }
}

/// The builds of a line that were started with it, the newest first. What others say of themselves is not believed.
pub fn of_line<'a>(
    builds: &'a [Arc<Build>],
    line: &Line,
) -> impl Iterator<Item = (&'a Build, &'a GivenInputs)> {
    let started = builds.iter().filter(|build| !build.claims);
    let inputs = started.filter_map(|build| Some((&**build, build.inputs.as_ref()?)));
    inputs.filter(move |(_, inputs)| inputs.line == *line)
}

/// The build of this commit of this line: one that was started for it, or that found it as the head.
#[must_use]
pub fn build_of<'a>(builds: &'a [Arc<Build>], line: &Line, commit: &Commit) -> Option<&'a Build> {
    let is_of = |(build, inputs): &(&Build, &GivenInputs)| match &inputs.commit {
        Some(told) => told == commit,
        None => build.resolved_commit.as_deref() == Some(commit.as_str()),
    };
    of_line(builds, line).find(is_of).map(|(build, _)| build)
}

/// A build of this line that has not ended.
#[must_use]
pub fn running<'a>(builds: &'a [Arc<Build>], line: &Line) -> Option<&'a Build> {
    of_line(builds, line).map(|(build, _)| build).find(|build| build.status == BuildStatus::InProgress)
}

/// The tag for a build's export: of 128 bits that nobody can guess, so that no other build can write it first. `None`
/// where the system has no such bits; the build then writes no cache.
#[must_use]
pub fn export_tag(scope: &Scope, subject: &Subject) -> Option<Tag> {
    let start = match subject {
        Subject::Commit(commit) => commit.short(),
        Subject::Head { .. } => "head",
    };
    let mut secret = [0; 16];
    if let Err(error) = getrandom::fill(&mut secret) {
        tracing::error!(error = chain(&error), %scope, "the build gets no tag to write to");
        return None;
    }
    Some(Tag::export(scope, &format!("{start}-{}", hex::encode(secret))))
}

/// CodeBuild's idempotency tokens are per account: at most 64 characters. The same request always has the same.
fn token(built_by: &ProjectName, line: &Line, subject: &Subject, stopped: Option<&str>) -> String {
    let what = match subject {
        Subject::Commit(commit) => commit.as_str(),
        Subject::Head { key, .. } => key.as_str(),
    };
    let again = stopped.unwrap_or_default();
    hex::encode(Sha256::digest(format!("{built_by}\n{line}\n{what}\n{again}")))
}
