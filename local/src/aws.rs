//! The few calls to the local stand-in for AWS, without an SDK: it does not check signatures.

use axum::http::Method;
use serde_json::Value;

use crate::REGION;
use crate::http::{Http, HttpError};

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    /// It had no answer.
    #[error("{call} failed")]
    Http {
        /// The call.
        call: String,
        /// Why.
        #[source]
        source: HttpError,
    },
    /// The answer was an error.
    #[error("{call} was refused with {status}: {message}")]
    Refused {
        /// The call.
        call: String,
        /// The HTTP status.
        status: u16,
        /// What the answer says.
        message: String,
    },
    /// The answer was not JSON.
    #[error("the answer to {call} is not JSON")]
    Unreadable {
        /// The call.
        call: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A service that speaks AWS JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The registry's catalogue.
    Ecr,
    /// Rules and their targets.
    EventBridge,
    /// Queues.
    Sqs,
}

impl Service {
    /// Its name in a signature, its target prefix, its protocol.
    fn spelled(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Ecr => ("ecr", "AmazonEC2ContainerRegistry_V20150921", "application/x-amz-json-1.1"),
            Self::EventBridge => ("events", "AWSEvents", "application/x-amz-json-1.1"),
            Self::Sqs => ("sqs", "AmazonSQS", "application/x-amz-json-1.0"),
        }
    }
}

/// The client.
#[derive(Debug, Clone)]
pub struct Aws {
    http: Http,
    endpoint: String,
}

impl Aws {
    /// A client of the stand-in at `endpoint`.
    #[must_use]
    pub fn new(endpoint: &str) -> Self {
        Self { http: Http::default(), endpoint: endpoint.trim_end_matches('/').to_owned() }
    }

    /// Where the stand-in listens.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// One call of an AWS JSON service.
    pub async fn call(&self, service: Service, action: &str, body: &Value) -> Result<Value, AwsError> {
        let (name, prefix, protocol) = service.spelled();
        let call = format!("{name}:{action}");
        let target = format!("{prefix}.{action}");
        let signature = signature(name);
        let headers = [
            ("content-type", protocol),
            ("x-amz-target", target.as_str()),
            ("authorization", signature.as_str()),
        ];
        let url = format!("{}/", self.endpoint);
        let reply = self.http.send(Method::POST, &url, &headers, body.to_string()).await;
        let reply = reply.map_err(|source| AwsError::Http { call: call.clone(), source })?;
        if !reply.status.is_success() {
            return Err(AwsError::Refused { call, status: reply.status.as_u16(), message: reply.text() });
        }
        if reply.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&reply.body).map_err(|source| AwsError::Unreadable { call, source })
    }

    /// The role and the full name of the deployed function with this ending of its name, if there is one.
    pub async fn role_of(&self, function: &str) -> Result<Option<(String, String)>, AwsError> {
        let call = "lambda:ListFunctions".to_owned();
        let url = format!("{}/2015-03-31/functions/", self.endpoint);
        let signature = signature("lambda");
        let reply = self.http.send(Method::GET, &url, &[("authorization", &signature)], String::new()).await;
        let reply = reply.map_err(|source| AwsError::Http { call: call.clone(), source })?;
        if !reply.status.is_success() {
            return Err(AwsError::Refused { call, status: reply.status.as_u16(), message: reply.text() });
        }
        let listed: Value =
            serde_json::from_slice(&reply.body).map_err(|source| AwsError::Unreadable { call, source })?;
        let functions =
            listed.get("Functions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let named = functions.iter().find_map(|found| {
            let name =
                found.get("FunctionName")?.as_str().filter(|name| name.ends_with(&format!("-{function}")))?;
            let (_, role) = found.get("Role")?.as_str()?.rsplit_once('/')?;
            Some((role.to_owned(), name.to_owned()))
        });
        Ok(named)
    }

    /// Invokes a Lambda function, without waiting for its result.
    pub async fn invoke(&self, function: &str, qualifier: Option<&str>, event: &str) -> Result<(), AwsError> {
        let call = format!("lambda:Invoke {function}");
        let mut url = format!("{}/2015-03-31/functions/{function}/invocations", self.endpoint);
        if let Some(qualifier) = qualifier {
            url = format!("{url}?Qualifier={qualifier}");
        }
        let signature = signature("lambda");
        let headers = [
            ("content-type", "application/json"),
            ("x-amz-invocation-type", "Event"),
            ("authorization", &signature),
        ];
        let reply = self.http.send(Method::POST, &url, &headers, event.to_owned()).await;
        let reply = reply.map_err(|source| AwsError::Http { call: call.clone(), source })?;
        if reply.status.is_success() {
            Ok(())
        } else {
            Err(AwsError::Refused { call, status: reply.status.as_u16(), message: reply.text() })
        }
    }
}

/// Looks like a signature, so that the stand-in knows the service.
fn signature(service: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/{service}/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature=0"
    )
}
