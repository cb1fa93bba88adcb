//! The causes as people read them.

use std::collections::BTreeMap;

use cache_misses::{Cause, EmptyMount, Miss, Rule};

use super::Reported;
use super::merged::PullRequest;
use crate::text::{Align, count, plain, plain_whole, table};

/// Names of steps are cut to so many characters.
const WIDTH: usize = 60;
/// GitHub takes no longer text of a commit's status.
const LINE: usize = 140;
/// How many names are written out.
const NAMES: usize = 3;

pub(crate) fn text(reported: &Reported) -> String {
    let report = &reported.report;
    let mut text = format!("commit {}\n", plain(&reported.commit));
    if report.misses.is_empty() {
        return text + &format!("  {} reused; nothing ran\n", count(report.reused, "step"));
    }
    let mut rows = vec![["STEP", "TIME", "WHY"].map(str::to_owned).to_vec()];
    rows.extend(report.misses.iter().map(|miss| row(miss, &reported.pull_requests)));
    text += &table("  ", &[Align::Left, Align::Right, Align::Left], &rows);
    text += &format!(
        "{} ran, {} reused; lost to misses {}, unavoidable {}\n",
        count(report.misses.len(), "step"),
        report.reused,
        seconds(report.lost_seconds),
        seconds(report.unavoidable_seconds)
    );
    for why in &reported.missing {
        text += &format!("not all is known: {}\n", plain_whole(why));
    }
    text
}

/// The outcome in a line that every forge takes: what was lost, and the first miss that cost most.
pub(crate) fn line(reported: &Reported) -> String {
    let report = &reported.report;
    let ran = count(report.misses.len(), "step");
    let mut text = format!("{ran} ran, {} reused; lost {}", report.reused, seconds(report.lost_seconds));
    let lost = report.misses.iter().filter(|miss| miss.is_first && miss.is_unavoidable != Some(true));
    let cost = |miss: &&Miss| miss.seconds.unwrap_or_default();
    if let Some(miss) = lost.max_by(|a, b| cost(a).total_cmp(&cost(b))) {
        text += &format!("; {}: {}", place(&miss.step), cause(&miss.cause, &reported.pull_requests));
    }
    cut(&text, LINE)
}

fn row(miss: &Miss, pull_requests: &BTreeMap<String, PullRequest>) -> Vec<String> {
    let exact = if miss.is_exact { " (exact)" } else { "" };
    let first = if miss.is_first { "first miss: " } else { "" };
    let time = miss.seconds.map(seconds).unwrap_or_default();
    let mut why = format!("{first}{}{exact}", cause(&miss.cause, pull_requests));
    for EmptyMount { id, why: reason } in &miss.empty_mounts {
        why += &format!("; its cache mount {} was empty: {}", plain(id), plain_whole(reason));
    }
    vec![clipped(&miss.step), time, why]
}

fn clipped(step: &str) -> String {
    let step: String = step.split_whitespace().collect::<Vec<_>>().join(" ");
    cut(&plain_whole(&step), WIDTH)
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        text.to_owned()
    } else {
        text.chars().take(width - 3).chain("...".chars()).collect()
    }
}

fn seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

/// A commit, and the pull request that brought it.
fn short(commit: &str, pull_requests: &BTreeMap<String, PullRequest>) -> String {
    let of = pull_requests.get(commit).map(|number| format!(" ({number})"));
    plain(commit.get(..7).unwrap_or(commit)) + &of.unwrap_or_default()
}

/// A cause in one sentence.
fn cause(cause: &Cause, pull_requests: &BTreeMap<String, PullRequest>) -> String {
    let short = |commit: &str| short(commit, pull_requests);
    match cause {
        Cause::Content { commit, files, count } => {
            let names: Vec<String> = files.iter().take(NAMES).map(|file| plain(file)).collect();
            let more = if *count > names.len() {
                format!(" and {} more", count - names.len())
            } else {
                String::new()
            };
            let what = if names.is_empty() { "what it reads".to_owned() } else { names.join(", ") + &more };
            match commit {
                Some(commit) => format!("{what} changed in {}", short(commit)),
                None => format!("{what} changed"),
            }
        }
        Cause::Untracked => {
            "what it copies changed, and no commit changed it: .git, or files that git does not track"
                .to_owned()
        }
        Cause::Instruction { commit, before } => {
            format!("the instruction changed in {}; it was `{}`", short(commit), clipped(before))
        }
        Cause::New { commit } => format!("nothing had built it before: new in {}", short(commit)),
        Cause::Setting { commit } => {
            format!(
                "a flag of it, or an ENV, ARG, USER, WORKDIR or SHELL above it, changed in {}",
                short(commit)
            )
        }
        Cause::Order { commit: Some(commit) } => {
            format!("other steps come before it since {}", short(commit))
        }
        Cause::Order { commit: None } => "other steps come before it".to_owned(),
        Cause::Argument { names, before } => {
            let names: Vec<String> = names.iter().map(|name| plain(name)).collect();
            let was = before.as_ref().map(|before| format!("; it was {}", plain(before))).unwrap_or_default();
            format!("the build argument {} changed{was}", names.join(" or "))
        }
        Cause::Network { before, now } => {
            format!("the network is {} and was {}", plain(now), plain(before))
        }
        Cause::Base { image, before } => {
            let was = before.as_ref().map(|before| format!(" and was {}", plain(before))).unwrap_or_default();
            format!("the base image moved: it is {}{was}", plain(image))
        }
        Cause::OtherBytes { steps } => format!("{} ran again and left other bytes", places(steps)),
        Cause::Follows { steps, also } => {
            let also = also
                .as_ref()
                .map(|also| format!("; {}, too", self::cause(also, pull_requests)))
                .unwrap_or_default();
            format!("follows from {}{also}", places(steps))
        }
        Cause::Dropped { cache, note, rule } => {
            let text = with_note(&format!("it was in {} and is no more", plain(cache)), note);
            text + &rule.as_ref().map(|rule| format!("; {}", by(rule, &short))).unwrap_or_default()
        }
        Cause::RolledBack { cache, note } => {
            with_note(&format!("it left with a rollback of {}", plain(cache)), note)
        }
        Cause::NotGiven { cache, note } if cache.is_empty() => plain_whole(note),
        Cause::NotGiven { cache, note } => {
            with_note(&format!("it is in {}, which the build was not given", plain(cache)), note)
        }
        Cause::NotImported { cache, error } => {
            format!("{} could not be imported: {}", plain(cache), plain(error))
        }
        Cause::NotUsed { cache, all } => {
            let flag = if *all { "--no-cache" } else { "--no-cache-filter" };
            format!("{} has it, and the build did not look for it, as with {flag}", plain(cache))
        }
        Cause::Uncacheable { what } => plain_whole(what),
        Cause::Unknown { would_tell } => format!("unknown; what would tell: {}", plain_whole(would_tell)),
    }
}

fn with_note(text: &str, note: &str) -> String {
    if note.is_empty() { text.to_owned() } else { format!("{text}: {}", plain_whole(note)) }
}

/// The rule by which a line lost something.
fn by(rule: &Rule, short: &impl Fn(&str) -> String) -> String {
    match rule {
        Rule::Refreshed => "a build from scratch took the line's place".to_owned(),
        Rule::Probation { commit } => format!("its probation for the merge of {} ended", short(commit)),
        Rule::Limits { last_used } => {
            let used = last_used.map(|at| format!(", last used at {at:.0}")).unwrap_or_default();
            format!("the line's limits left no room for it{used}, or its layers were lost")
        }
    }
}

/// The parts of some steps' names in brackets.
fn places(steps: &[String]) -> String {
    steps.iter().take(NAMES).map(|step| place(step)).collect::<Vec<_>>().join(", ")
}

/// The part of a step's name in brackets.
fn place(step: &str) -> String {
    plain(step.split_inclusive(']').next().unwrap_or(step))
}
