//! Why a step was not found: what the caches that a build was given hold, against what the build looked for.
//!
//! A build's own export says what it looked for: its records are keys. A record that has no match in the
//! given caches was not to be found there; how near the nearest one comes says what differs: an input's
//! content, the parent, or the operation itself. Commits then name the change. What neither proves is
//! [`Cause::Unknown`].

use std::collections::{BTreeMap, BTreeSet, HashSet};

use buildkit_cache::{Cache, Lookup};
use dockerfile_keys::{Key, Node, Plan, StepKind, cache_mounts, image_record, parse};
use jiff::Timestamp;

use crate::align::{Known, align};
use crate::cause::{Cause, EmptyMount, Evidence, Given, Miss, Relation, Report, Rule};
use crate::llb::Command;
use crate::log::{Build, StepName, Vertex};

/// Finds the cause of each miss.
#[must_use]
pub fn explain(evidence: &Evidence<'_>) -> Report {
    let mut report = Report::default();
    let explainer = Explainer::new(evidence);
    let ran = evidence.build.ran();
    // In the order of the Dockerfile: a log tells of what was asked for first.
    let mut ordered: Vec<_> =
        ran.iter().map(|(vertex, name)| (node_of(evidence.plan, name), vertex, name)).collect();
    ordered.sort_by_key(|(node, ..)| node.unwrap_or(usize::MAX));
    report.misses.extend(ordered.iter().map(|(node, vertex, _)| explainer.miss(vertex, *node)));
    let steps = evidence.plan.nodes.iter().filter(|node| node.step.is_some());
    let keys: HashSet<Key> = steps.map(|node| node.key).collect();
    report.reused = keys.len().saturating_sub(ran.len());
    for miss in &report.misses {
        let seconds = miss.seconds.unwrap_or_default();
        match miss.is_unavoidable {
            Some(true) => report.unavoidable_seconds += seconds,
            _ => report.lost_seconds += seconds,
        }
    }
    report
}

/// A cache beside the export: for each of the export's records those that match it there.
struct Side {
    records: Vec<Lookup>,
    matching: Vec<Vec<usize>>,
}

impl Side {
    fn new(export: &Cache, cache: &Cache) -> Self {
        Self { records: cache.lookups(), matching: export.matching(cache).unwrap_or_default() }
    }

    fn matching(&self, record: usize) -> &[usize] {
        self.matching.get(record).map_or(&[], Vec::as_slice)
    }

    /// Whether a step of this record is found here.
    fn has_result(&self, record: usize) -> bool {
        self.matching(record).iter().any(|other| self.records.get(*other).is_some_and(|it| it.has_result))
    }

    /// Whether an input of a record of the export is met by that of a record here.
    fn input_matches(&self, ours: &Lookup, theirs: &Lookup, input: usize) -> bool {
        let (Some(ours), Some(theirs)) = (ours.inputs.get(input), theirs.inputs.get(input)) else {
            return false;
        };
        ours.iter().any(|our| {
            let same = self.matching(our.record);
            theirs.iter().any(|their| our.selector == their.selector && same.contains(&their.record))
        })
    }
}

struct Explainer<'a> {
    evidence: &'a Evidence<'a>,
    export: Vec<Lookup>,
    /// For each node its record.
    records: Vec<Option<usize>>,
    known: Vec<Known>,
    /// For each node the vertex that ran it.
    ran: BTreeMap<usize, &'a Vertex>,
    /// For each given cache what it holds, and what kept the build from importing it.
    given: Vec<(Option<Side>, Option<String>)>,
    elsewhere: Vec<Side>,
    /// For each node the command that provenance has for it.
    commands: BTreeMap<usize, &'a Command>,
    past_keys: HashSet<Key>,
}

/// The newest change of a step among the commits looked at.
struct Change {
    commit: String,
    /// The commit before it, and the step there.
    before: Option<(String, usize, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Content,
    Operation,
}

/// The node of a step by its name in the log.
fn node_of(plan: &Plan, name: &StepName<'_>) -> Option<usize> {
    plan.nodes.iter().position(|node| {
        node.step.as_ref().is_some_and(|step| {
            step.place == name.place
                && (name.stage().is_empty() || step.stage.eq_ignore_ascii_case(name.stage()))
        })
    })
}

impl<'a> Explainer<'a> {
    fn new(evidence: &'a Evidence<'a>) -> Self {
        let Evidence { build, plan, .. } = *evidence;
        let export = evidence.export.map(Cache::lookups).unwrap_or_default();
        let mut ran = BTreeMap::new();
        for (vertex, name) in build.ran() {
            let Some(node) = node_of(plan, &name) else { continue };
            // Stages that share a step have one vertex for it.
            let key = plan.nodes.get(node).map(|node| node.key);
            let same = plan.nodes.iter().enumerate().filter(|(_, node)| Some(node.key) == key);
            ran.extend(same.map(|(node, _)| (node, vertex)));
        }
        let empty = Cache::default();
        let whole = evidence.export.unwrap_or(&empty);
        let given: Vec<(Option<Side>, Option<String>)> = evidence
            .given
            .iter()
            .map(|given| {
                let side = given.cache.as_ref().map(|cache| Side::new(whole, cache));
                (side, not_imported(build, given))
            })
            .collect();
        let elsewhere = evidence.elsewhere.iter().map(|it| Side::new(whole, &it.cache)).collect();
        let commands = commands(evidence, &ran);
        let mut known = vec![Known::default(); plan.nodes.len()];
        let images = build.images();
        for (number, (node, known)) in plan.nodes.iter().zip(&mut known).enumerate() {
            known.digest.clone_from(&node.record);
            if let Some(command) = commands.get(&number) {
                (known.digest, known.is_exact) = (Some(command.record()), true);
            }
            if let Some(reference) = node.image() {
                let digest =
                    images.iter().find(|(name, _)| is_image(name, reference)).map(|(_, digest)| digest);
                known.digest = digest.and_then(|digest| image_record(digest, evidence.platform));
            }
            known.ran = ran.contains_key(&number);
            known.span = ran.get(&number).and_then(|vertex| vertex.span);
            if node.step.is_some() && !ran.contains_key(&number) {
                let found = (0..export.len()).filter(|record| {
                    given.iter().any(|(side, _)| side.as_ref().is_some_and(|it| it.has_result(*record)))
                });
                known.found_in = Some(found.collect());
            }
        }
        let records = align(plan, &export, &known);
        for (known, record) in known.iter_mut().zip(&records) {
            let digest = record.and_then(|record| export.get(record)).map(|record| &record.digest);
            known.is_exact &= digest.is_some() && digest == known.digest.as_ref();
        }
        let past_keys = evidence.past.iter().flat_map(|past| &past.plan.nodes).map(|node| node.key).collect();
        Self { evidence, export, records, known, ran, given, elsewhere, commands, past_keys }
    }

    fn node(&self, node: usize) -> Option<&'a Node> {
        self.evidence.plan.nodes.get(node)
    }

    fn is_in_past(&self, node: usize) -> bool {
        self.node(node).is_some_and(|node| self.past_keys.contains(&node.key))
    }

    /// Whether any cache looked at has a step's result.
    fn is_anywhere(&self, node: usize) -> bool {
        let Some(record) = self.records.get(node).copied().flatten() else { return false };
        let given = self.given.iter().filter_map(|(side, _)| side.as_ref());
        let older = self.export.get(record).is_some_and(|lookup| self.elsewhere(record, lookup).is_some());
        older || given.into_iter().any(|side| side.has_result(record))
    }

    /// Whether the keys of a step and of all that it rests on are known from commits.
    fn is_understood(&self, node: usize) -> bool {
        let mut open = vec![node];
        let mut seen = BTreeSet::new();
        while let Some(number) = open.pop() {
            let Some(node) = self.node(number).filter(|_| seen.insert(number)) else { continue };
            if node.step.as_ref().is_some_and(|step| step.kind == StepKind::Unknown) {
                return false;
            }
            open.extend(node.rests_on());
        }
        true
    }

    fn miss(&self, vertex: &Vertex, node: Option<usize>) -> Miss {
        let mut miss = Miss {
            step: vertex.name.clone(),
            seconds: vertex.seconds,
            is_first: true,
            cause: Cause::Unknown { would_tell: "the Dockerfile of the commit that was built".to_owned() },
            empty_mounts: Vec::new(),
            is_exact: false,
            is_unavoidable: None,
        };
        let Some(node) = node else { return miss };
        miss.cause = self.cause(node);
        miss.empty_mounts = self.empty_mounts(node);
        miss.is_first = miss.cause.follows().is_none();
        miss.is_exact = self.known.get(node).is_some_and(|known| known.is_exact);
        let is_known = !self.evidence.past.is_empty() && self.is_understood(node);
        miss.is_unavoidable = is_known.then(|| !self.is_in_past(node) && !self.is_anywhere(node));
        miss
    }

    /// The cache mounts of a command that the build was not given.
    fn empty_mounts(&self, node: usize) -> Vec<EmptyMount> {
        let step = self.node(node).and_then(|node| node.step.as_ref());
        let Some(step) = step.filter(|step| step.kind == StepKind::Run && !self.evidence.mounts.is_empty())
        else {
            return Vec::new();
        };
        let alone = parse(&format!("FROM scratch\n{}\n", step.text));
        let mounts = alone.map(|file| cache_mounts(&file)).unwrap_or_default();
        let reason =
            |id: &str| self.evidence.mounts.iter().find(|(of, _)| of == id).map(|(_, why)| why.clone());
        mounts.into_iter().filter_map(|it| Some(EmptyMount { why: reason(&it.id)?, id: it.id })).collect()
    }

    fn cause(&self, node: usize) -> Cause {
        let Some(of) = self.node(node) else { return unknown("the log of this build alone") };
        let cause = self.cause_of(node, of);
        // A step that is not understood differs in every commit: of it records alone prove something.
        let by_commits = matches!(
            cause,
            Cause::Instruction { .. } | Cause::New { .. } | Cause::Setting { .. } | Cause::Order { .. }
        );
        match of.step.as_ref().filter(|step| by_commits && step.kind == StepKind::Unknown) {
            Some(step) => {
                let problem = self.evidence.plan.unknown.iter().find(|unknown| unknown.line == step.line);
                let problem = problem.map_or("it is not understood", |unknown| &unknown.problem);
                unknown(&format!("nothing that is read here: {problem}"))
            }
            None => cause,
        }
    }

    fn cause_of(&self, node: usize, of: &Node) -> Cause {
        match self.records.get(node).copied().flatten().and_then(|it| Some((it, self.export.get(it)?))) {
            Some((record, lookup)) => self.by_records(node, of, record, lookup),
            None => self.without_record(node, of),
        }
    }

    /// Holds what the build looked for against what there was.
    fn by_records(&self, node: usize, of: &Node, record: usize, lookup: &Lookup) -> Cause {
        for (given, (side, error)) in self.evidence.given.iter().zip(&self.given) {
            if side.as_ref().is_some_and(|side| side.has_result(record)) {
                let cache = given.name.clone();
                return match error {
                    Some(error) => Cause::NotImported { cache, error: error.clone() },
                    None => self
                        .other_bytes(of)
                        .unwrap_or_else(|| Cause::NotUsed { cache, all: self.nothing_was_reused() }),
                };
            }
        }
        // What was copied of a stage that ran was the same again if a cache has the copy: it follows from nothing.
        if let Some(cause) =
            self.elsewhere(record, lookup).filter(|_| self.follows_from(of.parent).is_empty())
        {
            return cause;
        }
        let follows = self.follows_from(of.rests_on());
        let readable: Vec<&Side> = self
            .given
            .iter()
            .filter(|(_, error)| error.is_none())
            .filter_map(|(side, _)| side.as_ref())
            .collect();
        if readable.is_empty() {
            return self.without_caches();
        }
        // The records of the same operation that come nearest, and the inputs in which they differ.
        let nearest = readable
            .iter()
            .flat_map(|side| side.records.iter().map(move |theirs| (side, theirs)))
            .filter(|(_, theirs)| {
                theirs.digest == lookup.digest && theirs.inputs.len() == lookup.inputs.len()
            })
            .map(|(side, theirs)| {
                let differs = |input: &usize| !side.input_matches(lookup, theirs, *input);
                ((0..lookup.inputs.len()).filter(differs).collect::<BTreeSet<usize>>(), theirs)
            });
        let is_elsewhere = |differing: &BTreeSet<usize>| differing.contains(&0) && of.parent.is_some();
        let same: Vec<(BTreeSet<usize>, &Lookup)> = nearest.collect();
        let nearest = same.iter().map(|(differing, _)| differing);
        let nearest = nearest.min_by_key(|differing| (is_elsewhere(differing), differing.len()));
        // What has no result was only heard of.
        let made = |elsewhere: bool| -> Vec<Option<Timestamp>> {
            let of =
                same.iter().filter(|(differing, it)| it.has_result && is_elsewhere(differing) == elsewhere);
            of.map(|(_, it)| it.made_at).collect()
        };
        let parent_is_there = Self::parent_is_there(of, lookup, &readable);
        match nearest {
            Some(differing) if is_elsewhere(differing) => {
                self.other_parent(of, &follows, parent_is_there, node, &made(true))
            }
            _ if !follows.is_empty() => self.following(node, &follows),
            Some(_) => self.other_content(node, of, &made(false)),
            None if !parent_is_there => match self.base(of) {
                Some(image) if self.is_in_past(node) || self.change(node, Part::Operation).is_none() => {
                    self.base_or_unknown(image, &readable)
                }
                _ => self.other_operation(node, of, lookup, &readable),
            },
            None => self.other_operation(node, of, lookup, &readable),
        }
    }

    /// Whether a given cache has the key of what a record rests on: its parent, and its base image.
    fn parent_is_there(of: &Node, lookup: &Lookup, readable: &[&Side]) -> bool {
        let Some(first) = lookup.inputs.first().filter(|_| of.parent.is_some()) else { return true };
        first.iter().any(|link| readable.iter().any(|side| !side.matching(link.record).is_empty()))
    }

    /// Of these nodes, which a step rests on, those that ran and whose keys no given cache has.
    fn follows_from(&self, nodes: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut follows = Vec::new();
        let mut open: Vec<usize> = nodes.into_iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(below) = open.pop() {
            let Some(node) = self.node(below).filter(|_| seen.insert(below)) else { continue };
            if node.step.is_none() {
                // A layer that is put upon others runs nothing itself.
                open.extend(node.rests_on());
            } else if self.ran.contains_key(&below) && self.lacks_key(below) {
                follows.push(below);
            }
        }
        follows.sort_unstable();
        follows
    }

    /// Whether it is certain that no given cache has a node's key, with a result or without.
    fn lacks_key(&self, node: usize) -> bool {
        let is_in = |record: usize| {
            self.given.iter().any(|(side, error)| {
                error.is_none() && side.as_ref().is_none_or(|side| !side.matching(record).is_empty())
            })
        };
        let mut below = Some(node);
        // A key is made of its parent's: where that is not there, neither is what rests on it.
        while let Some(node) = below {
            if let Some(record) = self.records.get(node).copied().flatten() {
                return !is_in(record);
            }
            below = self.node(node).and_then(|node| node.parent);
        }
        false
    }

    fn following(&self, node: usize, follows: &[usize]) -> Cause {
        let name = |node: &usize| self.ran.get(node).map(|vertex| vertex.name.clone());
        let also = self.own_change(node).map(Box::new);
        Cause::Follows { steps: follows.iter().filter_map(name).collect(), also }
    }

    /// What the commit changed in the step itself.
    fn own_change(&self, node: usize) -> Option<Cause> {
        let own = |part| {
            let change = self.change(node, part)?;
            (change.commit == self.evidence.commit).then_some(change)
        };
        let content = own(Part::Content).map(|change| self.content(node, &change));
        content.or_else(|| own(Part::Operation).map(|change| self.operation(node, &change)))
    }

    fn other_parent(
        &self,
        of: &Node,
        follows: &[usize],
        parent_is_there: bool,
        node: usize,
        made: &[Option<Timestamp>],
    ) -> Cause {
        if !follows.is_empty() {
            return self.following(node, follows);
        }
        match self.base(of) {
            Some(image) if !parent_is_there => {
                self.changed_base(node, made).unwrap_or(Cause::Base { image, before: None })
            }
            // The parent was there, and it stood elsewhere: what was between them is gone, or came.
            _ if parent_is_there => Cause::Order {
                commit: self.order_change(node).filter(|commit| self.came_after(commit, made)),
            },
            _ => unknown("the caches that those which the build was given were before"),
        }
    }

    fn base_or_unknown(&self, image: String, readable: &[&Side]) -> Cause {
        // Only where the caches have the steps upon another image is it the image that moved.
        let digests: HashSet<&str> =
            readable.iter().flat_map(|side| &side.records).map(|record| record.digest.as_str()).collect();
        let has_some = self.records.iter().flatten().any(|record| {
            self.export
                .get(*record)
                .is_some_and(|it| !it.inputs.is_empty() && digests.contains(it.digest.as_str()))
        });
        if has_some {
            Cause::Base { image, before: None }
        } else {
            unknown("caches that hold this Dockerfile's steps")
        }
    }

    /// A commit that names another base image.
    fn changed_base(&self, node: usize, made: &[Option<Timestamp>]) -> Option<Cause> {
        let image = base_of(self.evidence.plan, node)?;
        let reference = self.node(image)?.image()?;
        let mut later = self.evidence.commit;
        let stage = &self.node(node)?.step.as_ref()?.stage;
        for past in self.evidence.past {
            let of_stage = past
                .plan
                .nodes
                .iter()
                .enumerate()
                .filter(|(_, node)| node.step.as_ref().is_some_and(|step| step.stage == *stage));
            let base = of_stage.map(|(number, _)| number).next().and_then(|first| base_of(past.plan, first));
            let before = base.and_then(|base| past.plan.nodes.get(base)?.image())?;
            if before != reference {
                return self.came_after(later, made).then(|| Cause::Instruction {
                    commit: later.to_owned(),
                    before: format!("FROM {before}"),
                });
            }
            later = &past.commit;
        }
        None
    }

    /// The image that a step stands upon directly, as the log has it.
    fn base(&self, of: &Node) -> Option<String> {
        let mut below = of.parent;
        while let Some(node) = below.and_then(|below| self.node(below)) {
            if let Some(reference) = node.image() {
                let named = self.evidence.build.images();
                let found = named.into_iter().find(|(name, _)| is_image(name, reference));
                return Some(
                    found.map_or_else(|| reference.to_owned(), |(name, digest)| format!("{name}@{digest}")),
                );
            }
            if node.step.is_some() {
                return None;
            }
            below = node.parent;
        }
        None
    }

    fn other_content(&self, node: usize, of: &Node, made: &[Option<Timestamp>]) -> Cause {
        let step = of.step.as_ref();
        let is_remote = |step: &dockerfile_keys::Step| {
            let mut words = step.text.split_whitespace();
            step.kind == StepKind::Add && words.any(|word| word.contains("://") || word.starts_with("git@"))
        };
        let change = self.change(node, Part::Content);
        let nobody_knows = || Cause::Content { commit: None, files: Vec::new(), count: 0 };
        if let Some(change) = change {
            let is_it = self.came_after(&change.commit, made);
            return if is_it { self.content(node, &change) } else { nobody_knows() };
        }
        let oldest = self.evidence.past.last().map(|past| &past.commit);
        match step {
            Some(step) if is_remote(step) => {
                Cause::Uncacheable { what: "what lies at its address changed".to_owned() }
            }
            _ if !of.inputs.is_empty() => unknown("the export of the build that filled the caches"),
            // What the caches have may be older than all commits looked at.
            _ if oldest.is_none_or(|oldest| made.is_empty() || self.is_older(oldest, made)) => nobody_knows(),
            _ => Cause::Untracked,
        }
    }

    /// Why a step ran that a given cache has: those whose files it or one below it takes ran again, though that cache
    /// has them, too, and left other bytes.
    fn other_bytes(&self, of: &Node) -> Option<Cause> {
        let name = |node: &usize| self.ran.get(node).map(|vertex| vertex.name.clone());
        let inputs = |of: &Node| -> Vec<String> {
            let names = of.inputs.iter().filter_map(name).collect();
            if self.has_other_content(of) { names } else { Vec::new() }
        };
        let below = |of: &Node| of.parent.filter(|parent| self.ran.contains_key(parent));
        let mut parent = below(of);
        while let Some(node) = parent.and_then(|parent| self.node(parent)) {
            if !inputs(node).is_empty() {
                return Some(Cause::Follows {
                    steps: below(of).as_ref().and_then(name).into_iter().collect(),
                    also: None,
                });
            }
            parent = below(node);
        }
        let steps = inputs(of);
        (!steps.is_empty()).then_some(Cause::OtherBytes { steps })
    }

    /// Whether a step took of others something that no given cache has for the same step.
    fn has_other_content(&self, of: &Node) -> bool {
        let place = self.evidence.plan.nodes.iter().position(|node| std::ptr::eq(node, of));
        let record = place.and_then(|place| self.records.get(place).copied().flatten());
        let Some((record, lookup)) = record.and_then(|record| Some((record, self.export.get(record)?)))
        else {
            return false;
        };
        let sides: Vec<&Side> = self.given.iter().filter_map(|(side, _)| side.as_ref()).collect();
        let differs = |input: usize| {
            let contents = |of: &Lookup, all: &[Lookup]| -> Vec<usize> {
                let links = of.inputs.get(input).into_iter().flatten().map(|link| link.record);
                links.filter(|link| all.get(*link).is_some_and(|it| it.inputs.is_empty())).collect()
            };
            let ours = contents(lookup, &self.export);
            let theirs = sides.iter().flat_map(|side| {
                let same = side.matching(record).iter().filter_map(|other| side.records.get(*other));
                same.flat_map(|other| contents(other, &side.records)).map(move |it| (side, it))
            });
            let theirs: Vec<(&&Side, usize)> = theirs.collect();
            let is_there = |our: &usize| theirs.iter().any(|(side, it)| side.matching(*our).contains(it));
            // The export holds what was imported, too.
            !theirs.is_empty() && !ours.iter().all(is_there)
        };
        (usize::from(of.parent.is_some())..lookup.inputs.len()).any(differs)
    }

    fn content(&self, node: usize, change: &Change) -> Cause {
        let sources = self.node(node).map_or(&[][..], Node::sources);
        let files = match &change.before {
            Some((before, ..)) => (self.evidence.files)(before, &change.commit, sources),
            None => return Cause::New { commit: change.commit.clone() },
        };
        let count = files.len();
        let files = files.into_iter().take(20).collect();
        Cause::Content { commit: Some(change.commit.clone()), files, count }
    }

    fn operation(&self, node: usize, change: &Change) -> Cause {
        let commit = change.commit.clone();
        let Some((_, past, before)) = change.before else { return Cause::New { commit } };
        let text = |plan: &Plan, node: usize| {
            plan.nodes
                .get(node)
                .and_then(|node| node.step.as_ref())
                .map(|step| step.text.clone())
                .unwrap_or_default()
        };
        let before = self.evidence.past.get(past).map(|past| text(past.plan, before)).unwrap_or_default();
        let now = text(self.evidence.plan, node);
        if before == now { Cause::Setting { commit } } else { Cause::Instruction { commit, before } }
    }

    /// No given cache has the operation upon this parent.
    fn other_operation(&self, node: usize, of: &Node, lookup: &Lookup, readable: &[&Side]) -> Cause {
        if let Some(cause) = self.variant(node, readable) {
            return cause;
        }
        let change = self.change(node, Part::Operation);
        let others = self.others(of, lookup, readable);
        if let Some(change) = &change
            && (!self.is_in_past(node) || !others.is_empty())
            && self.came_after(&change.commit, &others)
        {
            return self.operation(node, change);
        }
        if self.is_in_past(node) && change.is_none() && !others.is_empty() {
            let names = self.open_arguments(node);
            return match (self.commands.get(&node), names.is_empty()) {
                (Some(_), false) => Cause::Argument { names, before: None },
                _ => unknown(
                    "provenance of this build (--provenance=mode=max), or the flags of the one before",
                ),
            };
        }
        if self.evidence.past.is_empty() {
            return unknown("the commits before this one (--git)");
        }
        unknown("the caches that those which the build was given were before (--before)")
    }

    /// Whether provenance shows what the operation was: another network, or an argument's value.
    fn variant(&self, node: usize, readable: &[&Side]) -> Option<Cause> {
        let command = self.commands.get(&node)?;
        let digests: HashSet<&str> =
            readable.iter().flat_map(|side| &side.records).map(|record| record.digest.as_str()).collect();
        for (network, digest) in command.on_other_networks() {
            if digests.contains(digest.as_str()) {
                let now = command.network().to_owned();
                return Some(Cause::Network { before: network.to_owned(), now });
            }
        }
        let values = self.evidence.past.iter().flat_map(|past| {
            let short = past.commit.get(..7).unwrap_or(&past.commit);
            [past.commit.as_str(), short]
        });
        let values: Vec<&str> = values.collect();
        for name in self.evidence.arguments.keys() {
            let is_old = |value: &&&str| {
                command.with_variable(name, value).is_some_and(|digest| digests.contains(digest.as_str()))
            };
            if let Some(value) = values.iter().find(is_old) {
                return Some(Cause::Argument {
                    names: vec![name.clone()],
                    before: Some((*value).to_owned()),
                });
            }
        }
        None
    }

    /// The build arguments that are part of a command's key.
    fn open_arguments(&self, node: usize) -> Vec<String> {
        let command = self.commands.get(&node);
        let is_part = |name: &&String| command.is_some_and(|command| command.has_variable(name));
        self.evidence.arguments.keys().filter(is_part).cloned().collect()
    }

    /// When the operations were made that given caches have upon the same parent, and this build has not there: what
    /// stood in a step's place before.
    fn others(&self, of: &Node, lookup: &Lookup, readable: &[&Side]) -> Vec<Option<Timestamp>> {
        if of.parent.is_none() {
            return Vec::new();
        }
        // What stands upon the same parent in this build, too, is no other.
        let parents: Vec<usize> =
            lookup.inputs.first().into_iter().flatten().map(|link| link.record).collect();
        let is_beside = |record: &&Lookup| {
            record.inputs.first().is_some_and(|links| links.iter().any(|link| parents.contains(&link.record)))
        };
        let own = self.records.iter().flatten().filter_map(|record| self.export.get(*record));
        let own: HashSet<&str> = own.filter(is_beside).map(|record| record.digest.as_str()).collect();
        let mut others = Vec::new();
        for side in readable {
            let is_other = |theirs: &&Lookup| {
                theirs.has_result
                    && !theirs.inputs.is_empty()
                    && !own.contains(theirs.digest.as_str())
                    && side.input_matches(lookup, theirs, 0)
            };
            others.extend(side.records.iter().filter(is_other).map(|theirs| theirs.made_at));
        }
        others
    }

    /// Whether a commit came after all of these were made: they cannot hold what it brought. Git counts whole seconds.
    fn came_after(&self, commit: &str, made: &[Option<Timestamp>]) -> bool {
        self.evidence.committed.get(commit).is_some_and(|at| {
            made.iter().all(|made| made.is_some_and(|made| made.as_second() <= at.as_second()))
        })
    }

    /// Whether some of these were made before a commit.
    fn is_older(&self, commit: &str, made: &[Option<Timestamp>]) -> bool {
        let at = self.evidence.committed.get(commit);
        at.is_none_or(|at| made.iter().any(|made| made.is_none_or(|made| made.as_second() < at.as_second())))
    }

    fn elsewhere(&self, record: usize, lookup: &Lookup) -> Option<Cause> {
        for (elsewhere, side) in self.evidence.elsewhere.iter().zip(&self.elsewhere) {
            // What was made when, or after, this build made its own was not there for it.
            let mut there = side.matching(record).iter().filter_map(|other| side.records.get(*other));
            let Some(theirs) = there.find(|it| it.has_result && it.made_at < lookup.made_at) else {
                continue;
            };
            let (cache, note) = (elsewhere.name.clone(), elsewhere.note.clone());
            let rule = match (elsewhere.relation, &theirs.probation) {
                (Relation::Before, _) => None,
                (Relation::Refreshed, _) => Some(Rule::Refreshed),
                (Relation::Promoted, Some(mark)) => {
                    Some(Rule::Probation { commit: mark.commit().to_string() })
                }
                (Relation::Promoted, None) => Some(Rule::Limits { last_used: theirs.last_used }),
                (Relation::RolledBack, _) => return Some(Cause::RolledBack { cache, note }),
                (Relation::Other, _) => return Some(Cause::NotGiven { cache, note }),
            };
            return Some(Cause::Dropped { cache, note, rule });
        }
        None
    }

    /// No given cache was imported and can be read.
    fn without_caches(&self) -> Cause {
        let errors = self.given.iter().map(|(_, error)| error.clone());
        match self.evidence.given.iter().zip(errors).find_map(|(given, error)| Some((given, error?))) {
            _ if self.given.iter().any(|(_, error)| error.is_none()) => {
                unknown("what the given caches held: they can no longer be read")
            }
            Some((given, error)) => Cause::NotImported { cache: given.name.clone(), error },
            None => Cause::NotGiven { cache: String::new(), note: "the build was given no cache".to_owned() },
        }
    }

    /// Nobody knows the record.
    fn without_record(&self, node: usize, of: &Node) -> Cause {
        let follows = self.follows_from(of.parent);
        if !follows.is_empty() {
            return self.following(node, &follows);
        }
        match self.without_caches() {
            Cause::Unknown { .. } => unknown(
                "the cache that this build exported with mode=max (--export), or its provenance with mode=max",
            ),
            cause => cause,
        }
    }

    /// Whether no step but directories was found in any cache, as with `--no-cache`.
    fn nothing_was_reused(&self) -> bool {
        let steps = self
            .evidence
            .plan
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.step.as_ref().is_some_and(|step| step.kind != StepKind::Workdir));
        steps.map(|(node, _)| node).all(|node| self.ran.contains_key(&node))
    }

    /// The newest commit that changed a part of a step.
    fn change(&self, node: usize, part: Part) -> Option<Change> {
        let (mut plan, mut node, mut commit) = (self.evidence.plan, node, self.evidence.commit);
        for (number, past) in self.evidence.past.iter().enumerate() {
            let Some(before) = counterpart(plan, node, past.plan) else {
                return Some(Change { commit: commit.to_owned(), before: None });
            };
            let (new, old) = (plan.nodes.get(node)?, past.plan.nodes.get(before)?);
            let differs = match part {
                Part::Operation => new.operation != old.operation,
                // What a stage holds is known by its steps, which are told for themselves.
                Part::Content => {
                    new.inputs.is_empty() && new.content != old.content && new.operation == old.operation
                }
            };
            if differs {
                let before = Some((past.commit.clone(), number, before));
                return Some(Change { commit: commit.to_owned(), before });
            }
            (plan, node, commit) = (past.plan, before, &past.commit);
        }
        None
    }

    /// The newest commit that put other steps before one.
    fn order_change(&self, node: usize) -> Option<String> {
        let (mut plan, mut node, mut commit) = (self.evidence.plan, node, self.evidence.commit);
        for past in self.evidence.past {
            let before = counterpart(plan, node, past.plan)?;
            let parent = |plan: &Plan, node: usize| {
                let parent = plan.nodes.get(node).and_then(|node| node.parent);
                parent.and_then(|parent| plan.nodes.get(parent)).map(|parent| parent.operation)
            };
            if parent(plan, node) != parent(past.plan, before) {
                return Some(commit.to_owned());
            }
            (plan, node, commit) = (past.plan, before, &past.commit);
        }
        None
    }
}

fn unknown(would_tell: &str) -> Cause {
    Cause::Unknown { would_tell: would_tell.to_owned() }
}

/// The image at the bottom of a step's stage.
fn base_of(plan: &Plan, node: usize) -> Option<usize> {
    let mut below = Some(node);
    while let Some(number) = below {
        let node = plan.nodes.get(number)?;
        if node.image().is_some() {
            return Some(number);
        }
        below = node.parent;
    }
    None
}

/// The same step in an earlier plan: of the same text in its stage, or else what stood in its place, unless that is
/// another step of the later plan.
fn counterpart(plan: &Plan, node: usize, earlier: &Plan) -> Option<usize> {
    let step = plan.nodes.get(node)?.step.as_ref()?;
    let of_stage = || {
        earlier
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(number, node)| Some((number, node.step.as_ref()?)))
            .filter(|(_, it)| it.stage == step.stage)
    };
    let same_text = of_stage().filter(|(_, it)| it.text == step.text);
    if let Some((number, _)) = same_text.min_by_key(|(_, it)| it.place.abs_diff(step.place)) {
        return Some(number);
    }
    let is_still_there = |text: &str| {
        plan.nodes
            .iter()
            .filter_map(|node| node.step.as_ref())
            .any(|it| it.stage == step.stage && it.text == text)
    };
    of_stage()
        .find(|(_, it)| it.place == step.place && it.kind == step.kind && !is_still_there(&it.text))
        .map(|(number, _)| number)
}

/// What kept a build from importing a cache.
fn not_imported(build: &Build, given: &Given) -> Option<String> {
    let reported = build.vertices.iter().find(|vertex| vertex.import() == Some(given.name.as_str()));
    match reported {
        Some(vertex) => vertex.error.clone().or_else(|| given.problem.clone()),
        None => Some("the log tells of no import of it".to_owned()),
    }
}

/// Whether the name that a log has for an image is that of a Dockerfile.
fn is_image(logged: &str, reference: &str) -> bool {
    let reference = reference.split('@').next().unwrap_or(reference);
    let logged = logged.split('@').next().unwrap_or(logged);
    let tagged = |name: &str| {
        let last = name.rsplit('/').next().unwrap_or(name);
        if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
    };
    let (logged, reference) = (tagged(logged), tagged(reference));
    ["", "docker.io/", "docker.io/library/"].iter().any(|prefix| logged == format!("{prefix}{reference}"))
}

/// The commands of provenance, by their vertices where the log names those, or by their lines.
fn commands<'a>(evidence: &Evidence<'a>, ran: &BTreeMap<usize, &'a Vertex>) -> BTreeMap<usize, &'a Command> {
    let mut commands = BTreeMap::new();
    let Some(llb) = evidence.llb else { return commands };
    for (number, node) in evidence.plan.nodes.iter().enumerate() {
        let Some(step) = node.step.as_ref().filter(|step| step.kind == StepKind::Run) else { continue };
        let vertex = ran.get(&number).and_then(|vertex| vertex.digest.as_ref());
        let by_vertex =
            vertex.and_then(|vertex| llb.commands.iter().find(|command| command.vertices.contains(vertex)));
        let mut by_line = llb.commands.iter().filter(|command| command.line == Some(step.line));
        let command = by_vertex.or_else(|| by_line.next().filter(|_| by_line.next().is_none()));
        if let Some(command) = command {
            commands.insert(number, command);
        }
    }
    commands
}
