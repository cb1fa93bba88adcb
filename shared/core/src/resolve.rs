//! Tells a build that somebody else started which caches to read and where to export its own.

use std::collections::BTreeMap;

use crate::build_inputs::{BuildInputs, Part, export_tag, exports};
use crate::error::CallError;
use crate::mounts;
use crate::names::{Branch, Commit, Line, Platform, ProjectName, TargetName};
use crate::policy::{Policy, Project, Target};
use crate::request::{Subject, Trust, Wanted};
use crate::sources::{self, give};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The question. What is there and empty counts as absent, as most shells and CIs make no difference.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Question {
    /// A CodeBuild project that the policy names.
    pub project: ProjectName,
    /// The branch that is built; the project's default branch unless given.
    #[serde(default)]
    pub branch: Option<Branch>,
    /// The commit that is built. Without it, and on the default branch, the build is told nowhere to export to.
    #[serde(default)]
    pub commit: Option<Commit>,
    /// The branch that the build's pull request is for.
    #[serde(default)]
    pub base: Option<Branch>,
    /// The number of a pull request from a fork: such a build is told nowhere to export to, whatever else is asked.
    #[serde(default)]
    pub fork_pull_request: Option<u64>,
    /// Only this target of the project: its variables then have no suffix.
    #[serde(default)]
    pub target: Option<TargetName>,
    /// Only this platform; as `target`.
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// The answer: the environment that `start-build` would have handed the same build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Environment variables by name.
    pub environment: BTreeMap<String, String>,
    /// The same as lines for `eval` in a POSIX shell.
    pub shell: String,
}

/// The question cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The question is not one.
    #[error(
        "the question is not valid; ask {{\"project\": ..., \"branch\": ..., \"commit\": ..., \"base\": ..., \
         \"fork-pull-request\": ..., \"target\": ..., \"platform\": ...}}, of which only the project has to be there"
    )]
    Question(#[from] serde_json::Error),
    /// The policy does not name the project.
    #[error("the policy names no project {0}; add it to policy/stoker.yaml and deploy")]
    UnknownProject(ProjectName),
    /// The project has no such target.
    #[error("the project has no such target; its policy names {known}")]
    UnknownTarget {
        /// Those that there are.
        known: String,
    },
    /// The registry did not answer.
    #[error("the caches could not be looked up; a build without them is cold, not red")]
    Call(#[from] CallError),
}

/// Answers a question, with one request to the registry for every 100 lines that have to be looked at, and a
/// few more for each target whose caches have not been joined yet.
pub async fn handle(
    question: serde_json::Value,
    policy: &Policy,
    registry: &str,
    ports: &impl sources::Ports,
    now: Timestamp,
) -> Result<Answer, Error> {
    let question: Question = serde_json::from_value(plain(question))?;
    let project = policy.project(&question.project);
    let mut project = project.ok_or_else(|| Error::UnknownProject(question.project.clone()))?;
    project.targets = asked_for(&project, &question)?;
    let line_of = |branch: &Branch| Line::of_branch(branch, &project.default_branch());
    let line = question.line(&project);
    let wanted = Wanted { line: line.clone(), base: question.base.as_ref().map(line_of), merged: Vec::new() };
    let mut reads = give(ports, &project, &wanted, now).await?;
    mounts::give(ports, &project, &line, &mut reads, &[], now).await;
    let exports = reads_only(&question, &project).is_none();
    let subject = question.commit.clone().filter(|_| exports).map(Subject::Commit);
    let parts = project.targets.iter().zip(reads).map(|(target, reads)| Part {
        export: subject.as_ref().and_then(|subject| export_tag(&target.scope, subject)),
        // Whoever asks for one knows which it is.
        target: if is_whole(&question) {
            target.clone()
        } else {
            Target { name: None, platform: None, ..target.clone() }
        },
        reads,
    });
    let build_inputs = BuildInputs {
        parts: parts.collect(),
        line,
        commit: question.commit,
        reason: "asked".to_owned(),
        merged: Vec::new(),
        pushed_at: None,
        refresh: false,
        bases: None,
    };
    let environment: BTreeMap<String, String> =
        build_inputs.environment(registry, &project).into_iter().collect();
    let exports: Vec<String> =
        environment.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect();
    Ok(Answer { environment, shell: exports.concat() })
}

/// Why the build that asks is told nowhere to export to; `None` where it is told, and where the question is not valid.
#[must_use]
pub fn why_it_only_reads(question: &serde_json::Value, project: &Project) -> Option<&'static str> {
    let question: Question = serde_json::from_value(plain(question.clone())).ok()?;
    reads_only(&question, project)
}

fn reads_only(question: &Question, project: &Project) -> Option<&'static str> {
    let line = question.line(project);
    if question.fork_pull_request.is_some() {
        return Some("a fork's pull request fills no cache");
    }
    if line == Line::Main {
        // What another build exports there would be in vain.
        return Some("main's cache is filled only by builds that Stoker starts");
    }
    if !exports(project, &line, Trust::of(&line)) {
        return Some("`export.builds` of the policy lets only main's builds write");
    }
    if question.commit.is_none() {
        return Some(
            "the question names no commit: a build whose branch and commit CodeBuild does not tell, as in \
             CodePipeline and \
             other CIs, can only read (docs/ci.md)",
        );
    }
    None
}

impl Question {
    fn line(&self, project: &Project) -> Line {
        match (self.fork_pull_request, &self.branch) {
            (Some(number), _) => Line::PullRequest(number),
            (None, Some(branch)) => Line::of_branch(branch, &project.default_branch()),
            (None, None) => Line::Main,
        }
    }
}

/// The question as a shell asks it: without what is empty, and with numbers that may be words.
fn plain(mut question: serde_json::Value) -> serde_json::Value {
    if let Some(fields) = question.as_object_mut() {
        fields.retain(|_, value| value != "");
        let number = fields.get_mut("fork-pull-request");
        if let Some(number) = number
            && let Some(word) = number.as_str().and_then(|word| word.parse::<u64>().ok())
        {
            *number = word.into();
        }
    }
    question
}

fn is_whole(question: &Question) -> bool {
    question.target.is_none() && question.platform.is_none()
}

/// The targets that the question is about.
fn asked_for(project: &Project, question: &Question) -> Result<Vec<Target>, Error> {
    let is_asked_for = |target: &&Target| {
        let (name, platform) = (&question.target, &question.platform);
        (name.is_none() || target.name == *name) && (platform.is_none() || target.platform == *platform)
    };
    let targets: Vec<Target> = project.targets.iter().filter(is_asked_for).cloned().collect();
    if targets.is_empty() || (!is_whole(question) && targets.len() > 1) {
        let known: Vec<String> = project.targets.iter().map(Target::bake_name).collect();
        return Err(Error::UnknownTarget { known: known.join(", ") });
    }
    Ok(targets)
}

/// A word of the POSIX shell that means exactly this text.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
