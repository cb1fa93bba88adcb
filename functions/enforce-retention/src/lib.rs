//! Deletes the caches that no build will need: of a branch that was deleted, and every night in every repository.

mod report;

use std::collections::BTreeSet;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker_core::error::CallError;
use stoker_core::event::{Event, RetentionRequested, Tick};
use stoker_core::names::{Line, Repository};
use stoker_core::policy::Policy;
use stoker_core::ports::{ListProjects, Publish};
use stoker_core::retain::{Action, DeletedLine, by_repository, enforce};
use stoker_core::routing::Function;
use stoker_core::schedule::{self, all_projects};
use stoker_lambda::sqs::{Message, Next, for_each};

use report::report;

/// The ports that retention needs.
pub trait Ports: stoker_core::retain::Ports + ListProjects + Publish {}
impl<P: stoker_core::retain::Ports + ListProjects + Publish> Ports for P {}

/// Handles a batch; answers the messages that are to come again: what failed, and branches some of whose
/// caches a running build still holds.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> SqsBatchResponse {
    let handled = for_each(Function::EnforceRetention, batch, async |message| match &message.event {
        Event::NightlyRetention(tick) => {
            put_due_repositories(ports, policy, *tick, message.due(now)).await?;
            Ok(Next::Done)
        }
        Event::RetentionRequested(requested) => {
            retain_repository(requested, policy, ports, now).await?;
            // What a running build holds is left to the next night.
            Ok(Next::Done)
        }
        Event::BranchDeleted(deleted) => {
            let line = Line::of_branch(&deleted.branch, &deleted.default_branch);
            Ok(retain_without(&message, &deleted.repository, &line, policy, ports, now).await?)
        }
        // Only a fork's pull request has a line of its own, known by its number and never by the fork's branch.
        Event::PullRequestClosed(pull) if pull.from_fork => {
            let line = Line::PullRequest(pull.number);
            Ok(retain_without(&message, &pull.repository, &line, policy, ports, now).await?)
        }
        _ => Ok(Next::Done),
    });
    handled.await.into()
}

/// Puts the repositories that are due on the bus, each with the projects whose caches it holds: a plan needs them all.
async fn put_due_repositories(
    ports: &impl Ports,
    policy: &Policy,
    tick: Tick,
    at: Timestamp,
) -> Result<(), CallError> {
    let repositories = by_repository(all_projects(ports, policy).await?).into_iter();
    let due = repositories.filter(|(repository, _)| schedule::is_due(repository.as_str(), tick, at));
    let due = due.map(|(repository, projects)| {
        let projects = projects.into_iter().map(|project| project.name).collect();
        Event::RetentionRequested(RetentionRequested { repository, projects })
    });
    schedule::put(ports, &due.collect::<Vec<_>>()).await
}

/// Deletes what can go of a repository that is due.
async fn retain_repository(
    requested: &RetentionRequested,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<(), CallError> {
    let names: BTreeSet<_> = requested.projects.iter().collect();
    let projects = names.into_iter().filter_map(|name| policy.project(name)).collect();
    if let Some(projects) = by_repository(projects).remove(&requested.repository) {
        report(&enforce(ports, &requested.repository, &projects, Vec::new(), now).await?, now);
    }
    Ok(())
}

/// Deletes the caches of a line that is over. Those that a running build still holds are tried again.
async fn retain_without(
    message: &Message,
    repository: &Repository,
    line: &Line,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<Next, CallError> {
    // The forge's own time, where it has signed one: the webhook may come again when the branch lives once more.
    let received_at = message.time.unwrap_or(now);
    let at = message.event.signed_at().map_or(received_at, |signed| signed.min(received_at));
    let mut next = Next::Done;
    for project in policy.projects_of(repository) {
        // The repository may hold other projects' caches: those are not named here, and what is not named is kept.
        let deleted = project
            .scopes()
            .map(|scope| DeletedLine { scope: scope.clone(), line: line.key(), at })
            .collect();
        let repository = project.cache_repository.clone();
        let applied = enforce(ports, &repository, &[project], deleted, now).await?;
        report(&applied, now);
        if applied.applied && applied.plan.of(Action::Wait).next().is_some() {
            next = Next::Again;
        }
    }
    Ok(next)
}
