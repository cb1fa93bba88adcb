//! What a build is handed: which caches to read, where to export its own, and the environment that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::cache::{self, Kind};
use crate::error::CallError;
use crate::names::{Commit, Digest, Line, Scope, Tag, TagKind};
use crate::policy::Project;
use crate::ports::{Image, ReadImages};
use crate::provenance::Provenance;

/// Each cache source costs the build one manifest and one config to import, so a build is handed only the best.
pub const MAX_SOURCES: usize = 8;
/// How many merged commits are looked up: with the lines they fit one request of 100 tags.
pub(crate) const MAX_COMMITS: usize = 90;

/// Names of the environment variables that a build sees.
pub mod variable {
    /// The flags for `docker buildx build`, ready for the command line.
    pub const FLAGS: &str = "STOKER_CACHE_FLAGS";
    /// The values for `--cache-from`, separated by spaces.
    pub const FROM: &str = "STOKER_CACHE_FROM";
    /// The value for `--cache-to`; absent for a build that must not write.
    pub const TO: &str = "STOKER_CACHE_TO";
    /// The build's line.
    pub const LINE: &str = "STOKER_LINE";
    /// The commit that the build was started for.
    pub const COMMIT: &str = "STOKER_COMMIT";
    /// The tag that the build exports to.
    pub const EXPORT: &str = "STOKER_EXPORT";
    /// The lines and commits whose caches the build reads, for people.
    pub const READS: &str = "STOKER_READS";
    /// Commits that a push or a merge brought to the build's line, for the nightly sweep.
    pub const MERGED: &str = "STOKER_MERGED";
    /// Why the build was started.
    pub const REASON: &str = "STOKER_REASON";
    /// Whose code the build runs: `trusted` or `branch`.
    pub const TRUST: &str = "STOKER_TRUST";
}

/// What a build wants to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The build's own line.
    pub line: Line,
    /// The line of the branch that its pull request is for.
    pub base: Option<Line>,
    /// Commits that the line got by a merge, the oldest first: their caches are as good as the line's own even
    /// before they have been promoted.
    pub merged: Vec<Commit>,
}

/// A cache that a build is handed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A line, or `commit/` and the start of its hash.
    pub label: String,
    /// The cache, pinned: whatever happens to the line, this is what the build reads.
    pub digest: Digest,
}

/// Resolves what a build wants to the caches that exist and that BuildKit can import, the nearest first, with one
/// request.
pub async fn resolve(
    images: &impl ReadImages,
    project: &Project,
    wanted: &Wanted,
) -> Result<Vec<Source>, CallError> {
    let scope = Scope::of(&project.name);
    let mut candidates = vec![(wanted.line.to_string(), Tag::line(&scope, &wanted.line))];
    for commit in wanted.merged.iter().rev().take(MAX_COMMITS) {
        candidates.push((format!("commit/{}", commit.short()), Tag::commit(&scope, commit)));
    }
    for line in wanted.base.iter().chain([&Line::Main]) {
        candidates.push((line.to_string(), Tag::line(&scope, line)));
    }
    let mut known = BTreeSet::new();
    candidates.retain(|(_, tag)| known.insert(tag.clone()));

    let tags: Vec<Tag> = candidates.iter().map(|(_, tag)| tag.clone()).collect();
    let found = images.images(&project.cache_repository, &tags).await?;
    let said = |image: &Image| Provenance::of_manifest(&image.manifest).unwrap_or_default();
    // What a rollback took from the line must not come back by the way of a merged commit.
    let rolled_back = found.first().and_then(Option::as_ref).and_then(|line| said(line).rolled_back);
    let mut sources: Vec<Source> = Vec::new();
    for ((label, tag), image) in candidates.into_iter().zip(found) {
        let Some(image) = image else { continue };
        let is_commit = matches!(Tag::parse(tag.as_str()), Some((_, TagKind::Commit(_))));
        if is_commit && said(&image).built.is_none_or(|built| rolled_back.is_some_and(|time| built.at < time))
        {
            tracing::info!(cache.tag = %tag, "not handed to the build: the line was rolled back since, or it is of no build");
            continue;
        }
        if let Err(why) = importable(&image.manifest) {
            tracing::warn!(cache.tag = %tag, cache.digest = %image.digest, why, "not handed to the build");
            continue;
        }
        if sources.len() < MAX_SOURCES && sources.iter().all(|source| source.digest != image.digest) {
            sources.push(Source { label, digest: image.digest });
        }
    }
    Ok(sources)
}

/// Whether BuildKit will import a cache with this manifest, as far as the manifest tells; otherwise why not.
pub fn importable(manifest: &[u8]) -> Result<(), String> {
    if manifest.len() > cache::IMPORT_LIMIT {
        return Err(format!("its manifest has {} bytes, more than BuildKit imports", manifest.len()));
    }
    match cache::classify(manifest) {
        Kind::Other { why } => Err(why),
        Kind::Cache(manifest) if manifest.config.size > cache::IMPORT_LIMIT as u64 => {
            Err(format!("its config has {} bytes, more than BuildKit imports", manifest.config.size))
        }
        Kind::Cache(_) => Ok(()),
    }
}

/// Whose code a build runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Code that is on the default branch.
    Trusted,
    /// Code of another branch of the same repository.
    Branch,
}

impl Trust {
    /// The trust of a build for this line.
    #[must_use]
    pub fn of(line: &Line) -> Self {
        if *line == Line::Main { Self::Trusted } else { Self::Branch }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trusted => "trusted",
            Self::Branch => "branch",
        })
    }
}

/// Everything a build is handed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handout {
    /// Its line.
    pub line: Line,
    /// The commit it is for, where that is known before the build.
    pub commit: Option<Commit>,
    /// Why it starts.
    pub reason: String,
    /// What it reads.
    pub sources: Vec<Source>,
    /// The commits that came to its line with what it builds.
    pub merged: Vec<Commit>,
    /// Where it exports to; `None` for a build that must not write.
    pub export: Option<Tag>,
}

impl Handout {
    /// The environment of a build of `project`. `registry` is the host that serves its repositories.
    #[must_use]
    pub fn environment(&self, registry: &str, project: &Project) -> Vec<(&'static str, String)> {
        let image = format!("{registry}/{}", project.cache_repository);
        let exports = format!("{registry}/{}", project.exports());
        let from: Vec<String> = self
            .sources
            .iter()
            .map(|source| format!("type=registry,ref={image}@{}", source.digest))
            .collect();
        // ECR takes a cache only as an image manifest, and a cache that could not be written must not fail a build.
        let to = self.export.as_ref().map(|tag| {
            format!(
                "type=registry,ref={exports}:{tag},mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true"
            )
        });
        let flags: Vec<String> = from
            .iter()
            .map(|from| format!("--cache-from {from}"))
            .chain(to.iter().map(|to| format!("--cache-to {to}")))
            .collect();
        let reads: Vec<&str> = self.sources.iter().map(|source| source.label.as_str()).collect();

        let mut environment = vec![
            (variable::FLAGS, flags.join(" ")),
            (variable::FROM, from.join(" ")),
            (variable::LINE, self.line.to_string()),
            (variable::TRUST, Trust::of(&self.line).to_string()),
            (variable::READS, reads.join(" ")),
            (variable::REASON, self.reason.clone()),
        ];
        environment.extend(to.map(|to| (variable::TO, to)));
        environment.extend(self.export.as_ref().map(|tag| (variable::EXPORT, tag.to_string())));
        environment.extend(self.commit.as_ref().map(|commit| (variable::COMMIT, commit.to_string())));
        let merged: Vec<&str> =
            self.merged.iter().rev().take(MAX_COMMITS).rev().map(Commit::as_str).collect();
        environment.extend((!merged.is_empty()).then(|| (variable::MERGED, merged.join(" "))));
        environment
    }
}

/// What a build was handed, as its environment in CodeBuild tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    /// Its line.
    pub line: Line,
    /// The commit it was started for.
    pub commit: Option<Commit>,
    /// The tag it was told to export to.
    pub export: Option<String>,
    /// The caches it was told to read.
    pub digests: BTreeSet<Digest>,
    /// The commits that came to its line with what it built.
    pub merged: Vec<Commit>,
}

impl Handed {
    /// Reads it back; `None` for a build that Stoker handed nothing.
    #[must_use]
    pub fn read(environment: &BTreeMap<String, String>) -> Option<Self> {
        let value = |name: &str| environment.get(name).map(String::as_str);
        let digests = value(variable::FROM).unwrap_or_default().split_whitespace();
        let digests = digests.filter_map(|from| Digest::new(from.rsplit_once('@')?.1).ok()).collect();
        let merged = value(variable::MERGED).unwrap_or_default().split_whitespace();
        let merged = merged.filter_map(|commit| Commit::new(commit).ok()).collect();
        Some(Self {
            merged,
            line: Line::parse(value(variable::LINE)?).ok()?,
            commit: value(variable::COMMIT).and_then(|commit| Commit::new(commit).ok()),
            export: value(variable::EXPORT).map(str::to_owned),
            digests,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Branch, ProjectName};
    use crate::policy::Policy;

    fn project(more: &str) -> Project {
        let policy =
            format!("version: 1\nprojects: [{{name: app, repository: github.com/example/app{more}}}]");
        Policy::parse("p", &policy).unwrap().named_projects().remove(0)
    }

    fn handout() -> Handout {
        let scope = Scope::of(&ProjectName::new("app").unwrap());
        Handout {
            line: Line::Branch(Branch::new("feature-a").unwrap()),
            commit: Some(Commit::new("ab".repeat(20)).unwrap()),
            reason: "push".to_owned(),
            sources: vec![Source { label: "main".to_owned(), digest: Digest::of(b"main") }],
            merged: vec![Commit::new("cd".repeat(20)).unwrap()],
            export: Some(Tag::export(&scope, "key")),
        }
    }

    #[test]
    fn the_flags_are_ready_for_the_command_line() {
        let project = project(", builds-repository: stoker/builds");
        let environment: BTreeMap<_, _> =
            handout().environment("registry.example", &project).into_iter().collect();
        assert_eq!(
            environment[variable::FLAGS],
            format!(
                "--cache-from type=registry,ref=registry.example/stoker/app@{} --cache-to type=registry,\
                 ref=registry.example/stoker/builds:app.export.key,mode=max,image-manifest=true,oci-mediatypes=true,\
                 ignore-error=true",
                Digest::of(b"main")
            )
        );
    }

    #[test]
    fn what_was_handed_reads_back() {
        let handout = handout();
        let environment = handout.environment("registry.example", &project(""));
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let handed = Handed::read(&environment).unwrap();
        assert_eq!(handed.line, handout.line);
        assert_eq!(handed.commit, handout.commit);
        assert_eq!(handed.export, handout.export.map(|tag| tag.to_string()));
        assert_eq!(handed.digests, BTreeSet::from([Digest::of(b"main")]));
        assert_eq!(handed.merged, handout.merged);
        assert_eq!(Handed::read(&BTreeMap::new()), None);
    }

    #[test]
    fn a_build_that_must_not_write_gets_no_cache_to() {
        let handout = Handout { export: None, ..handout() };
        let environment = handout.environment("registry.example", &project(""));
        assert!(
            environment.iter().all(|(name, value)| *name != variable::TO && !value.contains("--cache-to"))
        );
    }
}
