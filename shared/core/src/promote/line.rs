//! Updating one line: one read of it, a plan, one write.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{try_join, try_join_all};
use futures_util::stream;
use jiff::Timestamp;

use super::byte_budget::{self, ByteBudget};
use super::misses::first_misses;
use super::outcome::{Error, MeasuredBuild, NothingToPromote, Outcome};
use super::probation::{self, Ends};
use super::request::{BuildFacts, LineRequests, UpdateRequest, UpdateSource};
use crate::error::CallError;
use crate::line_update::LineUpdate;
use crate::names::{CacheRepository, Commit, Digest, Line, Scope, Tag};
use crate::newest_commit;
use crate::policy::Project;
use crate::ports::{Image, MountBlobs, Mounted, ReadBlobs, ReadBuilds, ReadImages, WriteImages, read_images};
use crate::provenance::{self, Built, Cold, Provenance};
use buildkit_cache::{Cache, CacheHitRate, Kind, Limits, Manifest, Mark, importable};

/// How many blobs are mounted at once; ECR opens at most 100 a second.
const MOUNTS_AT_ONCE: usize = 16;

/// The ports that promotion needs.
pub trait Ports: ReadBuilds + ReadImages + ReadBlobs + WriteImages + MountBlobs {}
impl<P: ReadBuilds + ReadImages + ReadBlobs + WriteImages + MountBlobs> Ports for P {}

/// A cache that is to be merged into a line.
struct SourceCache {
    source: UpdateSource,
    content: Content,
    /// The build that wrote it.
    built: Built,
}

impl SourceCache {
    /// When it was built, if that was from scratch.
    fn refreshed_at(&self) -> Option<Timestamp> {
        matches!(&self.source, UpdateSource::Built(_, _, facts) if facts.refresh).then_some(self.built.at)
    }

    /// The merge that brings it.
    fn mark(&self) -> Option<&Mark> {
        match &self.source {
            UpdateSource::Merged(mark, _) => Some(mark),
            UpdateSource::Built(..) => None,
        }
    }
}

/// A cache as it was read.
pub(super) struct Content {
    pub(super) manifest: Manifest,
    pub(super) cache: Cache,
}

/// Updates a line by all that these requests bring: reads what there is, plans what to write, and writes it.
pub(super) async fn update(
    ports: &impl Ports,
    budget: &ByteBudget,
    LineRequests { project, scope, line, requests }: LineRequests,
    now: Timestamp,
) -> Result<Outcome, Error> {
    let read = read(ports, budget, &project, &scope, &line, requests).await?;
    let _part = budget.for_caches(read.bytes).await;
    let observed = observe(ports, project, scope, line, read, now).await?;
    let repository = observed.project.cache_repository.clone();
    let (update, outcome) = plan(observed, now);
    update.apply(ports, &repository).await?;
    outcome
}

/// All that an update is planned from.
struct Observed {
    project: Project,
    scope: Scope,
    line: Line,
    /// What the line holds, and the image that it is.
    current: Option<(Content, Image)>,
    /// What its manifest says of it.
    before: Option<Provenance>,
    /// The caches to merge: validated, with their layers in the line's repository.
    sources: Vec<SourceCache>,
    /// The caches of commits that builds are of.
    commits: BTreeMap<Commit, Image>,
    /// Of main's line: which merges are on probation no more.
    ends: Option<Ends>,
    /// Number of tags that were looked at for sources.
    asked: usize,
    /// The newest build of the line or of main that found nothing in the cache.
    cold: Option<Cold>,
}

/// Reads the caches that are to be joined, and mounts their layers.
async fn observe(
    ports: &impl Ports,
    project: Project,
    scope: Scope,
    line: Line,
    read: Read,
    now: Timestamp,
) -> Result<Observed, Error> {
    let Read { current, sources, commits, asked, mut present, cold, .. } = read;
    let current = match current {
        None => None,
        Some(image) => Some((own_cache(ports, &project, &Tag::line(&scope, &line), &image).await?, image)),
    };
    let before = current.as_ref().map(|(content, _)| Provenance::read(&content.manifest.annotations));
    let sources = validated(ports, &project, before.as_ref(), sources).await?;
    let mut sources = mounted(ports, &project, &mut present, sources).await?;
    let ends = (line == Line::Main).then(|| ends(&project, before.as_ref(), &sources, now));
    if let Some(ends) = &ends {
        sources.retain(|source| source.mark().is_none_or(|mark| !ends.has_ended(mark)));
    }
    Ok(Observed { project, scope, line, current, before, sources, commits, ends, asked, cold })
}

/// Plans what to write, and says what comes of it.
fn plan(observed: Observed, now: Timestamp) -> (LineUpdate, Result<Outcome, Error>) {
    let Observed { project, scope, line, current, before, mut sources, commits, ends, asked, cold } =
        observed;
    let held = current.as_ref().map(|(content, _)| &content.cache);
    let is_due = held.is_some_and(|held| is_due(held, before.as_ref(), ends.as_ref()));
    if sources.is_empty() && !is_due {
        let why = match asked {
            0 => NothingToPromote::NothingOverdue(line),
            tags => NothingToPromote::NoCache { line, tags },
        };
        return (LineUpdate::default(), Ok(Outcome::Nothing(why)));
    }

    let mut provenance = before.clone().unwrap_or_default();
    provenance.project = Some(project.name.clone());
    let is_replaced = replaces(&mut provenance, &mut sources);
    let known = held.filter(|_| !is_replaced);
    // What main has on probation is new where its own build brings it.
    let own = ends.as_ref().and(known).map(Cache::own);
    let joined = join(&mut sources, (known, own.as_ref()), ends.as_ref(), now);
    let mut adds = known.is_none() || is_due;
    let (mut builds, mut brought) = (Vec::new(), Vec::new());
    for SourceCache { source, content, .. } in &sources {
        let known = if matches!(source, UpdateSource::Built(..)) { own.as_ref().or(known) } else { known };
        let is_new = known.is_none_or(|known| !known.contains(&content.cache));
        adds |= is_new;
        match source {
            UpdateSource::Built(_, built, facts) => {
                let was_newest = before.as_ref().and_then(|before| before.built.as_ref());
                let hit_rate = content.cache.built_since(built.at);
                // A build is of all targets, and its time is counted once.
                let seconds = facts.seconds.filter(|_| project.scopes().next() == Some(&scope));
                let (saved_seconds, is_cold) = compared(seconds, built.at, &hit_rate, cold);
                provenance.cold = provenance.cold.max(is_cold);
                if is_new || was_newest.is_none_or(|newest| newest.at < built.at) {
                    let before_percent = before.as_ref().and_then(|before| before.reused_percent);
                    let (build, commit) = (built.build.clone(), built.commit.clone());
                    let mut measured = MeasuredBuild {
                        build,
                        commit,
                        hit_rate,
                        before_percent,
                        saved_seconds,
                        first_misses: Vec::new(),
                    };
                    if line == Line::Main && measured.dropped().is_some() {
                        measured.first_misses = first_misses(&content.cache, built.at, held, facts.refresh);
                    }
                    builds.push(measured);
                }
                note(&mut provenance, built, facts, &hit_rate);
            }
            UpdateSource::Merged(mark, _) if is_new => {
                let commit = mark.commit();
                brought.retain(|known| known != commit);
                brought.push(commit.clone());
                provenance.merged = Some(commit.clone());
                provenance.merged_at = Some(now);
            }
            UpdateSource::Merged(..) => {}
        }
    }
    // Only other branches' builds need a commit's cache: what is on main is in main's line.
    let kept = sources.iter().filter(|_| line != Line::Main);
    let commits = kept.map(|source| commit_caches(&project, &scope, &line, source, &commits)).collect();
    let unchanged = LineUpdate { commits, ..LineUpdate::default() };
    if !adds && before.as_ref() == Some(&provenance) {
        return (unchanged, Ok(Outcome::Unchanged { line }));
    }
    let limits = Limits { bytes: project.line_budget, ..Limits::default() };
    let merged = within(&joined, &limits, &line, &project.cache_repository);
    let (records, on_probation) = (merged.records(), merged.probations().into_values().sum());
    provenance.probation = probation::of(&merged, &project);
    let parent = current.as_ref().map(|(_, image)| image.digest.clone());
    let merged = merged.serialise(Provenance { parent, ..provenance.clone() }.annotations(&line));
    let holds_config =
        current.as_ref().is_some_and(|(content, _)| content.manifest.config.digest == merged.config_digest);
    // What was new does not fit.
    if holds_config && before.as_ref() == Some(&provenance) {
        return (unchanged, Ok(Outcome::Unchanged { line }));
    }
    let size = merged.size();
    if size > buildkit_cache::IMPORT_LIMIT {
        return (unchanged, Err(Error::TooLarge { line, bytes: size }));
    }
    let update = LineUpdate {
        config: (!holds_config).then(|| (merged.config_digest, Bytes::from(merged.config))),
        history: current.map(|(_, image)| (Tag::history(&scope, &line, now, &image.digest), image)),
        line: Some((Tag::line(&scope, &line), Bytes::from(merged.manifest))),
        ..unchanged
    };
    let (to, project) = (merged.manifest_digest, project.name);
    (update, Ok(Outcome::Updated { line, to, project, records, size, merged: brought, on_probation, builds }))
}

/// Whether a build from scratch comes, which takes the place of what the line held before it: otherwise nothing in it
/// would ever be new. Leaves out what was built before.
fn replaces(provenance: &mut Provenance, sources: &mut Vec<SourceCache>) -> bool {
    let refreshed = sources.iter().filter_map(SourceCache::refreshed_at).max();
    let is_newer = |at: &Timestamp| provenance.refreshed.is_none_or(|known| known < *at);
    let Some(at) = refreshed.filter(is_newer) else { return false };
    provenance.refreshed = Some(at);
    sources.retain(|source| source.built.at >= at);
    true
}

/// What the line holds; what is none of Stoker's caches is not Stoker's to replace.
async fn own_cache(
    ports: &impl Ports,
    project: &Project,
    tag: &Tag,
    image: &Image,
) -> Result<Content, Error> {
    let repository = &project.cache_repository;
    read_cache(ports, repository, image).await.map_err(|error| match error {
        Unreadable::Call(error) => Error::Call(error),
        Unreadable::NoCache(why) => {
            Error::ForeignLine { tag: tag.clone(), repository: repository.clone(), why }
        }
    })
}

/// Notes a build, if it is the newest. Of two that started at once it is the same one, in whatever order they come.
fn note(provenance: &mut Provenance, built: &Built, facts: &BuildFacts, hit_rate: &CacheHitRate) {
    let is_newer = |newest: &Built| (newest.at, &newest.build) < (built.at, &built.build);
    if provenance.built.as_ref().is_none_or(is_newer) {
        provenance.built = Some(built.clone());
        provenance.reused_percent = hit_rate.reused_percent();
        provenance.bases = facts.bases.clone().or(provenance.bases.take());
    }
}

/// What a build's duration says: by how much it was shorter than a cold one, or that it was cold itself.
fn compared(
    seconds: Option<u64>,
    at: Timestamp,
    hit_rate: &CacheHitRate,
    cold: Option<Cold>,
) -> (Option<u64>, Option<Cold>) {
    match seconds {
        Some(seconds) if hit_rate.reused == 0 => (None, Some(Cold { at, seconds })),
        Some(seconds) => (cold.map(|cold| cold.seconds.saturating_sub(seconds)), None),
        None => (None, None),
    }
}

/// What is there.
struct Read {
    /// What the line points to.
    current: Option<Image>,
    /// What there is to merge.
    sources: Vec<(UpdateSource, Image)>,
    /// The caches of commits that builds are of, whichever line they are of.
    commits: BTreeMap<Commit, Image>,
    /// Number of tags that were looked at for sources.
    asked: usize,
    /// Blobs that some manifest in the line's repository refers to.
    present: BTreeSet<Digest>,
    /// The newest build of the line or of main that found nothing in the cache.
    cold: Option<Cold>,
    /// Bytes of JSON of the line and the sources.
    bytes: usize,
}

/// Reads all manifests: one request for each repository.
async fn read(
    ports: &impl ReadImages,
    budget: &ByteBudget,
    project: &Project,
    scope: &Scope,
    line: &Line,
    requests: Vec<UpdateRequest>,
) -> Result<Read, Error> {
    let mut built: BTreeMap<Tag, UpdateSource> = BTreeMap::new();
    let mut merged: BTreeMap<Tag, (Tag, UpdateSource)> = BTreeMap::new();
    // Each push has a trigger of its own, and its newest commit comes first.
    let mut pushed: BTreeMap<usize, Vec<Mark>> = BTreeMap::new();
    for UpdateRequest { trigger, source } in requests {
        match source {
            Some(UpdateSource::Built(tag, of, facts)) => {
                built.insert(tag.clone(), UpdateSource::Built(tag, of, facts));
            }
            Some(UpdateSource::Merged(mark, None)) => pushed.entry(trigger).or_default().push(mark),
            Some(UpdateSource::Merged(mark, Some(of))) => {
                let [own, first] = Tag::commit_of(scope, mark.commit(), &of);
                merged.insert(own, (first, UpdateSource::Merged(mark, Some(of))));
            }
            None => {}
        }
    }
    let commit_of = |source: &UpdateSource| match source {
        UpdateSource::Built(_, built, _) if *line != Line::Main => Some(built.commit.clone()),
        _ => None,
    };
    let commits: BTreeSet<Commit> = built.values().filter_map(commit_of).collect();
    // Main comes along for the blobs that need no mounting, as a new branch has most of its blobs from there.
    let lines = [Tag::line(scope, line), Tag::line(scope, &Line::Main)];
    let of_merged = merged.iter().flat_map(|(tag, (first, _))| [tag, first]);
    let of_pushed = pushed.values().flatten().map(|mark| newest_commit::tags(scope, mark.commit()));
    let of_pushed = of_pushed.flat_map(|(commit, fork)| [commit].into_iter().chain(fork));
    let own = lines.iter().chain(of_merged).cloned().chain(of_pushed);
    let own = own.chain(commits.iter().map(|commit| Tag::commit(scope, commit)));
    let own: Vec<Tag> = own.collect::<BTreeSet<Tag>>().into_iter().collect();
    let exports: Vec<Tag> = built.keys().cloned().collect();
    let _part = budget.for_manifests(exports.len()).await;
    let (own, exports) = if project.builds_repository.is_some() {
        let own = by_tag(ports, &project.cache_repository, own);
        try_join(own, by_tag(ports, project.exports(), exports)).await?
    } else {
        let mut own = by_tag(ports, &project.cache_repository, [own, exports.clone()].concat()).await?;
        let exports = exports.iter().filter_map(|tag| own.remove_entry(tag)).collect();
        (own, exports)
    };
    let manifests = own.values().filter_map(|image| match buildkit_cache::classify(&image.manifest) {
        Kind::Cache(manifest) => Some(manifest),
        Kind::Other { .. } => None,
    });
    let present = manifests.flat_map(|manifest| blobs(&manifest)).collect();
    let of_lines = lines.iter().filter_map(|tag| own.get(tag));
    let cold = of_lines.filter_map(|image| Provenance::of_manifest(&image.manifest)?.cold).max();
    let asked = built.len() + merged.len() + pushed.values().map(Vec::len).sum::<usize>();
    let built = built.into_iter().filter_map(|(tag, source)| Some((source, exports.get(&tag)?.clone())));
    let merged = merged.into_iter().filter_map(|(tag, (first, source))| {
        let image = own.get(&tag).or_else(|| own.get(&first))?;
        Some((source, image.clone()))
    });
    let pushed = pushed.into_values().filter_map(|push| {
        let commits = push.iter().map(Mark::commit);
        let newest = newest_commit::newest(scope, commits, |tag| own.contains_key(tag))?.clone();
        let image = own.get(&Tag::commit(scope, &newest))?.clone();
        let mark = push.into_iter().find(|mark| *mark.commit() == newest)?;
        Some((UpdateSource::Merged(mark, None), image))
    });
    let sources = built.chain(merged).chain(pushed).collect();
    let commits = commits.into_iter().filter_map(|commit| {
        let image = own.get(&Tag::commit(scope, &commit))?.clone();
        Some((commit, image))
    });
    let (current, commits) = (own.get(&lines[0]).cloned(), commits.collect());
    let (sources, bytes) = fitting(current.as_ref(), sources, line);
    Ok(Read { current, sources, commits, asked, present, cold, bytes })
}

/// The images that there are under these tags.
async fn by_tag(
    ports: &impl ReadImages,
    repository: &CacheRepository,
    tags: Vec<Tag>,
) -> Result<BTreeMap<Tag, Image>, CallError> {
    let images = read_images(ports, repository, &tags).await?;
    Ok(tags.into_iter().zip(images).filter_map(|(tag, image)| Some((tag, image?))).collect())
}

/// Of the sources as many as there can be room for, the first first, and the bytes of JSON of these and of
/// the line. What is left out is no loss for good: a line's next build exports what it used.
fn fitting(
    current: Option<&Image>,
    sources: Vec<(UpdateSource, Image)>,
    line: &Line,
) -> (Vec<(UpdateSource, Image)>, usize) {
    let bytes_of = |image: &Image| match buildkit_cache::classify(&image.manifest) {
        Kind::Cache(manifest) => byte_budget::bytes_of(&manifest, image.manifest.len()),
        Kind::Other { .. } => 0,
    };
    let mut all = current.map_or(0, bytes_of);
    let mut kept = Vec::new();
    for (source, image) in sources {
        let with = all.saturating_add(bytes_of(&image));
        if kept.is_empty() || byte_budget::fits(with) {
            all = with;
            kept.push((source, image));
        } else {
            tracing::warn!(%line, cache.digest = %image.digest, ?source, "left out: too much is to be merged at once");
        }
    }
    (kept, all)
}

/// All that a cache consists of besides its manifest.
pub(super) fn blobs(manifest: &Manifest) -> Vec<Digest> {
    let layers = manifest.layers.iter().map(|layer| layer.digest.clone());
    layers.chain([manifest.config.digest.clone()]).collect()
}

/// Reads the sources' caches, and leaves out what is none, what is not what it is called, and what is from before the
/// line was rolled back.
async fn validated(
    ports: &impl ReadBlobs,
    project: &Project,
    line: Option<&Provenance>,
    sources: Vec<(UpdateSource, Image)>,
) -> Result<Vec<SourceCache>, Error> {
    let rolled_back = line.and_then(|line| line.rolled_back);
    let read = sources.into_iter().map(|(source, image)| async move {
        let repository = match &source {
            UpdateSource::Built(..) => project.exports(),
            UpdateSource::Merged(..) => &project.cache_repository,
        };
        let content = match read_cache(ports, repository, &image).await {
            Ok(content) => Ok(content),
            Err(Unreadable::NoCache(why)) => Err(why),
            Err(Unreadable::Call(error)) => return Err(error),
        };
        let validated = content.and_then(|mut content| {
            let built = match &source {
                UpdateSource::Built(_, built, _) => {
                    let needed: BTreeSet<&Digest> = content.cache.blobs().map(|blob| &blob.digest).collect();
                    content.manifest.layers.retain(|layer| needed.contains(&layer.digest));
                    let bytes = content.manifest.config.size.max(image.manifest.len() as u64);
                    if bytes > buildkit_cache::SAFE_SIZE as u64 {
                        tracing::warn!(
                            cache.digest = %image.digest, cache.repository = %repository, cache.import_bytes = bytes,
                            "an export that is about to become too large for BuildKit to import"
                        );
                    }
                    built.clone()
                }
                UpdateSource::Merged(mark, line) => {
                    built_of(&content.manifest, project, mark.commit(), line.as_ref())?
                }
            };
            match rolled_back {
                Some(time) if built.at < time => Err(format!("it was built before the line was rolled back, at \
                     {time}")),
                _ => Ok((content, built)),
            }
        });
        Ok(match validated {
            Ok((content, built)) => Some(SourceCache { source, content, built }),
            Err(why) => {
                tracing::warn!(cache.digest = %image.digest, cache.repository = %repository, ?source, why,
                    "left alone");
                None
            }
        })
    });
    Ok(try_join_all(read).await.map_err(Error::Call)?.into_iter().flatten().collect())
}

/// The build that a commit's cache is of, if it is of this commit, and of this line or of the only one that
/// has built it.
fn built_of(
    manifest: &Manifest,
    project: &Project,
    commit: &Commit,
    line: Option<&Line>,
) -> Result<Built, String> {
    let provenance = Provenance::read(&manifest.annotations);
    let is_of_line = match line {
        Some(line) => provenance::line(&manifest.annotations).as_ref() == Some(line),
        None => provenance.shared == Some(false),
    };
    if !is_of_line {
        return Err("it is of another branch than was merged, or several have built the commit".to_owned());
    }
    match provenance.built {
        Some(built) if built.commit == *commit && provenance.project.as_ref() == Some(&project.name) => {
            Ok(built)
        }
        _ => Err("it does not say that it is this commit's".to_owned()),
    }
}

/// Makes the layers of what builds exported layers of the line's repository, where these are two. Leaves out an export
/// with a layer that is nowhere.
async fn mounted(
    ports: &impl Ports,
    project: &Project,
    present: &mut BTreeSet<Digest>,
    sources: Vec<SourceCache>,
) -> Result<Vec<SourceCache>, Error> {
    let Some(from) = &project.builds_repository else { return Ok(sources) };
    let to = &project.cache_repository;
    let mut brought = Vec::new();
    for source in sources {
        if let UpdateSource::Built(tag, ..) = &source.source {
            let needed: BTreeSet<Digest> =
                blobs(&source.content.manifest).into_iter().filter(|blob| !present.contains(blob)).collect();
            let mounts = stream::iter(&needed).map(|blob| ports.mount(to, from, blob));
            let mut mounts = mounts.buffer_unordered(MOUNTS_AT_ONCE);
            let mut missing = false;
            while let Some(mounted) = mounts.next().await {
                match mounted? {
                    Mounted::Done => {}
                    Mounted::Missing => missing = true,
                    Mounted::Refused => {
                        return Err(Error::NotMounted { from: from.clone(), to: to.clone() });
                    }
                }
            }
            drop(mounts);
            if missing {
                tracing::error!(cache.tag = %tag, cache.repository = %from, "an export that lacks a layer is \
                     left alone");
                continue;
            }
            present.extend(needed);
        }
        brought.push(source);
    }
    Ok(brought)
}

/// What a build exported, as its commit's cache: the same graph, with annotations that are Stoker's own. The
/// first line to build a commit has the commit's own tag; another has one for itself, and the first is marked
/// as not the only one.
fn commit_caches(
    project: &Project,
    scope: &Scope,
    line: &Line,
    source: &SourceCache,
    commits: &BTreeMap<Commit, Image>,
) -> Vec<(Tag, Bytes)> {
    let UpdateSource::Built(_, built, facts) = &source.source else { return Vec::new() };
    let known =
        commits.get(&built.commit).and_then(|image| match buildkit_cache::classify(&image.manifest) {
            Kind::Cache(manifest) => Some(manifest),
            Kind::Other { .. } => None,
        });
    let says = known.as_ref().map(|known| Provenance::read(&known.annotations));
    let of = known.as_ref().and_then(|known| provenance::line(&known.annotations));
    let is_marked = says.as_ref().is_some_and(|says| says.shared == Some(true));
    let is_first = known.is_none()
        || of.as_ref() == Some(line) && says.as_ref().is_some_and(|says| says.shared == Some(false));
    let shared = Some(facts.is_shared || !is_first);
    let provenance = Provenance {
        built: Some(built.clone()),
        project: Some(project.name.clone()),
        shared,
        ..Provenance::default()
    };
    let own = Bytes::from(source.content.manifest.annotated(provenance.annotations(line)));
    let tag = Tag::commit(scope, &built.commit);
    if shared == Some(false) {
        return vec![(tag, own)];
    }
    // Reconciliation takes a build for promoted whose line has the commit's cache, so that comes last.
    let first = match (known, says, of) {
        _ if is_marked => None,
        (Some(known), Some(says), Some(of)) => {
            Some(Bytes::from(known.annotated(Provenance { shared, ..says }.annotations(&of))))
        }
        _ => Some(own.clone()),
    };
    let [of_line, _] = Tag::commit_of(scope, &built.commit, line);
    first.map(|manifest| (tag, manifest)).into_iter().chain([(of_line, own)]).collect()
}

/// What ends probation on main's line, when these sources come to it.
fn ends(project: &Project, before: Option<&Provenance>, sources: &[SourceCache], now: Timestamp) -> Ends {
    let built = sources.iter().filter_map(|source| match &source.source {
        UpdateSource::Built(_, built, facts) => Some((built, facts)),
        UpdateSource::Merged(..) => None,
    });
    let commits = built.clone().flat_map(|(built, facts)| [&built.commit].into_iter().chain(&facts.merged));
    let newest = before.and_then(|before| before.built.as_ref());
    Ends {
        commits: commits.cloned().collect(),
        built: built.map(|(built, _)| built).chain(newest).map(|built| built.at).max(),
        expired: now - probation::longest(project),
    }
}

/// Whether something leaves main's line, or is not on it any more though its manifest says so.
fn is_due(line: &Cache, before: Option<&Provenance>, ends: Option<&Ends>) -> bool {
    let Some(ends) = ends else { return false };
    let marks = line.probations();
    let said = before.and_then(|before| before.probation).map(|probation| probation.since);
    marks.keys().any(|mark| ends.has_ended(mark)) || marks.keys().next().map(Mark::at) != said
}

/// Says in each source when its build used it, and joins all to what the line holds: to main, and what is its own of
/// that, as far as [`probation::join`] lets them. The sources of merges into main keep what they add.
fn join(
    sources: &mut [SourceCache],
    (known, own): (Option<&Cache>, Option<&Cache>),
    ends: Option<&Ends>,
    now: Timestamp,
) -> Cache {
    for source in &mut *sources {
        source.content.cache = source.content.cache.made_by(now).used_at(source.built.at).unmarked();
    }
    let Some(ends) = ends else {
        return Cache::merge(known.into_iter().chain(sources.iter().map(|source| &source.content.cache)));
    };
    sources.sort_by(|a, b| a.mark().cmp(&b.mark()));
    let (mut built, mut merged) = (Vec::new(), Vec::new());
    for SourceCache { source, content, .. } in sources {
        match source {
            UpdateSource::Built(..) => built.push(&content.cache),
            UpdateSource::Merged(mark, _) => merged.push((&*mark, &mut content.cache)),
        }
    }
    let empty = Cache::default();
    probation::join(known.unwrap_or(&empty), own.unwrap_or(&empty), &built, merged, ends)
}

/// What of a line's cache fits. What does not is logged.
fn within(cache: &Cache, limits: &Limits, line: &Line, repository: &CacheRepository) -> Cache {
    let pruned = cache.prune(limits);
    if let Some(first) = pruned.dropped.first() {
        tracing::info!(
            %line, cache.repository = %repository, pruned.source = %first.why, pruned.records = pruned.dropped.len(),
            pruned.bytes = pruned.bytes_before - pruned.bytes_after, cache.bytes = pruned.bytes_after,
            "what builds used least lately has left the line"
        );
    }
    pruned.cache
}

/// Why an image's cache could not be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// A call failed.
    Call(CallError),
    /// It is no cache that BuildKit would import, and why.
    NoCache(String),
}

/// Reads an image's cache.
pub(super) async fn read_cache(
    ports: &impl ReadBlobs,
    repository: &CacheRepository,
    image: &Image,
) -> Result<Content, Unreadable> {
    let manifest = importable(&image.manifest).map_err(Unreadable::NoCache)?;
    let config = ports.blob(repository, &manifest.config.digest, buildkit_cache::IMPORT_LIMIT).await;
    let config = config.map_err(Unreadable::Call)?;
    let cache = Cache::parse(&manifest, &config);
    let cache = cache.map_err(|invalid| Unreadable::NoCache(crate::error::chain(&invalid)))?;
    Ok(Content { manifest, cache })
}
