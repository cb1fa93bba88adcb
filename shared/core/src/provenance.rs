//! Where a line's content comes from, kept as annotations of its manifest. They are believed only in a repository that
//! nobody but Stoker writes; what a build says of its export is never read.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::names::{Commit, Digest, Line, ProjectName, Revision};
use crate::request::Trust;
use buildkit_cache::Kind;

const PROJECT: &str = "stoker.project";
const TRUST: &str = "stoker.trust";
const LINE: &str = "stoker.line";
const COMMIT: &str = "stoker.commit";
const BUILD: &str = "stoker.build";
const BUILT_AT: &str = "stoker.built-at";
const MERGED: &str = "stoker.merged";
const MERGED_AT: &str = "stoker.merged-at";
const PARENT: &str = "stoker.parent";
const ROLLED_BACK: &str = "stoker.rolled-back-at";
const REFRESHED: &str = "stoker.refreshed-at";
const BASES: &str = "stoker.bases";
const REUSED: &str = "stoker.reused-percent";
const PROBATION_SINCE: &str = "stoker.probation-since";
const PROBATION_UNTIL: &str = "stoker.probation-until";
const SHARED: &str = "stoker.shared";
const COLD_AT: &str = "stoker.cold-at";
const COLD_SECONDS: &str = "stoker.cold-seconds";

/// What a line's manifest says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provenance {
    /// The project that it is of.
    pub project: Option<ProjectName>,
    /// The newest build whose export the line holds.
    pub built: Option<Built>,
    /// The commit whose cache a merge brought in last.
    pub merged: Option<Commit>,
    /// When that was.
    pub merged_at: Option<Timestamp>,
    /// The cache that the line left for this one.
    pub parent: Option<Digest>,
    /// When somebody last rolled the line back: what was built before comes to it no more.
    pub rolled_back: Option<Timestamp>,
    /// When the build from scratch started that took the line's place.
    pub refreshed: Option<Timestamp>,
    /// A digest over the base images that a build of the line was started with.
    pub bases: Option<String>,
    /// How many of a hundred steps of the newest build came out of the cache.
    pub reused_percent: Option<u8>,
    /// The newest build of the line that found nothing in the cache.
    pub cold: Option<Cold>,
    /// Of main's line: what of it has been on probation for longest.
    pub probation: Option<Probation>,
    /// Of a commit's cache: whether another line has built the commit, too.
    pub shared: Option<bool>,
}

/// A build that found nothing in the cache, which is what warm ones are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cold {
    /// When it started.
    pub at: Timestamp,
    /// How long it took.
    pub seconds: u64,
}

/// The time that what a merge brought may stay without a build of main.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probation {
    /// When it was merged.
    pub since: Timestamp,
    /// When it leaves the line at the latest, by the policy of the day on which the line was written.
    pub until: Timestamp,
}

/// A build whose export a line holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// When the build started.
    pub at: Timestamp,
    /// What it built.
    pub commit: Commit,
    /// Its id.
    pub build: String,
}

/// The line that a manifest says it is on.
#[must_use]
pub fn line(annotations: &BTreeMap<String, String>) -> Option<Line> {
    Line::parse(annotations.get(LINE)?).ok()
}

/// Whose code a manifest says its builds ran: a [`Trust`] as text, or anything.
#[must_use]
pub fn trust(annotations: &BTreeMap<String, String>) -> Option<&str> {
    annotations.get(TRUST).map(String::as_str)
}

/// The annotations of a note that a commit is the head of a fork's pull request, whose line this is. Each
/// commit has a note of its own, as an image can have so many tags only.
#[must_use]
pub fn of_fork(project: &ProjectName, line: &Line, head: &Revision) -> BTreeMap<String, String> {
    let provenance = Provenance { project: Some(project.clone()), ..Provenance::default() };
    let mut annotations = provenance.annotations(line);
    annotations.insert(COMMIT.to_owned(), head.to_string());
    annotations
}

impl Provenance {
    /// The annotations of a manifest on `line`.
    #[must_use]
    pub fn annotations(&self, line: &Line) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::from([
            (LINE.to_owned(), line.to_string()),
            (TRUST.to_owned(), Trust::of(line).to_string()),
        ]);
        annotations.extend(self.project.iter().map(|project| (PROJECT.to_owned(), project.to_string())));
        if let Some(built) = &self.built {
            annotations.insert(COMMIT.to_owned(), built.commit.to_string());
            annotations.insert(BUILD.to_owned(), built.build.clone());
            annotations.insert(BUILT_AT.to_owned(), built.at.to_string());
        }
        annotations.extend(self.merged.iter().map(|commit| (MERGED.to_owned(), commit.to_string())));
        annotations.extend(self.merged_at.iter().map(|time| (MERGED_AT.to_owned(), time.to_string())));
        annotations.extend(self.parent.iter().map(|digest| (PARENT.to_owned(), digest.to_string())));
        annotations.extend(self.rolled_back.iter().map(|time| (ROLLED_BACK.to_owned(), time.to_string())));
        annotations.extend(self.refreshed.iter().map(|time| (REFRESHED.to_owned(), time.to_string())));
        annotations.extend(self.bases.iter().map(|bases| (BASES.to_owned(), bases.clone())));
        annotations.extend(self.reused_percent.iter().map(|share| (REUSED.to_owned(), share.to_string())));
        annotations.extend(self.shared.iter().map(|shared| (SHARED.to_owned(), shared.to_string())));
        if let Some(Probation { since, until }) = self.probation {
            annotations.insert(PROBATION_SINCE.to_owned(), since.to_string());
            annotations.insert(PROBATION_UNTIL.to_owned(), until.to_string());
        }
        if let Some(cold) = self.cold {
            annotations.insert(COLD_AT.to_owned(), cold.at.to_string());
            annotations.insert(COLD_SECONDS.to_owned(), cold.seconds.to_string());
        }
        annotations
    }

    /// What a cache's manifest says of itself; `None` for the manifest of anything else.
    #[must_use]
    pub fn of_manifest(manifest: &[u8]) -> Option<Self> {
        match buildkit_cache::classify(manifest) {
            Kind::Cache(manifest) => Some(Self::read(&manifest.annotations)),
            Kind::Other { .. } => None,
        }
    }

    /// Reads a manifest's annotations; what is missing or malformed is left out.
    #[must_use]
    pub fn read(annotations: &BTreeMap<String, String>) -> Self {
        let value = |name: &str| annotations.get(name);
        let built = || {
            Some(Built {
                at: value(BUILT_AT)?.parse().ok()?,
                commit: Commit::new(value(COMMIT)?).ok()?,
                build: value(BUILD)?.clone(),
            })
        };
        let cold =
            || Some(Cold { at: value(COLD_AT)?.parse().ok()?, seconds: value(COLD_SECONDS)?.parse().ok()? });
        let time = |name: &str| value(name).and_then(|time| time.parse().ok());
        let probation = || Some(Probation { since: time(PROBATION_SINCE)?, until: time(PROBATION_UNTIL)? });
        Self {
            project: value(PROJECT).and_then(|name| ProjectName::new(name.as_str()).ok()),
            built: built(),
            merged: value(MERGED).and_then(|commit| Commit::new(commit).ok()),
            merged_at: time(MERGED_AT),
            parent: value(PARENT).and_then(|digest| Digest::new(digest).ok()),
            rolled_back: time(ROLLED_BACK),
            refreshed: time(REFRESHED),
            bases: value(BASES).cloned(),
            reused_percent: value(REUSED).and_then(|share| share.parse().ok()),
            cold: cold(),
            probation: probation(),
            shared: value(SHARED).and_then(|shared| shared.parse().ok()),
        }
    }
}
