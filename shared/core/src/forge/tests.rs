//! What the files in `events/` mean, field by field, and who may have sent them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;

/// What the examples in `events/` are signed with.
const SECRET: &[u8] = b"a secret for examples";

fn now() -> Timestamp {
    "2026-11-21T08:00:00Z".parse().unwrap()
}

/// A request, as far as a forge speaks in it.
#[derive(Clone)]
struct Delivery {
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Delivery {
    fn new<const N: usize>(headers: [(&str, &str); N], body: &[u8]) -> Self {
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { headers: headers.into(), body: body.to_vec() }
    }

    fn verify(&self, secrets: &[&[u8]], now: Timestamp) -> Result<(), Refusal> {
        let header = |name: &str| self.headers.get(name).map(String::as_str);
        let secrets: Vec<Vec<u8>> = secrets.iter().map(|secret| secret.to_vec()).collect();
        verify(Forge::of(&header).unwrap(), &secrets, &header, &self.body, now)
    }

    fn read(&self) -> Meaning {
        let header = |name: &str| self.headers.get(name).map(String::as_str);
        let forge = Forge::of(&header).unwrap();
        read(forge, forge.event_name(&header).unwrap(), &self.body, &default_branch_of).unwrap()
    }
}

fn default_branch_of(repository: &Repository) -> Option<Branch> {
    repository.as_str().ends_with("/app").then(|| Branch::new("main").unwrap())
}

fn file(name: &str) -> Value {
    let path = format!("{}/../../events/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn delivery(name: &str) -> Delivery {
    let request = file(&format!("receive-webhook-{name}"));
    let headers = serde_json::from_value(request["headers"].clone()).unwrap();
    Delivery { headers, body: request["body"].as_str().unwrap().into() }
}

fn reported(meaning: Meaning) -> Vec<Value> {
    match meaning {
        Meaning::Events(events) => events.iter().map(|event| serde_json::to_value(event).unwrap()).collect(),
        Meaning::Ignored(why) => vec![json!(why)],
    }
}

/// What a webhook means, once it has been found genuine and young enough.
fn received(name: &str) -> Vec<Value> {
    let delivery = delivery(name);
    delivery.verify(&[SECRET], now()).unwrap();
    let mut meaning = delivery.read();
    if let Meaning::Events(events) = &mut meaning {
        for event in events {
            check_age(event, now()).unwrap();
        }
    }
    reported(meaning)
}

fn commit(digit: u8) -> String {
    digit.to_string().repeat(40)
}

/// An event with what all of its kind have in common, and what it has of its own; null takes a field away.
fn event(kind: &str, mut detail: Value, own: Value) -> Value {
    let (Some(fields), Value::Object(own)) = (detail.as_object_mut(), own) else { panic!("no objects") };
    fields.extend(own);
    fields.retain(|_, value| !value.is_null());
    json!({"detail-type": kind, "detail": detail})
}

fn pushed(repository: &str, own: Value) -> Value {
    let common = json!({
        "repository": repository, "branch": "feature-a", "commit": commit(1), "before": commit(2),
        "commits": [commit(5), commit(1)], "default_branch": "main", "to_default_branch": false, "skips_ci": false,
    });
    event("BranchPushed", common, own)
}

/// A push with the reference beside which CodeBuild takes the commit.
fn referred(mut push: Value) -> Value {
    let branch = push["detail"]["branch"].as_str().unwrap();
    push["detail"]["reference"] = json!(format!("refs/heads/{branch}"));
    push
}

fn deleted(repository: &str, own: Value) -> Value {
    event(
        "BranchDeleted",
        json!({"repository": repository, "branch": "feature-a", "default_branch": "main"}),
        own,
    )
}

fn pull_request(repository: &str) -> Value {
    json!({
        "repository": repository, "number": 7, "branch": "feature-a", "commit": commit(1), "base": "main",
        "default_branch": "main", "from_fork": false, "change": "opened", "draft": false, "skips_ci": false,
        "updated_at": "2026-11-21T08:00:00Z",
    })
}

/// The message of the head in most examples.
const MESSAGE: &str = "Change a dependency";

fn by(actor: &str, mut event: Value) -> Value {
    event["detail"]["actor"] = json!(actor);
    event
}

fn says(message: &str, mut event: Value) -> Value {
    event["detail"]["message"] = json!(message);
    event
}

fn tagged(repository: &str, own: Value) -> Value {
    event("TagPushed", json!({"repository": repository, "tag": "v1.0.0", "commit": commit(1)}), own)
}

const NO_CHANGE: &str = "an action that changes no code";
const NO_EVENT: &str = "not an event that Stoker acts on";

#[test]
fn pushes_to_github() {
    let pushed = |own: Value| {
        let mut event = pushed("github.com/example/app", own);
        event["detail"]["pushed_at"] = json!("2026-11-21T08:00:00Z");
        vec![by("1", says(MESSAGE, referred(event)))]
    };
    let one = json!([commit(1)]);
    let paths = json!(["Dockerfile", "images/api/Dockerfile", "old.txt"]);
    assert_eq!(received("push"), pushed(json!({"paths": paths})));
    let skipped = json!({"commits": one, "paths": ["README.md"], "skips_ci": true});
    let skipped = pushed(skipped).into_iter().map(|event| says("Correct the docs [skip ci]", event));
    assert_eq!(received("push-skip-ci"), skipped.collect::<Vec<_>>());
    assert_eq!(received("push-branch-created"), pushed(json!({"commits": [], "before": null})));
    assert_eq!(received("push-forced"), pushed(json!({"commits": one})));
    let first = json!({"branch": "main", "to_default_branch": true, "before": null});
    assert_eq!(received("push-first"), pushed(first));
    let queued = format!("gh-readonly-queue/main/pr-1-{}", commit(2));
    let queued = json!({"branch": queued, "commits": one, "before": null});
    let queued =
        pushed(queued).into_iter().map(|event| says("Merge pull request #1 from example/feature-a", event));
    assert_eq!(received("push-merge-queue"), queued.collect::<Vec<_>>());
    let tag = json!({"actor": "1", "message": MESSAGE, "pushed_at": "2026-11-21T08:00:00Z"});
    assert_eq!(received("push-tag"), [tagged("github.com/example/app", tag)]);
    let gone = json!({"deleted_at": "2026-11-21T08:00:00Z"});
    assert_eq!(received("branch-deleted"), [deleted("github.com/example/app", gone)]);
    assert_eq!(received("merge-group"), ["the merge queue's branch comes as a push of its own"]);
    assert_eq!(received("ping"), ["pong"]);
}

/// Of an annotated tag the push names the tag's own object, and a tag that is gone builds nothing.
#[test]
fn a_tag_is_built_at_its_commit() {
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut delivery = delivery(name);
        let mut body: Value = serde_json::from_slice(&delivery.body).unwrap();
        change(&mut body);
        delivery.body = body.to_string().into_bytes();
        reported(delivery.read())
    };
    for name in ["push-tag", "gitlab-push-tag"] {
        let built = changed(name, &|body| body["after"] = json!(commit(7)));
        assert_eq!(built[0]["detail"]["commit"], commit(1), "{name}");
        let bare = changed(name, &|body| {
            body["after"] = json!(commit(7));
            body["checkout_sha"] = Value::Null;
            body["head_commit"] = Value::Null;
        });
        assert_eq!(bare[0]["detail"]["commit"], commit(7), "{name}");
    }
    let gone = "a tag that was deleted";
    assert_eq!(changed("push-tag", &|body| body["deleted"] = json!(true)), [gone]);
    assert_eq!(changed("gitlab-push-tag", &|body| body["after"] = json!(commit(0))), [gone]);
    let of_bitbucket = |body: &mut Value| {
        let change = &mut body["push"]["changes"][0];
        change["old"] = change["new"].take();
    };
    let none = "no branch was pushed, and no tag but what was deleted";
    assert_eq!(changed("bitbucket-push-tag", &of_bitbucket), [none]);
    let mut event = file("receive-codecommit-tag");
    event["detail"]["event"] = json!("referenceDeleted");
    assert_eq!(reported(codecommit::read(&event, &default_branch_of).unwrap()), [gone]);
}

#[test]
fn pull_requests_of_github() {
    let pull = |kind: &str, own: Value| {
        let mut common = pull_request("github.com/example/app");
        common["reference"] = json!("refs/pull/7/head");
        common["actor"] = json!("1");
        vec![event(kind, common, own)]
    };
    let updated = |own: Value| pull("PullRequestUpdated", own);
    assert_eq!(received("pull-request-opened"), updated(json!({})));
    let draft = json!({"draft": true, "labels": ["dependencies", "No build"]});
    assert_eq!(received("pull-request-draft"), updated(draft));
    assert_eq!(received("pull-request-ready"), updated(json!({"change": "ready"})));
    assert_eq!(received("pull-request-reopened"), updated(json!({"change": "reopened"})));
    assert_eq!(received("pull-request-pushed"), updated(json!({"change": "pushed"})));
    let retargeted = json!({"change": "retargeted", "base": "release"});
    assert_eq!(received("pull-request-retargeted"), updated(retargeted));
    assert_eq!(received("pull-request-renamed"), [NO_CHANGE]);
    let labelled = json!({"change": "labelled", "labels": ["No build"]});
    assert_eq!(received("pull-request-labelled"), updated(labelled));
    let merged = json!({"change": "ended", "merge_commit": commit(3)});
    assert_eq!(received("pull-request-merged"), pull("PullRequestMerged", merged));
    assert_eq!(received("pull-request-closed"), pull("PullRequestClosed", json!({"change": "ended"})));
    let fork = updated(json!({"from_fork": true, "branch": "main"}));
    assert_eq!(received("pull-request-from-fork"), fork);
    let approval = json!({"pull_request": fork[0]["detail"], "approver": "2", "commit": commit(5)});
    assert_eq!(received("pull-request-approved"), [event("PullRequestApproved", approval, json!({}))]);
    assert_eq!(received("pull-request-commented"), ["a review that approves nothing"]);
}

#[test]
fn pushes_to_gitlab() {
    let pushed = |own: Value| vec![by("1", says(MESSAGE, pushed("gitlab.com/example/group/app", own)))];
    let paths = json!(["Dockerfile", "images/api/Dockerfile", "old.txt"]);
    assert_eq!(received("gitlab-push"), pushed(json!({"paths": paths})));
    assert_eq!(received("gitlab-push-signed"), received("gitlab-push"));
    let skipped = json!({"commits": [commit(1)], "paths": ["README.md"], "skips_ci": true});
    let skipped = pushed(skipped).into_iter().map(|event| says("Correct the docs [CI skip]", event));
    assert_eq!(received("gitlab-push-skip-ci"), skipped.collect::<Vec<_>>());
    assert_eq!(received("gitlab-push-option-skip"), pushed(json!({"paths": paths, "skips_ci": true})));
    let newest: Vec<_> = (1..20).map(|i| format!("{i:040x}")).chain([commit(1)]).collect();
    assert_eq!(received("gitlab-push-truncated"), pushed(json!({"commits": newest})));
    let first = json!({"branch": "main", "to_default_branch": true, "before": null});
    assert_eq!(received("gitlab-push-first"), pushed(first));
    let mut created = pushed(json!({"commits": [], "before": null}));
    created[0]["detail"].as_object_mut().unwrap().remove("message");
    assert_eq!(received("gitlab-push-branch-created"), created);
    let tag = json!({"actor": "1"});
    assert_eq!(received("gitlab-push-tag"), [tagged("gitlab.com/example/group/app", tag)]);
    assert_eq!(received("gitlab-branch-deleted"), [deleted("gitlab.com/example/group/app", json!({}))]);
}

#[test]
fn merge_requests_of_gitlab() {
    let request = |kind: &str, own: Value| {
        let mut common = pull_request("gitlab.com/example/group/app");
        common["reference"] = json!("refs/merge-requests/7/head");
        common["actor"] = json!("2");
        common["message"] = json!(MESSAGE);
        vec![event(kind, common, own)]
    };
    let updated = |own: Value| request("PullRequestUpdated", own);
    let opened = json!({"labels": ["dependencies"]});
    assert_eq!(received("gitlab-merge-request-opened"), updated(opened));
    assert_eq!(received("gitlab-merge-request-draft"), updated(json!({"draft": true})));
    assert_eq!(received("gitlab-merge-request-reopened"), updated(json!({"change": "reopened"})));
    assert_eq!(received("gitlab-merge-request-ready"), updated(json!({"change": "ready"})));
    assert_eq!(received("gitlab-merge-request-pushed"), updated(json!({"change": "pushed"})));
    let retargeted = json!({"change": "retargeted", "base": "release"});
    assert_eq!(received("gitlab-merge-request-retargeted"), updated(retargeted));
    let labelled = json!({"change": "labelled", "labels": ["No build"]});
    assert_eq!(received("gitlab-merge-request-labelled"), updated(labelled));
    assert_eq!(received("gitlab-merge-request-renamed"), [NO_CHANGE]);
    let merged = |merge| request("PullRequestMerged", json!({"change": "ended", "merge_commit": merge}));
    assert_eq!(received("gitlab-merge-request-merged"), merged(commit(3)));
    assert_eq!(received("gitlab-merge-request-fast-forwarded"), merged(commit(1)));
    let closed = request("PullRequestClosed", json!({"change": "ended"}));
    assert_eq!(received("gitlab-merge-request-closed"), closed);
    let fork = updated(json!({"from_fork": true, "branch": "main"}));
    assert_eq!(received("gitlab-merge-request-from-fork"), fork);
    // Who opened it is another account than who approves.
    let undated = json!({"from_fork": true, "branch": "main", "updated_at": null, "actor": "3"});
    let undated = &updated(undated)[0]["detail"];
    let approval = json!({"pull_request": undated, "approver": "2", "commit": commit(1)});
    let approved = [event("PullRequestApproved", approval, json!({}))];
    assert_eq!(received("gitlab-merge-request-approved"), approved);
}

#[test]
fn gitlab_heeds_marks_in_the_message_and_in_the_title_of_a_merge_request() {
    let skips = |title: &str, message: Value| {
        let body = json!({
            "user": {"id": 2, "username": "hubot"},
            "project": {"web_url": "https://gitlab.com/a/b", "default_branch": "main"},
            "object_attributes": {
                "iid": 1, "action": "open", "source_branch": "a", "target_branch": "main", "title": title,
                "source_project_id": 1, "target_project_id": 1, "last_commit": {"id": commit(1), "message": message},
            },
        });
        let meaning =
            read(Forge::GitLab, "Merge Request Hook", body.to_string().as_bytes(), &default_branch_of);
        reported(meaning.unwrap())[0]["detail"]["skips_ci"].as_bool().unwrap()
    };
    assert!(skips("Correct the docs [CI skip]", json!("Correct")));
    assert!(skips("Correct", json!("Correct the docs [skip ci]\n")));
    assert!(!skips("Correct", json!("Correct")));
    assert!(!skips("Correct", json!(null)));
}

#[test]
fn pushes_to_bitbucket() {
    let id = "557058:00000000-ABCD-0000-0000-000000000000";
    let pushed = |own: Value| by(id, says(MESSAGE, referred(pushed("bitbucket.org/example/app", own))));
    let gone = deleted("bitbucket.org/example/app", json!({}));
    let tag = by(id, says(MESSAGE, tagged("bitbucket.org/example/app", json!({}))));
    let one = json!([commit(1)]);
    assert_eq!(received("bitbucket-push"), [pushed(json!({}))]);
    let main = json!({"branch": "main", "to_default_branch": true, "commits": one, "skips_ci": true});
    assert_eq!(
        received("bitbucket-push-several"),
        [says("Correct the docs [skip ci]", pushed(main)), tag.clone(), gone.clone()]
    );
    let newest: Vec<_> = (6..10).map(|i| format!("{i:040x}")).chain([commit(1)]).collect();
    assert_eq!(received("bitbucket-push-truncated"), [pushed(json!({"commits": newest}))]);
    assert_eq!(received("bitbucket-push-forced"), [pushed(json!({"commits": one}))]);
    let first = json!({"branch": "main", "to_default_branch": true, "before": null});
    assert_eq!(received("bitbucket-push-first"), [pushed(first)]);
    let created = json!({"commits": [], "before": null});
    assert_eq!(received("bitbucket-push-branch-created"), [pushed(created)]);
    assert_eq!(received("bitbucket-branch-deleted"), [gone]);
    assert_eq!(received("bitbucket-push-tag"), [tag]);
}

#[test]
fn pull_requests_of_bitbucket() {
    let pull = |kind: &str, own: Value| {
        let mut common = pull_request("bitbucket.org/example/app");
        common["commit"] = json!("111111111111");
        common["actor"] = json!("557058:00000000-ABCD-0000-0000-000000000000");
        common["updated_at"] = json!("2026-11-21T08:00:00.123456Z");
        vec![event(kind, common, own)]
    };
    let updated = |own: Value| pull("PullRequestUpdated", own);
    assert_eq!(received("bitbucket-pull-request-opened"), updated(json!({})));
    assert_eq!(received("bitbucket-pull-request-draft"), updated(json!({"draft": true})));
    assert_eq!(received("bitbucket-pull-request-pushed"), updated(json!({"change": "pushed"})));
    let fork = json!({"from_fork": true, "branch": "main"});
    assert_eq!(received("bitbucket-pull-request-from-fork"), updated(fork));
    let merged = json!({"change": "ended", "merge_commit": "333333333333"});
    assert_eq!(received("bitbucket-pull-request-merged"), pull("PullRequestMerged", merged));
    let closed = pull("PullRequestClosed", json!({"change": "ended"}));
    assert_eq!(received("bitbucket-pull-request-closed"), closed);
    let fork = json!({"from_fork": true, "branch": "main", "updated_at": "2026-11-21T08:00:00Z"});
    let approval = json!({
        "pull_request": updated(fork)[0]["detail"], "commit": "111111111111",
        "approver": "557058:00000000-abcd-0000-0000-000000000000",
    });
    let approved = [event("PullRequestApproved", approval, json!({}))];
    assert_eq!(received("bitbucket-pull-request-approved"), approved);
}

#[test]
fn events_of_codecommit() {
    const APP: &str = "git-codecommit.us-east-1.amazonaws.com/v1/repos/app";
    const CALLER: &str = "arn:aws:iam::123456789012:user/octocat";
    let received = |name: &str| {
        let event = file(&format!("receive-codecommit-{name}"));
        reported(codecommit::read(&event, &default_branch_of).unwrap())
    };
    let time = "2026-11-21T08:00:00Z";
    let pushed = |own: Value| by(CALLER, referred(pushed(APP, own)));
    let created = json!({"commits": [commit(1)], "before": null, "pushed_at": time});
    assert_eq!(received("branch-created"), [pushed(created)]);
    let main =
        json!({"branch": "main", "to_default_branch": true, "commits": [commit(1)], "pushed_at": time});
    assert_eq!(received("branch-pushed"), [pushed(main)]);
    assert_eq!(received("branch-deleted"), [deleted(APP, json!({"deleted_at": time}))]);
    let tag = json!({"actor": "arn:aws:iam::123456789012:user/octocat", "pushed_at": "2026-11-21T08:00:00Z"});
    let repository = "git-codecommit.us-east-1.amazonaws.com/v1/repos/app";
    assert_eq!(received("tag"), [tagged(repository, tag)]);
    let pull = |kind: &str, own: Value| vec![by(CALLER, event(kind, pull_request(APP), own))];
    assert_eq!(received("pull-request-opened"), pull("PullRequestUpdated", json!({})));
    let updated = pull("PullRequestUpdated", json!({"change": "pushed"}));
    assert_eq!(received("pull-request-pushed"), updated);
    let closed = pull("PullRequestClosed", json!({"change": "ended"}));
    assert_eq!(received("pull-request-closed"), closed);
    let forwarded = json!({"change": "ended", "merge_commit": commit(1)});
    assert_eq!(received("pull-request-fast-forwarded"), pull("PullRequestMerged", forwarded));
    let merged = pull("PullRequestMerged", json!({"change": "ended"}));
    assert_eq!(received("pull-request-merged"), merged);
    assert_eq!(received("pull-request-approved"), ["a change that changes no code"]);
}

#[test]
fn a_signed_body_means_nothing_under_another_forges_header_or_another_events() {
    let events: [(Forge, &[&str]); 3] = [
        (Forge::GitHub, &["push", "pull_request", "pull_request_review"]),
        (Forge::GitLab, &["Push Hook", "Merge Request Hook"]),
        (
            Forge::Bitbucket,
            &[
                "repo:push",
                "pullrequest:created",
                "pullrequest:updated",
                "pullrequest:approved",
                "pullrequest:fulfilled",
                "pullrequest:rejected",
            ],
        ),
    ];
    for name in [
        "push",
        "pull-request-opened",
        "pull-request-approved",
        "gitlab-push",
        "gitlab-merge-request-opened",
        "bitbucket-push",
        "bitbucket-pull-request-merged",
        "bitbucket-pull-request-closed",
        "bitbucket-pull-request-approved",
    ] {
        let body = delivery(name).body;
        let means_something = |(forge, event): &(Forge, &str)| {
            matches!(read(*forge, event, &body, &default_branch_of), Ok(Meaning::Events(_)))
        };
        let names = events.iter().flat_map(|(forge, names)| names.iter().map(|name| (*forge, *name)));
        let understood: Vec<_> = names.filter(means_something).collect();
        match name {
            // An approved pull request of Bitbucket is one that was opened, too.
            "bitbucket-pull-request-approved" => assert_eq!(understood.len(), 3, "{understood:?}"),
            _ => assert_eq!(understood.len(), 1, "{name}: {understood:?}"),
        }
    }
}

#[test]
fn a_repository_without_a_known_default_branch_means_nothing() {
    let nobody = |_: &Repository| None;
    for (name, event) in
        [("bitbucket-push", "repo:push"), ("bitbucket-pull-request-opened", "pullrequest:created")]
    {
        let meaning = read(Forge::Bitbucket, event, &delivery(name).body, &nobody).unwrap();
        assert_eq!(reported(meaning), [bitbucket::NO_PROJECT]);
    }
    for name in ["branch-pushed", "pull-request-opened"] {
        let event = file(&format!("receive-codecommit-{name}"));
        assert_eq!(reported(codecommit::read(&event, &nobody).unwrap()), [bitbucket::NO_PROJECT]);
    }
}

#[test]
fn a_policy_tells_default_branches() {
    let policy = "
version: 1
defaults: { default-branch: trunk }
projects:
  - { name: app, repository: bitbucket.org/example/app }
";
    let policy = Policy::parse("policy", policy).unwrap();
    let of = default_branches(&policy);
    assert_eq!(of(&Repository::new("bitbucket.org/example/app").unwrap()), Branch::new("trunk").ok());
    assert_eq!(of(&Repository::new("bitbucket.org/example/other").unwrap()), None);
}

// The examples of the forges' documentation on validating deliveries. Bitbucket's has no comma.
const DOCUMENTED: &[u8] = b"It's a Secret to Everybody";
const HELLO: &[u8] = b"Hello, World!";
const GITHUBS: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
const BITBUCKETS: &str = "sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9";

#[test]
fn the_forges_own_examples_verify() {
    let github = Delivery::new([("x-github-event", "push"), ("x-hub-signature-256", GITHUBS)], HELLO);
    github.verify(&[DOCUMENTED], now()).unwrap();
    let bitbucket =
        Delivery::new([("x-event-key", "repo:push"), ("x-hub-signature", BITBUCKETS)], b"Hello World!");
    bitbucket.verify(&[DOCUMENTED], now()).unwrap();
}

/// The example of Standard Webhooks.
fn standard() -> (Delivery, &'static [u8], Timestamp) {
    let headers = [
        ("x-gitlab-event", "Push Hook"),
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    ];
    let delivery = Delivery::new(headers, br#"{"test": 2432232314}"#);
    (delivery, b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", Timestamp::from_second(1_614_265_330).unwrap())
}

#[test]
fn a_signature_of_gitlab_holds_for_five_minutes() {
    let (delivery, secret, signed_at) = standard();
    let at = |seconds| delivery.verify(&[b"other", secret], signed_at + SignedDuration::from_secs(seconds));
    at(0).unwrap();
    at(300).unwrap();
    at(-300).unwrap();
    assert!(matches!(at(301), Err(Refusal::Stale)));
    assert!(matches!(at(-301), Err(Refusal::Stale)));
}

#[test]
fn any_of_gitlabs_signatures_will_do_and_none_but_them() {
    let (good, secret, now) = standard();
    let with = |name: &str, value: &str| {
        let mut delivery = good.clone();
        delivery.headers.insert(name.to_owned(), value.to_owned());
        delivery
    };
    let signature = good.headers["webhook-signature"].clone();
    let several = with("webhook-signature", &format!("v1,AAAA v2,BBBB {signature} v1a,CCCC"));
    several.verify(&[secret], now).unwrap();
    for (name, value) in [
        ("webhook-signature", ""),
        ("webhook-signature", "v1,"),
        ("webhook-signature", "v1,%%%"),
        ("webhook-signature", &signature[3..]),
        ("webhook-signature", &signature.replace("v1", "v2")),
        ("webhook-id", "msg_other"),
        ("webhook-timestamp", "1614265331"),
        ("webhook-timestamp", "soon"),
    ] {
        let refused = with(name, value).verify(&[secret], now);
        assert!(matches!(refused, Err(Refusal::WrongSignature)), "{name}: {value}");
    }
    for missing in ["webhook-id", "webhook-timestamp"] {
        let mut delivery = good.clone();
        delivery.headers.remove(missing);
        assert!(matches!(delivery.verify(&[secret], now), Err(Refusal::WrongSignature)), "{missing}");
    }
    // The token is right, and yet somebody has changed what was signed.
    let mut changed = with("x-gitlab-token", str::from_utf8(secret).unwrap());
    changed.body.push(b' ');
    assert!(matches!(changed.verify(&[secret], now), Err(Refusal::WrongSignature)));
    let mut unsigned = changed;
    unsigned.headers.remove("webhook-signature");
    unsigned.verify(&[secret], now).unwrap();
}

#[test]
fn a_signed_webhook_whose_date_is_no_number_is_stale() {
    let (mut delivery, secret, now) = standard();
    delivery.headers.insert("webhook-timestamp".to_owned(), "99999999999999999999".to_owned());
    delivery.headers.insert("webhook-signature".to_owned(), {
        use base64::Engine as _;
        let key = base64::engine::general_purpose::STANDARD.decode(&secret[6..]).unwrap();
        let parts: [&[u8]; 3] = [b"msg_p5jXN8AQM9LWM0D4loKWxJek.99999999999999999999", b".", &delivery.body];
        let mac = mac(&key, &parts).unwrap().finalize().into_bytes();
        format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(mac))
    });
    assert!(matches!(delivery.verify(&[secret], now), Err(Refusal::Stale)));
}

#[test]
fn anything_else_is_refused() {
    let secret = SECRET;
    for name in ["push", "bitbucket-push", "gitlab-push", "gitlab-push-signed"] {
        let good = delivery(name);
        good.verify(&[secret], now()).unwrap();
        good.verify(&[b"new", secret], now()).unwrap();
        good.verify(&[secret, b"old"], now()).unwrap();
        for secrets in [&[] as &[&[u8]], &[b""], &[b"other"], &[b"a secret for example"]] {
            assert!(matches!(good.verify(secrets, now()), Err(Refusal::WrongSignature)), "{name}");
        }
        let signature = ["x-hub-signature-256", "x-hub-signature", "webhook-signature", "x-gitlab-token"];
        let mut unsigned = good.clone();
        unsigned.headers.retain(|name, _| !signature.contains(&name.as_str()));
        assert!(matches!(unsigned.verify(&[secret], now()), Err(Refusal::Unsigned)), "{name}");
        if name != "gitlab-push" {
            let mut other = good.clone();
            other.body.push(b' ');
            assert!(matches!(other.verify(&[secret], now()), Err(Refusal::WrongSignature)), "{name}");
        }
        let large = Delivery { body: vec![b' '; MAX_BODY + 1], ..good };
        assert!(matches!(large.verify(&[secret], now()), Err(Refusal::TooLarge(_))), "{name}");
    }
    for wrong in
        ["", "sha256=", "sha256=zz", "sha1=757107ea", &GITHUBS[..70], &format!("{GITHUBS}00"), &GITHUBS[7..]]
    {
        let delivery = Delivery::new([("x-github-event", "push"), ("x-hub-signature-256", wrong)], HELLO);
        let refused = delivery.verify(&[DOCUMENTED], now());
        assert!(matches!(refused, Err(Refusal::WrongSignature)), "{wrong}");
    }
    // Bitbucket's header is no signature of GitHub's.
    let other = Delivery::new([("x-github-event", "push"), ("x-hub-signature", GITHUBS)], HELLO);
    assert!(matches!(other.verify(&[DOCUMENTED], now()), Err(Refusal::Unsigned)));
}

#[test]
fn an_empty_secret_verifies_nothing() {
    let empty = Hmac::<Sha256>::new_from_slice(b"").unwrap().chain_update(HELLO).finalize().into_bytes();
    let signature = format!("sha256={}", hex::encode(empty));
    let github = Delivery::new([("x-github-event", "push"), ("x-hub-signature-256", &signature)], HELLO);
    let gitlab = Delivery::new([("x-gitlab-event", "Push Hook"), ("x-gitlab-token", "")], HELLO);
    for delivery in [github, gitlab] {
        assert!(matches!(delivery.verify(&[b""], now()), Err(Refusal::WrongSignature)));
    }
    let (mut signed, _, at) = standard();
    signed.headers.insert("webhook-signature".to_owned(), "v1,".to_owned());
    assert!(matches!(signed.verify(&[b"whsec_", b""], at), Err(Refusal::WrongSignature)));
}

#[test]
fn forges_are_known_by_their_headers() {
    let of = |name: &'static str| Forge::of(&|asked: &str| (asked == name).then_some("event"));
    assert_eq!(of("x-github-event"), Some(Forge::GitHub));
    assert_eq!(of("x-gitlab-event"), Some(Forge::GitLab));
    assert_eq!(of("x-event-key"), Some(Forge::Bitbucket));
    assert_eq!(of("x-hub-signature"), None);
    for forge in Forge::ALL {
        assert_eq!(forge.to_string().parse(), Ok(forge));
        let signature = format!("sha256={}", "0".repeat(64));
        assert!(is_signed(forge, &|_: &str| Some(signature.as_str())));
        assert!(!is_signed(forge, &|_: &str| None));
        assert_eq!(forge.delivery(&|_: &str| Some("7")), Some("7"));
    }
    assert!("gitea".parse::<Forge>().is_err());
    let by_id = |name: &str| (name == "webhook-id").then_some("7");
    assert_eq!(Forge::GitLab.delivery(&by_id), Some("7"));
}

#[test]
fn what_is_old_is_refused_and_what_is_to_come_has_no_date() {
    for name in ["push", "branch-deleted", "pull-request-merged", "pull-request-approved"] {
        let Meaning::Events(events) = delivery(name).read() else { panic!("ignored") };
        let [event] = events.as_slice() else { panic!("several") };
        let signed_at = event.signed_at().unwrap();
        let at = |late: SignedDuration| {
            let mut event = event.clone();
            check_age(&mut event, signed_at + late).map(|()| event.signed_at())
        };
        let second = SignedDuration::from_secs(1);
        assert_eq!(at(MAX_AGE).unwrap(), Some(signed_at), "{name}");
        let is_stale = matches!(at(MAX_AGE + second), Err(Refusal::Stale));
        assert_eq!(is_stale, name != "branch-deleted", "{name}");
        assert_eq!(at(-MAX_AHEAD).unwrap(), Some(signed_at), "{name}");
        assert_eq!(at(-MAX_AHEAD - second).unwrap(), None, "{name}");
    }
}

#[test]
fn a_push_of_very_many_branches_has_an_end() {
    let change = json!({
        "old": null, "new": {"type": "branch", "name": "b", "target": {"hash": commit(1)}}, "commits": [],
    });
    let body = json!({"push": {"changes": vec![change; 150]}, "repository": {"full_name": "example/app"}});
    let meaning =
        read(Forge::Bitbucket, "repo:push", body.to_string().as_bytes(), &default_branch_of).unwrap();
    assert_eq!(reported(meaning).len(), MAX_EVENTS);
}

#[test]
fn whatever_is_missing_or_odd_is_refused_or_ignored() {
    fn places(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        let children: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
            Value::Array(items) => items.iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect(),
            _ => Vec::new(),
        };
        for (name, child) in children {
            places(child, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
        }
    }
    let odd = [json!(null), json!(-1), json!(""), json!("../../\u{0}"), json!([]), json!({}), json!(true)];
    for (name, forge, event) in [
        ("push", Forge::GitHub, "push"),
        ("pull-request-merged", Forge::GitHub, "pull_request"),
        ("pull-request-approved", Forge::GitHub, "pull_request_review"),
        ("gitlab-push", Forge::GitLab, "Push Hook"),
        ("gitlab-merge-request-approved", Forge::GitLab, "Merge Request Hook"),
        ("bitbucket-push-several", Forge::Bitbucket, "repo:push"),
        ("bitbucket-pull-request-approved", Forge::Bitbucket, "pullrequest:approved"),
    ] {
        let body: Value = serde_json::from_slice(&delivery(name).body).unwrap();
        let mut found = Vec::new();
        places(&body, "", &mut found);
        for place in found {
            for odd in &odd {
                let mut body = body.clone();
                *body.pointer_mut(&place).unwrap() = odd.clone();
                // Nothing of it panics, and whatever comes of it is an event that the bus gives back.
                let Ok(Meaning::Events(events)) =
                    read(forge, event, body.to_string().as_bytes(), &default_branch_of)
                else {
                    continue;
                };
                for event in events {
                    let json = serde_json::to_string(&event).unwrap();
                    assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event, "{name}{place}: {odd}");
                }
            }
        }
    }
    for forge in Forge::ALL {
        assert_eq!(reported(read(forge, "star", b"", &default_branch_of).unwrap()), [NO_EVENT]);
    }
    assert!(matches!(read(Forge::GitHub, "ping", b"{", &default_branch_of), Err(Refusal::NotJson(_))));
}

#[test]
fn a_refusal_names_its_cause() {
    let refused = |forge, event, body: &[u8]| {
        let refusal = read(forge, event, body, &default_branch_of).unwrap_err();
        (refusal.reason(), refusal.to_string())
    };
    for event in ["push", "ping"] {
        let (reason, why) =
            refused(Forge::GitHub, event, b"payload=%7B%22ref%22%3A%22refs%2Fheads%2Fmain%22%7D");
        assert_eq!(reason, "form");
        assert!(why.contains("application/json"), "{why}");
    }
    let push = |reference: &str, address: &str| {
        json!({
            "ref": reference, "after": commit(1), "commits": [],
            "repository": {"full_name": "a/b", "html_url": address, "default_branch": "main"},
        })
        .to_string()
    };
    let (reason, why) =
        refused(Forge::GitHub, "push", push("refs/heads/a b", "https://github.com/a/b").as_bytes());
    assert_eq!(reason, "malformed");
    assert!(why.contains("branch `a b` is not valid"), "{why}");
    let (_, why) = refused(Forge::GitHub, "push", push("refs/heads/a", "https://[::1]/a/b").as_bytes());
    assert!(why.contains("repository `[::1]/a/b` is not valid"), "{why}");
    let (_, why) = refused(Forge::GitHub, "push", b"{}");
    assert!(why.contains("missing field `ref`"), "{why}");
    for event in ["repo:refs_changed", "pr:opened", "diagnostics:ping"] {
        let (reason, why) = refused(Forge::Bitbucket, event, b"{}");
        assert_eq!(reason, "unsupported");
        assert!(why.contains("Bitbucket Data Center"), "{why}");
    }
}

#[test]
fn hosts_with_ports_and_branches_with_unicode_spaces_are_pushes() {
    let push = json!({
        "ref": "refs/heads/feature/ログイン　修正", "before": commit(2), "after": commit(1), "commits": [],
        "repository": {
            "full_name": "example/app", "html_url": "https://ghe.example.com:8443/example/app",
            "default_branch": "main",
        },
    });
    let meaning = read(Forge::GitHub, "push", push.to_string().as_bytes(), &default_branch_of).unwrap();
    let [push] = reported(meaning).try_into().unwrap();
    assert_eq!(push["detail"]["repository"], "ghe.example.com/example/app");
    assert_eq!(push["detail"]["branch"], "feature/ログイン　修正");
}

#[test]
fn system_hooks_of_gitlab_are_read_as_those_of_projects() {
    for (name, kind) in [("gitlab-push", "push"), ("gitlab-merge-request-opened", "merge_request")] {
        let delivery = delivery(name);
        let read = |event: &str, body: &[u8]| {
            reported(read(Forge::GitLab, event, body, &default_branch_of).unwrap())
        };
        assert_eq!(read("System Hook", &delivery.body), reported(delivery.read()), "{name}");
        let mut body: Value = serde_json::from_slice(&delivery.body).unwrap();
        let fields = body.as_object_mut().unwrap();
        fields.remove("object_kind");
        fields.insert("event_name".to_owned(), json!(kind));
        assert_eq!(read("System Hook", body.to_string().as_bytes()), reported(delivery.read()), "{name}");
    }
    for kind in ["project_create", "user_add_to_team", "repository_update"] {
        let body = json!({"event_name": kind}).to_string();
        let meaning = read(Forge::GitLab, "System Hook", body.as_bytes(), &default_branch_of).unwrap();
        assert_eq!(reported(meaning), [NO_EVENT]);
    }
}
