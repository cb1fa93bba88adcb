//! `stoker lines`: every line of a repository.

use jiff::Timestamp;
use serde::Serialize;
use stoker_core::names::ProjectName;

use crate::cache::to_json;
use crate::lines::{Column, Entry, NONE, places, project_name, read_all, render};
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::reference::Repository;
use crate::remote::Remotes;
use crate::text::{Align, plain};

/// Lists the lines of a repository that Stoker keeps: what each holds, where it comes from, and whether
/// BuildKit imports it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker lines 123456789012.dkr.ecr.eu-west-1.amazonaws.com/stoker/app
  stoker lines registry.example/app/cache --project app
  stoker lines --json registry.example/app/cache | jq -r '.lines[] | select(.importable | not) | .line'

A line is a mutable reference to a cache, like a git branch: `main`, `branch/<name>` or `pr/<number>`. COMMIT, \
BUILT and \
BUILD are of the newest build in it, MERGED is the commit whose cache a merge brought in last. PROBATION is how many \
of its keys a merge brought to main that no build of main has used yet: `stoker cache inspect` shows which. LIMIT is \
how near it is to the size at which BuildKit imports it no more.

A line whose manifest does not name it is shown as its tag spells it: `branch.<slug>`.")]
pub(crate) struct Args {
    /// The repository, such as registry.example/app/cache
    repository: Repository,
    /// Only the lines of this project
    #[arg(long, value_name = "NAME", value_parser = project_name)]
    project: Option<ProjectName>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    repository: String,
    lines: Vec<Entry>,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let remotes = Remotes::default();
    let mut places = places(&remotes, &args.repository, args.project.as_ref()).await?;
    places.retain(|place| place.left_at.is_none());
    let lines = read_all(&remotes, &args.repository, &places).await?;
    let report = Report { repository: args.repository.to_string(), lines };
    Ok(CommandOutcome::yes(if args.json { to_json(&report) } else { reported(&report, Timestamp::now()) }))
}

const FIRST: [Column; 3] = [
    Column { head: "LINE", align: Align::Left, cell: |entry, _| plain(&entry.line) },
    Column {
        head: "PROJECT",
        align: Align::Left,
        cell: |entry, _| {
            entry.origin.project.as_ref().map_or_else(|| entry.scope.clone(), ToString::to_string)
        },
    },
    Column {
        head: "TRUST",
        align: Align::Left,
        cell: |entry, _| entry.origin.trust.as_deref().map_or_else(|| NONE.to_owned(), plain),
    },
];

fn reported(report: &Report, now: Timestamp) -> String {
    let Report { repository, lines } = report;
    if lines.is_empty() {
        return format!("{repository} has no lines\n");
    }
    format!("{repository}\n{}", render(lines, &FIRST, now))
}
