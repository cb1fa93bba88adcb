//! The stack that Stoker was deployed as, as `CloudFormation` describes it.

use aws_sdk_cloudformation::error::ProvideErrorMetadata as _;
use aws_sdk_cloudformation::types::StackResourceSummary;
use stoker_aws::call_error;
use stoker_core::error::CallError;
use stoker_core::onboard::Stack;

use super::{Setup, pairs};

/// A resource of a stack.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its logical name.
    pub name: String,
    /// Its type, such as `AWS::SQS::Queue`.
    pub kind: String,
    /// What it is in AWS: a name, an ARN or an address.
    pub id: String,
    /// Its status.
    pub status: String,
}

impl Setup {
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
            id: stack.stack_id().unwrap_or_default().to_owned(),
            status: stack.stack_status().map(|status| status.as_str().to_owned()).unwrap_or_default(),
            outputs: pairs(stack.outputs().iter().map(|output| (output.output_key(), output.output_value()))),
            parameters: pairs(stack.parameters().iter().map(|of| (of.parameter_key(), of.parameter_value()))),
        }))
    }

    /// The resources of a stack.
    pub async fn resources(&self, stack: &str) -> Result<Vec<Resource>, CallError> {
        let asked = self.cloudformation.list_stack_resources().stack_name(stack);
        let mut pages = asked.into_paginator().items().send();
        let mut resources = Vec::new();
        while let Some(item) = pages.next().await {
            let item = item.map_err(|error| call_error("cloudformation:ListStackResources", stack, error))?;
            resources.extend(resource(&item));
        }
        Ok(resources)
    }
}

fn resource(resource: &StackResourceSummary) -> Option<Resource> {
    Some(Resource {
        name: resource.logical_resource_id()?.to_owned(),
        kind: resource.resource_type()?.to_owned(),
        id: resource.physical_resource_id().unwrap_or_default().to_owned(),
        status: resource.resource_status().map(|status| status.as_str().to_owned()).unwrap_or_default(),
    })
}
