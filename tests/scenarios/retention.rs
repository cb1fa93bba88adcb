//! What goes and what stays.

use std::collections::BTreeSet;

use buildkit_cache::MANIFEST_MEDIA_TYPE;
use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, World};
use stoker_core::error::Failure;
use stoker_core::event::{Event, Tick};
use stoker_core::names::{CacheRepository, Digest};
use stoker_core::retain::{Action, Applied, Rule};

async fn branch_with_two_builds() -> World {
    let mut world = World::new();
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    for version in [2, 3] {
        let commit = world.commit([2, version, 1, 1]);
        world.push("feature-a", &[&commit]).await;
        world.build().await;
        world.wait(SignedDuration::from_mins(10));
    }
    world
}

fn of_branch(world: &World) -> Vec<String> {
    let tags = world.account.tags(&world.repository()).into_keys();
    tags.filter(|tag| tag.contains("feature-a")).collect()
}

#[tokio::test]
async fn a_deleted_branch_takes_its_caches_along_and_leaves_mains() {
    let mut world = branch_with_two_builds().await;
    let main = world.line("main").unwrap().0;
    let commits = |world: &World| {
        let tags = world.account.tags(&world.repository()).into_keys();
        tags.filter(|tag| tag.contains(".commit.")).count()
    };
    assert_eq!((of_branch(&world).len(), commits(&world)), (2, 2), "its line, its history, two commits");
    world.delete_branch("feature-a").await;
    world.settle().await;
    assert_eq!((of_branch(&world).len(), commits(&world)), (0, 0));
    assert_eq!(world.line("main").unwrap().0, main);
}

#[tokio::test]
async fn what_a_running_build_was_handed_stays_until_it_ends() {
    let mut world = branch_with_two_builds().await;
    let stacked = world.commit([2, 3, 2, 1]);
    world.pull_request_to("feature-a", "example/app", "opened", "stacked", &stacked, None).await;
    world.settle().await;
    let held = world.line("branch/feature-a").unwrap().0;
    world.delete_branch("feature-a").await;
    world.settle().await;
    assert_eq!(world.line("branch/feature-a").unwrap().0, held, "a running build reads it");
    let ran = world.build().await;
    assert_eq!(ran[0].ran, ["deps-b", "compile-b", "link"], "the build is not hurt");
    world.wait(SignedDuration::from_mins(15));
    world.retain().await;
    assert!(world.line("branch/feature-a").is_none(), "and then it goes");
}

#[tokio::test]
async fn a_branch_created_anew_survives_the_late_event_of_its_deletion() {
    let mut world = branch_with_two_builds().await;
    world.delete_branch("feature-a").await;
    world.wait(SignedDuration::from_mins(5));
    let again = world.commit([2, 9, 1, 1]);
    world.push("feature-a", &[&again]).await;
    world.settle_starts().await;
    let build = world.running().pop().unwrap();
    world.run(&build);
    world.settle_promotions().await;
    let line = world.line("branch/feature-a").unwrap().0;
    world.retain().await;
    assert_eq!(world.line("branch/feature-a").unwrap().0, line);
}

#[tokio::test]
async fn deleting_a_branch_called_like_main_in_a_fork_does_nothing() {
    let mut world = branch_with_two_builds().await;
    let before = world.account.tags(&world.repository());
    let head = world.commit([9, 9, 9, 9]);
    for action in ["opened", "synchronize", "merged", "closed"] {
        world.pull_request_to("main", "fork/app", action, "main", &head, None).await;
    }
    assert!(world.build().await.is_empty());
    assert_eq!(world.account.tags(&world.repository()), before);
}

#[tokio::test]
async fn the_night_deletes_expired_history_and_idle_branches_and_then_nothing_more() {
    let mut world = branch_with_two_builds().await;
    let history = |world: &World| {
        let tags = world.account.tags(&world.repository()).into_keys();
        tags.filter(|tag| tag.contains(".history.")).count()
    };
    assert_eq!(history(&world), 1);
    world.night().await;
    assert_eq!(history(&world), 1, "within the lease");
    world.wait(SignedDuration::from_hours(25));
    world.night().await;
    assert_eq!(history(&world), 1, "still to be gone back to");
    world.wait(SignedDuration::from_hours(3 * 24));
    world.night().await;
    assert_eq!(history(&world), 0);
    assert!(world.line("branch/feature-a").is_some());
    let before = world.account.tags(&world.repository());
    world.night().await;
    assert_eq!(world.account.tags(&world.repository()), before, "a second night finds nothing");
    world.wait(SignedDuration::from_hours(24 * 31));
    world.night().await;
    assert!(world.line("branch/feature-a").is_none(), "idle");
    assert!(world.line("main").is_some(), "never main");
}

#[tokio::test]
async fn what_is_not_stokers_is_never_deleted() {
    let mut world = branch_with_two_builds().await;
    let repository = world.repository();
    for tag in ["latest", "v1.2.3", "other.main", "other.history.main.20200101T000000Z-00000000"] {
        world.account.push(&repository, tag, "application/json", tag.as_bytes().to_vec().into(), vec![]);
    }
    world.wait(SignedDuration::from_hours(24 * 400));
    world.night().await;
    let tags = world.account.tags(&repository);
    for tag in ["latest", "v1.2.3", "other.main", "other.history.main.20200101T000000Z-00000000", "app.main"]
    {
        assert!(tags.contains_key(tag), "{tag} is gone");
    }
}

#[tokio::test]
async fn exports_go_after_their_lease_and_what_was_promoted_stays() {
    for policy in [POLICY, ISOLATED] {
        let mut world = World::with_policy(policy);
        let base = world.commit([1, 1, 1, 1]);
        world.push("main", &[&base]).await;
        world.build().await;
        let a = world.commit([2, 2, 1, 1]);
        world.push("feature-a", &[&a]).await;
        world.build().await;
        let exports = |world: &World| {
            let tags = world.account.tags(&world.builds_repository()).into_keys();
            tags.filter(|tag| tag.contains(".export.")).count()
        };
        assert_eq!(exports(&world), 2);
        world.wait(SignedDuration::from_hours(25));
        world.night().await;
        assert_eq!(exports(&world), 0);
        for line in ["main", "branch/feature-a"] {
            assert_eq!(world.line(line).unwrap().1.records(), 5, "{line}");
        }
    }
}

#[tokio::test]
async fn what_changes_between_plan_and_deletion_stays() {
    let world = branch_with_two_builds().await;
    world.wait(SignedDuration::from_hours(24 * 31));
    let repository = world.repository();
    let project = world.project();
    let projects = std::slice::from_ref(&project);
    let (account, now) = (&world.account, world.account.now());
    let observed = stoker_core::retain::observe(account, &repository, projects, Vec::new(), now);
    let observed = account.invoke("enforce-retention", None, observed).await;
    let (inventory, circumstances) = observed.unwrap().unwrap();
    let plan = stoker_core::retain::plan::plan(&inventory, projects, &circumstances, world.account.now());
    let planned = plan.deletions().len();
    assert!(planned >= 3, "{plan}");
    // Somebody else writes in between: a tag of their own on one image, and one image goes.
    let held = plan.deletions()[0].image.clone();
    let image = world.account.image(&repository, &held.tags[0]).unwrap();
    world.account.push(&repository, "keep-me", &image.media_type, image.manifest.clone(), vec![]);
    let gone = plan.deletions()[1].image.digest.clone();
    let gone = [gone];
    let deleted = stoker_core::ports::Catalogue::delete(account, &repository, &gone);
    account.invoke("enforce-retention", None, deleted).await.unwrap().unwrap();
    let applied = stoker_core::retain::apply(account, plan, projects, now);
    let applied = account.invoke("enforce-retention", None, applied).await.unwrap().unwrap();
    assert_eq!((applied.changed, applied.deleted.len()), (vec![held.digest.clone()], planned - 2));
    assert!(world.account.image(&repository, "keep-me").is_some());
}

#[tokio::test]
async fn a_run_deletes_no_more_than_the_policy_says_and_the_next_goes_on() {
    let policy = POLICY.replace("idle-branch: 30d", "idle-branch: 30d, max-deletions: 2");
    let mut world = World::with_policy(&policy);
    for n in 0..5 {
        let commit = world.commit([n, 1, 1, 1]);
        world.push(&format!("b{n}"), &[&commit]).await;
        world.build().await;
    }
    world.wait(SignedDuration::from_hours(24 * 31));
    let images = |world: &World| world.account.tags(&world.repository()).len();
    let mut counts = vec![images(&world)];
    for _ in 0..12 {
        let (projects, repository, now) = ([world.project()], world.repository(), world.account.now());
        let enforced = stoker_core::retain::enforce(&world.account, &repository, &projects, Vec::new(), now);
        world.account.invoke("enforce-retention", None, enforced).await.unwrap().unwrap();
        counts.push(images(&world));
    }
    assert_eq!(*counts.last().unwrap(), 0, "all of it in the end: {counts:?}");
    assert!(counts.windows(2).all(|pair| pair[0] - pair[1] <= 4), "two images a run: {counts:?}");
}

#[tokio::test]
async fn the_least_used_goes_when_a_budget_is_exceeded_and_never_main() {
    let policy = POLICY.replace("idle-branch: 30d", "idle-branch: 300d, scope-budget: 1MB");
    let mut world = World::with_policy(&policy);
    let base = world.commit([1, 1, 1, 1]);
    world.push("main", &[&base]).await;
    world.build().await;
    for n in 2..6 {
        world.wait(SignedDuration::from_hours(48));
        let commit = world.commit([n, 1, 1, 1]);
        world.push_large(&format!("b{n}"), &commit, 400_000).await;
    }
    world.wait(SignedDuration::from_hours(48));
    world.night().await;
    let lines = world.lines();
    assert!(lines.contains_key("app.main"));
    assert!(!lines.contains_key("app.branch.b2") && !lines.contains_key("app.branch.b3"), "{lines:?}");
    assert!(lines.contains_key("app.branch.b5"), "used last: {lines:?}");
}

/// A world with the exports of two branches past their lease, lines in one repository and exports in another.
async fn with_exports() -> World {
    let mut world = World::with_policy(ISOLATED);
    for n in 1..3 {
        let commit = world.commit([n, n, 1, 1]);
        world.push(&format!("b{n}"), &[&commit]).await;
        world.build().await;
    }
    world.wait(SignedDuration::from_hours(25));
    world
}

const ONCE: Tick = Tick { slots: 1, every_minutes: 1 };

#[tokio::test]
async fn a_repository_that_fails_keeps_no_other_from_its_turn_and_comes_again() {
    let mut world = with_exports().await;
    let exports = |world: &World| world.account.tags(&world.builds_repository()).len();
    assert_eq!(exports(&world), 2);
    world.tick(Event::NightlyRetention(ONCE));
    world.retain().await;
    assert_eq!(world.queued().1, 2, "two repositories");
    let next = world.account.calls.borrow().len();
    world.account.faults.borrow_mut().insert(next, Fault::Before(Failure::Throttled));
    world.retain().await;
    assert_eq!(world.queued().1, 1, "one comes again");
    world.retain().await;
    assert_eq!((exports(&world), world.queued().1), (0, 0));
    assert!(world.dead.is_empty());
}

#[tokio::test]
async fn a_repository_that_goes_on_failing_is_given_up_for_the_night() {
    let mut world = with_exports().await;
    world.tick(Event::NightlyRetention(ONCE));
    world.retain().await;
    for _ in 0..10 {
        let next = world.account.calls.borrow().len();
        world.account.faults.borrow_mut().insert(next, Fault::Before(Failure::Unavailable));
        world.retain().await;
    }
    assert_eq!((world.queued().1, world.dead.len()), (0, 1));
    assert_eq!(world.account.tags(&world.builds_repository()).len(), 2);
    world.night().await;
    assert!(
        world.account.tags(&world.builds_repository()).is_empty(),
        "the next night has them all the same"
    );
}

#[tokio::test]
async fn a_night_that_comes_twice_deletes_nothing_more() {
    let mut world = with_exports().await;
    for _ in 0..2 {
        world.tick(Event::NightlyRetention(ONCE));
    }
    world.retain().await;
    assert_eq!(world.queued().1, 4);
    world.retain().await;
    assert_eq!(world.queued().1, 0);
    let mut once = with_exports().await;
    once.night().await;
    let tags = |world: &World| {
        let of = |repository| world.account.tags(&repository).into_keys().collect::<Vec<_>>();
        (of(world.repository()), of(world.builds_repository()))
    };
    assert_eq!(tags(&world), tags(&once));
}

#[tokio::test]
async fn the_night_does_not_wait_for_running_builds() {
    let mut world = branch_with_two_builds().await;
    let stacked = world.commit([2, 3, 2, 1]);
    world.pull_request_to("feature-a", "example/app", "opened", "stacked", &stacked, None).await;
    world.settle().await;
    assert_eq!(world.running().len(), 1);
    world.wait(SignedDuration::from_hours(24 * 31));
    world.tick(Event::NightlyRetention(ONCE));
    world.retain().await;
    world.retain().await;
    assert_eq!(world.queued().1, 0);
    assert!(world.line("branch/feature-a").is_some(), "a build that is said to run holds it");
}

/// Retention looks at this repository now.
async fn enforce(world: &World, repository: &CacheRepository) -> Applied {
    let (projects, now) = ([world.project()], world.account.now());
    let enforced = stoker_core::retain::enforce(&world.account, repository, &projects, Vec::new(), now);
    world.account.invoke("enforce-retention", None, enforced).await.unwrap().unwrap()
}

/// What a build may leave in the repository that it exports to: a manifest of so many bytes.
fn push_manifest_of(world: &World, number: usize, bytes: usize) -> Digest {
    let start =
        format!("{{\"n\":{number},\"layers\":[],\"config\":{{\"digest\":\"{}\"}}", Digest::of(b"none"));
    let manifest = format!("{start}{}}}", " ".repeat(bytes - start.len() - 1));
    let digest = Digest::of(manifest.as_bytes());
    let tag = format!("app.export.evil{number}");
    world.account.push(&world.builds_repository(), &tag, MANIFEST_MEDIA_TYPE, manifest.into(), Vec::new());
    digest
}

#[tokio::test]
async fn attack_manifests_of_four_mebibytes_among_exports() {
    let mut world = World::with_policy(ISOLATED);
    for version in 1..4 {
        let commit = world.commit([version, 1, 1, 1]);
        world.push("main", &[&commit]).await;
        world.build().await;
    }
    let evil: BTreeSet<Digest> = (0..20).map(|n| push_manifest_of(&world, n, 4 << 20)).collect();
    world.wait(SignedDuration::from_hours(24 * 31));
    let before = world.account.calls.borrow().len();
    let applied = enforce(&world, &world.builds_repository()).await;
    let calls =
        world.account.calls.borrow()[before..].iter().filter(|call| **call == "ecr:BatchGetImage").count();
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
