//! GitHub's REST API, of version 2022-11-28, as GitHub's own description (`OpenAPI`) has it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stoker_aws::rest::{Question, Rest, escaped};
use stoker_core::error::CallError;

use super::answer::{Hook, Proposal, STATUS, Status, absent, same, unusable};

/// What Stoker reads (docs/forges.md).
const EVENTS: [&str; 3] = ["push", "pull_request", "pull_request_review"];
/// How long a ping's answer is waited for.
const LOOKS: u32 = 10;
const BETWEEN: Duration = Duration::from_secs(1);

async fn ask(
    rest: &Rest,
    operation: &'static str,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Result<Option<Value>, CallError> {
    let text = body.map(|body| body.to_string());
    let body = text.as_deref().map(|text| ("application/json", text));
    rest.json(Question { operation, method, path, body }).await
}

/// A path or a branch as parts of an address.
fn parts(path: &str) -> String {
    path.split('/').map(escaped).collect::<Vec<_>>().join("/")
}

pub(super) async fn default_branch(rest: &Rest, repository: &str) -> Result<String, CallError> {
    let operation = "github:GetRepository";
    let answer = ask(rest, operation, "GET", &format!("/repos/{repository}"), None).await?;
    let answer = answer.ok_or_else(|| absent(operation, repository))?;
    answer["default_branch"].as_str().map(str::to_owned).ok_or_else(|| unusable(operation, repository))
}

/// A file's text, and the hash of its content.
pub(super) async fn file(
    rest: &Rest,
    repository: &str,
    branch: &str,
    file: &str,
) -> Result<Option<(String, String)>, CallError> {
    let path = format!("/repos/{repository}/contents/{}?ref={}", parts(file), escaped(branch));
    let Some(answer) = ask(rest, "github:GetContent", "GET", &path, None).await? else { return Ok(None) };
    let (Some(content), Some(sha)) = (answer["content"].as_str(), answer["sha"].as_str()) else {
        return Ok(None);
    };
    let content: String = content.split_whitespace().collect();
    let text = STANDARD.decode(content).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(text.map(|text| (text, sha.to_owned())))
}

async fn head(rest: &Rest, repository: &str, branch: &str) -> Result<Option<String>, CallError> {
    let path = format!("/repos/{repository}/git/ref/heads/{}", parts(branch));
    let answer = ask(rest, "github:GetRef", "GET", &path, None).await?;
    Ok(answer.and_then(|answer| answer["object"]["sha"].as_str().map(str::to_owned)))
}

async fn open(rest: &Rest, repository: &str, branch: &str) -> Result<Option<Value>, CallError> {
    let owner = repository.split('/').next().unwrap_or_default();
    let path = format!("/repos/{repository}/pulls?state=open&head={}", escaped(&format!("{owner}:{branch}")));
    let answer = ask(rest, "github:ListPullRequests", "GET", &path, None).await?.unwrap_or_default();
    Ok(answer.as_array().and_then(|all| all.first()).cloned())
}

pub(super) async fn propose(rest: &Rest, repository: &str, of: Proposal<'_>) -> Result<String, CallError> {
    if head(rest, repository, of.branch).await?.is_none() {
        let operation = "github:CreateRef";
        let base = head(rest, repository, of.base).await?.ok_or_else(|| unusable(operation, repository))?;
        let body = json!({"ref": format!("refs/heads/{}", of.branch), "sha": base});
        ask(rest, operation, "POST", &format!("/repos/{repository}/git/refs"), Some(body)).await?;
    }
    let there = file(rest, repository, of.branch, of.file).await?;
    if there.as_ref().is_none_or(|(text, _)| text != of.text) {
        let mut body = json!({"message": of.title, "content": STANDARD.encode(of.text), "branch": of.branch});
        if let Some((_, sha)) = there {
            body["sha"] = sha.into();
        }
        let path = format!("/repos/{repository}/contents/{}", parts(of.file));
        ask(rest, "github:PutContent", "PUT", &path, Some(body)).await?;
    }
    let pull_request = if let Some(open) = open(rest, repository, of.branch).await? {
        open
    } else {
        let body = json!({"title": of.title, "head": of.branch, "base": of.base, "body": of.body});
        let path = format!("/repos/{repository}/pulls");
        ask(rest, "github:CreatePullRequest", "POST", &path, Some(body)).await?.unwrap_or_default()
    };
    Ok(pull_request["html_url"].as_str().unwrap_or(repository).to_owned())
}

pub(super) async fn withdraw(rest: &Rest, repository: &str, branch: &str) -> Result<(), CallError> {
    if let Some(open) = open(rest, repository, branch).await? {
        let path = format!("/repos/{repository}/pulls/{}", open["number"]);
        ask(rest, "github:UpdatePullRequest", "PATCH", &path, Some(json!({"state": "closed"}))).await?;
    }
    if head(rest, repository, branch).await?.is_some() {
        let path = format!("/repos/{repository}/git/refs/heads/{}", parts(branch));
        ask(rest, "github:DeleteRef", "DELETE", &path, None).await?;
    }
    Ok(())
}

pub(super) async fn hook(rest: &Rest, repository: &str, url: &str) -> Result<Option<Hook>, CallError> {
    let operation = "github:ListHooks";
    let path = format!("/repos/{repository}/hooks?per_page=100");
    let answer =
        ask(rest, operation, "GET", &path, None).await?.ok_or_else(|| absent(operation, repository))?;
    let hooks = answer.as_array().cloned().unwrap_or_default();
    let found = hooks.iter().find(|hook| hook["config"]["url"].as_str().is_some_and(|of| same(of, url)));
    Ok(found.map(of))
}

fn of(hook: &Value) -> Hook {
    Hook { id: hook["id"].to_string(), is_active: hook["active"].as_bool().unwrap_or_default() }
}

fn config(url: &str, secret: &str) -> Value {
    json!({"url": url, "content_type": "json", "secret": secret, "insecure_ssl": "0"})
}

pub(super) async fn make_hook(
    rest: &Rest,
    repository: &str,
    url: &str,
    secret: &str,
) -> Result<Hook, CallError> {
    let body = json!({"name": "web", "active": false, "events": EVENTS, "config": config(url, secret)});
    let operation = "github:CreateHook";
    let answer = ask(rest, operation, "POST", &format!("/repos/{repository}/hooks"), Some(body)).await?;
    answer.as_ref().map(of).ok_or_else(|| absent(operation, repository))
}

pub(super) async fn ping(rest: &Rest, repository: &str, hook: &Hook) -> Result<bool, CallError> {
    let path = format!("/repos/{repository}/hooks/{}", hook.id);
    ask(rest, "github:PingHook", "POST", &format!("{path}/pings"), None).await?;
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(BETWEEN).await;
        }
        let answer =
            ask(rest, "github:ListDeliveries", "GET", &format!("{path}/deliveries?per_page=100"), None)
                .await?;
        let deliveries = answer.unwrap_or_default();
        let is_answered = |delivery: &Value| {
            delivery["event"] == "ping"
                && delivery["status_code"].as_u64().is_some_and(|code| (200..300).contains(&code))
        };
        if deliveries.as_array().is_some_and(|all| all.iter().any(is_answered)) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) async fn activate(
    rest: &Rest,
    repository: &str,
    hook: &Hook,
    url: &str,
    secret: &str,
) -> Result<(), CallError> {
    let path = format!("/repos/{repository}/hooks/{}", hook.id);
    let body = json!({"active": true, "config": config(url, secret)});
    ask(rest, "github:UpdateHook", "PATCH", &path, Some(body)).await.map(drop)
}

pub(super) async fn delete_hook(rest: &Rest, repository: &str, hook: &Hook) -> Result<(), CallError> {
    let path = format!("/repos/{repository}/hooks/{}", hook.id);
    ask(rest, "github:DeleteHook", "DELETE", &path, None).await.map(drop)
}

pub(super) async fn write_status(rest: &Rest, repository: &str, of: Status<'_>) -> Result<(), CallError> {
    let Status { commit, text } = of;
    let operation = "github:CreateStatus";
    let body = json!({"state": "success", "context": STATUS, "description": text});
    let path = format!("/repos/{repository}/statuses/{commit}");
    let answer = ask(rest, operation, "POST", &path, Some(body)).await?;
    answer.map(drop).ok_or_else(|| absent(operation, repository))
}
