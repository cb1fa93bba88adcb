//! What came of a promotion.

use std::sync::Arc;

use buildkit_cache::CacheHitRate;

use crate::error::{CallError, Disposition};
use crate::event::{BuildFailed, FirstMiss};
use crate::names::{CacheRepository, Commit, Digest, Line, MountId, ProjectName, Tag};

/// What came of one trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The line was updated.
    Updated {
        /// The line.
        line: Line,
        /// Where it points now.
        to: Digest,
        /// The project that the line is of.
        project: ProjectName,
        /// Records of the cache.
        records: usize,
        /// Bytes of what BuildKit has to import of it, to hold against [`SAFE_SIZE`](buildkit_cache::SAFE_SIZE).
        size: usize,
        /// The commits that a merge brought.
        merged: Vec<Commit>,
        /// Records that are on probation in it.
        on_probation: usize,
        /// The builds whose exports it got. Where several triggers updated a line at once, the first names them all.
        builds: Vec<MeasuredBuild>,
    },
    /// The line of a cache mount was updated.
    MountSaved {
        /// The project.
        project: ProjectName,
        /// The mount.
        mount: MountId,
        /// Where its line points now.
        to: Digest,
        /// Bytes of its layers, compressed.
        bytes: u64,
        /// How many there are.
        layers: usize,
        /// The build that saved it.
        build: String,
    },
    /// The line had lost layers, and keeps what rests on none of them.
    Repaired {
        /// The line's tag.
        tag: Tag,
    },
    /// The line already holds all of it.
    Unchanged {
        /// The line.
        line: Line,
    },
    /// A build that Stoker started has failed: people want to know.
    Failed(BuildFailed),
    /// There is nothing to promote, and why.
    Nothing(NothingToPromote),
}

/// Why there is nothing to promote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NothingToPromote {
    /// The project is none of the policy's.
    #[error("the policy does not name the project")]
    UnknownProject,
    /// CodeBuild forgets builds after a year.
    #[error("CodeBuild does not know the build")]
    UnknownBuild,
    /// The build runs, or has failed.
    #[error("the build has not succeeded")]
    NotSucceeded,
    /// Its environment has none of Stoker's variables.
    #[error("the build was given nothing by Stoker")]
    NotGiven,
    /// A build that somebody else started says that it is main's.
    #[error("main is filled only by builds that Stoker started; this one says itself that it is main's")]
    ClaimsMain,
    /// A build that somebody else started says that it is of this line.
    #[error("the build says itself that it is of {0}, and CodeBuild does not say that it built that branch")]
    ClaimsBranch(Line),
    /// A build of main's head built this branch instead.
    #[error("CodeBuild says that the build was of `{0}`, which is not the default branch")]
    OtherBranch(String),
    /// The build was given no tag to export to.
    #[error("the build was not to write a cache")]
    WritesNothing,
    /// Neither CodeBuild nor the build's environment names it.
    #[error("the build's commit is not known")]
    UnknownCommit,
    /// What CodeBuild resolved is not what the build was started for.
    #[error("the build built another commit than it was told to")]
    OtherCommit,
    /// Each target of a build has one export.
    #[error("the build names several exports for one target")]
    SeveralExports,
    /// The build's environment names a tag that is no export, or another project's.
    #[error("the build's export tag is not one of its project's")]
    ForeignExport,
    /// The tag of an image that arrived is no export, or of no project.
    #[error("the tag is no export's, or the policy names no project for it")]
    NoExport,
    /// No build was given the tag of an export that arrived.
    #[error("no build of Stoker's was told to write the export")]
    ExportOfNobody,
    /// Nobody has to know of the failure.
    #[error("the build that failed was not started by Stoker")]
    FailedElsewhere,
    /// The head of a fork's pull request was noted under so many tags.
    #[error("no push brings what was built of a fork's head: noted under {0} tags")]
    ForkNoted(usize),
    /// See [`Shares`](super::Shares).
    #[error("others wait, and the project has taken more than its share")]
    ShareExceeded,
    /// No probation has to end.
    #[error("nothing has been on probation in {0} for too long")]
    NothingOverdue(Line),
    /// A build names a mount that the policy does not.
    #[error("the policy names no such mount")]
    UnknownMount,
    /// No build saved it.
    #[error("there is nothing new of the mount {0}")]
    MountUnchanged(MountId),
    /// No build saved it, and the builds' times count.
    #[error("the mount {0} stays as it is, and how long the build took is noted")]
    MountMeasured(MountId),
    /// Nothing is there to be merged.
    #[error("there is no cache for {line} under any of {tags} tags, or main has been built since")]
    NoCache {
        /// The line.
        line: Line,
        /// Number of tags that were looked at.
        tags: usize,
    },
}

/// Main's builds that reused at least this much, in percent, and then less than half of what they did, have cooled.
const WARM_PERCENT: u8 = 50;

/// A build that ended well, and how much of it came out of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredBuild {
    /// Its id.
    pub build: String,
    /// What it built.
    pub commit: Commit,
    /// How warm it was.
    pub hit_rate: CacheHitRate,
    /// How many of a hundred steps of its line's build before came out of the cache, where that is known.
    pub before_percent: Option<u8>,
    /// By how many seconds it was shorter than the newest build of its line or of main that found nothing in
    /// the cache; of a build of several targets only the first one's line says it.
    pub saved_seconds: Option<u64>,
    /// Of a build whose hit rate [dropped](Self::dropped): some of the steps that missed first.
    pub first_misses: Vec<FirstMiss>,
}

impl MeasuredBuild {
    /// The share of steps that it reused, and that of the build before, in percent, if it reused far less.
    #[must_use]
    pub fn dropped(&self) -> Option<(u8, u8)> {
        let (reused, before) = (self.hit_rate.reused_percent()?, self.before_percent?);
        (before >= WARM_PERCENT && reused < before / 2).then_some((reused, before))
    }
}

/// Promotion failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call failed.
    #[error("promotion stopped half way, and starts again from what it finds")]
    Call(#[from] CallError),
    /// The line's tag holds something that is not Stoker's to replace.
    #[error("{tag} of {repository} is left alone: {why}")]
    ForeignLine {
        /// The tag.
        tag: Tag,
        /// Its repository.
        repository: CacheRepository,
        /// What it holds.
        why: String,
    },
    /// The registry has not made a blob of one repository one of another: it never does, or no manifest
    /// refers to the blob.
    #[error(
        "the registry did not mount a layer in {to}, although {from} has it. ECR mounts where `aws ecr \
         get-account-setting \
         --name BLOB_MOUNTING` says ENABLED (`aws ecr put-account-setting --name BLOB_MOUNTING --value ENABLED` \
         makes it \
         so), both repositories are encrypted with the same key, and an image of {from} still refers to the \
         blob (where none \
         does, the next build's export will do). For a registry that mounts nothing leave `builds-repository` \
         out of the policy"
    )]
    NotMounted {
        /// The builds repository.
        from: CacheRepository,
        /// The trusted one.
        to: CacheRepository,
    },
    /// The line took too long.
    #[error("the update of {line} was given up half way, as it took too long")]
    TooSlow {
        /// The line.
        line: Line,
    },
    /// It was not started, as others of its batch took the time.
    #[error("there was no time left for {of}")]
    NoTime {
        /// The line, or the trigger.
        of: String,
    },
    /// There is more besides records than BuildKit imports, such as a branch's name.
    #[error("the cache for {line} would have {bytes} bytes, more than BuildKit imports")]
    TooLarge {
        /// The line.
        line: Line,
        /// Size of the config or the manifest.
        bytes: usize,
    },
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Call(error) => error.disposition(),
            Self::TooSlow { .. } | Self::NoTime { .. } => Disposition::Retry,
            Self::ForeignLine { .. } | Self::NotMounted { .. } | Self::TooLarge { .. } => Disposition::Alarm,
        }
    }
}

/// The answer to one trigger: what came of it for each line that it touches.
pub type Answer = Result<Vec<Outcome>, Arc<Error>>;
