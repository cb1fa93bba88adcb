//! GitHub's webhooks.

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny};

use super::Meaning;
use super::payload::{self, Account, Moment, PushedCommit};
use crate::event::{Approval, BranchDeleted, BranchPushed, Change, Event, PullRequest, TagPushed};
use crate::names::{Branch, Commit, Repository, Revision};

/// The header that carries the signature. `X-Hub-Signature`, which comes as well, is of SHA-1.
pub(super) const SIGNATURE_HEADER: &str = "x-hub-signature-256";

/// A push of more commits lists only these many.
const MAX_COMMITS: usize = 2048;

/// Marks in a commit's message that only GitHub knows, in lower case.
const SKIP_MARKS: [&str; 3] = ["[no ci]", "[skip actions]", "[actions skip]"];

pub(super) fn read(event: &str, body: &[u8]) -> Result<Meaning, serde_json::Error> {
    match event {
        "push" => read_push(body),
        "pull_request" => read_pull_request(body),
        "pull_request_review" => read_review(body),
        "merge_group" => Ok(Meaning::Ignored("the merge queue's branch comes as a push of its own")),
        // A hook set to form encoding signs its body all the same: without this check it would look accepted.
        "ping" => {
            let _: IgnoredAny = serde_json::from_slice(body)?;
            Ok(Meaning::Ignored("pong"))
        }
        _ => Ok(Meaning::Ignored("not an event that Stoker acts on")),
    }
}

#[derive(Deserialize)]
struct RepositoryPayload {
    full_name: String,
    html_url: String,
    default_branch: Branch,
    #[serde(default)]
    pushed_at: Moment,
}

impl RepositoryPayload {
    fn name(&self) -> Result<Repository, serde_json::Error> {
        payload::repository(&self.html_url)
    }
}

#[derive(Deserialize)]
struct HeadCommit {
    #[serde(default)]
    id: Option<Commit>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct PushPayload {
    #[serde(rename = "ref")]
    reference: String,
    #[serde(default)]
    before: String,
    after: String,
    #[serde(default)]
    created: bool,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    forced: bool,
    #[serde(default)]
    commits: Vec<PushedCommit>,
    #[serde(default)]
    head_commit: Option<HeadCommit>,
    repository: RepositoryPayload,
    #[serde(default)]
    sender: Option<Account>,
}

impl PushPayload {
    /// The commits tell every path only if they are the whole way from the old head to the new one.
    fn paths(&self) -> Option<Vec<String>> {
        let whole = !self.created && !self.forced && (1..MAX_COMMITS).contains(&self.commits.len());
        if whole { payload::paths(&self.commits) } else { None }
    }
}

fn read_push(body: &[u8]) -> Result<Meaning, serde_json::Error> {
    let push: PushPayload = serde_json::from_slice(body)?;
    if let Some(tag) = payload::tag(&push.reference)? {
        return read_tag(push, tag);
    }
    let Some(branch) = payload::branch(&push.reference)? else {
        return Ok(Meaning::Ignored("a push of neither a branch nor a tag"));
    };
    let repository = push.repository.name()?;
    let paths = push.paths();
    let default_branch = push.repository.default_branch;
    let pushed_at = push.repository.pushed_at.0;
    if push.deleted {
        let deleted = BranchDeleted { repository, branch, default_branch, deleted_at: pushed_at };
        return Ok(Meaning::one(Event::BranchDeleted(deleted)));
    }
    let message = push.head_commit.and_then(|head| head.message);
    Ok(Meaning::one(Event::BranchPushed(BranchPushed {
        repository,
        reference: Some(push.reference),
        to_default_branch: branch == default_branch,
        branch,
        commit: Commit::new(push.after).map_err(serde_json::Error::custom)?,
        commits: push.commits.into_iter().map(|commit| commit.id).collect(),
        default_branch,
        before: Commit::new(push.before).ok(),
        paths,
        skips_ci: message.as_deref().is_some_and(skips_ci),
        actor: payload::id_of(push.sender),
        message: message.as_deref().and_then(payload::message),
        pushed_at,
    })))
}

fn read_tag(push: PushPayload, tag: Branch) -> Result<Meaning, serde_json::Error> {
    if push.deleted {
        return Ok(Meaning::Ignored(payload::TAG_DELETED));
    }
    let (id, message) = push.head_commit.map(|head| (head.id, head.message)).unwrap_or_default();
    Ok(Meaning::one(Event::TagPushed(TagPushed {
        repository: push.repository.name()?,
        tag,
        // Of an annotated tag `after` is the tag's own object.
        commit: match id {
            Some(id) => id,
            None => Commit::new(push.after).map_err(serde_json::Error::custom)?,
        },
        actor: payload::id_of(push.sender),
        message: message.as_deref().and_then(payload::message),
        pushed_at: push.repository.pushed_at.0,
    })))
}

/// Whether a message asks GitHub's own CI to stay away: by a mark anywhere, or by a last line `skip-checks: true` in
/// trailers after two empty lines.
fn skips_ci(message: &str) -> bool {
    let message = message.to_lowercase().replace("\r\n", "\n");
    let trailers = message.trim_end().rsplit_once("\n\n\n").map(|(_, trailers)| trailers);
    let last = trailers.and_then(|trailers| trailers.lines().last());
    payload::has_skip_mark(&message)
        || SKIP_MARKS.iter().any(|mark| message.contains(mark))
        || last.is_some_and(|line| matches!(line.trim(), "skip-checks:true" | "skip-checks: true"))
}

#[derive(Deserialize)]
struct HeadRepository {
    full_name: String,
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "ref")]
    reference: Branch,
    sha: Revision,
    /// Null when the fork has been deleted.
    repo: Option<HeadRepository>,
}

#[derive(Deserialize)]
struct Base {
    #[serde(rename = "ref")]
    reference: Branch,
}

#[derive(Deserialize)]
struct Label {
    name: String,
}

#[derive(Deserialize)]
struct PullRequestBody {
    number: u64,
    #[serde(default)]
    state: String,
    head: Head,
    base: Base,
    #[serde(default)]
    draft: bool,
    #[serde(default)]
    labels: Vec<Label>,
    #[serde(default)]
    merged: bool,
    #[serde(default)]
    merge_commit_sha: Option<Revision>,
    #[serde(default)]
    updated_at: Moment,
    /// Who opened it. Null when the account has been deleted.
    #[serde(default)]
    user: Option<Account>,
}

impl PullRequestBody {
    fn event(
        self,
        repository: RepositoryPayload,
        change: Change,
        merged: bool,
        actor: Option<Account>,
    ) -> Result<PullRequest, serde_json::Error> {
        let head_repository = self.head.repo.map(|repo| repo.full_name);
        Ok(PullRequest {
            repository: repository.name()?,
            number: self.number,
            branch: self.head.reference,
            commit: self.head.sha,
            base: self.base.reference,
            from_fork: head_repository.is_none_or(|name| name != repository.full_name),
            default_branch: repository.default_branch,
            // Before the merge this field holds GitHub's trial merge, which no branch contains.
            merge_commit: self.merge_commit_sha.filter(|_| merged),
            change,
            draft: self.draft,
            labels: payload::labels(self.labels.into_iter().map(|label| label.name)),
            actor: payload::id_of(actor),
            // Neither of these is told, and GitHub heeds no title.
            message: None,
            skips_ci: false,
            reference: Some(format!("refs/pull/{}/head", self.number)),
            updated_at: self.updated_at.0,
        })
    }
}

#[derive(Deserialize)]
struct Changes {
    base: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct PullRequestPayload {
    action: String,
    #[serde(default)]
    changes: Option<Changes>,
    pull_request: PullRequestBody,
    repository: RepositoryPayload,
    #[serde(default)]
    sender: Option<Account>,
}

fn read_pull_request(body: &[u8]) -> Result<Meaning, serde_json::Error> {
    let payload: PullRequestPayload = serde_json::from_slice(body)?;
    let change = match payload.action.as_str() {
        "opened" => Change::Opened,
        "reopened" => Change::Reopened,
        "ready_for_review" => Change::Ready,
        "synchronize" => Change::Pushed,
        "edited" if payload.changes.is_some_and(|changes| changes.base.is_some()) => Change::Retargeted,
        "labeled" | "unlabeled" => Change::Labelled,
        "closed" => Change::Ended,
        _ => return Ok(Meaning::Ignored("an action that changes no code")),
    };
    let merged = change == Change::Ended && payload.pull_request.merged;
    let pull = payload.pull_request.event(payload.repository, change, merged, payload.sender)?;
    Ok(payload::pull_request(pull, merged))
}

#[derive(Deserialize)]
struct Review {
    state: String,
    /// Null when the account has been deleted.
    user: Option<Account>,
    commit_id: Option<Revision>,
    #[serde(default)]
    submitted_at: Moment,
}

#[derive(Deserialize)]
struct ReviewPayload {
    action: String,
    review: Review,
    pull_request: PullRequestBody,
    repository: RepositoryPayload,
}

fn read_review(body: &[u8]) -> Result<Meaning, serde_json::Error> {
    let payload: ReviewPayload = serde_json::from_slice(body)?;
    let review = payload.review;
    if payload.action != "submitted" || review.state != "approved" {
        return Ok(Meaning::Ignored("a review that approves nothing"));
    }
    if payload.pull_request.state == "closed" {
        return Ok(Meaning::Ignored("an approval of what has ended"));
    }
    let approver = review.user.and_then(|user| user.id.0);
    let (Some(approver), Some(commit)) = (approver, review.commit_id) else {
        return Ok(Meaning::Ignored("an approval by nobody, or of no commit"));
    };
    let mut pull = payload.pull_request;
    let author = pull.user.take();
    let mut pull_request = pull.event(payload.repository, Change::default(), false, author)?;
    pull_request.updated_at = review.submitted_at.0.or(pull_request.updated_at);
    Ok(Meaning::one(Event::PullRequestApproved(Approval { pull_request, approver, commit })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forks_branch_called_main_is_known_as_a_forks() {
        let body = serde_json::json!({
            "action": "closed",
            "pull_request": {
                "number": 3, "merged": false,
                "head": {"ref": "main", "sha": "a".repeat(40), "repo": {"full_name": "fork/app"}},
                "base": {"ref": "main"},
                "merge_commit_sha": "b".repeat(40)
            },
            "repository": {"full_name": "example/app", "html_url": "https://github.com/example/app",
            "default_branch": "main"}
        });
        let Meaning::Events(events) = read("pull_request", body.to_string().as_bytes()).unwrap() else {
            panic!("ignored")
        };
        let [Event::PullRequestClosed(pull)] = events.as_slice() else { panic!("wrong kind") };
        assert!(pull.from_fork);
        assert_eq!(pull.merge_commit, None);
    }

    #[test]
    fn marks_are_githubs() {
        for message in [
            "Fix [skip ci]",
            "[CI SKIP] fix",
            "fix\n\n[No CI]",
            "[skip actions]",
            "[actions skip]",
            "fix\n\n\nskip-checks: true",
            "fix\r\n\r\n\r\nReviewed-by: someone\r\nskip-checks:true\r\n",
        ] {
            assert!(skips_ci(message), "{message:?}");
        }
        for message in [
            "",
            "skip ci",
            "skip-checks: true",
            "fix\n\nskip-checks: true",
            "fix\n\n\nskip-checks: true\nReviewed-by: someone",
            "fix\n\n\nskip-checks: false",
        ] {
            assert!(!skips_ci(message), "{message:?}");
        }
    }

    #[test]
    fn paths_are_not_told_where_the_list_may_not_be_whole() {
        let commit = serde_json::json!({"id": "1".repeat(40), "added": ["a"], "modified": [], "removed": []});
        let push = |commits: usize, created: bool, forced: bool| {
            let body = serde_json::json!({
                "ref": "refs/heads/main", "after": "1".repeat(40), "created": created, "forced": forced,
                "commits": vec![commit.clone(); commits],
                "repository": {"full_name": "a/b", "html_url": "https://github.com/a/b", "default_branch": "main"},
            });
            serde_json::from_value::<PushPayload>(body).unwrap().paths().is_some()
        };
        assert!(push(1, false, false));
        assert!(push(2047, false, false));
        assert!(!push(2048, false, false));
        assert!(!push(0, false, false));
        assert!(!push(1, true, false));
        assert!(!push(1, false, true));
    }
}
