//! `stoker doctor`: whether an account is set up as Stoker needs it, and how to repair what is not.
//!
//! Reading and judging are apart: [`read`] asks AWS, and keeps for each fact why it is not known where it is not; every
//! check is a plain function from facts to findings. Nothing is written, started or deleted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;
use stoker_core::names::{CacheRepository, InvalidName, ProjectName};
use stoker_core::policy::{Policy, Project};
use stoker_core::retain::by_repository;
use stoker_core::schedule::all_projects;

use crate::cache::to_json;
use crate::deployed::Missing;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain;
use crate::text::{Align, count, plain, plain_whole, table};

mod account;
mod assumptions;
pub(crate) mod buildspec;
pub(crate) mod checkout;
pub(crate) mod commands;
pub(crate) mod finding;
mod lifecycle;
pub(crate) mod project;
mod read;
mod repository;
mod roles;
pub(crate) mod shell;
pub(crate) mod spec;
mod stack;

use checkout::Checkout;
use finding::{Finding, State};
use read::Reader;

/// Repositories or projects that are asked for at once.
const AT_A_TIME: usize = 4;

/// Checks a real account: what would keep builds cold or eat caches, and how to repair it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker doctor
  stoker doctor --project app
  stoker doctor --project app --checkout ~/src/app
  stoker doctor --repository stoker/app --stack ci-stoker
  stoker doctor --json | jq -r '.groups[].checks[] | select(.state != \"ok\") | .found'

It looks at the account's settings, the stack, every repository and every project that the policy names, and at \
what is \
believed of AWS (docs/assumptions.md) as far as the account shows it. Each line begins with what came of a check:
  ok       as it should be
  warn     works, but costs something: see whether you want it so
  wrong    builds stay cold, caches are lost, or a border is open
  unknown  could not be looked at, and why: most often a permission of yours
and whatever is not ok is followed by how to repair it. Exit code 1 says that something is wrong; 0 that \
nothing is, of what \
could be looked at. Only reading calls are made; cli/README.md lists the permissions. Region and credentials \
are found as the \
AWS command line finds them.")]
pub(crate) struct Args {
    /// The policy
    #[arg(long, value_name = "PATH", default_value = "policy/stoker.yaml")]
    policy: PathBuf,
    /// Only this project and its repositories, once for each; all that the policy serves unless given
    #[arg(long = "project", value_name = "NAME", value_parser = |text: &str| ProjectName::new(text))]
    projects: Vec<ProjectName>,
    /// Only this repository and the projects that use it, once for each
    #[arg(long = "repository", value_name = "NAME", value_parser = repository_name)]
    repositories: Vec<CacheRepository>,
    /// A checkout of that project's source: a buildspec that is not inline and bake files are read in it
    #[arg(long, value_name = "DIR", requires = "projects")]
    checkout: Option<PathBuf>,
    /// The stack that Stoker was deployed as
    #[arg(long, value_name = "NAME", default_value = "stoker")]
    stack: String,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

fn repository_name(text: &str) -> Result<CacheRepository, InvalidName> {
    CacheRepository::new(text)
}

/// The findings on one thing.
#[derive(Debug, Serialize)]
struct Group {
    kind: &'static str,
    name: String,
    checks: Vec<Finding>,
}

#[derive(Debug, Default, Serialize)]
struct Counts {
    ok: usize,
    warn: usize,
    wrong: usize,
    unknown: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    policy: String,
    at: Timestamp,
    region: String,
    counts: Counts,
    groups: Vec<Group>,
}

impl Report {
    fn new(policy: String, at: Timestamp, region: String, mut groups: Vec<Group>) -> Self {
        let mut counts = Counts::default();
        for finding in groups.iter_mut().flat_map(|group| &mut group.checks) {
            match finding.state {
                State::Ok => counts.ok += 1,
                State::Warn => counts.warn += 1,
                State::Wrong => counts.wrong += 1,
                State::Unknown => counts.unknown += 1,
            }
            // All of it may have come from outside.
            finding.found = plain_whole(&finding.found);
            finding.repair = finding.repair.as_deref().map(plain_whole);
        }
        Self { policy, at, region, counts, groups }
    }

    fn render(&self) -> String {
        let mut text = String::new();
        for group in &self.groups {
            text += &format!("{} {}\n", group.kind, plain_whole(&group.name));
            let rows: Vec<Vec<String>> =
                group.checks.iter().map(|of| vec![of.check.to_owned(), of.found.clone()]).collect();
            let lines = table("", &[Align::Left; 2], &rows);
            for (line, finding) in lines.lines().zip(&group.checks) {
                text += &format!("  {:<7}  {line}\n", finding.state.word());
                if let Some(repair) = &finding.repair {
                    text += &format!("           repair: {repair}\n");
                }
            }
            text.push('\n');
        }
        let Counts { ok, warn, wrong, unknown } = self.counts;
        let checks = count(ok + warn + wrong + unknown, "check");
        text + &format!("{checks}: {ok} ok, {warn} warn, {wrong} wrong, {unknown} unknown\n")
    }
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let policy = retain::load(&args.policy)?;
    retain::check_names(&policy, &args.projects)?;
    let now = Timestamp::now();
    let reader = Reader::find().await?;
    let groups = examine(&reader, &policy, args, now).await?;
    let region = reader.account.region().unwrap_or_default().to_owned();
    let report = Report::new(plain(&args.policy.display().to_string()), now, region, groups);
    let text = if args.json { to_json(&report) } else { report.render() };
    Ok(CommandOutcome { text, success: report.counts.wrong == 0 })
}

/// What is not as it should be of a project and of what it needs, as text.
pub(crate) async fn of_project(name: &ProjectName, policy: &Path, stack: &str) -> Result<String, Problem> {
    let args = Args {
        policy: policy.to_owned(),
        projects: vec![name.clone()],
        repositories: Vec::new(),
        checkout: None,
        stack: stack.to_owned(),
        json: false,
    };
    let policy = retain::load(&args.policy)?;
    let reader = Reader::find().await?;
    let now = Timestamp::now();
    let mut groups = examine(&reader, &policy, &args, now).await?;
    for group in &mut groups {
        group.checks.retain(|finding| matches!(finding.state, State::Warn | State::Wrong));
    }
    groups.retain(|group| !group.checks.is_empty());
    let region = reader.account.region().unwrap_or_default().to_owned();
    Ok(Report::new(String::new(), now, region, groups).render())
}

async fn examine(
    reader: &Reader,
    policy: &Policy,
    args: &Args,
    now: Timestamp,
) -> Result<Vec<Group>, Problem> {
    let checkout = args.checkout.as_deref().map(Checkout::open).transpose()?;
    let checkout = checkout.as_ref();
    let settings = reader.settings().await?;
    let (projects, glob) = match all_projects(&reader.account, policy).await {
        Ok(projects) => (projects, None),
        Err(error) => (policy.named_projects(), Some(Missing::from(&error))),
    };
    let projects = chosen(policy, projects, args)?;
    let mut of_account = account::check(&settings, &projects);
    of_account.extend(glob.map(|missing| Finding::missing("projects of globs", &missing)));
    let stack = reader.stack(&args.stack).await;
    let wanted =
        |repository: &CacheRepository| args.repositories.is_empty() || args.repositories.contains(repository);
    // Of a repository that others share, all decide.
    let shared = by_repository(projects.clone());
    let repositories = shared.into_iter().filter(|(repository, _)| wanted(repository));
    let repositories = stream::iter(repositories).map(|(repository, projects)| async move {
        let seen = reader.repository(&repository, &projects).await;
        (repository, repository::Facts { seen, projects })
    });
    let repositories: BTreeMap<CacheRepository, repository::Facts> =
        repositories.buffered(AT_A_TIME).collect().await;
    let seen = stream::iter(project::built_by(&projects)).map(|(project, name, is_forks)| async move {
        let mut seen = reader.project(project, &name, is_forks).await;
        if let (Ok(Some(described)), Some(checkout)) = (&mut seen.described, checkout) {
            let text = buildspec::of_source(described.buildspec.as_deref(), checkout);
            described.buildspec = text.or(described.buildspec.take());
        }
        project::Facts { project, name, is_forks, seen, checkout }
    });
    let seen: Vec<project::Facts<'_>> = seen.buffered(AT_A_TIME).collect().await;

    let number = read::number(&repositories, &seen, stack.as_ref().ok().and_then(Option::as_ref));
    let place = format!(
        "{} in {}",
        number.as_deref().unwrap_or("(number unknown)"),
        reader.account.region().unwrap_or_default()
    );
    let mut groups = vec![Group { kind: "account", name: place, checks: of_account }];
    groups.push(Group { kind: "stack", name: args.stack.clone(), checks: stack::check(&args.stack, &stack) });
    let deployed = stack.as_ref().ok().and_then(Option::as_ref);
    for (name, facts) in &repositories {
        let checks = repository::check(name, facts, deployed, &repositories);
        groups.push(Group { kind: "repository", name: name.to_string(), checks });
    }
    for facts in &seen {
        let checks = project::check(facts, &seen, &repositories, deployed, now);
        groups.push(Group { kind: "project", name: facts.name.to_string(), checks });
    }
    let checks = assumptions::check(&repositories, &seen);
    groups.push(Group { kind: "assumptions", name: "that the account shows".to_owned(), checks });
    Ok(groups)
}

/// The projects that are asked for.
fn chosen(policy: &Policy, mut projects: Vec<Project>, args: &Args) -> Result<Vec<Project>, Problem> {
    for name in &args.projects {
        if !projects.iter().any(|project| project.name == *name) {
            projects.extend(policy.project(name));
        }
    }
    let uses = |project: &Project, repository: &CacheRepository| {
        project.cache_repository == *repository || project.builds_repository.as_ref() == Some(repository)
    };
    for repository in &args.repositories {
        if !projects.iter().any(|project| uses(project, repository)) {
            return Err(Problem::usage(
                format!("no project of the policy has caches in {repository}"),
                "`stoker policy check` lists the repositories of each",
            ));
        }
    }
    projects.retain(|project| {
        (args.projects.is_empty() || args.projects.contains(&project.name))
            && (args.repositories.is_empty()
                || args.repositories.iter().any(|repository| uses(project, repository)))
    });
    Ok(projects)
}

/// The projects of a policy that names `app`, with these keys.
#[cfg(test)]
fn projects(keys: &str) -> Vec<Project> {
    let text =
        format!("version: 1\nprojects:\n  - name: app\n    repository: github.com/example/app\n{keys}");
    Policy::parse("policy", &text).unwrap().named_projects()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_from_outside_cannot_write_to_the_terminal() {
        let bad = "a\u{1b}[2J\nb";
        let checks = vec![Finding::wrong("check", bad, bad), Finding::ok("other check", "fine")];
        let groups = vec![Group { kind: "project", name: bad.to_owned(), checks }];
        let report = Report::new("p".to_owned(), Timestamp::UNIX_EPOCH, "r".to_owned(), groups);
        assert_eq!(
            report.render(),
            "project a\\u{1b}[2J\\nb\n  wrong    check        a\\u{1b}[2J\\nb\n           repair: a\\u{1b}[2J\\nb\n  \
             ok       other check  fine\n\n2 checks: 1 ok, 0 warn, 1 wrong, 0 unknown\n"
        );
        assert!(!to_json(&report).contains('\u{1b}'));
    }

    #[test]
    fn what_could_not_be_looked_at_says_which_permission_it_takes() {
        let denied = Missing { action: "ecr:GetLifecyclePolicy", is_denied: true, why: "no".to_owned() };
        let finding = Finding::missing("lifecycle", &denied);
        assert_eq!(finding.state, State::Unknown);
        assert!(finding.repair.unwrap().contains("allow ecr:GetLifecyclePolicy"));
        let failed = Finding::missing("lifecycle", &Missing { is_denied: false, ..denied });
        assert!(failed.found.contains("ecr:GetLifecyclePolicy failed: no"), "{}", failed.found);
    }
}
