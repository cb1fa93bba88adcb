//! Who pushes what and when: a working day of developers, bots that push in bursts, and merges of which some come by
//! the hundred.

use std::collections::VecDeque;

use super::Scale;
use crate::rng::Rng;

/// Milliseconds of an hour.
pub(super) const HOUR: u64 = 60 * MINUTE;
/// Milliseconds of a minute.
pub(super) const MINUTE: u64 = 60 * 1000;
/// The number of the default branch's line, and of no push at all.
pub(super) const NONE: u32 = u32::MAX;

/// How busy each hour of the day is, against the others.
const CURVE: [f64; 24] = [
    0.4, 0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.9, 1.2, 1.6, 2.2, 2.0, 1.4, 1.3, 1.5, 1.4, 1.2, 1.0, 0.9, 0.8, 0.7,
    0.6, 0.5, 0.4,
];
/// The share of pushes that bots make, and how many they make at once.
const BOTS: f64 = 0.1;
const BOTS_AT_ONCE: usize = 40;
/// How many merges come within ten minutes in a burst, and the share of all merges that do.
const MERGES_AT_ONCE: usize = 100;
const MERGED_AT_ONCE: f64 = 0.1;
/// How many branches of a project live at a time.
const BRANCHES: usize = 6;

/// A push, which is known by its place among all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Push {
    /// Milliseconds since the day began.
    pub(super) at: u64,
    /// The project.
    pub(super) project: u32,
    /// The branch, or [`NONE`] for main.
    pub(super) line: u32,
    /// The push that made the line's head before.
    pub(super) before: u32,
    /// The push whose commit a merge brought to main.
    pub(super) merged: u32,
}

/// All pushes of a day, in their order.
pub(super) struct Traffic {
    pub(super) pushes: Vec<Push>,
    /// How many branches there are.
    pub(super) lines: u32,
    /// How often each project was pushed to.
    pub(super) sizes: Vec<u32>,
    /// Pushes that may start builds in the busiest hour.
    pub(super) peak: usize,
}

/// What is known of a push before its branch is.
struct Plan {
    at: u64,
    project: u32,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Work,
    Bot,
    Merge,
}

/// Picks projects, the large ones more often.
struct Weights(Vec<f64>);

impl Weights {
    fn new(rng: &mut Rng, projects: usize) -> Self {
        let mut sum = 0.0;
        let sums = (0..projects).map(|_| {
            sum += rng.heavy(1.0, 1.5);
            sum
        });
        Self(sums.collect())
    }

    fn pick(&self, rng: &mut Rng) -> u32 {
        let all = self.0.last().copied().unwrap_or_default();
        let wanted = rng.share() * all;
        self.0.partition_point(|sum| *sum <= wanted) as u32
    }
}

/// A moment of the day, by how busy its hours are.
fn moment(rng: &mut Rng) -> u64 {
    let mut wanted = rng.share() * CURVE.iter().sum::<f64>();
    for (hour, weight) in (0..).zip(CURVE) {
        if wanted < weight {
            return hour * HOUR + rng.below(HOUR);
        }
        wanted -= weight;
    }
    12 * HOUR
}

fn plans(scale: &Scale, rng: &mut Rng) -> Vec<Plan> {
    let weights = Weights::new(rng, scale.projects);
    let mut plans = Vec::with_capacity(scale.pushes + scale.merges);
    let mut bots = (scale.pushes as f64 * BOTS) as usize;
    let mut work = scale.pushes - bots;
    while bots > 0 {
        let (project, start) = (weights.pick(rng), moment(rng).min(23 * HOUR));
        for _ in 0..bots.min(BOTS_AT_ONCE) {
            plans.push(Plan { at: start + rng.below(2 * MINUTE), project, kind: Kind::Bot });
            bots -= 1;
        }
    }
    let mut at_once = (scale.merges as f64 * MERGED_AT_ONCE) as usize;
    let mut merges = scale.merges - at_once;
    while at_once > 0 {
        let (project, start) = (weights.pick(rng), moment(rng).min(23 * HOUR));
        for _ in 0..at_once.min(MERGES_AT_ONCE) {
            plans.push(Plan { at: start + rng.below(10 * MINUTE), project, kind: Kind::Merge });
            at_once -= 1;
        }
    }
    while work + merges > 0 {
        let is_merge = rng.below((work + merges) as u64) < merges as u64;
        let (count, kind) = if is_merge { (&mut merges, Kind::Merge) } else { (&mut work, Kind::Work) };
        *count -= 1;
        plans.push(Plan { at: moment(rng), project: weights.pick(rng), kind });
    }
    plans.sort_by_key(|plan| (plan.at, plan.project));
    plans
}

impl Traffic {
    pub(super) fn new(scale: &Scale) -> Self {
        let mut rng = Rng(scale.seed);
        let plans = plans(scale, &mut rng);
        let mut hours = [0; 24];
        let mut sizes = vec![0; scale.projects];
        let mut main = vec![NONE; scale.projects];
        let mut open: Vec<VecDeque<(u32, u32)>> = vec![VecDeque::new(); scale.projects];
        let mut lines = 0;
        let mut pushes = Vec::with_capacity(plans.len());
        for (number, Plan { at, project, kind }) in (0..).zip(plans) {
            let own = project as usize;
            sizes[own] += 1;
            hours[(at / HOUR) as usize % 24] += usize::from(super::Kind::of(project) != super::Kind::Others);
            let open = &mut open[own];
            let (mut line, mut before, mut merged) = (NONE, NONE, NONE);
            let place = rng.below(open.len() as u64 + 1) as usize;
            if kind == Kind::Merge {
                before = std::mem::replace(&mut main[own], number);
                merged = open.remove(place.min(open.len().saturating_sub(1))).map_or(NONE, |(_, head)| head);
            } else if let Some((known, head)) = open.get_mut(place).filter(|_| kind == Kind::Work) {
                line = *known;
                before = std::mem::replace(head, number);
            } else {
                line = lines;
                lines += 1;
                open.push_back((line, number));
                if open.len() > BRANCHES {
                    open.pop_front();
                }
            }
            pushes.push(Push { at, project, line, before, merged });
        }
        Self { pushes, lines, sizes, peak: hours.into_iter().max().unwrap_or_default() }
    }
}
