//! Lives by chance, each lived twice: once calmly, and once while calls fail in every way, functions are killed between any
//! two calls, and events are lost, doubled and shuffled. A night later both are in the same state.
//!
//! `STOKER_CHAOS` says how many, `STOKER_SEED` the first.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{ISOLATED, POLICY, Weather, World};
use scenarios::rng::Dice;
use stoker_core::error::Failure;
use stoker_core::names::Commit;
use stoker_core::ports::BuildStatus;

/// How many lives are lived unless said.
const LIVES: u64 = 150;
/// As often as what waits is looked at before a life goes on.
const PATIENCE: usize = 40;
const FAULTS: [Fault; 8] = [
    Fault::Before(Failure::Throttled),
    Fault::Before(Failure::Unavailable),
    Fault::After(Failure::Unavailable),
    Fault::After(Failure::Throttled),
    Fault::KilledBefore,
    Fault::KilledAfter,
    Fault::Partial,
    Fault::Stale,
];

/// What people do.
#[derive(Debug, Clone)]
enum Step {
    Push { branch: u64, versions: [u32; 4] },
    Merge { branch: u64 },
    Delete { branch: u64 },
    Wait { hours: i64 },
    Night,
}

/// What people do in the life of a seed.
fn steps(dice: &mut Dice) -> Vec<Step> {
    let mut versions = 1;
    let mut main = [1; 4];
    let mut branches: BTreeMap<u64, [u32; 4]> = BTreeMap::new();
    let mut steps = Vec::new();
    let mut hours = 0;
    for _ in 0..4 + dice.below(7) {
        let branch = dice.below(3);
        let step = match (dice.below(8), branches.get(&branch).copied()) {
            (0..=3, of_branch) => {
                versions += 1;
                let mut source = of_branch.unwrap_or(main);
                source[dice.index(4)] = versions;
                branches.insert(branch, source);
                Step::Push { branch, versions: source }
            }
            (4 | 5, Some(source)) => {
                main = source;
                Step::Merge { branch }
            }
            (6, Some(_)) => {
                branches.remove(&branch);
                Step::Delete { branch }
            }
            (7, _) => Step::Night,
            _ => Step::Wait { hours: 1 + dice.below(12).cast_signed() },
        };
        hours = match &step {
            Step::Wait { hours: more } => hours + more,
            Step::Night => 0,
            _ => hours,
        };
        steps.push(step);
        if hours > 20 {
            // No day is without its night.
            steps.push(Step::Night);
            hours = 0;
        }
    }
    steps
}

/// How a life ended, leaving aside when things happened and how often a build was made.
#[derive(Debug, PartialEq, Eq)]
struct End {
    /// Which steps of its head each line holds, but for lines of branches that are gone.
    lines: BTreeMap<String, Vec<String>>,
    /// The commits whose caches are kept, with the same exception.
    commits: BTreeSet<String>,
    /// What was built: lines and commits.
    built: BTreeSet<String>,
    /// What is still under way, and what was given up.
    open: (usize, (usize, usize), usize, Vec<String>),
}

fn end(world: &World, heads: &Heads, gone: &BTreeSet<String>) -> End {
    let is_left = |tag: &String| !gone.iter().any(|gone| tag.ends_with(gone));
    let lines = world.lines().into_keys().filter(is_left).map(|tag| {
        let name = tag.strip_prefix("app.").expect("a line of the project").replacen("branch.", "branch/", 1);
        let (_, versions) = heads[name.trim_start_matches("branch/")];
        let held = world.holds(&name, versions);
        (name, held)
    });
    let commits = world.account.tags(&world.repository()).into_keys().filter(is_left);
    let builds = world.account.builds.borrow();
    let ended = builds.iter().filter(|build| build.status == BuildStatus::Succeeded);
    let handed = ended.filter_map(|build| build.handed.clone());
    // A night builds main without a push where it has lost its cache, or what a merge brought.
    let handed = handed.filter(|handed| handed.commit.is_some());
    End {
        lines: lines.collect(),
        commits: commits.filter(|tag| tag.contains(".commit.")).collect(),
        built: handed.map(|handed| format!("{} at {:?}", handed.line, handed.commit)).collect(),
        open: (world.queued().0, world.waiting(), world.running().len(), world.dead.clone()),
    }
}

/// The heads of branches, and their sources.
type Heads = BTreeMap<String, (Commit, [u32; 4])>;

/// Time goes by until nothing is under way but what waits for leases.
async fn quiet(world: &mut World) {
    for _ in 0..PATIENCE {
        world.build().await;
        if world.queued().0 == 0 && world.waiting() == (0, 0) && world.running().is_empty() {
            return;
        }
        world.wait(SignedDuration::from_mins(3));
    }
}

async fn take(world: &mut World, heads: &mut Heads, gone: &mut BTreeSet<String>, step: &Step) {
    let name = |branch: &u64| format!("b{branch}");
    match step {
        Step::Push { branch, versions } => {
            let head = world.commit(*versions);
            world.push(&name(branch), &[&head]).await;
            gone.remove(&format!(".branch.{}", name(branch)));
            heads.insert(name(branch), (head, *versions));
        }
        Step::Merge { branch } => {
            let (head, versions) = heads[&name(branch)].clone();
            let merge = world.commit(versions);
            world.pull_request("merged", &name(branch), &head, Some(&merge)).await;
            world.push("main", &[&head, &merge]).await;
            heads.insert("main".to_owned(), (merge, versions));
        }
        Step::Delete { branch } => {
            world.delete_branch(&name(branch)).await;
            // The sweep may bring it back for a time, as its builds are not forgotten.
            gone.insert(format!(".branch.{}", name(branch)));
            let builds = world.account.builds.borrow();
            let handed = builds.iter().filter_map(|build| build.handed.as_ref());
            let of_branch =
                handed.filter(|handed| handed.line.to_string() == format!("branch/{}", name(branch)));
            gone.extend(of_branch.filter_map(|handed| Some(format!(".commit.{}", handed.commit.as_ref()?))));
        }
        Step::Wait { hours } => world.wait(SignedDuration::from_hours(*hours)),
        Step::Night => world.night().await,
    }
}

/// Lives a life with these faults, by the number of the call; answers how it ended, and how many calls it took.
async fn life(seed: u64, faults: Option<&BTreeMap<usize, Fault>>) -> (End, usize) {
    let mut dice = Dice(seed);
    let mut world = World::with_policy(if dice.below(2) == 0 { POLICY } else { ISOLATED });
    let steps = steps(&mut dice);
    if let Some(faults) = faults {
        world.account.remembers.set(true);
        world.account.faults.borrow_mut().extend(faults);
        world.weather = Some(Weather { dice, doubles: 4, loses: 5 });
    }
    let (mut heads, mut gone) = (Heads::new(), BTreeSet::new());
    let base = world.commit([1; 4]);
    heads.insert("main".to_owned(), (base.clone(), [1; 4]));
    world.push("main", &[&base]).await;
    quiet(&mut world).await;
    for step in &steps {
        world.wait(SignedDuration::from_mins(10));
        take(&mut world, &mut heads, &mut gone, step).await;
        quiet(&mut world).await;
    }
    let calls = world.account.calls.borrow().len();
    // The weather clears up, and a night comes.
    world.account.faults.borrow_mut().clear();
    world.weather = None;
    world.wait(SignedDuration::from_hours(1));
    quiet(&mut world).await;
    for _ in 0..2 {
        // The first sweeps; what it found is a day old and goes, as all does that nothing needs, in the second.
        world.night().await;
        quiet(&mut world).await;
        world.wait(SignedDuration::from_hours(26));
    }
    world.night().await;
    quiet(&mut world).await;
    (end(&world, &heads, &gone), calls)
}

/// Whether a seed's life ends as it does when nothing goes wrong.
async fn survives(seed: u64) -> Result<(), String> {
    let (calm, calls) = life(seed, None).await;
    let mut dice = Dice(!seed);
    // So far apart that no message fails as often as it takes to be given up.
    let places = (0..calls).step_by(24);
    let faults = places.filter_map(|place| {
        let fault = FAULTS[dice.index(FAULTS.len())];
        Some((place + dice.index(12), fault)).filter(|_| dice.below(3) > 0)
    });
    let faults = faults.collect();
    let (stormy, _) = life(seed, Some(&faults)).await;
    if stormy == calm {
        return Ok(());
    }
    let steps = {
        let mut dice = Dice(seed);
        dice.below(2);
        steps(&mut dice)
    };
    let mut how = vec![format!("STOKER_SEED={seed} STOKER_CHAOS=1"), format!("{steps:?}\n{faults:?}")];
    let differ = |what: &str, stormy: &dyn std::fmt::Debug, calm: &dyn std::fmt::Debug| {
        let (stormy, calm) = (format!("{stormy:?}"), format!("{calm:?}"));
        (stormy != calm).then(|| format!("  {what}: {stormy}\n  rather than {calm}"))
    };
    how.extend(differ("lines", &stormy.lines, &calm.lines));
    how.extend(differ("commits", &stormy.commits, &calm.commits));
    how.extend(differ("built", &stormy.built, &calm.built));
    how.extend(differ("open", &stormy.open, &calm.open));
    Err(how.join("\n"))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

#[tokio::test(start_paused = true)]
async fn chaos_ends_as_a_calm_life_does() {
    let first = number("STOKER_SEED").unwrap_or_default();
    let lives = number("STOKER_CHAOS").unwrap_or(LIVES);
    let mut failed = Vec::new();
    for seed in first..first + lives {
        if let Err(how) = survives(seed).await {
            failed.push(how);
        }
    }
    assert!(failed.is_empty(), "{} of {lives} lives end otherwise:\n{}", failed.len(), failed.join("\n\n"));
}
