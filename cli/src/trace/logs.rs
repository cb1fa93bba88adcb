//! The lines of the functions' logs that name a commit, by the query of `docs/metrics.md`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;
use stoker_aws_setup::{SdkConfig, Setup};

use super::report::Step;
use crate::deployed::Missing;

/// Lines that one query answers at most.
const MOST: usize = 1000;
/// Fields of a line that say more than its message, in the order in which people want them.
const FIELDS: [&str; 11] = [
    "event.kind",
    "line",
    "build.id",
    "build.reason",
    "build.status",
    "reads",
    "policy.rule",
    "skipped.why",
    "cache.tags",
    "why",
    "error",
];

/// What is in the logs.
pub(super) struct Logged {
    pub(super) steps: Vec<Step>,
    /// Why it is not all.
    pub(super) cut: Option<String>,
}

/// Reads the logs of a stack; the error says why they tell nothing.
pub(super) async fn read(
    config: &SdkConfig,
    stack: &str,
    commit: &str,
    builds: &[&str],
    since: Timestamp,
    until: Timestamp,
) -> Result<Logged, String> {
    let setup = Setup::new(config);
    let resources = setup.resources(stack).await.map_err(|error| {
        let missing = Missing::from(&error);
        if missing.why.contains("does not exist") {
            format!("there is no stack {stack} here; name it with --stack")
        } else {
            missing.text()
        }
    })?;
    let groups = resources.into_iter().filter(|resource| resource.kind == "AWS::Logs::LogGroup");
    let groups: Vec<String> = groups.map(|resource| resource.id).collect();
    if groups.is_empty() {
        return Err(format!("the stack {stack} has no log groups"));
    }
    let lines = setup.query_logs(groups, query(commit, builds), since, until).await;
    let lines = lines.map_err(|error| Missing::from(&error).text())?;
    let cut = (lines.len() >= MOST).then(|| format!("only the first {MOST} lines were read"));
    Ok(Logged { steps: lines.iter().filter_map(step).collect(), cut })
}

/// The query: all lines with the commit's hash, and those that know only its builds.
fn query(commit: &str, builds: &[&str]) -> String {
    // Nothing else may end a text of the query.
    let is_plain = |id: &&&str| id.chars().all(|c| c.is_ascii_alphanumeric() || "-_:".contains(c));
    let names = std::iter::once(commit).chain(builds.iter().filter(is_plain).copied());
    let names: Vec<String> = names.map(|name| format!("@message like \"{name}\"")).collect();
    format!(
        "fields @timestamp, @message, @log | filter {} | sort @timestamp asc | limit {MOST}",
        names.join(" or ")
    )
}

/// What a line tells. What is no line of Stoker's, such as Lambda's own, tells nothing.
fn step(line: &BTreeMap<String, String>) -> Option<Step> {
    let field = |name: &str| line.get(name).map(String::as_str);
    let json: Value = serde_json::from_str(field("@message")?).ok()?;
    let at: Timestamp = json["timestamp"].as_str()?.parse().ok()?;
    let message = json["message"].as_str()?;
    let value = |name: &str| {
        let value = json.get(name).or_else(|| json["span"].get(name))?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (!text.is_empty()).then_some(text)
    };
    let more: Vec<String> =
        FIELDS.iter().filter_map(|name| Some(format!("{name}={}", value(name)?))).collect();
    let what = if more.is_empty() { message.to_owned() } else { format!("{message}: {}", more.join(", ")) };
    let group = field("@log").unwrap_or_default();
    let group = group.rsplit(['/', ':']).next().unwrap_or_default();
    Some(Step { at, source: format!("log {group}").trim().to_owned(), project: value("project.name"), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_cannot_end_the_text_of_the_query() {
        let query = query("ab12", &["app:1-2", "app:\" or true or \""]);
        assert_eq!(
            query,
            "fields @timestamp, @message, @log | filter @message like \"ab12\" or @message like \"app:1-2\" \
             | sort @timestamp asc | limit 1000"
        );
    }

    #[test]
    fn a_line_tells_what_it_is_about() {
        let line = |message: &str| {
            let fields = [("@message", message), ("@log", "1:/aws/lambda/stoker-start-build")];
            BTreeMap::from(fields.map(|(name, value)| (name.to_owned(), value.to_owned())))
        };
        let json = r#"{"timestamp":"2026-11-21T08:00:00.5Z","level":"INFO","message":"build started","line":"main",
            "project.name":"app","reads":"","span":{"event.kind":"BranchPushed","git.commit":"ab"}}"#;
        let reported = step(&line(json)).unwrap();
        assert_eq!(reported.source, "log stoker-start-build");
        assert_eq!(reported.project.as_deref(), Some("app"));
        assert_eq!(reported.what, "build started: event.kind=BranchPushed, line=main");
        assert_eq!(step(&line("START RequestId: ab")), None);
        assert_eq!(step(&line("{}")), None);
    }
}
