//! A client of the OCI distribution API for what Stoker moves: configs and manifests, never layers.
//!
//! Why not an existing client: bodies must be bounded before they are read, ECR's token must be renewed, and a
//! promotion must cost the fewest requests (no challenge round trip, one request to open an upload and one to fill it).

use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorSettings};
use aws_smithy_runtime_api::http::{Request, Response};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};

use crate::error::{CallError, Cause, Failure, chain};
use crate::names::{CacheRepository, Digest, Tag};

/// How often a request is sent before its failure is told.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(150);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// A blob is often answered with an address of the storage behind the registry.
const REDIRECTS: u32 = 3;

/// Knows what to put into the `Authorization` header.
#[expect(async_fn_in_trait, reason = "see `ports`")]
pub trait Authorize {
    /// The header's value; `None` for a registry that asks for none.
    async fn authorization(&self) -> Result<Option<String>, CallError>;
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
    base: String,
}

impl Registry {
    /// A client of the registry at `host`, over plain HTTP where that is a loopback address, as Docker does it.
    #[must_use]
    pub fn new(host: &str) -> Self {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let is_loopback = name == "localhost" || name.starts_with("127.") || name == "[::1]";
        let scheme = if is_loopback { "http" } else { "https" };
        // The SDK's own connector: one TLS stack, one set of roots.
        let timeouts = HttpConnectorSettings::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build();
        let http = Connector::builder()
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .connector_settings(timeouts)
            .build();
        Self { http, base: format!("{scheme}://{host}") }
    }

    /// A blob of at most `limit` bytes whose digest is right.
    pub async fn blob(
        &self,
        authorize: &impl Authorize,
        repository: &CacheRepository,
        digest: &Digest,
        limit: usize,
    ) -> Result<Bytes, CallError> {
        let call = Call { operation: "registry:GetBlob", subject: format!("{repository}@{digest}") };
        let mut url = format!("{}/v2/{repository}/blobs/{digest}", self.base);
        for _ in 0..=REDIRECTS {
            let response = self.send(authorize, &call, &Ask { method: "GET", url: &url, body: None }).await?;
            if let Some(location) = response.headers().get("location").filter(|_| is_redirect(&response)) {
                url = self.resolve(location);
                continue;
            }
            let body = Limited::new(response.into_body(), limit).collect().await;
            let bytes = body.map_err(|error| call.transport(error))?.to_bytes();
            if Digest::of(&bytes) != *digest {
                return Err(
                    call.fail(Failure::Unavailable, "the registry answered other bytes than the digest's")
                );
            }
            return Ok(bytes);
        }
        Err(call.fail(Failure::Refused, "the registry sends from one address to the next"))
    }

    /// Stores a blob: one request opens the upload, one fills it.
    pub async fn put_blob(
        &self,
        authorize: &impl Authorize,
        repository: &CacheRepository,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), CallError> {
        let call = Call { operation: "registry:PutBlob", subject: format!("{repository}@{digest}") };
        let url = format!("{}/v2/{repository}/blobs/uploads/", self.base);
        let opened = self.send(authorize, &call, &Ask { method: "POST", url: &url, body: None }).await?;
        let location = opened.headers().get("location").map(|location| self.resolve(location));
        let location = location
            .ok_or_else(|| call.fail(Failure::Unavailable, "the registry names no upload location"))?;
        if !self.is_own(&location) {
            return Err(call.fail(Failure::Refused, "the registry wants the upload sent to another host"));
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let body = Some(("application/octet-stream", bytes));
        self.send(authorize, &call, &Ask { method: "PUT", url: &url, body }).await.map(drop)
    }

    /// Stores a manifest under a tag.
    pub async fn put_manifest(
        &self,
        authorize: &impl Authorize,
        repository: &CacheRepository,
        tag: &Tag,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), CallError> {
        let call = Call { operation: "registry:PutManifest", subject: format!("{repository}:{tag}") };
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.base);
        let body = Some((media_type, manifest));
        self.send(authorize, &call, &Ask { method: "PUT", url: &url, body }).await.map(drop)
    }

    /// A location as the registry writes it: a whole URL, or a path on the registry.
    fn resolve(&self, location: &str) -> String {
        if location.starts_with('/') { format!("{}{location}", self.base) } else { location.to_owned() }
    }

    /// Whether a URL is the registry's own; credentials go nowhere else.
    fn is_own(&self, url: &str) -> bool {
        url.strip_prefix(&self.base).is_some_and(|path| path.starts_with('/'))
    }

    async fn send(
        &self,
        authorize: &impl Authorize,
        call: &Call,
        ask: &Ask<'_>,
    ) -> Result<Response<SdkBody>, CallError> {
        let authorization = if self.is_own(ask.url) { authorize.authorization().await? } else { None };
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let request =
                ask.request(authorization.as_deref()).map_err(|error| call.fail(Failure::Refused, error))?;
            let error = match self.http.call(request).await {
                Ok(response) if response.status().is_success() || is_redirect(&response) => {
                    return Ok(response);
                }
                Ok(response) => call.refusal(response).await,
                Err(error) => call.transport(error.into()),
            };
            let may_pass = matches!(error.failure, Failure::Throttled | Failure::Unavailable);
            if !may_pass || attempt == ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(call.attempt = attempt, error = chain(&error), "trying again");
            tokio::time::sleep(pause).await;
            pause *= 3;
            attempt += 1;
        }
    }
}

fn is_redirect(response: &Response<SdkBody>) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A request; its body has a media type.
struct Ask<'a> {
    method: &'a str,
    url: &'a str,
    body: Option<(&'a str, Bytes)>,
}

impl Ask<'_> {
    fn request(&self, authorization: Option<&str>) -> Result<Request<SdkBody>, Cause> {
        let body = self.body.as_ref().map_or_else(SdkBody::empty, |(_, bytes)| SdkBody::from(bytes.clone()));
        let mut request = Request::new(body);
        request.set_method(self.method)?;
        request.set_uri(self.url)?;
        let mut headers = vec![("user-agent", "stoker".to_owned())];
        headers.extend(authorization.map(|authorization| ("authorization", authorization.to_owned())));
        headers.extend(self.body.as_ref().map(|(media_type, _)| ("content-type", (*media_type).to_owned())));
        // An upload is opened by an empty body, and some registries want to be told that it is.
        let length = self.body.as_ref().map_or(0, |(_, bytes)| bytes.len());
        headers.extend((self.method != "GET").then(|| ("content-length", length.to_string())));
        for (name, value) in headers {
            request.headers_mut().try_insert(name, value)?;
        }
        Ok(request)
    }
}

struct Call {
    operation: &'static str,
    subject: String,
}

impl Call {
    fn fail(&self, failure: Failure, cause: impl Into<Cause>) -> CallError {
        CallError::new(self.operation, &self.subject, failure, cause)
    }

    fn transport(&self, error: Cause) -> CallError {
        let is_too_long = error.downcast_ref::<http_body_util::LengthLimitError>().is_some();
        self.fail(if is_too_long { Failure::Refused } else { Failure::Unavailable }, error)
    }

    async fn refusal(&self, response: Response<SdkBody>) -> CallError {
        let status = response.status().as_u16();
        let failure = match status {
            404 => Failure::NotFound,
            429 => Failure::Throttled,
            500.. => Failure::Unavailable,
            _ => Failure::Refused,
        };
        // The registry's own words help, but it may send any amount of them.
        let words = Limited::new(response.into_body(), 4096).collect().await;
        let words = words.map(http_body_util::Collected::to_bytes);
        let words = words.unwrap_or_default();
        let words: String = String::from_utf8_lossy(&words).chars().take(300).collect();
        self.fail(failure, format!("status {status}: {words}"))
    }
}
