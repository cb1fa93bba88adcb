//! `stoker onboard`: from an account full of projects to hot caches. A file for each step.
//!
//! `audit` and `plan` only read. `apply` writes down first what it is about to make (`record`), then makes it, in an
//! order in which a run that is cut off anywhere leaves builds as they were; run again it goes on. `undo` takes back
//! what is written down and is still as it was made.

mod account;
pub(crate) mod apply;
pub(crate) mod audit;
mod buildspec;
mod diff;
pub(crate) mod forge;
pub(crate) mod plan;
mod record;
mod source;
pub(crate) mod undo;
pub(crate) mod watch;

/// Takes projects of CodeBuild into service, and out of it
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Audit(audit::Args),
    Plan(plan::Args),
    Apply(apply::Args),
    Undo(undo::Args),
    Watch(watch::Args),
}
