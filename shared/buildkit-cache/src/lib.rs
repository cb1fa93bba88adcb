//! The algebra of build caches: reading what BuildKit exports, joining caches, and writing them back.
//!
//! A registry cache is one OCI image manifest. Its `layers` are blobs; its `config` is a graph of *layers* (a blob on
//! top of a parent layer) and *records* (a cache key, the keys it was made from, and the layers it resulted in).
//! [`classify`] tells such a manifest from others, [`Cache::parse`] checks the graph, [`Cache::merge`] is the union of
//! two graphs, and [`Cache::serialise`] writes the one canonical form of a graph, so that equal caches have equal
//! digests. No blob has to be read for any of it. All input is taken to be hostile.

mod admit;
mod config;
mod diff;
mod graph;
mod hit_rate;
mod json;
mod limits;
mod lookup;
mod manifest;
mod names;
mod probation;
mod prune;
mod steps;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;

pub use diff::{Diff, Side};
pub use graph::{Cache, InvalidCache};
pub use hit_rate::CacheHitRate;
pub use limits::TooMany;
pub use lookup::{Alternative, Lookup};
pub use manifest::{Descriptor, Kind, MANIFEST_MEDIA_TYPE, Manifest, classify, classify_within, importable};
pub use names::{Commit, Digest, InvalidName};
pub use probation::Mark;
pub use prune::{Cause, Dropped, Limits, Pruned};
pub use steps::Step;
pub use write::{Serialised, Sizes};

/// The media type of a cache's config.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// BuildKit imports no manifest and no config of more bytes than this; it then builds cold, with a line in its log.
pub const IMPORT_LIMIT: usize = 1 << 20;

/// The size in bytes to keep manifest and config under, well before [`IMPORT_LIMIT`].
pub const SAFE_SIZE: usize = 900 * 1024;

/// JSON fields that Stoker does not know and hands on.
pub type Extra = BTreeMap<String, serde_json::Value>;

/// Writing these types cannot fail: the keys of their maps are strings, and their writer is memory.
#[expect(clippy::expect_used, reason = "a default would be stored as if it were the cache")]
pub(crate) fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and times always make JSON")
}

/// Reads JSON that is checked once to be text, and not string by string.
pub(crate) fn from_json<'a, T: serde::Deserialize<'a>>(json: &'a [u8]) -> serde_json::Result<T> {
    // What is no text is read for its error.
    str::from_utf8(json).map_or_else(|_| serde_json::from_slice(json), serde_json::from_str)
}

/// Text from outside, fit for a log line.
fn clip(text: &str) -> String {
    text.chars().take(120).flat_map(char::escape_debug).collect()
}
