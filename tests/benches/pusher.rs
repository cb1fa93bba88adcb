//! What one pusher can do to the others: nine projects merge as on any day, and the builds of a tenth export
//! the worst caches that are valid, from a hundred branches at once, at the busiest hour.
//!
//! `cargo bench -p scenarios --bench pusher` lets the real handler of `promote-cache` empty the FIFO queue by
//! a clock of its own, and fails when anybody else's promotion takes too long. Time is what AWS's calls take,
//! at ECR's quotas, and the processor time that the handler needs here, times what a whole processor is to
//! the function's share of one: 1769 MB to its `MemorySize`.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement")]

use std::collections::BTreeMap;
use std::fs;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
use buildkit_cache::MANIFEST_MEDIA_TYPE;
use bytes::Bytes;
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use promote_cache::{Instance as Function, handle};
use scenarios::account::Account;
use scenarios::environment::{Source, exported};
use scenarios::iam;
use scenarios::worst::{KINDS, layers, manifest_of, worst};
use serde_json::{Value, json};
use stoker_core::build_inputs::GivenInputs;
use stoker_core::names::{Commit, Line, ProjectName};
use stoker_core::policy::Policy;
use stoker_core::ports::{Build, BuildStatus};
use tokio::time::{Instant, Sleep, sleep};

/// Nobody else waits for longer.
const MOST: Duration = Duration::from_secs(30);
/// `MemorySize` of the function, and the memory with which one has a whole processor.
const MEMORY: u32 = 256;
const PROCESSOR: u32 = 1769;
/// A call of AWS's takes so long; those of ECR's quotas wait for their turn, too.
const LATENCY: Duration = Duration::from_millis(40);
const PER_SECOND: [(&str, u32); 2] = [("registry:PutManifest", 10), ("registry:MountBlob", 100)];

const OTHERS: u32 = 9;
/// Builds and merges of each of the others, in the hour that is lived.
const BUILDS: u32 = 12;
const HOUR: u64 = 3_600_000;
const EVIL_BRANCHES: usize = 100;
/// When they come, in the hour.
const EVIL_AT: u64 = 1_200_000;
/// `BatchSize`, `VisibilityTimeout` and `maxReceiveCount` of the queue.
const BATCH: usize = 10;
const VISIBILITY: Duration = Duration::from_mins(3);
const RECEIVES: u32 = 5;

fn policy() -> Policy {
    let project = |name: String| format!("  - {{ name: {name}, repository: github.com/example/{name} }}\n");
    let projects: String =
        ["evil".to_owned()].into_iter().chain((0..OTHERS).map(other)).map(project).collect();
    let text = format!(
        "version: 1\ndefaults: {{ builds-repository: \"stoker-builds/{{project}}\" }}\nprojects:\n{projects}"
    );
    Policy::parse("the benchmark's policy", &text).unwrap()
}

fn other(number: u32) -> String {
    format!("app-{number}")
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// Lets the clock go on by what the future takes of a processor, as much slower as the function's share of one is.
async fn on_its_share<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut owed = Duration::ZERO;
    let mut busy: Option<Pin<Box<Sleep>>> = None;
    let output = poll_fn(|context| {
        loop {
            if let Some(sleeping) = &mut busy {
                if sleeping.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                busy = None;
            }
            let started = processor_time();
            let polled = future.as_mut().poll(context);
            owed += processor_time().saturating_sub(started) * PROCESSOR / MEMORY;
            if let Poll::Ready(output) = polled {
                return Poll::Ready(output);
            }
            if owed < Duration::from_millis(1) {
                return Poll::Pending;
            }
            busy = Some(Box::pin(sleep(std::mem::take(&mut owed))));
        }
    })
    .await;
    sleep(owed).await;
    output
}

/// A message of the queue, at its time in milliseconds.
struct Message {
    at: u64,
    project: String,
    body: String,
    receives: u32,
}

/// What is to come: builds end with an export, or something is merged.
struct TestEnvironment {
    account: Account,
    policy: Policy,
    start: Timestamp,
    messages: Vec<Message>,
    next: u32,
}

impl TestEnvironment {
    fn time(&self, at: u64) -> Timestamp {
        self.start + SignedDuration::from_millis(i64::try_from(at).unwrap())
    }

    fn message(&mut self, at: u64, project: &str, source: &str, kind: &str, detail: &Value) {
        let body = json!({ "version": "0", "id": "1", "source": source, "detail-type": kind, "detail": detail,
            "account": "123456789012", "time": self.time(at), "region": "us-east-1", "resources": [] });
        let (project, body) = (project.to_owned(), body.to_string());
        self.messages.push(Message { at, project, body, receives: 0 });
    }

    /// A build of a line ends with this export: ECR and CodeBuild tell so.
    fn build(
        &mut self,
        at: u64,
        project: &str,
        line: &str,
        (manifest, blobs): (Bytes, Vec<Bytes>),
    ) -> Commit {
        self.next += 1;
        let commit = Commit::new(format!("{:040x}", self.next)).unwrap();
        let name = ProjectName::new(project).unwrap();
        let repository = self.policy.project(&name).unwrap().exports().clone();
        let tag = format!("{project}.export.{}", self.next);
        self.account.push(&repository, &tag, MANIFEST_MEDIA_TYPE, manifest, blobs);
        let id = format!("{project}:{}", self.next);
        let inputs = GivenInputs {
            commit: Some(commit.clone()),
            exports: vec![tag.clone()],
            ..GivenInputs::of_line(Line::parse(line).unwrap())
        };
        self.account.builds.borrow_mut().push(Build {
            id: id.clone(),
            project: name,
            status: BuildStatus::Succeeded,
            started_at: self.time(at) - SignedDuration::from_mins(5),
            ended_at: Some(self.time(at)),
            source_version: Some(commit.to_string()),
            resolved_commit: Some(commit.to_string()),
            inputs: Some(inputs),
            claims: false,
        });
        let pushed = json!({ "result": "SUCCESS", "repository-name": repository, "image-tag": tag,
            "action-type": "PUSH" });
        self.message(at, project, "aws.ecr", "ECR Image Action", &pushed);
        let arn = format!("arn:aws:codebuild:us-east-1:123456789012:build/{id}");
        let ended = json!({ "build-status": "SUCCEEDED", "project-name": project, "build-id": arn });
        self.message(at + 500, project, "aws.codebuild", "CodeBuild Build State Change", &ended);
        commit
    }
}

impl TestEnvironment {
    /// The head of a branch was merged into main.
    fn merge(&mut self, at: u64, project: &str, branch: &str, head: &Commit) {
        let merged = json!({ "repository": format!("github.com/example/{project}"), "number": 1, "branch": branch,
            "commit": head, "base": "main", "default_branch": "main", "from_fork": false });
        self.message(at, project, "stoker", "PullRequestMerged", &merged);
    }

    /// The hour of the nine, and what the tenth makes of it.
    fn new(evil: bool) -> Self {
        let (account, policy) = (Account::default(), policy());
        account.deploy(iam::deployed(true, false));
        let start = "2026-11-21T08:00:00Z".parse().unwrap();
        account.set_now(start);
        account.latency.set(LATENCY);
        account.yields.set(true);
        account.per_second.borrow_mut().extend(PER_SECOND);
        let mut env = Self { account, policy, start, messages: Vec::new(), next: 0 };
        let mut rng = Rng::with_seed(1);
        for number in 0..OTHERS {
            let project = other(number);
            let export = |version: u32| exported(&Source { versions: [number, version, 1, 1] }, |_| start);
            env.build(1000, &project, "main", export(0));
            for build in 1..=BUILDS {
                let (at, branch) = (10_000 + rng.u64(..HOUR), format!("work-{build}"));
                let head = env.build(at, &project, &format!("branch/{branch}"), export(build));
                env.merge(at + rng.u64(..300_000), &project, &branch, &head);
            }
            // Somebody merges in the very moment.
            let head = env.build(EVIL_AT - 60_000, &project, "branch/now", export(BUILDS + 1));
            env.merge(EVIL_AT + 10, &project, "now", &head);
        }
        for branch in (0..EVIL_BRANCHES).filter(|_| evil) {
            let line = format!("branch/evil-{branch}");
            let kind = branch % (KINDS.len() + 1);
            let export = match KINDS.get(kind) {
                Some(kind) => {
                    let config = worst(kind, branch * 1_000_003);
                    (manifest_of(&config, branch), vec![Bytes::from(config)])
                }
                None => layers(branch),
            };
            env.build(EVIL_AT + branch as u64 % 7, "evil", &line, export);
        }
        env.messages.sort_by_key(|message| message.at);
        env
    }
}

/// What became of the messages of a project.
#[derive(Default)]
struct Waits {
    longest: Duration,
    all: Duration,
    messages: u32,
    given_up: u32,
}

/// Empties the queue: one batch at a time, as all messages are of one group, and none while one that failed
/// is in flight.
async fn empty(env: &mut TestEnvironment) -> BTreeMap<bool, Waits> {
    let started = Instant::now();
    let mut waits: BTreeMap<bool, Waits> = BTreeMap::new();
    let mut waiting: Vec<Message> = std::mem::take(&mut env.messages);
    waiting.reverse();
    let instance = Function::default();
    let sent = |message: &Message| started + Duration::from_millis(message.at);
    while let Some(first) = waiting.last() {
        tokio::time::sleep_until(sent(first)).await;
        let received = Instant::now();
        let from =
            waiting.len() - waiting.iter().rev().take(BATCH).take_while(|one| sent(one) <= received).count();
        let mut batch = waiting.split_off(from);
        batch.reverse();
        let event = sqs(&batch, env.start);
        let now = env.start + SignedDuration::try_from(received - started).unwrap();
        env.account.set_now(now);
        let handled = handle(&event, &env.policy, &env.account, &instance, now);
        let handled = env.account.invoke("promote-cache", Some("PromotionQueue"), handled);
        let response = on_its_share(handled).await.unwrap();
        let ended = Instant::now();
        if std::env::var_os("STOKER_BENCH_BATCHES").is_some() {
            let evil = batch.iter().filter(|message| message.project == "evil").count();
            println!("{:?} {evil} of {}: {:?}", received - started, batch.len(), ended - received);
        }
        let mut again = Vec::new();
        for mut message in batch {
            message.receives += 1;
            let failed =
                response.batch_item_failures.iter().any(|failed| *failed.item_identifier == id(&message));
            let waits = waits.entry(message.project == "evil").or_default();
            if failed && message.receives < RECEIVES {
                again.push(message);
                continue;
            }
            let waited = ended - sent(&message);
            waits.longest = waits.longest.max(waited);
            waits.all += waited;
            waits.messages += 1;
            waits.given_up += u32::from(failed);
        }
        if !again.is_empty() {
            tokio::time::sleep_until(received + VISIBILITY).await;
        }
        waiting.extend(again.into_iter().rev());
    }
    waits
}

fn id(message: &Message) -> String {
    format!("{:?}", stoker_core::names::Digest::of(message.body.as_bytes()))
}

fn sqs(batch: &[Message], start: Timestamp) -> SqsEvent {
    let record = |message: &Message| {
        let mut record = SqsMessage::default();
        record.message_id = Some(id(message));
        record.body = Some(message.body.clone());
        let receives = (message.receives + 1).to_string();
        record.attributes.insert("ApproximateReceiveCount".to_owned(), receives);
        let sent_at =
            (start + SignedDuration::from_millis(i64::try_from(message.at).unwrap())).as_millisecond();
        record.attributes.insert("SentTimestamp".to_owned(), sent_at.to_string());
        record
    };
    let mut event = SqsEvent::default();
    event.records = batch.iter().map(record).collect();
    event
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> ExitCode {
    let mut within = true;
    for (what, evil) in [("without the pusher", false), ("with the pusher", true)] {
        let started = processor_time();
        let mut env = TestEnvironment::new(evil);
        let waits = empty(&mut env).await;
        println!("{what} ({:.1} s of a processor):", processor_time().saturating_sub(started).as_secs_f32());
        for (is_evil, waits) in &waits {
            let Waits { longest, all, messages, given_up } = waits;
            let (longest, mean) = (longest.as_secs_f32(), (*all / *messages).as_secs_f32());
            let who = if *is_evil { "the pusher" } else { "the others" };
            println!(
                "  {who}: {messages} promotions, {mean:.1} s on average, {longest:.1} s at most, {given_up} given up"
            );
        }
        let others = &waits[&false];
        let holds = others.longest <= MOST && others.given_up == 0;
        within &= holds;
        println!(
            "{}: nobody else waits for longer than {} s",
            if holds { "ok" } else { "BROKEN" },
            MOST.as_secs()
        );
    }
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
