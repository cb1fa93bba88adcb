//! The rules by which caches are kept or go.

/// Why an image is kept or goes: the rules, in the words of the policy where there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Main is never deleted.
    Main,
    /// A line of a living branch.
    Line,
    /// A line that `retention.keep-branches` keeps.
    KeepBranches,
    /// `retention.pinned` names it.
    Pinned,
    /// Younger than `retention.lease`: a build that was given it may still run.
    Lease,
    /// A cache that a line has left, younger than `retention.history`.
    History,
    /// One of the newest that main has left: `retention.keep-at-least`.
    KeepAtLeast,
    /// The cache of the commit that a living line holds.
    Head,
    /// A note that a commit is the head of a fork's pull request.
    Fork,
    /// A part of an index that is kept.
    Child,
    /// Not a cache: never touched.
    NotCache,
    /// No project of the policy has it: never touched.
    NotOurs,
    /// Its manifest could not be read: never touched.
    Unread,
    /// The line of a branch that has not moved for `retention.idle-branch`.
    IdleBranch,
    /// Its branch was deleted, or its pull request closed.
    DeletedLine,
    /// A cache that a line left longer ago than `retention.history`.
    ExpiredHistory,
    /// The cache of a commit that no living line holds.
    OldCommit,
    /// An export older than `retention.lease`: it was promoted, or never will be.
    AbandonedExport,
    /// A note on a fork's pull request, older than `retention.idle-branch`.
    OldFork,
    /// A join that was last given to a build longer ago than `retention.lease`.
    OldGiven,
    /// An untagged cache older than `retention.orphans`.
    Orphan,
    /// Used least lately where `retention.scope-budget` is exceeded.
    ScopeBudget,
    /// Used least lately where `retention.repository-budget` is exceeded.
    RepositoryBudget,
}

impl Rule {
    /// Its name, as reports group by it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Line => "line",
            Self::KeepBranches => "keep-branches",
            Self::Pinned => "pinned",
            Self::Lease => "lease",
            Self::History => "history",
            Self::KeepAtLeast => "keep-at-least",
            Self::Head => "head",
            Self::Fork => "fork",
            Self::Child => "child",
            Self::NotCache => "not-a-cache",
            Self::NotOurs => "not-ours",
            Self::Unread => "unread",
            Self::IdleBranch => "idle-branch",
            Self::DeletedLine => "deleted-line",
            Self::ExpiredHistory => "expired-history",
            Self::OldCommit => "old-commit",
            Self::AbandonedExport => "abandoned-export",
            Self::OldFork => "old-fork",
            Self::OldGiven => "old-given",
            Self::Orphan => "orphan",
            Self::ScopeBudget => "scope-budget",
            Self::RepositoryBudget => "repository-budget",
        }
    }
}
