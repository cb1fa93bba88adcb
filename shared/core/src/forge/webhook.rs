//! Whether a webhook is to be believed, and what it says, whichever forge it is from.

use jiff::Timestamp;

use super::{
    DefaultBranchOf, Forge, MAX_AGE, MAX_AHEAD, MAX_BODY, Meaning, Refusal, bitbucket, github, gitlab,
    payload, signs,
};
use crate::event::Event;
use crate::policy::Policy;

/// Whether there is anything that [`verify`] could compare with a secret, such as only a forge or somebody
/// who takes the trouble sends. Where there is not, nobody has to look the secrets up, or to be told.
pub fn is_signed<'h>(forge: Forge, header: &impl Fn(&str) -> Option<&'h str>) -> bool {
    match forge {
        Forge::GitHub => header(github::SIGNATURE_HEADER).and_then(claimed).is_some(),
        Forge::GitLab => header(gitlab::SIGNATURE_HEADER).is_some() || header(gitlab::TOKEN_HEADER).is_some(),
        Forge::Bitbucket => header(bitbucket::SIGNATURE_HEADER).and_then(claimed).is_some(),
    }
}

/// The hash that a signature claims to be, as GitHub and Bitbucket write it.
fn claimed(signature: &str) -> Option<Vec<u8>> {
    let hash = hex::decode(signature.strip_prefix("sha256=")?).ok()?;
    (hash.len() == 32).then_some(hash)
}

/// Checks that the holder of one of `secrets` sent exactly these bytes.
///
/// GitLab's plain token proves the sender and not the bytes; where GitLab signs as well, the signature has to hold and
/// must have been made within five minutes of `now`.
pub fn verify<'h>(
    forge: Forge,
    secrets: &[Vec<u8>],
    header: &impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Refusal> {
    if body.len() > MAX_BODY {
        return Err(Refusal::TooLarge(body.len()));
    }
    match forge {
        Forge::GitHub => verify_hex(secrets, header(github::SIGNATURE_HEADER), body),
        Forge::GitLab => gitlab::verify(secrets, header, body, now),
        Forge::Bitbucket => verify_hex(secrets, header(bitbucket::SIGNATURE_HEADER), body),
    }
}

/// Reads a webhook that [`verify`] let through. `event` is what [`Forge::event_name`] said.
pub fn read(
    forge: Forge,
    event: &str,
    body: &[u8],
    default_branch_of: &DefaultBranchOf<'_>,
) -> Result<Meaning, Refusal> {
    if body.starts_with(b"payload=") {
        return Err(Refusal::Form);
    }
    Ok(match forge {
        Forge::GitHub => github::read(event, body)?,
        Forge::GitLab => gitlab::read(event, body)?,
        Forge::Bitbucket if bitbucket::is_of_data_center(event) => {
            return Err(Refusal::Unsupported(bitbucket::DATA_CENTER));
        }
        Forge::Bitbucket => bitbucket::read(event, body, default_branch_of)?,
    })
}

/// Refuses the webhook of a repository that has another id than the policy says. Names change hands: who
/// makes a repository under the name of one that was renamed or deleted is nobody whom the policy means.
pub fn check_repository(policy: &Policy, forge: Forge, body: &[u8], events: &[Event]) -> Result<(), Refusal> {
    // All events of a webhook are of one repository.
    let Some(repository) = events.first().and_then(Event::repository) else { return Ok(()) };
    let Some(expected) = policy.repository_id(repository) else { return Ok(()) };
    let found = payload::repository_id(forge, body)?;
    if found.as_deref() == Some(expected) {
        return Ok(());
    }
    let found = found.unwrap_or_else(|| "of none".to_owned());
    Err(Refusal::OtherRepository { repository: repository.clone(), found, expected: expected.to_owned() })
}

/// Refuses an event that the forge itself dated more than [`MAX_AGE`] before `now`: who sends it again wants
/// to undo what came after it. A date more than [`MAX_AHEAD`] in the future is taken away from the event, so
/// that it orders nothing.
pub fn check_age(event: &mut Event, now: Timestamp) -> Result<(), Refusal> {
    let Some(signed_at) = event.signed_at() else { return Ok(()) };
    let age = now.duration_since(signed_at);
    // A deletion that comes again deletes nothing that was pushed after it, and its date is the repository's last push.
    if age > MAX_AGE && !matches!(event, Event::BranchDeleted(_)) {
        return Err(Refusal::Stale);
    }
    if age < -MAX_AHEAD {
        undate(event);
    }
    Ok(())
}

fn undate(event: &mut Event) {
    match event {
        Event::BranchPushed(push) => push.pushed_at = None,
        Event::TagPushed(push) => push.pushed_at = None,
        Event::PullRequestUpdated(pull) | Event::PullRequestMerged(pull) | Event::PullRequestClosed(pull) => {
            pull.updated_at = None;
        }
        Event::PullRequestApproved(approval) => approval.pull_request.updated_at = None,
        Event::BranchDeleted(deleted) => deleted.deleted_at = None,
        _ => {}
    }
}

/// Checks a signature of the form `sha256=<hex>` over the body.
fn verify_hex(secrets: &[Vec<u8>], signature: Option<&str>, body: &[u8]) -> Result<(), Refusal> {
    let signature = signature.ok_or(Refusal::Unsigned)?;
    let claimed = [claimed(signature).ok_or(Refusal::WrongSignature)?];
    let signed = secrets.iter().any(|secret| signs(secret, &[body], &claimed));
    if signed { Ok(()) } else { Err(Refusal::WrongSignature) }
}
