//! What retention costs in a repository with as many images as ECR allows: memory, processor time and
//! requests, side by side with a Python cleaner of the usual kind.
//!
//! `cargo bench -p scenarios --bench retention` lets the real adapter and the real `enforce` run against ECR
//! on loopback: a run that reports, one that deletes a fifth of the images, and one in a repository that
//! somebody has filled with the worst manifests; and fails when a figure is out of bounds. Each is a process
//! of its own. The floor that processor time is measured by reads the same with the same SDK and drops it.
//! The cleaner needs boto3.
#![expect(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, reason = "a measurement")]

mod account;
mod images;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ecr::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_ecr::types::ImageIdentifier;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use jiff::Timestamp;
use serde_json::{Value, json};
use stoker_aws::{Aws, AwsSettings};
use stoker_core::names::{CacheRepository, Digest, ProjectName};
use stoker_core::policy::Policy;
use stoker_core::retain::enforce;
use tokio::runtime;

/// What this process is to do, where it is not the one that measures.
const ROLE: &str = "STOKER_BENCH_RETENTION";
const REPOSITORY: &str = "stoker/app";
const ADDRESS: &str = "STOKER_BENCH_ADDRESS";
const NOW: &str = "STOKER_BENCH_NOW";

/// What the smallest function is given, and what it is given unless somebody says otherwise.
const LEAST_MEMORY_MIB: u64 = 128;
const MEMORY_MIB: u64 = 256;
/// The function's time in milliseconds.
const MOST_MS: u64 = 300_000;
/// Processor time, in that of reading the same and dropping it.
const MOST_RATIO: f64 = 2.0;
/// Memory with which a Lambda function has one processor.
const MIB_OF_A_PROCESSOR: u64 = 1769;

fn policy(mode: &str) -> Policy {
    let text = format!(
        "version: 1\nprojects:\n  - name: app\n    repository: github.com/example/app\n    cache-repository: \
         {REPOSITORY}\n    \
         retention: {{ mode: {mode}, lease: 24h, history: 3650d, idle-branch: 3650d, max-deletions: 100000 }}\n"
    );
    Policy::parse("the benchmark's policy", &text).unwrap()
}

/// So many digests, and one over them all.
fn summary<'d>(digests: impl Iterator<Item = &'d Digest>) -> Value {
    let mut sorted: Vec<&Digest> = digests.collect();
    sorted.sort_unstable();
    let bytes: Vec<u8> = sorted.iter().flat_map(|digest| *digest.as_bytes()).collect();
    json!({ "count": sorted.len(), "digest": Digest::of(&bytes) })
}

/// Most memory that this process ever had, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Processor time of this process, of which Linux counts a hundredth of a second at a time.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |place: usize| after_name[place].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * 10
}

fn config() -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https();
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::for_tests()))
        .endpoint_url(format!("http://{}", address()))
        .http_client(http)
        .build()
}

fn address() -> String {
    std::env::var(ADDRESS).unwrap()
}

fn single_threaded() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn aws() -> Aws {
    Aws::from_config(config(), AwsSettings { registry: address(), ..AwsSettings::default() })
}

/// What the function does.
fn run(mode: &str) -> Value {
    let policy = policy(mode);
    let project = policy.project(&ProjectName::new("app").unwrap()).unwrap();
    let now: Timestamp = std::env::var(NOW).unwrap().parse().unwrap();
    let repository = CacheRepository::new(REPOSITORY).unwrap();
    let aws = aws();
    let enforced = enforce(&aws, &repository, std::slice::from_ref(&project), Vec::new(), now);
    let applied = single_threaded().block_on(enforced).unwrap();
    json!({
        "images": applied.plan.verdicts.len(), "bytes": applied.plan.bytes, "deleted": applied.deleted.len(),
        "changed": applied.changed.len(), "refused": applied.refused.len(),
        "planned": summary(applied.plan.deletions().into_iter().map(|verdict| &verdict.image.digest)),
    })
}

/// What cannot be done with less: the pages and the manifests are read, and dropped.
fn floor() -> Value {
    single_threaded().block_on(async {
        let ecr = aws_sdk_ecr::Client::new(&config());
        let mut digests = Vec::new();
        let mut pages =
            ecr.describe_images().repository_name(REPOSITORY).max_results(1000).into_paginator().send();
        while let Some(page) = pages.next().await {
            let images = page.unwrap().image_details.unwrap_or_default();
            digests.extend(images.into_iter().filter_map(|image| image.image_digest));
        }
        let mut read = 0;
        for some in digests.chunks(100) {
            let ids = some.iter().map(|digest| ImageIdentifier::builder().image_digest(digest).build());
            let request =
                ecr.batch_get_image().repository_name(REPOSITORY).set_image_ids(Some(ids.collect()));
            read += request.send().await.unwrap().images().len();
        }
        json!({ "manifests": read })
    })
}

fn child(role: &str) -> ExitCode {
    let began = Instant::now();
    let mut reported = match role {
        "account" => {
            account::serve(&single_threaded(), |port| println!("{port}"));
            return ExitCode::SUCCESS;
        }
        "report" | "apply" => run(role),
        _ => floor(),
    };
    reported["cpu_ms"] = cpu_ms().into();
    reported["memory_kib"] = peak_memory().into();
    reported["wall_ms"] = u64::try_from(began.elapsed().as_millis()).unwrap().into();
    println!("{reported}");
    ExitCode::SUCCESS
}

/// What a process told of itself, and the requests that it made.
struct Measured {
    reported: Value,
    requests: BTreeMap<String, u64>,
}

impl Measured {
    fn number(&self, name: &str) -> u64 {
        self.reported[name].as_u64().unwrap_or_default()
    }

    fn of(&self, operation: &str) -> u64 {
        self.requests.get(operation).copied().unwrap_or_default()
    }

    fn mib(&self) -> u64 {
        self.number("memory_kib").div_ceil(1024)
    }

    fn print(&self, name: &str) {
        let total: u64 = self.requests.values().sum();
        let each: Vec<String> = self.requests.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let (cpu, wall) = (self.number("cpu_ms"), self.number("wall_ms"));
        let (memory, each) = (self.mib(), each.join(", "));
        println!("{name:<34} {cpu:>7} ms {wall:>7} ms {memory:>5} MiB {total:>8}  {each}");
    }
}

/// The account, ended when this is dropped.
struct Account {
    process: Child,
    address: String,
}

impl Drop for Account {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Account {
    fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, "account")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { process, address: format!("127.0.0.1:{}", port.trim()) }
    }

    fn ask(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET /control/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn measure(&self, mut command: Command) -> Measured {
        self.ask("requests");
        let output = command
            .env(ADDRESS, &self.address)
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.address))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NO_PROXY", "127.0.0.1")
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "a process that was measured failed");
        let reported = serde_json::from_slice(&output.stdout).unwrap();
        Measured { reported, requests: serde_json::from_str(&self.ask("requests")).unwrap() }
    }

    fn own(&self, role: &str, now: Timestamp) -> Measured {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, role).env(NOW, now.to_string());
        self.measure(command)
    }
}

/// A Python with boto3: that of the tools, or the system's.
fn python() -> Option<PathBuf> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let tools = [".stoker/venv", ".stoker/venv-local-aws"]
        .map(|venv| PathBuf::from(root).join(venv).join("bin/python"));
    let has_boto3 = |python: &PathBuf| {
        let import = Command::new(python).args(["-c", "import boto3"]).stderr(Stdio::null()).status();
        import.is_ok_and(|status| status.success())
    };
    tools.into_iter().chain([PathBuf::from("python3")]).find(has_boto3)
}

fn ratio(run: &Measured, floor: &Measured) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    let ratio = run.number("cpu_ms") as f64 / floor.number("cpu_ms") as f64;
    ratio
}

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(ROLE) {
        return child(&role);
    }
    let Some(python) = python() else {
        eprintln!(
            "NOTHING WAS MEASURED: there is no Python with boto3 to compare with. `cargo xtask check` installs \
             one under \
             .stoker/venv; or run `python3 -m pip install boto3`."
        );
        return ExitCode::FAILURE;
    };
    let account = Account::start();
    let night = images::night();
    println!("{:<34} {:>10} {:>10} {:>9} {:>8}", "", "processor", "wall", "memory", "requests");

    let floor = account.own("floor", night);
    floor.print("the pages and manifests alone");
    let report = account.own("report", night);
    report.print("a run that reports");
    let apply = account.own("apply", night);
    let deleted: Value = serde_json::from_str(&account.ask("deleted")).unwrap();
    apply.print("a run that deletes");
    account.ask("reset");
    let mut cleaner = Command::new(python);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/retention/cleaner.py");
    let kept = images::IMAGES - images::IMAGES / 5;
    cleaner.args([script, REPOSITORY, &kept.to_string()]);
    let cleaner = account.measure(cleaner);
    cleaner.print("a cleaner in Python that deletes");
    account.ask("fill");
    let filled = account.own("apply", night);
    filled.print("a run among the worst manifests");
    println!();
    for (name, run) in [("that reports", &report), ("among the worst manifests", &filled)] {
        println!(
            "estimate: on the share of a processor that {MEMORY_MIB} MiB have, the run {name} takes {} s",
            on_lambda_ms(run) / 1000
        );
    }
    let within = judge(&[&floor, &report, &apply, &cleaner, &filled], &deleted);
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// About how long a run takes on the share of a processor that the function has.
fn on_lambda_ms(run: &Measured) -> u64 {
    run.number("cpu_ms") * MIB_OF_A_PROCESSOR / MEMORY_MIB
}

fn judge([floor, report, apply, cleaner, filled]: &[&Measured; 5], deleted: &Value) -> bool {
    let (images, goes) = (u64::from(images::IMAGES), u64::from(images::IMAGES / 5));
    let mut bounds = Vec::new();
    for (name, run) in [("run that reports", report), ("run that deletes", apply)] {
        let (mib, seen) = (run.mib(), run.number("images"));
        bounds.push((
            mib <= LEAST_MEMORY_MIB,
            format!("{name}: {mib} MiB of memory, at most {LEAST_MEMORY_MIB}"),
        ));
        bounds.push((seen == images, format!("{name}: {seen} of {images} images are judged")));
        let planned = &run.reported["planned"]["count"];
        bounds.push((*planned == goes, format!("{name}: {planned} of {goes} that nothing needs are to go")));
    }
    let ratio = ratio(report, floor);
    let text = format!("{ratio:.2} times the processor time of reading alone, at most {MOST_RATIO}");
    bounds.push((ratio <= MOST_RATIO, text));
    let (pages, batches) = (images.div_ceil(1000), goes.div_ceil(100));
    for (name, run, describe, delete) in
        [("run that reports", report, pages, 0), ("run that deletes", apply, pages + batches, batches)]
    {
        let get = images.div_ceil(100);
        let made = (run.of("DescribeImages"), run.of("BatchGetImage"), run.of("BatchDeleteImage"));
        let (pages, manifests, deletions) = made;
        let text = format!(
            "{name}: {pages} requests for pages, {manifests} for manifests, {deletions} deletions; \
             the fewest are {describe}, {get} and {delete}"
        );
        bounds.push((made == (describe, get, delete), text));
    }
    let is_as_planned = apply.reported["planned"] == *deleted && apply.number("deleted") == goes;
    bounds
        .push((is_as_planned, format!("{} images were deleted, exactly the planned ones", deleted["count"])));
    let by_cleaner = cleaner.number("deleted");
    bounds.push((by_cleaner == goes, format!("the cleaner deleted {by_cleaner} of {goes}")));
    let (mib, ms) = (filled.mib(), on_lambda_ms(filled));
    bounds.push((
        mib <= MEMORY_MIB,
        format!("among the worst manifests: {mib} MiB of memory, at most {MEMORY_MIB}"),
    ));
    bounds.push((
        ms <= MOST_MS,
        format!("among the worst manifests: {} s, at most {}", ms / 1000, MOST_MS / 1000),
    ));
    let seen = filled.number("images");
    bounds.push((seen == images, format!("among the worst manifests: {seen} of {images} images are judged")));
    for (holds, text) in &bounds {
        println!("{}: {text}", if *holds { "ok" } else { "BROKEN" });
    }
    bounds.iter().all(|(holds, _)| *holds)
}
