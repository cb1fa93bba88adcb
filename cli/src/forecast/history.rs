//! From commits to builds, in the order in which webhooks would have told of them.
//!
//! Git does not keep pushes. A push to the default branch is a commit of its first-parent line. What it brought tells
//! how: a merge commit names the branch's last commit; a squash, known by the `(#123)` at its subject's end, does not.
//! A branch's commits that were made within minutes count as one push.

use std::collections::{BTreeMap, HashMap, HashSet};

use dockerfile_keys::Id;
use stoker_core::names::{Branch, Line};

use super::git::Commit;

/// Commits of a branch that were made within this many seconds count as one push.
const ONE_PUSH: i64 = 300;

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Push {
    /// The commit. The head of a branch that was squashed has the hash of the squash, backwards: its own is not known.
    pub(super) commit: String,
    pub(super) content: Content,
    /// In seconds since 1970.
    pub(super) time: i64,
    /// The default branch, or the branch of a pull request.
    pub(super) line: Line,
    /// The heads of the branches that came to the default branch by it.
    pub(super) merged: Vec<String>,
}

impl Push {
    pub(super) fn is_to_main(&self) -> bool {
        self.line == Line::Main
    }
}

/// What a push holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Tree(Id),
    /// A branch that was squashed: its tree is gone. It was the squash's own, `to`, or, if the branch was behind, what
    /// changed between `from` and `to` upon an older `base`.
    Squashed {
        base: Id,
        from: Id,
        to: Id,
    },
}

/// How changes came to the default branch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Ways {
    /// Merge commits.
    pub(super) merge_commits: usize,
    /// Squashed pull requests.
    pub(super) squashes: usize,
    /// Everything else: pushes without a pull request, and rebased ones, which cannot be told apart.
    pub(super) others: usize,
}

/// A history as builds.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    /// The pushes, the oldest first.
    pub(super) pushes: Vec<Push>,
    pub(super) ways: Ways,
}

/// Reads the pushes of a history. `line` is the first-parent line, the newest first; `all` are all commits that are
/// younger than its oldest.
pub(super) fn read(line: &[Commit], all: &[Commit]) -> History {
    let by_id: HashMap<&str, &Commit> =
        all.iter().chain(line).map(|commit| (commit.id.as_str(), commit)).collect();
    let mut on_main: HashSet<&str> = HashSet::new();
    let mut history = History::default();
    let mut now = i64::MIN;
    // What the default branch held, by time.
    let mut heads: BTreeMap<i64, Id> = BTreeMap::new();
    for commit in line.iter().rev() {
        // The line's order is certain, its times are not.
        now = now.max(commit.committed);
        let before =
            commit.parents.first().and_then(|parent| by_id.get(parent.as_str())).map(|parent| parent.tree);
        let mut merged = Vec::new();
        if commit.parents.len() > 1 {
            history.ways.merge_commits += 1;
            for parent in commit.parents.iter().skip(1) {
                let line = line_of(&branch_name(&commit.subject).unwrap_or_default(), parent);
                merged.extend(pushed(parent, &by_id, &mut on_main, &line, now, &mut history.pushes));
            }
        } else if let (Some(number), Some(from)) = (pull_request(&commit.subject), before) {
            history.ways.squashes += 1;
            let made = commit.authored.min(now.saturating_sub(1));
            // Forges date a squash as they like, often as its merge: the branch missed one push at least.
            let known = heads.len().saturating_sub(1).max(1);
            let older = heads.iter().take(known).rfind(|(time, _)| **time <= made);
            let base = older.or_else(|| heads.first_key_value()).map_or(from, |(_, tree)| *tree);
            let content = Content::Squashed { base, from, to: commit.tree };
            let head: String = commit.id.chars().rev().collect();
            let line = line_of(&format!("#{number}"), &head);
            history.pushes.push(Push { commit: head.clone(), content, time: made, line, merged: Vec::new() });
            merged.push(head);
        } else {
            history.ways.others += 1;
        }
        on_main.insert(&commit.id);
        heads.insert(now, commit.tree);
        let content = Content::Tree(commit.tree);
        history.pushes.push(Push { commit: commit.id.clone(), content, time: now, line: Line::Main, merged });
    }
    // A branch's pushes come before the merge that ended it, which stands after them already.
    history.pushes.sort_by_key(|push| push.time);
    history
}

/// The pushes of a branch that was merged: its commits that were not on the default branch. Gives its head.
fn pushed<'a>(
    head: &'a str,
    by_id: &HashMap<&'a str, &'a Commit>,
    on_main: &mut HashSet<&'a str>,
    line: &Line,
    merged_at: i64,
    pushes: &mut Vec<Push>,
) -> Option<String> {
    let mut commits: Vec<&Commit> = Vec::new();
    let mut open = vec![head];
    while let Some(id) = open.pop() {
        // What is not in the range is older than it, and on the default branch.
        let Some(commit) = by_id.get(id).filter(|_| !on_main.contains(id)) else { continue };
        on_main.insert(commit.id.as_str());
        commits.push(commit);
        open.extend(commit.parents.iter().map(String::as_str));
    }
    let first = commits.first()?.id.clone();
    // The head comes last, whatever its time says.
    commits.sort_by_key(|commit| (commit.id == first, commit.committed));
    let mut last: Option<i64> = None;
    for (at, commit) in commits.iter().enumerate() {
        let time = commit.committed.max(last.unwrap_or(i64::MIN)).min(merged_at);
        last = Some(time);
        let is_overtaken =
            commits.get(at + 1).is_some_and(|next| (0..ONE_PUSH).contains(&(next.committed - time)));
        if is_overtaken && commit.id != first {
            continue;
        }
        let content = Content::Tree(commit.tree);
        let (commit, line) = (commit.id.clone(), line.clone());
        pushes.push(Push { commit, content, time, line, merged: Vec::new() });
    }
    Some(first)
}

/// The number in a subject such as `Fix it (#123)`.
pub(crate) fn pull_request(subject: &str) -> Option<&str> {
    let (_, number) = subject.trim_end().strip_suffix(')')?.rsplit_once("(#")?;
    let is_number = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit());
    is_number.then_some(number)
}

/// The branch in `Merge pull request #1 from owner/name` or `Merge branch 'name' into main`.
fn branch_name(subject: &str) -> Option<String> {
    if let Some((_, from)) =
        subject.strip_prefix("Merge pull request #").and_then(|rest| rest.split_once(" from "))
    {
        return Some(from.trim().to_owned());
    }
    let (name, _) = subject.strip_prefix("Merge branch '")?.split_once('\'')?;
    Some(name.to_owned())
}

/// The line of a branch; one without a name that can be used has that of its head.
fn line_of(name: &str, head: &str) -> Line {
    Branch::new(name).or_else(|_| Branch::new(head)).map_or(Line::Main, Line::Branch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(id: &str, parents: &[&str], committed: i64, subject: &str) -> Commit {
        let mut tree = Id::default();
        tree[0] = id.bytes().fold(0, u8::wrapping_add);
        Commit {
            id: id.to_owned(),
            tree,
            parents: parents.iter().map(|parent| (*parent).to_owned()).collect(),
            committed,
            authored: committed - 1000,
            subject: subject.to_owned(),
        }
    }

    /// Pushes as `branch:commit`, in order.
    fn reported(history: &History) -> Vec<String> {
        let tell = |push: &Push| match &push.line {
            Line::Branch(name) => format!("{}:{}", name.as_str(), push.commit),
            _ => format!("main:{}<{}", push.commit, push.merged.join(",")),
        };
        history.pushes.iter().map(tell).collect()
    }

    #[test]
    fn a_merge_commit_is_the_end_of_its_branch() {
        let main = [
            commit("m", &["b", "y"], 2000, "Merge pull request #1 from me/topic"),
            commit("b", &["a"], 900, "Fix"),
            commit("a", &[], 0, "Begin"),
        ];
        // `x1` and `x2` were made within minutes; the head's clock is wrong.
        let branch = [
            commit("y", &["x2"], 100, "y"),
            commit("x2", &["x1"], 1150, "x2"),
            commit("x1", &["a"], 1100, "x1"),
        ];
        let history = read(&main, &branch);
        assert_eq!(reported(&history), ["main:a<", "main:b<", "me/topic:x2", "me/topic:y", "main:m<y"]);
        assert_eq!(history.ways, Ways { merge_commits: 1, squashes: 0, others: 2 });
    }

    #[test]
    fn a_branch_that_merged_main_does_not_push_mains_commits() {
        let main = [
            commit("m", &["b", "y"], 2000, "Merge branch 'topic'"),
            commit("b", &["a"], 900, "Fix"),
            commit("a", &[], 0, "Begin"),
        ];
        let branch = [commit("y", &["x", "b"], 1500, "Merge main"), commit("x", &["a"], 100, "x")];
        assert_eq!(reported(&read(&main, &branch)), ["main:a<", "topic:x", "main:b<", "topic:y", "main:m<y"]);
    }

    #[test]
    fn a_squash_is_a_branch_whose_tree_is_gone() {
        let main = [
            commit("c12", &["b"], 5000, "Add it (#12)"),
            commit("b", &["a"], 4500, "Fix (see #3)"),
            commit("a", &[], 1000, "Begin"),
        ];
        let history = read(&main, &[]);
        assert_eq!(reported(&history), ["main:a<", "#12:21c", "main:b<", "main:c12<21c"]);
        assert_eq!(history.ways, Ways { merge_commits: 0, squashes: 1, others: 2 });
        // It was made when `a` was the head.
        let [a, b, c] = [2, 1, 0].map(|at: usize| main[at].tree);
        assert_eq!(history.pushes[1].content, Content::Squashed { base: a, from: b, to: c });
    }

    #[test]
    fn subjects_are_read_as_forges_write_them() {
        assert_eq!(pull_request("Fix (#1) (#22)"), Some("22"));
        for none in ["Fix #1", "Fix (#)", "Fix (#1x)", "(#1) fix"] {
            assert_eq!(pull_request(none), None, "{none}");
        }
        assert_eq!(branch_name("Merge branch 'a/b' into 'main'").as_deref(), Some("a/b"));
        assert_eq!(branch_name("Merge it"), None);
    }
}
