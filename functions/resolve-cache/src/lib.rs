//! Tells a build that somebody else started which caches to read and where to export its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker::error::CallError;
use stoker::handout::{Handout, Wanted, resolve};
use stoker::names::{Branch, Commit, Line, ProjectName};
use stoker::policy::Policy;
use stoker::ports::ReadImages;
use stoker::start::{Subject, export_tag};

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Question {
    /// A CodeBuild project that the policy names.
    pub project: ProjectName,
    /// The branch that is built; the project's default branch unless given.
    #[serde(default)]
    pub branch: Option<Branch>,
    /// The commit that is built. Without it the build is told nowhere to export to.
    #[serde(default)]
    pub commit: Option<Commit>,
    /// The branch that the build's pull request is for.
    #[serde(default)]
    pub base: Option<Branch>,
}

/// The answer: the environment that `start-build` would have handed the same build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Environment variables by name.
    pub environment: BTreeMap<&'static str, String>,
}

/// The question cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The question is not one.
    #[error(
        "the question is not valid; ask {{\"project\": ..., \"branch\": ..., \"commit\": ..., \"base\": ...}}"
    )]
    Question(#[from] serde_json::Error),
    /// The policy does not name the project.
    #[error("the policy names no project {0}; add it to policy/stoker.yaml and deploy")]
    UnknownProject(ProjectName),
    /// The registry did not answer.
    #[error("the caches could not be looked up; a build without them is cold, not red")]
    Call(#[from] CallError),
}

/// Answers a question, with one request to the registry.
pub async fn handle(
    question: serde_json::Value,
    policy: &Policy,
    registry: &str,
    images: &impl ReadImages,
) -> Result<Answer, Error> {
    let Question { project, branch, commit, base } = serde_json::from_value(question)?;
    let project = policy.project(&project).ok_or(Error::UnknownProject(project))?;
    let line_of = |branch: &Branch| Line::of_branch(branch, &project.default_branch);
    let line = branch.as_ref().map_or(Line::Main, line_of);
    let wanted = Wanted { line: line.clone(), base: base.as_ref().map(line_of), merged: Vec::new() };
    let sources = resolve(images, &project, &wanted).await?;
    let export = commit.as_ref().and_then(|commit| export_tag(&project, &Subject::Commit(commit.clone())));
    let handout = Handout { line, commit, reason: "asked".to_owned(), merged: Vec::new(), sources, export };
    Ok(Answer { environment: handout.environment(registry, &project).into_iter().collect() })
}
