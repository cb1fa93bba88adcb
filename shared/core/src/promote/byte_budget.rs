//! How much memory the lines that are updated at once may take together. Each waits until there is room for
//! it: what one pusher exports makes others wait for a moment, and never kills the function that moves their
//! lines as well.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use buildkit_cache::Manifest;

/// Bytes for all lines at once: what a function of 128 megabytes has beside itself.
const ALL: usize = 80 << 20;
/// A cache takes at most so many times its bytes as JSON, read, joined and written; `cache` holds what it
/// reads to that.
const TIMES: usize = 12;
/// What a manifest may have that a build wrote: ECR takes 4 MiB, and answers it as text in JSON.
const MANIFEST: usize = 3 * (4 << 20);
/// A permit is for so many bytes.
const UNIT: usize = 1 << 10;

/// The room for all lines.
#[derive(Debug, Clone)]
pub(super) struct ByteBudget(Arc<Semaphore>);

/// A part of it, until it is dropped.
pub(super) struct Part(#[expect(dead_code, reason = "held")] Option<OwnedSemaphorePermit>);

impl ByteBudget {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(ALL / UNIT)))
    }

    /// Room to read so many manifests of builds.
    pub(super) async fn for_manifests(&self, number: usize) -> Part {
        self.take(number.saturating_mul(MANIFEST)).await
    }

    /// Room to join caches of so many bytes of JSON.
    pub(super) async fn for_caches(&self, bytes: usize) -> Part {
        self.take(bytes.saturating_mul(TIMES)).await
    }

    /// What needs more than there is gets all of it.
    async fn take(&self, bytes: usize) -> Part {
        let units = u32::try_from(bytes.min(ALL).div_ceil(UNIT)).unwrap_or(u32::MAX);
        Part(Arc::clone(&self.0).acquire_many_owned(units).await.ok())
    }
}

/// Bytes of a cache's JSON, as its manifest has it. A config that is larger is not read.
pub(super) fn bytes_of(manifest: &Manifest, manifest_bytes: usize) -> usize {
    let config = usize::try_from(manifest.config.size).unwrap_or(usize::MAX);
    manifest_bytes.saturating_add(config.min(buildkit_cache::IMPORT_LIMIT))
}

/// Whether caches of so many bytes of JSON can be joined in all the room that there is.
pub(super) fn fits(bytes: usize) -> bool {
    bytes.saturating_mul(TIMES) <= ALL
}
