//! `stoker apply`: carries the plan out.

use std::io::{IsTerminal as _, Write as _};

use jiff::Timestamp;
use serde::Serialize;
use stoker_core::names::Digest;
use stoker_core::policy::Mode;
use stoker_core::retain;

use super::account::{self, Account};
use super::report::Report;
use super::{Planned, Which, plan_all, render};
use crate::cache::to_json;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::text::{count, plain_whole, size};

/// Deletes what `stoker plan` says, once it was confirmed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker apply
  stoker apply --project app --yes
  stoker apply --project app --yes --even-in-report-mode
  stoker apply --yes --json | jq '.repositories[] | {repository, deleted: (.deleted | length), left}'

It plans anew, shows the plan, asks, and deletes. Every image is looked at once more just before: what has got \
or lost a tag \
since, or was given to a build, stays. A run deletes no more of a repository than `retention.max-deletions`.

A repository whose policy says `mode: report` is left as it is, unless --even-in-report-mode is given: the \
policy is what a \
team agreed on, and a deletion by hand is to be meant.

Exit code 1 says that something that the plan deletes is still there: left for the next run, changed meanwhile, \
refused by \
the registry, or in a repository that is not to be touched.")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Delete also where the policy says `mode: report`
    #[arg(long)]
    even_in_report_mode: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// What became of the plans.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    plan: Report,
    repositories: Vec<Done>,
    /// Why it ended before its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// What became of a repository's plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    repository: String,
    /// Why it was not touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    untouched: Option<String>,
    deleted: Vec<Digest>,
    /// Not what the plan saw any more.
    changed: Vec<Digest>,
    refused: Vec<Refused>,
    /// For the next run.
    left: usize,
}

#[derive(Debug, Serialize)]
struct Refused {
    digest: Digest,
    why: String,
}

impl Done {
    fn nothing(planned: &Planned) -> Self {
        Self {
            repository: planned.plan.repository.to_string(),
            untouched: None,
            deleted: Vec::new(),
            changed: Vec::new(),
            refused: Vec::new(),
            left: 0,
        }
    }

    fn is_whole(&self) -> bool {
        self.untouched.is_none() && self.changed.is_empty() && self.refused.is_empty() && self.left == 0
    }
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    super::load(&args.which.policy)?;
    let account = Account::find(None).await?;
    let now = Timestamp::now();
    let planned = plan_all(&account, &args.which, now).await?;
    let report = Report::new(args.which.policy.display().to_string(), now, &planned, false);
    if !args.json {
        crate::outcome::print(&render::plans(&report));
    }
    let is_asked = planned.iter().any(|planned| untouched(planned, args).is_none() && some(planned));
    if is_asked && !args.yes {
        confirm(&planned, args)?;
    }
    let mut outcome = Outcome { plan: report, repositories: Vec::new(), failed: None };
    let mut problem = None;
    for planned in planned {
        let (done, ended) = carry_out(&account, planned, args).await;
        outcome.repositories.push(done);
        if ended.is_some() {
            problem = ended;
            break;
        }
    }
    outcome.failed = problem.as_ref().map(|problem| problem.text().to_owned());
    let text = if args.json { to_json(&outcome) } else { reported(&outcome) };
    if let Some(problem) = problem {
        // What was deleted is to be known all the same.
        crate::outcome::print(&text);
        return Err(problem);
    }
    Ok(CommandOutcome { text, success: outcome.repositories.iter().all(Done::is_whole) })
}

/// Whether a plan deletes anything, be it refused or not.
fn some(planned: &Planned) -> bool {
    planned.plan.of(retain::Action::Delete).next().is_some()
}

/// Why a repository is not to be touched.
fn untouched(planned: &Planned, args: &Args) -> Option<String> {
    if !some(planned) {
        return None;
    }
    if let Some(why) = &planned.plan.refused {
        return Some(why.clone());
    }
    let is_report = planned.mode() == Mode::Report && !args.even_in_report_mode;
    is_report.then(|| {
        "its policy says `mode: report`: set `retention.mode` to `apply`, or say --even-in-report-mode"
            .to_owned()
    })
}

/// Asks, with the numbers. Nobody who could answer is a no.
fn confirm(planned: &[Planned], args: &Args) -> Result<(), Problem> {
    let touched: Vec<&Planned> =
        planned.iter().filter(|planned| untouched(planned, args).is_none() && some(planned)).collect();
    let (mut images, mut bytes) = (0, 0_u64);
    for planned in &touched {
        for verdict in planned.plan.deletions().into_iter().take(planned.most()) {
            images += 1;
            bytes = bytes.saturating_add(verdict.frees);
        }
    }
    let of = match touched.as_slice() {
        [one] => one.plan.repository.to_string(),
        several => format!("{} repositories", several.len()),
    };
    let question = format!("delete {} of {of}, which frees {}", count(images, "image"), size(bytes));
    let declined =
        |why: &str| Problem::no(format!("{why}: nothing was deleted"), format!("say --yes to {question}"));
    if !std::io::stdin().is_terminal() {
        return Err(declined("there is nobody to ask"));
    }
    let _ = write!(std::io::stderr(), "{question}, and cannot be undone? Type {images} to go on: ");
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if read.is_ok() && answer.trim() == images.to_string() { Ok(()) } else { Err(declined("not confirmed")) }
}

async fn carry_out(account: &Account, planned: Planned, args: &Args) -> (Done, Option<Problem>) {
    let mut done = Done::nothing(&planned);
    done.untouched = untouched(&planned, args);
    if done.untouched.is_some() || !some(&planned) {
        return (done, None);
    }
    let to_delete = planned.plan.deletions().len();
    let applied = retain::apply(account, planned.plan, &planned.projects, Timestamp::now()).await;
    done.deleted = account.take_deleted();
    match applied {
        Ok(applied) => {
            done.left = applied.left;
            done.changed = applied.changed;
            let refused = applied.refused.into_iter();
            done.refused = refused.map(|(digest, why)| Refused { digest, why }).collect();
            (done, None)
        }
        Err(error) => {
            done.left = to_delete - done.deleted.len();
            (done, Some(account::problem(&error)))
        }
    }
}

fn reported(outcome: &Outcome) -> String {
    let mut text = String::new();
    for done in &outcome.repositories {
        text += &of_repository(done);
    }
    text
}

fn of_repository(done: &Done) -> String {
    let Done { repository, untouched, deleted, changed, refused, left } = done;
    if let Some(why) = untouched {
        return format!("{repository}: left as it is; {}\n", plain_whole(why));
    }
    let mut text = format!("{repository}: deleted {}\n", count(deleted.len(), "image"));
    for digest in deleted {
        text += &format!("  deleted {digest}\n");
    }
    for digest in changed {
        text += &format!("  left    {digest}: it has changed since the plan, or a build was given it\n");
    }
    for Refused { digest, why } in refused {
        text += &format!("  refused {digest}: {}\n", plain_whole(why));
    }
    if *left > 0 {
        text += &format!("  {} left for the next run\n", count(*left, "image"));
    }
    text
}
