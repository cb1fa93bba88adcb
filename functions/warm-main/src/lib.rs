//! Keeps main's cache filled: after pushes to it that nothing else builds, once more when a build of it has
//! failed, and at night where it wants a build.

use std::collections::BTreeMap;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker_core::error::CallError;
use stoker_core::event::{Due, Event};
use stoker_core::names::{Commit, ProjectName};
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::{ListProjects, Publish};
use stoker_core::routing::Function;
use stoker_core::schedule;
use stoker_core::start::Outcome;
use stoker_core::warm::{MainPushed, WarmOutcome, warm_after_failure, warm_after_push, warm_if_needed};
use stoker_lambda::log;
use stoker_lambda::metrics::{self, Metric};
use stoker_lambda::sqs::{Message, Next, for_each};
use tracing::{Instrument as _, Span};

/// The ports that warming needs.
pub trait Ports: stoker_core::warm::Ports + ListProjects + Publish {}
impl<P: stoker_core::warm::Ports + ListProjects + Publish> Ports for P {}

/// Why a project's main may want a build.
#[derive(Default)]
struct Occasion {
    /// The messages that ask for it.
    messages: Vec<String>,
    /// The newest push to main among them.
    pushed: Option<MainPushed>,
    /// All that the pushes brought.
    merged: Vec<Commit>,
    /// The schedule asks for it.
    is_due: bool,
    /// A build of its main has failed.
    has_failed: bool,
    /// What the log lines have in common: that of the newest event.
    span: Option<Span>,
}

/// Each project once, however many messages ask for it.
type Occasions = BTreeMap<ProjectName, (Project, Occasion)>;

/// Notes that a message asks for a project.
fn occasion_of<'a>(occasions: &'a mut Occasions, project: Project, message: &Message) -> &'a mut Occasion {
    let (_, occasion) = occasions.entry(project.name.clone()).or_insert((project, Occasion::default()));
    occasion.messages.push(message.id.clone());
    occasion
}

/// Handles a batch; answers the messages that are to come again. However many of them are of one project, its main is
/// checked once.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    registry: &str,
    ports: &impl Ports,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut occasions = Occasions::new();
    let read = for_each(Function::WarmMain, batch, async |message| {
        match &message.event {
            Event::NightlyWarm(tick) => {
                schedule::put_due(ports, policy, *tick, message.due(now), Event::WarmRequested).await?;
            }
            Event::WarmRequested(Due { project }) => {
                if let Some(project) = policy.project(project) {
                    occasion_of(&mut occasions, project, &message).is_due = true;
                }
            }
            Event::BuildFailed(failed) => {
                if let Some(project) = policy.project(&failed.project) {
                    let occasion = occasion_of(&mut occasions, project, &message);
                    occasion.has_failed = true;
                    occasion.span.get_or_insert(message.span.clone());
                }
            }
            Event::BranchPushed(push) => {
                let at = message.time.unwrap_or(now);
                for project in policy.projects_of(&push.repository) {
                    let occasion = occasion_of(&mut occasions, project, &message);
                    occasion.merged.extend(push.commits.iter().cloned());
                    if occasion.pushed.as_ref().is_none_or(|newest| newest.at <= at) {
                        occasion.pushed = Some(MainPushed { push: push.clone(), at });
                        occasion.span = Some(message.span.clone());
                    }
                }
            }
            _ => {}
        }
        Ok(Next::Done)
    });
    let mut again = read.await;
    for (project, occasion) in occasions.into_values() {
        let messages = occasion.messages.clone();
        let span = occasion.span.clone().unwrap_or_else(Span::none);
        // In a box, as the compiler lays out only so many futures within each other.
        let warmed = Box::pin(warm(&project, occasion, registry, ports, now));
        let warmed = warmed.instrument(span.clone()).await;
        let _in_span = span.enter();
        match &warmed {
            Ok(outcome) => report(&project.name, outcome, now),
            Err(error) => log(error.disposition(), error),
        }
        if matches!(warmed, Ok(WarmOutcome::Waits(_)) | Err(_)) {
            for id in messages {
                again.add(id);
            }
        }
    }
    again.into()
}

async fn warm(
    project: &Project,
    occasion: Occasion,
    registry: &str,
    ports: &impl Ports,
    now: Timestamp,
) -> Result<WarmOutcome, CallError> {
    if let Some(pushed) = &occasion.pushed {
        let warmed = warm_after_push(ports, registry, project, pushed, occasion.merged, now).await?;
        let asks_more = occasion.has_failed || occasion.is_due;
        if !(asks_more && matches!(warmed, WarmOutcome::Skipped(_))) {
            return Ok(warmed);
        }
    }
    if occasion.has_failed {
        return warm_after_failure(ports, registry, project, now).await;
    }
    warm_if_needed(ports, registry, project, now).await
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
        WarmOutcome::Skipped(why) => tracing::info!(project.name = %project, %why, "main wants no warming"),
        WarmOutcome::Waits(why) => tracing::info!(project.name = %project, %why, "main's warming waits"),
    }
}
