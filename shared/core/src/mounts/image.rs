//! The image of a saved mount. What a build says of it is checked, and written anew: layers count, and nothing else.

use std::collections::BTreeMap;

use buildkit_cache::MANIFEST_MEDIA_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::names::{Digest, MountId};

/// The annotation of a saved mount that says its id.
pub const ID: &str = "stoker.mount";

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYERS: [&str; 2] =
    ["application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+gzip"];
/// Most layers of an image: what is saved then builds upon nothing again.
const MOST_LAYERS: usize = 8;
/// Bytes of the longest manifest that is read.
const LONGEST_MANIFEST: usize = 32 << 10;
/// Bytes of the longest config that is read.
pub const LONGEST_CONFIG: usize = 32 << 10;
/// An image's words, such as `arm64`, are not longer.
const LONGEST_WORD: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Blob {
    media_type: String,
    digest: Digest,
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: String,
    config: Blob,
    layers: Vec<Blob>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The manifest of a saved mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountManifest {
    config: Blob,
    layers: Vec<Blob>,
    /// What it says of itself: to be believed in a repository that only Stoker writes.
    pub annotations: BTreeMap<String, String>,
}

/// The mount that a manifest says it is of, if it says any.
#[must_use]
pub fn mount_of(annotations: &BTreeMap<String, String>) -> Option<MountId> {
    MountId::new(annotations.get(ID)?.as_str()).ok()
}

impl MountManifest {
    /// Reads a manifest, or says why it is none of a saved mount.
    pub fn parse(manifest: &[u8]) -> Result<Self, String> {
        if manifest.len() > LONGEST_MANIFEST {
            return Err(format!(
                "its manifest has {} bytes, more than that of any saved mount",
                manifest.len()
            ));
        }
        let document: Document =
            serde_json::from_slice(manifest).map_err(|error| format!("no image's manifest: {error}"))?;
        let Document { schema_version, media_type, config, layers, annotations } = document;
        let is_image =
            schema_version == 2 && media_type == MANIFEST_MEDIA_TYPE && config.media_type == CONFIG;
        if !is_image {
            return Err("not an OCI image, as a mount is saved".to_owned());
        }
        if config.size > LONGEST_CONFIG as u64 {
            return Err(format!("its config has {} bytes, more than that of any saved mount", config.size));
        }
        if layers.is_empty() || layers.len() > MOST_LAYERS {
            return Err(format!("{} layers: a saved mount has 1 to {MOST_LAYERS}", layers.len()));
        }
        if layers.iter().any(|layer| !LAYERS.contains(&layer.media_type.as_str())) {
            return Err("a layer that is neither zstd nor gzip".to_owned());
        }
        Ok(Self { config, layers, annotations })
    }

    /// The config's digest.
    #[must_use]
    pub fn config(&self) -> &Digest {
        &self.config.digest
    }

    /// The layers' digests.
    pub fn layers(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().map(|layer| &layer.digest)
    }

    /// Bytes of all layers, compressed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    /// Whether another layer upon these costs a restore less than to save all anew: there is room for it, and
    /// most of what is pulled is still in the mount.
    #[must_use]
    pub fn is_extendable(&self) -> bool {
        let first = self.layers.first().map_or(0, |layer| layer.size);
        self.layers.len() < MOST_LAYERS && self.bytes() - first.min(self.bytes()) <= first / 2
    }

    /// The same image with other annotations.
    #[must_use]
    pub fn annotated(&self, annotations: &BTreeMap<String, String>) -> Vec<u8> {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_MEDIA_TYPE,
            "config": self.config,
            "layers": self.layers,
            "annotations": annotations,
        });
        manifest.to_string().into_bytes()
    }
}

/// A saved mount as Stoker writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountImage {
    /// Its config: what it unpacks to, and for which platform. No command, environment or trigger of the build's.
    pub config: Vec<u8>,
    /// Its manifest, whose annotations are the build's.
    pub manifest: MountManifest,
}

impl MountImage {
    /// Takes what is needed out of an image's config.
    pub fn new(manifest: MountManifest, config: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Config {
            os: String,
            architecture: String,
            variant: Option<String>,
            rootfs: Rootfs,
        }
        #[derive(Deserialize)]
        struct Rootfs {
            diff_ids: Vec<Digest>,
        }
        let Config { os, architecture, variant, rootfs: Rootfs { diff_ids } } =
            serde_json::from_slice(config).map_err(|error| format!("no image's config: {error}"))?;
        let is_word = |word: &str| {
            (1..=LONGEST_WORD).contains(&word.len())
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if ![Some(&os), Some(&architecture), variant.as_ref()].into_iter().flatten().all(|word| is_word(word))
        {
            return Err("a platform that is none".to_owned());
        }
        if diff_ids.len() != manifest.layers.len() {
            return Err(format!(
                "{} layers in the config, {} in the manifest",
                diff_ids.len(),
                manifest.layers.len()
            ));
        }
        let mut config = json!({
            "os": os,
            "architecture": architecture,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        if let Some(variant) = variant {
            config["variant"] = variant.into();
        }
        let config = config.to_string().into_bytes();
        let blob =
            Blob { media_type: CONFIG.to_owned(), digest: Digest::of(&config), size: config.len() as u64 };
        Ok(Self { config, manifest: MountManifest { config: blob, ..manifest } })
    }
}
