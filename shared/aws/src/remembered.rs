//! What a function remembers between its invocations.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use stoker_core::names::{CacheRepository, Digest};

/// ECR's token for the distribution API, and when it ends. It is good for 12 hours.
#[derive(Default)]
pub(super) struct Token(pub(super) Mutex<Option<(String, SystemTime)>>);

/// The secrets as last read, and when.
#[derive(Default)]
pub(super) struct Secrets(pub(super) Mutex<Option<(Vec<Vec<u8>>, Instant)>>);

/// Blobs that were read lately: the next build mostly reads the config of main's cache again.
#[derive(Default)]
pub(super) struct Blobs(Mutex<VecDeque<(CacheRepository, Digest, Bytes)>>);

impl Blobs {
    /// Bytes to remember at most.
    const CAPACITY: usize = 8 << 20;

    pub(super) fn find(&self, repository: &CacheRepository, digest: &Digest) -> Option<Bytes> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .iter()
            .find(|(of, known, _)| of == repository && known == digest)
            .map(|(.., bytes)| bytes.clone())
    }

    pub(super) fn remember(&self, repository: &CacheRepository, digest: &Digest, bytes: &Bytes) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.push_back((repository.clone(), digest.clone(), bytes.clone()));
        while known.iter().map(|(.., bytes)| bytes.len()).sum::<usize>() > Self::CAPACITY {
            known.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_remembered_by_repository_and_up_to_a_size() {
        let (a, b) = (CacheRepository::new("stoker/a").unwrap(), CacheRepository::new("stoker/b").unwrap());
        let blobs = Blobs::default();
        let half = Bytes::from(vec![0; Blobs::CAPACITY / 2]);
        let digests = [b"1", b"2", b"3"].map(|name| Digest::of(name));
        blobs.remember(&a, &digests[0], &half);
        blobs.remember(&a, &digests[1], &half);
        assert_eq!(blobs.find(&a, &digests[0]), Some(half.clone()));
        assert_eq!(blobs.find(&b, &digests[0]), None, "whoever may read one repository may not read all");
        blobs.remember(&a, &digests[2], &half);
        let left = digests.map(|digest| blobs.find(&a, &digest).is_some());
        assert_eq!(left, [false, true, true], "the oldest goes");
    }
}
