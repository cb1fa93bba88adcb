//! The graph, in one canonical order.
//!
//! A cache's lists name each other by index, as in JSON, and are sorted: blobs by digest, layers by blob, records by
//! digest, and what is equal in that by identity. So writing is going through them, and joining is sorting what is
//! almost sorted. An index never leaves its cache; identity is what two caches have in common.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::config::{
    self, JsonChain, JsonConfig, JsonInputs, JsonLayer, JsonLink, JsonRecord, JsonResult, NO_PARENT,
};
use super::json::{Extra, Seconds, Sha, Text, Time, from_json, to_json};
use super::limits::{self, IMPORT_LIMIT, TooMany};
use super::manifest::{Descriptor, Manifest};
use super::mark::{self, Mark, Probation};
use crate::names::Digest;

/// The digest of a cache's [sink](Cache::sink).
pub(super) const SINK: &str = "sha256:03f11d1652a02e74a0634d8e63e64b1bef9398bd0ebf8454911f0173b3832f09";

/// What makes two layers or two records of different caches the same. A layer's is the hash of its blob and its
/// parent's identity; a record's that of its digest and, for each input, the set of its alternatives' selectors and
/// identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id([u8; 32]);

impl From<Id> for Digest {
    fn from(Id(hash): Id) -> Self {
        Sha(hash).into()
    }
}

/// A checked cache, in canonical form: what no record needs is not in it.
///
/// Caches form a join-semilattice under [`Cache::merge`]: it is commutative, associative and idempotent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cache {
    pub(super) blobs: Vec<Blob>,
    pub(super) layers: Vec<Layer>,
    pub(super) records: Vec<Record>,
    pub(super) extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Sha,
    /// Shared by all caches that came from one: it is most of what there is to copy.
    pub(super) descriptor: Arc<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) id: Id,
    /// Its place among the blobs.
    pub(super) blob: usize,
    /// Its place among the layers.
    pub(super) parent: Option<usize>,
    pub(super) extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: Id,
    pub(super) digest: Text,
    /// What it was made from, sorted and distinct.
    pub(super) links: Vec<Link>,
    /// Layers, with their parents, that it resulted in.
    pub(super) results: Vec<Made<usize>>,
    /// Lists of layers, without their parents, that it resulted in.
    pub(super) chains: Vec<Made<Vec<usize>>>,
    /// When a build last used it, if that is known.
    pub(super) used: Option<Seconds>,
    /// A merge that brought it, or something that was made from it; none where it is the cache's own.
    pub(super) probation: Probation,
    pub(super) extra: Extra,
}

/// One alternative of an input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    /// The number of the input.
    pub(super) input: usize,
    pub(super) selector: Text,
    /// Its place among the records.
    pub(super) record: usize,
}

/// A result. Sorted by layers, of which a record has no two the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made<L> {
    pub(super) layers: L,
    pub(super) at: Time,
    pub(super) probation: Probation,
    pub(super) extra: Extra,
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
    /// The bytes are no JSON, or not that of a config; or BuildKit would take a field for another that differs only
    /// in case.
    #[error("the config does not parse")]
    Unreadable(#[source] serde_json::Error),
    /// It holds more of something than any real cache does, and is not read: it would take much memory.
    #[error(transparent)]
    TooMany(#[from] TooMany),
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
    /// A record has the digest of the sink, and is none: it has a result, or another record was made from it.
    #[error(
        "record {record} has the digest of the record that Stoker adds for all leaves, and is not that record"
    )]
    NoSink {
        /// The record's index.
        record: usize,
    },
    /// A record, or a result of it, is on probation for a merge that is not there.
    #[error("record {record} is on probation for merge {mark}, which does not exist")]
    NoSuchMark {
        /// The record's index.
        record: usize,
        /// The merge's index.
        mark: i64,
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

impl Cache {
    /// Reads and checks a cache.
    pub fn parse(manifest: &Manifest, config: &[u8]) -> Result<Self, InvalidCache> {
        Self::parse_within(manifest, config, IMPORT_LIMIT)
    }

    /// [`Cache::parse`] for a config of at most `limit` bytes: a cache that has grown too large for BuildKit must be
    /// readable to be pruned.
    pub fn parse_within(manifest: &Manifest, config: &[u8], limit: usize) -> Result<Self, InvalidCache> {
        let actual_size = config.len() as u64;
        let size = manifest.config.size.max(actual_size);
        if size > limit as u64 {
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
        limits::check_json(config, limit)?;
        let config: JsonConfig = from_json(config).map_err(InvalidCache::Unreadable)?;
        config::check(&config, limit)?;
        let blobs = manifest.layers.iter().map(|descriptor| Blob {
            digest: Sha::from(&descriptor.digest),
            descriptor: Arc::clone(descriptor),
        });
        let (blobs, _) = sort_and_join(blobs.collect(), |_| true, Blob::order);
        let layers = read_layers(config.layers, &blobs)?;
        let marks: Vec<Arc<Mark>> = config
            .probation
            .into_iter()
            .map(|mark| Arc::new(Mark::new(mark.commit, mark.at.into())))
            .collect();
        let mut records = read_records(config.records, layers.len(), &marks)?;
        let sinks = sinks(&records)?;
        for record in &mut records {
            record.used = record.used.or(config.used);
        }
        // Stoker writes it last, behind what others link to.
        records.truncate(records.len() - sinks.iter().rev().take_while(|is_sink| **is_sink).count());
        let kept: Vec<bool> = sinks[..records.len()].iter().map(|is_sink| !is_sink).collect();
        let cache = Self { blobs, layers, records, extra: config.extra };
        Ok(if kept.contains(&false) { cache.only(&kept) } else { cache.canonical() })
    }

    /// Where there are several leaves, the record that is written beside the others and is none of the cache: made from
    /// all leaves, without a result, so that no build matches it and no builder exports it again.
    ///
    /// BuildKit 0.25 to at least 0.32 walks an imported graph from each leaf, and drops the links by which a walk comes
    /// to where an earlier one has been: of a cache with several leaves some steps are lost, at random. With the sink
    /// there is one leaf, so one walk.
    pub(super) fn sink(&self) -> Option<Record> {
        let leaves = self.leaves();
        if leaves.len() < 2 {
            return None;
        }
        let link = |(input, record)| Link { input, selector: Text::default(), record };
        Some(Record {
            id: Id([0; 32]),
            digest: Text::from(SINK),
            links: leaves.into_iter().enumerate().map(link).collect(),
            results: Vec::new(),
            chains: Vec::new(),
            used: None,
            probation: None,
            extra: Extra::new(),
        })
    }

    /// The records that no other was made from, in the order of the cache.
    pub(super) fn leaves(&self) -> Vec<usize> {
        let is_leaf = leaves(&self.records);
        (0..is_leaf.len()).filter(|&record| is_leaf[record]).collect()
    }

    /// Whether builders of BuildKit 0.25 and newer lose some of the cache when they import it with this config, from
    /// which it was read: it has several leaves, and no record that holds them together. [`Cache::serialise`] writes
    /// one.
    #[must_use]
    pub fn loses_links_with(&self, config: &[u8]) -> bool {
        let has_sink = || config.windows(SINK.len()).any(|window| window == SINK.as_bytes());
        self.leaves().len() > 1 && !has_sink()
    }

    /// Brings the lists into order, joins what is the same, and drops what no record needs.
    pub(super) fn canonical(self) -> Self {
        let needed_layers = self.needed_layers();
        let mut needed_blobs = vec![false; self.blobs.len()];
        for (layer, _) in self.layers.iter().zip(&needed_layers).filter(|(_, needed)| **needed) {
            needed_blobs[layer.blob] = true;
        }
        let (blobs, blob_places) = sort_and_join(self.blobs, |blob| needed_blobs[blob], Blob::order);

        let mut layers = self.layers;
        for layer in &mut layers {
            layer.blob = blob_places[layer.blob];
        }
        let (mut layers, layer_places) = sort_and_join(layers, |layer| needed_layers[layer], Layer::order);
        for parent in layers.iter_mut().filter_map(|layer| layer.parent.as_mut()) {
            *parent = layer_places[*parent];
        }

        let mut records = self.records;
        for record in &mut records {
            record.results.iter_mut().for_each(|made| made.layers = layer_places[made.layers]);
            let chained = record.chains.iter_mut().flat_map(|made| &mut made.layers);
            chained.for_each(|layer| *layer = layer_places[*layer]);
            sort_results(&mut record.results);
            sort_results(&mut record.chains);
        }
        let (mut records, record_places) = sort_and_join(records, |_| true, Record::order);
        for record in &mut records {
            record.links.iter_mut().for_each(|link| link.record = record_places[link.record]);
            record.links.sort_unstable();
        }
        Self { blobs, layers, records, extra: self.extra }
    }

    /// Which layers some record refers to, directly or through a parent.
    fn needed_layers(&self) -> Vec<bool> {
        let mut needed = vec![false; self.layers.len()];
        for record in &self.records {
            for &layer in record.layers() {
                let mut next = Some(layer);
                while let Some(layer) = next.filter(|&layer| !needed[layer]) {
                    needed[layer] = true;
                    next = self.layers[layer].parent;
                }
            }
        }
        needed
    }

    /// The union of caches: whatever steps one of them spares a build, this spares it.
    ///
    /// A record or layer that several hold stays one. Its results are united; a result that several hold keeps the
    /// earliest time, at which it was really made, and a record the latest time of its use. What one of them has as its
    /// own is on no probation, be it a record or a result; of two [marks](Mark) the later counts. Of two descriptors of
    /// a blob, and of two values of a field that Stoker does not know, the one whose JSON sorts first stays: arbitrary,
    /// but the same whichever comes first.
    #[must_use]
    pub fn merge<'a>(caches: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut caches = caches.into_iter();
        let first = caches.next().cloned().unwrap_or_default();
        caches.fold(first, Self::joined)
    }

    /// The union with another cache. Both are in order, and what is in order stays so: it only moves up.
    fn joined(mut self, other: &Self) -> Self {
        let [our_blobs, their_blobs] = union_places(&self.blobs, &other.blobs, Blob::order);
        for layer in &mut self.layers {
            layer.blob = our_blobs[layer.blob];
        }
        let by_blob = |ours: &Layer, theirs: &Layer| {
            ours.blob.cmp(&their_blobs[theirs.blob]).then(ours.id.cmp(&theirs.id))
        };
        let [our_layers, their_layers] = union_places(&self.layers, &other.layers, by_blob);
        for parent in self.layers.iter_mut().filter_map(|layer| layer.parent.as_mut()) {
            *parent = our_layers[*parent];
        }
        let [our_records, their_records] = union_places(&self.records, &other.records, Record::order);
        for record in &mut self.records {
            record.move_up(&our_layers, &our_records);
        }
        let their_layer = |layer: &Layer| Layer {
            blob: their_blobs[layer.blob],
            parent: layer.parent.map(|parent| their_layers[parent]),
            ..layer.clone()
        };
        let their_record = |record: &Record| {
            let mut record = record.clone();
            record.move_up(&their_layers, &their_records);
            record
        };
        for (name, value) in &other.extra {
            join_extra(&mut self.extra, name.clone(), value.clone());
        }
        Self {
            blobs: union(self.blobs, &other.blobs, [&our_blobs, &their_blobs], Blob::clone),
            layers: union(self.layers, &other.layers, [&our_layers, &their_layers], their_layer),
            records: union(self.records, &other.records, [&our_records, &their_records], their_record),
            extra: self.extra,
        }
    }

    /// Whether merging `other` into this cache would add no record and no result.
    ///
    /// It ignores what says of these when they were made or used, what describes their blobs, and what Stoker does not
    /// know: merging could still change any of that.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        let layers = places_in(&other.layers, &self.layers, |ours, theirs| {
            self.blobs[ours.blob].digest.cmp(&other.blobs[theirs.blob].digest).then(ours.id.cmp(&theirs.id))
        });
        let records = places_in(&other.records, &self.records, Record::order);
        other.records.iter().zip(records).all(|(theirs, ours)| {
            // A layer's identity covers its parents, so they need no look of their own.
            let Some(ours) = ours.map(|place| &self.records[place]) else { return false };
            let chain =
                |chain: &[usize]| chain.iter().map(|&layer| layers[layer]).collect::<Option<Vec<_>>>();
            theirs
                .results
                .iter()
                .all(|made| layers[made.layers].is_some_and(|layer| has_result(&ours.results, &layer)))
                && theirs
                    .chains
                    .iter()
                    .all(|made| chain(&made.layers).is_some_and(|layers| has_result(&ours.chains, &layers)))
        })
    }

    /// The same cache without the results that need one of these blobs.
    #[must_use]
    pub fn without_blobs(&self, lost: &BTreeSet<Digest>) -> Self {
        let lost: BTreeSet<Sha> = lost.iter().map(Sha::from).collect();
        let is_lost = |layer: usize| lost.contains(&self.blobs[self.layers[layer].blob].digest);
        let ancestors =
            |layer| std::iter::successors(Some(layer), |&layer: &usize| self.layers[layer].parent);
        let mut cache = self.clone();
        for record in &mut cache.records {
            // A result names the layer on top, and a chain all of its layers.
            record.results.retain(|made| !ancestors(made.layers).any(is_lost));
            record.chains.retain(|made| !made.layers.iter().any(|&layer| is_lost(layer)));
        }
        cache.canonical()
    }

    /// The same cache, every record of it last used at this time, to the second, and whatever it said of that before
    /// forgotten: an export by BuildKit says nothing.
    #[must_use]
    pub fn used_at(&self, time: Timestamp) -> Self {
        let mut cache = self.clone();
        cache.records.iter_mut().for_each(|record| record.used = Some(time.into()));
        cache
    }

    /// The same cache, nothing in it made after this time: who writes a cache may claim what they like, and
    /// what claims to be of the future would never be pruned.
    #[must_use]
    pub fn made_by(&self, time: Timestamp) -> Self {
        let mut cache = self.clone();
        for record in &mut cache.records {
            let made = record.results.iter_mut().map(|made| &mut made.at);
            let made = made.chain(record.chains.iter_mut().map(|made| &mut made.at));
            made.for_each(|at| at.0 = at.0.min(time));
        }
        cache
    }

    /// The same cache, each record with those results only that were made last. Of several, BuildKit from 0.25 on takes
    /// the newest, and 0.13 the one that the config lists last.
    #[must_use]
    pub fn newest_results(mut self) -> Self {
        for record in &mut self.records {
            let made = record.results.iter().map(|made| made.at);
            if let Some(newest) = made.chain(record.chains.iter().map(|made| made.at)).max() {
                record.results.retain(|made| made.at == newest);
                record.chains.retain(|made| made.at == newest);
            }
        }
        self.canonical()
    }

    /// When its newest result was made. The build that exported the cache ran then, or later.
    #[must_use]
    pub fn newest(&self) -> Option<Timestamp> {
        self.records.iter().filter_map(Record::newest).max()
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
    #[must_use]
    pub fn blobs(&self) -> impl ExactSizeIterator<Item = &Descriptor> {
        self.blobs.iter().map(|blob| &*blob.descriptor)
    }

    /// Bytes of all blobs, each counted once.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.blobs().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }
}

impl Record {
    pub(super) fn order(&self, other: &Self) -> Ordering {
        self.digest.cmp(&other.digest).then(self.id.cmp(&other.id))
    }

    /// Names layers and records by their new places, which have the order of the old ones.
    fn move_up(&mut self, layers: &[usize], records: &[usize]) {
        self.links.iter_mut().for_each(|link| link.record = records[link.record]);
        self.results.iter_mut().for_each(|made| made.layers = layers[made.layers]);
        let chained = self.chains.iter_mut().flat_map(|made| &mut made.layers);
        chained.for_each(|layer| *layer = layers[*layer]);
    }

    /// All layers that its results name, without their parents.
    pub(super) fn layers(&self) -> impl Iterator<Item = &usize> {
        self.results.iter().map(|made| &made.layers).chain(self.chains.iter().flat_map(|made| &made.layers))
    }

    /// Whether it says where to find the step's outcome; otherwise it is only what others were made from.
    pub(super) fn has_result(&self) -> bool {
        !self.results.is_empty() || !self.chains.is_empty()
    }

    /// The layer on top of each result, and when it was made.
    pub(super) fn steps(&self) -> impl Iterator<Item = (usize, Time)> {
        let chains = self.chains.iter().filter_map(|made| Some((*made.layers.last()?, made.at)));
        self.results.iter().map(|made| (made.layers, made.at)).chain(chains)
    }

    fn newest(&self) -> Option<Timestamp> {
        let results = self.results.iter().map(|made| made.at);
        results.chain(self.chains.iter().map(|made| made.at)).filter_map(Time::known).max()
    }

    /// When a build last used it, as far as that is known: making it was a use.
    pub(super) fn last_used(&self) -> Option<Timestamp> {
        self.used.map(Timestamp::from).max(self.newest())
    }
}

impl Layer {
    /// Only for layers of one cache.
    fn order(&self, other: &Self) -> Ordering {
        self.blob.cmp(&other.blob).then(self.id.cmp(&other.id))
    }
}

impl Blob {
    fn order(&self, other: &Self) -> Ordering {
        self.digest.cmp(&other.digest)
    }
}

fn read_layers(layers: Vec<JsonLayer>, blobs: &[Blob]) -> Result<Vec<Layer>, InvalidCache> {
    let count = layers.len();
    let mut read = Vec::with_capacity(count);
    for (index, JsonLayer { blob, parent, extra }) in layers.into_iter().enumerate() {
        let blob = blobs
            .binary_search_by_key(&blob, |known| known.digest)
            .map_err(|_| InvalidCache::MissingBlob { layer: index, blob: blob.into() })?;
        let parent = match parent {
            NO_PARENT => None,
            parent => {
                Some(position(parent, count).ok_or(InvalidCache::NoSuchParent { layer: index, parent })?)
            }
        };
        read.push(Layer { id: Id([0; 32]), blob, parent, extra });
    }
    let order = needed_first(count, |layer, nth| read[layer].parent.filter(|_| nth == 0))
        .map_err(|layer| InvalidCache::LayerCycle { layer })?;
    for index in order {
        let parent = read[index].parent.map(|parent| read[parent].id);
        read[index].id = layer_id(blobs[read[index].blob].digest, parent);
    }
    Ok(read)
}

fn read_records(
    records: Vec<JsonRecord>,
    layers: usize,
    marks: &[Arc<Mark>],
) -> Result<Vec<Record>, InvalidCache> {
    let count = records.len();
    let mut read = Vec::with_capacity(count);
    for (index, record) in records.into_iter().enumerate() {
        read.push(read_record(record, index, count, layers, marks)?);
    }
    identify(&mut read).map_err(|record| InvalidCache::RecordCycle { record })?;
    Ok(read)
}

/// Sorts the links of records and gives each its identity; the error is a record on a cycle.
pub(super) fn identify(records: &mut [Record]) -> Result<(), usize> {
    let order = needed_first(records.len(), |record, nth| records[record].links.get(nth).map(|l| l.record))?;
    let mut ids = vec![Id([0; 32]); records.len()];
    let mut scratch = Vec::new();
    for index in order {
        let record = &mut records[index];
        let key = |link: &Link| ids[link.record];
        record.links.sort_unstable_by(|a, b| {
            (a.input, &a.selector).cmp(&(b.input, &b.selector)).then_with(|| key(a).cmp(&key(b)))
        });
        record.links.dedup_by(|a, b| (a.input, key(a)) == (b.input, key(b)) && a.selector == b.selector);
        ids[index] = record_id(record, &ids, &mut scratch);
        record.id = ids[index];
    }
    Ok(())
}

/// For each record whether it is a sink.
fn sinks(records: &[Record]) -> Result<Vec<bool>, InvalidCache> {
    let sink = Text::from(SINK);
    let sinks: Vec<bool> = records.iter().map(|record| record.digest == sink).collect();
    if sinks.contains(&true) {
        let is_leaf = leaves(records);
        let is_none = |&record: &usize| sinks[record] && (!is_leaf[record] || records[record].has_result());
        if let Some(record) = (0..records.len()).find(is_none) {
            return Err(InvalidCache::NoSink { record });
        }
    }
    Ok(sinks)
}

/// For each record whether no other was made from it.
fn leaves(records: &[Record]) -> Vec<bool> {
    let mut is_leaf = vec![true; records.len()];
    records.iter().flat_map(|record| &record.links).for_each(|link| is_leaf[link.record] = false);
    is_leaf
}

/// Reads a record but for its identity.
fn read_record(
    record: JsonRecord,
    index: usize,
    records: usize,
    layers: usize,
    marks: &[Arc<Mark>],
) -> Result<Record, InvalidCache> {
    if record.digest.with(|text| text.starts_with("random:")) {
        return Err(InvalidCache::RandomRecord { record: index });
    }
    let JsonRecord { results, chains, digest, inputs: JsonInputs { count, links }, used, probation, extra } =
        record;
    // Each list is read in place: there are many, and what is read is as large as what was.
    let mut inputs = 0;
    let link = |JsonLink { input, selector, record: link }| {
        if input > inputs {
            return Err(InvalidCache::EmptyInput { record: index, input: inputs });
        }
        inputs = input + 1;
        let record = position(link, records).ok_or(InvalidCache::NoSuchRecord { record: index, link })?;
        Ok(Link { input, selector, record })
    };
    let links = links.into_iter().map(link).collect::<Result<_, _>>()?;
    if count > inputs {
        return Err(InvalidCache::EmptyInput { record: index, input: inputs });
    }
    let layer = |layer| position(layer, layers).ok_or(InvalidCache::NoSuchLayer { record: index, layer });
    let mark = |mark: Option<i64>| match mark.map(|mark| (mark, position(mark, marks.len()))) {
        None => Ok(None),
        Some((_, Some(place))) => Ok(Some(Arc::clone(&marks[place]))),
        Some((mark, None)) => Err(InvalidCache::NoSuchMark { record: index, mark }),
    };
    let result = |JsonResult { layer: place, created_at, probation: own, extra }| -> Result<_, InvalidCache> {
        let probation = mark(own.or(probation))?;
        Ok(Made { layers: layer(place)?, at: created_at, probation, extra })
    };
    let chain = |JsonChain { layers, created_at, probation: own, extra }| -> Result<_, InvalidCache> {
        let layers = layers.into_iter().map(layer).collect::<Result<_, _>>()?;
        Ok(Made { layers, at: created_at, probation: mark(own.or(probation))?, extra })
    };
    let results = results.into_iter().map(result).collect::<Result<_, _>>()?;
    let chains = chains.into_iter().map(chain).collect::<Result<_, _>>()?;
    let probation = mark(probation)?;
    Ok(Record { id: Id([0; 32]), digest, links, results, chains, used, probation, extra })
}

fn position(index: i64, len: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&index| index < len)
}

/// Orders the nodes of a graph so that each comes after those it needs; the error is a node on a cycle.
///
/// The stack of this depth-first walk is a list, because a hostile graph may be as deep as it has nodes.
pub(super) fn needed_first(
    nodes: usize,
    nth_need: impl Fn(usize, usize) -> Option<usize>,
) -> Result<Vec<usize>, usize> {
    #[derive(Clone, Copy)]
    enum Visit {
        New,
        Open,
        Done,
    }
    let mut visits = vec![Visit::New; nodes];
    let mut order = Vec::with_capacity(nodes);
    let mut path = Vec::new();
    for root in 0..nodes {
        if let Visit::New = visits[root] {
            visits[root] = Visit::Open;
            path.push((root, 0));
        }
        while let Some((node, nth)) = path.last_mut() {
            let Some(need) = nth_need(*node, *nth) else {
                visits[*node] = Visit::Done;
                order.push(*node);
                path.pop();
                continue;
            };
            *nth += 1;
            match visits[need] {
                Visit::Done => {}
                Visit::Open => return Err(need),
                Visit::New => {
                    visits[need] = Visit::Open;
                    path.push((need, 0));
                }
            }
        }
    }
    Ok(order)
}

fn layer_id(blob: Sha, parent: Option<Id>) -> Id {
    let mut hash = Sha256::new();
    hash.update(blob.0);
    if let Some(Id(parent)) = parent {
        hash.update(parent);
    }
    Id(hash.finalize().into())
}

/// The identity of a record, whose links are sorted by those of what they link to.
fn record_id(record: &Record, ids: &[Id], bytes: &mut Vec<u8>) -> Id {
    // Every part says its length, or has only one, so that no two records make the same bytes.
    fn add_text(bytes: &mut Vec<u8>, text: &Text) {
        match text {
            Text::Sha(Sha(digest)) => {
                bytes.push(1);
                bytes.extend_from_slice(digest);
            }
            Text::Other(text) => {
                bytes.push(0);
                bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
        }
    }
    bytes.clear();
    add_text(bytes, &record.digest);
    for link in &record.links {
        bytes.extend_from_slice(&(link.input as u64).to_le_bytes());
        add_text(bytes, &link.selector);
        bytes.extend_from_slice(&ids[link.record].0);
    }
    Id(Sha256::digest(bytes).into())
}

/// Sorts what is to be kept and joins equals; answers the new place of each old one as well. The place of one that is
/// not kept is of no meaning.
fn sort_and_join<T: Join>(
    all: Vec<T>,
    keep: impl Fn(usize) -> bool,
    order: impl Fn(&T, &T) -> Ordering,
) -> (Vec<T>, Vec<usize>) {
    let is_sorted = all.windows(2).all(|pair| order(&pair[0], &pair[1]).is_lt());
    if is_sorted && (0..all.len()).all(&keep) {
        let places = (0..all.len()).collect();
        return (all, places);
    }
    let mut sorted: Vec<_> = (0..all.len()).filter(|&place| keep(place)).collect();
    // This sort finds what is in order already, which here is almost everything.
    sorted.sort_by(|&a, &b| order(&all[a], &all[b]));
    let mut places = vec![usize::MAX; all.len()];
    let mut all: Vec<_> = all.into_iter().map(Some).collect();
    let mut joined: Vec<T> = Vec::with_capacity(sorted.len());
    for place in sorted {
        let Some(value) = all[place].take() else { continue };
        match joined.last_mut() {
            Some(last) if order(last, &value).is_eq() => last.join(value),
            _ => joined.push(value),
        }
        places[place] = joined.len() - 1;
    }
    (joined, places)
}

/// For each value of two lists, both in order and each without equals, its place in their union.
fn union_places<T>(ours: &[T], theirs: &[T], order: impl Fn(&T, &T) -> Ordering) -> [Vec<usize>; 2] {
    let mut places = [Vec::with_capacity(ours.len()), Vec::with_capacity(theirs.len())];
    for place in 0.. {
        let [of_ours, of_theirs] = &mut places;
        let order = match (ours.get(of_ours.len()), theirs.get(of_theirs.len())) {
            (Some(ours), Some(theirs)) => order(ours, theirs),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => break,
        };
        if order.is_le() {
            of_ours.push(place);
        }
        if order.is_ge() {
            of_theirs.push(place);
        }
    }
    places
}

/// The union of two lists by their values' places in it.
fn union<T: Join>(
    ours: Vec<T>,
    theirs: &[T],
    [our_places, their_places]: [&[usize]; 2],
    moved: impl Fn(&T) -> T,
) -> Vec<T> {
    let most = our_places.last().max(their_places.last()).map_or(0, |last| last + 1);
    let mut union = Vec::with_capacity(most);
    let mut ours = ours.into_iter();
    for (value, &place) in theirs.iter().zip(their_places) {
        union.extend(ours.by_ref().take(place - union.len()));
        let is_in_both = our_places.get(our_places.len() - ours.len()) == Some(&place);
        match if is_in_both { ours.next() } else { None } {
            Some(mut both) => {
                both.join(moved(value));
                union.push(both);
            }
            None => union.push(moved(value)),
        }
    }
    union.extend(ours);
    union
}

/// For each of `these` its place among `those`, both in order.
pub(super) fn places_in<T>(
    these: &[T],
    those: &[T],
    order: impl Fn(&T, &T) -> Ordering,
) -> Vec<Option<usize>> {
    let mut next = 0;
    let place = |this| {
        while those.get(next).is_some_and(|that| order(that, this).is_lt()) {
            next += 1;
        }
        those.get(next).is_some_and(|that| order(that, this).is_eq()).then_some(next)
    };
    these.iter().map(place).collect()
}

fn sort_results<L: Ord>(results: &mut Vec<Made<L>>) {
    results.sort_by(|a, b| a.layers.cmp(&b.layers));
    results.dedup_by(|later, kept| {
        let is_same = later.layers == kept.layers;
        if is_same {
            kept.join_with(later);
        }
        is_same
    });
}

fn join_results<L: Ord>(ours: &mut Vec<Made<L>>, theirs: Vec<Made<L>>) {
    if *ours != theirs {
        ours.extend(theirs);
        sort_results(ours);
    }
}

fn has_result<L: Ord>(results: &[Made<L>], layers: &L) -> bool {
    results.binary_search_by(|made| made.layers.cmp(layers)).is_ok()
}

/// Values of which two make one, in a way that is commutative, associative and idempotent.
///
/// What belongs to the identity under which a value is kept is the same on both sides and left alone.
trait Join {
    fn join(&mut self, other: Self);
}

impl Join for Record {
    fn join(&mut self, other: Self) {
        join_results(&mut self.results, other.results);
        join_results(&mut self.chains, other.chains);
        self.used = self.used.max(other.used);
        mark::join(&mut self.probation, other.probation);
        join_extras(&mut self.extra, other.extra);
    }
}

impl Join for Layer {
    fn join(&mut self, other: Self) {
        join_extras(&mut self.extra, other.extra);
    }
}

impl Join for Blob {
    fn join(&mut self, other: Self) {
        let is_first =
            self.descriptor == other.descriptor || to_json(&*self.descriptor) <= to_json(&*other.descriptor);
        if !is_first {
            self.descriptor = other.descriptor;
        }
    }
}

impl<L> Made<L> {
    fn join_with(&mut self, other: &mut Self) {
        self.at = self.at.min(other.at);
        mark::join(&mut self.probation, other.probation.take());
        join_extras(&mut self.extra, std::mem::take(&mut other.extra));
    }
}

fn join_extras(ours: &mut Extra, theirs: Extra) {
    for (name, value) in theirs {
        join_extra(ours, name, value);
    }
}

fn join_extra(extra: &mut Extra, name: String, value: Value) {
    use std::collections::btree_map::Entry;
    match extra.entry(name) {
        Entry::Vacant(place) => _ = place.insert(value),
        Entry::Occupied(mut place) => keep_first(place.get_mut(), value),
    }
}

/// Keeps of two values the one whose JSON sorts first.
fn keep_first(ours: &mut Value, theirs: Value) {
    if *ours != theirs && to_json(&theirs) < to_json(ours) {
        *ours = theirs;
    }
}
