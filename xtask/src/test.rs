//! The tests. Not composed yet.

/// What the tests can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the tests.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("the tests are not composed yet")
}
