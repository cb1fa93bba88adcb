//! What one cache has and another has not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Cache, Id, Record};
use super::steps::Step;

/// How two caches differ. Times, descriptors and what Stoker does not know do not count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// What only the first has.
    pub ours: Side,
    /// What only the second has.
    pub theirs: Side,
}

impl Diff {
    /// Whether merging either into the other would add nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ours.is_empty() && self.theirs.is_empty()
    }
}

/// What only one of two caches has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Side {
    /// Its steps, the largest first.
    pub steps: Vec<Step>,
    /// Number of its records.
    pub records: usize,
    /// How many of these were made from no other: files, base images and other sources.
    pub sources: usize,
    /// How many of these were made only from records that both have: where the caches part after their sources.
    pub instructions: usize,
    /// Number of its results of records that both have.
    pub results: usize,
}

impl Side {
    /// Whether the other cache has it all: [`Cache::contains`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0 && self.results == 0
    }
}

impl Cache {
    /// What this cache and another do not have in common.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Diff {
        Diff { ours: self.without(other), theirs: other.without(self) }
    }

    fn without(&self, other: &Self) -> Side {
        let known_steps = other.steps();
        let steps = self.steps().into_iter().filter(|(id, _)| !known_steps.contains_key(id));
        let mut side = Side { steps: steps.map(|(_, step)| step).collect(), ..Side::default() };
        side.steps.sort_by_key(|step| Reverse(step.bytes));
        let known: BTreeMap<Id, &Record> = other.records.iter().map(|record| (record.id, record)).collect();
        for record in &self.records {
            if let Some(same) = known.get(&record.id) {
                side.results += self.results(record).difference(&other.results(same)).count();
                continue;
            }
            side.records += 1;
            if record.links.is_empty() {
                side.sources += 1;
            } else if record.links.iter().all(|link| known.contains_key(&self.records[link.record].id)) {
                side.instructions += 1;
            }
        }
        side
    }

    /// The layers of results, whether these come with the layers' parents or without.
    fn results(&self, record: &Record) -> BTreeSet<(bool, Vec<Id>)> {
        let ids = |layers: &[usize]| layers.iter().map(|&layer| self.layers[layer].id).collect();
        let one = record.results.iter().map(|made| (true, ids(&[made.layers])));
        let many = record.chains.iter().map(|made| (false, ids(&made.layers)));
        one.chain(many).collect()
    }
}
