//! What Stoker keeps in a repository: its lines, and the caches that they left. A file per command.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use buildkit_cache::IMPORT_LIMIT;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::Serialize;
use stoker_core::mounts::{MountManifest, mount_of};
use stoker_core::names::{
    Commit, Digest, InvalidName, Line, LineKey, MountId, ProjectName, Scope, Tag, TagKind,
};
use stoker_core::provenance::{self, Provenance};

use crate::problem::Problem;
use crate::progress::{Progress, Unit};
use crate::reference::Repository;
use crate::remote::{self, Found, Held, Remotes};
use crate::text::{Align, ago, count, percent, plain, size, table};

pub(crate) mod history;
pub(crate) mod list;
pub(crate) mod rollback;

/// Caches that are read at a time.
const AT_A_TIME: usize = 8;
/// Lines that are named where one is not found; the others are counted.
const NAMED: usize = 20;

/// A tag under which a line is, or a cache that it left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) scope: Scope,
    pub(crate) line: LineKey,
    /// `None`: the line is there now.
    pub(crate) left_at: Option<Timestamp>,
    pub(crate) tag: Tag,
}

impl Place {
    fn read(tag: &str) -> Option<Self> {
        let tag = Tag::known(tag)?;
        let (scope, kind) = Tag::parse(tag.as_str())?;
        let (line, left_at) = match kind {
            TagKind::Line(line) => (line, None),
            TagKind::History { line, left_at } => (line, Some(left_at)),
            TagKind::Commit(_) | TagKind::Fork(_) | TagKind::Export(_) | TagKind::Given(_) => {
                return None;
            }
        };
        Some(Self { scope, line, left_at, tag })
    }

    /// For a cache that a line left: the start of its digest, as the tag has it.
    fn digits(&self) -> &str {
        self.tag.as_str().rsplit_once('-').map_or("", |(_, digits)| digits)
    }

    /// The line's name, as the manifest gives it. A hashed slug does not tell it, and a name that is not the
    /// tag's is a lie.
    fn name(&self, annotations: &BTreeMap<String, String>) -> String {
        let line = provenance::line(annotations).filter(|line| line.key() == self.line);
        line.map_or_else(|| self.line.to_string(), |line| line.to_string())
    }
}

/// The lines of a repository, or of one project in it: main first, and after each line the caches that it left, the
/// newest first.
pub(crate) fn sorted(tags: &BTreeSet<String>, project: Option<&ProjectName>) -> Vec<Place> {
    // Whoever has several targets or mounts names a scope, as the lines are listed by it.
    let is_asked = |scope: &Scope| {
        project.is_none_or(|project| *scope == Scope::of(project) || scope.to_string() == project.as_str())
    };
    let mut places: Vec<Place> = tags.iter().filter_map(|tag| Place::read(tag)).collect();
    places.retain(|place| is_asked(&place.scope));
    // A tie goes to the greater tag, for no reason but that the order is the same each time.
    places.sort_by_key(|place| {
        let Place { scope, line, left_at, tag } = place.clone();
        (scope, !line.is_main(), line, left_at.is_some(), Reverse((left_at, tag)))
    });
    places
}

fn project_name(text: &str) -> Result<ProjectName, InvalidName> {
    ProjectName::new(text)
}

/// Reads the tags of a repository.
async fn places(
    remotes: &Remotes,
    repository: &Repository,
    project: Option<&ProjectName>,
) -> Result<Vec<Place>, Problem> {
    let tags = remote::tags(remotes, repository).await?;
    let places = sorted(&tags, project);
    match project {
        Some(project) if places.is_empty() => {
            let why = format!("{repository} has no line of project {project}");
            Err(Problem::usage(why, whose(&sorted(&tags, None))))
        }
        _ => Ok(places),
    }
}

/// Whose lines there are.
fn whose(places: &[Place]) -> String {
    let scopes: BTreeSet<String> = places.iter().map(|place| place.scope.to_string()).collect();
    if scopes.is_empty() {
        return "name the repository of Stoker's policy; it has lines once a build was promoted".to_owned();
    }
    let scopes: Vec<String> = scopes.into_iter().collect();
    format!("it has lines of these: {}; choose one with --project NAME", scopes.join(", "))
}

/// Where a line is, and the caches that it left, the newest first.
async fn places_of(
    remotes: &Remotes,
    repository: &Repository,
    line: &Line,
    project: Option<&ProjectName>,
) -> Result<(Place, Vec<Place>), Problem> {
    let all = places(remotes, repository, project).await?;
    if all.iter().any(|place| place.scope != all[0].scope) {
        let why = format!("{repository} has lines of more than one project");
        return Err(Problem::usage(why, whose(&all)));
    }
    let mut own = all.iter().filter(|place| place.line == line.key()).cloned();
    match own.next() {
        Some(current) if current.left_at.is_none() => Ok((current, own.collect())),
        _ => Err(no_such_line(remotes, repository, line, &all).await?),
    }
}

async fn no_such_line(
    remotes: &Remotes,
    repository: &Repository,
    line: &Line,
    all: &[Place],
) -> Result<Problem, Problem> {
    let lines: Vec<&Place> = all.iter().filter(|place| place.left_at.is_none()).collect();
    let names = lines.iter().take(NAMED).map(async |place| {
        let found = remote::find(remotes, &repository.at(&place.tag)).await?;
        let annotations = found.as_ref().map(annotations).unwrap_or_default();
        Ok(plain(&place.name(&annotations)))
    });
    let names: Vec<String> = futures_util::stream::iter(names).buffered(AT_A_TIME).try_collect().await?;
    let mut next = match names.as_slice() {
        [] => whose(&[]),
        names => format!("it has these: {}", names.join(", ")),
    };
    if lines.len() > NAMED {
        next += &format!("; and {} more: see `stoker lines {repository}`", lines.len() - NAMED);
    }
    Ok(Problem::usage(format!("{repository} has no line {line}"), next))
}

fn annotations(found: &Found) -> BTreeMap<String, String> {
    let of_mount =
        || MountManifest::parse(&found.bytes).map(|manifest| manifest.annotations).unwrap_or_default();
    remote::manifest_of(found).map_or_else(|_| of_mount(), |manifest| manifest.annotations)
}

/// A cache that a line is, or was.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    line: String,
    scope: String,
    tag: String,
    digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_at: Option<Timestamp>,
    #[serde(flatten)]
    origin: Origin,
    /// BuildKit will import it, as far as config and manifest tell.
    importable: bool,
    /// `None` for what is no sound cache.
    #[serde(flatten)]
    holds: Option<Holds>,
    /// The cache mount that it is an image of, and its compressed bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    mount: Option<(MountId, u64)>,
    /// What it is instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// [`Provenance`] as programs read it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Origin {
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<ProjectName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<Commit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    built_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merged: Option<Commit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rolled_back_at: Option<Timestamp>,
}

impl Origin {
    fn read(annotations: &BTreeMap<String, String>) -> Self {
        let Provenance { project, built, merged, parent, rolled_back, .. } = Provenance::read(annotations);
        Self {
            project,
            commit: built.as_ref().map(|built| built.commit.clone()),
            built_at: built.as_ref().map(|built| built.at),
            build: built.map(|built| built.build),
            merged,
            parent,
            trust: provenance::trust(annotations).map(str::to_owned),
            rolled_back_at: rolled_back,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Holds {
    steps: usize,
    keys: usize,
    /// How many of the keys are on probation.
    on_probation: usize,
    /// Compressed bytes of all blobs.
    bytes: u64,
    /// Bytes of the config or the manifest, whichever has more.
    import_bytes: u64,
    import_limit: usize,
}

impl Holds {
    fn of(held: &Held) -> Self {
        Self {
            steps: held.cache.steps().len(),
            keys: held.cache.records(),
            on_probation: held.cache.probations().into_values().sum(),
            bytes: held.cache.blob_bytes(),
            import_bytes: held.config_size.max(held.manifest_size),
            import_limit: IMPORT_LIMIT,
        }
    }
}

/// Reads what is under a tag; `None` where nothing is any more.
async fn read(remotes: &Remotes, repository: &Repository, place: &Place) -> Result<Option<Entry>, Problem> {
    let Some(found) = remote::find(remotes, &repository.at(&place.tag)).await? else { return Ok(None) };
    let annotations = annotations(&found);
    let digest = found.digest.clone();
    let mount = MountManifest::parse(&found.bytes).ok();
    let mount = mount.and_then(|mount| Some((mount_of(&mount.annotations)?, mount.bytes())));
    let (holds, why) = match remote::open(remotes, found).await {
        Ok(held) => (Some(Holds::of(&held)), None),
        Err(_) if mount.is_some() => (None, None),
        Err(problem) if problem.is_no() => (None, Some(problem.text().to_owned())),
        Err(problem) => return Err(problem),
    };
    Ok(Some(Entry {
        line: place.name(&annotations),
        scope: place.scope.to_string(),
        tag: place.tag.to_string(),
        digest,
        left_at: place.left_at,
        origin: Origin::read(&annotations),
        importable: holds.as_ref().is_some_and(|holds| holds.import_bytes <= holds.import_limit as u64),
        holds,
        mount,
        why,
    }))
}

/// Reads what is under tags, in their order.
async fn read_all(
    remotes: &Remotes,
    repository: &Repository,
    places: &[Place],
) -> Result<Vec<Entry>, Problem> {
    let progress = Progress::new("reading caches", Unit::Things, places.len() as u64);
    let reads = places.iter().map(async |place| {
        let entry = read(remotes, repository, place).await;
        progress.add(1);
        entry
    });
    let entries: Vec<_> = futures_util::stream::iter(reads).buffered(AT_A_TIME).try_collect().await?;
    Ok(entries.into_iter().flatten().collect())
}

/// A column of a table of caches.
struct Column {
    head: &'static str,
    align: Align,
    cell: fn(&Entry, Timestamp) -> String,
}

/// Stands for what is not known, or is not so.
const NONE: &str = "-";

fn short(commit: Option<&Commit>) -> String {
    commit.map_or(NONE, Commit::short).to_owned()
}

fn holds(entry: &Entry, say: impl Fn(&Holds) -> String) -> String {
    entry.holds.as_ref().map_or_else(|| NONE.to_owned(), say)
}

/// What is told of every cache.
const COLUMNS: [Column; 12] = [
    Column { head: "DIGEST", align: Align::Left, cell: |entry, _| entry.digest.short() },
    Column {
        head: "STEPS",
        align: Align::Right,
        cell: |entry, _| holds(entry, |holds| holds.steps.to_string()),
    },
    Column {
        head: "KEYS",
        align: Align::Right,
        cell: |entry, _| holds(entry, |holds| holds.keys.to_string()),
    },
    Column {
        head: "PROBATION",
        align: Align::Right,
        cell: |entry, _| holds(entry, |holds| holds.on_probation.to_string()),
    },
    Column {
        head: "SIZE",
        align: Align::Right,
        cell: |entry, _| match &entry.mount {
            Some((_, bytes)) => size(*bytes),
            None => holds(entry, |holds| size(holds.bytes)),
        },
    },
    Column {
        head: "LIMIT",
        align: Align::Right,
        cell: |entry, _| holds(entry, |holds| percent(holds.import_bytes, holds.import_limit as u64)),
    },
    Column {
        head: "IMPORT",
        align: Align::Left,
        cell: |entry, _| match &entry.mount {
            Some((id, _)) => format!("mount {id}"),
            None => if entry.importable { "yes" } else { "NO" }.to_owned(),
        },
    },
    Column { head: "COMMIT", align: Align::Left, cell: |entry, _| short(entry.origin.commit.as_ref()) },
    Column { head: "BUILT", align: Align::Right, cell: |entry, now| ago(now, entry.origin.built_at, NONE) },
    Column { head: "MERGED", align: Align::Left, cell: |entry, _| short(entry.origin.merged.as_ref()) },
    Column {
        head: "ROLLED BACK",
        align: Align::Right,
        cell: |entry, now| ago(now, entry.origin.rolled_back_at, NONE),
    },
    Column {
        head: "BUILD",
        align: Align::Left,
        cell: |entry, _| entry.origin.build.as_deref().map_or_else(|| NONE.to_owned(), plain),
    },
];

/// A table of caches, and why some of them are none.
fn render(entries: &[Entry], first: &[Column], now: Timestamp) -> String {
    let columns: Vec<&Column> = first.iter().chain(&COLUMNS).collect();
    let align: Vec<Align> = columns.iter().map(|column| column.align).collect();
    let mut rows = vec![columns.iter().map(|column| column.head.to_owned()).collect::<Vec<_>>()];
    rows.extend(entries.iter().map(|entry| columns.iter().map(|column| (column.cell)(entry, now)).collect()));
    let mut text = table("  ", &align, &rows);
    for why in entries.iter().filter_map(|entry| entry.why.as_ref()) {
        text += &format!("  warning: {why}\n");
    }
    let is_cache = |entry: &&Entry| entry.why.is_none() && entry.mount.is_none();
    let too_large = entries.iter().filter(is_cache).filter(|entry| !entry.importable).count();
    if too_large > 0 {
        text += &format!("  warning: {} over BuildKit's import limit\n", count(too_large, "cache"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(|&tag| tag.to_owned()).collect()
    }

    #[test]
    fn lines_come_with_what_they_left_the_newest_first() {
        let tags = tags(&[
            "app.branch.a",
            "app.branch.a__lie/../x",
            "app.commit.0123456789012345678901234567890123456789",
            "app.export.x",
            "app.history.branch.a.20260102T000000Z-0123abcd",
            "app.history.main.20251231T235959Z-ffffffff",
            "app.history.main.20260101T000000Z-00000000",
            "app.main",
            "latest",
            "lib.main",
        ]);
        let reported = |project: Option<&str>| -> Vec<String> {
            let project = project.map(|name| ProjectName::new(name).unwrap());
            sorted(&tags, project.as_ref()).iter().map(|place| place.tag.to_string()).collect()
        };
        let app = [
            "app.main",
            "app.history.main.20260101T000000Z-00000000",
            "app.history.main.20251231T235959Z-ffffffff",
            "app.branch.a",
            "app.history.branch.a.20260102T000000Z-0123abcd",
        ];
        assert_eq!(reported(Some("app")), app);
        assert_eq!(reported(None), [app.as_slice(), &["lib.main"]].concat());
        assert_eq!(reported(Some("other")), Vec::<String>::new());
        assert_eq!(Place::read(app[4]).unwrap().digits(), "0123abcd");
    }

    #[test]
    fn a_line_is_called_what_its_manifest_says_unless_that_is_a_lie() {
        let line = Line::parse("branch/feature/a").unwrap();
        let place = Place::read(&format!("app.{}", line.key())).unwrap();
        let annotations = |line: &str| BTreeMap::from([("stoker.line".to_owned(), line.to_owned())]);
        assert_eq!(place.name(&annotations("branch/feature/a")), "branch/feature/a");
        for lie in ["main", "branch/feature-a", "nonsense"] {
            assert_eq!(place.name(&annotations(lie)), line.key().to_string());
        }
        assert_eq!(place.name(&BTreeMap::new()), line.key().to_string());
    }
}
