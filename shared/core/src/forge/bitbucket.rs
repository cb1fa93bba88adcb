//! Bitbucket Cloud's webhooks. They tell neither the default branch nor any file, and name a pull request's commits by
//! their first twelve digits.

use serde::Deserialize;
use serde::de::Error as _;

use super::payload::{self, AccountId, Moment};
use super::{DefaultBranchOf, MAX_EVENTS, Meaning};
use crate::event::{Approval, BranchDeleted, BranchPushed, Change, Event, PullRequest, TagPushed};
use crate::names::{Branch, Commit, Repository, Revision};

/// The header that carries the signature.
pub(super) const SIGNATURE_HEADER: &str = "x-hub-signature";

/// Where all its repositories are; a payload's links are not asked.
const HOST: &str = "bitbucket.org";

/// Why an event of a repository without a known default branch means nothing.
pub(super) const NO_PROJECT: &str = "the policy names no project of this repository";

/// Why nothing of Bitbucket Data Center is read: CodeBuild has no such source.
pub(super) const DATA_CENTER: &str = "this is a webhook of Bitbucket Data Center, from which CodeBuild cannot \
     build; have another CI \
                                      start the builds and ask resolve-cache (docs/ci.md), or move to Bitbucket Cloud";

/// Whether an event is of Bitbucket Data Center, which shares its header with Bitbucket Cloud and names its
/// events otherwise.
pub(super) fn is_of_data_center(event: &str) -> bool {
    event == "diagnostics:ping"
        || event == "repo:refs_changed"
        || ["pr:", "mirror:", "project:"].iter().any(|start| event.starts_with(start))
}

pub(super) fn read(
    event: &str,
    body: &[u8],
    default_branch_of: &DefaultBranchOf<'_>,
) -> Result<Meaning, serde_json::Error> {
    match event {
        "repo:push" => read_push(body, default_branch_of),
        "pullrequest:created"
        | "pullrequest:updated"
        | "pullrequest:fulfilled"
        | "pullrequest:rejected"
        | "pullrequest:approved" => read_pull_request(event, body, default_branch_of),
        _ => Ok(Meaning::Ignored("not an event that Stoker acts on")),
    }
}

#[derive(Deserialize)]
struct RepositoryPayload {
    full_name: String,
}

impl RepositoryPayload {
    fn name(&self) -> Result<Repository, serde_json::Error> {
        Repository::new(format!("{HOST}/{}", self.full_name)).map_err(serde_json::Error::custom)
    }
}

#[derive(Deserialize)]
struct Target {
    hash: Commit,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    target: Target,
}

#[derive(Deserialize)]
struct PushedCommit {
    hash: Commit,
}

/// What became of one reference: `old` is null when it is new, `new` when it is gone.
#[derive(Deserialize)]
struct RefChange {
    old: Option<Reference>,
    new: Option<Reference>,
    /// The newest at most five, the newest first.
    #[serde(default)]
    commits: Vec<PushedCommit>,
}

impl RefChange {
    fn event(
        self,
        repository: &Repository,
        default_branch: &Branch,
        actor: Option<&str>,
    ) -> Result<Option<Event>, serde_json::Error> {
        let Some(reference) = self.new.as_ref().or(self.old.as_ref()) else { return Ok(None) };
        let (repository, default_branch) = (repository.clone(), default_branch.clone());
        let name = || Branch::new(reference.name.as_str()).map_err(serde_json::Error::custom);
        let branch = match reference.kind.as_str() {
            "branch" => name()?,
            "tag" => {
                let tag = name()?;
                return Ok(self.new.map(|new| {
                    Event::TagPushed(TagPushed {
                        repository,
                        tag,
                        actor: actor.map(str::to_owned),
                        message: new.target.message.as_deref().and_then(payload::message),
                        commit: new.target.hash,
                        pushed_at: None,
                    })
                }));
            }
            _ => return Ok(None),
        };
        let Some(new) = self.new else {
            let deleted = BranchDeleted { repository, branch, default_branch, deleted_at: None };
            return Ok(Some(Event::BranchDeleted(deleted)));
        };
        Ok(Some(Event::BranchPushed(BranchPushed {
            repository,
            reference: Some(payload::reference(&branch)),
            to_default_branch: branch == default_branch,
            branch,
            commits: self.commits.into_iter().rev().map(|commit| commit.hash).collect(),
            default_branch,
            before: self.old.map(|old| old.target.hash),
            paths: None,
            skips_ci: new.target.message.as_deref().is_some_and(payload::has_skip_mark),
            actor: actor.map(str::to_owned),
            message: new.target.message.as_deref().and_then(payload::message),
            commit: new.target.hash,
            // The only dates are those that the authors of commits wrote.
            pushed_at: None,
        })))
    }
}

#[derive(Deserialize)]
struct Push {
    changes: Vec<RefChange>,
}

#[derive(Deserialize)]
struct PushPayload {
    push: Push,
    repository: RepositoryPayload,
    #[serde(default)]
    actor: Option<User>,
}

fn read_push(body: &[u8], default_branch_of: &DefaultBranchOf<'_>) -> Result<Meaning, serde_json::Error> {
    let payload: PushPayload = serde_json::from_slice(body)?;
    let repository = payload.repository.name()?;
    let Some(default_branch) = default_branch_of(&repository) else {
        return Ok(Meaning::Ignored(NO_PROJECT));
    };
    let actor = payload.actor.and_then(|user| user.account_id.0);
    let mut events = Vec::new();
    for change in payload.push.changes {
        events.extend(change.event(&repository, &default_branch, actor.as_deref())?);
    }
    if events.len() > MAX_EVENTS {
        tracing::warn!(%repository, branches = events.len(), "a push of too many branches; the last ones are left out");
        events.truncate(MAX_EVENTS);
    }
    Ok(if events.is_empty() {
        Meaning::Ignored("no branch was pushed, and no tag but what was deleted")
    } else {
        Meaning::Events(events)
    })
}

#[derive(Deserialize)]
struct BranchName {
    name: Branch,
}

#[derive(Deserialize)]
struct ShortCommit {
    hash: Revision,
}

#[derive(Deserialize)]
struct Source {
    branch: BranchName,
    /// Null when the branch has been deleted.
    commit: Option<ShortCommit>,
    /// Null when the fork has been deleted.
    repository: Option<RepositoryPayload>,
}

#[derive(Deserialize)]
struct Destination {
    branch: BranchName,
}

#[derive(Deserialize)]
struct PullRequestBody {
    id: u64,
    #[serde(default)]
    state: String,
    source: Source,
    destination: Destination,
    #[serde(default)]
    merge_commit: Option<ShortCommit>,
    #[serde(default)]
    draft: bool,
    #[serde(default)]
    updated_on: Moment,
    /// Who opened it.
    #[serde(default)]
    author: Option<User>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    account_id: AccountId,
}

#[derive(Deserialize)]
struct ApprovalBody {
    #[serde(default)]
    date: Moment,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize)]
struct PullRequestPayload {
    #[serde(default)]
    approval: Option<ApprovalBody>,
    #[serde(default)]
    actor: Option<User>,
    repository: RepositoryPayload,
    pullrequest: PullRequestBody,
}

fn read_pull_request(
    event: &str,
    body: &[u8],
    default_branch_of: &DefaultBranchOf<'_>,
) -> Result<Meaning, serde_json::Error> {
    let payload: PullRequestPayload = serde_json::from_slice(body)?;
    let repository = payload.repository.name()?;
    let Some(default_branch) = default_branch_of(&repository) else {
        return Ok(Meaning::Ignored(NO_PROJECT));
    };
    let pull = payload.pullrequest;
    let (merged, ended) = (pull.state == "MERGED", pull.state != "OPEN");
    // The header is not signed: what was signed has to say the same.
    let change = match event {
        "pullrequest:created" if !ended => Change::Opened,
        "pullrequest:updated" if !ended => Change::Pushed,
        "pullrequest:approved" if !ended => Change::default(),
        "pullrequest:fulfilled" if merged => Change::Ended,
        "pullrequest:rejected" if ended && !merged => Change::Ended,
        _ => return Ok(Meaning::Ignored("a pull request in another state than this event leaves it in")),
    };
    let Some(ShortCommit { hash: commit }) = pull.source.commit else {
        return Ok(Meaning::Ignored("a pull request without a head"));
    };
    let source = pull.source.repository.as_ref().map(|source| &source.full_name);
    let actor = if event == "pullrequest:approved" { pull.author } else { payload.actor };
    let mut pull_request = PullRequest {
        from_fork: source != Some(&payload.repository.full_name),
        repository,
        number: pull.id,
        branch: pull.source.branch.name,
        commit: commit.clone(),
        base: pull.destination.branch.name,
        default_branch,
        merge_commit: pull.merge_commit.map(|commit| commit.hash).filter(|_| merged),
        change,
        draft: pull.draft,
        labels: Vec::new(),
        actor: actor.and_then(|user| user.account_id.0),
        message: None,
        skips_ci: false,
        reference: None,
        updated_at: pull.updated_on.0,
    };
    if event == "pullrequest:approved" {
        // Nicknames are neither unique nor lasting: anybody could take that of an approver.
        let id =
            payload.approval.as_ref().and_then(|approval| approval.user.as_ref()?.account_id.0.as_deref());
        let Some(approver) = id.and_then(payload::account) else {
            return Ok(Meaning::Ignored("an approval by nobody"));
        };
        // An approval need not change the pull request's own date, which may be weeks ago.
        pull_request.updated_at = payload.approval.and_then(|approval| approval.date.0);
        let approval = Approval { pull_request, approver, commit };
        return Ok(Meaning::one(Event::PullRequestApproved(approval)));
    }
    Ok(payload::pull_request(pull_request, merged))
}
