//! What is in a repository: every image that the catalogue lists, and what its manifest says. A manifest never changes
//! under its digest, so it is read once.

use std::collections::{BTreeSet, HashMap, HashSet};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Deserialize;

use crate::cache::CONFIG_MEDIA_TYPE;
use crate::error::CallError;
use crate::names::{CacheRepository, Commit, Digest, Line};
use crate::ports::{Catalogue, IMAGES_PER_CALL, ListedImage, ReadManifests};
use crate::provenance::{self, Provenance};

/// How many requests for manifests are under way at once.
const REQUESTS_AT_ONCE: usize = 8;

/// No blob is counted for more bytes than this: what a manifest says of sizes may be anything, and sums must not overflow.
const LARGEST_BLOB: u64 = 1 << 40;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A cache of BuildKit's, in the form of an image manifest or of an index.
    Cache,
    /// An index of other manifests.
    Index,
    /// Anything else: an ordinary image, a signature, a chart.
    Other,
}

/// What one manifest says: as true tomorrow as today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub shape: Shape,
    /// The blobs that it keeps alive, the config included, as places in [`Known::blobs`].
    pub blobs: Vec<u32>,
    /// The manifests that it keeps alive.
    pub children: Vec<Digest>,
    /// The line that it was written for, where Stoker wrote it.
    pub line: Option<Line>,
    /// The commit of the newest build in it.
    pub commit: Option<Commit>,
    /// When that build started.
    pub built_at: Option<Timestamp>,
    /// The build.
    pub build: Option<String>,
    /// How many of a hundred of its steps came out of the cache.
    pub reused_percent: Option<u8>,
}

/// What is known of manifests.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Every blob once, with its size in bytes.
    pub blobs: Vec<(Digest, u64)>,
    places: HashMap<Digest, u32>,
    facts: HashMap<Digest, Facts>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    config: Option<Described>,
    #[serde(default)]
    layers: Vec<Described>,
    #[serde(default)]
    manifests: Vec<Described>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl Known {
    /// What is known of a manifest.
    #[must_use]
    pub fn of(&self, digest: &Digest) -> Option<&Facts> {
        self.facts.get(digest)
    }

    /// Size of a blob in bytes.
    #[must_use]
    pub fn size(&self, blob: u32) -> u64 {
        self.blobs.get(blob as usize).map_or(0, |(_, size)| *size)
    }

    /// Number of manifests that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// Whether nothing is known yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// Takes note of a manifest. One that is no JSON of a manifest is something else, and keeps nothing alive that could
    /// be known.
    pub fn learn(&mut self, digest: Digest, manifest: &[u8]) {
        let Ok(document) = serde_json::from_slice::<Document>(manifest) else {
            self.facts.insert(digest, Facts::nothing());
            return;
        };
        let is_config = |described: &Described| described.media_type == CONFIG_MEDIA_TYPE;
        let is_cache =
            document.config.as_ref().is_some_and(is_config) || document.manifests.iter().any(is_config);
        let shape = match (is_cache, document.manifests.is_empty()) {
            (true, _) => Shape::Cache,
            (false, false) => Shape::Index,
            (false, true) => Shape::Other,
        };
        // In the index form of a cache, what looks like manifests is its layers.
        let (blobs, children) = if shape == Shape::Index {
            (Vec::new(), document.manifests)
        } else {
            (document.manifests, Vec::new())
        };
        let blobs = document.config.into_iter().chain(document.layers).chain(blobs);
        let blobs: BTreeSet<u32> = blobs.map(|blob| self.place(blob.digest, blob.size)).collect();
        let provenance = Provenance::read(&document.annotations);
        let built = provenance.built;
        let facts = Facts {
            shape,
            blobs: blobs.into_iter().collect(),
            children: children.into_iter().map(|child| child.digest).collect(),
            line: provenance::line(&document.annotations),
            commit: built.as_ref().map(|built| built.commit.clone()),
            built_at: built.as_ref().map(|built| built.at),
            build: built.map(|built| built.build),
            reused_percent: provenance.reused_percent,
        };
        self.facts.insert(digest, facts);
    }

    fn place(&mut self, digest: Digest, size: u64) -> u32 {
        if let Some(place) = self.places.get(&digest) {
            return *place;
        }
        let place = u32::try_from(self.blobs.len()).unwrap_or(u32::MAX);
        self.blobs.push((digest.clone(), size.min(LARGEST_BLOB)));
        self.places.insert(digest, place);
        place
    }

    /// Forgets what is gone, so that this grows with the repository and not with time.
    pub fn forget_all_but(&mut self, images: &[ListedImage]) {
        let there: HashSet<&Digest> = images.iter().map(|image| &image.digest).collect();
        self.facts.retain(|digest, _| there.contains(digest));
    }
}

impl Facts {
    fn nothing() -> Self {
        Self {
            shape: Shape::Other,
            blobs: Vec::new(),
            children: Vec::new(),
            line: None,
            commit: None,
            built_at: None,
            build: None,
            reused_percent: None,
        }
    }
}

/// What is in a repository.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The repository.
    pub repository: CacheRepository,
    /// Every image.
    pub images: Vec<ListedImage>,
    /// What their manifests say.
    pub known: Known,
    /// Images whose manifest could not be read, and why: nothing is deleted from an inventory that lacks any.
    pub unread: Vec<(Digest, String)>,
}

/// Takes the inventory of a repository: the catalogue in pages, and the manifests that are not known yet, 100 with a
/// request.
pub async fn take(
    ports: &(impl Catalogue + ReadManifests),
    repository: &CacheRepository,
    mut known: Known,
) -> Result<Inventory, CallError> {
    let mut images = ports.list(repository).await?;
    known.forget_all_but(&images);
    // An archived image answers no question, and costs no build anything.
    let unknown: Vec<Digest> = images
        .iter()
        .filter(|image| !image.is_archived && known.of(&image.digest).is_none())
        .map(|image| image.digest.clone())
        .collect();
    let pages = stream::iter(unknown.chunks(IMAGES_PER_CALL))
        .map(|digests| async move { (digests, ports.manifests(repository, digests).await) });
    let mut pages = pages.buffered(REQUESTS_AT_ONCE);
    let mut unread = Vec::new();
    while let Some((asked, page)) = pages.next().await {
        let mut answered = HashSet::new();
        for (digest, manifest) in page? {
            // Whatever a registry answers, this is what it said the bytes are.
            if Digest::of(&manifest) == digest {
                known.learn(digest.clone(), &manifest);
                answered.insert(digest);
            }
        }
        let missing = asked.iter().filter(|digest| !answered.contains(digest));
        unread.extend(missing.map(|digest| (digest.clone(), "the registry answers no manifest".to_owned())));
    }
    drop(pages);
    if !unread.is_empty() {
        // What was deleted since it was listed keeps nothing alive: that is no gap.
        let there: HashSet<Digest> =
            ports.list(repository).await?.into_iter().map(|image| image.digest).collect();
        let missing: HashSet<Digest> = unread.iter().map(|(digest, _)| digest.clone()).collect();
        images.retain(|image| !missing.contains(&image.digest) || there.contains(&image.digest));
        unread.retain(|(digest, _)| there.contains(digest));
    }
    Ok(Inventory { repository: repository.clone(), images, known, unread })
}
