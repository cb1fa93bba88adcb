//! The trigger: whether an event starts a build of a project, and which key of the policy says so. A build that Stoker
//! starts does not pass by CodeBuild's own webhook filters, so what they would keep out has to be kept out here.

use std::fmt;

use crate::event::{Approval, BranchPushed, Change, Event, PullRequest, TagPushed};
use crate::names::{Commit, Line};
use crate::policy::{Builds, ForkBuilds, PathsUnknown, Project};
use crate::request::{Request, Subject, Trust, Wanted};

/// Why an event starts no build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The key of the policy that says so, or `event` where the event itself is none that builds.
    pub rule: &'static str,
    /// Why, for people.
    pub why: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.why, self.rule)
    }
}

type Triggered = Result<Request, Skipped>;

fn skipped(rule: &'static str, why: impl Into<String>) -> Skipped {
    Skipped { rule, why: why.into() }
}

/// How GitLab's references of merge requests begin.
const MERGE_REQUEST: &str = "refs/merge-requests/";

/// The build that an event starts, or why it starts none. The event has to be of the project's repository.
pub fn trigger(project: &Project, event: &Event) -> Result<Request, Skipped> {
    match event {
        Event::BranchPushed(push) => pushed(project, push),
        Event::TagPushed(push) => tagged(project, push),
        Event::PullRequestUpdated(pull) => updated(project, pull),
        Event::PullRequestApproved(approval) => approved(project, approval),
        _ => Err(skipped("event", "nothing to build")),
    }
}

fn pushed(project: &Project, push: &BranchPushed) -> Triggered {
    let builds = &project.builds;
    let line = Line::of_branch(&push.branch, &push.default_branch);
    started_here(project)?;
    if line != Line::Main && !builds.on_push {
        return Err(skipped("builds.on", "the pushes of a branch start no build"));
    }
    if !builds.branches.matches(push.branch.as_str()) {
        return Err(skipped("builds.branches", format!("the branch `{}` is not built", push.branch)));
    }
    wanted_by_push(project, push)?;
    // What a merge brought to main is given to main's build at once: it need not wait for the promotion.
    let merged = if line == Line::Main { push.commits.clone() } else { Vec::new() };
    Ok(Request {
        trust: Trust::of(&line),
        wanted: Wanted { line, base: None, merged },
        subject: Subject::Commit(push.commit.clone()),
        reason: "push".to_owned(),
        built_by: project.name.clone(),
        reference: push.reference.clone(),
        pushed_at: push.pushed_at,
        overtakes: push.before.clone(),
    })
}

/// A tag is pushed to be built: that a commit asks CI to stay away, as those of a release do, is no reason.
/// It changes no file, so `paths` has nothing to say, and what `skip-paths` guards nobody can tell of it.
fn tagged(project: &Project, push: &TagPushed) -> Triggered {
    let builds = &project.builds;
    started_here(project)?;
    if !builds.on_tag {
        return Err(skipped("builds.on", "the pushes of tags start no build"));
    }
    if !builds.tags.matches(push.tag.as_str()) {
        return Err(skipped("builds.tags", format!("the tag `{}` is not built", push.tag)));
    }
    by_actor(builds, push.actor.as_deref())?;
    with_message(builds, push.message.as_deref())?;
    let line = Line::GitTag(push.tag.clone());
    Ok(Request {
        trust: Trust::of(&line),
        wanted: Wanted { line, base: None, merged: Vec::new() },
        subject: Subject::Commit(push.commit.clone()),
        reason: "tag".to_owned(),
        built_by: project.name.clone(),
        reference: None,
        pushed_at: push.pushed_at,
        overtakes: None,
    })
}

/// What holds of a push whoever builds it: who pushed, what the author says, and which files changed.
pub fn wanted_by_push(project: &Project, push: &BranchPushed) -> Result<(), Skipped> {
    let builds = &project.builds;
    if builds.skip_marks && push.skips_ci {
        return Err(skipped("builds.skip-marks", "the push asks that it is not built"));
    }
    by_actor(builds, push.actor.as_deref())?;
    with_message(builds, push.message.as_deref())?;
    with_files(builds, push.paths.as_deref())
}

fn updated(project: &Project, pull: &PullRequest) -> Triggered {
    let builds = &project.builds;
    started_here(project)?;
    if pull.from_fork {
        match builds.forks.build {
            ForkBuilds::None => {
                return Err(skipped("builds.forks", "pull requests from forks are not built"));
            }
            ForkBuilds::AfterApproval => {
                let why = format!("waits until one of the approvers approves {}", pull.commit.short());
                return Err(skipped("builds.forks", why));
            }
            ForkBuilds::ReadOnly => {}
        }
    }
    if !builds.on_pull_request.contains(&pull.change) {
        return Err(skipped("builds.on", "such a change of a pull request starts no build"));
    }
    between_branches(builds, pull)?;
    if pull.from_fork {
        fit(builds, pull)?;
        wanted_by_pull_request(builds, pull)?;
        return of_fork(project, pull);
    }
    if builds.on_push && pull.change == Change::Pushed {
        return Err(skipped("builds.on", "the push itself says more: it is what starts the build"));
    }
    if builds.on_push && !builds.paths.match_all() {
        return Err(skipped("builds.paths", "only a push tells which files changed"));
    }
    fit(builds, pull)?;
    wanted_by_pull_request(builds, pull)?;
    let line = Line::of_branch(&pull.branch, &pull.default_branch);
    let base = Line::of_branch(&pull.base, &pull.default_branch);
    Ok(Request {
        trust: Trust::of(&line),
        wanted: Wanted { line, base: (base != Line::Main).then_some(base), merged: Vec::new() },
        subject: Subject::Commit(whole(pull)?),
        reason: format!("pull request #{}", pull.number),
        built_by: project.name.clone(),
        reference: None,
        pushed_at: pull.updated_at,
        overtakes: None,
    })
}

/// Who approves has looked at the very commit: that it is a draft, labelled or marked was there to be seen.
/// All else that keeps a fork's pull request from being built keeps an approved one, too.
fn approved(project: &Project, approval: &Approval) -> Triggered {
    let pull = &approval.pull_request;
    let builds = &project.builds;
    let forks = &builds.forks;
    started_here(project)?;
    if !pull.from_fork || forks.build != ForkBuilds::AfterApproval {
        return Err(skipped("builds.forks", "no build waits for an approval"));
    }
    if !forks.approvers.iter().any(|known| known.eq_ignore_ascii_case(&approval.approver)) {
        return Err(skipped(
            "builds.forks",
            format!("{} is none of the approvers", approval.approver.escape_debug()),
        ));
    }
    if approval.commit != pull.commit {
        let why =
            format!("{} was approved, and the head is {}", approval.commit.short(), pull.commit.short());
        return Err(skipped("builds.forks", why));
    }
    // What was approved may have come with the pull request or with a later push, and nobody tells which.
    if ![Change::Opened, Change::Pushed].iter().all(|change| builds.on_pull_request.contains(change)) {
        return Err(skipped("builds.on", "not every pull request is to be built"));
    }
    between_branches(builds, pull)?;
    wanted_by_pull_request(builds, pull)?;
    of_fork(project, pull)
}

/// A build of a fork's code: it runs in a project of its own, reads main, and writes nothing.
fn of_fork(project: &Project, pull: &PullRequest) -> Triggered {
    if pull.reference.as_deref().is_some_and(|reference| reference.starts_with(MERGE_REQUEST)) {
        let why = "CodeBuild fetches what no branch holds from GitHub only, and no merge request of a fork from GitLab";
        return Err(skipped("builds.forks", why));
    }
    let built_by = project.builds.forks.project.clone();
    let built_by =
        built_by.ok_or_else(|| skipped("builds.forks", "no project is named that builds forks"))?;
    let base = Line::of_branch(&pull.base, &pull.default_branch);
    Ok(Request {
        trust: Trust::Fork,
        wanted: Wanted {
            line: Line::PullRequest(pull.number),
            base: (base != Line::Main).then_some(base),
            merged: Vec::new(),
        },
        subject: Subject::Commit(whole(pull)?),
        reason: format!("pull request #{} from a fork", pull.number),
        built_by,
        reference: pull.reference.clone(),
        pushed_at: pull.updated_at,
        overtakes: None,
    })
}

fn started_here(project: &Project) -> Result<(), Skipped> {
    if project.builds.start {
        Ok(())
    } else {
        Err(skipped("builds.start", "somebody else starts this project's builds"))
    }
}

/// The branches of a pull request. A fork calls its own whatever it likes: that can keep it out, and lets
/// nothing in.
fn between_branches(builds: &Builds, pull: &PullRequest) -> Result<(), Skipped> {
    if !builds.branches.matches(pull.branch.as_str()) {
        return Err(skipped("builds.branches", format!("the branch `{}` is not built", pull.branch)));
    }
    if !builds.bases.matches(pull.base.as_str()) {
        return Err(skipped(
            "builds.bases",
            format!("what is to be merged into `{}` is not built", pull.base),
        ));
    }
    Ok(())
}

/// What a push is asked, too. No forge tells the files of a pull request.
fn wanted_by_pull_request(builds: &Builds, pull: &PullRequest) -> Result<(), Skipped> {
    by_actor(builds, pull.actor.as_deref())?;
    with_message(builds, pull.message.as_deref())?;
    with_files(builds, None)
}

fn by_actor(builds: &Builds, actor: Option<&str>) -> Result<(), Skipped> {
    if builds.actors.match_all() {
        return Ok(());
    }
    match actor {
        None => Err(skipped("builds.actors", "it is not known who did this")),
        Some(id) if builds.actors.matches(id) => Ok(()),
        Some(id) => {
            Err(skipped("builds.actors", format!("the account {} starts no build", id.escape_debug())))
        }
    }
}

fn with_message(builds: &Builds, message: Option<&str>) -> Result<(), Skipped> {
    if builds.messages.match_all() {
        return Ok(());
    }
    match message {
        None => Err(skipped("builds.messages", "the message of the head is not known")),
        Some(message) if builds.messages.matches(message) => Ok(()),
        Some(_) => Err(skipped("builds.messages", "the message of the head is none that is built")),
    }
}

/// What `skip-paths` names guards something, so nothing goes by it unseen. `paths` saves builds, and what
/// becomes of those of which nobody knows whether they are needed the policy says.
fn with_files(builds: &Builds, paths: Option<&[String]>) -> Result<(), Skipped> {
    if let Some(skip) = &builds.skip_paths {
        let Some(paths) = paths else {
            return Err(skipped("builds.skip-paths", "it is not known which files changed"));
        };
        if let Some(path) = paths.iter().find(|path| skip.matches(path)) {
            return Err(skipped("builds.skip-paths", format!("{} has changed", path.escape_debug())));
        }
    }
    match paths {
        _ if builds.paths.match_all() => Ok(()),
        None if builds.paths_unknown == PathsUnknown::Build => Ok(()),
        None => Err(skipped("builds.paths-unknown", "it is not known which files changed")),
        Some(paths) if paths.iter().any(|path| builds.paths.matches(path)) => Ok(()),
        Some(paths) => {
            Err(skipped("builds.paths", format!("none of the {} files that changed is one", paths.len())))
        }
    }
}

/// What holds for any pull request that nobody has approved.
fn fit(builds: &Builds, pull: &PullRequest) -> Result<(), Skipped> {
    if builds.skip_marks && pull.skips_ci {
        return Err(skipped("builds.skip-marks", "the pull request asks that it is not built"));
    }
    if pull.draft && !builds.drafts {
        return Err(skipped("builds.drafts", "the pull request is a draft"));
    }
    let has = |label: &&String| pull.labels.iter().any(|own| own.eq_ignore_ascii_case(label));
    match builds.skip_labels.iter().find(has) {
        Some(label) => Err(skipped("builds.skip-labels", format!("the pull request is labelled `{label}`"))),
        None => Ok(()),
    }
}

/// The head's whole hash. Without it there is nothing to build that could not be something else.
fn whole(pull: &PullRequest) -> Result<Commit, Skipped> {
    let why = "the forge tells only the start of the head's hash; its push is what can be built";
    pull.commit.commit().ok_or_else(|| skipped("event", why))
}

#[cfg(test)]
mod tests;
