//! Probation on main's line: what a merge brings stays apart from main's own until a build of main has used it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use crate::names::{Commit, Line};
use crate::policy::Project;
use crate::provenance::Probation;
use buildkit_cache::{Cache, Mark};

/// How long what a merge brought to main's line may stay there without a build of main. Where merges bring nothing any
/// more, what they brought before goes at once.
pub(super) fn longest(project: &Project) -> SignedDuration {
    if project.promotion.into_line(&Line::Main) { project.probation } else { SignedDuration::ZERO }
}

/// Which merges are on probation no more.
#[derive(Debug)]
pub(super) struct Ends {
    /// When the newest of main's own builds started that the line holds: what was merged before, it could read.
    pub(super) built: Option<Timestamp>,
    /// The commits that builds were of, and that came with these, which are promoted now.
    pub(super) commits: BTreeSet<Commit>,
    /// What was merged then, or before, has had its time.
    pub(super) expired: Timestamp,
}

impl Ends {
    pub(super) fn has_ended(&self, mark: &Mark) -> bool {
        mark.at() <= self.expired
            || self.built.is_some_and(|built| mark.at() <= built)
            || self.commits.contains(mark.commit())
    }
}

/// Main's line after a move: main's `own`; then what of the line stays on probation; then what merges bring, in the
/// order of their marks, each as far as the line [admits](Cache::admit) it by then. So main's own export counts before
/// all that was on probation when it came, and what was merged first before what was merged later.
///
/// Leaves of each merge's cache what it adds to the line.
pub(super) fn join<'a>(
    line: &Cache,
    own: &Cache,
    built: &[&Cache],
    merged: impl IntoIterator<Item = (&'a Mark, &'a mut Cache)>,
    ends: &Ends,
) -> Cache {
    let stays = line.on_probation_for(|mark| !ends.has_ended(mark));
    let own = Cache::merge([own].into_iter().chain(built.iter().copied()));
    // What was admitted before need not be again where main's own is what it was then.
    let stays = if built.is_empty() { stays } else { own.admit(&stays) };
    let mut joined = if stays.records() == 0 { own } else { Cache::merge([&own, &stays]) };
    for (mark, cache) in merged {
        *cache = joined.admit(&std::mem::take(cache).on_probation(mark));
        joined = Cache::merge([&joined, cache]);
    }
    joined
}

/// What of a line has been on probation for longest.
pub(super) fn of(line: &Cache, project: &Project) -> Option<Probation> {
    let since = line.probations().into_keys().next()?.at();
    Some(Probation { since, until: since.saturating_add(longest(project)).unwrap_or(Timestamp::MAX) })
}
