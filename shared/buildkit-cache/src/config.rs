//! The config of a cache as it stands in JSON: lists whose entries name each other by index.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::Extra;
use super::graph::{Cache, Layer, Link, Made, Record};
use super::json::{Seconds, Sha, Text, Time, read_object, required};
use super::probation::Mark;
use crate::names::Commit;

/// How `parent` says that there is none.
pub(super) const NO_PARENT: i64 = -1;

/// The whole config.
pub(super) struct JsonConfig {
    pub(super) layers: Vec<JsonLayer>,
    pub(super) records: Vec<JsonRecord>,
    /// When those records were used that do not say it themselves. Most are used together, and a line is short of bytes.
    pub(super) used: Option<Seconds>,
    /// Stoker's own field: the merges that something is on probation for.
    pub(super) probation: Vec<JsonMark>,
    pub(super) extra: Extra,
}

/// A blob on top of a parent layer.
pub(super) struct JsonLayer {
    pub(super) blob: Sha,
    /// An index into `layers`, or [`NO_PARENT`]. Go leaves zero out, so an absent parent is the first layer.
    pub(super) parent: i64,
    pub(super) extra: Extra,
}

/// A cache key.
pub(super) struct JsonRecord {
    pub(super) results: Vec<JsonResult>,
    pub(super) chains: Vec<JsonChain>,
    pub(super) digest: Text,
    pub(super) inputs: JsonInputs,
    /// Stoker's own field, which BuildKit does not read.
    pub(super) used: Option<Seconds>,
    /// Another: an index into `probation`.
    pub(super) probation: Option<i64>,
    pub(super) extra: Extra,
}

/// A merge that something is on probation for.
pub(super) struct JsonMark {
    pub(super) commit: Commit,
    pub(super) at: Seconds,
    #[expect(dead_code, reason = "read to be checked")]
    extra: Extra,
}

/// A layer, with its parents, that a record resulted in.
pub(super) struct JsonResult {
    pub(super) layer: i64,
    pub(super) created_at: Time,
    /// Where it is not its record's.
    pub(super) probation: Option<i64>,
    pub(super) extra: Extra,
}

/// Layers, without their parents, that a record resulted in.
pub(super) struct JsonChain {
    pub(super) layers: Vec<i64>,
    pub(super) created_at: Time,
    /// Where it is not its record's.
    pub(super) probation: Option<i64>,
    pub(super) extra: Extra,
}

/// For each input of a record the alternatives, any of which will do: a list of lists, read into one.
#[derive(Default)]
pub(super) struct JsonInputs {
    /// How many inputs there are.
    pub(super) count: usize,
    pub(super) links: Vec<JsonLink>,
}

/// One alternative of an input.
pub(super) struct JsonLink {
    /// The input that it is for.
    pub(super) input: usize,
    pub(super) selector: Text,
    pub(super) record: i64,
}

read_object!(JsonConfig, {
    "layers" => layers or Vec::new(),
    "records" => records or Vec::new(),
    "used" => used or None,
    "probation" => probation or Vec::new(),
});
read_object!(JsonMark, { "commit" => commit or required!("commit"), "at" => at or required!("at") });
read_object!(JsonLayer, { "blob" => blob or required!("blob"), "parent" => parent or 0 });
read_object!(JsonRecord, {
    "layers" => results or Vec::new(),
    "chains" => chains or Vec::new(),
    "digest" => digest or Text::default(),
    "inputs" => inputs or JsonInputs::default(),
    "used" => used or None,
    "probation" => probation or None,
});
read_object!(JsonResult, {
    "layer" => layer or 0,
    "createdAt" => created_at or Time::default(),
    "probation" => probation or None,
});
read_object!(JsonChain, {
    "layers" => layers or Vec::new(),
    "createdAt" => created_at or Time::default(),
    "probation" => probation or None,
});

/// An alternative without its place. Nobody can say what an unknown field would mean for its record's identity, so
/// none is kept.
struct Alternative {
    selector: Text,
    record: i64,
    #[expect(dead_code, reason = "read to be checked")]
    extra: Extra,
}

read_object!(Alternative, { "selector" => selector or Text::default(), "link" => record or 0 });

impl<'de> serde::Deserialize<'de> for JsonInputs {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Inputs;
        impl<'de> Visitor<'de> for Inputs {
            type Value = JsonInputs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of inputs")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<JsonInputs, A::Error> {
                let mut inputs = JsonInputs::default();
                while seq.next_element_seed(OneInput(&mut inputs))?.is_some() {
                    inputs.count += 1;
                }
                Ok(inputs)
            }
        }
        input.deserialize_seq(Inputs)
    }
}

/// Reads the alternatives of the next input.
struct OneInput<'a>(&'a mut JsonInputs);

impl<'de> DeserializeSeed<'de> for OneInput<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for OneInput<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of alternatives")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(Alternative { selector, record, .. }) = seq.next_element()? {
            self.0.links.push(JsonLink { input: self.0.count, selector, record });
        }
        Ok(())
    }
}

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
            // The latest: pruning keeps what was used last. Where one record has none, it would be taken for that one's.
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
