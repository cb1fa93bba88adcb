//! How layers come to where a cache is written.

use crate::registry::Fake;
use crate::run::stoker;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_within_a_repository() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one two"), fake.put("app", "b", "two three"));
    let into = fake.reference("app", "a");
    let ran = stoker(&format!("cache merge {a} {b} --into {into} --dry-run")).await;
    assert_eq!((ran.code, fake.count("P", "/")), (0, 0), "{}", ran.err);
    assert!(ran.out.contains("3 blobs in place"), "{}", ran.out);
    let ran = stoker(&format!("cache merge {a} {b} --into {into}")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("every step of which it has"), "{}", ran.out);
    assert_eq!((fake.count("POST", ""), fake.count("PUT", "")), (1, 2));
    assert_eq!(fake.manifest("app", "a").unwrap()["layers"].as_array().unwrap().len(), 3);
    // Once more finds nothing to do.
    let ran = stoker(&format!("cache merge {b} {a} --into {into}")).await;
    assert_eq!((ran.code, ran.out.contains("nothing to write")), (0, true), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_repositories_blobs_are_mounted() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one two"), fake.put("builds", "b", "three"));
    let into = fake.reference("trusted", "main");
    let ran = stoker(&format!("cache merge {a} {b} --into {into}")).await;
    assert_eq!(
        (ran.code, ran.out.contains("0 blobs in place, 3 mounted")),
        (0, true),
        "{}{}",
        ran.out,
        ran.err
    );
    assert_eq!((fake.count("POST", "mount=sha256:"), fake.count("GET", "/blobs/")), (3, 2));
    assert_eq!(stoker(&format!("cache verify {into}")).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_does_not_mount_is_copied() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one two"), fake.put("builds", "b", "three"));
    fake.env().refuses_mounts = true;
    let into = fake.reference("trusted", "main");
    let ran = stoker(&format!("cache merge {a} {b} --into {into}")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("0 blobs in place, 3 copied (50 B)"), "{}", ran.out);
    assert!(ran.out.contains("the registry did not mount 3 blobs"), "{}", ran.out);
    // The upload that each refusal opened is the one that was filled; the config's is the fourth.
    assert_eq!(fake.count("POST", ""), 4);
    assert_eq!(stoker(&format!("cache verify {into}")).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_registries_blobs_are_copied() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    let (a, b) = (fake.put("app", "a", "one two"), other.put("app", "b", "two three"));
    let into = fake.reference("app", "both");
    let ran = stoker(&format!("cache merge {a} {b} --into {into}")).await;
    assert_eq!(
        (ran.code, ran.out.contains("2 blobs in place, 1 copied (18 B)")),
        (0, true),
        "{}{}",
        ran.out,
        ran.err
    );
    assert_eq!(stoker(&format!("cache verify {into}")).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_never_overwritten() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one"), fake.put("app", "b", "two"));
    let manifest =
        br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}}"#;
    let digest = stoker_core::names::Digest::of(manifest);
    fake.env().manifests.insert(("app".to_owned(), digest.clone()), manifest.as_slice().into());
    fake.env().tags.insert(("app".to_owned(), "latest".to_owned()), digest);
    let ran = stoker(&format!("cache merge {a} {b} --into {}", fake.reference("app", "latest"))).await;
    assert_eq!((ran.code, ran.err.contains("not a cache")), (1, true), "{}", ran.err);
    assert_eq!(fake.count("P", "/"), 0);
}
