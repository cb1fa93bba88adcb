//! The policy document: which projects Stoker serves, where their git repositories and caches are, and how eagerly
//! caches are filled and deleted. A platform engineer writes it, as `policy/stoker.yaml`.
//!
//! A document is read as a whole or not at all: [`Policy::parse`] reports every mistake in it at once, each with its
//! place. What parsed has an answer for everything: no name in it is invalid, no rule is out of reach, and no two
//! named projects share a cache repository.

mod document;
mod load;
mod pattern;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;

use jiff::SignedDuration;
use wildmatch::WildMatch;

use crate::event::Change;
use crate::names::{
    Branch, CacheRepository, Line, MountId, Platform, ProjectName, Repository, Scope, TargetName,
};
pub use document::{MAX_BYTES, MAX_INDENT, Mistake, Mistakes};
pub use load::{LoadError, Policy};
pub use settings::{DEFAULT_BUILDER_IMAGE, DEFAULT_TOOLS_IMAGE};
pub use values::{
    MAXIMUM_DURATION, MAXIMUM_PROBATION, MINIMUM_DURATION, MINIMUM_LEASE, MINIMUM_PROBATION, MINIMUM_REFRESH,
};

use pattern::{Names, Template};

/// A project and what the policy says of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Project {
    /// The CodeBuild project.
    pub name: ProjectName,
    /// Its git repository.
    pub repository: Repository,
    /// Its default branch, where the policy names it. Forge events know better.
    pub named_default_branch: Option<Branch>,
    /// Where its lines live, with the commits' caches and the history: what Stoker has checked.
    pub cache_repository: CacheRepository,
    /// Where its builds write, if that is not where the lines live: then nobody but Stoker has to write there.
    pub builds_repository: Option<CacheRepository>,
    /// What it builds, each with caches of its own: at least one.
    pub targets: Vec<Target>,
    /// Which builds Stoker starts.
    pub builds: Builds,
    /// What builds write.
    pub export: Export,
    /// The image of BuildKit that builders are made of: characters that mean nothing to a shell, and no `,`.
    pub builder_image: String,
    /// The image whose busybox restores and saves cache mounts, of the same characters.
    pub tools_image: String,
    /// More caches that every build is given after its own, as values of `--cache-from`. They are as trusted as main.
    pub more_sources: Vec<String>,
    /// What a merge does to main's cache.
    pub promotion: Promotion,
    /// How long what a merge brought stays in main's cache, unless a build of main makes it main's own before.
    pub probation: SignedDuration,
    /// Most bytes of layers in the cache of one line, compressed; `None` is no limit.
    pub line_budget: Option<u64>,
    /// How main's cache is filled.
    pub warm: Warm,
    /// How caches are deleted.
    pub retention: Retention,
}

impl Project {
    /// Its default branch, where no forge event tells it.
    #[must_use]
    pub fn default_branch(&self) -> Branch {
        self.named_default_branch.clone().unwrap_or_else(Branch::main)
    }

    /// Where its builds write their exports.
    #[must_use]
    pub fn exports(&self) -> &CacheRepository {
        self.builds_repository.as_ref().unwrap_or(&self.cache_repository)
    }

    /// The repositories that hold its caches: lines in the one, and what builds write where that is another.
    pub fn repositories(&self) -> impl Iterator<Item = &CacheRepository> {
        [&self.cache_repository].into_iter().chain(&self.builds_repository)
    }

    /// Its lineages of caches, one for each target.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.targets.iter().map(|target| &target.scope)
    }

    /// The same, and those of its cache mounts.
    pub fn all_scopes(&self) -> impl Iterator<Item = &Scope> {
        self.scopes().chain(self.mounts().map(|mount| &mount.scope))
    }

    /// The cache mounts of all its targets.
    pub fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.targets.iter().flat_map(|target| &target.mounts)
    }

    /// The cache mount whose lines these are.
    #[must_use]
    pub fn mount(&self, scope: &Scope) -> Option<&Mount> {
        self.mounts().find(|mount| mount.scope == *scope)
    }

    /// Whether what is in this scope, caches or images of a mount, is its own.
    #[must_use]
    pub fn has_scope(&self, scope: &Scope) -> bool {
        self.all_scopes().any(|own| own == scope)
    }
}

/// An image that a project builds, for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name; `None` for a project's only image.
    pub name: Option<TargetName>,
    /// Its platform; `None` for the builder's own.
    pub platform: Option<Platform>,
    /// Where its caches are.
    pub scope: Scope,
    /// The cache mounts of its Dockerfile that are carried from build to build.
    pub mounts: Vec<Mount>,
}

/// A cache mount that builds of main save and that every build is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its id.
    pub id: MountId,
    /// `uid`, `gid` and `mode` as the Dockerfile's mount has them: with others it is another mount. Empty without any.
    pub options: String,
    /// It is not saved when it holds more bytes than this, unpacked.
    pub limit: u64,
    /// Where its images are.
    pub scope: Scope,
}

impl Target {
    /// A project's target.
    #[must_use]
    pub fn new(project: &ProjectName, name: Option<TargetName>, platform: Option<Platform>) -> Self {
        let scope = Scope::of_target(project, name.as_ref(), platform.as_ref());
        Self { name, platform, scope, mounts: Vec::new() }
    }

    /// What tells its environment variables from another target's: empty, or such as `_API` or `_API_LINUX_ARM64`.
    #[must_use]
    pub fn suffix(&self) -> String {
        suffix_of(self.name.as_ref(), self.platform.as_ref())
    }

    /// What `docker buildx bake` calls it, such as `api` or `api-linux-arm64`; `default` without name and platform.
    #[must_use]
    pub fn bake_name(&self) -> String {
        let parts: Vec<String> =
            parts_of(self.name.as_ref(), self.platform.as_ref()).map(|part| part.replace('/', "-")).collect();
        if parts.is_empty() { "default".to_owned() } else { parts.join("-") }
    }
}

fn parts_of<'p>(
    name: Option<&'p TargetName>,
    platform: Option<&'p Platform>,
) -> impl Iterator<Item = &'p str> {
    name.map(TargetName::as_str).into_iter().chain(platform.map(Platform::as_str))
}

fn suffix_of(name: Option<&TargetName>, platform: Option<&Platform>) -> String {
    let parts = parts_of(name, platform).flat_map(|part| ["_".to_owned(), part.to_ascii_uppercase()]);
    parts.collect::<String>().replace(['-', '/'], "_")
}

/// Which builds of a project Stoker starts.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the document")]
pub struct Builds {
    /// Whether it starts any. Where somebody else starts them, they ask `resolve-cache`.
    pub start: bool,
    /// Whether the push of a branch starts one. The default branch's pushes always do.
    pub on_push: bool,
    /// What of a pull request starts one, if anything. Pushes to it only do where `on_push` does not hold, or
    /// from a fork.
    pub on_pull_request: Vec<Change>,
    /// Whether the push of a tag starts one.
    pub on_tag: bool,
    /// The tags that are built then.
    pub tags: Globs,
    /// The branches that are built.
    pub branches: Globs,
    /// The branches that what a pull request brings may go to.
    pub bases: Globs,
    /// The accounts whose pushes and pull requests are built, by the ids that the forge has for them: no glob
    /// but `*`.
    pub actors: Globs,
    /// The messages of which the head must have one.
    pub messages: Globs,
    /// The files of which one must have changed.
    pub paths: Globs,
    /// What becomes of an event that does not tell its files, where `paths` asks for them.
    pub paths_unknown: PathsUnknown,
    /// The files of which none may have changed; `None` is none.
    pub skip_paths: Option<Globs>,
    /// Whether marks such as `[skip ci]` in the head's message are heeded.
    pub skip_marks: bool,
    /// Labels of a pull request that keep it from being built.
    pub skip_labels: Vec<String>,
    /// Whether draft pull requests start builds.
    pub drafts: bool,
    /// What becomes of a line's running build when a newer push of it is built.
    pub superseded: Superseded,
    /// What becomes of pull requests from forks.
    pub forks: Forks,
}

/// What becomes of an event that does not tell which files changed, where some have to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathsUnknown {
    /// It is built.
    Build,
    /// It is not.
    Skip,
}

/// What becomes of a build that a newer push has overtaken. Builds of main always end by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Superseded {
    /// It runs to its end.
    Finish,
    /// It is stopped.
    Stop,
}

/// What becomes of pull requests from forks. Their builds read main's cache and write none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forks {
    /// When they are built.
    pub build: ForkBuilds,
    /// The `CodeBuild` project that builds them: it has a role and secrets of its own. Always there unless `build` is
    /// [`ForkBuilds::None`].
    pub project: Option<ProjectName>,
    /// Ids of the forge's accounts whose approval counts, in lower case.
    pub approvers: Vec<String>,
}

/// When pull requests from forks are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkBuilds {
    /// Never.
    None,
    /// Always.
    ReadOnly,
    /// Once one of the approvers has approved exactly this head.
    AfterApproval,
}

/// Globs over branches, paths or other texts, where `*` stands for any characters, `/` included.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Globs {
    pub(crate) included: Vec<WildMatch>,
    pub(crate) excluded: Vec<WildMatch>,
}

impl Globs {
    /// Whether some glob matches, and none that begins with `!` does.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let any = |globs: &[WildMatch]| globs.iter().any(|glob| glob.matches(text));
        (self.included.is_empty() || any(&self.included)) && !any(&self.excluded)
    }

    /// Whether everything matches, as nothing is said.
    #[must_use]
    pub fn match_all(&self) -> bool {
        self.included.is_empty() && self.excluded.is_empty()
    }
}

/// What builds write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Which builds write a cache.
    pub builds: ExportBuilds,
    /// What of a build goes into it.
    pub mode: CacheMode,
    /// How layers are compressed; `None` leaves it to `BuildKit`.
    pub compression: Option<Compression>,
}

/// Which builds write a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportBuilds {
    /// All but those of forks.
    All,
    /// Only those of the default branch.
    Main,
}

/// What of a build goes into its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// Every step.
    Max,
    /// The layers of the image.
    Min,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `gzip`
    Gzip,
    /// `zstd`
    Zstd,
    /// `estargz`
    Estargz,
    /// `uncompressed`
    Uncompressed,
}

/// What a merge does to the cache of the branch that is merged into, above all to main's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promotion {
    /// The cache of the very commit that was merged joins it at once.
    Merged,
    /// No branch's bytes come to main: its own build at the merge fills its cache.
    Rebuild,
    /// As `Rebuild`, and merges between other branches bring nothing either.
    Off,
}

impl Promotion {
    /// Whether a merge brings a commit's cache into a line.
    #[must_use]
    pub fn into_line(self, line: &Line) -> bool {
        match self {
            Self::Merged => true,
            Self::Rebuild => *line != Line::Main,
            Self::Off => false,
        }
    }
}

/// How main's cache is filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// Whether main is built after a merge that no ordinary build of main has covered.
    pub after_merge: bool,
    /// A cache of main that is older than this is filled again.
    pub stale_after: SignedDuration,
    /// How often main is built from scratch, so that base images and packages do not rot in its cache; `None` is never.
    pub refresh: Option<SignedDuration>,
    /// Images of this registry, such as `library/python:3.12`; when one changes, main's cache is filled again.
    pub base_images: Vec<BaseImage>,
}

/// An image of the account's registry that Dockerfiles build upon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseImage {
    /// Its repository.
    pub repository: CacheRepository,
    /// Its tag.
    pub tag: String,
}

/// How caches are deleted.
#[derive(Debug, Clone, PartialEq)]
pub struct Retention {
    /// Whether anything is deleted at all.
    pub mode: Mode,
    /// How long a cache that a line has left is kept for builds that may hold it.
    pub lease: SignedDuration,
    /// A branch's line that has not been of use for so long is deleted.
    pub idle_branch: SignedDuration,
    /// How long a cache that a line has left is kept, to go back to; never shorter than the lease.
    pub history: SignedDuration,
    /// So many of the newest caches that main has left are kept in each scope, however old.
    pub keep_at_least: u32,
    /// Branches whose lines are never idle, such as those of releases; `None` is none.
    pub keep_branches: Option<Globs>,
    /// Tags and digests that are never deleted.
    pub pinned: Vec<String>,
    /// A cache that has no tag any more and has been of no use for so long is deleted; `None` keeps it.
    pub orphans: Option<SignedDuration>,
    /// Most bytes of one scope's caches, each layer counted once; `None` is no limit.
    pub scope_budget: Option<u64>,
    /// The same of the whole repository.
    pub repository_budget: Option<u64>,
    /// Most images that one run deletes of a repository.
    pub max_deletions: u32,
}

/// Whether a plan to delete is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The plan is printed.
    Report,
    /// The plan is printed and carried out.
    Apply,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Report => "report",
            Self::Apply => "apply",
        })
    }
}

/// One entry of `projects`, with the defaults filled in.
#[derive(Debug, Clone)]
struct Rule {
    names: Names,
    repository: Template,
    /// The repository's id at its forge, where the rule says one.
    repository_id: Option<String>,
    settings: Settings,
}

/// What `defaults` and every rule can set.
#[derive(Debug, Clone)]
struct Settings {
    default_branch: Option<Branch>,
    cache_repository: Template,
    builds_repository: Option<Template>,
    /// Empty for one image on the builder's own platform.
    targets: Vec<TargetSettings>,
    builds: Builds,
    /// `builds.forks.project`, which may hold `{project}`.
    fork_project: Option<Template>,
    export: Export,
    builder_image: String,
    tools_image: String,
    more_sources: Vec<String>,
    promotion: Promotion,
    probation: SignedDuration,
    line_budget: Option<u64>,
    warm: Warm,
    retention: Retention,
}

/// One target on one platform, as it is written.
#[derive(Debug, Clone)]
struct TargetSettings {
    name: Option<TargetName>,
    platform: Option<Platform>,
    mounts: Vec<MountSettings>,
}

#[derive(Debug, Clone)]
struct MountSettings {
    id: MountId,
    options: String,
    limit: u64,
}

impl Settings {
    fn targets_of(&self, project: &ProjectName) -> Vec<Target> {
        if self.targets.is_empty() {
            return vec![Target::new(project, None, None)];
        }
        let target = |target: &TargetSettings| {
            let TargetSettings { name, platform, mounts } = target.clone();
            let mounts = mounts.into_iter().map(|MountSettings { id, options, limit }| Mount {
                scope: Scope::of_mount(project, name.as_ref(), platform.as_ref(), &id),
                id,
                options,
                limit,
            });
            Target { mounts: mounts.collect(), ..Target::new(project, name.clone(), platform.clone()) }
        };
        self.targets.iter().map(target).collect()
    }
}

impl Rule {
    /// What this rule says of a project; `None` when the name makes no valid repository, or project for forks.
    fn resolve(&self, name: &ProjectName) -> Option<Project> {
        Some(Project {
            name: name.clone(),
            repository: Repository::new(self.repository.as_is(name)).ok()?,
            named_default_branch: self.settings.default_branch.clone(),
            cache_repository: CacheRepository::new(self.settings.cache_repository.of(name)).ok()?,
            builds_repository: match &self.settings.builds_repository {
                Some(template) => Some(CacheRepository::new(template.of(name)).ok()?),
                None => None,
            },
            targets: self.settings.targets_of(name),
            builds: Builds {
                forks: Forks {
                    project: match &self.settings.fork_project {
                        Some(template) => Some(ProjectName::new(template.of(name)).ok()?),
                        None => None,
                    },
                    ..self.settings.builds.forks.clone()
                },
                ..self.settings.builds.clone()
            },
            export: self.settings.export,
            builder_image: self.settings.builder_image.clone(),
            tools_image: self.settings.tools_image.clone(),
            more_sources: self.settings.more_sources.clone(),
            promotion: self.settings.promotion,
            probation: self.settings.probation,
            line_budget: self.settings.line_budget,
            warm: self.settings.warm.clone(),
            retention: self.settings.retention.clone(),
        })
    }
}
