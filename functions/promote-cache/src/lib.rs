//! Updates lines. Its batches come from a FIFO queue, so that one invocation at a time updates a line. At
//! night it checks for drift: that comes by a queue of its own and updates no line, and a project with drift
//! goes through the first.

mod report;
mod triggered;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::{SignedDuration, Timestamp};
use stoker_core::event::{Due, Event};
use stoker_core::names::ProjectName;
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::{ListProjects, Publish};
use stoker_core::promote::reconcile::{self, reconcile};
use stoker_core::promote::{self, Answer, PromotionTrigger, Shares, promote_in_turn};
use stoker_core::routing::Function;
use stoker_core::schedule;
use stoker_lambda::metrics::{self, Metric};
use stoker_lambda::sqs::{Next, for_each};

use report::{drift, measure_age, measure_lines, notify, report_all};
use triggered::Triggered;

/// The ports that promotion needs, those of the reconciliation included.
pub trait Ports: reconcile::Ports + ListProjects + Publish {}
impl<P: reconcile::Ports + ListProjects + Publish> Ports for P {}

/// After so long nothing more is begun in an invocation; what is left comes again. A line takes 40 seconds at most.
const TIME: Duration = Duration::from_secs(70);

/// Projects with drift, each with the messages that say so.
type Drifted = BTreeMap<ProjectName, (Project, Vec<String>)>;

/// Behind a message that has waited for so long others wait, too.
const LATE: SignedDuration = SignedDuration::from_secs(10);

/// What an instance of the function remembers between batches.
#[derive(Debug, Default)]
pub struct Instance {
    shares: Shares,
}

/// Handles a batch; answers the messages that are to be tried again.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    ports: &impl Ports,
    instance: &Instance,
    now: Timestamp,
) -> SqsBatchResponse {
    let started = Instant::now();
    let mut triggered = Vec::new();
    let mut drifted = Drifted::new();
    let read = for_each(Function::PromoteCache, batch, async |message| {
        match &message.event {
            Event::NightlyReconcile(tick) => {
                schedule::put_due(ports, policy, *tick, message.due(now), Event::ReconcileRequested).await?;
            }
            // In boxes, as the compiler lays out only so many futures within each other.
            Event::ReconcileRequested(Due { project }) => {
                Box::pin(check(ports, policy, project, now)).await?;
            }
            Event::DriftFound(Due { project }) => {
                if let Some(project) = policy.project(project) {
                    let (_, ids) = drifted.entry(project.name.clone()).or_insert((project, Vec::new()));
                    ids.push(message.id);
                }
            }
            event => {
                if let Some(trigger) = PromotionTrigger::of(event) {
                    let at = [event.signed_at(), message.time].into_iter().flatten().min();
                    triggered.push(Triggered { trigger: trigger.known_at(at), message, at });
                } else {
                    tracing::debug!("no trigger");
                }
            }
        }
        Ok(Next::Done)
    });
    let mut again = read.await;
    let answers = Box::pin(promote_all(ports, policy, instance, &triggered, now)).await;
    notify(ports, &answers, &triggered).await;
    let done = now + SignedDuration::try_from(started.elapsed()).unwrap_or_default();
    measure_lines(&answers, done);
    for (of, answer) in triggered.iter().zip(&answers) {
        let _in_span = of.message.span.enter();
        measure_age(&of.trigger, answer, of.at, done);
        if !report_all(answer, of.is_again(), now) {
            again.add(&of.message.id);
        }
    }
    Box::pin(reconcile_all(ports, policy, drifted, now)).await.into_iter().for_each(|id| again.add(id));
    again.into()
}

/// Promotes all at once, but for what comes again, each of which goes by itself. Whichever of a batch takes
/// more time or memory than there is, the others do not fail with it a second time.
async fn promote_all(
    ports: &impl Ports,
    policy: &Policy,
    instance: &Instance,
    triggered: &[Triggered],
    now: Timestamp,
) -> Vec<Answer> {
    let started = tokio::time::Instant::now();
    let waited = |of: &Triggered| of.message.sent_at.map(|sent_at| now.duration_since(sent_at));
    let turn = (&instance.shares, triggered.iter().filter_map(waited).max() > Some(LATE));
    let mut answers: Vec<Answer> = triggered.iter().map(|_| Ok(Vec::new())).collect();
    let (again, first): (Vec<usize>, Vec<usize>) =
        (0..triggered.len()).partition(|&place| triggered[place].is_again());
    let alone = again.into_iter().map(|place| vec![place]);
    for places in [first].into_iter().chain(alone).filter(|places| !places.is_empty()) {
        let group: Vec<PromotionTrigger> =
            places.iter().map(|&place| triggered[place].trigger.clone()).collect();
        let promoted = if started.elapsed() < TIME {
            // Boxed: the compiler lays out only so deep a future.
            Box::pin(promote_in_turn(ports, policy, &group, turn, now)).await
        } else {
            let no_time = |trigger: &PromotionTrigger| {
                Err(Arc::new(promote::Error::NoTime { of: trigger.to_string() }))
            };
            group.iter().map(no_time).collect()
        };
        for (place, answer) in places.into_iter().zip(promoted) {
            answers[place] = answer;
        }
    }
    answers
}

/// Checks whether a project has drift. Most have none, and keep nobody waiting whose line is to be updated.
async fn check(
    ports: &impl Ports,
    policy: &Policy,
    project: &ProjectName,
    now: Timestamp,
) -> Result<(), promote::Error> {
    let Some(project) = policy.project(project) else { return Ok(()) };
    if reconcile::has_drift(ports, &project, now).await? {
        ports.publish(&[Event::DriftFound(Due { project: project.name })]).await?;
    }
    Ok(())
}

/// Repairs the drift of projects; answers the messages of those where that failed.
async fn reconcile_all(ports: &impl Ports, policy: &Policy, drifted: Drifted, now: Timestamp) -> Vec<String> {
    let (projects, ids): (Vec<Project>, Vec<Vec<String>>) = drifted.into_values().unzip();
    let mut failed = Vec::new();
    for ((answers, ids), project) in
        reconcile(ports, policy, &projects, now).await.iter().zip(ids).zip(&projects)
    {
        notify(ports, answers, &[]).await;
        measure_lines(answers, now);
        let drift = drift(answers);
        metrics::put(now, &[project.name.as_str()], &[(Metric::DriftRepaired, drift)]);
        let left = answers.iter().filter(|answer| !report_all(answer, false, now)).count();
        tracing::info!(project.name = %project.name, triggers = answers.len(), drift, failed = left, "reconcile");
        if left > 0 {
            failed.extend(ids);
        }
    }
    failed
}
