//! The night. It is cut into ticks, each for its share of a fleet: a tick puts whose turn it is on Stoker's bus, and from there
//! queues bring them one by one, as the account's limits allow. A tick that is lost, late or doubled needs no memory, as a
//! name says which tick is its turn.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::error::CallError;
use crate::event::{Envelope, Event, Tick, Turn};
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
pub(crate) fn share(name: &str) -> u64 {
    let digest = Sha256::digest(name);
    digest.iter().take(4).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Whether a tick of the night that was due `at` is a name's turn. Over the ticks of a night every name has one.
#[must_use]
pub fn is_turn_of(name: &str, tick: Tick, at: Timestamp) -> bool {
    let slots = u64::from(tick.slots.max(1));
    let minute = u64::try_from(at.as_second() / 60).unwrap_or_default();
    share(name) % slots == (minute / u64::from(tick.every_minutes.max(1))) % slots
}

/// When a tick was due: by its schedule, or else when its message was first put into the queue. One that is tried again later
/// is still the same tick. `attributes` are those that SQS gives the message.
#[must_use]
pub fn due(
    envelope: &Envelope,
    attributes: &HashMap<String, String, impl BuildHasher>,
    now: Timestamp,
) -> Timestamp {
    envelope.time.or_else(|| sent_at(attributes.get("SentTimestamp")?)).unwrap_or(now)
}

/// When a message was first put into its queue, by its attribute `SentTimestamp`.
#[must_use]
pub fn sent_at(attribute: &str) -> Option<Timestamp> {
    Timestamp::from_millisecond(attribute.parse().ok()?).ok()
}

/// Puts the projects whose turn it is on the bus, each as the event that `wanted` makes of it. Whoever tries again after
/// a failure puts all of them once more, and a turn that comes twice finds nothing left to do.
pub async fn put_turns(
    ports: &(impl ListProjects + Publish),
    policy: &Policy,
    tick: Tick,
    at: Timestamp,
    wanted: fn(Turn) -> Event,
) -> Result<(), CallError> {
    let projects = all_projects(ports, policy).await?;
    let names = projects.into_iter().map(|project| project.name);
    let turns = names.filter(|name| is_turn_of(name.as_str(), tick, at));
    put(ports, &turns.map(|project| wanted(Turn { project })).collect::<Vec<_>>()).await
}

/// Puts all that a tick is for on the bus.
pub async fn put(ports: &impl Publish, turns: &[Event]) -> Result<(), CallError> {
    tracing::info!(turns = turns.len(), "a tick of the night");
    ports.publish(turns).await
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn over_a_night_a_name_has_one_turn_whenever_it_begins(
            name in "[a-z]{1,20}", slots in 1..200_u32, every_minutes in 1..90_u32, begins in 0..3_000_000_000_i64,
        ) {
            let tick = Tick { slots, every_minutes };
            let begins = Timestamp::from_second(begins).unwrap();
            let every = SignedDuration::from_mins(i64::from(every_minutes));
            let ticks = (0..i32::try_from(slots).unwrap()).map(|tick| begins + every * tick);
            prop_assert_eq!(ticks.filter(|at| is_turn_of(&name, tick, *at)).count(), 1);
        }
    }

    #[test]
    fn a_tick_is_dated_by_its_schedule_then_by_its_message_then_by_the_clock() {
        let parse = |time: &str| {
            let json =
                format!(r#"{{"source":"stoker","detail-type":"NightlyReconcile",{time}"detail":{{}}}}"#);
            Envelope::parse(&json).unwrap()
        };
        let [scheduled, sent, now]: [Timestamp; 3] =
            ["2026-11-21T01:00:00Z", "2026-11-21T01:02:00Z", "2026-11-21T03:00:00Z"]
                .map(|at| at.parse().unwrap());
        let told = parse(r#""time":"2026-11-21T01:00:00Z","#);
        // What Scheduler did not fill in.
        let silent = parse(r#""time":"<aws.scheduler.scheduled-time>","#);
        let millis = sent.as_millisecond().to_string();
        let attributes = |sent: &str| HashMap::from([("SentTimestamp".to_owned(), sent.to_owned())]);
        assert_eq!(due(&told, &attributes(&millis), now), scheduled);
        assert_eq!(due(&silent, &attributes(&millis), now), sent);
        assert_eq!(due(&silent, &attributes("soon"), now), now);
        assert_eq!(due(&silent, &HashMap::new(), now), now);
    }
}
