//! Which steps a build runs, given what a cache holds: `BuildKit` asks from the end, and what rests below a hit is not
//! looked at.

use std::collections::BTreeSet;

use crate::key::Key;
use crate::plan::Plan;

/// What a build did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The steps that ran, as numbers of the plan's nodes.
    pub ran: BTreeSet<usize>,
    /// The steps and images that were found and needed.
    pub found: BTreeSet<usize>,
}

/// Says which steps of a plan run if a cache holds the results that `has` says.
pub fn solve(plan: &Plan, has: impl Fn(&Key) -> bool) -> Outcome {
    let mut solver = Solver { plan, has, outcome: Outcome::default(), done: BTreeSet::new() };
    for target in &plan.targets {
        solver.produce(*target);
    }
    solver.outcome
}

struct Solver<'a, H> {
    plan: &'a Plan,
    has: H,
    outcome: Outcome,
    /// Two stages may hold the same step; it is done once.
    done: BTreeSet<Key>,
}

impl<H: Fn(&Key) -> bool> Solver<'_, H> {
    /// Has a node's files at hand.
    fn produce(&mut self, number: usize) {
        let plan = self.plan;
        let Some(node) = plan.nodes.get(number) else { return };
        if self.done.contains(&node.key) {
            return;
        }
        self.resolve(number);
        if !self.done.insert(node.key) {
            return;
        }
        let is_image = node.step.is_none() && node.parent.is_none();
        if is_image || (self.has)(&node.key) {
            self.outcome.found.insert(number);
            return;
        }
        for below in node.rests_on() {
            self.produce(below);
        }
        if node.step.is_some() {
            self.outcome.ran.insert(number);
        }
    }

    /// Has at hand what must be there before a node's key can be known: what it, and what it rests on, read of stages.
    fn resolve(&mut self, number: usize) {
        let plan = self.plan;
        let mut next = Some(number);
        while let Some(node) = next.and_then(|number| plan.nodes.get(number)) {
            for input in &node.inputs {
                self.produce(*input);
            }
            if let Some(layer) = node.layer() {
                self.resolve(layer);
            }
            next = node.parent;
        }
    }
}
