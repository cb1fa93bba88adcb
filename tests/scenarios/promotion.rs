//! What merges bring to main, in every way that commits come to it.

use std::time::Duration;

use jiff::SignedDuration;
use scenarios::environment::{ISOLATED, POLICY, TestEnvironment};
use stoker_core::event::Event;

fn with_promotion(policy: &str, promotion: &str) -> String {
    policy.replace("defaults:", &format!("defaults:\n  promotion: {promotion}"))
}

fn puts(env: &TestEnvironment) -> usize {
    env.account.calls.borrow().iter().filter(|call| **call == "registry:PutManifest").count()
}

#[tokio::test]
async fn a_merge_brings_the_branchs_cache_or_leaves_it_to_a_build_of_main() {
    for policy in [POLICY, ISOLATED] {
        for (promotion, ran) in [("merged", 0), ("rebuild", 3), ("off", 3)] {
            let (mut env, a) = TestEnvironment::with_branch(&with_promotion(policy, promotion)).await;
            let before = env.line("main").unwrap().0;
            let merge = env.commit([2, 2, 1, 1]);
            env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
            env.push("main", &[&a, &merge]).await;
            env.settle().await;
            assert_eq!(env.line("main").unwrap().0 == before, promotion != "merged", "{promotion}");
            let build = env.running().pop().expect("main is built at the merge");
            let main = env.run(&build);
            assert_eq!(main.ran.len(), ran, "{promotion}: {main:?}");
            if promotion != "merged" {
                assert_eq!(main.reads, ["main"], "{promotion}: no branch's cache is read");
            }
            env.settle().await;
            assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5, "{promotion}: its own build fills it");
        }
    }
}

#[tokio::test]
async fn merges_between_branches_bring_caches_too_unless_that_is_off() {
    for (promotion, brought) in [("merged", true), ("rebuild", true), ("off", false)] {
        let (mut env, a) = TestEnvironment::with_branch(&with_promotion(ISOLATED, promotion)).await;
        let base = env.commit([1, 1, 2, 2]);
        env.push("release", &[&base]).await;
        env.build().await;
        let merge = env.commit([2, 2, 2, 2]);
        env.pull_request_to("release", "example/app", "merged", "feature-a", &a, Some(&merge)).await;
        env.settle_promotions().await;
        let holds = env.holds("branch/release", [2, 2, 2, 2]).len();
        assert_eq!(holds == 4, brought, "{promotion}: all but the last step, which needs both: {holds}");
    }
}

#[tokio::test]
async fn every_way_to_merge_is_as_hot() {
    for policy in [POLICY, ISOLATED] {
        for way in ["merge commit", "squash", "rebase", "fast-forward", "merge queue"] {
            let (mut env, a) = TestEnvironment::with_branch(policy).await;
            let merge = env.commit([2, 2, 1, 1]);
            match way {
                "merge commit" => {
                    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
                    env.push("main", &[&a, &merge]).await;
                }
                // Only the pull request's event knows the branch's commit.
                "squash" => {
                    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
                    env.push("main", &[&merge]).await;
                }
                "rebase" => {
                    let first = env.commit([2, 1, 1, 1]);
                    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
                    env.push("main", &[&first, &merge]).await;
                }
                "fast-forward" => env.push("main", &[&a]).await,
                _ => {
                    env.push("gh-readonly-queue/main/pr-1-0000", &[&a, &merge]).await;
                    env.build().await;
                    env.push("main", &[&a, &merge]).await;
                    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
                }
            }
            let ran = env.build().await;
            assert_eq!(ran.len(), 1, "{way}: {ran:?}");
            assert!(ran[0].ran.is_empty(), "{way}: {:?}", ran[0]);
            assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5, "{way}");
        }
    }
}

#[tokio::test]
async fn several_pull_requests_in_one_push_all_come_along() {
    let (mut env, a) = TestEnvironment::with_branch(ISOLATED).await;
    let b = env.commit([1, 1, 2, 2]);
    env.push("feature-b", &[&b]).await;
    env.build().await;
    let merge = env.commit([2, 2, 2, 2]);
    env.push("main", &[&a, &b, &merge]).await;
    for (branch, head) in [("feature-a", &a), ("feature-b", &b)] {
        env.pull_request("merged", branch, head, Some(&merge)).await;
    }
    let ran = env.build().await;
    assert_eq!(ran[0].ran, ["link"], "only the last step needs both");
}

#[tokio::test]
async fn a_revert_is_hot_with_what_main_had_before() {
    let (mut env, a) = TestEnvironment::with_branch(ISOLATED).await;
    env.push("main", &[&a]).await;
    env.build().await;
    let revert = env.commit([1, 1, 1, 1]);
    env.push("main", &[&revert]).await;
    let ran = env.build().await;
    assert!(ran[0].ran.is_empty(), "{ran:?}");
}

#[tokio::test]
async fn a_forced_push_to_main_loses_nothing_and_builds_the_new_head() {
    let (mut env, a) = TestEnvironment::with_branch(ISOLATED).await;
    env.push("main", &[&a]).await;
    env.build().await;
    let before = env.holds("main", [2, 2, 1, 1]);
    let rewritten = env.commit([1, 1, 1, 2]);
    env.push("main", &[&rewritten]).await;
    let ran = env.build().await;
    assert_eq!(ran[0].ran, ["compile-b", "link"]);
    assert_eq!(env.holds("main", [2, 2, 1, 1]), before);
}

#[tokio::test]
async fn a_renamed_default_branch_keeps_its_cache() {
    let (mut env, a) = TestEnvironment::with_branch(ISOLATED).await;
    env.default_branch = "trunk".to_owned();
    env.delete_branch("main").await;
    env.push("trunk", &[&a]).await;
    let ran = env.build().await;
    assert_eq!(ran[0].line, "main", "the line of the default branch, whatever that is called");
    assert!(ran[0].ran.is_empty(), "{ran:?}");
    env.wait(SignedDuration::from_hours(1));
    env.night().await;
    assert_eq!(
        env.holds("main", [1, 1, 1, 1]).len(),
        5,
        "the branch that was main has gone, and main has not"
    );
}

#[tokio::test(start_paused = true)]
async fn mains_build_waits_a_moment_for_a_promotion_that_is_about_to_come() {
    for (delay, is_hot) in [(3, true), (60, false)] {
        let mut env = TestEnvironment::with_policy(ISOLATED);
        let base = env.commit([1, 1, 1, 1]);
        env.push("main", &[&base]).await;
        env.build().await;
        env.wait(SignedDuration::from_mins(10));
        let a = env.commit([2, 2, 1, 1]);
        env.push("feature-a", &[&a]).await;
        env.settle().await;
        let build = env.running().pop().unwrap();
        env.run(&build);
        // The pull request merges by itself, in the second in which its build ends.
        env.push("main", &[&a]).await;
        env.start_before_promotions(Duration::from_secs(delay)).await;
        let build = env.running().pop().expect("a build of main: it waits, but not for ever");
        assert_eq!(env.run(&build).ran.is_empty(), is_hot, "after {delay} s");
    }
}

#[tokio::test]
async fn nobody_waits_for_what_was_never_built() {
    let (mut env, _) = TestEnvironment::with_branch(ISOLATED).await;
    let other = env.commit([3, 3, 3, 3]);
    let merge = env.commit([3, 3, 3, 3]);
    env.push("main", &[&other, &merge]).await;
    let before = env.account.calls.borrow().len();
    env.settle_starts().await;
    let calls = env.account.calls.borrow()[before..].to_vec();
    assert_eq!(calls.iter().filter(|call| **call == "ecr:BatchGetImage").count(), 1, "{calls:?}");
}

#[tokio::test]
async fn two_promotions_of_one_line_at_once_lose_nothing_for_longer_than_a_night() {
    let (mut env, a) = TestEnvironment::with_branch(ISOLATED).await;
    let b = env.commit([1, 1, 2, 2]);
    env.push("feature-b", &[&b]).await;
    env.build().await;
    env.push("main", &[&a]).await;
    env.push("main", &[&b]).await;
    // What a queue of one group never does.
    env.account.yields.set(true);
    env.promote_each_at_once().await;
    env.account.yields.set(false);
    let held = |env: &TestEnvironment| env.holds("main", [2, 2, 2, 2]).len();
    assert!(held(&env) < 4, "one has written over the other: {}", held(&env));
    env.settle_starts().await;
    env.night().await;
    assert_eq!(held(&env), 4, "all but the last step");
}

#[tokio::test]
async fn a_promotion_across_repositories_mounts_what_is_new_and_moves_no_layer() {
    let (env, _) = TestEnvironment::with_branch(ISOLATED).await;
    let calls = env.account.calls.borrow();
    let count = |name: &str| calls.iter().filter(|call| **call == name).count();
    // Main's five layers and its config, of the branch three layers that are new, and its config.
    assert_eq!(count("registry:MountBlob"), 6 + 4);
    assert_eq!(count("registry:PutBlob"), 2, "the configs of the two lines");
    assert!(env.account.tags(&env.builds_repository()).keys().all(|tag| tag.contains(".export.")));
    assert!(env.account.tags(&env.repository()).keys().all(|tag| !tag.contains(".export.")));
}

#[tokio::test]
async fn a_registry_that_does_not_mount_is_reported_with_what_to_do() {
    let mut env = TestEnvironment::with_policy(ISOLATED);
    env.account.mounts_nothing.set(true);
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    assert!(env.lines().is_empty());
    // ECR answers the same where it is on, and no image refers to the blob.
    let causes = ["BLOB_MOUNTING", "the same key", "refers to the blob"];
    let reported = |notice: &&Event| {
        matches!(notice,
        Event::PromotionFailed(failed) if causes.iter().all(|cause| failed.why.contains(cause)))
    };
    assert_eq!(
        env.notices.iter().filter(reported).count(),
        2,
        "of the build and of its export: {:?}",
        env.notices
    );
    let b = env.commit([1, 1, 1, 2]);
    env.push("feature-a", &[&b]).await;
    assert_eq!(env.build().await.len(), 1, "builds go on, cold");
}

#[tokio::test]
async fn what_a_line_holds_says_where_it_came_from() {
    let (mut env, a) = TestEnvironment::with_branch(ISOLATED).await;
    env.push("main", &[&a]).await;
    env.settle_promotions().await;
    let annotations = |env: &TestEnvironment, tag: &str| {
        let image = env.account.image(&env.repository(), tag).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["annotations"].clone()
    };
    let main = annotations(&env, "app.main");
    assert_eq!((&main["stoker.project"], &main["stoker.trust"]), (&"app".into(), &"trusted".into()));
    assert_eq!(main["stoker.merged"], a.as_str());
    assert_eq!(main["stoker.build"], "app:1");
    assert!(main["stoker.parent"].as_str().unwrap().starts_with("sha256:"));
    let commit = annotations(&env, &format!("app.commit.{a}"));
    assert_eq!((&commit["stoker.commit"], &commit["stoker.build"]), (&a.as_str().into(), &"app:2".into()));
    assert_eq!(
        (&commit["stoker.line"], &commit["stoker.trust"]),
        (&"branch/feature-a".into(), &"branch".into())
    );
    let before = puts(&env);
    env.replay(true).await;
    assert_eq!(env.line("main").unwrap().1.records(), 8);
    assert!(puts(&env) > before, "commits' caches are put again, which changes nothing");
}

#[tokio::test]
async fn what_a_rollback_took_from_main_does_not_come_back() {
    let (mut env, bad) = TestEnvironment::with_branch(ISOLATED).await;
    let good = env.account.image(&env.repository(), "app.main").unwrap();
    let merge = env.commit([2, 2, 1, 1]);
    env.push("main", &[&bad, &merge]).await;
    env.build().await;
    assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5);
    env.wait(SignedDuration::from_mins(10));
    env.roll_back(&good).await;
    env.wait(SignedDuration::from_mins(10));
    env.replay(false).await;
    env.night().await;
    let held = env.holds("main", [2, 2, 1, 1]);
    assert_eq!(held, ["deps-b@1", "compile-b@1(deps-b@1)"], "no event and no night brings it back");
    let next = env.commit([2, 2, 1, 1]);
    env.push("main", &[&bad, &merge, &next]).await;
    let ran = env.build().await;
    assert_eq!((ran[0].reads.as_slice(), ran[0].ran.len()), (["main".to_owned()].as_slice(), 3), "{ran:?}");
    assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5, "what is built anew comes to main as ever");
}

#[tokio::test]
async fn a_merge_that_brings_only_what_main_has_otherwise_is_no_news_twice() {
    let mut env = TestEnvironment::with_policy(ISOLATED);
    let now = env.account.now();
    let a = env.commit([1, 1, 2, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    let b = env.commit([2, 1, 1, 1]);
    env.push("feature-b", &[&b]).await;
    env.build().await;
    env.wait(SignedDuration::from_mins(10));
    // Main's own build makes other bytes of the same steps, as real ones do.
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.settle().await;
    let build = env.running().pop().unwrap();
    let source = scenarios::environment::Source { versions: [1, 1, 1, 1] };
    let (manifest, blobs) =
        scenarios::environment::exported_with(&source, |_| now, |key| format!("main's {key}"));
    env.push_cache(&env.reported(&build, "STOKER_EXPORT"), manifest, blobs);
    env.end(&build.id, stoker_core::ports::BuildStatus::Succeeded, &base);
    env.settle().await;
    for merged in [&a, &b] {
        env.push("main", &[merged]).await;
        env.build().await;
    }
    let lines = env.lines();
    env.wait(SignedDuration::from_mins(10));
    for merged in [&a, &b] {
        env.push("main", &[merged]).await;
        env.settle().await;
        assert_eq!(env.lines(), lines);
    }
}
