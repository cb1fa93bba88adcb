//! When an image goes if nothing changes: nothing is pushed, pulled, given, deleted or set otherwise.

use jiff::{SignedDuration, Timestamp};

use super::inventory::Inventory;
use super::plan::{Action, PlanInputs, Verdict, last_use, plan};
use crate::names::{Digest, Tag, TagKind};
use crate::policy::Project;
use crate::sources::GIVEN_FOR;

/// The moment from which the plan lets an image go that it keeps today, and the verdict of then. `None` where
/// no passing of time lets it go, and where it goes or waits already.
///
/// No rule is told here again: the planner itself is asked about the moments at which any of them could begin to hold.
#[must_use]
pub fn goes_at(
    inventory: &Inventory,
    projects: &[Project],
    plan_inputs: &PlanInputs,
    now: Timestamp,
    digest: &Digest,
) -> Option<(Timestamp, Verdict)> {
    let verdict_at = |time: Timestamp| {
        let plan = plan(inventory, projects, plan_inputs, time);
        plan.verdicts.into_iter().find(|verdict| verdict.image.digest == *digest)
    };
    let goes = |verdict: &Verdict| verdict.action != Action::Keep;
    if verdict_at(now).as_ref().is_none_or(goes) {
        return None;
    }
    let moments = moments(inventory, projects, plan_inputs, now);
    let mut found = verdict_at(*moments.last()?).filter(goes)?;
    // Between a moment at which it stays and a later one at which it goes lies one at which that changes.
    let (mut first, mut last) = (0, moments.len() - 1);
    while first < last {
        let middle = first.midpoint(last);
        match verdict_at(moments[middle]).filter(goes) {
            Some(verdict) => {
                found = verdict;
                last = middle;
            }
            None => first = middle + 1,
        }
    }
    Some((moments[last], found))
}

/// The moments to come at which the age of something passes a limit of the policy, in their order.
fn moments(
    inventory: &Inventory,
    projects: &[Project],
    plan_inputs: &PlanInputs,
    now: Timestamp,
) -> Vec<Timestamp> {
    let limits = projects.iter().map(|project| &project.retention).flat_map(|retention| {
        let given = retention.lease + GIVEN_FOR;
        [
            Some(retention.lease),
            Some(given),
            Some(retention.idle_branch),
            Some(retention.history),
            retention.orphans,
        ]
    });
    let mut limits: Vec<SignedDuration> = limits.flatten().collect();
    limits.sort_unstable();
    limits.dedup();
    let since = inventory.images.iter().flat_map(|image| {
        let used = last_use(image, inventory.known.of(&image.digest), plan_inputs).0;
        let left = image.tags.iter().filter_map(|tag| match Tag::parse(tag)?.1 {
            TagKind::History { left_at, .. } => Some(left_at),
            _ => None,
        });
        left.chain([image.pushed_at, used])
    });
    // An age has to be more than the limit.
    let margin = SignedDuration::from_millis(1);
    let moments = since.flat_map(|since| {
        let after = |limit: &SignedDuration| since.checked_add(limit.checked_add(margin)?).ok();
        limits.iter().filter_map(after).collect::<Vec<_>>()
    });
    let mut moments: Vec<Timestamp> = moments.filter(|moment| *moment > now).collect();
    moments.sort_unstable();
    moments.dedup();
    moments
}
