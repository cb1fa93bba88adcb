//! A cache at a glance.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::IMPORT_LIMIT;
use super::graph::Cache;
use super::json::Sha;
use crate::names::Digest;

/// What a cache holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Its steps, in the order of its layers.
    pub steps: Vec<Step>,
    /// Number of its records.
    pub records: usize,
    /// Number of its layers; those of base images are no steps.
    pub layers: usize,
    /// Most layers on top of each other.
    pub depth: usize,
    /// Number of its blobs.
    pub blobs: usize,
    /// Bytes of these, each counted once.
    pub blob_bytes: u64,
    /// Bytes of its canonical config.
    pub config_bytes: usize,
    /// How much of what BuildKit imports that is, in percent.
    pub config_percent: f64,
    /// Bytes of its canonical manifest without annotations.
    pub manifest_bytes: usize,
    /// How much of what BuildKit imports that is, in percent.
    pub manifest_percent: f64,
}

/// A layer that some record resulted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its blob.
    pub blob: Digest,
    /// Compressed bytes of that.
    pub bytes: u64,
    /// When it was made, as far as that is known.
    pub created: Option<Timestamp>,
    /// When a build last used one of its records, as far as that is known.
    pub last_used: Option<Timestamp>,
    /// Number of records that lead to it.
    pub records: usize,
    /// Number of layers under it.
    pub depth: usize,
}

/// How much several caches have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Shared {
    /// Bytes of the blobs that at least two of them have, each counted once.
    pub shared: u64,
    /// Bytes of all blobs, each counted once: what the registry stores.
    pub stored: u64,
    /// The sum of the caches' bytes: what it would store if none shared a blob.
    pub apart: u64,
}

impl Cache {
    /// What the cache holds.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let depths = self.depths();
        let mut steps: BTreeMap<usize, Step> = BTreeMap::new();
        for record in &self.records {
            let mut layers: Vec<_> = record.steps().collect();
            layers.sort_unstable();
            // Of one layer the earliest, at which it was really made.
            layers.dedup_by_key(|(layer, _)| *layer);
            for (layer, at) in layers {
                let blob = &self.blobs[self.layers[layer].blob];
                let step = steps.entry(layer).or_insert_with(|| Step {
                    blob: blob.digest.into(),
                    bytes: blob.descriptor.size,
                    created: None,
                    last_used: None,
                    records: 0,
                    depth: depths[layer],
                });
                step.created = step.created.into_iter().chain(at.known()).min();
                step.last_used = step.last_used.max(record.last_used());
                step.records += 1;
            }
        }
        let sizes = self.sizes();
        Summary {
            steps: steps.into_values().collect(),
            records: self.records.len(),
            layers: self.layers.len(),
            depth: depths.iter().max().map_or(0, |most| most + 1),
            blobs: self.blobs.len(),
            blob_bytes: sizes.blobs,
            config_bytes: sizes.config,
            config_percent: percent(sizes.config),
            manifest_bytes: sizes.manifest,
            manifest_percent: percent(sizes.manifest),
        }
    }

    /// How much caches have in common.
    #[must_use]
    pub fn shared<'a>(caches: impl IntoIterator<Item = &'a Self>) -> Shared {
        let mut holders: BTreeMap<Sha, (u64, usize)> = BTreeMap::new();
        for blob in caches.into_iter().flat_map(|cache| &cache.blobs) {
            holders.entry(blob.digest).or_insert((blob.descriptor.size, 0)).1 += 1;
        }
        holders.values().fold(Shared::default(), |sum, &(bytes, holders)| Shared {
            shared: sum.shared.saturating_add(if holders > 1 { bytes } else { 0 }),
            stored: sum.stored.saturating_add(bytes),
            apart: sum.apart.saturating_add(bytes.saturating_mul(holders as u64)),
        })
    }

    /// For each layer the number of layers under it.
    fn depths(&self) -> Vec<usize> {
        let mut depths = vec![None; self.layers.len()];
        for layer in 0..self.layers.len() {
            let mut path = Vec::new();
            let mut next = Some(layer);
            while let Some(layer) = next.filter(|&layer| depths[layer].is_none()) {
                path.push(layer);
                next = self.layers[layer].parent;
            }
            let first = next.and_then(|layer| depths[layer]).map_or(0, |under: usize| under + 1);
            for (depth, layer) in (first..).zip(path.into_iter().rev()) {
                depths[layer] = Some(depth);
            }
        }
        depths.into_iter().flatten().collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far from where that begins")]
fn percent(bytes: usize) -> f64 {
    bytes as f64 * 100.0 / IMPORT_LIMIT as f64
}
