//! ECR's password, from the AWS SDK with its ordinary chain of credentials.

use aws_config::{BehaviorVersion, Region};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use stoker_core::error::{CallError, Failure, chain};
use stoker_core::partition::registry_region;

use super::credentials::Credentials;

/// Asks ECR for the password that it gives to whoever the SDK finds us to be.
pub(super) async fn credentials(host: &str) -> Result<Credentials, CallError> {
    let fail = |failure, cause: String| CallError::new("ecr:GetAuthorizationToken", host, failure, cause);
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let region = registry_region(host).map(|region| Region::new(region.to_owned()));
    let config =
        aws_config::defaults(BehaviorVersion::latest()).http_client(http).region(region).load().await;
    let answer = aws_sdk_ecr::Client::new(&config).get_authorization_token().send().await;
    let answer = answer.map_err(|error| fail(Failure::Refused, words(&error)))?;
    let token = answer.authorization_data().first().and_then(|data| data.authorization_token());
    let decoded = token.and_then(|token| String::from_utf8(BASE64.decode(token).ok()?).ok());
    match decoded.as_deref().and_then(|text| text.split_once(':')) {
        Some((user, secret)) => {
            Ok(Credentials::Password { user: user.to_owned(), secret: secret.to_owned() })
        }
        None => Err(fail(Failure::Unavailable, "the answer holds no token".to_owned())),
    }
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
