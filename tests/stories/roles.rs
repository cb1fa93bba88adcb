//! Each function's role in `template.yaml` allows exactly what the function calls.

use std::collections::{BTreeMap, BTreeSet};

use aws_lambda_events::sqs::SqsEvent;
use jiff::SignedDuration;
use serde_json::{Value, json};
use stoker::error::Failure;
use stoker::policy::Policy;
use stoker::ports::BuildStatus;
use stories::account::{Account, Fault};
use stories::world::World;

/// The IAM actions that a call of the ports needs.
fn actions(call: &str) -> Vec<&str> {
    match call {
        // The adapter lists ids and then asks for the builds.
        "codebuild:ListBuildsForProject" => vec![call, "codebuild:BatchGetBuilds"],
        "registry:GetBlob" => vec!["ecr:GetAuthorizationToken", "ecr:GetDownloadUrlForLayer"],
        "registry:PutBlob" => vec![
            "ecr:GetAuthorizationToken",
            "ecr:BatchCheckLayerAvailability",
            "ecr:InitiateLayerUpload",
            "ecr:UploadLayerPart",
            "ecr:CompleteLayerUpload",
        ],
        // A blob is mounted from where it can be read.
        "registry:MountBlob" => {
            vec!["ecr:GetAuthorizationToken", "ecr:InitiateLayerUpload", "ecr:GetDownloadUrlForLayer"]
        }
        "registry:PutManifest" => vec!["ecr:GetAuthorizationToken", "ecr:PutImage"],
        _ => vec![call],
    }
}

/// The actions of a role on the services that the ports reach. Logs and queues belong to the function's surroundings.
fn allowed(template: &str, role: &str) -> BTreeSet<String> {
    let start = template.find(&format!("\n  {role}:\n")).expect("the role") + 1;
    let block: Vec<&str> = template[start..]
        .lines()
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with("   "))
        .collect();
    let words = block.iter().flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || c == ':')));
    let services = ["codebuild:", "ecr:", "events:", "secretsmanager:"];
    words.filter(|word| services.iter().any(|service| word.starts_with(service))).map(str::to_owned).collect()
}

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
    account.acting.set("start-build");
    let told = start_build::TRIES_UNTIL_TOLD;
    for (commit, before, receives) in [("a", "9", 1), ("b", "a", 1), ("c", "b", told)] {
        let fault = (account.calls.borrow().len(), Fault::Before(Failure::Throttled));
        account.faults.borrow_mut().extend((receives > 1).then_some(fault));
        let batch = message("stoker", "BranchPushed", &push(commit, before), receives);
        start_build::handle(
            &batch,
            policy,
            "registry.example",
            account,
            &start_build::Instance::default(),
            now,
        )
        .await;
    }
    let failed = {
        let mut builds = account.builds.borrow_mut();
        let build = builds.last_mut().expect("the overtaking build");
        build.status = BuildStatus::Failed;
        build.id.clone()
    };
    let arn = format!("arn:aws:codebuild:us-east-1:123456789012:build/{failed}");
    let ended = json!({"build-status": "FAILED", "project-name": "app", "build-id": arn});
    account.acting.set("promote-cache");
    let batch = message("aws.codebuild", "CodeBuild Build State Change", &ended, 1);
    promote_cache::handle(&batch, policy, account, now).await;
}

#[tokio::test]
async fn every_role_allows_exactly_what_its_function_calls() {
    // A policy with a glob, so that projects are listed, and with all that makes a function ask for more.
    let policy = stories::world::POLICY
        .replace(
            "projects:",
            "projects:\n  - name: \"other-*\"\n    repository: \"github.com/example/{project}\"",
        )
        .replace("warm: {", "builds: { superseded: stop }\n  warm: { base-images: [\"library/base:1\"],");
    let mut world = World::with_policy(&policy);
    let repository = "git-codecommit.us-east-1.amazonaws.com/v1/repos/app";
    let policy = format!("{policy}  - {{ name: in-codecommit, repository: {repository} }}\n");
    let policy = Policy::parse("the same and one more", &policy).unwrap();
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    let a = world.commit([2, 1, 1, 1]);
    world.push("feature-a", &[&a]).await;
    world.build().await;
    let merge = world.commit([2, 2, 1, 1]);
    world.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    world.build().await;
    world.delete_branch("feature-a").await;
    world.settle().await;
    world.wait(SignedDuration::from_hours(24 * 8));
    world.night().await;
    bad_hour(&world.account, &policy).await;
    let event = include_str!("../../events/receive-codecommit-branch-pushed.json");
    world.account.acting.set("receive-codecommit");
    receive_codecommit::handle(serde_json::from_str(event).unwrap(), &policy, &world.account).await.unwrap();

    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/../template.yaml");
    let template = std::fs::read_to_string(template).unwrap();
    let called = world.account.called.borrow();
    let needed: BTreeMap<_, BTreeSet<String>> = called
        .iter()
        .map(|(function, calls)| {
            (*function, calls.iter().flat_map(|call| actions(call)).map(str::to_owned).collect())
        })
        .collect();
    for (function, role) in [
        ("receive-webhook", "ReceiveWebhookRole"),
        ("receive-codecommit", "ReceiveCodecommitRole"),
        ("start-build", "StartBuildRole"),
        ("promote-cache", "PromoteCacheRole"),
        ("warm-main", "WarmMainRole"),
        ("enforce-retention", "EnforceRetentionRole"),
    ] {
        assert_eq!(allowed(&template, role), needed[function], "{role} against the calls of {function}");
    }
    // Builds may write below the caches' prefix, and what is kept of manifests is believed.
    assert_eq!(template.matches("!GetAtt InventoryRepository.Arn").count(), 1, "one role may use it");
    let role = &template[template.find("\n  EnforceRetentionRole:\n").unwrap()..];
    let statements: Vec<&str> = role.split("\n              - ").collect();
    for statement in
        statements.iter().filter(|statement| statement.contains("!GetAtt InventoryRepository.Arn"))
    {
        assert!(statement.contains("ecr:PutImage") && !statement.contains("Repositories"), "{statement}");
    }
    assert_eq!(allowed(&template, "ResolveCacheRole"), BTreeSet::from(["ecr:BatchGetImage".to_owned()]));
}
