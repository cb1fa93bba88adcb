//! Loading a policy, and finding what it says of a project.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::document::Mistakes;
use super::pattern::Names;
use super::{ForkBuilds, Project, Rule, schema};
use crate::names::{CacheRepository, ProjectName, Repository, Scope};

/// A policy document without mistakes.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
    /// The rules that name a project, by its name and by its repository: a policy may have one for each of thousands.
    by_name: HashMap<ProjectName, usize>,
    by_repository: HashMap<Repository, Vec<usize>>,
    globs: Vec<usize>,
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

impl Policy {
    /// Reads a document; `source` is what messages call it, such as its path.
    pub fn parse(source: &str, text: &str) -> Result<Self, Mistakes> {
        schema::parse(text).map(Self::of_rules).map_err(|all| Mistakes::new(source, all))
    }

    fn of_rules(rules: Vec<Rule>) -> Self {
        let mut by_name = HashMap::new();
        let mut by_repository: HashMap<Repository, Vec<usize>> = HashMap::new();
        let mut globs = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let Some(name) = rule.names.plain() else {
                globs.push(index);
                continue;
            };
            by_name.entry(name.clone()).or_insert(index);
            if let Ok(repository) = Repository::new(rule.repository.as_is(name)) {
                by_repository.entry(repository).or_default().push(index);
            }
        }
        Self { rules, by_name, by_repository, globs }
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
        let rule = self.rule_of(name)?;
        // A glob may match the projects that build forks for the others: they have no caches of their own.
        if rule.names.plain().is_none() && self.builds_forks(name) {
            return None;
        }
        let project = rule.resolve(name);
        if project.is_none() {
            tracing::warn!(project.name = %name, "the policy matches a project whose name makes no repository");
        }
        project
    }

    /// Whether this project builds forks for another one.
    #[must_use]
    pub fn builds_forks(&self, name: &ProjectName) -> bool {
        self.rules.iter().any(|rule| {
            let Some(template) = &rule.settings.fork_project else { return false };
            let of_rule = match &rule.names {
                Names::One(project) => template.of(project).eq_ignore_ascii_case(name.as_str()),
                Names::Glob(_) => {
                    template.project_in(&name.as_str().to_ascii_lowercase()).is_some_and(|project| {
                        ProjectName::new(project).is_ok_and(|project| rule.names.matches(&project))
                    })
                }
            };
            of_rule && rule.settings.builds.forks.build != ForkBuilds::None
        })
    }

    /// The id that a git repository has at its forge, where a rule says one. A repository of its name and of
    /// another id is another: it was made after that was renamed or deleted.
    #[must_use]
    pub fn repository_id(&self, repository: &Repository) -> Option<&str> {
        let named = self.by_repository.get(repository).into_iter().flatten();
        named.into_iter().find_map(|&index| self.rules.get(index)?.repository_id.as_deref())
    }

    /// Every project that is built from this git repository, in the order of the rules.
    ///
    /// A [`Repository`] is in lower case but at CodeCommit, so a glob rule yields project names in lower
    /// case: `team-*` at `github.com/example/{project}` finds `team-web` for `github.com/Example/Team-Web`. A
    /// CodeBuild project whose name has upper-case letters needs a rule of its own to be found by its
    /// repository.
    #[must_use]
    pub fn projects_of(&self, repository: &Repository) -> Vec<Project> {
        let built_from = |&index: &usize| {
            let rule = &self.rules[index];
            let name = match &rule.names {
                Names::One(name) => name.clone(),
                Names::Glob(_) => ProjectName::new(rule.repository.project_in(repository.as_str())?).ok()?,
            };
            let project = rule.resolve(&name)?;
            let is_its_rule = self.rule_of(&name).is_some_and(|first| std::ptr::eq(first, rule));
            (is_its_rule && project.repository == *repository).then_some(project)
        };
        let named = self.by_repository.get(repository).into_iter().flatten();
        let mut rules: Vec<usize> = named.chain(&self.globs).copied().collect();
        rules.sort_unstable();
        rules.iter().filter_map(built_from).collect()
    }

    /// The project whose builds export to this scope of this repository.
    ///
    /// `None` also for a project of a glob rule whose name cannot be told from either, as it is hashed in the
    /// scope and in lower case in the repository.
    #[must_use]
    pub fn project_of_export(&self, repository: &CacheRepository, scope: &Scope) -> Option<Project> {
        let named = self.rules.iter().filter_map(|rule| rule.names.plain()).cloned();
        let spelled = ProjectName::new(scope.to_string()).ok();
        let in_repository = self.rules.iter().filter_map(|rule| {
            let template =
                rule.settings.builds_repository.as_ref().unwrap_or(&rule.settings.cache_repository);
            ProjectName::new(template.project_in(repository.as_str())?).ok()
        });
        let mut projects = named.chain(spelled).chain(in_repository).filter_map(|name| self.project(&name));
        projects.find(|project| project.has_scope(scope) && project.exports() == repository)
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

    /// The globs of the rules that have one, in their order.
    pub fn globs(&self) -> impl Iterator<Item = String> {
        self.globs.iter().map(|&index| self.rules[index].names.to_string())
    }

    /// Which entry of the document is a project's rule, such as ``projects[2] (`team-*`)``.
    #[must_use]
    pub fn entry_of(&self, name: &ProjectName) -> Option<String> {
        let rule = self.rule_of(name)?;
        let index = self.rules.iter().position(|known| std::ptr::eq(known, rule))?;
        Some(format!("projects[{index}] (`{}`)", rule.names))
    }

    fn rule_of(&self, name: &ProjectName) -> Option<&Rule> {
        let named = self.by_name.get(name).copied();
        let glob = self.globs.iter().copied().find(|&index| self.rules[index].names.matches(name));
        let first = named.into_iter().chain(glob).min()?;
        self.rules.get(first)
    }
}
