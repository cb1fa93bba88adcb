//! The batches of a queue: each message is read and handled within the span of its event, and what fails comes again.

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use jiff::Timestamp;
use stoker_core::error::Disposition;
use stoker_core::event::{Envelope, Event};
use stoker_core::routing::Function;
use stoker_core::schedule;
use tracing::{Instrument as _, Span};

use crate::{Failed, log};

/// A message with an event that the function acts on.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id in the queue.
    pub id: String,
    /// What happened.
    pub event: Event,
    /// What the log lines about it have in common.
    pub span: Span,
    /// When it happened, by the bus.
    pub time: Option<Timestamp>,
    /// When it came to the queue.
    pub sent_at: Option<Timestamp>,
    /// How often it has been received, this time included.
    pub receives: u32,
}

impl Message {
    /// The message, if the function acts on its event. What it does not act on is let go.
    fn read(function: Function, message: &SqsMessage) -> Option<Self> {
        let attribute = |name: &str| message.attributes.get(name).map(String::as_str);
        match Envelope::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(Envelope { event, time, .. }) if function.acts_on(&event) => Some(Self {
                id: message.message_id.clone().unwrap_or_default(),
                span: event.span(),
                event,
                time,
                sent_at: attribute("SentTimestamp").and_then(schedule::sent_at),
                receives: attribute("ApproximateReceiveCount").and_then(|n| n.parse().ok()).unwrap_or(1),
            }),
            Ok(Envelope { event, .. }) => {
                tracing::debug!(event.kind = event.detail_type(), "nothing for this function");
                None
            }
            Err(unknown) => {
                log(Disposition::Drop, &unknown);
                None
            }
        }
    }

    /// When a tick was due: by its schedule, or else when its message came to the queue. One that is tried
    /// again later is still the same tick.
    #[must_use]
    pub fn due(&self, now: Timestamp) -> Timestamp {
        self.time.or(self.sent_at).unwrap_or(now)
    }
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has been handled, or has no use.
    Done,
    /// It comes again once its visibility timeout is over.
    Again,
}

/// The messages of a batch that are to come again.
#[derive(Debug, Default)]
pub struct Again(Vec<String>);

impl Again {
    /// Lets a message come again.
    pub fn add(&mut self, id: impl Into<String>) {
        let id = id.into();
        if !self.0.contains(&id) {
            self.0.push(id);
        }
    }
}

impl From<Again> for SqsBatchResponse {
    fn from(Again(ids): Again) -> Self {
        let mut response = Self::default();
        response.set_failures(ids);
        response
    }
}

/// Handles each message of a batch that the function acts on, one after the other, within its span. One that
/// fails is logged and comes again.
pub async fn for_each(
    function: Function,
    batch: &SqsEvent,
    mut handle: impl AsyncFnMut(Message) -> Result<Next, Failed>,
) -> Again {
    let mut again = Again::default();
    for message in batch.records.iter().filter_map(|message| Message::read(function, message)) {
        let (id, span) = (message.id.clone(), message.span.clone());
        // In a box, as the compiler lays out only so many futures within each other.
        let handled = Box::pin(handle(message)).instrument(span).await;
        if handled.unwrap_or(Next::Again) == Next::Again {
            again.add(id);
        }
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, body: &str, attributes: &[(&str, &str)]) -> SqsMessage {
        let mut message = SqsMessage::default();
        message.message_id = Some(id.to_owned());
        message.body = Some(body.to_owned());
        message.attributes =
            attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        message
    }

    fn tick(time: &str) -> String {
        format!(r#"{{"source":"stoker","detail-type":"NightlyReconcile",{time}"detail":{{}}}}"#)
    }

    #[test]
    fn a_tick_is_dated_by_its_schedule_then_by_its_message_then_by_the_clock() {
        let [scheduled, sent, now]: [Timestamp; 3] =
            ["2026-11-21T01:00:00Z", "2026-11-21T01:02:00Z", "2026-11-21T03:00:00Z"]
                .map(|at| at.parse().unwrap());
        let dated = tick(r#""time":"2026-11-21T01:00:00Z","#);
        // What Scheduler did not fill in.
        let undated = tick(r#""time":"<aws.scheduler.scheduled-time>","#);
        let millis = sent.as_millisecond().to_string();
        let due = |body: &str, attributes: &[(&str, &str)]| {
            Message::read(Function::PromoteCache, &message("1", body, attributes)).unwrap().due(now)
        };
        assert_eq!(due(&dated, &[("SentTimestamp", &millis)]), scheduled);
        assert_eq!(due(&undated, &[("SentTimestamp", &millis)]), sent);
        assert_eq!(due(&undated, &[("SentTimestamp", "soon")]), now);
        assert_eq!(due(&undated, &[]), now);
    }

    #[tokio::test]
    async fn what_fails_comes_again_and_what_nobody_acts_on_does_not() {
        let mut batch = SqsEvent::default();
        let of_others = r#"{"source":"stoker","detail-type":"NightlyWarm","detail":{}}"#;
        batch.records = [
            ("no event", "nonsense"),
            ("another's", of_others),
            ("done", &tick("")),
            ("fails", &tick("")),
            ("waits", &tick("")),
        ]
        .map(|(id, body)| message(id, body, &[]))
        .to_vec();
        let mut handled = Vec::new();
        let again = for_each(Function::PromoteCache, &batch, async |message| {
            handled.push(message.id.clone());
            match message.id.as_str() {
                "done" => Ok(Next::Done),
                "waits" => Ok(Next::Again),
                _ => Err(Failed { disposition: Disposition::Drop, message: "no".to_owned() }),
            }
        });
        let response = SqsBatchResponse::from(again.await);
        assert_eq!(handled, ["done", "fails", "waits"]);
        let failures = response.batch_item_failures.iter().map(|failure| failure.item_identifier.as_str());
        assert_eq!(failures.collect::<Vec<_>>(), ["fails", "waits"]);
    }
}
