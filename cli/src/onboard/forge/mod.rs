//! What onboarding asks of a forge, by its REST API: a file, a pull request with another text of it, and a webhook.
//! Each call looks first whether it is already done, so that a run that was cut off can be repeated.
//!
//! A token comes from the environment, goes to the forge's own host only, and is in no error (`stoker_aws::rest`).

mod answer;
mod bitbucket;
mod github;
mod gitlab;

use stoker_aws::rest::Rest;
use stoker_core::error::CallError;

pub(crate) use answer::{Hook, Proposal, Status};

/// Which API a forge has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    GitHub,
    GitLab,
    Bitbucket,
}

impl Kind {
    /// By CodeBuild's word for a source.
    pub(crate) fn of_source(source: &str) -> Option<Self> {
        match source {
            "GITHUB" | "GITHUB_ENTERPRISE" => Some(Self::GitHub),
            "GITLAB" | "GITLAB_SELF_MANAGED" => Some(Self::GitLab),
            "BITBUCKET" => Some(Self::Bitbucket),
            _ => None,
        }
    }

    /// By its name on the command line.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        match name {
            "github" => Ok(Self::GitHub),
            "gitlab" => Ok(Self::GitLab),
            "bitbucket" => Ok(Self::Bitbucket),
            _ => Err("write github, gitlab or bitbucket".to_owned()),
        }
    }

    /// The host that everybody knows.
    pub(crate) fn host(self) -> &'static str {
        match self {
            Self::GitHub => "github.com",
            Self::GitLab => "gitlab.com",
            Self::Bitbucket => "bitbucket.org",
        }
    }

    /// The variable that the token is in.
    pub(crate) fn token(self) -> &'static str {
        match self {
            Self::GitHub => "GITHUB_TOKEN",
            Self::GitLab => "GITLAB_TOKEN",
            Self::Bitbucket => "BITBUCKET_TOKEN",
        }
    }

    /// The address of the API of a host.
    fn base(self, host: &str) -> String {
        match (self, host) {
            (Self::GitHub, "github.com") => "https://api.github.com".to_owned(),
            (Self::GitHub, host) => format!("https://{host}/api/v3"),
            (Self::GitLab, host) => format!("https://{host}/api/v4"),
            (Self::Bitbucket, _) => "https://api.bitbucket.org/2.0".to_owned(),
        }
    }
}

/// A repository at a forge, and what may be asked of it.
pub(crate) struct Forge {
    kind: Kind,
    rest: Rest,
    /// Owner and name, as the API has them.
    path: String,
}

impl Forge {
    /// The forge of a repository such as `github.com/example/app`; `None` where the address is none to send a token to.
    pub(crate) fn of(kind: Kind, repository: &str, address: Option<&str>, token: &str) -> Option<Self> {
        let (host, path) = repository.split_once('/')?;
        let mut headers = vec![("authorization", format!("Bearer {token}"))];
        if kind == Kind::GitHub {
            headers.push(("accept", "application/vnd.github+json".to_owned()));
            headers.push(("x-github-api-version", "2022-11-28".to_owned()));
        }
        let base = address.map_or_else(|| kind.base(host), str::to_owned);
        Some(Self { kind, rest: Rest::new(&base, headers, token)?, path: path.to_owned() })
    }

    pub(crate) async fn default_branch(&self) -> Result<String, CallError> {
        match self.kind {
            Kind::GitHub => github::default_branch(&self.rest, &self.path).await,
            Kind::GitLab => gitlab::default_branch(&self.rest, &self.path).await,
            Kind::Bitbucket => bitbucket::default_branch(&self.rest, &self.path).await,
        }
    }

    /// A file at the head of a branch; `None` where it is not there, or no text.
    pub(crate) async fn file(&self, branch: &str, file: &str) -> Result<Option<String>, CallError> {
        match self.kind {
            Kind::GitHub => {
                github::file(&self.rest, &self.path, branch, file).await.map(|found| found.map(|of| of.0))
            }
            Kind::GitLab => gitlab::file(&self.rest, &self.path, branch, file).await,
            Kind::Bitbucket => bitbucket::file(&self.rest, &self.path, branch, file).await,
        }
    }

    /// Proposes a change: its branch, its commit and its pull request, each unless it is there. The pull request's
    /// address.
    pub(crate) async fn propose(&self, proposal: Proposal<'_>) -> Result<String, CallError> {
        match self.kind {
            Kind::GitHub => github::propose(&self.rest, &self.path, proposal).await,
            Kind::GitLab => gitlab::propose(&self.rest, &self.path, proposal).await,
            Kind::Bitbucket => bitbucket::propose(&self.rest, &self.path, proposal).await,
        }
    }

    /// Closes the pull request of a branch, if it is open, and deletes the branch.
    pub(crate) async fn withdraw(&self, branch: &str) -> Result<(), CallError> {
        match self.kind {
            Kind::GitHub => github::withdraw(&self.rest, &self.path, branch).await,
            Kind::GitLab => gitlab::withdraw(&self.rest, &self.path, branch).await,
            Kind::Bitbucket => bitbucket::withdraw(&self.rest, &self.path, branch).await,
        }
    }

    /// The webhook that goes to an address.
    pub(crate) async fn hook(&self, url: &str) -> Result<Option<Hook>, CallError> {
        match self.kind {
            Kind::GitHub => github::hook(&self.rest, &self.path, url).await,
            Kind::GitLab => gitlab::hook(&self.rest, &self.path, url).await,
            Kind::Bitbucket => bitbucket::hook(&self.rest, &self.path, url).await,
        }
    }

    /// Makes a webhook that sends nothing yet.
    pub(crate) async fn make_hook(&self, url: &str, secret: &str) -> Result<Hook, CallError> {
        match self.kind {
            Kind::GitHub => github::make_hook(&self.rest, &self.path, url, secret).await,
            Kind::GitLab => gitlab::make_hook(&self.rest, &self.path, url, secret).await,
            Kind::Bitbucket => bitbucket::make_hook(&self.rest, &self.path, url, secret).await,
        }
    }

    /// Whether a ping of a webhook has been answered with success, after asking for one; `None` where the forge sends
    /// none.
    pub(crate) async fn ping(&self, hook: &Hook) -> Result<Option<bool>, CallError> {
        match self.kind {
            Kind::GitHub => github::ping(&self.rest, &self.path, hook).await.map(Some),
            Kind::GitLab | Kind::Bitbucket => Ok(None),
        }
    }

    /// Lets a webhook send. Some forges forget a secret that a change does not say again.
    pub(crate) async fn activate(&self, hook: &Hook, url: &str, secret: &str) -> Result<(), CallError> {
        match self.kind {
            Kind::GitHub => github::activate(&self.rest, &self.path, hook, url, secret).await,
            Kind::GitLab => gitlab::activate(&self.rest, &self.path, hook, url, secret).await,
            Kind::Bitbucket => bitbucket::activate(&self.rest, &self.path, hook, url, secret).await,
        }
    }

    /// Gives a commit a status, in the place of the one that Stoker gave it before. It is always one of success: what it
    /// says is to keep nobody from merging.
    pub(crate) async fn write_status(&self, status: Status<'_>) -> Result<(), CallError> {
        match self.kind {
            Kind::GitHub => github::write_status(&self.rest, &self.path, status).await,
            Kind::GitLab => gitlab::write_status(&self.rest, &self.path, status).await,
            Kind::Bitbucket => bitbucket::write_status(&self.rest, &self.path, status).await,
        }
    }

    pub(crate) async fn delete_hook(&self, hook: &Hook) -> Result<(), CallError> {
        match self.kind {
            Kind::GitHub => github::delete_hook(&self.rest, &self.path, hook).await,
            Kind::GitLab => gitlab::delete_hook(&self.rest, &self.path, hook).await,
            Kind::Bitbucket => bitbucket::delete_hook(&self.rest, &self.path, hook).await,
        }
    }
}
