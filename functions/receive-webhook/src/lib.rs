//! Receives a forge's webhook: checks its signature over the raw bytes, then reads it, then puts Stoker's own events
//! on the bus. Of the body nothing is logged but the name in it that is not valid, where one is not.

use std::collections::HashMap;
use std::sync::Mutex;

use aws_lambda_events::lambda_function_urls::{LambdaFunctionUrlRequest, LambdaFunctionUrlResponse};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::CONTENT_TYPE;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use stoker_core::error::{CallError, chain};
use stoker_core::event::{Event, WebhookRefused};
use stoker_core::forge::{self, Forge, Meaning, Refusal};
use stoker_core::policy::Policy;
use stoker_core::ports::{Publish, ReadSecrets};
use stoker_lambda::metrics::{self, Metric};

/// How often people are notified of refusals for the same reason.
const REPORT_EVERY: SignedDuration = SignedDuration::from_hours(1);

/// The refusals that people were notified of last, for as long as this instance of the function lives.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<&'static str, Timestamp>>);

impl Refusals {
    /// Whether nobody was notified of this reason within the last hour; from now on somebody was.
    fn is_news(&self, reason: &'static str, now: Timestamp) -> bool {
        let Ok(mut notified) = self.0.lock() else { return false };
        let recent = notified.get(reason).is_some_and(|at| now.duration_since(*at).abs() < REPORT_EVERY);
        if !recent {
            notified.insert(reason, now);
        }
        !recent
    }
}

/// Handles one request. It always answers: a forge shows the status to whoever looks at its deliveries.
///
/// | status | when |
/// |---|---|
/// | 202 | events were put on the bus |
/// | 200 | the webhook is genuine, and nothing that Stoker acts on |
/// | 400 | no forge's event header; a form; a body that is no JSON of that event or names what Stoker does not take |
/// | 401 | no signature, or a wrong one |
/// | 403 | genuine, but too old, as somebody may be sending it again; or its repository has not the id in the policy |
/// | 405 | not a POST |
/// | 413 | more than 4 MiB |
/// | 503 | the secret could not be read or the bus did not take the events: deliver it again |
///
/// A 503 is counted as well: forges deliver again only when somebody presses the button. Refusals are counted, and
/// people are notified of those of requests that carried a signature.
pub async fn handle(
    request: &LambdaFunctionUrlRequest,
    policy: &Policy,
    ports: &(impl ReadSecrets + Publish),
    refusals: &Refusals,
    now: Timestamp,
) -> LambdaFunctionUrlResponse {
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let sender = Forge::of(&header);
    let forge = sender.map_or("unknown", Forge::name);
    let delivery = sender.and_then(|forge| forge.delivery(&header)).unwrap_or_default();
    let (status, message) = match answer(request, sender, policy, ports, now).await {
        Ok(Meaning::Events(events)) => {
            for event in &events {
                event.span().in_scope(|| {
                    tracing::info!(webhook.forge = forge, webhook.delivery = delivery, "accepted");
                });
            }
            metrics::put(now, &[forge], &[(Metric::WebhooksAccepted, 1)]);
            (202, events.iter().map(Event::detail_type).collect::<Vec<_>>().join(", "))
        }
        Ok(Meaning::Ignored(why)) => {
            tracing::debug!(webhook.forge = forge, webhook.delivery = delivery, why, "ignored");
            metrics::put(now, &[forge], &[(Metric::WebhooksAccepted, 1)]);
            (200, why.to_owned())
        }
        Err(failure) => {
            let (status, error) = (failure.status(), chain(&failure));
            tracing::warn!(
                webhook.forge = forge,
                webhook.delivery = delivery,
                http.status = status,
                error,
                "refused"
            );
            if let Failure::Unavailable(_) = &failure {
                metrics::put(now, &[forge], &[(Metric::WebhooksFailed, 1)]);
            }
            if let Failure::Refused(refusal) = &failure {
                metrics::put(now, &[forge, refusal.reason()], &[(Metric::WebhooksRefused, 1)]);
                let signed = sender.is_some_and(|forge| forge::is_signed(forge, &header));
                if signed {
                    // Strangers seldom sign: what does is a forge whose webhook somebody has to repair.
                    metrics::put(now, &[forge], &[(Metric::SignedWebhooksRefused, 1)]);
                }
                if signed && refusals.is_news(refusal.reason(), now) {
                    report(forge, refusal, ports).await;
                }
            }
            // What failed inside is for the logs; the caller learns only what it can repair.
            let repairable = !matches!(failure, Failure::Unavailable(_));
            (status, if repairable { failure.to_string() } else { "try again later".to_owned() })
        }
    };
    let mut response = LambdaFunctionUrlResponse::default();
    response.status_code = status;
    response.headers.extend("application/json".parse().map(|json| (CONTENT_TYPE, json)));
    response.body = Some(json!({ "message": message }).to_string());
    response
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("webhooks are sent by POST")]
    NotPost,
    #[error("the body is not base64")]
    NotBase64(#[source] base64::DecodeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Unavailable(#[from] CallError),
}

impl Failure {
    fn status(&self) -> i64 {
        match self {
            Self::NotPost => 405,
            Self::NotBase64(_)
            | Self::Refused(
                Refusal::NoEvent
                | Refusal::Form
                | Refusal::NotJson(_)
                | Refusal::Malformed(_)
                | Refusal::Unsupported(_),
            ) => 400,
            Self::Refused(Refusal::Unsigned | Refusal::WrongSignature) => 401,
            Self::Refused(Refusal::Stale | Refusal::OtherRepository { .. }) => 403,
            Self::Refused(Refusal::TooLarge(_)) => 413,
            Self::Unavailable(_) => 503,
        }
    }
}

async fn answer(
    request: &LambdaFunctionUrlRequest,
    sender: Option<Forge>,
    policy: &Policy,
    ports: &(impl ReadSecrets + Publish),
    now: Timestamp,
) -> Result<Meaning, Failure> {
    if request.request_context.http.method.as_deref() != Some("POST") {
        return Err(Failure::NotPost);
    }
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let forge = sender.ok_or(Refusal::NoEvent)?;
    let event = forge.event_name(&header).ok_or(Refusal::NoEvent)?;
    let body = request.body.as_deref().unwrap_or_default();
    let body = if request.is_base64_encoded {
        STANDARD.decode(body).map_err(Failure::NotBase64)?
    } else {
        body.as_bytes().to_vec()
    };
    // Without a signature there is no need to ask for the secret: strangers cost as little as can be.
    let signed = forge::is_signed(forge, &header);
    let secrets = if signed { ports.webhook_secrets(false).await? } else { Vec::new() };
    match forge::verify(forge, &secrets, &header, &body, now) {
        Err(Refusal::WrongSignature) if signed => {
            // The secret may have been changed since it was read.
            let secrets = ports.webhook_secrets(true).await?;
            forge::verify(forge, &secrets, &header, &body, now)?;
        }
        verified => verified?,
    }
    let mut meaning = forge::read(forge, event, &body, &forge::default_branches(policy))?;
    if let Meaning::Events(events) = &mut meaning {
        forge::check_repository(policy, forge, &body, events)?;
        for event in events.iter_mut() {
            forge::check_age(event, now)?;
        }
        ports.publish(events).await?;
    }
    Ok(meaning)
}

/// Notifies people of a refusal, as far as the bus takes it: the forge gets the same answer either way.
async fn report(forge: &str, refusal: &Refusal, ports: &impl Publish) {
    let refused = WebhookRefused { forge: forge.to_owned(), why: refusal.to_string() };
    if let Err(error) = ports.publish(&[Event::WebhookRefused(refused)]).await {
        tracing::warn!(error = chain(&error), "nobody is notified of the refusal");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn people_are_notified_of_a_reason_once_an_hour() {
        let refusals = Refusals::default();
        let start: Timestamp = "2026-11-21T08:00:00Z".parse().unwrap();
        let at = |seconds| start + SignedDuration::from_secs(seconds);
        assert!(refusals.is_news("stale", at(0)));
        assert!(!refusals.is_news("stale", at(3599)));
        assert!(refusals.is_news("malformed", at(3599)));
        assert!(refusals.is_news("stale", at(3600)));
        assert!(!refusals.is_news("stale", at(3601)));
    }

    /// The ports, with the secret as it is remembered and as it is now.
    #[derive(Default)]
    struct Account {
        remembered: &'static str,
        now: &'static str,
        reads: RefCell<Vec<bool>>,
        notices: RefCell<Vec<Event>>,
    }

    impl ReadSecrets for Account {
        async fn webhook_secrets(&self, anew: bool) -> Result<Vec<Vec<u8>>, CallError> {
            self.reads.borrow_mut().push(anew);
            Ok(vec![if anew { self.now } else { self.remembered }.into()])
        }
    }

    impl Publish for Account {
        async fn publish(&self, events: &[Event]) -> Result<(), CallError> {
            self.notices.borrow_mut().extend_from_slice(events);
            Ok(())
        }
    }

    /// What a webhook of GitHub's with this signature is answered.
    async fn deliver(account: &Account, refusals: &Refusals, signature: &str) -> i64 {
        let mut request = LambdaFunctionUrlRequest::default();
        request.request_context.http.method = Some("POST".to_owned());
        for (name, value) in [("x-github-event", "star"), ("x-hub-signature-256", signature)] {
            request.headers.insert(name, value.parse().unwrap());
        }
        request.body = Some("{}".to_owned());
        let policy = Policy::parse("the test's policy", "version: 1").unwrap();
        let now = "2026-11-21T08:00:00Z".parse().unwrap();
        handle(&request, &policy, account, refusals, now).await.status_code
    }

    #[tokio::test]
    async fn attack_signatures_that_are_made_up() {
        let (account, refusals) =
            (Account { remembered: "a", now: "a", ..Account::default() }, Refusals::default());
        for made_up in ["x", "sha256=", "sha256=00", "sha1=0000000000000000000000000000000000000000"] {
            assert_eq!(deliver(&account, &refusals, made_up).await, 401, "{made_up}");
        }
        assert!(account.reads.borrow().is_empty(), "no secret is read for what no forge sends");
        assert!(account.notices.borrow().is_empty(), "and nobody is notified");
        for number in 0..100 {
            assert_eq!(deliver(&account, &refusals, &format!("sha256={number:064x}")).await, 401);
        }
        assert_eq!(account.notices.borrow().len(), 1, "one notice for all of them");
    }

    #[tokio::test]
    async fn a_secret_that_was_changed_is_read_once_more() {
        let account = Account { remembered: "old", now: "new", ..Account::default() };
        // HMAC-SHA256 of `{}` by `new`.
        let signature = "sha256=56fde440898b2046eee6f58816ea81c5780d6bd5d34d1ce41b99d54edacbc4b8";
        assert_eq!(deliver(&account, &Refusals::default(), signature).await, 200);
        assert_eq!(*account.reads.borrow(), [false, true]);
    }
}
