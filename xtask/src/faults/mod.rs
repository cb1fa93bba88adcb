//! Lives by chance on the deployed stack, each lived twice: once calmly, and once in a storm, in which calls
//! of functions fail in every way, functions are killed, and events are lost, doubled and late. A night later
//! both are in the same state.
//!
//! `tests/scenarios/chaos.rs` does the same with the account in memory, thousands of times; here are the built
//! functions, the deployed template, real queues and rules, and clocks that nobody can turn. So no lease ends
//! and no branch becomes idle.

mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::aws::Aws;
use crate::demo::forge::sign;
use crate::environment::{LocalSetup, Settings};
use crate::site::{NEVER, Plan, QUEUES, Site};
use crate::{requests, stack, tools};
use run::{MAIN, Rng, Run, Step};

/// What the storm can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many lives
    #[arg(long, default_value_t = 50)]
    runs: u64,
    /// The first life's seed; each has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// After how many steps a life ends at the latest
    #[arg(long, default_value_t = 10)]
    steps: u64,
    /// Write what was found to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the reconciliation out of the night: lives have to differ then, which shows that the storm does harm
    #[arg(long)]
    without_reconcile: bool,
    /// Leave the world up at the end; `cargo xtask down` ends it
    #[arg(long)]
    keep: bool,
}

const ECR: &str = "AmazonEC2ContainerRegistry_V20150921";
const BASE_IMAGE: &str = "busybox:1.37";
/// How many builds run at a time, and how many webhooks are sent.
const AT_ONCE: usize = 4;
/// Longer than a round takes on a slow machine.
const PATIENCE: Duration = Duration::from_mins(8);
/// Nothing has happened for so long, and the registry was looked at: nothing will.
const QUIET: Duration = Duration::from_millis(800);
/// How often the registry is looked at until nothing can be new in it.
const LOOKS: u64 = 2;
/// How often somebody presses "redeliver".
const DELIVERIES: usize = 20;
/// One in so many webhooks comes twice in the storm.
const DOUBLES: u64 = 4;
/// What is tried again comes after so many seconds, and not after minutes. In the storm many lives share a
/// batch, and one that is killed costs all of them a try, so there are more tries than the template has.
const TRIES: [(&str, u64); 6] = [
    ("StartQueueUrl", 3),
    ("WarmQueueUrl", 3),
    ("PromotionQueueUrl", 1),
    ("ReconcileQueueUrl", 3),
    ("RetentionQueueUrl", 3),
    ("NightlyRetentionQueueUrl", 3),
];
const MOST_TRIES: u64 = 500;
/// Where what was given up goes.
const GIVEN_UP: [&str; 2] = ["DeadLettersUrl", "PromotionDeadLettersUrl"];

const PARAMETERS: [(&str, &str); 7] = [
    ("BuildsRepositoryPrefix", "stoker-builds"),
    ("RetentionDelaySeconds", "2"),
    // Longer than an ordinary build takes to start.
    ("WarmDelaySeconds", "5"),
    ("NightlyReconcileSchedule", NEVER),
    ("NightlyWarmSchedule", NEVER),
    ("NightlyRetentionSchedule", NEVER),
    ("NightlySlots", "1"),
];

/// How a life is lived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultPlan {
    Baseline,
    Faults,
}

impl FaultPlan {
    fn project(self, run: &Run) -> String {
        let fault_plan = match self {
            Self::Baseline => "baseline",
            Self::Faults => "faults",
        };
        format!("{fault_plan}-{}", run.seed)
    }
}

/// How a life ended, leaving aside when things happened and how often a build was made.
#[derive(Debug, PartialEq, Eq)]
struct End {
    /// Which steps of its head a build reuses from each line, but for lines of branches that are gone.
    lines: BTreeMap<String, BTreeSet<String>>,
    /// The commits whose caches are kept, with the same exception.
    commits: BTreeSet<String>,
    /// What was built: lines and commits.
    built: BTreeSet<String>,
    /// What failed, or did not end.
    failed: BTreeSet<String>,
}

impl End {
    /// All that it says, each in a line.
    fn facts(&self) -> BTreeSet<String> {
        let lines = self.lines.iter().flat_map(|(line, steps)| {
            let held = steps.iter().map(move |step| format!("line {line} holds {step}"));
            held.chain([format!("there is a line {line}")])
        });
        let commits = self.commits.iter().map(|commit| format!("commit {commit} has a cache"));
        let built = self.built.iter().map(|built| format!("{built} was built"));
        lines.chain(commits).chain(built).chain(self.failed.iter().cloned()).collect()
    }
}

/// Runs as many lives as asked.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    tools::install()?;
    stack::build()?;
    let failed = live(args, &stack::local_world()?)?;
    println!("the whole faults took {} s", started.elapsed().as_secs());
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// A few short lives, for `cargo xtask test`. The functions have been built. Answers what did not hold.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let args = Args { runs: 4, seed: 1, steps: 2, json: None, without_reconcile: false, keep: false };
    live(&args, &stack::local_world()?)
}

fn live(args: &Args, program: &Path) -> anyhow::Result<Vec<String>> {
    ensure!(args.runs > 0, "there has to be a run");
    let setup = LocalSetup::start(&Settings { behind_proxy: true, ..Settings::default() })?;
    let dir = setup.dir().join("runs");
    let runs: Vec<Run> = (args.seed..args.seed + args.runs)
        .map(|seed| Run::new(seed, args.steps, &dir))
        .collect::<Result<_, _>>()?;
    let told = open(setup, &runs, program).and_then(|sky| {
        let failed = sky.report(args).and_then(|failed| {
            requests::check(&sky.site.setup.recorded())?;
            Ok(failed)
        });
        if args.keep {
            println!("the setup is still up, with its logs in {}", sky.site.setup.dir().display());
            return failed;
        }
        sky.site.setup.stop()?;
        failed
    });
    if told.is_err()
        && !args.keep
        && let Some(setup) = LocalSetup::attach()?
    {
        setup.stop()?;
    }
    told
}

/// Deploys a stack with two projects for each life.
fn open<'a>(setup: LocalSetup, runs: &'a [Run], program: &'a Path) -> anyhow::Result<Sky<'a>> {
    let of = |run: &'a Run| {
        [FaultPlan::Baseline, FaultPlan::Faults].map(|fault_plan| (run, fault_plan.project(run)))
    };
    let all: Vec<(&Run, String)> = runs.iter().flat_map(of).collect();
    let projects: Value =
        all.iter().map(|(run, name)| json!({ "name": name, "source": run.origin })).collect();
    let mut policy = "version: 1\ndefaults:\n  retention: { mode: apply }\nprojects:\n".to_owned();
    for (run, name) in &all {
        let isolated = if run.isolated { ", builds-repository: 'stoker-builds/{project}'" } else { "" };
        writeln!(policy, "  - {{ name: {name}, repository: github.com/example/{name}{isolated} }}")?;
    }
    let machines = AT_ONCE.to_string();
    let arguments = ["--builder", "simulated", "--base-image", BASE_IMAGE, "--machines", &machines];
    let (arguments, projects, parameters) = (&arguments, &projects, &PARAMETERS);
    let site = Site::open(setup, &Plan { program, arguments, projects, policy: &policy, parameters })?;
    let aws = site.setup.aws();
    for (run, name) in &all {
        let create = |input: Value| aws.call("ecr", &format!("{ECR}.CreateRepository"), &input);
        create(json!({ "repositoryName": format!("stoker/{name}") }))?;
        if run.isolated {
            let name = format!("stoker-builds/{name}");
            create(json!({ "repositoryName": name, "imageTagMutability": "IMMUTABLE" }))?;
        }
    }
    for (queue, seconds) in TRIES {
        let redrive = site.queue(queue)?["RedrivePolicy"].as_str().map(serde_json::from_str::<Value>);
        let mut redrive = redrive.context("a queue gives nothing up")??;
        redrive["maxReceiveCount"] = json!(MOST_TRIES);
        let attributes =
            json!({ "VisibilityTimeout": seconds.to_string(), "RedrivePolicy": redrive.to_string() });
        site.set_queue(queue, &attributes)?;
    }
    site.set_queue("StartQueueUrl", &json!({ "DelaySeconds": "1" }))?;
    let secret = site.forge()?.secret().to_owned();
    Ok(Sky { aws, url: site.output("WebhookUrl")?.to_owned(), secret, site, runs, program })
}

/// The stack, and the lives that are lived on it.
struct Sky<'a> {
    site: Site,
    aws: Aws,
    url: String,
    secret: String,
    runs: &'a [Run],
    program: &'a Path,
}

impl Sky<'_> {
    /// Lives all lives twice; answers what did not hold.
    fn report(&self, args: &Args) -> anyhow::Result<Vec<String>> {
        println!("{} runs from seed {}, as_baseline", self.runs.len(), args.seed);
        let baseline_seconds = self.phase(FaultPlan::Baseline, args.seed)?;
        println!("the same in a faults");
        // Many lives share a batch, and each call that fails is one of the batch.
        let one_in = (14 + args.runs / 5).min(24);
        self.site.local("POST", "faults", Some(&json!({ "seed": args.seed, "one_in": one_in })))?;
        let fault_seconds = self.phase(FaultPlan::Faults, args.seed)?;
        self.site.local("POST", "faults", Some(&json!({})))?;
        self.quiet("what the faults left")?;
        let faults = self.site.local("GET", "faults", None)?;
        let missing = report_faults(&faults["done"])?;
        // Few lives make too few calls for each kind to be sure to come.
        let tolerated = match args.runs {
            0..=2 => usize::MAX,
            3..=7 => 3,
            _ => 0,
        };
        let mut failed = if missing.len() > tolerated { missing } else { Vec::new() };

        let started = Instant::now();
        for queue in ["ReconcileQueueUrl", "WarmQueueUrl", "NightlyRetentionQueueUrl"] {
            if args.without_reconcile && queue == "ReconcileQueueUrl" {
                println!("a night without its reconciliation, as asked");
                continue;
            }
            self.site.tick(queue)?;
            self.quiet(queue)?;
        }
        let night_seconds = started.elapsed().as_secs();
        println!("a night: {night_seconds} s");

        let started = Instant::now();
        let builds = self.site.local("GET", "builds", None)?;
        let ends = self.each(|run| {
            Ok((self.end(run, FaultPlan::Baseline, &builds)?, self.end(run, FaultPlan::Faults, &builds)?))
        })?;
        let mut differing = Vec::new();
        for (run, (baseline, faults)) in self.runs.iter().zip(&ends) {
            if baseline != faults || !is_whole(run, baseline) {
                report_difference(run, args.steps, baseline, faults);
                differing.push(run.seed);
            }
        }
        println!(
            "  compared in {} s, {} builds",
            started.elapsed().as_secs(),
            builds.as_array().map_or(0, Vec::len)
        );
        for queue in GIVEN_UP {
            let given_up = self.site.waiting_in(queue)?;
            if given_up > 0 {
                failed.push(format!("{queue}: {given_up} messages were given up"));
                println!("  FAIL {queue}: {}", self.first(queue)?);
            }
        }
        if !differing.is_empty() {
            failed.push(format!("{} of {} runs end otherwise", differing.len(), self.runs.len()));
        }
        println!(
            "  {} of {} runs end as a baseline run does",
            self.runs.len() - differing.len(),
            self.runs.len()
        );
        if let Some(file) = &args.json {
            let found = json!({
                "seed": args.seed, "runs": self.runs.len(), "differing": differing, "failed": failed,
                "faults": faults["done"], "calls": faults["calls"],
                "seconds": { "baseline": baseline_seconds, "faults": fault_seconds, "night": night_seconds },
            });
            std::fs::write(file, serde_json::to_string_pretty(&found)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(failed)
    }

    /// All lives take their steps at the same time, each after what the one before led to; answers how many
    /// seconds they took.
    fn phase(&self, fault_plan: FaultPlan, seed: u64) -> anyhow::Result<u64> {
        let started = Instant::now();
        let rounds = self.runs.iter().map(|run| run.steps.len()).max().unwrap_or_default();
        for round in 0..rounds {
            let from = Instant::now();
            self.each(|run| {
                let mut rng = Rng(seed ^ run.seed.rotate_left(32) ^ round as u64);
                run.steps.get(round).map_or(Ok(()), |step| self.take(run, fault_plan, step, &mut rng))
            })?;
            self.quiet(&format!("round {} of {rounds}", round + 1))?;
            println!("  round {} of {rounds}: {:.0} s", round + 1, from.elapsed().as_secs_f32());
        }
        Ok(started.elapsed().as_secs())
    }

    /// Does something for each life, several at a time.
    fn each<T: Send>(&self, act: impl Fn(&Run) -> anyhow::Result<T> + Sync) -> anyhow::Result<Vec<T>> {
        let (next, all) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        let Some(run) = self.runs.get(place) else { break };
                        let done = act(run);
                        if let Ok(mut all) = all.lock() {
                            all.insert(place, done);
                        }
                    }
                });
            }
        });
        let all = all.into_inner().map_err(|_| anyhow::anyhow!("a run panicked"))?;
        all.into_values().collect()
    }

    /// Takes a step: tells Stoker what a forge would.
    fn take(&self, run: &Run, fault_plan: FaultPlan, step: &Step, rng: &mut Rng) -> anyhow::Result<()> {
        let project = fault_plan.project(run);
        if let Step::Push { branch: to, head, .. } | Step::Merge { merge: head, branch: to, .. } = step
            && (matches!(step, Step::Merge { .. }) || to == MAIN)
        {
            run.move_main(head)?;
        }
        let repository = json!({
            "full_name": format!("example/{project}"),
            "html_url": format!("https://github.com/example/{project}"),
            "default_branch": MAIN, "pushed_at": jiff::Timestamp::now().as_second(),
        });
        let zero = "0".repeat(40);
        let push = |branch: &str, before: &str, after: &str, commits: &[&str]| {
            let commits: Vec<Value> = commits.iter().map(|id| json!({ "id": id })).collect();
            let body = json!({
                "ref": format!("refs/heads/{branch}"), "before": before, "after": after,
                "created": before == zero, "deleted": after == zero, "forced": false,
                "commits": commits, "repository": repository,
            });
            ("push", body.to_string())
        };
        let mut webhooks = match step {
            Step::Push { branch, before, head } => {
                vec![push(branch, before.as_deref().unwrap_or(&zero), head, &[head])]
            }
            Step::Merge { branch, head, before, merge } => {
                let body = json!({
                    "action": "closed", "number": 1,
                    "pull_request": {
                        "number": 1, "merged": true, "merge_commit_sha": merge,
                        "head": {
                            "ref": branch, "sha": head, "repo": { "full_name": repository["full_name"] },
                        },
                        "base": { "ref": MAIN },
                    },
                    "repository": repository,
                });
                vec![("pull_request", body.to_string()), push(MAIN, before, merge, &[head, merge])]
            }
            Step::Delete { branch, before } => vec![push(branch, before, &zero, &[])],
            Step::Reconcile => {
                let event = json!({
                    "time": jiff::Timestamp::now(), "source": "stoker", "detail-type": "ReconcileRequested",
                    "detail": { "project": project },
                });
                let queue = self.site.output("ReconcileQueueUrl")?;
                let message = json!({ "QueueUrl": queue, "MessageBody": event.to_string() });
                return self.aws.call("sqs", "AmazonSQS.SendMessage", &message).map(drop);
            }
        };
        if fault_plan == FaultPlan::Faults {
            if rng.below(2) == 0 {
                webhooks.reverse();
            }
            let again = webhooks.iter().filter(|_| rng.below(DOUBLES) == 0).cloned().collect::<Vec<_>>();
            webhooks.extend(again);
        }
        webhooks.iter().try_for_each(|(event, body)| self.deliver(event, body))
    }

    /// Delivers a webhook; where it was not taken, somebody presses "redeliver".
    fn deliver(&self, event: &str, body: &str) -> anyhow::Result<()> {
        let signature = sign(&self.secret, body);
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", event),
            ("x-github-delivery", "faults"),
            ("x-hub-signature-256", &signature),
        ];
        let mut last = 0;
        for _ in 0..DELIVERIES {
            let answer = self.aws.post_to_function(&self.url, &headers, body.as_bytes())?;
            last = answer.status;
            match answer.status {
                202 => return Ok(()),
                500.. => thread::sleep(Duration::from_millis(300)),
                status => bail!("a webhook was answered with {status}: {}", answer.text()),
            }
        }
        bail!("a webhook was answered with {last} {DELIVERIES} times");
    }

    /// Waits until no queue holds a message, no build runs, nothing is on its way, and no function asks for
    /// anything.
    fn quiet(&self, what: &str) -> anyhow::Result<()> {
        let (started, mut told) = (Instant::now(), Instant::now());
        let mut last = (Value::Null, 0, Instant::now());
        loop {
            let health = self.site.local("GET", "health", None)?;
            let faults = self.site.local("GET", "faults", None)?;
            let queued = health["queued"].as_u64().unwrap_or_default();
            let underway =
                [&health["undelivered"], &faults["underway"]].map(|n| n.as_u64().unwrap_or_default());
            let looks = health["looks"].as_u64().unwrap_or_default();
            let waiting = self.site.waiting()?;
            let is_busy =
                waiting > 0 || queued > 0 || !health["running"].is_null() || underway.iter().any(|n| *n > 0);
            let seen = json!([health["builds"], health["events"], faults["calls"]]);
            if is_busy || seen != last.0 {
                last = (seen, looks, Instant::now());
            } else if looks >= last.1 + LOOKS && last.2.elapsed() >= QUIET {
                return Ok(());
            }
            if started.elapsed() > PATIENCE || told.elapsed() > Duration::from_secs(20) {
                let counts = QUEUES.map(|queue| Ok((queue, self.site.waiting_in(queue)?)));
                let counts: Vec<_> = counts.into_iter().collect::<anyhow::Result<_>>()?;
                let counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
                let state = format!("{counts:?}, {queued} builds wait, {underway:?} on their way");
                ensure!(started.elapsed() <= PATIENCE, "{what} does not come to an end: {state}");
                println!("    ... {what}, {} s: {state}", started.elapsed().as_secs());
                told = Instant::now();
            }
            thread::sleep(Duration::from_millis(150));
        }
    }

    fn end(&self, run: &Run, fault_plan: FaultPlan, builds: &Value) -> anyhow::Result<End> {
        let project = fault_plan.project(run);
        let input = json!({ "repositoryName": format!("stoker/{project}"), "maxResults": 1000 });
        let images = self.aws.call("ecr", &format!("{ECR}.DescribeImages"), &input)?;
        ensure!(images["nextToken"].is_null(), "{project} has more images than a page holds");
        let tags = images["imageDetails"].as_array().into_iter().flatten();
        let tags = tags.flat_map(|image| image["imageTags"].as_array().into_iter().flatten());
        let (mut lines, mut commits) = (BTreeMap::new(), BTreeSet::new());
        for tag in tags.filter_map(Value::as_str) {
            let Some((scope, name)) = tag.split_once('.') else { continue };
            let branch = if name == MAIN { Some(MAIN) } else { name.strip_prefix("branch.") };
            if let Some(commit) = name.strip_prefix("commit.") {
                commits.extend((!run.gone.iter().any(|gone| gone == commit)).then(|| commit.to_owned()));
            } else if let Some((branch, checkout)) = branch.and_then(|b| Some((b, run.heads.get(b)?))) {
                let line = format!("{}/stoker/{project}:{scope}.{name}", self.site.setup.registry());
                lines.insert(branch.to_owned(), self.reused(&line, checkout)?);
            }
        }
        let (mut built, mut failed) = (BTreeSet::new(), BTreeSet::new());
        for build in builds.as_array().into_iter().flatten().filter(|b| b["project"] == project.as_str()) {
            // Main is also built where it is told of no commit, by who finds that nobody builds its head.
            let what = format!("{} at {}", build["env"]["STOKER_LINE"], build["commit"]).replace('"', "");
            match build["status"].as_str().unwrap_or_default() {
                "SUCCEEDED" => drop(built.insert(what)),
                status => drop(failed.insert(format!("{what}: {status}"))),
            }
        }
        Ok(End { lines, commits, built, failed })
    }

    /// The steps that a build of a checkout reuses if it reads a line and nothing else.
    fn reused(&self, line: &str, checkout: &Path) -> anyhow::Result<BTreeSet<String>> {
        let output = Command::new(self.program)
            .args(["docker", "buildx", "build", "--build-arg", &format!("BASE={BASE_IMAGE}")])
            .args(["--cache-from", &format!("type=registry,ref={line}"), "."])
            .current_dir(checkout)
            .stdin(Stdio::null())
            .output()
            .context("the simulated builder cannot be run")?;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "a build that reads {line} fails: {log}");
        let steps = log.lines().filter_map(|line| line.strip_prefix('#')?.split_once(' '));
        let steps: Vec<(&str, &str)> = steps.collect();
        let cached = steps.iter().filter(|(_, text)| *text == "CACHED");
        let name = |number: &str| steps.iter().find(|(of, text)| *of == number && text.starts_with('['));
        Ok(cached.filter_map(|(number, _)| Some(name(number)?.1.to_owned())).collect())
    }

    /// One of a queue's messages.
    fn first(&self, queue: &str) -> anyhow::Result<String> {
        let input = json!({ "QueueUrl": self.site.output(queue)? });
        let answer = self.aws.call("sqs", "AmazonSQS.ReceiveMessage", &input)?;
        Ok(answer["Messages"][0]["Body"].as_str().unwrap_or_default().to_owned())
    }
}

/// Whether a calm life has come to what it should: otherwise two that failed alike would be equal.
fn is_whole(run: &Run, baseline: &End) -> bool {
    let has_lines =
        run.heads.keys().all(|branch| baseline.lines.get(branch).is_some_and(|steps| steps.len() > 9));
    has_lines && baseline.failed.is_empty()
}

/// Says what the storm did; answers what it did not do.
fn report_faults(done: &Value) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    let done = done.as_object().filter(|done| !done.is_empty()).context("there was no faults")?;
    for (fault, by_operation) in done {
        let counts = by_operation.as_object().into_iter().flatten();
        let counts: Vec<(&str, u64)> =
            counts.map(|(of, count)| (of.as_str(), count.as_u64().unwrap_or_default())).collect();
        let sum: u64 = counts.iter().map(|(_, count)| count).sum();
        let each: Vec<String> = counts.iter().map(|(of, count)| format!("{of} {count}")).collect();
        println!("  {fault:<18} {sum:>4}  {}", each.join(", "));
        if sum == 0 {
            missing.push(format!("no {fault} in this faults"));
        }
    }
    Ok(missing)
}

fn report_difference(run: &Run, steps: u64, baseline: &End, faults: &End) {
    let seed = run.seed;
    println!("  FAIL run {seed}: cargo xtask faults --seed {seed} --runs 1 --steps {steps}");
    for step in &run.steps {
        println!("    {step:?}");
    }
    let (baseline, faults) = (baseline.facts(), faults.facts());
    for fact in baseline.difference(&faults) {
        println!("    in baseline only:  {fact}");
    }
    for fact in faults.difference(&baseline) {
        println!("    in faults only: {fact}");
    }
    if baseline == faults {
        println!("    both the same, and not what they should be: {baseline:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_run_that_left_something_out_is_none() {
        let whole =
            json!({ "stale": { "BatchGetImage": 1 }, "throttled": { "StartBuild": 2, "PutEvents": 1 } });
        assert!(report_faults(&whole).unwrap().is_empty());
        let part = json!({ "stale": {}, "throttled": { "StartBuild": 2 } });
        assert_eq!(report_faults(&part).unwrap(), ["no stale in this faults"]);
        for nothing in [json!({}), Value::Null] {
            assert_eq!(report_faults(&nothing).unwrap_err().to_string(), "there was no faults");
        }
    }
}
