//! Starting a build: once for a commit of a line, with the caches that are best for it.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::error::{CallError, chain};
use crate::handout::{Handed, Handout, Source, Wanted, resolve};
use crate::names::{Commit, Line, Scope, Tag};
use crate::policy::Project;
use crate::ports::{
    Build, BuildOrder, BuildStatus, Ordered, ReadBuilds, ReadImages, StartBuilds, read_images,
};

/// How often a build's start looks for a cache that is about to come, and how long it waits between.
const PATIENCE: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

/// A build that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it reads.
    pub wanted: Wanted,
    /// What it builds.
    pub subject: Subject,
    /// Why, for people.
    pub reason: String,
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
    },
}

/// What came of a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A build started.
    Started {
        /// Its id.
        id: String,
        /// What it was handed.
        sources: Vec<Source>,
    },
    /// This commit of this line has been built, or is being built.
    AlreadyBuilt {
        /// The id of that build.
        id: String,
    },
    /// Another delivery ordered the same build a moment ago.
    AlreadyOrdered,
    /// CodeBuild has no project of that name.
    NoSuchProject,
}

/// Starts a build unless it has been started before. `recent` are the project's newest builds.
///
/// Two guards make it once: CodeBuild's own idempotency token holds for five minutes and covers deliveries that race
/// each other; the project's build history covers those that come later.
pub async fn start(
    ports: &(impl ReadImages + StartBuilds),
    registry: &str,
    project: &Project,
    request: &Request,
    recent: &[Build],
) -> Result<Outcome, CallError> {
    if let Subject::Commit(commit) = &request.subject
        && let Some(build) = build_of(recent, &request.wanted.line, commit)
    {
        return Ok(Outcome::AlreadyBuilt { id: build.id.clone() });
    }
    // A build without caches is cold; a build that is not started is worse.
    let mut wanted = request.wanted.clone();
    if !project.promotion.into_line(&wanted.line) {
        wanted.merged.clear();
    }
    let sources = patient_resolve(ports, project, &wanted, recent).await.unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), project = %project.name, "the build starts without caches");
        Vec::new()
    });
    let commit = match &request.subject {
        Subject::Commit(commit) => Some(commit.clone()),
        Subject::Head { .. } => None,
    };
    let handout = Handout {
        line: request.wanted.line.clone(),
        reason: request.reason.clone(),
        export: export_tag(project, &request.subject),
        merged: request.wanted.merged.clone(),
        sources,
        commit: commit.clone(),
    };
    let order = BuildOrder {
        project: project.name.clone(),
        source_version: commit.map(String::from),
        environment: handout.environment(registry, project),
        token: token(project, &request.wanted.line, &request.subject),
    };
    Ok(match ports.start(&order).await? {
        Ordered::Started(id) => Outcome::Started { id, sources: handout.sources },
        Ordered::AlreadyOrdered => Outcome::AlreadyOrdered,
        Ordered::NoSuchProject => Outcome::NoSuchProject,
    })
}

/// [`resolve`], which waits a moment for the cache of a merged commit whose build has just ended: that is about to be
/// promoted, and a build that starts now would be cold.
async fn patient_resolve(
    images: &impl ReadImages,
    project: &Project,
    wanted: &Wanted,
    recent: &[Build],
) -> Result<Vec<Source>, CallError> {
    let is_built = |commit: &&Commit| {
        recent.iter().any(|build| {
            build.status == BuildStatus::Succeeded
                && Handed::read(&build.environment)
                    .is_some_and(|handed| handed.export.is_some() && handed.commit.as_ref() == Some(commit))
        })
    };
    let scope = Scope::of(&project.name);
    // Main's own builds leave no commit's cache.
    let awaited: Vec<Tag> = wanted
        .merged
        .iter()
        .filter(|commit| build_of(recent, &wanted.line, commit).is_none())
        .filter(is_built)
        .map(|commit| Tag::commit(&scope, commit))
        .collect();
    for _ in 0..PATIENCE {
        let found = read_images(images, &project.cache_repository, &awaited).await?;
        if found.iter().all(Option::is_some) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    resolve(images, project, wanted).await
}

/// [`start`], asking CodeBuild for the recent builds.
pub async fn start_once(
    ports: &(impl ReadImages + StartBuilds + ReadBuilds),
    registry: &str,
    project: &Project,
    request: &Request,
) -> Result<Outcome, CallError> {
    let recent = ports.recent(&project.name).await?;
    start(ports, registry, project, request, &recent).await
}

/// The build of this commit of this line.
#[must_use]
pub fn build_of<'a>(builds: &'a [Build], line: &Line, commit: &Commit) -> Option<&'a Build> {
    builds.iter().filter(|build| !build.claims).find(|build| {
        Handed::read(&build.environment)
            .is_some_and(|handed| handed.line == *line && handed.commit.as_ref() == Some(commit))
    })
}

/// A build of this line that has not ended.
#[must_use]
pub fn running<'a>(builds: &'a [Build], line: &Line) -> Option<&'a Build> {
    builds.iter().find(|build| {
        build.status == BuildStatus::InProgress
            && !build.claims
            && Handed::read(&build.environment).is_some_and(|handed| handed.line == *line)
    })
}

/// The tag for a build's export: of 128 bits that nobody can guess, so that no other build can write it first. `None`
/// where the system has no such bits; the build then writes no cache.
#[must_use]
pub fn export_tag(project: &Project, subject: &Subject) -> Option<Tag> {
    let start = match subject {
        Subject::Commit(commit) => commit.short(),
        Subject::Head { .. } => "head",
    };
    let mut secret = [0; 16];
    if let Err(error) = getrandom::fill(&mut secret) {
        tracing::error!(error = chain(&error), project = %project.name, "the build gets no tag to write to");
        return None;
    }
    Some(Tag::export(&Scope::of(&project.name), &format!("{start}-{}", hex::encode(secret))))
}

/// CodeBuild's idempotency tokens are per account: at most 64 characters. The same request always has the same.
fn token(project: &Project, line: &Line, subject: &Subject) -> String {
    let what = match subject {
        Subject::Commit(commit) => commit.as_str(),
        Subject::Head { key } => key.as_str(),
    };
    hex::encode(Sha256::digest(format!("{}\n{line}\n{what}", project.name)))
}
