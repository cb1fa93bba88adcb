//! ECR: repositories with the tag that says for whom they were made.

use std::collections::BTreeMap;

use stoker_aws::call_error;
use stoker_core::error::{CallError, Failure};
use stoker_core::names::CacheRepository;

use super::{Setup, pairs};

impl Setup {
    /// The tags of a repository; `None` where there is none of that name.
    pub async fn repository_tags(
        &self,
        repository: &CacheRepository,
    ) -> Result<Option<BTreeMap<String, String>>, CallError> {
        let answer = self.ecr.describe_repositories().repository_names(repository.as_str()).send().await;
        let answer = match answer.map_err(|error| call_error("ecr:DescribeRepositories", repository, error)) {
            Ok(answer) => answer,
            Err(error) if error.failure == Failure::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(arn) = answer.repositories().first().and_then(|found| found.repository_arn()) else {
            return Ok(None);
        };
        let answer = self.ecr.list_tags_for_resource().resource_arn(arn).send().await;
        let answer = answer.map_err(|error| call_error("ecr:ListTagsForResource", repository, error))?;
        Ok(Some(pairs(answer.tags().iter().map(|tag| (Some(tag.key()), Some(tag.value()))))))
    }

    /// Whether a repository has a lifecycle policy.
    pub async fn has_lifecycle(&self, repository: &CacheRepository) -> Result<bool, CallError> {
        let answer = self.ecr.get_lifecycle_policy().repository_name(repository.as_str()).send().await;
        match answer.map_err(|error| call_error("ecr:GetLifecyclePolicy", repository, error)) {
            Ok(_) => Ok(true),
            Err(error) if error.failure == Failure::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a repository with all its images; none is as good.
    pub async fn delete_repository(&self, repository: &CacheRepository) -> Result<(), CallError> {
        let answer =
            self.ecr.delete_repository().repository_name(repository.as_str()).force(true).send().await;
        match answer.map(drop).map_err(|error| call_error("ecr:DeleteRepository", repository, error)) {
            Err(error) if error.failure == Failure::NotFound => Ok(()),
            answer => answer,
        }
    }
}
