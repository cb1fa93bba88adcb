//! Region, credentials and everything else as the SDK's ordinary chain finds them: environment, profile, single sign-on.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};

/// A command may wait longer than a Lambda: throttling ends. `AWS_MAX_ATTEMPTS` says otherwise.
const ATTEMPTS: u32 = 6;

/// The configuration of a command. A region that is given goes before the chain's.
pub async fn config(region: Option<&str>) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .operation_attempt_timeout(Duration::from_secs(30))
        .build();
    let mut config = loader(region).timeout_config(timeouts);
    if std::env::var_os("AWS_MAX_ATTEMPTS").is_none() {
        config = config.retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
    }
    if let Ok(name) = AppName::new("stoker") {
        config = config.app_name(name);
    }
    config.load().await
}

pub(crate) fn loader(region: Option<&str>) -> ConfigLoader {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
    match region {
        Some(region) => loader.region(Region::new(region.to_owned())),
        None => loader,
    }
}
