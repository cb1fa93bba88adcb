//! What of a foreign cache may join main's: nothing that changes what a step of main results in.
//!
//! BuildKit finds a step by its digest and, for each of its inputs, by *any* of the keys that a record names;
//! what several records say of one key it takes for one, and of several results it takes the newest. So two
//! records *match* here if their digests are equal and, as far as both have inputs, some alternative of one
//! is some alternative of the other: the same selector, and records that match themselves. Matching is made
//! transitive, as BuildKit 0.25 and newer join what matches when they import it. A foreign record that
//! matches one of main's brings nothing, and what was made from it is made from main's from now on.

use std::cmp::Reverse;

use hashbrown::{HashMap, HashSet};

use super::graph::{Cache, Id, Link, Record, identify, needed_first, places_in};
use super::json::{Extra, Sha, Text};
use super::manifest::Descriptor;

/// BuildKit's note of what a layer unpacks to. It takes layers of which this is equal for the same, and unpacks one.
const UNPACKED: &str = "containerd.io/uncompressed";

/// How many comparisons an admission may take. Two real caches at their limit of size take a tenth; who made one that
/// takes more meant to, and none of it is admitted.
const MOST_WORK: usize = 4_000_000;

impl Cache {
    /// What may be merged into this cache, main's, of a cache that others than main's builds made.
    ///
    /// For every query that this cache has an answer to, BuildKit's answer is the same after the merge:
    /// * A record that may be met by a query that meets one of this cache's brings neither a result, nor an
    ///   alternative, nor a use. What was made from it is made from this cache's record instead.
    /// * Of a blob that this cache has, this cache's descriptor counts. A blob that claims to unpack to what
    ///   one of this cache's unpacks to, and is not that one, comes with no result.
    /// * Records whose digests are not SHA-256 digests, and alternatives with such selectors, are left out,
    ///   as is all that can then not be reached.
    ///
    /// The answer holds this cache's records that what is new was made from, without their results.
    #[must_use]
    pub fn admit(&self, foreign: &Self) -> Self {
        let admitted = Matching::new(self, foreign).and_then(|matching| Admission::new(matching).make());
        admitted.unwrap_or_else(|| {
            tracing::warn!(
                cache.records = foreign.records.len(),
                "a cache takes too long to hold against main's, and brings nothing"
            );
            Self::default()
        })
    }

    /// The blobs of a foreign cache whose results do not come along.
    fn impostors(&self, foreign: &Self) -> Vec<bool> {
        fn unpacked(descriptor: &Descriptor) -> Option<&String> {
            descriptor.annotations.get(UNPACKED)
        }
        let own: HashMap<&String, Sha> =
            self.blobs.iter().filter_map(|blob| Some((unpacked(&blob.descriptor)?, blob.digest))).collect();
        let is_own = |digest: &Sha| self.blobs.binary_search_by_key(digest, |blob| blob.digest).is_ok();
        let claims = |blob: &super::graph::Blob| {
            let claimed = unpacked(&blob.descriptor).and_then(|unpacked| own.get(unpacked));
            claimed.is_some_and(|own| *own != blob.digest) && !is_own(&blob.digest)
        };
        foreign.blobs.iter().map(claims).collect()
    }
}

/// One alternative of an input of a record of either cache.
#[derive(Debug, Clone, Copy)]
struct Alternative {
    input: u32,
    selector: u32,
    record: u32,
}

/// By what a record is found: a class of records, and how it was made from one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    class: u32,
    input: u32,
    selector: u32,
    digest: u32,
}

/// Which records of two caches match: main's come first, in their order, then the foreign ones.
pub(super) struct Matching<'a> {
    main: &'a Cache,
    foreign: &'a Cache,
    /// For each record its digest's number.
    digests: Vec<u32>,
    /// For each record its alternatives, in the order of their inputs.
    alternatives: Vec<Vec<Alternative>>,
    /// For each digest the fewest inputs of a record that has any.
    fewest: Vec<u32>,
    /// For each record one of its class that comes before it, or itself.
    above: Vec<u32>,
    /// For the first of each class the fewest inputs of a record of it.
    inputs: Vec<u32>,
    work: usize,
}

/// All records by their keys.
#[derive(Default)]
struct Index {
    classes: HashMap<Key, Vec<u32>>,
    has: HashSet<(Key, u32)>,
}

impl<'a> Matching<'a> {
    /// Compares two caches; answers nothing if that would take too long.
    pub(super) fn new(main: &'a Cache, foreign: &'a Cache) -> Option<Self> {
        let mut numbers: HashMap<&Text, u32> = HashMap::new();
        let mut number = |text: &'a Text| {
            let next = short(numbers.len());
            *numbers.entry(text).or_insert(next)
        };
        let count = main.records.len() + foreign.records.len();
        let (mut digests, mut alternatives) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (records, first) in [(&main.records, 0), (&foreign.records, main.records.len())] {
            for record in records {
                digests.push(number(&record.digest));
                let alternative = |link: &'a Link| Alternative {
                    input: short(link.input),
                    selector: number(&link.selector),
                    record: short(first + link.record),
                };
                alternatives.push(record.links.iter().map(alternative).collect::<Vec<_>>());
            }
        }
        let inputs: Vec<u32> =
            alternatives.iter().map(|links| links.last().map_or(0, |link| link.input + 1)).collect();
        let mut fewest = vec![u32::MAX; numbers.len()];
        for (&digest, &inputs) in digests.iter().zip(&inputs).filter(|(_, inputs)| **inputs > 0) {
            let fewest = &mut fewest[digest as usize];
            *fewest = (*fewest).min(inputs);
        }
        let above = (0..short(count)).collect();
        let mut matching = Self { main, foreign, digests, alternatives, fewest, above, inputs, work: 0 };
        matching.compare()?;
        Some(matching)
    }

    /// Brings what matches into classes.
    fn compare(&mut self) -> Option<()> {
        let order = needed_first(self.digests.len(), |record, nth| {
            self.alternatives[record].get(nth).map(|link| link.record as usize)
        });
        let order: Vec<u32> = order.ok()?.into_iter().map(short).collect();
        let mut sources = HashMap::new();
        for &record in &order {
            if self.inputs[record as usize] == 0 {
                let first = *sources.entry(self.digests[record as usize]).or_insert(record);
                self.unite(first, record);
            }
        }
        // Each after those it was made from: this finds almost all, and the index need not be made again for each.
        let mut index = Index::default();
        for &record in &order {
            self.match_with(&index, record)?;
            self.note(&mut index, record)?;
        }
        loop {
            let mut index = Index::default();
            for &record in &order {
                self.note(&mut index, record)?;
            }
            let mut is_new = false;
            for &record in &order {
                is_new |= self.match_with(&index, record)?;
            }
            if !is_new {
                return Some(());
            }
        }
    }

    /// Unites a record with the classes that it matches.
    fn match_with(&mut self, index: &Index, record: u32) -> Option<bool> {
        let place = record as usize;
        let (digest, own) = (self.digests[place], std::mem::take(&mut self.alternatives[place]));
        let inputs: Vec<Vec<Key>> = own
            .chunk_by(|a, b| a.input == b.input)
            .map(|links| links.iter().map(|link| self.key(link, digest)).collect())
            .collect();
        self.alternatives[place] = own;
        // Whatever matches has one of the keys of each of these inputs: those of which fewest have one are
        // enough to look at.
        let found = |keys: &Vec<Key>| -> usize {
            keys.iter().map(|key| index.classes.get(key).map_or(0, Vec::len)).sum()
        };
        let Some(rarest) =
            inputs.iter().take(self.fewest[digest as usize] as usize).min_by_key(|keys| found(keys))
        else {
            return Some(false);
        };
        let mut is_new = false;
        for &candidate in rarest.iter().filter_map(|key| index.classes.get(key)).flatten() {
            let class = self.class(candidate);
            self.spend(1)?;
            if class == self.class(record) {
                continue;
            }
            let both = inputs.len().min(self.inputs[class as usize] as usize);
            self.spend(inputs.iter().take(both).map(Vec::len).sum())?;
            let shares = |keys: &Vec<Key>| keys.iter().any(|key| index.has.contains(&(*key, class)));
            if inputs.iter().take(both).all(shares) {
                self.unite(class, record);
                is_new = true;
            }
        }
        Some(is_new)
    }

    fn note(&mut self, index: &mut Index, record: u32) -> Option<()> {
        let (place, class) = (record as usize, self.class(record));
        self.spend(self.alternatives[place].len())?;
        for nth in 0..self.alternatives[place].len() {
            let link = self.alternatives[place][nth];
            let key = self.key(&link, self.digests[place]);
            if index.has.insert((key, class)) {
                index.classes.entry(key).or_default().push(class);
            }
        }
        Some(())
    }

    fn key(&mut self, link: &Alternative, digest: u32) -> Key {
        Key { class: self.class(link.record), input: link.input, selector: link.selector, digest }
    }

    /// The first record of a record's class: one of main's, if there is one.
    fn class(&mut self, record: u32) -> u32 {
        let mut record = record as usize;
        while self.above[record] as usize != record {
            self.above[record] = self.above[self.above[record] as usize];
            record = self.above[record] as usize;
        }
        short(record)
    }

    fn unite(&mut self, a: u32, b: u32) {
        let (a, b) = (self.class(a), self.class(b));
        let (first, other) = (a.min(b) as usize, a.max(b) as usize);
        self.inputs[first] = self.inputs[first].min(self.inputs[other]);
        self.above[other] = short(first);
    }

    fn spend(&mut self, work: usize) -> Option<()> {
        self.work += work;
        (self.work <= MOST_WORK).then_some(())
    }

    pub(super) fn class_of_main(&mut self, place: usize) -> u32 {
        self.class(short(place))
    }

    pub(super) fn class_of_foreign(&mut self, place: usize) -> u32 {
        self.class(short(self.main.records.len() + place))
    }
}

/// What becomes of a foreign record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Refused,
    /// It is this record of main's.
    Main(usize),
    /// It is new: its place among what is new.
    New(usize),
}

/// The choice of what is admitted.
struct Admission<'a> {
    matching: Matching<'a>,
    /// For each class of main's the record of main's that stands for it: one with a result, and used last.
    stands_for: HashMap<u32, usize>,
    /// For each foreign record the same one of main's.
    same: Vec<Option<usize>>,
    /// For each digest main's records that were made from others.
    made: HashMap<u32, Vec<usize>>,
    /// Classes of which some record is refused.
    refused: HashSet<u32>,
    fates: Vec<Fate>,
    /// Their links lead to main's records, and behind those to what is new.
    new: Vec<Record>,
}

impl<'a> Admission<'a> {
    fn new(mut matching: Matching<'a>) -> Self {
        let (main, foreign) = (matching.main, matching.foreign);
        let worth = |place: usize| {
            let record = &main.records[place];
            (record.has_result(), record.last_used(), Reverse(place))
        };
        let mut stands_for = HashMap::new();
        let mut made: HashMap<u32, Vec<usize>> = HashMap::new();
        for place in 0..main.records.len() {
            let best = stands_for.entry(matching.class(short(place))).or_insert(place);
            if worth(place) > worth(*best) {
                *best = place;
            }
            if !main.records[place].links.is_empty() {
                made.entry(matching.digests[place]).or_default().push(place);
            }
        }
        let same = places_in(&foreign.records, &main.records, Record::order);
        let fates = vec![Fate::Refused; foreign.records.len()];
        Self { matching, stands_for, same, made, refused: HashSet::new(), fates, new: Vec::new() }
    }

    fn make(mut self) -> Option<Cache> {
        let records = &self.matching.foreign.records;
        let order =
            needed_first(records.len(), |record, nth| records[record].links.get(nth).map(|l| l.record));
        let order = order.ok()?;
        // What matches is one to BuildKit, so all of it is refused, or nothing: otherwise what was made from
        // one part would come along the next time, as if it were made from the other.
        loop {
            let before = self.refused.len();
            self.new.clear();
            for &place in &order {
                self.fates[place] = self.fate(place)?;
                if self.fates[place] == Fate::Refused {
                    self.refused.insert(self.matching.class_of_foreign(place));
                }
            }
            if self.refused.len() == before {
                return self.cache();
            }
        }
    }

    fn fate(&mut self, place: usize) -> Option<Fate> {
        self.matching.spend(1)?;
        let class = self.matching.class_of_foreign(place);
        if let Some(&best) = self.stands_for.get(&class) {
            return Some(Fate::Main(self.same[place].unwrap_or(best)));
        }
        if self.refused.contains(&class) {
            return Some(Fate::Refused);
        }
        let record = &self.matching.foreign.records[place];
        if !is_digest(&record.digest) {
            return Some(Fate::Refused);
        }
        let first = self.matching.main.records.len();
        let mut links: Vec<Link> = Vec::new();
        for link in &record.links {
            let record = match self.fates[link.record] {
                Fate::Main(place) => place,
                Fate::New(place) => first + place,
                Fate::Refused => continue,
            };
            if link.selector.is_empty() || is_digest(&link.selector) {
                links.push(Link { record, ..link.clone() });
            }
        }
        let doubtful = self.doubtful(place, &links)?;
        let mut is_doubtful = doubtful.iter();
        links.retain(|_| is_doubtful.next() != Some(&true));
        let inputs = record.links.last().map_or(0, |link| link.input + 1);
        if links.chunk_by(|a, b| a.input == b.input).count() < inputs {
            return Some(Fate::Refused);
        }
        self.new.push(Record { links, ..record.clone() });
        Some(Fate::New(self.new.len() - 1))
    }

    /// Which alternatives of a new record could lead to it in place of a record of main's that it does not match.
    ///
    /// BuildKit knows some inputs by their content, too: by a key that was made from nothing, without a
    /// selector. It asks for that key only if it finds no record by the others. So where main's record names
    /// the content, and the new one a record of main's that may have this content, the new one would be found
    /// before main's.
    fn doubtful(&mut self, place: usize, links: &[Link]) -> Option<Vec<bool>> {
        let mut doubtful = vec![false; links.len()];
        let main = self.matching.main;
        let first = main.records.len();
        let is_main = |link: &&Link| link.record < first;
        let mut inputs = links.chunk_by(|a, b| a.input == b.input);
        if links.is_empty() || !inputs.all(|links| links.iter().any(|link| is_main(&link))) {
            return Some(doubtful);
        }
        let keys: HashSet<(usize, &Text, u32)> = links
            .iter()
            .filter(is_main)
            .map(|link| (link.input, &link.selector, self.matching.class(short(link.record))))
            .collect();
        // What main has the result of is no content.
        let is_content = |link: &Link| {
            let record = &main.records[link.record];
            link.selector.is_empty() && record.links.is_empty() && !record.has_result()
        };
        let digest = self.matching.digests[first + place];
        for nth in 0..self.made.get(&digest).map_or(0, Vec::len) {
            let Some(own) = self.made.get(&digest).and_then(|made| main.records.get(*made.get(nth)?)) else {
                break;
            };
            self.matching.spend(own.links.len() + links.len())?;
            let mut unshared = Vec::new();
            for theirs in own.links.chunk_by(|a, b| a.input == b.input) {
                let Some(input) = theirs.first().map(|link| link.input) else { continue };
                let is_shared = theirs.iter().any(|link| {
                    keys.contains(&(input, &link.selector, self.matching.class(short(link.record))))
                });
                if !is_shared {
                    unshared.push((input, theirs.iter().any(is_content)));
                }
            }
            // What a step runs on is its first input, and never known by its content.
            let is_ground = |link: &Link| link.input == 0 && link.selector.is_empty();
            let is_asked_for = |link: &Link| is_main(&link) && !is_ground(link) && !is_content(link);
            let may_meet = unshared.iter().all(|&(input, has_content)| {
                let mut ours = links.iter().filter(|link| link.input == input).peekable();
                ours.peek().is_none() || has_content && ours.any(is_asked_for)
            });
            if may_meet {
                for (link, doubtful) in links.iter().zip(&mut doubtful) {
                    *doubtful |= is_asked_for(link) && unshared.iter().any(|(input, _)| *input == link.input);
                }
            }
        }
        Some(doubtful)
    }

    /// What is new, with what it was made from.
    fn cache(self) -> Option<Cache> {
        let Self { matching: Matching { main, foreign, .. }, mut new, .. } = self;
        let mut places = vec![usize::MAX; main.records.len() + new.len()];
        let mut open: Vec<usize> = Vec::new();
        let is_main = |record: &usize| *record < main.records.len();
        open.extend(new.iter().flat_map(|record| &record.links).map(|link| link.record).filter(is_main));
        let mut records = Vec::new();
        while let Some(place) = open.pop() {
            if places[place] == usize::MAX {
                places[place] = records.len();
                let record = &main.records[place];
                open.extend(record.links.iter().map(|link| link.record));
                records.push(Record {
                    results: Vec::new(),
                    chains: Vec::new(),
                    used: None,
                    extra: Extra::new(),
                    ..record.clone()
                });
            }
        }
        for nth in 0..new.len() {
            places[main.records.len() + nth] = records.len() + nth;
        }
        let is_impostor = main.impostors(foreign);
        let is_lost = |layer: &usize| is_impostor[foreign.layers[*layer].blob];
        let ancestors =
            |layer| std::iter::successors(Some(layer), |&layer: &usize| foreign.layers[layer].parent);
        for record in &mut new {
            record.results.retain(|made| !ancestors(made.layers).any(|layer| is_lost(&layer)));
            record.chains.retain(|made| !made.layers.iter().any(is_lost));
        }
        records.append(&mut new);
        for link in records.iter_mut().flat_map(|record| &mut record.links) {
            link.record = places[link.record];
        }
        identify(&mut records).ok()?;

        let mut blobs = foreign.blobs.clone();
        for blob in &mut blobs {
            if let Ok(own) = main.blobs.binary_search_by_key(&blob.digest, |own| own.digest) {
                blob.descriptor.clone_from(&main.blobs[own].descriptor);
            }
        }
        let own: HashSet<Id> = main.layers.iter().map(|layer| layer.id).collect();
        let mut layers = foreign.layers.clone();
        layers.iter_mut().filter(|layer| own.contains(&layer.id)).for_each(|layer| layer.extra.clear());
        Some(Cache { blobs, layers, records, extra: Extra::new() }.canonical())
    }
}

fn is_digest(text: &Text) -> bool {
    matches!(text, Text::Sha(_))
}

/// A place in a list whose bytes are fewer than `u32` can count.
fn short(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}
