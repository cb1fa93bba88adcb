//! What CodeBuild says of a project: how often it builds, and the logs of its newest builds.

use stoker_aws_setup::Setup;
use stoker_core::names::ProjectName;

use crate::problem::Problem;
use crate::retain::{call_problem, config};
use crate::text::plain;

/// How many logs are read at most, and the length at which no more of one is read.
const LOGS: usize = 5;
const LARGEST_LOG: u64 = 32 << 20;
const SECONDS_OF_A_MONTH: f64 = 30.44 * 86_400.0;

/// A project's builds.
pub(super) struct Built {
    /// The logs of those that succeeded, the newest first.
    pub(super) logs: Vec<String>,
    pub(super) builds_per_month: Option<f64>,
}

/// Asks for a project's newest builds, a hundred at most, and for logs of theirs.
pub(super) async fn read(project: &ProjectName) -> Result<Built, Problem> {
    let setup = Setup::new(&config(None).await?);
    let builds = setup.newest_builds(project).await.map_err(|error| call_problem(&error))?;
    let (Some(newest), Some(oldest)) = (builds.first(), builds.last()) else {
        return Err(Problem::usage(
            format!("{} has no build", plain(project.as_str())),
            "name another with --project, or give a log with --log",
        ));
    };
    let span = newest.started_at.duration_since(oldest.started_at).as_secs_f64();
    let between = f64::from(u32::try_from(builds.len() - 1).unwrap_or_default());
    let builds_per_month = (span > 0.0).then(|| between / span * SECONDS_OF_A_MONTH);
    let good = builds.iter().filter(|build| build.has_succeeded);
    let mut logs = Vec::new();
    for place in good.filter_map(|build| build.log.as_ref()).take(LOGS) {
        logs.push(setup.log(place, LARGEST_LOG).await.map_err(|error| call_problem(&error))?);
    }
    Ok(Built { logs, builds_per_month })
}
