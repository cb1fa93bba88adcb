//! Whatever a log, provenance, caches and commits say, each step that ran has a cause, and times add up.
#![no_main]

use std::collections::BTreeMap;
use std::rc::Rc;

use buildkit_cache::{CONFIG_MEDIA_TYPE, Cache, Digest, Kind, MANIFEST_MEDIA_TYPE, classify};
use cache_misses::{Elsewhere, Evidence, Given, Llb, Log, Past, Relation, explain};
use dockerfile_keys::{Context, Entry, Id, Ignore, Key, Memory, Options, Plan, Tree, TreeError, parse, plan};
use libfuzzer_sys::fuzz_target;

/// A directory that holds a file `a`.
struct Files;

impl Tree for Files {
    fn entries(&self, _: &Id) -> Result<Rc<[Entry]>, TreeError> {
        Ok([Entry { name: "a".into(), kind: dockerfile_keys::Kind::File, id: [1; 32] }].into())
    }

    fn read(&self, _: &Id) -> Result<Vec<u8>, TreeError> {
        Ok(b"a".to_vec())
    }
}

fn cache(layers: &str, config: &str) -> Option<Cache> {
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_MEDIA_TYPE}","config":{{"mediaType":"{CONFIG_MEDIA_TYPE}","digest":"{}","size":{}}},"layers":{layers}}}"#,
        Digest::of(config.as_bytes()),
        config.len()
    );
    let Kind::Cache(manifest) = classify(manifest.as_bytes()) else { return None };
    Cache::parse(&manifest, config.as_bytes()).ok()
}

fn planned(dockerfile: &str) -> Option<Plan> {
    let (ignore, memory) = (Ignore::default(), Memory::default());
    let context = Context { tree: &Files, root: [0; 32], ignore: &ignore, memory: &memory, git_directory: None };
    plan(&parse(dockerfile).ok()?, &Options::default(), context, Key::from([1; 32])).ok()
}

fuzz_target!(|text: &str| {
    let mut parts = text.split("\n---\n");
    let mut part = || parts.next().unwrap_or_default();
    let log = Log::read(part());
    let (Some(now), Some(before)) = (planned(part()), planned(part())) else { return };
    let (provenance, layers) = (part(), part());
    let (export, given) = (cache(layers, part()), cache(layers, part()));
    let llb = Llb::read(provenance);
    for build in &log.builds {
        let given = [("r/a:b", given.clone(), None), ("c", given.clone(), Some("x".to_owned())), ("d", None, None)];
        let given = given.map(|(name, cache, problem)| Given { name: name.to_owned(), cache, problem });
        let elsewhere = export.clone().into_iter().map(|cache| Elsewhere {
            name: "e".to_owned(),
            relation: Relation::Before,
            note: String::new(),
            cache,
        });
        let report = explain(&Evidence {
            build,
            commit: "head",
            plan: &now,
            platform: "linux/amd64",
            arguments: &BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            export: export.as_ref(),
            given: &given,
            elsewhere: &elsewhere.collect::<Vec<_>>(),
            committed: &BTreeMap::from([("head".to_owned(), jiff::Timestamp::UNIX_EPOCH)]),
            past: &[Past { commit: "before".to_owned(), plan: &before }],
            mounts: &[("/c".to_owned(), "none".to_owned())],
            llb: llb.as_ref(),
            files: &|_, _, sources| sources.to_vec(),
        });
        assert_eq!(report.misses.len(), build.ran().len());
        let all: f64 = report.misses.iter().filter_map(|miss| miss.seconds).sum();
        assert!((all - report.lost_seconds - report.unavoidable_seconds).abs() <= all * 1e-9);
    }
});
