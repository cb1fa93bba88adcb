//! What a question to `resolve-cache` costs: requests, and time beside a floor that is measured in the same run.
//!
//! `cargo bench -p stories --bench resolve` asks for projects with 1, 10 and 100 scopes, and fails when a figure is out of
//! bounds. The floor reads every manifest once and writes it once.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement")]

use std::cell::Cell;
use std::collections::HashMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;
use stoker::cache::{CONFIG_MEDIA_TYPE, Kind, MANIFEST_MEDIA_TYPE, classify};
use stoker::error::CallError;
use stoker::names::{CacheRepository, Commit, Digest, Line, ProjectName, Tag};
use stoker::policy::Policy;
use stoker::ports::{Image, ReadImages};
use stoker::provenance::{Built, Provenance};
use tokio::runtime;

const LAYERS: usize = 200;
/// A question asks the registry no more often.
const MAX_REQUESTS: usize = 2;
/// An answer takes no longer than so many times the floor.
const MAX_RATIO: f64 = 2.0;
/// Each is measured so often, and its fastest counts.
const ROUNDS: usize = 7;

/// Images by tag.
struct Registry {
    images: HashMap<Tag, Image>,
    requests: Cell<usize>,
}

impl ReadImages for Registry {
    async fn images(&self, _: &CacheRepository, tags: &[Tag]) -> Result<Vec<Option<Image>>, CallError> {
        assert!(tags.len() <= 100, "one request names at most 100 images");
        self.requests.set(self.requests.get() + 1);
        Ok(tags.iter().map(|tag| self.images.get(tag).cloned()).collect())
    }
}

/// A cache as promote-cache writes it.
fn image(line: &Line, seed: &str) -> Image {
    let layer = |number: usize| {
        let digest = |what: &str| Digest::of(format!("{what} {number} of {seed}").as_bytes());
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest("layer"), "size": 1_000_000 + number,
            "annotations": {
                "buildkit/createdat": "2026-11-20T09:30:15.123456789Z", "containerd.io/uncompressed": digest("diff"),
            },
        })
    };
    let built = Built {
        at: Timestamp::UNIX_EPOCH,
        commit: Commit::new("ab".repeat(20)).unwrap(),
        build: "app:8745a7a9-c340-456a-9166-edf953571b00".to_owned(),
    };
    let provenance = Provenance { built: Some(built), ..Provenance::default() };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "layers": (0..LAYERS).map(layer).collect::<Vec<_>>(),
        "config": { "mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(seed.as_bytes()), "size": 500_000 },
        "annotations": provenance.annotations(line),
    });
    let manifest = Bytes::from(manifest.to_string());
    Image { digest: Digest::of(&manifest), media_type: MANIFEST_MEDIA_TYPE.to_owned(), manifest }
}

/// A project with so many scopes, and the caches of its main and of a branch in each of them.
fn project(scopes: usize) -> (Policy, Registry) {
    let targets = if scopes == 1 {
        String::new()
    } else {
        let target = |number| format!("{{name: t{number}, platforms: [linux/amd64, linux/arm64]}}");
        format!(", targets: [{}]", (0..scopes / 2).map(target).collect::<Vec<_>>().join(", "))
    };
    let text = format!("version: 1\nprojects: [{{name: app, repository: github.com/example/app{targets}}}]");
    let policy = Policy::parse("the benchmark's policy", &text).unwrap();
    let project = policy.project(&ProjectName::new("app").unwrap()).unwrap();
    assert_eq!(project.scopes().count(), scopes);
    let mut images = HashMap::new();
    for scope in project.scopes() {
        for line in ["main", "branch/feature"] {
            let line = Line::parse(line).unwrap();
            let tag = Tag::line(scope, &line);
            let image = image(&line, tag.as_str());
            images.insert(tag, image);
        }
    }
    (policy, Registry { images, requests: Cell::new(0) })
}

fn fastest(mut measured: impl FnMut()) -> Duration {
    let once = |_| {
        let began = Instant::now();
        measured();
        began.elapsed()
    };
    (0..ROUNDS).map(once).min().unwrap()
}

fn main() -> ExitCode {
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let mut within = true;
    println!("scopes  lines  requests     floor    answer  ratio");
    for scopes in [1, 10, 100] {
        let (policy, registry) = project(scopes);
        let ask = || {
            let commit = "cd".repeat(20);
            let question = json!({ "project": "app", "branch": "feature", "commit": commit });
            runtime.block_on(resolve_cache::handle(question, &policy, "registry.example", &registry)).unwrap()
        };
        let handed =
            ask().environment.iter().filter(|(name, _)| name.starts_with("STOKER_CACHE_REFS")).count();
        let requests = registry.requests.take();
        let floor = fastest(|| {
            for image in registry.images.values() {
                let Kind::Cache(manifest) = classify(&image.manifest) else { continue };
                black_box(serde_json::to_vec(&manifest).unwrap());
            }
        });
        let answer = fastest(|| {
            black_box(ask());
        });
        let ratio = answer.as_secs_f64() / floor.as_secs_f64();
        let (lines, floor, answer) = (registry.images.len(), floor.as_micros(), answer.as_micros());
        println!("{scopes:>6} {lines:>6} {requests:>9} {floor:>6} us {answer:>6} us  {ratio:>5.2}");
        for (holds, what) in [
            (handed == scopes, format!("{handed} of {scopes} scopes are told what to read")),
            (requests <= MAX_REQUESTS, format!("{requests} requests, at most {MAX_REQUESTS}")),
            (ratio <= MAX_RATIO, format!("{ratio:.2} times the floor, at most {MAX_RATIO}")),
        ] {
            within &= holds;
            println!("{}: {scopes} scopes: {what}", if holds { "ok" } else { "BROKEN" });
        }
    }
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
