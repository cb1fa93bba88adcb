//! Other programs: run to their end with their output at hand, or started and left to run.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How often a quiet program is reported to be still at work.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// How much of a failed program's output is shown.
const SHOWN_ON_FAILURE: usize = 40;
/// How long a program may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Runs a program to its end. Its output goes to `log`; of its lines, those that `show` rewords are printed.
pub(crate) fn run(
    command: &mut Command,
    what: &str,
    log: &Path,
    show: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{what}: cannot start {}", command.get_program().display()))?;
    let (sender, lines) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        forward(output, sender.clone());
    }
    if let Some(output) = child.stderr.take() {
        forward(output, sender);
    }
    let mut last = Vec::new();
    loop {
        match lines.recv_timeout(HEARTBEAT) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                if let Some(shown) = show(&line) {
                    println!("  {shown}");
                }
                last.push(line);
                if last.len() > SHOWN_ON_FAILURE {
                    last.remove(0);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                println!("  ... still {what}, {} s", started.elapsed().as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait()?;
    if !status.success() {
        for line in &last {
            eprintln!("  | {line}");
        }
        bail!("{what} failed ({status}); all of its output is in {}", log.display());
    }
    Ok(())
}

fn forward(output: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
}

/// Starts a program that outlives this one, in a process group of its own. Its output goes to `log`.
pub(crate) fn start(command: &mut Command, log: &Path) -> anyhow::Result<u32> {
    let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    Ok(child.id())
}

/// Whether the process lives and its command line holds `mark`: ids are reused.
pub(crate) fn is_running(id: u32, mark: &str) -> bool {
    let Ok(output) = Command::new("ps").args(["-o", "stat=,args=", "-p", &id.to_string()]).output() else {
        return false;
    };
    let line = String::from_utf8_lossy(&output.stdout);
    let line = line.trim_start();
    !line.starts_with('Z') && line.contains(mark)
}

/// Ends a process that [`start`] started, and all that it started in turn.
pub(crate) fn end(id: u32, mark: &str) -> anyhow::Result<()> {
    for signal in ["-TERM", "-KILL"] {
        if !is_running(id, mark) {
            return Ok(());
        }
        signal_group(signal, id)?;
        let deadline = Instant::now() + GRACE;
        while is_running(id, mark) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
    }
    anyhow::ensure!(!is_running(id, mark), "process {id} ({mark}) does not end");
    Ok(())
}

fn signal_group(signal: &str, id: u32) -> anyhow::Result<()> {
    Command::new("kill")
        .args([signal, "--", &format!("-{id}")])
        .stderr(Stdio::null())
        .status()
        .context("cannot run `kill`")?;
    Ok(())
}
