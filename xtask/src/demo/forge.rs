//! The forge of the demo: GitHub's webhooks, signed, sent to the deployed Function URL.

use std::cell::RefCell;

use anyhow::{Context as _, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use super::repository::Repository;
use crate::aws::Aws;

/// No commit, as a push names it when a branch is created or deleted.
const ZERO: &str = "0000000000000000000000000000000000000000";

/// Sends webhooks, and remembers them.
pub(crate) struct Forge {
    aws: Aws,
    url: String,
    secret: String,
    sent: RefCell<Vec<(&'static str, String)>>,
}

impl Forge {
    /// A forge that has been told the webhook's address and secret.
    pub(crate) fn new(aws: Aws, url: &str, secret_id: &str) -> anyhow::Result<Self> {
        let secret =
            aws.call("secretsmanager", "secretsmanager.GetSecretValue", &json!({ "SecretId": secret_id }))?;
        let secret = secret["SecretString"].as_str().context("the webhook's secret is empty")?.to_owned();
        Ok(Self { aws, url: url.to_owned(), secret, sent: RefCell::default() })
    }

    /// Tells that a branch now has this head.
    pub(crate) fn pushed(
        &self,
        repository: &Repository,
        branch: &str,
        before: Option<&str>,
    ) -> anyhow::Result<()> {
        let after = repository.head(branch)?;
        let commits = repository.commits(before.unwrap_or("main"), &after)?;
        let commits: Vec<Value> = commits.iter().map(|id| json!({ "id": id })).collect();
        self.send(
            "push",
            &json!({
                "ref": format!("refs/heads/{branch}"), "before": before.unwrap_or(ZERO), "after": after,
                "created": before.is_none(), "deleted": false, "forced": false, "commits": commits,
                "repository": describe(repository, Some(repository.time(&after)?)),
            }),
        )
    }

    /// Tells that a branch is gone.
    pub(crate) fn deleted(&self, repository: &Repository, branch: &str, before: &str) -> anyhow::Result<()> {
        self.send(
            "push",
            &json!({
                "ref": format!("refs/heads/{branch}"), "before": before, "after": ZERO,
                "created": false, "deleted": true, "forced": false, "commits": [],
                "repository": describe(repository, None),
            }),
        )
    }

    /// Tells of a pull request; with a merge commit, that it was merged.
    pub(crate) fn pull_request(
        &self,
        repository: &Repository,
        number: u64,
        branch: &str,
        base: &str,
        merge_commit: Option<&str>,
    ) -> anyhow::Result<()> {
        let head = repository.head(branch)?;
        self.send(
            "pull_request",
            &json!({
                "action": if merge_commit.is_some() { "closed" } else { "opened" },
                "number": number,
                "pull_request": {
                    "number": number, "merged": merge_commit.is_some(), "merge_commit_sha": merge_commit,
                    "head": {
                        "ref": branch, "sha": head,
                        "repo": { "full_name": repository.full_name() },
                    },
                    "base": { "ref": base },
                    // However late the webhook is, it tells when that was.
                    "updated_at": repository.time(merge_commit.unwrap_or(&head))?,
                },
                "repository": describe(repository, None),
            }),
        )
    }

    /// What it signs with.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// The signature of a body.
    pub(crate) fn sign(&self, body: &str) -> String {
        sign(&self.secret, body)
    }

    /// Delivers every webhook once more, the newest first. Answers how many.
    pub(crate) fn redeliver(&self) -> anyhow::Result<usize> {
        let sent = self.sent.borrow().clone();
        for (event, body) in sent.iter().rev() {
            self.deliver(event, body)?;
        }
        Ok(sent.len())
    }

    fn send(&self, event: &'static str, body: &Value) -> anyhow::Result<()> {
        let body = body.to_string();
        self.deliver(event, &body)?;
        self.sent.borrow_mut().push((event, body));
        Ok(())
    }

    fn deliver(&self, event: &str, body: &str) -> anyhow::Result<()> {
        let signature = self.sign(body);
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", event),
            ("x-github-delivery", "demo"),
            ("x-hub-signature-256", &signature),
        ];
        let answer = self.aws.post_to_function(&self.url, &headers, body.as_bytes())?;
        ensure!(answer.status == 202, "the webhook was answered with {}: {}", answer.status, answer.text());
        Ok(())
    }
}

/// GitHub's signature of a body.
pub(crate) fn sign(secret: &str, body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).map(|mac| mac.chain_update(body));
    // Any length of key will do, so there always is one.
    mac.map_or_else(|_| String::new(), |mac| format!("sha256={}", hex::encode(mac.finalize().into_bytes())))
}

fn describe(repository: &Repository, pushed_at: Option<i64>) -> Value {
    let name = repository.full_name();
    let url = format!("https://github.com/{name}");
    json!({ "full_name": name, "html_url": url, "default_branch": "main", "pushed_at": pushed_at })
}
