//! Deletes the caches that no build will need: for a branch that went, and every night for every repository.

use std::collections::BTreeSet;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker::error::{CallError, Disposition};
use stoker::event::{Envelope, Event, RetainWanted, Tick};
use stoker::lambda::log;
use stoker::names::Line;
use stoker::night;
use stoker::policy::Policy;
use stoker::ports::{KeepFacts, ListProjects, Publish};
use stoker::retain::{Action, Applied, Gone, by_repository, enforce};
use stoker::warm::all_projects;

/// The ports that retention needs.
pub trait Ports: stoker::retain::Ports + KeepFacts + ListProjects + Publish {}
impl<P: stoker::retain::Ports + KeepFacts + ListProjects + Publish> Ports for P {}

/// Handles a batch of branches that went, of repositories whose turn in the night has come, and of the night's ticks; answers
/// the messages that are to come again: what failed, and branches some of whose caches a running build still holds.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut response = SqsBatchResponse::default();
    for message in &batch.records {
        let envelope = match Envelope::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(envelope) => envelope,
            Err(unknown) => {
                log(Disposition::Drop, &unknown);
                continue;
            }
        };
        let held = match &envelope.event {
            Event::NightlyRetention(tick) => {
                let sent = message.attributes.get("SentTimestamp").map(String::as_str);
                let at = night::due(&envelope, sent, now);
                tick_of_the_night(ports, policy, *tick, at).await.map(|()| false)
            }
            // What a running build holds is left to the next night.
            Event::RetainWanted(wanted) => handle_wanted(wanted, policy, ports, now).await.map(|()| false),
            _ => handle_gone(&envelope, policy, ports, now).await,
        };
        if let Err(error) = &held {
            log(error.disposition(), error);
        }
        if held.unwrap_or(true) {
            response.add_failure(message.message_id.clone().unwrap_or_default());
        }
    }
    response
}

/// Puts the repositories whose turn it is on the bus, each with the projects whose caches it holds: a plan needs them all.
async fn tick_of_the_night(
    ports: &impl Ports,
    policy: &Policy,
    tick: Tick,
    at: Timestamp,
) -> Result<(), CallError> {
    let repositories = by_repository(all_projects(ports, policy).await?).into_iter();
    let turns = repositories.filter(|(repository, _)| night::is_turn_of(repository.as_str(), tick, at));
    let turns = turns.map(|(repository, projects)| {
        let projects = projects.into_iter().map(|project| project.name).collect();
        Event::RetainWanted(RetainWanted { repository, projects })
    });
    night::put(ports, &turns.collect::<Vec<_>>()).await
}

/// Handles one repository's turn in the night.
async fn handle_wanted(
    wanted: &RetainWanted,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<(), CallError> {
    let names: BTreeSet<_> = wanted.projects.iter().collect();
    let projects = names.into_iter().filter_map(|name| policy.project(name)).collect();
    if let Some(projects) = by_repository(projects).remove(&wanted.repository) {
        tell(&enforce(ports, &wanted.repository, &projects, Vec::new(), now).await?);
    }
    Ok(())
}

/// Handles a branch that went; answers whether a running build still holds some of its caches.
async fn handle_gone(
    envelope: &Envelope,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<bool, CallError> {
    let Some((repository, line)) = gone(&envelope.event) else { return Ok(false) };
    // The forge's own time, where it has signed one: the webhook may come again when the branch lives once more.
    let told_at = envelope.time.unwrap_or(now);
    let at = envelope.event.signed_at().map_or(told_at, |signed| signed.min(told_at));
    let mut held = false;
    for project in policy.projects_of(repository) {
        // The repository may hold other projects' caches: those are not named here, and what is not named is kept.
        let gone =
            project.scopes().map(|scope| Gone { scope: scope.clone(), line: line.key(), at }).collect();
        let repository = project.cache_repository.clone();
        let applied = enforce(ports, &repository, &[project], gone, now).await?;
        tell(&applied);
        held |= applied.applied && applied.plan.of(Action::Wait).next().is_some();
    }
    Ok(held)
}

/// The line that went with an event.
fn gone(event: &Event) -> Option<(&stoker::names::Repository, Line)> {
    match event {
        Event::BranchDeleted(deleted) => {
            let line = Line::of_branch(&deleted.branch, &deleted.default_branch);
            Some((&deleted.repository, line))
        }
        // Only a fork's pull request has a line of its own, known by its number and never by the fork's branch.
        Event::PullRequestClosed(pull) if pull.from_fork => {
            Some((&pull.repository, Line::PullRequest(pull.number)))
        }
        _ => None,
    }
}

fn tell(applied: &Applied) {
    let plan = &applied.plan;
    for verdict in plan.verdicts.iter().filter(|verdict| verdict.action != Action::Keep) {
        tracing::info!(
            cache.repository = %plan.repository,
            cache.digest = %verdict.image.digest,
            cache.tags = verdict.image.tags.join(" "),
            action = %verdict.action,
            rule = verdict.rule.name(),
            why = verdict.why(),
            bytes.freed = verdict.frees,
            "planned"
        );
    }
    for (digest, why) in &applied.refused {
        tracing::error!(cache.repository = %plan.repository, cache.digest = %digest, why, "the registry did not delete");
    }
    tracing::info!(
        cache.repository = %plan.repository,
        images = plan.verdicts.len(),
        deletions = plan.deletions().len(),
        deleted = applied.deleted,
        left = applied.left,
        changed = applied.changed.len(),
        bytes.before = plan.bytes,
        bytes.after = plan.bytes_after,
        plan.refused = plan.refused,
        applied = applied.applied,
        "retention"
    );
}
