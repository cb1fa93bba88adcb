//! What the functions measure: a line of JSON on standard output for each record. All numbers are named here;
//! `docs/metrics.md` is the same as a table, and a test compares them.
//!
//! CloudWatch bills a metric by the set of its dimensions, and a line of the log by its bytes. So every
//! number is in the log, where Logs Insights adds it up by project, line or repository, and only what alarms
//! and trends need becomes a metric as well, by CloudWatch's embedded metric format: of the whole stack, and
//! two of each project.

use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use strum::{IntoStaticStr, VariantArray};

use stoker_core::policy::Policy;

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
    /// Parts of a hundred.
    Percent,
}

/// Where a number goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Into the log only.
    Log,
    /// It is a metric of the whole stack, too.
    Stack,
    /// It is a metric of the stack, and one of each project where those are wanted.
    Project,
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
    /// The part of a build's steps that came out of the cache.
    CacheHitRate,
    /// By how much a build was shorter than one that found nothing in the cache.
    SecondsSaved,
    /// Bytes of layers that a build took from the cache.
    BytesReused,
    /// Bytes of layers that a build made.
    BytesBuilt,
    /// Lines that moved.
    LinesUpdated,
    /// Time from a merge until main's line had what was merged.
    PromotionAge,
    /// Bytes that a line's cache may grow by before steps are dropped from it.
    ImportHeadroom,
    /// Triggers that can never be promoted.
    PromotionsFailed,
    /// Lines that the nightly reconciliation had to move or repair.
    DriftRepaired,
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
            Self::CacheHitRate => Unit::Percent,
            _ => Unit::Count,
        }
    }

    /// Where its number goes.
    #[must_use]
    pub fn reach(self) -> Reach {
        match self {
            Self::CacheHitRate | Self::SecondsSaved => Reach::Project,
            Self::WebhooksFailed
            | Self::SignedWebhooksRefused
            | Self::BuildsStarted
            | Self::BuildsWithoutProject
            | Self::BuildsDelayed
            | Self::BuildsFailed
            | Self::PromotionAge
            | Self::PromotionsFailed => Reach::Stack,
            _ => Reach::Log,
        }
    }

    /// What its records are told apart by, in the order in which [`record`] is given the values: fields of
    /// the log's line.
    #[must_use]
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Self::WebhooksAccepted | Self::SignedWebhooksRefused | Self::WebhooksFailed => &["Forge"],
            Self::WebhooksRefused => &["Forge", "Reason"],
            Self::BuildsDelayed | Self::PromotionsFailed => &[],
            Self::StepsReused
            | Self::StepsBuilt
            | Self::CacheHitRate
            | Self::SecondsSaved
            | Self::BytesReused
            | Self::BytesBuilt => &["Project", "Line"],
            Self::BuildsStarted
            | Self::BuildsWithoutProject
            | Self::BuildsFailed
            | Self::WarmBuildsStarted
            | Self::LinesUpdated
            | Self::PromotionAge
            | Self::ImportHeadroom
            | Self::DriftRepaired => &["Project"],
            Self::CacheBytes
            | Self::CacheImages
            | Self::CachesDeleted
            | Self::CachesEvicted
            | Self::BytesFreed
            | Self::RetentionRefused => &["Repository"],
        }
    }
}

/// The dimension that a stack's name is in: two stacks of one account never count into the same metric.
const STACK: &str = "Stack";
/// The dimension that multiplies metrics, and what they cost, by the number of projects.
const PROJECT: &str = "Project";
/// Of so many projects each has metrics of its own, unless the stack says otherwise: with more they would
/// cost more than all else together.
pub const MOST_PROJECTS: usize = 100;

/// Whether each project has metrics of its own.
static BY_PROJECT: OnceLock<bool> = OnceLock::new();

/// Says, once in the life of a process, which projects there are. `STOKER_METRICS` is `true` where each is to have
/// metrics whatever their number, `false` where none is, and else the policy decides.
pub fn set_projects(policy: &Policy) {
    let wanted = std::env::var("STOKER_METRICS").unwrap_or_default();
    let _ = BY_PROJECT.set(has_metrics_of_projects(&wanted, policy));
}

fn has_metrics_of_projects(wanted: &str, policy: &Policy) -> bool {
    match wanted {
        "true" => true,
        "false" => false,
        // How many projects a glob matches is not known here.
        _ => !policy.has_globs() && policy.named_projects().len() <= MOST_PROJECTS,
    }
}

/// One record, a single line: numbers of one moment, all with the fields of the first, and the values of these.
///
/// The environment says of which stack they are (`STOKER_STACK`).
#[must_use]
pub fn record(now: Timestamp, values: &[&str], metrics: &[(Metric, u64)]) -> String {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    let name = NAME.get_or_init(|| std::env::var("STOKER_STACK").ok().filter(|stack| !stack.is_empty()));
    record_in(name.as_deref(), BY_PROJECT.get() == Some(&true), now, values, metrics)
}

fn record_in(
    stack: Option<&str>,
    by_project: bool,
    now: Timestamp,
    values: &[&str],
    metrics: &[(Metric, u64)],
) -> String {
    let names = metrics.first().map(|(metric, _)| metric.fields()).unwrap_or_default();
    let of_stack =
        |more: Option<&'static str>| -> Vec<&str> { stack.map(|_| STACK).into_iter().chain(more).collect() };
    let directive = |least: Reach, dimensions: Vec<&str>| {
        let published = metrics.iter().filter(|(metric, _)| metric.reach() >= least);
        let published: Vec<_> = published
            .map(|(metric, _)| json!({"Name": metric.name(), "Unit": metric.unit().name()}))
            .collect();
        let reported = json!({"Namespace": NAMESPACE, "Dimensions": [dimensions], "Metrics": published});
        (!published.is_empty()).then_some(reported)
    };
    let mut directives: Vec<Value> = directive(Reach::Stack, of_stack(None)).into_iter().collect();
    if by_project {
        directives.extend(directive(Reach::Project, of_stack(Some(PROJECT))));
    }
    let mut fields = Map::new();
    if !directives.is_empty() {
        let reported = json!({"Timestamp": now.as_millisecond(), "CloudWatchMetrics": directives});
        fields.insert("_aws".to_owned(), reported);
    }
    fields.extend(stack.map(|stack| (STACK.to_owned(), json!(stack))));
    fields.extend(names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), json!(value))));
    fields.extend(metrics.iter().map(|(metric, value)| (metric.name().to_owned(), json!(value))));
    Value::Object(fields).to_string()
}

/// Puts a [`record`] on standard output, which is how a number leaves a function.
#[expect(clippy::print_stdout, reason = "CloudWatch reads metrics there")]
pub fn put(now: Timestamp, values: &[&str], metrics: &[(Metric, u64)]) {
    println!("{}", record(now, values, metrics));
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: i64 = 1_795_000_000_123;

    fn read(stack: Option<&str>, by_project: bool, values: &[&str], metrics: &[(Metric, u64)]) -> Value {
        let now = Timestamp::from_millisecond(AT).unwrap();
        let line = record_in(stack, by_project, now, values, metrics);
        assert!(!line.contains('\n'));
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn a_record_is_one_line_that_cloudwatch_understands() {
        let metrics = [(Metric::StepsReused, 3), (Metric::CacheHitRate, 75), (Metric::BytesReused, u64::MAX)];
        let metric = json!([{"Name": "CacheHitRate", "Unit": "Percent"}]);
        assert_eq!(
            read(Some("stoker"), true, &["app\n", "main"], &metrics),
            json!({
                "_aws": {
                    "Timestamp": AT,
                    "CloudWatchMetrics": [
                        {"Namespace": "Stoker", "Dimensions": [["Stack"]], "Metrics": metric},
                        {"Namespace": "Stoker", "Dimensions": [["Stack", "Project"]], "Metrics": metric},
                    ],
                },
                "Stack": "stoker", "Project": "app\n", "Line": "main", "StepsReused": 3, "CacheHitRate": 75,
                "BytesReused": u64::MAX,
            })
        );
    }

    #[test]
    fn what_no_alarm_and_no_trend_needs_is_only_in_the_log() {
        let reported =
            read(Some("stoker"), true, &["stoker/app"], &[(Metric::CacheBytes, 5), (Metric::CacheImages, 1)]);
        assert_eq!(
            reported,
            json!({"Stack": "stoker", "Repository": "stoker/app", "CacheBytes": 5, "CacheImages": 1})
        );
    }

    #[test]
    fn a_project_has_two_metrics_where_they_are_wanted() {
        let all: Vec<(Metric, u64)> = Metric::ALL.iter().map(|metric| (*metric, 1)).collect();
        let names = |stack: Option<&str>, by_project| {
            let reported = read(stack, by_project, &[], &all);
            let directives = reported["_aws"]["CloudWatchMetrics"].as_array().unwrap().iter();
            directives
                .map(|of| (of["Dimensions"].to_string(), of["Metrics"].as_array().unwrap().len()))
                .collect::<Vec<_>>()
        };
        let of_stack = ("[[\"Stack\"]]".to_owned(), 10);
        assert_eq!(names(Some("stoker"), false), std::slice::from_ref(&of_stack));
        assert_eq!(names(Some("stoker"), true), [of_stack, ("[[\"Stack\",\"Project\"]]".to_owned(), 2)]);
        // Where nobody has said which stack it is, the metrics are there all the same.
        assert_eq!(names(None, true), [("[[]]".to_owned(), 10), ("[[\"Project\"]]".to_owned(), 2)]);
    }

    #[test]
    fn a_large_fleet_has_no_metrics_of_projects_unless_it_asks_for_them() {
        let policy = |count: usize, more: &str| {
            let rule = |n| format!("  - {{ name: app-{n}, repository: github.com/example/app-{n} }}\n");
            let rules: String = (0..count).map(rule).collect();
            Policy::parse("p", &format!("version: 1\nprojects:\n{rules}{more}")).unwrap()
        };
        let glob = "  - { name: \"team-*\", repository: \"github.com/example/{project}\" }\n";
        let (small, large, open) = (policy(100, ""), policy(101, ""), policy(1, glob));
        for (wanted, has) in [("auto", [true, false, false]), ("true", [true; 3]), ("false", [false; 3])] {
            assert_eq!(
                [&small, &large, &open].map(|policy| has_metrics_of_projects(wanted, policy)),
                has,
                "{wanted}"
            );
        }
    }
}
