//! The builds of a history under one strategy: which steps ran, and how long that took.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use dockerfile_keys::{
    Context, Dockerfile, Id, Ignore, Key, Kind, Memory, Node, Options, Plan, TreeError, changed_files, find,
    parse, plan, solve,
};
use sha2::{Digest as _, Sha256};
use stoker_core::names::Scope;

use super::edit::Edit;
use super::git::Repository;
use super::history::{Content, Push};
use super::strategy::{Caches, Strategy};
use super::times::{Level, Seconds, Times};

/// What is built, and how.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The images that a build makes.
    pub(crate) images: Vec<Image>,
    /// Build arguments whose value is the commit's hash.
    pub(crate) per_commit: Vec<String>,
    /// Whether the context has the directory `.git`, as a clone does.
    pub(crate) git_directory: bool,
    /// Whether squashed branches were behind the default branch.
    pub(super) behind: bool,
    /// A change of every commit's Dockerfile.
    pub(super) edit: Option<Edit>,
    /// What every commit's `.dockerignore` names besides.
    pub(super) ignored: Vec<String>,
}

/// An image of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// The Dockerfile's path in the repository.
    pub(crate) dockerfile: String,
    /// The build context's path in the repository; empty for its root.
    pub(crate) context: String,
    pub(crate) options: Options,
}

impl Setup {
    /// A build of the working tree as it is.
    pub(crate) fn new(images: Vec<Image>, per_commit: Vec<String>) -> Self {
        Self { images, per_commit, git_directory: false, behind: false, edit: None, ignored: Vec::new() }
    }

    /// The same with a change of every commit's Dockerfile.
    pub(super) fn edited(&self, edit: Edit) -> Self {
        Self { edit: Some(edit), ..self.clone() }
    }
}

/// A push with the steps that its build may have to run.
pub(super) struct Planned<'a> {
    pub(super) push: &'a Push,
    pub(super) plan: Rc<Plan>,
    /// What each of the plan's nodes takes.
    seconds: Vec<Seconds>,
}

impl<'a> Planned<'a> {
    pub(super) fn new(push: &'a Push, plan: Rc<Plan>, times: &Times) -> Self {
        let takes = |node: &Node| node.step.as_ref().map_or(Seconds::NONE, |step| times.of(step));
        let seconds = plan.nodes.iter().map(takes).collect();
        Self { push, plan, seconds }
    }
}

/// Why a commit is not built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Skip {
    /// It has no such Dockerfile, or no such directory for the context.
    Missing,
    /// Its Dockerfile cannot be read, or has no such target.
    Unreadable(String),
}

/// Plans builds, and keeps what it has read.
pub(crate) struct Planner<'a> {
    repository: &'a Repository,
    memory: Memory,
    dockerfiles: RefCell<Dockerfiles>,
    ignores: RefCell<Ignores>,
}

/// A file that was read, or why it cannot be.
type Read<T> = Result<Rc<T>, String>;

/// By the file, if there is one, and what is ignored besides.
type Ignores = HashMap<(Option<Id>, Vec<String>), Read<Ignore>>;

type Dockerfiles = HashMap<(Id, Option<Edit>), Read<Dockerfile>>;

/// The plan of one commit, or why there is none.
pub(crate) type PlanOf = Result<Rc<Plan>, Skip>;

impl<'a> Planner<'a> {
    /// A planner that knows what an earlier run computed.
    pub(crate) fn new(repository: &'a Repository, memory: Memory) -> Self {
        let (dockerfiles, ignores) = (RefCell::default(), RefCell::default());
        Self { repository, memory, dockerfiles, ignores }
    }

    /// What has been computed.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Plans the build of a push.
    pub(super) fn plan(&self, setup: &Setup, push: &Push) -> Result<PlanOf, TreeError> {
        let tree = match push.content {
            Content::Tree(tree) => tree,
            Content::Squashed { to, .. } if !setup.behind => to,
            Content::Squashed { base, from, to } => self.repository.graft(&base, &from, &to)?,
        };
        self.plan_tree(setup, &tree, &push.commit)
    }

    /// Plans the build of a commit's tree: of those images for which it has a Dockerfile.
    pub(crate) fn plan_tree(&self, setup: &Setup, tree: &Id, commit: &str) -> Result<PlanOf, TreeError> {
        let mut plans = Vec::new();
        for image in &setup.images {
            match self.plan_image(setup, image, tree, commit)? {
                Ok(plan) => plans.push(plan),
                Err(Skip::Missing) => {}
                Err(skip) => return Ok(Err(skip)),
            }
        }
        Ok(if plans.is_empty() { Err(Skip::Missing) } else { Ok(Rc::new(Plan::join(plans))) })
    }

    fn plan_image(
        &self,
        setup: &Setup,
        image: &Image,
        tree: &Id,
        commit: &str,
    ) -> Result<Result<Plan, Skip>, TreeError> {
        let repository = self.repository;
        let Some(file) = repository.file(tree, &image.dockerfile)? else { return Ok(Err(Skip::Missing)) };
        let context = find(repository, tree, &image.context)?.filter(|entry| entry.kind == Kind::Directory);
        let Some(context) = context else { return Ok(Err(Skip::Missing)) };
        let file = match self.dockerfile(file, setup.edit.as_ref())? {
            Ok(file) => file,
            Err(problem) => return Ok(Err(Skip::Unreadable(format!("{}: {problem}", image.dockerfile)))),
        };
        let ignore = match self.ignored(setup, image, tree, &context.id)? {
            Ok(ignore) => ignore,
            Err(problem) => return Ok(Err(Skip::Unreadable(format!(".dockerignore: {problem}")))),
        };
        let build = Key::from(<[u8; 32]>::from(Sha256::digest(commit)));
        let mut options = image.options.clone();
        for name in &setup.per_commit {
            options.arguments.insert(name.clone(), commit.to_owned());
        }
        let git_directory = setup.git_directory.then_some(build).filter(|_| image.context.is_empty());
        let context = Context {
            tree: repository,
            root: context.id,
            ignore: &ignore,
            memory: &self.memory,
            git_directory,
        };
        Ok(match plan(&file, &options, context, build) {
            Ok(plan) => Ok(plan),
            Err(dockerfile_keys::PlanError::Tree(error)) => return Err(error),
            Err(error) => Err(Skip::Unreadable(format!("{}: {error}", image.dockerfile))),
        })
    }

    /// A Dockerfile, changed if the change applies to it.
    pub(super) fn dockerfile(&self, id: Id, edit: Option<&Edit>) -> Result<Read<Dockerfile>, TreeError> {
        let name = (id, edit.cloned());
        if let Some(known) = self.dockerfiles.borrow().get(&name) {
            return Ok(known.clone());
        }
        let text = self.repository.text(&id)?;
        let text = edit.and_then(|edit| edit.apply(&text)).unwrap_or(text);
        let read = parse(&text).map(Rc::new).map_err(|error| error.to_string());
        self.dockerfiles.borrow_mut().insert(name, read.clone());
        Ok(read)
    }

    /// What a commit leaves out of the build context.
    fn ignored(
        &self,
        setup: &Setup,
        image: &Image,
        tree: &Id,
        context: &Id,
    ) -> Result<Read<Ignore>, TreeError> {
        // Docker looks beside the Dockerfile first.
        let beside = self.repository.file(tree, &format!("{}.dockerignore", image.dockerfile))?;
        let ignore = match beside {
            Some(id) => Some(id),
            None => self.repository.file(context, ".dockerignore")?,
        };
        self.ignore(ignore, &setup.ignored)
    }

    /// The files of the build context that these sources take, and that differ between two commits' trees.
    pub(crate) fn changed_files(
        &self,
        setup: &Setup,
        trees: [&Id; 2],
        sources: &[String],
    ) -> Result<BTreeSet<String>, TreeError> {
        let Some(image) = setup.images.first() else { return Ok(BTreeSet::new()) };
        let of = |tree| {
            let root = find(self.repository, tree, &image.context)?.map(|entry| entry.id).unwrap_or_default();
            let ignore = self.ignored(setup, image, tree, &root)?.unwrap_or_default();
            Ok::<_, TreeError>((root, ignore))
        };
        let [before, after] = [of(trees[0])?, of(trees[1])?];
        let [before, after] = [&before, &after].map(|(root, ignore)| Context {
            tree: self.repository,
            root: *root,
            ignore,
            memory: &self.memory,
            git_directory: None,
        });
        changed_files(&before, &after, sources)
    }

    fn ignore(&self, id: Option<Id>, more: &[String]) -> Result<Read<Ignore>, TreeError> {
        let name = (id, more.to_vec());
        if let Some(known) = self.ignores.borrow().get(&name) {
            return Ok(known.clone());
        }
        let mut text = id.map_or_else(|| Ok(String::new()), |id| self.repository.text(&id))?;
        for pattern in more {
            text.extend(["\n", pattern]);
        }
        let read = Ignore::parse(&text).map(Rc::new).map_err(|error| error.to_string());
        self.ignores.borrow_mut().insert(name, read.clone());
        Ok(read)
    }

    /// Names of `ARG`s and `ENV`s whose values were changed in the Dockerfiles that were read.
    pub(super) fn restamped(&self) -> BTreeSet<String> {
        let mut values: HashMap<String, String> = HashMap::new();
        let mut changed = BTreeSet::new();
        let dockerfiles = self.dockerfiles.borrow();
        let read = dockerfiles
            .iter()
            .filter(|((_, edit), _)| edit.is_none())
            .filter_map(|(_, read)| read.as_ref().ok());
        for instruction in
            read.flat_map(|file| &file.instructions).filter(|i| ["ARG", "ENV"].contains(&&*i.name))
        {
            let Some((name, value)) = instruction.rest.split_once('=') else { continue };
            let before = values.entry(name.to_owned()).or_insert_with(|| value.to_owned());
            if before != value {
                changed.insert(name.to_owned());
            }
        }
        changed
    }
}

/// What one build ran.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ran {
    /// The numbers of the plan's nodes.
    pub(super) steps: BTreeSet<usize>,
    /// At best, mostly, at worst: from the first step's start to the last one's end.
    pub(super) seconds: [f64; 3],
}

/// Builds every push after the other, as a strategy has its caches.
pub(super) fn replay(strategy: Strategy, scope: &Scope, builds: &[Planned<'_>]) -> Vec<Ran> {
    let mut caches = Caches::new(strategy, scope.clone());
    let mut all = Vec::with_capacity(builds.len());
    for build in builds {
        let given = caches.given(build.push);
        let outcome = solve(&build.plan, |key| caches.has(&given, key));
        let kept = |node: &&Node| node.is_exported() || strategy == Strategy::LocalDisk;
        caches.built(build.push, build.plan.nodes.iter().filter(kept).map(|node| node.key));
        let seconds =
            [Level::Least, Level::Usual, Level::Most].map(|level| lasts(build, &outcome.ran, level));
        all.push(Ran { steps: outcome.ran, seconds });
    }
    all
}

/// How long a build lasts whose stages run beside each other as far as they can.
fn lasts(build: &Planned<'_>, ran: &BTreeSet<usize>, level: Level) -> f64 {
    let plan = &build.plan;
    let mut ends: HashMap<Key, f64> = HashMap::with_capacity(plan.nodes.len());
    let mut last = 0.0_f64;
    for (number, node) in plan.nodes.iter().enumerate() {
        let starts = node.rests_on().filter_map(|below| plan.nodes.get(below));
        let start = starts.filter_map(|below| ends.get(&below.key)).fold(0.0_f64, |a, b| a.max(*b));
        let takes = build.seconds.get(number).filter(|_| ran.contains(&number));
        let end = start + takes.map_or(0.0, |seconds| seconds.at(level));
        // A step that two stages share runs once: the first of them says when it ends.
        let end = *ends.entry(node.key).or_insert(end);
        last = last.max(end);
    }
    last
}
