//! Starting a build: once for a commit of a line, with the caches that are best for it.

use sha2::{Digest as _, Sha256};

use crate::error::{CallError, chain};
use crate::handout::{Handed, Handout, Source, Wanted, resolve};
use crate::names::{Commit, Line, Scope, Tag};
use crate::policy::Project;
use crate::ports::{Build, BuildOrder, BuildStatus, Ordered, ReadBuilds, ReadImages, StartBuilds};

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
    let sources = resolve(ports, project, &request.wanted).await.unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), project = %project.name, "the build starts without caches");
        Vec::new()
    });
    let key = export_key(&request.wanted.line, &request.subject);
    let commit = match &request.subject {
        Subject::Commit(commit) => Some(commit.clone()),
        Subject::Head { .. } => None,
    };
    let handout = Handout {
        line: request.wanted.line.clone(),
        reason: request.reason.clone(),
        export: Some(Tag::export(&Scope::of(&project.name), &key)),
        sources,
        commit: commit.clone(),
    };
    let order = BuildOrder {
        project: project.name.clone(),
        source_version: commit.map(String::from),
        environment: handout.environment(registry, &project.cache_repository),
        token: token(project, &key),
    };
    Ok(match ports.start(&order).await? {
        Ordered::Started(id) => Outcome::Started { id, sources: handout.sources },
        Ordered::AlreadyOrdered => Outcome::AlreadyOrdered,
        Ordered::NoSuchProject => Outcome::NoSuchProject,
    })
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
    builds.iter().find(|build| {
        Handed::read(&build.environment)
            .is_some_and(|handed| handed.line == *line && handed.commit.as_ref() == Some(commit))
    })
}

/// A build of this line that has not ended.
#[must_use]
pub fn running<'a>(builds: &'a [Build], line: &Line) -> Option<&'a Build> {
    builds.iter().find(|build| {
        build.status == BuildStatus::InProgress
            && Handed::read(&build.environment).is_some_and(|handed| handed.line == *line)
    })
}

/// The key of a build's export. The same request always has the same key.
#[must_use]
pub fn export_key(line: &Line, subject: &Subject) -> String {
    let (start, what) = match subject {
        Subject::Commit(commit) => (commit.short(), commit.as_str()),
        Subject::Head { key } => ("head", key.as_str()),
    };
    let hash = hex::encode(Sha256::digest(format!("{line}\n{what}")));
    format!("{start}-{}", &hash[..16])
}

/// CodeBuild's idempotency tokens are per account: at most 64 characters.
fn token(project: &Project, key: &str) -> String {
    hex::encode(Sha256::digest(format!("{}\n{key}", project.name)))
}
