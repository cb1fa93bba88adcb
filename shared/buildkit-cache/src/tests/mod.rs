//! The algebra's laws on generated graphs, its answers to hostile ones, and real exports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

mod admit;
mod buildkit;
mod probation;
mod raw;

use raw::{ChainResult, Config, Input, Layer, LayerResult, NO_PARENT, Record};

use super::canonical::CanonicalConfig;
use super::graph::SINK;
use super::json::to_json;
use super::*;
use crate::names::Digest;

// Generated graphs draw from few blobs, digests and times, so that any two have much in common.

/// A cache as a registry would hold it, before anything of Stoker's has touched it.
#[derive(Debug, Clone)]
struct Export {
    config: Config,
    descriptors: Vec<Descriptor>,
}

impl Export {
    fn cache(&self) -> Cache {
        let config = serde_json::to_vec(&self.config).unwrap();
        Cache::parse_within(&manifest_of(&config, self.descriptors.clone()), &config, usize::MAX).unwrap()
    }
}

fn blob(n: u8) -> Digest {
    Digest::of(&[n])
}

fn descriptor(n: u8, variant: u8) -> Descriptor {
    let annotations = BTreeMap::from([("buildkit/createdat".to_owned(), format!("day {variant}"))]);
    let extra = extra(variant);
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
    Descriptor { media_type, digest: blob(n), size: bytes(&blob(n)), annotations, extra }
}

/// The size that generated descriptors give a blob.
fn bytes(blob: &Digest) -> u64 {
    blob.to_string().bytes().map(u64::from).sum()
}

fn extra(variant: u8) -> Extra {
    match variant {
        0 => Extra::new(),
        1 => Extra::from([("seen".to_owned(), json!(["a", 1]))]),
        _ => Extra::from([("seen".to_owned(), json!({"b": null})), ("more".to_owned(), json!("x"))]),
    }
}

fn moment(n: u8) -> Timestamp {
    Timestamp::new(1_795_000_000 + i64::from(n), i32::from(n) + 1).unwrap()
}

/// Marks that generated caches name by their places.
fn raw_marks() -> Vec<raw::Mark> {
    let mark =
        |(commit, time): (&str, u8)| raw::Mark { commit: commit.repeat(40), at: moment(time).as_second() };
    [("c", 0), ("a", 1), ("b", 1)].map(mark).to_vec()
}

fn any_mark() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![2 => Just(None), 1 => (0..3_usize).prop_map(Some)]
}

fn nth(index: Index, len: usize) -> i64 {
    i64::try_from(index.index(len)).unwrap()
}

fn any_layers() -> impl Strategy<Value = Vec<Layer>> {
    vec((0..5_u8, option::of(any::<Index>()), 0..3_u8), 1..8).prop_map(|layers| {
        let layer = |(place, (blob_number, parent, variant)): (usize, (u8, Option<Index>, u8))| Layer {
            blob: blob(blob_number),
            parent: parent.filter(|_| place > 0).map_or(NO_PARENT, |parent| nth(parent, place)),
            extra: extra(variant),
        };
        layers.into_iter().enumerate().map(layer).collect()
    })
}

fn any_records(layers: usize) -> impl Strategy<Value = Vec<Record>> {
    let input = vec((prop_oneof!["", "", "s"], any::<Index>()), 1..3);
    let results = vec((any::<Index>(), 0..3_u8, 0..3_u8, any_mark()), 0..3);
    let chains = vec((vec(any::<Index>(), 0..3), 0..3_u8, any_mark()), 0..2);
    let used = option::of(0..3_u8);
    vec((0..3_u8, vec(input, 0..3), results, chains, (used, 0..3_u8, any_mark())), 0..7).prop_map(
        move |records| {
            let mut made = Vec::new();
            for (place, (digest, inputs, results, chains, (used, variant, probation))) in
                records.into_iter().enumerate()
            {
                let input =
                    |(selector, link)| Input { selector, link: nth(link, place), extra: Extra::new() };
                let inputs = if place == 0 { Vec::new() } else { inputs };
                made.push(Record {
                    digest: format!("sha256:{digest}"),
                    inputs: inputs.into_iter().map(|links| links.into_iter().map(input).collect()).collect(),
                    results: results
                        .into_iter()
                        .map(|(layer, time, variant, probation)| LayerResult {
                            layer: nth(layer, layers),
                            created_at: moment(time),
                            probation,
                            extra: extra(variant),
                        })
                        .collect(),
                    chains: chains
                        .into_iter()
                        .map(|(chain, time, probation)| ChainResult {
                            layers: chain.into_iter().map(|layer| nth(layer, layers)).collect(),
                            created_at: moment(time),
                            probation,
                            extra: Extra::new(),
                        })
                        .collect(),
                    used: used.map(|time| moment(time).as_second()),
                    probation,
                    extra: extra(variant),
                });
            }
            made
        },
    )
}

fn any_export() -> impl Strategy<Value = Export> {
    let descriptors =
        vec(0..3_u8, 5).prop_map(|variants| (0..5).zip(variants).map(|(n, v)| descriptor(n, v)).collect());
    any_layers()
        .prop_flat_map(|layers| (any_records(layers.len()), Just(layers)))
        .prop_flat_map(move |(records, layers)| {
            let used = option::of(0..3_u8).prop_map(|used| used.map(|time| moment(time).as_second()));
            let config = used.prop_map(move |used| Config {
                layers: layers.clone(),
                records: records.clone(),
                used,
                probation: raw_marks(),
                extra: Extra::new(),
            });
            (config, descriptors.clone(), 0..3_u8)
        })
        .prop_map(|(mut config, descriptors, variant)| {
            config.extra = extra(variant);
            Export { config, descriptors }
        })
}

/// Moves each entry to the place that its priority gives it; answers old places to new ones as well.
fn permuted<T>(entries: Vec<T>, priorities: &[u32]) -> (Vec<T>, Vec<i64>) {
    let mut tagged: Vec<_> = priorities.iter().zip(entries.into_iter().enumerate()).collect();
    tagged.sort_by_key(|(priority, _)| **priority);
    let mut places = vec![0; tagged.len()];
    for (new, (_, (old, _))) in tagged.iter().enumerate() {
        places[*old] = i64::try_from(new).unwrap();
    }
    (tagged.into_iter().map(|(_, (_, entry))| entry).collect(), places)
}

/// The same export in another order.
fn shuffled(export: &Export, priorities: &[u32]) -> Export {
    let Export { mut config, mut descriptors } = export.clone();
    let layer_places;
    let record_places;
    (config.layers, layer_places) = permuted(config.layers, priorities);
    (config.records, record_places) = permuted(config.records, priorities);
    let to = |places: &[i64], old: &mut i64| *old = places[usize::try_from(*old).unwrap()];
    config.layers.iter_mut().filter(|l| l.parent != NO_PARENT).for_each(|l| to(&layer_places, &mut l.parent));
    for record in &mut config.records {
        record.results.iter_mut().for_each(|result| to(&layer_places, &mut result.layer));
        record.chains.iter_mut().flat_map(|c| &mut c.layers).for_each(|layer| to(&layer_places, layer));
        record.results.reverse();
        record.chains.reverse();
        for input in &mut record.inputs {
            for link in &mut *input {
                to(&record_places, &mut link.link);
            }
            input.reverse();
        }
    }
    descriptors.reverse();
    Export { config, descriptors }
}

// A second, naive implementation of identity, in text and by recursion, to hold the real one against.

type Model = BTreeMap<String, BTreeMap<String, Timestamp>>;

fn layer(config: &Config, index: i64) -> String {
    if index == NO_PARENT {
        return String::new();
    }
    let Layer { blob, parent, .. } = &config.layers[usize::try_from(index).unwrap()];
    format!("{blob} on ({})", layer(config, *parent))
}

fn record(config: &Config, index: usize) -> String {
    let Record { digest, inputs, .. } = &config.records[index];
    let link = |link: &Input| (link.selector.clone(), needed(config, link));
    let inputs: Vec<BTreeSet<_>> = inputs.iter().map(|links| links.iter().map(link).collect()).collect();
    format!("{digest} of {inputs:?}")
}

fn needed(config: &Config, link: &Input) -> String {
    record(config, usize::try_from(link.link).unwrap())
}

fn model(config: &Config) -> Model {
    let mut model = Model::new();
    for (index, entry) in config.records.iter().enumerate() {
        let results = model.entry(record(config, index)).or_default();
        let one = entry.results.iter().map(|r| (layer(config, r.layer), r.created_at));
        let many = entry.chains.iter().map(|c| {
            let layers: Vec<_> = c.layers.iter().map(|&index| layer(config, index)).collect();
            (format!("chain {layers:?}"), c.created_at)
        });
        for (result, at) in one.chain(many) {
            let earliest = results.entry(result).or_insert(at);
            *earliest = at.min(*earliest);
        }
    }
    model
}

/// For each layer that is on top of a result, the step.
fn steps(config: &Config) -> BTreeMap<String, Step> {
    let mut uses = BTreeMap::new();
    for (index, Record { used, .. }) in config.records.iter().enumerate() {
        let latest = uses.entry(record(config, index)).or_insert(None);
        let used = used.or(config.used);
        *latest = used.map(|used| Timestamp::from_second(used).unwrap()).max(*latest);
    }
    let mut keys = BTreeSet::new();
    let mut steps = BTreeMap::new();
    for (index, entry) in config.records.iter().enumerate() {
        let one = entry.results.iter().map(|result| (result.layer, result.created_at));
        let many = entry.chains.iter().filter_map(|chain| Some((*chain.layers.last()?, chain.created_at)));
        for (top, at) in one.chain(many) {
            let blob = config.layers[usize::try_from(top).unwrap()].blob.clone();
            let new = Step { bytes: bytes(&blob), blob, made_at: Some(at), used_at: None, keys: 0 };
            let step: &mut Step = steps.entry(layer(config, top)).or_insert(new);
            let key = record(config, index);
            step.made_at = step.made_at.min(Some(at));
            step.used_at = step.used_at.max(uses[&key]);
            step.keys += usize::from(keys.insert((layer(config, top), key)));
        }
    }
    steps
}

/// In an order that says nothing of identity.
fn sorted<'a>(steps: impl IntoIterator<Item = &'a Step>) -> Vec<String> {
    let mut all: Vec<_> = steps.into_iter().map(|step| format!("{step:?}")).collect();
    all.sort_unstable();
    all
}

/// What a cache has of its model that another has not.
fn side(ours: &Export, theirs: &Export) -> Side {
    let (known, known_steps) = (model(&theirs.config), steps(&theirs.config));
    let mut own: Vec<_> = steps(&ours.config).into_iter().collect();
    own.retain(|(name, _)| !known_steps.contains_key(name));
    let mut side = Side { steps: own.into_iter().map(|(_, step)| step).collect(), ..Side::default() };
    for (name, results) in model(&ours.config) {
        match known.get(&name) {
            Some(others) => side.results += results.keys().filter(|name| !others.contains_key(*name)).count(),
            None => side.records += 1,
        }
    }
    let mut seen = BTreeSet::new();
    for (index, entry) in ours.config.records.iter().enumerate() {
        let name = record(&ours.config, index);
        if !known.contains_key(&name) && seen.insert(name) {
            let mut needs = entry.inputs.iter().flatten().map(|link| needed(&ours.config, link)).peekable();
            match needs.peek() {
                None => side.sources += 1,
                Some(_) => side.instructions += usize::from(needs.all(|need| known.contains_key(&need))),
            }
        }
    }
    side
}

fn union(mut a: Model, b: Model) -> Model {
    for (record, results) in b {
        let ours = a.entry(record).or_default();
        for (result, at) in results {
            let earliest = ours.entry(result).or_insert(at);
            *earliest = at.min(*earliest);
        }
    }
    a
}

fn written(cache: &Cache) -> Serialised {
    cache.serialise(BTreeMap::new())
}

fn read(written: &Serialised) -> (Config, Cache) {
    let Kind::Cache(manifest) = classify(&written.manifest) else { panic!("not a cache") };
    let mut config: Config = serde_json::from_slice(&written.config).unwrap();
    // It is no record of the cache.
    config.records.pop_if(|last| last.digest == SINK);
    // What is said once for all that do not say it themselves.
    let common = config.used.take();
    config.records.iter_mut().for_each(|record| record.used = record.used.or(common));
    (config, Cache::parse(&manifest, &written.config).unwrap())
}

/// Limits between those that nothing fits into but an empty cache, and those that all of a cache does.
fn limits(cache: &Cache, (bytes, size): (u64, usize)) -> Limits {
    let sizes = cache.sizes();
    let least = Cache::default().sizes();
    let least = least.config.max(least.manifest);
    let whole = sizes.config.max(sizes.manifest);
    let bytes = (bytes < 90).then_some(sizes.blobs * bytes / 90);
    Limits { bytes, size: least + (whole - least) * size / 100 }
}

fn fits(cache: &Cache, limits: &Limits) -> bool {
    let written = written(cache);
    let bytes: u64 = cache.blobs().map(|blob| blob.size).sum();
    written.size() <= limits.size && limits.bytes.is_none_or(|limit| bytes <= limit)
}

fn mark_needs(cache: &Cache, record: usize, marks: &mut [bool]) {
    if !std::mem::replace(&mut marks[record], true) {
        cache.records[record].links.iter().for_each(|link| mark_needs(cache, link.record, marks));
    }
}

proptest! {
    #[test]
    fn merging_is_a_join(a in any_export(), b in any_export(), c in any_export()) {
        let (a, b, c) = (a.cache(), b.cache(), c.cache());
        let ab = Cache::merge([&a, &b]);
        prop_assert_eq!(&ab, &Cache::merge([&b, &a]));
        prop_assert_eq!(&Cache::merge([&ab, &c]), &Cache::merge([&a, &Cache::merge([&b, &c])]));
        prop_assert_eq!(&Cache::merge([&ab, &c]), &Cache::merge([&c, &b, &a]));
        prop_assert_eq!(&Cache::merge([&a, &a]), &a);
        prop_assert_eq!(&Cache::merge([&ab, &a]), &ab);
        prop_assert_eq!(&Cache::merge([&Cache::default(), &a]), &a);
    }

    #[test]
    fn a_merge_is_the_union_by_identity(a in any_export(), b in any_export()) {
        let merged = Cache::merge([&a.cache(), &b.cache()]);
        let expected = union(model(&a.config), model(&b.config));
        let a_holds_all = a.cache().contains(&merged);
        prop_assert_eq!(merged.records(), expected.len());
        prop_assert!(merged.contains(&a.cache()) && merged.contains(&b.cache()));
        let a = model(&a.config);
        let has_all = expected.iter().all(|(record, results)| {
            a.get(record).is_some_and(|ours| results.keys().all(|result| ours.contains_key(result)))
        });
        prop_assert_eq!(a_holds_all, has_all);
        prop_assert_eq!(model(&read(&written(&merged)).0), expected);
    }

    #[test]
    fn equal_caches_have_equal_bytes(export in any_export(), priorities in vec(any::<u32>(), 8)) {
        let other = shuffled(&export, &priorities);
        prop_assert_eq!(model(&other.config), model(&export.config));
        let bytes = written(&export.cache());
        prop_assert_eq!(&written(&other.cache()), &bytes);
        prop_assert_eq!(&written(&Cache::merge([&export.cache(), &other.cache()])), &bytes);
    }

    #[test]
    fn what_is_written_reads_back(export in any_export(), note in "\\PC{0,20}") {
        let cache = export.cache();
        let annotations = BTreeMap::from([("note".to_owned(), note)]);
        let bytes = cache.serialise(annotations.clone());
        let (config, again) = read(&bytes);
        prop_assert_eq!(&again, &cache);
        prop_assert_eq!(again.serialise(annotations.clone()), bytes.clone());
        let Kind::Cache(manifest) = classify(&bytes.manifest) else { panic!("not a cache") };
        prop_assert_eq!(manifest.annotations, annotations);
        prop_assert_eq!(Digest::of(&bytes.manifest), bytes.manifest_digest);
        // In order of first use.
        let mut used = Vec::new();
        for layer in config.layers {
            if !used.contains(&layer.blob) {
                used.push(layer.blob);
            }
        }
        prop_assert_eq!(manifest.layers.iter().map(|d| d.digest.clone()).collect::<Vec<_>>(), used);
    }

    #[test]
    fn what_is_written_has_one_leaf(a in any_export(), b in any_export()) {
        let cache = Cache::merge([&a.cache(), &b.cache()]);
        let written = written(&cache);
        let config: Config = serde_json::from_slice(&written.config).unwrap();
        let linked: BTreeSet<i64> =
            config.records.iter().flat_map(|r| &r.inputs).flatten().map(|input| input.link).collect();
        let is_leaf = |place: &usize| !linked.contains(&i64::try_from(*place).unwrap());
        let leaves: Vec<usize> = (0..config.records.len()).filter(is_leaf).collect();
        prop_assert!(leaves.len() <= 1);
        let has_sink = config.records.last().is_some_and(|last| last.digest == SINK && last.results.is_empty());
        prop_assert_eq!(has_sink, cache.leaves().len() > 1);
        prop_assert!(!cache.loses_links_with(&written.config));
        let ours = read(&written).1;
        let bare = serde_json::to_vec(&Config { records: config.records[..cache.records()].to_vec(),
            ..config }).unwrap();
        prop_assert_eq!(ours.loses_links_with(&bare), has_sink);
    }

    #[test]
    fn hit_rate_counts_distinct_layers(export in any_export(), start in 0..4_u8) {
        let steps = steps(&export.config);
        let hit_rate = export.cache().built_since(moment(start));
        prop_assert_eq!(hit_rate.steps, steps.len());
        prop_assert_eq!(hit_rate.reused, steps.values().filter(|step| step.made_at < Some(moment(start))).count());
        let bytes: u64 = export.cache().blobs().map(|blob| blob.size).sum();
        prop_assert!(hit_rate.reused_bytes + hit_rate.built_bytes <= bytes);
    }

    #[test]
    fn steps_and_sizes_are_the_models(export in any_export()) {
        let (config, cache) = (&export.config, export.cache());
        prop_assert_eq!(sorted(cache.steps().values()), sorted(steps(config).values()));
        prop_assert_eq!(cache.records(), model(config).len());
        let (mut layers, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for entry in &config.records {
            let one = entry.results.iter().map(|result| result.layer);
            for mut index in one.chain(entry.chains.iter().flat_map(|chain| chain.layers.clone())) {
                while index != NO_PARENT {
                    let Layer { blob, parent, .. } = &config.layers[usize::try_from(index).unwrap()];
                    layers.insert(layer(config, index));
                    blobs.insert(blob.clone());
                    index = *parent;
                }
            }
        }
        prop_assert_eq!(cache.layers(), layers.len());
        prop_assert_eq!(cache.blobs().map(|blob| blob.digest.clone()).collect::<BTreeSet<_>>(), blobs.clone());
        prop_assert_eq!(cache.blob_bytes(), blobs.iter().map(bytes).sum::<u64>());
    }

    #[test]
    fn a_diff_is_the_models(a_export in any_export(), b_export in any_export()) {
        let (a, b) = (a_export.cache(), b_export.cache());
        let Diff { ours, theirs } = a.diff(&b);
        for (side, expected) in [(&ours, side(&a_export, &b_export)), (&theirs, side(&b_export, &a_export))] {
            prop_assert!(side.steps.is_sorted_by_key(|step| std::cmp::Reverse(step.bytes)));
            prop_assert_eq!(sorted(&side.steps), sorted(&expected.steps));
            prop_assert_eq!(side, &Side { steps: side.steps.clone(), ..expected });
        }
        prop_assert_eq!((ours.is_empty(), theirs.is_empty()), (b.contains(&a), a.contains(&b)));
        prop_assert_eq!(a.diff(&b).is_empty(), a.contains(&b) && b.contains(&a));
        prop_assert_eq!(b.diff(&a), Diff { ours: theirs.clone(), theirs: ours.clone() });
        // A step has one identity in every cache.
        let both: BTreeSet<_> = a.steps().into_keys().filter(|id| b.steps().contains_key(id)).collect();
        prop_assert_eq!(a.steps().len(), both.len() + ours.steps.len());
        prop_assert_eq!(b.steps().len(), both.len() + theirs.steps.len());
        let merged = Cache::merge([&a, &b]);
        let ids: BTreeSet<_> = a.steps().into_keys().chain(b.steps().into_keys()).collect();
        prop_assert_eq!(merged.steps().into_keys().collect::<BTreeSet<_>>(), ids);
        let added = a.diff(&merged);
        prop_assert_eq!(added.ours, Side::default());
        prop_assert_eq!((added.theirs.records, added.theirs.results), (theirs.records, theirs.results));
    }

    #[test]
    fn a_use_is_joined_by_the_latest(a in any_export(), b in any_export(), times in (0..9_u8, 0..9_u8)) {
        let (a, b) = (a.cache(), b.cache());
        let (early, late) = (moment(times.0.min(times.1)), moment(times.0.max(times.1)));
        prop_assert_eq!(Cache::merge([&a, &b]).used_at(early), Cache::merge([&a.used_at(early), &b.used_at(early)]));
        prop_assert_eq!(Cache::merge([&a.used_at(early), &a.used_at(late)]), a.used_at(late));
        prop_assert_eq!(a.used_at(late).used_at(early), a.used_at(early));
        prop_assert!(a.contains(&a.used_at(late)) && a.used_at(early).contains(&a));
        prop_assert_eq!(read(&written(&a.used_at(late))).1, a.used_at(late));
        let uses = read(&written(&Cache::merge([&a.used_at(early), &b.used_at(late)]))).0;
        for record in &b.records {
            let digest = record.digest.to_string();
            prop_assert!(uses.records.iter().any(|r| r.digest == digest && r.used == Some(late.as_second())));
        }
    }

    #[test]
    fn sizes_are_those_of_what_is_written(export in any_export()) {
        let cache = export.cache();
        let (written, sizes) = (written(&cache), cache.sizes());
        prop_assert_eq!((sizes.config, sizes.manifest), (written.config.len(), written.manifest.len()));
        prop_assert_eq!(sizes.blobs, cache.blobs().map(|blob| blob.size).sum::<u64>());
    }

    #[test]
    fn a_pruned_cache_is_within_limits(a in any_export(), b in any_export(), share in (0..=100_u64, 0..=100_usize)) {
        let cache = Cache::merge([&a.cache(), &b.cache()]);
        let limits = limits(&cache, share);
        let Pruned { cache: pruned, dropped, bytes_before, bytes_after } = cache.prune(&limits);
        prop_assert_eq!(bytes_before, cache.sizes().blobs);
        prop_assert_eq!(bytes_after, pruned.sizes().blobs);
        prop_assert!(fits(&pruned, &limits));
        prop_assert!(cache.contains(&pruned));
        prop_assert_eq!(pruned.records() + dropped.len(), cache.records());
        // What is written is checked when it is read: nothing that a record needs is missing.
        prop_assert_eq!(&read(&written(&pruned)).1, &pruned);
        let again = pruned.prune(&limits);
        prop_assert_eq!(&again.cache, &pruned);
        prop_assert!(again.dropped.is_empty());
        prop_assert_eq!(&cache.prune(&limits).cache, &pruned);
        prop_assert!(pruned == cache || !fits(&cache, &limits));
    }

    #[test]
    fn pruning_keeps_what_was_used_last(a in any_export(), b in any_export(), share in (0..=100_u64, 0..=100_usize)) {
        let cache = Cache::merge([&a.cache(), &b.cache()]);
        let limits = limits(&cache, share);
        let pruned = cache.prune(&limits).cache;
        let alone = |place: usize| {
            let mut marks = vec![false; cache.records.len()];
            mark_needs(&cache, place, &mut marks);
            cache.only(&marks)
        };
        let is_kept = |place: &usize| pruned.records.iter().any(|r| r.id == cache.records[*place].id);
        let (kept, dropped): (Vec<_>, Vec<_>) = (0..cache.records.len()).partition(is_kept);
        // A record and what is made from it, as far as that has a result and is kept.
        let newest_need = |place: usize| {
            let needs = |&&head: &&usize| {
                let mut marks = vec![false; cache.records.len()];
                mark_needs(&cache, head, &mut marks);
                marks[place] && cache.records[head].has_result()
            };
            kept.iter().filter(needs).filter_map(|&head| cache.records[head].last_used()).max()
        };
        let missed = dropped.iter().filter(|&&place| {
            cache.records[place].has_result() && fits(&alone(place), &limits)
        });
        let latest_missed = missed.filter_map(|&place| cache.records[place].last_used()).max();
        for &place in &kept {
            prop_assert!(newest_need(place) >= latest_missed, "{:?}", cache.records[place]);
        }
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..200)) {
        let is_cache = matches!(classify(&bytes), Kind::Cache(_));
        prop_assert!(!is_cache);
        prop_assert!(Cache::parse(&manifest_of(&bytes, Vec::new()), &bytes).is_err());
    }

    #[test]
    fn mutated_json_does_not_panic(cuts in vec((any::<Index>(), 0..6_usize, "[-0-9\\[\\]{}:,\"a-z]{0,4}"), 1..4)) {
        let mutate = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            for (place, length, new) in &cuts {
                let start = place.index(bytes.len());
                let end = (start + length).min(bytes.len());
                bytes.splice(start..end, new.bytes());
            }
            bytes
        };
        let _ = classify(&mutate(ONE.manifest));
        let Kind::Cache(manifest) = classify(ONE.manifest.as_bytes()) else { panic!("not a cache") };
        let config = mutate(ONE.config);
        if let Ok(cache) = Cache::parse(&manifest_of(&config, described(manifest)), &config) {
            prop_assert_eq!(read(&written(&cache)).1, cache);
        }
    }

    #[test]
    fn wild_indices_do_not_panic(
        parents in vec(-2..6_i64, 0..5),
        records in vec((vec(vec(-1..6_i64, 0..3), 0..3), vec(-1..6_i64, 0..2)), 0..6),
    ) {
        let layers: Vec<_> = parents.iter().map(|parent| json!({"blob": blob(0), "parent": parent})).collect();
        let records: Vec<_> = records.iter().map(|(inputs, results)| json!({
            "inputs": inputs.iter().map(|input| input.iter().map(|link| json!({"link": link})).collect()).collect::<Vec<Vec<_>>>(),
            "layers": results.iter().map(|layer| json!({"layer": layer})).collect::<Vec<_>>(),
        })).collect();
        if let Ok(cache) = parse(&json!({"layers": layers, "records": records})) {
            prop_assert_eq!(read(&written(&cache)).1, cache);
        }
    }
}

fn manifest_of(config: &[u8], layers: Vec<Descriptor>) -> Manifest {
    let config = Descriptor {
        media_type: CONFIG_MEDIA_TYPE.to_owned(),
        digest: Digest::of(config),
        size: config.len() as u64,
        annotations: BTreeMap::new(),
        extra: Extra::new(),
    };
    let media_type = MANIFEST_MEDIA_TYPE.to_owned();
    let layers = layers.into_iter().map(Arc::new).collect();
    Manifest {
        schema_version: 2,
        media_type,
        config,
        layers,
        annotations: BTreeMap::new(),
        extra: Extra::new(),
    }
}

/// Parses a config whose manifest describes only blob 0.
fn parse(config: &serde_json::Value) -> Result<Cache, InvalidCache> {
    let config = config.to_string().into_bytes();
    Cache::parse(&manifest_of(&config, vec![descriptor(0, 0)]), &config)
}

fn error(config: &serde_json::Value) -> InvalidCache {
    parse(config).unwrap_err()
}

/// The sink of these leaves, as it stands in a config.
fn sink(leaves: &[usize]) -> serde_json::Value {
    json!({"digest": SINK, "inputs": leaves.iter().map(|leaf| json!([{"link": leaf}])).collect::<Vec<_>>()})
}

#[test]
fn what_is_no_sink_is_refused_and_sinks_are_ignored_wherever_they_are() {
    let none =
        parse(&json!({"records": [{"digest": "a"}, {"digest": "b", "inputs": [[{"link": 0}]]}]})).unwrap();
    let two = parse(&json!({"records": [{"digest": "a"}, {"digest": "b"}]})).unwrap();
    let first = json!({"records": [sink(&[1, 2]), {"digest": "a"}, {"digest": "b"}, sink(&[])]});
    assert_eq!(parse(&first).unwrap(), two);
    let between =
        json!({"records": [{"digest": "a"}, sink(&[0]), {"digest": "b", "inputs": [[{"link": 0}]]}]});
    assert_eq!(parse(&between).unwrap(), none);
    let linked = json!({"records": [{"digest": SINK}, {"digest": "a", "inputs": [[{"link": 0}]]}]});
    assert!(matches!(error(&linked), InvalidCache::NoSink { record: 0 }));
    let with_result = json!({"layers": [{"blob": blob(0), "parent": -1}],
        "records": [{"digest": "a"}, {"digest": SINK, "layers": [{"createdAt": moment(0)}]}]});
    assert!(matches!(error(&with_result), InvalidCache::NoSink { record: 1 }));
}

#[test]
fn what_breaks_buildkit_is_refused() {
    use InvalidCache::*;
    let links =
        |links: serde_json::Value| json!({"records": [{"digest": "a"}, {"digest": "b", "inputs": links}]});
    assert!(matches!(error(&links(json!([[{"link": 2}]]))), NoSuchRecord { record: 1, link: 2 }));
    assert!(matches!(error(&links(json!([[{"link": -1}]]))), NoSuchRecord { record: 1, link: -1 }));
    assert!(matches!(error(&links(json!([[{"link": 0}], []]))), EmptyInput { record: 1, input: 1 }));
    assert!(matches!(error(&links(json!([null]))), EmptyInput { record: 1, input: 0 }));
    assert!(matches!(error(&links(json!([[{"link": 0}, {"link": 1}]]))), RecordCycle { record: 1 }));
    let two = json!({"records": [{"inputs": [[{"link": 1}]]}, {"inputs": [[{"link": 0}]]}]});
    assert!(matches!(error(&two), RecordCycle { .. }));

    let layers = |layers: serde_json::Value| json!({"layers": layers});
    let base = json!({"blob": blob(0), "parent": -1});
    assert!(matches!(
        error(&layers(json!([{"blob": blob(0), "parent": 1}]))),
        NoSuchParent { layer: 0, parent: 1 }
    ));
    assert!(matches!(error(&layers(json!([{"blob": blob(0), "parent": -2}]))), NoSuchParent { .. }));
    // No parent means parent 0, here the layer itself.
    assert!(matches!(error(&layers(json!([{"blob": blob(0)}]))), LayerCycle { layer: 0 }));
    assert!(parse(&layers(json!([base, {"blob": blob(0)}]))).is_ok());
    let unknown = layers(json!([base, {"blob": blob(1)}]));
    assert!(matches!(error(&unknown), MissingBlob { layer: 1, blob: missing } if missing == blob(1)));

    for result in [json!({"layers": [{"layer": 1}]}), json!({"chains": [{"layers": [0, 1]}]})] {
        let config = json!({"layers": [base], "records": [result]});
        assert!(matches!(error(&config), NoSuchLayer { record: 0, layer: 1 }));
    }
    let random = json!({"records": [{"digest": "random:x"}]});
    assert!(matches!(error(&random), RandomRecord { record: 0 }));
    for wrong in ["yesterday", "", "-000001-12-31T23:59:59Z", "0000-01-01T00:00:00+00:01"] {
        let result = json!({"records": [{"layers": [{"createdAt": wrong}]}]});
        assert!(matches!(error(&result), Unreadable(_)), "{wrong}");
    }
    for wrong in [json!("1"), json!(1.5), json!(i64::MAX)] {
        assert!(matches!(error(&json!({"records": [{"used": wrong}]})), Unreadable(_)));
    }
    for ambiguous in [
        json!({"Records": []}),
        json!({"layers": [{"blob": blob(0), "PARENT": 1}]}),
        json!({"records": [{"Digest": "x"}]}),
        json!({"records": [{"layers": [{"createdat": "2026-11-21T09:00:49Z"}]}]}),
        json!({"records": [{"chains": [{"Layers": []}]}]}),
        json!({"records": [{"inputs": [[{"lin\u{212a}": 3}]]}]}),
    ] {
        assert!(
            matches!(error(&ambiguous), Unreadable(e) if e.to_string().contains("only in case")),
            "{ambiguous}"
        );
    }
    let twice = br#"{"records": [], "records": [{}]}"#;
    assert!(matches!(Cache::parse(&manifest_of(twice, Vec::new()), twice), Err(Unreadable(_))));
    assert!(matches!(error(&json!({"records": [{"inputs": 7}]})), Unreadable(_)));
    assert!(matches!(error(&json!({"x": "y".repeat(IMPORT_LIMIT)})), TooLarge(_)));
}

#[test]
fn the_config_must_be_the_one_described() {
    let mut manifest = manifest_of(b"{}", Vec::new());
    assert!(Cache::parse(&manifest, b"{}").is_ok());
    assert!(matches!(Cache::parse(&manifest, b"[]"), Err(InvalidCache::WrongConfig { .. })));
    manifest.config.size = 3;
    assert!(matches!(Cache::parse(&manifest, b"{}"), Err(InvalidCache::WrongConfig { .. })));
    manifest.config.size = u64::MAX;
    assert!(matches!(Cache::parse(&manifest, b"{}"), Err(InvalidCache::TooLarge(u64::MAX))));
}

#[test]
fn a_deep_graph_needs_no_stack() {
    const DEPTH: i64 = 100_000;
    // Each entry comes before the one it needs, so that a walk from the first goes all the way down.
    let need = |n: i64| (n + 1 < DEPTH).then_some(n + 1);
    let layer = |n| Layer { blob: blob(0), parent: need(n).unwrap_or(NO_PARENT), extra: Extra::new() };
    let link = |link| vec![Input { selector: String::new(), link, extra: Extra::new() }];
    let record = |n| Record {
        digest: "d".to_owned(),
        inputs: need(n).into_iter().map(link).collect(),
        results: vec![LayerResult { layer: n, created_at: moment(0), probation: None, extra: Extra::new() }],
        chains: Vec::new(),
        used: None,
        probation: None,
        extra: Extra::new(),
    };
    let (layers, records) = ((0..DEPTH).map(layer).collect(), (0..DEPTH).map(record).collect());
    let config = Config { layers, records, ..Config::default() };
    let cache = Export { config, descriptors: vec![descriptor(0, 0)] }.cache();
    assert_eq!((cache.records(), cache.layers()), (100_000, 100_000));
    assert_eq!(Cache::merge([&cache, &cache]), cache);
    assert_eq!(cache.built_since(moment(1)).reused, 100_000);
    let pruned = cache.prune(&Limits::default()).cache;
    assert!((1..100_000).contains(&pruned.records()) && pruned.sizes().config <= SAFE_SIZE);
}

#[test]
fn alternatives_of_different_graphs_are_not_mixed() {
    let graph = |links: serde_json::Value| {
        parse(&json!({"records": [{"digest": "x"}, {"digest": "y"}, {"digest": "z", "inputs": [links]}]}))
            .unwrap()
    };
    let both = graph(json!([{"link": 0}, {"link": 1}]));
    let one = graph(json!([{"link": 0}]));
    let merged = Cache::merge([&both, &one]);
    assert_eq!(merged.records(), 4);
    assert!(!both.contains(&one));
    assert_eq!(graph(json!([{"link": 1}, {"link": 0}, {"link": 1}])), both);
    assert_ne!(graph(json!([{"link": 0, "selector": "s"}])), one);
}

#[test]
fn absent_fields_and_null_mean_what_go_means() {
    let written_out = json!({
        "layers": [{"blob": blob(0), "parent": -1}],
        "records": [{"digest": "", "layers": [{"layer": 0, "createdAt": "0001-01-01T00:00:00Z"}]}],
    });
    let short = json!({
        "layers": [{"blob": blob(0), "parent": -1}],
        "records": [{"layers": [{"createdAt": null}], "chains": null, "inputs": null, "used": null}],
    });
    assert_eq!(parse(&written_out).unwrap(), parse(&short).unwrap());
    assert_eq!(parse(&json!({"layers": null, "records": null})).unwrap(), Cache::default());
}

#[test]
fn times_and_unknown_fields_are_kept() {
    for (written, kept) in [
        ("2026-11-21T09:00:49.377547034Z", "2026-11-21T09:00:49.377547034Z"),
        ("2026-11-21T10:30:49.000000001+01:30", "2026-11-21T09:00:49.000000001Z"),
        ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
    ] {
        let config = |time| {
            json!({
                "layers": [{"blob": blob(0), "parent": -1, "x": 1}],
                "records": [{"layers": [{"layer": 0, "createdAt": time, "y": {"b": [2]}}], "z": null}],
                "used": 1,
                "v": "w",
            })
        };
        let cache = parse(&config(written)).unwrap();
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&to_json(&CanonicalConfig(&cache))).unwrap(),
            config(kept)
        );
    }
}

/// It stands between two floating-point numbers; read to the nearest of them it stays that one.
#[test]
fn a_number_that_is_read_again_stays_the_same() {
    let number = "100000000000030000000000000000000000000000000000000000000000000000000025";
    let config = format!(r#"{{"v":{number}}}"#).into_bytes();
    let once = written(&Cache::parse(&manifest_of(&config, Vec::new()), &config).unwrap());
    assert_eq!(written(&read(&once).1), once);
}

#[test]
fn a_use_that_all_records_share_is_said_once() {
    let noted = ["a", "b", "c"].map(|digest| json!({"digest": digest, "used": 1_795_300_000}));
    let noted = parse(&json!({ "records": noted })).unwrap();
    assert_eq!(
        to_text(&noted),
        format!(
            r#"{{"records":[{{"digest":"a"}},{{"digest":"b"}},{{"digest":"c"}},{}],"used":1795300000}}"#,
            sink(&[0, 1, 2])
        )
    );
    let later = parse(
        &json!({"records": [{"digest": "a", "used": 1_795_300_001}, {"digest": "b"}], "used": 1_795_300_000}),
    )
    .unwrap();
    assert_eq!(
        to_text(&later),
        format!(
            r#"{{"records":[{{"digest":"a"}},{{"digest":"b","used":1795300000}},{}],"used":1795300001}}"#,
            sink(&[0, 1])
        )
    );
    let partly = parse(&json!({"records": [{"digest": "a", "used": 7}, {"digest": "b"}]})).unwrap();
    assert_eq!(
        to_text(&partly),
        format!(r#"{{"records":[{{"digest":"a","used":7}},{{"digest":"b"}},{}]}}"#, sink(&[0, 1]))
    );
}

fn to_text(cache: &Cache) -> String {
    String::from_utf8(to_json(&CanonicalConfig(cache))).unwrap()
}

#[test]
fn what_no_record_needs_is_dropped() {
    let base = json!({"blob": blob(0), "parent": -1});
    let cache = parse(&json!({"layers": [base, {"blob": blob(0)}], "records": [{"layers": [{"layer": 0}]}]}))
        .unwrap();
    assert_eq!((cache.layers(), cache.blobs().count()), (1, 1));
    let cache = parse(&json!({"layers": [base], "records": [{"digest": "a"}]})).unwrap();
    assert_eq!((cache.layers(), cache.blobs().count()), (0, 0));
}

// Two exports by BuildKit 0.13 of `fixtures/Dockerfile`, after one build of the state that both branched from:
// branch one changed a/src, branch two b/deps and b/src.

struct Fixture {
    manifest: &'static str,
    config: &'static str,
}

const ONE: Fixture = Fixture {
    manifest: include_str!("../fixtures/branch-one.manifest.json"),
    config: include_str!("../fixtures/branch-one.config.json"),
};
const TWO: Fixture = Fixture {
    manifest: include_str!("../fixtures/branch-two.manifest.json"),
    config: include_str!("../fixtures/branch-two.config.json"),
};

impl Fixture {
    fn cache(&self) -> Cache {
        let Kind::Cache(manifest) = classify(self.manifest.as_bytes()) else { panic!("not a cache") };
        Cache::parse(&manifest, self.config.as_bytes()).unwrap()
    }
}

#[test]
fn real_exports_merge() {
    let (one, two) = (ONE.cache(), TWO.cache());
    // 13 steps have a result: 5 in each of the stages a and b, 3 in the last; the base image is one more layer.
    assert_eq!((one.records(), one.layers()), (20, 14));
    assert_eq!((two.records(), two.layers()), (21, 14));
    let merged = Cache::merge([&one, &two]);
    // They share both stages' first step and two more of stage a, in nine records, on the base image.
    assert_eq!((merged.records(), merged.layers()), (20 + 21 - 9, 14 + 14 - 5));
    assert_eq!(merged.blobs().count(), 23);
    assert!(merged.contains(&one) && merged.contains(&two) && !one.contains(&two) && !two.contains(&one));
    assert_eq!(read(&written(&merged)).1, merged);
}

#[test]
fn the_canonical_form_of_a_real_export_is_its_own() {
    for fixture in [ONE, TWO] {
        assert_eq!(String::from_utf8(written(&fixture.cache()).config).unwrap(), fixture.config);
    }
}

#[test]
fn real_exports_tell_how_warm_their_build_was() {
    let base_built: Timestamp = "2026-11-21T09:00:49Z".parse().unwrap();
    let one_built: Timestamp = "2026-11-21T09:00:53Z".parse().unwrap();
    let hit_rate = ONE.cache().built_since(one_built);
    // Built: the copy of a/src and the run after it, and the whole last stage.
    assert_eq!((hit_rate.steps, hit_rate.reused), (13, 8));
    assert_eq!(hit_rate.reused_bytes, 92 + 92 + 130 + 132 + 133 + 145 + 188 + 189);
    assert_eq!(hit_rate.built_bytes, 112 + 113 + 132 + 144 + 173);
    assert_eq!(ONE.cache().built_since(base_built).reused, 0);
    // Built: all of stage b but its first step, and of the last stage the copy from b and the run.
    assert_eq!(TWO.cache().built_since(one_built).reused, 7);
}

fn described(manifest: Manifest) -> Vec<Descriptor> {
    manifest.layers.into_iter().map(Arc::unwrap_or_clone).collect()
}

// Three exports of the same build by the same BuildKit: as an index, with zstd, and uncompressed.

const INDEX: Fixture = Fixture {
    manifest: include_str!("../fixtures/index.manifest.json"),
    config: include_str!("../fixtures/index.config.json"),
};
const ZSTD: Fixture = Fixture {
    manifest: include_str!("../fixtures/zstd.manifest.json"),
    config: include_str!("../fixtures/zstd.config.json"),
};
const UNCOMPRESSED: Fixture = Fixture {
    manifest: include_str!("../fixtures/uncompressed.manifest.json"),
    config: include_str!("../fixtures/uncompressed.config.json"),
};

#[test]
fn an_index_is_read_and_written_as_an_image_manifest() {
    let cache = INDEX.cache();
    assert!(cache.records() > 0 && cache.blobs().len() > 0);
    let written = written(&cache);
    assert_eq!(read(&written).1, cache);
    let Kind::Cache(manifest) = classify(&written.manifest) else { panic!("not a cache") };
    assert_eq!(manifest.media_type, MANIFEST_MEDIA_TYPE);
}

#[test]
fn layers_of_any_kind_are_described_as_they_were() {
    for (fixture, media_type) in [
        (ZSTD, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (UNCOMPRESSED, "application/vnd.oci.image.layer.v1.tar"),
    ] {
        let Kind::Cache(before) = classify(fixture.manifest.as_bytes()) else { panic!("not a cache") };
        let Kind::Cache(after) = classify(&written(&fixture.cache()).manifest) else { panic!("not a cache") };
        let sorted = |manifest: Manifest| {
            let mut all = described(manifest);
            all.sort_by(|a, b| a.digest.cmp(&b.digest));
            all
        };
        let (before, after) = (sorted(before), sorted(after));
        assert_eq!(before, after);
        assert!(after.iter().any(|descriptor| descriptor.media_type == media_type), "{after:?}");
    }
}

#[test]
fn two_branches_differ_in_what_each_built() {
    let (one, two) = (ONE.cache(), TWO.cache());
    let Diff { ours, theirs } = one.diff(&two);
    assert_eq!((ours.records, theirs.records), (20 - 9, 21 - 9));
    assert_eq!((ours.steps.len(), theirs.steps.len()), (13 - 4, 13 - 4));
    // The files that each changed, and what of its stage the last one copies.
    assert_eq!((ours.sources, theirs.sources), (1 + 1, 2 + 1));
    assert_eq!((ours.results, theirs.results), (0, 0));
    assert!(one.diff(&one).is_empty() && !ours.is_empty());
}

#[test]
fn a_step_is_reported_with_its_times() {
    let result = |layer, time| json!({"layer": layer, "createdAt": time});
    let (early, late) = ("2026-11-21T09:00:00Z", "2026-11-21T10:00:00Z");
    let records = json!([
        {"digest": "a", "layers": [result(0, late)], "used": 1_795_300_000},
        {"digest": "b", "layers": [result(0, early), result(1, "0001-01-01T00:00:00Z")]},
        {"digest": "c", "chains": [{"layers": [1, 0], "createdAt": late}], "used": 1_795_200_000},
    ]);
    let layers = json!([{"blob": blob(0), "parent": -1}, {"blob": blob(0)}]);
    let cache = parse(&json!({"layers": layers, "records": records})).unwrap();
    let mut reported: Vec<_> =
        cache.steps().into_values().map(|step| serde_json::to_value(step).unwrap()).collect();
    reported.sort_by_key(|step| step["keys"].as_u64());
    let bytes = bytes(&blob(0));
    assert_eq!(
        reported,
        [
            json!({"blob": blob(0), "bytes": bytes, "keys": 1}),
            json!({"blob": blob(0), "bytes": bytes, "keys": 3, "madeAt": early,
                   "usedAt": Timestamp::from_second(1_795_300_000).unwrap()}),
        ]
    );
}
