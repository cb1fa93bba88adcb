//! Retention: which caches of a repository live, and why.
//!
//! [`plan`] is a pure planner. It judges every image of a repository by its tags: one tag that wants the image kept
//! keeps it, and what the plan does not know it keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures_util::future::try_join_all;
use jiff::Timestamp;

use crate::error::CallError;
use crate::handout::Handed;
use crate::names::{CacheRepository, Commit, Digest, LineKey, Scope, Tag, TagKind};
use crate::policy::{Mode, Project};
use crate::ports::{
    BuildStatus, Catalogue, IMAGES_PER_CALL, ListedImage, ReadBuilds, ReadImages, read_images,
};
use crate::provenance::Provenance;

/// A line whose branch or pull request is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Its project's scope.
    pub scope: Scope,
    /// The line.
    pub line: LineKey,
    /// When it went. What was pushed later belongs to a new branch of the same name.
    pub at: Timestamp,
}

/// What the planner knows of one repository.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Every image.
    pub images: Vec<ListedImage>,
    /// For each image on a line or in its history: the commit whose build filled it last.
    pub heads: BTreeMap<Digest, Commit>,
    /// Caches that running builds were handed.
    pub leased: BTreeSet<Digest>,
    /// Lines whose branch or pull request is known to be gone.
    pub gone: Vec<Gone>,
}

/// What to do with one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Keep it.
    Keep,
    /// Delete it.
    Delete,
    /// Delete it later: a running build may still read it.
    Wait,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Delete => "delete",
            Self::Wait => "wait",
        })
    }
}

/// The verdict on one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The image.
    pub image: ListedImage,
    /// What to do.
    pub action: Action,
    /// Why, for people.
    pub why: String,
}

/// What retention would do to a repository, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The repository.
    pub repository: CacheRepository,
    /// A verdict for every image.
    pub verdicts: Vec<Verdict>,
}

impl Plan {
    /// The images to delete.
    #[must_use]
    pub fn deletions(&self) -> Vec<Digest> {
        self.of(Action::Delete).map(|verdict| verdict.image.digest.clone()).collect()
    }

    /// The verdicts of one action.
    pub fn of(&self, action: Action) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(move |verdict| verdict.action == action)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Verdict { image, action, why } in &self.verdicts {
            writeln!(f, "{action:6} {} {} ({why})", image.digest.short(), image.tags.join(" "))?;
        }
        write!(
            f,
            "{}: {} of {} images to delete",
            self.repository,
            self.deletions().len(),
            self.verdicts.len()
        )
    }
}

/// One tag's say on its image.
enum Say {
    Keep(String),
    Delete(String),
}

/// Plans the retention of one repository. `projects` are all projects whose caches it holds.
#[must_use]
pub fn plan(repository: &CacheRepository, projects: &[Project], world: World, now: Timestamp) -> Plan {
    let World { images, heads, leased, gone } = world;
    let scopes: BTreeMap<Scope, &Project> = projects
        .iter()
        .flat_map(|project| project.scopes().map(move |scope| (scope.clone(), project)))
        .collect();

    let line_say = |scope: &Scope, project: &Project, line: &LineKey, image: &ListedImage| {
        let is_gone = |gone: &&Gone| gone.scope == *scope && gone.line == *line && image.pushed_at <= gone.at;
        if line.is_main() {
            Say::Keep("main".to_owned())
        } else if let Some(gone) = gone.iter().find(is_gone) {
            Say::Delete(format!("{line} went at {}", gone.at))
        } else if now.duration_since(image.pushed_at) > project.retention.idle_branch {
            Say::Delete(format!("{line} has been idle since {}", image.pushed_at))
        } else {
            Say::Keep(line.to_string())
        }
    };

    // First the lines: which commits are a living line's head, and which went with a dead one.
    let mut living: BTreeSet<(Scope, Commit)> = BTreeSet::new();
    let mut dead: BTreeSet<(Scope, Commit)> = BTreeSet::new();
    for image in &images {
        let Some(head) = heads.get(&image.digest) else { continue };
        for tag in &image.tags {
            let Some((scope, TagKind::Line(line) | TagKind::History { line, .. })) = Tag::parse(tag) else {
                continue;
            };
            let Some(project) = scopes.get(&scope) else { continue };
            let is_line = matches!(Tag::parse(tag), Some((_, TagKind::Line(_))));
            match line_say(&scope, project, &line, image) {
                Say::Keep(_) if is_line => living.insert((scope, head.clone())),
                Say::Delete(_) => dead.insert((scope, head.clone())),
                Say::Keep(_) => false,
            };
        }
    }

    let say = |tag: &str, image: &ListedImage| {
        let Some((scope, kind)) = Tag::parse(tag) else {
            return Say::Keep(format!("{tag} is no tag of Stoker's"));
        };
        let Some(project) = scopes.get(&scope) else {
            return Say::Keep(format!("{tag} belongs to no project of the policy"));
        };
        let lease = project.retention.lease;
        match kind {
            TagKind::Line(line) => line_say(&scope, project, &line, image),
            TagKind::History { line, left_at } => match line_say(&scope, project, &line, image) {
                Say::Delete(why) => Say::Delete(why),
                _ if now.duration_since(left_at) > lease => {
                    Say::Delete(format!("{line} left it at {left_at}, longer ago than the lease"))
                }
                Say::Keep(_) => Say::Keep(format!("{line} left it at {left_at}, within the lease")),
            },
            TagKind::Commit(commit) => {
                let key = (scope, commit);
                if living.contains(&key) {
                    Say::Keep(format!("commit {} is a line's head", key.1.short()))
                } else if dead.contains(&key) {
                    Say::Delete(format!("commit {} went with its line", key.1.short()))
                } else if now.duration_since(image.pushed_at) > lease {
                    Say::Delete(format!("commit {} is no line's head", key.1.short()))
                } else {
                    Say::Keep(format!("commit {} is within the lease", key.1.short()))
                }
            }
            TagKind::Export(_) if now.duration_since(image.pushed_at) > lease => {
                Say::Delete("an export older than the lease".to_owned())
            }
            TagKind::Export(_) => Say::Keep("an export within the lease".to_owned()),
        }
    };

    let judge = |image: ListedImage| {
        let mut deletions = Vec::new();
        for tag in &image.tags {
            match say(tag, &image) {
                Say::Keep(why) => return Verdict { image, action: Action::Keep, why },
                Say::Delete(why) => deletions.push(why),
            }
        }
        if deletions.is_empty() {
            return Verdict { image, action: Action::Keep, why: "no tag says what it is".to_owned() };
        }
        let why = deletions.join("; ");
        if leased.contains(&image.digest) {
            return Verdict {
                image,
                action: Action::Wait,
                why: format!("{why}; a running build was handed it"),
            };
        }
        Verdict { image, action: Action::Delete, why }
    };
    Plan { repository: repository.clone(), verdicts: images.into_iter().map(judge).collect() }
}

/// Reads what the planner needs to know of a repository.
///
/// Running builds are read last: a cache handed out while the images were being listed is then known as leased.
pub async fn observe(
    ports: &(impl Catalogue + ReadImages + ReadBuilds),
    repository: &CacheRepository,
    projects: &[Project],
    gone: Vec<Gone>,
) -> Result<World, CallError> {
    let images = ports.list(repository).await?;
    let on_lines: Vec<Tag> = images
        .iter()
        .flat_map(|image| &image.tags)
        .filter_map(|tag| match Tag::parse(tag)? {
            (_, TagKind::Line(_) | TagKind::History { .. }) => Tag::known(tag),
            _ => None,
        })
        .collect();
    let on_lines = read_images(ports, repository, &on_lines).await?;
    let heads = on_lines
        .into_iter()
        .flatten()
        .filter_map(|image| Some((image.digest, Provenance::of_manifest(&image.manifest)?.built?.commit)));
    let heads = heads.collect();
    // Builds of forks run in a project of their own and read the same caches.
    let running =
        projects.iter().flat_map(|project| [Some(&project.name), project.builds.forks.project.as_ref()]);
    let builds = try_join_all(running.flatten().map(|project| ports.recent(project, None))).await?;
    let leased = builds
        .iter()
        .flatten()
        .filter(|build| build.status == BuildStatus::InProgress)
        .filter_map(|build| Handed::read(&build.environment))
        .flat_map(|handed| handed.digests)
        .collect();
    Ok(World { images, heads, leased, gone })
}

/// What became of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The plan.
    pub plan: Plan,
    /// Whether the plan was carried out; a repository in `report` mode is left as it is.
    pub applied: bool,
    /// Images that the registry would not delete, and why.
    pub refused: Vec<(Digest, String)>,
}

/// Observes, plans, and applies where the policy of every project of the repository says so.
pub async fn enforce(
    ports: &(impl Catalogue + ReadImages + ReadBuilds),
    repository: &CacheRepository,
    projects: &[Project],
    gone: Vec<Gone>,
    now: Timestamp,
) -> Result<Applied, CallError> {
    let world = observe(ports, repository, projects, gone).await?;
    let plan = plan(repository, projects, world, now);
    let deletions = plan.deletions();
    if deletions.is_empty() || projects.iter().any(|project| project.retention.mode == Mode::Report) {
        return Ok(Applied { plan, applied: deletions.is_empty(), refused: Vec::new() });
    }
    let mut refused = Vec::new();
    for digests in deletions.chunks(IMAGES_PER_CALL) {
        refused.extend(ports.delete(repository, digests).await?);
    }
    Ok(Applied { plan, applied: true, refused })
}
