//! What people, metrics and the log get to know of promotions.

use std::collections::{BTreeMap, BTreeSet};

use buildkit_cache::{CacheHitRate, SAFE_SIZE};
use jiff::Timestamp;
use stoker_core::error::{Disposition, chain};
use stoker_core::event::{CacheHitRateDropped, Event, PromotionFailed};
use stoker_core::names::{Commit, Digest, Line, ProjectName};
use stoker_core::ports::Publish;
use stoker_core::promote::{self, Answer, MeasuredBuild, Outcome, PromotionTrigger};
use stoker_lambda::log;
use stoker_lambda::metrics::{self, Metric};

use crate::triggered::Triggered;

/// Notifies people of what they may want to know. Where that fails it is still in the log.
pub(super) async fn notify(ports: &impl Publish, answers: &[Answer], triggered: &[Triggered]) {
    let outcomes = answers.iter().flatten().flatten();
    let hopeless = answers.iter().zip(triggered).filter_map(|(answer, of)| {
        let error = answer.as_ref().err().filter(|error| is_hopeless(error, of.is_again()))?;
        let (of, why) = (of.trigger.to_string(), chain(&**error));
        Some(Event::PromotionFailed(PromotionFailed { of, why }))
    });
    let notices: Vec<Event> = outcomes.flat_map(notices).chain(hopeless).collect();
    if !notices.is_empty()
        && let Err(error) = ports.publish(&notices).await
    {
        tracing::warn!(error = chain(&error), "nobody is notified of it");
    }
}

fn notices(outcome: &Outcome) -> Vec<Event> {
    match outcome {
        Outcome::Failed(failed) => vec![Event::BuildFailed(failed.clone())],
        Outcome::Updated { line: Line::Main, project, builds, .. } => {
            let fell = builds.iter().filter_map(|measured| {
                let (reused_percent, before_percent) = measured.dropped()?;
                Some(Event::CacheHitRateDropped(CacheHitRateDropped {
                    project: project.clone(),
                    build: measured.build.clone(),
                    reused_percent,
                    before_percent,
                    first_misses: measured.first_misses.clone(),
                }))
            });
            fell.collect()
        }
        _ => Vec::new(),
    }
}

/// Whether trying again is of no use. Until a message of the queue is tried again, all others wait for three
/// minutes. So a branch that takes too long is let go at once, and main where it does even by itself.
fn is_hopeless(error: &promote::Error, again: bool) -> bool {
    match error {
        promote::Error::TooSlow { line } => again || *line != Line::Main,
        _ => error.disposition() == Disposition::Alarm,
    }
}

/// Logs what came of a trigger; false if it has to be tried again. What is of no use to try is let go: people
/// are notified, and the nightly reconciliation tries it once more.
pub(super) fn report_all(answer: &Answer, again: bool, now: Timestamp) -> bool {
    match answer {
        Ok(outcomes) => {
            for outcome in outcomes {
                report(outcome, now);
            }
            true
        }
        Err(error) => {
            log(error.disposition(), &**error);
            let hopeless = is_hopeless(error, again);
            if hopeless {
                metrics::put(now, &[], &[(Metric::PromotionsFailed, 1)]);
            }
            hopeless
        }
    }
}

fn report(outcome: &Outcome, now: Timestamp) {
    match outcome {
        Outcome::Updated { line, to, project, records, size, merged, on_probation, builds } => {
            let merged = merged.iter().map(Commit::as_str).collect::<Vec<_>>().join(" ");
            tracing::info!(
                %line, project.name = %project, cache.digest = %to, cache.records = records, cache.import_bytes = size,
                cache.probation_records = on_probation, git.merged = merged, "line updated"
            );
            for MeasuredBuild { build, commit, hit_rate, saved_seconds, .. } in builds {
                tracing::info!(
                    %line, project.name = %project, build.id = build, git.commit = %commit, cache.digest = %to,
                    steps.reused_count = hit_rate.reused, steps.built_count = hit_rate.built(),
                    layers.reused_bytes = hit_rate.reused_bytes, layers.built_bytes = hit_rate.built_bytes,
                    build.saved_seconds = saved_seconds,
                    "the cache hit rate of the build"
                );
                measure(project, line, hit_rate, *saved_seconds, now);
            }
        }
        Outcome::Failed(failed) => {
            tracing::error!(
                project.name = %failed.project, build.id = failed.build, line = %failed.line,
                build.reason = failed.reason,
                git.commit = failed.commit.as_ref().map(Commit::as_str), build.status = failed.status, "a build \
                     that Stoker started has failed"
            );
            metrics::put(now, &[failed.project.as_str()], &[(Metric::BuildsFailed, 1)]);
        }
        Outcome::MountSaved { project, mount, to, bytes, layers, build } => tracing::info!(
            project.name = %project, mount.id = %mount, cache.digest = %to, mount.bytes = bytes, mount.layers = layers,
            build.id = build, "the line of a cache mount was updated"
        ),
        Outcome::Repaired { tag } => tracing::info!(cache.tag = %tag, "line repaired"),
        Outcome::Unchanged { line } => tracing::info!(%line, "the line holds it already"),
        Outcome::Nothing(why) => tracing::info!(%why, "nothing to promote"),
    }
}

/// Turns a build's cache hit rate into metrics.
fn measure(
    project: &ProjectName,
    line: &Line,
    hit_rate: &CacheHitRate,
    saved_seconds: Option<u64>,
    now: Timestamp,
) {
    let kind = match line {
        Line::Main => "main",
        Line::Branch(_) => "branch",
        Line::PullRequest(_) => "pr",
        Line::GitTag(_) => "tag",
    };
    let mut metrics = vec![
        (Metric::StepsReused, hit_rate.reused as u64),
        (Metric::StepsBuilt, hit_rate.built() as u64),
        (Metric::BytesReused, hit_rate.reused_bytes),
        (Metric::BytesBuilt, hit_rate.built_bytes),
    ];
    metrics.extend(hit_rate.reused_percent().map(|percent| (Metric::CacheHitRate, u64::from(percent))));
    metrics.extend(saved_seconds.map(|seconds| (Metric::SecondsSaved, seconds)));
    metrics::put(now, &[project.as_str(), kind], &metrics);
}

/// Each line that was updated, once: every trigger for a line has the same answer.
fn updated(answers: &[Answer]) -> BTreeMap<(&ProjectName, &Line, &Digest), usize> {
    let outcomes = answers.iter().flatten().flatten();
    let updated = outcomes.filter_map(|outcome| match outcome {
        Outcome::Updated { line, to, project, size, .. } => Some(((project, line, to), *size)),
        _ => None,
    });
    updated.collect()
}

/// Turns the lines that were updated into metrics, a record for each project: that of the line with the least room.
pub(super) fn measure_lines(answers: &[Answer], now: Timestamp) {
    let mut projects: BTreeMap<&ProjectName, (u64, u64)> = BTreeMap::new();
    for ((project, ..), size) in updated(answers) {
        let (lines, headroom) = projects.entry(project).or_insert((0, u64::MAX));
        *lines += 1;
        *headroom = (*headroom).min(SAFE_SIZE.saturating_sub(size) as u64);
    }
    for (project, (lines, headroom)) in projects {
        let metrics = [(Metric::LinesUpdated, lines), (Metric::ImportHeadroom, headroom)];
        metrics::put(now, &[project.as_str()], &metrics);
    }
}

/// How many lines a reconciliation had to update or repair.
pub(super) fn drift(answers: &[Answer]) -> u64 {
    let repaired = answers.iter().flatten().flatten();
    let repaired = repaired.filter(|outcome| matches!(outcome, Outcome::Repaired { .. })).count();
    (updated(answers).len() + repaired) as u64
}

/// The projects whose main has got what this merge brought.
fn merged_into_main<'a>(trigger: &PromotionTrigger, outcomes: &'a [Outcome]) -> BTreeSet<&'a ProjectName> {
    let PromotionTrigger::Merged { commits, head, .. } = trigger else { return BTreeSet::new() };
    let is_of_trigger = |commit: &Commit| {
        commits.contains(commit) || head.as_ref().is_some_and(|(_, revision)| revision.names(commit))
    };
    let projects = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Updated { line: Line::Main, project, merged, .. } => {
            merged.iter().any(is_of_trigger).then_some(project)
        }
        _ => None,
    });
    projects.collect()
}

/// Measures the time from a merge until main's line had what was merged.
pub(super) fn measure_age(
    trigger: &PromotionTrigger,
    answer: &Answer,
    merged_at: Option<Timestamp>,
    now: Timestamp,
) {
    let (Some(merged_at), Ok(outcomes)) = (merged_at, answer) else { return };
    // The forge's clock may be ahead.
    let age = u64::try_from(now.duration_since(merged_at).as_millis()).unwrap_or_default();
    for project in merged_into_main(trigger, outcomes) {
        metrics::put(now, &[project.as_str()], &[(Metric::PromotionAge, age)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(digits: &str) -> Commit {
        Commit::new(digits.repeat(20)).unwrap()
    }

    fn moved_to(line: Line, to: &str, merged: &[Commit]) -> Outcome {
        Outcome::Updated {
            line,
            to: Digest::of(to.as_bytes()),
            project: ProjectName::new("app").unwrap(),
            records: 1,
            size: 1,
            merged: merged.to_vec(),
            on_probation: 0,
            builds: Vec::new(),
        }
    }

    #[test]
    fn a_merge_has_an_age_only_where_main_got_what_it_brought() {
        let merged = |commits: &[Commit]| PromotionTrigger::Merged {
            repository: stoker_core::names::Repository::new("github.com/example/app").unwrap(),
            line: Line::Main,
            commits: commits.to_vec(),
            head: None,
            at: None,
        };
        let (a, b) = (commit("aa"), commit("bb"));
        let outcomes = [moved_to(Line::Main, "1", std::slice::from_ref(&a))];
        let brought = |commits: &[Commit]| merged_into_main(&merged(commits), &outcomes).len();
        assert_eq!(brought(&[a.clone(), b.clone()]), 1);
        assert_eq!(brought(&[b]), 0, "the line moved for another reason");
        let built = PromotionTrigger::Built { build: "app:1".to_owned() };
        assert_eq!(merged_into_main(&built, &outcomes).len(), 0);
        let elsewhere = [moved_to(Line::PullRequest(7), "1", std::slice::from_ref(&a))];
        assert_eq!(merged_into_main(&merged(&[a]), &elsewhere).len(), 0);
    }

    #[test]
    fn drift_counts_each_line_once() {
        let one = || Ok(vec![moved_to(Line::Main, "1", &[])]);
        let repaired =
            Ok(vec![Outcome::Repaired { tag: stoker_core::names::Tag::known("app.main").unwrap() }]);
        let nothing = Ok(vec![Outcome::Nothing(promote::NothingToPromote::WritesNothing)]);
        assert_eq!(drift(&[one(), one(), nothing, repaired]), 2);
        assert_eq!(drift(&[]), 0);
    }
}
