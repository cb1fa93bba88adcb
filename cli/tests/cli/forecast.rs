//! `stoker forecast` on repositories that are made for it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::aws::{Account, build};
use crate::run::{Home, Ran};

/// A repository, written as `git fast-import` reads it.
pub(crate) struct Repository {
    pub(crate) home: Home,
    stream: String,
    marks: usize,
}

impl Repository {
    pub(crate) fn new() -> Self {
        Self { home: Home::new(), stream: String::new(), marks: 0 }
    }

    /// Commits files upon other commits, and gives the new one's mark.
    pub(crate) fn commit(
        &mut self,
        subject: &str,
        time: u32,
        parents: &[usize],
        files: &[(&str, &str)],
    ) -> usize {
        self.marks += 1;
        let (mark, length) = (self.marks, subject.len());
        let who = format!("A <a@example.com> {time} +0000");
        let mut text = format!("commit refs/heads/main\nmark :{mark}\nauthor {who}\ncommitter {who}\n");
        text.extend([format!("data {length}\n{subject}\n")]);
        text.extend(parents.iter().take(1).map(|parent| format!("from :{parent}\n")));
        text.extend(parents.iter().skip(1).map(|parent| format!("merge :{parent}\n")));
        text.extend(
            files.iter().map(|(path, content)| {
                format!("M 100644 inline {path}\ndata {}\n{content}\n", content.len())
            }),
        );
        self.stream.push_str(&text);
        self.stream.push('\n');
        self.marks
    }

    pub(crate) fn git(&self, arguments: &[&str], given: &str) -> String {
        let mut command = Command::new("git");
        command.arg("-C").arg(self.home.path()).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn write(&self) {
        self.git(&["init", "--quiet", "--initial-branch=main"], "");
        self.git(&["fast-import", "--quiet"], &self.stream);
    }

    async fn forecast(&self, flags: &[&str]) -> Ran {
        let directory = self.home.path().to_str().unwrap();
        let variables = [("PATH", std::env::var("PATH").unwrap()), ("HOME", directory.to_owned())];
        self.home.stoker_in(&variables, &[&["forecast", "--repository", directory], flags].concat(), "").await
    }

    async fn json(&self, flags: &[&str]) -> Value {
        let ran = self.forecast(&[flags, &["--json"]].concat()).await;
        assert_eq!(ran.code, 0, "{}", ran.err);
        serde_json::from_str(&ran.out).unwrap()
    }
}

/// Steps that main's builds after a merge ran in all, and those of branches, by the strategy.
fn steps(forecast: &Value, behind: bool) -> Vec<(String, u64, u64)> {
    let rows = forecast["strategies"].as_array().unwrap();
    let row = |row: &Value| {
        let figures = if behind { &row["behind"] } else { row };
        let steps = |side: &str| figures[side]["steps"].as_u64().unwrap();
        (row["strategy"].as_str().unwrap().to_owned(), steps("main"), steps("branches"))
    };
    rows.iter().map(row).collect()
}

fn named(rows: [(&str, u64, u64); 6]) -> Vec<(String, u64, u64)> {
    rows.map(|(name, main, branches)| (name.to_owned(), main, branches)).to_vec()
}

const DOCKERFILE: &str = "\
FROM node:20
WORKDIR /app
COPY package.json ./
RUN npm ci
COPY src src
RUN npm run build
";

/// Main, and two branches made from it, each with a file of its own: the second is merged behind the first.
fn two_branches() -> Repository {
    let mut repository = Repository::new();
    let files = [("Dockerfile", DOCKERFILE), ("package.json", "1"), ("src/a", "1"), ("src/b", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    let a = repository.commit("a", 2000, &[begin], &[("src/a", "2")]);
    let b = repository.commit("b", 3000, &[begin], &[("src/b", "2")]);
    let first = repository.commit("Merge pull request #1 from me/a", 4000, &[begin, a], &[("src/a", "2")]);
    let both = [("src/a", "2"), ("src/b", "2")];
    repository.commit("Merge pull request #2 from me/b", 5000, &[first, b], &both);
    repository.write();
    repository
}

#[tokio::test]
async fn merges_are_replayed_under_every_strategy() {
    let forecast = two_branches().json(&["--no-git-directory"]).await;
    // Each branch changes `src`: two steps of five. The first merge is what its branch built; the second is neither.
    let expected = [
        ("no-cache", 10, 10),
        // The second branch was built last, so main finds nothing of the first.
        ("shared-tag", 4, 4),
        ("tag-per-branch", 4, 4),
        ("github-scopes", 4, 4),
        ("stoker", 2, 4),
        ("local-disk", 2, 4),
    ];
    assert_eq!(steps(&forecast, false), named(expected));
    assert_eq!(forecast["ways"], serde_json::json!({"merge_commits": 2, "squashes": 0, "others": 1}));
    assert_eq!(forecast["builds_of_branches"], 2);
    assert_eq!(forecast["unknown"], serde_json::json!([]));
    let most = &forecast["often"][0];
    assert_eq!((most["step"].as_str(), most["runs"].as_u64()), (Some("RUN npm run build"), Some(4)));
}

#[tokio::test]
async fn a_squash_is_a_range_from_up_to_date_to_behind() {
    let mut repository = Repository::new();
    let files = [("Dockerfile", DOCKERFILE), ("package.json", "1"), ("src/a", "1"), ("src/b", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    let other = repository.commit("Push", 2000, &[begin], &[("src/b", "2")]);
    repository.commit("Add it (#7)", 3000, &[other], &[("src/a", "2")]);
    repository.write();
    let forecast = repository.json(&["--no-git-directory"]).await;
    let stoker = |behind| steps(&forecast, behind).into_iter().find(|row| row.0 == "stoker").unwrap();
    assert_eq!(stoker(false), ("stoker".to_owned(), 0, 2));
    // The branch built the change upon `Begin`, so main has what neither of them had.
    assert_eq!(stoker(true), ("stoker".to_owned(), 2, 2));
    let text = repository.forecast(&["--no-git-directory"]).await.out;
    assert!(text.contains("1 squash,") && text.contains("0-2"), "{text}");
}

#[tokio::test]
async fn a_commit_s_hash_in_an_argument_costs_what_comes_after_it() {
    let mut repository = Repository::new();
    let file = DOCKERFILE.replace("WORKDIR", "ARG SHA\nWORKDIR");
    let files = [("Dockerfile", file.as_str()), ("package.json", "1"), ("src/a", "1"), ("docs/a", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    let docs = repository.commit("Docs", 2000, &[begin], &[("docs/a", "2")]);
    repository.commit("Merge branch 'docs'", 3000, &[begin, docs], &[("docs/a", "2")]);
    repository.write();
    let stoker = |forecast: &Value| steps(forecast, false).remove(4);
    let without = repository.json(&["--no-git-directory"]).await;
    assert_eq!(stoker(&without), ("stoker".to_owned(), 0, 0));
    // Both commands run again, and what is copied upon the first one.
    let with = repository.json(&["--no-git-directory", "--build-arg-per-commit", "SHA"]).await;
    assert_eq!(stoker(&with), ("stoker".to_owned(), 3, 3));
}

#[tokio::test]
async fn the_directory_of_git_is_in_the_context_unless_it_is_ignored() {
    let mut repository = Repository::new();
    let files = [("Dockerfile", "FROM a\nCOPY . /x\nRUN make\n"), ("a", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    repository.commit("Nothing", 2000, &[begin], &[]);
    repository.commit("Ignore", 3000, &[begin], &[(".dockerignore", ".git\n")]);
    repository.write();
    let all = |forecast: &Value| steps(forecast, false)[4].1;
    assert_eq!(all(&repository.json(&["--merges", "1"]).await), 2);
    let mut wide = Repository::new();
    let begin = wide.commit("Begin", 1000, &[], &files);
    wide.commit("Nothing", 2000, &[begin], &[]);
    wide.write();
    assert_eq!(all(&wide.json(&[]).await), 4);
    assert_eq!(all(&wide.json(&["--no-git-directory"]).await), 2);
}

#[tokio::test]
async fn a_log_tells_how_long_steps_take() {
    let repository = two_branches();
    let log = repository.home.path().join("build.log");
    let text = "#1 [1/6] FROM node\n#1 DONE 1s\n#2 [6/6] RUN npm run build\n#2 0.1 x\n#2 DONE 3600.0s\n";
    std::fs::write(&log, text).unwrap();
    let forecast = repository.json(&["--no-git-directory", "--log", log.to_str().unwrap()]).await;
    assert_eq!((forecast["steps"].as_u64(), forecast["measured"].as_u64()), (Some(5), Some(1)));
    let often = forecast["often"].as_array().unwrap();
    let build = often.iter().find(|often| often["step"] == "RUN npm run build").unwrap();
    assert_eq!(build["hours"], serde_json::json!({"least": 4.0, "usual": 4.0, "most": 4.0}));
    assert_eq!(build["is_assumed"], false);
    let ran = repository.forecast(&["--no-git-directory", "--log", log.to_str().unwrap()]).await;
    assert!(ran.out.contains("the times of 1 of 5 steps"), "{}", ran.out);
}

#[tokio::test]
async fn the_page_shows_the_same_and_nothing_that_a_history_says_is_markup() {
    let mut repository = Repository::new();
    let file = DOCKERFILE.replace("npm run build", "echo '<script>alert(1)</script>'");
    let files = [("Dockerfile", file.as_str()), ("package.json", "1"), ("src/a", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    repository.commit("Push", 2000, &[begin], &[("src/a", "2")]);
    repository.write();
    let page = repository.home.path().join("page.html");
    let ran = repository.forecast(&["--no-git-directory", "--html", page.to_str().unwrap()]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let page = std::fs::read_to_string(page).unwrap();
    for label in ["no cache", "a tag per branch, and main", "GitHub&#39;s scopes", "a disk without limit"] {
        assert!(page.contains(label), "{label}");
    }
    // Six lines of hours; and of the last step one strip: it ran in both builds.
    assert_eq!(page.matches("<polyline class=\"s").count(), 6);
    assert!(page.contains("it ran in 2 of 2 builds") && page.contains("&lt;script&gt;"), "{page}");
    assert!(!page.contains("<script"));
    let nowhere = repository.home.path().join("no/page.html");
    let ran = repository.forecast(&["--html", nowhere.to_str().unwrap()]).await;
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("cannot write"), "{}", ran.err);
}

#[tokio::test]
async fn a_history_begins_where_the_dockerfile_does() {
    let mut repository = Repository::new();
    let begin = repository.commit("Begin", 1000, &[], &[("src/a", "1")]);
    let unreadable = repository.commit("Try", 2000, &[begin], &[("Dockerfile", "# nothing\n")]);
    let files = [("Dockerfile", "FROM a\nFETCH b\nRUN c\n")];
    repository.commit("Build", 3000, &[unreadable], &files);
    repository.write();
    let ran = repository.forecast(&[]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    for line in [
        "1 push not built: Dockerfile: there is no instruction in it.",
        "1 push not built: the commit has no such Dockerfile or context.",
        "line 2: FETCH is not understood (1 build)",
    ] {
        assert!(ran.out.contains(line), "{line}: {}", ran.out);
    }
}

#[tokio::test]
async fn what_cannot_be_replayed_is_said_with_what_to_do() {
    let none = Repository::new();
    let ran = none.forecast(&[]).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("is in no git repository") && ran.err.contains("--repository"), "{}", ran.err);

    let whole = two_branches();
    let shallow = Repository::new();
    let from = format!("file://{}", whole.home.path().display());
    shallow.git(&["clone", "--quiet", "--depth=1", &from, "."], "");
    let ran = shallow.forecast(&[]).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("git fetch --unshallow"), "{}", ran.err);

    for (flags, words) in [
        (["--dockerfile", "x/Dockerfile"], "main has no x/Dockerfile with context ."),
        (["--context", "no"], "main has no Dockerfile with context no"),
        (["--branch", "no"], "there is no branch no"),
        (["--target", "no"], "there is no stage `no` in it"),
        (["--log", "/no/log"], "cannot read /no/log"),
        (["--build-arg", "A"], "write it like VERSION=1.2"),
        (["--platform", "x"], "`x`"),
    ] {
        let ran = whole.forecast(&flags).await;
        assert_eq!(ran.code, 2, "{flags:?}");
        assert!(ran.err.contains(words), "{flags:?}: {}", ran.err);
    }

    let mut several = Repository::new();
    several.commit(
        "Begin",
        1,
        &[],
        &[("a/Dockerfile", "FROM a\nRUN b\n"), ("b/Dockerfile", "FROM a\nRUN b\n")],
    );
    several.write();
    let ran = several.forecast(&[]).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("several Dockerfiles: a/Dockerfile, b/Dockerfile"), "{}", ran.err);
    assert_eq!(several.forecast(&["--dockerfile", "b/Dockerfile"]).await.code, 0);
}

#[tokio::test]
async fn advice_is_what_a_replay_with_it_followed_saves() {
    let file = "FROM node:20\nARG SHA\nWORKDIR /app\nCOPY . .\nRUN npm ci\nRUN echo $SHA > /sha\n";
    let mut repository = Repository::new();
    let files = [("Dockerfile", file), (".dockerignore", ".git\n"), ("package.json", "1"), ("src/a", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    let a = repository.commit("a", 2000, &[begin], &[("src/a", "2")]);
    repository.commit("Merge branch 'a'", 3000, &[begin, a], &[("src/a", "2")]);
    repository.write();
    let advice = |forecast: &Value| {
        let of = |advice: &Value| (advice["kind"].as_str().unwrap().to_owned(), advice["line"].as_u64());
        forecast["advice"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    // The branch's build would not have installed again, as it changed no manifest; `.git` is ignored as it is.
    let forecast = repository.json(&[]).await;
    // Nor does the argument cost anything before its value changes.
    let named = [("argument-per-commit", Some(2)), ("copy-too-wide", Some(5))];
    assert_eq!(advice(&forecast), named.map(|(kind, line)| (kind.to_owned(), line)));
    assert_eq!(forecast["advice"][1]["runs"], serde_json::json!([2, 1]));
    let with = repository.json(&["--build-arg-per-commit", "SHA"]).await;
    assert!(advice(&with).contains(&("argument-too-early".to_owned(), Some(2))), "{with}");

    let mut open = Repository::new();
    let begin =
        open.commit("Begin", 1000, &[], &[("Dockerfile", "FROM a\nCOPY . /x\nRUN make\n"), ("a", "1")]);
    open.commit("Nothing", 2000, &[begin], &[]);
    open.write();
    let forecast = open.json(&[]).await;
    assert_eq!(advice(&forecast), [("git-directory".to_owned(), None)]);
    assert_eq!(forecast["advice"][0]["steps"], 2);
    let text = open.forecast(&[]).await.out;
    assert!(text.contains("add `.git` to .dockerignore") && text.contains("2 steps less"), "{text}");
}

#[tokio::test]
async fn targets_and_platforms_of_a_build_are_replayed_together() {
    let file = "FROM a AS base\nCOPY lib lib\nRUN make lib\nFROM base AS api\nCOPY api api\nFROM base AS \
         web\nCOPY web web\n";
    let mut repository = Repository::new();
    let files = [("Dockerfile", file), ("lib/a", "1"), ("api/a", "1"), ("web/a", "1")];
    let begin = repository.commit("Begin", 1000, &[], &files);
    let api = repository.commit("Api", 2000, &[begin], &[("api/a", "2")]);
    repository.commit("Lib", 3000, &[api], &[("lib/a", "2")]);
    repository.write();
    let all = |forecast: &Value| steps(forecast, false)[4].1;
    let of = async |flags: &[&str]| repository.json(&[flags, &["--no-git-directory"]].concat()).await;
    // What both targets rest on runs once: four steps, one for the change of the api, four for the library's.
    assert_eq!(all(&of(&["--target", "api"]).await), 3 + 1 + 3);
    let both = of(&["--target", "api", "--target", "web"]).await;
    assert_eq!(all(&both), 4 + 1 + 4);
    assert_eq!(both["images"][1]["target"], "web");
    assert_eq!(all(&of(&["--target", "web", "--platform", "linux/amd64,linux/arm64"]).await), 2 * (3 + 3));

    let bake = repository.home.path().join("bake.json");
    let text = r#"{"group": {"default": {"targets": ["api", "web"]}}, "target": {
        "api": {"context": ".", "dockerfile": "Dockerfile", "target": "api", "args": {"A": null, "B": "1"}},
        "web": {"context": ".", "target": "web", "platforms": ["linux/amd64", "linux/arm64"]}}}"#;
    std::fs::write(&bake, text).unwrap();
    let baked = of(&["--bake", bake.to_str().unwrap()]).await;
    assert_eq!(baked["images"].as_array().unwrap().len(), 3);
    assert_eq!(all(&baked), (4 + 3) + 1 + (4 + 3));
    for (text, words) in [
        ("{}", "holds no bake targets"),
        ("{\"target\": {}}", "names no target"),
        ("{\"target\": {\"x\": {\"context\": \"https://a/b\"}}}", "is not built from the repository alone"),
    ] {
        std::fs::write(&bake, text).unwrap();
        let ran = repository.forecast(&["--bake", bake.to_str().unwrap()]).await;
        assert_eq!(ran.code, 2, "{text}");
        assert!(ran.err.contains(words), "{}", ran.err);
    }
}

#[tokio::test]
async fn what_one_run_leaves_changes_nothing_of_the_next() {
    let repository = two_branches();
    let first = repository.json(&[]).await;
    let kept = repository.home.path().join(".cache/stoker");
    let files: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(repository.json(&[]).await, first);
    std::fs::write(&files[0], "nonsense").unwrap();
    assert_eq!(repository.json(&[]).await, first);
    assert_ne!(std::fs::read(&files[0]).unwrap(), b"nonsense");
}

#[tokio::test]
async fn each_kind_of_advice_is_told_where_it_saves_something() {
    // Each Dockerfile, what a second commit changes of it and beside it, the kind of advice that follows, and its line.
    let plain = "FROM a\nRUN make\n";
    for (kind, line, before, after, path) in [
        ("argument-per-commit", Some(2), "FROM a\nARG GIT_SHA\nRUN make\nRUN echo $GIT_SHA\n", "", "docs/a"),
        (
            "stamp-too-early",
            Some(2),
            "FROM a\nENV V=1\nRUN make\nRUN echo $V\n",
            "FROM a\nENV V=2\nRUN make\nRUN echo $V\n",
            "x",
        ),
        ("order-of-instructions", Some(3), "FROM a\nCOPY src /src\nRUN apk add curl\n", "", "src/a"),
        ("not-ignored", None, "FROM a\nCOPY . /x\nRUN make\n", "", "docs/a"),
        ("", None, plain, "", "src/a"),
        // What comes last costs nothing.
        ("", None, "FROM a\nRUN make\nARG GIT_SHA\nRUN echo $GIT_SHA\n", "", "src/a"),
    ] {
        let mut repository = Repository::new();
        let files = [("Dockerfile", before), (".dockerignore", ".git\n"), ("src/a", "1"), ("docs/a", "1")];
        let begin = repository.commit("Begin", 1000, &[], &files);
        let after = if after.is_empty() { before } else { after };
        repository.commit("Change", 2000, &[begin], &[("Dockerfile", after), (path, "2")]);
        repository.write();
        let forecast = repository.json(&[]).await;
        let reported: Vec<(&str, Option<u64>)> = forecast["advice"]
            .as_array()
            .unwrap()
            .iter()
            .map(|advice| (advice["kind"].as_str().unwrap(), advice["line"].as_u64()))
            .collect();
        let expected: Vec<_> = if kind.is_empty() { vec![] } else { vec![(kind, line)] };
        assert_eq!(reported, expected, "{before}");
    }
}

#[tokio::test]
async fn a_project_s_logs_tell_how_long_steps_take() {
    let repository = two_branches();
    let account = Account::start().await;
    account.env().projects.push("app".to_owned());
    let names = ["newest", "failed", "oldest"];
    for (number, name) in (0..).zip(names) {
        let mut build = build("app", number, false, "", "");
        build["startTime"] = serde_json::json!(1_000_000.0 - f64::from(number) * 86_400.0);
        build["buildStatus"] = serde_json::json!(if name == "failed" { "FAILED" } else { "SUCCEEDED" });
        build["logs"] = serde_json::json!({"groupName": "/aws/codebuild/app", "streamName": name});
        account.env().builds.push(build);
        let seconds = [100, 9, 300][number as usize];
        // In the newest build the step had another place.
        let log = [
            "[Container] 2026/01/01 00:00:00 Running command docker build\n".to_owned(),
            format!("#9 [{}/7] RUN npm  run build\n", 6 + number),
            format!("#9 DONE {seconds}.0s\n"),
        ];
        account.env().build_logs.insert(name.to_owned(), log.to_vec());
    }
    let directory = repository.home.path().to_str().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap();
    let line = format!("forecast --project app --no-git-directory --json --repository {directory}");
    let ran = account.stoker_in("", &line, &[("PATH", &path)]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let forecast: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(forecast["measured"], 1);
    let often = forecast["often"].as_array().unwrap();
    let build = often.iter().find(|often| often["step"] == "RUN npm run build").unwrap();
    // The median of the two that succeeded, four times.
    assert_eq!(build["hours"]["usual"], 4.0 * 300.0 / 3600.0);
    assert!((forecast["project_builds_per_month"].as_f64().unwrap() - 30.44).abs() < 0.01, "{forecast}");

    account.env().failing.push(("GetLogEvents".to_owned(), 9, "AccessDeniedException"));
    let ran = account.stoker_in("", &line, &[("PATH", &path)]).await;
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("logs:GetLogEvents"), "{}", ran.err);
    account.env().builds.clear();
    let ran = account.stoker_in("", &line, &[("PATH", &path)]).await;
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("app has no build"), "{}", ran.err);
}
