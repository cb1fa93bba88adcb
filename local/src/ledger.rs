//! All builds, in the order they were asked for. Time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use crate::build::{Build, INITIATOR, Phase, Status, Variable};
use crate::locked;
use crate::project::Project;

/// How long an idempotency token means its build.
const TOKEN_LIFE: SignedDuration = SignedDuration::from_mins(5);

/// A request that the API refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is wrong in itself.
    #[error("{0}")]
    InvalidInput(String),
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
}

/// `StartBuild`, as far as it is understood here. Anything else in a request is refused rather than ignored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartBuild {
    /// The project. The API demands it; the type does not, to refuse its absence in AWS's words.
    #[serde(default)]
    pub project_name: String,
    /// A branch, a tag, a commit, or `pr/<number>`.
    pub source_version: Option<String>,
    /// Variables that replace or join the project's.
    #[serde(default)]
    pub environment_variables_override: Vec<Variable>,
    /// A path in the repository, or the text of a buildspec.
    pub buildspec_override: Option<String>,
    /// How long the build may take.
    pub timeout_in_minutes_override: Option<u32>,
    /// Makes a repeated request harmless.
    pub idempotency_token: Option<String>,
    /// Who asks, which no request says of itself.
    #[serde(skip)]
    pub initiator: Option<String>,
}

/// What `StartBuild` came to.
#[derive(Debug)]
pub struct Started {
    /// The build.
    pub build: Build,
    /// Whether it is new, or an earlier request's.
    pub is_new: bool,
}

/// What `StopBuild` came to.
#[derive(Debug)]
pub struct Stopped {
    /// The build.
    pub build: Build,
    /// Whether it never ran and is over now; a running one ends soon.
    pub was_queued: bool,
}

/// The builds of this process.
#[derive(Debug)]
pub struct Ledger {
    projects: Vec<Project>,
    logs: PathBuf,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    builds: Vec<Build>,
    stops: Vec<String>,
    numbers: BTreeMap<String, u32>,
    tokens: HashMap<String, Token>,
}

#[derive(Debug)]
struct Token {
    taken_at: Timestamp,
    request: Value,
    build: String,
}

impl Ledger {
    /// An empty ledger; builds log into the directory `logs`.
    #[must_use]
    pub fn new(projects: Vec<Project>, logs: PathBuf) -> Self {
        Self { projects, logs, state: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// The projects.
    #[must_use]
    pub fn projects(&self) -> &[Project] {
        &self.projects
    }

    /// A project by its name.
    pub fn project(&self, name: &str) -> Result<&Project, Refusal> {
        if name.is_empty() {
            return Err(Refusal::InvalidInput("Project name is required".to_owned()));
        }
        self.projects.iter().find(|p| p.name == name).ok_or_else(|| {
            let arn = format!("arn:aws:codebuild:{}:{}:project/{name}", crate::REGION, crate::ACCOUNT);
            Refusal::NotFound(format!("Project cannot be found: {arn}"))
        })
    }

    /// Queues a build, or finds the one that an earlier, equal request queued.
    pub fn start(&self, request: &StartBuild, now: Timestamp) -> Result<Started, Refusal> {
        let project = self.project(&request.project_name)?;
        for variable in &request.environment_variables_override {
            if variable.kind != "PLAINTEXT" {
                let text = "only PLAINTEXT environment variables are understood here";
                return Err(Refusal::InvalidInput(format!("Invalid environment variable type: {text}")));
            }
        }
        let mut state = locked(&self.state);
        if let Some(token) = &request.idempotency_token {
            state.tokens.retain(|_, known| now.duration_since(known.taken_at) < TOKEN_LIFE);
            if let Some(known) = state.tokens.get(token) {
                if known.request != json!(request) {
                    let text = "Idempotency token parameter mismatch: \
                                the token was used with other parameters";
                    return Err(Refusal::InvalidInput(text.to_owned()));
                }
                let known = known.build.clone();
                if let Some(build) = state.builds.iter().find(|b| b.uuid == known) {
                    return Ok(Started { build: build.clone(), is_new: false });
                }
            }
        }
        let number = state.numbers.entry(project.name.clone()).or_default();
        *number += 1;
        let number = *number;
        let uuid = Uuid::new_v4().to_string();
        let mut build = Build {
            log: self.logs.join(format!("{uuid}.log")),
            uuid,
            project: project.clone(),
            number,
            status: Status::InProgress,
            phases: Vec::new(),
            queued_at: now,
            started_at: None,
            ended_at: None,
            initiator: request.initiator.clone().unwrap_or_else(|| INITIATOR.to_owned()),
            source_version: request.source_version.clone().filter(|v| !v.is_empty()),
            commit: None,
            environment: merge(project, &request.environment_variables_override),
            buildspec: request.buildspec_override.clone(),
            timeout_in_minutes: request.timeout_in_minutes_override.unwrap_or(project.timeout_in_minutes),
            exported: Vec::new(),
            steps: None,
        };
        build.enter(Phase::Submitted, now);
        build.enter(Phase::Queued, now);
        if let Some(token) = &request.idempotency_token {
            let entry = Token { taken_at: now, request: json!(request), build: build.uuid.clone() };
            state.tokens.insert(token.clone(), entry);
        }
        state.builds.push(build.clone());
        drop(state);
        self.changed();
        Ok(Started { build, is_new: true })
    }

    /// Ends a queued build, or asks the machine to end a running one.
    pub fn stop(&self, id: &str, now: Timestamp) -> Result<Stopped, Refusal> {
        let mut state = locked(&self.state);
        let Some(build) = state.builds.iter_mut().find(|b| b.id() == id || b.arn() == id) else {
            return Err(Refusal::NotFound(format!("Build cannot be found: {id}")));
        };
        let was_queued = !build.is_over() && build.started_at.is_none();
        if was_queued {
            end(build, Status::Stopped, now);
        }
        let stopped = Stopped { build: build.clone(), was_queued };
        if !stopped.build.is_over() {
            state.stops.push(stopped.build.uuid.clone());
        }
        drop(state);
        self.changed();
        Ok(stopped)
    }

    /// A build by its id or ARN.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Build> {
        locked(&self.state).builds.iter().find(|b| b.id() == id || b.arn() == id || b.uuid == id).cloned()
    }

    /// All builds, oldest first.
    #[must_use]
    pub fn builds(&self) -> Vec<Build> {
        locked(&self.state).builds.clone()
    }

    /// Waits for a build to be queued, and marks it as started.
    pub async fn next(&self) -> Build {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(build) = self.take() {
                return build;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    fn take(&self) -> Option<Build> {
        let mut state = locked(&self.state);
        let build = state.builds.iter_mut().find(|b| !b.is_over() && b.started_at.is_none())?;
        build.started_at = Some(Timestamp::now());
        Some(build.clone())
    }

    /// Waits until somebody asks for this running build to be stopped.
    pub async fn stop_asked(&self, uuid: &str) {
        let mut changes = self.changes.subscribe();
        while !locked(&self.state).stops.iter().any(|stop| stop == uuid) {
            let _ = changes.changed().await;
        }
    }

    /// Changes a build, and returns what it is now.
    pub fn update(&self, uuid: &str, change: impl FnOnce(&mut Build)) -> Option<Build> {
        let mut state = locked(&self.state);
        let build = state.builds.iter_mut().find(|b| b.uuid == uuid)?;
        change(build);
        Some(build.clone())
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// Ends a build. The phase that a failure is due to has been left before; what cuts a build off, cuts its phase off.
pub fn end(build: &mut Build, status: Status, now: Timestamp) {
    let phase = if status == Status::Failed { Status::Succeeded } else { status };
    build.leave(phase, None, now);
    build.enter(Phase::Completed, now);
    build.status = status;
    build.ended_at = Some(now);
}

/// The project's variables; those of the request replace the ones of the same name, and join them.
fn merge(project: &Project, overrides: &[Variable]) -> Vec<Variable> {
    let kind = || "PLAINTEXT".to_owned();
    let mut merged: Vec<Variable> = project
        .environment
        .iter()
        .map(|(name, value)| Variable { name: name.clone(), value: value.clone(), kind: kind() })
        .collect();
    for variable in overrides {
        match merged.iter_mut().find(|known| known.name == variable.name) {
            Some(known) => known.clone_from(variable),
            None => merged.push(variable.clone()),
        }
    }
    merged
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + second).unwrap()
    }

    pub(crate) fn ledger() -> Ledger {
        let project = json!({"name": "app", "source": "/srv/app.git", "environment": {"A": "1", "B": "2"}});
        Ledger::new(vec![serde_json::from_value(project).unwrap()], "/tmp/logs".into())
    }

    pub(crate) fn request(project: &str) -> StartBuild {
        StartBuild { project_name: project.to_owned(), ..StartBuild::default() }
    }

    fn variable(name: &str, value: &str) -> Variable {
        Variable { name: name.to_owned(), value: value.to_owned(), kind: "PLAINTEXT".to_owned() }
    }

    #[test]
    fn a_token_means_one_build_for_five_minutes() {
        let ledger = ledger();
        let mut ask = request("app");
        ask.idempotency_token = Some("t".to_owned());
        let first = ledger.start(&ask, at(0)).unwrap();
        let again = ledger.start(&ask, at(299)).unwrap();
        assert!(first.is_new && !again.is_new);
        assert_eq!(first.build.id(), again.build.id());

        let mut changed = ask.clone();
        changed.source_version = Some("main".to_owned());
        let refusal = ledger.start(&changed, at(299)).unwrap_err();
        assert!(matches!(&refusal, Refusal::InvalidInput(text) if text.contains("parameter mismatch")));

        let later = ledger.start(&changed, at(300)).unwrap();
        assert!(later.is_new);
        assert_eq!(later.build.number, 2);
    }

    #[test]
    fn variables_merge_by_name() {
        let mut ask = request("app");
        ask.environment_variables_override = vec![variable("B", "3"), variable("C", "4")];
        let build = ledger().start(&ask, at(0)).unwrap().build;
        assert_eq!(build.environment, [variable("A", "1"), variable("B", "3"), variable("C", "4")]);
    }

    #[test]
    fn an_unknown_project_is_not_found() {
        let refusal = ledger().start(&request("other"), at(0)).unwrap_err();
        assert!(matches!(refusal, Refusal::NotFound(_)));
        let refusal = ledger().start(&request(""), at(0)).unwrap_err();
        assert!(matches!(refusal, Refusal::InvalidInput(_)));
    }

    #[tokio::test]
    async fn builds_run_in_order_and_a_stopped_one_is_left_out() {
        let ledger = ledger();
        let first = ledger.start(&request("app"), at(0)).unwrap().build;
        let second = ledger.start(&request("app"), at(1)).unwrap().build;
        let third = ledger.start(&request("app"), at(2)).unwrap().build;
        let stopped = ledger.stop(&second.arn(), at(3)).unwrap();
        assert!(stopped.was_queued);
        assert_eq!(stopped.build.status, Status::Stopped);
        assert_eq!(ledger.next().await.id(), first.id());
        assert_eq!(ledger.next().await.id(), third.id());
        assert!(!ledger.stop(&third.id(), at(4)).unwrap().was_queued);
        ledger.stop_asked(&third.uuid).await;
    }
}
