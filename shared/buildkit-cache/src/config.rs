//! The config of a cache as it is read from JSON: lists whose entries name each other by index.

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::json::{Extra, Seconds, Sha, Text, Time, read_object, required};
use super::limits::{self, BYTES_A_RECORD, TooMany};
use crate::names::Commit;

/// How `parent` says that there is none.
pub(super) const NO_PARENT: i64 = -1;

/// The whole config.
pub(super) struct JsonConfig {
    pub(super) layers: Vec<JsonLayer>,
    pub(super) records: Vec<JsonRecord>,
    /// When those records were used that do not say it themselves. Most are used together, and a line is
    /// short of bytes.
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

/// Checks a config that has been read.
pub(super) fn check(config: &JsonConfig, limit: usize) -> Result<(), TooMany> {
    limits::at_most(limit / BYTES_A_RECORD, config.records.len(), "records")?;
    let of_layers = config.layers.iter().map(|layer| &layer.extra);
    let of_records = config.records.iter().flat_map(|record| {
        let results = record.results.iter().map(|result| &result.extra);
        let chains = record.chains.iter().map(|chain| &chain.extra);
        results.chain(chains).chain([&record.extra])
    });
    limits::check_unknown(of_layers.chain(of_records).chain([&config.extra]), limit)
}
