//! The config of a cache as it is written: the same bytes for the same cache.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::config::NO_PARENT;
use super::graph::{Cache, Layer, Link, Made, Record};
use super::json::{Extra, Seconds};
use super::mark::Mark;

/// The canonical config of a cache: its lists in the order in which it keeps them.
pub(super) struct CanonicalConfig<'a>(pub(super) &'a Cache);

impl Serialize for CanonicalConfig<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Self(cache) = self;
        let mut map = out.serialize_map(None)?;
        if !cache.layers.is_empty() {
            map.serialize_entry("layers", &Each(&cache.layers, |layer| CanonicalLayer(cache, layer)))?;
        }
        if !cache.records.is_empty() {
            // The latest: pruning keeps what was used last. Where one record has none, it would be taken for
            // that one's.
            let uses: Option<Vec<Seconds>> = cache.records.iter().map(|record| record.used).collect();
            let common = uses.and_then(|uses| uses.into_iter().max());
            let marks: BTreeSet<&Mark> = cache.records.iter().flat_map(Record::marks).collect();
            let marks: Vec<&Mark> = marks.into_iter().collect();
            let sink = cache.sink();
            let record = |record| CanonicalRecord { record, common, marks: &marks };
            let records: Vec<_> = cache.records.iter().chain(&sink).map(record).collect();
            map.serialize_entry("records", &records)?;
            if let Some(used) = &common {
                map.serialize_entry("used", used)?;
            }
            if !marks.is_empty() {
                map.serialize_entry("probation", &Each(&marks, |&mark| CanonicalMark(mark)))?;
            }
        }
        write_extra(&mut map, &cache.extra)?;
        map.end()
    }
}

struct CanonicalLayer<'a>(&'a Cache, &'a Layer);

impl Serialize for CanonicalLayer<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Self(cache, layer) = self;
        let mut map = out.serialize_map(None)?;
        map.serialize_entry("blob", &cache.blobs[layer.blob].digest)?;
        match layer.parent {
            None => map.serialize_entry("parent", &NO_PARENT)?,
            Some(0) => {}
            Some(parent) => map.serialize_entry("parent", &parent)?,
        }
        write_extra(&mut map, &layer.extra)?;
        map.end()
    }
}

/// A merge that something is on probation for.
struct CanonicalMark<'a>(&'a Mark);

impl Serialize for CanonicalMark<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(None)?;
        map.serialize_entry("commit", self.0.commit())?;
        map.serialize_entry("at", &Seconds::from(self.0.at()))?;
        map.end()
    }
}

/// A record, the use that need not be said, and the marks in the order in which they are written.
struct CanonicalRecord<'a> {
    record: &'a Record,
    common: Option<Seconds>,
    marks: &'a [&'a Mark],
}

impl CanonicalRecord<'_> {
    fn index(&self, probation: Option<&Arc<Mark>>) -> Option<usize> {
        self.marks.binary_search(&&**probation?).ok()
    }

    /// What is to be said of a result: that of the record holds for it, too.
    fn index_of<L>(&self, made: &Made<L>) -> Option<usize> {
        self.index(made.probation.as_ref().filter(|_| made.probation != self.record.probation))
    }
}

impl Serialize for CanonicalRecord<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Self { record, common, .. } = self;
        let mut map = out.serialize_map(None)?;
        if !record.results.is_empty() {
            let result = |made| CanonicalResult("layer", made, self.index_of(made));
            map.serialize_entry("layers", &Each(&record.results, result))?;
        }
        if !record.chains.is_empty() {
            let chain = |made| CanonicalResult("layers", made, self.index_of(made));
            map.serialize_entry("chains", &Each(&record.chains, chain))?;
        }
        if !record.digest.is_empty() {
            map.serialize_entry("digest", &record.digest)?;
        }
        if !record.links.is_empty() {
            map.serialize_entry("inputs", &Inputs(&record.links))?;
        }
        if let Some(used) = record.used.filter(|_| record.used != *common) {
            map.serialize_entry("used", &used)?;
        }
        if let Some(mark) = self.index(record.probation.as_ref()) {
            map.serialize_entry("probation", &mark)?;
        }
        write_extra(&mut map, &record.extra)?;
        map.end()
    }
}

/// A result, its layers under the given name, and its mark where it is not its record's.
struct CanonicalResult<'a, L>(&'static str, &'a Made<L>, Option<usize>);

impl<L: Serialize> Serialize for CanonicalResult<'_, L> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Self(name, made, mark) = self;
        let mut map = out.serialize_map(None)?;
        map.serialize_entry(name, &made.layers)?;
        map.serialize_entry("createdAt", &made.at)?;
        if let Some(mark) = mark {
            map.serialize_entry("probation", mark)?;
        }
        write_extra(&mut map, &made.extra)?;
        map.end()
    }
}

struct Inputs<'a>(&'a [Link]);

impl Serialize for Inputs<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let inputs = self.0.chunk_by(|a, b| a.input == b.input);
        out.collect_seq(inputs.map(|links| Each(links, CanonicalLink)))
    }
}

struct CanonicalLink<'a>(&'a Link);

impl Serialize for CanonicalLink<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(None)?;
        if !self.0.selector.is_empty() {
            map.serialize_entry("selector", &self.0.selector)?;
        }
        map.serialize_entry("link", &self.0.record)?;
        map.end()
    }
}

/// A list of what a function makes of each value.
struct Each<'a, T, F>(&'a [T], F);

impl<'a, T, F: Fn(&'a T) -> U, U: Serialize> Serialize for Each<'a, T, F> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(self.0.iter().map(&self.1))
    }
}

fn write_extra<M: SerializeMap>(map: &mut M, extra: &Extra) -> Result<(), M::Error> {
    extra.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))
}
