//! The graph in a form that joins are easy on: maps keyed by identity instead of lists of indices.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::config::{
    ChainResult, Config, Input, Layer as JsonLayer, LayerResult, NO_PARENT, Record as JsonRecord,
};
use super::{CONFIG_MEDIA_TYPE, Descriptor, Extra, IMPORT_LIMIT, MANIFEST_MEDIA_TYPE, Manifest, to_json};
use crate::names::Digest;

/// The hash of a layer's blob and its parent's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct LayerId([u8; 32]);

/// The hash of a record's digest and, for each input, the set of its alternatives' selectors and identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct RecordId([u8; 32]);

/// A checked cache, in canonical form: what no record needs is not in it.
///
/// Caches form a join-semilattice under [`Cache::merge`]: it is commutative, associative and idempotent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cache {
    records: BTreeMap<RecordId, Record>,
    layers: BTreeMap<LayerId, Layer>,
    blobs: BTreeMap<Digest, Descriptor>,
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    blob: Digest,
    parent: Option<LayerId>,
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    digest: String,
    /// For each input its alternatives, sorted and distinct.
    inputs: Vec<Vec<Link>>,
    results: BTreeMap<LayerId, Made>,
    chains: BTreeMap<Vec<LayerId>, Made>,
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    selector: String,
    record: RecordId,
}

/// What is known of a result besides its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    at: Timestamp,
    extra: Extra,
}

/// Bytes are not a cache that BuildKit would import whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCache {
    /// BuildKit would refuse the config for its size.
    #[error("the config has {0} bytes; BuildKit imports at most {IMPORT_LIMIT}")]
    TooLarge(u64),
    /// These are not the bytes that the manifest describes.
    #[error(
        "the config is {actual} of {actual_size} bytes, the manifest says {expected} of {expected_size} bytes"
    )]
    WrongConfig {
        /// Digest in the manifest.
        expected: Digest,
        /// Size in the manifest.
        expected_size: u64,
        /// Digest of the bytes.
        actual: Digest,
        /// Number of bytes.
        actual_size: u64,
    },
    /// The bytes are no JSON, or not that of a config.
    #[error("the config does not parse")]
    Unreadable(#[source] serde_json::Error),
    /// BuildKit would take a field for another that differs only in case.
    #[error("the config has a field {0:?}, which differs from a known one only in case")]
    AmbiguousField(String),
    /// A record's input links to a record that is not there.
    #[error("record {record} links to record {link}, which does not exist")]
    NoSuchRecord {
        /// The record's index.
        record: usize,
        /// What it links to.
        link: i64,
    },
    /// An input has no alternative.
    #[error("input {input} of record {record} is empty")]
    EmptyInput {
        /// The record's index.
        record: usize,
        /// The input's index.
        input: usize,
    },
    /// A record's key can match no other; BuildKit exports none such, and fails on links to them.
    #[error("record {record} has a random digest")]
    RandomRecord {
        /// The record's index.
        record: usize,
    },
    /// A record needs itself.
    #[error("record {record} is on a cycle")]
    RecordCycle {
        /// The record's index.
        record: usize,
    },
    /// A record's result is a layer that is not there.
    #[error("record {record} results in layer {layer}, which does not exist")]
    NoSuchLayer {
        /// The record's index.
        record: usize,
        /// What it points to.
        layer: i64,
    },
    /// A layer's parent is not there.
    #[error("layer {layer} has parent {parent}, which does not exist")]
    NoSuchParent {
        /// The layer's index.
        layer: usize,
        /// Its parent.
        parent: i64,
    },
    /// A layer is its own ancestor.
    #[error("layer {layer} is on a cycle")]
    LayerCycle {
        /// The layer's index.
        layer: usize,
    },
    /// The manifest does not describe a layer's blob.
    #[error("the manifest has no descriptor of {blob}, the blob of layer {layer}")]
    MissingBlob {
        /// The layer's index.
        layer: usize,
        /// Its blob.
        blob: Digest,
    },
}

/// A cache as a registry stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serialised {
    /// The config, a blob.
    pub config: Vec<u8>,
    /// The config's digest.
    pub config_digest: Digest,
    /// The manifest, of media type [`MANIFEST_MEDIA_TYPE`].
    pub manifest: Vec<u8>,
    /// The manifest's digest: that of the cache, if the annotations are the same.
    pub manifest_digest: Digest,
}

impl Serialised {
    /// The size to hold against [`super::SAFE_SIZE`]: that of the larger of the two.
    #[must_use]
    pub fn size(&self) -> usize {
        self.config.len().max(self.manifest.len())
    }
}

/// How much of a build came out of the cache, told from its export alone.
///
/// A step is a distinct layer that some record resulted in: BuildKit exports several records (cache keys) for one
/// step, and they share it. It was reused if it was made before the build began. Bytes are those of each step's own
/// blob, so those of the base image's layers, which are no step's result, do not count. A blob that both a reused
/// step and a built one have counts as reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Warmth {
    /// Steps that have a result.
    pub steps: usize,
    /// How many of them were reused.
    pub reused: usize,
    /// Compressed bytes of the blobs of reused steps.
    pub reused_bytes: u64,
    /// Compressed bytes of the blobs of steps that were built.
    pub built_bytes: u64,
}

impl Cache {
    /// Reads and checks a cache.
    pub fn parse(manifest: &Manifest, config: &[u8]) -> Result<Self, InvalidCache> {
        let actual_size = config.len() as u64;
        let size = manifest.config.size.max(actual_size);
        if size > IMPORT_LIMIT as u64 {
            return Err(InvalidCache::TooLarge(size));
        }
        let actual = Digest::of(config);
        if actual != manifest.config.digest || actual_size != manifest.config.size {
            return Err(InvalidCache::WrongConfig {
                expected: manifest.config.digest.clone(),
                expected_size: manifest.config.size,
                actual,
                actual_size,
            });
        }
        let config = serde_json::from_slice(config).map_err(InvalidCache::Unreadable)?;
        Self::from_config(config, &manifest.layers)
    }

    pub(super) fn from_config(config: Config, descriptors: &[Descriptor]) -> Result<Self, InvalidCache> {
        if let Some(field) = config.ambiguous_field() {
            return Err(InvalidCache::AmbiguousField(field.to_owned()));
        }
        let mut cache = Self { extra: config.extra, ..Self::default() };
        for descriptor in descriptors {
            cache.blobs.put(descriptor.digest.clone(), descriptor.clone());
        }
        let layer_ids = cache.add_layers(config.layers)?;
        cache.add_records(config.records, &layer_ids)?;
        cache.drop_unused();
        Ok(cache)
    }

    fn add_layers(&mut self, layers: Vec<JsonLayer>) -> Result<Vec<LayerId>, InvalidCache> {
        let mut parents = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            if !self.blobs.contains_key(&layer.blob) {
                return Err(InvalidCache::MissingBlob { layer: index, blob: layer.blob.clone() });
            }
            let parent = match layer.parent {
                NO_PARENT => None,
                parent => Some(
                    position(parent, layers.len())
                        .ok_or(InvalidCache::NoSuchParent { layer: index, parent })?,
                ),
            };
            parents.push(parent);
        }
        let order = needed_first(layers.len(), |layer, nth| if nth == 0 { parents[layer] } else { None })
            .map_err(|layer| InvalidCache::LayerCycle { layer })?;
        let mut ids = vec![LayerId([0; 32]); layers.len()];
        for index in order {
            ids[index] = layer_id(&layers[index].blob, parents[index].map(|parent| ids[parent]));
        }
        for (index, JsonLayer { blob, extra, .. }) in layers.into_iter().enumerate() {
            let parent = parents[index].map(|parent| ids[parent]);
            self.layers.put(ids[index], Layer { blob, parent, extra });
        }
        Ok(ids)
    }

    fn add_records(&mut self, records: Vec<JsonRecord>, layers: &[LayerId]) -> Result<(), InvalidCache> {
        let mut links = Vec::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            if record.digest.starts_with("random:") {
                return Err(InvalidCache::RandomRecord { record: index });
            }
            links.push(links_of(record, index, records.len())?);
        }
        let order = needed_first(records.len(), |record, nth| links[record].get(nth).copied())
            .map_err(|record| InvalidCache::RecordCycle { record })?;
        let mut ids = vec![RecordId([0; 32]); records.len()];
        let mut records: Vec<_> = records.into_iter().map(Some).collect();
        for index in order {
            let Some(record) = records[index].take() else {
                continue;
            };
            let mut linked = links[index].iter().map(|&link| ids[link]);
            let inputs: Vec<Vec<Link>> = record
                .inputs
                .into_iter()
                .map(|input| {
                    let mut input: Vec<_> = input
                        .unwrap_or_default()
                        .into_iter()
                        .zip(&mut linked)
                        .map(|(Input { selector, .. }, record)| Link { selector, record })
                        .collect();
                    input.sort_unstable();
                    input.dedup();
                    input
                })
                .collect();
            let layer = |layer| {
                position(layer, layers.len())
                    .map(|position| layers[position])
                    .ok_or(InvalidCache::NoSuchLayer { record: index, layer })
            };
            let (mut results, mut chains) = (BTreeMap::new(), BTreeMap::new());
            for result in record.results {
                results.put(layer(result.layer)?, Made { at: result.created_at, extra: result.extra });
            }
            for chain in record.chains {
                let layers = chain.layers.into_iter().map(layer).collect::<Result<_, _>>()?;
                chains.put(layers, Made { at: chain.created_at, extra: chain.extra });
            }
            ids[index] = record_id(&record.digest, &inputs);
            let record = Record { digest: record.digest, inputs, results, chains, extra: record.extra };
            self.records.put(ids[index], record);
        }
        Ok(())
    }

    /// Drops layers that no record refers to, directly or through a parent, and blobs without a layer.
    fn drop_unused(&mut self) {
        let mut used = HashSet::new();
        for record in self.records.values() {
            for layer in record.results.keys().chain(record.chains.keys().flatten()) {
                let mut next = Some(*layer);
                while let Some(layer) = next.filter(|&layer| used.insert(layer)) {
                    next = self.layers.get(&layer).and_then(|layer| layer.parent);
                }
            }
        }
        self.layers.retain(|id, _| used.contains(id));
        let blobs: HashSet<_> = self.layers.values().map(|layer| &layer.blob).collect();
        self.blobs.retain(|digest, _| blobs.contains(digest));
    }

    /// The union of caches: whatever steps one of them spares a build, this spares it.
    ///
    /// A record or layer that several hold stays one. Its results are united; a result that several hold keeps the
    /// earliest time, at which it was really made. Of two descriptors of a blob, and of two values of a field that
    /// Stoker does not know, the one whose JSON sorts first stays: arbitrary, but the same whichever comes first.
    #[must_use]
    pub fn merge<'a>(caches: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut caches = caches.into_iter();
        let mut union = caches.next().cloned().unwrap_or_default();
        for cache in caches {
            union.join(cache.clone());
        }
        union
    }

    /// Whether merging `other` into this cache would add no record, result or layer.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        // A layer of `other` needs no look of its own: a result has it, and its identity covers all its parents.
        other.records.iter().all(|(id, theirs)| {
            self.records.get(id).is_some_and(|ours| {
                theirs.results.keys().all(|layer| ours.results.contains_key(layer))
                    && theirs.chains.keys().all(|chain| ours.chains.contains_key(chain))
            })
        })
    }

    /// Number of records.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The blobs that the cache needs, each once, by digest.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs.values()
    }

    /// How much of the build that began at `start` and exported this cache came out of the cache it was given.
    #[must_use]
    pub fn built_since(&self, start: Timestamp) -> Warmth {
        let mut steps: HashMap<&LayerId, Timestamp> = HashMap::new();
        for record in self.records.values() {
            let chains = record.chains.iter().filter_map(|(layers, made)| Some((layers.last()?, made)));
            for (layer, made) in record.results.iter().chain(chains) {
                let earliest = steps.entry(layer).or_insert(made.at);
                *earliest = made.at.min(*earliest);
            }
        }
        let blobs = |reused: bool| -> HashSet<&Digest> {
            let steps = steps.iter().filter(|&(_, &at)| (at < start) == reused);
            steps.filter_map(|(layer, _)| Some(&self.layers.get(layer)?.blob)).collect()
        };
        let size = |blob: &Digest| self.blobs.get(blob).map_or(0, |descriptor| descriptor.size);
        let sum = |blobs: &mut dyn Iterator<Item = &&Digest>| {
            blobs.fold(0, |sum: u64, blob| sum.saturating_add(size(blob)))
        };
        let reused = blobs(true);
        Warmth {
            steps: steps.len(),
            reused: steps.values().filter(|&&at| at < start).count(),
            reused_bytes: sum(&mut reused.iter()),
            built_bytes: sum(&mut blobs(false).difference(&reused)),
        }
    }

    /// The canonical bytes of the cache: the same whatever it was read or merged from, and in whatever order.
    #[must_use]
    pub fn serialise(&self, annotations: BTreeMap<String, String>) -> Serialised {
        let config = to_json(&self.to_config());
        let config_digest = Digest::of(&config);
        let manifest = to_json(&Manifest {
            schema_version: 2,
            media_type: MANIFEST_MEDIA_TYPE.to_owned(),
            config: Descriptor {
                media_type: CONFIG_MEDIA_TYPE.to_owned(),
                digest: config_digest.clone(),
                size: config.len() as u64,
                annotations: BTreeMap::new(),
                extra: Extra::new(),
            },
            // By digest, which is the order in which the config's layers first use them.
            layers: self.blobs.values().cloned().collect(),
            annotations,
            extra: Extra::new(),
        });
        let manifest_digest = Digest::of(&manifest);
        Serialised { config, config_digest, manifest, manifest_digest }
    }

    pub(super) fn to_config(&self) -> Config {
        let (layers, layer_index) = numbered(&self.layers, |layer| layer.blob.as_str());
        let (records, record_index) = numbered(&self.records, |record| &record.digest);
        let json_layer = |layer: &Layer| JsonLayer {
            blob: layer.blob.clone(),
            parent: layer.parent.map_or(NO_PARENT, |parent| layer_index[&parent]),
            extra: layer.extra.clone(),
        };
        let json_record = |record: &Record| {
            let input = |link: &Link| Input {
                selector: link.selector.clone(),
                link: record_index[&link.record],
                extra: Extra::new(),
            };
            let result = |(layer, made): (&LayerId, &Made)| LayerResult {
                layer: layer_index[layer],
                created_at: made.at,
                extra: made.extra.clone(),
            };
            let chain = |(layers, made): (&Vec<LayerId>, &Made)| ChainResult {
                layers: layers.iter().map(|layer| layer_index[layer]).collect(),
                created_at: made.at,
                extra: made.extra.clone(),
            };
            let mut json = JsonRecord {
                results: record.results.iter().map(result).collect(),
                chains: record.chains.iter().map(chain).collect(),
                digest: record.digest.clone(),
                inputs: record.inputs.iter().map(|links| Some(links.iter().map(input).collect())).collect(),
                extra: record.extra.clone(),
            };
            json.results.sort_by_key(|result| result.layer);
            json.chains.sort_by(|a, b| a.layers.cmp(&b.layers));
            for input in json.inputs.iter_mut().flatten() {
                input.sort_by(|a, b| (&a.selector, a.link).cmp(&(&b.selector, b.link)));
            }
            json
        };
        Config {
            layers: layers.into_iter().map(json_layer).collect(),
            records: records.into_iter().map(json_record).collect(),
            extra: self.extra.clone(),
        }
    }
}

/// The values sorted by a text of theirs and then by identity, and each identity's place among them.
fn numbered<'a, Id, T>(
    all: &'a BTreeMap<Id, T>,
    text: impl Fn(&'a T) -> &'a str,
) -> (Vec<&'a T>, HashMap<Id, i64>)
where
    Id: Copy + Ord + std::hash::Hash,
{
    let mut sorted: Vec<_> = all.iter().collect();
    // The sort is stable, and a map iterates by identity.
    sorted.sort_by_key(|(_, value)| text(value));
    let places = sorted.iter().map(|(id, _)| **id).zip(0..).collect();
    (sorted.into_iter().map(|(_, value)| value).collect(), places)
}

fn position(index: i64, len: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&index| index < len)
}

/// All links of a record, those of its first input first.
fn links_of(record: &JsonRecord, index: usize, records: usize) -> Result<Vec<usize>, InvalidCache> {
    let mut links = Vec::new();
    for (input, alternatives) in record.inputs.iter().enumerate() {
        let alternatives = alternatives.as_deref().unwrap_or_default();
        if alternatives.is_empty() {
            return Err(InvalidCache::EmptyInput { record: index, input });
        }
        for &Input { link, .. } in alternatives {
            links.push(position(link, records).ok_or(InvalidCache::NoSuchRecord { record: index, link })?);
        }
    }
    Ok(links)
}

/// Orders the nodes of a graph so that each comes after those it needs; the error is a node on a cycle.
///
/// The stack of this depth-first walk is a list, because a hostile graph may be as deep as it has nodes.
fn needed_first(nodes: usize, nth_need: impl Fn(usize, usize) -> Option<usize>) -> Result<Vec<usize>, usize> {
    #[derive(Clone, Copy)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; nodes];
    let mut order = Vec::with_capacity(nodes);
    let mut path = Vec::new();
    for root in 0..nodes {
        if let Mark::New = marks[root] {
            marks[root] = Mark::Open;
            path.push((root, 0));
        }
        while let Some((node, nth)) = path.last_mut() {
            let Some(need) = nth_need(*node, *nth) else {
                marks[*node] = Mark::Done;
                order.push(*node);
                path.pop();
                continue;
            };
            *nth += 1;
            match marks[need] {
                Mark::Done => {}
                Mark::Open => return Err(need),
                Mark::New => {
                    marks[need] = Mark::Open;
                    path.push((need, 0));
                }
            }
        }
    }
    Ok(order)
}

fn layer_id(blob: &Digest, parent: Option<LayerId>) -> LayerId {
    let mut hash = Sha256::new();
    // A digest has one length, so nothing has to be said of where it ends.
    hash.update(blob.as_str());
    if let Some(LayerId(parent)) = parent {
        hash.update(parent);
    }
    LayerId(hash.finalize().into())
}

fn record_id(digest: &str, inputs: &[Vec<Link>]) -> RecordId {
    fn add_text(hash: &mut Sha256, text: &str) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let mut hash = Sha256::new();
    add_text(&mut hash, digest);
    for input in inputs {
        hash.update((input.len() as u64).to_le_bytes());
        for Link { selector, record: RecordId(record) } in input {
            add_text(&mut hash, selector);
            hash.update(record);
        }
    }
    RecordId(hash.finalize().into())
}

/// Values of which two make one, in a way that is commutative, associative and idempotent.
///
/// What belongs to the identity under which a value is kept is the same on both sides and left alone.
trait Join {
    fn join(&mut self, other: Self);
}

/// A map whose values join when their keys meet.
trait Put<K, V> {
    fn put(&mut self, key: K, value: V);
}

impl<K: Ord, V: Join> Put<K, V> for BTreeMap<K, V> {
    fn put(&mut self, key: K, value: V) {
        match self.entry(key) {
            Entry::Vacant(place) => _ = place.insert(value),
            Entry::Occupied(mut place) => place.get_mut().join(value),
        }
    }
}

impl<K: Ord, V: Join> Join for BTreeMap<K, V> {
    fn join(&mut self, other: Self) {
        for (key, value) in other {
            self.put(key, value);
        }
    }
}

impl Join for Cache {
    fn join(&mut self, other: Self) {
        self.records.join(other.records);
        self.layers.join(other.layers);
        self.blobs.join(other.blobs);
        self.extra.join(other.extra);
    }
}

impl Join for Record {
    fn join(&mut self, other: Self) {
        self.results.join(other.results);
        self.chains.join(other.chains);
        self.extra.join(other.extra);
    }
}

impl Join for Layer {
    fn join(&mut self, other: Self) {
        self.extra.join(other.extra);
    }
}

impl Join for Made {
    fn join(&mut self, other: Self) {
        self.at = self.at.min(other.at);
        self.extra.join(other.extra);
    }
}

impl Join for Descriptor {
    fn join(&mut self, other: Self) {
        keep_first(self, other);
    }
}

impl Join for Value {
    fn join(&mut self, other: Self) {
        keep_first(self, other);
    }
}

/// Keeps of two values the one whose JSON sorts first.
fn keep_first<T: PartialEq + serde::Serialize>(ours: &mut T, theirs: T) {
    if *ours != theirs && to_json(&theirs) < to_json(ours) {
        *ours = theirs;
    }
}
