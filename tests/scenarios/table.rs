//! `events/outcomes.tsv` is true: every row is decided, and then happens in a test environment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlRequest;
use aws_lambda_events::sqs::SqsEvent;
use jiff::{SignedDuration, Timestamp};
use scenarios::environment::{REGISTRY, Source, TestEnvironment, exported};
use serde_json::{Value, json};
use stoker_core::build_inputs::{GivenInputs, variable};
use stoker_core::event::{Envelope, Event};
use stoker_core::forge::{self, Forge, Meaning, codecommit};
use stoker_core::names::{CacheRepository, Commit, Digest, Line, ProjectName, Scope, Tag};
use stoker_core::policy::{Mode, Policy, Project, Superseded};
use stoker_core::ports::{Build, BuildStatus};
use stoker_core::simulate::{Action, Decision, brief, simulate};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// The repository of the policies in the document, as GitHub has it.
const REPOSITORY: &str = "github.com/example/app";
/// The build that the examples of CodeBuild's events are of, and what it exported.
const BUILD: &str = "app:00000000-0000-0000-0000-000000000000";
const EXPORT: &str = "app.export.11111111-0000000000000000";

/// What happens for an event under a policy.
struct Row {
    event: String,
    forge: &'static str,
    policy: String,
    happens: String,
}

struct Document {
    policies: BTreeMap<String, String>,
    rows: Vec<Row>,
}

/// The forge that sends the event of a file, by the file's name.
fn forge_of_file(event: &str) -> &'static str {
    let starts = [
        ("receive-codecommit-", "CodeCommit"),
        ("receive-webhook-gitlab-", "GitLab"),
        ("receive-webhook-bitbucket-", "Bitbucket"),
        ("receive-webhook-", "GitHub"),
    ];
    starts.into_iter().find(|(start, _)| event.starts_with(start)).map_or("any", |(_, forge)| forge)
}

/// The rows of a table, without its header.
fn table<const N: usize>(name: &str) -> Vec<[String; N]> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("events").join(name)).unwrap();
    let row = |line: &str| -> [String; N] {
        let cells: Vec<String> = line.split('\t').map(str::to_owned).collect();
        cells.try_into().unwrap_or_else(|cells| panic!("{name}: {cells:?}"))
    };
    text.lines().skip(1).map(row).collect()
}

fn document() -> Document {
    let text = std::fs::read_to_string(Path::new(ROOT).join("events/README.md")).unwrap();
    let base = text.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let policies = table("policies.tsv").into_iter().map(|[name, added]| {
        let policy = if added.starts_with("repository: ") {
            base.replace(&format!("repository: {REPOSITORY}"), &added)
        } else {
            format!("{base}    {added}\n")
        };
        (name, policy)
    });
    let rows = table("outcomes.tsv").into_iter().map(|[event, policy, happens]| Row {
        forge: forge_of_file(&event),
        event,
        policy,
        happens,
    });
    Document { policies: policies.collect(), rows: rows.collect() }
}

/// A policy of the document, for the forge of a row.
fn policy_text(document: &Document, row: &Row) -> String {
    let text = document.policies.get(&row.policy);
    let text = text.unwrap_or_else(|| panic!("{}: no policy `{}`", row.event, row.policy));
    text.replace(
        REPOSITORY,
        match row.forge {
            "GitLab" => "gitlab.com/example/group/app",
            "Bitbucket" => "bitbucket.org/example/app",
            "CodeCommit" => "git-codecommit.us-east-1.amazonaws.com/v1/repos/app",
            _ => REPOSITORY,
        },
    )
}

fn path(row: &Row) -> PathBuf {
    Path::new(ROOT).join("events").join(format!("{}.json", row.event))
}

fn at() -> Timestamp {
    "2026-11-21T08:00:00Z".parse().unwrap()
}

/// What a file holds, as it reaches the functions.
enum Given {
    Webhook(Box<LambdaFunctionUrlRequest>),
    CodeCommit(Value),
    Events(Vec<Envelope>),
    Question(Value),
}

fn given(row: &Row) -> Given {
    let text = std::fs::read_to_string(path(row)).unwrap_or_else(|_| panic!("{}: no such file", row.event));
    let json: Value = serde_json::from_str(&text).unwrap();
    if row.event.starts_with("receive-webhook-") {
        Given::Webhook(serde_json::from_value(json).unwrap())
    } else if row.event.starts_with("receive-codecommit-") {
        Given::CodeCommit(json)
    } else if row.event == "resolve-cache" {
        Given::Question(json)
    } else if json.get("Records").is_some() {
        let batch: SqsEvent = serde_json::from_value(json).unwrap();
        let bodies = batch.records.iter().map(|record| record.body.as_deref().unwrap());
        Given::Events(bodies.map(|body| Envelope::parse(body).unwrap()).collect())
    } else {
        Given::Events(vec![Envelope::from_value(json).unwrap()])
    }
}

/// The forge as the request's header has it.
fn forge_of(request: &LambdaFunctionUrlRequest) -> (Forge, &str) {
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let forge = Forge::of(&header).unwrap();
    (forge, forge.event_name(&header).unwrap())
}

/// What a file means; nothing but why for what Stoker does not act on.
fn meaning(given: &Given, policy: &Policy) -> Result<Vec<Envelope>, &'static str> {
    let default_branches = forge::default_branches(policy);
    let meaning = match given {
        Given::Events(envelopes) => return Ok(envelopes.clone()),
        Given::Question(_) => return Ok(Vec::new()),
        Given::CodeCommit(event) => codecommit::read(event, &default_branches).unwrap(),
        Given::Webhook(request) => {
            let (forge, event) = forge_of(request);
            let body = request.body.as_deref().unwrap();
            forge::read(forge, event, body.as_bytes(), &default_branches).unwrap()
        }
    };
    match meaning {
        Meaning::Ignored(why) => Err(why),
        Meaning::Events(events) => {
            let envelope = |event| Envelope { time: Some(at()), source: "stoker".to_owned(), event };
            Ok(events.into_iter().map(envelope).collect())
        }
    }
}

fn commit(digit: char) -> Commit {
    Commit::new(digit.to_string().repeat(40)).unwrap()
}

fn scope() -> Scope {
    Scope::of(&ProjectName::new("app").unwrap())
}

fn branch() -> Line {
    Line::parse("branch/feature-a").unwrap()
}

fn tag_of(line: &Line) -> String {
    Tag::line(&scope(), line).to_string()
}

/// Puts a cache under a tag; `commit` is the one that it says it was built of.
fn put(env: &TestEnvironment, tag: &str, commit: &Commit, version: u32) {
    let (manifest, blobs) = exported(&Source { versions: [version; 4] }, |_| at());
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["annotations"] = json!({
        "stoker.project": "app", "stoker.commit": commit, "stoker.build": "app:before",
        "stoker.built-at": at() - SignedDuration::from_hours(1), "stoker.line": branch().to_string(),
        "stoker.shared": "false",
    });
    let repository = CacheRepository::new("stoker/app").unwrap();
    let media_type = buildkit_cache::MANIFEST_MEDIA_TYPE;
    env.account.push(&repository, tag, media_type, manifest.to_string().into(), blobs);
}

fn build(id: &str, status: BuildStatus, commit: &Commit, export: Option<&str>) -> Build {
    let mut environment = BTreeMap::from([
        (variable::LINE.to_owned(), branch().to_string()),
        (variable::COMMIT.to_owned(), commit.to_string()),
        (variable::REASON.to_owned(), "push".to_owned()),
    ]);
    environment.extend(export.map(|tag| (variable::EXPORT.to_owned(), tag.to_owned())));
    Build {
        id: id.to_owned(),
        project: ProjectName::new("app").unwrap(),
        status,
        started_at: at(),
        ended_at: None,
        source_version: Some(commit.to_string()),
        resolved_commit: Some(commit.to_string()),
        inputs: GivenInputs::read(&environment),
        claims: false,
    }
}

/// The id of the build of feature-a's head before, which runs when an event comes.
const RUNNING: &str = "app:running";

/// A test environment in which feature-a has been built and is being built, and in which all commits of the examples
/// have caches, so that whatever an event moves or deletes can be seen. Main has no cache.
fn env(policy: &str, envelopes: &[Envelope]) -> TestEnvironment {
    let env = TestEnvironment::with_policy(policy);
    env.account.secrets.borrow_mut().push(b"a secret for examples".to_vec());
    env.account.projects.borrow_mut().push(ProjectName::new("app-forks").unwrap());
    for digit in ['1', '5'] {
        put(&env, Tag::commit(&scope(), &commit(digit)).as_str(), &commit(digit), 1);
    }
    put(&env, &tag_of(&branch()), &commit('1'), 2);
    env.account.builds.borrow_mut().push(build(RUNNING, BuildStatus::InProgress, &commit('2'), None));
    let ended = |envelope: &Envelope| match &envelope.event {
        Event::BuildStateChange(change) if change.has_failed() => Some(BuildStatus::Failed),
        Event::BuildStateChange(change) if change.build_status == "IN_PROGRESS" => {
            Some(BuildStatus::InProgress)
        }
        Event::BuildStateChange(_)
        | Event::ImageAction(_)
        | Event::NightlyReconcile(_)
        | Event::ReconcileRequested(_)
        | Event::DriftFound(_) => Some(BuildStatus::Succeeded),
        _ => None,
    };
    if let Some(status) = envelopes.iter().find_map(ended) {
        put(&env, EXPORT, &commit('1'), 3);
        env.account.builds.borrow_mut().push(build(BUILD, status, &commit('1'), Some(EXPORT)));
    }
    env
}

/// What was started, as far as a decision tells it: project, line, commit and trust.
type Started = BTreeSet<(String, String, Option<String>, String)>;

fn started(env: &TestEnvironment, but: &BTreeSet<String>) -> Started {
    let builds = env.account.builds.borrow();
    let new = builds.iter().filter(|build| !but.contains(&build.id));
    new.map(|build| {
        let inputs = build.inputs.clone().unwrap();
        let trust = env.reported(build, variable::TRUST);
        let commit = inputs.commit.map(|commit| commit.to_string());
        (build.project.to_string(), inputs.line.to_string(), commit, trust)
    })
    .collect()
}

fn ids(env: &TestEnvironment) -> BTreeSet<String> {
    env.account.builds.borrow().iter().map(|build| build.id.clone()).collect()
}

/// What decisions say will be started.
fn to_start(decisions: &[Decision]) -> Started {
    let requests = decisions.iter().filter_map(|decision| match &decision.action {
        Action::Build(request) => Some(request),
        _ => None,
    });
    requests
        .map(|request| {
            let stoker_core::request::Subject::Commit(commit) = &request.subject else { panic!("a head") };
            let line = request.wanted.line.to_string();
            (request.built_by.to_string(), line, Some(commit.to_string()), request.trust.to_string())
        })
        .collect()
}

fn moved(before: &BTreeMap<String, Digest>, after: &BTreeMap<String, Digest>) -> BTreeSet<String> {
    after
        .iter()
        .filter(|(tag, digest)| before.get(*tag) != Some(digest))
        .map(|(tag, _)| tag.clone())
        .collect()
}

/// Delivers the file of a row, and holds what happens against the decisions.
async fn happens(row: &Row, given: &Given, policy: &str, decisions: &[Decision], envelopes: &[Envelope]) {
    let name = format!("{} under {}", row.event, row.policy);
    let mut env = env(policy, envelopes);
    let before = ids(&env);
    match given {
        Given::Webhook(request) => {
            let expected = if envelopes.is_empty() { 200 } else { 202 };
            assert_eq!(env.post(request).await, expected, "{name}");
        }
        Given::CodeCommit(event) => {
            let meaning = env.codecommit(event.clone()).await;
            assert_eq!(matches!(meaning, Meaning::Events(_)), !envelopes.is_empty(), "{name}");
        }
        Given::Events(envelopes) => {
            for envelope in envelopes {
                env.event(envelope);
            }
        }
        Given::Question(question) => return asked(&env, question, policy).await,
    }
    let queued = env.queued();

    // Builds.
    env.start().await;
    assert_eq!(started(&env, &before), to_start(decisions), "{name}: builds");
    assert_eq!(stopped(&env), stops(decisions), "{name}: what is overtaken");

    // Promotions.
    let lines = env.lines();
    env.settle_promotions().await;
    let promoted = moved(&lines, &env.lines());
    assert_eq!(promoted, to_promote(decisions), "{name}: promotions");
    assert!(promoted.is_empty() || queued.0 > 0, "{name}: a line moved without a message");
    assert_eq!(env.notices.len(), tells(decisions), "{name}: people were told {:?}", env.notices);

    // Warming: only what nothing else has built.
    let ordinary = ids(&env);
    env.warm().await;
    env.warm().await;
    let warms = decisions.iter().any(|decision| decision.action == Action::Warm);
    let is_built = to_start(decisions).iter().any(|(_, line, _, _)| line == "main");
    let head = ("app".to_owned(), "main".to_owned(), None, "trusted".to_owned());
    let expected: Started = (warms && !is_built).then_some(head).into_iter().collect();
    assert_eq!(started(&env, &ordinary), expected, "{name}: warming");

    // Retention.
    let lines = env.lines();
    env.retain().await;
    let left = env.lines();
    let gone: BTreeSet<String> = lines.into_keys().filter(|tag| !left.contains_key(tag)).collect();
    let (retained, deleted) = to_delete(decisions);
    assert!(!retained || queued.1 > 0, "{name}: retention without a message");
    assert_eq!(gone, deleted, "{name}: deletions");
}

/// What `resolve-cache` answers is the environment of a build of the line.
async fn asked(env: &TestEnvironment, question: &Value, policy: &str) {
    let policy = Policy::parse("policy", policy).unwrap();
    let handled =
        stoker_core::resolve::handle(question.clone(), &policy, REGISTRY, &env.account, env.account.now());
    let answer = env.account.invoke("resolve-cache", None, handled).await.unwrap().unwrap();
    assert_eq!(answer.environment[variable::LINE], branch().to_string());
    assert_eq!(answer.environment[variable::READS], branch().to_string());
}

fn stopped(env: &TestEnvironment) -> bool {
    let builds = env.account.builds.borrow();
    builds.iter().any(|build| build.id == RUNNING && build.status != BuildStatus::InProgress)
}

/// Whether the running build of feature-a is overtaken by one that is to be started.
fn stops(decisions: &[Decision]) -> bool {
    decisions.iter().any(|decision| match (&decision.action, &decision.project) {
        (Action::Build(request), Some(project)) => {
            project.builds.superseded == Superseded::Stop
                && request.wanted.line == branch()
                && request.overtakes == Some(commit('2'))
        }
        _ => false,
    })
}

/// The lines that decisions say will move. What builds wrote goes to feature-a here.
fn to_promote(decisions: &[Decision]) -> BTreeSet<String> {
    let lines = decisions.iter().filter_map(|decision| match &decision.action {
        Action::Promote(line) => Some(line.clone().unwrap_or_else(branch)),
        _ => None,
    });
    lines.map(|line| tag_of(&line)).collect()
}

fn tells(decisions: &[Decision]) -> usize {
    decisions.iter().filter(|decision| decision.action == Action::Notify).count()
}

/// Whether decisions say that a line's caches are looked at, and the lines that then go.
fn to_delete(decisions: &[Decision]) -> (bool, BTreeSet<String>) {
    let lines = decisions.iter().filter_map(|decision| match (&decision.action, &decision.project) {
        (Action::Retain(Some(line)), Some(project)) => Some((project, line)),
        _ => None,
    });
    let lines: Vec<(&Project, &Line)> = lines.collect();
    let applied = lines.iter().filter(|(project, _)| project.retention.mode == Mode::Apply);
    (!lines.is_empty(), applied.map(|(_, line)| tag_of(line)).collect())
}

#[tokio::test]
async fn every_row_is_decided_and_happens() {
    let document = document();
    assert!(document.rows.len() > 100, "{} rows", document.rows.len());
    let mut wrong = Vec::new();
    for row in &document.rows {
        let text = policy_text(&document, row);
        let policy = Policy::parse("policy", &text).unwrap_or_else(|error| panic!("{}: {error}", row.policy));
        let given = given(row);
        let (words, envelopes, decisions) = match meaning(&given, &policy) {
            Err(why) => (format!("ignored: {why}"), Vec::new(), Vec::new()),
            Ok(_) if matches!(given, Given::Question(_)) => {
                (format!("answer {}", branch()), Vec::new(), Vec::new())
            }
            Ok(envelopes) => {
                let decided: Vec<Vec<Decision>> =
                    envelopes.iter().map(|envelope| simulate(&policy, envelope, at())).collect();
                let words: Vec<String> = decided.iter().map(|decisions| brief(decisions)).collect();
                (words.join(" + "), envelopes, decided.concat())
            }
        };
        if words != row.happens {
            wrong.push(format!("{}\t{}\t{words}", row.event, row.policy));
            continue;
        }
        happens(row, &given, &text, &decisions, &envelopes).await;
    }
    assert!(
        wrong.is_empty(),
        "what happens by other words than these rows of events/outcomes.tsv:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_example_has_a_row_and_every_policy_is_used() {
    let document = document();
    let rows: BTreeSet<&str> = document.rows.iter().map(|row| row.event.as_str()).collect();
    for entry in std::fs::read_dir(Path::new(ROOT).join("events")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(rows.contains(name), "events/outcomes.tsv has no row for {name}");
        }
    }
    for row in &document.rows {
        assert!(path(row).exists(), "events/outcomes.tsv names {}, which is not there", row.event);
        if let Given::Webhook(request) = given(row) {
            let (forge, _) = forge_of(&request);
            assert_eq!(forge.name(), row.forge.to_lowercase(), "{}", row.event);
        }
    }
    let used: BTreeSet<&String> = document.rows.iter().map(|row| &row.policy).collect();
    let named: BTreeSet<&String> = document.policies.keys().collect();
    assert_eq!(used, named);
    let twice: BTreeSet<(&String, &String)> =
        document.rows.iter().map(|row| (&row.event, &row.policy)).collect();
    assert_eq!(twice.len(), document.rows.len(), "a row is there twice");
}
