//! The machine: runs one build after the other, each in a clean checkout and with a fresh builder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_misses::Log;
use jiff::Timestamp;
use tokio::process::Command;
use tokio::sync::{mpsc, watch};

use crate::build::{Build, Phase, Status};
use crate::builder::{Builder, BuilderError, STILLBORN};
use crate::buildspec::{Buildspec, BuildspecError, Mark, PHASES};
use crate::bus::Bus;
use crate::ledger::{self, Ledger};
use crate::{REGION, chain, events, locked};

/// What a build needs of its caller's environment to reach the builder and the network. Nothing else leaks in.
const PASSED_ON: [&str; 18] = [
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "BUILDX_BUILDER",
    "BUILDX_CONFIG",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];
/// Between a reference and the commit in `refs/heads/main^{<commit>}`, as webhooks send it.
const PINNED: &str = "^{";
/// How long processes have between being asked to end and being made to.
const GRACE: Duration = Duration::from_secs(2);

/// A build could not go on, for a reason outside its commands.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error("{what} failed")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("`git {command}` failed: {message}")]
    Git { command: &'static str, message: String },
    #[error("source version `{0}` is not in the repository")]
    UnknownVersion(String),
    #[error("buildspec `{path}` is not in the checkout")]
    NoBuildspec {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Buildspec(#[from] BuildspecError),
    #[error(transparent)]
    Builder(#[from] BuilderError),
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Obstacle {
    move |source| Obstacle::Io { what, source }
}

/// What builds are given to reach the stand-ins.
#[derive(Debug, Clone)]
pub struct LocalSetup {
    /// Where checkouts and logs go.
    pub state: PathBuf,
    /// The stand-in for AWS.
    pub aws: String,
    /// The registry.
    pub registry: String,
    /// `BASE_IMAGE` of the builds.
    pub base_image: Option<String>,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    ledger: Arc<Ledger>,
    bus: Arc<Bus>,
    builder: Builder,
    setup: LocalSetup,
    fresh: AtomicBool,
    /// The process group of the build that runs.
    group: Mutex<Option<u32>>,
    shutdown: watch::Sender<bool>,
}

impl Machine {
    /// A machine that takes its builds from `ledger`.
    #[must_use]
    pub fn new(ledger: Arc<Ledger>, bus: Arc<Bus>, builder: Builder, setup: LocalSetup) -> Self {
        Self {
            ledger,
            bus,
            builder,
            setup,
            fresh: AtomicBool::new(true),
            group: Mutex::default(),
            shutdown: watch::Sender::new(false),
        }
    }

    /// The builder.
    #[must_use]
    pub fn builder(&self) -> &Builder {
        &self.builder
    }

    /// What builds are told.
    #[must_use]
    pub fn setup(&self) -> &LocalSetup {
        &self.setup
    }

    /// Whether each build finds a fresh builder.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Sets whether the builds that follow find a fresh builder, or the one before theirs left.
    pub fn set_fresh(&self, fresh: bool) {
        self.fresh.store(fresh, Ordering::Relaxed);
    }

    /// Ends the running build, and [`Self::run`].
    pub fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    async fn is_shut_down(&self) {
        let mut shutdown = self.shutdown.subscribe();
        // The sender lives as long as `self`.
        let _ = shutdown.wait_for(|down| *down).await;
    }

    /// Runs builds until [`Self::shut_down`], then leaves the builder as it was found.
    pub async fn run(&self) {
        loop {
            let build = tokio::select! {
                build = self.ledger.next() => build,
                () = self.is_shut_down() => break,
            };
            self.build(build).await;
        }
        if let Err(error) = self.builder.clean().await {
            tracing::warn!(error = chain(&error), "the builder cannot be cleaned");
        }
    }

    async fn build(&self, build: Build) {
        let uuid = build.uuid.as_str();
        tracing::info!(build = build.id(), "build starts");
        let dir = self.setup.state.join("work").join(uuid);
        let limit = Duration::from_secs(u64::from(build.timeout_in_minutes) * 60);
        let status = tokio::select! {
            () = self.ledger.stop_asked(uuid) => Status::Stopped,
            () = self.is_shut_down() => Status::Stopped,
            result = tokio::time::timeout(limit, self.work(&build, &dir)) => match result {
                Err(_) => Status::TimedOut,
                Ok(Ok(status)) => status,
                Ok(Err(obstacle)) => {
                    self.stumble(&build, &obstacle);
                    if matches!(obstacle, Obstacle::Builder(_)) { Status::Fault } else { Status::Failed }
                }
            },
        };
        let ended_at = Timestamp::now();
        self.end_group().await;
        let steps = std::fs::read(&build.log).map(|log| Log::read(&String::from_utf8_lossy(&log)).steps());
        if let Err(error) = self.builder.after().await {
            tracing::warn!(error = chain(&error), "what the build left in the builder is not known");
        }
        // Containers may have written as other users; what cannot be removed stays.
        let _ = std::fs::remove_dir_all(&dir);
        let build = self.ledger.update(uuid, |build| {
            if matches!(status, Status::Succeeded | Status::Failed) {
                build.enter(Phase::UploadArtifacts, ended_at);
                build.enter(Phase::Finalizing, ended_at);
            }
            build.steps = steps.ok();
            ledger::end(build, status, ended_at);
        });
        if let Some(build) = build {
            tracing::info!(build = build.id(), status = status.as_str(), "build over");
            self.bus.emit(events::build_state_change(&build, Timestamp::now()));
        }
    }

    /// Writes down why a build cannot go on.
    fn stumble(&self, build: &Build, obstacle: &Obstacle) {
        let text = chain(obstacle);
        tracing::warn!(build = build.id(), error = text, "build fails");
        if let Ok(mut log) = File::options().create(true).append(true).open(&build.log) {
            let _ = writeln!(log, "{} {text}", container(Timestamp::now()));
        }
        let now = Timestamp::now();
        self.ledger.update(&build.uuid, |build| build.leave(Status::Failed, Some(text), now));
    }

    /// Makes a build, and makes it again where the engine could not start a container: no build of
    /// CodeBuild's fails so.
    async fn work(&self, build: &Build, dir: &Path) -> Result<Status, Obstacle> {
        let status = self.attempt(build, dir).await?;
        let log = std::fs::read(&build.log).map_err(io("reading the log"))?;
        if status != Status::Failed || !String::from_utf8_lossy(&log).contains(STILLBORN) {
            return Ok(status);
        }
        tracing::warn!(build = build.id(), "AGAIN, as the engine could not start a container");
        self.end_group().await;
        self.builder.after().await?;
        std::fs::remove_dir_all(dir).map_err(io("removing the build's directory"))?;
        std::fs::write(&build.log, "").map_err(io("emptying the log"))?;
        self.ledger.update(&build.uuid, |build| {
            build.phases.retain(|record| matches!(record.phase, Phase::Submitted | Phase::Queued));
        });
        self.attempt(build, dir).await
    }

    async fn attempt(&self, build: &Build, dir: &Path) -> Result<Status, Obstacle> {
        let enter = |phase| {
            let now = Timestamp::now();
            self.ledger.update(&build.uuid, |build| build.enter(phase, now))
        };
        enter(Phase::Provisioning);
        let source = dir.join("src");
        let exports = dir.join("exports");
        for dir in [&source, &exports] {
            std::fs::create_dir_all(dir).map_err(io("making the build's directory"))?;
        }
        self.builder.before(self.is_fresh()).await?;

        // A fresh machine is there: the build starts.
        let started_at = Timestamp::now();
        self.ledger.update(&build.uuid, |build| build.started_at = Some(started_at));
        enter(Phase::DownloadSource);
        let commit = checkout(&build.project.source, build.source_version.as_deref(), &source).await?;
        let spec = read_buildspec(build, &source)?;
        let build = self.ledger.update(&build.uuid, |build| build.commit = Some(commit));
        let Some(build) = build else {
            return Ok(Status::Fault);
        };

        let (main, post) = (dir.join("main.sh"), dir.join("post_build.sh"));
        let token = format!("@stoker-local-{}@", build.uuid);
        let (main_text, post_text) =
            spec.scripts(&token, &post.to_string_lossy(), &exports.to_string_lossy());
        std::fs::write(&main, main_text).map_err(io("writing the build's script"))?;
        std::fs::write(&post, post_text).map_err(io("writing the build's script"))?;

        let status = self.run_script(&build, &spec, &main, &source, token).await?;
        let exported: Vec<(String, String)> = spec
            .exported
            .iter()
            .filter_map(|name| Some((name.clone(), std::fs::read_to_string(exports.join(name)).ok()?)))
            .collect();
        self.ledger.update(&build.uuid, |build| build.exported = exported);
        Ok(status)
    }

    async fn run_script(
        &self,
        build: &Build,
        spec: &Buildspec,
        script: &Path,
        source: &Path,
        token: String,
    ) -> Result<Status, Obstacle> {
        let (reader, writer) = std::io::pipe().map_err(io("making a pipe"))?;
        let log =
            File::options().create(true).append(true).open(&build.log).map_err(io("opening the log"))?;
        let (reported, mut marks) = mpsc::unbounded_channel();
        let commands = spec.commands.clone();
        let reading = tokio::task::spawn_blocking(move || copy(reader, log, &token, &commands, &reported));
        let mut child = Command::new(&spec.shell)
            .arg(script)
            .current_dir(source)
            .env_clear()
            .envs(self.environment(build, spec, source))
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(io("making a pipe"))?)
            .stderr(writer)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(io("starting the shell"))?;
        *locked(&self.group) = child.id();

        let mut outcome = Outcome::default();
        let exit = loop {
            tokio::select! {
                mark = marks.recv() => match mark {
                    Some((mark, at)) => self.follow(build, spec, &mark, at, &mut outcome),
                    None => break child.wait().await,
                },
                exit = child.wait() => break exit,
            }
        };
        exit.map_err(io("waiting for the shell"))?;
        // What the commands left running would hold the log open.
        self.end_group().await;
        if let Ok(copied) = tokio::time::timeout(GRACE, reading).await
            && let Ok(Err(error)) = copied
        {
            tracing::warn!(build = build.id(), error = chain(&error), "the log is not complete");
        }
        while let Ok((mark, at)) = marks.try_recv() {
            self.follow(build, spec, &mark, at, &mut outcome);
        }
        Ok(if outcome.succeeded == PHASES.len() { Status::Succeeded } else { Status::Failed })
    }

    fn follow(&self, build: &Build, spec: &Buildspec, mark: &Mark, at: Timestamp, outcome: &mut Outcome) {
        self.ledger.update(&build.uuid, |build| match mark {
            Mark::Start(place) => build.enter(PHASES[*place], at),
            Mark::Run(_, command) => outcome.command = *command,
            Mark::End(_, 0) => {
                outcome.succeeded += 1;
                build.leave(Status::Succeeded, None, at);
            }
            Mark::End(place, code) => {
                let command = spec.commands[*place].get(outcome.command).map_or("", |c| c.trim());
                let why = format!("Error while executing command: {command}. Reason: exit status {code}");
                build.leave(Status::Failed, Some(why), at);
            }
        });
    }

    fn environment(&self, build: &Build, spec: &Buildspec, source: &Path) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
        for name in PASSED_ON {
            if let Ok(value) = std::env::var(name) {
                set(name, value);
            }
        }
        if let Some(bin) = self.builder.bin() {
            let path = std::env::var("PATH").unwrap_or_default();
            set("PATH", format!("{}:{path}", bin.display()));
        }
        set("AWS_ENDPOINT_URL", self.setup.aws.clone());
        set("AWS_ACCESS_KEY_ID", "test".to_owned());
        set("AWS_SECRET_ACCESS_KEY", "test".to_owned());
        set("BUILDKIT_PROGRESS", "plain".to_owned());
        set("ECR_REGISTRY", self.setup.registry.clone());
        if let Some(image) = &self.setup.base_image {
            set("BASE_IMAGE", image.clone());
        }
        // A build's own variables win over the project's, and those over the buildspec's.
        for (name, value) in &spec.variables {
            set(name, value.clone());
        }
        for variable in &build.environment {
            set(&variable.name, variable.value.clone());
        }
        for name in ["AWS_REGION", "AWS_DEFAULT_REGION", "CODEBUILD_AGENT_ENV_CODEBUILD_REGION"] {
            set(name, REGION.to_owned());
        }
        set("CI", "true".to_owned());
        set("CODEBUILD_CI", "true".to_owned());
        set("CODEBUILD_BUILD_ID", build.id());
        set("CODEBUILD_BUILD_ARN", build.arn());
        set("CODEBUILD_BUILD_NUMBER", build.number.to_string());
        set("CODEBUILD_INITIATOR", build.initiator.clone());
        set("CODEBUILD_LOG_PATH", build.uuid.clone());
        set("CODEBUILD_SRC_DIR", source.display().to_string());
        set("CODEBUILD_SOURCE_REPO_URL", build.project.source.clone());
        set("CODEBUILD_SOURCE_VERSION", build.source_version.clone().unwrap_or_default());
        set("CODEBUILD_RESOLVED_SOURCE_VERSION", build.commit.clone().unwrap_or_default());
        set("CODEBUILD_START_TIME", build.queued_at.as_millisecond().to_string());
        env
    }

    /// Ends what is left of the running build's processes.
    async fn end_group(&self) {
        let Some(group) = locked(&self.group).take() else {
            return;
        };
        signal("TERM", group).await;
        for _ in 0..20 {
            if !signal("0", group).await {
                return;
            }
            tokio::time::sleep(GRACE / 20).await;
        }
        signal("KILL", group).await;
    }
}

#[derive(Default)]
struct Outcome {
    succeeded: usize,
    command: usize,
}

/// Signals a process group; whether there was one.
async fn signal(name: &str, group: u32) -> bool {
    let kill = Command::new("kill")
        .args([&format!("-{name}"), "--", &format!("-{group}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    kill.await.is_ok_and(|status| status.success())
}

/// Copies a build's output to its log; turns marks into what `CodeBuild` writes in their place.
fn copy(
    reader: PipeReader,
    mut log: File,
    token: &str,
    commands: &[Vec<String>; 4],
    marks: &mpsc::UnboundedSender<(Mark, Timestamp)>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        if let Some((before, mark)) = Mark::find(&text, token) {
            let now = Timestamp::now();
            let container = container(now);
            if !before.is_empty() {
                writeln!(log, "{before}")?;
            }
            match &mark {
                Mark::Start(place) => {
                    writeln!(log, "{container} Entering phase {}", PHASES[*place].as_str())?;
                }
                Mark::Run(place, command) => {
                    let command = commands[*place].get(*command).map_or("", |c| c.trim_end());
                    writeln!(log, "{container} Running command {command}")?;
                }
                Mark::End(place, code) => {
                    let state = if *code == 0 { "SUCCEEDED" } else { "FAILED" };
                    let phase = PHASES[*place].as_str();
                    writeln!(log, "{container} Phase complete: {phase} State: {state}")?;
                }
            }
            // Nobody listens any more once the build was stopped.
            let _ = marks.send((mark, now));
        } else {
            log.write_all(&line)?;
        }
        line.clear();
    }
    Ok(())
}

fn container(now: Timestamp) -> String {
    now.strftime("[Container] %Y/%m/%d %H:%M:%S").to_string()
}

fn read_buildspec(build: &Build, source: &Path) -> Result<Buildspec, Obstacle> {
    let given = build.buildspec.as_deref().filter(|given| !given.is_empty());
    if let Some(text) = given.filter(|given| given.contains('\n')) {
        return Ok(Buildspec::parse(text)?);
    }
    let path = given.unwrap_or(&build.project.buildspec);
    let text = std::fs::read_to_string(source.join(path))
        .map_err(|source| Obstacle::NoBuildspec { path: path.to_owned(), source })?;
    Ok(Buildspec::parse(&text)?)
}

/// Clones a repository and checks out a version; returns the commit.
async fn checkout(repository: &str, version: Option<&str>, dir: &Path) -> Result<String, Obstacle> {
    git("clone", &["--quiet", "--no-checkout", "--", repository, "."], dir).await?;
    let commit = match version {
        None => git("rev-parse", &["--verify", "--quiet", "HEAD^{commit}"], dir).await?,
        Some(version) => {
            // Pull requests, from forks too, are not among what a clone brings.
            let pulls = "+refs/pull/*:refs/remotes/origin/pull/*";
            git("fetch", &["--quiet", "origin", pulls], dir).await?;
            let mut found = find(version, dir).await;
            if let (None, Some((reference, _))) = (&found, version.split_once(PINNED)) {
                // Other forges keep what is to be merged elsewhere. Whether this brought the commit shows in a moment.
                let _ = git("fetch", &["--quiet", "--", "origin", reference], dir).await;
                found = find(version, dir).await;
            }
            found.ok_or_else(|| Obstacle::UnknownVersion(version.to_owned()))?
        }
    };
    // The last line, should a git of another age print the option too.
    let commit = commit.lines().last().unwrap_or_default().to_owned();
    git("checkout", &["--quiet", "--detach", &commit], dir).await?;
    Ok(commit)
}

/// The commit of a source version, if the clone holds it.
async fn find(version: &str, dir: &Path) -> Option<String> {
    for name in spellings(version) {
        let commit = format!("{name}^{{commit}}");
        let known = git("rev-parse", &["--verify", "--quiet", "--end-of-options", &commit], dir).await;
        if known.is_ok() {
            return known.ok();
        }
    }
    None
}

/// What a source version may mean, the likeliest first.
fn spellings(version: &str) -> Vec<String> {
    // That very commit, wherever the reference points by now.
    if let Some((_, commit)) = version.split_once(PINNED) {
        return vec![commit.trim_end_matches('}').to_owned()];
    }
    if let Some(number) = version.strip_prefix("pr/") {
        return vec![format!("refs/remotes/origin/pull/{number}/head")];
    }
    let branch = version.strip_prefix("refs/heads/").unwrap_or(version);
    let mut all = vec![format!("refs/remotes/origin/{branch}")];
    if !version.starts_with("refs/") {
        all.push(format!("refs/tags/{version}"));
    }
    all.push(version.to_owned());
    all
}

async fn git(command: &'static str, arguments: &[&str], dir: &Path) -> Result<String, Obstacle> {
    let output = Command::new("git")
        .arg(command)
        .args(arguments)
        .current_dir(dir)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(io("running git"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Obstacle::Git { command, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_versions_are_spelled_in_many_ways() {
        assert_eq!(spellings("refs/heads/main^{abc}"), ["abc"]);
        assert_eq!(spellings("refs/pull/7/head^{abc}"), ["abc"]);
        assert_eq!(spellings("pr/7"), ["refs/remotes/origin/pull/7/head"]);
        assert_eq!(spellings("main"), ["refs/remotes/origin/main", "refs/tags/main", "main"]);
        assert_eq!(spellings("refs/heads/a/b"), ["refs/remotes/origin/a/b", "refs/heads/a/b"]);
        assert_eq!(spellings("refs/tags/v1")[1], "refs/tags/v1");
    }
}
