//! CloudWatch's embedded metric format: a line of JSON on standard output becomes metrics.

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

/// One record, a single line: metrics of one moment under the same dimensions.
#[must_use]
pub fn record(now: Timestamp, dimensions: &[(&str, &str)], metrics: &[Metric]) -> String {
    let names: Vec<_> = dimensions.iter().map(|(name, _)| *name).collect();
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
            "CloudWatchMetrics": [{"Namespace": NAMESPACE, "Dimensions": [names], "Metrics": units}],
        }),
    );
    fields.extend(dimensions.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    fields.extend(metrics.iter().map(|(name, _, value)| ((*name).to_owned(), json!(value))));
    Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_that_cloudwatch_understands() {
        let now = Timestamp::from_millisecond(1_795_000_000_123).unwrap();
        let line =
            record(now, &[("Project", "app\n")], &[("Steps", Unit::Count, 3), ("Size", Unit::Bytes, 4)]);
        assert!(!line.contains('\n'));
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({
                "_aws": {
                    "Timestamp": 1_795_000_000_123_i64,
                    "CloudWatchMetrics": [{
                        "Namespace": "Stoker",
                        "Dimensions": [["Project"]],
                        "Metrics": [{"Name": "Steps", "Unit": "Count"}, {"Name": "Size", "Unit": "Bytes"}],
                    }],
                },
                "Project": "app\n", "Steps": 3, "Size": 4,
            })
        );
    }
}
