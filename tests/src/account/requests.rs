//! What the adapters would ask of AWS for what the scenarios do: the account in memory knows no requests, so it cannot
//! refuse what AWS refuses. `cargo xtask test` names a file in `STOKER_TEST_REQUESTS`, and validates what is in it by
//! AWS's models.

use std::any::type_name;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::pin::pin;
use std::task::{Context, Waker};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ecr::config::{Credentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use stoker_aws::{Aws, AwsSettings};

/// Of each kind so many are enough: a run with faults, and the next, asks the same again and again.
const MOST: usize = 100;
/// Between its pages the SDK hands over once or twice. All else is answered at once.
const POLLS: usize = 100;

/// The adapters, and how often each of their kinds of requests was written down. Each scenario has a thread of its own.
struct Recording(Aws, RefCell<HashMap<&'static str, usize>>);

thread_local! {
    static RECORDING: Option<Recording> = std::env::var_os("STOKER_TEST_REQUESTS").map(|file| {
        let file = File::options().create(true).append(true).open(file).expect("a file to write requests to");
        Recording(adapters(Recorder(file)), RefCell::default())
    });
}

/// Lets the adapters ask, and writes their requests down, where somebody wants to know them.
pub(super) fn record<A: AsyncFnOnce(&Aws) -> T, T>(ask: A) {
    RECORDING.with(|recording| {
        let Some(Recording(aws, counts)) = recording else { return };
        let mut counts = counts.borrow_mut();
        let count = counts.entry(type_name::<A>()).or_default();
        if *count == MOST {
            return;
        }
        *count += 1;
        // What they make of the answers is nothing to a scenario, and they are not to take its turns or its time.
        let mut asking = pin!(tokio::task::unconstrained(ask(aws)));
        let mut context = Context::from_waker(Waker::noop());
        let ends = (0..POLLS).any(|_| asking.as_mut().poll(&mut context).is_ready());
        assert!(ends, "an adapter waits, and its requests are not all known");
    });
}

/// The adapters on an AWS that only takes down what it is asked.
fn adapters(recorder: Recorder) -> Aws {
    let connector = SharedHttpConnector::new(recorder);
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new(
            "key", "secret", None, None, "stories",
        )))
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .build();
    let settings = AwsSettings {
        registry: "registry.example".to_owned(),
        bus: "stoker".to_owned(),
        webhook_secret: "stoker-webhook".to_owned(),
        ..AwsSettings::default()
    };
    Aws::from_config(config, settings)
}

#[derive(Debug)]
struct Recorder(File);

impl HttpConnector for Recorder {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default().to_owned();
        let body = String::from_utf8_lossy(request.body().bytes().unwrap_or_default()).into_owned();
        let answer = answer(&target, &body);
        let mut line = json!({ "target": target, "body": body }).to_string();
        line.push('\n');
        // In one piece: other processes write to the file, too.
        (&self.0).write_all(line.as_bytes()).expect("a request can be written down");
        let status = StatusCode::try_from(200).expect("a status");
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(answer.to_string()))))
    }
}

/// Builds of the future, on two pages: whoever asks for more than a page asks for the second one.
fn answer(target: &str, body: &str) -> Value {
    match target.rsplit('.').next() {
        Some("ListBuildsForProject") if !body.contains("nextToken") => {
            json!({ "ids": ["app:1"], "nextToken": "second" })
        }
        Some("BatchGetBuilds") => {
            json!({ "builds": [{ "id": "app:1", "projectName": "app", "startTime": 4_102_444_800_u32 }] })
        }
        Some("DescribeImages") if !body.contains("nextToken") && !body.contains("imageIds") => {
            json!({ "imageDetails": [], "nextToken": "second" })
        }
        _ => json!({}),
    }
}
