//! What a build would be given: looked up in the registry as the functions do, with every place that was looked at.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use buildkit_cache::importable;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use stoker_aws::registry::FetchedManifest;
use stoker_core::build_inputs::{BuildInputs, variable};
use stoker_core::error::CallError;
use stoker_core::mounts;
use stoker_core::names::{CacheRepository, Digest, ProjectName, Scope, Tag, TagKind};
use stoker_core::policy::{Policy, Project, Target};
use stoker_core::ports::{Image, MakeRepositories, ReadBlobs, ReadImages, WriteImages};
use stoker_core::request::{Request, Subject};
use stoker_core::sources::give;

use crate::problem::Problem;
use crate::reference::{Reference, Repository};
use crate::remote::{self, Remotes};
use crate::text::{plain, plain_whole};

/// Requests at a time.
const AT_A_TIME: usize = 16;
/// Stands for the registry where none is named.
const NO_HOST: &str = "<registry>";
/// Stands for what nobody can know before.
const CHOSEN: &str = "<chosen at the start>";

/// Where caches are looked up, if they are.
pub(super) struct Registry {
    host: Option<String>,
    is_asked: bool,
}

impl Registry {
    pub(super) fn at(host: String) -> Self {
        Self { host: Some(host), is_asked: true }
    }

    pub(super) fn offline(host: Option<String>) -> Self {
        Self { host, is_asked: false }
    }

    fn name(&self) -> &str {
        self.host.as_deref().unwrap_or(NO_HOST)
    }
}

/// Reads a registry's host from the command line.
pub(super) fn registry_host(text: &str) -> Result<String, String> {
    let parsed = format!("{text}/caches").parse::<Repository>();
    match parsed {
        Ok(repository) if repository.any().host() == text => Ok(text.to_owned()),
        _ => Err("expected a host only, such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com".to_owned()),
    }
}

/// What a build is given, as people and programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GivenInputs {
    line: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<String>,
    pub(super) trust: String,
    pub(super) reason: String,
    /// The CodeBuild project that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run_by: Option<ProjectName>,
    /// The git reference by which the commit is fetched, where no branch of the repository holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<String>,
    pub(super) reads_from: String,
    pub(super) writes_to: String,
    pub(super) targets: Vec<Looked>,
    /// What it is not given that builds of other projects are, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) left_out: Option<&'static str>,
    pub(super) environment: BTreeMap<String, String>,
}

impl GivenInputs {
    pub(super) fn line(&self) -> &str {
        &self.line
    }
}

/// What was looked at for one target.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Looked {
    pub(super) target: String,
    pub(super) scope: String,
    pub(super) looks_at: Vec<Look>,
    /// `None` where it must not write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exports_to: Option<String>,
    /// The flags for `docker buildx build`.
    pub(super) flags: String,
}

/// A place where a cache may be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Look {
    /// A line, or a commit.
    pub(super) name: String,
    pub(super) tag: String,
    /// What is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
    /// Whether the build is given it; absent where nothing was looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) given: Option<bool>,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
}

/// The registry as the functions see it, which remembers what was looked at.
struct Images<'a> {
    registry: &'a Registry,
    remotes: &'a Remotes,
    seen: RefCell<Vec<(Tag, Option<Image>)>>,
}

impl<'a> Images<'a> {
    fn new(registry: &'a Registry, remotes: &'a Remotes) -> Self {
        Self { registry, remotes, seen: RefCell::default() }
    }

    fn reference(&self, repository: &CacheRepository, tag: &str) -> Result<Reference, CallError> {
        let text = format!("{}/{repository}:{tag}", self.registry.name());
        text.parse().map_err(|error: crate::reference::NotAReference| {
            CallError::new("registry:GetManifest", &text, stoker_core::error::Failure::Refused, error)
        })
    }
}

impl ReadImages for Images<'_> {
    async fn images(
        &self,
        repository: &CacheRepository,
        tags: &[Tag],
    ) -> Result<Vec<Option<Image>>, CallError> {
        let reads = tags.iter().map(async |tag| {
            if !self.registry.is_asked {
                return Ok(None);
            }
            let reference = self.reference(repository, tag.as_str())?;
            let found = remote::manifest(self.remotes, &reference).await?;
            Ok(found.map(|FetchedManifest { media_type, bytes }| Image {
                digest: Digest::of(&bytes),
                media_type,
                manifest: bytes,
            }))
        });
        let found: Vec<Option<Image>> =
            futures_util::stream::iter(reads).buffered(AT_A_TIME).try_collect().await?;
        self.seen.borrow_mut().extend(tags.iter().cloned().zip(found.iter().cloned()));
        Ok(found)
    }
}

impl MakeRepositories for Images<'_> {
    async fn make_repository(&self, _: &CacheRepository, _: bool) -> Result<bool, CallError> {
        Ok(false)
    }
}

impl ReadBlobs for Images<'_> {
    async fn blob(
        &self,
        repository: &CacheRepository,
        digest: &Digest,
        limit: usize,
    ) -> Result<Bytes, CallError> {
        let reference = self.reference(repository, "any")?;
        let remote = self.remotes.of(&reference);
        let access = remote.pull(&reference.repository);
        remote.registry.blob(&access, &reference.repository, digest, limit).await
    }
}

/// Nothing is written: what a build's start would join has the digest that it would have.
impl WriteImages for Images<'_> {
    async fn put_blob(&self, _: &CacheRepository, _: &Digest, _: Bytes) -> Result<(), CallError> {
        Ok(())
    }

    async fn put_image(&self, _: &CacheRepository, _: &Tag, _: &str, _: Bytes) -> Result<(), CallError> {
        Ok(())
    }
}

/// What the build of a request would be given.
pub(super) async fn inputs(
    registry: &Registry,
    remotes: &Remotes,
    project: &Project,
    request: &Request,
) -> Result<GivenInputs, Problem> {
    let images = Images::new(registry, remotes);
    let wanted = request.readable(project);
    let reads = give(&images, project, &wanted, Timestamp::now()).await;
    let mut reads = reads.map_err(|error| not_looked_up(&images, project, &error))?;
    mounts::give(&images, project, &wanted.line, &mut reads, &[], Timestamp::now()).await;
    let environment = BuildInputs::of(project, request, reads).environment(registry.name(), project);
    let names = project.scopes().flat_map(|scope| wanted.tags(scope));
    let names: BTreeMap<Tag, String> = names.map(|(name, tag)| (tag, name)).collect();
    let reported = reported(images, project, &names, environment.into_iter().collect());
    Ok(GivenInputs {
        commit: match &request.subject {
            Subject::Commit(commit) => Some(commit.to_string()),
            Subject::Head { .. } => None,
        },
        trust: request.trust.to_string(),
        run_by: Some(request.built_by.clone()),
        reference: request.reference.clone(),
        ..reported
    })
}

/// What `resolve-cache` answers a question, and the project that it is about.
pub(super) async fn answered(
    registry: &Registry,
    remotes: &Remotes,
    policy: &Policy,
    question: Value,
) -> Result<(Project, GivenInputs), Problem> {
    let wrong = |why: String| {
        let next = "ask for a project of the policy, and for a target that it has; or name another policy with \
             --policy";
        Problem::usage(format!("resolve-cache refuses the question: {why}"), next)
    };
    let project = question["project"].as_str().and_then(|name| ProjectName::new(name).ok());
    let project = project.and_then(|name| policy.project(&name));
    let images = Images::new(registry, remotes);
    let answer =
        stoker_core::resolve::handle(question, policy, registry.name(), &images, Timestamp::now()).await;
    let (answer, project) = match (answer, project) {
        (Ok(answer), Some(project)) => (answer, project),
        (Err(stoker_core::resolve::Error::Call(error)), Some(project)) => {
            return Err(not_looked_up(&images, &project, &error));
        }
        (Err(error), _) => return Err(wrong(plain_whole(&stoker_core::error::chain(&error)))),
        (Ok(_), None) => return Err(wrong("it names no project".to_owned())),
    };
    let reported = reported(images, &project, &BTreeMap::new(), answer.environment);
    Ok((project, reported))
}

fn not_looked_up(images: &Images<'_>, project: &Project, error: &CallError) -> Problem {
    let doing = format!("look up the caches of {}", project.name);
    match images.reference(&project.cache_repository, "any") {
        Ok(reference) => Problem::call_to(&doing, &reference, error),
        Err(error) => Problem::usage(format!("cannot {doing}: {error}"), "correct --registry"),
    }
}

fn reported(
    images: Images<'_>,
    project: &Project,
    names: &BTreeMap<Tag, String>,
    mut environment: BTreeMap<String, String>,
) -> GivenInputs {
    let is_asked = images.registry.is_asked;
    let name = images.registry.name();
    let seen = images.seen.into_inner();
    let exports = hide_keys(&mut environment);
    let is_one = |target: &&Target| seen.iter().any(|(tag, _)| scope_of(tag).as_ref() == Some(&target.scope));
    let targets = project.targets.iter().filter(is_one).map(|target| {
        let say = |variable: &str| {
            let of_target = environment.get(&format!("{variable}{}", target.suffix()));
            of_target.or_else(|| environment.get(variable)).cloned().unwrap_or_default()
        };
        let refs = say(variable::REFS);
        let given: Vec<&str> =
            refs.split(' ').filter_map(|it| it.split_once('@')).map(|(_, digest)| digest).collect();
        let joined = environment.get(variable::JOINED).map(String::as_str).unwrap_or_default();
        let inputs: BTreeSet<&str> = given.iter().copied().chain(joined.split(' ')).collect();
        let own = seen.iter().filter(|(tag, _)| scope_of(tag).as_ref() == Some(&target.scope));
        let own = own.filter(|(tag, image)| image.is_some() || !is_fork(tag));
        Looked {
            target: target.bake_name(),
            scope: target.scope.to_string(),
            looks_at: looks(own, names, &given, &inputs, is_asked),
            exports_to: exports
                .iter()
                .find(|tag| tag.starts_with(&format!("{}.export.", target.scope)))
                .cloned(),
            flags: say(variable::FLAGS),
        }
    });
    let targets = targets.collect();
    let say = |variable: &str| environment.get(variable).cloned().unwrap_or_default();
    let left_out = "STOKER_BAKE: it is larger than a variable may be. Give each target its own flags, or split \
         the project";
    GivenInputs {
        line: say(variable::LINE),
        commit: environment.get(variable::COMMIT).cloned(),
        trust: say(variable::TRUST),
        reason: say(variable::REASON),
        run_by: None,
        reference: None,
        reads_from: format!("{name}/{}", project.cache_repository),
        writes_to: format!("{name}/{}", project.exports()),
        targets,
        left_out: (!environment.contains_key(variable::BAKE)).then_some(left_out),
        environment,
    }
}

fn is_fork(tag: &Tag) -> bool {
    matches!(Tag::parse(tag.as_str()), Some((_, TagKind::Fork(_))))
}

fn scope_of(tag: &Tag) -> Option<Scope> {
    Tag::parse(tag.as_str()).map(|(scope, _)| scope)
}

/// A tag to export to ends in bits that are drawn at the start: these here are nobody's.
fn hide_keys(environment: &mut BTreeMap<String, String>) -> Vec<String> {
    let of = [variable::EXPORT, variable::MOUNTS_EXPORT].into_iter().filter_map(|name| environment.get(name));
    let tags: Vec<String> = of.flat_map(|tags| tags.split(' ')).map(str::to_owned).collect();
    let shown = |tag: &str| {
        let scope = tag.split_once(".export.").map_or(tag, |(scope, _)| scope);
        format!("{scope}.export.{CHOSEN}")
    };
    for value in environment.values_mut() {
        for tag in &tags {
            *value = value.replace(tag, &shown(tag));
        }
    }
    tags.iter().map(|tag| shown(tag)).collect()
}

/// What became of every place, the nearest first.
fn looks<'s>(
    seen: impl Iterator<Item = &'s (Tag, Option<Image>)>,
    names: &BTreeMap<Tag, String>,
    given: &[&str],
    inputs: &BTreeSet<&str>,
    is_asked: bool,
) -> Vec<Look> {
    let mut known: BTreeSet<Digest> = BTreeSet::new();
    let look = |(tag, image): &(Tag, Option<Image>)| {
        let name = names.get(tag).cloned().unwrap_or_else(|| name_of(tag));
        let digest = image.as_ref().map(|image| image.digest.clone());
        let is_join = matches!(Tag::parse(tag.as_str()), Some((_, TagKind::Given(_))));
        if is_join && image.is_none() {
            let is_made = !known.iter().any(|known| given.contains(&known.to_string().as_str()));
            let why = if is_made { "made when the build starts" } else { "one of these has all" };
            let (name, why) = ("their join".to_owned(), Some(why.to_owned()));
            return Look { name, tag: tag.to_string(), digest, given: Some(is_made), why };
        }
        let why = match image {
            None => is_asked.then(|| "nothing is there".to_owned()),
            Some(image) if !known.insert(image.digest.clone()) => {
                Some("the same cache as one before".to_owned())
            }
            Some(image) if inputs.contains(image.digest.to_string().as_str()) => None,
            Some(image) => Some(left_out(tag, image)),
        };
        let given = is_asked.then_some(why.is_none());
        Look { name, tag: tag.to_string(), digest, given, why }
    };
    seen.map(look).collect()
}

fn left_out(tag: &Tag, image: &Image) -> String {
    if let Err(why) = importable(&image.manifest) {
        return plain(&why);
    }
    match Tag::parse(tag.as_str()) {
        Some((_, TagKind::Commit(_))) => {
            "it is of no build, of one before the line was rolled back, of several branches, not the newest of \
             its push, or its \
             push holds the head of a fork's pull request"
                .to_owned()
        }
        Some((_, TagKind::Fork(_))) => "says that the commit is the head of a fork's pull request".to_owned(),
        _ => "a build is given the nearest few only".to_owned(),
    }
}

/// What a question's tags are called: it knows branches by their slugs only.
fn name_of(tag: &Tag) -> String {
    match Tag::parse(tag.as_str()) {
        Some((_, TagKind::Line(line))) => line.to_string(),
        Some((_, TagKind::Given(_))) => "their join".to_owned(),
        _ => tag.to_string(),
    }
}
