//! One night makes good what lost events would have said.

use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, World};
use stoker_core::error::Failure;
use stoker_core::event::{Event, Tick};

/// A life with its nights: a branch, its merge, main's build. With `lost` no event ever moves a line.
async fn life(policy: &str, lost: bool) -> World {
    let mut world = World::with_policy(policy);
    world.loses_aws_events = lost;
    world.loses_promotions = lost;
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    let a = world.commit([2, 2, 1, 1]);
    world.push("feature-a", &[&a]).await;
    world.build().await;
    let b = world.commit([1, 1, 2, 2]);
    world.push("feature-b", &[&b]).await;
    world.build().await;
    // Of two builds of main at the same second either may be called the newer.
    world.wait(SignedDuration::from_mins(1));
    let merge = world.commit([2, 2, 1, 1]);
    world.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    world.push("main", &[&a, &merge]).await;
    world.build().await;
    world.wait(SignedDuration::from_hours(8));
    world
}

fn held(world: &World) -> Vec<(String, usize)> {
    let lines = ["main", "branch/feature-a", "branch/feature-b"].into_iter();
    lines.map(|line| (line.to_owned(), world.line(line).map_or(0, |(_, cache)| cache.records()))).collect()
}

#[tokio::test(start_paused = true)]
async fn one_night_without_events_reaches_the_same_lines() {
    for policy in [POLICY, ISOLATED] {
        let mut calm = life(policy, false).await;
        calm.night().await;
        let mut lost = life(policy, true).await;
        assert!(lost.lines().is_empty(), "nothing has moved: {:?}", lost.lines());
        lost.night().await;
        assert_eq!(lost.lines().keys().collect::<Vec<_>>(), calm.lines().keys().collect::<Vec<_>>());
        assert_eq!(
            held(&lost),
            [("main".to_owned(), 8), ("branch/feature-a".to_owned(), 5), ("branch/feature-b".to_owned(), 5)]
        );
        // With its events main's own build had all from the branch; without them it ran the steps itself, to the same end.
        assert_eq!(held(&lost), held(&calm));
    }
}

#[tokio::test(start_paused = true)]
async fn a_night_after_a_calm_day_changes_nothing_and_reads_little() {
    let mut world = life(ISOLATED, false).await;
    world.night().await;
    let lines = world.lines();
    let before = world.account.calls.borrow().len();
    world.wait(SignedDuration::from_mins(1));
    world.night().await;
    assert_eq!(world.lines(), lines);
    let calls = world.account.calls.borrow()[before..].to_vec();
    assert!(!calls.contains(&"registry:PutManifest"), "{calls:?}");
    let reads = calls.iter().filter(|call| **call == "registry:GetBlob").count();
    assert!(reads <= 4, "main, what was merged into it, and what is kept of two repositories: {calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_has_lost_a_layer_is_mended_before_a_build_fails_for_it() {
    let mut world = life(ISOLATED, false).await;
    let (before, cache) = world.line("main").unwrap();
    let lost = cache.blobs().next().unwrap().digest.clone();
    world.account.lose_blob(&world.repository(), &lost);
    world.night().await;
    let (after, cache) = world.line("main").unwrap();
    assert_ne!(before, after);
    assert!(cache.blobs().all(|blob| blob.digest != lost));
    assert!(cache.layers() >= 7, "what rests on other layers stays: {}", cache.layers());
}

#[tokio::test(start_paused = true)]
async fn a_line_that_has_lost_its_config_begins_anew() {
    let mut world = life(ISOLATED, false).await;
    let image = world.account.image(&world.repository(), "app.main").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    let config = stoker_core::names::Digest::new(manifest["config"]["digest"].as_str().unwrap()).unwrap();
    world.account.lose_blob(&world.repository(), &config);
    world.night().await;
    let head = world.commit([2, 2, 1, 1]);
    world.push("main", &[&head]).await;
    world.build().await;
    assert_eq!(world.holds("main", [2, 2, 1, 1]).len(), 5);
}

const ONCE: Tick = Tick { slots: 1, every_minutes: 1 };

#[tokio::test(start_paused = true)]
async fn looking_moves_no_line_and_what_is_found_waits_with_the_promotions() {
    let mut world = life(ISOLATED, true).await;
    let before = world.account.calls.borrow().len();
    world.tick(Event::NightlySweep(ONCE));
    assert_eq!(world.sweeping(), (1, 0));
    world.sweep().await;
    assert_eq!(world.sweeping(), (1, 0), "a project's turn");
    world.sweep().await;
    assert_eq!(world.sweeping(), (0, 1), "it has lost something");
    let calls = world.account.calls.borrow()[before..].to_vec();
    assert!(!calls.iter().any(|call| call.contains("Put") && *call != "events:PutEvents"), "{calls:?}");
    assert!(world.lines().is_empty());
    world.settle_promotions().await;
    assert_eq!(world.lines().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_nothing_keeps_no_merge_waiting() {
    let mut world = life(ISOLATED, false).await;
    world.wait(SignedDuration::from_hours(49));
    world.tick(Event::NightlySweep(ONCE));
    world.sweep().await;
    world.sweep().await;
    assert_eq!(world.sweeping(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_tick_or_a_turn_that_comes_twice_changes_nothing_more() {
    let mut once = life(ISOLATED, true).await;
    once.night().await;
    let mut twice = life(ISOLATED, true).await;
    for _ in 0..2 {
        twice.tick(Event::NightlySweep(ONCE));
    }
    twice.sweep().await;
    twice.sweep().await;
    assert_eq!(twice.sweeping(), (0, 2));
    twice.night().await;
    assert_eq!(held(&twice), held(&once));
    assert_eq!(twice.lines(), once.lines());
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_comes_again_and_is_given_up_at_last() {
    let mut world = life(ISOLATED, true).await;
    world.tick(Event::NightlySweep(ONCE));
    world.sweep().await;
    let fail = |world: &World| {
        let next = world.account.calls.borrow().len();
        world.account.faults.borrow_mut().insert(next, Fault::Before(Failure::Throttled));
    };
    fail(&world);
    world.sweep().await;
    assert_eq!(world.sweeping(), (1, 0), "it comes again");
    world.settle_promotions().await;
    assert_eq!(world.lines().len(), 3, "and is made good");
    world.tick(Event::NightlySweep(ONCE));
    world.sweep().await;
    for _ in 0..10 {
        fail(&world);
        world.sweep().await;
    }
    assert_eq!((world.sweeping(), world.dead.len()), ((0, 0), 1));
}
