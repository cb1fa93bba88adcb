//! What the commands answer, and the codes they exit with.

use buildkit_cache::IMPORT_LIMIT;
use serde_json::{Value, json};
use stoker_core::names::Digest;

use crate::registry::Fake;
use crate::run::stoker;

#[tokio::test(flavor = "multi_thread")]
async fn inspect_shows_what_is_there() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one two"), fake.put("app", "b", "two three four"));
    let ran = stoker(&format!("cache inspect {a}")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("2 steps, 32 B in 2 blobs; 4 cache keys"), "{}", ran.out);
    let ran = stoker(&format!("cache inspect --json {a} {b}")).await;
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["caches"][1]["steps"].as_array().unwrap().len(), 3);
    assert_eq!(json["shared"][0]["steps"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_tells_same_from_other() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one two"), fake.put("other", "b", "two three"));
    let same = fake.put("other", "same", "two one");
    let ran = stoker(&format!("cache diff {a} {same}")).await;
    assert_eq!((ran.code, ran.out.contains("They hold the same: 2 steps")), (0, true), "{}", ran.out);
    let ran = stoker(&format!("cache diff {a} {b}")).await;
    assert_eq!((ran.code, ran.out.contains("in both        1")), (1, true), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_is_missing() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one two"), fake.put("app", "b", "three"));
    let ran = stoker(&format!("cache verify {a} {b}")).await;
    assert_eq!((ran.code, ran.out.matches("sound  ").count()), (0, 2), "{}", ran.out);
    let gone = Digest::of(b"the layer of two");
    fake.env().blobs.remove(&("app".to_owned(), gone.clone()));
    let ran = stoker(&format!("cache verify {a} {b} {}", fake.reference("app", "none"))).await;
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains(&format!("blob {gone} (16 B) is missing: the result of 1 step")), "{}", ran.out);
    assert_eq!(ran.out.matches("NOT SOUND").count(), 2, "{}", ran.out);
    // A cache that cannot be served must not be merged into another either.
    let ran = stoker(&format!("cache merge {a} {b} --into {}", fake.reference("app", "both"))).await;
    assert_eq!((ran.code, ran.err.contains("does not have")), (1, true), "{}", ran.err);
    assert!(fake.manifest("app", "both").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_warns_of_several_leaves_and_merge_makes_them_one() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one two");
    let ran = stoker(&format!("cache verify {a}")).await;
    assert_eq!((ran.code, ran.out.contains("warning: it has several leaves")), (0, true), "{}", ran.out);
    assert!(ran.out.contains(&format!("next: stoker cache merge {a} --into {a}")), "{}", ran.out);
    assert_eq!(stoker(&format!("cache merge {a} --into {a}")).await.code, 0);
    let ran = stoker(&format!("cache verify {a}")).await;
    assert_eq!((ran.code, ran.out.contains("warning")), (0, false), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_are_as_documented() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one");
    fake.env().manifests.insert(("app".to_owned(), Digest::of(b"{}")), "{}".into());
    let (image, none) =
        (format!("{}/app@{}", fake.address, Digest::of(b"{}")), fake.reference("app", "none"));
    for (line, code) in [
        ("--help".to_owned(), 0),
        ("cache merge --help".to_owned(), 0),
        ("completions zsh".to_owned(), 0),
        (String::new(), 2),
        ("cache".to_owned(), 2),
        ("cache inspect".to_owned(), 2),
        ("cache inspect https://registry.example/app".to_owned(), 2),
        (format!("cache merge --into {a}"), 2),
        (format!("cache merge {a} {a} --into {image}"), 2),
        (format!("cache prune {a} --budget lots"), 2),
        (format!("cache inspect {image}"), 1),
        (format!("cache inspect {none}"), 3),
        ("cache inspect 127.0.0.1:1/app".to_owned(), 3),
    ] {
        let ran = stoker(&line).await;
        assert_eq!(ran.code, code, "{line}: {}{}", ran.out, ran.err);
        // Mistakes go to stderr, answers to stdout.
        assert_eq!(ran.out.is_empty(), code != 0, "{line}: {}", ran.out);
    }
    fake.env().status = Some(axum::http::StatusCode::SERVICE_UNAVAILABLE);
    let ran = stoker(&format!("cache verify {a}")).await;
    assert_eq!((ran.code, ran.err.contains("try again later")), (3, true), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_lets_go_of_what_was_not_used_for_longest() {
    let fake = Fake::start().await;
    let (old, new) =
        (fake.put("app", "old", "one two"), fake.put_made("app", "new", "three", "2026-11-22T09:00:00Z"));
    let both = fake.reference("app", "both");
    assert_eq!(stoker(&format!("cache merge {old} {new} --into {both}")).await.code, 0);
    let before = fake.manifest("app", "both");
    let ran = stoker(&format!("cache prune {both} --budget 20B --dry-run")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("of 3 steps, 50 B: 2 steps and 32 B go, and 18 B stay"), "{}", ran.out);
    assert_eq!(fake.manifest("app", "both"), before);
    let ran = stoker(&format!("cache prune {both} --budget 20B")).await;
    assert_eq!((ran.code, ran.out.contains("lacks 2 steps of it")), (0, true), "{}{}", ran.out, ran.err);
    let left = fake.manifest("app", "both").unwrap();
    assert_eq!(left["layers"].as_array().unwrap().len(), 1);
    assert_eq!(left["layers"][0]["digest"], Digest::of(b"the layer of three").to_string());
    let ran = stoker(&format!("cache prune {both} --budget 20B")).await;
    assert_eq!((ran.code, ran.out.contains("nothing to write")), (0, true), "{}{}", ran.out, ran.err);
    let ran = stoker(&format!("cache prune {both} --budget 1B")).await;
    assert_eq!((ran.code, ran.err.contains("not one step fits")), (1, true), "{}{}", ran.out, ran.err);
    let ran = stoker(&format!("cache merge {old} {new} --into {both} --budget 20B")).await;
    assert_eq!((ran.code, ran.out.contains("nothing to write")), (0, true), "{}{}", ran.out, ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_too_large_to_import_is_reported_and_can_be_pruned() {
    let fake = Fake::start().await;
    let steps: Vec<String> = (0..3500).map(|n| format!("{n}-{}", "x".repeat(150))).collect();
    let large = fake.put("app", "large", &steps.join(" "));
    let ran = stoker(&format!("cache verify {large}")).await;
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("its config is at 1"), "{}", ran.out);
    let ran = stoker(&format!("cache prune {large}")).await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(stoker(&format!("cache verify {large}")).await.code, 0);
    let noted = fake.put("app", "noted", "one");
    let mut manifest = fake.manifest("app", "noted").unwrap();
    manifest["annotations"] = json!({"note": "x".repeat(IMPORT_LIMIT)});
    fake.env().manifest_instead = Some(manifest.to_string().into());
    let ran = stoker(&format!("cache verify {noted}")).await;
    assert_eq!((ran.code, ran.out.contains("its manifest is at 100 %")), (1, true), "{}{}", ran.out, ran.err);
}
