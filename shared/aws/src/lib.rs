//! The ports on AWS. SDK types stay in this module.

mod codebuild;
mod ecr;
mod eventbridge;
mod limit;
pub mod registry;
mod remembered;
pub mod rest;
mod secrets;

use std::sync::OnceLock;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_sdk_ecr::config::SharedCredentialsProvider;
use aws_sdk_ecr::config::http::HttpResponse;
use aws_sdk_ecr::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};

use self::registry::Registry;
use stoker_core::error::{CallError, Failure};
use stoker_core::ports::Pause;

/// AWS as Stoker uses it: every port. A client is made when it is first needed, so a function pays only for its own.
pub struct Aws {
    config: SdkConfig,
    registry_host: String,
    bus: String,
    webhook_secret: String,
    starters: Option<Vec<String>>,
    safety_net_days: Option<u32>,
    ecr: OnceLock<aws_sdk_ecr::Client>,
    codebuild: OnceLock<aws_sdk_codebuild::Client>,
    eventbridge: OnceLock<aws_sdk_eventbridge::Client>,
    secretsmanager: OnceLock<aws_sdk_secretsmanager::Client>,
    registry: OnceLock<Registry>,
    token: remembered::Token,
    blobs: remembered::Blobs,
    secrets: remembered::Secrets,
    account: OnceLock<String>,
}

/// Names of what the function's environment points at.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// Host of the registry that serves the cache repositories.
    pub registry: String,
    /// Name of Stoker's event bus.
    pub bus: String,
    /// ARN or name of the secret that webhooks are signed with.
    pub webhook_secret: String,
    /// Names of the roles that start Stoker's builds: what nobody of them started is not Stoker's, whatever
    /// it says. `None` for who only shows builds and does not know the stack; every build outside a batch is
    /// then taken at its word.
    pub starters: Option<Vec<String>>,
    /// After how many days ECR deletes exports and untagged images of the repositories that are made when
    /// they are missing; `None` makes none.
    pub safety_net_days: Option<u32>,
}

impl Aws {
    /// Reads region and credentials from the environment, as a Lambda function has them.
    #[must_use]
    pub fn new(function: &'static str, settings: AwsSettings) -> Self {
        // Ring, and no other provider: it starts many times faster than the default one.
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(3))
            .operation_attempt_timeout(Duration::from_secs(10))
            .build();
        // A Lambda function has its region and credentials in its environment. The default chain would look for them in
        // eight more places, and bring the code for that.
        let mut config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(std::env::var("AWS_REGION").ok().map(Region::new))
            .credentials_provider(SharedCredentialsProvider::new(
                EnvironmentVariableCredentialsProvider::new(),
            ))
            .http_client(http)
            .retry_config(RetryConfig::standard().with_max_attempts(4))
            .timeout_config(timeouts);
        if let Ok(name) = AppName::new(function) {
            config = config.app_name(name);
        }
        Self::from_config(config.build(), settings)
    }

    /// Takes region, credentials and everything else from a configuration, such as that of the SDK's default chain.
    #[must_use]
    pub fn from_config(config: SdkConfig, settings: AwsSettings) -> Self {
        Self {
            config,
            registry_host: settings.registry,
            bus: settings.bus,
            webhook_secret: settings.webhook_secret,
            starters: settings.starters,
            safety_net_days: settings.safety_net_days,
            ecr: OnceLock::new(),
            codebuild: OnceLock::new(),
            eventbridge: OnceLock::new(),
            secretsmanager: OnceLock::new(),
            registry: OnceLock::new(),
            token: remembered::Token::default(),
            blobs: remembered::Blobs::default(),
            secrets: remembered::Secrets::default(),
            account: OnceLock::new(),
        }
    }

    /// The region that it asks.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.config.region().map(Region::as_ref)
    }

    /// The account whose images have been listed, once some have.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        self.account.get().map(String::as_str)
    }

    fn ecr(&self) -> &aws_sdk_ecr::Client {
        self.ecr.get_or_init(|| {
            let mut config = aws_sdk_ecr::config::Builder::from(&self.config);
            if let Some(url) = endpoint("ECR") {
                config.set_endpoint_url(Some(url));
            }
            aws_sdk_ecr::Client::from_conf(config.build())
        })
    }

    fn codebuild(&self) -> &aws_sdk_codebuild::Client {
        self.codebuild.get_or_init(|| {
            let mut config = aws_sdk_codebuild::config::Builder::from(&self.config);
            if let Some(url) = endpoint("CODEBUILD") {
                config.set_endpoint_url(Some(url));
            }
            aws_sdk_codebuild::Client::from_conf(config.build())
        })
    }

    fn eventbridge(&self) -> &aws_sdk_eventbridge::Client {
        self.eventbridge.get_or_init(|| {
            let mut config = aws_sdk_eventbridge::config::Builder::from(&self.config);
            if let Some(url) = endpoint("EVENTBRIDGE") {
                config.set_endpoint_url(Some(url));
            }
            aws_sdk_eventbridge::Client::from_conf(config.build())
        })
    }

    fn secretsmanager(&self) -> &aws_sdk_secretsmanager::Client {
        self.secretsmanager.get_or_init(|| {
            let mut config = aws_sdk_secretsmanager::config::Builder::from(&self.config);
            if let Some(url) = endpoint("SECRETS_MANAGER") {
                config.set_endpoint_url(Some(url));
            }
            aws_sdk_secretsmanager::Client::from_conf(config.build())
        })
    }

    fn registry(&self) -> &Registry {
        self.registry.get_or_init(|| Registry::new(&self.registry_host))
    }
}

impl Pause for Aws {
    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// The address of a service where it is not AWS's own, by the variables that every SDK knows.
fn endpoint(service: &str) -> Option<String> {
    std::env::var(format!("AWS_ENDPOINT_URL_{service}")).or_else(|_| std::env::var("AWS_ENDPOINT_URL")).ok()
}

/// Error codes by which AWS asks for patience. CodeBuild says `AccountLimitExceededException` for a full queue.
const THROTTLES: [&str; 7] = [
    "AccountLimitExceededException",
    "LimitExceededException",
    "RequestLimitExceeded",
    "ServiceQuotaExceededException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
];

/// Turns an SDK error into one that says what to do.
pub fn call_error<E>(
    operation: &'static str,
    subject: impl std::fmt::Display,
    error: SdkError<E, HttpResponse>,
) -> CallError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let failure = match &error {
        SdkError::ConstructionFailure(_) => Failure::Refused,
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or_default();
            if THROTTLES.contains(&code) || service.raw().status().as_u16() == 429 {
                Failure::Throttled
            } else if service.raw().status().is_server_error() {
                Failure::Unavailable
            } else if code.ends_with("NotFoundException") {
                Failure::NotFound
            } else {
                Failure::Refused
            }
        }
        _ => Failure::Unavailable,
    };
    CallError::new(operation, subject, failure, DisplayErrorContext(error).to_string())
}

/// A time as AWS answers it; the epoch where it answers none.
fn timestamp(time: Option<&aws_sdk_ecr::primitives::DateTime>) -> jiff::Timestamp {
    time.and_then(|time| jiff::Timestamp::from_millisecond(time.to_millis().ok()?).ok()).unwrap_or_default()
}
