//! The events that Stoker's functions exchange and receive, all in EventBridge's envelope.
//!
//! Every one is a hint: it may come twice, late, out of order or not at all, so it carries just enough to know where
//! to look.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::Span;

use crate::names::{Branch, CacheRepository, Commit, Digest, Line, ProjectName, Repository, Revision};

/// The `source` of the events that Stoker itself puts on its bus.
pub const SOURCE: &str = "stoker";

/// How many merged commits are looked up: with the lines of one target they fit one request of 100 tags.
pub const MAX_COMMITS: usize = 90;

/// A branch got new commits, or was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchPushed {
    /// The repository.
    pub repository: Repository,
    /// The branch.
    pub branch: Branch,
    /// Its new head.
    pub commit: Commit,
    /// Commits that are new on the branch, the oldest first; the forge may have truncated the list.
    #[serde(default)]
    pub commits: Vec<Commit>,
    /// The repository's default branch at that moment.
    pub default_branch: Branch,
    /// Whether `branch` is the default branch. EventBridge patterns cannot compare two fields.
    pub to_default_branch: bool,
    /// Its head before; `None` for a new branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Commit>,
    /// Every file that the push added, changed or removed; `None` where the forge does not tell them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Whether the head's message, or the push, asks the forge's own CI to stay away, as `[skip ci]` does.
    #[serde(default)]
    pub skips_ci: bool,
    /// Who pushed, by the id that the forge has for that account; `None` where it tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The message of the new head; `None` where the forge does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was pushed by the forge's clock, where that is part of what the forge signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed_at: Option<Timestamp>,
    /// The git reference beside which CodeBuild takes the commit, such as `refs/heads/main`: it then fetches
    /// the branch and not the whole repository. `None` for GitLab, of which CodeBuild only takes the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// A tag of git was created or moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagPushed {
    /// The repository.
    pub repository: Repository,
    /// Its name, for which git has the same rules as for branches.
    pub tag: Branch,
    /// The commit that it names.
    pub commit: Commit,
    /// Who pushed, by the id that the forge has for that account; `None` where it tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The message of the commit; `None` where the forge does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was pushed by the forge's clock, where that is part of what the forge signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed_at: Option<Timestamp>,
}

/// What changed about a pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It was opened.
    #[default]
    Opened,
    /// It was closed and is open again.
    Reopened,
    /// It is a draft no more.
    Ready,
    /// Its branch got new commits, which is a push of its own where the branch is not a fork's.
    Pushed,
    /// It is to be merged into another branch than before.
    Retargeted,
    /// Its labels are others than before.
    Labelled,
    /// It was merged or closed.
    Ended,
}

impl Change {
    /// All that may start a build: an end does not.
    pub const BUILT: [Self; 6] =
        [Self::Opened, Self::Reopened, Self::Ready, Self::Pushed, Self::Retargeted, Self::Labelled];
}

/// A pull request: opened, updated, merged or closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// The repository that the pull request is for.
    pub repository: Repository,
    /// Its number.
    pub number: u64,
    /// The branch it comes from, in the fork where `from_fork`.
    pub branch: Branch,
    /// The head of that branch.
    pub commit: Revision,
    /// The branch it is to be merged into.
    pub base: Branch,
    /// The repository's default branch at that moment.
    pub default_branch: Branch,
    /// Whether it comes from another repository.
    pub from_fork: bool,
    /// The commit on the base branch that a merge made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_commit: Option<Revision>,
    /// What changed.
    #[serde(default)]
    pub change: Change,
    /// Whether its author says that it is not to be reviewed yet.
    #[serde(default)]
    pub draft: bool,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Who did this, by the id that the forge has for that account; of an approval, who opened the pull
    /// request. `None` where the forge tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The message of its head; `None` where the forge does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether that message, or the title where the forge heeds it, asks the forge's own CI to stay away.
    #[serde(default)]
    pub skips_ci: bool,
    /// The git reference by which the forge serves the head from the repository that the pull request is for, such as
    /// `refs/pull/7/head`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// When this happened by the forge's clock, where that is part of what the forge signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// Somebody approved a pull request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The pull request as it is now.
    pub pull_request: PullRequest,
    /// Who approved, by the forge's id of that account.
    pub approver: String,
    /// The head that was approved: it may not be the head any more.
    pub commit: Revision,
}

/// A branch is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchDeleted {
    /// The repository.
    pub repository: Repository,
    /// The branch.
    pub branch: Branch,
    /// The repository's default branch at that moment.
    pub default_branch: Branch,
    /// When it went by the forge's clock, where that is part of what the forge signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
}

/// AWS's "CodeBuild Build State Change", as far as Stoker reads it. The rest of the event is not typed here: a real
/// `IN_PROGRESS` event lacks fields that the published types demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuildStateChange {
    /// `SUCCEEDED`, `FAILED`, `IN_PROGRESS`, ...
    pub build_status: String,
    /// The project.
    pub project_name: ProjectName,
    /// The build's ARN, which ends in `build/<project>:<uuid>`.
    pub build_id: String,
}

impl BuildStateChange {
    /// Whether it ended badly. One that somebody stopped did not.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        ["FAILED", "FAULT", "TIMED_OUT"].contains(&self.build_status.as_str())
    }

    /// The build's id, `project:uuid`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.build_id.rsplit_once("build/").map_or(&self.build_id, |(_, id)| id)
    }
}

/// AWS's "ECR Image Action".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageAction {
    /// `PUSH`, `DELETE`, ...
    pub action_type: String,
    /// `SUCCESS` or `FAILURE`.
    pub result: String,
    /// The repository.
    pub repository_name: CacheRepository,
    /// The manifest's digest.
    #[serde(default)]
    pub image_digest: Option<Digest>,
    /// The tag; absent or empty for an untagged push.
    #[serde(default)]
    pub image_tag: Option<String>,
}

/// A tick of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// How many ticks a night has: each is for a shard of the projects.
    #[serde(default = "one")]
    pub slots: u32,
    /// Minutes between two ticks.
    #[serde(default = "one")]
    pub every_minutes: u32,
}

fn one() -> u32 {
    1
}

/// A project is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// The project.
    pub project: ProjectName,
}

/// A cache repository is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionRequested {
    /// The repository.
    pub repository: CacheRepository,
    /// The projects whose caches it holds: usually one.
    pub projects: Vec<ProjectName>,
}

/// A build that Stoker started has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailed {
    /// The project.
    pub project: ProjectName,
    /// The build's id.
    pub build: String,
    /// Its line.
    pub line: Line,
    /// The commit that it was to build, where that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<Commit>,
    /// Why it was started.
    pub reason: String,
    /// How it ended, in `CodeBuild`'s words.
    pub status: String,
}

/// A push has been waiting for its build for long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildDelayed {
    /// The repository.
    pub repository: Repository,
    /// The line that is to be built.
    pub line: Line,
    /// What stands in its way.
    pub why: String,
    /// How often a start was tried.
    pub tries: u32,
}

/// A project's builds of main reuse far less than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheHitRateDropped {
    /// The project.
    pub project: ProjectName,
    /// The build.
    pub build: String,
    /// Share of its steps that came out of the cache, in percent.
    pub reused_percent: u8,
    /// The same of the build before.
    pub before_percent: u8,
    /// Some of the steps that ran and that rest on none that ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_misses: Vec<FirstMiss>,
}

/// A step that ran and that rests on none that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstMiss {
    /// The digest of its record in the build's export.
    pub record: String,
    /// What its line says of it.
    pub cause: MissCause,
}

/// Why a step missed the cache, as far as the build's export and its line tell; what proves most comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissCause {
    /// The build was to build from scratch.
    Refresh,
    /// The line held nothing.
    NoLine,
    /// The line has it from before the build: the build was not given it, could not import it, or did not look.
    InLine,
    /// The line got it while the build ran.
    TooLate,
    /// The line has the operation, upon other files or another parent.
    OtherInputs,
    /// The line has no such operation: it is new, or is in the line no more.
    NotInLine,
}

/// A forge's webhook was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookRefused {
    /// The forge that it seems to come from.
    pub forge: String,
    /// Why.
    pub why: String,
}

/// A cache could not be promoted, and trying again is of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionFailed {
    /// What was to be promoted: a build, a tag, or commits that were merged.
    pub of: String,
    /// Why it was not, and what to do.
    pub why: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "detail-type", content = "detail")]
pub enum Event {
    /// A branch got new commits.
    BranchPushed(BranchPushed),
    /// A tag was created or moved.
    TagPushed(TagPushed),
    /// A pull request was opened, or changed in a way that a build may want to know of.
    PullRequestUpdated(PullRequest),
    /// Somebody approved a pull request.
    PullRequestApproved(Approval),
    /// A pull request was merged.
    PullRequestMerged(PullRequest),
    /// A pull request was closed without a merge.
    PullRequestClosed(PullRequest),
    /// A branch is gone.
    BranchDeleted(BranchDeleted),
    /// The nightly schedule asks which projects' main wants warming.
    NightlyWarm(Tick),
    /// One project's main may want warming.
    WarmRequested(Due),
    /// The nightly schedule asks for which projects lost events would have said something.
    NightlyReconcile(Tick),
    /// One project may have lost events.
    ReconcileRequested(Due),
    /// One project has lost events: what they would have said is to be made good.
    DriftFound(Due),
    /// The nightly schedule asks for retention.
    NightlyRetention(Tick),
    /// One cache repository may hold what can go.
    RetentionRequested(RetentionRequested),
    /// A build changed state.
    #[serde(rename = "CodeBuild Build State Change")]
    BuildStateChange(BuildStateChange),
    /// An image was pushed or deleted.
    #[serde(rename = "ECR Image Action")]
    ImageAction(ImageAction),
    /// Notifies people that a build that Stoker started has failed.
    BuildFailed(BuildFailed),
    /// Notifies people that a push has been waiting for its build for long.
    BuildDelayed(BuildDelayed),
    /// Notifies people that a project's builds of main reuse far less than before.
    CacheHitRateDropped(CacheHitRateDropped),
    /// Notifies people that a forge's webhook is refused.
    WebhookRefused(WebhookRefused),
    /// Notifies people that a cache could not be promoted, and that trying again is of no use.
    PromotionFailed(PromotionFailed),
}

impl Event {
    /// EventBridge's `detail-type`.
    #[must_use]
    pub fn detail_type(&self) -> &'static str {
        match self {
            Self::BranchPushed(_) => "BranchPushed",
            Self::TagPushed(_) => "TagPushed",
            Self::PullRequestUpdated(_) => "PullRequestUpdated",
            Self::PullRequestApproved(_) => "PullRequestApproved",
            Self::PullRequestMerged(_) => "PullRequestMerged",
            Self::PullRequestClosed(_) => "PullRequestClosed",
            Self::BranchDeleted(_) => "BranchDeleted",
            Self::NightlyWarm(_) => "NightlyWarm",
            Self::WarmRequested(_) => "WarmRequested",
            Self::NightlyReconcile(_) => "NightlyReconcile",
            Self::ReconcileRequested(_) => "ReconcileRequested",
            Self::DriftFound(_) => "DriftFound",
            Self::NightlyRetention(_) => "NightlyRetention",
            Self::RetentionRequested(_) => "RetentionRequested",
            Self::BuildStateChange(_) => "CodeBuild Build State Change",
            Self::ImageAction(_) => "ECR Image Action",
            Self::BuildFailed(_) => "BuildFailed",
            Self::BuildDelayed(_) => "BuildDelayed",
            Self::CacheHitRateDropped(_) => "CacheHitRateDropped",
            Self::WebhookRefused(_) => "WebhookRefused",
            Self::PromotionFailed(_) => "PromotionFailed",
        }
    }

    /// The repository that a forge's event is about.
    #[must_use]
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::BranchPushed(push) => Some(&push.repository),
            Self::TagPushed(push) => Some(&push.repository),
            Self::PullRequestUpdated(pull)
            | Self::PullRequestMerged(pull)
            | Self::PullRequestClosed(pull) => Some(&pull.repository),
            Self::PullRequestApproved(approval) => Some(&approval.pull_request.repository),
            Self::BranchDeleted(deleted) => Some(&deleted.repository),
            _ => None,
        }
    }

    /// What the log lines about this event have in common: by it one query finds all that came of a commit.
    #[must_use]
    pub fn span(&self) -> Span {
        let pull = |pull: &PullRequest| {
            let merged = pull.merge_commit.as_ref().map(ToString::to_string);
            (Some(pull.branch.to_string()), Some(pull.commit.to_string()), merged)
        };
        let (branch, commit, merged) = match self {
            // Of what a push brings to main, each commit is named.
            Self::BranchPushed(push) => {
                let newest = push.commits.iter().rev().take(MAX_COMMITS).filter(|_| push.to_default_branch);
                let merged = newest.map(Commit::as_str).collect::<Vec<_>>().join(" ");
                let merged = Some(merged).filter(|merged| !merged.is_empty());
                (Some(push.branch.to_string()), Some(push.commit.to_string()), merged)
            }
            Self::PullRequestUpdated(of) | Self::PullRequestMerged(of) | Self::PullRequestClosed(of) => {
                pull(of)
            }
            Self::PullRequestApproved(approval) => pull(&approval.pull_request),
            Self::TagPushed(push) => (None, Some(push.commit.to_string()), None),
            Self::BranchDeleted(deleted) => (Some(deleted.branch.to_string()), None, None),
            Self::BuildFailed(failed) => (None, failed.commit.as_ref().map(ToString::to_string), None),
            _ => (None, None, None),
        };
        let build = match self {
            Self::BuildStateChange(change) => Some(change.id()),
            Self::BuildFailed(failed) => Some(failed.build.as_str()),
            _ => None,
        };
        let tag = if let Self::TagPushed(push) = self { Some(push.tag.as_str()) } else { None };
        // As an error, so that it is there at every level of the log.
        tracing::error_span!(
            "event",
            event.kind = self.detail_type(),
            git.repository = self.repository().map(Repository::as_str),
            git.branch = branch,
            git.tag = tag,
            git.commit = commit,
            git.merged = merged,
            build.id = build,
        )
    }

    /// When it happened by the forge's clock, where that is part of what the forge signed.
    #[must_use]
    pub fn signed_at(&self) -> Option<Timestamp> {
        match self {
            Self::BranchPushed(push) => push.pushed_at,
            Self::TagPushed(push) => push.pushed_at,
            Self::PullRequestUpdated(pull)
            | Self::PullRequestMerged(pull)
            | Self::PullRequestClosed(pull) => pull.updated_at,
            Self::PullRequestApproved(approval) => approval.pull_request.updated_at,
            Self::BranchDeleted(deleted) => deleted.deleted_at,
            _ => None,
        }
    }
}

/// An event in EventBridge's envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// When it happened. Scheduler fills it in where it is asked to; where it does not, there is none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "time_if_any")]
    pub time: Option<Timestamp>,
    /// Who says so: `stoker`, `aws.codebuild` or `aws.ecr`.
    pub source: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

fn time_if_any<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// The text is no event that Stoker knows.
#[derive(Debug, thiserror::Error)]
#[error("not an event that Stoker knows")]
pub struct UnknownEvent(#[source] serde_json::Error);

impl Envelope {
    /// Reads an event as a rule, a queue or a schedule delivers it.
    pub fn parse(json: &str) -> Result<Self, UnknownEvent> {
        serde_json::from_str(json).map_err(UnknownEvent)
    }

    /// Like [`Envelope::parse`], for a payload that is already JSON.
    pub fn from_value(json: serde_json::Value) -> Result<Self, UnknownEvent> {
        serde_json::from_value(json).map_err(UnknownEvent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_in_progress_event_without_phases_is_read() {
        let json = r#"{"version":"0","id":"1","detail-type":"CodeBuild Build State Change","source":"aws.codebuild",
            "account":"123456789012","time":"2026-11-21T08:00:00Z","region":"us-east-1","resources":[],
            "detail":{"build-status":"IN_PROGRESS","project-name":"app",
            "build-id":"arn:aws:codebuild:us-east-1:123456789012:build/app:8745a7a9-c340-456a-9166-edf953571bEX",
            "current-phase":"SUBMITTED","current-phase-context":"[]","version":"1",
            "additional-information":{"build-number":55.0,"timeout-in-minutes":60.0,
            "logs":{"deep-link":"group=null;stream=null"}}}}"#;
        let Event::BuildStateChange(change) = Envelope::parse(json).unwrap().event else {
            panic!("wrong kind")
        };
        assert_eq!(change.id(), "app:8745a7a9-c340-456a-9166-edf953571bEX");
        assert_eq!(change.build_status, "IN_PROGRESS");
    }

    #[test]
    fn the_schedules_input_needs_no_envelope() {
        let json = r#"{"source":"stoker","detail-type":"NightlyWarm","detail":{}}"#;
        let once = Tick { slots: 1, every_minutes: 1 };
        assert_eq!(Envelope::parse(json).unwrap().event, Event::NightlyWarm(once));
    }

    #[test]
    fn hostile_names_are_refused_at_the_door() {
        let json = r#"{"source":"stoker","detail-type":"BranchDeleted","detail":
            {"repository":"github.com/example/app","branch":"a\nb","default_branch":"main"}}"#;
        assert!(Envelope::parse(json).is_err());
    }
}
