//! GitLab's REST API, version 4.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stoker_aws::rest::{Question, Rest, escaped};
use stoker_core::error::CallError;

use super::answer::{Hook, Proposal, STATUS, Status, absent, same, unusable};

/// What Stoker reads (docs/forges.md).
const EVENTS: [&str; 3] = ["push_events", "tag_push_events", "merge_requests_events"];

async fn ask(
    rest: &Rest,
    operation: &'static str,
    method: &str,
    project: &str,
    path: &str,
    body: Option<Value>,
) -> Result<Option<Value>, CallError> {
    let text = body.map(|body| body.to_string());
    let body = text.as_deref().map(|text| ("application/json", text));
    let path = format!("/projects/{}{path}", escaped(project));
    rest.json(Question { operation, method, path: &path, body }).await
}

pub(super) async fn default_branch(rest: &Rest, project: &str) -> Result<String, CallError> {
    let operation = "gitlab:GetProject";
    let answer =
        ask(rest, operation, "GET", project, "", None).await?.ok_or_else(|| absent(operation, project))?;
    answer["default_branch"].as_str().map(str::to_owned).ok_or_else(|| unusable(operation, project))
}

pub(super) async fn file(
    rest: &Rest,
    project: &str,
    branch: &str,
    file: &str,
) -> Result<Option<String>, CallError> {
    let path = format!("/repository/files/{}?ref={}", escaped(file), escaped(branch));
    let answer = ask(rest, "gitlab:GetFile", "GET", project, &path, None).await?;
    let content = answer.and_then(|answer| STANDARD.decode(answer["content"].as_str()?).ok());
    Ok(content.and_then(|bytes| String::from_utf8(bytes).ok()))
}

async fn open(rest: &Rest, project: &str, branch: &str) -> Result<Option<Value>, CallError> {
    let path = format!("/merge_requests?state=opened&source_branch={}", escaped(branch));
    let answer =
        ask(rest, "gitlab:ListMergeRequests", "GET", project, &path, None).await?.unwrap_or_default();
    Ok(answer.as_array().and_then(|all| all.first()).cloned())
}

async fn has_branch(rest: &Rest, project: &str, branch: &str) -> Result<bool, CallError> {
    let path = format!("/repository/branches/{}", escaped(branch));
    Ok(ask(rest, "gitlab:GetBranch", "GET", project, &path, None).await?.is_some())
}

pub(super) async fn propose(rest: &Rest, project: &str, of: Proposal<'_>) -> Result<String, CallError> {
    if !has_branch(rest, project, of.branch).await? {
        let body = json!({"branch": of.branch, "ref": of.base});
        ask(rest, "gitlab:CreateBranch", "POST", project, "/repository/branches", Some(body)).await?;
    }
    if file(rest, project, of.branch, of.file).await?.as_deref() != Some(of.text) {
        let body = json!({"branch": of.branch, "commit_message": of.title, "content": STANDARD.encode(of.text),
            "encoding": "base64"});
        let path = format!("/repository/files/{}", escaped(of.file));
        ask(rest, "gitlab:UpdateFile", "PUT", project, &path, Some(body)).await?;
    }
    let merge_request = if let Some(open) = open(rest, project, of.branch).await? {
        open
    } else {
        let body = json!({"source_branch": of.branch, "target_branch": of.base, "title": of.title,
            "description": of.body, "remove_source_branch": true});
        let made =
            ask(rest, "gitlab:CreateMergeRequest", "POST", project, "/merge_requests", Some(body)).await?;
        made.unwrap_or_default()
    };
    Ok(merge_request["web_url"].as_str().unwrap_or(project).to_owned())
}

pub(super) async fn withdraw(rest: &Rest, project: &str, branch: &str) -> Result<(), CallError> {
    if let Some(open) = open(rest, project, branch).await? {
        let path = format!("/merge_requests/{}", open["iid"]);
        let body = Some(json!({"state_event": "close"}));
        ask(rest, "gitlab:UpdateMergeRequest", "PUT", project, &path, body).await?;
    }
    if has_branch(rest, project, branch).await? {
        let path = format!("/repository/branches/{}", escaped(branch));
        ask(rest, "gitlab:DeleteBranch", "DELETE", project, &path, None).await?;
    }
    Ok(())
}

pub(super) async fn hook(rest: &Rest, project: &str, url: &str) -> Result<Option<Hook>, CallError> {
    let operation = "gitlab:ListHooks";
    let answer = ask(rest, operation, "GET", project, "/hooks?per_page=100", None).await?;
    let answer = answer.ok_or_else(|| absent(operation, project))?;
    let is_same = |hook: &&Value| hook["url"].as_str().is_some_and(|of| same(of, url));
    Ok(answer.as_array().and_then(|hooks| hooks.iter().find(is_same)).map(of))
}

fn of(hook: &Value) -> Hook {
    let is_active = EVENTS.iter().all(|event| hook[*event].as_bool().unwrap_or_default());
    Hook { id: hook["id"].to_string(), is_active }
}

fn settings(url: &str, secret: &str, is_active: bool) -> Value {
    let mut body = json!({"url": url, "enable_ssl_verification": true, "token": secret});
    for event in EVENTS {
        body[event] = is_active.into();
    }
    body
}

/// A webhook of GitLab's cannot be switched off, but one without events sends nothing.
pub(super) async fn make_hook(
    rest: &Rest,
    project: &str,
    url: &str,
    secret: &str,
) -> Result<Hook, CallError> {
    let body = settings(url, secret, false);
    let operation = "gitlab:CreateHook";
    let answer = ask(rest, operation, "POST", project, "/hooks", Some(body)).await?;
    answer.as_ref().map(of).ok_or_else(|| absent(operation, project))
}

pub(super) async fn activate(
    rest: &Rest,
    project: &str,
    hook: &Hook,
    url: &str,
    secret: &str,
) -> Result<(), CallError> {
    let path = format!("/hooks/{}", hook.id);
    ask(rest, "gitlab:UpdateHook", "PUT", project, &path, Some(settings(url, secret, true))).await.map(drop)
}

pub(super) async fn delete_hook(rest: &Rest, project: &str, hook: &Hook) -> Result<(), CallError> {
    ask(rest, "gitlab:DeleteHook", "DELETE", project, &format!("/hooks/{}", hook.id), None).await.map(drop)
}

pub(super) async fn write_status(rest: &Rest, project: &str, of: Status<'_>) -> Result<(), CallError> {
    let Status { commit, text } = of;
    let operation = "gitlab:SetCommitStatus";
    let body = json!({"state": "success", "name": STATUS, "description": text});
    let answer = ask(rest, operation, "POST", project, &format!("/statuses/{commit}"), Some(body)).await?;
    answer.map(drop).ok_or_else(|| absent(operation, project))
}
