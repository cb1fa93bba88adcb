//! ECR's password, from the AWS SDK with its ordinary chain of credentials.

use aws_config::{BehaviorVersion, Region};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use stoker::error::{CallError, Failure, chain};

use super::Credentials;

/// Whether a host is a private registry of ECR.
pub(crate) fn is_ecr(host: &str) -> bool {
    region(host).is_some()
}

/// The region of `<account>.dkr.ecr.<region>.amazonaws.com[.cn]`, of its FIPS form, or of a dual-stack name.
pub(crate) fn region(host: &str) -> Option<&str> {
    let (account, rest) = host.split_once('.')?;
    if account.len() != 12 || !account.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let ipv4 = ["dkr.ecr.", "dkr.ecr-fips."].iter().find_map(|service| rest.strip_prefix(service));
    let dual = ["dkr-ecr.", "dkr-ecr-fips."].iter().find_map(|service| rest.strip_prefix(service));
    let region = match (ipv4, dual) {
        (Some(rest), _) => {
            rest.strip_suffix(".amazonaws.com").or_else(|| rest.strip_suffix(".amazonaws.com.cn"))
        }
        (None, Some(rest)) => {
            rest.strip_suffix(".on.aws").or_else(|| rest.strip_suffix(".on.amazonwebservices.com.cn"))
        }
        (None, None) => None,
    }?;
    let is_region = !region.is_empty() && region.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    is_region.then_some(region)
}

/// Asks ECR for the password that it gives to whoever the SDK finds us to be.
pub(super) async fn credentials(host: &str) -> Result<Credentials, CallError> {
    let fail = |failure, cause: String| CallError::new("ecr:GetAuthorizationToken", host, failure, cause);
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let region = region(host).map(|region| Region::new(region.to_owned()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecr_is_known_by_its_names() {
        for (host, name) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", Some("eu-west-1")),
            ("123456789012.dkr-ecr-fips.us-east-1.on.aws", Some("us-east-1")),
            ("12345678901.dkr.ecr.eu-west-1.amazonaws.com", None),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example", None),
            ("123456789012.dkr.ecr.evil.example/.amazonaws.com", None),
            ("123456789012.dkr.ecr.a.b.amazonaws.com", None),
            ("public.ecr.aws", None),
            ("registry.example", None),
        ] {
            assert_eq!(region(host), name, "{host}");
        }
    }
}
