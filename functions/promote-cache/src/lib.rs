//! Moves lines. Reads its hints in batches from a FIFO queue, so that one line is moved by one invocation at a time.

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker::cache::Warmth;
use stoker::emf::{self, Unit};
use stoker::error::Disposition;
use stoker::event::{Envelope, Event};
use stoker::lambda::log;
use stoker::names::{Line, ProjectName};
use stoker::policy::Policy;
use stoker::ports::{Catalogue, CheckBlobs, ListProjects};
use stoker::promote::{Answer, Hint, Outcome, Warmed, promote, sweep};

/// The ports that promotion needs, those of the sweep included.
pub trait Ports: stoker::promote::Ports + CheckBlobs + Catalogue + ListProjects {}
impl<P: stoker::promote::Ports + CheckBlobs + Catalogue + ListProjects> Ports for P {}

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
    failed.extend(
        ids.into_iter().zip(answers).filter_map(|(id, answer)| (!tell_all(&answer, now)).then_some(id)),
    );
    // Twice the same night says no more than once.
    if !sweeps.is_empty() && !swept(ports, policy, now).await {
        failed.append(&mut sweeps);
    }
    let mut response = SqsBatchResponse::default();
    response.batch_item_failures = failed
        .into_iter()
        .map(|id| {
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = id;
            failure
        })
        .collect();
    response
}

/// Whether the whole sweep went well.
async fn swept(ports: &impl Ports, policy: &Policy, now: Timestamp) -> bool {
    match sweep(ports, policy, now).await {
        Ok(answers) => {
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

/// Tells what came of a hint; false if it has to be tried again. That is done also when it is of no use: the queue's limit
/// brings it to the dead letters.
fn tell_all(answer: &Answer, now: Timestamp) -> bool {
    match answer {
        Ok(outcomes) => outcomes.iter().for_each(|outcome| tell(outcome, now)),
        Err(error) => log(error.disposition(), &**error),
    }
    answer.is_ok()
}

fn tell(outcome: &Outcome, now: Timestamp) {
    match outcome {
        Outcome::Moved { line, to, project, records, builds } => {
            tracing::info!(%line, cache.digest = %to, cache.records = records, "line moved");
            for Warmed { build, warmth } in builds {
                tracing::info!(
                    %line, project.name = %project, build.id = build,
                    steps.reused_count = warmth.reused, steps.built_count = warmth.built(),
                    layers.reused_bytes = warmth.reused_bytes, layers.built_bytes = warmth.built_bytes,
                    "how warm the build was"
                );
                measure(project, line, warmth, now);
            }
        }
        Outcome::Unchanged { line } => tracing::info!(%line, "the line holds it already"),
        Outcome::Nothing { why } => tracing::info!(why, "nothing to promote"),
    }
}

/// Turns a build's warmth into metrics.
#[expect(clippy::print_stdout, reason = "a line on standard output is how a metric leaves a function")]
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
    println!("{}", emf::record(now, &dimensions, &metrics));
}
