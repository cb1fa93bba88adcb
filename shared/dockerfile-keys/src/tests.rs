//! Which steps run again: each instruction and flag by what it says in `BuildKit`'s reference and code.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use crate::testing::Files;
use crate::{Context, Ignore, Key, Memory, Options, Plan, cache_mounts, find, parse, plan, solve};

/// A builder that keeps all that it made.
#[derive(Default)]
struct Builder {
    options: Options,
    memory: Memory,
    has: RefCell<HashSet<Key>>,
    builds: RefCell<u8>,
    git: bool,
}

impl Builder {
    fn with(arguments: &[(&str, &str)]) -> Self {
        let mut builder = Self::default();
        for (name, value) in arguments {
            builder.options.arguments.insert((*name).to_owned(), (*value).to_owned());
        }
        builder
    }

    fn plan(&self, dockerfile: &str, files: &Files) -> Plan {
        *self.builds.borrow_mut() += 1;
        let build = Key::from([*self.builds.borrow(); 32]);
        let ignore = match find(files, &files.root(), ".dockerignore").unwrap() {
            Some(entry) => String::from_utf8(crate::Tree::read(files, &entry.id).unwrap()).unwrap(),
            None => String::new(),
        };
        let ignore = Ignore::parse(&ignore).unwrap();
        let git_directory = self.git.then_some(build);
        let context =
            Context { tree: files, root: files.root(), ignore: &ignore, memory: &self.memory, git_directory };
        plan(&parse(dockerfile).unwrap(), &self.options, context, build).unwrap()
    }

    /// Builds, and says which steps ran.
    fn build(&self, dockerfile: &str, files: &Files) -> Vec<String> {
        let plan = self.plan(dockerfile, files);
        let outcome = solve(&plan, |key| self.has.borrow().contains(key));
        self.has.borrow_mut().extend(plan.nodes.iter().map(|node| node.key));
        let step = |number: &usize| plan.nodes[*number].step.as_ref().unwrap().text.clone();
        outcome.ran.iter().map(step).collect()
    }
}

/// What runs when the second is built after the first.
fn again(first: (&str, &Files), second: (&str, &Files)) -> Vec<String> {
    let builder = Builder::default();
    builder.build(first.0, first.1);
    builder.build(second.0, second.1)
}

fn after_change(dockerfile: &str, before: &[(&str, &str)], after: &[(&str, &str)]) -> Vec<String> {
    again((dockerfile, &Files::new(before)), (dockerfile, &Files::new(after)))
}

/// What runs when the Dockerfile alone changes.
fn after_edit(before: &str, after: &str) -> Vec<String> {
    let files = Files::new(&[("a", "1"), ("b", "1"), ("d/x", "1")]);
    again((before, &files), (after, &files))
}

const NPM: &str = "\
FROM node:20
WORKDIR /app
COPY package*.json ./
RUN npm ci
COPY . .
RUN npm run build
CMD [\"npm\", \"start\"]
";

#[test]
fn a_change_runs_what_copies_it_and_what_comes_after() {
    let base = [("package.json", "1"), ("package-lock.json", "1"), ("src/a.js", "1")];
    let code = [("package.json", "1"), ("package-lock.json", "1"), ("src/a.js", "2")];
    let lock = [("package.json", "1"), ("package-lock.json", "2"), ("src/a.js", "1")];
    assert_eq!(after_change(NPM, &base, &base), [""; 0]);
    assert_eq!(after_change(NPM, &base, &code), ["COPY . .", "RUN npm run build"]);
    assert_eq!(
        after_change(NPM, &base, &lock),
        ["COPY package*.json ./", "RUN npm ci", "COPY . .", "RUN npm run build"]
    );
    let all = Builder::default().build(NPM, &Files::new(&base));
    assert_eq!(all.len(), 5, "{all:?}");
    assert_eq!(all[0], "WORKDIR /app");
}

#[test]
fn what_makes_no_layer_changes_no_key() {
    for (before, after) in [
        ("FROM a\nRUN b\nLABEL x=1\nCMD c\n", "FROM a\nRUN b\nLABEL x=2\nEXPOSE 80\nCMD d\n"),
        (
            "FROM a\nLABEL x=1\nRUN b\n",
            "FROM a\nLABEL x=2\nHEALTHCHECK NONE\nVOLUME /v\nSTOPSIGNAL 9\nRUN b\n",
        ),
        ("FROM a\nRUN b && \\\n c\n", "FROM a\nRUN b && \\\n # why\n c\n"),
        ("FROM a AS x\nCOPY a /a\n", "FROM a AS y\ncopy /a /a\n"),
        ("FROM a\nENV A=1\nCOPY a /a\n", "FROM a\nENV A=2\nCOPY a /a\n"),
        (
            "FROM a\nRUN --mount=type=cache,id=x,target=/c b",
            "FROM a\nRUN --mount=type=cache,id=y,target=/c b",
        ),
        ("FROM a\nCOPY a /x", "FROM a\nCOPY ./a /x"),
    ] {
        assert_eq!(after_edit(before, after), [""; 0], "{after}");
    }
}

#[test]
fn what_is_part_of_a_command_runs_it_again() {
    for (before, after) in [
        ("FROM a:1\nRUN b", "FROM a:2\nRUN b"),
        ("FROM a\nENV A=1\nRUN b", "FROM a\nENV A=2\nRUN b"),
        ("FROM a\nARG A=1\nRUN b", "FROM a\nARG A=2\nRUN b"),
        ("FROM a\nUSER x\nRUN b", "FROM a\nUSER y\nRUN b"),
        ("FROM a\nRUN b", "FROM a\nSHELL [\"/bin/bash\", \"-c\"]\nRUN b"),
        ("FROM a\nRUN b", "FROM a\nRUN [\"b\"]"),
        ("FROM a\nRUN b", "FROM a\nRUN --network=none b"),
        ("FROM a\nRUN b", "FROM a\nRUN --mount=type=cache,target=/c b"),
        ("FROM a\nRUN b", "FROM --platform=linux/arm64 a\nRUN b"),
        ("FROM a\nRUN --mount=type=secret,id=x b", "FROM a\nRUN --mount=type=secret,id=y b"),
        ("FROM a\nRUN <<E\nb\nE", "FROM a\nRUN <<E\nc\nE"),
        ("FROM a\nRUN cat <<E > x\nb\nE", "FROM a\nRUN cat <<E > x\nc\nE"),
        ("FROM a\nCOPY <<E /x\nb\nE", "FROM a\nCOPY <<E /x\nc\nE"),
        ("FROM a\nCOPY a /x", "FROM a\nCOPY a /y"),
        ("FROM a\nCOPY a /x", "FROM a\nCOPY a /x/"),
        ("FROM a\nCOPY a /x", "FROM a\nCOPY --chown=1 a /x"),
        ("FROM a\nCOPY a /x", "FROM a\nCOPY --chmod=755 a /x"),
        ("FROM a\nADD a /x", "FROM a\nCOPY a /x"),
        ("FROM a\nADD https://e/1 /x", "FROM a\nADD https://e/2 /x"),
        ("FROM a\nWORKDIR /a\nRUN b", "FROM a\nRUN b"),
    ] {
        let ran = after_edit(before, after);
        assert_eq!(ran.len(), 1, "{after}: {ran:?}");
    }
}

#[test]
fn a_build_argument_counts_from_where_it_is_named() {
    let file = "FROM a\nRUN early\nARG SHA\nCOPY a /a\nRUN late\n";
    let files = Files::new(&[("a", "1")]);
    let mut builder = Builder::with(&[("SHA", "1")]);
    builder.build(file, &files);
    builder.options.arguments.insert("SHA".to_owned(), "2".to_owned());
    assert_eq!(builder.build(file, &files), ["RUN late"]);
    // One that no stage names counts nowhere; nor does a label, which is no part of any layer.
    builder.options.arguments.insert("OTHER".to_owned(), "2".to_owned());
    assert_eq!(builder.build(file, &files), [""; 0]);
    let label = "FROM a\nRUN b\nARG SHA\nLABEL commit=$SHA\n";
    builder.build(label, &files);
    builder.options.arguments.insert("SHA".to_owned(), "3".to_owned());
    assert_eq!(builder.build(label, &files), [""; 0]);
}

#[test]
fn global_arguments_reach_from_and_stages_that_name_them() {
    let file =
        |version: &str| format!("ARG V={version}\nFROM a:$V AS x\nRUN b\nFROM c\nARG V\nRUN d $V\nRUN e\n");
    // The stage `x` is not needed.
    assert_eq!(after_edit(&file("1"), &file("2")), ["RUN d $V", "RUN e"]);
    let without = |version: &str| format!("ARG V={version}\nFROM c\nRUN d $V\n");
    assert_eq!(after_edit(&without("1"), &without("2")), [""; 0]);
    let platform = "FROM --platform=$BUILDPLATFORM a\nARG TARGETARCH\nRUN b\n";
    let mut builder = Builder::default();
    let files = Files::new(&[]);
    builder.build(platform, &files);
    builder.options.platform = "linux/arm64".to_owned();
    assert_eq!(builder.build(platform, &files), ["RUN b"]);
}

#[test]
fn variables_move_what_is_copied() {
    let file = |name: &str| format!("FROM a\nARG F={name}\nCOPY $F /x\nENV D=/${{F}}\nWORKDIR $D\n");
    let files = Files::new(&[("a", "1"), ("b", "1")]);
    let builder = Builder::default();
    assert_eq!(builder.build(&file("a"), &files), ["COPY a /x", "WORKDIR /a"]);
    assert_eq!(builder.build(&file("b"), &files), ["COPY b /x", "WORKDIR /b"]);
}

#[test]
fn only_stages_that_the_target_needs_are_built() {
    let file =
        "FROM a AS one\nRUN 1\nFROM b AS two\nRUN 2\nFROM one AS three\nCOPY --from=two /x /x\nFROM c\nRUN 4";
    let built = |target: Option<&str>| {
        let mut builder = Builder::default();
        builder.options.target = target.map(str::to_owned);
        builder.build(file, &Files::new(&[]))
    };
    assert_eq!(built(None), ["RUN 4"]);
    assert_eq!(built(Some("TWO")), ["RUN 2"]);
    assert_eq!(built(Some("2")), ["RUN 1", "RUN 2", "COPY --from=two /x /x"]);
    let missing = Options { target: Some("x".to_owned()), ..Options::default() };
    let (files, ignore, memory) = (Files::new(&[]), Ignore::default(), Memory::default());
    let context =
        Context { tree: &files, root: files.root(), ignore: &ignore, memory: &memory, git_directory: None };
    let error = plan(&parse(file).unwrap(), &missing, context, Key::from([0; 32])).unwrap_err();
    assert_eq!(error.to_string(), "there is no stage `x` in it");
}

#[test]
fn a_copy_from_a_stage_follows_the_stage() {
    let file = |step: &str| format!("FROM a AS b\nRUN {step}\nFROM c\nRUN 1\nCOPY --from=b /x /x\nRUN 2\n");
    assert_eq!(after_edit(&file("x"), &file("y")), ["RUN y", "COPY --from=b /x /x", "RUN 2"]);
    let image = |name: &str| format!("FROM c\nCOPY --from={name} /x /x\n");
    assert_eq!(after_edit(&image("nginx:1"), &image("nginx:2")).len(), 1);
    assert_eq!(after_edit(&image("nginx:1"), &image("nginx:1")), [""; 0]);
}

#[test]
fn a_copy_from_a_stage_is_known_by_what_was_copied_there() {
    let file =
        "FROM scratch AS src\nCOPY . /src\nFROM node\nCOPY --from=src /src/package.json /p/\nRUN npm ci\n";
    let base = [("package.json", "1"), ("a.js", "1")];
    let code = [("package.json", "1"), ("a.js", "2")];
    let manifest = [("package.json", "2"), ("a.js", "1")];
    assert_eq!(after_change(file, &base, &code), ["COPY . /src"]);
    assert_eq!(after_change(file, &base, &manifest).len(), 3);
    // A command between may have changed the file.
    let run = file.replace("FROM node", "RUN x\nFROM node").replace("scratch", "busybox");
    assert_eq!(after_change(&run, &base, &code).len(), 4);
}

const CHEF: &str = "\
FROM rust AS chef
RUN cargo install cargo-chef
WORKDIR /app
FROM chef AS planner
COPY . .
RUN cargo chef prepare --recipe-path recipe.json
FROM chef AS builder
COPY --from=planner /app/recipe.json recipe.json
RUN cargo chef cook --release --recipe-path recipe.json
COPY . .
RUN cargo build --release
FROM debian
COPY --from=builder /app/target/release/app /usr/local/bin/
";

#[test]
fn cargo_chef_cooks_only_when_a_manifest_changes() {
    let base = [("Cargo.toml", "1"), ("Cargo.lock", "1"), ("src/main.rs", "1"), ("crates/a/src/lib.rs", "1")];
    let mut code = base;
    code[3].1 = "2";
    let mut lock = base;
    lock[1].1 = "2";
    let cook = "RUN cargo chef cook --release --recipe-path recipe.json";
    let ran = after_change(CHEF, &base, &code);
    assert!(!ran.iter().any(|step| step == cook), "{ran:?}");
    assert!(ran.iter().any(|step| step.starts_with("RUN cargo chef prepare")), "{ran:?}");
    assert!(after_change(CHEF, &base, &lock).iter().any(|step| step == cook));
    let target = [base.as_slice(), &[("src/bin/x.rs", "1")]].concat();
    assert!(after_change(CHEF, &base, &target).iter().any(|step| step == cook));
    let module = [base.as_slice(), &[("src/x.rs", "1")]].concat();
    assert!(!after_change(CHEF, &base, &module).iter().any(|step| step == cook));
}

#[test]
fn a_linked_copy_does_not_depend_on_what_is_below_it() {
    let file = |step: &str| format!("FROM a\nRUN {step}\nCOPY --link a /a\nRUN last\n");
    assert_eq!(after_edit(&file("x"), &file("y")), ["RUN y", "RUN last"]);
    let plain = |step: &str| file(step).replace("--link ", "");
    assert_eq!(after_edit(&plain("x"), &plain("y")), ["RUN y", "COPY a /a", "RUN last"]);
    assert_eq!(after_change(&file("x"), &[("a", "1")], &[("a", "2")]), ["COPY --link a /a", "RUN last"]);
    // Measured, and so in BuildKit's code: a copy with `--chmod` is never linked.
    for (flags, is_linked) in [
        ("--link --chown=500", true),
        ("--link=true", true),
        ("--link=false", false),
        ("--link --chmod=755", false),
        ("--chmod=755 --chown=500 --link", false),
        ("--link --chmod=$NONE", true),
    ] {
        for name in ["COPY", "ADD", "COPY --from=b"] {
            let step = format!("{name} {flags} a /a");
            let linked = |run: &str| file(run).replace("COPY --link a /a", &step);
            let ran = after_edit(&linked("x"), &linked("y"));
            assert_eq!(!ran.contains(&step), is_linked, "{step}: {ran:?}");
        }
    }
}

#[test]
fn mounts_are_known_by_what_they_hold() {
    let file = "FROM a\nRUN --mount=type=bind,target=/src make\nRUN --mount=source=d,target=/d,ro test\n";
    let base = [("a", "1"), ("d/x", "1")];
    let other = [("a", "2"), ("d/x", "1")];
    assert_eq!(after_change(file, &base, &other).len(), 2);
    let narrow = "FROM a\nRUN --mount=source=d,target=/d test\n";
    assert_eq!(after_change(narrow, &base, &other), [""; 0]);
    assert_eq!(after_change(narrow, &base, &[("a", "1"), ("d/x", "2")]).len(), 1);
    let stage = |step: &str| format!("FROM a AS t\nRUN {step}\nFROM b\nRUN --mount=from=t,target=/t use\n");
    assert_eq!(after_edit(&stage("1"), &stage("2")).len(), 2);
}

#[test]
fn triggers_run_in_the_stage_that_rests_on_theirs() {
    let file = "FROM a AS base\nONBUILD COPY a /a\nONBUILD RUN make\nFROM base\nRUN last\n";
    assert_eq!(
        Builder::default().build(file, &Files::new(&[("a", "1")])),
        ["COPY a /a", "RUN make", "RUN last"]
    );
    let twice = format!("{file}FROM base AS x\nFROM x\nRUN z\n");
    let ran = Builder::default().build(&twice, &Files::new(&[("a", "1")]));
    assert_eq!(ran, ["COPY a /a", "RUN make", "RUN z"]);
}

#[test]
fn images_of_several_platforms_share_what_is_made_on_the_builder() {
    let file = "FROM --platform=$BUILDPLATFORM a AS b\nRUN make\nFROM a\nARG TARGETARCH\nRUN get $TARGETARCH\n\
                COPY --from=b /x /x\n";
    let files = Files::new(&[]);
    let plan_for = |platform: &str| {
        let mut builder = Builder::default();
        builder.options.platform = platform.to_owned();
        builder.options.build_platform = Some("linux/amd64".to_owned());
        builder.plan(file, &files)
    };
    let joined = Plan::join(["linux/amd64", "linux/arm64"].map(plan_for));
    let ran = |plan: &Plan, has: &HashSet<Key>| -> Vec<String> {
        let text = |number: &usize| plan.nodes[*number].step.as_ref().unwrap().text.clone();
        solve(plan, |key| has.contains(key)).ran.iter().map(text).collect()
    };
    let one = ["RUN get $TARGETARCH", "RUN make", "COPY --from=b /x /x"];
    assert_eq!(ran(&joined, &HashSet::new()), [&one[..], &[one[0], one[2]]].concat());
    let has = plan_for("linux/amd64").nodes.iter().map(|node| node.key).collect();
    assert_eq!(ran(&joined, &has), [one[0], one[2]]);
    assert!(joined.nodes.iter().enumerate().all(|(at, node)| node.rests_on().all(|below| below < at)));
}

#[test]
fn a_cache_has_no_result_of_what_rests_on_nothing() {
    let files = Files::new(&[("a", "1")]);
    let exported = |file: &str| {
        let plan = Builder::default().plan(file, &files);
        plan.nodes.iter().filter(|node| node.step.is_some()).map(super::Node::is_exported).collect::<Vec<_>>()
    };
    assert_eq!(exported("FROM scratch\nWORKDIR /a\nWORKDIR /b\nCOPY a /a\n"), [false, true, true]);
    assert_eq!(exported("FROM scratch\nCOPY a /a\nCOPY --link a /b\n"), [true, true]);
    assert_eq!(exported("FROM a\nWORKDIR /a\n"), [true]);
}

#[test]
fn a_step_has_the_number_that_a_log_shows() {
    let files = Files::new(&[("a", "1")]);
    let file =
        "FROM a AS x\nWORKDIR /\nRUN b\nONBUILD RUN c\nFROM x AS y\nRUN d\nFROM scratch\nCOPY --from=y / /\n";
    let plan = Builder::default().plan(file, &files);
    let steps = plan.nodes.iter().filter_map(|node| node.step.as_ref());
    let numbers: Vec<(&str, usize)> = steps.map(|step| (step.stage.as_str(), step.place)).collect();
    assert_eq!(numbers, [("x", 2), ("y", 1), ("y", 2), ("stage-2", 1)]);
}

#[test]
fn equal_steps_of_two_stages_run_once() {
    let file =
        "FROM a AS x\nRUN same\nFROM a AS y\nRUN same\nFROM b\nCOPY --from=x /1 /\nCOPY --from=y /2 /\n";
    assert_eq!(
        Builder::default().build(file, &Files::new(&[])).iter().filter(|s| *s == "RUN same").count(),
        1
    );
}

#[test]
fn excludes_and_parents_say_what_is_copied() {
    let base = [("src/a", "1"), ("src/b.md", "1"), ("m/x/pom.xml", "1"), ("m/x/y.java", "1")];
    let mut docs = base;
    docs[1].1 = "2";
    let mut java = base;
    java[3].1 = "2";
    let mut pom = base;
    pom[2].1 = "2";
    let exclude = "FROM a\nCOPY --exclude=*.md src /src\n";
    assert_eq!(after_change(exclude, &base, &docs), [""; 0]);
    let parents = "FROM a\nCOPY --parents m/*/pom.xml /src/\n";
    assert_eq!(after_change(parents, &base, &java), [""; 0]);
    assert_eq!(after_change(parents, &base, &pom).len(), 1);
}

#[test]
fn the_directory_of_git_makes_a_wide_copy_new_each_time() {
    let builder = Builder { git: true, ..Builder::default() };
    let files = Files::new(&[("a", "1")]);
    builder.build("FROM a\nCOPY . /x\nRUN b\n", &files);
    assert_eq!(builder.build("FROM a\nCOPY . /x\nRUN b\n", &files).len(), 2);
    let ignoring = Files::new(&[("a", "1"), (".dockerignore", ".git\n")]);
    builder.build("FROM a\nCOPY . /x\nRUN b\n", &ignoring);
    assert_eq!(builder.build("FROM a\nCOPY . /x\nRUN b\n", &ignoring), [""; 0]);
}

#[test]
fn what_is_not_understood_is_named_and_never_cached() {
    for (file, line, problem) in [
        ("FROM a\nFETCH b\nRUN c", 2, "FETCH is not understood"),
        ("FROM a\nCOPY --fast a /a\nRUN c", 2, "COPY --fast is not understood"),
        (
            "FROM a\nRUN b\nCOPY target/app.jar /\nRUN c",
            3,
            "`target/app.jar` is not in the build context, or is ignored",
        ),
        ("FROM a\nRUN --mount=type=odd b\n", 2, "RUN --mount=type=odd is not understood"),
        ("FROM a\nENV A=${B\nRUN c", 2, "`${B` has a brace that is not closed"),
        ("FROM a\nRUN --mount=source=no,target=/x b\n", 2, "`no` is not in the build context, or is ignored"),
        ("FROM a\nCOPY a\n", 2, "COPY needs a source and a target"),
    ] {
        let builder = Builder::default();
        let files = Files::new(&[("a", "1")]);
        let plan = builder.plan(file, &files);
        let reported: Vec<_> = plan.unknown.iter().map(|u| (u.line, u.problem.as_str())).collect();
        assert_eq!(reported, [(line, problem)], "{file}");
        builder.build(file, &files);
        let ran = builder.build(file, &files);
        assert!(!ran.is_empty(), "{file}");
        assert!(!ran.iter().any(|step| step == "RUN b" && line > 2), "{file}: {ran:?}");
    }
}

#[test]
fn a_commit_costs_the_directories_that_it_changes() {
    let paths: Vec<(String, String)> =
        (0..900).map(|n| (format!("d{}/e{}/f{n}", n / 100, n / 10), n.to_string())).collect();
    let mut files = Files::new(&paths.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect::<Vec<_>>());
    let builder = Builder::default();
    let file = "FROM a\nCOPY . /x\n";
    builder.build(file, &files);
    let first = files.listed.replace(0);
    assert!(first > 100, "{first}");
    files.file("d3/e31/f311", "new");
    files.listed.set(0);
    assert_eq!(builder.build(file, &files).len(), 1);
    // The root, the two directories on the way, and the search for a .dockerignore.
    assert!(files.listed.get() <= 5, "{}", files.listed.get());
}

fn names() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c.md", "d.log"]), 1..4)
        .prop_map(|p| p.join("/"))
}

/// Files of which none lies where another has a directory.
fn trees() -> impl Strategy<Value = BTreeSet<String>> {
    prop::collection::btree_set(names(), 1..12).prop_map(|paths| {
        let mut kept: BTreeSet<String> = BTreeSet::new();
        for path in paths {
            let clash = |other: &String| {
                other.starts_with(&format!("{path}/"))
                    || path.starts_with(&format!("{other}/"))
                    || *other == path
            };
            if !kept.iter().any(clash) {
                kept.insert(path);
            }
        }
        kept
    })
}

/// A Dockerfile that copies some paths, each after the other.
fn copies(sources: &[String]) -> String {
    let steps = sources.iter().enumerate().map(|(n, source)| format!("COPY {source} /{n}/\nRUN step {n}\n"));
    format!("FROM base\n{}", steps.collect::<String>())
}

fn holds(source: &str, path: &str) -> bool {
    source == "." || path == source || path.starts_with(&format!("{source}/"))
}

proptest! {
    #[test]
    fn a_change_runs_exactly_the_steps_from_the_first_copy_that_takes_it(
        tree in trees(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0..3_usize), 1..5),
        changed in any::<prop::sample::Index>(),
    ) {
        let paths: Vec<&String> = tree.iter().collect();
        let sources: Vec<String> = picks
            .iter()
            .map(|(pick, up)| {
                let parts: Vec<&str> = paths[pick.index(paths.len())].split('/').collect();
                let kept = parts[..parts.len().saturating_sub(*up)].join("/");
                if kept.is_empty() { ".".to_owned() } else { kept }
            })
            .collect();
        let file = copies(&sources);
        let changed = paths[changed.index(paths.len())];
        let before = Files::new(&paths.iter().map(|path| (path.as_str(), "1")).collect::<Vec<_>>());
        let mut after = before.clone();
        after.file(changed, "2");
        let ran = again((&file, &before), (&file, &after));
        let first = sources.iter().position(|source| holds(source, changed));
        prop_assert_eq!(ran.len(), first.map_or(0, |first| (sources.len() - first) * 2), "{}: {:?}", file, ran);
    }

    #[test]
    fn a_file_that_is_ignored_changes_no_key(
        tree in trees(),
        ignored in prop::collection::vec(
            prop::sample::select(vec!["**/*.md", "a", "!a/b", "*", "!b", "**/d.log"]),
            1..4,
        ),
        changed in any::<prop::sample::Index>(),
    ) {
        let text = ignored.join("\n");
        let mut before = Files::new(&tree.iter().map(|path| (path.as_str(), "1")).collect::<Vec<_>>());
        before.file(".dockerignore", &text);
        let path = tree.iter().nth(changed.index(tree.len())).unwrap();
        let mut after = before.clone();
        after.file(path, "2");
        let ran = again(("FROM a\nCOPY . /x\n", &before), ("FROM a\nCOPY . /x\n", &after));
        let is_ignored = Ignore::parse(&text).unwrap().is_ignored(path);
        prop_assert_eq!(ran.is_empty(), is_ignored, "{} with {}", path, text);
    }

    #[test]
    fn what_is_outside_the_context_changes_no_key(tree in trees(), outside in names()) {
        let mut before = Files::new(&tree.iter().map(|path| (path.as_str(), "1")).collect::<Vec<_>>());
        let inside = before.root();
        before.file(&format!("z/{outside}"), "1");
        prop_assert_ne!(inside, before.root());
        let mut after = before.clone();
        after.remove(&format!("z/{outside}"));
        let file = "FROM a\nCOPY a* /x/\nRUN b\n";
        prop_assert_eq!(again((file, &before), (file, &after)), Vec::<String>::new());
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(FROM a\n)?[A-Za-z$ {}:'\"<\\-=,.\\\\\n#\\[\\]/*]{0,80}") {
        if let Ok(file) = parse(&text) {
            let files = Files::new(&[("a", "1")]);
            let (ignore, memory) = (Ignore::default(), Memory::default());
            let context =
                Context { tree: &files, root: files.root(), ignore: &ignore, memory: &memory, git_directory: None };
            let _ = plan(&file, &Options::default(), context, Key::from([0; 32]));
        }
        let _ = Ignore::parse(&text);
    }
}

#[test]
fn cache_mounts_are_known_by_their_ids() {
    let file = "FROM a AS b\nRUN --mount=type=cache,target=/root/.npm \
         --mount=type=cache,id=go,target=/go,uid=7,ro,mode=0755 x\n\
                RUN --mount=type=cache,target=/root/.npm,sharing=locked y\nRUN --mount=type=cache,id=$X,target=/x z\n\
                RUN --mount=type=cache,from=b,target=/y --mount=target=/z --mount=type=secret,id=s z\n";
    let found = cache_mounts(&parse(file).unwrap());
    let found: Vec<_> = found.iter().map(|mount| (mount.id.as_str(), mount.options.as_str())).collect();
    assert_eq!(found, [("/root/.npm", ""), ("go", "uid=7,mode=0755")]);
}
