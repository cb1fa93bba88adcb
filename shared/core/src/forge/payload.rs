//! What the forges' payloads have in common.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{Forge, Meaning};
use crate::event::{Change, Event, PullRequest};
use crate::names::{Branch, Commit, Repository};

/// Most paths of a push that an event carries.
const MAX_PATHS: usize = 1000;
/// Most bytes of them together: an entry on the bus must not grow without bounds.
const MAX_PATH_BYTES: usize = 64 * 1024;
/// Most labels of a pull request that an event carries, and most characters of one, as of an account's name.
const MAX_WORDS: usize = 100;
/// Longest id of an account, in characters: a role's session has a long one.
const MAX_ID: usize = 512;
/// Longest message of a commit that an event carries, in bytes.
const MAX_MESSAGE: usize = 16 * 1024;

/// Why the push of a tag means nothing where it deletes the tag.
pub(super) const TAG_DELETED: &str = "a tag that was deleted";

/// Marks that all forges know, in lower case.
const SKIP_MARKS: [&str; 2] = ["[skip ci]", "[ci skip]"];

/// The id that a payload tells of the repository that it is about; `None` where it tells none.
pub(super) fn repository_id(forge: Forge, body: &[u8]) -> Result<Option<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Payload {
        repository: Option<Reported>,
        // GitLab's word, of a merge request the one that it is for.
        project: Option<Reported>,
    }
    #[derive(Deserialize)]
    struct Reported {
        id: Option<serde_json::Number>,
        uuid: Option<String>,
    }
    let Payload { repository, project } = serde_json::from_slice(body)?;
    let number = |reported: Option<Reported>| Some(reported?.id?.to_string());
    Ok(match forge {
        Forge::GitHub => number(repository),
        Forge::GitLab => number(project),
        Forge::Bitbucket => repository.and_then(|reported| reported.uuid),
    })
}

/// A commit of a push, as GitHub and GitLab list it.
#[derive(Deserialize)]
pub(super) struct PushedCommit {
    pub(super) id: Commit,
    #[serde(default)]
    pub(super) message: Option<String>,
    #[serde(default)]
    added: Option<Vec<String>>,
    #[serde(default)]
    modified: Option<Vec<String>>,
    #[serde(default)]
    removed: Option<Vec<String>>,
}

/// Every path of these commits; `None` where one of them does not tell its own, or where there are too many.
pub(super) fn paths(commits: &[PushedCommit]) -> Option<Vec<String>> {
    let mut paths = BTreeSet::new();
    let mut bytes = 0;
    for commit in commits {
        for list in [&commit.added, &commit.modified, &commit.removed] {
            for path in list.as_ref()? {
                if paths.insert(path.as_str()) {
                    bytes += path.len();
                }
                if paths.len() > MAX_PATHS || bytes > MAX_PATH_BYTES {
                    return None;
                }
            }
        }
    }
    Some(paths.into_iter().map(str::to_owned).collect())
}

/// Whether a commit's message asks CI to stay away, in words that all forges know.
pub(super) fn has_skip_mark(message: &str) -> bool {
    let message = message.to_lowercase();
    SKIP_MARKS.iter().any(|mark| message.contains(mark))
}

/// Host and path of a web address, so that a server of one's own is not mistaken for the public one.
pub(super) fn repository(web_address: &str) -> Result<Repository, serde_json::Error> {
    let path = web_address.strip_prefix("https://").or_else(|| web_address.strip_prefix("http://"));
    let path = path.ok_or_else(|| serde_json::Error::custom("the repository has no web address"))?;
    Repository::new(path).map_err(serde_json::Error::custom)
}

/// The git reference of a branch.
pub(super) fn reference(branch: &Branch) -> String {
    format!("refs/heads/{branch}")
}

/// The branch that a git reference names, unless it is a tag or anything else.
pub(super) fn branch(reference: &str) -> Result<Option<Branch>, serde_json::Error> {
    let branch = reference.strip_prefix("refs/heads/").map(Branch::new).transpose();
    branch.map_err(serde_json::Error::custom)
}

/// The tag that a git reference names, unless it is a branch or anything else.
pub(super) fn tag(reference: &str) -> Result<Option<Branch>, serde_json::Error> {
    let tag = reference.strip_prefix("refs/tags/").map(Branch::new).transpose();
    tag.map_err(serde_json::Error::custom)
}

/// What a pull request means by what changed about it.
pub(super) fn pull_request(pull: PullRequest, merged: bool) -> Meaning {
    Meaning::one(match pull.change {
        Change::Ended if merged => Event::PullRequestMerged(pull),
        Change::Ended => Event::PullRequestClosed(pull),
        _ => Event::PullRequestUpdated(pull),
    })
}

/// A label, or the name of an account, unless nobody would write one as long.
fn is_word(word: &str) -> bool {
    !word.is_empty() && word.chars().count() <= MAX_WORDS && !word.chars().any(char::is_control)
}

/// Labels, as many and as long as an event carries.
pub(super) fn labels(labels: impl Iterator<Item = String>) -> Vec<String> {
    labels.filter(|label| is_word(label)).take(MAX_WORDS).collect()
}

/// The name of an account in lower case.
pub(super) fn account(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    is_word(&name).then_some(name)
}

/// The id of an account, which forges write as a number or as text; none where it is neither.
#[derive(Default)]
pub(super) struct AccountId(pub(super) Option<String>);

impl<'de> Deserialize<'de> for AccountId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let is_id =
            |id: &String| (1..=MAX_ID).contains(&id.chars().count()) && !id.chars().any(char::is_control);
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Number(number) => number.as_u64().map(|id| id.to_string()),
            serde_json::Value::String(id) => Some(id).filter(is_id),
            _ => None,
        }))
    }
}

/// An account, of which only the id is read.
#[derive(Deserialize, Default)]
pub(super) struct Account {
    #[serde(default)]
    pub(super) id: AccountId,
}

/// The id of an account that may not be told.
pub(super) fn id_of(account: Option<Account>) -> Option<String> {
    account.and_then(|account| account.id.0)
}

/// A commit's message, without the empty lines that some forges put behind it. One that is too long for an
/// event is not cut, as what it ends with may matter: it counts as not told.
pub(super) fn message(text: &str) -> Option<String> {
    let text = text.trim_end();
    (text.len() <= MAX_MESSAGE).then(|| text.to_owned())
}

/// A date in any form that a forge writes, or none. A form that nobody knows is no reason to lose an event.
#[derive(Default, Clone, Copy)]
pub(super) struct Moment(pub(super) Option<Timestamp>);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Number(seconds) => {
                seconds.as_i64().and_then(|seconds| Timestamp::from_second(seconds).ok())
            }
            serde_json::Value::String(text) => moment(&text),
            _ => None,
        }))
    }
}

/// Reads `2026-11-21T08:00:00.123456+00:00` as well as `2026-11-21 08:00:00 UTC`.
fn moment(text: &str) -> Option<Timestamp> {
    match text.strip_suffix(" UTC") {
        Some(start) => format!("{start}Z").parse().ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_every_form() {
        let read = |json: &str| serde_json::from_str::<Moment>(json).unwrap().0.map(|time| time.to_string());
        for text in [
            "1795248000",
            "\"2026-11-21T08:00:00Z\"",
            "\"2026-11-21 08:00:00 UTC\"",
            "\"2026-11-21T09:00:00+01:00\"",
            "\"2026-11-21T08:00:00.000000+00:00\"",
        ] {
            assert_eq!(read(text).as_deref(), Some("2026-11-21T08:00:00Z"), "{text}");
        }
        for text in ["null", "\"\"", "\"soon\"", "{}", "1e99", "99999999999999999", "\" UTC\""] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn paths_are_all_or_none() {
        let commit = |added: Vec<String>| PushedCommit {
            id: Commit::new("1".repeat(40)).unwrap(),
            message: None,
            added: Some(added),
            modified: Some(vec!["b".to_owned()]),
            removed: Some(Vec::new()),
        };
        let some = |paths: &[&str]| Some(paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            paths(&[commit(vec!["c".to_owned()]), commit(vec!["a".to_owned()])]),
            some(&["a", "b", "c"])
        );
        assert_eq!(paths(&[commit((0..999).map(|i| i.to_string()).collect())]).unwrap().len(), 1000);
        assert_eq!(paths(&[commit((0..1000).map(|i| i.to_string()).collect())]), None);
        assert_eq!(paths(&[commit(vec!["x".repeat(MAX_PATH_BYTES)])]), None);
        assert_eq!(paths(&[PushedCommit { removed: None, ..commit(Vec::new()) }]), None);
    }

    #[test]
    fn ids_are_numbers_or_text() {
        let read = |json: &str| serde_json::from_str::<AccountId>(json).unwrap().0;
        assert_eq!(read("49699333").as_deref(), Some("49699333"));
        assert_eq!(read("\"557058:A\"").as_deref(), Some("557058:A"));
        for json in ["null", "-1", "1.5", "\"\"", "{}", "[1]", "true", "\"a\\nb\""] {
            assert_eq!(read(json), None, "{json}");
        }
        assert_eq!(read(&format!("\"{}\"", "x".repeat(513))), None);
    }

    #[test]
    fn a_message_is_whole_or_not_told() {
        assert_eq!(message("Fix\n\nWhy\n").as_deref(), Some("Fix\n\nWhy"));
        assert_eq!(message(""), Some(String::new()));
        assert!(message(&"x".repeat(MAX_MESSAGE)).is_some());
        assert_eq!(message(&"x".repeat(MAX_MESSAGE + 1)), None);
    }

    #[test]
    fn labels_and_accounts_have_bounds() {
        let long = "x".repeat(101);
        assert_eq!(labels([long.clone(), "ok".to_owned(), "a\nb".to_owned()].into_iter()), ["ok"]);
        assert_eq!(labels((0..200).map(|i| i.to_string())).len(), 100);
        assert_eq!(account("Octocat").as_deref(), Some("octocat"));
        assert_eq!(account(&long), None);
        assert_eq!(account(""), None);
    }
}
