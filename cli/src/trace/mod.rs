//! `stoker trace`: all that came of one commit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use buildkit_cache::{Kind, classify_within};
use bytes::Bytes;
use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use stoker_core::build_inputs::GivenInputs;
use stoker_core::names::{
    CacheRepository, Commit, Digest, InvalidName, Line, ProjectName, Repository, Revision, Tag, TagKind,
};
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::{Build, BuildStatus, Catalogue as _, ListedImage, ReadBuilds as _};
use stoker_core::provenance::{self, Provenance};
use stoker_core::retain::{by_repository, inventory};
use stoker_core::schedule::all_projects;

use crate::cache::to_json;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::retain::{Account, call_problem, check_names, config, load};
use crate::text::count;
use crate::why;

mod logs;
mod render;
mod report;

use report::{Cache, Reported, Silent, Source, Step, Trace};

/// Manifests are read up to this size, which is more than ECR takes.
const LARGEST_MANIFEST: usize = 8 << 20;
/// Fewer digits name too many commits.
const FEWEST_DIGITS: usize = 7;

/// Tells what came of a commit: its push, builds, promotions, and where its caches are
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker trace 1f2e3d4c5b6a79880011223344556677889900aa
  stoker trace 1f2e3d4 --project app
  stoker trace $(git rev-parse HEAD) --repository github.com/example/app
  stoker trace 1f2e3d4 --why .                            # and why the steps of its builds ran
  stoker trace 1f2e3d4 --stack ci-stoker --json | jq '.steps[] | {at, source, what}'

It asks CodeBuild which builds were of the commit, or were told that it had been merged; ECR which caches say \
that they are the \
commit's or that it was merged into them; and the logs of Stoker's functions for every line that names it: why \
it was built or \
not, what was promoted, what retention planned. A source that cannot be asked is named, and the others tell the \
rest. Logs are read with one \
query of CloudWatch Logs Insights, which costs some cents where logs are large; --no-logs leaves them out.

7 digits of the hash are enough. --project or --repository makes it quick where the policy serves many. It \
starts, writes and \
deletes nothing; cli/README.md lists the permissions. Exit code 1 says that nobody knows the commit.")]
pub(crate) struct Args {
    /// The commit
    #[arg(value_parser = revision)]
    commit: Revision,
    /// The policy
    #[arg(long, value_name = "PATH", default_value = "policy/stoker.yaml")]
    policy: PathBuf,
    /// Only this project
    #[arg(long, value_name = "NAME", value_parser = |text: &str| ProjectName::new(text))]
    project: Option<ProjectName>,
    /// Only the projects of this git repository, such as github.com/example/app
    #[arg(long, value_name = "NAME", conflicts_with = "project", value_parser = |text: &str| Repository::new(text))]
    repository: Option<Repository>,
    /// The stack whose logs are read
    #[arg(long, value_name = "NAME", default_value = "stoker")]
    stack: String,
    /// How many days back builds and logs are looked at
    #[arg(long, value_name = "DAYS", default_value_t = 14, value_parser = clap::value_parser!(u16).range(1..=365))]
    days: u16,
    /// Do not read the logs
    #[arg(long)]
    no_logs: bool,
    /// Also say why the steps of its builds ran, by the checkout in this directory; `stoker why` says how
    #[arg(long, value_name = "DIRECTORY")]
    why: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

fn revision(text: &str) -> Result<Revision, String> {
    if text.len() < FEWEST_DIGITS {
        return Err(format!("give {FEWEST_DIGITS} digits at least"));
    }
    let text = text.to_ascii_lowercase();
    Revision::new(text).map_err(|error: InvalidName| error.to_string())
}

/// An image of Stoker's, and what its manifest says.
struct Known {
    repository: CacheRepository,
    image: ListedImage,
    line: Option<Line>,
    says: Provenance,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let policy = load(&args.policy)?;
    let config = config(None).await?;
    let account = Account::new(config.clone());
    let now = Timestamp::now();
    let since = now - SignedDuration::from_hours(24 * i64::from(args.days));
    let projects = projects(&account, &policy, args).await?;
    let builds = builds(&account, &projects, since).await;
    let images = images(&account, &projects).await;
    if let (Err(problem), Err(_)) = (&builds, &images) {
        return Err(problem.clone());
    }
    let mut missing = Vec::new();
    let builds = or_missing(builds, "codebuild", &mut missing);
    let images = or_missing(images, "ecr", &mut missing);
    let commit = the_one(&args.commit, &builds, &images)?;
    let mut trace = trace(&args.commit, &builds, &images, now);
    trace.missing = missing;
    if let Some(commit) = &commit {
        trace.commit = commit.to_string();
    }
    if args.no_logs {
        trace.missing.push(Silent { source: "logs", why: "--no-logs was given".to_owned() });
    } else {
        let ids: Vec<&str> =
            trace.builds.iter().filter(|build| build.role == "of").map(|build| build.id.as_str()).collect();
        match logs::read(&config, &args.stack, &trace.commit, &ids, since, now).await {
            Ok(reported) => {
                trace.steps.extend(reported.steps);
                trace.missing.extend(reported.cut.map(|why| Silent { source: "logs", why }));
            }
            Err(why) => trace.missing.push(Silent { source: "logs", why }),
        }
    }
    if let Some(checkout) = &args.why {
        let ended = |build: &&Reported| build.role == "of" && build.ended_at.is_some();
        let ids: Vec<String> = trace.builds.iter().filter(ended).map(|build| build.id.clone()).collect();
        for id in ids {
            match why::of_build(&config, &id, checkout).await {
                Ok(reported) => drop(trace.misses.insert(id, reported)),
                Err(problem) => {
                    trace.missing.push(Silent { source: "misses", why: problem.text().to_owned() });
                }
            }
        }
    }
    trace.steps.sort();
    trace.steps.dedup();
    let is_known = !trace.steps.is_empty() || !trace.caches.is_empty();
    let text = if args.json { to_json(&trace) } else { render::text(&trace, args.days.into()) };
    Ok(CommandOutcome { text, success: is_known })
}

/// What a source knows; nothing where it could not be asked, which is noted.
fn or_missing<T>(known: Result<Vec<T>, Problem>, source: &'static str, missing: &mut Vec<Silent>) -> Vec<T> {
    known.unwrap_or_else(|problem| {
        missing.push(Silent { source, why: problem.text().to_owned() });
        Vec::new()
    })
}

/// The projects that may know the commit.
async fn projects(account: &Account, policy: &Policy, args: &Args) -> Result<Vec<Project>, Problem> {
    if let Some(name) = &args.project {
        check_names(policy, std::slice::from_ref(name))?;
        return Ok(policy.project(name).into_iter().collect());
    }
    if let Some(repository) = &args.repository {
        let projects = policy.projects_of(repository);
        if projects.is_empty() {
            return Err(Problem::usage(
                format!("no project of the policy builds {repository}"),
                "write it as the policy does, such as github.com/example/app, or name the project with --project",
            ));
        }
        return Ok(projects);
    }
    all_projects(account, policy).await.map_err(|error| call_problem(&error))
}

/// The builds of these projects, and of those that build their forks.
async fn builds(
    account: &Account,
    projects: &[Project],
    since: Timestamp,
) -> Result<Vec<Arc<Build>>, Problem> {
    let built_by =
        projects.iter().flat_map(|project| [Some(&project.name), project.builds.forks.project.as_ref()]);
    let built_by: BTreeSet<&ProjectName> = built_by.flatten().collect();
    let builds = try_join_all(built_by.into_iter().map(|project| account.recent(project, Some(since)))).await;
    Ok(builds.map_err(|error| call_problem(&error))?.concat())
}

/// The lines, the history and the commits' caches of these projects. What builds wrote says nothing that
/// could be believed, and what was joined for builds nothing new.
async fn images(account: &Account, projects: &[Project]) -> Result<Vec<Known>, Problem> {
    let mut known = Vec::new();
    for (repository, of) in by_repository(projects.to_vec()) {
        let listed = account.list(&repository).await.map_err(|error| call_problem(&error))?;
        let is_ours = |tag: &String| {
            Tag::parse(tag).is_some_and(|(scope, kind)| {
                !matches!(kind, TagKind::Fork(_) | TagKind::Export(_) | TagKind::Given(_))
                    && of.iter().any(|project| project.has_scope(&scope))
            })
        };
        let ours = listed.into_iter().filter(|image| !image.is_archived && image.tags.iter().any(is_ours));
        let mut ours: BTreeMap<Digest, ListedImage> =
            ours.map(|image| (image.digest.clone(), image)).collect();
        let digests: Vec<Digest> = ours.keys().cloned().collect();
        let learn = |digest, bytes: Bytes| {
            let Kind::Cache(manifest) = classify_within(&bytes, LARGEST_MANIFEST) else { return };
            let Some(image) = ours.remove(&digest) else { return };
            let line = provenance::line(&manifest.annotations);
            let says = Provenance::read(&manifest.annotations);
            known.push(Known { repository: repository.clone(), image, line, says });
        };
        let read = inventory::read(account, &repository, &digests, learn).await;
        read.map_err(|error| call_problem(&error))?;
        account.end_of_reading();
    }
    Ok(known)
}

fn resolved(build: &Build) -> Option<Commit> {
    build.resolved_commit.as_deref().and_then(|commit| Commit::new(commit).ok())
}

/// The commit that is meant, where anything knows it.
fn the_one(asked: &Revision, builds: &[Arc<Build>], images: &[Known]) -> Result<Option<Commit>, Problem> {
    let of_builds = builds.iter().flat_map(|build| {
        let inputs = build.inputs.iter();
        let reported = inputs.flat_map(|inputs| inputs.commit.iter().chain(&inputs.merged).cloned());
        resolved(build).into_iter().chain(reported).collect::<Vec<_>>()
    });
    let of_images = images.iter().flat_map(|known| {
        let built = known.says.built.as_ref().map(|built| built.commit.clone());
        built.into_iter().chain(known.says.merged.clone())
    });
    let named: BTreeSet<Commit> = of_builds.chain(of_images).filter(|commit| asked.names(commit)).collect();
    if named.len() > 1 {
        let some: Vec<&str> = named.iter().take(5).map(Commit::as_str).collect();
        return Err(Problem::usage(
            format!("{} begin with {asked}", count(named.len(), "commit")),
            format!("give more digits: {}", some.join(", ")),
        ));
    }
    Ok(named.into_iter().next().or_else(|| asked.commit()))
}

fn trace(asked: &Revision, builds: &[Arc<Build>], images: &[Known], now: Timestamp) -> Trace {
    let caches: Vec<Cache> = images.iter().filter_map(|known| cache(asked, known)).collect();
    let own: BTreeSet<&Digest> = caches.iter().map(|cache| &cache.digest).collect();
    let lines: BTreeMap<&Digest, &Known> = images.iter().map(|known| (&known.image.digest, known)).collect();
    let hit_rate = |build: &str| {
        let mut of =
            images.iter().filter(|known| known.says.built.as_ref().is_some_and(|built| built.build == build));
        of.find_map(|known| known.says.reused_percent)
    };
    let reported = builds.iter().filter_map(|build| {
        let inputs = build.inputs.as_ref();
        let role = role(asked, build, inputs, &own)?;
        // A join is told by what it was joined from.
        let is_join = |inputs: &GivenInputs, digest: &Digest| {
            !inputs.joined.is_empty() && !inputs.joined.contains(digest) && !lines.contains_key(digest)
        };
        let sources = inputs.iter().flat_map(|inputs| {
            let sources = inputs.caches().filter(|digest| !is_join(inputs, digest));
            sources.map(|digest| Source {
                digest: digest.clone(),
                line: lines.get(digest).map(|known| name_of(known)),
            })
        });
        Some(Reported {
            id: build.id.clone(),
            project: build.project.clone(),
            line: inputs.map_or_else(|| "no line of Stoker's".to_owned(), |inputs| inputs.line.to_string()),
            role,
            reason: inputs.map(|inputs| inputs.reason.clone()).unwrap_or_default(),
            status: status(build.status),
            started_at: build.started_at,
            ended_at: build.ended_at,
            seconds: build.ended_at.map(|ended| ended.duration_since(build.started_at).as_secs()),
            pushed_at: inputs.and_then(|inputs| inputs.pushed_at),
            given: sources.collect(),
            reused_percent: hit_rate(&build.id),
        })
    });
    let mut builds: Vec<Reported> = reported.collect();
    builds.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
    let mut steps: Vec<Step> = builds.iter().flat_map(steps_of_build).collect();
    steps.extend(images.iter().flat_map(|known| steps_of_image(asked, known)));
    Trace {
        commit: asked.to_string(),
        at: now,
        steps,
        builds,
        caches,
        misses: BTreeMap::new(),
        missing: Vec::new(),
    }
}

/// What a build has to do with the commit, if anything.
fn role(
    asked: &Revision,
    build: &Build,
    inputs: Option<&GivenInputs>,
    own: &BTreeSet<&Digest>,
) -> Option<&'static str> {
    let built = inputs.and_then(|inputs| inputs.commit.clone()).or_else(|| resolved(build));
    if built.is_some_and(|commit| asked.names(&commit)) {
        return Some("of");
    }
    let inputs = inputs?;
    if inputs.merged.iter().any(|commit| asked.names(commit)) {
        return Some("brings");
    }
    inputs.caches().any(|digest| own.contains(digest)).then_some("reads")
}

fn status(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::InProgress => "running",
        BuildStatus::Succeeded => "succeeded",
        BuildStatus::Stopped => "stopped",
        BuildStatus::Failed => "failed",
    }
}

/// What people call a cache: its line, or its commit.
fn name_of(known: &Known) -> String {
    let is_commit = |tag: &String| matches!(Tag::parse(tag), Some((_, TagKind::Commit(_))));
    let is_line =
        |tag: &String| matches!(Tag::parse(tag), Some((_, TagKind::Line(_) | TagKind::History { .. })));
    let tags = &known.image.tags;
    match (&known.says.built, &known.line) {
        (Some(built), _) if tags.iter().any(is_commit) && !tags.iter().any(is_line) => {
            format!("commit/{}", built.commit.short())
        }
        (_, Some(line)) => line.to_string(),
        _ => tags.first().cloned().unwrap_or_default(),
    }
}

/// A cache that says that it is the commit's, or that the commit was the last that was merged into it.
fn cache(asked: &Revision, known: &Known) -> Option<Cache> {
    let Known { repository, image, line, says } = known;
    let is_built = says.built.as_ref().is_some_and(|built| asked.names(&built.commit));
    let is_merged = says.merged.as_ref().is_some_and(|commit| asked.names(commit));
    let holds = if is_built { "built" } else { "merged" };
    (is_built || is_merged).then(|| Cache {
        repository: repository.clone(),
        digest: image.digest.clone(),
        tags: image.tags.clone(),
        line: line.as_ref().map(ToString::to_string),
        holds,
        pushed_at: image.pushed_at,
    })
}

fn steps_of_build(build: &Reported) -> Vec<Step> {
    let Reported { id, line, role, reason, status, seconds, given, reused_percent, .. } = build;
    let step = |at: Timestamp, what: String| Step {
        at,
        source: "codebuild".to_owned(),
        project: Some(build.project.to_string()),
        what,
    };
    let mut steps = Vec::new();
    if *role == "of" {
        steps.extend(build.pushed_at.map(|at| step(at, format!("pushed to {line}, by the forge's clock"))));
    }
    let sources: Vec<&str> =
        given.iter().map(|source| source.line.as_deref().unwrap_or("a cache that is gone")).collect();
    let sources = if sources.is_empty() { "no cache".to_owned() } else { sources.join(", ") };
    let part = match *role {
        "of" => "",
        "brings" => ", which brings it by a merge,",
        _ => ", which reads its cache,",
    };
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    steps
        .push(step(build.started_at, format!("build {id} of {line}{part} started{reason}; given {sources}")));
    if let (Some(at), Some(seconds)) = (build.ended_at, seconds) {
        let warm = reused_percent.map(|share| format!("; {share} % of its steps reused")).unwrap_or_default();
        steps.push(step(at, format!("build {id} {status} after {}{warm}", duration(*seconds))));
    }
    steps
}

fn duration(seconds: i64) -> String {
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min {} s", seconds / 60, seconds % 60) }
}

fn steps_of_image(asked: &Revision, known: &Known) -> Vec<Step> {
    let Known { image, line, says, .. } = known;
    let project = says.project.as_ref().map(ToString::to_string);
    let step =
        |at: Timestamp, what: String| Step { at, source: "ecr".to_owned(), project: project.clone(), what };
    let mut steps = Vec::new();
    for tag in &image.tags {
        let is_commits =
            matches!(Tag::parse(tag), Some((_, TagKind::Commit(commit))) if asked.names(&commit));
        if is_commits {
            steps.push(step(image.pushed_at, format!("its build was promoted: {tag} is the commit's cache")));
        }
    }
    let merged = says.merged.as_ref().is_some_and(|commit| asked.names(commit));
    if let (true, Some(at), Some(line)) = (merged, says.merged_at, line) {
        steps.push(step(at, format!("merged into {line}, with no build")));
    }
    let built = says.built.as_ref().filter(|built| asked.names(&built.commit));
    if let (Some(built), Some(line)) = (built, line) {
        let lines = image.tags.iter().filter_map(|tag| match Tag::parse(tag) {
            Some((_, TagKind::History { left_at, .. })) => Some(left_at),
            _ => None,
        });
        steps.extend(
            lines.map(|at| step(at, format!("{line} left the cache that build {} filled", built.build))),
        );
    }
    steps
}
