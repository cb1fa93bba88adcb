//! What a merge brings to main is on probation until a build of main has made it main's own.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use scenarios::environment::{ISOLATED, POLICY, TestEnvironment};
use stoker_core::names::{Commit, ProjectName};
use stoker_core::policy::Policy;
use stoker_core::ports::{Build, BuildStatus};
use stoker_core::promote::{Outcome, PromotionTrigger, promote};

/// A branch is merged; answers main's build, which has started.
async fn merge(env: &mut TestEnvironment, branch: &str, head: &Commit, versions: [u32; 4]) -> Build {
    let merge = env.commit(versions);
    env.pull_request("merged", branch, head, Some(&merge)).await;
    env.push("main", &[head, &merge]).await;
    env.settle().await;
    let build = env.running().pop().expect("main's build");
    assert_eq!(build.inputs.as_ref().and_then(|inputs| inputs.commit.as_ref()), Some(&merge));
    env.wait(SignedDuration::from_mins(1));
    build
}

/// Which merges something of main is on probation for, and how many records.
fn on_probation(env: &TestEnvironment) -> BTreeMap<Commit, usize> {
    let marks = env.line("main").unwrap().1.probations();
    marks.into_iter().map(|(mark, records)| (mark.commit().clone(), records)).collect()
}

fn merges(env: &TestEnvironment) -> Vec<Commit> {
    on_probation(env).into_keys().collect()
}

fn annotations(env: &TestEnvironment) -> serde_json::Value {
    let image = env.account.image(&env.repository(), "app.main").unwrap();
    serde_json::from_slice::<serde_json::Value>(&image.manifest).unwrap()["annotations"].clone()
}

/// Nothing of these merges is in main but what main's builds have used.
fn assert_all_is_own(env: &TestEnvironment) {
    assert_eq!(merges(env), []);
    let says = annotations(env);
    assert!(says["stoker.probation-since"].is_null() && says["stoker.probation-until"].is_null(), "{says}");
}

#[tokio::test]
async fn what_a_merge_brings_serves_at_once_and_is_mains_own_when_mains_build_has_used_it() {
    for policy in [POLICY, ISOLATED] {
        let (mut env, head) = TestEnvironment::with_branch(policy).await;
        // Main has moved on, so the branch's last step is no step of the merge.
        let build = merge(&mut env, "feature-a", &head, [2, 2, 2, 1]).await;
        assert_eq!(on_probation(&env), BTreeMap::from([(head, 3)]));
        assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5);
        let says = annotations(&env);
        assert_eq!(says["stoker.probation-since"], "2026-11-21T08:20:00Z");
        assert_eq!(says["stoker.probation-until"], "2026-11-28T08:20:00Z");
        assert_eq!(env.run(&build).ran, ["deps-b", "compile-b", "link"]);
        env.settle().await;
        assert_all_is_own(&env);
        assert_eq!(env.holds("main", [2, 2, 2, 1]).len(), 5);
        assert_eq!(env.holds("main", [1, 1, 1, 1]).len(), 5, "what was main's own before stays");
        assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 4, "what main's build did not use has left");
    }
}

#[tokio::test]
async fn each_merge_in_flight_waits_for_its_own_build() {
    let (mut env, a) = TestEnvironment::with_branch(ISOLATED).await;
    let b = env.built_branch("feature-b", [1, 1, 3, 3]).await;
    let of_a = merge(&mut env, "feature-a", &a, [2, 2, 1, 1]).await;
    env.push("main", &[&b]).await;
    env.settle().await;
    assert_eq!(merges(&env), [a, b.clone()]);
    env.run(&of_a);
    env.settle().await;
    assert_eq!(merges(&env), [b]);
    assert_eq!(env.holds("main", [1, 1, 3, 3]).len(), 5);
    env.build().await;
    assert_all_is_own(&env);
}

#[tokio::test]
async fn a_merge_that_is_reported_after_its_build_brings_nothing() {
    for (policy, reversed) in [(POLICY, false), (POLICY, true), (ISOLATED, false), (ISOLATED, true)] {
        let (mut env, head) = TestEnvironment::with_branch(policy).await;
        env.loses_promotions = true;
        let build = merge(&mut env, "feature-a", &head, [2, 2, 2, 1]).await;
        env.run(&build);
        env.settle().await;
        env.loses_promotions = false;
        let before = env.line("main").unwrap();
        env.wait(SignedDuration::from_mins(10));
        // Whatever comes late, twice and in any order.
        env.replay(reversed).await;
        env.night().await;
        assert!(env.running().is_empty());
        assert_eq!(env.line("main").unwrap(), before);
        assert_all_is_own(&env);
        assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 4);
    }
}

/// The queue is slow: main's build of the merge runs already when the line gets what was merged.
#[tokio::test]
async fn probation_counts_from_the_merge_and_not_from_its_promotion() {
    let (mut env, head) = TestEnvironment::with_branch(ISOLATED).await;
    // Squashed: the push does not name the branch's head. The branch's last step is no step of the merge, and no build
    // of main makes it main's own.
    let squashed = env.commit([2, 2, 2, 1]);
    env.pull_request("merged", "feature-a", &head, Some(&squashed)).await;
    env.push("main", &[&squashed]).await;
    env.settle_starts().await;
    let build = env.running().pop().expect("main's build");
    env.wait(SignedDuration::from_mins(5));
    env.settle_promotions().await;
    assert_eq!(merges(&env), [head]);
    env.run(&build);
    env.settle().await;
    assert_all_is_own(&env);
}

/// By its time the merge is younger than main's build of it, as where clocks disagree.
#[tokio::test]
async fn a_build_ends_the_probation_of_the_commits_that_it_was_given() {
    let (mut env, head) = TestEnvironment::with_branch(ISOLATED).await;
    // The branch's last step is no step of the merge, and no build of main makes it main's own.
    let squashed = env.commit([2, 2, 2, 1]);
    env.loses_promotions = true;
    env.push("main", &[&head, &squashed]).await;
    env.settle().await;
    let build = env.running().pop().expect("main's build");
    env.loses_promotions = false;
    env.wait(SignedDuration::from_mins(1));
    env.pull_request("merged", "feature-a", &head, Some(&squashed)).await;
    env.settle_promotions().await;
    assert_eq!(merges(&env), [head]);
    env.run(&build);
    env.settle().await;
    assert_all_is_own(&env);
}

#[tokio::test]
async fn a_build_of_main_that_fails_ends_no_probation_and_the_next_one_does() {
    let (mut env, head) = TestEnvironment::with_branch(ISOLATED).await;
    let build = merge(&mut env, "feature-a", &head, [2, 2, 1, 1]).await;
    let commit = build.inputs.clone().and_then(|inputs| inputs.commit).unwrap();
    env.end(&build.id, BuildStatus::Failed, &commit);
    env.settle().await;
    env.end_all(BuildStatus::Stopped);
    assert_eq!(merges(&env), [head]);
    let next = env.commit([2, 2, 1, 1]);
    env.push("main", &[&next]).await;
    let ran = env.build().await;
    assert_eq!((ran.len(), ran[0].ran.len()), (1, 0), "it is warm: {ran:?}");
    assert_all_is_own(&env);
    assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5);
}

#[tokio::test]
async fn without_a_build_of_main_probation_ends_by_time() {
    for (policy, hours) in
        [(ISOLATED.to_owned(), 7 * 24), (POLICY.replace("defaults:", "defaults:\n  probation: 2h"), 2)]
    {
        let (mut env, head) = TestEnvironment::with_branch(&policy).await;
        let own = env.line("main").unwrap().1;
        merge(&mut env, "feature-a", &head, [2, 2, 1, 1]).await;
        env.end_all(BuildStatus::Stopped);
        env.wait(SignedDuration::from_hours(hours) - SignedDuration::from_mins(2));
        env.night().await;
        env.end_all(BuildStatus::Stopped);
        assert_eq!(merges(&env), std::slice::from_ref(&head), "{hours}");
        let before = env.line("main").unwrap().0;
        env.wait(SignedDuration::from_mins(2));
        env.night().await;
        assert_all_is_own(&env);
        assert_eq!(env.line("main").unwrap().1, own, "{hours}: as if nothing had been merged");
        let history = env.account.tags(&env.repository()).into_iter();
        let mut history = history.filter(|(tag, _)| tag.contains(".history.main.")).map(|(_, digest)| digest);
        assert!(history.any(|digest| digest == before), "{hours}: what has left can be gone back to");
    }
}

#[tokio::test]
async fn what_a_rollback_brings_back_on_probation_is_judged_as_ever() {
    let (mut env, head) = TestEnvironment::with_branch(ISOLATED).await;
    let build = merge(&mut env, "feature-a", &head, [2, 2, 1, 1]).await;
    let with_marks = env.account.image(&env.repository(), "app.main").unwrap();
    env.run(&build);
    env.settle().await;
    assert_all_is_own(&env);
    env.wait(SignedDuration::from_mins(10));
    env.roll_back(&with_marks).await;
    assert_eq!(merges(&env), [head]);
    env.wait(SignedDuration::from_mins(10));
    let next = env.commit([1, 1, 1, 2]);
    env.push("main", &[&next]).await;
    env.build().await;
    assert_all_is_own(&env);
    assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 2, "no build since has used the branch's");
}

#[tokio::test]
async fn a_build_from_scratch_takes_the_place_of_what_is_on_probation_too() {
    let policy = ISOLATED.replace("stale-after: 7d", "stale-after: 7d, refresh: 1d");
    let (mut env, head) = TestEnvironment::with_branch(&policy).await;
    env.wait(SignedDuration::from_hours(25));
    env.night().await;
    let refresh = env.running().pop().expect("a build from scratch");
    assert!(refresh.inputs.as_ref().is_some_and(|inputs| inputs.refresh));
    env.wait(SignedDuration::from_mins(1));
    let merge_commit = env.commit([2, 2, 1, 1]);
    env.push("main", &[&head, &merge_commit]).await;
    env.settle_promotions().await;
    assert_eq!(merges(&env), [head]);
    env.run(&refresh);
    env.settle_promotions().await;
    assert_all_is_own(&env);
    assert_eq!(env.line("main").unwrap().1.records(), 5);
}

/// Whoever no longer lets merges bring anything to main wants what they brought out of it.
#[tokio::test]
async fn what_is_on_probation_leaves_when_merges_bring_nothing_any_more() {
    let (mut env, head) = TestEnvironment::with_branch(ISOLATED).await;
    merge(&mut env, "feature-a", &head, [2, 2, 1, 1]).await;
    assert_eq!(merges(&env), [head]);
    for (promotion, moves) in [("merged", 0), ("rebuild", 1), ("rebuild", 0)] {
        let policy = ISOLATED.replace("defaults:", &format!("defaults:\n  promotion: {promotion}"));
        let policy = Policy::parse("the scenario's policy", &policy).unwrap();
        let triggers = [PromotionTrigger::Overdue { project: ProjectName::new("app").unwrap() }];
        let promoted = promote(&env.account, &policy, &triggers, env.account.now());
        let answers = env.account.invoke("promote-cache", None, promoted).await.unwrap();
        let outcomes = answers.into_iter().flat_map(|answer| answer.expect("an outcome"));
        let moved = outcomes.filter(|outcome| matches!(outcome, Outcome::Updated { .. })).count();
        assert_eq!(moved, moves, "{promotion}");
    }
    assert_all_is_own(&env);
}
