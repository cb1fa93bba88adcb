//! `stoker why` on logs alone. What caches prove, real builders tell.

use serde_json::{Value, json};

use crate::aws::{Account, TestEnvironment};
use crate::forecast::Repository;
use crate::forge::{Forge, TOKEN};
use crate::registry::Fake;
use crate::run::Ran;

const DOCKERFILE: &str = "FROM node\nCOPY package.json /\nRUN npm ci\nCOPY src /src\n\
    RUN --mount=type=cache,target=/root/.npm --mount=type=cache,id=npm,target=/n npm run build\n";

/// A repository in which `src/a` changed last.
fn repository() -> Repository {
    let mut repository = Repository::new();
    let files = [("Dockerfile", DOCKERFILE), ("package.json", "1"), ("src/a", "1"), ("src/b", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    repository.commit("Source", 2000, &[begin], &[("src/a", "2")]);
    repository.write();
    repository
}

async fn why(repository: &Repository, log: &str, flags: &[&str]) -> Ran {
    let file = repository.home.path().join("build.log");
    std::fs::write(&file, log).unwrap();
    let path = [("PATH", std::env::var("PATH").unwrap())];
    let directory = repository.home.path().to_str().unwrap();
    let arguments = ["why", "--git", directory, "--log", file.to_str().unwrap()];
    repository.home.stoker_in(&path, &[&arguments, flags].concat(), "").await
}

const WARM: &str = "\
#4 [1/5] FROM docker.io/library/node:latest@sha256:11b5623d458e729cea7101d66d884c425f89b8750b63bf239fc81ab653b37746
#4 DONE 0.1s
#5 importing cache manifest from 127.0.0.1:1/app:main
#5 DONE 0.1s
#6 [3/5] RUN npm ci
#6 CACHED
#7 [4/5] COPY src /src
#7 DONE 0.5s
#8 [5/5] RUN npm run build
#8 0.2 built
#8 DONE 48.0s
";

#[tokio::test]
async fn what_no_commit_had_before_is_unavoidable() {
    let repository = repository();
    let ran = why(&repository, WARM, &["--json"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let reported: Value = serde_json::from_str(&ran.out).unwrap();
    let kinds: Vec<&Value> =
        reported["misses"].as_array().unwrap().iter().map(|miss| &miss["cause"]["kind"]).collect();
    assert_eq!(kinds, ["not-given", "not-given"], "{reported}");
    assert_eq!(
        (reported["lostSeconds"].as_f64(), reported["unavoidableSeconds"].as_f64()),
        (Some(0.0), Some(48.5))
    );
    // Of a cache that was imported and that nobody can read any more nothing is said.
    let ran = why(&repository, WARM, &["--from", "127.0.0.1:1/app:main"]).await;
    assert!(ran.out.contains("unknown; what would tell: the cache that this build exported"), "{}", ran.out);
    assert!(ran.out.contains("not all is known: cannot read 127.0.0.1:1/app:main"), "{}", ran.out);
}

#[tokio::test]
async fn a_cache_that_is_not_imported_is_told_in_the_logs_own_words() {
    let repository = repository();
    let log = WARM
        .replace("#5 DONE 0.1s", "#5 ERROR: 127.0.0.1:1/app:main: not found")
        .replace("CACHED", "DONE 61.0s");
    let ran = why(&repository, &log, &["--from", "127.0.0.1:1/app:main"]).await;
    assert!(ran.out.contains("first miss: 127.0.0.1:1/app:main could not be imported"), "{}", ran.out);
    assert!(ran.out.contains("app:main: not found"), "{}", ran.out);
    assert!(ran.out.contains("lost to misses 61 s, unavoidable 48 s"), "{}", ran.out);
    let ran = why(&repository, &log, &[]).await;
    assert!(ran.out.contains("the build was given no cache"), "{}", ran.out);
}

#[tokio::test]
async fn nothing_that_a_log_says_moves_the_terminal() {
    let repository = repository();
    let evil = "\u{1b}[2J\u{9b}1m\u{202e}\u{7}";
    let log =
        WARM.replace("npm run build", &format!("npm{evil}")).replace("#5 DONE", &format!("#5 ERROR: {evil}"));
    for flags in [&["--from", "127.0.0.1:1/app:main"][..], &[]] {
        let ran = why(&repository, &log, flags).await;
        assert_eq!(ran.code, 0, "{}", ran.err);
        let all = ran.out + &ran.err;
        assert!(all.contains("\\u{1b}"), "{all}");
        assert!(all.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{all:?}");
    }
}

#[tokio::test]
async fn a_file_without_a_build_is_refused() {
    let ran = why(&repository(), "nothing", &[]).await;
    assert_eq!((ran.code, ran.err.contains("holds no build")), (2, true), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_build_of_the_stack_log_caches_and_commit_are_found() {
    let (repository, account, fake) = (repository(), Account::start().await, Fake::start().await);
    let given = fake.put("app", "app.given.1", "a");
    let export = fake.put("app", "app.export.1", "ab");
    fake.put("app", "app.history.main.20260102T030405Z-aaaaaaaa", "a");
    fake.put("app", "app.branch.feature-a", "b");
    let commit = repository.git(&["rev-parse", "HEAD"], "");
    let log = WARM.replace("127.0.0.1:1/app:main", &given).replace("#5 DONE 0.1s", "#5 ERROR: not found");
    stack_build(&account, &given, &export, commit.trim(), log);
    let directory = repository.home.path().to_str().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap();
    let line = format!("why app:1 --git {directory} --json");
    let ran = account.stoker_in("", &line, &[("PATH", &path)]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let reported: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&reported["commit"], &reported["missing"]),
        (&json!(commit.trim()), &json!([])),
        "{reported}"
    );
    let causes: Vec<&Value> =
        reported["misses"].as_array().unwrap().iter().map(|miss| &miss["cause"]).collect();
    assert_eq!(causes.len(), 2, "{reported}");
    assert_eq!(*causes[0], json!({"kind": "not-imported", "cache": given, "error": "not found"}));
    let mounts = json!([{"id": "/root/.npm", "why": "the build before failed\u{1b}[2J"}]);
    let reported: Vec<&Value> =
        reported["misses"].as_array().unwrap().iter().map(|miss| &miss["emptyMounts"]).collect();
    assert_eq!(reported, [&Value::Null, &mounts]);
    assert_eq!((account.count("BatchGetBuilds"), account.count("StartQuery")), (1, 0));
    let ran = account.stoker_in("", &format!("why app:2 --git {directory}"), &[("PATH", &path)]).await;
    assert_eq!((ran.code, ran.err.contains("CodeBuild knows no build app:2")), (2, true), "{}", ran.err);

    for newest in ["main", commit.get(..7).unwrap()] {
        let line = format!("why {newest} --project app --git {directory}");
        let ran = account.stoker_in("", &line, &[("PATH", &path)]).await;
        assert!(ran.out.contains("could not be imported: not found"), "{}{}", ran.out, ran.err);
        let expected = "; its cache mount /root/.npm was empty: the build before failed\\u{1b}[2J\n";
        assert!(ran.out.contains(expected), "{}", ran.out);
    }
    let ran = account.stoker_in("", "why branch/none --project app", &[("PATH", &path)]).await;
    assert_eq!((ran.code, ran.err.contains("no build of branch/none")), (1, true), "{}", ran.err);
    let policy = "version: 1\nprojects:\n  - { name: app, repository: github.com/example/app }\n";
    let line = format!("trace {} --policy POLICY --project app --no-logs --why {directory}", commit.trim());
    let ran = account.stoker_in(policy, &line, &[("PATH", &path)]).await;
    assert!(ran.out.contains("build app:1\n"), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("could not be imported: not found"), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_build_costs_few_calls_and_less_than_two_seconds() {
    let (repository, account, fake) = (repository(), Account::start().await, Fake::start().await);
    let given = fake.put("app", "app.given.1", "a");
    let export = fake.put("app", "app.export.1", "ab");
    // More than are looked into.
    for day in 10..20 {
        fake.put("app", &format!("app.history.main.202601{day}T030405Z-aaaaaaaa"), &format!("old{day}"));
        fake.put("app", &format!("app.branch.feature-{day}"), &format!("other{day}"));
    }
    let commit = repository.git(&["rev-parse", "HEAD"], "");
    let log = WARM.replace("127.0.0.1:1/app:main", &given);
    stack_build(&account, &given, &export, commit.trim(), log);
    let directory = repository.home.path().to_str().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap();
    let began = std::time::Instant::now();
    let ran = account.stoker_in("", &format!("why app:1 --git {directory}"), &[("PATH", &path)]).await;
    let took = began.elapsed();
    assert_eq!(ran.code, 0, "{}", ran.err);
    let aws = account.env().calls.clone();
    let asked = fake.env().asked.len();
    let pages = account.count("GetLogEvents");
    println!(
        "one `stoker why`: {took:.2?}, BatchGetBuilds, {pages} of GetLogEvents, {asked} of the registry"
    );
    // This account's pages have one line, and the last one is empty.
    assert_eq!((account.count("BatchGetBuilds"), pages), (1, WARM.lines().count() + 1));
    assert_eq!(aws.len(), 1 + pages, "{aws:?}");
    // The tags, and manifest and config of the given cache, of the export, of five that main held, of eight of other
    // lines.
    assert_eq!(asked, 1 + 2 * (1 + 1 + 5 + 8));
    assert!(took < std::time::Duration::from_secs(2), "{took:.2?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_gets_one_status_at_its_forge_and_a_refusal_says_no_token() {
    let repository = repository();
    let commit = repository.git(&["rev-parse", "HEAD"], "").trim().to_owned();
    let file = repository.home.path().join("build.log");
    std::fs::write(&file, WARM.replace("npm run build", &format!("npm {} \u{1b}[2J", "long ".repeat(99))))
        .unwrap();
    let log = file.to_str().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap();
    let directory = repository.home.path().to_str().unwrap().to_owned();
    for (kind, variable, host) in [
        ("github", "GITHUB_TOKEN", "github.com"),
        ("gitlab", "GITLAB_TOKEN", "gitlab.com"),
        ("bitbucket", "BITBUCKET_TOKEN", "bitbucket.org"),
    ] {
        let forge = Forge::start(kind, &[]).await;
        let url = format!("http://{}", forge.address);
        let run = async |token: &str, flags: &[&str]| {
            let environment = [("PATH", path.clone()), (variable, token.to_owned())];
            let line = ["why", "--git", &directory, "--log", &log, "--status", kind];
            repository.home.stoker_in(&environment, &[&line, flags].concat(), "").await
        };
        let at = format!("{host}/example/app");
        let here = ["--repository", &at, "--forge-url", &url];
        for _ in 0..2 {
            let ran = run(TOKEN, &here).await;
            assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{kind}");
            assert!(ran.out.contains("lost to misses"), "{}", ran.out);
        }
        let statuses = forge.state().statuses.clone();
        let expected = "2 steps ran, 2 reused; lost 0.0 s";
        assert_eq!(
            statuses,
            [((commit.clone(), "stoker why".to_owned()), expected.to_owned())].into(),
            "{kind}"
        );
        // What a forge refuses is said with its words, and the causes come all the same.
        let other = ["--repository", "host/example/other", "--forge-url", &url];
        for (token, flags) in [("wrong-token", &here), (TOKEN, &other)] {
            let ran = run(token, flags).await;
            assert_eq!(ran.code, 3, "{kind} {}", ran.err);
            assert!(ran.out.contains("lost to misses"), "{}", ran.out);
            assert!(ran.err.contains("Status of") && !ran.err.contains(token), "{}", ran.err);
        }
        let calls = forge.state().calls.len();
        // A checkout may name any host, and a token goes to none of those.
        repository.git(&["config", "remote.origin.url", "https://evil.example/example/app"], "");
        for (token, problem) in [(TOKEN, "origin is not at"), ("", "is not set")] {
            let ran = run(token, &[]).await;
            assert_eq!((ran.code, ran.err.contains(problem)), (2, true), "{}", ran.err);
        }
        assert_eq!(forge.state().calls.len(), calls);
    }
    // The longest cause is cut to what GitHub takes.
    let forge = Forge::start("github", &[]).await;
    let url = format!("http://{}", forge.address);
    let log_of_cold = WARM.replace("#5 DONE 0.1s", &format!("#5 ERROR: \u{1b}[2J{}", "x".repeat(200)));
    std::fs::write(&file, log_of_cold.replace("CACHED", "DONE 61.0s")).unwrap();
    let environment = [("PATH", path), ("GITHUB_TOKEN", TOKEN.to_owned())];
    let line = [
        "why",
        "--git",
        &directory,
        "--log",
        &log,
        "--from",
        "127.0.0.1:1/app:main",
        "--status",
        "github",
        "--repository",
        "github.com/example/app",
        "--forge-url",
        &url,
    ];
    let ran = repository.home.stoker_in(&environment, &line, "").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let statuses = forge.state().statuses.clone();
    let text = statuses.values().next().unwrap();
    let start =
        "3 steps ran, 1 reused; lost 61 s; [3/5]: 127.0.0.1:1/app:main could not be imported: \\u{1b}[2Jxxx";
    assert!(text.starts_with(start) && text.ends_with("xxx..."), "{text}");
    assert_eq!(text.chars().count(), 140);
}

/// A file that a builder wrote, for the tests of the crate that finds causes.
fn fixture(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/cache-misses/tests/fixtures/");
    std::fs::read_to_string(format!("{folder}{name}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkouts_messages_and_origin_name_the_pull_request() {
    let fake = Fake::start().await;
    let put = |tag: &str, name: &str| {
        let manifest = serde_json::from_str(&fixture(&format!("{name}.manifest.json"))).unwrap();
        fake.put_cache("app", tag, manifest, fixture(&format!("{name}.config.json")))
    };
    let (given, export) = (put("one", "first"), put("two", "second"));
    let log = fixture("rawjson.log").replace("127.0.0.1:5977/t:one", &given);
    let dockerfile = fixture("Dockerfile");
    let files = [("Dockerfile", dockerfile.as_str()), ("package.json", "1"), ("src/a", "1")];
    let merge = "Merge branch 'topic' into 'main'\n\nSee merge request example/app!12";
    for (message, origin, expected) in [
        ("Next (#5)", "git@github.com:example/app.git", Some((5, " (pull request #5)"))),
        ("Next (#5)", "https://gitlab.com/example/app.git", None),
        (merge, "https://gitlab.com/example/app.git", Some((12, " (merge request !12)"))),
    ] {
        let mut repository = Repository::new();
        let begin = repository.commit("Begin", 1000, &[], &files);
        // It was made after what the caches hold.
        repository.commit(message, 1_900_000_000, &[begin], &[("src/a", "2")]);
        repository.write();
        repository.git(&["config", "remote.origin.url", origin], "");
        let commit = repository.git(&["rev-parse", "HEAD"], "").trim().to_owned();
        let ran = why(&repository, &log, &["--from", &given, "--export", &export, "--json"]).await;
        let reported: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(reported["misses"][0]["cause"]["commit"], json!(commit), "{reported}");
        let numbers = expected.map(|(number, _)| json!({ &commit: number })).unwrap_or_default();
        assert_eq!(reported["pullRequests"], numbers, "{reported}");
        let ran = why(&repository, &log, &["--from", &given, "--export", &export]).await;
        let changed =
            format!("src/a changed in {}{}\n", &commit[..7], expected.map_or("", |(_, words)| words));
        assert!(ran.out.contains(&changed), "{changed}: {}", ran.out);
    }
}

const BASE: &str = "sha256:11b5623d458e729cea7101d66d884c425f89b8750b63bf239fc81ab653b37746";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_line_lost_is_reported_with_the_rule_and_a_base_with_its_old_digest() {
    let mut repository = Repository::new();
    let dockerfile = fixture("Dockerfile");
    let files = [("Dockerfile", dockerfile.as_str()), ("package.json", "1"), ("src/a", "1"), ("b", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    repository.commit("Next", 2000, &[begin], &[("b", "2")]);
    repository.write();
    let (account, fake) = (Account::start().await, Fake::start().await);
    let put = |tag: &str, name: &str, change: &dyn Fn(String) -> String| {
        let manifest = serde_json::from_str(&fixture(&format!("{name}.manifest.json"))).unwrap();
        fake.put_cache("app", tag, manifest, change(fixture(&format!("{name}.config.json"))))
    };
    // The builds before stood on another image of the same name.
    let old = format!("sha256:{}", "0d".repeat(32));
    let old_record = dockerfile_keys::image_record(&old, "linux/amd64").unwrap();
    let record = dockerfile_keys::image_record(BASE, "linux/amd64").unwrap();
    let on_old = |config: String| {
        // An image has a record by its digest and others by its layers.
        let config = config.replace(&record, &old_record);
        config.replace("sha256:99c2", "sha256:0d0d").replace("3fbmuforzfp0ls", "another")
    };
    let export = put("app.export.1", "no-cache", &|config| config);
    let given = put("app.given.1", "second", &on_old);
    put("app.main", "second", &on_old);
    let built = json!({"stoker.build": "app:0", "stoker.commit": "ab".repeat(20),
        "stoker.built-at": "2026-11-01T00:00:00Z", "stoker.line": "main"});
    fake.annotate("app", "app.given.1", &built);
    let commit = repository.git(&["rev-parse", "HEAD"], "");
    let log = fixture("no-cache.log").replace("127.0.0.1:5977/t:two", &given).replace("CACHED", "DONE 0.0s");
    stack_build(&account, &given, &export, commit.trim(), log);
    {
        let mut env = account.env();
        let mut before = env.builds[0].clone();
        before["id"] = json!("app:0");
        before["logs"]["streamName"] = json!("0");
        env.builds.push(before);
        let from = format!("#5 [deps 1/4] FROM localhost/base:1@{old}");
        env.build_logs.insert("0".to_owned(), vec![from, "#5 DONE 0.0s".to_owned()]);
    }
    let directory = repository.home.path().to_str().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap();
    let first = async || {
        let line = format!("why app:1 --git {directory} --json");
        let ran = account.stoker_in("", &line, &[("PATH", &path)]).await;
        assert_eq!(ran.code, 0, "{}", ran.err);
        let reported: Value = serde_json::from_str(&ran.out).unwrap();
        (reported["misses"][0]["cause"].clone(), reported["missing"].clone())
    };
    let image = format!("localhost/base:1@{BASE}");
    let (cause, missing) = first().await;
    assert_eq!(cause, json!({"kind": "base", "image": image, "before": old}), "{missing}");
    let line = format!("why app:1 --git {directory}");
    let ran = account.stoker_in("", &line, &[("PATH", &path)]).await;
    assert!(ran.out.contains(&format!("the base image moved: it is {image} and was {old}")), "{}", ran.out);
    // What the log of the build before does not say is left open.
    account.env().build_logs.insert("0".to_owned(), Vec::new());
    assert_eq!(first().await, (json!({"kind": "base", "image": image}), json!([])));
    let refuse = |env: &mut TestEnvironment| {
        env.failing.push(("BatchGetBuilds".to_owned(), 1, "AccessDeniedException"));
    };
    account.env().meanwhile = Some(("GetLogEvents".to_owned(), Box::new(refuse)));
    let (cause, missing) = first().await;
    assert_eq!(cause, json!({"kind": "base", "image": image}));
    assert!(
        missing[0].as_str().unwrap().contains("codebuild:BatchGetBuilds of app:0 was refused"),
        "{missing}"
    );

    let earlier = |config: String| config.replace("2026-11-30T", "2026-11-29T");
    put("app.history.main.20260102T030405Z-aaaaaaaa", "second", &earlier);
    let history = fake.annotate("app", "app.history.main.20260102T030405Z-aaaaaaaa", &json!({}));
    let cache = fake.reference("app", "app.history.main.20260102T030405Z-aaaaaaaa");
    let note = "main left it at 2026-01-02T03:04:05Z";
    let time = "2026-01-02T03:04:04Z";
    for (annotations, expected) in [
        (json!({}), json!({"kind": "dropped", "cache": cache, "note": note})),
        (
            json!({"stoker.parent": history}),
            json!({"kind": "dropped", "cache": cache, "note": note,
                "rule": {"kind": "limits", "lastUsed": "2026-11-29T07:35:35.485655812Z"}}),
        ),
        (
            json!({"stoker.parent": history, "stoker.refreshed-at": time}),
            json!({"kind": "dropped", "cache": cache, "note": note, "rule": {"kind": "refreshed"}}),
        ),
        (
            json!({"stoker.parent": history, "stoker.rolled-back-at": time, "stoker.refreshed-at": time}),
            json!({"kind": "rolled-back", "cache": cache, "note": note}),
        ),
    ] {
        fake.annotate("app", "app.main", &annotations);
        assert_eq!(first().await.0, expected, "{annotations}");
    }
    let ran = account.stoker_in("", &line, &[("PATH", &path)]).await;
    assert!(ran.out.contains("it left with a rollback of"), "{}", ran.out);
}

/// The account has one build, of main.
fn stack_build(account: &Account, given: &str, export: &str, commit: &str, log: String) {
    let variable = |name: &str, value: &str| json!({"name": name, "value": value, "type": "PLAINTEXT"});
    let variables = [
        variable("STOKER_CACHE_REFS", given),
        variable("STOKER_EXPORT_REF", export),
        variable("STOKER_COMMIT", commit),
        variable("STOKER_LINE", "main"),
        variable("STOKER_MOUNTS", "npm: given 0123abcd; /root/.npm: the build before failed\u{1b}[2J"),
    ];
    let now = jiff::Timestamp::now().as_second();
    let build = json!({"id": "app:1", "projectName": "app", "buildStatus": "SUCCEEDED",
        "startTime": now, "endTime": now,
        "logs": {"groupName": "/aws/codebuild/app", "streamName": "1"},
        "environment": {"type": "LINUX_CONTAINER", "image": "i", "computeType": "BUILD_GENERAL1_SMALL",
            "environmentVariables": variables}});
    let mut env = account.env();
    env.builds = vec![build];
    env.projects = vec!["app".to_owned()];
    env.build_log = log;
}
