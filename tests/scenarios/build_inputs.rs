//! The one cache that a build is given of all that it may read.

use std::collections::BTreeSet;
use std::time::Duration;

use buildkit_cache::{Cache, Kind};
use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, Source, World, exported_with};
use stoker_core::error::Failure;
use stoker_core::names::{Commit, Digest};
use stoker_core::ports::{Build, BuildStatus};

/// Main is built, and a branch off it that has changed one stage; then main has changed another. Their lines differ.
async fn two_lines(policy: &str) -> World {
    let mut world = World::with_policy(policy);
    for (branch, versions) in [("main", [1, 1, 1, 1]), ("feature-a", [2, 1, 1, 1]), ("main", [1, 1, 2, 1])] {
        let commit = world.commit(versions);
        world.push(branch, &[&commit]).await;
        world.build().await;
        world.wait(SignedDuration::from_mins(10));
    }
    world
}

/// A push to the branch starts a build of main's newest and the branch's.
async fn push(world: &mut World) -> Build {
    let both = world.commit([2, 1, 2, 1]);
    world.push("feature-a", &[&both]).await;
    world.settle().await;
    world.running().pop().expect("its build")
}

fn refs(world: &World, build: &Build) -> Vec<Digest> {
    let refs = world.told(build, "STOKER_CACHE_REFS");
    let digests = refs.split_whitespace().map(|reference| reference.rsplit_once('@').expect("a digest").1);
    digests.map(|digest| Digest::new(digest).unwrap()).collect()
}

/// The joins that there are.
fn joins(world: &World) -> BTreeSet<Digest> {
    let tags = world.account.tags(&world.repository());
    tags.into_iter().filter(|(tag, _)| tag.contains(".given.")).map(|(_, digest)| digest).collect()
}

fn cache(world: &World, digest: &Digest) -> Cache {
    let image = world.account.image(&world.repository(), &digest.to_string()).expect("the cache");
    let Kind::Cache(manifest) = buildkit_cache::classify(&image.manifest) else {
        panic!("{digest} is no cache")
    };
    Cache::parse(&manifest, &world.account.raw_blob(&manifest.config.digest).expect("its config")).unwrap()
}

#[tokio::test]
async fn of_two_lines_a_build_is_given_the_join() {
    for policy in [POLICY, ISOLATED] {
        let mut world = two_lines(policy).await;
        let lines = ["branch/feature-a", "main"].map(|line| world.line(line).unwrap());
        let calls = world.account.calls.borrow().len();
        let build = push(&mut world).await;
        let starting = world.account.calls.borrow()[calls..].to_vec();
        // Of them ten requests are start-build's: ListBuildsForProject and PutBlob are two each.
        assert_eq!(
            starting,
            [
                "secretsmanager:GetSecretValue",
                "events:PutEvents",
                "codebuild:ListBuildsForProject",
                "ecr:BatchGetImage",
                "ecr:BatchGetImage",
                "registry:GetBlob",
                "registry:GetBlob",
                "registry:PutBlob",
                "registry:PutManifest",
                "codebuild:StartBuild",
            ]
        );
        let given = refs(&world, &build);
        let [(_, branch), (_, main)] = &lines;
        assert_eq!(given.len(), 1);
        assert_eq!(BTreeSet::from([given[0].clone()]), joins(&world));
        assert_eq!(cache(&world, &given[0]), Cache::merge([branch, main]));
        assert_eq!(world.told(&build, "STOKER_READS"), "branch/feature-a main");
        let joined = lines.map(|(digest, _)| digest.to_string()).join(" ");
        assert_eq!(world.told(&build, "STOKER_JOINED"), joined);
        let ran = world.run(&build);
        assert_eq!(ran.ran, ["link"], "only the last step needs both");
    }
}

/// A build of this branch makes every step anew, with other bytes, as `--no-cache` does.
async fn built_anew(world: &mut World, branch: &str) {
    let source = Source { versions: [1, 1, 1, 1] };
    let commit = world.commit(source.versions);
    world.push(branch, &[&commit]).await;
    world.settle().await;
    let build = world.running().pop().expect("its build");
    let now = world.account.now();
    let (manifest, blobs) = exported_with(&source, |_| now, |key| format!("{branch} {key}"));
    world.push_cache(&world.told(&build, "STOKER_EXPORT"), manifest, blobs);
    world.end(&build.id, BuildStatus::Succeeded, &commit);
    world.settle().await;
    world.wait(SignedDuration::from_mins(10));
}

/// Main's result counts for the branch, too, unless the branch has made the step after it.
#[tokio::test]
async fn of_a_step_that_both_lines_have_a_branch_is_given_what_was_made_last() {
    for [first, last] in [["feature-a", "main"], ["main", "feature-a"]] {
        let mut world = World::with_policy(ISOLATED);
        built_anew(&mut world, first).await;
        built_anew(&mut world, last).await;
        let build = push(&mut world).await;
        let given = cache(&world, &refs(&world, &build)[0]);
        assert_eq!(given.blobs().len(), 5);
        for blob in given.blobs() {
            let bytes = world.account.raw_blob(&blob.digest).expect("a layer");
            assert!(bytes.starts_with(last.as_bytes()), "{last}: {bytes:?}");
        }
    }
}

#[tokio::test]
async fn what_has_been_joined_today_is_found() {
    let mut world = two_lines(POLICY).await;
    let first = push(&mut world).await;
    let calls = world.account.calls.borrow().len();
    let second = push(&mut world).await;
    let starting = world.account.calls.borrow()[calls..].to_vec();
    assert!(!starting.iter().any(|call| call.starts_with("registry:")), "{starting:?}");
    assert_eq!(refs(&world, &first), refs(&world, &second));
    assert_eq!(joins(&world).len(), 1);
    world.wait(SignedDuration::from_hours(24));
    push(&mut world).await;
    assert_eq!(joins(&world).len(), 1, "the same cache");
    let tags = world.account.tags(&world.repository());
    assert_eq!(tags.keys().filter(|tag| tag.contains(".given.")).count(), 2, "under another day's tag");
}

#[tokio::test]
async fn where_one_line_holds_all_it_is_given_itself() {
    let mut world = two_lines(POLICY).await;
    let both = world.commit([2, 1, 2, 1]);
    world.push("feature-b", &[&both]).await;
    world.settle().await;
    let build = world.running().pop().unwrap();
    assert_eq!(refs(&world, &build), [world.line("main").unwrap().0], "a new branch has main's only");
    assert_eq!(build.handed.as_ref().map(|given| given.joined.len()), Some(0));
    assert_eq!(joins(&world), BTreeSet::new());
}

#[tokio::test]
async fn a_build_that_cannot_be_given_the_join_is_given_its_line() {
    let calls = |world: &World| world.account.calls.borrow().clone();
    let (before, after) = {
        let mut world = two_lines(POLICY).await;
        let before = calls(&world).len();
        push(&mut world).await;
        (before, calls(&world))
    };
    let is_of_join = |number: &usize| after[*number].starts_with("registry:");
    let of_join: Vec<usize> = (before..after.len()).filter(is_of_join).collect();
    assert_eq!(of_join.len(), 4);
    for call in of_join {
        for failure in [Failure::Throttled, Failure::Unavailable, Failure::Refused, Failure::NotFound] {
            let mut world = two_lines(POLICY).await;
            let line = world.line("branch/feature-a").unwrap().0;
            world.account.faults.borrow_mut().insert(call, Fault::Before(failure));
            let build = push(&mut world).await;
            assert_eq!(refs(&world, &build), [line], "{} {failure:?}", after[call]);
            assert_eq!(world.told(&build, "STOKER_READS"), "branch/feature-a main", "it may read both");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_join_for_long() {
    for operation in ["registry:GetBlob", "registry:PutBlob", "registry:PutManifest"] {
        let mut world = two_lines(POLICY).await;
        let line = world.line("branch/feature-a").unwrap().0;
        let slow = Fault::Slow(Duration::from_mins(5));
        world.account.outages.borrow_mut().insert(("start-build", operation), slow);
        let began = tokio::time::Instant::now();
        let build = push(&mut world).await;
        assert!(began.elapsed() <= Duration::from_secs(3), "{operation}: {:?}", began.elapsed());
        assert_eq!(refs(&world, &build), [line], "{operation}");
    }
}

#[tokio::test]
async fn a_build_of_main_is_never_given_a_commits_cache_as_it_is() {
    for fails in [false, true] {
        let mut world = two_lines(ISOLATED).await;
        // The merge is not promoted before main's build starts.
        world.loses_promotions = true;
        let (main, of_main) = world.line("main").unwrap();
        let head = world.account.builds.borrow()[1].resolved_commit.clone().expect("the branch's commit");
        let head = Commit::new(head).unwrap();
        if fails {
            let broken = Fault::Before(Failure::Unavailable);
            world.account.outages.borrow_mut().insert(("start-build", "registry:PutManifest"), broken);
        }
        let merge = world.commit([2, 1, 2, 1]);
        world.push("main", &[&head, &merge]).await;
        world.settle().await;
        let build = world.running().pop().expect("main's build");
        assert_eq!(world.told(&build, "STOKER_READS"), format!("main commit/{}", head.short()));
        let given = refs(&world, &build);
        assert_eq!(given.len(), 1);
        if fails {
            assert_eq!(given, [main]);
        } else {
            let joined = cache(&world, &given[0]);
            assert!(joined.contains(&of_main) && joined.records() > of_main.records());
        }
    }
}

#[tokio::test]
async fn a_join_goes_when_no_build_can_be_given_it_any_more() {
    let mut world = two_lines(POLICY).await;
    let build = push(&mut world).await;
    let [join] = &refs(&world, &build)[..] else { panic!("one cache") };
    // The lease of a day, and the day on which it was made.
    for (hours, is_there) in [(30, true), (17, true), (2, true)] {
        world.wait(SignedDuration::from_hours(hours));
        world.night().await;
        assert_eq!(joins(&world).contains(join), is_there, "its build still runs");
    }
    world.run(&build);
    world.settle().await;
    world.night().await;
    assert_eq!(joins(&world), BTreeSet::new(), "its build has ended");
    assert!(world.line("branch/feature-a").is_some() && world.line("main").is_some());
}
