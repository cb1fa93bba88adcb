//! The policy document: which projects Stoker serves, where their git repositories and caches are, and how eagerly
//! caches are filled and deleted. A platform engineer writes it, as `policy/stoker.yaml`.
//!
//! A document is read as a whole or not at all: [`Policy::parse`] reports every mistake in it at once, each with its
//! place. What parsed has an answer for everything: no name in it is invalid, no rule is out of reach, and no two
//! named projects share a cache repository.

mod document;
mod pattern;
mod schema;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::SignedDuration;

use crate::names::{Branch, CacheRepository, Line, ProjectName, Repository, Scope};
pub use document::{MAX_BYTES, MAX_INDENT, Mistake, Mistakes};
pub use schema::{MAXIMUM_DURATION, MINIMUM_DURATION, MINIMUM_LEASE};

use pattern::{Names, Template};

/// A policy document without mistakes.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// A project and what the policy says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The CodeBuild project.
    pub name: ProjectName,
    /// Its git repository.
    pub repository: Repository,
    /// Its default branch, where no forge event tells it.
    pub default_branch: Branch,
    /// Where its lines live, with the commits' caches and the history: what Stoker has checked.
    pub cache_repository: CacheRepository,
    /// Where its builds write, if that is not where the lines live: then nobody but Stoker has to write there.
    pub builds_repository: Option<CacheRepository>,
    /// What a merge does to main's cache.
    pub promotion: Promotion,
    /// Most bytes of layers in the cache of one line, compressed; `None` is no limit.
    pub line_budget: Option<u64>,
    /// How main's cache is filled.
    pub warm: Warm,
    /// How caches are deleted.
    pub retention: Retention,
}

impl Project {
    /// Where its builds write their exports.
    #[must_use]
    pub fn exports(&self) -> &CacheRepository {
        self.builds_repository.as_ref().unwrap_or(&self.cache_repository)
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warm {
    /// A cache of main that is older than this is filled again.
    pub stale_after: SignedDuration,
}

/// How caches are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Whether anything is deleted at all.
    pub mode: Mode,
    /// How long a cache that a line has left is kept for builds that may hold it.
    pub lease: SignedDuration,
    /// A branch's line that has not moved for so long is deleted.
    pub idle_branch: SignedDuration,
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

/// A policy could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read, or is not UTF-8.
    #[error("the policy {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The document has mistakes; each names the path.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

/// One entry of `projects`, with the defaults filled in.
#[derive(Debug, Clone)]
struct Rule {
    names: Names,
    repository: Template,
    settings: Settings,
}

/// What `defaults` and every rule can set.
#[derive(Debug, Clone)]
struct Settings {
    default_branch: Branch,
    cache_repository: Template,
    builds_repository: Option<Template>,
    promotion: Promotion,
    line_budget: Option<u64>,
    warm: Warm,
    retention: Retention,
}

impl Rule {
    /// What this rule says of a project; `None` when the name makes no valid repository.
    fn resolve(&self, name: &ProjectName) -> Option<Project> {
        Some(Project {
            name: name.clone(),
            repository: Repository::new(self.repository.of(name)).ok()?,
            default_branch: self.settings.default_branch.clone(),
            cache_repository: CacheRepository::new(self.settings.cache_repository.of(name)).ok()?,
            builds_repository: match &self.settings.builds_repository {
                Some(template) => Some(CacheRepository::new(template.of(name)).ok()?),
                None => None,
            },
            promotion: self.settings.promotion,
            line_budget: self.settings.line_budget,
            warm: self.settings.warm,
            retention: self.settings.retention,
        })
    }
}

impl Policy {
    /// Reads a document; `source` is what messages call it, such as its path.
    pub fn parse(source: &str, text: &str) -> Result<Self, Mistakes> {
        schema::parse(text).map(|rules| Self { rules }).map_err(|all| Mistakes::new(source, all))
    }

    /// Reads the document in a file.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| LoadError::Read { path: path.to_owned(), cause })?;
        Ok(Self::parse(&path.display().to_string(), &text)?)
    }

    /// The project of this name, by the first rule that matches it.
    ///
    /// `None` when no rule does, and for a name that a glob matches but that no ECR repository can be called by, such
    /// as one with a trailing `-`: such a project has no place for its caches.
    #[must_use]
    pub fn project(&self, name: &ProjectName) -> Option<Project> {
        let project = self.rule_of(name)?.resolve(name);
        if project.is_none() {
            tracing::warn!(project.name = %name, "the policy matches a project whose name makes no repository");
        }
        project
    }

    /// Every project that is built from this git repository, in the order of the rules.
    ///
    /// A [`Repository`] is in lower case, so a glob rule yields project names in lower case: `team-*` at
    /// `github.com/example/{project}` finds `team-web` for `github.com/Example/Team-Web`. A CodeBuild project whose
    /// name has upper-case letters needs a rule of its own to be found by its repository.
    #[must_use]
    pub fn projects_of(&self, repository: &Repository) -> Vec<Project> {
        let built_from = |rule: &Rule| {
            let name = match &rule.names {
                Names::One(name) => name.clone(),
                Names::Glob(_) => ProjectName::new(rule.repository.project_in(repository)?).ok()?,
            };
            let project = rule.resolve(&name)?;
            let is_its_rule = self.rule_of(&name).is_some_and(|first| std::ptr::eq(first, rule));
            (is_its_rule && project.repository == *repository).then_some(project)
        };
        self.rules.iter().filter_map(built_from).collect()
    }

    /// The project that this scope is of.
    ///
    /// `None` also for a project of a glob rule whose name is hashed in the scope: the hash does not tell it.
    #[must_use]
    pub fn project_of_scope(&self, scope: &Scope) -> Option<Project> {
        let named = self.rules.iter().filter_map(|rule| rule.names.plain()).cloned();
        let spelled = ProjectName::new(scope.to_string()).ok();
        let name = named.chain(spelled).find(|name| Scope::of(name) == *scope)?;
        self.project(&name)
    }

    /// The projects of the rules that name one, in their order.
    #[must_use]
    pub fn named_projects(&self) -> Vec<Project> {
        let named = |rule: &Rule| rule.names.plain().and_then(|name| rule.resolve(name));
        self.rules.iter().filter_map(named).collect()
    }

    /// Whether some rule is a glob, so that [`Policy::named_projects`] may not be all of them.
    #[must_use]
    pub fn has_globs(&self) -> bool {
        self.rules.iter().any(|rule| rule.names.plain().is_none())
    }

    fn rule_of(&self, name: &ProjectName) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.names.matches(name))
    }
}
