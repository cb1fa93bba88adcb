//! `stoker onboard watch`: follows the next pushes of a project, until one is built with caches. Where it stops, why.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use stoker_core::names::{Line, ProjectName, Tag};
use stoker_core::onboard::PastBuild;
use stoker_core::policy::Project;
use stoker_core::ports::ReadImages as _;
use stoker_core::provenance::Provenance;

use super::account::{Services, Which};
use super::source::Sources;
use crate::doctor;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain::{call_problem, load};
use crate::text::plain;

/// Builds that are looked at.
const MOST_BUILDS: usize = 100;

/// Follows the next pushes of a project until one is built with caches
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker onboard watch --project app                     # then push twice
  stoker onboard watch --project app --minutes 60

It says what comes: a build that Stoker started and what it was given, its end, the promotion of its cache, the \
next build and how \
much of it was reused. Where nothing comes within the time, it says what `stoker doctor` finds of the project. \
Exit code 1 says \
that it did not come to a warm build.")]
pub(crate) struct Args {
    /// The project
    #[arg(long, value_name = "NAME", value_parser = |text: &str| ProjectName::new(text))]
    project: ProjectName,
    /// The policy
    #[arg(long, value_name = "PATH", default_value = "policy/stoker.yaml")]
    policy: PathBuf,
    /// The stack that Stoker was deployed as
    #[arg(long, value_name = "NAME", default_value = "stoker")]
    stack: String,
    /// The address of the forge's API, where it is not the host's own
    #[arg(long, value_name = "URL")]
    forge_url: Option<String>,
    /// How long each thing is waited for
    #[arg(long, value_name = "NUMBER", default_value_t = 30)]
    minutes: u64,
    /// Seconds between two looks
    #[arg(long, value_name = "NUMBER", default_value_t = 5, hide = true)]
    every: u64,
}

/// Where it stands.
struct Watch<'w> {
    services: &'w Services,
    project: &'w Project,
    starter: String,
    since: Timestamp,
    args: &'w Args,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let policy = load(&args.policy)?;
    let project = policy.project(&args.project).ok_or_else(|| {
        Problem::usage(
            format!("the policy does not serve {}", args.project),
            "stoker onboard apply writes its rule",
        )
    })?;
    let services = Services::find().await?;
    let starter = format!("/{}-start-build", args.stack);
    let watch = Watch { services: &services, project: &project, starter, since: Timestamp::now(), args };
    say("waiting for a push of a branch ...");
    let mut seen: Vec<String> = Vec::new();
    for is_second in [false, true] {
        let Some(build) = watch.until(|| watch.next(&seen)).await? else {
            let next = watch.webhook().await?;
            return stopped(args, "no build of Stoker's has started", &next).await;
        };
        seen.push(build.id.clone());
        let reads = build.variables.get("STOKER_READS").map_or("nothing: it is cold", String::as_str);
        let line = build.variables.get("STOKER_LINE").cloned().unwrap_or_default();
        say(&format!("{} started for {}, which reads {}", plain(&build.id), plain(&line), plain(reads)));
        let Some(ended) = watch.until(|| watch.ended(&build.id)).await? else {
            return stopped(args, "the build does not end", "see its log in CodeBuild").await;
        };
        if !ended.has_succeeded {
            let why = ended.failure.unwrap_or_default();
            return stopped(args, &format!("the build failed: {}", plain(&why)), "see its log in CodeBuild")
                .await;
        }
        say(&format!("{} ended well after {} s", plain(&build.id), ended.seconds.unwrap_or_default()));
        let Ok(line) = Line::parse(&line) else {
            return stopped(args, "the build is of no line", "watch the push of a branch").await;
        };
        let Some(reused) = watch.until(|| watch.promoted(&line, &build.id)).await? else {
            return stopped(
                args,
                "its cache was not promoted",
                "see the end of the build's log: did the export succeed?",
            )
            .await;
        };
        say(&format!("its cache is the line's: {reused} % of its steps were reused"));
        if is_second || reused > 0 {
            let text = format!("{} is warm\n", args.project);
            return Ok(CommandOutcome { text, success: reused > 0 });
        }
        say("waiting for the next push ...");
    }
    Ok(CommandOutcome { text: String::new(), success: false })
}

fn say(text: &str) {
    crate::outcome::print(&format!("{text}\n"));
}

/// Says why nothing more came, with what doctor finds.
async fn stopped(args: &Args, what: &str, next: &str) -> Result<CommandOutcome, Problem> {
    say(&format!("{what} within {} minutes\n next: {next}", args.minutes));
    let found = doctor::of_project(&args.project, &args.policy, &args.stack).await?;
    Ok(CommandOutcome { text: found, success: false })
}

impl Watch<'_> {
    /// Asks again and again; `None` when the time is over.
    async fn until<T, F>(&self, ask: impl Fn() -> F) -> Result<Option<T>, Problem>
    where
        F: Future<Output = Result<Option<T>, Problem>>,
    {
        let begun = std::time::Instant::now();
        loop {
            if let Some(found) = ask().await? {
                return Ok(Some(found));
            }
            if begun.elapsed() >= Duration::from_secs(60 * self.args.minutes) {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_secs(self.args.every)).await;
        }
    }

    /// What is wrong with the webhook, as far as the forge can be asked; else what may be wrong behind it.
    async fn webhook(&self) -> Result<String, Problem> {
        const BEHIND: &str = "see the webhook's recent deliveries at the forge, that the policy is deployed, \
             and what keeps the \
                              push out: stoker simulate";
        let stack = self.services.stack(&self.args.stack).await?;
        let which = Which { projects: Vec::new(), checkout: None, forge_url: self.args.forge_url.clone() };
        let names = std::slice::from_ref(&self.args.project);
        let found = self.services.setup.projects(names).await.map_err(|error| call_problem(&error))?;
        let forge = found
            .first()
            .map(|found| Sources::open(&which).map(|sources| sources.forge(found)))
            .transpose()?;
        let (Some(url), Some(Ok(forge))) = (stack.outputs.get("WebhookUrl"), forge) else {
            return Ok(BEHIND.to_owned());
        };
        Ok(match forge.hook(url).await.map_err(|error| call_problem(&error))? {
            None => format!("make a webhook to {}: stoker onboard apply", plain(url)),
            Some(hook) if !hook.is_active => {
                format!("the webhook to {} is switched off: stoker onboard apply", plain(url))
            }
            Some(_) => BEHIND.to_owned(),
        })
    }

    async fn builds(&self) -> Result<Vec<PastBuild>, Problem> {
        let builds = self.services.setup.builds(&self.args.project, self.since, MOST_BUILDS).await;
        builds.map_err(|error| call_problem(&error))
    }

    /// The oldest build of Stoker's that has not been seen.
    async fn next(&self, seen: &[String]) -> Result<Option<PastBuild>, Problem> {
        let builds = self.builds().await?;
        let is_new =
            |build: &PastBuild| build.initiator.ends_with(&self.starter) && !seen.contains(&build.id);
        Ok(builds.into_iter().rev().find(is_new))
    }

    async fn ended(&self, id: &str) -> Result<Option<PastBuild>, Problem> {
        let builds = self.builds().await?;
        Ok(builds.into_iter().find(|build| build.id == id && build.seconds.is_some()))
    }

    /// How many percent of a build's steps were reused, once its cache is its line's.
    async fn promoted(&self, line: &Line, id: &str) -> Result<Option<u8>, Problem> {
        let Some(scope) = self.project.scopes().next() else { return Ok(None) };
        let tags = [Tag::line(scope, line)];
        let images = self.services.aws.images(&self.project.cache_repository, &tags).await;
        let images = images.map_err(|error| call_problem(&error))?;
        let manifest = images.into_iter().flatten().next().map(|image| image.manifest);
        let provenance = manifest.and_then(|bytes| Provenance::of_manifest(&bytes));
        let is_of_build = |of: &Provenance| of.built.as_ref().is_some_and(|built| built.build == id);
        Ok(provenance.filter(is_of_build).map(|of| of.reused_percent.unwrap_or_default()))
    }
}
