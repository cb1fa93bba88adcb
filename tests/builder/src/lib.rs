//! Generated cases: what is built, on which branches, and from which caches.

mod agree;
mod case;
mod history;
mod random;
mod source;

pub use agree::Disagreement;
pub use case::{Branch, Case, Target};
pub use history::{Commit, Features, File, History, PROGRAM};
pub use random::Random;
pub use source::Source;
