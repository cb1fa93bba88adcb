//! GitLab's webhooks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::Mac as _;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny};

use super::payload::{self, AccountId, Moment, PushedCommit};
use super::{Meaning, Refusal, mac, signs};
use crate::event::{Approval, BranchDeleted, BranchPushed, Change, Event, PullRequest, TagPushed};
use crate::names::{Branch, Commit, Repository, Revision};

/// The header that carries the secret token itself.
pub(super) const TOKEN_HEADER: &str = "x-gitlab-token";
/// The header that carries the signatures of the signing token, as Standard Webhooks has it.
pub(super) const SIGNATURE_HEADER: &str = "webhook-signature";
/// What is signed beside the body.
const ID_HEADER: &str = "webhook-id";
const TIMESTAMP_HEADER: &str = "webhook-timestamp";

/// What a signing token begins with; the key follows in base64.
const SIGNING_TOKEN: &[u8] = b"whsec_";

/// How far a signature's own date may be from now.
const MAX_SIGNATURE_AGE: SignedDuration = SignedDuration::from_mins(5);

/// A signature has to hold wherever there is one: the token would do for whoever has seen a single request.
pub(super) fn verify<'h>(
    secrets: &[Vec<u8>],
    header: &impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Refusal> {
    if let Some(signatures) = header(SIGNATURE_HEADER) {
        let (Some(id), Some(timestamp)) = (header(ID_HEADER), header(TIMESTAMP_HEADER)) else {
            return Err(Refusal::WrongSignature);
        };
        return verify_signatures(secrets, signatures, id, timestamp, body, now);
    }
    let token = header(TOKEN_HEADER).ok_or(Refusal::Unsigned)?;
    if secrets.iter().any(|secret| is_token(secret, token)) { Ok(()) } else { Err(Refusal::WrongSignature) }
}

fn verify_signatures(
    secrets: &[Vec<u8>],
    signatures: &str,
    id: &str,
    timestamp: &str,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Refusal> {
    let claimed = signatures.split_ascii_whitespace().filter_map(|signature| signature.strip_prefix("v1,"));
    let claimed: Vec<Vec<u8>> = claimed.filter_map(|text| STANDARD.decode(text).ok()).collect();
    let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    if !secrets.iter().any(|secret| signs(&signing_key(secret), &parts, &claimed)) {
        return Err(Refusal::WrongSignature);
    }
    let signed_at = timestamp.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let fresh = signed_at.is_some_and(|signed_at| now.duration_since(signed_at).abs() <= MAX_SIGNATURE_AGE);
    if fresh { Ok(()) } else { Err(Refusal::Stale) }
}

/// The bytes that a signing token stands for; a secret of another form is its own key.
fn signing_key(secret: &[u8]) -> Vec<u8> {
    let key = secret.strip_prefix(SIGNING_TOKEN).and_then(|text| STANDARD.decode(text).ok());
    key.unwrap_or_else(|| secret.to_vec())
}

/// Compares by what the secret makes of both, so that the time it takes tells nothing of where they differ.
fn is_token(secret: &[u8], token: &str) -> bool {
    let of_token = mac(secret, &[token.as_bytes()]).map(|mac| mac.finalize().into_bytes().to_vec());
    of_token.is_some_and(|of_token| signs(secret, &[secret], &[of_token]))
}

pub(super) fn read(event: &str, body: &[u8]) -> Result<Meaning, serde_json::Error> {
    match event {
        "Push Hook" | "Tag Push Hook" => read_push(body),
        "Merge Request Hook" => read_merge_request(body),
        // A hook of the whole server, whose events are those of its projects' hooks; only the body says which.
        "System Hook" => match serde_json::from_slice::<SystemHook>(body)?.kind() {
            "push" | "tag_push" => read_push(body),
            "merge_request" => read_merge_request(body),
            _ => Ok(Meaning::Ignored("not an event that Stoker acts on")),
        },
        _ => Ok(Meaning::Ignored("not an event that Stoker acts on")),
    }
}

/// Which event a system hook is of: pushes name it once or twice, merge requests in the one field and all
/// else in the other.
#[derive(Deserialize)]
struct SystemHook {
    #[serde(default)]
    object_kind: String,
    #[serde(default)]
    event_name: String,
}

impl SystemHook {
    fn kind(&self) -> &str {
        if self.object_kind.is_empty() { &self.event_name } else { &self.object_kind }
    }
}

#[derive(Deserialize)]
struct Project {
    web_url: String,
    /// Null for a repository that was empty until now.
    default_branch: Option<Branch>,
}

impl Project {
    fn name(&self) -> Result<Repository, serde_json::Error> {
        payload::repository(&self.web_url)
    }
}

#[derive(Deserialize, Default)]
struct CiOptions {
    #[serde(default)]
    skip: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
struct PushOptions {
    #[serde(default)]
    ci: Option<CiOptions>,
}

#[derive(Deserialize)]
struct PushPayload {
    #[serde(rename = "ref")]
    reference: String,
    before: String,
    after: String,
    project: Project,
    #[serde(default)]
    commits: Vec<PushedCommit>,
    #[serde(default)]
    total_commits_count: Option<usize>,
    #[serde(default)]
    push_options: Option<PushOptions>,
    /// The commit of a tag; null where it was deleted.
    #[serde(default)]
    checkout_sha: Option<Commit>,
    #[serde(default)]
    user_id: AccountId,
}

impl PushPayload {
    /// The commits tell every path only if all are listed, and only for a branch that was there before. GitLab does
    /// not say whether a push was forced.
    fn paths(&self) -> Option<Vec<String>> {
        let all = !self.commits.is_empty() && self.total_commits_count == Some(self.commits.len());
        if all && !is_zero(&self.before) { payload::paths(&self.commits) } else { None }
    }

    /// The message of the new head.
    fn message(&self) -> Option<&str> {
        let head = self.commits.iter().find(|commit| commit.id.as_str() == self.after)?;
        head.message.as_deref()
    }

    fn skips_ci(&self) -> bool {
        let by_option = self.push_options.as_ref().and_then(|options| options.ci.as_ref());
        self.message().is_some_and(payload::has_skip_mark) || by_option.is_some_and(|ci| ci.skip.is_some())
    }
}

/// The commit that stands for none.
fn is_zero(commit: &str) -> bool {
    commit.bytes().all(|digit| digit == b'0')
}

fn read_push(body: &[u8]) -> Result<Meaning, serde_json::Error> {
    let push: PushPayload = serde_json::from_slice(body)?;
    if let Some(tag) = payload::tag(&push.reference)? {
        return read_tag(push, tag);
    }
    let Some(branch) = payload::branch(&push.reference)? else {
        return Ok(Meaning::Ignored("a push of neither a branch nor a tag"));
    };
    let repository = push.project.name()?;
    let (paths, skips_ci) = (push.paths(), push.skips_ci());
    let message = push.message().and_then(payload::message);
    // The first branch of an empty repository becomes its default branch.
    let default_branch = push.project.default_branch.unwrap_or_else(|| branch.clone());
    if is_zero(&push.after) {
        let deleted = BranchDeleted { repository, branch, default_branch, deleted_at: None };
        return Ok(Meaning::one(Event::BranchDeleted(deleted)));
    }
    Ok(Meaning::one(Event::BranchPushed(BranchPushed {
        repository,
        to_default_branch: branch == default_branch,
        branch,
        commit: Commit::new(push.after).map_err(serde_json::Error::custom)?,
        commits: push.commits.into_iter().map(|commit| commit.id).collect(),
        default_branch,
        before: Commit::new(push.before).ok(),
        paths,
        skips_ci,
        actor: push.user_id.0,
        message,
        pushed_at: None,
        reference: None,
    })))
}

fn read_tag(push: PushPayload, tag: Branch) -> Result<Meaning, serde_json::Error> {
    if is_zero(&push.after) {
        return Ok(Meaning::Ignored(payload::TAG_DELETED));
    }
    // Of an annotated tag `after` is the tag's own object.
    let commit = push.checkout_sha;
    let commit = commit.map_or_else(|| Commit::new(push.after).map_err(serde_json::Error::custom), Ok)?;
    let head = push.commits.iter().find(|known| known.id == commit);
    Ok(Meaning::one(Event::TagPushed(TagPushed {
        repository: push.project.name()?,
        tag,
        actor: push.user_id.0,
        message: head.and_then(|head| head.message.as_deref()).and_then(payload::message),
        commit,
        pushed_at: None,
    })))
}

#[derive(Deserialize)]
struct LastCommit {
    id: Revision,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct MergeRequest {
    iid: u64,
    #[serde(default)]
    title: String,
    /// Who opened it.
    #[serde(default)]
    author_id: AccountId,
    #[serde(default)]
    action: String,
    #[serde(default)]
    state: String,
    source_branch: Branch,
    target_branch: Branch,
    /// Null when the fork has been deleted.
    source_project_id: Option<u64>,
    target_project_id: u64,
    last_commit: Option<LastCommit>,
    #[serde(default)]
    merge_commit_sha: Option<Revision>,
    #[serde(default)]
    squash_commit_sha: Option<Revision>,
    #[serde(default)]
    draft: bool,
    #[serde(default)]
    oldrev: Option<IgnoredAny>,
    #[serde(default)]
    updated_at: Moment,
}

#[derive(Deserialize)]
struct Label {
    title: String,
}

#[derive(Deserialize)]
struct DraftChange {
    current: Option<bool>,
}

#[derive(Deserialize, Default)]
struct Changes {
    target_branch: Option<IgnoredAny>,
    labels: Option<IgnoredAny>,
    draft: Option<DraftChange>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    id: AccountId,
}

#[derive(Deserialize)]
struct MergeRequestPayload {
    #[serde(default)]
    user: Option<User>,
    project: Project,
    object_attributes: MergeRequest,
    #[serde(default)]
    labels: Vec<Label>,
    #[serde(default)]
    changes: Changes,
}

impl MergeRequestPayload {
    /// What changed, unless it is nothing that a build would want to know of.
    fn change(&self) -> Option<Change> {
        let ready = || self.changes.draft.as_ref().is_some_and(|draft| draft.current == Some(false));
        match self.object_attributes.action.as_str() {
            "open" => Some(Change::Opened),
            "reopen" => Some(Change::Reopened),
            "update" if self.object_attributes.oldrev.is_some() => Some(Change::Pushed),
            "update" if self.changes.target_branch.is_some() => Some(Change::Retargeted),
            "update" if ready() => Some(Change::Ready),
            "update" if self.changes.labels.is_some() => Some(Change::Labelled),
            "merge" | "close" => Some(Change::Ended),
            "approved" | "approval" => Some(Change::default()),
            _ => None,
        }
    }
}

fn read_merge_request(body: &[u8]) -> Result<Meaning, serde_json::Error> {
    let payload: MergeRequestPayload = serde_json::from_slice(body)?;
    let Some(change) = payload.change() else {
        return Ok(Meaning::Ignored("an action that changes no code"));
    };
    let repository = payload.project.name()?;
    let request = payload.object_attributes;
    let Some(LastCommit { id: commit, message }) = request.last_commit else {
        return Ok(Meaning::Ignored("a merge request without commits"));
    };
    let no_default = || serde_json::Error::custom("the project has no default branch");
    let merged = request.action == "merge";
    let approval = matches!(request.action.as_str(), "approved" | "approval");
    // Without a commit of its own a merge was a fast-forward, to the very commit that was merged.
    let merge_commit = request.merge_commit_sha.or(request.squash_commit_sha);
    let message = message.as_deref();
    let user = payload.user;
    let actor = if approval { request.author_id.0 } else { user.as_ref().and_then(|user| user.id.0.clone()) };
    let pull = PullRequest {
        repository,
        number: request.iid,
        branch: request.source_branch,
        commit: commit.clone(),
        base: request.target_branch,
        default_branch: payload.project.default_branch.ok_or_else(no_default)?,
        from_fork: request.source_project_id != Some(request.target_project_id),
        merge_commit: merged.then(|| merge_commit.unwrap_or_else(|| commit.clone())),
        change,
        draft: request.draft,
        labels: payload::labels(payload.labels.into_iter().map(|label| label.title)),
        actor,
        message: message.and_then(payload::message),
        // GitLab itself heeds a mark in the title, too.
        skips_ci: message.is_some_and(payload::has_skip_mark) || payload::has_skip_mark(&request.title),
        reference: Some(format!("refs/merge-requests/{}/head", request.iid)),
        // An approval need not change the request's own date, which may be weeks ago.
        updated_at: request.updated_at.0.filter(|_| !approval),
    };
    if approval {
        if request.state != "opened" {
            return Ok(Meaning::Ignored("an approval of what has ended"));
        }
        let Some(approver) = user.and_then(|user| user.id.0) else {
            return Ok(Meaning::Ignored("an approval by nobody"));
        };
        let approval = Approval { pull_request: pull, approver, commit };
        return Ok(Meaning::one(Event::PullRequestApproved(approval)));
    }
    Ok(payload::pull_request(pull, merged))
}
