//! Taking projects of an account into service: what is known of them, what CodeBuild's webhook keeps out in the words
//! of the policy, and the rules that a policy gets for them. Plain functions; asking and changing are done elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::names::ProjectName;
use filters::Filter;

pub mod filters;
pub mod rules;

/// The tag that everything carries which was made for a project; its value is the project's name.
pub const TAG: &str = "stoker-onboard";

/// What CodeBuild says of a project. All of it but the name is whatever its owner wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of CodeBuild's")]
pub struct Found {
    /// Its name.
    pub name: ProjectName,
    /// Its ARN.
    pub arn: String,
    /// The type of its source, such as `GITHUB`.
    pub source: String,
    /// The address of its source.
    pub location: String,
    /// The version of its source that it names itself.
    pub version: Option<String>,
    /// The identifiers of its secondary sources.
    pub secondary: Vec<String>,
    /// An inline buildspec, or the place of one; `None` is `buildspec.yml` of the source.
    pub buildspec: Option<String>,
    /// The type of its environment, such as `LINUX_CONTAINER`.
    pub environment: String,
    /// Its image.
    pub image: String,
    /// Whether Docker may start in it.
    pub is_privileged: bool,
    /// Whether it has a Docker server.
    pub has_docker_server: bool,
    /// Whether it is set up for batches.
    pub has_batch: bool,
    /// Whether it builds in a VPC.
    pub has_vpc: bool,
    /// Names of its own variables.
    pub variables: BTreeSet<String>,
    /// The ARN of its role.
    pub role: String,
    /// Minutes that a build may run, and wait in the queue.
    pub minutes: (u64, u64),
    /// How many builds of it may run at once.
    pub limit: Option<i32>,
    /// Whether it has a local cache of Docker layers.
    pub caches_layers: bool,
    /// CodeBuild's own webhook.
    pub webhook: Option<Webhook>,
    /// When its settings were last changed.
    pub changed_at: Timestamp,
}

/// A webhook of CodeBuild's own, as far as it can be made again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Its filter groups, each with type, pattern, and whether it keeps out.
    pub groups: Vec<Vec<(String, String, bool)>>,
    /// A regular expression over branches, from before there were groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch_filter: Option<String>,
    /// `BUILD` or `BUILD_BATCH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_type: Option<String>,
    /// Which pull requests need a comment first, and whose, where that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<(String, Vec<String>)>,
    /// Whether it is of more than one repository, or made by hand at the forge: nobody can make such a one again from
    /// here.
    #[serde(default)]
    pub is_special: bool,
}

impl Webhook {
    /// Its filters.
    #[must_use]
    pub fn filters(&self) -> Vec<Vec<Filter>> {
        let filter = |(kind, pattern, excludes): &(String, String, bool)| Filter {
            kind: kind.clone(),
            pattern: pattern.clone(),
            excludes: *excludes,
        };
        self.groups.iter().map(|group| group.iter().map(filter).collect()).collect()
    }
}

/// A build of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastBuild {
    /// CodeBuild's id of it.
    pub id: String,
    /// When it started.
    pub started_at: Timestamp,
    /// Seconds from its start to its end; `None` while it runs.
    pub seconds: Option<u64>,
    /// Whether it ended well.
    pub has_succeeded: bool,
    /// Who started it, in CodeBuild's words.
    pub initiator: String,
    /// Seconds of its phases, such as `BUILD`.
    pub phases: BTreeMap<String, u64>,
    /// The variables that it was started with.
    pub variables: BTreeMap<String, String>,
    /// The commit that its source was resolved to.
    pub resolved: Option<String>,
    /// Whether its source is in git.
    pub is_git: bool,
    /// Where its log is, if that is in CloudWatch Logs.
    pub log: Option<LogPlace>,
    /// What CodeBuild says of the phase that failed.
    pub failure: Option<String>,
}

impl PastBuild {
    /// Whether Stoker started it, by its variables.
    #[must_use]
    pub fn is_stokers(&self) -> bool {
        self.variables.contains_key("STOKER_LINE")
    }

    /// Whether it was given caches.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.variables.iter().any(|(name, value)| name.starts_with("STOKER_CACHE_FROM") && !value.is_empty())
    }
}

/// A log in CloudWatch Logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPlace {
    /// Its log group.
    pub group: String,
    /// Its log stream.
    pub stream: String,
}

/// The stack that Stoker was deployed as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    /// Its ARN.
    pub id: String,
    /// Its status, such as `UPDATE_COMPLETE`.
    pub status: String,
    /// Its outputs.
    pub outputs: BTreeMap<String, String>,
    /// Its parameters.
    pub parameters: BTreeMap<String, String>,
}

/// The lifecycle policy of a repository that holds caches, as text: should Stoker be gone, ECR deletes after so many
/// days what Stoker would have deleted long before. The template's own repositories have the same.
#[must_use]
pub fn safety_net(days: u32) -> String {
    let rule = |priority: u32, description: &str, mut selection: serde_json::Value| {
        selection["countType"] = "sinceImagePushed".into();
        selection["countUnit"] = "days".into();
        selection["countNumber"] = days.into();
        json!({"rulePriority": priority, "description": description, "selection": selection,
            "action": {"type": "expire"}})
    };
    let exports = json!({"tagStatus": "tagged", "tagPatternList": ["*.export.*"]});
    let exports = rule(1, "exports that were promoted long ago, or never will be", exports);
    let untagged = rule(2, "caches that no tag names any more", json!({"tagStatus": "untagged"}));
    json!({ "rules": [exports, untagged] }).to_string()
}
