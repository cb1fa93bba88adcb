//! Calls to the local AWS, signed as AWS wants them so that roles can be enforced.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The region that the local AWS is.
pub(crate) const REGION: &str = "us-east-1";
/// The key of the account's root user.
pub(crate) const KEY_ID: &str = "test";
/// The secret of that key.
pub(crate) const SECRET_KEY: &str = "test";

/// The account that the local AWS is.
pub(crate) const ACCOUNT: &str = "000000000000";
/// The version of IAM's API.
const IAM: &str = "2010-05-08";
/// Longer than any function may run here.
const TIMEOUT: Duration = Duration::from_mins(5);

/// The ARN of a queue.
pub(crate) fn queue_arn(name: &str) -> String {
    format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
}

/// A client of the local AWS, as its root user.
#[derive(Debug, Clone)]
pub(crate) struct Aws {
    endpoint: String,
    agent: ureq::Agent,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

struct Request<'a> {
    service: &'a str,
    method: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
}

impl Aws {
    /// A client of the AWS at `endpoint`, such as `http://127.0.0.1:4567`.
    pub(crate) fn new(endpoint: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(TIMEOUT));
        Self { endpoint: endpoint.trim_end_matches('/').to_owned(), agent: config.build().new_agent() }
    }

    /// Calls a service that speaks JSON: `call("events", "AWSEvents.ListRules", &json!({}))`.
    ///
    /// `service` is the name that requests are signed for: `events`, `sqs`, `ecr`, `secretsmanager`, `logs`...
    pub(crate) fn call(&self, service: &str, target: &str, input: &Value) -> anyhow::Result<Value> {
        let version = if service == "sqs" { "1.0" } else { "1.1" };
        let content_type = format!("application/x-amz-json-{version}");
        let headers = [("content-type", content_type.as_str()), ("x-amz-target", target)];
        let body = serde_json::to_vec(input)?;
        let answer =
            self.send(&Request { service, method: "POST", path: "/", headers: &headers, body: &body })?;
        ensure!(answer.status < 300, "{target} answered {}: {}", answer.status, answer.text());
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body).with_context(|| format!("{target} did not answer with JSON"))
    }

    /// Calls a service by method and path, as Lambda and Scheduler want it. A query's parameters are sorted
    /// and need no escapes.
    pub(crate) fn rest(
        &self,
        service: &str,
        method: &str,
        path: &str,
        input: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let body = input.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let headers = [("content-type", "application/json")];
        let answer = self.send(&Request { service, method, path, headers: &headers, body: &body })?;
        ensure!(answer.status < 300, "{method} {path} answered {}: {}", answer.status, answer.text());
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body)
            .with_context(|| format!("{method} {path} did not answer with JSON"))
    }

    /// Invokes a function and waits for its answer. That the function failed is an error here.
    pub(crate) fn invoke(&self, function: &str, payload: &Value) -> anyhow::Result<Value> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let answer = self.rest("lambda", "POST", &path, Some(payload))?;
        if let Some(message) = answer.get("errorMessage") {
            bail!("{function} failed: {message}");
        }
        Ok(answer)
    }

    /// What a function has logged so far, oldest first.
    pub(crate) fn logs(&self, function: &str) -> anyhow::Result<Vec<String>> {
        let group = format!("/aws/lambda/{function}");
        let mut lines = Vec::new();
        let mut input = serde_json::json!({ "logGroupName": group });
        loop {
            let page = self.call("logs", "Logs_20140328.FilterLogEvents", &input)?;
            let events = page["events"].as_array().map(Vec::as_slice).unwrap_or_default();
            lines
                .extend(events.iter().filter_map(|e| e["message"].as_str()).map(|m| m.trim_end().to_owned()));
            match page.get("nextToken") {
                Some(token) if !token.is_null() => input["nextToken"] = token.clone(),
                _ => return Ok(lines),
            }
        }
    }

    /// Posts to a function's public URL, as the internet would: `url` is the one in the stack's outputs.
    pub(crate) fn post_to_function(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> anyhow::Result<Answer> {
        let (host, path) = url
            .split_once("://")
            .map(|(_, rest)| rest.split_once('/').unwrap_or((rest, "")))
            .with_context(|| format!("`{url}` is not the URL of a function"))?;
        let mut request = self.agent.post(format!("{}/{path}", self.endpoint)).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send(body).with_context(|| format!("no answer from {url}"))?)
    }

    /// Calls a service that speaks forms and XML, as `CloudFormation` and IAM do; answers the XML.
    pub(crate) fn query(
        &self,
        service: &str,
        version: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let mut body = format!("Action={action}&Version={version}");
        for (name, value) in parameters {
            body.extend(["&", name, "="]);
            body.extend(value.bytes().map(|byte| format!("%{byte:02X}")));
        }
        let answer = self.send(&Request {
            service,
            method: "POST",
            path: "/",
            headers: &[("content-type", "application/x-www-form-urlencoded")],
            body: body.as_bytes(),
        })?;
        let text = answer.text();
        ensure!(answer.status == 200, "{action} answered {}: {text}", answer.status);
        Ok(text)
    }

    /// Whether IAM lets a role do something to what has this ARN, by its policies as they are deployed.
    pub(crate) fn may(&self, role: &str, action: &str, resource: &str) -> anyhow::Result<bool> {
        let parameters = [
            ("PolicySourceArn", format!("arn:aws:iam::{ACCOUNT}:role/{role}")),
            ("ActionNames.member.1", action.to_owned()),
            ("ResourceArns.member.1", resource.to_owned()),
        ];
        let parameters = parameters.each_ref().map(|(name, value)| (*name, value.as_str()));
        let text = self.query("iam", IAM, "SimulatePrincipalPolicy", &parameters)?;
        let decision = text.split_once("<EvalDecision>").and_then(|(_, rest)| rest.split_once('<'));
        let (decision, _) = decision.context("IAM did not decide")?;
        Ok(decision == "allowed")
    }

    /// Makes a role with one managed policy, as somebody would for a CodeBuild project.
    pub(crate) fn make_role(&self, name: &str, policy: &str) -> anyhow::Result<()> {
        let trust = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole",
            "Principal":{"Service":"codebuild.amazonaws.com"}}]}"#;
        self.query("iam", IAM, "CreateRole", &[("RoleName", name), ("AssumeRolePolicyDocument", trust)])?;
        self.query("iam", IAM, "AttachRolePolicy", &[("RoleName", name), ("PolicyArn", policy)]).map(drop)
    }

    /// The outputs of a stack.
    pub(crate) fn stack_outputs(&self, stack: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let text = self.query("cloudformation", "2010-05-15", "DescribeStacks", &[("StackName", stack)])?;
        let outputs = text.split("<OutputKey>").skip(1).filter_map(|output| {
            let (key, rest) = output.split_once("</OutputKey>")?;
            let (value, _) = rest.split_once("<OutputValue>")?.1.split_once("</OutputValue>")?;
            Some((key.to_owned(), value.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")))
        });
        Ok(outputs.collect())
    }

    /// Downloads what the local AWS offers under one of its own, signed addresses.
    pub(crate) fn download(&self, location: &str) -> anyhow::Result<Vec<u8>> {
        // It names itself `localhost`, which need not be the interface that it listens on.
        let path = location.splitn(4, '/').nth(3).unwrap_or_default();
        let address = format!("{}/{path}", self.endpoint);
        let answer =
            read(self.agent.get(&address).call().with_context(|| format!("no answer from {address}"))?)?;
        ensure!(answer.status == 200, "{address} answered {}", answer.status);
        Ok(answer.body)
    }

    /// Whether it is up.
    pub(crate) fn answers(&self) -> bool {
        let health = self.agent.get(format!("{}/_ministack/health", self.endpoint)).call();
        health.is_ok_and(|answer| answer.status() == 200)
    }

    fn send(&self, request: &Request<'_>) -> anyhow::Result<Answer> {
        let host = self.endpoint.split_once("://").map_or("", |(_, host)| host);
        let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut headers: BTreeMap<&str, &str> = request.headers.iter().copied().collect();
        headers.extend([("host", host), ("x-amz-date", now.as_str())]);
        let authorization = authorization(request, &headers);
        let mut builder = ureq::http::Request::builder()
            .method(request.method)
            .uri(format!("{}{}", self.endpoint, request.path))
            .header("authorization", authorization);
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let answer = self
            .agent
            .run(builder.body(request.body)?)
            .with_context(|| format!("no answer to {} {}", request.method, request.path))?;
        read(answer)
    }
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> anyhow::Result<Answer> {
    let body = answer.body_mut().with_config().limit(64 << 20).read_to_vec()?;
    Ok(Answer { status: answer.status().as_u16(), body })
}

/// AWS Signature Version 4.
fn authorization(request: &Request<'_>, headers: &BTreeMap<&str, &str>) -> String {
    let now = headers["x-amz-date"];
    let day = &now[..8];
    let names = headers.keys().copied().collect::<Vec<_>>().join(";");
    let (path, query) = request.path.split_once('?').unwrap_or((request.path, ""));
    let canonical = format!(
        "{}\n{path}\n{query}\n{}\n{names}\n{}",
        request.method,
        headers.iter().fold(String::new(), |text, (name, value)| format!("{text}{name}:{value}\n")),
        hex::encode(Sha256::digest(request.body)),
    );
    let scope = format!("{day}/{REGION}/{}/aws4_request", request.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{now}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let key = [day, REGION, request.service, "aws4_request", &to_sign]
        .into_iter()
        .fold(format!("AWS4{SECRET_KEY}").into_bytes(), |key, part| hmac(&key, part.as_bytes()));
    let signature = hex::encode(key);
    format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/{scope}, SignedHeaders={names}, Signature={signature}")
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return Vec::new(); // not reached: any length of key will do
    };
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_derived_as_in_the_example_of_the_aws_documentation() {
        let key = ["20150830", "us-east-1", "iam", "aws4_request"]
            .into_iter()
            .fold(b"AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_vec(), |k, part| {
                hmac(&k, part.as_bytes())
            });
        assert_eq!(hex::encode(key), "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9");
    }
}
