//! A build's steps as the records of a cache.
//!
//! A record is known by its digest and by those that it rests on, as `BuildKit`'s are. What a step does and rests on
//! `dockerfile-keys` says; so which steps a build runs here is what it says of a build anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use dockerfile_keys::{Key, Plan};
use sha2::{Digest as _, Sha256};

/// A record.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) digest: String,
    /// What it rests on. Of the alternatives of an input the first is part of the key.
    pub(super) inputs: Vec<Vec<Input>>,
    pub(super) key: String,
    /// The step, image or layer whose result it has; none for the content that a step reads.
    pub(super) node: Option<Key>,
}

/// What a record rests on.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub(super) selector: &'static str,
    pub(super) record: usize,
}

/// The records of a build, each after those that it rests on.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) records: Vec<Record>,
    /// The record of each node.
    by_node: BTreeMap<Key, usize>,
    /// The nodes whose results an export has.
    pub(super) exported: BTreeSet<Key>,
    /// What the target's own stages end with: all that a cache has that is not of all stages.
    pub(super) target: BTreeSet<Key>,
}

/// The digest of these bytes.
pub(super) fn digest(bytes: impl AsRef<[u8]>) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The key of a record that rests on these.
pub(super) fn key<'a>(digest_of: &str, inputs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = digest_of.to_owned();
    for (selector, input) in inputs {
        let _ = write!(text, "\n{selector}\0{input}");
    }
    digest(text)
}

impl Graph {
    /// The records of a plan.
    pub(super) fn new(plan: &Plan) -> Self {
        let mut graph = Self::default();
        for node in &plan.nodes {
            let records = |nodes: &[usize]| -> Vec<Input> {
                let of = |node: &usize| graph.by_node.get(&plan.nodes.get(*node)?.key).copied();
                nodes.iter().filter_map(of).map(|record| Input { selector: "", record }).collect()
            };
            let on = [node.parent, node.layer()].into_iter().flatten();
            let mut inputs: Vec<Vec<Input>> = on.map(|on| records(&[on])).collect();
            let sources = records(&node.inputs);
            if let Some(content) = node.content {
                let mut alternatives =
                    vec![Input { selector: "", record: graph.add(named(&content), Vec::new(), None) }];
                // Where one stage is read, that it is this stage says what is read, too.
                if let [Input { record, .. }] = sources.as_slice() {
                    alternatives.push(Input { selector: "/", record: *record });
                }
                inputs.push(alternatives);
            }
            let record = graph.add(named(&node.operation), inputs, Some(node.key));
            graph.by_node.insert(node.key, record);
        }
        let exported = plan.nodes.iter().filter(|node| node.is_exported()).map(|node| node.key);
        graph.exported = exported.collect();
        let mut next = plan.targets.first().copied();
        while let Some(node) = next.and_then(|node| plan.nodes.get(node)) {
            graph.target.insert(node.key);
            graph.target.extend(node.layer().and_then(|layer| plan.nodes.get(layer)).map(|layer| layer.key));
            next = node.parent;
        }
        graph
    }

    /// The key by which a cache knows a node.
    pub(super) fn key_of(&self, node: &Key) -> Option<&str> {
        self.by_node.get(node).and_then(|record| self.records.get(*record)).map(|record| record.key.as_str())
    }

    fn add(&mut self, digest: String, inputs: Vec<Vec<Input>>, node: Option<Key>) -> usize {
        let first = inputs.iter().filter_map(|alternatives| alternatives.first());
        let keys = first.map(|input| (input.selector, self.records[input.record].key.as_str()));
        let key = key(&digest, keys);
        if let Some(known) = self.records.iter().position(|record| record.key == key) {
            return known;
        }
        self.records.push(Record { digest, inputs, key, node });
        self.records.len() - 1
    }
}

fn named(key: &Key) -> String {
    format!("sha256:{key}")
}
