//! Which record of a build's export belongs to which of its steps.
//!
//! A cache says nothing of instructions. But its records rest on each other as the steps do, images and plain
//! copies have digests that the Dockerfile and the log decide, commands those that provenance decides. What
//! several records could be is nobody's: it is left open.

use std::collections::{BTreeMap, BTreeSet};

use buildkit_cache::Lookup;
use dockerfile_keys::{Key, Plan, StepKind};
use jiff::Timestamp;

/// Passes after which what is still open stays open.
const MOST_PASSES: usize = 64;

/// What is known of a plan's node beside the plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// The digest of its record.
    pub(crate) digest: Option<String>,
    /// Whether provenance says so, which is exact.
    pub(crate) is_exact: bool,
    /// It ran: its record mostly has a result, where other keys of what it copied have none.
    pub(crate) ran: bool,
    /// When it ran, as far as the log tells.
    pub(crate) span: Option<(Timestamp, Timestamp)>,
    /// It was found in a cache that the build was given: its record is one of these.
    pub(crate) found_in: Option<BTreeSet<usize>>,
}

/// The record of each node of a plan, where exactly one can be it.
pub(crate) fn align(plan: &Plan, records: &[Lookup], known: &[Known]) -> Vec<Option<usize>> {
    let mut candidates: Vec<BTreeSet<usize>> = (0..plan.nodes.len())
        .map(|node| (0..records.len()).filter(|record| may_be(plan, node, &records[*record])).collect())
        .collect();
    for (candidates, known) in candidates.iter_mut().zip(known) {
        narrow(candidates, |record| known.digest.as_ref() == Some(&records[record].digest));
        if let Some(found_in) = &known.found_in {
            narrow(candidates, |record| found_in.contains(&record));
        }
    }
    settle(plan, records, &mut candidates);
    for (candidates, _) in candidates.iter_mut().zip(known).filter(|(of, known)| known.ran && of.len() > 1) {
        narrow(candidates, |record| records[record].has_result);
    }
    settle(plan, records, &mut candidates);
    // Times are the weakest sign: they decide only between what else could be it.
    for (candidates, known) in candidates.iter_mut().zip(known).filter(|(it, _)| it.len() > 1) {
        if let Some((from, to)) = known.span {
            let slack = jiff::SignedDuration::from_millis(300);
            let is_near = |at: Timestamp| at >= from && at <= to + slack;
            narrow(candidates, |record| records[record].made_at.is_some_and(is_near));
        }
    }
    settle(plan, records, &mut candidates);
    candidates.iter().map(|of| if of.len() == 1 { of.first().copied() } else { None }).collect()
}

/// Keeps those of which something holds, unless it holds of none.
fn narrow(candidates: &mut BTreeSet<usize>, holds: impl Fn(usize) -> bool) {
    if candidates.iter().any(|record| holds(*record)) {
        candidates.retain(|record| holds(*record));
    }
}

/// Whether a record's shape is that of a node.
fn may_be(plan: &Plan, node: usize, record: &Lookup) -> bool {
    let Some(node) = plan.nodes.get(node) else { return false };
    let inputs = record.inputs.len();
    let Some(step) = &node.step else {
        return if node.layer().is_some() { inputs >= 2 } else { inputs == 0 && !record.has_result };
    };
    let reads = node.content.is_some() || !node.inputs.is_empty();
    match step.kind {
        StepKind::Workdir => inputs == usize::from(node.parent.is_some()),
        StepKind::Run if !reads => inputs == 1,
        _ => inputs >= usize::from(node.parent.is_some()) + usize::from(reads),
    }
}

/// Strikes out what cannot be, until nothing more can be.
fn settle(plan: &Plan, records: &[Lookup], candidates: &mut [BTreeSet<usize>]) {
    let rests_on = |record: usize, input: usize, below: &BTreeSet<usize>| {
        let inputs = records.get(record).and_then(|record| record.inputs.get(input));
        inputs.is_some_and(|links| links.iter().any(|link| below.contains(&link.record)))
    };
    for _ in 0..MOST_PASSES {
        let before: usize = candidates.iter().map(BTreeSet::len).sum();
        for (number, node) in plan.nodes.iter().enumerate() {
            let Some(parent) = node.parent else { continue };
            let below = candidates.get(parent).cloned().unwrap_or_default();
            if below.is_empty() {
                continue;
            }
            let fits = |record: usize| rests_on(record, 0, &below);
            let fitting: BTreeSet<usize> =
                candidates[number].iter().copied().filter(|record| fits(*record)).collect();
            // Of the parent's candidates only those count that some candidate rests on.
            let links = fitting.iter().filter_map(|record| records[*record].inputs.first()).flatten();
            let needed: BTreeSet<usize> =
                links.map(|link| link.record).filter(|record| below.contains(record)).collect();
            if !needed.is_empty() && plan.nodes[parent].image().is_none() {
                candidates[parent] = needed;
            }
            candidates[number] = fitting;
        }
        strike_out_taken(plan, candidates);
        if candidates.iter().map(BTreeSet::len).sum::<usize>() == before {
            return;
        }
    }
}

/// A record is that of one key only. One that two nodes could be alone is nobody's.
fn strike_out_taken(plan: &Plan, candidates: &mut [BTreeSet<usize>]) {
    let mut taken: BTreeMap<usize, Option<Key>> = BTreeMap::new();
    for (node, of) in plan.nodes.iter().zip(candidates.iter()) {
        if let (1, Some(record), None) = (of.len(), of.first(), node.image()) {
            let key = taken.entry(*record).or_insert(Some(node.key));
            *key = key.filter(|key| *key == node.key);
        }
    }
    for (node, of) in plan.nodes.iter().zip(candidates.iter_mut()) {
        of.retain(|record| taken.get(record).is_none_or(|key| *key == Some(node.key)));
    }
}
