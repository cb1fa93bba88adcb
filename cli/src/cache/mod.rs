//! `stoker cache`: a file per command.

use std::collections::BTreeMap;

use buildkit_cache::Step;
use serde::Serialize;
use stoker_core::names::Digest;

pub(crate) mod diff;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod mount;
pub(crate) mod prune;
mod store;
pub(crate) mod verify;

/// Rows of steps that a person reads without scrolling.
const ROWS: usize = 15;

/// How many steps, and the compressed bytes of their blobs, each blob counted once.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Amount {
    steps: usize,
    bytes: u64,
}

impl Amount {
    fn of<'a>(steps: impl IntoIterator<Item = &'a Step>) -> Self {
        let mut amount = Self { steps: 0, bytes: 0 };
        let mut blobs = BTreeMap::new();
        for step in steps {
            amount.steps += 1;
            blobs.insert(&step.blob, step.bytes);
        }
        amount.bytes = blobs.into_values().fold(0, u64::saturating_add);
        amount
    }

    /// That of the steps that two caches have in common.
    fn in_both(a: &BTreeMap<Digest, Step>, b: &BTreeMap<Digest, Step>) -> Self {
        Self::of(a.iter().filter(|(id, _)| b.contains_key(*id)).map(|(_, step)| step))
    }
}

/// What commands print for programs.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(value);
    // Strings and numbers always make JSON.
    json.map_or_else(|error| error.to_string(), |json| json + "\n")
}

#[cfg(test)]
mod tests {
    use buildkit_cache::{CONFIG_MEDIA_TYPE, Cache, Kind, MANIFEST_MEDIA_TYPE, classify};
    use serde_json::{Value, json};

    use super::*;

    /// A cache as BuildKit writes it: for each letter a source, an instruction on it, and its result; for two letters
    /// an instruction on top of the first's.
    pub(super) fn cache(steps: &[&str]) -> Cache {
        let mut layers = Vec::new();
        let mut records = Vec::new();
        let mut blobs = Vec::new();
        for (n, step) in steps.iter().enumerate() {
            let digest = Digest::of(step.as_bytes());
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            let size = 1_000_000 * (step.bytes().map(u64::from).sum::<u64>() % 97);
            blobs.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
            let below =
                steps.iter().position(|other| step.strip_prefix(other).is_some_and(|s| !s.is_empty()));
            layers.push(json!({"blob": digest, "parent": below.map_or(-1, |n| i64::try_from(n).unwrap())}));
            records.push(json!({"digest": format!("source {step}")}));
            let link = below.map_or(2 * n, |below| 2 * below + 1);
            records.push(json!({"digest": format!("run {step}"), "inputs": [[{"link": link}]],
                                "layers": [{"layer": n, "createdAt": "2026-11-21T09:00:00Z"}]}));
        }
        let config = json!({"layers": layers, "records": records}).to_string();
        let manifest: Value = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_MEDIA_TYPE,
            "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(config.as_bytes()), "size": config.len()},
            "layers": blobs,
        });
        let Kind::Cache(manifest) = classify(manifest.to_string().as_bytes()) else { panic!("{manifest}") };
        Cache::parse(&manifest, config.as_bytes()).unwrap()
    }
}
