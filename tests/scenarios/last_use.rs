//! Lines stay small enough to be imported, and say how warm builds were.

use buildkit_cache::{CONFIG_MEDIA_TYPE, Cache, CacheHitRate, MANIFEST_MEDIA_TYPE, SAFE_SIZE};
use bytes::Bytes;
use jiff::SignedDuration;
use scenarios::environment::{POLICY, TestEnvironment};
use serde_json::json;
use stoker_core::names::{Commit, Digest};
use stoker_core::policy::Policy;
use stoker_core::promote::{MeasuredBuild, Outcome, PromotionTrigger, promote};

/// A cache whose config is as large as a line's may be, made long ago.
fn old_and_large() -> (Bytes, Vec<Bytes>) {
    let layer = Bytes::from_static(b"an old layer");
    let config = |records: usize| {
        let record = |n: usize| {
            json!({
                "digest": Digest::of(&n.to_le_bytes()),
                "layers": [{"layer": 0, "createdAt": "2020-01-01T00:00:00Z"}],
            })
        };
        let records: Vec<_> = (0..records).map(record).collect();
        json!({"layers": [{"blob": Digest::of(&layer), "parent": -1}], "records": records}).to_string()
    };
    let record_bytes = config(2).len() - config(1).len();
    // Each record is a leaf, which the line's own form names once more, in a record behind the others.
    let whole = |records: usize| {
        let inputs: Vec<_> = (0..records).map(|leaf| json!([{ "link": leaf }])).collect();
        let last = json!({"digest": Digest::of(b""), "inputs": inputs}).to_string();
        config(records).len() + ",".len() + last.len()
    };
    let leaf_bytes = r#"[{"link":1000}],"#.len();
    // Of the first thousand leaves the links are shorter, so some more fit.
    let least = (SAFE_SIZE - whole(0)) / (record_bytes + leaf_bytes);
    let records = (least..=SAFE_SIZE).take_while(|&records| whole(records) <= SAFE_SIZE).last().unwrap();
    assert!((SAFE_SIZE - 1000..=SAFE_SIZE).contains(&whole(records)));
    let config = Bytes::from(config(records));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(&layer),
        "size": layer.len()}],
    });
    (Bytes::from(manifest.to_string()), vec![config, layer])
}

#[tokio::test]
async fn what_was_used_least_lately_leaves_a_full_line() {
    let mut env = TestEnvironment::new();
    let (manifest, blobs) = old_and_large();
    env.account.push(&env.repository(), "app.branch.feature-a", MANIFEST_MEDIA_TYPE, manifest, blobs);
    let before = env.line("branch/feature-a").unwrap().1.records();
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    let after = env.line("branch/feature-a").unwrap().1;
    assert!(after.sizes().config <= SAFE_SIZE);
    assert!(
        (before - 20..before).contains(&after.records()),
        "no more goes than has to: {} of {before}",
        after.records()
    );
    assert_eq!(env.holds("branch/feature-a", [1, 1, 1, 1]).len(), 5);
    let lines = env.lines();
    env.replay(false).await;
    assert_eq!(env.lines(), lines, "the same events move a pruned line no further");
}

#[tokio::test]
async fn a_line_remembers_when_a_build_used_its_steps() {
    let mut env = TestEnvironment::new();
    let first = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&first]).await;
    env.build().await;
    let early = env.account.now();
    env.wait(SignedDuration::from_hours(10));
    let second = env.commit([1, 2, 1, 1]);
    env.push("feature-a", &[&second]).await;
    env.build().await;
    let cache: Cache = env.line("branch/feature-a").unwrap().1;
    let steps = cache.steps();
    let used = |at: jiff::Timestamp| steps.values().filter(|step| step.used_at == Some(at)).count();
    // Only what the second build replaced was not used by it.
    assert_eq!((used(early), used(env.account.now())), (2, 5));
}

/// A push to a branch and its build, which takes so long; answers the build's id.
async fn built(env: &mut TestEnvironment, branch: &str, commit: &Commit, minutes: i64) -> String {
    env.wait(SignedDuration::from_mins(10));
    env.push(branch, &[commit]).await;
    env.settle().await;
    let build = env.running().pop().expect("a build");
    env.wait(SignedDuration::from_mins(minutes));
    env.run(&build);
    build.id
}

/// What the promotion of a build tells of it, that is hinted at so often.
async fn reported(env: &TestEnvironment, build: &str, triggers: usize) -> Vec<MeasuredBuild> {
    let policy = Policy::parse("the scenario's policy", POLICY).unwrap();
    let triggers = vec![PromotionTrigger::Built { build: build.to_owned() }; triggers];
    let promoted = promote(&env.account, &policy, &triggers, env.account.now());
    let answers = env.account.invoke("promote-cache", None, promoted).await.unwrap();
    let builds = answers.into_iter().flat_map(|answer| answer.expect("an outcome")).filter_map(|outcome| {
        let Outcome::Updated { builds, .. } = outcome else { return None };
        assert!(builds.iter().all(|warmed| warmed.build == build));
        Some(builds)
    });
    builds.flatten().collect()
}

#[tokio::test]
async fn a_promotion_tells_once_how_warm_its_build_was() {
    let mut env = TestEnvironment::new();
    let first = env.commit([1, 1, 1, 1]);
    built(&mut env, "feature-a", &first, 10).await;
    env.settle().await;
    let second = env.commit([1, 2, 1, 1]);
    let build = built(&mut env, "feature-a", &second, 1).await;
    let warmed = reported(&env, &build, 2).await;
    let [MeasuredBuild { hit_rate, .. }] = &warmed[..] else { panic!("{warmed:?}") };
    let CacheHitRate { steps, reused, reused_bytes, built_bytes } = *hit_rate;
    assert_eq!((steps, reused), (5, 3));
    assert!(reused_bytes > 0 && built_bytes > 0);
    assert!(reported(&env, &build, 1).await.is_empty());
}

#[tokio::test]
async fn a_warm_build_has_saved_what_it_was_shorter_than_the_newest_cold_one() {
    let mut env = TestEnvironment::new();
    let commits = [[1, 1, 1, 1], [1, 2, 1, 1], [1, 3, 1, 1], [9, 9, 9, 9], [9, 9, 9, 8]];
    let commits = commits.map(|versions| env.commit(versions));
    let mut saved = Vec::new();
    for (commit, (branch, minutes)) in commits.iter().zip([
        // Nothing to compare with: it is what others are compared with.
        ("main", 10),
        ("main", 4),
        ("feature-a", 12),
        // Everything has changed, and its branch is compared with it from then on.
        ("feature-a", 20),
        ("feature-a", 5),
    ]) {
        let build = built(&mut env, branch, commit, minutes).await;
        let warmed = reported(&env, &build, 1).await;
        saved.extend(warmed.iter().map(|warmed| warmed.saved_seconds));
        env.settle().await;
    }
    assert_eq!(saved, [None, Some(360), Some(0), None, Some(900)]);
}
