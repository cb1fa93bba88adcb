//! Warming: whether main wants a build whose only purpose is to fill its cache.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};

use crate::error::CallError;
use crate::handout::Wanted;
use crate::names::{Commit, Line, ProjectName, Scope, Tag};
use crate::policy::Project;
use crate::ports::{Build, ListProjects, ReadBuilds, ReadImages, StartBuilds};
use crate::provenance::Provenance;
use crate::start::{self, Outcome, Request, Subject};

/// Whether to warm a project's main at night.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Warm it.
    Warm(Reason),
    /// Leave it, and why.
    Skip(String),
}

/// Why main wants warming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Main has no cache.
    Missing,
    /// Main has a cache that no build of main has filled yet.
    NeverBuilt,
    /// The newest build that filled main's cache is older than the policy allows.
    Stale {
        /// Its age.
        age: SignedDuration,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("main has no cache"),
            Self::NeverBuilt => f.write_str("no build has filled main's cache yet"),
            Self::Stale { age } => write!(f, "main's cache was filled {} h ago", age.as_hours()),
        }
    }
}

/// Decides whether to warm main: `main` is the provenance of its cache, `builds` the project's newest builds.
#[must_use]
pub fn decide(project: &Project, main: Option<&Provenance>, builds: &[Build], now: Timestamp) -> Decision {
    if let Some(build) = start::running(builds, &Line::Main) {
        return Decision::Skip(format!("{} is filling main's cache", build.id));
    }
    match main.map(|main| &main.built) {
        None => Decision::Warm(Reason::Missing),
        Some(None) => Decision::Warm(Reason::NeverBuilt),
        Some(Some(built)) => {
            let age = now.duration_since(built.at);
            if age > project.warm.stale_after {
                Decision::Warm(Reason::Stale { age })
            } else {
                Decision::Skip(format!("{} filled main's cache {} min ago", built.build, age.as_mins()))
            }
        }
    }
}

/// What came of warming one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warmed {
    /// A build was asked for.
    Asked(Outcome),
    /// Main wants no warming, and why.
    Skipped(String),
}

/// Warms a project's main if it wants that.
pub async fn warm_if_needed(
    ports: &(impl ReadImages + ReadBuilds + StartBuilds),
    registry: &str,
    project: &Project,
    now: Timestamp,
) -> Result<Warmed, CallError> {
    let main = Tag::line(&Scope::of(&project.name), &Line::Main);
    let image = ports.images(&project.cache_repository, &[main]).await?.into_iter().flatten().next();
    let provenance = image.and_then(|image| Provenance::of_manifest(&image.manifest));
    let builds = ports.recent(&project.name).await?;
    let reason = match decide(project, provenance.as_ref(), &builds, now) {
        Decision::Skip(why) => return Ok(Warmed::Skipped(why)),
        Decision::Warm(reason) => reason,
    };
    let request = Request {
        wanted: Wanted { line: Line::Main, base: None, merged: Vec::new() },
        // The schedule may fire twice: within the minute that is the same order, later the running build is seen.
        subject: Subject::Head { key: now.strftime("%Y-%m-%dT%H:%M").to_string() },
        reason: format!("nightly: {reason}"),
    };
    start::start(ports, registry, project, &request, &builds).await.map(Warmed::Asked)
}

/// The request that a merge makes: main's head with the merged branch's cache, whether or not that has been promoted.
#[must_use]
pub fn after_merge(number: u64, merged: Commit, merge_commit: Commit) -> Request {
    Request {
        wanted: Wanted { line: Line::Main, base: None, merged: vec![merged] },
        subject: Subject::Commit(merge_commit),
        reason: format!("merge of #{number}"),
    }
}

/// Every project that the policy names, and that exists where the policy names by glob.
pub async fn all_projects(
    ports: &impl ListProjects,
    policy: &crate::policy::Policy,
) -> Result<Vec<Project>, CallError> {
    let mut projects: BTreeMap<ProjectName, Project> =
        policy.named_projects().into_iter().map(|project| (project.name.clone(), project)).collect();
    if policy.has_globs() {
        let found = ports.projects().await?;
        projects.extend(found.into_iter().filter_map(|name| Some((name.clone(), policy.project(&name)?))));
    }
    Ok(projects.into_values().collect())
}
