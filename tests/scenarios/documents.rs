//! Every block of code in the documentation is checked by something, and what nothing else reads is read
//! here. Commands are run by `cargo xtask test`, in the deployed stack (`xtask/src/commands`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use serde_json::Value;

use crate::snippets::{lines, yaml};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What runs commands.
const COMMANDS: &str = "xtask/src/commands/read.rs";
/// What this page checks.
const HERE: &str = "tests/scenarios/documents.rs";

/// The blocks that there are: of which document, in which language, how many, and what checks them.
const BLOCKS: &[(&str, &str, usize, &str)] = &[
    ("ARCHITECTURE.md", "mermaid", 1, HERE),
    ("README.md", "console", 2, COMMANDS),
    ("README.md", "mermaid", 1, HERE),
    ("README.md", "text", 1, HERE),
    ("README.md", "yaml", 1, HERE),
    ("cli/README.md", "console", 9, COMMANDS),
    ("cli/README.md", "json", 1, HERE),
    ("docs/ci.md", "json", 1, "tests/scenarios/snippets.rs"),
    ("docs/ci.md", "hcl", 1, "tests/scenarios/snippets.rs"),
    ("docs/ci.md", "sh", 5, "tests/scenarios/snippets.rs"),
    ("docs/deploy.md", "sh", 1, COMMANDS),
    ("docs/deploy.md", "yaml", 1, HERE),
    ("docs/forecast.md", "console", 3, COMMANDS),
    ("docs/forecast.md", "text", 3, HERE),
    ("docs/metrics.md", "", 1, "tests/scenarios/metrics.rs"),
    ("docs/mounts.md", "sh", 1, "cli/src/doctor/buildspec.rs"),
    ("docs/mounts.md", "yaml", 1, "tests/scenarios/mounts.rs"),
    ("docs/onboard.md", "console", 1, COMMANDS),
    ("docs/operate.md", "sh", 12, COMMANDS),
    ("docs/policy.md", "yaml", 1, "shared/core/src/policy/tests.rs"),
    ("docs/why.md", "console", 1, COMMANDS),
    ("events/README.md", "indented", 1, HERE),
    ("events/README.md", "yaml", 1, "tests/scenarios/table.rs"),
];

/// The most words that `README.md` may have, that all documents may have outside of code, and the most characters of
/// a line.
const MOST: (usize, usize, usize) = (900, 20_000, 120);

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// The documents, by their paths.
fn documents() -> Vec<String> {
    let pages = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(Path::new(ROOT).join(dir)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let pages =
            names.filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "md"));
        pages.map(|name| format!("{dir}/{name}").trim_start_matches("./").to_owned()).collect()
    };
    [".", "cli", "docs", "events", "functions"].into_iter().flat_map(pages).collect()
}

/// The blocks of a document, each with its language.
fn blocks(document: &str) -> Vec<(String, String)> {
    let (text, mut found, mut open) = (read(document), Vec::new(), None);
    for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
        match (event, &mut open) {
            (Event::Start(Tag::CodeBlock(kind)), _) => {
                let language = match kind {
                    CodeBlockKind::Fenced(language) => language.into_string(),
                    CodeBlockKind::Indented => "indented".to_owned(),
                };
                open = Some((language, String::new()));
            }
            (Event::Text(part), Some((_, content))) => content.push_str(&part),
            (Event::End(TagEnd::CodeBlock), _) => found.extend(open.take()),
            _ => {}
        }
    }
    found
}

/// The blocks of a document in a language.
fn in_language(document: &str, language: &str) -> Vec<String> {
    let of_it = blocks(document).into_iter().filter(|(of, _)| of == language);
    of_it.map(|(_, content)| content).collect()
}

#[test]
fn something_checks_every_block() {
    let mut found: BTreeMap<(String, String), usize> = BTreeMap::new();
    for document in documents() {
        for (language, _) in blocks(&document) {
            *found.entry((document.clone(), language)).or_default() += 1;
        }
    }
    let known = BLOCKS
        .iter()
        .map(|(document, language, number, _)| (((*document).to_owned(), (*language).to_owned()), *number));
    assert_eq!(found, known.collect(), "who checks a block that is new? then say so in BLOCKS");
    for (document, _, _, checker) in BLOCKS {
        let named = document.strip_prefix("docs/").filter(|_| *checker == COMMANDS);
        let is_named = if named.is_some() {
            read(checker).contains("docs/{name}")
        } else {
            read(checker).contains(document)
        };
        assert!(is_named, "{checker} does not read {document}");
    }
}

/// A document's words outside of its blocks of code, which something else checks, and all of them. The bars of tables
/// are none.
fn words(document: &str) -> (usize, usize) {
    let (mut read_words, mut all, mut in_block) = (0, 0, false);
    for line in read(document).lines() {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        let words = line.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
        all += words;
        read_words += if in_block || is_fence { 0 } else { words };
    }
    (read_words, all)
}

#[test]
fn the_documents_keep_to_their_budgets() {
    let documents = documents();
    let (mut read_words, mut all) = (0, 0);
    for document in &documents {
        let (of_it, with_code) = words(document);
        println!("{of_it:6} words, with code {with_code:6}, in {document}");
        read_words += of_it;
        all += with_code;
    }
    println!("{read_words:6} words, with code {all:6}, in all");
    let (readme, most, length) = MOST;
    assert!(words("README.md").1 <= readme, "README.md is too long");
    assert!(read_words <= most, "{read_words} words: cut as many as were added");
    for document in &documents {
        let mut in_block = false;
        for (nth, line) in read(document).lines().enumerate() {
            in_block ^= line.trim_start().starts_with("```");
            // A row of a table cannot be broken, nor a command that is to be pasted, nor a link.
            let may_be_long = in_block || line.starts_with('|') || !line.trim().contains(' ');
            let characters = line.chars().count();
            assert!(may_be_long || characters <= length, "{document}:{}: {characters} characters", nth + 1);
        }
    }
}

/// A heading's name in a link, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut checked = 0;
    for document in documents() {
        let text = read(&document);
        for (event, _) in Parser::new_ext(&text, Options::ENABLE_TABLES).into_offset_iter() {
            let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event else {
                continue;
            };
            if dest_url.starts_with("https://") {
                continue;
            }
            let (path, heading) = dest_url.split_once('#').unwrap_or((&dest_url, ""));
            let folder = Path::new(&document).parent().unwrap();
            let target = if path.is_empty() { Path::new(&document).to_owned() } else { folder.join(path) };
            let target = Path::new(ROOT).join(target);
            assert!(target.exists(), "{document}: {dest_url}");
            if !heading.is_empty() {
                let page = fs::read_to_string(target).unwrap();
                let mut headings = page.lines().filter(|line| line.starts_with('#'));
                let is_there = headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading);
                assert!(is_there, "{document}: {dest_url}");
            }
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked} links");
}

#[test]
fn the_forecasts_tables_have_the_strategies_that_there_are() {
    let source = read("cli/src/forecast/strategy.rs");
    let names = source.split("Self::").filter_map(|rest| rest.split_once(" => \"")?.1.split_once('"'));
    let names: Vec<&str> = names.map(|(name, _)| name).collect();
    for table in in_language("docs/forecast.md", "text") {
        let rows: Vec<&str> = table.lines().skip(1).map(|row| row[..29].trim_end()).collect();
        let is_named = |row: &&str| names.iter().any(|name| row.starts_with(name));
        assert!(rows.len() == 6 && rows.iter().all(is_named), "{rows:?}: {names:?}");
    }
}

#[test]
fn the_readmes_buildspecs_build_with_the_flags_and_without() {
    let specs = [in_language("README.md", "yaml"), in_language("docs/deploy.md", "yaml")].concat();
    assert_eq!(specs.len(), 2);
    for spec in &specs {
        let spec = yaml(spec);
        assert_eq!(spec["version"], "0.2");
        let phases = spec["phases"].as_object().unwrap();
        // In the order in which CodeBuild has them.
        let names = ["install", "pre_build", "build", "post_build"];
        assert!(phases.keys().all(|phase| names.contains(&phase.as_str())), "{phases:?}");
        let script: String = names
            .iter()
            .filter_map(|phase| phases.get(*phase))
            .map(|phase| lines(&phase["commands"]))
            .collect();
        let makes_builder = script.contains("docker buildx create");
        assert_eq!(makes_builder, script.lines().count() == 2);
        let given = [
            ("STOKER_CACHE_FLAGS", "--cache-from type=registry,ref=a --cache-to type=registry,ref=b"),
            ("STOKER_BUILDER_FLAGS", "--driver docker-container --driver-opt image=a.b/c:v1"),
        ];
        let (build, create) = ("docker buildx build -t app --push .", "docker buildx create --use");
        let flags = given.map(|(_, flags)| flags);
        let with_flags = [
            format!("{create} {}", flags[1]),
            build.replacen("build -t", &format!("build {} -t", flags[0]), 1),
        ];
        let without = [create.to_owned(), build.to_owned()];
        for shell in ["dash", "bash"] {
            for (given, expected) in [(&given[..], &with_flags), (&[], &without)] {
                let script = format!("docker() {{ echo docker \"$@\"; }}\n{script}");
                let mut command = Command::new(shell);
                command
                    .args(["-e", "-c", &script])
                    .env_clear()
                    .envs(given.iter().copied())
                    .env("IMAGE", "app");
                let output = command.output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let ran = String::from_utf8(output.stdout).unwrap();
                let expected = &expected[usize::from(!makes_builder)..];
                assert_eq!(ran.lines().collect::<Vec<_>>(), expected, "{shell}");
            }
        }
    }
}

#[test]
fn the_readmes_report_is_what_the_demo_prints() {
    let [reported] = &in_language("README.md", "text")[..] else { panic!("one report") };
    let report = read("xtask/src/demo/report.rs");
    let columns = ["#", "line", "why it started", "cache from", "steps reused", "seconds"];
    let header: Vec<&str> = reported.lines().next().unwrap().split("  ").map(str::trim).collect();
    let header: Vec<&str> = header.into_iter().filter(|column| !column.is_empty()).collect();
    assert_eq!(header, columns);
    let quoted: Vec<String> = columns.iter().map(|column| format!("\"{column}\"")).collect();
    assert!(report.contains(&quoted.join(", ")), "the demo's columns are others");
    for line in reported.lines().filter(|line| line.ends_with(" s") || line.ends_with("registry")) {
        let label = line.trim().split("  ").next().unwrap();
        assert!(report.contains(label), "the demo says nothing of {label:?}");
    }
    // A check may have several parts, of one letter.
    let scenario = read("xtask/src/demo/scenario.rs");
    let letters = scenario.split("report.check(").skip(1).map(|call| call.split('"').nth(1).unwrap());
    let checks = letters.collect::<BTreeSet<_>>().len();
    assert!(
        reported.contains(&format!("{checks} of {checks} checks hold")),
        "the scenario has {checks} checks"
    );
}

#[test]
fn the_readmes_picture_names_functions_that_there_are() {
    let [picture] = &in_language("README.md", "mermaid")[..] else { panic!("one picture") };
    // Functions are in plain boxes.
    let boxes = picture.split_whitespace().filter_map(|word| word.split_once("[\"")?.1.strip_suffix("\"]"));
    let names: BTreeSet<&str> = boxes.collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        assert!(Path::new(ROOT).join("functions").join(name).is_dir(), "there is no {name}");
    }
}

#[test]
fn the_architectures_picture_has_every_function() {
    let [picture] = &in_language("ARCHITECTURE.md", "mermaid")[..] else { panic!("one picture") };
    for function in fs::read_dir(Path::new(ROOT).join("functions")).unwrap() {
        let function = function.unwrap();
        if function.path().is_dir() {
            let name = function.file_name().into_string().unwrap();
            assert!(picture.contains(&format!("[{name}]")), "{name} is not in the picture");
        }
    }
    // What an arrow begins or ends at is drawn with its words somewhere.
    let opened = |name: &str| ["[", "(", "{"].iter().any(|shape| picture.contains(&format!("{name}{shape}")));
    let mut named = BTreeSet::new();
    for line in picture.lines().skip(1) {
        let words = line.split(|c: char| !c.is_ascii_alphanumeric());
        named.extend(words.filter(|word| {
            !word.is_empty()
                && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
                && !["CI", "FIFO"].contains(word)
        }));
    }
    for name in named {
        assert!(opened(name), "what is {name}?");
    }
}

#[test]
fn what_doctor_may_call_is_what_its_code_names() {
    let [policy] = &in_language("cli/README.md", "json")[..] else { panic!("one policy") };
    let policy: Value = serde_json::from_str(policy).unwrap();
    let [statement] = &policy["Statement"].as_array().unwrap()[..] else { panic!("one statement") };
    assert_eq!((&statement["Effect"], &statement["Resource"]), (&Value::from("Allow"), &Value::from("*")));
    let sources = |dir: &str| -> String {
        let files = fs::read_dir(Path::new(ROOT).join(dir)).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| file.is_file()).map(|file| fs::read_to_string(file).unwrap()).collect()
    };
    let setup = sources("shared/aws-setup/src");
    let called = sources("cli/src/doctor") + &sources("cli/src") + &sources("shared/aws/src") + &setup;
    let allowed: BTreeSet<&str> =
        statement["Action"].as_array().unwrap().iter().map(|action| action.as_str().unwrap()).collect();
    // Each function of the ports by its name, with its text.
    let functions: BTreeMap<&str, &str> =
        setup.split(" fn ").skip(1).filter_map(|text| Some((text.split_once(['(', '<'])?.0, text))).collect();
    let after = |text: &str, what: &str| -> Vec<String> {
        let parts = text.split(what).skip(1);
        parts.filter_map(|part| part.split(['(', '"', '\n']).next()).map(str::to_owned).collect()
    };
    let mut open = after(&sources("cli/src/doctor"), "setup.");
    assert!(open.len() > 8, "{open:?}");
    let mut seen = BTreeSet::new();
    while let Some(name) = open.pop() {
        let Some(text) = functions.get(name.as_str()).filter(|_| seen.insert(name.clone())) else { continue };
        open.extend(after(text, "self."));
        for action in after(text, "\"").iter().filter(|text| {
            text.split_once(':').is_some_and(|(service, _)| service.chars().all(|c| c.is_ascii_lowercase()))
        }) {
            assert!(
                allowed.contains(action.as_str()),
                "doctor calls {action}, and the page does not name it"
            );
        }
    }
    for action in allowed {
        let (_, call) = action.split_once(':').unwrap();
        // As the SDK calls it.
        let snake: String = call
            .chars()
            .flat_map(|c| if c.is_ascii_uppercase() { vec!['_', c.to_ascii_lowercase()] } else { vec![c] })
            .collect();
        let is_called = called.contains(action) || called.contains(&format!(".{}(", &snake[1..]));
        assert!(is_called, "doctor calls no {action}");
    }
}

#[test]
fn the_events_page_sends_an_event_that_is_there_to_a_function_that_is() {
    let [command] = &in_language("events/README.md", "indented")[..] else { panic!("one command") };
    let words: Vec<&str> = command.split_whitespace().collect();
    let ["sam", "local", "invoke", function, "--event", event] = words[..] else { panic!("{words:?}") };
    assert!(read("template.yaml").contains(&format!("\n  {function}:\n    Type: AWS::Serverless::Function")));
    assert!(Path::new(ROOT).join(event).is_file(), "there is no {event}");
}

#[test]
fn every_belief_of_aws_has_a_verdict() {
    let page = read("docs/assumptions.md");
    let (of_aws, _) = page.split_once("\n# ").unwrap();
    let rows: Vec<&str> = of_aws.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 40, "{}", rows.len());
    for row in rows {
        let verdict = row.split(" | ").nth(1).unwrap();
        let word = verdict.split([' ', ':', ';', ',']).next().unwrap();
        assert!(["confirmed", "unknown", "refuted"].contains(&word), "{row}");
    }
}

/// The Rust sources below a folder, one behind the other.
fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_attack_of_the_threat_model_is_a_test_and_every_such_test_is_in_it() {
    let mut text = String::new();
    for dir in ["cli", "functions", "local", "shared", "tests"] {
        sources(&Path::new(ROOT).join(dir), &mut text);
    }
    let names = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('(').map(|(name, _)| name));
    let tests: BTreeSet<&str> = names.collect();
    let page = read("docs/threat-model.md");
    let table = page.split_once("\n## Attacks\n").unwrap().1.split_once("\n## What remains\n").unwrap().0;
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let is_name =
        |word: &&str| word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let mut named = BTreeSet::new();
    for row in rows {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let own: Vec<&str> = last.split('`').filter(is_name).collect();
        assert!(!own.is_empty() || last.contains("cargo xtask test"), "no test in: {row}");
        named.extend(own);
    }
    let missing: Vec<_> = named.iter().filter(|name| !tests.contains(*name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
    let untold: Vec<_> =
        tests.iter().filter(|name| name.starts_with("attack_") && !named.contains(*name)).collect();
    assert!(untold.is_empty(), "attacks without a row: {untold:?}");
}
