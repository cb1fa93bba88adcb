//! Each role in `template.yaml` allows exactly what its function does. Every scenario runs under these roles; here they
//! are compared with what a run that makes every call has needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_lambda_events::sqs::SqsEvent;
use iam_rs::{Arn, Decision, IAMPolicy, IAMRequest, Principal, PrincipalId, evaluate_policies};
use jiff::SignedDuration;
use proptest::prelude::{Strategy, any, proptest};
use proptest::sample::select;
use scenarios::account::{Account, Fault};
use scenarios::environment::{ISOLATED, POLICY, REGISTRY, TestEnvironment};
use scenarios::iam::{self, Deployed, Grant};
use scenarios::template;
use serde_json::{Map, Value, json};
use stoker_core::error::Failure;
use stoker_core::names::ProjectName;
use stoker_core::policy::Policy;
use stoker_core::ports::BuildStatus;

/// Actions that know no resource, as AWS's Service Authorization Reference has it, and what they are for.
const WITHOUT_RESOURCE: [(&str, &str); 2] = [
    ("codebuild:ListProjects", "names of projects, which the policy's patterns then choose from"),
    ("ecr:GetAuthorizationToken", "a token for what the role may do in ECR, and no more"),
];

/// One message of a queue, with an event in it.
fn message(source: &str, kind: &str, detail: &Value, receives: u32) -> SqsEvent {
    let event = json!({"source": source, "detail-type": kind, "detail": detail});
    let attributes = json!({"ApproximateReceiveCount": receives.to_string()});
    let message = json!({"messageId": "1", "body": event.to_string(), "attributes": attributes});
    serde_json::from_value(json!({ "Records": [message] })).unwrap()
}

/// What happens only in a bad hour: a push overtakes another, a build cannot start for long, a build fails.
async fn bad_hour(account: &Account, policy: &Policy) {
    let now = account.now();
    let push = |commit: &str, before: &str| {
        json!({"repository": "github.com/example/app", "branch": "hasty", "default_branch": "main",
            "to_default_branch": false, "commit": commit.repeat(40), "before": before.repeat(40)})
    };
    let reported = start_build::TRIES_UNTIL_NOTIFIED;
    for (commit, before, receives) in [("a", "9", 1), ("b", "a", 1), ("c", "b", reported)] {
        let fault = (account.calls.borrow().len(), Fault::Before(Failure::Throttled));
        account.faults.borrow_mut().extend((receives > 1).then_some(fault));
        let batch = message("stoker", "BranchPushed", &push(commit, before), receives);
        let instance = start_build::Instance::default();
        let handled = start_build::handle(&batch, policy, REGISTRY, account, &instance, now);
        account.invoke("start-build", Some("StartQueue"), handled).await;
    }
    let failed = {
        let mut builds = account.builds.borrow_mut();
        let Some(build) = builds.last_mut() else { return };
        build.status = BuildStatus::Failed;
        build.id.clone()
    };
    let arn = format!("arn:aws:codebuild:us-east-1:123456789012:build/{failed}");
    let ended = json!({"build-status": "FAILED", "project-name": "app", "build-id": arn});
    let batch = message("aws.codebuild", "CodeBuild Build State Change", &ended, 1);
    let promoter = promote_cache::Instance::default();
    let handled = promote_cache::handle(&batch, policy, account, &promoter, now);
    account.invoke("promote-cache", Some("PromotionQueue"), handled).await;
}

/// A run in which every function makes every call that it ever makes.
async fn run(isolates_builds: bool, deployed: Arc<Deployed>) -> Account {
    // With a glob, so that projects are listed, and with all that makes a function ask for more.
    let policy = if isolates_builds { ISOLATED } else { POLICY };
    let policy = policy
        .replace(
            "projects:",
            "projects:\n  - name: \"other-*\"\n    repository: \"github.com/example/{project}\"",
        )
        .replace("warm: {", "builds: { superseded: stop }\n  warm: { base-images: [\"library/base:1\"],");
    let mut env = TestEnvironment::with_policy(&policy);
    env.account.deploy(deployed);
    env.account.makes_repositories.set(true);
    let repository = "git-codecommit.us-east-1.amazonaws.com/v1/repos/app";
    let policy = format!("{policy}  - {{ name: in-codecommit, repository: {repository} }}\n");
    let policy = Policy::parse("the same and one more", &policy).unwrap();
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    let a = env.commit([2, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    let more = env.commit([3, 1, 1, 1]);
    env.push("feature-a", &[&more]).await;
    env.build().await;
    // Whoever asks has the branch's line and main's joined, as the push has had.
    let question = json!({ "project": "app", "branch": "feature-a" });
    let account = env.account.clone();
    let handled = stoker_core::resolve::handle(question, &policy, REGISTRY, &account, account.now());
    let _ = account.invoke("resolve-cache", None, handled).await;
    // Of a project that nothing is cached of the repositories are made, whoever comes first.
    for asked in ["other-1", "other-2"] {
        let handled = stoker_core::resolve::handle(
            json!({"project": asked}),
            &policy,
            REGISTRY,
            &account,
            account.now(),
        );
        let _ = account.invoke("resolve-cache", None, handled).await;
    }
    account.projects.borrow_mut().extend(ProjectName::new("other-3").ok());
    let push = json!({"repository": "github.com/example/other-3", "branch": "main", "default_branch": "main",
        "to_default_branch": true, "commit": "e".repeat(40)});
    let batch = message("stoker", "BranchPushed", &push, 1);
    let handled = warm_main::handle(&batch, &policy, REGISTRY, &account, account.now());
    account.invoke("warm-main", Some("WarmQueue"), handled).await;
    // Main's line and what is about to be merged into it are joined, too.
    let push = json!({"repository": "github.com/example/app", "branch": "main", "default_branch": "main",
        "to_default_branch": true, "commit": "d".repeat(40), "commits": [more.clone()]});
    let batch = message("stoker", "BranchPushed", &push, 1);
    let handled = warm_main::handle(&batch, &policy, REGISTRY, &account, account.now());
    account.invoke("warm-main", Some("WarmQueue"), handled).await;
    env.build().await;
    let merge = env.commit([2, 2, 1, 1]);
    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    env.build().await;
    env.delete_branch("feature-a").await;
    env.settle().await;
    env.wait(SignedDuration::from_hours(24 * 8));
    env.night().await;
    bad_hour(&account, &policy).await;
    let event = include_str!("../../events/receive-codecommit-branch-pushed.json");
    let handled = receive_codecommit::handle(serde_json::from_str(event).unwrap(), &policy, &account);
    let _ = account.invoke("receive-codecommit", None, handled).await;
    account
}

type Needs = BTreeMap<&'static str, BTreeSet<(&'static str, String)>>;

/// What the roles of the functions allow and need not, or need and do not allow.
fn differences(deployed: &Deployed, needs: &Needs) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, function) in &deployed.functions {
        let allowed = function.grants.iter().filter(|grant| grant.allows);
        let allowed: BTreeSet<_> =
            allowed.map(|grant| (grant.action.as_str(), grant.resource.clone())).collect();
        let needed = needs.get(name.as_str()).into_iter().flatten();
        let needed: BTreeSet<_> = needed.map(|(action, arn)| (*action, deployed.narrowest(arn))).collect();
        for (action, resource) in allowed.symmetric_difference(&needed) {
            let what = if allowed.contains(&(*action, resource.clone())) { "needless" } else { "missing" };
            differences.push(format!("{}: {what} {action} on {resource}", function.role));
        }
    }
    differences
}

#[tokio::test]
async fn every_role_allows_exactly_what_its_function_does() {
    for isolates_builds in [false, true] {
        let deployed = iam::deployed(isolates_builds, true);
        let account = run(isolates_builds, deployed.clone()).await;
        assert_eq!(differences(&deployed, &account.touched()), Vec::<String>::new());
        let mut roles: BTreeSet<&str> = deployed.functions.values().map(|f| f.role.as_str()).collect();
        assert_eq!(roles.len(), deployed.functions.len(), "each function has a role of its own");
        roles.insert("SchedulerRole");
        assert!(deployed.roles.keys().eq(roles), "and nobody else has one: {:?}", deployed.roles.keys());
    }
    let deployed = iam::deployed(false, false);
    let send = |queue| Grant { allows: true, action: "sqs:SendMessage".to_owned(), resource: queue };
    let sends: BTreeSet<Grant> = deployed.scheduled().into_iter().map(send).collect();
    assert_eq!(deployed.roles["SchedulerRole"].iter().cloned().collect::<BTreeSet<_>>(), sends);
}

#[test]
fn every_rule_may_send_to_its_queue_and_to_its_dead_letters() {
    let deployed = iam::deployed(false, false);
    let may_send = |rule: &str, to: &Value| {
        let queue = template::resource_of(to).unwrap();
        let may = deployed.lets_send(&queue, "events.amazonaws.com", &deployed.arn_of(rule));
        assert!(may, "{rule} to {queue}");
    };
    for (name, rule) in template::of_type(deployed.template(), template::RULE) {
        for target in rule["Targets"].as_array().unwrap() {
            may_send(name, &target["Arn"]);
            may_send(name, &target["DeadLetterConfig"]);
        }
    }
    for (name, (_, event)) in template::events(deployed.template(), template::RULE_OF_FUNCTION) {
        may_send(&name, &event["DeadLetterConfig"]);
    }
}

#[test]
fn attack_the_webhooks_role_reaches_the_bus_and_its_secret_and_nothing_else() {
    for isolates_builds in [false, true] {
        let deployed = iam::deployed(isolates_builds, true);
        let logs = deployed.arn_of("ReceiveWebhookLogs");
        assert!(logs.ends_with(":log-group:/aws/lambda/stoker-receive-webhook:*"), "{logs}");
        let allow =
            |action: &str, resource: String| Grant { allows: true, action: action.to_owned(), resource };
        assert_eq!(
            deployed.roles["ReceiveWebhookRole"],
            [
                allow("logs:CreateLogStream", logs.clone()),
                allow("logs:PutLogEvents", logs),
                allow("secretsmanager:GetSecretValue", deployed.arn_of("WebhookSecret")),
                allow("events:PutEvents", deployed.arn_of("Bus")),
            ]
        );
    }
}

/// Reads and writes of builds, and of what: those of one project reach its own repositories and nothing else.
#[test]
fn attack_a_build_of_one_project_that_writes_another_projects_repository() {
    for (isolates_builds, exports) in [(false, "stoker"), (true, "stoker-builds")] {
        let deployed = iam::deployed(isolates_builds, false);
        let may = |grants: &[Grant], action: &str, repository: &str| {
            iam::may(grants, action, &deployed.place.arn("ecr", &format!("repository/{repository}")))
        };
        let own = deployed.managed("ProjectBuildPolicy", &[("stoker-repository", "app")]);
        for action in
            ["ecr:PutImage", "ecr:InitiateLayerUpload", "ecr:UploadLayerPart", "ecr:CompleteLayerUpload"]
        {
            assert!(may(&own, action, &format!("{exports}/app")), "{action}");
            assert_eq!(may(&own, action, "stoker/app"), !isolates_builds, "{action}");
            for other in ["other", "app/other", "apple"] {
                assert!(!may(&own, action, &format!("{exports}/{other}")), "{action} {other}");
            }
            assert!(
                may(&deployed.managed("BuildPolicy", &[]), action, &format!("{exports}/other")),
                "{action}"
            );
        }
        for action in ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"] {
            assert!(may(&own, action, "stoker/app") && !may(&own, action, "stoker/other"), "{action}");
        }
        // Without the tag, or with another's name for it, there is nothing but the token.
        for tags in [&[][..], &[("stoker-repositories", "app")]] {
            let none = deployed.managed("ProjectBuildPolicy", tags);
            assert!(none.iter().all(|grant| grant.action == "ecr:GetAuthorizationToken"), "{none:?}");
        }
    }
}

#[test]
fn every_statement_names_resources_but_where_an_action_knows_none() {
    let mut template = template::read();
    // In a queue's own policy `*` is the queue.
    let resources = template["Resources"].as_object_mut().unwrap();
    resources.retain(|_, resource| resource["Type"] != "AWS::SQS::QueuePolicy");
    let of_any = |statement: &&Map<String, Value>| statement.get("Resource") == Some(&json!("*"));
    let everywhere: Vec<_> = iam::statements(&template).into_iter().filter(of_any).collect();
    assert!(!everywhere.is_empty(), "there are some");
    for statement in everywhere {
        let action = statement["Action"].as_str().unwrap_or_else(|| panic!("one at a time: {statement:?}"));
        assert!(WITHOUT_RESOURCE.iter().any(|(known, _)| *known == action), "{action} knows resources");
    }
}

/// Every statement within, to change one.
fn statements_mut(value: &mut Value) -> Vec<&mut Map<String, Value>> {
    if value.get("Effect").is_some() {
        return value.as_object_mut().into_iter().collect();
    }
    let within: Vec<&mut Value> = match value {
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Array(items) => items.iter_mut().collect(),
        _ => Vec::new(),
    };
    within.into_iter().flat_map(statements_mut).collect()
}

fn actions(statement: &Map<String, Value>) -> Vec<String> {
    match &statement["Action"] {
        Value::Array(actions) => actions.iter().map(|action| action.as_str().unwrap().to_owned()).collect(),
        action => vec![action.as_str().unwrap().to_owned()],
    }
}

/// The template with one statement of one role changed, for each statement and each change of it.
fn mutants<T>(
    deployed: &Deployed,
    changes: impl Fn(&Map<String, Value>) -> Vec<T>,
    change: impl Fn(&mut Map<String, Value>, &T),
) -> Vec<Arc<Deployed>> {
    let template = template::read();
    let mut mutants = Vec::new();
    for function in deployed.functions.values() {
        let policies = |template: &mut Value| -> Value {
            template["Resources"][&function.role]["Properties"]["Policies"].take()
        };
        let mut role = policies(&mut template.clone());
        let count = statements_mut(&mut role).len();
        for n in 0..count {
            let before = statements_mut(&mut role)[n].clone();
            for one in changes(&before) {
                change(statements_mut(&mut role)[n], &one);
                let mut template = template.clone();
                template["Resources"][&function.role]["Properties"]["Policies"] = role.clone();
                statements_mut(&mut role)[n].clone_from(&before);
                mutants.push(Arc::new(Deployed::new(template, deployed.place.clone())));
            }
        }
    }
    mutants
}

#[tokio::test]
async fn a_role_with_an_action_too_few_fails_a_story() {
    let deployed = iam::deployed(true, true);
    let drop = |statement: &mut Map<String, Value>, dropped: &String| {
        let left: Vec<String> = actions(statement).into_iter().filter(|action| action != dropped).collect();
        statement.insert("Action".to_owned(), json!(left));
    };
    let mutants = mutants(&deployed, actions, drop);
    assert!(mutants.len() > 50, "{} actions are dropped", mutants.len());
    for mutant in mutants {
        let account = run(true, mutant.clone()).await;
        let denied = account.denied.take();
        let missing = differences(&deployed, &account.touched());
        assert!(!denied.is_empty(), "nothing is denied: {missing:?}");
    }
}

#[tokio::test]
async fn a_role_with_an_action_or_a_resource_too_many_differs() {
    let deployed = iam::deployed(true, true);
    let needs = run(true, deployed.clone()).await.touched();
    let more = ["ecr:DeleteRepository", "sqs:PurgeQueue", "ecr:*", "*"].map(str::to_owned);
    let added = mutants(
        &deployed,
        |_| more.to_vec(),
        |statement, action| {
            let mut all = actions(statement);
            all.push(action.clone());
            statement.insert("Action".to_owned(), json!(all));
        },
    );
    let wider = mutants(
        &deployed,
        |statement| Vec::from_iter((statement["Resource"] != "*").then_some(())),
        |statement, ()| drop(statement.insert("Resource".to_owned(), json!("*"))),
    );
    assert!(added.len() > 100 && wider.len() > 25, "{} and {}", added.len(), wider.len());
    for mutant in added.iter().chain(&wider) {
        assert!(!differences(mutant, &needs).is_empty());
    }
}

#[test]
fn every_call_of_the_adapters_is_one_of_the_account_in_memory() {
    let adapters = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/aws/src");
    let mut calls = BTreeSet::new();
    for entry in std::fs::read_dir(adapters).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let source = std::fs::read_to_string(path).unwrap();
        let quoted = source.split('"').filter(|text| {
            let services = ["codebuild:", "ecr:", "events:", "secretsmanager:", "sqs:"];
            services.iter().any(|service| text.starts_with(service) && !text.contains(' '))
        });
        calls.extend(quoted.map(str::to_owned));
    }
    let deployed = iam::deployed(true, true);
    let allowed: BTreeSet<&str> =
        deployed.functions.values().flat_map(|f| &f.grants).map(|grant| grant.action.as_str()).collect();
    assert!(calls.len() > 10, "{calls:?}");
    for call in calls {
        assert!(allowed.contains(call.as_str()), "{call} is allowed to no function");
    }
}

fn grants(statements: &[(bool, &str, &str)]) -> Vec<Grant> {
    let grant = |(allows, action, resource): &(bool, &str, &str)| Grant {
        allows: *allows,
        action: (*action).to_owned(),
        resource: (*resource).to_owned(),
    };
    statements.iter().map(grant).collect()
}

/// The examples of the IAM User Guide: elements Action and Resource of policies, and the evaluation of them.
#[test]
fn the_evaluator_decides_as_the_examples_of_aws() {
    const BUCKET: &str = "arn:aws:s3:::amzn-s3-demo-bucket";
    let in_bucket = |path: &str| format!("{BUCKET}{path}");
    let one = |action: &str, resource: &str| grants(&[(true, action, resource)]);
    for (action, asked, expected) in [
        ("iam:ListAccessKeys", "IAM:listaccesskeys", true),
        ("iam:*AccessKey*", "iam:CreateAccessKey", true),
        ("iam:*AccessKey*", "iam:UpdateAccessKey", true),
        ("iam:*AccessKey*", "iam:CreateUser", false),
        ("s3:*", "s3:GetObject", true),
        ("s3:*", "s3-outposts:GetObject", false),
        ("*", "iam:CreateUser", true),
    ] {
        assert_eq!(iam::may(&one(action, "*"), asked, "*"), expected, "{action} and {asked}");
    }
    for (path, expected) in [
        ("/1/test/object.jpg", true),
        ("/1/2/test/object.jpg", true),
        ("/1/2/test/3/object.jpg", true),
        ("/1/2/3/test/4/object.jpg", true),
        ("/1-test/object.jpg", false),
        ("/test/object.jpg", false),
        ("/1/2/test.jpg", false),
    ] {
        let pattern = one("s3:GetObject", &in_bucket("/*/test/*"));
        assert_eq!(iam::may(&pattern, "s3:GetObject", &in_bucket(path)), expected, "{path}");
    }
    // A wildcard spans no two parts of an ARN.
    let queues = one("sqs:SendMessage", "arn:aws:sqs:*:123456789012:queue?");
    assert!(iam::may(&queues, "sqs:SendMessage", "arn:aws:sqs:eu-west-1:123456789012:queue1"));
    assert!(!iam::may(&queues, "sqs:SendMessage", "arn:aws:sqs:eu-west-1:123456789012:queue10"));
    assert!(!iam::may(&queues, "sqs:SendMessage", "arn:aws:sqs:eu-west-1:000000000000:123456789012:queue1"));
    // An action that knows no resource is allowed by a statement for all of them only.
    assert!(!iam::may(&queues, "sqs:SendMessage", "*"));
    // An explicit deny wins, wherever it is.
    let secret = in_bucket("/secret/*");
    for order in [[true, false], [false, true]] {
        let all = order.map(|allows| (allows, "s3:*", if allows { "*" } else { secret.as_str() }));
        assert!(!iam::may(&grants(&all), "s3:GetObject", &in_bucket("/secret/1")));
        assert!(iam::may(&grants(&all), "s3:GetObject", &in_bucket("/public/1")));
    }
    assert!(!iam::may(&[], "s3:GetObject", BUCKET), "by default nothing is allowed");
}

/// What another evaluator of IAM policies says.
fn second_judge(grants: &[Grant], action: &str, resource: &str) -> bool {
    let statement = |grant: &Grant| {
        let effect = if grant.allows { "Allow" } else { "Deny" };
        json!({"Effect": effect, "Action": grant.action, "Resource": grant.resource})
    };
    let statements: Vec<Value> = grants.iter().map(statement).collect();
    let policy = json!({"Version": "2012-10-17", "Statement": statements});
    let policy: IAMPolicy = serde_json::from_value(policy).unwrap();
    let somebody = Principal::Aws(PrincipalId::String("arn:aws:iam::123456789012:role/any".to_owned()));
    let request = IAMRequest::new(somebody, action, Arn::parse(resource).unwrap());
    evaluate_policies(&[policy], &request).unwrap() == Decision::Allow
}

/// ARNs of one place and another, some of them patterns when asked for.
fn arns(patterns: bool) -> impl Strategy<Value = String> {
    let last = if patterns {
        vec![
            "repository/stoker/*",
            "repository/*/app",
            "project/app-?",
            "*",
            "queue",
            "log-group:a:*",
            "a*b?c*",
        ]
    } else {
        vec![
            "repository/stoker/app",
            "repository/app",
            "project/app-1",
            "queue",
            "log-group:a:b",
            "axbycz",
            "ab",
        ]
    };
    let account = if patterns {
        vec!["123456789012", "*", "1234567890??"]
    } else {
        vec!["123456789012", "210987654321"]
    };
    let service = select(vec!["ecr", "sqs", "logs"]);
    (service, select(account), select(last)).prop_map(|(s, a, l)| format!("arn:aws:{s}:us-east-1:{a}:{l}"))
}

proptest! {
    #[test]
    fn the_evaluator_and_another_agree(
        statements in proptest::collection::vec(
            (any::<bool>(), select(vec!["ecr:PutImage", "ECR:put*", "ecr:*", "sqs:Send?essage", "*"]), arns(true)),
            0..5,
        ),
        action in select(vec!["ecr:PutImage", "ecr:BatchGetImage", "sqs:SendMessage", "logs:PutLogEvents"]),
        resource in arns(false),
    ) {
        let grant = |(allows, action, resource): (bool, &str, String)| {
            Grant { allows, action: action.to_owned(), resource }
        };
        let grants: Vec<Grant> = statements.into_iter().map(grant).collect();
        assert_eq!(iam::may(&grants, action, &resource), second_judge(&grants, action, &resource), "{grants:?}");
    }
}

#[test]
fn another_evaluator_agrees_on_every_role_action_and_resource() {
    let deployed = iam::deployed(true, true);
    let all: BTreeSet<&Grant> = deployed.roles.values().flatten().collect();
    // An ARN for each pattern, and one beside it.
    let arns: BTreeSet<String> = all
        .iter()
        .filter(|grant| grant.resource != "*")
        .flat_map(|grant| {
            let beside = grant.resource.replace("/*", "-more/x") + "x";
            [grant.resource.clone(), beside].map(|arn| arn.replace(['*', '?'], "x"))
        })
        .collect();
    let actions: BTreeSet<&str> = all.iter().map(|grant| grant.action.as_str()).collect();
    let mut allowed = 0;
    for (role, grants) in &deployed.roles {
        for (action, arn) in actions.iter().flat_map(|action| arns.iter().map(move |arn| (action, arn))) {
            let may = iam::may(grants, action, arn);
            assert_eq!(may, second_judge(grants, action, arn), "{role}: {action} on {arn}");
            allowed += usize::from(may);
        }
    }
    assert!(allowed > 50, "{allowed}");
}
