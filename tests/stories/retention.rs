//! What goes and what stays.

use jiff::SignedDuration;
use stories::world::{ISOLATED, POLICY, World};

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
