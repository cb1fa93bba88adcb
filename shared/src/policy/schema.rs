//! What a policy document may say: its fields, their values, and what rules must not do to each other.

use std::collections::HashMap;

use jiff::SignedDuration;

use super::document::{Fields, Mistake, Node, Place, load, read, shown};
use super::pattern::{Names, PROJECT, Template};
use super::{
    Builds, CacheMode, Export, ExportBuilds, ForkBuilds, Forks, Globs, Mode, Promotion, Retention, Rule,
    Settings, Superseded, Warm,
};
use crate::names::{Branch, CacheRepository, ProjectName, Repository};

/// Shortest duration in a policy.
pub const MINIMUM_DURATION: SignedDuration = SignedDuration::from_mins(1);
/// Longest duration in a policy: ten years, so that none leaves the calendar when it is taken from a time.
pub const MAXIMUM_DURATION: SignedDuration = SignedDuration::from_hours(3650 * 24);
/// Shortest lease, if that is more than [`MINIMUM_DURATION`].
pub const MINIMUM_LEASE: SignedDuration = SignedDuration::ZERO;

const VERSION: i64 = 1;
const DOCUMENT: &[&str] = &["version", "defaults", "projects"];
const DEFAULTS: &[&str] = &[
    "default-branch",
    "cache-repository",
    "builds-repository",
    "promotion",
    "line-budget",
    "warm",
    "retention",
];
const RULE: &[&str] = &[
    "name",
    "repository",
    "default-branch",
    "cache-repository",
    "builds-repository",
    "promotion",
    "line-budget",
    "warm",
    "retention",
];
const WARM: &[&str] = &["stale-after"];
const RETENTION: &[&str] = &["mode", "lease", "idle-branch"];

/// Reads a document into its rules, or finds all that is wrong with it.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, Vec<Mistake>> {
    let yaml = load(text).map_err(|mistake| vec![mistake])?;
    let mut found = Vec::new();
    let root = Node::root(&yaml);
    let document = root.fields(DOCUMENT, &mut found);
    if let Some(version) = document.require("version", &mut found) {
        match version.integer() {
            Some(VERSION) => {}
            // The fields of another version are not known, so nothing else can be said.
            Some(other) => {
                let wrong = format!("version {other} is not known here; this Stoker reads version {VERSION}");
                return Err(vec![version.place.mistake(wrong)]);
            }
            None => found.push(version.expected("the number 1")),
        }
    }
    let defaults = settings(
        &document.section("defaults", DEFAULTS, &mut found),
        built_in().map_err(|wrong| vec![root.place.mistake(wrong)])?,
        &mut found,
    );
    let entries = document.get("projects").map(|node| node.list(&mut found)).unwrap_or_default();
    let drafts: Vec<_> = entries.iter().map(|entry| draft(entry, &defaults, &mut found)).collect();
    for draft in &drafts {
        check_names(draft, &mut found);
    }
    check_order(&drafts, &mut found);
    check_sharing(&drafts, &mut found);
    if found.is_empty() { Ok(drafts.into_iter().filter_map(Draft::into_rule).collect()) } else { Err(found) }
}

/// A rule as far as it could be read, so that what is wrong in one field does not hide what is in another.
struct Draft<'y> {
    fields: Fields<'y>,
    names: Option<Names>,
    repository: Option<Template>,
    settings: Settings,
}

impl Draft<'_> {
    fn into_rule(self) -> Option<Rule> {
        Some(Rule { names: self.names?, repository: self.repository?, settings: self.settings })
    }

    /// The project, if the rule names one.
    fn project(&self) -> Option<&ProjectName> {
        self.names.as_ref().and_then(Names::plain)
    }

    /// Where the rule says a field. A default is not written in the rule, so its name stands for it.
    fn place_of(&self, field: &str) -> &Place {
        let node = self.fields.get(field).or_else(|| self.fields.get("name"));
        node.map_or(&self.fields.place, |node| &node.place)
    }
}

fn built_in() -> Result<Settings, String> {
    Ok(Settings {
        default_branch: branch("main")?,
        cache_repository: cache_repository("stoker/{project}")?,
        builds_repository: None,
        targets: Vec::new(),
        builds: Builds {
            start: true,
            on_push: true,
            on_pull_request: true,
            branches: Globs { included: Vec::new(), excluded: Vec::new() },
            paths: Globs { included: Vec::new(), excluded: Vec::new() },
            skip_marks: true,
            skip_labels: vec!["skip-ci".to_owned()],
            drafts: true,
            superseded: Superseded::Finish,
            forks: Forks { build: ForkBuilds::None, project: None, approvers: Vec::new() },
        },
        fork_project: None,
        export: Export { builds: ExportBuilds::All, mode: CacheMode::Max, compression: None },
        more_sources: Vec::new(),
        promotion: Promotion::Merged,
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
        },
    })
}

/// What a section sets, over what holds without it.
fn settings(fields: &Fields<'_>, mut base: Settings, found: &mut Vec<Mistake>) -> Settings {
    fields.set("default-branch", branch, &mut base.default_branch, found);
    fields.set("cache-repository", cache_repository, &mut base.cache_repository, found);
    fields.set("builds-repository", builds_repository, &mut base.builds_repository, found);
    fields.set("promotion", promotion, &mut base.promotion, found);
    fields.set("line-budget", line_budget, &mut base.line_budget, found);
    let warm = fields.section("warm", WARM, found);
    warm.set("stale-after", duration, &mut base.warm.stale_after, found);
    let retention = fields.section("retention", RETENTION, found);
    retention.set("mode", mode, &mut base.retention.mode, found);
    retention.set("lease", lease, &mut base.retention.lease, found);
    retention.set("idle-branch", duration, &mut base.retention.idle_branch, found);
    base
}

fn draft<'y>(entry: &Node<'y>, defaults: &Settings, found: &mut Vec<Mistake>) -> Draft<'y> {
    let fields = entry.fields(RULE, found);
    let names = fields.require("name", found).and_then(|node| read(node, Names::parse, found));
    let repository = fields.require("repository", found).and_then(|node| read(node, repository, found));
    let settings = settings(&fields, defaults.clone(), found);
    Draft { fields, names, repository, settings }
}

/// A project's name must make valid repositories, and a glob must keep its projects apart.
fn check_names(draft: &Draft<'_>, found: &mut Vec<Mistake>) {
    let caches = &draft.settings.cache_repository;
    let builds = draft.settings.builds_repository.as_ref();
    let repositories = [("cache-repository", Some(caches)), ("builds-repository", builds)];
    let repositories = repositories.into_iter().filter_map(|(field, template)| Some((field, template?)));
    let no_project = |template: &Template| !template.has_project();
    match &draft.names {
        None => {}
        Some(Names::One(name)) => {
            let repository = draft.repository.as_ref().map(|template| Repository::new(template.of(name)));
            if let Some(Err(wrong)) = repository {
                found.push(draft.place_of("repository").mistake(wrong.to_string()));
            }
            for (field, template) in repositories {
                if let Err(wrong) = CacheRepository::new(template.of(name)) {
                    found.push(draft.place_of(field).mistake(wrong.to_string()));
                }
            }
        }
        Some(Names::Glob(_)) => {
            if draft.repository.as_ref().is_some_and(no_project) {
                let wrong = format!("a glob's repository needs `{PROJECT}`");
                let why = "otherwise the project of a push cannot be told";
                found.push(draft.place_of("repository").mistake(format!("{wrong}: {why}")));
            }
            for (field, template) in repositories.filter(|(_, template)| no_project(template)) {
                let what = field.replace('-', " ");
                let wrong = format!("a glob's {what} needs `{PROJECT}`, and `{template}` has none");
                let why = "its projects would share one";
                found.push(draft.place_of(field).mistake(format!("{wrong}: {why}")));
            }
        }
    }
}

/// The first rule that matches wins, so no rule may stand behind one that takes all its projects.
fn check_order(drafts: &[Draft<'_>], found: &mut Vec<Mistake>) {
    let mut named: HashMap<&ProjectName, &Draft<'_>> = HashMap::new();
    let mut globs: Vec<(&Names, &Draft<'_>)> = Vec::new();
    for draft in drafts {
        let Some(names) = &draft.names else { continue };
        let place = draft.place_of("name");
        if let Some(first) = names.plain().and_then(|name| named.get(name)) {
            let first = first.fields.place.path();
            found.push(place.mistake(format!("{first} is already the rule for `{names}`")));
        } else if let Some((wide, first)) = globs.iter().find(|(earlier, _)| earlier.cover(names)) {
            let first = first.fields.place.path();
            let wrong = format!("this rule is never reached: {first} (`{wide}`) matches first");
            found.push(place.mistake(format!("{wrong}; put the narrower rule before it")));
        }
        match names {
            Names::One(name) => _ = named.entry(name).or_insert(draft),
            Names::Glob(_) => globs.push((names, draft)),
        }
    }
}

/// Budgets, deletion and trust are per repository, so no two projects may have the same, and what builds write must not
/// be what they are not to write.
fn check_sharing(drafts: &[Draft<'_>], found: &mut Vec<Mistake>) {
    let mut owners: HashMap<String, (&ProjectName, &str)> = HashMap::new();
    for draft in drafts {
        let Some(name) = draft.project() else { continue };
        let builds = draft.settings.builds_repository.as_ref();
        for (field, template) in
            [("cache-repository", Some(&draft.settings.cache_repository)), ("builds-repository", builds)]
        {
            let Some(repository) = template.map(|template| template.of(name)) else { continue };
            match owners.get(&repository) {
                // The same name twice is reported as that.
                Some((owner, known)) if *owner == name && *known == field => {}
                Some((owner, known)) => {
                    let wrong =
                        format!("`{repository}` is already the {} of `{owner}`", known.replace('-', " "));
                    let why = if *owner == name { "they must be two" } else { "each project needs its own" };
                    found.push(draft.place_of(field).mistake(format!("{wrong}; {why}")));
                }
                None => _ = owners.insert(repository, (name, field)),
            }
        }
    }
}

fn branch(text: &str) -> Result<Branch, String> {
    Branch::new(text).map_err(|e| e.to_string())
}

fn repository(text: &str) -> Result<Template, String> {
    let path = std::path::Path::new(text);
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("git")) {
        return Err(format!("write `{}` without the `.git` at its end", shown(text)));
    }
    template(text, |name| Repository::new(name).map(drop).map_err(|e| e.to_string()))
}

fn cache_repository(text: &str) -> Result<Template, String> {
    template(text, |name| CacheRepository::new(name).map(drop).map_err(|e| e.to_string()))
}

fn builds_repository(text: &str) -> Result<Option<Template>, String> {
    if text == "none" { Ok(None) } else { cache_repository(text).map(Some) }
}

fn promotion(text: &str) -> Result<Promotion, String> {
    match text {
        "merged" => Ok(Promotion::Merged),
        "rebuild" => Ok(Promotion::Rebuild),
        "off" => Ok(Promotion::Off),
        other => Err(format!("`{}` is no promotion; write `merged`, `rebuild` or `off`", shown(other))),
    }
}

/// Checks a name with a sample in the place of `{project}`.
fn template(text: &str, check: impl FnOnce(String) -> Result<(), String>) -> Result<Template, String> {
    let sample = text.replace(PROJECT, "project");
    if sample.contains(['{', '}']) {
        return Err(format!("`{}` has braces that are not `{PROJECT}`", shown(text)));
    }
    check(sample).map(|()| Template::new(text))
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "report" => Ok(Mode::Report),
        "apply" => Ok(Mode::Apply),
        other => Err(format!("`{}` is not a mode; write `report` or `apply`", shown(other))),
    }
}

fn line_budget(text: &str) -> Result<Option<u64>, String> {
    if text == "none" {
        return Ok(None);
    }
    let rule = "write a number and `MB` or `GB`, such as `500MB` or `10GB`, or `none`";
    let wrong = || format!("`{}` is not a size: {rule}", shown(text));
    let units = [("MB", 1_000_000), ("GB", 1_000_000_000)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .filter(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(wrong)?;
    match number.parse().unwrap_or(u64::MAX).saturating_mul(unit) {
        0 => Err(format!("`{}` would leave no cache: at least 1MB", shown(text))),
        bytes => Ok(Some(bytes)),
    }
}

fn duration(text: &str) -> Result<SignedDuration, String> {
    duration_from(MINIMUM_DURATION, text)
}

fn lease(text: &str) -> Result<SignedDuration, String> {
    duration_from(MINIMUM_LEASE.max(MINIMUM_DURATION), text)
}

fn duration_from(shortest: SignedDuration, text: &str) -> Result<SignedDuration, String> {
    let rule = "write a number and `m`, `h` or `d`, such as `30m`, `24h` or `7d`";
    let wrong = || format!("`{}` is not a duration: {rule}", shown(text));
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number = text.strip_suffix(unit).filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    // Digits that do not fit are a duration, only too long a one.
    let number = number.ok_or_else(wrong)?.parse().unwrap_or(i64::MAX);
    let value = SignedDuration::from_secs(number.saturating_mul(seconds));
    if value < shortest {
        Err(format!("`{}` is too short: at least {shortest:#}", shown(text)))
    } else if value > MAXIMUM_DURATION {
        Err(format!("`{}` is too long: at most 3650d", shown(text)))
    } else {
        Ok(value)
    }
}
