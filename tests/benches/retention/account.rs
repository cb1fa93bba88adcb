//! ECR and CodeBuild on loopback, as far as retention asks them: in a process of their own, so that neither
//! their memory nor their time is taken for anybody else's. Every request is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use stoker_core::names::Digest;

use crate::images;

#[derive(Default)]
struct TestEnvironment {
    digests: Vec<Digest>,
    numbers: HashMap<Digest, u32>,
    /// Those that are there.
    there: BTreeSet<u32>,
    deleted: BTreeSet<Digest>,
    /// Whether the first manifests are the worst that there may be.
    is_filled: bool,
    requests: BTreeMap<String, u64>,
}

impl TestEnvironment {
    fn new() -> Self {
        let mut env = Self::default();
        env.reset(false);
        env
    }

    /// The test environment as it was, or filled by somebody.
    fn reset(&mut self, is_filled: bool) {
        self.is_filled = is_filled;
        self.digests =
            (0..images::IMAGES).map(|number| Digest::of(self.manifest(number).as_bytes())).collect();
        self.numbers = (0..).zip(&self.digests).map(|(number, digest)| (digest.clone(), number)).collect();
        self.there = (0..images::IMAGES).collect();
        self.deleted.clear();
        self.requests.clear();
    }

    fn manifest(&self, number: u32) -> String {
        if self.is_filled && number < images::LONGEST + images::OF_BLOBS {
            images::worst(number)
        } else {
            images::manifest(number)
        }
    }

    fn detail(&self, number: u32) -> Value {
        let digest = &self.digests[number as usize];
        let pushed = images::pushed_at(number).as_second();
        json!({
            "registryId": "123456789012", "repositoryName": "stoker/app", "imageDigest": digest,
            "imageTags": images::tags(number, digest), "imageSizeInBytes": 123_456_789, "imagePushedAt": pushed,
            "imageManifestMediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactMediaType": "application/vnd.buildkit.cacheconfig.v0",
            "lastRecordedPullTime": pushed + 3600, "imageStatus": "ACTIVE",
        })
    }

    /// The images that are asked for by digest.
    fn asked(&self, asked: &Value) -> Option<Vec<(String, Option<u32>)>> {
        let ids = asked["imageIds"].as_array()?;
        assert!(ids.len() <= 100, "one request names at most 100 images");
        let digests = ids.iter().filter_map(|id| id["imageDigest"].as_str());
        let number = |text: &str| {
            let number = self.numbers.get(&Digest::new(text).ok()?).copied();
            number.filter(|number| self.there.contains(number))
        };
        Some(digests.map(|text| (text.to_owned(), number(text))).collect())
    }

    fn call(&mut self, operation: &str, asked: &Value) -> Result<Value, &'static str> {
        Ok(match operation {
            "DescribeImages" => {
                if let Some(ids) = self.asked(asked) {
                    let numbers: Option<Vec<u32>> = ids.into_iter().map(|(_, number)| number).collect();
                    let numbers = numbers.ok_or("ImageNotFoundException")?;
                    let details = numbers.into_iter().map(|number| self.detail(number));
                    return Ok(json!({ "imageDetails": details.collect::<Vec<_>>() }));
                }
                let most = usize::try_from(asked["maxResults"].as_u64().unwrap_or(100)).unwrap().min(1000);
                let from: u32 = asked["nextToken"].as_str().map_or(0, |token| token.parse().unwrap());
                let page: Vec<u32> = self.there.range(from..).take(most + 1).copied().collect();
                let details = page.iter().take(most).map(|number| self.detail(*number));
                json!({
                    "imageDetails": details.collect::<Vec<_>>(),
                    "nextToken": page.get(most).map(ToString::to_string),
                })
            }
            "BatchGetImage" => {
                let ids = self.asked(asked).ok_or("InvalidParameterException")?;
                let image = |(digest, number): (String, Option<u32>)| {
                    let manifest = self.manifest(number?);
                    Some(json!({ "imageId": { "imageDigest": digest }, "imageManifest": manifest }))
                };
                json!({ "images": ids.into_iter().filter_map(image).collect::<Vec<_>>(), "failures": [] })
            }
            "BatchDeleteImage" => {
                for (_, number) in self.asked(asked).ok_or("InvalidParameterException")? {
                    let number = number.ok_or("ImageNotFoundException")?;
                    self.there.remove(&number);
                    self.deleted.insert(self.digests[number as usize].clone());
                }
                json!({ "imageIds": [], "failures": [] })
            }
            "ListBuildsForProject" => json!({ "ids": [] }),
            _ => return Err("UnknownOperationException"),
        })
    }
}

type Shared = Arc<Mutex<TestEnvironment>>;

async fn answer(State(env): State<Shared>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let mut env = env.lock().unwrap();
    match uri.path() {
        "/control/reset" => env.reset(false),
        "/control/fill" => env.reset(true),
        "/control/requests" => {
            return serde_json::to_string(&std::mem::take(&mut env.requests)).unwrap().into_response();
        }
        "/control/deleted" => {
            let deleted = std::mem::take(&mut env.deleted);
            return crate::summary(deleted.iter()).to_string().into_response();
        }
        _ => {
            let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok());
            let operation =
                target.and_then(|target| target.rsplit('.').next()).unwrap_or_default().to_owned();
            *env.requests.entry(operation.clone()).or_default() += 1;
            let asked = serde_json::from_slice(&body).unwrap_or_default();
            let json = [("content-type", "application/x-amz-json-1.1")];
            return match env.call(&operation, &asked) {
                Ok(answer) => (json, answer.to_string()).into_response(),
                Err(code) => {
                    (StatusCode::BAD_REQUEST, json, json!({ "__type": code }).to_string()).into_response()
                }
            };
        }
    }
    StatusCode::OK.into_response()
}

/// Says its port and answers until it is ended.
pub(crate) fn serve(runtime: &tokio::runtime::Runtime, say: impl FnOnce(u16)) {
    let env = Arc::new(Mutex::new(TestEnvironment::new()));
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    say(listener.local_addr().unwrap().port());
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let router = Router::new().fallback(answer).with_state(env);
        axum::serve(listener, router).await.unwrap();
    });
}
