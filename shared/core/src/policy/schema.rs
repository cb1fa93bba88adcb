//! What a policy document may say: its fields, their values, and what rules must not do to each other.

use std::collections::{BTreeMap, HashMap};

use super::document::{Fields, Mistake, Node, Place, load, read, shown};
use super::pattern::{Names, PROJECT, Template};
use super::settings::{SETTINGS, built_in, settings};
use super::values::{check_id_of, check_repository_id_of, repository};
use super::{ForkBuilds, PathsUnknown, Rule, Settings};
use crate::event::Change;
use crate::names::{CacheRepository, ProjectName, Repository};

const VERSION: i64 = 1;
const DOCUMENT: &[&str] = &["version", "defaults", "projects"];
/// What only a rule can say, beside [`SETTINGS`].
const RULE: &[&str] = &["name", "repository", "repository-id"];

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
        &document.section("defaults", SETTINGS, &mut found),
        built_in().map_err(|wrong| vec![root.place.mistake(wrong)])?,
        &mut found,
    );
    let entries = document.get("projects").map(|node| node.list(&mut found)).unwrap_or_default();
    let drafts: Vec<_> = entries.iter().map(|entry| draft(entry, &defaults, &mut found)).collect();
    for draft in &drafts {
        check_names(draft, &mut found);
        check_repository_id(draft, &mut found);
        check_bitbucket(draft, &mut found);
        check_actors(draft, &mut found);
        if draft.settings.builds.start {
            check_paths(draft, &mut found);
            check_messages(draft, &mut found);
            check_on(draft, &mut found);
            check_tags(draft, &mut found);
        }
    }
    check_order(&drafts, &mut found);
    check_sharing(&drafts, &mut found);
    check_same_ids(&drafts, &mut found);
    check_forks(&drafts, &mut found);
    if found.is_empty() { Ok(drafts.into_iter().filter_map(Draft::into_rule).collect()) } else { Err(found) }
}

/// A rule as far as it could be read, so that what is wrong in one field does not hide what is in another.
struct Draft<'y> {
    fields: Fields<'y>,
    names: Option<Names>,
    repository: Option<Template>,
    repository_id: Option<String>,
    settings: Settings,
}

impl Draft<'_> {
    fn into_rule(self) -> Option<Rule> {
        let Self { names, repository, repository_id, settings, .. } = self;
        Some(Rule { names: names?, repository: repository?, repository_id, settings })
    }

    /// The project, if the rule names one.
    fn project(&self) -> Option<&ProjectName> {
        self.names.as_ref().and_then(Names::plain)
    }

    /// Where the rule says a field. A default is not written in the rule, so its name stands for it.
    fn place_of(&self, field: &str) -> Place {
        let written = self.fields.place_of(field).or_else(|| self.fields.place_of("name"));
        written.unwrap_or_else(|| self.fields.place.clone())
    }

    /// Whether a field of this rule, or of the defaults, has a mistake already.
    fn has_mistake(&self, field: &str, found: &[Mistake]) -> bool {
        let (own, default) = (format!("{}.{field}", self.fields.place.path()), format!("defaults.{field}"));
        found.iter().any(|mistake| mistake.path.starts_with(&own) || mistake.path.starts_with(&default))
    }
}

fn draft<'y>(entry: &Node<'y>, defaults: &Settings, found: &mut Vec<Mistake>) -> Draft<'y> {
    let fields = entry.fields(&[RULE, SETTINGS].concat(), found);
    let names = fields.require("name", found).and_then(|node| read(node, Names::parse, found));
    let repository = fields.require("repository", found).and_then(|node| read(node, repository, found));
    let repository_id =
        fields.get("repository-id").and_then(|node| read(node, |text| Ok(text.to_owned()), found));
    let settings = settings(&fields, defaults.clone(), found);
    Draft { fields, names, repository, repository_id, settings }
}

/// An id that no webhook tells would keep all of a repository's out.
fn check_repository_id(draft: &Draft<'_>, found: &mut Vec<Mistake>) {
    let (Some(repository), Some(id)) = (&draft.repository, &draft.repository_id) else { return };
    let place = || draft.place_of("repository-id");
    if draft.names.as_ref().is_some_and(|names| names.plain().is_none()) {
        let wrong = "a glob is of many repositories, and an id of one: write a rule for that project";
        found.push(place().mistake(wrong));
    } else if let Err(wrong) = check_repository_id_of(&repository.to_string().to_lowercase(), id) {
        found.push(place().mistake(wrong));
    }
}

/// A repository has one id, whichever rule says it.
fn check_same_ids(drafts: &[Draft<'_>], found: &mut Vec<Mistake>) {
    let mut known: HashMap<Repository, &str> = HashMap::new();
    for draft in drafts {
        let (Some(name), Some(repository), Some(id)) =
            (draft.project(), &draft.repository, &draft.repository_id)
        else {
            continue;
        };
        let Ok(repository) = Repository::new(repository.as_is(name)) else { continue };
        let first = *known.entry(repository).or_insert(id);
        if first != id {
            let wrong = format!("another rule says `{}` of the same repository", shown(first));
            found.push(draft.place_of("repository-id").mistake(wrong));
        }
    }
}

/// Bitbucket tells only the start of a pull request's head, which is not enough to build it.
fn check_bitbucket(draft: &Draft<'_>, found: &mut Vec<Mistake>) {
    let Some(repository) = &draft.repository else { return };
    if !repository.to_string().to_lowercase().starts_with("bitbucket.org/") {
        return;
    }
    let why = "Bitbucket tells only twelve digits of a pull request's head";
    let builds = &draft.settings.builds;
    if !builds.on_push && !builds.on_pull_request.is_empty() && builds.start {
        let wrong = format!("{why}, so no branch would be built: add `push`");
        found.push(draft.place_of("builds.on").mistake(wrong));
    }
    if draft.settings.builds.forks.build != ForkBuilds::None {
        let wrong = format!("{why}, so no fork can be built: write `none`");
        found.push(draft.place_of("builds.forks.build").mistake(wrong));
    }
}

/// An account that is named otherwise than its forge tells it would be kept out, or let in, by nobody's
/// notice.
fn check_actors(draft: &Draft<'_>, found: &mut Vec<Mistake>) {
    let Some(repository) = &draft.repository else { return };
    let host = repository.to_string().to_lowercase();
    let actors = &draft.settings.builds.actors;
    for id in actors.included.iter().chain(&actors.excluded) {
        if let Err(wrong) = check_id_of(&host, &id.pattern()) {
            found.push(draft.place_of("builds.actors").mistake(wrong));
        }
    }
}

/// The forge of the drafted repository, if it is one whose address alone tells it.
fn forge_by_host(draft: &Draft<'_>) -> Option<&'static str> {
    let repository = draft.repository.as_ref()?.to_string().to_lowercase();
    let hosts =
        [("github.com/", "GitHub"), ("bitbucket.org/", "Bitbucket"), ("git-codecommit.", "CodeCommit")];
    hosts.into_iter().find(|(host, _)| repository.starts_with(host)).map(|(_, forge)| forge)
}

/// Only pushes tell files, and not at every forge: a filter of files must not ask what nobody answers.
fn check_paths(draft: &Draft<'_>, found: &mut Vec<Mistake>) {
    let builds = &draft.settings.builds;
    let strict = match (&builds.skip_paths, builds.paths_unknown) {
        (Some(_), _) => Some("builds.skip-paths"),
        (None, PathsUnknown::Skip) if !builds.paths.match_all() => Some("builds.paths-unknown"),
        _ => None,
    };
    if !builds.on_push && (strict.is_some() || !builds.paths.match_all()) {
        let wrong = "only a push tells which files changed, and `paths` or `skip-paths` ask: add `push`";
        found.push(draft.place_of("builds.on").mistake(wrong));
    }
    let Some(field) = strict else { return };
    if let Some(forge @ ("Bitbucket" | "CodeCommit")) = forge_by_host(draft) {
        let wrong = format!("{forge} never tells which files changed, so nothing would be built");
        found.push(draft.place_of(field).mistake(wrong));
    } else if builds.forks.build != ForkBuilds::None {
        let wrong = format!("no pull request tells which files changed, and `{field}` asks: write `none`");
        found.push(draft.place_of("builds.forks.build").mistake(wrong));
    }
}

/// The same of messages.
fn check_messages(draft: &Draft<'_>, found: &mut Vec<Mistake>) {
    let builds = &draft.settings.builds;
    if builds.messages.match_all() {
        return;
    }
    match forge_by_host(draft) {
        Some("CodeCommit") => {
            let wrong = "CodeCommit tells no message of a commit, so nothing would be built";
            found.push(draft.place_of("builds.messages").mistake(wrong));
        }
        Some("GitHub") => {
            let why = "GitHub tells no message of a pull request's commits, and `messages` asks";
            if !builds.on_push {
                found.push(draft.place_of("builds.on").mistake(format!("{why}: add `push`")));
            }
            if builds.forks.build != ForkBuilds::None {
                found.push(draft.place_of("builds.forks.build").mistake(format!("{why}: write `none`")));
            }
        }
        _ => {}
    }
}

/// Forks are built by their pull requests: where those start nothing, a policy that has forks built
/// contradicts itself.
fn check_on(draft: &Draft<'_>, found: &mut Vec<Mistake>) {
    let builds = &draft.settings.builds;
    let has = |change| builds.on_pull_request.contains(&change);
    let wrong = match builds.forks.build {
        ForkBuilds::ReadOnly if builds.on_pull_request.is_empty() => {
            "forks are built by their pull requests, which `on` leaves out: add `pull-request`, or build no forks"
        }
        ForkBuilds::AfterApproval if !has(Change::Opened) || !has(Change::Pushed) => {
            "what is approved may be what a pull request came with or what was pushed later: add `pull-request`, or \
             build no forks"
        }
        _ => return,
    };
    found.push(draft.place_of("builds.on").mistake(wrong));
}

/// Globs over tags say nothing where no tag is built, and what guards files cannot let a tag in.
fn check_tags(draft: &Draft<'_>, found: &mut Vec<Mistake>) {
    let builds = &draft.settings.builds;
    if !builds.on_tag && !builds.tags.match_all() {
        let wrong = "`tags` asks the pushes of tags, which `on` leaves out: add `tag`";
        found.push(draft.place_of("builds.tags").mistake(wrong));
    }
    if builds.on_tag && builds.skip_paths.is_some() {
        let wrong = "no tag tells which files changed, and `skip-paths` asks: leave `tag` out";
        found.push(draft.place_of("builds.on").mistake(wrong));
    }
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
            let repository = draft.repository.as_ref().map(|template| Repository::new(template.as_is(name)));
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

/// Builds of forks run in a project of their own: one that a rule serves may have a role that writes caches.
fn check_forks(drafts: &[Draft<'_>], found: &mut Vec<Mistake>) {
    let named = drafts.iter().filter_map(|draft| Some((draft.project()?, draft)));
    let served: BTreeMap<&ProjectName, &Draft<'_>> = named.collect();
    let mut forks: BTreeMap<String, &ProjectName> = BTreeMap::new();
    for draft in drafts {
        for (field, text) in missing_of_forks(&draft.settings) {
            if !draft.has_mistake(field, found) {
                found.push(draft.place_of("builds.forks.build").mistake(text));
            }
        }
        let (Some(names), Some(template)) = (&draft.names, &draft.settings.fork_project) else { continue };
        if let Some(wrong) = wrong_fork_project(names, template, &served) {
            found.push(draft.place_of("builds.forks.project").mistake(wrong));
        }
        let Some(name) = draft.project() else { continue };
        let fork = template.of(name);
        if let Some(other) = forks.get(&fork).filter(|other| **other != name) {
            let why = "pull requests of two projects have the same numbers";
            let wrong =
                format!("`{fork}` builds the forks of `{other}` already, and {why}; give each its own");
            found.push(draft.place_of("builds.forks.project").mistake(wrong));
        }
        forks.insert(fork, name);
    }
}

/// The fields that building forks needs and that are not there, and what to say then.
fn missing_of_forks(settings: &Settings) -> Vec<(&'static str, &'static str)> {
    let forks = &settings.builds.forks;
    let mut missing = Vec::new();
    if forks.build != ForkBuilds::None && settings.fork_project.is_none() {
        let text = "forks are built by a CodeBuild project of their own, whose role writes nothing: set \
                    `builds.forks.project`, such as `\"{project}-forks\"`";
        missing.push(("builds.forks.project", text));
    }
    if forks.build == ForkBuilds::AfterApproval && forks.approvers.is_empty() {
        let text = "forks are built after an approval, and nobody's counts: set `builds.forks.approvers`, such as \
                    `[\"49699333\"]`";
        missing.push(("builds.forks.approvers", text));
    }
    missing
}

fn wrong_fork_project(
    names: &Names,
    template: &Template,
    served: &BTreeMap<&ProjectName, &Draft<'_>>,
) -> Option<String> {
    let need = "forks need a project of their own, such as `\"{project}-forks\"`, whose role writes nothing";
    let taken = |fork: &ProjectName| {
        let rule = served.get(fork)?.fields.place.path();
        Some(format!("`{fork}` is the project of {rule}; {need}"))
    };
    match names {
        Names::One(name) => match ProjectName::new(template.of(name)) {
            Err(wrong) => Some(wrong.to_string()),
            Ok(fork) if fork.as_str().eq_ignore_ascii_case(name.as_str()) => {
                Some(format!("`{fork}` is the project itself; {need}"))
            }
            Ok(fork) => taken(&fork),
        },
        Names::Glob(_) if template.is_project() => {
            Some(format!("`{template}` is the project itself; {need}"))
        }
        Names::Glob(_) if template.has_project() => {
            let is_made = |fork: &&ProjectName| {
                let project = template.project_in(fork.as_str()).and_then(|name| ProjectName::new(name).ok());
                project.is_some_and(|project| {
                    template.of(&project) == fork.as_str()
                        && names.may_match(&project)
                        && !served.contains_key(&project)
                })
            };
            taken(served.keys().copied().find(is_made)?)
        }
        Names::Glob(_) => {
            let fork = ProjectName::new(template.to_string()).ok()?;
            let own = || {
                names.matches(&fork).then(|| format!("`{fork}` is one of the projects of `{names}`; {need}"))
            };
            let shared = || {
                let why = "pull requests of two projects have the same numbers";
                Some(format!(
                    "the projects of `{names}` would share `{fork}`: {why}; write it with `{PROJECT}`"
                ))
            };
            taken(&fork).or_else(own).or_else(shared)
        }
    }
}
