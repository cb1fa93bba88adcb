//! Why the steps of a build were not cached.

mod align;
mod cause;
mod llb;
mod log;

pub use cause::{Cause, Elsewhere, Evidence, Given, Miss, Past, Relation, Report, explain};
pub use llb::Llb;
pub use log::{Build, Log, StepName, Steps, Vertex};
