//! `stoker history`: the caches that a line has been.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use stoker_core::names::{Digest, Line, ProjectName};

use crate::cache::to_json;
use crate::lines::{Column, Entry, places_of, project_name, read_all, render};
use crate::outcome::CommandOutcome;
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

The first is what the line is now. Each of the others stays for `retention.history` of the policy, or the lease \
where that is \
longer, after the line has left it, and of main also the newest `keep-at-least`; until it is deleted `stoker \
rollback` puts the \
line back to it.")]
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

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let remotes = Remotes::default();
    let (current, past) = places_of(&remotes, &args.repository, &args.line, args.project.as_ref()).await?;
    let places = [vec![current], past].concat();
    let mut caches = read_all(&remotes, &args.repository, &places).await?;
    order(&mut caches);
    let report = Report { repository: args.repository.to_string(), line: args.line.to_string(), caches };
    Ok(CommandOutcome::yes(if args.json { to_json(&report) } else { reported(&report, Timestamp::now()) }))
}

/// A tag's time has whole seconds. Of caches that the line left within one, each names the one that it followed.
fn order(caches: &mut [Entry]) {
    let parents: BTreeMap<Digest, Option<Digest>> =
        caches.iter().map(|entry| (entry.digest.clone(), entry.origin.parent.clone())).collect();
    let mut ages = BTreeMap::new();
    let mut next = caches.first().map(|entry| entry.digest.clone());
    while let Some(digest) = next.filter(|digest| !ages.contains_key(digest)) {
        next = parents.get(&digest).cloned().flatten();
        ages.insert(digest, ages.len());
    }
    if let [_, past @ ..] = caches {
        past.sort_by_key(|entry| {
            (Reverse(entry.left_at), ages.get(&entry.digest).copied().unwrap_or(usize::MAX))
        });
    }
}

const FIRST: [Column; 1] =
    [Column { head: "LEFT", align: Align::Left, cell: |entry, now| ago(now, entry.left_at, "is now") }];

fn reported(report: &Report, now: Timestamp) -> String {
    let Report { repository, line, caches } = report;
    format!(
        "{line} in {repository}\n{}\nWhat the line left stays as long as the policy says (`retention.history`). \
         To put the line back to one \
         of them:\n  stoker rollback {repository} {line} --to DIGEST\n",
        render(caches, &FIRST, now)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::Origin;

    #[test]
    fn what_a_line_left_within_one_second_is_reported_in_the_order_of_parents() {
        let entry = |name: &str, parent: Option<&str>, left_at: Option<&str>| Entry {
            line: "main".to_owned(),
            scope: "app".to_owned(),
            tag: name.to_owned(),
            digest: Digest::of(name.as_bytes()),
            left_at: left_at.map(|time| format!("2026-11-21T08:00:{time}Z").parse().unwrap()),
            origin: Origin { parent: parent.map(|name| Digest::of(name.as_bytes())), ..Origin::default() },
            importable: true,
            holds: None,
            mount: None,
            why: None,
        };
        let mut caches = [
            entry("d", Some("c"), None),
            entry("b", Some("a"), Some("01")),
            entry("a", Some("gone"), Some("01")),
            entry("c", Some("b"), Some("01")),
            entry("stray", None, Some("00")),
        ];
        order(&mut caches);
        assert_eq!(caches.map(|entry| entry.tag), ["d", "c", "b", "a", "stray"]);
    }
}
