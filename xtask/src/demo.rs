//! The demo. Not told yet.

/// What the demo can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the demo.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("the demo is not written yet")
}
