//! The outcome as a status of the commit that was built, for those who look at it at their forge.

use std::path::Path;

use crate::doctor::project::repository_of;
use crate::forecast::Repository;
use crate::onboard::forge::{Forge, Kind, Status};
use crate::problem::Problem;
use crate::retain::call_problem;
use crate::text::plain;

#[derive(Debug, clap::Args)]
pub(crate) struct AtForge {
    /// Also give the commit a status of one line at its forge: github, gitlab or bitbucket. The token is in
    /// `GITHUB_TOKEN`, `GITLAB_TOKEN` or `BITBUCKET_TOKEN`
    #[arg(long, value_name = "FORGE", value_parser = Kind::named)]
    status: Option<Kind>,
    /// The repository at the forge, such as github.com/example/app; the checkout's origin unless given
    #[arg(long, value_name = "HOST/PATH", requires = "status")]
    repository: Option<String>,
    /// The address of the forge's API, unless it is where the host says
    #[arg(long, value_name = "URL", requires = "status")]
    forge_url: Option<String>,
}

impl AtForge {
    pub(super) fn is_asked(&self) -> bool {
        self.status.is_some()
    }

    /// Writes the status. A token goes to no host that the checkout alone names, but to the forges that everybody knows.
    pub(super) async fn write(&self, checkout: &Path, commit: &str, text: &str) -> Result<(), Problem> {
        let Some(kind) = self.status else { return Ok(()) };
        let variable = kind.token();
        let token = std::env::var(variable).ok().filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| {
            let next = "set it to a token that may write commit statuses";
            Problem::usage(format!("{variable} is not set"), next)
        })?;
        let address = if self.repository.is_some() {
            self.repository.clone()
        } else {
            Repository::open(checkout)?.origin()
        };
        let repository = repository_of(&address.unwrap_or_default());
        let is_known = repository.split_once('/').is_some_and(|(host, _)| host == kind.host());
        if !is_known && self.repository.is_none() {
            let why = format!("the checkout's origin is not at {}: {}", kind.host(), plain(&repository));
            return Err(Problem::usage(why, "name the repository with --repository HOST/PATH"));
        }
        let forge = Forge::of(kind, &repository, self.forge_url.as_deref(), &token).ok_or_else(|| {
            Problem::usage("a token goes over https only".to_owned(), "see --repository and --forge-url")
        })?;
        forge.write_status(Status { commit, text }).await.map_err(|error| call_problem(&error))
    }
}
