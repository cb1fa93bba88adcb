//! Receives a forge's webhook: checks its signature over the raw bytes, then reads it, then puts Stoker's own event
//! on the bus. Nothing of the body is ever logged.

use aws_lambda_events::lambda_function_urls::{LambdaFunctionUrlRequest, LambdaFunctionUrlResponse};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::CONTENT_TYPE;
use serde_json::json;
use stoker::error::chain;
use stoker::forge::{Meaning, Refusal, github};
use stoker::ports::{Publish, ReadSecrets};

/// Handles one request. It always answers: a forge shows the status to whoever looks at its deliveries.
///
/// | status | when |
/// |---|---|
/// | 202 | an event was put on the bus |
/// | 200 | the webhook is genuine, and nothing that Stoker acts on |
/// | 400 | no event header, or the body is not the JSON of that event |
/// | 401 | no signature, or a wrong one |
/// | 405 | not a POST |
/// | 413 | more than 4 MiB |
/// | 503 | the secret could not be read or the bus did not take the event: deliver it again |
pub async fn handle(
    request: &LambdaFunctionUrlRequest,
    ports: &(impl ReadSecrets + Publish),
) -> LambdaFunctionUrlResponse {
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let delivery = header("x-github-delivery").unwrap_or_default();
    let (status, message) = match answer(request, ports).await {
        Ok(Meaning::Event(event)) => {
            tracing::info!(
                webhook.delivery = delivery,
                webhook.repository = event.repository().map(ToString::to_string),
                event.kind = event.detail_type(),
                "accepted"
            );
            (202, event.detail_type().to_owned())
        }
        Ok(Meaning::Ignored(why)) => {
            tracing::debug!(webhook.delivery = delivery, why, "ignored");
            (200, why.to_owned())
        }
        Err(Failure { status, error }) => {
            tracing::warn!(
                webhook.delivery = delivery,
                http.status = status,
                error = chain(&*error),
                "refused"
            );
            // What failed inside is for the logs; the caller learns only what it can mend.
            (status, if status == 503 { "try again later".to_owned() } else { error.to_string() })
        }
    };
    let mut response = LambdaFunctionUrlResponse::default();
    response.status_code = status;
    response.headers.extend("application/json".parse().map(|json| (CONTENT_TYPE, json)));
    response.body = Some(json!({ "message": message }).to_string());
    response
}

struct Failure {
    status: i64,
    error: Box<dyn std::error::Error>,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Unsigned | Refusal::WrongSignature => 401,
            Refusal::TooLarge(_) => 413,
            Refusal::NoEvent | Refusal::Malformed(_) => 400,
        };
        Self { status, error: refusal.into() }
    }
}

async fn answer(
    request: &LambdaFunctionUrlRequest,
    ports: &(impl ReadSecrets + Publish),
) -> Result<Meaning, Failure> {
    let unavailable = |error: stoker::error::CallError| Failure { status: 503, error: error.into() };
    if request.request_context.http.method.as_deref() != Some("POST") {
        return Err(Failure { status: 405, error: "webhooks are sent by POST".into() });
    }
    let body = request.body.as_deref().unwrap_or_default();
    let body = if request.is_base64_encoded {
        STANDARD.decode(body).map_err(|error| Failure { status: 400, error: error.into() })?
    } else {
        body.as_bytes().to_vec()
    };
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    // Without a signature there is no need to ask for the secret: strangers cost as little as can be.
    let signature = header(github::SIGNATURE_HEADER);
    let secrets = match signature {
        Some(_) => ports.webhook_secrets().await.map_err(unavailable)?,
        None => Vec::new(),
    };
    github::verify(&secrets, signature, &body)?;
    let meaning = github::read(header(github::EVENT_HEADER), &body)?;
    if let Meaning::Event(event) = &meaning {
        ports.publish(std::slice::from_ref(event)).await.map_err(unavailable)?;
    }
    Ok(meaning)
}
