//! Plans as people read them.

use jiff::Timestamp;

use super::report::{Judged, OfRepository, Report, Totals};
use crate::text::{Align, ago, count, plain, plain_whole, size, table};

pub(super) fn plans(report: &Report) -> String {
    let mut text = String::new();
    for repository in &report.repositories {
        text += &of_repository(repository, report.at);
        text.push('\n');
    }
    if report.repositories.is_empty() {
        text += "the policy serves no project that is there\n";
    }
    if report.repositories.len() > 1 {
        text += &format!("All {} repositories\n{}", report.repositories.len(), totals(&report.totals));
    }
    if report.totals.bytes > 0 {
        text += &format!(
            "Dollars are of storage, at ${:.2} for a GB and month: us-east-1, beyond the free tier\n",
            report.dollars_per_gb_month
        );
    }
    text
}

fn of_repository(repository: &OfRepository, now: Timestamp) -> String {
    let names: Vec<&str> = repository.projects.iter().map(stoker_core::names::ProjectName::as_str).collect();
    let mut text = format!("{} ({}), mode {}\n", names.join(", "), repository.repository, repository.mode);
    if repository.totals.images == 0 {
        return text + "  no images\n";
    }
    text += &groups(&repository.verdicts, now);
    text += &totals(&repository.totals);
    text += &rules(repository);
    for note in repository.refused.iter().chain(&repository.notes) {
        text += &format!("  note: {}\n", plain_whole(note));
    }
    text
}

/// The images by scope and line, in the order of the plan.
fn groups(verdicts: &[Judged], now: Timestamp) -> String {
    let mut text = String::new();
    let key = |verdict: &Judged| (verdict.scope.clone(), verdict.line.clone());
    for group in verdicts.chunk_by(|a, b| key(a) == key(b)) {
        let Some(first) = group.first() else { continue };
        let line = first.line.as_deref().map(|line| format!(", {}", plain(line))).unwrap_or_default();
        let scope = match &first.scope {
            Some(scope) => plain(scope),
            None if group.iter().all(|verdict| verdict.tags.is_empty()) => "without a tag".to_owned(),
            None => "without a tag of Stoker's".to_owned(),
        };
        text += &format!("  {scope}{line}\n");
        let head = ["ACTION", "RULE", "DIGEST", "PUSHED", "SIZE", "FREES", "TAG", "WHY"];
        let rows = group.iter().map(|verdict| row(verdict, now));
        let rows: Vec<Vec<String>> = std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect();
        let (left, right) = (Align::Left, Align::Right);
        text += &table("    ", &[left, left, left, left, right, right, left, left], &rows);
    }
    text
}

fn row(verdict: &Judged, now: Timestamp) -> Vec<String> {
    let tags = match verdict.tags.as_slice() {
        [] => "-".to_owned(),
        [tag] => plain(tag),
        [tag, more @ ..] => format!("{} +{}", plain(tag), more.len()),
    };
    vec![
        verdict.action.clone(),
        verdict.rule.to_owned(),
        verdict.digest.short(),
        ago(now, Some(verdict.pushed_at), "unknown"),
        size(verdict.bytes),
        if verdict.action == "delete" { size(verdict.frees) } else { "-".to_owned() },
        tags,
        plain_whole(&verdict.why),
    ]
}

fn totals(totals: &Totals) -> String {
    let Totals { images, delete, wait, keep, bytes, bytes_after, .. } = totals;
    format!(
        "  {}: delete {delete}, keep {keep}, wait for running builds {wait}\n  {} now, {} after: frees {}, \
         ${:.2} of ${:.2} a month\n",
        count(*images, "image"),
        size(*bytes),
        size(*bytes_after),
        size(bytes - bytes_after),
        totals.dollars_per_month - totals.dollars_per_month_after,
        totals.dollars_per_month,
    )
}

fn rules(repository: &OfRepository) -> String {
    let rows: Vec<Vec<String>> = repository
        .rules
        .iter()
        .map(|of| {
            let frees = if of.frees > 0 { format!("frees {}", size(of.frees)) } else { String::new() };
            vec![of.action.clone(), of.rule.to_owned(), of.images.to_string(), frees]
        })
        .collect();
    let (left, right) = (Align::Left, Align::Right);
    format!("  by rule\n{}", table("    ", &[left, left, right, left], &rows))
}
