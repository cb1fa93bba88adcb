//! BuildKit's lookup, read from its source and from nothing of Stoker's: what a build finds in a cache that it imports.
//!
//! Importing is `cache/remotecache/v1/{parse,chains,cachestorage}.go`, looking up `solver/{cachemanager,edge}.go`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::raw::{Config, NO_PARENT};
use crate::names::Digest;

/// How records become the items that a build looks through.
#[derive(Debug, Clone, Copy)]
pub(super) enum Version {
    /// 0.13: each record is one, and of several results the last counts.
    Plain,
    /// 0.25 and newer: a record that shares an alternative of every input with earlier ones is one with these.
    Joined,
}

/// The blobs of a result, the lowest first, and when it was made.
pub(super) type Outcome = (Vec<Digest>, Timestamp);

/// What leads from an item to others: input, selector, and the digest of what was made.
type Link = (usize, String, String);

#[derive(Debug, Default)]
struct Item {
    results: Vec<Outcome>,
    children: BTreeMap<Link, BTreeSet<usize>>,
    /// For each input the items, with the selectors, that lead here.
    parents: Vec<BTreeSet<(usize, String)>>,
    digest: String,
}

/// An imported cache.
#[derive(Debug, Default)]
pub(super) struct Imported {
    items: Vec<Item>,
    roots: BTreeMap<String, usize>,
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vertex {
    pub(super) digest: String,
    pub(super) inputs: Vec<Need>,
}

/// What a step is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) vertex: usize,
    pub(super) selector: String,
    /// The key of the files that are read, where the step is known by these as well.
    pub(super) content: Option<String>,
}

/// What a step is found under, and the result that the build takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) keys: BTreeSet<usize>,
    pub(super) result: Option<Vec<Digest>>,
}

/// When the keys of contents are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asks {
    /// Only where no other key leads to a result: first for inputs that led to no record, then for all.
    Late,
    /// Always: whatever order a scheduler takes, it finds no more than this.
    Always,
}

impl Imported {
    pub(super) fn of(config: &Config, version: Version) -> Self {
        let mut imported = Self::default();
        let mut places = vec![None; config.records.len()];
        for record in 0..config.records.len() {
            imported.parse(config, record, version, &mut places);
        }
        imported
    }

    fn parse(
        &mut self,
        config: &Config,
        index: usize,
        version: Version,
        places: &mut [Option<usize>],
    ) -> usize {
        if let Some(place) = places[index] {
            return place;
        }
        let record = &config.records[index];
        let mut deps: Vec<Vec<(usize, String)>> = Vec::new();
        for input in &record.inputs {
            let mut alternatives = Vec::new();
            for link in input {
                let from = self.parse(config, usize::try_from(link.link).unwrap(), version, places);
                alternatives.push((from, link.selector.clone()));
            }
            deps.push(alternatives);
        }
        let chain = |top: i64| {
            let mut blobs = Vec::new();
            let mut next = top;
            while next != NO_PARENT {
                let layer = &config.layers[usize::try_from(next).unwrap()];
                blobs.insert(0, layer.blob.clone());
                next = layer.parent;
            }
            blobs
        };
        let mut results: Vec<Outcome> =
            record.results.iter().map(|result| (chain(result.layer), result.created_at)).collect();
        for result in &record.chains {
            let blob = |&layer: &i64| config.layers[usize::try_from(layer).unwrap()].blob.clone();
            results.push((result.layers.iter().map(blob).collect(), result.created_at));
        }
        let place = match version {
            Version::Plain => self.add(&record.digest, &deps, results.pop().into_iter().collect()),
            Version::Joined => self.join(&record.digest, deps, results),
        };
        places[index] = Some(place);
        place
    }

    fn new_item(&mut self, digest: &str, inputs: usize) -> usize {
        let parents = vec![BTreeSet::new(); inputs];
        self.items.push(Item { digest: digest.to_owned(), parents, ..Item::default() });
        self.items.len() - 1
    }

    /// A record is an item of its own.
    fn add(&mut self, digest: &str, deps: &[Vec<(usize, String)>], results: Vec<Outcome>) -> usize {
        let place = self.new_item(digest, deps.len());
        self.items[place].results = results;
        if deps.is_empty() {
            self.roots.insert(digest.to_owned(), place);
        }
        self.link(place, deps);
        place
    }

    fn link(&mut self, place: usize, deps: &[Vec<(usize, String)>]) {
        let digest = self.items[place].digest.clone();
        for (input, alternatives) in deps.iter().enumerate() {
            for (from, selector) in alternatives {
                let link = (input, selector.clone(), digest.clone());
                self.items[*from].children.entry(link).or_default().insert(place);
                let parents = &mut self.items[place].parents;
                parents.resize(parents.len().max(input + 1), BTreeSet::new());
                parents[input].insert((*from, selector.clone()));
            }
        }
    }

    /// `CacheChains.Add`.
    fn join(&mut self, digest: &str, mut deps: Vec<Vec<(usize, String)>>, results: Vec<Outcome>) -> usize {
        if deps.is_empty() {
            let known = self.roots.get(digest).copied();
            let place = known.unwrap_or_else(|| self.new_item(digest, 0));
            self.add_results(place, results);
            self.roots.insert(digest.to_owned(), place);
            return place;
        }
        let candidates = |input: usize, alternatives: &Vec<(usize, String)>| -> BTreeSet<usize> {
            let children = alternatives.iter().filter_map(|(from, selector)| {
                self.items[*from].children.get(&(input, selector.clone(), digest.to_owned()))
            });
            children.flatten().copied().collect()
        };
        let all = deps.iter().enumerate().map(|(input, alternatives)| candidates(input, alternatives));
        let matching = all.reduce(|a, b| a.intersection(&b).copied().collect()).unwrap();
        let Some(&place) = matching.first() else {
            let place = self.new_item(digest, deps.len());
            self.add_results(place, results);
            self.link(place, &deps);
            return place;
        };
        for &other in matching.iter().filter(|other| **other != place) {
            for (link, children) in self.items[other].children.clone() {
                for child in children {
                    self.items[place].children.entry(link.clone()).or_default().insert(child);
                    for parents in &mut self.items[child].parents {
                        let moved = std::mem::take(parents);
                        *parents = moved
                            .into_iter()
                            .map(|(from, selector)| (if from == other { place } else { from }, selector))
                            .collect();
                    }
                }
            }
            let results = self.items[other].results.clone();
            self.add_results(place, results);
        }
        self.add_results(place, results);
        let below = self.below(place);
        for alternatives in &mut deps {
            alternatives.retain(|(from, _)| !below.contains(from));
        }
        self.link(place, &deps);
        place
    }

    fn add_results(&mut self, place: usize, more: Vec<Outcome>) {
        let results = &mut self.items[place].results;
        for (blobs, at) in more {
            // So it is: of two that were made at once and have as many layers, the first stays.
            if !results.iter().any(|(known, time)| *time == at && known.len() == blobs.len()) {
                results.push((blobs, at));
            }
        }
    }

    /// An item and all that was made from it.
    fn below(&self, place: usize) -> BTreeSet<usize> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![place]);
        while let Some(place) = open.pop() {
            if seen.insert(place) {
                open.extend(self.items[place].children.values().flatten());
            }
        }
        seen
    }

    /// `WalkLinks`, of what storage holds: items are in it as far as others name them for parents.
    fn links(&self, from: usize, link: &Link) -> BTreeSet<usize> {
        let children = self.items[from].children.get(link).into_iter().flatten().copied();
        let is_stored = |child: &usize| {
            let parents = self.items[*child].parents.get(link.0);
            parents.is_some_and(|parents| parents.contains(&(from, link.1.clone())))
        };
        children.filter(is_stored).collect()
    }

    /// What each of some steps is found under, the steps in an order in which each comes after those it
    /// needs. `contents` answers which content keys a build may learn of an input, after what was found for
    /// the steps before.
    pub(super) fn look_up(
        &self,
        vertices: &[Vertex],
        asks: Asks,
        contents: impl Fn(&[Found], &Need) -> Vec<String>,
    ) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        for vertex in vertices {
            if vertex.inputs.is_empty() {
                let keys: BTreeSet<usize> = self.roots.get(&vertex.digest).copied().into_iter().collect();
                let result = self.newest(&keys);
                found.push(Found { keys, result });
                continue;
            }
            let mut maps: Vec<BTreeSet<usize>> = Vec::new();
            for (input, need) in vertex.inputs.iter().enumerate() {
                let link = (input, need.selector.clone(), vertex.digest.clone());
                maps.push(found[need.vertex].keys.iter().flat_map(|&key| self.links(key, &link)).collect());
            }
            let mut by_content: Vec<BTreeSet<usize>> = Vec::new();
            for (input, need) in vertex.inputs.iter().enumerate() {
                let link = (input, String::new(), vertex.digest.clone());
                let roots =
                    contents(&found, need).into_iter().filter_map(|key| self.roots.get(&key).copied());
                by_content.push(roots.flat_map(|root| self.links(root, &link)).collect());
            }
            let met = |maps: &[BTreeSet<usize>]| {
                maps.iter().cloned().reduce(|a, b| a.intersection(&b).copied().collect()).unwrap()
            };
            let mut keys = met(&maps);
            let phases: [fn(&BTreeSet<usize>) -> bool; 2] = match asks {
                Asks::Late => [BTreeSet::is_empty, |_| true],
                Asks::Always => [|_| true, |_| true],
            };
            for phase in phases {
                if matches!(asks, Asks::Late) && self.newest(&keys).is_some() {
                    break;
                }
                for (map, more) in maps.iter_mut().zip(&by_content) {
                    if phase(map) {
                        map.extend(more);
                    }
                }
                keys = met(&maps);
            }
            let result = self.newest(&keys);
            found.push(Found { keys, result });
        }
        found
    }

    fn newest(&self, keys: &BTreeSet<usize>) -> Option<Vec<Digest>> {
        let results = keys.iter().flat_map(|&key| &self.items[key].results);
        results.max_by_key(|(_, at)| *at).map(|(blobs, _)| blobs.clone())
    }
}
