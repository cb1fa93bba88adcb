//! One test per rule of the document.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::names::MountId;

fn policy(text: &str) -> Policy {
    Policy::parse("policy.yaml", text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// The mistakes as printed, without the source and the last line.
fn mistakes(text: &str) -> Vec<String> {
    let mistakes = Policy::parse("p", text).expect_err("the document has mistakes").to_string();
    let mut lines: Vec<_> = mistakes.lines().map(|line| line.trim_start_matches("p:").to_owned()).collect();
    lines.pop();
    lines
}

/// The mistakes of a document that has these lines after its version.
fn mistakes_after_version(rest: &str) -> Vec<String> {
    mistakes(&format!("version: 1\n{rest}"))
}

fn name(text: &str) -> ProjectName {
    ProjectName::new(text).unwrap()
}

fn repository(text: &str) -> Repository {
    Repository::new(text).unwrap()
}

fn names(projects: &[Project]) -> Vec<&str> {
    projects.iter().map(|project| project.name.as_str()).collect()
}

fn globs(included: &[&str], excluded: &[&str]) -> Globs {
    let all = |globs: &[&str]| globs.iter().map(|glob| WildMatch::new(glob)).collect();
    Globs { included: all(included), excluded: all(excluded) }
}

const DAY: SignedDuration = SignedDuration::from_hours(24);

const TWO_RULES: &str = r#"
version: 1
projects:
  - name: app
    repository: github.com/example/app
  - name: "team-*"
    repository: github.com/Example/{project}
    warm: { stale-after: 1d }
"#;

#[test]
fn the_shipped_policy_parses_and_shows_the_built_in_values() {
    let shipped = policy(include_str!("../../../../policy/stoker.yaml"));
    let bare = policy("version: 1\nprojects: [{name: app, repository: github.com/example/app}]");
    assert_eq!(shipped.named_projects(), bare.named_projects());
    assert_eq!(names(&shipped.named_projects()), ["app"]);
}

#[test]
fn the_glob_that_the_shipped_policy_explains_works_once_it_is_no_comment() {
    let shipped = include_str!("../../../../policy/stoker.yaml");
    let policy = policy(&shipped.replace("\n#   ", "\n  "));
    assert_eq!(policy.project(&name("team-web")).unwrap().warm.stale_after, DAY);
}

#[test]
fn the_shipped_policy_and_the_reference_have_every_field() {
    let shipped = include_str!("../../../../policy/stoker.yaml");
    let reference = include_str!("../../../../docs/policy.md");
    let sections = [
        settings::SETTINGS,
        settings::BUILDS,
        settings::FORKS,
        settings::EXPORT,
        settings::BUILDER,
        settings::WARM,
        settings::RETENTION,
    ];
    for field in sections.concat() {
        // One that is not built in is shown in a comment.
        assert!(
            ["  ", "  # "].iter().any(|before| shipped.contains(&format!("{before}{field}:"))),
            "{field}"
        );
        let titled = format!("{field}`: ");
        assert!(reference.contains(&format!("\n| `{field}` |")) || reference.contains(&titled), "{field}");
    }
    for field in settings::TARGET {
        assert!(reference.contains(&format!("\n| `targets[].{field}` |")), "{field}");
    }
    for field in settings::MOUNT {
        assert!(reference.contains(&format!("{field}`: ")), "{field}");
    }
}

#[test]
fn the_example_of_the_reference_is_a_policy() {
    let reference = include_str!("../../../../docs/policy.md");
    let (_, rest) = reference.split_once("```yaml\n").unwrap();
    let policy = policy(rest.split_once("```").unwrap().0);
    let app = policy.project(&name("app")).unwrap();
    assert_eq!(app.targets.len(), 3);
    assert_eq!(app.builds.forks.project, Some(name("app-forks")));
    assert_eq!(policy.project(&name("team-web")).unwrap().warm.refresh, Some(DAY * 30));
}

#[test]
fn what_a_document_leaves_out_has_the_built_in_value() {
    let app = policy(TWO_RULES).project(&name("app")).unwrap();
    let expected = Project {
        name: name("app"),
        repository: repository("github.com/example/app"),
        named_default_branch: None,
        cache_repository: CacheRepository::new("stoker/app").unwrap(),
        builds_repository: None,
        targets: vec![Target {
            name: None,
            platform: None,
            scope: Scope::of(&name("app")),
            mounts: Vec::new(),
        }],
        builds: Builds {
            start: true,
            on_push: true,
            on_pull_request: Change::BUILT.to_vec(),
            on_tag: false,
            tags: globs(&[], &[]),
            branches: globs(&[], &[]),
            bases: globs(&[], &[]),
            actors: globs(&[], &[]),
            messages: globs(&[], &[]),
            paths: globs(&[], &[]),
            paths_unknown: PathsUnknown::Build,
            skip_paths: None,
            skip_marks: true,
            skip_labels: vec!["skip-ci".to_owned()],
            drafts: true,
            superseded: Superseded::Finish,
            forks: Forks { build: ForkBuilds::None, project: None, approvers: Vec::new() },
        },
        export: Export { builds: ExportBuilds::All, mode: CacheMode::Max, compression: None },
        builder_image: "moby/buildkit:v0.25.2".to_owned(),
        tools_image: "busybox:1.37.0-musl".to_owned(),
        more_sources: Vec::new(),
        promotion: Promotion::Merged,
        probation: DAY * 7,
        line_budget: None,
        warm: Warm { after_merge: true, stale_after: DAY * 7, refresh: None, base_images: Vec::new() },
        retention: Retention {
            mode: Mode::Report,
            lease: DAY,
            idle_branch: DAY * 30,
            history: DAY * 3,
            keep_at_least: 1,
            keep_branches: None,
            pinned: Vec::new(),
            orphans: Some(DAY * 7),
            scope_budget: None,
            repository_budget: None,
            max_deletions: 1000,
        },
    };
    assert_eq!(app, expected);
}

#[test]
fn a_rule_overrides_the_defaults_and_the_defaults_override_what_is_built_in() {
    let policy = policy(
        "version: 1
defaults:
  default-branch: trunk
  warm: { stale-after: 36h }
  retention: { mode: apply, lease: 90m }
projects:
  - name: app
    repository: github.com/example/app
    default-branch: master
    cache-repository: caches/app
    retention: { lease: 2d }
  - name: lib
    repository: github.com/example/lib
",
    );
    let (app, lib) = (policy.project(&name("app")).unwrap(), policy.project(&name("lib")).unwrap());
    assert_eq!((app.default_branch().as_str(), lib.default_branch().as_str()), ("master", "trunk"));
    assert_eq!(app.cache_repository.as_str(), "caches/app");
    assert_eq!(app.warm.stale_after, SignedDuration::from_hours(36));
    assert_eq!(
        app.retention,
        Retention {
            mode: Mode::Apply,
            lease: DAY * 2,
            idle_branch: DAY * 30,
            history: DAY * 3,
            keep_at_least: 1,
            keep_branches: None,
            pinned: Vec::new(),
            orphans: Some(DAY * 7),
            scope_budget: None,
            repository_budget: None,
            max_deletions: 1000
        }
    );
    assert_eq!(lib.retention.lease, SignedDuration::from_mins(90));
}

#[test]
fn the_first_rule_that_matches_wins() {
    let policy = policy(
        "version: 1
projects:
  - { name: team-web, repository: github.com/example/web }
  - { name: 'team-*', repository: 'github.com/example/{project}' }
  - { name: '*', repository: 'gitlab.com/others/{project}' }
",
    );
    let repository_of = |project| policy.project(&name(project)).unwrap().repository.to_string();
    assert_eq!(repository_of("team-web"), "github.com/example/web");
    assert_eq!(repository_of("team-api"), "github.com/example/team-api");
    assert_eq!(repository_of("api"), "gitlab.com/others/api");
    assert_eq!(names(&policy.named_projects()), ["team-web"]);
}

#[test]
fn a_project_without_a_rule_is_none() {
    let policy = policy(TWO_RULES);
    assert_eq!(policy.project(&name("other")), None);
    assert_eq!(policy.projects_of(&repository("github.com/example/other")), []);
}

#[test]
fn a_policy_without_projects_matches_nothing() {
    for text in ["version: 1", "version: 1\nprojects:\n", "version: 1\nprojects: []\ndefaults:\n"] {
        let policy = policy(text);
        assert_eq!(policy.project(&name("app")), None);
        assert_eq!(policy.named_projects(), []);
        assert!(!policy.has_globs());
    }
}

#[test]
fn a_repository_tells_its_projects_whatever_its_case() {
    let policy = policy(TWO_RULES);
    assert_eq!(names(&policy.projects_of(&repository("github.com/Example/App"))), ["app"]);
    assert_eq!(names(&policy.projects_of(&repository("github.com/example/Team-Web"))), ["team-web"]);
    assert!(policy.has_globs());
}

#[test]
fn a_repository_of_codecommit_is_known_by_its_case_too() {
    let here = "git-codecommit.eu-west-1.amazonaws.com/v1/repos";
    let policy = policy(&format!(
        "version: 1
projects:
  - {{ name: app, repository: GIT-CODECOMMIT.eu-west-1.amazonaws.com/v1/repos/App }}
  - {{ name: 'Team-*', repository: '{here}/{{project}}' }}
"
    ));
    let found = |name: &str| -> Vec<String> {
        let found = policy.projects_of(&repository(&format!("{here}/{name}")));
        names(&found).into_iter().map(str::to_owned).collect()
    };
    assert_eq!(found("App"), ["app"]);
    assert_eq!(found("Team-Web"), ["Team-Web"]);
    assert!(found("app").is_empty() && found("team-web").is_empty() && found("TEAM-WEB").is_empty());
    // The Kelvin sign is a `k` in lower case; no forge takes the one for the other.
    assert_ne!(repository("github.com/example/\u{212a}it"), repository("github.com/example/kit"));
}

#[test]
fn a_repository_can_have_many_projects() {
    let policy = policy(
        "version: 1
projects:
  - { name: web, repository: github.com/example/mono }
  - { name: API, repository: github.com/example/mono }
",
    );
    assert_eq!(names(&policy.projects_of(&repository("github.com/example/mono"))), ["web", "API"]);
}

#[test]
fn a_repository_does_not_tell_a_project_that_an_earlier_rule_has_elsewhere() {
    let policy = policy(
        "version: 1
projects:
  - { name: team-web, repository: github.com/example/web }
  - { name: 'team-*', repository: 'github.com/example/{project}' }
",
    );
    assert_eq!(policy.projects_of(&repository("github.com/example/team-web")), []);
    assert_eq!(names(&policy.projects_of(&repository("github.com/example/web"))), ["team-web"]);
}

#[test]
fn a_glob_yields_no_project_that_it_does_not_match() {
    let policy = policy(
        "version: 1
projects:
  - { name: 'a?', repository: 'github.com/{project}/x-{project}-y' }
",
    );
    assert_eq!(names(&policy.projects_of(&repository("github.com/ab/x-ab-y"))), ["ab"]);
    for other in ["github.com/ab/x-ac-y", "github.com/abc/x-abc-y", "github.com/ab/x-ab", "github.com/a/b"] {
        assert_eq!(policy.projects_of(&repository(other)), [], "{other}");
    }
}

#[test]
fn the_project_in_a_cache_repository_is_in_lower_case() {
    let policy = policy(TWO_RULES);
    let project = policy.project(&name("team-Web")).unwrap();
    assert_eq!(project.cache_repository.as_str(), "stoker/team-web");
    assert_eq!(project.repository.as_str(), "github.com/example/team-web");
}

#[test]
fn a_name_under_a_glob_that_no_ecr_repository_can_have_is_none() {
    assert_eq!(policy(TWO_RULES).project(&name("team-web-")), None);
}

#[test]
fn an_export_tells_its_project_by_scope_and_repository() {
    let long = format!("team-{}", "x".repeat(60));
    let policy =
        policy(&format!("{TWO_RULES}  - {{ name: {}, repository: github.com/example/z }}\n", "z".repeat(60)));
    for known in ["app", "team-web", &long, &"z".repeat(60)] {
        let project = policy.project(&name(known)).unwrap();
        for scope in project.scopes() {
            assert_eq!(policy.project_of_export(project.exports(), scope).as_ref(), Some(&project));
        }
    }
    let app = policy.project(&name("app")).unwrap();
    assert_eq!(policy.project_of_export(app.exports(), &Scope::of(&name("team-web"))), None);
    assert_eq!(policy.project_of_export(app.exports(), &Scope::of(&name("other"))), None);
}

#[test]
fn an_empty_document_is_answered_with_how_to_start() {
    for text in ["", "\n", "# nothing\n", "---\n", "~", "\u{feff}"] {
        assert_eq!(mistakes(text), ["1:1: the document is empty; it starts with `version: 1`"], "{text:?}");
    }
}

#[test]
fn a_byte_order_mark_is_no_mistake() {
    policy("\u{feff}version: 1\r\nprojects: []\r\n");
}

#[test]
fn a_document_is_made_of_fields() {
    assert_eq!(mistakes("- a\n- b"), ["1:1: expected fields, found a list"]);
    assert_eq!(mistakes("!policy { version: 1 }"), ["1:1: expected fields, found a tagged value"]);
}

#[test]
fn the_version_is_required() {
    assert_eq!(mistakes("projects: []"), ["1:1: the field `version` is missing"]);
    assert_eq!(mistakes("version: one"), ["1:10: version: expected the number 1, found text"]);
    assert_eq!(mistakes("projects: []\nversion:"), ["2:8: version: expected the number 1, found nothing"]);
}

#[test]
fn of_an_unknown_version_only_that_is_said() {
    let expected = ["2:10: version: version 2 is not known here; this Stoker reads version 1"];
    assert_eq!(mistakes("rules: []\nversion: 2\n"), expected);
}

#[test]
fn an_unknown_field_is_refused_with_the_nearest_known_one() {
    assert_eq!(
        mistakes_after_version(
            "default: {}\ndefaults: { warm: { stale_after: 7d }, retention: { budget: 1 } }"
        ),
        [
            "2:1: there is no field `default` here; did you mean `defaults`?",
            "3:21: defaults.warm: there is no field `stale_after` here; did you mean `stale-after`?",
            "3:53: defaults.retention: there is no field `budget` here; did you mean `scope-budget`?",
        ]
    );
    assert_eq!(mistakes_after_version("1: a"), ["2:1: expected the name of a field, found a number"]);
}

#[test]
fn a_field_that_is_there_twice_is_refused() {
    let expected = ["3:1: this is not a YAML document: duplicated key in mapping"];
    assert_eq!(mistakes_after_version("projects: []\nprojects: []"), expected);
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    assert_eq!(
        mistakes_after_version(
            "defaults:
  default-branch: 1.0
  warm: 7d
  retention: { mode: true, lease: [], idle-branch: }
projects:
  app: github.com/example/app
"
        ),
        [
            "3:19: defaults.default-branch: expected text, found a number; put it in quotes",
            "4:9: defaults.warm: expected fields, found text",
            "5:22: defaults.retention.mode: expected text, found a boolean; put it in quotes",
            "5:35: defaults.retention.lease: expected text, found a list",
            "5:50: defaults.retention.idle-branch: expected text, found nothing",
            "7:3: projects: expected a list, found fields",
        ]
    );
    assert_eq!(mistakes_after_version("projects: [app]"), ["2:12: projects[0]: expected fields, found text"]);
}

#[test]
fn a_rule_has_a_name_and_a_repository() {
    assert_eq!(
        mistakes_after_version("projects:\n  -\n  - warm:\n"),
        [
            "3:4: projects[0]: the field `name` is missing",
            "3:4: projects[0]: the field `repository` is missing",
            "4:5: projects[1]: the field `name` is missing",
            "4:5: projects[1]: the field `repository` is missing",
        ]
    );
}

#[test]
fn a_duration_is_a_number_and_a_unit() {
    for wrong in ["7", "7w", "d", "-1d", "1.5h", "7 d", "1h30m", "\u{661}d", "''"] {
        let found = mistakes_after_version(&format!("defaults: {{ warm: {{ stale-after: '{wrong}' }} }}"));
        assert_eq!(found.len(), 1, "{wrong}: {found:?}");
        assert!(found[0].ends_with(
            "is not a duration: write a number and `m`, `h` or `d`, such as `30m`, `24h` or `7d`"
        ));
    }
}

#[test]
fn a_duration_is_at_least_a_minute_and_at_most_ten_years() {
    let lease = |text| mistakes_after_version(&format!("defaults: {{ retention: {{ lease: {text} }} }}"));
    assert_eq!(lease("0d"), ["2:33: defaults.retention.lease: `0d` is too short: at least 1m"]);
    assert_eq!(lease("3651d"), ["2:33: defaults.retention.lease: `3651d` is too long: at most 3650d"]);
    assert!(lease("99999999999999999999999d")[0].ends_with("is too long: at most 3650d"));
    policy("version: 1\ndefaults: { retention: { lease: 1m, idle-branch: 3650d } }");
}

#[test]
fn a_line_budget_is_a_size_or_none() {
    let policy = policy(
        "version: 1
defaults: { line-budget: 10GB }
projects:
  - { name: app, repository: github.com/example/app }
  - { name: lib, repository: github.com/example/lib, line-budget: none }
  - { name: web, repository: github.com/example/web, line-budget: 500MB }
",
    );
    let budgets: Vec<_> = policy.named_projects().iter().map(|project| project.line_budget).collect();
    assert_eq!(budgets, [Some(10_000_000_000), None, Some(500_000_000)]);
    for wrong in ["10", "10gb", "10 GB", "GB", "-1GB", "1.5GB", "10KB", "\u{661}GB", ""] {
        let found = mistakes_after_version(&format!("defaults: {{ line-budget: '{wrong}' }}"));
        assert_eq!(found.len(), 1, "{wrong}: {found:?}");
        assert!(found[0].ends_with(
            "is not a size: write a number and `MB` or `GB`, such as `500MB` or `10GB`, or `none`"
        ));
    }
    let zero = mistakes_after_version("defaults: { line-budget: 0GB }");
    assert_eq!(zero, ["2:26: defaults.line-budget: `0GB` would leave no cache: at least 1MB"]);
}

#[test]
fn an_unknown_mode_is_refused() {
    let expected = ["2:32: defaults.retention.mode: `dry-run` is not a mode; write `report` or `apply`"];
    assert_eq!(mistakes_after_version("defaults: { retention: { mode: dry-run } }"), expected);
}

#[test]
fn bad_names_are_refused() {
    let rule = |fields: &str| mistakes_after_version(&format!("projects:\n  - {{ {fields} }}"));
    let repository = |text: &str| rule(&format!("name: app, repository: '{text}'")).concat();
    assert!(
        rule("name: 'my app', repository: a/b/c").concat().contains("project name `my app` is not valid")
    );
    assert!(
        repository("example/app")
            .contains("3:30: projects[0].repository: repository `example/app` is not valid")
    );
    for address in [
        "https://github.com/a/b",
        "github.com/a/b.git",
        "https://github.com/a/b.git",
        "https://me:secret@github.com/a/b.GIT/",
        "git@github.com:a/b.git",
        "ssh://git@github.com/a/b.git",
    ] {
        let expected = "3:30: projects[0].repository: write it as `github.com/a/b`: host and path, without \
             scheme, user \
                        and `.git`";
        assert_eq!(repository(address), expected, "{address}");
    }
    assert!(
        repository("https://github.com/{project}/b.git").contains("write it as `github.com/{project}/b`:")
    );
    assert!(repository("https://b.git").contains("write it as host/owner/name"));
    assert!(repository("github.com/a/{name}").contains("has braces that are not `{project}`"));
    let rest = "name: app, repository: a/b/c";
    assert!(rule(&format!("{rest}, default-branch: 'a b'")).concat().contains("branch `a b` is not valid"));
    assert!(rule(&format!("{rest}, cache-repository: Caches")).concat().contains("`Caches` is not valid"));
}

#[test]
fn a_host_is_no_part_of_a_repositorys_name() {
    let of = |key: &str, value: &str| {
        let entry = format!("name: app, repository: github.com/example/app, {key}: {value}");
        mistakes_after_version(&format!("projects: [{{ {entry} }}]")).concat()
    };
    for host in [
        "210987654321.dkr.ecr.eu-west-1.amazonaws.com",
        "210987654321.dkr.ecr.eusc-de-east-1.amazonaws.eu",
        "210987654321.dkr-ecr.us-east-1.on.aws",
        "public.ecr.aws",
    ] {
        for key in ["cache-repository", "builds-repository"] {
            let found = of(key, &format!("{host}/stoker/app"));
            assert!(
                found.contains(&format!("`{host}` is a host")) && found.contains("write `stoker/app`"),
                "{found}"
            );
        }
    }
}

#[test]
fn a_name_that_makes_no_cache_repository_is_refused() {
    let found = mistakes_after_version("projects: [{ name: app_, repository: github.com/example/app }]");
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("2:20: projects[0].name: cache repository `stoker/app_` is not valid"),
        "{found:?}"
    );
}

#[test]
fn a_glob_has_stars_and_question_marks_and_nothing_else() {
    for wrong in ["team-[ab]*", "{a,b}*", "a*/b", "-*", "! *"] {
        let rule = format!("projects: [{{ name: '{wrong}', repository: 'github.com/a/{{project}}' }}]");
        let found = mistakes_after_version(&rule);
        assert_eq!(found.len(), 1, "{wrong}: {found:?}");
        assert!(found[0].starts_with("2:20: projects[0].name: not a glob over project names"), "{found:?}");
    }
}

#[test]
fn a_glob_without_quotes_has_to_take_some() {
    let found =
        mistakes_after_version("projects:\n  - name: *-web\n    repository: github.com/a/{project}\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("3:11: "), "{found:?}");
    assert!(found[0].ends_with("; a value that starts with `*` has to be in quotes"), "{found:?}");
}

#[test]
fn a_glob_needs_the_project_in_its_repository() {
    let found = mistakes_after_version("projects: [{ name: 'a*', repository: github.com/example/mono }]");
    let expected = "2:38: projects[0].repository: a glob's repository needs `{project}`: otherwise the project of a \
                    push cannot be told";
    assert_eq!(found, [expected]);
}

#[test]
fn a_glob_needs_the_project_in_its_cache_repository_also_where_a_default_gives_it() {
    let rule = "name: 'a*', repository: 'github.com/example/{project}'";
    assert_eq!(
        mistakes_after_version(&format!("projects: [{{ {rule}, cache-repository: shared }}]")),
        [
            "2:88: projects[0].cache-repository: a glob's cache repository needs `{project}`, and `shared` has \
             none: its \
          projects would share one"
        ]
    );
    assert_eq!(
        mistakes_after_version(&format!(
            "defaults: {{ cache-repository: shared }}\nprojects: [{{ {rule} }}]"
        )),
        [
            "3:20: projects[0].name: a glob's cache repository needs `{project}`, and `shared` has none: its projects \
          would share one"
        ]
    );
}

#[test]
fn two_rules_of_one_name_are_refused() {
    let rule = "  - { name: app, repository: github.com/example/app }\n";
    let expected = ["4:13: projects[1].name: projects[0] is already the rule for `app`"];
    assert_eq!(mistakes_after_version(&format!("projects:\n{rule}{rule}")), expected);
}

#[test]
fn a_rule_behind_one_that_takes_all_its_projects_is_refused() {
    let rules = |first: &str, second: &str| {
        let rule =
            |name: &str| format!("  - {{ name: '{name}', repository: 'github.com/example/{{project}}' }}\n");
        format!("version: 1\nprojects:\n{}{}", rule(first), rule(second))
    };
    let expected = "4:13: projects[1].name: this rule is never reached: projects[0] (`team-*`) matches first; put the \
                    narrower rule before it";
    for narrow in ["team-web", "team-*", "team-?", "team-web-*"] {
        assert_eq!(mistakes(&rules("team-*", narrow)), [expected], "{narrow}");
    }
    for (first, second) in [("team-?", "team-*"), ("team-web", "team-*"), ("a*", "*a")] {
        policy(&rules(first, second));
    }
}

#[test]
fn two_projects_never_share_a_cache_repository() {
    let text = "defaults: { cache-repository: caches }
projects:
  - { name: app, repository: github.com/example/app }
  - { name: lib, repository: github.com/example/lib }
  - { name: web, repository: github.com/example/web, cache-repository: 'x/{project}' }
  - { name: Web, repository: github.com/example/web, cache-repository: 'x/{project}' }
";
    assert_eq!(
        mistakes_after_version(text),
        [
            "5:13: projects[1].name: `caches` is already the cache repository of `app`; each project needs its own",
            "7:72: projects[3].cache-repository: `x/web` is already the cache repository of `web`; each project \
             needs its own",
        ]
    );
}

#[test]
fn what_builds_write_is_not_what_stoker_writes() {
    let app = |fields: &str| {
        format!(
            "projects:\n  - {{ name: app, repository: github.com/example/app, {fields} }}\n  - {{ name: web, \
             repository: github.com/example/web }}"
        )
    };
    assert_eq!(
        mistakes_after_version(&app("builds-repository: 'stoker/{project}'")),
        ["3:73: projects[0].builds-repository: `stoker/app` is already the cache repository of `app`; they \
             must be two"]
    );
    assert_eq!(
        mistakes_after_version(&app("builds-repository: stoker/web")),
        [
            "4:13: projects[1].name: `stoker/web` is already the builds repository of `app`; each project needs its own"
        ]
    );
    assert_eq!(mistakes_after_version(&app("promotion: on")).len(), 1);
    let policy =
        policy(&format!("version: 1\n{}", app("builds-repository: 'builds/{project}', promotion: off")));
    let app = policy.project(&name("app")).unwrap();
    assert_eq!((app.exports().as_str(), app.promotion), ("builds/app", Promotion::Off));
    assert_eq!(policy.project(&name("web")).unwrap().exports().as_str(), "stoker/web");
}

/// Every field that can be set, none with its built-in value.
const EVERY_SETTING: &str = r#"
  default-branch: trunk
  cache-repository: caches/{project}
  builds-repository: builds/{project}
  targets:
    - { name: api, platforms: [linux/amd64, linux/arm64] }
    - name: worker
      mounts:
        - { id: /root/.cargo/registry, options: "uid=1000,gid=1000", limit: 500MB }
  builds:
    start: false
    on: [pull-request, tag]
    tags: ["v*", "!v0.*"]
    branches: ["team/*", "!team/old-*"]
    bases: [main, "release/*"]
    actors: ["1", "49699333", "!2"]
    messages: ["!*[no image]*"]
    paths: ["src/*", "!*.md"]
    paths-unknown: skip
    skip-paths: [buildspec.yml]
    skip-marks: false
    skip-labels: [wip, do not build]
    drafts: false
    superseded: stop
    forks: { build: after-approval, project: "{project}-forks", approvers: ["49699333", "557058:0-ABCD"] }
  export: { builds: main, mode: min, compression: zstd }
  builder: { image: "mirror.example:5000/moby/buildkit:v0.13.2", tools: "mirror.example:5000/busybox:1" }
  more-sources:
    - type=registry,ref=example.com/app:latest
    - localhost:5000/team/app
  promotion: rebuild
  probation: 2d
  line-budget: 10GB
  warm: { after-merge: false, stale-after: 1d, refresh: 14d, base-images: ["library/python:3.12", "base:1"] }
  retention: { mode: apply, lease: 2d, idle-branch: 3d }
"#;

fn target(project: &str, target: Option<&str>, platform: Option<&str>) -> Target {
    let target = target.map(|text| TargetName::new(text).unwrap());
    Target::new(&name(project), target, platform.map(|text| Platform::new(text).unwrap()))
}

fn mount(target: &str, id: &str, options: &str, limit: u64) -> Mount {
    let id = MountId::new(id).unwrap();
    let target = TargetName::new(target).unwrap();
    let scope = Scope::of_mount(&name("app"), Some(&target), None, &id);
    Mount { id, options: options.to_owned(), limit, scope }
}

fn base_image(repository: &str, tag: &str) -> BaseImage {
    BaseImage { repository: CacheRepository::new(repository).unwrap(), tag: tag.to_owned() }
}

fn project_with_every_setting() -> Project {
    Project {
        name: name("app"),
        repository: repository("github.com/example/app"),
        named_default_branch: Some(Branch::new("trunk").unwrap()),
        cache_repository: CacheRepository::new("caches/app").unwrap(),
        builds_repository: Some(CacheRepository::new("builds/app").unwrap()),
        targets: vec![
            target("app", Some("api"), Some("linux/amd64")),
            target("app", Some("api"), Some("linux/arm64")),
            Target {
                mounts: vec![mount("worker", "/root/.cargo/registry", "uid=1000,gid=1000", 500_000_000)],
                ..target("app", Some("worker"), None)
            },
        ],
        builds: Builds {
            start: false,
            on_push: false,
            on_pull_request: Change::BUILT.to_vec(),
            on_tag: true,
            tags: globs(&["v*"], &["v0.*"]),
            branches: globs(&["team/*"], &["team/old-*"]),
            bases: globs(&["main", "release/*"], &[]),
            actors: globs(&["1", "49699333"], &["2"]),
            messages: globs(&[], &["*[no image]*"]),
            paths: globs(&["src/*"], &["*.md"]),
            paths_unknown: PathsUnknown::Skip,
            skip_paths: Some(globs(&["buildspec.yml"], &[])),
            skip_marks: false,
            skip_labels: vec!["wip".to_owned(), "do not build".to_owned()],
            drafts: false,
            superseded: Superseded::Stop,
            forks: Forks {
                build: ForkBuilds::AfterApproval,
                project: Some(name("app-forks")),
                approvers: ["49699333", "557058:0-abcd"].map(str::to_owned).to_vec(),
            },
        },
        export: Export {
            builds: ExportBuilds::Main,
            mode: CacheMode::Min,
            compression: Some(Compression::Zstd),
        },
        builder_image: "mirror.example:5000/moby/buildkit:v0.13.2".to_owned(),
        tools_image: "mirror.example:5000/busybox:1".to_owned(),
        more_sources: vec![
            "type=registry,ref=example.com/app:latest".to_owned(),
            "type=registry,ref=localhost:5000/team/app".to_owned(),
        ],
        promotion: Promotion::Rebuild,
        probation: DAY * 2,
        line_budget: Some(10_000_000_000),
        warm: Warm {
            after_merge: false,
            stale_after: DAY,
            refresh: Some(DAY * 14),
            base_images: vec![base_image("library/python", "3.12"), base_image("base", "1")],
        },
        retention: Retention {
            mode: Mode::Apply,
            lease: DAY * 2,
            idle_branch: DAY * 3,
            history: DAY * 3,
            keep_at_least: 1,
            keep_branches: None,
            pinned: Vec::new(),
            orphans: Some(DAY * 7),
            scope_budget: None,
            repository_budget: None,
            max_deletions: 1000,
        },
    }
}

#[test]
fn every_setting_can_be_a_default_and_be_set_in_a_rule() {
    let rule = "  - name: app\n    repository: github.com/example/app\n";
    let in_rule = EVERY_SETTING.replace("\n  ", "\n    ");
    for text in [
        format!("version: 1\ndefaults:{EVERY_SETTING}projects:\n{rule}"),
        format!("version: 1\nprojects:\n{}{in_rule}", rule.trim_end()),
    ] {
        assert_eq!(policy(&text).project(&name("app")), Some(project_with_every_setting()), "{text}");
    }
}

#[test]
fn a_section_in_a_rule_changes_only_what_it_names_and_a_list_is_replaced() {
    let rule = "  - name: app
    repository: github.com/example/app
    targets: []
    builds: { on: [push], skip-labels: [], branches: ['*'], forks: { build: read-only } }
    export: { mode: max }
    more-sources: []
    warm: { refresh: none, base-images: [] }
";
    let app = policy(&format!("version: 1\ndefaults:{EVERY_SETTING}projects:\n{rule}"));
    let app = app.project(&name("app")).unwrap();
    let mut expected = project_with_every_setting();
    expected.targets = vec![target("app", None, None)];
    expected.builds.on_push = true;
    expected.builds.on_tag = false;
    expected.builds.on_pull_request.clear();
    expected.builds.skip_labels.clear();
    expected.builds.branches = globs(&[], &[]);
    expected.builds.forks.build = ForkBuilds::ReadOnly;
    expected.export.mode = CacheMode::Max;
    expected.more_sources.clear();
    expected.warm.refresh = None;
    expected.warm.base_images.clear();
    assert_eq!(app, expected);
}

/// The only mistake of a document with these defaults, without its line, column and `defaults.`.
fn mistake_in_defaults(fields: &str) -> String {
    let found = mistakes_after_version(&format!("defaults: {{ {fields} }}"));
    assert_eq!(found.len(), 1, "{fields}: {found:?}");
    found[0].split_once(": defaults.").unwrap().1.to_owned()
}

/// The only mistake of a rule `app` with these fields, without its line and column.
fn mistake_in_rule(fields: &str) -> String {
    let rule = "name: app, repository: github.com/example/app";
    let found = mistakes_after_version(&format!("projects: [{{ {rule}, {fields} }}]"));
    assert_eq!(found.len(), 1, "{fields}: {found:?}");
    found[0].split_once(": ").unwrap().1.to_owned()
}

#[test]
fn a_switch_is_true_or_false() {
    let start = |text: &str| mistake_in_defaults(&format!("builds: {{ start: {text} }}"));
    let expected =
        |wrong: &str, right: &str| format!("builds.start: `{wrong}` is text; write {right}, without quotes");
    for text in ["yes", "on", "'true'"] {
        assert_eq!(start(text), expected(text.trim_matches('\''), "`true`"));
    }
    for text in ["no", "off", "'false'"] {
        assert_eq!(start(text), expected(text.trim_matches('\''), "`false`"));
    }
    assert_eq!(start("maybe"), expected("maybe", "`true` or `false`"));
    assert_eq!(start("1"), "builds.start: expected `true` or `false`, found a number");
    assert_eq!(start(""), "builds.start: expected `true` or `false`, found nothing");
    for field in ["builds: { skip-marks: x }", "builds: { drafts: x }", "warm: { after-merge: x }"] {
        assert!(mistake_in_defaults(field).ends_with("`x` is text; write `true` or `false`, without quotes"));
    }
}

#[test]
fn a_word_that_is_not_known_is_answered_with_those_that_are() {
    for (field, expected) in [
        ("promotion: x", "promotion: `x` is no promotion; write `merged`, `rebuild` or `off`"),
        (
            "builds: { on: [x] }",
            "builds.on[0]: `x` is nothing that starts builds; write `push`, `pull-request`, \
             `pull-request-created`, `pull-request-updated`, `pull-request-reopened` or `tag`",
        ),
        (
            "builds: { paths-unknown: x }",
            "builds.paths-unknown: `x` is not what to do; write `build` or `skip`",
        ),
        ("builds: { superseded: x }", "builds.superseded: `x` is no way to end; write `finish` or `stop`"),
        (
            "builds: { forks: { build: x } }",
            "builds.forks.build: `x` is no way to build forks; write `none`, `read-only` or `after-approval`",
        ),
        ("export: { builds: x }", "export.builds: `x` is not which builds export; write `all` or `main`"),
        ("export: { mode: x }", "export.mode: `x` is no mode of a cache; write `max` or `min`"),
        (
            "export: { compression: x }",
            "export.compression: `x` is no compression; write `default`, `gzip`, `zstd`, `estargz` or `uncompressed`",
        ),
        ("retention: { mode: x }", "retention.mode: `x` is not a mode; write `report` or `apply`"),
    ] {
        assert_eq!(mistake_in_defaults(field), expected);
    }
}

#[test]
fn every_compression_is_known() {
    for (text, expected) in [
        ("default", None),
        ("gzip", Some(Compression::Gzip)),
        ("zstd", Some(Compression::Zstd)),
        ("estargz", Some(Compression::Estargz)),
        ("uncompressed", Some(Compression::Uncompressed)),
    ] {
        let rule = format!("name: app, repository: a.b/c/d, export: {{ compression: {text} }}");
        let policy = policy(&format!("version: 1\nprojects: [{{ {rule} }}]"));
        assert_eq!(policy.project(&name("app")).unwrap().export.compression, expected);
    }
}

#[test]
fn a_list_has_texts_each_once_and_not_too_many() {
    assert_eq!(
        mistakes_after_version("defaults: { builds: { skip-labels: [a, 1, b, a, ''], on: push } }"),
        [
            "2:40: defaults.builds.skip-labels[1]: expected text, found a number; put it in quotes",
            "2:46: defaults.builds.skip-labels[3]: `a` is there twice",
            "2:49: defaults.builds.skip-labels[4]: `` is no label: expected 1 to 100 characters, none of them a \
             control \
             character",
            "2:58: defaults.builds.on: expected a list, found text",
        ]
    );
    let many: Vec<_> = (0..101).map(|i| format!("l{i}")).collect();
    assert_eq!(
        mistake_in_defaults(&format!("builds: {{ skip-labels: [{}] }}", many.join(", "))),
        "builds.skip-labels: 101 entries, more than 100"
    );
    policy(&format!("version: 1\ndefaults: {{ builds: {{ skip-labels: [{}] }} }}", many[1..].join(", ")));
    let long = mistake_in_defaults(&format!("builds: {{ skip-labels: [{}] }}", "x".repeat(101)));
    assert!(long.ends_with("none of them a control character"), "{long}");
}

#[test]
fn tags_are_built_where_both_keys_say_so() {
    let app = |builds: &str| {
        let rule = format!("name: app, repository: bitbucket.org/example/app, builds: {{ {builds} }}");
        policy(&format!("version: 1\nprojects: [{{ {rule} }}]")).project(&name("app")).unwrap().builds
    };
    let builds = app("on: [tag], tags: [\"v*\", \"!v0.*\"]");
    assert!(builds.on_tag && !builds.on_push && builds.on_pull_request.is_empty());
    assert_eq!(builds.tags, globs(&["v*"], &["v0.*"]));
    assert!(!app("on: [push]").on_tag);
    let wrong = |builds: &str| {
        let rule = format!("name: app, repository: github.com/example/app, builds: {{ {builds} }}");
        let found = mistakes_after_version(&format!("projects: [{{ {rule} }}]"));
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].split_once(": projects[0].builds.").unwrap().1.to_owned()
    };
    assert_eq!(
        wrong("tags: [\"v*\"]"),
        "tags: `tags` asks the pushes of tags, which `on` leaves out: add `tag`"
    );
    assert_eq!(
        wrong("on: [push, tag], skip-paths: [ci/a]"),
        "on: no tag tells which files changed, and `skip-paths` asks: leave `tag` out"
    );
    assert_eq!(wrong("on: [tag], tags: [refs/tags/v1]"), "tags[0]: write `v1`, without the `refs/tags/`");
    assert!(
        wrong("on: [tag], tags: [a b]").starts_with("tags[0]: `a b` matches no tag: a tag has no spaces")
    );
}

#[test]
fn builds_of_branches_start_on_something() {
    let expected = "builds.on: nothing would start a build; write which of `push`, `pull-request` and `tag` do, or set \
                    `start: false` if somebody else starts the builds";
    assert_eq!(mistake_in_defaults("builds: { on: [] }"), expected);
    assert_eq!(mistake_in_defaults("builds: { on: }"), expected);
    assert_eq!(mistake_in_defaults("builds: { on: [push, push] }"), "builds.on[1]: `push` is there twice");
}

#[test]
fn what_of_a_pull_request_starts_builds_is_said_in_words() {
    for (words, expected) in [
        ("pull-request", Change::BUILT.to_vec()),
        ("pull-request-created", vec![Change::Opened]),
        ("pull-request-reopened, pull-request-updated", vec![Change::Reopened, Change::Pushed]),
        ("pull-request-created, pull-request", Change::BUILT.to_vec()),
        ("push", Vec::new()),
    ] {
        let policy = policy(&format!("{ON_GITHUB}builds: {{ on: [{words}] }} }}]"));
        assert_eq!(policy.project(&name("app")).unwrap().builds.on_pull_request, expected, "{words}");
    }
}

/// A document whose only rule goes on with more fields and `}]`.
const ON_GITHUB: &str = "version: 1\nprojects: [{ name: app, repository: github.com/example/app, ";

#[test]
fn accounts_are_named_by_what_their_forge_calls_them_for_good() {
    let builds = |host: &str, actors: &str| {
        let rule = format!("name: app, repository: {host}/example/app, builds: {{ actors: [{actors}] }}");
        Policy::parse("p", &format!("version: 1\nprojects: [{{ {rule} }}]"))
            .map_err(|wrong| wrong.to_string())
    };
    let aws = "git-codecommit.us-east-1.amazonaws.com/v1/repos";
    for (host, actors) in [
        ("github.com", "'1', '!49699333'"),
        ("gitlab.example.com", "'1'"),
        ("github.com", "'*', '!1'"),
        ("bitbucket.org", "'557058:00000000-abcd-0000-0000-000000000000', 5c9d2f000000000000000000"),
        (aws, "'arn:aws:iam::123456789012:user/octocat'"),
    ] {
        assert!(builds(host, actors).is_ok(), "{host} {actors}");
    }
    for (host, actors) in [
        ("github.com", "octocat"),
        ("github.com", "'!octocat'"),
        ("gitlab.com", "'557058:0'"),
        ("bitbucket.org", "octocat"),
        ("bitbucket.org", "'49699333'"),
        (aws, "octocat"),
    ] {
        let wrong = builds(host, actors).unwrap_err();
        assert!(wrong.contains("is no account's id: "), "{host} {actors}: {wrong}");
    }
    for (actors, wrong) in [
        ("'1*'", "builds.actors[0]: `1*` is no account: "),
        ("'1?'", "builds.actors[0]: `1?` is no account: "),
        ("'!*'", "builds.actors[0]: `!*` excludes everything"),
        ("", "builds.actors: there is no glob in this list"),
        ("1", "builds.actors[0]: expected text, found a number; put it in quotes"),
    ] {
        let found = mistake_in_defaults(&format!("builds: {{ actors: [{actors}] }}"));
        assert!(found.starts_with(wrong), "{found}");
    }
}

#[test]
fn a_filter_that_nobody_could_answer_is_refused() {
    let aws = "git-codecommit.us-east-1.amazonaws.com/v1/repos/app";
    let forks = "forks: { build: read-only, project: app-forks }";
    let approved = "forks: { build: after-approval, project: app-forks, approvers: ['49699333'] }";
    let only_push = "only a push tells which files changed, and `paths` or `skip-paths` ask: add `push`";
    let no_files = |forge| format!("{forge} never tells which files changed, so nothing would be built");
    let no_message = "GitHub tells no message of a pull request's commits, and `messages` asks";
    for (repository, builds, field, wrong) in [
        ("github.com/a/b", "on: [pull-request], paths: ['src/*']", "builds.on", only_push.to_owned()),
        ("github.com/a/b", "on: [pull-request], skip-paths: [x]", "builds.on", only_push.to_owned()),
        ("bitbucket.org/a/b", "skip-paths: [x]", "builds.skip-paths", no_files("Bitbucket")),
        (aws, "paths: [x], paths-unknown: skip", "builds.paths-unknown", no_files("CodeCommit")),
        (
            "github.com/a/b",
            &format!("skip-paths: [x], {forks}"),
            "builds.forks.build",
            "no pull request tells which files changed, and `builds.skip-paths` asks: write `none`"
                .to_owned(),
        ),
        (
            aws,
            "messages: ['x*']",
            "builds.messages",
            "CodeCommit tells no message of a commit, so nothing would \
             be built"
                .to_owned(),
        ),
        (
            "github.com/a/b",
            "on: [pull-request], messages: ['x*']",
            "builds.on",
            format!("{no_message}: add `push`"),
        ),
        (
            "github.com/a/b",
            &format!("messages: ['x*'], {forks}"),
            "builds.forks.build",
            format!(
                "{no_message}: \
             write `none`"
            ),
        ),
        (
            "github.com/a/b",
            &format!("on: [push], {forks}"),
            "builds.on",
            "forks are built by their pull requests, which `on` leaves out: add `pull-request`, or build no \
             forks"
                .to_owned(),
        ),
        (
            "gitlab.com/a/b",
            &format!("on: [push, pull-request-created], {approved}"),
            "builds.on",
            "what is approved may be what a pull request came with or what was pushed later: add \
             `pull-request`, or build \
             no forks"
                .to_owned(),
        ),
    ] {
        let rule = |start| {
            format!(
                "projects: [{{ name: app, repository: {repository}, builds: {{ start: {start}, {builds} }} }}]"
            )
        };
        let found = mistakes_after_version(&rule(true));
        assert_eq!(found.len(), 1, "{builds}: {found:?}");
        assert!(found[0].ends_with(&format!("projects[0].{field}: {wrong}")), "{}", found[0]);
        policy(&format!("version: 1\n{}", rule(false)));
    }
    for (repository, builds) in [
        ("github.com/a/b", format!("paths: ['src/*'], {forks}")),
        ("github.com/a/b", "skip-paths: [], on: [pull-request]".to_owned()),
        ("bitbucket.org/a/b", "paths: ['src/*']".to_owned()),
        ("gitlab.com/a/b", format!("messages: ['x*'], on: [pull-request], {forks}")),
        ("github.com/a/b", format!("on: [pull-request-created, pull-request-updated], {approved}")),
    ] {
        let rule = format!("{{ name: app, repository: {repository}, builds: {{ {builds} }} }}");
        policy(&format!("version: 1\nprojects: [{rule}]"));
    }
}

#[test]
fn the_glob_of_a_message_may_have_more_lines_and_no_other_has() {
    let app = policy(&format!("{ON_GITHUB}builds: {{ messages: [\"Release *\", \"!*\\n*\"] }} }}]"));
    let messages = app.project(&name("app")).unwrap().builds.messages;
    assert!(messages.matches("Release 1"));
    assert!(!messages.matches("Release 1\n\nWith notes"));
    for field in ["paths", "branches", "actors"] {
        let wrong = mistake_in_defaults(&format!("builds: {{ {field}: [\"a\\nb\"] }}"));
        assert!(wrong.starts_with(&format!("builds.{field}[0]: ")), "{wrong}");
    }
}

#[test]
fn targets_are_told_apart() {
    let targets = |text: &str| mistake_in_defaults(&format!("targets: [{text}]"));
    assert_eq!(
        targets("{ name: a }, { platforms: [linux/amd64] }"),
        "targets[1]: the field `name` is missing; only a single target can do without"
    );
    assert_eq!(
        targets("{}"),
        "targets[0]: a target has a `name`, `platforms` or `mounts`; leave `targets` out for one image"
    );
    assert_eq!(
        targets("{ name: a, platforms: [] }"),
        "targets[0].platforms: there is no platform in this list; leave it out for the builder's own"
    );
    assert_eq!(targets("{ name: a }, { name: a }"), "targets[1]: `a` is there twice");
    assert_eq!(
        targets("{ name: a, platforms: [linux/arm64] }, { name: a, platforms: [linux/amd64, linux/arm64] }"),
        "targets[1]: `a` for `linux/arm64` is there twice"
    );
    assert_eq!(
        targets("{ name: a, platforms: [linux/arm64, linux/arm64] }"),
        "targets[0].platforms[1]: `linux/arm64` is there twice"
    );
    assert_eq!(
        targets("{ name: a-b }, { name: A_b }"),
        "targets[1]: `A_b` cannot be told from `a-b`: the variables of both would end with `_A_B`; call one of them \
         otherwise"
    );
    assert_eq!(
        targets("{ name: a, platforms: [linux/arm64] }, { name: a-linux-arm64 }"),
        "targets[1]: `a-linux-arm64` cannot be told from `a` for `linux/arm64`: the variables of both would end with \
         `_A_LINUX_ARM64`; call one of them otherwise"
    );
    assert!(targets("{ name: '1a' }").starts_with("targets[0].name: target `1a` is not valid"));
    assert!(
        targets("{ platforms: [arm64] }").starts_with("targets[0].platforms[0]: platform `arm64` is not")
    );
    assert_eq!(
        targets("{ name: a, platform: linux/arm64 }"),
        "targets[0]: there is no field `platform` here; did you mean `platforms`?"
    );
    assert_eq!(targets("api"), "targets[0]: expected fields, found text");
}

#[test]
fn a_single_target_needs_no_name() {
    let rule = "name: app, repository: a.b/c/d, targets: [{ platforms: [linux/amd64, linux/arm64/v8] }]";
    let project = policy(&format!("version: 1\nprojects: [{{ {rule} }}]")).project(&name("app")).unwrap();
    let suffixes: Vec<_> = project.targets.iter().map(Target::suffix).collect();
    assert_eq!(suffixes, ["_LINUX_AMD64", "_LINUX_ARM64_V8"]);
    let bake_names: Vec<_> = project.targets.iter().map(Target::bake_name).collect();
    assert_eq!(bake_names, ["linux-amd64", "linux-arm64-v8"]);
}

#[test]
fn there_are_at_most_a_hundred_targets_all_platforms_counted() {
    let targets = |count: usize| {
        let target = |i| format!("{{ name: t{i}, platforms: [linux/amd64, linux/arm64] }}");
        format!("targets: [{}]", (0..count).map(target).collect::<Vec<_>>().join(", "))
    };
    policy(&format!("version: 1\ndefaults: {{ {} }}", targets(50)));
    let expected = "targets: 102 targets, each platform of each counted; at most 100";
    assert_eq!(mistake_in_defaults(&targets(51)), expected);
}

fn branches_and_paths(branches: &str, paths: &str) -> (Globs, Globs) {
    let rule = format!("name: app, repository: a.b/c/d, builds: {{ branches: {branches}, paths: {paths} }}");
    let project = policy(&format!("version: 1\nprojects: [{{ {rule} }}]")).project(&name("app")).unwrap();
    (project.builds.branches, project.builds.paths)
}

#[test]
fn a_glob_of_branches_or_paths_spans_slashes_and_an_exclamation_mark_excludes() {
    let (branches, paths) = branches_and_paths("['*', '!dependabot/*']", "['src/*', 'a?.rs', '!*.md']");
    for built in ["main", "feature/a/b", "dependabot", "x/dependabot/y"] {
        assert!(branches.matches(built), "{built}");
    }
    assert!(!branches.matches("dependabot/cargo/serde"));
    for built in ["src/a", "src/b/c.rs", "ab.rs"] {
        assert!(paths.matches(built), "{built}");
    }
    for not_built in ["src/read.md", "docs/src/a", "a.rs", "abc.rs", "SRC/a", ""] {
        assert!(!paths.matches(not_built), "{not_built}");
    }
    assert!(!branches.match_all() && !paths.match_all());
}

#[test]
fn what_is_only_excluded_leaves_all_else_in() {
    let (branches, _) = branches_and_paths("['!wip/*', '!tmp']", "['*']");
    assert!(branches.matches("main") && branches.matches("tmp/a"));
    assert!(!branches.matches("wip/a") && !branches.matches("tmp"));
    assert!(!branches.match_all());
}

#[test]
fn a_lone_star_says_as_much_as_nothing() {
    let (branches, paths) = branches_and_paths("[main, '**']", "['*']");
    assert!(branches.match_all() && paths.match_all());
    assert!(branches.matches("any/thing") && paths.matches(""));
}

#[test]
fn a_glob_that_matches_nothing_or_excludes_everything_is_refused() {
    let glob = |field: &str, text: &str| {
        let found = mistake_in_defaults(&format!("builds: {{ {field}: ['{text}'] }}"));
        found.strip_prefix(&format!("builds.{field}[0]: ")).unwrap().to_owned()
    };
    for field in ["branches", "paths"] {
        assert_eq!(glob(field, "!*"), "`!*` excludes everything; write which to exclude");
        for empty in ["", "!"] {
            let expected =
                format!("`{empty}` is no glob: write what is to match, with `*` for any characters");
            assert_eq!(glob(field, empty), expected);
        }
        assert!(glob(field, &"x".repeat(513)).ends_with("is too long: at most 512 characters"));
        for list in ["[]", ""] {
            assert_eq!(
                mistake_in_defaults(&format!("builds: {{ {field}: {list} }}")),
                format!(
                    "builds.{field}: there is no glob in this list; write `[\"*\"]` to let everything match"
                )
            );
        }
    }
    assert_eq!(
        glob("branches", "!my fix"),
        "`my fix` matches no branch: a branch has no spaces and none of `~^:[\\` and `..`"
    );
    assert_eq!(glob("branches", "refs/heads/fix-*"), "write `fix-*`, without the `refs/heads/`");
    let root = "a path begins at the root of the repository, without";
    assert_eq!(glob("paths", "/src/*"), format!("`/src/*` matches no file: {root} a `/` before it"));
    assert_eq!(glob("paths", "./src/*"), format!("`./src/*` matches no file: {root} `.` or `..` in it"));
    assert_eq!(glob("paths", "src/"), "`src/` matches no file; write `src/*` for all in that directory");
    let control = mistake_in_defaults(r#"builds: { paths: ["a\tb"] }"#);
    assert_eq!(control, r"builds.paths[0]: `a\tb` has a control character in it");
    branches_and_paths("['fix-?']", "['app/[id]/my page.tsx', '.github/*']");
}

#[test]
fn a_glob_that_excludes_without_quotes_has_to_take_some() {
    for text in ["[!old]", "[!old , a]", "[!old/*]"] {
        let found = mistakes_after_version(&format!("defaults: {{ builds: {{ branches: {text} }} }}"));
        assert!(found[0].ends_with("; a value that starts with `!` has to be in quotes"), "{found:?}");
    }
}

#[test]
fn a_template_that_begins_with_a_brace_has_to_take_quotes() {
    for text in ["cache-repository: {project}/caches", "builds:\n    forks:\n      project: {project}-forks"]
    {
        let found = mistakes_after_version(&format!("defaults:\n  {text}\n"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with("; a value that starts with `{` has to be in quotes"), "{found:?}");
    }
    for text in ["{ project: {project}-forks }", "{ project: {project} }"] {
        let found = mistakes_after_version(&format!("defaults: {{ builds: {{ forks: {text} }} }}\n"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with("; a value that starts with `{` has to be in quotes"), "{found:?}");
    }
}

#[test]
fn forks_are_built_by_a_project_of_their_own() {
    let project = "builds.forks.project";
    let need = "forks need a project of their own, such as `\"{project}-forks\"`, whose role writes nothing";
    let forks = |fields: &str| mistake_in_rule(&format!("builds: {{ forks: {{ {fields} }} }}"));
    for text in ["app", "'{project}'", "APP"] {
        let found = forks(&format!("build: read-only, project: {text}"));
        assert!(found.starts_with(&format!("projects[0].{project}: `")), "{found}");
        assert!(found.ends_with(&format!("` is the project itself; {need}")), "{found}");
    }
    assert_eq!(
        forks("build: read-only"),
        "projects[0].builds.forks.build: forks are built by a CodeBuild project of their own, whose role writes \
         nothing: \
         set `builds.forks.project`, such as `\"{project}-forks\"`"
    );
    assert_eq!(
        forks("build: after-approval, project: app-forks"),
        "projects[0].builds.forks.build: forks are built after an approval, and nobody's counts: set \
         `builds.forks.approvers`, such as `[\"49699333\"]`"
    );
    assert!(forks("project: '{name}'").ends_with("`{name}` has braces that are not `{project}`"));
    assert!(forks("project: 'a b'").contains("project name `a b` is not valid"));
    // What is wrong is not missing too.
    assert!(forks("build: read-only, project: 'a b'").contains("project name `a b` is not valid"));
}

#[test]
fn a_repositorys_id_is_as_its_forge_tells_it() {
    let of = |name: &str, repository: &str, id: &str| {
        format!(
            "version: 1\nprojects:\n  - name: {name}\n    repository: {repository}\n    repository-id: {id}\n"
        )
    };
    let (github, bitbucket) = ("github.com/example/app", "bitbucket.org/example/app");
    let uuid = "'{b3a0a0a0-0000-4000-8000-00000000000a}'";
    let codecommit = "git-codecommit.eu-central-1.amazonaws.com/v1/repos/app";
    for (repository, id) in
        [(github, "'1296269'"), (bitbucket, uuid), ("gitlab.example.com/group/app", "'7'")]
    {
        let found = Repository::new(repository).unwrap();
        let expected = id.trim_matches('\'');
        assert_eq!(policy(&of("app", repository, id)).repository_id(&found), Some(expected), "{repository}");
    }
    for (repository, id) in
        [(github, uuid), (github, "app"), (github, "''"), (bitbucket, "'7'"), (codecommit, "'7'")]
    {
        let [wrong] = &mistakes(&of("app", repository, id))[..] else { panic!("{repository} {id}") };
        assert!(wrong.contains("is no repository's id"), "{wrong}");
    }
    let [wrong] = &mistakes(&of("app", github, "7"))[..] else { panic!("a number") };
    assert!(wrong.contains("put it in quotes"), "{wrong}");
    let [wrong] = &mistakes(&of("'*'", "'github.com/example/{project}'", "'7'"))[..] else {
        panic!("a glob")
    };
    assert!(wrong.contains("a glob is of many repositories"), "{wrong}");
    let two = of("app", github, "'7'")
        + "  - name: web\n    repository: github.com/Example/App\n    repository-id: '8'\n";
    let [wrong] = &mistakes(&two)[..] else { panic!("two ids") };
    assert!(wrong.contains("another rule says `7` of the same repository"), "{wrong}");
    // What one rule says holds for the repository, whichever of its projects is meant.
    let one = of("app", github, "'7'") + "  - name: web\n    repository: github.com/example/app\n";
    assert_eq!(policy(&one).repository_id(&Repository::new(github).unwrap()), Some("7"));
    assert_eq!(policy(&one).repository_id(&Repository::new("github.com/example/web").unwrap()), None);
}

/// Logins change hands: who takes the one that an approver has given up is nobody.
#[test]
fn attack_an_approvers_name_that_somebody_else_has_taken() {
    let written = |approver: &str| {
        format!(
            "version: 1\nprojects:\n  - name: app\n    repository: \
             github.com/example/app\n    builds:\n      forks: {{ build: after-approval, \
             project: app-forks, approvers: ['{approver}'] }}\n"
        )
    };
    for name in ["octocat", "Octocat", "renovate[bot]", "@me", "a1b2", ""] {
        let [wrong] = &mistakes(&written(name))[..] else { panic!("{name}") };
        assert!(wrong.contains("is no account's id"), "{wrong}");
    }
    for id in ["49699333", "557058:00000000-ABCD-0000-0000-000000000000", "5b10ac8d82e05b22cc7d4ef5"] {
        policy(&written(id));
    }
}

#[test]
fn what_forks_lack_by_default_is_reported_where_a_rule_needs_it() {
    let found = mistakes_after_version(
        "defaults: { builds: { forks: { build: after-approval } } }
projects:
  - { name: app, repository: github.com/example/app }
  - { name: web, repository: github.com/example/web, builds: { forks: { build: none } } }
",
    );
    assert_eq!(found.len(), 2);
    assert!(
        found[0].starts_with("4:13: projects[0].name: forks are built by a CodeBuild project"),
        "{found:?}"
    );
    assert!(found[1].starts_with("4:13: projects[0].name: forks are built after an approval"), "{found:?}");
}

#[test]
fn no_project_that_a_rule_serves_by_name_builds_forks() {
    let rules = |web: &str, forks: &str| {
        let forks = format!("builds: {{ forks: {{ build: read-only, project: '{forks}' }} }}");
        mistakes_after_version(&format!(
            "projects:
  - {{ name: api, repository: github.com/example/api }}
  - {{ name: team-web-forks, repository: github.com/example/forks }}
  - {{ name: '{web}', repository: 'github.com/example/{{project}}', {forks} }}
"
        ))
    };
    let need = "forks need a project of their own, such as `\"{project}-forks\"`, whose role writes nothing";
    for (web, forks, wrong) in [
        ("team-web", "{project}-forks", "`team-web-forks` is the project of projects[1]"),
        ("team-web", "api", "`api` is the project of projects[0]"),
        ("team-*", "api", "`api` is the project of projects[0]"),
        ("team-*", "{project}-forks", "`team-web-forks` is the project of projects[1]"),
        ("Team-*", "{project}-forks", "`team-web-forks` is the project of projects[1]"),
        ("team-*", "{project}", "`{project}` is the project itself"),
        ("team-*", "team-forks", "`team-forks` is one of the projects of `team-*`"),
    ] {
        let found = rules(web, forks);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with(&format!(".builds.forks.project: {wrong}; {need}")), "{found:?}");
    }
}

#[test]
fn a_project_of_forks_may_be_of_a_glob_and_has_no_caches() {
    let policy = policy(
        "version: 1
defaults: { builds: { forks: { build: read-only, project: '{project}-forks' } } }
projects:
  - { name: Web, repository: github.com/example/web }
  - { name: api, repository: github.com/example/api, builds: { forks: { build: none, project: none } } }
  - { name: app, repository: github.com/example/app, builds: { forks: { project: strangers } } }
  - { name: 'team-*', repository: 'github.com/example/{project}' }
",
    );
    let forks = |project: &str| policy.project(&name(project)).unwrap().builds.forks.project;
    assert_eq!(forks("Web"), Some(name("web-forks")));
    assert_eq!(forks("api"), None);
    assert_eq!(forks("app"), Some(name("strangers")));
    assert_eq!(forks("team-a"), Some(name("team-a-forks")));
    assert_eq!(policy.project(&name("team-a-forks")), None, "it is no project of the glob's");
    for project in ["strangers", "team-a-forks", "web-forks"] {
        assert!(policy.builds_forks(&name(project)), "{project}");
    }
    assert!(!policy.builds_forks(&name("team-a")) && !policy.builds_forks(&name("api-forks")));
}

#[test]
fn two_projects_do_not_share_a_project_of_forks() {
    let shared = mistakes(
        "version: 1
projects:
  - { name: app, repository: github.com/example/app, builds: { forks: { build: read-only, project: shared } } }
  - { name: lib, repository: github.com/example/lib, builds: { forks: { build: read-only, project: shared } } }
  - { name: 'team-*', repository: 'github.com/example/{project}', builds: { forks: { build: read-only, project: \
  shared } } }
",
    );
    assert_eq!(shared.len(), 2, "{shared:?}");
    assert!(shared[0].contains("builds the forks of `app` already"), "{shared:?}");
    assert!(shared[1].contains("write it with `{project}`"), "{shared:?}");
}

#[test]
fn what_bitbucket_does_not_tell_is_not_asked_of_it() {
    let found = mistakes(
        "version: 1
projects:
  - { name: app, repository: bitbucket.org/example/app, builds: { on: [pull-request], forks: { build: \
  read-only, project: f1 } } }
",
    );
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|mistake| mistake.contains("twelve digits")), "{found:?}");
}

#[test]
fn more_sources_are_images_of_registries() {
    let source = |text: &str| {
        let found = mistake_in_defaults(&format!("more-sources: [\"{text}\"]"));
        found.strip_prefix("more-sources[0]: ").unwrap().to_owned()
    };
    let form = "write `type=registry,ref=` and an image, such as `type=registry,ref=example.com/app:latest`";
    for text in
        ["type=s3,region=x", "type=registry", "type=registry,ref=a.b/c,x=y", "ref=a.b/c,type=registry"]
    {
        assert_eq!(source(text), format!("`{text}` is no source that is taken: {form}"));
    }
    for text in ["a.b/c d", "a.b/c;d", "$a.b/c", "a.b/`c`", "a.b/c'd'", "a.b/é"] {
        assert!(
            source(text).ends_with(&format!("has more in it than letters, digits and `._:/@+-`: {form}"))
        );
    }
    for text in
        ["", "app", "library/app", "a.b/", "a.b/c:", "a.b/C", "a..b/c", "-a.b/c", "a.b:port/c", "a.b/c@x"]
    {
        assert_eq!(source(text), format!("`{text}` is no image in a registry: {form}"));
    }
    assert!(source(&format!("a.b/{}", "c".repeat(510))).ends_with("is too long: at most 512 characters"));
    let digest = format!("123.dkr.ecr.eu-west-1.amazonaws.com/a/b:1@sha256:{}", "a".repeat(64));
    policy(&format!(
        "version: 1\ndefaults: {{ more-sources: ['{digest}', a.b/c, 'localhost/c:1', 'h:1/c'] }}"
    ));
    assert_eq!(
        mistake_in_defaults("more-sources: [a.b/a, a.b/b, a.b/c, a.b/d, a.b/e]"),
        "more-sources: 5 entries, more than 4"
    );
}

#[test]
fn attack_a_builders_image_is_an_image_and_nothing_for_a_shell() {
    let wrong = |text: &str| {
        let found = mistake_in_defaults(&format!("builder: {{ image: '{text}' }}"));
        found.strip_prefix("builder.image: ").unwrap().to_owned()
    };
    for text in
        ["a/b:1;id", "$(id)", "`id`", "a/b:1 --x", "a:1,network=host", "a:1=b", "a\\b:1", "a*:1", "é:1"]
    {
        assert!(wrong(text).contains(" has more in it than letters, digits and `._:/@+-`: write"), "{text}");
    }
    for text in ["", "-a:1", "--a:1", "a//b:1", "A/b:1", "a:", "a.b:port/c:1", "a@sha256:1", ":1", "/a:1"] {
        assert!(wrong(text).contains(" is no image in a registry: write"), "{text}");
    }
    for text in ["moby/buildkit", "a.b:5000/c", "moby/buildkit:latest"] {
        assert!(wrong(text).contains(" names no version: write"), "{text}");
    }
    assert!(wrong(&format!("a.b/{}:1", "c".repeat(510))).contains("is too long: at most 512 characters"));
    let digest = format!("a.b/c@sha256:{}", "a".repeat(64));
    for text in [
        "buildkit:1",
        "moby/buildkit:buildx-stable-1",
        "h:1/c:2",
        "localhost/c:1",
        "a.b/c/d:v1.0_x-y",
        &digest,
    ] {
        policy(&format!("version: 1\ndefaults: {{ builder: {{ image: '{text}' }} }}"));
    }
}

#[test]
fn main_is_refreshed_no_more_than_once_a_day() {
    let refresh = |text: &str| mistake_in_defaults(&format!("warm: {{ refresh: {text} }}"));
    assert_eq!(refresh("23h"), "warm.refresh: `23h` is too short: at least 24h; or `none` for never");
    assert_eq!(
        refresh("weekly"),
        "warm.refresh: `weekly` is not a duration: write a number and `m`, `h` or `d`, such as `30m`, `24h` or \
         `7d`; or \
         `none` for never"
    );
    policy("version: 1\ndefaults: { warm: { refresh: 1d } }");
}

#[test]
fn probation_is_at_least_an_hour_and_at_most_thirty_days() {
    let probation = |text: &str| mistake_in_defaults(&format!("probation: {text}"));
    assert_eq!(probation("59m"), "probation: `59m` is too short: at least 1h");
    assert_eq!(probation("31d"), "probation: `31d` is too long: at most 30d");
    assert!(probation("none").starts_with("probation: `none` is not a duration"));
    for text in ["1h", "30d"] {
        policy(&format!("version: 1\ndefaults: {{ probation: {text} }}"));
    }
}

#[test]
fn a_base_image_has_a_repository_and_a_tag() {
    let image = |text: &str| mistake_in_defaults(&format!("warm: {{ base-images: ['{text}'] }}"));
    let rule = "write the repository in this account's ECR and the tag, such as `library/python:3.12`";
    for text in
        ["library/python", "python:", "Python:3", "a b:1", "python@sha256:00", "python:3:4", "python:-3"]
    {
        assert_eq!(image(text), format!("warm.base-images[0]: `{text}` is no base image: {rule}"));
    }
    assert!(
        image("1.dkr.ecr.eu-west-1.amazonaws.com/python:3")
            .ends_with(&format!("{rule}, without the registry's host"))
    );
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_document() {
    let text = r#"version: 1
default: {}
defaults:
  default-branch: a b
  warm: { stale-after: 7w }
  retention:
    mode: delete
    lease: 0m
projects:
  - name: app
  - name: "team-*"
    repository: github.com/example/mono
    cache-repository: caches
    warm: { stale_after: 1d }
  - name: team-web
    repository: example/web
  - name: app
    repository: 7
"#;
    let expected = r"
policy.yaml:2:1: there is no field `default` here; did you mean `defaults`?
policy.yaml:4:19: defaults.default-branch: branch `a b` is not valid: expected 1 to 1024 bytes without control characters, spaces or `..`
policy.yaml:5:24: defaults.warm.stale-after: `7w` is not a duration: write a number and `m`, `h` or `d`, such as `30m`, `24h` or `7d`
policy.yaml:7:11: defaults.retention.mode: `delete` is not a mode; write `report` or `apply`
policy.yaml:8:12: defaults.retention.lease: `0m` is too short: at least 1m
policy.yaml:10:5: projects[0]: the field `repository` is missing
policy.yaml:12:17: projects[1].repository: a glob's repository needs `{project}`: otherwise the project of a push cannot be told
policy.yaml:13:23: projects[1].cache-repository: a glob's cache repository needs `{project}`, and `caches` has none: its projects would share one
policy.yaml:14:13: projects[1].warm: there is no field `stale_after` here; did you mean `stale-after`?
policy.yaml:15:11: projects[2].name: this rule is never reached: projects[1] (`team-*`) matches first; put the narrower rule before it
policy.yaml:16:17: projects[2].repository: repository `example/web` is not valid: write it as host/owner/name, such as `github.com/example/app`
policy.yaml:17:11: projects[3].name: projects[0] is already the rule for `app`
policy.yaml:18:17: projects[3].repository: expected text, found a number; put it in quotes
13 mistakes: the policy is not used until all are corrected";
    let mistakes = Policy::parse("policy.yaml", text).unwrap_err();
    assert_eq!(format!("\n{mistakes}"), expected);
    assert_eq!(mistakes.iter().count(), 13);
}

#[test]
fn all_mistakes_of_the_settings_are_reported_at_once() {
    let text = r#"version: 1
defaults:
  targets:
    - name: 1
    - platforms: [arm64]
  builds:
    start: yes
    on: [tags]
    branches: ["!*"]
    path: ["src/*"]
    skip-labels: wip
    superseded: kill
    forks: { build: after-approval, project: none }
  export: { builds: some, mode: mid, compression: lz4 }
  more-sources: [app]
  warm: { after-merge: 1, refresh: 1h, base-images: [python] }
projects:
  - name: app
    repository: github.com/example/app
    builds: { forks: { project: app } }
"#;
    let places: Vec<String> = Policy::parse("p", text)
        .unwrap_err()
        .iter()
        .map(|mistake| format!("{}:{} {}", mistake.line, mistake.column, mistake.path))
        .collect();
    assert_eq!(
        places,
        [
            "4:13 defaults.targets[0].name",
            "5:19 defaults.targets[1].platforms[0]",
            "7:12 defaults.builds.start",
            "8:10 defaults.builds.on[0]",
            "9:16 defaults.builds.branches[0]",
            "10:5 defaults.builds",
            "11:18 defaults.builds.skip-labels",
            "12:17 defaults.builds.superseded",
            "14:21 defaults.export.builds",
            "14:33 defaults.export.mode",
            "14:51 defaults.export.compression",
            "15:18 defaults.more-sources[0]",
            "16:24 defaults.warm.after-merge",
            "16:36 defaults.warm.refresh",
            "16:54 defaults.warm.base-images[0]",
            "18:11 projects[0].name",
            "20:33 projects[0].builds.forks.project",
        ]
    );
}

#[test]
fn an_error_of_syntax_is_one_mistake_with_its_place() {
    for (text, place) in [("version: [1", "2:1"), ("version: 1\n\tprojects: []", "1:10"), ("a: b: c", "1:5")]
    {
        let found = mistakes(text);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(&format!("{place}: this is not a YAML document: ")), "{found:?}");
    }
}

#[test]
fn a_second_document_is_refused() {
    let found = mistakes("version: 1\n---\nversion: 1\n");
    assert_eq!(found, ["3:1: a second document starts before this; a policy is one document"]);
}

#[test]
fn a_document_of_more_than_a_mebibyte_is_refused() {
    let text = format!("version: 1\n{}", "#".repeat(MAX_BYTES));
    assert_eq!(mistakes(&text), ["1:1: the document has 1048587 bytes, more than 1048576"]);
    policy(&format!("version: 1\n{}", "#".repeat(MAX_BYTES - 11)));
}

#[test]
fn anchors_are_refused_so_that_no_alias_can_multiply() {
    let expected = "`&` before a word is an anchor in YAML, and a policy has none: write the value again";
    for line in ["defaults: &d {}", "defaults: {warm: &d {}}", "'a':&d b", "[a,&d b]", "&d a: b"] {
        let column = line.find('&').unwrap() + 1;
        assert_eq!(mistakes_after_version(line), [format!("2:{column}: {expected}")]);
    }
    policy("version: 1 # R&D, build & deploy &\ndefaults: { default-branch: r&d }");
}

#[test]
fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
    // What a main thread has; without optimisation, the parser needs most of a test thread's 2 MiB.
    let thread = std::thread::Builder::new().stack_size(8 << 20);
    thread.spawn(nest_deeply).unwrap().join().unwrap();
}

fn nest_deeply() {
    let deep = |open: &str| mistakes(&format!("version: 1\nprojects:\n{}", open.repeat(100_000)));
    for open in ["- ", "? ", "- ? "] {
        assert_eq!(deep(open), ["3:1: indented by more than 40 columns"], "{open}");
    }
    for open in ["[", "{", "{a: ", "[a: ", "[? "] {
        assert_eq!(deep(open).len(), 1, "{open}");
    }
    policy(&format!("version: 1\n{}# a comment\n", " ".repeat(200)));
    // As deep as it gets: blocks to the allowed indentation, flow collections to the parser's own limit.
    let block = |i| format!("{0}a:\n{0}-\n", " ".repeat(i));
    let blocks = (0..MAX_INDENT).map(block).collect::<Vec<_>>().concat();
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("[a: ", "]"), ("{? ", "}")] {
        let flow = format!("{}{}", open.repeat(250), close.repeat(250));
        let found = mistakes(&format!("{blocks}{}{flow}\n", " ".repeat(MAX_INDENT)));
        assert_eq!(
            found[0], "1:1: there is no field `a` here, only `version`, `defaults`, `projects`",
            "{open}"
        );
    }
}

#[test]
fn control_characters_that_the_yaml_parser_stops_at_are_refused() {
    for text in ["version: 1\n\0projects: 7", "version: 1\n# a\rprojects: 7"] {
        assert_eq!(mistakes(text), ["2:1: this line has a control character in it"]);
    }
}

#[test]
fn a_value_in_a_message_is_short_and_printable() {
    let found = mistakes_after_version(&format!(
        "defaults: {{ warm: {{ stale-after: \"\\e{}\" }} }}",
        "x".repeat(999)
    ));
    assert!(found[0].contains("`\\u{1b}xxx"), "{found:?}");
    assert!(found[0].len() < 300);
}

#[test]
fn errors_of_loading_name_the_path() {
    let missing = Path::new("no/such/stoker.yaml");
    assert_eq!(
        Policy::load(missing).unwrap_err().to_string(),
        "the policy no/such/stoker.yaml cannot be read"
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let error = Policy::load(&file).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}:", file.display())), "{error}");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/stoker.yaml");
    assert_eq!(Policy::load(&shipped).unwrap().named_projects().len(), 1);
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = Policy::parse("p", &text);
    }

    #[test]
    fn no_yaml_makes_the_parser_panic(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "version: 1\n", "defaults:", "projects:", "name: ", "repository: ", "warm:", "retention: ", "app",
                "targets: ", "platforms: ", "builds: ", "forks: ", "on: ", "branches: ", "more-sources: ", "!a", "true",
                "github.com/a/{project}", "7d", "0", "~", "\n", "\n  ", "\n    ", "- ", "? ", ": ", "[", "]", "{", "}",
                ", ", "\"", "'", "|", ">", "#", " ", "\t", "*", "&a ", "!t ", "!!str ", "<<", "%", "---\n", "...\n",
                "\r\n", "\u{feff}", "\0", "é", "\u{85}", "\\", "@", "`",
            ]),
            0..40,
        )
    ) {
        let _ = Policy::parse("p", &parts.concat());
    }

    #[test]
    fn more_sources_mean_nothing_to_a_shell(text in "\\PC{0,40}|[a-z.:/@=,;$`'\" -]{0,20}") {
        if let Ok(source) = values::more_source(&text) {
            let reference = source.strip_prefix("type=registry,ref=").unwrap();
            prop_assert!(reference.chars().all(|c| c.is_ascii_alphanumeric() || "._:/@+-".contains(c)));
        }
    }

    #[test]
    fn a_project_is_found_by_its_repository(project in "[a-z0-9]([_-]?[a-z0-9]){1,10}", team in any::<bool>()) {
        let policy = policy(TWO_RULES);
        let project = name(&if team { format!("team-{project}") } else { project });
        if let Some(found) = policy.project(&project) {
            prop_assert!(policy.projects_of(&found.repository).contains(&found));
        } else {
            prop_assert!(!team);
        }
    }
}

#[test]
fn a_mount_is_named_once_and_by_what_a_dockerfile_takes() {
    let targets = |text: &str| mistake_in_defaults(&format!("targets: [{text}]"));
    let mounts = |text: &str| targets(&format!("{{ mounts: [{text}] }}"));
    for id in ["", "a b", "a,uid=0", "$HOME", "a\\\"b", "a=b"] {
        assert!(mounts(&format!("{{ id: \"{id}\" }}")).contains("cache mount"), "{id}");
    }
    assert!(mounts("{ id: cargo }, { id: cargo }").contains("the mount `cargo` is there twice"));
    assert!(mounts("{ limit: 1GB }").contains("the field `id` is missing"));
    assert!(mounts("{ id: cargo, limit: none }").contains("a mount needs a limit"));
    for options in ["uid", "uid=x", "uid=1,target=/", "sharing=private", "uid=1 gid=1"] {
        assert!(
            mounts(&format!("{{ id: a, options: '{options}' }}")).contains("no options of a mount"),
            "{options}"
        );
    }
    let two = "{ name: a, mounts: [{ id: cargo }] }, { name: b, mounts: [{ id: cargo }] }";
    assert!(targets(two).contains("the mount `cargo` is another target's, too"));
    let one = "{ platforms: [linux/amd64, linux/arm64], mounts: [{ id: cargo }] }";
    let policy =
        policy(&format!("version: 1\nprojects: [{{ name: app, repository: a.b/c/d, targets: [{one}] }}]"));
    let app = policy.project(&name("app")).unwrap();
    assert_eq!(app.mounts().count(), 1);
    let scope = &app.mounts().next().unwrap().scope;
    assert!(app.has_scope(scope) && app.scopes().all(|known| known != scope) && app.mount(scope).is_some());
}
