//! What the demo is played on.

use std::ops::Deref;
use std::path::Path;

use super::repository::Repository;
use crate::site::{NEVER, Site};

/// What builds the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Builder {
    /// The Docker engine that the `docker` command reaches
    Docker,
    /// A stand-in that reads Dockerfiles and writes valid caches, but runs nothing
    Simulated,
}

impl Builder {
    /// The name that the command line and the report use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Simulated => "simulated",
        }
    }
}

/// The policy of the demo. The builds of `app` write to a repository of their own; `docs` is the simple setting, with a
/// cache mount; `tools` lies in `CodeCommit` and is built by somebody else.
pub(crate) const POLICY: &str = "\
version: 1
defaults:
  retention: { mode: apply }
projects:
  - name: app
    repository: github.com/example/app
    builds-repository: 'stoker-builds/{project}'
  - name: docs
    repository: github.com/example/docs
    targets: [{ mounts: [{ id: demo }] }]
    builder: { tools: 'busybox:1.37.0-musl' }
  - name: tools
    repository: git-codecommit.us-east-1.amazonaws.com/v1/repos/tools
    builds: { start: false }
";

/// The template's parameters in the demo.
pub(crate) const PARAMETERS: [(&str, &str); 8] = [
    ("CacheRepository", "stoker/app"),
    ("BuildsRepositoryPrefix", "stoker-builds"),
    ("BuildsRepository", "stoker-builds/app"),
    // Longer than an ordinary build takes to start, and no longer.
    ("WarmDelaySeconds", "8"),
    // The scenario says when it is night, whatever the hour, and one tick is for all projects.
    ("NightlyReconcileSchedule", NEVER),
    ("NightlyWarmSchedule", NEVER),
    ("NightlyRetentionSchedule", NEVER),
    ("NightlySlots", "1"),
];

/// Everything the scenario needs.
pub(crate) struct Stage {
    pub(crate) site: Site,
    pub(super) builder: Builder,
    pub(super) app: Repository,
    pub(super) docs: Repository,
}

impl Deref for Stage {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Stage {
    /// Where builds clone the application from.
    pub(crate) fn origin(&self) -> &Path {
        self.app.origin()
    }
}
