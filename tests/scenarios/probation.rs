//! What a merge brings to main is on probation until a build of main has made it main's own.

use std::collections::BTreeMap;

use buildkit_cache::MANIFEST_MEDIA_TYPE;
use jiff::SignedDuration;
use scenarios::environment::{ISOLATED, POLICY, World};
use stoker_core::names::{Commit, ProjectName};
use stoker_core::policy::Policy;
use stoker_core::ports::{Build, BuildStatus};
use stoker_core::promote::{Hint, Outcome, promote};

/// A branch is merged; answers main's build, which has started.
async fn merge(world: &mut World, branch: &str, head: &Commit, versions: [u32; 4]) -> Build {
    let merge = world.commit(versions);
    world.pull_request("merged", branch, head, Some(&merge)).await;
    world.push("main", &[head, &merge]).await;
    world.settle().await;
    let build = world.running().pop().expect("main's build");
    assert_eq!(build.handed.as_ref().and_then(|handed| handed.commit.as_ref()), Some(&merge));
    world.wait(SignedDuration::from_mins(1));
    build
}

/// Which merges something of main is on probation for, and how many records.
fn on_probation(world: &World) -> BTreeMap<Commit, usize> {
    let marks = world.line("main").unwrap().1.probations();
    marks.into_iter().map(|(mark, records)| (mark.commit().clone(), records)).collect()
}

fn merges(world: &World) -> Vec<Commit> {
    on_probation(world).into_keys().collect()
}

fn annotations(world: &World) -> serde_json::Value {
    let image = world.account.image(&world.repository(), "app.main").unwrap();
    serde_json::from_slice::<serde_json::Value>(&image.manifest).unwrap()["annotations"].clone()
}

/// Nothing of these merges is in main but what main's builds have used.
fn assert_all_is_own(world: &World) {
    assert_eq!(merges(world), []);
    let says = annotations(world);
    assert!(says["stoker.probation-since"].is_null() && says["stoker.probation-until"].is_null(), "{says}");
}

#[tokio::test]
async fn what_a_merge_brings_serves_at_once_and_is_mains_own_when_mains_build_has_used_it() {
    for policy in [POLICY, ISOLATED] {
        let (mut world, head) = World::with_branch(policy).await;
        // Main has moved on, so the branch's last step is no step of the merge.
        let build = merge(&mut world, "feature-a", &head, [2, 2, 2, 1]).await;
        assert_eq!(on_probation(&world), BTreeMap::from([(head, 3)]));
        assert_eq!(world.holds("main", [2, 2, 1, 1]).len(), 5);
        let says = annotations(&world);
        assert_eq!(says["stoker.probation-since"], "2026-11-21T08:20:00Z");
        assert_eq!(says["stoker.probation-until"], "2026-11-28T08:20:00Z");
        assert_eq!(world.run(&build).ran, ["deps-b", "compile-b", "link"]);
        world.settle().await;
        assert_all_is_own(&world);
        assert_eq!(world.holds("main", [2, 2, 2, 1]).len(), 5);
        assert_eq!(world.holds("main", [1, 1, 1, 1]).len(), 5, "what was main's own before stays");
        assert_eq!(world.holds("main", [2, 2, 1, 1]).len(), 4, "what main's build did not use has left");
    }
}

#[tokio::test]
async fn each_merge_in_flight_waits_for_its_own_build() {
    let (mut world, a) = World::with_branch(ISOLATED).await;
    let b = world.built_branch("feature-b", [1, 1, 3, 3]).await;
    let of_a = merge(&mut world, "feature-a", &a, [2, 2, 1, 1]).await;
    world.push("main", &[&b]).await;
    world.settle().await;
    assert_eq!(merges(&world), [a, b.clone()]);
    world.run(&of_a);
    world.settle().await;
    assert_eq!(merges(&world), [b]);
    assert_eq!(world.holds("main", [1, 1, 3, 3]).len(), 5);
    world.build().await;
    assert_all_is_own(&world);
}

#[tokio::test]
async fn a_merge_that_is_told_after_its_build_brings_nothing() {
    for (policy, reversed) in [(POLICY, false), (POLICY, true), (ISOLATED, false), (ISOLATED, true)] {
        let (mut world, head) = World::with_branch(policy).await;
        world.loses_promotions = true;
        let build = merge(&mut world, "feature-a", &head, [2, 2, 2, 1]).await;
        world.run(&build);
        world.settle().await;
        world.loses_promotions = false;
        let before = world.line("main").unwrap();
        world.wait(SignedDuration::from_mins(10));
        // Whatever comes late, twice and in any order.
        world.replay(reversed).await;
        world.night().await;
        assert!(world.running().is_empty());
        assert_eq!(world.line("main").unwrap(), before);
        assert_all_is_own(&world);
        assert_eq!(world.holds("main", [2, 2, 1, 1]).len(), 4);
    }
}

/// The queue is slow: main's build of the merge runs already when the line gets what was merged.
#[tokio::test]
async fn probation_counts_from_the_merge_and_not_from_its_promotion() {
    let (mut world, head) = World::with_branch(ISOLATED).await;
    // Squashed: the push does not name the branch's head. The branch's last step is no step of the merge, and no build
    // of main makes it main's own.
    let squashed = world.commit([2, 2, 2, 1]);
    world.pull_request("merged", "feature-a", &head, Some(&squashed)).await;
    world.push("main", &[&squashed]).await;
    world.settle_starts().await;
    let build = world.running().pop().expect("main's build");
    world.wait(SignedDuration::from_mins(5));
    world.settle_promotions().await;
    assert_eq!(merges(&world), [head]);
    world.run(&build);
    world.settle().await;
    assert_all_is_own(&world);
}

/// By its time the merge is younger than main's build of it, as where clocks disagree.
#[tokio::test]
async fn a_build_ends_the_probation_of_the_commits_that_it_was_told_of() {
    let (mut world, head) = World::with_branch(ISOLATED).await;
    // The branch's last step is no step of the merge, and no build of main makes it main's own.
    let squashed = world.commit([2, 2, 2, 1]);
    world.loses_promotions = true;
    world.push("main", &[&head, &squashed]).await;
    world.settle().await;
    let build = world.running().pop().expect("main's build");
    world.loses_promotions = false;
    world.wait(SignedDuration::from_mins(1));
    world.pull_request("merged", "feature-a", &head, Some(&squashed)).await;
    world.settle_promotions().await;
    assert_eq!(merges(&world), [head]);
    world.run(&build);
    world.settle().await;
    assert_all_is_own(&world);
}

#[tokio::test]
async fn a_build_of_main_that_fails_ends_no_probation_and_the_next_one_does() {
    let (mut world, head) = World::with_branch(ISOLATED).await;
    let build = merge(&mut world, "feature-a", &head, [2, 2, 1, 1]).await;
    let commit = build.handed.clone().and_then(|handed| handed.commit).unwrap();
    world.end(&build.id, BuildStatus::Failed, &commit);
    world.settle().await;
    world.end_all(BuildStatus::Stopped);
    assert_eq!(merges(&world), [head]);
    let next = world.commit([2, 2, 1, 1]);
    world.push("main", &[&next]).await;
    let ran = world.build().await;
    assert_eq!((ran.len(), ran[0].ran.len()), (1, 0), "it is warm: {ran:?}");
    assert_all_is_own(&world);
    assert_eq!(world.holds("main", [2, 2, 1, 1]).len(), 5);
}

#[tokio::test]
async fn without_a_build_of_main_probation_ends_by_time() {
    for (policy, hours) in
        [(ISOLATED.to_owned(), 7 * 24), (POLICY.replace("defaults:", "defaults:\n  probation: 2h"), 2)]
    {
        let (mut world, head) = World::with_branch(&policy).await;
        let own = world.line("main").unwrap().1;
        merge(&mut world, "feature-a", &head, [2, 2, 1, 1]).await;
        world.end_all(BuildStatus::Stopped);
        world.wait(SignedDuration::from_hours(hours) - SignedDuration::from_mins(2));
        world.night().await;
        world.end_all(BuildStatus::Stopped);
        assert_eq!(merges(&world), std::slice::from_ref(&head), "{hours}");
        let before = world.line("main").unwrap().0;
        world.wait(SignedDuration::from_mins(2));
        world.night().await;
        assert_all_is_own(&world);
        assert_eq!(world.line("main").unwrap().1, own, "{hours}: as if nothing had been merged");
        let history = world.account.tags(&world.repository()).into_iter();
        let mut history = history.filter(|(tag, _)| tag.contains(".history.main.")).map(|(_, digest)| digest);
        assert!(history.any(|digest| digest == before), "{hours}: what has left can be gone back to");
    }
}

#[tokio::test]
async fn what_a_rollback_brings_back_on_probation_is_judged_as_ever() {
    let (mut world, head) = World::with_branch(ISOLATED).await;
    let build = merge(&mut world, "feature-a", &head, [2, 2, 1, 1]).await;
    let with_marks = world.account.image(&world.repository(), "app.main").unwrap();
    world.run(&build);
    world.settle().await;
    assert_all_is_own(&world);
    world.wait(SignedDuration::from_mins(10));
    // As `stoker rollback` writes it.
    let mut manifest: serde_json::Value = serde_json::from_slice(&with_marks.manifest).unwrap();
    manifest["annotations"]["stoker.rolled-back-at"] = world.account.now().to_string().into();
    let manifest = bytes::Bytes::from(manifest.to_string());
    world.account.push(&world.repository(), "app.main", MANIFEST_MEDIA_TYPE, manifest, Vec::new());
    assert_eq!(merges(&world), [head]);
    world.wait(SignedDuration::from_mins(10));
    let next = world.commit([1, 1, 1, 2]);
    world.push("main", &[&next]).await;
    world.build().await;
    assert_all_is_own(&world);
    assert_eq!(world.holds("main", [2, 2, 1, 1]).len(), 2, "no build since has used the branch's");
}

#[tokio::test]
async fn a_build_from_scratch_takes_the_place_of_what_is_on_probation_too() {
    let policy = ISOLATED.replace("stale-after: 7d", "stale-after: 7d, refresh: 1d");
    let (mut world, head) = World::with_branch(&policy).await;
    world.wait(SignedDuration::from_hours(25));
    world.night().await;
    let refresh = world.running().pop().expect("a build from scratch");
    assert!(refresh.handed.as_ref().is_some_and(|handed| handed.refresh));
    world.wait(SignedDuration::from_mins(1));
    let merge_commit = world.commit([2, 2, 1, 1]);
    world.push("main", &[&head, &merge_commit]).await;
    world.settle_promotions().await;
    assert_eq!(merges(&world), [head]);
    world.run(&refresh);
    world.settle_promotions().await;
    assert_all_is_own(&world);
    assert_eq!(world.line("main").unwrap().1.records(), 5);
}

/// Whoever no longer lets merges bring anything to main wants what they brought out of it.
#[tokio::test]
async fn what_is_on_probation_leaves_when_merges_bring_nothing_any_more() {
    let (mut world, head) = World::with_branch(ISOLATED).await;
    merge(&mut world, "feature-a", &head, [2, 2, 1, 1]).await;
    assert_eq!(merges(&world), [head]);
    for (promotion, moves) in [("merged", 0), ("rebuild", 1), ("rebuild", 0)] {
        let policy = ISOLATED.replace("defaults:", &format!("defaults:\n  promotion: {promotion}"));
        let policy = Policy::parse("the story's policy", &policy).unwrap();
        let hints = [Hint::Overdue { project: ProjectName::new("app").unwrap() }];
        let promoted = promote(&world.account, &policy, &hints, world.account.now());
        let answers = world.account.invoke("promote-cache", None, promoted).await.unwrap();
        let outcomes = answers.into_iter().flat_map(|answer| answer.expect("an outcome"));
        let moved = outcomes.filter(|outcome| matches!(outcome, Outcome::Moved { .. })).count();
        assert_eq!(moved, moves, "{promotion}");
    }
    assert_all_is_own(&world);
}
