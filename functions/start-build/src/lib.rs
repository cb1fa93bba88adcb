//! Starts a build of what was pushed: `BranchPushed` and `PullRequestUpdated`.

use stoker::error::CallError;
use stoker::event::{Envelope, Event};
use stoker::handout::Wanted;
use stoker::names::{Line, ProjectName};
use stoker::policy::Policy;
use stoker::ports::{ReadBuilds, ReadImages, StartBuilds};
use stoker::start::{Outcome, Request, Subject, start_once};

/// Starts the builds that an event asks for: one for each project of its repository.
///
/// A project that fails does not keep the others from starting; the first error is returned at the end, and the
/// retry finds the others already built.
pub async fn handle(
    envelope: &Envelope,
    policy: &Policy,
    registry: &str,
    ports: &(impl ReadImages + ReadBuilds + StartBuilds),
) -> Result<Vec<(ProjectName, Outcome)>, CallError> {
    let Some(request) = request(&envelope.event) else {
        tracing::debug!(event.kind = envelope.event.detail_type(), "nothing to build");
        return Ok(Vec::new());
    };
    let projects =
        envelope.event.repository().map(|repository| policy.projects_of(repository)).unwrap_or_default();
    if projects.is_empty() {
        tracing::debug!(
            event.kind = envelope.event.detail_type(),
            "no project of the policy builds this repository"
        );
    }
    let mut outcomes = Vec::new();
    let mut first_error = None;
    for project in projects {
        match start_once(ports, registry, &project, &request).await {
            Ok(outcome) => {
                tell(&project.name, &request, &outcome);
                outcomes.push((project.name, outcome));
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(outcomes), Err)
}

/// The build that an event asks for, if any.
#[must_use]
pub fn request(event: &Event) -> Option<Request> {
    match event {
        Event::BranchPushed(push) => {
            let line = Line::of_branch(&push.branch, &push.default_branch);
            // What a merge brought to main is handed to main's build at once: it need not wait for the promotion.
            let merged = if line == Line::Main { push.commits.clone() } else { Vec::new() };
            Some(Request {
                wanted: Wanted { line, base: None, merged },
                subject: Subject::Commit(push.commit.clone()),
                reason: "push".to_owned(),
            })
        }
        // A fork's code is not built by Stoker: its pull requests may have been reviewed by nobody.
        Event::PullRequestUpdated(pull) if pull.from_fork => None,
        Event::PullRequestUpdated(pull) => {
            let base = Line::of_branch(&pull.base, &pull.default_branch);
            Some(Request {
                wanted: Wanted {
                    line: Line::of_branch(&pull.branch, &pull.default_branch),
                    base: (base != Line::Main).then_some(base),
                    merged: Vec::new(),
                },
                subject: Subject::Commit(pull.commit.clone()),
                reason: format!("pull request #{}", pull.number),
            })
        }
        _ => None,
    }
}

fn tell(project: &ProjectName, request: &Request, outcome: &Outcome) {
    let line = &request.wanted.line;
    match outcome {
        Outcome::Started { id, sources } => {
            let reads = sources.iter().map(|source| source.label.as_str()).collect::<Vec<_>>().join(" ");
            tracing::info!(build.id = id, build.reason = request.reason, %line, reads, "build started");
        }
        Outcome::AlreadyBuilt { id } => {
            tracing::info!(build.id = id, %line, "this commit of the line has its build");
        }
        Outcome::AlreadyOrdered => tracing::info!(%project, %line, "the same build was ordered a moment ago"),
        Outcome::NoSuchProject => tracing::debug!(%project, "CodeBuild has no such project"),
    }
}
