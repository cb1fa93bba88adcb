//! The figures of a report, from what was read. Pure: the same input makes the same report.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use stoker_core::names::{Digest, Line, ProjectName, Scope, Tag, TagKind};
use stoker_core::policy::{Mode, Project};
use stoker_core::ports::{Build, BuildStatus, MAX_BUILDS};
use stoker_core::retain::inventory::{Inventory, ManifestInfo};
use stoker_core::retain::plan::{DOLLARS_PER_GB_MONTH, mode};
use stoker_core::retain::{Action, Plan, Rule, Verdict};

use super::lost::LostTime;
use crate::text::count;

/// How far back builds are looked at, in days.
pub(crate) const DAYS: i64 = 30;
/// How far back the storage of each day is told.
const STORAGE_DAYS: i64 = 365;
/// Fewer cold builds than these tell nothing of how long one takes.
const MIN_COLD: usize = 3;
/// How many deletions are told one by one.
const LARGEST: usize = 20;
const DAY: i64 = 86_400;

/// A repository as it is, and what retention would do to it.
pub(crate) struct Repository {
    pub(crate) inventory: Inventory,
    pub(crate) plan: Plan,
}

/// The builds of a CodeBuild project.
pub(crate) struct BuildsOf {
    pub(crate) project: ProjectName,
    pub(crate) builds: Vec<Arc<Build>>,
}

/// All that a report is made from.
pub(crate) struct Seen<'s> {
    pub(crate) now: Timestamp,
    pub(crate) account: Option<String>,
    pub(crate) region: Option<String>,
    /// The projects of the policy.
    pub(crate) projects: &'s [Project],
    pub(crate) repositories: &'s [Repository],
    pub(crate) builds: &'s [BuildsOf],
    pub(crate) dollars_per_minute: f64,
}

/// Everything that the page shows, and what `--json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) made_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) region: Option<String>,
    /// How many days of builds it looks at.
    pub(crate) days: i64,
    pub(crate) dollars_per_minute: f64,
    pub(crate) dollars_per_gb_month: f64,
    pub(crate) figures: Figures,
    pub(crate) repositories: Vec<RepositoryFigures>,
    /// The largest first; what belongs to no project has no name.
    pub(crate) projects: Vec<ProjectFigures>,
    /// A day each, the oldest first.
    pub(crate) storage: Vec<StorageOfDay>,
    pub(crate) hit_rate: Vec<CacheHitRate>,
    pub(crate) builds: Vec<BuildFigures>,
    /// A day each, the oldest first.
    pub(crate) builds_by_day: Vec<BuildsOfDay>,
    pub(crate) rules: Vec<RuleFigures>,
    /// What deletions there would be, those that free most first; [`LARGEST`] of them.
    pub(crate) largest_deletions: Vec<Deletion>,
    /// What misses cost, of the projects whose checkouts were named.
    pub(crate) lost_time: Vec<LostTime>,
    /// What could not be read, judged or met.
    pub(crate) notes: Vec<String>,
}

/// The key figures.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    /// Every layer once in its repository, as it is billed.
    pub(crate) bytes: u64,
    pub(crate) dollars_per_month: f64,
    pub(crate) images: usize,
    pub(crate) deletions: usize,
    pub(crate) frees: u64,
    pub(crate) frees_dollars_per_month: f64,
    /// The mean over main's builds of [`DAYS`] days; absent where no cache tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) main_reused_percent: Option<f64>,
    /// How many builds that is the mean of.
    pub(crate) main_builds: usize,
    /// Absent where no project has enough cold builds to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) minutes_saved: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dollars_saved: Option<f64>,
    /// How many warm builds were held against cold ones for that.
    pub(crate) compared_builds: usize,
    /// Projects with warm builds and too few cold ones.
    pub(crate) projects_that_cannot_tell: usize,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RepositoryFigures {
    pub(crate) repository: String,
    pub(crate) images: usize,
    pub(crate) bytes: u64,
    pub(crate) bytes_after: u64,
    /// What the policy says: `report` or `apply`.
    pub(crate) mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
}

/// Bytes of layers, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Amount {
    pub(crate) images: usize,
    pub(crate) bytes: u64,
    /// What of it nothing else in the repository holds.
    pub(crate) own_bytes: u64,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.images += other.images;
        self.bytes += other.bytes;
        self.own_bytes += other.own_bytes;
    }
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProjectFigures {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<String>,
    #[serde(flatten)]
    pub(crate) amount: Amount,
    pub(crate) scopes: Vec<ScopeFigures>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ScopeFigures {
    pub(crate) repository: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<String>,
    #[serde(flatten)]
    pub(crate) amount: Amount,
    pub(crate) lines: Vec<LineFigures>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LineFigures {
    pub(crate) line: String,
    #[serde(flatten)]
    pub(crate) amount: Amount,
    pub(crate) newest: Timestamp,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StorageOfDay {
    pub(crate) day: String,
    /// Of what is there now, what had come by the end of the day.
    pub(crate) bytes: u64,
    /// What of it no line held any more by then.
    pub(crate) left_bytes: u64,
}

/// How warm the builds of a scope were.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CacheHitRate {
    pub(crate) project: String,
    pub(crate) scope: String,
    /// The mean over main's builds of [`DAYS`] days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) main_percent: Option<f64>,
    /// The same of all other lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) others_percent: Option<f64>,
    /// Every build that a cache tells of, the oldest first.
    pub(crate) points: Vec<Point>,
}

impl CacheHitRate {
    pub(crate) fn main(&self) -> Vec<&Point> {
        self.points.iter().filter(|point| point.line == "main").collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Point {
    pub(crate) at: Timestamp,
    pub(crate) build: String,
    pub(crate) line: String,
    pub(crate) reused_percent: u8,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BuildFigures {
    /// The CodeBuild project.
    pub(crate) project: String,
    pub(crate) builds: usize,
    pub(crate) started_by_stoker: usize,
    /// Started by somebody else, and given caches by `resolve-cache`, as they say themselves.
    pub(crate) asked: usize,
    pub(crate) running: usize,
    pub(crate) failed: usize,
    /// Builds that were given caches.
    pub(crate) warm: usize,
    /// Builds that were given none, though Stoker was asked.
    pub(crate) cold: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cold_median_minutes: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warm_median_minutes: Option<f64>,
    /// How many warm builds succeeded.
    pub(crate) warm_succeeded: usize,
    /// How many cold builds succeeded.
    pub(crate) cold_succeeded: usize,
    /// The sum over warm builds that succeeded of the median of cold ones less their duration; absent where there are
    /// not enough cold builds to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) minutes_saved: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dollars_saved: Option<f64>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BuildsOfDay {
    pub(crate) day: String,
    pub(crate) warm: usize,
    pub(crate) cold: usize,
    /// Builds that Stoker had no part in.
    pub(crate) others: usize,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuleFigures {
    /// `delete`, `wait` or `keep`.
    pub(crate) action: String,
    pub(crate) rule: String,
    pub(crate) means: String,
    pub(crate) images: usize,
    /// Bytes of their layers, each counted once.
    pub(crate) bytes: u64,
    /// What deleting them frees.
    pub(crate) frees: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Deletion {
    pub(crate) repository: String,
    pub(crate) digest: String,
    pub(crate) tags: Vec<String>,
    pub(crate) pushed_at: Timestamp,
    pub(crate) frees: u64,
    pub(crate) rule: String,
    pub(crate) why: String,
}

/// Makes the report.
pub(crate) fn gather(seen: Seen<'_>) -> Report {
    let hit_rate = hit_rate(&seen);
    let builds: Vec<BuildFigures> =
        seen.builds.iter().map(|of| build_figures(of, seen.now, seen.dollars_per_minute)).collect();
    Report {
        made_at: seen.now,
        days: DAYS,
        dollars_per_minute: seen.dollars_per_minute,
        dollars_per_gb_month: DOLLARS_PER_GB_MONTH,
        figures: figures(&seen, &hit_rate, &builds),
        repositories: seen.repositories.iter().map(|of| repository_figures(of, seen.projects)).collect(),
        projects: projects(&seen),
        storage: storage(&seen),
        builds_by_day: builds_by_day(&seen),
        rules: rules(&seen),
        largest_deletions: largest_deletions(&seen),
        notes: notes(&seen),
        lost_time: Vec::new(),
        account: seen.account,
        region: seen.region,
        hit_rate,
        builds,
    }
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}

fn dollars_per_month(bytes: u64) -> f64 {
    float(bytes) / 1e9 * DOLLARS_PER_GB_MONTH
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, number) = values.fold((0.0, 0.0), |(sum, number), value| (sum + value, number + 1.0));
    (number > 0.0).then(|| sum / number)
}

/// Whether something was within the days that builds are looked at.
fn is_recent(now: Timestamp, at: Timestamp) -> bool {
    let age = now.duration_since(at);
    age >= SignedDuration::ZERO && age <= SignedDuration::from_hours(24 * DAYS)
}

/// Days since the epoch, in UTC.
fn day_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(DAY)
}

fn day_name(day: i64) -> String {
    let start = Timestamp::from_second(day.saturating_mul(DAY)).unwrap_or_default();
    start.strftime("%Y-%m-%d").to_string()
}

/// What a plan that is not refused would free.
fn frees(plan: &Plan) -> u64 {
    if plan.refused.is_some() { 0 } else { plan.bytes.saturating_sub(plan.bytes_after) }
}

fn figures(seen: &Seen<'_>, hit_rate: &[CacheHitRate], builds: &[BuildFigures]) -> Figures {
    let plans = || seen.repositories.iter().map(|repository| &repository.plan);
    let bytes = plans().map(|plan| plan.bytes).sum();
    let frees = plans().map(frees).sum();
    let main: Vec<f64> = hit_rate
        .iter()
        .flat_map(CacheHitRate::main)
        .filter(|point| is_recent(seen.now, point.at))
        .map(|point| f64::from(point.reused_percent))
        .collect();
    let minutes = |of: &BuildFigures| of.minutes_saved;
    let tell = || builds.iter().filter(move |of| minutes(of).is_some());
    let minutes_saved = tell().next().is_some().then(|| tell().filter_map(minutes).sum::<f64>());
    Figures {
        bytes,
        dollars_per_month: dollars_per_month(bytes),
        images: plans().map(|plan| plan.verdicts.len()).sum(),
        deletions: plans().map(|plan| plan.deletions().len()).sum(),
        frees,
        frees_dollars_per_month: dollars_per_month(frees),
        main_builds: main.len(),
        main_reused_percent: mean(main.into_iter()),
        minutes_saved,
        dollars_saved: minutes_saved.map(|minutes| minutes * seen.dollars_per_minute),
        compared_builds: tell().map(|of| of.warm_succeeded).sum(),
        projects_that_cannot_tell: builds
            .iter()
            .filter(|of| of.warm_succeeded > 0 && of.minutes_saved.is_none())
            .count(),
    }
}

fn repository_figures(repository: &Repository, projects: &[Project]) -> RepositoryFigures {
    let plan = &repository.plan;
    let of: Vec<Project> = projects.iter().filter(|project| uses(project, plan)).cloned().collect();
    let mode = if of.is_empty() { Mode::Report } else { mode(&of) };
    RepositoryFigures {
        repository: plan.repository.to_string(),
        images: plan.verdicts.len(),
        bytes: plan.bytes,
        bytes_after: plan.bytes - frees(plan),
        mode: mode.to_string(),
        refused: plan.refused.clone(),
    }
}

/// Whether a project has caches in the repository of a plan.
fn uses(project: &Project, plan: &Plan) -> bool {
    project.cache_repository == plan.repository || *project.exports() == plan.repository
}

/// What layers groups of images hold, each counted once in a group, and which of them no other group holds.
fn amounts<K: Ord + Clone>(inventory: &Inventory, members: &[(K, &Digest)]) -> BTreeMap<K, Amount> {
    let mut groups: BTreeMap<K, (usize, HashSet<u32>)> = BTreeMap::new();
    for (key, digest) in members {
        let (images, blobs) = groups.entry(key.clone()).or_default();
        *images += 1;
        blobs.extend(inventory.known.of(digest).into_iter().flat_map(ManifestInfo::blobs));
    }
    let mut holders: HashMap<u32, u32> = HashMap::new();
    for blob in groups.values().flat_map(|(_, blobs)| blobs) {
        *holders.entry(*blob).or_default() += 1;
    }
    let amount = |(images, blobs): (usize, HashSet<u32>)| {
        let size = |blob: &u32| inventory.known.size(*blob);
        let own = blobs.iter().filter(|blob| holders.get(blob) == Some(&1));
        Amount { images, bytes: blobs.iter().map(size).sum(), own_bytes: own.map(size).sum() }
    };
    groups.into_iter().map(|(key, group)| (key, amount(group))).collect()
}

/// What an image is counted under: project, scope and line.
type Place = (Option<String>, Option<Scope>, String);

fn place(verdict: &Verdict, facts: Option<ManifestInfo<'_>>, owners: &Owners<'_>) -> Place {
    let project = match &verdict.scope {
        Some(scope) => owners.by_scope.get(scope).copied(),
        None => owners.only,
    };
    let line = match &verdict.line {
        // A tag may have only the hash of a branch's name; the manifest says the name.
        Some(key) if is_checked(verdict) => facts
            .and_then(ManifestInfo::line)
            .filter(|line| line.key() == *key)
            .map_or_else(|| key.to_string(), ToString::to_string),
        _ => nameless(verdict).to_owned(),
    };
    (project.map(|project| project.name.to_string()), verdict.scope.clone(), line)
}

/// Whether Stoker wrote it: what a build exported may say anything of itself.
fn is_checked(verdict: &Verdict) -> bool {
    let kinds = verdict.image.tags.iter().filter_map(|tag| Tag::parse(tag));
    kinds.into_iter().any(|(_, kind)| !matches!(kind, TagKind::Export(_)))
}

/// What is on no line.
fn nameless(verdict: &Verdict) -> &'static str {
    match verdict.image.tags.iter().find_map(|tag| Tag::parse(tag)) {
        Some((_, TagKind::Export(_))) => "(exports)",
        Some((_, TagKind::Given(_))) => "(joins)",
        Some((_, TagKind::Fork(_))) => "(forks' heads)",
        Some(_) => "(commits)",
        None if verdict.image.tags.is_empty() => "(untagged)",
        None => "(no tag of Stoker's)",
    }
}

/// Whose the images of a repository are.
struct Owners<'s> {
    by_scope: HashMap<&'s Scope, &'s Project>,
    /// The repository's only project: what has no scope cannot be another's.
    only: Option<&'s Project>,
}

impl<'s> Owners<'s> {
    fn of(plan: &Plan, projects: &'s [Project]) -> Self {
        let mut of: Vec<&Project> = projects.iter().filter(|project| uses(project, plan)).collect();
        let by_scope =
            of.iter().flat_map(|project| project.all_scopes().map(|scope| (scope, *project))).collect();
        let last = of.pop();
        Self { by_scope, only: last.filter(|_| of.is_empty()) }
    }
}

fn projects(seen: &Seen<'_>) -> Vec<ProjectFigures> {
    let mut found: BTreeMap<Option<String>, ProjectFigures> = BTreeMap::new();
    for Repository { inventory, plan } in seen.repositories {
        let owners = Owners::of(plan, seen.projects);
        let places: Vec<(Place, &Verdict)> = plan
            .verdicts
            .iter()
            .map(|verdict| (place(verdict, inventory.known.of(&verdict.image.digest), &owners), verdict))
            .collect();
        let mut newest: BTreeMap<&Place, Timestamp> = BTreeMap::new();
        for (place, verdict) in &places {
            let pushed = newest.entry(place).or_insert(verdict.image.pushed_at);
            *pushed = verdict.image.pushed_at.max(*pushed);
        }
        let by = |key: fn(&Place) -> Place| {
            let members: Vec<(Place, &Digest)> =
                places.iter().map(|(place, verdict)| (key(place), &verdict.image.digest)).collect();
            amounts(inventory, &members)
        };
        for ((name, ..), amount) in by(|(project, ..)| (project.clone(), None, String::new())) {
            let of = found.entry(name.clone()).or_insert_with(|| ProjectFigures {
                project: name,
                amount: Amount::default(),
                scopes: Vec::new(),
            });
            of.amount.add(amount);
        }
        let lines = by(Place::clone);
        for ((name, scope, _), amount) in
            by(|(project, scope, _)| (project.clone(), scope.clone(), String::new()))
        {
            let of_scope =
                lines.iter().filter(|((project, in_scope, _), _)| *project == name && *in_scope == scope);
            let mut lines: Vec<LineFigures> = of_scope
                .map(|(place, amount)| LineFigures {
                    line: place.2.clone(),
                    amount: *amount,
                    newest: newest.get(place).copied().unwrap_or_default(),
                })
                .collect();
            lines.sort_by_key(|line| std::cmp::Reverse(line.amount.bytes));
            let repository = plan.repository.to_string();
            let scope = scope.map(|scope| scope.to_string());
            if let Some(project) = found.get_mut(&name) {
                project.scopes.push(ScopeFigures { repository, scope, amount, lines });
            }
        }
    }
    let mut projects: Vec<ProjectFigures> = found.into_values().collect();
    projects.sort_by_key(|project| std::cmp::Reverse(project.amount.bytes));
    projects
}

/// By day: what came, of what is there now, and what of that no line held any more.
fn storage(seen: &Seen<'_>) -> Vec<StorageOfDay> {
    let mut came: BTreeMap<i64, u64> = BTreeMap::new();
    let mut left: BTreeMap<i64, u64> = BTreeMap::new();
    for Repository { inventory, .. } in seen.repositories {
        for (blob, days) in days_of_blobs(inventory) {
            let bytes = inventory.known.size(blob);
            *came.entry(days.came).or_default() += bytes;
            if !days.is_on_line {
                *left.entry(days.left.max(days.came)).or_default() += bytes;
            }
        }
    }
    let Some(&first) = came.keys().next() else { return Vec::new() };
    let last = day_of(seen.now);
    let until = |days: &BTreeMap<i64, u64>, day: i64| days.range(..=day).map(|(_, bytes)| bytes).sum();
    let first = first.clamp(last - STORAGE_DAYS, last);
    let (mut bytes, mut left_bytes) = (until(&came, first - 1), until(&left, first - 1));
    let of_day = |day: i64| {
        bytes += came.get(&day).copied().unwrap_or_default();
        left_bytes += left.get(&day).copied().unwrap_or_default();
        StorageOfDay { day: day_name(day), bytes, left_bytes }
    };
    (first..=last).map(of_day).collect()
}

/// When a layer came, and when the last line left it.
struct DaysOfBlob {
    came: i64,
    left: i64,
    is_on_line: bool,
}

fn days_of_blobs(inventory: &Inventory) -> HashMap<u32, DaysOfBlob> {
    let mut blobs: HashMap<u32, DaysOfBlob> = HashMap::new();
    for image in &inventory.images {
        let kinds: Vec<TagKind> =
            image.tags.iter().filter_map(|tag| Tag::parse(tag)).map(|(_, kind)| kind).collect();
        let is_on_line = kinds.iter().any(|kind| matches!(kind, TagKind::Line(_)));
        let came = day_of(image.pushed_at);
        let left = kinds.iter().filter_map(|kind| match kind {
            TagKind::History { left_at, .. } => Some(day_of(*left_at)),
            _ => None,
        });
        let left = left.max().unwrap_or(came);
        for blob in inventory.known.of(&image.digest).into_iter().flat_map(ManifestInfo::blobs) {
            let days = blobs.entry(*blob).or_insert(DaysOfBlob { came, left, is_on_line });
            days.came = days.came.min(came);
            days.left = days.left.max(left);
            days.is_on_line |= is_on_line;
        }
    }
    blobs
}

fn hit_rate(seen: &Seen<'_>) -> Vec<CacheHitRate> {
    // A line that merges bring something keeps its newest build, so one build is told by many caches.
    let mut points: BTreeMap<(String, Scope), BTreeMap<String, Point>> = BTreeMap::new();
    for Repository { inventory, plan } in seen.repositories {
        for verdict in &plan.verdicts {
            let Some(scope) = verdict.scope.as_ref().filter(|_| is_checked(verdict)) else { continue };
            let project = seen.projects.iter().find(|project| project.has_scope(scope));
            let Some(project) = project.filter(|project| project.cache_repository == plan.repository) else {
                continue;
            };
            let Some(point) = inventory.known.of(&verdict.image.digest).and_then(point) else { continue };
            let of_scope = points.entry((project.name.to_string(), scope.clone())).or_default();
            of_scope.insert(point.build.clone(), point);
        }
    }
    let of_scope = |((project, scope), points): ((String, Scope), BTreeMap<String, Point>)| {
        let mut points: Vec<Point> = points.into_values().collect();
        points.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.build.cmp(&b.build)));
        let mean_of = |is_main: bool| {
            let of = points.iter().filter(|point| (point.line == "main") == is_main);
            let recent = of.filter(|point| is_recent(seen.now, point.at));
            mean(recent.map(|point| f64::from(point.reused_percent)))
        };
        let (main_percent, others_percent) = (mean_of(true), mean_of(false));
        CacheHitRate { project, scope: scope.to_string(), main_percent, others_percent, points }
    };
    points.into_iter().map(of_scope).collect()
}

fn point(facts: ManifestInfo<'_>) -> Option<Point> {
    Some(Point {
        at: facts.built_at()?,
        build: facts.build()?.to_owned(),
        line: facts.line().map(Line::to_string)?,
        reused_percent: facts.reused_percent()?.min(100),
    })
}

/// How a build stands to Stoker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heat {
    Warm,
    Cold,
    /// Stoker had no part in it.
    Other,
}

fn heat(build: &Build) -> Heat {
    match &build.inputs {
        Some(inputs) if inputs.given.is_empty() => Heat::Cold,
        Some(_) => Heat::Warm,
        None => Heat::Other,
    }
}

fn build_figures(of: &BuildsOf, now: Timestamp, dollars_per_minute: f64) -> BuildFigures {
    let mut figures = BuildFigures { project: of.project.to_string(), ..BuildFigures::default() };
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for build in of.builds.iter().filter(|build| is_recent(now, build.started_at)) {
        let heat = heat(build);
        figures.builds += 1;
        figures.running += usize::from(build.status == BuildStatus::InProgress);
        figures.failed += usize::from(build.status == BuildStatus::Failed);
        figures.started_by_stoker += usize::from(heat != Heat::Other && !build.claims);
        figures.asked += usize::from(heat != Heat::Other && build.claims);
        figures.warm += usize::from(heat == Heat::Warm);
        figures.cold += usize::from(heat == Heat::Cold);
        if let (BuildStatus::Succeeded, Some(minutes)) = (build.status, minutes(build)) {
            match heat {
                Heat::Warm => warm.push(minutes),
                Heat::Cold => cold.push(minutes),
                Heat::Other => {}
            }
        }
    }
    (figures.warm_succeeded, figures.cold_succeeded) = (warm.len(), cold.len());
    figures.warm_median_minutes = median(&mut warm);
    figures.cold_median_minutes = median(&mut cold);
    if let Some(cold_median) = figures.cold_median_minutes
        && cold.len() >= MIN_COLD
        && !warm.is_empty()
    {
        let saved = warm.iter().map(|minutes| cold_median - minutes).sum::<f64>();
        figures.minutes_saved = Some(saved);
        figures.dollars_saved = Some(saved * dollars_per_minute);
    }
    figures
}

/// How long a build took, from its start to its end.
fn minutes(build: &Build) -> Option<f64> {
    let took = build.ended_at?.duration_since(build.started_at);
    (took >= SignedDuration::ZERO).then(|| took.as_secs_f64() / 60.0)
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(*upper);
    }
    Some(f64::midpoint(*values.get(values.len() / 2 - 1)?, *upper))
}

fn builds_by_day(seen: &Seen<'_>) -> Vec<BuildsOfDay> {
    let last = day_of(seen.now);
    let mut days: Vec<BuildsOfDay> = (last - DAYS + 1..=last)
        .map(|day| BuildsOfDay { day: day_name(day), ..BuildsOfDay::default() })
        .collect();
    let mut is_any = false;
    for build in seen.builds.iter().flat_map(|of| &of.builds) {
        let ago = usize::try_from(last - day_of(build.started_at)).ok();
        let Some(at) = ago.and_then(|ago| days.len().checked_sub(ago + 1)) else { continue };
        is_any = true;
        match heat(build) {
            Heat::Warm => days[at].warm += 1,
            Heat::Cold => days[at].cold += 1,
            Heat::Other => days[at].others += 1,
        }
    }
    if is_any { days } else { Vec::new() }
}

fn rules(seen: &Seen<'_>) -> Vec<RuleFigures> {
    let mut found: BTreeMap<(Action, Rule), RuleFigures> = BTreeMap::new();
    for Repository { inventory, plan } in seen.repositories {
        let members: Vec<((Action, Rule), &Digest)> = plan
            .verdicts
            .iter()
            .map(|verdict| ((verdict.action, verdict.rule), &verdict.image.digest))
            .collect();
        for ((action, rule), amount) in amounts(inventory, &members) {
            let of = found.entry((action, rule)).or_insert_with(|| RuleFigures {
                action: action.to_string(),
                rule: rule.name().to_owned(),
                means: means(rule).to_owned(),
                images: 0,
                bytes: 0,
                frees: 0,
            });
            of.images += amount.images;
            of.bytes += amount.bytes;
        }
        for verdict in plan.of(Action::Delete).filter(|_| plan.refused.is_none()) {
            if let Some(of) = found.get_mut(&(Action::Delete, verdict.rule)) {
                of.frees += verdict.frees;
            }
        }
    }
    let mut rules: Vec<RuleFigures> = found.into_values().collect();
    rules.sort_by_key(|rule| std::cmp::Reverse((rule.frees, rule.bytes)));
    rules
}

/// A rule in a few words.
fn means(rule: Rule) -> &'static str {
    match rule {
        Rule::Main => "main is never deleted",
        Rule::Line => "the line of a living branch",
        Rule::KeepBranches => "a line that retention.keep-branches keeps",
        Rule::Pinned => "retention.pinned names it",
        Rule::Lease => "a build that was given it may still run",
        Rule::History => "a line left it not long ago",
        Rule::KeepAtLeast => "one of the newest that main has left",
        Rule::Head => "of the commit that a living line holds",
        Rule::Fork => "says that a commit is the head of a fork's pull request",
        Rule::Child => "a part of an index that is kept",
        Rule::NotCache => "not a cache: never touched",
        Rule::NotOurs => "of no project of the policy: never touched",
        Rule::Unread => "its manifest could not be read: never touched",
        Rule::IdleBranch => "the branch has not moved for retention.idle-branch",
        Rule::DeletedLine => "its branch or pull request is gone",
        Rule::ExpiredHistory => "a line left it longer ago than retention.history",
        Rule::OldCommit => "of a commit that no living line holds",
        Rule::AbandonedExport => "an export older than the lease",
        Rule::OldFork => "says so of a commit, and is older than retention.idle-branch",
        Rule::OldGiven => "a join that no build was given within the lease",
        Rule::Orphan => "without a tag for longer than retention.orphans",
        Rule::ScopeBudget => "used least lately, and retention.scope-budget is exceeded",
        Rule::RepositoryBudget => "used least lately, and retention.repository-budget is exceeded",
    }
}

fn largest_deletions(seen: &Seen<'_>) -> Vec<Deletion> {
    let of_plan = |plan: &'_ Plan| -> Vec<Deletion> {
        let repository = plan.repository.to_string();
        let deletion = |verdict: &Verdict| Deletion {
            repository: repository.clone(),
            digest: verdict.image.digest.to_string(),
            tags: verdict.image.tags.clone(),
            pushed_at: verdict.image.pushed_at,
            frees: verdict.frees,
            rule: verdict.rule.name().to_owned(),
            why: verdict.why(),
        };
        plan.deletions().into_iter().map(deletion).collect()
    };
    let mut all: Vec<Deletion> = seen.repositories.iter().flat_map(|of| of_plan(&of.plan)).collect();
    all.sort_by(|a, b| b.frees.cmp(&a.frees).then_with(|| a.pushed_at.cmp(&b.pushed_at)));
    all.truncate(LARGEST);
    all
}

fn notes(seen: &Seen<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for Repository { inventory, plan } in seen.repositories {
        let name = &plan.repository;
        notes.extend(plan.refused.iter().map(|why| format!("{name}: {why}")));
        notes.extend(plan.notes.iter().map(|note| format!("{name}: {note}")));
        let archived = inventory.images.iter().filter(|image| image.is_archived).count();
        if archived > 0 {
            let images = count(archived, "archived image");
            notes.push(format!(
                "{name}: {images}: what they hold cannot be read, and is counted nowhere here"
            ));
        }
    }
    for of in seen.builds.iter().filter(|of| of.builds.len() >= MAX_BUILDS) {
        notes.push(format!(
            "{}: only its newest {MAX_BUILDS} builds were read, which may be less than {DAYS} days",
            of.project
        ));
    }
    for project in seen.projects.iter().filter(|project| !project.more_sources.is_empty()) {
        notes.push(format!(
            "{}: its builds also read what more-sources names, so those that were given nothing may not be quite cold",
            project.name
        ));
    }
    let unseen: BTreeSet<&ProjectName> =
        seen.builds.iter().filter(|of| of.builds.is_empty()).map(|of| &of.project).collect();
    if !unseen.is_empty() {
        let names: Vec<&str> = unseen.iter().take(10).map(|name| name.as_str()).collect();
        let more = unseen.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        notes.push(format!("CodeBuild knows no builds of {}{more}", names.join(", ")));
    }
    notes
}
