//! Promotion: merging exports into the line of their build, and merged commits' caches into the line they were merged
//! to. It is a join, so a hint that comes twice, late or out of order changes nothing that matters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use jiff::Timestamp;

use crate::cache::{self, Cache, Kind, Limits, Manifest, Warmth};
use crate::error::{CallError, Disposition};
use crate::event::Event;
use crate::handout::{Handed, importable};
use crate::names::{CacheRepository, Commit, Digest, Line, ProjectName, Repository, Scope, Tag, TagKind};
use crate::policy::{Policy, Project};
use crate::ports::{Build, BuildStatus, Image, ReadBlobs, ReadBuilds, ReadImages, WriteImages, read_images};
use crate::provenance::{Built, Provenance};

/// The ports that promotion needs.
pub trait Ports: ReadBuilds + ReadImages + ReadBlobs + WriteImages {}
impl<P: ReadBuilds + ReadImages + ReadBlobs + WriteImages> Ports for P {}

/// A reason to look whether a line should move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// A build may have ended well.
    Built {
        /// Its id.
        build: String,
    },
    /// An export arrived; its build may have ended long ago, and its event been lost.
    Exported {
        /// Where.
        repository: CacheRepository,
        /// Its tag.
        tag: String,
    },
    /// Commits came to a branch by a merge.
    Merged {
        /// The git repository.
        repository: Repository,
        /// The line of the branch that they came to.
        line: Line,
        /// The commits.
        commits: Vec<Commit>,
    },
}

impl Hint {
    /// What an event hints at, if anything.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        match event {
            Event::BuildStateChange(change) if change.build_status == "SUCCEEDED" => {
                Some(Self::Built { build: change.id().to_owned() })
            }
            Event::ImageAction(action) if action.action_type == "PUSH" && action.result == "SUCCESS" => {
                // Lines, commits and history are Stoker's own writes: the story ends here.
                let tag = action.image_tag.clone()?;
                let (_, kind) = Tag::parse(&tag)?;
                matches!(kind, TagKind::Export(_))
                    .then(|| Self::Exported { repository: action.repository_name.clone(), tag })
            }
            // A fork's head was built by nobody that main could believe.
            Event::PullRequestMerged(pull) if !pull.from_fork => Some(Self::Merged {
                repository: pull.repository.clone(),
                line: Line::of_branch(&pull.base, &pull.default_branch),
                commits: vec![pull.commit.clone()],
            }),
            Event::BranchPushed(push) if push.to_default_branch => Some(Self::Merged {
                repository: push.repository.clone(),
                line: Line::Main,
                commits: push.commits.clone(),
            }),
            _ => None,
        }
    }
}

/// What came of one hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The line moved.
    Moved {
        /// The line.
        line: Line,
        /// Where it points now.
        to: Digest,
        /// The project that the line is of.
        project: ProjectName,
        /// Records of the cache.
        records: usize,
        /// The builds that moved it. Where several hints moved a line at once, the first tells of all.
        builds: Vec<Warmed>,
    },
    /// The line already holds all of it.
    Unchanged {
        /// The line.
        line: Line,
    },
    /// There is nothing to promote, and why.
    Nothing {
        /// Why.
        why: String,
    },
}

/// A build that ended well, and how much of it came out of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warmed {
    /// Its id.
    pub build: String,
    /// How warm it was.
    pub warmth: Warmth,
}

/// Promotion failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call failed.
    #[error("promotion stopped half way, and starts again from what it finds")]
    Call(#[from] CallError),
    /// The line's tag holds something that is not Stoker's to replace.
    #[error("{tag} of {repository} is left alone: {why}")]
    ForeignLine {
        /// The tag.
        tag: Tag,
        /// Its repository.
        repository: CacheRepository,
        /// What it holds.
        why: String,
    },
    /// There is more besides records than BuildKit imports, such as a branch's name.
    #[error("the cache for {line} would have {bytes} bytes, more than BuildKit imports")]
    TooLarge {
        /// The line.
        line: Line,
        /// Size of the config or the manifest.
        bytes: usize,
    },
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Call(error) => error.disposition(),
            Self::ForeignLine { .. } | Self::TooLarge { .. } => Disposition::Alarm,
        }
    }
}

/// The answer to one hint: what came of it for each line that it touches.
pub type Answer = Result<Vec<Outcome>, Arc<Error>>;

/// A push lists at most a few thousand commits; the caches that matter are of its newest.
const MAX_COMMITS: usize = 90;

/// One move that a hint asks for.
#[derive(Debug, Clone)]
struct Move {
    /// The hint's place in the batch.
    hint: usize,
    project: Project,
    source: Tag,
    cause: Cause,
}

#[derive(Debug, Clone)]
enum Cause {
    Built(Built),
    Merged(Commit),
}

/// The moves of one line, which are one read and one write of it.
type Moves = BTreeMap<(CacheRepository, Scope, Line), Vec<Move>>;

/// Handles a batch of hints; answers each in its place. Lines are handled at the same time and fail apart; an error
/// of a line is the answer to every hint for it.
pub async fn promote(ports: &impl Ports, policy: &Policy, hints: &[Hint], now: Timestamp) -> Vec<Answer> {
    let mut answers: Vec<Answer> = hints.iter().map(|_| Ok(Vec::new())).collect();
    let moves = gather(ports, policy, hints, &mut answers).await;
    let moved = join_all(moves.into_iter().map(|((repository, scope, line), moves)| async move {
        let hints: BTreeSet<usize> = moves.iter().map(|one| one.hint).collect();
        (hints, move_line(ports, &repository, &scope, line, moves, now).await.map_err(Arc::new))
    }))
    .await;
    for (hints, result) in moved {
        let mut result = result;
        for hint in hints {
            match (&mut answers[hint], &mut result) {
                (Ok(outcomes), Ok(outcome)) => {
                    outcomes.push(outcome.clone());
                    if let Outcome::Moved { builds, .. } = outcome {
                        builds.clear();
                    }
                }
                (answer, Err(error)) => *answer = Err(Arc::clone(error)),
                (Err(_), Ok(_)) => {}
            }
        }
    }
    answers
}

/// Turns hints into moves: finds the projects, and asks CodeBuild what the builds really were.
async fn gather(ports: &impl Ports, policy: &Policy, hints: &[Hint], answers: &mut [Answer]) -> Moves {
    let mut moves = Moves::new();
    // Every build of the account comes by here; Stoker may, and need, ask only about the policy's.
    let is_served = |build: &str| {
        let name = build.split_once(':').and_then(|(project, _)| ProjectName::new(project).ok());
        name.is_some_and(|name| policy.project(&name).is_some())
    };
    let built = hints.iter().filter_map(|hint| match hint {
        Hint::Built { build } if is_served(build) => Some(build.clone()),
        _ => None,
    });
    let ids: Vec<String> = built.collect::<BTreeSet<_>>().into_iter().collect();
    let builds =
        if ids.is_empty() { Ok(Vec::new()) } else { ports.get(&ids).await.map_err(|e| Arc::new(e.into())) };

    for (index, hint) in hints.iter().enumerate() {
        let gathered = match (hint, &builds) {
            (Hint::Built { build }, _) if !is_served(build) => {
                Ok(Err("the policy does not name the project".to_owned()))
            }
            (Hint::Built { .. }, Err(error)) => Err(Arc::clone(error)),
            (Hint::Built { build }, Ok(builds)) => Ok(match builds.iter().find(|known| known.id == *build) {
                None => Err("CodeBuild does not know the build".to_owned()),
                Some(build) => built_move(policy, build).map(|one| vec![one]),
            }),
            (Hint::Exported { repository, tag }, _) => {
                exported_move(ports, policy, repository, tag).await.map_err(|e| Arc::new(e.into()))
            }
            (Hint::Merged { repository, line, commits }, _) => {
                Ok(Ok(merged_moves(policy, repository, line, commits)))
            }
        };
        match gathered {
            Err(error) => answers[index] = Err(error),
            Ok(Err(why)) => answers[index] = Ok(vec![Outcome::Nothing { why }]),
            Ok(Ok(found)) => {
                for (project, line, source, cause) in found {
                    let key = (project.cache_repository.clone(), Scope::of(&project.name), line);
                    moves.entry(key).or_default().push(Move { hint: index, project, source, cause });
                }
            }
        }
    }
    moves
}

type Found = (Project, Line, Tag, Cause);

/// The move that a build's end asks for, if it is a build that Stoker handed an export tag and that ended well.
fn built_move(policy: &Policy, build: &Build) -> Result<Found, String> {
    let project = policy.project(&build.project).ok_or("the policy does not name the project")?;
    if build.status != BuildStatus::Succeeded {
        return Err("the build has not succeeded".to_owned());
    }
    let handed = Handed::read(&build.environment).ok_or("the build was handed nothing by Stoker")?;
    let export = handed.export.ok_or("the build was not to write a cache")?;
    let source = match Tag::parse(&export) {
        Some((scope, TagKind::Export(key))) if scope == Scope::of(&project.name) => Tag::export(&scope, &key),
        _ => return Err("the build's export tag is not one of its scope".to_owned()),
    };
    let resolved = build.resolved_commit.as_deref().and_then(|commit| Commit::new(commit).ok());
    let commit = resolved.or_else(|| handed.commit.clone()).ok_or("the build's commit is not known")?;
    if handed.commit.is_some_and(|told| told != commit) {
        return Err("the build built another commit than it was told to".to_owned());
    }
    let built = Built { at: build.started_at, commit, build: build.id.clone() };
    Ok((project, handed.line, source, Cause::Built(built)))
}

/// Looks at an export that arrived, and for its build: usually that is still running, and its end is the next hint.
async fn exported_move(
    ports: &impl Ports,
    policy: &Policy,
    repository: &CacheRepository,
    tag: &str,
) -> Result<Result<Vec<Found>, String>, CallError> {
    let Some((scope, TagKind::Export(key))) = Tag::parse(tag) else {
        return Ok(Err("the tag is no export's".to_owned()));
    };
    let Some(project) =
        policy.project_of_scope(&scope).filter(|project| project.cache_repository == *repository)
    else {
        return Ok(Err("the policy names no project for the tag".to_owned()));
    };
    let image = ports.images(repository, &[Tag::export(&scope, &key)]).await?.into_iter().flatten().next();
    if let Some(Err(why)) = image.map(|image| importable(&image.manifest)) {
        tracing::warn!(cache.tag = tag, cache.repository = %repository, why, "an export that no build can import");
        return Ok(Err(why));
    }
    let builds = ports.recent(&project.name).await?;
    let exported =
        |build: &&Build| Handed::read(&build.environment).is_some_and(|h| h.export.as_deref() == Some(tag));
    Ok(match builds.iter().find(exported) {
        None => Err("no build of Stoker's was told to write the export".to_owned()),
        Some(build) => built_move(policy, build).map(|one| vec![one]),
    })
}

fn merged_moves(policy: &Policy, repository: &Repository, line: &Line, commits: &[Commit]) -> Vec<Found> {
    let newest = commits.iter().rev().take(MAX_COMMITS);
    let projects = policy.projects_of(repository).into_iter();
    projects
        .flat_map(|project| {
            newest.clone().map(move |commit| {
                let source = Tag::commit(&Scope::of(&project.name), commit);
                (project.clone(), line.clone(), source, Cause::Merged(commit.clone()))
            })
        })
        .collect()
}

/// One read and one write of a line. The order of the writes makes a crash between any two harmless: the commit's
/// tag, the config, the history, and the line last.
async fn move_line(
    ports: &impl Ports,
    repository: &CacheRepository,
    scope: &Scope,
    line: Line,
    moves: Vec<Move>,
    now: Timestamp,
) -> Result<Outcome, Error> {
    let line_tag = Tag::line(scope, &line);
    let mut causes: BTreeMap<Tag, Cause> = BTreeMap::new();
    let mut project = None;
    for one in moves {
        causes.insert(one.source, one.cause);
        project = Some(one.project);
    }
    let Some(Project { name: project, line_budget, .. }) = project else {
        return Ok(Outcome::Nothing { why: "nobody asked for a move".to_owned() });
    };
    let tags: Vec<Tag> = [line_tag.clone()].into_iter().chain(causes.keys().cloned()).collect();
    let mut images = read_images(ports, repository, &tags).await?.into_iter();
    let current = match images.next().flatten() {
        None => None,
        Some(image) => {
            let foreign = |why: String| Error::ForeignLine {
                tag: line_tag.clone(),
                repository: repository.clone(),
                why,
            };
            Some((read_cache(ports, repository, &image).await?.map_err(foreign)?, image))
        }
    };

    let mut sources = Vec::new();
    for ((tag, cause), image) in causes.iter().zip(images) {
        let Some(image) = image else { continue };
        match read_cache(ports, repository, &image).await? {
            Ok(content) => sources.push((cause, image, content)),
            Err(why) => tracing::warn!(cache.tag = %tag, cache.repository = %repository, why, "left alone"),
        }
    }
    if sources.is_empty() {
        return Ok(Outcome::Nothing {
            why: format!("there is no cache for {line} under any of {} tags", causes.len()),
        });
    }

    let before = current.as_ref().map(|(content, _)| Provenance::read(&content.manifest.annotations));
    let mut provenance = before.clone().unwrap_or_default();
    let known = current.as_ref().map(|(content, _)| &content.cache);
    let mut adds = known.is_none();
    let mut builds = Vec::new();
    for (cause, _, content) in &sources {
        let is_new = known.is_none_or(|known| !known.contains(&content.cache));
        adds |= is_new;
        match cause {
            Cause::Built(built) => {
                let was_newest = before.as_ref().and_then(|before| before.built.as_ref());
                if is_new || was_newest.is_none_or(|newest| newest.at < built.at) {
                    let warmth = content.cache.built_since(built.at);
                    builds.push(Warmed { build: built.build.clone(), warmth });
                }
                if provenance.built.as_ref().is_none_or(|newest| newest.at < built.at) {
                    provenance.built = Some(built.clone());
                }
            }
            Cause::Merged(commit) if is_new => provenance.merged = Some(commit.clone()),
            Cause::Merged(_) => {}
        }
    }
    // Only other branches' builds need a commit's cache: what is on main is in main's line.
    if line != Line::Main {
        try_join_all(sources.iter().map(|(cause, image, _)| async move {
            let Cause::Built(built) = cause else { return Ok(()) };
            let tag = Tag::commit(scope, &built.commit);
            ports.put_image(repository, &tag, &image.media_type, image.manifest.clone()).await
        }))
        .await?;
    }
    if !adds && before.as_ref() == Some(&provenance) {
        return Ok(Outcome::Unchanged { line });
    }
    let exports: Vec<Cache> = sources.iter().map(|(cause, _, content)| used(&content.cache, cause)).collect();
    let merged = Cache::merge(known.into_iter().chain(&exports));
    let merged = within(&merged, &Limits { bytes: line_budget, ..Limits::default() }, &line, repository);
    let records = merged.records();
    let parent = current.as_ref().map(|(_, image)| image.digest.clone());
    let merged = merged.serialise(Provenance { parent, ..provenance.clone() }.annotations(&line));
    let holds_config =
        current.as_ref().is_some_and(|(content, _)| content.manifest.config.digest == merged.config_digest);
    // What was new does not fit.
    if holds_config && before.as_ref() == Some(&provenance) {
        return Ok(Outcome::Unchanged { line });
    }
    if merged.size() > cache::IMPORT_LIMIT {
        return Err(Error::TooLarge { line, bytes: merged.size() });
    }
    if !holds_config {
        ports.put_blob(repository, &merged.config_digest, Bytes::from(merged.config)).await?;
    }
    if let Some((_, image)) = current {
        let history = Tag::history(scope, &line, now, &image.digest);
        ports.put_image(repository, &history, &image.media_type, image.manifest).await?;
    }
    ports.put_image(repository, &line_tag, cache::MANIFEST_MEDIA_TYPE, Bytes::from(merged.manifest)).await?;
    Ok(Outcome::Moved { line, to: merged.manifest_digest, project, records, builds })
}

/// An export that says when a build used it. Of the build of a merged commit it is known only that it did not run before
/// what it made.
fn used(export: &Cache, cause: &Cause) -> Cache {
    let at = match cause {
        Cause::Built(built) => Some(built.at),
        Cause::Merged(_) => export.newest(),
    };
    at.map_or_else(|| export.clone(), |at| export.used_at(at))
}

/// What of a line's cache fits. What does not is told in the log.
fn within(cache: &Cache, limits: &Limits, line: &Line, repository: &CacheRepository) -> Cache {
    let pruned = cache.prune(limits);
    if let Some(first) = pruned.dropped.first() {
        tracing::info!(
            %line, cache.repository = %repository, pruned.cause = %first.why, pruned.records = pruned.dropped.len(),
            pruned.bytes = pruned.bytes_before - pruned.bytes_after, cache.bytes = pruned.bytes_after,
            "what builds used least lately has left the line"
        );
    }
    pruned.cache
}

/// A cache as it was read.
struct Content {
    manifest: Manifest,
    cache: Cache,
}

/// Reads an image's cache; the inner error says why it is none that BuildKit would import.
async fn read_cache(
    ports: &impl ReadBlobs,
    repository: &CacheRepository,
    image: &Image,
) -> Result<Result<Content, String>, CallError> {
    let manifest = match cache::classify(&image.manifest) {
        Kind::Cache(manifest) => manifest,
        Kind::Other { why } => return Ok(Err(why)),
    };
    if let Err(why) = importable(&image.manifest) {
        return Ok(Err(why));
    }
    let config = ports.blob(repository, &manifest.config.digest, cache::IMPORT_LIMIT).await?;
    Ok(match Cache::parse(&manifest, &config) {
        Ok(cache) => Ok(Content { manifest, cache }),
        Err(invalid) => Err(crate::error::chain(&invalid)),
    })
}
