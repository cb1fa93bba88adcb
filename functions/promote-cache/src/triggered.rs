//! What a message asks promotion to look at.

use jiff::Timestamp;
use stoker_core::promote::PromotionTrigger;
use stoker_lambda::sqs::Message;

/// A message with a trigger.
pub(super) struct Triggered {
    pub(super) message: Message,
    pub(super) trigger: PromotionTrigger,
    /// When the forge, or else the bus, knew of what happened.
    pub(super) at: Option<Timestamp>,
}

impl Triggered {
    /// Whether it has been tried before, and that try failed or was killed.
    pub(super) fn is_again(&self) -> bool {
        self.message.receives > 1
    }
}
