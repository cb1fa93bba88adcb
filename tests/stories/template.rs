//! `template.yaml` and `docs/operate.md` say the same, and nothing in the stack can be lost or stand still unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use stoker::emf::Metric;
use stories::template::{
    ALARM, FUNCTION, QUEUE, RULE, RULE_OF_FUNCTION, SCHEDULE, events, of_type, read as template, resource_of,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const REPOSITORY: &str = "AWS::ECR::Repository";
/// The longest that a queue keeps a message, in seconds.
const TWO_WEEKS: i64 = 14 * 24 * 3600;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// What the queues send their hopeless messages to.
fn dead_letter_queues(template: &Value) -> BTreeSet<String> {
    let queues = of_type(template, QUEUE);
    queues.values().filter_map(|queue| resource_of(&queue["RedrivePolicy"]["deadLetterTargetArn"])).collect()
}

fn is_dead_letter_queue(template: &Value, config: &Value) -> bool {
    resource_of(config).is_some_and(|name| dead_letter_queues(template).contains(&name))
}

#[test]
fn every_queue_rule_and_schedule_tries_again_and_then_makes_a_dead_letter() {
    let template = template();
    let dead = dead_letter_queues(&template);
    for (name, queue) in of_type(&template, QUEUE) {
        if dead.contains(name) {
            assert_eq!(queue["MessageRetentionPeriod"], TWO_WEEKS, "{name} is where nothing goes on from");
        } else {
            assert!(queue["RedrivePolicy"]["maxReceiveCount"].as_i64() > Some(1), "{name} tries only once");
            assert!(is_dead_letter_queue(&template, &queue["RedrivePolicy"]), "{name} has no dead letters");
        }
    }
    let delivers = |name: &str, target: &Value| {
        assert!(target["RetryPolicy"]["MaximumRetryAttempts"].as_i64() > Some(1), "{name} tries only once");
        assert!(target["RetryPolicy"]["MaximumEventAgeInSeconds"].is_i64(), "{name} does not say how long");
        assert!(is_dead_letter_queue(&template, &target["DeadLetterConfig"]), "{name} has no dead letters");
    };
    for (name, rule) in of_type(&template, RULE) {
        for target in rule["Targets"].as_array().unwrap() {
            delivers(name, target);
        }
    }
    for (name, schedule) in of_type(&template, SCHEDULE) {
        delivers(name, &schedule["Target"]);
    }
    for kind in [RULE_OF_FUNCTION, "ScheduleV2"] {
        for (name, (function, event)) in events(&template, kind) {
            delivers(&name, event);
            let invoked = &template["Resources"][function]["Properties"]["EventInvokeConfig"];
            assert!(invoked["MaximumRetryAttempts"].as_i64() > Some(0), "{function} is tried only once");
            let failed = &invoked["DestinationConfig"]["OnFailure"]["Destination"];
            assert!(is_dead_letter_queue(&template, failed), "{function} has no dead letters");
        }
    }
}

/// Who reads builds takes for Stoker's what these roles started.
#[test]
fn the_functions_know_every_role_that_starts_builds() {
    let template = template();
    let roles = of_type(&template, "AWS::IAM::Role").into_iter();
    let starters =
        roles.filter(|(_, role)| role["Policies"].to_string().contains("\"codebuild:StartBuild\""));
    let starters: Vec<String> = starters.map(|(name, _)| format!("${{{name}}}")).collect();
    assert_eq!(starters.len(), 2);
    let told = &template["Globals"]["Function"]["Environment"]["Variables"]["STOKER_STARTERS"];
    assert_eq!(*told, json!({"Fn::Sub": starters.join(" ")}));
}

#[test]
fn the_guide_says_how_long_a_stacks_name_may_be() {
    const LONGEST_FUNCTION: usize = 64;
    let template = template();
    let functions = of_type(&template, FUNCTION);
    let names = functions.values().filter_map(|function| function["FunctionName"]["Fn::Sub"].as_str());
    let longest =
        names.filter_map(|name| name.strip_prefix("${AWS::StackName}")).map(str::len).max().unwrap();
    let rule = format!("at most {} characters", LONGEST_FUNCTION - longest);
    assert!(read("README.md").contains(&rule), "{rule}");
}

/// What has to be watched: a metric, and the resource whose it is.
fn wanted(template: &Value) -> BTreeSet<(String, String)> {
    let mut wanted = BTreeSet::new();
    let mut want = |metric: &str, resource: &str| wanted.insert((metric.to_owned(), resource.to_owned()));
    let dead = dead_letter_queues(template);
    for name in of_type(template, QUEUE).into_keys() {
        let of_dead_letters = "ApproximateNumberOfMessagesVisible";
        let metric = if dead.contains(name) { of_dead_letters } else { "ApproximateAgeOfOldestMessage" };
        want(metric, name);
    }
    for name in of_type(template, RULE).into_keys() {
        want("InvocationsFailedToBeSentToDlq", name);
    }
    for name in events(template, RULE_OF_FUNCTION).into_keys() {
        want("InvocationsFailedToBeSentToDlq", &name);
    }
    for name in of_type(template, FUNCTION).into_keys() {
        want("Errors", name);
        want("Throttles", name);
    }
    for kind in [RULE_OF_FUNCTION, "ScheduleV2"] {
        for (function, _) in events(template, kind).into_values() {
            want("DestinationDeliveryFailures", function);
        }
    }
    for metric in ["TargetErrorCount", "InvocationDroppedCount", "InvocationsFailedToBeSentToDeadLetterCount"]
    {
        want(metric, "Schedules");
    }
    wanted
}

#[test]
fn everything_that_can_fail_has_an_alarm() {
    let template = template();
    let mut watched = BTreeSet::new();
    for (name, alarm) in of_type(&template, ALARM) {
        assert_eq!(alarm["AlarmName"], json!({"Fn::Sub": format!("${{AWS::StackName}}-{name}")}));
        let section = format!(" See docs/operate.md, {name}.");
        assert!(alarm["AlarmDescription"].as_str().unwrap().ends_with(&section), "{name}: {section}");
        assert_eq!(alarm["TreatMissingData"], "notBreaching", "{name}");
        for actions in ["AlarmActions", "OKActions"] {
            assert_eq!(alarm[actions]["Fn::If"][0], "NotifiesTopic", "{name}");
            assert_eq!(alarm[actions]["Fn::If"][1][0]["Ref"], "AlarmTopic", "{name}");
        }
        let (namespace, metric) =
            (alarm["Namespace"].as_str().unwrap(), alarm["MetricName"].as_str().unwrap());
        let dimensions = alarm["Dimensions"].as_array().unwrap();
        let names: Vec<_> = dimensions.iter().map(|dimension| dimension["Name"].as_str().unwrap()).collect();
        let resource = resource_of(&dimensions.last().unwrap()["Value"]).unwrap();
        let of_own_bus = template["Resources"][&resource]["Properties"].get("EventBusName").is_some();
        let expected = match namespace {
            "Stoker" => vec!["Stack"],
            "AWS/SQS" => vec!["QueueName"],
            "AWS/Lambda" => vec!["FunctionName"],
            "AWS/Scheduler" => vec!["ScheduleGroup"],
            "AWS/Events" if of_own_bus => vec!["EventBusName", "RuleName"],
            "AWS/Events" => vec!["RuleName"],
            other => panic!("{name} watches {other}"),
        };
        assert_eq!(names, expected, "{name}");
        if metric == "Duration" {
            let seconds = template["Resources"][&resource]["Properties"]["Timeout"].as_i64().unwrap();
            assert_eq!(alarm["Threshold"], seconds * 800, "{name} is not at 80 % of the timeout");
        } else if namespace != "Stoker" {
            watched.insert((metric.to_owned(), resource));
        }
    }
    assert_eq!(watched, wanted(&template));
}

#[test]
fn a_queue_counts_as_old_only_after_its_delay_and_three_tries() {
    let template = template();
    let seconds = |value: &Value, largest: &str| {
        let parameter = |name: &str| template["Parameters"][name][largest].as_i64();
        value.as_i64().or_else(|| parameter(&resource_of(value)?)).unwrap_or_default()
    };
    for alarm in of_type(&template, ALARM).into_values() {
        if alarm["MetricName"] != "ApproximateAgeOfOldestMessage" {
            continue;
        }
        let name = resource_of(&alarm["Dimensions"]).unwrap();
        let queue = &template["Resources"][&name]["Properties"];
        // In a FIFO queue a message stays the oldest until its tries are used up.
        let tries = if queue["FifoQueue"] == true {
            queue["RedrivePolicy"]["maxReceiveCount"].as_i64()
        } else {
            None
        };
        let between = seconds(&queue["VisibilityTimeout"], "MaxValue");
        let least = seconds(&queue["DelaySeconds"], "MaxValue") + tries.unwrap_or(3) * between;
        assert!(alarm["Threshold"].as_i64() > Some(least), "{name}: a message may be {least} s old");
    }
}

#[test]
fn every_alarm_has_a_section_in_the_runbook_and_every_section_an_alarm() {
    let template = template();
    let text = read("docs/operate.md");
    let runbook = text.split_once("\n## Runbook\n").unwrap().1;
    assert!(!runbook.contains("\n## "), "the runbook is the last chapter");
    let mut told = Vec::new();
    for section in runbook.split("\n### ").skip(1) {
        let heading = section.lines().next().unwrap();
        told.extend(heading.split(", "));
        for part in ["\n**Means:** ", "\n**Look:** ", "\n**End:** "] {
            assert!(section.replace(":**\n", ":** ").contains(part), "{heading} lacks {part:?}");
        }
    }
    let alarms: Vec<_> = of_type(&template, ALARM).into_keys().collect();
    told.sort_unstable();
    assert_eq!(told, alarms);
}

/// The metrics that the functions put out, with their dimensions.
fn emitted() -> BTreeMap<&'static str, &'static [&'static str]> {
    Metric::ALL.iter().map(|metric| (metric.name(), metric.dimensions())).collect()
}

#[test]
fn the_metrics_of_the_code_and_the_template_are_the_same() {
    let template = template();
    let emitted = emitted();
    for (name, alarm) in of_type(&template, ALARM) {
        let metric = alarm["MetricName"].as_str().unwrap();
        assert!(
            alarm["Namespace"] != "Stoker" || emitted.contains_key(metric),
            "{name}: nobody counts {metric}"
        );
    }
    let mut shown = BTreeSet::new();
    let widgets = dashboard(&template);
    for widget in &widgets {
        for metric in widget["properties"]["metrics"].as_array().into_iter().flatten() {
            let words: Vec<_> = metric.as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let ["Stoker", name, dimensions @ ..] = words.as_slice() else { continue };
            assert_eq!(dimensions[..2], ["Stack", "${AWS::StackName}"], "{name}");
            let (own_name, own) =
                emitted.get_key_value(name).unwrap_or_else(|| panic!("nobody counts {name}"));
            for dimension in dimensions.iter().skip(2).step_by(2) {
                assert!(own.contains(dimension), "{name} has no dimension {dimension}");
            }
            shown.insert(*own_name);
        }
    }
    assert_eq!(shown, emitted.into_keys().collect(), "on the dashboard, and put out");
}

/// The widgets of the dashboard.
fn dashboard(template: &Value) -> Vec<Value> {
    let body = template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"].as_str().unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    body["widgets"].as_array().unwrap().clone()
}

#[test]
fn the_dashboard_names_what_is_there_and_shows_every_alarm() {
    let template = template();
    let widgets = dashboard(&template);
    let text = Value::from(widgets.clone()).to_string();
    for part in text.split("${").skip(1) {
        let name = part.split(['}', '.']).next().unwrap();
        let is_there =
            ["AWS::StackName", "AWS::Region"].contains(&name) || template["Resources"].get(name).is_some();
        assert!(is_there, "the dashboard names {name}");
    }
    let shown =
        widgets.iter().flat_map(|widget| widget["properties"]["alarms"].as_array().into_iter().flatten());
    let shown: BTreeSet<_> = shown.map(|alarm| alarm.as_str().unwrap().to_owned()).collect();
    let alarms = of_type(&template, ALARM);
    assert_eq!(shown, alarms.keys().map(|name| format!("${{{name}.Arn}}")).collect());
    assert!(shown.len() <= 100, "a widget shows no more alarms");
    for widget in &widgets {
        assert!(widget["width"].as_i64() <= Some(24), "{widget} is too wide");
    }
}

#[test]
fn every_parameter_is_explained_and_has_its_place_in_the_console() {
    let template = template();
    let interface = &template["Metadata"]["AWS::CloudFormation::Interface"];
    let groups = interface["ParameterGroups"].as_array().unwrap();
    let mut grouped: Vec<_> = groups
        .iter()
        .flat_map(|group| group["Parameters"].as_array().unwrap())
        .map(|name| name.as_str().unwrap())
        .collect();
    grouped.sort_unstable();
    let parameters = template["Parameters"].as_object().unwrap();
    let mut names: Vec<_> = parameters.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(grouped, names);
    let labels = interface["ParameterLabels"].as_object().unwrap();
    assert_eq!(labels.len(), names.len());
    for (name, parameter) in parameters {
        assert!(labels[name]["default"].is_string(), "{name} has no label");
        assert!(
            parameter["Description"].as_str().is_some_and(|text| text.len() > 40),
            "{name} is not explained"
        );
        assert!(parameter.get("Default").is_some(), "{name} has no default");
        let restricted = parameter.get("AllowedPattern").is_some();
        assert_eq!(restricted, parameter.get("ConstraintDescription").is_some(), "{name}: what may it be?");
    }
    let text = read("docs/operate.md");
    let table = text.split_once("\n| parameter |").unwrap().1.split_once("\n\n").unwrap().0;
    let told =
        table.lines().skip(2).flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    let asked = read("template.yaml");
    let asked = asked.split_once("\nParameters:\n").unwrap().1.split_once("\nConditions:").unwrap().0;
    let asked = asked.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let asked = asked.map(|line| line.trim().trim_end_matches(':'));
    assert!(told.eq(asked), "the documentation's table is not in the template's order");
    for line in read("samconfig.toml").lines().filter(|line| line.starts_with("    \"")) {
        let name = line.trim().trim_matches(['"', ',']).split('=').next().unwrap();
        assert!(parameters.contains_key(name), "samconfig.toml sets {name}");
    }
}

#[test]
fn two_stacks_of_an_account_share_no_name() {
    let template = template();
    for (logical_id, resource) in template["Resources"].as_object().unwrap() {
        for (key, name) in resource["Properties"].as_object().into_iter().flatten() {
            if !key.ends_with("Name") || ["EventBusName", "GroupName", "MetricName"].contains(&key.as_str()) {
                continue;
            }
            let text = name.to_string();
            // Repositories are named by whoever deploys.
            let is_given = resource["Type"] == REPOSITORY && name.get("Ref").is_some();
            assert!(is_given || text.contains("AWS::StackName"), "{logical_id} is always called {text}");
        }
    }
    let schedules =
        of_type(&template, SCHEDULE).into_iter().map(|(name, schedule)| (name.to_owned(), schedule));
    let of_functions = events(&template, "ScheduleV2").into_iter().map(|(name, (_, event))| (name, event));
    for (name, schedule) in schedules.chain(of_functions) {
        assert_eq!(schedule["GroupName"]["Ref"], "Schedules", "{name} is in no group that an alarm watches");
    }
}

#[test]
fn no_repository_of_caches_goes_with_the_stack() {
    let template = template();
    // What is kept of manifests can be made again.
    let of_caches = of_type(&template, REPOSITORY).into_keys().filter(|name| *name != "InventoryRepository");
    for name in of_caches {
        for policy in ["DeletionPolicy", "UpdateReplacePolicy"] {
            assert_eq!(template["Resources"][name][policy], "Retain", "{name}");
        }
    }
}

#[test]
fn the_costs_are_added_up() {
    let text = read("docs/operate.md");
    let table = text.split_once("\n| what | USD each |").unwrap().1;
    let alarms = of_type(&template(), ALARM).len();
    let loads = [(0.0, 0.0), (1_000.0, 20.0), (100_000.0, 500.0)];
    let mut sums = [0.0; 3];
    let number =
        |cell: &str| cell.trim().replace(',', "").parse::<f64>().unwrap_or_else(|_| panic!("{cell}"));
    let cents = |amount: f64| format!("{amount:.2}");
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').collect();
        let costs = &cells[6..9];
        if cells[0].contains("together") {
            for (sum, cost) in sums.iter().zip(costs) {
                assert_eq!(cents(*sum), cents(number(cost)), "{row}");
            }
            let at_rest = format!("({:.2} USD a month at rest)", sums[0]);
            assert!(read("README.md").contains(&at_rest), "README.md does not say {at_rest}");
            let (_, rest) = text.split_once("`MetricsByProject=false` leaves ").unwrap();
            let said: Vec<_> =
                rest.split_whitespace().take(3).map(|word| word.trim_end_matches(['.', ';'])).collect();
            let metrics = table.lines().find(|line| line.starts_with("| metric of a project")).unwrap();
            let metrics = number(metrics.trim_matches('|').split('|').nth(8).unwrap());
            assert_eq!(cents(number(said[0])), cents(sums[2] - metrics));
            assert_eq!(cents(number(said[2])), cents(sums[2]));
            return;
        }
        let numbers: Vec<_> = cells[1..6].iter().map(|cell| number(cell)).collect();
        if cells[0].trim() == "alarm" {
            assert_eq!(cells[2].trim(), alarms.to_string(), "the template has {alarms} alarms");
        }
        for ((cost, (pushes, projects)), sum) in costs.iter().zip(loads).zip(&mut sums) {
            let busy = if pushes > 0.0 { numbers[2] } else { 0.0 };
            let quantity = numbers[1] + busy + numbers[3] * pushes * 30.0 + numbers[4] * projects;
            assert!(
                (number(cost) - numbers[0] * quantity).abs() <= 0.005_000_1,
                "{row}: {}",
                numbers[0] * quantity
            );
            *sum += number(cost);
        }
    }
    panic!("the table has no sum");
}
