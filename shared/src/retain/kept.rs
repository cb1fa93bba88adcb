//! What is known of a repository's manifests, kept from one run to the next: an OCI artifact in a repository of its own, which nobody
//! but retention may write, under a tag for each repository.
//!
//! Its layers are records in the order in which the manifests were learnt, of some megabytes each, so that the layers of yesterday are
//! those of today but for the last, and are not sent again. Digests are most of it, which no compression makes any
//! smaller; of a blob's half is enough.
//!
//! A manifest never changes, so neither does what is kept of it, and whatever cannot be used is read anew.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::known::{BlobId, Facts, Known, Note, Shape};
use crate::cache::MANIFEST_MEDIA_TYPE;
use crate::error::{CallError, Failure, chain};
use crate::names::{CacheRepository, Digest, Line, Tag};
use crate::ports::{ReadBlobs, ReadImages, WriteImages};

/// What the artifact is. The number is that of the format of [`Record`].
const ARTIFACT_TYPE: &str = "application/vnd.stoker.facts.v1";
const LAYER_TYPE: &str = "application/vnd.stoker.facts.layer.v1";
/// The config of an artifact that needs none.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";
/// A layer is full with so many bytes.
const LAYER_BYTES: usize = 4 << 20;
/// No layer is longer: a full one and the record of the longest manifest that there may be.
const LONGEST_LAYER: usize = 16 << 20;
/// What records and their blobs need about, of a repository with many layers to an image.
const RECORD_BYTES: usize = 256;
const BLOB_BYTES: usize = 40;
/// Far more than 100,000 images need.
const MAX_LAYERS: usize = 256;

/// The ports that it needs.
pub(super) trait Ports: ReadImages + ReadBlobs + WriteImages {}
impl<P: ReadImages + ReadBlobs + WriteImages> Ports for P {}

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// It is of another version, or something else.
    #[error("`{0}` is not `{ARTIFACT_TYPE}`")]
    Foreign(String),
    /// The manifest is not what its digest says, or no manifest.
    #[error("the manifest is damaged")]
    Manifest,
    /// A record is not one, or contradicts those before it.
    #[error("a record is damaged")]
    Record,
    /// It could not be read.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// One manifest. Blobs are numbered in the order in which the records name them.
#[derive(Serialize, Deserialize)]
struct Record<'r> {
    digest: [u8; 32],
    shape: Shape,
    /// Blobs that no record before has named, with their sizes.
    new: Vec<(BlobId, u64)>,
    /// Each blob's number less the one before.
    steps: Vec<u32>,
    children: Vec<[u8; 32]>,
    #[serde(borrow)]
    line: Option<Cow<'r, str>>,
    /// Seconds and nanoseconds.
    built_at: Option<(i64, i32)>,
    #[serde(borrow)]
    commit: &'r [u8],
    #[serde(borrow)]
    build: &'r [u8],
    reused_percent: Option<u8>,
}

/// Writes records.
struct Encoder {
    /// The number of each place of [`Known`].
    numbers: Vec<u32>,
    next: u32,
}

/// A place that no record has named.
const UNNAMED: u32 = u32::MAX;

impl Encoder {
    /// Goes on where the first so many blobs have been named, each in its place.
    fn after(known: &Known, named: u32) -> Self {
        let mut numbers: Vec<u32> = (0..named).collect();
        numbers.resize(known.blobs(), UNNAMED);
        Self { numbers, next: named }
    }

    fn append(&mut self, known: &Known, digest: &Digest, facts: Facts<'_>, to: Vec<u8>) -> Option<Vec<u8>> {
        let mut new = Vec::new();
        let mut numbers = Vec::with_capacity(facts.blobs().len());
        for place in facts.blobs() {
            let number = self.numbers.get_mut(*place as usize)?;
            if *number == UNNAMED {
                new.push(*known.blob(*place)?);
                *number = self.next;
                self.next += 1;
            }
            numbers.push(*number);
        }
        numbers.sort_unstable();
        let mut last = 0;
        let steps = numbers.into_iter().map(|number| number - std::mem::replace(&mut last, number));
        let (commit, build) = facts.words();
        let record = Record {
            digest: *digest.as_bytes(),
            shape: facts.shape(),
            new,
            steps: steps.collect(),
            children: facts.children().iter().map(|child| *child.as_bytes()).collect(),
            line: facts.line().map(|line| line.to_string().into()),
            built_at: facts.built_at().map(|at| (at.as_second(), at.subsec_nanosecond())),
            commit,
            build,
            reused_percent: facts.reused_percent(),
        };
        postcard::to_extend(&record, to).ok()
    }
}

/// Takes note of a layer's records. `None` where they are damaged.
pub(super) fn decode(known: &mut Known, mut layer: &[u8]) -> Option<()> {
    while !layer.is_empty() {
        let (record, rest) = postcard::take_from_bytes::<Record<'_>>(layer).ok()?;
        layer = rest;
        for (id, size) in record.new {
            let next = known.blobs();
            let place = known.place(id, size);
            (place as usize == next).then_some(())?;
        }
        let mut blobs = Vec::with_capacity(record.steps.len());
        let mut number: u32 = 0;
        for (index, step) in record.steps.into_iter().enumerate() {
            (index == 0 || step > 0).then_some(())?;
            number = number.checked_add(step).filter(|number| (*number as usize) < known.blobs())?;
            blobs.push(number);
        }
        let digest = Digest::from_bytes(record.digest);
        matches!(record.commit.len(), 0 | 20 | 32).then_some(())?;
        let built_at = record.built_at.map(|(second, nanosecond)| Timestamp::new(second, nanosecond).ok());
        let is_new = known.note(Note {
            digest,
            shape: record.shape,
            blobs,
            children: record.children.into_iter().map(Digest::from_bytes).collect(),
            line: record
                .line
                .map(|line| Line::parse(&line).ok())
                .map_or(Some(None), |line| line.map(Some))?,
            commit: record.commit,
            built_at: built_at.map_or(Some(None), |at| at.map(Some))?,
            build: Some(std::str::from_utf8(record.build).ok()?),
            reused_percent: record.reused_percent,
        });
        is_new.then_some(())?;
    }
    Some(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    digest: Digest,
    #[serde(default)]
    size: usize,
}

/// A layer of the artifact, and how many manifests and blobs it and those before it have.
#[derive(Clone)]
struct Layer {
    digest: Digest,
    size: usize,
    manifests: usize,
    blobs: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    artifact_type: String,
    layers: Vec<Described>,
}

/// Where the facts of one repository are kept.
pub(super) struct Kept<'p, P> {
    ports: &'p P,
    /// The repository that they are kept in.
    repository: &'p CacheRepository,
    tag: Tag,
    /// Layers that are there.
    layers: Vec<Layer>,
}

impl<'p, P: Ports> Kept<'p, P> {
    /// What is kept of `of` in `repository`; nothing where that cannot be used.
    pub(super) async fn recall(
        ports: &'p P,
        repository: &'p CacheRepository,
        of: &CacheRepository,
    ) -> (Known, Self) {
        let mut kept = Self { ports, repository, tag: Tag::facts(of), layers: Vec::new() };
        match kept.read().await {
            Ok(Some((mut known, layers))) => {
                known.set_unchanged();
                kept.layers = layers;
                tracing::debug!(cache.repository = %of, manifests = known.len(), "facts are known from an earlier run");
                (known, kept)
            }
            Ok(None) => {
                tracing::info!(cache.repository = %of, "no facts are kept of it yet: every manifest is read");
                (Known::default(), kept)
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(cache.repository = %of, error, "the kept facts cannot be used: every manifest is read anew");
                (Known::default(), kept)
            }
        }
    }

    async fn read(&self) -> Result<Option<(Known, Vec<Layer>)>, Unusable> {
        let found = self.ports.images(self.repository, std::slice::from_ref(&self.tag)).await?;
        let Some(image) = found.into_iter().flatten().next() else { return Ok(None) };
        if Digest::of(&image.manifest) != image.digest {
            return Err(Unusable::Manifest);
        }
        let manifest: Manifest = serde_json::from_slice(&image.manifest).map_err(|_| Unusable::Manifest)?;
        if manifest.artifact_type != ARTIFACT_TYPE {
            return Err(Unusable::Foreign(manifest.artifact_type.chars().take(80).collect()));
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(Unusable::Manifest);
        }
        let mut known = Known::default();
        // Room at once for what there may be, as far as an address costs nothing.
        let bytes = manifest.layers.iter().map(|layer| layer.size.min(LONGEST_LAYER)).sum::<usize>();
        known.reserve(bytes / RECORD_BYTES, bytes / BLOB_BYTES);
        let mut layers = Vec::new();
        for Described { digest, .. } in manifest.layers {
            let layer = self.ports.blob(self.repository, &digest, LONGEST_LAYER).await?;
            decode(&mut known, &layer).ok_or(Unusable::Record)?;
            let (manifests, blobs) = (known.len(), known.blobs());
            layers.push(Layer { digest, size: layer.len(), manifests, blobs });
        }
        Ok(Some((known, layers)))
    }

    /// Keeps what is known, if that has changed. A failure costs the next run some reading, and this one nothing.
    pub(super) async fn keep(&mut self, known: &mut Known) {
        if !known.is_changed() || known.is_empty() {
            return;
        }
        match self.write(known).await {
            Ok(()) => known.set_unchanged(),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    error,
                    "the facts could not be kept: the next run reads these manifests again"
                );
            }
        }
    }

    async fn write(&mut self, known: &Known) -> Result<(), CallError> {
        // Full layers stay as they are, unless what they hold was forgotten.
        let mut layers = if known.has_gaps() { Vec::new() } else { self.layers.clone() };
        layers.pop_if(|last| last.size < LAYER_BYTES);
        let (mut manifests, blobs) = layers.last().map_or((0, 0), |last| (last.manifests, last.blobs));
        let mut encoder = Encoder::after(known, u32::try_from(blobs).unwrap_or(UNNAMED));
        let mut layer = Vec::new();
        let last = known.len();
        for (digest, facts) in known.all().skip(manifests) {
            let longer = encoder.append(known, digest, facts, layer);
            layer = longer.ok_or_else(|| {
                CallError::new("facts:Encode", digest, Failure::Refused, "its record cannot be written")
            })?;
            manifests += 1;
            if layer.len() >= LAYER_BYTES || manifests == last {
                let bytes = std::mem::take(&mut layer);
                let (digest, size) = (Digest::of(&bytes), bytes.len());
                self.ports.put_blob(self.repository, &digest, bytes.into()).await?;
                layers.push(Layer { digest, size, manifests, blobs: encoder.next as usize });
            }
        }
        let config = Digest::of(EMPTY);
        if self.layers.is_empty() {
            self.ports.put_blob(self.repository, &config, Bytes::from_static(EMPTY)).await?;
        }
        let described: Vec<_> = layers
            .iter()
            .map(|layer| json!({ "mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size }))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "artifactType": ARTIFACT_TYPE,
            "config": { "mediaType": EMPTY_TYPE, "digest": config, "size": EMPTY.len() },
            "layers": described,
        });
        let manifest = Bytes::from(manifest.to_string());
        self.ports.put_image(self.repository, &self.tag, MANIFEST_MEDIA_TYPE, manifest).await?;
        self.layers = layers;
        Ok(())
    }
}
