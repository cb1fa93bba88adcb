//! The stack that Stoker was deployed as, and what a call that failed leaves unknown.

use aws_sdk_cloudformation::types::StackResourceSummary;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::display::DisplayErrorContext;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::problem::Problem;
use crate::retain::call_words;

/// A resource of the stack.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) status: String,
}

/// Why a fact is not known: the call that it takes, whether that is not allowed, and AWS's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) action: &'static str,
    pub(crate) is_denied: bool,
    pub(crate) why: String,
}

impl Missing {
    /// The same in a sentence.
    pub(crate) fn text(&self) -> String {
        let Self { action, is_denied, why } = self;
        if *is_denied {
            format!("you may not call {action}: {why}")
        } else {
            format!("{action} failed: {why}")
        }
    }

    /// The same where nothing goes on without the fact.
    pub(crate) fn problem(&self) -> Problem {
        let Self { action, is_denied, .. } = self;
        let next = if *is_denied {
            format!("allow {action} to whoever runs this; cli/README.md has the permissions")
        } else {
            "check `aws sts get-caller-identity`, AWS_REGION, and the stack's name (--stack); then try again"
                .to_owned()
        };
        Problem::failed(self.text(), next)
    }
}

/// What a failed call leaves unknown.
pub(crate) fn missing<E>(action: &'static str, error: SdkError<E, HttpResponse>) -> Missing
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let is_denied = match &error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or_default();
            code.starts_with("AccessDenied") || code.starts_with("Unauthorized")
        }
        _ => false,
    };
    Missing { action, is_denied, why: call_words(&DisplayErrorContext(error).to_string()) }
}

/// The resources of a stack.
pub(crate) async fn resources(
    cloudformation: &aws_sdk_cloudformation::Client,
    stack: &str,
) -> Result<Vec<Resource>, Missing> {
    let asked = cloudformation.list_stack_resources().stack_name(stack);
    let mut pages = asked.into_paginator().items().send();
    let mut resources = Vec::new();
    while let Some(item) = pages.next().await {
        let item = item.map_err(|error| missing("cloudformation:ListStackResources", error))?;
        resources.extend(resource(&item));
    }
    Ok(resources)
}

fn resource(resource: &StackResourceSummary) -> Option<Resource> {
    Some(Resource {
        name: resource.logical_resource_id()?.to_owned(),
        kind: resource.resource_type()?.to_owned(),
        id: resource.physical_resource_id().unwrap_or_default().to_owned(),
        status: resource.resource_status().map(|status| status.as_str().to_owned()).unwrap_or_default(),
    })
}
