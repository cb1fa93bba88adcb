//! A build's provenance: a file beside its output, or the attestation of an image.

use std::path::Path;

use cache_misses::Llb;
use serde_json::Value;
use stoker_core::names::Digest;

use super::sources::{LARGEST_LOG, read_file};
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{self, Remotes};
use crate::text::plain;

/// Provenance with all operations of a build has some hundred kilobytes.
const LARGEST: usize = LARGEST_LOG as usize;

/// Reads provenance from a file, or from an image for a platform.
pub(super) async fn read(remotes: &Remotes, from: &str, platform: &str) -> Result<Llb, Problem> {
    let path = Path::new(from);
    let text = if path.exists() {
        read_file(path)?
    } else {
        let reference: Reference = from.parse().map_err(|error| {
            Problem::usage(
                format!("{} is no file, and no image: {error}", plain(from)),
                "name the file provenance.json, or the image as Docker writes it",
            )
        })?;
        attached(remotes, &reference, platform).await?
    };
    Llb::read(&text).ok_or_else(|| {
        Problem::usage(
            format!("the provenance at {} says nothing of the build's operations", plain(from)),
            "build with --provenance=mode=max",
        )
    })
}

/// The provenance that is attached to an image.
async fn attached(remotes: &Remotes, image: &Reference, platform: &str) -> Result<String, Problem> {
    let nothing = || {
        Problem::usage(
            format!("{image} has no provenance beside it"),
            "build with --provenance=mode=max, and push to a registry",
        )
    };
    let index = json(remotes, image).await?;
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let manifests = list(&index, "manifests");
    let is_of_platform = |manifest: &&Value| {
        let part = |name: &str| manifest["platform"][name].as_str().unwrap_or_default();
        platform.starts_with(&format!("{}/{}", part("os"), part("architecture")))
    };
    let of = manifests.iter().find(is_of_platform).map(|manifest| &manifest["digest"]);
    let attestation = manifests.iter().find(|manifest| {
        let note = |name: &str| &manifest["annotations"][name];
        note("vnd.docker.reference.type") == "attestation-manifest"
            && of.is_none_or(|of| note("vnd.docker.reference.digest") == of)
    });
    let digest = |value: &Value| value["digest"].as_str().and_then(|text| Digest::new(text).ok());
    let attestation = attestation.and_then(digest).ok_or_else(nothing)?;
    let manifest = image.beside(attestation);
    let layers = list(&json(remotes, &manifest).await?, "layers");
    let is_provenance = |layer: &&Value| {
        let kind = layer["annotations"]["in-toto.io/predicate-type"].as_str().unwrap_or_default();
        kind.starts_with("https://slsa.dev/provenance/")
    };
    let blob = layers.iter().find(is_provenance).and_then(digest).ok_or_else(nothing)?;
    let remote = remotes.of(image);
    let access = remote.pull(&image.repository);
    let bytes = remote.registry.blob(&access, &image.repository, &blob, LARGEST).await;
    let bytes = bytes.map_err(|error| Problem::call("read the provenance of", image, &error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn json(remotes: &Remotes, reference: &Reference) -> Result<Value, Problem> {
    let found = remote::find(remotes, reference).await?.ok_or_else(|| remote::nothing_at(reference))?;
    serde_json::from_slice(&found.bytes).map_err(|error| {
        Problem::failed(format!("the manifest at {reference} is no JSON: {error}"), "name an image")
    })
}
