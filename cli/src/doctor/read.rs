//! Asking AWS. Only calls that read: whoever runs this needs no more than cli/README.md lists.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use aws_sdk_codebuild::types::{self, SourceType, StatusType};
use aws_sdk_ecr::types::ImageScanningConfiguration;
use aws_sdk_iam::types::PolicyEvaluationDecisionType;
use aws_sdk_sqs::types::QueueAttributeName;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::Format;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use buildkit_cache::{Kind, classify_within};
use bytes::Bytes;
use jiff::Timestamp;
use stoker_core::error::{CallError, chain};
use stoker_core::names::{CacheRepository, Digest, ProjectName};
use stoker_core::policy::Project;
use stoker_core::ports::{Catalogue as _, CheckBlobs as _, ListedImage};
use stoker_core::retain::inventory;

use super::account::Settings;
use super::finding::Fact;
use super::project::{self, BuildSeen};
use super::repository::{self, LineImage};
use super::roles::{self, Decision};
use super::stack::Stack;
use crate::deployed::Missing;
use crate::deployed::{missing, resources};
use crate::problem::Problem;
use crate::retain::{Account, call_words, config};

/// Error codes by which AWS says that nobody it knows is asking.
const NOBODY: [&str; 7] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];
/// Manifests are read up to this size, which is more than ECR takes.
const LARGEST_MANIFEST: usize = 8 << 20;

/// The account that the SDK's ordinary chain finds, and the services that are asked.
pub(super) struct Reader {
    pub(super) account: Account,
    ecr: aws_sdk_ecr::Client,
    codebuild: aws_sdk_codebuild::Client,
    iam: aws_sdk_iam::Client,
    sqs: aws_sdk_sqs::Client,
    cloudformation: aws_sdk_cloudformation::Client,
}

impl Reader {
    pub(super) async fn find() -> Result<Self, Problem> {
        let config = config(None).await?;
        Ok(Self {
            ecr: aws_sdk_ecr::Client::new(&config),
            codebuild: aws_sdk_codebuild::Client::new(&config),
            iam: aws_sdk_iam::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            cloudformation: aws_sdk_cloudformation::Client::new(&config),
            account: Account::new(config),
        })
    }

    /// The account's settings. It is the first call: where nobody answers, or not to us, there is nothing to examine.
    pub(super) async fn settings(&self) -> Result<Settings, Problem> {
        let date = DateOfAnswer::default();
        let asked = self.ecr.get_account_setting().name("BLOB_MOUNTING");
        let answer = asked.customize().interceptor(date.clone()).send().await;
        let skew = date.0.lock().ok().and_then(|date| Some(Timestamp::now().as_second() - (*date)?));
        let mounting = match answer {
            Ok(answer) => Ok(answer.value().unwrap_or("unset").to_owned()),
            Err(error) => {
                let code = error.code().unwrap_or_default();
                let is_answer = matches!(error, SdkError::ServiceError(_));
                if !is_answer || NOBODY.contains(&code) {
                    let missing = missing("ecr:GetAccountSetting", error);
                    return Err(Problem::failed(
                        format!("AWS does not answer: {}", missing.why),
                        "check `aws sts get-caller-identity`, AWS_REGION, the network, and HTTPS_PROXY if you \
                         need a proxy",
                    ));
                }
                Err(missing("ecr:GetAccountSetting", error))
            }
        };
        Ok(Settings { mounting, skew })
    }

    /// The stack; `None` where there is none.
    pub(super) async fn stack(&self, name: &str) -> Fact<Option<Stack>> {
        let answer = self.cloudformation.describe_stacks().stack_name(name).send().await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.message().is_some_and(|message| message.contains("does not exist")) => {
                return Ok(None);
            }
            Err(error) => return Err(missing("cloudformation:DescribeStacks", error)),
        };
        let Some(stack) = answer.stacks().first() else { return Ok(None) };
        let parameters = stack.parameters().iter().filter_map(|parameter| {
            Some((parameter.parameter_key()?.to_owned(), parameter.parameter_value()?.to_owned()))
        });
        let resources = resources(&self.cloudformation, name).await;
        let mut queues = Vec::new();
        for queue in resources.iter().flatten().filter(|resource| resource.kind == "AWS::SQS::Queue") {
            queues.push((queue.name.clone(), self.messages(&queue.id).await));
        }
        queues.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Some(Stack {
            id: stack.stack_id().unwrap_or_default().to_owned(),
            status: stack.stack_status().map(|status| status.as_str().to_owned()).unwrap_or_default(),
            parameters: parameters.collect(),
            resources,
            queues,
        }))
    }

    async fn messages(&self, url: &str) -> Fact<u64> {
        let name = QueueAttributeName::ApproximateNumberOfMessages;
        let answer =
            self.sqs.get_queue_attributes().queue_url(url).attribute_names(name.clone()).send().await;
        let answer = answer.map_err(|error| missing("sqs:GetQueueAttributes", error))?;
        let number = answer.attributes().and_then(|attributes| attributes.get(&name)?.parse().ok());
        number.ok_or_else(|| unusable("sqs:GetQueueAttributes", "the answer has no number of messages"))
    }

    pub(super) async fn repository(&self, name: &CacheRepository, projects: &[Project]) -> repository::Seen {
        let described = self.described(name).await;
        let images = self.account.list(name).await.map_err(|error| missing_of(&error));
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
            lifecycle: self.lifecycle(name).await,
            access: self.access(name).await,
            images,
            lines,
            unavailable,
        }
    }

    async fn described(&self, name: &CacheRepository) -> Fact<Option<repository::Described>> {
        let answer = self.ecr.describe_repositories().repository_names(name.as_str()).send().await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.code() == Some("RepositoryNotFoundException") => return Ok(None),
            Err(error) => return Err(missing("ecr:DescribeRepositories", error)),
        };
        Ok(answer.repositories().first().map(|repository| {
            let encryption = repository.encryption_configuration();
            let excluded = repository.image_tag_mutability_exclusion_filters().iter();
            repository::Described {
                account: repository.registry_id().unwrap_or_default().to_owned(),
                mutability: repository
                    .image_tag_mutability()
                    .map(|kind| kind.as_str().to_owned())
                    .unwrap_or_default(),
                excluded: excluded.map(|filter| filter.filter().to_owned()).collect(),
                encryption: (
                    encryption.map_or("AES256", |by| by.encryption_type().as_str()).to_owned(),
                    encryption.and_then(|by| by.kms_key()).map(str::to_owned),
                ),
                scans: repository
                    .image_scanning_configuration()
                    .is_some_and(ImageScanningConfiguration::scan_on_push),
            }
        }))
    }

    async fn lifecycle(&self, name: &CacheRepository) -> Fact<Option<String>> {
        let answer = self.ecr.get_lifecycle_policy().repository_name(name.as_str()).send().await;
        match answer {
            Ok(answer) => Ok(answer.lifecycle_policy_text().map(str::to_owned)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(missing("ecr:GetLifecyclePolicy", error)),
        }
    }

    async fn access(&self, name: &CacheRepository) -> Fact<Option<String>> {
        let answer = self.ecr.get_repository_policy().repository_name(name.as_str()).send().await;
        match answer {
            Ok(answer) => Ok(answer.policy_text().map(str::to_owned)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(missing("ecr:GetRepositoryPolicy", error)),
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
        inventory::read(&self.account, name, &digests, learn).await.map_err(|error| missing_of(&error))?;
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
        self.account.unavailable(name, &blobs).await.map_err(|error| missing_of(&error))
    }

    /// What CodeBuild says of a project that builds for `of`, and IAM of its role.
    pub(super) async fn project(&self, of: &Project, name: &ProjectName, is_forks: bool) -> project::Seen {
        let described = self.described_project(name).await;
        let role = match described.as_ref().ok().and_then(Option::as_ref) {
            Some(described) => self.role(of, described, is_forks).await,
            None => None,
        };
        project::Seen { described, role, builds: self.builds(name).await }
    }

    async fn described_project(&self, name: &ProjectName) -> Fact<Option<project::Described>> {
        let answer = self.codebuild.batch_get_projects().names(name.as_str()).send().await;
        let answer = answer.map_err(|error| missing("codebuild:BatchGetProjects", error))?;
        Ok(answer.projects().first().map(described))
    }

    async fn role(
        &self,
        of: &Project,
        described: &project::Described,
        is_forks: bool,
    ) -> Option<roles::Seen> {
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
        let action = "iam:SimulatePrincipalPolicy";
        let asked = self.iam.simulate_principal_policy().policy_source_arn(role).resource_arns(resource);
        let asked = asked.set_action_names(Some(actions.iter().map(|action| (*action).to_owned()).collect()));
        let mut pages = asked.into_paginator().send();
        let mut decisions = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| missing(action, error))?;
            decisions.extend(page.evaluation_results().iter().map(|result| Decision {
                action: result.eval_action_name().to_owned(),
                on: on.to_owned(),
                is_allowed: *result.eval_decision() == PolicyEvaluationDecisionType::Allowed,
            }));
        }
        let is_answered = actions
            .iter()
            .all(|asked| decisions.iter().any(|decision| decision.action.eq_ignore_ascii_case(asked)));
        if is_answered {
            Ok(decisions)
        } else {
            Err(unusable(action, "the answer leaves out what was asked"))
        }
    }

    async fn builds(&self, name: &ProjectName) -> Fact<Vec<BuildSeen>> {
        let asked = self.codebuild.list_builds_for_project().project_name(name.as_str());
        let ids = match asked.send().await {
            Ok(answer) => answer.ids().to_vec(),
            Err(error) if error.code() == Some("ResourceNotFoundException") => Vec::new(),
            Err(error) => return Err(missing("codebuild:ListBuildsForProject", error)),
        };
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self.codebuild.batch_get_builds().set_ids(Some(ids)).send().await;
        let answer = answer.map_err(|error| missing("codebuild:BatchGetBuilds", error))?;
        let mut builds: Vec<BuildSeen> = answer.builds().iter().map(build).collect();
        builds.sort_by_key(|build| std::cmp::Reverse(build.started_at));
        Ok(builds)
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

fn minutes(number: Option<i32>, default: u64) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(default)
}

fn described(project: &types::Project) -> project::Described {
    let source = project.source();
    let environment = project.environment();
    let variables = environment.map(types::ProjectEnvironment::environment_variables).unwrap_or_default();
    let cache = project.cache();
    let webhook = project.webhook().map(|webhook| {
        let group = |group: &Vec<types::WebhookFilter>| {
            group
                .iter()
                .map(|filter| (filter.r#type().as_str().to_owned(), filter.pattern().to_owned()))
                .collect()
        };
        webhook.filter_groups().iter().map(group).collect()
    });
    project::Described {
        arn: project.arn().unwrap_or_default().to_owned(),
        source: source.map(|source| source.r#type().as_str().to_owned()).unwrap_or_default(),
        location: source.and_then(|source| source.location()).unwrap_or_default().to_owned(),
        version: project.source_version().filter(|version| !version.is_empty()).map(str::to_owned),
        secondary: project
            .secondary_sources()
            .iter()
            .filter_map(|of| of.source_identifier())
            .map(str::to_owned)
            .collect(),
        has_batch: project.build_batch_config().is_some(),
        has_vpc: project.vpc_config().is_some_and(|vpc| vpc.vpc_id().is_some_and(|id| !id.is_empty())),
        has_docker_server: environment.is_some_and(|of| of.docker_server().is_some()),
        buildspec: source.and_then(|source| source.buildspec()).map(str::to_owned),
        environment: environment.map(|of| of.r#type().as_str().to_owned()).unwrap_or_default(),
        image: environment.map(|of| of.image().to_owned()).unwrap_or_default(),
        is_privileged: environment.and_then(types::ProjectEnvironment::privileged_mode).unwrap_or_default(),
        variables: variables.iter().map(|variable| variable.name().to_owned()).collect(),
        role: project.service_role().unwrap_or_default().to_owned(),
        minutes: (
            minutes(project.timeout_in_minutes(), 60),
            minutes(project.queued_timeout_in_minutes(), 480),
        ),
        limit: project.concurrent_build_limit(),
        caches_layers: cache
            .is_some_and(|cache| cache.modes().contains(&types::CacheMode::LocalDockerLayerCache)),
        webhook,
        changed_at: time(project.last_modified()),
    }
}

fn build(build: &types::Build) -> BuildSeen {
    let variables =
        build.environment().map(types::ProjectEnvironment::environment_variables).unwrap_or_default();
    let is_git = |source: &types::ProjectSource| {
        !matches!(source.r#type(), SourceType::S3 | SourceType::NoSource | SourceType::Codepipeline)
    };
    BuildSeen {
        started_at: time(build.start_time()),
        initiator: build.initiator().unwrap_or_default().to_owned(),
        is_git: build.source().is_some_and(is_git),
        has_ended_well: build.build_status() == Some(&StatusType::Succeeded),
        resolved: build.resolved_source_version().filter(|commit| !commit.is_empty()).map(str::to_owned),
        variables: variables.iter().map(|variable| variable.name().to_owned()).collect(),
        is_given: variables
            .iter()
            .any(|variable| variable.name().starts_with("STOKER_CACHE_FROM") && !variable.value().is_empty()),
    }
}

fn time(time: Option<&DateTime>) -> Timestamp {
    time.and_then(|time| Timestamp::from_millisecond(time.to_millis().ok()?).ok()).unwrap_or_default()
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
    let arns = arns.chain(stack.map(|stack| stack.id.as_str())).filter_map(|arn| arn.split(':').nth(4));
    described.map(|of| of.account.as_str()).chain(arns).find(|number| !number.is_empty()).map(str::to_owned)
}

/// Whether an error says that there is no such policy, or no such repository, which is told elsewhere.
fn is_absent<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    error.code().is_some_and(|code| code.ends_with("NotFoundException"))
}

/// What a failed call of the ports leaves unknown.
pub(super) fn missing_of(error: &CallError) -> Missing {
    let cause = std::error::Error::source(error).map(chain).unwrap_or_default();
    Missing { action: error.operation, is_denied: cause.contains("AccessDenied"), why: call_words(&cause) }
}

fn unusable(action: &'static str, why: &str) -> Missing {
    Missing { action, is_denied: false, why: why.to_owned() }
}

/// Keeps the date of an answer, in seconds.
#[derive(Debug, Default, Clone)]
struct DateOfAnswer(Arc<Mutex<Option<i64>>>);

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for DateOfAnswer {
    fn name(&self) -> &'static str {
        "DateOfAnswer"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        if let Ok(mut kept) = self.0.lock() {
            *kept = date.map(|date| date.secs());
        }
        Ok(())
    }
}
