//! Secrets Manager: the webhook's secret.

use std::time::{Duration, Instant};

use super::{Aws, call_error};
use stoker_core::error::CallError;
use stoker_core::ports::ReadSecrets;

/// How long a secret is remembered, as long as it fits.
const REMEMBER: Duration = Duration::from_mins(5);
/// How long it is remembered at least. A rotation takes at most this long to arrive.
const REREAD: Duration = Duration::from_mins(1);

impl ReadSecrets for Aws {
    /// Each non-empty line of the secret is one, so that an old and a new one are valid during a rotation.
    async fn webhook_secrets(&self, anew: bool) -> Result<Vec<Vec<u8>>, CallError> {
        let known = self.secrets.0.lock().ok().and_then(|known| known.clone());
        if let Some((secrets, read_at)) = known
            && read_at.elapsed() < if anew { REREAD } else { REMEMBER }
        {
            return Ok(secrets);
        }
        let answer = self.secretsmanager().get_secret_value().secret_id(&self.webhook_secret).send().await;
        let answer = answer
            .map_err(|error| call_error("secretsmanager:GetSecretValue", "the webhook's secret", error))?;
        let lines = answer.secret_string().unwrap_or_default().lines();
        let secrets: Vec<Vec<u8>> = lines
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| line.as_bytes().to_vec())
            .collect();
        if let Ok(mut known) = self.secrets.0.lock() {
            *known = Some((secrets.clone(), Instant::now()));
        }
        Ok(secrets)
    }
}
