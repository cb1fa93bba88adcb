//! Globs over project names, and names of repositories and projects with `{project}` in them.

use std::fmt;

use wildmatch::WildMatch;

use crate::names::ProjectName;

/// Stands for the project's name in lower case.
pub(super) const PROJECT: &str = "{project}";

/// The projects that a rule is for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Names {
    /// The project of this name.
    One(ProjectName),
    /// Every project whose name matches.
    Glob(WildMatch),
}

impl Names {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let is_glob_char = |c: char| c.is_ascii_alphanumeric() || "-_*?".contains(c);
        if !text.contains(['*', '?']) {
            ProjectName::new(text).map(Self::One).map_err(|e| e.to_string())
        } else if text.len() <= 150 && text.chars().all(is_glob_char) && !text.starts_with(['-', '_']) {
            Ok(Self::Glob(WildMatch::new(text)))
        } else {
            let rule = "up to 150 letters, digits, `-` and `_`, with `*` for any characters and `?` for one";
            Err(format!("not a glob over project names: {rule}"))
        }
    }

    pub(super) fn plain(&self) -> Option<&ProjectName> {
        match self {
            Self::One(name) => Some(name),
            Self::Glob(_) => None,
        }
    }

    pub(super) fn matches(&self, name: &ProjectName) -> bool {
        match self {
            Self::One(own) => own == name,
            Self::Glob(glob) => glob.matches(name.as_str()),
        }
    }

    /// Whether these match a name that is this one but for upper and lower case.
    pub(super) fn may_match(&self, name: &ProjectName) -> bool {
        match self {
            Self::One(own) => own.as_str().eq_ignore_ascii_case(name.as_str()),
            Self::Glob(glob) => WildMatch::new_case_insensitive(&glob.pattern()).matches(name.as_str()),
        }
    }

    /// Whether these certainly match all that `other` matches.
    pub(super) fn cover(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::One(name)) => self.matches(name),
            (Self::One(_), Self::Glob(_)) => false,
            // A `*` that spans the other's wildcards spans what they stand for; a `?` might meet a `*`.
            (Self::Glob(glob), Self::Glob(narrow)) => {
                glob == narrow || (!glob.pattern_chars().contains(&'?') && glob.matches(&narrow.pattern()))
            }
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(name) => name.fmt(f),
            Self::Glob(glob) => glob.fmt(f),
        }
    }
}

/// The name of a repository or of a project, with `{project}` where the project's name goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(String);

impl Template {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn has_project(&self) -> bool {
        self.0.contains(PROJECT)
    }

    /// Whether this is the project's name and nothing else.
    pub(super) fn is_project(&self) -> bool {
        self.0 == PROJECT
    }

    /// The name for one project.
    pub(super) fn of(&self, project: &ProjectName) -> String {
        self.0.replace(PROJECT, &project.as_str().to_ascii_lowercase())
    }

    /// The same with the project's name as it is: for git repositories, whose forges may tell upper and lower
    /// case apart.
    pub(super) fn as_is(&self, project: &ProjectName) -> String {
        self.0.replace(PROJECT, project.as_str())
    }

    /// The only name that [`Template::of`] or [`Template::as_is`] can have made this repository from, if one did.
    pub(super) fn project_in<'r>(&self, repository: &'r str) -> Option<&'r str> {
        let template = self.0.to_ascii_lowercase();
        let places = template.matches(PROJECT).count();
        let literal = template.len() - places * PROJECT.len();
        let start = template.find(PROJECT)?;
        let length = repository.len().checked_sub(literal)? / places;
        repository.get(start..start + length)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
