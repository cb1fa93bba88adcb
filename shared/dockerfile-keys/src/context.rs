//! The build context: a directory of a git tree without what is ignored, and keys of what a `COPY` takes of it.

use std::rc::Rc;

use crate::glob::{Glob, has_wildcards};
use crate::ignore::{Ignore, Matched};
use crate::key::{Key, Maker};
use crate::memory::Memory;

/// The id of a git object. One of 20 bytes is filled up with zeros.
pub type Id = [u8; 32];

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Box<str>,
    /// What it is.
    pub kind: Kind,
    /// The id of its content.
    pub id: Id,
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory; its id names its entries.
    Directory,
    /// A file.
    File,
    /// A file that can be executed.
    Executable,
    /// A symbolic link; its content is the path to which it points.
    Link,
    /// Another repository's commit.
    Submodule,
}

/// A tree cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("a git object cannot be read")]
pub struct TreeError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Where trees and files come from.
pub trait Tree {
    /// The entries of a directory. They are asked for again and again: the implementation remembers them.
    fn entries(&self, directory: &Id) -> Result<Rc<[Entry]>, TreeError>;
    /// The content of a file or symbolic link.
    fn read(&self, file: &Id) -> Result<Vec<u8>, TreeError>;
}

/// Looks an entry up by its path from a directory, without following links.
pub fn find(tree: &dyn Tree, directory: &Id, path: &str) -> Result<Option<Entry>, TreeError> {
    let mut found = Entry { name: "".into(), kind: Kind::Directory, id: *directory };
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if found.kind != Kind::Directory {
            return Ok(None);
        }
        let entries = tree.entries(&found.id)?;
        match entries.iter().find(|entry| &*entry.name == part) {
            Some(entry) => found = entry.clone(),
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}

/// A build context.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Where it is read from.
    pub tree: &'a dyn Tree,
    /// The context's directory.
    pub root: Id,
    /// What is left out of it.
    pub ignore: &'a Ignore,
    /// What was computed before.
    pub memory: &'a Memory,
    /// The key of the directory `.git` where the context has one, as a clone does. No two clones have the same
    /// (it holds times), so the key differs for every build.
    pub git_directory: Option<Key>,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("root", &Key::from(self.root)).finish_non_exhaustive()
    }
}

/// What is taken of a context's path.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Selection<'a> {
    /// `COPY --exclude`: patterns that count from the path.
    pub(crate) exclude: Option<&'a Ignore>,
    /// `COPY --parents`: a pattern that counts from the context's root.
    pub(crate) include: Option<&'a Glob>,
    /// Only what these rules name. They count from the context's root.
    pub(crate) only: Option<&'static [Rule]>,
}

/// Files that a program reads, or whose mere names it reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// A pattern of a `.dockerignore`'s kind.
    pub(crate) pattern: &'static str,
    /// Whether the content counts, and not the name alone.
    pub(crate) content: bool,
}

/// What is found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) key: Key,
    pub(crate) is_directory: bool,
}

/// How many links are followed before they count as a circle.
pub(crate) const LINKS: usize = 40;

impl Context<'_> {
    /// What a source of a `COPY` names: a path or a pattern. Nothing if it is not there.
    pub(crate) fn source(&self, source: &str, selection: Selection<'_>) -> Result<Option<Found>, TreeError> {
        let path = normal(source);
        if !has_wildcards(&path) {
            return self.at(&path, selection);
        }
        let mut matches = Vec::new();
        if !self.matching(&path, &mut matches)? {
            return Ok(None);
        }
        // Names count, too, and no file that matches is no error: nothing is copied.
        let mut maker = Maker::new("files");
        for at in &matches {
            if let Some(found) = self.at(at, selection)? {
                maker.text(at.rsplit('/').next().unwrap_or(at)).key_of(&found.key);
            }
        }
        Ok(Some(Found { key: maker.key(), is_directory: false }))
    }

    /// Collects the paths that match a pattern, if it is one.
    pub(crate) fn matching(&self, pattern: &str, into: &mut impl Extend<String>) -> Result<bool, TreeError> {
        let path = normal(pattern);
        let Some(glob) = Glob::path(&path) else { return Ok(false) };
        self.expand("", &self.root_entry(), &Matched::default(), &path, &mut |at| {
            into.extend(Some(at.to_owned()).filter(|at| glob.matches(at)));
        })?;
        Ok(true)
    }

    /// What lies at a path without wildcards. Links on the way are followed.
    pub(crate) fn at(&self, path: &str, selection: Selection<'_>) -> Result<Option<Found>, TreeError> {
        let mut path = normal(path);
        for _ in 0..LINKS {
            match self.step_to(&path)? {
                Reached::Nothing => return Ok(None),
                Reached::Moved(to) => path = to,
                Reached::Entry(entry, matched) => return self.found(&path, &entry, &matched, selection),
            }
        }
        Ok(None)
    }

    fn root_entry(&self) -> Entry {
        Entry { name: "".into(), kind: Kind::Directory, id: self.root }
    }

    /// The entries of a directory, and `.git` at the root.
    pub(crate) fn entries(&self, path: &str, directory: &Id) -> Result<Rc<[Entry]>, TreeError> {
        let entries = self.tree.entries(directory)?;
        let Some(git) = self.git_directory.filter(|_| path.is_empty()) else { return Ok(entries) };
        let git = Entry { name: ".git".into(), kind: Kind::Submodule, id: *git.bytes() };
        Ok(entries.iter().cloned().chain([git]).collect())
    }

    pub(crate) fn step_to(&self, path: &str) -> Result<Reached, TreeError> {
        let mut entry = self.root_entry();
        let mut at = String::new();
        let mut matched = Matched::default();
        let mut ignored = false;
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        while let Some(part) = parts.next() {
            if entry.kind != Kind::Directory {
                return Ok(Reached::Nothing);
            }
            let entries = self.entries(&at, &entry.id)?;
            let Some(next) = entries.iter().find(|entry| &*entry.name == part) else {
                return Ok(Reached::Nothing);
            };
            let parent = at.clone();
            join(&mut at, part);
            (ignored, matched) = self.ignore.ignores(&at, &matched);
            if next.kind == Kind::Link && !ignored {
                let to = String::from_utf8_lossy(&self.tree.read(&next.id)?).into_owned();
                let mut target = if to.starts_with('/') { String::new() } else { parent };
                join(&mut target, &to);
                for rest in parts {
                    join(&mut target, rest);
                }
                return Ok(Reached::Moved(normal(&target)));
            }
            entry = next.clone();
        }
        // A directory that is ignored is there if something in it is not.
        if ignored && (entry.kind != Kind::Directory || !self.ignore.takes_back()) {
            return Ok(Reached::Nothing);
        }
        if ignored && self.directory(&at, &entry.id, &matched, Selection::default(), &at)?.is_none() {
            return Ok(Reached::Nothing);
        }
        Ok(Reached::Entry(entry, matched))
    }

    fn found(
        &self,
        path: &str,
        entry: &Entry,
        matched: &Matched,
        selection: Selection<'_>,
    ) -> Result<Option<Found>, TreeError> {
        if entry.kind != Kind::Directory {
            let key = selection.only.map_or_else(|| Some(file(entry)), |rules| ruled(rules, path, entry));
            return Ok(key.map(|key| Found { key, is_directory: false }));
        }
        let key = self.directory(path, &entry.id, matched, selection, path)?;
        let key = key.unwrap_or_else(|| Maker::new("directory").key());
        Ok(Some(Found { key, is_directory: true }))
    }

    /// The key of a directory by what is selected in it; nothing if there is nothing in it and it is selected only for
    /// what lies in it. `from` is the path from which excludes count.
    fn directory(
        &self,
        path: &str,
        id: &Id,
        matched: &Matched,
        selection: Selection<'_>,
        from: &str,
    ) -> Result<Option<Key>, TreeError> {
        let memo = self.memo(path, id, selection, from);
        let is_root = self.git_directory.is_some() && path.is_empty();
        if !is_root && let Some(known) = self.memory.get(&memo) {
            return Ok(known.key);
        }
        let mut maker = Maker::new("directory");
        let mut is_empty = true;
        for entry in self.entries(path, id)?.iter() {
            let mut at = path.to_owned();
            join(&mut at, &entry.name);
            let (ignored, inside) = self.ignore.ignores(&at, matched);
            let inner = below(&at, from);
            let excluded = selection.exclude.is_some_and(|exclude| exclude.is_ignored(inner));
            let takes_back = selection.exclude.is_some_and(Ignore::takes_back);
            if (ignored && !self.ignore.takes_back()) || (excluded && !takes_back) {
                continue;
            }
            let chosen = selection.include.is_none_or(|glob| prefixes(&at).any(|p| glob.matches(p)));
            let key = if entry.kind == Kind::Directory {
                let listed = self.directory(&at, &entry.id, &inside, selection, from)?;
                // An empty directory counts where the directory itself is taken.
                let whole = !ignored && !excluded && chosen && selection.only.is_none();
                listed.or_else(|| whole.then(|| Maker::new("directory").key()))
            } else if ignored || excluded || !chosen {
                None
            } else {
                match selection.only {
                    None => Some(file(entry)),
                    Some(rules) => ruled(rules, &at, entry),
                }
            };
            if let Some(key) = key {
                maker.text(&entry.name).key_of(&key);
                is_empty = false;
            }
        }
        let key = (!is_empty).then(|| maker.key());
        if !is_root {
            self.memory.put(memo, key);
        }
        Ok(key)
    }

    fn memo(&self, path: &str, id: &Id, selection: Selection<'_>, from: &str) -> Key {
        let mut memo = Maker::new("memo");
        memo.bytes(id).key_of(&self.ignore.fingerprint());
        let is_plain = selection.exclude.is_none() && selection.include.is_none() && selection.only.is_none();
        // Without patterns a directory is the same wherever it lies.
        if !(is_plain && self.ignore.is_empty()) {
            memo.text(path);
        }
        if let Some(exclude) = selection.exclude {
            memo.text("exclude").text(from).key_of(&exclude.fingerprint());
        }
        if let Some(include) = selection.include {
            memo.text("include").text(&format!("{include:?}"));
        }
        if let Some(rules) = selection.only {
            memo.text("only").text(path).text(&format!("{rules:?}"));
        }
        memo.key()
    }

    /// Calls a function with every path that may match a pattern, and goes into no directory deeper than the pattern.
    fn expand(
        &self,
        path: &str,
        entry: &Entry,
        matched: &Matched,
        pattern: &str,
        each: &mut dyn FnMut(&str),
    ) -> Result<(), TreeError> {
        let depth = if path.is_empty() { 0 } else { path.split('/').count() };
        let Some(part) = pattern.split('/').nth(depth) else { return Ok(()) };
        let glob = Glob::path(part);
        for entry in self.entries(path, &entry.id)?.iter() {
            if glob.as_ref().is_some_and(|glob| !glob.matches(&entry.name)) {
                continue;
            }
            let mut at = path.to_owned();
            join(&mut at, &entry.name);
            let (ignored, inside) = self.ignore.ignores(&at, matched);
            if ignored && !(entry.kind == Kind::Directory && self.ignore.takes_back()) {
                continue;
            }
            each(&at);
            if entry.kind == Kind::Directory {
                self.expand(&at, entry, &inside, pattern, each)?;
            }
        }
        Ok(())
    }
}

pub(crate) enum Reached {
    Nothing,
    /// A link points elsewhere.
    Moved(String),
    Entry(Entry, Matched),
}

fn file(entry: &Entry) -> Key {
    let kind = match entry.kind {
        Kind::Directory => "directory",
        Kind::File => "file",
        Kind::Executable => "executable",
        Kind::Link => "link",
        Kind::Submodule => "submodule",
    };
    Maker::new(kind).bytes(&entry.id).key()
}

/// The key of a file under rules: of its content or its name, or none.
fn ruled(rules: &'static [Rule], path: &str, entry: &Entry) -> Option<Key> {
    let matches = |rule: &&Rule| Glob::ignore(rule.pattern).is_some_and(|glob| glob.matches(path));
    let mut fitting = rules.iter().filter(matches).peekable();
    fitting.peek()?;
    Some(if fitting.any(|rule| rule.content) { file(entry) } else { Maker::new("name").key() })
}

pub(crate) fn join(path: &mut String, part: &str) {
    if !path.is_empty() {
        path.push('/');
    }
    path.push_str(part);
}

fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| at).chain([path.len()]).map(|end| path.split_at(end).0)
}

/// A path as it is seen from a directory above it.
pub(crate) fn below<'a>(path: &'a str, from: &str) -> &'a str {
    path.strip_prefix(from).unwrap_or(path).trim_start_matches('/')
}

/// A path without `.`, `..` and slashes too many. What would leave the root stays at it.
#[must_use]
pub fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Files;

    fn key_with(files: &Files, ignore: &str, source: &str, selection: Selection<'_>) -> Option<Key> {
        let ignore = Ignore::parse(ignore).unwrap();
        let (memory, git) = (Memory::default(), None);
        let context =
            Context { tree: files, root: files.root(), ignore: &ignore, memory: &memory, git_directory: git };
        context.source(source, selection).unwrap().map(|found| found.key)
    }

    fn key(files: &Files, ignore: &str, source: &str) -> Option<Key> {
        key_with(files, ignore, source, Selection::default())
    }

    #[test]
    fn a_source_is_known_by_its_content_and_not_by_its_place() {
        let files = Files::new(&[("a/x", "1"), ("b/x", "1"), ("c/x", "2"), ("d/y", "1")]);
        assert_eq!(key(&files, "", "a"), key(&files, "", "b"));
        assert_eq!(key(&files, "", "/a/./"), key(&files, "", "c/../a"));
        assert_ne!(key(&files, "", "a"), key(&files, "", "c"));
        assert_ne!(key(&files, "", "a"), key(&files, "", "d"));
        assert_eq!(key(&files, "", "e"), None);
        assert_eq!(key(&files, "", "a/x/y"), None);
    }

    #[test]
    fn what_is_ignored_changes_nothing() {
        let before = Files::new(&[("src/a", "1"), ("src/t/x.snap", "1"), ("README.md", "1")]);
        let after = Files::new(&[("src/a", "1"), ("src/t/x.snap", "2"), ("README.md", "2")]);
        let ignore = "*.md\n**/*.snap";
        assert_eq!(key(&before, ignore, "."), key(&after, ignore, "."));
        assert_ne!(key(&before, "*.md", "."), key(&after, "*.md", "."));
        assert_eq!(key(&before, ignore, "README.md"), None);
        assert!(key(&before, "src\n!src/a", "src").is_some());
        assert_eq!(key(&before, "src\n!lib", "src"), None);
    }

    #[test]
    fn a_directory_that_is_emptied_by_the_ignored_is_still_there() {
        let with = Files::new(&[("a", "1"), ("logs/x.log", "1")]);
        let without = Files::new(&[("a", "1")]);
        assert_ne!(key(&with, "**/*.log", "."), key(&without, "**/*.log", "."));
        assert_eq!(key(&with, "logs", "."), key(&without, "logs", "."));
    }

    #[test]
    fn wildcards_take_names_and_contents() {
        let files = Files::new(&[("package.json", "1"), ("package-lock.json", "2"), ("x/package.json", "3")]);
        let changed =
            Files::new(&[("package.json", "1"), ("package-lock.json", "9"), ("x/package.json", "3")]);
        let elsewhere =
            Files::new(&[("package.json", "1"), ("package-lock.json", "2"), ("x/package.json", "9")]);
        assert_ne!(key(&files, "", "package*.json"), key(&changed, "", "package*.json"));
        assert_eq!(key(&files, "", "package*.json"), key(&elsewhere, "", "package*.json"));
        assert_ne!(key(&files, "", "*/package.json"), key(&elsewhere, "", "*/package.json"));
        let one = |name: &str| key(&Files::new(&[(name, "1")]), "", "p/*");
        assert_ne!(one("p/a/x"), one("p/b/x"));
        // A pattern without a match copies nothing, and is no error.
        assert!(key(&files, "", "*.lock").is_some());
    }

    #[test]
    fn links_are_followed_at_a_source_and_kept_below_it() {
        let mut files = Files::new(&[("real/x", "1"), ("other/x", "1"), ("d/y", "1")]);
        files.link("link", "real");
        files.link("d/up", "../real/x");
        files.link("circle", "circle");
        assert_eq!(key(&files, "", "link"), key(&files, "", "real"));
        assert_eq!(key(&files, "", "link/x"), key(&files, "", "other/x"));
        assert_eq!(key(&files, "", "d/up"), key(&files, "", "real/x"));
        assert_eq!(key(&files, "", "circle"), None);
        let before = key(&files, "", "d");
        files.file("real/x", "2");
        assert_eq!(key(&files, "", "d"), before);
    }

    #[test]
    fn the_bit_to_execute_counts() {
        let mut files = Files::new(&[("run.sh", "1")]);
        let before = key(&files, "", "run.sh");
        files.executable("run.sh", "1");
        assert_ne!(key(&files, "", "run.sh"), before);
    }

    #[test]
    fn excludes_count_from_the_source() {
        let before = Files::new(&[("src/a", "1"), ("src/docs/x", "1")]);
        let after = Files::new(&[("src/a", "1"), ("src/docs/x", "2")]);
        let docs = Ignore::excludes(["docs"].into_iter()).unwrap();
        let selection = Selection { exclude: Some(&docs), ..Selection::default() };
        assert_eq!(key_with(&before, "", "src", selection), key_with(&after, "", "src", selection));
        assert_ne!(key_with(&before, "", ".", selection), key_with(&after, "", ".", selection));
    }

    #[test]
    fn the_directory_of_git_is_in_the_context_of_a_clone() {
        let files = Files::new(&[("a/b", "1"), (".dockerignore", "x")]);
        let key = |ignore: &str, build: u8, source: &str| {
            let ignore = Ignore::parse(ignore).unwrap();
            let memory = Memory::default();
            let git_directory = Some(Key::from([build; 32]));
            let context =
                Context { tree: &files, root: files.root(), ignore: &ignore, memory: &memory, git_directory };
            context.source(source, Selection::default()).unwrap().map(|found| found.key)
        };
        assert_ne!(key("", 1, "."), key("", 2, "."));
        assert_eq!(key(".git", 1, "."), key(".git", 2, "."));
        assert_eq!(key("", 1, "a"), key("", 2, "a"));
        assert_ne!(key("", 1, ".git/HEAD"), Some(Key::from([0; 32])));
    }
}
