//! From a push to a hot main.

use jiff::SignedDuration;
use scenarios::environment::World;

/// `main` is warm, and two branches changed the dependencies of one stage each.
async fn two_branches() -> (World, [stoker_core::names::Commit; 3]) {
    let mut world = World::new();
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    world.wait(SignedDuration::from_mins(10));
    let a = world.commit([2, 2, 1, 1]);
    let b = world.commit([1, 1, 2, 2]);
    world.push("feature-a", &[&a]).await;
    world.push("feature-b", &[&b]).await;
    world.build().await;
    world.wait(SignedDuration::from_mins(10));
    (world, [base, a, b])
}

#[tokio::test]
async fn a_first_push_builds_cold_and_fills_its_line() {
    let mut world = World::new();
    let a = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&a]).await;
    let ran = world.build().await;
    assert_eq!(ran.len(), 1);
    assert_eq!(ran[0].line, "branch/feature-a");
    assert_eq!(ran[0].ran.len(), 5, "{:?}", ran[0].ran);
    assert!(ran[0].reads.is_empty());
    assert_eq!(world.line("branch/feature-a").unwrap().1.records(), 5);
    assert!(world.line("main").is_none(), "only what was merged reaches main");
}

#[tokio::test]
async fn a_second_push_runs_only_what_changed() {
    let mut world = World::new();
    let first = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&first]).await;
    world.build().await;
    let second = world.commit([1, 2, 1, 1]);
    world.push("feature-a", &[&second]).await;
    let ran = world.build().await;
    assert_eq!(ran[0].ran, ["compile-a", "link"]);
    assert_eq!(ran[0].reads, ["branch/feature-a"]);
}

#[tokio::test]
async fn a_new_branch_starts_from_main() {
    let (world, _) = two_branches().await;
    let builds = world.account.builds.borrow();
    assert_eq!(world.told(&builds[2], "STOKER_READS"), "main");
}

#[tokio::test]
async fn after_both_merges_main_runs_no_dependency_step() {
    let (mut world, [_, a, b]) = two_branches().await;
    let merge_a = world.commit([2, 2, 1, 1]);
    world.pull_request("merged", "feature-a", &a, Some(&merge_a)).await;
    world.push("main", &[&a, &merge_a]).await;
    world.settle().await;
    let merge_b = world.commit([2, 2, 2, 2]);
    world.pull_request("merged", "feature-b", &b, Some(&merge_b)).await;
    world.push("main", &[&b, &merge_b]).await;
    let ran = world.build().await;
    assert_eq!(ran.len(), 2, "one build for each head of main: {ran:?}");
    assert_eq!(ran[1].ran, ["link"], "only the last step needs both branches");
    assert_eq!(world.holds("main", [2, 2, 2, 2]).len(), 5);
}

#[tokio::test]
async fn the_promotion_needs_no_build() {
    let (mut world, [_, a, _]) = two_branches().await;
    let before = world.line("main").unwrap().0;
    let merge = world.commit([2, 2, 1, 1]);
    world.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    world.settle_promotions().await;
    assert!(world.running().is_empty());
    assert_eq!(world.holds("main", [2, 2, 1, 1]).len(), 5);
    let history: Vec<_> = world.account.tags(&world.repository()).into_iter().collect();
    let left = history.iter().any(|(tag, digest)| tag.starts_with("app.history.main.") && *digest == before);
    assert!(left, "the cache that main left stays for builds that hold it: {history:?}");
}

#[tokio::test]
async fn the_merge_event_may_come_after_the_push_or_never() {
    let mut ends = Vec::new();
    for order in
        [&["merged", "push"][..], &["push", "merged"], &["push"], &["merged", "push", "push", "merged"]]
    {
        let (mut world, [_, a, _]) = two_branches().await;
        let merge = world.commit([2, 2, 1, 1]);
        let mut first = Vec::new();
        for event in order {
            match *event {
                "push" => world.push("main", &[&a, &merge]).await,
                _ => world.pull_request("merged", "feature-a", &a, Some(&merge)).await,
            }
            first.extend(world.build().await);
        }
        assert_eq!(first.len(), 1, "{order:?}");
        assert!(!first[0].ran_dependencies(), "{order:?}: {first:?}");
        let (_, cache) = world.line("main").unwrap();
        ends.push(cache.serialise(std::collections::BTreeMap::new()).config_digest);
    }
    assert!(ends.iter().all(|end| *end == ends[0]), "the same cache, whatever the order: {ends:?}");
}

#[tokio::test]
async fn mains_build_reads_the_merged_branch_even_before_the_promotion() {
    let (mut world, [_, a, _]) = two_branches().await;
    let merge = world.commit([2, 2, 1, 1]);
    world.push("main", &[&a, &merge]).await;
    world.settle_starts().await;
    let build = world.running().pop().expect("a build of main");
    assert_eq!(world.told(&build, "STOKER_READS"), format!("main commit/{}", a.short()));
    let ran = world.run(&build);
    assert!(!ran.ran_dependencies(), "{ran:?}");
}

#[tokio::test]
async fn a_push_and_its_pull_request_are_one_build() {
    let mut world = World::new();
    let a = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&a]).await;
    world.pull_request("opened", "feature-a", &a, None).await;
    assert_eq!(world.build().await.len(), 1);
    world.wait(SignedDuration::from_hours(1));
    world.pull_request("reopened", "feature-a", &a, None).await;
    assert_eq!(world.build().await.len(), 0, "also after the token's five minutes");
}

#[tokio::test]
async fn a_pull_request_to_another_branch_reads_its_base() {
    let (mut world, _) = two_branches().await;
    let stacked = world.commit([2, 3, 1, 1]);
    world.pull_request_to("feature-a", "example/app", "opened", "stacked", &stacked, None).await;
    let ran = world.build().await;
    assert_eq!(ran[0].reads, ["branch/feature-a", "main"]);
    assert_eq!(ran[0].ran, ["compile-a", "link"]);
}

#[tokio::test]
async fn everything_a_second_time_changes_nothing() {
    for reversed in [false, true] {
        for later in [SignedDuration::from_secs(1), SignedDuration::from_hours(20)] {
            let (mut world, [_, a, b]) = two_branches().await;
            let merge = world.commit([2, 2, 2, 2]);
            world.pull_request("merged", "feature-a", &a, Some(&merge)).await;
            world.push("main", &[&a, &b, &merge]).await;
            world.build().await;
            let lines = world.lines();
            let builds = world.account.builds.borrow().len();
            world.wait(later);
            world.replay(reversed).await;
            assert_eq!(world.account.builds.borrow().len(), builds, "no build starts again");
            assert_eq!(world.lines(), lines, "no line moves");
        }
    }
}

#[tokio::test]
async fn a_late_build_of_an_old_commit_takes_nothing_from_its_line() {
    let mut world = World::new();
    let old = world.commit([1, 1, 1, 1]);
    let new = world.commit([2, 2, 2, 2]);
    world.push("feature-a", &[&old]).await;
    world.settle().await;
    world.wait(SignedDuration::from_mins(1));
    world.push("feature-a", &[&new]).await;
    world.settle().await;
    let [late, early] = &world.running()[..] else { panic!("two builds") };
    world.run(early);
    world.settle().await;
    world.run(late);
    world.settle().await;
    assert_eq!(world.holds("branch/feature-a", [2, 2, 2, 2]).len(), 5);
    let image = world.account.image(&world.repository(), "app.branch.feature-a").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    assert_eq!(manifest["annotations"]["stoker.commit"], new.as_str(), "the newest build is the line's head");
}

#[tokio::test]
async fn ten_merges_in_one_batch_are_one_read_and_one_write_of_main() {
    let mut world = World::new();
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    let heads: Vec<_> = (0..10).map(|i| world.commit([10 + i, 1, 1, 1])).collect();
    for (i, head) in heads.iter().enumerate() {
        world.push(&format!("feature-{i}"), &[head]).await;
        world.build().await;
    }
    // A merge that is no younger than main's newest build has been built.
    world.wait(SignedDuration::from_mins(10));
    for (i, head) in heads.iter().enumerate() {
        let merge = world.commit([10, 1, 1, 1]);
        world.pull_request("merged", &format!("feature-{i}"), head, Some(&merge)).await;
    }
    let before = world.account.calls.borrow().len();
    world.settle_promotions().await;
    let calls = world.account.calls.borrow()[before..].to_vec();
    let count = |name: &str| calls.iter().filter(|call| **call == name).count();
    assert_eq!(count("ecr:BatchGetImage"), 1);
    assert_eq!(count("registry:PutManifest"), 2, "the history and the line");
    assert_eq!(count("registry:GetBlob"), 11);
    assert_eq!(world.line("main").unwrap().1.records(), 5 + 10 * 3);
}

#[tokio::test]
async fn a_lost_build_event_is_made_good_by_the_next_event_of_its_export() {
    let mut world = World::new();
    world.loses_aws_events = true;
    let a = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&a]).await;
    world.build().await;
    assert!(world.line("branch/feature-a").is_none());
    world.loses_aws_events = false;
    world.replay(true).await;
    assert_eq!(world.holds("branch/feature-a", [1, 1, 1, 1]).len(), 5);
}

#[tokio::test]
async fn the_night_warms_only_what_needs_it() {
    let mut world = World::new();
    let head = world.commit([1, 1, 1, 1]);
    world.night().await;
    assert_eq!(world.running().len(), 1, "main has no cache");
    world.night().await;
    assert_eq!(world.running().len(), 1, "it is being filled");
    world.build().await;
    assert_eq!(world.holds("main", [1, 1, 1, 1]).len(), 5);
    world.wait(SignedDuration::from_hours(24));
    world.night().await;
    assert!(world.running().is_empty(), "it was filled yesterday");
    world.wait(SignedDuration::from_hours(24 * 7));
    world.night().await;
    assert_eq!(world.running().len(), 1, "it is stale");
    drop(head);
}

#[tokio::test]
async fn a_build_of_another_commit_than_it_was_told_is_not_promoted() {
    let mut world = World::new();
    let told = world.commit([1, 1, 1, 1]);
    let other = world.commit([2, 2, 2, 2]);
    world.push("feature-a", &[&told]).await;
    world.settle().await;
    let build = world.running().pop().unwrap();
    world.export(
        &world.told(&build, "STOKER_EXPORT"),
        &scenarios::environment::Source { versions: [2, 2, 2, 2] },
        |_| "2026-11-21T08:00:00Z".parse().unwrap(),
    );
    world.end(&build.id, stoker_core::ports::BuildStatus::Succeeded, &other);
    world.settle().await;
    assert!(world.lines().is_empty(), "{:?}", world.lines());
}
