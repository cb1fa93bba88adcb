//! Moves lines. Reads its hints in batches from a FIFO queue, so that one line is moved by one invocation at a time.

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker::cache::Warmth;
use stoker::emf::{self, Unit};
use stoker::error::{Disposition, chain};
use stoker::event::{Envelope, Event, PromotionFailed, WarmthFell};
use stoker::lambda::log;
use stoker::names::{Line, ProjectName};
use stoker::policy::Policy;
use stoker::ports::{Catalogue, CheckBlobs, ListProjects, Publish};
use stoker::promote::{self, Answer, Hint, Outcome, Warmed, promote, sweep};

/// The ports that promotion needs, those of the sweep included.
pub trait Ports: promote::Ports + CheckBlobs + Catalogue + ListProjects + Publish {}
impl<P: promote::Ports + CheckBlobs + Catalogue + ListProjects + Publish> Ports for P {}

/// Main's builds that reused at least this much, in percent, and then less than half of what they did, have cooled.
const WARM_PERCENT: u8 = 50;

/// Handles a batch; answers the messages that are to be tried again.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut ids = Vec::new();
    let mut hints = Vec::new();
    let mut sweeps = Vec::new();
    for message in &batch.records {
        let envelope = match Envelope::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(envelope) => envelope,
            Err(unknown) => {
                log(Disposition::Drop, &unknown);
                continue;
            }
        };
        let id = message.message_id.clone().unwrap_or_default();
        if envelope.event == (Event::NightlySweep {}) {
            sweeps.push(id);
        } else if let Some(hint) = Hint::of(&envelope.event) {
            ids.push(id);
            hints.push(hint);
        } else {
            tracing::debug!(event.kind = envelope.event.detail_type(), "no hint");
        }
    }
    let mut failed = Vec::new();
    let answers = promote(ports, policy, &hints, now).await;
    notify(ports, &answers, &hints).await;
    failed.extend(
        ids.into_iter().zip(answers).filter_map(|(id, answer)| (!tell_all(&answer, now)).then_some(id)),
    );
    // Twice the same night says no more than once.
    if !sweeps.is_empty() && !swept(ports, policy, now).await {
        failed.append(&mut sweeps);
    }
    let mut response = SqsBatchResponse::default();
    response.set_failures(failed);
    response
}

/// Whether the whole sweep went well.
async fn swept(ports: &impl Ports, policy: &Policy, now: Timestamp) -> bool {
    match sweep(ports, policy, now).await {
        Ok(answers) => {
            notify(ports, &answers, &[]).await;
            let failed = answers.iter().filter(|answer| !tell_all(answer, now)).count();
            tracing::info!(hints = answers.len(), failed, "sweep");
            failed == 0
        }
        Err(error) => {
            log(error.disposition(), &error);
            false
        }
    }
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
