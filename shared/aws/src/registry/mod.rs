//! A client of the OCI distribution API for what Stoker moves. Its functions move configs and manifests only; the
//! command line tool also mounts and copies layers.
//!
//! Why not an existing client: bodies must be bounded before they are read, ECR's token must be renewed, and a
//! promotion must cost the fewest requests (no challenge round trip, one request to open an upload and one to fill it).
//! A registry is not trusted: what it answers is checked against its digest, and credentials go to no other host.

mod blobs;
pub(crate) mod http;
mod manifests;
mod origin;
mod tags;
mod tokens;

use std::sync::OnceLock;
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::HttpConnectorSettings;

pub use aws_smithy_types::body::SdkBody as BlobBody;
pub use blobs::{Mounted, OpenBlob, Presence, Upload};
pub use http::Status;
pub use manifests::FetchedManifest;
use origin::Origin;
pub use tokens::TokenAsk;

use stoker_core::error::CallError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Knows what to put into the `Authorization` header.
#[expect(async_fn_in_trait, reason = "see `ports`")]
pub trait Authorize {
    /// The header's value; `None` for a registry that asks for none, or has not said yet what it asks for.
    async fn authorization(&self) -> Result<Option<String>, CallError>;

    /// The header's value after the registry refused the first one with these `WWW-Authenticate` headers; `None` when
    /// there is no better one.
    async fn challenged(&self, _challenges: &[String]) -> Result<Option<String>, CallError> {
        Ok(None)
    }
}

/// No credentials, for a registry on loopback.
pub struct Anonymous;

impl Authorize for Anonymous {
    async fn authorization(&self) -> Result<Option<String>, CallError> {
        Ok(None)
    }
}

/// A registry.
pub struct Registry {
    http: Connector,
    /// Has no limit on the time of a request: a layer takes as long as it takes.
    patient: OnceLock<Connector>,
    base: String,
    origin: Option<Origin>,
}

impl Registry {
    /// A client of the registry at `host`, over plain HTTP where that is a loopback address, as Docker does it.
    #[must_use]
    pub fn new(host: &str) -> Self {
        let scheme = if is_loopback(host) { "http" } else { "https" };
        let base = format!("{scheme}://{host}");
        let http = connector(host, Some(READ_TIMEOUT));
        Self { http, patient: OnceLock::new(), origin: Origin::of(&base), base }
    }

    fn patient(&self) -> &Connector {
        let host = self.base.split_once("://").map_or("", |(_, host)| host);
        self.patient.get_or_init(|| connector(host, None))
    }

    /// A location as the registry writes it: a whole URL, or a path on the registry.
    fn resolve(&self, location: &str) -> String {
        if location.starts_with('/') { format!("{}{location}", self.base) } else { location.to_owned() }
    }

    /// Whether a URL is the registry's own; credentials go nowhere else.
    fn is_own(&self, url: &str) -> bool {
        self.origin.is_some() && Origin::of(url) == self.origin
    }

    /// Whether the registry may send its client there: to any host, but not from TLS to plain text.
    fn is_safe(&self, url: &str) -> bool {
        url.starts_with("https://") || (url.starts_with("http://") && self.base.starts_with("http://"))
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name == "[::1]"
        || name.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_loopback())
}

/// The SDK's own connector: one TLS stack, one set of roots.
pub(crate) fn connector(host: &str, read_timeout: Option<Duration>) -> Connector {
    let mut timeouts = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT);
    timeouts.set_read_timeout(read_timeout);
    // As everywhere, HTTPS_PROXY and NO_PROXY hold, but not for this machine itself.
    let proxy = if is_loopback(host) { ProxyConfig::disabled() } else { ProxyConfig::from_env() };
    Connector::builder()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .connector_settings(timeouts.build())
        .proxy_config(proxy)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for (host, base) in [
            ("127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("localhost", "http://localhost"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("registry.example", "https://registry.example"),
            ("127.0.0.1.registry.example", "https://127.0.0.1.registry.example"),
            ("localhost.registry.example:5000", "https://localhost.registry.example:5000"),
        ] {
            assert_eq!(Registry::new(host).base, base);
        }
    }

    #[test]
    fn only_the_registry_itself_is_its_own() {
        let registry = Registry::new("registry.example");
        for own in ["https://registry.example/v2/", "https://REGISTRY.example:443/x?y", "/v2/x"] {
            assert!(registry.is_own(&registry.resolve(own)), "{own}");
        }
        for other in [
            "http://registry.example/v2/",
            "https://registry.example:444/",
            "https://registry.example.evil.example/",
            "https://registry.example@evil.example/",
            "https://evil.example/registry.example",
            "//evil.example/x\\@registry.example",
            "v2/x",
            "",
        ] {
            let resolved = registry.resolve(other);
            assert!(!registry.is_own(&resolved) || resolved.starts_with("https://registry.example//evil"));
        }
        assert!(!registry.is_safe("http://storage.example/blob"));
        assert!(registry.is_safe("https://storage.example/blob"));
        assert!(!registry.is_safe("file:///etc/passwd"));
    }
}
