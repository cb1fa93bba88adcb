//! Lines stay small enough to be imported, and say how warm builds were.

use bytes::Bytes;
use jiff::SignedDuration;
use serde_json::json;
use stoker::cache::{CONFIG_MEDIA_TYPE, Cache, MANIFEST_MEDIA_TYPE, SAFE_SIZE, Warmth};
use stoker::names::Digest;
use stoker::policy::Policy;
use stoker::promote::{Hint, Outcome, Warmed, promote};
use stories::world::{POLICY, World};

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
    let config = Bytes::from(config((SAFE_SIZE - config(0).len()) / record_bytes));
    assert!((SAFE_SIZE - 1000..=SAFE_SIZE).contains(&config.len()));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(&layer), "size": layer.len()}],
    });
    (Bytes::from(manifest.to_string()), vec![config, layer])
}

#[tokio::test]
async fn what_was_used_least_lately_leaves_a_full_line() {
    let mut world = World::new();
    let (manifest, blobs) = old_and_large();
    world.account.push(&world.repository(), "app.branch.feature-a", MANIFEST_MEDIA_TYPE, manifest, blobs);
    let before = world.line("branch/feature-a").unwrap().1.records();
    let a = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&a]).await;
    world.build().await;
    let after = world.line("branch/feature-a").unwrap().1;
    assert!(after.sizes().config <= SAFE_SIZE);
    assert!(
        (before - 20..before).contains(&after.records()),
        "no more goes than has to: {}",
        after.records()
    );
    assert_eq!(world.holds("branch/feature-a", [1, 1, 1, 1]).len(), 5);
    let lines = world.lines();
    world.replay(false).await;
    assert_eq!(world.lines(), lines, "the same events move a pruned line no further");
}

#[tokio::test]
async fn a_line_remembers_when_a_build_used_its_steps() {
    let mut world = World::new();
    let first = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&first]).await;
    world.build().await;
    let early = world.account.now();
    world.wait(SignedDuration::from_hours(10));
    let second = world.commit([1, 2, 1, 1]);
    world.push("feature-a", &[&second]).await;
    world.build().await;
    let cache: Cache = world.line("branch/feature-a").unwrap().1;
    let steps = cache.steps();
    let used = |at: jiff::Timestamp| steps.values().filter(|step| step.used_at == Some(at)).count();
    // Only what the second build replaced was not used by it.
    assert_eq!((used(early), used(world.account.now())), (2, 5));
}

#[tokio::test]
async fn a_promotion_tells_once_how_warm_its_build_was() {
    let mut world = World::new();
    let first = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&first]).await;
    world.build().await;
    world.wait(SignedDuration::from_mins(10));
    let second = world.commit([1, 2, 1, 1]);
    world.push("feature-a", &[&second]).await;
    world.settle().await;
    let build = world.running().pop().expect("a build");
    world.run(&build);
    let policy = Policy::parse("the story's policy", POLICY).unwrap();
    let hint = || Hint::Built { build: build.id.clone() };
    let told = |answers: Vec<stoker::promote::Answer>| -> Vec<Warmed> {
        let outcomes = answers.into_iter().flat_map(|answer| answer.expect("an outcome"));
        let builds = outcomes.filter_map(|outcome| match outcome {
            Outcome::Moved { builds, .. } => Some(builds),
            _ => None,
        });
        builds.flatten().collect()
    };
    let now = world.account.now();
    let promoted = async |hints: &[Hint]| {
        let promoted = promote(&world.account, &policy, hints, now);
        world.account.invoke("promote-cache", None, promoted).await.unwrap()
    };
    let warmed = told(promoted(&[hint(), hint()]).await);
    let [Warmed { build: id, warmth, .. }] = &warmed[..] else { panic!("{warmed:?}") };
    assert_eq!(*id, build.id);
    let Warmth { steps, reused, reused_bytes, built_bytes } = *warmth;
    assert_eq!((steps, reused), (5, 3));
    assert!(reused_bytes > 0 && built_bytes > 0);
    assert!(told(promoted(&[hint()]).await).is_empty());
}
