//! What a replay says.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::advice::Advice;
use super::figures::{Figures, Often};
use super::history::Ways;

/// What a replay says.
#[derive(Debug, Serialize)]
pub(super) struct Forecast {
    pub(super) branch: String,
    /// What a build makes.
    pub(super) images: Vec<Made>,
    /// The first and the last push that was replayed.
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) days: f64,
    pub(super) builds_of_main: usize,
    pub(super) builds_of_branches: usize,
    pub(super) ways: Ways,
    /// Pushes that were not built, by the reason.
    pub(super) skipped: BTreeMap<String, usize>,
    /// Steps of the newest commit's build.
    pub(super) steps: usize,
    /// How many of them have times that are measured.
    pub(super) measured: usize,
    /// How many builds the project of CodeBuild has in a month; null where none was named, or it has one build.
    pub(super) project_builds_per_month: Option<f64>,
    pub(super) strategies: Vec<Row>,
    /// The steps that run under Stoker.
    pub(super) often: Vec<Often>,
    pub(super) unknown: Vec<NotUnderstood>,
    /// What saves most first.
    pub(super) advice: Vec<Advice>,
}

/// An image that a build makes.
#[derive(Debug, Serialize)]
pub(super) struct Made {
    pub(super) dockerfile: String,
    pub(super) context: String,
    pub(super) target: Option<String>,
    pub(super) platform: String,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dockerfile)?;
        if let Some(target) = &self.target {
            write!(f, ", target {target}")?;
        }
        if self.platform == "linux/amd64" { Ok(()) } else { write!(f, ", {}", self.platform) }
    }
}

/// What only the page shows.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    /// For each strategy the hours of all builds so far, after each build.
    pub(super) hours: Vec<Vec<f64>>,
    pub(super) strips: Vec<Strip>,
}

/// A step in main's builds.
#[derive(Debug)]
pub(super) struct Strip {
    pub(super) step: String,
    /// Whether each build ran it; nothing where the build had no such step.
    pub(super) builds: Vec<Option<bool>>,
}

/// A strategy's figures.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) label: &'static str,
    /// Squashed branches held the default branch's newest commit.
    #[serde(flatten)]
    pub(super) figures: Figures,
    /// Squashed branches were as far behind as their first commit is old; null where nothing was squashed.
    pub(super) behind: Option<Figures>,
}

/// A line that counts as never cached.
#[derive(Debug, Serialize)]
pub(super) struct NotUnderstood {
    pub(super) line: usize,
    pub(super) problem: String,
    /// In how many builds.
    pub(super) builds: usize,
    /// Whether the newest commit still has it.
    pub(super) is_current: bool,
}
