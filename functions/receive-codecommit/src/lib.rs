//! Receives CodeCommit's events from the account's default bus and puts what they mean on Stoker's own.

use serde_json::Value;
use stoker_core::error::{CallError, Disposition};
use stoker_core::forge::{self, Meaning, codecommit};
use stoker_core::policy::Policy;
use stoker_core::ports::Publish;
use stoker_lambda::log;

/// Handles one event. What cannot be read is logged and let go: it would be no better the next time.
pub async fn handle(event: Value, policy: &Policy, ports: &impl Publish) -> Result<Meaning, CallError> {
    let meaning = match codecommit::read(&event, &forge::default_branches(policy)) {
        Ok(meaning) => meaning,
        Err(refusal) => {
            log(Disposition::Drop, &refusal);
            return Ok(Meaning::Ignored("not an event that CodeCommit sends"));
        }
    };
    match &meaning {
        Meaning::Events(events) => {
            ports.publish(events).await?;
            for event in events {
                event.span().in_scope(|| tracing::info!(webhook.forge = "codecommit", "accepted"));
            }
        }
        Meaning::Ignored(why) => tracing::debug!(why, "ignored"),
    }
    Ok(meaning)
}
