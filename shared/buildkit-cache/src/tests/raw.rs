//! The config of a cache as serde's derives read and write it: to generate some, and to hold the real reader against.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::Extra;
use crate::names::Digest;

pub(super) const NO_PARENT: i64 = -1;

/// The whole config.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) layers: Vec<Layer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) records: Vec<Record>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) used: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) probation: Vec<Mark>,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

/// A merge that something is on probation for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) commit: String,
    pub(super) at: i64,
}

/// A blob on top of a parent layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) blob: Digest,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) parent: i64,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

/// A cache key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(default, rename = "layers", skip_serializing_if = "Vec::is_empty")]
    pub(super) results: Vec<LayerResult>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) chains: Vec<ChainResult>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) digest: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) inputs: Vec<Vec<Input>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) used: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) probation: Option<usize>,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

/// A layer, with its parents, that a record resulted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerResult {
    #[serde(default)]
    pub(super) layer: i64,
    #[serde(default)]
    pub(super) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) probation: Option<usize>,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

/// Layers, without their parents, that a record resulted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ChainResult {
    #[serde(default)]
    pub(super) layers: Vec<i64>,
    #[serde(default)]
    pub(super) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) probation: Option<usize>,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

/// One alternative of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Input {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) selector: String,
    #[serde(default)]
    pub(super) link: i64,
    #[serde(flatten)]
    pub(super) extra: Extra,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(index: &i64) -> bool {
    *index == 0
}
