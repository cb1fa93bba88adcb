//! The projects file: what would be `CodeBuild` projects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{ACCOUNT, REGION};

/// The projects file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProjectsError {
    /// There is no such file, or it may not be read.
    #[error("projects file `{}` cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It says something else than a list of projects.
    #[error("projects file `{}` is not valid", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Two projects have one name.
    #[error("two projects are called `{name}`")]
    Twice {
        /// The name.
        name: String,
    },
}

/// One project.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// The git repository that is cloned for each build.
    pub source: String,
    /// The buildspec's path in the repository.
    #[serde(default = "default_buildspec")]
    pub buildspec: String,
    /// Its environment variables.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The source type that the API tells.
    #[serde(default = "default_source_type")]
    pub source_type: String,
    /// The source location that the API tells; without it, `source`.
    #[serde(default)]
    pub location: Option<String>,
    /// How long a build may take.
    #[serde(default = "default_timeout")]
    pub timeout_in_minutes: u32,
}

fn default_buildspec() -> String {
    "buildspec.yml".to_owned()
}

fn default_source_type() -> String {
    "GITHUB".to_owned()
}

const fn default_timeout() -> u32 {
    60
}

impl Project {
    /// Reads the projects file.
    pub fn read(path: &Path) -> Result<Vec<Self>, ProjectsError> {
        let text = std::fs::read(path).map_err(|source| ProjectsError::Io { path: path.into(), source })?;
        let projects: Vec<Self> = serde_json::from_slice(&text)
            .map_err(|source| ProjectsError::Json { path: path.into(), source })?;
        for (i, project) in projects.iter().enumerate() {
            if projects[..i].iter().any(|other| other.name == project.name) {
                return Err(ProjectsError::Twice { name: project.name.clone() });
            }
        }
        Ok(projects)
    }

    /// The source as the API tells it.
    #[must_use]
    pub fn source_json(&self) -> Value {
        json!({
            "type": self.source_type,
            "location": self.location.as_deref().unwrap_or(&self.source),
            "buildspec": self.buildspec,
            "gitCloneDepth": 0,
            "reportBuildStatus": false,
            "insecureSsl": false,
        })
    }

    /// The project as `BatchGetProjects` tells it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let variables: Vec<Value> = self
            .environment
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value, "type": "PLAINTEXT"}))
            .collect();
        json!({
            "name": self.name,
            "arn": format!("arn:aws:codebuild:{REGION}:{ACCOUNT}:project/{}", self.name),
            "source": self.source_json(),
            "artifacts": {"type": "NO_ARTIFACTS"},
            "cache": {"type": "NO_CACHE"},
            "environment": environment_json(&variables),
            "serviceRole": format!("arn:aws:iam::{ACCOUNT}:role/codebuild-{}", self.name),
            "timeoutInMinutes": self.timeout_in_minutes,
            "queuedTimeoutInMinutes": 480,
            "badge": {"badgeEnabled": false},
            "projectVisibility": "PRIVATE",
            "tags": [],
        })
    }
}

/// An environment as the API tells it.
#[must_use]
pub fn environment_json(variables: &[Value]) -> Value {
    json!({
        "type": "LINUX_CONTAINER",
        "image": IMAGE,
        "computeType": COMPUTE_TYPE,
        "privilegedMode": true,
        "imagePullCredentialsType": "CODEBUILD",
        "environmentVariables": variables,
    })
}

/// The image that builds are said to run in.
pub const IMAGE: &str = "aws/codebuild/amazonlinux2-x86_64-standard:5.0";
/// The size of machine that builds are said to run on.
pub const COMPUTE_TYPE: &str = "BUILD_GENERAL1_SMALL";
