//! Keeping a cache within limits.

use std::cmp::Reverse;
use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::graph::{Cache, needed_first};
use super::limits::SAFE_SIZE;
use super::write::Sizes;

/// How often [`Cache::prune`] passes over a record that fits in no case, and looks for more that do.
const MAX_PASSES: usize = 8;

/// How large a cache may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Bytes of all blobs, each counted once; `None` is no limit.
    pub bytes: Option<u64>,
    /// Bytes of the config, and of the manifest without annotations. An empty cache has some hundred.
    pub size: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: None, size: SAFE_SIZE }
    }
}

impl Limits {
    /// The first limit that a cache of these sizes breaks.
    fn broken_by(&self, sizes: &Sizes) -> Option<Cause> {
        if self.bytes.is_some_and(|limit| sizes.blobs > limit) {
            Some(Cause::Bytes)
        } else if sizes.config > self.size {
            Some(Cause::Config)
        } else if sizes.manifest > self.size {
            Some(Cause::Manifest)
        } else {
            None
        }
    }
}

/// The limit because of which a record was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// That of the blobs.
    Bytes,
    /// That of the config.
    Config,
    /// That of the manifest.
    Manifest,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes of layers",
            Self::Config => "size of the config",
            Self::Manifest => "size of the manifest",
        })
    }
}

/// A record that had to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Its digest.
    pub digest: String,
    /// When a build last used it, as far as that is known.
    pub last_used: Option<Timestamp>,
    /// The limit that it did not fit into.
    pub why: Cause,
}

/// What became of a cache that was to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// What is left of it.
    pub cache: Cache,
    /// What is not, in the order of the cache.
    pub dropped: Vec<Dropped>,
    /// Bytes of all blobs before.
    pub bytes_before: u64,
    /// Bytes of all blobs after.
    pub bytes_after: u64,
}

impl Cache {
    /// What of the cache is worth most within limits: the steps that builds used last, and all that these need.
    ///
    /// Steps are taken in the order of their last use, the latest first, each together with every record that it was
    /// made from. The first that does not fit ends that, unless it fits in no case, even alone: then it is passed over
    /// with all that was made from it. So no step that was dropped, but for such a one, was used after one that was
    /// kept, unless another kept one needs that. A record without a result is nothing that a build would miss: it stays
    /// with those that were made from it, or last of all.
    ///
    /// A cache within the limits stays as it is. Limits too tight even for an empty cache leave an empty one.
    #[must_use]
    pub fn prune(&self, limits: &Limits) -> Pruned {
        let before = self.sizes();
        if limits.broken_by(&before).is_none() {
            let bytes = before.blobs;
            return Pruned {
                cache: self.clone(),
                dropped: Vec::new(),
                bytes_before: bytes,
                bytes_after: bytes,
            };
        }
        let mut whole = self.clone();
        if limits.broken_by(&whole.only(&vec![false; self.records.len()]).sizes()).is_some() {
            // What Stoker does not know must not displace what it does.
            whole.extra.clear();
        }
        let mut choice = Choice::new(&whole, limits);
        choice.make();
        let cache = whole.only(&choice.kept());
        let bytes_after = cache.blob_bytes();
        Pruned { cache, dropped: choice.dropped(), bytes_before: before.blobs, bytes_after }
    }

    /// The cache with some of its records only; these must hold all that they need.
    pub(super) fn only(&self, kept: &[bool]) -> Self {
        let mut places = vec![usize::MAX; kept.len()];
        let mut records = Vec::new();
        for (place, record) in self.records.iter().enumerate().filter(|(place, _)| kept[*place]) {
            places[place] = records.len();
            records.push(record.clone());
        }
        for link in records.iter_mut().flat_map(|record| &mut record.links) {
            link.record = places[link.record];
        }
        let (blobs, layers, extra) = (self.blobs.clone(), self.layers.clone(), self.extra.clone());
        Self { blobs, layers, records, extra }.canonical()
    }
}

/// Whether and why a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Kept,
    Dropped(Cause),
}

/// The choice of what to keep.
struct Choice<'a> {
    cache: &'a Cache,
    limits: &'a Limits,
    /// The records, the first to be kept first.
    order: Vec<usize>,
    fates: Vec<Fate>,
}

impl<'a> Choice<'a> {
    fn new(cache: &'a Cache, limits: &'a Limits) -> Self {
        let records = &cache.records;
        // A cache has no cycle. Were there one, nothing would be kept.
        let mut order =
            needed_first(records.len(), |record, nth| records[record].links.get(nth).map(|l| l.record))
                .unwrap_or_default();
        // The sort is stable: of records used at one time those that others need are kept first.
        order.sort_by_key(|&record| {
            let record = &records[record];
            Reverse((record.has_result(), record.last_used()))
        });
        Self { cache, limits, order, fates: vec![Fate::Open; records.len()] }
    }

    fn make(&mut self) {
        let (mut from, mut last) = (0, Cause::Config);
        for _ in 0..MAX_PASSES {
            let Some((first, why)) = self.take_from(from) else { return };
            let mut alone = vec![false; self.fates.len()];
            self.mark_needs(self.order[first], &mut alone);
            match self.broken_by(&alone) {
                // Something else would fit in its place only at the cost of what was used later.
                None => return self.drop_rest(why),
                Some(why) => self.drop_with_dependents(self.order[first], why),
            }
            (from, last) = (first + 1, why);
        }
        self.drop_rest(last);
    }

    /// Keeps as many records from a place of the order on as fit. Answers the place of the first that does not.
    fn take_from(&mut self, from: usize) -> Option<(usize, Cause)> {
        let (mut fits, mut breaks) = (from, self.order.len() + 1);
        let mut why = None;
        while breaks - fits > 1 {
            let middle = fits.midpoint(breaks);
            match self.broken_by(&self.kept_with(from, middle)) {
                None => fits = middle,
                broken => (breaks, why) = (middle, broken),
            }
        }
        let kept = self.kept_with(from, fits);
        for (fate, _) in self.fates.iter_mut().zip(kept).filter(|(_, kept)| *kept) {
            *fate = Fate::Kept;
        }
        Some((fits, why?))
    }

    fn broken_by(&self, kept: &[bool]) -> Option<Cause> {
        self.limits.broken_by(&self.cache.only(kept).sizes())
    }

    fn kept(&self) -> Vec<bool> {
        self.fates.iter().map(|fate| *fate == Fate::Kept).collect()
    }

    /// What is kept, and besides it these places of the order.
    fn kept_with(&self, from: usize, end: usize) -> Vec<bool> {
        let mut kept = self.kept();
        for &record in self.order[from..end].iter().filter(|&&record| self.fates[record] == Fate::Open) {
            self.mark_needs(record, &mut kept);
        }
        kept
    }

    /// Marks a record and all that it needs.
    fn mark_needs(&self, record: usize, marks: &mut [bool]) {
        let mut open = vec![record];
        while let Some(record) = open.pop() {
            if !marks[record] {
                marks[record] = true;
                open.extend(self.cache.records[record].links.iter().map(|link| link.record));
            }
        }
    }

    fn drop_with_dependents(&mut self, record: usize, why: Cause) {
        let mut dependents = vec![Vec::new(); self.fates.len()];
        for (dependent, record) in self.cache.records.iter().enumerate() {
            record.links.iter().for_each(|link| dependents[link.record].push(dependent));
        }
        let mut open = vec![record];
        while let Some(record) = open.pop() {
            if self.fates[record] == Fate::Open {
                self.fates[record] = Fate::Dropped(why);
                open.append(&mut dependents[record]);
            }
        }
    }

    fn drop_rest(&mut self, why: Cause) {
        for fate in self.fates.iter_mut().filter(|fate| **fate == Fate::Open) {
            *fate = Fate::Dropped(why);
        }
    }

    fn dropped(&self) -> Vec<Dropped> {
        let dropped = self.cache.records.iter().zip(&self.fates).filter_map(|(record, fate)| match fate {
            Fate::Dropped(why) => {
                Some(Dropped { digest: record.digest.to_string(), last_used: record.last_used(), why: *why })
            }
            _ => None,
        });
        dropped.collect()
    }
}
