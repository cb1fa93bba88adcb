//! Whether a build ran what was predicted.

use std::collections::BTreeSet;

use dockerfile_keys::{Key, Plan, solve};

/// The steps that were predicted otherwise than they ran, as numbers of the plan's nodes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// Predicted, and found in the caches.
    pub only_predicted: BTreeSet<usize>,
    /// Not predicted, and ran.
    pub only_ran: BTreeSet<usize>,
}

impl Disagreement {
    /// Compares what ran of a plan, as numbers of its nodes, with what runs where the results of other plans'
    /// builds are given. Nothing is set aside.
    #[must_use]
    pub fn of(plan: &Plan, given: &[&Plan], ran: &BTreeSet<usize>) -> Option<Self> {
        let exported: BTreeSet<Key> = given
            .iter()
            .flat_map(|plan| plan.nodes.iter().filter(|node| node.is_exported()).map(|node| node.key))
            .collect();
        let predicted = solve(plan, |key| exported.contains(key)).ran;
        // Two stages may hold the same step. It runs once, and either may name it.
        let keys = |nodes: &BTreeSet<usize>| -> BTreeSet<Key> {
            nodes.iter().filter_map(|node| plan.nodes.get(*node)).map(|node| node.key).collect()
        };
        let without = |nodes: &BTreeSet<usize>, others: &BTreeSet<usize>| -> BTreeSet<usize> {
            let others = keys(others);
            let is_other =
                |node: &usize| plan.nodes.get(*node).is_some_and(|node| others.contains(&node.key));
            nodes.iter().copied().filter(|node| !is_other(node)).collect()
        };
        let found = Self { only_predicted: without(&predicted, ran), only_ran: without(ran, &predicted) };
        (found != Self::default()).then_some(found)
    }

    /// Whether all of it is in stages that others read files of: in what makes them, not in what reads them.
    #[must_use]
    pub fn is_below_a_copy(&self, plan: &Plan) -> bool {
        let mut below = BTreeSet::new();
        let mut open: Vec<usize> = plan.nodes.iter().flat_map(|node| node.inputs.iter().copied()).collect();
        while let Some(number) = open.pop() {
            if below.insert(number) {
                open.extend(plan.nodes.get(number).into_iter().flat_map(dockerfile_keys::Node::rests_on));
            }
        }
        self.only_predicted.iter().chain(&self.only_ran).all(|number| below.contains(number))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use dockerfile_keys::{Context, Folder, Ignore, Left, Memory, Options, parse, plan};

    use super::*;

    const FILE: &str = "FROM i AS s\nCOPY a /w/a\nCOPY b /w/b\nRUN k /w/m\nFROM i\nRUN first\n\
                        COPY --from=s /w/m /m\nCOPY --from=s /w/a /a\n";

    /// The plan of a build of these files, where the command left this, if that is known.
    fn planned(name: &str, a: &str, b: &str, left: Option<&str>) -> Plan {
        let root: PathBuf = std::env::temp_dir().join(format!("agree-{name}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("a"), a).unwrap();
        fs::write(root.join("b"), b).unwrap();
        let folder = Folder::read(&root).unwrap();
        let mut options = Options::default();
        if let Some(left) = left {
            let mut content = [0; 32];
            content[..left.len()].copy_from_slice(left.as_bytes());
            let left = Left { path: "/w/m".to_owned(), content: content.into() };
            options.left.insert(("s".to_owned(), 4), left);
        }
        let (ignore, memory) = (Ignore::default(), Memory::default());
        let (tree, root_id) = (&folder, folder.root());
        let context = Context { tree, root: root_id, ignore: &ignore, memory: &memory, git_directory: None };
        let plan = plan(&parse(FILE).unwrap(), &options, context, Key::from([0; 32])).unwrap();
        fs::remove_dir_all(root).unwrap();
        plan
    }

    fn numbers(plan: &Plan, steps: &[&str]) -> BTreeSet<usize> {
        let is_one = |text: &str| steps.contains(&text);
        let all = plan.nodes.iter().enumerate();
        all.filter(|(_, node)| node.step.as_ref().is_some_and(|step| is_one(&step.text)))
            .map(|(number, _)| number)
            .collect()
    }

    #[test]
    fn what_a_command_left_as_it_was_is_found_once_that_is_known() {
        let compare = |before: Option<&str>, after: Option<&str>, ran: &[&str]| {
            let (first, second) = (planned("left", "1", "1", before), planned("left", "1", "2", after));
            let ran = numbers(&second, ran);
            Disagreement::of(&second, &[&first], &ran).map(|found| {
                let text = |node: &usize| second.nodes[*node].step.as_ref().unwrap().text.clone();
                (
                    found.only_predicted.iter().map(text).collect::<Vec<_>>(),
                    found.only_ran.iter().map(text).collect::<Vec<_>>(),
                )
            })
        };
        // The command left what it had left before, so the build found the copy of it.
        let found = ["COPY b /w/b", "RUN k /w/m"];
        let more = ["COPY --from=s /w/m /m".to_owned(), "COPY --from=s /w/a /a".to_owned()];
        assert_eq!(compare(None, None, &found), Some((more.to_vec(), vec![])));
        assert_eq!(compare(Some("x"), Some("x"), &found), None);
        // What it left is known to differ, so to find the copy would be wrong.
        assert_eq!(compare(Some("x"), Some("y"), &found), Some((more.to_vec(), vec![])));
        // A build that ran too much is wrong as well.
        let all = ["COPY b /w/b", "RUN k /w/m", "COPY --from=s /w/m /m", "COPY --from=s /w/a /a"];
        assert_eq!(compare(Some("x"), Some("x"), &all), Some((vec![], more.to_vec())));
        assert_eq!(compare(Some("x"), Some("y"), &all), None);
        assert_eq!(compare(None, None, &all), None);
    }

    #[test]
    fn a_copy_from_a_stage_that_is_predicted_in_vain_is_never_set_aside() {
        // A model that takes the copy of `a` for changed where `b` changed. That the command left what it had
        // left before excuses nothing.
        let (first, mut second) =
            (planned("vain", "1", "1", Some("x")), planned("vain", "1", "2", Some("x")));
        let ran = numbers(&second, &["COPY b /w/b", "RUN k /w/m"]);
        assert_eq!(Disagreement::of(&second, &[&first], &ran), None);
        let copy = numbers(&second, &["COPY --from=s /w/a /a"]);
        for node in &copy {
            second.nodes[*node].key = Key::from([7; 32]);
        }
        let found = Disagreement::of(&second, &[&first], &ran).unwrap();
        assert_eq!(found, Disagreement { only_predicted: copy, only_ran: BTreeSet::new() });
        assert!(!found.is_below_a_copy(&second));
    }
}
