//! Registries as the commands see them: caches are read from them, and written to them.

use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use buildkit_cache::{Cache, Descriptor, Kind, MANIFEST_MEDIA_TYPE, Manifest, Serialised};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use stoker_aws::registry::{FetchedManifest, Presence, Registry};
use stoker_core::error::{CallError, Failure};
use stoker_core::names::{CacheRepository, Digest, Tag};
use stoker_core::ports::WriteImages;

use crate::auth::{Access, Identity};
use crate::problem::Problem;
use crate::progress::{Progress, Unit};
use crate::reference::{Reference, Repository, Version};
use crate::text;

/// The size at which the specification lets registries refuse a manifest. BuildKit refuses a quarter of it:
/// such a cache can still be pruned.
const MANIFEST_LIMIT: usize = 4 << 20;
/// The size up to which a config is read, for the same reason.
const CONFIG_LIMIT: usize = 16 << 20;
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Requests at a time to find out which blobs are there.
const QUESTIONS: usize = 16;

/// Every registry that a command talks to.
#[derive(Default)]
pub(crate) struct Remotes(RefCell<BTreeMap<String, Rc<Remote>>>);

/// One registry, and who we are there.
pub(crate) struct Remote {
    pub(crate) registry: Registry,
    identity: Identity,
}

impl Remotes {
    /// The registry of a reference.
    pub(crate) fn of(&self, reference: &Reference) -> Rc<Remote> {
        match self.0.borrow_mut().entry(reference.host().to_owned()) {
            Entry::Occupied(known) => Rc::clone(known.get()),
            Entry::Vacant(place) => {
                let registry = Registry::new(reference.host());
                let identity = Identity::new(reference.host(), reference.login());
                Rc::clone(place.insert(Rc::new(Remote { registry, identity })))
            }
        }
    }
}

impl Remote {
    /// The right to read a repository.
    pub(crate) fn pull(&self, repository: &str) -> Access<'_> {
        self.access(vec![format!("repository:{repository}:pull")])
    }

    /// The right to write a repository, and to mount into it from others.
    pub(crate) fn push(&self, repository: &str, mount_from: Option<&str>) -> Access<'_> {
        let mut scopes = vec![format!("repository:{repository}:pull,push")];
        scopes.extend(mount_from.map(|from| format!("repository:{from}:pull")));
        self.access(scopes)
    }

    fn access(&self, scopes: Vec<String>) -> Access<'_> {
        Access { registry: &self.registry, identity: &self.identity, scopes }
    }
}

impl WriteImages for Remote {
    async fn put_blob(
        &self,
        repository: &CacheRepository,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), CallError> {
        let access = self.push(repository.as_str(), None);
        self.registry.put_blob(&access, repository, digest, bytes).await
    }

    async fn put_image(
        &self,
        repository: &CacheRepository,
        tag: &Tag,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), CallError> {
        let access = self.push(repository.as_str(), None);
        self.registry.put_manifest(&access, repository, tag, media_type, manifest).await
    }
}

/// What is under a reference, whatever it is.
pub(crate) struct Found {
    pub(crate) reference: Reference,
    pub(crate) digest: Digest,
    /// What the registry calls it.
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// A cache that was read and checked.
pub(crate) struct Held {
    pub(crate) reference: Reference,
    pub(crate) digest: Digest,
    pub(crate) manifest_size: u64,
    pub(crate) config_size: u64,
    /// It is an index, the form in which BuildKit exports when it is told nothing.
    pub(crate) is_index: bool,
    pub(crate) annotations: BTreeMap<String, String>,
    /// BuildKit 0.25 and newer lose some of it at random: see [`Cache::loses_links_with`].
    pub(crate) loses_links: bool,
    pub(crate) cache: Cache,
}

/// The manifest under a reference, unchecked; `None` where nothing is.
pub(crate) async fn manifest(
    remotes: &Remotes,
    reference: &Reference,
) -> Result<Option<FetchedManifest>, CallError> {
    let remote = remotes.of(reference);
    let access = remote.pull(&reference.repository);
    let answer = remote.registry.manifest(&access, &reference.repository, &reference.version, MANIFEST_LIMIT);
    match answer.await {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error) if error.failure == Failure::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads what is under a reference; `None` where nothing is.
pub(crate) async fn find(remotes: &Remotes, reference: &Reference) -> Result<Option<Found>, Problem> {
    let answer = manifest(remotes, reference).await;
    let answer = answer.map_err(|error| Problem::call("read", reference, &error))?;
    let Some(FetchedManifest { media_type, bytes }) = answer else { return Ok(None) };
    let digest = Digest::of(&bytes);
    if matches!(&reference.version, Version::Digest(asked) if *asked != digest) {
        let why =
            format!("cannot read {reference}: {} answered other bytes than the digest's", reference.host());
        return Err(Problem::failed(why, "do not use this registry for it, and tell whoever runs it"));
    }
    Ok(Some(Found { reference: reference.clone(), digest, media_type, bytes }))
}

/// The manifest of a cache in what was found.
pub(crate) fn manifest_of(found: &Found) -> Result<Manifest, Problem> {
    match buildkit_cache::classify_within(&found.bytes, MANIFEST_LIMIT) {
        Kind::Cache(manifest) => Ok(manifest),
        Kind::Other { why } => Err(Problem::no(
            format!("{} is not a cache that BuildKit would import: {}", found.reference, text::plain(&why)),
            "name a ref that was written by `docker buildx build --cache-to type=registry,ref=...,mode=max`",
        )),
    }
}

/// Reads a manifest's config, and checks the whole cache.
pub(crate) async fn open(remotes: &Remotes, found: Found) -> Result<Held, Problem> {
    let manifest = manifest_of(&found)?;
    let reference = found.reference;
    let not_sound = |why: String| {
        let next = "BuildKit would build cold from it: export the cache anew, or merge others that are sound";
        Problem::no(format!("the cache at {reference} is not sound: {why}"), next)
    };
    if manifest.config.size > CONFIG_LIMIT as u64 {
        let config = text::size(manifest.config.size);
        return Err(not_sound(format!("its config has {config}; nobody reads that much")));
    }
    let remote = remotes.of(&reference);
    let access = remote.pull(&reference.repository);
    let answer =
        remote.registry.blob(&access, &reference.repository, &manifest.config.digest, CONFIG_LIMIT).await;
    let config = match answer {
        Ok(config) => config,
        Err(error) if error.failure == Failure::NotFound => {
            return Err(not_sound(format!("its config {} is gone", manifest.config.digest)));
        }
        Err(error) => return Err(Problem::call("read the config of", &reference, &error)),
    };
    let cache = Cache::parse_within(&manifest, &config, CONFIG_LIMIT)
        .map_err(|error| not_sound(stoker_core::error::chain(&error)))?;
    Ok(Held {
        digest: found.digest,
        manifest_size: found.bytes.len() as u64,
        config_size: config.len() as u64,
        is_index: INDEXES.contains(&manifest.media_type.as_str()),
        annotations: manifest.annotations,
        loses_links: cache.loses_links_with(&config),
        cache,
        reference,
    })
}

/// Reads the cache under a reference.
pub(crate) async fn read(remotes: &Remotes, reference: &Reference) -> Result<Held, Problem> {
    match find(remotes, reference).await? {
        Some(found) => open(remotes, found).await,
        None => Err(nothing_at(reference)),
    }
}

/// The caches under references, in their order, read side by side.
pub(crate) async fn read_all(remotes: &Remotes, references: &[Reference]) -> Result<Vec<Held>, Problem> {
    let reads = references.iter().map(|reference| read(remotes, reference));
    futures_util::stream::iter(reads).buffered(QUESTIONS).try_collect().await
}

pub(crate) fn nothing_at(reference: &Reference) -> Problem {
    Problem::failed(
        format!("cannot read {reference}: {} has nothing there", reference.host()),
        "check the spelling of repository and tag; to who may not read, some registries say so too",
    )
}

/// Which of these blobs the repository of a reference has, in their order.
pub(crate) async fn present(
    remotes: &Remotes,
    reference: &Reference,
    blobs: &[&Descriptor],
) -> Result<Vec<Presence>, Problem> {
    let remote = remotes.of(reference);
    let access = remote.pull(&reference.repository);
    let progress = Progress::new("looking for blobs", Unit::Things, blobs.len() as u64);
    let questions = blobs.iter().map(async |blob| {
        let answer = remote.registry.find_blob(&access, &reference.repository, &blob.digest).await;
        progress.add(1);
        answer.map_err(|error| Problem::call("look for the blobs of", reference, &error))
    });
    futures_util::stream::iter(questions).buffered(QUESTIONS).try_collect().await
}

/// Writes config and manifest; the blobs must be there.
pub(crate) async fn write(remotes: &Remotes, into: &Reference, cache: &Serialised) -> Result<(), Problem> {
    let remote = remotes.of(into);
    let access = remote.push(&into.repository, None);
    let failed = |error| Problem::call("write", into, &error);
    let config = Bytes::from(cache.config.clone());
    let repository = &into.repository;
    remote.registry.put_blob(&access, repository, &cache.config_digest, config).await.map_err(failed)?;
    let manifest = Bytes::from(cache.manifest.clone());
    let put = remote.registry.put_manifest(&access, repository, &into.version, MANIFEST_MEDIA_TYPE, manifest);
    put.await.map_err(failed)
}

/// Every tag of a repository.
pub(crate) async fn tags(remotes: &Remotes, repository: &Repository) -> Result<BTreeSet<String>, Problem> {
    let reference = repository.any();
    let remote = remotes.of(reference);
    let answer = remote.registry.tags(&remote.pull(&reference.repository), &reference.repository).await;
    answer.map_err(|error| Problem::call_to(&format!("list the tags of {repository}"), reference, &error))
}
