//! What the command line asks of an account and changes in it, beside what functions do. SDK types stay in here. Every
//! change of settings is one that can be made twice: it looks whether it is already made, or AWS does.

mod codebuild;
mod config;
mod ecr;
mod logs;
mod queues;
mod stacks;

use std::collections::BTreeMap;

use aws_sdk_iam::types::PolicyEvaluationDecisionType;
use stoker_aws::call_error;
use stoker_core::error::{CallError, Failure};

pub use aws_config::SdkConfig;
pub use config::config;
pub use ecr::{BlobMounting, RepositorySettings, registry_password};
pub use queues::{Queue, QueuedMessage};
pub use stacks::Resource;

/// IAM's answer to one question.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What would be done.
    pub action: String,
    /// To which repository.
    pub on: String,
    /// Whether it may be done.
    pub is_allowed: bool,
}

/// An account and region.
pub struct Setup {
    codebuild: aws_sdk_codebuild::Client,
    ecr: aws_sdk_ecr::Client,
    iam: aws_sdk_iam::Client,
    cloudformation: aws_sdk_cloudformation::Client,
    logs: aws_sdk_cloudwatchlogs::Client,
    sqs: aws_sdk_sqs::Client,
}

impl Setup {
    /// The account of a configuration.
    #[must_use]
    pub fn new(config: &SdkConfig) -> Self {
        Self {
            codebuild: aws_sdk_codebuild::Client::new(config),
            ecr: aws_sdk_ecr::Client::new(config),
            iam: aws_sdk_iam::Client::new(config),
            cloudformation: aws_sdk_cloudformation::Client::new(config),
            logs: aws_sdk_cloudwatchlogs::Client::new(config),
            sqs: aws_sdk_sqs::Client::new(config),
        }
    }

    /// The ARNs of the managed policies that a role has; `None` where there is no such role.
    pub async fn attached(&self, role: &str) -> Result<Option<Vec<String>>, CallError> {
        let asked = self.iam.list_attached_role_policies().role_name(role);
        let mut pages = asked.into_paginator().items().send();
        let mut arns = Vec::new();
        while let Some(item) = pages.next().await {
            match item.map_err(|error| call_error("iam:ListAttachedRolePolicies", role, error)) {
                Ok(item) => arns.extend(item.policy_arn().map(str::to_owned)),
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(arns))
    }

    /// What IAM would decide if a role did these at a resource, which is called `on`.
    pub async fn decisions(
        &self,
        role: &str,
        actions: &[&str],
        resource: &str,
        on: &str,
    ) -> Result<Vec<Decision>, CallError> {
        let operation = "iam:SimulatePrincipalPolicy";
        let asked = self.iam.simulate_principal_policy().policy_source_arn(role).resource_arns(resource);
        let asked = asked.set_action_names(Some(actions.iter().map(|action| (*action).to_owned()).collect()));
        let mut pages = asked.into_paginator().send();
        let mut decisions = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| call_error(operation, role, error))?;
            decisions.extend(page.evaluation_results().iter().map(|result| Decision {
                action: result.eval_action_name().to_owned(),
                on: on.to_owned(),
                is_allowed: *result.eval_decision() == PolicyEvaluationDecisionType::Allowed,
            }));
        }
        let is_answered = |asked: &&str| decisions.iter().any(|of| of.action.eq_ignore_ascii_case(asked));
        if !actions.iter().all(is_answered) {
            let why = "the answer leaves out what was asked".to_owned();
            return Err(CallError::new(operation, role, Failure::Unavailable, why));
        }
        Ok(decisions)
    }

    /// Attaches a managed policy to a role. AWS takes it for done where it is.
    pub async fn attach(&self, role: &str, policy: &str) -> Result<(), CallError> {
        let answer = self.iam.attach_role_policy().role_name(role).policy_arn(policy).send().await;
        answer.map(drop).map_err(|error| call_error("iam:AttachRolePolicy", role, error))
    }

    /// Detaches a managed policy from a role, which may have neither.
    pub async fn detach(&self, role: &str, policy: &str) -> Result<(), CallError> {
        let answer = self.iam.detach_role_policy().role_name(role).policy_arn(policy).send().await;
        match answer.map(drop).map_err(|error| call_error("iam:DetachRolePolicy", role, error)) {
            Err(error) if is_absent(&error) => Ok(()),
            answer => answer,
        }
    }
}

/// Whether there is nothing of that name. IAM has a code of its own for that.
fn is_absent(error: &CallError) -> bool {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    error.failure == Failure::NotFound || cause.contains("NoSuchEntity")
}

fn pairs<'a>(all: impl Iterator<Item = (Option<&'a str>, Option<&'a str>)>) -> BTreeMap<String, String> {
    all.filter_map(|(key, value)| Some((key?.to_owned(), value?.to_owned()))).collect()
}
