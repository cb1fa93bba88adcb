//! A build that a trigger or a schedule asks for.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;

use crate::event::MAX_COMMITS;
use crate::names::{Commit, Line, ProjectName, Scope, Tag};
use crate::newest_commit;
use crate::policy::Project;

/// A build that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it reads.
    pub wanted: Wanted,
    /// What it builds.
    pub subject: Subject,
    /// Whose code that is.
    pub trust: Trust,
    /// Why, for people.
    pub reason: String,
    /// The `CodeBuild` project that runs it: another than the caches' own for a fork's code.
    pub built_by: ProjectName,
    /// The git reference to fetch: one that holds the commit, where CodeBuild takes one beside it, or that of a head.
    pub reference: Option<String>,
    /// When the forge got the push, where it says so.
    pub pushed_at: Option<Timestamp>,
    /// The line's head before.
    pub overtakes: Option<Commit>,
}

/// What a build builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// One commit, which is built once.
    Commit(Commit),
    /// Whatever the default branch's head is; at most once per `key`.
    Head {
        /// Names the occasion, such as a night.
        key: String,
        /// From scratch: what it exports takes the place of its line's cache.
        refresh: bool,
        /// A digest over the base images, where the policy names some.
        bases: Option<String>,
    },
}

impl Request {
    /// What it may read where merges bring nothing to its line, too.
    #[must_use]
    pub fn readable(&self, project: &Project) -> Wanted {
        let mut wanted = self.wanted.clone();
        if !project.promotion.into_line(&wanted.line) {
            wanted.merged.clear();
        }
        wanted
    }
}

/// What a build wants to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The build's own line.
    pub line: Line,
    /// The line of the branch that its pull request is for.
    pub base: Option<Line>,
    /// Commits that the line got by a merge, the oldest first: their caches are as good as the line's own even
    /// before they have been promoted.
    pub merged: Vec<Commit>,
}

impl Wanted {
    /// The commits of the merge that are looked up, the newest first.
    pub(crate) fn newest_merged(&self) -> impl Iterator<Item = &Commit> + Clone {
        self.merged.iter().rev().take(MAX_COMMITS)
    }

    /// Where to look in one scope, the nearest first: for each tag, what people call it.
    #[must_use]
    pub fn tags(&self, scope: &Scope) -> Vec<(String, Tag)> {
        let mut tags = Vec::new();
        if !matches!(self.line, Line::GitTag(_)) {
            tags.push((self.line.to_string(), Tag::line(scope, &self.line)));
        }
        for commit in self.newest_merged() {
            let (tag, fork) = newest_commit::tags(scope, commit);
            tags.push((format!("commit/{}", commit.short()), tag));
            tags.extend(fork.map(|fork| (format!("fork/{}", commit.short()), fork)));
        }
        for line in self.base.iter().chain([&Line::Main]) {
            tags.push((line.to_string(), Tag::line(scope, line)));
        }
        let mut known = BTreeSet::new();
        tags.retain(|(_, tag)| known.insert(tag.clone()));
        tags
    }
}

/// Whose code a build runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Code that is on the default branch.
    Trusted,
    /// Code of another branch of the same repository, or of a tag, which may name any commit.
    Branch,
    /// Code of a fork: its builds write nothing.
    Fork,
}

impl Trust {
    /// The trust of a build for this line.
    #[must_use]
    pub fn of(line: &Line) -> Self {
        match line {
            Line::Main => Self::Trusted,
            Line::Branch(_) | Line::GitTag(_) => Self::Branch,
            Line::PullRequest(_) => Self::Fork,
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trusted => "trusted",
            Self::Branch => "branch",
            Self::Fork => "fork",
        })
    }
}
