//! Retention on the command line: what the policy serves, which caches live and why, and deleting the others.
//! A file per command.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use stoker_core::error::chain;
use stoker_core::names::{CacheRepository, InvalidName, ProjectName};
use stoker_core::policy::{Mode, Policy, Project};
use stoker_core::retain::{self, Plan, PlanInputs, inventory::Inventory, plan};
use stoker_core::schedule::all_projects;

use crate::problem::Problem;
use crate::text::plain_whole;

mod account;
pub(crate) mod apply;
pub(crate) mod check;
pub(crate) mod explain;
pub(crate) mod plan_command;
mod render;
mod report;

pub(crate) use account::{Account, config, problem as call_problem, words as call_words};

/// Which repositories a command is about.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The policy
    #[arg(long, value_name = "PATH", default_value = "policy/stoker.yaml")]
    policy: PathBuf,
    /// Only the repositories of this project, once for each; all that the policy names unless given
    #[arg(long = "project", value_name = "NAME", value_parser = project_name)]
    projects: Vec<ProjectName>,
}

/// A repository, what is in it, and what is to become of that.
pub(crate) struct Planned {
    pub(crate) projects: Vec<Project>,
    pub(crate) inventory: Inventory,
    plan_inputs: PlanInputs,
    pub(crate) plan: Plan,
}

impl Planned {
    fn mode(&self) -> Mode {
        plan::mode(&self.projects)
    }

    /// Most images that one run deletes.
    fn most(&self) -> usize {
        let most = self.projects.iter().map(|project| project.retention.max_deletions);
        most.min().map_or(0, |most| usize::try_from(most).unwrap_or(usize::MAX))
    }
}

fn project_name(text: &str) -> Result<ProjectName, InvalidName> {
    ProjectName::new(text)
}

pub(crate) fn load(path: &Path) -> Result<Policy, Problem> {
    Policy::load(path).map_err(|error| {
        let reported: Vec<String> = chain(&error).lines().map(plain_whole).collect();
        Problem::usage(reported.join("\n"), "correct it, or name another policy with --policy")
    })
}

/// Whether the policy has projects of these names.
pub(crate) fn check_names(policy: &Policy, chosen: &[ProjectName]) -> Result<(), Problem> {
    for name in chosen {
        if policy.project(name).is_none() {
            let names: Vec<String> =
                policy.named_projects().iter().map(|project| project.name.to_string()).collect();
            let globs = policy.globs();
            let known: Vec<String> = names.into_iter().chain(globs).collect();
            return Err(Problem::usage(
                format!("the policy has no project {name}"),
                format!("it has these: {}", plain_whole(&known.join(", "))),
            ));
        }
    }
    Ok(())
}

/// The repositories of the chosen projects, each with all projects that have caches in it.
async fn repositories(
    account: &Account,
    policy: &Policy,
    chosen: &[ProjectName],
) -> Result<Vec<(CacheRepository, Vec<Project>)>, Problem> {
    check_names(policy, chosen)?;
    let mut projects = all_projects(account, policy).await.map_err(|error| account::problem(&error))?;
    // One that a glob matches may have caches without being in CodeBuild any more.
    for name in chosen {
        if !projects.iter().any(|project| project.name == *name) {
            projects.extend(policy.project(name));
        }
    }
    let mut repositories: Vec<(CacheRepository, Vec<Project>)> =
        retain::by_repository(projects).into_iter().collect();
    repositories.retain(|(_, projects)| {
        chosen.is_empty() || projects.iter().any(|project| chosen.contains(&project.name))
    });
    Ok(repositories)
}

/// Reads a repository and plans for it.
async fn planned(
    account: &Account,
    repository: &CacheRepository,
    projects: Vec<Project>,
    now: Timestamp,
) -> Result<Planned, Problem> {
    let seen = retain::observe(account, repository, &projects, Vec::new(), now).await;
    account.end_of_reading();
    let (inventory, plan_inputs) = seen.map_err(|error| account::problem(&error))?;
    let plan = plan::plan(&inventory, &projects, &plan_inputs, now);
    Ok(Planned { projects, inventory, plan_inputs, plan })
}

/// Reads every chosen repository and plans for it. One that cannot be read ends it all: a plan is whole or none.
pub(crate) async fn plan_all(
    account: &Account,
    which: &Which,
    now: Timestamp,
) -> Result<Vec<Planned>, Problem> {
    let policy = load(&which.policy)?;
    let mut all = Vec::new();
    for (repository, projects) in repositories(account, &policy, &which.projects).await? {
        all.push(planned(account, &repository, projects, now).await?);
    }
    Ok(all)
}
