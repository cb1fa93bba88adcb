//! One night makes good what lost events would have said.

use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, TestEnvironment};
use stoker_core::error::Failure;
use stoker_core::event::{Event, Tick};

/// A run with its nights: a branch, its merge, main's build. With `lost` no event ever moves a line.
async fn run(policy: &str, lost: bool) -> TestEnvironment {
    let mut env = TestEnvironment::with_policy(policy);
    env.loses_aws_events = lost;
    env.loses_promotions = lost;
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    let a = env.commit([2, 2, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    let b = env.commit([1, 1, 2, 2]);
    env.push("feature-b", &[&b]).await;
    env.build().await;
    // Of two builds of main at the same second either may be called the newer.
    env.wait(SignedDuration::from_mins(1));
    let merge = env.commit([2, 2, 1, 1]);
    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    env.push("main", &[&a, &merge]).await;
    env.build().await;
    env.wait(SignedDuration::from_hours(8));
    env
}

fn held(env: &TestEnvironment) -> Vec<(String, usize)> {
    let lines = ["main", "branch/feature-a", "branch/feature-b"].into_iter();
    lines.map(|line| (line.to_owned(), env.line(line).map_or(0, |(_, cache)| cache.records()))).collect()
}

#[tokio::test(start_paused = true)]
async fn one_night_without_events_reaches_the_same_lines() {
    for policy in [POLICY, ISOLATED] {
        let mut baseline = run(policy, false).await;
        baseline.night().await;
        let mut lost = run(policy, true).await;
        assert!(lost.lines().is_empty(), "nothing has moved: {:?}", lost.lines());
        lost.night().await;
        assert_eq!(lost.lines().keys().collect::<Vec<_>>(), baseline.lines().keys().collect::<Vec<_>>());
        assert_eq!(
            held(&lost),
            [("main".to_owned(), 8), ("branch/feature-a".to_owned(), 5), ("branch/feature-b".to_owned(), 5)]
        );
        // With its events main's own build had all from the branch; without them it ran the steps itself, to
        // the same end.
        assert_eq!(held(&lost), held(&baseline));
    }
}

#[tokio::test(start_paused = true)]
async fn a_night_after_a_quiet_day_changes_nothing_and_reads_little() {
    let mut env = run(ISOLATED, false).await;
    env.night().await;
    let lines = env.lines();
    let before = env.account.calls.borrow().len();
    env.wait(SignedDuration::from_mins(1));
    env.night().await;
    assert_eq!(env.lines(), lines);
    let calls = env.account.calls.borrow()[before..].to_vec();
    assert!(!calls.contains(&"registry:PutManifest"), "{calls:?}");
    let reads = calls.iter().filter(|call| **call == "registry:GetBlob").count();
    assert!(reads <= 4, "main, what was merged into it, and what is kept of two repositories: {calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_has_lost_a_layer_is_repaired_before_a_build_fails_for_it() {
    let mut env = run(ISOLATED, false).await;
    let (before, cache) = env.line("main").unwrap();
    let lost = cache.blobs().next().unwrap().digest.clone();
    env.account.lose_blob(&env.repository(), &lost);
    env.night().await;
    let (after, cache) = env.line("main").unwrap();
    assert_ne!(before, after);
    assert!(cache.blobs().all(|blob| blob.digest != lost));
    assert!(cache.layers() >= 7, "what rests on other layers stays: {}", cache.layers());
}

#[tokio::test(start_paused = true)]
async fn a_line_that_has_lost_its_config_begins_anew() {
    let mut env = run(ISOLATED, false).await;
    let image = env.account.image(&env.repository(), "app.main").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    let config = stoker_core::names::Digest::new(manifest["config"]["digest"].as_str().unwrap()).unwrap();
    env.account.lose_blob(&env.repository(), &config);
    env.night().await;
    let head = env.commit([2, 2, 1, 1]);
    env.push("main", &[&head]).await;
    env.build().await;
    assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5);
}

const ONCE: Tick = Tick { slots: 1, every_minutes: 1 };

#[tokio::test(start_paused = true)]
async fn looking_moves_no_line_and_what_is_found_waits_with_the_promotions() {
    let mut env = run(ISOLATED, true).await;
    let before = env.account.calls.borrow().len();
    env.tick(Event::NightlyReconcile(ONCE));
    assert_eq!(env.reconciling(), (1, 0));
    env.reconcile().await;
    assert_eq!(env.reconciling(), (1, 0), "a project's turn");
    env.reconcile().await;
    assert_eq!(env.reconciling(), (0, 1), "it has lost something");
    let calls = env.account.calls.borrow()[before..].to_vec();
    assert!(!calls.iter().any(|call| call.contains("Put") && *call != "events:PutEvents"), "{calls:?}");
    assert!(env.lines().is_empty());
    env.settle_promotions().await;
    assert_eq!(env.lines().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_nothing_keeps_no_merge_waiting() {
    let mut env = run(ISOLATED, false).await;
    env.wait(SignedDuration::from_hours(49));
    env.tick(Event::NightlyReconcile(ONCE));
    env.reconcile().await;
    env.reconcile().await;
    assert_eq!(env.reconciling(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_tick_or_a_turn_that_comes_twice_changes_nothing_more() {
    let mut once = run(ISOLATED, true).await;
    once.night().await;
    let mut twice = run(ISOLATED, true).await;
    for _ in 0..2 {
        twice.tick(Event::NightlyReconcile(ONCE));
    }
    twice.reconcile().await;
    twice.reconcile().await;
    assert_eq!(twice.reconciling(), (0, 2));
    twice.night().await;
    assert_eq!(held(&twice), held(&once));
    assert_eq!(twice.lines(), once.lines());
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_comes_again_and_is_given_up_at_last() {
    let mut env = run(ISOLATED, true).await;
    env.tick(Event::NightlyReconcile(ONCE));
    env.reconcile().await;
    let fail = |env: &TestEnvironment| {
        let next = env.account.calls.borrow().len();
        env.account.faults.borrow_mut().insert(next, Fault::Before(Failure::Throttled));
    };
    fail(&env);
    env.reconcile().await;
    assert_eq!(env.reconciling(), (1, 0), "it comes again");
    env.settle_promotions().await;
    assert_eq!(env.lines().len(), 3, "and is made good");
    env.tick(Event::NightlyReconcile(ONCE));
    env.reconcile().await;
    for _ in 0..10 {
        fail(&env);
        env.reconcile().await;
    }
    assert_eq!((env.reconciling(), env.dead.len()), ((0, 0), 1));
}
