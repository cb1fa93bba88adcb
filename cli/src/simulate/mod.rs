//! `stoker simulate`: what Stoker would do with an event, before it happens.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use stoker_core::error::chain;
use stoker_core::event::Envelope;
use stoker_core::names::{Line, ProjectName};
use stoker_core::policy::Policy;
use stoker_core::simulate::{Action, Decision, brief, simulate};

use crate::CommandOutcome;
use crate::cache::to_json;
use crate::problem::Problem;
use crate::remote::Remotes;
use crate::text::plain_whole;

mod input;
mod lookup;
mod render;

use input::{Asked, Given, Sender};
use lookup::{GivenInputs, Registry};

/// Says what Stoker would do with an event under a policy, which key of the policy says so, and what each build would be given
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker simulate --offline events/receive-webhook-push.json
  stoker simulate --forge github --event push --offline payload.json
  stoker simulate --forge gitlab --event 'Merge Request Hook' --offline < payload.json
  gh api repos/example/app/hooks/1/deliveries/2 --jq .request.payload |
    stoker simulate --forge github --event pull_request --offline
  stoker simulate --registry 123456789012.dkr.ecr.eu-central-1.amazonaws.com event.json
  stoker simulate --offline --policy new.yaml --json event.json | jq -r .summary
  echo '{\"source\":\"stoker\",\"detail-type\":\"NightlyWarm\",\"detail\":{\"slots\":4,\"every_minutes\":15}}' |
    stoker simulate --offline --at 2026-11-21T02:15:00Z

FILE is told by its shape: a request to the webhooks' Function URL, a batch of SQS, an event of EventBridge (Stoker's own, \
of CodeBuild, ECR or CodeCommit), or a question to `resolve-cache`. What a forge's list of deliveries shows is its payload \
alone: say with --forge and --event what its headers said. CodeCommit's payloads are events of EventBridge.

It decides as the functions do, by the same code, and starts, writes and deletes nothing. Signatures are not checked. \
What has been built before it does not know: a build that it names is not started if that commit of that line has one.

Exit code 0 says that there is an answer, also when that is \"nothing\".")]
pub(crate) struct Args {
    /// A file with the event, or `-` for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// The policy
    #[arg(long, value_name = "PATH", default_value = "policy/stoker.yaml")]
    policy: PathBuf,
    /// The forge that sent it, for a payload without headers: github, gitlab, bitbucket or codecommit
    #[arg(long, value_name = "FORGE")]
    forge: Option<Sender>,
    /// What the forge called the event, for a payload without headers: `push`, `pull_request`, `Push Hook`, `repo:push`, ...
    #[arg(long, value_name = "NAME", requires = "forge")]
    event: Option<String>,
    /// The registry that holds the caches, such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com
    #[arg(long, value_name = "HOST", value_parser = lookup::registry_host)]
    registry: Option<String>,
    /// Look nothing up in the registry
    #[arg(long)]
    offline: bool,
    /// When the event comes, where it does not say so itself; now unless given
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    policy: String,
    #[serde(flatten)]
    given: Given,
    /// Everything in a few words.
    summary: String,
    /// Why Stoker acts on nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    ignored: Option<String>,
    /// Whether the registry was asked.
    offline: bool,
    events: Vec<Told>,
}

/// An event, and what it leads to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    summary: String,
    decisions: Vec<Choice>,
}

/// A decision as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Choice {
    function: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<ProjectName>,
    /// The entry of the policy that is the project's rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_entry: Option<String>,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<String>,
    rule: &'static str,
    summary: String,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<GivenInputs>,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let registry = match (&args.registry, args.offline) {
        (Some(_) | None, true) => Registry::offline(args.registry.clone()),
        (Some(host), false) => Registry::at(host.clone()),
        (None, false) => {
            return Err(Problem::usage(
                "the registry with the caches is not named",
                "name it with --registry, such as --registry 123456789012.dkr.ecr.eu-central-1.amazonaws.com; or say \
                 --offline, and nothing is looked up",
            ));
        }
    };
    let policy = policy(args)?;
    let now = args.at.unwrap_or_else(Timestamp::now);
    let (given, asked) = input::read(args, &policy, now)?;
    let remotes = Remotes::default();
    let mut report = Report {
        policy: args.policy.display().to_string(),
        given,
        summary: String::new(),
        ignored: None,
        offline: args.offline,
        events: Vec::new(),
    };
    match asked {
        Asked::Ignored(why) => {
            report.summary = format!("ignored: {why}");
            report.ignored = Some(why);
        }
        Asked::Question(question) => {
            let told = answer(&registry, &remotes, &policy, question).await?;
            report.summary.clone_from(&told.summary);
            report.events.push(told);
        }
        Asked::Events(envelopes) => {
            for envelope in &envelopes {
                report.events.push(simulate_event(&registry, &remotes, &policy, envelope, now).await?);
            }
            let all: Vec<&str> = report.events.iter().map(|told| told.summary.as_str()).collect();
            report.summary = all.join(" + ");
        }
    }
    Ok(CommandOutcome::yes(if args.json { to_json(&report) } else { render::render(&report) }))
}

fn policy(args: &Args) -> Result<Policy, Problem> {
    Policy::load(&args.policy).map_err(|error| {
        let told: Vec<String> = chain(&error).lines().map(plain_whole).collect();
        Problem::usage(told.join("\n"), "correct it, or name another policy with --policy")
    })
}

/// What an event leads to.
async fn simulate_event(
    registry: &Registry,
    remotes: &Remotes,
    policy: &Policy,
    envelope: &Envelope,
    now: Timestamp,
) -> Result<Told, Problem> {
    let decisions = simulate(policy, envelope, now);
    let summary = brief(&decisions);
    let mut entries = Vec::new();
    for decision in decisions {
        let build = match (&decision.action, &decision.project) {
            (Action::Build(request), Some(project)) => {
                Some(lookup::inputs(registry, remotes, project, request).await?)
            }
            _ => None,
        };
        entries.push(entry(policy, &decision, build));
    }
    Ok(Told {
        kind: envelope.event.detail_type().to_owned(),
        repository: envelope.event.repository().map(ToString::to_string),
        summary,
        decisions: entries,
    })
}

fn entry(policy: &Policy, decision: &Decision, build: Option<GivenInputs>) -> Choice {
    Choice {
        function: decision.function,
        project: decision.project_name().cloned(),
        policy_entry: decision.project_name().and_then(|name| policy.entry_of(name)),
        action: decision.action.to_string(),
        line: decision.line().map(Line::to_string),
        rule: decision.rule,
        summary: decision.brief(),
        text: decision.text.clone(),
        build,
    }
}

/// What `resolve-cache` answers.
async fn answer(
    registry: &Registry,
    remotes: &Remotes,
    policy: &Policy,
    question: serde_json::Value,
) -> Result<Told, Problem> {
    let (project, build) = lookup::answered(registry, remotes, policy, question.clone()).await?;
    let mut text =
        "tells a build that somebody else starts which caches to read and where to export".to_owned();
    if let Some(why) = stoker_core::resolve::why_it_only_reads(&question, &project) {
        text += &format!("; this one only reads: {why}");
    }
    let summary = format!("answer {}", build.line());
    let entry = Choice {
        function: "resolve-cache",
        policy_entry: policy.entry_of(&project.name),
        line: Some(build.line().to_owned()),
        project: Some(project.name.clone()),
        action: "answer".to_owned(),
        rule: "event",
        summary: summary.clone(),
        text,
        build: Some(build),
    };
    let repository = Some(project.repository.to_string());
    Ok(Told { kind: "question".to_owned(), repository, summary, decisions: vec![entry] })
}
