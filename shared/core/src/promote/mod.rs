//! Promotion: merging exports into the line of their build, and merged commits' caches into the line they were merged
//! to. It is a join, so a trigger that comes twice, late or out of order changes nothing that matters.

mod byte_budget;
mod gather;
mod line;
mod misses;
mod mounts;
mod outcome;
mod probation;
pub mod reconcile;
mod request;
mod share;
mod trigger;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use self::byte_budget::ByteBudget;
use self::gather::gather;
pub use self::line::Ports;
pub use self::outcome::{Answer, Error, MeasuredBuild, NothingToPromote, Outcome};
use self::request::{LineRequests, UpdateRequests};
pub use self::share::Shares;
pub use self::trigger::PromotionTrigger;
use crate::names::{Line, ProjectName};
use crate::policy::Policy;

/// How many lines are updated at once, where there is [room](byte_budget::ByteBudget).
const LINES_AT_ONCE: usize = 16;
/// How long main's line may take: its first build may bring thousands of layers, of which ECR mounts a
/// hundred in a second.
const LINE_DEADLINE: Duration = Duration::from_secs(40);
/// When the lines of branches have to be done, from the batch's start. A batch takes a second; what takes longer keeps
/// everybody waiting.
const BRANCHES_DEADLINE: Duration = Duration::from_secs(15);
/// After so long no other line is begun: the function has two minutes, and what it has done counts only if it
/// ends well.
const BATCH_DEADLINE: Duration = Duration::from_secs(75);

/// Handles a batch of triggers; answers each in its place. Lines are handled at the same time and fail apart; an error
/// of a line is the answer to every trigger for it.
pub async fn promote(
    ports: &impl Ports,
    policy: &Policy,
    triggers: &[PromotionTrigger],
    now: Timestamp,
) -> Vec<Answer> {
    promote_in_turn(ports, policy, triggers, (&Shares::default(), false), now).await
}

/// [`promote`], where others may wait. The branches of a project that has taken more than its share are let go while
/// anybody else waits, in this batch or, as `is_late` says, behind it: the nightly reconciliation promotes them.
pub async fn promote_in_turn(
    ports: &impl Ports,
    policy: &Policy,
    triggers: &[PromotionTrigger],
    (shares, is_late): (&Shares, bool),
    now: Timestamp,
) -> Vec<Answer> {
    let mut answers: Vec<Answer> = triggers.iter().map(|_| Ok(Vec::new())).collect();
    let started = Instant::now();
    let (lines, mounts) = gather(ports, policy, triggers, &mut answers, now).await;
    let lines = in_turn(lines);
    let first = lines.first().map(|line| &line.project.name);
    let others_wait = is_late || lines.iter().any(|line| Some(&line.project.name) != first);
    let (taken, budget) = (&RefCell::new(BTreeMap::new()), &ByteBudget::new());
    let updated = stream::iter(lines).map(|requests| async move {
        let triggers: BTreeSet<usize> = requests.requests.iter().map(|request| request.trigger).collect();
        let (project, line) = (requests.project.name.clone(), requests.line.clone());
        if started.elapsed() > BATCH_DEADLINE {
            return (triggers, Err(Arc::new(Error::NoTime { of: line.to_string() })));
        }
        let deadline = if line == Line::Main {
            Instant::now() + LINE_DEADLINE
        } else if others_wait && shares.is_exceeded(&project, now) {
            tracing::warn!(project.name = %project, %line, "left to the night, as the project has taken more \
                 than its share");
            return (triggers, Ok(Outcome::Nothing(NothingToPromote::ShareExceeded)));
        } else {
            started + BRANCHES_DEADLINE
        };
        let updated = timeout_at(deadline, line::update(ports, budget, requests, now)).await;
        if line != Line::Main {
            taken.borrow_mut().insert(project, started.elapsed());
        }
        (triggers, updated.unwrap_or(Err(Error::TooSlow { line })).map_err(Arc::new))
    });
    let mut updated: Vec<_> = updated.buffered(LINES_AT_ONCE).collect().await;
    for requests in mounts.into_values() {
        let triggers = requests.iter().map(|one| one.trigger).collect();
        let update = timeout_at(Instant::now() + LINE_DEADLINE, mounts::update(ports, requests, now)).await;
        let update = update.unwrap_or(Err(Error::TooSlow { line: Line::Main }));
        updated.push((triggers, update.map_err(Arc::new)));
    }
    for (project, took) in taken.take() {
        shares.add(&project, took, now);
    }
    for (triggers, mut result) in updated {
        for trigger in triggers {
            match (&mut answers[trigger], &mut result) {
                (Ok(outcomes), Ok(outcome)) => {
                    outcomes.push(outcome.clone());
                    if let Outcome::Updated { builds, .. } = outcome {
                        builds.clear();
                    }
                }
                (answer, Err(error)) => *answer = Err(Arc::clone(error)),
                (Err(_), Ok(_)) => {}
            }
        }
    }
    answers
}

/// The lines in the order in which they are begun: main's before branches, and the projects with the fewest
/// lines first.
fn in_turn(all: UpdateRequests) -> Vec<LineRequests> {
    let mut counts: BTreeMap<ProjectName, usize> = BTreeMap::new();
    for (project, ..) in all.keys() {
        *counts.entry(project.clone()).or_default() += 1;
    }
    let mut lines: Vec<LineRequests> = all.into_values().collect();
    lines.sort_by_key(|of| (of.line != Line::Main, counts.get(&of.project.name).copied()));
    lines
}
