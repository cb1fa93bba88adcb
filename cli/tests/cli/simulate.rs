//! What Stoker would do, said before it does.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::registry::Fake;
use crate::run::{Home, Ran};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const AT: &str = "--at=2026-11-21T08:00:00Z";
const POLICY: &str = "version: 1\nprojects:\n  - name: app\n    repository: github.com/example/app\n";

fn file(name: &str) -> String {
    Path::new(ROOT).join("events").join(format!("{name}.json")).to_str().unwrap().to_owned()
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file(name)).unwrap()).unwrap()
}

/// The payload alone of an example of a webhook.
fn payload(name: &str) -> String {
    read(name)["body"].as_str().unwrap().to_owned()
}

/// Decides under a policy, with nothing looked up.
async fn simulate(policy: &str, words: &[&str], given: &str) -> Ran {
    simulate_at(policy, &[&["--offline", AT], words].concat(), given).await
}

async fn simulate_at(policy: &str, words: &[&str], given: &str) -> Ran {
    let home = Home::new();
    let path = home.path().join("policy.yaml");
    std::fs::write(&path, policy).unwrap();
    home.stoker_given(&[&["simulate", "--policy", path.to_str().unwrap()], words].concat(), given).await
}

fn json_of(ran: &Ran) -> Value {
    assert_eq!(ran.code, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// What `events/outcomes.tsv` says of each event and policy, with the policy as its forge's repository has it.
fn rows() -> Vec<(String, String, String)> {
    const REPOSITORY: &str = "github.com/example/app";
    let read = |name: &str| std::fs::read_to_string(Path::new(ROOT).join("events").join(name)).unwrap();
    let page = read("README.md");
    let base = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let policies = read("policies.tsv");
    let policies = policies.lines().skip(1).map(|line| {
        let (name, added) = line.split_once('\t').unwrap();
        let policy = if added.starts_with("repository: ") {
            base.replace(&format!("repository: {REPOSITORY}"), added)
        } else {
            format!("{base}    {added}\n")
        };
        (name, policy)
    });
    let policies: BTreeMap<&str, String> = policies.collect();
    let outcomes = read("outcomes.tsv");
    let rows = outcomes.lines().skip(1).map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [event, policy, happens] = cells[..] else { panic!("{line}") };
        let repository = if event.starts_with("receive-webhook-gitlab-") {
            "gitlab.com/example/group/app"
        } else if event.starts_with("receive-webhook-bitbucket-") {
            "bitbucket.org/example/app"
        } else if event.starts_with("receive-codecommit-") {
            "git-codecommit.us-east-1.amazonaws.com/v1/repos/app"
        } else {
            REPOSITORY
        };
        (event.to_owned(), policies[policy].replace(REPOSITORY, repository), happens.to_owned())
    });
    rows.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_answered_as_the_table_has_it() {
    let rows = rows();
    let mut files: Vec<&String> = rows.iter().map(|(event, ..)| event).collect();
    files.sort_unstable();
    files.dedup();
    let examples = std::fs::read_dir(Path::new(ROOT).join("events")).unwrap();
    let is_json = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let examples = examples.map(|entry| entry.unwrap().path()).filter(is_json);
    assert_eq!(files.len(), examples.count(), "each example has a row");
    for (event, policy, happens) in &rows {
        let ran = simulate(policy, &["--json", &file(event)], "").await;
        assert_eq!(json_of(&ran)["summary"], *happens, "{event}");
        let ran = simulate(policy, &[&file(event)], "").await;
        assert_eq!(ran.code, 0, "{event}: {}", ran.err);
        assert!(ran.out.ends_with(&format!("In short: {happens}\n")), "{event}: {}", ran.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_alone_is_read_with_its_forge_and_event() {
    let gitlab = POLICY.replace("github.com/example", "gitlab.com/example/group");
    let bitbucket = POLICY.replace("github.com", "bitbucket.org");
    let codecommit =
        POLICY.replace("github.com/example/app", "git-codecommit.us-east-1.amazonaws.com/v1/repos/app");
    for (policy, forge, event, name) in [
        (POLICY, "github", "push", "receive-webhook-push"),
        (&gitlab, "gitlab", "Push Hook", "receive-webhook-gitlab-push"),
        (&bitbucket, "bitbucket", "repo:push", "receive-webhook-bitbucket-push"),
    ] {
        let words = ["--json", "--forge", forge, "--event", event];
        let reported = json_of(&simulate(policy, &words, &payload(name)).await);
        assert_eq!(reported["summary"], "build branch/feature-a", "{forge}");
        assert_eq!(
            (&reported["input"], &reported["forge"], &reported["event"]),
            (&json!("payload"), &json!(forge), &json!(event))
        );
    }
    let event = read("receive-codecommit-branch-created").to_string();
    let reported = json_of(&simulate(&codecommit, &["--json", "--forge", "codecommit", "-"], &event).await);
    assert_eq!(reported["summary"], "build branch/feature-a");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_says_what_to_do() {
    let push = payload("receive-webhook-push");
    let request = read("receive-webhook-push").to_string();
    let gitlab = payload("receive-webhook-gitlab-push");
    let no_header = r#"{"requestContext":{"http":{"method":"POST"}},"headers":{},"body":"{}"}"#;
    let no_base64 = r#"{"headers":{"x-github-event":"push"},"body":"%","isBase64Encoded":true}"#;
    let deep = "[".repeat(100_000);
    for (words, given, why) in [
        ("", "", "no JSON"),
        ("", "{", "no JSON"),
        ("", deep.as_str(), "no JSON"),
        ("", "[]", "events/"),
        ("", "{}", "events/"),
        ("", &push, "--forge github --event push"),
        ("", &gitlab, "--forge gitlab --event 'Push Hook'"),
        ("", r#"{"pullrequest":{}}"#, "--forge bitbucket"),
        ("", r#"{"pull_request":{},"repository":{}}"#, "--event pull_request"),
        ("--forge github", &push, "--event, such as push"),
        ("--forge github --event push", "{}", "this is not what github calls `push`"),
        (
            "--forge github --event push",
            "payload=%7B%22ref%22%3A%22%22%7D",
            "set its content type in the forge to application/json",
        ),
        ("--forge github --event push", &request, "leave --forge and --event out"),
        ("--forge codecommit", &push, "no event of CodeCommit's"),
        ("--forge sourceforge", &push, "expected github, gitlab, bitbucket or codecommit"),
        ("--event push", &push, "--forge"),
        ("", no_header, "X-GitHub-Event"),
        ("", no_base64, "isBase64Encoded"),
        ("", r#"{"Records":[{"Sns":{}}]}"#, "Records[0]"),
        ("", r#"{"Records":[{"body":"x"}]}"#, "Records[0]"),
        ("", r#"{"Records":[{"body":"{}"}]}"#, "no event that Stoker knows"),
        (
            "",
            r#"{"source":"aws.s3","detail-type":"Object Created","detail":{}}"#,
            "no event that Stoker knows",
        ),
        ("", r#"{"source":"aws.codecommit","detail-type":"x","region":7}"#, "CodeCommit sends"),
        ("", r#"{"project":"other"}"#, "names no project other"),
        ("", r#"{"project":"app","color":"red"}"#, "unknown field `color`"),
        ("", r#"{"project":"app","target":"api"}"#, "no such target"),
        ("/nowhere/event.json", "", "cannot read /nowhere/event.json"),
        ("--at tomorrow", "", "--at"),
        ("--registry https://registry.example", "", "expected a host only"),
    ] {
        let ran = simulate(POLICY, &words.split_whitespace().collect::<Vec<_>>(), given).await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{words} {given:.100}: {}", ran.err);
        assert!(ran.err.contains(why), "{words} {given:.100}: {}", ran.err);
    }
    let ran = simulate_at(POLICY, &[], &request).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--registry") && ran.err.contains("--offline"), "{}", ran.err);
    let ran = simulate("version: 1\nprojects: [{nam: app}]\n", &[], &request).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("policy.yaml:2:") && ran.err.contains("--policy"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_refused_is_said_and_decided_all_the_same() {
    let notes = async |request: &Value, at: &str| {
        let reported =
            json_of(&simulate_at(POLICY, &["--offline", "--json", at], &request.to_string()).await);
        assert_eq!(reported["summary"], "build branch/feature-a");
        reported["notes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|note| note.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let mut request = read("receive-webhook-push");
    assert_eq!(notes(&request, AT).await, ["the signature is not checked here"]);
    let later = notes(&request, "--at=2026-12-21T08:00:00Z").await;
    assert!(later[1].contains("status 403"), "{later:?}");
    request["headers"].as_object_mut().unwrap().retain(|name, _| !name.contains("signature"));
    request["requestContext"]["http"]["method"] = "PUT".into();
    let refused = notes(&request, AT).await;
    assert!(refused[0].contains("405") && refused[1].contains("401"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_tick_is_that_of_the_command_line_unless_it_has_one() {
    let tick = |time: &str| {
        format!(
            r#"{{"source":"stoker","detail-type":"NightlyWarm",{time}"detail":{{"slots":2,"every_minutes":1}}}}"#
        )
    };
    let reported = async |tick: &str, at: &str| {
        let ran = simulate_at(POLICY, &["--offline", "--json", &format!("--at={at}")], tick).await;
        json_of(&ran)["summary"].as_str().unwrap().to_owned()
    };
    let (even, odd) = ("2026-11-21T02:00:00Z", "2026-11-21T02:01:00Z");
    let mut summaries = [reported(&tick(""), even).await, reported(&tick(""), odd).await];
    let own = reported(&tick(&format!(r#""time":"{even}","#)), odd).await;
    assert_eq!(own, summaries[0]);
    let sent = even.parse::<jiff::Timestamp>().unwrap().as_millisecond().to_string();
    let queued = json!({"Records": [{"body": tick(""), "attributes": {"SentTimestamp": sent}}]}).to_string();
    assert_eq!(reported(&queued, odd).await, summaries[0]);
    summaries.sort();
    assert_eq!(summaries, ["no warming: event", "warm main"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_build_would_be_given_is_looked_up() {
    let fake = Fake::start().await;
    let registry = fake.address.to_string();
    let built = json!({"stoker.commit": "1".repeat(40), "stoker.build": "app:1",
        "stoker.built-at": "2026-11-20T08:00:00Z",
        "stoker.shared": "false"});
    fake.put("stoker/app", "app.main", "one");
    let main = fake.annotate("stoker/app", "app.main", &built);
    // The one commit's cache is the same as main's, the other is of no build.
    let tag = format!("app.commit.{}", "1".repeat(40));
    fake.env().tags.insert(("stoker/app".to_owned(), tag), main.clone());
    fake.put("stoker/app", &format!("app.commit.{}", "5".repeat(40)), "five");
    let words = ["--registry", &registry, AT];
    let push = file("receive-webhook-push-first");
    let reported = json_of(&simulate_at(POLICY, &[&words[..], &["--json", &push]].concat(), "").await);
    let build = &reported["events"][0]["decisions"][0]["build"];
    let looks = |build: &Value| -> Vec<(String, Value, String)> {
        let looks = build["targets"][0]["looksAt"].as_array().unwrap();
        let look = |look: &Value| {
            let why = look["why"].as_str().unwrap_or_default().to_owned();
            (look["name"].as_str().unwrap().to_owned(), look["given"].clone(), why)
        };
        looks.iter().map(look).collect()
    };
    let of_no_build =
        "it is of no build, of one before the line was rolled back, of several branches, not the newest of its \
         push, or its push holds the head of a fork's pull request"
            .to_owned();
    assert_eq!(
        looks(build),
        [
            ("main".to_owned(), json!(true), String::new()),
            ("commit/11111111".to_owned(), json!(false), "the same cache as one before".to_owned()),
            ("commit/55555555".to_owned(), json!(false), of_no_build),
        ]
    );
    let flags = build["environment"]["STOKER_CACHE_FLAGS"].as_str().unwrap();
    assert!(
        flags.starts_with(&format!("--cache-from type=registry,ref={registry}/stoker/app@{main} ")),
        "{flags}"
    );
    assert!(flags.contains(":app.export.<chosen at the start>,"), "{flags}");
    assert_eq!(build["environment"]["STOKER_READS"], "main");

    // What BuildKit would not import is left out, and said; what is not there, too.
    let instead =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []});
    {
        let bytes = axum::body::Bytes::from(instead.to_string());
        let digest = stoker_core::names::Digest::of(&bytes);
        let mut env = fake.env();
        env.manifests.insert(("stoker/app".to_owned(), digest.clone()), bytes);
        env.tags.insert(("stoker/app".to_owned(), "app.branch.feature-a".to_owned()), digest);
    }
    for example in ["receive-webhook-push", "resolve-cache"] {
        let reported =
            json_of(&simulate_at(POLICY, &[&words[..], &["--json", &file(example)]].concat(), "").await);
        let looks = looks(&reported["events"][0]["decisions"][0]["build"]);
        assert_eq!((&looks[0].1, &looks[1].1), (&json!(false), &json!(true)), "{looks:?}");
        assert!(!looks[0].2.is_empty() && looks[0].0.starts_with("branch"), "{looks:?}");
    }
    let ran = simulate_at(POLICY, &[&words[..], &[&file("receive-webhook-push")]].concat(), "").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains(&format!("app.main              {main}  yes")), "{}", ran.out);
    assert_eq!(fake.count("PUT", ""), 0);

    // A repository that is not there yet is as good as empty; a registry that does not answer is a failure.
    let elsewhere = POLICY.to_owned() + "    cache-repository: stoker/elsewhere\n";
    let reported = json_of(&simulate_at(&elsewhere, &[&words[..], &["--json", &push]].concat(), "").await);
    assert_eq!(looks(&reported["events"][0]["decisions"][0]["build"])[0].2, "nothing is there");
    fake.env().status = Some(axum::http::StatusCode::SERVICE_UNAVAILABLE);
    let ran = simulate_at(POLICY, &[&words[..], &[&push]].concat(), "").await;
    assert_eq!((ran.code, ran.err.contains("cannot look up the caches of app")), (3, true), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_a_variable_is_said() {
    let targets: Vec<String> = (0..100).map(|number| format!("{{ name: target-{number} }}")).collect();
    let source = format!("type=registry,ref=example.com/{}:latest", "a".repeat(400));
    let policy = format!(
        "{POLICY}    targets: [{}]\n    more-sources: [\"{source}\", \"{source}1\"]\n",
        targets.join(", ")
    );
    let push = file("receive-webhook-push");
    let ran = simulate_at(&policy, &[AT, "--offline", &push], "").await;
    assert!(ran.out.contains("  left out    STOKER_BAKE: "), "{}{}", ran.out, ran.err);
    let reported = json_of(&simulate_at(&policy, &[AT, "--offline", "--json", &push], "").await);
    let build = &reported["events"][0]["decisions"][0]["build"];
    assert!(build["leftOut"].is_string() && build["environment"].get("STOKER_BAKE").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_new_branch_builds_all_of_a_monorepo_is_said() {
    let project = |name: &str| {
        format!(
            "  - {{ name: {name}, repository: github.com/example/mono, builds: {{ paths: [\"{name}/*\"] }} }}\n"
        )
    };
    let policy = format!("version: 1\nprojects:\n{}{}", project("web"), project("api"));
    let push = |created: bool| {
        let commit = "1".repeat(40);
        let changed =
            json!({"id": commit, "message": "m", "added": [], "modified": ["web/a"], "removed": []});
        json!({
            "ref": "refs/heads/feature-a", "before": "0".repeat(40), "after": commit, "created": created,
            "commits": [changed],
            "repository": {"full_name": "example/mono", "html_url": "https://github.com/example/mono",
            "default_branch": "main"},
        })
        .to_string()
    };
    let words = ["--forge", "github", "--event", "push", "--json"];
    let texts = async |created: bool| {
        let reported = json_of(&simulate(&policy, &words, &push(created)).await);
        let decisions = reported["events"][0]["decisions"].as_array().unwrap().iter();
        let of = |entry: &Value| {
            (entry["rule"].as_str().unwrap().to_owned(), entry["text"].as_str().unwrap().to_owned())
        };
        decisions.map(of).collect::<Vec<_>>()
    };
    let new = texts(true).await;
    assert_eq!(new.len(), 2);
    for (rule, text) in new {
        assert!(rule == "builds" && text.contains("`builds.paths-unknown: skip` would"), "{text}");
    }
    let known = texts(false).await;
    let rules: Vec<&str> = known.iter().map(|(rule, _)| rule.as_str()).collect();
    assert_eq!(rules, ["builds", "builds.paths"]);
    assert!(!known[0].1.contains("paths-unknown"), "{}", known[0].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_for_programs() {
    let policy = POLICY.to_owned()
        + "    targets: [{ name: api, platforms: [linux/amd64, linux/arm64] }, { name: worker }]\n";
    let words = ["--json", "--registry", "registry.example"];
    let reported =
        json_of(&simulate(&policy, &[&words[..], &[&file("receive-webhook-push")]].concat(), "").await);
    assert_eq!(
        keys(&reported),
        ["event", "events", "forge", "input", "notes", "offline", "policy", "summary"]
    );
    let event = &reported["events"][0];
    assert_eq!(keys(event), ["decisions", "kind", "repository", "summary"]);
    let decision = &event["decisions"][0];
    let expected =
        ["action", "build", "function", "line", "policyEntry", "project", "rule", "summary", "text"];
    assert_eq!(keys(decision), expected);
    assert_eq!(decision["policyEntry"], "projects[0] (`app`)");
    let build = &decision["build"];
    let expected = [
        "commit",
        "environment",
        "line",
        "readsFrom",
        "reason",
        "reference",
        "runBy",
        "targets",
        "trust",
        "writesTo",
    ];
    assert_eq!(keys(build), expected);
    assert_eq!((&build["trust"], &build["runBy"]), (&json!("branch"), &json!("app")));
    assert_eq!(build["readsFrom"], "registry.example/stoker/app");
    let targets = build["targets"].as_array().unwrap();
    let names: Vec<&str> = targets.iter().map(|target| target["target"].as_str().unwrap()).collect();
    assert_eq!(names, ["api-linux-amd64", "api-linux-arm64", "worker"]);
    assert_eq!(keys(&targets[0]), ["exportsTo", "flags", "looksAt", "scope", "target"]);
    assert_eq!(keys(&targets[0]["looksAt"][0]), ["name", "tag"], "nothing was looked up");
    for target in targets {
        let tag = format!("{}.export.<chosen at the start>", target["scope"].as_str().unwrap());
        assert_eq!(target["exportsTo"], tag);
        assert!(
            target["flags"].as_str().unwrap().contains(&format!("ref=registry.example/stoker/app:{tag},"))
        );
    }
    let reported = json_of(&simulate(POLICY, &["--json", &file("receive-webhook-ping")], "").await);
    assert_eq!((&reported["ignored"], &reported["events"]), (&json!("pong"), &json!([])));
    let forks = POLICY.to_owned() + "    builds: { forks: { build: read-only, project: app-forks } }\n";
    let reported =
        json_of(&simulate(&forks, &["--json", &file("receive-webhook-pull-request-from-fork")], "").await);
    let build = &reported["events"][0]["decisions"][0]["build"];
    assert_eq!(
        (&build["trust"], &build["runBy"], &build["reference"]),
        (&json!("fork"), &json!("app-forks"), &json!("refs/pull/7/head"))
    );
    assert_eq!(
        (&build["targets"][0]["exportsTo"], &build["environment"]["STOKER_CACHE_TO"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_from_outside_do_nothing_to_a_terminal() {
    let clean = |text: &str| {
        text.chars().all(|c| c == '\n' || !c.is_control() && !('\u{202a}'..='\u{202e}').contains(&c))
    };
    let mut push: Value = serde_json::from_str(&payload("receive-webhook-push")).unwrap();
    push["ref"] = "refs/heads/\u{202e}evil`$(x)|".into();
    let ran = simulate(POLICY, &["--forge", "github", "--event", "push"], &push.to_string()).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(clean(&ran.out) && ran.out.contains("\\u{202e}evil"), "{}", ran.out);
    push["ref"] = "refs/heads/\u{1b}[31m".into();
    let ran = simulate(POLICY, &["--forge", "github", "--event", "push"], &push.to_string()).await;
    assert!(ran.code == 2 && clean(&ran.err), "{}", ran.err);
    let ran = simulate(POLICY, &["--forge", "github", "--event", "\u{1b}]0;x\u{7}"], &push.to_string()).await;
    assert!(ran.code == 0 && clean(&ran.out), "{}", ran.out);
    let ran = simulate(POLICY, &[], "{\"project\":\"app\",\"\u{1b}[2J\":1}").await;
    assert_eq!(ran.code, 2);
    let ran = simulate(POLICY, &[], r#"{"project":"app","\u001b[2J":1}"#).await;
    assert!(ran.code == 2 && clean(&ran.err), "{}", ran.err);
    let ran = simulate(POLICY, &[], r#"{"source":"\u001b","detail-type":"\u001b[2J","detail":{}}"#).await;
    assert!(ran.code == 2 && clean(&ran.err), "{}", ran.err);

    // What signs a webhook is no part of the answer.
    let request = read("receive-webhook-gitlab-push");
    let token = request["headers"]["x-gitlab-token"].as_str().unwrap();
    for words in [&["--json"][..], &[]] {
        let ran = simulate(POLICY, words, &request.to_string()).await;
        assert!(ran.code == 0 && !ran.out.contains(token) && !ran.err.contains(token), "{}", ran.out);
    }
}

#[tokio::test]
async fn a_build_that_asks_learns_why_it_only_reads() {
    let main_only = format!("{POLICY}    export: {{ builds: main }}\n");
    let commit = "ab".repeat(20);
    for (policy, question, why) in [
        (POLICY, json!({"project": "app", "branch": "release/1.x"}), "names no commit"),
        (POLICY, json!({"project": "app", "branch": "main", "commit": commit}), "builds that Stoker starts"),
        (
            POLICY,
            json!({"project": "app", "fork-pull-request": 7, "commit": commit}),
            "a fork's pull request",
        ),
        (
            main_only.as_str(),
            json!({"project": "app", "branch": "topic", "commit": commit}),
            "`export.builds`",
        ),
        (POLICY, json!({"project": "app", "branch": "topic", "commit": commit}), ""),
    ] {
        let decided = json_of(&simulate(policy, &["--json"], &question.to_string()).await);
        let text = decided["events"][0]["decisions"][0]["text"].as_str().unwrap();
        assert_eq!(text.contains("this one only reads"), !why.is_empty(), "{text}");
        assert!(text.contains(why), "{text}");
        let exports = &decided["events"][0]["decisions"][0]["build"]["targets"][0]["exportsTo"];
        assert_eq!(exports.is_null(), !why.is_empty(), "{question}");
    }
}
