//! What setting up an account asks and changes, beside what functions do. SDK types stay in here. Every change is one
//! that can be made twice: it looks whether it is already made, or AWS does.

mod codebuild;
mod ecr;

use std::collections::BTreeMap;

use aws_config::SdkConfig;
use aws_sdk_cloudformation::error::ProvideErrorMetadata as _;
use stoker_aws::call_error;
use stoker_core::error::{CallError, Failure};
use stoker_core::onboard::Stack;

/// An account and region.
pub struct Setup {
    codebuild: aws_sdk_codebuild::Client,
    ecr: aws_sdk_ecr::Client,
    iam: aws_sdk_iam::Client,
    cloudformation: aws_sdk_cloudformation::Client,
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
        }
    }

    /// A stack; `None` where there is none of that name.
    pub async fn stack(&self, name: &str) -> Result<Option<Stack>, CallError> {
        let answer = match self.cloudformation.describe_stacks().stack_name(name).send().await {
            Ok(answer) => answer,
            Err(error) if error.message().is_some_and(|message| message.contains("does not exist")) => {
                return Ok(None);
            }
            Err(error) => return Err(call_error("cloudformation:DescribeStacks", name, error)),
        };
        Ok(answer.stacks().first().map(|stack| Stack {
            outputs: pairs(stack.outputs().iter().map(|output| (output.output_key(), output.output_value()))),
            parameters: pairs(stack.parameters().iter().map(|of| (of.parameter_key(), of.parameter_value()))),
        }))
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
