//! `template.yaml`, `docs/deploy.md` and `docs/operate.md` say the same, and nothing in the stack can be lost
//! or stand still unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use scenarios::template::{
    ALARM, FUNCTION, QUEUE, RULE, RULE_OF_FUNCTION, SCHEDULE, events, of_type, read as template, resource_of,
};
use scenarios::{iam, rules};
use serde_json::{Value, json};
use stoker_core::event::Envelope;
use stoker_core::routing::{self, Queue};
use stoker_lambda::metrics::{MOST_PROJECTS, Metric, Reach};

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
    let reported = &template["Globals"]["Function"]["Environment"]["Variables"]["STOKER_STARTERS"];
    assert_eq!(*reported, json!({"Fn::Sub": starters.join(" ")}));
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
    assert!(read("docs/deploy.md").contains(&rule), "{rule}");
}

/// The metrics of AWS's own that alarms watch, with the names of their dimensions, as their services document them.
const OF_AWS: [(&str, &str, &[&str]); 9] = [
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible", &["QueueName"]),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage", &["QueueName"]),
    ("AWS/Lambda", "Errors", &["FunctionName"]),
    ("AWS/Lambda", "Throttles", &["FunctionName"]),
    ("AWS/Lambda", "Duration", &["FunctionName"]),
    ("AWS/Lambda", "DestinationDeliveryFailures", &["FunctionName"]),
    ("AWS/Events", "InvocationsFailedToBeSentToDlq", &["RuleName"]),
    ("AWS/Events", "InvocationsFailedToBeSentToDlq", &["EventBusName", "RuleName"]),
    ("AWS/Scheduler", "InvocationsFailedToBeSentToDeadLetterCount", &["ScheduleGroup"]),
];

/// A metric of an alarm: namespace, name and dimensions.
type Watched<'t> = (&'t str, &'t str, &'t Value);

fn watched(metric: &Value) -> Watched<'_> {
    (metric["Namespace"].as_str().unwrap(), metric["MetricName"].as_str().unwrap(), &metric["Dimensions"])
}

/// The metrics of an alarm, by the names that its expression has for them: the only one of an alarm without
/// is called `all`.
fn metrics_of(alarm: &Value) -> BTreeMap<&str, Watched<'_>> {
    let Some(all) = alarm.get("Metrics") else { return BTreeMap::from([("all", watched(alarm))]) };
    for setting in ["Namespace", "MetricName", "Dimensions", "Period", "Statistic"] {
        assert!(alarm.get(setting).is_none(), "CloudWatch refuses {setting} beside an expression");
    }
    let stats = all.as_array().unwrap().iter().filter(|metric| metric.get("MetricStat").is_some());
    let stats = stats.map(|metric| {
        assert_eq!(metric["ReturnData"], false, "the expression is what is judged");
        (metric["Id"].as_str().unwrap(), watched(&metric["MetricStat"]["Metric"]))
    });
    stats.collect()
}

/// What an alarm with an expression computes.
fn expression_of(alarm: &Value) -> Option<&str> {
    let mut all =
        alarm.get("Metrics")?.as_array().unwrap().iter().filter(|metric| metric["ReturnData"] == true);
    let expression = all.next().unwrap()["Expression"].as_str().unwrap();
    assert!(all.next().is_none(), "an alarm has one result");
    Some(expression)
}

/// What has to be watched, as no other alarm and no later event tells of it: a metric, and the resource whose it is.
fn wanted(template: &Value) -> BTreeSet<(String, String)> {
    let mut wanted = BTreeSet::new();
    let mut want = |metric: &str, resource: &str| wanted.insert((metric.to_owned(), resource.to_owned()));
    let dead = dead_letter_queues(template);
    for name in of_type(template, QUEUE).into_keys() {
        let of_dead_letters = "ApproximateNumberOfMessagesVisible";
        let metric = if dead.contains(name) { of_dead_letters } else { "ApproximateAgeOfOldestMessage" };
        want(metric, name);
    }
    // What other rules lose the night makes good.
    for (name, rule) in of_type(template, RULE) {
        if rule["Targets"]
            .as_array()
            .unwrap()
            .iter()
            .any(|target| resource_of(&target["Arn"]).unwrap() == "StartQueue")
        {
            want("InvocationsFailedToBeSentToDlq", name);
        }
    }
    for (name, (function, _)) in events(template, RULE_OF_FUNCTION) {
        want("InvocationsFailedToBeSentToDlq", &name);
        want("DestinationDeliveryFailures", function);
    }
    let from_queues: BTreeSet<&str> =
        events(template, "SQS").into_values().map(|(function, _)| function).collect();
    for name in of_type(template, FUNCTION).into_keys() {
        want("Errors", name);
        if !from_queues.contains(name) {
            want("Throttles", name);
        }
    }
    want("InvocationsFailedToBeSentToDeadLetterCount", "Schedules");
    wanted
}

#[test]
fn everything_that_can_fail_has_an_alarm_on_a_metric_that_there_is() {
    let template = template();
    let emitted = emitted();
    let mut watched = BTreeSet::new();
    for (name, alarm) in of_type(&template, ALARM) {
        assert_eq!(alarm["AlarmName"], json!({"Fn::Sub": format!("${{AWS::StackName}}-{name}")}));
        let section = format!(" See docs/operate.md, {name}.");
        assert!(alarm["AlarmDescription"].as_str().unwrap().ends_with(&section), "{name}: {section}");
        assert_eq!(alarm["TreatMissingData"], "notBreaching", "{name}: nothing happened, and all is well");
        for actions in ["AlarmActions", "OKActions"] {
            assert_eq!(alarm[actions]["Fn::If"][0], "NotifiesTopic", "{name}");
            assert_eq!(alarm[actions]["Fn::If"][1][0]["Ref"], "AlarmTopic", "{name}");
        }
        let metrics = metrics_of(alarm);
        assert!(metrics.len() <= 10, "{name}: CloudWatch takes no more in an expression");
        for (id, (namespace, metric, dimensions)) in &metrics {
            let dimensions = dimensions.as_array().unwrap();
            let names: Vec<_> =
                dimensions.iter().map(|dimension| dimension["Name"].as_str().unwrap()).collect();
            let value = &dimensions.last().unwrap()["Value"];
            if let Some(expression) = expression_of(alarm) {
                let words = expression.split(|c: char| !c.is_ascii_alphanumeric());
                assert_eq!(words.filter(|word| word == id).count(), 1, "{name}: {id} in {expression}");
            }
            if *namespace == "Stoker" {
                assert_eq!(names, ["Stack"], "{name}");
                assert!(
                    emitted.get(metric) >= Some(&Reach::Stack),
                    "{name}: {metric} is no metric of the stack"
                );
                continue;
            }
            assert!(
                OF_AWS.contains(&(*namespace, *metric, &names)),
                "{name}: AWS has no {metric} by {names:?}"
            );
            let resource = resource_of(value).unwrap();
            let properties = &template["Resources"][&resource]["Properties"];
            assert_eq!(
                names.contains(&"EventBusName"),
                properties.get("EventBusName").is_some(),
                "{name}: {metric}"
            );
            if *metric == "Duration" {
                // Milliseconds, as parts of a hundred of the timeout.
                let divided = format!("{id} / {}", properties["Timeout"].as_i64().unwrap() * 10);
                assert!(expression_of(alarm).unwrap().contains(&divided), "{name}: {divided}");
                assert_eq!(alarm["Threshold"], 80, "{name}");
            } else {
                assert!(
                    watched.insert(((*metric).to_owned(), resource)),
                    "{name}: {metric} is paid for twice"
                );
            }
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
    let alarm = of_type(&template, ALARM)["QueuesBacklogged"];
    assert_eq!(alarm["Threshold"], 1, "each queue is measured by how old it may be");
    let expression = expression_of(alarm).unwrap();
    let parts = expression.strip_prefix("MAX([").and_then(|parts| parts.strip_suffix("])")).unwrap();
    let limits: BTreeMap<&str, &str> =
        parts.split(", ").map(|part| part.split_once(" / ").unwrap()).collect();
    for (id, (_, metric, dimensions)) in metrics_of(alarm) {
        assert_eq!(metric, "ApproximateAgeOfOldestMessage");
        let name = resource_of(dimensions).unwrap();
        let queue = &template["Resources"][&name]["Properties"];
        // In a FIFO queue a message stays the oldest until its tries are used up.
        let tries = if queue["FifoQueue"] == true {
            queue["RedrivePolicy"]["maxReceiveCount"].as_i64()
        } else {
            None
        };
        let between = seconds(&queue["VisibilityTimeout"], "MaxValue");
        let least = seconds(&queue["DelaySeconds"], "MaxValue") + tries.unwrap_or(3) * between;
        let limit: i64 = limits[id].parse().unwrap();
        assert!(limit > least, "{name}: a message may be {least} s old");
    }
}

#[test]
fn every_alarm_has_a_section_in_the_runbook_and_every_section_an_alarm() {
    let template = template();
    let text = read("docs/operate.md");
    let runbook = text.split_once("\n## Runbook\n").unwrap().1;
    assert!(!runbook.contains("\n## "), "the runbook is the last chapter");
    let mut reported = Vec::new();
    for section in runbook.split("\n### ").skip(1) {
        let heading = section.lines().next().unwrap();
        reported.extend(heading.split(", "));
        for part in ["\n**Means:** ", "\n**Look:** ", "\n**End:** "] {
            assert!(section.replace(":**\n", ":** ").contains(part), "{heading} lacks {part:?}");
        }
    }
    let alarms: Vec<_> = of_type(&template, ALARM).into_keys().collect();
    reported.sort_unstable();
    assert_eq!(reported, alarms);
}

/// What the functions measure, and where its numbers go.
fn emitted() -> BTreeMap<&'static str, Reach> {
    Metric::ALL.iter().map(|metric| (metric.name(), metric.reach())).collect()
}

#[test]
fn the_dashboard_shows_every_number_as_a_metric_or_from_the_log() {
    let template = template();
    let emitted = emitted();
    let widgets = dashboard(&template);
    let metrics =
        || widgets.iter().flat_map(|widget| widget["properties"]["metrics"].as_array().into_iter().flatten());
    assert!(metrics().count() <= 50, "no dashboard of more metrics is free");
    let mut shown = BTreeSet::new();
    let mut before: Vec<&str> = Vec::new();
    for metric in metrics() {
        let words = metric.as_array().unwrap().iter().filter_map(Value::as_str);
        before = written_out(&before, words.collect());
        let ["Stoker", name, dimensions @ ..] = before.as_slice() else { continue };
        assert_eq!(*dimensions, ["Stack", "${AWS::StackName}"], "{name}");
        let (name, reach) = emitted.get_key_value(name).unwrap_or_else(|| panic!("nobody counts {name}"));
        assert!(*reach >= Reach::Stack, "{name} is no metric");
        shown.insert(*name);
    }
    let queries: Vec<&str> =
        widgets.iter().filter_map(|widget| widget["properties"]["query"].as_str()).collect();
    for query in &queries {
        for word in query.split(|c: char| !c.is_ascii_alphanumeric()) {
            let counted = emitted.get_key_value(word);
            shown.extend(counted.map(|(name, _)| *name));
            let is_name = word.starts_with(|c: char| c.is_ascii_uppercase())
                && !query.contains(&format!("${{{word}}}"));
            let field = Metric::ALL.iter().any(|metric| metric.fields().contains(&word));
            let language = ["SOURCE", "ERROR", "WARN"].contains(&word);
            assert!(!is_name || counted.is_some() || field || language, "{query}: nobody writes {word}");
        }
    }
    assert_eq!(shown, emitted.into_keys().collect(), "on the dashboard, and measured");
}

/// A metric of the dashboard in full: `...` and `.` are for what the one before it has in their place.
fn written_out<'w>(before: &[&'w str], words: Vec<&'w str>) -> Vec<&'w str> {
    if let ["...", last] = words.as_slice() {
        let same = before.iter().take(before.len() - 1).copied();
        return same.chain([*last]).collect();
    }
    let same = |(place, word): (usize, &'w str)| if word == "." { before[place] } else { word };
    words.into_iter().enumerate().map(same).collect()
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
    for (name, parameter) in parameters {
        assert!(
            parameter["Description"].as_str().is_some_and(|text| text.len() > 40),
            "{name} is not explained"
        );
        assert!(parameter.get("Default").is_some(), "{name} has no default");
        let restricted = parameter.get("AllowedPattern").is_some();
        assert_eq!(restricted, parameter.get("ConstraintDescription").is_some(), "{name}: what may it be?");
    }
    let text = read("docs/deploy.md");
    let table = text.split_once("\n| parameter |").unwrap().1.split_once("\n\n").unwrap().0;
    let reported =
        table.lines().skip(2).flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    let asked = read("template.yaml");
    let asked = asked.split_once("\nParameters:\n").unwrap().1.split_once("\nConditions:").unwrap().0;
    let asked = asked.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let asked = asked.map(|line| line.trim().trim_end_matches(':'));
    assert!(reported.eq(asked), "the documentation's table is not in the template's order");
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

/// An event of each kind, and of each kind that a condition of the table tells apart, as EventBridge has it.
fn sample_events() -> Vec<Value> {
    let repository = "github.com/example/app";
    let pull = json!({"repository": repository, "number": 1, "branch": "a", "base": "main", "default_branch": "main",
        "commit": "1".repeat(40), "from_fork": false});
    let turn = json!({ "project": "app" });
    let mut events = Vec::new();
    let mut event = |source: &str, kind: &str, detail: Value| {
        events.push(json!({"source": source, "detail-type": kind, "detail": detail}));
    };
    for to_default_branch in [true, false] {
        let push = json!({"repository": repository, "branch": "a", "default_branch": "main", "commit": "1".repeat(40),
            "to_default_branch": to_default_branch});
        event("stoker", "BranchPushed", push);
    }
    event("stoker", "TagPushed", json!({"repository": repository, "tag": "v1", "commit": "1".repeat(40)}));
    for kind in ["PullRequestUpdated", "PullRequestMerged", "PullRequestClosed"] {
        event("stoker", kind, pull.clone());
    }
    let approval = json!({"pull_request": pull, "approver": "1", "commit": "1".repeat(40)});
    event("stoker", "PullRequestApproved", approval);
    let deleted = json!({"repository": repository, "branch": "a", "default_branch": "main"});
    event("stoker", "BranchDeleted", deleted);
    for kind in ["NightlyReconcile", "NightlyWarm", "NightlyRetention"] {
        event("stoker", kind, json!({}));
    }
    for kind in ["ReconcileRequested", "DriftFound", "WarmRequested"] {
        event("stoker", kind, turn.clone());
    }
    event("stoker", "RetentionRequested", json!({"repository": "stoker/app", "projects": ["app"]}));
    for line in ["main", "branch/main", "pr/1"] {
        let failed =
            json!({"project": "app", "build": "app:1", "line": line, "reason": "push", "status": "FAILED"});
        event("stoker", "BuildFailed", failed);
    }
    let delayed = json!({"repository": repository, "line": "main", "why": "a limit", "tries": 15});
    event("stoker", "BuildDelayed", delayed);
    let fell = json!({"project": "app", "build": "app:1", "reused_percent": 1, "before_percent": 90});
    event("stoker", "CacheHitRateDropped", fell);
    event("stoker", "WebhookRefused", json!({"forge": "github", "why": "no"}));
    event("stoker", "PromotionFailed", json!({"of": "app:1", "why": "no"}));
    for status in ["IN_PROGRESS", "SUCCEEDED", "FAILED", "FAULT", "TIMED_OUT", "STOPPED"] {
        let change = json!({"build-status": status, "project-name": "app", "build-id": "build/app:1"});
        event("aws.codebuild", "CodeBuild Build State Change", change);
    }
    for (action, result, tag) in [
        ("PUSH", "SUCCESS", "app.export.11111111-0000000000000000"),
        ("PUSH", "FAILURE", "app.export.11111111-0000000000000000"),
        ("DELETE", "SUCCESS", "app.export.11111111-0000000000000000"),
        ("PUSH", "SUCCESS", "app.main"),
        ("PUSH", "SUCCESS", ""),
    ] {
        let action = json!({"action-type": action, "result": result, "repository-name": "stoker-builds/app",
            "image-tag": tag});
        event("aws.ecr", "ECR Image Action", action);
    }
    events
}

#[test]
fn rules_queues_and_schedules_deliver_what_the_table_says() {
    let deployed = iam::deployed(true, false);
    let template = deployed.template();
    let sources = events(template, "SQS");
    let taken: BTreeMap<String, &Value> = sources
        .into_values()
        .map(|(function, source)| {
            let name = &template["Resources"][function]["Properties"]["FunctionName"]["Fn::Sub"];
            (resource_of(&source["Queue"]).unwrap(), name)
        })
        .collect();
    let expected: Vec<(String, Value)> = Queue::ALL
        .iter()
        .map(|queue| {
            (queue.name().to_owned(), json!(format!("${{AWS::StackName}}-{}", queue.function().name())))
        })
        .collect();
    let expected: BTreeMap<String, &Value> =
        expected.iter().map(|(queue, name)| (queue.clone(), name)).collect();
    assert_eq!(taken, expected);

    let rules = of_type(template, RULE);
    let schedules = of_type(template, SCHEDULE);
    let (mut kinds, mut notices) = (BTreeSet::new(), BTreeSet::new());
    for event in sample_events() {
        let mut delivered: Vec<String> = Vec::new();
        for rule in rules.values() {
            // Stoker's events are on its own bus, and AWS's on the default one.
            let is_of_bus = rule.get("EventBusName").is_some() == (event["source"] == "stoker");
            if is_of_bus && rules::matches(&deployed.resolved(&rule["EventPattern"]), &event) {
                let targets = rule["Targets"].as_array().unwrap().iter();
                delivered.extend(targets.map(|target| resource_of(&target["Arn"]).unwrap()));
            }
        }
        let ticks = schedules.iter().filter(|(name, _)| event["detail-type"] == **name);
        delivered.extend(ticks.map(|(_, schedule)| resource_of(&schedule["Target"]["Arn"]).unwrap()));
        delivered.sort();
        let envelope = Envelope::from_value(event.clone()).unwrap();
        let mut table: Vec<&str> = routing::queues(&envelope.event).map(Queue::name).collect();
        table.sort_unstable();
        assert_eq!(delivered, table, "{event}");
        let kind = envelope.event.detail_type();
        kinds.extend(routing::of_kind(&envelope.event).map(|route| route.event));
        notices.extend(routing::NOTICES.contains(&kind).then_some(kind));
        assert!(kinds.contains(kind) || notices.contains(kind), "{kind} is for nobody");
    }
    assert_eq!(kinds, routing::ROUTES.iter().map(|route| route.event).collect(), "every kind is tried");
    let pattern = template["Outputs"]["NoticesPattern"]["Value"].as_str().unwrap();
    let pattern: Value = serde_json::from_str(pattern).unwrap();
    assert_eq!(pattern["detail-type"], json!(routing::NOTICES));
    assert_eq!(notices, BTreeSet::from(routing::NOTICES));
}

#[test]
fn no_repository_of_caches_goes_with_the_stack() {
    let template = template();
    for name in of_type(&template, REPOSITORY).into_keys() {
        for policy in ["DeletionPolicy", "UpdateReplacePolicy"] {
            assert_eq!(template["Resources"][name][policy], "Retain", "{name}");
        }
    }
}

/// The table of costs adds up, keeps to its budgets, and counts the template's alarms by the metrics that
/// they are billed by. Whichever way a repository is made, ECR deletes the same of it.
#[test]
fn a_repository_that_is_made_has_the_safety_net_of_the_templates_own() {
    let template = template();
    let text =
        template["Resources"]["Caches"]["Properties"]["LifecyclePolicy"]["LifecyclePolicyText"].to_string();
    let text: Value = serde_json::from_str(&text).unwrap();
    let text = text.as_str().or_else(|| text["Fn::Sub"].as_str()).unwrap().replace("${SafetyNetDays}", "30");
    let own: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&stoker_core::onboard::safety_net(30)).unwrap(), own);
}

#[test]
fn the_costs_are_added_up_and_within_their_budgets() {
    const BUDGETS: [f64; 3] = [5.0, 15.0, 150.0];
    let text = read("docs/operate.md");
    let table = text.split_once("\n| what | USD each |").unwrap().1;
    let template = template();
    let alarms: usize = of_type(&template, ALARM).values().map(|alarm| metrics_of(alarm).len()).sum();
    let of_reach = |reach| Metric::ALL.iter().filter(|metric| metric.reach() >= reach).count();
    let (of_stack, of_project) = (of_reach(Reach::Stack), of_reach(Reach::Project));
    assert_eq!(of_project, 2, "metrics of each project");
    let loads = [(0.0, 0_u16), (1_000.0, 20), (100_000.0, 500)];
    let mut sums = [0.0; 3];
    let number =
        |cell: &str| cell.trim().replace(',', "").parse::<f64>().unwrap_or_else(|_| panic!("{cell}"));
    let cents = |amount: f64| format!("{amount:.2}");
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').collect();
        let costs = &cells[6..9];
        let what = cells[0].trim();
        if what.contains("together") {
            for ((sum, cost), budget) in sums.iter().zip(costs).zip(BUDGETS) {
                assert_eq!(cents(*sum), cents(number(cost)), "{row}");
                assert!(*sum <= budget, "{sum} USD are more than {budget}");
            }
            let at_rest = format!("({:.2} USD a month at rest)", sums[0]);
            let readme = read("README.md").split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(readme.contains(&at_rest), "README.md does not say {at_rest}");
            return;
        }
        let numbers: Vec<_> = cells[1..6].iter().map(|cell| number(cell)).collect();
        match what {
            "metric of an alarm" => assert_eq!(cells[2].trim(), alarms.to_string(), "{row}"),
            "metric of the stack" => assert_eq!(cells[3].trim(), of_stack.to_string(), "{row}"),
            _ => {}
        }
        let is_of_projects = what.starts_with("metric of a project");
        assert!(!is_of_projects || numbers[4] <= 2.0, "{row}: each project has two");
        for ((cost, (pushes, projects)), sum) in costs.iter().zip(loads).zip(&mut sums) {
            let busy = if pushes > 0.0 { numbers[2] } else { 0.0 };
            // A large fleet has none unless it asks for them.
            let counted = if is_of_projects && usize::from(projects) > MOST_PROJECTS { 0 } else { projects };
            let quantity = numbers[1] + busy + numbers[3] * pushes * 30.0 + numbers[4] * f64::from(counted);
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

/// At `trace` the SDK logs the bodies of answers, and ECR's token is one.
#[test]
fn attack_a_log_level_that_shows_answers() {
    let template = template();
    let levels = template["Parameters"]["LogLevel"]["AllowedValues"].as_array().expect("levels").clone();
    assert_eq!(levels, ["error", "warn", "info", "debug"].map(Value::from));
    assert_eq!(template["Globals"]["Function"]["Environment"]["Variables"]["STOKER_LOG"]["Ref"], "LogLevel");
    for (name, properties) in of_type(&template, FUNCTION) {
        assert!(
            properties["Environment"]["Variables"]["STOKER_LOG"].is_null(),
            "{name} has a level of its own"
        );
    }
}
