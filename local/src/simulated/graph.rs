//! What a build depends on, as a graph of cache keys.
//!
//! A key is the digest of an operation and the keys of its inputs. It depends on the definition and on the files that
//! are copied only, so all keys are known before anything runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::command::Build;
use super::context::{Context, ContextError};
use super::dockerfile::{Base, Dockerfile, From, Kind};

/// An operation.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) digest: String,
    /// What the operation's layer rests on; also its first input.
    pub(super) parent: Option<usize>,
    pub(super) inputs: Vec<Input>,
    pub(super) key: String,
    pub(super) what: What,
}

/// What an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// An image that a stage starts from.
    Image,
    /// Files of the context.
    Files,
    /// A step: its stage and its place there.
    Step(usize, usize),
}

/// What an operation needs.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub(super) selector: String,
    pub(super) node: usize,
}

/// The operations, each after its inputs.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// The last operation of each stage that the target needs.
    pub(super) ends: BTreeMap<usize, Option<usize>>,
    /// The image that a stage starts from.
    pub(super) images: BTreeMap<usize, usize>,
    /// The operation that the target ends with.
    pub(super) target: Option<usize>,
}

/// The digest of these bytes.
pub(super) fn digest(bytes: impl AsRef<[u8]>) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The key of an operation with these inputs.
pub(super) fn key<'a>(digest_of: &str, inputs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = digest_of.to_owned();
    for (selector, input) in inputs {
        let _ = write!(text, "\n{selector}\0{input}");
    }
    digest(text)
}

impl Graph {
    /// The graph of a target and of what it needs.
    pub(super) fn new(
        file: &Dockerfile,
        target: usize,
        build: &Build,
        context: &Context,
    ) -> Result<Self, ContextError> {
        let mut graph =
            Self { nodes: Vec::new(), ends: BTreeMap::new(), images: BTreeMap::new(), target: None };
        let needed = needed(file, target);
        for (number, stage) in file.stages.iter().enumerate().filter(|(number, _)| needed.contains(number)) {
            let mut last = match &stage.base {
                Base::Scratch => None,
                Base::Stage(other) => graph.ends.get(other).copied().flatten(),
                Base::Image(image) => {
                    let node = graph.image(image, build);
                    graph.images.insert(number, node);
                    Some(node)
                }
            };
            for (place, step) in stage.steps.iter().enumerate() {
                let parent = last.map(|node| Input { selector: String::new(), node });
                let mut inputs: Vec<Input> = parent.into_iter().collect();
                let operation = match &step.kind {
                    Kind::Workdir => step.text.clone(),
                    Kind::Run { command, variables } => {
                        format!("RUN {command}\n{variables:?}\nnetwork {:?}", build.network)
                    }
                    Kind::Copy { from, sources, flags, to } => {
                        let source = match from {
                            From::Stage(other) => graph.ends.get(other).copied().flatten(),
                            From::Image(image) => Some(graph.image(image, build)),
                            From::Context => Some(graph.files(context.digest(sources)?)),
                        };
                        let selector = if *from == From::Context { String::new() } else { sources.join(" ") };
                        inputs.extend(source.map(|node| Input { selector, node }));
                        format!("COPY {flags:?} {to}")
                    }
                };
                last = Some(graph.add(digest(operation), last, inputs, What::Step(number, place)));
            }
            graph.ends.insert(number, last);
        }
        graph.target = graph.ends.get(&target).copied().flatten();
        Ok(graph)
    }

    fn image(&mut self, image: &str, build: &Build) -> usize {
        let platform = build.platform.as_deref().unwrap_or("this platform");
        self.add(digest(format!("image {image} for {platform}")), None, Vec::new(), What::Image)
    }

    fn files(&mut self, content: String) -> usize {
        self.add(content, None, Vec::new(), What::Files)
    }

    fn add(&mut self, digest: String, parent: Option<usize>, inputs: Vec<Input>, what: What) -> usize {
        let keys = inputs.iter().map(|i| (i.selector.as_str(), self.nodes[i.node].key.as_str()));
        let key = key(&digest, keys);
        // A step keeps its place in its stage, even if another stage has the same.
        let same = |node: &Node| node.key == key && node.what == what;
        if let Some(known) = self.nodes.iter().position(same) {
            return known;
        }
        self.nodes.push(Node { digest, parent, inputs, key, what });
        self.nodes.len() - 1
    }
}

/// A stage and all that it needs.
fn needed(file: &Dockerfile, target: usize) -> Vec<usize> {
    let mut needed = vec![target];
    let mut next = 0;
    while let Some(&number) = needed.get(next) {
        let stage = &file.stages[number];
        let copied = stage.steps.iter().filter_map(|step| match step.kind {
            Kind::Copy { from: From::Stage(other), .. } => Some(other),
            _ => None,
        });
        let base = if let Base::Stage(other) = stage.base { Some(other) } else { None };
        for other in base.into_iter().chain(copied) {
            if !needed.contains(&other) {
                needed.push(other);
            }
        }
        next += 1;
    }
    needed
}
