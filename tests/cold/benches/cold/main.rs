//! What a cold start of each function costs, in processor time, beside programs that do less and programs in
//! other languages.
//!
//! `cargo xtask cold` builds them all and runs this. Every round starts each program once under the runtime interface
//! emulator, so that what else the machine does falls on all alike; medians count. Wall time says nothing here: the
//! network and AWS are a stand-in on loopback, over TLS.
//!
//! - To the first poll: from `exec` until the program asks for its first event, beside a loop that does nothing else.
//! - First invocation: from that event until the program asks for the next, beside a client without an SDK
//!   that gets the very requests that the function sent, in the same loop: as many handshakes, headers and
//!   bytes. That client has read its roots and made its TLS configuration before its first poll.
//! - Warm: as above for the invocations after, less what a program takes that makes the same calls through
//!   the SDK and Stoker's adapters, and does nothing else.
#![expect(clippy::print_stdout, reason = "a measurement")]

mod aws;
mod http;
mod run;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::aws::Aws;
use crate::run::{Program, Used, run};

const ROUNDS: usize = 15;
/// How many rounds go on until a program is warm, and how many invocations that takes.
const WARM_ROUNDS: usize = 3;
const WARM_AFTER: usize = 50;
const INVOCATIONS: usize = 101;

const MAX_TO_POLL: f64 = 2.0;
const MAX_FIRST: f64 = 4.0;
/// Microseconds.
const MAX_WARM: f64 = 300.0;
/// KiB.
const MAX_MEMORY: u64 = 16 * 1024;

/// A function as `template.yaml` calls it, an event of `events/`, and what it asks AWS for that event.
type Case = (&'static str, &'static str, &'static [&'static str]);

const FUNCTIONS: [Case; 7] = [
    ("ReceiveWebhook", "receive-webhook-gitlab-push", &[ONCE, "PutEvents"]),
    ("ReceiveCodecommit", "receive-codecommit-branch-pushed", &["PutEvents"]),
    (
        "StartBuild",
        "start-build-branch-pushed",
        &["ListBuildsForProject", "BatchGetBuilds", "BatchGetImage", "StartBuild"],
    ),
    ("ResolveCache", "resolve-cache", &["BatchGetImage"]),
    (
        "PromoteCache",
        "promote-cache-reconcile-wanted",
        &[
            "ListBuildsForProject",
            "BatchGetBuilds",
            "DescribeImages",
            "BatchGetImage",
            "BatchGetImage",
            "BatchCheckLayerAvailability",
        ],
    ),
    (
        "WarmMain",
        "warm-main-warm-wanted",
        &["ListBuildsForProject", "BatchGetBuilds", "BatchGetImage", "BatchGetImage", "StartBuild"],
    ),
    (
        "EnforceRetention",
        "enforce-retention-branch-deleted",
        &["DescribeImages", "DescribeImages", "BatchGetImage", "ListBuildsForProject", "BatchGetBuilds"],
    ),
];
/// Remembered after the first invocation.
const ONCE: &str = "GetSecretValue";

/// What the policy of the checkout does not name, and the events do.
const MORE_PROJECTS: &str = "
  - { name: app-gitlab, repository: gitlab.com/example/app }
  - { name: app-codecommit, repository: git-codecommit.us-east-1.amazonaws.com/v1/repos/app }
";

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What a program used, over all rounds.
#[derive(Default)]
struct Measured {
    to_poll: Vec<f64>,
    first: Vec<f64>,
    warm: Vec<f64>,
    memory: u64,
    calls: usize,
    handshakes: usize,
}

impl Measured {
    fn add(&mut self, used: &Used) {
        let micros = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e6;
        self.to_poll.push(micros(used.to_poll));
        self.first.push(micros(used.invocations[0]));
        self.warm.extend(used.invocations.iter().skip(WARM_AFTER).map(|nanos| micros(*nanos)));
        self.memory = self.memory.max(used.memory);
        self.calls = used.asked[0].requests.len();
        self.handshakes = used.asked[0].handshakes;
    }
}

/// Half are no more than this.
fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Where `cargo xtask cold` has put things.
fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// What all runs share.
struct Bench {
    emulator: PathBuf,
    directory: PathBuf,
    policy: PathBuf,
    aws: Aws,
}

impl Bench {
    /// Runs a program written in Rust.
    fn run(&self, program: &Path, events: &[&Value]) -> anyhow::Result<Used> {
        let variables = [
            ("SSL_CERT_FILE", self.aws.roots.clone().into_os_string()),
            ("STOKER_POLICY", self.policy.clone().into_os_string()),
            ("STOKER_REGISTRY", "123456789012.dkr.ecr.us-east-1.amazonaws.com".into()),
            ("STOKER_BUS", "stoker".into()),
            ("STOKER_WEBHOOK_SECRET", "webhook".into()),
        ];
        self.run_any(
            &Program {
                command: vec![program.into()],
                variables: variables.map(|(name, value)| (name.to_owned(), value)).into(),
            },
            events,
        )
    }

    fn run_any(&self, program: &Program, events: &[&Value]) -> anyhow::Result<Used> {
        run(&self.emulator, &self.directory, program, &self.aws, events)
    }
}

/// A function, and what is measured beside it.
struct Function {
    name: &'static str,
    /// What it asks AWS, in any order.
    wanted: &'static [&'static str],
    program: PathBuf,
    event: Value,
    own: Measured,
    /// A TLS client that sends the same requests.
    client: Measured,
    /// A program that makes the same calls through the SDK.
    calls: Measured,
}

impl Function {
    fn of((name, event, wanted): Case, dir: &Path) -> anyhow::Result<Self> {
        let events = checkout().join("events");
        let event = fs::read(events.join(event).with_extension("json"))?;
        let (event, program) = (serde_json::from_slice(&event)?, dir.join(name).join("bootstrap"));
        let [own, client, calls] = [(); 3].map(|()| Measured::default());
        Ok(Self { name, wanted, program, event, own, client, calls })
    }

    fn measure(&mut self, bench: &Bench, beside: &Path, invocations: usize) -> anyhow::Result<()> {
        let used = bench.run(&self.program, &vec![&self.event; invocations])?;
        for (invocation, (asked, answer)) in used.asked.iter().zip(&used.answers).enumerate() {
            let operations = asked.requests.iter().map(|request| request["operation"].as_str());
            let mut operations: Vec<_> = operations.map(Option::unwrap_or_default).collect();
            let mut wanted = self.wanted.to_vec();
            wanted.retain(|operation| invocation == 0 || *operation != ONCE);
            operations.sort_unstable();
            wanted.sort_unstable();
            ensure!(operations == wanted, "{} asked for {operations:?}, and answered {answer}", self.name);
        }
        self.own.add(&used);
        let requests: Vec<Value> = used.asked.iter().map(|asked| json!(asked.requests)).collect();
        let requests: Vec<_> = requests.iter().collect();
        for (what, measured) in [("bare", &mut self.client), ("calls", &mut self.calls)] {
            measured.add(&bench.run(&beside.join(what).join("bootstrap"), &requests)?);
            ensure!(
                (self.own.calls, self.own.handshakes) == (measured.calls, measured.handshakes),
                "{}: `{what}` sent {} requests over {} connections",
                self.name,
                measured.calls,
                measured.handshakes
            );
        }
        Ok(())
    }
}

fn measure() -> anyhow::Result<bool> {
    let wanted = "run it as `cargo xtask cold`, which builds what it measures";
    let functions = path("STOKER_COLD_FUNCTIONS").context(wanted)?;
    let beside = path("STOKER_COLD_BESIDE").context(wanted)?;
    let directory = path("STOKER_COLD_DIRECTORY").context(wanted)?;
    fs::create_dir_all(&directory)?;
    let policy = fs::read_to_string(checkout().join("policy/stoker.yaml"))?;
    let bench_policy = directory.join("stoker.yaml");
    fs::write(&bench_policy, policy + MORE_PROJECTS)?;
    let bench = Bench {
        emulator: path("STOKER_COLD_EMULATOR").context(wanted)?,
        aws: Aws::start(&directory)?,
        directory,
        policy: bench_policy,
    };
    let empty = beside.join("empty/bootstrap");
    let mut functions = FUNCTIONS
        .iter()
        .map(|function| Function::of(*function, &functions))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut others = others(&bench.aws);
    let mut floor = Measured::default();
    for round in 0..ROUNDS {
        let invocations = if round < WARM_ROUNDS { INVOCATIONS } else { 1 };
        floor.add(&bench.run(&empty, &vec![&json!({}); invocations])?);
        for function in &mut functions {
            function.measure(&bench, &beside, invocations)?;
        }
        let start = &functions[2];
        for (_, program, measured) in &mut others {
            let used = bench.run_any(program, &vec![&start.event; invocations])?;
            ensure!(
                used.asked[0].requests.len() == start.own.calls,
                "{:?} made {} calls: {}",
                program.command,
                used.asked[0].requests.len(),
                used.answers[0]
            );
            measured.add(&used);
        }
    }
    println!(
        "processor time in microseconds, medians of {ROUNDS} starts under the runtime interface emulator, {} \
         trusted roots\n",
        bench.aws.roots_count
    );
    println!(
        "{:<20} {:>6} {:>6} {:>8} {:>7} {:>8} {:>7} {:>8} {:>7}",
        "", "calls", "shakes", "to poll", "ratio", "first", "ratio", "warm", "beside"
    );
    let row = |name: &str, measured: &Measured, beside: Option<(&Measured, &Measured)>| {
        let [to_poll, first, warm] = [&measured.to_poll, &measured.first, &measured.warm].map(|f| median(f));
        let ratio = to_poll / median(&floor.to_poll);
        let (times, more) = beside.map_or((f64::NAN, f64::NAN), |(client, calls)| {
            (first / median(&client.first), warm - median(&calls.warm))
        });
        println!(
            "{name:<20} {:>6} {:>6} {to_poll:>8.0} {ratio:>7.2} {first:>8.0} {times:>7.2} {warm:>8.0} \
             {more:>7.0} {:>6} MiB",
            measured.calls,
            measured.handshakes,
            measured.memory.div_ceil(1024)
        );
        (ratio, times, more, measured.memory)
    };
    row("empty loop", &floor, None);
    let mut bounds = Vec::new();
    for function in &functions {
        let beside = Some((&function.client, &function.calls));
        bounds.push((function.name, row(function.name, &function.own, beside)));
        row("  its calls", &function.calls, beside);
        row("  TLS client alone", &function.client, None);
    }
    for (name, _, measured) in &others {
        row(name, measured, Some((&functions[2].client, &functions[2].calls)));
    }
    let mut within = true;
    println!();
    for (name, (ratio, times, more, memory)) in bounds {
        for (holds, what) in [
            (
                ratio <= MAX_TO_POLL,
                format!("first poll after {ratio:.2} times the empty loop, at most {MAX_TO_POLL}"),
            ),
            (
                times <= MAX_FIRST,
                format!("first invocation {times:.2} times the TLS client, at most {MAX_FIRST}"),
            ),
            (more <= MAX_WARM, format!("warm {more:.0} us beside the calls, at most {MAX_WARM}")),
            (memory <= MAX_MEMORY, format!("{memory} KiB resident, at most {MAX_MEMORY}")),
        ] {
            within &= holds;
            println!("{}: {name}: {what}", if holds { "ok" } else { "BROKEN" });
        }
    }
    Ok(within)
}

/// The same calls in other languages, as far as this machine has them.
fn others(aws: &Aws) -> Vec<(&'static str, Program, Measured)> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    match path("STOKER_COLD_PYTHON") {
        Some(python) => {
            let command = vec![python.into_os_string(), scripts.join("start_build.py").into_os_string()];
            let variables = vec![("AWS_CA_BUNDLE".to_owned(), aws.roots.clone().into_os_string())];
            found.push(("StartBuild, Python", Program { command, variables }, Measured::default()));
        }
        None => println!("SKIPPED: Python, as it has no boto3 here: NOTHING is measured of it"),
    }
    match path("STOKER_COLD_NODE") {
        Some(script) => {
            let command = vec![OsString::from("node"), script.into_os_string()];
            // It has roots of its own, compiled in.
            let variables = vec![("NODE_EXTRA_CA_CERTS".to_owned(), aws.authority.clone().into_os_string())];
            found.push(("StartBuild, Node", Program { command, variables }, Measured::default()));
        }
        None => println!("SKIPPED: Node, as it or its SDK is not here: NOTHING is measured of it"),
    }
    found
}

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
