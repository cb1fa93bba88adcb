//! `stoker report` on an account in memory, over AWS's own protocol.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::aws::{Account, TestEnvironment, cache};
use crate::forecast::Repository;
use crate::run::Home;

const POLICY: &str = "version: 1\nprojects:\n  - name: app\n    repository: github.com/example/app\n";

/// A build of today that took some minutes, and what it was told to read.
fn build(number: i64, minutes: i64, from: &str) -> Value {
    let start = Timestamp::now().as_second() - 36_000 + number * 3600;
    let variable = |name: &str, value: &str| json!({"name": name, "value": value, "type": "PLAINTEXT"});
    json!({
        "id": format!("app:{number}"), "projectName": "app", "buildStatus": "SUCCEEDED",
        "startTime": start, "endTime": start + minutes * 60,
        "environment": {"type": "LINUX_CONTAINER", "image": "i", "computeType": "BUILD_GENERAL1_SMALL",
            "environmentVariables": [variable("STOKER_LINE", "main"), variable("STOKER_CACHE_FROM", from)]},
    })
}

/// Main with one cache, whose build reused nine of ten steps; a branch that has been idle for long; three
/// cold builds of ten minutes, and a warm one of four.
async fn account() -> Account {
    let account = Account::start().await;
    let built = |line: &str, percent: &str| {
        json!({"stoker.line": line, "stoker.commit": "ab".repeat(20), "stoker.build": "app:9",
            "stoker.built-at": Timestamp::now().to_string(), "stoker.reused-percent": percent})
    };
    let main = cache("main", &[("base", 400), ("main", 100)], &built("main", "90"));
    let digest = account.push("stoker/app", &main, &["app.main"], 1);
    let idle = cache("idle", &[("base", 400), ("idle", 70)], &json!({"stoker.line": "branch/idle"}));
    account.push("stoker/app", &idle, &["app.branch.idle"], 300);
    let mut env = account.env();
    env.projects.push("app".to_owned());
    let warm = format!("type=registry,ref=registry.example/stoker/app@{digest}");
    env.builds = vec![build(4, 4, &warm), build(3, 10, ""), build(2, 10, ""), build(1, 10, "")];
    drop(env);
    account
}

#[tokio::test]
async fn a_page_is_written_of_what_aws_tells() {
    let (account, home) = (account().await, Home::new());
    let path = home.path().join("report.html");
    let line = format!("report --policy POLICY --out {}", path.display());
    let ran = account.stoker(POLICY, &line).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let wrote =
        format!("Wrote {}: 570 MB in 2 images, of which the plan would free 70.0 MB\n", path.display());
    assert_eq!(ran.out, wrote);
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && !page.contains("://"), "nothing is loaded");
    for text in
        ["123456789012", "eu-west-1", "stoker/app", "570 MB", "90 %", "6.0 min", "$0.03", "branch/idle"]
    {
        assert!(page.contains(text), "{text}");
    }
    for call in ["BatchDeleteImage", "StartBuild", "ListProjects"] {
        assert_eq!(account.count(call), 0, "{call}");
    }
}

#[tokio::test]
async fn programs_get_the_same_figures() {
    let account = account().await;
    let line = "report --policy POLICY --json --project app --dollars-per-minute 0.01";
    let ran = account.stoker(POLICY, line).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&report["account"], &report["region"]), (&json!("123456789012"), &json!("eu-west-1")));
    let figures = &report["figures"];
    assert_eq!(figures["bytes"], 570_002_000, "with two configs");
    assert_eq!((&figures["frees"], &figures["deletions"]), (&json!(70_001_000), &json!(1)));
    assert_eq!(figures["mainReusedPercent"], 90.0);
    assert_eq!((&figures["minutesSaved"], &figures["dollarsSaved"]), (&json!(6.0), &json!(0.06)));
    assert_eq!(report["builds"][0]["coldMedianMinutes"], 10.0);
    assert_eq!(report["largestDeletions"][0]["tags"], json!(["app.branch.idle"]));
}

#[tokio::test]
async fn a_page_goes_where_it_is_sent_or_nowhere() {
    let account = account().await;
    let ran = account.stoker(POLICY, "report --policy POLICY --out -").await;
    assert!(ran.out.starts_with("<!DOCTYPE html>"), "{}", ran.err);
    let ran = account.stoker(POLICY, "report --policy POLICY --out /nowhere/report.html").await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("cannot write /nowhere/report.html"), "{}", ran.err);
    for wrong in
        ["--dollars-per-minute free", "--dollars-per-minute -1", "--json --out a.html", "--project web"]
    {
        assert_eq!(
            account.stoker(POLICY, &format!("report --policy POLICY {wrong}")).await.code,
            2,
            "{wrong}"
        );
    }
    account.env().failing.push(("ListBuildsForProject".to_owned(), 9, "AccessDeniedException"));
    let ran = account.stoker(POLICY, "report --policy POLICY --out -").await;
    assert_eq!((ran.code, ran.out.as_str()), (3, ""), "no page of half an account");
    assert!(ran.err.contains("codebuild:ListBuildsForProject"), "{}", ran.err);
}

/// A checkout, and a build of it that left a log.
fn checkout() -> (Repository, impl Fn(i64) -> Value) {
    let mut repository = Repository::new();
    let dockerfile = "FROM node\nCOPY a /\nRUN npm ci\nRUN npm run\u{1b}[2J build\n";
    let begin = repository.commit("Begin", 1000, &[], &[("Dockerfile", dockerfile), ("a", "1"), ("b", "1")]);
    repository.commit("Next", 2000, &[begin], &[("b", "2")]);
    repository.write();
    let commit = repository.git(&["rev-parse", "HEAD"], "").trim().to_owned();
    let of = move |number: i64| {
        let mut build = build(number, 10, "");
        build["logs"] = json!({"groupName": "/aws/codebuild/app", "streamName": number.to_string()});
        let variables = build["environment"]["environmentVariables"].as_array_mut().unwrap();
        variables.push(json!({"name": "STOKER_COMMIT", "value": commit, "type": "PLAINTEXT"}));
        build
    };
    (repository, of)
}

const LOG: &str = "\
#6 [2/4] COPY a /\n#6 DONE 6.0s\n#7 [3/4] RUN npm ci\n#7 DONE 48.0s\n\
#8 [4/4] RUN npm run\u{1b}[2J build\n#8 DONE 12.0s\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_of_a_build_costs_the_report_that_build_and_is_noted() {
    let (repository, of) = checkout();
    let account = account().await;
    {
        let mut env = account.env();
        env.builds = (1..=5).rev().map(of).collect();
        let given =
            json!({"name": "STOKER_CACHE_REFS", "value": "127.0.0.1:1/app:main", "type": "PLAINTEXT"});
        env.builds[3]["environment"]["environmentVariables"].as_array_mut().unwrap().push(given);
        env.build_log = LOG.to_owned();
        env.build_logs.insert("3".to_owned(), vec!["no build".to_owned()]);
        let refuse = |env: &mut TestEnvironment| {
            for call in ["GetLogEvents", "BatchGetBuilds"] {
                env.failing.push((call.to_owned(), 1, "AccessDeniedException"));
            }
        };
        env.meanwhile = Some(("GetLogEvents".to_owned(), Box::new(refuse)));
    }
    let path = std::env::var("PATH").unwrap();
    let line = format!("report --policy POLICY --json --why app={}", repository.home.path().display());
    let ran = account.stoker_in(POLICY, &line, &[("PATH", &path)]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let reported = &report["lostTime"][0];
    assert_eq!((&reported["builds"], &reported["buildsRead"]), (&json!(5), &json!(2)), "{reported}");
    let notes: Vec<&str> =
        report["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
    for (build, expected) in [
        ("app:5", "logs:GetLogEvents"),
        ("app:4", "codebuild:BatchGetBuilds"),
        ("app:3", "the log holds no build"),
        ("app:2", "127.0.0.1:1/app: no usable answer"),
    ] {
        let of_build: Vec<&&str> = notes.iter().filter(|note| note.contains(build)).collect();
        assert!(matches!(of_build[..], [note] if note.contains(expected)), "{build}: {notes:?}");
    }
    assert!(!notes.iter().any(|note| note.contains("app:1")), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_misses_cost_is_said_of_a_checkout_by_the_step_that_missed_first() {
    let (repository, of) = checkout();
    let account = account().await;
    {
        let mut env = account.env();
        env.builds = (1..=22).rev().map(of).collect();
        env.build_log = LOG.to_owned();
    }
    let path = std::env::var("PATH").unwrap();
    let why = format!("--why app={}", repository.home.path().display());
    let run = async |line: String| account.stoker_in(POLICY, &line, &[("PATH", &path)]).await;
    let ran = run(format!("report --policy POLICY --json {why}")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let reported = &report["lostTime"][0];
    let figures = ["builds", "buildsRead", "lostMinutes"].map(|name| reported[name].to_string());
    assert_eq!(figures, ["22", "20", "22.0"], "{reported} {}", report["notes"]);
    let first = json!({"step": "[3/4] RUN npm ci", "kind": "not-given", "builds": 20, "minutes": 16.0});
    assert_eq!(reported["causes"][0], first, "{reported}");
    // No more logs are read than that, each once.
    assert_eq!(account.count("GetLogEvents"), 20 * (LOG.lines().count() + 1));

    let page = repository.home.path().join("report.html");
    let ran = run(format!("report --policy POLICY --out {} {why}", page.display())).await;
    assert!(
        ran.out.contains("app: 22.0 min lost to misses, by the logs of 20 of 22 builds in 30 days"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("[3/4] RUN npm ci") && !ran.out.contains('\u{1b}'), "{}", ran.out);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("Time lost to misses") && page.contains("16.0 min"), "{page}");
    assert!(!page.contains('\u{1b}'));
    let ran = run("report --policy POLICY --why web=.".to_owned()).await;
    assert_eq!((ran.code, ran.err.contains("no builds of web are read")), (2, true), "{}", ran.err);
}
