//! The proxy before a stand-in: what comes through, and what a storm makes of it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may panic too")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use common::Fake;
use serde_json::{Value, json};
use stoker_local::aws::Aws;
use stoker_local::faults::Faults;
use stoker_local::http::{Http, HttpError, Reply};

struct Scenario {
    fake: Fake,
    faults: Arc<Faults>,
    proxy: SocketAddr,
    http: Http,
}

impl Scenario {
    async fn begin() -> Self {
        let fake = Fake::start().await;
        let faults = Arc::new(Faults::new(Aws::new(&format!("http://{}", fake.address))));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let service = Arc::clone(&faults).router(proxy).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        Self { fake, faults, proxy, http: Http::default() }
    }

    async fn call(&self, agent: &str, target: &str, body: &Value) -> Result<Reply, HttpError> {
        let headers = [("user-agent", agent), ("x-amz-target", target)];
        self.http.send(Method::POST, &format!("http://{}/", self.proxy), &headers, body.to_string()).await
    }

    async fn ask(&self, target: &str, body: &Value) -> Value {
        serde_json::from_slice(&self.call("stoker", target, body).await.unwrap().body).unwrap()
    }

    fn put(&self) -> usize {
        self.fake.store.lock().unwrap().events.len()
    }
}

fn events(count: usize) -> Value {
    json!({"Entries": (0..count).map(|number| json!({"Detail": number})).collect::<Vec<_>>()})
}

#[tokio::test]
async fn in_baseline_weather_everything_comes_through() {
    let scenario = Scenario::begin().await;
    for number in 1..100 {
        let reply = scenario.call("stoker", "AWSEvents.PutEvents", &events(1)).await.unwrap();
        assert_eq!((reply.status, scenario.put()), (StatusCode::OK, number));
    }
    let key = ("cache/app".to_owned(), "sha256:00".to_owned());
    scenario.fake.store.lock().unwrap().blobs.insert(key, "a layer".into());
    let ask = json!({"repositoryName": "cache/app", "layerDigests": ["sha256:00", "sha256:01"]});
    let answer = scenario.ask("X.BatchCheckLayerAvailability", &ask).await;
    let found: Vec<&Value> =
        answer["layers"].as_array().unwrap().iter().map(|l| &l["layerAvailability"]).collect();
    assert_eq!(found, ["AVAILABLE", "UNAVAILABLE"]);
    assert_eq!(scenario.faults.report()["underway"], 0);
}

#[tokio::test]
async fn in_a_fault_run_events_are_put_in_part_twice_and_late() {
    let scenario = Scenario::begin().await;
    scenario.faults.begin(1, 1);
    let (mut parts, mut twice, mut late) = (0, 0, 0);
    for _ in 0..3 {
        let before = scenario.put();
        let answer = scenario.ask("AWSEvents.PutEvents", &events(4)).await;
        let failed: Vec<bool> =
            answer["Entries"].as_array().unwrap().iter().map(|e| e["ErrorCode"].is_string()).collect();
        match (answer["FailedEntryCount"].as_u64().unwrap(), scenario.put() - before) {
            (2, 2) => {
                assert_eq!(failed, [false, false, true, true]);
                parts += 1;
            }
            (0, 8) => twice += 1,
            (0, 0) => {
                assert_eq!(scenario.faults.report()["underway"], 1);
                while scenario.put() == before {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                assert_eq!(scenario.put() - before, 4);
                late += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((parts, twice, late), (1, 1, 1));
    let done = &scenario.faults.report()["done"];
    for fault in ["partial", "put-twice", "put-late"] {
        assert_eq!(done[fault]["PutEvents"], 1, "{fault}");
    }
    assert_eq!(done["throttled"], json!({}));
}

#[tokio::test]
async fn in_a_fault_run_calls_fail_before_and_after_they_took_effect() {
    let scenario = Scenario::begin().await;
    scenario.faults.begin(2, 1);
    let (mut refused, mut broken, mut in_vain) = (0, 0, 0);
    for _ in 0..40 {
        let before = scenario.put();
        let reply = scenario.call("stoker", "AWSEvents.PutEvents", &events(1)).await;
        match &reply {
            Ok(reply) if reply.status.is_success() => continue,
            Ok(_) => refused += 1,
            Err(_) => broken += 1,
        }
        in_vain += usize::from(scenario.put() > before);
    }
    assert!(refused > 0 && broken > 0 && in_vain > 0, "{refused} {broken} {in_vain}");
    // The one who asks is no function, and lives.
    assert_eq!(scenario.faults.report()["done"]["killed-after"], json!({}));
    let before = scenario.put();
    for _ in 0..40 {
        let reply = scenario.call("curl", "AWSEvents.PutEvents", &events(1)).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
    }
    assert_eq!(scenario.put(), before + 40, "others are left alone");
}

#[tokio::test]
async fn in_a_fault_run_a_read_is_answered_from_the_past() {
    let scenario = Scenario::begin().await;
    let list = async || {
        scenario.ask("X.ListBuildsForProject", &json!({"projectName": "app"})).await["ids"][0].clone()
    };
    // Nothing else is done to it in so few calls.
    scenario.faults.begin(3, 1 << 40);
    let mut stale = 0;
    for number in 0..30 {
        assert_eq!(list().await, number.to_string());
        let put = scenario.call("curl", "AWSEvents.PutEvents", &events(1)).await.unwrap();
        assert_eq!(put.status, StatusCode::OK);
        // What was kept back is told the next time: nothing has changed since.
        stale += u64::from(list().await == *number.to_string());
        assert_eq!(list().await, (number + 1).to_string());
    }
    assert!((1..30).contains(&stale), "{stale}");
    assert_eq!(scenario.faults.report()["done"]["stale"]["ListBuildsForProject"], stale);
}
