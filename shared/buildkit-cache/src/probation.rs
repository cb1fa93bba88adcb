//! Probation: a record that a merge brought to main's line stays apart from what main's own builds vouch for.
//!
//! A record on probation has a mark, which names the merge; one of main's own has none. A cache that several hold is
//! joined mark by mark: what one of them has as its own is its own, and of two marks the later counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::graph::{Cache, Made, Record, needed_first};
use super::mark::{Mark, Probation};

impl Cache {
    /// The same cache, all of it on probation for one merge, whatever marks it had.
    #[must_use]
    pub fn on_probation(self, mark: &Mark) -> Self {
        self.marked(&Some(Arc::new(mark.clone())))
    }

    /// The same cache without marks. A mark counts in a line, which nobody but Stoker writes; what a build exported may
    /// name any, and is judged by whose build it was.
    #[must_use]
    pub fn unmarked(self) -> Self {
        if self.has_marks() { self.marked(&None) } else { self }
    }

    /// What is on no probation: main's own.
    #[must_use]
    pub fn own(&self) -> Self {
        if self.has_marks() { self.part(|mark| mark.is_none()) } else { self.clone() }
    }

    /// What is on probation for merges that still count, with the records that it was made from, these without their
    /// results.
    #[must_use]
    pub fn on_probation_for(&self, counts: impl Fn(&Mark) -> bool) -> Self {
        if self.has_marks() { self.part(|mark| mark.is_some_and(&counts)) } else { Self::default() }
    }

    /// For each merge that something is on probation for, how many records have its mark, or a result with it.
    #[must_use]
    pub fn probations(&self) -> BTreeMap<Mark, usize> {
        let mut counts = BTreeMap::new();
        for record in self.records.iter().filter(|record| record.marks().next().is_some()) {
            for mark in record.marks().collect::<BTreeSet<_>>() {
                *counts.entry(mark.clone()).or_insert(0) += 1;
            }
        }
        counts
    }

    fn has_marks(&self) -> bool {
        self.records.iter().any(|record| record.marks().next().is_some())
    }

    fn marked(mut self, mark: &Probation) -> Self {
        for record in &mut self.records {
            record.probation.clone_from(mark);
            record.results.iter_mut().for_each(|made| made.probation.clone_from(mark));
            record.chains.iter_mut().for_each(|made| made.probation.clone_from(mark));
        }
        self
    }

    /// The records and results with such a mark, or without one, and all that they were made from.
    fn part(&self, is_of: impl Fn(Option<&Mark>) -> bool) -> Self {
        // Keeps the results of it, and answers the latest mark of these.
        fn latest<L>(results: &mut Vec<Made<L>>, is_of: impl Fn(Option<&Mark>) -> bool) -> Probation {
            results.retain(|made| is_of(made.probation.as_deref()));
            results.iter().filter_map(|made| made.probation.clone()).max()
        }
        let mut whole = self.clone();
        let order = needed_first(self.records.len(), |place, nth| {
            self.records[place].links.get(nth).map(|link| link.record)
        });
        let mut kept = vec![false; self.records.len()];
        // For each record the latest mark of what was made from it.
        let mut passed: Vec<Probation> = vec![None; self.records.len()];
        // A cache has no cycle. Were there one, nothing would be kept.
        for place in order.unwrap_or_default().into_iter().rev() {
            let record = &mut whole.records[place];
            let latest = latest(&mut record.results, &is_of).max(latest(&mut record.chains, &is_of));
            let is_of_it = is_of(record.probation.as_deref());
            kept[place] |= is_of_it || record.has_result();
            if !kept[place] {
                continue;
            }
            // What only others need stays as long as these do.
            if !is_of_it && record.probation.is_some() {
                record.probation = passed[place].take().max(latest);
            }
            for link in &record.links {
                kept[link.record] = true;
                if passed[link.record] < record.probation {
                    passed[link.record].clone_from(&record.probation);
                }
            }
        }
        whole.only(&kept)
    }
}

impl Record {
    /// Its mark and those of its results.
    pub(super) fn marks(&self) -> impl Iterator<Item = &Mark> {
        let results = self.results.iter().map(|made| &made.probation);
        let chains = self.chains.iter().map(|made| &made.probation);
        [&self.probation].into_iter().chain(results).chain(chains).flatten().map(|mark| &**mark)
    }
}
