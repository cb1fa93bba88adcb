//! A case: branches over one source, and what is built of them in the end.

use crate::random::Random;
use crate::source::{Change, Source};

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its seed, from which all else follows.
    pub seed: u64,
    /// In every layer of the case, and in no other.
    pub token: String,
    /// What is built and exported before, in this order.
    pub branches: Vec<Branch>,
    /// What is built with their caches.
    pub target: Target,
    /// Decides what is cut off the cache.
    pub random: Random,
}

/// A branch, which exports a cache.
#[derive(Debug, Clone)]
pub struct Branch {
    /// What it builds.
    pub source: Source,
    /// Whether its builder has nothing of the builds before it.
    pub fresh: bool,
    /// How many of the caches before it it imports, from the first on.
    pub imports: usize,
}

/// What is built in the end.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its source.
    pub source: Source,
    /// The branches whose changes it has.
    pub merged: Vec<usize>,
}

impl Case {
    /// The case of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let token = format!("c{:012x}", random.number() >> 16);
        let start = Source::random(&token, &mut random);
        let mut fresh_ids = 0;
        let mut changes: Vec<Vec<Change>> = Vec::new();
        let mut branches = Vec::new();
        // Four are rare, as every branch is a build.
        let count = if random.chance(15) { 4 } else { random.between(2, 3) };
        for number in 0..count {
            // The first may be main as it was.
            let least = usize::from(number > 0);
            let own: Vec<Change> = (0..random.between(least, 2))
                .map(|_| start.random_change(&mut fresh_ids, &mut random))
                .collect();
            let source = changed(&start, &own);
            changes.push(own);
            let imports = if random.chance(50) { random.between(0, number) } else { 0 };
            branches.push(Branch { source, fresh: random.chance(50), imports });
        }
        let merged: Vec<usize> = if random.chance(40) {
            vec![random.below(branches.len())]
        } else {
            (0..branches.len()).filter(|_| random.chance(75)).collect()
        };
        let all: Vec<Change> = merged.iter().flat_map(|&branch| changes[branch].clone()).collect();
        let target = Target { source: changed(&start, &all), merged };
        Self { seed, token, branches, target, random }
    }

    /// The marks in a text. The last in a step's text is what the step makes, and so is the first in its layer.
    #[must_use]
    pub fn marks<'a>(&self, text: &'a str) -> impl DoubleEndedIterator<Item = &'a str> + use<'a> {
        let start = format!("{}m", self.token);
        let starts: Vec<usize> = text.match_indices(&start).map(|(place, _)| place).collect();
        starts.into_iter().filter_map(move |place| text.get(place..=place + text[place..].find('x')?))
    }
}

fn changed(start: &Source, changes: &[Change]) -> Source {
    let mut source = start.clone();
    for change in changes {
        source.change(change);
    }
    source
}
