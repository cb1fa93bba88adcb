//! A client of the OCI distribution API for what Stoker moves: configs and manifests, never layers.
//!
//! Why not an existing client: bodies must be bounded before they are read, ECR's token must be renewed, and a
//! promotion must cost the fewest requests (no challenge round trip, one request to open an upload and one to fill it).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use crate::error::{CallError, Failure, chain};
use crate::names::{CacheRepository, Digest, Tag};

/// How often a request is sent before its failure is told.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(150);
const TIMEOUT: Duration = Duration::from_secs(20);

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
    http: Client,
    base: String,
}

impl Registry {
    /// A client of the registry at `host`, over plain HTTP where that is a loopback address, as Docker does it.
    #[must_use]
    pub fn new(host: &str) -> Self {
        // Fails when the process has installed a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let is_loopback = name == "localhost" || name.starts_with("127.") || name == "[::1]";
        let scheme = if is_loopback { "http" } else { "https" };
        let http = Client::builder().timeout(TIMEOUT).user_agent("stoker").build().unwrap_or_default();
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
        let url = format!("{}/v2/{repository}/blobs/{digest}", self.base);
        let mut response = self.send(authorize, &call, Method::GET, &url, |request| request).await?;
        let mut bytes = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| call.transport(&error))? {
            if bytes.len() + chunk.len() > limit {
                return Err(call.fail(Failure::Refused, format!("the blob has more than {limit} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        if Digest::of(&bytes) != *digest {
            return Err(call.fail(Failure::Unavailable, "the registry answered other bytes than the digest's".into()));
        }
        Ok(bytes.freeze())
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
        let opened = self.send(authorize, &call, Method::POST, &url, |request| request).await?;
        let location = opened.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        // The location may be relative to the request's own URL.
        let location = location.and_then(|location| opened.url().join(location).ok());
        let mut location =
            location.ok_or_else(|| call.fail(Failure::Unavailable, "the registry names no upload location".into()))?;
        self.check_host(&call, &location)?;
        location.query_pairs_mut().append_pair("digest", digest.as_str());
        let fill = |request: RequestBuilder| {
            request.header(CONTENT_TYPE, "application/octet-stream").body(bytes.clone())
        };
        self.send(authorize, &call, Method::PUT, location.as_str(), fill).await.map(drop)
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
        let fill = |request: RequestBuilder| request.header(CONTENT_TYPE, media_type).body(manifest.clone());
        self.send(authorize, &call, Method::PUT, &url, fill).await.map(drop)
    }

    /// The credentials go nowhere but to the registry itself.
    fn check_host(&self, call: &Call, url: &Url) -> Result<(), CallError> {
        if Url::parse(&self.base).is_ok_and(|base| base.origin() == url.origin()) {
            return Ok(());
        }
        Err(call.fail(Failure::Refused, "the registry wants the upload sent to another host".into()))
    }

    async fn send(
        &self,
        authorize: &impl Authorize,
        call: &Call,
        method: Method,
        url: &str,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, CallError> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let mut request = fill(self.http.request(method.clone(), url));
            if let Some(authorization) = authorize.authorization().await? {
                request = request.header(AUTHORIZATION, authorization);
            }
            let error = match request.send().await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => call.refusal(response).await,
                Err(error) => call.transport(&error),
            };
            let may_pass = matches!(error.failure, Failure::Throttled | Failure::Unavailable);
            if !may_pass || attempt == ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(call.attempt = attempt, error = chain(&error), "trying again");
            tokio::time::sleep(pause).await;
            pause *= 3;
        }
        unreachable!("the loop ends by returning")
    }
}

struct Call {
    operation: &'static str,
    subject: String,
}

impl Call {
    fn fail(&self, failure: Failure, cause: String) -> CallError {
        CallError::new(self.operation, &self.subject, failure, cause)
    }

    fn transport(&self, error: &reqwest::Error) -> CallError {
        self.fail(Failure::Unavailable, chain(error))
    }

    async fn refusal(&self, mut response: Response) -> CallError {
        let status = response.status();
        let failure = match status {
            StatusCode::NOT_FOUND => Failure::NotFound,
            StatusCode::TOO_MANY_REQUESTS => Failure::Throttled,
            status if status.is_server_error() => Failure::Unavailable,
            _ => Failure::Refused,
        };
        // The registry's own words help, but it may send any amount of them.
        let words = response.chunk().await.ok().flatten().unwrap_or_default();
        let words = String::from_utf8_lossy(&words[..words.len().min(300)]).into_owned();
        self.fail(failure, format!("status {status}: {words}"))
    }
}
