//! ECR: the registry's password and settings, repositories with theirs and the tag that says for whom they were made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::types::ImageScanningConfiguration;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::Format;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use stoker_aws::call_error;
use stoker_core::error::{CallError, Failure, chain};
use stoker_core::names::CacheRepository;
use stoker_core::partition::registry_region;

use super::{Setup, pairs};

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

/// What ECR says of mounting blobs, and when.
#[derive(Debug)]
pub struct BlobMounting {
    /// The value of `BLOB_MOUNTING`, or why it is not known.
    pub value: Result<String, CallError>,
    /// The date of the answer, in seconds.
    pub answered_at: Option<i64>,
}

/// A repository's settings.
#[derive(Debug, Clone)]
pub struct RepositorySettings {
    /// The number of its account.
    pub account: String,
    /// As ECR calls it: `MUTABLE`, `IMMUTABLE_WITH_EXCLUSION` and so on.
    pub mutability: String,
    /// Patterns of the tags that are excluded from that.
    pub excluded: Vec<String>,
    /// The kind of encryption, and the key.
    pub encryption: (String, Option<String>),
    /// Whether images are scanned when they are pushed.
    pub scans: bool,
}

/// User and password that ECR gives to whoever the SDK finds us to be.
pub async fn registry_password(host: &str) -> Result<(String, String), CallError> {
    let fail = |failure, cause: String| CallError::new("ecr:GetAuthorizationToken", host, failure, cause);
    let config = crate::config::loader(registry_region(host)).load().await;
    let answer = aws_sdk_ecr::Client::new(&config).get_authorization_token().send().await;
    let answer = answer.map_err(|error| fail(Failure::Refused, words(&error)))?;
    let token = answer.authorization_data().first().and_then(|data| data.authorization_token());
    let decoded = token.and_then(|token| String::from_utf8(BASE64.decode(token).ok()?).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let pair = pair.map(|(user, password)| (user.to_owned(), password.to_owned()));
    pair.ok_or_else(|| fail(Failure::Unavailable, "the answer holds no token".to_owned()))
}

/// The SDK's error in a sentence: it has a page to say where it looked for credentials.
fn words<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let service = error.as_service_error();
    match service.and_then(|error| Some((error.code()?, error.message().unwrap_or("no reason given")))) {
        Some((code, message)) => format!("{code}: {message}"),
        None => chain(error).lines().next().unwrap_or_default().trim_end_matches(". Attempted:").to_owned(),
    }
}

impl Setup {
    /// What the account's registry says of mounting blobs. The error says that nobody answers, or not to us.
    pub async fn blob_mounting(&self) -> Result<BlobMounting, CallError> {
        let date = DateOfAnswer::default();
        let asked = self.ecr.get_account_setting().name("BLOB_MOUNTING");
        let answer = asked.customize().interceptor(date.clone()).send().await;
        let answered_at = date.0.lock().ok().and_then(|date| *date);
        let value = match answer {
            Ok(answer) => Ok(answer.value().unwrap_or("unset").to_owned()),
            Err(error) => {
                let is_of_us = matches!(error, SdkError::ServiceError(_))
                    && !NOBODY.contains(&error.code().unwrap_or_default());
                let error = call_error("ecr:GetAccountSetting", "BLOB_MOUNTING", error);
                if !is_of_us {
                    return Err(error);
                }
                Err(error)
            }
        };
        Ok(BlobMounting { value, answered_at })
    }

    /// A repository's settings; `None` where there is none of that name.
    pub async fn repository_settings(
        &self,
        repository: &CacheRepository,
    ) -> Result<Option<RepositorySettings>, CallError> {
        let answer = self.ecr.describe_repositories().repository_names(repository.as_str()).send().await;
        let answer = match answer.map_err(|error| call_error("ecr:DescribeRepositories", repository, error)) {
            Ok(answer) => answer,
            Err(error) if error.failure == Failure::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(answer.repositories().first().map(|repository| {
            let encryption = repository.encryption_configuration();
            let excluded = repository.image_tag_mutability_exclusion_filters().iter();
            RepositorySettings {
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

    /// Who may do what with a repository beside identities' own policies, as JSON; `None` without such a policy.
    pub async fn repository_policy(&self, repository: &CacheRepository) -> Result<Option<String>, CallError> {
        let answer = self.ecr.get_repository_policy().repository_name(repository.as_str()).send().await;
        match answer.map_err(|error| call_error("ecr:GetRepositoryPolicy", repository, error)) {
            Ok(answer) => Ok(answer.policy_text().map(str::to_owned)),
            Err(error) if error.failure == Failure::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

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

    /// A repository's lifecycle policy, as JSON; `None` where it has none, or there is no such repository.
    pub async fn lifecycle(&self, repository: &CacheRepository) -> Result<Option<String>, CallError> {
        let answer = self.ecr.get_lifecycle_policy().repository_name(repository.as_str()).send().await;
        match answer.map_err(|error| call_error("ecr:GetLifecyclePolicy", repository, error)) {
            Ok(answer) => Ok(answer.lifecycle_policy_text().map(str::to_owned)),
            Err(error) if error.failure == Failure::NotFound => Ok(None),
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
