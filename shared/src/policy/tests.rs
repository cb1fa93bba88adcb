//! One test per rule of the document.

use proptest::prelude::*;

use super::*;

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
    let shipped = policy(include_str!("../../../policy/stoker.yaml"));
    let bare = policy("version: 1\nprojects: [{name: app, repository: github.com/example/app}]");
    assert_eq!(shipped.named_projects(), bare.named_projects());
    assert_eq!(names(&shipped.named_projects()), ["app"]);
}

#[test]
fn the_glob_that_the_shipped_policy_explains_works_once_it_is_no_comment() {
    let shipped = include_str!("../../../policy/stoker.yaml");
    let policy = policy(&shipped.replace("\n#   ", "\n  "));
    assert_eq!(policy.project(&name("team-web")).unwrap().warm.stale_after, DAY);
}

#[test]
fn what_a_document_leaves_out_has_the_built_in_value() {
    let app = policy(TWO_RULES).project(&name("app")).unwrap();
    let expected = Project {
        name: name("app"),
        repository: repository("github.com/example/app"),
        default_branch: Branch::new("main").unwrap(),
        cache_repository: CacheRepository::new("stoker/app").unwrap(),
        builds_repository: None,
        promotion: Promotion::Merged,
        line_budget: None,
        warm: Warm { stale_after: DAY * 7 },
        retention: Retention { mode: Mode::Report, lease: DAY, idle_branch: DAY * 30 },
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
    assert_eq!((app.default_branch.as_str(), lib.default_branch.as_str()), ("master", "trunk"));
    assert_eq!(app.cache_repository.as_str(), "caches/app");
    assert_eq!(app.warm.stale_after, SignedDuration::from_hours(36));
    assert_eq!(app.retention, Retention { mode: Mode::Apply, lease: DAY * 2, idle_branch: DAY * 30 });
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
fn an_empty_document_is_told_how_to_start() {
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
            "3:53: defaults.retention: there is no field `budget` here, only `mode`, `lease`, `idle-branch`",
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
    assert!(repository("https://github.com/a/b").contains("write it as host/owner/name"));
    assert!(repository("github.com/a/b.git").contains("write `github.com/a/b.git` without the `.git`"));
    assert!(repository("github.com/a/{name}").contains("has braces that are not `{project}`"));
    let rest = "name: app, repository: a/b/c";
    assert!(rule(&format!("{rest}, default-branch: 'a b'")).concat().contains("branch `a b` is not valid"));
    assert!(rule(&format!("{rest}, cache-repository: Caches")).concat().contains("`Caches` is not valid"));
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
fn a_glob_without_quotes_is_told_to_take_some() {
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
            "2:88: projects[0].cache-repository: a glob's cache repository needs `{project}`, and `shared` has none: its \
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
            "projects:\n  - {{ name: app, repository: github.com/example/app, {fields} }}\n  - {{ name: web, repository: github.com/example/web }}"
        )
    };
    assert_eq!(
        mistakes_after_version(&app("builds-repository: 'stoker/{project}'")),
        [
            "3:73: projects[0].builds-repository: `stoker/app` is already the cache repository of `app`; they must be two"
        ]
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
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/stoker.yaml");
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
