//! Why the steps of a build were not cached.

mod log;

pub use log::{Build, Log, StepName, Steps, Vertex};
