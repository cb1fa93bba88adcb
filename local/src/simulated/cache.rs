//! `BuildKit`'s registry cache: a config that is a graph of records, and the layers that are their results.

use std::collections::{BTreeMap, HashMap};

use axum::body::Bytes;
use dockerfile_keys::Key;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::command::CacheTo;
use super::graph::{Graph, Input, digest, key};
use super::registry::{MANIFEST, Reference, Registry, RegistryError, Repository};

const CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// `BuildKit` reads no larger manifest or config.
const READ_LIMIT: u64 = 1 << 20;
/// How many ways to one record are followed.
const MOST_KEYS: usize = 64;

/// A cache could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{0}: not found")]
    NotFound(String),
    #[error("blob {digest} is too large ({size} > {READ_LIMIT})")]
    TooLarge { digest: String, size: u64 },
    #[error("invalid cache")]
    Json(#[from] serde_json::Error),
    #[error("invalid cache: {0}")]
    Invalid(&'static str),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Config {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Layer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    records: Vec<Record>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Layer {
    blob: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    parent: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(default, rename = "layers", skip_serializing_if = "Vec::is_empty")]
    results: Vec<Outcome>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    chains: Vec<Chained>,
    digest: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Vec<Link>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    layer: i64,
    #[serde(rename = "createdAt")]
    created_at: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Chained {
    layers: Vec<i64>,
    #[serde(rename = "createdAt")]
    created_at: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Link {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    selector: String,
    link: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// A layer, and where its bytes are.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    descriptor: Descriptor,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Origin {
    Registry(Repository),
    Here(Bytes),
}

impl Blob {
    /// A new layer that holds one file.
    pub(super) fn new(path: &str, content: &str, created_at: &str) -> Self {
        let tar = tar(path, content.as_bytes());
        let digest = digest(&tar);
        let annotations = BTreeMap::from([
            ("buildkit/createdat".to_owned(), created_at.to_owned()),
            ("containerd.io/uncompressed".to_owned(), digest.clone()),
        ]);
        let descriptor =
            Descriptor { media_type: LAYER.to_owned(), digest, size: tar.len() as u64, annotations };
        Self { descriptor, origin: Origin::Here(tar.into()) }
    }

    /// Its digest.
    pub(super) fn digest(&self) -> &str {
        &self.descriptor.digest
    }

    /// Whether its bytes can be had.
    pub(super) async fn is_there(&self, registry: &Registry) -> Result<bool, RegistryError> {
        match &self.origin {
            Origin::Here(_) => Ok(true),
            Origin::Registry(repository) => registry.has_blob(repository, self.digest()).await,
        }
    }
}

/// The result of an operation: layers, the lowest first.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) chain: Vec<Blob>,
    pub(super) created_at: String,
}

impl Made {
    /// With the layers of another result upon it.
    pub(super) fn with(&self, upper: &Self) -> Self {
        let chain = self.chain.iter().chain(&upper.chain).cloned().collect();
        Self { chain, created_at: upper.created_at.clone() }
    }
}

/// Results by key.
pub(super) type Known = HashMap<String, Made>;

/// Reads a cache into `known`. What is known already stays: the caches that are named first win.
pub(super) async fn import(
    registry: &Registry,
    reference: &str,
    known: &mut Known,
) -> Result<(), CacheError> {
    let cache = Reference::parse(reference)?;
    let bytes = registry.manifest(&cache).await?;
    let bytes = bytes.ok_or_else(|| CacheError::NotFound(reference.to_owned()))?;
    let too_large = |digest: String, size: u64| {
        if size > READ_LIMIT { Err(CacheError::TooLarge { digest, size }) } else { Ok(()) }
    };
    too_large(digest(&bytes), bytes.len() as u64)?;
    let manifest: Manifest = serde_json::from_slice(&bytes)?;
    if manifest.config.media_type != CONFIG {
        return Err(CacheError::Invalid("the manifest is not one of a cache"));
    }
    too_large(manifest.config.digest.clone(), manifest.config.size)?;
    let config = registry.blob(&cache.repository, &manifest.config.digest).await?;
    let config: Config = serde_json::from_slice(&config)?;
    let blobs: HashMap<&str, &Descriptor> = manifest.layers.iter().map(|d| (d.digest.as_str(), d)).collect();
    let mut keys = Keys { records: &config.records, known: vec![None; config.records.len()] };
    for (i, record) in config.records.iter().enumerate() {
        let mut made = None;
        for outcome in &record.results {
            let chain = chain(&config.layers, outcome.layer)?;
            made = made.or(with_blobs(&chain, &blobs, &cache.repository, &outcome.created_at));
        }
        for chained in &record.chains {
            let layers: Option<Vec<&Layer>> =
                chained.layers.iter().map(|&l| config.layers.get(usize::try_from(l).ok()?)).collect();
            let layers = layers.ok_or(CacheError::Invalid("a chain names a layer that is not there"))?;
            made = made.or(with_blobs(&layers, &blobs, &cache.repository, &chained.created_at));
        }
        let Some(made) = made else { continue };
        for key in keys.of(i)? {
            known.entry(key).or_insert_with(|| made.clone());
        }
    }
    Ok(())
}

fn chain(layers: &[Layer], top: i64) -> Result<Vec<&Layer>, CacheError> {
    let mut chain = Vec::new();
    let mut next = top;
    while next != -1 {
        let layer = usize::try_from(next).ok().and_then(|i| layers.get(i));
        let layer = layer.ok_or(CacheError::Invalid("a layer rests on one that is not there"))?;
        if chain.len() > layers.len() {
            return Err(CacheError::Invalid("layers rest on each other"));
        }
        chain.push(layer);
        next = layer.parent;
    }
    chain.reverse();
    Ok(chain)
}

/// The result, unless the manifest lacks one of its layers.
fn with_blobs(
    chain: &[&Layer],
    blobs: &HashMap<&str, &Descriptor>,
    repository: &Repository,
    created_at: &str,
) -> Option<Made> {
    let origin = || Origin::Registry(repository.clone());
    let blob = |layer: &&Layer| {
        Some(Blob { descriptor: (*blobs.get(layer.blob.as_str())?).clone(), origin: origin() })
    };
    Some(Made { chain: chain.iter().map(blob).collect::<Option<_>>()?, created_at: created_at.to_owned() })
}

/// The keys of records. A record has several where an input has alternatives.
struct Keys<'a> {
    records: &'a [Record],
    known: Vec<Option<Vec<String>>>,
}

impl Keys<'_> {
    fn of(&mut self, record: usize) -> Result<Vec<String>, CacheError> {
        self.find(record, 0)
    }

    fn find(&mut self, number: usize, depth: usize) -> Result<Vec<String>, CacheError> {
        if let Some(known) = self.known.get(number).and_then(Option::as_ref) {
            return Ok(known.clone());
        }
        if depth > self.records.len() {
            return Err(CacheError::Invalid("records rest on each other"));
        }
        let records = self.records;
        let record = records.get(number).ok_or(CacheError::Invalid("a link leads nowhere"))?;
        let mut ways: Vec<Vec<(&str, String)>> = vec![Vec::new()];
        for alternatives in &record.inputs {
            let mut wider = Vec::new();
            for link in alternatives {
                let to =
                    usize::try_from(link.link).map_err(|_| CacheError::Invalid("a link leads nowhere"))?;
                for input in self.find(to, depth + 1)? {
                    for way in &ways {
                        let mut way = way.clone();
                        way.push((&link.selector, input.clone()));
                        wider.push(way);
                    }
                }
            }
            wider.truncate(MOST_KEYS);
            ways = wider;
        }
        let keys: Vec<String> = ways
            .iter()
            .map(|way| key(&record.digest, way.iter().map(|(selector, input)| (*selector, input.as_str()))))
            .collect();
        self.known[number] = Some(keys.clone());
        Ok(keys)
    }
}

/// What an export wrote.
#[derive(Debug)]
pub(super) struct Exported {
    pub(super) layers: Vec<String>,
    pub(super) config: String,
    pub(super) manifest: String,
}

/// Writes the results of a build as a cache; `None` if there are none to write.
pub(super) async fn export(
    registry: &Registry,
    to: &CacheTo,
    graph: &Graph,
    made: &BTreeMap<Key, Made>,
) -> Result<Option<Exported>, CacheError> {
    let reference = Reference::parse(&to.reference)?;
    let mut config = Config::default();
    let mut blobs: Vec<&Blob> = Vec::new();
    for record in &graph.records {
        let is_kept =
            |node: &&Key| graph.exported.contains(node) && (to.all_stages || graph.target.contains(node));
        let node = record.node.as_ref().filter(is_kept);
        let result = node.and_then(|node| made.get(node));
        let results = result.and_then(|made| {
            let mut top = -1;
            for blob in &made.chain {
                top = layer(&mut config.layers, blob.digest(), top);
                if !blobs.iter().any(|known| known.digest() == blob.digest()) {
                    blobs.push(blob);
                }
            }
            (top != -1).then(|| Outcome { layer: top, created_at: made.created_at.clone() })
        });
        let link = |input: &Input| Link {
            selector: input.selector.to_owned(),
            link: i64::try_from(input.record).unwrap_or(-1),
        };
        config.records.push(Record {
            results: results.into_iter().collect(),
            chains: Vec::new(),
            digest: record.digest.clone(),
            inputs: record
                .inputs
                .iter()
                .map(|alternatives| alternatives.iter().map(link).collect())
                .collect(),
        });
    }
    if blobs.is_empty() {
        return Ok(None);
    }
    for blob in &blobs {
        if registry.has_blob(&reference.repository, blob.digest()).await? {
            continue;
        }
        match &blob.origin {
            Origin::Here(bytes) => {
                registry.push_blob(&reference.repository, blob.digest(), bytes.clone()).await?;
            }
            Origin::Registry(from) => {
                registry.copy_blob(from, &reference.repository, blob.digest()).await?;
            }
        }
    }
    let config = serde_json::to_vec(&config)?;
    let config_digest = digest(&config);
    let size = config.len();
    registry.push_blob(&reference.repository, &config_digest, config.into()).await?;
    let descriptors: Vec<&Descriptor> = blobs.iter().map(|blob| &blob.descriptor).collect();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config_digest, "size": size},
        "layers": descriptors,
    }))?;
    let manifest_digest = digest(&manifest);
    registry.put_manifest(&reference, manifest).await?;
    Ok(Some(Exported {
        layers: blobs.iter().map(|blob| blob.digest().to_owned()).collect(),
        config: config_digest,
        manifest: manifest_digest,
    }))
}

/// The number of a layer on that parent.
fn layer(layers: &mut Vec<Layer>, blob: &str, parent: i64) -> i64 {
    let place = layers.iter().position(|l| l.blob == blob && l.parent == parent).unwrap_or_else(|| {
        layers.push(Layer { blob: blob.to_owned(), parent });
        layers.len() - 1
    });
    i64::try_from(place).unwrap_or(-1)
}

/// A tar archive with one file.
fn tar(path: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &path.as_bytes()[..path.len().min(99)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_archives_that_tar_reads() {
        let blob = Blob::new("step", "content", "2026-01-01T00:00:00Z");
        let Origin::Here(bytes) = &blob.origin else { panic!() };
        let path = std::env::temp_dir().join(format!("layer-{}.tar", uuid::Uuid::new_v4()));
        std::fs::write(&path, bytes).unwrap();
        let tar = std::process::Command::new("tar").arg("-xOf").arg(&path).arg("step").output().unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(String::from_utf8_lossy(&tar.stdout), "content");
    }

    #[test]
    fn alternatives_of_an_input_are_all_keys() {
        let record = |digest: &str, inputs: &[&[i64]]| Record {
            results: Vec::new(),
            chains: Vec::new(),
            digest: digest.to_owned(),
            inputs: inputs
                .iter()
                .map(|links| links.iter().map(|&link| Link { selector: String::new(), link }).collect())
                .collect(),
        };
        let records =
            [record("a", &[]), record("b", &[]), record("c", &[&[0, 1]]), record("d", &[&[2], &[0]])];
        let mut keys = Keys { records: &records, known: vec![None; 4] };
        let [a, b] = ["a", "b"].map(|name| key(name, std::iter::empty()));
        let c = |input: &str| key("c", [("", input)].into_iter());
        assert_eq!(keys.of(2).unwrap(), [c(&a), c(&b)]);
        let d = |input: &str| key("d", [("", input), ("", a.as_str())].into_iter());
        assert_eq!(keys.of(3).unwrap(), [d(&c(&a)), d(&c(&b))]);

        let looping = [record("a", &[&[1]]), record("b", &[&[0]])];
        let mut keys = Keys { records: &looping, known: vec![None; 2] };
        assert!(matches!(keys.of(0), Err(CacheError::Invalid(_))));
    }
}
