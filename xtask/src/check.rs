//! What can be checked without running anything.

use std::process::Command;
use std::time::Instant;

use anyhow::bail;

use crate::{process, tools};

/// What `check` can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Makes all checks, also after one has failed.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    Ok(())
}
