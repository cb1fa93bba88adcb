//! What is told once for each registry: several platforms in one cache, and the limit of what `BuildKit` imports. And
//! what is told once.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use builder::{Case, Random};
use buildkit_cache::{
    CONFIG_MEDIA_TYPE, Cache, Descriptor, IMPORT_LIMIT, Kind, Limits, MANIFEST_MEDIA_TYPE, SAFE_SIZE,
    classify,
};
use serde_json::json;
use stoker_core::names::Digest;

use crate::again::{Again, Group, ran};
use crate::engine::{Built, Engine, Options};
use crate::registry::Registry;
use crate::scenario::{Stage, beyond, reused_anything};
use crate::{hostile, lines, mounts};

/// Reports it, and sums it up; what is to be built again may come of it.
pub(crate) type Demo =
    for<'a> fn(u64, &'a Engine, &'a Registry, &Path) -> anyhow::Result<(String, Option<Group<'a>>)>;

/// Told for each registry.
pub(crate) const EACH: [(&str, Demo); 2] = [("two platforms", platforms), ("import limit", import_limit)];
/// Told once.
pub(crate) const ONCE: [(&str, Demo); 5] = [
    ("a long line", lines::long),
    ("the mount of a Rust project", mounts::rust_project),
    ("cache mounts", mounts::carried),
    ("joined lines", lines::joined),
    ("forged caches", hostile::scenes),
];

const PLATFORMS: &str = "linux/amd64,linux/arm64";

/// Two branches of images that are only copied together, each for two platforms, in one cache.
fn platforms<'a>(
    seed: u64,
    _: &'a Engine,
    registry: &'a Registry,
    dir: &Path,
) -> anyhow::Result<(String, Option<Group<'a>>)> {
    // Of the registry, too: what one's case leaves in the builder must not serve the other's.
    let number = Random::new(seed).number() >> 16;
    let token = format!("p{number:012x}{}", registry.name.replace('-', ""));
    let tag = |name: &str| format!("{token}-{name}");
    let build = |one: &str, two: &str, imports: &[&str], export: Option<&str>| -> anyhow::Result<Built> {
        let context = dir.join("platforms");
        std::fs::create_dir_all(&context)?;
        for architecture in ["amd64", "arm64"] {
            let content = format!("{token} {one} {architecture}");
            std::fs::write(context.join(format!("one-{architecture}")), content)?;
        }
        std::fs::write(context.join("two"), format!("{token} {two}"))?;
        let dockerfile = format!(
            "FROM scratch AS one\nARG TARGETARCH\nCOPY one-$TARGETARCH /{token}/one\n\
             FROM scratch AS two\nCOPY two /{token}/two\n\
             FROM scratch\nCOPY --from=one /{token} /{token}/from-one\nCOPY --from=two /{token} /{token}/from-two\n"
        );
        std::fs::write(context.join("Dockerfile"), dockerfile)?;
        let imports: Vec<String> = imports.iter().map(|name| registry.reference(&tag(name))).collect();
        let export = export.map(|name| registry.reference(&tag(name)));
        let built = Engine::build(
            &context,
            &Options { imports: &imports, export, platforms: Some(PLATFORMS), ..Options::default() },
        )?;
        ensure!(built.imported_all(), "a cache was not imported:\n{}", built.log);
        Ok(built)
    };
    let mut blobs = BTreeSet::new();
    let mut caches = Vec::new();
    for (name, one, two) in [("one", "changed", "as before"), ("two", "as before", "changed")] {
        build(one, two, &[], Some(name))?;
        let cache = registry.read(&tag(name))?;
        // There is no base image: all of them are this demo's.
        blobs.extend(cache.blobs().map(|blob| blob.digest.to_string()));
        Engine::free(&[&token], &blobs)?;
        caches.push(cache);
    }
    let all = build("changed", "changed", &["one", "two"], None)?;
    Engine::free(&[&token], &blobs)?;
    registry.write(&tag("merged"), &Cache::merge(&caches))?;
    let merged = build("changed", "changed", &["merged"], None)?;
    Engine::free(&[&token], &blobs)?;
    let less = beyond(&merged, &all);
    ensure!(less.is_empty(), "ran with the merged cache only: {less:#?}\n{}\n{}", all.log, merged.log);
    ensure!(all.files == merged.files, "other files with the merged cache than with both");
    ensure!(merged.steps.reused > 0, "nothing was reused:\n{}", merged.log);
    let of_platform = |name| merged.files.keys().filter(|path| path.starts_with(name)).count();
    ensure!(of_platform("linux_amd64") > 0 && of_platform("linux_amd64") == of_platform("linux_arm64"));
    let reported = format!(
        "of {} steps reused {} with both caches, {} with the merged",
        merged.steps.total, all.steps.reused, merged.steps.reused
    );
    let again = Again {
        what: "for two platforms".to_owned(),
        context: dir.join("platforms"),
        platforms: Some(PLATFORMS),
        tag: tag("merged"),
        ran: ran(&merged),
        files: merged.files,
    };
    Ok((reported, Some(Group { token, blobs, registry, builds: vec![again] })))
}

/// A cache that grew beyond what `BuildKit` imports, and what pruning makes of it.
fn import_limit<'a>(
    seed: u64,
    engine: &'a Engine,
    registry: &'a Registry,
    dir: &Path,
) -> anyhow::Result<(String, Option<Group<'a>>)> {
    let case = Case::new(!seed);
    let mut stage = Stage::new(&case, engine, registry, dir)?;
    let source = &case.branches[0].source;
    stage.free()?;
    let tag = stage.tag("real");
    let cold = stage.build(source, &[], Some(&tag))?;
    let real = stage.exported(&tag)?;

    stage.free()?;
    let blob = real.blobs().next().context("the cache has no blob")?;
    let synthetic: Vec<Cache> = (0..5).map(|part| synthetic(blob, part)).collect::<Result<_, _>>()?;
    let large = Cache::merge(synthetic.iter().chain([&real]));
    let tag = stage.tag("large");
    let bytes = stage.registry.write(&tag, &large)?.config.len();
    ensure!(bytes > IMPORT_LIMIT, "only {bytes} bytes");
    let built = stage.attempt(source, &[tag], None)?;
    ensure!(built.log.contains("too large"), "BuildKit does not say that it is too large:\n{}", built.log);
    ensure!(!reused_anything(&built.log) && built.files == cold.files, "not a cold build:\n{}", built.log);

    stage.free()?;
    let pruned = large.prune(&Limits { bytes: None, size: SAFE_SIZE }).cache;
    let tag = stage.tag("safe");
    let size = stage.registry.write(&tag, &pruned)?.size();
    ensure!(size <= SAFE_SIZE, "{size} bytes after pruning");
    let built = stage.build(source, &[tag], None)?;
    ensure!(built.steps.ran.is_empty() && built.files == cold.files, "not all was reused:\n{}", built.log);
    stage.free()?;
    let reported = format!(
        "{bytes} bytes: refused, cold, not red; pruned to {size} bytes: {} steps reused",
        source.layers()
    );
    Ok((reported, None))
}

/// Many old records that nothing asks for.
fn synthetic(blob: &Descriptor, part: usize) -> anyhow::Result<Cache> {
    const RECORDS: usize = 2000;
    let record = |number: usize| {
        let digest = Digest::of(format!("{part} {number}").as_bytes());
        json!({ "digest": digest, "layers": [{ "layer": 0, "createdAt": "2020-01-01T00:00:00Z" }] })
    };
    let records: Vec<_> = (0..RECORDS).map(record).collect();
    let layers = json!([{ "blob": blob.digest, "parent": -1 }]);
    let config = json!({ "layers": layers, "records": records }).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {
            "mediaType": CONFIG_MEDIA_TYPE,
            "digest": Digest::of(config.as_bytes()),
            "size": config.len(),
        },
        "layers": [blob],
    });
    match classify(manifest.to_string().as_bytes()) {
        Kind::Cache(manifest) => Ok(Cache::parse(&manifest, config.as_bytes())?),
        Kind::Other { why } => anyhow::bail!(why),
    }
}
