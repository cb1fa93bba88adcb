//! Warming: whether main wants a build whose only purpose is to fill its cache.

use std::fmt;
use std::sync::Arc;

use futures_util::future::{try_join, try_join_all};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::build_inputs::GivenInputs;
use crate::error::CallError;
use crate::event::BranchPushed;
use crate::names::{Commit, Line, Tag};
use crate::policy::Project;
use crate::ports::{Build, BuildStatus, FindDigests, ReadBuilds, read_images};
use crate::provenance::Provenance;
use crate::recent_builds::{of_line, running};
use crate::request::{Request, Subject, Trust, Wanted};
use crate::schedule::shard;
use crate::start::{self, Outcome};
use crate::trigger::{Skipped, wanted_by_push};

/// A merge's cache that is so much older than the newest build of main was in time for that build.
const MERGE_GRACE: SignedDuration = SignedDuration::from_mins(15);

/// Whether to warm a project's main.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Warm it.
    Warm(Reason),
    /// Leave it, and why.
    Skip(SkipReason),
    /// Check again later, and why.
    Wait(WaitReason),
}

/// Why main is not warmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkipReason {
    /// The policy's `warm.after-merge`.
    NotAfterMerge,
    /// What keeps the push from being built by anybody.
    NotBuilt(Skipped),
    /// This build is of what was pushed.
    HasBuild(String),
    /// Main's cache is new enough.
    Warm {
        /// The oldest build that filled it.
        build: String,
        /// That build's age.
        age: SignedDuration,
    },
    /// What fails twice needs a person.
    FailedTwice,
    /// A newer build of main runs or has succeeded.
    NotFailed,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAfterMerge => {
                f.write_str("the policy wants no warming after a merge (warm.after-merge)")
            }
            Self::NotBuilt(skipped) => skipped.fmt(f),
            Self::HasBuild(build) => write!(f, "{build} builds it"),
            Self::Warm { build, age } => write!(f, "{build} filled main's cache {} min ago", age.as_mins()),
            Self::FailedTwice => f.write_str("main's last two builds have failed"),
            Self::NotFailed => f.write_str("a newer build of main has not failed"),
        }
    }
}

/// What has to end before main can be warmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitReason {
    /// This build of main.
    Building(String),
    /// Whether a build that was ordered a moment ago has the push nobody knows yet.
    OrderedAMomentAgo,
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Building(build) => write!(f, "{build} is still building main"),
            Self::OrderedAMomentAgo => f.write_str("a build of main was ordered a moment ago"),
        }
    }
}

/// Why main wants warming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Main has no cache.
    Missing,
    /// Main has a cache that no build of main has filled yet.
    NeverBuilt,
    /// Something was merged that no build of main has built.
    Moved,
    /// The newest build that filled main's cache is older than the policy allows.
    Stale {
        /// Its age.
        age: SignedDuration,
    },
    /// An image that the project builds upon has changed.
    BaseMoved,
    /// Main is due to be built from scratch.
    Refresh,
    /// A build of main has failed.
    Failed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("main has no cache"),
            Self::NeverBuilt => f.write_str("no build has filled main's cache yet"),
            Self::Moved => f.write_str("main has moved"),
            Self::Stale { age } => write!(f, "main's cache was filled {} h ago", age.as_hours()),
            Self::BaseMoved => f.write_str("a base image has changed"),
            Self::Refresh => f.write_str("main is due to be built from scratch"),
            Self::Failed => f.write_str("a build of main has failed"),
        }
    }
}

/// Decides whether to warm main at night. `main` is the provenance of its cache in each scope, `bases` a
/// digest over the base images as they are, `builds` the project's newest builds.
#[must_use]
pub fn decide(
    project: &Project,
    main: &[Option<Provenance>],
    bases: Option<&str>,
    builds: &[Arc<Build>],
    now: Timestamp,
) -> Decision {
    if let Some(build) = running(builds, &Line::Main) {
        return Decision::Wait(WaitReason::Building(build.id.clone()));
    }
    let known: Vec<&Provenance> = main.iter().flatten().collect();
    if known.len() < main.len() {
        return Decision::Warm(Reason::Missing);
    }
    let built: Vec<_> = known.iter().filter_map(|main| main.built.as_ref()).collect();
    let Some(oldest) = built.iter().min_by_key(|built| built.at).filter(|_| built.len() == known.len())
    else {
        return Decision::Warm(Reason::NeverBuilt);
    };
    let age = now.duration_since(oldest.at);
    let has_moved = known
        .iter()
        .any(|main| main.merged_at.is_some_and(|merged| merged.duration_since(oldest.at) > MERGE_GRACE));
    if known.iter().any(|main| refresh_is_due(project, main, now)) {
        Decision::Warm(Reason::Refresh)
    } else if has_moved {
        Decision::Warm(Reason::Moved)
    } else if bases.is_some_and(|bases| known.iter().any(|main| main.bases.as_deref() != Some(bases))) {
        Decision::Warm(Reason::BaseMoved)
    } else if age > project.warm.stale_after {
        Decision::Warm(Reason::Stale { age })
    } else {
        Decision::Skip(SkipReason::Warm { build: oldest.build.clone(), age })
    }
}

/// A line that never was refreshed is, in a night of its own: a fleet that begins with it does not build all at once.
fn refresh_is_due(project: &Project, main: &Provenance, now: Timestamp) -> bool {
    let Some(every) = project.warm.refresh else { return false };
    if let Some(at) = main.refreshed {
        return now.duration_since(at) > every;
    }
    let nights = u64::try_from(every.as_hours() / 24).unwrap_or_default().max(1);
    let night = u64::try_from(now.as_second() / (24 * 60 * 60)).unwrap_or_default();
    (shard(project.name.as_str()) + night).is_multiple_of(nights)
}

/// A push to the default branch that has had time to be built in the ordinary way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainPushed {
    /// The push.
    pub push: BranchPushed,
    /// When AWS got to know of it, by the clock that also dates builds.
    pub at: Timestamp,
}

/// Decides whether to warm main after pushes to it, of which only the newest matters: a build of main's head has all.
/// Of a burst, one build runs and one waits.
#[must_use]
pub fn decide_after_push(project: &Project, pushed: &MainPushed, builds: &[Arc<Build>]) -> Decision {
    let push = &pushed.push;
    if !project.warm.after_merge {
        return Decision::Skip(SkipReason::NotAfterMerge);
    }
    if let Err(skipped) = wanted_by_push(project, push) {
        return Decision::Skip(SkipReason::NotBuilt(skipped));
    }
    // Only builds that were started as main's fill its cache, whatever others have built of the same commit.
    let covers = |(build, inputs): &(&Build, &GivenInputs)| match &inputs.commit {
        None => build.started_at >= pushed.at,
        Some(commit) => {
            *commit == push.commit || (push.pushed_at.is_some() && inputs.pushed_at >= push.pushed_at)
        }
    };
    if let Some((build, _)) = of_line(builds, &Line::Main).find(covers) {
        return Decision::Skip(SkipReason::HasBuild(build.id.clone()));
    }
    match running(builds, &Line::Main) {
        Some(build) => Decision::Wait(WaitReason::Building(build.id.clone())),
        None => Decision::Warm(Reason::Moved),
    }
}

/// Decides whether main is built once more after a build of it has failed: once, as what fails twice needs a person.
#[must_use]
pub fn decide_after_failure(project: &Project, builds: &[Arc<Build>]) -> Decision {
    if !project.warm.after_merge {
        return Decision::Skip(SkipReason::NotAfterMerge);
    }
    let mut newest = of_line(builds, &Line::Main).map(|(build, _)| build.status);
    match (newest.next(), newest.next()) {
        (Some(BuildStatus::Failed), Some(BuildStatus::Failed)) => Decision::Skip(SkipReason::FailedTwice),
        (Some(BuildStatus::Failed), _) => Decision::Warm(Reason::Failed),
        _ => Decision::Skip(SkipReason::NotFailed),
    }
}

/// What came of warming one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarmOutcome {
    /// A build was asked for.
    Asked(Outcome),
    /// Main wants no warming, and why.
    Skipped(SkipReason),
    /// It is to be checked again later, and why.
    Waits(WaitReason),
}

/// The ports that warming needs.
pub trait Ports: start::Ports + ReadBuilds + FindDigests {}
impl<P: start::Ports + ReadBuilds + FindDigests> Ports for P {}

/// Warms a project's main if it wants that, on its turn in the night.
pub async fn warm_if_needed(
    ports: &impl Ports,
    registry: &str,
    project: &Project,
    now: Timestamp,
) -> Result<WarmOutcome, CallError> {
    let mains: Vec<Tag> = project.scopes().map(|scope| Tag::line(scope, &Line::Main)).collect();
    let read = read_images(ports, &project.cache_repository, &mains);
    let (images, bases) = try_join(read, bases(ports, project)).await?;
    let mains: Vec<_> = images.into_iter().map(|image| Provenance::of_manifest(&image?.manifest)).collect();
    let builds = ports.recent(&project.name, None).await?;
    let reason = match decide(project, &mains, bases.as_deref(), &builds, now) {
        Decision::Skip(why) => return Ok(WarmOutcome::Skipped(why)),
        Decision::Wait(why) => return Ok(WarmOutcome::Waits(why)),
        Decision::Warm(reason) => reason,
    };
    let refresh = reason == Reason::Refresh;
    let request = head(project, format!("nightly: {reason}"), &builds, Vec::new(), refresh, bases);
    start::start(ports, registry, project, &request, &builds, now).await.map(WarmOutcome::Asked)
}

/// Warms a project's main after pushes to it, the newest of which is `pushed`, if nothing else builds it.
pub async fn warm_after_push(
    ports: &(impl start::Ports + ReadBuilds),
    registry: &str,
    project: &Project,
    pushed: &MainPushed,
    merged: Vec<Commit>,
    now: Timestamp,
) -> Result<WarmOutcome, CallError> {
    let builds = ports.recent(&project.name, Some(pushed.at)).await?;
    match decide_after_push(project, pushed, &builds) {
        Decision::Skip(why) => return Ok(WarmOutcome::Skipped(why)),
        Decision::Wait(why) => return Ok(WarmOutcome::Waits(why)),
        Decision::Warm(_) => {}
    }
    let mut request = head(project, "main has moved".to_owned(), &builds, merged, false, None);
    // The forge knows better than the policy what the default branch is called.
    request.reference = Some(pushed.push.branch.to_string());
    Ok(match start::start(ports, registry, project, &request, &builds, now).await? {
        // Of a push that came after that order was given, nobody knows yet whether the build has it.
        Outcome::AlreadyOrdered => WarmOutcome::Waits(WaitReason::OrderedAMomentAgo),
        outcome => WarmOutcome::Asked(outcome),
    })
}

/// Builds a project's main once more after a build of it has failed.
pub async fn warm_after_failure(
    ports: &(impl start::Ports + ReadBuilds),
    registry: &str,
    project: &Project,
    now: Timestamp,
) -> Result<WarmOutcome, CallError> {
    let builds = ports.recent(&project.name, None).await?;
    match decide_after_failure(project, &builds) {
        Decision::Skip(why) => Ok(WarmOutcome::Skipped(why)),
        Decision::Wait(why) => Ok(WarmOutcome::Waits(why)),
        Decision::Warm(reason) => {
            let request = head(project, reason.to_string(), &builds, Vec::new(), false, None);
            start::start(ports, registry, project, &request, &builds, now).await.map(WarmOutcome::Asked)
        }
    }
}

/// A build of main's head. Two that are asked for at the same time see the same builds, and are one order.
fn head(
    project: &Project,
    reason: String,
    builds: &[Arc<Build>],
    merged: Vec<Commit>,
    refresh: bool,
    bases: Option<String>,
) -> Request {
    let newest = of_line(builds, &Line::Main).next().map_or("none", |(build, _)| build.id.as_str());
    Request {
        wanted: Wanted { line: Line::Main, base: None, merged },
        subject: Subject::Head { key: format!("after {newest}"), refresh, bases },
        trust: Trust::Trusted,
        reason,
        built_by: project.name.clone(),
        reference: None,
        pushed_at: None,
        overtakes: None,
    }
}

/// A digest over the base images that the policy names, as they are now; `None` where it names none that are there.
async fn bases(ports: &impl FindDigests, project: &Project) -> Result<Option<String>, CallError> {
    let images = &project.warm.base_images;
    let found = images.iter().map(|image| ports.digest_of(&image.repository, &image.tag));
    let found = try_join_all(found).await?;
    let mut hash = Sha256::new();
    let mut any = false;
    for (image, digest) in images.iter().zip(found) {
        if let Some(digest) = digest {
            any = true;
            hash.update(format!("{}:{}@{digest}\n", image.repository, image.tag));
        } else {
            tracing::warn!(
                project.name = %project.name, image.repository = %image.repository, image.tag = image.tag,
                "a base image of the policy is not in the registry"
            );
        }
    }
    Ok(any.then(|| hex::encode(hash.finalize())))
}
