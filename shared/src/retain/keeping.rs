//! What is kept between runs comes back as it was, or not at all.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::kept::{Kept, decode};
use super::known::{Facts, Known, Shape};
use crate::cache::CONFIG_MEDIA_TYPE;
use crate::error::{CallError, Failure};
use crate::names::{Branch, CacheRepository, Commit, Digest, Line, Tag};
use crate::ports::{Image, ListedImage, ReadBlobs, ReadImages, WriteImages};
use crate::provenance::{Built, Provenance};

/// A repository in memory that counts what is sent to it.
#[derive(Default)]
struct Store {
    images: RefCell<HashMap<Tag, Image>>,
    blobs: RefCell<HashMap<Digest, Bytes>>,
    sent: Cell<usize>,
    is_gone: Cell<bool>,
}

impl Store {
    fn fails<T>(&self, then: impl FnOnce() -> T) -> Result<T, CallError> {
        let error = || CallError::new("a call", "the store", Failure::Unavailable, "it is gone");
        if self.is_gone.get() { Err(error()) } else { Ok(then()) }
    }
}

impl ReadImages for Store {
    async fn images(&self, _: &CacheRepository, tags: &[Tag]) -> Result<Vec<Option<Image>>, CallError> {
        self.fails(|| tags.iter().map(|tag| self.images.borrow().get(tag).cloned()).collect())
    }
}

impl ReadBlobs for Store {
    async fn blob(&self, _: &CacheRepository, digest: &Digest, limit: usize) -> Result<Bytes, CallError> {
        let blob = self.fails(|| self.blobs.borrow().get(digest).cloned())?;
        let blob = blob.filter(|blob| blob.len() <= limit && Digest::of(blob) == *digest);
        blob.ok_or_else(|| CallError::new("registry:GetBlob", digest, Failure::Unavailable, "other bytes"))
    }
}

impl WriteImages for Store {
    async fn put_blob(&self, _: &CacheRepository, digest: &Digest, bytes: Bytes) -> Result<(), CallError> {
        assert!(!bytes.is_empty(), "ECR takes no empty blob");
        self.sent.set(self.sent.get() + bytes.len());
        self.fails(|| drop(self.blobs.borrow_mut().insert(digest.clone(), bytes)))
    }

    async fn put_image(
        &self,
        _: &CacheRepository,
        tag: &Tag,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), CallError> {
        let image = Image { digest: Digest::of(&manifest), media_type: media_type.to_owned(), manifest };
        self.fails(|| drop(self.images.borrow_mut().insert(tag.clone(), image)))
    }
}

fn kept_in() -> CacheRepository {
    CacheRepository::new("stoker-inventory").unwrap()
}

fn repository() -> CacheRepository {
    CacheRepository::new("stoker/app").unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn recall(store: &Store) -> Known {
    wait(Kept::recall(store, &kept_in(), &repository())).0
}

/// Learns these manifests on top of what is kept, and keeps it.
fn learn(store: &Store, manifests: &[Value]) -> Known {
    let kept_in = kept_in();
    let (mut known, mut kept) = wait(Kept::recall(store, &kept_in, &repository()));
    for manifest in manifests {
        let manifest = manifest.to_string();
        known.learn(Digest::of(manifest.as_bytes()), manifest.as_bytes());
    }
    wait(kept.keep(&mut known));
    known
}

/// A cache, the only one with that number.
fn cache(number: usize, blobs: impl IntoIterator<Item = usize>) -> Value {
    let described = |kind: &str, name: String| json!({ "mediaType": kind, "digest": Digest::of(name.as_bytes()), "size": 5 });
    let line = Line::Branch(Branch::new(format!("b{}", number % 7)).unwrap());
    let built = Built {
        at: Timestamp::new(i64::try_from(number).unwrap(), 7).unwrap(),
        commit: Commit::new(format!("{:040x}", number + 1)).unwrap(),
        build: format!("app:{number}"),
    };
    let provenance = Provenance { built: Some(built), reused_percent: Some(80), ..Provenance::default() };
    let layers = blobs.into_iter().map(|blob| described("layer", format!("blob {blob}")));
    json!({
        "config": described(CONFIG_MEDIA_TYPE, format!("config {number}")), "layers": layers.collect::<Vec<_>>(),
        "annotations": provenance.annotations(&line),
    })
}

/// Everything that is known, in words that do not depend on how it is held.
fn told(known: &Known) -> BTreeMap<String, String> {
    let tell = |(digest, facts): (&Digest, Facts<'_>)| {
        let blobs = facts.blobs().iter().filter_map(|place| known.blob(*place));
        let blobs: BTreeSet<_> = blobs.collect();
        let rest = (facts.shape(), facts.children(), facts.line(), facts.commit(), facts.built_at());
        let text = format!("{blobs:?} {rest:?} {:?} {:?}", facts.build(), facts.reused_percent());
        (digest.to_string(), text)
    };
    known.all().map(tell).collect()
}

fn manifest() -> impl Strategy<Value = Value> {
    let digest = (0..30_u8).prop_map(|number| Digest::of(&[number]));
    let kind = prop_oneof![Just(CONFIG_MEDIA_TYPE.to_owned()), "[a-z]{0,5}"];
    let described = (kind, digest, any::<u64>())
        .prop_map(|(kind, digest, size)| json!({ "mediaType": kind, "digest": digest, "size": size }));
    let list = || prop::collection::vec(described.clone(), 0..6);
    let value = prop_oneof![
        "\\PC{0,300}",
        Just("main".to_owned()),
        Just("2026-11-21T08:00:00.5Z".to_owned()),
        "[1-9a-f]{40}",
        "[0-9]{1,3}"
    ];
    let key = prop_oneof![
        Just("stoker.line"),
        Just("stoker.commit"),
        Just("stoker.build"),
        Just("stoker.built-at"),
        Just("stoker.reused-percent")
    ];
    let annotations = prop::collection::hash_map(key, value, 0..6);
    (prop::option::of(described.clone()), list(), list(), annotations).prop_map(
        |(config, layers, manifests, annotations)| {
            json!({ "config": config, "layers": layers, "manifests": manifests, "annotations": annotations })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_kept_comes_back(runs in prop::collection::vec(prop::collection::vec(manifest(), 0..8), 1..4)) {
        let store = Store::default();
        for run in &runs {
            let known = learn(&store, run);
            let again = recall(&store);
            prop_assert_eq!(told(&known), told(&again));
            prop_assert!(!again.is_changed());
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&mut Known::default(), &bytes);
    }

    #[test]
    fn damaged_records_are_none_or_name_only_what_there_is(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let store = Store::default();
        learn(&store, &(0..5).map(|number| cache(number, number..number + 4)).collect::<Vec<_>>());
        let layer = store.blobs.borrow().values().find(|blob| blob.len() > 2).unwrap().clone();
        let mut bytes = layer.to_vec();
        bytes[at.index(layer.len())] = to;
        let mut known = Known::default();
        if decode(&mut known, &bytes).is_some() {
            for (_, facts) in known.all() {
                prop_assert!(facts.blobs().iter().all(|place| (*place as usize) < known.blobs()));
                prop_assert!(facts.blobs().is_sorted());
            }
        }
    }
}

/// What somebody does to the artifact under a tag.
type Damage = fn(&Store, &Tag);

#[test]
fn what_cannot_be_used_is_read_anew_and_mended() {
    let manifests: Vec<Value> = (0..3).map(|number| cache(number, [0, number + 1])).collect();
    let tag = Tag::facts(&repository());
    let damage: [(&str, Damage); 7] = [
        ("no artifact", |store, tag| drop(store.images.borrow_mut().remove(tag))),
        ("another version", |store, tag| {
            let mut images = store.images.borrow_mut();
            let image = images.get_mut(tag).unwrap();
            let text = String::from_utf8(image.manifest.to_vec()).unwrap().replace("facts.v1", "facts.v2");
            (image.digest, image.manifest) = (Digest::of(text.as_bytes()), text.into());
        }),
        ("a manifest of other bytes than its digest's", |store, tag| {
            store.images.borrow_mut().get_mut(tag).unwrap().digest = Digest::of(b"another");
        }),
        ("no manifest", |store, tag| {
            let image = Image {
                digest: Digest::of(b"{"),
                media_type: String::new(),
                manifest: Bytes::from_static(b"{"),
            };
            store.images.borrow_mut().insert(tag.clone(), image);
        }),
        ("a layer of other bytes", |store, _| {
            for blob in store.blobs.borrow_mut().values_mut() {
                *blob = Bytes::from_static(b"\x01\x02\x03");
            }
        }),
        ("a layer that ends early", |store, tag| {
            let mut images = store.images.borrow_mut();
            let image = images.get_mut(tag).unwrap();
            let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
            let digest = Digest::new(manifest["layers"][0]["digest"].as_str().unwrap()).unwrap();
            let layer = store.blobs.borrow()[&digest].clone();
            let short = layer.slice(..layer.len() - 1);
            manifest["layers"][0]["digest"] = json!(Digest::of(&short));
            store.blobs.borrow_mut().insert(Digest::of(&short), short);
            image.manifest = manifest.to_string().into();
            image.digest = Digest::of(&image.manifest);
        }),
        ("a layer twice", |store, tag| {
            let mut images = store.images.borrow_mut();
            let image = images.get_mut(tag).unwrap();
            let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
            let layer = manifest["layers"][0].clone();
            manifest["layers"].as_array_mut().unwrap().push(layer);
            image.manifest = manifest.to_string().into();
            image.digest = Digest::of(&image.manifest);
        }),
    ];
    for (what, damage) in damage {
        let store = Store::default();
        let known = learn(&store, &manifests);
        assert_eq!(recall(&store).len(), 3, "{what}");
        damage(&store, &tag);
        assert!(recall(&store).is_empty(), "{what}");
        learn(&store, &manifests);
        assert_eq!(told(&recall(&store)), told(&known), "{what}: mended");
    }
}

#[test]
fn a_store_that_fails_costs_nothing_but_reading() {
    let store = Store::default();
    store.is_gone.set(true);
    assert_eq!(learn(&store, &[cache(0, [1])]).len(), 1);
    store.is_gone.set(false);
    assert!(recall(&store).is_empty());
}

#[test]
fn each_repository_has_a_tag_of_its_own() {
    let tag = |name: &str| Tag::facts(&CacheRepository::new(name).unwrap()).to_string();
    let long = "a/".repeat(120) + "b";
    let tags: BTreeSet<String> =
        ["stoker/app", "stoker-app", "stoker.app", "stoker_app", &long].map(tag).into();
    assert_eq!(tags.len(), 5, "{tags:?}");
    assert!(tags.iter().all(|tag| tag.len() <= 128), "{tags:?}");
}

#[test]
fn a_day_sends_what_is_new_and_nothing_that_is_there() {
    let store = Store::default();
    let manifests: Vec<Value> =
        (0..1600).map(|number| cache(number, number * 180..number * 180 + 200)).collect();
    let known = learn(&store, &manifests);
    let layers = store.blobs.borrow().len() - 1;
    assert!(layers >= 2, "they need more than one layer: {layers}");
    let first = store.sent.replace(0);
    learn(&store, &[]);
    assert_eq!(store.sent.get(), 0, "nothing was new");
    let more = learn(&store, &[cache(20_000, [1, 2])]);
    assert_eq!(more.len(), known.len() + 1);
    assert!(store.sent.get() < first / 2, "{} of {first} bytes", store.sent.get());
    let again = recall(&store);
    assert_eq!((again.len(), again.blobs()), (more.len(), more.blobs()));
}

#[test]
fn what_is_gone_is_forgotten_once_it_is_a_good_part() {
    let store = Store::default();
    let manifests: Vec<Value> = (0..100).map(|number| cache(number, [0, number + 1])).collect();
    let known = learn(&store, &manifests);
    let listed = |digest: &Digest| {
        Arc::new(ListedImage {
            digest: digest.clone(),
            tags: Vec::new(),
            pushed_at: Timestamp::UNIX_EPOCH,
            bytes: 0,
            pulled_at: None,
            is_archived: false,
        })
    };
    let images: Vec<Arc<ListedImage>> = known.all().map(|(digest, _)| listed(digest)).collect();
    let mut some = recall(&store);
    some.forget_all_but(&images[5..]);
    assert_eq!((some.len(), some.is_changed()), (100, false), "five of a hundred do no harm");
    let kept_in = kept_in();
    let (mut some, mut kept) = wait(Kept::recall(&store, &kept_in, &repository()));
    some.forget_all_but(&images[50..]);
    assert_eq!((some.len(), some.is_changed()), (50, true));
    assert!(some.of(&images[49].digest).is_none() && some.of(&images[50].digest).is_some());
    wait(kept.keep(&mut some));
    let again = recall(&store);
    assert_eq!((told(&again), again.blobs()), (told(&some), 101), "nor is anything left of their blobs");
}

#[test]
fn facts_are_of_their_digest_and_no_other() {
    let store = Store::default();
    let known = learn(&store, &[cache(0, [1]), cache(1, [2])]);
    let text = cache(0, [1]).to_string();
    let facts = known.of(&Digest::of(text.as_bytes())).unwrap();
    assert_eq!((facts.shape(), facts.build()), (Shape::Cache, Some("app:0")));
    assert!(known.of(&Digest::of(b"another")).is_none());
    // What is known stays, whatever comes under the same digest.
    let mut known = known;
    known.learn(Digest::of(text.as_bytes()), cache(1, [2]).to_string().as_bytes());
    assert_eq!(known.of(&Digest::of(text.as_bytes())).unwrap().build(), Some("app:0"));
}
