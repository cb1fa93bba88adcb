//! Every call that leaves the process fails once, before or after it took effect; the end is that of the baseline.

use std::collections::BTreeMap;

use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, TestEnvironment};
use stoker_core::error::Failure;
use stoker_core::event::Event;
use stoker_core::names::{Commit, Digest};

/// Main and a branch are built; answers the branch's commit.
async fn begin(env: &mut TestEnvironment, fault: Option<(usize, Fault)>) -> Commit {
    env.account.faults.borrow_mut().extend(fault);
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    let a = env.commit([2, 2, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    a
}

/// A run: a branch, its build, its merge, main's build. Answers where the lines' caches end, and the calls made.
async fn run(
    policy: &str,
    fault: Option<(usize, Fault)>,
) -> (BTreeMap<String, Digest>, usize, TestEnvironment) {
    let mut env = TestEnvironment::with_policy(policy);
    let a = begin(&mut env, fault).await;
    let merge = env.commit([2, 2, 1, 1]);
    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    env.push("main", &[&a, &merge]).await;
    env.build().await;
    let configs = ["main", "branch/feature-a"].map(|line| {
        let (_, cache) = env.line(line).expect("the line");
        (line.to_owned(), cache.serialise(BTreeMap::new()).config_digest)
    });
    let calls = env.account.calls.borrow().len();
    (BTreeMap::from(configs), calls, env)
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
    let (baseline, calls, env) = run(policy, None).await;
    assert!(calls > 30, "the run makes calls worth failing: {calls}");
    let builds = env.account.builds.borrow().len();
    for call in 0..calls {
        for fault in [
            Fault::Before(Failure::Throttled),
            Fault::Before(Failure::Unavailable),
            Fault::After(Failure::Unavailable),
            Fault::KilledBefore,
            Fault::KilledAfter,
        ] {
            let (end, _, env) = run(policy, Some((call, fault))).await;
            assert_eq!(end, baseline, "call {call} {fault:?}");
            assert_eq!(
                env.account.builds.borrow().len(),
                builds,
                "call {call} {fault:?}: one build for each head"
            );
            assert!(env.dead.is_empty(), "call {call} {fault:?}: nothing is given up: {:?}", env.dead);
        }
    }
}

/// A run of which AWS told nothing, and the night that finds out. Answers where the lines' caches end, and the calls
/// before and after the night.
async fn night(policy: &str, fault: Option<(usize, Fault)>) -> (BTreeMap<String, Digest>, [usize; 2]) {
    let mut env = TestEnvironment::with_policy(policy);
    env.loses_aws_events = true;
    begin(&mut env, fault).await;
    let before = env.account.calls.borrow().len();
    env.night().await;
    env.settle_promotions().await;
    let calls = env.account.calls.borrow().len();
    let configs = ["main", "branch/feature-a"].map(|line| {
        let (_, cache) = env.line(line).unwrap_or_else(|| panic!("{fault:?}: no {line}"));
        (line.to_owned(), cache.serialise(BTreeMap::new()).config_digest)
    });
    (BTreeMap::from(configs), [before, calls])
}

/// A promotion that ends half way must not look like one that is done.
#[tokio::test(start_paused = true)]
async fn any_call_of_a_night_may_be_the_last_of_its_function() {
    for policy in [POLICY, ISOLATED] {
        let (baseline, [before, calls]) = night(policy, None).await;
        assert!(calls > before + 15, "a night makes calls: {}", calls - before);
        for call in before..calls {
            for fault in [Fault::KilledBefore, Fault::KilledAfter, Fault::After(Failure::Unavailable)] {
                let (end, _) = night(policy, Some((call, fault))).await;
                assert_eq!(end, baseline, "call {call} {fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_refused_for_good_is_reported_and_holds_up_no_other_line() {
    let mut env = TestEnvironment::new();
    let a = env.commit([1, 1, 1, 1]);
    let b = env.commit([2, 2, 2, 2]);
    env.push("feature-a", &[&a]).await;
    env.push("feature-b", &[&b]).await;
    env.settle().await;
    // Feature A's line holds an ordinary image that somebody pushed by hand.
    let image = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",
        "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":[]}"#;
    let repository = env.repository();
    let media_type = buildkit_cache::MANIFEST_MEDIA_TYPE;
    env.account.push(&repository, "app.branch.feature-a", media_type, image.as_slice().into(), vec![]);
    env.build().await;
    assert_eq!(env.account.image(&repository, "app.branch.feature-a").unwrap().manifest, image.as_slice());
    let reported = env.notices.iter().filter(|notice| matches!(notice, Event::PromotionFailed(_))).count();
    assert_eq!(reported, 2, "the event of its build and that of its export: {:?}", env.notices);
    assert_eq!(env.waiting(), (0, 0));
    assert!(env.dead.is_empty(), "a message that is tried again holds up all others: {:?}", env.dead);
    assert_eq!(env.holds("branch/feature-b", [2, 2, 2, 2]).len(), 5);
}
