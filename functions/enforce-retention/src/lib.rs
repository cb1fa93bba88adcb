//! Deletes the caches that no build will need: for a branch that went, and every night for every project.

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker::error::{CallError, Disposition};
use stoker::event::{Envelope, Event};
use stoker::lambda::log;
use stoker::names::Line;
use stoker::policy::Policy;
use stoker::ports::ListProjects;
use stoker::retain::{Action, Applied, Gone, by_repository, enforce};
use stoker::warm::all_projects;

/// The ports that retention needs.
pub trait Ports: stoker::retain::Ports + ListProjects {}
impl<P: stoker::retain::Ports + ListProjects> Ports for P {}

/// Handles the nightly tick: every project of the policy. A repository that fails does not keep the others from
/// their turn; the first error is returned at the end.
pub async fn handle_nightly(
    ports: &impl Ports,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Applied>, CallError> {
    let mut all = Vec::new();
    let mut first_error = None;
    for (repository, projects) in by_repository(all_projects(ports, policy).await?) {
        match enforce(ports, &repository, &projects, Vec::new(), now).await {
            Ok(applied) => {
                tell(&applied);
                all.push(applied);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(all), Err)
}

/// Handles a batch of branches that went; answers the messages that are to come again: what failed, and branches
/// some of whose caches a running build still holds.
pub async fn handle_batch(
    batch: &SqsEvent,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut response = SqsBatchResponse::default();
    for message in &batch.records {
        let done = match Envelope::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(envelope) => handle_gone(&envelope, policy, ports, now).await,
            Err(unknown) => {
                log(Disposition::Drop, &unknown);
                continue;
            }
        };
        let again = match done {
            Ok(applied) => applied
                .iter()
                .any(|applied| applied.applied && applied.plan.of(Action::Wait).next().is_some()),
            Err(error) => {
                log(error.disposition(), &error);
                true
            }
        };
        if again {
            response.add_failure(message.message_id.clone().unwrap_or_default());
        }
    }
    response
}

async fn handle_gone(
    envelope: &Envelope,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<Vec<Applied>, CallError> {
    let Some((repository, line)) = gone(&envelope.event) else { return Ok(Vec::new()) };
    // The forge's own time, where it has signed one: the webhook may come again when the branch lives once more.
    let told_at = envelope.time.unwrap_or(now);
    let at = envelope.event.signed_at().map_or(told_at, |signed| signed.min(told_at));
    let mut all = Vec::new();
    for project in policy.projects_of(repository) {
        // The repository may hold other projects' caches: those are not named here, and what is not named is kept.
        let gone =
            project.scopes().map(|scope| Gone { scope: scope.clone(), line: line.key(), at }).collect();
        let repository = project.cache_repository.clone();
        let applied = enforce(ports, &repository, &[project], gone, now).await?;
        tell(&applied);
        all.push(applied);
    }
    Ok(all)
}

/// The line that went with an event.
fn gone(event: &Event) -> Option<(&stoker::names::Repository, Line)> {
    match event {
        Event::BranchDeleted(deleted) => {
            let line = Line::of_branch(&deleted.branch, &deleted.default_branch);
            Some((&deleted.repository, line))
        }
        // Only a fork's pull request has a line of its own, known by its number and never by the fork's branch.
        Event::PullRequestClosed(pull) | Event::PullRequestMerged(pull) if pull.from_fork => {
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
            why = verdict.why,
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
