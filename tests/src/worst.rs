//! The worst caches that a build can export: as large as BuildKit imports, and full of what is short as JSON.

use std::fmt::Write as _;

use buildkit_cache::{CONFIG_MEDIA_TYPE, IMPORT_LIMIT, MANIFEST_MEDIA_TYPE};
use bytes::Bytes;
use serde_json::json;
use stoker_core::names::Digest;

/// As many entries as fit, between a start and an end; `salt` makes the config another's.
fn filled(start: &str, entry: impl Fn(usize) -> String, end: &str) -> String {
    let mut config = start.to_owned();
    for n in 0.. {
        let next = entry(n);
        if config.len() + next.len() + end.len() + 1 > IMPORT_LIMIT {
            break;
        }
        config.push_str(&next);
        config.push(',');
    }
    config.pop();
    config.push_str(end);
    config
}

fn digest(salt: usize, n: usize) -> Digest {
    Digest::of(&[salt.to_le_bytes(), n.to_le_bytes()].concat())
}

/// A config of just below a mebibyte; `salt` makes it another's.
#[must_use]
pub fn worst(kind: &str, salt: usize) -> String {
    match kind {
        "tiny records" => filled("{\"records\":[", |n| format!("{{\"digest\":\"{salt}-{n}\"}}"), "]}"),
        "zeros" => filled(&format!("{{\"x\":[{salt},"), |_| "0".to_owned(), "]}"),
        "deep" => filled(
            &format!("{{\"records\":[{{\"digest\":\"{}\"}},", digest(salt, 0)),
            |n| format!("{{\"digest\":\"{}\",\"inputs\":[[{{\"link\":{n}}}]]}}", digest(salt, n + 1)),
            "]}",
        ),
        // As many links as there may be values, each record with hundreds of alternatives.
        "links" => {
            let links = |n: usize| {
                (0..800.min(n)).map(|link| format!("{{\"link\":{}}}", n - 1 - link)).collect::<Vec<_>>()
            };
            filled(
                "{\"records\":[",
                |n| format!("{{\"digest\":\"{}\",\"inputs\":[[{}]]}}", digest(salt, n), links(n).join(",")),
                "]}",
            )
        }
        _ => panic!("{kind}?"),
    }
}

/// What configs may be full of.
pub const KINDS: [&str; 4] = ["tiny records", "zeros", "deep", "links"];

/// A manifest of just below a mebibyte around a config, full of layers that nothing needs.
#[must_use]
pub fn manifest_of(config: &str, salt: usize) -> Bytes {
    let mut layers = String::new();
    for n in 0.. {
        let digest = digest(salt + 1, n);
        let layer = format!(
            "{{\"mediaType\":\"x\",\"digest\":\"{digest}\",\"size\":1,\"annotations\":{{\"a\":\"{}\"}}}},",
            "y".repeat(180)
        );
        if layers.len() + layer.len() > IMPORT_LIMIT - 2000 {
            break;
        }
        write!(layers, "{layer}").unwrap();
    }
    layers.pop();
    let described = json!({"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(config.as_bytes()),
        "size": config.len()});
    let text = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_MEDIA_TYPE}\",\"config\":{described},\"layers\":[{layers}]}}"
    );
    Bytes::from(text)
}

/// An export of as many layers as fit, each the result of a step: its manifest, and its blobs with the config
/// first. All layers have to be mounted.
#[must_use]
pub fn layers(salt: usize) -> (Bytes, Vec<Bytes>) {
    const LAYERS: usize = 3000;
    let blobs: Vec<Bytes> = (0..LAYERS).map(|n| Bytes::from(format!("{salt} {n}"))).collect();
    let (mut layers, mut records, mut described) = (Vec::new(), Vec::new(), Vec::new());
    for (n, blob) in blobs.iter().enumerate() {
        let blob_digest = Digest::of(blob);
        layers.push(json!({ "blob": blob_digest, "parent": -1 }));
        let results = json!([{ "layer": n, "createdAt": "2026-11-20T09:00:00Z" }]);
        records.push(json!({ "digest": digest(salt, n), "layers": results }));
        described.push(json!({ "mediaType": "x", "digest": blob_digest, "size": blob.len(),
            "annotations": { "a": "y".repeat(100) } }));
    }
    let config = Bytes::from(json!({ "layers": layers, "records": records }).to_string());
    assert!(config.len() <= IMPORT_LIMIT, "{}", config.len());
    let config_of =
        json!({ "mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(&config), "size": config.len() });
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "config": config_of,
        "layers": described });
    (Bytes::from(manifest.to_string()), [config].into_iter().chain(blobs).collect())
}
