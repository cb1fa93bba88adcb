//! Moves lines. Reads its hints in batches from a FIFO queue, so that one line is moved by one invocation at a time.

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use stoker::cache::Warmth;
use stoker::emf::{self, Unit};
use stoker::error::Disposition;
use stoker::event::Envelope;
use stoker::lambda::log;
use stoker::names::{Line, ProjectName};
use stoker::policy::Policy;
use stoker::promote::{Hint, Outcome, Ports, Warmed, promote};

/// Handles a batch; answers the messages that are to be tried again.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    ports: &impl Ports,
    now: Timestamp,
) -> SqsBatchResponse {
    let mut ids = Vec::new();
    let mut hints = Vec::new();
    for message in &batch.records {
        let envelope = match Envelope::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(envelope) => envelope,
            Err(unknown) => {
                log(Disposition::Drop, &unknown);
                continue;
            }
        };
        let Some(hint) = Hint::of(&envelope.event) else {
            tracing::debug!(event.kind = envelope.event.detail_type(), "no hint");
            continue;
        };
        ids.push(message.message_id.clone().unwrap_or_default());
        hints.push(hint);
    }
    let answers = promote(ports, policy, &hints, now).await;

    let mut response = SqsBatchResponse::default();
    for (id, answer) in ids.into_iter().zip(answers) {
        match answer {
            Ok(outcomes) => outcomes.iter().for_each(|outcome| tell(outcome, now)),
            Err(error) => {
                log(error.disposition(), &*error);
                // Given back also when it is of no use to try again: the queue's limit brings it to the dead letters.
                let mut failure = BatchItemFailure::default();
                failure.item_identifier = id;
                response.batch_item_failures.push(failure);
            }
        }
    }
    response
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
