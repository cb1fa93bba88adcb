//! What commands answer.

use std::io::Write as _;

/// What a command has to say, and whether the answer is yes.
pub(crate) struct CommandOutcome {
    pub(crate) text: String,
    pub(crate) success: bool,
}

impl CommandOutcome {
    pub(crate) fn yes(text: String) -> Self {
        Self { text, success: true }
    }
}

/// Prints to standard output.
pub(crate) fn print(text: &str) {
    // Whoever reads may stop reading, as `head` does.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
