//! `stoker onboard apply`: makes what the plan says.

use std::path::Path;

use jiff::Timestamp;
use stoker_core::error::CallError;
use stoker_core::names::{CacheRepository, ProjectName};
use stoker_core::onboard::{Stack, TAG};
use stoker_core::policy::Policy;

use super::account::{Services, confirm};
use super::forge::Proposal;
use super::plan::{Options, Planned, make};
use super::record::{Change, Record, Records, replace};
use super::source::Sources;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain::call_problem;
use crate::text::{count, plain};

const TITLE: &str = "Build with Stoker's caches";
const BODY: &str = "Where Stoker starts a build, it gives it a layer cache to read and a tag to write to. A \
     build that it did not \
                    start runs the same commands with the same words as before.\n\nMade by `stoker onboard \
                    apply`; `stoker onboard \
                    undo` closes it.";

/// Makes what the plan says, once it was confirmed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  GITHUB_TOKEN=... stoker onboard apply --project app
  stoker onboard apply --project app --ask               # asks for each thing
  stoker onboard apply --project app --take-over         # later: CodeBuild's own webhook goes, too

It plans anew, shows the plan, asks, writes the record, and makes things in this order: repositories, the \
role's policy, the rule, \
the webhook (which sends once its first ping is answered), the buildspec, and with --take-over CodeBuild's \
webhook goes. Stop it \
anywhere and run it again. Deploy the policy afterwards: sam build && sam deploy.

Tokens, by the forge: GITHUB_TOKEN (contents, pull requests and webhooks, read and write), GITLAB_TOKEN (api), \
BITBUCKET_TOKEN \
(repository:write, pullrequest:write, webhook).")]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    /// Do not ask
    #[arg(long, conflicts_with = "ask")]
    yes: bool,
    /// Ask for each thing
    #[arg(long)]
    ask: bool,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let options = &args.options;
    if options.which.projects.is_empty() {
        return Err(Problem::usage("no project is named", "say which with --project, by name or glob"));
    }
    let services = Services::find().await?;
    let stack = services.stack(&options.stack).await?;
    let mut records = Records::open(&options.record)?;
    let mut sources = Sources::open(&options.which)?;
    let plan = make(&services, &stack, &records, &mut sources, options).await?;
    crate::outcome::print(&plan.render());
    let mut wanted: Vec<Planned> = plan.projects.into_iter().filter(Planned::is_wanted).collect();
    if args.ask {
        for planned in &mut wanted {
            let mut kept = Vec::new();
            for change in std::mem::take(&mut planned.changes) {
                if confirm(&format!("{}: {}?", planned.project, change.words()))? {
                    kept.push(change);
                }
            }
            planned.changes = kept;
        }
        wanted.retain(Planned::is_wanted);
    }
    let number: usize = wanted.iter().map(|planned| planned.changes.len()).sum();
    if number > 0 && !args.yes && !args.ask && !confirm(&format!("make {}?", count(number, "change")))? {
        return Err(Problem::no("not confirmed: nothing was changed", "say --yes to what is shown"));
    }
    let mut is_whole = true;
    let mut has_rule = false;
    for planned in &wanted {
        write_down(&mut records, &services, planned)?;
        for change in &planned.changes {
            has_rule |= matches!(change, Change::Rule { .. });
            let made = made(&services, &stack, &sources, planned, change).await?;
            is_whole &= made.is_ok();
            let line = match made {
                Ok(more) => format!("{}: made {}{more}\n", planned.project, change.words()),
                Err(why) => format!("{}: not made: {}: {why}\n", planned.project, change.words()),
            };
            crate::outcome::print(&line);
        }
    }
    let next = if has_rule {
        "next: sam build && sam deploy, which puts the policy into force; then push, and stoker onboard watch\n"
    } else {
        ""
    };
    Ok(CommandOutcome { text: next.to_owned(), success: is_whole })
}

/// Writes the record before anything is made, with all that was made before.
fn write_down(records: &mut Records, services: &Services, planned: &Planned) -> Result<(), Problem> {
    let mut record = records.of(&planned.project).cloned().unwrap_or_else(|| Record {
        project: planned.project.to_string(),
        region: services.region.clone(),
        account: planned.found.arn.split(':').nth(4).unwrap_or_default().to_owned(),
        at: Timestamp::now(),
        changes: Vec::new(),
    });
    for change in planned.changes.iter().chain(&planned.shared) {
        let is_known = record.changes.iter().any(|known| known.is_of_same(change) || known == change);
        if !is_known {
            record.changes.push(change.clone());
        }
    }
    record.changes.sort_by_key(Change::step);
    records.save(record)
}

/// Makes one thing. What is to be said of it; or why it was not made, where the rest may go on.
async fn made(
    services: &Services,
    stack: &Stack,
    sources: &Sources,
    planned: &Planned,
    change: &Change,
) -> Result<Result<String, String>, Problem> {
    let failed = |error: CallError| call_problem(&error);
    let name = &planned.project;
    Ok(match change {
        Change::Repository { name: repository, is_immutable } => {
            let repository = CacheRepository::new(repository.as_str()).map_err(|error| {
                Problem::failed(
                    format!("{} is no repository: {error}", plain(repository)),
                    "correct the record",
                )
            })?;
            let days = stack.parameters.get("SafetyNetDays").and_then(|days| days.parse().ok()).unwrap_or(30);
            let tag = Some((TAG, name.as_str()));
            services.aws.create_repository(&repository, *is_immutable, tag).await.map_err(failed)?;
            services.aws.put_safety_net(&repository, days).await.map_err(failed)?;
            Ok(String::new())
        }
        Change::Role { role, policy } => {
            services.setup.attach(role, policy).await.map_err(failed)?;
            Ok(String::new())
        }
        Change::Rule { file, text, at } => rule(file, text, *at, name),
        Change::Webhook { url, .. } => webhook(services, stack, sources, planned, url).await?,
        Change::Inline { before, after } => {
            let is_set =
                services.setup.set_buildspec(name, Some(before), Some(after)).await.map_err(failed)?;
            if is_set {
                Ok(String::new())
            } else {
                Err("it was changed meanwhile: run this again".to_owned())
            }
        }
        Change::Proposal { branch, base, file, after, .. } => match sources.forge(&planned.found) {
            Err(why) => Err(why),
            Ok(forge) => {
                let proposal = Proposal { branch, base, file, text: after, title: TITLE, body: BODY };
                let url = forge.propose(proposal).await.map_err(failed)?;
                Ok(format!(": {}", plain(&url)))
            }
        },
        Change::TakeOver { .. } => {
            services.setup.delete_webhook(name).await.map_err(failed)?;
            Ok(String::new())
        }
    })
}

/// Puts a rule into the policy, where it is not in it yet.
fn rule(file: &Path, text: &str, at: usize, name: &ProjectName) -> Result<String, String> {
    let before = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    if before.contains(text) {
        return Ok(String::new());
    }
    let by_hand = || "the policy has changed meanwhile: run this again".to_owned();
    let (start, end) = before.split_at_checked(at).ok_or_else(by_hand)?;
    let after = format!("{start}{text}{end}");
    let is_served = Policy::parse("the policy", &after).is_ok_and(|policy| policy.project(name).is_some());
    if !is_served {
        return Err(by_hand());
    }
    replace(file, &after).map_err(|error| error.to_string())?;
    Ok(String::new())
}

async fn webhook(
    services: &Services,
    stack: &Stack,
    sources: &Sources,
    planned: &Planned,
    url: &str,
) -> Result<Result<String, String>, Problem> {
    let failed = |error: CallError| call_problem(&error);
    let forge = match sources.forge(&planned.found) {
        Ok(forge) => forge,
        Err(why) => return Ok(Err(why)),
    };
    let Some(id) = stack.outputs.get("WebhookSecret") else {
        return Ok(Err("the stack has no output WebhookSecret".to_owned()));
    };
    let secret = services.webhook_secret(id).await?;
    let hook = match forge.hook(url).await.map_err(failed)? {
        Some(hook) => hook,
        None => forge.make_hook(url, &secret).await.map_err(failed)?,
    };
    if hook.is_active {
        return Ok(Ok(String::new()));
    }
    if forge.ping(&hook).await.map_err(failed)? == Some(false) {
        return Ok(Err(
            "its ping was not answered, so it stays switched off: see its recent deliveries at the \
             forge, and that \
                       the stack is deployed; then run this again"
                .to_owned(),
        ));
    }
    forge.activate(&hook, url, &secret).await.map_err(failed)?;
    Ok(Ok(String::new()))
}
