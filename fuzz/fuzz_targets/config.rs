//! A config that parses keeps the algebra's laws. The first line holds the descriptors of its blobs.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use buildkit_cache::{CONFIG_MEDIA_TYPE, Cache, Kind, Limits, MANIFEST_MEDIA_TYPE, classify};
use stoker_core::names::Digest;

fn parse(layers: &str, config: &[u8]) -> Option<Cache> {
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_MEDIA_TYPE}","config":{{"mediaType":"{CONFIG_MEDIA_TYPE}","digest":"{}","size":{}}},"layers":{layers}}}"#,
        Digest::of(config),
        config.len()
    );
    let Kind::Cache(manifest) = classify(manifest.as_bytes()) else { return None };
    Cache::parse(&manifest, config).ok()
}

fn again(cache: &Cache) -> Cache {
    let written = cache.serialise(BTreeMap::new());
    let sizes = cache.sizes();
    assert_eq!((sizes.config, sizes.manifest), (written.config.len(), written.manifest.len()));
    let Kind::Cache(manifest) = classify(&written.manifest) else { panic!("no cache") };
    Cache::parse(&manifest, &written.config).expect("what is written is a cache")
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Some((layers, config)) = text.split_once('\n') else { return };
    let Some(cache) = parse(layers, config.as_bytes()) else { return };
    let sizes = cache.sizes();
    // Times and texts may be written longer than they were read.
    if sizes.config.max(sizes.manifest) < buildkit_cache::IMPORT_LIMIT {
        assert_eq!(again(&cache), cache);
    }
    assert_eq!(Cache::merge([&cache, &cache]), cache);
    let (bytes, size) = (sizes.blobs / 2, (sizes.config.max(sizes.manifest) / 2).max(500));
    let limits = Limits { bytes: Some(bytes), size };
    let pruned = cache.prune(&limits).cache;
    assert!(cache.contains(&pruned));
    assert_eq!(again(&pruned), pruned);
    assert_eq!(pruned.prune(&limits).cache, pruned);
    assert_eq!(Cache::merge([&cache, &pruned]).records(), cache.records());
    let sizes = pruned.sizes();
    assert!(sizes.blobs <= bytes && sizes.config <= size && sizes.manifest <= size);
});
