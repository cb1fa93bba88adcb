//! What is asked of a build, and what is answered.

use std::collections::{BTreeMap, HashSet};

use buildkit_cache::Cache;
use dockerfile_keys::{Plan, image_record};
use jiff::Timestamp;
use serde::Serialize;

use crate::llb::Llb;
use crate::log::Build;

/// What is known of a build.
pub struct Evidence<'a> {
    /// Its log.
    pub build: &'a Build,
    /// The commit that was built.
    pub commit: &'a str,
    /// The commit's steps.
    pub plan: &'a Plan,
    /// The platform that was built for.
    pub platform: &'a str,
    /// Values of build arguments that the build was given.
    pub arguments: &'a BTreeMap<String, String>,
    /// What it exported.
    pub export: Option<&'a Cache>,
    /// The caches that it was given.
    pub given: &'a [Given],
    /// Caches that it was not given, in which something may be found.
    pub elsewhere: &'a [Elsewhere],
    /// Commits before it, the newest first, each the parent of the one before.
    pub past: &'a [Past<'a>],
    /// When each of these commits was made, its own among them. A cause names a commit only if what the
    /// caches hold is older.
    pub committed: &'a BTreeMap<String, Timestamp>,
    /// Ids of cache mounts that it was not given, each with the reason.
    pub mounts: &'a [(String, String)],
    /// Its provenance.
    pub llb: Option<&'a Llb>,
    /// Names the files that sources take and that differ between two commits.
    pub files: Files<'a>,
}

/// Names the files that sources take and that differ between two commits, which are named by their hashes.
pub type Files<'a> = &'a dyn Fn(&str, &str, &[String]) -> Vec<String>;

/// A cache that a build was given.
#[derive(Debug)]
pub struct Given {
    /// Its reference, as the log has it.
    pub name: String,
    /// What it holds, where that can still be read.
    pub cache: Option<Cache>,
    /// Why BuildKit does not import it, where the cache itself shows that.
    pub problem: Option<String>,
}

/// A cache that a build was not given.
#[derive(Debug)]
pub struct Elsewhere {
    /// What people call it.
    pub name: String,
    /// What it has to do with what the build was given.
    pub relation: Relation,
    /// When and why it is not what was given, as far as that is known.
    pub note: String,
    /// What it holds.
    pub cache: Cache,
}

/// What a cache has to do with those that a build was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// One of those was this before.
    Before,
    /// One of those was this before it was rolled back.
    RolledBack,
    /// One of those was this before a build from scratch took its place.
    Refreshed,
    /// One of those was this before a promotion took its place.
    Promoted,
    /// None: it is of another line.
    Other,
}

/// A commit before the one that was built.
pub struct Past<'a> {
    /// Its hash.
    pub commit: String,
    /// Its steps.
    pub plan: &'a Plan,
}

/// Why a step was not cached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Cause {
    /// Other files than those that it copies or mounts were there before.
    Content {
        /// The newest commit that changed them.
        #[serde(skip_serializing_if = "Option::is_none")]
        commit: Option<String>,
        /// Some of them.
        files: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// What it copies differs, and no commit changed it: `.git`, or what was made there before the build.
    Untracked,
    /// The instruction is another one.
    Instruction {
        /// The newest commit that changed it.
        commit: String,
        /// What it was.
        before: String,
    },
    /// It is new: no commit looked at had it before.
    New {
        /// The commit that brought it.
        commit: String,
    },
    /// An `ENV`, `ARG`, `USER`, `WORKDIR` or `SHELL` above it changed, or a flag of it.
    Setting {
        /// The newest commit that changed it.
        commit: String,
    },
    /// Other steps come before it.
    Order {
        /// The newest commit that changed them, as far as that is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        commit: Option<String>,
    },
    /// A build argument had another value.
    Argument {
        /// Those of which one, or several, changed.
        names: Vec<String>,
        /// The value before, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        before: Option<String>,
    },
    /// The build ran on another network.
    Network {
        /// Before.
        before: String,
        /// Now.
        now: String,
    },
    /// The base image's tag names other files.
    Base {
        /// The image as the log has it, with its digest.
        image: String,
        /// The digest before, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        before: Option<String>,
    },
    /// Steps whose files it takes ran again, though a given cache has their keys, and left other bytes.
    OtherBytes {
        /// The steps.
        steps: Vec<String>,
    },
    /// A step that it rests on ran and left something else.
    Follows {
        /// The steps.
        steps: Vec<String>,
        /// What would have kept it from being found in any case.
        #[serde(skip_serializing_if = "Option::is_none")]
        also: Option<Box<Cause>>,
    },
    /// One of the given caches had it earlier.
    Dropped {
        /// As what.
        cache: String,
        /// When.
        note: String,
        /// By which rule, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<Rule>,
    },
    /// One of the given caches had it before it was rolled back.
    RolledBack {
        /// As what.
        cache: String,
        /// When.
        note: String,
    },
    /// It is in a cache that the build was not given.
    NotGiven {
        /// Which.
        cache: String,
        /// Why not.
        note: String,
    },
    /// The cache that has it could not be imported.
    NotImported {
        /// Which.
        cache: String,
        /// The log's own words.
        error: String,
    },
    /// A given cache had it, and the build did not look: `--no-cache`, or `--no-cache-filter`.
    NotUsed {
        /// Which.
        cache: String,
        /// Whether this is true of all steps that ran commands or copied.
        all: bool,
    },
    /// What it fetches changed, or cannot be known beforehand.
    Uncacheable {
        /// What.
        what: String,
    },
    /// Nothing proves a cause.
    Unknown {
        /// What would.
        would_tell: String,
    },
}

/// The rule by which a line lost something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Rule {
    /// A build from scratch took the line's place.
    Refreshed,
    /// It was on probation for a merge, and main's own build did not make it main's own.
    Probation {
        /// The commit that was merged.
        commit: String,
    },
    /// The line was to stay within its limits, and other things were used later; or layers of it were lost.
    Limits {
        /// When a build last used it, if that is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        last_used: Option<Timestamp>,
    },
}

impl Cause {
    /// The steps that it follows from.
    #[must_use]
    pub fn follows(&self) -> Option<&[String]> {
        match self {
            Self::Follows { steps, .. } | Self::OtherBytes { steps } => Some(steps),
            _ => None,
        }
    }

    /// The commit that it names.
    #[must_use]
    pub fn commit(&self) -> Option<&str> {
        match self {
            Self::Content { commit, .. } | Self::Order { commit } => commit.as_deref(),
            Self::Instruction { commit, .. } | Self::New { commit } | Self::Setting { commit } => {
                Some(commit)
            }
            Self::Follows { also, .. } => also.as_ref()?.commit(),
            _ => None,
        }
    }
}

/// A step that ran.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Miss {
    /// Its name, as in the log: `[build 3/5] RUN make`.
    pub step: String,
    /// Seconds that it took, as far as the log tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Whether nothing that it rests on kept it from being found.
    pub is_first: bool,
    /// Why it ran.
    pub cause: Cause,
    /// Its cache mounts that were empty. They cost time, and let no step run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub empty_mounts: Vec<EmptyMount>,
    /// Whether provenance proves what it looked for; else the log and the caches do.
    pub is_exact: bool,
    /// Whether neither a commit before this one nor a cache looked at had the step. Unknown without commits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_unavoidable: Option<bool>,
}

/// A cache mount that a build was not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EmptyMount {
    /// Its id.
    pub id: String,
    /// Why not.
    pub why: String,
}

/// What became of the steps of a build.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The steps that ran, in the order of the Dockerfile.
    pub misses: Vec<Miss>,
    /// How many were reused.
    pub reused: usize,
    /// Seconds of steps that a cache could have spared.
    pub lost_seconds: f64,
    /// Seconds of steps that no cache could have had.
    pub unavoidable_seconds: f64,
}

impl Report {
    /// Whether it says of a base image that it moved, and not from where.
    #[must_use]
    pub fn lacks_old_base(&self) -> bool {
        self.misses.iter().any(|miss| matches!(miss.cause, Cause::Base { before: None, .. }))
    }

    /// Names the digests that base images had before: of these images, each a name and a digest, those on which given
    /// caches stand.
    pub fn name_old_bases(&mut self, images: &[(String, String)], given: &[Given], platform: &str) {
        let lookups = given.iter().filter_map(|given| given.cache.as_ref()).flat_map(Cache::lookups);
        let records: HashSet<String> = lookups.map(|lookup| lookup.digest).collect();
        let is_given =
            |digest: &str| image_record(digest, platform).is_some_and(|record| records.contains(&record));
        for miss in &mut self.misses {
            let Cause::Base { image, before: before @ None } = &mut miss.cause else { continue };
            let Some((name, now)) = image.split_once('@') else { continue };
            let of_name = images.iter().filter(|(of, digest)| of == name && digest != now);
            *before = of_name.map(|(_, digest)| digest).find(|digest| is_given(digest)).cloned();
        }
    }
}
