//! The config of a cache as it stands in JSON: lists whose entries name each other by index.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Extra, ambiguous, null_is_empty, sorted_extra};
use crate::names::Digest;

/// How `parent` says that there is none.
pub(super) const NO_PARENT: i64 = -1;

/// Go's zero time, which stands for "unknown".
const ZERO_TIME: Timestamp = Timestamp::constant(-62_135_596_800, 0);
/// The start of year 0; Go reads no earlier time.
const EARLIEST: Timestamp = Timestamp::constant(-62_167_219_200, 0);

/// The whole config.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub(super) layers: Vec<Layer>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub(super) records: Vec<Record>,
    #[serde(flatten, deserialize_with = "sorted_extra")]
    pub(super) extra: Extra,
}

/// A blob on top of a parent layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) blob: Digest,
    /// An index into `layers`, or [`NO_PARENT`]. Go leaves zero out, so an absent parent is the first layer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) parent: i64,
    #[serde(flatten, deserialize_with = "sorted_extra")]
    pub(super) extra: Extra,
}

/// A cache key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(
        default,
        rename = "layers",
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(super) results: Vec<LayerResult>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub(super) chains: Vec<ChainResult>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) digest: String,
    /// For each input the alternatives, any of which will do. Go writes an empty list as `null`.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub(super) inputs: Vec<Option<Vec<Input>>>,
    #[serde(flatten, deserialize_with = "sorted_extra")]
    pub(super) extra: Extra,
}

/// A layer, with its parents, that a record resulted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerResult {
    #[serde(default)]
    pub(super) layer: i64,
    #[serde(default = "zero_time", deserialize_with = "time")]
    pub(super) created_at: Timestamp,
    #[serde(flatten, deserialize_with = "sorted_extra")]
    pub(super) extra: Extra,
}

/// Layers, without their parents, that a record resulted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ChainResult {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) layers: Vec<i64>,
    #[serde(default = "zero_time", deserialize_with = "time")]
    pub(super) created_at: Timestamp,
    #[serde(flatten, deserialize_with = "sorted_extra")]
    pub(super) extra: Extra,
}

/// One alternative of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Input {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) selector: String,
    #[serde(default)]
    pub(super) link: i64,
    /// Not kept: nobody can say what an unknown field of a link would mean for its record's identity.
    #[serde(flatten)]
    pub(super) extra: Extra,
}

impl Config {
    /// See [`ambiguous`].
    pub(super) fn ambiguous_field(&self) -> Option<&str> {
        let of_layers = || self.layers.iter().find_map(|l| ambiguous(&l.extra, &["blob", "parent"]));
        let of_records = || self.records.iter().find_map(Record::ambiguous_field);
        ambiguous(&self.extra, &["layers", "records"]).or_else(of_layers).or_else(of_records)
    }
}

impl Record {
    fn ambiguous_field(&self) -> Option<&str> {
        const RESULT: [&str; 2] = ["layer", "createdAt"];
        const CHAIN: [&str; 2] = ["layers", "createdAt"];
        const INPUT: [&str; 2] = ["selector", "link"];
        ambiguous(&self.extra, &["layers", "chains", "digest", "inputs"])
            .or_else(|| self.results.iter().find_map(|r| ambiguous(&r.extra, &RESULT)))
            .or_else(|| self.chains.iter().find_map(|c| ambiguous(&c.extra, &CHAIN)))
            .or_else(|| self.inputs.iter().flatten().flatten().find_map(|i| ambiguous(&i.extra, &INPUT)))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(index: &i64) -> bool {
    *index == 0
}

fn zero_time() -> Timestamp {
    ZERO_TIME
}

fn time<'de, D: Deserializer<'de>>(input: D) -> Result<Timestamp, D::Error> {
    let time = Option::deserialize(input)?.unwrap_or(ZERO_TIME);
    if time < EARLIEST { Err(serde::de::Error::custom("time before year 0")) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn created_at(time: &str) -> Result<String, serde_json::Error> {
        let result: LayerResult = serde_json::from_value(json!({"layer": 0, "createdAt": time}))?;
        Ok(result.created_at.to_string())
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        for (written, read) in [
            ("2026-11-21T09:00:49.377547034Z", "2026-11-21T09:00:49.377547034Z"),
            ("2026-11-21T09:00:49.399069Z", "2026-11-21T09:00:49.399069Z"),
            ("2026-11-21T10:30:49.000000001+01:30", "2026-11-21T09:00:49.000000001Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
        ] {
            assert_eq!(created_at(written).unwrap(), read);
        }
        for time in ["-000001-12-31T23:59:59Z", "0000-01-01T00:00:00+00:01", "yesterday", ""] {
            assert!(created_at(time).is_err(), "{time}");
        }
    }

    #[test]
    fn absent_fields_mean_what_go_means() {
        let config: Config = serde_json::from_value(json!({
            "layers": [{"blob": Digest::of(b"")}],
            "records": [{"inputs": [null, [{}]], "chains": null, "layers": [{}]}],
        }))
        .unwrap();
        assert_eq!(config.layers[0].parent, 0);
        let record = &config.records[0];
        assert_eq!(record.inputs[0], None);
        assert_eq!(record.inputs[1].as_ref().unwrap()[0].link, 0);
        assert_eq!((record.results[0].layer, record.results[0].created_at), (0, ZERO_TIME));
    }

    #[test]
    fn unknown_fields_are_kept_and_doubtful_ones_found() {
        let blob = Digest::of(b"");
        let json = json!({
            "layers": [{"blob": blob, "parent": -1, "x": 1}],
            "records": [{"digest": "d", "layers": [{"layer": 0, "createdAt": "2026-11-21T09:00:49Z", "y": {"b": [2]}}],
                         "z": null}],
            "v": "w",
        });
        let config: Config = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), json);
        assert_eq!(config.ambiguous_field(), None);
        for json in [
            json!({"Records": []}),
            json!({"layers": [{"blob": blob, "PARENT": 1}]}),
            json!({"records": [{"Digest": "x"}]}),
            json!({"records": [{"layers": [{"createdat": "2026-11-21T09:00:49Z"}]}]}),
            json!({"records": [{"chains": [{"Layers": []}]}]}),
            json!({"records": [{"inputs": [[{"lin\u{212a}": 3}]]}]}),
        ] {
            let config: Config = serde_json::from_value(json.clone()).unwrap();
            assert!(config.ambiguous_field().is_some(), "{json}");
        }
    }
}
