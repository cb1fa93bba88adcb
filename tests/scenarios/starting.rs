//! Which builds start, how often, and what they are given.

use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, TestEnvironment};
use stoker_core::error::Failure;
use stoker_core::event::{Event, MissCause};
use stoker_core::names::{Commit, Line, ProjectName};
use stoker_core::ports::BuildStatus;

/// The scenarios' policy with more keys for its project.
fn with(keys: &str) -> String {
    let keys: Vec<String> = keys.lines().map(|line| format!("    {line}\n")).collect();
    format!("{POLICY}{}", keys.concat())
}

fn fork_world(build: &str) -> TestEnvironment {
    let keys = format!("builds:\n  forks: {{ build: {build}, project: app-forks, approvers: ['583231'] }}");
    let env = TestEnvironment::with_policy(&with(&keys));
    env.account.projects.borrow_mut().push(ProjectName::new("app-forks").unwrap());
    env
}

fn commits(env: &TestEnvironment) -> Vec<String> {
    env.running().iter().map(|build| env.reported(build, "STOKER_COMMIT")[39..].to_owned()).collect()
}

#[tokio::test]
async fn a_push_that_comes_again_hours_and_hundreds_of_builds_later_starts_nothing() {
    let mut env = TestEnvironment::new();
    let first = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&first]).await;
    env.build().await;
    for _ in 0..150 {
        env.wait(SignedDuration::from_mins(2));
        let next = env.commit([1, 1, 1, 1]);
        env.push("feature-b", &[&next]).await;
        env.settle().await;
        env.end_all(BuildStatus::Failed);
    }
    let builds = env.account.builds.borrow().len();
    env.replay(false).await;
    assert_eq!(env.account.builds.borrow().len(), builds, "all of them have been built");
}

#[tokio::test]
async fn a_push_that_finds_the_account_full_is_built_once_there_is_room() {
    let mut env = TestEnvironment::new();
    env.account.limit.set(Some(1));
    let (a, b) = (env.commit([1, 1, 1, 1]), env.commit([2, 2, 2, 2]));
    env.push("feature-a", &[&a]).await;
    env.push("feature-b", &[&b]).await;
    env.settle().await;
    assert_eq!(env.running().len(), 1);
    assert_eq!(env.waiting().0, 1, "the other waits");
    env.build().await;
    env.settle().await;
    assert_eq!(env.account.builds.borrow().len(), 2);
    assert_eq!(env.waiting().0, 0);
    assert!(env.dead.is_empty());
}

#[tokio::test]
async fn people_are_notified_once_of_a_push_that_waits_for_long() {
    let mut env = TestEnvironment::new();
    env.account.limit.set(Some(0));
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    for _ in 0..20 {
        env.wait(SignedDuration::from_mins(2));
        env.start().await;
    }
    let [Event::BuildDelayed(late)] = &env.notices[..] else { panic!("{:?}", env.notices) };
    assert_eq!((late.line.to_string(), late.tries), ("branch/feature-a".to_owned(), 15));
    assert!(late.why.contains("throttled"), "{}", late.why);
}

#[tokio::test]
async fn projects_take_turns_when_the_account_is_full() {
    let two = "  - name: other\n    repository: github.com/example/other\n";
    let mut env = TestEnvironment::with_policy(&format!("{POLICY}{two}"));
    env.account.projects.borrow_mut().push(ProjectName::new("other").unwrap());
    env.account.limit.set(Some(3));
    for n in 0..6 {
        let commit = env.commit([1, 1, 1, 1]);
        env.push(&format!("b{n}"), &[&commit]).await;
    }
    let other = env.commit([1, 1, 1, 1]);
    env.push_to("other", "main", &[&other]).await;
    env.start().await;
    let started: Vec<String> = env.running().iter().map(|build| build.project.to_string()).collect();
    assert_eq!(started.iter().filter(|project| *project == "other").count(), 1, "{started:?}");
    assert_eq!(started.len(), 3);
    assert_eq!(env.waiting().0, 4, "nothing is lost");
}

#[tokio::test]
async fn a_newer_push_stops_the_build_that_it_overtakes_where_the_policy_says_so() {
    for (superseded, stopped) in [("finish", 0), ("stop", 1)] {
        let mut env = TestEnvironment::with_policy(&with(&format!("builds: {{ superseded: {superseded} }}")));
        let (old, new) = (env.commit([1, 1, 1, 1]), env.commit([1, 2, 1, 1]));
        env.push("feature-a", &[&old]).await;
        env.settle().await;
        env.wait(SignedDuration::from_mins(1));
        env.push("feature-a", &[&new]).await;
        env.settle().await;
        let builds = env.account.builds.borrow();
        assert_eq!(builds.iter().filter(|build| build.status == BuildStatus::Stopped).count(), stopped);
        assert_eq!(builds.len(), 2);
    }
}

#[tokio::test]
async fn a_push_that_goes_back_to_a_commit_whose_build_was_stopped_is_built() {
    let mut env = TestEnvironment::with_policy(&with("builds: { superseded: stop }"));
    let (a, b) = (env.commit([1, 1, 1, 1]), env.commit([1, 2, 1, 1]));
    for head in [&a, &b, &a] {
        env.push("feature-a", &[head]).await;
        env.settle().await;
        env.wait(SignedDuration::from_mins(1));
    }
    assert_eq!(commits(&env), [a.as_str()[39..].to_owned()], "the branch's head, and nothing else");
    env.replay(false).await;
    assert_eq!(env.account.builds.borrow().len(), 3, "and once");
}

#[tokio::test]
async fn an_older_push_that_comes_late_neither_stops_the_newer_nor_is_built() {
    let mut env = TestEnvironment::with_policy(&with("builds: { superseded: stop }"));
    let (old, new) = (env.commit([1, 1, 1, 1]), env.commit([1, 2, 1, 1]));
    env.push("feature-a", &[&old]).await;
    let late = env.take_starts();
    env.wait(SignedDuration::from_mins(1));
    env.push("feature-a", &[&new]).await;
    env.settle().await;
    env.give_starts(late);
    env.settle().await;
    assert_eq!(commits(&env), [new.as_str()[39..].to_owned()]);
}

#[tokio::test]
async fn builds_of_main_are_never_stopped() {
    let mut env = TestEnvironment::with_policy(&with("builds: { superseded: stop }"));
    for _ in 0..3 {
        let head = env.commit([1, 1, 1, 1]);
        env.wait(SignedDuration::from_mins(1));
        env.push("main", &[&head]).await;
        env.settle().await;
    }
    assert_eq!(env.running().len(), 3);
}

async fn fork(env: &mut TestEnvironment, action: &str, head: &Commit) {
    env.pull_request_to("main", "somebody/app", action, "main", head, None).await;
    env.settle().await;
}

#[tokio::test]
async fn a_fork_reads_main_and_writes_nothing() {
    let mut env = fork_world("read-only");
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    let head = env.commit([1, 2, 1, 1]);
    fork(&mut env, "opened", &head).await;
    let build = env.running().pop().expect("a build of the fork");
    assert_eq!(build.project.as_str(), "app-forks", "a project of its own, with a role that writes nothing");
    assert_eq!(env.reported(&build, "STOKER_LINE"), "pr/1");
    assert_eq!(env.reported(&build, "STOKER_TRUST"), "fork");
    assert_eq!(env.reported(&build, "STOKER_READS"), "main");
    let reported = env.account.orders.borrow()[&build.id].environment.clone();
    assert!(reported.iter().all(|(_, value)| !value.contains("cache-to ") && !value.contains(".export.")));
    assert_eq!(
        build.resolved_commit.as_deref(),
        Some(head.as_str()),
        "the very head, by the forge's reference"
    );
    let lines = env.lines();
    env.end(&build.id, BuildStatus::Succeeded, &head);
    env.settle().await;
    assert_eq!(env.lines(), lines, "no line moves");
}

#[tokio::test]
async fn an_approval_holds_for_the_head_that_was_approved() {
    let mut env = fork_world("after-approval");
    let (first, second) = (env.commit([1, 1, 1, 1]), env.commit([6, 6, 6, 6]));
    fork(&mut env, "opened", &first).await;
    assert!(env.running().is_empty(), "nobody has approved");
    env.review("1", &first, &first).await;
    env.settle().await;
    assert!(env.running().is_empty(), "anybody can approve");
    fork(&mut env, "synchronize", &second).await;
    env.review("583231", &first, &second).await;
    env.settle().await;
    assert!(env.running().is_empty(), "what was approved is not the head any more");
    env.review("583231", &second, &second).await;
    env.settle().await;
    assert_eq!(commits(&env), [second.as_str()[39..].to_owned()]);
}

#[tokio::test]
async fn people_are_notified_of_builds_that_fail_and_not_of_those_that_are_stopped() {
    let mut env = TestEnvironment::new();
    let head = env.commit([1, 1, 1, 1]);
    env.push("main", &[&head]).await;
    env.settle().await;
    let build = env.running().remove(0);
    env.end(&build.id, BuildStatus::Failed, &head);
    env.settle().await;
    let [Event::BuildFailed(failed)] = &env.notices[..] else { panic!("{:?}", env.notices) };
    assert_eq!((&failed.line, failed.reason.as_str()), (&Line::Main, "push"));
    assert_eq!((failed.status.as_str(), &failed.build), ("FAILED", &build.id));
}

#[tokio::test]
async fn people_are_notified_when_main_cools() {
    let mut env = TestEnvironment::new();
    for versions in [[1, 1, 1, 1], [1, 2, 1, 1], [1, 3, 1, 1], [2, 1, 2, 1]] {
        let head = env.commit(versions);
        env.push("main", &[&head]).await;
        env.build().await;
        env.wait(SignedDuration::from_mins(10));
    }
    let [Event::CacheHitRateDropped(fell)] = &env.notices[..] else { panic!("{:?}", env.notices) };
    assert_eq!((fell.before_percent, fell.reused_percent), (60, 0));
    // Both dependencies changed; what was made of them follows.
    let causes: Vec<MissCause> = fell.first_misses.iter().map(|miss| miss.cause).collect();
    assert_eq!(causes, [MissCause::NotInLine; 2]);
}

#[tokio::test]
async fn each_target_has_lines_of_its_own() {
    let keys = "targets: [{ name: api, platforms: [linux/amd64, linux/arm64] }, { name: web }]";
    let mut env = TestEnvironment::with_policy(&with(keys));
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    let a = env.commit([2, 2, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    let merge = env.commit([2, 2, 1, 1]);
    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    env.push("main", &[&a, &merge]).await;
    env.settle().await;
    let lines = env.lines();
    assert_eq!(
        lines.keys().filter(|tag| tag.split_once('.').is_some_and(|(_, line)| line == "main")).count(),
        3,
        "{lines:?}"
    );
    assert_eq!(lines.keys().filter(|tag| tag.ends_with(".branch.feature-a")).count(), 3, "{lines:?}");
    let build = env.running().pop().expect("main's build");
    for suffix in ["_API_LINUX_AMD64", "_API_LINUX_ARM64", "_WEB"] {
        let from = env.reported(&build, &format!("STOKER_CACHE_FROM{suffix}"));
        assert!(from.split(' ').count() >= 1 && from.contains('@'), "{from}");
    }
    env.build().await;
    env.delete_branch("feature-a").await;
    env.settle().await;
    assert_eq!(env.lines().len(), 3, "only main's are left: {:?}", env.lines());
}

#[tokio::test]
async fn repositories_that_are_missing_are_made_once_and_a_build_starts_without_them_all_the_same() {
    let mut env = TestEnvironment::with_policy(ISOLATED);
    env.account.makes_repositories.set(true);
    let base = env.commit([1, 1, 1, 1]);
    env.account
        .outages
        .borrow_mut()
        .insert(("start-build", "ecr:CreateRepository"), Fault::Before(Failure::Refused));
    env.push("main", &[&base]).await;
    env.settle_starts().await;
    assert_eq!(env.running().len(), 1, "it starts all the same");
    assert!(env.account.made.borrow().is_empty());
    env.account.outages.borrow_mut().clear();
    let next = env.commit([2, 1, 1, 1]);
    env.push("main", &[&next]).await;
    env.settle_starts().await;
    let made: Vec<(String, bool)> =
        env.account.made.borrow().iter().map(|(name, immutable)| (name.to_string(), *immutable)).collect();
    assert_eq!(made, [("stoker-builds/app".to_owned(), true), ("stoker/app".to_owned(), false)]);
    env.build().await;
    env.build().await;
    let asked = |env: &TestEnvironment| {
        env.account.calls.borrow().iter().filter(|call| **call == "ecr:CreateRepository").count()
    };
    let before = asked(&env);
    let branch = env.commit([2, 2, 1, 1]);
    env.push("feature-a", &[&branch]).await;
    env.settle_starts().await;
    assert_eq!(asked(&env), before, "where main has a cache nothing is asked");
}
