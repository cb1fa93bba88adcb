//! A buildspec: YAML, or JSON, which CodeBuild takes for it.

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::Value;

/// The phases, in the order in which CodeBuild runs them.
const PHASES: [&str; 4] = ["install", "pre_build", "build", "post_build"];
/// YAML is copied wherever an alias names it: with so few it cannot grow without end.
const MOST_ALIASES: usize = 12;
/// Columns of indentation: blocks nest by it, and the parser goes down by recursion.
const DEEPEST: usize = 100;

/// What is read of a buildspec.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Whether its commands are bash's. CodeBuild runs them with `sh` otherwise.
    pub(crate) is_bash: bool,
    /// Whether it says how a batch is built.
    pub(crate) has_batch: bool,
    /// The variables that a build reports.
    pub(crate) exported: Vec<String>,
    /// Variables that it sets.
    pub(crate) variables: Vec<(String, String)>,
    /// The commands of all phases, in their order. A single one may have many lines.
    pub(crate) commands: Vec<String>,
    /// Whether a command is none that CodeBuild takes, such as `echo a: b` without quotes, which is a mapping.
    pub(crate) has_other_commands: bool,
}

/// All of a buildspec; `None` for what is none.
pub(crate) fn document(text: &str) -> Option<Value> {
    if text.trim_start().starts_with('{') {
        serde_json::from_str(text).ok().or_else(|| yaml(text))
    } else {
        yaml(text)
    }
}

/// Reads a buildspec; `None` for what is none.
pub(crate) fn read(text: &str) -> Option<Spec> {
    let document = document(text)?;
    let fields = document.as_object()?;
    let mut spec = Spec { has_batch: fields.contains_key("batch"), ..Spec::default() };
    let env = &document["env"];
    spec.is_bash = env["shell"].as_str().is_some_and(|shell| shell.rsplit('/').next() == Some("bash"));
    let exported = env["exported-variables"].as_array().into_iter().flatten();
    spec.exported = exported.filter_map(Value::as_str).map(str::to_owned).collect();
    let variables = env["variables"].as_object().into_iter().flatten();
    let said = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    spec.variables = variables.map(|(name, value)| (name.clone(), said(value))).collect();
    for phase in PHASES {
        for list in ["commands", "finally"] {
            let commands = &document["phases"][phase][list];
            let commands = commands.as_array().map_or_else(|| std::slice::from_ref(commands), Vec::as_slice);
            for command in commands.iter().filter(|command| !command.is_null()) {
                match command.as_str() {
                    Some(command) => spec.commands.push(command.to_owned()),
                    None => spec.has_other_commands |= command.is_object() || command.is_array(),
                }
            }
        }
    }
    Some(spec)
}

fn yaml(text: &str) -> Option<Value> {
    let starts_alias = |pair: &[u8]| matches!(pair, [b'*', next] if next.is_ascii_alphanumeric());
    let aliases = text.as_bytes().windows(2).filter(|pair| starts_alias(pair)).count();
    let indent = |line: &str| line.chars().take_while(|c| " -?:".contains(*c)).count();
    let is_anchored = text.contains('&') && aliases > MOST_ALIASES;
    if is_anchored || text.lines().any(|line| indent(line) > DEEPEST && !is_continued(line)) {
        return None;
    }
    let documents = Yaml::load_from_str(text).ok()?;
    documents.first().map(value)
}

/// A line of a script may be indented as it likes: only what could open a block counts.
fn is_continued(line: &str) -> bool {
    let line = line.trim_start();
    !line.starts_with(['-', '?', ':']) && !line.contains(": ") && !line.trim_end().ends_with(':')
}

fn value(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Mapping(fields) => {
            let fields = fields.iter().filter_map(|(name, of)| Some((name.as_str()?.to_owned(), value(of))));
            fields.collect()
        }
        Yaml::Sequence(items) => items.iter().map(value).collect(),
        Yaml::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        Yaml::Value(Scalar::Boolean(truth)) => Value::from(*truth),
        Yaml::Value(Scalar::Integer(number)) => Value::from(*number),
        Yaml::Value(Scalar::FloatingPoint(number)) => Value::from(number.into_inner()),
        Yaml::Tagged(_, inner) => value(inner),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(text: &str) -> Vec<String> {
        read(text).unwrap_or_else(|| panic!("{text} is not read")).commands
    }

    #[test]
    fn commands_are_those_of_the_phases_in_their_order() {
        let spec = "version: 0.2\nphases:\n  build:\n    commands: [b]\n    finally: \
             [c]\n  install:\n    commands: [a]\n";
        assert_eq!(commands(spec), ["a", "b", "c"]);
        let folded = "phases:\n  build:\n    commands:\n      - >-\n        docker buildx build\n        $F \
             .\n      - |\n        a\n        b\n";
        assert_eq!(commands(folded), ["docker buildx build $F .", "a\nb\n"]);
        let escaped = "phases: { build: { commands: [\"a \\\n  b\", \"c\\nd\", \"e \\\"$F\\\"\"] } }";
        assert_eq!(commands(escaped), ["a b", "c\nd", "e \"$F\""]);
        let json = r#"{"version":"0.2","phases":{"build":{"commands":["a\nb","c \"$F\" \u0026\u0026 d"]}}}"#;
        assert_eq!(commands(json), ["a\nb", "c \"$F\" && d"]);
        assert_eq!(commands("phases: { build: { commands: a } }"), ["a"]);
        let anchored = "x: &a [b]\nphases: { build: { commands: *a } }";
        assert_eq!(commands(anchored), ["b"]);
    }

    #[test]
    fn what_else_counts_is_read() {
        let spec = read(
            "env: { shell: /bin/bash, exported-variables: [A], variables: { B: 1, C: d } }\nbatch: {}\n",
        )
        .unwrap();
        assert!(spec.is_bash && spec.has_batch);
        assert_eq!(spec.exported, ["A"]);
        assert_eq!(spec.variables, [("B".to_owned(), "1".to_owned()), ("C".to_owned(), "d".to_owned())]);
        let other = read("phases: { build: { commands: [echo a: b] } }").unwrap();
        assert!(other.has_other_commands && !other.is_bash && !other.has_batch);
    }

    #[test]
    fn attack_a_document_that_nobody_would_write_is_not_read() {
        let level = |n: usize| format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1);
        let bomb: String = (1..20).map(level).collect();
        let block = |n: usize| format!("{}a:\n", " ".repeat(n));
        let deep: String = (0..5000).map(block).collect();
        for text in
            [format!("a0: &a0 [x]\n{bomb}"), deep, "[".repeat(5000), "{".repeat(5000), "a: b: c".to_owned()]
        {
            assert_eq!(read(&text), None, "{}", &text[..40.min(text.len())]);
        }
        for text in ["", "{", "a", "[a]", "\u{1b}", "phases: [a]", "phases: { build: a }"] {
            let _ = read(text);
        }
    }
}
