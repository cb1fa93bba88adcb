//! Keeping main warm: once per burst of merges, and at night where it is wanted.

use jiff::SignedDuration;
use scenarios::environment::{POLICY, TestEnvironment};
use stoker_core::event::{Event, Tick};
use stoker_core::ports::BuildStatus;

/// Somebody else starts the ordinary builds, so that only warming builds main.
fn not_started_here(more: &str) -> String {
    let policy = POLICY.replace("warm: { stale-after: 7d }", &format!("warm: {{ stale-after: 7d{more} }}"));
    format!("{policy}    builds: {{ start: false }}\n")
}

async fn warmed(more: &str) -> TestEnvironment {
    let mut env = TestEnvironment::with_policy(&not_started_here(more));
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.build().await;
    assert!(env.line("main").is_some(), "main was warmed after the push");
    env
}

#[tokio::test]
async fn a_burst_of_merges_warms_main_with_one_build_that_runs_and_one_that_waits() {
    let mut env = warmed("").await;
    let before = env.account.builds.borrow().len();
    for second in 0..100_i64 {
        let merge = env.commit([1, 1, 1, 1]);
        env.push("main", &[&merge]).await;
        env.wait(SignedDuration::from_secs(6));
        if second % 20 == 10 {
            env.warm().await;
        }
        assert!(env.running().len() <= 1, "one runs");
    }
    let last = env.account.now();
    env.warm().await;
    assert!(env.waiting().1 > 0, "and one waits");
    for _ in 0..3 {
        env.build().await;
        env.wait(SignedDuration::from_mins(3));
        env.warm().await;
    }
    assert_eq!(env.account.builds.borrow().len() - before, 2, "the burst's first merges, and its last");
    let newest = env.account.builds.borrow().last().unwrap().started_at;
    assert!(newest >= last, "the last head is warm");
    assert_eq!(env.waiting().1, 0);
}

#[tokio::test]
async fn a_build_of_mains_head_is_of_its_branch_whatever_the_project_names() {
    let versions = |env: &TestEnvironment| {
        let builds = env.account.builds.borrow();
        builds.iter().map(|build| build.source_version.clone()).collect::<Vec<_>>()
    };
    let named = |name: &str| vec![Some(name.to_owned())];
    let policy = format!("{}    default-branch: trunk\n", not_started_here(""));
    let mut env = TestEnvironment::with_policy(&policy);
    env.night().await;
    assert_eq!(versions(&env), named("trunk"), "at night");

    let mut env = TestEnvironment::with_policy(&not_started_here(""));
    env.night().await;
    assert_eq!(versions(&env), [None], "a branch that nobody named may not be there");

    let mut env = TestEnvironment::with_policy(&not_started_here(""));
    let head = "1".repeat(40);
    let body = serde_json::json!({
        "ref": "refs/heads/trunk", "after": head, "commits": [],
        "repository": {"full_name": "example/app", "html_url": "https://github.com/example/app",
        "default_branch": "trunk"},
    });
    env.deliver("push", &body).await;
    env.settle().await;
    assert_eq!(versions(&env), named("trunk"), "after a push, by the forge's word");
}

#[tokio::test]
async fn a_build_of_mains_head_that_was_of_another_branch_fills_nothing() {
    let policy = format!("{}    default-branch: main\n", not_started_here(""));
    for (built, is_filled) in [("main", true), ("develop", false), ("refs/heads/develop", false)] {
        let mut env = TestEnvironment::with_policy(&policy);
        let head = env.commit([1, 1, 1, 1]);
        env.push("main", &[&head]).await;
        env.settle().await;
        for build in env.account.builds.borrow_mut().iter_mut() {
            build.source_version = Some(built.to_owned());
        }
        env.build().await;
        assert_eq!(env.line("main").is_some(), is_filled, "{built}");
    }
}

#[tokio::test]
async fn an_ordinary_build_of_main_is_as_good() {
    let mut env = TestEnvironment::new();
    let base = env.commit([1, 1, 1, 1]);
    env.push("main", &[&base]).await;
    env.settle().await;
    assert_eq!(env.account.builds.borrow().len(), 1, "the push's own");
    assert_eq!(env.waiting().1, 0);
}

#[tokio::test]
async fn a_failed_build_of_main_is_made_once_more_and_no_oftener() {
    let mut env = TestEnvironment::new();
    let head = env.commit([1, 1, 1, 1]);
    env.push("main", &[&head]).await;
    for builds in [2, 2] {
        env.settle().await;
        for build in env.running() {
            env.end(&build.id, BuildStatus::Failed, &head);
        }
        env.settle().await;
        env.settle().await;
        assert_eq!(env.account.builds.borrow().len(), builds);
    }
    assert_eq!(env.notices.len(), 2, "people are notified of both");
}

#[tokio::test]
async fn another_lines_build_of_the_same_commit_does_not_fill_main() {
    let mut env = TestEnvironment::with_policy(&not_started_here(""));
    let head = env.commit([1, 1, 1, 1]);
    let build = stoker_core::ports::Build {
        id: "app:77".to_owned(),
        project: env.project().name,
        status: BuildStatus::Succeeded,
        started_at: env.account.now(),
        ended_at: None,
        source_version: Some("refs/heads/feature".to_owned()),
        resolved_commit: Some(head.to_string()),
        inputs: None,
        claims: true,
    };
    env.account.builds.borrow_mut().push(build);
    env.push("main", &[&head]).await;
    env.settle().await;
    assert_eq!(env.running().len(), 1, "main is warmed all the same");
}

#[tokio::test]
async fn what_the_push_wanted_not_built_is_not_warmed() {
    let policy = format!("{POLICY}    builds: {{ paths: [\"src/*\"] }}\n");
    let mut env = TestEnvironment::with_policy(&policy);
    let docs = env.commit([1, 1, 1, 1]);
    env.push_changing("main", &docs, &["README.md"]).await;
    env.settle().await;
    assert!(env.account.builds.borrow().is_empty());
    let code = env.commit([1, 1, 1, 1]);
    env.push_changing("main", &code, &["src/lib.rs"]).await;
    env.settle().await;
    assert_eq!(env.account.builds.borrow().len(), 1);
}

#[tokio::test]
async fn a_changed_base_image_warms_main_in_the_next_night_and_once() {
    let mut env = warmed(", base-images: [\"library/python:3.12\"]").await;
    let repository = stoker_core::names::CacheRepository::new("library/python").unwrap();
    let push = |env: &TestEnvironment, bytes: &'static [u8]| {
        let media_type = "application/vnd.oci.image.index.v1+json";
        env.account.push(&repository, "3.12", media_type, bytes.into(), vec![]);
    };
    push(&env, b"{\"first\":1}");
    let mut builds = Vec::new();
    for night in 0..5 {
        if night == 2 {
            push(&env, b"{\"second\":2}");
        }
        env.wait(SignedDuration::from_hours(24));
        let before = env.account.builds.borrow().len();
        env.night().await;
        env.build().await;
        builds.push(env.account.builds.borrow().len() - before);
    }
    // The first night learns what the base image is.
    assert_eq!(builds, [1, 0, 1, 0, 0]);
}

#[tokio::test]
async fn a_refresh_builds_from_scratch_and_takes_the_lines_place() {
    let mut env = warmed(", refresh: 2d").await;
    let (old, _) = env.line("main").unwrap();
    let mut refreshed = 0;
    for _ in 0..6 {
        env.wait(SignedDuration::from_hours(24));
        env.night().await;
        for build in env.running() {
            assert_eq!(env.reported(&build, "STOKER_CACHE_FROM"), "", "from scratch");
            refreshed += 1;
            let ran = env.run(&build);
            assert_eq!(ran.ran.len(), 5, "nothing is reused");
        }
        env.settle().await;
    }
    assert!((2..=3).contains(&refreshed), "every other night: {refreshed}");
    let (new, cache) = env.line("main").unwrap();
    assert_ne!(old, new);
    assert_eq!(cache.records(), 5, "what was there before has left");
    let history = env.account.tags(&env.repository());
    assert!(history.keys().any(|tag| tag.starts_with("app.history.main.")), "and can be had again");
}

#[tokio::test]
async fn a_night_has_a_turn_for_every_project_and_only_one() {
    let names: Vec<String> = (0..200).map(|n| format!("p{n}")).collect();
    let rules: Vec<String> = names
        .iter()
        .map(|name| format!("  - {{ name: {name}, repository: github.com/example/{name} }}\n"))
        .collect();
    let rules = rules.concat();
    let mut env = TestEnvironment::with_policy(&format!("version: 1\nprojects:\n{rules}"));
    let projects = names.iter().map(|name| stoker_core::names::ProjectName::new(name.as_str()).unwrap());
    env.account.projects.borrow_mut().extend(projects);
    let mut at_once = Vec::new();
    for _ in 0..24 {
        let before = env.account.builds.borrow().len();
        env.tick(Event::NightlyWarm(Tick { slots: 24, every_minutes: 10 }));
        env.warm().await;
        env.warm().await;
        at_once.push(env.account.builds.borrow().len() - before);
        env.wait(SignedDuration::from_mins(10));
    }
    assert_eq!(at_once.iter().sum::<usize>(), 200, "{at_once:?}");
    assert!(at_once.iter().all(|builds| *builds <= 25), "spread over the night: {at_once:?}");
    env.end_all(BuildStatus::Failed);
}
