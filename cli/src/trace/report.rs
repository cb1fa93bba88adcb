//! What came of a commit, as people and programs read it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use stoker_core::names::{CacheRepository, Digest, ProjectName};

use crate::why;

/// What came of a commit.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trace {
    pub(super) commit: String,
    pub(super) at: Timestamp,
    /// All that is known, by time.
    pub(super) steps: Vec<Step>,
    pub(super) builds: Vec<Reported>,
    /// Caches that are there.
    pub(super) caches: Vec<Cache>,
    /// Why steps of its builds ran, by the builds' ids.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) misses: BTreeMap<String, why::Reported>,
    /// Sources that tell nothing, and why.
    pub(super) missing: Vec<Silent>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Step {
    pub(super) at: Timestamp,
    /// `codebuild`, `ecr`, or the function whose log tells it.
    pub(super) source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) project: Option<String>,
    pub(super) what: String,
}

/// A build that has to do with the commit.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reported {
    pub(super) id: String,
    pub(super) project: ProjectName,
    pub(super) line: String,
    /// `of` the commit, `brings` it by a merge, or `reads` its cache.
    pub(super) role: &'static str,
    pub(super) reason: String,
    pub(super) status: &'static str,
    pub(super) started_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ended_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pushed_at: Option<Timestamp>,
    /// The caches that it was given.
    pub(super) given: Vec<Source>,
    /// How many of a hundred of its steps came out of the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reused_percent: Option<u8>,
}

/// A cache that a build was given.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Source {
    pub(super) digest: Digest,
    /// The line that it is of; absent where the cache is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<String>,
}

/// A cache of the commit.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cache {
    pub(super) repository: CacheRepository,
    pub(super) digest: Digest,
    pub(super) tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<String>,
    /// `built`: the commit's build is the newest in it; `merged`: it was the last that a merge brought.
    pub(super) holds: &'static str,
    pub(super) pushed_at: Timestamp,
}

#[derive(Debug, Serialize)]
pub(super) struct Silent {
    pub(super) source: &'static str,
    pub(super) why: String,
}
