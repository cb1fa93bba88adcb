//! The alarms of `template.yaml`, and CloudWatch's evaluation of them over the metrics of a stretch of time.
//!
//! What CloudWatch does is taken from "Configuring how CloudWatch alarms treat missing data" and "Alarm
//! evaluation window" of its user guide. An alarm is evaluated every minute, over windows that end there and
//! move with the clock.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::iam::Deployed;
use crate::template::{ALARM, of_type};

/// Whose points are one series: namespace, metric, dimensions. CloudWatch adds up no two sets of dimensions.
type Series = (String, String, BTreeMap<String, String>);

/// CloudWatch retrieves more data points than it evaluates. Its tables do so with five where it evaluates
/// three; for other numbers it says nothing.
const RETRIEVED_BESIDE: usize = 2;

/// Units that CloudWatch takes and that Stoker has reason to use.
const UNITS: [&str; 4] = ["Count", "Bytes", "Milliseconds", "Seconds"];

/// How the points of a period become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// All of them together.
    Sum,
    /// The largest.
    Maximum,
}

/// What stands for a data point that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// One that breaches.
    Breaching,
    /// One that does not.
    NotBreaching,
    /// The state stays as it is.
    Ignore,
    /// Nothing: without any there is not enough to say.
    Missing,
}

/// What an alarm says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All is well.
    Ok,
    /// Somebody is told.
    Alarm,
    /// There is not enough to say.
    Insufficient,
}

/// How many data points are looked at, and how many of them have to breach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// N: `EvaluationPeriods`.
    pub periods: usize,
    /// M: `DatapointsToAlarm`.
    pub to_alarm: usize,
    /// `TreatMissingData`.
    pub missing: Missing,
}

impl Rule {
    /// How many data points are retrieved.
    fn range(&self) -> usize {
        self.periods + RETRIEVED_BESIDE
    }

    /// The state after these data points, the oldest first: whether each breaches, and nothing for one that
    /// is missing.
    #[must_use]
    pub fn state(&self, points: &[Option<bool>], before: State) -> State {
        let there: Vec<bool> = points.iter().rev().copied().flatten().take(self.periods).collect();
        let breaching = there.iter().filter(|breaches| **breaches).count();
        let lacking = self.periods - there.len();
        let alarm_if = |breaching: usize| if breaching >= self.to_alarm { State::Alarm } else { State::Ok };
        if lacking == 0 {
            return alarm_if(breaching);
        }
        match self.missing {
            Missing::Breaching => alarm_if(breaching + lacking),
            Missing::NotBreaching => alarm_if(breaching),
            _ if breaching >= self.to_alarm => State::Alarm,
            _ if there.contains(&false) => State::Ok,
            Missing::Ignore => before,
            // What breached so long ago that it would have been followed by enough others.
            Missing::Missing => {
                let oldest = points.iter().position(Option::is_some).map(|oldest| points.len() - oldest);
                if oldest >= Some(self.to_alarm) { State::Alarm } else { State::Insufficient }
            }
        }
    }
}

/// An alarm, as it is deployed.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// Its name in the template.
    pub name: String,
    series: Series,
    statistic: Statistic,
    /// In minutes.
    period: usize,
    rule: Rule,
    comparison: String,
    threshold: f64,
}

/// The alarms of what is deployed.
#[must_use]
pub fn alarms(deployed: &Deployed) -> Vec<Alarm> {
    let alarms = of_type(deployed.template(), ALARM).into_iter();
    alarms.map(|(name, properties)| Alarm::new(name, &deployed.resolved(properties))).collect()
}

impl Alarm {
    /// An alarm of these properties.
    #[must_use]
    pub fn new(name: &str, properties: &Value) -> Self {
        for property in ["ExtendedStatistic", "Metrics", "Unit", "EvaluationWindow", "ThresholdMetricId"] {
            assert!(properties.get(property).is_none(), "{name}: what does {property} do?");
        }
        let text = |property: &str| {
            let text = properties[property].as_str();
            text.unwrap_or_else(|| panic!("{name}: {property} is {}", properties[property])).to_owned()
        };
        let number =
            |property: &str| properties[property].as_u64().and_then(|number| usize::try_from(number).ok());
        let dimensions = properties["Dimensions"].as_array().expect("dimensions").iter().map(|dimension| {
            let part = |part: &str| dimension[part].as_str().expect("a dimension").to_owned();
            (part("Name"), part("Value"))
        });
        let seconds = number("Period").expect("a period");
        assert_eq!(seconds % 60, 0, "{name}: metrics come by the minute");
        let periods = number("EvaluationPeriods").expect("a number of periods");
        Self {
            name: name.to_owned(),
            series: (text("Namespace"), text("MetricName"), dimensions.collect()),
            statistic: match text("Statistic").as_str() {
                "Sum" => Statistic::Sum,
                "Maximum" => Statistic::Maximum,
                other => panic!("{name}: what is {other}?"),
            },
            period: seconds / 60,
            rule: Rule {
                periods,
                to_alarm: number("DatapointsToAlarm").unwrap_or(periods),
                missing: match properties["TreatMissingData"].as_str() {
                    Some("breaching") => Missing::Breaching,
                    Some("notBreaching") => Missing::NotBreaching,
                    Some("ignore") => Missing::Ignore,
                    None | Some("missing") => Missing::Missing,
                    Some(other) => panic!("{name}: what is {other}?"),
                },
            },
            comparison: text("ComparisonOperator"),
            threshold: properties["Threshold"].as_f64().expect("a threshold"),
        }
    }

    /// For how many minutes a data point may be looked at.
    #[must_use]
    pub fn looks_back(&self) -> usize {
        self.period * self.rule.range()
    }

    fn breaches(&self, value: f64) -> bool {
        match self.comparison.as_str() {
            "GreaterThanOrEqualToThreshold" => value >= self.threshold,
            "GreaterThanThreshold" => value > self.threshold,
            "LessThanThreshold" => value < self.threshold,
            "LessThanOrEqualToThreshold" => value <= self.threshold,
            other => panic!("{}: what is {other}?", self.name),
        }
    }

    /// The alarm's state at the end of each minute, from the first on.
    #[must_use]
    pub fn states(&self, metrics: &Metrics) -> Vec<State> {
        let nothing = Vec::new();
        let points = metrics.series.get(&self.series).unwrap_or(&nothing);
        let breaches: Vec<Option<bool>> = (0..metrics.minutes)
            .map(|end| {
                let window = (end + 1).saturating_sub(self.period)..=end;
                let values = window.filter_map(|minute| points.get(minute).copied().flatten());
                let values = values.map(|point| match self.statistic {
                    Statistic::Sum => point.sum,
                    Statistic::Maximum => point.maximum,
                });
                let whole = values.reduce(|a, b| match self.statistic {
                    Statistic::Sum => a + b,
                    Statistic::Maximum => a.max(b),
                });
                whole.map(|value| self.breaches(value))
            })
            .collect();
        let mut state = State::Ok;
        let at = |end: usize| {
            let back = (0..self.rule.range()).rev().map(|periods| end.checked_sub(periods * self.period));
            let retrieved: Vec<_> = back.map(|end| end.and_then(|end| breaches[end])).collect();
            state = self.rule.state(&retrieved, state);
            state
        };
        (0..metrics.minutes).map(at).collect()
    }
}

/// What a minute's values come to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    sum: f64,
    maximum: f64,
}

/// The metrics of a stretch of time.
#[derive(Debug, Default)]
pub struct Metrics {
    series: BTreeMap<Series, Vec<Option<Point>>>,
    /// When it begins, in minutes since 1970.
    began: usize,
    /// How long it is.
    minutes: usize,
}

impl Metrics {
    /// Those of so many minutes from a second on.
    #[must_use]
    pub fn new(began: i64, minutes: usize) -> Self {
        Self { series: BTreeMap::new(), began: minute_of(began * 1000), minutes }
    }

    /// Takes in a line of the embedded metric format, as CloudWatch does.
    pub fn read(&mut self, line: &Value) {
        let at = line["_aws"]["Timestamp"].as_i64().expect("a time");
        let minute = minute_of(at).checked_sub(self.began).expect("a time after the beginning");
        for directive in line["_aws"]["CloudWatchMetrics"].as_array().expect("metrics") {
            for metric in directive["Metrics"].as_array().expect("metrics") {
                let (name, unit) = (metric["Name"].as_str().expect("a name"), &metric["Unit"]);
                assert!(unit.as_str().is_some_and(|unit| UNITS.contains(&unit)), "{name} is in {unit}");
                let value = line[name].as_f64().unwrap_or_else(|| panic!("{name} has no value in {line}"));
                for set in directive["Dimensions"].as_array().expect("dimensions") {
                    let dimensions = set.as_array().expect("a set").iter().map(|dimension| {
                        let dimension = dimension.as_str().expect("a dimension's name");
                        let value =
                            line[dimension].as_str().unwrap_or_else(|| panic!("{dimension} of {line}"));
                        (dimension.to_owned(), value.to_owned())
                    });
                    let namespace = directive["Namespace"].as_str().expect("a namespace").to_owned();
                    self.put((namespace, name.to_owned(), dimensions.collect()), minute, value);
                }
            }
        }
    }

    /// Whether there are so many minutes with values of a metric, whatever its dimensions.
    #[must_use]
    pub fn has(&self, namespace: &str, metric: &str, minutes: usize) -> bool {
        let is_it = |series: &Series| series.0 == namespace && series.1 == metric;
        let of_it = self.series.iter().filter(|(series, _)| is_it(series));
        of_it.into_iter().any(|(_, points)| points.iter().flatten().count() >= minutes)
    }

    fn put(&mut self, series: Series, minute: usize, value: f64) {
        let points = self.series.entry(series).or_default();
        points.resize(points.len().max(minute + 1), None);
        let before = points[minute].unwrap_or(Point { sum: 0.0, maximum: value });
        points[minute] = Some(Point { sum: before.sum + value, maximum: before.maximum.max(value) });
    }
}

fn minute_of(millis: i64) -> usize {
    usize::try_from(millis / 60_000).expect("a time after 1970")
}

/// A line of the embedded metric format with values of AWS's own metrics, whose names need no escaping.
#[must_use]
pub fn line(at: i64, namespace: &str, dimensions: &[(&str, &str)], values: &[(&str, u64)]) -> String {
    let unit = |metric: &str| match metric {
        "ApproximateAgeOfOldestMessage" => "Seconds",
        "Duration" => "Milliseconds",
        _ => "Count",
    };
    let joined = |parts: Vec<String>| parts.join(",");
    let names = joined(dimensions.iter().map(|(name, _)| format!(r#""{name}""#)).collect());
    let metric = |(metric, _): &(&str, u64)| format!(r#"{{"Name":"{metric}","Unit":"{}"}}"#, unit(metric));
    let metrics = joined(values.iter().map(metric).collect());
    let dimensions = dimensions.iter().map(|(name, value)| format!(r#""{name}":"{value}""#));
    let values = values.iter().map(|(metric, value)| format!(r#""{metric}":{value}"#));
    let fields = joined(dimensions.chain(values).collect());
    let of_all = format!(r#"{{"Namespace":"{namespace}","Dimensions":[[{names}]],"Metrics":[{metrics}]}}"#);
    format!(r#"{{"_aws":{{"Timestamp":{at},"CloudWatchMetrics":[{of_all}]}},{fields}}}"#)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The published tables: data points with the oldest first (0 does not breach, X does, - is missing),
    /// then the state where missing data is `missing`, `ignore`, `breaching` and `notBreaching`. Of three
    /// data points all have to breach in the first, two in the second.
    ///
    /// <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html>, as kept in
    /// <https://github.com/awsdocs/amazon-cloudwatch-user-guide/blob/05fd32f63861ca6646c8aa5c94334fd6e0dfdbf5/doc_source/AlarmThatSendsEmail.md>
    const ALL_OF_THREE: [(&str, [&str; 4]); 6] = [
        ("0-X-X", ["OK", "OK", "OK", "OK"]),
        ("0----", ["OK", "OK", "OK", "OK"]),
        ("-----", ["insufficient", "as before", "ALARM", "OK"]),
        ("0XX-X", ["ALARM", "ALARM", "ALARM", "ALARM"]),
        ("----X", ["insufficient", "as before", "ALARM", "OK"]),
        ("X----", ["ALARM", "as before", "ALARM", "OK"]),
    ];
    const TWO_OF_THREE: [(&str, [&str; 4]); 5] = [
        ("0-X-X", ["ALARM", "ALARM", "ALARM", "ALARM"]),
        ("00X0X", ["ALARM", "ALARM", "ALARM", "ALARM"]),
        ("0-X--", ["OK", "OK", "ALARM", "OK"]),
        ("----0", ["OK", "OK", "ALARM", "OK"]),
        ("----X", ["insufficient", "as before", "ALARM", "OK"]),
    ];

    fn points(row: &str) -> Vec<Option<bool>> {
        let point = |sign| match sign {
            '-' => None,
            sign => Some(sign == 'X'),
        };
        row.chars().map(point).collect()
    }

    #[test]
    fn alarms_are_evaluated_as_cloudwatchs_tables_have_it() {
        let treatments = [Missing::Missing, Missing::Ignore, Missing::Breaching, Missing::NotBreaching];
        let all = ALL_OF_THREE.iter().map(|row| (3, row));
        for (to_alarm, (row, states)) in all.chain(TWO_OF_THREE.iter().map(|row| (2, row))) {
            for (missing, state) in treatments.into_iter().zip(states) {
                for before in [State::Ok, State::Alarm] {
                    let expected = match *state {
                        "OK" => State::Ok,
                        "ALARM" => State::Alarm,
                        "insufficient" => State::Insufficient,
                        _ => before,
                    };
                    let rule = Rule { periods: 3, to_alarm, missing };
                    assert_eq!(
                        rule.state(&points(row), before),
                        expected,
                        "{to_alarm} of 3, {row}, {missing:?}"
                    );
                }
            }
        }
    }

    fn an_alarm(change: &Value) -> Alarm {
        let mut properties = json!({
            "Namespace": "AWS/SQS", "MetricName": "Age", "Statistic": "Maximum", "Period": 300,
            "Dimensions": [{"Name": "QueueName", "Value": "q"}], "EvaluationPeriods": 1,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold", "Threshold": 3, "TreatMissingData": "notBreaching",
        });
        for (property, value) in change.as_object().unwrap() {
            properties[property] = value.clone();
        }
        Alarm::new("AnAlarm", &properties)
    }

    /// The minutes at whose end the alarm is on, when the metric had these values in these minutes of an
    /// hour.
    fn on(alarm: &Alarm, values: &[(i64, u64)]) -> Vec<usize> {
        let mut metrics = Metrics::new(0, 60);
        for (minute, value) in values {
            let of_queue = [("QueueName", "q")];
            let line = line(minute * 60_000 + 30_000, "AWS/SQS", &of_queue, &[("Age", *value)]);
            metrics.read(&serde_json::from_str(&line).unwrap());
        }
        let states = alarm.states(&metrics).into_iter().enumerate();
        states.filter(|(_, state)| *state == State::Alarm).map(|(minute, _)| minute).collect()
    }

    #[test]
    fn the_windows_move_with_the_clock() {
        let alarm = an_alarm(&json!({}));
        // What nothing follows is looked at for as long as CloudWatch looks back.
        assert_eq!(on(&alarm, &[(10, 3)]), (10..25).collect::<Vec<_>>());
        assert_eq!(on(&alarm, &[(10, 3), (17, 0)]), (10..17).collect::<Vec<_>>());
        assert!(on(&alarm, &[(10, 2), (11, 2)]).is_empty());
        let sum = an_alarm(&json!({"Statistic": "Sum"}));
        assert_eq!(on(&sum, &[(10, 2), (12, 2), (13, 0), (18, 0)]), (12..=14).collect::<Vec<_>>());
    }

    #[test]
    fn two_of_three_periods_have_to_breach() {
        let alarm = an_alarm(&json!({"EvaluationPeriods": 3, "DatapointsToAlarm": 2}));
        let calm = |at: i64| (at, 0);
        let every = || (0..60).map(calm);
        let once: Vec<_> = every().chain([(20, 3)]).collect();
        assert!(on(&alarm, &once).is_empty());
        let twice: Vec<_> = every().chain([(20, 3), (26, 3)]).collect();
        assert_eq!(on(&alarm, &twice), (26..35).collect::<Vec<_>>());
    }

    #[test]
    fn metrics_with_other_dimensions_are_other_metrics() {
        let other = an_alarm(&json!({"Dimensions": [{"Name": "QueueName", "Value": "r"}]}));
        assert!(on(&other, &[(10, 3)]).is_empty());
        let more =
            json!({"Dimensions": [{"Name": "QueueName", "Value": "q"}, {"Name": "Stack", "Value": "s"}]});
        assert!(on(&an_alarm(&more), &[(10, 3)]).is_empty());
    }
}
