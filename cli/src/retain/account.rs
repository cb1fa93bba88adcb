//! The AWS account that the SDK's ordinary chain finds: ECR and CodeBuild, with a bar for what takes a while
//! and a list of what was deleted.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use stoker_aws::{Aws, AwsSettings};
use stoker_aws_setup::SdkConfig;
use stoker_core::error::{CallError, Failure, chain};
use stoker_core::names::{CacheRepository, Digest, ProjectName};
use stoker_core::ports::{
    Build, Catalogue, CheckBlobs, ListProjects, ListedImage, ReadBuilds, ReadManifests,
};

use crate::problem::Problem;
use crate::progress::{Progress, Unit};
use crate::text::plain;

/// Region, credentials and everything else as the SDK's ordinary chain finds them: environment, profile,
/// single sign-on and so on.
pub(crate) async fn config(region: Option<&str>) -> Result<SdkConfig, Problem> {
    let config = stoker_aws_setup::config(region).await;
    if config.region().is_none() {
        return Err(Problem::usage(
            "no AWS region is set",
            "set AWS_REGION, or AWS_PROFILE to a profile that has one",
        ));
    }
    Ok(config)
}

/// An account, and what this run has done in it.
pub(crate) struct Account {
    aws: Aws,
    reading: RefCell<Option<Progress>>,
    deleted: RefCell<Vec<Digest>>,
}

impl Account {
    /// Finds region and credentials. A registry's own region goes before.
    pub(crate) async fn find(region: Option<&str>) -> Result<Self, Problem> {
        Ok(Self::new(config(region).await?))
    }

    /// The account of a configuration.
    pub(crate) fn new(config: SdkConfig) -> Self {
        let aws = Aws::from_config(config, AwsSettings::default());
        Self { aws, reading: RefCell::default(), deleted: RefCell::default() }
    }

    /// Its number, once images of it have been listed.
    pub(crate) fn number(&self) -> Option<&str> {
        self.aws.account()
    }

    /// The region that is asked.
    pub(crate) fn region(&self) -> Option<&str> {
        self.aws.region()
    }

    /// Takes the bar away.
    pub(crate) fn end_of_reading(&self) {
        self.reading.replace(None);
    }

    /// What was deleted since this was last asked.
    pub(super) fn take_deleted(&self) -> Vec<Digest> {
        self.deleted.take()
    }
}

impl Catalogue for Account {
    async fn list(&self, repository: &CacheRepository) -> Result<Vec<ListedImage>, CallError> {
        let images = self.aws.list(repository).await?;
        let total = images.iter().filter(|image| !image.is_archived).count() as u64;
        self.reading.replace(Some(Progress::new("reading manifests", Unit::Things, total)));
        Ok(images)
    }

    async fn describe(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<ListedImage>, CallError> {
        self.aws.describe(repository, digests).await
    }

    async fn delete(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<(Digest, String)>, CallError> {
        let refused = self.aws.delete(repository, digests).await?;
        let is_gone = |digest: &&Digest| !refused.iter().any(|(refused, _)| refused == *digest);
        self.deleted.borrow_mut().extend(digests.iter().filter(is_gone).cloned());
        Ok(refused)
    }
}

impl ReadManifests for Account {
    async fn manifests(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
        longest: usize,
    ) -> Result<Option<Vec<(Digest, Bytes)>>, CallError> {
        let manifests = self.aws.manifests(repository, digests, longest).await?;
        if let (Some(_), Some(reading)) = (&manifests, &*self.reading.borrow()) {
            reading.add(digests.len() as u64);
        }
        Ok(manifests)
    }
}

impl CheckBlobs for Account {
    async fn unavailable(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, CallError> {
        self.aws.unavailable(repository, digests).await
    }
}

impl ReadBuilds for Account {
    async fn recent(
        &self,
        project: &ProjectName,
        since: Option<Timestamp>,
    ) -> Result<Vec<Arc<Build>>, CallError> {
        self.aws.recent(project, since).await
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Build>, CallError> {
        self.aws.get(ids).await
    }
}

impl ListProjects for Account {
    async fn projects(&self) -> Result<Vec<ProjectName>, CallError> {
        self.aws.projects().await
    }
}

/// A failed call, in a sentence.
pub(crate) fn problem(error: &CallError) -> Problem {
    let cause = std::error::Error::source(error).map(chain).unwrap_or_default();
    let cause = words(&cause);
    let next = match error.failure {
        Failure::Throttled => "try again in some minutes",
        Failure::Unavailable => {
            "check `aws sts get-caller-identity`, AWS_REGION, the network, and HTTPS_PROXY if you need a proxy; \
             then try again"
        }
        Failure::NotFound => {
            "check the policy's names, AWS_REGION and AWS_PROFILE: is this the account with the caches?"
        }
        Failure::Refused => {
            "check `aws sts get-caller-identity`, and that this identity may do that; cli/README.md has the permissions"
        }
    };
    Problem::failed(format!("{error}: {cause}"), next)
}

/// The SDK's error without the page of structure that it has behind its sentence.
pub(crate) fn words(cause: &str) -> String {
    let ends = [
        " (ServiceError(",
        " (DispatchFailure(",
        " (TimeoutError(",
        " (ResponseError(",
        " (ConstructionFailure(",
    ];
    let end = ends.iter().filter_map(|end| cause.find(end)).min().unwrap_or(cause.len());
    plain(&cause[..end])
}
