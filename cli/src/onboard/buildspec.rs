//! The patch of a buildspec: the fewest words that give its build Stoker's caches, and everything else to the byte as
//! it was.
//!
//! A patch is tried and then held against what it must be: apart from what was put in, the document is the one before,
//! and the commands, read as the shell reads them, now give the build the caches. Where Stoker did not start a build,
//! or no builder can be made, the patched commands expand to the very words that stood there before.

use std::ops::Range;

use serde_json::Value;
use stoker_core::build_inputs::variable;
use stoker_core::policy::Project;

use crate::doctor::buildspec as reader;
use crate::doctor::checkout::LONGEST;
use crate::doctor::commands::{Build, Chosen, Done, Tool, values};
use crate::doctor::finding::State;
use crate::doctor::shell::{self, base_name};
use crate::doctor::spec::{self, Spec};
use crate::text::plain;

/// Flags of `docker build` that mean the same to a builder of its own; all others keep a buildspec from being patched.
const FLAGS: [&str; 23] = [
    "--add-host",
    "--build-arg",
    "--build-context",
    "--cache-from",
    "--cache-to",
    "--file",
    "--iidfile",
    "--label",
    "--load",
    "--metadata-file",
    "--no-cache",
    "--output",
    "--platform",
    "--progress",
    "--provenance",
    "--pull",
    "--push",
    "--quiet",
    "--sbom",
    "--secret",
    "--ssh",
    "--tag",
    "--target",
];
/// Those of them that have no value.
const SWITCHES: [&str; 5] = ["--load", "--no-cache", "--pull", "--push", "--quiet"];
/// What ends where the image is: nothing has to be loaded into Docker then.
const OUTPUTS: [&str; 4] = ["--load", "--push", "--output", "-o"];
/// What puts images where only Docker's own builder finds them.
const LOCAL_IMAGES: [&str; 3] = ["load", "import", "commit"];

/// By which promotion learns of a build that Stoker did not start (docs/ci.md).
const EXPORTED: [&str; 5] =
    ["STOKER_LINE", "STOKER_COMMIT", "STOKER_EXPORT", "STOKER_CACHE_FROM", "STOKER_JOINED"];
/// The function's name in the documentation.
const SHOWN_FUNCTION: &str = "stoker-resolve-cache";

const BUILDX: &str = " ${STOKER_CACHE_FLAGS:+buildx}";
const AND_LOAD: &str = " ${STOKER_CACHE_FLAGS:+--load $STOKER_CACHE_FLAGS}";
const LOAD: &str = " ${STOKER_CACHE_FLAGS:+--load}";
const CACHES: &str = " ${STOKER_CACHE_FLAGS-}";
const BUILDER: &str = "test -z \"${STOKER_CACHE_FLAGS-}\" || { docker buildx create --name stoker --bootstrap \
                       ${STOKER_BUILDER_FLAGS-} && docker buildx use stoker; } || STOKER_CACHE_FLAGS=";

/// A buildspec, patched; `Ok(None)` where it already gives its builds the caches. The errors are the reasons why it is
/// not patched, for people, each with what to do.
///
/// `registry` is the host with the caches, and `image` the one that the project builds in. Where something else starts
/// the builds, `asks` is the function that they ask for caches.
pub(crate) fn patch(
    text: &str,
    project: &Project,
    image: &str,
    registry: &str,
    asks: Option<&str>,
) -> Result<Option<String>, Vec<String>> {
    if text.len() > LONGEST {
        return Err(vec![
            "it is too long to be read: put Stoker's variables in by hand (docs/deploy.md)".to_owned(),
        ]);
    }
    let (Some(spec), Some(document)) = (spec::read(text), spec::document(text)) else {
        return Err(vec![
            "it is no YAML that can be read here: see in a build's log whether CodeBuild reads it".to_owned(),
        ]);
    };
    let done = Done::read(project, &spec);
    if text.contains("STOKER_") {
        let wrong = wrong(text, project, image);
        return if wrong.is_empty() { Ok(None) } else { Err(wrong) };
    }
    let reasons = refusals(&document, &spec, &done);
    let [build] = done.builds.as_slice() else { return Err(reasons) };
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let needs_builder = build.builder == Chosen::Docker;
    let mut before = Vec::new();
    let mut expected = document.clone();
    let mut text = text.to_owned();
    if let Some(function) = asks {
        text = with_exported(&text, &document).ok_or_else(|| {
            vec![
                "its `env` is not written line by line: add exported-variables by hand \
                 (docs/ci/codebuild.yml)"
                    .to_owned(),
            ]
        })?;
        expected["env"]["exported-variables"] = EXPORTED.into_iter().collect();
        before.push(question(function));
    }
    let text = text.as_str();
    if !logs_in(&spec, project) {
        before.push(format!(
            "test -z \"${{STOKER_CACHE_FLAGS-}}\" || aws ecr get-login-password | docker login --username AWS \
             --password-stdin \
             {registry} || STOKER_CACHE_FLAGS="
        ));
    }
    if needs_builder {
        before.push(BUILDER.to_owned());
    }
    let occurrences = occurrences(text, build);
    let tried = occurrences
        .iter()
        .filter_map(|place| Try::new(text, place, build, needs_builder)?.with(text, &before));
    let is_right = |tried: &Tried| {
        let after = spec::read(&tried.text).map(|spec| Done::read(project, &spec));
        let is_given = after.is_some_and(|after| is_given(&after, needs_builder));
        is_given && is_same(&expected, tried, &before) && wrong(&tried.text, project, image).is_empty()
    };
    match tried.into_iter().find(is_right) {
        Some(tried) => Ok(Some(tried.text)),
        None => Err(vec![
            "its build is written in a way that is not patched here: put Stoker's variables in by hand \
             (docs/deploy.md)"
                .to_owned(),
        ]),
    }
}

/// How a build that Stoker did not start asks for its caches: what docs/ci.md shows.
fn question(function: &str) -> String {
    let shown = spec::read(include_str!("../../../docs/ci/codebuild.yml")).unwrap_or_default();
    let asks =
        shown.commands.into_iter().find(|command| command.contains(SHOWN_FUNCTION)).unwrap_or_default();
    asks.replace(SHOWN_FUNCTION, function)
}

/// The text with the variables that a build reports; `None` where it says already which, or has no place for it.
fn with_exported(text: &str, document: &Value) -> Option<String> {
    let names = EXPORTED.join(", ");
    if !document["env"]["exported-variables"].is_null() {
        return None;
    }
    if text.trim_start().starts_with('{') {
        let names = Value::from(EXPORTED.to_vec());
        let start = text.find('{')? + 1;
        let env = format!("\"env\": {{\"exported-variables\": {names}}}, ");
        return document["env"]
            .is_null()
            .then(|| format!("{}{env}{}", &text[..start], text[start..].trim_start()));
    }
    let key = if document["env"].is_null() { "version:" } else { "env:" };
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let is_it = line.starts_with(key)
            && (key == "version:" || line[key.len()..].split('#').next()?.trim().is_empty());
        at += line.len();
        if !is_it || !line.ends_with('\n') {
            continue;
        }
        let next = text[at..].lines().find(|line| !line.trim().is_empty())?;
        let indent = &next[..next.len() - next.trim_start_matches(' ').len()];
        let put_in = match key {
            "env:" => format!("{indent}exported-variables: [{names}]\n"),
            _ => format!("env:\n  exported-variables: [{names}]\n"),
        };
        return Some(format!("{}{put_in}{}", &text[..at], &text[at..]));
    }
    None
}

/// What doctor says is wrong with a buildspec.
fn wrong(text: &str, project: &Project, image: &str) -> Vec<String> {
    let found = reader::check(project, Some(text), image, false, None);
    let wrong = found.into_iter().filter(|finding| finding.state == State::Wrong);
    wrong.map(|finding| format!("{}: {}", finding.found, finding.repair.unwrap_or_default())).collect()
}

/// Why a buildspec is not patched.
fn refusals(document: &Value, spec: &Spec, done: &Done) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut because = |why: &str| reasons.push(why.to_owned());
    let is_old = match &document["version"] {
        Value::String(version) => version != "0.2",
        Value::Number(version) => version.as_f64().is_none_or(|version| (version - 0.2).abs() > 1e-9),
        _ => true,
    };
    if is_old {
        because("its version is not 0.2, so each command has a shell of its own: write version: 0.2");
    }
    if spec.has_batch {
        because(
            "it has a `batch`, and Stoker starts single builds: name its images as `targets` in the policy, and \
             build all in one",
        );
    }
    if spec.has_other_commands {
        because("a command is no text to YAML, which CodeBuild refuses: put it in quotes");
    }
    if let Some(first) = &done.unread {
        because(&format!("a command cannot be read as shell: {}", plain(first)));
    }
    match done.builds.as_slice() {
        [] => because(
            "no `docker build` is in it: if a script builds, give that $STOKER_CACHE_FLAGS (docs/deploy.md)",
        ),
        [build] => refuse_build(build, spec, done, &mut because),
        builds => because(&format!(
            "it builds {} images: name each as one of `targets` in the policy, and give each its own flags \
             (docs/ci.md)",
            builds.len()
        )),
    }
    reasons
}

fn refuse_build(build: &Build, spec: &Spec, done: &Done, because: &mut impl FnMut(&str)) {
    let texts = build.command.texts();
    match build.tool {
        Tool::Compose => {
            because(
                "`docker compose build` takes no flags of caches: bake reads the same file \
                 (docs/ci.md, \"docker compose\")",
            );
            return;
        }
        Tool::Buildctl => {
            because(
                "`buildctl` has flags of its own: ${STOKER_CACHE_FROM:+--import-cache $STOKER_CACHE_FROM} and its like",
            );
            return;
        }
        Tool::Bake => {
            because(
                "bake takes $STOKER_BAKE, and its targets have to be in the policy (docs/ci.md, \"docker buildx \
                 bake\")",
            );
            return;
        }
        Tool::Docker | Tool::Buildx => {}
    }
    if values(&texts).iter().any(|(option, value)| *option == "--platform" && value.contains(',')) {
        because(
            "one command builds several platforms, which would share a cache: build each by its own \
             (docs/ci.md, \"Several platforms\")",
        );
    }
    match build.builder {
        Chosen::Elsewhere => because(
            "its builder is made elsewhere: see that it exports registry caches, and add $STOKER_CACHE_FLAGS",
        ),
        Chosen::Made(made) => {
            let driver = done.builders.get(made).and_then(|builder| builder.driver.as_deref());
            if !matches!(driver, None | Some("docker-container" | "kubernetes" | "remote" | "cloud")) {
                because(
                    "the builder that it makes exports no registry cache: use the driver docker-container",
                );
            }
        }
        Chosen::Docker if !done.builders.is_empty() => {
            because("it makes a builder and builds with another: give `docker buildx create` the flag --use");
        }
        Chosen::Docker => another_builder(build, spec, because),
    }
}

/// Whether another builder than Docker's own would build the same.
fn another_builder(build: &Build, spec: &Spec, because: &mut impl FnMut(&str)) {
    let sets = build.command.sets.iter().map(|(name, value)| (name.as_str(), value.text.as_str()));
    let variables = spec.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    if sets.chain(variables).any(|(name, value)| name == "DOCKER_BUILDKIT" && value == "0") {
        because("it switches BuildKit off (DOCKER_BUILDKIT=0), which alone has such caches");
    }
    if let Some(flag) = foreign(build) {
        because(&format!(
            "`{}` may mean something else to the builder that caches need: put Stoker's variables in by hand \
             (docs/deploy.md)",
            plain(&flag)
        ));
    }
    for command in spec.commands.iter().filter_map(|command| shell::commands(command)).flatten() {
        let texts = command.texts();
        let Some((name, rest)) = texts.split_first() else { continue };
        if base_name(name) != "docker" {
            if texts.iter().any(|word| word.contains("daemon.json") || word.contains("--registry-mirror")) {
                because(
                    "it sets up Docker's daemon, whose settings the builder that caches need does not have",
                );
            }
            continue;
        }
        if let Some(made) = rest.first().filter(|of| LOCAL_IMAGES.contains(of)) {
            because(&format!(
                "`docker {made}` makes an image that only Docker's own builder finds, should the Dockerfile be FROM it"
            ));
        }
    }
}

/// A word of a build that is not known to mean the same to every builder.
fn foreign(build: &Build) -> Option<String> {
    let texts = build.command.texts();
    let at = texts.iter().position(|word| *word == "build" || *word == "b")?;
    let mut positional = 0;
    let mut words = texts[at + 1..].iter().zip(&build.command.words[at + 1..]);
    while let Some((text, word)) = words.next() {
        let (flag, has_value) = text.split_once('=').map_or((*text, false), |(flag, _)| (flag, true));
        let is_expanded = word.variables.iter().any(|variable| !variable.is_quoted) && text.starts_with('$');
        if flag.starts_with("--") {
            if !FLAGS.contains(&flag) {
                return Some(flag.to_owned());
            }
            if !has_value && !SWITCHES.contains(&flag) {
                words.next()?;
            }
        } else if ["-t", "-f", "-o"].contains(text) {
            words.next()?;
        } else if text.starts_with('-') && *text != "-" && *text != "-q" {
            let is_joined = ["-t", "-f", "-o"].iter().any(|flag| text.starts_with(flag));
            if !is_joined {
                return Some((*text).to_owned());
            }
        } else {
            positional += 1;
            // One that is expanded may be the context, and more than one is flags.
            if positional > 1 || (is_expanded && words.len() > 0) {
                return Some((*text).to_owned());
            }
        }
    }
    None
}

/// Whether commands before the build log in to ECR.
fn logs_in(spec: &Spec, project: &Project) -> bool {
    let builds = |command: &String| {
        let one = Spec { commands: vec![command.clone()], ..Spec::default() };
        !Done::read(project, &one).builds.is_empty()
    };
    let until = spec.commands.iter().position(builds).map_or(spec.commands.len(), |at| at + 1);
    spec.commands[..until]
        .iter()
        .any(|command| command.contains("get-login") || command.contains("ecr-login"))
}

/// Where `docker build` or `docker buildx build` may stand in the text.
fn occurrences(text: &str, build: &Build) -> Vec<Place> {
    let mut found = Vec::new();
    for (start, _) in text.match_indices("docker") {
        let docker = start + "docker".len();
        // In JSON `\n` ends a line.
        let before = text[..start].strip_suffix("\\n").unwrap_or(&text[..start]);
        let is_word =
            before.len() < start || !before.ends_with(|c: char| c.is_alphanumeric() || "-_.$".contains(c));
        let Some(after) = word(text, docker).filter(|_| is_word) else { continue };
        let place = match (&text[after.clone()], build.tool) {
            ("build", Tool::Docker) => Place { docker, build: after.end },
            ("buildx", Tool::Buildx) => match word(text, after.end) {
                Some(next) if ["build", "b"].contains(&&text[next.clone()]) => {
                    Place { docker, build: next.end }
                }
                _ => continue,
            },
            _ => continue,
        };
        found.push(place);
    }
    found
}

/// The word that begins after white space on the same line.
fn word(text: &str, from: usize) -> Option<Range<usize>> {
    let rest = &text[from..];
    let spaces = rest.len() - rest.trim_start_matches([' ', '\t']).len();
    let start = from + spaces;
    let length = text[start..].find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len() - start);
    (spaces > 0 && length > 0).then_some(start..start + length)
}

/// Ends of the words `docker` and `build` of a command.
#[derive(Debug, Clone)]
struct Place {
    docker: usize,
    build: usize,
}

/// What is put into a text: at a place, instead of so many bytes.
struct Try {
    edits: Vec<(Range<usize>, String)>,
}

/// A text with what was put into it, and with what each of that stands for where Stoker is not.
struct Tried {
    text: String,
    put_in: Vec<(String, String)>,
}

impl Try {
    fn new(text: &str, place: &Place, build: &Build, needs_builder: bool) -> Option<Self> {
        let texts = build.command.texts();
        let has_output = texts
            .iter()
            .any(|word| OUTPUTS.iter().any(|flag| word == flag || word.starts_with(&format!("{flag}="))));
        let mut edits = Vec::new();
        if needs_builder && build.tool == Tool::Docker {
            edits.push((place.docker..place.docker, BUILDX.to_owned()));
        }
        let loads = needs_builder && !has_output;
        let by_hand = by_hand(text, place.build);
        match by_hand.as_slice() {
            [] => {
                let caches = if loads { AND_LOAD } else { CACHES };
                edits.push((place.build..place.build, caches.to_owned()));
            }
            // What stands there by hand counts where Stoker is not.
            [region] => {
                if loads {
                    edits.push((place.build..place.build, LOAD.to_owned()));
                }
                edits.push((region.clone(), format!("${{STOKER_CACHE_FLAGS:-{}}}", &text[region.clone()])));
            }
            _ => return None,
        }
        Some(Self { edits })
    }

    fn with(&self, text: &str, before: &[String]) -> Option<Tried> {
        let mut patched = text.to_owned();
        for (range, new) in self.edits.iter().rev() {
            patched.replace_range(range.clone(), new);
        }
        let first = self.edits.first()?.0.start;
        let patched = insert_before(&patched, first, before)?;
        let put_in = self.edits.iter().map(|(range, new)| (new.clone(), text[range.clone()].to_owned()));
        Some(Tried { text: patched, put_in: put_in.collect() })
    }
}

/// The flags of caches that are written by hand behind a place, those that only white space is between as one.
fn by_hand(text: &str, from: usize) -> Vec<Range<usize>> {
    let mut regions: Vec<Range<usize>> = Vec::new();
    let end = command_end(text, from);
    let mut at = from;
    while let Some(found) = text[at..end].find("--cache-").map(|found| at + found) {
        let Some(name) = ["--cache-from", "--cache-to"].iter().find(|name| text[found..].starts_with(**name))
        else {
            at = found + 1;
            continue;
        };
        let after = found + name.len();
        let value = match text.as_bytes().get(after) {
            Some(b'=') => after + 1,
            _ => after + (text[after..].len() - text[after..].trim_start_matches([' ', '\t']).len()),
        };
        let length = word_length(&text[value..end], is_in_string(text, value));
        let region = found..value + length;
        match regions.last_mut() {
            Some(last) if text[last.end..region.start].trim_matches([' ', '\t', '\n', '\\']).is_empty() => {
                last.end = region.end;
            }
            _ => regions.push(region.clone()),
        }
        at = region.end.max(found + 1);
    }
    regions
}

/// Where a word of a command ends, which may have parts in quotes. In a string of JSON or the like these are escaped,
/// and a quote without a backslash ends the string.
fn word_length(text: &str, is_in_string: bool) -> usize {
    let mut quote = None;
    let mut rest = text.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        let escaped = if c == '\\' { rest.peek().map(|(_, next)| *next) } else { None };
        match (c, escaped) {
            ('\\', Some(next)) => {
                if is_in_string && next == 'n' && quote.is_none() {
                    return at;
                }
                if is_in_string && next == '"' {
                    quote = if quote == Some('"') { None } else { quote.or(Some('"')) };
                }
                if next == '\n' && quote.is_none() {
                    return at;
                }
                rest.next();
            }
            ('"', _) if is_in_string => return at,
            ('"' | '\'', _) => quote = if quote == Some(c) { None } else { quote.or(Some(c)) },
            (' ' | '\t' | '\n', _) if quote.is_none() => return at,
            _ => {}
        }
    }
    text.len()
}

/// Whether a place is in a string in double quotes, and not in a plain one or a block.
fn is_in_string(text: &str, at: usize) -> bool {
    let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let line = text[start..at].trim_start().trim_start_matches("- ").trim_start();
    text.trim_start().starts_with('{') || line.starts_with('"') || is_in_flow(text, at)
}

/// Where a command's last line ends that goes on with `\`.
fn command_end(text: &str, from: usize) -> usize {
    let mut at = from;
    loop {
        let line = text[at..].find('\n').map_or(text.len(), |end| at + end);
        let is_continued = text[at..line].trim_end().ends_with('\\');
        if !is_continued || line == text.len() {
            return line;
        }
        at = line + 1;
    }
}

/// Puts commands before the one that is at a place of the text: items of a block, or strings of a list on one line.
fn insert_before(text: &str, at: usize, commands: &[String]) -> Option<String> {
    if commands.is_empty() {
        return Some(text.to_owned());
    }
    let line_start = |at: usize| text[..at].rfind('\n').map_or(0, |end| end + 1);
    if text.trim_start().starts_with('{') || is_in_flow(text, at) {
        let start = string_start(text, at)?;
        // On lines of their own where the string is, too.
        let lead = &text[line_start(start)..start];
        let between = if lead.trim().is_empty() { format!(",\n{lead}") } else { ", ".to_owned() };
        let strings = commands.iter().map(|command| Value::from(command.as_str()).to_string() + &between);
        return Some(format!("{}{}{}", &text[..start], strings.collect::<String>(), &text[start..]));
    }
    let indent = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let mut start = line_start(at);
    let depth = indent(&text[start..]);
    loop {
        let line = text[start..].lines().next().unwrap_or_default();
        let is_item = line.trim_start_matches(' ').starts_with("- ");
        if is_item && (start == line_start(at) || indent(line) < depth) {
            let spaces = " ".repeat(indent(line));
            let item = |command: &String| match command.strip_suffix('\n') {
                None => format!("{spaces}- {command}\n"),
                Some(script) => {
                    let lines: Vec<String> =
                        script.lines().map(|line| format!("{spaces}  {line}\n")).collect();
                    format!("{spaces}- |\n{}", lines.concat())
                }
            };
            let lines: String = commands.iter().map(item).collect();
            return Some(format!("{}{lines}{}", &text[..start], &text[start..]));
        }
        start = line_start(start.checked_sub(1)?);
    }
}

/// Whether a place is in a list that is written in brackets on its line.
fn is_in_flow(text: &str, at: usize) -> bool {
    let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    text[start..at].contains("commands: [") || text[start..at].trim_start().starts_with('"')
}

/// Where the string in double quotes begins that a place is in.
fn string_start(text: &str, at: usize) -> Option<usize> {
    let is_quote = |(at, _): &(usize, &str)| {
        let escapes = text[..*at].len() - text[..*at].trim_end_matches('\\').len();
        escapes.is_multiple_of(2)
    };
    text[..at].rmatch_indices('"').find(is_quote).map(|(start, _)| start)
}

/// Whether the only build is given the caches, by a builder that takes them.
fn is_given(done: &Done, needs_builder: bool) -> bool {
    let [build] = done.builds.as_slice() else { return false };
    let is_ours = |name: &str| name == variable::FLAGS;
    let is_unquoted = build.variables.iter().any(|of| is_ours(&of.name) && !of.is_quoted);
    let is_made = matches!(build.builder, Chosen::Made(_));
    is_unquoted && build.tool == Tool::Buildx && (is_made || !needs_builder)
}

/// Whether a patched document is the one before, apart from what was put in.
fn is_same(document: &Value, tried: &Tried, before: &[String]) -> bool {
    spec::document(&tried.text).is_some_and(|patched| without(&patched, tried, before) == *document)
}

fn without(value: &Value, tried: &Tried, before: &[String]) -> Value {
    match value {
        Value::String(text) => {
            let removed = tried.put_in.iter().fold(text.clone(), |text, (new, old)| {
                // A string of JSON or in quotes has escapes that its text has not.
                let escaped =
                    |text: &str| serde_json::from_str::<String>(&format!("\"{text}\"")).unwrap_or_default();
                if text.contains(new) {
                    text.replace(new, old)
                } else {
                    text.replace(&escaped(new), &escaped(old))
                }
            });
            Value::from(removed)
        }
        Value::Array(items) => {
            let is_ours =
                |item: &&Value| item.as_str().is_some_and(|text| before.iter().any(|ours| ours == text));
            items.iter().filter(|item| !is_ours(item)).map(|item| without(item, tried, before)).collect()
        }
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), without(value, tried, before))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use stoker_core::policy::Policy;

    use super::*;

    const IMAGE: &str = "aws/codebuild/standard:7.0";
    const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const LOGIN: &str = "aws ecr get-login-password | docker login --username AWS --password-stdin $REG";

    fn project() -> Project {
        let text = "version: 1\nprojects: [{ name: app, repository: github.com/example/app }]";
        Policy::parse("policy", text).unwrap().named_projects().remove(0)
    }

    fn patched(text: &str) -> Result<Option<String>, Vec<String>> {
        patch(text, &project(), IMAGE, REGISTRY, None)
    }

    fn spec(commands: &[&str]) -> String {
        let lines: Vec<String> = commands.iter().map(|command| format!("      - {command}\n")).collect();
        format!("# Ours\nversion: 0.2\n\nphases:\n  build: # here\n    commands:\n{}", lines.concat())
    }

    #[test]
    fn a_patch_is_the_fewest_words_and_leaves_the_rest_to_the_byte() {
        let cases = [
            (
                spec(&[LOGIN, "docker build -t $IMAGE ."]),
                spec(&[
                    LOGIN,
                    BUILDER,
                    "docker ${STOKER_CACHE_FLAGS:+buildx} build ${STOKER_CACHE_FLAGS:+--load \
                     $STOKER_CACHE_FLAGS} -t $IMAGE .",
                ]),
            ),
            (
                spec(&[LOGIN, "docker buildx create --use", "docker buildx build --push -t $IMAGE ."]),
                spec(&[
                    LOGIN,
                    "docker buildx create --use",
                    "docker buildx build ${STOKER_CACHE_FLAGS-} --push -t $IMAGE .",
                ]),
            ),
            (
                spec(&[LOGIN, "docker buildx build --push -t $IMAGE ."]),
                spec(&[LOGIN, BUILDER, "docker buildx build ${STOKER_CACHE_FLAGS-} --push -t $IMAGE ."]),
            ),
            (
                spec(&[
                    LOGIN,
                    "docker buildx create --use",
                    "docker buildx build --cache-from $R:c --cache-to=type=registry,ref=$R:c -t a --push .",
                ]),
                spec(&[
                    LOGIN,
                    "docker buildx create --use",
                    "docker buildx build ${STOKER_CACHE_FLAGS:---cache-from $R:c \
                     --cache-to=type=registry,ref=$R:c} -t a --push .",
                ]),
            ),
            (
                spec(&[
                    "echo docker build now",
                    LOGIN,
                    "|\n        cd web\n        docker build \\\n          -t $IMAGE \\\n          .",
                ]),
                spec(&[
                    "echo docker build now",
                    LOGIN,
                    BUILDER,
                    "|\n        cd web\n        docker ${STOKER_CACHE_FLAGS:+buildx} build \
                     ${STOKER_CACHE_FLAGS:+--load $STOKER_CACHE_FLAGS} \\\n          -t $IMAGE \\\n          .",
                ]),
            ),
        ];
        for (before, after) in cases {
            let found = patched(&before).unwrap().unwrap();
            assert_eq!(found, after, "{found}");
            assert_eq!(patched(&found), Ok(None), "once more");
        }
        let without_login = patched(&spec(&["docker build -t $IMAGE ."])).unwrap().unwrap();
        assert!(without_login.contains(&format!("--password-stdin {REGISTRY} || STOKER_CACHE_FLAGS=\n")));
    }

    #[test]
    fn a_build_that_others_start_asks_for_its_caches() {
        let asking = |text: &str| patch(text, &project(), IMAGE, REGISTRY, Some("ours-resolve-cache"));
        let plain = spec(&[LOGIN, "docker build -t \"$IMAGE\" ."]);
        let json =
            r#"{"version": "0.2", "phases": {"build": {"commands": ["docker build -t \"$IMAGE\" ."]}}}"#;
        for before in [
            plain.clone(),
            plain.replace("version: 0.2\n", "version: 0.2\nenv: # ours\n    variables: { A: b }\n"),
            json.to_owned(),
        ] {
            let after = asking(&before).unwrap().unwrap();
            let read = spec::read(&after).unwrap();
            assert_eq!(read.exported, EXPORTED, "{after}");
            assert!(after.contains("--function-name ours-resolve-cache"), "{after}");
            for shell in ["/bin/dash", "/bin/bash"] {
                // Nobody answers here.
                let Some(ended) = ran(shell, &after, None, 0) else { continue };
                assert_eq!(ended.1.lines().last(), Some("<build><-t><a b><.>"), "{shell}: {after}");
                assert!(ended.0, "{shell}: {after}");
            }
        }
        let said = plain.replace("version: 0.2\n", "version: 0.2\nenv: { exported-variables: [A] }\n");
        assert!(asking(&said).unwrap_err()[0].contains("exported-variables"));
    }

    #[test]
    fn json_stays_json_and_on_the_lines_that_it_had() {
        let inline = r#"{"version":"0.2","phases":{"build":{"commands":["set -eu\\naws ecr get-login-password | docker login x","cd web\\ndocker build -t \\"$IMAGE\\" ."]}}}"#.replace("\\\\", "\\");
        let found = patched(&inline).unwrap().unwrap();
        assert!(serde_json::from_str::<Value>(&found).is_ok(), "{found}");
        assert!(
            found.contains("docker ${STOKER_CACHE_FLAGS:+buildx} build ${STOKER_CACHE_FLAGS:+--load"),
            "{found}"
        );
        assert_eq!(found.lines().count(), 1);
        let own = r#"{"version":"0.2","phases":{"pre_build":{"commands":["set -eu\ndocker buildx create --use\naws ecr get-login-password | docker login x"]},"build":{"commands":["cd web\ndocker buildx build \\\n  -t $IMAGE \\\n  --push ."]}}}"#;
        let found = patched(own).unwrap().unwrap();
        assert_eq!(
            found,
            own.replace("docker buildx build ", "docker buildx build ${STOKER_CACHE_FLAGS-} "),
            "{found}"
        );
        let pretty = "{\n  \"version\": 0.2,\n  \"phases\": {\"build\": {\"commands\": [\n    \"docker build \
             .\"\n  ]}}\n}\n";
        let found = patched(pretty).unwrap().unwrap();
        assert_eq!(found.lines().count(), pretty.lines().count() + 2, "{found}");
    }

    #[test]
    fn what_would_not_be_the_same_build_is_refused_with_the_reason() {
        for (commands, word) in [
            (&["docker build --network host -t a ."][..], "--network"),
            (&["docker build $ARGS -t a ."], "$ARGS"),
            (&["docker build --squash ."], "--squash"),
            (&["DOCKER_BUILDKIT=0 docker build ."], "BuildKit off"),
            (&["docker load -i base.tar", "docker build ."], "docker load"),
            (&["docker build -t a a", "docker build -t b b"], "2 images"),
            (&["docker compose build"], "docker compose"),
            (&["docker buildx bake"], "STOKER_BAKE"),
            (&["make image"], "no `docker build`"),
            (&["docker buildx create --name b", "docker buildx build ."], "--use"),
            (
                &["docker buildx create --use", "docker buildx build --platform linux/amd64,linux/arm64 ."],
                "several platforms",
            ),
            (&["buildctl build --frontend dockerfile.v0"], "buildctl"),
            (&["if true; then"], "read as shell"),
            // What uses Stoker's variables already is judged as it is.
            (&["docker buildx create --name b", "docker buildx build $STOKER_CACHE_FLAGS ."], "--use"),
            (
                &[
                    "docker buildx create --use",
                    "docker buildx use default",
                    "docker buildx build $STOKER_CACHE_FLAGS .",
                ],
                "--use",
            ),
            (&["docker buildx create --use", "docker buildx build \"$STOKER_CACHE_FLAGS\" ."], "quotes"),
        ] {
            let reasons = patched(&spec(commands)).unwrap_err();
            assert!(reasons.iter().any(|reason| reason.contains(word)), "{commands:?}: {reasons:?}");
        }
        let old = spec(&["docker build ."]).replace("0.2", "0.1");
        assert!(patched(&old).unwrap_err()[0].contains("version"));
        let batch = format!("{}batch: {{}}\n", spec(&["docker build ."]));
        assert!(patched(&batch).unwrap_err()[0].contains("batch"));
        for hostile in ["", "{", "a: [", "\u{1b}", &"[".repeat(5000), &"x".repeat(LONGEST + 1)] {
            assert!(patched(hostile).is_err());
        }
    }

    /// Runs a buildspec's commands with a `docker` that writes down its arguments; `create` is how making a builder
    /// ends.
    fn ran(shell: &str, text: &str, flags: Option<&str>, create: i32) -> Option<(bool, String)> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("stoker-patch-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let fake = format!(
            "#!/bin/sh\n[ \"$2\" != create ] || exit {create}\nfor a; do printf '<%s>' \"$a\"; done \
             >>\"$LOG\"\necho >>\"$LOG\"\n"
        );
        // Both ends of a pipe run at once: only one of them writes.
        for (name, fake) in [("docker", fake.as_str()), ("aws", "#!/bin/sh\n")] {
            fs::write(dir.join(name), fake).unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let script = spec::read(text).unwrap().commands.join("\n");
        let mut command = Command::new(shell);
        command.arg("-c").arg(format!("set -eu\n{script}")).current_dir(&dir).env_clear();
        command.env("PATH", format!("{}:/usr/bin:/bin", dir.display())).env("LOG", dir.join("log"));
        command.envs([("IMAGE", "a b"), ("REG", "r"), ("R", "registry.example/app")]);
        command.envs(flags.map(|flags| ("STOKER_CACHE_FLAGS", flags)));
        let has_ended = command.output().ok()?.status.success();
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        fs::remove_dir_all(&dir).unwrap();
        Some((has_ended, log))
    }

    /// A patch never makes a build that worked fail: without Stoker, and where no builder can be made, `docker` is
    /// called with the very words as before.
    #[test]
    fn a_patched_build_without_stoker_or_a_builder_is_the_one_before() {
        let builds = [
            vec![LOGIN, "docker build -t \"$IMAGE\" --build-arg A=1 . && docker push \"$IMAGE\""],
            vec![LOGIN, "docker buildx build -t \"$IMAGE\" --push ."],
            vec![LOGIN, "docker build --cache-from $R:a -t \"$IMAGE\" ."],
            vec![
                LOGIN,
                "docker buildx build --cache-from type=registry,ref=\"$R\":a --cache-to type=inline \
                 -t \"$IMAGE\" --load .",
            ],
            vec![LOGIN, "if [ -n x ]; then docker build -t \"$IMAGE\" .; fi", "docker push \"$IMAGE\""],
        ];
        let flags = "--cache-from type=registry,ref=c --cache-to type=registry,ref=d";
        let mut shells = 0;
        for shell in ["/bin/dash", "/bin/sh", "/bin/bash"] {
            for commands in &builds {
                let quoted: Vec<String> =
                    commands.iter().map(|command| Value::from(*command).to_string()).collect();
                let quoted: Vec<&str> = quoted.iter().map(String::as_str).collect();
                for before in [spec(commands), spec(&quoted)] {
                    let after = patched(&before).unwrap_or_else(|why| panic!("{before}: {why:?}")).unwrap();
                    let Some(plain) = ran(shell, &before, None, 0) else { continue };
                    shells += 1;
                    assert!(plain.0, "{before}");
                    assert_eq!(ran(shell, &after, None, 0).unwrap(), plain, "{shell}: {after}");
                    assert_eq!(ran(shell, &after, Some(""), 0).unwrap(), plain, "{shell}: {after}");
                    assert_eq!(ran(shell, &after, Some(flags), 1).unwrap().1, plain.1, "no builder: {after}");
                    let (has_ended, log) = ran(shell, &after, Some(flags), 0).unwrap();
                    let given = "<--cache-from><type=registry,ref=c><--cache-to><type=registry,ref=d>";
                    assert!(
                        has_ended && log.contains(given) && log.contains("<buildx><build>"),
                        "{after}: {log}"
                    );
                    assert_eq!(log.matches("--cache-from").count(), 1, "{log}");
                }
            }
        }
        assert!(shells >= 10, "{shells}");
    }

    /// The same on a real engine, where the tests are told that there is one: every build ends with its image in
    /// Docker, be it without Stoker, without a builder, or with caches.
    #[test]
    fn a_patched_build_ends_with_its_image_on_a_real_builder() {
        if std::env::var_os("STOKER_TEST_ENGINE").is_none() {
            return;
        }
        let dir = std::env::temp_dir().join(format!("stoker-engine-{}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::write(dir.join("a"), "a").unwrap();
        fs::write(
            dir.join("Dockerfile"),
            "FROM scratch AS deps\nCOPY a /a\nFROM scratch\nCOPY --from=deps /a /b\nCMD [\"/b\"]\n",
        )
        .unwrap();
        // Where it is to work, Docker's own builder stands for the one that is made: it writes caches to a directory,
        // too.
        let stand_in = "#!/bin/sh\ncase \"$1 $2\" in 'buildx create' | 'buildx use') exit 0 ;; esac\nPATH=$REST \
             exec docker \"$@\"\n";
        fs::write(dir.join("bin/docker"), stand_in).unwrap();
        fs::set_permissions(dir.join("bin/docker"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var("PATH").unwrap();
        let docker = |args: &[&str]| Command::new("docker").args(args).output().unwrap().status.success();
        let mut runs = 0;
        for (at, build) in [
            "docker build -t $IMAGE .",
            "docker build -t $IMAGE -f Dockerfile --build-arg A=1 . && docker image inspect $IMAGE",
            "docker buildx build --tag $IMAGE --load .",
            "docker buildx build --cache-from type=local,src=$PWD/none --tag $IMAGE --load .",
        ]
        .into_iter()
        .enumerate()
        {
            let before = spec(&["echo get-login", build]);
            let after = patched(&before).unwrap().unwrap();
            for shell in ["/bin/dash", "/bin/bash"] {
                for (with_stoker, makes_builder) in [(false, false), (true, false), (true, true)] {
                    let image = format!("stoker-onboard-{}:{at}", std::process::id());
                    let cache = dir.join("cache");
                    let script = spec::read(&after).unwrap().commands.join("\n");
                    let mut command = Command::new(shell);
                    command
                        .arg("-c")
                        .arg(format!("set -eu\n{script}"))
                        .current_dir(&dir)
                        .env("IMAGE", &image);
                    if with_stoker {
                        let place = cache.display();
                        let flags = format!(
                            "--cache-from type=local,src={place} --cache-to type=local,dest={place},mode=max"
                        );
                        command.env("STOKER_CACHE_FLAGS", flags);
                        // One that nobody has.
                        command.env("STOKER_BUILDER_FLAGS", "--driver-opt image=localhost:9/none:1");
                    }
                    if makes_builder {
                        let bin = dir.join("bin");
                        command.env("REST", &path).env("PATH", format!("{}:{path}", bin.display()));
                    }
                    let output = command.output().unwrap();
                    let log = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(output.status.success(), "{shell} {with_stoker} {makes_builder}: {after}{log}");
                    assert!(
                        docker(&["image", "inspect", &image]),
                        "{shell} {with_stoker} {makes_builder}: {after}{log}"
                    );
                    assert_eq!(cache.join("index.json").exists(), makes_builder, "{after}{log}");
                    assert!(docker(&["image", "rm", &image]));
                    let _ = docker(&["buildx", "rm", "stoker"]);
                    let _ = fs::remove_dir_all(&cache);
                    runs += 1;
                }
            }
        }
        assert_eq!(runs, 24);
        fs::remove_dir_all(dir).unwrap();
    }
}
