//! What `defaults` and every rule can set: the fields, what holds without them, and how each is read.

use std::collections::HashMap;
use std::mem;

use jiff::SignedDuration;

use super::document::{Fields, Mistake, Node, read};
use super::values::{self, MAX_ENTRIES, Trigger};
use super::{
    Builds, CacheMode, Export, ExportBuilds, ForkBuilds, Forks, Globs, Mode, MountSettings, PathsUnknown,
    Promotion, Retention, Settings, Superseded, TargetSettings, Warm, suffix_of,
};
use crate::event::Change;

/// What builders are made of where a policy names nothing else: a BuildKit that the tests build with.
pub const DEFAULT_BUILDER_IMAGE: &str = "moby/buildkit:v0.25.2";
/// The image whose busybox restores and saves cache mounts where a policy names no other: it has to be a static one.
pub const DEFAULT_TOOLS_IMAGE: &str = "busybox:1.37.0-musl";
/// Most cache mounts of a target: each is a build of its own, before and after.
const MAX_MOUNTS: usize = 8;
/// What a mount may hold where a policy says nothing, in bytes.
const MOUNT_LIMIT: u64 = 2_000_000_000;
/// Most targets of a project, each platform of each counted.
const MAX_TARGETS: usize = 100;
/// Most caches of others: each costs every build a request.
const MAX_SOURCES: usize = 4;

pub(super) const SETTINGS: &[&str] = &[
    "default-branch",
    "cache-repository",
    "builds-repository",
    "targets",
    "builds",
    "export",
    "builder",
    "more-sources",
    "promotion",
    "probation",
    "line-budget",
    "warm",
    "retention",
];
pub(super) const TARGET: &[&str] = &["name", "platforms", "mounts"];
pub(super) const MOUNT: &[&str] = &["id", "options", "limit"];
pub(super) const BUILDS: &[&str] = &[
    "start",
    "on",
    "tags",
    "branches",
    "bases",
    "actors",
    "messages",
    "paths",
    "paths-unknown",
    "skip-paths",
    "skip-marks",
    "skip-labels",
    "drafts",
    "superseded",
    "forks",
];
pub(super) const FORKS: &[&str] = &["build", "project", "approvers"];
pub(super) const EXPORT: &[&str] = &["builds", "mode", "compression"];
pub(super) const BUILDER: &[&str] = &["image", "tools"];
pub(super) const WARM: &[&str] = &["after-merge", "stale-after", "refresh", "base-images"];
pub(super) const RETENTION: &[&str] = &[
    "mode",
    "lease",
    "idle-branch",
    "history",
    "keep-at-least",
    "keep-branches",
    "pinned",
    "orphans",
    "scope-budget",
    "repository-budget",
    "max-deletions",
];

/// What holds where a document says nothing.
pub(super) fn built_in() -> Result<Settings, String> {
    Ok(Settings {
        default_branch: None,
        cache_repository: values::cache_repository("stoker/{project}")?,
        builds_repository: None,
        targets: Vec::new(),
        builds: Builds {
            start: true,
            on_push: true,
            on_pull_request: Change::BUILT.to_vec(),
            on_tag: false,
            tags: Globs::default(),
            branches: Globs::default(),
            bases: Globs::default(),
            actors: Globs::default(),
            messages: Globs::default(),
            paths: Globs::default(),
            paths_unknown: PathsUnknown::Build,
            skip_paths: None,
            skip_marks: true,
            skip_labels: vec!["skip-ci".to_owned()],
            drafts: true,
            superseded: Superseded::Finish,
            forks: Forks { build: ForkBuilds::None, project: None, approvers: Vec::new() },
        },
        fork_project: None,
        export: Export { builds: ExportBuilds::All, mode: CacheMode::Max, compression: None },
        builder_image: DEFAULT_BUILDER_IMAGE.to_owned(),
        tools_image: DEFAULT_TOOLS_IMAGE.to_owned(),
        more_sources: Vec::new(),
        promotion: Promotion::Merged,
        probation: SignedDuration::from_hours(7 * 24),
        line_budget: None,
        warm: Warm {
            after_merge: true,
            stale_after: SignedDuration::from_hours(7 * 24),
            refresh: None,
            base_images: Vec::new(),
        },
        retention: Retention {
            mode: Mode::Report,
            lease: SignedDuration::from_hours(24),
            idle_branch: SignedDuration::from_hours(30 * 24),
            history: SignedDuration::from_hours(3 * 24),
            keep_at_least: 1,
            keep_branches: None,
            pinned: Vec::new(),
            orphans: Some(SignedDuration::from_hours(7 * 24)),
            scope_budget: None,
            repository_budget: None,
            max_deletions: 1000,
        },
    })
}

/// What a section sets, over what holds without it.
pub(super) fn settings(fields: &Fields<'_>, mut base: Settings, found: &mut Vec<Mistake>) -> Settings {
    let branch = |text: &str| values::branch(text).map(Some);
    fields.set("default-branch", branch, &mut base.default_branch, found);
    fields.set("cache-repository", values::cache_repository, &mut base.cache_repository, found);
    fields.set("builds-repository", values::builds_repository, &mut base.builds_repository, found);
    if let Some(node) = fields.get("targets") {
        base.targets = targets(node, found);
    }
    let section = fields.section("builds", BUILDS, found);
    builds(&section, &mut base.builds, found);
    let forks = section.section("forks", FORKS, found);
    forks.set("build", values::fork_builds, &mut base.builds.forks.build, found);
    forks.set("project", values::fork_project, &mut base.fork_project, found);
    forks.set_list("approvers", MAX_ENTRIES, values::approver, &mut base.builds.forks.approvers, found);
    let export = fields.section("export", EXPORT, found);
    export.set("builds", values::export_builds, &mut base.export.builds, found);
    export.set("mode", values::cache_mode, &mut base.export.mode, found);
    export.set("compression", values::compression, &mut base.export.compression, found);
    let builder = fields.section("builder", BUILDER, found);
    builder.set("image", values::builder_image, &mut base.builder_image, found);
    builder.set("tools", values::builder_image, &mut base.tools_image, found);
    fields.set_list("more-sources", MAX_SOURCES, values::more_source, &mut base.more_sources, found);
    fields.set("promotion", values::promotion, &mut base.promotion, found);
    fields.set("probation", values::probation, &mut base.probation, found);
    fields.set("line-budget", values::line_budget, &mut base.line_budget, found);
    let warm = fields.section("warm", WARM, found);
    warm.set_flag("after-merge", &mut base.warm.after_merge, found);
    warm.set("stale-after", values::duration, &mut base.warm.stale_after, found);
    warm.set("refresh", values::refresh, &mut base.warm.refresh, found);
    warm.set_list("base-images", MAX_ENTRIES, values::base_image, &mut base.warm.base_images, found);
    let retention = fields.section("retention", RETENTION, found);
    retain(&retention, &mut base.retention, found);
    base
}

fn retain(fields: &Fields<'_>, retention: &mut Retention, found: &mut Vec<Mistake>) {
    fields.set("mode", values::mode, &mut retention.mode, found);
    fields.set("lease", values::lease, &mut retention.lease, found);
    fields.set("idle-branch", values::duration, &mut retention.idle_branch, found);
    fields.set("history", values::duration, &mut retention.history, found);
    fields.set_count("keep-at-least", 0, &mut retention.keep_at_least, found);
    if let Some(node) = fields.get("keep-branches") {
        let none = node.is_empty_list();
        retention.keep_branches = (!none).then(|| values::branches(node, found));
    }
    fields.set_list("pinned", MAX_ENTRIES, values::pin, &mut retention.pinned, found);
    fields.set("orphans", values::optional_duration, &mut retention.orphans, found);
    fields.set("scope-budget", values::line_budget, &mut retention.scope_budget, found);
    fields.set("repository-budget", values::line_budget, &mut retention.repository_budget, found);
    fields.set_count("max-deletions", 1, &mut retention.max_deletions, found);
}

fn builds(fields: &Fields<'_>, builds: &mut Builds, found: &mut Vec<Mistake>) {
    fields.set_flag("start", &mut builds.start, found);
    if let Some(node) = fields.get("on") {
        let before = found.len();
        let events = node.texts(MAX_ENTRIES, values::event, found);
        if found.len() == before {
            let changes = |change: &Change| events.iter().any(|event| event.changes().contains(change));
            builds.on_push = events.contains(&Trigger::Push);
            builds.on_tag = events.contains(&Trigger::Tag);
            builds.on_pull_request = Change::BUILT.into_iter().filter(changes).collect();
        }
        if events.is_empty() && found.len() == before {
            let wrong =
                "nothing would start a build; write which of `push`, `pull-request` and `tag` do, or set";
            found.push(
                node.place.mistake(format!("{wrong} `start: false` if somebody else starts the builds")),
            );
        }
    }
    if let Some(node) = fields.get("tags") {
        builds.tags = values::tags(node, found);
    }
    if let Some(node) = fields.get("branches") {
        builds.branches = values::branches(node, found);
    }
    if let Some(node) = fields.get("bases") {
        builds.bases = values::branches(node, found);
    }
    if let Some(node) = fields.get("actors") {
        builds.actors = values::actors(node, found);
    }
    if let Some(node) = fields.get("messages") {
        builds.messages = values::messages(node, found);
    }
    if let Some(node) = fields.get("paths") {
        builds.paths = values::paths(node, found);
    }
    fields.set("paths-unknown", values::paths_unknown, &mut builds.paths_unknown, found);
    if let Some(node) = fields.get("skip-paths") {
        let none = node.is_empty_list();
        builds.skip_paths = (!none).then(|| values::paths(node, found));
    }
    fields.set_flag("skip-marks", &mut builds.skip_marks, found);
    fields.set_list("skip-labels", MAX_ENTRIES, values::label, &mut builds.skip_labels, found);
    fields.set_flag("drafts", &mut builds.drafts, found);
    fields.set("superseded", values::superseded, &mut builds.superseded, found);
}

/// The targets of a list, no two of which are told apart by nothing.
fn targets(node: &Node<'_>, found: &mut Vec<Mistake>) -> Vec<TargetSettings> {
    let entries = node.short_list(MAX_TARGETS, found);
    let mut all = Vec::new();
    let mut suffixes: HashMap<String, String> = HashMap::new();
    for entry in &entries {
        for target in entry_targets(entry, entries.len() == 1, found) {
            let suffix = suffix_of(target.name.as_ref(), target.platform.as_ref());
            let title = title(&target);
            if let Some(other) = suffixes.get(&suffix) {
                let wrong = if *other == title {
                    format!("{title} is there twice")
                } else {
                    let why = format!("the variables of both would end with `{suffix}`");
                    format!("{title} cannot be told from {other}: {why}; call one of them otherwise")
                };
                found.push(entry.place.mistake(wrong));
            }
            let is_known = |mount: &&MountSettings| {
                all.iter().any(|other: &TargetSettings| other.mounts.iter().any(|known| known.id == mount.id))
            };
            if let Some(mount) = target.mounts.iter().find(is_known) {
                let wrong = format!("the mount `{}` is another target's, too", mount.id);
                let why = "a builder has one of each id: name it once, or give each an `id` of its own";
                found.push(entry.place.mistake(format!("{wrong}; {why}")));
            }
            suffixes.entry(suffix).or_insert(title);
            all.push(target);
        }
    }
    if all.len() > MAX_TARGETS {
        let wrong = format!("{} targets, each platform of each counted; at most {MAX_TARGETS}", all.len());
        found.push(node.place.mistake(wrong));
    }
    all
}

/// The targets of one entry: one for each of its platforms. None if something is wrong with it.
fn entry_targets(entry: &Node<'_>, is_only: bool, found: &mut Vec<Mistake>) -> Vec<TargetSettings> {
    let before = found.len();
    let fields = entry.fields(TARGET, found);
    let name = fields.get("name").and_then(|node| read(node, values::target_name, found));
    let platforms = fields.get("platforms").map(|node| {
        let platforms = node.texts(MAX_TARGETS, values::platform, found);
        if platforms.is_empty() && found.len() == before {
            let wrong = "there is no platform in this list; leave it out for the builder's own";
            found.push(node.place.mistake(wrong));
        }
        platforms
    });
    let mounts = fields.get("mounts").map(|node| mounts(node, found));
    if found.len() == before && name.is_none() {
        if !is_only {
            let wrong = "the field `name` is missing; only a single target can do without";
            found.push(entry.place.mistake(wrong));
        } else if platforms.is_none() && mounts.is_none() {
            let wrong = "a target has a `name`, `platforms` or `mounts`; leave `targets` out for one image";
            found.push(entry.place.mistake(wrong));
        }
    }
    if found.len() > before {
        return Vec::new();
    }
    // A builder has one mount of an id, whichever platforms it builds: it is the first one's.
    let mut mounts = mounts.unwrap_or_default();
    let mut of = |platform| TargetSettings { name: name.clone(), platform, mounts: mem::take(&mut mounts) };
    match platforms {
        None => vec![of(None)],
        Some(platforms) => platforms.into_iter().map(|platform| of(Some(platform))).collect(),
    }
}

/// The cache mounts of a target, each of which is there once.
fn mounts(node: &Node<'_>, found: &mut Vec<Mistake>) -> Vec<MountSettings> {
    let mut mounts: Vec<MountSettings> = Vec::new();
    for entry in node.short_list(MAX_MOUNTS, found) {
        let fields = entry.fields(MOUNT, found);
        let (mut options, mut limit) = (String::new(), MOUNT_LIMIT);
        fields.set("options", values::mount_options, &mut options, found);
        fields.set("limit", values::mount_limit, &mut limit, found);
        let Some(id) = fields.require("id", found).and_then(|node| read(node, values::mount_id, found))
        else {
            continue;
        };
        if mounts.iter().any(|mount| mount.id == id) {
            found.push(entry.place.mistake(format!("the mount `{id}` is there twice")));
        }
        mounts.push(MountSettings { id, options, limit });
    }
    mounts
}

fn title(TargetSettings { name, platform, .. }: &TargetSettings) -> String {
    match (name, platform) {
        (Some(name), Some(platform)) => format!("`{name}` for `{platform}`"),
        (Some(name), None) => format!("`{name}`"),
        (None, Some(platform)) => format!("`{platform}`"),
        (None, None) => "the only image".to_owned(),
    }
}
