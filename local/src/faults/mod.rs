//! A storm: what networks, services and machines do to functions and to events on bad days, all at once and
//! by chance.
//!
//! Functions reach everything through this proxy. In calm weather it passes calls on as they are; in a storm,
//! calls of functions are throttled, refused, lost, half done or answered from the past, and functions are
//! killed between any two calls. [`crate::bus`] asks it what becomes of AWS's own events. A seed decides all
//! of it, but not the order in which calls come; each thing that was done is counted. Proxy and bus are one
//! process, so that there is one weather, and one place to ask for it.

mod call;
mod fault;
mod fault_plan;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::aws::{Aws, Service};
use crate::http::{Http, Reply};
use crate::{chain, locked};
use call::{Call, process_of};
pub use fault::{Fate, Fault};
use fault_plan::FaultPlan;

/// No call of a function is larger.
const MOST: usize = 64 << 20;
/// Longer than the functions' clients wait for an answer.
const HELD: Duration = Duration::from_secs(11);
/// The oldest answer that is given again: what AWS calls eventual is a matter of seconds.
const OLDEST: Duration = Duration::from_secs(15);

/// The proxy, and the weather.
#[derive(Debug)]
pub struct Faults {
    aws: Aws,
    codebuild: OnceLock<String>,
    proxy: OnceLock<SocketAddr>,
    http: Http,
    sky: Mutex<Sky>,
}

#[derive(Debug, Default)]
struct Sky {
    fault_plan: Option<FaultPlan>,
    /// What was done, and to which operations.
    done: BTreeMap<(Fault, String), u64>,
    /// The last answers to reads.
    answers: HashMap<(String, Bytes), (Instant, Reply)>,
    /// How many calls functions have made.
    calls: u64,
    /// What is still on its way.
    underway: u64,
}

impl Faults {
    /// A proxy before the stand-in for AWS, in calm weather.
    #[must_use]
    pub fn new(aws: Aws) -> Self {
        Self {
            aws,
            codebuild: OnceLock::new(),
            proxy: OnceLock::new(),
            http: Http::default(),
            sky: Mutex::default(),
        }
    }

    /// Says where `CodeBuild` is.
    pub fn codebuild_is_at(&self, address: SocketAddr) {
        // Once is enough: it does not move.
        let _ = self.codebuild.set(format!("http://{address}"));
    }

    /// What answers functions at this address.
    pub fn router(self: Arc<Self>, address: SocketAddr) -> Router {
        let _ = self.proxy.set(address);
        Router::new().fallback(handle).with_state(self)
    }

    /// A storm begins, in which one of so many calls is disturbed.
    pub fn begin(&self, seed: u64, one_in: u64) {
        let mut sky = locked(&self.sky);
        sky.done.clear();
        sky.fault_plan = Some(FaultPlan::new(seed, one_in));
    }

    /// It clears up.
    pub fn end(&self) {
        locked(&self.sky).fault_plan = None;
    }

    /// What the last storm did, and how much is going on.
    #[must_use]
    pub fn report(&self) -> Value {
        let sky = locked(&self.sky);
        let mut done: BTreeMap<String, BTreeMap<&str, u64>> = BTreeMap::new();
        for fault in Fault::ALL {
            done.insert(json!(fault).as_str().unwrap_or_default().to_owned(), BTreeMap::new());
        }
        for ((fault, operation), count) in &sky.done {
            let of_fault = done.entry(json!(fault).as_str().unwrap_or_default().to_owned()).or_default();
            of_fault.insert(operation, *count);
        }
        json!({ "faults": sky.fault_plan.is_some(), "calls": sky.calls, "underway": sky.underway, "done": done })
    }

    /// What becomes of an event of AWS's own that somebody waits for.
    pub fn fate(&self, kind: &str) -> Fate {
        let mut sky = locked(&self.sky);
        let Some(fault_plan) = &mut sky.fault_plan else { return Fate::BASELINE };
        let (fate, done) = fault_plan.fate();
        for fault in done {
            *sky.done.entry((fault, kind.to_owned())).or_default() += 1;
        }
        fate
    }

    /// What is to be done to a call.
    fn choose(&self, call: &Call) -> Option<Fault> {
        let caller = call.caller.as_ref()?;
        let mut sky = locked(&self.sky);
        sky.calls += 1;
        sky.fault_plan.as_mut()?.choose(caller, call)
    }

    /// What could not be done is for another call.
    fn put_back(&self, fault: Fault, call: &Call) {
        if let (Some(fault_plan), Some(caller)) = (&mut locked(&self.sky).fault_plan, &call.caller) {
            fault_plan.put_back(fault, caller, call);
        }
    }

    fn note(&self, fault: Fault, call: &Call) {
        *locked(&self.sky).done.entry((fault, call.operation.clone())).or_default() += 1;
    }

    /// Passes a call on as it is.
    async fn pass_on(&self, call: &Call) -> Option<Reply> {
        let path = call.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let base = match self.codebuild.get() {
            Some(codebuild) if call.is_for_codebuild() => codebuild,
            _ => self.aws.endpoint(),
        };
        let headers: Vec<(&str, &str)> = call
            .head
            .headers
            .iter()
            .filter(|(name, _)| !is_of_connection(name))
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
            .collect();
        let url = format!("{base}{path}");
        let reply = self.http.send(call.head.method.clone(), &url, &headers, call.body.clone()).await;
        reply
            .inspect_err(|error| tracing::warn!(call.operation, error = chain(error), "cannot pass it on"))
            .ok()
    }

    /// Says which layers there are: the local AWS calls all of them unavailable.
    async fn layers(&self, call: &Call, mut reply: Reply) -> Reply {
        let ask: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let repository = ask["repositoryName"].as_str().unwrap_or_default();
        let mut answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        for layer in answer["layers"].as_array_mut().into_iter().flatten() {
            let digest = layer["layerDigest"].as_str().unwrap_or_default();
            let url = format!("{}/v2/{repository}/blobs/{digest}", self.aws.endpoint());
            let found = self.http.send(Method::HEAD, &url, &[], "").await;
            if found.is_ok_and(|found| found.status.is_success()) {
                layer["layerAvailability"] = json!("AVAILABLE");
            }
        }
        reply.body = answer.to_string().into();
        reply
    }

    /// Passes a call on, and remembers what was answered.
    async fn ask(&self, call: &Call) -> Option<Reply> {
        let mut reply = self.pass_on(call).await?;
        if call.operation == "BatchCheckLayerAvailability" && reply.status.is_success() {
            reply = self.layers(call, reply).await;
        }
        if call.caller.is_some() && call.is_read() && reply.status.is_success() {
            locked(&self.sky).answers.insert(call.question(), (Instant::now(), reply.clone()));
        }
        Some(reply)
    }

    /// Something is on its way for as long as what is returned lives.
    pub(crate) fn underway(self: &Arc<Self>) -> Underway {
        locked(&self.sky).underway += 1;
        Underway(Arc::clone(self))
    }

    async fn answer(self: &Arc<Self>, call: Call) -> Response {
        let Some(fault) = self.choose(&call) else { return self.answer_perhaps_stale(&call).await };
        match fault {
            Fault::KilledBefore | Fault::KilledAfter => return self.kill(call, fault).await,
            _ => self.note(fault, &call),
        }
        match fault {
            Fault::Throttled if call.is_sdk => error(StatusCode::BAD_REQUEST, "ThrottlingException"),
            Fault::Throttled => error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Fault::RefusedBefore => error(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure"),
            Fault::RefusedAfter => {
                self.ask(&call).await;
                error(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure")
            }
            Fault::BrokenOffBefore => broken_off(),
            Fault::BrokenOffAfter => {
                self.ask(&call).await;
                broken_off()
            }
            Fault::TimedOut => {
                self.ask(&call).await;
                tokio::time::sleep(HELD).await;
                broken_off()
            }
            Fault::Partial => self.do_part(&call).await,
            Fault::PutTwice => {
                self.ask(&call).await;
                respond(self.ask(&call).await)
            }
            Fault::PutLate => self.put_late(call),
            _ => respond(self.ask(&call).await),
        }
    }

    /// Ends the function that asks, as Lambda does with one that has no memory or no time left.
    async fn kill(self: &Arc<Self>, call: Call, fault: Fault) -> Response {
        let Some(process) = self.proxy.get().and_then(|proxy| process_of(call.peer, *proxy)) else {
            tracing::warn!(call.operation, peer = %call.peer, "who asks is no function that could be killed");
            self.put_back(fault, &call);
            return respond(self.ask(&call).await);
        };
        let faults = Arc::clone(self);
        // In a task of its own: with the function ends the connection, and with that whatever serves it.
        let killing = tokio::spawn(async move {
            if fault == Fault::KilledAfter {
                faults.ask(&call).await;
            }
            let killed = Command::new("kill").args(["-KILL", &process.to_string()]).status().await;
            if killed.is_ok_and(|status| status.success()) {
                faults.note(fault, &call);
            }
        });
        if let Err(error) = killing.await {
            tracing::warn!(%error, "a killing ended badly");
        }
        broken_off()
    }

    /// The answer to a call; to a read perhaps the one that it had a moment ago, where that was another one.
    async fn answer_perhaps_stale(&self, call: &Call) -> Response {
        let known = |sky: &Sky| {
            let (at, reply) = sky.answers.get(&call.question()).filter(|_| call.is_read())?;
            (at.elapsed() < OLDEST).then(|| reply.clone())
        };
        let before = known(&locked(&self.sky));
        let reply = self.ask(call).await;
        let (Some(before), Some(now)) = (before, &reply) else { return respond(reply) };
        let is_stale = before.body != now.body
            && call.caller.is_some()
            && locked(&self.sky).fault_plan.as_mut().is_some_and(FaultPlan::is_stale);
        if !is_stale {
            return respond(reply);
        }
        self.note(Fault::Stale, call);
        respond(Some(before))
    }

    /// Does half of what a batch asks for, and says so as the service does. The part is asked for in the
    /// stand-in's own name: the function's signature is for the whole.
    async fn do_part(&self, call: &Call) -> Response {
        let Ok(mut ask) = serde_json::from_slice::<Value>(&call.body) else { return broken_off() };
        let is_put = call.operation == "PutEvents";
        let (service, field) =
            if is_put { (Service::EventBridge, "Entries") } else { (Service::Ecr, "imageIds") };
        let Some(items) = ask[field].as_array_mut() else { return broken_off() };
        let left = items.split_off(items.len() / 2);
        let mut answer = if items.is_empty() {
            if is_put { json!({ "Entries": [] }) } else { json!({ "imageIds": [], "failures": [] }) }
        } else {
            match self.aws.call(service, &call.operation, &ask).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::warn!(call.operation, error = chain(&error), "not even a part can be done");
                    return broken_off();
                }
            }
        };
        if is_put {
            let failed =
                left.iter().map(|_| json!({"ErrorCode": "InternalFailure", "ErrorMessage": "a faults"}));
            if let Some(entries) = answer["Entries"].as_array_mut() {
                entries.extend(failed);
            }
            answer["FailedEntryCount"] = json!(left.len());
        } else {
            let failed = left.iter().map(
                |id| json!({"imageId": id, "failureCode": "UpstreamUnavailable", "failureReason": "a faults"}),
            );
            if let Some(failures) = answer["failures"].as_array_mut() {
                failures.extend(failed);
            }
        }
        ([(header::CONTENT_TYPE, "application/x-amz-json-1.1")], answer.to_string()).into_response()
    }

    /// Takes events, and lets them come later than others: the bus promises no order.
    fn put_late(self: &Arc<Self>, call: Call) -> Response {
        let ask: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let entries = ask["Entries"].as_array().map_or(0, Vec::len);
        let ids: Vec<Value> =
            (0..entries).map(|_| json!({"EventId": uuid::Uuid::new_v4().to_string()})).collect();
        let late = locked(&self.sky).fault_plan.as_mut().map(FaultPlan::delay).unwrap_or_default();
        let underway = self.underway();
        let faults = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            if faults.ask(&call).await.is_none_or(|reply| !reply.status.is_success()) {
                tracing::error!("events that were taken are lost");
            }
            drop(underway);
        });
        let answer = json!({"FailedEntryCount": 0, "Entries": ids}).to_string();
        ([(header::CONTENT_TYPE, "application/x-amz-json-1.1")], answer).into_response()
    }
}

/// Something that is on its way.
#[derive(Debug)]
pub(crate) struct Underway(Arc<Faults>);

impl Drop for Underway {
    fn drop(&mut self) {
        let mut sky = locked(&self.0.sky);
        sky.underway = sky.underway.saturating_sub(1);
    }
}

async fn handle(
    State(faults): State<Arc<Faults>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    match to_bytes(body, MOST).await {
        Ok(body) => {
            let call = Call::new(head, body, peer);
            let _underway = call.caller.is_some().then(|| faults.underway());
            faults.answer(call).await
        }
        Err(_) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
    }
}

/// Headers that are about one connection, or that are made anew.
fn is_of_connection(name: &HeaderName) -> bool {
    [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT].contains(name)
}

/// An answer as it came; where none came, the connection ends.
fn respond(reply: Option<Reply>) -> Response {
    let Some(Reply { status, headers, body }) = reply else { return broken_off() };
    let kept = headers.into_iter().filter_map(|(name, value)| Some((name?, value)));
    let kept: HeaderMap = kept.filter(|(name, _)| !is_of_connection(name)).collect();
    (status, kept, body).into_response()
}

fn error(status: StatusCode, code: &str) -> Response {
    let body = json!({"__type": code, "message": "a faults"}).to_string();
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body).into_response()
}

/// An answer that never arrives: the connection ends before it.
fn broken_off() -> Response {
    let nothing =
        stream::once(async { Err::<Bytes, _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset)) });
    ([(header::CONTENT_LENGTH, "1")], Body::from_stream(nothing)).into_response()
}
