//! How warm the build was that exported a cache.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::graph::{Cache, Record};

/// How much of a build came out of the cache, told from its export alone.
///
/// A step is a distinct layer that some record resulted in: BuildKit exports several records (cache keys) for one
/// step, and they share it. It was reused if it was made before the build began. Bytes are those of each step's own
/// blob, so those of the base image's layers, which are no step's result, do not count. A blob that both a reused
/// step and a built one have counts as reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct CacheHitRate {
    /// Steps that have a result.
    pub steps: usize,
    /// How many of them were reused.
    pub reused: usize,
    /// Compressed bytes of the blobs of reused steps.
    pub reused_bytes: u64,
    /// Compressed bytes of the blobs of steps that were built.
    pub built_bytes: u64,
}

impl CacheHitRate {
    /// Steps that were not reused.
    #[must_use]
    pub fn built(&self) -> usize {
        self.steps - self.reused
    }

    /// How many of a hundred steps were reused; `None` without steps.
    #[must_use]
    pub fn reused_percent(&self) -> Option<u8> {
        u8::try_from((self.reused * 100).checked_div(self.steps)?).ok()
    }
}

impl Cache {
    /// How much of the build that began at `start` and exported this cache came out of the cache it was given.
    #[must_use]
    pub fn built_since(&self, start: Timestamp) -> CacheHitRate {
        let mut steps = BTreeMap::new();
        for (layer, at) in self.records.iter().flat_map(Record::steps) {
            let earliest = steps.entry(layer).or_insert(at);
            *earliest = at.min(*earliest);
        }
        let blobs = |reused: bool| -> BTreeSet<usize> {
            let steps = steps.iter().filter(|&(_, at)| (at.0 < start) == reused);
            steps.map(|(&layer, _)| self.layers[layer].blob).collect()
        };
        let bytes = |blobs: &mut dyn Iterator<Item = &usize>| {
            blobs.fold(0, |sum: u64, &blob| sum.saturating_add(self.blobs[blob].descriptor.size))
        };
        let reused = blobs(true);
        CacheHitRate {
            steps: steps.len(),
            reused: steps.values().filter(|at| at.0 < start).count(),
            reused_bytes: bytes(&mut reused.iter()),
            built_bytes: bytes(&mut blobs(false).difference(&reused)),
        }
    }
}
