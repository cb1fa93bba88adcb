//! A build: imports caches, reuses what they hold, "runs" the rest, exports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use dockerfile_keys::{
    Context, Folder, Ignore, IgnoreError, Key, Memory, Options, ParseError, Plan, PlanError, Step, StepKind,
    parse, plan, solve,
};
use futures_util::future::try_join_all;
use jiff::Timestamp;
use tokio::sync::watch;

use super::cache::{self, Blob, CacheError, Known, Made};
use super::command::Build;
use super::graph::Graph;
use super::log::Output;
use super::registry::{Registry, RegistryError};
use crate::chain;

/// How long a step takes that does not sleep.
const A_MOMENT: Duration = Duration::from_millis(20);

/// A build failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("failed to read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("dockerfile")]
    Syntax(#[from] ParseError),
    #[error(".dockerignore")]
    Ignore(#[from] IgnoreError),
    #[error("dockerfile")]
    Plan(#[from] PlanError),
    #[error("dockerfile line {line}: {problem}")]
    Unknown { line: usize, problem: String },
    #[error("could not fetch content descriptor {digest} from remote: not found")]
    MissingLayer { digest: String },
    #[error("could not fetch content descriptor {digest} from remote")]
    Layer {
        digest: String,
        #[source]
        source: RegistryError,
    },
    #[error("process \"/bin/sh -c {command}\" did not complete successfully: exit code: 1")]
    Run { command: String },
    #[error("error writing the cache")]
    Export(#[source] CacheError),
}

/// Builds.
pub(super) async fn build(build: &Build, directory: &Path, output: &Output) -> Result<(), BuildError> {
    output.say("#0 building with \"simulated\" instance using simulated driver");
    let root = directory.join(&build.context);
    let path = build.file.as_ref().map_or_else(|| root.join("Dockerfile"), |file| directory.join(file));

    let vertex = output.vertex("[internal] load build definition from Dockerfile");
    let text = std::fs::read_to_string(&path).map_err(read(&path))?;
    vertex.line(&format!("transferring dockerfile: {}B done", text.len()));
    vertex.done();

    let registry = Registry::default();
    let known = import(build, &registry, output).await;
    let vertex = output.vertex("[internal] load build context");
    let plan = planned(build, &text, &path, &root)?;
    vertex.done();

    let graph = Graph::new(&plan);
    let solver = Solver { plan: &plan, graph: &graph, registry: &registry, output, known };
    let made = solver.solve().await?;

    let vertex = output.vertex("exporting to image");
    vertex.line("exporting layers: there is no image, the build is simulated");
    if build.push {
        vertex.line("pushing nothing, the build is simulated");
    }
    for tag in &build.tags {
        vertex.line(&format!("naming to {tag} done"));
    }
    vertex.done();
    for to in &build.cache_to {
        let vertex = output.vertex("exporting cache to registry");
        vertex.line("preparing build cache for export");
        match cache::export(&registry, to, &graph, &made).await {
            Ok(None) => vertex.done(),
            Ok(Some(exported)) => {
                for layer in exported.layers {
                    vertex.line(&format!("writing layer {layer} done"));
                }
                vertex.line(&format!("writing config {} done", exported.config));
                vertex.line(&format!("writing cache image manifest {} done", exported.manifest));
                vertex.done();
            }
            Err(error) => {
                vertex.failed(&chain(&error));
                if !to.ignore_error {
                    return Err(BuildError::Export(error));
                }
            }
        }
    }
    Ok(())
}

fn read(path: &Path) -> impl Fn(std::io::Error) -> BuildError {
    move |source| BuildError::Read { path: path.to_owned(), source }
}

/// The steps of a build. What is not understood fails it.
fn planned(build: &Build, text: &str, dockerfile: &Path, root: &Path) -> Result<Plan, BuildError> {
    let file = parse(text)?;
    let mut beside = dockerfile.as_os_str().to_owned();
    beside.push(".dockerignore");
    let ignore = [PathBuf::from(beside), root.join(".dockerignore")].into_iter().find(|path| path.exists());
    let ignore = match ignore {
        Some(path) => Ignore::parse(&std::fs::read_to_string(&path).map_err(read(&path))?)?,
        None => Ignore::default(),
    };
    let folder = Folder::read(root).map_err(read(root))?;
    let usual = Options::default();
    let options = Options {
        target: build.target.clone(),
        arguments: build.args.iter().cloned().collect(),
        platform: build.platform.clone().unwrap_or(usual.platform),
        network: build.network.clone(),
        ..usual
    };
    let (tree, root, memory) = (&folder, folder.root(), &Memory::default());
    let context = Context { tree, root, ignore: &ignore, memory, git_directory: None };
    let plan = plan(&file, &options, context, Key::from([0; 32]))?;
    match plan.unknown.first() {
        Some(first) => Err(BuildError::Unknown { line: first.line, problem: first.problem.clone() }),
        None => Ok(plan),
    }
}

/// Reads the caches that are named. One that cannot be read makes the build cold, not red.
async fn import(build: &Build, registry: &Registry, output: &Output) -> Known {
    let mut known = Known::new();
    for reference in &build.cache_from {
        let vertex = output.vertex(format!("importing cache manifest from {reference}"));
        match cache::import(registry, reference, &mut known).await {
            Ok(()) => vertex.done(),
            Err(error) => {
                vertex.failed(&format!("failed to configure registry cache importer: {}", chain(&error)));
            }
        }
    }
    if build.no_cache { Known::new() } else { known }
}

struct Solver<'a> {
    plan: &'a Plan,
    graph: &'a Graph,
    registry: &'a Registry,
    output: &'a Output,
    known: Known,
}

/// Where the results of the steps that run come to be had.
type Results = BTreeMap<Key, watch::Sender<Option<Made>>>;

impl Solver<'_> {
    /// Has all at hand that the target needs; gives all results that are known then.
    async fn solve(&self) -> Result<BTreeMap<Key, Made>, BuildError> {
        let ran = solve(self.plan, |key| self.hit(key).is_some()).ran;
        let keys: BTreeSet<Key> = ran.iter().map(|node| self.plan.nodes[*node].key).collect();
        let mut made = BTreeMap::new();
        for (number, node) in self.plan.nodes.iter().enumerate() {
            if keys.contains(&node.key) || made.contains_key(&node.key) {
                continue;
            }
            if let Some(image) = node.image() {
                let vertex = self.output.vertex(self.name_of_image(number, image));
                made.insert(node.key, self.image(&node.key, image));
                vertex.done();
            } else if let Some(hit) = self.hit(&node.key) {
                if let Some(step) = &node.step {
                    self.output.vertex(self.name(step)).cached();
                }
                made.insert(node.key, hit.clone());
            }
        }
        self.check(&made).await?;

        let results: Results = keys.iter().map(|key| (*key, watch::Sender::new(None))).collect();
        try_join_all(ran.iter().map(|&node| self.run(node, &made, &results))).await?;
        for (key, result) in results {
            made.extend(result.borrow().clone().map(|result| (key, result)));
        }
        for node in &self.plan.nodes {
            if made.contains_key(&node.key) {
                continue;
            }
            let of = |node: Option<usize>| made.get(&self.plan.nodes.get(node?)?.key);
            if let (Some(below), Some(layer)) = (of(node.parent), of(node.layer())) {
                let merged = below.with(layer);
                made.insert(node.key, merged);
            }
        }
        Ok(made)
    }

    fn hit(&self, key: &Key) -> Option<&Made> {
        self.known.get(self.graph.key_of(key)?)
    }

    /// Fails the build where a cache promises a layer that is gone, as `BuildKit` does.
    async fn check(&self, made: &BTreeMap<Key, Made>) -> Result<(), BuildError> {
        let mut seen = BTreeSet::new();
        for blob in made.values().flat_map(|made| &made.chain) {
            let digest = || blob.digest().to_owned();
            if !seen.insert(digest()) {
                continue;
            }
            let there = blob.is_there(self.registry).await;
            if !there.map_err(|source| BuildError::Layer { digest: digest(), source })? {
                return Err(BuildError::MissingLayer { digest: digest() });
            }
        }
        Ok(())
    }

    fn image(&self, key: &Key, image: &str) -> Made {
        self.hit(key).cloned().unwrap_or_else(|| {
            let created_at = Timestamp::now().to_string();
            Made {
                chain: vec![Blob::new("image", &format!("FROM {image}"), "1970-01-01T00:00:00Z")],
                created_at,
            }
        })
    }

    /// Waits for what a node leaves. Nothing is left where nothing needed it.
    fn wait<'a>(
        &'a self,
        number: usize,
        made: &'a BTreeMap<Key, Made>,
        results: &'a Results,
    ) -> Pin<Box<dyn Future<Output = Option<Made>> + 'a>> {
        Box::pin(async move {
            let node = self.plan.nodes.get(number)?;
            if let Some(made) = made.get(&node.key) {
                return Some(made.clone());
            }
            if let Some(layer) = node.layer() {
                let below = self.wait(node.parent?, made, results).await?;
                return Some(below.with(&self.wait(layer, made, results).await?));
            }
            let result = results.get(&node.key)?;
            // The sender lives as long as the build.
            let _ = result.subscribe().wait_for(Option::is_some).await;
            result.borrow().clone()
        })
    }

    async fn run(
        &self,
        number: usize,
        made: &BTreeMap<Key, Made>,
        results: &Results,
    ) -> Result<(), BuildError> {
        let node = &self.plan.nodes[number];
        let Some(step) = &node.step else { return Ok(()) };
        for input in &node.inputs {
            self.wait(*input, made, results).await;
        }
        let below = match node.parent {
            Some(parent) => self.wait(parent, made, results).await,
            None => None,
        };
        let mut chain = below.map(|below| below.chain).unwrap_or_default();
        let vertex = self.output.vertex(self.name(step));
        let key = self.graph.key_of(&node.key).unwrap_or_default();
        let is_run = step.kind == StepKind::Run;
        if is_run {
            let command = command(&step.text);
            tokio::time::sleep(sleeps(command).max(A_MOMENT)).await;
            if fails(command) {
                let error = BuildError::Run { command: command.to_owned() };
                vertex.failed(&error.to_string());
                return Err(error);
            }
        }
        let created_at = Timestamp::now().to_string();
        // Two runs of one command rarely leave the same bytes.
        let time = if is_run { format!("{created_at}\n") } else { String::new() };
        chain.push(Blob::new("step", &format!("{key}\n{}\n{time}", step.text), &created_at));
        vertex.done();
        if let Some(result) = results.get(&node.key) {
            result.send_replace(Some(Made { chain, created_at }));
        }
        Ok(())
    }

    /// The name of a step as `BuildKit` tells it.
    fn name(&self, step: &Step) -> String {
        format!(
            "[{}{}/{}] {}",
            self.label(&step.stage),
            step.place,
            self.of(&step.stage),
            first_line(&step.text)
        )
    }

    /// The name of a stage's `FROM`; of the first stage that starts from it.
    fn name_of_image(&self, number: usize, image: &str) -> String {
        let stage = self.plan.nodes.iter().find(|node| node.parent == Some(number));
        match stage.and_then(|node| node.step.as_ref()) {
            Some(Step { stage, .. }) => format!("[{}1/{}] FROM {image}", self.label(stage), self.of(stage)),
            None => format!("FROM {image}"),
        }
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.plan.nodes.iter().filter_map(|node| node.step.as_ref())
    }

    /// The only stage is not named, unless it has a name.
    fn label(&self, stage: &str) -> String {
        let is_only = stage == "stage-0" && self.steps().all(|step| step.stage == stage);
        if is_only { String::new() } else { format!("{stage} ") }
    }

    fn of(&self, stage: &str) -> usize {
        self.steps().filter(|step| step.stage == stage).map(|step| step.place).max().unwrap_or_default()
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What a `RUN` runs, without its flags.
fn command(text: &str) -> &str {
    let mut rest = text.strip_prefix("RUN").unwrap_or(text).trim_start();
    while rest.starts_with("--") {
        rest = rest.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
    }
    rest
}

/// The `sleep`s of a command, one after the other.
fn sleeps(command: &str) -> Duration {
    let words: Vec<&str> = command.split(|c: char| c.is_whitespace() || ";&|()".contains(c)).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let mut total = Duration::ZERO;
    for pair in words.windows(2) {
        if pair[0].rsplit('/').next() == Some("sleep") {
            let seconds: f64 = pair[1].trim_end_matches('s').parse().unwrap_or(0.0);
            total += Duration::try_from_secs_f64(seconds).unwrap_or_default();
        }
    }
    total
}

/// Whether a command plainly fails: `false`, or `exit` with a code.
fn fails(command: &str) -> bool {
    command
        .split([';', '&', '|'])
        .map(str::trim)
        .any(|part| part == "false" || part.strip_prefix("exit ").is_some_and(|code| code.trim() != "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_sleep_and_fail_where_they_say_so() {
        assert_eq!(sleeps("sleep 3; head -c 1 /dev/urandom > /a"), Duration::from_secs(3));
        assert_eq!(sleeps("(/bin/sleep 0.5 && sleep 1s)"), Duration::from_millis(1500));
        assert_eq!(sleeps("make sleeper"), Duration::ZERO);
        assert_eq!(command("RUN --network=none --mount=target=/x exit 3"), "exit 3");
        assert!(
            fails("make && exit 3") && fails("false") && !fails("exit 0") && !fails("echo false-positive")
        );
    }
}
