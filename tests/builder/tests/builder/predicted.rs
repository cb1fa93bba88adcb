//! Steps that `dockerfile-keys` says a build runs, against those that `BuildKit` runs, given the same caches: generated
//! histories, each commit built on a builder that knows nothing, from the caches that earlier ones exported.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use builder::{Commit, Features, File, History, PROGRAM};
use buildkit_cache::Cache;
use cache_misses::{Log, StepName};
use dockerfile_keys::{Folder, Ignore, Key, Memory, Plan, Step, find, parse, plan, solve};

use crate::engine::{Engine, Options, could_not_start};
use crate::registry::Registry;
use crate::side_by_side;

/// The builds of a history, one for each commit.
const COMMITS: usize = 10;
/// Histories of a run that asks for no other number.
pub(crate) const HISTORIES: usize = 3;

/// The instructions of a history's base image beyond the usual ones.
const BASE: &str =
    "COPY passwd group /etc/\nCOPY --chmod=755 k /bin/k\nRUN mkdir /w && /bin/busybox chmod 777 /w\n";

const GROUP: &str = "root:x:0:\nuser:x:1000:\n";
const PASSWD: &str = "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n";

/// A history as far as it is built.
struct Stage<'a> {
    history: History,
    base_image: String,
    registry: &'a Registry,
    dir: PathBuf,
    memory: Memory,
    /// The keys of what each commit's build exported.
    exported: BTreeMap<usize, HashSet<Key>>,
    blobs: BTreeSet<String>,
    figures: Figures,
    problems: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    builds: usize,
    steps: usize,
    ran: usize,
    /// Steps that were found although a command that ran might have changed what they read, but did not.
    unchanged: usize,
}

/// Builds histories side by side, a commit of each on a builder, and compares; true if all came out as predicted.
pub(crate) fn compare(
    seed: u64,
    histories: usize,
    engine: &Engine,
    registries: &[Registry],
    dir: &Path,
) -> anyhow::Result<bool> {
    let started = Instant::now();
    let features = features(engine, dir)?;
    let stages = (0..histories)
        .zip(registries.iter().cycle())
        .map(|(number, registry)| {
            let history = History::new(seed.wrapping_add(number as u64), COMMITS, features);
            let dir = dir.join(format!("history-{}", history.token));
            let base_image = engine.own_base_image_with(
                &history.token,
                &dir,
                &[("k", PROGRAM), ("passwd", PASSWD), ("group", GROUP)],
                BASE,
            )?;
            let (memory, exported) = (Memory::default(), BTreeMap::new());
            let (blobs, figures, problems) = (BTreeSet::new(), Figures::default(), Vec::new());
            Ok(Mutex::new(Stage {
                history,
                base_image,
                registry,
                dir,
                memory,
                exported,
                blobs,
                figures,
                problems,
            }))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    for number in 0..COMMITS {
        let locked = || stages.iter().map(|stage| stage.lock().unwrap());
        let tokens: Vec<String> = locked().map(|stage| stage.history.token.clone()).collect();
        let blobs: BTreeSet<String> = locked().flat_map(|stage| stage.blobs.clone()).collect();
        engine.renew(&tokens.iter().map(String::as_str).collect::<Vec<_>>(), &blobs)?;
        side_by_side(&stages, |stage| {
            let mut stage = stage.lock().unwrap();
            let built = stage
                .build(number)
                .or_else(|error| if could_not_start(&error) { stage.build(number) } else { Err(error) });
            if let Err(error) = built {
                let dockerfile = stage.history.commits[number].dockerfile.clone();
                stage.problems.push(format!("commit {number}: {error:#}\n{dockerfile}"));
            }
        });
    }
    let (mut all, mut good) = (Figures::default(), true);
    for stage in stages {
        let stage = stage.into_inner().unwrap();
        let figures = stage.figures;
        all = Figures {
            builds: all.builds + figures.builds,
            steps: all.steps + figures.steps,
            ran: all.ran + figures.ran,
            unchanged: all.unchanged + figures.unchanged,
        };
        for problem in &stage.problems {
            println!("  history {}, {}: FAILED: {problem}", stage.history.seed, stage.registry.name);
        }
        good &= stage.problems.is_empty();
        Engine::free(&[&stage.history.token], &stage.blobs)?;
    }
    println!(
        "  {} builds of {histories} histories: of {} steps {} ran, {} were found though a command might have changed what \
         they read, {} ({:.0} s)",
        all.builds,
        all.steps,
        all.ran,
        all.unchanged,
        if good { "as predicted each time" } else { "and not all as predicted" },
        started.elapsed().as_secs_f32()
    );
    Ok(good)
}

/// What the builder's own reader of Dockerfiles understands.
fn features(engine: &Engine, dir: &Path) -> anyhow::Result<Features> {
    let context = dir.join("features");
    std::fs::create_dir_all(&context)?;
    std::fs::write(context.join("a"), "a")?;
    let understands = |flag: &str| {
        let text = format!("FROM {}\nCOPY {flag} a /a/\n", engine.base_image);
        std::fs::write(context.join("Dockerfile"), text)?;
        Ok::<_, anyhow::Error>(Engine::build(&context, &Options::default()).is_ok())
    };
    Ok(Features { exclude: understands("--exclude=b")?, parents: understands("--parents")? })
}

impl Stage<'_> {
    fn tag(&self, name: &str) -> String {
        format!("{}-{name}", self.history.token)
    }

    fn build(&mut self, number: usize) -> anyhow::Result<()> {
        let mut commit = self.history.commits[number].clone();
        commit.imports.retain(|one| self.exported.contains_key(one));
        let context = self.dir.join(format!("commit-{number}"));
        let dockerfile =
            commit.dockerfile.replace("BASE", &self.base_image).replace("ADDRESS", &self.registry.address());
        write(&context, &commit, &dockerfile)?;
        let plan = self.plan(&context, &commit, &dockerfile)?;
        ensure!(plan.unknown.is_empty(), "not understood: {:?}", plan.unknown);

        // A build is given one cache, as by Stoker.
        let imports = match commit.imports.as_slice() {
            [] => Vec::new(),
            [one] => vec![self.tag(&one.to_string())],
            several => {
                let caches = several
                    .iter()
                    .map(|one| self.registry.read(&self.tag(&one.to_string())))
                    .collect::<anyhow::Result<Vec<Cache>>>()?;
                let tag = self.tag(&format!("given-{number}"));
                self.registry.write(&tag, &Cache::merge(&caches))?;
                vec![tag]
            }
        };
        let given = |key: &Key| commit.imports.iter().any(|one| self.exported[one].contains(key));
        let predicted = solve(&plan, given).ran;

        let mut flags = String::new();
        for (name, value) in &commit.arguments {
            let _ = write!(flags, "--build-arg {name}={value} ");
        }
        if let Some(target) = &commit.target {
            let _ = write!(flags, "--target {target}");
        }
        let export = self.tag(&number.to_string());
        let options = Options {
            imports: &imports.iter().map(|tag| self.registry.reference(tag)).collect::<Vec<_>>(),
            export: Some(self.registry.reference(&export)),
            platforms: None,
            flags: &flags,
            as_json: true,
        };
        let built = Engine::build(&context, &options)?;
        // It is read as JSON: a text's lines cannot tell of a linked copy whether it ran or was put upon other layers only.
        let log = Log::read(&built.log);
        let [told] = log.builds.as_slice() else { bail!("the log is no JSON: {}", built.log) };
        let errors = log.errors();
        ensure!(errors.is_empty(), "a cache was not imported: {errors:?}");
        let cache = self.registry.read(&export)?;
        self.blobs.extend(cache.blobs().map(|blob| blob.digest.to_string()));
        let exported = plan.nodes.iter().filter(|node| node.is_exported());
        self.exported.insert(number, exported.map(|node| node.key).collect());

        let steps = Steps::new(&plan);
        let ran = told
            .ran()
            .into_iter()
            .map(|(vertex, name)| {
                steps.find(&name).with_context(|| format!("there is no step {}", vertex.name))
            })
            .collect::<anyhow::Result<BTreeSet<_>>>()?;
        let key = |node: &usize| plan.nodes[*node].key;
        let predicted_keys: BTreeSet<Key> = predicted.iter().map(key).collect();
        self.figures.builds += 1;
        self.figures.steps += plan.nodes.iter().filter(|node| node.step.is_some()).count();
        self.figures.ran += ran.len();
        let ran_keys: BTreeSet<Key> = ran.iter().map(key).collect();
        let spared = unchanged(&plan, &predicted_keys, &ran_keys);
        self.figures.unchanged += spared.len();
        let predicted_keys: BTreeSet<Key> = predicted_keys.difference(&spared).copied().collect();
        let named = |keys: &BTreeSet<Key>, others: &BTreeSet<Key>| {
            let names: Vec<String> = plan
                .nodes
                .iter()
                .filter(|node| keys.contains(&node.key) && !others.contains(&node.key))
                .filter_map(|node| node.step.as_ref())
                .map(|step| format!("[{} {}] {}", step.stage, step.place, step.text))
                .collect();
            names.join("\n    ")
        };
        ensure!(
            ran_keys == predicted_keys,
            "given {:?}\n  only predicted:\n    {}\n  only ran:\n    {}\n{}",
            commit.imports,
            named(&predicted_keys, &ran_keys),
            named(&ran_keys, &predicted_keys),
            told.vertices.iter().map(|vertex| format!("    {vertex:?}")).collect::<Vec<_>>().join("\n")
        );
        Ok(())
    }

    fn plan(&self, context: &Path, commit: &Commit, dockerfile: &str) -> anyhow::Result<Plan> {
        let folder = Folder::read(context)?;
        let ignore = match find(&folder, &folder.root(), ".dockerignore")? {
            Some(_) => Ignore::parse(&std::fs::read_to_string(context.join(".dockerignore"))?)?,
            None => Ignore::default(),
        };
        let options = dockerfile_keys::Options {
            target: commit.target.clone(),
            arguments: commit.arguments.clone(),
            ..dockerfile_keys::Options::default()
        };
        let (tree, root, memory) = (&folder, folder.root(), &self.memory);
        let context = dockerfile_keys::Context { tree, root, ignore: &ignore, memory, git_directory: None };
        Ok(plan(&parse(dockerfile)?, &options, context, Key::from([0; 32]))?)
    }
}

/// Steps that were predicted and did not run, as a command left what they read of a stage as it was: what a command leaves
/// counts as changed whenever the command does. With them goes what rests on them.
fn unchanged(plan: &Plan, predicted: &BTreeSet<Key>, ran: &BTreeSet<Key>) -> BTreeSet<Key> {
    let mut spared = BTreeSet::new();
    for node in plan.nodes.iter().filter(|node| predicted.contains(&node.key) && !ran.contains(&node.key)) {
        let rests_on_one = node.rests_on().any(|below| spared.contains(&plan.nodes[below].key));
        if rests_on_one || !node.inputs.is_empty() {
            spared.insert(node.key);
        }
    }
    spared
}

/// The steps of a plan by the names that a log has for them.
struct Steps<'a> {
    by_stage: HashMap<&'a str, BTreeMap<usize, usize>>,
}

impl<'a> Steps<'a> {
    fn new(plan: &'a Plan) -> Self {
        let mut by_stage: HashMap<&str, BTreeMap<usize, usize>> = HashMap::new();
        for (number, node) in plan.nodes.iter().enumerate() {
            if let Some(Step { stage, place, .. }) = &node.step {
                by_stage.entry(stage).or_default().insert(*place, number);
            }
        }
        Self { by_stage }
    }

    /// The node of a step such as `[s1 3/5] RUN make`.
    fn find(&self, name: &StepName<'_>) -> Option<usize> {
        self.by_stage.get(name.stage())?.get(&name.place).copied()
    }
}

/// Writes a commit's files, with modes that do not depend on who writes them.
fn write(directory: &Path, commit: &Commit, dockerfile: &str) -> anyhow::Result<()> {
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let dockerfile = File::Text(dockerfile.to_owned());
    for (path, file) in
        commit.files.iter().map(|(path, file)| (path.as_str(), file)).chain([("Dockerfile", &dockerfile)])
    {
        let path = directory.join(path);
        for parent in path.ancestors().skip(1).take_while(|parent| parent.starts_with(directory)) {
            std::fs::create_dir_all(parent)?;
            mode(parent, 0o755)?;
        }
        match file {
            File::Text(text) => {
                std::fs::write(&path, text)?;
                mode(&path, 0o644)?;
            }
            File::Executable(text) => {
                std::fs::write(&path, text)?;
                mode(&path, 0o755)?;
            }
            File::Link(to) => symlink(to, &path)?,
        }
    }
    Ok(())
}
