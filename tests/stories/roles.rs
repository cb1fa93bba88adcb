//! Each function's role in `template.yaml` allows exactly what the function calls.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
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

#[tokio::test]
async fn every_role_allows_exactly_what_its_function_calls() {
    // A policy with a glob, so that projects are listed.
    let mut world = World::with_policy(&stories::world::POLICY.replace(
        "projects:",
        "projects:\n  - name: \"other-*\"\n    repository: \"github.com/example/{project}\"",
    ));
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
        ("start-build", "StartBuildRole"),
        ("promote-cache", "PromoteCacheRole"),
        ("warm-main", "WarmMainRole"),
        ("enforce-retention", "EnforceRetentionRole"),
    ] {
        assert_eq!(allowed(&template, role), needed[function], "{role} against the calls of {function}");
    }
    assert_eq!(allowed(&template, "ResolveCacheRole"), BTreeSet::from(["ecr:BatchGetImage".to_owned()]));
}
