//! The one cache that a build is given of all that it may read.

use std::collections::BTreeSet;
use std::time::Duration;

use buildkit_cache::{Cache, Kind};
use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, Source, TestEnvironment, exported_with};
use stoker_core::error::Failure;
use stoker_core::names::{Commit, Digest};
use stoker_core::ports::{Build, BuildStatus};

/// Main is built, and a branch off it that has changed one stage; then main has changed another. Their lines differ.
async fn two_lines(policy: &str) -> TestEnvironment {
    let mut env = TestEnvironment::with_policy(policy);
    for (branch, versions) in [("main", [1, 1, 1, 1]), ("feature-a", [2, 1, 1, 1]), ("main", [1, 1, 2, 1])] {
        let commit = env.commit(versions);
        env.push(branch, &[&commit]).await;
        env.build().await;
        env.wait(SignedDuration::from_mins(10));
    }
    env
}

/// A push to the branch starts a build of main's newest and the branch's.
async fn push(env: &mut TestEnvironment) -> Build {
    let both = env.commit([2, 1, 2, 1]);
    env.push("feature-a", &[&both]).await;
    env.settle().await;
    env.running().pop().expect("its build")
}

fn refs(env: &TestEnvironment, build: &Build) -> Vec<Digest> {
    let refs = env.reported(build, "STOKER_CACHE_REFS");
    let digests = refs.split_whitespace().map(|reference| reference.rsplit_once('@').expect("a digest").1);
    digests.map(|digest| Digest::new(digest).unwrap()).collect()
}

/// The joins that there are.
fn joins(env: &TestEnvironment) -> BTreeSet<Digest> {
    let tags = env.account.tags(&env.repository());
    tags.into_iter().filter(|(tag, _)| tag.contains(".given.")).map(|(_, digest)| digest).collect()
}

fn cache(env: &TestEnvironment, digest: &Digest) -> Cache {
    let image = env.account.image(&env.repository(), &digest.to_string()).expect("the cache");
    let Kind::Cache(manifest) = buildkit_cache::classify(&image.manifest) else {
        panic!("{digest} is no cache")
    };
    Cache::parse(&manifest, &env.account.raw_blob(&manifest.config.digest).expect("its config")).unwrap()
}

#[tokio::test]
async fn of_two_lines_a_build_is_given_the_join() {
    for policy in [POLICY, ISOLATED] {
        let mut env = two_lines(policy).await;
        let lines = ["branch/feature-a", "main"].map(|line| env.line(line).unwrap());
        let calls = env.account.calls.borrow().len();
        let build = push(&mut env).await;
        let starting = env.account.calls.borrow()[calls..].to_vec();
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
        let given = refs(&env, &build);
        let [(_, branch), (_, main)] = &lines;
        assert_eq!(given.len(), 1);
        assert_eq!(BTreeSet::from([given[0].clone()]), joins(&env));
        assert_eq!(cache(&env, &given[0]), Cache::merge([branch, main]));
        assert_eq!(env.reported(&build, "STOKER_READS"), "branch/feature-a main");
        let joined = lines.map(|(digest, _)| digest.to_string()).join(" ");
        assert_eq!(env.reported(&build, "STOKER_JOINED"), joined);
        let ran = env.run(&build);
        assert_eq!(ran.ran, ["link"], "only the last step needs both");
    }
}

/// A build of this branch makes every step anew, with other bytes, as `--no-cache` does.
async fn built_anew(env: &mut TestEnvironment, branch: &str) {
    let source = Source { versions: [1, 1, 1, 1] };
    let commit = env.commit(source.versions);
    env.push(branch, &[&commit]).await;
    env.settle().await;
    let build = env.running().pop().expect("its build");
    let now = env.account.now();
    let (manifest, blobs) = exported_with(&source, |_| now, |key| format!("{branch} {key}"));
    env.push_cache(&env.reported(&build, "STOKER_EXPORT"), manifest, blobs);
    env.end(&build.id, BuildStatus::Succeeded, &commit);
    env.settle().await;
    env.wait(SignedDuration::from_mins(10));
}

/// Main's result counts for the branch, too, unless the branch has made the step after it.
#[tokio::test]
async fn of_a_step_that_both_lines_have_a_branch_is_given_what_was_made_last() {
    for [first, last] in [["feature-a", "main"], ["main", "feature-a"]] {
        let mut env = TestEnvironment::with_policy(ISOLATED);
        built_anew(&mut env, first).await;
        built_anew(&mut env, last).await;
        let build = push(&mut env).await;
        let given = cache(&env, &refs(&env, &build)[0]);
        assert_eq!(given.blobs().len(), 5);
        for blob in given.blobs() {
            let bytes = env.account.raw_blob(&blob.digest).expect("a layer");
            assert!(bytes.starts_with(last.as_bytes()), "{last}: {bytes:?}");
        }
    }
}

#[tokio::test]
async fn what_has_been_joined_today_is_found() {
    let mut env = two_lines(POLICY).await;
    let first = push(&mut env).await;
    let calls = env.account.calls.borrow().len();
    let second = push(&mut env).await;
    let starting = env.account.calls.borrow()[calls..].to_vec();
    assert!(!starting.iter().any(|call| call.starts_with("registry:")), "{starting:?}");
    assert_eq!(refs(&env, &first), refs(&env, &second));
    assert_eq!(joins(&env).len(), 1);
    env.wait(SignedDuration::from_hours(24));
    push(&mut env).await;
    assert_eq!(joins(&env).len(), 1, "the same cache");
    let tags = env.account.tags(&env.repository());
    assert_eq!(tags.keys().filter(|tag| tag.contains(".given.")).count(), 2, "under another day's tag");
}

#[tokio::test]
async fn where_one_line_holds_all_it_is_given_itself() {
    let mut env = two_lines(POLICY).await;
    let both = env.commit([2, 1, 2, 1]);
    env.push("feature-b", &[&both]).await;
    env.settle().await;
    let build = env.running().pop().unwrap();
    assert_eq!(refs(&env, &build), [env.line("main").unwrap().0], "a new branch has main's only");
    assert_eq!(build.inputs.as_ref().map(|given| given.joined.len()), Some(0));
    assert_eq!(joins(&env), BTreeSet::new());
}

#[tokio::test]
async fn a_build_that_cannot_be_given_the_join_is_given_its_line() {
    let calls = |env: &TestEnvironment| env.account.calls.borrow().clone();
    let (before, after) = {
        let mut env = two_lines(POLICY).await;
        let before = calls(&env).len();
        push(&mut env).await;
        (before, calls(&env))
    };
    let is_of_join = |number: &usize| after[*number].starts_with("registry:");
    let of_join: Vec<usize> = (before..after.len()).filter(is_of_join).collect();
    assert_eq!(of_join.len(), 4);
    for call in of_join {
        for failure in [Failure::Throttled, Failure::Unavailable, Failure::Refused, Failure::NotFound] {
            let mut env = two_lines(POLICY).await;
            let line = env.line("branch/feature-a").unwrap().0;
            env.account.faults.borrow_mut().insert(call, Fault::Before(failure));
            let build = push(&mut env).await;
            assert_eq!(refs(&env, &build), [line], "{} {failure:?}", after[call]);
            assert_eq!(env.reported(&build, "STOKER_READS"), "branch/feature-a main", "it may read both");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_join_for_long() {
    for operation in ["registry:GetBlob", "registry:PutBlob", "registry:PutManifest"] {
        let mut env = two_lines(POLICY).await;
        let line = env.line("branch/feature-a").unwrap().0;
        let slow = Fault::Slow(Duration::from_mins(5));
        env.account.outages.borrow_mut().insert(("start-build", operation), slow);
        let began = tokio::time::Instant::now();
        let build = push(&mut env).await;
        assert!(began.elapsed() <= Duration::from_secs(3), "{operation}: {:?}", began.elapsed());
        assert_eq!(refs(&env, &build), [line], "{operation}");
    }
}

#[tokio::test]
async fn a_build_of_main_is_never_given_a_commits_cache_as_it_is() {
    for fails in [false, true] {
        let mut env = two_lines(ISOLATED).await;
        // The merge is not promoted before main's build starts.
        env.loses_promotions = true;
        let (main, of_main) = env.line("main").unwrap();
        let head = env.account.builds.borrow()[1].resolved_commit.clone().expect("the branch's commit");
        let head = Commit::new(head).unwrap();
        if fails {
            let broken = Fault::Before(Failure::Unavailable);
            env.account.outages.borrow_mut().insert(("start-build", "registry:PutManifest"), broken);
        }
        let merge = env.commit([2, 1, 2, 1]);
        env.push("main", &[&head, &merge]).await;
        env.settle().await;
        let build = env.running().pop().expect("main's build");
        assert_eq!(env.reported(&build, "STOKER_READS"), format!("main commit/{}", head.short()));
        let given = refs(&env, &build);
        assert_eq!(given.len(), 1);
        if fails {
            assert_eq!(given, [main]);
        } else {
            let joined = cache(&env, &given[0]);
            assert!(joined.contains(&of_main) && joined.records() > of_main.records());
        }
    }
}

#[tokio::test]
async fn a_join_goes_when_no_build_can_be_given_it_any_more() {
    let mut env = two_lines(POLICY).await;
    let build = push(&mut env).await;
    let [join] = &refs(&env, &build)[..] else { panic!("one cache") };
    // The lease of a day, and the day on which it was made.
    for (hours, is_there) in [(30, true), (17, true), (2, true)] {
        env.wait(SignedDuration::from_hours(hours));
        env.night().await;
        assert_eq!(joins(&env).contains(join), is_there, "its build still runs");
    }
    env.run(&build);
    env.settle().await;
    env.night().await;
    assert_eq!(joins(&env), BTreeSet::new(), "its build has ended");
    assert!(env.line("branch/feature-a").is_some() && env.line("main").is_some());
}
