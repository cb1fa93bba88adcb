//! `stoker why`: why the steps of a build were not cached.
//!
//! Everything that asks is here; what follows from the answers is in the crate `cache-misses`, which asks nobody.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use buildkit_cache::IMPORT_LIMIT;
use cache_misses::{Build, Elsewhere, Evidence, Given, Llb, Log, Past, Relation, Report, explain};
use clap::Parser as _;
use dockerfile_keys::{Memory, Options, Plan, normal};
use jiff::Timestamp;
use serde::Serialize;
use stoker_aws_setup::SdkConfig;
use stoker_core::names::{Platform, ProjectName};
use stoker_core::provenance::Provenance;

use crate::cache::to_json;
use crate::forecast::{self, Commit, Image, Planner, Repository, Setup};
use crate::outcome::{self, CommandOutcome};
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{self, Remotes};
use crate::retain::config;
use crate::text::plain;

mod merged;
mod provenance;
mod render;
mod sources;
mod stack;
mod status;

use merged::PullRequest;
pub(crate) use render::{line, text};
use sources::{Place, Sources, how_left, read_file};
use status::AtForge;

/// Says of each step of a build that ran why it was not cached
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  docker buildx build --progress=plain --cache-from type=registry,ref=REF --cache-to ... . 2>&1 | tee build.log
  stoker why --log build.log --from REF@sha256:... --export REF2      # in the checkout that was built
  stoker why app:8c0e51d2-5b6a-4c1e-9d57-0a2f3b4c5d6e    # a build that Stoker started: log and caches are found
  stoker why main --project app                          # main's newest build; or a commit's
  stoker why --log build.log --from REF --export REF2 --commit 4f1c02e --build-arg VERSION=1.2
  stoker why --log build.log --from REF --export REF2 --provenance provenance.json   # exact for commands
  stoker why --log build.log --from REF --export REF2 --before OLD --other MAIN --json | jq '.misses[]'
  stoker why --log build.log --from REF --export REF2 --status github    # also as a status of the commit

The cache that the build exported says what each step was looked for by; the caches that it was given, what \
there was; the \
commits, what changed. Where the export went to the tag from which the build read, name what it read by its digest. A \
cause is `exact` where provenance of --provenance=mode=max says what a command was; a cause that nothing proves is \
`unknown`, with what would tell.

Time of a step that no commit before this one had is unavoidable: no cache could have held it. The rest is lost.
Without --status it writes nothing; it starts and deletes nothing.")]
pub(crate) struct Args {
    /// A build in CodeBuild that Stoker started, by its id; with --project a line or a commit, for its newest build
    #[arg(value_name = "BUILD-ID", required_unless_present = "log", conflicts_with_all = ["log", "from", "export"])]
    build: Option<String>,
    /// The project of the line or the commit
    #[arg(long, value_name = "NAME", requires = "build", value_parser = |text: &str| ProjectName::new(text))]
    project: Option<ProjectName>,
    /// The build's log: --progress=plain, or rawjson, which tells times exactly
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The log of an earlier build, which tells the digest that a base image had
    #[arg(long, value_name = "FILE", conflicts_with = "build")]
    log_before: Option<PathBuf>,
    /// A cache that the build was given: --cache-from
    #[arg(long, value_name = "REF")]
    from: Vec<Reference>,
    /// The cache that the build exported, with mode=max
    #[arg(long, value_name = "REF")]
    export: Option<Reference>,
    /// What a cache that the build was given held earlier
    #[arg(long, value_name = "REF")]
    before: Vec<Reference>,
    /// A cache that the build was not given
    #[arg(long, value_name = "REF")]
    other: Vec<Reference>,
    /// Provenance of the build with mode=max: the file that is written beside its output, or the image that it pushed
    #[arg(long, value_name = "FILE|IMAGE")]
    provenance: Option<String>,
    /// A directory of the repository that was built
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    git: PathBuf,
    /// The commit that was built; HEAD, or what CodeBuild says, unless given
    #[arg(long, value_name = "REVISION")]
    commit: Option<String>,
    /// How many commits before it are looked at, along first parents
    #[arg(long, value_name = "NUMBER", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    commits: u32,
    /// The Dockerfile's path in the repository; found unless given
    #[arg(long, value_name = "PATH")]
    dockerfile: Option<String>,
    /// The build context's path in the repository
    #[arg(long, value_name = "PATH", default_value = ".")]
    context: String,
    /// The stage that was built; the last one unless given
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// The platform that was built for
    #[arg(long, value_name = "PLATFORM", default_value = "linux/amd64", value_parser = forecast::platform)]
    platform: Platform,
    /// A build argument that the build was given
    #[arg(long, value_name = "NAME=VALUE", value_parser = forecast::argument)]
    build_arg: Vec<(String, String)>,
    #[command(flatten)]
    at_forge: AtForge,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// What is told of a build.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reported {
    commit: String,
    /// How many commits before it were looked at.
    commits: usize,
    #[serde(flatten)]
    report: Report,
    /// The pull requests that brought the commits which causes name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pull_requests: BTreeMap<String, PullRequest>,
    /// What could not be looked at, and why.
    missing: Vec<String>,
}

impl Reported {
    /// The causes.
    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    /// What could not be looked at, and why.
    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let remotes = Remotes::default();
    let sources = match (&args.build, &args.log) {
        (Some(id), _) => {
            let config = config(None).await?;
            let id = match &args.project {
                Some(project) => stack::newest(&config, project, id).await?,
                None => id.clone(),
            };
            stack::find(&config, &remotes, &id).await?
        }
        (None, Some(log)) => of_arguments(args, log)?,
        (None, None) => return Err(Problem::usage("no build is named", "see `stoker why --help`")),
    };
    let reported = Box::pin(tell(args, &remotes, sources)).await?;
    let text = if args.json { to_json(&reported) } else { text(&reported) };
    if !args.at_forge.is_asked() {
        return Ok(CommandOutcome::yes(text));
    }
    // Where the forge refuses, people have read it here.
    outcome::print(&text);
    args.at_forge.write(&args.git, &reported.commit, &line(&reported)).await?;
    Ok(CommandOutcome::yes(String::new()))
}

/// What is told of a build of the stack, by the checkout in a directory.
pub(crate) async fn of_build(config: &SdkConfig, id: &str, git: &Path) -> Result<Reported, Problem> {
    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: Args,
    }
    let words = ["why".as_ref(), "--git".as_ref(), git.as_os_str(), "--".as_ref(), id.as_ref()];
    let CommandLine { args } = CommandLine::try_parse_from(words)
        .map_err(|error| Problem::failed(plain(&error.to_string()), "report this"))?;
    let remotes = Remotes::default();
    let sources = stack::find(config, &remotes, id).await?;
    Box::pin(tell(&args, &remotes, sources)).await
}

/// Reads the caches, and tells.
async fn tell(args: &Args, remotes: &Remotes, mut sources: Sources) -> Result<Reported, Problem> {
    sources.commit = args.commit.clone().unwrap_or(sources.commit);
    let log = Log::read(&sources.log);
    let [.., build] = log.builds.as_slice() else {
        return Err(Problem::usage(
            "the log holds no build".to_owned(),
            "name the file into which `docker buildx build --progress=plain ... 2> FILE` wrote",
        ));
    };
    let llb = match &args.provenance {
        Some(from) => Some(provenance::read(remotes, from, args.platform.as_str()).await?),
        None => None,
    };
    let mut missing = std::mem::take(&mut sources.missing);
    let (mut given, mut provenances) = (Vec::new(), Vec::new());
    for reference in &sources.from {
        let (cache, problem) = match remote::read(remotes, reference).await {
            Ok(held) => {
                provenances.push(Provenance::read(&held.annotations));
                let size = held.config_size.max(held.manifest_size);
                let problem = (size > IMPORT_LIMIT as u64)
                    .then(|| format!("it has {size} bytes; BuildKit imports at most {IMPORT_LIMIT}"));
                (Some(held.cache), problem)
            }
            Err(problem) => {
                missing.push(problem.text().to_owned());
                (None, None)
            }
        };
        given.push(Given { name: reference.to_string(), cache, problem });
    }
    let mut read = async |reference: &Reference| match remote::read(remotes, reference).await {
        Ok(held) => Some(held),
        Err(problem) => {
            missing.push(problem.text().to_owned());
            None
        }
    };
    let (mut elsewhere, mut digests) = (Vec::new(), Vec::new());
    for Place { reference, relation, note } in std::mem::take(&mut sources.elsewhere) {
        let Some(held) = read(&reference).await else { continue };
        let provenance = Provenance::read(&held.annotations);
        digests.push((held.digest, provenance.clone()));
        provenances.push(provenance);
        elsewhere.push(Elsewhere { name: reference.to_string(), relation, note, cache: held.cache });
    }
    for (elsewhere, (digest, provenance)) in elsewhere.iter_mut().zip(&digests) {
        if elsewhere.relation == Relation::Before {
            elsewhere.relation = how_left(digest, provenance, &provenances);
        }
    }
    let export = match &sources.export {
        Some(reference) => read(reference).await.map(|held| held.cache),
        None => None,
    };
    let mounts = std::mem::take(&mut sources.mounts);
    let known = Known { build, given, elsewhere, export, llb, mounts };
    let mut reported = of_checkout(args, &sources.commit, &known, missing)?;
    if reported.report.lacks_old_base() {
        let mut logs = args.log_before.iter().map(|path| read_file(path)).collect::<Result<Vec<_>, _>>()?;
        if let Some(setup) = &sources.setup {
            let (found, missing) = stack::logs(setup, &provenances).await;
            logs.extend(found);
            reported.missing.extend(missing);
        }
        let builds: Vec<Build> = logs.iter().flat_map(|log| Log::read(log).builds).collect();
        let images = builds.iter().flat_map(Build::images);
        let images: Vec<_> = images.map(|(name, digest)| (name.to_owned(), digest.to_owned())).collect();
        reported.report.name_old_bases(&images, &known.given, args.platform.as_str());
    }
    Ok(reported)
}

/// What the command line says of a build.
fn of_arguments(args: &Args, log: &Path) -> Result<Sources, Problem> {
    let place = |relation| {
        move |reference: &Reference| Place { reference: reference.clone(), relation, note: String::new() }
    };
    let before = args.before.iter().map(place(Relation::Before));
    Ok(Sources {
        log: read_file(log)?,
        from: args.from.clone(),
        export: args.export.clone(),
        elsewhere: before.chain(args.other.iter().map(place(Relation::Other))).collect(),
        commit: "HEAD".to_owned(),
        mounts: Vec::new(),
        setup: None,
        missing: Vec::new(),
    })
}

/// All that is known of a build beside its repository.
struct Known<'a> {
    build: &'a Build,
    given: Vec<Given>,
    elsewhere: Vec<Elsewhere>,
    export: Option<buildkit_cache::Cache>,
    llb: Option<Llb>,
    mounts: Vec<(String, String)>,
}

/// Reads the commits, and tells.
fn of_checkout(
    args: &Args,
    commit: &str,
    known: &Known<'_>,
    missing: Vec<String>,
) -> Result<Reported, Problem> {
    let repository = Repository::open(&args.git)?;
    let line = repository.first_parents(commit, args.commits as usize + 1)?;
    let Some((head, earlier)) = line.split_first() else {
        return Err(Problem::usage(
            format!("there is no commit {}", plain(commit)),
            "name another with --commit",
        ));
    };
    let dockerfile = match &args.dockerfile {
        Some(path) => path.trim_start_matches("./").to_owned(),
        None => forecast::find_dockerfile(&repository, &head.tree)
            .map_err(|error| forecast::unreadable(&error))??,
    };
    let arguments: BTreeMap<String, String> = args.build_arg.iter().cloned().collect();
    let options = Options {
        target: args.target.clone(),
        arguments: arguments.clone(),
        platform: args.platform.as_str().to_owned(),
        ..Options::default()
    };
    let image = Image { dockerfile, context: normal(&args.context), options };
    let setup = Setup::new(vec![image], Vec::new());
    let planner = Planner::new(&repository, Memory::default());
    let plan_of = |commit: &Commit| {
        planner.plan_tree(&setup, &commit.tree, &commit.id).map_err(|error| forecast::unreadable(&error))
    };
    let plan = plan_of(head)?.map_err(|skip| forecast::not_built(&skip, &setup, &head.id))?;
    // Before a commit that has no such Dockerfile there is nothing to compare with.
    let mut plans: Vec<(&Commit, Rc<Plan>)> = Vec::new();
    for commit in earlier {
        let Ok(plan) = plan_of(commit)? else { break };
        plans.push((commit, plan));
    }
    let past: Vec<Past<'_>> =
        plans.iter().map(|(commit, plan)| Past { commit: commit.id.clone(), plan }).collect();
    let unreadable = RefCell::new(None);
    let files = |before: &str, after: &str, sources: &[String]| {
        let tree = |id: &str| {
            line.iter().find(|commit| commit.id == id).map(|commit| commit.tree).unwrap_or_default()
        };
        match planner.changed_files(&setup, [&tree(before), &tree(after)], sources) {
            Ok(files) => files.into_iter().collect(),
            Err(error) => {
                *unreadable.borrow_mut() = Some(forecast::unreadable(&error));
                Vec::new()
            }
        }
    };
    let time = |commit: &Commit| Some((commit.id.clone(), Timestamp::from_second(commit.committed).ok()?));
    let committed: BTreeMap<String, Timestamp> = line.iter().filter_map(time).collect();
    let report = explain(&Evidence {
        build: known.build,
        commit: &head.id,
        plan: &plan,
        platform: args.platform.as_str(),
        arguments: &arguments,
        export: known.export.as_ref(),
        given: &known.given,
        elsewhere: &known.elsewhere,
        past: &past,
        committed: &committed,
        mounts: &known.mounts,
        llb: known.llb.as_ref(),
        files: &files,
    });
    if let Some(problem) = unreadable.into_inner() {
        return Err(problem);
    }
    let pull_requests = pull_requests(&report, &repository);
    Ok(Reported { commit: head.id.clone(), commits: past.len(), report, pull_requests, missing })
}

/// The pull requests of the commits that a report names.
fn pull_requests(report: &Report, repository: &Repository) -> BTreeMap<String, PullRequest> {
    let named: BTreeSet<&str> = report.misses.iter().filter_map(|miss| miss.cause.commit()).collect();
    let origin = repository.origin();
    let merged = |commit: &str| merged::merged_in(&repository.message(commit)?, origin.as_deref());
    named.into_iter().filter_map(|commit| Some((commit.to_owned(), merged(commit)?))).collect()
}

#[cfg(test)]
mod tests {
    use cache_misses::{Cause, EmptyMount, Miss};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cause_names_the_pull_request_that_brought_its_commit() {
        let new = |digit: &str| Cause::New { commit: digit.repeat(40) };
        let steps = vec!["[1/3] RUN a".to_owned()];
        let causes = [new("b"), new("c"), Cause::Follows { steps, also: Some(Box::new(new("a"))) }];
        let misses = causes.map(|cause| Miss {
            step: "[2/3] RUN b".to_owned(),
            seconds: None,
            is_first: false,
            cause,
            empty_mounts: vec![EmptyMount { id: "cargo".to_owned(), why: "nothing is saved yet".to_owned() }],
            is_exact: false,
            is_unavoidable: None,
        });
        let report = Report { misses: misses.to_vec(), ..Report::default() };
        let numbers = [("a", PullRequest::Merge(7)), ("b", PullRequest::Pull(812))];
        let pull_requests = numbers.map(|(digit, number)| (digit.repeat(40), number)).into();
        let reported =
            Reported { commit: "a".repeat(40), commits: 3, report, pull_requests, missing: Vec::new() };
        let text = text(&reported);
        for expected in [
            "new in bbbbbbb (pull request #812); its cache mount cargo was empty: nothing is saved yet\n",
            "new in ccccccc; its",
            "new in aaaaaaa (merge request !7), too; its",
        ] {
            assert!(text.contains(expected), "{text}");
        }
        let reported = serde_json::to_value(&reported).unwrap();
        assert_eq!(reported["pullRequests"], json!({"a".repeat(40): 7, "b".repeat(40): 812}));
    }
}
