//! What the log and metrics get to know of a run.

use std::collections::BTreeSet;

use jiff::Timestamp;
use stoker_core::retain::{Action, Applied, Rule, Verdict};
use stoker_lambda::metrics::{self, Metric};

/// Reports a run.
pub(super) fn report(applied: &Applied, now: Timestamp) {
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
        tracing::error!(cache.repository = %plan.repository, cache.digest = %digest, why, "the registry did not \
             delete");
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
        let reported =
            ["CacheBytes", "CacheImages", "CachesDeleted", "CachesEvicted", "BytesFreed", "RetentionRefused"];
        assert_eq!(reported.map(|name| all[name]), [3889, 1, 4, 2, 1111, 0]);
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
