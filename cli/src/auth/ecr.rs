//! ECR's password, from the AWS SDK with its ordinary chain of credentials.

use stoker_aws_setup::registry_password;
use stoker_core::error::CallError;

use super::credentials::Credentials;

/// Asks ECR for the password that it gives to whoever the SDK finds us to be.
pub(super) async fn credentials(host: &str) -> Result<Credentials, CallError> {
    let (user, secret) = registry_password(host).await?;
    Ok(Credentials::Password { user, secret })
}
