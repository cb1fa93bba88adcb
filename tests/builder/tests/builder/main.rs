//! The cache algebra against the real `BuildKit`: what merged caches serve, what pruned ones still serve, and that a
//! build never fails because of either. Then builds beside retention: none fails because of what it takes.
//!
//! `cargo xtask test` runs it. `STOKER_SEED` and `STOKER_CASES` choose the cases; case n of a seed is the first of
//! the seed plus n. `STOKER_ROUNDS` says how long builds run beside retention.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that talks, and that ends when it meets the unexpected"
)]

mod demos;
mod engine;
mod graph;
mod registry;
mod retention;
mod story;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Context as _;

use crate::engine::Engine;
use crate::registry::Registry;
use crate::story::Figures;

/// Set by `cargo xtask test`: the programs of the registries, where they are to be had.
const MINISTACK: &str = "STOKER_TEST_MINISTACK";
const DISTRIBUTION: &str = "STOKER_TEST_DOCKER_REGISTRY";

const CASES: usize = 40;
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
    let begun = Instant::now();
    let engine = match Engine::find() {
        Ok(engine) => engine,
        Err(why) => return Ok(skipped(&format!("the cache algebra and retention on a real builder: {why}"))),
    };
    let dir = env::temp_dir().join(format!("stoker-builder-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = run_in(&dir, &engine);
    std::fs::remove_dir_all(&dir)?;
    if env::var_os(retention::INSIDE).is_none() {
        println!("   {} s", begun.elapsed().as_secs());
    }
    result
}

fn run_in(dir: &Path, engine: &Engine) -> anyhow::Result<bool> {
    let seed = number("STOKER_SEED")?.unwrap_or(SEED);
    let rounds = number("STOKER_ROUNDS")?.map_or(Ok(retention::ROUNDS), usize::try_from)?;
    if env::var_os(retention::INSIDE).is_some() {
        println!("seed {seed}, {rounds} rounds of builds beside retention");
        return retention::tell(seed, rounds, engine, dir).map(|()| true);
    }
    let good = cases(dir, engine, seed)?;
    retention::tell_outside()?;
    Ok(good)
}

/// The cache algebra, case by case.
fn cases(dir: &Path, engine: &Engine, seed: u64) -> anyhow::Result<bool> {
    let (registries, mut good) = registries(dir)?;
    if registries.is_empty() {
        return Ok(good);
    }
    let cases = number("STOKER_CASES")?.map_or(Ok(CASES), usize::try_from)?;
    let names: Vec<&str> = registries.iter().map(|registry| registry.name).collect();
    println!("seed {seed}, {cases} cases, registries: {}", names.join(", "));

    let teller = Teller {
        engine,
        registries: &registries,
        dir,
        figures: registries.iter().map(|_| Mutex::default()).collect(),
    };
    // The seed alone says which registry, so that a case comes back whole.
    let case = |number: usize| Job::Case(seed.wrapping_add(number as u64));
    let demos = registries.iter().flat_map(|registry| demos::ALL.map(|demo| Job::Demo(seed, registry, demo)));
    let jobs: Vec<Job<'_>> = (0..cases).map(case).chain(demos).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let work = || {
            let mut good = true;
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                good &= teller.tell(job);
            }
            good
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            good &= worker.join().unwrap_or(false);
        }
    });
    let mut all = Figures::default();
    for (registry, figures) in registries.iter().zip(&teller.figures) {
        let figures = figures.lock().unwrap();
        let seconds = figures.time.as_secs_f32();
        println!("  {}: {} cases, {seconds:.0} s, {AT_ONCE} at a time", registry.name, figures.cases);
        all.add(&figures);
    }
    println!("  all: {} cases, {all}", all.cases);
    Ok(good)
}

enum Job<'a> {
    Case(u64),
    Demo(u64, &'a Registry, (&'static str, demos::Demo)),
}

struct Teller<'a> {
    engine: &'a Engine,
    registries: &'a [Registry],
    dir: &'a Path,
    figures: Vec<Mutex<Figures>>,
}

impl Teller<'_> {
    /// Tells and prints one; false when it does not hold.
    fn tell(&self, job: &Job<'_>) -> bool {
        let begun = Instant::now();
        let (name, told) = match *job {
            Job::Case(seed) => {
                let place = usize::try_from(seed % self.registries.len() as u64).unwrap_or_default();
                let registry = &self.registries[place];
                let dir = self.dir.join(seed.to_string());
                let tell = || story::tell(seed, self.engine, registry, &dir);
                let told = tell().or_else(|error| {
                    if !engine::could_not_start(&error) {
                        return Err(error);
                    }
                    println!("  {seed}, {}: AGAIN, as the engine could not start a container", registry.name);
                    std::fs::remove_dir_all(&dir)?;
                    tell()
                });
                let told = told.map(|mut told| {
                    told.time = begun.elapsed();
                    self.figures[place].lock().unwrap().add(&told);
                    told.to_string()
                });
                let again =
                    |error: anyhow::Error| error.context(format!("STOKER_SEED={seed} STOKER_CASES=1"));
                (format!("{seed}, {}", registry.name), told.map_err(again))
            }
            Job::Demo(seed, registry, (what, demo)) => {
                let name = format!("{what}, {}", registry.name);
                let told = demo(
                    seed,
                    self.engine,
                    registry,
                    &self.dir.join(format!("{what}-{}", registry.name).replace(' ', "-")),
                );
                (name, told)
            }
        };
        let seconds = begun.elapsed().as_secs_f32();
        match &told {
            Ok(told) => println!("  {name}: {told} ({seconds:.1} s)"),
            Err(error) => println!("  {name}: FAILED: {error:#}"),
        }
        told.is_ok()
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
