//! `stoker onboard plan`: what would be made and changed, as files and diffs.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use stoker_core::names::{Branch, CacheRepository, ProjectName, Repository, slug};
use stoker_core::onboard::{Found, Stack, TAG, filters, rules};
use stoker_core::policy::{Policy, Project};

use super::account::{Services, Which, registry_of};
use super::audit::{Verdict, alone, judged};
use super::forge::Kind;
use super::record::{Change, Records, inserted};
use super::source::{Buildspec, Sources};
use super::{buildspec, diff};
use crate::cache::to_json;
use crate::doctor::project::repository_of;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain::call_problem;
use crate::text::{count, plain, plain_whole};

/// Builds that are looked at for one of Stoker's.
const MOST_BUILDS: usize = 200;

/// What a plan is made by.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(super) which: Which,
    /// The policy that gets rules
    #[arg(long, value_name = "PATH", default_value = "policy/stoker.yaml")]
    pub(super) policy: PathBuf,
    /// The stack that Stoker was deployed as
    #[arg(long, value_name = "NAME", default_value = "stoker")]
    pub(super) stack: String,
    /// The directory with the records of what was made: keep it, and share it with whoever may undo
    #[arg(long, value_name = "DIR", default_value = "onboard")]
    pub(super) record: PathBuf,
    /// Let projects go on starting their own builds, and only ask for caches
    #[arg(long)]
    pub(super) observe: bool,
    /// Take CodeBuild's own webhook away, too, once Stoker has started a build
    #[arg(long, conflicts_with = "observe")]
    pub(super) take_over: bool,
}

/// Shows what would be made and changed for projects, and changes nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker onboard plan --project app
  stoker onboard plan --project 'team-*'                 # one rule for all, where names and webhooks allow it
  stoker onboard plan --project app --observe            # builds go on as they are, and only ask for caches
  GITHUB_TOKEN=... stoker onboard plan --project app     # with webhook and pull request

For each project that is ready: the rule in the policy (what CodeBuild's webhook keeps out is kept out), \
repositories, the policy \
of its role, the webhook, and the buildspec's patch. What cannot be done from here is named, with what to do.")]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// What is to be done for a project.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Planned {
    pub(super) project: ProjectName,
    pub(super) verdict: Verdict,
    /// Why nothing is planned.
    pub(super) reasons: Vec<String>,
    /// In the order in which they are made.
    pub(super) changes: Vec<Change>,
    /// What others' records have, and this project needs, too: it stays until both are undone.
    #[serde(skip)]
    pub(super) shared: Vec<Change>,
    /// What a person has to do.
    pub(super) by_hand: Vec<String>,
    /// What will be different, and what was left out.
    pub(super) notes: Vec<String>,
    /// The buildspec's patch, as a diff.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip)]
    pub(super) found: Found,
}

impl Planned {
    /// Whether there is anything to write down.
    pub(super) fn is_wanted(&self) -> bool {
        !self.changes.is_empty() || !self.shared.is_empty()
    }
}

/// All that is planned.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    region: String,
    /// The policy's patch, as a diff.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    pub(super) projects: Vec<Planned>,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let services = Services::find().await?;
    let stack = services.stack(&args.options.stack).await?;
    let records = Records::open(&args.options.record)?;
    let mut sources = Sources::open(&args.options.which)?;
    let plan = make(&services, &stack, &records, &mut sources, &args.options).await?;
    let text = if args.json { to_json(&plan) } else { plan.render() };
    Ok(CommandOutcome::yes(text))
}

impl Plan {
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        if let Some(diff) = &self.policy {
            text += &format!("{diff}\n");
        }
        for planned in &self.projects {
            text += &format!("{}\n", planned.project);
            let mut lines = |mark: &str, all: &[String]| {
                for line in all {
                    text += &format!("  {mark} {}\n", plain_whole(line));
                }
            };
            lines("not planned:", &planned.reasons);
            let changes: Vec<String> = planned.changes.iter().map(Change::words).collect();
            lines("make:", &changes);
            lines("by hand:", &planned.by_hand);
            lines("note:", &planned.notes);
            if planned.changes.is_empty() && planned.by_hand.is_empty() && planned.reasons.is_empty() {
                lines("", &["nothing is left to do".to_owned()]);
            }
            if let Some(patch) = &planned.patch {
                text += &format!("\n{patch}");
            }
            text.push('\n');
        }
        let changes: usize = self.projects.iter().map(|planned| planned.changes.len()).sum();
        text + &format!("{}, {}\n", count(self.projects.len(), "project"), count(changes, "change"))
    }
}

/// Plans for the projects that are asked for.
pub(super) async fn make(
    services: &Services,
    stack: &Stack,
    records: &Records,
    sources: &mut Sources,
    options: &Options,
) -> Result<Plan, Problem> {
    let found = services.projects(&options.which.projects).await?;
    let text = std::fs::read_to_string(&options.policy).map_err(|error| {
        Problem::usage(
            format!("the policy {} cannot be read: {error}", plain(&options.policy.display().to_string())),
            "name it with --policy: it is policy/stoker.yaml of the checkout that you deploy from",
        )
    })?;
    let policy = crate::retain::load(&options.policy)?;
    let mut all = Vec::new();
    let mut wanted: Vec<(ProjectName, rules::Rule)> = Vec::new();
    for found in found {
        let buildspec = sources.buildspec(&found).await;
        let repository = repository_of(&found.location);
        let served = policy.project(&found.name);
        let project = served.clone().or_else(|| with_defaults(&text, &found.name, &repository));
        let (verdict, reasons) = judged(&found, &buildspec, project.as_ref());
        let mut planned = Planned {
            project: found.name.clone(),
            verdict,
            reasons,
            changes: Vec::new(),
            shared: Vec::new(),
            by_hand: Vec::new(),
            notes: Vec::new(),
            patch: None,
            found,
        };
        if verdict == Verdict::Ready && served.is_none() {
            let rule = rule(&mut planned, sources, &repository, options.observe).await;
            wanted.push((planned.project.clone(), rule));
        }
        all.push((planned, buildspec));
    }
    let (after, given) = with_rules(&text, &wanted, options, &all);
    let policy_diff =
        (after != text).then(|| diff::unified(&options.policy.display().to_string(), &text, &after));
    let policy = Policy::parse("the policy with its rules", &after).map_err(|mistakes| {
        Problem::usage(
            plain_whole(&mistakes.to_string()),
            "correct the policy; `stoker policy check` shows it",
        )
    })?;
    let mut projects = Vec::new();
    for (mut planned, buildspec) in all {
        if planned.verdict != Verdict::Ready {
            projects.push(planned);
            continue;
        }
        match given.iter().find(|(name, _)| *name == planned.project) {
            Some((_, Ok((at, text)))) => {
                planned.changes.push(Change::Rule {
                    file: options.policy.clone(),
                    text: text.clone(),
                    at: *at,
                });
            }
            // Another project's rule may be a glob that serves this one, too.
            None => planned.shared.extend(records.elsewhere(&planned.project, |change| match change {
                Change::Rule { file, text, .. } => {
                    *file == options.policy && serves(&after, text, &planned.project)
                }
                _ => false,
            })),
            Some((_, Err(why))) => planned.by_hand.push(format!("write its rule into the policy: {why}")),
        }
        if let Some(project) = policy.project(&planned.project) {
            things(services, stack, records, sources, options, &mut planned, &project, &buildspec).await?;
        }
        planned.changes.sort_by_key(Change::step);
        projects.push(planned);
    }
    Ok(Plan { region: services.region.clone(), policy: policy_diff, projects })
}

/// A project as the policy's defaults would have it.
fn with_defaults(text: &str, name: &ProjectName, repository: &str) -> Option<Project> {
    let rule = rules::Rule {
        name: name.to_string(),
        repository: repository.to_owned(),
        default_branch: None,
        builds: Vec::new(),
    };
    let served = [(name.clone(), Repository::new(repository).ok()?)];
    let after = rules::insert(text, &rule, &served).ok();
    let policy = after.and_then(|after| Policy::parse("the policy", &after).ok());
    policy.and_then(|policy| policy.project(name)).or_else(|| alone(name, repository))
}

/// The rule of a project that the policy does not serve yet.
async fn rule(planned: &mut Planned, sources: &mut Sources, repository: &str, observe: bool) -> rules::Rule {
    let found = &planned.found;
    let kind = Kind::of_source(&found.source);
    // The other forges tell it with each event.
    let is_told = matches!(kind, Some(Kind::GitHub | Kind::GitLab));
    let default_branch = match sources.default_branch(found).await {
        Ok(branch) => Some(branch),
        Err(_) if is_told => None,
        Err(why) => {
            planned
                .notes
                .push(format!("its default branch is taken to be main, as nobody can be asked: {why}"));
            None
        }
    };
    let name = default_branch.as_deref().unwrap_or("main");
    let translation = match &found.webhook {
        _ if observe => {
            filters::Translation { builds: vec![("start", "false".to_owned())], lost: Vec::new() }
        }
        None => {
            planned.notes.push(
                "it has no webhook of CodeBuild's: Stoker will start a build at each push; where something else \
                 starts its \
                 builds, say --observe"
                    .to_owned(),
            );
            filters::Translation::default()
        }
        Some(webhook) if webhook.branch_filter.is_some() => {
            let lost = vec!["its webhook has a branchFilter, which is older than filter groups".to_owned()];
            filters::Translation { builds: vec![("start", "false".to_owned())], lost }
        }
        Some(webhook) => filters::translate(&webhook.filters(), name),
    };
    if found
        .webhook
        .as_ref()
        .is_some_and(|webhook| webhook.filters().iter().flatten().any(|of| of.pattern.contains("PULL")))
    {
        planned.notes.push(
            "pull requests of forks are not built unless `builds.forks` says so (docs/policy.md)".to_owned(),
        );
    }
    planned.notes.extend(translation.lost.iter().map(|lost| format!("webhook: {lost}")));
    let default_branch = default_branch
        .filter(|branch| !is_told && branch != "main")
        .and_then(|branch| Branch::new(branch).ok());
    let name = planned.project.to_string();
    let mut rule =
        rules::Rule { name, repository: repository.to_owned(), default_branch, builds: translation.builds };
    let nothing = [("start", "false".to_owned())];
    if let Some(why) = rule.refused().filter(|_| rule.builds != nothing) {
        planned.notes.push(format!("webhook: what it asks cannot be asked of this forge: {why}"));
        rule.builds = nothing.to_vec();
    }
    if rule.builds == nothing && !observe {
        planned.notes.push("so Stoker starts no builds of it: it goes on starting its own".to_owned());
    }
    rule
}

/// What each project gets of the policy: text, and the byte of it where that goes.
type Given = Vec<(ProjectName, Result<(usize, String), String>)>;

/// The policy with rules for these projects, and what each has got of it.
fn with_rules(
    text: &str,
    wanted: &[(ProjectName, rules::Rule)],
    options: &Options,
    all: &[(Planned, Buildspec)],
) -> (String, Given) {
    // A glob takes what it matches, ready or not.
    let is_whole = all.iter().all(|(planned, _)| planned.verdict == Verdict::Ready);
    let joined = match options.which.projects.as_slice() {
        [glob] if is_whole => rules::joined(glob, wanted),
        _ => None,
    };
    let repository = |rule: &rules::Rule| Repository::new(rule.repository.as_str()).ok();
    let groups: Vec<(rules::Rule, Vec<(ProjectName, rules::Rule)>)> = match joined {
        Some(rule) => vec![(rule, wanted.to_vec())],
        None => wanted.iter().map(|of| (of.1.clone(), vec![of.clone()])).collect(),
    };
    let (mut text, mut given) = (text.to_owned(), Given::new());
    for (rule, of) in groups {
        let served: Option<Vec<_>> =
            of.iter().map(|(name, own)| Some((name.clone(), repository(own)?))).collect();
        let inserted = served.ok_or_else(|| "its source is no repository".to_owned()).and_then(|served| {
            let after = rules::insert(&text, &rule, &served)?;
            let put_in =
                inserted(&text, &after).ok_or_else(|| "its place in the policy is not clear".to_owned())?;
            Ok((after, put_in))
        });
        let result = inserted.map(|(after, put_in)| {
            text = after;
            put_in
        });
        given.extend(of.into_iter().map(|(name, _)| (name, result.clone())));
    }
    (text, given)
}

/// Whether a project is served by this text of the policy, and by nothing else.
fn serves(policy: &str, text: &str, project: &ProjectName) -> bool {
    let without = Policy::parse("the policy without a rule", &policy.replacen(text, "", 1));
    policy.contains(text) && without.is_ok_and(|policy| policy.project(project).is_none())
}

/// What there is to make for a project, beside its rule.
#[expect(clippy::too_many_arguments, reason = "all that is known goes in here")]
async fn things(
    services: &Services,
    stack: &Stack,
    records: &Records,
    sources: &mut Sources,
    options: &Options,
    planned: &mut Planned,
    project: &Project,
    buildspec: &Buildspec,
) -> Result<(), Problem> {
    let record = records.of(&planned.project);
    let name = planned.project.clone();
    let is_ours = |change: &Change| {
        record.is_some_and(|record| record.changes.iter().any(|known| known.is_of_same(change)))
            || records.has_elsewhere(&name, change)
    };
    for repository in project.repositories() {
        let change = Change::Repository {
            name: repository.to_string(),
            is_immutable: project.builds_repository.as_ref() == Some(repository),
        };
        match repository_state(services, repository).await? {
            None => planned.changes.push(change),
            Some(false) if is_ours(&change) => planned.changes.push(change),
            Some(_) => {}
        }
    }
    let role = planned.found.role.rsplit('/').next().unwrap_or_default().to_owned();
    let policies: Vec<&String> =
        ["BuildPolicy", "ProjectBuildPolicy"].iter().filter_map(|name| stack.outputs.get(*name)).collect();
    match (policies.first(), services.setup.attached(&role).await.map_err(|error| call_problem(&error))?) {
        (None, _) => {
            planned
                .by_hand
                .push(format!("name the stack: {} has no output BuildPolicy", plain(&options.stack)));
        }
        (_, None) => {
            planned
                .by_hand
                .push(format!("give the project a role that exists: there is no {}", plain(&role)));
        }
        (Some(policy), Some(attached)) if !policies.iter().any(|policy| attached.contains(policy)) => {
            planned.changes.push(Change::Role { role, policy: (*policy).clone() });
        }
        (Some(policy), Some(_)) => {
            let change = Change::Role { role, policy: (*policy).clone() };
            planned.shared.extend(Some(change).filter(|change| records.has_elsewhere(&name, change)));
        }
    }
    webhook(stack, records, sources, planned, &is_ours).await?;
    patched(stack, sources, planned, project, buildspec).await;
    take_over(services, records, options, planned, project.builds.start).await
}

/// Whether a repository has its safety net, or somebody else cares for it; `None` where there is none of that name.
async fn repository_state(
    services: &Services,
    repository: &CacheRepository,
) -> Result<Option<bool>, Problem> {
    let tags = services.setup.repository_tags(repository).await.map_err(|error| call_problem(&error))?;
    let Some(tags) = tags else { return Ok(None) };
    if !tags.contains_key(TAG) {
        return Ok(Some(true));
    }
    services
        .setup
        .lifecycle(repository)
        .await
        .map(|policy| Some(policy.is_some()))
        .map_err(|error| call_problem(&error))
}

async fn webhook(
    stack: &Stack,
    records: &Records,
    sources: &Sources,
    planned: &mut Planned,
    is_ours: &impl Fn(&Change) -> bool,
) -> Result<(), Problem> {
    if planned.found.source == "CODECOMMIT" {
        return Ok(());
    }
    let Some(url) = stack.outputs.get("WebhookUrl") else {
        planned.by_hand.push("name the stack: it has no output WebhookUrl".to_owned());
        return Ok(());
    };
    let repository = repository_of(&planned.found.location);
    let change = Change::Webhook { repository: repository.clone(), url: url.clone() };
    match sources.forge(&planned.found) {
        Err(why) => planned.by_hand.push(format!(
            "make a webhook of {} to {} with the secret of the output WebhookSecret (docs/forges.md): {why}",
            plain(&repository),
            plain(url)
        )),
        Ok(forge) => match forge.hook(url).await.map_err(|error| call_problem(&error))? {
            None => planned.changes.push(change),
            Some(hook) if !hook.is_active && is_ours(&change) => planned.changes.push(change),
            Some(hook) if !hook.is_active => {
                planned.by_hand.push(format!(
                    "switch on the webhook of {} to {}",
                    plain(&repository),
                    plain(url)
                ));
            }
            Some(_) if records.has_elsewhere(&planned.project, &change) => planned.shared.push(change),
            Some(_) => {}
        },
    }
    Ok(())
}

async fn patched(
    stack: &Stack,
    sources: &mut Sources,
    planned: &mut Planned,
    project: &Project,
    buildspec: &Buildspec,
) {
    let Ok(text) = buildspec.text() else { return };
    let registry = registry_of(&planned.found.arn);
    let function = stack.outputs.get("ResolveCacheFunction").map(String::as_str);
    let asks = function.filter(|_| !project.builds.start);
    let after = match buildspec::patch(text, project, &planned.found.image, &registry, asks) {
        Ok(None) => return,
        Ok(Some(after)) => after,
        Err(reasons) => {
            planned.by_hand.extend(reasons.into_iter().map(|reason| format!("its buildspec: {reason}")));
            return;
        }
    };
    if let Some(function) = asks {
        planned
            .by_hand
            .push(format!("let its role call lambda:InvokeFunction on {} (docs/ci.md)", plain(function)));
    }
    planned.patch = Some(diff::unified(buildspec.place(), text, &after));
    let file = match buildspec {
        Buildspec::Inline(before) => {
            planned.changes.push(Change::Inline { before: before.clone(), after });
            return;
        }
        Buildspec::File { path, .. } => path.clone(),
    };
    let repository = repository_of(&planned.found.location);
    match (sources.forge(&planned.found).map(drop), sources.default_branch(&planned.found).await) {
        (Ok(()), Ok(base)) => {
            let branch = format!("stoker-onboard-{}", slug(&file));
            planned.changes.push(Change::Proposal { repository, branch, base, file, after });
        }
        (Err(why), _) | (_, Err(why)) => {
            planned.by_hand.push(format!(
                "commit the patch of {} in {}: {why}",
                plain(&file),
                plain(&repository)
            ));
        }
    }
}

/// CodeBuild's own webhook goes last: once it is seen that webhook, policy and start-build work together.
async fn take_over(
    services: &Services,
    records: &Records,
    options: &Options,
    planned: &mut Planned,
    starts: bool,
) -> Result<(), Problem> {
    let Some(webhook) = planned.found.webhook.clone() else { return Ok(()) };
    if !starts {
        if options.take_over {
            planned
                .notes
                .push("its webhook stays, as the policy has Stoker start no builds of it".to_owned());
        }
        return Ok(());
    }
    if !options.take_over {
        planned
            .notes
            .push("pushes are built twice until CodeBuild's own webhook is gone: see --take-over".to_owned());
        return Ok(());
    }
    if webhook.is_special {
        planned
            .by_hand
            .push("take its webhook away: it is of several repositories, or made by hand".to_owned());
        return Ok(());
    }
    let since = records
        .of(&planned.project)
        .map_or_else(|| Timestamp::now() - SignedDuration::from_hours(24 * 7), |record| record.at);
    let builds = services.setup.builds(&planned.project, since, MOST_BUILDS).await;
    let builds = builds.map_err(|error| call_problem(&error))?;
    let starter = format!("/{}-start-build", options.stack);
    if builds.iter().any(|build| build.initiator.ends_with(&starter)) {
        planned.changes.push(Change::TakeOver { webhook });
    } else {
        planned.by_hand.push(
            "push to it, and run this again: its webhook stays until Stoker has started a build (stoker onboard \
             watch)".to_owned(),
        );
    }
    Ok(())
}
