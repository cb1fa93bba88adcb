//! What is in a cache, in terms that a person thinks in: the steps whose results it holds, and the keys to them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stoker::cache::Cache;
use stoker::names::Digest;

/// A layer that an instruction of a Dockerfile resulted in. Several cache keys may lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Step {
    /// The layer's own blob.
    pub(crate) blob: Digest,
    /// The blob's compressed size in bytes.
    #[serde(rename = "bytes")]
    pub(crate) size: u64,
    /// When the instruction ran.
    #[serde(rename = "madeAt")]
    pub(crate) made: Timestamp,
    /// When a build last used it, where that is noted.
    #[serde(rename = "usedAt", skip_serializing_if = "Option::is_none")]
    pub(crate) used: Option<Timestamp>,
    /// Cache keys that lead to it.
    pub(crate) keys: usize,
}

/// A cache key: what an instruction does, and what it does it to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Key {
    /// The keys that it was made from; none for sources, such as files and base images.
    pub(crate) inputs: BTreeSet<Digest>,
    /// The steps it leads to.
    pub(crate) steps: BTreeSet<Digest>,
}

/// What is in a cache. Steps are known by their layer with all below it, keys by their digest with all their inputs:
/// what two caches share has the same name in both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) steps: BTreeMap<Digest, Step>,
    pub(crate) keys: BTreeMap<Digest, Key>,
    /// Every blob that the cache needs, with its size: those of steps, and of base images below them.
    pub(crate) blobs: BTreeMap<Digest, u64>,
}

/// A cache's config in its canonical form, as far as it is needed.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    records: Vec<Record>,
}

#[derive(Deserialize)]
struct Layer {
    blob: Digest,
    #[serde(default)]
    parent: i64,
}

#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    digest: String,
    #[serde(default)]
    inputs: Vec<Vec<Input>>,
    #[serde(default, rename = "layers")]
    results: Vec<LayerResult>,
    #[serde(default)]
    chains: Vec<ChainResult>,
    /// Seconds since 1970.
    #[serde(default)]
    used: Option<i64>,
}

#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    selector: String,
    #[serde(default)]
    link: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayerResult {
    #[serde(default)]
    layer: i64,
    created_at: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChainResult {
    #[serde(default)]
    layers: Vec<i64>,
    created_at: Timestamp,
}

impl Contents {
    /// Reads them from a cache.
    pub(crate) fn of(cache: &Cache) -> Self {
        let config = cache.serialise(BTreeMap::new()).config;
        // The bytes come from a checked cache, so they read back.
        let config: Config = serde_json::from_slice(&config).unwrap_or_default();
        let blobs: BTreeMap<Digest, u64> =
            cache.blobs().map(|blob| (blob.digest.clone(), blob.size)).collect();
        let layers = names(config.layers.len(), |layer| {
            let Layer { blob, parent } = &config.layers[layer];
            (blob.to_string(), vec![(String::new(), index(*parent, config.layers.len()))])
        });
        let keys = names(config.records.len(), |record| {
            let record = &config.records[record];
            let mut inputs = Vec::new();
            for (place, links) in record.inputs.iter().enumerate() {
                let link = |input: &Input| {
                    (format!("{place} {}", input.selector), index(input.link, config.records.len()))
                };
                inputs.extend(links.iter().map(link));
            }
            (record.digest.clone(), inputs)
        });
        let mut contents = Self { blobs, ..Self::default() };
        for (record, name) in config.records.iter().zip(&keys) {
            let links = record.inputs.iter().flatten();
            let inputs =
                links.filter_map(|input| keys.get(index(input.link, keys.len())?)).cloned().collect();
            let mut key = Key { inputs, steps: BTreeSet::new() };
            let chains =
                record.chains.iter().filter_map(|chain| Some((*chain.layers.last()?, chain.created_at)));
            let results = record.results.iter().map(|result| (result.layer, result.created_at));
            for (layer, made) in results.chain(chains) {
                let Some(layer) = index(layer, layers.len()) else { continue };
                key.steps.insert(layers[layer].clone());
                let used = record.used.and_then(|used| Timestamp::from_second(used).ok());
                contents.add_step(&layers[layer], &config.layers[layer].blob, made, used);
            }
            contents.keys.insert(name.clone(), key);
        }
        contents
    }

    fn add_step(&mut self, name: &Digest, blob: &Digest, made: Timestamp, used: Option<Timestamp>) {
        let size = self.blobs.get(blob).copied().unwrap_or(0);
        let new = || Step { blob: blob.clone(), size, made, used: None, keys: 0 };
        let step = self.steps.entry(name.clone()).or_insert_with(new);
        step.keys += 1;
        step.made = step.made.min(made);
        step.used = step.used.max(used);
    }

    /// The compressed bytes of all blobs.
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs.values().fold(0, |sum, &size| sum.saturating_add(size))
    }
}

/// The compressed bytes of the blobs of steps, each blob counted once.
pub(crate) fn bytes_of<'a>(steps: impl Iterator<Item = &'a Step>) -> u64 {
    let blobs: BTreeMap<&Digest, u64> = steps.map(|step| (&step.blob, step.size)).collect();
    blobs.values().fold(0, |sum, &size| sum.saturating_add(size))
}

fn index(index: i64, len: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&index| index < len)
}

/// Names the nodes of a graph without cycles by their own text and, recursively, those of the nodes they need.
/// Not by recursion: a hostile graph is as deep as it has nodes.
fn names(nodes: usize, node: impl Fn(usize) -> (String, Vec<(String, Option<usize>)>)) -> Vec<Digest> {
    let mut names: Vec<Option<Digest>> = vec![None; nodes];
    let mut open: Vec<usize> = (0..nodes).collect();
    while let Some(&next) = open.last() {
        let (text, needs) = node(next);
        let unnamed = needs.iter().filter_map(|(_, need)| need.filter(|&need| names[need].is_none()));
        let before = open.len();
        if names[next].is_none() {
            open.extend(unnamed);
        }
        if open.len() == before {
            open.pop();
            let name_of = |need: Option<usize>| need.and_then(|need| names[need].clone());
            let mut needs: Vec<String> = needs
                .into_iter()
                .map(|(label, need)| {
                    let need = name_of(need);
                    format!("{label} {}", need.as_ref().map_or("-", |need| need.as_str()))
                })
                .collect();
            needs.sort_unstable();
            needs.dedup();
            names[next] = Some(Digest::of(format!("{text:?} {needs:?}").as_bytes()));
        }
    }
    names.into_iter().flatten().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};
    use stoker::cache::{CONFIG_MEDIA_TYPE, Kind, MANIFEST_MEDIA_TYPE, classify};

    use super::*;

    /// A cache as BuildKit writes it: for each letter a source, an instruction on it, and its result; for two letters
    /// an instruction on top of the first's.
    pub(crate) fn cache(steps: &[&str]) -> Cache {
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

    #[test]
    fn shared_steps_have_one_name() {
        let (a, b) = (Contents::of(&cache(&["a", "b", "ac"])), Contents::of(&cache(&["b", "x", "a", "ac"])));
        assert_eq!((a.steps.len(), b.steps.len()), (3, 4));
        assert_eq!(a.steps.keys().filter(|step| b.steps.contains_key(step)).count(), 3);
        assert_eq!(a.keys.keys().filter(|key| b.keys.contains_key(key)).count(), 6);
        assert_eq!(Contents::of(&Cache::default()), Contents::default());
    }

    #[test]
    fn a_deep_graph_is_named() {
        let deep = names(50_000, |n| (n.to_string(), vec![(String::new(), n.checked_sub(1))]));
        assert_eq!(deep.len(), 50_000);
        let reversed =
            names(50_000, |n| (n.to_string(), vec![(String::new(), (n + 1 < 50_000).then_some(n + 1))]));
        assert_eq!(reversed.len(), 50_000);
    }
}
