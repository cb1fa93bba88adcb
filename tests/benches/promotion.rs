//! What promotions cost: the requests of one, of ten at once, and a queue full of them at the pace of ECR.
//!
//! `cargo bench -p scenarios --bench promotion` counts calls on the account in memory, so that its figures
//! are the same on any machine, and fails when one is out of bounds.
#![expect(clippy::print_stdout, clippy::unwrap_used, clippy::panic, reason = "a measurement")]

use std::collections::BTreeMap;
use std::process::ExitCode;

use buildkit_cache::{CONFIG_MEDIA_TYPE, Cache, Kind, MANIFEST_MEDIA_TYPE, classify};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use scenarios::environment::{ISOLATED, Source, TestEnvironment, exported};
use serde_json::json;
use stoker_core::names::{Commit, Digest, Line, ProjectName, Scope, Tag};
use stoker_core::policy::Policy;
use stoker_core::ports::BuildStatus;
use stoker_core::promote::{Outcome, PromotionTrigger, promote};
use stoker_core::provenance::{Built, Provenance};

/// Size of a large export's config: a line may have 900 KiB, of which Stoker's notes of use and the record
/// that joins the leaves need some. What does not fit into the line would have to be mounted again with each
/// build.
const SIZE: usize = 890 * 1024;
/// A promotion asks this much of the registry, whatever else there is.
const MAX_REQUESTS: usize = 10;

const MERGES: u32 = 1000;
const LINES: u32 = 100;
/// How many messages the queue gives at once: `BatchSize` in `template.yaml`.
const BATCH: usize = 10;
/// ECR's quota of `PutImage` in a second.
const PUTS_PER_SECOND: usize = 10;
/// A batch takes no less, in milliseconds.
const BATCH_TAKES: u64 = 300;
/// For how long the registry's client tries a put that is throttled, in milliseconds: six times again, after
/// pauses that grow from 150 to 3,000.
const PATIENCE: u64 = 150 + 450 + 1350 + 3 * 3000;

/// A cache's manifest, and its blobs.
type Export = (Bytes, Vec<Bytes>);
/// How often each operation was called.
type Calls = BTreeMap<&'static str, usize>;

/// An export of steps as BuildKit writes it, five in a stage.
fn large(steps: usize) -> Export {
    let (mut layers, mut records, mut descriptors, mut blobs) = (vec![], vec![], vec![], vec![]);
    for step in 0..steps {
        let digest = |what: &str| Digest::of(format!("{what} {step}").as_bytes());
        let blob = Bytes::from(format!("blob {step}"));
        let time = format!("2026-11-20T09:{:02}:{:02}.{:09}Z", step / 60 % 60, step % 60, step * 31_337);
        // A step is known by what it is made from, and by its content.
        let (key, first) = (records.len(), step % 5 == 0);
        let mut inputs = vec![json!([{ "link": key }])];
        if !first {
            inputs.push(json!([{ "link": key - 1 }, { "selector": digest("selector"), "link": key - 2 }]));
        }
        layers.push(
            json!({ "blob": Digest::of(&blob), "parent": if first { json!(-1) } else { json!(step - 1) } }),
        );
        records.push(json!({ "digest": digest("content") }));
        records.push(json!({ "digest": digest("step"), "inputs": inputs, "layers": [{ "layer": step,
            "createdAt": time }] }));
        descriptors.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::of(&blob), "size": blob.len(),
            "annotations": { "buildkit/createdat": time, "containerd.io/uncompressed": digest("diff") },
        }));
        blobs.push(blob);
    }
    let config = Bytes::from(json!({ "layers": layers, "records": records }).to_string());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "layers": descriptors,
        "config": { "mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&config), "size": config.len() },
    });
    blobs.push(config);
    (Bytes::from(manifest.to_string()), blobs)
}

fn small(version: u32, now: Timestamp) -> Export {
    exported(&Source { versions: [version; 4] }, |_| now)
}

/// The calls since the last time that somebody asked.
fn calls(env: &TestEnvironment) -> Calls {
    let mut calls = Calls::new();
    env.account.calls.take().into_iter().for_each(|call| *calls.entry(call).or_default() += 1);
    calls
}

/// How many of them go to the registry.
fn requests(calls: &Calls) -> usize {
    calls.iter().filter(|(name, _)| !name.starts_with("codebuild:")).map(|(_, times)| times).sum()
}

fn env() -> TestEnvironment {
    let mut env = TestEnvironment::with_policy(ISOLATED);
    // A build's end is promoted by `build` below.
    env.loses_aws_events = true;
    env
}

/// A push to a branch whose build ends with this export, and what its promotion calls.
async fn build(env: &mut TestEnvironment, branch: &str, export: Export) -> (Commit, Calls) {
    let commit = env.commit([0; 4]);
    env.push(branch, &[&commit]).await;
    env.settle().await;
    let build = env.running().pop().unwrap();
    let tag = build.inputs.clone().unwrap().exports.remove(0);
    env.push_cache(&tag, export.0, export.1);
    env.wait(SignedDuration::from_mins(10));
    env.end(&build.id, BuildStatus::Succeeded, &commit);
    calls(env);
    let policy = Policy::parse("the scenarios' policy", ISOLATED).unwrap();
    let trigger = PromotionTrigger::Built { build: build.id };
    let triggers = [trigger];
    let promoted = promote(&env.account, &policy, &triggers, env.account.now());
    let answer = env.account.invoke("promote-cache", None, promoted).await.unwrap().remove(0).unwrap();
    assert!(matches!(answer[..], [Outcome::Updated { .. }]), "{answer:?}");
    (commit, calls(env))
}

/// A branch's second build, with one layer more than its first, and its merge into main: what each calls,
/// beside so many other lines. And how many layers of the first build its line has let go.
async fn one(others: u32) -> ([Calls; 2], usize) {
    let mut env = env();
    for other in 0..others {
        let (manifest, blobs) = small(other + 1, env.account.now());
        let tag = format!("app.branch.other-{other}");
        env.account.push(&env.repository(), &tag, MANIFEST_MEDIA_TYPE, manifest, blobs);
    }
    let steps = SIZE * 2000 / large(2000).1[2000].len();
    for branch in ["main", "feature"] {
        build(&mut env, branch, large(steps)).await;
    }
    let gone = steps - env.line("branch/feature").unwrap().1.blobs().len();
    let (commit, built) = build(&mut env, "feature", large(steps + 1)).await;
    let merge = env.commit([0; 4]);
    env.pull_request("merged", "feature", &commit, Some(&merge)).await;
    calls(&env);
    env.settle_promotions().await;
    ([built, calls(&env)], gone)
}

/// Ten merges into main that wait in the queue at the same time.
async fn ten() -> Calls {
    let mut env = env();
    let now = env.account.now();
    build(&mut env, "main", small(0, now)).await;
    let mut commits = Vec::new();
    for version in 1..=10 {
        let branch = format!("feature-{version}");
        commits.push((build(&mut env, &branch, small(version, now)).await.0, branch));
    }
    for (commit, branch) in &commits {
        env.pull_request("merged", branch, commit, None).await;
    }
    calls(&env);
    env.settle_promotions().await;
    calls(&env)
}

/// What became of a full queue; times are in milliseconds.
struct Emptied {
    /// When each put went through.
    puts: Vec<u64>,
    /// How long each waited for that.
    waits: Vec<u64>,
    /// When each batch ended.
    batches: Vec<u64>,
    /// Lines that hold all that was merged into them.
    whole: usize,
}

/// Many merges into many lines, all at once, in the order of this key.
async fn many<K: Ord>(order: impl Fn(u32) -> K) -> Emptied {
    let mut env = env();
    let (start, repository) = (env.account.now(), env.repository());
    let project = ProjectName::new("app").unwrap();
    let scope = Scope::of(&project);
    let push =
        |env: &TestEnvironment, tag: &Tag, line: &Line, commit: &Commit, (bytes, blobs): Export| -> Cache {
            let built = Built { at: start, commit: commit.clone(), build: format!("app:{commit}") };
            let provenance =
                Provenance { built: Some(built), project: Some(project.clone()), ..Provenance::default() };
            let Kind::Cache(manifest) = classify(&bytes) else { panic!("no cache") };
            let cache = Cache::parse(&manifest, &blobs[0]).unwrap();
            let annotated = Bytes::from(manifest.annotated(provenance.annotations(line)));
            env.account.push(&repository, tag.as_str(), MANIFEST_MEDIA_TYPE, annotated, blobs);
            cache
        };
    let release = |number: u32| Line::parse(&format!("branch/release-{number}")).unwrap();
    let base = env.commit([0; 4]);
    for line in (0..LINES).map(release) {
        push(&env, &Tag::line(&scope, &line), &line, &base, small(0, start));
    }
    let mut merges = Vec::new();
    for merge in 0..MERGES {
        let commit = env.commit([0; 4]);
        let line = Line::parse(&format!("branch/work-{merge}")).unwrap();
        let cache = push(&env, &Tag::commit(&scope, &commit), &line, &commit, small(merge + 1, start));
        merges.push((merge, commit, cache));
    }
    merges.sort_by_cached_key(|(merge, ..)| order(*merge));

    let (mut puts, mut waits, mut batches) = (Vec::<u64>::new(), Vec::new(), Vec::new());
    let mut now = 0;
    for batch in merges.chunks(BATCH) {
        env.account.set_now(start + SignedDuration::from_millis(i64::try_from(now).unwrap()));
        for (merge, commit, _) in batch {
            let base = format!("release-{}", merge % LINES);
            env.pull_request_to(&base, "example/app", "merged", &format!("work-{merge}"), commit, None).await;
        }
        calls(&env);
        env.settle_promotions().await;
        let asked = calls(&env).get("registry:PutManifest").copied().unwrap_or_default();
        // Lines move at the same time: of each the history first, and the line after that.
        for put in 0..asked {
            let wanted = if put < asked / 2 { now } else { puts[puts.len() - asked / 2] };
            // A token of the bucket comes back a second after it was taken.
            let free = puts.len().checked_sub(PUTS_PER_SECOND).map_or(0, |before| puts[before] + 1000);
            puts.push(free.max(wanted));
            waits.push(free.saturating_sub(wanted));
        }
        now = puts.last().copied().unwrap_or_default().max(now + BATCH_TAKES);
        batches.push(now);
    }
    let is_whole = |line: &u32| {
        let (_, held) = env.line(&release(*line).to_string()).unwrap();
        merges.iter().filter(|(merge, ..)| merge % LINES == *line).all(|(.., cache)| held.contains(cache))
    };
    let whole = (0..LINES).filter(is_whole).count();
    Emptied { puts, waits, batches, whole }
}

impl Emptied {
    /// The most puts that went through in any second.
    fn fastest(&self) -> usize {
        let within =
            |(place, put): (usize, &u64)| self.puts.partition_point(|other| *other < put + 1000) - place;
        self.puts.iter().enumerate().map(within).max().unwrap_or_default()
    }

    fn print(&self, what: &str) {
        let (merges, puts, takes) = (MERGES as usize, self.puts.len(), *self.batches.last().unwrap());
        println!("\n{MERGES} merges into {LINES} lines at once, {what}:");
        for second in (0..=takes.div_ceil(1000)).step_by(10) {
            let ended = self.batches.partition_point(|end| *end <= second * 1000);
            let depth = merges - ended * BATCH;
            println!("{second:>5} s {depth:>5} waiting {}", "#".repeat(depth.div_ceil(20)));
        }
        let per_merge = format!("{}.{:02}", puts / merges, puts * 100 / merges % 100);
        let seconds = format!("{}.{}", takes / 1000, takes / 100 % 10);
        let (batches, fastest) = (self.batches.len(), self.fastest());
        println!(
            "{seconds} s, {batches} batches, {puts} puts, {per_merge} a merge, at most {fastest} in a second"
        );
        let longest = self.waits.iter().max().unwrap();
        let late = self.waits.iter().filter(|wait| **wait > PATIENCE).count();
        println!(
            "Nothing in the function keeps the pace: ECR throttles and the client tries again, which is"
        );
        println!(
            "taken here for waiting. A put waits for at most {longest} ms; {late} wait for longer than the"
        );
        println!("{PATIENCE} ms in which the client gives up, and its line waits for another delivery.");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut within = true;
    let mut bound = |is_kept: bool, what: String| {
        within &= is_kept;
        println!("{}: {what}", if is_kept { "ok" } else { "BROKEN" });
    };
    let (few, gone) = one(1).await;
    let (lots, _) = one(1000).await;
    println!("a branch's second build, with a config of {} KiB and one new layer;", SIZE / 1024);
    println!("of the first, {gone} layers did not fit into the line:");
    for (what, few, lots) in [("its build", &few[0], &lots[0]), ("its merge into main", &few[1], &lots[1])] {
        println!("{what}: {few:?}");
        let (asked, same) = (requests(few), requests(lots));
        bound(asked <= MAX_REQUESTS, format!("{what}: {asked} requests, at most {MAX_REQUESTS}"));
        bound(few == lots, format!("{what}: {asked} beside 1 other line, {same} beside 1000"));
    }
    println!();
    let ten = ten().await;
    println!("ten merges into main in one batch: {ten:?}");
    let is_one = ten.get("ecr:BatchGetImage") == Some(&1) && ten.get("registry:PutManifest") == Some(&2);
    bound(is_one, "they are one read of images, and one put of the line and of its history".to_owned());

    let shuffled = many(|merge| Digest::of(format!("seed 1, {merge}").as_bytes())).await;
    let grouped = many(|merge| (merge % LINES, merge)).await;
    for (what, emptied) in [("shuffled", &shuffled), ("line by line", &grouped)] {
        emptied.print(what);
        let fastest = emptied.fastest();
        bound(fastest <= PUTS_PER_SECOND, format!("{fastest} puts in a second, at most {PUTS_PER_SECOND}"));
        let whole = emptied.whole;
        bound(whole == LINES as usize, format!("{whole} of {LINES} lines hold all that was merged"));
    }
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
