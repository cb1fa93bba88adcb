//! The one way in which a line is written.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::try_join_all;
use jiff::Timestamp;

use crate::error::CallError;
use crate::mounts::{self, MountManifest};
use crate::names::{CacheRepository, Digest, Line, Scope, Tag};
use crate::ports::{Image, WriteImages};
use crate::provenance::Provenance;
use buildkit_cache::{MANIFEST_MEDIA_TYPE, Manifest, importable};

/// What is to be written of a line: promotion, repair and rollback plan one, and [`apply`](Self::apply) writes it.
///
/// The order of the writes makes a crash between any two harmless. Every blob is there before a manifest
/// names it, and the history before the line changes, so that nothing which the line was is lost. The caches
/// of commits come last: reconciliation takes a build whose commit has a cache for promoted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LineUpdate {
    /// The cache's config, unless the repository has it.
    pub config: Option<(Digest, Bytes)>,
    /// What the line was, and the tag of its history that is to hold it.
    pub history: Option<(Tag, Image)>,
    /// The line's tag, and the manifest that it is to hold. `None` where the line stays as it is.
    pub line: Option<(Tag, Bytes)>,
    /// For each commit its tags, in the order of the writes, and the manifests that they are to hold.
    pub commits: Vec<Vec<(Tag, Bytes)>>,
}

impl LineUpdate {
    /// Plans to put a line back to a cache of its history, whose config and layers are still there. What the line holds
    /// now goes to its history, and the line notes when this was: promotion brings it nothing that was built before.
    /// Fails where BuildKit would not import the cache with its new annotations, and says why.
    pub fn rollback(
        scope: &Scope,
        line: &Line,
        current: Image,
        target: &Manifest,
        now: Timestamp,
    ) -> Result<Self, String> {
        let manifest = target.annotated(rolled_back(&current, line, &target.annotations, now));
        importable(&manifest)?;
        Ok(Self::replacing(scope, line, current, manifest, now))
    }

    /// Plans to put the line of a cache mount back, as [`rollback`](Self::rollback) does. What was measured stays true.
    #[must_use]
    pub fn rollback_of_mount(
        scope: &Scope,
        line: &Line,
        current: Image,
        target: &MountManifest,
        now: Timestamp,
    ) -> Self {
        let mut annotations = rolled_back(&current, line, &target.annotations, now);
        let of_mount = target.annotations.iter().filter(|(name, _)| name.starts_with(mounts::ID));
        annotations.extend(of_mount.map(|(name, value)| (name.clone(), value.clone())));
        Self::replacing(scope, line, current, target.annotated(&annotations), now)
    }

    /// The line is to hold this manifest, and its history what it holds now.
    fn replacing(scope: &Scope, line: &Line, current: Image, manifest: Vec<u8>, now: Timestamp) -> Self {
        Self {
            history: Some((Tag::history(scope, line, now, &current.digest), current)),
            line: Some((Tag::line(scope, line), Bytes::from(manifest))),
            ..Self::default()
        }
    }

    /// Writes it. Whoever repeats it after a failure writes the same.
    pub async fn apply(
        self,
        ports: &impl WriteImages,
        repository: &CacheRepository,
    ) -> Result<(), CallError> {
        if let Some((digest, config)) = self.config {
            ports.put_blob(repository, &digest, config).await?;
        }
        if let Some((tag, image)) = self.history {
            ports.put_image(repository, &tag, &image.media_type, image.manifest).await?;
        }
        let put = async |tags: Vec<(Tag, Bytes)>| {
            for (tag, manifest) in tags {
                ports.put_image(repository, &tag, MANIFEST_MEDIA_TYPE, manifest).await?;
            }
            Ok(())
        };
        put(Vec::from_iter(self.line)).await?;
        try_join_all(self.commits.into_iter().map(put)).await.map(drop)
    }
}

/// The annotations of a line that was put back to what has these.
fn rolled_back(
    current: &Image,
    line: &Line,
    annotations: &BTreeMap<String, String>,
    now: Timestamp,
) -> BTreeMap<String, String> {
    let provenance = Provenance {
        parent: Some(current.digest.clone()),
        rolled_back: Some(now),
        ..Provenance::read(annotations)
    };
    provenance.annotations(line)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::error::Failure;

    /// Notes each write, and refuses those after the first `limit`.
    struct Registry {
        writes: RefCell<Vec<String>>,
        limit: usize,
    }

    impl Registry {
        fn write(&self, what: String) -> Result<(), CallError> {
            if self.writes.borrow().len() == self.limit {
                return Err(CallError::new("test:Write", what, Failure::Unavailable, "no more"));
            }
            self.writes.borrow_mut().push(what);
            Ok(())
        }
    }

    impl WriteImages for Registry {
        async fn put_blob(&self, _: &CacheRepository, digest: &Digest, _: Bytes) -> Result<(), CallError> {
            self.write(digest.short())
        }

        async fn put_image(
            &self,
            _: &CacheRepository,
            tag: &Tag,
            _: &str,
            _: Bytes,
        ) -> Result<(), CallError> {
            self.write(tag.to_string())
        }
    }

    #[tokio::test]
    async fn a_crash_between_any_two_writes_loses_nothing() {
        let tag = |text: &str| Tag::known(text).unwrap();
        let was = Image { digest: Digest::of(b"was"), media_type: String::new(), manifest: Bytes::new() };
        let history = "app.history.main.20261121T090000Z-1f2e3d4c";
        let commit = format!("app.commit.{}", "ab".repeat(20));
        let update = LineUpdate {
            config: Some((Digest::of(b"config"), Bytes::new())),
            history: Some((tag(history), was)),
            line: Some((tag("app.main"), Bytes::new())),
            commits: vec![vec![(tag(&commit), Bytes::new())]],
        };
        let all = [Digest::of(b"config").short(), history.to_owned(), "app.main".to_owned(), commit];
        let repository = CacheRepository::new("stoker/app").unwrap();
        for limit in 0..=all.len() {
            let registry = Registry { writes: RefCell::default(), limit };
            let applied = update.clone().apply(&registry, &repository).await;
            assert_eq!(applied.is_ok(), limit == all.len());
            assert_eq!(*registry.writes.borrow(), all[..limit]);
        }
    }
}
