//! Steps that `dockerfile-keys` says a build runs, against those that `BuildKit` runs, given the same caches: generated
//! histories, each commit built on a builder that knows nothing, from the caches that earlier ones exported.
//!
//! That a command changes whatever it leaves whenever its own key changes is an assumption, and the only one that is
//! excused: where builds differ from the prediction, what their commands really left is read from the stages that were
//! built. With that told, what is predicted must be what ran, step by step.
//!
//! One disagreement has a known cause, and is listed: where two builds copied the same files from a stage
//! that each had made in its own way, the second one's export holds the steps of both stages, at times
//! without results. A later build finds the copy by the steps that the second did not run, or lacks the
//! results of those that it did.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use builder::{Commit, Disagreement, Features, File, History, PROGRAM};
use buildkit_cache::Cache;
use cache_misses::{Log, StepName};
use dockerfile_keys::{Folder, Ignore, Key, Left, Memory, Plan, Step, StepKind, find, parse, plan};
use serde_json::Value;

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
    /// The plan of each commit that was built.
    built: BTreeMap<usize, Plan>,
    /// The same, with what its commands really left.
    reported: BTreeMap<usize, Plan>,
    blobs: BTreeSet<String>,
    figures: Figures,
    problems: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    builds: usize,
    steps: usize,
    ran: usize,
    /// Builds that ran as predicted only once it was known what commands had left.
    reported: usize,
    /// Builds whose cache knew a stage in two ways.
    twins: usize,
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
            let (memory, built, reported) = (Memory::default(), BTreeMap::new(), BTreeMap::new());
            let (blobs, figures, problems) = (BTreeSet::new(), Figures::default(), Vec::new());
            Ok(Mutex::new(Stage {
                history,
                base_image,
                registry,
                dir,
                memory,
                built,
                reported,
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
            reported: all.reported + figures.reported,
            twins: all.twins + figures.twins,
        };
        for problem in &stage.problems {
            println!("  history {}, {}: FAILED: {problem}", stage.history.seed, stage.registry.name);
        }
        good &= stage.problems.is_empty();
        Engine::free(&[&stage.history.token], &stage.blobs)?;
    }
    println!(
        "  {} builds of {histories} histories: of {} steps {} ran, in {} builds once it was read what commands \
         left, in {} but \
         for a stage that the cache knew in two ways; {} ({:.0} s)",
        all.builds,
        all.steps,
        all.ran,
        all.reported,
        all.twins,
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
        commit.imports.retain(|one| self.built.contains_key(one));
        let context = self.context(number);
        write(&context, &commit, &self.dockerfile(&commit))?;
        let plan = self.plan(number, BTreeMap::new())?;
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
        let export = self.tag(&number.to_string());
        let options = Options {
            imports: &imports.iter().map(|tag| self.registry.reference(tag)).collect::<Vec<_>>(),
            export: Some(self.registry.reference(&export)),
            platforms: None,
            flags: &flags(&commit, commit.target.as_deref()),
            as_json: true,
        };
        let built = Engine::build(&context, &options)?;
        // It is read as JSON: a text's lines cannot tell of a linked copy whether it ran or was put upon
        // other layers only.
        let log = Log::read(&built.log);
        let [reported] = log.builds.as_slice() else { bail!("the log is no JSON: {}", built.log) };
        let errors = log.errors();
        ensure!(errors.is_empty(), "a cache was not imported: {errors:?}");
        let cache = self.registry.read(&export)?;
        self.blobs.extend(cache.blobs().map(|blob| blob.digest.to_string()));
        let steps = Steps::new(&plan);
        let ran = reported
            .ran()
            .into_iter()
            .map(|(vertex, name)| {
                steps.find(&name).with_context(|| format!("there is no step {}", vertex.name))
            })
            .collect::<anyhow::Result<BTreeSet<_>>>()?;
        self.figures.builds += 1;
        self.figures.steps += plan.nodes.iter().filter(|node| node.step.is_some()).count();
        self.figures.ran += ran.len();
        let given: Vec<&Plan> = commit.imports.iter().filter_map(|one| self.built.get(one)).collect();
        let is_as_predicted = Disagreement::of(&plan, &given, &ran).is_none();
        self.built.insert(number, plan);
        if is_as_predicted {
            return Ok(());
        }
        self.figures.reported += 1;
        for one in commit.imports.iter().chain([&number]) {
            if !self.reported.contains_key(one) {
                let reported = self.plan(*one, self.left(*one)?)?;
                self.reported.insert(*one, reported);
            }
        }
        let given: Vec<&Plan> = commit.imports.iter().filter_map(|one| self.reported.get(one)).collect();
        let plan = &self.reported[&number];
        let Some(found) = Disagreement::of(plan, &given, &ran) else { return Ok(()) };
        if let [import] = imports.as_slice()
            && found.is_below_a_copy(plan)
            && knows_a_stage_twice(&self.registry.raw(import)?.1)
        {
            println!("  history {}, commit {number}: a stage is known in two ways", self.history.seed);
            self.figures.twins += 1;
            return Ok(());
        }
        let names = |nodes: &BTreeSet<usize>| {
            let steps = nodes.iter().filter_map(|node| plan.nodes[*node].step.as_ref());
            let names: Vec<String> =
                steps.map(|step| format!("[{} {}] {}", step.stage, step.place, step.text)).collect();
            names.join("\n    ")
        };
        bail!(
            "given {:?}\n  only predicted:\n    {}\n  only ran:\n    {}\n{}",
            commit.imports,
            names(&found.only_predicted),
            names(&found.only_ran),
            reported.vertices.iter().map(|vertex| format!("    {vertex:?}")).collect::<Vec<_>>().join("\n")
        )
    }

    fn context(&self, number: usize) -> PathBuf {
        self.dir.join(format!("commit-{number}"))
    }

    fn dockerfile(&self, commit: &Commit) -> String {
        commit.dockerfile.replace("BASE", &self.base_image).replace("ADDRESS", &self.registry.address())
    }

    fn plan(&self, number: usize, left: BTreeMap<(String, usize), Left>) -> anyhow::Result<Plan> {
        let (commit, context) = (&self.history.commits[number], self.context(number));
        let folder = Folder::read(&context)?;
        let ignore = match find(&folder, &folder.root(), ".dockerignore")? {
            Some(_) => Ignore::parse(&std::fs::read_to_string(context.join(".dockerignore"))?)?,
            None => Ignore::default(),
        };
        let options = dockerfile_keys::Options {
            target: commit.target.clone(),
            arguments: commit.arguments.clone(),
            left,
            ..dockerfile_keys::Options::default()
        };
        let (tree, root, memory) = (&folder, folder.root(), &self.memory);
        let context = dockerfile_keys::Context { tree, root, ignore: &ignore, memory, git_directory: None };
        Ok(plan(&parse(&self.dockerfile(commit))?, &options, context, Key::from([0; 32]))?)
    }

    /// What each command of a commit left: the file that it is told to write, as it lies in the stage in the end.
    fn left(&self, number: usize) -> anyhow::Result<BTreeMap<(String, usize), Left>> {
        let plan = &self.built[&number];
        let imports = [self.registry.reference(&self.tag(&number.to_string()))];
        let steps = plan.nodes.iter().filter_map(|node| node.step.as_ref());
        let commands: Vec<&Step> = steps.filter(|step| step.kind == StepKind::Run).collect();
        let stages: BTreeSet<&str> = commands.iter().map(|step| step.stage.as_str()).collect();
        let mut left = BTreeMap::new();
        for stage in stages {
            let flags = flags(&self.history.commits[number], Some(stage));
            let options = Options { imports: &imports, flags: &flags, as_json: true, ..Options::default() };
            let files = Engine::build(&self.context(number), &options)?.files;
            for step in commands.iter().filter(|step| step.stage == stage) {
                let path = written(&step.text, &self.history.token)
                    .with_context(|| format!("{} writes no file", step.text))?;
                let file = files
                    .get(path.trim_start_matches('/'))
                    .with_context(|| format!("{} left no {path}", step.text))?;
                let content = digest(file).with_context(|| format!("{path} is {file}"))?;
                left.insert((stage.to_owned(), step.place), Left { path: path.to_owned(), content });
            }
        }
        Ok(left)
    }
}

/// Whether a cache's config has a record that is made from either of two records of the same operation.
fn knows_a_stage_twice(config: &Value) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let records = list(&config["records"]);
    let made_from = |alternative: &Value| {
        let record = records.get(usize::try_from(alternative["link"].as_u64()?).ok()?)?;
        let has_inputs = !list(&record["inputs"]).is_empty();
        has_inputs.then(|| record["digest"].as_str().map(str::to_owned))?
    };
    records.iter().flat_map(|record| list(&record["inputs"])).any(|alternatives| {
        let digests: Vec<String> = list(&alternatives).iter().filter_map(made_from).collect();
        let different: BTreeSet<&String> = digests.iter().collect();
        different.len() < digests.len()
    })
}

fn flags(commit: &Commit, target: Option<&str>) -> String {
    let mut flags = String::new();
    for (name, value) in &commit.arguments {
        let _ = write!(flags, "--build-arg {name}={value} ");
    }
    if let Some(target) = target {
        let _ = write!(flags, "--target {target}");
    }
    flags
}

/// The file that a command writes: `/w/<token>m<number>x`.
fn written<'a>(command: &'a str, token: &str) -> Option<&'a str> {
    let path = command.split_at(command.find(&format!("/w/{token}m"))?).1;
    Some(path.split_at(path.find('x')? + 1).0)
}

/// The digest in `sha256:<hex> <mode>`. The file tells of its owner and mode itself.
fn digest(file: &str) -> Option<Key> {
    let hex = file.strip_prefix("sha256:")?.split(' ').next()?;
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(Key::from(digest))
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
