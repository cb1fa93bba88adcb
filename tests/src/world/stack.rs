//! The stack as `template.yaml` deploys it, minute by minute: rules and schedules bring events to queues and
//! functions, what cannot be delivered becomes a dead letter, Lambda takes from the queues, and AWS counts
//! all of it.
//!
//! Beside the real functions only what an operator's alarms are about is here: deliveries arrive at once or
//! not at all, a run ends within its minute, and none waits for another's end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlResponse;
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stoker::error::Disposition;
use stoker::policy::Policy;
use tokio::time::{Instant, timeout};
use wildmatch::WildMatch;

use super::{World, failures};
use crate::account::Account;
use crate::alarms;
use crate::iam::{self, Deployed};
use crate::template::{FUNCTION, QUEUE, RULE, RULE_OF_FUNCTION, SCHEDULE, events, of_type, resource_of};

/// The functions, by their names without the stack's.
const FUNCTIONS: [&str; 7] = [
    "receive-webhook",
    "receive-codecommit",
    "start-build",
    "resolve-cache",
    "promote-cache",
    "warm-main",
    "enforce-retention",
];

/// A message in a queue.
#[derive(Debug, Clone)]
struct Message {
    id: u64,
    body: String,
    sent_at: Timestamp,
    visible_at: Timestamp,
    receives: u64,
    /// Of a dead letter: the queue that it was for, if it was for one.
    meant_for: Option<String>,
}

/// A queue, as the template sets it.
#[derive(Debug)]
struct Queue {
    physical_name: String,
    arn: String,
    is_fifo: bool,
    delay: SignedDuration,
    visibility: SignedDuration,
    /// After how many receives a message goes where.
    dead: Option<(u64, String)>,
    /// Nobody looks whether anything is in it, as Lambda does with others.
    is_left_alone: bool,
    messages: Vec<Message>,
    used_at: Option<Timestamp>,
}

/// SQS tells nothing of a queue that nobody has used for so long.
const ACTIVE: SignedDuration = SignedDuration::from_hours(6);

/// Received so often, a message of a standard queue is no longer the oldest, however old it is.
const RECEIVES_TO_COUNT: u64 = 3;

impl Queue {
    fn new(deployed: &Deployed, name: &str, properties: &Value) -> Self {
        let properties = deployed.resolved(properties);
        let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
        let seconds =
            |property: &str| SignedDuration::from_secs(number(&properties[property]).unwrap_or_default());
        let redrive = &properties["RedrivePolicy"];
        let dead = redrive["maxReceiveCount"].as_u64().map(|most| {
            let arn = redrive["deadLetterTargetArn"].as_str().expect("an ARN");
            (most, arn.to_owned())
        });
        let arn = deployed.arn_of(name);
        Self {
            physical_name: arn.rsplit(':').next().expect("a name").to_owned(),
            arn,
            is_fifo: properties["FifoQueue"] == true,
            delay: seconds("DelaySeconds"),
            visibility: seconds("VisibilityTimeout"),
            // The queues of dead letters are those without any of their own.
            is_left_alone: dead.is_none(),
            dead,
            messages: Vec::new(),
            used_at: None,
        }
    }

    /// Takes what can be received now, and leaves it in flight.
    fn receive(&mut self, now: Timestamp, most: usize) -> Vec<Message> {
        let is_in_flight = |message: &Message| message.receives > 0 && message.visible_at > now;
        // All messages of Stoker's FIFO queues are of one group.
        if self.is_fifo && self.messages.iter().any(is_in_flight) {
            return Vec::new();
        }
        let visible = self.messages.iter_mut().filter(|message| message.visible_at <= now).take(most);
        visible
            .map(|message| {
                message.receives += 1;
                message.visible_at = now + self.visibility;
                message.clone()
            })
            .collect()
    }

    fn is_active(&self, now: Timestamp) -> bool {
        !self.is_left_alone || self.used_at.is_some_and(|used_at| now.duration_since(used_at) < ACTIVE)
    }

    /// What has been received too often, once it is visible again.
    fn give_up(&mut self, now: Timestamp) -> Vec<Message> {
        let most = self.dead.as_ref().map_or(u64::MAX, |(most, _)| *most);
        self.messages
            .extract_if(.., |message| message.receives >= most && message.visible_at <= now)
            .collect()
    }

    /// The age of the oldest message, in seconds, if there is one that counts.
    fn age(&self, now: Timestamp) -> Option<u64> {
        let counts = |message: &&Message| self.is_fifo || message.receives < RECEIVES_TO_COUNT;
        let oldest = self.messages.iter().filter(counts).map(|message| message.sent_at).min()?;
        u64::try_from(now.duration_since(oldest).as_secs()).ok()
    }
}

/// Where a rule brings its events.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Queue(String),
    ReceiveCodecommit,
}

/// A rule, as the template sets it.
#[derive(Debug)]
struct Rule {
    name: String,
    arn: String,
    bus: Option<String>,
    pattern: Value,
    target: Target,
    dead: String,
}

/// A schedule, as the template sets it.
#[derive(Debug)]
struct Schedule {
    group: String,
    expression: String,
    target: String,
    input: String,
    role: String,
    retries: u64,
    longest: SignedDuration,
    dead: String,
}

/// A turn of a schedule that is to be tried.
#[derive(Debug)]
struct Turn {
    schedule: usize,
    due_at: Timestamp,
    next_at: Timestamp,
    tries: u64,
}

/// An event that Lambda holds for a function.
#[derive(Debug)]
struct Held {
    event: Value,
    next_at: Timestamp,
    tries: u64,
}

/// A queue from which Lambda takes for a function.
#[derive(Debug, Clone)]
struct Trigger {
    function: &'static str,
    queue: String,
    most: usize,
}

/// What came of an invocation.
#[derive(Debug)]
enum Invoked<T> {
    /// The function ended by itself.
    Answered(T),
    /// It was killed, ran out of time, or did not start.
    Failed,
    /// Lambda did not let it run.
    Throttled,
}

impl<T> Invoked<T> {
    fn answer(self) -> Option<T> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::Failed | Self::Throttled => None,
        }
    }
}

/// The stack.
#[derive(Debug)]
pub struct Stack {
    deployed: Arc<Deployed>,
    queues: BTreeMap<String, Queue>,
    triggers: Vec<Trigger>,
    rules: Vec<Rule>,
    schedules: Vec<Schedule>,
    /// Seconds that each function may run.
    timeouts: BTreeMap<&'static str, u64>,
    turns: Vec<Turn>,
    held: Vec<Held>,
    next: u64,
    /// Queues whose trigger somebody has switched off.
    pub switched_off: BTreeSet<&'static str>,
    /// Functions of which somebody lets none run at once.
    pub reserved_none: BTreeSet<&'static str>,
    /// Whether the account has no function to run left.
    pub is_full: bool,
    /// Whether the functions let `EventBridge` invoke them.
    pub lets_invoke: bool,
    /// Whether the policy is one with which functions start.
    starts: bool,
    /// What forges were not answered as they like, to be delivered again.
    pub undelivered: Vec<(&'static str, Vec<u8>)>,
}

fn static_name(deployed: &Deployed, properties: &Value) -> &'static str {
    let name = deployed.resolved(&properties["FunctionName"]);
    let is_it = |known: &&&str| name == format!("{}-{known}", deployed.place.stack);
    FUNCTIONS.iter().find(is_it).unwrap_or_else(|| panic!("what does {name} do?"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text is wanted rather than {value}")).to_owned()
}

impl Stack {
    fn new(deployed: Arc<Deployed>) -> Self {
        let template = deployed.template();
        let of_queues = of_type(template, QUEUE).into_iter();
        let queues =
            of_queues.map(|(name, queue)| (name.to_owned(), Queue::new(&deployed, name, queue))).collect();
        let functions = of_type(template, FUNCTION);
        let triggers = events(template, "SQS").into_values().map(|(function, event)| Trigger {
            function: static_name(&deployed, functions[function]),
            queue: resource_of(&event["Queue"]).expect("a queue"),
            most: event["BatchSize"].as_u64().and_then(|size| usize::try_from(size).ok()).expect("a size"),
        });
        let timeouts = functions.values().map(|properties| {
            (static_name(&deployed, properties), properties["Timeout"].as_u64().expect("a timeout"))
        });
        Self {
            queues,
            triggers: triggers.collect(),
            rules: rules(&deployed),
            schedules: schedules(&deployed),
            timeouts: timeouts.collect(),
            turns: Vec::new(),
            held: Vec::new(),
            next: 0,
            switched_off: BTreeSet::new(),
            reserved_none: BTreeSet::new(),
            is_full: false,
            lets_invoke: true,
            starts: true,
            undelivered: Vec::new(),
            deployed,
        }
    }

    /// Deploys: settings are the template's, messages stay.
    fn deploy(&mut self, deployed: Arc<Deployed>) {
        let mut anew = Self::new(deployed);
        for (name, queue) in &mut self.queues {
            let anew = anew.queues.get_mut(name).expect("the same queues");
            (anew.messages, anew.used_at) = (std::mem::take(&mut queue.messages), queue.used_at);
        }
        (anew.turns, anew.held) = (std::mem::take(&mut self.turns), std::mem::take(&mut self.held));
        (anew.next, anew.starts) = (self.next, self.starts);
        anew.undelivered = std::mem::take(&mut self.undelivered);
        *self = anew;
    }

    fn send(&mut self, queue: &str, body: String, now: Timestamp, meant_for: Option<String>) {
        self.next += 1;
        let queue = self.queues.get_mut(queue).expect("a queue of the template");
        let visible_at = now + queue.delay;
        queue.used_at = Some(now);
        queue.messages.push(Message {
            id: self.next,
            body,
            sent_at: now,
            visible_at,
            receives: 0,
            meant_for,
        });
    }

    fn queue_of(&self, arn: &str) -> String {
        let found = self.queues.iter().find(|(_, queue)| queue.arn == arn);
        found.unwrap_or_else(|| panic!("{arn} is no queue")).0.clone()
    }

    /// An event comes to a bus: that of the stack, or the account's default one. `EventBridge` does not try
    /// again what it is refused.
    pub(super) fn put(&mut self, bus: Option<&str>, event: &Value, now: Timestamp) {
        let is_for = |rule: &&Rule| rule.bus.as_deref() == bus && matches(&rule.pattern, event);
        let rules = std::mem::take(&mut self.rules);
        for rule in rules.iter().filter(is_for) {
            self.deliver(rule, event, now);
        }
        self.rules = rules;
    }

    fn deliver(&mut self, rule: &Rule, event: &Value, now: Timestamp) {
        let may_send = |queue: &str| self.deployed.lets_send(queue, "events.amazonaws.com", &rule.arn);
        match &rule.target {
            Target::Queue(queue) if may_send(queue) => self.send(queue, event.to_string(), now, None),
            Target::ReceiveCodecommit if self.lets_invoke => {
                self.held.push(Held { event: event.clone(), next_at: now, tries: 0 });
            }
            target if may_send(&rule.dead) => {
                let queue = if let Target::Queue(queue) = target { Some(queue.clone()) } else { None };
                self.send(&rule.dead, event.to_string(), now, queue);
            }
            _ => {
                let of_bus = rule.bus.as_deref().map(|bus| ("EventBusName", bus));
                let dimensions: Vec<_> =
                    of_bus.into_iter().chain([("RuleName", rule.name.as_str())]).collect();
                count(now, "AWS/Events", "InvocationsFailedToBeSentToDlq", &dimensions);
            }
        }
    }

    /// The schedules whose minute it is, and the turns that are tried again: after one minute, two, four and
    /// so on.
    fn tick(&mut self, now: Timestamp) {
        for (schedule, Schedule { expression, .. }) in self.schedules.iter().enumerate() {
            if is_due(expression, now) {
                self.turns.push(Turn { schedule, due_at: now, next_at: now, tries: 0 });
            }
        }
        let turns: Vec<Turn> = self.turns.extract_if(.., |turn| turn.next_at <= now).collect();
        for mut turn in turns {
            let Schedule { group, target, input, role, retries, longest, dead, .. } =
                &self.schedules[turn.schedule];
            let may = |queue: &str| {
                let grants = self.deployed.roles.get(role).expect("the role");
                iam::may(grants, "sqs:SendMessage", &self.deployed.arn_of(queue))
            };
            let group = [("ScheduleGroup", group.as_str())];
            let body = input.replace("<aws.scheduler.scheduled-time>", &turn.due_at.to_string());
            let (target, dead, lasts) = (target.clone(), dead.clone(), now.duration_since(turn.due_at));
            turn.tries += 1;
            if may(&target) {
                self.send(&target, body, now, None);
                continue;
            }
            count(now, "AWS/Scheduler", "TargetErrorCount", &group);
            if turn.tries <= *retries && lasts < *longest {
                turn.next_at = now + SignedDuration::from_mins(1 << (turn.tries - 1));
                self.turns.push(turn);
                continue;
            }
            count(now, "AWS/Scheduler", "InvocationDroppedCount", &group);
            if may(&dead) {
                self.send(&dead, body, now, Some(target));
            } else {
                count(now, "AWS/Scheduler", "InvocationsFailedToBeSentToDeadLetterCount", &group);
            }
        }
    }

    /// What SQS tells of each queue, once a minute.
    fn sample(&self, now: Timestamp) {
        for queue in self.queues.values().filter(|queue| queue.is_active(now)) {
            let name = [("QueueName", queue.physical_name.as_str())];
            let visible = queue.messages.iter().filter(|message| message.visible_at <= now).count() as u64;
            let age = queue.age(now).map(|age| ("ApproximateAgeOfOldestMessage", age));
            let visible = Some(("ApproximateNumberOfMessagesVisible", visible));
            put(now, "AWS/SQS", &name, &[visible, age].into_iter().flatten().collect::<Vec<_>>());
        }
    }

    /// What has been tried too often goes to the dead letters.
    fn give_up(&mut self, now: Timestamp) {
        let mut gone = Vec::new();
        for (name, queue) in &mut self.queues {
            let dead = queue.dead.as_ref().map(|(_, arn)| arn.clone());
            gone.extend(queue.give_up(now).into_iter().map(|message| (name.clone(), dead.clone(), message)));
        }
        for (name, dead, message) in gone {
            let dead = self.queue_of(&dead.expect("a queue with dead letters"));
            self.send(&dead, message.body, now, Some(name));
        }
    }

    /// Sends what is in a dead-letter queue back to where it was to go, or invokes the function that it was
    /// for: what `stoker redrive` does, and asks for.
    pub fn redrive(&mut self, dead: &str, now: Timestamp) {
        let queue = self.queues.get_mut(dead).expect("a queue");
        queue.used_at = Some(now);
        let letters = std::mem::take(&mut queue.messages);
        for letter in letters {
            if let Some(queue) = letter.meant_for {
                self.send(&queue, letter.body, now, None);
                continue;
            }
            let mut event: Value = serde_json::from_str(&letter.body).expect("an event");
            let payload = event.get_mut("requestPayload").map(Value::take);
            self.held.push(Held { event: payload.unwrap_or(event), next_at: now, tries: 0 });
        }
    }

    /// Lambda invokes a function, and counts it. Its answer may be one of an error.
    async fn invoke<F: Future>(
        &self,
        account: &Account,
        function: &'static str,
        queue: Option<&str>,
        handling: F,
        is_error: impl Fn(&F::Output) -> bool,
    ) -> Invoked<F::Output> {
        let now = account.now();
        let name = format!("{}-{function}", self.deployed.place.stack);
        let of_function = [("FunctionName", name.as_str())];
        if self.is_full || self.reserved_none.contains(function) {
            count(now, "AWS/Lambda", "Throttles", &of_function);
            return Invoked::Throttled;
        }
        let (began, longest) = (Instant::now(), Duration::from_secs(self.timeouts[function]));
        let ended = if self.starts {
            let handled = timeout(longest, account.invoke(function, queue, Box::pin(handling))).await;
            handled.ok().flatten()
        } else {
            None
        };
        let errors = u64::from(ended.as_ref().is_none_or(is_error));
        let duration = u64::try_from(began.elapsed().as_millis()).expect("a short time");
        put(now, "AWS/Lambda", &of_function, &[("Throttles", 0), ("Errors", errors), ("Duration", duration)]);
        ended.map_or(Invoked::Failed, Invoked::Answered)
    }

    /// The status that a forge sees.
    pub(super) async fn answer(
        &self,
        account: &Account,
        handling: impl Future<Output = LambdaFunctionUrlResponse>,
    ) -> i64 {
        match self.invoke(account, "receive-webhook", None, handling, |_| false).await {
            Invoked::Answered(response) => response.status_code,
            Invoked::Failed => 502,
            Invoked::Throttled => 429,
        }
    }
}

fn rules(deployed: &Deployed) -> Vec<Rule> {
    let template = deployed.template();
    let dead = |target: &Value| resource_of(&target["DeadLetterConfig"]).expect("a queue for dead letters");
    let name_of = |arn: &str| arn.rsplit('/').next().expect("a name").to_owned();
    let on_buses = of_type(template, RULE).into_iter().flat_map(|(logical, rule)| {
        let arn = deployed.arn_of(logical);
        let bus = rule.get("EventBusName").map(|bus| text(&deployed.resolved(bus)));
        let targets = rule["Targets"].as_array().expect("targets").iter();
        targets.map(move |target| Rule {
            name: name_of(&arn),
            arn: arn.clone(),
            bus: bus.clone(),
            pattern: deployed.resolved(&rule["EventPattern"]),
            target: Target::Queue(resource_of(&target["Arn"]).expect("a queue")),
            dead: dead(target),
        })
    });
    let of_functions = events(template, RULE_OF_FUNCTION).into_iter().map(|(logical, (function, event))| {
        assert_eq!(function, "ReceiveCodecommit", "the only function that a rule invokes");
        let arn = deployed.arn_of(&logical);
        let pattern = deployed.resolved(&event["Pattern"]);
        let target = Target::ReceiveCodecommit;
        Rule { name: name_of(&arn), arn, bus: None, pattern, target, dead: dead(event) }
    });
    on_buses.chain(of_functions).collect()
}

fn schedules(deployed: &Deployed) -> Vec<Schedule> {
    let all = of_type(deployed.template(), SCHEDULE).into_values().map(|schedule| {
        let (target, resolved) = (&schedule["Target"], deployed.resolved(schedule));
        let retry = &target["RetryPolicy"];
        Schedule {
            group: text(&resolved["GroupName"]),
            expression: text(&resolved["ScheduleExpression"]),
            target: resource_of(&target["Arn"]).expect("a queue"),
            input: text(&resolved["Target"]["Input"]),
            role: resource_of(&target["RoleArn"]).expect("a role"),
            retries: retry["MaximumRetryAttempts"].as_u64().expect("a number"),
            longest: SignedDuration::from_secs(retry["MaximumEventAgeInSeconds"].as_i64().expect("seconds")),
            dead: resource_of(&target["DeadLetterConfig"]).expect("a queue for dead letters"),
        }
    });
    all.collect()
}

/// Whether an event pattern matches: what a rule of the template needs of `EventBridge`'s language.
fn matches(pattern: &Value, event: &Value) -> bool {
    let fields = pattern.as_object().expect("a pattern").iter();
    fields.into_iter().all(|(name, wanted)| match wanted {
        Value::Array(any) if name == "$or" => any.iter().any(|pattern| matches(pattern, event)),
        Value::Array(any) => any.iter().any(|one| is_one(one, &event[name])),
        pattern => matches(pattern, &event[name]),
    })
}

fn is_one(wanted: &Value, value: &Value) -> bool {
    let (prefix, wildcard) = (wanted["prefix"].as_str(), wanted["wildcard"].as_str());
    match (value.as_str(), prefix, wildcard) {
        (Some(value), Some(prefix), None) => value.starts_with(prefix),
        (Some(value), None, Some(wildcard)) => WildMatch::new(wildcard).matches(value),
        _ => {
            assert!(!wanted.is_object() || value.is_null(), "what does {wanted} match?");
            wanted == value
        }
    }
}

/// Whether a schedule such as `cron(0/10 1-4 * * ? *)` is due in this minute.
fn is_due(expression: &str, now: Timestamp) -> bool {
    let fields =
        expression.strip_prefix("cron(").and_then(|rest| rest.strip_suffix(')')).expect("a cron(...)");
    let [minutes, hours, "*", "*", "?", "*"] = fields.split(' ').collect::<Vec<_>>()[..] else {
        panic!("when is {expression}?");
    };
    let (every, now) = (minutes.strip_prefix("0/").expect("0/..."), now.to_zoned(TimeZone::UTC));
    let (from, to) = hours.split_once('-').expect("hours");
    let number = |text: &str| text.parse::<i8>().expect("a number");
    (number(from)..=number(to)).contains(&now.hour()) && now.minute() % number(every) == 0
}

/// Metrics of AWS's own, on standard output beside those that the functions put there.
#[expect(clippy::print_stdout, reason = "CloudWatch reads metrics there")]
fn put(now: Timestamp, namespace: &str, dimensions: &[(&str, &str)], values: &[(&str, u64)]) {
    println!("{}", alarms::line(now.as_millisecond(), namespace, dimensions, values));
}

/// Something happened once.
fn count(now: Timestamp, namespace: &str, metric: &str, dimensions: &[(&str, &str)]) {
    put(now, namespace, dimensions, &[(metric, 1)]);
}

fn batch(messages: &[Message]) -> SqsEvent {
    let mut event = SqsEvent::default();
    event.records = messages
        .iter()
        .map(|message| {
            let mut record = SqsMessage::default();
            record.message_id = Some(message.id.to_string());
            record.body = Some(message.body.clone());
            let sent = message.sent_at.as_millisecond().to_string();
            record.attributes.insert("SentTimestamp".to_owned(), sent);
            record.attributes.insert("ApproximateReceiveCount".to_owned(), message.receives.to_string());
            record
        })
        .collect();
    event
}

impl World {
    /// From here on the world lives by the clock, as the template has it.
    pub fn live_by_the_clock(&mut self) {
        self.stack = Some(Stack::new(self.account.deployed()));
    }

    /// The stack of a world that lives by the clock.
    pub fn stack(&mut self) -> &mut Stack {
        self.stack.as_mut().expect("a world that lives by the clock")
    }

    /// Somebody changes what is deployed.
    pub fn change(&mut self, change: impl FnOnce(&mut Value)) {
        let deployed = self.account.deployed();
        let mut template = deployed.template().clone();
        change(&mut template);
        self.deploy(Arc::new(Deployed::new(template, deployed.place.clone())));
    }

    /// Deploys: somebody's changes are gone.
    pub fn deploy(&mut self, deployed: Arc<Deployed>) {
        self.account.deploy(deployed.clone());
        self.stack().deploy(deployed);
    }

    /// Deploys a policy. One with a mistake keeps the functions from starting.
    pub fn deploy_policy(&mut self, text: &str) {
        let policy = Policy::parse("the story's policy", text);
        self.stack().starts = policy.is_ok();
        if let Ok(policy) = policy {
            self.policy = policy;
        }
    }

    /// An event of AWS's own comes to the account's default bus.
    pub fn aws_tells(&mut self, event: &Value) {
        let now = self.account.now();
        self.stack().put(None, event, now);
    }

    /// Somebody has the forge deliver again what was not answered as it likes.
    pub async fn redeliver(&mut self) {
        for (event, body) in std::mem::take(&mut self.stack().undelivered) {
            self.deliver_bytes(event, body).await;
        }
    }

    /// A caller asks `resolve-cache`; whether it was answered.
    pub async fn ask(&mut self, question: Value) -> bool {
        let (account, stack) = (&self.account, self.stack.as_ref().expect("a world that lives by the clock"));
        let handled = resolve_cache::handle(question, &self.policy, &self.registry, account, account.now());
        let invoked = stack.invoke(account, "resolve-cache", None, handled, Result::is_err).await;
        invoked.answer().is_some_and(|answer| answer.is_ok())
    }

    /// A minute goes by.
    pub async fn minute(&mut self) {
        let now = self.account.now();
        self.stack().tick(now);
        while self.look(now).await {}
        self.stack().sample(now);
        self.wait(SignedDuration::from_mins(1));
    }

    /// Lambda looks once at all that it could run now; whether there was anything.
    async fn look(&mut self, now: Timestamp) -> bool {
        self.stack().give_up(now);
        let held: Vec<Held> = self.stack().held.extract_if(.., |held| held.next_at <= now).collect();
        let mut found = !held.is_empty();
        for held in held {
            self.run_held(held, now).await;
        }
        let triggers = self.stack().triggers.clone();
        for Trigger { function, queue, most } in triggers {
            if self.stack().switched_off.contains(queue.as_str()) {
                continue;
            }
            let messages = self.stack().queues.get_mut(&queue).expect("a queue").receive(now, most);
            if messages.is_empty() {
                continue;
            }
            found = true;
            let response = self.run_batch(function, &queue, &batch(&messages), now).await;
            self.route();
            let failed = failures(response.as_ref());
            let is_done = |message: &Message| {
                failed.as_ref().is_some_and(|failed| !failed.contains(&message.id.to_string()))
            };
            let done: BTreeSet<u64> =
                messages.iter().filter(|message| is_done(message)).map(|m| m.id).collect();
            let queue = self.stack().queues.get_mut(&queue).expect("a queue");
            queue.messages.retain(|message| !done.contains(&message.id));
        }
        found
    }

    /// A function handles what came from a queue.
    async fn run_batch(
        &self,
        function: &'static str,
        queue: &str,
        event: &SqsEvent,
        now: Timestamp,
    ) -> Option<SqsBatchResponse> {
        let (account, policy, registry) = (&self.account, &self.policy, &self.registry);
        let stack = self.stack.as_ref().expect("a world that lives by the clock");
        let (queue, fine) = (Some(queue), |_: &SqsBatchResponse| false);
        let invoked = match function {
            "start-build" => {
                let handled = start_build::handle(event, policy, registry, account, &self.starter, now);
                stack.invoke(account, function, queue, handled, fine).await
            }
            "warm-main" => {
                let handled = warm_main::handle(event, policy, registry, account, now);
                stack.invoke(account, function, queue, handled, fine).await
            }
            "promote-cache" => {
                let handled = promote_cache::handle(event, policy, account, now);
                stack.invoke(account, function, queue, handled, fine).await
            }
            "enforce-retention" => {
                let handled = enforce_retention::handle(event, policy, account, now);
                stack.invoke(account, function, queue, handled, fine).await
            }
            other => panic!("{other} takes from no queue"),
        };
        invoked.answer()
    }

    /// `receive-codecommit` handles an event. Lambda tries again after a minute, then two; what it does not
    /// let run, it holds.
    async fn run_held(&mut self, mut held: Held, now: Timestamp) {
        let (account, stack) = (&self.account, self.stack.as_ref().expect("a world that lives by the clock"));
        let handled = receive_codecommit::handle(held.event.clone(), &self.policy, account);
        // As the function's boundary has it.
        let is_error = |answer: &Result<_, stoker::error::CallError>| {
            answer.as_ref().is_err_and(|error| error.disposition() != Disposition::Drop)
        };
        let invoked = stack.invoke(account, "receive-codecommit", None, handled, is_error).await;
        let is_done = matches!(&invoked, Invoked::Answered(answer) if !is_error(answer));
        let is_throttled = matches!(invoked, Invoked::Throttled);
        self.route();
        if is_done {
            return;
        }
        held.tries += u64::from(!is_throttled);
        let deployed = self.account.deployed();
        let invoked = &of_type(deployed.template(), FUNCTION)["ReceiveCodecommit"]["EventInvokeConfig"];
        if held.tries <= invoked["MaximumRetryAttempts"].as_u64().expect("a number") {
            let pause = i64::try_from(held.tries.max(1)).expect("few tries");
            held.next_at = now + SignedDuration::from_mins(pause);
            self.stack().held.push(held);
            return;
        }
        let dead = resource_of(&invoked["DestinationConfig"]["OnFailure"]["Destination"]).expect("a queue");
        let role = &deployed.functions["receive-codecommit"];
        if iam::may(&role.grants, "sqs:SendMessage", &deployed.arn_of(&dead)) {
            let body = json!({"version": "1.0", "requestPayload": held.event});
            self.stack().send(&dead, body.to_string(), now, None);
        } else {
            let name = format!("{}-receive-codecommit", deployed.place.stack);
            count(now, "AWS/Lambda", "DestinationDeliveryFailures", &[("FunctionName", &name)]);
        }
    }
}
