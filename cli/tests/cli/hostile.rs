//! Registries that lie, never end, or send their clients away.

use stoker_core::names::Digest;

use serde_json::json;

use crate::registry::{Door, Fake};
use crate::run::{Home, stoker};

#[tokio::test(flavor = "multi_thread")]
async fn endless_answers_end() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one");
    fake.env().is_endless = true;
    let ran = stoker(&format!("cache inspect {a}")).await;
    assert_eq!((ran.code, ran.err.contains("length limit")), (3, true), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_than_the_digests_are_refused() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one");
    let pinned = format!("{}/app@{}", fake.address, Digest::of(b"pinned"));
    fake.env().manifest_instead = Some("{}".into());
    let ran = stoker(&format!("cache inspect {pinned}")).await;
    assert_eq!((ran.code, ran.err.contains("other bytes")), (3, true), "{}", ran.err);
    fake.env().manifest_instead = None;
    for instead in ["", "{}", "x".repeat(2 << 20).as_str()] {
        fake.env().blob_instead = Some(instead.to_owned().into());
        let ran = stoker(&format!("cache inspect {a}")).await;
        assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_other_bytes_is_not_passed_on() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    let (a, b) = (fake.put("app", "a", "one"), other.put("app", "b", "two"));
    let digest = Digest::of(b"the layer of two");
    for bytes in ["the layer of xyz", "the layer of two and more", "short"] {
        other.env().blobs.insert(("app".to_owned(), digest.clone()), bytes.into());
        let ran = stoker(&format!("cache merge {a} {b} --into {}", fake.reference("app", "both"))).await;
        assert_eq!(ran.code, 3, "{bytes}: {}{}", ran.out, ran.err);
        assert!(fake.manifest("app", "both").is_none());
        assert!(!fake.env().blobs.contains_key(&("app".to_owned(), digest.clone())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_to_no_other_host() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    let a = fake.put("app", "a", "one");
    other.put("any", "a", "one");
    fake.env().door = Door::Basic("Basic bWU6c2VjcmV0".to_owned());
    fake.env().blobs_elsewhere = Some(format!("http://{}/elsewhere", other.address));
    let home = Home::with_config(&json!({"auths": {fake.address.to_string(): {"auth": "bWU6c2VjcmV0"}}}));
    let ran = home.stoker(&format!("cache verify {a}")).await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(other.count("GET", "/elsewhere/"), 1);
    assert!(other.env().asked.iter().all(|asked| asked.authorization.is_none()));

    // An upload is not sent elsewhere at all.
    fake.env().blobs_elsewhere = None;
    fake.env().upload_elsewhere = Some(format!("http://{}/v2/app/blobs/uploads/1", other.address));
    let b = fake.put("app", "b", "two");
    let ran = home.stoker(&format!("cache merge {a} {b} --into {}", fake.reference("app", "both"))).await;
    assert_eq!((ran.code, ran.err.contains("sent elsewhere")), (3, true), "{}", ran.err);
    assert_eq!(other.count("P", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_redirects_is_left() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one");
    for place in [format!("http://{}/v2/app/blobs", fake.address), "file:///etc".to_owned(), "x".to_owned()] {
        fake.env().blobs_elsewhere = Some(place);
        let ran = stoker(&format!("cache inspect {a}")).await;
        assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_no_cache() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one");
    for nonsense in ["", "[]", "<html>", "{\"manifests\":[]}", "\u{1b}[31m", &"[".repeat(100_000)] {
        fake.env().manifest_instead = Some(nonsense.to_owned().into());
        let ran = stoker(&format!("cache verify {a}")).await;
        assert_eq!((ran.code, ran.out.contains('\u{1b}')), (1, false), "{}{}", ran.out, ran.err);
    }
}
