//! What the file is, told by its shape.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use stoker_core::error::chain;
use stoker_core::event::{Envelope, SOURCE};
use stoker_core::forge::{self, Forge, MAX_BODY, Meaning, Refusal, codecommit};
use stoker_core::policy::Policy;
use stoker_core::schedule;

use super::args::Args;
use super::sender::Sender;
use crate::problem::Problem;
use crate::text::plain;

/// A batch of ten webhooks of the largest size is far beyond what Lambda delivers.
const MAX_FILE: u64 = 16 << 20;

const SHAPES: &str = "give a request to the webhooks' Function URL, a batch of SQS, an event of EventBridge or \
     a question to \
                      resolve-cache, as the files of events/ are; or a forge's payload with --forge and --event";

/// What was given.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Given {
    /// `webhook`, `payload`, `queue`, `event` or `question`.
    pub(super) input: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) forge: Option<String>,
    /// What the forge calls the event.
    #[serde(rename = "event", skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// What was not looked at, or would be refused.
    pub(super) notes: Vec<String>,
}

/// What is to be decided.
#[derive(Debug)]
pub(super) enum Asked {
    Events(Vec<Envelope>),
    Ignored(String),
    Question(Value),
}

type Read = Result<(Given, Asked), Problem>;

/// Reads the file of the command line.
pub(super) fn read(args: &Args, policy: &Policy, now: Timestamp) -> Read {
    let bytes = bytes(&args.file)?;
    let json: Value = match (serde_json::from_slice(&bytes), args.forge) {
        (Ok(json), _) => json,
        // receive-webhook knows why a forge would send something else.
        (Err(_), Some(Sender::Webhook(forge))) => return payload(args, forge, &bytes, policy, now),
        (Err(error), _) => {
            return Err(Problem::usage(format!("this is no JSON: {}", plain(&error.to_string())), SHAPES));
        }
    };
    let shape = shape(&json);
    match (shape, args.forge) {
        (Shape::Unknown, Some(Sender::Webhook(forge))) => payload(args, forge, &bytes, policy, now),
        (Shape::Envelope, Some(Sender::CodeCommit)) if json["source"] == "aws.codecommit" => {
            codecommit(&json, policy)
        }
        (_, Some(Sender::CodeCommit)) => Err(Problem::usage(
            "this is no event of CodeCommit's",
            "give one as EventBridge delivers it: with `source`, `detail-type`, `region` and `detail`",
        )),
        (Shape::Unknown, None) => Err(unknown(&json)),
        (shape, Some(_)) => Err(Problem::usage(
            format!("this is {}, which says itself where it is from", shape.name()),
            "leave --forge and --event out; they are for a forge's payload without its headers",
        )),
        (Shape::Request, None) => request(&json, policy, now),
        (Shape::Batch, None) => batch(&json),
        (Shape::Envelope, None) if json["source"] == "aws.codecommit" => codecommit(&json, policy),
        (Shape::Envelope, None) => Ok((given("event"), Asked::Events(vec![envelope(json, "the event")?]))),
        (Shape::Question, None) => Ok((given("question"), Asked::Question(json))),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
    };
    let name = plain(&path.display().to_string());
    read.map_err(|error| {
        Problem::usage(format!("cannot read {name}: {error}"), "name a file, or `-` for standard input")
    })?;
    if bytes.len() as u64 > MAX_FILE {
        let why = format!("{name} has more than {MAX_FILE} bytes: no function is given as much");
        return Err(Problem::usage(why, "give a single event"));
    }
    Ok(bytes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Request,
    Batch,
    Envelope,
    Question,
    Unknown,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Request => "a request to the Function URL",
            Self::Batch => "a batch of SQS",
            Self::Envelope => "an event of EventBridge",
            Self::Question => "a question to resolve-cache",
            Self::Unknown => "nothing that Stoker is given",
        }
    }
}

fn shape(json: &Value) -> Shape {
    let Some(fields) = json.as_object() else { return Shape::Unknown };
    let has = |name: &str| fields.contains_key(name);
    if has("headers") && (has("requestContext") || has("body")) {
        Shape::Request
    } else if fields.get("Records").is_some_and(Value::is_array) {
        Shape::Batch
    } else if has("detail-type") && has("source") {
        Shape::Envelope
    } else if fields.get("project").is_some_and(Value::is_string) {
        Shape::Question
    } else {
        Shape::Unknown
    }
}

/// A payload without headers looks like a forge's.
fn unknown(json: &Value) -> Problem {
    let looks_like = |forge, event| {
        Problem::usage(
            format!("this looks like a payload of {forge}, without the headers that say so"),
            format!("say what its headers said, such as --forge {forge} --event {event}"),
        )
    };
    let has = |name: &str| json.get(name).is_some();
    if has("object_kind") {
        looks_like("gitlab", "'Push Hook'")
    } else if has("pullrequest") || has("push") {
        looks_like("bitbucket", if has("push") { "repo:push" } else { "pullrequest:created" })
    } else if has("pull_request") && has("repository") {
        looks_like("github", "pull_request")
    } else if has("ref") && has("repository") {
        looks_like("github", "push")
    } else {
        Problem::usage("this is nothing that Stoker is given", SHAPES)
    }
}

fn given(input: &'static str) -> Given {
    Given { input, ..Given::default() }
}

/// What came to the webhooks' URL.
fn request(json: &Value, policy: &Policy, now: Timestamp) -> Read {
    let headers: BTreeMap<String, &str> = json["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase(), value.as_str()?)))
        .collect();
    let header = |name: &str| headers.get(name).copied();
    let sent = Forge::of(&header).and_then(|forge| Some((forge, forge.event_name(&header)?)));
    let Some((forge, event)) = sent else {
        return Err(Problem::usage(
            "the request has no header that names an event: receive-webhook refuses it with status 400",
            "keep X-GitHub-Event, X-Gitlab-Event or X-Event-Key in its `headers`",
        ));
    };
    let text = json["body"].as_str().unwrap_or_default();
    let body = if json["isBase64Encoded"] == true {
        let no_base64 = |_| Problem::usage("the request's body is not base64", "correct `isBase64Encoded`");
        BASE64.decode(text).map_err(no_base64)?
    } else {
        text.as_bytes().to_vec()
    };
    let mut notes = Vec::new();
    if json["requestContext"]["http"]["method"].as_str().is_some_and(|method| method != "POST") {
        notes.push("receive-webhook refuses it with status 405: it is no POST");
    }
    notes.push(if forge::is_signed(forge, &header) {
        "the signature is not checked here"
    } else {
        "receive-webhook refuses it with status 401: it is not signed"
    });
    let (mut given, asked) = webhook("webhook", forge, event, &body, policy, now)?;
    given.notes.splice(0..0, notes.into_iter().map(str::to_owned));
    Ok((given, asked))
}

/// A forge's payload, of which the command line says the rest.
fn payload(args: &Args, forge: Forge, body: &[u8], policy: &Policy, now: Timestamp) -> Read {
    let Some(event) = &args.event else {
        let example = match forge {
            Forge::GitHub => "push or pull_request",
            Forge::GitLab => "'Push Hook' or 'Merge Request Hook'",
            Forge::Bitbucket => "repo:push or pullrequest:created",
        };
        return Err(Problem::usage(
            "a payload does not say which event it is of",
            format!("say what its header said with --event, such as {example}"),
        ));
    };
    webhook("payload", forge, event, body, policy, now)
}

fn webhook(
    input: &'static str,
    forge: Forge,
    event: &str,
    body: &[u8],
    policy: &Policy,
    now: Timestamp,
) -> Read {
    let mut given = Given {
        forge: Some(forge.to_string()),
        name: Some(event.chars().take(100).collect()),
        ..given(input)
    };
    if body.len() > MAX_BODY {
        let note = format!("receive-webhook refuses it with status 413: it has more than {MAX_BODY} bytes");
        given.notes.push(note);
    }
    let meaning = forge::read(forge, event, body, &forge::default_branches(policy));
    let meaning = meaning.map_err(|refusal| malformed(&refusal, &format!("{forge} calls `{event}`")))?;
    let Meaning::Events(mut events) = meaning else { return Ok((given, ignored(&meaning))) };
    if let Err(refusal) = forge::check_repository(policy, forge, body, &events) {
        given
            .notes
            .push(format!("receive-webhook refuses it with status 403: {}", plain(&refusal.to_string())));
    }
    if events.iter_mut().map(|event| forge::check_age(event, now)).any(|checked| checked.is_err()) {
        given.notes.push("receive-webhook refuses it with status 403: it is too old by then".to_owned());
    }
    let envelope = |event| Envelope { time: Some(now), source: SOURCE.to_owned(), event };
    Ok((given, Asked::Events(events.into_iter().map(envelope).collect())))
}

fn ignored(meaning: &Meaning) -> Asked {
    match meaning {
        Meaning::Ignored(why) => Asked::Ignored((*why).to_owned()),
        Meaning::Events(_) => Asked::Events(Vec::new()),
    }
}

fn malformed(refusal: &Refusal, what: &str) -> Problem {
    Problem::usage(
        format!("this is not what {}: {}", plain(what), plain(&chain(refusal))),
        "give the body as the forge sent it, and the event as its header names it",
    )
}

/// An event of CodeCommit's.
fn codecommit(json: &Value, policy: &Policy) -> Read {
    let meaning = codecommit::read(json, &forge::default_branches(policy));
    let meaning = meaning.map_err(|refusal| malformed(&refusal, "CodeCommit sends"))?;
    let name = json["detail"]["event"].as_str().map(|name| name.chars().take(100).collect());
    let given = Given { forge: Some(Sender::CodeCommit.to_string()), name, ..given("event") };
    let Meaning::Events(events) = meaning else { return Ok((given, ignored(&meaning))) };
    let time = json["time"].as_str().and_then(|time| time.parse().ok());
    let envelope = |event| Envelope { time, source: SOURCE.to_owned(), event };
    Ok((given, Asked::Events(events.into_iter().map(envelope).collect())))
}

/// What a queue delivers.
fn batch(json: &Value) -> Read {
    let records = json["Records"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut envelopes = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let name = format!("the body of Records[{index}]");
        let Some(body) = record["body"].as_str() else {
            return Err(Problem::usage(
                format!("{name} is no text: this is no batch of SQS"),
                "give what one of Stoker's queues delivers, as events/promote-cache-batch.json",
            ));
        };
        let body = serde_json::from_str(body).map_err(|error| not_known(&name, &error.to_string()))?;
        let reported = envelope(body, &name)?;
        let sent = record["attributes"]["SentTimestamp"].as_str().and_then(schedule::sent_at);
        envelopes.push(Envelope { time: reported.time.or(sent), ..reported });
    }
    if envelopes.is_empty() {
        return Ok((given("queue"), Asked::Ignored("a batch of no messages".to_owned())));
    }
    Ok((given("queue"), Asked::Events(envelopes)))
}

fn envelope(json: Value, name: &str) -> Result<Envelope, Problem> {
    Envelope::from_value(json).map_err(|error| not_known(name, &chain(&error)))
}

fn not_known(name: &str, why: &str) -> Problem {
    Problem::usage(
        format!("{name} is no event that Stoker knows: {}", plain(why)),
        "give one that reaches a function of Stoker's: see events/README.md, and shared/core/src/event.rs for \
         their fields",
    )
}
