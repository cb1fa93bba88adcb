//! CodeCommit's events. They come through EventBridge, so nobody but AWS can have sent them; they tell neither the
//! default branch nor any commit but the head.

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::Value;

use super::bitbucket::NO_PROJECT;
use super::payload::{self, AccountId, Moment};
use super::{DefaultBranchOf, Meaning, Refusal};
use crate::event::{BranchDeleted, BranchPushed, Change, Event, PullRequest, TagPushed};
use crate::names::{Branch, Commit, Repository, Revision};
use crate::partition::domain;

/// Reads an event as EventBridge delivers it.
pub fn read(event: &Value, default_branch_of: &DefaultBranchOf<'_>) -> Result<Meaning, Refusal> {
    Ok(read_envelope(event, default_branch_of)?)
}

#[derive(Deserialize)]
struct Envelope<'e> {
    source: &'e str,
    #[serde(rename = "detail-type")]
    detail_type: &'e str,
    region: &'e str,
    #[serde(default)]
    time: Moment,
}

impl Envelope<'_> {
    /// A repository by the host and path that git clones it from.
    fn repository(&self, name: &str) -> Result<Repository, serde_json::Error> {
        let host = format!("git-codecommit.{}.{}", self.region, domain(self.region));
        Repository::new(format!("{host}/v1/repos/{name}")).map_err(serde_json::Error::custom)
    }
}

fn read_envelope(
    event: &Value,
    default_branch_of: &DefaultBranchOf<'_>,
) -> Result<Meaning, serde_json::Error> {
    let envelope = Envelope::deserialize(event)?;
    let detail = event.get("detail").unwrap_or(&Value::Null);
    match (envelope.source, envelope.detail_type) {
        ("aws.codecommit", "CodeCommit Repository State Change") => {
            read_reference(&envelope, detail, default_branch_of)
        }
        // The second spelling is that of an example in AWS's documentation.
        (
            "aws.codecommit",
            "CodeCommit Pull Request State Change" | "CodeCommit PullRequest State Change",
        ) => read_pull_request(&envelope, detail, default_branch_of),
        _ => Ok(Meaning::Ignored("not an event that Stoker acts on")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReferenceDetail {
    event: String,
    repository_name: String,
    #[serde(default)]
    reference_type: String,
    #[serde(default)]
    reference_name: String,
    #[serde(default)]
    commit_id: Option<Commit>,
    #[serde(default)]
    old_commit_id: Option<Commit>,
    #[serde(default)]
    caller_user_arn: AccountId,
}

fn read_reference(
    envelope: &Envelope<'_>,
    detail: &Value,
    default_branch_of: &DefaultBranchOf<'_>,
) -> Result<Meaning, serde_json::Error> {
    let detail = ReferenceDetail::deserialize(detail)?;
    let deleted = match detail.event.as_str() {
        "referenceCreated" | "referenceUpdated" => false,
        "referenceDeleted" => true,
        _ => return Ok(Meaning::Ignored("not an event that Stoker acts on")),
    };
    let is_tag = detail.reference_type == "tag";
    if detail.reference_type != "branch" && !is_tag {
        return Ok(Meaning::Ignored("a push of neither a branch nor a tag"));
    }
    let repository = envelope.repository(&detail.repository_name)?;
    let branch = Branch::new(detail.reference_name).map_err(serde_json::Error::custom)?;
    let no_commit = || serde_json::Error::custom("the reference has no commit");
    if is_tag {
        if deleted {
            return Ok(Meaning::Ignored(payload::TAG_DELETED));
        }
        return Ok(Meaning::one(Event::TagPushed(TagPushed {
            repository,
            tag: branch,
            commit: detail.commit_id.ok_or_else(no_commit)?,
            actor: detail.caller_user_arn.0,
            message: None,
            pushed_at: envelope.time.0,
        })));
    }
    let Some(default_branch) = default_branch_of(&repository) else {
        return Ok(Meaning::Ignored(NO_PROJECT));
    };
    if deleted {
        let deleted = BranchDeleted { repository, branch, default_branch, deleted_at: envelope.time.0 };
        return Ok(Meaning::one(Event::BranchDeleted(deleted)));
    }
    let commit = detail.commit_id.ok_or_else(no_commit)?;
    Ok(Meaning::one(Event::BranchPushed(BranchPushed {
        repository,
        reference: Some(payload::reference(&branch)),
        to_default_branch: branch == default_branch,
        branch,
        commits: vec![commit.clone()],
        commit,
        default_branch,
        before: detail.old_commit_id,
        paths: None,
        skips_ci: false,
        actor: detail.caller_user_arn.0,
        message: None,
        pushed_at: envelope.time.0,
    })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PullRequestDetail {
    event: String,
    repository_names: Vec<String>,
    pull_request_id: String,
    #[serde(default)]
    pull_request_status: String,
    /// `True` or `False`.
    #[serde(default)]
    is_merged: String,
    #[serde(default)]
    merge_option: String,
    source_reference: String,
    source_commit: Revision,
    destination_reference: String,
    #[serde(default)]
    caller_user_arn: AccountId,
}

impl PullRequestDetail {
    fn change(&self) -> Option<Change> {
        let merged = self.is_merged == "True";
        match self.event.as_str() {
            "pullRequestCreated" => Some(Change::Opened),
            "pullRequestSourceBranchUpdated" => Some(Change::Pushed),
            // A merge closes as well, and says so in an event of its own.
            "pullRequestStatusChanged" if self.pull_request_status == "Closed" && !merged => {
                Some(Change::Ended)
            }
            "pullRequestMergeStatusUpdated" if merged => Some(Change::Ended),
            _ => None,
        }
    }
}

fn read_pull_request(
    envelope: &Envelope<'_>,
    detail: &Value,
    default_branch_of: &DefaultBranchOf<'_>,
) -> Result<Meaning, serde_json::Error> {
    let detail = PullRequestDetail::deserialize(detail)?;
    let Some(change) = detail.change() else {
        return Ok(Meaning::Ignored("a change that changes no code"));
    };
    let no_repository = || serde_json::Error::custom("the pull request has no repository");
    let repository = envelope.repository(detail.repository_names.first().ok_or_else(no_repository)?)?;
    let branches =
        (payload::branch(&detail.source_reference)?, payload::branch(&detail.destination_reference)?);
    let (Some(branch), Some(base)) = branches else {
        return Ok(Meaning::Ignored("a pull request between other things than branches"));
    };
    let Some(default_branch) = default_branch_of(&repository) else {
        return Ok(Meaning::Ignored(NO_PROJECT));
    };
    let merged = change == Change::Ended && detail.is_merged == "True";
    // Only of a fast-forward is it told which commit a merge made: none but the one that was merged.
    let fast_forward = merged && detail.merge_option == "FAST_FORWARD_MERGE";
    let pull = PullRequest {
        repository,
        number: detail.pull_request_id.parse().map_err(serde_json::Error::custom)?,
        branch,
        merge_commit: fast_forward.then(|| detail.source_commit.clone()),
        commit: detail.source_commit,
        base,
        default_branch,
        from_fork: false,
        change,
        draft: false,
        labels: Vec::new(),
        actor: detail.caller_user_arn.0,
        message: None,
        skips_ci: false,
        reference: None,
        updated_at: envelope.time.0,
    };
    Ok(payload::pull_request(pull, merged))
}
