//! What goes and what stays.

use std::collections::BTreeSet;

use buildkit_cache::MANIFEST_MEDIA_TYPE;
use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, TestEnvironment};
use stoker_core::error::Failure;
use stoker_core::event::{Event, Tick};
use stoker_core::names::{CacheRepository, Digest};
use stoker_core::retain::{Action, Applied, Rule};

async fn branch_with_two_builds() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    for version in [2, 3] {
        let commit = env.commit([2, version, 1, 1]);
        env.push("feature-a", &[&commit]).await;
        env.build().await;
        env.wait(SignedDuration::from_mins(10));
    }
    env
}

fn of_branch(env: &TestEnvironment) -> Vec<String> {
    let tags = env.account.tags(&env.repository()).into_keys();
    tags.filter(|tag| tag.contains("feature-a")).collect()
}

#[tokio::test]
async fn a_deleted_branch_takes_its_caches_along_and_leaves_mains() {
    let mut env = branch_with_two_builds().await;
    let main = env.line("main").unwrap().0;
    let commits = |env: &TestEnvironment| {
        let tags = env.account.tags(&env.repository()).into_keys();
        tags.filter(|tag| tag.contains(".commit.")).count()
    };
    assert_eq!((of_branch(&env).len(), commits(&env)), (2, 2), "its line, its history, two commits");
    env.delete_branch("feature-a").await;
    env.settle().await;
    assert_eq!((of_branch(&env).len(), commits(&env)), (0, 0));
    assert_eq!(env.line("main").unwrap().0, main);
}

#[tokio::test]
async fn what_a_running_build_was_given_stays_until_it_ends() {
    let mut env = branch_with_two_builds().await;
    let stacked = env.commit([2, 3, 2, 1]);
    env.pull_request_to("feature-a", "example/app", "opened", "stacked", &stacked, None).await;
    env.settle().await;
    let held = env.line("branch/feature-a").unwrap().0;
    env.delete_branch("feature-a").await;
    env.settle().await;
    assert_eq!(env.line("branch/feature-a").unwrap().0, held, "a running build reads it");
    let ran = env.build().await;
    assert_eq!(ran[0].ran, ["deps-b", "compile-b", "link"], "the build is not hurt");
    env.wait(SignedDuration::from_mins(15));
    env.retain().await;
    assert!(env.line("branch/feature-a").is_none(), "and then it goes");
}

#[tokio::test]
async fn a_branch_created_anew_survives_the_late_event_of_its_deletion() {
    let mut env = branch_with_two_builds().await;
    env.delete_branch("feature-a").await;
    env.wait(SignedDuration::from_mins(5));
    let again = env.commit([2, 9, 1, 1]);
    env.push("feature-a", &[&again]).await;
    env.settle_starts().await;
    let build = env.running().pop().unwrap();
    env.run(&build);
    env.settle_promotions().await;
    let line = env.line("branch/feature-a").unwrap().0;
    env.retain().await;
    assert_eq!(env.line("branch/feature-a").unwrap().0, line);
}

#[tokio::test]
async fn deleting_a_branch_called_like_main_in_a_fork_does_nothing() {
    let mut env = branch_with_two_builds().await;
    let tags = |env: &TestEnvironment| {
        let all = env.account.tags(&env.repository()).into_iter();
        all.filter(|(tag, _)| !tag.contains(".fork.")).collect::<Vec<_>>()
    };
    let before = tags(&env);
    let head = env.commit([9, 9, 9, 9]);
    for action in ["opened", "synchronize", "merged", "closed"] {
        env.pull_request_to("main", "fork/app", action, "main", &head, None).await;
    }
    assert!(env.build().await.is_empty());
    assert_eq!(tags(&env), before);
}

#[tokio::test]
async fn a_note_on_a_forks_head_stays_for_as_long_as_a_branch_may_be_idle() {
    let mut env = branch_with_two_builds().await;
    let head = env.commit([9, 9, 9, 9]);
    env.pull_request_to("main", "fork/app", "opened", "fix", &head, None).await;
    env.settle().await;
    let notes = |env: &TestEnvironment| {
        let tags = env.account.tags(&env.repository()).into_keys();
        tags.filter(|tag| tag.contains(".fork.")).collect::<Vec<_>>()
    };
    assert_eq!(notes(&env), [format!("app.fork.{}", &head.as_str()[..12])]);
    env.wait(SignedDuration::from_hours(24 * 29));
    env.night().await;
    assert_eq!(notes(&env).len(), 1);
    env.wait(SignedDuration::from_hours(24 * 2));
    env.night().await;
    assert!(notes(&env).is_empty());
}

#[tokio::test]
async fn the_night_deletes_expired_history_and_idle_branches_and_then_nothing_more() {
    let mut env = branch_with_two_builds().await;
    let history = |env: &TestEnvironment| {
        let tags = env.account.tags(&env.repository()).into_keys();
        tags.filter(|tag| tag.contains(".history.")).count()
    };
    assert_eq!(history(&env), 1);
    env.night().await;
    assert_eq!(history(&env), 1, "within the lease");
    env.wait(SignedDuration::from_hours(25));
    env.night().await;
    assert_eq!(history(&env), 1, "still to be gone back to");
    env.wait(SignedDuration::from_hours(3 * 24));
    env.night().await;
    assert_eq!(history(&env), 0);
    assert!(env.line("branch/feature-a").is_some());
    let before = env.account.tags(&env.repository());
    env.night().await;
    assert_eq!(env.account.tags(&env.repository()), before, "a second night finds nothing");
    env.wait(SignedDuration::from_hours(24 * 31));
    env.night().await;
    assert!(env.line("branch/feature-a").is_none(), "idle");
    assert!(env.line("main").is_some(), "never main");
}

#[tokio::test]
async fn what_is_not_stokers_is_never_deleted() {
    let mut env = branch_with_two_builds().await;
    let repository = env.repository();
    for tag in ["latest", "v1.2.3", "other.main", "other.history.main.20200101T000000Z-00000000"] {
        env.account.push(&repository, tag, "application/json", tag.as_bytes().to_vec().into(), vec![]);
    }
    env.wait(SignedDuration::from_hours(24 * 400));
    env.night().await;
    let tags = env.account.tags(&repository);
    for tag in ["latest", "v1.2.3", "other.main", "other.history.main.20200101T000000Z-00000000", "app.main"]
    {
        assert!(tags.contains_key(tag), "{tag} is gone");
    }
}

#[tokio::test]
async fn exports_go_after_their_lease_and_what_was_promoted_stays() {
    for policy in [POLICY, ISOLATED] {
        let mut env = TestEnvironment::with_policy(policy);
        let base = env.commit([1, 1, 1, 1]);
        env.push("main", &[&base]).await;
        env.build().await;
        let a = env.commit([2, 2, 1, 1]);
        env.push("feature-a", &[&a]).await;
        env.build().await;
        let exports = |env: &TestEnvironment| {
            let tags = env.account.tags(&env.builds_repository()).into_keys();
            tags.filter(|tag| tag.contains(".export.")).count()
        };
        assert_eq!(exports(&env), 2);
        env.wait(SignedDuration::from_hours(25));
        env.night().await;
        assert_eq!(exports(&env), 0);
        for line in ["main", "branch/feature-a"] {
            assert_eq!(env.line(line).unwrap().1.records(), 5, "{line}");
        }
    }
}

#[tokio::test]
async fn what_changes_between_plan_and_deletion_stays() {
    let env = branch_with_two_builds().await;
    env.wait(SignedDuration::from_hours(24 * 31));
    let repository = env.repository();
    let project = env.project();
    let projects = std::slice::from_ref(&project);
    let (account, now) = (&env.account, env.account.now());
    let observed = stoker_core::retain::observe(account, &repository, projects, Vec::new(), now);
    let observed = account.invoke("enforce-retention", None, observed).await;
    let (inventory, plan_inputs) = observed.unwrap().unwrap();
    let plan = stoker_core::retain::plan::plan(&inventory, projects, &plan_inputs, env.account.now());
    let planned = plan.deletions().len();
    assert!(planned >= 3, "{plan}");
    // Somebody else writes in between: a tag of their own on one image, and one image goes.
    let held = plan.deletions()[0].image.clone();
    let image = env.account.image(&repository, &held.tags[0]).unwrap();
    env.account.push(&repository, "keep-me", &image.media_type, image.manifest.clone(), vec![]);
    let gone = plan.deletions()[1].image.digest.clone();
    let gone = [gone];
    let deleted = stoker_core::ports::Catalogue::delete(account, &repository, &gone);
    account.invoke("enforce-retention", None, deleted).await.unwrap().unwrap();
    let applied = stoker_core::retain::apply(account, plan, projects, now);
    let applied = account.invoke("enforce-retention", None, applied).await.unwrap().unwrap();
    assert_eq!((applied.changed, applied.deleted.len()), (vec![held.digest.clone()], planned - 2));
    assert!(env.account.image(&repository, "keep-me").is_some());
}

#[tokio::test]
async fn a_run_deletes_no_more_than_the_policy_says_and_the_next_goes_on() {
    let policy = POLICY.replace("idle-branch: 30d", "idle-branch: 30d, max-deletions: 2");
    let mut env = TestEnvironment::with_policy(&policy);
    for n in 0..5 {
        let commit = env.commit([n, 1, 1, 1]);
        env.push(&format!("b{n}"), &[&commit]).await;
        env.build().await;
    }
    env.wait(SignedDuration::from_hours(24 * 31));
    let images = |env: &TestEnvironment| env.account.tags(&env.repository()).len();
    let mut counts = vec![images(&env)];
    for _ in 0..12 {
        let (projects, repository, now) = ([env.project()], env.repository(), env.account.now());
        let enforced = stoker_core::retain::enforce(&env.account, &repository, &projects, Vec::new(), now);
        env.account.invoke("enforce-retention", None, enforced).await.unwrap().unwrap();
        counts.push(images(&env));
    }
    assert_eq!(*counts.last().unwrap(), 0, "all of it in the end: {counts:?}");
    assert!(counts.windows(2).all(|pair| pair[0] - pair[1] <= 4), "two images a run: {counts:?}");
}

#[tokio::test]
async fn the_least_used_goes_when_a_budget_is_exceeded_and_never_main() {
    let policy = POLICY.replace("idle-branch: 30d", "idle-branch: 300d, scope-budget: 1MB");
    let mut env = TestEnvironment::with_policy(&policy);
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    for n in 2..6 {
        env.wait(SignedDuration::from_hours(48));
        let commit = env.commit([n, 1, 1, 1]);
        env.push_large(&format!("b{n}"), &commit, 400_000).await;
    }
    env.wait(SignedDuration::from_hours(48));
    env.night().await;
    let lines = env.lines();
    assert!(lines.contains_key("app.main"));
    assert!(!lines.contains_key("app.branch.b2") && !lines.contains_key("app.branch.b3"), "{lines:?}");
    assert!(lines.contains_key("app.branch.b5"), "used last: {lines:?}");
}

/// A test environment with the exports of two branches past their lease, lines in one repository and exports in
/// another.
async fn with_exports() -> TestEnvironment {
    let mut env = TestEnvironment::with_policy(ISOLATED);
    for n in 1..3 {
        let commit = env.commit([n, n, 1, 1]);
        env.push(&format!("b{n}"), &[&commit]).await;
        env.build().await;
    }
    env.wait(SignedDuration::from_hours(25));
    env
}

const ONCE: Tick = Tick { slots: 1, every_minutes: 1 };

#[tokio::test]
async fn a_repository_that_fails_keeps_no_other_from_its_turn_and_comes_again() {
    let mut env = with_exports().await;
    let exports = |env: &TestEnvironment| env.account.tags(&env.builds_repository()).len();
    assert_eq!(exports(&env), 2);
    env.tick(Event::NightlyRetention(ONCE));
    env.retain().await;
    assert_eq!(env.queued().1, 2, "two repositories");
    let next = env.account.calls.borrow().len();
    env.account.faults.borrow_mut().insert(next, Fault::Before(Failure::Throttled));
    env.retain().await;
    assert_eq!(env.queued().1, 1, "one comes again");
    env.retain().await;
    assert_eq!((exports(&env), env.queued().1), (0, 0));
    assert!(env.dead.is_empty());
}

#[tokio::test]
async fn a_repository_that_goes_on_failing_is_given_up_for_the_night() {
    let mut env = with_exports().await;
    env.tick(Event::NightlyRetention(ONCE));
    env.retain().await;
    for _ in 0..10 {
        let next = env.account.calls.borrow().len();
        env.account.faults.borrow_mut().insert(next, Fault::Before(Failure::Unavailable));
        env.retain().await;
    }
    assert_eq!((env.queued().1, env.dead.len()), (0, 1));
    assert_eq!(env.account.tags(&env.builds_repository()).len(), 2);
    env.night().await;
    assert!(env.account.tags(&env.builds_repository()).is_empty(), "the next night has them all the same");
}

#[tokio::test]
async fn a_night_that_comes_twice_deletes_nothing_more() {
    let mut env = with_exports().await;
    for _ in 0..2 {
        env.tick(Event::NightlyRetention(ONCE));
    }
    env.retain().await;
    assert_eq!(env.queued().1, 4);
    env.retain().await;
    assert_eq!(env.queued().1, 0);
    let mut once = with_exports().await;
    once.night().await;
    let tags = |env: &TestEnvironment| {
        let of = |repository| env.account.tags(&repository).into_keys().collect::<Vec<_>>();
        (of(env.repository()), of(env.builds_repository()))
    };
    assert_eq!(tags(&env), tags(&once));
}

#[tokio::test]
async fn the_night_does_not_wait_for_running_builds() {
    let mut env = branch_with_two_builds().await;
    let stacked = env.commit([2, 3, 2, 1]);
    env.pull_request_to("feature-a", "example/app", "opened", "stacked", &stacked, None).await;
    env.settle().await;
    assert_eq!(env.running().len(), 1);
    env.wait(SignedDuration::from_hours(24 * 31));
    env.tick(Event::NightlyRetention(ONCE));
    env.retain().await;
    env.retain().await;
    assert_eq!(env.queued().1, 0);
    assert!(env.line("branch/feature-a").is_some(), "a build that is said to run holds it");
}

/// Retention looks at this repository now.
async fn enforce(env: &TestEnvironment, repository: &CacheRepository) -> Applied {
    let (projects, now) = ([env.project()], env.account.now());
    let enforced = stoker_core::retain::enforce(&env.account, repository, &projects, Vec::new(), now);
    env.account.invoke("enforce-retention", None, enforced).await.unwrap().unwrap()
}

/// What a build may leave in the repository that it exports to: a manifest of so many bytes.
fn push_manifest_of(env: &TestEnvironment, number: usize, bytes: usize) -> Digest {
    let start =
        format!("{{\"n\":{number},\"layers\":[],\"config\":{{\"digest\":\"{}\"}}", Digest::of(b"none"));
    let manifest = format!("{start}{}}}", " ".repeat(bytes - start.len() - 1));
    let digest = Digest::of(manifest.as_bytes());
    let tag = format!("app.export.evil{number}");
    env.account.push(&env.builds_repository(), &tag, MANIFEST_MEDIA_TYPE, manifest.into(), Vec::new());
    digest
}

#[tokio::test]
async fn attack_manifests_of_four_mebibytes_among_exports() {
    let mut env = TestEnvironment::with_policy(ISOLATED);
    for version in 1..4 {
        let commit = env.commit([version, 1, 1, 1]);
        env.push("main", &[&commit]).await;
        env.build().await;
    }
    let evil: BTreeSet<Digest> = (0..20).map(|n| push_manifest_of(&env, n, 4 << 20)).collect();
    env.wait(SignedDuration::from_hours(24 * 31));
    let before = env.account.calls.borrow().len();
    let applied = enforce(&env, &env.builds_repository()).await;
    let calls =
        env.account.calls.borrow()[before..].iter().filter(|call| **call == "ecr:BatchGetImage").count();
    assert!(calls < 20 * 8, "each costs the halving of its batch: {calls}");
    assert_eq!(applied.plan.refused, None, "who leaves such a manifest does not stop the cleaning");
    assert!(applied.deleted.len() >= 3, "the other exports go: {}", applied.plan);
    let kept: BTreeSet<Digest> =
        applied.plan.of(Action::Keep).map(|verdict| verdict.image.digest.clone()).collect();
    assert!(kept.is_superset(&evil), "{}", applied.plan);
    let verdict = applied.plan.of(Action::Keep).find(|verdict| evil.contains(&verdict.image.digest)).unwrap();
    assert_eq!(
        (verdict.rule, verdict.why()),
        (Rule::Unread, "its manifest is too large to be read".to_owned())
    );
}
