//! Reads a cache's config once more, with none of the code under test: which records it has, and for which steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Context as _;
use builder::Case;
use buildkit_cache::Cache;
use serde_json::Value;
use stoker_core::names::Digest;

use crate::registry::Registry;

/// The records of a cache by identity, each with the blobs that its results end with.
pub(crate) struct Graph {
    pub(crate) records: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(crate) fn of(cache: &Cache) -> anyhow::Result<Self> {
        let config: Value = serde_json::from_slice(&cache.serialise(BTreeMap::new()).config)?;
        let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
        let (layers, records) = (list(&config, "layers"), list(&config, "records"));
        let blob = |index: &Value| -> anyhow::Result<String> {
            let index = usize::try_from(index.as_u64().unwrap_or(0))?;
            let blob = layers.get(index).and_then(|layer| layer["blob"].as_str());
            blob.map(str::to_owned).context("no such layer")
        };
        let mut identities = vec![None; records.len()];
        let mut all = BTreeMap::new();
        for index in 0..records.len() {
            let identity = identity(index, &records, &mut identities);
            let blobs: &mut BTreeSet<String> = all.entry(identity).or_default();
            for result in list(&records[index], "layers") {
                blobs.insert(blob(&result["layer"])?);
            }
            for chain in list(&records[index], "chains") {
                if let Some(last) = list(&chain, "layers").last() {
                    blobs.insert(blob(last)?);
                }
            }
        }
        Ok(Self { records: all })
    }
}

/// A digest of a record's digest, its inputs' selectors, and their identities. Generated graphs are not deep.
fn identity(index: usize, records: &[Value], known: &mut Vec<Option<String>>) -> String {
    if let Some(known) = &known[index] {
        return known.clone();
    }
    let record = &records[index];
    let mut text = record["digest"].to_string();
    for input in record["inputs"].as_array().into_iter().flatten() {
        let mut alternatives: Vec<String> = input
            .as_array()
            .into_iter()
            .flatten()
            .map(|link| {
                let to = usize::try_from(link["link"].as_u64().unwrap_or(0)).unwrap_or(0);
                format!("{} {}", link["selector"], identity(to, records, known))
            })
            .collect();
        alternatives.sort();
        let _ = write!(text, "{alternatives:?}");
    }
    let identity = Digest::of(text.as_bytes()).to_string();
    known[index] = Some(identity.clone());
    identity
}

/// The blobs of a case's own steps, each with the mark of its step. The base image's are not among them.
pub(crate) fn marks(
    case: &Case,
    cache: &Cache,
    registry: &Registry,
) -> anyhow::Result<BTreeMap<String, String>> {
    const LARGEST: u64 = 256 << 10;
    let mut marks = BTreeMap::new();
    for blob in cache.blobs().filter(|blob| blob.size < LARGEST) {
        let bytes = registry.blob(&blob.digest.to_string())?;
        if let Some(mark) = case.marks(&String::from_utf8_lossy(&bytes)).next() {
            marks.insert(blob.digest.to_string(), mark.to_owned());
        }
    }
    Ok(marks)
}
