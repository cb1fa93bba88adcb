//! A day of many projects, and the night after it, with the real handlers on a model of an account and its queues.
//!
//! Everything runs on one thread and on a clock of its own, so that a scale and a seed always make the same day.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the figures of a model are far from what their types hold"
)]

mod model;
mod queue;
mod report;
mod traffic;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use futures_util::future::join_all;
use jiff::Timestamp;
use stoker_core::names::ProjectName;
use stoker_core::policy::Policy;

pub use model::{Operation, Used};
pub use report::{Report, Waits};

use crate::rng::Rng;
use model::{Invocation, Later, Model, hash_of, time_of};
use queue::{Body, Message, Queue, Settings};
use traffic::{HOUR, MINUTE, NONE, Push, Traffic};

use crate::environment::REGISTRY;

/// When the day begins, in milliseconds since 1970: 2026-11-23, a Monday.
const DAY: i64 = 1_795_392_000_000;
/// When the night's warming begins, since the day did, how many ticks it has, and when it has to have ended.
const NIGHT: u64 = 24 * HOUR + 135 * MINUTE;
const SLOTS: u32 = 24;
const SLOT: u64 = 10 * MINUTE;
const NIGHT_ENDS: u64 = NIGHT + 5 * HOUR;
/// What an invocation takes beside its calls.
const OVERHEAD: u64 = 10;
/// The mean of [`takes`], measured.
const BUILD_TAKES: f64 = 150.0;
/// The demand of the busiest hour, as a multiple of what the account can build.
const OVERLOAD: f64 = 1.45;
/// At night main is filled again when its cache is older: the policy's built-in `stale-after`.
const STALE_AFTER: i64 = 7 * 24 * 60 * 60 * 1000;
/// How often the functions look at queues where what runs at once is to meet.
const POLLS: u64 = 3000;

/// How large a day is.
#[derive(Debug, Clone)]
pub struct Scale {
    /// What makes it differ from other days.
    pub seed: u64,
    /// CodeBuild projects.
    pub projects: usize,
    /// Pushes to branches.
    pub pushes: usize,
    /// Merges, which are pushes to main.
    pub merges: usize,
    /// Most invocations of `start-build` at once.
    pub starts_at_once: usize,
    /// Most invocations of `warm-main` at once.
    pub warms_at_once: usize,
    /// Whether invocations that run at the same time take turns at every call, instead of one after the other.
    pub meets: bool,
}

/// What the policy says of a project, and the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All as built in.
    Plain,
    /// `superseded: stop`
    Stops,
    /// `start: false`: somebody else starts its builds, elsewhere.
    Others,
    /// `after-merge: false`
    Unwarmed,
    /// CodeBuild limits how many builds it may have at once.
    Limited,
}

impl Kind {
    fn of(project: u32) -> Self {
        match project % 20 {
            0..=4 => Self::Stops,
            5 | 6 => Self::Others,
            7 => Self::Unwarmed,
            8 => Self::Limited,
            _ => Self::Plain,
        }
    }

    fn settings(self) -> &'static str {
        match self {
            Self::Plain | Self::Limited => "",
            Self::Stops => ", builds: {superseded: stop}",
            Self::Others => ", builds: {start: false}",
            Self::Unwarmed => ", warm: {after-merge: false}",
        }
    }
}

fn name_of(project: u32) -> String {
    format!("p{project:05}")
}

fn number_of(project: &str) -> u32 {
    project.strip_prefix('p').and_then(|number| number.parse().ok()).expect("a project of the day")
}

/// A moment of the day.
fn at(millis: u64) -> Timestamp {
    let since = i64::try_from(millis).expect("a moment of the day");
    Timestamp::from_millisecond(DAY + since).expect("a moment of the day")
}

/// How long a build takes: most a minute or two, and some twenty.
fn takes(seed: u64, build: u32) -> u64 {
    let seconds = Rng(seed ^ u64::from(build)).heavy(100.0, 0.9).clamp(30.0, 1200.0);
    (seconds * 1000.0) as u64
}

fn policy(projects: u32) -> Policy {
    let mut text = "version: 1\nprojects:\n".to_owned();
    for project in 0..projects {
        let (name, settings) = (name_of(project), Kind::of(project).settings());
        writeln!(text, "- {{name: {name}, repository: github.com/example/{name}{settings}}}")
            .expect("written");
    }
    Policy::parse("the policy of the day", &text).expect("a policy without mistakes")
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// A message can be given out.
    Visible(Function, Message),
    /// An invocation has ended.
    Free(Function),
    /// A build goes on.
    Build(Later),
    /// The functions look at their queues.
    Poll,
}

/// A function with a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Function {
    Start,
    Warm,
}

const FUNCTIONS: [Function; 2] = [Function::Start, Function::Warm];

struct Day {
    scale: Scale,
    policy: Policy,
    traffic: Traffic,
    model: Model,
    rng: Rng,
    now: u64,
    next: BinaryHeap<Reverse<(u64, u64, Next)>>,
    sequence: u64,
    queues: [Queue; 2],
    /// The instances of `start-build`, which take turns.
    starters: Vec<start_build::Instance>,
    /// Messages beside the first of each push.
    again: usize,
    /// When the last project's turn in the night was done with.
    night_ended: u64,
    turns: usize,
}

/// Lives through a day and its night.
pub async fn live(scale: &Scale) -> Report {
    let mut day = Day::new(scale);
    day.live().await;
    Report::of(&day)
}

impl Day {
    fn new(scale: &Scale) -> Self {
        let traffic = Traffic::new(scale);
        let projects = u32::try_from(scale.projects).expect("fewer projects");
        let demand = traffic.peak as f64 * BUILD_TAKES / 3600.0;
        let capacity = ((demand / OVERLOAD).ceil() as usize).max(2);
        let names =
            (0..projects).map(|project| ProjectName::new(name_of(project)).expect("a name")).collect();
        let seconds = |seconds: u64| seconds * 1000;
        let starts = Settings {
            delay: seconds(2),
            visibility: seconds(120),
            at_once: scale.starts_at_once,
            max_receives: 720,
        };
        let warms = Settings {
            delay: seconds(120),
            visibility: seconds(180),
            at_once: scale.warms_at_once,
            max_receives: 480,
        };
        Self {
            policy: policy(projects),
            model: Model::new(&traffic, names, scale.seed, capacity),
            traffic,
            rng: Rng(!scale.seed),
            now: 0,
            next: BinaryHeap::new(),
            sequence: 0,
            starters: (0..scale.starts_at_once).map(|_| start_build::Instance::default()).collect(),
            queues: [Queue::new(starts), Queue::new(warms)],
            again: 0,
            night_ended: 0,
            turns: 0,
            scale: scale.clone(),
        }
    }

    fn plan(&mut self, at: u64, next: Next) {
        self.sequence += 1;
        self.next.push(Reverse((at, self.sequence, next)));
    }

    async fn live(&mut self) {
        for tick in 0..u64::from(SLOTS) {
            // EventBridge Scheduler's tick: on the minute.
            let sent = NIGHT + tick * SLOT;
            let message = Message { body: Body::Tick, sent, receives: 0, again: false };
            self.send(Function::Warm, message, sent);
        }
        if self.scale.meets {
            self.plan(0, Next::Poll);
        }
        let mut pushed = 0;
        loop {
            let push = self.traffic.pushes.get(pushed).copied();
            let next = self.next.peek().map(|Reverse((at, ..))| *at);
            match (push, next) {
                (Some(push), next) if next.is_none_or(|next| push.at <= next) => {
                    self.now = push.at;
                    self.push(pushed as u32, &push);
                    pushed += 1;
                }
                (_, Some(_)) => self.step().await,
                _ => break,
            }
            if !self.scale.meets {
                self.build_inputs_of().await;
            }
        }
    }

    /// A push comes to the bus, and now and then once more: from EventBridge at once, from the forge much later.
    fn push(&mut self, number: u32, push: &Push) {
        let mut arrivals = vec![self.now + 200 + self.rng.below(800)];
        let (twice, later) = (self.rng.below(1000), self.rng.below(1000));
        if twice < 10 {
            arrivals.push(arrivals[0] + self.rng.below(MINUTE));
        }
        if later < 5 {
            arrivals.push(self.now + 10 * MINUTE + self.rng.below(10 * MINUTE));
        } else if later < 7 {
            arrivals.push(self.now + 3 * HOUR + self.rng.below(HOUR));
        }
        self.again += arrivals.len() - 1;
        if push.line == NONE {
            self.model.main_moved(number, push, self.now);
        }
        for (place, sent) in arrivals.into_iter().enumerate() {
            let message = Message { body: Body::Push(number), sent, receives: 0, again: place > 0 };
            self.send(Function::Start, message, sent);
            if push.line == NONE {
                self.send(Function::Warm, message, sent);
            }
        }
    }

    fn send(&mut self, to: Function, message: Message, sent: u64) {
        let delay = self.queues[to as usize].settings.delay;
        self.plan(sent + delay, Next::Visible(to, message));
    }

    async fn step(&mut self) {
        let Some(Reverse((at, _, next))) = self.next.pop() else { return };
        self.now = at;
        match next {
            Next::Visible(function, message) => self.queues[function as usize].put(message),
            Next::Free(function) => self.queues[function as usize].busy -= 1,
            Next::Build(later) => {
                self.model.happens(later, at);
                self.plan_builds();
            }
            Next::Poll => {
                self.build_inputs_of().await;
                if !self.next.is_empty() || at < 24 * HOUR {
                    self.plan(at + POLLS, Next::Poll);
                }
            }
        }
    }

    fn plan_builds(&mut self) {
        let later = self.model.later.take();
        for (at, later) in later {
            self.plan(at, Next::Build(later));
        }
    }

    /// Hands out all that the functions can take now.
    async fn build_inputs_of(&mut self) {
        for function in FUNCTIONS {
            let mut batches = Vec::new();
            while let Some(batch) = self.queues[function as usize].take(&mut self.rng) {
                batches.push(batch);
            }
            if batches.is_empty() {
                continue;
            }
            let yields: Vec<_> = batches
                .iter()
                .map(|_| self.scale.meets.then(|| RefCell::new(Rng(self.rng.next()))))
                .collect();
            let runs = batches.iter().zip(yields).map(|(batch, yields)| self.invoke(function, batch, yields));
            let ran = join_all(runs).await;
            for (batch, (failed, spent)) in batches.iter().zip(ran) {
                self.invoked(function, batch, &failed, spent);
            }
            self.plan_builds();
        }
    }

    /// An invocation, the ids of the messages that failed in it, and how long it took.
    async fn invoke(
        &self,
        function: Function,
        batch: &[Message],
        yields: Option<RefCell<Rng>>,
    ) -> (Vec<usize>, u64) {
        let began = tokio::time::Instant::now();
        let event = self.event(batch);
        let invocation =
            Invocation { model: &self.model, began: self.now, spent: Cell::new(OVERHEAD), yields };
        let now = at(self.now);
        let response = match function {
            Function::Start => {
                let instance = &self.starters[self.queues[0].batches % self.starters.len()];
                start_build::handle(&event, &self.policy, REGISTRY, &invocation, instance, now).await
            }
            Function::Warm => warm_main::handle(&event, &self.policy, REGISTRY, &invocation, now).await,
        };
        let slept = u64::try_from(began.elapsed().as_millis()).expect("a short sleep");
        (failed(&response), invocation.spent.get() + slept)
    }

    fn invoked(&mut self, function: Function, batch: &[Message], failed: &[usize], spent: u64) {
        self.plan(self.now + spent, Next::Free(function));
        for project in self.model.published.take() {
            self.turns += 1;
            let sent = self.now + spent;
            let message = Message { body: Body::Wanted(project), sent, receives: 0, again: false };
            self.send(Function::Warm, message, sent);
        }
        for (place, message) in batch.iter().enumerate() {
            let queue = &mut self.queues[function as usize];
            let visible = self.now + queue.settings.visibility;
            if failed.contains(&place) {
                if queue.again(message) {
                    self.plan(visible, Next::Visible(function, *message));
                }
            } else if matches!(message.body, Body::Wanted(_)) {
                self.night_ended = self.night_ended.max(self.now + spent);
            }
        }
    }

    fn event(&self, batch: &[Message]) -> SqsEvent {
        let mut event = SqsEvent::default();
        for (place, message) in batch.iter().enumerate() {
            let mut record = SqsMessage::default();
            record.message_id = Some(place.to_string());
            record.body = Some(self.body(message));
            let receives = message.receives.to_string();
            record.attributes.insert("ApproximateReceiveCount".to_owned(), receives);
            event.records.push(record);
        }
        event
    }

    /// A message as EventBridge puts it into a queue.
    fn body(&self, message: &Message) -> String {
        let envelope = |kind: &str, detail: &str| {
            let time = time_of(message.sent);
            format!(
                r#"{{"version":"0","source":"stoker","time":"{time}","detail-type":"{kind}","detail":{detail}}}"#
            )
        };
        match message.body {
            Body::Wanted(project) => {
                envelope("WarmRequested", &format!(r#"{{"project":"{}"}}"#, name_of(project)))
            }
            Body::Tick => {
                envelope("NightlyWarm", &format!(r#"{{"slots":{SLOTS},"every_minutes":{}}}"#, SLOT / MINUTE))
            }
            Body::Push(number) => {
                let push = self.traffic.pushes[number as usize];
                let is_main = push.line == NONE;
                let branch = if is_main { "main".to_owned() } else { format!("b{}", push.line) };
                let quoted = |number: u32| format!("\"{}\"", hash_of(number));
                let (head, pushed_at) = (quoted(number), time_of(push.at));
                let before = if push.before == NONE { "null".to_owned() } else { quoted(push.before) };
                let merged =
                    if push.merged == NONE { String::new() } else { format!("{},", quoted(push.merged)) };
                let repository = format!("github.com/example/{}", name_of(push.project));
                envelope(
                    "BranchPushed",
                    &format!(
                        r#"{{"repository":"{repository}","branch":"{branch}","commit":{head},"commits":[{merged}{head}],"default_branch":"main","to_default_branch":{is_main},"before":{before},"pushed_at":"{pushed_at}"}}"#
                    ),
                )
            }
        }
    }
}

fn failed(response: &SqsBatchResponse) -> Vec<usize> {
    let ids = response.batch_item_failures.iter().map(|failure| failure.item_identifier.parse());
    ids.collect::<Result<_, _>>().expect("the ids of messages")
}

/// Calls by operation.
type Calls = BTreeMap<Operation, Used>;
