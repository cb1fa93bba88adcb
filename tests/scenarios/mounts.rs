//! Cache mounts that survive the builder: who saves them, who is given them, and when they are not carried.

use std::collections::BTreeMap;

use buildkit_cache::MANIFEST_MEDIA_TYPE;
use bytes::Bytes;
use jiff::SignedDuration;
use scenarios::environment::TestEnvironment;
use serde_json::{Value, json};
use stoker_core::mounts::{self, MountManifest, Samples};
use stoker_core::names::{Commit, Digest, Line, Scope, Tag};
use stoker_core::policy::Policy;
use stoker_core::ports::{Build, BuildStatus, Image};
use stoker_core::provenance::Provenance;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const SAVE: &str = "STOKER_SAVE_MOUNTS";
const RESTORE: &str = "STOKER_RESTORE_MOUNTS";
const EXPORT: &str = "STOKER_MOUNTS_EXPORT";

/// With a repository of its own for what builds write, and without.
fn policies() -> [String; 2] {
    ["  builds-repository: stoker-builds/{project}\n", ""].map(|isolated| {
        format!(
            "version: 1\ndefaults:\n{isolated}  retention: {{ mode: apply, lease: 24h, idle-branch: 30d, \
             history: 3d }}\n\
             projects:\n  - name: app\n    repository: github.com/example/app\n    \
             targets: [{{ mounts: [{{ id: cargo, limit: 1MB }}] }}]\n"
        )
    })
}

fn scope(env: &TestEnvironment) -> Scope {
    let project = env.project();
    project.mounts().next().unwrap().scope.clone()
}

/// An image as BuildKit exports it.
fn image(layers: &[&str], more: &Value) -> (Bytes, Vec<Bytes>) {
    let layers: Vec<Bytes> = layers.iter().map(|layer| Bytes::from((*layer).to_owned())).collect();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let mut config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers",
        "diff_ids": diff_ids } });
    config["config"] = more.clone();
    let config = Bytes::from(config.to_string());
    let blob = |kind: &str, blob: &Bytes| json!({ "mediaType": kind, "digest": Digest::of(blob), "size": blob.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": blob(CONFIG, &config),
        "layers": layers.iter().map(|layer| blob("application/vnd.oci.image.layer.v1.tar+zstd",
        layer)).collect::<Vec<_>>(),
        "annotations": { mounts::ID: "cargo" },
    });
    (Bytes::from(manifest.to_string()), [config].into_iter().chain(layers).collect())
}

fn variable(env: &TestEnvironment, build: &Build, name: &str) -> Option<String> {
    let orders = env.account.orders.borrow();
    let environment: BTreeMap<String, String> = orders[&build.id].environment.iter().cloned().collect();
    environment.get(name).cloned()
}

/// What main's line of the mount is.
fn line(env: &TestEnvironment) -> Option<(Image, MountManifest)> {
    let image = env.account.image(&env.repository(), Tag::line(&scope(env), &Line::Main).as_str())?;
    let manifest = MountManifest::parse(&image.manifest).unwrap();
    for blob in manifest.layers().chain([manifest.config()]) {
        assert!(env.account.has_blob(&env.repository(), blob), "the mount lacks a blob");
    }
    Some((image, manifest))
}

/// Somebody pushes, and the build starts.
async fn start(env: &mut TestEnvironment, branch: &str) -> (Build, Commit) {
    let head = env.commit([1, 1, 1, 1]);
    env.push(branch, &[&head]).await;
    env.settle().await;
    (env.running().pop().expect("its build"), head)
}

/// A build saves these layers where it was told to, if it was, and ends well after so many seconds.
async fn end(env: &mut TestEnvironment, build: &Build, seconds: i64, layers: &[&str]) {
    env.wait(SignedDuration::from_secs(seconds));
    if let Some(tag) = variable(env, build, EXPORT) {
        let (manifest, blobs) = image(layers, &json!({}));
        env.push_cache(&tag, manifest, blobs);
        env.settle().await;
    }
    env.run(build);
    env.settle().await;
    env.wait(SignedDuration::from_mins(10));
}

async fn build_main(env: &mut TestEnvironment, seconds: i64, layers: &[&str]) -> Build {
    let (build, _) = start(env, "main").await;
    end(env, &build, seconds, layers).await;
    build
}

#[tokio::test]
async fn main_saves_a_mount_and_every_build_is_given_it_by_digest() {
    for policy in policies() {
        let mut env = TestEnvironment::with_policy(&policy);
        let first = build_main(&mut env, 60, &["one"]).await;
        assert_eq!(variable(&env, &first, RESTORE), None);
        assert!(variable(&env, &first, SAVE).unwrap().contains("FROM scratch"));
        assert_eq!(env.reported(&first, "STOKER_MOUNTS"), "cargo: nothing is saved yet");
        let (image, manifest) = line(&env).expect("the mount's line");
        let provenance = Provenance::read(&manifest.annotations);
        assert_eq!(provenance.built.unwrap().build, first.id);
        assert_eq!(manifest.annotations[mounts::ID], "cargo");

        let (branch, _) = start(&mut env, "feature-a").await;
        let pinned = format!("registry.example/stoker/app@{}", image.digest);
        assert!(variable(&env, &branch, RESTORE).unwrap().contains(&pinned));
        assert_eq!([SAVE, EXPORT].map(|name| variable(&env, &branch, name)), [None, None]);
        end(&mut env, &branch, 60, &[]).await;
        assert_eq!(line(&env).unwrap().0, image, "a branch's build moves no mount");

        let second = build_main(&mut env, 60, &["one", "two"]).await;
        assert!(variable(&env, &second, SAVE).unwrap().contains(&format!("FROM {pinned}")));
        let (newest, manifest) = line(&env).unwrap();
        assert_eq!((manifest.layers().count(), manifest.bytes()), (2, 6));
        assert_eq!(Provenance::read(&manifest.annotations).parent, Some(image.digest.clone()));
        assert_ne!(newest.digest, image.digest);
        let history = format!("{}.history.main.", scope(&env));
        let tags = env.account.tags(&env.repository());
        let left: Vec<_> = tags.iter().filter(|(tag, _)| tag.starts_with(&history)).collect();
        assert_eq!(left.len(), 1);
        assert_eq!(*left[0].1, image.digest);
    }
}

#[tokio::test]
async fn a_mount_that_a_line_left_is_kept_for_its_readers_and_then_goes() {
    for policy in policies() {
        let mut env = TestEnvironment::with_policy(&policy);
        build_main(&mut env, 60, &["one"]).await;
        let (old, _) = line(&env).unwrap();
        let (reader, _) = start(&mut env, "feature-a").await;
        build_main(&mut env, 60, &["one", "two"]).await;
        build_main(&mut env, 60, &["one", "two", "three"]).await;
        env.wait(SignedDuration::from_hours(30));
        env.night().await;
        env.end_all(BuildStatus::Stopped);
        assert!(
            env.account.tags(&env.repository()).values().any(|digest| *digest == old.digest),
            "a build reads it"
        );
        end(&mut env, &reader, 1, &[]).await;
        env.wait(SignedDuration::from_hours(24 * 8));
        env.night().await;
        env.end_all(BuildStatus::Stopped);
        let tags = env.account.tags(&env.repository());
        assert!(tags.values().all(|digest| *digest != old.digest), "the history is over: {tags:?}");
        assert!(line(&env).is_some(), "main stays");
        let exports = env.account.tags(&env.builds_repository());
        let prefix = format!("{}.export.", scope(&env));
        assert!(
            exports.keys().all(|tag| !tag.starts_with(&prefix)),
            "exports go when they are old: {exports:?}"
        );
    }
}

#[tokio::test]
async fn the_newest_build_wins_and_what_a_rollback_took_does_not_come_back() {
    let mut env = TestEnvironment::with_policy(&policies()[0]);
    let (older, _) = start(&mut env, "main").await;
    env.wait(SignedDuration::from_mins(1));
    let (newer, _) = start(&mut env, "main").await;
    end(&mut env, &newer, 60, &["newer"]).await;
    let (image, manifest) = line(&env).unwrap();
    end(&mut env, &older, 60, &["older"]).await;
    assert_eq!(line(&env).unwrap().0.digest, image.digest, "an older build comes too late");
    env.replay(true).await;
    assert_eq!(line(&env).unwrap().0.digest, image.digest, "what comes again changes nothing");

    let (running, _) = start(&mut env, "main").await;
    env.wait(SignedDuration::from_mins(1));
    let rolled_back =
        Provenance { rolled_back: Some(env.account.now()), ..Provenance::read(&manifest.annotations) };
    let annotations =
        rolled_back.annotations(&Line::Main).into_iter().chain([(mounts::ID.to_owned(), "cargo".to_owned())]);
    let written = Bytes::from(manifest.annotated(&annotations.collect()));
    let tag = Tag::line(&scope(&env), &Line::Main);
    assert!(env.account.push(&env.repository(), tag.as_str(), MANIFEST_MEDIA_TYPE, written, Vec::new()));
    end(&mut env, &running, 60, &["bad again"]).await;
    assert_eq!(line(&env).unwrap().1.bytes(), 5, "a build that started before the rollback brings nothing");
    build_main(&mut env, 60, &["good"]).await;
    assert_eq!(line(&env).unwrap().1.bytes(), 4);
}

#[tokio::test]
async fn after_a_build_that_failed_with_a_mount_the_next_goes_without() {
    let mut env = TestEnvironment::with_policy(&policies()[0]);
    build_main(&mut env, 60, &["one"]).await;
    let (failing, head) = start(&mut env, "main").await;
    assert!(variable(&env, &failing, RESTORE).is_some());
    env.end(&failing.id, BuildStatus::Failed, &head);
    env.settle().await;
    let (next, _) = start(&mut env, "main").await;
    assert_eq!(variable(&env, &next, RESTORE), None);
    assert!(variable(&env, &next, SAVE).unwrap().contains("FROM scratch"), "and saves all anew");
    end(&mut env, &next, 60, &["new"]).await;
    let (after, _) = start(&mut env, "main").await;
    assert!(variable(&env, &after, RESTORE).is_some());
}

#[tokio::test]
async fn what_builds_upon_a_lost_image_is_saved_whole_the_next_time() {
    let mut env = TestEnvironment::with_policy(&policies()[0]);
    build_main(&mut env, 60, &["one"]).await;
    let (lost, _) = start(&mut env, "main").await;
    assert!(!variable(&env, &lost, SAVE).unwrap().contains("FROM scratch"));
    // It could not be saved, as the image it was to build upon lacks a layer.
    env.run(&lost);
    env.settle().await;
    let (next, _) = start(&mut env, "main").await;
    assert!(variable(&env, &next, SAVE).unwrap().contains("FROM scratch"));
}

#[tokio::test]
async fn a_mount_that_costs_more_than_it_spares_is_not_carried_and_the_build_says_so() {
    for (with, without, is_carried) in [(100, 60, false), (60, 100, true)] {
        let mut env = TestEnvironment::with_policy(&policies()[0]);
        let mut went_without = 0;
        for _ in 0..14 {
            let (build, _) = start(&mut env, "main").await;
            let has_mount = variable(&env, &build, RESTORE).is_some();
            went_without += usize::from(!has_mount);
            let seconds = if has_mount { with } else { without };
            end(&mut env, &build, seconds, &["one"]).await;
        }
        let (_, manifest) = line(&env).unwrap();
        let samples = Samples::read(&manifest.annotations);
        assert!(samples.with.iter().all(|seconds| *seconds == with.unsigned_abs()), "{samples:?}");
        let (build, _) = start(&mut env, "feature-a").await;
        assert_eq!(variable(&env, &build, RESTORE).is_some(), is_carried, "{samples:?}");
        let said = env.reported(&build, "STOKER_MOUNTS");
        assert_eq!(
            said.contains("took 100 s with it") && said.contains("took 60 s without"),
            !is_carried,
            "{said}"
        );
        assert!(!is_carried || went_without <= 4, "{went_without} of 14 went without");
        env.end_all(BuildStatus::Stopped);
        env.wait(SignedDuration::from_hours(24 * 15));
        let (again, _) = start(&mut env, "main").await;
        assert!(variable(&env, &again, RESTORE).is_some(), "after two weeks it is tried again");
    }
}

#[tokio::test]
async fn attack_a_branchs_build_that_saves_a_mount() {
    for policy in policies() {
        let mut env = TestEnvironment::with_policy(&policy);
        build_main(&mut env, 60, &["one"]).await;
        let (before, _) = line(&env).unwrap();
        let (branch, head) = start(&mut env, "evil").await;
        let (manifest, blobs) = image(&["evil"], &json!({}));
        let tag = Tag::export(&scope(&env), "evil");
        env.push_cache(tag.as_str(), manifest, blobs);
        env.settle().await;
        // It says of itself whatever it likes, as a build that somebody else starts can.
        for (line, claims) in [
            (Line::Main, true),
            (branch.inputs.as_ref().unwrap().line.clone(), true),
            (branch.inputs.as_ref().unwrap().line.clone(), false),
        ] {
            {
                let mut builds = env.account.builds.borrow_mut();
                let build = builds.iter_mut().find(|build| build.id == branch.id).unwrap();
                build.claims = claims;
                build.source_version = Some("refs/heads/evil".to_owned());
                let inputs = build.inputs.as_mut().unwrap();
                inputs.line = line;
                inputs.saves = vec![tag.to_string()];
            }
            env.end(&branch.id, BuildStatus::Succeeded, &head);
            env.settle().await;
            assert_eq!(line_digest(&env), before.digest);
        }
        env.pull_request("merged", "evil", &head, Some(&head)).await;
        env.settle().await;
        env.night().await;
        assert_eq!(line_digest(&env), before.digest, "a merge brings no mount");
    }
}

fn line_digest(env: &TestEnvironment) -> Digest {
    line(env).unwrap().0.digest
}

#[tokio::test]
async fn attack_a_forks_build_that_saves_a_mount() {
    let forks = "    builds: { forks: { build: read-only, project: app-forks } }\n";
    let mut env = TestEnvironment::with_policy(&format!("{}{forks}", policies()[0]));
    build_main(&mut env, 60, &["one"]).await;
    let (before, _) = line(&env).unwrap();
    env.account.projects.borrow_mut().push(stoker_core::names::ProjectName::new("app-forks").unwrap());
    let head = env.commit([1, 1, 2, 1]);
    env.pull_request_to("main", "evil/app", "opened", "main", &head, None).await;
    env.settle().await;
    let fork = env.running().pop().expect("the fork's build");
    assert!(variable(&env, &fork, RESTORE).unwrap().contains(&before.digest.to_string()), "it reads");
    assert_eq!([SAVE, EXPORT].map(|name| variable(&env, &fork, name)), [None, None], "and writes nothing");
    env.run(&fork);
    env.settle().await;
    assert_eq!(line_digest(&env), before.digest);
}

#[tokio::test]
async fn attack_a_saved_mount_that_is_none() {
    let mut env = TestEnvironment::with_policy(&policies()[0]);
    build_main(&mut env, 60, &["one"]).await;
    let (before, _) = line(&env).unwrap();
    let (good, blobs) = image(&["evil"], &json!({}));
    let with = |path: &str, value: Value| {
        let mut manifest: Value = serde_json::from_slice(&good).unwrap();
        *manifest.pointer_mut(path).unwrap() = value;
        Bytes::from(manifest.to_string())
    };
    let many: Vec<Value> =
        (0..9).map(|_| serde_json::from_slice::<Value>(&good).unwrap()["layers"][0].clone()).collect();
    let bad = [
        Bytes::from_static(b"[]"),
        with("/config/mediaType", json!(buildkit_cache::CONFIG_MEDIA_TYPE)),
        with("/config/size", json!(1 << 30)),
        with("/config/digest", json!(Digest::of(b"nowhere"))),
        with("/layers", json!([])),
        with("/layers", json!(many)),
        with("/layers/0/mediaType", json!("application/x-sh")),
        with("/layers/0/size", json!(u64::MAX)),
        with("/layers/0/size", json!(1_000_001)),
        with("/layers/0/digest", json!(Digest::of(b"nowhere"))),
    ];
    for manifest in bad {
        let (build, head) = start(&mut env, "main").await;
        let text = String::from_utf8_lossy(&manifest).into_owned();
        env.push_cache(&env.reported(&build, EXPORT), manifest, blobs.clone());
        env.end(&build.id, BuildStatus::Succeeded, &head);
        env.settle().await;
        let (now, _) = line(&env).unwrap();
        let layers = |image: &Image| {
            MountManifest::parse(&image.manifest).unwrap().layers().cloned().collect::<Vec<_>>()
        };
        assert_eq!(layers(&now), layers(&before), "{text}");
        assert!(env.dead.is_empty(), "{text}: {:?}", env.dead);
    }
}

#[tokio::test]
async fn attack_what_a_saved_mounts_image_says_of_itself() {
    let mut env = TestEnvironment::with_policy(&policies()[0]);
    let (build, head) = start(&mut env, "main").await;
    let runs = json!({ "OnBuild": ["RUN evil"], "Env": ["PATH=/evil"], "Entrypoint": ["/evil"] });
    let (manifest, blobs) = image(&["one"], &runs);
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let lies = [
        ("stoker.build", "app:evil"),
        ("stoker.built-at", "2036-11-21T08:00:00Z"),
        ("stoker.rolled-back-at", "2036-11-21T08:00:00Z"),
        ("stoker.mount-seconds-with", "1 1 1 1 1 1 1 1"),
        ("stoker.mount-seconds-without", "9 9 9"),
        ("evil", "evil"),
    ];
    for (name, value) in lies {
        manifest["annotations"][name] = json!(value);
    }
    env.push_cache(&env.reported(&build, EXPORT), Bytes::from(manifest.to_string()), blobs);
    env.end(&build.id, BuildStatus::Succeeded, &head);
    env.settle().await;
    let (_, manifest) = line(&env).unwrap();
    let config = env.account.raw_blob(manifest.config()).unwrap();
    assert!(!String::from_utf8_lossy(&config).contains("evil"), "what the image would run is not written");
    assert!(manifest.annotations.values().all(|value| !value.contains("evil")), "{:?}", manifest.annotations);
    let provenance = Provenance::read(&manifest.annotations);
    assert_eq!((provenance.built.unwrap().build, provenance.rolled_back), (build.id, None));
    let samples = Samples::read(&manifest.annotations);
    assert!(samples.with.is_empty() && samples.without.is_empty(), "{samples:?}");
}

#[test]
fn attack_a_mounts_id_that_is_shell_or_another_flag() {
    for id in [
        "x,target=/",
        "x --network=host",
        "$(evil)",
        "`evil`",
        "x\\\\nRUN evil",
        "x;evil",
        "${evil}",
        "%{evil}",
        "x'",
    ] {
        for policy in policies() {
            let quoted = format!("\"{id}\"");
            let policy = policy.replace("id: cargo", &format!("id: {quoted}"));
            assert!(Policy::parse("p", &policy).is_err(), "{id}");
        }
    }
}

#[test]
fn the_policy_that_the_page_shows_is_one() {
    let page = include_str!("../../docs/mounts.md");
    let (_, rest) = page.split_once("```yaml\n").unwrap();
    let policy = Policy::parse("p", &format!("version: 1\n{}", rest.split_once("```").unwrap().0)).unwrap();
    assert_eq!(policy.named_projects()[0].mounts().count(), 1);
}
