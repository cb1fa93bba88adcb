//! What a replay of a history costs, beside `git log --stat` of the same commits.
//!
//! `cargo bench -p stoker-cli --bench forecast` makes two repositories with the same changes, one with ten
//! times the files. It fails where a replay of the larger one takes more than 20 s of processor time or 300
//! MB, where the files count for more than the changes, or where a second run is no faster.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement")]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

const MERGES: usize = 300;
/// Files that a merge changes.
const CHANGES: usize = 6;
const MOST_SECONDS: f64 = 20.0;
const MOST_MEMORY: u64 = 300 << 20;
/// Ten times the files may take so many times as long.
const MOST_GROWTH: f64 = 3.0;
/// Linux counts the time of children that have ended in hundredths of a second.
const TICKS: f64 = 100.0;

fn main() -> ExitCode {
    let root = std::env::temp_dir().join(format!("stoker-forecast-{}", std::process::id()));
    let mut good = true;
    let mut seconds = Vec::new();
    for (name, directories) in [("1,000 files", 10), ("10,000 files", 100)] {
        let directory = root.join(name);
        repository(&directory, directories);
        let log = ["log", "--stat", "main"];
        let git = took(Command::new("git").arg("-C").arg(&directory).args(log));
        let first = took(&mut forecast(&directory, &root));
        let second = took(&mut forecast(&directory, &root));
        println!(
            "  {name}, {MERGES} merges: {:.1} s and {} MB, {:.1} times the {:.1} s of `git log --stat`; again: {:.1} s",
            first.seconds,
            first.memory >> 20,
            first.seconds / git.seconds,
            git.seconds,
            second.seconds,
        );
        good &= first.seconds < MOST_SECONDS && first.memory < MOST_MEMORY && second.seconds < first.seconds;
        seconds.push(first.seconds);
    }
    if let [small, large] = seconds.as_slice() {
        println!("  ten times the files take {:.1} times as long", large / small);
        good &= large / small < MOST_GROWTH;
    }
    fs::remove_dir_all(root).unwrap();
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn forecast(directory: &Path, root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stoker"));
    command.args(["forecast", "--json", "--merges", "300", "--repository"]).arg(directory);
    // What is kept for a second run is kept here.
    command.env("XDG_CACHE_HOME", root.join("cache"));
    command
}

/// What a process took, with those that it started.
struct Took {
    seconds: f64,
    /// The most that was ever resident of the process itself, in bytes.
    memory: u64,
}

fn took(command: &mut Command) -> Took {
    let before = of_children();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let mut memory = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        memory = memory.max(peak(child.id()).unwrap_or_default());
        thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{command:?}");
    Took { seconds: of_children() - before, memory }
}

/// Seconds that processes took which have ended.
fn of_children() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap();
    // The name, in brackets, may hold blanks. Of the fields after it, the fourteenth and fifteenth.
    let (_, fields) = text.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(13).take(2).map(|ticks| ticks.parse::<f64>().unwrap() / TICKS).sum()
}

fn peak(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// A Dockerfile of twenty steps in two stages, which copies narrow and wide.
fn dockerfile() -> String {
    let mut text = String::from("FROM node:20 AS build\nWORKDIR /app\nCOPY d0 d0\nRUN npm ci\n");
    for copy in 1..6 {
        let _ = writeln!(text, "COPY d{copy}/ d{copy}/\nRUN make {copy}");
    }
    text += "COPY d*/e0/f0 names/\nCOPY . .\nRUN make all\nFROM node:20\nCOPY --from=build /app/out /app\n\
             COPY d7/e1/f1 /etc/f1\nRUN last\n";
    text
}

/// A repository of so many directories of a hundred files each, and of merges that change few of them.
fn repository(directory: &Path, directories: usize) {
    fs::create_dir_all(directory).unwrap();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(directory).args(arguments);
        command
    };
    assert!(git(&["init", "--quiet", "--initial-branch=main"]).status().unwrap().success());
    let mut stream = String::new();
    let path = |number: usize| -> PathBuf {
        let (place, file) = (number / 100 % directories, number % 100);
        format!("d{}/e{}/f{file}", place % 10, place / 10).into()
    };
    let all: Vec<(PathBuf, String)> =
        (0..directories * 100).map(|number| (path(number), format!("{number}\n").repeat(40))).collect();
    let mut files =
        vec![(PathBuf::from("Dockerfile"), dockerfile()), (".dockerignore".into(), "*.log\n".into())];
    files.extend(all);
    commit(&mut stream, 1, "Begin", 1000, "", &files);
    let mut head = 1;
    for merge in 0..MERGES {
        let time = 2000 + merge * 3600;
        let changed: Vec<(PathBuf, String)> = (0..CHANGES)
            .map(|change| {
                (path((merge * 7919 + change * 104_729) % (directories * 100)), format!("{merge} {change}\n"))
            })
            .collect();
        let (first, second) = changed.split_at(CHANGES / 2);
        let base = format!("from :{head}\n");
        commit(&mut stream, head + 1, "One", time, &base, first);
        commit(&mut stream, head + 2, "Two", time + 900, &format!("from :{}\n", head + 1), second);
        let parents = format!("{base}merge :{}\n", head + 2);
        commit(&mut stream, head + 3, &format!("Merge branch 'b{merge}'"), time + 1800, &parents, &changed);
        head += 3;
    }
    let mut import = git(&["fast-import", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(stream.as_bytes()).unwrap();
    assert!(import.wait().unwrap().success());
}

fn commit(
    stream: &mut String,
    mark: usize,
    subject: &str,
    time: usize,
    parents: &str,
    files: &[(PathBuf, String)],
) {
    let _ = write!(
        stream,
        "commit refs/heads/main\nmark :{mark}\ncommitter A <a@example.com> {time} +0000\ndata {}\n{subject}\n{parents}",
        subject.len()
    );
    for (path, content) in files {
        let _ = write!(stream, "M 100644 inline {}\ndata {}\n{content}\n", path.display(), content.len());
    }
}
