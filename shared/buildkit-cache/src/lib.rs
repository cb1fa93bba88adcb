//! The algebra of build caches: reading what BuildKit exports, joining caches, and writing them back.
//!
//! A registry cache is one OCI image manifest. Its `layers` are blobs; its `config` is a graph of *layers* (a blob on
//! top of a parent layer) and *records* (a cache key, the keys it was made from, and the layers it resulted in).
//! [`classify`] tells such a manifest from others, [`Cache::parse`] checks the graph, [`Cache::merge`] is the union of
//! two graphs, and [`Cache::serialise`] writes the one canonical form of a graph, so that equal caches have equal
//! digests. No blob has to be read for any of it. All input is taken to be hostile.

mod admit;
mod canonical;
mod config;
mod diff;
mod graph;
mod hit_rate;
mod json;
mod limits;
mod lookup;
mod manifest;
mod mark;
mod names;
mod probation;
mod prune;
mod steps;
#[cfg(test)]
mod tests;
mod write;

pub use diff::{Diff, Side};
pub use graph::{Cache, InvalidCache};
pub use hit_rate::CacheHitRate;
pub use json::Extra;
pub use limits::{IMPORT_LIMIT, SAFE_SIZE, TooMany};
pub use lookup::{Alternative, Lookup};
pub use manifest::{
    CONFIG_MEDIA_TYPE, Descriptor, Kind, MANIFEST_MEDIA_TYPE, Manifest, classify, classify_within, importable,
};
pub use mark::Mark;
pub use names::{Commit, Digest, InvalidName};
pub use prune::{Cause, Dropped, Limits, Pruned};
pub use steps::Step;
pub use write::{Serialised, Sizes};
