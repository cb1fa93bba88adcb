//! The nightly reconciliation: what every lost event would have said, read from ECR and CodeBuild. A check
//! updates no line, so that it waits for nobody and nobody for it; only drift goes through the queue whose
//! messages update lines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use super::line::{Unreadable, blobs, read_cache};
use super::probation;
use super::{Answer, Error, Outcome, PromotionTrigger, promote};
use crate::build_inputs::GivenInputs;
use crate::line_update::LineUpdate;
use crate::names::{CacheRepository, Commit, Digest, Line, Scope, Tag, TagKind};
use crate::policy::{Policy, Project};
use crate::ports::{Build, BuildStatus, Catalogue, CheckBlobs, Image, read_images};
use crate::provenance::{self, Provenance};
use buildkit_cache::{Cache, Kind, Manifest};

/// How far back it looks: two nights, should one of them be lost as well.
const REACH: SignedDuration = SignedDuration::from_hours(49);

/// The ports that the reconciliation needs.
pub trait Ports: super::Ports + CheckBlobs + Catalogue {}
impl<P: super::Ports + CheckBlobs + Catalogue> Ports for P {}

/// Whether a project has lost what [`reconcile`] makes good. It only reads.
pub async fn has_drift(ports: &impl Ports, project: &Project, now: Timestamp) -> Result<bool, Error> {
    let Found { built, merged, broken } = check(ports, project, now).await?;
    Ok(!built.is_empty() || !merged.is_empty() || !broken.is_empty())
}

/// Promotes what builds of the last two days exported and merges brought, as if each event came now, lets go what has
/// been on probation for too long, and repairs lines that have lost a layer. Answers in the projects' order
/// what came of each trigger and line; a project that fails holds up no other.
pub async fn reconcile(
    ports: &impl Ports,
    policy: &Policy,
    projects: &[Project],
    now: Timestamp,
) -> Vec<Vec<Answer>> {
    let looked = projects.iter().map(|project| check_and_repair(ports, project, now));
    let looked = join_all(looked).await;
    let mut answers = Vec::new();
    let (mut built, mut merged) = (Vec::new(), Vec::new());
    for (project, one) in looked.into_iter().enumerate() {
        answers.push(Vec::new());
        match one {
            Ok((found, repaired)) => {
                answers[project].extend(repaired.into_iter().map(|outcome| Ok(vec![outcome])));
                built.extend(found.built.into_iter().map(|trigger| (project, trigger)));
                merged.extend(found.merged.into_iter().map(|trigger| (project, trigger)));
            }
            Err(error) => answers[project].push(Err(Arc::new(error))),
        }
    }
    // A merge brings what its branch's build has been promoted to.
    for found in [built, merged] {
        let (projects, triggers): (Vec<usize>, Vec<PromotionTrigger>) = found.into_iter().unzip();
        for (project, answer) in projects.into_iter().zip(promote(ports, policy, &triggers, now).await) {
            answers[project].push(answer);
        }
    }
    answers
}

/// What there is to do for one project.
struct Found {
    built: Vec<PromotionTrigger>,
    /// What was merged, and what has been on probation for too long.
    merged: Vec<PromotionTrigger>,
    broken: Vec<Broken>,
}

/// A line that holds what rests on layers that cannot be read any more.
struct Broken {
    tag: Tag,
    image: Image,
    manifest: Manifest,
    lost: Arc<BTreeSet<Digest>>,
}

async fn check_and_repair(
    ports: &impl Ports,
    project: &Project,
    now: Timestamp,
) -> Result<(Found, Vec<Outcome>), Error> {
    let mut found = check(ports, project, now).await?;
    let mut repaired = Vec::new();
    for broken in found.broken.drain(..) {
        let tag = broken.tag.clone();
        repair(ports, &project.cache_repository, broken).await?;
        repaired.push(Outcome::Repaired { tag });
    }
    Ok((found, repaired))
}

async fn check(ports: &impl Ports, project: &Project, now: Timestamp) -> Result<Found, Error> {
    let recent = ports.recent(&project.name, Some(now - REACH)).await?;
    let recent = recent.iter().filter(|build| now.duration_since(build.started_at) < REACH);
    let recent: Vec<(&Build, &GivenInputs)> =
        recent.filter_map(|build| Some((&**build, build.inputs.as_ref()?))).collect();
    let commits: BTreeSet<(Line, Commit)> = recent
        .iter()
        .filter_map(|(build, inputs)| Some((inputs.line.clone(), commit_of(build, inputs)?)))
        .collect();
    let of_scope = |scope: &Scope| {
        let commits: Vec<Tag> =
            commits.iter().flat_map(|(line, commit)| Tag::commit_of(scope, commit, line)).collect();
        [Tag::line(scope, &Line::Main)].into_iter().chain(commits)
    };
    let tags: Vec<Tag> = project.scopes().flat_map(of_scope).collect();
    let images = read_images(ports, &project.cache_repository, &tags).await?;
    let known: BTreeMap<&Tag, Image> =
        tags.iter().zip(images).filter_map(|(tag, image)| Some((tag, image?))).collect();

    let is_known_in = |build: &Build, inputs: &GivenInputs, scope: &Scope| {
        let tags = match &inputs.line {
            Line::Main => vec![Tag::line(scope, &Line::Main)],
            line => {
                let commit = commit_of(build, inputs).map(|commit| Tag::commit_of(scope, &commit, line));
                commit.map(Vec::from).unwrap_or_default()
            }
        };
        let newest =
            tags.iter().filter_map(|tag| match buildkit_cache::classify(&known.get(tag)?.manifest) {
                Kind::Cache(manifest)
                    if provenance::line(&manifest.annotations).as_ref() == Some(&inputs.line) =>
                {
                    Provenance::read(&manifest.annotations).built
                }
                _ => None,
            });
        newest.into_iter().any(|newest| newest.at >= build.started_at)
    };
    let is_known =
        |build: &Build, inputs: &GivenInputs| project.scopes().all(|scope| is_known_in(build, inputs, scope));
    let exported = recent.iter().filter(|(build, inputs)| {
        build.status == BuildStatus::Succeeded && !inputs.exports.is_empty() && !is_known(build, inputs)
    });
    let built = exported.map(|(build, _)| PromotionTrigger::Built { build: build.id.clone() }).collect();
    // A build of main that is promoted has made what was merged before it main's own. Each commit came with the first.
    let on_main = recent
        .iter()
        .rev()
        .filter(|(build, inputs)| !build.claims && inputs.line == Line::Main && !is_known(build, inputs));
    let mut commits = BTreeSet::new();
    let mut merged = Vec::new();
    for (build, inputs) in on_main {
        let new = inputs.merged.iter().filter(|commit| commits.insert((*commit).clone()));
        let new: Vec<Commit> = new.cloned().collect();
        if !new.is_empty() {
            merged.push(PromotionTrigger::Merged {
                repository: project.repository.clone(),
                line: Line::Main,
                commits: new,
                head: None,
                at: Some(build.started_at),
            });
        }
    }
    let since = |scope: &Scope| {
        let main = known.get(&Tag::line(scope, &Line::Main))?;
        Some(Provenance::of_manifest(&main.manifest)?.probation?.since)
    };
    if project.scopes().filter_map(since).any(|since| since <= now - probation::longest(project)) {
        merged.push(PromotionTrigger::Overdue { project: project.name.clone() });
    }
    Ok(Found { built, merged, broken: broken(ports, project).await? })
}

fn commit_of(build: &Build, inputs: &GivenInputs) -> Option<Commit> {
    let resolved = build.resolved_commit.as_deref().and_then(|commit| Commit::new(commit).ok());
    resolved.or_else(|| inputs.commit.clone())
}

/// The lines that have lost layers.
async fn broken(ports: &impl Ports, project: &Project) -> Result<Vec<Broken>, Error> {
    let repository = &project.cache_repository;
    let images = ports.list(repository).await?;
    let tags = images.iter().flat_map(|image| &image.tags);
    let is_line = |tag: &&String| {
        matches!(Tag::parse(tag), Some((scope,
        TagKind::Line(_))) if project.has_scope(&scope))
    };
    let tags: Vec<Tag> = tags.filter(is_line).filter_map(|tag| Tag::known(tag)).collect();
    let images = read_images(ports, repository, &tags).await?;
    let lines = tags.into_iter().zip(images).filter_map(|(tag, image)| {
        let image = image?;
        match buildkit_cache::classify(&image.manifest) {
            Kind::Cache(manifest) => Some((tag, image, manifest)),
            Kind::Other { .. } => None,
        }
    });
    let lines: Vec<_> = lines.collect();
    let all: BTreeSet<Digest> = lines.iter().flat_map(|(_, _, manifest)| blobs(manifest)).collect();
    let all: Vec<Digest> = all.into_iter().collect();
    let lost: BTreeSet<Digest> = ports.unavailable(repository, &all).await?.into_iter().collect();
    let lost = Arc::new(lost);
    let has_lost = |manifest: &Manifest| blobs(manifest).iter().any(|blob| lost.contains(blob));
    let broken = lines.into_iter().filter(|(_, _, manifest)| has_lost(manifest));
    let broken =
        broken.map(|(tag, image, manifest)| Broken { tag, image, manifest, lost: Arc::clone(&lost) });
    Ok(broken.collect())
}

/// Takes from a line what it holds on layers that cannot be read any more: a build that is given such a cache fails.
async fn repair(ports: &impl Ports, repository: &CacheRepository, broken: Broken) -> Result<(), Error> {
    let Broken { tag, image, manifest, lost } = broken;
    let cache = if lost.contains(&manifest.config.digest) {
        Cache::default()
    } else {
        match read_cache(ports, repository, &image).await {
            Ok(content) => content.cache.without_blobs(&lost),
            Err(Unreadable::NoCache(_)) => Cache::default(),
            Err(Unreadable::Call(error)) => return Err(error.into()),
        }
    };
    tracing::error!(
        cache.repository = %repository, cache.tag = %tag, cache.digest = %image.digest, cache.records = cache.records(),
        "a line has lost layers; it keeps what rests on none of them"
    );
    let written = cache.serialise(manifest.annotations);
    let update = LineUpdate {
        config: Some((written.config_digest, Bytes::from(written.config))),
        line: Some((tag, Bytes::from(written.manifest))),
        // What the line was is of no use to anybody.
        ..LineUpdate::default()
    };
    update.apply(ports, repository).await?;
    Ok(())
}
