//! CodeBuild.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_codebuild::operation::start_build::StartBuildError;
use aws_sdk_codebuild::types::{self, EnvironmentVariableType, StatusType};

use jiff::Timestamp;

use super::{Aws, call_error, timestamp};
use stoker_core::build_inputs::{GivenInputs, variable};
use stoker_core::error::{CallError, Failure};
use stoker_core::names::ProjectName;
use stoker_core::ports::{
    Build, BuildOrder, BuildStatus, ListProjects, MAX_BUILDS, Ordered, ReadBuilds, StartBuilds, StopBuilds,
};

/// How many ids one `BatchGetBuilds` may name.
const BUILDS_PER_CALL: usize = 100;

impl StartBuilds for Aws {
    async fn start(&self, order: &BuildOrder) -> Result<Ordered, CallError> {
        let operation = "codebuild:StartBuild";
        let mut environment = Vec::new();
        for (name, value) in &order.environment {
            let variable = types::EnvironmentVariable::builder()
                .name(name)
                .value(value)
                .r#type(EnvironmentVariableType::Plaintext)
                .build()
                .map_err(|error| CallError::new(operation, &order.project, Failure::Refused, error))?;
            environment.push(variable);
        }
        let answer = self
            .codebuild()
            .start_build()
            .project_name(order.project.as_str())
            .set_source_version(order.source_version.clone())
            .set_environment_variables_override(Some(environment))
            .idempotency_token(&order.token)
            .send()
            .await;
        match answer {
            Ok(answer) => {
                let id = answer.build_value().and_then(|build| build.id()).unwrap_or_default();
                Ok(Ordered::Started(id.to_owned()))
            }
            Err(error) => match error.as_service_error() {
                Some(StartBuildError::ResourceNotFoundException(_)) => Ok(Ordered::NoSuchProject),
                // A token that came before with other parameters; the code of this error is not documented.
                Some(StartBuildError::InvalidInputException(refusal))
                    if is_token_mismatch(refusal.message()) =>
                {
                    Ok(Ordered::AlreadyOrdered)
                }
                _ => Err(call_error(operation, &order.project, error)),
            },
        }
    }
}

fn is_token_mismatch(message: Option<&str>) -> bool {
    // Not every token is meant: CodeBuild also says so of missing credentials for the source.
    let message = message.unwrap_or_default().to_lowercase();
    message.contains("mismatch") || message.contains("idempoten")
}

impl StopBuilds for Aws {
    async fn stop(&self, id: &str) -> Result<(), CallError> {
        let answer = self.codebuild().stop_build().id(id).send().await;
        answer.map(drop).map_err(|error| call_error("codebuild:StopBuild", id, error))
    }
}

impl ReadBuilds for Aws {
    async fn recent(
        &self,
        project: &ProjectName,
        since: Option<Timestamp>,
    ) -> Result<Vec<Arc<Build>>, CallError> {
        let ids = self.codebuild().list_builds_for_project().project_name(project.as_str());
        // Without an order, which CodeBuild refuses beside the token of a further page: the newest come first anyway.
        let mut pages = ids.into_paginator().send();
        let mut builds: Vec<Arc<Build>> = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| call_error("codebuild:ListBuildsForProject", project, error));
            let page = match page {
                Ok(page) => page,
                Err(error) if error.failure == Failure::NotFound => break,
                Err(error) => return Err(error),
            };
            let mut of_page = self.get(page.ids()).await?;
            // CodeBuild does not promise to answer in the order of the question.
            of_page.sort_by_key(|build| std::cmp::Reverse(build.started_at));
            builds.extend(of_page.into_iter().map(Arc::new));
            let reaches = |since| builds.last().is_none_or(|oldest| oldest.started_at < since);
            if since.is_none_or(reaches) || builds.len() >= MAX_BUILDS {
                break;
            }
        }
        Ok(builds)
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Build>, CallError> {
        let mut builds = Vec::new();
        for ids in ids.chunks(BUILDS_PER_CALL) {
            let answer = self.codebuild().batch_get_builds().set_ids(Some(ids.to_vec())).send().await;
            let answer =
                answer.map_err(|error| call_error("codebuild:BatchGetBuilds", ids.join(" "), error))?;
            builds.extend(answer.builds().iter().filter_map(|found| build(found, self.starters.as_deref())));
        }
        Ok(builds)
    }
}

fn build(build: &types::Build, starters: Option<&[String]>) -> Option<Build> {
    let status = match build.build_status() {
        Some(StatusType::InProgress) => BuildStatus::InProgress,
        Some(StatusType::Succeeded) => BuildStatus::Succeeded,
        Some(StatusType::Stopped) => BuildStatus::Stopped,
        _ => BuildStatus::Failed,
    };
    let started_with =
        build.environment().map(types::ProjectEnvironment::environment_variables).unwrap_or_default();
    let started_with = started_with.iter().map(|variable| (variable.name(), variable.value()));
    let mut environment = ours(started_with);
    let says_nothing = !environment.contains_key(variable::LINE);
    let claims = says_nothing || !is_stokers(build, starters);
    // A build that somebody else started was given its caches by `resolve-cache` while it ran.
    if says_nothing {
        let exported = build.exported_environment_variables().iter();
        environment = ours(exported.filter_map(|variable| Some((variable.name()?, variable.value()?))));
    }
    Some(Build {
        id: build.id()?.to_owned(),
        project: ProjectName::new(build.project_name()?).ok()?,
        status,
        started_at: timestamp(build.start_time()),
        ended_at: build.end_time().map(|time| timestamp(Some(time))),
        source_version: build.source_version().map(str::to_owned),
        resolved_commit: build
            .resolved_source_version()
            .filter(|commit| !commit.is_empty())
            .map(str::to_owned),
        inputs: GivenInputs::read(&environment),
        claims,
    })
}

/// Whether Stoker itself started a build. Its variables say nothing of that: a build of a batch has those
/// that the buildspec of its branch gives it, and whoever starts a build sets what they like.
fn is_stokers(build: &types::Build, starters: Option<&[String]>) -> bool {
    if build.build_batch_arn().is_some() {
        return false;
    }
    let Some(starters) = starters else { return true };
    // The session of a role is `<role>/<session>`; a user has no slash, and anybody else's says who it is before it.
    let role = build.initiator().and_then(|initiator| Some(initiator.split_once('/')?.0));
    role.is_some_and(|role| starters.iter().any(|starter| starter == role))
}

fn ours<'a>(variables: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    let ours = variables.filter(|(name, _)| name.starts_with("STOKER_"));
    ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl ListProjects for Aws {
    async fn projects(&self) -> Result<Vec<ProjectName>, CallError> {
        let mut pages = self.codebuild().list_projects().into_paginator().items().send();
        let mut names = Vec::new();
        while let Some(name) = pages.next().await {
            let name = name.map_err(|error| call_error("codebuild:ListProjects", "the account", error))?;
            names.extend(ProjectName::new(name).ok());
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::names::Line;

    const ROLE: &str = "stoker-StartBuildRole-1X2Y";

    fn variable_of(name: &str, value: &str) -> types::EnvironmentVariable {
        types::EnvironmentVariable::builder().name(name).value(value).build().unwrap()
    }

    /// A build whose environment says that Stoker started it as main's.
    fn says_that_it_is_mains(initiator: &str) -> types::builders::BuildBuilder {
        let environment = types::ProjectEnvironment::builder()
            .r#type(types::EnvironmentType::LinuxContainer)
            .image("image")
            .compute_type(types::ComputeType::BuildGeneral1Small)
            .environment_variables(variable_of(variable::LINE, "main"))
            .environment_variables(variable_of(variable::EXPORT, "app.export.1"));
        types::Build::builder()
            .id("app:1")
            .project_name("app")
            .initiator(initiator)
            .environment(environment.build().unwrap())
    }

    fn read(build: &types::Build) -> Build {
        super::build(build, Some(&[ROLE.to_owned()])).unwrap()
    }

    #[test]
    fn a_build_that_a_role_of_stokers_started_is_its_own() {
        let build = read(&says_that_it_is_mains(&format!("{ROLE}/stoker-start-build")).build());
        assert!(!build.claims);
        assert_eq!(build.inputs.map(|inputs| inputs.line), Some(Line::Main));
    }

    #[test]
    fn attack_a_build_that_somebody_else_starts_with_stokers_variables() {
        for initiator in [
            "mallory",
            ROLE,
            "stoker-StartBuildRole/stoker-start-build",
            "mallorys-role/stoker-StartBuildRole-1X2Y",
            "GitHub-Hookshot/0a1b2c3",
            "codepipeline/stoker-StartBuildRole-1X2Y",
            "rule/stoker-start-build",
            "",
        ] {
            let build = read(&says_that_it_is_mains(initiator).build());
            assert!(build.claims, "{initiator}");
            // What it says that it reads is kept all the same, as long as it may read it.
            assert!(build.inputs.is_some(), "{initiator}");
        }
        assert!(build(&says_that_it_is_mains("anybody").build(), Some(&[])).unwrap().claims);
    }

    /// The buildspec of a branch gives the builds of a batch their variables.
    #[test]
    fn attack_a_build_of_a_batch_that_says_it_is_mains() {
        for initiator in ["GitHub-Hookshot/0a1b2c3", &format!("{ROLE}/stoker-start-build")] {
            let child = says_that_it_is_mains(initiator)
                .build_batch_arn("arn:aws:codebuild:us-east-1:123456789012:build-batch/app:2");
            assert!(read(&child.clone().build()).claims, "{initiator}");
            assert!(build(&child.build(), None).unwrap().claims, "{initiator}");
        }
    }

    #[test]
    fn a_build_that_was_given_nothing_is_known_by_what_it_exports() {
        let exported = |name: &str, value: &str| {
            types::ExportedEnvironmentVariable::builder().name(name).value(value).build()
        };
        let build = types::Build::builder()
            .id("app:1")
            .project_name("app")
            .initiator(format!("{ROLE}/stoker-start-build"))
            .exported_environment_variables(exported(variable::LINE, "branch/feature"));
        let build = read(&build.build());
        assert!(build.claims && build.inputs.is_some());
    }
}
