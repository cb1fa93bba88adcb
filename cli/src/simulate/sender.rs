//! Who sends payloads.

use std::fmt;
use std::str::FromStr;

use stoker_core::forge::Forge;

/// Who a payload is from, by the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Webhook(Forge),
    CodeCommit,
}

impl FromStr for Sender {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "codecommit" {
            return Ok(Self::CodeCommit);
        }
        name.parse().map(Self::Webhook).map_err(|_| "expected github, gitlab, bitbucket or codecommit")
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhook(forge) => forge.fmt(f),
            Self::CodeCommit => f.write_str("codecommit"),
        }
    }
}
