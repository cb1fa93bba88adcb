//! The demo: Stoker's whole story on a real git repository, driven from outside.

mod forge;
mod report;
mod repository;
mod story;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::world::{Settings, World};
use crate::{process, stack, tools};
use forge::Forge;
use report::Report;
use repository::Repository;

/// What the demo can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the world up at the end, and say how to talk to it; `cargo xtask down` ends it
    #[arg(long)]
    keep: bool,
    /// Write checks, builds and figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What builds the images; by default Docker where an engine answers
    #[arg(long, value_enum)]
    builder: Option<Builder>,
}

/// What builds the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Builder {
    /// The Docker engine that the `docker` command reaches
    Docker,
    /// A stand-in that reads Dockerfiles and writes valid caches, but runs nothing
    Simulated,
}

impl Builder {
    /// The name that the command line and the report use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Simulated => "simulated",
        }
    }
}

/// The base image where there is no other; it has a shell and is small.
const BASE_IMAGE: &str = "busybox:1.37";
/// A base image that needs no network, where somebody has made one.
const LOCAL_BASE_IMAGE: &str = "localhost/base:1";
/// The stand-in for `CodeBuild` is up at once.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The queues that are empty once everything has settled, by their outputs.
const QUEUES: [&str; 6] = [
    "StartQueueUrl",
    "WarmQueueUrl",
    "PromotionQueueUrl",
    "SweepQueueUrl",
    "RetentionQueueUrl",
    "NightlyRetentionQueueUrl",
];

/// The policy of the demo. The builds of `app` write to a repository of their own; `docs` is the simple setting; `tools` lies in
/// `CodeCommit` and is built by somebody else.
pub(crate) const POLICY: &str = "\
version: 1
defaults:
  retention: { mode: apply }
projects:
  - { name: app, repository: github.com/example/app, builds-repository: 'stoker-builds/{project}' }
  - { name: docs, repository: github.com/example/docs }
  - name: tools
    repository: git-codecommit.us-east-1.amazonaws.com/v1/repos/tools
    builds: { start: false }
";

/// The template's parameters in the demo.
pub(crate) const PARAMETERS: [(&str, &str); 9] = [
    ("CacheRepository", "stoker/app"),
    ("BuildsRepositoryPrefix", "stoker-builds"),
    ("BuildsRepository", "stoker-builds/app"),
    // A branch's caches go at once.
    ("RetentionDelaySeconds", "0"),
    // Longer than an ordinary build takes to start, and no longer.
    ("WarmDelaySeconds", "8"),
    // The story says when it is night, whatever the hour, and one tick is for all projects.
    ("NightlySweepSchedule", NEVER),
    ("NightlyWarmSchedule", NEVER),
    ("NightlyRetentionSchedule", NEVER),
    ("NightlySlots", "1"),
];

/// A schedule that does not fire in a story's time.
const NEVER: &str = "at(2099-01-01T00:00:00)";

/// Everything the story needs.
pub(crate) struct Stage {
    pub(crate) world: World,
    builder: Builder,
    outputs: stack::Outputs,
    app: Repository,
    local: ureq::Agent,
}

/// Runs the demo.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    let (stage, report, builder) = stage_and_tell(args.builder, args.keep)?;
    if args.keep {
        println!("\n{}", how_to_talk(&stage));
    } else {
        stage.world.stop()?;
    }
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&report.to_json(builder))?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    report.print(builder);
    println!("\nthe whole demo took {:.0} s", begun.elapsed().as_secs_f32());
    match report.failed() {
        checks if checks.is_empty() => Ok(()),
        checks => bail!("the story did not hold: {}", checks.join("; ")),
    }
}

/// Does all set-up and tells the story. The stage is left up; where the story could not be told to its end, only if
/// that is wanted.
pub(crate) fn stage_and_tell(
    wanted: Option<Builder>,
    keep: bool,
) -> anyhow::Result<(Stage, Report, Builder)> {
    let begun = Instant::now();
    let (builder, base_image) = choose_builder(wanted)?;
    tools::install()?;
    let program = build_local()?;
    stack::build()?;
    let stage = set(builder, &base_image, &program)?;
    println!("set up in {:.0} s; the story begins\n", begun.elapsed().as_secs_f32());
    match story::tell(&stage) {
        Ok(report) => Ok((stage, report, builder)),
        Err(error) => {
            if keep {
                println!("\n{}", how_to_talk(&stage));
            } else {
                stage.world.stop()?;
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
    let problem = match docker(&["info", "--format", "{{.ServerVersion}} {{.DriverStatus}}"]) {
        None => Some("no Docker engine answers"),
        Some(info) if !info.contains("io.containerd.snapshotter") => Some(
            "Docker's containerd image store is off, and without it the default builder exports no registry cache",
        ),
        Some(_) if docker(&["buildx", "version"]).is_none() => Some("Docker has no buildx"),
        Some(_) => None,
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
            println!("builder: Docker, images from {base}");
            if !has_local && docker(&["image", "inspect", base]).is_none() {
                println!("pulling {base}");
                docker(&["pull", "--quiet", base]).with_context(|| format!("`docker pull {base}` failed"))?;
            }
            Ok((Builder::Docker, base.to_owned()))
        }
    }
}

/// Builds the local world's program.
fn build_local() -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::root()).args(["build", "--quiet", "--package", "stoker-local"]);
    process::run(&mut cargo, "building the local world", &crate::home().join("logs/local.log"), |_| None)?;
    let program = std::env::current_exe()?.with_file_name("stoker-local");
    anyhow::ensure!(program.exists(), "{} is not there after its build", program.display());
    Ok(program)
}

/// Starts the world, makes the repositories, and deploys.
fn set(builder: Builder, base_image: &str, program: &std::path::Path) -> anyhow::Result<Stage> {
    let mut world = World::start(&Settings::default())?;
    let git = world.dir().join("git");
    let app = Repository::create(&git, "app", repository::APP)?;
    let docs = Repository::create(&git, "docs", repository::DOCS)?;
    let projects = world.dir().join("projects.json");
    let listed = json!([
        { "name": "app", "source": app.origin(), "buildspec": "buildspec.yml" },
        { "name": "docs", "source": docs.origin(), "buildspec": "buildspec.yml" },
    ]);
    std::fs::write(&projects, listed.to_string())?;
    let listen = format!("127.0.0.1:{}", world.codebuild_port);
    let mut command = Command::new(program);
    command
        .args(["serve", "--listen", &listen, "--aws", &world.endpoint(), "--registry", &world.registry()])
        .args(["--builder", builder.name(), "--base-image", base_image])
        .arg("--projects")
        .arg(&projects)
        .arg("--state")
        .arg(world.dir().join("codebuild"));
    world.spawn("codebuild", "stoker-local", &mut command)?;

    let outputs = stack::deploy(&world, POLICY, &PARAMETERS)?;
    // On AWS the caches that a build held are looked at again after minutes at the soonest: the demo does not wait for them.
    let queue = outputs.get("RetentionQueueUrl").context("the stack has no retention queue")?;
    let soon = json!({ "QueueUrl": queue, "Attributes": { "VisibilityTimeout": "2" } });
    world.aws().call("sqs", "AmazonSQS.SetQueueAttributes", &soon)?;
    let docs_caches = json!({ "repositoryName": "stoker/docs" });
    world.aws().call("ecr", "AmazonEC2ContainerRegistry_V20150921.CreateRepository", &docs_caches)?;
    let local =
        ureq::Agent::config_builder().proxy(None).timeout_global(Some(Duration::from_secs(10))).build();
    let stage = Stage { world, builder, outputs, app, local: local.new_agent() };
    let begun = Instant::now();
    while stage.local("GET", "health", None).is_err() {
        if !stage.world.is_running("codebuild") || begun.elapsed() > START_TIMEOUT {
            bail!(
                "the local CodeBuild does not start; see {}",
                stage.world.dir().join("codebuild.log").display()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(stage)
}

impl Stage {
    /// One of the stack's outputs.
    pub(crate) fn output(&self, name: &str) -> anyhow::Result<&str> {
        self.outputs.get(name).map(String::as_str).with_context(|| format!("the stack has no output {name}"))
    }

    /// Where builds clone the application from.
    pub(crate) fn origin(&self) -> &std::path::Path {
        self.app.origin()
    }

    /// A forge that knows the webhook's address and secret.
    pub(crate) fn forge(&self) -> anyhow::Result<Forge> {
        Forge::new(self.world.aws(), self.output("WebhookUrl")?, self.output("WebhookSecret")?)
    }

    /// How many messages are in Stoker's queues: those that wait, those that are handled, those that are delayed.
    pub(crate) fn waiting(&self) -> anyhow::Result<u64> {
        let mut waiting = 0;
        for queue in QUEUES {
            let input = json!({ "QueueUrl": self.output(queue)?, "AttributeNames": ["All"] });
            let answer = self.world.aws().call("sqs", "AmazonSQS.GetQueueAttributes", &input)?;
            for of in ["", "NotVisible", "Delayed"] {
                let count = answer["Attributes"][format!("ApproximateNumberOfMessages{of}")].as_str();
                waiting += count.and_then(|count| count.parse::<u64>().ok()).unwrap_or_default();
            }
        }
        Ok(waiting)
    }

    /// Talks to the control interface of the local `CodeBuild`.
    pub(crate) fn local(&self, method: &str, what: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let url = format!("{}/control/{what}", self.world.codebuild_endpoint());
        let mut answer = match (method, body) {
            ("GET", _) => self.local.get(&url).call()?,
            (_, body) => self
                .local
                .post(&url)
                .header("content-type", "application/json")
                .send(body.map_or_else(String::new, Value::to_string))?,
        };
        Ok(serde_json::from_slice(&answer.body_mut().read_to_vec()?)?)
    }

    /// Calls the `CodeBuild` API as somebody who is not Stoker.
    pub(crate) fn codebuild(&self, action: &str, input: &Value) -> anyhow::Result<Value> {
        let request = self.local.post(self.world.codebuild_endpoint());
        let request = request.header("x-amz-target", format!("CodeBuild_20161006.{action}"));
        let mut answer =
            request.header("content-type", "application/x-amz-json-1.1").send(input.to_string())?;
        Ok(serde_json::from_slice(&answer.body_mut().read_to_vec()?)?)
    }
}

fn how_to_talk(stage: &Stage) -> String {
    let world = &stage.world;
    let dir = world.dir();
    format!(
        "The world is still up:\n  \
         AWS           export AWS_ENDPOINT_URL={endpoint} AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test\n                \
         aws ecr describe-images --repository-name stoker/app       what Stoker has checked\n                \
         aws ecr describe-images --repository-name stoker-builds/app   what builds wrote\n  \
         CodeBuild     export AWS_ENDPOINT_URL_CODEBUILD={codebuild}\n                \
         curl -s {codebuild}/control/builds\n  \
         webhook       {webhook} (Host header, at {endpoint})\n  \
         git           {git}\n  \
         logs          {logs}/*.log\n\
         `cargo xtask down` ends it.",
        endpoint = world.endpoint(),
        codebuild = world.codebuild_endpoint(),
        webhook = stage.outputs.get("WebhookUrl").map_or("", String::as_str),
        git = dir.join("git").display(),
        logs = dir.join("logs").display(),
    )
}
