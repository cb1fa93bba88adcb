//! The mark of a record on probation.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::json::Seconds;
use crate::names::Commit;

/// The merge that a record is on probation for. The later of two is the greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mark {
    at: Timestamp,
    commit: Commit,
}

impl Mark {
    /// The mark of what this commit brought when it was merged; the time is kept to the second.
    #[must_use]
    pub fn new(commit: Commit, at: Timestamp) -> Self {
        Self { at: Seconds::from(at).into(), commit }
    }

    /// When it was merged, to the second.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// The commit that was merged.
    #[must_use]
    pub fn commit(&self) -> &Commit {
        &self.commit
    }
}

/// The mark of a record or a result; most have none.
pub(super) type Probation = Option<Arc<Mark>>;

/// Joins two marks of the same record or result.
pub(super) fn join(ours: &mut Probation, theirs: Probation) {
    *ours = ours.take().zip(theirs).map(|(ours, theirs)| ours.max(theirs));
}
