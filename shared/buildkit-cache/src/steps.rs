//! The steps of a cache: what a person sees in it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::graph::Cache;
use crate::names::Digest;

/// A layer that some record resulted in; those of base images are no steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its blob.
    pub blob: Digest,
    /// Compressed bytes of that.
    pub bytes: u64,
    /// When it was made, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_at: Option<Timestamp>,
    /// When a build last used one of its records, as far as that is noted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_at: Option<Timestamp>,
    /// Number of records, which are cache keys, that lead to it.
    pub keys: usize,
}

impl Cache {
    /// Its steps by their identity, the same in every cache: that of their layer with all below it.
    #[must_use]
    pub fn steps(&self) -> BTreeMap<Digest, Step> {
        let mut steps: BTreeMap<usize, Step> = BTreeMap::new();
        for record in &self.records {
            let mut layers: Vec<_> = record.steps().collect();
            layers.sort_unstable();
            // Of one layer the earliest, at which it was really made.
            layers.dedup_by_key(|(layer, _)| *layer);
            for (layer, at) in layers {
                let step = steps.entry(layer).or_insert_with(|| {
                    let blob = &self.blobs[self.layers[layer].blob].descriptor;
                    Step {
                        blob: blob.digest.clone(),
                        bytes: blob.size,
                        made_at: None,
                        used_at: None,
                        keys: 0,
                    }
                });
                step.made_at = step.made_at.into_iter().chain(at.known()).min();
                step.used_at = step.used_at.max(record.used.map(Timestamp::from));
                step.keys += 1;
            }
        }
        steps.into_iter().map(|(layer, step)| (self.layers[layer].id.into(), step)).collect()
    }
}
