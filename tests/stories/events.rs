//! Every file in `events/` is what its function understands.

use std::path::Path;

use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlRequest;
use aws_lambda_events::sqs::SqsEvent;
use stoker::event::{Envelope, Event};
use stoker::policy::Policy;
use stoker::promote::Hint;
use stories::account::Account;

fn read(file: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn envelopes(batch: serde_json::Value) -> Vec<Envelope> {
    let batch: SqsEvent = serde_json::from_value(batch).unwrap();
    batch.records.iter().map(|message| Envelope::parse(message.body.as_deref().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn every_event_is_understood_by_its_function() {
    let policy = Policy::parse("policy", stories::world::POLICY).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../events")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let account = Account::default();
        account.secrets.borrow_mut().push(b"a secret for examples".to_vec());
        if let Some(webhook) = name.strip_prefix("receive-webhook-") {
            let request: LambdaFunctionUrlRequest = serde_json::from_value(read(&path)).unwrap();
            let response = receive_webhook::handle(&request, &account).await;
            assert_eq!(response.status_code, if webhook == "ping" { 200 } else { 202 }, "{name}");
            let sent = account.bus.borrow().first().map(Event::detail_type);
            let expected = match webhook {
                "ping" => None,
                "push" => Some("BranchPushed"),
                "branch-deleted" => Some("BranchDeleted"),
                "pull-request-merged" => Some("PullRequestMerged"),
                _ => Some("PullRequestUpdated"),
            };
            assert_eq!(sent, expected, "{name}");
        } else if name.starts_with("start-build-") {
            Envelope::from_value(read(&path)).unwrap();
        } else if name.starts_with("promote-cache-batch") {
            let hints =
                envelopes(read(&path)).iter().filter_map(|envelope| Hint::of(&envelope.event)).count();
            assert_eq!(hints, 4, "{name}");
        } else if name == "promote-cache-nightly" {
            assert_eq!(envelopes(read(&path))[0].event, Event::NightlySweep {}, "{name}");
        } else if name.starts_with("promote-cache-") {
            assert!(
                envelopes(read(&path)).iter().all(|envelope| Hint::of(&envelope.event).is_none()),
                "{name}"
            );
        } else if name.starts_with("enforce-retention-branch") {
            assert!(matches!(envelopes(read(&path))[0].event, Event::BranchDeleted(_)), "{name}");
        } else if name == "resolve-cache" {
            resolve_cache::handle(read(&path), &policy, "registry.example", &account).await.unwrap();
        } else if name.starts_with("warm-main-") || name.starts_with("enforce-retention-") {
            Envelope::from_value(read(&path)).unwrap();
        } else {
            assert_eq!(name, "README", "a file that belongs to no function");
            continue;
        }
        seen += 1;
    }
    assert_eq!(seen, 16);
}
