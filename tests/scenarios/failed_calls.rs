//! Every call that leaves the process fails once, before or after it took effect; the end is that of a calm run.

use std::collections::BTreeMap;

use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, World};
use stoker_core::error::Failure;
use stoker_core::event::Event;
use stoker_core::names::{Commit, Digest};

/// Main and a branch are built; answers the branch's commit.
async fn begin(world: &mut World, fault: Option<(usize, Fault)>) -> Commit {
    world.account.faults.borrow_mut().extend(fault);
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    let a = world.commit([2, 2, 1, 1]);
    world.push("feature-a", &[&a]).await;
    world.build().await;
    a
}

/// A life: a branch, its build, its merge, main's build. Answers where the lines' caches end, and the calls made.
async fn life(policy: &str, fault: Option<(usize, Fault)>) -> (BTreeMap<String, Digest>, usize, World) {
    let mut world = World::with_policy(policy);
    let a = begin(&mut world, fault).await;
    let merge = world.commit([2, 2, 1, 1]);
    world.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    world.push("main", &[&a, &merge]).await;
    world.build().await;
    let configs = ["main", "branch/feature-a"].map(|line| {
        let (_, cache) = world.line(line).expect("the line");
        (line.to_owned(), cache.serialise(BTreeMap::new()).config_digest)
    });
    let calls = world.account.calls.borrow().len();
    (BTreeMap::from(configs), calls, world)
}

#[tokio::test]
async fn any_call_may_fail_once() {
    any_call_of(POLICY).await;
}

#[tokio::test]
async fn any_call_may_fail_once_where_builds_and_lines_are_apart() {
    any_call_of(ISOLATED).await;
}

async fn any_call_of(policy: &str) {
    let (calm, calls, world) = life(policy, None).await;
    assert!(calls > 30, "the life makes calls worth failing: {calls}");
    let builds = world.account.builds.borrow().len();
    for call in 0..calls {
        for fault in [
            Fault::Before(Failure::Throttled),
            Fault::Before(Failure::Unavailable),
            Fault::After(Failure::Unavailable),
            Fault::KilledBefore,
            Fault::KilledAfter,
        ] {
            let (end, _, world) = life(policy, Some((call, fault))).await;
            assert_eq!(end, calm, "call {call} {fault:?}");
            assert_eq!(
                world.account.builds.borrow().len(),
                builds,
                "call {call} {fault:?}: one build for each head"
            );
            assert!(world.dead.is_empty(), "call {call} {fault:?}: nothing is given up: {:?}", world.dead);
        }
    }
}

/// A life of which AWS told nothing, and the night that finds out. Answers where the lines' caches end, and the calls before
/// and after the night.
async fn night(policy: &str, fault: Option<(usize, Fault)>) -> (BTreeMap<String, Digest>, [usize; 2]) {
    let mut world = World::with_policy(policy);
    world.loses_aws_events = true;
    begin(&mut world, fault).await;
    let before = world.account.calls.borrow().len();
    world.night().await;
    world.settle_promotions().await;
    let calls = world.account.calls.borrow().len();
    let configs = ["main", "branch/feature-a"].map(|line| {
        let (_, cache) = world.line(line).unwrap_or_else(|| panic!("{fault:?}: no {line}"));
        (line.to_owned(), cache.serialise(BTreeMap::new()).config_digest)
    });
    (BTreeMap::from(configs), [before, calls])
}

/// A promotion that ends half way must not look like one that is done.
#[tokio::test(start_paused = true)]
async fn any_call_of_a_night_may_be_the_last_of_its_function() {
    for policy in [POLICY, ISOLATED] {
        let (calm, [before, calls]) = night(policy, None).await;
        assert!(calls > before + 15, "a night makes calls: {}", calls - before);
        for call in before..calls {
            for fault in [Fault::KilledBefore, Fault::KilledAfter, Fault::After(Failure::Unavailable)] {
                let (end, _) = night(policy, Some((call, fault))).await;
                assert_eq!(end, calm, "call {call} {fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_refused_for_good_is_told_to_people_and_holds_up_no_other_line() {
    let mut world = World::new();
    let a = world.commit([1, 1, 1, 1]);
    let b = world.commit([2, 2, 2, 2]);
    world.push("feature-a", &[&a]).await;
    world.push("feature-b", &[&b]).await;
    world.settle().await;
    // Feature A's line holds an ordinary image that somebody pushed by hand.
    let image = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",
        "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":[]}"#;
    let repository = world.repository();
    let media_type = buildkit_cache::MANIFEST_MEDIA_TYPE;
    world.account.push(&repository, "app.branch.feature-a", media_type, image.as_slice().into(), vec![]);
    world.build().await;
    assert_eq!(world.account.image(&repository, "app.branch.feature-a").unwrap().manifest, image.as_slice());
    let told = world.notices.iter().filter(|notice| matches!(notice, Event::PromotionFailed(_))).count();
    assert_eq!(told, 2, "the event of its build and that of its export: {:?}", world.notices);
    assert_eq!(world.waiting(), (0, 0));
    assert!(world.dead.is_empty(), "a message that is tried again holds up all others: {:?}", world.dead);
    assert_eq!(world.holds("branch/feature-b", [2, 2, 2, 2]).len(), 5);
}
