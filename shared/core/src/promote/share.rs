//! How much of the function's time each project takes. All lines are updated through one queue, one batch at
//! a time, so what the branches of one project take is what all others wait for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::names::ProjectName;

/// A project's branches may take so much more than their share before others go first.
const AT_ONCE: Duration = Duration::from_secs(10);
/// A project's share is one part of so many of all time.
const PARTS: u32 = 6;

/// What the branches of each project took lately: remembered by the instance of the function, of which the
/// queue has one at a time.
#[derive(Debug, Default)]
pub struct Shares(RefCell<BTreeMap<ProjectName, Taken>>);

/// So much was taken beyond the share, at this time.
#[derive(Debug, Clone, Copy)]
struct Taken {
    beyond: Duration,
    at: Timestamp,
}

impl Taken {
    fn at(self, now: Timestamp) -> Duration {
        let passed = Duration::try_from(now.duration_since(self.at)).unwrap_or_default();
        self.beyond.saturating_sub(passed / PARTS)
    }
}

impl Shares {
    /// Whether a project has taken more than its share.
    pub(super) fn is_exceeded(&self, project: &ProjectName, now: Timestamp) -> bool {
        self.0.borrow().get(project).is_some_and(|taken| taken.at(now) > AT_ONCE)
    }

    /// Its branches took so long.
    pub(super) fn add(&self, project: &ProjectName, took: Duration, now: Timestamp) {
        let mut all = self.0.borrow_mut();
        all.retain(|_, taken| !taken.at(now).is_zero());
        let beyond = all.get(project).map_or(Duration::ZERO, |taken| taken.at(now)) + took;
        all.insert(project.clone(), Taken { beyond, at: now });
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn who_took_much_has_a_share_again_when_time_has_passed() {
        let (shares, now) = (Shares::default(), Timestamp::UNIX_EPOCH);
        let [greedy, other] = ["greedy", "other"].map(|name| ProjectName::new(name).unwrap());
        shares.add(&greedy, Duration::from_secs(8), now);
        assert!(!shares.is_exceeded(&greedy, now));
        shares.add(&greedy, Duration::from_secs(8), now);
        let later = |seconds| now + SignedDuration::from_secs(seconds);
        assert!(shares.is_exceeded(&greedy, later(30)) && !shares.is_exceeded(&other, now));
        assert!(!shares.is_exceeded(&greedy, later(37)), "6 seconds are a sixth of 36");
    }
}
