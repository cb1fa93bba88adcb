//! CloudWatch Logs: logs of builds, and queries of the functions' logs.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_cloudwatchlogs::types::QueryStatus;
use jiff::Timestamp;
use stoker_aws::call_error;
use stoker_core::error::{CallError, Failure};
use stoker_core::onboard::LogPlace;

use super::Setup;

/// How often the answer of a query is looked for, and how long between.
const LOOKS: u32 = 120;
const PAUSE: Duration = Duration::from_millis(500);

impl Setup {
    /// A log as text, a line for each event, until it is longer than so many bytes.
    pub async fn log(&self, place: &LogPlace, longest: u64) -> Result<String, CallError> {
        let (mut text, mut token) = (String::new(), None::<String>);
        loop {
            let asked = self.logs.get_log_events().log_group_name(&place.group);
            let asked = asked.log_stream_name(&place.stream).start_from_head(true);
            let page = asked.set_next_token(token.clone()).send().await;
            let page = page.map_err(|error| call_error("logs:GetLogEvents", &place.group, error))?;
            for event in page.events() {
                let message = event.message().unwrap_or_default();
                text.push_str(message);
                text.push_str(if message.ends_with('\n') { "" } else { "\n" });
            }
            let next = page.next_forward_token().map(str::to_owned);
            // At the end the token stays the same.
            if next.is_none() || next == token || text.len() as u64 > longest {
                return Ok(text);
            }
            token = next;
        }
    }

    /// The fields of each line that a query of Logs Insights finds. It is waited for, a minute at most.
    pub async fn query_logs(
        &self,
        groups: Vec<String>,
        query: String,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<BTreeMap<String, String>>, CallError> {
        let subject = groups.join(" ");
        let asked = self.logs.start_query().set_log_group_names(Some(groups)).query_string(query);
        let asked = asked.start_time(since.as_second()).end_time(until.as_second() + 1);
        let started = asked.send().await.map_err(|error| call_error("logs:StartQuery", &subject, error))?;
        let id = started.query_id().unwrap_or_default();
        let failed = |why: &str| {
            Err(CallError::new("logs:GetQueryResults", &subject, Failure::Unavailable, why.to_owned()))
        };
        for _ in 0..LOOKS {
            let answer = self.logs.get_query_results().query_id(id).send().await;
            let answer = answer.map_err(|error| call_error("logs:GetQueryResults", &subject, error))?;
            match answer.status() {
                Some(QueryStatus::Complete) => {
                    let fields = answer.results().iter().map(|line| {
                        let pairs = line.iter().map(|field| (field.field(), field.value()));
                        super::pairs(pairs)
                    });
                    return Ok(fields.collect());
                }
                Some(QueryStatus::Scheduled | QueryStatus::Running) => tokio::time::sleep(PAUSE).await,
                other => {
                    let status = other.map_or("unknown", QueryStatus::as_str);
                    return failed(&format!("the query ended as {status}"));
                }
            }
        }
        failed("the query did not end within a minute; --days with fewer days reads less")
    }
}
