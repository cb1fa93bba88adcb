//! The cache algebra against the real `BuildKit`: what merged caches serve, what pruned ones still serve, and that a
//! build never fails because of either. What was built from one cache is built again and again on new builders, since
//! some lose parts of a cache at random. Then builds beside retention: none fails because of what it takes.
//!
//! `cargo xtask test` runs it. `STOKER_SEED` and `STOKER_CASES` choose the cases; case n of a seed is the first of
//! the seed plus n. `STOKER_AGAIN` says how often they are built again, `STOKER_HOSTILE` how often main is
//! built after each merge of a forged cache, `STOKER_ROUNDS` how long builds run beside retention,
//! `STOKER_HISTORIES` of how many histories the steps that run are compared with those predicted,
//! `STOKER_CAUSES` of how many the misses are told causes; with `STOKER_ONLY` only what is told once runs
//! whose name holds that. `STOKER_FIXTURES` names a folder, `shared/cache-misses/tests/fixtures`, into which what this
//! engine says of a build is written, instead of all else. `STOKER_TEST_NEW_BUILDER` is a shell command that ends with an engine whose builder
//! has no state; `STOKER_TEST_ENGINE` the least version of the engine.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that talks, and that ends when it meets the unexpected"
)]

mod again;
mod demos;
mod engine;
mod fixtures;
mod graph;
mod hostile;
mod lines;
mod mounts;
mod predicted;
mod registry;
mod retention;
mod scenario;
mod versions;
mod why;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Context as _;

use crate::again::Group;
use crate::engine::Engine;
use crate::registry::Registry;
use crate::scenario::Figures;

/// Set by `cargo xtask test`: the programs of the registries, where they are to be had.
const MINISTACK: &str = "STOKER_TEST_MINISTACK";
const DISTRIBUTION: &str = "STOKER_TEST_DOCKER_REGISTRY";

const ONLY: &str = "STOKER_ONLY";
/// The folder of fixtures.
const FIXTURES: &str = "STOKER_FIXTURES";
/// The name by which `STOKER_ONLY` chooses the comparison of what ran with what was predicted.
const PREDICTED: &str = "predicted steps";
/// The name by which it chooses the causes of misses.
const CAUSES: &str = "causes of misses";

const CASES: usize = 20;
/// The cases of every run that asks for no others: what passed once must pass again. Other seeds are for exploring.
const SEED: u64 = 2000;
/// Builds wait for the registry and the engine as much as for a processor.
const AT_ONCE: usize = 2;

fn main() -> ExitCode {
    if env::var_os(MINISTACK).is_none() && env::var_os(DISTRIBUTION).is_none() {
        println!(
            "SKIPPED: the cache algebra and retention on a real builder; `cargo xtask test` runs them, with registries"
        );
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Elsewhere something may be missing; a CI that skips the heart of the matter is broken.
fn skipped(what: &str) -> bool {
    println!("SKIPPED: {what}");
    env::var_os("CI").is_none()
}

fn run() -> anyhow::Result<bool> {
    let started = Instant::now();
    let engine = match Engine::find() {
        Ok(engine) => engine,
        Err(why) => return Ok(skipped(&format!("the cache algebra and retention on a real builder: {why}"))),
    };
    let dir = env::temp_dir().join(format!("stoker-builder-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = run_in(&dir, &engine);
    std::fs::remove_dir_all(&dir)?;
    if env::var_os(retention::INSIDE).is_none() {
        println!("   {} s", started.elapsed().as_secs());
    }
    result
}

fn run_in(dir: &Path, engine: &Engine) -> anyhow::Result<bool> {
    let seed = number("STOKER_SEED")?.unwrap_or(SEED);
    let rounds = number("STOKER_ROUNDS")?.map_or(Ok(retention::ROUNDS), usize::try_from)?;
    if env::var_os(retention::INSIDE).is_some() {
        println!("seed {seed}, {rounds} rounds of builds beside retention");
        return retention::report(seed, rounds, engine, dir).map(|()| true);
    }
    let good = cases(dir, engine, seed)?;
    if env::var_os(ONLY).is_some() || env::var_os(FIXTURES).is_some() {
        return Ok(good);
    }
    retention::report_outside()?;
    Ok(good)
}

/// The cache algebra, case by case.
fn cases(dir: &Path, engine: &Engine, seed: u64) -> anyhow::Result<bool> {
    let (registries, mut good) = registries(dir)?;
    if registries.is_empty() {
        return Ok(good);
    }
    if let Some(folder) = env::var_os(FIXTURES) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
        return fixtures::write(&folder, engine, &registries[0], dir).map(|()| true);
    }
    let cases = number("STOKER_CASES")?.map_or(Ok(CASES), usize::try_from)?;
    let names: Vec<&str> = registries.iter().map(|registry| registry.name).collect();
    println!("seed {seed}, {cases} cases, {}, registries: {}", engine.versions, names.join(", "));

    let runner = Runner {
        engine,
        registries: &registries,
        dir,
        figures: registries.iter().map(|_| Mutex::default()).collect(),
        groups: Mutex::default(),
    };
    // The seed alone says which registry, so that a case comes back whole.
    let case = |number: usize| Job::Case(seed.wrapping_add(number as u64));
    let each = registries.iter().flat_map(|registry| demos::EACH.map(|demo| Job::Demo(seed, registry, demo)));
    // The longest first.
    let once = registries.iter().cycle().zip(demos::ONCE);
    let once = once.map(|(registry, demo)| Job::Demo(seed, registry, demo));
    let only = env::var(ONLY).ok();
    let jobs: Vec<Job<'_>> = match &only {
        Some(only) => once
            .filter(|job| matches!(job, Job::Demo(.., (name, _)) if name.contains(only.as_str())))
            .collect(),
        None => once.chain((0..cases).map(case)).chain(each).collect(),
    };
    let is_wanted = only.as_ref().is_none_or(|only| PREDICTED.contains(only.as_str()));
    if is_wanted {
        let histories = number("STOKER_HISTORIES")?.map_or(Ok(predicted::HISTORIES), usize::try_from)?;
        good &= predicted::compare(seed, histories, engine, &registries, dir)?;
    }
    let tells_causes = only.as_ref().is_none_or(|only| CAUSES.contains(only.as_str()));
    if tells_causes {
        let histories = number("STOKER_CAUSES")?.map_or(Ok(why::HISTORIES), usize::try_from)?;
        good &= why::compare(seed, histories, engine, &registries, dir)?;
    }
    let failed = AtomicUsize::new(0);
    side_by_side(&jobs, |job| {
        failed.fetch_add(usize::from(!runner.report(job)), Ordering::Relaxed);
    });
    good &= failed.into_inner() == 0;
    let mut all = Figures::default();
    for (registry, figures) in registries.iter().zip(&runner.figures) {
        let figures = figures.lock().unwrap();
        let seconds = figures.time.as_secs_f32();
        println!("  {}: {} cases, {seconds:.0} s, {AT_ONCE} at a time", registry.name, figures.cases);
        all.add(&figures);
    }
    println!("  all: {} cases, {all}", all.cases);
    if only.is_some() {
        return Ok(good && (is_wanted || tells_causes || !jobs.is_empty()));
    }
    let rounds = number("STOKER_AGAIN")?.map_or(Ok(again::ROUNDS), usize::try_from)?;
    good &= again::build_again(engine, &runner.groups.into_inner().unwrap(), rounds)?;
    Ok(good)
}

/// Does all of these, a few at a time.
fn side_by_side<J: Sync>(jobs: &[J], work: impl Fn(&J) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(job);
                }
            });
        }
    });
}

enum Job<'a> {
    Case(u64),
    Demo(u64, &'a Registry, (&'static str, demos::Demo)),
}

struct Runner<'a> {
    engine: &'a Engine,
    registries: &'a [Registry],
    dir: &'a Path,
    figures: Vec<Mutex<Figures>>,
    /// What is to be built again.
    groups: Mutex<Vec<Group<'a>>>,
}

impl<'a> Runner<'a> {
    /// Tells and prints one; false when it does not hold.
    fn report(&self, job: &Job<'a>) -> bool {
        let started = Instant::now();
        let (name, reported) = match *job {
            Job::Case(seed) => {
                let place = usize::try_from(seed % self.registries.len() as u64).unwrap_or_default();
                let registry = &self.registries[place];
                let dir = self.dir.join(seed.to_string());
                let run = || scenario::run(seed, self.engine, registry, &dir);
                let reported = run().or_else(|error| {
                    if !engine::could_not_start(&error) {
                        return Err(error);
                    }
                    println!("  {seed}, {}: AGAIN, as the engine could not start a container", registry.name);
                    std::fs::remove_dir_all(&dir)?;
                    run()
                });
                let reported = reported.map(|(mut reported, group)| {
                    reported.time = started.elapsed();
                    self.figures[place].lock().unwrap().add(&reported);
                    self.groups.lock().unwrap().push(group);
                    reported.to_string()
                });
                let again =
                    |error: anyhow::Error| error.context(format!("STOKER_SEED={seed} STOKER_CASES=1"));
                (format!("{seed}, {}", registry.name), reported.map_err(again))
            }
            Job::Demo(seed, registry, (what, demo)) => {
                let name = format!("{what}, {}", registry.name);
                let dir = self.dir.join(format!("{what}-{}", registry.name).replace(' ', "-"));
                let reported = demo(seed, self.engine, registry, &dir).map(|(reported, group)| {
                    self.groups.lock().unwrap().extend(group);
                    reported
                });
                (name, reported)
            }
        };
        let seconds = started.elapsed().as_secs_f32();
        match &reported {
            Ok(reported) => println!("  {name}: {reported} ({seconds:.1} s)"),
            Err(error) => println!("  {name}: FAILED: {error:#}"),
        }
        reported.is_ok()
    }
}

fn registries(dir: &Path) -> anyhow::Result<(Vec<Registry>, bool)> {
    let mut good = true;
    let mut registries = Vec::new();
    let program = |name| env::var_os(name).map(PathBuf::from).filter(|program| program.exists());
    match program(DISTRIBUTION) {
        Some(program) => registries.push(Registry::distribution(&program, &dir.join("distribution"))?),
        None => good &= skipped("the cases on docker-registry, which is not to be had here"),
    }
    match program(MINISTACK) {
        Some(program) => registries.push(Registry::ministack(&program, &dir.join("ministack"))?),
        None => good &= skipped("the cases on ministack, which is not to be had here"),
    }
    Ok((registries, good))
}

fn number(variable: &str) -> anyhow::Result<Option<u64>> {
    env::var(variable)
        .ok()
        .map(|text| text.parse().with_context(|| format!("{variable} is no number")))
        .transpose()
}
