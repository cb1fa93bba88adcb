//! What makes promotion look at a line.

use std::fmt;

use jiff::Timestamp;

use crate::event::Event;
use crate::names::{CacheRepository, Commit, Line, ProjectName, Repository, Revision, Tag, TagKind};

/// A reason to look whether a line has to be updated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromotionTrigger {
    /// A build may have ended well.
    Built {
        /// Its id.
        build: String,
    },
    /// A build has failed.
    Failed {
        /// Its id.
        build: String,
        /// How, in `CodeBuild`'s words.
        status: String,
    },
    /// An export arrived; its build may have ended long ago, and its event been lost.
    Exported {
        /// Where.
        repository: CacheRepository,
        /// Its tag.
        tag: String,
    },
    /// Commits came to a branch by a merge.
    Merged {
        /// The git repository.
        repository: Repository,
        /// The line of the branch that they came to.
        line: Line,
        /// The commits, of no branch that is known. The cache of the newest counts that any line has built,
        /// if a single one has, and if none of them is the head of a fork's pull request.
        commits: Vec<Commit>,
        /// The line of the branch that was merged and its head, or the start of its hash: that line's cache
        /// of it counts.
        head: Option<(Line, Revision)>,
        /// When they came, by the forge's clock or the bus's; `None` where neither says.
        at: Option<Timestamp>,
    },
    /// A commit is the head of a fork's pull request: what a push brings to main is not what a branch made of it.
    Fork {
        /// The git repository that the pull request is for.
        repository: Repository,
        /// The pull request's line.
        line: Line,
        /// The head, or the start of its hash.
        head: Revision,
    },
    /// Something may have been on probation for too long in a project's main lines.
    Overdue {
        /// The project.
        project: ProjectName,
    },
}

impl fmt::Display for PromotionTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Built { build } | Self::Failed { build, .. } => f.write_str(build),
            Self::Exported { repository, tag } => write!(f, "{repository}:{tag}"),
            Self::Merged { repository, line, .. } => write!(f, "what was merged into {line} of {repository}"),
            Self::Fork { repository, line, head } => {
                write!(f, "the head {} of {line} of {repository}, a fork's", head.short())
            }
            Self::Overdue { project } => write!(f, "what is on probation in main of {project}"),
        }
    }
}

impl PromotionTrigger {
    /// What an event makes promotion look at, if anything.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        match event {
            Event::BuildStateChange(change) if change.build_status == "SUCCEEDED" => {
                Some(Self::Built { build: change.id().to_owned() })
            }
            Event::BuildStateChange(change) if change.has_failed() => {
                Some(Self::Failed { build: change.id().to_owned(), status: change.build_status.clone() })
            }
            Event::ImageAction(action) if action.action_type == "PUSH" && action.result == "SUCCESS" => {
                // Lines, commits and history are Stoker's own writes: nothing follows from them.
                let tag = action.image_tag.clone()?;
                let (_, kind) = Tag::parse(&tag)?;
                matches!(kind, TagKind::Export(_))
                    .then(|| Self::Exported { repository: action.repository_name.clone(), tag })
            }
            // No build of a fork's head counts for main.
            Event::PullRequestUpdated(pull) | Event::PullRequestMerged(pull) if pull.from_fork => {
                let line = Line::PullRequest(pull.number);
                Some(Self::Fork { repository: pull.repository.clone(), line, head: pull.commit.clone() })
            }
            Event::PullRequestMerged(pull) => {
                let branch = Line::of_branch(&pull.branch, &pull.default_branch);
                Some(Self::Merged {
                    repository: pull.repository.clone(),
                    line: Line::of_branch(&pull.base, &pull.default_branch),
                    head: Some((branch, pull.commit.clone())),
                    commits: Vec::new(),
                    at: event.signed_at(),
                })
            }
            Event::BranchPushed(push) if push.to_default_branch => Some(Self::Merged {
                repository: push.repository.clone(),
                line: Line::Main,
                commits: push.commits.clone(),
                head: None,
                at: event.signed_at(),
            }),
            _ => None,
        }
    }

    /// The same trigger, where it is a merge: one that was known at this time.
    #[must_use]
    pub fn known_at(mut self, time: Option<Timestamp>) -> Self {
        if let Self::Merged { at, .. } = &mut self {
            *at = time;
        }
        self
    }
}
