//! What a question to `resolve-cache` costs: requests, and time beside a floor that is measured in the same run.
//!
//! `cargo bench -p scenarios --bench resolve` asks for projects with 1, 10 and 100 scopes, each with a line
//! of main and one of a branch, and fails when a figure is out of bounds: once where their joins are there,
//! and once where they are to be made. The first floor reads every manifest once and writes it once, the
//! second every manifest and config. Then it joins two caches that are almost as large as BuildKit imports,
//! and says what memory that takes.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use buildkit_cache::{CONFIG_MEDIA_TYPE, Kind, MANIFEST_MEDIA_TYPE, classify};
use bytes::Bytes;
use jiff::Timestamp;
use peak_alloc::PeakAlloc;
use serde_json::json;
use stoker_core::error::CallError;
use stoker_core::names::{CacheRepository, Commit, Digest, Line, ProjectName, Tag};
use stoker_core::policy::Policy;
use stoker_core::ports::{Image, MakeRepositories, ReadBlobs, ReadImages, WriteImages};
use stoker_core::provenance::{Built, Provenance};
use tokio::runtime;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const LAYERS: usize = 200;
/// Of a cache that is almost as large as can be: manifests have more bytes than configs.
const MANY_LAYERS: usize = 2600;
/// Of them the last are a line's own, the others both lines have.
const OWN_LAYERS: usize = 100;
/// Bytes of memory that a join takes for each byte of the configs that it reads; the manifests are larger than these.
const MAX_MEMORY: usize = 10;
/// A question asks the registry no more often where the joins are there: for lines, and for joins.
const MAX_REQUESTS: usize = 4;
/// Nor for a join that is to be made: two configs, and two writes.
const MAX_REQUESTS_OF_JOIN: usize = 4;
/// An answer takes no longer than so many times the floor.
const MAX_RATIO: f64 = 2.0;
/// Nor does one that joins.
const MAX_RATIO_OF_JOIN: f64 = 6.0;
/// Each is measured so often, and its fastest counts.
const ROUNDS: usize = 7;

/// Images by tag, and configs.
#[derive(Default)]
struct Registry {
    images: RefCell<HashMap<Tag, Image>>,
    blobs: RefCell<HashMap<Digest, Bytes>>,
    requests: Cell<usize>,
}

impl Registry {
    fn count(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    fn forget_joins(&self) {
        self.images.borrow_mut().retain(|tag, _| !tag.as_str().contains(".given."));
    }
}

impl ReadImages for Registry {
    async fn images(&self, _: &CacheRepository, tags: &[Tag]) -> Result<Vec<Option<Image>>, CallError> {
        assert!(tags.len() <= 100, "one request names at most 100 images");
        self.count();
        Ok(tags.iter().map(|tag| self.images.borrow().get(tag).cloned()).collect())
    }
}

impl MakeRepositories for Registry {
    async fn make_repository(&self, _: &CacheRepository, _: bool) -> Result<bool, CallError> {
        Ok(false)
    }
}

impl ReadBlobs for Registry {
    async fn blob(&self, _: &CacheRepository, digest: &Digest, _: usize) -> Result<Bytes, CallError> {
        self.count();
        Ok(self.blobs.borrow()[digest].clone())
    }
}

impl WriteImages for Registry {
    async fn put_blob(&self, _: &CacheRepository, _: &Digest, _: Bytes) -> Result<(), CallError> {
        self.count();
        Ok(())
    }

    async fn put_image(
        &self,
        _: &CacheRepository,
        tag: &Tag,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), CallError> {
        self.count();
        let image = Image { digest: Digest::of(&manifest), media_type: media_type.to_owned(), manifest };
        self.images.borrow_mut().insert(tag.clone(), image);
        Ok(())
    }
}

/// A cache of a chain of steps, the last of which are its own: its config, and its manifest as promote-cache writes it.
fn cache(line: &Line, seed: &str, layers: usize, own: usize) -> (Bytes, Image) {
    let digest = |what: &str, number: usize| {
        let of = if number + own < layers { "all" } else { seed };
        Digest::of(format!("{what} {number} of {of}").as_bytes())
    };
    let layer = |number: usize| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest("layer", number),
            "size": 1_000_000 + number,
            "annotations": {
                "buildkit/createdat": "2026-11-20T09:30:15.123456789Z",
                "containerd.io/uncompressed": digest("diff", number),
            },
        })
    };
    let step = |number: usize| {
        let result = json!({ "layer": number, "createdAt": "2026-11-20T09:30:15.123456789Z" });
        let input = number.checked_sub(1).map(|link| json!([[{ "link": link }]]));
        json!({ "digest": digest("step", number), "layers": [result], "inputs": input.unwrap_or(json!([])) })
    };
    let blob = |number: usize| {
        let parent = i64::try_from(number).unwrap() - 1;
        json!({ "blob": digest("layer", number), "parent": parent })
    };
    let config = json!({
        "layers": (0..layers).map(blob).collect::<Vec<_>>(), "records": (0..layers).map(step).collect::<Vec<_>>(),
    });
    let config = Bytes::from(config.to_string());
    let built = Built {
        at: Timestamp::UNIX_EPOCH,
        commit: Commit::new("ab".repeat(20)).unwrap(),
        build: "app:8745a7a9-c340-456a-9166-edf953571b00".to_owned(),
    };
    let provenance = Provenance { built: Some(built), ..Provenance::default() };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "layers": (0..layers).map(layer).collect::<Vec<_>>(),
        "config": { "mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&config), "size": config.len() },
        "annotations": provenance.annotations(line),
    });
    let manifest = Bytes::from(manifest.to_string());
    let image = Image { digest: Digest::of(&manifest), media_type: MANIFEST_MEDIA_TYPE.to_owned(), manifest };
    (config, image)
}

/// A project with so many scopes, and the caches of its main and of a branch in each of them.
fn project(scopes: usize, layers: usize, own: usize) -> (Policy, Registry) {
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
    let registry = Registry::default();
    for scope in project.scopes() {
        for line in ["main", "branch/feature"] {
            let line = Line::parse(line).unwrap();
            let tag = Tag::line(scope, &line);
            let (config, image) = cache(&line, tag.as_str(), layers, own);
            registry.blobs.borrow_mut().insert(Digest::of(&config), config);
            registry.images.borrow_mut().insert(tag, image);
        }
    }
    (policy, registry)
}

fn fastest(mut measured: impl FnMut()) -> Duration {
    let once = |_| {
        let began = Instant::now();
        measured();
        began.elapsed()
    };
    (0..ROUNDS).map(once).min().unwrap()
}

fn ask(runtime: &runtime::Runtime, policy: &Policy, registry: &Registry) -> stoker_core::resolve::Answer {
    let question = json!({ "project": "app", "branch": "feature", "commit": "cd".repeat(40 / 2) });
    let asked =
        stoker_core::resolve::handle(question, policy, "registry.example", registry, Timestamp::UNIX_EPOCH);
    runtime.block_on(asked).unwrap()
}

/// The memory that a join of two large caches takes for each byte of their configs.
fn memory(runtime: &runtime::Runtime) -> bool {
    let (policy, registry) = project(1, MANY_LAYERS, OWN_LAYERS);
    let configs: usize = registry.blobs.borrow().values().map(Bytes::len).sum();
    // What is done once is not the join's.
    black_box(ask(runtime, &policy, &registry));
    registry.forget_joins();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let answer = ask(runtime, &policy, &registry);
    let taken = MEMORY.peak_usage() - before;
    let holds = taken <= MAX_MEMORY * configs && !answer.environment["STOKER_JOINED"].is_empty();
    println!(
        "{}: {taken} bytes of memory for {configs} bytes of configs, at most {MAX_MEMORY} for each",
        if holds { "ok" } else { "BROKEN" }
    );
    holds
}

fn main() -> ExitCode {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut within = true;
    println!("scopes   joins  requests     floor    answer  ratio");
    for scopes in [1, 10, 100] {
        let (policy, registry) = project(scopes, LAYERS, LAYERS);
        let ask = || ask(&runtime, &policy, &registry);
        let images: Vec<Image> = registry.images.borrow().values().cloned().collect();
        let reads_manifests = || {
            for image in &images {
                let Kind::Cache(manifest) = classify(&image.manifest) else { continue };
                black_box(serde_json::to_vec(&manifest).unwrap());
            }
        };
        let reads_all = || {
            reads_manifests();
            for config in registry.blobs.borrow().values() {
                let config: serde_json::Value = serde_json::from_slice(config).unwrap();
                black_box(serde_json::to_vec(&config).unwrap());
            }
        };
        for joins in ["made", "found"] {
            let is_made = joins == "made";
            registry.requests.take();
            let answer = ask();
            let refs = answer.environment.iter().filter(|(name, _)| name.starts_with("STOKER_CACHE_REFS"));
            let given = refs.filter(|(_, refs)| refs.split(' ').count() == 1).count();
            let requests = registry.requests.take();
            let joined = answer.environment["STOKER_JOINED"].split(' ').count();
            let floor = if is_made { fastest(reads_all) } else { fastest(reads_manifests) };
            let answer = fastest(|| {
                if is_made {
                    registry.forget_joins();
                }
                black_box(ask());
            });
            let ratio = answer.as_secs_f64() / floor.as_secs_f64();
            let (floor, answer) = (floor.as_micros(), answer.as_micros());
            println!("{scopes:>6}   {joins:>5} {requests:>9} {floor:>6} us {answer:>6} us  {ratio:>5.2}");
            let most = MAX_REQUESTS + if is_made { MAX_REQUESTS_OF_JOIN * scopes } else { 0 };
            let slowest = if is_made { MAX_RATIO_OF_JOIN } else { MAX_RATIO };
            for (holds, what) in [
                (given == scopes, format!("{given} of {scopes} scopes are given one cache")),
                (joined == 2 * scopes, format!("{joined} of {} caches are joined", 2 * scopes)),
                (requests <= most, format!("{requests} requests, at most {most}")),
                (ratio <= slowest, format!("{ratio:.2} times the floor, at most {slowest}")),
            ] {
                within &= holds;
                println!("{}: {scopes} scopes: {what}", if holds { "ok" } else { "BROKEN" });
            }
        }
    }
    within &= memory(&runtime);
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
