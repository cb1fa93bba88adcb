//! What is in a repository: every image that the catalogue lists, and what its manifest says. A manifest never changes
//! under its digest, so it is read once.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};

pub use super::known::{Facts, Known, Shape};
use crate::error::CallError;
use crate::names::{CacheRepository, Digest};
use crate::ports::{Catalogue, IMAGES_PER_CALL, ListedImage, ReadManifests};

/// How many requests for manifests are under way at once: each answer has a megabyte or two.
const REQUESTS_AT_ONCE: usize = 4;
/// What has been learnt is kept whenever so many manifests more have been read: should the function run out of time, the next
/// run goes on from there.
const MANIFESTS_PER_KEEP: usize = 20_000;

/// What is in a repository.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The repository.
    pub repository: CacheRepository,
    /// Every image.
    pub images: Vec<Arc<ListedImage>>,
    /// What their manifests say.
    pub known: Known,
    /// Images whose manifest could not be read, and why: nothing is deleted from an inventory that lacks any.
    pub unread: Vec<(Digest, String)>,
}

/// Takes the inventory of a repository: the catalogue in pages, and the manifests that are not known yet, 100 with a
/// request. `keep` is given what is known whenever that is more than before.
pub async fn take(
    ports: &(impl Catalogue + ReadManifests),
    repository: &CacheRepository,
    mut known: Known,
    mut keep: impl AsyncFnMut(&mut Known),
) -> Result<Inventory, CallError> {
    let mut images: Vec<Arc<ListedImage>> = ports.list(repository).await?.into_iter().map(Arc::new).collect();
    known.forget_all_but(&images);
    // An archived image answers no question, and costs no build anything.
    let unknown: Vec<Digest> = images
        .iter()
        .filter(|image| !image.is_archived && known.of(&image.digest).is_none())
        .map(|image| image.digest.clone())
        .collect();
    let mut unread = Vec::new();
    for some in unknown.chunks(MANIFESTS_PER_KEEP) {
        let pages = stream::iter(some.chunks(IMAGES_PER_CALL))
            .map(|digests| async move { (digests, ports.manifests(repository, digests).await) });
        let mut pages = pages.buffered(REQUESTS_AT_ONCE);
        while let Some((asked, page)) = pages.next().await {
            for (digest, manifest) in page? {
                // Whatever a registry answers, this is what it said the bytes are.
                if Digest::of(&manifest) == digest {
                    known.learn(digest, &manifest);
                }
            }
            let missing = asked.iter().filter(|digest| known.of(digest).is_none());
            unread.extend(
                missing.map(|digest| (digest.clone(), "the registry answers no manifest".to_owned())),
            );
        }
        drop(pages);
        keep(&mut known).await;
    }
    if unknown.is_empty() {
        keep(&mut known).await;
    }
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
