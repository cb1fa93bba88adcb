//! What a check has found.

use serde::Serialize;

use crate::deployed::Missing;

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Ok,
    Unknown,
    Warn,
    Wrong,
}

impl State {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Wrong => "wrong",
        }
    }
}

/// What a check has found, and how to repair it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) state: State,
    pub(crate) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repair: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), repair: None }
    }

    pub(crate) fn warn(check: &'static str, found: impl Into<String>, repair: impl Into<String>) -> Self {
        Self { check, state: State::Warn, found: found.into(), repair: Some(repair.into()) }
    }

    pub(crate) fn wrong(check: &'static str, found: impl Into<String>, repair: impl Into<String>) -> Self {
        Self { check, state: State::Wrong, found: found.into(), repair: Some(repair.into()) }
    }

    pub(crate) fn unknown(check: &'static str, found: impl Into<String>, repair: impl Into<String>) -> Self {
        Self { check, state: State::Unknown, found: found.into(), repair: Some(repair.into()) }
    }

    /// A check that cannot be made, as a call was refused or failed.
    pub(crate) fn missing(check: &'static str, missing: &Missing) -> Self {
        let repair = if missing.is_denied {
            format!("allow {} to whoever runs this (cli/README.md has the whole policy)", missing.action)
        } else {
            "run it again; then see what AWS says of that call".to_owned()
        };
        Self::unknown(check, missing.text(), repair)
    }
}

/// A fact, or why it is not known.
pub(crate) type Fact<T> = Result<T, Missing>;
