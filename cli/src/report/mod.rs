//! `stoker report`: what the caches hold, save and cost, as a page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use stoker_core::names::ProjectName;
use stoker_core::policy::Project;
use stoker_core::ports::{BuildStatus, ReadBuilds as _};

use crate::cache::to_json;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain::{Account, Which, call_problem, config, plan_all};
use crate::text::{Align, count, plain_whole, size, table};
use crate::why;

mod data;
mod lost;
mod page;
#[cfg(test)]
mod tests;

use data::{BuildsOf, DAYS, Report, Repository, Seen, gather};
use lost::LostCause;

/// How many projects' builds are asked for at once.
const REQUESTS_AT_ONCE: usize = 8;
/// Of how many builds of a project the log and the caches are read at most: a log may have megabytes.
const LOGS: usize = 20;

/// Makes a page of what the caches hold, what they save, what they cost, and what retention would do
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker report
  stoker report --project app --out app.html
  stoker report --dollars-per-minute 0.01      # builds run on general1.medium
  stoker report --json | jq .figures
  stoker report --why app=../app               # and what misses cost, by the logs of app's 20 newest builds

The page is one file that needs no network and no script: it can be mailed, archived and printed. Nothing is started, \
written to AWS or deleted. Time saved is the median of builds that were given no caches less what each build \
took that was, \
by CodeBuild project; fewer than three such cold builds tell nothing.")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// Where the page is written, or `-` for standard output
    #[arg(long, value_name = "FILE", default_value = "stoker-report.html")]
    out: PathBuf,
    /// What a minute of a build costs; unless given, general1.small on Linux
    #[arg(long, value_name = "DOLLARS", default_value = "0.005", value_parser = crate::text::price)]
    dollars_per_minute: f64,
    /// Also say what misses cost, by the checkout of a project; of its newest builds that ended well
    #[arg(long, value_name = "PROJECT=DIRECTORY", value_parser = checkout)]
    why: Vec<(ProjectName, PathBuf)>,
    /// Print the figures as JSON instead, for programs
    #[arg(long, conflicts_with = "out")]
    json: bool,
}

/// Reads a project and the directory of its checkout.
fn checkout(text: &str) -> Result<(ProjectName, PathBuf), String> {
    let (project, directory) = text.split_once('=').ok_or("write PROJECT=DIRECTORY")?;
    Ok((ProjectName::new(project).map_err(|error| error.to_string())?, directory.into()))
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let report = Box::pin(read(args, Timestamp::now())).await?;
    if args.json {
        return Ok(CommandOutcome::yes(to_json(&report)));
    }
    let page = page::page(&report);
    if args.out == Path::new("-") {
        return Ok(CommandOutcome::yes(page));
    }
    std::fs::write(&args.out, page).map_err(|error| {
        Problem::usage(
            format!("cannot write {}: {error}", args.out.display()),
            "name another file with --out, or - for standard output",
        )
    })?;
    Ok(CommandOutcome::yes(said(&report, &args.out)))
}

/// What is said of a page that was written.
fn said(report: &Report, path: &Path) -> String {
    let mut text = format!(
        "Wrote {}: {} in {}, of which the plan would free {}\n",
        path.display(),
        size(report.figures.bytes),
        count(report.figures.images, "image"),
        size(report.figures.frees)
    );
    for of in &report.lost_time {
        text += &format!("{}\n", page::lost_in_words(of, report.days));
        let mut rows = vec![["STEP", "CAUSE", "BUILDS", "LOST"].map(str::to_owned).to_vec()];
        rows.extend(of.causes.iter().map(|cause| {
            let LostCause { step, kind, builds, minutes } = cause;
            vec![plain_whole(step), kind.clone(), builds.to_string(), page::minutes(*minutes)]
        }));
        text += &table("  ", &[Align::Left, Align::Left, Align::Right, Align::Right], &rows);
    }
    if !report.notes.is_empty() {
        text += &format!("  {} at its end\n", count(report.notes.len(), "note"));
    }
    text
}

/// Reads the account: repositories and plans as `stoker plan` does, and the builds of the days that the report is of.
async fn read(args: &Args, now: Timestamp) -> Result<Report, Problem> {
    let account = Account::find(None).await?;
    let planned = plan_all(&account, &args.which, now).await?;
    let projects: BTreeMap<ProjectName, Project> = planned
        .iter()
        .flat_map(|planned| &planned.projects)
        .map(|project| (project.name.clone(), project.clone()))
        .collect();
    let projects: Vec<Project> = projects.into_values().collect();
    // Builds of forks run in a project of their own.
    let built_by: BTreeSet<&ProjectName> = projects
        .iter()
        .flat_map(|project| [Some(&project.name), project.builds.forks.project.as_ref()])
        .flatten()
        .collect();
    let since = now - SignedDuration::from_hours(24 * DAYS);
    let builds = stream::iter(built_by).map(|project| {
        let account = &account;
        async move {
            let builds = account.recent(project, Some(since)).await?;
            Ok(BuildsOf { project: project.clone(), builds })
        }
    });
    let builds: Vec<BuildsOf> =
        builds.buffered(REQUESTS_AT_ONCE).try_collect().await.map_err(|error| call_problem(&error))?;
    let repositories: Vec<Repository> = planned
        .into_iter()
        .map(|planned| Repository { inventory: planned.inventory, plan: planned.plan })
        .collect();
    let mut report = gather(Seen {
        now,
        account: account.number().map(str::to_owned),
        region: account.region().map(str::to_owned),
        projects: &projects,
        repositories: &repositories,
        builds: &builds,
        dollars_per_minute: args.dollars_per_minute,
    });
    let config = config(None).await?;
    for (project, checkout) in &args.why {
        let Some(of) = builds.iter().find(|of| of.project == *project) else {
            return Err(Problem::usage(
                format!("no builds of {project} are read"),
                "name a project of the report with --why",
            ));
        };
        let mut ended: Vec<_> = of
            .builds
            .iter()
            .filter(|build| build.status == BuildStatus::Succeeded && build.inputs.is_some())
            .collect();
        ended.sort_by_key(|build| std::cmp::Reverse(build.started_at));
        let mut reported = Vec::new();
        for build in ended.iter().take(LOGS) {
            match why::of_build(&config, &build.id, checkout).await {
                Ok(of_build) => {
                    let missing = of_build.missing().first();
                    report
                        .notes
                        .extend(missing.map(|why| format!("not all is known of {}: {why}", build.id)));
                    reported.push(of_build);
                }
                Err(problem) => {
                    report.notes.push(format!("why steps of {} ran: {}", build.id, problem.text()));
                }
            }
        }
        report.lost_time.push(lost::lost(project, ended.len(), reported.iter().map(why::Reported::report)));
    }
    Ok(report)
}
