//! Updates lines. Its batches come from a FIFO queue, so that one invocation at a time updates a line. At night it checks for
//! drift: that comes by a queue of its own and updates no line, and a project with drift goes through the first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use buildkit_cache::{CacheHitRate, SAFE_SIZE};
use jiff::{SignedDuration, Timestamp};
use stoker_core::error::{Disposition, chain};
use stoker_core::event::{CacheHitRateDropped, Due, Event, PromotionFailed};
use stoker_core::names::{Commit, Digest, Line, ProjectName};
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::{ListProjects, Publish};
use stoker_core::promote::reconcile::{self, reconcile};
use stoker_core::promote::{self, Answer, MeasuredBuild, Outcome, PromotionTrigger, Shares, promote_in_turn};
use stoker_core::routing::Function;
use stoker_core::schedule;
use stoker_lambda::log;
use stoker_lambda::metrics::{self, Metric};
use stoker_lambda::sqs::{Message, Next, for_each};

/// The ports that promotion needs, those of the reconciliation included.
pub trait Ports: reconcile::Ports + ListProjects + Publish {}
impl<P: reconcile::Ports + ListProjects + Publish> Ports for P {}

/// Main's builds that reused at least this much, in percent, and then less than half of what they did, have cooled.
const WARM_PERCENT: u8 = 50;

/// After so long nothing more is begun in an invocation; what is left comes again. A line takes 40 seconds at most.
const TIME: Duration = Duration::from_secs(70);

/// Projects with drift, each with the messages that say so.
type Drifted = BTreeMap<ProjectName, (Project, Vec<String>)>;

/// Behind a message that has waited for so long others wait, too.
const LATE: SignedDuration = SignedDuration::from_secs(10);

/// What an instance of the function remembers between batches.
#[derive(Debug, Default)]
pub struct Instance {
    shares: Shares,
}

/// A message with a trigger.
struct Triggered {
    message: Message,
    trigger: PromotionTrigger,
    /// When the forge, or else the bus, knew of what happened.
    at: Option<Timestamp>,
}

impl Triggered {
    /// Whether it has been tried before, and that try failed or was killed.
    fn is_again(&self) -> bool {
        self.message.receives > 1
    }
}

/// Handles a batch; answers the messages that are to be tried again.
pub async fn handle(
    batch: &SqsEvent,
    policy: &Policy,
    ports: &impl Ports,
    instance: &Instance,
    now: Timestamp,
) -> SqsBatchResponse {
    let started = Instant::now();
    let mut triggered = Vec::new();
    let mut drifted = Drifted::new();
    let read = for_each(Function::PromoteCache, batch, async |message| {
        match &message.event {
            Event::NightlyReconcile(tick) => {
                schedule::put_due(ports, policy, *tick, message.due(now), Event::ReconcileRequested).await?;
            }
            Event::ReconcileRequested(Due { project }) => check(ports, policy, project, now).await?,
            Event::DriftFound(Due { project }) => {
                if let Some(project) = policy.project(project) {
                    let (_, ids) = drifted.entry(project.name.clone()).or_insert((project, Vec::new()));
                    ids.push(message.id);
                }
            }
            event => match PromotionTrigger::of(event) {
                Some(trigger) => {
                    let at = [event.signed_at(), message.time].into_iter().flatten().min();
                    triggered.push(Triggered { trigger: trigger.known_at(at), message, at });
                }
                None => tracing::debug!("no trigger"),
            },
        }
        Ok(Next::Done)
    });
    let mut again = read.await;
    let answers = promote_all(ports, policy, instance, &triggered, now).await;
    notify(ports, &answers, &triggered).await;
    let done = now + SignedDuration::try_from(started.elapsed()).unwrap_or_default();
    measure_lines(&answers, done);
    for (of, answer) in triggered.iter().zip(&answers) {
        let _in_span = of.message.span.enter();
        measure_age(&of.trigger, answer, of.at, done);
        if !report_all(answer, of.is_again(), now) {
            again.add(&of.message.id);
        }
    }
    reconcile_all(ports, policy, drifted, now).await.into_iter().for_each(|id| again.add(id));
    again.into()
}

/// Promotes all at once, but for what comes again, each of which goes by itself. Whichever of a batch takes more time or
/// memory than there is, the others do not fail with it a second time.
async fn promote_all(
    ports: &impl Ports,
    policy: &Policy,
    instance: &Instance,
    triggered: &[Triggered],
    now: Timestamp,
) -> Vec<Answer> {
    let started = tokio::time::Instant::now();
    let waited = |of: &Triggered| of.message.sent_at.map(|sent_at| now.duration_since(sent_at));
    let turn = (&instance.shares, triggered.iter().filter_map(waited).max() > Some(LATE));
    let mut answers: Vec<Answer> = triggered.iter().map(|_| Ok(Vec::new())).collect();
    let (again, first): (Vec<usize>, Vec<usize>) =
        (0..triggered.len()).partition(|&place| triggered[place].is_again());
    let alone = again.into_iter().map(|place| vec![place]);
    for places in [first].into_iter().chain(alone).filter(|places| !places.is_empty()) {
        let group: Vec<PromotionTrigger> =
            places.iter().map(|&place| triggered[place].trigger.clone()).collect();
        let promoted = if started.elapsed() < TIME {
            // Boxed: the compiler lays out only so deep a future.
            Box::pin(promote_in_turn(ports, policy, &group, turn, now)).await
        } else {
            let no_time = |trigger: &PromotionTrigger| {
                Err(Arc::new(promote::Error::NoTime { of: trigger.to_string() }))
            };
            group.iter().map(no_time).collect()
        };
        for (place, answer) in places.into_iter().zip(promoted) {
            answers[place] = answer;
        }
    }
    answers
}

/// Checks whether a project has drift. Most have none, and keep nobody waiting whose line is to be updated.
async fn check(
    ports: &impl Ports,
    policy: &Policy,
    project: &ProjectName,
    now: Timestamp,
) -> Result<(), promote::Error> {
    let Some(project) = policy.project(project) else { return Ok(()) };
    if reconcile::has_drift(ports, &project, now).await? {
        ports.publish(&[Event::DriftFound(Due { project: project.name })]).await?;
    }
    Ok(())
}

/// Repairs the drift of projects; answers the messages of those where that failed.
async fn reconcile_all(ports: &impl Ports, policy: &Policy, drifted: Drifted, now: Timestamp) -> Vec<String> {
    let (projects, ids): (Vec<Project>, Vec<Vec<String>>) = drifted.into_values().unzip();
    let mut failed = Vec::new();
    for ((answers, ids), project) in
        reconcile(ports, policy, &projects, now).await.iter().zip(ids).zip(&projects)
    {
        notify(ports, answers, &[]).await;
        measure_lines(answers, now);
        let drift = drift(answers);
        metrics::put(now, &[project.name.as_str()], &[(Metric::DriftRepaired, drift)]);
        let left = answers.iter().filter(|answer| !report_all(answer, false, now)).count();
        tracing::info!(project.name = %project.name, triggers = answers.len(), drift, failed = left, "reconcile");
        if left > 0 {
            failed.extend(ids);
        }
    }
    failed
}

/// Notifies people of what they may want to know. Where that fails it is still in the log.
async fn notify(ports: &impl Publish, answers: &[Answer], triggered: &[Triggered]) {
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
            let fell =
                builds.iter().filter_map(|MeasuredBuild { build, hit_rate, before_percent, .. }| {
                    let (reused_percent, before_percent) = (hit_rate.reused_percent()?, (*before_percent)?);
                    (before_percent >= WARM_PERCENT && reused_percent < before_percent / 2).then(|| {
                        let (project, build) = (project.clone(), build.clone());
                        Event::CacheHitRateDropped(CacheHitRateDropped {
                            project,
                            build,
                            reused_percent,
                            before_percent,
                        })
                    })
                });
            fell.collect()
        }
        _ => Vec::new(),
    }
}

/// Whether trying again is of no use. Until a message of the queue is tried again, all others wait for three minutes. So a branch that takes
/// too long is let go at once, and main where it does even by itself.
fn is_hopeless(error: &promote::Error, again: bool) -> bool {
    match error {
        promote::Error::TooSlow { line } => again || *line != Line::Main,
        _ => error.disposition() == Disposition::Alarm,
    }
}

/// Logs what came of a trigger; false if it has to be tried again. What is of no use to try is let go: people are notified, and the
/// nightly reconciliation tries it once more.
fn report_all(answer: &Answer, again: bool, now: Timestamp) -> bool {
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
                project.name = %failed.project, build.id = failed.build, line = %failed.line, build.reason = failed.reason,
                git.commit = failed.commit.as_ref().map(Commit::as_str), build.status = failed.status, "a build that Stoker started has failed"
            );
            metrics::put(now, &[failed.project.as_str()], &[(Metric::BuildsFailed, 1)]);
        }
        Outcome::MountSaved { project, mount, to, bytes, layers, build } => tracing::info!(
            project.name = %project, mount.id = %mount, cache.digest = %to, mount.bytes = bytes, mount.layers = layers,
            build.id = build, "the line of a cache mount moved"
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
fn measure_lines(answers: &[Answer], now: Timestamp) {
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
fn drift(answers: &[Answer]) -> u64 {
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
fn measure_age(trigger: &PromotionTrigger, answer: &Answer, merged_at: Option<Timestamp>, now: Timestamp) {
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
