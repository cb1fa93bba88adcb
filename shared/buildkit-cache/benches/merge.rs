//! Merging two caches, next to what `serde_json` alone takes to read and write the same bytes.
//!
//! `cargo bench -p buildkit-cache --bench merge` prints ratios, which hold on any machine, and fails when
//! one is out of bounds.
#![expect(
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a measurement"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::time::Duration;

use buildkit_cache::Digest;
use buildkit_cache::{CONFIG_MEDIA_TYPE, Cache, Kind, Limits, MANIFEST_MEDIA_TYPE, classify_within};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Size of each config.
const SIZE: usize = 900 * 1024;
/// Size of each config where more of the same is to take as much longer.
const LARGE: usize = 4 * 1024 * 1024;
const ROUNDS: usize = 25;

/// Reading two caches, merging and writing takes at most so many times what reading both and writing one does.
const MAX_TIMES: f64 = 3.0;
/// Its memory is at most so many times its input.
const MAX_MEMORY: f64 = 12.0;
/// A byte of a large cache takes at most so many times what one of a small cache does.
const MAX_GROWTH: f64 = 1.2;

/// A cache as a registry holds it.
struct Stored {
    manifest: String,
    config: String,
}

/// What `serde_json` reads, with nothing checked.
#[derive(Serialize, Deserialize)]
struct PlainManifest {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType")]
    media_type: String,
    config: PlainDescriptor,
    layers: Vec<PlainDescriptor>,
}

#[derive(Serialize, Deserialize)]
struct PlainDescriptor {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct PlainConfig {
    layers: Vec<PlainLayer>,
    records: Vec<PlainRecord>,
}

#[derive(Serialize, Deserialize)]
struct PlainLayer {
    blob: String,
    #[serde(default)]
    parent: i64,
}

#[derive(Serialize, Deserialize)]
struct PlainRecord {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<PlainResult>,
    digest: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Vec<PlainInput>>,
}

#[derive(Serialize, Deserialize)]
struct PlainResult {
    layer: i64,
    #[serde(rename = "createdAt")]
    created_at: String,
}

#[derive(Serialize, Deserialize)]
struct PlainInput {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    selector: String,
    link: i64,
}

/// An export of stages of steps as BuildKit writes it; half of its stages are those of every other export.
fn stored(export: usize, size: usize) -> Stored {
    const STEPS: usize = 5;
    let (mut layers, mut records, mut descriptors): (Vec<String>, Vec<String>, Vec<String>) =
        Default::default();
    let mut bytes = 0;
    for stage in 0.. {
        if bytes > size {
            break;
        }
        let digest = |what: &str, step: usize| {
            let export = if stage % 2 == 0 { 0 } else { export };
            Digest::of(format!("{what} {export} {stage} {step}").as_bytes())
        };
        for step in 0..STEPS {
            let layer = layers.len();
            let parent = if step == 0 { -1 } else { i64::try_from(layer).unwrap() - 1 };
            layers.push(format!(r#"{{"blob":"{}","parent":{parent}}}"#, digest("blob", step)));
            let time =
                format!("2026-11-21T09:{:02}:{:02}.{:09}Z", stage % 60, step, stage * 31_337 % 1_000_000_000);
            descriptors.push(format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{}","size":{},"annotations":{{"buildkit/createdat":"{time}","containerd.io/uncompressed":"{}"}}}}"#,
                digest("blob", step), 1000 + layer, digest("diff", step)
            ));
            // A step is known by what it is made from, and by its content.
            let key = records.len();
            records.push(format!(r#"{{"digest":"{}"}}"#, digest("content", step)));
            let mut inputs = String::new();
            if step > 0 {
                write!(
                    inputs,
                    r#"[{{"link":{}}},{{"selector":"{}","link":{}}}],"#,
                    key - 1,
                    digest("selector", step),
                    key - 2
                )
                .unwrap();
            }
            records.push(format!(
                r#"{{"layers":[{{"layer":{layer},"createdAt":"{time}"}}],"digest":"{}","inputs":[{inputs}[{{"link":{key}}}]]}}"#,
                digest("step", step)
            ));
            bytes += layers[layer].len() + records[key].len() + records[key + 1].len() + 3;
        }
    }
    let config = format!(r#"{{"layers":[{}],"records":[{}]}}"#, layers.join(","), records.join(","));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_MEDIA_TYPE}","config":{{"mediaType":"{CONFIG_MEDIA_TYPE}","digest":"{}","size":{}}},"layers":[{}]}}"#,
        Digest::of(config.as_bytes()),
        config.len(),
        descriptors.join(",")
    );
    // As BuildKit writes it: sorted.
    let cache = parse(&Stored { manifest, config });
    let canonical = cache.serialise(BTreeMap::new());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Stored { manifest: text(canonical.manifest), config: text(canonical.config) }
}

fn parse(stored: &Stored) -> Cache {
    match classify_within(stored.manifest.as_bytes(), usize::MAX) {
        Kind::Cache(manifest) => {
            Cache::parse_within(&manifest, stored.config.as_bytes(), usize::MAX).unwrap()
        }
        Kind::Other { why } => panic!("{why}"),
    }
}

fn merge(two: &[Stored; 2]) -> usize {
    let [a, b] = two.each_ref().map(parse);
    let merged = Cache::merge([&a, &b]).serialise(BTreeMap::new());
    black_box(&merged).config.len()
}

fn plain(two: &[Stored; 2]) -> usize {
    let [(manifest, config), _other] = two.each_ref().map(|stored| {
        let manifest: PlainManifest = serde_json::from_str(&stored.manifest).unwrap();
        let config: PlainConfig = serde_json::from_str(&stored.config).unwrap();
        black_box((manifest, config))
    });
    black_box((serde_json::to_vec(&manifest).unwrap(), serde_json::to_vec(&config).unwrap())).1.len()
}

fn timed<T>(what: impl FnOnce() -> T) -> Duration {
    let start = cpu_time();
    black_box(what());
    cpu_time().saturating_sub(start)
}

/// How long this thread has had a processor: waiting for one would say what else the machine does.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap()
}

/// The shortest times, taken in turns so that what else the machine does meets both alike.
fn shortest(ours: impl Fn() -> usize, theirs: impl Fn() -> usize) -> (f64, f64) {
    let rounds = (0..ROUNDS).map(|_| (timed(&ours), timed(&theirs)));
    let (a, b) = rounds.reduce(|best, next| (best.0.min(next.0), best.1.min(next.1))).unwrap();
    (a.as_secs_f64() * 1e3, b.as_secs_f64() * 1e3)
}

fn input_bytes(two: &[Stored; 2]) -> usize {
    two.iter().map(|stored| stored.manifest.len() + stored.config.len()).sum()
}

/// Most memory that this process has had, in bytes.
fn peak_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib * 1024)
}

/// A process of its own, so that nothing measured before counts. Reads its input from files, and answers how far its
/// peak rose.
fn memory_of_a_merge(two: &[Stored; 2]) -> usize {
    let dir = std::env::temp_dir().join(format!("stoker-merge-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (name, stored) in ["a", "b"].iter().zip(two) {
        std::fs::write(dir.join(format!("{name}.manifest")), &stored.manifest).unwrap();
        std::fs::write(dir.join(format!("{name}.config")), &stored.config).unwrap();
    }
    let output =
        Command::new(std::env::current_exe().unwrap()).env("STOKER_MERGE_DIR", &dir).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().expect("bytes")
}

fn child(dir: &std::path::Path) {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let two = ["a", "b"].map(|name| Stored {
        manifest: read(&format!("{name}.manifest")),
        config: read(&format!("{name}.config")),
    });
    let before = peak_memory().unwrap_or_default();
    merge(&two);
    println!("{}", peak_memory().unwrap_or_default() - before);
}

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os("STOKER_MERGE_DIR") {
        child(dir.as_ref());
        return ExitCode::SUCCESS;
    }
    let two = [stored(1, SIZE), stored(2, SIZE)];
    let [a, b] = two.each_ref().map(parse);
    println!(
        "{} records, {} layers, config {} KiB, manifest {} KiB each",
        a.records(),
        a.layers(),
        two[0].config.len() / 1024,
        two[0].manifest.len() / 1024
    );
    let ms = |what: &dyn Fn()| (0..ROUNDS).map(|_| timed(what)).min().unwrap().as_secs_f64() * 1e3;
    let merged = Cache::merge([&a, &b]);
    println!(
        "parse {:.1} ms, merge {:.1} ms, serialise {:.1} ms, prune {:.1} ms",
        ms(&|| _ = black_box(parse(&two[0]))),
        ms(&|| _ = black_box(Cache::merge([&a, &b]))),
        ms(&|| _ = black_box(merged.serialise(BTreeMap::new()))),
        ms(&|| _ = black_box(merged.prune(&Limits::default())))
    );

    let mut within = true;
    let mut bound = |what: &str, figure: f64, most: f64| {
        within &= figure <= most;
        println!("{}: {what}: {figure:.2}, at most {most:.2}", if figure <= most { "ok" } else { "BROKEN" });
    };
    let (ours, theirs) = shortest(|| merge(&two), || plain(&two));
    println!(
        "two parsed, merged and written: {ours:.1} ms; serde_json alone, reading two and writing one: {theirs:.1} ms"
    );
    bound("times serde_json", ours / theirs, MAX_TIMES);
    bound("memory per byte of input", memory_of_a_merge(&two) as f64 / input_bytes(&two) as f64, MAX_MEMORY);
    let large = [stored(1, LARGE), stored(2, LARGE)];
    let (large_ms, large_plain_ms) = shortest(|| merge(&large), || plain(&large));
    println!("of 4 MiB each: {large_ms:.1} ms; serde_json alone: {large_plain_ms:.1} ms");
    let growth = |large_ms, ms| large_ms / input_bytes(&large) as f64 / (ms / input_bytes(&two) as f64);
    println!(
        "serde_json alone: time per byte at 4 MiB, to that at 900 KiB: {:.2}",
        growth(large_plain_ms, theirs)
    );
    bound("time per byte at 4 MiB, to that at 900 KiB", growth(large_ms, ours), MAX_GROWTH);
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
