//! The gate: whether an event starts a build of a project, and which key of the policy says so. A build that Stoker
//! starts does not pass by CodeBuild's own webhook filters, so what they would keep out has to be kept out here.

use std::fmt;

use crate::event::{Approval, BranchPushed, Change, Event, PullRequest};
use crate::handout::{Trust, Wanted};
use crate::names::{Commit, Line};
use crate::policy::{ForkBuilds, Project};
use crate::start::{Request, Subject};

/// Why an event starts no build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    /// The key of the policy that says so, or `event` where the event itself is none that builds.
    pub rule: &'static str,
    /// Why, for people.
    pub why: String,
}

impl fmt::Display for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.why, self.rule)
    }
}

type Gated = Result<Request, Leave>;

fn leave(rule: &'static str, why: impl Into<String>) -> Leave {
    Leave { rule, why: why.into() }
}

/// The build that an event starts, or why it starts none. The event has to be of the project's repository.
pub fn gate(project: &Project, event: &Event) -> Result<Request, Leave> {
    match event {
        Event::BranchPushed(push) => pushed(project, push),
        Event::PullRequestUpdated(pull) => updated(project, pull),
        Event::PullRequestApproved(approval) => approved(project, approval),
        _ => Err(leave("event", "nothing to build")),
    }
}

fn pushed(project: &Project, push: &BranchPushed) -> Gated {
    let builds = &project.builds;
    let line = Line::of_branch(&push.branch, &push.default_branch);
    started_here(project)?;
    if line != Line::Main && !builds.on_push {
        return Err(leave("builds.on", "the pushes of a branch start no build"));
    }
    if !builds.branches.matches(push.branch.as_str()) {
        return Err(leave("builds.branches", format!("the branch `{}` is not built", push.branch)));
    }
    wanted_by_push(project, push)?;
    // What a merge brought to main is handed to main's build at once: it need not wait for the promotion.
    let merged = if line == Line::Main { push.commits.clone() } else { Vec::new() };
    Ok(Request {
        trust: Trust::of(&line),
        wanted: Wanted { line, base: None, merged },
        subject: Subject::Commit(push.commit.clone()),
        reason: "push".to_owned(),
        built_by: project.name.clone(),
        reference: None,
        pushed_at: push.pushed_at,
        overtakes: push.before.clone(),
    })
}

/// What holds of a push whoever builds it: that its author does not ask to be left alone, and that it changes a file that
/// matters.
pub fn wanted_by_push(project: &Project, push: &BranchPushed) -> Result<(), Leave> {
    let builds = &project.builds;
    if builds.skip_marks && push.skips_ci {
        return Err(leave("builds.skip-marks", "the push asks that it is not built"));
    }
    if let Some(paths) = &push.paths
        && !builds.paths.match_all()
        && !paths.iter().any(|path| builds.paths.matches(path))
    {
        return Err(leave("builds.paths", format!("none of the {} files that changed is one", paths.len())));
    }
    Ok(())
}

fn updated(project: &Project, pull: &PullRequest) -> Gated {
    started_here(project)?;
    if pull.from_fork {
        return match project.builds.forks.build {
            ForkBuilds::None => Err(leave("builds.forks", "pull requests from forks are not built")),
            ForkBuilds::AfterApproval => Err(leave(
                "builds.forks",
                format!("waits until one of the approvers approves {}", pull.commit.short()),
            )),
            ForkBuilds::ReadOnly => fit(project, pull).and_then(|()| of_fork(project, pull)),
        };
    }
    let builds = &project.builds;
    let line = Line::of_branch(&pull.branch, &pull.default_branch);
    if !builds.on_pull_request {
        return Err(leave("builds.on", "pull requests start no build"));
    }
    if !builds.branches.matches(pull.branch.as_str()) {
        return Err(leave("builds.branches", format!("the branch `{}` is not built", pull.branch)));
    }
    if builds.on_push && pull.change == Change::Pushed {
        return Err(leave("builds.on", "the push itself says more: it is what starts the build"));
    }
    if builds.on_push && !builds.paths.match_all() {
        return Err(leave("builds.paths", "only a push tells which files changed"));
    }
    fit(project, pull)?;
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

/// Who approves has looked at the very commit: that it is a draft, or labelled, was there to be seen.
fn approved(project: &Project, approval: &Approval) -> Gated {
    let pull = &approval.pull_request;
    let forks = &project.builds.forks;
    started_here(project)?;
    if !pull.from_fork || forks.build != ForkBuilds::AfterApproval {
        return Err(leave("builds.forks", "no build waits for an approval"));
    }
    if !forks.approvers.iter().any(|known| known.eq_ignore_ascii_case(&approval.approver)) {
        return Err(leave(
            "builds.forks",
            format!("{} is none of the approvers", approval.approver.escape_debug()),
        ));
    }
    if approval.commit != pull.commit {
        let why =
            format!("{} was approved, and the head is {}", approval.commit.short(), pull.commit.short());
        return Err(leave("builds.forks", why));
    }
    of_fork(project, pull)
}

/// A build of a fork's code: it runs in a project of its own, reads main, and writes nothing.
fn of_fork(project: &Project, pull: &PullRequest) -> Gated {
    let built_by = project.builds.forks.project.clone();
    let built_by = built_by.ok_or_else(|| leave("builds.forks", "no project is named that builds forks"))?;
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

fn started_here(project: &Project) -> Result<(), Leave> {
    if project.builds.start {
        Ok(())
    } else {
        Err(leave("builds.start", "somebody else starts this project's builds"))
    }
}

/// What holds for any pull request.
fn fit(project: &Project, pull: &PullRequest) -> Result<(), Leave> {
    let builds = &project.builds;
    if pull.draft && !builds.drafts {
        return Err(leave("builds.drafts", "the pull request is a draft"));
    }
    let has = |label: &&String| pull.labels.iter().any(|own| own.eq_ignore_ascii_case(label));
    match builds.skip_labels.iter().find(has) {
        Some(label) => Err(leave("builds.skip-labels", format!("the pull request is labelled `{label}`"))),
        None => Ok(()),
    }
}

/// The head's whole hash. Without it there is nothing to build that could not be something else.
fn whole(pull: &PullRequest) -> Result<Commit, Leave> {
    let why = "the forge tells only the start of the head's hash; its push is what can be built";
    pull.commit.commit().ok_or_else(|| leave("event", why))
}
