//! Which of a project's recent builds are a line's.

use std::sync::Arc;

use crate::build_inputs::GivenInputs;
use crate::names::{Commit, Line};
use crate::ports::{Build, BuildStatus};

/// The builds of a line that were started with it, the newest first. What others say of themselves does not count.
pub fn of_line<'a>(
    builds: &'a [Arc<Build>],
    line: &Line,
) -> impl Iterator<Item = (&'a Build, &'a GivenInputs)> {
    let started = builds.iter().filter(|build| !build.claims);
    let inputs = started.filter_map(|build| Some((&**build, build.inputs.as_ref()?)));
    inputs.filter(move |(_, inputs)| inputs.line == *line)
}

/// The build of this commit of this line: one that was started for it, or that found it as the head.
#[must_use]
pub fn build_of<'a>(builds: &'a [Arc<Build>], line: &Line, commit: &Commit) -> Option<&'a Build> {
    let is_of = |(build, inputs): &(&Build, &GivenInputs)| match &inputs.commit {
        Some(reported) => reported == commit,
        None => build.resolved_commit.as_deref() == Some(commit.as_str()),
    };
    of_line(builds, line).find(is_of).map(|(build, _)| build)
}

/// A build of this line that has not ended.
#[must_use]
pub fn running<'a>(builds: &'a [Arc<Build>], line: &Line) -> Option<&'a Build> {
    of_line(builds, line).map(|(build, _)| build).find(|build| build.status == BuildStatus::InProgress)
}
