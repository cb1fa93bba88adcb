//! What Stoker would do with an event, said before it happens: by the very functions that decide when it does.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;

use crate::event::{Envelope, Event, RetentionRequested};
use crate::names::{Line, ProjectName, Tag};
use crate::policy::{Mode, Policy, Project, Promotion};
use crate::promote::PromotionTrigger;
use crate::request::{Request, Subject};
use crate::routing::{self, Function, Queue};
use crate::schedule::is_due;
use crate::trigger::trigger;
use crate::warm::{self, MainPushed};

/// What one function does for one project.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The function.
    pub function: &'static str,
    /// The project; `None` where the policy names none.
    pub project: Option<Project>,
    /// What it does.
    pub action: Action,
    /// The key of the policy that says so, or `event` where nothing else could be done with such an event.
    pub rule: &'static str,
    /// What it does and why, for people.
    pub text: String,
}

impl Decision {
    /// The project's name.
    #[must_use]
    pub fn project_name(&self) -> Option<&ProjectName> {
        self.project.as_ref().map(|project| &project.name)
    }

    /// The line that it is about, where it is about one.
    #[must_use]
    pub fn line(&self) -> Option<&Line> {
        match &self.action {
            Action::Build(request) => Some(&request.wanted.line),
            Action::Promote(line) | Action::Retain(line) => line.as_ref(),
            Action::Warm => Some(&Line::Main),
            Action::Nothing | Action::Notify => None,
        }
    }

    /// The decision in a few words, such as `build branch/a`, `promote main` or `no build: builds.paths`.
    #[must_use]
    pub fn brief(&self) -> String {
        let of_line = self.line().map(|line| format!(" {line}")).unwrap_or_default();
        match &self.action {
            Action::Build(request) if Some(&request.built_by) != self.project_name() => {
                format!("build{of_line} by {}", request.built_by)
            }
            Action::Build(_) | Action::Promote(_) | Action::Warm => format!("{}{of_line}", self.action),
            Action::Retain(Some(line)) => format!("retention of {line}"),
            Action::Retain(None) => "retention".to_owned(),
            Action::Notify => "notify people".to_owned(),
            Action::Nothing => {
                let what = match self.function {
                    "start-build" => "build",
                    "promote-cache" => "promotion",
                    "warm-main" => "warming",
                    "enforce-retention" => "retention",
                    other => other,
                };
                format!("no {what}: {}", self.rule)
            }
        }
    }
}

/// All that an event leads to, in a few words; projects are named where there are several, but for those of globs.
#[must_use]
pub fn brief(decisions: &[Decision]) -> String {
    let projects: BTreeSet<_> = decisions.iter().map(Decision::project_name).collect();
    let words = decisions.iter().map(|decision| match decision.project_name() {
        Some(project) if projects.len() > 1 => format!("{project}: {}", decision.brief()),
        _ => decision.brief(),
    });
    words.collect::<Vec<_>>().join("; ")
}

/// What a function does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// It starts this build, unless that has been started before.
    Build(Box<Request>),
    /// It merges a cache into this line, or what a build wrote into the build's line.
    Promote(Option<Line>),
    /// It builds main if nothing else has.
    Warm,
    /// It looks which of this line's caches can go, or which of all.
    Retain(Option<Line>),
    /// It notifies people.
    Notify,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "nothing",
            Self::Build(_) => "build",
            Self::Promote(_) => "promote",
            Self::Warm => "warm",
            Self::Retain(_) => "retain",
            Self::Notify => "notify",
        })
    }
}

/// What an event leads to. `now` stands for the time of an event that has none.
#[must_use]
pub fn simulate(policy: &Policy, envelope: &Envelope, now: Timestamp) -> Vec<Decision> {
    let event = &envelope.event;
    let at = envelope.time.unwrap_or(now);
    let mut functions: Vec<Function> = routing::queues(event).map(Queue::function).collect();
    if functions.is_empty() && routing::NOTICES.contains(&event.detail_type()) {
        let text = "for people: no function of Stoker's acts on it".to_owned();
        return vec![Decision {
            function: "none",
            project: None,
            action: Action::Notify,
            rule: "event",
            text,
        }];
    }
    if functions.is_empty() {
        // Such as a build that has not ended: why nothing is done is theirs to say.
        functions = routing::of_kind(event).map(|route| route.queue.function()).collect();
    }
    let decided = functions.iter().flat_map(|function| match function {
        Function::StartBuild => of_repository(policy, event).map(|project| start(&project, event)).collect(),
        Function::PromoteCache => promotion(policy, event, at),
        Function::WarmMain => warming(policy, event, at),
        Function::EnforceRetention => retention(policy, event, at),
    });
    let mut decisions: Vec<Decision> = decided.collect();
    // All that is done for a project together.
    let order: Vec<Option<ProjectName>> = decisions.iter().map(|of| of.project_name().cloned()).collect();
    decisions.sort_by_key(|of| order.iter().position(|name| name.as_ref() == of.project_name()));
    or_nobody(decisions, functions.first().map_or("none", |function| function.name()))
}

/// The projects of the repository that an event of a forge is about.
fn of_repository(policy: &Policy, event: &Event) -> impl Iterator<Item = Project> {
    event.repository().map(|repository| policy.projects_of(repository)).unwrap_or_default().into_iter()
}

/// What `promote-cache` does.
fn promotion(policy: &Policy, event: &Event, at: Timestamp) -> Vec<Decision> {
    let function = Function::PromoteCache.name();
    match event {
        Event::NightlyReconcile(tick) => {
            let due = |project: &Project| is_due(project.name.as_str(), *tick, at);
            each(policy, function, Action::Promote(None), due, reconciled)
        }
        Event::ReconcileRequested(due) | Event::DriftFound(due) => {
            policy.project(&due.project).map(reconciled).into_iter().collect()
        }
        Event::BuildStateChange(change) => {
            let decided = policy.project(&change.project_name).map(|project| {
                let (action, text) = match PromotionTrigger::of(event) {
                    Some(PromotionTrigger::Failed { .. }) => {
                        (Action::Notify, "notifies people, if Stoker started the build")
                    }
                    Some(_) => (
                        Action::Promote(None),
                        "merges what the build exported into its line, if CodeBuild confirms it",
                    ),
                    None => (Action::Nothing, "the build has not ended, or somebody stopped it"),
                };
                decision(function, project, action, "event", text)
            });
            decided.into_iter().collect()
        }
        Event::ImageAction(action) => {
            let tag = action.image_tag.as_deref().and_then(Tag::parse);
            let project =
                tag.and_then(|(scope, _)| policy.project_of_export(&action.repository_name, &scope));
            if let Some(project) = project.filter(|_| PromotionTrigger::of(event).is_some()) {
                let text = "checks that builds can import it; merges it into its build's line, should that have ended";
                return vec![decision(function, project, Action::Promote(None), "event", text)];
            }
            let text = "no export of a project of the policy".to_owned();
            vec![Decision { function, project: None, action: Action::Nothing, rule: "event", text }]
        }
        Event::BranchPushed(push) => {
            let projects = of_repository(policy, event);
            projects.map(|project| merged(&project, &Line::Main, push.commits.len())).collect()
        }
        Event::PullRequestMerged(pull) => {
            let of_project = |project: Project| {
                if PromotionTrigger::of(event).is_some() {
                    return merged(&project, &Line::of_branch(&pull.base, &pull.default_branch), 1);
                }
                let text = "nothing of a fork's is brought to a line: its builds write nothing";
                decision(function, project, Action::Nothing, "builds.forks", text)
            };
            of_repository(policy, event).map(of_project).collect()
        }
        _ => Vec::new(),
    }
}

/// What `warm-main` does.
fn warming(policy: &Policy, event: &Event, at: Timestamp) -> Vec<Decision> {
    match event {
        Event::NightlyWarm(tick) => {
            let due = |project: &Project| is_due(project.name.as_str(), *tick, at);
            each(policy, Function::WarmMain.name(), Action::Warm, due, night)
        }
        Event::WarmRequested(due) => policy.project(&due.project).map(night).into_iter().collect(),
        Event::BuildFailed(failed) => {
            policy.project(&failed.project).map(built_once_more).into_iter().collect()
        }
        Event::BranchPushed(push) => {
            let pushed = MainPushed { push: push.clone(), at };
            of_repository(policy, event).map(|project| warmed(project, &pushed)).collect()
        }
        _ => Vec::new(),
    }
}

/// What `enforce-retention` does.
fn retention(policy: &Policy, event: &Event, at: Timestamp) -> Vec<Decision> {
    let function = Function::EnforceRetention.name();
    match event {
        Event::NightlyRetention(tick) => {
            let due = |project: &Project| {
                let mut repositories = project.repositories();
                repositories.any(|repository| is_due(repository.as_str(), *tick, at))
            };
            each(policy, function, Action::Retain(None), due, retained)
        }
        Event::RetentionRequested(RetentionRequested { repository, projects }) => {
            let projects = projects.iter().filter_map(|name| policy.project(name));
            let of_repository = |project: &Project| project.repositories().any(|own| own == repository);
            projects.filter(of_repository).map(retained).collect()
        }
        Event::PullRequestClosed(pull) => {
            let of_project = |project: Project| {
                if pull.from_fork {
                    return gone(project, Line::PullRequest(pull.number));
                }
                let text = "the branch's line goes with the branch";
                decision(function, project, Action::Nothing, "event", text)
            };
            of_repository(policy, event).map(of_project).collect()
        }
        Event::BranchDeleted(deleted) => {
            let line = Line::of_branch(&deleted.branch, &deleted.default_branch);
            of_repository(policy, event).map(|project| gone(project, line.clone())).collect()
        }
        _ => Vec::new(),
    }
}

fn decision(
    function: &'static str,
    project: Project,
    action: Action,
    rule: &'static str,
    text: impl Into<String>,
) -> Decision {
    Decision { function, project: Some(project), action, rule, text: text.into() }
}

/// Nobody is served by the policy, or these projects are.
fn or_nobody(decisions: Vec<Decision>, function: &'static str) -> Vec<Decision> {
    if !decisions.is_empty() {
        return decisions;
    }
    let text = "the policy names no project for it".to_owned();
    vec![Decision { function, project: None, action: Action::Nothing, rule: "projects", text }]
}

/// Every project that the policy names, at a tick of the night, and those of CodeBuild that its globs match,
/// which it does not know.
fn each(
    policy: &Policy,
    function: &'static str,
    action: Action,
    is_due: impl Fn(&Project) -> bool,
    simulate: impl Fn(Project) -> Decision,
) -> Vec<Decision> {
    let of_tick = |project: Project| {
        if is_due(&project) {
            simulate(project)
        } else {
            decision(function, project, Action::Nothing, "event", "another tick is its turn")
        }
    };
    let mut decisions: Vec<Decision> = policy.named_projects().into_iter().map(of_tick).collect();
    if policy.has_globs() {
        let text = "the same for every project of CodeBuild that a glob of the policy matches".to_owned();
        decisions.push(Decision { function, project: None, action, rule: "projects", text });
    }
    decisions
}

fn start(project: &Project, event: &Event) -> Decision {
    match trigger(project, event) {
        Err(skipped) => {
            decision(Function::StartBuild.name(), project.clone(), Action::Nothing, skipped.rule, skipped.why)
        }
        Ok(request) => {
            let mut text =
                format!("builds {} unless that has been built: {}", reported(&request), request.reason);
            if tells_no_files(project, event) {
                text += "; the forge does not tell its files, as of every new branch, so `paths` holds nothing back \
                         (`builds.paths-unknown: skip` would)";
            }
            decision(
                Function::StartBuild.name(),
                project.clone(),
                Action::Build(Box::new(request)),
                "builds",
                text,
            )
        }
    }
}

/// Whether a push is built though `paths` asks for files, and none are told.
fn tells_no_files(project: &Project, event: &Event) -> bool {
    let Event::BranchPushed(push) = event else { return false };
    push.paths.is_none() && !project.builds.paths.match_all()
}

fn merged(project: &Project, line: &Line, commits: usize) -> Decision {
    let function = Function::PromoteCache.name();
    if project.promotion.into_line(line) {
        let text = match commits {
            0 => format!("the push names no commit whose cache could join {line}"),
            1 => format!("the cache of the commit joins {line}, if a build has made one"),
            n => format!("the cache of the newest of {n} commits that a build has made one of joins {line}"),
        };
        let action = if commits == 0 { Action::Nothing } else { Action::Promote(Some(line.clone())) };
        return decision(function, project.clone(), action, "promotion", text);
    }
    let text = match project.promotion {
        Promotion::Rebuild => "no branch's bytes come to main: its own build fills it",
        _ => "merges bring nothing",
    };
    decision(function, project.clone(), Action::Nothing, "promotion", text)
}

/// What a request builds, for people.
fn reported(request: &Request) -> String {
    let line = &request.wanted.line;
    match &request.subject {
        Subject::Commit(commit) => format!("{} of {line}", commit.short()),
        Subject::Head { .. } => format!("the head of {line}"),
    }
}

fn warmed(project: Project, pushed: &MainPushed) -> Decision {
    let function = Function::WarmMain.name();
    let own = "warm.after-merge";
    if let warm::Decision::Skip(why) = warm::decide_after_push(&project, pushed, &[]) {
        let (rule, text) = match why {
            warm::SkipReason::NotBuilt(skipped) => (skipped.rule, skipped.why),
            _ => (own, "main is not warmed after a push to it".to_owned()),
        };
        return decision(function, project, Action::Nothing, rule, text);
    }
    let text = "builds main in a moment, should nothing else have built this push";
    decision(function, project, Action::Warm, own, text)
}

fn built_once_more(project: Project) -> Decision {
    let (action, text) = if project.warm.after_merge {
        (
            Action::Warm,
            "builds main once more, unless a newer build of it has not failed, or the last two have",
        )
    } else {
        (Action::Nothing, "main is not built once more")
    };
    decision(Function::WarmMain.name(), project, action, "warm.after-merge", text)
}

fn night(project: Project) -> Decision {
    let text =
        "builds main if its cache is missing, behind, stale, due to be refreshed, or on an old base image";
    decision(Function::WarmMain.name(), project, Action::Warm, "warm", text)
}

fn reconciled(project: Project) -> Decision {
    let text = "promotes what builds of two days exported and merges brought, should that have been missed; repairs \
                lines that have lost layers";
    decision(Function::PromoteCache.name(), project, Action::Promote(None), "event", text)
}

fn retained(project: Project) -> Decision {
    let text = format!("plans which of its caches can go, {}", mode(&project));
    decision(Function::EnforceRetention.name(), project, Action::Retain(None), "retention.mode", text)
}

fn gone(project: Project, line: Line) -> Decision {
    let function = Function::EnforceRetention.name();
    if line == Line::Main {
        return decision(function, project, Action::Nothing, "event", "main is never deleted");
    }
    let text = format!("in a while plans to delete the caches of {line}, {}", mode(&project));
    decision(function, project, Action::Retain(Some(line)), "retention.mode", text)
}

fn mode(project: &Project) -> &'static str {
    match project.retention.mode {
        Mode::Report => "and only says so",
        Mode::Apply => "and does it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(policy: &str, event: &str) -> String {
        let policy = Policy::parse("policy", &format!("version: 1\nprojects: [{policy}]")).unwrap();
        let envelope = Envelope::parse(event).unwrap();
        brief(&simulate(&policy, &envelope, Timestamp::UNIX_EPOCH))
    }

    #[test]
    fn projects_of_globs_are_not_forgotten_at_night() {
        let night = |policy: &str| {
            ["NightlyWarm", "NightlyReconcile", "NightlyRetention"].map(|kind| {
                decided(policy, &format!(r#"{{"source":"stoker","detail-type":"{kind}","detail":{{}}}}"#))
            })
        };
        let glob = "{ name: 'team-*', repository: 'github.com/example/{project}' }";
        let both = format!("{{ name: app, repository: github.com/example/app }}, {glob}");
        assert_eq!(night(glob), ["warm main", "promote", "retention"]);
        assert_eq!(
            night(&both),
            ["app: warm main; warm main", "app: promote; promote", "app: retention; retention"]
        );
        assert_eq!(night(""), ["no warming: projects", "no promotion: projects", "no retention: projects"]);
    }

    #[test]
    fn what_is_due_is_its_own_project_or_repository() {
        let due = |kind: &str, detail: &str| {
            let policy = "{ name: app, repository: github.com/example/app, builds-repository: 'builds/{project}' }, \
                          { name: lib, repository: github.com/example/lib }";
            decided(policy, &format!(r#"{{"source":"stoker","detail-type":"{kind}","detail":{detail}}}"#))
        };
        for kind in ["ReconcileRequested", "DriftFound"] {
            assert_eq!(due(kind, r#"{"project":"app"}"#), "promote");
            assert_eq!(due(kind, r#"{"project":"other"}"#), "no promotion: projects");
        }
        for (repository, expected) in [
            ("stoker/app", "retention"),
            ("builds/app", "retention"),
            // Those of the projects that are not named are not theirs.
            ("stoker/lib", "no retention: projects"),
        ] {
            let detail = format!(r#"{{"repository":"{repository}","projects":["app","other"]}}"#);
            assert_eq!(due("RetentionRequested", &detail), expected, "{repository}");
        }
    }

    #[test]
    fn every_project_of_a_repository_is_known_by_its_name() {
        let policy = "{ name: web, repository: github.com/example/app }, \
                      { name: api, repository: github.com/example/app, builds: { start: false } }";
        let deleted = r#"{"source":"stoker","detail-type":"BranchDeleted","detail":
            {"repository":"github.com/example/app","branch":"main","default_branch":"main"}}"#;
        assert_eq!(decided(policy, deleted), "web: no retention: event; api: no retention: event");
        let pushed = r#"{"source":"stoker","detail-type":"BranchPushed","detail":
            {"repository":"github.com/example/app","branch":"a","commit":"1111111111111111111111111111111111111111",
             "default_branch":"main","to_default_branch":false}}"#;
        assert_eq!(decided(policy, pushed), "web: build branch/a; api: no build: builds.start");
    }

    #[test]
    fn what_is_for_people_is_no_functions() {
        let failed = |line: &str| {
            let event = r#"{"source":"stoker","detail-type":"BuildFailed","detail":
                {"project":"app","build":"app:1","line":"LINE","reason":"push","status":"FAILED"}}"#;
            event.replace("LINE", line)
        };
        assert_eq!(
            decided("{ name: app, repository: github.com/example/app }", &failed("branch/a")),
            "notify people"
        );
        assert_eq!(
            decided("{ name: app, repository: github.com/example/app }", &failed("main")),
            "warm main"
        );
    }
}
