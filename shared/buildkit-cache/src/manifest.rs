//! The manifest around a cache.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::json::{Extra, clip, from_json, read_object, required, to_json};
use super::limits::{self, BYTES_A_LAYER, IMPORT_LIMIT, TooMany};
use crate::names::Digest;

/// The media type of a cache's config.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// The media type of the manifests that Stoker writes.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// What a manifest says about a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The blob's media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, compressed.
    pub size: u64,
    /// BuildKit notes here when it made the blob, and the digest of what it unpacks to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The manifest of a cache, in the form of an image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST_MEDIA_TYPE`], Docker's equivalent, or that of an index; may be empty in what others wrote.
    pub media_type: String,
    /// Describes the config.
    pub config: Descriptor,
    /// Describes the blobs. Shared with the caches that are parsed from the manifest.
    #[serde(serialize_with = "descriptors")]
    pub layers: Vec<Arc<Descriptor>>,
    /// Notes on the whole manifest; Stoker keeps provenance here.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Manifest {
    /// The same cache with annotations of Stoker's own, as a registry stores it.
    #[must_use]
    pub fn annotated(&self, annotations: BTreeMap<String, String>) -> Vec<u8> {
        to_json(&Self {
            schema_version: 2,
            media_type: MANIFEST_MEDIA_TYPE.to_owned(),
            config: self.config.clone(),
            layers: self.layers.clone(),
            annotations,
            extra: Extra::new(),
        })
    }
}

read_object!(Descriptor, {
    "mediaType" => media_type or required!("mediaType"),
    "digest" => digest or required!("digest"),
    "size" => size or required!("size"),
    "annotations" => annotations or BTreeMap::new(),
});

/// What the bytes of a manifest are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A cache. One in the form of an index, which BuildKit reads as well, is told by its media type only.
    Cache(Manifest),
    /// Anything else.
    Other {
        /// What it is instead, for people.
        why: String,
    },
}

/// Tells whether these bytes are the manifest of a cache.
#[must_use]
pub fn classify(manifest_json: &[u8]) -> Kind {
    classify_within(manifest_json, IMPORT_LIMIT)
}

/// [`classify`] for a manifest of at most `limit` bytes: a cache that has grown too large for BuildKit must be readable
/// to be pruned.
#[must_use]
pub fn classify_within(manifest_json: &[u8], limit: usize) -> Kind {
    match read(manifest_json, limit) {
        Ok(manifest) => Kind::Cache(manifest),
        Err(why) => Kind::Other { why },
    }
}

/// A manifest or an index. What is in them is read at once only as far as every kind of either has it.
struct Document {
    schema_version: u32,
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    annotations: BTreeMap<String, String>,
    extra: Extra,
}

read_object!(Document, {
    "schemaVersion" => schema_version or 0,
    "mediaType" => media_type or String::new(),
    "config" => config or None,
    "layers" => layers or None,
    "manifests" => manifests or None,
    "annotations" => annotations or BTreeMap::new(),
});

fn read(json: &[u8], limit: usize) -> Result<Manifest, String> {
    if json.len() > limit {
        return Err(format!("{} bytes: BuildKit imports at most {limit}", json.len()));
    }
    limits::check_json(json, limit).map_err(|many| many.to_string())?;
    let document: Document = from_json(json).map_err(|e| unreadable(&e))?;
    let Document { schema_version, media_type, config, layers, manifests, annotations, extra } = document;
    if !["", MANIFEST_MEDIA_TYPE, DOCKER_MANIFEST].into_iter().chain(INDEXES).any(|known| known == media_type)
    {
        return Err(format!("media type `{}` is not that of an image manifest", clip(&media_type)));
    }
    // Readers go by the media type or by the fields, so both have to say the same.
    let is_index = INDEXES.contains(&media_type.as_str()) || (media_type.is_empty() && manifests.is_some());
    let (config, layers) = match (is_index, config, layers, manifests) {
        (true, None, None, manifests) => {
            let (mut configs, layers): (Vec<_>, Vec<_>) = manifests
                .unwrap_or_default()
                .into_iter()
                .partition(|one| one.media_type == CONFIG_MEDIA_TYPE);
            // As BuildKit, which remembers the last.
            (configs.pop().ok_or("an index of images, not a cache: none of it is a cache's config")?, layers)
        }
        (false, Some(config), layers, None) => (config, layers.unwrap_or_default()),
        (false, None, _, None) => return Err("not a manifest: no config".to_owned()),
        _ => return Err("both an index and an image manifest".to_owned()),
    };
    if config.media_type != CONFIG_MEDIA_TYPE {
        return Err(format!("an image, not a cache: its config is `{}`", clip(&config.media_type)));
    }
    if schema_version != 2 {
        return Err(format!("schema version {schema_version} instead of 2"));
    }
    let layers = layers.into_iter().map(Arc::new).collect();
    let manifest = Manifest { schema_version, media_type, config, layers, annotations, extra };
    check(&manifest, limit).map_err(|many| many.to_string())?;
    Ok(manifest)
}

fn descriptors<S: serde::Serializer>(all: &[Arc<Descriptor>], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(all.iter().map(|descriptor| &**descriptor))
}

fn unreadable(error: &serde_json::Error) -> String {
    let what = if error.is_data() { "not a manifest" } else { "not JSON" };
    format!("{what}: {}", clip(&error.to_string()))
}

/// The manifest of a cache that BuildKit will import, as far as the manifest tells; otherwise why not.
pub fn importable(manifest: &[u8]) -> Result<Manifest, String> {
    if manifest.len() > IMPORT_LIMIT {
        return Err(format!("its manifest has {} bytes, more than BuildKit imports", manifest.len()));
    }
    match classify(manifest) {
        Kind::Other { why } => Err(why),
        Kind::Cache(manifest) if manifest.config.size > IMPORT_LIMIT as u64 => {
            Err(format!("its config has {} bytes, more than BuildKit imports", manifest.config.size))
        }
        Kind::Cache(manifest) => Ok(manifest),
    }
}

/// Checks a manifest that has been read.
fn check(manifest: &Manifest, limit: usize) -> Result<(), TooMany> {
    limits::at_most(limit / BYTES_A_LAYER, manifest.layers.len(), "layers")?;
    let of_layers = manifest.layers.iter().map(|layer| &layer.extra);
    limits::check_unknown(of_layers.chain([&manifest.config.extra, &manifest.extra]), limit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cache() -> serde_json::Value {
        let digest = Digest::of(b"");
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_MEDIA_TYPE,
            "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": digest, "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 7,
                        "urls": ["https://example.com"], "annotations": {"buildkit/createdat": "x"}}],
        })
    }

    fn why(manifest: &serde_json::Value) -> String {
        match classify(manifest.to_string().as_bytes()) {
            Kind::Other { why } => why,
            Kind::Cache(manifest) => panic!("took {manifest:?} for a cache"),
        }
    }

    fn with(path: &str, value: serde_json::Value) -> serde_json::Value {
        let mut manifest = cache();
        let (parent, field) = path.rsplit_once('/').unwrap();
        manifest.pointer_mut(parent).unwrap()[field] = value;
        manifest
    }

    #[test]
    fn a_cache_reads_and_writes_back() {
        for media_type in [json!(MANIFEST_MEDIA_TYPE), json!(DOCKER_MANIFEST), json!("")] {
            let json = with("/mediaType", media_type);
            let Kind::Cache(manifest) = classify(json.to_string().as_bytes()) else {
                panic!("{}", why(&json))
            };
            assert_eq!(manifest.layers[0].size, 7);
            assert_eq!(serde_json::to_value(manifest).unwrap(), json);
        }
    }

    #[test]
    fn what_is_not_a_cache_says_what_it_is() {
        let image = with("/config/mediaType", json!("application/vnd.oci.image.config.v1+json"));
        assert!(why(&image).starts_with("an image"), "{}", why(&image));
        for both in [with("/mediaType", json!(INDEXES[0])), with("/manifests", json!([]))] {
            assert!(why(&both).starts_with("both an index"), "{}", why(&both));
        }
        let images =
            json!({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [cache()["layers"][0]]});
        assert!(why(&images).starts_with("an index of images"), "{}", why(&images));
        assert!(why(&with("/mediaType", json!("text/html\n"))).contains(r"text/html\n"));
        assert!(why(&with("/schemaVersion", json!(1))).contains("schema version 1"));
        assert!(why(&with("/config", json!(null))).contains("no config"));
        assert!(why(&with("/layers/0/digest", json!("sha256:x"))).starts_with("not a manifest"));
        assert!(why(&with("/layers/0/size", json!(-1))).starts_with("not a manifest"));
        assert!(why(&with("/annotations", json!("x".repeat(IMPORT_LIMIT)))).contains("at most 1048576"));
        for name in ["Layers", "LAYERS", "layer\u{17f}"] {
            assert!(why(&with(&format!("/{name}"), json!([]))).contains("only in case"), "{name}");
        }
        assert!(why(&with("/layers/0/Size", json!(1))).contains("only in case"));
        for text in ["", "<html>", "[]", "7", "\"x\"", "{\"config\":", "\u{0}"] {
            assert!(matches!(classify(text.as_bytes()), Kind::Other { .. }), "{text}");
        }
    }
}
