//! `stoker onboard undo`: takes back what `apply` made, as far as it is still as it was made.

use std::path::PathBuf;

use stoker_core::error::CallError;
use stoker_core::names::{CacheRepository, ProjectName};
use stoker_core::onboard::{Found, TAG};
use wildmatch::WildMatch;

use super::account::{Services, Which, confirm};
use super::record::{Change, Records, replace};
use super::source::Sources;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain::call_problem;
use crate::text::{count, plain};

/// Takes back what apply made, once it was confirmed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  GITHUB_TOKEN=... stoker onboard undo --project app
  stoker onboard undo --project 'team-*' --yes

It goes by the records that apply wrote, in the other direction: CodeBuild's own webhook is made again first, \
repositories that \
carry the tag stoker-onboard go last, with the caches in them. What somebody has changed since is left, and \
named; what another \
project's record has, too, stays until that is undone. Deploy the policy afterwards.")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// The directory with the records of what was made
    #[arg(long, value_name = "DIR", default_value = "onboard")]
    record: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let mut records = Records::open(&args.record)?;
    let globs: Vec<WildMatch> = args.which.projects.iter().map(|glob| WildMatch::new(glob)).collect();
    let names = records.names(|name| globs.iter().any(|glob| glob.matches(name)));
    if names.is_empty() {
        return Err(Problem::usage(
            format!("{} has no record of such a project", plain(&args.record.display().to_string())),
            "name the project with --project, and the directory with --record; without its record nobody knows \
             what was there before",
        ));
    }
    let services = Services::find().await?;
    let sources = Sources::open(&args.which)?;
    let mut plans = Vec::new();
    for name in names {
        let Some(record) = records.of(&name).cloned() else { continue };
        if record.region != services.region {
            return Err(Problem::usage(
                format!(
                    "{name} was taken into service in {}, and this is {}",
                    plain(&record.region),
                    services.region
                ),
                "set AWS_REGION",
            ));
        }
        crate::outcome::print(&format!("{name}\n"));
        for change in record.changes.iter().rev() {
            let stays = if records.has_elsewhere(&name, change) {
                "stays for another project:"
            } else {
                "take back:"
            };
            crate::outcome::print(&format!("  {stays} {}\n", change.words()));
        }
        plans.push((name, record));
    }
    let number: usize = plans.iter().map(|(_, record)| record.changes.len()).sum();
    if !args.yes
        && !confirm(&format!("take back {}, with the caches in the repositories?", count(number, "change")))?
    {
        return Err(Problem::no("not confirmed: nothing was changed", "say --yes to what is shown"));
    }
    let names: Vec<ProjectName> = plans.iter().map(|(name, _)| name.clone()).collect();
    let found = services.setup.projects(&names).await.map_err(|error| call_problem(&error))?;
    let mut is_whole = true;
    for (name, mut record) in plans {
        let found = found.iter().find(|found| found.name == name);
        let mut left = Vec::new();
        for change in record.changes.iter().rev() {
            if records.has_elsewhere(&name, change) {
                continue;
            }
            match taken_back(&services, &sources, &name, found, change).await? {
                Ok(more) => crate::outcome::print(&format!("{name}: took back {}{more}\n", change.words())),
                Err(why) => {
                    crate::outcome::print(&format!("{name}: left {}: {why}\n", change.words()));
                    left.insert(0, change.clone());
                }
            }
        }
        is_whole &= left.is_empty();
        if left.is_empty() {
            records.remove(&name)?;
        } else {
            record.changes = left;
            records.save(record)?;
        }
    }
    Ok(CommandOutcome { text: String::new(), success: is_whole })
}

/// Takes one thing back. What is to be said of it; or why it was left.
async fn taken_back(
    services: &Services,
    sources: &Sources,
    name: &ProjectName,
    found: Option<&Found>,
    change: &Change,
) -> Result<Result<String, String>, Problem> {
    let failed = |error: CallError| call_problem(&error);
    let gone = || Ok(Ok(": the project is gone".to_owned()));
    Ok(match change {
        Change::TakeOver { webhook } => {
            let Some(found) = found else { return gone() };
            if found.webhook.is_none() {
                services.setup.create_webhook(name, webhook).await.map_err(failed)?;
            }
            Ok(": its address at CodeBuild is a new one".to_owned())
        }
        Change::Inline { before, after } => {
            if found.is_none() {
                return gone();
            }
            let is_set =
                services.setup.set_buildspec(name, Some(after), Some(before)).await.map_err(failed)?;
            if is_set { Ok(String::new()) } else { Err("somebody has changed it since".to_owned()) }
        }
        Change::Proposal { branch, base, file, after, .. } => {
            let Some(found) = found else { return gone() };
            let forge = match sources.forge(found) {
                Ok(forge) => forge,
                Err(why) => return Ok(Err(why)),
            };
            forge.withdraw(branch).await.map_err(failed)?;
            let is_merged = forge.file(base, file).await.map_err(failed)?.as_ref() == Some(after);
            let merged = ": it was merged, and does nothing where Stoker starts no build; revert it at the \
                 forge if you like";
            Ok(if is_merged { merged.to_owned() } else { String::new() })
        }
        Change::Webhook { url, .. } => {
            let Some(found) = found else { return gone() };
            let forge = match sources.forge(found) {
                Ok(forge) => forge,
                Err(why) => return Ok(Err(why)),
            };
            if let Some(hook) = forge.hook(url).await.map_err(failed)? {
                forge.delete_hook(&hook).await.map_err(failed)?;
            }
            Ok(String::new())
        }
        Change::Rule { file, text, .. } => rule(file, text),
        Change::Role { role, policy } => {
            services.setup.detach(role, policy).await.map_err(failed)?;
            Ok(String::new())
        }
        Change::Repository { name: repository, .. } => {
            let Ok(repository) = CacheRepository::new(repository.as_str()) else {
                return Ok(Err("it is no name of a repository".to_owned()));
            };
            match services.setup.repository_tags(&repository).await.map_err(failed)? {
                None => Ok(String::new()),
                Some(tags) if tags.contains_key(TAG) => {
                    services.setup.delete_repository(&repository).await.map_err(failed)?;
                    Ok(String::new())
                }
                Some(_) => Err(format!("it does not carry the tag {TAG}")),
            }
        }
    })
}

fn rule(file: &std::path::Path, text: &str) -> Result<String, String> {
    let before = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    match before.matches(text).count() {
        0 => Ok(": it is not in it".to_owned()),
        1 => {
            replace(file, &before.replacen(text, "", 1)).map_err(|error| error.to_string())?;
            Ok(String::new())
        }
        _ => Err("its text is in it more than once".to_owned()),
    }
}
