//! Whether carrying a mount is worth it, by how long builds of main took with it and without.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

const WITH: &str = "stoker.mount-seconds-with";
const WITHOUT: &str = "stoker.mount-seconds-without";
const UNTIL: &str = "stoker.mount-measured-at";

/// So many builds of each kind say something.
const ENOUGH: usize = 3;
/// Of so many builds that had the mount one goes without, until enough have.
const EACH_TRIAL: usize = 3;
/// Most builds of a kind that are remembered, the newest.
const MOST: usize = 12;
/// A mount that is not carried is tried again after so long: the project may have changed.
const REST: SignedDuration = SignedDuration::from_hours(14 * 24);

/// How long builds of main took, as the mount's image says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Samples {
    /// Seconds of builds that were given the mount, restoring and saving included; the newest last.
    pub with: Vec<u64>,
    /// Seconds of builds that went without.
    pub without: Vec<u64>,
    /// When the newest of these builds started: what comes a second time does not count twice.
    pub measured_at: Option<Timestamp>,
}

/// Whether a build is given a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrying {
    /// It is.
    Yes,
    /// It is not, and why, for people.
    No(String),
}

impl Samples {
    /// Reads a manifest's annotations; what is missing or malformed is left out.
    #[must_use]
    pub fn read(annotations: &BTreeMap<String, String>) -> Self {
        let seconds = |name: &str| {
            let words = annotations.get(name).map(String::as_str).unwrap_or_default().split(' ');
            words.filter_map(|word| word.parse().ok()).take(MOST).collect()
        };
        Self {
            with: seconds(WITH),
            without: seconds(WITHOUT),
            measured_at: annotations.get(UNTIL).and_then(|time| time.parse().ok()),
        }
    }

    /// The annotations that say it.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let words = |all: &[u64]| all.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let all =
            [(WITH, &self.with), (WITHOUT, &self.without)].into_iter().filter(|(_, all)| !all.is_empty());
        let all = all.map(|(name, all)| (name.to_owned(), words(all)));
        all.chain(self.measured_at.map(|time| (UNTIL.to_owned(), time.to_string()))).collect()
    }

    /// Counts a build of main that started then; one that is counted already, or came before that, is not.
    pub fn add(&mut self, at: Timestamp, seconds: u64, had_mount: bool) {
        if self.measured_at.is_some_and(|newest| at <= newest) {
            return;
        }
        self.measured_at = Some(at);
        let of_kind = if had_mount { &mut self.with } else { &mut self.without };
        of_kind.push(seconds);
        of_kind.drain(..of_kind.len().saturating_sub(MOST));
    }

    /// Whether the next build is given the mount, which was saved last at `saved_at`. Of builds of main some
    /// go without, until enough have to compare with. What counts is the mean: a build that re-runs nothing
    /// costs the carrying all the same.
    #[must_use]
    pub fn carrying(&self, is_main: bool, saved_at: Timestamp, now: Timestamp) -> Carrying {
        let enough = |all: &[u64]| all.len() >= ENOUGH;
        if !(enough(&self.with) && enough(&self.without)) {
            let is_trial =
                is_main && !enough(&self.without) && self.with.len() >= EACH_TRIAL * (self.without.len() + 1);
            return if is_trial {
                Carrying::No("this build goes without, to compare with those that had it".to_owned())
            } else {
                Carrying::Yes
            };
        }
        let (with, without) = (mean(&self.with), mean(&self.without));
        if with < without || now.duration_since(saved_at) > REST {
            return Carrying::Yes;
        }
        Carrying::No(format!(
            "carrying it costs more than it spares: {} builds of main took {with} s with it, {} took {without} \
             s without",
            self.with.len(),
            self.without.len()
        ))
    }
}

fn mean(all: &[u64]) -> u64 {
    let sum = all.iter().fold(0u64, |sum, seconds| sum.saturating_add(*seconds));
    sum / (all.len() as u64).max(1)
}
