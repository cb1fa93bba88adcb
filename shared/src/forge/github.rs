//! GitHub's webhooks.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use serde::de::Error as _;
use sha2::Sha256;

use super::{MAX_BODY, Meaning, Refusal};
use crate::event::{BranchDeleted, BranchPushed, Change, Event, PullRequest};
use crate::names::{Branch, Commit, Repository, Revision};

/// The header that carries the signature.
pub const SIGNATURE_HEADER: &str = "x-hub-signature-256";
/// The header that names the event.
pub const EVENT_HEADER: &str = "x-github-event";

/// Checks that one of `secrets` signed exactly these bytes.
pub fn verify(secrets: &[Vec<u8>], signature: Option<&str>, body: &[u8]) -> Result<(), Refusal> {
    if body.len() > MAX_BODY {
        return Err(Refusal::TooLarge(body.len()));
    }
    let signature = signature.ok_or(Refusal::Unsigned)?;
    let claimed = signature.strip_prefix("sha256=").and_then(|hex| hex::decode(hex).ok());
    let claimed = claimed.ok_or(Refusal::WrongSignature)?;
    let signed_by = |secret: &Vec<u8>| {
        // An empty secret would let anybody sign.
        !secret.is_empty()
            && Hmac::<Sha256>::new_from_slice(secret)
                .is_ok_and(|mac| mac.chain_update(body).verify_slice(&claimed).is_ok())
    };
    if secrets.iter().any(signed_by) { Ok(()) } else { Err(Refusal::WrongSignature) }
}

/// Reads a webhook that [`verify`] let through.
pub fn read(event: Option<&str>, body: &[u8]) -> Result<Meaning, Refusal> {
    match event.ok_or(Refusal::NoEvent)? {
        "push" => read_push(body).map_err(Refusal::Malformed),
        "pull_request" => read_pull_request(body).map_err(Refusal::Malformed),
        // A hook set to form encoding signs its body all the same: without this check it would look accepted.
        "ping" => {
            let _: serde::de::IgnoredAny = serde_json::from_slice(body).map_err(Refusal::Malformed)?;
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
}

impl RepositoryPayload {
    /// Host and path, so that an enterprise server's repository is not mistaken for github.com's.
    fn name(&self) -> Result<Repository, serde_json::Error> {
        let path = self.html_url.strip_prefix("https://").or_else(|| self.html_url.strip_prefix("http://"));
        let path = path.ok_or_else(|| serde_json::Error::custom("repository.html_url is no web address"))?;
        Repository::new(path).map_err(serde_json::Error::custom)
    }
}

#[derive(Deserialize)]
struct CommitPayload {
    id: Commit,
}

#[derive(Deserialize)]
struct PushPayload {
    #[serde(rename = "ref")]
    reference: String,
    after: String,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    commits: Vec<CommitPayload>,
    repository: RepositoryPayload,
}

fn read_push(body: &[u8]) -> Result<Meaning, serde_json::Error> {
    let push: PushPayload = serde_json::from_slice(body)?;
    let Some(branch) = push.reference.strip_prefix("refs/heads/") else {
        return Ok(Meaning::Ignored("a push of a tag"));
    };
    let branch = Branch::new(branch).map_err(serde_json::Error::custom)?;
    let repository = push.repository.name()?;
    let default_branch = push.repository.default_branch;
    if push.deleted {
        return Ok(Meaning::Event(Event::BranchDeleted(BranchDeleted {
            repository,
            branch,
            default_branch,
            deleted_at: None,
        })));
    }
    Ok(Meaning::Event(Event::BranchPushed(BranchPushed {
        repository,
        to_default_branch: branch == default_branch,
        branch,
        commit: Commit::new(push.after).map_err(serde_json::Error::custom)?,
        commits: push.commits.into_iter().map(|commit| commit.id).collect(),
        default_branch,
        before: None,
        paths: None,
        skips_ci: false,
        pushed_at: None,
    })))
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
struct PullRequestBody {
    number: u64,
    head: Head,
    base: Base,
    #[serde(default)]
    merged: bool,
    #[serde(default)]
    merge_commit_sha: Option<Revision>,
}

#[derive(Deserialize)]
struct PullRequestPayload {
    action: String,
    pull_request: PullRequestBody,
    repository: RepositoryPayload,
}

fn read_pull_request(body: &[u8]) -> Result<Meaning, serde_json::Error> {
    let payload: PullRequestPayload = serde_json::from_slice(body)?;
    let pull = payload.pull_request;
    let from_fork = pull.head.repo.as_ref().is_none_or(|head| head.full_name != payload.repository.full_name);
    let merged = payload.action == "closed" && pull.merged;
    let pull = PullRequest {
        repository: payload.repository.name()?,
        number: pull.number,
        branch: pull.head.reference,
        commit: pull.head.sha,
        base: pull.base.reference,
        default_branch: payload.repository.default_branch,
        from_fork,
        // Before the merge this field holds GitHub's trial merge, which no branch contains.
        merge_commit: pull.merge_commit_sha.filter(|_| merged),
        change: match payload.action.as_str() {
            "synchronize" => Change::Pushed,
            "closed" => Change::Ended,
            _ => Change::Opened,
        },
        draft: false,
        labels: Vec::new(),
        reference: Some(format!("refs/pull/{}/head", pull.number)),
        updated_at: None,
    };
    Ok(match payload.action.as_str() {
        "opened" | "reopened" | "synchronize" => Meaning::Event(Event::PullRequestUpdated(pull)),
        "closed" if merged => Meaning::Event(Event::PullRequestMerged(pull)),
        "closed" => Meaning::Event(Event::PullRequestClosed(pull)),
        _ => Meaning::Ignored("an action that changes no code"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of GitHub's documentation on validating deliveries.
    const SECRET: &[u8] = b"It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn githubs_own_example_verifies() {
        verify(&[SECRET.to_vec()], Some(SIGNATURE), BODY).unwrap();
    }

    #[test]
    fn either_of_two_secrets_verifies_during_a_rotation() {
        verify(&[b"new".to_vec(), SECRET.to_vec()], Some(SIGNATURE), BODY).unwrap();
    }

    #[test]
    fn anything_else_is_refused() {
        let secrets = [SECRET.to_vec()];
        assert!(matches!(verify(&secrets, None, BODY), Err(Refusal::Unsigned)));
        for wrong in
            ["", "sha256=", "sha256=zz", "sha1=757107ea", &SIGNATURE[..70], &format!("{SIGNATURE}00")]
        {
            assert!(matches!(verify(&secrets, Some(wrong), BODY), Err(Refusal::WrongSignature)), "{wrong}");
        }
        assert!(matches!(verify(&secrets, Some(SIGNATURE), b"Hello, World?"), Err(Refusal::WrongSignature)));
        assert!(matches!(verify(&[], Some(SIGNATURE), BODY), Err(Refusal::WrongSignature)));
        let large = vec![b' '; MAX_BODY + 1];
        assert!(matches!(verify(&secrets, Some(SIGNATURE), &large), Err(Refusal::TooLarge(_))));
    }

    #[test]
    fn an_empty_secret_verifies_nothing() {
        let mac = Hmac::<Sha256>::new_from_slice(b"").unwrap().chain_update(BODY).finalize().into_bytes();
        let signature = format!("sha256={}", hex::encode(mac));
        assert!(matches!(verify(&[Vec::new()], Some(&signature), BODY), Err(Refusal::WrongSignature)));
    }

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
            "repository": {"full_name": "example/app", "html_url": "https://github.com/example/app", "default_branch": "main"}
        });
        let Meaning::Event(Event::PullRequestClosed(pull)) =
            read(Some("pull_request"), body.to_string().as_bytes()).unwrap()
        else {
            panic!("wrong kind")
        };
        assert!(pull.from_fork);
        assert_eq!(pull.merge_commit, None);
    }
}
