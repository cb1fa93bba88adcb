//! One day of ten thousand projects, a million pushes and a hundred thousand merges, and the night after it.
//!
//! `cargo bench -p scenarios --bench day` lives it with the real handlers on a model of an account (`tests/src/day`), and
//! fails when something is out of bounds. `-- --starts-at-once 5` lets that many invocations of `start-build` run.
#![expect(clippy::print_stderr, clippy::unwrap_used, reason = "a measurement")]

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use mimalloc::MiMalloc;
use scenarios::day::{Report, Scale, live};
use tokio::runtime;

/// A third of the day would go by in the system's own.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Where the day is lived: the functions print their metrics, a line for every build, which nobody wants to read here.
const CHILD: &str = "STOKER_BENCH_DAY";

fn scale() -> Scale {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let value =
            arguments.iter().position(|argument| argument == name).and_then(|place| arguments.get(place + 1));
        value.and_then(|value| value.parse().ok())
    };
    Scale {
        seed: after("--seed").unwrap_or(1) as u64,
        projects: after("--projects").unwrap_or(10_000),
        pushes: after("--pushes").unwrap_or(1_000_000),
        merges: after("--merges").unwrap_or(100_000),
        starts_at_once: after("--starts-at-once").unwrap_or(15),
        warms_at_once: after("--warms-at-once").unwrap_or(2),
        meets: false,
    }
}

/// Most memory that this process ever had, in MiB, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

fn day() -> ExitCode {
    let began = Instant::now();
    let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let Report { figures, bounds } = runtime.block_on(live(&scale()));
    for figure in figures {
        eprintln!("{figure}");
    }
    let took = began.elapsed();
    eprintln!("took                    {}.{:03} s", took.as_secs(), took.subsec_millis());
    if let Some(memory) = peak_memory() {
        eprintln!("peak memory             {memory} MiB");
    }
    eprintln!();
    let mut within = true;
    for (holds, what) in bounds {
        within &= holds;
        eprintln!("{}: {what}", if holds { "ok" } else { "BROKEN" });
    }
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    if std::env::var_os(CHILD).is_some() {
        return day();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    // Memory that is given back is asked for again at once.
    child.args(std::env::args_os().skip(1)).env(CHILD, "1").env("MIMALLOC_PURGE_DELAY", "-1");
    let status = child.stdout(Stdio::null()).status().unwrap();
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
