use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::input::save;
use super::*;
use crate::build_inputs::{BuildInputs, Part, variable};
use crate::names::{Commit, ProjectName};
use crate::policy::{Mount, Policy};
use buildkit_cache::MANIFEST_MEDIA_TYPE;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn project() -> Project {
    let text = "version: 1\nprojects: [{name: app, repository: github.com/example/app, builds-repository: b/app,\
                targets: [{mounts: [{id: /root/.cargo, options: 'uid=7', limit: 10MB}, {id: npm}]}]}]";
    let project = Policy::parse("p", text).unwrap().project(&ProjectName::new("app").unwrap());
    project.unwrap()
}

fn manifest(sizes: &[u64]) -> Value {
    let blob = |kind: &str, size: u64| {
        json!({ "mediaType": kind, "digest": Digest::of(&size.to_le_bytes()),
        "size": size })
    };
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": blob(CONFIG, 900),
        "layers": sizes.iter().map(|size| blob(LAYER, *size)).collect::<Vec<_>>(),
    })
}

fn parse(manifest: &Value) -> Result<MountManifest, String> {
    MountManifest::parse(manifest.to_string().as_bytes())
}

fn inputs(project: &Project, mounts: Vec<MountInput>) -> BuildInputs {
    let target = project.targets[0].clone();
    BuildInputs {
        line: Line::Main,
        commit: Some(Commit::new("ab".repeat(20)).unwrap()),
        reason: "push".to_owned(),
        parts: vec![Part { target, reads: Reads { mounts, ..Reads::default() }, export: None }],
        merged: Vec::new(),
        pushed_at: None,
        refresh: false,
        bases: None,
    }
}

#[test]
fn only_an_image_of_a_few_compressed_layers_is_a_saved_mount() {
    let read = parse(&manifest(&[10, 2])).unwrap();
    assert_eq!((read.bytes(), read.layers().count()), (12, 2));
    let with = |path: &str, value: Value| {
        let mut manifest = manifest(&[10, 2]);
        *manifest.pointer_mut(path).unwrap() = value;
        parse(&manifest).unwrap_err()
    };
    assert!(with("/config/mediaType", json!(buildkit_cache::CONFIG_MEDIA_TYPE)).contains("not an OCI image"));
    assert!(
        with("/mediaType", json!("application/vnd.oci.image.index.v1+json")).contains("not an OCI image")
    );
    assert!(with("/layers/1/mediaType", json!("application/x-sh")).contains("neither zstd nor gzip"));
    assert!(with("/layers", json!([])).contains("0 layers"));
    assert!(with("/config/size", json!(1 << 20)).contains("its config has 1048576 bytes"));
    assert!(parse(&manifest(&[1; 9])).unwrap_err().contains("9 layers"));
    assert!(MountManifest::parse(&vec![b' '; 40 << 10]).unwrap_err().contains("40960 bytes"));
    for text in ["", "{}", "[]", "7", "{\"layers\": 7}"] {
        assert!(MountManifest::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn what_a_builds_image_would_run_is_not_written() {
    let said = json!({
        "os": "linux", "architecture": "amd64",
        "config": { "OnBuild": ["RUN x"], "Env": ["PATH=/evil"], "Entrypoint": ["/evil"] },
        "history": [{ "created_by": "RUN evil" }],
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"a"), Digest::of(b"b")] },
    });
    let image =
        |said: &Value| MountImage::new(parse(&manifest(&[10, 2])).unwrap(), said.to_string().as_bytes());
    let written = image(&said).unwrap();
    let config: Value = serde_json::from_slice(&written.config).unwrap();
    assert_eq!(
        config,
        json!({ "os": "linux", "architecture": "amd64",
                "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"a"), Digest::of(b"b")] } })
    );
    assert_eq!(*written.manifest.config(), Digest::of(&written.config));
    let annotated = written.manifest.annotated(&BTreeMap::from([(ID.to_owned(), "npm".to_owned())]));
    assert_eq!(mount_of(&MountManifest::parse(&annotated).unwrap().annotations).unwrap().as_str(), "npm");
    for (path, value) in [
        ("/os", json!("")),
        ("/architecture", json!("a b")),
        ("/rootfs/diff_ids", json!([])),
        ("/rootfs", json!(7)),
    ] {
        let mut said = said.clone();
        *said.pointer_mut(path).unwrap() = value;
        assert!(image(&said).is_err(), "{path}");
    }
}

#[test]
fn what_is_saved_builds_upon_what_was_restored_until_that_costs_too_much() {
    let is_extendable = |sizes: &[u64]| parse(&manifest(sizes)).unwrap().is_extendable();
    assert!(is_extendable(&[100]) && is_extendable(&[100, 20, 30]));
    assert!(!is_extendable(&[100, 20, 31]), "more than half would be pulled in vain");
    assert!(!is_extendable(&[100, 1, 1, 1, 1, 1, 1, 1]), "there is no room for a layer");
}

#[test]
fn a_build_restores_by_digest_and_main_saves_to_its_own_tag() {
    let project = project();
    let given = Digest::of(b"cargo");
    let mut mounts = vec![
        MountInput { image: Some(given.clone()), extends: true, is_carried: true, ..MountInput::default() },
        MountInput { is_carried: true, ..MountInput::default() },
    ];
    save(&project.targets[0].mounts, &mut mounts, |scope| Some(Tag::export(scope, "key")));
    let environment: BTreeMap<_, _> =
        inputs(&project, mounts.clone()).environment("registry.example", &project).into_iter().collect();
    let file = |name: &str| -> Value { serde_json::from_str(&environment[name]).unwrap() };
    let image = format!("registry.example/stoker/app@{given}");
    let restore = file(variable::RESTORE_MOUNTS);
    assert_eq!(restore["group"]["default"]["targets"], json!(["mount-root--cargo-1"]));
    let target = &restore["target"]["mount-root--cargo-1"];
    let dockerfile = target["dockerfile-inline"].as_str().unwrap();
    assert!(dockerfile.starts_with("FROM busybox:1.37.0-musl\nRUN "), "{dockerfile}");
    assert!(dockerfile.contains(&format!("type=bind,from={image},source=/m,")), "{dockerfile}");
    assert!(dockerfile.contains("--mount=type=cache,id=/root/.cargo,target=/.m,uid=7 "), "{dockerfile}");
    assert_eq!(target["output"], json!(["type=cacheonly"]));
    let saved = file(variable::SAVE_MOUNTS);
    let target = &saved["target"]["mount-root--cargo-1"];
    assert!(target["dockerfile-inline"].as_str().unwrap().starts_with(&format!("FROM {image}\n")));
    let output = target["output"][0].as_str().unwrap();
    assert!(output.starts_with("type=image,name=registry.example/b/app:app-"), "{output}");
    assert!(output.ends_with("annotation.stoker.mount=/root/.cargo"), "{output}");
    let target = &saved["target"]["mount-npm-2"];
    assert!(target["dockerfile-inline"].as_str().unwrap().starts_with("FROM scratch\n"));
    for name in [variable::RESTORE_MOUNTS, variable::SAVE_MOUNTS] {
        assert!(!environment[name].contains("${") && !environment[name].contains("%{"), "bake would read it");
    }
    let read = crate::build_inputs::GivenInputs::read(&environment).unwrap();
    assert_eq!(read.mounts.values().collect::<Vec<_>>(), [&given]);
    assert!(read.caches().any(|leased| *leased == given), "retention has to know what a running build holds");
    assert_eq!(read.saves.len(), 2);
    assert!(read.exports.is_empty(), "a mount is no cache");

    mounts.truncate(0);
    let environment: BTreeMap<_, _> =
        inputs(&project, mounts).environment("registry.example", &project).into_iter().collect();
    assert!(environment.keys().all(|name| !name.contains("MOUNTS")), "{environment:?}");
}

#[test]
fn a_build_from_scratch_restores_nothing_and_saves_all() {
    let project = project();
    let mut mounts = Vec::new();
    save(&project.targets[0].mounts, &mut mounts, |scope| Some(Tag::export(scope, "key")));
    assert!(mounts.iter().all(|mount| mount.image.is_none() && !mount.extends && mount.save.is_some()));
}

#[test]
fn a_mount_is_carried_while_it_spares_more_than_it_costs() {
    let now = time("2026-11-30T08:00:00Z");
    let yesterday = time("2026-11-29T08:00:00Z");
    let of = |with: &[u64], without: &[u64]| Samples {
        with: with.to_vec(),
        without: without.to_vec(),
        measured_at: None,
    };
    let is_carried = |samples: &Samples, is_main| samples.carrying(is_main, yesterday, now) == Carrying::Yes;
    assert!(is_carried(&of(&[], &[]), true) && is_carried(&of(&[60, 60], &[]), true));
    let few = of(&[60, 61, 62], &[]);
    assert!(!is_carried(&few, true), "one build of main goes without, to compare");
    assert!(is_carried(&few, false), "no branch's does");
    assert!(is_carried(&of(&[60, 61, 62], &[70]), true) && !is_carried(&of(&[60; 6], &[70]), true));
    assert!(is_carried(&of(&[60; 9], &[90, 80, 100]), true));
    let slower = of(&[60; 9], &[50, 70, 50]);
    let Carrying::No(why) = slower.carrying(false, yesterday, now) else { panic!("carried") };
    assert_eq!(
        why,
        "carrying it costs more than it spares: 9 builds of main took 60 s with it, 3 took 56 s without"
    );
    assert!(slower.carrying(true, time("2026-11-15T08:00:00Z"), now) == Carrying::Yes, "it is tried again");
    assert!(is_carried(&of(&[60; 9], &[]), true) != is_carried(&of(&[60; 9], &[]), false));
}

#[test]
fn a_build_counts_once_and_reads_back() {
    let mut samples = Samples::default();
    for minute in 0..20_u64 {
        let at = time(&format!("2026-11-30T08:{minute:02}:00Z"));
        samples.add(at, minute, minute % 2 == 0);
        samples.add(at, minute, minute % 2 == 0);
    }
    samples.add(time("2026-11-30T08:00:00Z"), 1000, true);
    assert_eq!(samples.with, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
    assert_eq!(Samples::read(&samples.annotations()), samples);
    assert_eq!(Samples::read(&BTreeMap::new()), Samples::default());
}

#[test]
fn what_a_build_was_not_given_is_read_back() {
    let project = project();
    let input = |note: &str| MountInput { note: note.to_owned(), ..MountInput::default() };
    let mounts: Vec<Mount> = project.targets.iter().flat_map(|target| &target.mounts).cloned().collect();
    let reported = |note: &str| {
        let inputs = vec![input(note); mounts.len()];
        input::read_not_given(&input::notes(mounts.iter().zip(&inputs)).unwrap_or_default())
    };
    assert!(!mounts.is_empty());
    let why = "the manifest is none; 3 problems; of 4: one";
    let expected: Vec<_> = mounts.iter().map(|mount| (mount.id.clone(), why.to_owned())).collect();
    assert_eq!(reported(why), expected);
    assert_eq!(reported("given 0123abcd"), []);
    assert_eq!(input::read_not_given(""), []);
    assert_eq!(input::read_not_given("no id: a; also; none"), []);
}
