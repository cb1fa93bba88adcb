//! `stoker plan`: which caches live, which go, and why.

use jiff::Timestamp;

use super::account::Account;
use super::report::Report;
use super::{Which, plan_all, render};
use crate::cache::to_json;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;

/// Says which caches of the policy's repositories would be deleted now, by which rule, and what that frees
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker plan
  stoker plan --policy new.yaml --project app
  stoker plan --all
  stoker plan --json | jq '.totals'

It reads every manifest of the repositories, and plans by the code of the nightly function; nothing is written. \
Region and \
credentials are found as the AWS command line finds them. Of a repository that several projects share, all are judged.

SIZE is what the image's layers have, FREES what goes when it is deleted after those before it: layers that \
stay for another \
image are not freed. Dollars are storage at the price of us-east-1.")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// List what is kept, too
    #[arg(long)]
    all: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    super::load(&args.which.policy)?;
    let account = Account::find(None).await?;
    let now = Timestamp::now();
    let planned = plan_all(&account, &args.which, now).await?;
    let report = Report::new(args.which.policy.display().to_string(), now, &planned, args.all);
    Ok(CommandOutcome::yes(if args.json { to_json(&report) } else { render::plans(&report) }))
}
