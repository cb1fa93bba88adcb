//! Writing a cache, and how large it would be.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::canonical::CanonicalConfig;
use super::graph::{Blob, Cache};
use super::json::{Extra, to_json};
use super::manifest::{CONFIG_MEDIA_TYPE, Descriptor, MANIFEST_MEDIA_TYPE};
use crate::names::Digest;

/// A cache as a registry stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serialised {
    /// The config, a blob.
    pub config: Vec<u8>,
    /// The config's digest.
    pub config_digest: Digest,
    /// The manifest, of media type [`MANIFEST_MEDIA_TYPE`].
    pub manifest: Vec<u8>,
    /// The manifest's digest: that of the cache, if the annotations are the same.
    pub manifest_digest: Digest,
}

impl Serialised {
    /// The size to hold against [`super::SAFE_SIZE`]: that of the larger of the two.
    #[must_use]
    pub fn size(&self) -> usize {
        self.config.len().max(self.manifest.len())
    }
}

/// How many bytes a cache has as a registry stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Bytes of the config.
    pub config: usize,
    /// Bytes of the manifest without annotations.
    pub manifest: usize,
    /// Bytes of all blobs, each counted once.
    pub blobs: u64,
}

impl Cache {
    /// The canonical bytes of the cache: the same whatever it was read or merged from, and in whatever order.
    #[must_use]
    pub fn serialise(&self, annotations: BTreeMap<String, String>) -> Serialised {
        let config = to_json(&CanonicalConfig(self));
        let config_digest = Digest::of(&config);
        let manifest =
            to_json(&CanonicalManifest::new(self, config_digest.clone(), config.len(), annotations));
        let manifest_digest = Digest::of(&manifest);
        Serialised { config, config_digest, manifest, manifest_digest }
    }

    /// How many bytes [`Cache::serialise`] would write without annotations, and how many the blobs have.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let config = json_size(&CanonicalConfig(self));
        let any_digest = Digest::of(b"");
        let manifest = json_size(&CanonicalManifest::new(self, any_digest, config, BTreeMap::new()));
        Sizes { config, manifest, blobs: self.blob_bytes() }
    }
}

/// A [`super::Manifest`] that borrows its layers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CanonicalManifest<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    // By digest, which is the order in which the config's layers first use them.
    #[serde(serialize_with = "descriptors")]
    layers: &'a [Blob],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl<'a> CanonicalManifest<'a> {
    fn new(
        cache: &'a Cache,
        config_digest: Digest,
        config_size: usize,
        annotations: BTreeMap<String, String>,
    ) -> Self {
        let config = Descriptor {
            media_type: CONFIG_MEDIA_TYPE.to_owned(),
            digest: config_digest,
            size: config_size as u64,
            annotations: BTreeMap::new(),
            extra: Extra::new(),
        };
        let media_type = MANIFEST_MEDIA_TYPE;
        Self { schema_version: 2, media_type, config, layers: &cache.blobs, annotations }
    }
}

fn descriptors<S: serde::Serializer>(blobs: &[Blob], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(blobs.iter().map(|blob| &*blob.descriptor))
}

/// How many bytes [`to_json`] would write.
fn json_size(value: &impl Serialize) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // As with `to_json`, nothing here can fail.
    let _ = serde_json::to_writer(&mut counter, value);
    counter.0
}
