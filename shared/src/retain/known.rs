//! What is known of manifests, kept small: a repository of ECR's may have 100,000 images with hundreds of thousands of layers, and
//! all that is known of them has to fit into the smallest Lambda function.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashSet, HashTable};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cache::CONFIG_MEDIA_TYPE;
use crate::names::{Commit, Digest, Line};
use crate::ports::ListedImage;
use crate::provenance::{self, Provenance};

/// No blob is counted for more bytes than this: what a manifest says of sizes may be anything, and sums must not overflow.
const LARGEST_BLOB: u64 = 1 << 40;
/// Bytes of the longest build id that is remembered; CodeBuild's are shorter.
const LONGEST_BUILD: usize = 255;
/// What is gone is forgotten once it is more than one in so many of all that is known: a manifest stays true, so it does no harm, and what
/// has been kept of the others need not be written anew each day.
const GONE_SHARE: usize = 8;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// A cache of BuildKit's, in the form of an image manifest or of an index.
    Cache,
    /// An index of other manifests.
    Index,
    /// Anything else: an ordinary image, a signature, a chart.
    Other,
}

/// What is known of manifests.
#[derive(Debug, Clone, Default)]
pub struct Known {
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
    hasher: DefaultHashBuilder,
    is_changed: bool,
    /// Whether any was ever forgotten: then there are blobs that no manifest has.
    has_gaps: bool,
}

/// The first half of a blob's digest. It tells blobs apart that are counted, and nothing else; to find two that are alike takes 2^64
/// tries, and gains a wrong count.
pub(super) type BlobId = [u8; 16];

fn half(digest: &Digest) -> BlobId {
    let mut half = BlobId::default();
    half.copy_from_slice(&digest.as_bytes()[..16]);
    half
}

/// A manifest. Its lists and words lie behind each other in the vectors of [`Known`].
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
pub struct Facts<'k> {
    known: &'k Known,
    entry: &'k Entry,
}

/// What is taken note of.
pub(super) struct Note<'n> {
    pub(super) digest: Digest,
    pub(super) shape: Shape,
    /// Places in `blobs`, in their order and each once.
    pub(super) blobs: Vec<u32>,
    pub(super) children: Vec<Digest>,
    pub(super) line: Option<Line>,
    /// The commit's bytes, or none.
    pub(super) commit: &'n [u8],
    pub(super) built_at: Option<Timestamp>,
    pub(super) build: Option<&'n str>,
    pub(super) reused_percent: Option<u8>,
}

impl Note<'_> {
    fn nothing(digest: Digest) -> Self {
        Self {
            digest,
            shape: Shape::Other,
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

impl Known {
    /// What is known of a manifest.
    #[must_use]
    pub fn of(&self, digest: &Digest) -> Option<Facts<'_>> {
        let entries = &self.entries;
        let is_it = |place: &u32| entries.get(*place as usize).is_some_and(|entry| entry.digest == *digest);
        let place = self.entry_places.find(self.hash(&half(digest)), is_it)?;
        Some(Facts { known: self, entry: entries.get(*place as usize)? })
    }

    /// Everything that is known, in the order in which it was learnt.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Digest, Facts<'_>)> {
        self.entries.iter().map(|entry| (&entry.digest, Facts { known: self, entry }))
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

    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, manifests: usize, blobs: usize) {
        let hasher = &self.hasher;
        self.entries.reserve(manifests);
        self.blobs.reserve(blobs);
        let (entries, known) = (&self.entries, &self.blobs);
        self.entry_places.reserve(manifests, |place| hash_of_entry(hasher, entries, *place));
        self.blob_places.reserve(blobs, |place| hash_of_blob(hasher, known, *place));
    }

    pub(super) fn has_gaps(&self) -> bool {
        self.has_gaps
    }

    pub(super) fn blob(&self, place: u32) -> Option<&(BlobId, u64)> {
        self.blobs.get(place as usize)
    }

    /// Number of manifests that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether anything was learnt or forgotten since it was last said that nothing was.
    pub(super) fn is_changed(&self) -> bool {
        self.is_changed
    }

    pub(super) fn set_unchanged(&mut self) {
        self.is_changed = false;
    }

    /// Takes note of a manifest. One that is no JSON of a manifest is something else, and keeps nothing alive that could
    /// be known.
    pub fn learn(&mut self, digest: Digest, manifest: &[u8]) {
        if self.of(&digest).is_some() {
            return;
        }
        let Ok(document) = serde_json::from_slice::<Document<'_>>(manifest) else {
            self.note(Note::nothing(digest));
            return;
        };
        let is_config = |described: &Described<'_>| described.media_type == CONFIG_MEDIA_TYPE;
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

    /// Takes note of what a manifest says, unless that is known: it never changes. Says whether it was not.
    pub(super) fn note(&mut self, note: Note<'_>) -> bool {
        if self.of(&note.digest).is_some() {
            return false;
        }
        let line = note.line.map(|line| {
            let next = narrow(self.lines.len());
            *self.line_places.entry(Arc::new(line)).or_insert_with_key(|line| {
                self.lines.push(Arc::clone(line));
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
        self.is_changed = true;
        true
    }

    /// The place of a blob, which is new to it or not.
    pub(super) fn place(&mut self, id: BlobId, size: u64) -> u32 {
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

    /// Forgets what is gone, so that this grows with the repository and not with time: not one by one, but once it is a good
    /// part of all.
    pub fn forget_all_but(&mut self, images: &[Arc<ListedImage>]) {
        let there = images.iter().filter(|image| self.of(&image.digest).is_some()).count();
        if self.entries.len().saturating_sub(there) * GONE_SHARE <= self.entries.len() {
            return;
        }
        let there: HashSet<&Digest> = images.iter().map(|image| &image.digest).collect();
        self.entries.retain(|entry| there.contains(&entry.digest));
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash_at = |place: &u32| hash_of_entry(hasher, entries, *place);
        self.entry_places.clear();
        for place in 0..narrow(entries.len()) {
            self.entry_places.insert_unique(hash_at(&place), place, hash_at);
        }
        self.has_gaps = true;
        self.is_changed = true;
    }
}

impl<'k> Facts<'k> {
    /// What it is.
    #[must_use]
    pub fn shape(self) -> Shape {
        self.entry.shape
    }

    /// The blobs that it keeps alive, the config included, each once, as [`Known::size`] takes them.
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
    pub(super) fn words(self) -> (&'k [u8], &'k [u8]) {
        let (commit, build) = (usize::from(self.entry.commit), usize::from(self.entry.build));
        let words = self.known.words.get(self.entry.words as usize..).unwrap_or_default();
        words.get(..commit + build).unwrap_or_default().split_at_checked(commit).unwrap_or_default()
    }
}
