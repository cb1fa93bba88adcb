//! Moves lines. Reads its hints in batches from a FIFO queue, so that one line is moved by one invocation at a time. At night
//! it looks what has been lost: that comes by a queue of its own and moves no line, and what is found goes through the first.

use std::collections::BTreeMap;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker::cache::Warmth;
use stoker::emf::{self, Unit};
use stoker::error::{Disposition, chain};
use stoker::event::{Envelope, Event, PromotionFailed, Turn, WarmthFell};
use stoker::lambda::log;
use stoker::names::{Line, ProjectName};
use stoker::night;
use stoker::policy::{Policy, Project};
use stoker::ports::{ListProjects, Publish};
use stoker::promote::sweep::{self, sweep};
use stoker::promote::{self, Answer, Hint, Outcome, Warmed, promote};

/// The ports that promotion needs, those of the sweep included.
pub trait Ports: sweep::Ports + ListProjects + Publish {}
impl<P: sweep::Ports + ListProjects + Publish> Ports for P {}

/// Main's builds that reused at least this much, in percent, and then less than half of what they did, have cooled.
const WARM_PERCENT: u8 = 50;

/// Projects that have lost something, each with the messages that say so.
type Sweeps = BTreeMap<ProjectName, (Project, Vec<String>)>;

/// Handles a batch; answers the messages that are to be tried again.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut ids = Vec::new();
    let mut hints = Vec::new();
    let mut found = Sweeps::new();
    let mut failed = Vec::new();
    for message in &batch.records {
        let envelope = match Envelope::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(envelope) => envelope,
            Err(unknown) => {
                log(Disposition::Drop, &unknown);
                continue;
            }
        };
        let id = message.message_id.clone().unwrap_or_default();
        match &envelope.event {
            Event::NightlySweep(tick) => {
                let sent = message.attributes.get("SentTimestamp").map(String::as_str);
                let at = night::due(&envelope, sent, now);
                if let Err(error) = night::put_turns(ports, policy, *tick, at, Event::SweepWanted).await {
                    log(error.disposition(), &error);
                    failed.push(id);
                }
            }
            Event::SweepWanted(Turn { project }) => {
                if let Err(error) = look(ports, policy, project, now).await {
                    log(error.disposition(), &error);
                    failed.push(id);
                }
            }
            Event::SweepFound(Turn { project }) => {
                let Some(project) = policy.project(project) else { continue };
                let (_, ids) = found.entry(project.name.clone()).or_insert((project, Vec::new()));
                ids.push(id);
            }
            event => {
                let Some(hint) = Hint::of(event) else {
                    tracing::debug!(event.kind = event.detail_type(), "no hint");
                    continue;
                };
                ids.push(id);
                hints.push(hint);
            }
        }
    }
    let answers = promote(ports, policy, &hints, now).await;
    notify(ports, &answers, &hints).await;
    failed.extend(
        ids.into_iter().zip(answers).filter_map(|(id, answer)| (!tell_all(&answer, now)).then_some(id)),
    );
    failed.extend(swept(ports, policy, found, now).await);
    let mut response = SqsBatchResponse::default();
    response.set_failures(failed);
    response
}

/// Looks what a project has lost. Most have lost nothing, and keep nobody waiting whose line is to move.
async fn look(
    ports: &impl Ports,
    policy: &Policy,
    project: &ProjectName,
    now: Timestamp,
) -> Result<(), promote::Error> {
    let Some(project) = policy.project(project) else { return Ok(()) };
    if sweep::is_wanted(ports, &project, now).await? {
        ports.publish(&[Event::SweepFound(Turn { project: project.name })]).await?;
    }
    Ok(())
}

/// Makes good what projects have lost; answers the messages of those where that failed.
async fn swept(ports: &impl Ports, policy: &Policy, found: Sweeps, now: Timestamp) -> Vec<String> {
    let (projects, ids): (Vec<Project>, Vec<Vec<String>>) = found.into_values().unzip();
    let mut failed = Vec::new();
    for ((answers, ids), project) in sweep(ports, policy, &projects, now).await.iter().zip(ids).zip(&projects)
    {
        notify(ports, answers, &[]).await;
        let left = answers.iter().filter(|answer| !tell_all(answer, now)).count();
        tracing::info!(project.name = %project.name, hints = answers.len(), failed = left, "sweep");
        if left > 0 {
            failed.extend(ids);
        }
    }
    failed
}

/// Puts on the bus what people may want to be told. Whoever is not told finds it in the log.
async fn notify(ports: &impl Publish, answers: &[Answer], hints: &[Hint]) {
    let outcomes = answers.iter().flatten().flatten();
    let hopeless = answers.iter().zip(hints).filter_map(|(answer, hint)| {
        let error = answer.as_ref().err().filter(|error| is_hopeless(error))?;
        let (of, why) = (hint.to_string(), chain(&**error));
        Some(Event::PromotionFailed(PromotionFailed { of, why }))
    });
    let notices: Vec<Event> = outcomes.flat_map(notices).chain(hopeless).collect();
    if !notices.is_empty()
        && let Err(error) = ports.publish(&notices).await
    {
        tracing::warn!(error = chain(&error), "nobody is told of it");
    }
}

fn notices(outcome: &Outcome) -> Vec<Event> {
    match outcome {
        Outcome::Failed(failed) => vec![Event::BuildFailed(failed.clone())],
        Outcome::Moved { line: Line::Main, project, builds, .. } => {
            let fell = builds.iter().filter_map(|Warmed { build, warmth, before_percent }| {
                let (reused_percent, before_percent) = (warmth.reused_percent()?, (*before_percent)?);
                (before_percent >= WARM_PERCENT && reused_percent < before_percent / 2).then(|| {
                    let (project, build) = (project.clone(), build.clone());
                    Event::WarmthFell(WarmthFell { project, build, reused_percent, before_percent })
                })
            });
            fell.collect()
        }
        _ => Vec::new(),
    }
}

/// Whether trying again is of no use. While a message of the queue is tried again, all others wait.
fn is_hopeless(error: &promote::Error) -> bool {
    error.disposition() == Disposition::Alarm
}

/// Tells what came of a hint; false if it has to be tried again. What is of no use to try is let go: people are told, and the
/// nightly sweep tries it once more.
fn tell_all(answer: &Answer, now: Timestamp) -> bool {
    match answer {
        Ok(outcomes) => {
            for outcome in outcomes {
                tell(outcome, now);
            }
            true
        }
        Err(error) => {
            log(error.disposition(), &**error);
            if is_hopeless(error) {
                put(now, &[], &[("PromotionsFailed", Unit::Count, 1)]);
            }
            is_hopeless(error)
        }
    }
}

fn tell(outcome: &Outcome, now: Timestamp) {
    match outcome {
        Outcome::Moved { line, to, project, records, builds } => {
            tracing::info!(%line, cache.digest = %to, cache.records = records, "line moved");
            for Warmed { build, warmth, .. } in builds {
                tracing::info!(
                    %line, project.name = %project, build.id = build,
                    steps.reused_count = warmth.reused, steps.built_count = warmth.built(),
                    layers.reused_bytes = warmth.reused_bytes, layers.built_bytes = warmth.built_bytes,
                    "how warm the build was"
                );
                measure(project, line, warmth, now);
            }
        }
        Outcome::Failed(failed) => {
            tracing::error!(
                project.name = %failed.project, build.id = failed.build, line = failed.line, build.reason = failed.reason,
                build.status = failed.status, "a build that Stoker started has failed"
            );
            put(now, &[("Project", failed.project.as_str())], &[("BuildsFailed", Unit::Count, 1)]);
        }
        Outcome::Unchanged { line } => tracing::info!(%line, "the line holds it already"),
        Outcome::Nothing { why } => tracing::info!(why, "nothing to promote"),
    }
}

/// Turns a build's warmth into metrics.
fn measure(project: &ProjectName, line: &Line, warmth: &Warmth, now: Timestamp) {
    let kind = match line {
        Line::Main => "main",
        Line::Branch(_) => "branch",
        Line::PullRequest(_) => "pr",
    };
    let metrics = [
        ("StepsReused", Unit::Count, warmth.reused as u64),
        ("StepsBuilt", Unit::Count, warmth.built() as u64),
        ("BytesReused", Unit::Bytes, warmth.reused_bytes),
        ("BytesBuilt", Unit::Bytes, warmth.built_bytes),
    ];
    let dimensions = [("Project", project.as_str()), ("Line", kind)];
    put(now, &dimensions, &metrics);
}

#[expect(clippy::print_stdout, reason = "a line on standard output is how a metric leaves a function")]
fn put(now: Timestamp, dimensions: &[(&str, &str)], metrics: &[emf::Metric]) {
    println!("{}", emf::record(now, dimensions, metrics));
}
