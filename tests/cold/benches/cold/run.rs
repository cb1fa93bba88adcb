//! A program under the runtime interface emulator, and what it uses of the processor.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::aws::{Asked, Aws};
use crate::http::{Answer, Request, serve};

/// A program that has asked for its next event is at rest after so long.
const REST: Duration = Duration::from_millis(3);
/// For how long any one step may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// Says who it is, waits until its use of the processor so far is known, and becomes the program.
const STARTER: &str =
    r#"echo $$ > "$COLD_PIPE"; read -r _ < "$COLD_PIPE"; AWS_LAMBDA_RUNTIME_API=$COLD_RUNTIME_API exec "$@""#;

/// A program to measure.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) command: Vec<OsString>,
    pub(crate) variables: Vec<(String, OsString)>,
}

/// What one run of a program used.
pub(crate) struct Used {
    /// Nanoseconds from its start to the first poll.
    pub(crate) to_poll: u64,
    /// Nanoseconds of each invocation, from its event to the next poll.
    pub(crate) invocations: Vec<u64>,
    /// Most memory that was resident, in KiB.
    pub(crate) memory: u64,
    /// What each invocation asked of AWS.
    pub(crate) asked: Vec<Asked>,
    /// What each invocation answered.
    pub(crate) answers: Vec<String>,
}

/// The emulator, and the program that it has started. Both end with this.
struct Running {
    emulator: Child,
    program: Option<u32>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where one has ended already, that is all the better.
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
        if let Some(program) = self.program {
            let _ = Command::new("kill").args(["-KILL", &program.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

/// Runs a program under the emulator, with these events one after the other.
pub(crate) fn run(
    emulator: &Path,
    directory: &Path,
    program: &Program,
    aws: &Aws,
    events: &[&Value],
) -> anyhow::Result<Used> {
    let pipe = directory.join("pipe");
    if !pipe.exists() {
        ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "cannot make a pipe");
    }
    let (own_port, runtime_port) = (free_port()?, free_port()?);
    let (sender, polls) = mpsc::channel();
    let between = TcpListener::bind("127.0.0.1:0")?;
    let mut command = Command::new(emulator);
    command
        .args(["--runtime-interface-emulator-address", &format!("127.0.0.1:{own_port}")])
        .args(["--runtime-api-address", &format!("127.0.0.1:{runtime_port}")])
        .args(["/bin/sh", "-c", STARTER, "starter"])
        .args(&program.command)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("AWS_LAMBDA_FUNCTION_NAME", "cold")
        .env("AWS_LAMBDA_FUNCTION_TIMEOUT", "20")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "not-a-secret")
        .env("AWS_SESSION_TOKEN", "t".repeat(1000))
        .env("COLD_PIPE", &pipe)
        .env("COLD_RUNTIME_API", between.local_addr()?.to_string())
        .envs(program.variables.iter().map(|(name, value)| (name, value)))
        .envs(aws.variables())
        .stdin(Stdio::null())
        .stdout(File::create(directory.join("stdout"))?)
        .stderr(File::create(directory.join("stderr"))?);
    let mut running =
        Running { emulator: command.spawn().context("cannot start the emulator")?, program: None };

    let runtime_api: Arc<str> = format!("http://127.0.0.1:{runtime_port}").into();
    thread::spawn(move || {
        for stream in between.incoming().flatten() {
            let (api, polls) = (Arc::clone(&runtime_api), sender.clone());
            // What fails here, such as a connection to an emulator that has ended, shows as a poll that does not come.
            thread::spawn(move || {
                stream.set_nodelay(true)?;
                serve(stream, |request| pass_on(&api, &polls, &request))
            });
        }
    });
    invoke_all(&mut running, own_port, &pipe, &polls, aws, events).with_context(|| {
        let said = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
        format!("{:?} said: {}{}", program.command, said("stdout"), said("stderr"))
    })
}

/// A poll of the program: it is passed on once this is dropped.
type Poll = Sender<()>;

/// Passes a request on to the emulator. Every poll waits until it has been looked at.
fn pass_on(api: &str, polls: &Sender<Poll>, request: &Request) -> anyhow::Result<Answer> {
    if request.path.ends_with("/next") {
        thread::sleep(REST);
        let (poll, go_on) = mpsc::channel();
        polls.send(poll)?;
        // Nothing is ever sent.
        let _ = go_on.recv();
    }
    let url = format!("{api}{}", request.path);
    let mut answer = match request.method.as_str() {
        "GET" => agent().get(&url).call()?,
        _ => agent().post(&url).send(&request.body)?,
    };
    let headers = answer
        .headers()
        .iter()
        .filter(|(name, _)| !["content-length", "transfer-encoding"].contains(&name.as_str()));
    let headers = headers
        .map(|(name, value)| Ok((name.to_string(), value.to_str()?.to_owned())))
        .collect::<anyhow::Result<_>>()?;
    Ok(Answer { status: answer.status().as_u16(), headers, body: answer.body_mut().read_to_vec()? })
}

fn invoke_all(
    running: &mut Running,
    port: u16,
    pipe: &Path,
    polls: &Receiver<Poll>,
    aws: &Aws,
    events: &[&Value],
) -> anyhow::Result<Used> {
    let mut events = events.iter();
    // The emulator starts the program when it is first invoked.
    let mut invoked = invoke(port, events.next().context("there is no event")?);
    let (sender, said) = mpsc::channel();
    let of_program = pipe.to_owned();
    thread::spawn(move || sender.send(fs::read_to_string(of_program)));
    let program = said.recv_timeout(PATIENCE).context("the emulator starts nothing")??.trim().parse()?;
    running.program = Some(program);
    thread::sleep(REST);
    let mut before = processor_time(program)?;
    fs::write(pipe, "\n")?;
    let mut until_poll = || -> anyhow::Result<u64> {
        let _poll = polls.recv_timeout(PATIENCE).context("the program does not ask for an event")?;
        let now = processor_time(program)?;
        Ok(now - std::mem::replace(&mut before, now))
    };
    let to_poll = until_poll()?;
    let (mut invocations, mut asked, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        invocations.push(until_poll()?);
        asked.push(aws.asked());
        // The emulator answers only once the program has asked for the next.
        answers.push(invoked.join().map_err(|_| anyhow::anyhow!("an invocation panicked"))??);
        let Some(event) = events.next() else { break };
        invoked = invoke(port, event);
    }
    Ok(Used { to_poll, invocations, memory: peak_memory(program)?, asked, answers })
}

/// Sends an event to the emulator; what comes of it is the answer.
fn invoke(port: u16, event: &Value) -> JoinHandle<anyhow::Result<String>> {
    let event = event.to_string();
    thread::spawn(move || {
        let url = format!("http://127.0.0.1:{port}/2015-03-31/functions/function/invocations");
        let started = Instant::now();
        // It does not say when it listens.
        while TcpStream::connect(("127.0.0.1", port)).is_err() && started.elapsed() < PATIENCE {
            thread::sleep(REST);
        }
        Ok(agent().post(&url).send(&event)?.body_mut().read_to_string()?)
    })
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent()
}

/// Nanoseconds that all threads of a process have run. Clock ticks would be too coarse, and threads that have
/// ended are not in it: none of these programs ends any.
fn processor_time(process: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(sum)
}

/// The most memory of a process that was ever resident, in KiB.
fn peak_memory(process: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("there is no peak")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A port that nobody listens on, below those that the system gives to connections.
fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed)).take(10_000);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).context("no port is free")
}
