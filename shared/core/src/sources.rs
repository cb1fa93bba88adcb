//! The one cache that a build is given for each target: of all that it may read, joined.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};

use crate::build_inputs::{MAX_SOURCES, Reads, Source};
use crate::error::{CallError, chain};
use crate::names::{Commit, Digest, Line, Scope, Tag, TagKind};
use crate::newest_commit;
use crate::policy::Project;
use crate::ports::{
    Build, BuildStatus, Image, MakeRepositories, Pause, ReadBlobs, ReadImages, WriteImages, read_images,
};
use crate::provenance::{Built, Provenance};
use crate::recent_builds::build_of;
use crate::request::Wanted;
use buildkit_cache::{Cache, Kind, Limits, MANIFEST_MEDIA_TYPE, importable};

/// How long a build's start waits for its caches to be joined; without, the build is colder, and starts.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a start checks for a cache that is about to come, and how long it pauses between.
const CHECKS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);
/// A cache is about to come only of a build that started this long before the project's newest.
const RECENT: SignedDuration = SignedDuration::from_hours(1);
/// Targets at a time: each holds a few caches in memory, whose configs may have a megabyte.
const AT_A_TIME: usize = 2;
/// A join is given to builds until the day is over on which it was made.
pub const GIVEN_FOR: SignedDuration = SignedDuration::from_hours(24);

/// The ports that giving needs.
pub trait Ports: ReadImages + ReadBlobs + WriteImages + MakeRepositories {}
impl<P: ReadImages + ReadBlobs + WriteImages + MakeRepositories> Ports for P {}

/// Waits a moment for the cache of a merged commit whose build has just ended: that is about to be promoted,
/// and a build that starts now would be cold.
pub(crate) async fn await_commits(
    ports: &(impl ReadImages + Pause),
    project: &Project,
    wanted: &Wanted,
    recent: &[Arc<Build>],
) {
    // What has not come by now, of a build that ended long ago, will not come.
    let newest = recent.iter().map(|build| build.started_at).max();
    let is_built = |commit: &&Commit| {
        recent.iter().any(|build| {
            build.status == BuildStatus::Succeeded
                && newest.is_some_and(|newest| newest.duration_since(build.started_at) < RECENT)
                && build.inputs.as_ref().is_some_and(|inputs| {
                    inputs.commit.as_ref() == Some(commit) && !inputs.exports.is_empty()
                })
        })
    };
    // Main's own builds leave no commit's cache.
    let awaited: Vec<Tag> = wanted
        .merged
        .iter()
        .filter(|commit| build_of(recent, &wanted.line, commit).is_none())
        .filter(is_built)
        .flat_map(|commit| project.scopes().map(move |scope| Tag::commit(scope, commit)))
        .collect();
    for _ in 0..CHECKS {
        match read_images(ports, &project.cache_repository, &awaited).await {
            Ok(found) if found.iter().any(Option::is_none) => ports.pause(PAUSE).await,
            // Whoever needs what cannot be looked up says so.
            _ => break,
        }
    }
}

/// What a build reads for each target of the project, in their order.
///
/// Where there are several caches, they are joined and written under a tag that their digests name, so that the next
/// build that may read the same finds the join. If that fails or takes too long, the build is given the nearest line.
pub async fn give(
    ports: &impl Ports,
    project: &Project,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<Vec<Reads>, CallError> {
    let found = resolve(ports, project, wanted).await?;
    let deadline = Instant::now() + PATIENCE;
    if found.iter().all(Vec::is_empty) {
        // Not even main has a cache: perhaps there is no place for one yet.
        let made = timeout_at(deadline, make_repositories(ports, project)).await;
        made.unwrap_or_else(
            |_| tracing::warn!(project.name = %project.name, "its repositories take too long to be made"),
        );
    }
    let joins: Vec<Option<Tag>> = project
        .scopes()
        .zip(&found)
        .map(|(scope, found)| is_join(found).then(|| tag(scope, &wanted.line, found, now)))
        .collect();
    let tags: Vec<Tag> = joins.iter().flatten().cloned().collect();
    let known = match timeout_at(deadline, read_images(ports, &project.cache_repository, &tags)).await {
        Ok(Ok(known)) => known,
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), project.name = %project.name, "joins are not looked up");
            Vec::new()
        }
        Err(_) => Vec::new(),
    };
    let mut known = known.into_iter();
    let reads = found.into_iter().zip(joins).map(|(found, tag)| {
        let known = tag.as_ref().and_then(|_| known.next().flatten());
        async move {
            let given = match (tag, known) {
                (None, _) => found.first().map(|found| found.image.digest.clone()),
                (Some(_), Some(image)) if importable(&image.manifest).is_ok() => Some(image.digest),
                (Some(tag), _) => {
                    let joined = timeout_at(deadline, join(ports, project, &wanted.line, &tag, &found, now));
                    let late = |_| Err(format!("it takes longer than {} s", PATIENCE.as_secs()));
                    let joined = joined.await.unwrap_or_else(late).inspect_err(|why| {
                        tracing::warn!(
                            why, project.name = %project.name, cache.tag = %tag,
                            "caches are not joined: the build is given the nearest line only"
                        );
                    });
                    joined.ok().or_else(|| nearest(&found, &wanted.line))
                }
            };
            let source = |Found { label, image, .. }| Source { label, digest: image.digest };
            Reads { sources: found.into_iter().map(source).collect(), given, mounts: Vec::new() }
        }
    });
    Ok(stream::iter(reads).buffered(AT_A_TIME).collect().await)
}

/// Makes the repositories of a project that are missing. Where that fails its builds are cold.
async fn make_repositories(ports: &impl MakeRepositories, project: &Project) {
    for repository in project.repositories() {
        let is_immutable = project.builds_repository.as_ref() == Some(repository);
        match ports.make_repository(repository, is_immutable).await {
            Ok(true) => {
                tracing::info!(project.name = %project.name, cache.repository = %repository, "repository made");
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(
                    error = chain(&error), project.name = %project.name, cache.repository = %repository,
                    "its repository cannot be made: what its builds export is lost"
                );
            }
        }
    }
}

/// A cache that a build may read, as it was found.
#[derive(Debug)]
struct Found {
    /// What people call it.
    label: String,
    image: Image,
    /// The commit's build, where it is the cache of a commit and of no line.
    built: Option<Built>,
}

/// Resolves what a build wants to the caches that exist and that BuildKit can import, the nearest first: for
/// each target of the project, in their order. One request answers for 100 tags.
async fn resolve(
    images: &impl ReadImages,
    project: &Project,
    wanted: &Wanted,
) -> Result<Vec<Vec<Found>>, CallError> {
    let candidates: Vec<Vec<(String, Tag)>> = project.scopes().map(|scope| wanted.tags(scope)).collect();
    let tags: Vec<Tag> = candidates.iter().flatten().map(|(_, tag)| tag.clone()).collect();
    let mut found = read_images(images, &project.cache_repository, &tags).await?.into_iter();
    let of_scope = project.scopes().zip(candidates).map(|(scope, candidates)| {
        let found: Vec<_> = found.by_ref().take(candidates.len()).collect();
        usable(scope, wanted, candidates.into_iter().zip(found).collect())
    });
    Ok(of_scope.collect())
}

/// Of the caches of one target those that a build may read.
fn usable(scope: &Scope, wanted: &Wanted, candidates: Vec<((String, Tag), Option<Image>)>) -> Vec<Found> {
    let read = |image: &Image| match importable(&image.manifest) {
        Ok(manifest) => (Provenance::read(&manifest.annotations), Ok(())),
        Err(why) => (Provenance::of_manifest(&image.manifest).unwrap_or_default(), Err(why)),
    };
    // What a rollback took from the line must not come back by the way of a merged commit.
    let line = candidates.first().and_then(|(_, image)| image.as_ref());
    let rolled_back = line.and_then(|image| read(image).0.rolled_back);
    let there: BTreeSet<&Tag> =
        candidates.iter().filter_map(|((_, tag), image)| image.as_ref().map(|_| tag)).collect();
    let newest = newest_commit::newest(scope, wanted.newest_merged(), |tag| there.contains(tag));
    let newest = newest.map(|commit| Tag::commit(scope, commit));
    let mut sources: Vec<Found> = Vec::new();
    for ((label, tag), image) in candidates {
        let Some(image) = image else { continue };
        let (provenance, importable) = read(&image);
        let is_commit = match Tag::parse(tag.as_str()) {
            Some((_, TagKind::Fork(_))) => continue,
            Some((_, TagKind::Commit(_))) if newest.as_ref() != Some(&tag) => continue,
            kind => matches!(kind, Some((_, TagKind::Commit(_)))),
        };
        // Whose build of it was merged nobody can tell where several lines have built it.
        let built = provenance.built.filter(|_| is_commit && provenance.shared == Some(false));
        let is_older = |built: &Built| rolled_back.is_some_and(|time| built.at < time);
        if is_commit && built.as_ref().is_none_or(is_older) {
            tracing::info!(
                cache.tag = %tag,
                "not given to the build: the line was rolled back since, several have built the commit, or it \
                 is of no build"
            );
            continue;
        }
        if let Err(why) = importable {
            tracing::warn!(cache.tag = %tag, cache.digest = %image.digest, why, "not given to the build");
            continue;
        }
        if sources.len() < MAX_SOURCES && sources.iter().all(|source| source.image.digest != image.digest) {
            sources.push(Found { label, image, built });
        }
    }
    sources
}

/// Whether what was found is to be joined: it is several caches, or one as a build wrote it.
fn is_join(found: &[Found]) -> bool {
    found.len() > 1 || found.iter().any(|found| found.built.is_some())
}

/// The nearest line. A commit's cache is no line, and says what its build liked.
fn nearest(found: &[Found], line: &Line) -> Option<Digest> {
    let is_line = |found: &&Found| found.built.is_none() || *line != Line::Main;
    found.iter().find(is_line).map(|found| found.image.digest.clone())
}

/// The tag of a join: the same for the same caches of the same line on the same day. The day after it is looked for no
/// more, so retention can tell from its age that no new build is given it.
fn tag(scope: &Scope, line: &Line, found: &[Found], now: Timestamp) -> Tag {
    let mut hash = Sha256::new();
    hash.update(format!("{line}\n{}\n", now.as_second().div_euclid(GIVEN_FOR.as_secs())));
    for digest in found.iter().map(|found| &found.image.digest).collect::<BTreeSet<_>>() {
        hash.update(format!("{digest}\n"));
    }
    Tag::given(scope, &hex::encode(&hash.finalize()[..16]))
}

/// Joins what was found, and writes it unless it is one of them. One cache after the other is read and forgotten.
async fn join(
    ports: &impl Ports,
    project: &Project,
    line: &Line,
    tag: &Tag,
    found: &[Found],
    now: Timestamp,
) -> Result<Digest, String> {
    let repository = &project.cache_repository;
    let mut joined = Cache::default();
    for Found { image, built, .. } in found {
        let Kind::Cache(manifest) = buildkit_cache::classify(&image.manifest) else {
            return Err(format!("{} is no cache", image.digest));
        };
        let config = ports.blob(repository, &manifest.config.digest, buildkit_cache::IMPORT_LIMIT).await;
        let config = config.map_err(|error| chain(&error))?;
        let mut cache = Cache::parse(&manifest, &config).map_err(|error| chain(&error))?;
        if let Some(built) = built {
            cache = cache.made_by(now).used_at(built.at).unmarked();
            // As in a promotion: a branch adds to main, and never says what a step of main results in.
            if *line == Line::Main {
                cache = joined.admit(&cache);
            }
        }
        joined = Cache::merge([&joined, &cache]);
    }
    if *line != Line::Main {
        // What the branch's own builds made after main's counts, and what main has made anew since then does, too.
        joined = joined.newest_results();
    }
    let joined = joined.prune(&Limits::default()).cache;
    let provenance = Provenance { project: Some(project.name.clone()), ..Provenance::default() };
    let joined = joined.serialise(provenance.annotations(line));
    let is_joined = |image: &&Image| match buildkit_cache::classify(&image.manifest) {
        Kind::Cache(manifest) => manifest.config.digest == joined.config_digest,
        Kind::Other { .. } => false,
    };
    if let Some(image) = found.iter().map(|found| &found.image).find(is_joined) {
        return Ok(image.digest.clone());
    }
    if joined.size() > buildkit_cache::IMPORT_LIMIT {
        return Err(format!("the join would have {} bytes, more than BuildKit imports", joined.size()));
    }
    let write = async {
        ports.put_blob(repository, &joined.config_digest, Bytes::from(joined.config)).await?;
        ports.put_image(repository, tag, MANIFEST_MEDIA_TYPE, Bytes::from(joined.manifest)).await
    };
    write.await.map_err(|error| chain(&error))?;
    Ok(joined.manifest_digest)
}
