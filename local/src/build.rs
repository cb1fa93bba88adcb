//! One build: what is known of it, and how the `CodeBuild` API and the control API tell it.

use std::path::PathBuf;

use cache_misses::Steps;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::project::{Project, environment_json};
use crate::{ACCOUNT, REGION};

/// How a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Queued, or running.
    InProgress,
    /// Every phase succeeded.
    Succeeded,
    /// A phase failed.
    Failed,
    /// The machine failed.
    Fault,
    /// Somebody stopped it.
    Stopped,
    /// It took too long.
    TimedOut,
}

impl Status {
    /// As AWS spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "IN_PROGRESS",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Fault => "FAULT",
            Self::Stopped => "STOPPED",
            Self::TimedOut => "TIMED_OUT",
        }
    }
}

/// A phase of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "they are AWS's, in AWS's order")]
pub enum Phase {
    Submitted,
    Queued,
    Provisioning,
    DownloadSource,
    Install,
    PreBuild,
    Build,
    PostBuild,
    UploadArtifacts,
    Finalizing,
    Completed,
}

impl Phase {
    /// As AWS spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "SUBMITTED",
            Self::Queued => "QUEUED",
            Self::Provisioning => "PROVISIONING",
            Self::DownloadSource => "DOWNLOAD_SOURCE",
            Self::Install => "INSTALL",
            Self::PreBuild => "PRE_BUILD",
            Self::Build => "BUILD",
            Self::PostBuild => "POST_BUILD",
            Self::UploadArtifacts => "UPLOAD_ARTIFACTS",
            Self::Finalizing => "FINALIZING",
            Self::Completed => "COMPLETED",
        }
    }
}

/// A phase that a build went through, or is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseRecord {
    /// Which.
    pub phase: Phase,
    /// When it started.
    pub start: Timestamp,
    /// When it ended.
    pub end: Option<Timestamp>,
    /// How it ended.
    pub status: Option<Status>,
    /// Why it failed.
    pub context: Option<String>,
}

impl PhaseRecord {
    /// How long it took.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        Some(self.end?.duration_since(self.start).as_secs_f64())
    }
}

/// An environment variable of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Where the value comes from.
    #[serde(rename = "type", default = "plaintext")]
    pub kind: String,
}

fn plaintext() -> String {
    "PLAINTEXT".to_owned()
}

/// One build.
#[derive(Debug, Clone)]
pub struct Build {
    /// The part of its id after the project's name.
    pub uuid: String,
    /// Its project.
    pub project: Project,
    /// Its number among the project's builds.
    pub number: u32,
    /// How it stands.
    pub status: Status,
    /// Its phases so far.
    pub phases: Vec<PhaseRecord>,
    /// When it was asked for.
    pub queued_at: Timestamp,
    /// When the machine started with it.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// Who started it.
    pub initiator: String,
    /// What was asked to be built.
    pub source_version: Option<String>,
    /// The commit that this turned out to be.
    pub commit: Option<String>,
    /// The project's variables with those of the start.
    pub environment: Vec<Variable>,
    /// A buildspec of its own: a path in the repository, or a text.
    pub buildspec: Option<String>,
    /// How long it may take.
    pub timeout_in_minutes: u32,
    /// The variables that its buildspec exports, with their last values.
    pub exported: Vec<(String, String)>,
    /// What its log tells of the steps of its image builds.
    pub steps: Option<Steps>,
    /// Its log.
    pub log: PathBuf,
}

impl Build {
    /// `project:uuid`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}:{}", self.project.name, self.uuid)
    }

    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:codebuild:{REGION}:{ACCOUNT}:build/{}", self.id())
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.status != Status::InProgress
    }

    /// The phase that it is in.
    #[must_use]
    pub fn current_phase(&self) -> Phase {
        self.phases.last().map_or(Phase::Submitted, |record| record.phase)
    }

    /// Ends the current phase and starts the next.
    pub fn enter(&mut self, phase: Phase, now: Timestamp) {
        self.leave(Status::Succeeded, None, now);
        self.phases.push(PhaseRecord { phase, start: now, end: None, status: None, context: None });
    }

    /// Ends the current phase, unless that is done.
    pub fn leave(&mut self, status: Status, context: Option<String>, now: Timestamp) {
        if let Some(last) = self.phases.last_mut().filter(|last| last.end.is_none()) {
            last.end = Some(now);
            last.status = Some(status);
            last.context = context;
        }
    }

    /// The build as `BatchGetBuilds` tells it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let variables: Vec<Value> = self.environment.iter().map(|v| json!(v)).collect();
        let phases: Vec<Value> = self.phases.iter().map(phase_json).collect();
        let exported: Vec<Value> =
            self.exported.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mut build = json!({
            "id": self.id(),
            "arn": self.arn(),
            "buildNumber": self.number,
            "startTime": epoch(self.queued_at),
            "currentPhase": self.current_phase().as_str(),
            "buildStatus": self.status.as_str(),
            "projectName": self.project.name,
            "phases": phases,
            "source": self.project.source_json(),
            "artifacts": {"location": ""},
            "cache": {"type": "NO_CACHE"},
            "environment": environment_json(&variables),
            "exportedEnvironmentVariables": exported,
            "logs": {"groupName": self.log_group(), "streamName": self.uuid},
            "timeoutInMinutes": self.timeout_in_minutes,
            "queuedTimeoutInMinutes": 480,
            "buildComplete": self.is_over(),
            "initiator": self.initiator,
        });
        let optional = [
            ("endTime", self.ended_at.map(|at| json!(epoch(at)))),
            ("sourceVersion", self.source_version.as_ref().map(|v| json!(v))),
            ("resolvedSourceVersion", self.commit.as_ref().map(|v| json!(v))),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                build[name] = value;
            }
        }
        build
    }

    /// The build as the control API tells it.
    #[must_use]
    pub fn to_control(&self) -> Value {
        let seconds = self
            .started_at
            .zip(self.ended_at)
            .map(|(start, end)| round(end.duration_since(start).as_secs_f64()));
        let build = self.phases.iter().find(|record| record.phase == Phase::Build);
        let env: serde_json::Map<String, Value> = self
            .environment
            .iter()
            .filter(|v| v.name.starts_with("STOKER_"))
            .map(|v| (v.name.clone(), json!(v.value)))
            .collect();
        json!({
            "id": self.id(),
            "number": self.number,
            "project": self.project.name,
            "status": self.status,
            "queued_at": self.queued_at,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "seconds": seconds,
            "build_seconds": build.and_then(PhaseRecord::seconds).map(round),
            "steps": self.steps.as_ref().map(|s| s.total),
            "reused": self.steps.as_ref().map(|s| s.reused),
            "ran": self.steps.as_ref().map(|s| &s.ran),
            "env": env,
            "source_version": self.source_version,
            "commit": self.commit,
            "log": self.log,
        })
    }

    /// The group that its log would be in.
    #[must_use]
    pub fn log_group(&self) -> String {
        format!("/aws/codebuild/{}", self.project.name)
    }
}

/// Who starts a build that none of the deployed functions starts.
pub const INITIATOR: &str = "stoker-local";

fn phase_json(record: &PhaseRecord) -> Value {
    let mut phase = json!({"phaseType": record.phase.as_str(), "startTime": epoch(record.start)});
    if let (Some(end), Some(status), Some(seconds)) = (record.end, record.status, record.seconds()) {
        phase["endTime"] = json!(epoch(end));
        phase["phaseStatus"] = json!(status.as_str());
        phase["durationInSeconds"] = json!(whole(seconds));
        let context = record.context.as_deref().unwrap_or_default();
        phase["contexts"] = json!([{"statusCode": "", "message": context}]);
    }
    phase
}

/// Seconds since 1970, with the fraction that AWS sends.
fn epoch(at: Timestamp) -> f64 {
    round(at.as_duration().as_secs_f64())
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Whole seconds, as AWS counts phases.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a phase lasts hours at most")]
pub fn whole(seconds: f64) -> i64 {
    seconds.round() as i64
}
