//! The nightly sweep: what every lost event would have said, read from the world.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};

use super::line::read_cache;
use super::{Answer, Error, Hint, Outcome, Ports, promote};
use crate::cache::{self, Cache, Kind};
use crate::error::{CallError, Failure};
use crate::handout::Handed;
use crate::names::{Commit, Digest, Line, Scope, Tag};
use crate::policy::{Policy, Project};
use crate::ports::{Build, BuildStatus, CheckBlobs, Image, ListProjects, read_images};
use crate::provenance::Provenance;
use crate::warm::all_projects;

/// How far back it looks: two nights, should one of them be lost as well.
const REACH: SignedDuration = SignedDuration::from_hours(49);
/// How many projects are looked at at once.
const PROJECTS_AT_ONCE: usize = 8;

/// Promotes what builds of the last two days exported and merges brought, as if each event came now, and mends lines that
/// have lost a layer. Answers what came of each hint; a project that fails does not keep the others from their turn.
pub async fn sweep(
    ports: &(impl Ports + CheckBlobs + ListProjects),
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Answer>, CallError> {
    let projects = all_projects(ports, policy).await?;
    let looked = stream::iter(&projects).map(|project| look(ports, project, now));
    let looked: Vec<_> = looked.buffer_unordered(PROJECTS_AT_ONCE).collect().await;
    let mut answers = Vec::new();
    let (mut built, mut merged) = (Vec::new(), Vec::new());
    for one in looked {
        match one {
            Ok(Found { mended, built: more, merged: merges }) => {
                answers.extend(mended.into_iter().map(|outcome| Ok(vec![outcome])));
                built.extend(more);
                merged.extend(merges);
            }
            Err(error) => answers.push(Err(Arc::new(error))),
        }
    }
    // A merge brings what its branch's build has been promoted to.
    answers.extend(promote(ports, policy, &built, now).await);
    answers.extend(promote(ports, policy, &merged, now).await);
    Ok(answers)
}

/// What there is to do for one project.
#[derive(Default)]
struct Found {
    mended: Vec<Outcome>,
    built: Vec<Hint>,
    merged: Vec<Hint>,
}

async fn look(ports: &(impl Ports + CheckBlobs), project: &Project, now: Timestamp) -> Result<Found, Error> {
    let recent = ports.recent(&project.name).await?;
    let recent = recent.iter().filter(|build| now.duration_since(build.started_at) < REACH);
    let recent: Vec<(&Build, Handed)> =
        recent.filter_map(|build| Some((build, Handed::read(&build.environment)?))).collect();
    let lines: BTreeSet<Line> =
        recent.iter().map(|(_, handed)| handed.line.clone()).chain([Line::Main]).collect();
    let commits: BTreeSet<Commit> =
        recent.iter().filter_map(|(build, handed)| commit_of(build, handed)).collect();
    let scope = Scope::of(&project.name);
    let tags: Vec<Tag> = lines
        .iter()
        .map(|line| Tag::line(&scope, line))
        .chain(commits.iter().map(|commit| Tag::commit(&scope, commit)))
        .collect();
    let images = read_images(ports, &project.cache_repository, &tags).await?;
    let known: BTreeMap<&Tag, Image> =
        tags.iter().zip(images).filter_map(|(tag, image)| Some((tag, image?))).collect();

    let is_known = |build: &Build, handed: &Handed| {
        let tag = match &handed.line {
            Line::Main => Some(Tag::line(&scope, &Line::Main)),
            _ => commit_of(build, handed).map(|commit| Tag::commit(&scope, &commit)),
        };
        let newest = tag.and_then(|tag| provenance(known.get(&tag)?)?.built);
        newest.is_some_and(|newest| newest.at >= build.started_at)
    };
    let exported = recent.iter().filter(|(build, handed)| {
        build.status == BuildStatus::Succeeded && handed.export.is_some() && !is_known(build, handed)
    });
    let built = exported.map(|(build, _)| Hint::Built { build: build.id.clone() }).collect();
    let mut commits = BTreeSet::new();
    let on_main = recent.iter().rev().filter(|(build, handed)| !build.claims && handed.line == Line::Main);
    let merged =
        on_main.flat_map(|(_, handed)| handed.merged.clone()).filter(|commit| commits.insert(commit.clone()));
    let merged: Vec<Commit> = merged.collect();
    let merged = (!merged.is_empty()).then(|| Hint::Merged {
        repository: project.repository.clone(),
        line: Line::Main,
        commits: merged,
    });
    let mended = mend(ports, project, lines, &known).await?;
    Ok(Found { mended, built, merged: merged.into_iter().collect() })
}

fn commit_of(build: &Build, handed: &Handed) -> Option<Commit> {
    let resolved = build.resolved_commit.as_deref().and_then(|commit| Commit::new(commit).ok());
    resolved.or_else(|| handed.commit.clone())
}

fn provenance(image: &Image) -> Option<Provenance> {
    match cache::classify(&image.manifest) {
        Kind::Cache(manifest) => Some(Provenance::read(&manifest.annotations)),
        Kind::Other { .. } => None,
    }
}

/// Takes from lines what they hold on layers that cannot be read any more: a build that is handed such a cache fails.
async fn mend(
    ports: &(impl Ports + CheckBlobs),
    project: &Project,
    lines: BTreeSet<Line>,
    known: &BTreeMap<&Tag, Image>,
) -> Result<Vec<Outcome>, Error> {
    let scope = Scope::of(&project.name);
    let repository = &project.cache_repository;
    let mut of_lines = Vec::new();
    for line in lines {
        let Some(image) = known.get(&Tag::line(&scope, &line)) else { continue };
        if let Kind::Cache(manifest) = cache::classify(&image.manifest) {
            of_lines.push((line, image, manifest));
        }
    }
    let blobs: BTreeSet<Digest> = of_lines
        .iter()
        .flat_map(|(_, _, manifest)| {
            manifest.layers.iter().map(|layer| layer.digest.clone()).chain([manifest.config.digest.clone()])
        })
        .collect();
    let blobs: Vec<Digest> = blobs.into_iter().collect();
    let lost: BTreeSet<Digest> = ports.unavailable(repository, &blobs).await?.into_iter().collect();
    let mut outcomes = Vec::new();
    for (line, image, manifest) in of_lines {
        let is_lost = |digest: &Digest| lost.contains(digest);
        if !is_lost(&manifest.config.digest) && !manifest.layers.iter().any(|layer| is_lost(&layer.digest)) {
            continue;
        }
        let cache = if is_lost(&manifest.config.digest) {
            Cache::default()
        } else {
            match read_cache(ports, repository, image).await {
                Ok(Ok(content)) => content.cache.without_blobs(&lost),
                Err(error) if error.failure != Failure::NotFound => return Err(error.into()),
                Ok(Err(_)) | Err(_) => Cache::default(),
            }
        };
        let provenance = Provenance::read(&manifest.annotations);
        let written = cache.serialise(Provenance { parent: None, ..provenance }.annotations(&line));
        let tag = Tag::line(&scope, &line);
        tracing::error!(
            cache.repository = %repository, %line, cache.digest = %image.digest, cache.lost_blobs = lost.len(),
            "a line has lost layers; it keeps what rests on none of them"
        );
        ports.put_blob(repository, &written.config_digest, Bytes::from(written.config)).await?;
        ports.put_image(repository, &tag, cache::MANIFEST_MEDIA_TYPE, Bytes::from(written.manifest)).await?;
        outcomes.push(Outcome::Moved {
            line,
            to: written.manifest_digest,
            project: project.name.clone(),
            records: cache.records(),
            builds: Vec::new(),
        });
    }
    Ok(outcomes)
}
