//! What the doctor says of an account that is sound, and of each thing that can be wrong with one.

use serde_json::{Value, json};
use stoker_core::names::Digest;

use crate::aws::{Account, Stack, TestEnvironment, cache};
use crate::run::Ran;

const POLICY: &str = "version: 1
projects:
  - name: app
    repository: github.com/example/app
    builds-repository: stoker-builds/app
    builds: { forks: { build: read-only, project: app-forks } }
";
const LINES: &str = "stoker/app";
const EXPORTS: &str = "stoker-builds/app";
const SPEC: &str = "version: 0.2
phases:
  build:
    commands:
      - docker buildx create --use $STOKER_BUILDER_FLAGS
      - docker buildx build $STOKER_CACHE_FLAGS -t $IMAGE --push .
";
const SAFETY_NET: &str = r#"{"rules": [
    {"rulePriority": 1, "selection": {"tagStatus": "tagged", "tagPatternList": ["*.export.*"],
        "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 30}, "action": {"type": "expire"}},
    {"rulePriority": 2, "selection": {"tagStatus": "untagged",
        "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 30}, "action": {"type": "expire"}}]}"#;

fn role(name: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{name}")
}

fn arn(repository: &str) -> String {
    format!("arn:aws:ecr:eu-west-1:123456789012:repository/{repository}")
}

fn repository(name: &str, mutability: &str) -> Value {
    json!({"repositoryName": name, "repositoryArn": arn(name), "registryId": "123456789012",
        "imageTagMutability": mutability, "imageScanningConfiguration": {"scanOnPush": false},
        "encryptionConfiguration": {"encryptionType": "AES256"}})
}

fn project(name: &str, role_name: &str) -> Value {
    json!({
        "name": name,
        "arn": format!("arn:aws:codebuild:eu-west-1:123456789012:project/{name}"),
        "source": {"type": "GITHUB", "location": "https://github.com/example/app.git", "buildspec": SPEC},
        "environment": {"type": "LINUX_CONTAINER", "image": "aws/codebuild/standard:7.0",
            "computeType": "BUILD_GENERAL1_SMALL", "privilegedMode": true,
            "environmentVariables": [{"name": "IMAGE", "value": "app", "type": "PLAINTEXT"}]},
        "serviceRole": role(role_name), "timeoutInMinutes": 60, "queuedTimeoutInMinutes": 480,
        "cache": {"type": "NO_CACHE"}, "lastModified": 1_700_000_000,
    })
}

fn build(project: &str, number: u32) -> Value {
    let variable = |name: &str, value: &str| json!({"name": name, "value": value, "type": "PLAINTEXT"});
    json!({
        "id": format!("{project}:{number}"), "projectName": project, "buildStatus": "SUCCEEDED",
        "startTime": 1_790_000_000 + number, "resolvedSourceVersion": "ab".repeat(20),
        "initiator": "stoker-StartBuildRole-1X/stoker-start-build", "source": {"type": "GITHUB"},
        "environment": {"type": "LINUX_CONTAINER", "image": "i", "computeType": "BUILD_GENERAL1_SMALL",
            "environmentVariables": [
                variable("IMAGE", "app"),
                variable("STOKER_LINE", "main"),
                variable("STOKER_CACHE_FROM", "type=registry,ref=x"),
            ]},
    })
}

fn allow(env: &mut TestEnvironment, role_name: &str, actions: &[&str], resource: &str) {
    let may = |action: &&str| (role(role_name), format!("ecr:{action}"), resource.to_owned());
    env.allowed.extend(actions.iter().map(may));
}

/// An account in which all is as it should be, with the border between builds and lines.
async fn sound() -> Account {
    let account = Account::start().await;
    let main = cache(
        "main",
        &[("base", 100), ("main", 10)],
        &json!({"stoker.project": "app", "stoker.line": "main",
        "stoker.commit": "11".repeat(20), "stoker.build": "app:7", "stoker.built-at": "2026-01-02T03:04:05Z",
        "stoker.reused-percent": "80"}),
    );
    account.push(LINES, &main, &["app.main", &format!("app.commit.{}", "11".repeat(20))], 3);
    account.push(EXPORTS, &cache("export", &[("main", 10)], &json!({})), &["app.export.k1"], 3);
    let mut env = account.env();
    env.blob_mounting = "ENABLED".to_owned();
    env.repositories.insert(LINES.to_owned(), repository(LINES, "MUTABLE"));
    env.repositories.insert(EXPORTS.to_owned(), repository(EXPORTS, "IMMUTABLE"));
    for name in [LINES, EXPORTS] {
        env.lifecycles.insert(name.to_owned(), SAFETY_NET.to_owned());
    }
    env.projects = vec!["app".to_owned(), "app-forks".to_owned()];
    env.codebuild = vec![project("app", "builds"), project("app-forks", "forks")];
    env.builds = vec![build("app", 2), build("app", 1), build("app-forks", 1)];
    let read = ["BatchGetImage", "GetDownloadUrlForLayer", "BatchCheckLayerAvailability"];
    for role_name in ["builds", "forks"] {
        allow(&mut env, role_name, &["GetAuthorizationToken"], "*");
        allow(&mut env, role_name, &read, &arn(LINES));
    }
    let write = ["InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload", "PutImage"];
    allow(&mut env, "builds", &[&read[..], &write].concat(), &arn(EXPORTS));
    let parameters = [
        ("CacheRepositoryPrefix", "stoker"),
        ("BuildsRepositoryPrefix", "stoker-builds"),
        ("BuildProjectPattern", "*"),
    ];
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (name, status) = ("stoker".to_owned(), "CREATE_COMPLETE".to_owned());
    env.stack = Some(Stack { name, status, parameters: parameters.into() });
    for name in [
        "EnforceRetention",
        "PromoteCache",
        "ReceiveCodecommit",
        "ReceiveWebhook",
        "ResolveCache",
        "StartBuild",
        "WarmMain",
    ] {
        env.resources.push((name.to_owned(), "AWS::Lambda::Function".to_owned(), format!("stoker-{name}")));
    }
    for name in ["DeadLetters", "PromotionDeadLetters", "PromotionQueue", "StartQueue"] {
        let url = format!("https://sqs.eu-west-1.amazonaws.com/123456789012/stoker-{name}-1X");
        env.resources.push((name.to_owned(), "AWS::SQS::Queue".to_owned(), url.clone()));
        env.messages.insert(url, 0);
    }
    let policy = (
        "BuildPolicy".to_owned(),
        "AWS::IAM::ManagedPolicy".to_owned(),
        "arn:aws:iam::1:policy/p".to_owned(),
    );
    env.resources.push(policy);
    drop(env);
    account
}

fn json_of(ran: &Ran, code: i32) -> Value {
    assert_eq!(ran.code, code, "{}{}", ran.out, ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

/// What is not ok: the thing, the check and its state.
fn reported(report: &Value) -> Vec<String> {
    let groups = report["groups"].as_array().unwrap();
    let checks = groups
        .iter()
        .flat_map(|group| group["checks"].as_array().unwrap().iter().map(move |check| (group, check)));
    let bad = checks.filter(|(_, check)| check["state"] != "ok");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let name = |group: &Value| match text(&group["kind"]).as_str() {
        kind @ ("account" | "assumptions") => kind.to_owned(),
        kind => format!("{kind} {}", text(&group["name"])),
    };
    bad.map(|(group, check)| {
        assert!(check["repair"].is_string(), "{check}");
        format!("{}: {} {}", name(group), text(&check["check"]), text(&check["state"]))
    })
    .collect()
}

async fn examined(account: &Account, code: i32) -> Vec<String> {
    reported(&json_of(&account.stoker(POLICY, "doctor --policy POLICY --json").await, code))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_account_is_sound_and_left_as_it_is() {
    let account = sound().await;
    let report = json_of(&account.stoker(POLICY, "doctor --policy POLICY --json").await, 0);
    assert_eq!(reported(&report), [""; 0]);
    assert_eq!(report["counts"]["wrong"], 0);
    assert_eq!(
        report["counts"]["ok"].as_u64().unwrap(),
        report["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| group["checks"].as_array().unwrap().len() as u64)
            .sum::<u64>()
    );
    let reads = ["Get", "Describe", "List", "BatchGet", "BatchCheck", "Simulate"];
    let calls = account.env().calls.clone();
    assert!(calls.iter().all(|call| reads.iter().any(|read| call.starts_with(read))), "{calls:?}");

    let ran = account.stoker(POLICY, "doctor --policy POLICY").await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{}", ran.err);
    for line in [
        "account 123456789012 in eu-west-1\n",
        "  ok       blob mounting  ENABLED\n",
        "stack stoker\n",
        "repository stoker/app\n",
        "project app-forks\n",
        "assumptions that the account shows\n",
        " 0 warn, 0 wrong, 0 unknown\n",
    ] {
        assert!(ran.out.contains(line), "{line}: {}", ran.out);
    }
}

type Change = Box<dyn FnOnce(&mut TestEnvironment) + Send>;

fn of_project(name: &'static str, pointer: &'static str, value: Value) -> Change {
    Box::new(move |env| {
        let project = env.codebuild.iter_mut().find(|project| project["name"] == name).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        project.pointer_mut(parent).unwrap()[key] = value;
    })
}

fn of_repository(name: &'static str, key: &'static str, value: Value) -> Change {
    Box::new(move |env| env.repositories.get_mut(name).unwrap()[key] = value)
}

fn of_stack(parameter: &'static str, value: &'static str) -> Change {
    Box::new(move |env| {
        let stack = env.stack.as_mut().unwrap();
        stack.parameters.insert(parameter.to_owned(), value.to_owned());
    })
}

/// Each change of a sound account is told by one check, and by no other.
async fn each_alone(defects: Vec<(Change, &str)>) {
    for (change, expected) in defects {
        let account = sound().await;
        change(&mut account.env());
        let code = i32::from(expected.ends_with(" wrong"));
        assert_eq!(examined(&account, code).await, [expected]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_defect_of_account_and_stack_is_reported_by_its_own_check_alone() {
    each_alone(vec![
        (Box::new(|env| env.blob_mounting = "DISABLED".into()), "account: blob mounting wrong"),
        (Box::new(|env| env.is_behind = 3600), "account: clock wrong"),
        (
            Box::new(|env| env.stack.as_mut().unwrap().status = "ROLLBACK_FAILED".into()),
            "stack stoker: deployed wrong",
        ),
        (Box::new(|env| env.stack = None), "stack stoker: deployed wrong"),
        (
            Box::new(|env| env.resources.retain(|(name, ..)| name != "WarmMain")),
            "stack stoker: functions wrong",
        ),
        (Box::new(|env| *env.messages.values_mut().next().unwrap() = 2), "stack stoker: dead letters wrong"),
        (of_stack("CacheRepositoryPrefix", "caches"), "repository stoker/app: prefix wrong"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_defect_of_repositories_is_reported_by_its_own_check_alone() {
    each_alone(vec![
        (of_repository(LINES, "imageTagMutability", json!("IMMUTABLE")), "repository stoker/app: tags wrong"),
        (
            of_repository(EXPORTS, "imageTagMutability", json!("MUTABLE")),
            "repository stoker-builds/app: tags wrong",
        ),
        (
            of_repository(LINES, "imageScanningConfiguration", json!({"scanOnPush": true})),
            "repository stoker/app: scanning warn",
        ),
        (
            of_repository(
                EXPORTS,
                "encryptionConfiguration",
                json!({"encryptionType": "KMS", "kmsKey": "k"}),
            ),
            "repository stoker-builds/app: encryption wrong",
        ),
        (
            Box::new(|env| {
                let rule = SAFETY_NET.replace("*.export.*", "app.*");
                env.lifecycles.insert(LINES.to_owned(), rule);
            }),
            "repository stoker/app: lifecycle wrong",
        ),
        (
            Box::new(|env| {
                let text = json!({"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "ecr:*"}]});
                env.access.insert(LINES.to_owned(), text.to_string());
            }),
            "repository stoker/app: access wrong",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_defect_of_projects_is_reported_by_its_own_check_alone() {
    each_alone(vec![
        (of_project("app", "/environment/privilegedMode", json!(false)), "project app: environment wrong"),
        (of_project("app", "/source/buildspec", json!("ci/build.yml")), "project app: buildspec unknown"),
        (
            of_project("app", "/source/buildspec", json!(SPEC.replace("$STOKER_CACHE_FLAGS", ""))),
            "project app: buildspec wrong",
        ),
        (
            of_project(
                "app",
                "/source/buildspec",
                json!(SPEC.replace("docker buildx create --use $STOKER_BUILDER_FLAGS", "true")),
            ),
            "project app: builder wrong",
        ),
        (
            of_project("app", "/source/location", json!("https://github.com/example/else")),
            "project app: source wrong",
        ),
        (
            of_project("app", "/webhook", json!({"filterGroups": [[{"type": "EVENT", "pattern": "PUSH"}]]})),
            "project app: webhook warn",
        ),
        (
            of_project("app", "/cache", json!({"type": "LOCAL", "modes": ["LOCAL_DOCKER_LAYER_CACHE"]})),
            "project app: local cache warn",
        ),
        (of_project("app", "/timeoutInMinutes", json!(2000)), "project app: lease warn"),
        (of_project("app", "/concurrentBuildLimit", json!(1)), "project app: concurrency warn"),
        (
            Box::new(|env| env.allowed.retain(|(_, action, _)| action != "ecr:PutImage")),
            "project app: role writes wrong",
        ),
        (
            Box::new(|env| allow(env, "builds", &["PutImage"], &arn(LINES))),
            "project app: role's border wrong",
        ),
        (
            Box::new(|env| allow(env, "builds", &["ListImages"], &arn(EXPORTS))),
            "project app: role's border wrong",
        ),
        (
            Box::new(|env| allow(env, "forks", &["PutImage"], &arn(EXPORTS))),
            "project app-forks: role's border wrong",
        ),
        (of_stack("BuildProjectPattern", "app"), "project app-forks: pattern wrong"),
    ])
    .await;
    let forks = "project app-forks";
    let account = sound().await;
    account.env().codebuild.retain(|project| project["name"] != "app-forks");
    assert_eq!(examined(&account, 1).await, [format!("{forks}: exists wrong")]);
    let account = sound().await;
    account.env().codebuild[1]["serviceRole"] = json!(role("builds"));
    let reported = examined(&account, 1).await;
    assert_eq!(reported, [format!("{forks}: own role wrong"), format!("{forks}: role's border wrong")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn defects_of_lines_are_reported() {
    let account = sound().await;
    let digest = account.digests(LINES).remove(0);
    account.env().archived.push(digest);
    let reported = examined(&account, 1).await;
    assert!(reported.contains(&"repository stoker/app: archived wrong".to_owned()), "{reported:?}");
    let account = sound().await;
    account.env().missing_layers.push(Digest::of(b"base").to_string());
    let reported = examined(&account, 1).await;
    assert_eq!(reported, ["repository stoker/app: layers wrong", "assumptions: layer availability unknown"]);
    let account = sound().await;
    let cold = cache(
        "cold",
        &[("base", 100)],
        &json!({"stoker.project": "app", "stoker.commit": "22".repeat(20),
        "stoker.build": "app:8", "stoker.built-at": "2026-01-03T03:04:05Z", "stoker.reused-percent": "0"}),
    );
    account.env().images.get_mut(LINES).unwrap().clear();
    account.push(LINES, &cold, &["app.main", &format!("app.commit.{}", "22".repeat(20)), "v1"], 1);
    assert_eq!(
        examined(&account, 0).await,
        ["repository stoker/app: other tags warn", "project app: cache hit rate warn"]
    );
    account.env().repositories.remove(LINES);
    let reported = examined(&account, 1).await;
    assert!(reported.contains(&"repository stoker/app: exists wrong".to_owned()), "{reported:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_aws_contradicts_is_reported() {
    for (change, expected) in [
        (json!({"resolvedSourceVersion": "ab12"}), "assumptions: resolved commits wrong"),
        (json!({"environment": {"environmentVariables": []}}), "assumptions: overrides in answers wrong"),
    ] {
        let account = sound().await;
        for (key, value) in change.as_object().unwrap() {
            if key == "environment" {
                account.env().builds[0][key]["environmentVariables"] = json!([]);
            } else {
                account.env().builds[0][key] = value.clone();
            }
        }
        assert_eq!(examined(&account, 1).await, [expected]);
    }
    let account = sound().await;
    account.env().builds[0]["environment"]["environmentVariables"].as_array_mut().unwrap().remove(0);
    assert_eq!(examined(&account, 1).await, ["assumptions: merged variables wrong"]);
    let account = sound().await;
    for build in &mut account.env().builds {
        build["initiator"] = json!("stoker");
    }
    assert_eq!(examined(&account, 1).await, ["assumptions: initiators wrong"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_looked_at_is_unknown_and_says_why() {
    for (call, action, expected) in [
        ("GetAccountSetting", "ecr:GetAccountSetting", "account: blob mounting unknown"),
        ("DescribeStacks", "cloudformation:DescribeStacks", "stack stoker: deployed unknown"),
        ("ListStackResources", "cloudformation:ListStackResources", "stack stoker: functions unknown"),
        ("GetQueueAttributes", "sqs:GetQueueAttributes", "stack stoker: queue unknown"),
        ("DescribeRepositories", "ecr:DescribeRepositories", "repository stoker/app: settings unknown"),
        ("GetLifecyclePolicy", "ecr:GetLifecyclePolicy", "repository stoker/app: lifecycle unknown"),
        ("GetRepositoryPolicy", "ecr:GetRepositoryPolicy", "repository stoker/app: access unknown"),
        ("DescribeImages", "ecr:DescribeImages", "repository stoker/app: images unknown"),
        ("BatchGetImage", "ecr:BatchGetImage", "repository stoker/app: import unknown"),
        (
            "BatchCheckLayerAvailability",
            "ecr:BatchCheckLayerAvailability",
            "repository stoker/app: layers unknown",
        ),
        ("BatchGetProjects", "codebuild:BatchGetProjects", "project app: settings unknown"),
        ("SimulatePrincipalPolicy", "iam:SimulatePrincipalPolicy", "project app: role reads unknown"),
        ("ListBuildsForProject", "codebuild:ListBuildsForProject", "project app: recent builds unknown"),
        ("BatchGetBuilds", "codebuild:BatchGetBuilds", "project app: recent builds unknown"),
    ] {
        let account = sound().await;
        account.env().failing.push((call.to_owned(), 99, "AccessDeniedException"));
        let report = json_of(&account.stoker(POLICY, "doctor --policy POLICY --json").await, 0);
        let reported = reported(&report);
        assert!(reported.contains(&expected.to_owned()), "{call}: {reported:?}");
        assert!(reported.iter().all(|reported| reported.ends_with(" unknown")), "{call}: {reported:?}");
        assert!(
            report.to_string().contains(&format!("allow {action} to whoever runs this")),
            "{call}: {report}"
        );
        let ran = account.stoker(POLICY, "doctor --policy POLICY").await;
        assert!(!ran.out.contains('\u{1b}'), "{}", ran.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_does_not_answer_is_no_account() {
    let account = sound().await;
    account.env().failing.push(("GetAccountSetting".to_owned(), 99, "UnrecognizedClientException"));
    let ran = account.stoker(POLICY, "doctor --policy POLICY").await;
    assert_eq!(
        (ran.code, ran.err.contains("aws sts get-caller-identity")),
        (3, true),
        "{}{}",
        ran.out,
        ran.err
    );
    let nowhere = [("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_MAX_ATTEMPTS", "1")];
    let ran = account.stoker_in(POLICY, "doctor --policy POLICY", &nowhere).await;
    assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hostile_is_printed_escaped() {
    let account = sound().await;
    let bad = "\u{1b}[2J\u{202e}";
    {
        let mut env = account.env();
        env.lifecycles
            .insert(LINES.to_owned(), SAFETY_NET.replace("untagged", &format!("x{}", "\\u001b[2J")));
        env.access.insert(
            LINES.to_owned(),
            json!({"Statement": [{"Effect": "Allow",
            "Principal": {"AWS": bad}, "Action": "*"}]})
            .to_string(),
        );
        env.codebuild[0]["source"]["buildspec"] =
            json!(format!("{SPEC}      - docker buildx build --cache-to={bad} .\n"));
        env.codebuild[0]["source"]["location"] = json!(format!("https://github.com/{bad}"));
        env.codebuild[0]["environment"]["image"] = json!(bad);
        env.codebuild[0]["environment"]["environmentVariables"][0]["name"] = json!(format!("STOKER_{bad}"));
        env.codebuild[1]["source"]["buildspec"] = json!(format!("ci/{bad}.yml"));
        env.images.get_mut(LINES).unwrap()[0].1.tags.push(bad.to_owned());
        env.builds[0]["resolvedSourceVersion"] = json!(bad);
    }
    for line in ["doctor --policy POLICY", "doctor --policy POLICY --json"] {
        let ran = account.stoker(POLICY, line).await;
        assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
        assert!(!ran.out.contains(['\u{1b}', '\u{202e}']), "{}", ran.out);
        assert!(!ran.out.contains("\\u001b") && ran.out.contains("u{1b}[2J"), "{}", ran.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_project_or_repository_can_be_chosen() {
    let account = sound().await;
    let two = format!("{POLICY}  - name: web\n    repository: github.com/example/web\n");
    let names = |report: &Value| {
        let groups = report["groups"].as_array().unwrap().iter();
        groups.map(|group| group["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()[2..].to_vec()
    };
    let last = "that the account shows";
    let report = json_of(&account.stoker(&two, "doctor --policy POLICY --json --project app").await, 0);
    assert_eq!(names(&report), [EXPORTS, LINES, "app", "app-forks", last]);
    let report =
        json_of(&account.stoker(&two, "doctor --policy POLICY --json --repository stoker/web").await, 1);
    assert_eq!(names(&report), ["stoker/web", "web", last]);
    for (line, said) in [
        ("doctor --policy POLICY --project nobody", "the policy has no project nobody"),
        (
            "doctor --policy POLICY --repository stoker/none",
            "no project of the policy has caches in stoker/none",
        ),
        ("doctor --policy /nowhere.yaml", "cannot"),
    ] {
        let ran = account.stoker(&two, line).await;
        assert_eq!((ran.code, ran.err.contains(said)), (2, true), "{line}: {}", ran.err);
    }
    let globs = two.replace("name: web", "name: \"web*\"").replace("example/web", "example/{project}");
    account.env().failing.push(("ListProjects".to_owned(), 99, "AccessDeniedException"));
    let report = json_of(&account.stoker(&globs, "doctor --policy POLICY --json").await, 0);
    assert_eq!(reported(&report), ["account: projects of globs unknown"]);
}
