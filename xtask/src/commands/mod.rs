//! Every command of the documentation, run: against the deployed stack of the scenario where it is about one,
//! and where it is about deploying, in an AWS in which nothing is yet. `table.rs` says of each command how.

mod read;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::demo::{self, Stage};
use crate::{aws, stack, tools};
use read::Reported;
use table::{STACK, Way};

/// Whether `cargo xtask` understands a command.
pub(crate) type IsTask = fn(&str) -> anyhow::Result<()>;

/// What a session prints before each of its commands.
const MARK: &str = "@@command ";
/// How many lines of a failed command's output are shown.
const SHOWN: usize = 15;
/// What SAM asks that wants another answer than Enter, and the answer that `docs/deploy.md` names.
const ANSWERS: [(&str, &str); 3] =
    [("has no authentication", "y"), ("Deploy this changeset?", "y"), ("want to delete the", "y")];

/// What the documents' commands find: AWS, where they are run, and the programs.
struct Place {
    dir: PathBuf,
    environment: BTreeMap<&'static str, String>,
}

/// Runs them all; answers what did not hold.
pub(crate) fn check(stage: &mut Stage, is_task: IsTask) -> anyhow::Result<Vec<String>> {
    let started = Instant::now();
    let reported = read::all()?;
    let mut ways = Vec::new();
    let mut failed = Vec::new();
    for reported in &reported {
        match table::way(&reported.document, &reported.text) {
            Some((_, way)) => ways.push((reported, way)),
            None => failed.push(format!("{}: no way to run it", name(reported))),
        }
    }
    let place = Place::make(stage)?;
    let fresh = stage.site.setup.start_another_aws("fresh")?;
    let stack = |reported: &&(&Reported, Way)| reported.1 == Way::Stack;
    let others = || ways.iter().filter(|reported| !stack(reported));
    let mut documents: Vec<&str> = others().map(|(reported, _)| reported.document.as_str()).collect();
    documents.dedup();
    // The stack's lifecycle waits for AWS, and the rest for processors.
    let results: Vec<anyhow::Result<String>> = thread::scope(|scope| {
        let run = scope.spawn(|| place.runs(&fresh));
        let mut results = Vec::new();
        for pair in documents.chunks(2) {
            let sessions: Vec<_> = pair
                .iter()
                .map(|document| {
                    let of_it = others()
                        .filter(|(reported, way)| reported.document == **document && way.is_in_session());
                    let commands: Vec<(&Reported, Way)> = of_it
                        .map(|(reported, way)| (*reported, *way))
                        .filter(|(reported, _)| can_be_run(reported))
                        .collect();
                    let place = &place;
                    scope.spawn(move || place.session(document, &commands))
                })
                .collect();
            results.extend(sessions.into_iter().map(|session| join(session.join())));
        }
        results.push(join(run.join()));
        results
    });
    for result in results {
        match result {
            Ok(what) if what.is_empty() => {}
            Ok(what) => println!("  ok   {what}"),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    for (reported, way) in others() {
        let result = match way {
            Way::Named => place.is_named(&reported.text),
            Way::Task => is_task(&reported.text),
            Way::Target => is_target(&reported.text),
            Way::Elsewhere(file, words) => is_elsewhere(file, words),
            _ => Ok(()),
        };
        failed.extend(result.err().map(|error| format!("{}: {error:#}", name(reported))));
    }
    for (what, way) in [
        ("names of commands, which their help knows", Way::Named),
        ("tasks, as the tests are made of them", Way::Task),
        ("tests and benchmarks that take minutes; their targets are there", Way::Target),
    ] {
        println!("  ok   {} {what}", others().filter(|(_, of)| *of == way).count());
    }
    for (reported, way) in others() {
        if let Way::Elsewhere(file, _) = way {
            println!("  ok   run elsewhere, {file}: {}", name(reported));
        }
    }
    for what in &failed {
        println!("  FAIL {what}");
    }
    println!("   {} commands, {} s", reported.len(), started.elapsed().as_secs());
    Ok(failed.into_iter().map(|what| what.lines().next().unwrap_or_default().to_owned()).collect())
}

fn join(session: thread::Result<anyhow::Result<String>>) -> anyhow::Result<String> {
    session.unwrap_or_else(|_| bail!("a session of commands panicked"))
}

/// Whether what the examples pipe into is here: `jq`, which nothing installs.
fn can_be_run(reported: &Reported) -> bool {
    let needs = reported.text.contains("| jq") || reported.text.contains("--to 1f2e3d4c");
    let is_there = || Command::new("jq").arg("--version").output().is_ok();
    if needs && !is_there() {
        println!("  SKIPPED {}: there is no jq here", name(reported));
        return false;
    }
    true
}

/// Where a command stands, and how it begins.
fn name(reported: &Reported) -> String {
    let first = reported.text.lines().next().unwrap_or_default();
    format!("{}:{} `{first}`", reported.document, reported.line)
}

impl Place {
    fn make(stage: &Stage) -> anyhow::Result<Self> {
        let setup = &stage.setup;
        let dir = setup.dir().join("commands");
        let bin = dir.join("bin");
        fs::create_dir_all(&bin)?;
        // In us-east-1 the first AWS CLI knows SQS by a host of its own, whatever the environment says.
        let cli = tools::world_bin().join("aws");
        let script =
            format!("#!/bin/sh\nexec {} --endpoint-url \"$AWS_ENDPOINT_URL\" \"$@\"\n", cli.display());
        fs::write(bin.join("aws"), script)?;
        fs::set_permissions(bin.join("aws"), fs::Permissions::from_mode(0o755))?;
        symlink(programs()?.join("stoker"), bin.join("stoker"))?;
        // GitLab's option of a push, and what `git pull` pulls.
        let mut git = Command::new("git");
        git.arg("-C").arg(stage.origin()).args(["config", "receive.advertisePushOptions", "true"]);
        ensure!(git.status()?.success(), "the origin cannot be configured");
        let path = std::env::var("PATH").unwrap_or_default();
        let environment = BTreeMap::from([
            ("PATH", format!("{}:{path}", bin.display())),
            ("AWS_ENDPOINT_URL", setup.endpoint()),
            ("AWS_ENDPOINT_URL_CODEBUILD", setup.codebuild_endpoint()),
            ("AWS_ACCESS_KEY_ID", aws::KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", aws::SECRET_KEY.to_owned()),
            ("AWS_DEFAULT_REGION", aws::REGION.to_owned()),
            ("AWS_REGION", aws::REGION.to_owned()),
            ("DOCKER_CONFIG", dir.display().to_string()),
            ("ORIGIN", stage.origin().display().to_string()),
            ("REGISTRY", setup.registry()),
        ]);
        Ok(Self { dir, environment })
    }

    /// A directory for a document's commands: a checkout of the scenario's repository, with the files that
    /// documents name.
    fn checkout(&self, document: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(document.replace('/', "-"));
        let mut git = Command::new("git");
        git.args(["clone", "--quiet", &self.environment["ORIGIN"]]).arg(&dir);
        ensure!(git.status()?.success(), "the scenario's repository cannot be cloned");
        fs::create_dir_all(dir.join("policy"))?;
        for file in ["policy/stoker.yaml", "new.yaml"] {
            fs::write(dir.join(file), demo::POLICY)?;
        }
        let events = crate::paths::root().join("events");
        symlink(&events, dir.join("events"))?;
        fs::copy(events.join("start-build-branch-pushed.json"), dir.join("event.json"))?;
        let webhook: Value = serde_json::from_slice(&fs::read(events.join("receive-webhook-push.json"))?)?;
        fs::write(dir.join("payload.json"), webhook["body"].as_str().context("the example has no body")?)?;
        Ok(dir)
    }

    fn bash(&self, dir: &Path, script: &str) -> anyhow::Result<Command> {
        let file = dir.join(".commands.sh");
        fs::write(&file, script)?;
        let mut command = Command::new("bash");
        tools::without_aws_settings(&mut command)
            .arg("-eu")
            .arg(file)
            .current_dir(dir)
            .envs(&self.environment);
        Ok(command)
    }

    /// A document's commands, one after the other in one shell.
    fn session(&self, document: &str, commands: &[(&Reported, Way)]) -> anyhow::Result<String> {
        if commands.is_empty() {
            return Ok(String::new());
        }
        let started = Instant::now();
        let mut script = PRELUDE.to_owned();
        if commands.iter().any(|(reported, _)| reported.text.starts_with("stoker cache ")) {
            script.push_str("caches >/dev/null\n");
        }
        for (nth, (reported, way)) in commands.iter().enumerate() {
            script.push_str(&step(nth, &in_shell(reported, *way)?));
        }
        let mut command = self.bash(&self.checkout(document)?, &script)?;
        let output = command.stdin(Stdio::null()).output().context("cannot run bash")?;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        fs::write(self.dir.join(format!("{}.log", document.replace('/', "-"))), said.concat())?;
        if output.status.success() {
            return Ok(format!("{document}: {} commands, {} s", commands.len(), started.elapsed().as_secs()));
        }
        let (_, last) = said[0].rsplit_once(MARK).unwrap_or_default();
        let nth = last.lines().next().and_then(|nth| nth.parse::<usize>().ok());
        let at = nth.map_or_else(|| document.to_owned(), |nth| name(commands[nth].0));
        let complained: Vec<&str> = last.lines().skip(1).chain(said[1].lines()).collect();
        let shown = &complained[complained.len().saturating_sub(SHOWN)..];
        bail!("{at} ended with {}\n    | {}", output.status, shown.join("\n    | "))
    }

    /// The stack's lifecycle in an AWS in which nothing is yet, with the answers that the documentation tells.
    fn runs(&self, endpoint: &str) -> anyhow::Result<String> {
        let started = Instant::now();
        let dir = self.dir.join("stack");
        fs::create_dir_all(dir.join("policy"))?;
        for file in ["policy/stoker.yaml", "samconfig.toml", "template.yaml"] {
            fs::copy(crate::paths::root().join(file), dir.join(file))?;
        }
        let mut script = format!("{STACK_PRELUDE}built={}\n", stack::release_dir().display());
        for (nth, (command, then)) in STACK.iter().enumerate() {
            script.push_str(&step(nth, command));
            script.push_str(&step(nth, then));
        }
        let mut command = self.bash(&dir, &script)?;
        let sam = tools::sam()?;
        let variables = sam.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(variables).env("SAM", sam.get_program()).env("AWS_ENDPOINT_URL", endpoint);
        let bin = self.dir.join("bin");
        let path = std::env::join_paths(
            [bin]
                .into_iter()
                .chain(std::env::split_paths(&variable(&sam, "PATH").context("SAM has no path")?)),
        )?;
        let (ended, said) = answered(command.env("PATH", path))?;
        fs::write(self.dir.join("stack.log"), &said)?;
        if ended {
            let seconds = started.elapsed().as_secs();
            return Ok(format!("the stack's run: {} commands of SAM, {seconds} s", STACK.len()));
        }
        let (_, last) = said.rsplit_once(MARK).unwrap_or_default();
        let nth = last.lines().next().and_then(|nth| nth.parse::<usize>().ok()).unwrap_or_default();
        let shown: Vec<&str> = last.lines().skip(1).collect();
        let shown = &shown[shown.len().saturating_sub(SHOWN)..];
        bail!("`{}`, or what should hold then, failed\n    | {}", STACK[nth].0, shown.join("\n    | "))
    }

    /// Whether a command's help knows its words and options.
    fn is_named(&self, text: &str) -> anyhow::Result<()> {
        let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || "-|".contains(c));
        let words: Vec<&str> =
            text.split_whitespace().take_while(|word| is_word(word) && !word.starts_with('-')).collect();
        let options: Vec<&str> = text.split_whitespace().filter(|word| word.starts_with("--")).collect();
        let (last, first) = words.split_last().context("a command without words")?;
        // Of `a b|c`, both; of `a b|c d`, no document tells.
        let several = words.iter().position(|word| word.contains('|')).unwrap_or(words.len() - 1);
        for alternative in words[several].split('|') {
            let mut command = Command::new(first.first().unwrap_or(last));
            command.args(
                words[1..]
                    .iter()
                    .enumerate()
                    .map(|(nth, word)| if nth + 1 == several { alternative } else { word }),
            );
            let output = match command.arg("--help").env("PATH", &self.environment["PATH"]).output() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    println!("  SKIPPED `{text}`: there is no {} here", words[0]);
                    return Ok(());
                }
                output => output?,
            };
            ensure!(
                output.status.success(),
                "there is no `{alternative}`: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let help = String::from_utf8_lossy(&output.stdout);
            ensure!(help.contains(alternative), "the help does not name {alternative}");
            for option in &options {
                ensure!(help.contains(option), "the help does not name {option}");
            }
        }
        Ok(())
    }
}

/// What every session begins with. Results are there at once in the local AWS, and caches have the names of
/// examples.
const PRELUDE: &str = r#"
sleep() { :; }
R=$REGISTRY/stoker/app
caches() {
  stoker cache merge "$R:app.main" "$R:app.main" --into "$R:main"
  stoker cache merge "$R:app.branch.feature-b" "$R:app.branch.feature-b" --into "$R:feature-a"
}
left() { stoker history "$R" main --json | jq -r '[.. | .digest? | strings][1]' | cut -d: -f2 | cut -c1-12; }
scrap() { aws ecr create-repository --repository-name scrap --query repository.repositoryName --output text; }
mapping() {
  aws lambda list-event-source-mappings --function-name stoker-start-build --output text \
    --query 'EventSourceMappings[0].UUID'
}
"#;

/// What the stack's lifecycle begins with. The functions have been built, by `sam build` too, for this machine's
/// processor.
const STACK_PRELUDE: &str = r#"
sam() {
  if [ "$1" != build ]; then
    "$SAM" "$@"
    return
  fi
  for word; do
    case $word in --*) "$SAM" build --help | grep -q -e "$word" || return 1 ;; esac
  done
  mkdir -p .aws-sam && ln -sfn "$built" .aws-sam/build
}
of_stack() { aws cloudformation describe-stacks --stack-name "$1" --query "$2" --output text; }
stands() {
  case $(of_stack "$1" 'Stacks[0].StackStatus') in CREATE_COMPLETE | UPDATE_COMPLETE) ;; *) return 1 ;; esac
  url=$(of_stack "$1" "Stacks[0].Outputs[?OutputKey=='WebhookUrl'].OutputValue")
  case $url in https://*) ;; *) return 1 ;; esac
}
gone() { ! of_stack "$1" 'Stacks[0].StackStatus' 2>/dev/null | grep -v DELETE_COMPLETE; }
keeps() { aws ecr describe-repositories --repository-names "$1" >/dev/null; }
"#;

fn variable(command: &Command, wanted: &str) -> Option<std::ffi::OsString> {
    command.get_envs().find(|(name, _)| *name == wanted).and_then(|(_, value)| value).map(ToOwned::to_owned)
}

/// A command in a script, which ends where it fails: `-e` alone lets the first of `a && b` fail.
fn step(nth: usize, command: &str) -> String {
    format!("printf '%s\\n' '{MARK}{nth}'\n{command}\n[ $? = 0 ]\n")
}

/// A command as its session runs it.
fn in_shell(reported: &Reported, way: Way) -> anyhow::Result<String> {
    let with = |given: &[(&str, &str)]| {
        let mut text = reported.text.clone();
        for (from, to) in given {
            ensure!(text.contains(from), "{}: there is no {from:?} in it", name(reported));
            text = text.replace(from, to);
        }
        Ok(text)
    };
    match way {
        Way::With(given) => with(given),
        Way::Ends(code, given) => {
            Ok(format!("code=0\n{{ {}\n}} || code=$?\n[ $code = {code} ]", with(given)?))
        }
        Way::Modelled(given) => {
            let text = with(given)?;
            Ok(format!(
                "if refused=$({text} 2>&1); then echo 'the local AWS knows it'; exit 1; fi\n\
                 case $refused in *InvalidAction*) ;; *) echo \"$refused\"; exit 1 ;; esac\n\
                 {text} --generate-cli-skeleton output"
            ))
        }
        _ => Ok(reported.text.clone()),
    }
}

/// Runs what asks, and answers each question: with Enter, or as [`ANSWERS`] says. Gives whether it ended
/// well, and all that it said.
fn answered(command: &mut Command) -> anyhow::Result<(bool, String)> {
    let (mut output, input) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(input.try_clone()?)
        .stderr(input)
        .spawn()
        .context("cannot run bash")?;
    // The command holds the writing end as long as it is there.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut answers = child.stdin.take().context("no standard input")?;
    let (mut said, mut part) = (String::new(), [0; 4096]);
    loop {
        let read = output.read(&mut part)?;
        if read == 0 {
            break;
        }
        said.push_str(&String::from_utf8_lossy(&part[..read]));
        let question = said.lines().next_back().unwrap_or_default();
        if said.ends_with("]: ") || said.ends_with("]:") {
            let answer =
                ANSWERS.iter().find(|(of, _)| question.contains(of)).map_or("", |(_, answer)| answer);
            writeln!(answers, "{answer}")?;
            said.push_str(answer);
            said.push('\n');
        }
    }
    Ok((child.wait()?.success(), said))
}

/// Compiles `stoker`, as the tests have done already; answers where it is.
fn programs() -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With the tests' packages and targets, as what they share is then compiled.
    cargo.current_dir(crate::paths::root()).args(["build", "--quiet", "--workspace", "--bin", "stoker"]);
    let log = crate::paths::home().join("logs/stoker.log");
    crate::process::run(&mut cargo, "building the command line", &log, |_| None)?;
    let dir = std::env::current_exe()?.parent().context("no directory of programs")?.to_owned();
    ensure!(dir.join("stoker").exists(), "{} has no stoker after its build", dir.display());
    Ok(dir)
}

/// Whether cargo has the benchmark, or the module of tests.
fn is_target(text: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |option: &str| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1).copied()
    };
    let package = after("-p").context("of which package?")?;
    let (kind, target) = match after("--bench") {
        Some(bench) => ("bench", bench),
        None => ("test", package),
    };
    let metadata = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(crate::paths::root())
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()?;
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages
        .filter(|of| of["name"] == package)
        .flat_map(|of| of["targets"].as_array().into_iter().flatten());
    let mut targets = targets.filter(|of| of["kind"][0] == kind && of["name"] == target);
    let target = targets.next().with_context(|| format!("{package} has no {kind} {target}"))?;
    if kind == "test" {
        let module = words.last().copied().unwrap_or_default();
        let main = Path::new(target["src_path"].as_str().unwrap_or_default());
        ensure!(main.with_file_name(format!("{module}.rs")).exists(), "there are no tests of {module}");
    }
    Ok(())
}

/// Whether the file has each of the words.
fn is_elsewhere(file: &str, words: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(crate::paths::root().join(file))?;
    let each: Vec<&str> = if words.contains("==") { words.split(' ').collect() } else { vec![words] };
    for words in each {
        ensure!(text.contains(words), "{file} has no {words}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_ends_where_a_command_fails() {
        for (command, ends_well) in
            [("true && true", true), ("false && true", false), ("f() {\n  true\n}", true)]
        {
            let script = step(0, command) + &step(1, "true");
            let status =
                Command::new("bash").args(["-euo", "pipefail", "-c", &script]).output().unwrap().status;
            assert_eq!(status.success(), ends_well, "{command}");
        }
    }

    #[test]
    fn what_is_answered_is_what_the_documentation_says() {
        let reported = fs::read_to_string(crate::paths::root().join("docs/deploy.md")).unwrap();
        let reported = reported.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in [
            "Answer *y* when it says that `ReceiveWebhook` has no authentication",
            "*y* to \"Deploy this changeset?\"",
            "`sam delete --stack-name stoker`, and *y* to what it asks",
        ] {
            assert!(reported.contains(words), "{words}");
        }
    }
}
