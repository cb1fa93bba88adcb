//! What lies at a path of a stage, as far as it can be known without running anything.
//!
//! `BuildKit` knows a `COPY --from` by the content that it copies. What a copy brought there is known from the tree.
//! What a command left there is not: it is taken to change whenever the command's own key does, and to stay else.
//! A few commands that are made to leave the same as long as little of their input changes are known by what they read.

use crate::context::{Rule, Selection, TreeError, below, normal};
use crate::glob::has_wildcards;
use crate::key::{Key, Maker};
use crate::plan::{Left, Node, Origin, Planner};

/// How a node came about, for the question of what it holds.
#[derive(Debug, Clone)]
pub(crate) enum Made {
    Image {
        reference: String,
    },
    Unknown,
    Command {
        reads: Option<Reads>,
    },
    Directory {
        path: String,
    },
    /// Sources are empty where they do not say what lies where.
    Copied {
        from: Origin,
        sources: Vec<String>,
        to: String,
    },
    Merged {
        layer: usize,
    },
}

impl Made {
    /// The same among nodes of which so many come before its plan's own.
    pub(crate) fn moved(self, first: usize) -> Self {
        match self {
            Self::Merged { layer } => Self::Merged { layer: layer + first },
            Self::Copied { from: Origin::Node(node), sources, to } => {
                Self::Copied { from: Origin::Node(node.map(|node| node + first)), sources, to }
            }
            same => same,
        }
    }

    /// The layer that is put upon others.
    pub(crate) fn layer(&self) -> Option<usize> {
        match self {
            Self::Merged { layer } => Some(*layer),
            _ => None,
        }
    }
}

/// A command whose output depends on some files only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reads {
    output: String,
    directory: String,
    rules: &'static [Rule],
}

const fn content(pattern: &'static str) -> Rule {
    Rule { pattern, content: true }
}

const fn name(pattern: &'static str) -> Rule {
    Rule { pattern, content: false }
}

/// What `cargo chef prepare` reads: manifests, the lock file, and which targets there are.
const CHEF: &[Rule] = &[
    content("**/Cargo.toml"),
    content("**/Cargo.lock"),
    content("**/.cargo/config"),
    content("**/.cargo/config.toml"),
    content("**/rust-toolchain"),
    content("**/rust-toolchain.toml"),
    name("**/build.rs"),
    name("**/src/lib.rs"),
    name("**/src/main.rs"),
    name("**/src/bin/**"),
    name("**/tests/*.rs"),
    name("**/tests/*/main.rs"),
    name("**/examples/*.rs"),
    name("**/examples/*/main.rs"),
    name("**/benches/*.rs"),
    name("**/benches/*/main.rs"),
];

/// Whether a shell command is one whose output is known by what it reads. It has to stand alone.
pub(crate) fn program(command: &str, directory: &str) -> Option<Reads> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let ["cargo", "chef", "prepare", arguments @ ..] = words.as_slice() else { return None };
    let mut output = "recipe.json";
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.split_once('=') {
            None if *argument == "--recipe-path" => output = rest.next()?,
            Some(("--recipe-path", path)) => output = path,
            _ => return None,
        }
    }
    let output = if output.starts_with('/') { output.to_owned() } else { format!("{directory}/{output}") };
    Some(Reads { output: clean(&output), directory: directory.to_owned(), rules: CHEF })
}

/// A path in a stage without `.` and slashes too many. One below `?` stays there.
fn clean(path: &str) -> String {
    if path.starts_with('?') { normal(path) } else { format!("/{}", normal(path)) }
}

/// How two paths lie to each other.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Apart,
    /// The first is the second or holds it.
    Holds,
    /// The first lies in the second, at this path from there.
    Inside(&'a str),
    /// Nobody knows.
    Unclear,
}

fn place<'a>(path: &'a str, other: &str) -> Place<'a> {
    let (path, other) = (path.trim_end_matches('/'), other.trim_end_matches('/'));
    let holds = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if path.starts_with('?') != other.starts_with('?') && !path.is_empty() && !other.is_empty() {
        Place::Unclear
    } else if holds(path, other) {
        Place::Holds
    } else if holds(other, path) {
        Place::Inside(below(path, other))
    } else {
        Place::Apart
    }
}

impl Planner<'_> {
    /// The key of what lies at a path of a node. Equal keys mean equal content; different ones may, too.
    pub(crate) fn content(
        &self,
        node: Option<usize>,
        path: &str,
        only: Option<&'static [Rule]>,
    ) -> Result<Key, TreeError> {
        let path = clean(path);
        let Some(node) = node.and_then(|node| self.plan.nodes.get(node)) else {
            return Ok(Maker::new("nothing").key());
        };
        let opaque = || Maker::new("opaque").key_of(&node.key).text(&path).key();
        match &node.made {
            Made::Command { reads: Some(reads) } if reads.output == path && only.is_none() => {
                let input = self.content(node.parent, &reads.directory, Some(reads.rules))?;
                Ok(Maker::new("program").key_of(&node.operation).key_of(&input).key())
            }
            Made::Command { .. } => match self.left(node) {
                Some(left) => self.over_file(node.parent, left, &path, only),
                None => Ok(opaque()),
            },
            Made::Image { .. } | Made::Unknown => Ok(opaque()),
            Made::Directory { path: made } => {
                let before = self.content(node.parent, &path, only)?;
                Ok(match place(&path, made) {
                    // What a command reads of a directory does not depend on whether it was there before.
                    Place::Holds | Place::Unclear if only.is_none() => {
                        Maker::new("over").key_of(&before).key_of(&node.operation).key()
                    }
                    _ => before,
                })
            }
            Made::Merged { layer } => self.over(*layer, node.parent, &path, only),
            Made::Copied { .. } => {
                let number = self.plan.nodes.iter().position(|other| std::ptr::eq(other, node));
                self.over(number.unwrap_or_default(), node.parent, &path, only)
            }
        }
    }

    fn left(&self, node: &Node) -> Option<&Left> {
        let step = node.step.as_ref()?;
        self.options.left.get(&(step.stage.clone(), step.place))
    }

    /// What lies at a path after a command left one file.
    fn over_file(
        &self,
        before: Option<usize>,
        left: &Left,
        path: &str,
        only: Option<&'static [Rule]>,
    ) -> Result<Key, TreeError> {
        let file = clean(&left.path);
        if path == file {
            return Ok(Maker::new("left").key_of(&left.content).key());
        }
        let before = self.content(before, path, only)?;
        Ok(match place(path, &file) {
            Place::Apart | Place::Inside(_) => before,
            Place::Holds | Place::Unclear => {
                Maker::new("over").key_of(&before).text(&file).key_of(&left.content).key()
            }
        })
    }

    /// What lies at a path after a copy upon what was there before.
    fn over(
        &self,
        copy: usize,
        before: Option<usize>,
        path: &str,
        only: Option<&'static [Rule]>,
    ) -> Result<Key, TreeError> {
        let Some((node, Made::Copied { from, sources, to })) =
            self.plan.nodes.get(copy).map(|node| (node, &node.made))
        else {
            return self.content(before, path, only);
        };
        let below = || self.content(before, path, only);
        let copied = &node.content.unwrap_or(node.key);
        let mut over = Maker::new("over");
        over.key_of(&node.operation);
        let rest = match place(path, to) {
            Place::Apart => return below(),
            Place::Inside(rest) if !sources.is_empty() => rest,
            Place::Holds if !sources.is_empty() && only.is_some() => "",
            Place::Holds if path == to => {
                // A file that is copied to its own name takes the place of what was there.
                if let [source] = sources.as_slice()
                    && base(source) == base(path)
                    && let Some((key, false)) = self.piece(from, source, None)?
                {
                    return Ok(over.key_of(&key).key());
                }
                return Ok(over.key_of(&below()?).key_of(copied).key());
            }
            _ => return Ok(over.key_of(&below()?).key_of(copied).key()),
        };
        let mut touched = false;
        for source in sources {
            if has_wildcards(source) {
                over.key_of(copied);
                touched = true;
                continue;
            }
            match self.piece(from, source, only)? {
                Some((_, true)) => {
                    if let Some((key, is_directory)) = self.piece(from, &format!("{source}/{rest}"), only)? {
                        over.key_of(&key);
                        touched = true;
                        if !is_directory && sources.len() == 1 {
                            return Ok(over.key());
                        }
                    }
                }
                Some((key, false)) if rest.is_empty() || base(source) == rest => {
                    over.key_of(&key);
                    touched = true;
                    if !rest.is_empty() && sources.len() == 1 {
                        return Ok(over.key());
                    }
                }
                Some(_) | None => {}
            }
        }
        let below = below()?;
        Ok(if touched { over.key_of(&below).key() } else { below })
    }

    /// What a source names: its key, and whether it is a directory. Of a stage that is not known, so it may be one.
    fn piece(
        &self,
        from: &Origin,
        path: &str,
        only: Option<&'static [Rule]>,
    ) -> Result<Option<(Key, bool)>, TreeError> {
        Ok(match from {
            Origin::Context => {
                let selection = Selection { only, ..Selection::default() };
                self.context.at(path, selection)?.map(|found| (found.key, found.is_directory))
            }
            Origin::Node(node) => Some((self.content(*node, &format!("/{}", normal(path)), only)?, true)),
        })
    }
}

fn base(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lie_apart_or_in_each_other() {
        assert_eq!(place("/a/b", "/a"), Place::Inside("b"));
        assert_eq!(place("/a", "/a/b/"), Place::Holds);
        assert_eq!(place("/a", "/a/"), Place::Holds);
        assert_eq!(place("/ab", "/a"), Place::Apart);
        assert_eq!(place("/", "/a"), Place::Holds);
        assert_eq!(place("/a", "/"), Place::Inside("a"));
        assert_eq!(place("?/a", "?"), Place::Inside("a"));
        assert_eq!(place("/a", "?/a"), Place::Unclear);
    }

    #[test]
    fn a_command_is_known_by_what_it_reads_only_if_it_stands_alone() {
        let output = |command: &str| program(command, "/app").map(|reads| reads.output);
        assert_eq!(
            output("cargo chef prepare --recipe-path recipe.json").as_deref(),
            Some("/app/recipe.json")
        );
        assert_eq!(output("cargo chef prepare --recipe-path=/r.json").as_deref(), Some("/r.json"));
        assert_eq!(output("cargo chef prepare").as_deref(), Some("/app/recipe.json"));
        assert_eq!(output("cargo chef prepare && date > recipe.json"), None);
        assert_eq!(output("cargo chef cook"), None);
    }
}
