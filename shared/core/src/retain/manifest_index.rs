//! What is known of manifests, kept small: a repository of ECR's may have 100,000 images with hundreds of
//! thousands of layers, and all that is known of them has to fit into the smallest Lambda function.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use jiff::Timestamp;
use serde::Deserialize;

use crate::mounts;
use crate::names::{Commit, Digest, Line};
use crate::provenance::{self, Provenance};
use buildkit_cache::CONFIG_MEDIA_TYPE;

/// No blob is counted for more bytes than this: what a manifest says of sizes may be anything, and sums must
/// not overflow.
const LARGEST_BLOB: u64 = 1 << 40;
/// Bytes of the longest build id that is remembered; CodeBuild's are shorter.
const LONGEST_BUILD: usize = 255;
/// All that is known may take about so many bytes, twice what 100,000 images of 30 layers take: whoever may
/// push to a repository can fill it with manifests that name nothing but blobs.
const MOST_BYTES: usize = 64 << 20;
/// What is kept of a blob, with its place in the table; of a blob of a manifest; of everything else that a
/// manifest says; and of a line beside its name.
const BYTES_A_BLOB: usize = 32;
const BYTES_A_PLACE: usize = 4;
const BYTES_A_MANIFEST: usize = 128;
const BYTES_A_LINE: usize = 128;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A cache of BuildKit's, in the form of an image manifest or of an index.
    Cache,
    /// The image of a saved cache mount.
    Mount,
    /// An index of other manifests.
    Index,
    /// Anything else: an ordinary image, a signature, a chart.
    Other,
    /// Nobody knows: it was too large to be read.
    TooLarge,
}

impl Shape {
    /// Whether it is a cache or the image of a mount: what retention may delete.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Cache | Self::Mount)
    }
}

/// What is known of manifests.
#[derive(Debug, Clone)]
pub struct ManifestIndex {
    /// Every blob once, with its size in bytes.
    blobs: Vec<(BlobId, u64)>,
    blob_places: HashTable<u32>,
    entries: Vec<Entry>,
    entry_places: HashTable<u32>,
    /// The blobs of all manifests, one manifest's after the other's, as places in `blobs`.
    held: Vec<u32>,
    /// The parts of all indexes.
    children: Vec<Digest>,
    /// Commits, as bytes, and build ids.
    words: Vec<u8>,
    lines: Vec<Arc<Line>>,
    line_places: HashMap<Arc<Line>, u32>,
    /// About so many bytes are taken by `lines`.
    bytes_of_lines: usize,
    hasher: DefaultHashBuilder,
    /// All may take so many bytes.
    most_bytes: usize,
}

impl Default for ManifestIndex {
    fn default() -> Self {
        Self::within(MOST_BYTES)
    }
}

/// The first half of a blob's digest. It tells blobs apart that are counted, and nothing else; to find two
/// that are alike takes 2^64 tries, and gains a wrong count.
type BlobId = [u8; 16];

fn half(digest: &Digest) -> BlobId {
    let mut half = BlobId::default();
    half.copy_from_slice(&digest.as_bytes()[..16]);
    half
}

/// A manifest. Its lists and words lie behind each other in the vectors of [`ManifestIndex`].
#[derive(Debug, Clone)]
struct Entry {
    digest: Digest,
    built_at: Option<Timestamp>,
    blobs: (u32, u32),
    children: (u32, u32),
    words: u32,
    line: Option<u32>,
    commit: u8,
    build: u8,
    shape: Shape,
    reused_percent: Option<u8>,
}

/// What one manifest says: as true tomorrow as today.
#[derive(Debug, Clone, Copy)]
pub struct ManifestInfo<'k> {
    known: &'k ManifestIndex,
    entry: &'k Entry,
}

/// What is taken note of.
struct Note<'n> {
    digest: Digest,
    shape: Shape,
    /// Places in `blobs`, in their order and each once.
    blobs: Vec<u32>,
    children: Vec<Digest>,
    line: Option<Line>,
    /// The commit's bytes, or none.
    commit: &'n [u8],
    built_at: Option<Timestamp>,
    build: Option<&'n str>,
    reused_percent: Option<u8>,
}

impl Note<'_> {
    fn nothing(digest: Digest, shape: Shape) -> Self {
        Self {
            digest,
            shape,
            blobs: Vec::new(),
            children: Vec::new(),
            line: None,
            commit: &[],
            built_at: None,
            build: None,
            reused_percent: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described<'d> {
    #[serde(borrow, default)]
    media_type: Cow<'d, str>,
    digest: Digest,
    #[serde(default)]
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'d> {
    #[serde(borrow)]
    config: Option<Described<'d>>,
    #[serde(borrow, default)]
    layers: Vec<Described<'d>>,
    #[serde(borrow, default)]
    manifests: Vec<Described<'d>>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A length or a place. What does not fit into 32 bits does not fit into the memory either.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn hash_of_entry(hasher: &DefaultHashBuilder, entries: &[Entry], place: u32) -> u64 {
    let id = entries.get(place as usize).map(|entry| half(&entry.digest)).unwrap_or_default();
    hasher.hash_one(u128::from_ne_bytes(id))
}

fn hash_of_blob(hasher: &DefaultHashBuilder, blobs: &[(BlobId, u64)], place: u32) -> u64 {
    let id = blobs.get(place as usize).map(|(id, _)| *id).unwrap_or_default();
    hasher.hash_one(u128::from_ne_bytes(id))
}

fn range((start, length): (u32, u32)) -> Range<usize> {
    start as usize..start as usize + length as usize
}

impl ManifestIndex {
    /// Nothing yet, and room for about so many bytes.
    fn within(most_bytes: usize) -> Self {
        Self {
            blobs: Vec::new(),
            blob_places: HashTable::new(),
            entries: Vec::new(),
            entry_places: HashTable::new(),
            held: Vec::new(),
            children: Vec::new(),
            words: Vec::new(),
            lines: Vec::new(),
            line_places: HashMap::new(),
            bytes_of_lines: 0,
            hasher: DefaultHashBuilder::default(),
            most_bytes,
        }
    }

    /// What is known of a manifest.
    #[must_use]
    pub fn of(&self, digest: &Digest) -> Option<ManifestInfo<'_>> {
        let entries = &self.entries;
        let is_it = |place: &u32| entries.get(*place as usize).is_some_and(|entry| entry.digest == *digest);
        let place = self.entry_places.find(self.hash(&half(digest)), is_it)?;
        Some(ManifestInfo { known: self, entry: entries.get(*place as usize)? })
    }

    /// Size of a blob in bytes.
    #[must_use]
    pub fn size(&self, blob: u32) -> u64 {
        self.blobs.get(blob as usize).map_or(0, |(_, size)| *size)
    }

    /// Number of blobs: their places are below it.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.blobs.len()
    }

    fn hash(&self, id: &BlobId) -> u64 {
        self.hasher.hash_one(u128::from_ne_bytes(*id))
    }

    /// About so many bytes are taken by all that is known.
    fn bytes(&self) -> usize {
        self.entries.len() * BYTES_A_MANIFEST
            + self.blobs.len() * BYTES_A_BLOB
            + self.held.len() * BYTES_A_PLACE
            + self.children.len() * size_of::<Digest>()
            + self.words.len()
            + self.bytes_of_lines
    }

    /// Takes note of a manifest. One that is no JSON of a manifest is something else, and keeps nothing alive
    /// that could be known. One for which there is no room is too large.
    pub fn learn(&mut self, digest: Digest, manifest: &[u8]) {
        if self.of(&digest).is_some() {
            return;
        }
        let Ok(document) = serde_json::from_slice::<Document<'_>>(manifest) else {
            self.note(Note::nothing(digest, Shape::Other));
            return;
        };
        let named = document.layers.len() + document.manifests.len();
        if self.bytes() + named * (BYTES_A_BLOB + BYTES_A_PLACE) > self.most_bytes {
            self.learn_too_large(digest);
            return;
        }
        let is_config = |described: &Described<'_>| described.media_type == CONFIG_MEDIA_TYPE;
        let is_cache =
            document.config.as_ref().is_some_and(is_config) || document.manifests.iter().any(is_config);
        let is_mount = document.config.is_some() && mounts::mount_of(&document.annotations).is_some();
        let shape = match (is_cache, document.manifests.is_empty()) {
            (true, _) => Shape::Cache,
            (false, false) => Shape::Index,
            (false, true) if is_mount => Shape::Mount,
            (false, true) => Shape::Other,
        };
        // In the index form of a cache, what looks like manifests is its layers.
        let (blobs, children) = if shape == Shape::Index {
            (Vec::new(), document.manifests)
        } else {
            (document.manifests, Vec::new())
        };
        let blobs = document.config.into_iter().chain(document.layers).chain(blobs);
        let mut blobs: Vec<u32> = blobs.map(|blob| self.place(half(&blob.digest), blob.size)).collect();
        blobs.sort_unstable();
        blobs.dedup();
        let provenance = Provenance::read(&document.annotations);
        let built = provenance.built.as_ref();
        let commit = built.and_then(|built| hex::decode(built.commit.as_str()).ok()).unwrap_or_default();
        self.note(Note {
            digest,
            shape,
            blobs,
            children: children.into_iter().map(|child| child.digest).collect(),
            line: provenance::line(&document.annotations),
            commit: &commit,
            built_at: built.map(|built| built.at),
            build: built.map(|built| built.build.as_str()),
            reused_percent: provenance.reused_percent,
        });
    }

    /// Takes note of a manifest that nobody reads.
    pub fn learn_too_large(&mut self, digest: Digest) {
        if self.of(&digest).is_none() {
            self.note(Note::nothing(digest, Shape::TooLarge));
        }
    }

    fn note(&mut self, note: Note<'_>) {
        let line = note.line.map(|line| {
            let next = narrow(self.lines.len());
            *self.line_places.entry(Arc::new(line)).or_insert_with_key(|line| {
                self.lines.push(Arc::clone(line));
                self.bytes_of_lines += line.to_string().len() + BYTES_A_LINE;
                next
            })
        });
        let build =
            note.build.map(str::as_bytes).filter(|build| build.len() <= LONGEST_BUILD).unwrap_or_default();
        let entry = Entry {
            built_at: note.built_at,
            blobs: (narrow(self.held.len()), narrow(note.blobs.len())),
            children: (narrow(self.children.len()), narrow(note.children.len())),
            words: narrow(self.words.len()),
            line,
            commit: u8::try_from(note.commit.len()).unwrap_or_default(),
            build: u8::try_from(build.len()).unwrap_or_default(),
            shape: note.shape,
            reused_percent: note.reused_percent,
            digest: note.digest,
        };
        self.held.extend(note.blobs);
        self.children.extend(note.children);
        self.words.extend_from_slice(note.commit);
        self.words.extend_from_slice(build);
        let place = narrow(self.entries.len());
        let hash = self.hash(&half(&entry.digest));
        self.entries.push(entry);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.entry_places.insert_unique(hash, place, |place| hash_of_entry(hasher, entries, *place));
    }

    /// The place of a blob, which is new to it or not.
    fn place(&mut self, id: BlobId, size: u64) -> u32 {
        let blobs = &mut self.blobs;
        let hasher = &self.hasher;
        let hash = hasher.hash_one(u128::from_ne_bytes(id));
        let is_it = |place: &u32| blobs.get(*place as usize).is_some_and(|(known, _)| *known == id);
        if let Some(place) = self.blob_places.find(hash, is_it) {
            return *place;
        }
        let place = narrow(blobs.len());
        blobs.push((id, size.min(LARGEST_BLOB)));
        self.blob_places.insert_unique(hash, place, |place| hash_of_blob(hasher, blobs, *place));
        place
    }
}

impl<'k> ManifestInfo<'k> {
    /// What it is.
    #[must_use]
    pub fn shape(self) -> Shape {
        self.entry.shape
    }

    /// The blobs that it keeps alive, the config included, each once, as [`ManifestIndex::size`] takes them.
    #[must_use]
    pub fn blobs(self) -> &'k [u32] {
        self.known.held.get(range(self.entry.blobs)).unwrap_or_default()
    }

    /// The manifests that it keeps alive.
    #[must_use]
    pub fn children(self) -> &'k [Digest] {
        self.known.children.get(range(self.entry.children)).unwrap_or_default()
    }

    /// The line that it was written for, where Stoker wrote it.
    #[must_use]
    pub fn line(self) -> Option<&'k Line> {
        self.shared_line().map(|line| &**line)
    }

    /// The same, to be kept.
    #[must_use]
    pub fn shared_line(self) -> Option<&'k Arc<Line>> {
        self.known.lines.get(self.entry.line? as usize)
    }

    /// The commit of the newest build in it.
    #[must_use]
    pub fn commit(self) -> Option<Commit> {
        Commit::new(hex::encode(self.words().0)).ok()
    }

    /// When that build started.
    #[must_use]
    pub fn built_at(self) -> Option<Timestamp> {
        self.entry.built_at
    }

    /// The build.
    #[must_use]
    pub fn build(self) -> Option<&'k str> {
        std::str::from_utf8(self.words().1).ok().filter(|build| !build.is_empty())
    }

    /// How many of a hundred of its steps came out of the cache.
    #[must_use]
    pub fn reused_percent(self) -> Option<u8> {
        self.entry.reused_percent
    }

    /// The commit's bytes and the build's.
    fn words(self) -> (&'k [u8], &'k [u8]) {
        let (commit, build) = (usize::from(self.entry.commit), usize::from(self.entry.build));
        let words = self.known.words.get(self.entry.words as usize..).unwrap_or_default();
        words.get(..commit + build).unwrap_or_default().split_at_checked(commit).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn index(blobs: Range<u32>) -> (Digest, String) {
        let blob = |n: u32| json!({ "mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&n.to_le_bytes()) });
        let text = json!({ "manifests": blobs.map(blob).collect::<Vec<_>>() }).to_string();
        (Digest::of(text.as_bytes()), text)
    }

    #[test]
    fn attack_manifests_that_name_more_blobs_than_there_is_room_for() {
        let mut known = ManifestIndex::within(20_000);
        let caches: Vec<_> = (0..20).map(|n| index(n * 100..n * 100 + 100)).collect();
        for (digest, text) in &caches {
            known.learn(digest.clone(), text.as_bytes());
        }
        let shapes: Vec<_> = caches.iter().map(|(digest, _)| known.of(digest).unwrap().shape()).collect();
        assert_eq!(shapes[..5], [Shape::Cache; 5]);
        assert_eq!(shapes[5..], [Shape::TooLarge; 15], "they are known, and to be kept");
        assert!(known.bytes() <= 20_000 + 15 * BYTES_A_MANIFEST, "{}", known.bytes());
    }

    #[test]
    fn a_manifest_never_changes() {
        let ((digest, first), (_, second)) = (index(0..3), index(0..9));
        let mut known = ManifestIndex::default();
        known.learn(digest.clone(), first.as_bytes());
        known.learn(digest.clone(), second.as_bytes());
        known.learn_too_large(digest.clone());
        let facts = known.of(&digest).unwrap();
        assert_eq!((facts.shape(), facts.blobs().len()), (Shape::Cache, 3));
        assert!(known.of(&Digest::of(b"another")).is_none());
    }
}
