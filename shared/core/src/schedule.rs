//! Schedules, cut into ticks, each for a shard of a fleet: a tick puts what is due on Stoker's bus, and from
//! there queues bring it one by one, as the account's limits allow. A tick that is lost, late or doubled
//! needs no memory, as a name says at which tick it is due.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::error::CallError;
use crate::event::{Due, Event, Tick};
use crate::names::ProjectName;
use crate::policy::{Policy, Project};
use crate::ports::{ListProjects, Publish};

/// Every project that the policy names, and that exists where the policy names by glob.
pub async fn all_projects(ports: &impl ListProjects, policy: &Policy) -> Result<Vec<Project>, CallError> {
    let mut projects: BTreeMap<ProjectName, Project> =
        policy.named_projects().into_iter().map(|project| (project.name.clone(), project)).collect();
    if policy.has_globs() {
        let found = ports.projects().await?;
        projects.extend(found.into_iter().filter_map(|name| Some((name.clone(), policy.project(&name)?))));
    }
    Ok(projects.into_values().collect())
}

/// A number that is a name's own and spreads names evenly.
pub(crate) fn shard(name: &str) -> u64 {
    let digest = Sha256::digest(name);
    digest.iter().take(4).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Whether a name is due at a tick of this time. Over the ticks of a night every name is due once.
#[must_use]
pub fn is_due(name: &str, tick: Tick, at: Timestamp) -> bool {
    let slots = u64::from(tick.slots.max(1));
    let minute = u64::try_from(at.as_second() / 60).unwrap_or_default();
    shard(name) % slots == (minute / u64::from(tick.every_minutes.max(1))) % slots
}

/// When a message was first put into its queue, by its attribute `SentTimestamp`.
#[must_use]
pub fn sent_at(attribute: &str) -> Option<Timestamp> {
    Timestamp::from_millisecond(attribute.parse().ok()?).ok()
}

/// Puts the projects that are due on the bus, each as the event that `requested` makes of it. Whoever tries
/// again after a failure puts all of them once more, and what comes twice finds nothing left to do.
pub async fn put_due(
    ports: &(impl ListProjects + Publish),
    policy: &Policy,
    tick: Tick,
    at: Timestamp,
    requested: fn(Due) -> Event,
) -> Result<(), CallError> {
    let projects = all_projects(ports, policy).await?;
    let names = projects.into_iter().map(|project| project.name);
    let due = names.filter(|name| is_due(name.as_str(), tick, at));
    put(ports, &due.map(|project| requested(Due { project })).collect::<Vec<_>>()).await
}

/// Puts all that a tick is for on the bus.
pub async fn put(ports: &impl Publish, due: &[Event]) -> Result<(), CallError> {
    tracing::info!(due = due.len(), "put what is due on the bus");
    ports.publish(due).await
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn over_a_night_a_name_is_due_once_whenever_it_begins(
            name in "[a-z]{1,20}", slots in 1..200_u32, every_minutes in 1..90_u32, begins in 0..3_000_000_000_i64,
        ) {
            let tick = Tick { slots, every_minutes };
            let begins = Timestamp::from_second(begins).unwrap();
            let every = SignedDuration::from_mins(i64::from(every_minutes));
            let ticks = (0..i32::try_from(slots).unwrap()).map(|tick| begins + every * tick);
            prop_assert_eq!(ticks.filter(|at| is_due(&name, tick, *at)).count(), 1);
        }
    }
}
