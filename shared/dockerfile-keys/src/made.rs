//! How what is in a stage came about.

use crate::context::{Rule, normal};

/// Where an instruction takes files from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Context,
    /// A stage's files, or none if it is empty.
    Node(Option<usize>),
}

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
    pub(crate) output: String,
    pub(crate) directory: String,
    pub(crate) rules: &'static [Rule],
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
pub(crate) fn clean(path: &str) -> String {
    if path.starts_with('?') { normal(path) } else { format!("/{}", normal(path)) }
}
