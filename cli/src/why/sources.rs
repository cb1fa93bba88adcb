//! Where what is known of a build lies.

use std::path::Path;

use cache_misses::Relation;
use stoker_aws_setup::Setup;
use stoker_core::names::Digest;
use stoker_core::provenance::Provenance;

use crate::forecast;
use crate::problem::Problem;
use crate::reference::Reference;
use crate::text::plain;

/// Logs are read up to this size; those of builds have some hundred kilobytes.
pub(super) const LARGEST_LOG: u32 = 64 << 20;

/// Where what is known of a build lies.
pub(super) struct Sources {
    pub(super) log: String,
    pub(super) from: Vec<Reference>,
    pub(super) export: Option<Reference>,
    pub(super) elsewhere: Vec<Place>,
    pub(super) commit: String,
    /// Cache mounts that the build was not given, each with the reason.
    pub(super) mounts: Vec<(String, String)>,
    /// The account that holds logs of earlier builds.
    pub(super) setup: Option<Setup>,
    /// What is not known, and why.
    pub(super) missing: Vec<String>,
}

/// A cache that the build was not given.
pub(super) struct Place {
    pub(super) reference: Reference,
    pub(super) relation: Relation,
    pub(super) note: String,
}

/// How a line left a cache: by what names it as what the line held before.
pub(super) fn how_left(digest: &Digest, cache: &Provenance, all: &[Provenance]) -> Relation {
    match all.iter().find(|next| next.parent.as_ref() == Some(digest)) {
        None => Relation::Before,
        Some(next) if next.rolled_back > cache.rolled_back => Relation::RolledBack,
        Some(next) if next.refreshed > cache.refreshed => Relation::Refreshed,
        Some(_) => Relation::Promoted,
    }
}

pub(super) fn read_file(path: &Path) -> Result<String, Problem> {
    let size = std::fs::metadata(path).map(|it| it.len()).unwrap_or_default();
    if size > u64::from(LARGEST_LOG) {
        let why = format!("{} has {size} bytes", plain(&path.display().to_string()));
        return Err(Problem::usage(why, "name the log of one build"));
    }
    forecast::read_log(path)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_took_a_caches_place_tells_how_it_left() {
        let digest = Digest::of(b"left");
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let cache = Provenance { rolled_back: at(1), refreshed: at(2), ..Provenance::default() };
        let next = |change: fn(&mut Provenance)| {
            let mut next = Provenance { parent: Some(Digest::of(b"left")), ..cache.clone() };
            change(&mut next);
            how_left(&digest, &cache, &[Provenance::default(), next])
        };
        assert_eq!(next(|_| {}), Relation::Promoted);
        assert_eq!(next(|it| it.rolled_back = Timestamp::from_second(3).ok()), Relation::RolledBack);
        assert_eq!(next(|it| it.refreshed = Timestamp::from_second(3).ok()), Relation::Refreshed);
        // A rollback also brings back when the cache was made from scratch.
        let both = next(|it| (it.rolled_back, it.refreshed) = (Timestamp::from_second(3).ok(), None));
        assert_eq!(both, Relation::RolledBack);
        assert_eq!(next(|it| it.parent = Some(Digest::of(b"another"))), Relation::Before);
    }
}
