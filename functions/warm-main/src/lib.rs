//! Keeps main's cache filled: after pushes to it that nothing else builds, once more when a build of it has failed, and at
//! night where it wants it.

use std::collections::{BTreeMap, BTreeSet};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker_core::error::CallError;
use stoker_core::event::{Event, Turn};
use stoker_core::names::{Commit, ProjectName};
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::{ListProjects, Publish};
use stoker_core::routing::Function;
use stoker_core::schedule;
use stoker_core::start::Outcome;
use stoker_core::warm::{MainPushed, WarmOutcome, warm_after_failure, warm_after_push, warm_if_needed};
use stoker_lambda::metrics::{self, Metric};
use stoker_lambda::{event_for, log};
use tracing::{Instrument as _, Span};

/// The ports that warming needs.
pub trait Ports: stoker_core::warm::Ports + ListProjects + Publish {}
impl<P: stoker_core::warm::Ports + ListProjects + Publish> Ports for P {}

/// Why a project's main is looked at.
#[derive(Default)]
struct Occasion {
    /// The messages that ask for it.
    messages: Vec<usize>,
    /// The newest push to main among them.
    pushed: Option<MainPushed>,
    /// All that the pushes brought.
    merged: Vec<Commit>,
    /// Its turn in the night has come.
    night: bool,
    /// A build of its main has failed.
    failed: bool,
    /// What the log lines have in common: that of the newest event.
    span: Option<Span>,
}

/// Each project once, however many messages ask for it.
type Occasions = BTreeMap<ProjectName, (Project, Occasion)>;

/// Notes that a message asks for a project.
fn occasion_of(occasions: &mut Occasions, project: Project, message: usize) -> &mut Occasion {
    let (_, occasion) = occasions.entry(project.name.clone()).or_insert((project, Occasion::default()));
    occasion.messages.push(message);
    occasion
}

/// Handles a batch of pushes to main, of projects whose turn in the night has come, and of the night's ticks; answers the
/// messages that are to come again. However many of them are of one project, it is looked at once.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    registry: &str,
    ports: &impl Ports,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut occasions = Occasions::new();
    let mut again = BTreeSet::new();
    for (index, message) in batch.records.iter().enumerate() {
        let Some(envelope) = event_for(Function::WarmMain, message.body.as_deref()) else { continue };
        match envelope.event {
            Event::NightlyWarm(tick) => {
                let at = schedule::due(&envelope, &message.attributes, now);
                if let Err(error) = schedule::put_turns(ports, policy, tick, at, Event::WarmRequested).await {
                    log(error.disposition(), &error);
                    again.insert(index);
                }
            }
            Event::WarmRequested(Turn { project }) => {
                let Some(project) = policy.project(&project) else { continue };
                occasion_of(&mut occasions, project, index).night = true;
            }
            Event::BuildFailed(failed) => {
                let Some(project) = policy.project(&failed.project) else { continue };
                let span = Event::BuildFailed(failed).span();
                let occasion = occasion_of(&mut occasions, project, index);
                occasion.failed = true;
                occasion.span.get_or_insert(span);
            }
            Event::BranchPushed(push) => {
                let at = envelope.time.unwrap_or(now);
                let span = Event::BranchPushed(push.clone()).span();
                for project in policy.projects_of(&push.repository) {
                    let occasion = occasion_of(&mut occasions, project, index);
                    occasion.merged.extend(push.commits.iter().cloned());
                    if occasion.pushed.as_ref().is_none_or(|newest| newest.at <= at) {
                        occasion.pushed = Some(MainPushed { push: push.clone(), at });
                        occasion.span = Some(span.clone());
                    }
                }
            }
            _ => {}
        }
    }
    for (project, occasion) in occasions.into_values() {
        let messages = occasion.messages.clone();
        let span = occasion.span.clone().unwrap_or_else(Span::none);
        // In a box, as the compiler lays out only so many futures within each other.
        let warmed = Box::pin(warm(&project, occasion, registry, ports, now));
        let warmed = warmed.instrument(span.clone()).await;
        let _in_span = span.enter();
        match warmed {
            Ok(warmed) => {
                report(&project.name, &warmed, now);
                if matches!(warmed, WarmOutcome::Waits(_)) {
                    again.extend(messages);
                }
            }
            Err(error) => {
                log(error.disposition(), &error);
                again.extend(messages);
            }
        }
    }
    let mut response = SqsBatchResponse::default();
    for index in again {
        response.add_failure(batch.records[index].message_id.clone().unwrap_or_default());
    }
    response
}

async fn warm(
    project: &Project,
    occasion: Occasion,
    registry: &str,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<WarmOutcome, CallError> {
    let after_push = match &occasion.pushed {
        Some(pushed) => Some(warm_after_push(ports, registry, project, pushed, occasion.merged, now).await?),
        None => None,
    };
    match after_push {
        Some(WarmOutcome::Skipped(_)) | None if occasion.failed => {
            warm_after_failure(ports, registry, project, now).await
        }
        Some(WarmOutcome::Skipped(_)) | None if occasion.night => {
            warm_if_needed(ports, registry, project, now).await
        }
        Some(warmed) => Ok(warmed),
        None => Ok(WarmOutcome::Skipped("nobody asked".to_owned())),
    }
}

fn report(project: &ProjectName, warmed: &WarmOutcome, now: Timestamp) {
    match warmed {
        WarmOutcome::Asked(Outcome::Started { id, .. }) => {
            tracing::info!(project.name = %project, build.id = id, "build started to warm main");
            metrics::put(now, &[project.as_str()], &[(Metric::WarmBuildsStarted, 1)]);
        }
        WarmOutcome::Asked(other) => {
            tracing::info!(project.name = %project, outcome = ?other, "main is not warmed again");
        }
        WarmOutcome::Skipped(why) => tracing::info!(project.name = %project, why, "main wants no warming"),
        WarmOutcome::Waits(why) => tracing::info!(project.name = %project, why, "main's warming waits"),
    }
}
