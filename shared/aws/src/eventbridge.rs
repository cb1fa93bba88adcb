//! EventBridge: Stoker's own bus.

use aws_sdk_eventbridge::types::PutEventsRequestEntry;

use super::{Aws, call_error};
use stoker_core::error::{CallError, Failure};
use stoker_core::event::{Event, SOURCE};
use stoker_core::ports::Publish;

/// How many entries one `PutEvents` may carry.
const EVENTS_PER_CALL: usize = 10;

impl Publish for Aws {
    async fn publish(&self, events: &[Event]) -> Result<(), CallError> {
        let operation = "events:PutEvents";
        for events in events.chunks(EVENTS_PER_CALL) {
            let mut entries = Vec::new();
            for event in events {
                let json = serde_json::to_value(event)
                    .map_err(|error| CallError::new(operation, &self.bus, Failure::Refused, error))?;
                let entry = PutEventsRequestEntry::builder()
                    .source(SOURCE)
                    .detail_type(event.detail_type())
                    .detail(json["detail"].to_string())
                    .event_bus_name(&self.bus);
                entries.push(entry.build());
            }
            let answer = self.eventbridge().put_events().set_entries(Some(entries)).send().await;
            let answer = answer.map_err(|error| call_error(operation, &self.bus, error))?;
            // The call succeeds as a whole even where entries of it failed.
            if let Some(entry) = answer.entries().iter().find(|entry| entry.error_code().is_some()) {
                let code = entry.error_code().unwrap_or_default();
                let failure =
                    if code.contains("Throttl") { Failure::Throttled } else { Failure::Unavailable };
                let cause = format!("{code}: {}", entry.error_message().unwrap_or_default());
                return Err(CallError::new(operation, &self.bus, failure, cause));
            }
        }
        Ok(())
    }
}
