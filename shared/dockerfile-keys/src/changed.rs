//! Which files of a copy's source two contexts have differently.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::{Context, Entry, Kind, Reached, TreeError, join, normal};
use crate::glob::has_wildcards;
use crate::ignore::Matched;

/// More names than anybody reads are not collected.
const MOST: usize = 10_000;

type Place = (String, Entry, Matched);

/// The files that these sources take of two contexts and that differ, by their paths in the context.
pub fn changed_files(
    before: &Context<'_>,
    after: &Context<'_>,
    sources: &[String],
) -> Result<BTreeSet<String>, TreeError> {
    let mut changed = BTreeSet::new();
    for source in sources {
        let mut paths = BTreeSet::new();
        for context in [before, after] {
            if has_wildcards(&normal(source)) {
                context.matching(source, &mut paths)?;
            } else {
                paths.insert(normal(source));
            }
        }
        for path in paths {
            compare((before, before.place(&path)?), (after, after.place(&path)?), &mut changed)?;
        }
    }
    Ok(changed)
}

fn compare(
    (before, was): (&Context<'_>, Option<Place>),
    (after, is): (&Context<'_>, Option<Place>),
    changed: &mut BTreeSet<String>,
) -> Result<(), TreeError> {
    let same_rules = before.ignore.fingerprint() == after.ignore.fingerprint();
    if let (Some((was_at, was, _)), Some((is_at, is, _))) = (&was, &is)
        && (was.kind, was.id) == (is.kind, is.id)
        && (is.kind != Kind::Directory || same_rules && was_at == is_at && before.is_same_at(after, is_at))
    {
        return Ok(());
    }
    let is_directory = |place: &Option<Place>| place.as_ref().is_none_or(|it| it.1.kind == Kind::Directory);
    let path = is.as_ref().or(was.as_ref()).map(|(path, ..)| path.clone()).unwrap_or_default();
    if !is_directory(&was) || !is_directory(&is) {
        if changed.len() < MOST {
            changed.insert(path);
        }
        // What a directory held that took a file's place, or left it, is told by the file.
        return Ok(());
    }
    let mut was = was.map(|place| before.inside(&place)).transpose()?.unwrap_or_default();
    let is = is.map(|place| after.inside(&place)).transpose()?.unwrap_or_default();
    for (name, place) in is {
        compare((before, was.remove(&name)), (after, Some(place)), changed)?;
    }
    for place in was.into_values() {
        compare((before, Some(place)), (after, None), changed)?;
    }
    Ok(())
}

impl Context<'_> {
    /// Whether a directory holds the same where its entries are the same: at the root `.git` may be another.
    fn is_same_at(&self, other: &Self, path: &str) -> bool {
        !path.is_empty() || self.git_directory == other.git_directory
    }

    /// What lies at a path, through links.
    fn place(&self, path: &str) -> Result<Option<Place>, TreeError> {
        let mut path = normal(path);
        for _ in 0..crate::context::LINKS {
            match self.step_to(&path)? {
                Reached::Nothing => return Ok(None),
                Reached::Moved(to) => path = to,
                Reached::Entry(entry, matched) => return Ok(Some((path, entry, matched))),
            }
        }
        Ok(None)
    }

    fn inside(&self, (path, entry, matched): &Place) -> Result<BTreeMap<Box<str>, Place>, TreeError> {
        let mut inside = BTreeMap::new();
        for entry in self.entries(path, &entry.id)?.iter() {
            let mut at = path.clone();
            join(&mut at, &entry.name);
            let (ignored, matched) = self.ignore.ignores(&at, matched);
            if !ignored || (entry.kind == Kind::Directory && self.ignore.takes_back()) {
                inside.insert(entry.name.clone(), (at, entry.clone(), matched));
            }
        }
        Ok(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ignore::Ignore;
    use crate::memory::Memory;
    use crate::testing::Files;

    fn changed(before: &Files, after: &Files, ignore: &str, source: &str) -> Vec<String> {
        let (ignore, memory) = (Ignore::parse(ignore).unwrap(), Memory::default());
        let [before, after] = [before, after].map(|files| Context {
            tree: files,
            root: files.root(),
            ignore: &ignore,
            memory: &memory,
            git_directory: None,
        });
        changed_files(&before, &after, &[source.to_owned()]).unwrap().into_iter().collect()
    }

    #[test]
    fn only_what_a_source_takes_is_named() {
        let before =
            Files::new(&[("src/a", "1"), ("src/b", "1"), ("src/x.log", "1"), ("top", "1"), ("d/f", "1")]);
        let after =
            Files::new(&[("src/a", "2"), ("src/c", "1"), ("src/x.log", "2"), ("top", "2"), ("d", "1")]);
        assert_eq!(changed(&before, &after, "**/*.log", "src"), ["src/a", "src/b", "src/c"]);
        assert_eq!(changed(&before, &after, "", "src/*.log"), ["src/x.log"]);
        assert_eq!(changed(&before, &after, "src", "."), ["d", "top"]);
        assert_eq!(changed(&before, &after, "", "./top"), ["top"]);
        assert!(changed(&before, &before, "", ".").is_empty());
    }
}
