//! `stoker forecast`: what caches would have saved a repository, by replaying its history.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dockerfile_keys::{Id, Options, TreeError, find, normal};
use jiff::Timestamp;
use stoker_core::error::chain;
use stoker_core::names::{Platform, ProjectName, Scope};

use crate::cache::to_json;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::progress::{Progress, Unit};
use crate::text::plain;

mod advice;
mod bake;
mod edit;
mod figures;
mod git;
mod history;
mod kept;
mod page;
mod project;
mod render;
mod replay;
mod report;
mod strategy;
mod times;

use advice::{Advice, Candidate, candidates};
use figures::{Figures, Often, Range, figures, often};
pub(crate) use git::{Commit, Repository};
use history::History;
pub(crate) use history::pull_request;
use kept::Kept;
pub(crate) use replay::{Image, Planner, Setup, Skip};
use replay::{Planned, replay};
use report::{Drawn, Forecast, Made, NotUnderstood, Row, Strip};
use strategy::Strategy;
use times::Times;

const SECONDS_OF_A_DAY: f64 = 86_400.0;
/// The share of all hours that an advice has to save to be told.
const WORTH: f64 = 0.02;

/// Says what caches would have saved a repository, by replaying its history
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker forecast                                        # in a checkout
  stoker forecast --dockerfile api/Dockerfile --context api --target api --merges 500
  stoker forecast --target api --target worker --platform linux/amd64,linux/arm64
  docker buildx bake --print > bake.json && stoker forecast --bake bake.json
  stoker forecast --project app                          # step times from the logs of its newest builds
  stoker forecast --log build.log                        # step times from `docker build --progress=plain`
  stoker forecast --build-arg-per-commit GIT_SHA         # what a commit's hash in an argument costs
  stoker forecast --html forecast.html                   # the same as a page with charts
  stoker forecast --json | jq .strategies

Nothing is built, and nothing but git is asked, but for --project CodeBuild and its logs. For each commit the \
cache key of every step of the Dockerfile is
computed from the commit's tree as BuildKit computes it; then the pushes are built one after the other, as each way of
keeping caches would have had them:
  no cache                    every build runs every step
  one shared tag              all builds read and overwrite --cache-to type=registry,ref=REF,mode=max
  a tag per branch, and main  a build reads its branch's tag and main's, and overwrites its branch's
  GitHub's scopes             a branch's own cache, or else main's; gone when nobody reads it for a week
  Stoker                      lines that keep what was built before; a merge brings main what its branch built
  a disk without limit        one builder that keeps everything: no cache can do better

What git does not keep is guessed: commits of a branch within five minutes are one push; the tree of a branch that was
squashed is gone, so its figures are a range between a branch that was up to date and one that was not; a tag of a base
image never moves; what a command leaves behind changes whenever the command does. Times are assumed by what a step
does unless --log tells them; steps that ran again do not depend on them.")]
pub(crate) struct Args {
    /// A directory of the repository
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    repository: PathBuf,
    /// The branch into which people merge, or a commit of it; found unless given
    #[arg(long, value_name = "NAME")]
    branch: Option<String>,
    /// The Dockerfile's path in the repository; found unless given
    #[arg(long, value_name = "PATH", conflicts_with = "bake")]
    dockerfile: Option<String>,
    /// The build context's path in the repository
    #[arg(long, value_name = "PATH", default_value = ".", conflicts_with = "bake")]
    context: String,
    /// A stage that is built, again for each of several; the last one unless given
    #[arg(long, value_name = "STAGE", conflicts_with = "bake")]
    target: Vec<String>,
    /// A platform that is built for, again for each of several; the first is the builder's own
    #[arg(long, value_name = "PLATFORM", default_value = "linux/amd64", value_parser = platform, value_delimiter = ',')]
    platform: Vec<Platform>,
    /// What `docker buildx bake --print` says of the build: its targets, with their Dockerfiles, arguments
    /// and platforms
    #[arg(long, value_name = "FILE")]
    bake: Option<PathBuf>,
    /// A build argument
    #[arg(long, value_name = "NAME=VALUE", value_parser = argument)]
    build_arg: Vec<(String, String)>,
    /// A build argument whose value is the commit's hash
    #[arg(long, value_name = "NAME")]
    build_arg_per_commit: Vec<String>,
    /// How many of the newest commits of the branch's first-parent line are replayed, with the branches merged by them
    #[arg(long, value_name = "NUMBER", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    merges: u32,
    /// A log of `docker build --progress=plain` of the newest commit, for the steps' times
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// A project of CodeBuild, for the steps' times in the logs of its newest builds
    #[arg(long, value_name = "NAME", conflicts_with = "log", value_parser = project_name)]
    project: Option<ProjectName>,
    /// The context has no directory `.git`, as it is no clone: an archive, or CodePipeline's
    #[arg(long)]
    no_git_directory: bool,
    /// What a minute of a build costs; unless given, general1.small on Linux
    #[arg(long, value_name = "DOLLARS", default_value = "0.005", value_parser = crate::text::price)]
    dollars_per_minute: f64,
    /// Write a page with charts to this file, too: one file that needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the figures as JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(crate) fn platform(text: &str) -> Result<Platform, String> {
    Platform::new(text).map_err(|error| error.to_string())
}

fn project_name(text: &str) -> Result<ProjectName, String> {
    ProjectName::new(text).map_err(|error| error.to_string())
}

pub(crate) fn argument(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no build argument: write it like VERSION=1.2")),
    }
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let built = match &args.project {
        Some(project) => Some(project::read(project).await?),
        None => None,
    };
    let (forecast, drawn) = forecast(args, built)?;
    if let Some(file) = &args.html {
        std::fs::write(file, page::page(&forecast, &drawn)).map_err(|error| {
            Problem::failed(
                format!("cannot write {}: {error}", plain(&file.display().to_string())),
                "name a file in a directory that is there",
            )
        })?;
    }
    let text = if args.json { to_json(&forecast) } else { render::text(&forecast) };
    Ok(CommandOutcome::yes(text))
}

fn forecast(args: &Args, built: Option<project::Built>) -> Result<(Forecast, Drawn), Problem> {
    let log = args.log.as_deref().map(read_log).transpose()?;
    let repository = Repository::open(&args.repository)?;
    let branch = repository.default_branch(args.branch.as_deref())?;
    let line = repository.first_parents(&branch, args.merges as usize)?;
    let (Some(head), Some(oldest)) = (line.first(), line.last()) else {
        return Err(Problem::usage(
            format!("{} has no commit", plain(&branch)),
            "name another with --branch",
        ));
    };
    let base = oldest.parents.first().map(String::as_str);
    let history = history::read(&line, &repository.since(&branch, base)?);

    let images = match (&args.bake, &args.dockerfile) {
        (Some(file), _) => bake::images(file, &args.platform)?,
        (None, Some(path)) => images(args, path.trim_start_matches("./")),
        (None, None) => {
            let found = find_dockerfile(&repository, &head.tree).map_err(|error| unreadable(&error))??;
            images(args, &found)
        }
    };
    let setup = setup(args, images);
    let kept = Kept::of(repository.directory());
    let planner = Planner::new(&repository, kept.read());
    let newest = planner.plan_tree(&setup, &head.tree, &head.id).map_err(|error| unreadable(&error))?;
    let newest = newest.map_err(|skip| not_built(&skip, &setup, &branch))?;
    let times = match (&log, &built) {
        (Some(log), _) => Times::of_log(log, &newest),
        (None, Some(built)) => Times::of_builds(&built.logs, &newest),
        (None, None) => Times::default(),
    };

    let (builds, skipped) = plan_all(&planner, &setup, &history, &times)?;
    let (Some(first), Some(last)) = (builds.first(), builds.last()) else {
        return Err(not_built(&Skip::Missing, &setup, &branch));
    };
    let seconds = u32::try_from(last.push.time - first.push.time).unwrap_or(u32::MAX);
    // Of less than a day no month can be told.
    let days = (f64::from(seconds) / SECONDS_OF_A_DAY).max(1.0);
    let behind = if history.ways.squashes > 0 {
        Some(plan_all(&planner, &Setup { behind: true, ..setup.clone() }, &history, &times)?.0)
    } else {
        None
    };
    let project = ProjectName::new("forecast")
        .map_err(|error| Problem::failed(format!("cannot name a scope: {}", chain(&error)), "report this"))?;
    let scope = Scope::of(&project);
    let figures_of = |strategy, builds: &[Planned<'_>]| {
        let ran = replay(strategy, &scope, builds);
        (figures(strategy, builds, &ran, days, args.dollars_per_minute), ran)
    };
    let mut rows = Vec::new();
    let (mut steps_of_stoker, mut drawn) = (Vec::new(), Drawn::default());
    for strategy in Strategy::ALL {
        let (figures, ran) = figures_of(strategy, &builds);
        if strategy == Strategy::Stoker {
            steps_of_stoker = often(&builds, &ran, &times);
            drawn.strips = strips(&builds, &ran, &steps_of_stoker);
        }
        let hours = ran.iter().scan(0.0, |sum, ran| {
            *sum += ran.seconds[1] / 3600.0;
            Some(*sum)
        });
        drawn.hours.push(hours.collect());
        let behind = behind.as_deref().map(|builds| figures_of(strategy, builds).0);
        rows.push(Row { label: strategy.label(), figures, behind });
    }
    let mut advice = Vec::new();
    let stoker = |builds: &[Planned<'_>]| {
        let (figures, ran) = figures_of(Strategy::Stoker, builds);
        (figures, often(builds, &ran, &times))
    };
    let before = stoker(&builds);
    let of_setup = |setup: &Setup| Ok::<_, Problem>(stoker(&plan_all(&planner, setup, &history, &times)?.0));
    for candidate in advised(&repository, &planner, &setup, &head.tree).map_err(|error| unreadable(&error))? {
        let after = of_setup(&candidate.setup)?;
        let supposed = candidate.supposed.as_ref().map(&of_setup).transpose()?;
        advice.extend(worth(candidate, supposed.as_ref().unwrap_or(&before), &after));
    }
    kept.write(planner.memory());
    advice.sort_by(|a, b| b.hours_per_month.usual.total_cmp(&a.hours_per_month.usual));
    let steps: Vec<_> = newest.nodes.iter().filter_map(|node| node.step.as_ref()).collect();
    let forecast = Forecast {
        from: timestamp(first.push.time),
        to: timestamp(last.push.time),
        days,
        builds_of_main: builds.iter().filter(|build| build.push.is_to_main()).count(),
        builds_of_branches: builds.iter().filter(|build| !build.push.is_to_main()).count(),
        ways: history.ways,
        skipped,
        steps: steps.len(),
        measured: times.known(),
        project_builds_per_month: built.and_then(|built| built.builds_per_month),
        strategies: rows,
        often: steps_of_stoker,
        unknown: not_understood(&builds, &newest),
        advice,
        branch,
        images: setup.images.iter().map(made).collect(),
    };
    Ok((forecast, drawn))
}

fn made(image: &Image) -> Made {
    Made {
        dockerfile: image.dockerfile.clone(),
        context: context_name(image).to_owned(),
        target: image.options.target.clone(),
        platform: image.options.platform.clone(),
    }
}

/// The images of a Dockerfile: one for each target and platform.
fn images(args: &Args, dockerfile: &str) -> Vec<Image> {
    let targets: Vec<Option<&String>> =
        if args.target.is_empty() { vec![None] } else { args.target.iter().map(Some).collect() };
    let image = |target: Option<&String>, platform: &Platform| Image {
        dockerfile: dockerfile.to_owned(),
        context: normal(&args.context),
        options: Options {
            target: target.cloned(),
            platform: platform.as_str().to_owned(),
            build_platform: args.platform.first().map(|first| first.as_str().to_owned()),
            ..Options::default()
        },
    };
    targets
        .into_iter()
        .flat_map(|target| args.platform.iter().map(move |platform| image(target, platform)))
        .collect()
}

/// What is built by the newest commit's Dockerfiles and those before them.
fn setup(args: &Args, mut images: Vec<Image>) -> Setup {
    for image in &mut images {
        image.options.arguments.extend(args.build_arg.iter().cloned());
    }
    let setup = Setup::new(images, args.build_arg_per_commit.clone());
    Setup { git_directory: !args.no_git_directory, ..setup }
}

/// What main's builds did with each step, those first that took longest.
fn strips(builds: &[Planned<'_>], ran: &[replay::Ran], often: &[Often]) -> Vec<Strip> {
    let of_main: Vec<BTreeMap<(&str, &str), bool>> = builds
        .iter()
        .zip(ran)
        .filter(|(build, _)| build.push.is_to_main())
        .map(|(build, ran)| {
            let nodes = build.plan.nodes.iter().enumerate();
            let steps = nodes.filter_map(|(number, node)| Some((number, node.step.as_ref()?)));
            steps.map(|(number, step)| ((&*step.stage, &*step.text), ran.steps.contains(&number))).collect()
        })
        .collect();
    let strip = |often: &Often| Strip {
        step: format!("[{}] {}", often.stage, often.step.split_whitespace().collect::<Vec<_>>().join(" ")),
        builds: of_main.iter().map(|did| did.get(&(&*often.stage, &*often.step)).copied()).collect(),
    };
    often.iter().map(strip).collect()
}

/// What might save time, by the newest commit.
fn advised(
    repository: &Repository,
    planner: &Planner<'_>,
    setup: &Setup,
    tree: &Id,
) -> Result<Vec<Candidate>, TreeError> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    for image in setup.images.iter().filter(|image| seen.insert((&image.dockerfile, &image.context))) {
        let Some(file) = repository.file(tree, &image.dockerfile)? else { continue };
        let context = find(repository, tree, &image.context)?;
        if let (Ok(file), Some(context)) = (planner.dockerfile(file, None)?, context) {
            files.push((file, context.id));
        }
    }
    candidates(repository, setup, &files, &planner.restamped())
}

/// What following an advice saves; nothing if it saves too little to be told.
fn worth(
    candidate: Candidate,
    before: &(Figures, Vec<Often>),
    after: &(Figures, Vec<Often>),
) -> Option<Advice> {
    let hours = |of: fn(&Range) -> f64| of(&before.0.hours_per_month) - of(&after.0.hours_per_month);
    let saved = Range { least: hours(|h| h.least), usual: hours(|h| h.usual), most: hours(|h| h.most) };
    if saved.usual <= before.0.hours_per_month.usual * WORTH {
        return None;
    }
    let runs = candidate.step.map(|step| {
        [before, after]
            .map(|(_, often)| often.iter().filter(|often| often.step == step).map(|often| often.runs).sum())
    });
    let steps = i64::try_from(before.0.all_steps).ok()? - i64::try_from(after.0.all_steps).ok()?;
    let Candidate { kind, line, text, .. } = candidate;
    Some(Advice { kind, line, text, steps, runs, hours_per_month: saved })
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(crate) fn read_log(path: &Path) -> Result<String, Problem> {
    let bytes = std::fs::read(path).map_err(|error| {
        Problem::usage(
            format!("cannot read {}: {error}", path.display()),
            "name the file into which `docker build --progress=plain ... 2> FILE` wrote",
        )
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn unreadable(error: &TreeError) -> Problem {
    Problem::failed(
        format!("cannot read the repository: {}", plain(&chain(error))),
        "try `git fsck`; in a partial clone, `git fetch --refetch --filter=blob:none` or a whole clone",
    )
}

pub(crate) fn not_built(skip: &Skip, setup: &Setup, branch: &str) -> Problem {
    match skip {
        Skip::Missing => Problem::usage(
            format!(
                "{} has no {} with context {}",
                plain(branch),
                setup.images.first().map_or_else(String::new, |image| plain(&image.dockerfile)),
                setup.images.first().map_or_else(String::new, |image| plain(context_name(image)))
            ),
            "name them with --dockerfile and --context, as paths from the repository's root",
        ),
        Skip::Unreadable(problem) => {
            Problem::usage(plain(problem), "name another with --dockerfile or --target")
        }
    }
}

fn context_name(image: &Image) -> &str {
    if image.context.is_empty() { "." } else { &image.context }
}

/// The one Dockerfile of a tree, or the one at its root.
pub(crate) fn find_dockerfile(
    repository: &Repository,
    tree: &Id,
) -> Result<Result<String, Problem>, TreeError> {
    const ROOT: &str = "Dockerfile";
    if repository.file(tree, ROOT)?.is_some() {
        return Ok(Ok(ROOT.to_owned()));
    }
    let mut found = Vec::new();
    repository.files(tree, "", &mut |path| {
        if path.rsplit('/').next() == Some(ROOT) {
            found.push(path.to_owned());
        }
    })?;
    let next = "name one with --dockerfile, as a path from the repository's root";
    Ok(match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Problem::usage("there is no Dockerfile in the newest commit".to_owned(), next)),
        several => {
            let names: Vec<String> = several.iter().take(8).map(|path| plain(path)).collect();
            let more = if several.len() > names.len() { ", ..." } else { "" };
            Err(Problem::usage(format!("there are several Dockerfiles: {}{more}", names.join(", ")), next))
        }
    })
}

/// Plans the builds of all pushes; and how many pushes are not built, by the reason.
fn plan_all<'a>(
    planner: &Planner<'_>,
    setup: &Setup,
    history: &'a History,
    times: &Times,
) -> Result<(Vec<Planned<'a>>, BTreeMap<String, usize>), Problem> {
    let progress = Progress::new("Replaying", Unit::Things, history.pushes.len() as u64);
    let mut builds = Vec::new();
    let mut skipped = BTreeMap::new();
    for push in &history.pushes {
        progress.add(1);
        match planner.plan(setup, push).map_err(|error| unreadable(&error))? {
            Ok(plan) => builds.push(Planned::new(push, plan, times)),
            Err(skip) => *skipped.entry(reason(&skip)).or_default() += 1,
        }
    }
    Ok((builds, skipped))
}

fn reason(skip: &Skip) -> String {
    match skip {
        Skip::Missing => "the commit has no such Dockerfile or context".to_owned(),
        Skip::Unreadable(problem) => problem.clone(),
    }
}

/// The lines that count as never cached, those of the most builds first.
fn not_understood(builds: &[Planned<'_>], newest: &dockerfile_keys::Plan) -> Vec<NotUnderstood> {
    let mut all: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    for build in builds {
        let lines: BTreeSet<_> = build.plan.unknown.iter().map(|u| (u.line, u.problem.as_str())).collect();
        for line in lines {
            *all.entry(line).or_default() += 1;
        }
    }
    let is_current =
        |line: usize, problem: &str| newest.unknown.iter().any(|u| u.line == line && u.problem == problem);
    let mut all: Vec<NotUnderstood> = all
        .into_iter()
        .map(|((line, problem), builds)| NotUnderstood {
            line,
            problem: problem.to_owned(),
            builds,
            is_current: is_current(line, problem),
        })
        .collect();
    all.sort_by_key(|line| (!line.is_current, std::cmp::Reverse(line.builds)));
    all
}
