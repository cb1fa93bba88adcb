//! What every forge is asked, and how it answers.

use stoker_core::error::{CallError, Failure};

/// What the status of a commit is called.
pub(super) const STATUS: &str = "stoker why";

/// A status of a commit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Status<'s> {
    /// The commit's whole hash.
    pub(crate) commit: &'s str,
    /// A line of at most 140 characters.
    pub(crate) text: &'s str,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) id: String,
    pub(crate) is_active: bool,
}

/// A change of one file that a pull request proposes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proposal<'p> {
    pub(crate) branch: &'p str,
    pub(crate) base: &'p str,
    pub(crate) file: &'p str,
    pub(crate) text: &'p str,
    pub(crate) title: &'p str,
    pub(crate) body: &'p str,
}

/// An answer that says nothing of what was asked.
pub(super) fn unusable(operation: &'static str, path: &str) -> CallError {
    CallError::new(operation, path, Failure::Unavailable, "the answer lacks what was asked for")
}

/// What a forge says that there is nothing of: the repository, or a right of the token.
pub(super) fn absent(operation: &'static str, path: &str) -> CallError {
    let why = "there is no such repository, or the token may not see it";
    CallError::new(operation, path, Failure::NotFound, why)
}

/// Whether two addresses of webhooks are one, whatever they end in.
pub(super) fn same(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}
