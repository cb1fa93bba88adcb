//! A build: imports caches, reuses what they hold, "runs" the rest, exports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::try_join_all;
use jiff::Timestamp;
use tokio::sync::watch;

use super::cache::{self, Blob, CacheError, Known, Made};
use super::command::Build;
use super::context::{Context, ContextError};
use super::dockerfile::{Base, Dockerfile, DockerfileError, Kind};
use super::graph::{Graph, What};
use super::log::Output;
use super::registry::{Registry, RegistryError};
use crate::chain;

/// How long a step takes that does not sleep.
const A_MOMENT: Duration = Duration::from_millis(20);

/// A build failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("failed to read dockerfile `{}`", path.display())]
    Dockerfile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Syntax(#[from] DockerfileError),
    #[error("target stage `{0}` could not be found")]
    Target(String),
    #[error("failed to compute cache key")]
    Context(#[from] ContextError),
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
    let text = std::fs::read_to_string(&path)
        .map_err(|source| BuildError::Dockerfile { path: path.clone(), source })?;
    vertex.line(&format!("transferring dockerfile: {}B done", text.len()));
    vertex.done();
    let file = Dockerfile::parse(&text, &build.args)?;
    let target = file
        .target(build.target.as_deref())
        .ok_or_else(|| BuildError::Target(build.target.clone().unwrap_or_default()))?;

    let registry = Registry::default();
    let known = import(build, &registry, output).await;
    let vertex = output.vertex("[internal] load build context");
    let context = Context::open(&root)?;
    vertex.done();

    let graph = Graph::new(&file, target, build, &context)?;
    let solver = Solver { file: &file, graph: &graph, registry: &registry, output, known };
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
        match cache::export(&registry, to, &graph, target, &made).await {
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
    file: &'a Dockerfile,
    graph: &'a Graph,
    registry: &'a Registry,
    output: &'a Output,
    known: Known,
}

/// What is to be done with the steps, by their nodes.
#[derive(Debug, Default)]
struct Plan {
    run: BTreeSet<usize>,
    pull: BTreeSet<usize>,
    /// In a cache, but below something that is pulled.
    skip: BTreeSet<usize>,
}

type Results = BTreeMap<usize, watch::Sender<Option<Made>>>;

impl Solver<'_> {
    async fn solve(&self) -> Result<BTreeMap<usize, Made>, BuildError> {
        let mut plan = Plan::default();
        if let Some(target) = self.graph.target {
            self.need(target, &mut plan);
        }
        let mut made = BTreeMap::new();
        let mut told = BTreeSet::new();
        for (&stage, &node) in &self.graph.images {
            if told.insert(node) {
                let vertex = self.output.vertex(self.name(stage, None));
                made.insert(node, self.image(stage, node));
                vertex.done();
            }
        }
        for &node in plan.pull.union(&plan.skip) {
            if let (What::Step(stage, place), Some(hit)) = (self.graph.nodes[node].what, self.hit(node)) {
                self.output.vertex(self.name(stage, Some(place))).cached();
                made.insert(node, hit.clone());
            }
        }
        self.check(&made).await?;

        let results: Results = (0..self.graph.nodes.len())
            .map(|node| (node, watch::Sender::new(made.get(&node).cloned())))
            .collect();
        try_join_all(plan.run.iter().map(|&node| self.run(node, &results))).await?;
        for (node, result) in &results {
            if let Some(result) = result.borrow().clone() {
                made.insert(*node, result);
            }
        }
        Ok(made)
    }

    fn hit(&self, node: usize) -> Option<&Made> {
        self.known.get(&self.graph.nodes[node].key)
    }

    /// Decides from the end: what rests below a hit is not needed.
    fn need(&self, node: usize, plan: &mut Plan) {
        if plan.run.contains(&node) || plan.pull.contains(&node) {
            return;
        }
        if !matches!(self.graph.nodes[node].what, What::Step(..)) {
            return;
        }
        if self.hit(node).is_some() {
            plan.pull.insert(node);
            self.pass(node, plan);
            return;
        }
        plan.run.insert(node);
        for input in &self.graph.nodes[node].inputs {
            self.need(input.node, plan);
        }
    }

    fn pass(&self, node: usize, plan: &mut Plan) {
        for input in &self.graph.nodes[node].inputs {
            let is_new = self.hit(input.node).is_some() && plan.skip.insert(input.node);
            if is_new || !plan.skip.contains(&input.node) {
                self.pass(input.node, plan);
            }
        }
    }

    /// Fails the build where a cache promises a layer that is gone, as `BuildKit` does.
    async fn check(&self, made: &BTreeMap<usize, Made>) -> Result<(), BuildError> {
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

    fn image(&self, stage: usize, node: usize) -> Made {
        self.hit(node).cloned().unwrap_or_else(|| {
            let created_at = Timestamp::now().to_string();
            let text = &self.file.stages[stage].text;
            Made { chain: vec![Blob::new("image", text, "1970-01-01T00:00:00Z")], created_at }
        })
    }

    async fn run(&self, node: usize, results: &Results) -> Result<(), BuildError> {
        let What::Step(stage, place) = self.graph.nodes[node].what else { return Ok(()) };
        let step = &self.file.stages[stage].steps[place];
        for input in &self.graph.nodes[node].inputs {
            let is_step = matches!(self.graph.nodes[input.node].what, What::Step(..));
            if let Some(result) = results.get(&input.node).filter(|_| is_step) {
                // The sender lives as long as the build.
                let _ = result.subscribe().wait_for(Option::is_some).await;
            }
        }
        let parent = self.graph.nodes[node].parent.and_then(|parent| results.get(&parent));
        let parent = parent.and_then(|result| result.borrow().clone());
        let mut chain = parent.map(|made| made.chain).unwrap_or_default();
        let vertex = self.output.vertex(self.name(stage, Some(place)));
        let created_at;
        let content = match &step.kind {
            Kind::Run { command, .. } => {
                tokio::time::sleep(sleeps(command).max(A_MOMENT)).await;
                if fails(command) {
                    let error = BuildError::Run { command: command.clone() };
                    vertex.failed(&error.to_string());
                    return Err(error);
                }
                created_at = Timestamp::now().to_string();
                // Two runs of one command rarely leave the same bytes.
                format!("{}\n{}\n{created_at}\n", self.graph.nodes[node].key, step.text)
            }
            Kind::Copy { .. } | Kind::Workdir => {
                created_at = Timestamp::now().to_string();
                format!("{}\n{}\n", self.graph.nodes[node].key, step.text)
            }
        };
        chain.push(Blob::new("step", &content, &created_at));
        vertex.done();
        if let Some(result) = results.get(&node) {
            result.send_replace(Some(Made { chain, created_at }));
        }
        Ok(())
    }

    /// The name of a step, or of a stage's `FROM`, as `BuildKit` tells it.
    fn name(&self, stage: usize, place: Option<usize>) -> String {
        let it = &self.file.stages[stage];
        let from = usize::from(matches!(it.base, Base::Image(_)));
        let of = it.steps.len() + from;
        let label = match &it.name {
            Some(name) => format!("{name} "),
            None if self.file.stages.len() > 1 => format!("stage-{stage} "),
            None => String::new(),
        };
        match place {
            Some(place) => format!("[{label}{}/{of}] {}", place + 1 + from, it.steps[place].text),
            None => format!("[{label}1/{of}] {}", it.text),
        }
    }
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
        assert!(
            fails("make && exit 3") && fails("false") && !fails("exit 0") && !fails("echo false-positive")
        );
    }
}
