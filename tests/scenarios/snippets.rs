//! The files in docs/ci and the snippets of docs/ci.md, run as their CI runs them: with its variables, with commands
//! that only write down how they were called, and with what `resolve-cache` answers to the very question that
//! was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use scenarios::environment::{POLICY, REGISTRY, Source, TestEnvironment};
use serde_json::{Value, json};
use stoker_core::build_inputs::GivenInputs;
use stoker_core::names::{Commit, Line, ProjectName};
use stoker_core::policy::Policy;
use stoker_core::ports::{Build, BuildStatus};

/// Branches that a careless script would run. Each would make `pwned`; git knows all but the last two.
const HOSTILE: [&str; 6] = [
    "a\";touch${IFS}pwned;\"",
    "a';touch${IFS}pwned;'",
    "$(touch${IFS}pwned)",
    "`touch${IFS}pwned`",
    "-x=\",\"commit\":\"$(touch>pwned)",
    "$(touch pwned)",
];
/// The build action of a pipeline, in docs/ci.
const ACTION: &str = "codepipeline-action.yml";
const COMMIT: &str = "abababababababababababababababababababab";

// ------------------------------------------------------------------------------------------------------ the document

/// The fenced blocks of docs/ci.md: the heading they stand under, their language and their text.
fn snippets() -> Vec<(String, String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ci.md");
    let document = fs::read_to_string(path).unwrap();
    let (mut found, mut heading, mut open) = (Vec::new(), String::new(), None);
    for line in document.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => {
                let (language, text) = open.take().unwrap();
                found.push((heading.clone(), language, text));
            }
            (None, Some((_, text))) => text.extend([line, "\n"]),
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ") {
                    title.clone_into(&mut heading);
                }
            }
        }
    }
    assert!(open.is_none(), "a snippet without an end");
    found
}

/// The last snippet under a heading, in this language.
fn snippet(heading: &str, language: &str) -> String {
    let mut all = snippets().into_iter().rev();
    all.find(|(h, l, _)| h == heading && l == language)
        .unwrap_or_else(|| panic!("no {language} under {heading}"))
        .2
}

/// A file of docs/ci.
fn file(name: &str) -> String {
    fs::read_to_string(format!("{}/../docs/ci/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

pub(crate) fn yaml(text: &str) -> Value {
    fn value(yaml: &Yaml<'_>) -> Value {
        match yaml {
            Yaml::Mapping(fields) => {
                fields.iter().map(|(name, of)| (name.as_str().unwrap().to_owned(), value(of))).collect()
            }
            Yaml::Sequence(items) => items.iter().map(value).collect(),
            Yaml::Value(Scalar::String(text)) => json!(text),
            Yaml::Value(Scalar::Boolean(truth)) => json!(truth),
            Yaml::Value(Scalar::FloatingPoint(number)) => json!(number.to_string()),
            Yaml::Value(Scalar::Integer(number)) => json!(number),
            other => panic!("not expected: {other:?}"),
        }
    }
    let documents = Yaml::load_from_str(text).unwrap();
    assert_eq!(documents.len(), 1);
    value(&documents[0])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

pub(crate) fn lines(value: &Value) -> String {
    value
        .as_array()
        .unwrap_or_else(|| panic!("{value} is no list"))
        .iter()
        .map(|line| text(line) + "\n")
        .collect()
}

fn variables(value: &Value) -> BTreeMap<String, String> {
    value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

// --------------------------------------------------------------------------------------------------------- the CIs

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ci {
    Shell,
    CodeBuild,
    CodePipeline,
    GitHub,
    GitLab,
    CloudBuild,
    Azure,
    Finch,
    Earthly,
}

const CIS: [Ci; 9] = [
    Ci::Shell,
    Ci::CodeBuild,
    Ci::CodePipeline,
    Ci::GitHub,
    Ci::GitLab,
    Ci::CloudBuild,
    Ci::Azure,
    Ci::Finch,
    Ci::Earthly,
];

/// Why a CI runs a build.
#[derive(Debug, Clone, Copy)]
enum Cause<'a> {
    Push(&'a str),
    Tag,
    Pull(&'a str, &'a str),
    /// Pull request 7.
    Fork(&'a str, &'a str),
}

impl Ci {
    /// Its file in docs/ci.
    fn file(self) -> &'static str {
        match self {
            Self::Shell => "shell.sh",
            Self::CodeBuild => "codebuild.yml",
            Self::CodePipeline => "codepipeline.yml",
            Self::GitHub => "github.yml",
            Self::GitLab => "gitlab.yml",
            Self::CloudBuild => "cloudbuild.yml",
            Self::Azure => "azure.yml",
            Self::Finch => "finch.sh",
            Self::Earthly => "earthly.sh",
        }
    }

    /// The shell that it runs scripts with, made stricter where it is lenient.
    fn shell(self) -> &'static [&'static str] {
        match self {
            Self::GitHub | Self::Azure => &["bash", "-eu", "-o", "pipefail"],
            _ => &["sh", "-eu"],
        }
    }

    /// What it runs, in order, and the environment that its file gives. This is also where the shape of the file is
    /// checked: what is not where it should be ends the test.
    fn scripts(self) -> (Vec<String>, BTreeMap<String, String>) {
        let (mut scripts, mut environment) = (Vec::new(), BTreeMap::new());
        match self {
            Self::Shell | Self::Finch | Self::Earthly => scripts.push(file(self.file())),
            Self::CodeBuild | Self::CodePipeline => {
                let spec = yaml(&file(self.file()));
                assert_eq!(spec["version"], json!("0.2"));
                let phases = &spec["phases"];
                assert_eq!(phases.as_object().unwrap().keys().collect::<Vec<_>>(), ["build", "pre_build"]);
                scripts.push(lines(&phases["pre_build"]["commands"]) + &lines(&phases["build"]["commands"]));
                environment = variables(&spec["env"]["variables"]);
            }
            Self::GitHub => {
                let file = yaml(&file(self.file()));
                assert_eq!(file["permissions"]["id-token"], "write");
                assert_eq!(file["on"], json!(["push", "pull_request"]));
                let steps = file["jobs"]["image"]["steps"].as_array().unwrap();
                let [checkout, credentials, build] = &steps[..] else { panic!("{steps:?}") };
                assert!(text(&checkout["uses"]).starts_with("actions/checkout@"));
                assert!(text(&credentials["uses"]).starts_with("aws-actions/configure-aws-credentials@"));
                assert_eq!(credentials["continue-on-error"], true, "a build without credentials is cold");
                scripts.push(text(&build["run"]));
                assert!(!scripts[0].contains("${{"), "GitHub would paste it into the script");
                environment = variables(&build["env"]);
                let fork = environment.insert("FORK".to_owned(), String::new()).unwrap();
                assert_eq!(
                    fork,
                    "${{ github.event.pull_request.head.repo.full_name != github.repository && \
                     github.event.pull_request.number || '' }}"
                );
            }
            Self::GitLab => {
                let job = &yaml(&file(self.file()))["image"];
                assert_eq!(job["id_tokens"]["AWS_TOKEN"]["aud"], "sts.amazonaws.com");
                assert_eq!(job["services"], json!(["docker:28-dind"]));
                scripts.push(lines(&job["script"]));
                environment = variables(&job["variables"]);
            }
            Self::CloudBuild => {
                let file = yaml(&file(self.file()));
                assert_eq!(file["options"]["automapSubstitutions"], true);
                let [step] = &file["steps"].as_array().unwrap()[..] else { panic!("one step") };
                assert!(step.get("args").is_none(), "Cloud Build would paste branch names into it");
                scripts.push(text(&step["script"]));
                for line in step["env"].as_array().unwrap() {
                    let (name, value) = line.as_str().unwrap().split_once('=').unwrap();
                    environment.insert(name.to_owned(), value.to_owned());
                }
            }
            Self::Azure => {
                let file = yaml(&file(self.file()));
                let steps = file["steps"].as_array().unwrap();
                let [checkout, ask, build] = &steps[..] else { panic!("{steps:?}") };
                assert_eq!(checkout["checkout"], "self");
                assert_eq!(ask["task"], "AWSShellScript@1");
                assert_eq!(ask["continueOnError"], true, "a build without credentials is cold");
                assert_eq!(ask["inputs"]["scriptType"], "inline");
                scripts.extend([text(&ask["inputs"]["inlineScript"]), text(&build["bash"])]);
                environment = variables(&file["variables"]);
            }
        }
        environment.entry("IMAGE".to_owned()).or_insert_with(|| "app".to_owned());
        (scripts, environment)
    }

    /// The variables by which it tells its builds of this, and the question that they should ask. `None` where it has
    /// no way to tell.
    fn reported(self, cause: Cause<'_>) -> Option<(Vec<(&'static str, String)>, Value)> {
        let heads = |branch: &str| format!("refs/heads/{branch}");
        let own = |words: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
            words.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
        };
        let mut question = match cause {
            Cause::Push(branch) => json!({ "branch": branch }),
            Cause::Tag => json!({}),
            Cause::Pull(branch, base) => json!({ "branch": branch, "base": base }),
            Cause::Fork(branch, base) => json!({ "branch": branch, "base": base, "fork-pull-request": "7" }),
        };
        question["project"] = json!("app");
        let reported = match (self, cause) {
            (Self::Shell | Self::Finch | Self::Earthly, _) => match cause {
                Cause::Push(branch) => own(&[("BRANCH", branch)]),
                Cause::Tag => own(&[]),
                Cause::Pull(branch, base) => own(&[("BRANCH", branch), ("BASE", base)]),
                Cause::Fork(branch, base) => {
                    own(&[("BRANCH", branch), ("BASE", base), ("FORK_PULL_REQUEST", "7")])
                }
            },
            (Self::CodeBuild, _) => {
                let mut reported =
                    own(&[("CODEBUILD_BUILD_ID", "app:1"), ("CODEBUILD_RESOLVED_SOURCE_VERSION", COMMIT)]);
                match cause {
                    Cause::Push(branch) => {
                        reported.push(("CODEBUILD_WEBHOOK_TRIGGER", format!("branch/{branch}")));
                        question["commit"] = json!(COMMIT);
                    }
                    Cause::Tag => reported.extend(own(&[("CODEBUILD_WEBHOOK_TRIGGER", "tag/v1")])),
                    // It does not tell one from the other.
                    Cause::Pull(branch, base) | Cause::Fork(branch, base) => {
                        reported.extend(own(&[("CODEBUILD_WEBHOOK_TRIGGER", "pr/7")]));
                        reported.push(("CODEBUILD_WEBHOOK_HEAD_REF", heads(branch)));
                        reported.push(("CODEBUILD_WEBHOOK_BASE_REF", heads(base)));
                        question = json!({ "project": "app", "base": base, "fork-pull-request": "7" });
                    }
                }
                reported
            }
            (Self::CodePipeline, Cause::Push(branch)) => {
                own(&[("CODEBUILD_BUILD_ID", "app:1"), ("BRANCH", branch)])
            }
            (Self::CodePipeline, _) => return None,
            (Self::GitHub, _) => {
                let branch = match cause {
                    Cause::Push(branch) => ["", "", branch, "branch", ""],
                    Cause::Tag => ["", "", "v1", "tag", ""],
                    Cause::Pull(branch, base) => [branch, base, "7/merge", "branch", ""],
                    Cause::Fork(branch, base) => [branch, base, "7/merge", "branch", "7"],
                };
                let names =
                    ["GITHUB_HEAD_REF", "GITHUB_BASE_REF", "GITHUB_REF_NAME", "GITHUB_REF_TYPE", "FORK"];
                names.into_iter().zip(branch.map(str::to_owned)).collect()
            }
            (Self::GitLab, Cause::Push(branch)) => own(&[("CI_COMMIT_BRANCH", branch), ("AWS_TOKEN", "t")]),
            (Self::GitLab, Cause::Tag) => own(&[("CI_COMMIT_TAG", "v1")]),
            (Self::GitLab, Cause::Pull(branch, base) | Cause::Fork(branch, base)) => own(&[
                ("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", branch),
                ("CI_MERGE_REQUEST_TARGET_BRANCH_NAME", base),
                ("CI_MERGE_REQUEST_IID", "7"),
                ("CI_MERGE_REQUEST_PROJECT_ID", "1"),
                (
                    "CI_MERGE_REQUEST_SOURCE_PROJECT_ID",
                    if matches!(cause, Cause::Fork(..)) { "2" } else { "1" },
                ),
            ]),
            (Self::CloudBuild, Cause::Push(branch)) => {
                own(&[("BRANCH_NAME", branch), ("REPO_FULL_NAME", "example/app")])
            }
            (Self::CloudBuild, Cause::Tag) => own(&[("TAG_NAME", "v1"), ("REPO_FULL_NAME", "example/app")]),
            (Self::CloudBuild, Cause::Pull(branch, base) | Cause::Fork(branch, base)) => own(&[
                ("REPO_FULL_NAME", "example/app"),
                ("_HEAD_BRANCH", branch),
                ("_BASE_BRANCH", base),
                ("_PR_NUMBER", "7"),
                (
                    "_HEAD_REPO_URL",
                    if matches!(cause, Cause::Fork(..)) {
                        "https://github.com/evil/app"
                    } else {
                        "https://github.com/example/app"
                    },
                ),
            ]),
            (Self::Azure, Cause::Push(branch)) => vec![("BUILD_SOURCEBRANCH", heads(branch))],
            (Self::Azure, Cause::Tag) => own(&[("BUILD_SOURCEBRANCH", "refs/tags/v1")]),
            (Self::Azure, Cause::Pull(branch, base) | Cause::Fork(branch, base)) => {
                let is_fork = matches!(cause, Cause::Fork(..));
                vec![
                    ("BUILD_SOURCEBRANCH", "refs/pull/7/merge".to_owned()),
                    ("SYSTEM_PULLREQUEST_SOURCEBRANCH", heads(branch)),
                    ("SYSTEM_PULLREQUEST_TARGETBRANCH", heads(base)),
                    ("SYSTEM_PULLREQUEST_ISFORK", if is_fork { "True" } else { "False" }.to_owned()),
                    ("SYSTEM_PULLREQUEST_PULLREQUESTID", if is_fork { "70" } else { "7" }.to_owned()),
                    ("SYSTEM_PULLREQUEST_PULLREQUESTNUMBER", "7".to_owned()),
                ]
            }
        };
        Some((reported, question))
    }

    /// How it builds with this answer, or without any.
    fn command(self, answer: Option<&BTreeMap<String, String>>) -> Vec<String> {
        let words = |name: &str| {
            let value = answer.and_then(|answer| answer.get(name)).map_or("", String::as_str);
            value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let flags = words("STOKER_CACHE_FLAGS");
        let (start, flags, end): (&[&str], _, &[&str]) = match self {
            Self::Earthly => {
                let refs = words("STOKER_CACHE_REFS").into_iter();
                let flags = refs.flat_map(|cache| ["--cache-from".to_owned(), cache]).collect();
                (&["earthly"], flags, &["+image"])
            }
            Self::Finch => (&["finch", "build"], flags, &["-t", "app", "."]),
            Self::CodeBuild | Self::CodePipeline => {
                (&["docker", "buildx", "build"], flags, &["-t", "app", "--push", "."])
            }
            _ => (&["docker", "buildx", "build"], flags, &["-t", "app", "--load", "."]),
        };
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        [own(start), flags, own(end)].concat()
    }
}

impl Ci {
    /// How it makes its builder with this answer, or without any; Finch and Earthly make none.
    fn builder(self, answer: Option<&BTreeMap<String, String>>) -> Option<Vec<String>> {
        let end: &[&str] = match self {
            Self::Finch | Self::Earthly => return None,
            // A builder cannot be made of the TLS variables that it comes with.
            Self::GitLab => &["stoker"],
            _ => &[],
        };
        let flags = answer.and_then(|answer| answer.get("STOKER_BUILDER_FLAGS")).map_or("", String::as_str);
        let words = ["docker", "buildx", "create", "--use"].into_iter().chain(flags.split_whitespace());
        Some(words.chain(end.iter().copied()).map(str::to_owned).collect())
    }
}

// --------------------------------------------------------------------------------------------------------- running

/// What the function does when it is asked.
#[derive(Debug, Clone, Copy)]
enum Function<'a> {
    /// There is no network, or no credentials.
    Absent,
    /// There is not even what asks it.
    NoPython,
    /// It answers this, which may be an error.
    Says(&'a str),
}

#[derive(Debug)]
struct Ran {
    /// Every command that was called, with its arguments.
    calls: Vec<Vec<String>>,
    /// The question that was asked.
    question: Option<Value>,
    /// The environment at the end.
    environment: BTreeMap<String, String>,
}

impl Ran {
    /// The command that builds: there is one, and it is the last.
    fn build(&self) -> &[String] {
        let is_build = |call: &&Vec<String>| {
            call[0] == "earthly" || call[1] == "build" || call.get(2).is_some_and(|word| word == "build")
        };
        let builds: Vec<&Vec<String>> = self.calls.iter().filter(is_build).collect();
        assert_eq!(builds, [self.calls.last().expect("a call")]);
        builds[0]
    }

    /// The command that makes the builder, if there is one.
    fn builder(&self) -> Option<Vec<String>> {
        let is_create = |call: &&Vec<String>| call[1] == "buildx" && call[2] == "create";
        let mut creates = self.calls.iter().filter(is_create);
        let create = creates.next().cloned();
        assert!(creates.next().is_none(), "one is enough");
        create
    }
}

const TOOL: &str = r#"#!/bin/sh
tool=${0##*/}
printf '%s\n' "$tool" "$@" --end-- >>"$BENCH/calls"
case $tool in aws | apk | wget) [ ! -e "$BENCH/absent" ] || exit 255 ;; esac
case "$tool $*" in
*' login '*--password-stdin*) read -r word && [ "$word" = password ] ;;
'aws ecr get-login-password '*) echo password ;;
'aws lambda invoke '*)
  [ "$4" = stoker-resolve-cache ] && [ "$5 $6" = '--cli-binary-format raw-in-base64-out' ] || exit 252
  while [ "$1" != --payload ]; do shift; done
  printf %s "$2" >"$BENCH/question"
  cat "$BENCH/answer" >"$3"
  echo '{"StatusCode": 200}'
  ;;
esac
"#;

/// Runs a CI's snippet from its start to its end.
fn run(ci: Ci, reported: &[(&str, String)], function: Function<'_>) -> Ran {
    run_in(ci.shell(), ci, reported, function)
}

/// The same, in this shell.
fn run_in(shell: &[&str], ci: Ci, reported: &[(&str, String)], function: Function<'_>) -> Ran {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let bench = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("ci-{}-{run}", std::process::id()));
    let write = |name: &str, content: &str| fs::write(bench.join(name), content).unwrap();
    for directory in ["bin", "checkout", "tmp", "home"] {
        fs::create_dir_all(bench.join(directory)).unwrap();
    }
    let mut tools = vec!["aws", "docker", "finch", "earthly", "apk", "wget"];
    write("answer", "{}");
    match function {
        Function::Absent => write("absent", ""),
        Function::NoPython => tools.push("python3"),
        Function::Says(answer) => write("answer", answer),
    }
    for tool in tools {
        let path = bench.join("bin").join(tool);
        fs::write(&path, if tool == "python3" { "#!/bin/sh\nexit 127\n" } else { TOOL }).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    if !matches!(function, Function::NoPython) {
        // The interpreter itself: what stands for it in the path may take longer than all the rest.
        static PYTHON: OnceLock<String> = OnceLock::new();
        let python = PYTHON.get_or_init(|| {
            let mut command = Command::new("python3");
            let output = command.args(["-c", "import sys; print(sys.executable, end='')"]).output();
            String::from_utf8(output.expect("python3, which these snippets need").stdout).unwrap()
        });
        std::os::unix::fs::symlink(python, bench.join("bin/python3")).unwrap();
    }
    // Nothing of the checkout may run with the CI's credentials, not even by way of an import.
    write("checkout/json.py", "open('pwned', 'w')\n");

    let (scripts, mut environment) = ci.scripts();
    environment.extend(reported.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    let token = bench.join("tmp/token").to_string_lossy().into_owned();
    environment.entry("AWS_WEB_IDENTITY_TOKEN_FILE".to_owned()).and_modify(|path| *path = token);
    let path = std::env::var("PATH").unwrap();
    for (name, value) in [
        ("PATH", format!("{}:{path}", bench.join("bin").display())),
        ("BENCH", bench.display().to_string()),
        ("TMPDIR", bench.join("tmp").display().to_string()),
        ("HOME", bench.join("home").display().to_string()),
    ] {
        environment.insert(name.to_owned(), value);
    }
    for script in scripts {
        let script = format!("{script}\nenv -0 >\"$BENCH/environment\"\n");
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg("-c").arg(&script).env_clear().envs(&environment);
        let output = command.current_dir(bench.join("checkout")).output().unwrap();
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{ci:?} is red\n{reported:?}\n{said}\n{complained}\n{script}");
        let is_cold = complained.contains("this build is cold");
        let answers = matches!(function, Function::Says(answer) if answer.contains("export STOKER_"));
        assert!(!(is_cold && answers), "{ci:?} did not understand the answer\n{complained}");
        // Azure's way from one step to the next.
        for line in said.lines() {
            if let Some((name, value)) = line
                .strip_prefix("##vso[task.setvariable variable=")
                .and_then(|variable| variable.split_once(']'))
            {
                environment.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    let read = |name: &str| fs::read_to_string(bench.join(name)).ok();
    let calls = read("calls").unwrap();
    let calls = calls.split_terminator("--end--\n").map(|call| call.lines().map(str::to_owned).collect());
    let after = read("environment").unwrap();
    let after = after.split_terminator('\0').filter_map(|line| line.split_once('='));
    let ran = Ran {
        calls: calls.collect(),
        question: read("question").map(|question| serde_json::from_str(&question).unwrap()),
        environment: after.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
    };
    let mut left: Vec<String> = fs::read_dir(bench.join("checkout"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["json.py"], "{ci:?} changes what is built, or ran what it was told");
    fs::remove_dir_all(&bench).unwrap();
    ran
}

/// A test environment where main, `feature-a` and `release` have caches.
async fn env() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    for (branch, versions) in [("main", [1, 1, 1, 1]), ("feature-a", [2, 1, 1, 1]), ("release", [3, 1, 1, 1])]
    {
        let head = env.commit(versions);
        env.push(branch, &[&head]).await;
        env.build().await;
    }
    env
}

async fn ask(
    env: &TestEnvironment,
    question: &Value,
) -> Result<stoker_core::resolve::Answer, stoker_core::resolve::Error> {
    let policy = Policy::parse("policy", POLICY).unwrap();
    let handled =
        stoker_core::resolve::handle(question.clone(), &policy, REGISTRY, &env.account, env.account.now());
    env.account.invoke("resolve-cache", None, handled).await.unwrap()
}

/// What Lambda says in place of an answer.
const ERROR: &str = r#"{"errorType": "&str", "errorMessage": "the caches could not be looked up"}"#;

/// Runs a CI's snippet with the answer to the question that it should ask; checks the question and the build. Gives the
/// run, and the environment in the answer.
async fn reported(
    env: &TestEnvironment,
    ci: Ci,
    cause: Cause<'_>,
) -> Option<(Ran, Option<BTreeMap<String, String>>)> {
    let (reported, expected) = ci.reported(cause)?;
    let answer = ask(env, &expected).await.ok();
    let said = answer.as_ref().map_or_else(|| ERROR.to_owned(), |answer| json!(answer).to_string());
    let ran = run(ci, &reported, Function::Says(&said));
    let mut question = ran.question.clone().expect("a question");
    let reads = |answer: stoker_core::resolve::Answer| answer.environment["STOKER_CACHE_FROM"].clone();
    assert_eq!(ask(env, &question).await.ok().map(reads), answer.clone().map(reads), "{ci:?}, {cause:?}");
    question.as_object_mut().unwrap().retain(|_, value| value != "");
    assert_eq!(question, expected, "{ci:?}, {cause:?}");
    let environment = answer.map(|answer| answer.environment);
    assert_eq!(ran.build(), ci.command(environment.as_ref()), "{ci:?}, {cause:?}");
    assert_eq!(ran.builder(), ci.builder(environment.as_ref()), "{ci:?}, {cause:?}");
    Some((ran, environment))
}

// ----------------------------------------------------------------------------------------------------------- tests

#[test]
fn every_snippet_of_the_document_is_known_here() {
    let found: Vec<(String, String)> = snippets().into_iter().map(|(heading, l, _)| (heading, l)).collect();
    let known = [
        ("What they have in common", "json"),
        ("docker buildx bake", "sh"),
        ("docker compose", "sh"),
        ("Several platforms", "sh"),
        ("Several platforms", "hcl"),
        ("Several platforms", "sh"),
        ("The builder", "sh"),
    ];
    assert_eq!(found, known.map(|(heading, language)| (heading.to_owned(), language.to_owned())));
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ci.md")).unwrap();
    let entries = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ci")).unwrap();
    let found: BTreeSet<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let known = CIS.map(Ci::file).into_iter().chain([ACTION]).map(str::to_owned).collect();
    assert_eq!(found, known);
    for name in found {
        assert!(page.contains(&format!("(ci/{name})")), "docs/ci.md does not name {name}");
    }
}

#[test]
fn every_snippet_asks_in_the_same_words() {
    let asking: Vec<Vec<String>> = CIS
        .iter()
        .map(|ci| {
            let script = ci.scripts().0.concat();
            let lines =
                script.lines().map(str::trim).skip_while(|line| !line.starts_with("# Stoker's answer"));
            let mut lines: Vec<String> = lines.map(str::to_owned).collect();
            let end =
                lines.iter().position(|line| line.starts_with("eval ")).expect("the end of the question");
            lines.truncate(end + 1);
            assert!(lines.remove(3).starts_with("project="), "{ci:?}");
            lines
        })
        .collect();
    assert!(asking.windows(2).all(|pair| pair[0] == pair[1]), "{asking:#?}");
}

#[test]
fn the_callers_role_may_invoke_the_function() {
    let policy: Value = serde_json::from_str(&snippet("What they have in common", "json")).unwrap();
    let [statement] = &policy["Statement"].as_array().unwrap()[..] else { panic!("one statement") };
    assert_eq!(statement["Action"], "lambda:InvokeFunction");
    assert!(text(&statement["Resource"]).ends_with(":function:stoker-resolve-cache"));
}

#[test]
fn a_pipeline_hands_its_build_the_branch() {
    let action = yaml(&file(ACTION));
    let variables: Value =
        serde_json::from_str(&text(&action["Configuration"]["EnvironmentVariables"])).unwrap();
    assert_eq!(variables, json!([{"name": "BRANCH", "value": "#{SourceVariables.BranchName}"}]));
}

#[tokio::test]
async fn every_ci_reads_what_its_branch_its_base_and_main_have() {
    let env = env().await;
    for ci in CIS {
        let is_own = ci == Ci::CodeBuild;
        let (_, answer) = reported(&env, ci, Cause::Push("feature-a")).await.unwrap();
        let answer = answer.unwrap();
        assert_eq!(answer["STOKER_READS"], "branch/feature-a main");
        assert_eq!(answer.contains_key("STOKER_EXPORT"), is_own, "{ci:?}: others would write in vain");
        let (_, answer) = reported(&env, ci, Cause::Push("main")).await.unwrap();
        let answer = answer.unwrap();
        assert_eq!(answer["STOKER_READS"], "main");
        assert!(!answer.contains_key("STOKER_EXPORT"), "{ci:?}: main's export would not be believed");
        if let Some((_, answer)) = reported(&env, ci, Cause::Pull("feature-a", "release")).await {
            let reads = if is_own { "branch/release main" } else { "branch/feature-a branch/release main" };
            assert_eq!(answer.unwrap()["STOKER_READS"], reads, "{ci:?}");
        }
        if let Some((_, answer)) = reported(&env, ci, Cause::Tag).await {
            assert_eq!(answer.unwrap()["STOKER_READS"], "main", "{ci:?}");
        }
    }
}

#[tokio::test]
async fn attack_a_fork_writes_nothing_from_any_ci() {
    let env = env().await;
    for ci in CIS {
        for branch in ["feature-a", "main"] {
            let Some((ran, answer)) = reported(&env, ci, Cause::Fork(branch, "release")).await else {
                assert_eq!(ci, Ci::CodePipeline, "all others tell");
                continue;
            };
            assert!(!ran.build().iter().any(|word| word.starts_with("--cache-to")), "{ci:?}");
            let answer = answer.unwrap();
            assert_eq!(answer["STOKER_TRUST"], "fork");
            assert_eq!(answer["STOKER_READS"], "branch/release main");
        }
    }
}

#[tokio::test]
async fn attack_a_branchs_name_is_only_ever_a_name() {
    let env = env().await;
    for ci in CIS {
        for name in HOSTILE {
            // That nothing else ran is checked in every run.
            let (reported, expected) = ci.reported(Cause::Push(name)).unwrap();
            let ran = run(ci, &reported, Function::Says(ERROR));
            assert_eq!(ran.question.as_ref().unwrap()["branch"], expected["branch"], "{ci:?}");
            assert_eq!(ran.build(), ci.command(None), "{ci:?}");
        }
        let pull = Cause::Pull(HOSTILE[0], HOSTILE[2]);
        let cause = if ci == Ci::CodePipeline { Cause::Push(HOSTILE[3]) } else { pull };
        let answered = reported(&env, ci, cause).await;
        assert!(answered.unwrap().1.is_some(), "{ci:?}: git knows such branches");
    }
}

#[test]
fn whatever_fails_the_build_goes_on_cold() {
    for ci in CIS {
        let (reported, _) = ci.reported(Cause::Push("feature-a")).unwrap();
        for function in [
            Function::Absent,
            Function::NoPython,
            Function::Says(""),
            Function::Says("<html>"),
            Function::Says("null"),
            Function::Says("{\"shell\": null}"),
        ] {
            // They all ask in the same words.
            if ci != Ci::Shell && !matches!(function, Function::Absent) {
                continue;
            }
            assert_eq!(run(ci, &reported, function).build(), ci.command(None), "{ci:?}, {function:?}");
        }
    }
}

#[test]
fn every_snippet_for_sh_is_one_for_dash_and_for_bash() {
    for ci in CIS.into_iter().filter(|ci| ci.shell()[0] == "sh") {
        let (reported, _) = ci.reported(Cause::Push("feature-a")).unwrap();
        for shell in ["dash", "bash"] {
            let ran = run_in(&[shell, "-eu"], ci, &reported, Function::Says("{}"));
            assert_eq!(ran.build(), ci.command(None), "{ci:?} in {shell}");
            assert_eq!(ran.builder(), ci.builder(None), "{ci:?} in {shell}");
        }
    }
}

#[test]
fn a_build_that_stoker_started_does_not_ask() {
    for ci in [Ci::CodeBuild, Ci::CodePipeline] {
        let inputs = [
            ("STOKER_LINE", "main"),
            ("STOKER_CACHE_FLAGS", "--cache-from x"),
            ("STOKER_BUILDER_FLAGS", "--driver x"),
        ];
        let inputs = inputs.map(|(name, value)| (name, value.to_owned()));
        let ran = run(ci, &inputs, Function::Says(ERROR));
        assert!(ran.question.is_none());
        let environment = BTreeMap::from(inputs.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(ran.build(), ci.command(Some(&environment)));
        assert_eq!(ran.builder(), ci.builder(Some(&environment)));
    }
}

#[tokio::test]
async fn what_a_codebuild_build_exports_promotes_its_branch() {
    let versions = [
        ("refs/heads/feature-b^{1111111111111111111111111111111111111111}", true),
        ("refs/heads/feature-b", true),
        ("feature-b", false),
        ("refs/heads/feature-a", false),
        ("1111111111111111111111111111111111111111", false),
        ("arn:aws:s3:::bucket/feature-b", false),
    ];
    for (version, is_its_branch) in versions {
        let ci = Ci::CodeBuild;
        let mut env = env().await;
        let (ran, _) = reported(&env, ci, Cause::Push("feature-b")).await.unwrap();
        let spec = yaml(&file(ci.file()));
        let exported = lines(&spec["env"]["exported-variables"]);
        let exported = exported.lines().filter_map(|name| ran.environment.get_key_value(name));
        let environment: BTreeMap<String, String> =
            exported.map(|(name, value)| (name.clone(), value.clone())).collect();
        let inputs = GivenInputs::read(&environment).unwrap();
        assert_eq!(inputs.line, Line::parse("branch/feature-b").unwrap());
        assert_eq!((inputs.exports.len(), inputs.given.len()), (1, 1));

        let (id, head) = ("app:webhook".to_owned(), Commit::new(COMMIT).unwrap());
        let now = env.account.now();
        env.account.builds.borrow_mut().push(Build {
            id: id.clone(),
            project: ProjectName::new("app").unwrap(),
            status: BuildStatus::InProgress,
            started_at: now,
            ended_at: None,
            source_version: Some(version.to_owned()),
            resolved_commit: None,
            inputs: GivenInputs::read(&environment),
            claims: true,
        });
        env.export(&inputs.exports[0], &Source { versions: [4, 1, 1, 1] }, |_| now);
        env.end(&id, BuildStatus::Succeeded, &head);
        env.settle().await;
        assert_eq!(env.line("branch/feature-b").is_some(), is_its_branch, "{version}");
    }
}

#[test]
fn a_builder_is_of_the_policys_buildkit_or_of_the_mirrors() {
    let script = format!("docker() {{ echo docker \"$@\"; }}\n{}", snippet("The builder", "sh"));
    let given = "--driver docker-container --driver-opt image=a.b/c:v1";
    let mirror = "--driver-opt image=registry.example/moby/buildkit:v0.25.2";
    for shell in ["dash", "bash"] {
        for (flags, called) in [(Some(given), given), (Some(""), mirror), (None, mirror)] {
            let mut command = Command::new(shell);
            command.args(["-eu", "-c", &script]).env_remove("STOKER_BUILDER_FLAGS");
            command.envs(flags.map(|flags| ("STOKER_BUILDER_FLAGS", flags)));
            let output = command.output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said, format!("docker buildx create --use {called}\n"), "{shell}: {flags:?}");
        }
    }
}

/// The words that `docker` is called with, a line for each call; it fails where it is to make an image of two.
fn called(script: &str, shell: &str, variables: &[(&str, &str)], fails: bool) -> Vec<String> {
    let ends = if fails { "[ \"$2\" != imagetools ]" } else { "true" };
    let script = format!("docker() {{ echo \"docker $*\"; {ends}; }}\n{script}");
    let mut command = Command::new(shell);
    command.args(["-eu", "-c", &script]).env_clear().envs(variables.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The blocks for `sh` under a heading.
fn shell_snippets(heading: &str) -> Vec<String> {
    let of_it = snippets().into_iter().filter(|(of, language, _)| of == heading && language == "sh");
    of_it.map(|(_, _, text)| text).collect()
}

#[test]
fn each_platform_is_built_with_its_own_flags_and_joined() {
    let [by_targets, natively] = &shell_snippets("Several platforms")[..] else { panic!("two ways") };
    let targets = "targets: [{ name: api, platforms: [linux/amd64, linux/arm64] }]";
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ci.md")).unwrap();
    assert!(document.contains(&format!("`{targets}`")));
    let policy =
        format!("version: 1\nprojects: [{{ name: app, repository: github.com/example/app, {targets} }}]");
    let project = Policy::parse("policy", &policy).unwrap().named_projects().remove(0);
    let bake = snippet("Several platforms", "hcl");
    for target in &project.targets {
        let flags = format!("${{STOKER_CACHE_FLAGS{}-}}", target.suffix());
        let platform = target.platform.as_ref().unwrap();
        assert!(by_targets.contains(&format!("docker buildx build {flags} --platform {platform} ")));
        let head = format!("target \"{}\" {{\n  platforms = [\"{platform}\"]\n", target.bake_name());
        assert!(bake.contains(&head), "{head}");
    }
    let flags = ("STOKER_CACHE_FLAGS_API_LINUX_ARM64", "--cache-from a");
    let of_one = [
        ("STOKER_CACHE_FLAGS", "--cache-from a"),
        ("STOKER_COMMIT", "c"),
        ("PROCESSOR", "arm64"),
        ("IMAGE", "i"),
    ];
    for shell in ["dash", "bash"] {
        assert_eq!(
            called(by_targets, shell, &[flags, ("IMAGE", "i")], false),
            [
                "docker buildx build --platform linux/amd64 -t i-amd64 --push .",
                "docker buildx build --cache-from a --platform linux/arm64 -t i-arm64 --push .",
                "docker buildx imagetools create -t i i-amd64 i-arm64",
            ]
        );
        let build = "docker buildx build --cache-from a -t i:c-arm64 --push .";
        let join = "docker buildx imagetools create -t i:c i:c-amd64 i:c-arm64";
        assert_eq!(called(natively, shell, &of_one, false), [build, join]);
        let waits = "the other processor's image is not there yet";
        assert_eq!(called(natively, shell, &of_one, true), [build, join, waits]);
    }
}

#[test]
fn compose_is_built_by_bake_and_only_run_by_compose() {
    let [compose] = &shell_snippets("docker compose")[..] else { panic!("one way") };
    let file =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("compose-{}.json", std::process::id()));
    let file = file.to_str().unwrap();
    for shell in ["dash", "bash"] {
        let calls = called(
            &compose.replace("/tmp/stoker-bake.json", file),
            shell,
            &[("STOKER_BAKE", "{\"a\":1}")],
            false,
        );
        let build = format!("docker buildx bake -f compose.yaml -f {file} --load");
        assert_eq!(calls, [build.as_str(), "docker compose up --no-build --detach"]);
        assert_eq!(fs::read_to_string(file).unwrap(), "{\"a\":1}");
    }
    fs::remove_file(file).unwrap();
}

#[test]
fn bake_reads_its_caches_from_a_file_outside_of_what_is_built() {
    let bake = snippet("docker buildx bake", "sh");
    let bench = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("bake-{}", std::process::id()));
    let checkout = bench.join("checkout");
    fs::create_dir_all(&checkout).unwrap();
    let file = bench.join("bake.json");
    let bake = bake.replace("/tmp/stoker-bake.json", file.to_str().unwrap());
    // In place of docker, what shows the file.
    let script = format!("docker() {{ echo \"$1 $2\"; cat \"$6\"; }}\n{bake}");
    for shell in ["dash", "bash"] {
        for (given, read) in [(Some(r#"{"target":{}}"#), r#"{"target":{}}"#), (Some(""), "{}"), (None, "{}")]
        {
            let mut command = Command::new(shell);
            command.args(["-eu", "-c", &script]).env_remove("STOKER_BAKE").current_dir(&checkout);
            command.envs(given.map(|given| ("STOKER_BAKE", given)));
            let output = command.output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said, format!("buildx bake\n{read}"), "{shell}: {given:?}");
        }
    }
    assert_eq!(fs::read_dir(&checkout).unwrap().count(), 0, "nothing of it is built");
    fs::remove_dir_all(&bench).unwrap();
}
