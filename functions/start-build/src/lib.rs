//! Starts the builds of what was pushed. Its queue holds what cannot be built yet: a limit of the account
//! delays a build and never loses it.

use std::collections::BTreeMap;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker_core::error::chain;
use stoker_core::event::{BuildDelayed, Event};
use stoker_core::names::ProjectName;
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::Publish;
use stoker_core::request::Request;
use stoker_core::routing::Function;
use stoker_core::start::Outcome;
use stoker_core::start_in_turn::{self, AccountLimit, NotStarted, PendingStart, start_in_turn};
use stoker_core::trigger::trigger;
use stoker_lambda::log;
use stoker_lambda::metrics::{self, Metric};
use stoker_lambda::sqs::{Message, Next, for_each};

/// After so many tries of one message, and as many again, people are notified that its build is delayed:
/// every half an hour, at two minutes a try.
pub const TRIES_UNTIL_NOTIFIED: u32 = 15;

/// The ports that starting needs.
pub trait Ports: start_in_turn::Ports + Publish {}
impl<P: start_in_turn::Ports + Publish> Ports for P {}

/// What an instance of the function remembers between batches.
#[derive(Debug, Default)]
pub struct Instance {
    limit: AccountLimit,
}

/// Starts the builds that a batch of events asks for; answers the messages that are to come again.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    registry: &str,
    ports: &impl Ports,
    instance: &Instance,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut pending = Vec::new();
    let read = for_each(Function::StartBuild, batch, async |message| {
        let triggered = triggered(&message.event, policy);
        pending.extend(triggered.into_iter().map(|(project, request)| PendingStart {
            span: message.span.clone(),
            of: message.clone(),
            project,
            request,
        }));
        Ok(Next::Done)
    });
    let mut again = read.await;
    let mut delayed = BTreeMap::new();
    for (start, started) in start_in_turn(ports, registry, pending, &instance.limit, now).await {
        let _in_span = start.span.enter();
        match started {
            Ok(outcome) => report(&start.project.name, &start.request, &outcome, now),
            Err(why) => {
                if let NotStarted::Call(error) = &why {
                    log(error.disposition(), error);
                }
                again.add(&start.of.id);
                delayed.entry(start.of.id.clone()).or_insert_with(|| (start.clone(), chain(&why)));
            }
        }
    }
    for (start, why) in delayed.into_values() {
        notify_if_late(ports, &start, why, now).await;
    }
    again.into()
}

/// The builds that an event starts, by project. Why the others start none is logged.
fn triggered(event: &Event, policy: &Policy) -> Vec<(Project, Request)> {
    let projects = event.repository().map(|repository| policy.projects_of(repository)).unwrap_or_default();
    if projects.is_empty() {
        tracing::debug!("no project of the policy builds this repository");
    }
    let triggered = projects.into_iter().filter_map(|project| match trigger(&project, event) {
        Ok(request) => Some((project, request)),
        Err(skipped) => {
            tracing::info!(
                project.name = %project.name, policy.rule = skipped.rule, skipped.why, "not built"
            );
            None
        }
    });
    triggered.collect()
}

fn report(project: &ProjectName, request: &Request, outcome: &Outcome, now: Timestamp) {
    let line = &request.wanted.line;
    match outcome {
        Outcome::Started { id, sources } => {
            let reads = sources.iter().map(|source| source.label.as_str()).collect::<Vec<_>>().join(" ");
            tracing::info!(
                project.name = %project, build.id = id, build.reason = request.reason, %line, reads, "build started"
            );
            metrics::put(now, &[project.as_str()], &[(Metric::BuildsStarted, 1)]);
        }
        Outcome::AlreadyBuilt { id } => {
            tracing::info!(project.name = %project, build.id = id, %line, "this commit of the line has its build");
        }
        Outcome::Overtaken { id } => {
            tracing::info!(project.name = %project, build.id = id, %line, "a newer push has its build");
        }
        Outcome::AlreadyOrdered => {
            tracing::info!(project.name = %project, %line, "the same build was ordered a moment ago");
        }
        Outcome::NoSuchProject => {
            tracing::error!(project.name = %request.built_by, %line, "nothing is built: CodeBuild has no such project");
            metrics::put(now, &[request.built_by.as_str()], &[(Metric::BuildsWithoutProject, 1)]);
        }
    }
}

/// Notifies people of a push that has been waiting for long.
async fn notify_if_late(ports: &impl Publish, start: &PendingStart<Message>, why: String, now: Timestamp) {
    let Message { event, receives: tries, .. } = &start.of;
    let Some(repository) = event.repository().cloned().filter(|_| tries.is_multiple_of(TRIES_UNTIL_NOTIFIED))
    else {
        return;
    };
    let (line, tries) = (start.request.wanted.line.clone(), *tries);
    start.span.in_scope(|| tracing::error!(%line, why, tries, "a push is still waiting for its build"));
    metrics::put(now, &[], &[(Metric::BuildsDelayed, 1)]);
    let late = BuildDelayed { repository, line, why, tries };
    if let Err(error) = ports.publish(&[Event::BuildDelayed(late)]).await {
        tracing::warn!(error = chain(&error), "nobody is notified of it");
    }
}
