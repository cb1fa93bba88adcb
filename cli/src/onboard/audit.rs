//! `stoker onboard audit`: every project of the account, what it could gain, and whether it can be taken into service.

use std::path::PathBuf;

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use stoker_core::names::ProjectName;
use stoker_core::onboard::{Found, PastBuild};
use stoker_core::policy::{Policy, Project};

use super::account::{Services, Which, registry_of};
use super::buildspec;
use super::source::{Buildspec, Sources};
use crate::cache::to_json;
use crate::doctor::commands::{Chosen, Done, values};
use crate::doctor::project::repository_of;
use crate::doctor::spec::{self, Spec};
use crate::html::{self, Cell};
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain::call_problem;
use crate::text::{Align, count, plain, plain_whole, table};

/// How far back builds are looked at.
const DAYS: i64 = 30;
/// Builds of a project that are looked at, at most.
const MOST_BUILDS: usize = 1000;
/// Projects whose builds are asked for at once.
const AT_A_TIME: usize = 4;
/// CodeBuild's older images have a Docker without buildx.
const NEWEST_WITHOUT_BUILDX: u32 = 6;

/// Lists the account's projects, what caches could save each, and whether they are ready
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker onboard audit
  stoker onboard audit --project 'team-*' --html audit.html
  GITHUB_TOKEN=... stoker onboard audit                  # also reads buildspecs that are files of the source
  stoker onboard audit --json | jq -r '.projects[] | select(.verdict == \"ready\") | .project'

It only reads. Each project is `ready`, `ready after` something, or `cannot` be served, with the reasons. AT \
STAKE are the minutes \
of the last 30 days in the phases that build images, which is the most that caches can save, and those that \
these builds took \
longer than their own fastest tenth; `stoker forecast` in a checkout says which steps they are.")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// Write the same as a page to this file, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Whether a project can be taken into service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Ready,
    ReadyAfter,
    Cannot,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::ReadyAfter => "ready after",
            Self::Cannot => "cannot",
        }
    }
}

/// What is known of a project, and what follows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Audited {
    project: String,
    source: String,
    repository: String,
    verdict: Verdict,
    /// What has to be done first, or why it cannot be served.
    reasons: Vec<String>,
    builds: usize,
    minutes: u64,
    /// Minutes of the phases that build images, and those beyond the fastest tenth of them.
    at_stake: u64,
    beyond_fastest: u64,
    builds_images: Option<bool>,
    environment: String,
    privileged: bool,
    docker_server: bool,
    batch: bool,
    buildspec: String,
    /// What it does about caches by hand.
    caching: Vec<String>,
    /// CodeBuild's own webhook: its filter groups, in words.
    webhook: Option<Vec<String>>,
    role: String,
}

#[derive(Debug, Serialize)]
struct Report {
    at: Timestamp,
    region: String,
    days: i64,
    projects: Vec<Audited>,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let services = Services::find().await?;
    let mut sources = Sources::open(&args.which)?;
    let found = services.projects(&args.which.projects).await?;
    let now = Timestamp::now();
    let since = now - SignedDuration::from_hours(24 * DAYS);
    let builds = stream::iter(&found).map(|found| services.setup.builds(&found.name, since, MOST_BUILDS));
    let builds: Vec<_> = builds.buffered(AT_A_TIME).collect().await;
    let mut projects = Vec::new();
    for (found, builds) in found.iter().zip(builds) {
        let builds = builds.map_err(|error| call_problem(&error))?;
        let buildspec = sources.buildspec(found).await;
        projects.push(audited(found, &buildspec, &builds));
    }
    projects.sort_by(|a, b| (b.at_stake, a.verdict, &a.project).cmp(&(a.at_stake, b.verdict, &b.project)));
    let report = Report { at: now, region: services.region, days: DAYS, projects };
    if let Some(file) = &args.html {
        std::fs::write(file, page(&report)).map_err(|error| {
            Problem::failed(
                format!("cannot write {}: {error}", plain(&file.display().to_string())),
                "name a file in a directory that is there",
            )
        })?;
    }
    Ok(CommandOutcome::yes(if args.json { to_json(&report) } else { reported(&report) }))
}

/// A project as a rule for it alone would have it.
pub(super) fn alone(name: &ProjectName, repository: &str) -> Option<Project> {
    let text = format!("version: 1\nprojects:\n  - name: {name}\n    repository: {repository}\n");
    Policy::parse("a rule", &text).ok()?.named_projects().into_iter().next()
}

fn audited(found: &Found, buildspec: &Buildspec, builds: &[PastBuild]) -> Audited {
    let spec = buildspec.text().ok().and_then(spec::read);
    let project = alone(&found.name, &repository_of(&found.location));
    let done = spec.as_ref().zip(project.as_ref()).map(|(spec, project)| Done::read(project, spec));
    let (verdict, reasons) = judged(found, buildspec, project.as_ref());
    let phases = buildspec.text().ok().zip(project.as_ref()).map(|(text, project)| phases(text, project));
    let phases = phases.filter(|phases| !phases.is_empty()).unwrap_or_else(|| vec!["BUILD".to_owned()]);
    let builds_images =
        done.as_ref().filter(|done| done.unread.is_none()).map(|done| !done.builds.is_empty());
    let mut of_images: Vec<u64> = builds
        .iter()
        .filter(|build| build.has_succeeded)
        .map(|build| phases.iter().filter_map(|phase| build.phases.get(phase)).sum())
        .collect();
    of_images.sort_unstable();
    let fastest = of_images.get(of_images.len() / 10).copied().unwrap_or_default();
    let is_none = builds_images == Some(false);
    let sum = |seconds: u64| if is_none { 0 } else { seconds / 60 };
    Audited {
        project: found.name.to_string(),
        source: found.source.clone(),
        repository: repository_of(&found.location),
        verdict,
        reasons,
        builds: builds.len(),
        minutes: builds.iter().filter_map(|build| build.seconds).sum::<u64>() / 60,
        at_stake: sum(of_images.iter().sum()),
        beyond_fastest: sum(of_images.iter().map(|seconds| seconds.saturating_sub(fastest)).sum()),
        builds_images,
        environment: found.environment.clone(),
        privileged: found.is_privileged,
        docker_server: found.has_docker_server,
        batch: found.has_batch || spec.as_ref().is_some_and(|spec| spec.has_batch),
        buildspec: buildspec.place().to_owned(),
        caching: done.map(|done| by_hand(&done)).unwrap_or_default(),
        webhook: found
            .webhook
            .as_ref()
            .map(|webhook| webhook.groups.iter().map(|group| in_words(group)).collect()),
        role: found.role.rsplit('/').next().unwrap_or_default().to_owned(),
    }
}

/// Whether a project can be taken into service, and what is in the way.
pub(super) fn judged(
    found: &Found,
    buildspec: &Buildspec,
    project: Option<&Project>,
) -> (Verdict, Vec<String>) {
    let mut cannot = Vec::new();
    let mut after = Vec::new();
    if ["CODEPIPELINE", "S3", "NO_SOURCE"].contains(&found.source.as_str()) {
        cannot.push(format!(
            "{}: no commit can be built from it; its builds can ask which caches to read (docs/ci.md)",
            found.source
        ));
    }
    if ["LAMBDA", "WINDOWS", "MAC"].iter().any(|kind| found.environment.contains(kind)) {
        cannot.push(format!("{} runs no BuildKit for Linux images", found.environment));
    }
    let Some(project) = project else {
        cannot.push("its name makes no repository, or its source is none: see docs/policy.md".to_owned());
        return (Verdict::Cannot, cannot);
    };
    if found.has_docker_server {
        after.push("take the Docker server out of the environment: Stoker's builder goes past it".to_owned());
    } else if !found.is_privileged && cannot.is_empty() {
        after.push("switch on privileged mode: Docker does not start without it".to_owned());
    }
    if found.has_batch {
        after.push("take out what it has for batches: Stoker starts single builds (docs/ci.md)".to_owned());
    }
    let version = found
        .image
        .strip_prefix("aws/codebuild/standard:")
        .and_then(|rest| rest.split('.').next()?.parse().ok());
    if version.is_some_and(|version: u32| version <= NEWEST_WITHOUT_BUILDX) {
        after.push(format!("take a newer image: {} has no `docker buildx`", found.image));
    }
    match buildspec.text() {
        Err(why) => {
            after.push(format!("let its buildspec be read ({}): {why}; see --checkout", buildspec.place()));
        }
        Ok(text) => {
            let read = spec::read(text);
            let done = read.as_ref().map(|spec| Done::read(project, spec));
            let builds_nothing =
                done.as_ref().is_some_and(|done| done.builds.is_empty() && done.unread.is_none());
            if builds_nothing && !read.as_ref().is_some_and(runs_scripts) {
                cannot.push("its buildspec builds no image".to_owned());
            } else if let Err(reasons) =
                buildspec::patch(text, project, &found.image, &registry_of(&found.arn), None)
            {
                after.extend(reasons.into_iter().map(|reason| format!("its buildspec: {reason}")));
            }
            let makes_builder =
                done.is_some_and(|done| done.builds.iter().any(|build| build.builder == Chosen::Docker));
            let host = project.builder_image.split('/').next().unwrap_or_default();
            let is_of_hub = !host.contains('.') || host == "docker.io";
            if found.has_vpc && makes_builder && is_of_hub {
                after.push(format!(
                    "see that builds in its VPC can pull {}, and name it by its registry as `builder.image` in \
                     the policy",
                    project.builder_image
                ));
            }
        }
    }
    match (cannot.is_empty(), after.is_empty()) {
        (false, _) => (Verdict::Cannot, cannot),
        (true, false) => (Verdict::ReadyAfter, after),
        (true, true) => (Verdict::Ready, Vec::new()),
    }
}

/// Whether a script may build that is not in the buildspec.
fn runs_scripts(spec: &Spec) -> bool {
    let runs = |word: &str| {
        ["make", "bash", "sh", "docker", "npm", "task", "just"].contains(&word) || word.contains(['/', '.'])
    };
    spec.commands.iter().any(|command| command.split_whitespace().any(runs))
}

/// The phases that build images, in CodeBuild's words.
fn phases(text: &str, project: &Project) -> Vec<String> {
    let Some(document) = spec::document(text) else { return Vec::new() };
    let Some(phases) = document["phases"].as_object() else { return Vec::new() };
    let builds = |phase: &Value| {
        let commands = phase["commands"].as_array().into_iter().flatten();
        let commands = commands.filter_map(Value::as_str).map(str::to_owned).collect();
        !Done::read(project, &Spec { commands, ..Spec::default() }).builds.is_empty()
    };
    phases.iter().filter(|(_, phase)| builds(phase)).map(|(name, _)| name.to_uppercase()).collect()
}

/// The flags of caches that commands have.
fn by_hand(done: &Done) -> Vec<String> {
    let mut found = Vec::new();
    for build in &done.builds {
        let texts = build.command.texts();
        let flags =
            values(&texts).into_iter().filter(|(option, _)| ["--cache-from", "--cache-to"].contains(option));
        found.extend(flags.map(|(option, value)| format!("{option} {value}")));
    }
    found
}

fn in_words(group: &[(String, String, bool)]) -> String {
    let filter = |(kind, pattern, excludes): &(String, String, bool)| {
        format!("{kind} {}{pattern}", if *excludes { "not " } else { "" })
    };
    group.iter().map(filter).collect::<Vec<_>>().join(" and ")
}

fn row(of: &Audited) -> [String; 9] {
    let webhook = match of.webhook.as_deref() {
        None => "-".to_owned(),
        Some([]) => "all".to_owned(),
        Some(groups) => count(groups.len(), "group"),
    };
    [
        of.project.clone(),
        of.verdict.words().to_owned(),
        of.at_stake.to_string(),
        of.beyond_fastest.to_string(),
        of.minutes.to_string(),
        of.builds.to_string(),
        plain(&of.repository),
        plain(&of.buildspec),
        webhook,
    ]
}

const HEAD: [&str; 9] = [
    "PROJECT",
    "VERDICT",
    "AT STAKE",
    "BEYOND FASTEST",
    "MINUTES",
    "BUILDS",
    "SOURCE",
    "BUILDSPEC",
    "WEBHOOK",
];

fn reported(report: &Report) -> String {
    let [left, right] = [Align::Left, Align::Right];
    let align = [left, left, right, right, right, right, left, left, left];
    let rows: Vec<Vec<String>> = std::iter::once(HEAD.map(str::to_owned))
        .chain(report.projects.iter().map(row))
        .map(Vec::from)
        .collect();
    let mut lines = table("", &align, &rows).lines().map(str::to_owned).collect::<Vec<_>>().into_iter();
    let mut text = format!("{}\n", lines.next().unwrap_or_default());
    for (line, of) in lines.zip(&report.projects) {
        text += &format!("{line}\n");
        for reason in &of.reasons {
            text += &format!("    {}\n", plain_whole(reason));
        }
    }
    let ready = report.projects.iter().filter(|of| of.verdict == Verdict::Ready).count();
    let next =
        if ready > 0 { ": stoker onboard plan --project NAME shows what would be changed" } else { "" };
    text + &format!(
        "\n{} in {}, {ready} ready{next}\n",
        count(report.projects.len(), "project"),
        plain(&report.region)
    )
}

fn page(report: &Report) -> String {
    let of = |verdict| report.projects.iter().filter(|of| of.verdict == verdict).count().to_string();
    let at_stake: u64 = report.projects.iter().map(|of| of.at_stake).sum();
    let cards = [
        ("Ready", of(Verdict::Ready), "projects".to_owned()),
        ("Ready after something", of(Verdict::ReadyAfter), "projects".to_owned()),
        ("Cannot be served", of(Verdict::Cannot), "projects".to_owned()),
        (
            "At stake",
            at_stake.to_string(),
            format!("minutes of {} days, in phases that build images", report.days),
        ),
    ];
    let rows: Vec<Vec<Cell>> = report
        .projects
        .iter()
        .map(|of| {
            let cells = row(of).into_iter().enumerate();
            let cells = cells
                .map(|(at, text)| if (2..6).contains(&at) { Cell::number(text) } else { Cell::text(text) });
            cells.chain([Cell::text(of.reasons.join("; "))]).collect()
        })
        .collect();
    let mut head = HEAD.to_vec();
    head.push("WHY");
    let caption = "The last 30 days. At stake are the minutes of the phases that build images: the most that \
         caches can save.";
    let body = html::section("figures", "Projects", &html::cards(cards))
        + &html::section("projects", "Each project", &html::table(caption, &head, &rows));
    let header = format!(
        "<header>\n<h1>What caches could save</h1>\n<dl \
         class=\"facts\"><dt>Made</dt><dd>{}</dd><dt>Region</dt><dd>{}</dd></dl>\n\
         </header>\n<main>\n",
        html::escaped(&report.at.strftime("%Y-%m-%d %H:%M UTC").to_string()),
        html::escaped(&report.region)
    );
    html::document("Stoker audit", &(header + &body))
}
