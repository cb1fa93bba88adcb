//! Keeps main's cache filled: after a merge, and every night where it is missing or stale.

use jiff::Timestamp;
use stoker::error::CallError;
use stoker::event::{Envelope, Event};
use stoker::names::ProjectName;
use stoker::policy::{Policy, Project};
use stoker::ports::{ListProjects, ReadBuilds, ReadImages, StartBuilds};
use stoker::start::{Outcome, start_once};
use stoker::warm::{Warmed, after_merge, all_projects, warm_if_needed};

/// The ports that warming needs.
pub trait Ports: ReadImages + ReadBuilds + StartBuilds + ListProjects {}
impl<P: ReadImages + ReadBuilds + StartBuilds + ListProjects> Ports for P {}

/// Handles a merge or the nightly tick. A project that fails does not keep the others from being warmed; the first
/// error is returned at the end, and the retry finds the others warm.
pub async fn handle(
    envelope: &Envelope,
    policy: &Policy,
    registry: &str,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<Vec<(ProjectName, Warmed)>, CallError> {
    let projects = match &envelope.event {
        Event::NightlyWarm {} => all_projects(ports, policy).await?,
        Event::PullRequestMerged(pull) if pull.base == pull.default_branch => {
            policy.projects_of(&pull.repository)
        }
        _ => Vec::new(),
    };
    let mut all = Vec::new();
    let mut first_error = None;
    for project in projects {
        match warm(&envelope.event, registry, &project, ports, now).await {
            Ok(warmed) => {
                tell(&project.name, &warmed);
                all.push((project.name, warmed));
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(all), Err)
}

async fn warm(
    event: &Event,
    registry: &str,
    project: &Project,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<Warmed, CallError> {
    let Event::PullRequestMerged(pull) = event else {
        return warm_if_needed(ports, registry, project, now).await;
    };
    // The push to main that the merge made asks for the same build; whichever comes first starts it.
    let Some(merge_commit) = pull.merge_commit.clone() else {
        return Ok(Warmed::Skipped("the forge does not tell the merge's commit".to_owned()));
    };
    let request = after_merge(pull.number, pull.commit.clone(), merge_commit);
    start_once(ports, registry, project, &request).await.map(Warmed::Asked)
}

fn tell(project: &ProjectName, warmed: &Warmed) {
    match warmed {
        Warmed::Asked(Outcome::Started { id, .. }) => {
            tracing::info!(build.id = id, "build started to warm main");
        }
        Warmed::Asked(other) => tracing::info!(%project, outcome = ?other, "main is not warmed again"),
        Warmed::Skipped(why) => tracing::info!(%project, why, "main wants no warming"),
    }
}
