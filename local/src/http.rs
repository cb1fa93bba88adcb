//! Plain HTTP to this machine.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

const PATIENCE: Duration = Duration::from_secs(20);

/// A request had no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is not a plain HTTP address of this machine.
    #[error("`{url}` is not a plain HTTP address on this machine")]
    NotLocal {
        /// The address.
        url: String,
    },
    /// The request could not be written down.
    #[error("no request can be made to `{url}`")]
    Request {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: axum::http::Error,
    },
    /// Nobody answered, or the answer broke off.
    #[error("no answer from `{url}`")]
    Exchange {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer took too long.
    #[error("no answer from `{url}` within {} s", PATIENCE.as_secs())]
    Slow {
        /// The address.
        url: String,
    },
}

/// An answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// A header's text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text, for people.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(500).collect()
    }
}

/// A client.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for Http {
    fn default() -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http() }
    }
}

impl Http {
    /// Sends a request and reads the whole answer.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply, HttpError> {
        let owned = || url.to_owned();
        if !is_local(url) {
            return Err(HttpError::NotLocal { url: owned() });
        }
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(body.into()))
            .map_err(|source| HttpError::Request { url: owned(), source })?;
        let exchange = async {
            let reply = self
                .client
                .request(request)
                .await
                .map_err(|e| HttpError::Exchange { url: owned(), source: e.into() })?;
            let (head, body) = reply.into_parts();
            let body =
                body.collect().await.map_err(|e| HttpError::Exchange { url: owned(), source: e.into() })?;
            Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| HttpError::Slow { url: owned() })?
    }
}

/// Whether a URL is plain HTTP to the loopback interface.
#[must_use]
pub fn is_local(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("http")
            && uri.host().is_some_and(|host| {
                host == "localhost"
                    || host
                        .trim_matches(['[', ']'])
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|ip| ip.is_loopback())
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_local() {
        for url in ["http://127.0.0.1:4567/v2/", "http://localhost:1", "http://[::1]:80/x"] {
            assert!(is_local(url), "{url}");
        }
        for url in ["https://127.0.0.1/", "http://example.com/", "http://10.0.0.1/", "127.0.0.1:4567"] {
            assert!(!is_local(url), "{url}");
        }
    }
}
