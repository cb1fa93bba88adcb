//! The algebra's laws on generated graphs, its answers to hostile ones, and two real exports.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

use super::config::{ChainResult, Config, Input, Layer, LayerResult, NO_PARENT, Record};
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
        Cache::from_config(self.config.clone(), &self.descriptors).unwrap()
    }
}

fn blob(n: u8) -> Digest {
    Digest::of(&[n])
}

fn descriptor(n: u8, variant: u8) -> Descriptor {
    let annotations = BTreeMap::from([("buildkit/createdat".to_owned(), format!("day {variant}"))]);
    let extra = extra(variant);
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
    Descriptor { media_type, digest: blob(n), size: u64::from(n) + 100, annotations, extra }
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
    let results = vec((any::<Index>(), 0..3_u8, 0..3_u8), 0..3);
    let chains = vec((vec(any::<Index>(), 0..3), 0..3_u8), 0..2);
    vec((0..3_u8, vec(input, 0..3), results, chains, 0..3_u8), 0..7).prop_map(move |records| {
        let mut made = Vec::new();
        for (place, (digest, inputs, results, chains, variant)) in records.into_iter().enumerate() {
            let input = |(selector, link)| Input { selector, link: nth(link, place), extra: Extra::new() };
            let inputs = if place == 0 { Vec::new() } else { inputs };
            made.push(Record {
                digest: format!("sha256:{digest}"),
                inputs: inputs
                    .into_iter()
                    .map(|links| Some(links.into_iter().map(input).collect()))
                    .collect(),
                results: results
                    .into_iter()
                    .map(|(layer, time, variant)| LayerResult {
                        layer: nth(layer, layers),
                        created_at: moment(time),
                        extra: extra(variant),
                    })
                    .collect(),
                chains: chains
                    .into_iter()
                    .map(|(chain, time)| ChainResult {
                        layers: chain.into_iter().map(|layer| nth(layer, layers)).collect(),
                        created_at: moment(time),
                        extra: Extra::new(),
                    })
                    .collect(),
                extra: extra(variant),
            });
        }
        made
    })
}

fn any_export() -> impl Strategy<Value = Export> {
    let descriptors =
        vec(0..3_u8, 5).prop_map(|variants| (0..5).zip(variants).map(|(n, v)| descriptor(n, v)).collect());
    any_layers()
        .prop_flat_map(|layers| (any_records(layers.len()), Just(layers)))
        .prop_flat_map(move |(records, layers)| {
            (Just(Config { layers, records, extra: Extra::new() }), descriptors.clone(), 0..3_u8)
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
        for input in record.inputs.iter_mut().flatten() {
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

fn model(config: &Config) -> Model {
    fn record(config: &Config, index: usize) -> String {
        let Record { digest, inputs, .. } = &config.records[index];
        let link =
            |link: &Input| (link.selector.clone(), record(config, usize::try_from(link.link).unwrap()));
        let inputs: Vec<BTreeSet<_>> =
            inputs.iter().flatten().map(|links| links.iter().map(link).collect()).collect();
        format!("{digest} of {inputs:?}")
    }
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
    (serde_json::from_slice(&written.config).unwrap(), Cache::parse(&manifest, &written.config).unwrap())
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
        prop_assert_eq!(manifest.layers.into_iter().map(|d| d.digest).collect::<Vec<_>>(), used);
    }

    #[test]
    fn warmth_counts_distinct_layers(export in any_export(), start in 0..4_u8) {
        let mut steps: BTreeMap<String, Timestamp> = BTreeMap::new();
        for record in &export.config.records {
            let one = record.results.iter().map(|result| (result.layer, result.created_at));
            let many = record.chains.iter().filter_map(|chain| Some((*chain.layers.last()?, chain.created_at)));
            for (index, at) in one.chain(many) {
                let earliest = steps.entry(layer(&export.config, index)).or_insert(at);
                *earliest = at.min(*earliest);
            }
        }
        let warmth = export.cache().built_since(moment(start));
        prop_assert_eq!(warmth.steps, steps.len());
        prop_assert_eq!(warmth.reused, steps.values().filter(|&&at| at < moment(start)).count());
        let bytes: u64 = export.cache().blobs().map(|blob| blob.size).sum();
        prop_assert!(warmth.reused_bytes + warmth.built_bytes <= bytes);
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
        if let Ok(cache) = Cache::parse(&manifest_of(&config, manifest.layers), &config) {
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
    assert!(matches!(error(&json!({"Records": []})), AmbiguousField(name) if name == "Records"));
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
    let link = |link| Some(vec![Input { selector: String::new(), link, extra: Extra::new() }]);
    let record = |n| Record {
        digest: "d".to_owned(),
        inputs: need(n).into_iter().map(link).collect(),
        results: vec![LayerResult { layer: n, created_at: moment(0), extra: Extra::new() }],
        chains: Vec::new(),
        extra: Extra::new(),
    };
    let (layers, records) = ((0..DEPTH).map(layer).collect(), (0..DEPTH).map(record).collect());
    let config = Config { layers, records, extra: Extra::new() };
    let cache = Cache::from_config(config, &[descriptor(0, 0)]).unwrap();
    assert_eq!((cache.records(), cache.layers()), (100_000, 100_000));
    assert_eq!(Cache::merge([&cache, &cache]), cache);
    assert_eq!(cache.built_since(moment(1)).reused, 100_000);
    assert_eq!(cache.to_config().records.len(), 100_000);
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
    manifest: include_str!("fixtures/branch-one.manifest.json"),
    config: include_str!("fixtures/branch-one.config.json"),
};
const TWO: Fixture = Fixture {
    manifest: include_str!("fixtures/branch-two.manifest.json"),
    config: include_str!("fixtures/branch-two.config.json"),
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
    let warmth = ONE.cache().built_since(one_built);
    // Built: the copy of a/src and the run after it, and the whole last stage.
    assert_eq!((warmth.steps, warmth.reused), (13, 8));
    assert_eq!(warmth.reused_bytes, 92 + 92 + 130 + 132 + 133 + 145 + 188 + 189);
    assert_eq!(warmth.built_bytes, 112 + 113 + 132 + 144 + 173);
    assert_eq!(ONE.cache().built_since(base_built).reused, 0);
    // Built: all of stage b but its first step, and of the last stage the copy from b and the run.
    assert_eq!(TWO.cache().built_since(one_built).reused, 7);
}
