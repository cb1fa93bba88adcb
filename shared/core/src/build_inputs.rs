//! What a build is given: which caches to read, where to export its own, and the environment that says so.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::json;

use crate::error::chain;
use crate::event::MAX_COMMITS;
use crate::mounts::input::{MountInput, PartMounts, bake_files, notes, save};
use crate::names::{Commit, Digest, Line, Scope, Tag};
use crate::policy::{CacheMode, Compression, ExportBuilds, Project, Target};
use crate::request::{Request, Subject, Trust};

/// Each cache that is joined costs a start one config to read, so a build is given only the nearest.
pub const MAX_SOURCES: usize = 8;

/// Bytes that a file for bake may have. Linux runs no program with a variable of more than 128 KiB: a build
/// that was given one would fail in its first command.
const MAX_BAKE: usize = 100_000;

/// Names of the environment variables that a build sees. Those marked with (*) are there once for each target, with
/// [`Target::suffix`] at the end of their names.
pub mod variable {
    /// (*) The flags for `docker buildx build`, ready for the command line.
    pub const FLAGS: &str = "STOKER_CACHE_FLAGS";
    /// (*) The values for `--cache-from`, separated by spaces.
    pub const FROM: &str = "STOKER_CACHE_FROM";
    /// (*) The value for `--cache-to`; absent for a build that must not write.
    pub const TO: &str = "STOKER_CACHE_TO";
    /// (*) The caches to read as plain references, separated by spaces, for tools with flags of their own.
    pub const REFS: &str = "STOKER_CACHE_REFS";
    /// (*) The reference to export to; absent for a build that must not write.
    pub const EXPORT_REF: &str = "STOKER_EXPORT_REF";
    /// The flags for `docker buildx create`: a builder that exports registry caches, of the BuildKit that the
    /// policy names.
    pub const BUILDER: &str = "STOKER_BUILDER_FLAGS";
    /// A file for `docker buildx bake --file`: the caches of every target. Absent where it would be too large
    /// for a variable.
    pub const BAKE: &str = "STOKER_BAKE";
    /// A file for `docker buildx bake --file`: restores the cache mounts that the build is given. Absent without any.
    pub const RESTORE_MOUNTS: &str = "STOKER_RESTORE_MOUNTS";
    /// The same: saves the mounts. Absent for a build that must not, and where nothing is carried.
    pub const SAVE_MOUNTS: &str = "STOKER_SAVE_MOUNTS";
    /// What the build is given of each mount, or why nothing, for people.
    pub const MOUNTS: &str = "STOKER_MOUNTS";
    /// The images that mounts are restored from, as scope, `@` and digest, separated by spaces.
    pub const MOUNTS_GIVEN: &str = "STOKER_MOUNTS_GIVEN";
    /// The tags that mounts are saved to, separated by spaces.
    pub const MOUNTS_EXPORT: &str = "STOKER_MOUNTS_EXPORT";
    /// The build's line.
    pub const LINE: &str = "STOKER_LINE";
    /// The commit that the build was started for.
    pub const COMMIT: &str = "STOKER_COMMIT";
    /// The tags that the build exports to, one for each target, separated by spaces.
    pub const EXPORT: &str = "STOKER_EXPORT";
    /// The lines and commits whose caches the build reads, for people.
    pub const READS: &str = "STOKER_READS";
    /// The digests of those that were joined for it, separated by spaces.
    pub const JOINED: &str = "STOKER_JOINED";
    /// Commits that a push or a merge brought to the build's line, for the nightly reconciliation.
    pub const MERGED: &str = "STOKER_MERGED";
    /// When the forge got the push, where it says so.
    pub const PUSHED_AT: &str = "STOKER_PUSHED_AT";
    /// There where the build is from scratch: its cache takes the place of its line's.
    pub const REFRESH: &str = "STOKER_REFRESH";
    /// A digest over the base images that the policy names, as they were when the build was started.
    pub const BASES: &str = "STOKER_BASES";
    /// Why the build was started.
    pub const REASON: &str = "STOKER_REASON";
    /// Whose code the build runs: `trusted`, `branch` or `fork`.
    pub const TRUST: &str = "STOKER_TRUST";
}

/// A cache that a build may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A line, or `commit/` and the start of its hash.
    pub label: String,
    /// The cache, pinned: whatever happens to the line, this is what the build reads.
    pub digest: Digest,
}

/// What a build reads for one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    /// The caches that it may read, the nearest first.
    pub sources: Vec<Source>,
    /// The one that it is given: one of them, or their join. BuildKit loses links between caches that it is given side
    /// by side, so each target gets one.
    pub given: Option<Digest>,
    /// What it is given of each of the target's mounts, in their order; empty where nobody has looked.
    pub mounts: Vec<MountInput>,
}

/// What a build is given for one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The target.
    pub target: Target,
    /// What it reads.
    pub reads: Reads,
    /// Where it exports to; `None` where it must not write.
    pub export: Option<Tag>,
}

/// Everything a build is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildInputs {
    /// Its line.
    pub line: Line,
    /// The commit it is for, where that is known before the build.
    pub commit: Option<Commit>,
    /// Why it starts.
    pub reason: String,
    /// Its targets.
    pub parts: Vec<Part>,
    /// The commits that came to its line with what it builds.
    pub merged: Vec<Commit>,
    /// When the forge got the push.
    pub pushed_at: Option<Timestamp>,
    /// Whether it is from scratch.
    pub refresh: bool,
    /// A digest over the base images.
    pub bases: Option<String>,
}

/// Whether a build of this line writes a cache.
#[must_use]
pub fn exports(project: &Project, line: &Line, trust: Trust) -> bool {
    let is_wanted = match line {
        Line::Main => true,
        Line::Branch(_) | Line::PullRequest(_) => project.export.builds == ExportBuilds::All,
        Line::GitTag(_) => false,
    };
    is_wanted && trust != Trust::Fork
}

/// The tag for a build's export: of 128 bits that nobody can guess, so that no other build can write it first. `None`
/// where the system has no such bits; the build then writes no cache.
#[must_use]
pub fn export_tag(scope: &Scope, subject: &Subject) -> Option<Tag> {
    let start = match subject {
        Subject::Commit(commit) => commit.short(),
        Subject::Head { .. } => "head",
    };
    let mut secret = [0; 16];
    if let Err(error) = getrandom::fill(&mut secret) {
        tracing::error!(error = chain(&error), %scope, "the build gets no tag to write to");
        return None;
    }
    Some(Tag::export(scope, &format!("{start}-{}", hex::encode(secret))))
}

impl BuildInputs {
    /// What a build that is asked for is given, with what it reads for each target of the project.
    #[must_use]
    pub fn of(project: &Project, request: &Request, reads: Vec<Reads>) -> Self {
        let (commit, refresh, bases) = match &request.subject {
            Subject::Commit(commit) => (Some(commit.clone()), false, None),
            Subject::Head { refresh, bases, .. } => (None, *refresh, bases.clone()),
        };
        let writes = exports(project, &request.wanted.line, request.trust);
        let reads = reads.into_iter().chain(std::iter::repeat_with(Reads::default));
        let saves = writes && request.wanted.line == Line::Main;
        let parts = project.targets.iter().zip(reads).map(|(target, mut reads)| {
            if saves {
                save(&target.mounts, &mut reads.mounts, |scope| export_tag(scope, &request.subject));
            }
            let export = writes.then(|| export_tag(&target.scope, &request.subject)).flatten();
            Part { export, target: target.clone(), reads }
        });
        Self {
            line: request.wanted.line.clone(),
            reason: request.reason.clone(),
            parts: parts.collect(),
            merged: request.wanted.merged.clone(),
            pushed_at: request.pushed_at,
            commit,
            refresh,
            bases,
        }
    }

    /// The environment of a build of `project`. `registry` is the host that serves its repositories.
    #[must_use]
    pub fn environment(&self, registry: &str, project: &Project) -> Vec<(String, String)> {
        let mut environment = Vec::new();
        let mut bake = serde_json::Map::new();
        for part in &self.parts {
            let Flags { from, to, refs, export_ref } = part.flags(registry, project);
            let flags = from.iter().map(|from| format!("--cache-from {from}"));
            let flags: Vec<String> = flags.chain(to.iter().map(|to| format!("--cache-to {to}"))).collect();
            let mut say = |name: &str, value: String| {
                environment.push((format!("{name}{}", part.target.suffix()), value));
            };
            say(variable::FLAGS, flags.join(" "));
            say(variable::FROM, from.join(" "));
            say(variable::REFS, refs.join(" "));
            if let (Some(to), Some(export)) = (&to, export_ref) {
                say(variable::TO, to.clone());
                say(variable::EXPORT_REF, export);
            }
            let to: Vec<String> = to.into_iter().collect();
            bake.insert(part.target.bake_name(), json!({ "cache-from": from, "cache-to": to }));
        }
        let bake = json!({ "target": bake }).to_string();
        if bake.len() <= MAX_BAKE {
            environment.push((variable::BAKE.to_owned(), bake));
        } else {
            let (project, bytes) = (&project.name, bake.len());
            tracing::warn!(%project, bytes, "the build gets no STOKER_BAKE: it is larger than a variable may be");
        }

        let mut say = |name: &str, value: Option<String>| {
            environment.extend(value.map(|value| (name.to_owned(), value)));
        };
        let mut reads: Vec<&str> = Vec::new();
        let mut joined: Vec<String> = Vec::new();
        for Reads { sources, given, .. } in self.parts.iter().map(|part| &part.reads) {
            for source in sources {
                if !reads.contains(&source.label.as_str()) {
                    reads.push(&source.label);
                }
                if given.as_ref() != Some(&source.digest) {
                    joined.push(source.digest.to_string());
                }
            }
        }
        let exports: Vec<&str> =
            self.parts.iter().filter_map(|part| part.export.as_ref()).map(Tag::as_str).collect();
        let merged: Vec<&str> =
            self.merged.iter().rev().take(MAX_COMMITS).rev().map(Commit::as_str).collect();
        let mounts = || self.parts.iter().flat_map(|part| part.target.mounts.iter().zip(&part.reads.mounts));
        let restored = mounts().filter_map(|(mount, input)| Some((&mount.scope, input.image.as_ref()?)));
        let restored: Vec<String> = restored.map(|(scope, digest)| format!("{scope}@{digest}")).collect();
        let saved: Vec<&str> =
            mounts().filter_map(|(_, input)| input.save.as_ref()).map(Tag::as_str).collect();
        let parts = self.parts.iter().map(|part| PartMounts {
            mounts: &part.target.mounts,
            inputs: &part.reads.mounts,
            export: part.export.as_ref(),
        });
        let files = bake_files(parts, self.commit.as_ref(), registry, project);
        if files.iter().flatten().all(|file| file.len() <= MAX_BAKE) {
            let [restore, save] = files;
            say(variable::RESTORE_MOUNTS, restore);
            say(variable::SAVE_MOUNTS, save);
            say(variable::MOUNTS_GIVEN, (!restored.is_empty()).then(|| restored.join(" ")));
            say(variable::MOUNTS_EXPORT, (!saved.is_empty()).then(|| saved.join(" ")));
        } else {
            tracing::warn!(project = %project.name, "the build gets no mounts: they are more than a variable may hold");
        }
        say(variable::MOUNTS, notes(mounts()));
        say(variable::BUILDER, Some(builder_flags(project)));
        say(variable::LINE, Some(self.line.to_string()));
        say(variable::TRUST, Some(Trust::of(&self.line).to_string()));
        say(variable::READS, Some(reads.join(" ")));
        say(variable::JOINED, (!joined.is_empty()).then(|| joined.join(" ")));
        say(variable::REASON, Some(self.reason.clone()));
        say(variable::EXPORT, (!exports.is_empty()).then(|| exports.join(" ")));
        say(variable::COMMIT, self.commit.as_ref().map(Commit::to_string));
        say(variable::MERGED, (!merged.is_empty()).then(|| merged.join(" ")));
        say(variable::PUSHED_AT, self.pushed_at.map(|time| time.to_string()));
        say(variable::REFRESH, self.refresh.then(|| "true".to_owned()));
        say(variable::BASES, self.bases.clone());
        environment
    }
}

/// The flags by which a build makes its builder.
#[must_use]
pub fn builder_flags(project: &Project) -> String {
    format!("--driver docker-container --driver-opt image={}", project.builder_image)
}

/// What a target reads and writes, in BuildKit's words and as plain references.
struct Flags {
    from: Vec<String>,
    to: Option<String>,
    refs: Vec<String>,
    export_ref: Option<String>,
}

impl Part {
    fn flags(&self, registry: &str, project: &Project) -> Flags {
        let image = format!("{registry}/{}", project.cache_repository);
        let refs: Vec<String> = self.reads.given.iter().map(|digest| format!("{image}@{digest}")).collect();
        let own = refs.iter().map(|reference| format!("type=registry,ref={reference}"));
        let from = own.chain(project.more_sources.iter().cloned()).collect();
        let export_ref = self.export.as_ref().map(|tag| format!("{registry}/{}:{tag}", project.exports()));
        let mode = match project.export.mode {
            CacheMode::Max => "max",
            CacheMode::Min => "min",
        };
        let compression = match project.export.compression {
            None => "",
            Some(Compression::Gzip) => ",compression=gzip",
            Some(Compression::Zstd) => ",compression=zstd",
            Some(Compression::Estargz) => ",compression=estargz",
            Some(Compression::Uncompressed) => ",compression=uncompressed",
        };
        // ECR takes a cache only as an image manifest, and a cache that could not be written must not fail a build.
        let to = export_ref.as_ref().map(|reference| {
            format!(
                "type=registry,ref={reference},mode={mode},image-manifest=true,oci-mediatypes=true,\
                 ignore-error=true{compression}"
            )
        });
        Flags { from, to, refs, export_ref }
    }
}

/// What a build was given, as its environment in CodeBuild tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenInputs {
    /// Its line.
    pub line: Line,
    /// The commit it was started for.
    pub commit: Option<Commit>,
    /// The tags it was told to export to, one for each target.
    pub exports: Vec<String>,
    /// The caches it was told to read, one for each target.
    pub given: BTreeSet<Digest>,
    /// The caches that those of them were joined from that are joins.
    pub joined: BTreeSet<Digest>,
    /// The images that it was to restore mounts from, by the mounts' scopes.
    pub mounts: BTreeMap<String, Digest>,
    /// The tags that it was told to save mounts to.
    pub saves: Vec<String>,
    /// The commits that came to its line with what it built.
    pub merged: Vec<Commit>,
    /// When the forge got the push.
    pub pushed_at: Option<Timestamp>,
    /// Whether it was to build from scratch.
    pub refresh: bool,
    /// A digest over the base images as they were.
    pub bases: Option<String>,
    /// Why it was started, for people.
    pub reason: String,
}

impl GivenInputs {
    /// Nothing but a line.
    #[must_use]
    pub fn of_line(line: Line) -> Self {
        Self {
            line,
            commit: None,
            exports: Vec::new(),
            given: BTreeSet::new(),
            joined: BTreeSet::new(),
            mounts: BTreeMap::new(),
            saves: Vec::new(),
            merged: Vec::new(),
            pushed_at: None,
            refresh: false,
            bases: None,
            reason: String::new(),
        }
    }

    /// Every cache that it reads, or that what it reads was joined from, and the images of its mounts.
    pub fn caches(&self) -> impl Iterator<Item = &Digest> {
        self.given.union(&self.joined).chain(self.mounts.values())
    }

    /// Reads it back; `None` for a build that Stoker gave nothing.
    #[must_use]
    pub fn read(environment: &BTreeMap<String, String>) -> Option<Self> {
        let value = |name: &str| environment.get(name).map(String::as_str);
        let words = |name: &str| value(name).unwrap_or_default().split_whitespace();
        let from = environment.iter().filter(|(name, _)| name.starts_with(variable::FROM));
        let from = from.flat_map(|(_, sources)| sources.split_whitespace());
        let given = from.filter_map(|from| Digest::new(from.rsplit_once('@')?.1).ok());
        Some(Self {
            line: Line::parse(value(variable::LINE)?).ok()?,
            commit: value(variable::COMMIT).and_then(|commit| Commit::new(commit).ok()),
            exports: words(variable::EXPORT).map(str::to_owned).collect(),
            given: given.collect(),
            joined: words(variable::JOINED).filter_map(|joined| Digest::new(joined).ok()).collect(),
            mounts: words(variable::MOUNTS_GIVEN)
                .filter_map(|word| word.split_once('@'))
                .filter_map(|(scope, digest)| Some((scope.to_owned(), Digest::new(digest).ok()?)))
                .collect(),
            saves: words(variable::MOUNTS_EXPORT).map(str::to_owned).collect(),
            merged: words(variable::MERGED).filter_map(|commit| Commit::new(commit).ok()).collect(),
            pushed_at: value(variable::PUSHED_AT).and_then(|time| time.parse().ok()),
            refresh: value(variable::REFRESH).is_some(),
            bases: value(variable::BASES).map(str::to_owned),
            reason: value(variable::REASON).unwrap_or_default().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Branch, Platform, TargetName};
    use crate::policy::Policy;

    fn project(more: &str) -> Project {
        let policy =
            format!("version: 1\nprojects: [{{name: app, repository: github.com/example/app{more}}}]");
        Policy::parse("p", &policy).unwrap().named_projects().remove(0)
    }

    fn part(project: &Project, target: Target) -> Part {
        let digest = Digest::of(project.name.as_str().as_bytes());
        let source = Source { label: "main".to_owned(), digest: digest.clone() };
        Part {
            export: Some(Tag::export(&target.scope, "key")),
            reads: Reads { sources: vec![source], given: Some(digest), mounts: Vec::new() },
            target,
        }
    }

    fn build_inputs(project: &Project) -> BuildInputs {
        BuildInputs {
            line: Line::Branch(Branch::new("feature-a").unwrap()),
            commit: Some(Commit::new("ab".repeat(20)).unwrap()),
            reason: "push".to_owned(),
            parts: project.targets.iter().map(|target| part(project, target.clone())).collect(),
            merged: vec![Commit::new("cd".repeat(20)).unwrap()],
            pushed_at: Some("2026-11-21T08:00:00Z".parse().unwrap()),
            refresh: false,
            bases: None,
        }
    }

    fn environment(build_inputs: &BuildInputs, project: &Project) -> BTreeMap<String, String> {
        build_inputs.environment("registry.example", project).into_iter().collect()
    }

    #[test]
    fn the_flags_are_ready_for_the_command_line() {
        let project = project(", builds-repository: stoker/builds");
        let environment = environment(&build_inputs(&project), &project);
        let main = format!("registry.example/stoker/app@{}", Digest::of(b"app"));
        let to = "type=registry,ref=registry.example/stoker/builds:app.export.key,mode=max,image-manifest=true,\
                  oci-mediatypes=true,ignore-error=true";
        assert_eq!(
            environment[variable::FLAGS],
            format!("--cache-from type=registry,ref={main} --cache-to {to}")
        );
        assert_eq!(environment[variable::REFS], main);
        assert_eq!(environment[variable::EXPORT_REF], "registry.example/stoker/builds:app.export.key");
        let bake: serde_json::Value = serde_json::from_str(&environment[variable::BAKE]).unwrap();
        let from = format!("type=registry,ref={main}");
        assert_eq!(bake, json!({"target": {"default": {"cache-from": [from], "cache-to": [to]}}}));
    }

    #[test]
    fn the_policy_says_what_builders_are_made_of() {
        let of = |keys: &str| {
            let project = project(keys);
            environment(&build_inputs(&project), &project).remove(variable::BUILDER).unwrap()
        };
        let flags = "--driver docker-container --driver-opt image=";
        assert_eq!(of(""), format!("{flags}{}", crate::policy::DEFAULT_BUILDER_IMAGE));
        let own = of(", builder: {image: 'mirror.example:5000/buildkit:v0.13.2'}");
        assert_eq!(own, format!("{flags}mirror.example:5000/buildkit:v0.13.2"));
    }

    #[test]
    fn the_policy_says_what_is_written_and_what_else_is_read() {
        let mut project = project("");
        project.export.mode = CacheMode::Min;
        project.export.compression = Some(Compression::Zstd);
        project.more_sources.push("type=registry,ref=example.com/app:latest".to_owned());
        let environment = environment(&build_inputs(&project), &project);
        assert!(environment[variable::TO].contains(",mode=min,"));
        assert!(environment[variable::TO].ends_with(",compression=zstd"));
        let from: Vec<&str> = environment[variable::FROM].split(' ').collect();
        assert_eq!(from.last(), Some(&"type=registry,ref=example.com/app:latest"));
    }

    #[test]
    fn every_target_has_variables_of_its_own() {
        let mut project = project("");
        let target = |name: &str, platform: Option<&str>| {
            let platform = platform.map(|platform| Platform::new(platform).unwrap());
            Target::new(&project.name, Some(TargetName::new(name).unwrap()), platform)
        };
        project.targets = vec![target("api", Some("linux/arm64")), target("web-ui", None)];
        let build_inputs = build_inputs(&project);
        let environment = environment(&build_inputs, &project);
        assert!(!environment.contains_key(variable::FLAGS), "whose would they be?");
        assert!(
            environment["STOKER_CACHE_FLAGS_API_LINUX_ARM64"].contains("stoker/app:app-api-linux-arm64__")
        );
        assert!(environment["STOKER_CACHE_FLAGS_WEB_UI"].contains("stoker/app:app-web-ui-__"));
        let bake: serde_json::Value = serde_json::from_str(&environment[variable::BAKE]).unwrap();
        assert!(bake["target"]["api-linux-arm64"]["cache-to"][0].as_str().unwrap().contains("arm64"));
        let inputs = GivenInputs::read(&environment).unwrap();
        assert_eq!(inputs.exports.len(), 2);
        assert_eq!(inputs.given.len(), 1);
    }

    #[test]
    fn what_is_too_large_for_a_variable_is_left_out() {
        let mut project = project("");
        let target = |number: usize| {
            Target::new(&project.name, Some(TargetName::new(format!("target-{number}")).unwrap()), None)
        };
        project.targets = (0..100).map(target).collect();
        let of_few = environment(&build_inputs(&project), &project);
        assert!(of_few[variable::BAKE].len() < MAX_BAKE);
        project.more_sources.push(format!("type=registry,ref=example.com/{}:latest", "a".repeat(1000)));
        let of_many = environment(&build_inputs(&project), &project);
        assert!(!of_many.contains_key(variable::BAKE));
        assert!(of_many.iter().all(|(name, value)| name.len() + value.len() < 128 << 10));
        assert_eq!(of_many.len() + 1, of_few.len(), "every target still has its own variables");
    }

    #[test]
    fn what_was_given_reads_back() {
        let project = project("");
        let build_inputs =
            BuildInputs { refresh: true, bases: Some("b".to_owned()), ..build_inputs(&project) };
        let inputs = GivenInputs::read(&environment(&build_inputs, &project)).unwrap();
        assert_eq!(inputs.line, build_inputs.line);
        assert_eq!(inputs.commit, build_inputs.commit);
        assert_eq!(inputs.exports, ["app.export.key"]);
        assert_eq!(inputs.given, BTreeSet::from([Digest::of(b"app")]));
        assert_eq!(inputs.merged, build_inputs.merged);
        assert_eq!(
            (inputs.pushed_at, inputs.refresh, inputs.bases),
            (build_inputs.pushed_at, true, build_inputs.bases)
        );
        assert_eq!(GivenInputs::read(&BTreeMap::new()), None);
    }

    #[test]
    fn of_several_caches_a_build_is_given_one_and_holds_all() {
        let project = project("");
        let mut build_inputs = build_inputs(&project);
        let line = Source { label: "branch/a".to_owned(), digest: Digest::of(b"line") };
        let reads = &mut build_inputs.parts[0].reads;
        reads.sources.insert(0, line);
        reads.given = Some(Digest::of(b"join"));
        let environment = environment(&build_inputs, &project);
        assert_eq!(
            environment[variable::REFS],
            format!("registry.example/stoker/app@{}", Digest::of(b"join"))
        );
        assert_eq!(environment[variable::READS], "branch/a main");
        let joined = format!("{} {}", Digest::of(b"line"), Digest::of(b"app"));
        assert_eq!(environment[variable::JOINED], joined);
        let inputs = GivenInputs::read(&environment).unwrap();
        assert_eq!(inputs.given, BTreeSet::from([Digest::of(b"join")]));
        assert_eq!(inputs.joined, BTreeSet::from([Digest::of(b"line"), Digest::of(b"app")]));
    }

    #[test]
    fn a_build_that_must_not_write_gets_no_cache_to() {
        let mut project = project("");
        let mut build_inputs = build_inputs(&project);
        build_inputs.parts[0].export = None;
        let environment = environment(&build_inputs, &project);
        assert!(environment.iter().all(|(name, value)| !name.starts_with(variable::TO)
            && !name.starts_with(variable::EXPORT)
            && !value.contains("--cache-to")
            && !value.contains("mode=max")));
        let (main, branch) = (Line::Main, &build_inputs.line);
        assert!(!exports(&project, &Line::PullRequest(1), Trust::Fork));
        assert!(!exports(&project, &Line::GitTag(Branch::main()), Trust::Branch));
        assert!(exports(&project, &main, Trust::Trusted) && exports(&project, branch, Trust::Branch));
        project.export.builds = ExportBuilds::Main;
        assert!(exports(&project, &main, Trust::Trusted) && !exports(&project, branch, Trust::Branch));
    }
}
