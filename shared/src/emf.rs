//! CloudWatch's embedded metric format: a line of JSON on standard output becomes metrics.
//!
//! Every metric is there for the whole stack, which is what alarms watch, and by its own dimensions beside it. Two stacks of
//! one account never count into the same metric.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The namespace of all of Stoker's metrics.
pub const NAMESPACE: &str = "Stoker";

/// What a metric's number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
}

/// A metric's name, unit and value.
pub type Metric = (&'static str, Unit, u64);

/// The dimension that a stack's name is in.
const STACK: &str = "Stack";
/// The dimension that multiplies metrics, and what they cost, by the number of projects.
const PROJECT: &str = "Project";

/// Whose metrics they are, and how many.
#[derive(Debug, Default)]
struct Setting {
    /// The stack's name.
    stack: Option<String>,
    /// Whether there are metrics of each project, or only of all together.
    by_project: bool,
}

impl Setting {
    fn from_environment() -> Self {
        Self {
            stack: std::env::var("STOKER_STACK").ok().filter(|stack| !stack.is_empty()),
            by_project: std::env::var("STOKER_METRICS").as_deref() != Ok("stack"),
        }
    }
}

/// One record, a single line: metrics of one moment under the same dimensions.
///
/// The environment says of which stack they are (`STOKER_STACK`), and whether there are metrics of each project too
/// (`STOKER_METRICS` is `stack` where there are not).
#[must_use]
pub fn record(now: Timestamp, dimensions: &[(&str, &str)], metrics: &[Metric]) -> String {
    record_in(&Setting::from_environment(), now, dimensions, metrics)
}

fn record_in(setting: &Setting, now: Timestamp, dimensions: &[(&str, &str)], metrics: &[Metric]) -> String {
    let stack = setting.stack.as_deref().map(|name| (STACK, name));
    let units: Vec<_> = metrics
        .iter()
        .map(|(name, unit, _)| {
            let unit = match unit {
                Unit::Count => "Count",
                Unit::Bytes => "Bytes",
            };
            json!({"Name": name, "Unit": unit})
        })
        .collect();
    let mut fields = Map::new();
    fields.insert(
        "_aws".to_owned(),
        json!({
            "Timestamp": now.as_millisecond(),
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": dimension_sets(setting, dimensions),
                "Metrics": units,
            }],
        }),
    );
    fields.extend(stack.iter().chain(dimensions).map(|(name, value)| ((*name).to_owned(), json!(value))));
    fields.extend(metrics.iter().map(|(name, _, value)| ((*name).to_owned(), json!(value))));
    Value::Object(fields).to_string()
}

/// The sets of dimensions by which metrics are kept: of the stack, of all projects together, of each.
fn dimension_sets<'d>(setting: &Setting, dimensions: &[(&'d str, &str)]) -> Vec<Vec<&'d str>> {
    let stack = setting.stack.iter().map(|_| STACK);
    let names = || dimensions.iter().map(|(name, _)| *name);
    let mut sets: Vec<Vec<&str>> =
        vec![stack.clone().collect(), stack.clone().chain(names().filter(|name| *name != PROJECT)).collect()];
    if setting.by_project {
        sets.push(stack.chain(names()).collect());
    }
    sets.dedup();
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_that_cloudwatch_understands() {
        let now = Timestamp::from_millisecond(1_795_000_000_123).unwrap();
        let setting = Setting { stack: Some("stoker".to_owned()), by_project: true };
        let dimensions = [("Project", "app\n")];
        let metrics = [("Steps", Unit::Count, 3), ("Size", Unit::Bytes, 4)];
        let line = record_in(&setting, now, &dimensions, &metrics);
        assert!(!line.contains('\n'));
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({
                "_aws": {
                    "Timestamp": 1_795_000_000_123_i64,
                    "CloudWatchMetrics": [{
                        "Namespace": "Stoker",
                        "Dimensions": [["Stack"], ["Stack", "Project"]],
                        "Metrics": [{"Name": "Steps", "Unit": "Count"}, {"Name": "Size", "Unit": "Bytes"}],
                    }],
                },
                "Stack": "stoker", "Project": "app\n", "Steps": 3, "Size": 4,
            })
        );
    }

    #[test]
    fn metrics_are_of_the_stack_and_where_wanted_of_each_project() {
        let sets = |stack: Option<&str>, by_project, dimensions: &[(&'static str, &str)]| {
            dimension_sets(&Setting { stack: stack.map(str::to_owned), by_project }, dimensions)
        };
        let of_a_line = [("Project", "app"), ("Line", "main")];
        assert_eq!(
            sets(Some("stoker"), true, &of_a_line),
            [vec!["Stack"], vec!["Stack", "Line"], vec!["Stack", "Project", "Line"]]
        );
        assert_eq!(sets(Some("stoker"), false, &of_a_line), [vec!["Stack"], vec!["Stack", "Line"]]);
        assert_eq!(sets(Some("stoker"), true, &[]), [["Stack"]]);
        // Where nobody has said which stack it is, the metrics are there all the same.
        assert_eq!(sets(None, true, &of_a_line), [vec![], vec!["Line"], vec!["Project", "Line"]]);
    }
}
