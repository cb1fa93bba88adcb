//! What a storm can do.

use std::time::Duration;

use serde::Serialize;

/// What a storm does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A call is answered that there were too many of them.
    Throttled,
    /// A call fails inside the service, and does nothing.
    RefusedBefore,
    /// A call takes effect, and the answer is that it failed.
    RefusedAfter,
    /// The connection ends before a call took effect.
    BrokenOffBefore,
    /// The connection ends after a call took effect, and before its answer.
    BrokenOffAfter,
    /// A call takes effect, and its answer does not come before its client gives up.
    TimedOut,
    /// A read is answered with what was true a moment ago.
    Stale,
    /// The function that calls ends before the call took effect.
    KilledBefore,
    /// The function that calls ends after the call took effect.
    KilledAfter,
    /// Half of what a batch asks for is done.
    Partial,
    /// Events are put on the bus twice.
    PutTwice,
    /// Events are put on the bus after others that were sent later.
    PutLate,
    /// An event of AWS's own never comes.
    EventLost,
    /// An event of AWS's own comes twice.
    EventDoubled,
    /// An event of AWS's own comes after others that happened later.
    EventLate,
}

impl Fault {
    /// All that a storm has to do before it may be called one.
    pub const ALL: [Self; 15] = [
        Self::Throttled,
        Self::RefusedBefore,
        Self::RefusedAfter,
        Self::BrokenOffBefore,
        Self::BrokenOffAfter,
        Self::TimedOut,
        Self::Stale,
        Self::KilledBefore,
        Self::KilledAfter,
        Self::Partial,
        Self::PutTwice,
        Self::PutLate,
        Self::EventLost,
        Self::EventDoubled,
        Self::EventLate,
    ];
    /// What is done to calls, as often as it is here: what takes ten seconds is rare.
    pub(super) const DECK: [Self; 18] = [
        Self::Throttled,
        Self::Throttled,
        Self::RefusedBefore,
        Self::RefusedBefore,
        Self::RefusedAfter,
        Self::RefusedAfter,
        Self::RefusedAfter,
        Self::BrokenOffBefore,
        Self::BrokenOffAfter,
        Self::BrokenOffAfter,
        Self::TimedOut,
        Self::KilledBefore,
        Self::KilledBefore,
        Self::KilledAfter,
        Self::KilledAfter,
        Self::Partial,
        Self::PutTwice,
        Self::PutLate,
    ];

    /// Whether it can be done to few calls only, and so comes before others.
    pub(super) fn is_rare(self) -> bool {
        matches!(self, Self::TimedOut | Self::Partial | Self::PutTwice | Self::PutLate)
    }

    /// Whether the same call may fail so at every try of it.
    pub(super) fn may_last(self) -> bool {
        matches!(
            self,
            Self::Throttled
                | Self::RefusedBefore
                | Self::RefusedAfter
                | Self::BrokenOffBefore
                | Self::BrokenOffAfter
        )
    }
}

/// What becomes of an event of AWS's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It comes so often, after so long.
    Comes {
        /// How often.
        times: u32,
        /// How late it is.
        late: Duration,
    },
    /// It never comes.
    Lost,
}

impl Fate {
    /// What becomes of events when there is no storm.
    pub const BASELINE: Self = Self::Comes { times: 1, late: Duration::ZERO };
}
