//! What made builds lose time, by the causes that `stoker why` finds.

use std::collections::BTreeMap;

use cache_misses::{Cause, Report};
use serde::Serialize;
use serde_json::Value;
use stoker_core::names::ProjectName;

/// How many causes are reported of a project.
const MOST: usize = 10;

/// What a project's builds lost to misses.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LostTime {
    pub(crate) project: ProjectName,
    /// How many builds there were.
    pub(crate) builds: usize,
    /// Of how many the log was read.
    pub(crate) builds_read: usize,
    pub(crate) lost_minutes: f64,
    /// Those that cost most first.
    pub(crate) causes: Vec<LostCause>,
}

/// A step that missed first, why, and what that cost together with all that followed.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LostCause {
    pub(crate) step: String,
    /// As `stoker why --json` has it.
    pub(crate) kind: String,
    /// In how many builds.
    pub(crate) builds: usize,
    pub(crate) minutes: f64,
}

/// Sums what builds of a project lost, by the first miss that each step follows from.
pub(crate) fn lost<'a>(
    project: &ProjectName,
    builds: usize,
    read: impl IntoIterator<Item = &'a Report>,
) -> LostTime {
    let mut causes: BTreeMap<(String, String), (usize, f64)> = BTreeMap::new();
    let (mut builds_read, mut seconds) = (0, 0.0);
    for report in read {
        builds_read += 1;
        seconds += report.lost_seconds;
        let mut of_build: BTreeMap<(String, String), f64> = BTreeMap::new();
        for miss in report.misses.iter().filter(|miss| miss.is_unavoidable != Some(true)) {
            let mut first = miss;
            // Names may repeat: a chain is no longer than the build.
            for _ in &report.misses {
                let Some(steps) = first.cause.follows() else { break };
                let below = report.misses.iter().find(|other| steps.contains(&other.step));
                let Some(below) = below else { break };
                first = below;
            }
            let key = (first.step.clone(), kind(&first.cause));
            *of_build.entry(key).or_default() += miss.seconds.unwrap_or_default();
        }
        for (key, seconds) in of_build {
            let (builds, sum) = causes.entry(key).or_default();
            *builds += 1;
            *sum += seconds;
        }
    }
    let causes = causes.into_iter().map(|((step, kind), (builds, seconds))| LostCause {
        step,
        kind,
        builds,
        minutes: seconds / 60.0,
    });
    let mut causes: Vec<LostCause> = causes.collect();
    causes.sort_by(|a, b| b.minutes.total_cmp(&a.minutes));
    causes.truncate(MOST);
    LostTime { project: project.clone(), builds, builds_read, lost_minutes: seconds / 60.0, causes }
}

fn kind(cause: &Cause) -> String {
    let reported = serde_json::to_value(cause).unwrap_or(Value::Null);
    reported["kind"].as_str().unwrap_or_default().to_owned()
}
