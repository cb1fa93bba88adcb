//! What is asked of a line.

use std::collections::BTreeMap;

use buildkit_cache::Mark;

use crate::names::{Commit, Line, ProjectName, Scope, Tag};
use crate::policy::Project;
use crate::provenance::Built;

/// All that a batch asks of its lines.
pub(super) type UpdateRequests = BTreeMap<(ProjectName, Scope, Line), LineRequests>;

/// All that is asked of one line, which is read and written once for it.
#[derive(Debug)]
pub(super) struct LineRequests {
    pub(super) project: Project,
    pub(super) scope: Scope,
    pub(super) line: Line,
    pub(super) requests: Vec<UpdateRequest>,
}

/// What a trigger asks of a line.
#[derive(Debug, Clone)]
pub(super) struct UpdateRequest {
    /// The trigger's place in the batch.
    pub(super) trigger: usize,
    /// `None` where nothing is to be merged, and only what has been on probation for too long is to leave.
    pub(super) source: Option<UpdateSource>,
}

/// What is to be merged into a line.
#[derive(Debug, Clone)]
pub(super) enum UpdateSource {
    /// A build's export, under this tag of the repository that builds write to.
    Built(Tag, Built, BuildFacts),
    /// A commit's cache, and when it was merged: as this line built it, or as the only one that has.
    Merged(Mark, Option<Line>),
}

/// What else is known of a build.
#[derive(Debug, Clone, Default)]
pub(super) struct BuildFacts {
    /// It was to build from scratch.
    pub(super) refresh: bool,
    /// A digest over the base images that it was started with.
    pub(super) bases: Option<String>,
    /// How long it took.
    pub(super) seconds: Option<u64>,
    /// The commits that came to its line with what it built.
    pub(super) merged: Vec<Commit>,
    /// A build of the commit by another line is promoted at the same time.
    pub(super) is_shared: bool,
}
