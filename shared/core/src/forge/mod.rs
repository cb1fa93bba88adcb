//! Forges: who signed a webhook, and what it says. One file per forge.
//!
//! Webhooks that come by HTTP go through [`Forge`]: [`Forge::of`] tells the forge by a header, [`verify`] checks who
//! signed the bytes, [`read`] says what they mean and [`check_age`] refuses what has been lying about. CodeCommit has
//! no webhooks of that kind: its events come through EventBridge, which vouches for them, to [`codecommit::read`].

mod bitbucket;
pub mod codecommit;
mod github;
mod gitlab;
mod payload;
#[cfg(test)]
mod tests;
mod webhook;

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::SignedDuration;
use sha2::Sha256;

pub use self::webhook::{check_age, check_repository, is_signed, read, verify};
use crate::event::Event;
use crate::names::{Branch, Repository};
use crate::policy::Policy;

/// The largest webhook that is read, in bytes. Lambda's own limit is 6 MiB with base64; no push needs as much.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// How old a webhook may be by the date in its body. GitHub lets people redeliver one for three days; a day more is for
/// clocks and for those who press the button late.
pub const MAX_AGE: SignedDuration = SignedDuration::from_hours(4 * 24);

/// How far in the future a date may be and still be believed.
pub const MAX_AHEAD: SignedDuration = SignedDuration::from_hours(1);

/// How many events one webhook may mean; what a Bitbucket push of more branches says beyond that is left out.
pub const MAX_EVENTS: usize = 100;

/// A forge that sends webhooks by HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forge {
    /// github.com or a GitHub Enterprise Server.
    GitHub,
    /// gitlab.com or a GitLab of one's own.
    GitLab,
    /// Bitbucket Cloud.
    Bitbucket,
}

impl Forge {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::GitHub, Self::GitLab, Self::Bitbucket];

    /// The forge that a request comes from, by the header that names the event: `header` looks one up by its name in
    /// lower case. Signatures do not tell forges apart, as two of them use `X-Hub-Signature`.
    pub fn of<'h>(header: &impl Fn(&str) -> Option<&'h str>) -> Option<Self> {
        Self::ALL.into_iter().find(|forge| forge.event_name(header).is_some())
    }

    /// What the request says has happened, in the forge's word, such as `push`, `Push Hook` or `repo:push`.
    pub fn event_name<'h>(self, header: &impl Fn(&str) -> Option<&'h str>) -> Option<&'h str> {
        header(match self {
            Self::GitHub => "x-github-event",
            Self::GitLab => "x-gitlab-event",
            Self::Bitbucket => "x-event-key",
        })
    }

    /// By which name the forge's list of deliveries shows this one.
    pub fn delivery<'h>(self, header: &impl Fn(&str) -> Option<&'h str>) -> Option<&'h str> {
        match self {
            Self::GitHub => header("x-github-delivery"),
            Self::GitLab => header("x-gitlab-event-uuid").or_else(|| header("webhook-id")),
            Self::Bitbucket => header("x-request-uuid"),
        }
    }

    /// The forge's name, as [`Forge::from_str`] reads it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::GitLab => "gitlab",
            Self::Bitbucket => "bitbucket",
        }
    }
}

impl fmt::Display for Forge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word is no forge's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a forge that sends webhooks; expected `github`, `gitlab` or `bitbucket`")]
pub struct UnknownForge;

impl FromStr for Forge {
    type Err = UnknownForge;

    fn from_str(name: &str) -> Result<Self, UnknownForge> {
        Self::ALL.into_iter().find(|forge| forge.name() == name).ok_or(UnknownForge)
    }
}

/// What a verified webhook means for Stoker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// What Stoker acts on: at least one event, at most [`MAX_EVENTS`].
    Events(Vec<Event>),
    /// Nothing that Stoker acts on, and why.
    Ignored(&'static str),
}

impl Meaning {
    /// A single event.
    fn one(event: Event) -> Self {
        Self::Events(vec![event])
    }
}

/// A webhook was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No header names an event as one of the forges does.
    #[error("the webhook has no event header of a forge that Stoker knows")]
    NoEvent,
    /// It carries no signature.
    #[error("the webhook is not signed; set its secret in the forge")]
    Unsigned,
    /// The signature is not that of any valid secret over these bytes.
    #[error("the webhook's signature is wrong; its secret in the forge is not Stoker's")]
    WrongSignature,
    /// It is genuine, and older than [`MAX_AGE`], or than what its signature's own date allows.
    #[error("the webhook is too old; somebody may be sending it again")]
    Stale,
    /// It is larger than [`MAX_BODY`].
    #[error("the webhook has {0} bytes, more than {MAX_BODY}")]
    TooLarge(usize),
    /// The body is a form, as GitHub sends it unless it is told otherwise.
    #[error("the webhook's body is a form; set its content type in the forge to application/json")]
    Form,
    /// The body is no JSON.
    #[error("the webhook's body is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// The body is not what this event carries, or names something that Stoker does not take: what, and why.
    #[error("the webhook cannot be used: {0}")]
    Malformed(serde_json::Error),
    /// It is of a repository that has the name of one of the policy's and another id.
    #[error(
        "{repository} has the id {found} and not {expected}, which the policy says: it is another repository of \
         that name"
    )]
    OtherRepository {
        /// The repository.
        repository: Repository,
        /// Its id, as the webhook tells it.
        found: String,
        /// The id in the policy.
        expected: String,
    },
    /// It is of something that Stoker does not read: what, and what to do instead.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl Refusal {
    /// The reason in a word or two, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoEvent => "no-event",
            Self::Unsigned => "unsigned",
            Self::WrongSignature => "wrong-signature",
            Self::Stale => "stale",
            Self::TooLarge(_) => "too-large",
            Self::Form => "form",
            Self::NotJson(_) | Self::Malformed(_) => "malformed",
            Self::OtherRepository { .. } => "other-repository",
            Self::Unsupported(_) => "unsupported",
        }
    }
}

impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Self {
        if error.is_data() { Self::Malformed(error) } else { Self::NotJson(error) }
    }
}

/// The default branch of a repository, for the forges that do not tell it; `None` for a repository that the policy does
/// not name.
pub type DefaultBranchOf<'p> = dyn Fn(&Repository) -> Option<Branch> + 'p;

/// Default branches as a policy has them. Of several projects of one repository the first rule's says.
pub fn default_branches(policy: &Policy) -> impl Fn(&Repository) -> Option<Branch> {
    |repository| policy.projects_of(repository).into_iter().next().map(|project| project.default_branch())
}

/// Whether one of `claimed` is what `key` makes of these bytes; it takes as long whichever byte is wrong.
fn signs(key: &[u8], parts: &[&[u8]], claimed: &[Vec<u8>]) -> bool {
    let Some(mac) = mac(key, parts) else { return false };
    claimed.iter().any(|claimed| mac.clone().verify_slice(claimed).is_ok())
}

/// What a key makes of these bytes; `None` for an empty key, with which anybody could sign.
fn mac(key: &[u8], parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok().filter(|_| !key.is_empty())?;
    for part in parts {
        mac.update(part);
    }
    Some(mac)
}
