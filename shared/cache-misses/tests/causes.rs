//! Causes from what BuildKit 0.13 wrote: the second commit of a project was built from the first one's cache, then
//! again without looking into a cache, and again on another network.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may panic too")]

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use buildkit_cache::{Cache, Commit, Kind, Mark, classify};
use cache_misses::{
    Cause, Elsewhere, Evidence, Given, Llb, Log, Miss, Past, Relation, Report, Rule, explain,
};
use dockerfile_keys::{Context, Entry, Id, Ignore, Key, Memory, Options, Plan, Tree, TreeError, parse, plan};

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn cache(name: &str) -> Cache {
    let manifest = fixture(&format!("{name}.manifest.json"));
    let Kind::Cache(manifest) = classify(manifest.as_bytes()) else { panic!("{name} is no cache") };
    Cache::parse(&manifest, fixture(&format!("{name}.config.json")).as_bytes()).unwrap()
}

/// `package.json`, and a directory `src` with a file whose content is this.
struct Files(u8);

impl Tree for Files {
    fn entries(&self, directory: &Id) -> Result<Rc<[Entry]>, TreeError> {
        let entry = |name: &str, kind, id| Entry { name: name.into(), kind, id: [id; 32] };
        Ok(match directory[0] {
            0 => [
                entry("package.json", dockerfile_keys::Kind::File, 1),
                entry("src", dockerfile_keys::Kind::Directory, 9 + self.0),
            ]
            .into(),
            _ => [entry("a", dockerfile_keys::Kind::File, self.0)].into(),
        })
    }

    fn read(&self, _: &Id) -> Result<Vec<u8>, TreeError> {
        Ok(Vec::new())
    }
}

fn planned(content: u8) -> Plan {
    planned_of(&fixture("Dockerfile"), content)
}

fn planned_of(dockerfile: &str, content: u8) -> Plan {
    let (ignore, memory) = (Ignore::default(), Memory::default());
    let tree = Files(content);
    let context =
        Context { tree: &tree, root: [0; 32], ignore: &ignore, memory: &memory, git_directory: None };
    plan(&parse(dockerfile).unwrap(), &Options::default(), context, Key::from([1; 32])).unwrap()
}

struct Build<'a> {
    log: &'a str,
    export: Option<&'a str>,
    given: &'a [&'a str],
    before: &'a [&'a str],
    provenance: Option<&'a str>,
}

/// The first cache was made at 07:35:36.
const TIMES: [&str; 3] = ["07:36:20", "07:36:10", "07:35:00"];

fn reported(build: &Build<'_>, commits: &[u8]) -> Report {
    told_at(build, commits, TIMES)
}

fn told_at(build: &Build<'_>, commits: &[u8], times: [&str; 3]) -> Report {
    let log = Log::read(&fixture(build.log));
    let tags = BTreeMap::from([("first", "one"), ("second", "two")]);
    let given: Vec<Given> = build
        .given
        .iter()
        .map(|name| Given {
            name: format!("127.0.0.1:5977/t:{}", tags[name]),
            cache: Some(cache(name)),
            problem: None,
        })
        .collect();
    let elsewhere: Vec<Elsewhere> = build
        .before
        .iter()
        .map(|name| Elsewhere {
            name: (*name).to_owned(),
            relation: Relation::Before,
            note: String::new(),
            cache: cache(name),
        })
        .collect();
    let export = build.export.map(cache);
    let llb = build.provenance.map(|name| Llb::read(&fixture(name)).unwrap());
    let plans: Vec<Plan> = commits.iter().map(|content| planned(*content)).collect();
    let [head, earlier @ ..] = plans.as_slice() else { panic!("no commit") };
    let past: Vec<Past<'_>> = earlier
        .iter()
        .zip(1..)
        .map(|(plan, number)| Past { commit: format!("earlier-{number}"), plan })
        .collect();
    let names = ["head", "earlier-1", "earlier-2"].iter().zip(times);
    let committed =
        names.map(|(name, time)| ((*name).to_owned(), format!("2026-11-30T{time}Z").parse().unwrap()));
    let committed = committed.collect();
    explain(&Evidence {
        build: log.builds.last().unwrap(),
        commit: "head",
        plan: head,
        platform: "linux/amd64",
        arguments: &BTreeMap::new(),
        export: export.as_ref(),
        given: &given,
        elsewhere: &elsewhere,
        past: &past,
        committed: &committed,
        mounts: &[],
        llb: llb.as_ref(),
        files: &|before, after, _| vec![format!("{before}..{after}")],
    })
}

/// Each step that ran with its cause.
fn causes(report: &Report) -> Vec<(&str, &Cause)> {
    report.misses.iter().map(|miss| (miss.step.split(']').next().unwrap(), &miss.cause)).collect()
}

fn follows(step: &str, report: &Report) -> Cause {
    let step = report.misses.iter().find(|miss| miss.step.starts_with(step)).unwrap();
    Cause::Follows { steps: vec![step.step.clone()], also: None }
}

const SECOND: Build<'_> =
    Build { log: "rawjson.log", export: Some("second"), given: &["first"], before: &[], provenance: None };

#[test]
fn the_first_miss_is_told_apart_from_what_follows() {
    // A commit that changed nothing lies between.
    let report = reported(&SECOND, &[2, 2, 1]);
    let content = Cause::Content {
        commit: Some("earlier-1".to_owned()),
        files: vec!["earlier-2..earlier-1".to_owned()],
        count: 1,
    };
    let expected = [
        ("[build 1/2", &content),
        ("[build 2/2", &follows("[build 1/2", &report)),
        ("[stage-2 2/3", &follows("[build 2/2", &report)),
        ("[stage-2 3/3", &follows("[stage-2 2/3", &report)),
    ];
    assert_eq!(causes(&report), expected);
    let first: Vec<bool> = report.misses.iter().map(|miss| miss.is_first).collect();
    assert_eq!((first, report.reused), (vec![true, false, false, false], 3));
    // The commit between may have been built: a cache could have had all of it.
    assert!(report.unavoidable_seconds <= 0.0);
    let report = reported(&SECOND, &[2, 1]);
    assert!(report.lost_seconds <= 0.0);
    assert!(report.misses.iter().all(|miss| miss.is_unavoidable == Some(true)));
}

#[test]
fn without_a_commit_that_changed_anything_it_is_what_no_commit_holds() {
    let untracked = told_at(&SECOND, &[2, 2], ["07:36:20", "07:35:00", "07:35:00"]);
    assert_eq!(untracked.misses[0].cause, Cause::Untracked);
    let nobody_knows = Cause::Content { commit: None, files: Vec::new(), count: 0 };
    // The cache may be of a commit before those that were looked at, or of one that came after the change.
    assert_eq!(reported(&SECOND, &[2, 2]).misses[0].cause, nobody_knows);
    let late = told_at(&SECOND, &[2, 1], ["07:35:30", "07:35:00", "07:35:00"]);
    assert_eq!(late.misses[0].cause, nobody_knows);
    let report = reported(&SECOND, &[2]);
    assert_eq!((&report.misses[0].cause, report.misses[0].is_unavoidable), (&nobody_knows, None));
}

#[test]
fn what_an_earlier_cache_had_was_dropped() {
    let build = Build { before: &["second"], ..SECOND };
    // What the build itself made is newer than what it looked for.
    assert!(matches!(reported(&build, &[2, 1]).misses[0].cause, Cause::Content { .. }));
    let build = Build {
        log: "no-cache.log",
        export: Some("no-cache"),
        given: &[],
        before: &["second"],
        provenance: None,
    };
    let report = reported(&build, &[2, 1]);
    assert!(
        matches!(&report.misses[0].cause, Cause::Dropped { cache, .. } if cache == "second"),
        "{report:?}"
    );
}

#[test]
fn what_a_promotion_dropped_is_reported_with_its_rule() {
    let log = Log::read(&fixture("no-cache.log"));
    let export = cache("no-cache");
    let (head, before) = (planned(2), planned(1));
    let commit = Commit::new("4f".repeat(20)).unwrap();
    let rule = |relation, cache: Cache| {
        let elsewhere = [Elsewhere { name: "main".to_owned(), relation, note: String::new(), cache }];
        let report = explain(&Evidence {
            build: log.builds.last().unwrap(),
            commit: "head",
            plan: &head,
            platform: "linux/amd64",
            arguments: &BTreeMap::new(),
            export: Some(&export),
            given: &[],
            elsewhere: &elsewhere,
            past: &[Past { commit: "before".to_owned(), plan: &before }],
            committed: &BTreeMap::new(),
            mounts: &[],
            llb: None,
            files: &|_, _, _| Vec::new(),
        });
        match &report.misses[0].cause {
            Cause::Dropped { rule, .. } => rule.clone(),
            cause => panic!("{cause:?}"),
        }
    };
    let time: jiff::Timestamp = "2026-11-30T07:36:30Z".parse().unwrap();
    let marked = cache("second").on_probation(&Mark::new(commit.clone(), time));
    assert_eq!(rule(Relation::Before, marked.clone()), None);
    assert_eq!(rule(Relation::Refreshed, marked.clone()), Some(Rule::Refreshed));
    assert_eq!(rule(Relation::Promoted, marked), Some(Rule::Probation { commit: commit.to_string() }));
    let used = cache("second").used_at(time);
    assert_eq!(rule(Relation::Promoted, used), Some(Rule::Limits { last_used: Some(time) }));
}

#[test]
fn an_old_digest_is_named_only_where_a_given_cache_stands_on_it() {
    let image = |hex: &str| format!("sha256:{}", hex.repeat(32));
    let base = "sha256:11b5623d458e729cea7101d66d884c425f89b8750b63bf239fc81ab653b37746".to_owned();
    let given = [Given { name: "given".to_owned(), cache: Some(cache("first")), problem: None }];
    let before = |now: &str, images: &[(&str, &str)]| {
        let cause = Cause::Base { image: format!("localhost/base:1@{now}"), before: None };
        let miss = Miss {
            step: "[1/2] RUN a".to_owned(),
            seconds: None,
            is_first: true,
            cause,
            empty_mounts: Vec::new(),
            is_exact: false,
            is_unavoidable: None,
        };
        let mut report = Report { misses: vec![miss], ..Report::default() };
        assert!(report.lacks_old_base());
        let images: Vec<_> =
            images.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect();
        report.name_old_bases(&images, &given, "linux/amd64");
        match &report.misses[0].cause {
            Cause::Base { before, .. } => before.clone(),
            cause => panic!("{cause:?}"),
        }
    };
    let (now, third) = (image("22"), image("33"));
    let name = "localhost/base:1";
    assert_eq!(before(&now, &[(name, &third), (name, &base)]), Some(base.clone()));
    assert_eq!(before(&now, &[("localhost/base:2", &base), (name, &third)]), None);
    assert_eq!(before(&base, &[(name, &base)]), None);
    let log = Log::read(&fixture("no-cache.log"));
    assert_eq!(log.builds[0].images(), [(name, base.as_str())]);
}

#[test]
fn what_was_there_was_not_looked_for() {
    let build = Build { log: "no-cache.log", export: Some("no-cache"), given: &["second"], ..SECOND };
    let report = reported(&build, &[2, 1]);
    assert_eq!(report.misses.len(), 6);
    let is_it = |cause: &Cause| matches!(cause, Cause::NotUsed { all: true, .. });
    assert!(report.misses.iter().all(|miss| is_it(&miss.cause)), "{report:?}");
    // A cache had it, whether or not a commit before had: nothing of that was unavoidable.
    assert!(report.unavoidable_seconds <= 0.0);
}

#[test]
fn another_network_is_proved_by_provenance_alone() {
    let build = Build { log: "host-network.log", export: Some("host-network"), given: &["second"], ..SECOND };
    let report = reported(&build, &[2, 1]);
    for (step, cause) in causes(&report) {
        let is_first = ["[deps 4/4", "[stage-2 3/3"].contains(&step);
        let is_unproved = matches!(cause, Cause::Unknown { .. });
        assert_eq!(
            (is_unproved, matches!(cause, Cause::Follows { .. })),
            (is_first, !is_first),
            "{step} {cause:?}"
        );
    }
    let build = Build { provenance: Some("host-network.provenance.json"), ..build };
    let report = reported(&build, &[2, 1]);
    let network = Cause::Network { before: "default".to_owned(), now: "host".to_owned() };
    let proved: Vec<&str> =
        causes(&report).iter().filter(|(_, cause)| **cause == network).map(|(step, _)| *step).collect();
    assert_eq!(proved, ["[deps 4/4", "[stage-2 3/3"]);
    assert!(report.misses.iter().filter(|miss| miss.is_first).all(|miss| miss.is_exact));
}

#[test]
fn without_the_export_nothing_is_guessed() {
    let build = Build { export: None, ..SECOND };
    let report = reported(&build, &[2, 1]);
    assert!(report.misses.iter().all(|miss| matches!(miss.cause, Cause::Unknown { .. })), "{report:?}");
    let build = Build { given: &[], ..build };
    let report = reported(&build, &[2, 1]);
    assert!(report.misses.iter().all(|miss| matches!(miss.cause, Cause::NotGiven { .. })), "{report:?}");
}

/// The folders of what engines wrote, as `STOKER_FIXTURES` has them write it.
fn engines() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("docker-"));
    names.sort();
    names
}

#[test]
fn every_engine_and_either_form_of_a_log_tell_the_same_causes() {
    let engines = engines();
    assert!(!engines.is_empty());
    for (engine, form) in engines.iter().flat_map(|engine| [(engine, "plain"), (engine, "rawjson")]) {
        let name = format!("{engine}/{form}");
        let dockerfile = fixture(&format!("{engine}/Dockerfile"));
        let (head, before) = (planned_of(&dockerfile, 2), planned_of(&dockerfile, 1));
        let log = Log::read(&fixture(&format!("{name}.log")));
        let build = log.builds.last().unwrap();
        let from = build.vertices.iter().find_map(|vertex| vertex.import()).unwrap();
        let given =
            [Given { name: from.to_owned(), cache: Some(cache(&format!("{engine}/first"))), problem: None }];
        let llb = Llb::read(&fixture(&format!("{name}.provenance.json"))).unwrap();
        let times = [("head", "2100-01-01T00:00:00Z"), ("before", "2000-01-01T00:00:00Z")];
        let report = explain(&Evidence {
            build,
            commit: "head",
            plan: &head,
            platform: "linux/amd64",
            arguments: &BTreeMap::new(),
            export: Some(&cache(&name)),
            given: &given,
            elsewhere: &[],
            past: &[Past { commit: "before".to_owned(), plan: &before }],
            committed: &times.map(|(name, time)| (name.to_owned(), time.parse().unwrap())).into(),
            mounts: &[],
            llb: Some(&llb),
            files: &|_, _, _| vec!["src/a".to_owned()],
        });
        let content =
            Cause::Content { commit: Some("head".to_owned()), files: vec!["src/a".to_owned()], count: 1 };
        let expected = [
            ("[build 1/2", &content),
            ("[build 2/2", &follows("[build 1/2", &report)),
            ("[stage-2 2/3", &follows("[build 2/2", &report)),
            ("[stage-2 3/3", &follows("[stage-2 2/3", &report)),
        ];
        assert_eq!(causes(&report), expected, "{name}");
        let exact: Vec<bool> = report.misses.iter().map(|miss| miss.is_exact).collect();
        assert_eq!((exact, report.reused), (vec![false, true, false, true], 3), "{name}");
        assert_eq!(build.images().len(), 1, "{name}");
        // The first build ran all, and says so in a cold log.
        let cold = Log::read(&fixture(&format!("{engine}/first.log"))).steps();
        assert_eq!((cold.ran.len(), cold.reused), (7, 0), "{engine}");
    }
}
