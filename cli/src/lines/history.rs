//! `stoker history`: the caches that a line has been.

use jiff::Timestamp;
use serde::Serialize;
use stoker::names::{Line, ProjectName};

use crate::Answer;
use crate::cache::to_json;
use crate::lines::{Column, Entry, places_of, project_name, read_all, render};
use crate::problem::Problem;
use crate::reference::Repository;
use crate::remote::Remotes;
use crate::text::{Align, ago};

/// Lists the caches that a line has been, the newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker history registry.example/app/cache main
  stoker history registry.example/app/cache branch/feature/a --project app
  stoker history --json registry.example/app/cache main | jq -r '.caches[1].digest'

The first is what the line is now. Each of the others stays for the lease of the policy (`retention.lease`) after the line \
has left it, and is then deleted; until then `stoker rollback` puts the line back to it.")]
pub(crate) struct Args {
    /// The repository, such as registry.example/app/cache
    repository: Repository,
    /// The line: main, branch/<name> or pr/<number>
    #[arg(value_parser = Line::parse)]
    line: Line,
    /// The line's project, where the repository has lines of several
    #[arg(long, value_name = "NAME", value_parser = project_name)]
    project: Option<ProjectName>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    repository: String,
    line: String,
    /// What the line is, then what it was.
    caches: Vec<Entry>,
}

pub(crate) async fn run(args: &Args) -> Result<Answer, Problem> {
    let remotes = Remotes::default();
    let (current, past) = places_of(&remotes, &args.repository, &args.line, args.project.as_ref()).await?;
    let places = [vec![current], past].concat();
    let caches = read_all(&remotes, &args.repository, &places).await?;
    let report = Report { repository: args.repository.to_string(), line: args.line.to_string(), caches };
    Ok(Answer::yes(if args.json { to_json(&report) } else { told(&report, Timestamp::now()) }))
}

const FIRST: [Column; 1] =
    [Column { head: "LEFT", align: Align::Left, cell: |entry, now| ago(now, entry.left_at, "is now") }];

fn told(report: &Report, now: Timestamp) -> String {
    let Report { repository, line, caches } = report;
    format!(
        "{line} in {repository}\n{}\nWhat the line left stays for the lease of the policy only. To put the line back to one of \
         them:\n  stoker rollback {repository} {line} --to DIGEST\n",
        render(caches, &FIRST, now)
    )
}
