//! `docs/metrics.md` is true: its table names the metrics that the functions send, and its query finds a push's whole story.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use serde_json::Value;
use stoker::emf::Metric;
use stories::world::World;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn document() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("docs/metrics.md")).unwrap()
}

/// The document's table of metrics: unit, dimensions, function and stability by name.
fn table() -> BTreeMap<String, [String; 4]> {
    let text = document();
    let rows = text.lines().skip_while(|line| !line.starts_with("| metric |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, unit, dimensions, function, stability, meaning] = cells[..] else { panic!("{line}") };
        assert!(!meaning.is_empty(), "{line}");
        (name.trim_matches('`').to_owned(), [unit, dimensions, function, stability].map(str::to_owned))
    });
    rows.collect()
}

/// The functions in whose source a metric is named.
fn senders() -> BTreeMap<String, BTreeSet<String>> {
    let mut senders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for function in std::fs::read_dir(Path::new(ROOT).join("functions")).unwrap() {
        let function = function.unwrap();
        let Ok(source) = std::fs::read_to_string(function.path().join("src/lib.rs")) else { continue };
        for use_of in source.split("Metric::").skip(1) {
            let name: String = use_of.chars().take_while(char::is_ascii_alphanumeric).collect();
            let sent_by = senders.entry(name).or_default();
            sent_by.insert(function.file_name().into_string().unwrap());
        }
    }
    senders
}

#[test]
fn the_table_of_metrics_is_that_of_the_code() {
    let table = table();
    let senders = senders();
    let known: BTreeSet<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
    let told: BTreeSet<&str> = table.keys().map(String::as_str).collect();
    let sent: BTreeSet<&str> = senders.keys().map(String::as_str).collect();
    assert_eq!(told, known, "docs/metrics.md, and the code");
    assert_eq!(sent, known, "what functions send, and what there is");
    for metric in Metric::ALL {
        let [unit, dimensions, function, stability] = &table[metric.name()];
        assert_eq!(unit, metric.unit().name(), "{metric:?}");
        assert_eq!(*dimensions, metric.dimensions().join(", "), "{metric:?}");
        let sent_by: Vec<&str> = senders[metric.name()].iter().map(String::as_str).collect();
        assert_eq!(sent_by.join(", "), *function, "{metric:?}");
        assert!(matches!(stability.as_str(), "stable" | "may change"), "{metric:?}: {stability}");
    }
}

#[test]
fn the_cost_of_metrics_is_counted_right() {
    let number = |with: &str| -> usize {
        let kinds = |metric: &Metric| if metric.dimensions().contains(&"Line") { 3 } else { 1 };
        Metric::ALL.iter().filter(|metric| metric.dimensions().contains(&with)).map(kinds).sum()
    };
    let (project, repository) = (number("Project"), number("Repository"));
    let told = document();
    for said in [
        format!("at most {project} metrics for a project"),
        format!("{repository} metrics for a repository"),
        format!("{} × N", project + repository),
    ] {
        assert!(told.contains(&said), "{said}");
    }
}

thread_local! {
    /// Whether the story of this thread is logged.
    static IS_LOGGED: Cell<bool> = const { Cell::new(false) };
}

/// All that the functions log.
#[derive(Debug, Default, Clone)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The messages of the lines that the document's query finds, each with all of its line.
    fn about(&self, commit: &str) -> Vec<(String, Value)> {
        let query = document();
        assert!(query.contains("| filter @message like /<commit>/"), "the query is another");
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(commit));
        lines
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|line| (line["message"].as_str().unwrap().to_owned(), line))
            .collect()
    }
}

#[tokio::test]
async fn one_query_tells_a_pushs_whole_story() {
    let log = Log::default();
    let writer = log.clone();
    let lines = stoker::lambda::lines(move || writer.clone());
    // For the whole process, as tracing remembers of each line whether anybody wants it, whichever test comes by it first.
    let lines = lines.with_filter(dynamic_filter_fn(|_, _| IS_LOGGED.get()));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).unwrap();
    IS_LOGGED.set(true);

    let mut world = World::new();
    let other = world.commit([9, 9, 9, 9]);
    world.push("feature-b", &[&other]).await;
    world.build().await;
    let a = world.commit([1, 1, 1, 1]);
    world.push("feature-a", &[&a]).await;
    world.build().await;
    let merge = world.commit([1, 1, 1, 2]);
    world.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    world.push("main", &[&a, &merge]).await;
    world.build().await;
    world.delete_branch("feature-a").await;
    world.wait(SignedDuration::from_hours(24 * 40));
    world.settle().await;
    world.night().await;

    let story = log.about(a.as_str());
    let step = |message: &str, at: &str, value: &str| {
        let is_step = |(told, line): &(String, Value)| {
            told == message && line.pointer(at).and_then(Value::as_str) == Some(value)
        };
        assert!(story.iter().any(is_step), "{message} with {value} at {at}: {story:#?}");
    };
    step("accepted", "/span/git.branch", "feature-a");
    step("build started", "/line", "branch/feature-a");
    step("how warm the build was", "/git.commit", a.as_str());
    step("accepted", "/span/event.kind", "PullRequestMerged");
    step("accepted", "/span/git.branch", "main");
    step("line moved", "/line", "main");
    step("line moved", "/git.merged", a.as_str());
    step("build started", "/line", "main");
    step("main wants no warming", "/project.name", "app");
    step("planned", "/cache.tags", &format!("app.commit.{a}"));
    let builds = world.account.builds.borrow();
    let build = builds.iter().find(|build| build.source_version.as_deref() == Some(a.as_str()));
    step("build started", "/build.id", &build.expect("the build").id);
    let told_of_other = story.iter().any(|(_, line)| line.to_string().contains(other.as_str()));
    assert!(!told_of_other, "another push's story is its own");
    // Whoever has the forge's delivery finds the commit beside it.
    let accepted = story.iter().filter(|(message, _)| message == "accepted");
    assert!(accepted.clone().count() >= 3);
    for (_, line) in accepted {
        assert!(line.get("webhook.delivery").is_some(), "{line}");
    }
}
