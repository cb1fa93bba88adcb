//! Deletes the caches that no build will need: of a branch that was deleted, and every night in every repository.

use std::collections::BTreeSet;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker_core::error::CallError;
use stoker_core::event::{Event, RetentionRequested, Tick};
use stoker_core::names::{Line, Repository};
use stoker_core::policy::Policy;
use stoker_core::ports::{ListProjects, Publish};
use stoker_core::retain::{Action, Applied, DeletedLine, Rule, Verdict, by_repository, enforce};
use stoker_core::routing::Function;
use stoker_core::schedule::{self, all_projects};
use stoker_lambda::metrics::{self, Metric};
use stoker_lambda::sqs::{Message, Next, for_each};

/// The ports that retention needs.
pub trait Ports: stoker_core::retain::Ports + ListProjects + Publish {}
impl<P: stoker_core::retain::Ports + ListProjects + Publish> Ports for P {}

/// Handles a batch; answers the messages that are to come again: what failed, and branches some of whose caches a running
/// build still holds.
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

fn report(applied: &Applied, now: Timestamp) {
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
        deleted = applied.deleted.len(),
        left = applied.left,
        changed = applied.changed.len(),
        bytes.before = plan.bytes,
        bytes.after = plan.bytes_after,
        plan.refused = plan.refused,
        applied = applied.applied,
        "retention"
    );
    metrics::put(now, &[plan.repository.as_str()], &measured(applied));
}

/// What a run is in metrics. Bytes are as the plan reckons them; where not all could be read nobody knows them.
fn measured(applied: &Applied) -> Vec<(Metric, u64)> {
    let plan = &applied.plan;
    let images = plan.verdicts.len().saturating_sub(applied.deleted.len()) as u64;
    let refused = u64::from(plan.refused.is_some());
    let mut metrics = vec![(Metric::CacheImages, images), (Metric::RetentionRefused, refused)];
    if refused > 0 {
        return metrics;
    }
    let deleted: BTreeSet<_> = applied.deleted.iter().collect();
    let deleted = plan.verdicts.iter().filter(|verdict| deleted.contains(&verdict.image.digest));
    let freed = deleted.clone().map(|verdict| verdict.frees).sum();
    let evicted = |verdict: &&Verdict| matches!(verdict.rule, Rule::ScopeBudget | Rule::RepositoryBudget);
    metrics.extend([
        (Metric::CacheBytes, plan.bytes.saturating_sub(freed)),
        (Metric::CachesDeleted, applied.deleted.len() as u64),
        (Metric::CachesEvicted, deleted.filter(evicted).count() as u64),
        (Metric::BytesFreed, freed),
    ]);
    metrics
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stoker_core::names::{CacheRepository, Digest};
    use stoker_core::ports::ListedImage;
    use stoker_core::retain::Plan;

    use super::*;

    fn verdict(name: &str, action: Action, rule: Rule, frees: u64) -> Verdict {
        let image = ListedImage {
            digest: Digest::of(name.as_bytes()),
            tags: Vec::new(),
            // Deletions go by the time of the push.
            pushed_at: Timestamp::from_second(i64::try_from(name.len()).unwrap()).unwrap(),
            bytes: 0,
            pulled_at: None,
            is_archived: false,
        };
        Verdict::unnamed(image.into(), action, rule, frees)
    }

    fn applied() -> Applied {
        let verdicts = vec![
            verdict("a", Action::Delete, Rule::Orphan, 1),
            verdict("bb", Action::Delete, Rule::ScopeBudget, 10),
            verdict("ccc", Action::Delete, Rule::RepositoryBudget, 100),
            verdict("dddd", Action::Delete, Rule::Orphan, 1000),
            verdict("eeeee", Action::Keep, Rule::Main, 0),
        ];
        let plan = Plan {
            repository: CacheRepository::new("stoker/app").unwrap(),
            verdicts,
            bytes: 5000,
            bytes_after: 3889,
            refused: None,
            notes: Vec::new(),
        };
        let deleted = digests(&["a", "bb", "ccc", "dddd"]);
        Applied { plan, applied: true, deleted, left: 0, changed: Vec::new(), refused: Vec::new() }
    }

    fn digests(names: &[&str]) -> Vec<Digest> {
        names.iter().map(|name| Digest::of(name.as_bytes())).collect()
    }

    fn numbers(applied: &Applied) -> BTreeMap<&'static str, u64> {
        measured(applied).into_iter().map(|(metric, value)| (metric.name(), value)).collect()
    }

    #[test]
    fn what_was_deleted_is_measured() {
        let all = numbers(&applied());
        let told =
            ["CacheBytes", "CacheImages", "CachesDeleted", "CachesEvicted", "BytesFreed", "RetentionRefused"];
        assert_eq!(told.map(|name| all[name]), [3889, 1, 4, 2, 1111, 0]);
    }

    #[test]
    fn what_was_not_deleted_is_still_there() {
        let all = numbers(&Applied { deleted: digests(&["a", "ccc"]), left: 1, ..applied() });
        assert_eq!(["CacheBytes", "CacheImages", "CachesEvicted"].map(|name| all[name]), [4899, 3, 1]);
    }

    #[test]
    fn a_report_frees_nothing_and_an_incomplete_inventory_tells_no_bytes() {
        let report = Applied { applied: false, deleted: Vec::new(), ..applied() };
        assert_eq!(["CacheBytes", "BytesFreed"].map(|name| numbers(&report)[name]), [5000, 0]);
        let mut incomplete = report;
        incomplete.plan.refused = Some("unread".to_owned());
        let all = numbers(&incomplete);
        assert_eq!((all.get("CacheBytes"), all["RetentionRefused"]), (None, 1));
    }
}
