//! What a call that failed leaves unknown of the stack and the account.

use stoker_core::error::{CallError, chain};

use crate::problem::Problem;
use crate::retain::call_words;

/// Why a fact is not known: the call that it takes, whether that is not allowed, and AWS's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) action: &'static str,
    pub(crate) is_denied: bool,
    pub(crate) why: String,
}

impl Missing {
    /// The same in a sentence.
    pub(crate) fn text(&self) -> String {
        let Self { action, is_denied, why } = self;
        if *is_denied {
            format!("you may not call {action}: {why}")
        } else {
            format!("{action} failed: {why}")
        }
    }

    /// The same where nothing goes on without the fact.
    pub(crate) fn problem(&self) -> Problem {
        let Self { action, is_denied, .. } = self;
        let next = if *is_denied {
            format!("allow {action} to whoever runs this; cli/README.md has the permissions")
        } else {
            "check `aws sts get-caller-identity`, AWS_REGION, and the stack's name (--stack); then try again"
                .to_owned()
        };
        Problem::failed(self.text(), next)
    }
}

impl From<&CallError> for Missing {
    fn from(error: &CallError) -> Self {
        let cause = std::error::Error::source(error).map(chain).unwrap_or_default();
        let is_denied = cause.contains("AccessDenied") || cause.contains("Unauthorized");
        Self { action: error.operation, is_denied, why: call_words(&cause) }
    }
}
