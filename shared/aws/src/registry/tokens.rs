//! The service that a registry sends its clients to for a token.

use bytes::Bytes;

use super::http::{Ask, Call};
use super::{Anonymous, Registry};
use stoker_core::error::{CallError, Failure};

/// Far more than any token has.
const LIMIT: usize = 256 << 10;

/// What a token service is asked.
pub struct TokenAsk<'a> {
    /// The whole address, with its query.
    pub url: &'a str,
    /// The `Authorization` header, for a client with a password.
    pub authorization: Option<&'a str>,
    /// Fields of a form to post, for a client with a refresh token.
    pub form: Option<String>,
}

impl Registry {
    /// The token service's answer, JSON. The registry chose the address, so it must be as safe as the registry's own.
    pub async fn token(&self, ask: &TokenAsk<'_>) -> Result<Bytes, CallError> {
        let subject = ask.url.split('?').next().unwrap_or_default().chars().take(100).collect();
        let call = Call { operation: "registry:GetToken", subject };
        if !self.is_safe(ask.url) {
            return Err(call.fail(Failure::Refused, "the registry's token service is not HTTPS"));
        }
        let mut headers = vec![("accept", "application/json")];
        headers.extend(ask.authorization.map(|value| ("authorization", value)));
        let method = if ask.form.is_some() { "POST" } else { "GET" };
        headers.extend(ask.form.is_some().then_some(("content-type", "application/x-www-form-urlencoded")));
        let body = ask.form.clone().map(Bytes::from);
        let ask = Ask { headers: &headers, body, ..Ask::new(method, ask.url) };
        let response = self.send(&Anonymous, &call, &ask).await?;
        let response = call.expect_success(response).await?;
        call.body(response, LIMIT).await
    }
}
