//! A JSON API over HTTPS that asks for a token, such as a forge's. The token goes to its own host only, no redirect is
//! followed, and no error says it, whatever the host answers.

use std::fmt::{self, Write as _};
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use serde_json::Value;
use stoker_core::error::{CallError, Failure};

use crate::registry::http::{Call, Status, call_once, request};
use crate::registry::{connector, is_loopback};

/// The longest answer that is read.
const LONGEST: usize = 8 << 20;
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(30);

/// An API.
pub struct Rest {
    http: Connector,
    base: String,
    headers: Vec<(&'static str, String)>,
    secret: String,
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest").field("base", &self.base).finish_non_exhaustive()
    }
}

/// What is asked of an API.
#[derive(Debug, Clone, Copy)]
pub struct Question<'q> {
    /// What errors call it, such as `github:CreateHook`.
    pub operation: &'static str,
    /// The HTTP method.
    pub method: &'q str,
    /// The path behind the API's address, beginning with `/`.
    pub path: &'q str,
    /// The media type and the text of what is sent.
    pub body: Option<(&'q str, &'q str)>,
}

impl Rest {
    /// The API at `https://host/...`, or on loopback at `http://`; `None` for any other address. `secret` is what
    /// errors never say; `headers` go with each request.
    #[must_use]
    pub fn new(base: &str, headers: Vec<(&'static str, String)>, secret: &str) -> Option<Self> {
        let (scheme, rest) = base.split_once("://")?;
        let host = rest.split('/').next().filter(|host| !host.is_empty() && !host.contains('@'))?;
        let is_safe = scheme == "https" || (scheme == "http" && is_loopback(host));
        let base = base.trim_end_matches('/').to_owned();
        is_safe.then(|| Self {
            http: connector(host, Some(TIMEOUT)),
            base,
            headers,
            secret: secret.to_owned(),
        })
    }

    /// Asks for JSON; `None` where the API says that there is nothing.
    pub async fn json(&self, question: Question<'_>) -> Result<Option<Value>, CallError> {
        let Some(bytes) = self.bytes(question).await? else { return Ok(None) };
        if bytes.is_empty() {
            return Ok(Some(Value::Null));
        }
        let unreadable = |_| {
            CallError::new(question.operation, question.path, Failure::Unavailable, "the answer is no JSON")
        };
        serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
    }

    /// Asks for anything; `None` where the API says that there is nothing. What only reads is tried again.
    pub async fn bytes(&self, question: Question<'_>) -> Result<Option<Bytes>, CallError> {
        let attempts = if question.method == "GET" { ATTEMPTS } else { 1 };
        let mut attempt = 1;
        loop {
            match self.once(question).await {
                Err(error) if error.failure == Failure::NotFound => return Ok(None),
                Err(error)
                    if attempt < attempts
                        && matches!(error.failure, Failure::Throttled | Failure::Unavailable) =>
                {
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                answer => return answer.map(Some),
            }
        }
    }

    async fn once(&self, question: Question<'_>) -> Result<Bytes, CallError> {
        let Question { operation, method, path, body } = question;
        let call = Call { operation, subject: path.to_owned() };
        let mut headers: Vec<(&'static str, &str)> =
            self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        if let Some((media_type, _)) = body {
            headers.push(("content-type", media_type));
        }
        let length = (method != "GET").then(|| body.map_or(0, |(_, text)| text.len() as u64));
        let sent = body.map_or_else(SdkBody::empty, |(_, text)| SdkBody::from(text));
        let url = format!("{}{path}", self.base);
        let asked = request(method, &url, None, &headers, length, sent);
        // What is wrong with a request may quote it.
        let asked = asked.map_err(|_| call.fail(Failure::Refused, "no request can be made of that"))?;
        let response = call_once(&self.http, &call, asked).await?;
        if response.status().is_success() {
            return call.body(response, LONGEST).await;
        }
        let code = response.status().as_u16();
        let refusal = call.refusal(response).await;
        let words = std::error::Error::source(&refusal).and_then(|cause| cause.downcast_ref::<Status>());
        let words = words.map(|status| status.words.as_str()).unwrap_or_default();
        let words =
            if self.secret.is_empty() { words.to_owned() } else { words.replace(&self.secret, "***") };
        Err(call.fail(refusal.failure, Status { code, words }))
    }
}

/// Text as a part of a path or a form: everything but letters, digits, `-`, `.`, `_` and `~` is escaped.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // A string takes all that is written.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_over_tls_or_to_loopback() {
        for (base, is_taken) in [
            ("https://api.github.com", true),
            ("http://127.0.0.1:8080/api/v3", true),
            ("http://api.github.com", false),
            ("https://", false),
            ("https://user@host", false),
            ("api.github.com", false),
        ] {
            assert_eq!(Rest::new(base, Vec::new(), "").is_some(), is_taken, "{base}");
        }
        let rest =
            Rest::new("https://api.github.com", vec![("authorization", "Bearer hush".to_owned())], "hush");
        assert!(!format!("{rest:?}").contains("hush"));
        assert_eq!(escaped("group/a b\u{e9}"), "group%2Fa%20b%C3%A9");
    }
}
