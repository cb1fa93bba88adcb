//! Forges in memory, as their REST APIs: they refuse what the published descriptions refuse.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::aws::Fuse;

pub(crate) const TOKEN: &str = "token-that-nobody-prints";
pub(crate) const SECRET: &str = "hook-secret";

/// What a forge keeps of a repository.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Repository {
    /// Files by branch.
    pub(crate) branches: BTreeMap<String, BTreeMap<String, String>>,
    /// Pull requests: branch, base, and whether they are open.
    pub(crate) pulls: Vec<(String, String, bool)>,
    /// Webhooks by their number: address, secret, whether they send.
    pub(crate) hooks: BTreeMap<u64, (String, String, bool)>,
}

#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) repository: Repository,
    /// Whether pings reach Stoker.
    pub(crate) is_deaf: bool,
    /// The statuses of commits, by the commit and what they are called.
    pub(crate) statuses: BTreeMap<(String, String), String>,
    pinged: Vec<u64>,
    pub(crate) fuse: Option<Arc<Fuse>>,
    /// Method and path of what was asked.
    pub(crate) calls: Vec<String>,
}

/// A forge with the repository `example/app`, whose default branch is `main`.
pub(crate) struct Forge {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<Kept>>,
}

impl Forge {
    pub(crate) async fn start(kind: &'static str, files: &[(&str, &str)]) -> Self {
        let mut state = Kept::default();
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        state.repository.branches.insert("main".to_owned(), files.collect());
        let state = Arc::new(Mutex::new(state));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = move |State(state): State<Arc<Mutex<Kept>>>,
                            method: Method,
                            uri: Uri,
                            headers: HeaderMap,
                            body: Bytes| async move {
            let (response, fuse) = {
                let mut state = state.lock().unwrap();
                state.calls.push(format!("{method} {uri}"));
                let token = headers.get("authorization").and_then(|value| value.to_str().ok());
                let answer = if token == Some(&format!("Bearer {TOKEN}")) {
                    let path = uri.path().to_owned();
                    let query = unescaped(uri.query().unwrap_or_default());
                    match kind {
                        "github" => github(&mut state, &method, &path, &query, &body),
                        "gitlab" => gitlab(&mut state, &method, &path, &query, &body),
                        _ => bitbucket(&mut state, &method, &path, &query, &body),
                    }
                } else {
                    // A careless forge says the token back.
                    Err((401, format!("bad credentials: {}", token.unwrap_or_default())))
                };
                let response: Response = match answer {
                    Ok(Value::String(text)) => text.into_response(),
                    Ok(Value::Null) => StatusCode::NO_CONTENT.into_response(),
                    Ok(json) => ([("content-type", "application/json")], json.to_string()).into_response(),
                    Err((code, why)) => {
                        (StatusCode::from_u16(code).unwrap(), json!({ "message": why }).to_string())
                            .into_response()
                    }
                };
                (response, state.fuse.clone())
            };
            if fuse.is_some_and(|fuse| fuse.blows()) {
                std::future::pending::<()>().await;
            }
            response
        };
        let router = Router::new().fallback(handler).with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, Kept> {
        self.state.lock().unwrap()
    }
}

type Answer = Result<Value, (u16, String)>;

fn refused(code: u16, why: &str) -> Answer {
    Err((code, why.to_owned()))
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// The hash of a text, as a forge would name it.
fn sha(text: &str) -> String {
    stoker_core::names::Digest::of(text.as_bytes()).to_string()[7..47].to_owned()
}

fn head(state: &Kept, branch: &str) -> String {
    sha(&format!("{:?}", state.repository.branches[branch]))
}

/// Keeps a commit's status; each forge names the name and the state its own way.
fn status(state: &mut Kept, asked: &Value, commit: &str, name: &str, good: &str) -> Answer {
    let text = |field: &str| asked[field].as_str().unwrap_or_default().to_owned();
    if commit.len() != 40 || text("state") != good {
        return refused(422, "No commit found for SHA, or a state that is none");
    }
    if text("description").chars().count() > 140 || text(name).len() > 40 {
        return refused(422, "description is too long (maximum is 140 characters)");
    }
    state.statuses.insert((commit.to_owned(), text(name)), text("description"));
    Ok(json!({}))
}

/// Fields that have to be there, of these kinds.
fn required(body: &Value, fields: &[&str]) -> Result<(), (u16, String)> {
    match fields.iter().find(|field| body.pointer(&format!("/{field}")).is_none_or(Value::is_null)) {
        Some(field) => Err((422, format!("Invalid request: {field} wasn't supplied"))),
        None => Ok(()),
    }
}

#[expect(clippy::too_many_lines, reason = "an arm for each call")]
fn github(state: &mut Kept, method: &Method, path: &str, query: &str, body: &[u8]) -> Answer {
    const BASE: &str = "/repos/example/app";
    let asked: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap() };
    let Some(rest) = path.strip_prefix(BASE) else { return refused(404, "Not Found") };
    let text = |field: &str| asked[field].as_str().unwrap_or_default().to_owned();
    let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
    match (method.as_str(), parts.as_slice()) {
        ("GET", [""]) => Ok(json!({"default_branch": "main"})),
        ("GET", ["contents", file @ ..]) => {
            let branch = query.strip_prefix("ref=").unwrap();
            let found = state.repository.branches.get(branch).and_then(|files| files.get(&file.join("/")));
            let Some(found) = found else { return refused(404, "Not Found") };
            let mut content = STANDARD.encode(found);
            content.insert(content.len().min(60), '\n');
            Ok(json!({"content": content, "encoding": "base64", "sha": sha(found)}))
        }
        ("PUT", ["contents", file @ ..]) => {
            required(&asked, &["message", "content"])?;
            let new =
                String::from_utf8(STANDARD.decode(text("content")).map_err(|_| (422, "content".to_owned()))?)
                    .unwrap();
            let Some(files) = state.repository.branches.get_mut(&text("branch")) else {
                return refused(404, "Branch not found");
            };
            let old = files.get(&file.join("/")).map(|old| sha(old));
            if old.as_deref() != asked["sha"].as_str() {
                return refused(409, "is at another sha");
            }
            files.insert(file.join("/"), new);
            Ok(json!({"commit": {}}))
        }
        ("GET", ["git", "ref", "heads", branch]) => {
            if state.repository.branches.contains_key(*branch) {
                Ok(json!({"object": {"sha": head(state, branch)}}))
            } else {
                refused(404, "Not Found")
            }
        }
        ("POST", ["git", "refs"]) => {
            required(&asked, &["ref", "sha"])?;
            let reference = text("ref");
            let Some(branch) = reference.strip_prefix("refs/heads/") else {
                return refused(422, "not a ref");
            };
            if state.repository.branches.contains_key(branch) {
                return refused(422, "Reference already exists");
            }
            if text("sha") != head(state, "main") {
                return refused(422, "Object does not exist");
            }
            let files = state.repository.branches["main"].clone();
            state.repository.branches.insert(branch.to_owned(), files);
            Ok(json!({"ref": reference}))
        }
        ("DELETE", ["git", "refs", "heads", branch]) => match state.repository.branches.remove(*branch) {
            Some(_) => Ok(Value::Null),
            None => refused(422, "Reference does not exist"),
        },
        ("GET", ["pulls"]) => {
            let branch = query.split("head=example:").nth(1).unwrap();
            let all = state.repository.pulls.iter().enumerate();
            let open = all.filter(|(_, pull)| pull.0 == branch && pull.2);
            Ok(open
                .map(|(at, _)| {
                    json!({"number": at + 1,
                "html_url": format!("https://github.com/example/app/pull/{}", at + 1)})
                })
                .collect())
        }
        ("POST", ["pulls"]) => {
            required(&asked, &["title", "head", "base"])?;
            let (branch, base) = (text("head"), text("base"));
            if state.repository.pulls.iter().any(|pull| pull.0 == branch && pull.2) {
                return refused(422, "A pull request already exists");
            }
            if state.repository.branches.get(&branch) == state.repository.branches.get(&base) {
                return refused(422, "No commits between them");
            }
            state.repository.pulls.push((branch, base, true));
            Ok(json!({"number": 1, "html_url": "https://github.com/example/app/pull/1"}))
        }
        ("PATCH", ["pulls", number]) => {
            let number: usize = number.parse().unwrap();
            state.repository.pulls[number - 1].2 = text("state") == "open";
            Ok(json!({}))
        }
        ("GET", ["hooks"]) => {
            let hook = |(id, (url, _, active)): (&u64, &(String, String, bool))| {
                json!({"id": id,
                "active": active, "config": {"url": url, "secret": "********"}})
            };
            Ok(state.repository.hooks.iter().map(hook).collect())
        }
        ("POST", ["hooks"]) => {
            required(&asked, &["config/url"])?;
            if text("name") != "web"
                || asked["config"]["content_type"] != "json"
                || !asked["events"].is_array()
            {
                return refused(422, "Validation Failed");
            }
            let (url, secret) =
                (asked["config"]["url"].as_str().unwrap(), asked["config"]["secret"].as_str().unwrap());
            if state.repository.hooks.values().any(|hook| hook.0 == url) {
                return refused(422, "Hook already exists on this repository");
            }
            let active = asked["active"].as_bool().unwrap_or(true);
            state.repository.hooks.insert(42, (url.to_owned(), secret.to_owned(), active));
            Ok(json!({"id": 42, "active": active}))
        }
        ("POST", ["hooks", id, "pings"]) => {
            state.pinged.push(id.parse().unwrap());
            Ok(Value::Null)
        }
        ("GET", ["hooks", id, "deliveries"]) => {
            let code = if state.is_deaf { 401 } else { 200 };
            let of = state.pinged.iter().filter(|pinged| pinged.to_string() == *id);
            Ok(of.map(|_| json!({"event": "ping", "status_code": code})).collect())
        }
        ("PATCH", ["hooks", id]) => {
            let Some(hook) = state.repository.hooks.get_mut(&id.parse().unwrap()) else {
                return refused(404, "Not Found");
            };
            // A config takes the place of the one that was there, secret and all.
            if let Some(config) = asked.get("config") {
                hook.1 = config["secret"].as_str().unwrap_or_default().to_owned();
            }
            hook.2 = asked["active"].as_bool().unwrap_or(hook.2);
            Ok(json!({"id": 42}))
        }
        ("DELETE", ["hooks", id]) => match state.repository.hooks.remove(&id.parse().unwrap()) {
            Some(_) => Ok(Value::Null),
            None => refused(404, "Not Found"),
        },
        ("POST", ["statuses", commit]) => {
            required(&asked, &["state"])?;
            status(state, &asked, commit, "context", "success")
        }
        _ => panic!("nobody may call {method} {path}"),
    }
}

fn gitlab(state: &mut Kept, method: &Method, path: &str, query: &str, body: &[u8]) -> Answer {
    let asked: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap() };
    let Some(rest) = path.strip_prefix("/projects/example%2Fapp") else {
        return refused(404, "404 Project Not Found");
    };
    let text = |field: &str| asked[field].as_str().unwrap_or_default().to_owned();
    let parts: Vec<String> = rest.trim_start_matches('/').split('/').map(unescaped).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match (method.as_str(), parts.as_slice()) {
        ("GET", [""]) => Ok(json!({"default_branch": "main"})),
        ("GET", ["repository", "files", file]) => {
            let branch = query.strip_prefix("ref=").unwrap();
            let found = state.repository.branches.get(branch).and_then(|files| files.get(*file));
            found.map_or(refused(404, "404 File Not Found"), |found| {
                Ok(json!({"content": STANDARD.encode(found)}))
            })
        }
        ("PUT", ["repository", "files", file]) => {
            required(&asked, &["branch", "commit_message", "content"])?;
            let new = String::from_utf8(STANDARD.decode(text("content")).unwrap()).unwrap();
            let Some(files) = state.repository.branches.get_mut(&text("branch")) else {
                return refused(400, "no branch");
            };
            files.insert((*file).to_owned(), new);
            Ok(json!({"branch": text("branch")}))
        }
        ("GET", ["repository", "branches", branch]) => {
            if state.repository.branches.contains_key(*branch) {
                Ok(json!({ "name": branch }))
            } else {
                refused(404, "404 Branch Not Found")
            }
        }
        ("POST", ["repository", "branches"]) => {
            required(&asked, &["branch", "ref"])?;
            if state.repository.branches.contains_key(&text("branch")) {
                return refused(400, "Branch already exists");
            }
            let files = state.repository.branches[&text("ref")].clone();
            state.repository.branches.insert(text("branch"), files);
            Ok(json!({"name": text("branch")}))
        }
        ("DELETE", ["repository", "branches", branch]) => {
            state.repository.branches.remove(*branch);
            Ok(Value::Null)
        }
        ("GET", ["merge_requests"]) => {
            let branch = query.split("source_branch=").nth(1).unwrap();
            let all = state.repository.pulls.iter().enumerate();
            let open = all.filter(|(_, pull)| pull.0 == branch && pull.2);
            Ok(open.map(|(at, _)| json!({"iid": at + 1, "web_url": "https://gitlab.com/x"})).collect())
        }
        ("POST", ["merge_requests"]) => {
            required(&asked, &["source_branch", "target_branch", "title"])?;
            if state.repository.pulls.iter().any(|pull| pull.0 == text("source_branch") && pull.2) {
                return refused(409, "Another open merge request already exists");
            }
            state.repository.pulls.push((text("source_branch"), text("target_branch"), true));
            Ok(json!({"iid": 1, "web_url": "https://gitlab.com/x"}))
        }
        ("PUT", ["merge_requests", iid]) => {
            let at: usize = iid.parse().unwrap();
            state.repository.pulls[at - 1].2 = text("state_event") != "close";
            Ok(json!({}))
        }
        ("GET", ["hooks"]) => {
            let hook = |(id, (url, _, active)): (&u64, &(String, String, bool))| {
                json!({"id": id, "url": url,
                "push_events": active, "tag_push_events": active, "merge_requests_events": active})
            };
            Ok(state.repository.hooks.iter().map(hook).collect())
        }
        ("POST", ["hooks"]) | ("PUT", ["hooks", _]) => {
            required(&asked, &["url"])?;
            let active = asked["push_events"].as_bool().unwrap_or(true);
            // What a change does not say again is forgotten.
            state.repository.hooks.insert(42, (text("url"), text("token"), active));
            Ok(json!({"id": 42, "push_events": active}))
        }
        ("DELETE", ["hooks", id]) => {
            state.repository.hooks.remove(&id.parse().unwrap());
            Ok(Value::Null)
        }
        ("POST", ["statuses", commit]) => {
            required(&asked, &["state"])?;
            status(state, &asked, commit, "name", "success")
        }
        _ => panic!("nobody may call {method} {path}"),
    }
}

fn bitbucket(state: &mut Kept, method: &Method, path: &str, query: &str, body: &[u8]) -> Answer {
    let Some(rest) = path.strip_prefix("/repositories/example/app") else {
        return refused(404, "Repository not found");
    };
    let parts: Vec<String> = rest.trim_start_matches('/').split('/').map(unescaped).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |pointer: &str| asked.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    match (method.as_str(), parts.as_slice()) {
        ("GET", [""]) => Ok(json!({"mainbranch": {"name": "main"}})),
        ("GET", ["refs", "branches", branch]) => {
            if state.repository.branches.contains_key(*branch) {
                Ok(json!({"target": {"hash": head(state, branch)}}))
            } else {
                refused(404, "Branch not found")
            }
        }
        ("POST", ["refs", "branches"]) => {
            required(&asked, &["name", "target/hash"])?;
            let files = state.repository.branches["main"].clone();
            state.repository.branches.insert(text("/name"), files);
            Ok(json!({}))
        }
        ("DELETE", ["refs", "branches", branch]) => {
            state.repository.branches.remove(*branch);
            Ok(Value::Null)
        }
        ("GET", ["src", commit, file]) => {
            let branches = state.repository.branches.keys().find(|branch| head(state, branch) == *commit);
            let found = branches.and_then(|branch| state.repository.branches[branch].get(*file));
            found.map_or(refused(404, "No such file"), |found| Ok(json!(found)))
        }
        ("POST", ["src"]) => {
            let form: BTreeMap<String, String> = std::str::from_utf8(body)
                .unwrap()
                .split('&')
                .map(|field| field.split_once('=').unwrap())
                .map(|(name, value)| (unescaped(name), unescaped(value)))
                .collect();
            let Some(files) = state.repository.branches.get_mut(&form["branch"]) else {
                return refused(400, "no branch");
            };
            for (name, value) in
                form.iter().filter(|(name, _)| !["branch", "message"].contains(&name.as_str()))
            {
                files.insert(name.clone(), value.clone());
            }
            Ok(Value::Null)
        }
        ("GET", ["pullrequests"]) => {
            let all = state.repository.pulls.iter().enumerate();
            let open = all.filter(|(_, pull)| query.contains(&format!("\"{}\"", pull.0)) && pull.2);
            let open: Vec<Value> = open.map(|(at, _)| json!({"id": at + 1, "links": {}})).collect();
            Ok(json!({ "values": open }))
        }
        ("POST", ["pullrequests"]) => {
            required(&asked, &["title", "source/branch/name"])?;
            state.repository.pulls.push((
                text("/source/branch/name"),
                text("/destination/branch/name"),
                true,
            ));
            Ok(json!({"id": 1, "links": {"html": {"href": "https://bitbucket.org/x"}}}))
        }
        ("POST", ["pullrequests", id, "decline"]) => {
            let at: usize = id.parse().unwrap();
            state.repository.pulls[at - 1].2 = false;
            Ok(json!({}))
        }
        ("GET", ["hooks"]) => {
            let hook = |(_, (url, _, active)): (&u64, &(String, String, bool))| {
                json!({"uuid": "{42}",
                "url": url, "active": active})
            };
            let hooks: Vec<Value> = state.repository.hooks.iter().map(hook).collect();
            Ok(json!({ "values": hooks }))
        }
        ("POST", ["hooks"]) | ("PUT", ["hooks", "{42}"]) => {
            required(&asked, &["description", "url", "active", "events"])?;
            let active = asked["active"].as_bool().unwrap();
            state.repository.hooks.insert(42, (text("/url"), text("/secret"), active));
            Ok(json!({"uuid": "{42}", "active": active}))
        }
        ("DELETE", ["hooks", "{42}"]) => {
            state.repository.hooks.remove(&42);
            Ok(Value::Null)
        }
        ("POST", ["commit", commit, "statuses", "build"]) => {
            required(&asked, &["key", "state", "url"])?;
            status(state, &asked, commit, "key", "SUCCESSFUL")
        }
        _ => panic!("nobody may call {method} {path}"),
    }
}
