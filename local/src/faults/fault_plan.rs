//! The weather: what comes next, by dice.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::call::Call;
use super::fault::{Fate, Fault};

/// How often a call fails that fails for good, as the SDK tries it.
const TRIES: u32 = 4;
/// The same for the client of the registry.
const REGISTRY_TRIES: u32 = 3;
/// Between two calls that are held: each holds up what waits behind it.
const BETWEEN_HELD: Duration = Duration::from_mins(1);
/// Of two reads of what has just changed one does not see it.
const STALE: u64 = 2;
/// How late a late event is at most, in milliseconds.
const LATEST: u64 = 2500;
/// What becomes of AWS's own events, as often as it is here: whether they are lost, doubled, late.
const FATES: [(bool, bool, bool); 9] = [
    (true, false, false),
    (true, false, false),
    (true, false, false),
    (false, true, false),
    (false, true, true),
    (false, false, true),
    (false, false, true),
    (false, false, false),
    (false, false, false),
];

/// A storm's dice, and what they have decided.
#[derive(Debug)]
pub(super) struct FaultPlan {
    rng: Rng,
    /// Of so many calls of one caller one is disturbed, by and large: rarely enough for a batch to come
    /// through at last.
    one_in: u64,
    /// What is done next, to the first call to which it can be done.
    deck: Vec<Fault>,
    /// How many calls each caller makes in peace before its next disturbance.
    peace: HashMap<String, u64>,
    /// What becomes of the next events.
    fates: Vec<(bool, bool, bool)>,
    /// When a call was held last.
    held_at: Option<Instant>,
    /// Calls that go on failing, and how often.
    lasting: HashMap<String, (Fault, u32)>,
}

/// Numbers that only look random: `SplitMix64`.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    fn is_one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn shuffled<T: Clone>(&mut self, cards: &[T]) -> Vec<T> {
        let mut cards = cards.to_vec();
        for last in (1..cards.len()).rev() {
            let other = self.below(last as u64 + 1);
            cards.swap(last, usize::try_from(other).unwrap_or_default());
        }
        cards
    }
}

impl FaultPlan {
    /// The storm of a seed, in which one of so many calls is disturbed.
    pub(super) fn new(seed: u64, one_in: u64) -> Self {
        let (peace, lasting) = (HashMap::new(), HashMap::new());
        let (deck, fates) = (Vec::new(), Vec::new());
        Self { rng: Rng(seed), one_in, deck, peace, fates, held_at: None, lasting }
    }

    /// What is done to a function's call; nothing to most.
    pub(super) fn choose(&mut self, caller: &str, call: &Call) -> Option<Fault> {
        if let Some((fault, left)) = self.lasting.get_mut(&call.identity) {
            let fault = *fault;
            *left -= 1;
            if *left == 0 {
                self.lasting.remove(&call.identity);
            }
            return Some(fault);
        }
        // Of batches there are few, and much that only they can suffer.
        let one_in = if call.is_batch() { self.one_in.div_ceil(8) } else { self.one_in };
        let first = self.rng.below(one_in);
        let left = self.peace.entry(peace_of(caller, call)).or_insert(first);
        if *left > 0 {
            *left -= 1;
            return None;
        }
        *left = one_in / 2 + self.rng.below(one_in);
        let mut place = self.find(call);
        if place.is_none() {
            let more = self.rng.shuffled(&Fault::DECK);
            self.deck.extend(more);
            place = self.find(call);
        }
        let fault = self.deck.remove(place?);
        if fault == Fault::TimedOut {
            self.held_at = Some(Instant::now());
        }
        if fault.may_last() && self.rng.is_one_in(2) {
            let tries = if call.is_sdk { TRIES } else { REGISTRY_TRIES };
            self.lasting.insert(call.identity.clone(), (fault, tries - 1));
        }
        Some(fault)
    }

    /// The first in the deck that can be done, and before it what can be done to few calls only.
    fn find(&self, call: &Call) -> Option<usize> {
        let was_held = self.held_at.is_some_and(|at| at.elapsed() < BETWEEN_HELD);
        let can = |fault: Fault| call.can(fault) && !(was_held && fault == Fault::TimedOut);
        let mut all = self.deck.iter().enumerate().filter(|(_, fault)| can(**fault));
        let first = all.clone().next();
        all.find(|(_, fault)| fault.is_rare()).or(first).map(|(place, _)| place)
    }

    /// What could not be done to a call is for another; something is done to the caller's next one.
    pub(super) fn put_back(&mut self, fault: Fault, caller: &str, call: &Call) {
        self.deck.push(fault);
        if let Some(left) = self.peace.get_mut(&peace_of(caller, call)) {
            *left = 0;
        }
    }

    /// Whether a read that would have had another answer a moment ago has that one.
    pub(super) fn is_stale(&mut self) -> bool {
        self.rng.is_one_in(STALE)
    }

    /// What becomes of an event of AWS's own, and what was done to it.
    pub(super) fn fate(&mut self) -> (Fate, Vec<Fault>) {
        if self.fates.is_empty() {
            self.fates = self.rng.shuffled(&FATES);
        }
        let (is_lost, is_doubled, is_late) = self.fates.pop().unwrap_or_default();
        if is_lost {
            return (Fate::Lost, vec![Fault::EventLost]);
        }
        let late = if is_late { self.delay() } else { Duration::ZERO };
        let mut done = Vec::new();
        done.extend(is_doubled.then_some(Fault::EventDoubled));
        done.extend((!late.is_zero()).then_some(Fault::EventLate));
        (Fate::Comes { times: 1 + u32::from(is_doubled), late }, done)
    }

    /// How late something is that is late.
    pub(super) fn delay(&mut self) -> Duration {
        Duration::from_millis(1 + self.rng.below(LATEST))
    }
}

/// Who has peace together.
fn peace_of(caller: &str, call: &Call) -> String {
    if call.is_batch() { format!("{caller} {}", call.operation) } else { caller.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::faults::call::tests::{AGENT, call};

    #[test]
    fn a_fault_run_does_everything_that_can_be_done_and_nothing_else() {
        let mut fault_plan = FaultPlan::new(7, 20);
        let mut seen = BTreeSet::new();
        for number in 0..4000 {
            let put = call("AWSEvents.PutEvents", AGENT, &number.to_string());
            seen.extend(fault_plan.choose("start-build", &put));
        }
        assert_eq!(seen, BTreeSet::from(Fault::DECK));
    }

    #[test]
    fn what_fails_for_good_fails_at_every_try() {
        let mut fault_plan = FaultPlan::new(3, 20);
        let mut longest = 0;
        for number in 0..3000 {
            let it = call("X.StartBuild", AGENT, &number.to_string());
            let Some(fault) = fault_plan.choose("start-build", &it) else { continue };
            let mut again = 0;
            while fault_plan.lasting.contains_key(&it.identity) {
                assert_eq!(fault_plan.choose("start-build", &it), Some(fault));
                again += 1;
            }
            assert!(again == 0 || fault.may_last(), "{fault:?}");
            longest = longest.max(again);
        }
        assert_eq!(longest, 3);
    }

    #[test]
    fn what_could_not_be_done_is_done_to_the_next_call() {
        let mut fault_plan = FaultPlan::new(4, 20);
        let put = |number: u64| call("AWSEvents.PutEvents", AGENT, &number.to_string());
        let chosen = (0..100).find_map(|n| fault_plan.choose("start-build", &put(n))).unwrap();
        fault_plan.put_back(chosen, "start-build", &put(0));
        assert!(fault_plan.choose("start-build", &put(100)).is_some());
    }

    #[test]
    fn events_are_lost_doubled_and_late() {
        let mut fault_plan = FaultPlan::new(5, 20);
        let fates: Vec<Fate> = (0..200).map(|_| fault_plan.fate().0).collect();
        let lost = fates.iter().filter(|fate| **fate == Fate::Lost).count();
        assert!((40..100).contains(&lost), "{lost}");
        assert!(fates.iter().any(|f| matches!(f, Fate::Comes { times: 2, late } if late.is_zero())));
        assert!(fates.iter().any(|f| matches!(f, Fate::Comes { times: 1, late } if !late.is_zero())));
    }
}
