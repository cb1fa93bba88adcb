//! Delivers AWS's own events. The stand-in for EventBridge refuses them in `PutEvents`, as EventBridge does, so this
//! reads the rules that are deployed on the default bus, asks which of them match, and calls their targets.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::aws::{Aws, AwsError, Service};
use crate::{chain, locked};

/// How long the deployed rules are taken for known.
const RULES_LIFE: Duration = Duration::from_secs(2);
/// The pauses before a failed delivery is tried again.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(3)];

/// A delivery failed.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// A call failed.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// The target is of a kind that is not delivered to here.
    #[error("target `{0}` is neither a Lambda function nor an SQS queue")]
    UnknownTarget(String),
    /// The target changes the event in a way that is not understood here.
    #[error("target `{0}` uses `{1}`, which is not understood here")]
    UnknownInput(String, &'static str),
}

/// Keeps every event, and hands it to the deliverer.
#[derive(Debug)]
pub struct Bus {
    aws: Aws,
    journal: Mutex<Journal>,
    queue: UnboundedSender<Value>,
    /// Events that are not where they belong yet.
    undelivered: AtomicU64,
    rules: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Rule>>)>>,
}

#[derive(Debug)]
struct Journal {
    events: Vec<Value>,
    path: Option<PathBuf>,
    file: Option<File>,
}

/// The events that wait for [`Bus::deliver_all`].
#[derive(Debug)]
pub struct Queue(UnboundedReceiver<Value>);

#[derive(Debug)]
struct Rule {
    name: String,
    pattern: String,
    targets: Vec<Value>,
}

impl Bus {
    /// A bus that writes its events to the file `journal` too.
    #[must_use]
    pub fn new(aws: Aws, journal: Option<PathBuf>) -> (Self, Queue) {
        let (queue, events) = unbounded_channel();
        let journal = Mutex::new(Journal { events: Vec::new(), path: journal, file: None });
        let (undelivered, rules) = (AtomicU64::new(0), tokio::sync::Mutex::default());
        (Self { aws, journal, queue, undelivered, rules }, Queue(events))
    }

    /// Keeps an event and queues it for delivery.
    pub fn emit(&self, event: Value) {
        locked(&self.journal).keep(&event);
        self.enqueue(event);
    }

    fn enqueue(&self, event: Value) {
        self.undelivered.fetch_add(1, Ordering::Relaxed);
        // Without a deliverer the process is about to end.
        let _ = self.queue.send(event);
    }

    /// How many events are on their way.
    #[must_use]
    pub fn undelivered(&self) -> u64 {
        self.undelivered.load(Ordering::Relaxed)
    }

    /// All events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        locked(&self.journal).events.clone()
    }

    /// Delivers all events once more, with the ids they had; returns how many.
    pub fn replay(&self, reverse: bool) -> usize {
        let mut events = self.events();
        if reverse {
            events.reverse();
        }
        let count = events.len();
        for event in events {
            self.enqueue(event);
        }
        count
    }

    /// Delivers what is emitted, in order, for ever.
    pub async fn deliver_all(self: Arc<Self>, mut queue: Queue) {
        while let Some(event) = queue.0.recv().await {
            for pause in PAUSES.into_iter().map(Some).chain([None]) {
                match self.matching(&event).await {
                    Ok(targets) => {
                        self.deliver(&event, targets).await;
                        self.undelivered.fetch_sub(1, Ordering::Relaxed);
                        break;
                    }
                    Err(error) => {
                        tracing::warn!(event = id(&event), error = chain(&error), "the rules cannot be read");
                        let Some(pause) = pause else {
                            tracing::error!(event = id(&event), "event lost");
                            self.undelivered.fetch_sub(1, Ordering::Relaxed);
                            break;
                        };
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
    }

    async fn deliver(self: &Arc<Self>, event: &Value, targets: Vec<(String, Value)>) {
        for (rule, target) in targets {
            let Err(error) = self.send(&rule, &target, event).await else {
                tracing::debug!(event = id(event), rule, "delivered");
                continue;
            };
            tracing::warn!(event = id(event), rule, error = chain(&error), "delivery failed");
            if matches!(error, DeliveryError::Aws(_)) {
                // The others do not wait for the one that is down.
                let (bus, event) = (Arc::clone(self), event.clone());
                self.undelivered.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    bus.insist(&rule, &target, &event).await;
                    bus.undelivered.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    }

    async fn insist(&self, rule: &str, target: &Value, event: &Value) {
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            match self.send(rule, target, event).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(event = id(event), rule, error = chain(&error), "delivery failed again");
                }
            }
        }
        tracing::error!(event = id(event), rule, "delivery given up");
    }

    /// The targets of the rules that match.
    async fn matching(&self, event: &Value) -> Result<Vec<(String, Value)>, DeliveryError> {
        let text = event.to_string();
        let mut matching = Vec::new();
        for rule in self.rules().await?.iter() {
            let ask = json!({"EventPattern": rule.pattern, "Event": text});
            let answer = self.aws.call(Service::EventBridge, "TestEventPattern", &ask).await?;
            if answer["Result"] == true {
                matching.extend(rule.targets.iter().map(|target| (rule.name.clone(), target.clone())));
            }
        }
        Ok(matching)
    }

    /// The enabled rules with a pattern on the default bus.
    async fn rules(&self) -> Result<Arc<Vec<Rule>>, DeliveryError> {
        let mut known = self.rules.lock().await;
        if let Some((_, rules)) = known.as_ref().filter(|(read_at, _)| read_at.elapsed() < RULES_LIFE) {
            return Ok(Arc::clone(rules));
        }
        let mut rules = Vec::new();
        for rule in self.paged("ListRules", &json!({"EventBusName": "default"}), "Rules").await? {
            let (Some(name), Some(pattern)) = (rule["Name"].as_str(), rule["EventPattern"].as_str()) else {
                continue;
            };
            if rule["State"] != "ENABLED" || pattern.is_empty() {
                continue;
            }
            let ask = json!({"Rule": name, "EventBusName": "default"});
            let targets = self.paged("ListTargetsByRule", &ask, "Targets").await?;
            rules.push(Rule { name: name.to_owned(), pattern: pattern.to_owned(), targets });
        }
        let rules = Arc::new(rules);
        *known = Some((Instant::now(), Arc::clone(&rules)));
        Ok(rules)
    }

    async fn paged(&self, action: &str, ask: &Value, field: &str) -> Result<Vec<Value>, AwsError> {
        let mut ask = ask.clone();
        let mut all = Vec::new();
        loop {
            let mut answer = self.aws.call(Service::EventBridge, action, &ask).await?;
            if let Value::Array(items) = answer[field].take() {
                all.extend(items);
            }
            match answer["NextToken"].as_str() {
                Some(token) => ask["NextToken"] = json!(token),
                None => return Ok(all),
            }
        }
    }

    async fn send(&self, rule: &str, target: &Value, event: &Value) -> Result<(), DeliveryError> {
        let arn = target["Arn"].as_str().unwrap_or_default();
        for field in ["InputPath", "InputTransformer"] {
            if !target[field].is_null() {
                return Err(DeliveryError::UnknownInput(arn.to_owned(), field));
            }
        }
        let body = target["Input"].as_str().map_or_else(|| event.to_string(), str::to_owned);
        match arn.splitn(6, ':').collect::<Vec<_>>()[..] {
            [_, _, "lambda", _, _, function] => {
                let function = function.strip_prefix("function:").unwrap_or(function);
                let (name, qualifier) =
                    function.split_once(':').map_or((function, None), |(n, q)| (n, Some(q)));
                self.aws.invoke(name, qualifier, &body).await?;
            }
            [_, _, "sqs", _, _, queue] => {
                let url = self.aws.call(Service::Sqs, "GetQueueUrl", &json!({"QueueName": queue})).await?;
                let mut message = json!({"QueueUrl": url["QueueUrl"], "MessageBody": body});
                if let Some(group) = target["SqsParameters"]["MessageGroupId"].as_str() {
                    message["MessageGroupId"] = json!(group);
                }
                if queue.strip_suffix(".fifo").is_some() {
                    // A target's own id keeps two rules on one queue apart; a replay within five minutes is one of
                    // the duplicates that the queue swallows, so it gets an id of its own.
                    let attempt = uuid::Uuid::new_v4();
                    message["MessageDeduplicationId"] = json!(format!("{}-{attempt}", id(event)));
                }
                self.aws.call(Service::Sqs, "SendMessage", &message).await?;
            }
            _ => return Err(DeliveryError::UnknownTarget(format!("{arn}` of rule `{rule}"))),
        }
        Ok(())
    }
}

impl Journal {
    fn keep(&mut self, event: &Value) {
        self.events.push(event.clone());
        let Some(path) = &self.path else { return };
        if self.file.is_none() {
            self.file = OpenOptions::new().create(true).append(true).open(path).ok();
        }
        let written = self.file.as_mut().map(|file| writeln!(file, "{event}"));
        if !matches!(written, Some(Ok(()))) {
            tracing::warn!(path = %path.display(), "the journal cannot be written");
        }
    }
}

fn id(event: &Value) -> &str {
    event["id"].as_str().unwrap_or_default()
}
