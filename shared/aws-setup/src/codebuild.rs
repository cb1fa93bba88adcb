//! CodeBuild: projects as they are, their builds, their buildspecs and their webhooks.

use aws_sdk_codebuild::types::{
    self, ProjectEnvironment, PullRequestBuildApproverRole, PullRequestBuildCommentApproval,
    PullRequestBuildPolicy, SourceType, StatusType, WebhookBuildType, WebhookFilter, WebhookFilterType,
};
use aws_smithy_types::DateTime;
use jiff::Timestamp;
use stoker_aws::call_error;
use stoker_core::error::{CallError, Failure};
use stoker_core::names::ProjectName;
use stoker_core::onboard::{Found, LogPlace, PastBuild, Webhook};

use super::Setup;

/// How many names or ids one call takes.
const MOST: usize = 100;

impl Setup {
    /// The projects of these names that there are.
    pub async fn projects(&self, names: &[ProjectName]) -> Result<Vec<Found>, CallError> {
        let mut found = Vec::new();
        for names in names.chunks(MOST) {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            found.extend(self.described(names).await?.iter().filter_map(project));
        }
        Ok(found)
    }

    async fn described(&self, names: Vec<String>) -> Result<Vec<types::Project>, CallError> {
        let subject = names.join(" ");
        let answer = self.codebuild.batch_get_projects().set_names(Some(names)).send().await;
        let answer = answer.map_err(|error| call_error("codebuild:BatchGetProjects", subject, error))?;
        Ok(answer.projects.unwrap_or_default())
    }

    /// The builds of a project since a time, the newest first, and no more than so many.
    pub async fn builds(
        &self,
        project: &ProjectName,
        since: Timestamp,
        most: usize,
    ) -> Result<Vec<PastBuild>, CallError> {
        let asked = self.codebuild.list_builds_for_project().project_name(project.as_str());
        let mut pages = asked.into_paginator().send();
        let mut builds: Vec<PastBuild> = Vec::new();
        while let Some(page) = pages.next().await {
            let page =
                match page.map_err(|error| call_error("codebuild:ListBuildsForProject", project, error)) {
                    Ok(page) => page,
                    Err(error) if error.failure == Failure::NotFound => break,
                    Err(error) => return Err(error),
                };
            if page.ids().is_empty() {
                break;
            }
            let mut of_page = self.builds_of(page.ids.unwrap_or_default()).await?;
            of_page.sort_by_key(|build| std::cmp::Reverse(build.started_at));
            let reaches = of_page.last().is_some_and(|oldest| oldest.started_at < since);
            builds.extend(of_page.into_iter().filter(|build| build.started_at >= since));
            if reaches || builds.len() >= most {
                break;
            }
        }
        builds.truncate(most);
        Ok(builds)
    }

    /// A project's newest builds, the newest first: as many as one call takes.
    pub async fn newest_builds(&self, project: &ProjectName) -> Result<Vec<PastBuild>, CallError> {
        let listed = self.codebuild.list_builds_for_project().project_name(project.as_str()).send().await;
        let ids = match listed.map_err(|error| call_error("codebuild:ListBuildsForProject", project, error)) {
            Ok(answer) => answer.ids.unwrap_or_default(),
            Err(error) if error.failure == Failure::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut builds = self.builds_of(ids).await?;
        builds.sort_by_key(|build| std::cmp::Reverse(build.started_at));
        Ok(builds)
    }

    /// The builds of these ids that there are.
    pub async fn builds_of(&self, ids: Vec<String>) -> Result<Vec<PastBuild>, CallError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let subject = ids.join(" ");
        let answer = self.codebuild.batch_get_builds().set_ids(Some(ids)).send().await;
        let answer = answer.map_err(|error| call_error("codebuild:BatchGetBuilds", subject, error))?;
        Ok(answer.builds().iter().map(build).collect())
    }

    /// Gives a project another inline buildspec, if it has the one that is expected, or already has the new one.
    /// Whether it has the new one now.
    pub async fn set_buildspec(
        &self,
        project: &ProjectName,
        expected: Option<&str>,
        new: Option<&str>,
    ) -> Result<bool, CallError> {
        let described = self.described(vec![project.to_string()]).await?;
        let Some(mut source) = described.into_iter().next().and_then(|project| project.source) else {
            return Ok(false);
        };
        if source.buildspec() == new {
            return Ok(true);
        }
        if source.buildspec() != expected {
            return Ok(false);
        }
        source.buildspec = new.map(str::to_owned);
        let answer = self.codebuild.update_project().name(project.as_str()).source(source).send().await;
        answer.map_err(|error| call_error("codebuild:UpdateProject", project, error))?;
        Ok(true)
    }

    /// Takes CodeBuild's own webhook of a project away; none is as good.
    pub async fn delete_webhook(&self, project: &ProjectName) -> Result<(), CallError> {
        let answer = self.codebuild.delete_webhook().project_name(project.as_str()).send().await;
        match answer.map(drop).map_err(|error| call_error("codebuild:DeleteWebhook", project, error)) {
            Err(error) if error.failure == Failure::NotFound => Ok(()),
            answer => answer,
        }
    }

    /// Makes CodeBuild's own webhook of a project again. Its address at CodeBuild is another one.
    pub async fn create_webhook(&self, project: &ProjectName, webhook: &Webhook) -> Result<(), CallError> {
        let operation = "codebuild:CreateWebhook";
        let refused = |error| CallError::new(operation, project, Failure::Refused, error);
        let mut groups = Vec::new();
        for group in &webhook.groups {
            let filter = |(kind, pattern, excludes): &(String, String, bool)| {
                let built =
                    WebhookFilter::builder().r#type(WebhookFilterType::from(kind.as_str())).pattern(pattern);
                built.set_exclude_matched_pattern(excludes.then_some(true)).build().map_err(refused)
            };
            groups.push(group.iter().map(filter).collect::<Result<Vec<_>, _>>()?);
        }
        let approval = match &webhook.approval {
            None => None,
            Some((approval, roles)) => {
                let roles =
                    roles.iter().map(|role| PullRequestBuildApproverRole::from(role.as_str())).collect();
                let built = PullRequestBuildPolicy::builder()
                    .requires_comment_approval(PullRequestBuildCommentApproval::from(approval.as_str()))
                    .set_approver_roles(Some(roles));
                Some(built.build().map_err(refused)?)
            }
        };
        let asked = self
            .codebuild
            .create_webhook()
            .project_name(project.as_str())
            .set_filter_groups((!groups.is_empty()).then_some(groups))
            .set_branch_filter(webhook.branch_filter.clone())
            .set_build_type(webhook.build_type.as_deref().map(WebhookBuildType::from))
            .set_pull_request_build_policy(approval);
        let answer = asked.send().await;
        answer.map(drop).map_err(|error| call_error(operation, project, error))
    }
}

fn project(project: &types::Project) -> Option<Found> {
    let source = project.source();
    let environment = project.environment();
    let variables = environment.map(ProjectEnvironment::environment_variables).unwrap_or_default();
    Some(Found {
        name: ProjectName::new(project.name()?).ok()?,
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
        buildspec: source.and_then(|source| source.buildspec()).map(str::to_owned),
        environment: environment.map(|of| of.r#type().as_str().to_owned()).unwrap_or_default(),
        image: environment.map(|of| of.image().to_owned()).unwrap_or_default(),
        is_privileged: environment.and_then(ProjectEnvironment::privileged_mode).unwrap_or_default(),
        has_docker_server: environment.is_some_and(|of| of.docker_server().is_some()),
        has_batch: project.build_batch_config().is_some(),
        has_vpc: project.vpc_config().is_some_and(|vpc| vpc.vpc_id().is_some_and(|id| !id.is_empty())),
        variables: variables.iter().map(|variable| variable.name().to_owned()).collect(),
        role: project.service_role().unwrap_or_default().to_owned(),
        minutes: (
            minutes(project.timeout_in_minutes(), 60),
            minutes(project.queued_timeout_in_minutes(), 480),
        ),
        limit: project.concurrent_build_limit(),
        caches_layers: project
            .cache()
            .is_some_and(|cache| cache.modes().contains(&types::CacheMode::LocalDockerLayerCache)),
        webhook: project.webhook().map(webhook),
        changed_at: time(project.last_modified()),
    })
}

fn webhook(webhook: &types::Webhook) -> Webhook {
    let filter = |filter: &WebhookFilter| {
        let excludes = filter.exclude_matched_pattern().unwrap_or_default();
        (filter.r#type().as_str().to_owned(), filter.pattern().to_owned(), excludes)
    };
    let approval = webhook.pull_request_build_policy().map(|policy| {
        let roles = policy.approver_roles().iter().map(|role| role.as_str().to_owned());
        (policy.requires_comment_approval().as_str().to_owned(), roles.collect())
    });
    Webhook {
        groups: webhook.filter_groups().iter().map(|group| group.iter().map(filter).collect()).collect(),
        branch_filter: webhook.branch_filter().filter(|filter| !filter.is_empty()).map(str::to_owned),
        build_type: webhook.build_type().map(|of| of.as_str().to_owned()),
        approval,
        is_special: webhook.manual_creation().unwrap_or_default() || webhook.scope_configuration().is_some(),
    }
}

fn build(build: &types::Build) -> PastBuild {
    let started_at = time(build.start_time());
    let seconds = |end: Option<&DateTime>| {
        end.and_then(|end| u64::try_from(time(Some(end)).duration_since(started_at).as_secs()).ok())
    };
    let phases = build.phases().iter().filter_map(|phase| {
        let seconds = u64::try_from(phase.duration_in_seconds()?).ok()?;
        Some((phase.phase_type()?.as_str().to_owned(), seconds))
    });
    let failed = build.phases().iter().find(|phase| {
        !matches!(phase.phase_status(), None | Some(StatusType::Succeeded | StatusType::InProgress))
    });
    let failure = failed.map(|phase| {
        let name = phase.phase_type().map(types::BuildPhaseType::as_str).unwrap_or_default();
        let why: Vec<&str> = phase.contexts().iter().filter_map(|context| context.message()).collect();
        format!("{name}: {}", why.join(" ")).trim().to_owned()
    });
    let variables = build.environment().map(ProjectEnvironment::environment_variables).unwrap_or_default();
    let variables =
        variables.iter().map(|variable| (variable.name().to_owned(), variable.value().to_owned()));
    let is_git = |source: &types::ProjectSource| {
        !matches!(source.r#type(), SourceType::S3 | SourceType::NoSource | SourceType::Codepipeline)
    };
    let log = build.logs().and_then(|logs| Some((logs.group_name()?, logs.stream_name()?)));
    PastBuild {
        id: build.id().unwrap_or_default().to_owned(),
        started_at,
        seconds: seconds(build.end_time()),
        has_succeeded: build.build_status() == Some(&StatusType::Succeeded),
        initiator: build.initiator().unwrap_or_default().to_owned(),
        phases: phases.collect(),
        variables: variables.collect(),
        resolved: build.resolved_source_version().filter(|commit| !commit.is_empty()).map(str::to_owned),
        is_git: build.source().is_some_and(is_git),
        log: log.map(|(group, stream)| LogPlace { group: group.to_owned(), stream: stream.to_owned() }),
        failure,
    }
}

fn time(time: Option<&DateTime>) -> Timestamp {
    let known = time.and_then(|time| Timestamp::from_millisecond(time.to_millis().ok()?).ok());
    known.unwrap_or_default()
}

fn minutes(number: Option<i32>, default: u64) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(default)
}
