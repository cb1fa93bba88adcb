//! What comes of a replay, in figures.

use std::collections::BTreeMap;

use serde::Serialize;

use super::replay::{Planned, Ran};
use super::strategy::Strategy;
use super::times::{Level, Times};

/// Days of a month, for what a month costs.
pub(super) const MONTH: f64 = 30.44;

/// A figure that rests on assumed times: with the least, the usual and the most that is assumed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Range {
    pub(super) least: f64,
    pub(super) usual: f64,
    pub(super) most: f64,
}

impl Range {
    fn each(of: impl Fn(Level) -> f64) -> Self {
        Self { least: of(Level::Least), usual: of(Level::Usual), most: of(Level::Most) }
    }
}

/// The builds of one side: main's after a merge, or branches'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Side {
    pub(super) builds: usize,
    /// Steps that ran, over all builds.
    pub(super) steps: usize,
    /// Of the steps that one build ran, the median and the ninth decile.
    pub(super) steps_median: usize,
    pub(super) steps_p90: usize,
    /// The same of what one build took.
    pub(super) seconds_median: Range,
    pub(super) seconds_p90: Range,
}

/// One strategy's figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) strategy: Strategy,
    /// Builds of main that a merge started; all of main's where the history tells of no merge.
    pub(super) main: Side,
    pub(super) branches: Side,
    /// Steps that ran in all builds, those of main without a merge included.
    pub(super) all_steps: usize,
    /// Hours that all builds take in a month, steps alone.
    pub(super) hours_per_month: Range,
    pub(super) dollars_per_month: Range,
}

/// Adds up what a replay ran in so many days.
pub(super) fn figures(
    strategy: Strategy,
    builds: &[Planned<'_>],
    ran: &[Ran],
    days: f64,
    dollars_per_minute: f64,
) -> Figures {
    let pairs = || builds.iter().zip(ran);
    let has_merges = builds.iter().any(|build| !build.push.merged.is_empty());
    let main = pairs()
        .filter(|(build, _)| build.push.is_to_main() && (!has_merges || !build.push.merged.is_empty()));
    let branches = pairs().filter(|(build, _)| !build.push.is_to_main());
    let hours = Range::each(|level| {
        let seconds: f64 = ran.iter().map(|ran| seconds(ran, level)).sum();
        seconds / 3600.0 / days * MONTH
    });
    Figures {
        strategy,
        main: side(main.map(|(_, ran)| ran)),
        branches: side(branches.map(|(_, ran)| ran)),
        all_steps: ran.iter().map(|ran| ran.steps.len()).sum(),
        hours_per_month: hours,
        dollars_per_month: Range {
            least: hours.least * 60.0 * dollars_per_minute,
            usual: hours.usual * 60.0 * dollars_per_minute,
            most: hours.most * 60.0 * dollars_per_minute,
        },
    }
}

fn seconds(ran: &Ran, level: Level) -> f64 {
    let [least, usual, most] = ran.seconds;
    match level {
        Level::Least => least,
        Level::Usual => usual,
        Level::Most => most,
    }
}

fn side<'a>(ran: impl Iterator<Item = &'a Ran>) -> Side {
    let ran: Vec<&Ran> = ran.collect();
    let mut steps: Vec<usize> = ran.iter().map(|ran| ran.steps.len()).collect();
    steps.sort_unstable();
    let at = |share: usize| {
        Range::each(|level| {
            let mut all: Vec<f64> = ran.iter().map(|ran| seconds(ran, level)).collect();
            all.sort_unstable_by(f64::total_cmp);
            nth(&all, share)
        })
    };
    Side {
        builds: ran.len(),
        steps: steps.iter().sum(),
        steps_median: nth(&steps, 50),
        steps_p90: nth(&steps, 90),
        seconds_median: at(50),
        seconds_p90: at(90),
    }
}

/// The value below or at which so many percent of the sorted ones lie.
fn nth<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

/// How often a step ran.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Often {
    pub(super) stage: String,
    pub(super) step: String,
    pub(super) runs: usize,
    /// Hours of all its runs.
    pub(super) hours: Range,
    /// Whether its time is assumed.
    pub(super) is_assumed: bool,
}

/// The steps that ran, those that took longest in all first.
pub(super) fn often(builds: &[Planned<'_>], ran: &[Ran], times: &Times) -> Vec<Often> {
    let mut all: BTreeMap<(&str, &str), Often> = BTreeMap::new();
    for (build, ran) in builds.iter().zip(ran) {
        let steps = ran.steps.iter().filter_map(|number| build.plan.nodes.get(*number)?.step.as_ref());
        for step in steps {
            let often = all.entry((&step.stage, &step.text)).or_insert_with(|| Often {
                stage: step.stage.clone(),
                step: step.text.clone(),
                runs: 0,
                hours: Range::default(),
                is_assumed: !times.knows(step),
            });
            let seconds = times.of(step);
            often.runs += 1;
            often.hours.least += seconds.at(Level::Least) / 3600.0;
            often.hours.usual += seconds.at(Level::Usual) / 3600.0;
            often.hours.most += seconds.at(Level::Most) / 3600.0;
        }
    }
    let mut all: Vec<Often> = all.into_values().collect();
    all.sort_by(|a, b| b.hours.usual.total_cmp(&a.hours.usual));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        assert_eq!(nth(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 50), 5);
        assert_eq!(nth(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 90), 9);
        assert_eq!(nth(&[7], 90), 7);
        assert_eq!(nth::<usize>(&[], 50), 0);
    }
}
