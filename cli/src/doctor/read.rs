//! Asking AWS. Only calls that read: whoever runs this needs no more than cli/README.md lists.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use buildkit_cache::{Kind, classify_within};
use bytes::Bytes;
use jiff::Timestamp;
use stoker_aws_setup::{Decision, Setup};
use stoker_core::error::CallError;
use stoker_core::names::{CacheRepository, Digest, ProjectName};
use stoker_core::onboard::Found;
use stoker_core::policy::Project;
use stoker_core::ports::{Catalogue as _, CheckBlobs as _, ListedImage};
use stoker_core::retain::inventory;

use super::account::Settings;
use super::finding::Fact;
use super::project;
use super::repository::{self, LineImage};
use super::roles;
use super::stack::Stack;
use crate::deployed::Missing;
use crate::problem::Problem;
use crate::retain::{Account, config};

/// Manifests are read up to this size, which is more than ECR takes.
const LARGEST_MANIFEST: usize = 8 << 20;

/// The account that the SDK's ordinary chain finds, and the services that are asked.
pub(super) struct Reader {
    pub(super) account: Account,
    setup: Setup,
}

impl Reader {
    pub(super) async fn find() -> Result<Self, Problem> {
        let config = config(None).await?;
        Ok(Self { setup: Setup::new(&config), account: Account::new(config) })
    }

    /// The account's settings. It is the first call: where nobody answers, or not to us, there is nothing to examine.
    pub(super) async fn settings(&self) -> Result<Settings, Problem> {
        let answer = self.setup.blob_mounting().await.map_err(|error| {
            Problem::failed(
                format!("AWS does not answer: {}", Missing::from(&error).why),
                "check `aws sts get-caller-identity`, AWS_REGION, the network, and HTTPS_PROXY if you need a proxy",
            )
        })?;
        let skew = answer.answered_at.map(|date| Timestamp::now().as_second() - date);
        Ok(Settings { mounting: answer.value.map_err(|error| missing(&error)), skew })
    }

    /// The stack; `None` where there is none.
    pub(super) async fn stack(&self, name: &str) -> Fact<Option<Stack>> {
        let Some(described) = self.setup.stack(name).await.map_err(|error| missing(&error))? else {
            return Ok(None);
        };
        let resources = self.setup.resources(name).await.map_err(|error| missing(&error));
        let mut queues = Vec::new();
        for queue in resources.iter().flatten().filter(|resource| resource.kind == "AWS::SQS::Queue") {
            let messages = self.setup.messages(&queue.id).await.map_err(|error| missing(&error));
            queues.push((queue.name.clone(), messages));
        }
        queues.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Some(Stack { described, resources, queues }))
    }

    pub(super) async fn repository(&self, name: &CacheRepository, projects: &[Project]) -> repository::Seen {
        let described = self.setup.repository_settings(name).await.map_err(|error| missing(&error));
        let images = self.account.list(name).await.map_err(|error| missing(&error));
        self.account.end_of_reading();
        let lines = match &images {
            Ok(images) => self.lines(name, images, projects).await,
            Err(missing) => Err(missing.clone()),
        };
        let unavailable = match &lines {
            Ok(lines) => self.unavailable(name, lines).await,
            Err(missing) => Err(missing.clone()),
        };
        repository::Seen {
            described,
            lifecycle: self.setup.lifecycle(name).await.map_err(|error| missing(&error)),
            access: self.setup.repository_policy(name).await.map_err(|error| missing(&error)),
            images,
            lines,
            unavailable,
        }
    }

    /// The images of lines, with their manifests.
    async fn lines(
        &self,
        name: &CacheRepository,
        images: &[ListedImage],
        projects: &[Project],
    ) -> Fact<Vec<LineImage>> {
        let of_lines = images.iter().filter(|image| !image.is_archived).flat_map(|image| {
            let tags = image.tags.iter().filter(|tag| repository::is_line(tag, projects));
            tags.map(|tag| (tag, &image.digest))
        });
        let of_lines: Vec<(&String, &Digest)> = of_lines.collect();
        let digests: BTreeSet<&Digest> = of_lines.iter().map(|(_, digest)| *digest).collect();
        let digests: Vec<Digest> = digests.into_iter().cloned().collect();
        let mut manifests: HashMap<Digest, (usize, Kind)> = HashMap::new();
        let learn = |digest, bytes: Bytes| {
            manifests.insert(digest, (bytes.len(), classify_within(&bytes, LARGEST_MANIFEST)));
        };
        inventory::read(&self.account, name, &digests, learn).await.map_err(|error| missing(&error))?;
        let line = |(tag, digest): (&String, &Digest)| LineImage {
            tag: tag.clone(),
            manifest: manifests.get(digest).cloned(),
        };
        Ok(of_lines.into_iter().map(line).collect())
    }

    async fn unavailable(&self, name: &CacheRepository, lines: &[LineImage]) -> Fact<Vec<Digest>> {
        let caches = lines.iter().filter_map(|line| match &line.manifest {
            Some((_, Kind::Cache(manifest))) => Some(manifest),
            _ => None,
        });
        let blobs: BTreeSet<Digest> = caches
            .flat_map(|cache| std::iter::once(&cache.config).chain(cache.layers.iter().map(Arc::as_ref)))
            .map(|blob| blob.digest.clone())
            .collect();
        let blobs: Vec<Digest> = blobs.into_iter().collect();
        self.account.unavailable(name, &blobs).await.map_err(|error| missing(&error))
    }

    /// What CodeBuild says of a project that builds for `of`, and IAM of its role.
    pub(super) async fn project(&self, of: &Project, name: &ProjectName, is_forks: bool) -> project::Seen {
        let described = self.setup.projects(std::slice::from_ref(name)).await;
        let described = described.map(|found| found.into_iter().next()).map_err(|error| missing(&error));
        let role = match described.as_ref().ok().and_then(Option::as_ref) {
            Some(described) => self.role(of, described, is_forks).await,
            None => None,
        };
        let builds = self.setup.newest_builds(name).await.map_err(|error| missing(&error));
        project::Seen { described, role, builds }
    }

    async fn role(&self, of: &Project, described: &Found, is_forks: bool) -> Option<roles::Seen> {
        let role = described.role.as_str();
        let name = role.rsplit('/').next().filter(|name| !name.is_empty())?;
        let mut reads = self.may(role, &["ecr:GetAuthorizationToken"], "*", "any repository").await;
        let lines = arn_of(&described.arn, &of.cache_repository);
        let exports = arn_of(&described.arn, of.exports());
        let (at_lines, at_exports) = (of.cache_repository.as_str(), of.exports().as_str());
        extend(&mut reads, self.may(role, &roles::READ, &lines, at_lines).await);
        let writes =
            if is_forks { Ok(Vec::new()) } else { self.may(role, &roles::WRITE, &exports, at_exports).await };
        let is_isolated = of.builds_repository.is_some();
        let mut border = Ok(Vec::new());
        if is_forks || is_isolated {
            extend(&mut border, self.may(role, &roles::TRUSTED, &lines, at_lines).await);
        }
        if is_isolated {
            extend(&mut border, self.may(role, &roles::SECRET, &exports, at_exports).await);
            if is_forks {
                extend(&mut border, self.may(role, &["ecr:PutImage"], &exports, at_exports).await);
            }
        }
        Some(roles::Seen { name: name.to_owned(), reads, writes, border })
    }

    /// What IAM would decide.
    async fn may(&self, role: &str, actions: &[&str], resource: &str, on: &str) -> Fact<Vec<Decision>> {
        self.setup.decisions(role, actions, resource, on).await.map_err(|error| missing(&error))
    }
}

fn extend(all: &mut Fact<Vec<Decision>>, more: Fact<Vec<Decision>>) {
    match (all.as_mut(), more) {
        (Ok(all), Ok(more)) => all.extend(more),
        (Ok(_), Err(missing)) => *all = Err(missing),
        (Err(_), _) => {}
    }
}

/// A repository's ARN, from that of a project of the same account and region.
fn arn_of(project: &str, repository: &CacheRepository) -> String {
    let parts: Vec<&str> = project.split(':').collect();
    let part = |n: usize| parts.get(n).copied().unwrap_or("*");
    format!("arn:{}:ecr:{}:{}:repository/{repository}", part(1), part(3), part(4))
}

/// The account's number, from whatever names it.
pub(super) fn number(
    repositories: &BTreeMap<CacheRepository, repository::Facts>,
    projects: &[project::Facts<'_>],
    stack: Option<&Stack>,
) -> Option<String> {
    let described = repositories.values().filter_map(|facts| facts.seen.described.as_ref().ok()?.as_ref());
    let arns = projects
        .iter()
        .filter_map(|facts| facts.seen.described.as_ref().ok()?.as_ref())
        .map(|of| of.arn.as_str());
    let arns =
        arns.chain(stack.map(|stack| stack.described.id.as_str())).filter_map(|arn| arn.split(':').nth(4));
    described.map(|of| of.account.as_str()).chain(arns).find(|number| !number.is_empty()).map(str::to_owned)
}

/// What a failed call leaves unknown.
fn missing(error: &CallError) -> Missing {
    error.into()
}
