//! An account full of projects is looked at, some are taken into service, and out of it: each run of the tool once as
//! it is meant, and once killed after each of its calls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::aws::{Account, Fuse, Stack};
use crate::forge::{Forge, Repository, SECRET, TOKEN};

const URL: &str = "https://hook.example/";
const ROLE: &str = "builds";
const POLICY_ARN: &str = "arn:aws:iam::123456789012:policy/stoker-BuildPolicy";
const SPEC: &str = "version: 0.2
phases:
  pre_build:
    commands:
      - aws ecr get-login-password | docker login --username AWS --password-stdin $REGISTRY
  build:
    commands: # ours
      - docker build -t $IMAGE .
      - docker push $IMAGE
";
const POLICY: &str = "version: 1 # ours
projects:
  - name: other
    repository: github.com/example/other
# The end
";

/// A directory with a policy.
struct Desk(PathBuf);

impl Desk {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("stoker-onboard-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("policy.yaml"), POLICY).unwrap();
        Self(path)
    }

    fn policy(&self) -> String {
        std::fs::read_to_string(self.0.join("policy.yaml")).unwrap()
    }

    /// Its files, by name.
    fn files(&self) -> BTreeMap<String, String> {
        fn read(path: &Path, into: &mut BTreeMap<String, String>) {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    read(&path, into);
                } else {
                    into.insert(path.display().to_string(), std::fs::read_to_string(&path).unwrap());
                }
            }
        }
        let mut files = BTreeMap::new();
        read(&self.0, &mut files);
        files
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Ran {
    /// `None` where it was killed.
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs a step at a desk, until its end or until the fuse blows.
async fn run(desk: &Desk, account: &Account, forge: Option<&Forge>, fuse: &Arc<Fuse>, line: &str) -> Ran {
    account.env().fuse = Some(Arc::clone(fuse));
    let mut command = Command::new(env!("CARGO_BIN_EXE_stoker"));
    command.arg("onboard").args(line.split_whitespace()).current_dir(&desk.0).env_clear();
    command.env("AWS_ENDPOINT_URL", format!("http://{}", account.address)).env("AWS_REGION", "eu-west-1");
    command.envs([
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]);
    if let Some(forge) = forge {
        forge.state().fuse = Some(Arc::clone(fuse));
        command.args(["--forge-url", &format!("http://{}", forge.address)]);
        command.envs([("GITHUB_TOKEN", TOKEN), ("GITLAB_TOKEN", TOKEN), ("BITBUCKET_TOKEN", TOKEN)]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fuse = Arc::clone(fuse);
    let ran = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            if fuse.is_blown.load(Ordering::SeqCst) {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    });
    let ran = ran.await.unwrap();
    for hidden in [TOKEN, SECRET] {
        assert!(!ran.out.contains(hidden) && !ran.err.contains(hidden), "{}{}", ran.out, ran.err);
    }
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    ran
}

async fn ended(desk: &Desk, account: &Account, forge: Option<&Forge>, line: &str) -> String {
    let ran = run(desk, account, forge, &Fuse::at(None), line).await;
    assert_eq!(ran.code, Some(0), "{line}: {}{}", ran.out, ran.err);
    ran.out
}

fn project(name: &str, source: &str) -> Value {
    json!({
        "name": name,
        "arn": format!("arn:aws:codebuild:eu-west-1:123456789012:project/{name}"),
        "source": {"type": source, "location": format!("https://github.com/example/{name}.git"), "gitCloneDepth": 1},
        "environment": {"type": "LINUX_CONTAINER", "image": "aws/codebuild/standard:7.0",
            "computeType": "BUILD_GENERAL1_SMALL", "privilegedMode": true, "environmentVariables": []},
        "serviceRole": format!("arn:aws:iam::123456789012:role/{ROLE}"),
    })
}

fn with(mut project: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    project.pointer_mut(parent).unwrap()[key] = value;
    project
}

fn inline(name: &str, spec: &str) -> Value {
    with(project(name, "GITHUB"), "/source/buildspec", json!(spec))
}

fn filter(kind: &str, pattern: &str) -> Value {
    json!({"type": kind, "pattern": pattern})
}

/// An account with a stack and these projects.
async fn account(projects: Vec<Value>) -> Account {
    let account = Account::start().await;
    let mut env = account.env();
    env.projects = projects.iter().map(|project| project["name"].as_str().unwrap().to_owned()).collect();
    env.codebuild = projects;
    env.attached.insert(ROLE.to_owned(), vec!["arn:aws:iam::aws:policy/Other".to_owned()]);
    let (name, status) = ("stoker".to_owned(), "CREATE_COMPLETE".to_owned());
    env.stack =
        Some(Stack { name, status, parameters: [("SafetyNetDays".to_owned(), "30".to_owned())].into() });
    let outputs = [
        ("BuildPolicy", POLICY_ARN),
        ("WebhookUrl", URL),
        ("WebhookSecret", "arn:secret"),
        ("ResolveCacheFunction", "stoker-resolve-cache"),
    ];
    env.outputs = outputs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    drop(env);
    account
}

/// All that a run can change, as those say who are asked.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    projects: Vec<Value>,
    repositories: BTreeMap<String, Value>,
    lifecycles: BTreeMap<String, String>,
    tags: BTreeMap<String, Value>,
    attached: BTreeMap<String, Vec<String>>,
    forge: Option<Repository>,
    files: BTreeMap<String, String>,
}

fn seen(desk: &Desk, account: &Account, forge: Option<&Forge>) -> Seen {
    let env = account.env();
    Seen {
        projects: env.codebuild.clone(),
        repositories: env.repositories.clone(),
        lifecycles: env.lifecycles.clone(),
        tags: env.tags.clone(),
        attached: env.attached.clone(),
        forge: forge.map(|forge| forge.state().repository.clone()),
        files: desk.files(),
    }
}

/// An account with the kinds of projects that there are.
fn kinds() -> Vec<Value> {
    let environment = |name: &str, kind: &str| with(inline(name, SPEC), "/environment/type", json!(kind));
    vec![
        inline("ready", SPEC),
        project("in-source", "GITHUB"),
        environment("lambda", "LINUX_LAMBDA_CONTAINER"),
        environment("windows", "WINDOWS_SERVER_2022_CONTAINER"),
        with(inline("pipeline", SPEC), "/source/type", json!("CODEPIPELINE")),
        with(inline("unprivileged", SPEC), "/environment/privilegedMode", json!(false)),
        with(
            inline("server", SPEC),
            "/environment/dockerServer",
            json!({"computeType": "BUILD_GENERAL1_SMALL"}),
        ),
        inline("batch", &format!("{SPEC}batch:\n  build-list: []\n")),
        inline("no-image", "version: 0.2\nphases: { build: { commands: [cargo test] } }\n"),
        with(inline("old", SPEC), "/environment/image", json!("aws/codebuild/standard:5.0")),
        inline("compose", &SPEC.replace("docker build -t $IMAGE .", "docker compose build")),
        with(inline("vpc", SPEC), "/vpcConfig", json!({"vpcId": "vpc-1"})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_reads_every_project_and_says_what_is_in_the_way() {
    let account = account(kinds()).await;
    let at = |minutes: i64| jiff::Timestamp::now().as_second() - 60 * minutes;
    for number in 0..4 {
        account.env().builds.push(json!({
            "id": format!("ready:{number}"), "projectName": "ready", "buildStatus": "SUCCEEDED",
            "startTime": at(100 + number),
            "endTime": at(80 + number), "phases": [
                {"phaseType": "BUILD", "phaseStatus": "SUCCEEDED", "durationInSeconds": 600 + 60 * number},
                {"phaseType": "PRE_BUILD", "phaseStatus": "SUCCEEDED", "durationInSeconds": 30}],
        }));
    }
    let desk = Desk::new();
    let out = ended(&desk, &account, None, "audit --json --html audit.html").await;
    let report: Value = serde_json::from_str(&out).unwrap();
    let of = |name: &str| {
        let all = report["projects"].as_array().unwrap();
        all.iter().find(|of| of["project"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    for (name, verdict, word) in [
        ("ready", "ready", ""),
        ("in-source", "ready-after", "GITHUB_TOKEN is not set"),
        ("lambda", "cannot", "LAMBDA"),
        ("windows", "cannot", "WINDOWS"),
        ("pipeline", "cannot", "CODEPIPELINE"),
        ("unprivileged", "ready-after", "privileged"),
        ("server", "ready-after", "Docker server"),
        ("batch", "ready-after", "batch"),
        ("no-image", "cannot", "builds no image"),
        ("old", "ready-after", "standard:5.0"),
        ("compose", "ready-after", "docker compose"),
        ("vpc", "ready-after", "moby/buildkit"),
    ] {
        let of = of(name);
        assert_eq!(of["verdict"], verdict, "{of}");
        assert!(word.is_empty() || of["reasons"].to_string().contains(word), "{of}");
    }
    let ready = of("ready");
    assert_eq!(
        (&ready["builds"], &ready["atStake"], &ready["beyondFastest"]),
        (&json!(4), &json!(46), &json!(6))
    );
    assert_eq!(report["projects"][0]["project"], "ready", "what saves most comes first");
    let page = std::fs::read_to_string(desk.0.join("audit.html")).unwrap();
    assert!(page.contains("unprivileged") && !page.contains("<script"));
    let table = ended(&desk, &account, None, "audit --project ready --project b*").await;
    assert!(table.starts_with("PROJECT") && table.contains("2 projects in eu-west-1, 1 ready"), "{table}");
    let reads = ["Get", "Describe", "List", "BatchGet"];
    let calls = account.env().calls.clone();
    assert!(calls.iter().all(|call| reads.iter().any(|read| call.starts_with(read))), "{calls:?}");
}

/// A project with its buildspec in the source, and a webhook of CodeBuild's.
fn app() -> Value {
    let groups = json!([
        [filter("EVENT", "PUSH"), filter("HEAD_REF", "^refs/heads/main$")],
        [filter("EVENT", "PULL_REQUEST_CREATED, PULL_REQUEST_UPDATED")]
    ]);
    with(project("app", "GITHUB"), "/webhook", json!({"filterGroups": groups, "buildType": "BUILD"}))
}

/// What Stoker's start of a build looks like.
fn by_stoker(account: &Account) {
    let now = jiff::Timestamp::now().as_second();
    account
        .env()
        .builds
        .push(json!({"id": "app:9", "projectName": "app", "buildStatus": "SUCCEEDED", "startTime": now + 5,
        "initiator": "stoker-StartBuildRole-1X/stoker-start-build"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_shown_and_changes_nothing() {
    let account = account(vec![app(), inline("web", SPEC)]).await;
    let forge = Forge::start("github", &[("buildspec.yml", SPEC)]).await;
    let desk = Desk::new();
    let before = seen(&desk, &account, Some(&forge));
    let out = ended(&desk, &account, Some(&forge), "plan --policy policy.yaml --project app").await;
    for line in [
        "+  - name: app\n+    repository: github.com/example/app\n+    builds:\n+      on: \
         [pull-request-created, pull-request-updated]\n",
        "make: repository stoker/app in ECR",
        "make: policy arn:aws:iam::123456789012:policy/stoker-BuildPolicy of role builds",
        "make: webhook of github.com/example/app to https://hook.example/",
        "make: pull request in github.com/example/app for buildspec.yml",
        "note: pushes are built twice until",
        "note: pull requests of forks are not built",
        "-      - docker build -t $IMAGE .\n+      - test -z",
        "+      - docker ${STOKER_CACHE_FLAGS:+buildx} build ${STOKER_CACHE_FLAGS:+--load $STOKER_CACHE_FLAGS} \
         -t $IMAGE .",
        "1 project, 5 changes",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert_eq!(seen(&desk, &account, Some(&forge)), before);
    let out = ended(&desk, &account, None, "plan --policy policy.yaml --project web --observe --json").await;
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert!(plan["policy"].as_str().unwrap().contains("start: false"), "{plan}");
    let by_hand = plan["projects"][0]["byHand"].to_string();
    assert!(
        by_hand.contains("GITHUB_TOKEN is not set") && by_hand.contains("lambda:InvokeFunction"),
        "{by_hand}"
    );
    let patch = plan["projects"][0]["patch"].as_str().unwrap();
    assert!(patch.contains("+  exported-variables: [STOKER_LINE"), "{patch}");
    assert!(patch.contains("--function-name stoker-resolve-cache"), "{patch}");
    assert_eq!(seen(&desk, &account, Some(&forge)), before);
}

/// What a builder is made of has to be reachable from a VPC: a registry that the policy names is taken for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_goes_by_the_policys_defaults() {
    let account = account(vec![with(inline("vpc", SPEC), "/vpcConfig", json!({"vpcId": "vpc-1"}))]).await;
    let desk = Desk::new();
    let out = ended(&desk, &account, None, "plan --policy policy.yaml --project vpc").await;
    assert!(out.contains("not planned: see that builds in its VPC"), "{out}");
    let image = "defaults: { builder: { image: registry.example/buildkit:v0.25.2 } }\nprojects:";
    std::fs::write(desk.0.join("policy.yaml"), POLICY.replace("projects:", image)).unwrap();
    let out = ended(&desk, &account, None, "plan --policy policy.yaml --project vpc").await;
    assert!(out.contains("make: repository stoker/vpc in ECR"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_of_a_glob_get_one_rule_where_their_names_allow_it() {
    let account = account(vec![inline("team-a", SPEC), inline("team-b", SPEC)]).await;
    let desk = Desk::new();
    let before = seen(&desk, &account, None);
    ended(&desk, &account, None, "apply --policy policy.yaml --project team-* --yes").await;
    let rule = "  - name: \"team-*\"\n    repository: github.com/example/{project}\n";
    assert_eq!(desk.policy().matches(rule).count(), 1, "{}", desk.policy());
    assert_eq!(account.env().attached[ROLE].len(), 2);
    // What both have stays until the last is undone.
    ended(&desk, &account, None, "undo --project team-a --yes").await;
    assert!(desk.policy().contains(rule) && account.env().attached[ROLE].len() == 2);
    ended(&desk, &account, None, "undo --project team-b --yes").await;
    assert_eq!(seen(&desk, &account, None), before);
}

/// What one project was given and another found there stays until the last of them is undone.
#[tokio::test(flavor = "multi_thread")]
async fn what_projects_share_stays_until_the_last_is_undone() {
    let at_app = |name: &str| {
        with(inline(name, SPEC), "/source/location", json!("https://github.com/example/app.git"))
    };
    let account = account(vec![at_app("api"), at_app("web")]).await;
    let forge = Forge::start("github", &[]).await;
    let desk = Desk::new();
    let before = seen(&desk, &account, Some(&forge));
    for name in ["api", "web"] {
        ended(&desk, &account, Some(&forge), &format!("apply --policy policy.yaml --project {name} --yes"))
            .await;
    }
    ended(&desk, &account, Some(&forge), "undo --project api --yes").await;
    assert_eq!(account.env().attached[ROLE].len(), 2);
    assert!(forge.state().repository.hooks[&42].2);
    ended(&desk, &account, Some(&forge), "undo --project web --yes").await;
    assert_eq!(seen(&desk, &account, Some(&forge)), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_is_taken_back_and_what_somebody_changed_is_left() {
    let account = account(vec![inline("web", SPEC)]).await;
    let forge = Forge::start("github", &[]).await;
    let desk = Desk::new();
    let before = seen(&desk, &account, None);
    ended(&desk, &account, None, "apply --policy policy.yaml --project web --yes").await;
    let after = seen(&desk, &account, None);
    assert!(after.lifecycles["stoker/web"].contains("*.export.*"));
    assert_eq!(after.tags["stoker/web"], json!([{"Key": "stoker-onboard", "Value": "web"}]));
    assert!(after.projects[0]["source"]["buildspec"].as_str().unwrap().contains("STOKER_CACHE_FLAGS"));
    assert_eq!(after.projects[0]["source"]["gitCloneDepth"], 1, "the rest of its source stays");
    ended(&desk, &account, None, "apply --policy policy.yaml --project web --yes").await;
    assert_eq!(seen(&desk, &account, None), after, "once more");

    account.env().codebuild[0]["source"]["buildspec"] = json!("version: 0.2 # mine");
    account.env().tags.insert("stoker/web".to_owned(), json!([]));
    let ran = run(&desk, &account, None, &Fuse::at(None), "undo --project web --yes").await;
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("somebody has changed it since") && ran.out.contains("does not carry the tag"),
        "{}",
        ran.out
    );
    assert_eq!(account.env().codebuild[0]["source"]["buildspec"], "version: 0.2 # mine");
    account.env().codebuild[0]["source"]["buildspec"] = json!(SPEC);
    account.env().tags.insert("stoker/web".to_owned(), json!([{"Key": "stoker-onboard", "Value": "web"}]));
    ended(&desk, &account, None, "undo --project web --yes").await;
    assert_eq!(seen(&desk, &account, None), before);
    let ran = run(&desk, &account, Some(&forge), &Fuse::at(None), "undo --project web --yes").await;
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(forge.state().calls.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_whose_ping_is_not_answered_stays_switched_off() {
    let account = account(vec![app()]).await;
    let forge = Forge::start("github", &[("buildspec.yml", SPEC)]).await;
    forge.state().is_deaf = true;
    let desk = Desk::new();
    let before = seen(&desk, &account, Some(&forge));
    let ran =
        run(&desk, &account, Some(&forge), &Fuse::at(None), "apply --policy policy.yaml --project app --yes")
            .await;
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("its ping was not answered"), "{}", ran.out);
    assert!(!forge.state().repository.hooks[&42].2);
    forge.state().is_deaf = false;
    ended(&desk, &account, Some(&forge), "apply --policy policy.yaml --project app --yes").await;
    let hook = forge.state().repository.hooks[&42].clone();
    assert_eq!(hook, (URL.to_owned(), SECRET.to_owned(), true), "it sends, and still signs");
    ended(&desk, &account, Some(&forge), "undo --project app --yes").await;
    let mut expected = before;
    expected.forge.as_mut().unwrap().pulls = vec![(String::new(), "main".to_owned(), false)];
    let mut after = seen(&desk, &account, Some(&forge));
    after.forge.as_mut().unwrap().pulls[0].0.clear();
    assert_eq!(after, expected, "but for a pull request that is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a_forge_that_says_the_token_back() {
    let account = account(vec![app()]).await;
    let forge = Forge::start("github", &[("buildspec.yml", SPEC)]).await;
    let desk = Desk::new();
    // What is not authorized is answered with the token that came.
    account.env().codebuild[0]["source"]["location"] = json!("https://github.com/example/app\u{1b}[2J.git");
    let ran = run(&desk, &account, Some(&forge), &Fuse::at(None), "audit").await;
    assert!(!ran.out.contains('\u{1b}') && !ran.err.contains('\u{1b}'));
    let ran = run(&desk, &account, None, &Fuse::at(None), "audit --forge-url http://forge.example").await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

/// The webhook of CodeBuild's own goes only once Stoker has started a build, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn the_old_webhook_goes_last_and_comes_back_first() {
    let account = account(vec![app()]).await;
    let forge = Forge::start("github", &[("buildspec.yml", SPEC)]).await;
    let desk = Desk::new();
    let webhook = account.env().codebuild[0]["webhook"].clone();
    let line = "apply --policy policy.yaml --project app --take-over --yes";
    let out = ended(&desk, &account, Some(&forge), line).await;
    assert!(out.contains("its webhook stays until Stoker has started a build"), "{out}");
    assert_eq!(account.env().codebuild[0]["webhook"], webhook);
    by_stoker(&account);
    ended(&desk, &account, Some(&forge), line).await;
    assert!(account.env().codebuild[0].get("webhook").is_none());
    let mut calls = account.env().calls.len();
    ended(&desk, &account, Some(&forge), "undo --project app --yes").await;
    assert_eq!(account.env().codebuild[0]["webhook"], webhook);
    let env = account.env();
    let mut changes = env.calls.drain_from(&mut calls);
    assert_eq!(changes.next().as_deref(), Some("CreateWebhook"));
}

trait DrainFrom {
    fn drain_from(&self, from: &mut usize) -> std::vec::IntoIter<String>;
}

impl DrainFrom for Vec<String> {
    /// The calls that change something, of those after a place.
    fn drain_from(&self, from: &mut usize) -> std::vec::IntoIter<String> {
        let reads = ["Get", "Describe", "List", "BatchGet"];
        let changes = self[*from..].iter().filter(|call| !reads.iter().any(|read| call.starts_with(read)));
        changes.cloned().collect::<Vec<_>>().into_iter()
    }
}

/// What no policy can ask of a forge leaves the project's builds to itself, and its webhook where it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_said_of_a_webhook_is_named_and_nothing_is_taken_over() {
    let app = with(
        with(app(), "/source/type", json!("BITBUCKET")),
        "/source/location",
        json!("https://bitbucket.org/example/app"),
    );
    let account = account(vec![app]).await;
    by_stoker(&account);
    let forge = Forge::start("bitbucket", &[("buildspec.yml", SPEC)]).await;
    let desk = Desk::new();
    let out =
        ended(&desk, &account, Some(&forge), "plan --policy policy.yaml --project app --take-over").await;
    for line in [
        "+      start: false",
        "Bitbucket tells only twelve digits",
        "its webhook stays",
        "goes on starting its own",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert!(!out.contains("make: CodeBuild's own webhook"), "{out}");
}

/// A push is followed until a second build is warm; where it stops, what is wrong is said.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_success_is_seen() {
    let account = account(vec![inline("web", SPEC)]).await;
    let desk = Desk::new();
    ended(&desk, &account, None, "apply --policy policy.yaml --project web --yes").await;
    let start = jiff::Timestamp::now().as_second();
    let build = |number: u32| {
        let variable = |name: &str, value: &str| json!({"name": name, "value": value, "type": "PLAINTEXT"});
        json!({"id": format!("web:{number}"), "projectName": "web", "buildStatus": "SUCCEEDED",
            "startTime": start + 5 + i64::from(number), "endTime": start + 65 + i64::from(number),
            "initiator": "stoker-StartBuildRole-1X/stoker-start-build",
            "environment": {"type": "LINUX_CONTAINER", "image": "i", "computeType": "BUILD_GENERAL1_SMALL",
                "environmentVariables": [variable("STOKER_LINE", "branch/topic"), variable("STOKER_READS", "main")]}})
    };
    let line = |number: u32, reused: &str| {
        crate::aws::cache(
            "line",
            &[("base", 1)],
            &json!({"stoker.project": "web", "stoker.line": "branch/topic",
            "stoker.build": format!("web:{number}"), "stoker.commit": "11".repeat(20),
            "stoker.built-at": "2026-01-02T03:04:05Z", "stoker.reused-percent": reused}),
        )
    };
    account.env().builds = vec![build(1)];
    account.push("stoker/web", &line(1, "0"), &["web.branch.topic"], 0);
    let waits = "watch --policy policy.yaml --project web --minutes 0 --every 1";
    let ran = run(&desk, &account, None, &Fuse::at(None), waits).await;
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    for text in [
        "web:1 started for branch/topic, which reads main",
        "0 % of its steps",
        "no build of Stoker's has started",
        "checks:",
    ] {
        assert!(ran.out.contains(text), "{text}: {}{}", ran.out, ran.err);
    }
    account.env().builds.clear();
    let forge = Forge::start("github", &[]).await;
    account.env().codebuild[0]["source"]["location"] = json!("https://github.com/example/app.git");
    let ran = run(&desk, &account, Some(&forge), &Fuse::at(None), waits).await;
    assert!(ran.out.contains("next: make a webhook to https://hook.example/"), "{}{}", ran.out, ran.err);
    account.env().builds = vec![build(2)];
    account.env().images.clear();
    account.push("stoker/web", &line(2, "80"), &["web.branch.topic"], 0);
    let out = ended(&desk, &account, None, waits).await;
    assert!(out.contains("80 % of its steps were reused") && out.contains("web is warm"), "{out}");
}

/// After each call that leaves the process, it dies; run again, all ends as if it had not.
async fn killed_everywhere(kind: &'static str, app: Value) {
    const APPLY: &str = "apply --policy policy.yaml --project app --take-over --yes";
    const UNDO: &str = "undo --project app --yes";
    let fresh = || async {
        let account = account(vec![app.clone()]).await;
        by_stoker(&account);
        (Desk::new(), account, Forge::start(kind, &[("buildspec.yml", SPEC)]).await)
    };
    let plain = |desk: &Desk, mut seen: Seen| {
        let name = desk.0.display().to_string();
        seen.files = seen
            .files
            .into_iter()
            // When a record was begun differs from run to run.
            .map(|(path, text)| {
                let at = text.lines().filter(|line| !line.contains("\"at\": \"20"));
                (path.replace(&name, ""), at.collect::<Vec<_>>().join("\n"))
            })
            .collect();
        seen
    };
    let (desk, account, forge) = fresh().await;
    let before = plain(&desk, seen(&desk, &account, Some(&forge)));
    let fuse = Fuse::at(None);
    assert_eq!(run(&desk, &account, Some(&forge), &fuse, APPLY).await.code, Some(0));
    let calls = fuse.calls.load(Ordering::SeqCst);
    let applied = plain(&desk, seen(&desk, &account, Some(&forge)));
    assert_ne!(applied, before);
    let fuse = Fuse::at(None);
    assert_eq!(run(&desk, &account, Some(&forge), &fuse, UNDO).await.code, Some(0));
    let undoing = fuse.calls.load(Ordering::SeqCst);
    let mut undone = plain(&desk, seen(&desk, &account, Some(&forge)));
    assert_eq!(undone.projects, before.projects);
    // A closed pull request is all that is left.
    assert!(undone.forge.as_mut().unwrap().pulls.drain(..).all(|pull| !pull.2));
    assert_eq!(undone, before);
    assert!(calls > 20 && undoing > 8, "{calls} and {undoing}");

    for at in 1..=calls {
        let (desk, account, forge) = fresh().await;
        let ran = run(&desk, &account, Some(&forge), &Fuse::at(Some(at)), APPLY).await;
        assert_eq!(ran.code, None, "call {at}: {}", ran.out);
        // However it stands, the project's builds are what they were, or given caches.
        let spec = account.env().codebuild[0]["source"]["buildspec"].clone();
        assert!(spec.is_null() || spec == SPEC || spec.as_str().unwrap().contains("STOKER_"), "{spec}");
        assert!(account.env().codebuild[0].get("webhook").is_some() || forge.state().repository.hooks[&42].2);
        let ran = run(&desk, &account, Some(&forge), &Fuse::at(None), APPLY).await;
        assert_eq!(ran.code, Some(0), "again after call {at}: {}{}", ran.out, ran.err);
        assert_eq!(plain(&desk, seen(&desk, &account, Some(&forge))), applied, "call {at}");
        if at % 3 > 0 {
            continue;
        }
        // Cut off at another place each time.
        let ran = run(&desk, &account, Some(&forge), &Fuse::at(Some(1 + at % undoing)), UNDO).await;
        assert_eq!(ran.code, None, "undo after {at}");
        let ran = run(&desk, &account, Some(&forge), &Fuse::at(None), UNDO).await;
        if ran.code != Some(0) {
            // The record was gone already.
            assert!(ran.err.contains("has no record"), "{}{}", ran.out, ran.err);
        }
        let mut undone = plain(&desk, seen(&desk, &account, Some(&forge)));
        undone.forge.as_mut().unwrap().pulls.clear();
        assert_eq!(undone, before, "undone after {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_call_and_run_again_it_ends_the_same_on_github() {
    killed_everywhere("github", app()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_call_and_run_again_it_ends_the_same_on_gitlab() {
    let app = with(app(), "/source/type", json!("GITLAB"));
    killed_everywhere("gitlab", with(app, "/source/location", json!("https://gitlab.com/example/app.git")))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_call_and_run_again_it_ends_the_same_on_bitbucket() {
    let app = with(app(), "/source/type", json!("BITBUCKET"));
    killed_everywhere(
        "bitbucket",
        with(app, "/source/location", json!("https://bitbucket.org/example/app.git")),
    )
    .await;
}
