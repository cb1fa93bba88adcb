//! From a push to a hot main.

use jiff::SignedDuration;
use scenarios::environment::TestEnvironment;

/// `main` is warm, and two branches changed the dependencies of one stage each.
async fn two_branches() -> (TestEnvironment, [stoker_core::names::Commit; 3]) {
    let mut env = TestEnvironment::new();
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    env.wait(SignedDuration::from_mins(10));
    let a = env.commit([2, 2, 1, 1]);
    let b = env.commit([1, 1, 2, 2]);
    env.push("feature-a", &[&a]).await;
    env.push("feature-b", &[&b]).await;
    env.build().await;
    env.wait(SignedDuration::from_mins(10));
    (env, [base, a, b])
}

#[tokio::test]
async fn a_first_push_builds_cold_and_fills_its_line() {
    let mut env = TestEnvironment::new();
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    let ran = env.build().await;
    assert_eq!(ran.len(), 1);
    assert_eq!(ran[0].line, "branch/feature-a");
    assert_eq!(ran[0].ran.len(), 5, "{:?}", ran[0].ran);
    assert!(ran[0].reads.is_empty());
    assert_eq!(env.line("branch/feature-a").unwrap().1.records(), 5);
    assert!(env.line("main").is_none(), "only what was merged reaches main");
}

#[tokio::test]
async fn a_second_push_runs_only_what_changed() {
    let mut env = TestEnvironment::new();
    let first = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&first]).await;
    env.build().await;
    let second = env.commit([1, 2, 1, 1]);
    env.push("feature-a", &[&second]).await;
    let ran = env.build().await;
    assert_eq!(ran[0].ran, ["compile-a", "link"]);
    assert_eq!(ran[0].reads, ["branch/feature-a"]);
}

#[tokio::test]
async fn a_new_branch_starts_from_main() {
    let (env, _) = two_branches().await;
    let builds = env.account.builds.borrow();
    assert_eq!(env.reported(&builds[2], "STOKER_READS"), "main");
}

#[tokio::test]
async fn after_both_merges_main_runs_no_dependency_step() {
    let (mut env, [_, a, b]) = two_branches().await;
    let merge_a = env.commit([2, 2, 1, 1]);
    env.pull_request("merged", "feature-a", &a, Some(&merge_a)).await;
    env.push("main", &[&a, &merge_a]).await;
    env.settle().await;
    let merge_b = env.commit([2, 2, 2, 2]);
    env.pull_request("merged", "feature-b", &b, Some(&merge_b)).await;
    env.push("main", &[&b, &merge_b]).await;
    let ran = env.build().await;
    assert_eq!(ran.len(), 2, "one build for each head of main: {ran:?}");
    assert_eq!(ran[1].ran, ["link"], "only the last step needs both branches");
    assert_eq!(env.holds("main", [2, 2, 2, 2]).len(), 5);
}

#[tokio::test]
async fn the_promotion_needs_no_build() {
    let (mut env, [_, a, _]) = two_branches().await;
    let before = env.line("main").unwrap().0;
    let merge = env.commit([2, 2, 1, 1]);
    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    env.settle_promotions().await;
    assert!(env.running().is_empty());
    assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5);
    let history: Vec<_> = env.account.tags(&env.repository()).into_iter().collect();
    let left = history.iter().any(|(tag, digest)| tag.starts_with("app.history.main.") && *digest == before);
    assert!(left, "the cache that main left stays for builds that hold it: {history:?}");
}

#[tokio::test]
async fn the_merge_event_may_come_after_the_push_or_never() {
    let mut ends = Vec::new();
    for order in
        [&["merged", "push"][..], &["push", "merged"], &["push"], &["merged", "push", "push", "merged"]]
    {
        let (mut env, [_, a, _]) = two_branches().await;
        let merge = env.commit([2, 2, 1, 1]);
        let mut first = Vec::new();
        for event in order {
            match *event {
                "push" => env.push("main", &[&a, &merge]).await,
                _ => env.pull_request("merged", "feature-a", &a, Some(&merge)).await,
            }
            first.extend(env.build().await);
        }
        assert_eq!(first.len(), 1, "{order:?}");
        assert!(!first[0].ran_dependencies(), "{order:?}: {first:?}");
        let (_, cache) = env.line("main").unwrap();
        ends.push(cache.serialise(std::collections::BTreeMap::new()).config_digest);
    }
    assert!(ends.iter().all(|end| *end == ends[0]), "the same cache, whatever the order: {ends:?}");
}

#[tokio::test]
async fn mains_build_reads_the_merged_branch_even_before_the_promotion() {
    let (mut env, [_, a, _]) = two_branches().await;
    let merge = env.commit([2, 2, 1, 1]);
    env.push("main", &[&a, &merge]).await;
    env.settle_starts().await;
    let build = env.running().pop().expect("a build of main");
    assert_eq!(env.reported(&build, "STOKER_READS"), format!("main commit/{}", a.short()));
    let ran = env.run(&build);
    assert!(!ran.ran_dependencies(), "{ran:?}");
}

#[tokio::test]
async fn a_push_and_its_pull_request_are_one_build() {
    let mut env = TestEnvironment::new();
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.pull_request("opened", "feature-a", &a, None).await;
    assert_eq!(env.build().await.len(), 1);
    env.wait(SignedDuration::from_hours(1));
    env.pull_request("reopened", "feature-a", &a, None).await;
    assert_eq!(env.build().await.len(), 0, "also after the token's five minutes");
}

#[tokio::test]
async fn a_pull_request_to_another_branch_reads_its_base() {
    let (mut env, _) = two_branches().await;
    let stacked = env.commit([2, 3, 1, 1]);
    env.pull_request_to("feature-a", "example/app", "opened", "stacked", &stacked, None).await;
    let ran = env.build().await;
    assert_eq!(ran[0].reads, ["branch/feature-a", "main"]);
    assert_eq!(ran[0].ran, ["compile-a", "link"]);
}

#[tokio::test]
async fn everything_a_second_time_changes_nothing() {
    for reversed in [false, true] {
        for later in [SignedDuration::from_secs(1), SignedDuration::from_hours(20)] {
            let (mut env, [_, a, b]) = two_branches().await;
            let merge = env.commit([2, 2, 2, 2]);
            env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
            env.push("main", &[&a, &b, &merge]).await;
            env.build().await;
            let lines = env.lines();
            let builds = env.account.builds.borrow().len();
            env.wait(later);
            env.replay(reversed).await;
            assert_eq!(env.account.builds.borrow().len(), builds, "no build starts again");
            assert_eq!(env.lines(), lines, "no line moves");
        }
    }
}

#[tokio::test]
async fn a_late_build_of_an_old_commit_takes_nothing_from_its_line() {
    let mut env = TestEnvironment::new();
    let old = env.commit([1, 1, 1, 1]);
    let new = env.commit([2, 2, 2, 2]);
    env.push("feature-a", &[&old]).await;
    env.settle().await;
    env.wait(SignedDuration::from_mins(1));
    env.push("feature-a", &[&new]).await;
    env.settle().await;
    let [late, early] = &env.running()[..] else { panic!("two builds") };
    env.run(early);
    env.settle().await;
    env.run(late);
    env.settle().await;
    assert_eq!(env.holds("branch/feature-a", [2, 2, 2, 2]).len(), 5);
    let image = env.account.image(&env.repository(), "app.branch.feature-a").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    assert_eq!(manifest["annotations"]["stoker.commit"], new.as_str(), "the newest build is the line's head");
}

#[tokio::test]
async fn ten_merges_in_one_batch_are_one_read_and_one_write_of_main() {
    let mut env = TestEnvironment::new();
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    let heads: Vec<_> = (0..10).map(|i| env.commit([10 + i, 1, 1, 1])).collect();
    for (i, head) in heads.iter().enumerate() {
        env.push(&format!("feature-{i}"), &[head]).await;
        env.build().await;
    }
    // A merge that is no younger than main's newest build has been built.
    env.wait(SignedDuration::from_mins(10));
    for (i, head) in heads.iter().enumerate() {
        let merge = env.commit([10, 1, 1, 1]);
        env.pull_request("merged", &format!("feature-{i}"), head, Some(&merge)).await;
    }
    let before = env.account.calls.borrow().len();
    env.settle_promotions().await;
    let calls = env.account.calls.borrow()[before..].to_vec();
    let count = |name: &str| calls.iter().filter(|call| **call == name).count();
    assert_eq!(count("ecr:BatchGetImage"), 1);
    assert_eq!(count("registry:PutManifest"), 2, "the history and the line");
    assert_eq!(count("registry:GetBlob"), 11);
    assert_eq!(env.line("main").unwrap().1.records(), 5 + 10 * 3);
}

#[tokio::test]
async fn a_lost_build_event_is_made_good_by_the_next_event_of_its_export() {
    let mut env = TestEnvironment::new();
    env.loses_aws_events = true;
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    assert!(env.line("branch/feature-a").is_none());
    env.loses_aws_events = false;
    env.replay(true).await;
    assert_eq!(env.holds("branch/feature-a", [1, 1, 1, 1]).len(), 5);
}

#[tokio::test]
async fn the_night_warms_only_what_needs_it() {
    let mut env = TestEnvironment::new();
    let head = env.commit([1, 1, 1, 1]);
    env.night().await;
    assert_eq!(env.running().len(), 1, "main has no cache");
    env.night().await;
    assert_eq!(env.running().len(), 1, "it is being filled");
    env.build().await;
    assert_eq!(env.holds("main", [1, 1, 1, 1]).len(), 5);
    env.wait(SignedDuration::from_hours(24));
    env.night().await;
    assert!(env.running().is_empty(), "it was filled yesterday");
    env.wait(SignedDuration::from_hours(24 * 7));
    env.night().await;
    assert_eq!(env.running().len(), 1, "it is stale");
    drop(head);
}

#[tokio::test]
async fn a_build_of_another_commit_than_it_was_started_for_is_not_promoted() {
    let mut env = TestEnvironment::new();
    let reported = env.commit([1, 1, 1, 1]);
    let other = env.commit([2, 2, 2, 2]);
    env.push("feature-a", &[&reported]).await;
    env.settle().await;
    let build = env.running().pop().unwrap();
    env.export(
        &env.reported(&build, "STOKER_EXPORT"),
        &scenarios::environment::Source { versions: [2, 2, 2, 2] },
        |_| "2026-11-21T08:00:00Z".parse().unwrap(),
    );
    env.end(&build.id, stoker_core::ports::BuildStatus::Succeeded, &other);
    env.settle().await;
    assert!(env.lines().is_empty(), "{:?}", env.lines());
}
