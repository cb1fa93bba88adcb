//! `stoker simulate`: what Stoker would do with an event, before it happens.

use jiff::Timestamp;
use stoker_core::error::chain;
use stoker_core::event::Envelope;
use stoker_core::names::Line;
use stoker_core::policy::Policy;
use stoker_core::simulate::{Action, Decision, brief, simulate};

use crate::cache::to_json;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::remote::Remotes;
use crate::text::plain_whole;

mod args;
mod input;
mod lookup;
mod render;
mod report;
mod sender;

pub(crate) use args::Args;
use input::Asked;
use lookup::{GivenInputs, Registry};
use report::{Choice, Report, Reported};

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
            let reported = answer(&registry, &remotes, &policy, question).await?;
            report.summary.clone_from(&reported.summary);
            report.events.push(reported);
        }
        Asked::Events(envelopes) => {
            for envelope in &envelopes {
                report.events.push(simulate_event(&registry, &remotes, &policy, envelope, now).await?);
            }
            let all: Vec<&str> = report.events.iter().map(|reported| reported.summary.as_str()).collect();
            report.summary = all.join(" + ");
        }
    }
    Ok(CommandOutcome::yes(if args.json { to_json(&report) } else { render::render(&report) }))
}

fn policy(args: &Args) -> Result<Policy, Problem> {
    Policy::load(&args.policy).map_err(|error| {
        let reported: Vec<String> = chain(&error).lines().map(plain_whole).collect();
        Problem::usage(reported.join("\n"), "correct it, or name another policy with --policy")
    })
}

/// What an event leads to.
async fn simulate_event(
    registry: &Registry,
    remotes: &Remotes,
    policy: &Policy,
    envelope: &Envelope,
    now: Timestamp,
) -> Result<Reported, Problem> {
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
    Ok(Reported {
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
) -> Result<Reported, Problem> {
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
    Ok(Reported { kind: "question".to_owned(), repository, summary, decisions: vec![entry] })
}
