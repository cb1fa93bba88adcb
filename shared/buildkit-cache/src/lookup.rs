//! A cache as BuildKit looks a step up in it, for people who ask why it did not find one.

use jiff::Timestamp;

use super::admit::Matching;
use super::graph::Cache;
use super::mark::Mark;

/// A record as BuildKit looks it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The digest of its operation, or of the content that it stands for.
    pub digest: String,
    /// For each input the alternatives, any of which will do.
    pub inputs: Vec<Vec<Alternative>>,
    /// Whether it has a result: layers that can be reused.
    pub has_result: bool,
    /// When its newest result was made, as far as that is known.
    pub made_at: Option<Timestamp>,
    /// When a build last used it, as far as that is known.
    pub last_used: Option<Timestamp>,
    /// The last merge that its results are on probation for, where all of them are.
    pub probation: Option<Mark>,
}

/// One alternative of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    /// Which part of the record's result it is.
    pub selector: String,
    /// The record's place in the list.
    pub record: usize,
}

impl Cache {
    /// The records of the cache. A place in this list means a record to [`Cache::matching`], too.
    #[must_use]
    pub fn lookups(&self) -> Vec<Lookup> {
        let lookup = |record: &super::graph::Record| {
            let mut inputs: Vec<Vec<Alternative>> = Vec::new();
            for link in &record.links {
                inputs.resize(inputs.len().max(link.input + 1), Vec::new());
                let alternative = Alternative { selector: link.selector.to_string(), record: link.record };
                inputs[link.input].push(alternative);
            }
            let times = record.steps().filter_map(|(_, at)| at.known());
            let has_result = record.has_result();
            let results = record.results.iter().map(|made| &made.probation);
            let marks: Option<Vec<_>> =
                results.chain(record.chains.iter().map(|made| &made.probation)).cloned().collect();
            let marks = marks.into_iter().flatten().max();
            Lookup {
                digest: record.digest.to_string(),
                inputs,
                has_result,
                made_at: times.max(),
                last_used: record.last_used(),
                probation: marks.map(|mark| Mark::clone(&mark)),
            }
        };
        self.records.iter().map(lookup).collect()
    }

    /// For each record of this cache those of another that BuildKit takes for the same: [`Cache::admit`] says by what
    /// rule. Nothing if that takes too long to find out, as with caches that somebody made for it.
    #[must_use]
    pub fn matching(&self, other: &Self) -> Option<Vec<Vec<usize>>> {
        let mut matching = Matching::new(self, other)?;
        let mut of_class = std::collections::HashMap::<u32, Vec<usize>>::new();
        for place in 0..other.records.len() {
            of_class.entry(matching.class_of_foreign(place)).or_default().push(place);
        }
        let same = |place| of_class.get(&matching.class_of_main(place)).cloned().unwrap_or_default();
        Some((0..self.records.len()).map(same).collect())
    }
}
