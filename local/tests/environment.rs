//! All local stand-ins with the simulated builder: the API, builds from a git repository, events.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may panic too")]

mod common;

use std::time::Duration;

use axum::http::Method;
use common::{Dir, Fake, git, write_sources};
use serde_json::{Value, json};
use stoker_local::builder::STILLBORN;
use stoker_local::http::Http;
use stoker_local::serve::{BuilderKind, Local, Options};

const BUILDSPEC: &str = "\
version: 0.2
env:
  variables: {GREETING: hello}
  exported-variables: [COMMIT]
phases:
  pre_build:
    commands:
      - COMMIT=$CODEBUILD_RESOLVED_SOURCE_VERSION
      - echo \"$GREETING $NAME from $(git rev-parse HEAD)\"
  build:
    commands:
      - docker buildx build $STOKER_CACHE_FLAGS -t app .
  post_build:
    commands:
      - echo \"succeeding=$CODEBUILD_BUILD_SUCCEEDING\"
";

struct Scenario {
    dir: Dir,
    fake: Fake,
    local: Local,
    http: Http,
}

impl Scenario {
    async fn begin() -> Self {
        let dir = Dir::new();
        let repository = dir.0.join("app");
        write_sources(&repository);
        dir.write("app/buildspec.yml", BUILDSPEC);
        git(&repository, &["init", "-q", "-b", "main", "."]);
        git(&repository, &["add", "-A"]);
        git(&repository, &["commit", "-q", "-m", "one"]);
        // A clone by a path holds every object; one by a URL holds what it was given.
        let url = format!("file://{}", repository.display());
        let projects = json!([
            {"name": "app", "source": repository, "environment": {"NAME": "project", "GREETING": "hi"}},
            {"name": "remote", "source": url},
        ]);
        dir.write("projects.json", &projects.to_string());
        let fake = Fake::start().await;
        let local = Local::start(Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            aws: format!("http://{}", fake.address),
            registry: fake.address.to_string(),
            projects: dir.0.join("projects.json"),
            state: dir.0.join("state"),
            builder: BuilderKind::Simulated,
            machines: std::num::NonZeroU8::MIN,
            base_image: None,
            program: Some(env!("CARGO_BIN_EXE_stoker-local").into()),
        })
        .await
        .unwrap();
        Self { dir, fake, local, http: Http::default() }
    }

    async fn ask(&self, method: Method, path: &str, target: &str, body: &Value) -> Value {
        let url = format!("http://{}{path}", self.local.address());
        let target = format!("CodeBuild_20161006.{target}");
        let headers = [("x-amz-target", target.as_str()), ("content-type", "application/json")];
        let reply = self.http.send(method, &url, &headers, body.to_string()).await.unwrap();
        serde_json::from_slice(&reply.body).unwrap_or_else(|_| panic!("{}", reply.text()))
    }

    async fn call(&self, action: &str, body: Value) -> Value {
        self.ask(Method::POST, "/", action, &body).await
    }

    async fn builds(&self) -> Vec<Value> {
        self.ask(Method::GET, "/control/builds", "", &json!({})).await.as_array().unwrap().clone()
    }

    async fn start(&self, from: &str, to: &str) -> String {
        let how = "mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true";
        let (from, to) = (self.fake.reference(from), self.fake.reference(to));
        let flags = format!("--cache-from type=registry,ref={from} --cache-to type=registry,ref={to},{how}");
        let variables = json!([
            {"name": "STOKER_CACHE_FLAGS", "value": flags, "type": "PLAINTEXT"},
            {"name": "NAME", "value": "override"},
        ]);
        let ask = json!({
            "projectName": "app",
            "sourceVersion": "main",
            "environmentVariablesOverride": variables,
        });
        self.call("StartBuild", ask).await["build"]["id"].as_str().unwrap().to_owned()
    }

    async fn eventually<T>(&self, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        for _ in 0..200 {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what} did not come to pass");
    }

    async fn over(&self, id: &str) -> Value {
        self.eventually("the end of the build", async || {
            let build = self.call("BatchGetBuilds", json!({"ids": [id]})).await["builds"][0].clone();
            (build["buildComplete"] == true).then_some(build)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_is_built_cold_and_the_next_warm() {
    let scenario = Scenario::begin().await;
    let first = scenario.start("x1", "x1").await;
    let second = scenario.start("x1", "x2").await;
    let build = scenario.over(&first).await;
    assert_eq!(build["buildStatus"], "SUCCEEDED");
    assert_eq!(build["resolvedSourceVersion"].as_str().unwrap().len(), 40);
    assert_eq!(build["exportedEnvironmentVariables"][0]["value"], build["resolvedSourceVersion"]);
    assert_eq!(build["phases"].as_array().unwrap().last().unwrap()["phaseType"], "COMPLETED");
    scenario.over(&second).await;

    let builds = scenario.builds().await;
    assert_eq!([&builds[0]["id"], &builds[1]["id"]], [&json!(first), &json!(second)]);
    assert_eq!([&builds[0]["steps"], &builds[0]["reused"]], [10, 0]);
    assert_eq!([&builds[1]["steps"], &builds[1]["reused"]], [10, 10]);
    assert!(builds[0]["build_seconds"].as_f64().unwrap() > 0.2);
    assert!(builds[0]["env"]["STOKER_CACHE_FLAGS"].is_string());
    assert_eq!(builds[0]["env"].as_object().unwrap().len(), 1);

    let log = std::fs::read_to_string(builds[0]["log"].as_str().unwrap()).unwrap();
    let commit = builds[0]["commit"].as_str().unwrap();
    assert!(log.contains(&format!("hi override from {commit}")), "{log}");
    assert!(log.contains("succeeding=1"), "{log}");
    assert!(!log.contains("@stoker-local"), "{log}");

    // Both pushes of a cache are events too, but the rule is for builds only.
    let events = scenario
        .eventually("the events", async || {
            let events = scenario.ask(Method::GET, "/control/events", "", &json!({})).await;
            (events.as_array().unwrap().len() == 6).then_some(events)
        })
        .await;
    let journal = std::fs::read_to_string(scenario.dir.0.join("state/events.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), 6);
    let reported =
        |kind: &str| events.as_array().unwrap().iter().filter(|e| e["detail-type"] == kind).count();
    assert_eq!((reported("CodeBuild Build State Change"), reported("ECR Image Action")), (4, 2));
    let messages = || scenario.fake.store.lock().unwrap().messages.clone();
    scenario.eventually("the deliveries", async || (messages().len() == 4).then_some(())).await;
    let statuses = |messages: &[Value]| -> Vec<Value> {
        messages.iter().map(|m| m["detail"]["build-status"].clone()).collect()
    };
    let order = ["IN_PROGRESS", "IN_PROGRESS", "SUCCEEDED", "SUCCEEDED"];
    assert_eq!(statuses(&messages()), order);

    let replayed = scenario.ask(Method::POST, "/control/replay", "", &json!({"order": "reverse"})).await;
    assert_eq!(replayed, json!({"replayed": 6}));
    scenario.eventually("the replay", async || (messages().len() == 8).then_some(())).await;
    assert_eq!(messages()[4], messages()[3]);
    scenario.local.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_build_tells_why_and_post_build_still_ran() {
    let scenario = Scenario::begin().await;
    let ask = json!({
        "projectName": "app",
        "buildspecOverride":
            "version: 0.2\nphases:\n  build:\n    commands: [exit 3]\n  post_build:\n    commands: [echo after]\n",
    });
    let id = scenario.call("StartBuild", ask).await["build"]["id"].as_str().unwrap().to_owned();
    let build = scenario.over(&id).await;
    assert_eq!(build["buildStatus"], "FAILED");
    let phases = build["phases"].as_array().unwrap();
    let phase = phases.iter().find(|p| p["phaseType"] == "BUILD").unwrap();
    assert_eq!(phase["phaseStatus"], "FAILED");
    assert!(phase["contexts"][0]["message"].as_str().unwrap().contains("exit status 3"));
    let log = scenario.builds().await[0]["log"].as_str().unwrap().to_owned();
    assert!(std::fs::read_to_string(log).unwrap().contains("\nafter\n"));

    let ask = json!({"projectName": "app", "sourceVersion": "no-such-branch"});
    let id = scenario.call("StartBuild", ask).await["build"]["id"].as_str().unwrap().to_owned();
    assert_eq!(scenario.over(&id).await["buildStatus"], "FAILED");
    scenario.local.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_whose_container_did_not_start_is_made_once_more() {
    let scenario = Scenario::begin().await;
    for (tries, status) in [(1, "SUCCEEDED"), (2, "FAILED")] {
        let mark = scenario.dir.0.join(format!("tried-{tries}"));
        let spec = format!(
            "version: 0.2\nphases:\n  build:\n    commands:\n      - echo x >> {mark}\n      \
             - \"test $(wc -l < {mark}) -gt {tries} || (echo '{STILLBORN}'; exit 1)\"\n",
            mark = mark.display()
        );
        let ask = json!({ "projectName": "app", "buildspecOverride": spec });
        let id = scenario.call("StartBuild", ask).await["build"]["id"].as_str().unwrap().to_owned();
        let build = scenario.over(&id).await;
        assert_eq!(build["buildStatus"], status, "{build:#}");
        let phases = build["phases"].as_array().unwrap();
        assert_eq!(phases.iter().filter(|phase| phase["phaseType"] == "BUILD").count(), 1);
        assert_eq!(std::fs::read_to_string(mark).unwrap(), "x\nx\n");
    }
    scenario.local.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_are_stopped_and_time_is_limited_by_whoever_asks() {
    let scenario = Scenario::begin().await;
    let marker = scenario.dir.0.join("runs");
    let spec = format!(
        "version: 0.2\nphases:\n  build:\n    commands: ['sleep 60 & echo $! > {}; wait']\n",
        marker.display()
    );
    let ask = json!({"projectName": "app", "buildspecOverride": spec});
    let running = scenario.call("StartBuild", ask.clone()).await["build"]["id"].as_str().unwrap().to_owned();
    let queued = scenario.call("StartBuild", ask).await["build"]["id"].as_str().unwrap().to_owned();
    scenario
        .eventually("the build phase", async || {
            let build = scenario.call("BatchGetBuilds", json!({"ids": [running]})).await;
            (build["builds"][0]["currentPhase"] == "BUILD").then_some(())
        })
        .await;
    let process = scenario
        .eventually("the command", async || {
            let id = std::fs::read_to_string(&marker).unwrap_or_default();
            id.ends_with('\n').then(|| id.trim().to_owned())
        })
        .await;
    let is_there = || {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    assert!(is_there() || !std::path::Path::new("/proc/self").exists());
    scenario.call("StopBuild", json!({"id": queued})).await;
    scenario.call("StopBuild", json!({"id": running})).await;
    for id in [&queued, &running] {
        assert_eq!(scenario.over(id).await["buildStatus"], "STOPPED");
    }
    assert!(!is_there(), "what the build ran has ended with it");
    let stopped = || {
        let messages = scenario.fake.store.lock().unwrap().messages.clone();
        let stopped = messages.into_iter().filter(|event| event["detail"]["build-status"] == "STOPPED");
        stopped.map(|event| event["detail"]["build-id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    scenario.eventually("both events", async || (stopped().len() == 2).then_some(())).await;
    assert!([&queued, &running].into_iter().all(|id| stopped().iter().any(|arn| arn.ends_with(id.as_str()))));

    // One that has ended stays as it is.
    let again = scenario.call("StopBuild", json!({"id": running})).await;
    assert_eq!(again["build"]["buildStatus"], "STOPPED");
    scenario.local.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_commit_is_built_wherever_its_reference_is() {
    let scenario = Scenario::begin().await;
    let repository = scenario.dir.0.join("app");
    let commit = |text: &str| {
        scenario.dir.write("app/fork.txt", text);
        git(&repository, &["add", "-A"]);
        git(&repository, &["commit", "-q", "-m", text]);
        git(&repository, &["rev-parse", "HEAD"])
    };
    git(&repository, &["checkout", "-q", "--detach"]);
    let approved = commit("approved");
    let head = commit("pushed after the approval");
    git(&repository, &["update-ref", "refs/pull/7/head", &head]);
    git(&repository, &["checkout", "-q", "--detach", "main"]);
    let proposed = commit("proposed");
    git(&repository, &["update-ref", "refs/merge-requests/3/head", &proposed]);
    git(&repository, &["checkout", "-q", "main"]);

    let spec = "version: 0.2\nphases:\n  build:\n    commands: [cat fork.txt]\n";
    let build = async |reference: &str, commit: &str| {
        let version = format!("{reference}^{{{commit}}}");
        let ask = json!({"projectName": "remote", "sourceVersion": version, "buildspecOverride": spec});
        let id = scenario.call("StartBuild", ask).await["build"]["id"].as_str().unwrap().to_owned();
        scenario.over(&id).await
    };
    for (reference, commit) in [
        ("refs/pull/7/head", &approved),
        ("refs/pull/7/head", &head),
        ("refs/merge-requests/3/head", &proposed),
    ] {
        let build = build(reference, commit).await;
        assert_eq!(build["buildStatus"], "SUCCEEDED", "{reference}");
        assert_eq!(build["resolvedSourceVersion"], **commit, "{reference}");
    }
    assert_eq!(build("refs/pull/7/head", &"1".repeat(40)).await["buildStatus"], "FAILED");
    scenario.local.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_of_many_targets_is_given_them_all() {
    let scenario = Scenario::begin().await;
    let value = |index: usize| format!("{index:03}{}", "x".repeat(500));
    let variables: Vec<Value> = (0..600)
        .map(|index| json!({"name": format!("STOKER_CACHE_FLAGS_{index}"), "value": value(index), "type": "PLAINTEXT"}))
        .collect();
    let spec = "version: 0.2\nphases:\n  build:\n    commands: ['echo \"told $(env | grep -c \
         ^STOKER_CACHE_FLAGS_)\"']\n";
    let ask = json!({
        "projectName": "app", "buildspecOverride": spec, "environmentVariablesOverride": variables,
    });
    let id = scenario.call("StartBuild", ask).await["build"]["id"].as_str().unwrap().to_owned();
    let build = scenario.over(&id).await;
    assert_eq!(build["buildStatus"], "SUCCEEDED");
    let environment = build["environment"]["environmentVariables"].as_array().unwrap();
    assert!(variables.iter().all(|variable| environment.contains(variable)));
    let log = scenario.builds().await[0]["log"].as_str().unwrap().to_owned();
    assert!(std::fs::read_to_string(log).unwrap().contains("told 600"));
    scenario.local.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_fails_is_tried_again() {
    let scenario = Scenario::begin().await;
    scenario.fake.store.lock().unwrap().refuse = 2;
    let spec = "version: 0.2\nphases:\n  build:\n    commands: [true]\n";
    let ask = json!({"projectName": "app", "buildspecOverride": spec});
    scenario.call("StartBuild", ask).await;
    let messages = || scenario.fake.store.lock().unwrap().messages.len();
    scenario.eventually("both deliveries", async || (messages() == 2).then_some(())).await;
    scenario.local.stop().await;
}
