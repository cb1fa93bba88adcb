//! Starts the builds of what was pushed. Its queue holds what cannot be built yet: a limit of the account delays a build
//! and never loses it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use jiff::Timestamp;
use stoker_core::error::{CallError, Failure, chain};
use stoker_core::event::{BuildDelayed, Envelope, Event};
use stoker_core::names::{Line, ProjectName};
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::{Build, Publish, ReadBuilds, StartBuilds, StopBuilds};
use stoker_core::routing::Function;
use stoker_core::sources;
use stoker_core::start::{Outcome, Request, overtaken, start, started};
use stoker_core::trigger::trigger;
use stoker_lambda::metrics::{self, Metric};
use stoker_lambda::{event_for, log};
use tracing::{Instrument as _, Span};

/// After so many tries of one message, and as many again, people are notified that its build is delayed: every half an hour, at
/// two minutes a try.
pub const TRIES_UNTIL_NOTIFIED: u32 = 15;

/// The ports that starting needs.
pub trait Ports: sources::Ports + ReadBuilds + StartBuilds + StopBuilds + Publish {}
impl<P: sources::Ports + ReadBuilds + StartBuilds + StopBuilds + Publish> Ports for P {}

/// What an instance of the function remembers between batches.
#[derive(Debug, Default)]
pub struct Instance {
    /// Whether the last batch met the account's limit, and not only that of a project.
    account_is_full: Cell<bool>,
}

/// A build that a message of the batch wants.
struct Want {
    message: usize,
    /// What its log lines have in common.
    span: Span,
    project: Project,
    request: Request,
}

/// Starts the builds that a batch of events asks for; answers the messages that are to come again.
///
/// Projects take turns, so that one with many pushes does not keep the others waiting. A project that is throttled is not
/// tried again within the batch; once two are, the account is, and nobody is. While it is, one try of a batch is enough to
/// know that it still is.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    registry: &str,
    ports: &impl Ports,
    instance: &Instance,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut wants: BTreeMap<ProjectName, Vec<Want>> = BTreeMap::new();
    for (message, record) in batch.records.iter().enumerate() {
        let Some(envelope) = event_for(Function::StartBuild, record.body.as_deref()) else { continue };
        let span = envelope.event.span();
        for (project, request) in span.in_scope(|| wanted(&envelope.event, policy)) {
            let of_project = wants.entry(project.name.clone()).or_default();
            of_project.push(Want { message, span: span.clone(), project, request });
        }
    }
    let mut throttled: BTreeSet<ProjectName> = BTreeSet::new();
    let mut failed: BTreeMap<usize, String> = BTreeMap::new();
    let wants = in_turns(wants);
    let mut histories = Histories::of(&wants);
    // So many projects that are throttled are the account.
    let mut enough = if instance.account_is_full.get() { 1 } else { 2 };
    for Want { message, span, project, request } in wants {
        if throttled.contains(&project.name) || throttled.len() >= enough {
            failed.entry(message).or_insert_with(|| "the account's limit is reached".to_owned());
            continue;
        }
        // In a box, as the compiler lays out only so many futures within each other.
        let started = Box::pin(start_once(ports, registry, &project, &request, &mut histories, now));
        let started = started.instrument(span.clone()).await;
        let _in_span = span.enter();
        match started {
            Ok(outcome) => {
                if matches!(outcome, Outcome::Started { .. }) {
                    enough = 2;
                }
                report(&project.name, &request, &outcome, now);
            }
            Err(error) => {
                log(error.disposition(), &error);
                if error.failure == Failure::Throttled {
                    throttled.insert(project.name);
                }
                failed.insert(message, chain(&error));
            }
        }
    }
    instance.account_is_full.set(throttled.len() >= enough);
    let mut response = SqsBatchResponse::default();
    for (message, why) in failed {
        let record = &batch.records[message];
        notify_if_late(ports, record, &why, now).await;
        response.add_failure(record.message_id.clone().unwrap_or_default());
    }
    response
}

/// The builds that an event asks for, by project. Why the others ask for none is logged.
fn wanted(event: &Event, policy: &Policy) -> Vec<(Project, Request)> {
    let projects = event.repository().map(|repository| policy.projects_of(repository)).unwrap_or_default();
    if projects.is_empty() {
        tracing::debug!("no project of the policy builds this repository");
    }
    let gated = projects.into_iter().filter_map(|project| match trigger(&project, event) {
        Ok(request) => Some((project, request)),
        Err(skipped) => {
            tracing::info!(
                project.name = %project.name, policy.rule = skipped.rule, skipped.why, "not built"
            );
            None
        }
    });
    gated.collect()
}

/// First everybody's first, then everybody's second, in the queue's own order: no project's name comes before others.
fn in_turns(wants: BTreeMap<ProjectName, Vec<Want>>) -> Vec<Want> {
    let numbered = wants.into_values().flat_map(|of_project| of_project.into_iter().enumerate());
    let mut numbered: Vec<(usize, Want)> = numbered.collect();
    numbered.sort_by_key(|(turn, want)| (*turn, want.message));
    numbered.into_iter().map(|(_, want)| want).collect()
}

/// What CodeBuild knows of the builds of each project that the batch is about: asked once, and kept up to date.
///
/// All builds since the oldest of the pushes are looked at, so that one that comes again late starts nothing.
struct Histories {
    since: BTreeMap<ProjectName, Option<Timestamp>>,
    known: BTreeMap<ProjectName, Vec<Arc<Build>>>,
}

impl Histories {
    fn of(wants: &[Want]) -> Self {
        let mut since: BTreeMap<ProjectName, Option<Timestamp>> = BTreeMap::new();
        for Want { request, .. } in wants {
            let oldest = since.entry(request.built_by.clone()).or_insert(request.pushed_at);
            *oldest = [*oldest, request.pushed_at].into_iter().flatten().min();
        }
        Self { since, known: BTreeMap::new() }
    }

    async fn of_project(
        &mut self,
        ports: &impl ReadBuilds,
        project: &ProjectName,
    ) -> Result<&mut Vec<Arc<Build>>, CallError> {
        if !self.known.contains_key(project) {
            let since = self.since.get(project).copied().flatten();
            let builds = ports.recent(project, since).await?;
            self.known.insert(project.clone(), builds);
        }
        Ok(self.known.entry(project.clone()).or_default())
    }
}

/// Starts a build unless it has been started before, and stops what it overtakes.
async fn start_once(
    ports: &(impl sources::Ports + ReadBuilds + StartBuilds + StopBuilds),
    registry: &str,
    project: &Project,
    request: &Request,
    histories: &mut Histories,
    now: Timestamp,
) -> Result<Outcome, CallError> {
    let recent = histories.of_project(ports, &request.built_by).await?;
    let outcome = start(ports, registry, project, request, recent, now).await?;
    if let Outcome::Started { id, .. } = &outcome {
        for build in overtaken(project, request, recent) {
            match ports.stop(&build.id).await {
                Ok(()) => tracing::info!(build.id = build.id, "stopped: a newer push has overtaken it"),
                // It costs minutes, and the build that counts has started.
                Err(error) => {
                    tracing::warn!(error = chain(&error), build.id = build.id, "an overtaken build runs on");
                }
            }
        }
        recent.insert(0, Arc::new(started(request, id, now)));
    }
    Ok(outcome)
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

/// notifies people of a push that has been waiting for long.
async fn notify_if_late(ports: &impl Publish, record: &SqsMessage, why: &str, now: Timestamp) {
    let tries = record.attributes.get("ApproximateReceiveCount").and_then(|tries| tries.parse().ok());
    let Some(tries) = tries.filter(|tries: &u32| *tries > 0 && tries.is_multiple_of(TRIES_UNTIL_NOTIFIED))
    else {
        return;
    };
    let Ok(Envelope { event, .. }) = Envelope::parse(record.body.as_deref().unwrap_or_default()) else {
        return;
    };
    let Some(repository) = event.repository().cloned() else { return };
    let line = match &event {
        Event::BranchPushed(push) => push.branch.to_string(),
        Event::TagPushed(push) => Line::GitTag(push.tag.clone()).to_string(),
        _ => event.detail_type().to_owned(),
    };
    event.span().in_scope(|| tracing::error!(line, why, tries, "a push is still waiting for its build"));
    metrics::put(now, &[], &[(Metric::BuildsDelayed, 1)]);
    let late = BuildDelayed { repository, line, why: why.to_owned(), tries };
    if let Err(error) = ports.publish(&[Event::BuildDelayed(late)]).await {
        tracing::warn!(error = chain(&error), "nobody is notified of it");
    }
}
