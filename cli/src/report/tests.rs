//! Reports of worlds made by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use buildkit_cache::CONFIG_MEDIA_TYPE;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stoker_core::build_inputs::{GivenInputs, variable};
use stoker_core::names::{Branch, CacheRepository, Commit, Digest, Line, ProjectName, Scope, Tag};
use stoker_core::policy::{Mode, Policy, Project};
use stoker_core::ports::{Build, BuildStatus, ListedImage};
use stoker_core::provenance::{Built, Provenance};
use stoker_core::retain::inventory::{Inventory, ManifestIndex};
use stoker_core::retain::plan::{PlanInputs, plan};

use super::data::{BuildsOf, Report, Repository, Seen, gather};
use super::page::{minutes, page};
use crate::html::{dollars, escaped};

const MB: u64 = 1_000_000;

fn now() -> Timestamp {
    "2026-11-21T08:00:00Z".parse().unwrap()
}

fn days_ago(days: i64) -> Timestamp {
    now() - SignedDuration::from_hours(24 * days)
}

fn projects(yaml: &str) -> Vec<Project> {
    let policy = format!("version: 1\nprojects: [{yaml}]");
    Policy::parse("policy", &policy).unwrap().named_projects()
}

fn project(name: &str) -> String {
    format!("{{name: {name}, repository: github.com/example/{name}, retention: {{mode: apply}}}}")
}

/// What is put into a repository.
struct Given {
    tags: Vec<String>,
    pushed: Timestamp,
    line: Option<Line>,
    /// Its build, when that was, and how warm.
    built: Option<(String, Timestamp, u8)>,
    /// Its layers by name, with their sizes.
    layers: Vec<(String, u64)>,
}

impl Given {
    fn manifest(&self) -> Vec<u8> {
        let layer =
            |(name, size): &(String, u64)| json!({"digest": Digest::of(name.as_bytes()), "size": size});
        let provenance = Provenance {
            built: self.built.as_ref().map(|(build, at, _)| Built {
                at: *at,
                commit: commit(build),
                build: build.clone(),
            }),
            reused_percent: self.built.as_ref().map(|(_, _, percent)| *percent),
            ..Provenance::default()
        };
        let annotations = self.line.as_ref().map(|line| provenance.annotations(line)).unwrap_or_default();
        let layers: Vec<Value> = self.layers.iter().map(layer).collect();
        // Two tags never share a config here, so that every image is one of its own.
        let config = Digest::of(self.tags.concat().as_bytes());
        let config = json!({"mediaType": CONFIG_MEDIA_TYPE, "digest": config, "size": 0});
        json!({"config": config, "layers": layers, "annotations": annotations}).to_string().into_bytes()
    }
}

fn commit(of: &str) -> Commit {
    let digest = Digest::of(of.as_bytes());
    Commit::new(&digest.hex()[..40]).unwrap()
}

fn layers(names: &[(&str, u64)]) -> Vec<(String, u64)> {
    names.iter().map(|(name, megabytes)| ((*name).to_owned(), megabytes * MB)).collect()
}

fn repository(name: &str, projects: &[Project], given: &[Given]) -> Repository {
    let mut known = ManifestIndex::default();
    let mut images = Vec::new();
    for given in given {
        let manifest = given.manifest();
        let digest = Digest::of(&manifest);
        known.learn(digest.clone(), &manifest);
        images.push(Arc::new(ListedImage {
            digest,
            tags: given.tags.clone(),
            pushed_at: given.pushed,
            bytes: given.layers.iter().map(|(_, size)| size).sum(),
            pulled_at: None,
            is_archived: false,
        }));
    }
    let repository = CacheRepository::new(name).unwrap();
    let inventory = Inventory { repository, images, known, unread: Vec::new() };
    let plan = plan(&inventory, projects, &PlanInputs::default(), now());
    Repository { inventory, plan }
}

/// A build that succeeded; `inputs` is what it was given, `None` where Stoker had no part in it.
fn build(project: &str, started: Timestamp, minutes: i64, inputs: Option<&[&str]>) -> Build {
    let mut environment = BTreeMap::new();
    if let Some(inputs) = inputs {
        let refs = inputs.iter().map(|name| {
            let digest = Digest::of(name.as_bytes());
            format!("type=registry,ref=registry.example/stoker/{project}@{digest}")
        });
        environment.insert(variable::LINE.to_owned(), "main".to_owned());
        environment.insert(variable::FROM.to_owned(), refs.collect::<Vec<_>>().join(" "));
    }
    Build {
        id: format!("{project}:{}", started.as_second()),
        project: ProjectName::new(project).unwrap(),
        status: BuildStatus::Succeeded,
        started_at: started,
        ended_at: Some(started + SignedDuration::from_mins(minutes)),
        source_version: None,
        resolved_commit: None,
        inputs: GivenInputs::read(&environment),
        claims: false,
    }
}

fn report(projects: &[Project], repositories: &[Repository], builds: &[BuildsOf]) -> Report {
    gather(Seen {
        now: now(),
        account: Some("123456789012".to_owned()),
        region: Some("eu-central-1".to_owned()),
        projects,
        repositories,
        builds,
        dollars_per_minute: 0.005,
    })
}

fn scope(name: &str) -> Scope {
    Scope::of(&ProjectName::new(name).unwrap())
}

fn branch(name: &str) -> Line {
    Line::Branch(Branch::new(name).unwrap())
}

/// One project: main with two builds, a living branch, an idle one, and an export.
fn small() -> (Vec<Project>, Repository) {
    let projects = projects(&project("app"));
    let app = scope("app");
    let built = |build: &str, days, percent| Some((build.to_owned(), days_ago(days), percent));
    let old = Digest::of(b"old");
    let given = [
        Given {
            tags: vec![Tag::line(&app, &Line::Main).to_string()],
            pushed: days_ago(1),
            line: Some(Line::Main),
            built: built("app:2", 1, 90),
            layers: layers(&[("base", 100), ("main", 50)]),
        },
        Given {
            tags: vec![Tag::history(&app, &Line::Main, days_ago(1), &old).to_string()],
            pushed: days_ago(10),
            line: Some(Line::Main),
            built: built("app:1", 10, 50),
            layers: layers(&[("base", 100), ("old", 30)]),
        },
        Given {
            tags: vec![Tag::line(&app, &branch("feature/a")).to_string()],
            pushed: days_ago(2),
            line: Some(branch("feature/a")),
            built: built("app:3", 2, 20),
            layers: layers(&[("base", 100), ("feature", 7)]),
        },
        Given {
            tags: vec![Tag::line(&app, &branch("idle")).to_string()],
            pushed: days_ago(300),
            line: Some(branch("idle")),
            built: built("app:0", 300, 0),
            layers: layers(&[("base", 100), ("idle", 1000)]),
        },
        Given {
            tags: vec![Tag::export(&app, "key").to_string()],
            pushed: now(),
            // Whatever a build says of itself, it is no cache of main's.
            line: Some(Line::Main),
            built: built("app:9", 0, 100),
            layers: layers(&[("main", 50), ("export", 3)]),
        },
    ];
    let repository = repository("stoker/app", &projects, &given);
    (projects, repository)
}

/// The builds of `app`: four cold ones of 10 minutes (one of which failed), warm ones of 2, 4 and 12, two of others.
fn builds() -> BuildsOf {
    let cold: &[&str] = &[];
    let mut builds: Vec<Build> = (0..4).map(|at| build("app", days_ago(5 + at), 10, Some(cold))).collect();
    builds[0].status = BuildStatus::Failed;
    builds.extend([2, 4, 12].map(|minutes| build("app", days_ago(2), minutes, Some(&["main"]))));
    builds.push(build("app", days_ago(3), 60, None));
    let mut running = build("app", now(), 0, Some(&["main"]));
    (running.status, running.ended_at) = (BuildStatus::InProgress, None);
    builds.push(running);
    // Longer ago than is looked at.
    builds.push(build("app", days_ago(31), 1, Some(&["main"])));
    let mut asked = build("app", days_ago(4), 10, Some(cold));
    asked.claims = true;
    builds.push(asked);
    BuildsOf { project: ProjectName::new("app").unwrap(), builds: builds.into_iter().map(Arc::new).collect() }
}

/// Few say it so well: whether two numbers are the same to a thousandth.
fn is(found: Option<f64>, expected: f64) -> bool {
    found.is_some_and(|found| (found - expected).abs() < 0.001)
}

#[test]
fn the_key_figures_are_those_of_the_world() {
    let (projects, repository) = small();
    let figures = report(&projects, &[repository], &[builds()]).figures;
    assert_eq!((figures.bytes, figures.images), (1190 * MB, 5), "base, main, old, feature, idle, export");
    assert!(is(Some(figures.dollars_per_month), 0.119));
    assert_eq!((figures.frees, figures.deletions), (1000 * MB, 1), "what the idle branch alone holds");
    assert!(is(Some(figures.frees_dollars_per_month), 0.1));
    assert!(is(figures.main_reused_percent, 70.0), "main's two builds");
    assert_eq!(figures.main_builds, 2);
    assert!(is(figures.minutes_saved, 8.0 + 6.0 - 2.0), "{:?}", figures.minutes_saved);
    assert!(is(figures.dollars_saved, 0.06));
    assert_eq!((figures.compared_builds, figures.projects_that_cannot_tell), (3, 0));
}

#[test]
fn layers_are_counted_once_in_project_scope_and_line() {
    let (projects, repository) = small();
    let report = report(&projects, &[repository], &[]);
    let [app] = report.projects.as_slice() else { panic!("one project") };
    assert_eq!(app.project.as_deref(), Some("app"));
    assert_eq!((app.amount.bytes, app.amount.own_bytes), (1190 * MB, 1190 * MB));
    let [scope] = app.scopes.as_slice() else { panic!("one scope") };
    let lines: Vec<(&str, u64, u64, usize)> = scope
        .lines
        .iter()
        .map(|line| {
            (line.line.as_str(), line.amount.bytes / MB, line.amount.own_bytes / MB, line.amount.images)
        })
        .collect();
    assert_eq!(
        lines,
        [
            ("branch/idle", 1100, 1000, 1),
            ("main", 180, 30, 2),
            ("branch/feature/a", 107, 7, 1),
            ("(exports)", 53, 3, 1)
        ],
        "main's own layer is in the export, too"
    );
}

#[test]
fn what_has_no_scope_is_of_the_only_project_or_of_none() {
    let untagged = || Given {
        tags: Vec::new(),
        pushed: days_ago(1),
        line: None,
        built: None,
        layers: layers(&[("a", 5)]),
    };
    let alone = projects(&project("app"));
    let report_of_one = report(&alone, &[repository("stoker/app", &alone, &[untagged()])], &[]);
    assert_eq!(report_of_one.projects[0].project.as_deref(), Some("app"));
    let mut two = projects(&["app", "web"].map(project).join(", "));
    two[1].cache_repository = two[0].cache_repository.clone();
    two[1].retention.mode = Mode::Report;
    let report_of_two = report(&two, &[repository("stoker/app", &two, &[untagged()])], &[]);
    assert_eq!(report_of_two.projects[0].project, None);
    assert_eq!(report_of_two.projects[0].scopes[0].lines[0].line, "(untagged)");
    assert_eq!(report_of_two.repositories[0].mode, "report", "all of them have to agree");
    assert!(page(&report_of_two).contains("stays as it is"));
}

#[test]
fn days_tell_what_came_and_what_no_line_holds() {
    let (projects, repository) = small();
    let storage = report(&projects, &[repository], &[]).storage;
    assert_eq!(storage.len(), 301, "every day from the first to now");
    let of = |day: &str| {
        let found = storage.iter().find(|of| of.day == day).unwrap();
        (found.bytes / MB, found.left_bytes / MB)
    };
    assert_eq!(of("2026-11-10"), (1100, 0), "base and the idle branch's");
    assert_eq!(of("2026-11-11"), (1130, 0), "main's first build, while main held it");
    assert_eq!(of("2026-11-20"), (1187, 30), "main left it");
    assert_eq!(of("2026-11-21"), (1190, 33), "and an export came, which no line holds");
}

#[test]
fn hit_rate_is_reported_by_caches_once_for_each_build() {
    let (projects, repository) = small();
    let hit_rate = report(&projects, &[repository], &[]).hit_rate;
    let [app] = hit_rate.as_slice() else { panic!("one scope") };
    assert_eq!((app.project.as_str(), app.scope.as_str(), app.points.len()), ("app", "app", 4));
    assert!(is(app.main_percent, 70.0) && is(app.others_percent, 20.0), "the idle branch's is long ago");
    let main: Vec<u8> = app.main().iter().map(|point| point.reused_percent).collect();
    assert_eq!(main, [50, 90]);
}

#[test]
fn builds_are_counted_by_what_they_were_given() {
    let report = report(&projects(&project("app")), &[], &[builds()]);
    let [app] = report.builds.as_slice() else { panic!("one project") };
    assert_eq!((app.builds, app.started_by_stoker, app.asked), (10, 8, 1));
    assert_eq!((app.running, app.failed, app.warm, app.cold), (1, 1, 4, 5));
    assert_eq!((app.warm_succeeded, app.cold_succeeded), (3, 4));
    assert!(is(app.cold_median_minutes, 10.0) && is(app.warm_median_minutes, 4.0));
    assert_eq!(report.builds_by_day.len(), 30);
    let today = report.builds_by_day.last().unwrap();
    assert_eq!((today.day.as_str(), today.warm, today.cold, today.others), ("2026-11-21", 1, 0, 0));
    let total: usize = report.builds_by_day.iter().map(|day| day.warm + day.cold + day.others).sum();
    assert_eq!(total, 10);
}

#[test]
fn few_cold_builds_tell_nothing() {
    let mut few = builds();
    few.builds.retain(|build| build.started_at != days_ago(6) && build.started_at != days_ago(7));
    let report = report(&projects(&project("app")), &[], &[few]);
    assert_eq!(report.builds[0].cold_succeeded, 2);
    assert_eq!((report.builds[0].minutes_saved, report.figures.minutes_saved), (None, None));
    assert_eq!(report.figures.projects_that_cannot_tell, 1);
    assert!(page(&report).contains("not enough cold builds to tell"));
}

#[test]
fn the_plan_is_reported_by_rule_and_by_size() {
    let (projects, repository) = small();
    let report = report(&projects, &[repository], &[]);
    let deleted: Vec<_> = report.rules.iter().filter(|rule| rule.action == "delete").collect();
    let [idle] = deleted.as_slice() else { panic!("one rule") };
    assert_eq!(
        (idle.rule.as_str(), idle.images, idle.bytes, idle.frees),
        ("idle-branch", 1, 1100 * MB, 1000 * MB)
    );
    assert_eq!(report.rules.iter().map(|rule| rule.images).sum::<usize>(), 5);
    let [largest] = report.largest_deletions.as_slice() else { panic!("one deletion") };
    assert_eq!((largest.tags[0].as_str(), largest.frees), ("app.branch.idle", 1000 * MB));
    assert_eq!(report.repositories[0].mode, "apply");
    assert_eq!(report.repositories[0].bytes_after, 190 * MB);
}

#[test]
fn a_plan_that_is_refused_frees_nothing_and_says_why() {
    let (projects, mut small) = small();
    small.inventory.unread.push((Digest::of(b"unread"), "nobody answers".to_owned()));
    small.plan = plan(&small.inventory, &projects, &PlanInputs::default(), now());
    let why = small.plan.refused.clone().unwrap();
    let report = report(&projects, &[small], &[]);
    assert_eq!((report.figures.frees, report.figures.deletions), (0, 0));
    assert!(report.rules.iter().all(|rule| rule.frees == 0));
    assert_eq!(report.notes[0], format!("stoker/app: {why}"));
    assert!(page(&report).contains("class=\"warn\""));
}

#[test]
fn an_empty_account_makes_a_page() {
    let page = page(&report(&[], &[], &[]));
    well_formed(&page);
    for text in ["There is nothing in the repositories", "No builds in the last 30 days", "not known"] {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn one_project_makes_a_page() {
    let (projects, repository) = small();
    let page = page(&report(&projects, &[repository], &[builds()]));
    well_formed(&page);
    for text in ["branch/feature/a", "1.2 GB", "70 %", "12.0 min", "$0.06", "app.branch.idle", "123456789012"]
    {
        assert!(page.contains(text), "{text}");
    }
}

/// Two hundred projects, each with a repository of its own.
fn many() -> Report {
    let names: Vec<String> = (0..200).map(|at| format!("app-{at}")).collect();
    let yaml: Vec<String> = names.iter().map(|name| project(name)).collect();
    let projects = projects(&yaml.join(", "));
    let repositories: Vec<Repository> = names
        .iter()
        .zip(&projects)
        .map(|(name, project)| {
            let given = Given {
                tags: vec![Tag::line(&scope(name), &Line::Main).to_string()],
                pushed: days_ago(1),
                line: Some(Line::Main),
                built: Some((format!("{name}:1"), days_ago(1), 80)),
                layers: layers(&[(name.as_str(), 10)]),
            };
            repository(&format!("stoker/{name}"), std::slice::from_ref(project), &[given])
        })
        .collect();
    report(&projects, &repositories, &[])
}

#[test]
fn two_hundred_projects_make_a_page_that_is_folded() {
    let report = many();
    let page = page(&report);
    well_formed(&page);
    assert_eq!(report.figures.bytes, 2000 * MB);
    assert_eq!(report.projects.len(), 200);
    assert!(!page.contains("<details open>"));
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
}

#[test]
fn names_from_outside_are_text_and_nothing_else() {
    let hostile = "<script>alert(1)</script>&\"'\u{202e}x";
    let projects = projects(&project("app"));
    let app = scope("app");
    let line = branch("<script>alert(2)</script>\"'&");
    let given = [
        Given {
            tags: vec![Tag::line(&app, &line).to_string()],
            pushed: days_ago(400),
            line: Some(line),
            built: Some((hostile.to_owned(), days_ago(2), 20)),
            layers: layers(&[("a", 5)]),
        },
        Given {
            tags: vec![hostile.to_owned()],
            pushed: days_ago(400),
            line: None,
            built: None,
            layers: layers(&[("b", 5)]),
        },
    ];
    let repository = repository("stoker/app", &projects, &given);
    let mut report = report(&projects, &[repository], &[]);
    report.account = Some(hostile.to_owned());
    report.region = Some(hostile.to_owned());
    report.notes.push(hostile.to_owned());
    for of in &mut report.repositories {
        (of.repository, of.refused) = (hostile.to_owned(), Some(hostile.to_owned()));
    }
    for of in &mut report.projects {
        of.project = Some(hostile.to_owned());
        of.scopes[0].scope = Some(hostile.to_owned());
    }
    for of in &mut report.rules {
        (of.rule, of.means) = (hostile.to_owned(), hostile.to_owned());
    }
    for of in &mut report.hit_rate {
        (of.project, of.scope) = (hostile.to_owned(), hostile.to_owned());
    }
    for of in &mut report.largest_deletions {
        (of.why, of.tags) = (hostile.to_owned(), vec![hostile.to_owned(); 2]);
    }
    let page = page(&report);
    well_formed(&page);
    assert!(!page.contains("<script") && !page.contains("alert(1)<") && !page.contains('\u{202e}'));
    assert!(page.contains("&lt;script&gt;alert(2)&lt;/script&gt;&quot;&#39;&amp;"), "the branch's name");
    assert!(page.matches(&escaped(hostile)).count() >= 9);
}

/// A simple check: every element is closed where it has to be, ids are unique, nothing is loaded and nothing runs.
fn well_formed(page: &str) {
    const VOID: [&str; 1] = ["meta"];
    let mut open: Vec<&str> = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    let body = page.strip_prefix("<!DOCTYPE html>").unwrap();
    let style = body.find("<style>").unwrap()..body.find("</style>").unwrap();
    let body = format!("{}{}", &body[..style.start], &body[style.end + "</style>".len()..]);
    for piece in body.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("no end: {piece}"));
        assert!(!text.contains('>'), "{piece}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        for part in text.split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;", "quot;", "#39;"];
            assert!(known.iter().any(|known| part.starts_with(known)), "{text}");
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{piece}");
            continue;
        }
        if let Some((_, rest)) = tag.split_once(" id=\"") {
            let id = rest.split('"').next().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} twice");
        }
        let name = tag.split([' ', '/']).next().unwrap();
        assert!(!["script", "link", "img", "iframe", "a"].contains(&name), "{tag}");
        if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
    for words in body.split("aria-labelledby=\"").skip(1) {
        let named = words.split('"').next().unwrap();
        assert!(named.split(' ').all(|id| ids.contains(id)), "{named}");
    }
    for outside in ["://", "@import", "url(", "src=", "href=", "NaN", "inf "] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn sums_and_times_read_well() {
    for (sum, text) in [
        (0.0, "$0.00"),
        (0.004, "less than $0.01"),
        (12.4, "$12.40"),
        (-3.0, "-$3.00"),
        (1204.4, "$1,204"),
        (1_234_567.0, "$1,234,567"),
    ] {
        assert_eq!(dollars(sum), text);
    }
    for (time, text) in
        [(0.0, "0.0 min"), (4.25, "4.2 min"), (99.6, "1 h 40 min"), (432.0, "7 h 12 min"), (-5.0, "-5.0 min")]
    {
        assert_eq!(minutes(time), text);
    }
}

/// Numbers that look like those of a life, and are the same each time.
struct Rng(u64);

impl Rng {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Some projects in the course of some months.
fn sample() -> Report {
    let names = ["app", "web", "api-gateway"];
    let yaml: Vec<String> = names.iter().map(|name| project(name)).collect();
    let projects = projects(&yaml.join(", "));
    let mut rng = Rng(7);
    let (mut repositories, mut all) = (Vec::new(), Vec::new());
    for (at, name) in names.into_iter().enumerate() {
        let factor = [3, 2, 1][at];
        let of = scope(name);
        let mut given = Vec::new();
        for week in 0..if at == 2 { 2 } else { 9 } {
            let pushed = days_ago(week * 6 + 1) - SignedDuration::from_mins(rng.below(900).cast_signed());
            let percent = 94 - rng.below(20) - if week == 3 { 55 } else { 0 };
            let digest = Digest::of(format!("{name}{week}").as_bytes());
            let line = Tag::line(&of, &Line::Main).to_string();
            let left = Tag::history(&of, &Line::Main, days_ago(week * 6 - 5), &digest).to_string();
            given.push(Given {
                tags: vec![if week == 0 { line } else { left }],
                pushed,
                line: Some(Line::Main),
                built: Some((format!("{name}:{week}"), pushed, u8::try_from(percent).unwrap())),
                layers: vec![
                    (format!("{name} base"), 620 * factor * MB),
                    (format!("{name} packages {}", week / 3), 340 * factor * MB),
                    (format!("{name} main {week}"), (60 + rng.below(90)) * factor * MB),
                ],
            });
        }
        let branches = [
            "feature/checkout",
            "fix/login-timeout",
            "renovate/deps",
            "release/2.1",
            "try/new-parser",
            "docs",
        ];
        for (number, branch_name) in branches.into_iter().enumerate().take(6 - at) {
            let pushed = days_ago(i64::try_from(number * number).unwrap() * 5 + 2);
            let line = branch(branch_name);
            given.push(Given {
                tags: vec![Tag::line(&of, &line).to_string()],
                pushed,
                built: Some((
                    format!("{name}:{branch_name}"),
                    pushed,
                    u8::try_from(70 + number * 4).unwrap(),
                )),
                line: Some(line),
                layers: vec![
                    (format!("{name} base"), 620 * factor * MB),
                    (format!("{name} packages {}", number % 3), 340 * factor * MB),
                    (format!("{name} {branch_name}"), (40 + rng.below(240)) * factor * MB),
                ],
            });
        }
        for number in 0..4 {
            given.push(Given {
                tags: vec![Tag::export(&of, &format!("key-{number}")).to_string()],
                pushed: days_ago(number * 4),
                line: None,
                built: None,
                layers: vec![(format!("{name} export {number}"), (20 + rng.below(60)) * MB)],
            });
        }
        repositories.push(repository(&format!("stoker/{name}"), std::slice::from_ref(&projects[at]), &given));
        let mut builds = Vec::new();
        for day in 0..30 {
            for turn in 0..rng.below(if day % 7 < 2 { 2 } else { 7 }) {
                let started = days_ago(day) - SignedDuration::from_hours(turn.cast_signed());
                let cold: &[&str] = &[];
                let (inputs, length) = match rng.below(12) {
                    0 if at < 2 => (Some(cold), 11 + rng.below(5)),
                    1 => (None, 9),
                    _ => (Some(&["main"][..]), 2 + rng.below(4)),
                };
                let mut build = build(name, started, length.cast_signed() * 2, inputs);
                if rng.below(15) == 0 {
                    build.status = BuildStatus::Failed;
                }
                builds.push(build);
            }
        }
        all.push(BuildsOf {
            project: ProjectName::new(name).unwrap(),
            builds: builds.into_iter().map(Arc::new).collect(),
        });
    }
    report(&projects, &repositories, &all)
}

#[test]
fn a_life_of_months_makes_a_page() {
    let report = sample();
    well_formed(&page(&report));
    let whole: u64 = report.repositories.iter().map(|of| of.bytes).sum();
    assert_eq!(report.figures.bytes, whole);
    assert_eq!(report.storage.last().map(|day| day.bytes), Some(whole));
    assert!(report.storage.iter().all(|day| day.left_bytes <= day.bytes));
    assert!(serde_json::to_string(&report).unwrap().contains("\"mainReusedPercent\""));
}

#[test]
fn samples_are_left_to_look_at() {
    for (name, report) in [("sample", sample()), ("many", many()), ("empty", report(&[], &[], &[]))] {
        let path = std::env::temp_dir().join(format!("stoker-report-{name}.html"));
        std::fs::write(&path, page(&report)).unwrap();
        assert!(
            std::fs::metadata(path).unwrap().len() > 1000,
            "{name}: docs/images/report.png shows the first"
        );
    }
}
