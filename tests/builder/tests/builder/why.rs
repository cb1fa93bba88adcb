//! `stoker why` against builds whose misses have known causes: a project is built and exported, one thing is
//! changed, and it is built again on a builder that knows nothing, from the first build's cache. What ran,
//! and why, follows from a model of the project that knows nothing of BuildKit's records, of git, or of how
//! `stoker why` thinks.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::env;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use builder::Random;
use serde_json::Value;

use crate::engine::{Engine, could_not_start, without_removals};
use crate::registry::Registry;
use crate::side_by_side;

/// Histories of a run that asks for no other number: one of each kind of change.
pub(crate) const HISTORIES: usize = KINDS.len();

/// What is changed between two builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Content,
    Untracked,
    Instruction,
    New,
    Removed,
    Setting,
    Argument,
    CommitArgument,
    Network,
    Base,
    Address,
    Dropped,
    NotGiven,
    NoCaches,
    NotImported,
    NoCache,
    NoCacheFilter,
    OtherBytes,
}

const KINDS: [Kind; 18] = [
    Kind::Content,
    Kind::Untracked,
    Kind::Instruction,
    Kind::New,
    Kind::Removed,
    Kind::Setting,
    Kind::Argument,
    Kind::CommitArgument,
    Kind::Network,
    Kind::Base,
    Kind::Address,
    Kind::Dropped,
    Kind::NotGiven,
    Kind::NoCaches,
    Kind::NotImported,
    Kind::NoCache,
    Kind::NoCacheFilter,
    Kind::OtherBytes,
];

#[derive(Debug, Clone)]
struct Project {
    token: String,
    base: String,
    /// Which version of the base image its tag names.
    base_version: u64,
    stages: Vec<Stage>,
    files: BTreeMap<String, String>,
    arguments: BTreeMap<String, String>,
    network: Option<&'static str>,
    address: String,
    /// Which version of the file lies at the address.
    address_version: u64,
}

#[derive(Debug, Clone)]
struct Stage {
    /// The stage that it starts from; else the base image.
    from: Option<usize>,
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
enum Line {
    Directory(usize),
    Copy {
        id: usize,
        file: String,
    },
    CopyFrom {
        id: usize,
        stage: usize,
        made: usize,
    },
    Run {
        id: usize,
        salt: u64,
    },
    /// It leaves something else each time.
    Dice(usize),
    Env {
        id: usize,
        value: u64,
    },
    Arg {
        name: String,
    },
    Add {
        id: usize,
    },
}

impl Line {
    fn id(&self) -> Option<usize> {
        match self {
            Self::Directory(id)
            | Self::Copy { id, .. }
            | Self::CopyFrom { id, .. }
            | Self::Run { id, .. }
            | Self::Dice(id)
            | Self::Add { id } => Some(*id),
            Self::Env { .. } | Self::Arg { .. } => None,
        }
    }
}

/// What a step is known by, and what it leaves.
#[derive(Debug, Clone)]
struct Modelled {
    /// Its stage, and its number there as the log has it.
    name: (usize, usize),
    line: Line,
    key: String,
    parent: String,
    /// What it copies, whatever that is called.
    content: String,
}

impl Project {
    fn new(token: &str, base: String, address: String, random: &mut Random) -> Self {
        let mut project = Self {
            token: token.to_owned(),
            base,
            base_version: 0,
            stages: Vec::new(),
            files: BTreeMap::new(),
            arguments: BTreeMap::new(),
            network: None,
            address,
            address_version: 0,
        };
        let mut id = 0;
        let count = random.between(2, 4);
        for number in 0..count {
            let from = (number > 0 && number + 1 < count && random.chance(40)).then(|| random.below(number));
            let mut lines = Vec::new();
            let mut add = |lines: &mut Vec<Line>, line: &dyn Fn(usize) -> Line| {
                id += 1;
                lines.push(line(id));
            };
            let is_last = number + 1 == count;
            if is_last {
                for stage in 0..number {
                    let made = project.last_made(stage);
                    add(&mut lines, &|id| Line::CopyFrom { id, stage, made });
                }
            }
            for _ in 0..random.between(1, 3) {
                match random.below(6) {
                    0 => add(&mut lines, &Line::Directory),
                    1 => {
                        let value = random.below(9) as u64;
                        add(&mut lines, &|id| Line::Env { id, value });
                    }
                    2 => add(&mut lines, &|id| Line::Run { id, salt: 0 }),
                    _ => {
                        let file = format!("d{number}/f{}", random.below(3));
                        add(&mut lines, &|id| Line::Copy { id, file: file.clone() });
                    }
                }
            }
            add(&mut lines, &|id| Line::Run { id, salt: 0 });
            project.stages.push(Stage { from, lines });
            for file in 0..3 {
                project.files.insert(format!("d{number}/f{file}"), format!("{token} {number} {file} 0\n"));
            }
        }
        project.files.insert("README".to_owned(), "0\n".to_owned());
        project
    }

    /// What the last command of a stage makes.
    fn last_made(&self, stage: usize) -> usize {
        let lines = self.stages[stage].lines.iter();
        let made = lines.filter(|line| matches!(line, Line::Run { .. } | Line::Dice(_)));
        made.filter_map(Line::id).next_back().unwrap_or_default()
    }

    fn mark(&self, id: usize) -> String {
        format!("{}m{id}x", self.token)
    }

    fn text(&self, line: &Line) -> String {
        let mark = |id| self.mark(id);
        match line {
            Line::Directory(id) => format!("WORKDIR /w/{}", mark(*id)),
            Line::Copy { id, file } => format!("COPY {file} /w/{}", mark(*id)),
            Line::CopyFrom { id, stage, made } => {
                format!("COPY --from=s{stage} /w/{} /w/{}", mark(*made), mark(*id))
            }
            Line::Run { id, salt } => {
                format!(
                    "RUN mkdir -p /w; (echo {salt}; export -p; cat /token $(find /w -type f | sort)) | \
                     sha256sum > /w/{}",
                    mark(*id)
                )
            }
            Line::Dice(id) => {
                format!("RUN mkdir -p /w; cat /proc/sys/kernel/random/uuid > /w/{}", mark(*id))
            }
            Line::Env { id, value } => format!("ENV E{id}={value}"),
            Line::Arg { name } => format!("ARG {name}"),
            Line::Add { id } => format!("ADD {} /w/{}", self.address, mark(*id)),
        }
    }

    fn dockerfile(&self) -> String {
        let mut text = String::new();
        for (number, stage) in self.stages.iter().enumerate() {
            let from = stage.from.map_or_else(|| self.base.clone(), |from| format!("s{from}"));
            let _ = writeln!(text, "FROM {from} AS s{number}");
            for line in &stage.lines {
                let _ = writeln!(text, "{}", self.text(line));
            }
        }
        text
    }

    /// The steps with what each is known by.
    fn model(&self) -> Vec<Modelled> {
        let mut all: Vec<Modelled> = Vec::new();
        let mut ends: Vec<(String, String, String, BTreeMap<usize, String>)> = Vec::new();
        for (number, stage) in self.stages.iter().enumerate() {
            let base = format!("base {}", self.base_version);
            let (mut key, mut files, mut settings, mut made) = match stage.from {
                Some(from) => ends[from].clone(),
                None => (base.clone(), base, String::new(), BTreeMap::new()),
            };
            let mut place = usize::from(stage.from.is_none());
            let digest = |text: String| stoker_core::names::Digest::of(text.as_bytes()).hex();
            for line in &stage.lines {
                let text = self.text(line);
                let content = match line {
                    Line::Env { .. } => {
                        settings.push_str(&text);
                        continue;
                    }
                    Line::Arg { name } => {
                        let _ = write!(
                            settings,
                            "{name}={}",
                            self.arguments.get(name).cloned().unwrap_or_default()
                        );
                        continue;
                    }
                    Line::Copy { file, .. } => self.files[file].clone(),
                    Line::CopyFrom { stage, made, .. } => ends[*stage].3[made].clone(),
                    Line::Add { .. } => self.address_version.to_string(),
                    Line::Run { .. } => format!("{settings} {:?}", self.network),
                    Line::Directory(_) | Line::Dice(_) => String::new(),
                };
                place += 1;
                let parent = key.clone();
                key = digest(format!("{parent} {text} {content}"));
                // Nothing that a command leaves tells of the network.
                let left = if let Line::Run { .. } = line { settings.clone() } else { content.clone() };
                files = digest(format!("{files} {text} {left}"));
                made.extend(line.id().map(|id| (id, files.clone())));
                let name = (number, place);
                all.push(Modelled { name, line: line.clone(), key: key.clone(), parent, content });
            }
            ends.push((key, files, settings, made));
        }
        all
    }

    /// The steps that are built of a target.
    fn needed(&self, target: usize) -> BTreeSet<usize> {
        let mut needed = BTreeSet::from([target]);
        for number in (0..=target).rev() {
            if needed.contains(&number) {
                let stage = &self.stages[number];
                needed.extend(stage.from);
                needed.extend(stage.lines.iter().filter_map(|line| match line {
                    Line::CopyFrom { stage, .. } => Some(*stage),
                    _ => None,
                }));
            }
        }
        needed
    }

    fn write(&self, directory: &Path) -> anyhow::Result<()> {
        for (path, content) in &self.files {
            let path = directory.join(path);
            std::fs::create_dir_all(path.parent().context("a file lies somewhere")?)?;
            std::fs::write(path, content)?;
        }
        Ok(std::fs::write(directory.join("Dockerfile"), self.dockerfile())?)
    }

    /// The line that leaves something else each time.
    fn dice(&self) -> Option<(usize, usize)> {
        self.lines(|line| matches!(line, Line::Dice(_))).first().copied()
    }

    /// The lines of a kind.
    fn lines(&self, is_it: impl Fn(&Line) -> bool) -> Vec<(usize, usize)> {
        let stages = self.stages.iter().enumerate();
        let lines = stages.flat_map(|(stage, it)| {
            it.lines.iter().enumerate().map(move |(place, line)| (stage, place, line))
        });
        lines.filter(|(.., line)| is_it(line)).map(|(stage, place, _)| (stage, place)).collect()
    }
}

/// A run in one history.
struct Story<'a> {
    seed: u64,
    kind: Kind,
    engine: &'a Engine,
    registry: &'a Registry,
    stoker: &'a Path,
    dir: PathBuf,
    random: Random,
    provenance: bool,
    /// The digest of the base image that moves.
    old_base: Option<String>,
}

#[derive(Debug, Default)]
struct Figures {
    histories: usize,
    right: usize,
    exact: usize,
    unknown: usize,
    wrong: usize,
    by_kind: BTreeMap<String, [usize; 3]>,
}

/// Tells causes of generated histories; true if none is wrong and few are unknown.
pub(crate) fn compare(
    seed: u64,
    histories: usize,
    engine: &Engine,
    registries: &[Registry],
    dir: &Path,
) -> anyhow::Result<bool> {
    let started = Instant::now();
    let stoker = env::current_exe()?.with_file_name("").join("../stoker");
    if !stoker.is_file() {
        return Ok(crate::skipped(
            "the causes of misses: `cargo test -p stoker-cli` makes the program that tells them",
        ));
    }
    let figures = Mutex::new(Figures::default());
    let failed = AtomicUsize::new(0);
    let jobs: Vec<usize> = (0..histories).collect();
    side_by_side(&jobs, |number| {
        let seed = seed.wrapping_add(*number as u64);
        let reported = || {
            let mut random = Random::new(seed);
            let dir = dir.join(format!("why-{seed}"));
            if dir.exists() {
                std::fs::remove_dir_all(&dir)?;
            }
            // The seed alone says what is changed, so that a history comes back whole.
            let place = |of: usize| usize::try_from(seed % of as u64).unwrap_or_default();
            let kind = KINDS[place(KINDS.len())];
            // What a command was, provenance alone proves.
            let needs = [Kind::Argument, Kind::CommitArgument, Kind::Network].contains(&kind);
            let provenance = needs || random.chance(50);
            let registry = &registries[place(registries.len())];
            Story { seed, kind, engine, registry, stoker: &stoker, dir, random, provenance, old_base: None }
                .tell(&figures)
        };
        let reported =
            reported().or_else(|error| if could_not_start(&error) { reported() } else { Err(error) });
        if let Err(error) = reported {
            failed.fetch_add(1, Ordering::Relaxed);
            println!("  causes, {seed}: FAILED: {error:#}");
        }
    });
    let figures = figures.into_inner().unwrap_or_default();
    for (kind, [right, unknown, wrong]) in &figures.by_kind {
        println!("    {kind}: {right} right, {unknown} unknown, {wrong} wrong");
    }
    let misses = figures.right + figures.unknown + figures.wrong;
    println!(
        "  causes of misses: {} histories, {misses} misses, {} right ({} exact), {} unknown, {} wrong ({:.0} s)",
        figures.histories,
        figures.right,
        figures.exact,
        figures.unknown,
        figures.wrong,
        started.elapsed().as_secs_f32()
    );
    Ok(failed.into_inner() == 0 && figures.wrong == 0 && figures.unknown * 20 <= misses)
}

impl Story<'_> {
    fn tag(&self, token: &str, name: &str) -> String {
        self.registry.reference(&format!("{token}-{name}"))
    }

    fn tell(&mut self, figures: &Mutex<Figures>) -> anyhow::Result<()> {
        let token = format!("y{:010x}", self.random.number() >> 24);
        let context = self.dir.join("context");
        std::fs::create_dir_all(&context)?;
        let base = self.engine.own_base_image_with(&token, &self.dir, &[], "")?;
        let server = Server::start()?;
        let mut before = Project::new(&token, base, server.address(&token), &mut self.random);
        self.prepare(&mut before);
        before.write(&context)?;
        git(&context, &["init", "--quiet", "--initial-branch=main"])?;
        std::fs::write(context.join(".git/info/exclude"), "untracked\n")?;
        commit(&context, "Begin")?;
        let (first, given) = (self.tag(&token, "one"), self.tag(&token, "given"));
        self.arguments(&mut before, &context)?;
        let mut exported: HashSet<String> = before.model().into_iter().map(|step| step.key).collect();
        let log = self.build(&context, &before, &token, &[], &first, None)?;
        let mut from = vec![first.clone()];
        let mut flags: Vec<String> = Vec::new();
        let mut more: Vec<String> = Vec::new();
        if self.kind == Kind::Base {
            let file = self.dir.join("before.log");
            std::fs::write(&file, &log)?;
            more.extend(["--log-before".to_owned(), file.display().to_string()]);
            let (_, digest) =
                log.split_once(&format!("{}@", before.base)).context("the log names the base")?;
            self.old_base = digest.get(..71).map(str::to_owned);
        }
        if matches!(self.kind, Kind::Dropped | Kind::NotGiven) {
            // What a build of a part leaves is a cache that has lost the rest.
            let target = self.random.below(before.stages.len() - 1);
            Engine::free(&[&token], &BTreeSet::new())?;
            self.build(&context, &before, &token, &[], &given, Some(target))?;
            from = vec![given];
            let needed = before.needed(target);
            exported = before
                .model()
                .into_iter()
                .filter(|it| needed.contains(&it.name.0))
                .map(|it| it.key)
                .collect();
            more.extend([
                if self.kind == Kind::Dropped { "--before" } else { "--other" }.to_owned(),
                first.clone(),
            ]);
        }
        Engine::free(&[&token], &BTreeSet::new())?;

        let mut after = before.clone();
        // Commits that change nothing that is built may lie between.
        for number in 0..self.random.below(3) {
            std::fs::write(context.join("README"), format!("{number} between\n"))?;
            commit(&context, "Between")?;
        }
        self.change(&mut after, &server, &mut flags, &mut from)?;
        after.write(&context)?;
        commit(&context, "Change")?;
        for number in 0..self.random.below(3) {
            std::fs::write(context.join("README"), format!("{number} after\n"))?;
            commit(&context, "After")?;
        }
        self.arguments(&mut after, &context)?;
        let second = self.tag(&token, "two");
        flags.extend(from.iter().map(|from| format!("--cache-from=type=registry,ref={from}")));
        let log = self.build(&context, &after, &token, &flags, &second, None)?;
        let reported = self.why(&context, &after, &log, &from, &second, &more)?;
        let caches = ["one", "two"].map(|name| self.registry.read(&format!("{token}-{name}")));
        let blobs = caches.iter().flatten().flat_map(buildkit_cache::Cache::blobs);
        Engine::free(&[&token], &blobs.map(|blob| blob.digest.to_string()).collect())?;
        self.judge(&before, &after, &exported, &reported, figures)
    }

    /// Puts into a project what the change needs to be there before.
    fn prepare(&mut self, project: &mut Project) {
        let stage = self.random.below(project.stages.len());
        let place = {
            let runs = project.stages[stage].lines.iter().rposition(|line| matches!(line, Line::Run { .. }));
            runs.unwrap_or_default()
        };
        let line = match self.kind {
            Kind::Argument | Kind::CommitArgument => Line::Arg { name: "GIVEN".to_owned() },
            Kind::Setting => Line::Env { id: 900, value: 0 },
            Kind::Address => Line::Add { id: 901 },
            Kind::Untracked => Line::Copy { id: 902, file: "untracked".to_owned() },
            Kind::Removed => Line::Run { id: 903, salt: 0 },
            Kind::Content => Line::Copy { id: 904, file: format!("d{stage}/f1") },
            Kind::OtherBytes => {
                let stage = self.random.below(project.stages.len() - 1);
                let made = project.last_made(stage);
                for line in &mut project.stages[stage].lines {
                    if line.id() == Some(made) {
                        *line = Line::Dice(made);
                    }
                }
                return;
            }
            _ => return,
        };
        if self.kind == Kind::Untracked {
            project.files.insert("untracked".to_owned(), "0\n".to_owned());
        }
        project.stages[stage].lines.insert(place, line);
    }

    fn arguments(&self, project: &mut Project, context: &Path) -> anyhow::Result<()> {
        if self.kind == Kind::CommitArgument {
            project
                .arguments
                .insert("GIVEN".to_owned(), git(context, &["rev-parse", "HEAD"])?.trim().to_owned());
        } else if self.kind == Kind::Argument {
            project.arguments.entry("GIVEN".to_owned()).or_insert_with(|| "2026-11-01".to_owned());
        }
        Ok(())
    }

    fn change(
        &mut self,
        project: &mut Project,
        server: &Server,
        flags: &mut Vec<String>,
        from: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let runs = project.lines(|line| matches!(line, Line::Run { .. }));
        let (stage, place) = self.random.pick(&runs).copied().context("there is a command")?;
        match self.kind {
            Kind::Content => {
                let copies = project.lines(|line| matches!(line, Line::Copy { .. }));
                let (stage, place) = self.random.pick(&copies).copied().context("there is a copy")?;
                let Line::Copy { file, .. } = project.stages[stage].lines[place].clone() else {
                    bail!("no copy")
                };
                project.files.insert(file, format!("{} changed\n", project.token));
            }
            Kind::Untracked => {
                project.files.insert("untracked".to_owned(), "1\n".to_owned());
            }
            Kind::Instruction => {
                if let Line::Run { salt, .. } = &mut project.stages[stage].lines[place] {
                    *salt = 7;
                }
            }
            Kind::New => project.stages[stage].lines.insert(place, Line::Run { id: 905, salt: 0 }),
            Kind::Removed => {
                for stage in &mut project.stages {
                    stage.lines.retain(|line| line.id() != Some(903));
                }
            }
            Kind::Setting => {
                for line in project.stages.iter_mut().flat_map(|stage| &mut stage.lines) {
                    if let Line::Env { id: 900, value } = line {
                        *value = 1;
                    }
                }
            }
            Kind::Argument => {
                project.arguments.insert("GIVEN".to_owned(), "2026-11-02".to_owned());
            }
            Kind::Network => {
                project.network = Some("none");
                flags.push("--network=none".to_owned());
            }
            Kind::Base => {
                project.base_version = 1;
                let dir = self.dir.join("moved");
                self.engine.own_base_image_with(&project.token, &dir, &[], "RUN echo moved >> /token\n")?;
            }
            Kind::Address => {
                server.change();
                project.address_version = 1;
            }
            Kind::NotImported => *from = vec![self.tag(&project.token, "nowhere")],
            Kind::NoCaches => from.clear(),
            Kind::NoCache => flags.push("--no-cache".to_owned()),
            Kind::OtherBytes => {
                let (stage, _) = project.dice().context("a stage leaves something else each time")?;
                flags.push(format!("--no-cache-filter=s{stage}"));
            }
            Kind::NoCacheFilter => {
                flags.push(format!("--no-cache-filter=s{stage}"));
            }
            Kind::CommitArgument | Kind::Dropped | Kind::NotGiven => {}
        }
        Ok(())
    }

    /// Builds, and returns the log.
    fn build(
        &self,
        context: &Path,
        project: &Project,
        token: &str,
        flags: &[String],
        export: &str,
        target: Option<usize>,
    ) -> anyhow::Result<String> {
        let output = self.dir.join("out");
        if output.exists() {
            std::fs::remove_dir_all(&output)?;
        }
        let mut command = Command::new("docker");
        command.args([
            "buildx",
            "build",
            if self.seed.is_multiple_of(2) { "--progress=plain" } else { "--progress=rawjson" },
        ]);
        command.arg(if self.provenance { "--provenance=mode=max" } else { "--provenance=false" });
        command.arg("--output").arg(format!("type=local,\"dest={}\"", output.display()));
        let how = "mode=max,image-manifest=true,oci-mediatypes=true,compression=uncompressed";
        command.arg(format!("--cache-to=type=registry,ref={export},{how}"));
        command.args(flags);
        for (name, value) in &project.arguments {
            command.args(["--build-arg", &format!("{name}={value}")]);
        }
        if let Some(target) = target {
            command.arg(format!("--target=s{target}"));
        }
        let built = without_removals(command.arg(context).stdin(Stdio::null()))?;
        let log = String::from_utf8_lossy(&built.stderr).into_owned();
        ensure!(built.status.success(), "{token}: the build failed:\n{log}");
        Ok(log)
    }

    fn why(
        &self,
        context: &Path,
        project: &Project,
        log: &str,
        from: &[String],
        export: &str,
        more: &[String],
    ) -> anyhow::Result<Value> {
        let file = self.dir.join("build.log");
        std::fs::write(&file, log)?;
        let mut command = Command::new(self.stoker);
        command.arg("why").arg("--json").arg("--log").arg(&file).arg("--git").arg(context);
        command.args(["--export", export]).args(more);
        for from in from {
            command.args(["--from", from]);
        }
        for (name, value) in &project.arguments {
            command.arg("--build-arg").arg(format!("{name}={value}"));
        }
        let provenance = self.dir.join("out/provenance.json");
        if self.provenance {
            ensure!(provenance.is_file(), "the build wrote no provenance");
            command.arg("--provenance").arg(provenance);
        }
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn judge(
        &self,
        before: &Project,
        after: &Project,
        exported: &HashSet<String>,
        reported: &Value,
        figures: &Mutex<Figures>,
    ) -> anyhow::Result<()> {
        let expected = self.expected(before, after, exported);
        let mut figures = figures.lock().map_err(|_| anyhow::anyhow!("a test panicked"))?;
        figures.histories += 1;
        let mut problems = Vec::new();
        let mut ran = BTreeSet::new();
        for miss in reported["misses"].as_array().context("there is a list")? {
            let name = place(miss["step"].as_str().unwrap_or_default()).context("a miss is a step")?;
            ran.insert(name);
            let cause = miss["cause"]["kind"].as_str().unwrap_or_default();
            let kind = format!("{:?}", self.kind);
            let is_right = expected.get(&name).is_some_and(|expected| *expected == cause)
                && (cause != "base" || miss["cause"]["before"].as_str() == self.old_base.as_deref());
            let place = if is_right { 0 } else { 1 + usize::from(cause != "unknown") };
            figures.by_kind.entry(kind).or_default()[place] += 1;
            match place {
                0 => {
                    figures.right += 1;
                    figures.exact += usize::from(miss["isExact"] == true);
                }
                1 => figures.unknown += 1,
                _ => figures.wrong += 1,
            }
            if place > 0 {
                problems.push(format!(
                    "{}: {} instead of {:?}",
                    miss["step"],
                    miss["cause"],
                    expected.get(&name)
                ));
            }
        }
        let missed: Vec<_> = expected.keys().filter(|name| !ran.contains(*name)).collect();
        let all_run = !matches!(self.kind, Kind::NoCache | Kind::NoCacheFilter | Kind::OtherBytes);
        if all_run && !missed.is_empty() {
            problems.push(format!("did not run: {missed:?}"));
        }
        if !problems.is_empty() {
            let how = if self.provenance { "with provenance" } else { "without provenance" };
            println!(
                "  causes, {} ({:?}, {how}):\n    {}\n{}",
                self.seed,
                self.kind,
                problems.join("\n    "),
                after.dockerfile()
            );
        }
        Ok(())
    }

    /// The cause of each step that runs.
    fn expected(
        &self,
        before: &Project,
        after: &Project,
        exported: &HashSet<String>,
    ) -> BTreeMap<(usize, usize), &'static str> {
        let model = after.model();
        if let Some((again, _)) = after.dice() {
            return other_bytes(after, &model, again);
        }
        let cold = matches!(self.kind, Kind::NotImported | Kind::NoCaches);
        let had: BTreeMap<String, String> =
            before.model().into_iter().map(|it| (it.name_in(before), it.content)).collect();
        let mut expected = BTreeMap::new();
        for step in &model {
            let is_base = step.parent.starts_with("base ");
            if cold {
                let cause = if self.kind == Kind::NotImported { "not-imported" } else { "not-given" };
                expected.insert(step.name, cause);
                continue;
            }
            if exported.contains(&step.key) {
                continue;
            }
            let copied_other = matches!(step.line, Line::CopyFrom { .. })
                && had.get(&step.name_in(after)).is_none_or(|content| *content != step.content);
            let follows = !is_base && !exported.contains(&step.parent) || copied_other;
            let is_of_base = is_base && step.parent != format!("base {}", before.base_version);
            let cause = if follows {
                "follows"
            } else {
                match self.kind {
                    Kind::Content => "content",
                    Kind::Untracked => "untracked",
                    Kind::Instruction => "instruction",
                    Kind::New if step.line.id() == Some(905) => "new",
                    Kind::New | Kind::Removed => "order",
                    Kind::Setting => "setting",
                    Kind::Argument | Kind::CommitArgument => "argument",
                    Kind::Network => "network",
                    Kind::Base if is_of_base => "base",
                    Kind::Address => "uncacheable",
                    Kind::Dropped => "dropped",
                    Kind::NotGiven => "not-given",
                    _ => "nothing",
                }
            };
            expected.insert(step.name, cause);
        }
        if matches!(self.kind, Kind::NoCache | Kind::NoCacheFilter) {
            // Which steps BuildKit leaves out of it is its own affair; that it was not asked is the cause of all.
            expected.extend(model.iter().map(|step| (step.name, "not-used")));
        }
        expected
    }
}

/// The causes where a stage runs again, and leaves something else for those that rest on it. Which steps upon it
/// BuildKit looks for is its own affair.
fn other_bytes(
    project: &Project,
    model: &[Modelled],
    again: usize,
) -> BTreeMap<(usize, usize), &'static str> {
    let mut others = BTreeSet::from([again]);
    for (number, stage) in project.stages.iter().enumerate() {
        others.extend(stage.from.filter(|from| others.contains(from)).map(|_| number));
    }
    let mut expected = BTreeMap::new();
    let (mut follows, last) = (false, project.stages.len() - 1);
    for step in model {
        let copies = matches!(step.line, Line::CopyFrom { stage, .. } if others.contains(&stage));
        if step.name.0 == last && (follows || copies) {
            expected.insert(step.name, if follows { "follows" } else { "other-bytes" });
            follows = true;
        } else {
            expected.insert(step.name, "not-used");
        }
    }
    expected
}

impl Modelled {
    /// What it is called in its project, wherever it stands.
    fn name_in(&self, project: &Project) -> String {
        format!("{} {}", self.name.0, project.text(&self.line))
    }
}

/// The stage and the number of a step such as `[s1 3/5] RUN make`.
fn place(name: &str) -> Option<(usize, usize)> {
    let (stage, rest) = name.strip_prefix("[s")?.split_once(' ')?;
    Some((stage.parse().ok()?, rest.split_once('/')?.0.trim().parse().ok()?))
}

fn git(directory: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").arg("-C").arg(directory).args(who).args(arguments).output()?;
    ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn commit(directory: &Path, subject: &str) -> anyhow::Result<()> {
    git(directory, &["add", "--all"])?;
    git(directory, &["commit", "--quiet", "--allow-empty", "--message", subject]).map(|_| ())
}

/// A file on a server that changes once.
struct Server {
    port: u16,
    version: std::sync::Arc<AtomicUsize>,
}

impl Server {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let version = std::sync::Arc::new(AtomicUsize::new(0));
        let reported = std::sync::Arc::clone(&version);
        // It ends with the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut request = [0; 2048];
                let _ = stream.read(&mut request);
                let body = format!("version {}\n", reported.load(Ordering::Relaxed));
                let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length:";
                let _ = write!(stream, "{head} {}\r\n\r\n{body}", body.len());
            }
        });
        Ok(Self { port, version })
    }

    fn address(&self, token: &str) -> String {
        format!("http://127.0.0.1:{}/{token}", self.port)
    }

    fn change(&self) {
        self.version.store(1, Ordering::Relaxed);
    }
}
