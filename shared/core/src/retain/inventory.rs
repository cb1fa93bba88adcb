//! What is in a repository: every image that the catalogue lists, and what its manifest says.
//!
//! Whoever may push to the repository chooses what its manifests hold. A manifest has up to 4 MiB and a
//! request names a hundred of them, so an answer has a limit: what would be longer is asked for in halves,
//! and one that is too long alone is not read at all.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

pub use super::manifest_index::{ManifestIndex, ManifestInfo, Shape};
use crate::error::CallError;
use crate::names::{CacheRepository, Digest};
use crate::ports::{Catalogue, IMAGES_PER_CALL, ListedImage, ReadManifests};

/// How many requests for manifests are under way at once.
const REQUESTS_AT_ONCE: usize = 4;
/// No answer is longer, in bytes, and twice that is in memory while it is parsed. A hundred manifests of 30
/// layers are one mebibyte or two. A manifest that does not fit alone is far beyond what BuildKit imports (1
/// MiB).
const LONGEST_ANSWER: usize = 4 << 20;
/// So many manifests are found too large one by one, each with some fifteen requests. After that whatever
/// comes in an answer that is too long is taken for too large as well: nobody keeps the function busy until
/// its time is up.
const MOST_TOO_LARGE: usize = 500;

/// What is in a repository.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The repository.
    pub repository: CacheRepository,
    /// Every image.
    pub images: Vec<Arc<ListedImage>>,
    /// What their manifests say.
    pub known: ManifestIndex,
    /// Images whose manifest could not be read, and why: nothing is deleted from an inventory that lacks any.
    pub unread: Vec<(Digest, String)>,
}

/// Takes the inventory of a repository: the catalogue in pages, and the manifests, 100 with a request.
pub async fn take(
    ports: &(impl Catalogue + ReadManifests),
    repository: &CacheRepository,
) -> Result<Inventory, CallError> {
    let mut images: Vec<Arc<ListedImage>> = ports.list(repository).await?.into_iter().map(Arc::new).collect();
    let mut known = ManifestIndex::default();
    // An archived image answers no question, and costs no build anything.
    let asked: Vec<Digest> =
        images.iter().filter(|image| !image.is_archived).map(|image| image.digest.clone()).collect();
    let too_large =
        read(ports, repository, &asked, |digest, manifest| known.learn(digest, &manifest)).await?;
    for digest in too_large {
        known.learn_too_large(digest);
    }
    let shapes = asked.iter().filter_map(|digest| known.of(digest)).map(ManifestInfo::shape);
    let too_large = shapes.filter(|shape| *shape == Shape::TooLarge).count();
    if too_large > 0 {
        tracing::warn!(cache.repository = %repository, manifests = too_large, "manifests are too large to read, \
             and are kept");
    }
    let mut unread: Vec<(Digest, String)> = asked
        .into_iter()
        .filter(|digest| known.of(digest).is_none())
        .map(|digest| (digest, "the registry answers no manifest".to_owned()))
        .collect();
    if !unread.is_empty() {
        // What was deleted since it was listed keeps nothing alive: that is no gap.
        let there: HashSet<Digest> =
            ports.list(repository).await?.into_iter().map(|image| image.digest).collect();
        let missing: HashSet<Digest> = unread.iter().map(|(digest, _)| digest.clone()).collect();
        images.retain(|image| !missing.contains(&image.digest) || there.contains(&image.digest));
        unread.retain(|(digest, _)| there.contains(digest));
    }
    Ok(Inventory { repository: repository.clone(), images, known, unread })
}

/// Reads manifests, several answers at once, and gives each to `learn`. Answers those that are too large to
/// be read; what is not there is left out.
pub async fn read(
    ports: &impl ReadManifests,
    repository: &CacheRepository,
    digests: &[Digest],
    mut learn: impl FnMut(Digest, Bytes),
) -> Result<Vec<Digest>, CallError> {
    let mut too_large = Vec::new();
    let mut waiting: Vec<&[Digest]> = digests.chunks(IMAGES_PER_CALL).rev().collect();
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < REQUESTS_AT_ONCE
            && let Some(some) = waiting.pop()
        {
            under_way.push(async move { (some, ports.manifests(repository, some, LONGEST_ANSWER).await) });
        }
        let Some((some, answer)) = under_way.next().await else { return Ok(too_large) };
        if let Some(manifests) = answer? {
            for (digest, manifest) in manifests {
                // Whatever a registry answers, this is what it said the bytes are.
                if Digest::of(&manifest) == digest {
                    learn(digest, manifest);
                }
            }
        } else if some.len() > 1 && too_large.len() < MOST_TOO_LARGE {
            let (first, second) = some.split_at(some.len() / 2);
            waiting.extend([second, first]);
        } else {
            too_large.extend_from_slice(some);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeSet;

    use super::*;

    /// Answers no manifest as it is, and some not at all, as they are too long for any answer.
    #[derive(Default)]
    struct Registry {
        too_large: BTreeSet<Digest>,
        requests: Cell<usize>,
        under_way: Cell<usize>,
    }

    fn digests(count: u32) -> Vec<Digest> {
        (0..count).map(|number| Digest::of(&number.to_le_bytes())).collect()
    }

    impl ReadManifests for Registry {
        async fn manifests(
            &self,
            _: &CacheRepository,
            digests: &[Digest],
            longest: usize,
        ) -> Result<Option<Vec<(Digest, Bytes)>>, CallError> {
            assert_eq!(longest, LONGEST_ANSWER);
            self.requests.set(self.requests.get() + 1);
            self.under_way.set(self.under_way.get() + 1);
            assert!(self.under_way.get() <= REQUESTS_AT_ONCE);
            tokio::task::yield_now().await;
            self.under_way.set(self.under_way.get() - 1);
            let answer = || digests.iter().map(|digest| (digest.clone(), Bytes::new()));
            Ok(digests.iter().all(|digest| !self.too_large.contains(digest)).then(|| answer().collect()))
        }
    }

    /// What is found too large. Nothing is learnt, as no answer is what its digest says.
    fn too_large_of(registry: &Registry, digests: &[Digest]) -> BTreeSet<Digest> {
        let repository = CacheRepository::new("stoker/app").unwrap();
        let learn = |_, _| panic!("these bytes have another digest");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read(registry, &repository, digests, learn)).unwrap().into_iter().collect()
    }

    #[test]
    fn one_manifest_that_is_too_large_takes_no_other_along() {
        let digests = digests(1000);
        let registry = Registry { too_large: [digests[123].clone()].into(), ..Registry::default() };
        assert_eq!(too_large_of(&registry, &digests), registry.too_large);
        assert!(registry.requests.get() <= 10 + 2 * 7, "{}", registry.requests.get());
    }

    #[test]
    fn attack_more_manifests_that_are_too_large_than_anybody_looks_for() {
        let digests = digests(50_000);
        let registry = Registry { too_large: digests.iter().cloned().collect(), ..Registry::default() };
        assert_eq!(too_large_of(&registry, &digests), registry.too_large, "all are kept");
        let most = digests.len() / IMAGES_PER_CALL + 3 * MOST_TOO_LARGE;
        assert!(registry.requests.get() < most, "{}", registry.requests.get());
    }
}
