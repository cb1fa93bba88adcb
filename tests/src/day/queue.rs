//! A standard queue of SQS: it gives batches in almost any order, and what failed comes again.

use std::collections::VecDeque;

use crate::rng::Rng;

/// Most messages in a batch.
pub(super) const BATCH: usize = 10;
/// How far a message may come before those that were sent earlier.
const DISORDER: u64 = 30;

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Body {
    /// A push, by its number.
    Push(u32),
    /// A project's turn in the night.
    Wanted(u32),
    /// A tick of the night.
    Tick,
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Message {
    pub(super) body: Body,
    /// When it came to the bus.
    pub(super) sent: u64,
    pub(super) receives: u32,
    /// Whether it is not the first that says so.
    pub(super) again: bool,
}

/// How a queue and its function are set up in `template.yaml`. Times are in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) delay: u64,
    pub(super) visibility: u64,
    pub(super) at_once: usize,
    pub(super) max_receives: u32,
}

/// A queue.
pub(super) struct Queue {
    pub(super) settings: Settings,
    visible: VecDeque<Message>,
    /// Invocations that run.
    pub(super) busy: usize,
    /// Messages that went to the dead letters.
    pub(super) given_up: usize,
    /// Messages that were given out, all times counted.
    pub(super) received: usize,
    /// Most messages that could have been given out, but for a free invocation.
    pub(super) deepest: usize,
    pub(super) batches: usize,
    /// Messages given again.
    pub(super) most_receives: u32,
}

impl Queue {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            visible: VecDeque::new(),
            busy: 0,
            given_up: 0,
            received: 0,
            deepest: 0,
            batches: 0,
            most_receives: 0,
        }
    }

    pub(super) fn put(&mut self, message: Message) {
        self.visible.push_back(message);
        self.deepest = self.deepest.max(self.visible.len());
    }

    /// A batch for an invocation, if there are messages and the function has one free.
    pub(super) fn take(&mut self, rng: &mut Rng) -> Option<Vec<Message>> {
        if self.visible.is_empty() || self.busy >= self.settings.at_once {
            return None;
        }
        let mut batch = Vec::new();
        while batch.len() < BATCH && !self.visible.is_empty() {
            let place = rng.below(DISORDER.min(self.visible.len() as u64)) as usize;
            self.visible.swap(0, place);
            batch.extend(
                self.visible.pop_front().map(|message| Message { receives: message.receives + 1, ..message }),
            );
        }
        self.busy += 1;
        self.batches += 1;
        self.received += batch.len();
        Some(batch)
    }

    /// A message failed: it is to be given out again after its visibility timeout, unless that was its last time.
    pub(super) fn again(&mut self, message: &Message) -> bool {
        self.most_receives = self.most_receives.max(message.receives);
        let has_more = message.receives < self.settings.max_receives;
        self.given_up += usize::from(!has_more);
        has_more
    }
}
