//! What `stoker trace` tells of a commit, from which source, and what it says where one is silent.

use serde_json::{Value, json};

use crate::aws::{Account, cache};
use crate::run::Ran;

const POLICY: &str = "version: 1
projects:
  - { name: app, repository: github.com/example/app }
  - { name: other, repository: github.com/example/other }
";
const REPOSITORY: &str = "stoker/app";

fn commit() -> String {
    "ab12".repeat(10)
}

fn build(number: u32, status: &str, times: (i64, Option<i64>), variables: &[(&str, &str)]) -> Value {
    let hours = |hours: i64| jiff::Timestamp::now().as_second() - 3600 * hours;
    let variables =
        variables.iter().map(|(name, value)| json!({"name": name, "value": value, "type": "PLAINTEXT"}));
    let mut build = json!({
        "id": format!("app:{number}"), "projectName": "app", "buildStatus": status, "startTime": hours(times.0),
        "environment": {"type": "LINUX_CONTAINER", "image": "i", "computeType": "BUILD_GENERAL1_SMALL",
            "environmentVariables": variables.collect::<Vec<_>>()},
    });
    if let Some(ended) = times.1 {
        build["endTime"] = json!(hours(ended) + 90);
    }
    build
}

/// A branch's push was built and merged, and main's build runs.
async fn merged() -> Account {
    let account = Account::start().await;
    let commit = commit();
    let old = cache(
        "old",
        &[("base", 10)],
        &json!({"stoker.project": "app", "stoker.line": "main",
        "stoker.commit": "ff".repeat(20), "stoker.build": "app:0", "stoker.built-at": "2026-01-01T00:00:00Z"}),
    );
    let old = account.push(REPOSITORY, &old, &["app.history.main.20260102T030405Z-aaaaaaaa"], 3);
    let own = json!({"stoker.project": "app", "stoker.line": "branch/feature-a", "stoker.commit": commit,
        "stoker.build": "app:1", "stoker.built-at": "2026-01-02T00:00:00Z", "stoker.reused-percent": "80"});
    account.push(
        REPOSITORY,
        &cache("own", &[("a", 1)], &own),
        &["app.branch.feature-a", &format!("app.commit.{commit}")],
        1,
    );
    let main = json!({"stoker.project": "app", "stoker.line": "main", "stoker.commit": "ff".repeat(20),
        "stoker.build": "app:0", "stoker.built-at": "2026-01-01T00:00:00Z", "stoker.merged": commit,
        "stoker.merged-at": "2026-01-02T01:00:00Z", "stoker.parent": old});
    let main = account.push(REPOSITORY, &cache("main", &[("a", 1), ("base", 10)], &main), &["app.main"], 0);
    let reads = |digest: &str| format!("type=registry,ref=registry.example/stoker/app@{digest}");
    let mut env = account.env();
    env.projects = vec!["app".to_owned(), "other".to_owned()];
    env.builds = vec![
        build(
            2,
            "IN_PROGRESS",
            (1, None),
            &[
                ("STOKER_LINE", "main"),
                ("STOKER_COMMIT", &"cd".repeat(20)),
                ("STOKER_MERGED", &commit),
                ("STOKER_CACHE_FROM", &reads(&main)),
            ],
        ),
        build(
            1,
            "SUCCEEDED",
            (2, Some(2)),
            &[
                ("STOKER_LINE", "branch/feature-a"),
                ("STOKER_COMMIT", &commit),
                ("STOKER_REASON", "push"),
                ("STOKER_CACHE_FROM", &reads(&old)),
                ("STOKER_PUSHED_AT", "2026-01-01T23:59:00Z"),
            ],
        ),
        build(0, "FAILED", (30, Some(30)), &[("STOKER_LINE", "main"), ("STOKER_COMMIT", &"ff".repeat(20))]),
    ];
    let group = "/aws/lambda/stoker-start-build".to_owned();
    env.resources.push(("StartBuildLogs".to_owned(), "AWS::Logs::LogGroup".to_owned(), group.clone()));
    let line = json!({"timestamp": "2026-01-01T23:59:02Z", "level": "INFO", "message": "not \
         built", "project.name": "app",
        "policy.rule": "builds.paths\u{1b}[31m", "span": {"event.kind": "BranchPushed", "git.commit": commit}});
    env.log = vec![
        (line.to_string(), format!("123456789012:{group}")),
        ("REPORT RequestId: 1".to_owned(), format!("123456789012:{group}")),
    ];
    drop(env);
    account
}

async fn trace(account: &Account, more: &str) -> Ran {
    account.stoker(POLICY, &format!("trace --policy POLICY {more}")).await
}

#[tokio::test]
async fn it_tells_a_commits_life_from_all_sources() {
    let account = merged().await;
    let ran = trace(&account, "ab12ab1").await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{}", ran.out);
    let has = |words: &[&str]| ran.out.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&[&format!("commit {}", commit())]), "{}", ran.out);
    assert!(has(&["2026-01-01T23:59:00Z", "pushed to branch/feature-a"]), "{}", ran.out);
    assert!(has(&["build app:1 of branch/feature-a started (push); given main"]), "{}", ran.out);
    assert!(has(&["build app:1 succeeded after 90 s; 80 % of its steps reused"]), "{}", ran.out);
    assert!(has(&["its build was promoted", &format!("app.commit.{}", commit())]), "{}", ran.out);
    assert!(has(&["2026-01-02T01:00:00Z", "ecr", "merged into main"]), "{}", ran.out);
    assert!(has(&["build app:2 of main, which brings it by a merge, started; given main"]), "{}", ran.out);
    assert!(
        has(&["log stoker-start-build", "not built", "policy.rule=builds.paths\\u{1b}[31m"]),
        "{}",
        ran.out
    );
    assert!(has(&["stoker/app@sha256:", "app.main", "the last that was merged into it"]), "{}", ran.out);
    assert!(!ran.out.contains("app:0 "), "another commit's build: {}", ran.out);
    let asked = account.env().queries.clone();
    assert_eq!(asked[0]["logGroupNames"], json!(["/aws/lambda/stoker-start-build"]));
    let query = asked[0]["queryString"].as_str().unwrap();
    assert!(query.contains(&format!("@message like \"{}\" or @message like \"app:1\"", commit())), "{query}");
}

#[tokio::test]
async fn programs_read_the_same() {
    let account = merged().await;
    let ran = trace(&account, &format!("{} --project app --json", commit())).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{}", ran.out);
    let reported: Value = serde_json::from_str(&ran.out).unwrap();
    let roles: Vec<&str> =
        reported["builds"].as_array().unwrap().iter().map(|of| of["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["of", "brings"]);
    assert_eq!(
        (&reported["builds"][0]["seconds"], &reported["builds"][0]["reusedPercent"]),
        (&json!(90), &json!(80))
    );
    assert_eq!(reported["builds"][0]["given"][0]["line"], "main");
    let holds: Vec<&str> =
        reported["caches"].as_array().unwrap().iter().map(|of| of["holds"].as_str().unwrap()).collect();
    assert_eq!(holds.iter().filter(|holds| **holds == "built").count(), 1, "{holds:?}");
    assert_eq!(holds.len(), 2, "{holds:?}");
    assert_eq!(reported["missing"], json!([]));
    let times: Vec<&str> =
        reported["steps"].as_array().unwrap().iter().map(|of| of["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[tokio::test]
async fn a_silent_source_is_named_and_the_others_tell_the_rest() {
    let account = merged().await;
    account.env().failing.push(("StartQuery".to_owned(), 9, "AccessDeniedException"));
    let ran = trace(&account, "ab12ab1").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("logs: you may not call logs:StartQuery"), "{}", ran.out);
    assert!(ran.out.contains("merged into main"), "{}", ran.out);
    let ran = trace(&account, "ab12ab1 --no-logs").await;
    assert!(ran.out.contains("logs: --no-logs was given"), "{}", ran.out);
    account.env().failing.push(("ListBuildsForProject".to_owned(), 9, "AccessDeniedException"));
    let ran = trace(&account, "ab12ab1 --no-logs").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("not all is known, codebuild: codebuild:ListBuildsForProject"), "{}", ran.out);
    assert!(ran.out.contains("merged into main"), "{}", ran.out);
    account.env().failing.push(("DescribeImages".to_owned(), 9, "AccessDeniedException"));
    let ran = trace(&account, "ab12ab1 --no-logs").await;
    assert_eq!(ran.code, 3, "nobody tells anything: {}", ran.out);
    account.env().failing.clear();
    account.env().resources.clear();
    let ran = trace(&account, "ab12ab1 --stack there").await;
    assert!(ran.out.contains("logs: the stack there has no log groups"), "{}", ran.out);
}

#[tokio::test]
async fn what_nobody_knows_is_a_no_and_what_is_no_commit_an_error() {
    let account = merged().await;
    account.env().log.clear();
    let ran = trace(&account, &"99".repeat(20)).await;
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.out.contains("nobody knows it"), "{}", ran.out);
    for wrong in
        ["ab12ab", "not-a-commit", "ab12ab1 --project nobody", "ab12ab1 --repository github.com/example/none"]
    {
        assert_eq!(trace(&account, wrong).await.code, 2, "{wrong}");
    }
    account.env().builds[2]["environment"]["environmentVariables"][1]["value"] =
        json!(format!("ab12ab1{}", "0".repeat(33)));
    let ran = trace(&account, "ab12ab1").await;
    assert_eq!(ran.code, 2, "{}", ran.out);
    assert!(ran.err.contains("2 commits begin with ab12ab1"), "{}", ran.err);
}
