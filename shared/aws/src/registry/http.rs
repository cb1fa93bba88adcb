//! Sending one request: credentials, tries, and what failures mean.

use std::fmt;
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::client::http::HttpConnector as _;
use aws_smithy_runtime_api::http::{Request, Response};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};

use super::{Authorize, Registry};
use stoker_core::error::{CallError, Cause, Failure, chain};

/// How often a request is sent before its failure is reported.
const ATTEMPTS: u32 = 3;
/// The same where the registry asks for patience: ECR takes 10 manifests a second, and a batch of moves is up
/// to 30. With its pauses that is some ten seconds.
const PATIENT_ATTEMPTS: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_millis(150);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// For the whole of a body that is read into memory.
const BODY_TIMEOUT: Duration = Duration::from_mins(1);

/// The registry answered with a status that is a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// The registry's own words, clipped.
    pub words: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.code)?;
        if self.words.is_empty() { Ok(()) } else { write!(f, ": {}", self.words) }
    }
}

impl std::error::Error for Status {}

/// A request.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) url: &'a str,
    pub(crate) headers: &'a [(&'static str, &'a str)],
    pub(crate) body: Option<Bytes>,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(method: &'a str, url: &'a str) -> Self {
        Self { method, url, headers: &[], body: None }
    }

    fn request(&self, authorization: Option<&str>) -> Result<Request<SdkBody>, Cause> {
        let body = self.body.clone().map_or_else(SdkBody::empty, SdkBody::from);
        // An upload is opened by an empty body, and some registries want to be told that it is.
        let reads = matches!(self.method, "GET" | "HEAD");
        let length = (!reads).then(|| self.body.as_ref().map_or(0, Bytes::len) as u64);
        request(self.method, self.url, authorization, self.headers, length, body)
    }
}

/// A request with the headers that all have.
pub(crate) fn request(
    method: &str,
    url: &str,
    authorization: Option<&str>,
    headers: &[(&'static str, &str)],
    length: Option<u64>,
    body: SdkBody,
) -> Result<Request<SdkBody>, Cause> {
    let mut request = Request::new(body);
    request.set_method(method)?;
    request.set_uri(url)?;
    request.headers_mut().try_insert("user-agent", "stoker")?;
    if let Some(authorization) = authorization {
        request.headers_mut().try_insert("authorization", authorization.to_owned())?;
    }
    if let Some(length) = length {
        request.headers_mut().try_insert("content-length", length.to_string())?;
    }
    for &(name, value) in headers {
        request.headers_mut().try_insert(name, value.to_owned())?;
    }
    Ok(request)
}

impl Registry {
    /// Sends a request until it is answered or has failed for good; the answer is a success or a redirect.
    pub(crate) async fn send(
        &self,
        authorize: &impl Authorize,
        call: &Call,
        ask: &Ask<'_>,
    ) -> Result<Response<SdkBody>, CallError> {
        let is_own = self.is_own(ask.url);
        let mut authorization = if is_own { authorize.authorization().await? } else { None };
        let mut is_challenged = false;
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let request =
                ask.request(authorization.as_deref()).map_err(|error| call.fail(Failure::Refused, error))?;
            let answer = call_once(&self.http, call, request).await;
            let error = match answer {
                Ok(response) if response.status().as_u16() == 401 && is_own && !is_challenged => {
                    is_challenged = true;
                    let challenges = response.headers().get_all("www-authenticate");
                    let challenges: Vec<String> = challenges.map(str::to_owned).collect();
                    if let Some(better) = authorize.challenged(&challenges).await? {
                        authorization = Some(better);
                        continue;
                    }
                    call.refusal(response).await
                }
                Ok(response) if response.status().is_success() || is_redirect(&response) => {
                    return Ok(response);
                }
                Ok(response) => call.refusal(response).await,
                Err(error) => error,
            };
            let attempts = match error.failure {
                Failure::Throttled => PATIENT_ATTEMPTS,
                Failure::Unavailable => ATTEMPTS,
                Failure::NotFound | Failure::Refused => 1,
            };
            if attempt >= attempts {
                return Err(error);
            }
            tracing::debug!(call.attempt = attempt, error = chain(&error), "trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 3).min(LONGEST_PAUSE);
            attempt += 1;
        }
    }
}

/// One request, one answer of any status.
pub(crate) async fn call_once(
    http: &Connector,
    call: &Call,
    request: Request<SdkBody>,
) -> Result<Response<SdkBody>, CallError> {
    http.call(request).await.map_err(|error| call.transport(error.into()))
}

pub(crate) fn is_redirect(response: &Response<SdkBody>) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// What a failure is about.
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    pub(crate) subject: String,
}

impl Call {
    pub(crate) fn fail(&self, failure: Failure, cause: impl Into<Cause>) -> CallError {
        CallError::new(self.operation, &self.subject, failure, cause)
    }

    pub(crate) fn transport(&self, error: Cause) -> CallError {
        let is_too_long = error.downcast_ref::<http_body_util::LengthLimitError>().is_some();
        self.fail(if is_too_long { Failure::Refused } else { Failure::Unavailable }, error)
    }

    /// A body of at most `limit` bytes, in memory.
    pub(crate) async fn body(&self, response: Response<SdkBody>, limit: usize) -> Result<Bytes, CallError> {
        let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(response.into_body(), limit).collect());
        let body = body.await.map_err(|_| self.fail(Failure::Unavailable, "the answer takes too long"))?;
        Ok(body.map_err(|error| self.transport(error))?.to_bytes())
    }

    pub(crate) async fn refusal(&self, response: Response<SdkBody>) -> CallError {
        let code = response.status().as_u16();
        let failure = match code {
            404 => Failure::NotFound,
            429 => Failure::Throttled,
            500.. => Failure::Unavailable,
            _ => Failure::Refused,
        };
        // The registry's own words help, but it may send any amount of them, and of any kind.
        let words = self.body(response, 4096).await.unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let words = words.trim().chars().filter(|c| !c.is_control()).take(300).collect();
        self.fail(failure, Status { code, words })
    }
}
