//! What `stoker redrive` shows of dead letters, where it sends them, and what it leaves.

use serde_json::{Value, json};

use crate::aws::{Account, Queue};
use crate::run::Ran;

const POLICY: &str = "version: 1\nprojects: []\n";
const DEAD: &str = "DeadLetters";

fn url(name: &str) -> String {
    format!("https://sqs.eu-west-1.amazonaws.com/123456789012/stoker-{name}-1X")
}

fn arn(name: &str) -> String {
    format!("arn:aws:sqs:eu-west-1:123456789012:stoker-{name}-1X")
}

fn event(kind: &str, detail: &Value) -> String {
    json!({"source": "stoker", "detail-type": kind, "detail": detail}).to_string()
}

fn pushed() -> String {
    event(
        "BranchPushed",
        &json!({"repository": "github.com/example/app", "branch": "feature-a", "commit": "ab".repeat(20),
            "default_branch": "main", "to_default_branch": false}),
    )
}

fn ended() -> String {
    event(
        "CodeBuild Build State Change",
        &json!({"build-status": "SUCCEEDED", "project-name": "app", "build-id": "arn:aws:codebuild:x:1:build/app:1"}),
    )
}

fn tick() -> String {
    event("NightlyWarm", &json!({"slots": 1, "every_minutes": 1}))
}

/// A message with attributes of SQS's own and of whoever sent it.
fn message(id: &str, body: &str, own: &Value, more: &[(&str, &str)]) -> (Value, bool) {
    let mut attributes = json!({"SentTimestamp": "1795000000000", "ApproximateReceiveCount": "1"});
    attributes.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    let more = more
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!({"DataType": "String", "StringValue": value})));
    let message = json!({"MessageId": id, "ReceiptHandle": format!("receipt of {id}"), "Body": body,
        "Attributes": attributes, "MessageAttributes": more.collect::<serde_json::Map<_, _>>()});
    (message, false)
}

async fn stack() -> Account {
    let account = Account::start().await;
    let mut env = account.env();
    for (name, gives_up_to) in [
        (DEAD, None),
        ("PromotionDeadLetters", None),
        ("PromotionQueue", Some("PromotionDeadLetters")),
        ("StartQueue", Some(DEAD)),
        ("WarmQueue", Some(DEAD)),
    ] {
        env.resources.push((name.to_owned(), "AWS::SQS::Queue".to_owned(), url(name)));
        let mut attributes = json!({"QueueArn": arn(name), "ApproximateNumberOfMessages": "0"});
        if name.starts_with("Promotion") {
            attributes["FifoQueue"] = json!("true");
        }
        if let Some(to) = gives_up_to {
            let policy = json!({"deadLetterTargetArn": arn(to), "maxReceiveCount": 5});
            attributes["RedrivePolicy"] = json!(policy.to_string());
        }
        env.queues.insert(url(name), Queue { attributes, ..Queue::default() });
    }
    drop(env);
    account
}

/// Everything that can be in a dead-letter queue.
async fn full() -> Account {
    let account = stack().await;
    let given_up = json!({"DeadLetterQueueSourceArn": arn("StartQueue")});
    let failed = json!({"version": "1.0",
        "requestContext": {"functionArn": "arn:aws:lambda:eu-west-1:123456789012:function:stoker-receive-codecommit:$LATEST"},
        "requestPayload": {"detail-type": "CodeCommit Repository State Change"}});
    // What EventBridge Scheduler gives up is the request that it made of SQS.
    let tick = json!({"MessageBody": tick(), "QueueUrl": url("WarmQueue")}).to_string();
    let scheduler = [
        ("TARGET_ARN", "arn:aws:scheduler:::aws-sdk:sqs:sendMessage"),
        ("ERROR_CODE", "InternalServiceError"),
    ];
    let theirs = json!({"MessageBody": "{}", "QueueUrl": url("theirs")}).to_string();
    let mut env = account.env();
    let dead = env.queues.get_mut(&url(DEAD)).unwrap();
    dead.attributes["ApproximateNumberOfMessages"] = json!("8");
    let target = arn("PromotionQueue");
    dead.messages = vec![
        message("1", &pushed(), &given_up, &[]),
        message("2", &pushed(), &given_up, &[]),
        message(
            "3",
            &ended(),
            &json!({}),
            &[("TARGET_ARN", &target), ("ERROR_CODE", "NO_PERMISSIONS\u{1b}[31m")],
        ),
        message("4", &failed.to_string(), &json!({}), &[]),
        message("5", &tick, &json!({}), &scheduler),
        message("6", &pushed(), &json!({}), &[("TARGET_ARN", "arn:aws:sqs:eu-west-1:999999999999:theirs")]),
        message("7", "{", &json!({}), &[]),
        message("8", &theirs, &json!({}), &scheduler),
    ];
    let promotions = env.queues.get_mut(&url("PromotionDeadLetters")).unwrap();
    let given_up = json!({"DeadLetterQueueSourceArn": arn("PromotionQueue"), "MessageGroupId": "promotions"});
    promotions.messages =
        (0..12).map(|number| message(&format!("p{number}"), &ended(), &given_up, &[])).collect();
    promotions.attributes["ApproximateNumberOfMessages"] = json!("12");
    drop(env);
    account
}

async fn redrive(account: &Account, more: &str) -> Ran {
    account.stoker(POLICY, &format!("redrive {more}")).await
}

/// The bodies that a queue was sent, with their groups, and the ids of the messages that are in it.
fn of_queue(account: &Account, name: &str) -> (Vec<(String, Option<String>)>, Vec<String>) {
    let env = account.env();
    let queue = &env.queues[&url(name)];
    let hidden = queue.messages.iter().filter(|(_, is_hidden)| *is_hidden).count();
    assert_eq!(hidden, 0, "{name} hides messages");
    let ids = queue.messages.iter().map(|(message, _)| message["MessageId"].as_str().unwrap().to_owned());
    (queue.sent.clone(), ids.collect())
}

#[tokio::test]
async fn by_default_it_only_shows() {
    let account = full().await;
    let ran = redrive(&account, "").await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{}", ran.out);
    let has = |words: &[&str]| ran.out.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["DeadLetters: 8 messages"]), "{}", ran.out);
    assert!(has(&["2", "BranchPushed", "github.com/example/app", "to StartQueue"]), "{}", ran.out);
    assert!(has(&["1", "CodeBuild Build State Change", "app", "to PromotionQueue"]), "{}", ran.out);
    assert!(has(&["NightlyWarm", "to WarmQueue"]), "{}", ran.out);
    assert!(has(&["stays", "aws lambda invoke", "function:stoker-receive-codecommit"]), "{}", ran.out);
    assert!(has(&["stays", "999999999999:theirs, which is no queue of the stack"]), "{}", ran.out);
    assert!(has(&["no event", "stays"]), "{}", ran.out);
    assert!(has(&["could not be delivered: NO_PERMISSIONS\\u{1b}[31m"]), "{}", ran.out);
    assert!(has(&["PromotionDeadLetters: 10 messages of about 12"]), "{}", ran.out);
    assert!(has(&["nothing was sent", "--yes"]), "{}", ran.out);
    assert_eq!(of_queue(&account, DEAD).1.len(), 8);
    assert_eq!(of_queue(&account, "PromotionDeadLetters").1.len(), 12);
    for call in ["SendMessage", "DeleteMessage", "StartMessageMoveTask"] {
        assert_eq!(account.count(call), 0, "{call}");
    }
}

#[tokio::test]
async fn with_yes_everything_goes_back_where_it_was_to_go() {
    let account = full().await;
    let ran = redrive(&account, "--yes --json").await;
    assert_eq!((ran.code, ran.err.as_str()), (1, ""), "something stays: {}", ran.out);
    assert_eq!(of_queue(&account, "StartQueue").0, [(pushed(), None), (pushed(), None)]);
    assert_eq!(of_queue(&account, "PromotionQueue").0, [(ended(), Some("promotions".to_owned()))]);
    assert_eq!(of_queue(&account, "WarmQueue").0, [(tick(), None)]);
    assert_eq!(of_queue(&account, DEAD).1, ["4", "6", "7", "8"]);
    assert_eq!(account.count(&format!("moves {}", arn("PromotionDeadLetters"))), 1);
    let reported: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(reported["applied"], true);
    assert_eq!((&reported["queues"][0]["seen"], &reported["queues"][0]["sent"]), (&json!(8), &json!(4)));
    assert_eq!(reported["queues"][1]["movesWhole"], true);
    let group = &reported["queues"][0]["groups"][0];
    assert_eq!(
        (&group["times"], &group["to"], &group["oldest"]),
        (&json!(2), &json!("StartQueue"), &json!("2026-11-18T11:06:40Z"))
    );

    let ran = redrive(&account, "--yes --queue PromotionDeadLetters").await;
    assert_eq!(ran.code, 0, "{}", ran.out);
    assert!(!ran.out.contains("\nDeadLetters"), "{}", ran.out);
}

#[tokio::test]
async fn a_call_that_fails_half_way_tells_what_was_sent_and_hides_nothing() {
    let account = full().await;
    account.env().failing.push(("DeleteMessage".to_owned(), 1, "AccessDeniedException"));
    let ran = redrive(&account, "--yes --queue DeadLetters").await;
    assert_eq!(ran.code, 3, "{}", ran.out);
    assert!(ran.err.contains("you may not call sqs:DeleteMessage"), "{}", ran.err);
    assert!(ran.out.contains("sent 1 message"), "{}", ran.out);

    let account = full().await;
    account.env().failing.push(("SendMessage".to_owned(), 1, "AccessDeniedException"));
    let ran = redrive(&account, "--yes --queue DeadLetters").await;
    assert_eq!(ran.code, 3, "{}", ran.out);
    assert_eq!(account.count("DeleteMessage"), 0, "what was not sent stays");
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let account = stack().await;
    let ran = redrive(&account, "").await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "DeadLetters: no messages\nPromotionDeadLetters: no messages\n")
    );
    let ran = redrive(&account, "--queue StartQueue").await;
    assert_eq!(ran.code, 2, "{}", ran.out);
    assert!(ran.err.contains("these are: DeadLetters, PromotionDeadLetters"), "{}", ran.err);
    account.env().failing.push(("ListStackResources".to_owned(), 9, "AccessDenied"));
    let ran = redrive(&account, "").await;
    assert_eq!(ran.code, 3, "{}", ran.out);
    assert!(ran.err.contains("allow cloudformation:ListStackResources"), "{}", ran.err);
}

#[test]
fn the_group_of_promotions_is_that_of_the_template() {
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/../template.yaml");
    let template = std::fs::read_to_string(template).unwrap();
    assert!(template.contains("SqsParameters: {MessageGroupId: promotions}"));
}
