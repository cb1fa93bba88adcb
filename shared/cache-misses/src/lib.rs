//! Why the steps of a `BuildKit` build were not cached: from its log, its caches, its provenance, and the
//! commits before.
//!
//! Nothing here asks anybody. [`Log::read`] reads what a build said, [`Llb::read`] what its provenance says, and
//! [`explain`] finds the cause of each step that ran. All of it is taken to be hostile: nothing is an error,
//! and what is not proved is [`Cause::Unknown`].

mod align;
mod cause;
mod explain;
mod llb;
mod log;

pub use cause::{Cause, Elsewhere, EmptyMount, Evidence, Files, Given, Miss, Past, Relation, Report, Rule};
pub use explain::explain;
pub use llb::Llb;
pub use log::{Build, Log, StepName, Steps, Vertex};
