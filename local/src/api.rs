//! The `CodeBuild` API: AWS JSON 1.1, the actions that Stoker uses.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::aws::Aws;
use crate::build::Build;
use crate::bus::Bus;
use crate::events;
use crate::ledger::{Ledger, Refusal, StartBuild};

const PAGE: usize = 100;

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    /// The builds.
    pub ledger: Arc<Ledger>,
    /// Where events go.
    pub bus: Arc<Bus>,
    /// Who knows the functions that ask.
    pub aws: Aws,
    /// Where Stoker's requests are written down, for whoever holds them against AWS's models.
    pub requests: Option<Arc<File>>,
}

/// An error as AWS answers it.
struct Fault {
    kind: &'static str,
    message: String,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal {
            Refusal::InvalidInput(_) => "InvalidInputException",
            Refusal::NotFound(_) => "ResourceNotFoundException",
        };
        Self { kind, message: refusal.to_string() }
    }
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault { kind: "InvalidInputException", message: message.into() }
}

/// Answers `POST /`.
pub async fn handle(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|v| v.to_str().ok()).unwrap_or_default();
    api.record(target, &headers, &body);
    let initiator = if target.ends_with(".StartBuild") { api.initiator(&headers).await } else { None };
    let (status, value) = match api.answer(target, &body, initiator) {
        Ok(value) => (StatusCode::OK, value),
        Err(fault) => {
            tracing::info!(target, kind = fault.kind, reason = fault.message, "request refused");
            (StatusCode::BAD_REQUEST, json!({"__type": fault.kind, "message": fault.message}))
        }
    };
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], value.to_string()).into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ids {
    ids: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Names {
    names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StopBuild {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct List {
    #[serde(default)]
    project_name: String,
    sort_order: Option<String>,
    sort_by: Option<String>,
    next_token: Option<String>,
}

impl Api {
    /// Writes down what an SDK for Rust asks, as the functions and the command line do.
    fn record(&self, target: &str, headers: &HeaderMap, body: &[u8]) {
        let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let Some(mut file) = self.requests.as_deref() else { return };
        if agent.is_some_and(|agent| agent.contains("aws-sdk-rust")) {
            let line = json!({"target": target, "body": String::from_utf8_lossy(body)});
            if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
                tracing::error!(%error, "a request cannot be written down");
            }
        }
    }

    /// Who asks, as CodeBuild tells it of a function: the role that it runs as, and its name for the session.
    async fn initiator(&self, headers: &HeaderMap) -> Option<String> {
        let agent = headers.get(header::USER_AGENT)?.to_str().ok()?;
        let function = agent.split("app/").nth(1)?.split([' ', '#']).next()?;
        match self.aws.role_of(function).await {
            Ok(found) => found.map(|(role, name)| format!("{role}/{name}")),
            Err(error) => {
                tracing::warn!(function, error = crate::chain(&error), "nobody knows the role of who asks");
                None
            }
        }
    }

    fn answer(&self, target: &str, body: &[u8], initiator: Option<String>) -> Result<Value, Fault> {
        let Some(action) = target.strip_prefix("CodeBuild_20161006.") else {
            return Err(Fault { kind: "InvalidAction", message: format!("unknown target `{target}`") });
        };
        match action {
            "StartBuild" => self.start_build(body, initiator),
            "StopBuild" => self.stop_build(body),
            "BatchGetBuilds" => self.batch_get_builds(body),
            "ListBuildsForProject" => self.list_builds_for_project(body),
            "ListProjects" => self.list_projects(body),
            "BatchGetProjects" => self.batch_get_projects(body),
            _ => Err(Fault {
                kind: "InvalidAction",
                message: format!("{action} is not among the actions of this stand-in"),
            }),
        }
    }

    fn start_build(&self, body: &[u8], initiator: Option<String>) -> Result<Value, Fault> {
        let now = Timestamp::now();
        let request = StartBuild { initiator, ..read(body)? };
        let started = self.ledger.start(&request, now)?;
        if started.is_new {
            tracing::info!(build = started.build.id(), "build queued");
            self.bus.emit(events::build_state_change(&started.build, now));
        }
        Ok(json!({"build": started.build.to_json()}))
    }

    fn stop_build(&self, body: &[u8]) -> Result<Value, Fault> {
        let now = Timestamp::now();
        let stopped = self.ledger.stop(&read::<StopBuild>(body)?.id, now)?;
        if stopped.was_queued {
            self.bus.emit(events::build_state_change(&stopped.build, now));
        }
        Ok(json!({"build": stopped.build.to_json()}))
    }

    fn batch_get_builds(&self, body: &[u8]) -> Result<Value, Fault> {
        let ids = at_most_a_page(read::<Ids>(body)?.ids)?;
        let (mut builds, mut missing) = (Vec::new(), Vec::new());
        for id in ids {
            match self.ledger.get(&id) {
                Some(build) => builds.push(build.to_json()),
                None => missing.push(id),
            }
        }
        Ok(json!({"builds": builds, "buildsNotFound": missing}))
    }

    fn list_builds_for_project(&self, body: &[u8]) -> Result<Value, Fault> {
        let ask: List = read(body)?;
        if ask.sort_order.is_some() && ask.next_token.is_some() {
            return Err(invalid("Sort order can't be specified when passing a nextToken"));
        }
        let project = self.ledger.project(&ask.project_name)?;
        let builds = self.ledger.builds();
        let mut ids: Vec<String> =
            builds.iter().filter(|b| b.project.name == project.name).map(Build::id).collect();
        descend(&mut ids, ask.sort_order.as_deref().unwrap_or("DESCENDING"))?;
        page("ids", &ids, ask.next_token.as_deref())
    }

    fn list_projects(&self, body: &[u8]) -> Result<Value, Fault> {
        let ask: List = read(body)?;
        if !matches!(ask.sort_by.as_deref(), None | Some("NAME")) {
            return Err(invalid("Invalid sortBy: only NAME is understood here"));
        }
        let mut names: Vec<String> = self.ledger.projects().iter().map(|p| p.name.clone()).collect();
        names.sort();
        descend(&mut names, ask.sort_order.as_deref().unwrap_or("ASCENDING"))?;
        page("projects", &names, ask.next_token.as_deref())
    }

    fn batch_get_projects(&self, body: &[u8]) -> Result<Value, Fault> {
        let names = at_most_a_page(read::<Names>(body)?.names)?;
        let (mut projects, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            match self.ledger.project(&name) {
                Ok(project) => projects.push(project.to_json()),
                Err(_) => missing.push(name),
            }
        }
        Ok(json!({"projects": projects, "projectsNotFound": missing}))
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    let value: Value = serde_json::from_slice(if body.is_empty() { b"{}" } else { body })
        .map_err(|e| Fault { kind: "SerializationException", message: e.to_string() })?;
    serde_json::from_value(value).map_err(|e| invalid(format!("Invalid input: {e}")))
}

fn at_most_a_page(ids: Vec<String>) -> Result<Vec<String>, Fault> {
    if ids.is_empty() || ids.len() > PAGE {
        return Err(invalid(format!("Invalid input: between 1 and {PAGE} names are allowed")));
    }
    Ok(ids)
}

/// `items` are in ascending order.
fn descend(items: &mut [String], order: &str) -> Result<(), Fault> {
    match order {
        "ASCENDING" => Ok(()),
        "DESCENDING" => {
            items.reverse();
            Ok(())
        }
        other => Err(invalid(format!("Invalid sortOrder: {other}"))),
    }
}

/// A page token is the last item of the page before.
fn page(field: &str, items: &[String], token: Option<&str>) -> Result<Value, Fault> {
    let start = match token.filter(|token| !token.is_empty()) {
        None => 0,
        Some(token) => {
            let last = hex::decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let place = last.and_then(|last| items.iter().position(|item| *item == last));
            place.ok_or_else(|| invalid("Invalid token"))? + 1
        }
    };
    let rest = &items[start..];
    let this = &rest[..rest.len().min(PAGE)];
    let mut answer = json!({field: this});
    if let Some(last) = this.last().filter(|_| rest.len() > PAGE) {
        answer["nextToken"] = json!(hex::encode(last));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::ledger;

    fn api() -> Api {
        let aws = Aws::new("http://127.0.0.1:1");
        let (bus, _) = Bus::new(aws.clone(), None);
        Api { ledger: Arc::new(ledger()), bus: Arc::new(bus), aws, requests: None }
    }

    fn call(api: &Api, action: &str, body: &Value) -> Result<Value, (&'static str, String)> {
        let target = format!("CodeBuild_20161006.{action}");
        api.answer(&target, body.to_string().as_bytes(), None).map_err(|f| (f.kind, f.message))
    }

    #[test]
    fn requests_are_checked() {
        let api = api();
        let kind = |action, body: Value| call(&api, action, &body).unwrap_err().0;
        assert_eq!(kind("StartBuild", json!({"projectName": "no"})), "ResourceNotFoundException");
        assert_eq!(kind("StartBuild", json!({})), "InvalidInputException");
        assert_eq!(
            kind("StartBuild", json!({"projectName": "app", "imageOverride": "x"})),
            "InvalidInputException"
        );
        assert_eq!(kind("ListBuildsForProject", json!({"projectName": "no"})), "ResourceNotFoundException");
        assert_eq!(kind("StopBuild", json!({})), "InvalidInputException");
        assert_eq!(kind("StopBuild", json!({"id": "app:1"})), "ResourceNotFoundException");
        assert_eq!(kind("DeleteProject", json!({})), "InvalidAction");
    }

    #[test]
    fn lists_come_newest_first_in_pages() {
        let api = api();
        let start = || call(&api, "StartBuild", &json!({"projectName": "app"})).unwrap();
        let ids: Vec<Value> = (0..101).map(|_| start()["build"]["id"].clone()).collect();
        let first = call(&api, "ListBuildsForProject", &json!({"projectName": "app"})).unwrap();
        assert_eq!(first["ids"].as_array().unwrap().len(), 100);
        assert_eq!(first["ids"][0], ids[100]);
        let ask = json!({"projectName": "app", "nextToken": first["nextToken"]});
        let second = call(&api, "ListBuildsForProject", &ask).unwrap();
        assert_eq!(second, json!({"ids": [ids[0]]}));
        let mut ask = json!({"projectName": "app", "sortOrder": "ASCENDING"});
        assert_eq!(call(&api, "ListBuildsForProject", &ask).unwrap()["ids"][0], ids[0]);
        ask["nextToken"] = first["nextToken"].clone();
        assert_eq!(call(&api, "ListBuildsForProject", &ask).unwrap_err().0, "InvalidInputException");
    }

    #[test]
    fn builds_are_named_by_id_or_arn() {
        let api = api();
        let ask = json!({"projectName": "app", "sourceVersion": "main"});
        let build = call(&api, "StartBuild", &ask).unwrap()["build"].clone();
        assert_eq!(build["buildStatus"], "IN_PROGRESS");
        assert_eq!(build["buildComplete"], false);
        assert_eq!(build["sourceVersion"], "main");
        let ask = json!({"ids": [build["id"], build["arn"], "app:none"]});
        let reported = call(&api, "BatchGetBuilds", &ask).unwrap();
        assert_eq!(reported["builds"], json!([build, build]));
        assert_eq!(reported["buildsNotFound"], json!(["app:none"]));
    }

    #[test]
    fn projects_are_listed_and_told() {
        let api = api();
        assert_eq!(call(&api, "ListProjects", &json!({})).unwrap(), json!({"projects": ["app"]}));
        let reported = call(&api, "BatchGetProjects", &json!({"names": ["app", "no"]})).unwrap();
        assert_eq!(reported["projects"][0]["source"]["location"], "/srv/app.git");
        assert_eq!(reported["projectsNotFound"], json!(["no"]));
    }
}
