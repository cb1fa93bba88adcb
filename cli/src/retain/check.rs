//! `stoker policy check`: is the policy one, and what does it serve?

use std::path::PathBuf;

use serde::Serialize;
use stoker_core::error::chain;
use stoker_core::policy::{LoadError, Policy};

use crate::cache::to_json;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::text::{Align, count, plain, plain_whole, table};

/// Checks a policy: tells every mistake with its place, or what it serves
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker policy check
  stoker policy check new.yaml && git add new.yaml
  stoker policy check --json | jq -r '.mistakes[] | \"\\(.line):\\(.column): \\(.text)\"'

Exit code 1 says that it has mistakes. Nothing is asked of AWS: whether projects and repositories exist is not \
looked up.")]
pub(crate) struct Args {
    /// The policy
    #[arg(value_name = "PATH", default_value = "policy/stoker.yaml")]
    path: PathBuf,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    policy: String,
    sound: bool,
    mistakes: Vec<Mistake>,
    projects: Vec<Served>,
    /// Entries for whatever projects CodeBuild has by these names.
    globs: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mistake {
    line: usize,
    column: usize,
    #[serde(skip_serializing_if = "String::is_empty")]
    field: String,
    text: String,
}

/// A project that the policy names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Served {
    project: String,
    repository: String,
    cache_repository: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    builds_repository: Option<String>,
    targets: usize,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_entry: Option<String>,
}

#[expect(clippy::unused_async, reason = "a command is a future")]
pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let policy = args.path.display().to_string();
    let (report, text) = match Policy::load(&args.path) {
        Ok(served) => {
            let report = served_by(policy, &served);
            let text = reported(&report);
            (report, text)
        }
        Err(LoadError::Mistakes(mistakes)) => {
            let all = mistakes.iter().map(|mistake| Mistake {
                line: mistake.line,
                column: mistake.column,
                field: mistake.path.clone(),
                text: mistake.text.clone(),
            });
            let (projects, globs) = (Vec::new(), Vec::new());
            let report = Report { policy, sound: false, mistakes: all.collect(), projects, globs };
            let lines: Vec<String> = mistakes.to_string().lines().map(plain_whole).collect();
            (report, lines.join("\n") + "\n")
        }
        Err(error @ LoadError::Read { .. }) => {
            return Err(Problem::usage(plain_whole(&chain(&error)), "name a file that you may read"));
        }
    };
    Ok(CommandOutcome { text: if args.json { to_json(&report) } else { text }, success: report.sound })
}

fn served_by(policy: String, served: &Policy) -> Report {
    let projects = served.named_projects().into_iter().map(|project| Served {
        policy_entry: served.entry_of(&project.name),
        targets: project.targets.len(),
        mode: project.retention.mode.to_string(),
        project: project.name.into(),
        repository: project.repository.into(),
        cache_repository: project.cache_repository.into(),
        builds_repository: project.builds_repository.map(Into::into),
    });
    let globs = served.globs().collect();
    Report { policy, sound: true, mistakes: Vec::new(), projects: projects.collect(), globs }
}

fn reported(report: &Report) -> String {
    let head = ["PROJECT", "REPOSITORY", "CACHES", "BUILDS WRITE TO", "TARGETS", "RETENTION"];
    let rows = report.projects.iter().map(|served| {
        let writes_to = served.builds_repository.as_ref().unwrap_or(&served.cache_repository);
        vec![
            served.project.clone(),
            plain(&served.repository),
            served.cache_repository.clone(),
            writes_to.clone(),
            served.targets.to_string(),
            served.mode.clone(),
        ]
    });
    let rows: Vec<Vec<String>> = std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect();
    let mut text = format!("{} is sound: {}", plain(&report.policy), count(report.projects.len(), "project"));
    if !report.globs.is_empty() {
        let globs: Vec<String> = report.globs.iter().map(|glob| format!("`{}`", plain(glob))).collect();
        text += &format!(", and those of CodeBuild's that match {}", globs.join(", "));
    }
    text.push('\n');
    if !report.projects.is_empty() {
        let [left, right] = [Align::Left, Align::Right];
        text += &table("  ", &[left, left, left, left, right, left], &rows);
    }
    text
}
