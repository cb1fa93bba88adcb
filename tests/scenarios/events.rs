//! Every file in `events/` is what its function understands.

use std::path::Path;

use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlRequest;
use aws_lambda_events::sqs::SqsEvent;
use jiff::{SignedDuration, Timestamp};
use receive_webhook::Refusals;
use scenarios::account::Account;
use stoker_core::event::{Envelope, Event};
use stoker_core::forge::Meaning;
use stoker_core::policy::Policy;
use stoker_core::promote::PromotionTrigger;

/// Where the events are.
const EVENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../events");

fn read(file: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn envelopes(batch: serde_json::Value) -> Vec<Envelope> {
    let batch: SqsEvent = serde_json::from_value(batch).unwrap();
    batch.records.iter().map(|message| Envelope::parse(message.body.as_deref().unwrap()).unwrap()).collect()
}

/// Projects of the repositories that the examples are of, where the forge does not tell the default branch.
const POLICY: &str = "
version: 1
projects:
  - { name: app, repository: github.com/example/app }
  - { name: app-bitbucket, repository: bitbucket.org/example/app }
  - { name: app-codecommit, repository: git-codecommit.us-east-1.amazonaws.com/v1/repos/app }
";

/// When the forges sent all of them: their dates are checked.
fn sent_at() -> Timestamp {
    "2026-11-21T08:00:00Z".parse().unwrap()
}

fn account() -> Account {
    let account = Account::default();
    account.secrets.borrow_mut().push(b"a secret for examples".to_vec());
    account
}

fn webhook(name: &str) -> LambdaFunctionUrlRequest {
    let path = format!("{}/../events/receive-webhook-{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_value(read(Path::new(&path))).unwrap()
}

/// The kind of event that a forge's example means, as its name has it.
fn kind(example: &str) -> Option<&'static str> {
    let name = example.trim_start_matches("gitlab-").trim_start_matches("bitbucket-");
    let name = name.trim_start_matches("merge-request-").trim_start_matches("pull-request-");
    let is_request = example.contains("-request-");
    match name {
        "push-tag" | "tag" => Some("TagPushed"),
        "ping" | "merge-group" | "renamed" | "commented" => None,
        "branch-deleted" => Some("BranchDeleted"),
        "merged" | "fast-forwarded" => Some("PullRequestMerged"),
        "closed" => Some("PullRequestClosed"),
        "approved" => Some("PullRequestApproved"),
        _ if is_request => Some("PullRequestUpdated"),
        _ => Some("BranchPushed"),
    }
}

#[tokio::test]
async fn what_is_sent_again_later_is_refused_and_told_once() {
    let policy = Policy::parse("policy", POLICY).unwrap();
    let refusals = Refusals::default();
    let account = account();
    let later = sent_at() + SignedDuration::from_hours(5 * 24);
    for name in ["push", "pull-request-opened", "gitlab-push-signed", "bitbucket-pull-request-merged"] {
        let request = webhook(name);
        let handled = receive_webhook::handle(&request, &policy, &account, &refusals, later);
        let response = account.invoke("receive-webhook", None, handled).await.unwrap();
        assert_eq!(response.status_code, 403, "{name}");
    }
    let reported: Vec<_> = account.bus.borrow().iter().map(Event::detail_type).collect();
    assert_eq!(reported, ["WebhookRefused"]);
}

/// What explains the events: the page, and the tables of what they lead to.
const PAGES: [&str; 3] = ["README", "outcomes", "policies"];

#[tokio::test]
async fn every_event_is_understood_by_its_function() {
    let policy = Policy::parse("policy", POLICY).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(EVENTS).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let account = account();
        if let Some(example) = name.strip_prefix("receive-webhook-") {
            let (request, refusals) = (webhook(example), Refusals::default());
            let handled = receive_webhook::handle(&request, &policy, &account, &refusals, sent_at());
            let response = account.invoke("receive-webhook", None, handled).await.unwrap();
            let sent = account.bus.borrow().first().map(Event::detail_type);
            assert_eq!(sent, kind(example), "{name}");
            assert_eq!(response.status_code, if sent.is_some() { 202 } else { 200 }, "{name}");
        } else if name == "receive-codecommit-pull-request-approved" {
            let handled = receive_codecommit::handle(read(&path), &policy, &account);
            let meaning = account.invoke("receive-codecommit", None, handled).await.unwrap().unwrap();
            assert!(matches!(meaning, Meaning::Ignored(_)), "{name}");
        } else if let Some(example) = name.strip_prefix("receive-codecommit-") {
            let handled = receive_codecommit::handle(read(&path), &policy, &account);
            account.invoke("receive-codecommit", None, handled).await.unwrap().unwrap();
            let sent = account.bus.borrow().first().map(Event::detail_type);
            assert_eq!(sent, kind(example), "{name}");
        } else if name.starts_with("start-build-") {
            let events = envelopes(read(&path));
            assert!(events.iter().all(|envelope| envelope.event.repository().is_some()), "{name}");
        } else if name.starts_with("promote-cache-batch") {
            let triggers = envelopes(read(&path))
                .iter()
                .filter_map(|envelope| PromotionTrigger::of(&envelope.event))
                .count();
            assert_eq!(triggers, 4, "{name}");
        } else if name == "promote-cache-build-failed" {
            let trigger = PromotionTrigger::of(&envelopes(read(&path))[0].event);
            assert!(matches!(trigger, Some(PromotionTrigger::Failed { .. })), "{name}");
        } else if name == "promote-cache-nightly" {
            assert!(matches!(envelopes(read(&path))[0].event, Event::NightlyReconcile(_)), "{name}");
        } else if name.starts_with("promote-cache-reconcile-") {
            let is_known =
                |event: &Event| matches!(event, Event::ReconcileRequested(_) | Event::DriftFound(_));
            assert!(envelopes(read(&path)).iter().all(|envelope| is_known(&envelope.event)), "{name}");
        } else if name.starts_with("promote-cache-") {
            assert!(
                envelopes(read(&path)).iter().all(|envelope| PromotionTrigger::of(&envelope.event).is_none()),
                "{name}"
            );
        } else if name.starts_with("enforce-retention-branch") {
            assert!(matches!(envelopes(read(&path))[0].event, Event::BranchDeleted(_)), "{name}");
        } else if name == "resolve-cache" {
            let handled = stoker_core::resolve::handle(
                read(&path),
                &policy,
                "registry.example",
                &account,
                account.now(),
            );
            account.invoke("resolve-cache", None, handled).await.unwrap().unwrap();
        } else if name.starts_with("warm-main-") {
            let is_known = |event: &Event| {
                matches!(event, Event::BranchPushed(_) | Event::NightlyWarm(_) | Event::WarmRequested(_))
            };
            assert!(envelopes(read(&path)).iter().all(|envelope| is_known(&envelope.event)), "{name}");
        } else if name.starts_with("enforce-retention-") {
            let is_known =
                |event: &Event| matches!(event, Event::NightlyRetention(_) | Event::RetentionRequested(_));
            assert!(envelopes(read(&path)).iter().all(|envelope| is_known(&envelope.event)), "{name}");
        } else {
            assert!(PAGES.contains(&name.as_ref()), "a file that belongs to no function");
            continue;
        }
        seen += 1;
    }
    let files = std::fs::read_dir(EVENTS).unwrap().count();
    assert_eq!(seen, files - PAGES.len(), "all but what explains them");
}
