//! Starting the builds that a batch asks for. Projects take turns, so that one with many pushes does not keep
//! the others waiting.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use tracing::{Instrument as _, Span};

use crate::error::{CallError, Failure, chain};
use crate::names::ProjectName;
use crate::policy::Project;
use crate::ports::{Build, ReadBuilds, StopBuilds};
use crate::request::Request;
use crate::start::{self, Outcome, overtaken, start, started};

/// The ports that it needs.
pub trait Ports: start::Ports + ReadBuilds + StopBuilds {}
impl<P: start::Ports + ReadBuilds + StopBuilds> Ports for P {}

/// A build that is to be started.
#[derive(Debug, Clone)]
pub struct PendingStart<M> {
    /// The message that asks for it.
    pub of: M,
    /// What its log lines have in common.
    pub span: Span,
    /// The project whose caches it is given.
    pub project: Project,
    /// What is asked for.
    pub request: Request,
}

/// Why a build has not been started, and is to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum NotStarted {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Others have just met the limit.
    #[error("the account's limit is reached")]
    Limit,
}

/// Whether the last batch met the account's limit, and not only that of a project.
#[derive(Debug, Default)]
pub struct AccountLimit(Cell<bool>);

/// Starts builds; answers what came of each, in the order of the turns.
///
/// A project that is throttled is not tried again within the batch; once two are, the account is, and nobody
/// is. While it is, one try of a batch is enough to know that it still is.
pub async fn start_in_turn<M>(
    ports: &impl Ports,
    registry: &str,
    pending: Vec<PendingStart<M>>,
    limit: &AccountLimit,
    now: Timestamp,
) -> Vec<(PendingStart<M>, Result<Outcome, NotStarted>)> {
    let mut histories = Histories::of(&pending);
    let mut throttled: BTreeSet<ProjectName> = BTreeSet::new();
    // So many projects that are throttled are the account.
    let mut enough = if limit.0.get() { 1 } else { 2 };
    let mut all = Vec::new();
    for one in in_turns(pending) {
        let PendingStart { project, request, span, .. } = &one;
        if throttled.contains(&project.name) || throttled.len() >= enough {
            all.push((one, Err(NotStarted::Limit)));
            continue;
        }
        // In a box, as the compiler lays out only so many futures within each other.
        let started = Box::pin(start_once(ports, registry, project, request, &mut histories, now));
        let started = started.instrument(span.clone()).await;
        match &started {
            Ok(Outcome::Started { .. }) => enough = 2,
            Err(error) if error.failure == Failure::Throttled => {
                throttled.insert(project.name.clone());
            }
            _ => {}
        }
        all.push((one, started.map_err(NotStarted::Call)));
    }
    limit.0.set(throttled.len() >= enough);
    all
}

/// First everybody's first, then everybody's second, in the queue's own order: no project's name comes before others.
fn in_turns<M>(pending: Vec<PendingStart<M>>) -> Vec<PendingStart<M>> {
    let mut turns: BTreeMap<ProjectName, usize> = BTreeMap::new();
    let numbered = pending.into_iter().map(|one| {
        let turn = turns.entry(one.project.name.clone()).or_default();
        *turn += 1;
        (*turn, one)
    });
    let mut numbered: Vec<(usize, PendingStart<M>)> = numbered.collect();
    numbered.sort_by_key(|(turn, _)| *turn);
    numbered.into_iter().map(|(_, one)| one).collect()
}

/// What CodeBuild knows of the builds of each project that the batch is about: asked once, and kept up to date.
///
/// All builds since the oldest of the pushes are read, so that one that comes again late starts nothing.
struct Histories {
    since: BTreeMap<ProjectName, Option<Timestamp>>,
    known: BTreeMap<ProjectName, Vec<Arc<Build>>>,
}

impl Histories {
    fn of<M>(pending: &[PendingStart<M>]) -> Self {
        let mut since: BTreeMap<ProjectName, Option<Timestamp>> = BTreeMap::new();
        for PendingStart { request, .. } in pending {
            let oldest = since.entry(request.built_by.clone()).or_insert(request.pushed_at);
            *oldest = [*oldest, request.pushed_at].into_iter().flatten().min();
        }
        Self { since, known: BTreeMap::new() }
    }

    async fn of_project(
        &mut self,
        ports: &impl ReadBuilds,
        project: &ProjectName,
    ) -> Result<&mut Vec<Arc<Build>>, CallError> {
        if !self.known.contains_key(project) {
            let since = self.since.get(project).copied().flatten();
            let builds = ports.recent(project, since).await?;
            self.known.insert(project.clone(), builds);
        }
        Ok(self.known.entry(project.clone()).or_default())
    }
}

/// Starts a build unless it has been started before, and stops what it overtakes.
async fn start_once(
    ports: &impl Ports,
    registry: &str,
    project: &Project,
    request: &Request,
    histories: &mut Histories,
    now: Timestamp,
) -> Result<Outcome, CallError> {
    let recent = histories.of_project(ports, &request.built_by).await?;
    let outcome = start(ports, registry, project, request, recent, now).await?;
    if let Outcome::Started { id, .. } = &outcome {
        for build in overtaken(project, request, recent) {
            match ports.stop(&build.id).await {
                Ok(()) => tracing::info!(build.id = build.id, "stopped: a newer push has overtaken it"),
                // It costs minutes, and the build that counts has started.
                Err(error) => {
                    tracing::warn!(error = chain(&error), build.id = build.id, "an overtaken build runs on");
                }
            }
        }
        recent.insert(0, Arc::new(started(request, id, now)));
    }
    Ok(outcome)
}
