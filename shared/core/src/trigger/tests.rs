//! What the trigger keeps out: key by key, and held against what CodeBuild's own filters would have kept out.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::names::{Branch, ProjectName, Repository, Revision};
use crate::onboard::filters;
use crate::policy::Policy;

const COMMIT: &str = "1111111111111111111111111111111111111111";

/// The project of a rule with these fields in `builds`; `None` where the policy is refused.
fn parsed(repository: &str, builds: &str) -> Option<Project> {
    let rule = format!("name: app, repository: {repository}, builds: {{ {builds} }}");
    let policy = Policy::parse("policy", &format!("version: 1\nprojects: [{{ {rule} }}]")).ok()?;
    policy.project(&ProjectName::new("app").unwrap())
}

fn project(builds: &str) -> Project {
    parsed("gitlab.com/example/app", builds).unwrap_or_else(|| panic!("refused: {builds}"))
}

const FORKS: &str = "forks: { build: read-only, project: app-forks }";
const APPROVED: &str = "forks: { build: after-approval, project: app-forks, approvers: ['49699333'] }";

fn push() -> BranchPushed {
    BranchPushed {
        repository: Repository::new("gitlab.com/example/app").unwrap(),
        branch: Branch::new("topic").unwrap(),
        commit: Commit::new(COMMIT).unwrap(),
        commits: Vec::new(),
        default_branch: Branch::new("main").unwrap(),
        to_default_branch: false,
        before: None,
        paths: Some(vec!["src/a".to_owned(), "docs/b".to_owned()]),
        skips_ci: false,
        actor: Some("1".to_owned()),
        message: Some("Fix it\n\nFor good".to_owned()),
        pushed_at: None,
        reference: None,
    }
}

#[test]
fn a_tag_is_built_where_the_policy_says_so_and_by_its_name() {
    let tag = |name: &str| {
        Event::TagPushed(TagPushed {
            repository: Repository::new("gitlab.com/example/app").unwrap(),
            tag: Branch::new(name).unwrap(),
            commit: Commit::new(COMMIT).unwrap(),
            actor: Some("1".to_owned()),
            message: Some("Release 1.4.0 [skip ci]".to_owned()),
            pushed_at: None,
        })
    };
    let rule =
        |builds: &str, name: &str| trigger(&project(builds), &tag(name)).map_err(|skipped| skipped.rule);
    assert_eq!(rule("", "v1.4.0"), Err("builds.on"));
    assert_eq!(rule("start: false", "v1.4.0"), Err("builds.start"));
    let globs = "on: [push, tag], tags: ['v*', '!v0.*']";
    for (name, built) in [("v1.4.0", true), ("v0.9", false), ("nightly", false), ("release/v1", false)] {
        let expected = if built { Ok(()) } else { Err("builds.tags") };
        assert_eq!(rule(globs, name).map(drop), expected, "{name}");
    }
    assert_eq!(rule("on: [tag], actors: ['!1']", "v1"), Err("builds.actors"));
    assert_eq!(rule("on: [tag], messages: ['!*Release*']", "v1"), Err("builds.messages"));
    // Neither a branch's globs nor files are asked, nor what a release's commit says to other CIs.
    let request = rule("on: [push, tag], branches: [x], paths: ['src/*']", "main").unwrap();
    assert_eq!((request.wanted.line.to_string().as_str(), request.trust), ("tag/main", Trust::Branch));
    assert_eq!(request.wanted.merged, []);
    assert_eq!(trigger(&project("on: [tag]"), &Event::BranchPushed(push())).unwrap_err().rule, "builds.on");
}

fn pull(from_fork: bool) -> PullRequest {
    PullRequest {
        repository: Repository::new("gitlab.com/example/app").unwrap(),
        number: 7,
        branch: Branch::new("topic").unwrap(),
        commit: Revision::new(COMMIT).unwrap(),
        base: Branch::new("release/1").unwrap(),
        default_branch: Branch::new("main").unwrap(),
        from_fork,
        merge_commit: None,
        change: Change::Opened,
        draft: false,
        labels: Vec::new(),
        actor: Some("1".to_owned()),
        message: Some("Fix it\n\nFor good".to_owned()),
        skips_ci: false,
        reference: None,
        updated_at: None,
    }
}

fn approval() -> Approval {
    let pull_request = pull(true);
    Approval { commit: pull_request.commit.clone(), approver: "49699333".to_owned(), pull_request }
}

/// The rule that keeps an event out, or `built`.
fn rule(project: &Project, event: &Event) -> &'static str {
    trigger(project, event).map_or_else(|skipped| skipped.rule, |_| "built")
}

/// What the trigger says of a push, of a pull request, of one from a fork, and of an approval, under the same
/// keys.
fn rules(keys: &str) -> [&'static str; 4] {
    let forks = project(&format!("on: [push, pull-request], {keys}, {FORKS}"));
    let approved = project(&format!("on: [push, pull-request], {keys}, {APPROVED}"));
    [
        rule(&forks, &Event::BranchPushed(push())),
        rule(&forks, &Event::PullRequestUpdated(pull(false))),
        rule(&forks, &Event::PullRequestUpdated(pull(true))),
        rule(&approved, &Event::PullRequestApproved(approval())),
    ]
}

#[test]
fn every_way_in_asks_the_same_keys() {
    let all = |rule| [rule; 4];
    assert_eq!(rules("drafts: true"), all("built"));
    assert_eq!(rules("branches: [topic]"), all("built"));
    assert_eq!(rules("branches: ['*', '!topic']"), all("builds.branches"));
    assert_eq!(rules("actors: ['1']"), all("built"));
    assert_eq!(rules("actors: ['*', '!2']"), all("built"));
    assert_eq!(rules("actors: ['11']"), all("builds.actors"));
    assert_eq!(rules("actors: ['*', '!1']"), all("builds.actors"));
    assert_eq!(rules("messages: ['Fix*']"), all("built"));
    assert_eq!(rules("messages: ['fix*']"), all("builds.messages"));
    assert_eq!(rules("messages: ['Fix it']"), all("builds.messages"));
    assert_eq!(rules("messages: ['!*good*']"), all("builds.messages"));
    // A push goes to no other branch.
    assert_eq!(rules("bases: ['release/*']"), all("built"));
    assert_eq!(rules("bases: [main]"), ["built", "builds.bases", "builds.bases", "builds.bases"]);
    // Of a pull request no file is known, and a push of the same branch tells them.
    assert_eq!(rules("paths: ['src/*']"), ["built", "builds.paths", "built", "built"]);
    assert_eq!(rules("paths: ['web/*']"), ["builds.paths", "builds.paths", "built", "built"]);
}

#[test]
fn what_is_not_known_matches_nothing() {
    for (keys, expected) in [
        ("actors: ['*', '!2']", "builds.actors"),
        ("messages: ['!*wip*']", "builds.messages"),
        ("skip-paths: [buildspec.yml]", "builds.skip-paths"),
        ("paths: ['src/*'], paths-unknown: skip", "builds.paths-unknown"),
        ("paths: ['src/*']", "built"),
        ("drafts: true", "built"),
    ] {
        let untold = BranchPushed { actor: None, message: None, paths: None, ..push() };
        assert_eq!(rule(&project(keys), &Event::BranchPushed(untold)), expected, "{keys}");
    }
    for (keys, expected) in [("actors: ['1']", "builds.actors"), ("messages: ['*i*']", "builds.messages")] {
        for from_fork in [false, true] {
            let untold = PullRequest { actor: None, message: None, ..pull(from_fork) };
            let project = project(&format!("{keys}, {FORKS}"));
            assert_eq!(rule(&project, &Event::PullRequestUpdated(untold)), expected, "{keys}");
        }
    }
}

#[test]
fn one_file_that_guards_keeps_the_whole_push_out() {
    let skip = |globs: &str| {
        let project = project(&format!("paths: ['src/*'], skip-paths: [{globs}]"));
        rule(&project, &Event::BranchPushed(push()))
    };
    assert_eq!(skip("buildspec.yml"), "built");
    assert_eq!(skip("'docs/*'"), "builds.skip-paths");
    assert_eq!(skip("'!src/*'"), "builds.skip-paths");
    assert_eq!(skip("'*', '!src/*', '!docs/*'"), "built");
    // An exclusion from `paths` is weaker: another file may want the build.
    assert_eq!(rule(&project("paths: ['*', '!docs/*']"), &Event::BranchPushed(push())), "built");
}

#[test]
fn main_is_asked_as_all_branches_are_whoever_builds_it() {
    let main = BranchPushed { branch: Branch::new("main").unwrap(), to_default_branch: true, ..push() };
    for keys in ["actors: ['2']", "messages: ['x*']", "skip-paths: ['src/a']", "paths: ['web/*']"] {
        let project = project(keys);
        assert!(wanted_by_push(&project, &main).is_err(), "{keys}");
        assert!(trigger(&project, &Event::BranchPushed(main.clone())).is_err(), "{keys}");
    }
}

#[test]
fn what_of_a_pull_request_is_built_can_be_told_apart() {
    let of = |words: &str, change: Change, from_fork: bool| {
        let project = project(&format!("on: [{words}], {FORKS}"));
        rule(&project, &Event::PullRequestUpdated(PullRequest { change, ..pull(from_fork) }))
    };
    for from_fork in [false, true] {
        for change in Change::BUILT {
            assert_eq!(of("pull-request", change, from_fork), "built", "{change:?}");
        }
        for (word, own) in [
            ("pull-request-created", Change::Opened),
            ("pull-request-updated", Change::Pushed),
            ("pull-request-reopened", Change::Reopened),
        ] {
            for change in Change::BUILT {
                let expected = if change == own { "built" } else { "builds.on" };
                assert_eq!(of(word, change, from_fork), expected, "{word} {change:?}");
            }
        }
    }
    // A fork's pushes are no pushes here.
    assert_eq!(of("push, pull-request", Change::Pushed, true), "built");
    assert_eq!(of("push, pull-request", Change::Pushed, false), "builds.on");
}

#[test]
fn marks_are_heeded_where_they_are_reported_and_not_by_who_approves() {
    let marked = |from_fork| PullRequest { skips_ci: true, ..pull(from_fork) };
    for from_fork in [false, true] {
        let event = Event::PullRequestUpdated(marked(from_fork));
        assert_eq!(rule(&project(FORKS), &event), "builds.skip-marks");
        assert_eq!(rule(&project(&format!("skip-marks: false, {FORKS}")), &event), "built");
    }
    let approved = Approval { pull_request: marked(true), ..approval() };
    assert_eq!(rule(&project(APPROVED), &Event::PullRequestApproved(approved)), "built");
}

/// A piece of a regular expression.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Piece {
    Char(char),
    /// `.`, which is no line's end.
    Any,
    /// `.*`
    Many,
}

/// A regular expression as CodeBuild's filters have them: it matches wherever it is found, unless it is
/// anchored.
#[derive(Debug, Clone)]
struct Regex {
    from_start: bool,
    pieces: Vec<Piece>,
    to_end: bool,
}

impl Regex {
    fn is_in(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let starts = if self.from_start { 0..=0 } else { 0..=text.len() };
        starts.into_iter().any(|start| self.is_here(&self.pieces, &text[start..]))
    }

    fn is_here(&self, pieces: &[Piece], text: &[char]) -> bool {
        let Some((piece, rest)) = pieces.split_first() else { return !self.to_end || text.is_empty() };
        match (piece, text.split_first()) {
            (Piece::Many, Some((c, after))) if *c != '\n' => {
                self.is_here(rest, text) || self.is_here(pieces, after)
            }
            (Piece::Many, _) => self.is_here(rest, text),
            (Piece::Char(own), Some((c, after))) => own == c && self.is_here(rest, after),
            (Piece::Any, Some((c, after))) => *c != '\n' && self.is_here(rest, after),
            (_, None) => false,
        }
    }

    /// As CodeBuild has it, over texts that begin with `before`.
    fn pattern(&self, before: &str) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Char(c) => c.to_string(),
            Piece::Any => ".".to_owned(),
            Piece::Many => ".*".to_owned(),
        };
        let end = |anchored: bool, anchor| if anchored { anchor } else { "" };
        let pieces: String = self.pieces.iter().map(piece).collect();
        format!("{}{before}{pieces}{}", end(self.from_start, "^"), end(self.to_end, "$"))
    }
}

/// The filters of one type: what has to match, and what must not, which is `excludeMatchedPattern`.
#[derive(Debug, Clone, Default)]
struct Filter {
    include: Option<Regex>,
    exclude: Option<Regex>,
}

impl Filter {
    fn lets(&self, text: &str) -> bool {
        self.lets_files(&[text])
    }

    /// One file has to match, and none may.
    fn lets_files(&self, files: &[&str]) -> bool {
        let any = |regex: &Regex| files.iter().any(|file| regex.is_in(file));
        self.include.as_ref().is_none_or(any) && !self.exclude.as_ref().is_some_and(any)
    }

    fn says_nothing(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }
}

/// A filter group of a CodeBuild webhook.
#[derive(Debug, Clone)]
struct Group {
    /// `PUSH`, `PULL_REQUEST_CREATED`, `PULL_REQUEST_UPDATED` and `PULL_REQUEST_REOPENED`.
    events: [bool; 4],
    actor: Filter,
    /// What follows `refs/heads/`.
    head: Filter,
    base: Filter,
    files: Filter,
    message: Filter,
}

/// What has happened, as CodeBuild finds out by asking the forge.
#[derive(Debug, Clone)]
struct Happened {
    /// The index in [`Group::events`]; `None` for what is no event of CodeBuild's.
    event: Option<usize>,
    actor: String,
    head: String,
    base: Option<String>,
    files: Vec<String>,
    message: String,
}

impl Group {
    fn lets(&self, happened: &Happened) -> bool {
        let files: Vec<&str> = happened.files.iter().map(String::as_str).collect();
        happened.event.is_some_and(|event| self.events[event])
            && self.actor.lets(&happened.actor)
            && self.head.lets(&happened.head)
            && (self.base.says_nothing() || happened.base.as_ref().is_some_and(|base| self.base.lets(base)))
            && self.files.lets_files(&files)
            && self.message.lets(&happened.message)
    }

    /// `builds` of a policy that is to keep out all that this keeps out, by the table of docs/threat-model.md.
    fn builds(&self, forks: &str) -> String {
        let words = ["PUSH", "PULL_REQUEST_CREATED", "PULL_REQUEST_UPDATED", "PULL_REQUEST_REOPENED"];
        let events: Vec<&str> =
            words.iter().zip(self.events).filter(|(_, on)| *on).map(|(word, _)| *word).collect();
        let mut group =
            vec![filters::Filter { kind: "EVENT".to_owned(), pattern: events.join(", "), excludes: false }];
        let of_kinds = [
            ("ACTOR_ACCOUNT_ID", &self.actor),
            ("HEAD_REF", &self.head),
            ("BASE_REF", &self.base),
            ("FILE_PATH", &self.files),
            ("COMMIT_MESSAGE", &self.message),
        ];
        for (kind, filter) in of_kinds {
            for (regex, excludes) in [(&filter.include, false), (&filter.exclude, true)] {
                let Some(regex) = regex else { continue };
                let pattern = regex.pattern(if kind.ends_with("_REF") { "refs/heads/" } else { "" });
                group.push(filters::Filter { kind: kind.to_owned(), pattern, excludes });
            }
        }
        let translation = filters::translate(&[group], "main");
        let said = translation.builds.iter().map(|(key, value)| format!("{key}: {value}"));
        said.chain([forks.to_owned()]).collect::<Vec<_>>().join(", ")
    }

    /// The project of the policy that lets the most in. A policy that is refused starts nothing.
    fn project(&self) -> Option<Project> {
        let of = |forks: &&str| parsed("gitlab.com/example/app", &self.builds(forks));
        [FORKS, APPROVED, "forks: { build: none }"].iter().find_map(of)
    }

    fn approving(&self) -> Option<Project> {
        parsed("gitlab.com/example/app", &self.builds(APPROVED))
    }
}

const ACTORS: [&str; 4] = ["1", "12", "21", "3"];

fn regex(chars: &'static [char]) -> impl Strategy<Value = Regex> {
    let piece = prop_oneof![
        4 => prop::sample::select(chars).prop_map(Piece::Char),
        1 => Just(Piece::Any),
        1 => Just(Piece::Many),
    ];
    (any::<bool>(), prop::collection::vec(piece, 1..4), any::<bool>())
        .prop_map(|(from_start, pieces, to_end)| Regex { from_start, pieces, to_end })
}

/// Often no filter of the type, as several of them let little in.
fn filter(chars: &'static [char]) -> impl Strategy<Value = Filter> {
    let one = || prop::option::weighted(0.2, regex(chars));
    (one(), one()).prop_map(|(include, exclude)| Filter { include, exclude })
}

/// References are told with `refs/heads/`, and their filters begin with it, too.
fn reference() -> impl Strategy<Value = Filter> {
    let anchored = |regex: Regex| Regex { from_start: true, ..regex };
    filter(&['a', 'b']).prop_map(move |filter| Filter {
        include: filter.include.map(anchored),
        exclude: filter.exclude.map(anchored),
    })
}

fn group() -> impl Strategy<Value = Group> {
    let text: &[char] = &['a', 'b'];
    let events = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (events, filter(&['1', '2']), reference(), reference(), filter(text), filter(text)).prop_map(
        |((push, created, updated, reopened), actor, head, base, files, message)| Group {
            // CodeBuild has `BASE_REF` in groups of pull requests only.
            events: [push && base.says_nothing(), created, updated, reopened],
            actor,
            head,
            base,
            files,
            message,
        },
    )
}

fn happened() -> impl Strategy<Value = Happened> {
    let branch = || prop_oneof![4 => "[ab]{1,3}", 1 => Just("main".to_owned())];
    let files = prop::collection::vec("[ab]{1,3}", 1..3);
    (prop::sample::select(&ACTORS[..]), branch(), branch(), files, "[ab\n]{0,3}[ab]").prop_map(
        |(actor, head, base, files, message)| Happened {
            event: None,
            actor: actor.to_owned(),
            head,
            base: Some(base),
            files,
            message,
        },
    )
}

/// What the forge tells of it: the actor, the files and the message.
type Reported = (bool, bool, bool);

fn told_push(happened: &Happened, (actor, files, message): Reported) -> Event {
    Event::BranchPushed(BranchPushed {
        branch: Branch::new(happened.head.as_str()).unwrap(),
        to_default_branch: happened.head == "main",
        actor: actor.then(|| happened.actor.clone()),
        paths: files.then(|| happened.files.clone()),
        message: message.then(|| happened.message.clone()),
        ..push()
    })
}

fn told_pull(
    happened: &Happened,
    change: Change,
    from_fork: bool,
    (actor, _, message): Reported,
) -> PullRequest {
    PullRequest {
        branch: Branch::new(happened.head.as_str()).unwrap(),
        base: Branch::new(happened.base.as_deref().unwrap()).unwrap(),
        actor: actor.then(|| happened.actor.clone()),
        message: message.then(|| happened.message.clone()),
        change,
        ..pull(from_fork)
    }
}

/// What CodeBuild makes of a change of a pull request.
fn event_of(change: Change) -> Option<usize> {
    match change {
        Change::Opened => Some(1),
        Change::Pushed => Some(2),
        Change::Reopened => Some(3),
        _ => None,
    }
}

#[test]
fn what_codebuilds_filters_keep_out_the_trigger_keeps_out() {
    let (pushes, pulls, forks, approvals) = (Cell::new(0), Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |cell: &Cell<u32>| cell.set(cell.get() + 1);
    let reported = (prop::bool::weighted(0.8), prop::bool::weighted(0.8), prop::bool::weighted(0.8));
    let mut runner = TestRunner::new(Config { cases: 1500, failure_persistence: None, ..Config::default() });
    let given = (group(), happened(), reported, prop::sample::select(&Change::BUILT[..]));
    let result = runner.run(&given, |(group, happened, reported, change)| {
        if let Some(project) = group.project() {
            if trigger(&project, &told_push(&happened, reported)).is_ok() {
                count(&pushes);
                let push = Happened { event: Some(0), base: None, ..happened.clone() };
                prop_assert!(group.lets(&push), "push: {}", group.builds(FORKS));
            }
            for from_fork in [false, true] {
                let event = Event::PullRequestUpdated(told_pull(&happened, change, from_fork, reported));
                if trigger(&project, &event).is_ok() {
                    count(if from_fork { &forks } else { &pulls });
                    let pull = Happened { event: event_of(change), ..happened.clone() };
                    prop_assert!(group.lets(&pull), "pull request: {}", group.builds(FORKS));
                }
            }
        }
        if let Some(project) = group.approving() {
            let pull_request = told_pull(&happened, Change::Opened, true, reported);
            if trigger(&project, &Event::PullRequestApproved(Approval { pull_request, ..approval() })).is_ok()
            {
                count(&approvals);
                // Whether the head came with the pull request or later is not known: neither may be kept out.
                for event in [1, 2] {
                    let pull = Happened { event: Some(event), ..happened.clone() };
                    prop_assert!(group.lets(&pull), "approval: {}", group.builds(APPROVED));
                }
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    // A trigger that lets nothing in would keep all of it out, too.
    for (what, built) in [("pushes", pushes), ("pulls", pulls), ("forks", forks), ("approvals", approvals)] {
        assert!(built.get() >= 20, "only {} of the {what} were built", built.get());
    }
}

#[test]
fn the_model_knows_what_is_found_in_a_text() {
    use Piece::{Any, Char, Many};
    let regex = |from_start, pieces: &[Piece], to_end| Regex { from_start, pieces: pieces.to_vec(), to_end };
    for (regex, pattern, text, found) in [
        (regex(false, &[Char('a')], false), "a", "bab", true),
        (regex(true, &[Char('a')], false), "^a", "bab", false),
        (regex(false, &[Char('a')], true), "a$", "bab", false),
        (regex(true, &[Char('b'), Many, Char('b')], true), "^b.*b$", "bab", true),
        (regex(true, &[Char('b'), Any, Char('b')], true), "^b.b$", "bab", true),
        (regex(true, &[Char('b'), Any], true), "^b.$", "bab", false),
        (regex(true, &[Char('b'), Many, Char('b')], true), "^b.*b$", "b\nb", false),
        (regex(false, &[Any], false), ".", "", false),
    ] {
        assert_eq!(regex.pattern(""), pattern);
        assert_eq!(regex.is_in(text), found, "{regex:?} in {text:?}");
    }
}
