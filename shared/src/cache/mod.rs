//! The algebra of build caches: reading what BuildKit exports, joining caches, and writing them back.
//!
//! A registry cache is one OCI image manifest. Its `layers` are blobs; its `config` is a graph of *layers* (a blob on
//! top of a parent layer) and *records* (a cache key, the keys it was made from, and the layers it resulted in).
//! [`classify`] tells such a manifest from others, [`Cache::parse`] checks the graph, [`Cache::merge`] is the union of
//! two graphs, and [`Cache::serialise`] writes the one canonical form of a graph, so that equal caches have equal
//! digests. No blob has to be read for any of it. All input is taken to be hostile.

mod config;
mod graph;
mod manifest;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use graph::{Cache, InvalidCache, Serialised, Warmth};
pub use manifest::{Descriptor, Kind, MANIFEST_MEDIA_TYPE, Manifest, classify};

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
fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and times always make JSON")
}

/// Reads unknown fields into one order: the maps inside them may remember the order in which they were written.
fn sorted_extra<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Extra, D::Error> {
    let mut extra: Extra = serde::Deserialize::deserialize(input)?;
    extra.values_mut().for_each(serde_json::Value::sort_all_objects);
    Ok(extra)
}

/// Reads `null` as an empty list, as Go does.
fn null_is_empty<'de, D, T>(input: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    let value: Option<T> = serde::Deserialize::deserialize(input)?;
    Ok(value.unwrap_or_default())
}

/// The first unknown field that BuildKit would read as one of the known: Go matches names without regard to case,
/// and what Stoker checks must be what BuildKit reads.
fn ambiguous<'a>(extra: &'a Extra, known: &[&str]) -> Option<&'a str> {
    // Both ways, because Go folds by Unicode: a Kelvin sign has a lower case, a long s an upper.
    let fold = |name: &str| name.to_lowercase().to_uppercase();
    let known: Vec<_> =
        if extra.is_empty() { Vec::new() } else { known.iter().map(|name| fold(name)).collect() };
    extra.keys().map(String::as_str).find(|name| known.contains(&fold(name)))
}
