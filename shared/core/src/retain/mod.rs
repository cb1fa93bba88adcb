//! Retention: which caches of a repository live, and why.
//!
//! [`inventory::take`] reads what is there, [`plan::plan`] judges it, [`enforce`] carries the plan out in
//! batches. The plan is pure and says of every image which rule keeps it or lets it go; what it does not know
//! it keeps.

pub mod forecast;
pub mod inventory;
mod manifest_index;
pub mod plan;
#[cfg(test)]
mod retention;
mod rule;
mod why;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};

use crate::error::CallError;
use crate::names::{CacheRepository, Digest};
use crate::policy::{Mode, Project};
use crate::ports::{BuildStatus, Catalogue, IMAGES_PER_CALL, ListedImage, ReadBuilds, ReadManifests};
use inventory::Inventory;
pub use plan::{Action, DeletedLine, Plan, PlanInputs, Verdict};
pub use rule::Rule;

/// The ports that retention needs.
pub trait Ports: Catalogue + ReadManifests + ReadBuilds {}
impl<P: Catalogue + ReadManifests + ReadBuilds> Ports for P {}

/// What became of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The plan.
    pub plan: Plan,
    /// Whether the plan was carried out; a repository in `report` mode is left as it is.
    pub applied: bool,
    /// Images that were deleted.
    pub deleted: Vec<Digest>,
    /// Images that are left for the next run, as a run deletes no more than the policy says.
    pub left: usize,
    /// Images that were not deleted because they are not what the plan saw any more.
    pub changed: Vec<Digest>,
    /// Images that the registry would not delete, and why.
    pub refused: Vec<(Digest, String)>,
}

/// The repositories that hold these projects' caches, each with all of its projects.
#[must_use]
pub fn by_repository(projects: Vec<Project>) -> BTreeMap<CacheRepository, Vec<Project>> {
    let mut repositories: BTreeMap<CacheRepository, Vec<Project>> = BTreeMap::new();
    for project in projects {
        if let Some(builds) = &project.builds_repository {
            repositories.entry(builds.clone()).or_default().push(project.clone());
        }
        repositories.entry(project.cache_repository.clone()).or_default().push(project);
    }
    repositories
}

/// Reads what the planner needs to know of a repository.
///
/// Running builds are read last: a cache given while the images were being listed is then known as leased.
pub async fn observe(
    ports: &impl Ports,
    repository: &CacheRepository,
    projects: &[Project],
    deleted_lines: Vec<DeletedLine>,
    now: Timestamp,
) -> Result<(Inventory, PlanInputs), CallError> {
    let inventory = inventory::take(ports, repository).await?;
    let (leased, given_at) = inputs(ports, projects, now).await?;
    Ok((inventory, PlanInputs { leased, given_at, deleted_lines }))
}

/// What running builds hold, and when each cache was last given to one.
async fn inputs(
    ports: &impl ReadBuilds,
    projects: &[Project],
    now: Timestamp,
) -> Result<(BTreeSet<Digest>, HashMap<Digest, Timestamp>), CallError> {
    // Builds of forks run in a project of their own and read the same caches.
    let built_by =
        projects.iter().flat_map(|project| [Some(&project.name), project.builds.forks.project.as_ref()]);
    // Whatever has not ended by then never will: 36 hours of a build, and 8 in the queue.
    let since = now - SignedDuration::from_hours(44);
    let builds = built_by.flatten().map(|project| ports.recent(project, Some(since)));
    let builds = try_join_all(builds).await?;
    let (mut leased, mut given_at) = (BTreeSet::new(), HashMap::new());
    for build in builds.iter().flatten() {
        let Some(inputs) = &build.inputs else { continue };
        for digest in inputs.caches() {
            if build.status == BuildStatus::InProgress {
                leased.insert(digest.clone());
            }
            let newest = given_at.entry(digest.clone()).or_insert(build.started_at);
            *newest = build.started_at.max(*newest);
        }
    }
    Ok((leased, given_at))
}

/// Observes, plans, and applies where the policy of every project of the repository says so.
pub async fn enforce(
    ports: &impl Ports,
    repository: &CacheRepository,
    projects: &[Project],
    deleted_lines: Vec<DeletedLine>,
    now: Timestamp,
) -> Result<Applied, CallError> {
    let (inventory, plan_inputs) = observe(ports, repository, projects, deleted_lines, now).await?;
    let plan = plan::plan(&inventory, projects, &plan_inputs, now);
    drop(inventory);
    if plan.deletions().is_empty() || plan::mode(projects) == Mode::Report {
        let applied = plan.deletions().is_empty() && plan.refused.is_none();
        let [deleted, changed] = [Vec::new(), Vec::new()];
        return Ok(Applied { plan, applied, deleted, left: 0, changed, refused: Vec::new() });
    }
    apply(ports, plan, projects, now).await
}

/// Carries a plan out, 100 images with a request and no more in a run than the policy allows. Each batch is
/// looked at once more before: what has got a tag since, or was given to a build, stays. A run that ends half
/// way leaves nothing behind but a shorter plan for the next.
pub async fn apply(
    ports: &impl Ports,
    plan: Plan,
    projects: &[Project],
    now: Timestamp,
) -> Result<Applied, CallError> {
    let most =
        projects.iter().map(|project| project.retention.max_deletions as usize).min().unwrap_or_default();
    let repository = plan.repository.clone();
    let deletions: Vec<Arc<ListedImage>> =
        plan.deletions().into_iter().map(|verdict| Arc::clone(&verdict.image)).collect();
    let left = deletions.len().saturating_sub(most);
    let (mut deleted, mut changed, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for batch in deletions[..deletions.len() - left].chunks(IMAGES_PER_CALL) {
        let digests: Vec<Digest> = batch.iter().map(|image| image.digest.clone()).collect();
        let now_there = ports.describe(&repository, &digests).await?;
        let now_there: HashMap<&Digest, &ListedImage> =
            now_there.iter().map(|image| (&image.digest, image)).collect();
        let (leased, _) = inputs(ports, projects, now).await?;
        let mut still = Vec::new();
        for image in batch {
            match now_there.get(&image.digest) {
                Some(there) if is_same(there, image) && !leased.contains(&image.digest) => {
                    still.push(image.digest.clone());
                }
                Some(_) => changed.push(image.digest.clone()),
                // Somebody was faster.
                None => {}
            }
        }
        if still.is_empty() {
            continue;
        }
        let not_deleted = ports.delete(&repository, &still).await?;
        still.retain(|digest| not_deleted.iter().all(|(refused, _)| refused != digest));
        deleted.extend(still);
        refused.extend(not_deleted);
    }
    Ok(Applied { plan, applied: true, deleted, left, changed, refused })
}

/// Whether an image is what the plan judged.
fn is_same(there: &ListedImage, planned: &ListedImage) -> bool {
    let tags = |image: &ListedImage| image.tags.iter().cloned().collect::<BTreeSet<_>>();
    there.pushed_at == planned.pushed_at && tags(there) == tags(planned)
}
