//! What one cache has and another has not.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::graph::{Cache, Id, Link, Record};
use super::json::{Sha, Text};
use crate::names::Digest;

/// How two caches differ. Times, descriptors and what Stoker does not know do not count.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Diff {
    /// What only the first has.
    pub ours: Side,
    /// What only the second has.
    pub theirs: Side,
    /// Digests of the records that both have, with different results.
    pub other_results: Vec<String>,
    /// Records of the same digest that were made from different things.
    pub other_inputs: Vec<OtherInputs>,
}

impl Diff {
    /// Whether merging either into the other would add nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ours.records.is_empty() && self.theirs.records.is_empty() && self.other_results.is_empty()
    }
}

/// What only one of two caches has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Side {
    /// Digests of its records.
    pub records: Vec<String>,
    /// Its steps: blobs of layers that some record resulted in.
    pub steps: Vec<Digest>,
    /// Number of its blobs.
    pub blobs: usize,
    /// Bytes of these.
    pub bytes: u64,
}

/// Why a record of one cache is none of the other's, which has one of its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OtherInputs {
    /// The digest of both.
    pub digest: String,
    /// Numbers of the inputs that differ, from 0.
    pub inputs: Vec<usize>,
}

impl Cache {
    /// What this cache and another do not have in common.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Diff {
        let by_id = |cache: &'_ Self| -> BTreeMap<Id, usize> {
            cache.records.iter().enumerate().map(|(place, record)| (record.id, place)).collect()
        };
        let (ours, theirs) = (by_id(self), by_id(other));
        let both =
            ours.iter().filter_map(|(id, &a)| Some((&self.records[a], &other.records[*theirs.get(id)?])));
        let changed = both.filter(|(a, b)| self.results(a) != other.results(b));
        Diff {
            ours: self.without(other, &theirs),
            theirs: other.without(self, &ours),
            other_results: changed.map(|(a, _)| a.digest.to_string()).collect(),
            other_inputs: self.other_inputs(other, &ours, &theirs),
        }
    }

    fn without(&self, other: &Self, theirs: &BTreeMap<Id, usize>) -> Side {
        let is_ours = |record: &&Record| !theirs.contains_key(&record.id);
        let (known_steps, known_blobs) = (other.step_ids(), other.blob_digests());
        let steps = self.step_ids().into_iter().filter(|(id, _)| !known_steps.contains_key(id));
        let blobs: Vec<_> = self.blobs.iter().filter(|blob| !known_blobs.contains(&blob.digest)).collect();
        Side {
            records: self.records.iter().filter(is_ours).map(|record| record.digest.to_string()).collect(),
            steps: steps.map(|(_, blob)| blob.into()).collect(),
            blobs: blobs.len(),
            bytes: blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.descriptor.size)),
        }
    }

    /// Pairs what is left of each digest in the caches' order, so that many of one digest take no longer.
    fn other_inputs(
        &self,
        other: &Self,
        ours: &BTreeMap<Id, usize>,
        theirs: &BTreeMap<Id, usize>,
    ) -> Vec<OtherInputs> {
        let mut waiting: BTreeMap<&Text, Vec<&Record>> = BTreeMap::new();
        for record in other.records.iter().rev().filter(|record| !ours.contains_key(&record.id)) {
            waiting.entry(&record.digest).or_default().push(record);
        }
        let left = self.records.iter().filter(|record| !theirs.contains_key(&record.id));
        let pairs = left.filter_map(|a| Some((a, waiting.get_mut(&a.digest)?.pop()?)));
        let differing = pairs.map(|(a, b)| {
            let (ours, theirs) = (self.inputs(a), other.inputs(b));
            let inputs = (0..ours.len().max(theirs.len())).filter(|&n| ours.get(n) != theirs.get(n));
            OtherInputs { digest: a.digest.to_string(), inputs: inputs.collect() }
        });
        differing.collect()
    }

    /// For each input of a record what would do, in a form that two caches have in common.
    fn inputs<'a>(&self, record: &'a Record) -> Vec<BTreeSet<(&'a Text, Id)>> {
        let inputs = record.links.chunk_by(|a, b| a.input == b.input);
        let input = |links: &'a [Link]| {
            links.iter().map(|link| (&link.selector, self.records[link.record].id)).collect()
        };
        inputs.map(input).collect()
    }

    /// The layers of results, whether these come with the layers' parents or without.
    fn results(&self, record: &Record) -> BTreeSet<(bool, Vec<Id>)> {
        let ids = |layers: &[usize]| layers.iter().map(|&layer| self.layers[layer].id).collect();
        let one = record.results.iter().map(|made| (true, ids(&[made.layers])));
        let many = record.chains.iter().map(|made| (false, ids(&made.layers)));
        one.chain(many).collect()
    }

    fn step_ids(&self) -> BTreeMap<Id, Sha> {
        let steps = self.records.iter().flat_map(Record::steps);
        steps.map(|(layer, _)| (self.layers[layer].id, self.blobs[self.layers[layer].blob].digest)).collect()
    }

    fn blob_digests(&self) -> BTreeSet<Sha> {
        self.blobs.iter().map(|blob| blob.digest).collect()
    }
}
