//! A stand-in for the stand-in: the little of AWS and of a registry that the local stand-ins talk to, in memory.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) blobs: BTreeMap<(String, String), Bytes>,
    pub(crate) manifests: BTreeMap<(String, String), Bytes>,
    pub(crate) tags: BTreeMap<(String, String), String>,
    /// The bodies of the messages to the queue.
    pub(crate) messages: Vec<Value>,
    /// The events that were put on a bus.
    pub(crate) events: Vec<Value>,
    /// How many sends are still to be refused.
    pub(crate) refuse: usize,
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<Mutex<Store>>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { address: listener.local_addr().unwrap(), store: Arc::default() };
        let router = Router::new().fallback(handle).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        fake
    }

    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("{}/cache/app:{tag}", self.address)
    }

    pub(crate) fn manifest(&self, tag: &str) -> Value {
        let store = self.store.lock().unwrap();
        let digest = &store.tags[&("cache/app".to_owned(), tag.to_owned())];
        serde_json::from_slice(&store.manifests[&("cache/app".to_owned(), digest.clone())]).unwrap()
    }

    pub(crate) fn blob(&self, digest: &Value) -> Value {
        let store = self.store.lock().unwrap();
        let key = ("cache/app".to_owned(), digest.as_str().unwrap().to_owned());
        serde_json::from_slice(&store.blobs[&key]).unwrap()
    }
}

type Answer = (StatusCode, HeaderMap, Bytes);

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    (status, HeaderMap::new(), body.into())
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

async fn handle(State(fake): State<Fake>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let mut store = fake.store.lock().unwrap();
    if let Some(target) = head.headers.get("x-amz-target") {
        return aws(&mut store, target.to_str().unwrap(), &serde_json::from_slice(&body).unwrap());
    }
    let path = head.uri.path().strip_prefix("/v2/").unwrap().to_owned();
    let query = head.uri.query().unwrap_or_default();
    let digest_asked = query.split('&').find_map(|pair| pair.strip_prefix("digest="));
    if let Some((repository, version)) = path.split_once("/manifests/") {
        let repository = repository.to_owned();
        if head.method == Method::PUT {
            let digest = digest(&body);
            store.tags.insert((repository.clone(), version.to_owned()), digest.clone());
            store.manifests.insert((repository, digest), body);
            return answer(StatusCode::CREATED, "");
        }
        let tagged = store.tags.get(&(repository.clone(), version.to_owned())).cloned();
        let found = store.manifests.get(&(repository, tagged.unwrap_or_else(|| version.to_owned())));
        return found
            .map_or_else(|| answer(StatusCode::NOT_FOUND, ""), |m| answer(StatusCode::OK, m.clone()));
    }
    let (repository, blob) = path.split_once("/blobs/").unwrap();
    match (head.method, digest_asked) {
        (Method::POST, _) => {
            let mut reply = answer(StatusCode::ACCEPTED, "");
            let location = format!("/v2/{repository}/blobs/uploads/1?state=x");
            reply.1.insert("location", location.parse().unwrap());
            reply
        }
        (Method::PUT, Some(asked)) if digest(&body) == asked => {
            store.blobs.insert((repository.to_owned(), asked.to_owned()), body);
            answer(StatusCode::CREATED, "")
        }
        (Method::GET | Method::HEAD, _) => match store.blobs.get(&(repository.to_owned(), blob.to_owned())) {
            Some(bytes) => answer(StatusCode::OK, bytes.clone()),
            None => answer(StatusCode::NOT_FOUND, ""),
        },
        _ => answer(StatusCode::BAD_REQUEST, ""),
    }
}

fn aws(store: &mut Store, target: &str, ask: &Value) -> Answer {
    let reply = match target.rsplit('.').next().unwrap() {
        "DescribeRepositories" => json!({"repositories": [{"repositoryName": "cache/app"}]}),
        "DescribeImages" => {
            let tags = |digest: &str| -> Vec<&String> {
                store.tags.iter().filter(|(_, d)| *d == digest).map(|((_, tag), _)| tag).collect()
            };
            let images: Vec<Value> = store
                .manifests
                .keys()
                .map(|(_, digest)| json!({"imageDigest": digest, "imageTags": tags(digest)}))
                .collect();
            json!({"imageDetails": images})
        }
        "ListRules" => json!({"Rules": [
            {"Name": "builds", "State": "ENABLED", "EventPattern": "{\"source\":[\"aws.codebuild\"]}"},
            {"Name": "off", "State": "DISABLED", "EventPattern": "{\"source\":[\"aws.codebuild\"]}"},
            {"Name": "nightly", "State": "ENABLED", "ScheduleExpression": "rate(1 day)"},
        ]}),
        "TestEventPattern" => {
            let event: Value = serde_json::from_str(ask["Event"].as_str().unwrap()).unwrap();
            json!({"Result": ask["EventPattern"].as_str().unwrap().contains(event["source"].as_str().unwrap())})
        }
        "ListTargetsByRule" => json!({"Targets": [{
            "Id": "1",
            "Arn": "arn:aws:sqs:us-east-1:000000000000:builds.fifo",
            "SqsParameters": {"MessageGroupId": "builds"},
        }]}),
        "GetQueueUrl" => json!({"QueueUrl": "http://127.0.0.1/builds.fifo"}),
        "SendMessage" if store.refuse > 0 => {
            store.refuse -= 1;
            return answer(StatusCode::INTERNAL_SERVER_ERROR, "busy");
        }
        "SendMessage" => {
            assert_eq!(ask["MessageGroupId"], "builds");
            assert!(ask["MessageDeduplicationId"].is_string());
            store.messages.push(serde_json::from_str(ask["MessageBody"].as_str().unwrap()).unwrap());
            json!({})
        }
        "PutEvents" => {
            let entries = ask["Entries"].as_array().unwrap();
            store.events.extend(entries.iter().cloned());
            let ids: Vec<Value> = entries.iter().map(|_| json!({"EventId": "1"})).collect();
            json!({"FailedEntryCount": 0, "Entries": ids})
        }
        "ListBuildsForProject" => json!({"ids": [store.events.len().to_string()]}),
        // As the local AWS does.
        "BatchCheckLayerAvailability" => {
            let layers = ask["layerDigests"].as_array().unwrap().iter();
            let layers = layers.map(|d| json!({"layerDigest": d, "layerAvailability": "UNAVAILABLE"}));
            json!({"layers": layers.collect::<Vec<_>>(), "failures": []})
        }
        other => panic!("{other}"),
    };
    answer(StatusCode::OK, reply.to_string())
}

/// A directory that goes with the test.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("stoker-local-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        write(&self.0, name, text);
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Two independent stages and one that joins them.
pub(crate) fn write_sources(dir: &Path) {
    let mut dockerfile = String::new();
    for stage in ["a", "b"] {
        let _ = write!(
            dockerfile,
            "FROM localhost/base:1 AS {stage}\nCOPY {stage}/deps /deps\nRUN sleep 0.2; make deps\n\
             COPY {stage}/src /src\nRUN make\n"
        );
        write(dir, &format!("{stage}/deps"), stage);
        write(dir, &format!("{stage}/src"), "1");
    }
    dockerfile.push_str("FROM scratch\nCOPY --from=a /out /a\nCOPY --from=b /out /b\n");
    write(dir, "Dockerfile", &dockerfile);
}

pub(crate) fn git(dir: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
    let output = Command::new("git").args(identity).args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
