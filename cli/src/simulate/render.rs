//! The answer as people read it.

use stoker_core::build_inputs::variable;

use super::lookup::{GivenInputs, Look, Looked};
use super::report::{Report, Reported};
use crate::text::{Align, plain, plain_whole, table};

const LEFT: [Align; 6] = [Align::Left; 6];

pub(super) fn render(report: &Report) -> String {
    let Report { given, events, ignored, .. } = report;
    let mut text = String::new();
    if let (Some(forge), Some(name)) = (&given.forge, &given.name) {
        text += &format!("`{}` of {}\n", plain(name), plain(forge));
    }
    for note in &given.notes {
        text += &format!("  note: {note}\n");
    }
    if ignored.is_none() {
        for reported in events {
            text += &event(reported, report.offline);
        }
    }
    text + &format!("In short: {}\n", plain_whole(&report.summary))
}

fn event(reported: &Reported, offline: bool) -> String {
    let of = reported.repository.as_ref().map(|name| format!(" of {}", plain(name))).unwrap_or_default();
    let head = ["FUNCTION", "PROJECT", "DECISION", "RULE", "ENTRY", "WHY"].map(str::to_owned).to_vec();
    let rows = reported.decisions.iter().map(|entry| {
        let none = || "-".to_owned();
        vec![
            entry.function.to_owned(),
            entry.project.as_ref().map_or_else(none, ToString::to_string),
            // The key has a column of its own.
            plain(entry.summary.split(": ").next().unwrap_or_default()),
            entry.rule.to_owned(),
            entry.policy_entry.clone().unwrap_or_else(none),
            plain(&entry.text),
        ]
    });
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let mut text = format!("{}{of}\n{}", plain(&reported.kind), table("  ", &LEFT, &rows));
    for build in reported.decisions.iter().filter_map(|entry| entry.build.as_ref()) {
        text += &inputs(build, offline);
    }
    text
}

fn inputs(build: &GivenInputs, offline: bool) -> String {
    let commit = build.commit.as_deref().map(|commit| format!(" at {}", plain(commit))).unwrap_or_default();
    let by = build.run_by.as_ref().map(|project| format!(" by {project}")).unwrap_or_default();
    let mut text = format!("Build of {}{commit}{by}, trust: {}\n", plain(build.line()), build.trust);
    if let Some(reference) = &build.reference {
        text += &format!("  fetched as  {}\n", plain(reference));
    }
    text += &format!("  reads from  {}\n", build.reads_from);
    if build.targets.iter().any(|target| target.exports_to.is_some()) {
        text += &format!("  writes to   {}\n", build.writes_to);
    }
    if let Some(flags) = build.environment.get(variable::BUILDER) {
        text += &format!("  builder     {flags}\n");
    }
    if let Some(left_out) = build.left_out {
        text += &format!("  left out    {left_out}\n");
    }
    for target in &build.targets {
        text += &looked(target, offline);
    }
    text
}

fn looked(looked: &Looked, offline: bool) -> String {
    let head = ["LOOKS AT", "TAG", "FOUND", "GIVEN"].map(str::to_owned).to_vec();
    let rows = looked.looks_at.iter().map(|look| {
        let digest = look.digest.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        vec![plain(&look.name), plain(&look.tag), digest, is_given(look)]
    });
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let exports = looked.exports_to.as_deref().unwrap_or("nothing: it must not write");
    let found = if offline { ", as if nothing were there" } else { "" };
    format!(
        "  target {}\n{}    exports to  {exports}\n    flags{found}:\n      {}\n",
        looked.target,
        table("    ", &LEFT[..4], &rows),
        if looked.flags.is_empty() { "none" } else { &looked.flags },
    )
}

fn is_given(look: &Look) -> String {
    match (&look.given, &look.why) {
        (None, _) => "not looked up".to_owned(),
        (Some(true), None) => "yes".to_owned(),
        (Some(true), Some(why)) => format!("yes: {}", plain(why)),
        (Some(false), why) => format!("no: {}", plain(why.as_deref().unwrap_or_default())),
    }
}
