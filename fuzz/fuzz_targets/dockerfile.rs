//! Any text is a Dockerfile with a plan, or what is wrong with it is told; and so is a `.dockerignore`.
#![no_main]

use std::collections::BTreeSet;
use std::rc::Rc;

use dockerfile_keys::{
    Context, Entry, Id, Ignore, Key, Kind, Memory, Options, Plan, Tree, TreeError, parse, plan, solve,
};
use libfuzzer_sys::fuzz_target;

/// A directory `d` that holds a file `a`, and the same again beside it.
struct Files;

const ROOT: Id = [0; 32];

impl Tree for Files {
    fn entries(&self, directory: &Id) -> Result<Rc<[Entry]>, TreeError> {
        let entry = |name: &str, kind, id| Entry { name: name.into(), kind, id: [id; 32] };
        let mut entries = vec![entry("a", Kind::File, 1)];
        if *directory == ROOT {
            entries.extend([entry("d", Kind::Directory, 2), entry("l", Kind::Link, 3)]);
        }
        Ok(entries.into())
    }

    fn read(&self, _: &Id) -> Result<Vec<u8>, TreeError> {
        Ok(b"d/../l/a".to_vec())
    }
}

fuzz_target!(|text: &str| {
    // What no run has left is not taken for what one has.
    assert!(Memory::from_bytes(text.as_bytes()).is_none());
    // What comes before a line of `---` is a `.dockerignore`.
    let (ignore, text) = text.split_once("\n---\n").unwrap_or(("", text));
    let ignore = Ignore::parse(ignore);
    if let (Ok(file), Ok(ignore)) = (parse(text), ignore) {
        let memory = Memory::default();
        let build = |key: u8| {
            let (tree, memory) = (&Files, &memory);
            let context = Context { tree, root: ROOT, ignore: &ignore, memory, git_directory: None };
            plan(&file, &Options::default(), context, Key::from([key; 32])).ok()
        };
        if let (Some(plan), Some(again)) = (build(1), build(2)) {
            check(&plan);
            // An image that is made twice in a build takes no step more.
            let twice = Plan::join([plan.clone(), plan.clone()]);
            check(&twice);
            assert_eq!(solve(&twice, |_| false).ran.len(), solve(&plan, |_| false).ran.len());
            // Only what is not understood differs from build to build.
            let keys = |plan: &Plan| plan.nodes.iter().map(|node| node.key).collect::<Vec<_>>();
            assert!(!plan.unknown.is_empty() || keys(&plan) == keys(&again));
        }
    }
});

fn check(plan: &Plan) {
    for (number, node) in plan.nodes.iter().enumerate() {
        assert!(node.rests_on().all(|below| below < number));
    }
    let all = solve(plan, |_| false);
    let steps: BTreeSet<usize> =
        plan.nodes.iter().enumerate().filter(|(_, node)| node.step.is_some()).map(|(number, _)| number).collect();
    assert!(all.ran.is_subset(&steps));
    assert!(solve(plan, |_| true).ran.is_empty());
}
