//! Which pull request brought a commit, by what forges write into messages.

use std::fmt;

use serde::Serialize;

use crate::doctor::project::repository_of;
use crate::forecast;

/// A pull request by its number; GitLab says merge request, and writes `!` before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum PullRequest {
    Pull(u64),
    Merge(u64),
}

impl fmt::Display for PullRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pull(number) => write!(f, "pull request #{number}"),
            Self::Merge(number) => write!(f, "merge request !{number}"),
        }
    }
}

/// The pull request that brought a commit, by its message and the address of the checkout's `origin`. `(#N)` at a
/// subject's end is GitHub's way to name a pull request; elsewhere it is mostly an issue, and says nothing.
pub(super) fn merged_in(message: &str, origin: Option<&str>) -> Option<PullRequest> {
    let subject = message.lines().next().unwrap_or_default().trim_end();
    let merged = || {
        let (number, _) = subject.strip_prefix("Merge pull request #")?.split_once(" from ")?;
        read(number).map(PullRequest::Pull)
    };
    let bitbucket = || {
        let (_, number) = subject.strip_prefix("Merged in ")?.rsplit_once(" (pull request #")?;
        read(number.strip_suffix(')')?).map(PullRequest::Pull)
    };
    let gitlab = || {
        let (_, reference) = message.lines().rev().find_map(|line| line.split_once("See merge request "))?;
        read(reference.trim_end().rsplit_once('!')?.1).map(PullRequest::Merge)
    };
    let gitlab_squash = || {
        let (_, reference) = subject.strip_suffix(')')?.rsplit_once(" (")?;
        let (path, number) = reference.split_once('!')?;
        read(number).filter(|_| !path.contains(char::is_whitespace)).map(PullRequest::Merge)
    };
    let github_squash = || {
        let repository = repository_of(origin?);
        let (host, _) = repository.split_once('/')?;
        let is_github = host.split('.').any(|part| part == "github");
        read(forecast::pull_request(subject).filter(|_| is_github)?).map(PullRequest::Pull)
    };
    merged().or_else(bitbucket).or_else(gitlab).or_else(gitlab_squash).or_else(github_squash)
}

fn read(number: &str) -> Option<u64> {
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_the_pull_request_only_as_its_forge_writes_it() {
        use PullRequest::{Merge, Pull};
        let (github, gitlab) = ("git@github.com:example/app.git", "https://gitlab.com/example/app.git");
        for (message, origin, number) in [
            ("Fix it (#812)", Some(github), Some(Pull(812))),
            ("Fix it (#812)", Some("https://token@github.example.com/example/app"), Some(Pull(812))),
            ("Fix it (#812)", Some(gitlab), None),
            ("Fix it (#812)", Some("https://gitlab.com/github/app"), None),
            ("Fix it (#812)", Some("/srv/github.com/app"), None),
            ("Fix it (#812)", None, None),
            ("Merge pull request #7 from me/topic", None, Some(Pull(7))),
            ("Merged in topic (pull request #5)", None, Some(Pull(5))),
            (
                "Merge branch 'topic' into 'main'\n\nFix\n\nSee merge request example/app!12",
                None,
                Some(Merge(12)),
            ),
            ("Merge branch 'topic' into 'main'\n\nSee merge request !12\n", Some(gitlab), Some(Merge(12))),
            ("Fix it (!13)", Some(gitlab), Some(Merge(13))),
            ("Fix it (example/app!13)", None, Some(Merge(13))),
            ("Fix it (really fast!13)", Some(gitlab), None),
            ("Merge branch 'topic' into 'main'\n\nSee merge request example/app!", None, None),
            ("Merge pull request #7 of old", Some(github), None),
            ("Merge pull request #+7 from me/topic", Some(github), None),
            ("Fix #812", Some(github), None),
            ("Fix (#812) again", Some(github), None),
            ("Fix\n\nSee also (#812)", Some(github), None),
            ("Fix (#)", Some(github), None),
            ("Fix (#99999999999999999999)", Some(github), None),
        ] {
            assert_eq!(merged_in(message, origin), number, "{message} at {origin:?}");
        }
    }
}
