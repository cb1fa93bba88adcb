//! The functions as they are deployed by default, for arm64: built here, and run here under emulation.

use std::collections::HashMap;
use std::env::consts::ARCH;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::{aws, deployed, process, tools};

/// What cargo calls it.
const TARGET: &str = "aarch64-unknown-linux-gnu";
/// The function that every run of the tests builds. It asks ECR, so its answer takes HTTP, JSON and signing.
const ONE: &str = "resolve-cache";
/// How long it may take to answer; under emulation, beside other work, a cold start takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);
/// The policy that it answers by.
const POLICY: &str = "version: 1\nprojects:\n  - { name: app, repository: github.com/example/app }\n";

/// Adds the standard library for arm64 to the toolchain, unless it is there.
pub(crate) fn add_target() -> anyhow::Result<()> {
    let mut rustup = Command::new("rustup");
    rustup.current_dir(crate::paths::root()).args(["target", "add", TARGET]);
    let log = crate::paths::home().join("logs/arm64-target.log");
    process::run(&mut rustup, "adding the target for arm64", &log, |_| None)
}

/// Builds functions, and has them refuse a bad policy and one of them answer an invocation.
pub(crate) fn check(all: bool) -> anyhow::Result<()> {
    tools::install()?;
    let started = Instant::now();
    let target = crate::paths::root().join("target");
    let mut command = tools::cargo_lambda()?;
    command
        .current_dir(crate::paths::root())
        .args(["lambda", "build", "--release", "--target", TARGET, "--lambda-dir"])
        .arg(built())
        .env("CARGO_TARGET_DIR", target);
    drop(fs::remove_dir_all(built()));
    if !all {
        command.args(["--package", ONE, "--bin", ONE]);
    }
    let log = crate::paths::home().join("logs/arm64-compile.log");
    process::run(&mut command, "compiling for arm64", &log, |_| None)?;
    println!("   built in {} s", started.elapsed().as_secs());

    let emulator = emulator()?;
    let mut programs = 0;
    for entry in fs::read_dir(built())? {
        let entry = entry?;
        let program = entry.path().join("bootstrap");
        ensure!(is_for_arm64(&program)?, "{} is for another processor", program.display());
        deployed::check_program(&entry.file_name().to_string_lossy(), &program, &emulator)?;
        programs += 1;
    }
    ensure!(programs == if all { 7 } else { 1 }, "{programs} functions are built for arm64");
    answers(&built().join(ONE).join("bootstrap"), &emulator)
}

fn built() -> std::path::PathBuf {
    crate::paths::home().join("arm64")
}

/// The command that runs programs for arm64: none where the machine does itself.
fn emulator() -> anyhow::Result<Vec<OsString>> {
    if ARCH == "aarch64" {
        return Ok(Vec::new());
    }
    let qemu = tools::debian_program("qemu-user-static", "qemu-aarch64-static")?;
    // The C library, which a program expects to find on its system.
    let system = tools::debian("libc6-arm64-cross", "usr/aarch64-linux-gnu")?;
    Ok(vec![qemu.into(), "-L".into(), system.into()])
}

/// Whether an ELF header says `EM_AARCH64`.
fn is_for_arm64(program: &Path) -> anyhow::Result<bool> {
    let mut header = [0; 20];
    fs::File::open(program)
        .with_context(|| format!("{} is not built", program.display()))?
        .read_exact(&mut header)?;
    Ok(header.starts_with(b"\x7fELF") && header[18..] == [0xb7, 0])
}

/// The program asks for an invocation, looks up caches, and answers.
fn answers(program: &Path, emulator: &[OsString]) -> anyhow::Result<()> {
    let policy = crate::paths::home().join("logs/arm64-policy.yaml");
    fs::write(&policy, POLICY)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let here = listener.local_addr()?.to_string();
    let started = Instant::now();
    let mut command = deployed::program(program, emulator);
    let mut child = Running(
        tools::without_aws_settings(&mut command)
            .env("STOKER_POLICY", &policy)
            .env("STOKER_REGISTRY", "registry.example")
            .env("STOKER_BUS", "bus")
            .env("AWS_LAMBDA_RUNTIME_API", &here)
            .env("AWS_LAMBDA_FUNCTION_NAME", ONE)
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_REGION", aws::REGION)
            .env("AWS_ENDPOINT_URL", format!("http://{here}"))
            .env("AWS_ACCESS_KEY_ID", aws::KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", aws::SECRET_KEY)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?,
    );
    let mut looked_up = 0;
    loop {
        ensure!(started.elapsed() < PATIENCE, "{ONE} for arm64 does not answer");
        if let Some(status) = child.0.try_wait()? {
            bail!("{ONE} for arm64 ended with {status}");
        }
        let Ok((connection, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let (path, headers, body) = request(&connection)?;
        if path.ends_with("/invocation/next") {
            respond(&connection, "200 OK", &json!({ "project": "app" }))?;
        } else if path.ends_with("/response") {
            let answer: Value = serde_json::from_slice(&body)?;
            let line = &answer["environment"]["STOKER_LINE"];
            ensure!(line == "main", "{ONE} for arm64 answers {answer}");
            ensure!(looked_up > 0, "{ONE} for arm64 answers without having looked");
            println!("   {ONE} for arm64 has answered after {} ms", started.elapsed().as_millis());
            return Ok(());
        } else if headers.get("x-amz-target").is_some_and(|target| target.ends_with(".BatchGetImage")) {
            looked_up += 1;
            let asked: Value = serde_json::from_slice(&body)?;
            let missing: Vec<Value> =
                asked["imageIds"].as_array().into_iter().flatten().map(missing).collect();
            respond(&connection, "200 OK", &json!({ "images": [], "failures": missing }))?;
        } else {
            bail!("{ONE} for arm64 asks for {path}: {}", String::from_utf8_lossy(&body));
        }
    }
}

fn missing(id: &Value) -> Value {
    json!({ "imageId": { "imageTag": id["imageTag"] }, "failureCode": "ImageNotFound" })
}

/// Reads a request: its path, its headers and its body.
fn request(connection: &TcpStream) -> anyhow::Result<(String, HashMap<String, String>, Vec<u8>)> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).context("a request without a path")?.to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(Ok(0), |length| length.parse())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((path, headers, body))
}

fn respond(mut connection: &TcpStream, status: &str, body: &Value) -> anyhow::Result<()> {
    let body = body.to_string();
    write!(
        connection,
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         lambda-runtime-aws-request-id: 1\r\nlambda-runtime-deadline-ms: 4102444800000\r\n\
         lambda-runtime-invoked-function-arn: arn:aws:lambda:{}:{}:function:{ONE}\r\n\r\n{body}",
        body.len(),
        aws::REGION,
        aws::ACCOUNT
    )?;
    Ok(())
}

/// A program that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
