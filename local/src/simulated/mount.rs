//! `docker buildx bake` of the files by which builds restore and save cache mounts: it moves images of
//! mounts, and nothing is in them but a word.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::log::Output;
use super::registry::{MANIFEST, Reference, Registry, RegistryError};

/// A mount could not be restored or saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum BakeError {
    #[error("the file for bake is not understood")]
    File(#[from] serde_json::Error),
    #[error("a target that neither restores nor saves a mount")]
    Target,
    #[error("{0}: not found")]
    NotFound(String),
    #[error("the registry failed")]
    Registry(#[from] RegistryError),
}

#[derive(Deserialize)]
struct File {
    target: BTreeMap<String, Target>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Target {
    dockerfile_inline: String,
    output: Vec<String>,
}

/// Does what a file says.
pub(super) async fn bake(file: &[u8], output: &Output) -> Result<(), BakeError> {
    let file: File = serde_json::from_slice(file)?;
    let registry = Registry::default();
    for (name, Target { dockerfile_inline, output: to }) in file.target {
        let word_after = |mark: &str| {
            let (_, rest) = dockerfile_inline.split_once(mark)?;
            rest.split([',', ' ', '\n']).next().map(str::to_owned)
        };
        let to = to.first().map(String::as_str).unwrap_or_default();
        if to == "type=cacheonly" {
            let image = word_after("type=bind,from=").ok_or(BakeError::Target)?;
            manifest(&registry, &image).await?;
            output.say(&format!("{name}: restored from {image}"));
            continue;
        }
        let fields: BTreeMap<&str, &str> = to.split(',').filter_map(|field| field.split_once('=')).collect();
        let reference = Reference::parse(fields.get("name").ok_or(BakeError::Target)?)?;
        let base = word_after("FROM ").ok_or(BakeError::Target)?;
        save(&registry, &base, &reference, &fields).await?;
        output.say(&format!("{name}: saved upon {base}"));
    }
    Ok(())
}

async fn manifest(registry: &Registry, image: &str) -> Result<(Reference, Value), BakeError> {
    let reference = Reference::parse(image)?;
    let manifest = registry.manifest(&reference).await?;
    let manifest = manifest.ok_or_else(|| BakeError::NotFound(image.to_owned()))?;
    Ok((reference, serde_json::from_slice(&manifest)?))
}

/// One layer more than the base has, under the reference.
async fn save(
    registry: &Registry,
    base: &str,
    to: &Reference,
    fields: &BTreeMap<&str, &str>,
) -> Result<(), BakeError> {
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    if base != "scratch" {
        let (from, manifest) = manifest(registry, base).await?;
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let digest = layer["digest"].as_str().unwrap_or_default();
            registry.copy_blob(&from.repository, &to.repository, digest).await?;
            layers.push(layer.clone());
        }
        let config = manifest["config"]["digest"].as_str().unwrap_or_default();
        let config: Value = serde_json::from_slice(&registry.blob(&from.repository, config).await?)?;
        diff_ids.extend(config["rootfs"]["diff_ids"].as_array().into_iter().flatten().cloned());
    }
    let push = async |bytes: Vec<u8>, media_type: &str| {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        let size = bytes.len();
        registry.push_blob(&to.repository, &digest, bytes.into()).await?;
        Ok::<_, RegistryError>(json!({ "mediaType": media_type, "digest": digest, "size": size }))
    };
    let layer = push(to.version.clone().into_bytes(), "application/vnd.oci.image.layer.v1.tar+zstd").await?;
    diff_ids.push(layer["digest"].clone());
    layers.push(layer);
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers",
        "diff_ids": diff_ids } });
    let config = push(config.to_string().into_bytes(), "application/vnd.oci.image.config.v1+json").await?;
    let annotations =
        fields.iter().filter_map(|(name, value)| Some((name.strip_prefix("annotation.")?, *value)));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": layers,
        "annotations": annotations.collect::<BTreeMap<_, _>>(),
    });
    Ok(registry.put_manifest(to, manifest.to_string().into_bytes()).await?)
}
