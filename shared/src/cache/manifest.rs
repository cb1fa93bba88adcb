//! The manifest around a cache.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::{CONFIG_MEDIA_TYPE, Extra, IMPORT_LIMIT, ambiguous, null_is_empty, sorted_extra};
use crate::names::Digest;

/// The media type of the manifests that Stoker writes.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_FIELDS: [&str; 6] =
    ["schemaVersion", "mediaType", "config", "layers", "annotations", "manifests"];
const DESCRIPTOR_FIELDS: [&str; 4] = ["mediaType", "digest", "size", "annotations"];

/// What a manifest says about a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The blob's media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, compressed.
    pub size: u64,
    /// BuildKit notes here when it made the blob, and the digest of what it unpacks to.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// All other fields.
    #[serde(flatten, deserialize_with = "sorted_extra")]
    pub extra: Extra,
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST_MEDIA_TYPE`] or Docker's equivalent; may be empty in what others wrote.
    #[serde(default)]
    pub media_type: String,
    /// Describes the config.
    pub config: Descriptor,
    /// Describes the blobs.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// Notes on the whole manifest; Stoker keeps provenance here.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// All other fields.
    #[serde(flatten, deserialize_with = "sorted_extra")]
    pub extra: Extra,
}

/// What the bytes of a manifest are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A cache in the form of an image manifest.
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
    match read(manifest_json) {
        Ok(manifest) => Kind::Cache(manifest),
        Err(why) => Kind::Other { why },
    }
}

/// As little of a manifest as tells its kind.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    media_type: String,
    config: Option<ConfigOutline>,
    manifests: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigOutline {
    #[serde(default)]
    media_type: String,
}

fn read(json: &[u8]) -> Result<Manifest, String> {
    if json.len() > IMPORT_LIMIT {
        return Err(format!("{} bytes: BuildKit imports at most {IMPORT_LIMIT}", json.len()));
    }
    let outline: Outline = serde_json::from_slice(json).map_err(|e| unreadable(&e))?;
    let media_type = outline.media_type.as_str();
    if INDEXES.contains(&media_type) || outline.manifests.is_some() {
        return Err("an index: a cache has to be exported with `image-manifest=true`".to_owned());
    }
    if !["", MANIFEST_MEDIA_TYPE, DOCKER_MANIFEST].contains(&media_type) {
        return Err(format!("media type `{}` is not that of an image manifest", clip(media_type)));
    }
    let Some(config) = outline.config else {
        return Err("not a manifest: no config".to_owned());
    };
    if config.media_type != CONFIG_MEDIA_TYPE {
        return Err(format!("an image, not a cache: its config is `{}`", clip(&config.media_type)));
    }
    let manifest: Manifest = serde_json::from_slice(json).map_err(|e| unreadable(&e))?;
    if manifest.schema_version != 2 {
        return Err(format!("schema version {} instead of 2", manifest.schema_version));
    }
    let of_descriptors = || manifest.layers.iter().chain([&manifest.config]);
    let field = ambiguous(&manifest.extra, &MANIFEST_FIELDS)
        .or_else(|| of_descriptors().find_map(|d| ambiguous(&d.extra, &DESCRIPTOR_FIELDS)));
    match field {
        Some(field) => Err(format!("field `{}` differs from a known one only in case", clip(field))),
        None => Ok(manifest),
    }
}

fn unreadable(error: &serde_json::Error) -> String {
    let what = if error.is_data() { "not a manifest" } else { "not JSON" };
    format!("{what}: {}", clip(&error.to_string()))
}

/// Text from outside, fit for a log line.
fn clip(text: &str) -> String {
    text.chars().take(120).flat_map(char::escape_debug).collect()
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
        for index in [with("/mediaType", json!(INDEXES[0])), with("/manifests", json!([]))] {
            assert!(why(&index).starts_with("an index"), "{}", why(&index));
        }
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
