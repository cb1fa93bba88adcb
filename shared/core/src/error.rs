//! What went wrong with a call that left the process, and what to do about it.

use std::error::Error as StdError;
use std::fmt;

/// A boxed cause.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// What a failure asks of whoever sees it at the boundary of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The same call may succeed later: give the event back for another try.
    Retry,
    /// The event can never be handled: log it and let it go.
    Drop,
    /// Trying again is of no use, and somebody has to look.
    Alarm,
}

/// Why a call failed, as far as the caller's next step depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The service asked for patience: a rate, a queue or an account limit.
    Throttled,
    /// No answer, or the service's own fault.
    Unavailable,
    /// What the call names does not exist.
    NotFound,
    /// The service will not do this: permissions, a bad argument, a conflict.
    Refused,
}

/// A call to AWS or to a registry failed.
#[derive(Debug)]
pub struct CallError {
    /// The call, such as `ecr:BatchGetImage`.
    pub operation: &'static str,
    /// What it was about, such as a repository's name.
    pub subject: String,
    /// How it failed.
    pub failure: Failure,
    cause: Option<Cause>,
}

impl CallError {
    /// A failure that the service or its client has words for.
    pub fn new(
        operation: &'static str,
        subject: impl fmt::Display,
        failure: Failure,
        cause: impl Into<Cause>,
    ) -> Self {
        Self { operation, subject: subject.to_string(), failure, cause: Some(cause.into()) }
    }

    /// What to do about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self.failure {
            Failure::Throttled | Failure::Unavailable => Disposition::Retry,
            Failure::NotFound | Failure::Refused => Disposition::Alarm,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.failure {
            Failure::Throttled => "was throttled",
            Failure::Unavailable => "did not answer as it should",
            Failure::NotFound => "found nothing",
            Failure::Refused => "was refused",
        };
        write!(f, "{} of {} {how}", self.operation, self.subject)
    }
}

impl StdError for CallError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// An error with all its causes on one line, for logs.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
