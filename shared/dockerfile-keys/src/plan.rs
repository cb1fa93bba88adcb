//! From a Dockerfile and a tree to steps and their keys: what `frontend/dockerfile/dockerfile2llb` and the operations'
//! `CacheMap` do, as far as a key depends on it.

use std::collections::BTreeMap;

use crate::context::{Context, Selection, TreeError, normal};
use crate::glob::Glob;
use crate::ignore::Ignore;
use crate::key::{Key, Maker};
use crate::made::{Made, Origin, program};
use crate::parse::{self, Dockerfile, HereDocument, Instruction};
use crate::record;
use crate::words::{self, Variables};

/// How a Dockerfile is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The stage that is wanted, by its name or number; the last one without.
    pub target: Option<String>,
    /// The values of `--build-arg`.
    pub arguments: BTreeMap<String, String>,
    /// The platform for which is built, such as `linux/amd64`.
    pub platform: String,
    /// The platform on which is built, if it is another.
    pub build_platform: Option<String>,
    /// The network of commands that name none, where one was chosen for the build: `--network`.
    pub network: Option<String>,
    /// What commands are known to have left, by their stage and their [place](Step::place) in it.
    pub left: BTreeMap<(String, usize), Left>,
}

/// All that a command left: one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its absolute path.
    pub path: String,
    /// Its content, owner and mode.
    pub content: Key,
}

impl Default for Options {
    fn default() -> Self {
        let platform = "linux/amd64".to_owned();
        let (target, build_platform, network) = (None, None, None);
        Self { target, arguments: BTreeMap::new(), platform, build_platform, network, left: BTreeMap::new() }
    }
}

/// The steps that a build may have to run, with their keys.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The nodes. Each stands after those that it rests on.
    pub nodes: Vec<Node>,
    /// What is wanted: a node for each image that is not empty.
    pub targets: Vec<usize>,
    /// What is not understood, line by line. Such a step is never found in a cache, nor is what rests on it.
    pub unknown: Vec<Unknown>,
}

impl Plan {
    /// The plan of a build of several images, such as those of several platforms. What they share is done once.
    #[must_use]
    pub fn join(plans: impl IntoIterator<Item = Self>) -> Self {
        let mut joined = Self::default();
        for plan in plans {
            let first = joined.nodes.len();
            joined.targets.extend(plan.targets.iter().map(|target| target + first));
            joined.unknown.extend(plan.unknown);
            joined.nodes.extend(plan.nodes.into_iter().map(|node| node.moved(first)));
        }
        joined.unknown.sort();
        joined.unknown.dedup();
        joined
    }
}

/// A step, an image, or a layer put upon others.
#[derive(Debug, Clone)]
pub struct Node {
    /// The key under which a cache knows it: of its operation, what it reads, and its parent's key.
    pub key: Key,
    /// What is done, whatever it is done with.
    pub operation: Key,
    /// What it reads of the context and of other nodes.
    pub content: Option<Key>,
    /// The node whose files it changes. It is known by its key, whatever it holds.
    pub parent: Option<usize>,
    /// The nodes of which it reads files. They are known by what it reads, so they have to be there before it can be
    /// looked up.
    pub inputs: Vec<usize>,
    /// What is to be run; nothing for an image and for a layer that is put upon others.
    pub step: Option<Step>,
    /// The digest of `BuildKit`'s record of it, where the Dockerfile alone decides that.
    pub record: Option<String>,
    pub(crate) made: Made,
}

impl Node {
    /// The image, if it is one.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        match &self.made {
            Made::Image { reference } => Some(reference),
            _ => None,
        }
    }

    /// Whether an export of a cache holds its result. `BuildKit` leaves out what rests on nothing, such as a `WORKDIR`
    /// right after `FROM scratch`: it runs wherever something that rests on it does.
    #[must_use]
    pub fn is_exported(&self) -> bool {
        self.step.is_none() || self.parent.is_some() || self.content.is_some()
    }

    /// The nodes that have to be there before this one can be made.
    pub fn rests_on(&self) -> impl Iterator<Item = usize> {
        self.parent.into_iter().chain(self.layer()).chain(self.inputs.iter().copied())
    }

    /// The paths of the build context that it copies, where no flag leaves out some of what they name.
    #[must_use]
    pub fn sources(&self) -> &[String] {
        match &self.made {
            Made::Copied { from: Origin::Context, sources, .. } => sources,
            _ => &[],
        }
    }

    /// The same among nodes of which so many come before its plan's own.
    fn moved(mut self, first: usize) -> Self {
        self.parent = self.parent.map(|parent| parent + first);
        self.inputs.iter_mut().for_each(|input| *input += first);
        self.made = self.made.moved(first);
        self
    }

    /// The layer that is put upon the parent, if that is what the node does.
    #[must_use]
    pub fn layer(&self) -> Option<usize> {
        self.made.layer()
    }
}

/// A node that has no key yet.
struct New {
    operation: Key,
    content: Option<Key>,
    parent: Option<usize>,
    inputs: Vec<usize>,
    step: Option<Step>,
    record: Option<String>,
    made: Made,
}

impl New {
    /// A node that rests on nothing.
    fn of(operation: Key, made: Made) -> Self {
        Self { operation, content: None, parent: None, inputs: Vec::new(), step: None, record: None, made }
    }
}

/// An instruction that makes a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its line, from 1.
    pub line: usize,
    /// The name of its stage; `stage-N` for one without a name.
    pub stage: String,
    /// Its number in its stage, as `BuildKit`'s log has it: a `FROM` of an image is the first, and triggers count, too.
    pub place: usize,
    /// Its kind.
    pub kind: StepKind,
    /// The instruction with its variables expanded, but for a `RUN`, whose shell does that; with here-documents.
    pub text: String,
}

/// The kind of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepKind {
    /// It runs a command.
    Run,
    /// It copies files.
    Copy,
    /// It copies files, unpacks archives and fetches what is elsewhere.
    Add,
    /// It makes a directory.
    Workdir,
    /// It is not understood.
    Unknown,
}

/// Something that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unknown {
    /// Its line, from 1.
    pub line: usize,
    /// What it is.
    pub problem: String,
}

/// There is nothing to be built.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The Dockerfile has no `FROM`.
    #[error("there is no FROM in it")]
    NoStage,
    /// There is no such stage.
    #[error("there is no stage `{0}` in it")]
    Target(String),
    /// A tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Computes the keys of all steps that a target needs. `build` is a key that no other build has: it goes into what is
/// never found in a cache.
pub fn plan(
    file: &Dockerfile,
    options: &Options,
    context: Context<'_>,
    build: Key,
) -> Result<Plan, PlanError> {
    let first = file.instructions.iter().position(|i| i.name == "FROM").ok_or(PlanError::NoStage)?;
    let (globals, stages) = file.instructions.split_at(first);
    let mut stages: Vec<Stage<'_>> = stages
        .chunk_by(|_, next| next.name != "FROM")
        .filter_map(|stage| stage.split_first())
        .map(|(from, body)| Stage { from, body, name: name(from), state: None })
        .collect();
    let target = match options.target.as_deref() {
        None => stages.len().saturating_sub(1),
        Some(wanted) => find(&stages, wanted, true).ok_or_else(|| PlanError::Target(wanted.to_owned()))?,
    };
    let mut planner = Planner {
        escape: file.escape,
        options,
        context,
        build,
        globals: Variables::default(),
        plan: Plan::default(),
    };
    planner.globals(globals, stages.get(target).and_then(|stage| stage.name).unwrap_or_default());
    let state = planner.stage(&mut stages, target)?;
    let mut plan = planner.plan;
    plan.targets = state.node.into_iter().collect();
    plan.unknown.sort();
    plan.unknown.dedup();
    Ok(plan)
}

struct Stage<'a> {
    from: &'a Instruction,
    body: &'a [Instruction],
    name: Option<&'a str>,
    /// What it ends with, once it has been asked for.
    state: Option<State>,
}

/// What instructions leave to those after them.
#[derive(Debug, Clone)]
struct State {
    node: Option<usize>,
    variables: Variables,
    /// Absolute, or below `?`, the directory of an image that is not known.
    directory: String,
    user: String,
    shell: Vec<String>,
    platform: String,
    triggers: Vec<Instruction>,
}

fn name(from: &Instruction) -> Option<&str> {
    let words: Vec<&str> = from.rest.split_whitespace().collect();
    match words.as_slice() {
        [_, keyword, name] if keyword.eq_ignore_ascii_case("as") => Some(name),
        _ => None,
    }
}

/// The last stage of a name, or the one of a number.
fn find(stages: &[Stage<'_>], wanted: &str, by_number: bool) -> Option<usize> {
    let named = |stage: &Stage<'_>| stage.name.is_some_and(|name| name.eq_ignore_ascii_case(wanted));
    let number = || wanted.parse().ok().filter(|number| by_number && *number < stages.len());
    stages.iter().rposition(named).or_else(number)
}

pub(crate) struct Planner<'a> {
    escape: char,
    pub(crate) options: &'a Options,
    pub(crate) context: Context<'a>,
    build: Key,
    globals: Variables,
    pub(crate) plan: Plan,
}

/// Why an instruction counts as never cached.
enum Refusal {
    Problem(String),
    Tree(TreeError),
}

impl From<TreeError> for Refusal {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl From<String> for Refusal {
    fn from(problem: String) -> Self {
        Self::Problem(problem)
    }
}

impl Planner<'_> {
    fn globals(&mut self, instructions: &[Instruction], target: &str) {
        let target_platform = self.options.platform.clone();
        let build_platform = self.options.build_platform.clone().unwrap_or_else(|| target_platform.clone());
        for (side, platform) in [("BUILD", build_platform), ("TARGET", target_platform)] {
            let mut parts = platform.split('/');
            for part in ["OS", "ARCH", "VARIANT"] {
                self.globals.set(&format!("{side}{part}"), parts.next().unwrap_or_default());
            }
            self.globals.set(&format!("{side}PLATFORM"), &platform);
        }
        self.globals.set("TARGETSTAGE", if target.is_empty() { "default" } else { target });
        for instruction in instructions {
            if instruction.name != "ARG" {
                self.note(instruction.line, format!("{} comes before the first FROM", instruction.name));
                continue;
            }
            for (name, default) in pairs(&instruction.rest, self.escape) {
                let default = default.map(|text| words::expand(&text, &self.globals, self.escape));
                match (self.options.arguments.get(&name), default) {
                    (Some(value), _) => self.globals.set(&name, value),
                    (None, Some(Ok(value))) => self.globals.set(&name, &value),
                    (None, Some(Err(problem))) => self.note(instruction.line, problem),
                    (None, None) => {}
                }
            }
        }
    }

    fn note(&mut self, line: usize, problem: String) {
        self.plan.unknown.push(Unknown { line, problem });
    }

    fn push(&mut self, new: New) -> usize {
        let New { operation, content, parent, inputs, step, record, made } = new;
        let mut key = Maker::new("node");
        key.key_of(&operation);
        for (name, part) in
            [("reads", content), ("parent", self.key_of(parent)), ("layer", self.key_of(made.layer()))]
        {
            if let Some(part) = part {
                key.text(name).key_of(&part);
            }
        }
        let key = key.key();
        self.plan.nodes.push(Node { key, operation, content, parent, inputs, step, record, made });
        self.plan.nodes.len() - 1
    }

    fn key_of(&self, node: Option<usize>) -> Option<Key> {
        node.and_then(|node| self.plan.nodes.get(node)).map(|node| node.key)
    }

    fn image(&mut self, reference: &str, platform: &str) -> usize {
        let operation = Maker::new("image").text(reference).text(platform).key();
        if let Some(known) = self.plan.nodes.iter().position(|node| node.operation == operation) {
            return known;
        }
        self.push(New::of(operation, Made::Image { reference: reference.to_owned() }))
    }

    /// What a stage ends with. Only stages that are asked for are looked at.
    fn stage(&mut self, stages: &mut [Stage<'_>], number: usize) -> Result<State, PlanError> {
        let (earlier, rest) = stages.split_at_mut(number);
        let Some(stage) = rest.first_mut() else { return Err(PlanError::NoStage) };
        if let Some(state) = &stage.state {
            return Ok(state.clone());
        }
        let (from, body) = (stage.from, stage.body);
        let name = stage.name.map_or_else(|| format!("stage-{number}"), str::to_owned);
        let (mut state, is_image) = self.from(earlier, from)?;
        let triggers = std::mem::take(&mut state.triggers);
        let mut place = usize::from(is_image);
        for instruction in triggers.iter().chain(body) {
            let before = state.node;
            self.instruction(earlier, &name, place + 1, instruction, &mut state)?;
            place += usize::from(state.node != before);
        }
        if let Some(stage) = rest.first_mut() {
            stage.state = Some(state.clone());
        }
        Ok(state)
    }

    /// What a stage starts with, and whether that is an image.
    fn from(&mut self, earlier: &mut [Stage<'_>], from: &Instruction) -> Result<(State, bool), PlanError> {
        let word = from.rest.split_whitespace().next().unwrap_or_default();
        let reference = match words::expand(word, &self.globals, self.escape) {
            Ok(reference) if !reference.is_empty() => reference,
            Ok(_) => {
                self.note(from.line, "the name of the base image is empty".to_owned());
                word.to_owned()
            }
            Err(problem) => {
                self.note(from.line, problem);
                word.to_owned()
            }
        };
        if let Some(base) = find(earlier, &reference, false) {
            return Ok((self.stage(earlier, base)?, false));
        }
        let mut platform = self.options.platform.clone();
        for flag in &from.flags {
            match flag.strip_prefix("--platform=").map(|text| words::expand(text, &self.globals, self.escape))
            {
                Some(Ok(value)) if !value.is_empty() => platform = value,
                Some(Err(problem)) => self.note(from.line, problem),
                Some(Ok(_)) | None => self.note(from.line, format!("FROM {flag} is not understood")),
            }
        }
        let is_empty = reference == "scratch";
        let node = (!is_empty).then(|| self.image(&reference, &platform));
        let directory = if is_empty { "/" } else { "?" }.to_owned();
        let shell = ["/bin/sh", "-c"].map(str::to_owned).to_vec();
        let (variables, user, triggers) = (Variables::default(), String::new(), Vec::new());
        Ok((State { node, variables, directory, user, shell, platform, triggers }, !is_empty))
    }

    /// Handles an instruction. What is not understood becomes a step that is never found in a cache.
    fn instruction(
        &mut self,
        earlier: &mut [Stage<'_>],
        stage: &str,
        place: usize,
        instruction: &Instruction,
        state: &mut State,
    ) -> Result<(), PlanError> {
        let mut step = Step {
            line: instruction.line,
            stage: stage.to_owned(),
            place,
            kind: StepKind::Unknown,
            text: instruction.text(),
        };
        let done = match instruction.name.as_str() {
            "RUN" => {
                step.kind = StepKind::Run;
                self.run(earlier, instruction, state, &step)
            }
            "COPY" | "ADD" => {
                step.kind = if instruction.name == "ADD" { StepKind::Add } else { StepKind::Copy };
                self.copy(earlier, instruction, state, &mut step)
            }
            "WORKDIR" => {
                step.kind = StepKind::Workdir;
                self.workdir(instruction, state, step.clone())
            }
            _ => self.describe(instruction, state),
        };
        let problem = match done {
            Ok(()) => return Ok(()),
            Err(Refusal::Tree(error)) => return Err(error.into()),
            Err(Refusal::Problem(problem)) => problem,
        };
        self.note(instruction.line, problem);
        let operation = Maker::new("unknown").key_of(&self.build).text(&step.text).key();
        let new = New { parent: state.node, step: Some(step), ..New::of(operation, Made::Unknown) };
        state.node = Some(self.push(new));
        Ok(())
    }

    /// Instructions that make no layer.
    fn describe(&mut self, instruction: &Instruction, state: &mut State) -> Result<(), Refusal> {
        let escape = self.escape;
        match instruction.name.as_str() {
            "ARG" => {
                for (name, default) in pairs(&instruction.rest, escape) {
                    let given = self.options.arguments.get(&name).map(String::as_str);
                    let value = match (given, default) {
                        (Some(value), _) => Some(value.to_owned()),
                        (None, Some(text)) => Some(words::expand(&text, &state.variables, escape)?),
                        (None, None) => self.globals.get(&name).map(str::to_owned),
                    };
                    if let Some(value) = value.filter(|_| !name.starts_with("BUILDKIT_SBOM_SCAN_")) {
                        state.variables.set(&name, &value);
                    }
                }
            }
            "ENV" => {
                // All values are expanded before one is set.
                let values = environment(&instruction.rest, escape)?
                    .into_iter()
                    .map(|(name, text)| Ok((name, words::expand(&text, &state.variables, escape)?)))
                    .collect::<Result<Vec<_>, String>>()?;
                for (name, value) in values {
                    state.variables.set(&name, &value);
                }
            }
            "USER" => state.user = words::expand(&instruction.rest, &state.variables, escape)?,
            "SHELL" => {
                state.shell =
                    words::json(&instruction.rest).ok_or("SHELL wants a list in JSON".to_owned())?;
            }
            "ONBUILD" => state.triggers.push(parse::trigger(instruction, escape)),
            "CMD" | "ENTRYPOINT" | "EXPOSE" | "HEALTHCHECK" | "LABEL" | "MAINTAINER" | "STOPSIGNAL"
            | "VOLUME" => {}
            other => return Err(format!("{other} is not understood").into()),
        }
        Ok(())
    }

    fn workdir(&mut self, instruction: &Instruction, state: &mut State, step: Step) -> Result<(), Refusal> {
        let path = words::expand(&instruction.rest, &state.variables, self.escape)?;
        state.directory = absolute(&state.directory, &path);
        if state.directory == "/" {
            return Ok(());
        }
        let mut operation = Maker::new("mkdir");
        operation.text(&state.directory).text(&state.user);
        let made = Made::Directory { path: state.directory.clone() };
        let step = Some(Step { text: format!("WORKDIR {path}"), ..step });
        let record = record::directory(&state.directory).filter(|_| state.user.is_empty());
        state.node =
            Some(self.push(New { parent: state.node, step, record, ..New::of(operation.key(), made) }));
        Ok(())
    }

    /// The stage or image that `from` names.
    fn origin(&mut self, earlier: &mut [Stage<'_>], from: &str, platform: &str) -> Result<Origin, PlanError> {
        if let Some(stage) = find(earlier, from, true) {
            return Ok(Origin::Node(self.stage(earlier, stage)?.node));
        }
        if from == "scratch" {
            return Ok(Origin::Node(None));
        }
        Ok(Origin::Node(Some(self.image(from, platform))))
    }

    fn run(
        &mut self,
        earlier: &mut [Stage<'_>],
        instruction: &Instruction,
        state: &mut State,
        step: &Step,
    ) -> Result<(), Refusal> {
        let arguments = command(instruction, &state.shell);
        let mut operation = Maker::new("run");
        operation.texts(&arguments).text(&state.directory).text(&state.user).text(&state.platform);
        for (name, value) in state.variables.iter() {
            operation.text("env").text(name).text(value);
        }
        let mut inputs = Vec::new();
        let mut mounted = Maker::new("mounted");
        let mut binds = false;
        if !instruction.flags.iter().any(|flag| flag.starts_with("--network")) {
            operation.texts(self.options.network.as_slice());
        }
        for flag in &instruction.flags {
            let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
            match name {
                "--network" | "--security" | "--device" => {
                    operation.text(flag);
                }
                "--mount" => {
                    let mount = Mount::parse(&words::expand(value, &state.variables, self.escape)?)?;
                    operation.text("mount").texts(&mount.described(&state.directory));
                    let from = match (mount.from.as_str(), mount.kind.as_str()) {
                        ("", "bind") => Origin::Context,
                        ("", _) | (_, "secret" | "ssh" | "tmpfs") => continue,
                        (from, _) => self.origin(earlier, from, &state.platform).map_err(refusal)?,
                    };
                    let content = self.content_at(&from, &mount.source, &mut inputs)?;
                    mounted.key_of(&content.ok_or_else(|| not_there(&mount.source))?);
                    binds = true;
                }
                _ => return Err(format!("RUN {flag} is not understood").into()),
            }
        }
        let shell = arguments.last().cloned().unwrap_or_default();
        let reads = program(&shell, &state.directory).filter(|_| !binds);
        let (operation, content) = (operation.key(), binds.then(|| mounted.key()));
        let (parent, step, made) = (state.node, Some(step.clone()), Made::Command { reads });
        state.node = Some(self.push(New { operation, content, parent, inputs, step, record: None, made }));
        Ok(())
    }

    /// What lies at a path of an origin, and the origin as an input.
    fn content_at(
        &self,
        from: &Origin,
        path: &str,
        inputs: &mut Vec<usize>,
    ) -> Result<Option<Key>, TreeError> {
        match from {
            Origin::Context => Ok(self.context.source(path, Selection::default())?.map(|found| found.key)),
            Origin::Node(node) => {
                inputs.extend(*node);
                self.content(*node, &format!("/{}", normal(path)), None).map(Some)
            }
        }
    }

    fn copy(
        &mut self,
        earlier: &mut [Stage<'_>],
        instruction: &Instruction,
        state: &mut State,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        let flags = CopyFlags::parse(instruction, &state.variables, self.escape)?;
        let words = words::json(&instruction.rest)
            .unwrap_or_else(|| instruction.rest.split_whitespace().map(str::to_owned).collect());
        let mut documents = instruction.here_documents.iter();
        let mut paths = Vec::new();
        let mut inline = Vec::new();
        for word in &words {
            if parse::operator(word).is_some() {
                inline.extend(documents.next());
            } else {
                paths.push(words::expand(word, &state.variables, self.escape)?);
            }
        }
        let to = paths.pop().filter(|_| words.len() > 1);
        let to = to.ok_or_else(|| format!("{} needs a source and a target", instruction.name))?;
        step.text = [&*instruction.name]
            .into_iter()
            .chain(instruction.flags.iter().map(String::as_str))
            .chain(paths.iter().map(String::as_str))
            .chain([to.as_str()])
            .collect::<Vec<_>>()
            .join(" ");

        let mut destination = absolute(&state.directory, &to);
        if (to.ends_with('/') || to.ends_with("/.") || to == "." || to.is_empty())
            && !destination.ends_with('/')
        {
            destination.push('/');
        }
        let mut operation = Maker::new("copy");
        operation.text(&destination).text(&flags.described).bool(step.kind == StepKind::Add);
        let from = match &flags.from {
            None => Origin::Context,
            Some(from) => self.origin(earlier, from, &state.platform).map_err(refusal)?,
        };
        let mut inputs = Vec::new();
        let mut copied = Maker::new("copied");
        let mut sources = Vec::new();
        for path in &paths {
            if step.kind == StepKind::Add && is_remote(path) {
                // What lies at an address is taken to stay the same, as an image is.
                copied.text("remote").text(path);
                continue;
            }
            operation.text(path.trim_end_matches('/').rsplit('/').next().unwrap_or_default());
            let content = self.copied(&from, path, &flags, &mut inputs)?;
            copied.key_of(&content.ok_or_else(|| not_there(path))?);
            sources.push(path.clone());
        }
        for document in inline {
            operation.text("document").text(&document.name);
            copied.text(&document_text(document, &state.variables)?);
        }
        let is_whole = sources.len() == words.len() - 1 && flags.is_plain;
        let sources = if is_whole { sources } else { Vec::new() };
        let record = record::copied(&sources, &destination).filter(|_| flags.described.is_empty());
        let made = Made::Copied { from, sources, to: destination };
        let parent = if flags.link { None } else { state.node };
        let (operation, content, step) = (operation.key(), Some(copied.key()), Some(step.clone()));
        let layer = self.push(New { operation, content, parent, inputs, step, record, made });
        state.node = Some(match (flags.link, state.node) {
            (true, Some(below)) => self.put_upon(below, layer),
            _ => layer,
        });
        Ok(())
    }

    /// `COPY --link`: the layer is made for itself and put upon what was there.
    fn put_upon(&mut self, below: usize, layer: usize) -> usize {
        let new = New::of(Maker::new("merge").key(), Made::Merged { layer });
        self.push(New { parent: Some(below), ..new })
    }

    fn copied(
        &self,
        from: &Origin,
        path: &str,
        flags: &CopyFlags,
        inputs: &mut Vec<usize>,
    ) -> Result<Option<Key>, TreeError> {
        if !matches!(from, Origin::Context) || (flags.excludes.is_empty() && !flags.parents) {
            return self.content_at(from, path, inputs);
        }
        let exclude = (!flags.excludes.is_empty()).then_some(&flags.excludes);
        if flags.parents {
            let (root, pattern) = path.split_once("/./").unwrap_or(("", path));
            let (root, inside) = (normal(root), normal(pattern));
            let pattern = if root.is_empty() { inside.clone() } else { format!("{root}/{inside}") };
            let Some(include) = Glob::ignore(&pattern) else { return Ok(None) };
            let selection = Selection { exclude, include: Some(&include), only: None };
            return Ok(self.context.at(&root, selection)?.map(|found| found.key));
        }
        let selection = Selection { exclude, ..Selection::default() };
        Ok(self.context.source(path, selection)?.map(|found| found.key))
    }
}

fn refusal(error: PlanError) -> Refusal {
    match error {
        PlanError::Tree(error) => Refusal::Tree(error),
        other => Refusal::Problem(other.to_string()),
    }
}

fn not_there(path: &str) -> Refusal {
    Refusal::Problem(format!("`{path}` is not in the build context, or is ignored"))
}

fn is_remote(path: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@"].iter().any(|scheme| path.starts_with(scheme))
}

/// A path seen from a directory.
fn absolute(directory: &str, path: &str) -> String {
    if path.starts_with('/') || directory.starts_with('/') {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") };
        return format!("/{}", normal(&path));
    }
    match normal(path).as_str() {
        "" => directory.to_owned(),
        path => format!("{directory}/{path}"),
    }
}

/// What a `RUN` runs.
fn command(instruction: &Instruction, shell: &[String]) -> Vec<String> {
    let documents = &instruction.here_documents;
    if documents.is_empty()
        && let Some(list) = words::json(&instruction.rest)
    {
        return list;
    }
    let command = match documents.as_slice() {
        [document] if parse::operator(&instruction.rest).is_some() => {
            let text = document.text();
            if text.starts_with("#!") {
                return vec![format!("/dev/pipes/{}", document.name), text];
            }
            text
        }
        documents => {
            let mut command = instruction.rest.clone();
            for document in documents {
                command.push('\n');
                command.push_str(&document.content);
                command.push_str(&document.name);
            }
            command
        }
    };
    shell.iter().cloned().chain([command]).collect()
}

fn document_text(document: &HereDocument, variables: &Variables) -> Result<String, String> {
    let text = document.text();
    if document.expand { words::expand_document(&text, variables) } else { Ok(text) }
}

/// The names of an `ARG`, each with its default.
fn pairs(rest: &str, escape: char) -> Vec<(String, Option<String>)> {
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.clone(), None),
    };
    words::split(rest, escape).iter().map(pair).collect()
}

/// The names of an `ENV`, each with its value: `A=1 B=2`, or `A 1` as it once was.
fn environment(rest: &str, escape: char) -> Result<Vec<(String, String)>, String> {
    let words = words::split(rest, escape);
    if !words.first().is_some_and(|first| first.contains('=')) {
        let (name, value) =
            rest.split_once(char::is_whitespace).ok_or_else(|| format!("ENV {rest} has no value"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| {
        let (name, value) = word.split_once('=').ok_or_else(|| format!("ENV {word} has no value"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

/// The flags of a `COPY` or `ADD`.
#[derive(Debug)]
struct CopyFlags {
    from: Option<String>,
    /// The layer is made for itself. With `--chmod` none is, whatever `--link` says.
    link: bool,
    parents: bool,
    excludes: Ignore,
    /// No flag changes which files are copied.
    is_plain: bool,
    /// What of them is part of the key.
    described: String,
}

impl CopyFlags {
    fn parse(instruction: &Instruction, variables: &Variables, escape: char) -> Result<Self, Refusal> {
        let mut flags = Self {
            from: None,
            link: false,
            parents: false,
            excludes: Ignore::default(),
            is_plain: instruction.name == "COPY",
            described: String::new(),
        };
        let (mut excludes, mut has_mode) = (Vec::new(), false);
        for flag in &instruction.flags {
            let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
            let value = words::expand(value, variables, escape)?;
            let is_on = ["", "true", "1"].contains(&value.as_str());
            match (name, instruction.name.as_str()) {
                ("--from", "COPY") => {
                    flags.from = Some(value);
                    continue;
                }
                ("--link", _) => {
                    flags.link = is_on;
                    continue;
                }
                ("--parents", "COPY") => flags.parents = is_on,
                ("--chmod", _) => has_mode = !value.is_empty(),
                ("--exclude", _) => excludes.push(value.clone()),
                ("--chown", _) | ("--checksum" | "--keep-git-dir" | "--unpack", "ADD") => {}
                _ => return Err(format!("{} {flag} is not understood", instruction.name).into()),
            }
            flags.is_plain &= !["--parents", "--exclude"].contains(&name);
            flags.described.extend([name, "=", &value, "\n"]);
        }
        flags.link &= !has_mode;
        flags.excludes = Ignore::excludes(excludes.iter().map(String::as_str))
            .map_err(|error| format!("--exclude={} is no pattern", error.pattern))?;
        Ok(flags)
    }
}

/// A cache mount of a Dockerfile that a builder keeps under its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheMount {
    /// Its `id`, or else its `target`.
    pub id: String,
    /// Its `uid`, `gid` and `mode`, which make it another mount of the same id: as they are, between commas.
    pub options: String,
}

/// The cache mounts of all `RUN`s, each once; of those with variables in them nobody knows the id, and one
/// with `from` begins as what that is.
#[must_use]
pub fn cache_mounts(file: &Dockerfile) -> Vec<CacheMount> {
    let runs = file.instructions.iter().filter(|instruction| instruction.name == "RUN");
    let flags = runs.flat_map(|run| &run.flags).filter_map(|flag| flag.strip_prefix("--mount="));
    let mounts = flags.filter(|flag| !flag.contains('$')).filter_map(|flag| Mount::parse(flag).ok());
    let mounts = mounts.filter(|mount| mount.kind == "cache" && mount.from.is_empty());
    let mut found: Vec<CacheMount> = mounts
        .map(|mount| {
            let is_option =
                |option: &&String| ["uid=", "gid=", "mode="].iter().any(|name| option.starts_with(name));
            let options: Vec<&str> = mount.others.iter().filter(is_option).map(String::as_str).collect();
            let id = if mount.id.is_empty() { mount.target.clone() } else { mount.id };
            CacheMount { id, options: options.join(",") }
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// A `--mount` of a `RUN`.
#[derive(Debug, Default)]
struct Mount {
    kind: String,
    from: String,
    source: String,
    target: String,
    id: String,
    sharing: String,
    others: Vec<String>,
}

impl Mount {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let mut mount = Self { kind: "bind".to_owned(), ..Self::default() };
        for field in text.split(',') {
            let field = field.trim();
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            match name.to_ascii_lowercase().as_str() {
                "type" => value.clone_into(&mut mount.kind),
                "from" => value.clone_into(&mut mount.from),
                "source" | "src" => value.clone_into(&mut mount.source),
                "target" | "dst" | "destination" => value.clone_into(&mut mount.target),
                "id" => value.clone_into(&mut mount.id),
                "sharing" => value.clone_into(&mut mount.sharing),
                "readonly" | "ro" | "readwrite" | "rw" | "mode" | "uid" | "gid" | "required" | "env"
                | "size" => mount.others.push(field.to_owned()),
                _ => return Err(format!("RUN --mount with `{field}` is not understood").into()),
            }
        }
        match mount.kind.as_str() {
            "bind" | "cache" | "secret" | "ssh" | "tmpfs" => Ok(mount),
            kind => Err(format!("RUN --mount=type={kind} is not understood").into()),
        }
    }

    /// What of the mount is part of the key. Which cache it is, is not, nor what a secret holds.
    fn described(&self, directory: &str) -> Vec<String> {
        let target = absolute(directory, &self.target);
        let mut parts = vec![self.kind.clone(), target];
        match self.kind.as_str() {
            "cache" => {
                let is_default = (self.id.is_empty() || self.id == self.target)
                    && (self.sharing.is_empty() || self.sharing == "shared");
                parts.push(if is_default { "default" } else { "named" }.to_owned());
            }
            "secret" | "ssh" => parts.push(self.id.clone()),
            _ => {}
        }
        parts.extend(self.others.iter().cloned());
        parts
    }
}
