//! CloudWatch's embedded metric format: a line of JSON on standard output becomes metrics. All of Stoker's are named here;
//! `docs/metrics.md` is the same as a table, and a test compares them.
//!
//! Every metric is there for the whole stack, which is what alarms watch, and by its own dimensions beside it. Two stacks of
//! one account never count into the same metric.

use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use strum::{IntoStaticStr, VariantArray};

/// The namespace of all of Stoker's metrics.
pub const NAMESPACE: &str = "Stoker";

/// What a metric's number counts, by CloudWatch's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// CloudWatch's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A metric, called as CloudWatch calls it: dashboards and alarms name it, so a name that is there keeps its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
pub enum Metric {
    /// Webhooks that were genuine.
    WebhooksAccepted,
    /// Webhooks that were not believed, or not understood.
    WebhooksRefused,
    /// Those of them that carried a signature.
    SignedWebhooksRefused,
    /// Genuine webhooks whose events did not reach the bus.
    WebhooksFailed,
    /// Builds that a push or a pull request started.
    BuildsStarted,
    /// Builds that found no CodeBuild project to run in.
    BuildsWithoutProject,
    /// Pushes of which people were told that their build waits.
    BuildsDelayed,
    /// Builds that Stoker started and that failed.
    BuildsFailed,
    /// Builds of main that only fill its cache.
    WarmBuildsStarted,
    /// Steps of a build that came out of the cache.
    StepsReused,
    /// Steps that a build ran.
    StepsBuilt,
    /// By how much a build was shorter than one that found nothing in the cache.
    SecondsSaved,
    /// Bytes of layers that a build took from the cache.
    BytesReused,
    /// Bytes of layers that a build made.
    BytesBuilt,
    /// Lines that moved.
    LinesMoved,
    /// Time from a merge until main's line had what was merged.
    PromotionAge,
    /// Bytes that a line's cache may grow by before steps are dropped from it.
    ImportHeadroom,
    /// Hints that can never be promoted.
    PromotionsFailed,
    /// Lines that the night's sweep had to move or mend.
    SweepDrift,
    /// Bytes of a repository's caches after retention.
    CacheBytes,
    /// Images of a repository after retention.
    CacheImages,
    /// Images that retention deleted.
    CachesDeleted,
    /// Those of them that went for a budget.
    CachesEvicted,
    /// Bytes that the deletions freed.
    BytesFreed,
    /// Runs of retention that may delete nothing, as not all could be read.
    RetentionRefused,
}

impl Metric {
    /// All of them.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// CloudWatch's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// What its number counts.
    #[must_use]
    pub fn unit(self) -> Unit {
        match self {
            Self::BytesReused
            | Self::BytesBuilt
            | Self::ImportHeadroom
            | Self::CacheBytes
            | Self::BytesFreed => Unit::Bytes,
            Self::PromotionAge => Unit::Milliseconds,
            Self::SecondsSaved => Unit::Seconds,
            _ => Unit::Count,
        }
    }

    /// The names of its dimensions, in the order in which [`record`] is given their values.
    #[must_use]
    pub fn dimensions(self) -> &'static [&'static str] {
        match self {
            Self::WebhooksAccepted | Self::SignedWebhooksRefused | Self::WebhooksFailed => &["Forge"],
            Self::WebhooksRefused => &["Forge", "Reason"],
            Self::BuildsDelayed | Self::PromotionsFailed => &[],
            Self::StepsReused
            | Self::StepsBuilt
            | Self::SecondsSaved
            | Self::BytesReused
            | Self::BytesBuilt => &["Project", "Line"],
            Self::BuildsStarted
            | Self::BuildsWithoutProject
            | Self::BuildsFailed
            | Self::WarmBuildsStarted
            | Self::LinesMoved
            | Self::PromotionAge
            | Self::ImportHeadroom
            | Self::SweepDrift => &["Project"],
            Self::CacheBytes
            | Self::CacheImages
            | Self::CachesDeleted
            | Self::CachesEvicted
            | Self::BytesFreed
            | Self::RetentionRefused => &["Repository"],
        }
    }
}

/// The dimension that a stack's name is in.
const STACK: &str = "Stack";
/// The dimensions that multiply metrics, and what they cost, by the number of projects.
const OF_EACH: [&str; 2] = ["Project", "Repository"];

/// Whose metrics they are, and how many.
#[derive(Debug, Default)]
struct Setting {
    /// The stack's name.
    stack: Option<String>,
    /// Whether there are metrics of each project and repository, or only of all together.
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

/// One record, a single line: metrics of one moment, all with the dimensions of the first, and the values of these.
///
/// The environment says of which stack they are (`STOKER_STACK`), and whether there are metrics of each project too
/// (`STOKER_METRICS` is `stack` where there are not).
#[must_use]
pub fn record(now: Timestamp, values: &[&str], metrics: &[(Metric, u64)]) -> String {
    static SETTING: OnceLock<Setting> = OnceLock::new();
    record_in(SETTING.get_or_init(Setting::from_environment), now, values, metrics)
}

fn record_in(setting: &Setting, now: Timestamp, values: &[&str], metrics: &[(Metric, u64)]) -> String {
    let names = metrics.first().map(|(metric, _)| metric.dimensions()).unwrap_or_default();
    let units: Vec<_> = metrics
        .iter()
        .map(|(metric, _)| json!({"Name": metric.name(), "Unit": metric.unit().name()}))
        .collect();
    let mut fields = Map::new();
    fields.insert(
        "_aws".to_owned(),
        json!({
            "Timestamp": now.as_millisecond(),
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": dimension_sets(setting, names),
                "Metrics": units,
            }],
        }),
    );
    fields.extend(setting.stack.iter().map(|stack| (STACK.to_owned(), json!(stack))));
    fields.extend(names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), json!(value))));
    fields.extend(metrics.iter().map(|(metric, value)| (metric.name().to_owned(), json!(value))));
    Value::Object(fields).to_string()
}

/// The sets of dimensions by which metrics are kept: of the stack, of all projects together, of each.
fn dimension_sets(setting: &Setting, dimensions: &[&'static str]) -> Vec<Vec<&'static str>> {
    let stack = setting.stack.iter().map(|_| STACK);
    let names = || dimensions.iter().copied();
    let mut sets: Vec<Vec<&str>> = vec![
        stack.clone().collect(),
        stack.clone().chain(names().filter(|name| !OF_EACH.contains(name))).collect(),
    ];
    if setting.by_project {
        sets.push(stack.chain(names()).collect());
    }
    sets.dedup();
    sets
}

/// Puts a [`record`] on standard output, which is how a metric leaves a function.
#[expect(clippy::print_stdout, reason = "CloudWatch reads metrics there")]
pub fn put(now: Timestamp, values: &[&str], metrics: &[(Metric, u64)]) {
    println!("{}", record(now, values, metrics));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_that_cloudwatch_understands() {
        let now = Timestamp::from_millisecond(1_795_000_000_123).unwrap();
        let setting = Setting { stack: Some("stoker".to_owned()), by_project: true };
        let metrics = [(Metric::StepsReused, 3), (Metric::BytesReused, u64::MAX)];
        let line = record_in(&setting, now, &["app\n", "main"], &metrics);
        assert!(!line.contains('\n'));
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({
                "_aws": {
                    "Timestamp": 1_795_000_000_123_i64,
                    "CloudWatchMetrics": [{
                        "Namespace": "Stoker",
                        "Dimensions": [["Stack"], ["Stack", "Line"], ["Stack", "Project", "Line"]],
                        "Metrics": [
                            {"Name": "StepsReused", "Unit": "Count"},
                            {"Name": "BytesReused", "Unit": "Bytes"},
                        ],
                    }],
                },
                "Stack": "stoker", "Project": "app\n", "Line": "main", "StepsReused": 3, "BytesReused": u64::MAX,
            })
        );
    }

    #[test]
    fn metrics_are_of_the_stack_and_where_wanted_of_each_project() {
        let sets = |stack: Option<&str>, by_project, dimensions: &[&'static str]| {
            dimension_sets(&Setting { stack: stack.map(str::to_owned), by_project }, dimensions)
        };
        let of_a_line = ["Project", "Line"];
        assert_eq!(
            sets(Some("stoker"), true, &of_a_line),
            [vec!["Stack"], vec!["Stack", "Line"], vec!["Stack", "Project", "Line"]]
        );
        assert_eq!(sets(Some("stoker"), false, &of_a_line), [vec!["Stack"], vec!["Stack", "Line"]]);
        assert_eq!(sets(Some("stoker"), false, &["Repository"]), [["Stack"]]);
        assert_eq!(sets(Some("stoker"), true, &[]), [["Stack"]]);
        // Where nobody has said which stack it is, the metrics are there all the same.
        assert_eq!(sets(None, true, &of_a_line), [vec![], vec!["Line"], vec!["Project", "Line"]]);
    }
}
