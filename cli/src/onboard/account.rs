//! The account whose projects are taken into service, and which of them.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use stoker_aws::{Aws, AwsSettings};
use stoker_aws_setup::{SdkConfig, Setup};
use stoker_core::names::ProjectName;
use stoker_core::onboard::{Found, Stack};
use stoker_core::ports::{ListProjects as _, ReadSecrets as _};

use crate::problem::Problem;
use crate::retain::{call_problem, config};
use crate::text::plain;

/// Which projects a step is about, and what it needs to know.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Only projects of this name or glob, once for each; all of the account and region unless given
    #[arg(long = "project", value_name = "NAME")]
    pub(super) projects: Vec<String>,
    /// A checkout of the projects' source, where their buildspecs and bake files are read
    #[arg(long, value_name = "DIR")]
    pub(super) checkout: Option<PathBuf>,
    /// The address of the forge's API, where it is not the host's own
    #[arg(long, value_name = "URL")]
    pub(super) forge_url: Option<String>,
}

/// The account that the SDK's ordinary chain finds.
pub(super) struct Services {
    pub(super) config: SdkConfig,
    pub(super) setup: Setup,
    pub(super) aws: Aws,
    pub(super) region: String,
}

impl Services {
    pub(super) async fn find() -> Result<Self, Problem> {
        let config = config(None).await?;
        let region = config.region().map(ToString::to_string).unwrap_or_default();
        let aws = Aws::from_config(config.clone(), AwsSettings::default());
        Ok(Self { setup: Setup::new(&config), aws, region, config })
    }

    /// The stack that Stoker was deployed as: nothing can be planned without.
    pub(super) async fn stack(&self, name: &str) -> Result<Stack, Problem> {
        let stack = self.setup.stack(name).await.map_err(|error| call_problem(&error))?;
        stack.ok_or_else(|| {
            Problem::usage(
                format!("there is no stack {} in {}", plain(name), self.region),
                "deploy it first (sam build && sam deploy --guided), or name it with --stack",
            )
        })
    }

    /// The secret that webhooks are signed with: the first of those that are valid.
    pub(super) async fn webhook_secret(&self, id: &str) -> Result<String, Problem> {
        let settings = AwsSettings { webhook_secret: id.to_owned(), ..AwsSettings::default() };
        let secrets = Aws::from_config(self.config.clone(), settings).webhook_secrets(true).await;
        let secrets = secrets.map_err(|error| call_problem(&error))?;
        let first = secrets.into_iter().next().and_then(|secret| String::from_utf8(secret).ok());
        first.ok_or_else(|| {
            Problem::failed("the webhook's secret is empty", "write one into it: see docs/forges.md")
        })
    }

    /// The projects that are asked for, by their names.
    pub(super) async fn projects(&self, globs: &[String]) -> Result<Vec<Found>, Problem> {
        let mut names = self.aws.projects().await.map_err(|error| call_problem(&error))?;
        let wanted: Vec<wildmatch::WildMatch> =
            globs.iter().map(|glob| wildmatch::WildMatch::new(glob)).collect();
        let is_wanted =
            |name: &ProjectName| wanted.is_empty() || wanted.iter().any(|glob| glob.matches(name.as_str()));
        names.retain(is_wanted);
        names.sort();
        if names.is_empty() {
            return Err(Problem::usage(
                match globs {
                    [] => format!("{} has no CodeBuild project", self.region),
                    globs => format!(
                        "no CodeBuild project in {} is called {}",
                        self.region,
                        plain(&globs.join(" or "))
                    ),
                },
                "check AWS_REGION and AWS_PROFILE: aws codebuild list-projects",
            ));
        }
        let mut found = self.setup.projects(&names).await.map_err(|error| call_problem(&error))?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

/// The host of an account's registry, by the ARN of anything in it.
pub(super) fn registry_of(arn: &str) -> String {
    let part = |n: usize| arn.split(':').nth(n).unwrap_or_default();
    format!("{}.dkr.ecr.{}.{}", part(4), part(3), stoker_core::partition::domain(part(3)))
}

/// Asks for a yes. Nobody who could answer is a no.
pub(super) fn confirm(question: &str) -> Result<bool, Problem> {
    if !std::io::stdin().is_terminal() {
        return Err(Problem::no("there is nobody to ask: nothing was changed", "say --yes to what is shown"));
    }
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}
