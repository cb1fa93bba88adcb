//! Lives by chance, each lived twice: once calmly, and once while calls fail in every way, functions are
//! killed between any two calls, and events are lost, doubled and shuffled. A night later both are in the
//! same state.
//!
//! `STOKER_CHAOS` says how many, `STOKER_SEED` the first.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use jiff::SignedDuration;
use scenarios::account::Fault;
use scenarios::environment::{FaultPlan, ISOLATED, POLICY, TestEnvironment};
use stoker_core::error::Failure;
use stoker_core::names::Commit;
use stoker_core::ports::BuildStatus;

/// How many runs there are unless said.
const RUNS: u64 = 150;
/// As often as what waits is looked at before a run goes on.
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

/// What people do in the run of a seed.
fn steps(rng: &mut Rng) -> Vec<Step> {
    let mut versions = 1;
    let mut main = [1; 4];
    let mut branches: BTreeMap<u64, [u32; 4]> = BTreeMap::new();
    let mut steps = Vec::new();
    let mut hours = 0;
    for _ in 0..4 + rng.u64(..7) {
        let branch = rng.u64(..3);
        let step = match (rng.u64(..8), branches.get(&branch).copied()) {
            (0..=3, of_branch) => {
                versions += 1;
                let mut source = of_branch.unwrap_or(main);
                source[rng.usize(..4)] = versions;
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
            _ => Step::Wait { hours: 1 + rng.u64(..12).cast_signed() },
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

/// How a run ended, leaving aside when things happened and how often a build was made.
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

fn end(env: &TestEnvironment, heads: &Heads, deleted: &BTreeSet<String>) -> End {
    let is_left = |tag: &String| !deleted.iter().any(|gone| tag.ends_with(gone));
    let lines = env.lines().into_keys().filter(is_left).map(|tag| {
        let name = tag.strip_prefix("app.").expect("a line of the project").replacen("branch.", "branch/", 1);
        let (_, versions) = heads[name.trim_start_matches("branch/")];
        let held = env.holds(&name, versions);
        (name, held)
    });
    let commits = env.account.tags(&env.repository()).into_keys().filter(is_left);
    let builds = env.account.builds.borrow();
    let ended = builds.iter().filter(|build| build.status == BuildStatus::Succeeded);
    let inputs = ended.filter_map(|build| build.inputs.clone());
    // A night builds main without a push where it has lost its cache, or what a merge brought.
    let inputs = inputs.filter(|inputs| inputs.commit.is_some());
    End {
        lines: lines.collect(),
        commits: commits.filter(|tag| tag.contains(".commit.")).collect(),
        built: inputs.map(|inputs| format!("{} at {:?}", inputs.line, inputs.commit)).collect(),
        open: (env.queued().0, env.waiting(), env.running().len(), env.dead.clone()),
    }
}

/// The heads of branches, and their sources.
type Heads = BTreeMap<String, (Commit, [u32; 4])>;

/// Time goes by until nothing is under way but what waits for leases.
async fn quiet(env: &mut TestEnvironment) {
    for _ in 0..PATIENCE {
        env.build().await;
        if env.queued().0 == 0 && env.waiting() == (0, 0) && env.running().is_empty() {
            return;
        }
        env.wait(SignedDuration::from_mins(3));
    }
}

async fn take(env: &mut TestEnvironment, heads: &mut Heads, deleted: &mut BTreeSet<String>, step: &Step) {
    let name = |branch: &u64| format!("b{branch}");
    match step {
        Step::Push { branch, versions } => {
            let head = env.commit(*versions);
            env.push(&name(branch), &[&head]).await;
            deleted.remove(&format!(".branch.{}", name(branch)));
            heads.insert(name(branch), (head, *versions));
        }
        Step::Merge { branch } => {
            let (head, versions) = heads[&name(branch)].clone();
            let merge = env.commit(versions);
            env.pull_request("merged", &name(branch), &head, Some(&merge)).await;
            env.push("main", &[&head, &merge]).await;
            heads.insert("main".to_owned(), (merge, versions));
        }
        Step::Delete { branch } => {
            env.delete_branch(&name(branch)).await;
            // The reconciliation may bring it back for a time, as its builds are not forgotten.
            deleted.insert(format!(".branch.{}", name(branch)));
            let builds = env.account.builds.borrow();
            let inputs = builds.iter().filter_map(|build| build.inputs.as_ref());
            let of_branch =
                inputs.filter(|inputs| inputs.line.to_string() == format!("branch/{}", name(branch)));
            deleted
                .extend(of_branch.filter_map(|inputs| Some(format!(".commit.{}", inputs.commit.as_ref()?))));
        }
        Step::Wait { hours } => env.wait(SignedDuration::from_hours(*hours)),
        Step::Night => env.night().await,
    }
}

/// Plays a run with these faults, by the number of the call; answers how it ended, and how many calls it took.
async fn run(seed: u64, faults: Option<&BTreeMap<usize, Fault>>) -> (End, usize) {
    let mut rng = Rng::with_seed(seed);
    let mut env = TestEnvironment::with_policy(if rng.u64(..2) == 0 { POLICY } else { ISOLATED });
    let steps = steps(&mut rng);
    if let Some(faults) = faults {
        env.account.remembers.set(true);
        env.account.faults.borrow_mut().extend(faults);
        env.fault_plan = Some(FaultPlan { rng, doubles: 4, loses: 5 });
    }
    let (mut heads, mut gone) = (Heads::new(), BTreeSet::new());
    let base = env.commit([1; 4]);
    heads.insert("main".to_owned(), (base.clone(), [1; 4]));
    env.push("main", &[&base]).await;
    quiet(&mut env).await;
    for step in &steps {
        env.wait(SignedDuration::from_mins(10));
        take(&mut env, &mut heads, &mut gone, step).await;
        quiet(&mut env).await;
    }
    let calls = env.account.calls.borrow().len();
    // The faults end, and a night comes.
    env.account.faults.borrow_mut().clear();
    env.fault_plan = None;
    env.wait(SignedDuration::from_hours(1));
    quiet(&mut env).await;
    for _ in 0..2 {
        // The first reconciles; what it found is a day old and goes, as all does that nothing needs, in the second.
        env.night().await;
        quiet(&mut env).await;
        env.wait(SignedDuration::from_hours(26));
    }
    env.night().await;
    quiet(&mut env).await;
    (end(&env, &heads, &gone), calls)
}

/// Whether a seed's run ends as it does when nothing goes wrong.
async fn survives(seed: u64) -> Result<(), String> {
    let (baseline, calls) = run(seed, None).await;
    let mut rng = Rng::with_seed(!seed);
    // So far apart that no message fails as often as it takes to be given up.
    let places = (0..calls).step_by(24);
    let faults = places.filter_map(|place| {
        let fault = FAULTS[rng.usize(..FAULTS.len())];
        Some((place + rng.usize(..12), fault)).filter(|_| rng.u64(..3) > 0)
    });
    let faults = faults.collect();
    let (with_faults, _) = run(seed, Some(&faults)).await;
    if with_faults == baseline {
        return Ok(());
    }
    let steps = {
        let mut rng = Rng::with_seed(seed);
        rng.u64(..2);
        steps(&mut rng)
    };
    let mut how = vec![format!("STOKER_SEED={seed} STOKER_CHAOS=1"), format!("{steps:?}\n{faults:?}")];
    let differ = |what: &str, with_faults: &dyn std::fmt::Debug, baseline: &dyn std::fmt::Debug| {
        let (with_faults, baseline) = (format!("{with_faults:?}"), format!("{baseline:?}"));
        (with_faults != baseline).then(|| format!("  {what}: {with_faults}\n  rather than {baseline}"))
    };
    how.extend(differ("lines", &with_faults.lines, &baseline.lines));
    how.extend(differ("commits", &with_faults.commits, &baseline.commits));
    how.extend(differ("built", &with_faults.built, &baseline.built));
    how.extend(differ("open", &with_faults.open, &baseline.open));
    Err(how.join("\n"))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

#[tokio::test(start_paused = true)]
async fn chaos_ends_as_the_baseline_does() {
    let first = number("STOKER_SEED").unwrap_or_default();
    let runs = number("STOKER_CHAOS").unwrap_or(RUNS);
    let mut failed = Vec::new();
    for seed in first..first + runs {
        if let Err(how) = survives(seed).await {
            failed.push(how);
        }
    }
    assert!(failed.is_empty(), "{} of {runs} runs end otherwise:\n{}", failed.len(), failed.join("\n\n"));
}
