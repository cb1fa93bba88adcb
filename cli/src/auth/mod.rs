//! How the tool proves who it is: nobody, Docker's credentials, or for ECR the AWS SDK's.

mod challenge;
mod credentials;
mod docker;
mod ecr;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use stoker_aws::registry::{Authorize, Registry, TokenAsk};
use stoker_core::error::{CallError, Failure};
use stoker_core::partition::registry_region;
use tokio::sync::Mutex;

use challenge::Challenge;
use credentials::Credentials;

/// Renewed this long before it ends.
const TOKEN_MARGIN: Duration = Duration::from_secs(20);
/// How long a token is good when its service does not say.
const TOKEN_LIFE: Duration = Duration::from_mins(1);

/// The user at one registry, and the tokens that were fetched there.
pub(crate) struct Identity {
    host: String,
    login: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Asked for once, when the registry first wants to know.
    credentials: Option<Credentials>,
    /// The registry wants the password itself.
    is_basic: bool,
    /// By scopes.
    tokens: HashMap<String, (String, Instant)>,
}

impl Identity {
    /// Nothing is asked of anybody yet.
    pub(crate) fn new(host: &str, login: &str) -> Self {
        Self { host: host.to_owned(), login: login.to_owned(), state: Mutex::default() }
    }

    fn fail(&self, failure: Failure, why: impl Into<stoker_core::error::Cause>) -> CallError {
        CallError::new("registry:Authenticate", &self.host, failure, why)
    }

    async fn credentials(&self, state: &mut State) -> Result<Credentials, CallError> {
        if let Some(known) = &state.credentials {
            return Ok(known.clone());
        }
        let from_docker = || docker::credentials(&self.login);
        let found = if registry_region(&self.host).is_some() {
            match ecr::credentials(&self.host).await {
                Ok(found) => found,
                // Who has logged in with Docker, as CI does, may have no AWS credentials at hand.
                Err(error) => match from_docker().await {
                    Ok(Credentials::Anonymous) | Err(_) => return Err(error),
                    Ok(found) => found,
                },
            }
        } else {
            from_docker().await.map_err(|error| self.fail(Failure::Refused, error))?
        };
        state.credentials = Some(found.clone());
        Ok(found)
    }

    async fn fetch_token(
        &self,
        registry: &Registry,
        state: &mut State,
        challenge: &Challenge,
        scopes: &[String],
    ) -> Result<(String, Instant), CallError> {
        let credentials = self.credentials(state).await?;
        let mut asked = vec![("service", challenge.service.as_str())];
        let mut scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        scopes.extend(challenge.scope.split(' ').filter(|scope| !scope.is_empty()));
        scopes.sort_unstable();
        scopes.dedup();
        let answer = if let Credentials::RefreshToken(token) = &credentials {
            let scope = scopes.join(" ");
            asked.extend([("grant_type", "refresh_token"), ("client_id", "stoker"), ("scope", &scope)]);
            asked.push(("refresh_token", token));
            let form = Some(challenge::query(&asked));
            registry.token(&TokenAsk { url: &challenge.realm, authorization: None, form }).await?
        } else {
            asked.extend(scopes.iter().map(|scope| ("scope", *scope)));
            let separator = if challenge.realm.contains('?') { '&' } else { '?' };
            let url = format!("{}{separator}{}", challenge.realm, challenge::query(&asked));
            let basic = credentials.basic();
            registry.token(&TokenAsk { url: &url, authorization: basic.as_deref(), form: None }).await?
        };
        let answer: TokenAnswer = serde_json::from_slice(&answer)
            .map_err(|_| self.fail(Failure::Unavailable, "its token service answered no JSON"))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token =
            token.ok_or_else(|| self.fail(Failure::Unavailable, "its token service answered no token"))?;
        let life = answer.expires_in.map_or(TOKEN_LIFE, Duration::from_secs).min(Duration::from_hours(1));
        Ok((token, Instant::now() + life.saturating_sub(TOKEN_MARGIN)))
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// What is to be done at a registry: the identity asks for tokens of just these scopes.
pub(crate) struct Access<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) identity: &'a Identity,
    pub(crate) scopes: Vec<String>,
}

impl Authorize for Access<'_> {
    async fn authorization(&self) -> Result<Option<String>, CallError> {
        let mut state = self.identity.state.lock().await;
        // ECR is known to want a password, so the first request need not be refused.
        if state.is_basic || registry_region(&self.identity.host).is_some() {
            return Ok(self.identity.credentials(&mut state).await?.basic());
        }
        let known = state.tokens.get(&self.scopes.join(" ")).filter(|(_, ends)| Instant::now() < *ends);
        Ok(known.map(|(token, _)| format!("Bearer {token}")))
    }

    async fn challenged(&self, challenges: &[String]) -> Result<Option<String>, CallError> {
        // Held over the fetching: who comes in the meantime waits, and finds the token.
        let mut state = self.identity.state.lock().await;
        let challenges = challenges.iter().filter_map(|text| challenge::parse(text));
        let mut wants_password = false;
        for challenge in challenges {
            match challenge {
                challenge::Scheme::Bearer(challenge) => {
                    let fetched =
                        self.identity.fetch_token(self.registry, &mut state, &challenge, &self.scopes);
                    let (token, ends) = fetched.await?;
                    let header = format!("Bearer {token}");
                    state.tokens.insert(self.scopes.join(" "), (token, ends));
                    return Ok(Some(header));
                }
                challenge::Scheme::Basic => wants_password = true,
            }
        }
        if !wants_password {
            return Ok(None);
        }
        state.is_basic = true;
        Ok(self.identity.credentials(&mut state).await?.basic())
    }
}
