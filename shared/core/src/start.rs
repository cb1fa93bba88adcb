//! Starting a build: once for a commit of a line, with the caches that are best for it.

use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::build_inputs::{BuildInputs, GivenInputs, Source};
use crate::error::{CallError, chain};
use crate::mounts;
use crate::names::{Branch, Commit, Line, ProjectName};
use crate::policy::{Project, Superseded};
use crate::ports::{Build, BuildOrder, BuildStatus, Ordered, Pause, StartBuilds};
use crate::recent_builds::{build_of, of_line};
use crate::request::{Request, Subject};
use crate::sources::{self, await_commits, give};

/// The ports that a start needs.
pub trait Ports: sources::Ports + StartBuilds + Pause {}
impl<P: sources::Ports + StartBuilds + Pause> Ports for P {}

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
    ports: &impl Ports,
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
    let reads = if let Subject::Head { refresh: true, .. } = &request.subject {
        Vec::new()
    } else {
        let wanted = request.readable(project);
        await_commits(ports, project, &wanted, recent).await;
        // A build without caches is cold; a build that is not started is worse.
        let mut reads = give(ports, project, &wanted, now).await.unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), project = %project.name, "the build starts without caches");
            Vec::new()
        });
        mounts::give(ports, project, &wanted.line, &mut reads, recent, now).await;
        reads
    };
    let build_inputs = BuildInputs::of(project, request, reads);
    let order = BuildOrder {
        project: request.built_by.clone(),
        source_version: match (&build_inputs.commit, &request.reference) {
            (Some(commit), Some(reference)) => Some(format!("{reference}^{{{commit}}}")),
            (Some(commit), None) => Some(commit.to_string()),
            (None, Some(reference)) => Some(reference.clone()),
            // A project may name a version of its own, which need not be main's. But to guess a branch that
            // is not there would make every night's build fail.
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

/// CodeBuild's idempotency tokens are per account: at most 64 characters. The same request always has the same.
fn token(built_by: &ProjectName, line: &Line, subject: &Subject, stopped: Option<&str>) -> String {
    let what = match subject {
        Subject::Commit(commit) => commit.as_str(),
        Subject::Head { key, .. } => key.as_str(),
    };
    let again = stopped.unwrap_or_default();
    hex::encode(Sha256::digest(format!("{built_by}\n{line}\n{what}\n{again}")))
}
