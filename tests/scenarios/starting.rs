//! Which builds start, how often, and what they are handed.

use jiff::SignedDuration;
use scenarios::environment::{POLICY, World};
use stoker_core::event::Event;
use stoker_core::names::{Commit, ProjectName};
use stoker_core::ports::BuildStatus;

/// The stories' policy with more keys for its project.
fn with(keys: &str) -> String {
    let keys: Vec<String> = keys.lines().map(|line| format!("    {line}\n")).collect();
    format!("{POLICY}{}", keys.concat())
}

fn fork_world(build: &str) -> World {
    let keys = format!("builds:\n  forks: {{ build: {build}, project: app-forks, approvers: ['583231'] }}");
    let world = World::with_policy(&with(&keys));
    world.account.projects.borrow_mut().push(ProjectName::new("app-forks").unwrap());
    world
}

fn commits(world: &World) -> Vec<String> {
    world.running().iter().map(|build| world.told(build, "STOKER_COMMIT")[39..].to_owned()).collect()
}

#[tokio::test]
async fn a_push_that_comes_again_hours_and_hundreds_of_builds_later_starts_nothing() {
    let mut world = World::new();
    let first = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&first]).await;
    world.build().await;
    for _ in 0..150 {
        world.wait(SignedDuration::from_mins(2));
        let next = world.commit([1, 1, 1, 1]);
        world.push("feature-b", &[&next]).await;
        world.settle().await;
        world.end_all(BuildStatus::Failed);
    }
    let builds = world.account.builds.borrow().len();
    world.replay(false).await;
    assert_eq!(world.account.builds.borrow().len(), builds, "all of them have been built");
}

#[tokio::test]
async fn a_push_that_finds_the_account_full_is_built_once_there_is_room() {
    let mut world = World::new();
    world.account.limit.set(Some(1));
    let (a, b) = (world.commit([1, 1, 1, 1]), world.commit([2, 2, 2, 2]));
    world.push("feature-a", &[&a]).await;
    world.push("feature-b", &[&b]).await;
    world.settle().await;
    assert_eq!(world.running().len(), 1);
    assert_eq!(world.waiting().0, 1, "the other waits");
    world.build().await;
    world.settle().await;
    assert_eq!(world.account.builds.borrow().len(), 2);
    assert_eq!(world.waiting().0, 0);
    assert!(world.dead.is_empty());
}

#[tokio::test]
async fn people_are_told_once_of_a_push_that_waits_for_long() {
    let mut world = World::new();
    world.account.limit.set(Some(0));
    let a = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&a]).await;
    for _ in 0..20 {
        world.wait(SignedDuration::from_mins(2));
        world.start().await;
    }
    let [Event::BuildDelayed(late)] = &world.notices[..] else { panic!("{:?}", world.notices) };
    assert_eq!((late.line.as_str(), late.tries), ("feature-a", 15));
    assert!(late.why.contains("throttled"), "{}", late.why);
}

#[tokio::test]
async fn projects_take_turns_when_the_account_is_full() {
    let two = "  - name: other\n    repository: github.com/example/other\n";
    let mut world = World::with_policy(&format!("{POLICY}{two}"));
    world.account.projects.borrow_mut().push(ProjectName::new("other").unwrap());
    world.account.limit.set(Some(3));
    for n in 0..6 {
        let commit = world.commit([1, 1, 1, 1]);
        world.push(&format!("b{n}"), &[&commit]).await;
    }
    let other = world.commit([1, 1, 1, 1]);
    world.push_to("other", "main", &[&other]).await;
    world.start().await;
    let started: Vec<String> = world.running().iter().map(|build| build.project.to_string()).collect();
    assert_eq!(started.iter().filter(|project| *project == "other").count(), 1, "{started:?}");
    assert_eq!(started.len(), 3);
    assert_eq!(world.waiting().0, 4, "nothing is lost");
}

#[tokio::test]
async fn a_newer_push_stops_the_build_that_it_overtakes_where_the_policy_says_so() {
    for (superseded, stopped) in [("finish", 0), ("stop", 1)] {
        let mut world = World::with_policy(&with(&format!("builds: {{ superseded: {superseded} }}")));
        let (old, new) = (world.commit([1, 1, 1, 1]), world.commit([1, 2, 1, 1]));
        world.push("feature-a", &[&old]).await;
        world.settle().await;
        world.wait(SignedDuration::from_mins(1));
        world.push("feature-a", &[&new]).await;
        world.settle().await;
        let builds = world.account.builds.borrow();
        assert_eq!(builds.iter().filter(|build| build.status == BuildStatus::Stopped).count(), stopped);
        assert_eq!(builds.len(), 2);
    }
}

#[tokio::test]
async fn a_push_that_goes_back_to_a_commit_whose_build_was_stopped_is_built() {
    let mut world = World::with_policy(&with("builds: { superseded: stop }"));
    let (a, b) = (world.commit([1, 1, 1, 1]), world.commit([1, 2, 1, 1]));
    for head in [&a, &b, &a] {
        world.push("feature-a", &[head]).await;
        world.settle().await;
        world.wait(SignedDuration::from_mins(1));
    }
    assert_eq!(commits(&world), [a.as_str()[39..].to_owned()], "the branch's head, and nothing else");
    world.replay(false).await;
    assert_eq!(world.account.builds.borrow().len(), 3, "and once");
}

#[tokio::test]
async fn an_older_push_that_comes_late_neither_stops_the_newer_nor_is_built() {
    let mut world = World::with_policy(&with("builds: { superseded: stop }"));
    let (old, new) = (world.commit([1, 1, 1, 1]), world.commit([1, 2, 1, 1]));
    world.push("feature-a", &[&old]).await;
    let late = world.take_starts();
    world.wait(SignedDuration::from_mins(1));
    world.push("feature-a", &[&new]).await;
    world.settle().await;
    world.give_starts(late);
    world.settle().await;
    assert_eq!(commits(&world), [new.as_str()[39..].to_owned()]);
}

#[tokio::test]
async fn builds_of_main_are_never_stopped() {
    let mut world = World::with_policy(&with("builds: { superseded: stop }"));
    for _ in 0..3 {
        let head = world.commit([1, 1, 1, 1]);
        world.wait(SignedDuration::from_mins(1));
        world.push("main", &[&head]).await;
        world.settle().await;
    }
    assert_eq!(world.running().len(), 3);
}

async fn fork(world: &mut World, action: &str, head: &Commit) {
    world.pull_request_to("main", "somebody/app", action, "main", head, None).await;
    world.settle().await;
}

#[tokio::test]
async fn a_fork_reads_main_and_writes_nothing() {
    let mut world = fork_world("read-only");
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    let head = world.commit([1, 2, 1, 1]);
    fork(&mut world, "opened", &head).await;
    let build = world.running().pop().expect("a build of the fork");
    assert_eq!(build.project.as_str(), "app-forks", "a project of its own, with a role that writes nothing");
    assert_eq!(world.told(&build, "STOKER_LINE"), "pr/1");
    assert_eq!(world.told(&build, "STOKER_TRUST"), "fork");
    assert_eq!(world.told(&build, "STOKER_READS"), "main");
    let told = world.account.orders.borrow()[&build.id].environment.clone();
    assert!(told.iter().all(|(_, value)| !value.contains("cache-to ") && !value.contains(".export.")));
    assert_eq!(
        build.resolved_commit.as_deref(),
        Some(head.as_str()),
        "the very head, by the forge's reference"
    );
    let lines = world.lines();
    world.end(&build.id, BuildStatus::Succeeded, &head);
    world.settle().await;
    assert_eq!(world.lines(), lines, "no line moves");
}

#[tokio::test]
async fn an_approval_holds_for_the_head_that_was_approved() {
    let mut world = fork_world("after-approval");
    let (first, second) = (world.commit([1, 1, 1, 1]), world.commit([6, 6, 6, 6]));
    fork(&mut world, "opened", &first).await;
    assert!(world.running().is_empty(), "nobody has approved");
    world.review("1", &first, &first).await;
    world.settle().await;
    assert!(world.running().is_empty(), "anybody can approve");
    fork(&mut world, "synchronize", &second).await;
    world.review("583231", &first, &second).await;
    world.settle().await;
    assert!(world.running().is_empty(), "what was approved is not the head any more");
    world.review("583231", &second, &second).await;
    world.settle().await;
    assert_eq!(commits(&world), [second.as_str()[39..].to_owned()]);
}

#[tokio::test]
async fn people_are_told_of_builds_that_fail_and_not_of_those_that_are_stopped() {
    let mut world = World::new();
    let head = world.commit([1, 1, 1, 1]);
    world.push("main", &[&head]).await;
    world.settle().await;
    let build = world.running().remove(0);
    world.end(&build.id, BuildStatus::Failed, &head);
    world.settle().await;
    let [Event::BuildFailed(failed)] = &world.notices[..] else { panic!("{:?}", world.notices) };
    assert_eq!((failed.line.as_str(), failed.reason.as_str()), ("main", "push"));
    assert_eq!((failed.status.as_str(), &failed.build), ("FAILED", &build.id));
}

#[tokio::test]
async fn people_are_told_when_main_cools() {
    let mut world = World::new();
    for versions in [[1, 1, 1, 1], [1, 2, 1, 1], [1, 3, 1, 1], [2, 1, 2, 1]] {
        let head = world.commit(versions);
        world.push("main", &[&head]).await;
        world.build().await;
        world.wait(SignedDuration::from_mins(10));
    }
    let [Event::WarmthFell(fell)] = &world.notices[..] else { panic!("{:?}", world.notices) };
    assert_eq!((fell.before_percent, fell.reused_percent), (60, 0));
}

#[tokio::test]
async fn each_target_has_lines_of_its_own() {
    let keys = "targets: [{ name: api, platforms: [linux/amd64, linux/arm64] }, { name: web }]";
    let mut world = World::with_policy(&with(keys));
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    let a = world.commit([2, 2, 1, 1]);
    world.push("feature-a", &[&a]).await;
    world.build().await;
    let merge = world.commit([2, 2, 1, 1]);
    world.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    world.push("main", &[&a, &merge]).await;
    world.settle().await;
    let lines = world.lines();
    assert_eq!(
        lines.keys().filter(|tag| tag.split_once('.').is_some_and(|(_, line)| line == "main")).count(),
        3,
        "{lines:?}"
    );
    assert_eq!(lines.keys().filter(|tag| tag.ends_with(".branch.feature-a")).count(), 3, "{lines:?}");
    let build = world.running().pop().expect("main's build");
    for suffix in ["_API_LINUX_AMD64", "_API_LINUX_ARM64", "_WEB"] {
        let from = world.told(&build, &format!("STOKER_CACHE_FROM{suffix}"));
        assert!(from.split(' ').count() >= 1 && from.contains('@'), "{from}");
    }
    world.build().await;
    world.delete_branch("feature-a").await;
    world.settle().await;
    assert_eq!(world.lines().len(), 3, "only main's are left: {:?}", world.lines());
}
