//! Which commit of a push counts: for what the push brings to a line, and for what its build is given.

use crate::names::{Commit, Scope, Tag};

/// The tags to look at for a commit that a push brings: that of its cache, and that of the note that it is
/// the head of a fork's pull request.
pub(crate) fn tags(scope: &Scope, commit: &Commit) -> (Tag, Option<Tag>) {
    (Tag::commit(scope, commit), Tag::fork(scope, &commit.clone().into()))
}

/// Of a push's commits, the newest first, the newest that any line has built. An earlier one may have been
/// built by a branch that nobody merged, and which only had that commit for its head. The same is true of all
/// of them where one is the head of a fork's pull request, which no line builds: then none counts.
pub(crate) fn newest<'a>(
    scope: &Scope,
    commits: impl Iterator<Item = &'a Commit> + Clone,
    is_there: impl Fn(&Tag) -> bool,
) -> Option<&'a Commit> {
    if let Some(fork) = commits.clone().filter_map(|commit| tags(scope, commit).1).find(&is_there) {
        tracing::info!(cache.tag = %fork, "what was pushed holds the head of a fork's pull request, and brings \
             nothing");
        return None;
    }
    commits.into_iter().find(|commit| is_there(&Tag::commit(scope, commit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ProjectName;

    #[test]
    fn the_newest_that_was_built_counts_and_none_beside_a_forks_head() {
        let scope = Scope::of(&ProjectName::new("app").unwrap());
        let [new, old] = ["a", "b"].map(|digit| Commit::new(digit.repeat(40)).unwrap());
        let newest =
            |there: &[&Tag]| newest(&scope, [&new, &old].into_iter(), |tag| there.contains(&tag)).cloned();
        let ((of_new, _), (of_old, fork)) = (tags(&scope, &new), tags(&scope, &old));
        assert_eq!(newest(&[&of_new, &of_old]), Some(new.clone()));
        assert_eq!(newest(&[&of_old]), Some(old.clone()));
        assert_eq!(newest(&[]), None);
        assert_eq!(newest(&[&of_new, &fork.unwrap()]), None);
    }
}
