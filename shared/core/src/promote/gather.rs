//! What a batch of triggers asks of lines: finds the projects, and asks CodeBuild what the builds really were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use buildkit_cache::{Cache, MANIFEST_MEDIA_TYPE, Mark};
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use jiff::Timestamp;

use super::line::Ports;
use super::mounts;
use super::outcome::{Answer, Error, NothingToPromote, Outcome};
use super::request::{BuildFacts, LineRequests, UpdateRequest, UpdateRequests, UpdateSource};
use super::trigger::PromotionTrigger;
use crate::error::CallError;
use crate::event::{BuildFailed, MAX_COMMITS};
use crate::names::{CacheRepository, Commit, Line, ProjectName, Repository, Revision, Scope, Tag, TagKind};
use crate::policy::{Policy, Project};
use crate::ports::{Build, BuildStatus, ReadBuilds, ReadImages, read_images};
use crate::provenance::{self, Built, Provenance};

/// What a batch asks of lines. A trigger that asks nothing is answered in its place.
pub(super) async fn gather(
    ports: &impl Ports,
    policy: &Policy,
    triggers: &[PromotionTrigger],
    answers: &mut [Answer],
    now: Timestamp,
) -> (UpdateRequests, mounts::Requests) {
    let builds = &Builds::read(ports, policy, triggers).await;
    let (mut all, mut mounts) = (UpdateRequests::new(), mounts::Requests::new());
    for (index, (trigger, answer)) in triggers.iter().zip(answers).enumerate() {
        match of_trigger(ports, policy, trigger, builds, now).await {
            Err(Answered(instead)) => *answer = instead,
            Ok(found) => {
                for Found { project, scope, line, source, saved } in found {
                    if let Some(saved) = saved {
                        let request = mounts::Request { trigger: index, project, scope, saved };
                        let key = (request.project.name.clone(), request.scope.clone());
                        mounts.entry(key).or_default().push(request);
                        continue;
                    }
                    let key = (project.name.clone(), scope.clone(), line.clone());
                    let new = || LineRequests { project, scope, line, requests: Vec::new() };
                    let of_line = all.entry(key).or_insert_with(new);
                    of_line.requests.push(UpdateRequest { trigger: index, source });
                }
            }
        }
    }
    note_shared(&mut all);
    (all, mounts)
}

/// An update that is asked for, and of what.
struct Found {
    project: Project,
    scope: Scope,
    line: Line,
    source: Option<UpdateSource>,
    /// Of a mount's line: what a build did with the mount.
    saved: Option<mounts::Saved>,
}

/// The answer to a trigger that asks nothing of any line.
struct Answered(Answer);

impl From<NothingToPromote> for Answered {
    fn from(why: NothingToPromote) -> Self {
        Self(Ok(vec![Outcome::Nothing(why)]))
    }
}

impl From<CallError> for Answered {
    fn from(error: CallError) -> Self {
        Self(Err(Arc::new(error.into())))
    }
}

impl From<&Arc<Error>> for Answered {
    fn from(error: &Arc<Error>) -> Self {
        Self(Err(Arc::clone(error)))
    }
}

/// What a trigger asks for.
async fn of_trigger(
    ports: &impl Ports,
    policy: &Policy,
    trigger: &PromotionTrigger,
    builds: &Builds,
    now: Timestamp,
) -> Result<Vec<Found>, Answered> {
    match trigger {
        PromotionTrigger::Built { build } => {
            let build = builds.ended(policy, build)?.ok_or(NothingToPromote::UnknownBuild)?;
            Ok(of_build(policy, build)?)
        }
        PromotionTrigger::Failed { build, status } => {
            let failed = failed(builds.ended(policy, build)?, status)?;
            Err(Answered(Ok(vec![Outcome::Failed(failed)])))
        }
        PromotionTrigger::Exported { repository, tag } => {
            Ok(of_build(policy, builds.of_export(policy, repository, tag)?)?)
        }
        PromotionTrigger::Merged { repository, line, commits, head, at } => {
            // A forge's clock may be ahead.
            let at = at.map_or(now, |at| at.min(now));
            Ok(of_merge(ports, policy, repository, line, commits, head.as_ref(), at).await?)
        }
        PromotionTrigger::Fork { repository, line, head } => {
            let noted = note_fork(ports, policy, repository, line, head).await?;
            Err(NothingToPromote::ForkNoted(noted).into())
        }
        PromotionTrigger::Overdue { project } => Ok(overdue(policy, project)?),
    }
}

/// What CodeBuild says of the builds that a batch is about: asked once.
struct Builds {
    /// Those that ended.
    ended: Result<Vec<Build>, Arc<Error>>,
    /// The newest builds of the projects whose exports have arrived: read once for each, all at once. Anybody
    /// whose build may push can have any number of exports arrive.
    recent: BTreeMap<ProjectName, Result<Vec<Arc<Build>>, Arc<Error>>>,
}

impl Builds {
    async fn read(ports: &impl ReadBuilds, policy: &Policy, triggers: &[PromotionTrigger]) -> Self {
        let ended = triggers.iter().filter_map(|trigger| match trigger {
            PromotionTrigger::Built { build } | PromotionTrigger::Failed { build, .. } => Some(build),
            _ => None,
        });
        let ended: BTreeSet<&String> = ended.filter(|build| is_served(policy, build)).collect();
        let ids: Vec<String> = ended.into_iter().cloned().collect();
        let ended = if ids.is_empty() { Ok(Vec::new()) } else { ports.get(&ids).await };
        let projects = triggers.iter().filter_map(|trigger| match trigger {
            PromotionTrigger::Exported { repository, tag } => project_of_export(policy, repository, tag),
            _ => None,
        });
        let projects: BTreeSet<ProjectName> = projects.map(|project| project.name).collect();
        let recent = projects.into_iter().map(async |project| {
            let builds = ports.recent(&project, None).await.map_err(|error| Arc::new(error.into()));
            (project, builds)
        });
        let recent = join_all(recent).await.into_iter().collect();
        Self { ended: ended.map_err(|error| Arc::new(error.into())), recent }
    }

    /// A build that ended, as CodeBuild knows it.
    fn ended(&self, policy: &Policy, id: &str) -> Result<Option<&Build>, Answered> {
        if !is_served(policy, id) {
            return Err(NothingToPromote::UnknownProject.into());
        }
        Ok(self.ended.as_ref()?.iter().find(|build| build.id == id))
    }

    /// The build of an export that arrived: usually that is still running, and its end is the next trigger.
    /// For a tag that no build was given, no export is read.
    fn of_export(
        &self,
        policy: &Policy,
        repository: &CacheRepository,
        tag: &str,
    ) -> Result<&Build, Answered> {
        let project = project_of_export(policy, repository, tag);
        let recent = project.and_then(|project| self.recent.get(&project.name));
        let recent = recent.ok_or(NothingToPromote::NoExport)?.as_ref()?;
        let writes = |build: &&Arc<Build>| {
            build
                .inputs
                .as_ref()
                .is_some_and(|inputs| inputs.exports.iter().chain(&inputs.saves).any(|own| own == tag))
        };
        let build = recent.iter().find(writes).ok_or(NothingToPromote::ExportOfNobody)?;
        Ok(build)
    }
}

/// Whether a build is of one of the policy's projects. Every build of the account comes by here; Stoker may,
/// and need, ask only about those.
fn is_served(policy: &Policy, build: &str) -> bool {
    let name = build.split_once(':').and_then(|(project, _)| ProjectName::new(project).ok());
    name.is_some_and(|name| policy.project(&name).is_some() || policy.builds_forks(&name))
}

fn project_of_export(policy: &Policy, repository: &CacheRepository, tag: &str) -> Option<Project> {
    let (scope, TagKind::Export(_)) = Tag::parse(tag)? else { return None };
    policy.project_of_export(repository, &scope)
}

/// What a build's end asks for: an update for each target that it exported, if it is a build that Stoker gave
/// export tags and that ended well.
fn of_build(policy: &Policy, build: &Build) -> Result<Vec<Found>, NothingToPromote> {
    let project = policy.project(&build.project).ok_or(NothingToPromote::UnknownProject)?;
    if build.status != BuildStatus::Succeeded {
        return Err(NothingToPromote::NotSucceeded);
    }
    let inputs = build.inputs.as_ref().ok_or(NothingToPromote::NotGiven)?;
    if build.claims && inputs.line == Line::Main {
        return Err(NothingToPromote::ClaimsMain);
    }
    if build.claims && !is_of_branch(build.source_version.as_deref(), &inputs.line) {
        return Err(NothingToPromote::ClaimsBranch(inputs.line.clone()));
    }
    if inputs.line == Line::Main
        && inputs.commit.is_none()
        && let Some(other) = other_branch(&project, build.source_version.as_deref())
    {
        return Err(NothingToPromote::OtherBranch(other.to_owned()));
    }
    if inputs.exports.is_empty() {
        return Err(NothingToPromote::WritesNothing);
    }
    let resolved = build.resolved_commit.as_deref().and_then(|commit| Commit::new(commit).ok());
    let commit = resolved.or_else(|| inputs.commit.clone()).ok_or(NothingToPromote::UnknownCommit)?;
    if inputs.commit.as_ref().is_some_and(|asked| *asked != commit) {
        return Err(NothingToPromote::OtherCommit);
    }
    let built = Built { at: build.started_at, commit, build: build.id.clone() };
    // What a build says of itself must not push out what its line holds.
    let seconds =
        build.ended_at.and_then(|ended| ended.duration_since(build.started_at).as_secs().try_into().ok());
    let facts = if build.claims {
        BuildFacts { seconds, ..BuildFacts::default() }
    } else {
        let (bases, merged) = (inputs.bases.clone(), inputs.merged.clone());
        BuildFacts { refresh: inputs.refresh, bases, seconds, merged, is_shared: false }
    };
    // Each target of a build has one; more would only cost what reading them costs.
    let scopes: BTreeSet<_> =
        inputs.exports.iter().map(|export| Tag::parse(export).map(|(scope, _)| scope)).collect();
    if scopes.len() < inputs.exports.len() {
        return Err(NothingToPromote::SeveralExports);
    }
    let found = inputs.exports.iter().map(|export| match Tag::parse(export) {
        Some((scope, TagKind::Export(key))) if project.scopes().any(|own| *own == scope) => {
            let source = UpdateSource::Built(Tag::export(&scope, &key), built.clone(), facts.clone());
            let (project, line) = (project.clone(), inputs.line.clone());
            Ok(Found { project, scope, line, source: Some(source), saved: None })
        }
        _ => Err(NothingToPromote::ForeignExport),
    });
    let saved = mounts::saved(&project, inputs, &built, seconds).into_iter().map(|(scope, saved)| {
        let (project, line) = (project.clone(), inputs.line.clone());
        Ok(Found { project, scope, line, source: None, saved: Some(saved) })
    });
    found.chain(saved).collect()
}

/// Whether CodeBuild's own word for what a build was started with is the branch of this line:
/// `refs/heads/<branch>`, with or without the commit that its webhook pins. A bare name may also be a pull
/// request, a tag or a commit: a fork's seventh pull request is `pr/7`, and so may a branch be called.
fn is_of_branch(source_version: Option<&str>, line: &Line) -> bool {
    let (Some(version), Line::Branch(branch)) = (source_version, line) else { return false };
    let version = version.split_once("^{").map_or(version, |(reference, _)| reference);
    version.strip_prefix("refs/heads/") == Some(branch.as_str())
}

/// The branch that CodeBuild says was built instead of the project's default branch, where the policy names
/// that: a build of main's head may have found another one in its project. One that was given a commit of
/// main has built that commit.
fn other_branch<'a>(project: &Project, source_version: Option<&'a str>) -> Option<&'a str> {
    let default = project.named_default_branch.as_ref()?;
    let version = source_version.filter(|version| !version.is_empty())?;
    let branch = version.strip_prefix("refs/heads/").unwrap_or(version);
    (branch != default.as_str()).then_some(branch)
}

/// A failure that concerns Stoker's users: of a build that Stoker started.
fn failed(build: Option<&Build>, status: &str) -> Result<BuildFailed, NothingToPromote> {
    let started = build.filter(|build| !build.claims);
    let started = started.and_then(|build| Some((build, build.inputs.as_ref()?)));
    let (build, inputs) = started.ok_or(NothingToPromote::FailedElsewhere)?;
    Ok(BuildFailed {
        project: build.project.clone(),
        build: build.id.clone(),
        line: inputs.line.clone(),
        commit: inputs.commit.clone(),
        reason: inputs.reason.clone(),
        status: status.to_owned(),
    })
}

/// What a merge asks for: that what its commits' builds exported comes to the line.
async fn of_merge(
    ports: &impl ReadImages,
    policy: &Policy,
    repository: &Repository,
    line: &Line,
    commits: &[Commit],
    head: Option<&(Line, Revision)>,
    at: Timestamp,
) -> Result<Vec<Found>, CallError> {
    let mut found = Vec::new();
    for project in policy.projects_of(repository) {
        if !project.promotion.into_line(line) {
            continue;
        }
        let named = match head {
            Some((branch, head)) => {
                let commit = match head.commit() {
                    Some(commit) => Some(commit),
                    None => resolve(ports, &project, branch, head).await?,
                };
                commit.map(|commit| UpdateSource::Merged(Mark::new(commit, at), Some(branch.clone())))
            }
            None => None,
        };
        let unnamed =
            commits.iter().rev().map(|commit| UpdateSource::Merged(Mark::new(commit.clone(), at), None));
        for source in named.into_iter().chain(unnamed).take(MAX_COMMITS) {
            found.extend(project.scopes().map(|scope| Found {
                project: project.clone(),
                scope: scope.clone(),
                line: line.clone(),
                source: Some(source.clone()),
                saved: None,
            }));
        }
    }
    Ok(found)
}

/// Notes that a commit is the head of a fork's pull request, before any line of the batch is updated. Whoever
/// may push a branch may have that very commit built from a cache of their own, and nothing about the merge
/// would tell it from the fork's.
async fn note_fork(
    ports: &impl Ports,
    policy: &Policy,
    repository: &Repository,
    line: &Line,
    head: &Revision,
) -> Result<usize, CallError> {
    let projects = policy.projects_of(repository);
    let brings = projects.iter().filter(|project| project.promotion.into_line(&Line::Main));
    let notes = brings.flat_map(|project| {
        let tags = project.scopes().filter_map(|scope| Tag::fork(scope, head));
        tags.map(move |tag| async move {
            let note = Cache::default().serialise(provenance::of_fork(&project.name, line, head));
            let to = &project.cache_repository;
            ports.put_blob(to, &note.config_digest, Bytes::from(note.config)).await?;
            ports.put_image(to, &tag, MANIFEST_MEDIA_TYPE, Bytes::from(note.manifest)).await
        })
    });
    Ok(try_join_all(notes).await?.len())
}

fn overdue(policy: &Policy, project: &ProjectName) -> Result<Vec<Found>, NothingToPromote> {
    let project = policy.project(project).ok_or(NothingToPromote::UnknownProject)?;
    let found = |scope: &Scope| Found {
        project: project.clone(),
        scope: scope.clone(),
        line: Line::Main,
        source: None,
        saved: None,
    };
    Ok(project.scopes().map(found).collect())
}

/// The commit whose hash begins like this, if it is the newest that the branch's line holds a build of.
async fn resolve(
    ports: &impl ReadImages,
    project: &Project,
    branch: &Line,
    head: &Revision,
) -> Result<Option<Commit>, CallError> {
    let lines: Vec<Tag> = project.scopes().map(|scope| Tag::line(scope, branch)).collect();
    let images = read_images(ports, &project.cache_repository, &lines).await?;
    let built = images.iter().flatten().filter_map(|image| Provenance::of_manifest(&image.manifest)?.built);
    Ok(built.map(|built| built.commit).find(|commit| head.names(commit)))
}

/// Says in the requests by builds which commits several lines have built: lines are updated at the same time,
/// and do not see each other's writes.
fn note_shared(all: &mut UpdateRequests) {
    let mut lines: BTreeMap<(Scope, Commit), BTreeSet<Line>> = BTreeMap::new();
    for LineRequests { scope, line, requests, .. } in all.values() {
        for request in requests {
            if let Some(UpdateSource::Built(_, built, _)) = &request.source {
                lines.entry((scope.clone(), built.commit.clone())).or_default().insert(line.clone());
            }
        }
    }
    for LineRequests { scope, requests, .. } in all.values_mut() {
        for request in requests {
            if let Some(UpdateSource::Built(_, built, facts)) = &mut request.source {
                let lines = lines.get(&(scope.clone(), built.commit.clone()));
                facts.is_shared = lines.is_some_and(|lines| lines.len() > 1);
            }
        }
    }
}
