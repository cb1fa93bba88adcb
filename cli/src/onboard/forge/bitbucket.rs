//! Bitbucket Cloud's REST API, version 2.0.

use serde_json::{Value, json};
use stoker_aws::rest::{Question, Rest, escaped};
use stoker_core::error::CallError;

use super::answer::{Hook, Proposal, STATUS, Status, absent, same, unusable};

/// What Stoker reads (docs/forges.md).
const EVENTS: [&str; 6] = [
    "repo:push",
    "pullrequest:created",
    "pullrequest:updated",
    "pullrequest:approved",
    "pullrequest:fulfilled",
    "pullrequest:rejected",
];

async fn ask(
    rest: &Rest,
    operation: &'static str,
    method: &str,
    repository: &str,
    path: &str,
    body: Option<Value>,
) -> Result<Option<Value>, CallError> {
    let text = body.map(|body| body.to_string());
    let body = text.as_deref().map(|text| ("application/json", text));
    let path = format!("/repositories/{repository}{path}");
    rest.json(Question { operation, method, path: &path, body }).await
}

pub(super) async fn default_branch(rest: &Rest, repository: &str) -> Result<String, CallError> {
    let operation = "bitbucket:GetRepository";
    let answer = ask(rest, operation, "GET", repository, "", None).await?;
    let answer = answer.ok_or_else(|| absent(operation, repository))?;
    answer["mainbranch"]["name"].as_str().map(str::to_owned).ok_or_else(|| unusable(operation, repository))
}

async fn head(rest: &Rest, repository: &str, branch: &str) -> Result<Option<String>, CallError> {
    let path = format!("/refs/branches/{}", escaped(branch));
    let answer = ask(rest, "bitbucket:GetBranch", "GET", repository, &path, None).await?;
    Ok(answer.and_then(|answer| answer["target"]["hash"].as_str().map(str::to_owned)))
}

pub(super) async fn file(
    rest: &Rest,
    repository: &str,
    branch: &str,
    file: &str,
) -> Result<Option<String>, CallError> {
    // A branch with a slash in its name is no part of a path here; its head is.
    let Some(head) = head(rest, repository, branch).await? else { return Ok(None) };
    let file = file.split('/').map(escaped).collect::<Vec<_>>().join("/");
    let path = format!("/repositories/{repository}/src/{head}/{file}");
    let question = Question { operation: "bitbucket:GetSource", method: "GET", path: &path, body: None };
    let bytes = rest.bytes(question).await?;
    Ok(bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()))
}

async fn open(rest: &Rest, repository: &str, branch: &str) -> Result<Option<Value>, CallError> {
    let wanted = escaped(&format!("source.branch.name=\"{branch}\" AND state=\"OPEN\""));
    let path = format!("/pullrequests?q={wanted}");
    let answer =
        ask(rest, "bitbucket:ListPullRequests", "GET", repository, &path, None).await?.unwrap_or_default();
    Ok(answer["values"].as_array().and_then(|all| all.first()).cloned())
}

pub(super) async fn propose(rest: &Rest, repository: &str, of: Proposal<'_>) -> Result<String, CallError> {
    if head(rest, repository, of.branch).await?.is_none() {
        let operation = "bitbucket:CreateBranch";
        let base = head(rest, repository, of.base).await?.ok_or_else(|| unusable(operation, repository))?;
        let body = json!({"name": of.branch, "target": {"hash": base}});
        ask(rest, operation, "POST", repository, "/refs/branches", Some(body)).await?;
    }
    if file(rest, repository, of.branch, of.file).await?.as_deref() != Some(of.text) {
        let fields = [(of.file, of.text), ("message", of.title), ("branch", of.branch)];
        let fields = fields.map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
        let form = fields.join("&");
        let path = format!("/repositories/{repository}/src");
        let body = Some(("application/x-www-form-urlencoded", form.as_str()));
        rest.bytes(Question { operation: "bitbucket:CreateCommit", method: "POST", path: &path, body })
            .await?;
    }
    let pull_request = if let Some(open) = open(rest, repository, of.branch).await? {
        open
    } else {
        let body = json!({"title": of.title, "description": of.body, "close_source_branch": true,
            "source": {"branch": {"name": of.branch}}, "destination": {"branch": {"name": of.base}}});
        let operation = "bitbucket:CreatePullRequest";
        ask(rest, operation, "POST", repository, "/pullrequests", Some(body)).await?.unwrap_or_default()
    };
    Ok(pull_request["links"]["html"]["href"].as_str().unwrap_or(repository).to_owned())
}

pub(super) async fn withdraw(rest: &Rest, repository: &str, branch: &str) -> Result<(), CallError> {
    if let Some(open) = open(rest, repository, branch).await? {
        let path = format!("/pullrequests/{}/decline", open["id"]);
        ask(rest, "bitbucket:DeclinePullRequest", "POST", repository, &path, None).await?;
    }
    if head(rest, repository, branch).await?.is_some() {
        let path = format!("/refs/branches/{}", escaped(branch));
        ask(rest, "bitbucket:DeleteBranch", "DELETE", repository, &path, None).await?;
    }
    Ok(())
}

pub(super) async fn hook(rest: &Rest, repository: &str, url: &str) -> Result<Option<Hook>, CallError> {
    let operation = "bitbucket:ListHooks";
    let answer = ask(rest, operation, "GET", repository, "/hooks?pagelen=100", None).await?;
    let answer = answer.ok_or_else(|| absent(operation, repository))?;
    let is_same = |hook: &&Value| hook["url"].as_str().is_some_and(|of| same(of, url));
    Ok(answer["values"].as_array().and_then(|hooks| hooks.iter().find(is_same)).map(of))
}

fn of(hook: &Value) -> Hook {
    Hook {
        id: escaped(hook["uuid"].as_str().unwrap_or_default()),
        is_active: hook["active"].as_bool().unwrap_or_default(),
    }
}

fn settings(url: &str, secret: &str, is_active: bool) -> Value {
    json!({"description": "Stoker", "url": url, "active": is_active, "events": EVENTS, "secret": secret})
}

pub(super) async fn make_hook(
    rest: &Rest,
    repository: &str,
    url: &str,
    secret: &str,
) -> Result<Hook, CallError> {
    let body = settings(url, secret, false);
    let operation = "bitbucket:CreateHook";
    let answer = ask(rest, operation, "POST", repository, "/hooks", Some(body)).await?;
    answer.as_ref().map(of).ok_or_else(|| absent(operation, repository))
}

pub(super) async fn activate(
    rest: &Rest,
    repository: &str,
    hook: &Hook,
    url: &str,
    secret: &str,
) -> Result<(), CallError> {
    let path = format!("/hooks/{}", hook.id);
    ask(rest, "bitbucket:UpdateHook", "PUT", repository, &path, Some(settings(url, secret, true)))
        .await
        .map(drop)
}

pub(super) async fn delete_hook(rest: &Rest, repository: &str, hook: &Hook) -> Result<(), CallError> {
    ask(rest, "bitbucket:DeleteHook", "DELETE", repository, &format!("/hooks/{}", hook.id), None)
        .await
        .map(drop)
}

/// Bitbucket wants an address; there is none but the commit's own.
pub(super) async fn write_status(rest: &Rest, repository: &str, of: Status<'_>) -> Result<(), CallError> {
    let Status { commit, text } = of;
    let operation = "bitbucket:CreateBuildStatus";
    let url = format!("https://bitbucket.org/{repository}/commits/{commit}");
    let body = json!({"key": STATUS, "state": "SUCCESSFUL", "name": STATUS, "description": text, "url": url});
    let path = format!("/commit/{commit}/statuses/build");
    let answer = ask(rest, operation, "POST", repository, &path, Some(body)).await?;
    answer.map(drop).ok_or_else(|| absent(operation, repository))
}
