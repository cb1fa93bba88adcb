//! The demo: Stoker's whole scenario on a real git repository, driven from outside.

pub(crate) mod forge;
mod report;
mod repository;
mod scenario;
mod stage;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::json;
use stoker_core::policy::DEFAULT_TOOLS_IMAGE;

use crate::environment::{LocalSetup, Settings};
use crate::site::{Plan, Site};
use crate::{stack, tools};
use report::Report;
use repository::Repository;
pub(crate) use stage::{Builder, PARAMETERS, POLICY, Stage};

/// What the demo can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the local AWS up at the end, and say how to talk to it; `cargo xtask down` ends it
    #[arg(long)]
    keep: bool,
    /// Write checks, builds and figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What builds the images; by default Docker where an engine answers
    #[arg(long, value_enum)]
    builder: Option<Builder>,
}

/// The base image where there is no other; it has a shell and is small.
const BASE_IMAGE: &str = "busybox:1.37";
/// A base image that needs no network, where somebody has made one.
const LOCAL_BASE_IMAGE: &str = "localhost/base:1";

/// Runs the demo.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let (stage, report, builder) = stage_and_run(args.builder, args.keep)?;
    if args.keep {
        println!("\n{}", how_to_talk(&stage));
    } else {
        stage.site.setup.stop()?;
    }
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&report.to_json(builder))?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    report.print(builder);
    println!("\nthe whole demo took {:.0} s", started.elapsed().as_secs_f32());
    match report.failed() {
        checks if checks.is_empty() => Ok(()),
        checks => bail!("the scenario did not hold: {}", checks.join("; ")),
    }
}

/// Does all set-up and plays the scenario. The stage is left up; where the scenario did not come to its end,
/// only if that is wanted.
pub(crate) fn stage_and_run(wanted: Option<Builder>, keep: bool) -> anyhow::Result<(Stage, Report, Builder)> {
    let started = Instant::now();
    let (builder, base_image) = choose_builder(wanted)?;
    tools::install()?;
    stack::build()?;
    let stage = set(builder, &base_image, &stack::local_world()?)?;
    println!("set up in {:.0} s; the scenario begins\n", started.elapsed().as_secs_f32());
    match scenario::report(&stage) {
        Ok(report) => Ok((stage, report, builder)),
        Err(error) => {
            if keep {
                println!("\n{}", how_to_talk(&stage));
            } else {
                stage.site.setup.stop()?;
            }
            Err(error)
        }
    }
}

fn choose_builder(wanted: Option<Builder>) -> anyhow::Result<(Builder, String)> {
    let docker = |args: &[&str]| {
        let output = Command::new("docker").args(args).stderr(Stdio::null()).output();
        output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let info = docker(&["info", "--format", "{{.ServerVersion}} {{.DriverStatus}}"]);
    let buildx = docker(&["buildx", "version"]);
    let problem = match (&info, &buildx) {
        (None, _) => Some("no Docker engine answers"),
        (Some(info), _) if !info.contains("io.containerd.snapshotter") => Some(
            "Docker's containerd image store is off, and without it the default builder exports no registry cache",
        ),
        (_, None) => Some("Docker has no buildx"),
        (Some(_), Some(_)) => None,
    };
    match (wanted, problem) {
        (Some(Builder::Docker), Some(problem)) => {
            bail!("{problem}; start one, or run with --builder simulated")
        }
        (Some(Builder::Simulated), _) | (None, Some(_)) => {
            let why = problem.unwrap_or("as asked");
            println!(
                "builder: SIMULATED ({why}). It writes valid caches, but runs nothing of the Dockerfile."
            );
            Ok((Builder::Simulated, BASE_IMAGE.to_owned()))
        }
        (_, None) => {
            let has_local = docker(&["image", "inspect", LOCAL_BASE_IMAGE]).is_some();
            let base = if has_local { LOCAL_BASE_IMAGE } else { BASE_IMAGE };
            let word = |text: &Option<String>, place| {
                text.as_deref()
                    .and_then(|text| text.split_whitespace().nth(place))
                    .unwrap_or_default()
                    .to_owned()
            };
            println!("builder: Docker {}, buildx {}, images from {base}", word(&info, 0), word(&buildx, 1));
            if !has_local && docker(&["image", "inspect", base]).is_none() {
                println!("pulling {base}");
                docker(&["pull", "--quiet", base]).with_context(|| format!("`docker pull {base}` failed"))?;
            }
            Ok((Builder::Docker, base.to_owned()))
        }
    }
}

/// Starts the local AWS, makes the repositories, and deploys.
fn set(builder: Builder, base_image: &str, program: &std::path::Path) -> anyhow::Result<Stage> {
    let setup = LocalSetup::start(&Settings::default())?;
    let git = setup.dir().join("git");
    let app = Repository::create(&git, "app", repository::APP)?;
    let docs = Repository::create(&git, "docs", repository::DOCS)?;
    let projects = json!([
        { "name": "app", "source": app.origin(), "buildspec": "buildspec.yml" },
        { "name": "docs", "source": docs.origin(), "buildspec": "buildspec.yml" },
    ]);
    let arguments = ["--builder", builder.name(), "--base-image", base_image];
    let (arguments, projects, parameters) = (&arguments, &projects, &PARAMETERS);
    // The base image that is here without a network has a static busybox, too.
    let tools = if base_image == LOCAL_BASE_IMAGE { base_image } else { DEFAULT_TOOLS_IMAGE };
    let policy = &POLICY.replace(DEFAULT_TOOLS_IMAGE, tools);
    let site = Site::open(setup, &Plan { program, arguments, projects, policy, parameters })?;
    // On AWS deleted branches, and what a build held, are looked at after a quarter of an hour: the demo does not wait.
    site.set_queue("RetentionQueueUrl", &json!({ "DelaySeconds": "0", "VisibilityTimeout": "2" }))?;
    let docs_caches = json!({ "repositoryName": "stoker/docs" });
    site.setup.aws().call("ecr", "AmazonEC2ContainerRegistry_V20150921.CreateRepository", &docs_caches)?;
    Ok(Stage { site, builder, app, docs })
}

fn how_to_talk(stage: &Stage) -> String {
    let setup = &stage.setup;
    let dir = setup.dir();
    format!(
        "The setup is still up:\n  \
         AWS           export AWS_ENDPOINT_URL={endpoint} AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=test \
         AWS_SECRET_ACCESS_KEY=test\n                \
         aws ecr describe-images --repository-name stoker/app       what Stoker has checked\n                \
         aws ecr describe-images --repository-name stoker-builds/app   what builds wrote\n  \
         CodeBuild     export AWS_ENDPOINT_URL_CODEBUILD={codebuild}\n                \
         curl -s {codebuild}/control/builds\n  \
         webhook       {webhook} (Host header, at {endpoint})\n  \
         git           {git}\n  \
         logs          {logs}/*.log\n\
         `cargo xtask down` ends it.",
        endpoint = setup.endpoint(),
        codebuild = setup.codebuild_endpoint(),
        webhook = stage.outputs.get("WebhookUrl").map_or("", String::as_str),
        git = dir.join("git").display(),
        logs = dir.join("logs").display(),
    )
}
