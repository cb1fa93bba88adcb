//! Where what is known of a build lies.

use std::path::Path;

use cache_misses::Relation;

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
    /// What is not known, and why.
    pub(super) missing: Vec<String>,
}

/// A cache that the build was not given.
pub(super) struct Place {
    pub(super) reference: Reference,
    pub(super) relation: Relation,
    pub(super) note: String,
}

pub(super) fn read_file(path: &Path) -> Result<String, Problem> {
    let size = std::fs::metadata(path).map(|it| it.len()).unwrap_or_default();
    if size > u64::from(LARGEST_LOG) {
        let why = format!("{} has {size} bytes", plain(&path.display().to_string()));
        return Err(Problem::usage(why, "name the log of one build"));
    }
    forecast::read_log(path)
}
