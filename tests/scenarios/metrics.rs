//! `docs/metrics.md` is true: its table names the metrics that the functions send, and its query finds a
//! push's whole scenario. The queries of `docs/operate.md` ask for fields and messages that the functions write.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use scenarios::environment::TestEnvironment;
use serde_json::Value;
use stoker_lambda::metrics::{Metric, Reach};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn document() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("docs/metrics.md")).unwrap()
}

/// The document's table: unit, fields, where it is a metric, function and stability by name.
fn table() -> BTreeMap<String, [String; 5]> {
    let text = document();
    let rows = text.lines().skip_while(|line| !line.starts_with("| metric |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, unit, fields, metric_of, function, stability, meaning] = cells[..] else {
            panic!("{line}")
        };
        assert!(!meaning.is_empty(), "{line}");
        (name.trim_matches('`').to_owned(), [unit, fields, metric_of, function, stability].map(str::to_owned))
    });
    rows.collect()
}

/// The functions in whose source a metric is named.
fn senders() -> BTreeMap<String, BTreeSet<String>> {
    let mut senders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for function in std::fs::read_dir(Path::new(ROOT).join("functions")).unwrap() {
        let function = function.unwrap();
        let Ok(files) = std::fs::read_dir(function.path().join("src")) else { continue };
        let files = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        let source = files.collect::<String>();
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
    let reported: BTreeSet<&str> = table.keys().map(String::as_str).collect();
    let sent: BTreeSet<&str> = senders.keys().map(String::as_str).collect();
    assert_eq!(reported, known, "docs/metrics.md, and the code");
    assert_eq!(sent, known, "what functions send, and what there is");
    for metric in Metric::ALL {
        let [unit, fields, metric_of, function, stability] = &table[metric.name()];
        assert_eq!(unit, metric.unit().name(), "{metric:?}");
        assert_eq!(*fields, metric.fields().join(", "), "{metric:?}");
        let reported = match metric.reach() {
            Reach::Log => "",
            Reach::Stack => "stack",
            Reach::Project => "stack, project",
        };
        assert_eq!(metric_of, reported, "{metric:?}");
        let sent_by: Vec<&str> = senders[metric.name()].iter().map(String::as_str).collect();
        assert_eq!(sent_by.join(", "), *function, "{metric:?}");
        assert!(matches!(stability.as_str(), "stable" | "may change"), "{metric:?}: {stability}");
    }
}

thread_local! {
    /// Whether the scenario of this thread is logged.
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
    /// All lines so far.
    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

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
    let lines = stoker_lambda::lines(move || writer.clone());
    // For the whole process, as tracing remembers of each line whether anybody wants it, whichever test comes
    // by it first.
    let lines = lines.with_filter(dynamic_filter_fn(|_, _| IS_LOGGED.get()));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).unwrap();
    IS_LOGGED.set(true);

    let mut env = TestEnvironment::new();
    let other = env.commit([9, 9, 9, 9]);
    env.push("feature-b", &[&other]).await;
    env.build().await;
    let a = env.commit([1, 1, 1, 1]);
    env.push("feature-a", &[&a]).await;
    env.build().await;
    let merge = env.commit([1, 1, 1, 2]);
    env.pull_request("merged", "feature-a", &a, Some(&merge)).await;
    env.push("main", &[&a, &merge]).await;
    env.build().await;
    env.delete_branch("feature-a").await;
    env.wait(SignedDuration::from_hours(24 * 40));
    env.settle().await;
    env.night().await;

    let scenario = log.about(a.as_str());
    let step = |message: &str, at: &str, value: &str| {
        let is_step = |(reported, line): &(String, Value)| {
            reported == message && line.pointer(at).and_then(Value::as_str) == Some(value)
        };
        assert!(scenario.iter().any(is_step), "{message} with {value} at {at}: {scenario:#?}");
    };
    step("accepted", "/span/git.branch", "feature-a");
    step("build started", "/line", "branch/feature-a");
    step("the cache hit rate of the build", "/git.commit", a.as_str());
    step("accepted", "/span/event.kind", "PullRequestMerged");
    step("accepted", "/span/git.branch", "main");
    step("line updated", "/line", "main");
    step("line updated", "/git.merged", a.as_str());
    step("build started", "/line", "main");
    step("main wants no warming", "/project.name", "app");
    step("planned", "/cache.tags", &format!("app.commit.{a}"));
    let builds = env.account.builds.borrow();
    let build = builds.iter().find(|build| build.resolved_commit.as_deref() == Some(a.as_str()));
    step("build started", "/build.id", &build.expect("the build").id);
    let told_of_other = scenario.iter().any(|(_, line)| line.to_string().contains(other.as_str()));
    assert!(!told_of_other, "another push's scenario is its own");
    // Whoever has the forge's delivery finds the commit beside it.
    let accepted = scenario.iter().filter(|(message, _)| message == "accepted");
    assert!(accepted.clone().count() >= 3);
    for (_, line) in accepted {
        assert!(line.get("webhook.delivery").is_some(), "{line}");
    }
    // What this run has written has what the runbook's queries ask of it.
    let lines = log.lines();
    let mut seen = BTreeSet::new();
    for query in queries() {
        let is_asked = |line: &&Value| line["message"].as_str().is_some_and(|message| query.finds(message));
        let of_it: Vec<&Value> = lines.iter().filter(is_asked).collect();
        if query.message.is_none() || of_it.is_empty() {
            continue;
        }
        for field in &query.fields {
            let is_there = |line: &&&Value| match field.strip_prefix("span.") {
                Some(field) => line["span"].get(field).is_some(),
                None => line.get(field).is_some(),
            };
            assert!(of_it.iter().any(|line| is_there(&line)), "{query:?}: no {field} in {of_it:#?}");
        }
        seen.extend(query.message);
    }
    assert!(seen.len() >= 3, "{seen:?}");
}

/// A query of `docs/operate.md`.
#[derive(Debug)]
struct Query {
    /// The function whose log it asks.
    function: String,
    /// The message that it asks for.
    message: Option<String>,
    /// Whether that is the whole message.
    is_whole: bool,
    /// The fields that it names, but for those that CloudWatch and Lambda make.
    fields: BTreeSet<String>,
}

impl Query {
    fn finds(&self, message: &str) -> bool {
        let wanted = self.message.as_deref().unwrap_or_default();
        if self.is_whole { message == wanted } else { message.contains(wanted) }
    }
}

/// All queries of `docs/operate.md`.
fn queries() -> Vec<Query> {
    const LANGUAGE: [&str; 16] = [
        "filter", "fields", "sort", "desc", "asc", "stats", "by", "like", "in", "or", "limit", "sum", "max",
        "avg", "count", "bin",
    ];
    let text = std::fs::read_to_string(Path::new(ROOT).join("docs/operate.md")).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("insights ") && line.ends_with('\''));
    let queries = lines.map(|line| {
        let (call, query) = line.split_once(" '").unwrap();
        // What is between quotation marks or slashes is no field.
        let mut quoted = Vec::new();
        let mut rest = query.trim_end_matches('\'').to_owned();
        while let Some(start) = rest.find(['"', '/']) {
            let mark = char::from(rest.as_bytes()[start]);
            let Some(length) = rest[start + 1..].find(mark) else { break };
            quoted
                .push((rest[..start].trim_end().to_owned(), rest[start + 1..start + 1 + length].to_owned()));
            rest.replace_range(start..=start + 1 + length, " ");
        }
        let message = quoted.iter().find_map(|(before, text)| {
            let is_whole = before.ends_with(" message =");
            (is_whole || before.ends_with(" message like")).then(|| (is_whole, text.clone()))
        });
        let words = rest.split(|c: char| !(c.is_ascii_alphanumeric() || "._@".contains(c)));
        let is_field =
            |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase()) && !LANGUAGE.contains(word);
        Query {
            function: call.split_whitespace().nth(1).unwrap().to_owned(),
            is_whole: message.as_ref().is_some_and(|(is_whole, _)| *is_whole),
            message: message.map(|(_, text)| text),
            fields: words.filter(is_field).map(str::to_owned).collect(),
        }
    });
    queries.collect()
}

/// The lines that a function's source writes: their fields, and their messages.
fn written(function: &str) -> Vec<(BTreeSet<String>, String)> {
    let mut files = vec![Path::new(ROOT).join("functions").join(function).join("src")];
    let mut sources = Vec::new();
    files.push(Path::new(ROOT).join("shared/core/src"));
    files.push(Path::new(ROOT).join("shared/lambda/src"));
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(std::fs::read_to_string(path).unwrap());
        }
    }
    let lines = sources.iter().flat_map(|source| source.split("tracing::").skip(1)).filter_map(|line| {
        let (level, rest) = line.split_once("!(")?;
        ["debug", "info", "warn", "error"].contains(&level).then_some(())?;
        let end = rest.find(");").unwrap_or(rest.len());
        let (fields, message) = rest[..end].rsplit_once('"')?.0.rsplit_once('"')?;
        let words = fields.split(|c: char| !(c.is_ascii_alphanumeric() || "._".contains(c)));
        Some((words.map(str::to_owned).collect(), message.to_owned()))
    });
    lines.collect()
}

#[test]
fn the_runbooks_queries_name_fields_that_their_lines_have() {
    // On every line.
    let everywhere = ["message", "level", "timestamp"];
    let span = std::fs::read_to_string(Path::new(ROOT).join("shared/core/src/event.rs")).unwrap();
    let (mut asked, mut messages) = (0, 0);
    for query in queries() {
        let lines = written(&query.function);
        let of_it: Vec<_> = match &query.message {
            Some(_) => lines.iter().filter(|(_, message)| query.finds(message)).collect(),
            None => lines.iter().collect(),
        };
        assert!(!of_it.is_empty(), "{query:?}: nothing writes that");
        messages += usize::from(query.message.is_some());
        for field in query.fields.iter().filter(|field| !everywhere.contains(&field.as_str())) {
            asked += 1;
            let is_written = match field.strip_prefix("span.") {
                Some(field) => span.contains(&format!("{field} = ")),
                None => of_it.iter().any(|(fields, _)| fields.contains(field)),
            };
            assert!(is_written, "{query:?}: its lines have no {field}");
        }
    }
    assert!(asked > 20 && messages > 7, "{asked} fields, {messages} messages");
}
