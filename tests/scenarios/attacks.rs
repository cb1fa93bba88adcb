//! What an attacker tries, and what comes of it. docs/threat-model.md has a row for each.

use std::collections::{BTreeMap, BTreeSet};

use buildkit_cache::{CONFIG_MEDIA_TYPE, Cache, Kind, MANIFEST_MEDIA_TYPE, classify};
use bytes::Bytes;
use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, Source, TestEnvironment, exported, exported_with};
use scenarios::rules::matches;
use scenarios::template::{RULE_OF_FUNCTION, events};
use serde_json::{Value, json};
use stoker_core::build_inputs::GivenInputs;
use stoker_core::event::{Envelope, Event, TagPushed};
use stoker_core::names::{Branch, Commit, Digest, Line, ProjectName, Repository, Scope, Tag, TagKind};
use stoker_core::policy::Policy;
use stoker_core::ports::{Build, BuildStatus};
use stoker_core::promote::{NothingToPromote, Outcome, PromotionTrigger, Shares, promote_in_turn};

const BASE: [u32; 4] = [1, 1, 1, 1];

/// Main is warm.
async fn warm_main(policy: &str) -> TestEnvironment {
    let mut env = TestEnvironment::with_policy(policy);
    let base = env.commit(BASE);
    env.push("main", &[&base]).await;
    env.build().await;
    env.wait(SignedDuration::from_mins(10));
    env
}

/// All that could be part of main's cache: its digest, and every blob in it.
fn main_of(env: &TestEnvironment) -> (Digest, BTreeSet<Digest>) {
    let (digest, cache) = env.line("main").unwrap();
    (digest, cache.blobs().map(|blob| blob.digest.clone()).collect())
}

/// A branch's build that exports whatever it likes, and then ends well.
async fn malicious_branch(env: &mut TestEnvironment, manifest: Bytes, blobs: Vec<Bytes>) -> Commit {
    let head = env.commit([1, 1, 2, 1]);
    env.push("evil", &[&head]).await;
    env.settle().await;
    let build = env.running().pop().expect("the branch's build");
    env.push_cache(&env.reported(&build, "STOKER_EXPORT"), manifest, blobs);
    env.end(&build.id, BuildStatus::Succeeded, &head);
    env.settle().await;
    head
}

/// A branch is merged into main, whose build starts: after what the merge brings has been promoted, or without it.
async fn merge(
    env: &mut TestEnvironment,
    branch: &str,
    head: &Commit,
    versions: [u32; 4],
    promotes_first: bool,
) {
    let merge = env.commit(versions);
    env.loses_promotions = !promotes_first;
    env.pull_request("merged", branch, head, Some(&merge)).await;
    env.push("main", &[head, &merge]).await;
    env.settle().await;
}

fn text(bytes: &Bytes) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[tokio::test]
async fn attack_a_forks_branch_called_main() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let before = main_of(&env);
        let builds = env.account.builds.borrow().len();
        let evil = env.commit([9, 9, 9, 9]);
        for action in ["opened", "synchronize", "closed", "reopened", "closed"] {
            env.pull_request_to("main", "evil/app", action, "main", &evil, None).await;
            env.settle().await;
        }
        assert_eq!(env.account.builds.borrow().len(), builds, "a fork's code is not built");
        // Merged into another branch, and then the fork is deleted, which is not told to anybody here.
        env.pull_request_to("other", "evil/app", "merged", "main", &evil, Some(&evil)).await;
        env.build().await;
        env.wait(SignedDuration::from_hours(48));
        env.night().await;
        env.build().await;
        let (digest, blobs) = main_of(&env);
        assert_eq!(digest, before.0, "closed, merged elsewhere: main's line is another's");
        assert_eq!(blobs, before.1);
    }
}

#[test]
fn attack_branch_names_crafted_to_collide() {
    let project = ProjectName::new("app").unwrap();
    let scope = Scope::of(&project);
    let mut names: Vec<String> = [
        "main",
        "Main",
        "MAIN",
        "ｍａｉｎ",
        "mаin",
        "main.",
        ".main",
        "pr.1",
        "pr/1",
        "branch.x",
        "branch/x",
        "x",
        "history.main.20261121T080000Z-00000000",
        "commit.0000000000000000000000000000000000000001",
        "export.x",
        "feature-a",
        "feature_a",
        "feature.a",
        "feature/a",
        "Feature-a",
        "feature--a",
        "feature-a-",
        "é",
        "e\u{301}",
        "app.main",
        "a__b",
        "a_b",
        "a__aaaaaaaaaaaaaaaa",
        "#",
        "@",
        "-",
        "\u{202e}niam",
        "ma\u{200b}in",
    ]
    .map(str::to_owned)
    .to_vec();
    for length in [43, 44, 45, 200, 1000] {
        names.push("x".repeat(length));
        names.push(format!("{}y", "x".repeat(length - 1)));
    }
    // A name that is what another name's hashed slug is.
    let tags: Vec<String> = names.iter().filter_map(|name| branch_tag(&scope, name)).collect();
    names.extend(tags.iter().map(|tag| tag.rsplit_once('.').unwrap().1.to_owned()));
    names.sort();
    names.dedup();
    let mut seen = BTreeSet::new();
    for name in &names {
        let Some(tag) = branch_tag(&scope, name) else { continue };
        assert!(
            tag.len() <= 128 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
            "{tag}"
        );
        let (of, kind) = Tag::parse(&tag).expect("a tag of Stoker's");
        assert_eq!(of, scope, "{name}");
        assert!(
            matches!(kind, TagKind::Line(ref line) if !line.is_main() && line.to_string().starts_with("branch.")),
            "{name}: {tag}"
        );
        assert!(
            seen.insert(tag.to_lowercase())
                || names.iter().filter(|n| n.to_lowercase() == name.to_lowercase()).count() > 1,
            "{name} collides at {tag}"
        );
    }
    assert!(seen.len() > 40);
}

fn branch_tag(scope: &Scope, name: &str) -> Option<String> {
    let branch = Branch::new(name).ok()?;
    Some(Tag::line(scope, &Line::Branch(branch)).to_string())
}

#[tokio::test]
async fn attack_a_build_that_pushes_over_anothers_export() {
    let mut env = warm_main(ISOLATED).await;
    let victim = env.commit([2, 2, 1, 1]);
    env.push("feature-a", &[&victim]).await;
    env.settle().await;
    let build = env.running().pop().unwrap();
    let tag = env.reported(&build, "STOKER_EXPORT");
    // Whoever knows the commit does not know the tag: in another test environment the same build has another.
    let mut other = warm_main(ISOLATED).await;
    let same = other.commit([2, 2, 1, 1]);
    assert_eq!(same, victim);
    other.push("feature-a", &[&same]).await;
    other.settle().await;
    assert_ne!(other.reported(&other.running()[0], "STOKER_EXPORT"), tag);
    assert!(tag.len() >= "app.export.".len() + 8 + 1 + 32, "128 bits: {tag}");
    // And who learns it later cannot move it.
    env.run(&build);
    let (manifest, blobs) =
        exported_with(&Source { versions: [2, 2, 1, 1] }, |_| env.account.now(), |key| format!("evil {key}"));
    let evil: BTreeSet<Digest> = blobs.iter().map(|blob| Digest::of(blob)).collect();
    env.push_cache(&tag, manifest, blobs);
    env.settle().await;
    env.push("main", &[&victim]).await;
    env.build().await;
    assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5);
    assert!(main_of(&env).1.is_disjoint(&evil));
}

#[tokio::test]
async fn attack_a_build_that_pushes_over_lines_commits_and_history() {
    let mut env = warm_main(ISOLATED).await;
    let victim = env.commit([2, 2, 1, 1]);
    env.push("feature-a", &[&victim]).await;
    env.build().await;
    let (manifest, blobs) =
        exported_with(&Source { versions: [2, 2, 1, 1] }, |_| env.account.now(), |key| format!("evil {key}"));
    let evil: BTreeSet<Digest> = blobs.iter().map(|blob| Digest::of(blob)).collect();
    for tag in [
        "app.main".to_owned(),
        "app.branch.feature-a".to_owned(),
        format!("app.commit.{victim}"),
        "app.history.main.20261121T080000Z-00000000".to_owned(),
        "app.export.guessed".to_owned(),
    ] {
        env.push_cache(&tag, manifest.clone(), blobs.clone());
    }
    env.settle().await;
    env.push("main", &[&victim]).await;
    let ran = env.build().await;
    env.wait(SignedDuration::from_hours(1));
    env.night().await;
    env.build().await;
    assert!(ran[0].ran.is_empty(), "{ran:?}");
    for line in ["main", "branch/feature-a"] {
        let (_, cache) = env.line(line).unwrap();
        assert!(cache.blobs().all(|blob| !evil.contains(&blob.digest)), "{line}");
    }
}

#[tokio::test]
async fn attack_records_that_point_a_trusted_step_at_a_foreign_layer() {
    for policy in [POLICY, ISOLATED] {
        for promotion in ["merged", "rebuild", "off"] {
            let policy = policy.replace("defaults:", &format!("defaults:\n  promotion: {promotion}"));
            let mut env = warm_main(&policy).await;
            let trusted = main_of(&env).1;
            // The branch changes a step of its own, and forges the results of all that main has.
            let (manifest, blobs) = exported_with(
                &Source { versions: [1, 1, 2, 1] },
                |_| env.account.now(),
                |key| format!("evil {key}"),
            );
            let evil = |key: &str| Digest::of(format!("evil {key}").as_bytes());
            let head = malicious_branch(&mut env, manifest, blobs).await;
            let merge = env.commit([1, 1, 2, 1]);
            env.pull_request("merged", "evil", &head, Some(&merge)).await;
            env.push("main", &[&head, &merge]).await;
            env.settle_promotions().await;
            let after = main_of(&env).1;
            assert!(after.is_superset(&trusted), "{promotion}");
            for step in ["deps-a@1", "compile-a@1(deps-a@1)"] {
                assert!(!after.contains(&evil(step)), "{promotion}: {step} is main's own, and stays so");
            }
            // What only the merged branch has is its own business where merges are promoted, and nowhere else.
            assert_eq!(after.contains(&evil("deps-b@2")), promotion == "merged", "{promotion}");
            if promotion != "merged" {
                assert_eq!(after, trusted, "{promotion}: not a byte");
                let ran = env.build().await;
                assert!(ran.iter().all(|ran| ran.reads == ["main"]), "{promotion}: {ran:?}");
                assert!(main_of(&env).1.iter().all(|blob| !blob_is_evil(&env, blob)), "{promotion}");
            }
        }
    }
}

/// Main's build may be ahead of the promotion of what was merged: what it is given is joined by the promotion's rule.
#[tokio::test]
async fn attack_a_trusted_step_of_the_build_that_comes_before_the_promotion() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let (manifest, blobs) = exported_with(
            &Source { versions: [1, 1, 2, 1] },
            |_| env.account.now(),
            |key| format!("evil {key}"),
        );
        let head = malicious_branch(&mut env, manifest, blobs).await;
        env.loses_promotions = true;
        let merge = env.commit([1, 1, 2, 1]);
        env.push("main", &[&head, &merge]).await;
        env.settle().await;
        let given = given_layers(&env);
        assert!(main_of(&env).1.iter().all(|layer| names(&given, layer)));
        let evil = |key: &str| Digest::of(format!("evil {key}").as_bytes());
        assert!(names(&given, &evil("deps-b@2")), "what only the branch has comes along");
        for step in ["deps-a@1", "compile-a@1(deps-a@1)"] {
            assert!(!names(&given, &evil(step)), "{step} is main's own");
        }
    }
}

/// An honest export of a branch, and beside it what it says that steps result in which nobody has built yet.
fn with_forged_future(env: &TestEnvironment, honest: [u32; 4], future: [u32; 4]) -> (Bytes, Vec<Bytes>) {
    let now = env.account.now();
    let exports = [
        exported(&Source { versions: honest }, |_| now),
        exported_with(&Source { versions: future }, |_| now, |key| format!("evil {key}")),
    ];
    let caches = exports.each_ref().map(|(manifest, blobs)| {
        let Kind::Cache(manifest) = classify(manifest) else { panic!("no cache") };
        Cache::parse(&manifest, &blobs[0]).unwrap()
    });
    let both = Cache::merge(&caches).serialise(BTreeMap::new());
    let layers = exports.into_iter().flat_map(|(_, blobs)| blobs.into_iter().skip(1));
    (Bytes::from(both.manifest), [Bytes::from(both.config)].into_iter().chain(layers).collect())
}

fn evil_blobs(env: &TestEnvironment, layers: &[Value]) -> usize {
    let digests = layers.iter().map(|layer| Digest::new(layer["digest"].as_str().unwrap()).unwrap());
    digests.filter(|digest| blob_is_evil(env, digest)).count()
}

/// A branch forges the result of a step that main will only have next month. It comes along with the merge, and leaves
/// as soon as main's build of the merge is promoted; nothing that comes late or again brings it back.
#[tokio::test]
async fn attack_a_forged_result_for_next_month_does_not_outlive_the_merges_own_build() {
    for policy in [POLICY, ISOLATED] {
        for promotes_first in [true, false] {
            let mut env = warm_main(policy).await;
            let (manifest, blobs) = with_forged_future(&env, [1, 1, 2, 1], [1, 1, 9, 9]);
            let head = malicious_branch(&mut env, manifest, blobs).await;
            env.wait(SignedDuration::from_mins(10));
            merge(&mut env, "evil", &head, [1, 1, 2, 1], promotes_first).await;
            assert_eq!(evil_blobs(&env, &given_layers(&env)), 3, "so far it is there");
            env.build().await;
            assert_eq!(evil_blobs(&env, &line_layers(&env)), 0, "{promotes_first}");
            assert_eq!(env.holds("main", [1, 1, 2, 1]).len(), 5);
            env.loses_promotions = false;
            env.wait(SignedDuration::from_hours(1));
            env.replay(true).await;
            env.night().await;
            env.build().await;
            assert_eq!(evil_blobs(&env, &line_layers(&env)), 0, "{promotes_first}: late triggers");
            env.wait(SignedDuration::from_hours(30 * 24));
            let next = env.commit([1, 1, 9, 9]);
            env.push("main", &[&next]).await;
            env.settle().await;
            assert_eq!(evil_blobs(&env, &given_layers(&env)), 0);
            let ran = env.build().await;
            assert_eq!(ran[0].ran, ["deps-b", "compile-b", "link"], "main's own build makes them");
        }
    }
}

/// A branch is merged while main makes a step whose result it forges: main's own counts as soon as it is there, and the
/// rest of the merge waits for its own build.
#[tokio::test]
async fn attack_a_forged_result_of_a_step_that_main_is_building() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let (manifest, blobs) = with_forged_future(&env, [1, 1, 2, 1], [1, 1, 9, 9]);
        let head = malicious_branch(&mut env, manifest, blobs).await;
        let next = env.commit([1, 1, 9, 9]);
        env.push("main", &[&next]).await;
        env.settle().await;
        let build = env.running().pop().expect("main's build");
        env.wait(SignedDuration::from_mins(1));
        merge(&mut env, "evil", &head, [1, 1, 2, 1], true).await;
        assert_eq!(evil_blobs(&env, &line_layers(&env)), 3, "so far main has no answer of its own");
        env.run(&build);
        env.settle().await;
        assert_eq!(evil_blobs(&env, &line_layers(&env)), 0);
        let marks = env.line("main").unwrap().1.probations();
        assert!(marks.keys().all(|mark| *mark.commit() == head) && marks.len() == 1, "{marks:?}");
        assert_eq!(env.holds("main", [1, 1, 2, 1]).len(), 5, "what the branch has made stays as well");
    }
}

/// An export that says of itself that it is on probation, for a merge that has not been or for ever, says nothing.
#[tokio::test]
async fn attack_an_export_with_marks_of_its_own() {
    for policy in [POLICY, ISOLATED] {
        for promotes_first in [true, false] {
            let mut env = warm_main(policy).await;
            let (manifest, blobs) = forged(&env, |config, _| {
                config["probation"] = json!([{"commit": "f".repeat(40), "at": 4_000_000_000_u64}]);
                for record in config["records"].as_array_mut().unwrap() {
                    record["probation"] = json!(0);
                }
            });
            let head = malicious_branch(&mut env, manifest, blobs).await;
            assert!(env.line("branch/evil").unwrap().1.probations().is_empty());
            env.wait(SignedDuration::from_mins(10));
            merge(&mut env, "evil", &head, [1, 1, 2, 1], promotes_first).await;
            let marks = env.line("main").unwrap().1.probations();
            let expected = if promotes_first { vec![head] } else { Vec::new() };
            assert_eq!(marks.into_keys().map(|mark| mark.commit().clone()).collect::<Vec<_>>(), expected);
            env.build().await;
            assert!(env.line("main").unwrap().1.probations().is_empty());
            assert_eq!(env.holds("main", [1, 1, 2, 1]).len(), 5);
        }
    }
}

/// An honest export of a branch, and in it what somebody made of its config and of the descriptors of its layers.
fn forged(env: &TestEnvironment, forge: impl FnOnce(&mut Value, &mut Vec<Value>)) -> (Bytes, Vec<Bytes>) {
    let (manifest, mut blobs) = exported(&Source { versions: [1, 1, 2, 1] }, |_| env.account.now());
    let (mut manifest, mut config) = (text(&manifest), text(&blobs[0]));
    let mut layers = manifest["layers"].as_array().unwrap().clone();
    forge(&mut config, &mut layers);
    let config = Bytes::from(config.to_string());
    manifest["layers"] = Value::from(layers);
    manifest["config"]["digest"] = json!(Digest::of(&config));
    manifest["config"]["size"] = json!(config.len());
    blobs[0] = config;
    (Bytes::from(manifest.to_string()), blobs)
}

/// The layers of what the only running build is given.
fn given_layers(env: &TestEnvironment) -> Vec<Value> {
    let build = env.running().pop().expect("main's build");
    let given = build.inputs.expect("a build of Stoker's").given;
    let [given] = &given.into_iter().collect::<Vec<_>>()[..] else { panic!("one cache") };
    let image = env.account.image(&env.repository(), &given.to_string()).expect("the cache");
    text(&image.manifest)["layers"].as_array().unwrap().clone()
}

fn line_layers(env: &TestEnvironment) -> Vec<Value> {
    let image = env.account.image(&env.repository(), "app.main").unwrap();
    text(&image.manifest)["layers"].as_array().unwrap().clone()
}

fn names(layers: &[Value], digest: &Digest) -> bool {
    layers.iter().any(|layer| layer["digest"] == json!(digest))
}

/// BuildKit takes the newest result of all records that share a key of each input with what it looks for: so
/// one that repeats a step of main's, and names a key more, must neither come to main nor into what main's
/// build is given.
#[tokio::test]
async fn attack_a_step_of_mains_with_one_key_more() {
    for policy in [POLICY, ISOLATED] {
        for promotes_first in [true, false] {
            let mut env = warm_main(policy).await;
            let layer = Bytes::from_static(b"evil");
            let evil = Digest::of(&layer);
            let (manifest, mut blobs) = forged(&env, |config, layers| {
                let created = json!("2026-11-28T00:00:00Z");
                layers.push(json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": evil, "size": layer.len(),
                }));
                let places = config["layers"].as_array_mut().unwrap();
                places.push(json!({"blob": evil, "parent": -1}));
                let place = places.len() - 1;
                let records = config["records"].as_array_mut().unwrap();
                records.push(json!({"digest": digest(1)}));
                // The third step compiles what the first one has.
                let step = records[2]["digest"].clone();
                let inputs = json!([[{"link": 0}, {"link": records.len() - 1}]]);
                records.push(json!({
                    "digest": step, "inputs": inputs, "layers": [{"layer": place, "createdAt": created}],
                }));
            });
            blobs.push(layer);
            let head = malicious_branch(&mut env, manifest, blobs).await;
            merge(&mut env, "evil", &head, [1, 1, 2, 1], promotes_first).await;
            let given = given_layers(&env);
            assert!(given.len() > 5, "what is new comes along");
            assert!(!names(&given, &evil), "{promotes_first}");
            assert!(!names(&line_layers(&env), &evil), "{promotes_first}");
        }
    }
}

/// Somebody builds the head of another's pull request on a branch of their own, before or after its own build.
#[tokio::test]
async fn attack_the_same_commit_on_two_branches() {
    for policy in [POLICY, ISOLATED] {
        for (evil_comes_first, promotes_first) in [(true, true), (true, false), (false, true), (false, false)]
        {
            let mut env = warm_main(policy).await;
            let head = env.commit([2, 2, 1, 1]);
            if !evil_comes_first {
                env.push("feature-a", &[&head]).await;
                env.build().await;
            }
            env.push("evil", &[&head]).await;
            env.settle().await;
            let build = env.running().pop().expect("its build");
            let (manifest, blobs) = exported_with(
                &Source { versions: [2, 2, 1, 1] },
                |_| env.account.now(),
                |key| format!("evil {key}"),
            );
            env.push_cache(&env.reported(&build, "STOKER_EXPORT"), manifest, blobs);
            env.end(&build.id, BuildStatus::Succeeded, &head);
            env.settle().await;
            if evil_comes_first {
                env.push("feature-a", &[&head]).await;
                env.build().await;
            }
            merge(&mut env, "feature-a", &head, [2, 2, 1, 1], promotes_first).await;
            let case = format!("{evil_comes_first} {promotes_first}");
            let is_evil = |layers: &[Value]| evil_blobs(&env, layers);
            assert_eq!((is_evil(&given_layers(&env)), is_evil(&line_layers(&env))), (0, 0), "{case}");
            if promotes_first {
                assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5, "{case}: what the merged branch built");
            }
        }
    }
}

/// Who may push a branch builds a commit of somebody else's there, with forged results, and waits until that is merged.
async fn forged_on_a_branch_of_ones_own(env: &mut TestEnvironment, commit: &Commit, versions: [u32; 4]) {
    let (manifest, blobs) =
        exported_with(&Source { versions }, |_| env.account.now(), |key| format!("evil {key}"));
    env.push("evil", &[commit]).await;
    env.settle().await;
    let build = env.running().pop().expect("its build");
    env.push_cache(&env.reported(&build, "STOKER_EXPORT"), manifest, blobs);
    env.end(&build.id, BuildStatus::Succeeded, commit);
    env.settle().await;
}

/// A fork's head, or a commit before it, is built on a branch of the repository; then the fork's pull request
/// is merged, which main gets as a push. The fork's events may come before that build or after it.
#[tokio::test]
async fn attack_a_forks_commit_on_a_branch() {
    for policy in [POLICY, ISOLATED] {
        for (is_told_first, promotes_first, is_head) in
            (0..8).map(|case| (case & 1 == 0, case & 2 == 0, case & 4 == 0))
        {
            let case = format!("{is_told_first} {promotes_first} {is_head}");
            let mut env = warm_main(policy).await;
            let first = env.commit([2, 2, 1, 1]);
            let head = env.commit([2, 2, 1, 1]);
            let built = if is_head { &head } else { &first };
            if !is_told_first {
                forged_on_a_branch_of_ones_own(&mut env, built, [2, 2, 1, 1]).await;
            }
            env.pull_request_to("main", "somebody/app", "opened", "fix", &head, None).await;
            env.settle().await;
            if is_told_first {
                forged_on_a_branch_of_ones_own(&mut env, built, [2, 2, 1, 1]).await;
            }
            env.wait(SignedDuration::from_mins(10));
            let merge = env.commit([2, 2, 1, 1]);
            env.loses_promotions = !promotes_first;
            env.push("main", &[&first, &head, &merge]).await;
            env.pull_request_to("main", "somebody/app", "merged", "fix", &head, Some(&merge)).await;
            env.settle().await;
            assert_eq!(evil_blobs(&env, &given_layers(&env)), 0, "{case}");
            assert_eq!(evil_blobs(&env, &line_layers(&env)), 0, "{case}");
            env.build().await;
            assert_eq!(env.holds("main", [2, 2, 1, 1]).len(), 5, "{case}");
            assert_eq!(evil_blobs(&env, &line_layers(&env)), 0, "{case}");
        }
    }
}

/// The same with a commit before the head of a branch that has been reviewed, which that branch's builds have gone by.
#[tokio::test]
async fn attack_an_earlier_commit_of_a_branch_that_is_merged() {
    for policy in [POLICY, ISOLATED] {
        for promotes_first in [true, false] {
            let mut env = warm_main(policy).await;
            let first = env.commit([2, 2, 1, 1]);
            let head = env.commit([2, 3, 1, 1]);
            env.push("feature-a", &[&first, &head]).await;
            env.build().await;
            // What the merge makes anew has no result yet that could keep a forged one out.
            forged_on_a_branch_of_ones_own(&mut env, &first, [2, 3, 4, 4]).await;
            env.wait(SignedDuration::from_mins(10));
            let merge = env.commit([2, 3, 4, 4]);
            env.loses_promotions = !promotes_first;
            env.push("main", &[&first, &head, &merge]).await;
            env.pull_request("merged", "feature-a", &head, Some(&merge)).await;
            env.settle().await;
            assert_eq!(evil_blobs(&env, &given_layers(&env)), 0, "{promotes_first}");
            let ran = env.build().await;
            assert_eq!(ran[0].ran, ["deps-b", "compile-b", "link"], "{promotes_first}");
            assert_eq!(evil_blobs(&env, &line_layers(&env)), 0, "{promotes_first}");
        }
    }
}

/// A repository is renamed or deleted, and somebody makes another under its name.
#[tokio::test]
async fn attack_a_repository_under_a_name_that_was_given_up() {
    let named = "repository: github.com/example/app";
    let policy = ISOLATED.replace(named, &format!("{named}\n    repository-id: '1296269'"));
    for branch in ["main", "feature-a"] {
        let mut env = warm_main(&policy).await;
        let (before, builds) = (env.lines(), env.account.builds.borrow().len());
        env.repository_id += 1;
        let evil = env.commit([9, 9, 9, 9]);
        assert_eq!(env.post_push(branch, &evil).await, 403, "{branch}");
        env.build().await;
        assert_eq!((env.lines(), env.account.builds.borrow().len()), (before, builds), "{branch}");
        assert!(matches!(&env.notices[..], [Event::WebhookRefused(_)]), "{:?}", env.notices);
        env.repository_id -= 1;
        assert_eq!(env.post_push(branch, &evil).await, 202, "{branch}");
    }
}

/// A size that is wrong fails every build that pulls the layer.
#[tokio::test]
async fn attack_the_size_of_a_layer_of_mains() {
    for policy in [POLICY, ISOLATED] {
        for promotes_first in [true, false] {
            let mut env = warm_main(policy).await;
            let before = line_layers(&env);
            // The branch's own step results in a layer of main's; of two sizes it was the lower that counted.
            let (manifest, blobs) = forged(&env, |config, layers| {
                config["records"][1]["layers"][0]["layer"] = json!(0);
                for layer in layers {
                    layer["size"] = json!(0);
                }
            });
            let head = malicious_branch(&mut env, manifest, blobs).await;
            merge(&mut env, "evil", &head, [1, 1, 2, 1], promotes_first).await;
            let (given, line) = (given_layers(&env), line_layers(&env));
            assert!(
                before.iter().all(|layer| given.contains(layer) && line.contains(layer)),
                "{promotes_first}"
            );
        }
    }
}

fn blob_is_evil(env: &TestEnvironment, digest: &Digest) -> bool {
    env.account.raw_blob(digest).is_some_and(|blob| blob.starts_with(b"evil"))
}

#[tokio::test]
async fn attack_an_unmerged_branch_leaves_no_byte_in_main() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let before = main_of(&env);
        let (manifest, blobs) = exported_with(
            &Source { versions: [1, 1, 2, 1] },
            |_| env.account.now(),
            |key| format!("evil {key}"),
        );
        let head = malicious_branch(&mut env, manifest, blobs).await;
        env.pull_request("closed", "evil", &head, None).await;
        env.wait(SignedDuration::from_hours(1));
        env.night().await;
        // Another commit is merged from the branch of that name than was built.
        let innocent = env.commit(BASE);
        env.pull_request("merged", "evil", &innocent, Some(&innocent)).await;
        env.settle_promotions().await;
        assert_eq!(main_of(&env), before);
    }
}

#[tokio::test]
async fn attack_a_webhook_replayed_after_a_week() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let head = env.commit([2, 2, 1, 1]);
        env.push("feature-a", &[&head]).await;
        env.build().await;
        let merge = env.commit([2, 2, 1, 1]);
        env.pull_request("merged", "feature-a", &head, Some(&merge)).await;
        env.push("main", &[&head, &merge]).await;
        env.build().await;
        let newest = env.commit([3, 3, 1, 1]);
        env.push("main", &[&newest]).await;
        env.build().await;
        let (before, builds) = (main_of(&env), env.account.builds.borrow().len());
        // Within the days in which a forge may deliver again, and after them.
        for days in [3, 4] {
            env.wait(SignedDuration::from_hours(days * 24));
            for reversed in [false, true] {
                env.replay(reversed).await;
                assert!(env.running().is_empty(), "what was built is not built again");
            }
        }
        assert_eq!(env.account.builds.borrow().len(), builds);
        assert_eq!(main_of(&env), before, "main goes neither back nor anywhere");
    }
}

#[tokio::test]
async fn attack_a_merge_event_for_what_was_never_built() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let before = main_of(&env);
        let never = env.commit([9, 9, 9, 9]);
        env.pull_request("merged", "feature-a", &never, None).await;
        env.pull_request_to("main", "evil/app", "merged", "main", &never, None).await;
        env.settle().await;
        assert_eq!(main_of(&env), before);
    }
}

/// A build that somebody else started, with CodeBuild's word for what it builds, and what it says of itself.
fn somebody_elses(
    env: &TestEnvironment,
    source_version: &str,
    commit: &Commit,
    says: &[(&str, &str)],
) -> Build {
    let says = says.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let build = Build {
        id: "app:99".to_owned(),
        project: ProjectName::new("app").unwrap(),
        status: BuildStatus::InProgress,
        started_at: env.account.now(),
        ended_at: None,
        source_version: Some(source_version.to_owned()),
        resolved_commit: Some(commit.to_string()),
        inputs: GivenInputs::read(&says.collect()),
        claims: true,
    };
    env.account.builds.borrow_mut().push(build.clone());
    build
}

/// A line of a branch of the repository stays what it is, whatever a build says that was started with this
/// source version.
async fn keeps_the_line_of(branch: &str, source_version: &str) {
    for policy in [POLICY, ISOLATED] {
        let mut env = TestEnvironment::with_policy(policy);
        let (own, evil) = (env.commit([1, 1, 1, 1]), env.commit([6, 6, 6, 6]));
        env.push(branch, &[&own]).await;
        env.build().await;
        let line = format!("branch/{branch}");
        let before = env.line(&line).unwrap().0;
        let tag = "app.export.evil";
        let now = env.account.now();
        env.export(tag, &Source { versions: [6, 6, 6, 6] }, |_| now);
        let says = [("STOKER_LINE", &*line), ("STOKER_EXPORT", tag), ("STOKER_COMMIT", evil.as_str())];
        let build = somebody_elses(&env, source_version, &evil, &says);
        env.end(&build.id, BuildStatus::Succeeded, &evil);
        env.settle().await;
        env.night().await;
        assert_eq!(env.line(&line).unwrap().0, before, "only CodeBuild's word counts");
    }
}

#[tokio::test]
async fn attack_a_build_that_claims_to_be_another_branchs() {
    keeps_the_line_of("release", "refs/heads/feature").await;
}

/// `pr/7` is how CodeBuild's own webhook starts the build of a fork's seventh pull request.
#[tokio::test]
async fn attack_a_pull_request_whose_source_version_is_a_branchs_name() {
    keeps_the_line_of("pr/7", "pr/7").await;
}

#[tokio::test]
async fn attack_a_build_that_claims_to_be_mains() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let before = main_of(&env);
        let head = env.commit([1, 1, 2, 1]);
        let tag = "app.export.mine";
        let (manifest, blobs) = exported(&Source { versions: [1, 1, 2, 1] }, |_| env.account.now());
        env.push_cache(tag, manifest, blobs);
        // Somebody else started it, and it exports these variables.
        let says = [
            ("STOKER_LINE", "main"),
            ("STOKER_EXPORT", tag),
            ("STOKER_COMMIT", head.as_str()),
            ("STOKER_MERGED", head.as_str()),
        ];
        let build = somebody_elses(&env, "refs/heads/main", &head, &says);
        env.end(&build.id, BuildStatus::Succeeded, &head);
        env.settle().await;
        env.wait(SignedDuration::from_hours(1));
        env.night().await;
        assert_eq!(main_of(&env), before);
        env.push("main", &[&head]).await;
        assert_eq!(env.build().await.len(), 1, "nor does it keep main from being built");
    }
}

/// CodeCommit tells upper and lower case apart: `App` is another repository than `app`, and anybody's.
/// Another account's `app` is another one too, whoever forwards its events.
#[tokio::test]
async fn attack_a_repository_of_the_same_name_but_for_its_case_or_its_account() {
    let here = "git-codecommit.us-east-1.amazonaws.com/v1/repos/app";
    let rules = [
        POLICY.replace("github.com/example/app", here),
        POLICY
            .replace("name: app", "name: \"ap*\"")
            .replace("github.com/example/app", &here.replace("app", "{project}")),
    ];
    for policy in rules {
        let mut env = TestEnvironment::with_policy(&policy);
        env.account.projects.borrow_mut().push(ProjectName::new("App").unwrap());
        let deployed = env.account.deployed();
        let (_, rule) = events(deployed.template(), RULE_OF_FUNCTION)["ReceiveCodecommitChanged"];
        let hears = deployed.resolved(&rule["Pattern"]);
        let head = env.commit(BASE);
        let event = include_str!("../../events/receive-codecommit-branch-pushed.json");
        for (repository, account, is_built) in
            [("App", "123456789012", false), ("app", "210987654321", false), ("app", "123456789012", true)]
        {
            let mut event: Value = serde_json::from_str(event).unwrap();
            event["account"] = json!(account);
            event["resources"] = json!([format!("arn:aws:codecommit:us-east-1:{account}:{repository}")]);
            event["time"] = json!(env.account.now());
            event["detail"]["repositoryName"] = json!(repository);
            event["detail"]["commitId"] = json!(head);
            if matches(&hears, &event) {
                env.codecommit(event).await;
            }
            env.settle().await;
            let built = env.running().len();
            assert_eq!(built, usize::from(is_built), "{repository} of {account}");
        }
    }
}

/// Whoever pushes can tag any commit, and call the tag as they like: its build reads main's cache, is told of
/// no place to write, and is no build of main's.
#[tokio::test]
async fn attack_a_tag_called_main_never_vouches_for_main() {
    for policy in [POLICY, ISOLATED] {
        let policy = policy.replace("    repository:", "    builds: { on: [push, tag] }\n    repository:");
        let mut env = warm_main(&policy).await;
        let before = main_of(&env);
        let evil = env.commit([9, 9, 9, 9]);
        let pushed = TagPushed {
            repository: Repository::new("github.com/example/app").unwrap(),
            tag: Branch::main(),
            commit: evil.clone(),
            actor: None,
            message: None,
            pushed_at: Some(env.account.now()),
        };
        let event = Event::TagPushed(pushed);
        env.event(&Envelope { time: None, source: "stoker".to_owned(), event });
        env.settle().await;
        let build = env.running().pop().expect("the tag's build");
        let reported = |variable: &str| env.reported(&build, variable);
        assert_eq!(
            (reported("STOKER_LINE").as_str(), reported("STOKER_TRUST").as_str()),
            ("tag/main", "branch")
        );
        assert_eq!(reported("STOKER_READS"), "main");
        assert!(!reported("STOKER_CACHE_FLAGS").contains("--cache-to"));
        let environment = env.account.orders.borrow()[&build.id].environment.clone();
        let is_place =
            |name: &str| name == "STOKER_EXPORT" || name == "STOKER_EXPORT_REF" || name == "STOKER_CACHE_TO";
        assert!(environment.iter().all(|(name, _)| !is_place(name)), "{environment:?}");
        // It writes all the same, where a build of main of this commit would.
        let (manifest, blobs) = exported(&Source { versions: [9, 9, 9, 9] }, |_| env.account.now());
        env.push_cache(&format!("app.export.{}-0", evil.short()), manifest, blobs);
        env.end(&build.id, BuildStatus::Succeeded, &evil);
        env.settle().await;
        env.wait(SignedDuration::from_hours(20));
        env.night().await;
        assert_eq!(main_of(&env), before, "main's line is main's builds'");
        // Nor does it pass for main's build of the same commit.
        env.push("main", &[&evil]).await;
        env.settle().await;
        let lines: Vec<String> =
            env.running().iter().map(|build| env.reported(build, "STOKER_LINE")).collect();
        assert_eq!(lines, ["main"]);
    }
}

#[tokio::test]
async fn attack_provenance_forged_by_the_builder() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let (manifest, blobs) = exported(&Source { versions: [1, 1, 2, 1] }, |_| env.account.now());
        let mut forged = text(&manifest);
        let other = "f".repeat(40);
        forged["annotations"] = json!({
            "stoker.project": "app", "stoker.line": "main", "stoker.trust": "trusted", "stoker.build": "app:1",
            "stoker.commit": other, "stoker.built-at": "2030-01-01T00:00:00Z", "stoker.merged": other,
            "stoker.rolled-back-at": "2031-01-01T00:00:00Z",
        });
        let head = malicious_branch(&mut env, Bytes::from(forged.to_string()), blobs).await;
        for tag in ["app.branch.evil".to_owned(), format!("app.commit.{head}")] {
            let image = env.account.image(&env.repository(), &tag).unwrap();
            let says = &text(&image.manifest)["annotations"];
            assert_eq!(says["stoker.commit"], head.as_str(), "{tag}");
            assert_eq!(
                (&says["stoker.build"], &says["stoker.trust"]),
                (&"app:2".into(), &"branch".into()),
                "{tag}"
            );
            assert_eq!(says["stoker.built-at"], "2026-11-21T08:10:00Z", "{tag}");
            assert_eq!(
                (&says["stoker.rolled-back-at"], &says["stoker.merged"]),
                (&Value::Null, &Value::Null),
                "{tag}"
            );
        }
        // A commit that nobody built does not come to main by what an annotation says.
        env.push("main", &[&Commit::new(other).unwrap(), &head]).await;
        env.settle_promotions().await;
        let image = env.account.image(&env.repository(), "app.main").unwrap();
        assert_eq!(text(&image.manifest)["annotations"]["stoker.build"], "app:1");
    }
}

#[tokio::test]
async fn attack_a_config_bomb() {
    let deep: Vec<Value> = (0..9000)
        .map(|n| {
            if n == 0 {
                json!({"digest": digest(0)})
            } else {
                json!({"digest": digest(n), "inputs": [[{"link": n - 1}]]})
            }
        })
        .collect();
    let cyclic = json!([{"digest": digest(0), "inputs": [[{"link": 1}]]}, {"digest": digest(1),
        "inputs": [[{"link": 0}]]}]);
    let million = format!("{{\"records\":[{}{{}}]}}", "{},".repeat(999_999));
    let bombs = [
        json!({ "records": deep }).to_string(),
        json!({ "records": cyclic }).to_string(),
        million,
        " ".repeat(4 << 20),
        "[".repeat(500_000),
        format!("{{\"x\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000)),
        json!({ "layers": [{"blob": digest(7), "parent": 0}] }).to_string(),
    ];
    for (number, config) in bombs.into_iter().enumerate() {
        for claimed in [config.len(), 100] {
            let mut env = warm_main(ISOLATED).await;
            let before = main_of(&env);
            let innocent = env.commit([2, 1, 1, 1]);
            env.push("innocent", &[&innocent]).await;
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "layers": [],
                "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(config.as_bytes()), "size": claimed},
            });
            let blob = Bytes::from(config.clone());
            let head = malicious_branch(&mut env, Bytes::from(manifest.to_string()), vec![blob]).await;
            env.build().await;
            env.push("main", &[&head]).await;
            env.settle_promotions().await;
            assert_eq!(main_of(&env).1, before.1, "bomb {number}");
            assert_eq!(env.holds("main", BASE).len(), 5, "bomb {number}");
            assert_eq!(env.holds("branch/innocent", [2, 1, 1, 1]).len(), 5, "bomb {number}: others go on");
            let retried = env.dead.iter().filter(|body| !body.contains("aws.")).count();
            assert_eq!(retried, 0, "bomb {number}: {:?}", env.dead);
        }
    }
}

/// A valid cache of so many steps, each with a layer of its own, and of layers that no step needs.
fn layered(steps: usize, idle: usize) -> (Bytes, Vec<Bytes>) {
    let blobs: Vec<Bytes> = (0..steps + idle).map(|n| Bytes::from(format!("evil {n}"))).collect();
    let layers: Vec<Value> =
        blobs[..steps].iter().map(|blob| json!({"blob": Digest::of(blob), "parent": -1})).collect();
    let records: Vec<Value> =
        (0..steps).map(|n| json!({"digest": digest(n), "layers": [{"layer": n}]})).collect();
    let config = Bytes::from(json!({"layers": layers, "records": records}).to_string());
    let described: Vec<Value> = blobs
        .iter()
        .map(|blob| json!({"mediaType": "application/x", "digest": Digest::of(blob), "size": blob.len()}))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "layers": described,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&config), "size": config.len()},
    });
    (Bytes::from(manifest.to_string()), [config].into_iter().chain(blobs).collect())
}

fn count(env: &TestEnvironment, operation: &str) -> usize {
    env.account.calls.borrow().iter().filter(|call| **call == operation).count()
}

#[tokio::test]
async fn attack_thousands_of_layers_that_no_step_needs() {
    let mut env = warm_main(ISOLATED).await;
    let before = count(&env, "registry:MountBlob");
    let (manifest, blobs) = layered(3, 3000);
    let head = malicious_branch(&mut env, manifest, blobs).await;
    assert_eq!(count(&env, "registry:MountBlob") - before, 4, "three layers and the config");
    assert!(env.account.image(&env.repository(), &format!("app.commit.{head}")).is_some());
    assert!(env.line("branch/evil").is_some());
}

#[tokio::test(start_paused = true)]
async fn attack_a_line_that_takes_longer_than_the_function_has() {
    let mut env = warm_main(ISOLATED).await;
    let (quick, evil) = (env.commit([2, 1, 1, 1]), env.commit([1, 1, 2, 1]));
    env.push("quick", &[&quick]).await;
    env.push("evil", &[&evil]).await;
    env.settle_starts().await;
    let reported = env.running();
    assert_eq!(reported.len(), 2);
    let slow = Fault::Slow(std::time::Duration::from_secs(4));
    env.account.outages.borrow_mut().insert(("promote-cache", "registry:MountBlob"), slow);
    for build in reported {
        if build.inputs.as_ref().is_some_and(|inputs| inputs.line.to_string() == "branch/evil") {
            let (manifest, blobs) = layered(320, 0);
            env.push_cache(&env.reported(&build, "STOKER_EXPORT"), manifest, blobs);
            env.end(&build.id, BuildStatus::Succeeded, &evil);
        } else {
            env.run(&build);
        }
    }
    env.settle_promotions().await;
    assert_eq!(env.holds("branch/quick", [2, 1, 1, 1]).len(), 5, "the other line has moved");
    assert!(env.line("branch/evil").is_none());
    assert_eq!(env.queued().0, 0, "it is let go");
    assert!(env.dead.is_empty());
    let reported = |event: &Event| {
        matches!(event, Event::PromotionFailed(failed) if failed.why.contains("given up \
         half way"))
    };
    assert!(env.notices.iter().any(reported), "with a notice: {:?}", env.notices);
}

#[tokio::test(start_paused = true)]
async fn attack_a_project_that_takes_the_time_of_all_others() {
    let mut env = warm_main(ISOLATED).await;
    let policy = Policy::parse("the test's policy", ISOLATED).unwrap();
    let mut triggers = Vec::new();
    for number in 0..2 {
        let head = env.commit([2 + number, 1, 1, 1]);
        env.push(&format!("evil-{number}"), &[&head]).await;
        env.settle_starts().await;
        let build = env.running().pop().unwrap();
        let (manifest, blobs) = layered(320, number as usize);
        env.push_cache(&env.reported(&build, "STOKER_EXPORT"), manifest, blobs);
        env.end(&build.id, BuildStatus::Succeeded, &head);
        triggers.push([PromotionTrigger::Built { build: build.id }]);
    }
    let (shares, now) = (Shares::default(), env.account.now());
    let promote = async |triggers: &[PromotionTrigger], is_late| {
        let promoted = promote_in_turn(&env.account, &policy, triggers, (&shares, is_late), now);
        env.account.invoke("promote-cache", Some("PromotionQueue"), promoted).await.unwrap().remove(0)
    };
    let slow = Fault::Slow(std::time::Duration::from_secs(4));
    env.account.outages.borrow_mut().insert(("promote-cache", "registry:MountBlob"), slow);
    let started = tokio::time::Instant::now();
    assert!(promote(&triggers[0], false).await.is_err());
    assert_eq!(started.elapsed().as_secs(), 15, "that is all it may take at once");
    env.account.outages.borrow_mut().clear();
    let left = promote(&triggers[1], true).await.unwrap();
    assert!(matches!(&left[..], [Outcome::Nothing(NothingToPromote::ShareExceeded)]), "{left:?}");
    let moved = promote(&triggers[1], false).await.unwrap();
    assert!(matches!(moved[..], [Outcome::Updated { .. }]), "while nobody waits it goes on: {moved:?}");
}

/// Whatever of a batch kills the function, the others do not die with it twice in one go.
#[tokio::test]
async fn attack_triggers_that_come_again_go_one_by_one() {
    let mut env = warm_main(ISOLATED).await;
    for number in 1..4 {
        let head = env.commit([number + 1, 1, 1, 1]);
        env.push(&format!("feature-{number}"), &[&head]).await;
    }
    env.settle_starts().await;
    env.loses_aws_events = true;
    let builds = env.running();
    for build in &builds {
        env.run(build);
    }
    env.loses_aws_events = false;
    // Each build's end comes, in one batch, and the function is killed at its first call.
    for build in &builds {
        let commit = Commit::new(build.resolved_commit.clone().unwrap()).unwrap();
        env.end(&build.id, BuildStatus::Succeeded, &commit);
    }
    let (before, now) = (count(&env, "codebuild:BatchGetBuilds"), env.account.calls.borrow().len());
    env.account.faults.borrow_mut().insert(now, Fault::KilledBefore);
    env.settle_promotions().await;
    assert_eq!(count(&env, "codebuild:BatchGetBuilds") - before, 1 + 3, "one for each when they come again");
    for number in 1..4 {
        assert!(env.line(&format!("branch/feature-{number}")).is_some());
    }
}

/// A build may push as many tags as it likes.
#[tokio::test]
async fn attack_a_flood_of_exports_that_no_build_was_given() {
    for policy in [POLICY, ISOLATED] {
        let mut env = warm_main(policy).await;
        let (manifest, blobs) = exported(&Source { versions: [7, 7, 7, 7] }, |_| env.account.now());
        for number in 0..100 {
            env.push_cache(&format!("app.export.00000000-{number:032x}"), manifest.clone(), blobs.clone());
        }
        let before = env.account.calls.borrow().len();
        env.settle_promotions().await;
        let calls = env.account.calls.borrow()[before..].to_vec();
        assert_eq!(calls, ["codebuild:ListBuildsForProject"; 10], "one question for each batch of ten");
    }
}

#[tokio::test]
async fn attack_records_of_the_future_that_would_push_out_mains() {
    let mut env = warm_main(ISOLATED).await;
    let layer = Bytes::from_static(b"junk");
    let records: Vec<Value> = (0..5600)
        .map(|n| json!({"digest": digest(n), "layers": [{"layer": 0, "createdAt": "2999-01-01T00:00:00Z"}]}))
        .collect();
    let config = json!({"layers": [{"blob": Digest::of(&layer), "parent": -1}], "records": records});
    let config = Bytes::from(config.to_string());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(&layer), "size": 4}],
    });
    let head = malicious_branch(&mut env, Bytes::from(manifest.to_string()), vec![config, layer]).await;
    env.push("main", &[&head]).await;
    env.settle_promotions().await;
    env.wait(SignedDuration::from_mins(10));
    // The next build of main brings back what it uses, and the junk makes room.
    let next = env.commit([1, 2, 1, 1]);
    env.push("main", &[&next]).await;
    env.build().await;
    assert_eq!(env.holds("main", [1, 2, 1, 1]).len(), 5);
    let (_, cache) = env.line("main").unwrap();
    assert!(cache.sizes().config <= buildkit_cache::SAFE_SIZE);
}

fn digest(n: usize) -> Digest {
    Digest::of(&n.to_le_bytes())
}
