//! `stoker redrive`: what lies in the stack's dead-letter queues, and the way back.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stoker_aws_setup::{Queue, QueuedMessage, Setup};
use stoker_core::error::CallError;
use stoker_core::event::{Envelope, Event};

use crate::cache::to_json;
use crate::deployed::Missing;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain::config;
use crate::text::{Align, count, plain, plain_whole, table};

/// The message group of the promotion queue, as `template.yaml` has it: lines are updated one batch at a time.
const PROMOTIONS: &str = "promotions";

/// Shows what could not be delivered or handled, and sends it back to where it was to go
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker redrive                          # what is in the dead-letter queues, and where would it go?
  stoker redrive --yes                    # send it there, once its cause is repaired
  stoker redrive --queue PromotionDeadLetters --yes
  stoker redrive --stack ci-stoker --json | jq '.queues[] | {queue, messages}'

Without --yes it only shows. A message that is looked at is hidden from others for a moment, and then there \
again as it was.

A message goes back to the queue that gave it up, or to the queue that EventBridge or the scheduler could not \
deliver it to; never \
to any other than the stack's. What was to invoke a function is left where it is, with the command that does \
it. A FIFO queue \
is sent back whole and in its order, by SQS itself. Stoker's events are triggers: one that comes twice or late \
does no harm.

Repair the cause first: what fails again is back here after as many tries as before. The function's log tells it \
(docs/metrics.md), and `stoker doctor` what is wrong with the account.

Exit code 1 says that --yes left something in a queue. Region and credentials are found as the AWS command line \
finds them; \
cli/README.md lists the permissions.")]
pub(crate) struct Args {
    /// The stack that Stoker was deployed as
    #[arg(long, value_name = "NAME", default_value = "stoker")]
    stack: String,
    /// Only this dead-letter queue, by its logical name in the stack, once for each; all of them unless given
    #[arg(long = "queue", value_name = "LOGICAL-ID")]
    queues: Vec<String>,
    /// Look at no more messages of a queue than this
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    most: u32,
    /// Send them back
    #[arg(long)]
    yes: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// What became of the queues.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    stack: String,
    at: Timestamp,
    /// Whether anything was to be sent.
    applied: bool,
    queues: Vec<Done>,
    /// Why it ended before its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// What is in a dead-letter queue, and what became of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    queue: String,
    url: String,
    /// About how many SQS says that there were.
    messages: u64,
    /// How many were looked at.
    seen: usize,
    groups: Vec<Group>,
    sent: usize,
    /// Whether SQS sends the whole queue back, which takes it a moment.
    moves_whole: bool,
}

/// Messages that are alike.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    about: Option<String>,
    times: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest: Option<Timestamp>,
    /// Why it could not be delivered, where who tried says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The queue that it goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// Why it stays, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    stays: Option<String>,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let setup = Setup::new(&config(None).await?);
    let queues = queues(&setup, &args.stack).await?;
    let mut outcome = Outcome {
        stack: args.stack.clone(),
        at: Timestamp::now(),
        applied: args.yes,
        queues: Vec::new(),
        failed: None,
    };
    let mut problem = None;
    for dead in chosen(&queues, args)? {
        let mut done = Done::nothing(dead);
        let ended = empty(&setup, dead, &queues, args, &mut done).await;
        outcome.queues.push(done);
        if let Err(error) = ended {
            problem = Some(Missing::from(&error).problem());
            break;
        }
    }
    outcome.failed = problem.as_ref().map(|problem| problem.text().to_owned());
    let text = if args.json { to_json(&outcome) } else { shown(&outcome) };
    if let Some(problem) = problem {
        // What was sent until then is to be known all the same.
        crate::outcome::print(&text);
        return Err(problem);
    }
    Ok(CommandOutcome { text, success: !args.yes || outcome.queues.iter().all(Done::is_whole) })
}

impl Done {
    fn nothing(dead: &Queue) -> Self {
        Self {
            queue: dead.name.clone(),
            url: dead.url.clone(),
            messages: dead.messages,
            seen: 0,
            groups: Vec::new(),
            sent: 0,
            moves_whole: false,
        }
    }

    fn is_whole(&self) -> bool {
        self.moves_whole || self.sent == self.seen
    }

    /// Takes note of a message.
    fn add(&mut self, one: Group) {
        self.seen += 1;
        let is_alike = |of: &&mut Group| {
            (&of.kind, &of.about, &of.error, &of.to, &of.stays)
                == (&one.kind, &one.about, &one.error, &one.to, &one.stays)
        };
        match self.groups.iter_mut().find(is_alike) {
            Some(alike) => {
                alike.times += 1;
                alike.oldest = [alike.oldest, one.oldest].into_iter().flatten().min();
                alike.newest = alike.newest.max(one.newest);
            }
            None => self.groups.push(one),
        }
    }
}

/// The stack's queues.
async fn queues(setup: &Setup, stack: &str) -> Result<Vec<Queue>, Problem> {
    let resources = setup.resources(stack).await.map_err(|error| {
        let missing = Missing::from(&error);
        if missing.why.contains("does not exist") {
            return Problem::usage(
                format!("there is no stack {} here", plain(stack)),
                "name it with --stack, or set AWS_REGION to where it is",
            );
        }
        missing.problem()
    })?;
    let mut queues = Vec::new();
    for queue in resources.into_iter().filter(|resource| resource.kind == "AWS::SQS::Queue") {
        let described = setup.queue(queue.name, queue.id).await;
        queues.push(described.map_err(|error| Missing::from(&error).problem())?);
    }
    queues.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(queues)
}

/// Whether a queue takes what another one gives up.
fn is_dead(queue: &Queue, queues: &[Queue]) -> bool {
    queues.iter().filter_map(|other| other.redrive_policy.as_deref()).any(|policy| {
        let policy: Value = serde_json::from_str(policy).unwrap_or_default();
        policy["deadLetterTargetArn"] == queue.arn.as_str()
    })
}

/// The dead-letter queues that were asked for.
fn chosen<'q>(queues: &'q [Queue], args: &Args) -> Result<Vec<&'q Queue>, Problem> {
    let dead: Vec<&Queue> = queues.iter().filter(|queue| is_dead(queue, queues)).collect();
    let known: Vec<&str> = dead.iter().map(|queue| queue.name.as_str()).collect();
    if let Some(unknown) = args.queues.iter().find(|asked| !known.contains(&asked.as_str())) {
        return Err(Problem::usage(
            format!("{} is no dead-letter queue of the stack", plain(unknown)),
            format!("these are: {}", plain_whole(&known.join(", "))),
        ));
    }
    let is_chosen = |queue: &&Queue| args.queues.is_empty() || args.queues.contains(&queue.name);
    Ok(dead.into_iter().filter(is_chosen).collect())
}

/// Looks at a queue's messages and, where that was asked for, sends them back. What stays is there again at once.
async fn empty(
    setup: &Setup,
    dead: &Queue,
    queues: &[Queue],
    args: &Args,
    done: &mut Done,
) -> Result<(), CallError> {
    let mut kept = Vec::new();
    let emptied = receive_all(setup, dead, queues, args, done, &mut kept).await;
    let given_back = setup.give_back(dead, &kept).await;
    emptied.and(given_back)?;
    if dead.is_fifo && args.yes && done.seen > 0 {
        setup.move_back(dead).await?;
        done.moves_whole = true;
    }
    Ok(())
}

async fn receive_all(
    setup: &Setup,
    dead: &Queue,
    queues: &[Queue],
    args: &Args,
    done: &mut Done,
    kept: &mut Vec<String>,
) -> Result<(), CallError> {
    let most = usize::try_from(args.most).unwrap_or(usize::MAX);
    let mut known = BTreeSet::new();
    let mut is_through = false;
    while done.seen < most && !is_through {
        let messages = setup.receive(dead, most - done.seen).await?;
        if messages.is_empty() {
            break;
        }
        for message in messages {
            // The first are visible again: all the others have been seen.
            if !known.insert(message.id.clone()) {
                is_through = true;
                kept.push(message.receipt);
                continue;
            }
            let way = way(&message, dead, queues);
            done.add(group(&message, way.as_ref()));
            // Only SQS itself keeps the order of a FIFO queue.
            let Some(to) = way.ok().filter(|_| args.yes && !dead.is_fifo) else {
                kept.push(message.receipt);
                continue;
            };
            let by_schedule = ByScheduler::read(&message);
            let body = by_schedule.as_ref().map_or(&message.body, |of| &of.body);
            if let Err(error) = setup.send(to, body, to.is_fifo.then_some(PROMOTIONS)).await {
                kept.push(message.receipt);
                return Err(error);
            }
            // Should this fail, the message comes twice, which does no harm.
            let deleted = setup.delete_message(dead, &message.receipt).await;
            done.sent += 1;
            deleted?;
        }
    }
    Ok(())
}

/// What EventBridge Scheduler could not send to a queue. The target that it names is the API that it called;
/// queue and body are what it asked of that.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ByScheduler {
    #[serde(rename = "MessageBody")]
    body: String,
    queue_url: String,
}

impl ByScheduler {
    fn read(message: &QueuedMessage) -> Option<Self> {
        let target = message.attributes.get("TARGET_ARN")?;
        let is_send = target.contains(":scheduler:") && target.ends_with(":aws-sdk:sqs:sendMessage");
        serde_json::from_str(&message.body).ok().filter(|_| is_send)
    }
}

/// The queue that a message was to go to, or why it stays.
fn way<'q>(message: &QueuedMessage, dead: &Queue, queues: &'q [Queue]) -> Result<&'q Queue, String> {
    let find = |place: &str| {
        let is_there = |queue: &&Queue| queue.arn == place || queue.url == place;
        let found = queues.iter().filter(is_there).find(|queue| !is_dead(queue, queues));
        found.ok_or_else(|| format!("it was to go to {place}, which is no queue of the stack"))
    };
    if let Some(arn) = &message.given_up_by {
        return find(arn);
    }
    let body: Value = serde_json::from_str(&message.body).unwrap_or_default();
    let target = message.attributes.get("TARGET_ARN").map(String::as_str);
    // Lambda says itself what it could not do.
    let function = body.pointer("/requestContext/functionArn").and_then(Value::as_str);
    let function = function.or_else(|| target.filter(|arn| arn.contains(":function:")));
    if let Some(function) = function {
        let payload = if target.is_some() { "the message's body" } else { "the body's requestPayload" };
        return Err(format!(
            "it was to invoke a function: aws lambda invoke --invocation-type Event --function-name {function} \
             --payload with {payload}, then delete it"
        ));
    }
    if let Some(place) = ByScheduler::read(message).map(|of| of.queue_url).as_deref().or(target) {
        return find(place);
    }
    Err(format!(
        "nothing in it says where it was to go: read it (aws sqs receive-message --queue-url {}), and delete it if \
         nobody needs it",
        dead.url
    ))
}

/// What a message is about.
fn group(message: &QueuedMessage, way: Result<&&Queue, &String>) -> Group {
    let by_schedule = ByScheduler::read(message);
    let body = by_schedule.as_ref().map_or(&message.body, |of| &of.body);
    let mut body: Value = serde_json::from_str(body).unwrap_or_default();
    if let Some(payload) = body.get_mut("requestPayload") {
        body = payload.take();
    }
    let kind = body["detail-type"].as_str().unwrap_or("no event").to_owned();
    let about = Envelope::from_value(body).ok().and_then(|envelope| about(&envelope.event));
    let sent = message.sent_at;
    let code = message.attributes.get("ERROR_CODE").map(String::as_str);
    let words = message.attributes.get("ERROR_MESSAGE").map(String::as_str);
    let error = code.or(words).is_some().then(|| {
        let both: Vec<&str> = code.into_iter().chain(words).collect();
        both.join(": ")
    });
    Group {
        kind,
        about,
        times: 1,
        oldest: sent,
        newest: sent,
        error,
        to: way.ok().map(|queue| queue.name.clone()),
        stays: way.err().cloned(),
    }
}

/// The git repository, the project or the cache repository that an event is about.
fn about(event: &Event) -> Option<String> {
    if let Some(repository) = event.repository() {
        return Some(repository.to_string());
    }
    Some(match event {
        Event::BuildStateChange(change) => change.project_name.to_string(),
        Event::ImageAction(action) => action.repository_name.to_string(),
        Event::WarmRequested(turn) | Event::ReconcileRequested(turn) | Event::DriftFound(turn) => {
            turn.project.to_string()
        }
        Event::RetentionRequested(wanted) => wanted.repository.to_string(),
        Event::BuildFailed(failed) => failed.project.to_string(),
        _ => return None,
    })
}

fn shown(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut waiting = 0;
    for done in &outcome.queues {
        text += &of_queue(done);
        waiting += done.seen - done.sent.min(done.seen);
    }
    if outcome.queues.is_empty() {
        return format!("the stack {} has no dead-letter queues\n", plain(&outcome.stack));
    }
    if !outcome.applied && waiting > 0 {
        text += "nothing was sent: repair the cause, then say --yes\n";
    }
    text
}

fn of_queue(done: &Done) -> String {
    let Done { queue, messages, seen, groups, sent, moves_whole, .. } = done;
    let name = plain(queue);
    if *seen == 0 {
        let hidden = if *messages > 0 { "; what it holds is being looked at by somebody else" } else { "" };
        return format!("{name}: no messages{hidden}\n");
    }
    let mut text = format!("{name}: {}", count(*seen, "message"));
    if *messages > *seen as u64 {
        text += &format!(" of about {messages}");
    }
    text += "\n";
    let rows: Vec<Vec<String>> = groups.iter().map(row).collect();
    text += &table("  ", &[Align::Right, Align::Left, Align::Left, Align::Left, Align::Left], &rows);
    for error in groups.iter().filter_map(|group| group.error.as_deref()) {
        text += &format!("  could not be delivered: {}\n", plain_whole(error));
    }
    for why in groups.iter().filter_map(|group| group.stays.as_deref()) {
        text += &format!("  stays: {}\n", plain_whole(why));
    }
    if *moves_whole {
        text += "  SQS sends the whole queue back, in its order\n";
    } else if *sent > 0 {
        text += &format!("  sent {}, {} left\n", count(*sent, "message"), seen - sent);
    }
    text
}

fn row(group: &Group) -> Vec<String> {
    let day = |at: Option<Timestamp>| at.map_or_else(|| "?".to_owned(), |at| format!("{at:.0}"));
    let when = if group.oldest == group.newest {
        day(group.oldest)
    } else {
        format!("{} to {}", day(group.oldest), day(group.newest))
    };
    let to = group.to.as_ref().map_or_else(|| "stays".to_owned(), |to| format!("to {}", plain(to)));
    vec![
        group.times.to_string(),
        plain(&group.kind),
        group.about.as_deref().map(plain).unwrap_or_default(),
        when,
        to,
    ]
}
