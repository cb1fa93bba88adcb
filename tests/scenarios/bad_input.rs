//! What is not as it should be: the right status, nothing started, nothing lost.

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlResponse;
use aws_sdk_ecr::config::{Credentials, SharedCredentialsProvider};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use axum::body::Body;
use futures_util::stream;
use receive_webhook::Refusals;
use scenarios::account::Account;
use scenarios::environment::{POLICY, Source, TestEnvironment, exported, request};
use serde_json::json;
use stoker_aws::{Aws, AwsSettings};
use stoker_core::event::Event;
use stoker_core::names::{CacheRepository, Digest};
use stoker_core::policy::Policy;
use stoker_core::ports::ReadManifests as _;
use tokio::net::TcpListener;

async fn receive(
    account: &Account,
    method: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> LambdaFunctionUrlResponse {
    let policy = Policy::parse("policy", POLICY).unwrap();
    let (refusals, now) = (Refusals::default(), account.now());
    let request = request(method, headers, body);
    let handled = receive_webhook::handle(&request, &policy, account, &refusals, now);
    account.invoke("receive-webhook", None, handled).await.unwrap()
}

async fn status(method: &str, headers: &[(&str, &str)], body: &[u8]) -> (i64, String, usize) {
    let account = Account::default();
    account.secrets.borrow_mut().push(b"secret".to_vec());
    let response = receive(&account, method, headers, body).await;
    // People are told of a signed webhook that is refused.
    let reported = |event: &&Event| !matches!(event, Event::WebhookRefused(_));
    let events = account.bus.borrow().iter().filter(reported).count();
    (response.status_code, response.body.unwrap_or_default(), events)
}

fn sign(body: &[u8]) -> String {
    use hmac::{KeyInit as _, Mac as _};
    let mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"secret").unwrap().chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

#[tokio::test]
async fn webhooks_are_refused_with_the_right_status() {
    let push = ("x-github-event", "push");
    let signed = |body: &[u8]| sign(body);
    let large = vec![b' '; stoker_core::forge::MAX_BODY + 1];
    let (ok, bad) = (signed(b"{}"), signed(b"other"));
    let text = signed(b"payload=%7B%7D");
    for (expected, method, headers, body) in [
        (405, "GET", vec![push], b"".as_slice()),
        (401, "POST", vec![push], b"{}"),
        (401, "POST", vec![push, ("x-hub-signature-256", "sha256=00")], b"{}"),
        (401, "POST", vec![push, ("x-hub-signature-256", &bad)], b"{}"),
        (413, "POST", vec![push, ("x-hub-signature-256", &ok)], &large),
        (400, "POST", vec![("x-hub-signature-256", ok.as_str())], b"{}"),
        (400, "POST", vec![push, ("x-hub-signature-256", &ok)], b"{}"),
        (400, "POST", vec![push, ("x-hub-signature-256", &text)], b"payload=%7B%7D"),
        (200, "POST", vec![("x-github-event", "star"), ("x-hub-signature-256", &ok)], b"{}"),
        (200, "POST", vec![("x-github-event", "ping"), ("x-hub-signature-256", &ok)], b"{}"),
    ] {
        let (status, message, events) = status(method, &headers, body).await;
        assert_eq!(status, expected, "{headers:?}: {message}");
        assert_eq!(events, 0, "nothing reaches the bus");
    }
}

#[tokio::test]
async fn a_forge_learns_why_its_webhook_is_refused() {
    let form = b"payload=%7B%22ref%22%3A%22refs%2Fheads%2Fmain%22%7D".as_slice();
    let of_data_center = br#"{"eventKey": "repo:refs_changed"}"#.as_slice();
    let (github, bitbucket) = (sign(form), sign(of_data_center));
    for (headers, body, why) in [
        ([("x-github-event", "push"), ("x-hub-signature-256", &github)], form, "application/json"),
        (
            [("x-event-key", "repo:refs_changed"), ("x-hub-signature", &bitbucket)],
            of_data_center,
            "Data Center",
        ),
    ] {
        let (status, message, _) = status("POST", &headers, body).await;
        assert_eq!((status, message.contains(why)), (400, true), "{message}");
    }
}

#[tokio::test]
async fn a_stranger_costs_no_call_at_all() {
    let account = Account::default();
    let response = receive(&account, "POST", &[("x-github-event", "push")], b"{}").await;
    assert_eq!(response.status_code, 401);
    assert!(account.calls.borrow().is_empty());
}

#[tokio::test]
async fn an_unknown_repository_is_ignored() {
    let mut env = TestEnvironment::new();
    let body = serde_json::json!({
        "ref": "refs/heads/main", "after": "1".repeat(40), "commits": [],
        "repository": { "full_name": "example/other", "html_url": "https://github.com/example/other",
        "default_branch": "main" },
    });
    env.deliver("push", &body).await;
    assert!(env.build().await.is_empty());
    assert!(env.dead.is_empty());
}

#[tokio::test]
async fn a_project_that_codebuild_does_not_know_is_ignored() {
    let mut env = TestEnvironment::new();
    env.account.projects.borrow_mut().clear();
    let a = env.commit([1, 1, 1, 1]);
    env.push("main", &[&a]).await;
    assert!(env.build().await.is_empty());
    assert!(env.dead.is_empty());
}

#[tokio::test]
async fn events_that_are_no_events_are_dropped() {
    use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
    let env = TestEnvironment::new();
    let mut batch = SqsEvent::default();
    for body in [
        "",
        "{}",
        "null",
        "[1]",
        r#"{"source":"aws.codebuild","detail-type":"CodeBuild Build State Change","detail":{}}"#,
    ] {
        let mut message = SqsMessage::default();
        message.message_id = Some("1".to_owned());
        message.body = Some(body.to_owned());
        batch.records.push(message);
    }
    let policy = Policy::parse("policy", POLICY).unwrap();
    let (promoter, now) = (promote_cache::Instance::default(), env.account.now());
    let response = promote_cache::handle(&batch, &policy, &env.account, &promoter, now).await;
    assert!(response.batch_item_failures.is_empty());
    assert!(env.account.calls.borrow().is_empty());
}

#[tokio::test]
async fn an_export_that_is_no_cache_is_left_alone() {
    let mut env = TestEnvironment::new();
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.settle().await;
    let build = env.running().pop().unwrap();
    let tag = env.reported(&build, "STOKER_EXPORT");
    let repository = env.repository();
    let media_type = buildkit_cache::MANIFEST_MEDIA_TYPE;
    env.account.push(&repository, &tag, media_type, b"{\"schemaVersion\":2}".as_slice().into(), vec![]);
    env.end(&build.id, stoker_core::ports::BuildStatus::Succeeded, &a);
    env.settle().await;
    assert!(env.lines().is_empty());
    assert!(env.dead.is_empty());
}

#[tokio::test]
async fn a_line_that_is_no_cache_is_never_given_to_a_build() {
    let mut env = TestEnvironment::new();
    let repository = env.repository();
    let media_type = buildkit_cache::MANIFEST_MEDIA_TYPE;
    env.account.push(&repository, "app.main", media_type, b"{\"schemaVersion\":2}".as_slice().into(), vec![]);
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.settle().await;
    assert_eq!(env.reported(&env.running()[0], "STOKER_CACHE_FROM"), "");
}

#[tokio::test]
async fn resolve_cache_answers_what_a_build_would_have_been_given() {
    let mut env = TestEnvironment::new();
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    let policy = Policy::parse("policy", POLICY).unwrap();
    let ask = async |question: serde_json::Value| {
        let handled = stoker_core::resolve::handle(
            question,
            &policy,
            scenarios::environment::REGISTRY,
            &env.account,
            env.account.now(),
        );
        env.account.invoke("resolve-cache", None, handled).await.unwrap()
    };
    let commit = "ab".repeat(20);
    let answer = ask(serde_json::json!({"project": "app", "branch": "x", "commit": commit})).await.unwrap();
    assert_eq!(answer.environment["STOKER_READS"], "main");
    assert!(answer.environment["STOKER_CACHE_FLAGS"].contains("--cache-to"));
    let answer = ask(serde_json::json!({"project": "app"})).await.unwrap();
    assert!(
        !answer.environment["STOKER_CACHE_FLAGS"].contains("--cache-to"),
        "without a commit there is no export"
    );
    let unknown = ask(serde_json::json!({"project": "other"})).await.unwrap_err().to_string();
    assert!(unknown.contains("policy/stoker.yaml"), "{unknown}");
    assert!(ask(serde_json::json!({"projekt": "app"})).await.is_err());
}

#[tokio::test]
async fn a_cache_too_large_to_import_is_not_given_to_a_build() {
    let mut env = TestEnvironment::new();
    let repository = env.repository();
    let (manifest, blobs) =
        exported(&Source { versions: [1, 1, 1, 1] }, |_| "2026-11-21T08:00:00Z".parse().unwrap());
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["config"]["size"] = serde_json::json!(2_000_000);
    let media_type = buildkit_cache::MANIFEST_MEDIA_TYPE;
    env.account.push(&repository, "app.main", media_type, manifest.to_string().into(), blobs);
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.settle().await;
    assert_eq!(env.reported(&env.running()[0], "STOKER_READS"), "");
}

#[tokio::test]
async fn a_registry_that_does_not_answer_makes_a_build_cold_and_not_absent() {
    use stoker_core::error::Failure;
    let mut env = TestEnvironment::new();
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    let a = env.commit([2, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    // The next calls are those of `start-build`: the project's builds, then the caches.
    let next = env.account.calls.borrow().len();
    env.account.faults.borrow_mut().insert(next + 1, scenarios::account::Fault::Before(Failure::Refused));
    env.settle().await;
    assert_eq!(env.reported(&env.running()[0], "STOKER_CACHE_FROM"), "");
}

#[tokio::test]
async fn a_build_of_a_project_that_is_not_stokers_is_not_even_asked_about() {
    use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
    let env = TestEnvironment::new();
    let event = serde_json::json!({"source": "aws.codebuild", "detail-type": "CodeBuild Build State Change", "detail":
        {"build-status": "SUCCEEDED", "project-name": "theirs", "build-id": "arn:aws:codebuild:x:1:build/theirs:1"}});
    let mut message = SqsMessage::default();
    message.body = Some(event.to_string());
    let mut batch = SqsEvent::default();
    batch.records.push(message);
    let policy = Policy::parse("policy", POLICY).unwrap();
    let (promoter, now) = (promote_cache::Instance::default(), env.account.now());
    let response = promote_cache::handle(&batch, &policy, &env.account, &promoter, now).await;
    assert!(response.batch_item_failures.is_empty());
    assert!(env.account.calls.borrow().is_empty());
}

/// ECR on loopback, which answers whatever it is asked with one manifest of so many bytes.
async fn ecr_with_a_manifest_of(bytes: usize, tells_length: bool) -> (Aws, tokio::task::JoinHandle<()>) {
    let text = " ".repeat(bytes);
    let digest = Digest::of(text.as_bytes());
    let image = json!({ "imageId": { "imageDigest": digest }, "imageManifest": text });
    let answer = axum::body::Bytes::from(json!({ "images": [image], "failures": [] }).to_string());
    let answered = move || async move {
        let pieces = stream::iter([Ok::<_, std::io::Error>(answer.clone())]);
        let body = if tells_length { Body::from(answer) } else { Body::from_stream(pieces) };
        ([("content-type", "application/x-amz-json-1.1")], body)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(answered);
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::for_tests()))
        .endpoint_url(format!("http://{address}"))
        .http_client(http)
        .build();
    (Aws::from_config(config, AwsSettings::default()), server)
}

#[tokio::test]
async fn attack_an_answer_that_is_longer_than_there_is_memory_for() {
    let repository = CacheRepository::new("stoker/app").unwrap();
    for tells_length in [true, false] {
        let (aws, server) = ecr_with_a_manifest_of(20_000, tells_length).await;
        let digest = Digest::of(" ".repeat(20_000).as_bytes());
        let digests = std::slice::from_ref(&digest);
        let within = aws.manifests(&repository, digests, 30_000).await.unwrap().expect("it is short enough");
        assert_eq!(within.len(), 1, "it tells its length: {tells_length}");
        assert_eq!(aws.manifests(&repository, digests, 10_000).await.unwrap(), None, "{tells_length}");
        server.abort();
    }
}
