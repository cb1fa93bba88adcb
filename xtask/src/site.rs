//! Where Stoker is at work: the local AWS with the stack in it, and the stand-in for `CodeBuild` beside it.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::demo::forge::Forge;
use crate::environment::LocalSetup;
use crate::stack;

/// The stand-in for `CodeBuild` is up at once.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// A schedule that does not fire in a scenario's time.
pub(crate) const NEVER: &str = "at(2099-01-01T00:00:00)";

/// The queues that are empty once everything has settled, by their outputs.
pub(crate) const QUEUES: [&str; 6] = [
    "StartQueueUrl",
    "WarmQueueUrl",
    "PromotionQueueUrl",
    "ReconcileQueueUrl",
    "RetentionQueueUrl",
    "NightlyRetentionQueueUrl",
];

/// What is to be at work.
pub(crate) struct Plan<'a> {
    /// The program of the local stand-ins.
    pub(crate) program: &'a Path,
    /// More arguments of it: the builder and what belongs to that.
    pub(crate) arguments: &'a [&'a str],
    /// The `CodeBuild` projects.
    pub(crate) projects: &'a Value,
    /// The policy document.
    pub(crate) policy: &'a str,
    /// The template's parameters.
    pub(crate) parameters: &'a [(&'a str, &'a str)],
}

/// Stoker at work.
pub(crate) struct Site {
    pub(crate) setup: LocalSetup,
    pub(crate) outputs: stack::Outputs,
    local: ureq::Agent,
}

impl Site {
    /// Starts the stand-in for `CodeBuild`, and deploys.
    pub(crate) fn open(mut setup: LocalSetup, plan: &Plan<'_>) -> anyhow::Result<Self> {
        let projects = setup.dir().join("projects.json");
        std::fs::write(&projects, plan.projects.to_string())?;
        let listen = format!("127.0.0.1:{}", setup.codebuild_port);
        let mut command = Command::new(plan.program);
        command
            .args(["serve", "--listen", &listen, "--aws", &setup.endpoint()])
            .args(["--registry", &setup.registry()])
            .args(plan.arguments)
            .arg("--projects")
            .arg(&projects)
            .arg("--state")
            .arg(setup.dir().join("codebuild"));
        setup.spawn("codebuild", "stoker-local", &mut command)?;

        let outputs = stack::deploy(&setup, plan.policy, plan.parameters)?;
        let local =
            ureq::Agent::config_builder().proxy(None).timeout_global(Some(Duration::from_secs(10))).build();
        let site = Self { setup, outputs, local: local.new_agent() };
        let started = Instant::now();
        while site.local("GET", "health", None).is_err() {
            if !site.setup.is_running("codebuild") || started.elapsed() > START_TIMEOUT {
                bail!(
                    "the local CodeBuild does not start; see {}",
                    site.setup.dir().join("codebuild.log").display()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(site)
    }

    /// One of the stack's outputs.
    pub(crate) fn output(&self, name: &str) -> anyhow::Result<&str> {
        self.outputs.get(name).map(String::as_str).with_context(|| format!("the stack has no output {name}"))
    }

    /// A forge that knows the webhook's address and secret.
    pub(crate) fn forge(&self) -> anyhow::Result<Forge> {
        Forge::new(self.setup.aws(), self.output("WebhookUrl")?, self.output("WebhookSecret")?)
    }

    /// The attributes of a queue, by its output.
    pub(crate) fn queue(&self, output: &str) -> anyhow::Result<Value> {
        let input = json!({ "QueueUrl": self.output(output)?, "AttributeNames": ["All"] });
        let mut answer = self.setup.aws().call("sqs", "AmazonSQS.GetQueueAttributes", &input)?;
        Ok(answer["Attributes"].take())
    }

    /// Sets attributes of a queue, by its output.
    pub(crate) fn set_queue(&self, output: &str, attributes: &Value) -> anyhow::Result<()> {
        let input = json!({ "QueueUrl": self.output(output)?, "Attributes": attributes });
        self.setup.aws().call("sqs", "AmazonSQS.SetQueueAttributes", &input).map(drop)
    }

    /// How many messages are in a queue: those that wait, those that are handled, those that are delayed.
    pub(crate) fn waiting_in(&self, output: &str) -> anyhow::Result<u64> {
        let attributes = self.queue(output)?;
        let counts = ["", "NotVisible", "Delayed"].map(|of| {
            let count = attributes[format!("ApproximateNumberOfMessages{of}")].as_str();
            count.and_then(|count| count.parse::<u64>().ok()).unwrap_or_default()
        });
        Ok(counts.into_iter().sum())
    }

    /// How many messages are in Stoker's queues.
    pub(crate) fn waiting(&self) -> anyhow::Result<u64> {
        QUEUES.into_iter().map(|queue| self.waiting_in(queue)).sum()
    }

    /// Fires the schedule of a queue: does what it says in its deployed form.
    pub(crate) fn tick(&self, queue: &str) -> anyhow::Result<()> {
        let aws = self.setup.aws();
        let url = self.output(queue)?;
        let (_, name) = url.rsplit_once('/').with_context(|| format!("`{url}` is no queue"))?;
        let listed = aws.rest("scheduler", "GET", "/schedules", None)?;
        for schedule in listed["Schedules"].as_array().into_iter().flatten() {
            let schedule = schedule["Name"].as_str().unwrap_or_default();
            let path = format!("/schedules/{schedule}?groupName={}", stack::NAME);
            let schedule = aws.rest("scheduler", "GET", &path, None)?;
            let target = &schedule["Target"];
            if target["Arn"].as_str().is_some_and(|arn| arn.ends_with(&format!(":{name}"))) {
                let input = target["Input"].as_str().context("the schedule has no input")?;
                // The night itself is not delayed: what it brings is.
                let message = json!({ "QueueUrl": url, "MessageBody": input, "DelaySeconds": 0 });
                return aws.call("sqs", "AmazonSQS.SendMessage", &message).map(drop);
            }
        }
        bail!("the stack has no schedule for {name}")
    }

    /// Talks to the control interface of the local `CodeBuild`.
    pub(crate) fn local(&self, method: &str, what: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let url = format!("{}/control/{what}", self.setup.codebuild_endpoint());
        let mut answer = match (method, body) {
            ("GET", _) => self.local.get(&url).call()?,
            (_, body) => self
                .local
                .post(&url)
                .header("content-type", "application/json")
                .send(body.map_or_else(String::new, Value::to_string))?,
        };
        let body = answer.body_mut().with_config().limit(256 << 20);
        Ok(serde_json::from_slice(&body.read_to_vec()?)?)
    }

    /// Calls the `CodeBuild` API as somebody who is not Stoker.
    pub(crate) fn codebuild(&self, action: &str, input: &Value) -> anyhow::Result<Value> {
        let request = self.local.post(self.setup.codebuild_endpoint());
        let request = request.header("x-amz-target", format!("CodeBuild_20161006.{action}"));
        let mut answer =
            request.header("content-type", "application/x-amz-json-1.1").send(input.to_string())?;
        Ok(serde_json::from_slice(&answer.body_mut().read_to_vec()?)?)
    }
}
